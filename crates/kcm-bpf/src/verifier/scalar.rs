//! What is known of a number: its bits, and its least and greatest value in four readings.
//!
//! A 64-bit register is read with and without sign, and as a whole or only its lower half, and
//! compilers mix these freely (`w1 = w0; if w1 s> 9 …; r10 + r1`). So all four intervals are kept
//! beside the bits, and what a comparison teaches about one of them is carried to the others
//! ([`settled`](Scalar::settled)). One interval alone was tried first: it loses the bound as soon
//! as the compiler compares 32 bits and uses 64.
//!
//! Every operation gives a set that has each result in it that numbers of the operands' sets can
//! give; it may have more. Operations on 32 bits are those on 64, of the zero-extended and the
//! sign-extended halves, cut to 32 again: both are true, so both count.

use std::fmt;

use crate::alu::{Alu, Cmp, Swap, low, sign_extend};
use crate::verifier::known::Known;

/// A set of 64-bit numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scalar {
    pub(crate) bits: Known,
    pub(crate) u: Range<u64>,
    pub(crate) s: Range<i64>,
    pub(crate) u32: Range<u32>,
    pub(crate) s32: Range<i32>,
}

/// All numbers from `least` to `greatest`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range<T> {
    pub(crate) least: T,
    pub(crate) greatest: T,
}

impl<T: Copy + Ord> Range<T> {
    pub(crate) const fn new(least: T, greatest: T) -> Self {
        Self { least, greatest }
    }

    fn meet(&mut self, least: T, greatest: T) {
        self.least = self.least.max(least);
        self.greatest = self.greatest.min(greatest);
    }

    fn is_empty(self) -> bool {
        self.least > self.greatest
    }

    fn covers(self, other: Self) -> bool {
        self.least <= other.least && other.greatest <= self.greatest
    }
}

const LOW: u64 = 0xffff_ffff;

impl Scalar {
    pub(crate) const UNKNOWN: Self = Self {
        bits: Known::NOTHING,
        u: Range::new(0, u64::MAX),
        s: Range::new(i64::MIN, i64::MAX),
        u32: Range::new(0, u32::MAX),
        s32: Range::new(i32::MIN, i32::MAX),
    };

    pub(crate) const fn constant(value: u64) -> Self {
        let half = low(value);
        Self {
            bits: Known::constant(value),
            u: Range::new(value, value),
            s: Range::new(value.cast_signed(), value.cast_signed()),
            u32: Range::new(half, half),
            s32: Range::new(half.cast_signed(), half.cast_signed()),
        }
    }

    /// What an instruction's constant means.
    pub(crate) fn immediate(imm: i32) -> Self {
        Self::constant(i64::from(imm).cast_unsigned())
    }

    /// All numbers that fit into so many bytes.
    pub(crate) fn of_bytes(size: u8) -> Self {
        Self::up_to(u64::MAX >> (64 - 8 * u32::from(size)))
    }

    /// All numbers from 0 to `greatest`.
    pub(crate) fn up_to(greatest: u64) -> Self {
        Self {
            u: Range::new(0, greatest),
            ..Self::UNKNOWN
        }
        .consistent()
    }

    /// The number, if there is only one.
    pub(crate) const fn as_constant(&self) -> Option<u64> {
        if self.u.least == self.u.greatest {
            Some(self.u.least)
        } else {
            None
        }
    }

