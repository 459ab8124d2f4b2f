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
use std::iter;
use std::num::NonZeroU64;
use std::ops::Range;

use crate::alu::low;
use crate::recognise::number::LOW;
use crate::recognise::round::Round;
use crate::recognise::sum::Sum;
use crate::recognise::tree::{Run, Step};
use crate::recognise::word::{Word, word};

#[derive(Clone, Debug)]
pub(super) struct Way {
    /// The step where it begins.
    begin: usize,
    /// Where the 8 bytes are.
    offset: usize,
    /// The order in which they are a number: that of all its words.
    is_big: bool,
    tests: Vec<Test>,
    last: Last,
    /// What it is about.
    bytes: Range<usize>,
    /// Bytes that must be there for its steps: more than it is about, perhaps.
    need: usize,
}

/// What is at the end of a way. (With `repr` it is known by one look at a number of its own.)
#[derive(Clone, Debug)]
#[repr(u8)]
enum Last {
    /// Of the same 8 bytes.
    Length(Length),
    /// Of others.
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

/// Some bits, or none, and a constant; then perhaps others, each with something that is done with it.
#[derive(Clone, Debug)]
struct Length {
    word: Word,
    bias: u64,
    more: Vec<(Word, Round)>,
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

/// Where a way leads to, as far as that is known from its 8 bytes.
pub(super) enum ShortEnd {
    Length(NonZeroU64),
    Turn(usize),
    /// To what is at its end.
    Last,
    /// To the step where it begins: there are too few bytes, or it is no length.
    Step,
}

/// The span of all numbers but one.
const NO_SINGLE: u64 = u64::MAX - 1;

/// Bytes that are read at once.
const WORD_BYTES: usize = 8;

/// Of no byte: whatever it is joined with remains.
const NO_BYTES: Range<usize> = Range {
    start: usize::MAX,
    end: 0,
};

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
            is_big: false,
            tests: Vec::new(),
            last,
            bytes: NO_BYTES,
            need: 0,
        }
    }

    fn length(begin: usize, sum: &Sum) -> Option<Self> {
        if let Some(constant) = sum.as_constant()
            && low(constant).cast_signed() <= 0
        {
            return None;
        }
        let in_a_word = || {
            let length = Length::new(sum)?;
            let (bytes, is_big) = (length.bytes(), length.is_big());
            let way = Self::to(begin, Last::Length(length));
            if bytes.is_empty() {
                return Some(way);
            }
            way.about(&bytes, is_big)
        };
        in_a_word().or_else(|| Some(Self::to(begin, Last::Sum(Box::new(sum.clone())))))
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
                    NO_SINGLE.checked_sub(span)?,
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
    fn behind(&self, begin: usize, test: Test) -> Option<Self> {
        let bytes = test.word.bytes();
        let both = join(&bytes, &self.bytes);
        let is_big = test.word.is_big();
        let (mut way, test) = [self.is_big, is_big]
            .into_iter()
            .find_map(|is_big| {
                let way = self.clone().about(&both, is_big)?;
                Some((way, test.clone().about(both.start, is_big)?))
            })
            .or_else(|| {
                let way = Self::to(begin, Last::Turn(self.begin)).about(&bytes, is_big)?;
                Some((way, test.about(bytes.start, is_big)?))
            })?;
        way.begin = begin;
        way.tests.insert(0, test);
        Some(way)
    }

    /// The same, with 8 bytes that have all of these, if there are such, and in this order.
    fn about(mut self, bytes: &Range<usize>, is_big: bool) -> Option<Self> {
        let offset = bytes.start;
        if bytes.end.checked_sub(offset)? > WORD_BYTES {
            return None;
        }
        let tests = self.tests.into_iter();
        self.tests = tests
            .map(|test| test.about(offset, is_big))
            .collect::<Option<_>>()?;
        if let Last::Length(length) = &mut self.last {
            for word in length.words_mut() {
                *word = word.in_order(is_big)?.moved_to(offset);
            }
        }
        (self.offset, self.is_big, self.bytes) = (offset, is_big, bytes.clone());
        Some(self)
    }

    /// Whether it ends with a length that [`short_end`](Self::short_end) says.
    pub(super) const fn has_length(&self) -> bool {
        matches!(self.last, Last::Length(_))
    }

    /// Whether it leads to no message, or to none without the instructions.
    fn is_dead(&self) -> bool {
        self.tests.is_empty() && matches!(self.last, Last::Step(_))
    }

    /// Where the way leads to, as far as 8 bytes say it.
    #[inline(always)]
    pub(super) fn short_end(&self, bytes: &[u8]) -> ShortEnd {
        let Some(word) = word(bytes, self.offset).filter(|_| bytes.len() >= self.need) else {
            return ShortEnd::Step;
        };
        let word = if self.is_big {
            u64::from_be_bytes(word)
        } else {
            u64::from_le_bytes(word)
        };
        for test in &self.tests {
            // A branch that goes the same way as a rule, and not a choice between two addresses, for
            // which the processor would wait.
            if test.word.of_number(word).wrapping_sub(test.low) <= test.span {
                return ShortEnd::Turn(test.to);
            }
        }
        match &self.last {
            Last::Length(length) => match as_length(length.of_number(word)) {
                Some(length) => ShortEnd::Length(length),
                None => ShortEnd::Step,
            },
            Last::Turn(at) => ShortEnd::Turn(*at),
            _ => ShortEnd::Last,
        }
    }

    #[inline(always)]
    pub(super) fn end(&self, bytes: &[u8]) -> End<'_> {
        match (self.short_end(bytes), &self.last) {
            (ShortEnd::Length(length), _) => End::Length(length),
            (ShortEnd::Turn(at), _) => End::Turn(at),
            (ShortEnd::Last, Last::Sum(sum)) => match sum.of_words(bytes).and_then(as_length) {
                Some(length) => End::Length(length),
                None => End::Step(self.begin),
            },
            (ShortEnd::Last, Last::Labelled(labelled)) => End::Labelled(labelled),
            (ShortEnd::Last, Last::Decide(decision)) => match decision.next(bytes) {
                Some(next) => End::Turn(next),
                None => End::Step(self.begin),
            },
            (ShortEnd::Last, Last::Step(at)) => End::Step(*at),
            _ => End::Step(self.begin),
        }
    }

    /// The step where it begins.
    pub(super) const fn begin(&self) -> usize {
        self.begin
    }
}

