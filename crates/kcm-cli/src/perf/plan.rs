//! From the command line to the rows that will be measured, and for how long.

use std::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use clap::ValueEnum as _;
use kcm::Framing;

use super::{
    connections::Place,
    draw,
    failure::Failure,
    header,
    run::Timing,
    verify::{NUMBER_BYTES, Template},
};
use crate::cli::{PerfOptions, ScenarioName};

const ROUNDS: u32 = 15;
const DURATION: Duration = Duration::from_millis(500);
/// `work` does two to four thousand requests a second and lives on its rare long ones.
const WORK_TIMES_LONGER: u32 = 4;

const QUICK_ROUNDS: u32 = 3;
/// Of the 30 s that `--quick` has, what measurements and warm-ups may take.
const QUICK_BUDGET: Duration = Duration::from_secs(24);
/// The same with all that is between them. Should that turn out to take longer than the rest, on a
/// machine that does other work too, the rows to come are measured for less long.
const QUICK_WHOLE: Duration = Duration::from_secs(28);
const QUICK_SHORTEST: Duration = Duration::from_millis(5);
const QUICK_LONGEST: Duration = Duration::from_millis(500);

/// One line of the result.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) scenario: ScenarioName,
    /// As `--size` counts it.
    pub(super) size_bytes: usize,
    pub(super) connections: usize,
    /// Receiving sockets.
    pub(super) sockets: usize,
    pub(super) batch: bool,
    pub(super) spin: bool,
    pub(super) framing: Framing,
    /// By which its messages are made, and cut by raw TCP: a native one, often the same.
    pub(super) header: Framing,
    pub(super) timing: Timing,
    /// Where its servers are.
    pub(super) place: Place,
}

impl Row {
    /// For progress and errors.
    pub(super) fn label(&self) -> String {
        let Self {
            size_bytes,
            sockets,
            ..
        } = self;
        let name = name_of(self.scenario);
        let plural = if *sockets == 1 { "" } else { "s" };
        let mode = self.mode();
        format!("{name} {size_bytes} B {sockets} socket{plural} {mode}")
            .trim_end()
            .to_owned()
    }

    /// How the sockets are used, in a word; empty: plainly.
    pub(super) fn mode(&self) -> &'static str {
        match (self.batch, self.spin) {
            (true, _) => "batch",
            (_, true) => "spin",
            _ => "",
        }
    }
}

/// What `kcm perf` will do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) rows: Vec<Row>,
    pub(super) rounds: u32,
    contenders: u32,
    quick: bool,
}

impl Plan {
    /// Checks that everything asked for can be.
    pub(super) fn new(options: &PerfOptions, contenders: u32) -> Result<Self, Failure> {
        let mut rows = Vec::new();
        for scenario in ScenarioName::value_variants() {
            if options.scenarios.is_empty() || options.scenarios.contains(scenario) {
                rows.extend(rows_of(*scenario, options)?);
            }
        }
        let rounds = match (options.rounds, options.quick) {
            (Some(rounds), _) => rounds,
            (None, true) => QUICK_ROUNDS,
            (None, false) => ROUNDS,
        };
        let weight = |row: &Row| match row.scenario {
            ScenarioName::Work => WORK_TIMES_LONGER,
            _ => 1,
        };
        let unit = if options.quick {
            let parts: u32 = rows.iter().map(weight).sum();
            // A fifth of each part is the warm-up on top of it.
            (QUICK_BUDGET / (parts * rounds * contenders) * 5 / 6).min(QUICK_LONGEST)
        } else {
            DURATION
        };
        for row in &mut rows {
            let duration = match options.duration {
                Some(duration) => duration,
                None => unit * weight(row),
            };
            row.timing = Timing::with_duration(duration);
        }
        Ok(Self {
            rows,
            rounds,
            contenders,
            quick: options.quick,
        })
    }

    /// What measuring all of it takes, but for what is between the measurements.
    pub(super) fn time(&self) -> Duration {
        self.time_of(&self.rows)
    }

