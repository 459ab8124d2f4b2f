//! Comparisons as the one form that a decision takes: is a number inside of an interval?
//!
//! All comparisons with a constant are that, if the interval may go round: `x s> -2` is an interval
//! of 2⁶³ + 1 numbers from -1 on. Two numbers are compared by their difference. What can be
//! said in several ways is said in one, so that equal decisions are found to be equal.

use crate::alu::{Alu, Cmp};
use crate::recognise::number::{Bit, LOW, Number};
use crate::recognise::seen::Seen;

/// Whether `number - low` is not above `span`, as numbers of 64 bits, or of 32 with `half`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) number: Number,
    pub(super) low: u64,
    pub(super) span: u64,
    pub(super) half: bool,
}

impl Condition {
    /// Whether it holds, if the number is this.
    pub(super) const fn is_inside(&self, number: u64) -> bool {
        let keep = if self.half { LOW } else { u64::MAX };
        number.wrapping_sub(self.low) & keep <= self.span
    }

    /// The same with what is known of the message.
    pub(super) fn simplified(mut self, seen: &Seen) -> Self {
        self.number = seen.simplified(self.number);
        self
    }
}

/// What a comparison comes down to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Known(bool),
    /// It holds where the condition does, or, if this is true, where it does not.
    Unknown(Condition, bool),
}

/// Nothing, if it is none that a decision can make.
pub(super) fn compare(cmp: Cmp, wide: bool, a: Number, b: Number) -> Option<Comparison> {
    if let (Some(a), Some(b)) = (a.as_constant(), b.as_constant()) {
        return Some(Comparison::Known(cmp.holds(wide, a, b)));
    }
    if let Cmp::Set | Cmp::Clear = cmp {
        let both = a.alu(Alu::And, wide, b)?;
        let opposite = if cmp == Cmp::Set { Cmp::Ne } else { Cmp::Eq };
        return compare(opposite, true, both, Number::constant(0));
    }
    let cut = |number: Number| {
        if wide {
            number.exact()
        } else {
            Some(number.cut(false))
        }
    };
    let (a, b) = (cut(a)?, cut(b)?);
    match (a.as_constant(), b.as_constant()) {
        (_, Some(constant)) => with_constant(cmp, wide, a, constant),
        (Some(constant), None) => with_constant(mirrored(cmp), wide, b, constant),
        (None, None) => difference(cmp, wide, a, b),
    }
}

/// The comparison that holds with its sides exchanged.
const fn mirrored(cmp: Cmp) -> Cmp {
    match cmp {
        Cmp::Gt => Cmp::Lt,
        Cmp::Ge => Cmp::Le,
        Cmp::Lt => Cmp::Gt,
        Cmp::Le => Cmp::Ge,
        Cmp::SGt => Cmp::SLt,
        Cmp::SGe => Cmp::SLe,
        Cmp::SLt => Cmp::SGt,
        Cmp::SLe => Cmp::SGe,
        same => same,
    }
}

/// The comparison of numbers that are the same with and without sign.
const fn unsigned(cmp: Cmp) -> Cmp {
    match cmp {
        Cmp::SGt => Cmp::Gt,
        Cmp::SGe => Cmp::Ge,
        Cmp::SLt => Cmp::Lt,
        Cmp::SLe => Cmp::Le,
        same => same,
    }
}

