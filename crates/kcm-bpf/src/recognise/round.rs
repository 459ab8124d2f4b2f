//! Arithmetic with constants, as a few operations that are always the same.
//!
//! A product and a constant, some bits of that, moved down: rounding up to whole words, a unit, parts of a
//! byte, a complement are all one [`Round`], and several of them often still are. So no operation has to
//! be told from another when it runs, but whether there is a product or a shift at all. Division has this
//! form too: it is a product with the divisor's inverse, of which the upper part counts.

/// One of them, which more can be done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Round(kcm_frame::Round);

impl Round {
    /// It leaves a value as it is.
    pub(super) const NOTHING: Self = Self(kcm_frame::Round::NOTHING);

    pub(super) const fn new(times: u64, plus: u64) -> Self {
        Self(kcm_frame::Round {
            times,
            plus,
            ..kcm_frame::Round::NOTHING
        })
    }

    #[inline(always)]
    pub(super) const fn of(self, value: u64) -> u64 {
        self.0.of(value)
    }

    /// The same, as a quick form has it.
    pub(super) const fn formula(self) -> kcm_frame::Round {
        self.0
    }

    /// What no value is above, if none was above `most` before.
    pub(super) fn most_after(self, most: u64) -> u64 {
        let product = most.checked_mul(self.0.times);
        let sum = product.and_then(|product| product.checked_add(self.0.plus));
        sum.unwrap_or(u64::MAX).min(self.0.keep) >> self.0.shift
    }

    /// Whether a product and a sum can still be done in it.
    pub(super) const fn is_open(&self) -> bool {
        self.0.keep == u64::MAX && self.0.shift == 0
    }

    /// The same, and then this. It must be open.
    pub(super) fn times_plus(&mut self, times: u64, plus: u64) {
        self.0.times = self.0.times.wrapping_mul(times);
        self.0.plus = self.0.plus.wrapping_mul(times).wrapping_add(plus);
    }

    /// The same of what is larger by this.
    pub(super) fn add_before(&mut self, more: u64) {
        self.0.plus = self.0.plus.wrapping_add(more.wrapping_mul(self.0.times));
    }

    /// The same, and then these bits of it.
    pub(super) fn keep(&mut self, keep: u64) {
        self.0.keep &= keep << self.0.shift;
    }

    /// The same, and then moved down.
    pub(super) fn shift(&mut self, by: u32) {
        match self.0.shift + by {
            shift @ 0..64 => self.0.shift = shift,
            _ => self.0.keep = 0,
        }
    }

    /// Takes out the constant that is added at the end, where only these low bits count.
    pub(super) fn take_sum(&mut self, bits: u64) -> u64 {
        if self.0.shift != 0 || self.0.keep & bits != bits {
            return 0;
        }
        self.0.keep = u64::MAX;
        std::mem::take(&mut self.0.plus)
    }
}

/// The product, the sum and the shift that divide every number of 32 bits.
///
/// With 2^s a little above the largest power of two that the product has room for, `2^s / by` is no whole
/// number. Rounded up, it gives a quotient that is too large by a fraction of `1 / by`, if what it was
/// rounded by is small; else it is that rounded down, of the number after. One of both is small
/// enough: together, they are the divisor.
pub(super) fn divisor(by: u32) -> Option<(u64, u64, u32)> {
    let log = by.checked_ilog2()?;
    let (by, whole) = (u64::from(by), 1_u64 << 32 << log);
    let (down, left) = (whole / by, whole % by);
    Some(if by - left <= 1 << log {
        (down + 1, 0, 32 + log)
    } else {
        (down, down, 32 + log)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn quotient(value: u32, by: u32) -> u64 {
        let (times, plus, shift) = divisor(by).expect("not 0");
        let mut round = Round::new(times, plus);
        round.shift(shift);
        round.of(value.into())
    }

    /// Every divisor's worst numbers are those around its multiples, and the largest.
    #[test]
    fn divides_at_the_edges() {
        let small = 1..5000;
        let large = (0..32).flat_map(|i| [1 << i, (1 << i) + 1, u32::MAX >> i, u32::MAX - i]);
        for by in small.chain(large) {
            let last = u32::MAX / by * by;
            let multiples = [0, by, last, u32::MAX / 2 / by * by, last.saturating_sub(by)];
            for multiple in multiples {
                for value in [
                    multiple.saturating_sub(1),
                    multiple,
                    multiple.saturating_add(1),
                ] {
                    assert_eq!(quotient(value, by), u64::from(value / by), "{value} / {by}");
                }
            }
            assert_eq!(
                quotient(u32::MAX, by),
                u64::from(u32::MAX / by),
                "all / {by}"
            );
        }
    }

    proptest! {
        #[test]
        fn divides(value: u32, by in 1..=u32::MAX, small in 1..1000_u32) {
            prop_assert_eq!(quotient(value, by), u64::from(value / by));
            prop_assert_eq!(quotient(value, small), u64::from(value / small));
        }

        /// One after the other, or all in one.
        #[test]
        fn several_in_one(
            value: u64,
            (times, plus, keep) in any::<(u64, u64, u64)>(),
            (shift, again) in (0..64_u32, 0..64_u32),
        ) {
            let mut round = Round::new(3, 5);
            round.times_plus(times, plus);
            let expected = value.wrapping_mul(3).wrapping_add(5);
            let expected = expected.wrapping_mul(times).wrapping_add(plus);
            prop_assert_eq!(round.of(value), expected);
            round.shift(shift);
            round.keep(keep);
            let expected = expected >> shift & keep;
            prop_assert_eq!(round.of(value), expected);
            round.shift(again);
            prop_assert_eq!(round.of(value), expected >> again);
            let of_sum = round.of(value.wrapping_add(plus));
            round.add_before(plus);
            prop_assert_eq!(round.of(value), of_sum);
        }
    }
}