    fn time_of(&self, rows: &[Row]) -> Duration {
        let each = rows.iter().map(|row| row.timing.whole());
        each.sum::<Duration>() * self.rounds * self.contenders
    }

    /// With `--quick`: has the rows from this one on take less time, if they would take too much at
    /// the pace so far.
    pub(super) fn keep_to_time(&mut self, next: usize, elapsed: Duration) {
        let (done, rest) = self.rows.split_at(next);
        let (done, rest) = (self.time_of(done), self.time_of(rest));
        if !self.quick || done.is_zero() || rest.is_zero() {
            return;
        }
        let slowness = elapsed.div_duration_f64(done).max(1.0);
        let left = QUICK_WHOLE.saturating_sub(elapsed);
        let share = left.div_duration_f64(rest.mul_f64(slowness));
        if share < 1.0 {
            for row in &mut self.rows[next..] {
                let shorter = row.timing.duration.mul_f64(share);
                row.timing = Timing::with_duration(shorter.max(QUICK_SHORTEST));
            }
        }
    }
}

/// As on the command line and in JSON.
pub(super) fn name_of(scenario: ScenarioName) -> &'static str {
    match scenario {
        ScenarioName::Rr => "rr",
        ScenarioName::RrMany => "rr-many",
        ScenarioName::Drop => "drop",
        ScenarioName::Work => "work",
        ScenarioName::Pipeline => "pipeline",
        ScenarioName::PipelineRr => "pipeline-rr",
    }
}

fn rows_of(scenario: ScenarioName, options: &PerfOptions) -> Result<Vec<Row>, Failure> {
    let u32_be: Framing = "u32be+4"
        .parse()
        .map_err(|e| Failure::Usage(format!("u32be+4: {e}")))?;
    let size = options.size.map(|size| size as usize);
    let sizes = |default: &[usize]| size.map_or_else(|| default.to_vec(), |size| vec![size]);
    let workers = options.workers.map(usize::from);
    let sockets = |default: &[usize]| workers.map_or_else(|| default.to_vec(), |n| vec![n]);
    let connections = |default| options.connections.map_or(default, usize::from);
    let plain = Row {
        scenario,
        size_bytes: 0,
        connections: 1,
        sockets: 1,
        batch: false,
        spin: false,
        framing: u32_be.clone(),
        header: u32_be,
        timing: Timing::with_duration(DURATION),
        place: Place {
            address: options.address.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            netns: options.netns.clone(),
        },
    };
    let mut rows = Vec::new();
    match scenario {
        ScenarioName::Rr => {
            for size_bytes in sizes(&[1, 100]) {
                let lone = Row {
                    size_bytes,
                    ..plain.clone()
                };
                let spin = Row {
                    spin: true,
                    ..lone.clone()
                };
                let waiting = Row {
                    sockets: workers.unwrap_or(3),
                    ..lone.clone()
                };
                rows.extend([lone, spin]);
                if waiting.sockets > 1 {
                    rows.push(waiting);
                }
            }
        }
        ScenarioName::RrMany => {
            for size_bytes in sizes(&[1, 100]) {
                for sockets in sockets(&[1, 2]) {
                    let connections = connections(200);
                    rows.push(Row {
                        size_bytes,
                        sockets,
                        connections,
                        ..plain.clone()
                    });
                }
            }
        }
        ScenarioName::Drop => rows.push(Row {
            size_bytes: size.unwrap_or(5000),
            sockets: workers.unwrap_or(1),
            connections: connections(16),
            ..plain
        }),
        ScenarioName::Work => rows.push(Row {
            // Small, but with room for the number that the draw goes by.
            size_bytes: size.unwrap_or(60).max(NUMBER_BYTES),
            sockets: workers.unwrap_or(4),
            connections: draw::IN_FLIGHT.len(),
            ..plain
        }),
        ScenarioName::Pipeline => {
            let size_bytes = size.unwrap_or(64);
            let header = header::find(&options.framing, options.header.as_ref(), size_bytes)?;
            check_length(scenario, &header.into(), size_bytes)?;
            for sockets in sockets(&[1, 2, 4]) {
                for batch in [false, true] {
                    let framing = options.framing.framing.clone();
                    rows.push(Row {
                        header: header.into(),
                        size_bytes,
                        sockets,
                        batch,
                        framing,
                        ..plain.clone()
                    });
                }
            }
        }
        ScenarioName::PipelineRr => {
            let size_bytes = size.unwrap_or(64);
            check_length(scenario, &plain.framing, size_bytes)?;
            for batch in [false, true] {
                rows.push(Row {
                    size_bytes,
                    batch,
                    ..plain.clone()
                });
            }
        }
    }
    Ok(rows)
}

