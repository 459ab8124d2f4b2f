//! The usual way from a step of a tree to its end: some tests, of which none holds, then a length.
//!
//! A tree is a preface, a version, a flag that hardly a message has, and a length at the end of all
//! that. Step by step, the processor would go from one to the next by their numbers, jump to what each
//! of them is, and load what it is about. Most headers are short: a way takes the steps together that
//! look at the same 8 bytes, which are loaded once, and says at once what is at their end. Where a test
//! does hold, or other bytes are asked for, another way begins.
//!
//! ```text
//! LDAP:  is byte 0 not 0x30? --yes--> another way: -71
//!        has byte 1 its top bit? --yes--> another way: as many bytes of length as byte 1 says
//!        the length is byte 1 and 2 more
//! ```
//!
//! Which side of a decision is the usual one is a guess, by what can be seen: an error is not, nor is
//! what only the instructions know; else it is the side that more values of the field lead to.

use std::hint::cold_path;
use std::num::NonZeroU64;
use std::ops::Range;

use crate::alu::low;
use crate::recognise::number::LOW;
use crate::recognise::sum::Sum;
use crate::recognise::tree::{Run, Step};
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
    /// Some bits of the same 8 bytes, or none, and a constant.
    Length(Word, u64),
    /// More than that.
    Sum(Box<Sum>),
    Labelled(Box<Labelled>),
    Decide(Box<Decision>),
    /// The way that begins at this step.
    Turn(usize),
    /// A step that has no quick form.
    Step(usize),
}

/// Whether `word - low`, of the 8 bytes, is not above `span`.
#[derive(Clone, Debug)]
struct Test {
    word: Word,
    low: u64,
    span: u64,
    /// Where it goes on if so.
    to: usize,
}

/// A comparison of more than a piece of 8 bytes.
#[derive(Clone, Debug)]
struct Decision {
    sum: Sum,
    low: u64,
    keep: u64,
    span: u64,
    usual: usize,
    other: usize,
    /// The other one is where it is inside.
    is_other_inside: bool,
}

/// A length with a key, a class, or both.
#[derive(Clone, Debug)]
pub(super) struct Labelled {
    length: Sum,
    key: Option<Sum>,
    class: Option<Sum>,
}

/// Where a way leads to.
pub(super) enum End<'a> {
    Length(NonZeroU64),
    Labelled(&'a Labelled),
    /// To the way that begins at this step.
    Turn(usize),
    /// To a step that has no quick form, or not with these bytes.
    Step(usize),
}

/// Bytes that are read at once.
const WORD_BYTES: usize = 8;

/// The longest message of a program: its result has a sign.
const LONGEST: u64 = i32::MAX as u64;

