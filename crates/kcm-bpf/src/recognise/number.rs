//! Numbers as the message makes them.
//!
//! A [`Number`] is a sum: rows of 64 bits, each 0, 1 or a certain bit of the message, and a constant.
//! Shifts, masks, swaps and ors of disjoint parts just move bits about, so it does not matter in which
//! of many ways a compiler has written a 24-bit little-endian field. A row to which something was
//! added before it was masked (a length rounded up to whole words) is kept as that, a [`Term`].
//!
//! Nothing here is an approximation: an operation gives the number, or nothing.

use crate::alu::{Alu, Swap};

/// A bit of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bit {
    Zero,
    One,
    /// This bit of the message: 8 times its byte's offset, plus its place in it, counted from the
    /// least significant.
    Packet(u32),
    /// This bit of the number of bytes that are there.
    Len(u8),
}

/// The least significant bit first.
pub(super) type Bits = [Bit; 64];

/// `(bits + add) & keep`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) bits: Bits,
    pub(super) add: u64,
    pub(super) keep: u64,
}

/// A 64-bit number: the sum of its terms and a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(super) terms: Vec<Term>,
    pub(super) bias: u64,
    /// The low half of the sum; the upper half is 0.
    pub(super) half: bool,
}

pub(super) const LOW: u64 = 0xffff_ffff;

impl Term {
    /// Nothing but bits.
    pub(super) fn is_plain(&self) -> bool {
        self.add == 0 && self.keep == u64::MAX
    }

    fn plain(bits: Bits) -> Self {
        Self {
            bits,
            add: 0,
            keep: u64::MAX,
        }
    }

    /// No value of it is above this.
    fn most(&self) -> u64 {
        let mut most = 0;
        for (i, bit) in self.bits.iter().enumerate() {
            most |= u64::from(*bit != Bit::Zero) << i;
        }
        most.saturating_add(self.add).min(self.keep)
    }
}

impl Number {
    pub(crate) const fn constant(value: u64) -> Self {
        Self {
            terms: Vec::new(),
            bias: value,
            half: false,
        }
    }

    /// Bytes of the message, as they are loaded: the first one is the most significant.
    pub(crate) fn packet(offset: u32, size: u32) -> Self {
        Self::of_bits(std::array::from_fn(|i| match u32::try_from(i) {
            Ok(i) if i < 8 * size => Bit::Packet(8 * (offset + size - 1 - i / 8) + i % 8),
            _ => Bit::Zero,
        }))
    }

    /// Bytes of the number of bytes that are there.
    pub(super) fn len(from_byte: u8, size: u8) -> Self {
        Self::of_bits(std::array::from_fn(|i| match u8::try_from(i) {
            Ok(i) if i < 8 * size => Bit::Len(8 * from_byte + i),
            _ => Bit::Zero,
        }))
    }

    pub(super) fn as_constant(&self) -> Option<u64> {
        self.terms.is_empty().then_some(self.bias)
    }

    /// The bits, if it is no more than these.
    pub(super) fn as_bits(&self) -> Option<Bits> {
        let mut bits = match &self.terms[..] {
            [] => [Bit::Zero; 64],
            [term] if term.is_plain() && !self.half => term.bits,
            _ => return None,
        };
        // The constant is as good as bits where it meets no other.
        for (i, bit) in bits.iter_mut().enumerate() {
            if self.bias >> i & 1 != 0 {
                if *bit != Bit::Zero {
                    return None;
                }
                *bit = Bit::One;
            }
        }
        Some(bits)
    }

    pub(super) fn of_bits(mut bits: Bits) -> Self {
        let mut bias = 0;
        for (i, bit) in bits.iter_mut().enumerate() {
            if *bit == Bit::One {
                bias |= 1 << i;
                *bit = Bit::Zero;
            }
        }
        let mut number = Self::constant(bias);
        if bits.iter().any(|bit| *bit != Bit::Zero) {
            number.terms.push(Term::plain(bits));
        }
        number
    }