/// Fails if there is no such message; it is better to hear that before than after an hour.
fn check_length(
    scenario: ScenarioName,
    framing: &Framing,
    message_bytes: usize,
) -> Result<(), Failure> {
    match Template::with_length(framing, message_bytes) {
        Ok(_) => Ok(()),
        Err(Failure::Usage(why)) => Err(Failure::Usage(format!("{}: {why}", name_of(scenario)))),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn plan(arguments: &[&str]) -> Result<Plan, Failure> {
        let all = ["kcm", "perf"].iter().chain(arguments);
        let Command::Perf(options) = Cli::try_parse_from(all).expect("parses").command else {
            panic!("another command");
        };
        Plan::new(&options, 2)
    }

    #[test]
    fn everything_by_default() {
        let plan = plan(&[]).expect("possible");
        assert_eq!((plan.rows.len(), plan.rounds), (20, 15));
        for row in &plan.rows {
            let work = row.scenario == ScenarioName::Work;
            let expected = if work { DURATION * 4 } else { DURATION };
            assert_eq!(row.timing.duration, expected);
        }
    }

    #[test]
    fn quick_is_quick_whatever_is_asked_for() {
        for arguments in [&["--quick"][..], &["--quick", "rr"], &["--quick", "work"]] {
            let plan = plan(arguments).expect("possible");
            let times = plan.rows.iter().map(|r| r.timing);
            let round: Duration = times.map(Timing::whole).sum();
            assert!(round * plan.rounds * 2 <= QUICK_BUDGET, "{arguments:?}");
        }
    }

    /// Each row takes so many times as long as planned.
    fn whole_time(mut plan: Plan, slowness: f64) -> Duration {
        let mut elapsed = Duration::ZERO;
        for next in 0..plan.rows.len() {
            plan.keep_to_time(next, elapsed);
            elapsed += plan.time_of(&plan.rows[next..=next]).mul_f64(slowness);
        }
        elapsed
    }

    #[test]
    fn quick_is_quick_on_a_slow_machine_too() {
        let quick = || plan(&["--quick"]).expect("possible");
        let usual = whole_time(quick(), 1.1);
        assert!(usual >= quick().time(), "nothing is cut short: {usual:?}");
        for slowness in [1.3, 2.0, 4.0] {
            let whole = whole_time(quick(), slowness);
            assert!(whole <= Duration::from_secs(30), "{slowness}: {whole:?}");
        }
        // Who asks for a time gets it.
        let long = plan(&["--duration", "1"]).expect("possible");
        let planned = long.time();
        assert!(whole_time(long, 2.0) >= planned * 2);
    }

    #[test]
    fn impossible_messages_are_usage_errors() {
        for arguments in [
            &["pipeline", "--size", "11"][..],
            &["pipeline", "--framing", "fixed:65"],
            &["pipeline-rr", "--size", "5"],
        ] {
            assert!(
                matches!(plan(arguments), Err(Failure::Usage(_))),
                "{arguments:?}"
            );
        }
        assert!(plan(&["pipeline", "--framing", "fixed:65", "--size", "65"]).is_ok());
    }
}
