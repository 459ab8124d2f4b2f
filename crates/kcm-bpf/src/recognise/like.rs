//! From what a program found out about a message to a form for all messages like it.
//!
//! All that matters must be in 8 bytes. Guards that a form has room for are its exceptions: what was
//! asked of one number, once or several times, is one interval around what it is in this message. The
//! others are pinned, as is what of the length is more than some bits and one part more; all pinned
//! bits together are one number, and to be another is one exception.
//!
//! What is pinned first? Of guards those of the fewest bits: they tell of kinds, and the many bits of a
//! length have bounds. Of lengths the upper bits, which change least from one message to the next.

use kcm_frame::{Bits, Exception, QuickForm};

use crate::recognise::condition::Condition;
use crate::recognise::length::Length;
use crate::recognise::number::Number;
use crate::recognise::sum::Sum;
use crate::recognise::term::Term;
use crate::recognise::trace::{Trace, trace};
use crate::recognise::tree::{Decision, Test};
use crate::recognise::word::Word;
use crate::verifier::Verified;

/// Bytes that a form looks at.
const WORD_BYTES: usize = 8;

/// The form for messages like the one that begins here, if there is one.
pub(crate) fn form_like(verified: &Verified, message: &[u8]) -> Option<QuickForm> {
    let trace = trace(verified, message)?;
    let numbers = trace.guards.iter().map(|(condition, _)| &condition.number);
    let numbers = numbers.chain([&trace.result]);
    let bits = numbers.flat_map(Number::packet_bits);
    let bits = bits.chain(trace.pinned.iter().copied());
    let (first, last) = bits.fold((u32::MAX, 0), |(first, last), at| {
        (first.min(at / 8), last.max(at / 8))
    });
    let (first, end) = (
        usize::try_from(first).ok()?,
        usize::try_from(last).ok()?.checked_add(1)?,
    );
    // As far in front as can be: fewer bytes have to be there.
    let offset = first.min(end.saturating_sub(WORD_BYTES));
    if end - offset > WORD_BYTES {
        return None;
    }
    let message = message.get(offset..)?.first_chunk()?;
    // In one order of bytes it may pin less than in the other.
    let forms = [true, false].into_iter().filter_map(|is_big| {
        let mut like = Like {
            trace: &trace,
            offset,
            is_big,
            message: u64::from_le_bytes(*message),
            pinned: 0,
        };
        like.pinned = like.bits(trace.pinned.iter().copied());
        like.form()
    });
    forms
        .min_by_key(|(_, pinned)| *pinned)
        .map(|(form, _)| form)
}

/// Bits of the 8 bytes are numbered as they lie there, in little-endian order.
struct Like<'a> {
    trace: &'a Trace,
    offset: usize,
    /// The order in which the form reads its bytes.
    is_big: bool,
    message: u64,
    pinned: u64,
}

/// What some bits can be: from `low` on, at most `span` above it.
struct Allowed {
    word: Word,
    low: u64,
    span: u64,
}

