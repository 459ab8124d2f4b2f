//! The usual message of a function, as a value.
//!
//! A function that frames is called, and what it costs beyond a length field is mostly that: a receiver
//! that walks through a burst asks a field in a few instructions of its own loop. But what functions (and
//! parser programs) say of nearly all messages comes down to a field too, once something is ruled out that
//! hardly any message is: the preface of HTTP/2, a fragment before the last of a record. Some lengths are
//! a field and a part more: data rounded up to whole words, a mask that a bit tells of. Or they are
//! counted in a unit that is no power of two. One [`Round`] of arithmetic says each of these.
//!
//! What takes more than that (a length of so many bytes as another byte says, a remainder, a table) has a
//! form all the same for messages that are alike: with the bits that make the difference as they are in
//! this message, which is one exception more, for all others. So a framing gives its forms from a message
//! ([`with_quick_forms`](crate::Framing::with_quick_forms)).

use std::hint::cold_path;

use crate::Endian;

/// Bits of a number: turned to the left, then masked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    /// By how many places; below 64.
    pub turn: u32,
    /// Those that are left.
    pub mask: u64,
}

impl Bits {
    #[inline(always)]
    const fn of(self, number: u64) -> u64 {
        number.rotate_left(self.turn) & self.mask
    }
}

/// Arithmetic with constants, modulo 2⁶⁴: `((value * times + plus) & keep) >> shift`.
///
/// Rounding up to whole words, a unit, a part of a byte are all this. So is a division, as a product
/// with the divisor's inverse, of which the upper bits count.
///
/// ```
/// use kcm_frame::Round;
/// let padded = Round { plus: 3, keep: !3, ..Round::NOTHING };
/// assert_eq!([0, 1, 4, 5].map(|bytes| padded.of(bytes)), [0, 4, 4, 8]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// What the value is multiplied by.
    pub times: u64,
    /// What is added to that.
    pub plus: u64,
    /// The bits of the sum that are left.
    pub keep: u64,
    /// By how many places they are moved down; below 64.
    pub shift: u32,
}

impl Round {
    /// It leaves a value as it is.
    pub const NOTHING: Self = Self {
        times: 1,
        plus: 0,
        keep: u64::MAX,
        shift: 0,
    };

    /// What it makes of this value.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, value: u64) -> u64 {
        // A branch that always goes the same way, where a product and a shift are five cycles that the
        // next message's address would wait for.
        if self.times == 1 && self.shift == 0 {
            return value.wrapping_add(self.plus) & self.keep;
        }
        cold_path();
        let sum = value.wrapping_mul(self.times).wrapping_add(self.plus);
        (sum & self.keep).wrapping_shr(self.shift)
    }
}

/// Messages for which the function itself is asked: those with bits from `low` on, at most `span` above
/// it. (As numbers of 64 bits, which may go round.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Of the same 8 bytes.
    pub bits: Bits,
    /// The least.
    pub low: u64,
    /// How far above it they go.
    pub span: u64,
}

impl Exception {
    /// No bits at all are 0, and not this.
    const NEVER: Self = Self {
        bits: Bits { turn: 0, mask: 0 },
        low: 1,
        span: 0,
    };

    /// Both as one, if the other one begins where this one ends.
    fn then(self, next: Self) -> Option<Self> {
        let is_next = self.low.wrapping_add(self.span).wrapping_add(1) == next.low;
        let span = self.span.checked_add(next.span)?.checked_add(1)?;
        (is_next && self.bits == next.bits).then_some(Self { span, ..self })
    }

    /// All but those with bits from `low` on, at most `span` above it; `span` is not all there is.
    #[must_use]
    pub const fn all_but(bits: Bits, low: u64, span: u64) -> Self {
        Self {
            bits,
            low: low.wrapping_add(span).wrapping_add(1),
            span: u64::MAX - 1 - span,
        }
    }
}

