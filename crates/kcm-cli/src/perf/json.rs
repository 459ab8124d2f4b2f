//! The result as JSON, for programs.
//!
//! Rates are messages a second (requests, where there are replies), all ratios are taken within a
//! round. `ratio_*` are KCM / TCP, `ratio_kernel*` KCM / the kernel's KCM, `ratio_ideal*`
//! KCM / the simulated ideal; `sleep_late_us` is what services of `work` sleep less, since sleeps end
//! so late here. What was not measured is left out.

use serde::Serialize;

use super::{
    machine::Machine,
    plan::{Plan, Row, name_of},
    stats::{Figures, Ratio, Ratios},
};

/// The whole result.
#[derive(Debug, Serialize)]
pub(super) struct Document<'a> {
    pub(super) machine: &'a Machine,
    pub(super) rounds: u32,
    pub(super) rows: &'a [RowResult],
}

impl<'a> Document<'a> {
    pub(super) fn new(machine: &'a Machine, plan: &Plan, rows: &'a [RowResult]) -> Self {
        Self {
            machine,
            rounds: plan.rounds,
            rows,
        }
    }
}

/// One row of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RowResult {
    pub(super) scenario: &'static str,
    pub(super) size_bytes: usize,
    pub(super) connections: usize,
    pub(super) sockets: usize,
    pub(super) batch: bool,
    pub(super) spin: bool,
    pub(super) duration_s: f64,
    pub(super) tcp: Figures,
    pub(super) kcm: Figures,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) kernel: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ideal: Option<Figures>,
    /// How late sleeps ended before the measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sleep_late_us: Option<f64>,
    #[serde(flatten)]
    pub(super) to_tcp: ToTcp,
    #[serde(flatten)]
    pub(super) to_kernel: Option<ToKernel>,
    #[serde(flatten)]
    pub(super) to_ideal: Option<ToIdeal>,
    /// Ideal / TCP, for the table.
    #[serde(skip)]
    pub(super) ideal_to_tcp: Option<Ratios>,
    /// The kernel's KCM / TCP, for the table.
    #[serde(skip)]
    pub(super) kernel_to_tcp: Option<Ratios>,
    #[serde(skip)]
    pub(super) row: Row,
}

impl RowResult {
    pub(super) fn new(row: &Row, tcp: Figures, kcm: Figures, to_tcp: Ratios) -> Self {
        Self {
            scenario: name_of(row.scenario),
            size_bytes: row.size_bytes,
            connections: row.connections,
            sockets: row.sockets,
            batch: row.batch,
            spin: row.spin,
            duration_s: row.timing.duration.as_secs_f64(),
            tcp,
            kcm,
            kernel: None,
            ideal: None,
            sleep_late_us: None,
            to_tcp: ToTcp(to_tcp),
            to_kernel: None,
            to_ideal: None,
            ideal_to_tcp: None,
            kernel_to_tcp: None,
            row: row.clone(),
        }
    }
}

macro_rules! named_ratios {
    ($(#[$doc:meta])* $name:ident { $($key:literal: $field:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(super) struct $name(pub(super) Ratios);

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let present: [(&str, Option<Ratio>); _] = [$(($key, self.0.$field)),*];
                serializer.collect_map(
                    present.into_iter().filter_map(|(key, ratio)| Some((key, ratio?))),
                )
            }
        }
    };
}

named_ratios! {
    /// KCM / TCP.
    ToTcp {
        "ratio": rate,
        "ratio_latency_mean": latency_mean,
        "ratio_latency_stddev": latency_stddev,
        "ratio_latency_p99": latency_p99,
        "ratio_cpu": cpu,
        "ratio_cpu_sender": cpu_sender,
        "ratio_cpu_receiver": cpu_receiver,
    }
}

named_ratios! {
    /// KCM / the kernel's KCM.
    ToKernel {
        "ratio_kernel": rate,
        "ratio_kernel_latency_mean": latency_mean,
        "ratio_kernel_latency_stddev": latency_stddev,
        "ratio_kernel_latency_p99": latency_p99,
        "ratio_kernel_cpu": cpu,
        "ratio_kernel_cpu_sender": cpu_sender,
        "ratio_kernel_cpu_receiver": cpu_receiver,
    }
}

named_ratios! {
    /// KCM / the simulated ideal.
    ToIdeal {
        "ratio_ideal": rate,
        "ratio_ideal_latency_mean": latency_mean,
        "ratio_ideal_latency_stddev": latency_stddev,
        "ratio_ideal_latency_p99": latency_p99,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser as _;
    use serde_json::Value;

    use super::*;
    use crate::{
        cli::{Cli, Command},
        perf::stats::{CpuTime, Histogram, Sample},
    };

    #[test]
    fn the_promised_keys_are_there() {
        let cli = Cli::try_parse_from(["kcm", "perf", "rr"]).expect("parses");
        let Command::Perf(options) = cli.command else {
            panic!("another command");
        };
        let plan = Plan::new(&options, 2).expect("possible");
        let mut latency = Histogram::new();
        latency.record(Duration::from_micros(10));
        let samples = [Sample {
            messages: 10,
            elapsed: Duration::from_secs(1),
            cpu: Some(CpuTime::default()),
            latency: Some(latency),
        }];
        let figures = Figures::of(&samples);
        let mut row = RowResult::new(
            &plan.rows[0],
            figures,
            figures,
            Ratios::new(&samples, &samples),
        );
        row.to_ideal = Some(ToIdeal(Ratios::new(&samples, &samples)));
        let machine = Machine::this_one();
        let rows = [row];
        let json = serde_json::to_value(Document::new(&machine, &plan, &rows)).expect("is JSON");
        let row = &json["rows"][0];
        assert!(json["machine"]["cpus"].is_u64());
        assert_eq!(row["scenario"], "rr");
        assert_eq!(row["size_bytes"], 1);
        assert_eq!(row["sockets"], 1);
        assert_eq!(
            (&row["batch"], &row["spin"]),
            (&Value::Bool(false), &Value::Bool(false))
        );
        for contender in ["tcp", "kcm"] {
            let figures = &row[contender];
            assert_eq!(figures["rate_per_s"], 10.0);
            assert!(figures["cpu_ns_per_message"]["sender"].is_number());
            assert!(figures["cpu_ns_per_message"]["receiver"].is_number());
            for key in ["mean", "stddev", "p50", "p99"] {
                assert!(figures["latency_us"][key].is_number(), "{key}");
            }
        }
        for ratio in ["ratio", "ratio_latency_mean", "ratio_ideal"] {
            for key in ["min", "median", "max"] {
                assert_eq!(row[ratio][key], 1.0, "{ratio} {key}");
            }
        }
        assert!(row.get("ratio_kernel").is_none() && row.get("kernel").is_none());
    }
}