impl Like<'_> {
    /// The form, and how many bits it has pinned.
    fn form(mut self) -> Option<(QuickForm, u32)> {
        loop {
            match self.try_form() {
                Ok(form) => return Some((form, self.pinned.count_ones())),
                Err(bits) if bits & !self.pinned == 0 => return None,
                Err(bits) => self.pinned |= bits,
            }
        }
    }

    /// The form, or what must be pinned for one.
    fn try_form(&self) -> Result<QuickForm, u64> {
        let allowed = self.allowed()?;
        let result = self.simplified(&self.trace.result)?;
        let length = Sum::new(&result).and_then(|sum| Length::new(&sum));
        let form = length.and_then(|mut length| {
            length.move_to(self.offset, self.is_big)?;
            length.quick_form(self.offset, self.is_big)
        });
        let form = form.ok_or_else(|| self.least(&result))?;
        let others = allowed.iter().map(|allowed| {
            let Allowed { word, low, span } = *allowed;
            Exception::all_but(word.bits(), low, span)
        });
        let pinned = (self.pinned != 0).then(|| {
            let bits = Bits {
                turn: 0,
                mask: self.in_order(self.pinned),
            };
            Exception::all_but(bits, self.in_order(self.message & self.pinned), 0)
        });
        let mut others = others.chain(pinned);
        let form = others.try_fold(form.needing(self.trace.need), QuickForm::unless);
        // Of this message it says the length, unless the upper bits of something that is done with a part
        // of it are in the way.
        form.filter(|form| form.length(self.message.to_le_bytes()).is_some())
            .ok_or_else(|| self.bits(result.packet_bits()))
    }

    /// What must hold of bits that are not pinned: no more than a form has exceptions for.
    fn allowed(&self) -> Result<Vec<Allowed>, u64> {
        let mut all: Vec<Allowed> = Vec::new();
        for (condition, is_inside) in &self.trace.guards {
            let bits = self.bits(condition.number.packet_bits());
            if bits & !self.pinned == 0 {
                continue;
            }
            let new = self.allowed_by(condition, *is_inside).ok_or(bits)?;
            let free = self.free(&new.word);
            if new.span == 0 || free.count_ones() <= 1 {
                return Err(bits);
            }
            match all.iter_mut().find(|old| old.word == new.word) {
                Some(old) => old.and(&new, self.value(&new.word)),
                None => all.push(new),
            }
        }
        let room = QuickForm::MOST_EXCEPTIONS - usize::from(self.pinned != 0);
        if all.len() <= room {
            return Ok(all);
        }
        let free = all.iter().map(|allowed| self.free(&allowed.word));
        Err(free.min_by_key(|bits| bits.count_ones()).unwrap_or(0))
    }

    /// As an interval of some bits; nothing, if it is none.
    fn allowed_by(&self, condition: &Condition, is_inside: bool) -> Option<Allowed> {
        let condition = Condition {
            number: self.simplified(&condition.number).ok()?,
            ..*condition
        };
        let test = Test::new(&Decision::new(&condition, 0, 0)?, is_inside)?;
        let test = test.about(self.offset, self.is_big)?;
        let Exception { low, span, .. } = test.as_exception();
        let allowed = Allowed {
            word: test.word,
            low: low.wrapping_add(span).wrapping_add(1),
            span: (u64::MAX - 1).checked_sub(span)?,
        };
        Some(allowed)
    }

    /// With what is pinned in its place; else all of it should be.
    fn simplified(&self, number: &Number) -> Result<Number, u64> {
        let simplified = number.with_known(|at| {
            let bit = self.bits([at]);
            (self.pinned & bit != 0).then_some(self.message & bit != 0)
        });
        simplified.ok_or_else(|| self.bits(number.packet_bits()))
    }

    /// The bits of a length that change least: of several parts the smallest, of a single one those of the
    /// byte that counts most.
    fn least(&self, length: &Number) -> u64 {
        let bits = |term: &_| self.bits(Term::packet_bits(term));
        match &length.terms[..] {
            [term] => {
                let top = term.packet_bits().last().map(|at| at / 8);
                self.bits(term.packet_bits().filter(|at| Some(at / 8) == top))
            }
            terms => (terms.iter().map(bits))
                .min_by_key(|bits| bits.count_ones())
                .unwrap_or(0),
        }
    }

    /// Bits of the message as those of its 8 bytes.
    fn bits(&self, bits: impl IntoIterator<Item = u32>) -> u64 {
        let place = |at: u32| (at as usize).checked_sub(8 * self.offset);
        let bits = bits.into_iter().filter_map(place);
        bits.fold(0, |bits, at| bits | 1 << at)
    }

    /// Those of a word that are not pinned.
    fn free(&self, word: &Word) -> u64 {
        word.as_it_lies(word.mask()) & !self.pinned
    }

    fn value(&self, word: &Word) -> u64 {
        word.of_number(self.in_order(self.message))
    }

    /// Bits as they lie there, as the form reads them.
    const fn in_order(&self, bits: u64) -> u64 {
        if self.is_big { bits.swap_bytes() } else { bits }
    }
}

impl Allowed {
    /// What both allow, as far as it is one interval with this number, which both allow.
    fn and(&mut self, other: &Self, number: u64) {
        let below = |allowed: &Self| number.wrapping_sub(allowed.low);
        let above = |allowed: &Self| allowed.span - below(allowed);
        let (down, up) = (below(self).min(below(other)), above(self).min(above(other)));
        (self.low, self.span) = (number.wrapping_sub(down), down + up);
    }
}
