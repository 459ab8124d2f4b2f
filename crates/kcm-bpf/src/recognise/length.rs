//! A length that is in 8 bytes of the message: as a way ends with it, and as a quick form says it.

use std::iter;
use std::ops::Range;

use kcm_frame::{Bits, Endian, QuickForm};

use crate::alu::low;
use crate::recognise::number::LOW;
use crate::recognise::round::Round;
use crate::recognise::sum::Sum;
use crate::recognise::word::{NO_BYTES, Word};

/// Some bits, or none, and a constant; then perhaps others, each with something that is done with it.
#[derive(Clone, Debug)]
pub(super) struct Length {
    pub(super) word: Word,
    pub(super) bias: u64,
    pub(super) more: Vec<(Word, Round)>,
}

/// The longest message of a program: its result has a sign.
pub(super) const LONGEST: u64 = i32::MAX as u64;

impl Length {
    /// Nothing, if a piece is none of the message, or more is done with it than a round says.
    pub(super) fn new(sum: &Sum) -> Option<Self> {
        let mut length = Self {
            word: Word::nothing(),
            bias: sum.bias(),
            more: Vec::new(),
        };
        for (word, rounds) in sum.words()? {
            match *rounds {
                [] if length.word == Word::nothing() => length.word = word,
                [] => length.more.push((word, Round::NOTHING)),
                [round] => length.more.push((word, round)),
                _ => return None,
            }
        }
        Some(length)
    }

    /// The order of the words; if not all have the same, they are no one way.
    pub(super) fn is_big(&self) -> bool {
        match &self.more[..] {
            [(word, _), ..] => word.is_big(),
            [] => self.word.is_big(),
        }
    }

    /// The same, of words from another offset on and in this order; nothing, if it cannot be that.
    pub(super) fn move_to(&mut self, offset: usize, is_big: bool) -> Option<()> {
        let more = self.more.iter_mut().map(|(word, _)| word);
        for word in iter::once(&mut self.word).chain(more) {
            *word = word.in_order(is_big)?.moved_to(offset);
        }
        Some(())
    }

    /// The same as a form of the 8 bytes from its words' offset on, in their order; nothing, if that is more
    /// than a form can say.
    pub(super) fn quick_form(&self, offset: usize, is_big: bool) -> Option<QuickForm> {
        let endian = if is_big { Endian::Big } else { Endian::Little };
        // What the form says is below 2³¹ and the same sum, modulo 2³²: so it is the program's result, of
        // which these bits count. That it says something, too, the upper bits of the field are left out,
        // and a constant below zero is one in 64 bits.
        let bits = Bits {
            mask: self.word.mask() & LOW,
            ..self.word.bits()
        };
        let form = QuickForm::new(offset, endian, bits, with_sign(self.bias)).up_to(LONGEST);
        match self.more[..] {
            [] => Some(form),
            [(word, round)] => form.plus(word.bits(), round.formula()),
            _ => None,
        }
    }

    /// What it is about; empty, if it is a constant.
    pub(super) fn bytes(&self) -> Range<usize> {
        let words = iter::once(&self.word).chain(self.more.iter().map(|(word, _)| word));
        words.fold(NO_BYTES, |both, word| join(&both, &word.bytes()))
    }

    #[inline(always)]
    pub(super) fn of_number(&self, word: u64) -> u64 {
        let mut length = self.word.of_number(word).wrapping_add(self.bias);
        for (part, round) in &self.more {
            length = length.wrapping_add(round.of(part.of_number(word)));
        }
        length
    }
}

pub(super) fn join(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.min(b.start)..a.end.max(b.end)
}

/// The same number of 32 bits, of those below zero in 64.
pub(super) fn with_sign(number: u64) -> u64 {
    i64::from(low(number).cast_signed()).cast_unsigned()
}