fn join(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.min(b.start)..a.end.max(b.end)
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

/// What a result says, if it is a length. (For no length, the general form knows what to say.)
#[inline(always)]
fn as_length(result: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(low(result).into()).filter(|length| length.get() <= LONGEST)
}

impl Test {
    /// The same, of a word from another offset and in this order.
    fn about(mut self, offset: usize, is_big: bool) -> Option<Self> {
        if let Some(word) = self.word.in_order(is_big) {
            self.word = word.moved_to(offset);
            return Some(self);
        }
        // Whether it is a number, or is not, can be asked of its bytes in any order.
        let before = match self.span {
            0 => 0,
            NO_SINGLE => 1,
            _ => return None,
        };
        let value = self.low.wrapping_sub(before);
        let (word, value) = self.word.exchanged(value)?;
        (self.word, self.low) = (word.moved_to(offset), value.wrapping_add(before));
        Some(self)
    }
}

impl Length {
    /// Nothing, if a piece is none of the message, or more is done with it than a round says.
    fn new(sum: &Sum) -> Option<Self> {
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
    fn is_big(&self) -> bool {
        match &self.more[..] {
            [(word, _), ..] => word.is_big(),
            [] => self.word.is_big(),
        }
    }

    fn words_mut(&mut self) -> impl Iterator<Item = &mut Word> {
        iter::once(&mut self.word).chain(self.more.iter_mut().map(|(word, _)| word))
    }

    /// What it is about; empty, if it is a constant.
    fn bytes(&self) -> Range<usize> {
        let words = iter::once(&self.word).chain(self.more.iter().map(|(word, _)| word));
        words.fold(NO_BYTES, |both, word| join(&both, &word.bytes()))
    }

    #[inline(always)]
    fn of_number(&self, word: u64) -> u64 {
        let mut length = self.word.of_number(word).wrapping_add(self.bias);
        for (part, round) in &self.more {
            length = length.wrapping_add(round.of(part.of_number(word)));
        }
        length
    }
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
