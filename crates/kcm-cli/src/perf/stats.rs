//! From samples to figures: rates, latencies, ratios.

use std::time::Duration;

use serde::Serialize;

/// What one contender did in one round.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) messages: u64,
    pub(super) elapsed: Duration,
    /// None: no processor was used (a simulation).
    pub(super) cpu: Option<CpuTime>,
    /// None: there is no reply to wait for.
    pub(super) latency: Option<Histogram>,
}

/// Processor time of both sides.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct CpuTime {
    pub(super) sender: Duration,
    pub(super) receiver: Duration,
}

impl Sample {
    pub(super) fn rate_per_s(&self) -> f64 {
        count(self.messages) / self.elapsed.as_secs_f64()
    }

    /// Processor time of both sides for each message.
    fn cpu_ns_per_message(&self) -> Option<CpuPerMessage> {
        let per_message = |time: Duration| time.as_secs_f64() * 1e9 / count(self.messages);
        self.cpu.map(|cpu| CpuPerMessage {
            sender: per_message(cpu.sender),
            receiver: per_message(cpu.receiver),
        })
    }
}

/// The times between requests and their replies; three significant digits.
#[derive(Clone, Debug)]
pub(super) struct Histogram(hdrhistogram::Histogram<u64>);

impl Histogram {
    /// Longest time told apart from longer ones: a minute, in ns.
    const LONGEST_NS: u64 = 60_000_000_000;

    pub(super) fn new() -> Self {
        Self(
            hdrhistogram::Histogram::new_with_bounds(1, Self::LONGEST_NS, 3)
                .expect("constant bounds that hdrhistogram takes"),
        )
    }

    #[inline]
    pub(super) fn record(&mut self, time: Duration) {
        self.record_many(time, 1);
    }

    /// Records the same time for several messages.
    #[inline]
    pub(super) fn record_many(&mut self, time: Duration, messages: u64) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.0.saturating_record_n(ns.max(1), messages);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.0
            .add(&other.0)
            .expect("histograms of one kind can be added");
    }

    pub(super) fn mean_us(&self) -> f64 {
        self.0.mean() / 1e3
    }

    pub(super) fn stddev_us(&self) -> f64 {
        self.0.stdev() / 1e3
    }

    fn quantile_us(&self, quantile: f64) -> f64 {
        count(self.0.value_at_quantile(quantile)) / 1e3
    }
}

/// What one contender did in all rounds: medians over the rounds, but latencies over all messages.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Figures {
    pub(super) rate_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu_ns_per_message: Option<CpuPerMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) latency_us: Option<Latency>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CpuPerMessage {
    pub(super) sender: f64,
    pub(super) receiver: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Latency {
    pub(super) mean: f64,
    pub(super) stddev: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
}

impl Figures {
    pub(super) fn of(samples: &[Sample]) -> Self {
        let cpu = |side: fn(CpuPerMessage) -> f64| {
            median_of(
                samples
                    .iter()
                    .filter_map(|s| s.cpu_ns_per_message().map(side)),
            )
        };
        let cpu_ns_per_message = cpu(|c| c.sender)
            .zip(cpu(|c| c.receiver))
            .map(|(sender, receiver)| CpuPerMessage { sender, receiver });
        let latency = samples
            .iter()
            .filter_map(|s| s.latency.clone())
            .reduce(|mut all, one| {
                all.merge(&one);
                all
            });
        Self {
            rate_per_s: median_of(samples.iter().map(Sample::rate_per_s)).unwrap_or(f64::NAN),
            cpu_ns_per_message,
            latency_us: latency.map(|histogram| Latency {
                mean: histogram.mean_us(),
                stddev: histogram.stddev_us(),
                p50: histogram.quantile_us(0.5),
                p99: histogram.quantile_us(0.99),
            }),
        }
    }
}

/// A ratio as it came out in the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    pub(super) min: f64,
    pub(super) median: f64,
    pub(super) max: f64,
}

impl Ratio {
    fn of(rounds: impl Iterator<Item = f64>) -> Option<Self> {
        let mut rounds: Vec<f64> = rounds.filter(|ratio| ratio.is_finite()).collect();
        rounds.sort_by(f64::total_cmp);
        Some(Self {
            min: *rounds.first()?,
            median: median(&rounds)?,
            max: *rounds.last()?,
        })
    }
}