    /// No value of it is above this.
    pub(super) fn most(&self) -> u64 {
        let sum = self
            .terms
            .iter()
            .try_fold(self.bias, |sum, term| sum.checked_add(term.most()));
        match sum {
            Some(sum) if !self.half || sum <= LOW => sum,
            _ if self.half => LOW,
            _ => u64::MAX,
        }
    }

    /// As a register holds it after an operation on 64 or on 32 bits.
    pub(super) fn cut(self, wide: bool) -> Self {
        if wide || self.most() <= LOW && !self.half {
            return self;
        }
        match self.as_bits() {
            Some(mut bits) => {
                bits[32..].fill(Bit::Zero);
                Self::of_bits(bits)
            }
            None if self.terms.is_empty() => Self::constant(self.bias & LOW),
            // What is above 32 bits without a carry from below is cut off for certain.
            None => Self {
                half: self.sum_exceeds_32_bits(),
                ..self
            },
        }
    }

    fn sum_exceeds_32_bits(&self) -> bool {
        let whole = self
            .terms
            .iter()
            .try_fold(self.bias, |sum, term| sum.checked_add(term.most()));
        whole.is_none_or(|most| most > LOW)
    }

    /// The low half as a result: what is above does not count.
    pub(super) fn into_result(mut self) -> Self {
        for term in &mut self.terms {
            if term.keep & LOW == LOW {
                self.bias = self.bias.wrapping_add(term.add);
                (term.add, term.keep) = (0, u64::MAX);
                term.bits[32..].fill(Bit::Zero);
            }
        }
        self.terms
            .retain(|term| !term.is_plain() || term.bits.iter().any(|bit| *bit != Bit::Zero));
        self.bias &= LOW;
        self.half = false;
        self
    }

    /// The same without `half`, in one term, so that something can be done with all 64 bits.
    pub(crate) fn exact(self) -> Option<Self> {
        if !self.half {
            return Some(self);
        }
        match &self.terms[..] {
            [term] if term.is_plain() => Some(Self {
                terms: vec![Term {
                    bits: term.bits,
                    add: self.bias,
                    keep: LOW,
                }],
                bias: 0,
                half: false,
            }),
            _ => None,
        }
    }

    pub(crate) fn alu(self, alu: Alu, wide: bool, by: Self) -> Option<Self> {
        if let (Some(a), Some(b)) = (self.as_constant(), by.as_constant()) {
            return Some(Self::constant(alu.eval(wide, a, b)));
        }
        // Sums and shifts to the left of low halves need only these.
        let (a, b) = match alu {
            Alu::Add | Alu::Sub | Alu::Mul | Alu::Lsh if !wide => (self, by),
            Alu::Mov => return Some(by.cut(wide)),
            Alu::And if by.as_constant().is_some() => return self.masked(wide, by.bias),
            _ if !wide => (self.cut(false).exact()?, by.cut(false).exact()?),
            _ => (self.exact()?, by.exact()?),
        };
        match alu {
            Alu::Add => Some(a.plus(b).cut(wide)),
            Alu::Sub => {
                let constant = b.as_constant()?.wrapping_neg();
                Some(a.plus(Self::constant(constant)).cut(wide))
            }
            Alu::Mul => {
                let factor = b.as_constant().filter(|factor| factor.is_power_of_two())?;
                Some(a.shifted_left(factor.trailing_zeros())?.cut(wide))
            }
            Alu::Lsh => Some(a.shifted_left(amount(wide, &b)?)?.cut(wide)),
            Alu::Or if a.as_bits().is_none() || b.as_bits().is_none() => None,
            _ => {
                let bits = move_bits(alu, wide, &a.as_bits()?, &b)?;
                Some(Self::of_bits(bits).cut(wide))
            }
        }
    }

    pub(crate) fn swap(&self, swap: Swap) -> Option<Self> {
        let bits = self.as_bits()?;
        let width = usize::try_from(swap.bits).ok()?;
        Some(Self::of_bits(std::array::from_fn(|i| {
            if i >= width {
                Bit::Zero
            } else if swap.reverse {
                bits[width - 8 - i / 8 * 8 + i % 8]
            } else {
                bits[i]
            }
        })))
    }

