//! How long a call takes and how long its client pauses after it: drawn at random, but the same for
//! each contender, in whatever order the calls come. Both follow from the round and the number of
//! the call.

use std::{
    thread,
    time::{Duration, Instant},
};

const MEAN_PAUSE: Duration = Duration::from_millis(5);
/// One call in so many is long: 20 times as long as the others. 500 us is the mean of all.
const LONG_ONE_IN: u64 = 20;
const SHORT: Duration = Duration::from_micros(256);
const LONG: Duration = Duration::from_micros(5128);
/// The part of it that is computing. The rest is waiting, as for a disk or another server, so that
/// four workers can work at once on one processor.
const COMPUTING: Duration = Duration::from_micros(20);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Draw {
    seed: u64,
}

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Does the work of this call.
    pub(crate) fn work(self, number: i64) {
        let begin = Instant::now();
        let total = if self.bits(number, 1).is_multiple_of(LONG_ONE_IN) {
            LONG
        } else {
            SHORT
        };
        while begin.elapsed() < COMPUTING {
            std::hint::spin_loop();
        }
        thread::sleep(total.saturating_sub(begin.elapsed()));
    }

    /// How long its client pauses after the reply: exponentially distributed.
    pub(crate) fn pause(self, number: i64) -> Duration {
        let [a, b, c, d, ..] = self.bits(number, 2).to_le_bytes();
        let uniform = (f64::from(u32::from_le_bytes([a, b, c, d])) + 0.5) / 2_f64.powi(32);
        MEAN_PAUSE.mul_f64(-uniform.ln())
    }

    /// Random bits by xorshift and multiplication (Steele's and Vigna's constants).
    fn bits(self, number: i64, purpose: u64) -> u64 {
        let mut bits = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose << 56;
        bits ^= number.cast_unsigned();
        for multiplier in [0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
            bits = (bits ^ bits >> 30).wrapping_mul(multiplier);
        }
        bits ^ bits >> 31
    }
}
