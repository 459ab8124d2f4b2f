//! The usual way from a step of a tree to its end: some tests, of which none holds, then a length.
//!
//! A tree is a preface, a version, a flag that hardly a message has, and a length at the end of all
//! that. Step by step, the processor would go from one to the next by their numbers, and jump to what
//! each of them is; a way has its tests in a row, and says at once what is at their end. Where a test
//! does hold, another way begins.

use std::num::NonZeroU64;

use crate::alu::low;
use crate::recognise::number::Change;
use crate::recognise::tree::{Piece, Run, Step, Sum, changed};
use crate::recognise::word::{Word, word};

#[derive(Clone, Debug)]
pub(super) struct Way {
    /// The step where it begins.
    pub(super) begin: usize,
    /// Bytes that must be there for all steps up to the end. (Each looks for its own word again,
    /// which costs next to nothing.)
    need: usize,
    tests: Vec<Test>,
    last: Last,
}

/// What is at the end of a way.
#[derive(Clone, Debug)]
enum Last {
    Length(Length),
    Other(Box<Other>),
    /// A step that has no quick form.
    Step(usize),
}

/// Whether some bits of 8 bytes of the message, as they lie, are `value`.
#[derive(Clone, Debug)]
struct Test {
    offset: usize,
    mask: u64,
    value: u64,
    /// Where it goes on if they are.
    inside: usize,
}

/// Some bits and a constant.
#[derive(Clone, Debug)]
struct Length {
    word: Word,
    bias: u64,
}

/// More than a plain length: one to which more is done, a constant, or with labels.
#[derive(Clone, Debug)]
pub(super) struct Other {
    length: Changed,
    key: Option<Changed>,
    class: Option<Changed>,
}

/// Some bits, what is done with them, and a constant.
#[derive(Clone, Debug)]
struct Changed {
    length: Length,
    then: Vec<Change>,
}

/// Where a way leads to.
pub(super) enum End<'a> {
    Length(NonZeroU64),
    Other(&'a Other),
    /// To the way that begins at this step.
    Turn(usize),
    /// To a step that has no quick form, with these bytes at least.
    Step(usize),
}

impl Way {
    /// The way from a step on, of which the ways from those before it are known.
    pub(super) fn new(begin: usize, step: &Step, before: &[Self]) -> Self {
        Self::known(begin, step, before).unwrap_or(Self {
            begin,
            need: 0,
            tests: Vec::new(),
            last: Last::Step(begin),
        })
    }

    fn known(begin: usize, step: &Step, before: &[Self]) -> Option<Self> {
        let mut way = Self {
            begin,
            need: step.need,
            tests: Vec::new(),
            last: Last::Step(begin),
        };
        match &step.then {
            Run::Decide {
                sum,
                minus: None,
                keep,
                span: 0,
                inside,
                outside,
            } => {
                let rest = before.get(*outside)?;
                way.tests.push(Test::new(sum, *keep, *inside)?);
                way.tests.extend_from_slice(&rest.tests);
                way.need = way.need.max(rest.need);
                way.last.clone_from(&rest.last);
            }
            Run::Decide { .. } => return None,
            Run::Length(sum) => {
                let length = Changed::new(sum)?;
                way.last = if length.then.is_empty() && !sum.is_constant() {
                    Last::Length(length.length)
                } else {
                    Last::other(length, None, None)
                };
            }
            Run::Labelled(sums) => {
                let label = |sum: &Option<Sum>| match sum {
                    Some(sum) => Changed::new(sum).map(Some),
                    None => Some(None),
                };
                let (length, key, class) = &**sums;
                way.last = Last::other(Changed::new(length)?, label(key)?, label(class)?);
            }
        }
        Some(way)
    }

    pub(super) const fn has_length(&self) -> bool {
        matches!(self.last, Last::Length(_))
    }

    #[inline(always)]
    pub(super) fn end(&self, bytes: &[u8]) -> End<'_> {
        if bytes.len() < self.need {
            return End::Step(self.begin);
        }
        for test in &self.tests {
            match test.holds(bytes) {
                // A branch that goes the same way as a rule, and not a choice between two addresses,
                // for which the processor would wait.
                Some(false) => {}
                Some(true) => return End::Turn(test.inside),
                None => return End::Step(self.begin),
            }
        }
        match &self.last {
            Last::Length(length) => match length.of(bytes).and_then(NonZeroU64::new) {
                // (What has more than 31 bits, or none, is for the general form.)
                Some(length) if length.get() <= LONGEST => End::Length(length),
                _ => End::Step(self.begin),
            },
            Last::Other(other) => End::Other(other),
            Last::Step(at) => End::Step(*at),
        }
    }
}

/// The longest message of a program: its result has a sign.
const LONGEST: u64 = i32::MAX as u64;

impl Last {
    fn other(length: Changed, key: Option<Changed>, class: Option<Changed>) -> Self {
        Self::Other(Box::new(Other { length, key, class }))
    }
}

impl Other {
    /// Nothing, if some of the words are not all there.
    #[inline(always)]
    pub(super) fn values(&self, bytes: &[u8]) -> Option<(u32, Option<u32>, Option<u32>)> {
        let value = |number: &Changed| number.of(bytes).map(low);
        let label = |number: &Option<Changed>| match number {
            Some(number) => value(number).map(Some),
            None => Some(None),
        };
        Some((value(&self.length)?, label(&self.key)?, label(&self.class)?))
    }
}

impl Test {
    /// Whether the sum, of which `keep` counts, is 0.
    fn new(sum: &Sum, keep: u64, inside: usize) -> Option<Self> {
        let Piece {
            word, is_of_len, ..
        } = &sum.first;
        // All bits count, in the general form too.
        if !sum.is_single() || *is_of_len || word.mask() & !keep != 0 {
            return None;
        }
        let (mask, value) = word.as_it_lies(sum.bias.wrapping_neg() & keep)?;
        Some(Self {
            offset: word.offset,
            mask,
            value,
            inside,
        })
    }

    #[inline(always)]
    fn holds(&self, bytes: &[u8]) -> Option<bool> {
        let word = u64::from_le_bytes(word(bytes, self.offset)?);
        Some(word & self.mask == self.value)
    }
}

impl Length {
    #[inline(always)]
    fn of(&self, bytes: &[u8]) -> Option<u64> {
        Some(self.word.of(bytes)?.wrapping_add(self.bias))
    }
}

impl Changed {
    /// Nothing, if it is more than one piece, or one of the number of bytes.
    fn new(sum: &Sum) -> Option<Self> {
        let piece = &sum.first;
        let is_of_len = piece.is_of_len && !sum.is_constant();
        (sum.more.is_empty() && !is_of_len).then(|| Self {
            length: Length {
                word: piece.word,
                bias: sum.bias,
            },
            then: piece.then.clone(),
        })
    }

    #[inline(always)]
    fn of(&self, bytes: &[u8]) -> Option<u64> {
        let value = changed(self.length.word.of(bytes)?, &self.then);
        Some(value.wrapping_add(self.length.bias))
    }
}