    pub(super) fn sign_extend(&self, from_bits: u32, wide: bool) -> Option<Self> {
        let bits = self.as_bits()?;
        let sign = usize::try_from(from_bits).ok()?.checked_sub(1)?;
        let extended = std::array::from_fn(|i| bits[i.min(sign)]);
        Some(Self::of_bits(extended).cut(wide))
    }

    /// The number with these bits of it alone.
    fn masked(self, wide: bool, mask: u64) -> Option<Self> {
        let mask = if wide && !self.half { mask } else { mask & LOW };
        if let Some(mut bits) = self.as_bits() {
            for (i, bit) in bits.iter_mut().enumerate() {
                if mask >> i & 1 == 0 {
                    *bit = Bit::Zero;
                }
            }
            return Some(Self::of_bits(bits));
        }
        let [term] = &self.terms[..] else {
            return None;
        };
        let mut term = term.clone();
        if term.is_plain() {
            (term.add, term.keep) = (self.bias, mask);
        } else if self.bias == 0 {
            term.keep &= mask;
        } else {
            return None;
        }
        Some(Self {
            terms: vec![term],
            bias: 0,
            half: false,
        })
    }

    fn plus(mut self, other: Self) -> Self {
        self.bias = self.bias.wrapping_add(other.bias);
        self.half |= other.half;
        for term in other.terms {
            // Where no two bits meet, the sum is the parts side by side.
            let beside = self.terms.iter_mut().find(|old| {
                old.is_plain()
                    && term.is_plain()
                    && (old.bits.iter().zip(&term.bits))
                        .all(|(a, b)| *a == Bit::Zero || *b == Bit::Zero)
            });
            match beside {
                Some(old) => {
                    for (bit, other) in old.bits.iter_mut().zip(term.bits) {
                        if *bit == Bit::Zero {
                            *bit = other;
                        }
                    }
                }
                None => self.terms.push(term),
            }
        }
        self
    }

    fn shifted_left(mut self, by: u32) -> Option<Self> {
        let by = usize::try_from(by).ok()?;
        if !self.terms.iter().all(Term::is_plain) {
            return None;
        }
        for term in &mut self.terms {
            let bits = term.bits;
            term.bits = std::array::from_fn(|i| if i < by { Bit::Zero } else { bits[i - by] });
        }
        self.terms
            .retain(|term| term.bits.iter().any(|bit| *bit != Bit::Zero));
        self.bias <<= by;
        Some(self)
    }
}

/// The amount of a shift, which is below the width.
fn amount(wide: bool, by: &Number) -> Option<u32> {
    u32::try_from(by.as_constant()? & if wide { 63 } else { 31 }).ok()
}

/// The operations that keep each bit whole.
fn move_bits(alu: Alu, wide: bool, bits: &Bits, by: &Number) -> Option<Bits> {
    let amount = || usize::try_from(amount(wide, by)?).ok();
    Some(match alu {
        Alu::Rsh => {
            let n = amount()?;
            std::array::from_fn(|i| bits.get(i + n).copied().unwrap_or(Bit::Zero))
        }
        Alu::Arsh => {
            let n = amount()?;
            let width = if wide { 64 } else { 32 };
            std::array::from_fn(|i| bits[(i + n).min(width - 1)])
        }
        Alu::And | Alu::Or => {
            let other = by.as_bits()?;
            let mut both = [Bit::Zero; 64];
            for (i, bit) in both.iter_mut().enumerate() {
                *bit = match (alu, bits[i], other[i]) {
                    (_, a, b) if a == b => a,
                    (Alu::And, Bit::Zero, _) | (Alu::And, _, Bit::Zero) => Bit::Zero,
                    (Alu::And, Bit::One, a) | (Alu::And, a, Bit::One) => a,
                    (Alu::Or, Bit::One, _) | (Alu::Or, _, Bit::One) => Bit::One,
                    (Alu::Or, Bit::Zero, a) | (Alu::Or, a, Bit::Zero) => a,
                    _ => return None,
                };
            }
            both
        }
        _ => return None,
    })
}