/// One contender's figures divided by another's, round by round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratios {
    pub(super) rate: Option<Ratio>,
    pub(super) latency_mean: Option<Ratio>,
    pub(super) latency_stddev: Option<Ratio>,
    pub(super) latency_p99: Option<Ratio>,
    pub(super) cpu: Option<Ratio>,
    pub(super) cpu_sender: Option<Ratio>,
    pub(super) cpu_receiver: Option<Ratio>,
}

impl Ratios {
    /// `of` / `to`; both have one sample for each round.
    pub(super) fn new(of: &[Sample], to: &[Sample]) -> Self {
        let ratio = |figure: &dyn Fn(&Sample) -> Option<f64>| {
            let pairs = of.iter().zip(to);
            Ratio::of(pairs.filter_map(|(of, to)| Some(figure(of)? / figure(to)?)))
        };
        let latency =
            |figure: fn(&Histogram) -> f64| ratio(&|sample| sample.latency.as_ref().map(figure));
        let cpu = |figure: fn(CpuPerMessage) -> f64| {
            ratio(&|sample| sample.cpu_ns_per_message().map(figure))
        };
        Self {
            rate: ratio(&|sample| Some(sample.rate_per_s())),
            latency_mean: latency(Histogram::mean_us),
            latency_stddev: latency(Histogram::stddev_us),
            latency_p99: latency(|histogram| histogram.quantile_us(0.99)),
            cpu: cpu(|c| c.sender + c.receiver),
            cpu_sender: cpu(|c| c.sender),
            cpu_receiver: cpu(|c| c.receiver),
        }
    }
}

pub(super) fn median_of(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    median(&values)
}

/// Of sorted values.
fn median(sorted: &[f64]) -> Option<f64> {
    let upper = *sorted.get(sorted.len() / 2)?;
    Some(if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[sorted.len() / 2 - 1], upper)
    } else {
        upper
    })
}

/// Counts here stay far below 2^53.
fn count(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(messages: u64, latency_us: &[u64]) -> Sample {
        let mut latency = Histogram::new();
        for &us in latency_us {
            latency.record(Duration::from_micros(us));
        }
        Sample {
            messages,
            elapsed: Duration::from_secs(2),
            cpu: Some(CpuTime {
                sender: Duration::from_micros(messages),
                receiver: Duration::from_micros(3 * messages),
            }),
            latency: Some(latency),
        }
    }

    fn close(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 2e-3
    }

    #[test]
    fn medians() {
        assert_eq!(median_of([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median_of([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median_of(std::iter::empty()), None);
    }

    #[test]
    fn figures_are_medians_of_rounds_and_latencies_of_all_messages() {
        let rounds = [
            sample(100, &[10]),
            sample(400, &[20, 30]),
            sample(200, &[40]),
        ];
        let figures = Figures::of(&rounds);
        assert_eq!(figures.rate_per_s, 100.0);
        let cpu = figures.cpu_ns_per_message.expect("measured");
        assert!(close(cpu.sender, 1000.0) && close(cpu.receiver, 3000.0));
        let latency = figures.latency_us.expect("measured");
        assert!(close(latency.mean, 25.0), "{latency:?}");
        assert!(close(latency.stddev, 125_f64.sqrt()), "{latency:?}");
        assert!(
            close(latency.p50, 20.0) && close(latency.p99, 40.0),
            "{latency:?}"
        );
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        let of = [sample(100, &[10]), sample(300, &[10]), sample(200, &[10])];
        let to = [sample(100, &[20]), sample(100, &[5]), sample(50, &[10])];
        let ratios = Ratios::new(&of, &to);
        let rate = ratios.rate.expect("there");
        assert_eq!((rate.min, rate.median, rate.max), (1.0, 3.0, 4.0));
        let mean = ratios.latency_mean.expect("there");
        assert!(close(mean.min, 0.5) && close(mean.median, 1.0) && close(mean.max, 2.0));
        assert!(close(ratios.cpu.expect("there").median, 1.0));
    }

    #[test]
    fn what_was_not_measured_has_no_ratio() {
        let one_way = Sample {
            latency: None,
            ..sample(1, &[])
        };
        let ratios = Ratios::new(std::slice::from_ref(&one_way), &[sample(1, &[1])]);
        assert!(ratios.latency_mean.is_none() && ratios.rate.is_some());
    }
}