    /// Whether every number of `other` is one of this.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        self.u.covers(other.u)
            && self.s.covers(other.s)
            && self.bits.covers(other.bits)
            && self.u32.covers(other.u32)
            && self.s32.covers(other.s32)
    }

    /// The result of an operation.
    pub(crate) fn alu(alu: Alu, wide: bool, a: &Self, b: &Self) -> Self {
        if let (Some(a), Some(b)) = (a.as_constant(), b.as_constant()) {
            return Self::constant(alu.eval(wide, a, b));
        }
        if wide {
            let mut r = Self::alu64(alu, a, b, 63);
            let has_carry = r.u.least >> 32 != r.u.greatest >> 32;
            if has_carry && matches!(alu, Alu::Add | Alu::Sub) {
                // The lower half comes of the lower halves, whatever there is above.
                let half = Self::alu(alu, false, a, b);
                r.u32.meet(half.u32.least, half.u32.greatest);
                r.s32.meet(half.s32.least, half.s32.greatest);
                r = r.consistent();
            }
            return r;
        }
        // Shifts count modulo 32; their amount is no number with a sign.
        let unsigned = || Self::alu64(alu, &a.low_half(), &b.low_half(), 31).low_half();
        let signed = |b| Self::alu64(alu, &a.low_half_signed(), b, 31).low_half();
        match alu {
            Alu::Add | Alu::Sub | Alu::Mul => {
                let (unsigned, signed) = (unsigned(), signed(&b.low_half_signed()));
                unsigned.meet(&signed).unwrap_or(unsigned)
            }
            Alu::Arsh => signed(&b.low_half()),
            Alu::SDiv | Alu::SMod => signed(&b.low_half_signed()),
            _ => unsigned(),
        }
    }

    fn alu64(alu: Alu, a: &Self, b: &Self, shift_mask: u64) -> Self {
        let mut r = Self::UNKNOWN;
        match alu {
            Alu::Mov => return *b,
            Alu::Add => {
                r.bits = a.bits.add(b.bits);
                if let Some(greatest) = a.u.greatest.checked_add(b.u.greatest) {
                    r.u = Range::new(a.u.least + b.u.least, greatest);
                } else if let (least, true) = a.u.least.overflowing_add(b.u.least) {
                    // Each sum wraps, once.
                    r.u = Range::new(least, a.u.greatest.wrapping_add(b.u.greatest));
                }
                let least = a.s.least.checked_add(b.s.least);
                let greatest = a.s.greatest.checked_add(b.s.greatest);
                if let (Some(least), Some(greatest)) = (least, greatest) {
                    r.s = Range::new(least, greatest);
                }
            }
            Alu::Sub => {
                r.bits = a.bits.sub(b.bits);
                if a.u.least >= b.u.greatest {
                    r.u = Range::new(a.u.least - b.u.greatest, a.u.greatest - b.u.least);
                } else if a.u.greatest < b.u.least {
                    r.u = Range::new(
                        a.u.least.wrapping_sub(b.u.greatest),
                        a.u.greatest.wrapping_sub(b.u.least),
                    );
                }
                let least = a.s.least.checked_sub(b.s.greatest);
                let greatest = a.s.greatest.checked_sub(b.s.least);
                if let (Some(least), Some(greatest)) = (least, greatest) {
                    r.s = Range::new(least, greatest);
                }
            }
            Alu::Mul => {
                r.bits = a.bits.mul(b.bits);
                if let Some(greatest) = a.u.greatest.checked_mul(b.u.greatest) {
                    r.u = Range::new(a.u.least * b.u.least, greatest);
                }
                let corners = [
                    a.s.least.checked_mul(b.s.least),
                    a.s.least.checked_mul(b.s.greatest),
                    a.s.greatest.checked_mul(b.s.least),
                    a.s.greatest.checked_mul(b.s.greatest),
                ];
                if let [Some(p), Some(q), Some(x), Some(y)] = corners {
                    r.s = Range::new(p.min(q).min(x).min(y), p.max(q).max(x).max(y));
                }
            }
            Alu::Div => {
                let least = match b.u.least {
                    0 => 0,
                    _ => a.u.least / b.u.greatest,
                };
                r.u = Range::new(least, a.u.greatest / b.u.least.max(1));
            }
            Alu::Mod => {
                // By zero it is the dividend.
                let greatest = match b.u.least {
                    0 => a.u.greatest,
                    _ => a.u.greatest.min(b.u.greatest - 1),
                };
                r.u = Range::new(0, greatest);
            }
            Alu::SDiv | Alu::SMod => return r,
            Alu::Or => {
                r.bits = a.bits.or(b.bits);
                r.u.least = a.u.least.max(b.u.least);
            }
            Alu::And => {
                r.bits = a.bits.and(b.bits);
                r.u.greatest = a.u.greatest.min(b.u.greatest);
            }
            Alu::Xor => r.bits = a.bits.xor(b.bits),
            Alu::Lsh | Alu::Rsh | Alu::Arsh => {
                return Self::shift(alu, a, b, shift_mask);
            }
        }
        r.consistent()
    }

    fn shift(alu: Alu, a: &Self, b: &Self, mask: u64) -> Self {
        let mut r = Self::UNKNOWN;
        // An amount above the mask may turn out as any.
        let (least, greatest) = if b.u.greatest <= mask {
            (low(b.u.least), low(b.u.greatest))
        } else {
            match b.as_constant() {
                Some(by) => (low(by & mask), low(by & mask)),
                None => (0, low(mask)),
            }
        };
        let constant = least == greatest;
        match alu {
            Alu::Lsh => {
                if constant {
                    r.bits = a.bits.shl(least);
                }
                if a.u.greatest.leading_zeros() >= greatest {
                    r.u = Range::new(a.u.least << least, a.u.greatest << greatest);
                }
                if (least, greatest) == (32, 32) {
                    // Only the lower half counts. Compilers cut and extend numbers so, where they
                    // have no instructions of 32 bits.
                    let (u32, s32) = (a.u32, a.s32);
                    r.u = Range::new(u64::from(u32.least) << 32, u64::from(u32.greatest) << 32);
                    r.s = Range::new(i64::from(s32.least) << 32, i64::from(s32.greatest) << 32);
                }
            }
            Alu::Rsh => {
                if constant {
                    r.bits = a.bits.shr(least);
                }
                r.u = Range::new(a.u.least >> greatest, a.u.greatest >> least);
            }
            _ => {
                if constant {
                    r.bits = a.bits.sar(least);
                }
                let by = |n: i64| {
                    if n < 0 {
                        (least, greatest)
                    } else {
                        (greatest, least)
                    }
                };
                r.s = Range::new(
                    a.s.least >> by(a.s.least).0,
                    a.s.greatest >> by(a.s.greatest).1,
                );
            }
        }
        r.consistent()
    }

    pub(crate) fn swap(&self, swap: Swap) -> Self {
        if let Some(value) = self.as_constant() {
            return Self::constant(swap.eval(value));
        }
        let spare = 64 - swap.bits;
        let mut bits = self.bits.shl(spare);
        bits = if swap.reverse {
            Known {
                value: bits.value.swap_bytes(),
                mask: bits.mask.swap_bytes(),
            }
        } else {
            bits.shr(spare)
        };
        Self {
            bits,
            ..Self::UNKNOWN
        }
        .consistent()
    }

    /// The low `bits` (8, 16 or 32), sign-extended to 64 or 32.
    pub(crate) fn sign_extend(&self, bits: u32, wide: bool) -> Self {
        if let Some(value) = self.as_constant() {
            return Self::constant(sign_extend(bits, wide, value));
        }
        let spare = 64 - bits;
        let limit = i64::MAX >> spare;
        let mut r = Self {
            bits: self.bits.shl(spare).sar(spare),
            s: Range::new(-limit - 1, limit),
            ..Self::UNKNOWN
        };
        if r.s.covers(self.s) {
            r.s = self.s;
        }
        if bits == 32 {
            r.s.meet(self.s32.least.into(), self.s32.greatest.into());
        }
        let r = r.consistent();
        if wide { r } else { r.low_half() }
    }

    /// The lower half alone, the upper one being 0.
    pub(crate) fn low_half(&self) -> Self {
        Self {
            bits: Known {
                value: self.bits.value & LOW,
                mask: self.bits.mask & LOW,
            },
            u: Range::new(self.u32.least.into(), self.u32.greatest.into()),
            u32: self.u32,
            s32: self.s32,
            ..Self::UNKNOWN
        }
        .consistent()
    }

    fn low_half_signed(&self) -> Self {
        self.sign_extend(32, true)
    }

    /// `bytes` bytes of it, from byte `at` on: what a load finds where this was stored.
    pub(crate) fn part(&self, at: u8, bytes: u8) -> Self {
        let moved = Self::alu(Alu::Rsh, true, self, &Self::constant(8 * u64::from(at)));
        let mask = u64::MAX >> (64 - 8 * u32::from(bytes));
        Self::alu(Alu::And, true, &moved, &Self::constant(mask))
    }

    /// What both numbers can still be when the comparison holds; nothing if it never does.
    pub(crate) fn assume(cmp: Cmp, wide: bool, a: &Self, b: &Self) -> Option<(Self, Self)> {
        match cmp {
            Cmp::Gt => return Self::assume(Cmp::Lt, wide, b, a).map(|(b, a)| (a, b)),
            Cmp::Ge => return Self::assume(Cmp::Le, wide, b, a).map(|(b, a)| (a, b)),
            Cmp::SGt => return Self::assume(Cmp::SLt, wide, b, a).map(|(b, a)| (a, b)),
            Cmp::SGe => return Self::assume(Cmp::SLe, wide, b, a).map(|(b, a)| (a, b)),
            _ => {}
        }
        let (mut a, mut b) = (*a, *b);
        match (cmp, wide) {
            (Cmp::Eq, true) => {
                let both = a.meet(&b)?;
                (a, b) = (both, both);
            }
            (Cmp::Eq, false) => {
                let both = a.low_half().meet(&b.low_half())?;
                a.learn_low_half(&both)?;
                b.learn_low_half(&both)?;
            }
            (Cmp::Ne, true) => {
                a.exclude(&b)?;
                b.exclude(&a)?;
            }
            (Cmp::Ne, false) => {
                a.exclude_low_half(&b)?;
                b.exclude_low_half(&a)?;
            }
            (Cmp::Lt, true) => {
                a.u.greatest = a.u.greatest.min(b.u.greatest.checked_sub(1)?);
                b.u.least = b.u.least.max(a.u.least.checked_add(1)?);
            }
            (Cmp::Lt, false) => {
                a.u32.greatest = a.u32.greatest.min(b.u32.greatest.checked_sub(1)?);
                b.u32.least = b.u32.least.max(a.u32.least.checked_add(1)?);
            }
            (Cmp::SLt, true) => {
                a.s.greatest = a.s.greatest.min(b.s.greatest.checked_sub(1)?);
                b.s.least = b.s.least.max(a.s.least.checked_add(1)?);
            }
            (Cmp::SLt, false) => {
                a.s32.greatest = a.s32.greatest.min(b.s32.greatest.checked_sub(1)?);
                b.s32.least = b.s32.least.max(a.s32.least.checked_add(1)?);
            }
            (Cmp::Le, true) => {
                a.u.greatest = a.u.greatest.min(b.u.greatest);
                b.u.least = b.u.least.max(a.u.least);
            }
            (Cmp::Le, false) => {
                a.u32.greatest = a.u32.greatest.min(b.u32.greatest);
                b.u32.least = b.u32.least.max(a.u32.least);
            }
            (Cmp::SLe, true) => {
                a.s.greatest = a.s.greatest.min(b.s.greatest);
                b.s.least = b.s.least.max(a.s.least);
            }
            (Cmp::SLe, false) => {
                a.s32.greatest = a.s32.greatest.min(b.s32.greatest);
                b.s32.least = b.s32.least.max(a.s32.least);
            }
            (Cmp::Set | Cmp::Clear, _) => {
                a.test_bits(cmp, wide, &b)?;
                b.test_bits(cmp, wide, &a)?;
            }
            (Cmp::Gt | Cmp::Ge | Cmp::SGt | Cmp::SGe, _) => {}
        }
        Some((a.settled()?, b.settled()?))
    }

    /// The numbers that are in both sets, if there may be any.
    fn meet(&self, other: &Self) -> Option<Self> {
        let mut r = *self;
        r.bits = r.bits.meet(other.bits)?;
        r.u.meet(other.u.least, other.u.greatest);
        r.s.meet(other.s.least, other.s.greatest);
        r.u32.meet(other.u32.least, other.u32.greatest);
        r.s32.meet(other.s32.least, other.s32.greatest);
        r.settled()
    }

    fn learn_low_half(&mut self, half: &Self) -> Option<()> {
        self.u32.meet(half.u32.least, half.u32.greatest);
        self.s32.meet(half.s32.least, half.s32.greatest);
        self.bits = self.bits.meet(Known {
            value: half.bits.value,
            mask: half.bits.mask | !LOW,
        })?;
        Some(())
    }

    /// It is not `other`, which says something if that is one number at an end of this.
    fn exclude(&mut self, other: &Self) -> Option<()> {
        let Some(value) = other.as_constant() else {
            return Some(());
        };
        exclude(
            &mut self.u,
            value,
            |n| n.checked_add(1),
            |n| n.checked_sub(1),
        )?;
        let value = value.cast_signed();
        exclude(
            &mut self.s,
            value,
            |n| n.checked_add(1),
            |n| n.checked_sub(1),
        )
    }

    fn exclude_low_half(&mut self, other: &Self) -> Option<()> {
        if other.u32.least != other.u32.greatest {
            return Some(());
        }
        let value = other.u32.least;
        exclude(
            &mut self.u32,
            value,
            |n| n.checked_add(1),
            |n| n.checked_sub(1),
        )?;
        let value = value.cast_signed();
        exclude(
            &mut self.s32,
            value,
            |n| n.checked_add(1),
            |n| n.checked_sub(1),
        )
    }

    /// Some bit of `other` is set in this, or none.
    fn test_bits(&mut self, cmp: Cmp, wide: bool, other: &Self) -> Option<()> {
        let counting = if wide { u64::MAX } else { LOW };
        if cmp == Cmp::Clear {
            let clear = Known {
                value: 0,
                mask: !(other.bits.value & counting),
            };
            self.bits = self.bits.meet(clear)?;
            return Some(());
        }
        let possible = other.bits.greatest() & self.bits.greatest() & counting;
        if possible == 0 {
            return None;
        }
        if possible.is_power_of_two() {
            let set = Known {
                value: possible,
                mask: !possible,
            };
            self.bits = self.bits.meet(set)?;
        }
        Some(())
    }

    /// After an operation: no contradiction can come of it. Should one come, the path is one that
    /// nothing takes, and anything is true there.
    fn consistent(self) -> Self {
        self.settled().unwrap_or(Self::UNKNOWN)
    }

    /// Carries what each part knows to the others; nothing if they contradict each other, which
    /// means that there is no such number. Twice around finds what matters.
    fn settled(mut self) -> Option<Self> {
        for _ in 0..2 {
            self.learn_from_bits();
            self.between_signs();
            self.between_widths();
            self.between_signs();
            if self.u.is_empty() || self.s.is_empty() || self.u32.is_empty() || self.s32.is_empty()
            {
                return None;
            }
            let half = Known::common(self.u32.least.into(), self.u32.greatest.into());
            self.bits = self
                .bits
                .meet(Known::common(self.u.least, self.u.greatest))?
                .meet(Known {
                    value: half.value,
                    mask: half.mask | !LOW,
                })?;
        }
        Some(self)
    }

    fn learn_from_bits(&mut self) {
        let Known { value, mask } = self.bits;
        self.u.meet(value, value | mask);
        const SIGN: u64 = 1 << 63;
        // With the sign set if it may be, and clear if it may be.
        self.s.meet(
            (value | mask & SIGN).cast_signed(),
            (value | mask & !SIGN).cast_signed(),
        );
        let (value, mask) = (low(value), low(mask));
        self.u32.meet(value, value | mask);
        const SIGN32: u32 = 1 << 31;
        self.s32.meet(
            (value | mask & SIGN32).cast_signed(),
            (value | mask & !SIGN32).cast_signed(),
        );
    }

    /// An interval that has only numbers of one sign is the same with and without.
    fn between_signs(&mut self) {
        let (least, greatest) = (self.u.least.cast_signed(), self.u.greatest.cast_signed());
        if least <= greatest {
            self.s.meet(least, greatest);
        }
        let (least, greatest) = (
            self.s.least.cast_unsigned(),
            self.s.greatest.cast_unsigned(),
        );
        if least <= greatest {
            self.u.meet(least, greatest);
        }
        let (least, greatest) = (
            self.u32.least.cast_signed(),
            self.u32.greatest.cast_signed(),
        );
        if least <= greatest {
            self.s32.meet(least, greatest);
        }
        let (least, greatest) = (
            self.s32.least.cast_unsigned(),
            self.s32.greatest.cast_unsigned(),
        );
        if least <= greatest {
            self.u32.meet(least, greatest);
        }
    }

    fn between_widths(&mut self) {
        // The upper half is one number: the lower one goes from end to end.
        if self.u.least >> 32 == self.u.greatest >> 32 {
            self.u32.meet(low(self.u.least), low(self.u.greatest));
        }
        let (least, greatest) = (self.s.least, self.s.greatest);
        if let (Ok(least), Ok(greatest)) = (i32::try_from(least), i32::try_from(greatest)) {
            self.s32.meet(least, greatest);
        }
        // No number is below the least upper half with the least lower one.
        self.u.meet(
            self.u.least & !LOW | u64::from(self.u32.least),
            self.u.greatest & !LOW | u64::from(self.u32.greatest),
        );
        let (least, greatest) = (
            self.s.least.cast_unsigned(),
            self.s.greatest.cast_unsigned(),
        );
        self.s.meet(
            (least & !LOW | u64::from(self.u32.least)).cast_signed(),
            (greatest & !LOW | u64::from(self.u32.greatest)).cast_signed(),
        );
    }
}

/// Takes `value` off an interval, if it is an end.
fn exclude<T: Copy + Ord>(
    range: &mut Range<T>,
    value: T,
    next: impl Fn(T) -> Option<T>,
    previous: impl Fn(T) -> Option<T>,
) -> Option<()> {
    if range.least == value {
        range.least = next(value)?;
    }
    if range.greatest == value {
        range.greatest = previous(value)?;
    }
    if range.is_empty() { None } else { Some(()) }
}

impl fmt::Display for Scalar {
    /// One number, or the narrower of the two intervals, or `?`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.u.least == self.u.greatest {
            return write!(f, "{}", self.s.least);
        }
        if self.u.greatest < u64::MAX || self.u.least > 0 {
            if self.s.least < 0 && self.s.greatest < 0 {
                return write!(f, "{}..{}", self.s.least, self.s.greatest);
            }
            return write!(f, "{}..{}", self.u.least, self.u.greatest);
        }
        if self.s.least > i64::MIN || self.s.greatest < i64::MAX {
            return write!(f, "{}..{}", self.s.least, self.s.greatest);
        }
        f.write_str("?")
    }
}

#[cfg(test)]
mod tests;