/// A length in some bits of 8 bytes of the message, unless others of them make an exception; longer, in
/// some protocols, by what a [`Round`] makes of others. For
/// [`Framing::with_quick_forms`](crate::Framing::with_quick_forms).
///
/// ```
/// use kcm_frame::{Bits, Endian, Exception, QuickForm, Round};
/// // HTTP/2: 24 bits of length and 9 bytes more, unless it is the preface.
/// let form = QuickForm::new(0, Endian::Big, Bits { turn: 24, mask: 0xff_ffff }, 9)
///     .unless(Exception {
///         bits: Bits { turn: 32, mask: 0xffff_ffff },
///         low: u32::from_be_bytes(*b"PRI ").into(),
///         span: 0,
///     })
///     .expect("one exception");
/// assert_eq!(form.length(*b"\0\0\x05\0\0\0\0\0"), Some(14));
/// assert_eq!(form.length(*b"PRI * HT"), None);
///
/// // iSCSI: 48 bytes, so many words of 4 as byte 4 says, and 24 bits of length, padded to 4.
/// let words = Bits { turn: 40 + 2, mask: 0xff << 2 };
/// let data = Bits { turn: 0, mask: 0xff_ffff };
/// let padded = Round { plus: 3, keep: !3, ..Round::NOTHING };
/// let form = QuickForm::new(0, Endian::Big, words, 48).plus(data, padded).expect("one term");
/// assert_eq!(form.length(*b"\x01\x80\0\0\x02\0\0\x05"), Some(48 + 8 + 8));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuickForm {
    offset: usize,
    endian: Endian,
    need: usize,
    exceptions: [Exception; Self::MOST_EXCEPTIONS],
    length: Bits,
    bias: u64,
    term: Option<(Bits, Round)>,
    longest: u64,
}

impl QuickForm {
    /// Exceptions of one form. More of them would make all messages wait.
    pub const MOST_EXCEPTIONS: usize = 2;

    /// A length in bits of the 8 bytes from `offset` on, read in this order; to which `bias` is added, in 64
    /// bits, going round.
    #[must_use]
    pub const fn new(offset: usize, endian: Endian, length: Bits, bias: u64) -> Self {
        Self {
            offset,
            endian,
            need: offset.saturating_add(size_of::<u64>()),
            exceptions: [Exception::NEVER; Self::MOST_EXCEPTIONS],
            length,
            bias,
            term: None,
            longest: u64::MAX,
        }
    }

    /// The same with one exception more; `None` if there are as many as there can be. (What goes on where
    /// another one of the same bits ends is one with it.)
    #[must_use]
    pub fn unless(mut self, exception: Exception) -> Option<Self> {
        for other in &mut self.exceptions {
            let joined = other.then(exception).or_else(|| exception.then(*other));
            let free = (*other == Exception::NEVER).then_some(exception);
            if let Some(new) = joined.or(free) {
                *other = new;
                return Some(self);
            }
        }
        None
    }

    /// The same, longer by what `round` makes of these bits of the same 8 bytes (in 64 bits, going round);
    /// `None` if there is such a term already.
    #[must_use]
    pub const fn plus(mut self, bits: Bits, round: Round) -> Option<Self> {
        if self.term.is_some() {
            return None;
        }
        self.term = Some((bits, round));
        Some(self)
    }

    /// The same, which holds only if so many bytes are there, from the message's first on; at least those
    /// that it looks at.
    #[must_use]
    pub fn needing(self, bytes: usize) -> Self {
        let need = self.need.max(bytes);
        Self { need, ..self }
    }

    /// The same, without lengths above this.
    #[must_use]
    pub fn up_to(self, longest: u64) -> Self {
        let longest = self.longest.min(longest);
        Self { longest, ..self }
    }

    /// Where the 8 bytes begin.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// Bytes that must be there, from the message's first on.
    #[must_use]
    pub const fn need(&self) -> usize {
        self.need
    }

    /// The length of the message that begins at these bytes, as [`length`](Self::length) says it; `None`
    /// also where too few are there.
    #[must_use]
    pub fn length_of(&self, bytes: &[u8]) -> Option<u64> {
        let word = bytes.get(self.offset..)?.first_chunk()?;
        self.length(*word).filter(|_| bytes.len() >= self.need)
    }

    /// The message's length in bytes, above zero, from its 8 bytes; `None`: the function is to be asked.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self, word: [u8; 8]) -> Option<u64> {
        let number = match self.endian {
            Endian::Big => u64::from_be_bytes(word),
            Endian::Little => u64::from_le_bytes(word),
        };
        let [first, second] = self.exceptions;
        if first.bits.of(number).wrapping_sub(first.low) <= first.span
            || second.bits.of(number).wrapping_sub(second.low) <= second.span
        {
            return None;
        }
        let mut length = self.length.of(number).wrapping_add(self.bias);
        // (A branch that always goes the same way; out of the way of those that have no term.)
        if let Some((bits, round)) = self.term {
            cold_path();
            length = length.wrapping_add(round.of(bits.of(number)));
        }
        // (0 is no length: less 1, it is above all.)
        if length.wrapping_sub(1) >= self.longest {
            return None;
        }
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOW_BYTE: Bits = Bits {
        turn: 0,
        mask: 0xff,
    };

