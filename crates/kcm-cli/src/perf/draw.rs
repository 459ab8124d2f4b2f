//! The seeded draws of `work`: how long each request takes, and how long each client pauses.
//!
//! Both are pure functions of the seed and the request's number, so that all contenders and the
//! simulated ideal get the same ones, in whatever order the requests come.
//!
//! A service takes 500 us on average over *all* requests: one in twenty takes twenty times as
//! long as the others, hence 256 us and 5,128 us; 20 us of either are computing, the rest is
//! waiting, in a sleep that is shorter by what sleeps end late here (`lateness.rs`). For this reading
//! one queue before four workers reaches, against connections dealt round robin, 1.76 times the rate,
//! 0.58 of the mean latency and 0.33 of its deviation (were the others 500 us and the mean 975 us, it
//! would be 1.62, 0.64 and 0.34).

use std::time::{Duration, Instant};

/// Connections of `work`: requests in flight on each.
pub(super) const IN_FLIGHT: [usize; 6] = [16, 4, 2, 1, 1, 1];
/// A connection with at most this many in flight pauses after each reply.
const PAUSING_IN_FLIGHT: usize = 2;
const MEAN_PAUSE: Duration = Duration::from_millis(5);

const MEAN_SERVICE_NS: u64 = 500_000;
const COMPUTING: Duration = Duration::from_micros(20);
/// One request in so many is long ...
const LONG_ONE_IN: u64 = 20;
/// ... namely so many times as long as the others.
const LONG_TIMES: u64 = 20;
const SHORT_NS: u64 = MEAN_SERVICE_NS * LONG_ONE_IN / (LONG_ONE_IN + LONG_TIMES - 1);

/// The draws of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Draw {
    seed: u64,
}

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// The sleep in most services.
    pub(super) fn usual_sleep() -> Duration {
        Duration::from_nanos(SHORT_NS).saturating_sub(COMPUTING)
    }

    /// The number of a connection's n-th request.
    pub(super) fn number(connection: usize, nth: u32) -> u64 {
        (connection as u64) << 32 | u64::from(nth)
    }

    /// The connection of the request with this number.
    pub(super) fn connection(number: u64) -> usize {
        usize::try_from(number >> 32).unwrap_or(usize::MAX)
    }

    /// How long this request takes.
    pub(super) fn service(&self, number: u64) -> ServiceTime {
        let is_long = self.bits(number, 1).is_multiple_of(LONG_ONE_IN);
        let times = if is_long { LONG_TIMES } else { 1 };
        ServiceTime(Duration::from_nanos(SHORT_NS * times))
    }

    /// How long its client pauses after the reply to it.
    pub(super) fn pause(&self, number: u64) -> Duration {
        if IN_FLIGHT
            .get(Self::connection(number))
            .is_none_or(|&in_flight| in_flight > PAUSING_IN_FLIGHT)
        {
            return Duration::ZERO;
        }
        // 32 random bits are in f64 without loss; +1: never the logarithm of 0.
        let [.., a, b, c, d] = self.bits(number, 2).to_be_bytes();
        let uniform = (f64::from(u32::from_be_bytes([a, b, c, d])) + 1.0) / 4_294_967_296.0;
        MEAN_PAUSE.mul_f64(-uniform.ln())
    }

    /// splitmix64 over seed, number and purpose.
    fn bits(&self, number: u64, purpose: u64) -> u64 {
        [self.seed, number, purpose].iter().fold(0, |state, word| {
            let mut z = (state ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15);
            z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        })
    }
}

/// How long a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceTime(Duration);

impl ServiceTime {
    /// Computing and waiting together.
    pub(super) fn total(self) -> Duration {
        self.0
    }

    /// Takes as long, where sleeps end so much too late.
    pub(super) fn spend(self, lateness: Duration) {
        let begin = Instant::now();
        while begin.elapsed() < COMPUTING {
            std::hint::spin_loop();
        }
        std::thread::sleep(self.sleep_after(begin.elapsed(), lateness));
    }

    /// What to sleep for, with so much of it over.
    fn sleep_after(self, elapsed: Duration, lateness: Duration) -> Duration {
        self.0.saturating_sub(elapsed).saturating_sub(lateness)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_what_the_constants_say() {
        let draw = Draw::new(1);
        let numbers = || (0..200_000).map(|nth| Draw::number(3, nth));
        let mean = |total: Duration| total / 200_000;
        let service = mean(numbers().map(|n| draw.service(n).total()).sum());
        let wanted = Duration::from_nanos(MEAN_SERVICE_NS);
        assert!(service.abs_diff(wanted) < wanted / 50, "{service:?}");
        let pause = mean(numbers().map(|n| draw.pause(n)).sum());
        assert!(pause.abs_diff(MEAN_PAUSE) < MEAN_PAUSE / 50, "{pause:?}");
    }

    #[test]
    fn a_service_sleeps_for_what_is_left_less_what_sleeps_take_longer() {
        let us = Duration::from_micros;
        let service = ServiceTime(us(256));
        for (elapsed, lateness, expected) in [
            (20, 0, 236),
            (20, 36, 200),
            (190, 36, 30),
            (240, 36, 0),
            (300, 0, 0),
        ] {
            let sleep = service.sleep_after(us(elapsed), us(lateness));
            assert_eq!(sleep, us(expected), "{elapsed}, {lateness}");
        }
    }

    #[test]
    fn busy_connections_never_pause() {
        let draw = Draw::new(1);
        assert!((0..100).all(|nth| draw.pause(Draw::number(0, nth)).is_zero()));
    }
}
