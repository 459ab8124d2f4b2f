//! One test of a way: are some bits of its 8 bytes in an interval?

use kcm_frame::Exception;

use crate::recognise::number::LOW;
use crate::recognise::tree::step::Decision;
use crate::recognise::word::Word;

/// Whether `word - low`, as numbers of 64 bits, is not above `span`.
#[derive(Clone, Debug)]
pub(in crate::recognise) struct Test {
    pub(in crate::recognise) word: Word,
    low: u64,
    span: u64,
    /// Where it goes on if so.
    pub(super) to: usize,
}

/// The span of all numbers but one.
const ALL_BUT_ONE: u64 = u64::MAX - 1;

impl Test {
    /// Whether it is inside, or outside, if that is not usual; nothing, if it takes more than a word.
    pub(in crate::recognise) fn new(decision: &Decision, is_inside_usual: bool) -> Option<Self> {
        let (word, bias) = decision.sum.as_word()?;
        let (mut low, mut span) = (decision.low.wrapping_sub(bias), decision.span);
        if decision.keep == LOW {
            if word.mask() > LOW {
                return None;
            }
            // It may go round, from the largest number of 32 bits to 0.
            low &= LOW;
            if low + span > LOW {
                span |= !LOW;
            }
        }
        let mut to = decision.inside;
        if is_inside_usual {
            (low, span) = (
                low.wrapping_add(span).wrapping_add(1),
                ALL_BUT_ONE.checked_sub(span)?,
            );
            to = decision.outside;
        }
        Some(Self {
            word,
            low,
            span,
            to,
        })
    }

    /// The same, of a word from another offset on, and in this order.
    pub(in crate::recognise) fn about(mut self, offset: usize, is_big: bool) -> Option<Self> {
        if let Some(word) = self.word.in_order(is_big) {
            self.word = word.moved_to(offset);
            return Some(self);
        }
        // Whether it is one number, or is not, can be asked of its bytes in any order.
        let above = match self.span {
            0 => 0,
            ALL_BUT_ONE => 1,
            _ => return None,
        };
        let (word, value) = self.word.exchanged(self.low.wrapping_sub(above))?;
        (self.word, self.low) = (word.moved_to(offset), value.wrapping_add(above));
        Some(self)
    }

    pub(in crate::recognise) const fn as_exception(&self) -> Exception {
        Exception {
            bits: self.word.bits(),
            low: self.low,
            span: self.span,
        }
    }

    #[inline(always)]
    pub(super) const fn holds(&self, word: u64) -> bool {
        self.word.of_number(word).wrapping_sub(self.low) <= self.span
    }
}
