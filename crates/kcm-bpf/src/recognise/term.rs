//! A part of a number: bits of the message, and what is done with the number that they are.

use crate::recognise::number::{Bit, Bits};
use crate::recognise::round::{Round, divisor};

/// Bits, and what is done with their number, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Term {
    pub(super) bits: Bits,
    pub(super) then: Vec<Round>,
}

impl Term {
    /// Nothing but bits.
    pub(super) fn is_plain(&self) -> bool {
        self.then.is_empty()
    }

    pub(super) fn plain(bits: Bits) -> Self {
        let then = Vec::new();
        Self { bits, then }
    }

    /// The bits of the message that it comes from.
    pub(super) fn packet_bits(&self) -> impl Iterator<Item = u32> {
        self.bits.iter().filter_map(|bit| match bit {
            Bit::Packet(at) => Some(*at),
            _ => None,
        })
    }

    /// What it is, if its bits are these.
    pub(super) fn value(&self, of: impl Fn(Bit) -> u64) -> u64 {
        let bits = (0..).zip(self.bits).map(|(i, bit): (u32, _)| of(bit) << i);
        (self.then.iter()).fold(bits.sum(), |value, round| round.of(value))
    }

    /// No value of it is above this.
    pub(super) fn most(&self) -> u64 {
        let mut most = 0;
        for (i, bit) in self.bits.iter().enumerate() {
            most |= u64::from(*bit != Bit::Zero) << i;
        }
        self.then
            .iter()
            .fold(most, |most, round| round.most_after(most))
    }

    /// The product, modulo 2⁶⁴.
    pub(super) fn times(&mut self, by: u64) {
        if self.is_plain() && by.is_power_of_two() {
            let (bits, places) = (self.bits, by.trailing_zeros() as usize);
            let moved = |i: usize| i.checked_sub(places).map_or(Bit::Zero, |i| bits[i]);
            self.bits = std::array::from_fn(moved);
        } else {
            self.times_plus(by, 0);
        }
    }

    pub(super) fn times_plus(&mut self, times: u64, plus: u64) {
        match self.then.last_mut() {
            Some(last) if last.is_open() => last.times_plus(times, plus),
            _ => self.then.push(Round::new(times, plus)),
        }
    }

    pub(super) fn keep(&mut self, keep: u64) {
        self.last().keep(keep);
    }

    pub(super) fn shift(&mut self, by: u32) {
        self.last().shift(by);
    }

    /// The quotient of a number of 32 bits.
    pub(super) fn divide(&mut self, by: u64) -> Option<()> {
        let (times, plus, shift) = divisor(u32::try_from(by).ok()?)?;
        self.times_plus(times, plus);
        self.shift(shift);
        Some(())
    }

    /// The last round; one is begun if there is none.
    fn last(&mut self) -> &mut Round {
        if self.then.is_empty() {
            self.then.push(Round::NOTHING);
        }
        let last = self.then.len() - 1;
        &mut self.then[last]
    }
}
