//! Looking a few times before sleeping, as long as that pays.
//!
//! Waking a thread on another processor costs 5 to 10 times what the message itself does; a
//! thread that still looks when the message comes saves it. But it costs processor time, and on one
//! processor it takes it from the very peer that it waits for (a plain pause loop: an eighth of
//! the rate). So each look yields the processor, and a score keeps count: a spin that found
//! something lowers it, one that did not raises it steeply, and above a mark there is only a
//! probe now and then. (Three failures in a row as the criterion were too short a memory.)

use std::time::{Duration, Instant};

/// About twice the time that a wake-up would cost.
const LIMIT: Duration = Duration::from_micros(50);
const SCORE_OFF: u32 = 40;
const SCORE_FAILURE: u32 = 10;
/// One wait in so many is a probe when it has not been paying.
const PROBE: u32 = 256;

#[derive(Default)]
pub(crate) struct Spin {
    score: u32,
    skipped: u32,
}

impl Spin {
    /// Calls `found` until it says so; false when it is time to sleep.
    pub(crate) fn until(&mut self, mut found: impl FnMut() -> bool) -> bool {
        if self.score >= SCORE_OFF {
            self.skipped += 1;
            if self.skipped < PROBE {
                return false;
            }
            self.skipped = 0;
        }
        let start = Instant::now();
        loop {
            if found() {
                self.score = self.score.saturating_sub(1);
                return true;
            }
            rustix::thread::sched_yield();
            if start.elapsed() > LIMIT {
                self.score = (self.score + SCORE_FAILURE).min(SCORE_OFF + SCORE_FAILURE);
                return false;
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stops_when_it_does_not_pay_and_probes_later() {
        let mut spin = Spin::default();
        let mut looked = 0;
        for _ in 0..4 {
            assert!(!spin.until(|| false));
        }
        for _ in 0..PROBE - 1 {
            spin.until(|| {
                looked += 1;
                true
            });
        }
        assert_eq!(looked, 0);
        assert!(spin.until(|| true), "a probe");
    }
}
