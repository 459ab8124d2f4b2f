//! Numbers as the message makes them.
//!
//! A [`Number`] is a sum: rows of 64 bits, each 0, 1 or a certain bit of the message, and a constant.
//! Shifts, masks, swaps and ors of disjoint parts just move bits about, so it does not matter in which
//! of many ways a compiler has written a 24-bit little-endian field. What else is done to a row with
//! constants (rounded up to whole words, multiplied, divided) is kept as [`Round`]s behind it: a
//! [`Term`].
//!
//! Nothing here is an approximation: an operation gives the number, or nothing.

use crate::alu::{Alu, Swap};
use crate::recognise::round::Round;
use crate::recognise::term::Term;

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

/// Most rounds of a term. With more of them it is instructions again.
const MAX_ROUNDS: usize = 4;

/// Most terms of a sum. A program that adds a number to itself again and again would double them each
/// time; those of protocols have two or three.
const MAX_TERMS: usize = 8;

/// A 64-bit number: the sum of its terms and a constant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Number {
    pub(super) terms: Vec<Term>,
    pub(super) bias: u64,
    /// The low half of the sum; the upper half is 0.
    pub(super) half: bool,
}

pub(super) const LOW: u64 = 0xffff_ffff;

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

    /// What it is, if its bits are these.
    pub(super) fn value(&self, of: impl Fn(Bit) -> u64) -> u64 {
        let add = |sum: u64, term: &Term| sum.wrapping_add(term.value(&of));
        let sum = self.terms.iter().fold(self.bias, add);
        if self.half { sum & LOW } else { sum }
    }

    /// The same, if some bits of the message are known.
    pub(super) fn with_known(&self, known: impl Fn(u32) -> Option<bool>) -> Option<Self> {
        let mut sum = Self::constant(self.bias);
        for term in &self.terms {
            let (mut term, mut ones) = (term.clone(), 0);
            for (i, bit) in term.bits.iter_mut().enumerate() {
                let Bit::Packet(at) = *bit else { continue };
                let Some(is_set) = known(at) else { continue };
                ones |= u64::from(is_set) << i;
                *bit = Bit::Zero;
            }
            // What is known is added to the others, before all that is done with them.
            let mut part = Self::constant(0);
            match term.then.first_mut() {
                Some(first) => first.add_before(ones),
                None => part.bias = ones,
            }
            if term.bits.iter().all(|bit| *bit == Bit::Zero) {
                part.bias = part.bias.wrapping_add(term.value(|_| 0));
            } else {
                part.terms.push(term);
            }
            sum = sum.plus(part)?;
        }
        sum.half = self.half;
        Some(sum)
    }

    /// The bits of the message that it comes from; some perhaps several times.
    pub(super) fn packet_bits(&self) -> impl Iterator<Item = u32> {
        (self.terms.iter()).flat_map(Term::packet_bits)
    }

    /// Whether it comes from the number of bytes that are there.
    pub(super) fn is_of_len(&self) -> bool {
        let mut bits = self.terms.iter().flat_map(|term| &term.bits);
        bits.any(|bit| matches!(bit, Bit::Len(_)))
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
            while let Some(last) = term.then.last_mut() {
                self.bias = self.bias.wrapping_add(last.take_sum(LOW));
                if *last != Round::NOTHING {
                    break;
                }
                term.then.pop();
            }
            if term.is_plain() {
                term.bits[32..].fill(Bit::Zero);
            }
        }
        self.terms
            .retain(|term| !term.is_plain() || term.bits.iter().any(|bit| *bit != Bit::Zero));
        self.bias &= LOW;
        self.half = false;
        self
    }

    /// The same without `half`, so that something can be done with all 64 bits.
    pub(crate) fn exact(self) -> Option<Self> {
        if self.half {
            Self::of_term(self.into_term(true)?)
        } else {
            Some(self)
        }
    }

    /// The number as a single term; its low half, if it is not `wide`.
    fn into_term(mut self, wide: bool) -> Option<Term> {
        let is_cut = self.half || !wide && self.most() > LOW;
        let mut term = self.terms.pop().filter(|_| self.terms.is_empty())?;
        if self.bias != 0 {
            term.times_plus(1, self.bias);
        }
        if is_cut {
            term.keep(LOW);
        }
        Some(term)
    }

    fn of_term(term: Term) -> Option<Self> {
        (term.then.len() <= MAX_ROUNDS).then(|| Self {
            terms: vec![term],
            bias: 0,
            half: false,
        })
    }

    pub(crate) fn alu(self, alu: Alu, wide: bool, by: Self) -> Option<Self> {
        let constant = by.as_constant();
        if let (Some(a), Some(b)) = (self.as_constant(), constant) {
            return Some(Self::constant(alu.eval(wide, a, b)));
        }
        // Sums of 32 bits need only the low halves.
        let operand = |number: Self| {
            if wide { number.exact() } else { Some(number) }
        };
        match (alu, constant) {
            (Alu::Mov, _) => Some(by.cut(wide)),
            (Alu::Add, _) => Some(operand(self)?.plus(operand(by)?)?.cut(wide)),
            (Alu::Sub, Some(by)) => {
                let less = Self::constant(by.wrapping_neg());
                Some(operand(self)?.plus(less)?.cut(wide))
            }
            (Alu::Sub, None) => Some(operand(self)?.minus(operand(by)?)?.cut(wide)),
            // (As do products.)
            (Alu::Mul, Some(by)) => {
                let by = if wide { by } else { by & LOW };
                Some(operand(self)?.times(by).cut(wide))
            }
            (Alu::Lsh, Some(by)) => {
                let by = 1_u64 << amount(wide, by)?;
                Some(operand(self)?.times(by).cut(wide))
            }
            (Alu::Div, Some(by)) if by.is_power_of_two() => {
                self.alu(Alu::Rsh, wide, Self::constant(by.trailing_zeros().into()))
            }
            (Alu::Mod, Some(by)) if by.is_power_of_two() => {
                self.alu(Alu::And, wide, Self::constant(by - 1))
            }
            _ => {
                if let Some(bits) = self.clone().in_bits(alu, wide, &by) {
                    return Some(Self::of_bits(bits).cut(wide));
                }
                self.in_a_round(alu, wide, constant?)
            }
        }
    }

    /// An operation that does not keep each bit whole, by a constant.
    fn in_a_round(self, alu: Alu, wide: bool, by: u64) -> Option<Self> {
        let (all, sign) = if wide {
            (u64::MAX, 1 << 63)
        } else {
            (LOW, 1 << 31)
        };
        let (most, by) = (self.most().min(all), by & all);
        let mut term = self.into_term(wide)?;
        let has_no_sign = most < sign && by < sign;
        match alu {
            Alu::And => term.keep(by),
            // What is there already is not added.
            Alu::Or => {
                term.keep(!by);
                return Self::of_term(term)?.plus(Self::constant(by));
            }
            // The complement of x is -x - 1.
            Alu::Xor if by == all => {
                term.times(u64::MAX);
                return Some(
                    Self::of_term(term)?
                        .plus(Self::constant(u64::MAX))?
                        .cut(wide),
                );
            }
            Alu::Rsh => term.shift(amount(wide, by)?),
            Alu::Arsh if most < sign => term.shift(amount(wide, by)?),
            Alu::Div if most <= LOW => term.divide(by)?,
            Alu::SDiv if has_no_sign && most <= LOW => term.divide(by)?,
            // What is left of it is it, less the whole parts.
            Alu::Mod if most <= LOW => return Self::of_term(term)?.remainder(by),
            Alu::SMod if has_no_sign && most <= LOW => return Self::of_term(term)?.remainder(by),
            _ => return None,
        }
        Self::of_term(term)
    }

    /// What a division leaves of a number of 32 bits.
    fn remainder(self, by: u64) -> Option<Self> {
        let mut whole = self.terms.first()?.clone();
        whole.divide(by)?;
        self.plus(Self::of_term(whole)?.times(by.wrapping_neg()))
    }

    /// An operation that keeps each bit whole, on a number that is just bits.
    fn in_bits(self, alu: Alu, wide: bool, by: &Self) -> Option<Bits> {
        let bits = if wide {
            self.as_bits()?
        } else {
            self.cut(false).as_bits()?
        };
        let amount = || usize::try_from(amount(wide, by.as_constant()?)?).ok();
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

    pub(super) fn negated(self, wide: bool) -> Option<Self> {
        self.alu(Alu::Mul, wide, Self::constant(u64::MAX))
    }

    pub(super) fn sign_extend(&self, from_bits: u32, wide: bool) -> Option<Self> {
        let bits = self.as_bits()?;
        let sign = usize::try_from(from_bits).ok()?.checked_sub(1)?;
        let extended = std::array::from_fn(|i| bits[i.min(sign)]);
        Some(Self::of_bits(extended).cut(wide))
    }

    fn plus(mut self, other: Self) -> Option<Self> {
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
        (self.terms.len() <= MAX_TERMS).then_some(self)
    }

    /// The product, modulo 2⁶⁴.
    fn times(mut self, by: u64) -> Self {
        for term in &mut self.terms {
            term.times(by);
        }
        self.terms
            .retain(|term| by != 0 && term.bits.iter().any(|bit| *bit != Bit::Zero));
        self.bias = self.bias.wrapping_mul(by);
        self
    }

    /// The difference, modulo 2⁶⁴.
    pub(super) fn minus(self, other: Self) -> Option<Self> {
        self.plus(other.times(u64::MAX))
    }
}

/// The amount of a shift, which is below the width.
fn amount(wide: bool, by: u64) -> Option<u32> {
    u32::try_from(by & if wide { 63 } else { 31 }).ok()
}