fn with_constant(cmp: Cmp, wide: bool, a: Number, constant: u64) -> Option<Comparison> {
    let (all, sign) = if wide {
        (u64::MAX, 1 << 63)
    } else {
        (LOW, 1 << 31)
    };
    let (most, c) = (a.most(), constant & all);
    let has_sign = |value: u64| value & sign != 0;
    let mut cmp = cmp;
    if unsigned(cmp) != cmp && most < sign {
        if has_sign(c) {
            return Some(Comparison::Known(matches!(cmp, Cmp::SGt | Cmp::SGe)));
        }
        cmp = unsigned(cmp);
    }
    // Below zero: the highest bit says it.
    let below_zero = match cmp {
        Cmp::SLt if c == 0 => Some(Cmp::Ne),
        Cmp::SGe if c == 0 => Some(Cmp::Eq),
        Cmp::SLe if c == all => Some(Cmp::Ne),
        Cmp::SGt if c == all => Some(Cmp::Eq),
        _ => None,
    };
    if let (Some(cmp), Some(bits)) = (below_zero, a.as_bits()) {
        let mut highest = [Bit::Zero; 64];
        highest[0] = bits[if wide { 63 } else { 31 }];
        return compare(cmp, true, Number::of_bits(highest), Number::constant(0));
    }
    // From where, up to where, and whether all others are meant.
    let (from, to, outside) = match cmp {
        Cmp::Eq => (c, c, false),
        Cmp::Ne => (c, c, true),
        Cmp::Le => (0, c, false),
        Cmp::Gt => (0, c, true),
        Cmp::Lt | Cmp::Ge if c == 0 => return Some(Comparison::Known(cmp == Cmp::Ge)),
        Cmp::Lt => (0, c - 1, false),
        Cmp::Ge => (0, c - 1, true),
        Cmp::SLe => (sign, c, false),
        Cmp::SGt => (sign, c, true),
        Cmp::SLt | Cmp::SGe if c == sign => return Some(Comparison::Known(cmp == Cmp::SGe)),
        Cmp::SLt => (sign, c.wrapping_sub(1) & all, false),
        Cmp::SGe => (sign, c.wrapping_sub(1) & all, true),
        Cmp::Set | Cmp::Clear => return None,
    };
    if from == 0 && most <= to {
        return Some(Comparison::Known(!outside));
    }
    if from <= to && most < from {
        return Some(Comparison::Known(outside));
    }
    let (mut number, mut low, mut span) = (a, from, to.wrapping_sub(from) & all);
    let mut half = !wide;
    // Below a power of two: some bits are all 0.
    if low == 0
        && (span + 1).is_power_of_two()
        && let Some(bits) = number.as_bits()
        && !bits.contains(&Bit::One)
    {
        let above = (span + 1).trailing_zeros() as usize;
        let first = (above..64).find(|&i| bits[i] != Bit::Zero)?;
        number = Number::of_bits(std::array::from_fn(|i| {
            bits.get(first + i).copied().unwrap_or(Bit::Zero)
        }));
        (span, half) = (0, false);
    }
    // The constant is part of what is subtracted.
    low = low.wrapping_sub(number.bias) & all;
    number.bias = 0;
    Some(Comparison::Unknown(
        Condition {
            number,
            low,
            span,
            half,
        },
        outside,
    ))
}

/// Two numbers without a sign differ by less than 2⁶³, so that the sign of the difference is right.
fn difference(cmp: Cmp, wide: bool, a: Number, b: Number) -> Option<Comparison> {
    // Without a sign, 32 bits are as good as 64 of which the upper half is 0.
    let is_signed = unsigned(cmp) != cmp;
    let bound = if is_signed && !wide { 1 << 31 } else { 1 << 63 };
    if a.most() >= bound || b.most() >= bound || a.half || b.half {
        return None;
    }
    let (plus, minus, low, span, outside) = match unsigned(cmp) {
        Cmp::Eq => (a, b, 0, 0, false),
        Cmp::Ne => (a, b, 0, 0, true),
        Cmp::Lt => (a, b, 1 << 63, (1 << 63) - 1, false),
        Cmp::Ge => (a, b, 1 << 63, (1 << 63) - 1, true),
        Cmp::Gt => (b, a, 1 << 63, (1 << 63) - 1, false),
        Cmp::Le => (b, a, 1 << 63, (1 << 63) - 1, true),
        _ => return None,
    };
    let half = false;
    let condition = Condition {
        number: plus.minus(minus)?,
        low,
        span,
        half,
    };
    Some(Comparison::Unknown(condition, outside))
}
