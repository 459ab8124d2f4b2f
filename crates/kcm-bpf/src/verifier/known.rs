//! Which bits of a number are known.
//!
//! The domain of tristate numbers: each bit is 0, 1 or unknown. Alignment, masks and packet bytes
//! that were put together by shifts and ors are exact in it, where an interval knows little. The
//! sums are those of Vishwanathan et al., "Sound, Precise, and Fast Abstract Interpretation with
//! Tristate Numbers" (2022).

/// A set of numbers: bits of `mask` are unknown, the others are as in `value`, which is 0 where
/// `mask` is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) value: u64,
    pub(crate) mask: u64,
}

impl Known {
    pub(crate) const NOTHING: Self = Self {
        value: 0,
        mask: u64::MAX,
    };

    pub(crate) const fn constant(value: u64) -> Self {
        Self { value, mask: 0 }
    }

    /// All that the numbers from `least` to `greatest` have in common: their leading bits.
    pub(crate) const fn common(least: u64, greatest: u64) -> Self {
        let mask = match (least ^ greatest).leading_zeros() {
            64 => 0,
            same => u64::MAX >> same,
        };
        Self {
            value: least & !mask,
            mask,
        }
    }

    /// What is known when both hold; nothing if they contradict each other.
    pub(crate) const fn meet(self, other: Self) -> Option<Self> {
        if (self.value ^ other.value) & !self.mask & !other.mask != 0 {
            return None;
        }
        let mask = self.mask & other.mask;
        Some(Self {
            value: (self.value | other.value) & !mask,
            mask,
        })
    }

    /// Whether every number of `other` is one of this.
    pub(crate) const fn covers(self, other: Self) -> bool {
        other.mask & !self.mask == 0 && other.value & !self.mask == self.value
    }

    /// The greatest of the numbers, without sign.
    pub(crate) const fn greatest(self) -> u64 {
        self.value | self.mask
    }

    pub(crate) const fn add(self, other: Self) -> Self {
        let value = self.value.wrapping_add(other.value);
        let most = value.wrapping_add(self.mask).wrapping_add(other.mask);
        // Where the sums of the least and of the greatest differ, a carry may have come along.
        Self::without(value, (most ^ value) | self.mask | other.mask)
    }

    pub(crate) const fn sub(self, other: Self) -> Self {
        let value = self.value.wrapping_sub(other.value);
        let most = value.wrapping_add(self.mask);
        let least = value.wrapping_sub(other.mask);
        Self::without(value, (most ^ least) | self.mask | other.mask)
    }

    /// Only the zeros at the low end are kept.
    pub(crate) const fn mul(self, other: Self) -> Self {
        let zeros = self.greatest().trailing_zeros() + other.greatest().trailing_zeros();
        match u64::MAX.checked_shl(zeros) {
            Some(mask) => Self { value: 0, mask },
            None => Self::constant(0),
        }
    }

    pub(crate) const fn and(self, other: Self) -> Self {
        let value = self.value & other.value;
        Self {
            value,
            mask: self.greatest() & other.greatest() & !value,
        }
    }

    pub(crate) const fn or(self, other: Self) -> Self {
        let value = self.value | other.value;
        Self {
            value,
            mask: (self.mask | other.mask) & !value,
        }
    }

    pub(crate) const fn xor(self, other: Self) -> Self {
        Self::without(self.value ^ other.value, self.mask | other.mask)
    }

    /// Shifts by less than 64.
    pub(crate) const fn shl(self, by: u32) -> Self {
        Self {
            value: self.value << by,
            mask: self.mask << by,
        }
    }

    pub(crate) const fn shr(self, by: u32) -> Self {
        Self {
            value: self.value >> by,
            mask: self.mask >> by,
        }
    }

    /// The highest bit comes along, known or not.
    pub(crate) const fn sar(self, by: u32) -> Self {
        Self {
            value: (self.value.cast_signed() >> by).cast_unsigned(),
            mask: (self.mask.cast_signed() >> by).cast_unsigned(),
        }
    }

    /// The bits of `unknown` are unknown, the others as in `value`.
    const fn without(value: u64, unknown: u64) -> Self {
        Self {
            value: value & !unknown,
            mask: unknown,
        }
    }
}
