//! The usual way from a step of a tree to its end: some tests, of which none holds, then a length.
//!
//! A tree is a preface, a version, a flag that hardly a message has, and a length at the end of all
//! that. Step by step, the processor would go from one to the next by their numbers, jump to what each
//! of them is, and load what it is about. Most headers are short: a way takes the steps together that
//! look at the same 8 bytes, which are loaded once, and says at once what is at their end. Where a test
//! does hold, or other bytes are asked for, another way begins.

use std::num::NonZeroU64;
use std::ops::Range;

use crate::alu::low;
use crate::recognise::number::Change;
use crate::recognise::tree::{Run, Step, Sum, changed};
use crate::recognise::word::{Word, word};

#[derive(Clone, Debug)]
pub(super) struct Way {
    /// The step where it begins.
    begin: usize,
    /// Where the 8 bytes are.
    offset: usize,
    tests: Vec<Test>,
    last: Last,
    /// What it is about.
    bytes: Range<usize>,
    /// Bytes that must be there for its steps: more than it is about, perhaps.
    need: usize,
}

/// What is at the end of a way.
#[derive(Clone, Debug)]
enum Last {
    /// In the same 8 bytes.
    Length(Length),
    Other(Box<Other>),
    /// The way that begins at this step.
    Turn(usize),
    /// A step that has no quick form.
    Step(usize),
}

/// Whether some bits of the 8 bytes, read in little-endian order, are `value`.
#[derive(Clone, Debug)]
struct Test {
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
    /// Bytes that must be there.
    need: usize,
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

/// Bytes that are read at once.
const WORD_BYTES: usize = 8;

impl Way {
    /// The way from a step on, of which the ways from those before it are known.
    pub(super) fn new(begin: usize, step: &Step, before: &[Self]) -> Self {
        Self::known(begin, step, before).unwrap_or_else(|| Self::to(begin, Last::Step(begin)))
    }

    /// A way without tests that looks at nothing.
    const fn to(begin: usize, last: Last) -> Self {
        Self {
            begin,
            offset: 0,
            tests: Vec::new(),
            last,
            // Of no byte: whatever it is joined with remains.
            bytes: Range {
                start: usize::MAX,
                end: 0,
            },
            need: 0,
        }
    }

    fn known(begin: usize, step: &Step, before: &[Self]) -> Option<Self> {
        let need = step.need;
        match &step.then {
            Run::Decide {
                sum,
                minus: None,
                keep,
                span: 0,
                inside,
                outside,
            } => {
                let word = tested(sum, *keep)?;
                let value = sum.bias.wrapping_neg() & keep;
                let test = |offset| {
                    let word = word.moved_to(offset);
                    Test {
                        mask: word.as_it_lies(word.mask()),
                        value: word.as_it_lies(value),
                        inside: *inside,
                    }
                };
                let bytes = word.bytes();
                let alone = Self::to(begin, Last::Turn(*outside)).about(bytes.clone())?;
                let rest = before.get(*outside)?;
                let both = bytes.start.min(rest.bytes.start)..bytes.end.max(rest.bytes.end);
                let mut way = match rest.clone().about(both) {
                    Some(together) => Self { begin, ..together },
                    None => alone,
                };
                way.tests.insert(0, test(way.offset));
                way.need = way.need.max(need);
                Some(way)
            }
            Run::Decide { .. } | Run::Ask => None,
            Run::Length(sum) => {
                let length = Changed::new(sum)?;
                if !length.then.is_empty() || sum.is_constant() {
                    return Some(Self::to(begin, Last::other(need, length, None, None)));
                }
                let bytes = length.length.word.bytes();
                let way = Self::to(begin, Last::Length(length.length)).about(bytes)?;
                Some(Self { need, ..way })
            }
            Run::Labelled(sums) => {
                let label = |sum: &Option<Sum>| match sum {
                    Some(sum) => Changed::new(sum).map(Some),
                    None => Some(None),
                };
                let (length, key, class) = &**sums;
                let (length, key, class) = (Changed::new(length)?, label(key)?, label(class)?);
                Some(Self::to(begin, Last::other(need, length, key, class)))
            }
        }
    }

    /// The same, with 8 bytes that have all of these, if there are such.
    fn about(mut self, bytes: Range<usize>) -> Option<Self> {
        let offset = bytes.start;
        if bytes.end.checked_sub(offset)? > WORD_BYTES {
            return None;
        }
        for test in &mut self.tests {
            // What it is about lies behind the new offset, and within 8 bytes from there.
            let by = 8 * (self.offset - offset);
            (test.mask, test.value) = (test.mask << by, test.value << by);
        }
        if let Last::Length(length) = &mut self.last {
            length.word = length.word.moved_to(offset);
        }
        (self.offset, self.bytes) = (offset, bytes);
        Some(self)
    }

    pub(super) const fn has_length(&self) -> bool {
        matches!(self.last, Last::Length(_))
    }

    #[inline(always)]
    pub(super) fn end(&self, bytes: &[u8]) -> End<'_> {
        let Some(word) = word(bytes, self.offset).filter(|_| bytes.len() >= self.need) else {
            return End::Step(self.begin);
        };
        let word = u64::from_le_bytes(word);
        for test in &self.tests {
            // A branch that goes the same way as a rule, and not a choice between two addresses, for
            // which the processor would wait.
            if word & test.mask == test.value {
                return End::Turn(test.inside);
            }
        }
        match &self.last {
            Last::Length(length) => match NonZeroU64::new(length.of_little(word)) {
                // (What has more than 31 bits, or none, is for the general form.)
                Some(length) if length.get() <= LONGEST => End::Length(length),
                _ => End::Step(self.begin),
            },
            Last::Other(other) => End::Other(other),
            Last::Turn(at) => End::Turn(*at),
            Last::Step(at) => End::Step(*at),
        }
    }

    /// The step where it begins.
    pub(super) const fn begin(&self) -> usize {
        self.begin
    }
}

/// The word of a test whether a sum, of which `keep` counts, is 0.
fn tested(sum: &Sum, keep: u64) -> Option<Word> {
    let piece = &sum.first;
    // All bits count, in the general form too; and there is a value for which nothing is left.
    let others = piece.word.mask() & !keep | sum.bias.wrapping_neg() & keep & !piece.word.mask();
    (sum.is_single() && !piece.is_of_len && others == 0).then_some(piece.word)
}

/// The longest message of a program: its result has a sign.
const LONGEST: u64 = i32::MAX as u64;

impl Last {
    fn other(need: usize, length: Changed, key: Option<Changed>, class: Option<Changed>) -> Self {
        Self::Other(Box::new(Other {
            need,
            length,
            key,
            class,
        }))
    }
}

impl Other {
    /// Nothing, if some of the words are not all there.
    #[inline(always)]
    pub(super) fn values(&self, bytes: &[u8]) -> Option<(u32, Option<u32>, Option<u32>)> {
        if bytes.len() < self.need {
            return None;
        }
        let value = |number: &Changed| number.of(bytes).map(low);
        let label = |number: &Option<Changed>| match number {
            Some(number) => value(number).map(Some),
            None => Some(None),
        };
        Some((value(&self.length)?, label(&self.key)?, label(&self.class)?))
    }
}

impl Length {
    #[inline(always)]
    const fn of_little(&self, word: u64) -> u64 {
        self.word.of_little(word).wrapping_add(self.bias)
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