    #[test]
    fn exceptions_are_two_at_most_and_may_go_round() {
        let form = QuickForm::new(3, Endian::Little, LOW_BYTE, 0);
        assert_eq!(
            (form.need(), form.needing(4).need(), form.needing(40).need()),
            (11, 11, 40)
        );
        // From 250 over 255 to 2, of numbers whose upper bits are set below zero.
        let from = |low: u64, span| Exception {
            bits: LOW_BYTE,
            low,
            span,
        };
        let one = form.unless(from(250, 5)).expect("one");
        let two = one.unless(from(u64::MAX, 3)).expect("two");
        assert_eq!(two.unless(from(7, 0)), None);
        // One that begins where another one ends, or the other way round.
        let more = two
            .unless(from(3, 1))
            .and_then(|form| form.unless(from(249, 0)));
        for byte in 0..=255u8 {
            let usual = (5..249).contains(&byte);
            let length = more.expect("still two").length([byte; 8]);
            assert_eq!(length, usual.then(|| byte.into()));
        }
        for byte in 0..=255u8 {
            let usual = (3..250).contains(&byte);
            assert_eq!(
                two.length([byte, 9, 9, 9, 9, 9, 9, 9]),
                usual.then(|| byte.into())
            );
        }
    }

    #[test]
    fn lengths_are_above_zero_and_up_to_the_longest() {
        let form = QuickForm::new(0, Endian::Big, LOW_BYTE, 5u64.wrapping_neg()).up_to(10);
        for (byte, length) in [
            (4, None),
            (5, None),
            (6, Some(1)),
            (15, Some(10)),
            (16, None),
        ] {
            assert_eq!(form.length([0, 0, 0, 0, 0, 0, 0, byte]), length);
        }
        let all = QuickForm::new(0, Endian::Big, LOW_BYTE, 0);
        assert_eq!(all.length([0; 8]), None);
    }

    #[test]
    fn all_but_some_are_an_exception() {
        let form = QuickForm::new(0, Endian::Little, LOW_BYTE, 0);
        let form = form.unless(Exception::all_but(LOW_BYTE, 250, 3));
        for byte in 0..=255u8 {
            let length = form.expect("one").length([byte, 0, 0, 0, 0, 0, 0, 1]);
            assert_eq!(length, (250..=253).contains(&byte).then(|| byte.into()));
        }
    }

    #[test]
    fn a_form_has_one_term_at_most() {
        let form = QuickForm::new(0, Endian::Little, LOW_BYTE, 0);
        let one = form.plus(LOW_BYTE, Round::NOTHING).expect("one");
        assert_eq!(one.length([200; 8]), Some(400));
        assert_eq!(one.plus(LOW_BYTE, Round::NOTHING), None);
    }

    /// A few bits of 8 bytes, one after the other.
    fn bits_of(number: u64, bits: Bits) -> u128 {
        let from = |place: u32| (place + 64 - bits.turn) % 64;
        (0..64)
            .filter(|place| bits.mask >> place & 1 == 1)
            .map(|place| u128::from(number >> from(place) & 1) << place)
            .sum()
    }

    fn bits() -> impl Strategy<Value = Bits> {
        let mask = prop_oneof![any::<u64>(), (0..64_u32).prop_map(|by| u64::MAX >> by)];
        (0..64_u32, mask).prop_map(|(turn, mask)| Bits { turn, mask })
    }

    proptest! {
        #[test]
        fn the_length_is_the_sum_of_its_parts(
            (word, big, bias) in (any::<[u8; 8]>(), any::<bool>(), any::<u64>()),
            (length, part) in (bits(), bits()),
            times in prop_oneof![Just(1), any::<u64>()],
            (plus, keep) in any::<(u64, u64)>(),
            shift in prop_oneof![Just(0), 0..64_u32],
            longest in (0..64_u32).prop_map(|by| u64::MAX >> by),
        ) {
            let (endian, number) = if big {
                (Endian::Big, u64::from_be_bytes(word))
            } else {
                (Endian::Little, u64::from_le_bytes(word))
            };
            let round = Round { times, plus, keep, shift };
            let wide = 1_u128 << 64;
            let sum = (bits_of(number, part) * u128::from(times) + u128::from(plus)) % wide;
            let more = (sum & u128::from(keep)) / (1 << shift);
            let expected = (bits_of(number, length) + u128::from(bias) + more) % wide;
            let form = QuickForm::new(0, endian, length, bias).up_to(longest);
            let form = form.plus(part, round).expect("one term");
            let expected = u64::try_from(expected).expect("below 2^64");
            let said = (1..=longest).contains(&expected).then_some(expected);
            prop_assert_eq!(form.length(word), said);
        }
    }
}