impl Way {
    /// The way from a step on, of which the ways from those before it are known.
    pub(super) fn new(begin: usize, step: &Step, before: &[Self]) -> Self {
        let way = match &step.then {
            Run::Decide {
                inside, outside, ..
            } => match (before.get(*inside), before.get(*outside)) {
                (Some(inside), Some(outside)) => Self::decision(begin, &step.then, inside, outside),
                _ => None,
            },
            Run::Length(sum) => Self::length(begin, sum),
            Run::Labelled(sums) => {
                let (length, key, class) = (**sums).clone();
                let labelled = Labelled { length, key, class };
                Some(Self::to(begin, Last::Labelled(Box::new(labelled))))
            }
            Run::Ask => None,
        };
        let way = way.unwrap_or_else(|| Self::to(begin, Last::Step(begin)));
        Self {
            need: way.need.max(step.need),
            ..way
        }
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

    fn length(begin: usize, sum: &Sum) -> Option<Self> {
        if let Some(constant) = sum.as_constant() {
            let is_length = low(constant).cast_signed() > 0;
            return is_length.then(|| Self::to(begin, Last::Length(Word::nothing(), constant)));
        }
        let Some((word, bias)) = sum.as_word() else {
            return Some(Self::to(begin, Last::Sum(Box::new(sum.clone()))));
        };
        Self::to(begin, Last::Length(word, bias)).about(word.bytes())
    }

    fn decision(begin: usize, run: &Run, inside: &Self, outside: &Self) -> Option<Self> {
        let Run::Decide {
            sum,
            low,
            keep,
            span,
            ..
        } = run
        else {
            return None;
        };
        let word = sum.as_word();
        let most = word.map_or(*keep, |(word, _)| word.mask());
        let is_other_inside = !is_usual(inside, outside, *span, most);
        let (usual, other) = if is_other_inside {
            (outside, inside)
        } else {
            (inside, outside)
        };
        if let Some((word, bias)) = word
            && let Some((low, span)) = interval(low.wrapping_sub(bias), *span, *keep, word.mask())
        {
            let (low, span) = if is_other_inside {
                (low, span)
            } else {
                // All other numbers.
                (
                    low.wrapping_add(span).wrapping_add(1),
                    (u64::MAX - 1).checked_sub(span)?,
                )
            };
            let to = other.begin;
            let test = Test {
                word,
                low,
                span,
                to,
            };
            return usual.behind(begin, test);
        }
        let decision = Decision {
            sum: sum.clone(),
            low: *low,
            keep: *keep,
            span: *span,
            usual: usual.begin,
            other: other.begin,
            is_other_inside,
        };
        Some(Self::to(begin, Last::Decide(Box::new(decision))))
    }

    /// The way that is a test and then this one.
    fn behind(&self, begin: usize, mut test: Test) -> Option<Self> {
        let bytes = test.word.bytes();
        let both = bytes.start.min(self.bytes.start)..bytes.end.max(self.bytes.end);
        let mut way = match self.clone().about(both) {
            Some(together) => Self { begin, ..together },
            None => Self::to(begin, Last::Turn(self.begin)).about(bytes)?,
        };
        test.word = test.word.moved_to(way.offset);
        way.tests.insert(0, test);
        Some(way)
    }

    /// The same, with 8 bytes that have all of these, if there are such.
    fn about(mut self, bytes: Range<usize>) -> Option<Self> {
        let offset = bytes.start;
        if bytes.end.checked_sub(offset)? > WORD_BYTES {
            return None;
        }
        for test in &mut self.tests {
            test.word = test.word.moved_to(offset);
        }
        if let Last::Length(word, _) = &mut self.last {
            *word = word.moved_to(offset);
        }
        (self.offset, self.bytes) = (offset, bytes);
        Some(self)
    }

    pub(super) const fn has_length(&self) -> bool {
        matches!(self.last, Last::Length(..) | Last::Sum(_))
    }

    /// Whether it leads to no message, or to none without the instructions.
    fn is_dead(&self) -> bool {
        self.tests.is_empty() && matches!(self.last, Last::Step(_))
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
            if test.word.of_little(word).wrapping_sub(test.low) <= test.span {
                return End::Turn(test.to);
            }
        }
        match &self.last {
            Last::Length(part, bias) => self.is_length(part.of_little(word).wrapping_add(*bias)),
            Last::Sum(sum) => match sum.of_words(bytes) {
                Some(sum) => self.is_length(sum),
                None => End::Step(self.begin),
            },
            Last::Labelled(labelled) => End::Labelled(labelled),
            Last::Decide(decision) => match decision.next(bytes) {
                Some(next) => End::Turn(next),
                None => End::Step(self.begin),
            },
            Last::Turn(at) => End::Turn(*at),
            Last::Step(at) => End::Step(*at),
        }
    }

    #[inline(always)]
    fn is_length(&self, result: u64) -> End<'_> {
        match NonZeroU64::new(low(result).into()) {
            // (What has more than 31 bits, or none, is for the general form.)
            Some(length) if length.get() <= LONGEST => End::Length(length),
            _ => End::Step(self.begin),
        }
    }

    /// The step where it begins.
    pub(super) const fn begin(&self) -> usize {
        self.begin
    }
}

/// Whether it is usual that a number, of those up to `most`, is in an interval of `span` and one more.
fn is_usual(inside: &Way, outside: &Way, span: u64, most: u64) -> bool {
    if inside.is_dead() || outside.is_dead() {
        return outside.is_dead();
    }
    // Of two halves, the one that is known sooner.
    let is_half = span == most / 2;
    let is_sooner = inside.has_length() && inside.tests.len() < outside.tests.len();
    span > most / 2 || is_half && is_sooner
}

/// The interval among numbers of 64 bits, for a number that has no more bits than `most`.
fn interval(low: u64, span: u64, keep: u64, most: u64) -> Option<(u64, u64)> {
    if keep == u64::MAX {
        return Some((low, span));
    }
    // It may go round, from the largest number of 32 bits to 0.
    let low = low & keep;
    let goes_round = low + span > keep;
    let span = if goes_round { span | !LOW } else { span };
    (keep == LOW && most <= LOW).then_some((low, span))
}

impl Decision {
    /// Nothing, if some of the words are not all there.
    #[inline(always)]
    fn next(&self, bytes: &[u8]) -> Option<usize> {
        let difference = self.sum.of_words(bytes)?.wrapping_sub(self.low) & self.keep;
        if (difference <= self.span) == self.is_other_inside {
            cold_path();
            return Some(self.other);
        }
        Some(self.usual)
    }
}

impl Labelled {
    /// Nothing, if some of the words are not all there.
    #[inline(always)]
    pub(super) fn values(&self, bytes: &[u8]) -> Option<(u32, Option<u32>, Option<u32>)> {
        let value = |number: &Sum| number.of_words(bytes).map(low);
        let label = |number: &Option<Sum>| match number {
            Some(number) => value(number).map(Some),
            None => Some(None),
        };
        Some((value(&self.length)?, label(&self.key)?, label(&self.class)?))
    }
}
