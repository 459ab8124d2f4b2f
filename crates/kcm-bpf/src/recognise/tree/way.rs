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
//!
//! Where both sides of a decision about one bit are the same but for a constant, neither is a guess: they
//! are one way, and the bit counts for so much ([`Way::both`]).

use std::hint::cold_path;
use std::num::NonZeroU64;
use std::ops::Range;

use kcm_frame::QuickForm;

use crate::alu::low;
use crate::program::Outcome;
use crate::recognise::length::{LONGEST, Length, join, with_sign};
use crate::recognise::round::Round;
use crate::recognise::sum::Sum;
use crate::recognise::tree::step::{Decision, Labelled, Run, Step};
use crate::recognise::tree::test::Test;
use crate::recognise::word::{NO_BYTES, word};

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
    /// Of others, too; whether it is usual that it is inside.
    Decide(Box<Decision>, bool),
    /// The way that begins at this step.
    Turn(usize),
    /// A step that has no quick form.
    Step(usize),
}

/// Where a way leads to.
pub(super) enum End {
    Outcome(Outcome),
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

/// Bytes that are read at once.
const WORD_BYTES: usize = 8;

impl Way {
    /// The way from a step on, of which the ways from those before it are known.
    pub(super) fn new(begin: usize, step: &Step, before: &[Self]) -> Self {
        let both = Self::both(begin, step, before);
        if let Some(both) = both.filter(|both| both.tests.is_empty()) {
            return both;
        }
        let way = match &step.then {
            Run::Decide(decision) => Self::decision(begin, decision, before),
            Run::Length(sum) => Self::length(begin, sum),
            Run::Labelled(labelled) => Some(Self::to(begin, Last::Labelled(labelled.clone()))),
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

    fn decision(begin: usize, decision: &Decision, before: &[Self]) -> Option<Self> {
        let (inside, outside) = (before.get(decision.inside)?, before.get(decision.outside)?);
        if let Some((need, is_inside)) = decision.known_by_len() {
            let way = if is_inside { inside } else { outside }.clone();
            let need = way.need.max(need);
            return Some(Self { begin, need, ..way });
        }
        let is_inside_usual = is_inside_usual(decision, inside, outside);
        match Test::new(decision, is_inside_usual) {
            Some(test) if is_inside_usual => inside.behind(begin, &test),
            Some(test) => outside.behind(begin, &test),
            None => {
                let decision = Box::new(decision.clone());
                Some(Self::to(begin, Last::Decide(decision, is_inside_usual)))
            }
        }
    }

    /// Both ways of a decision about one bit, where they are the same but for a constant: WebSocket's
    /// length with a mask and without. Where one of its tests holds, it goes on at the step where it
    /// begins, whose own way must be another one then.
    pub(super) fn both(begin: usize, step: &Step, before: &[Self]) -> Option<Self> {
        let Run::Decide(decision) = &step.then else {
            return None;
        };
        let (flag, bias) = decision.sum.as_word()?;
        let side = |flag: u64| {
            let is_inside = decision.is_inside(flag.wrapping_add(bias));
            let at = if is_inside {
                decision.inside
            } else {
                decision.outside
            };
            before.get(at)
        };
        let (clear, set) = (side(0)?, side(flag.mask())?);
        let bytes = join(&flag.bytes(), &join(&clear.bytes, &set.bytes));
        let is_big = clear.is_big;
        let flag = flag.in_order(is_big)?.moved_to(bytes.start);
        let mut way = clear.clone().about(&bytes, is_big)?;
        let set = set.clone().about(&bytes, is_big)?;
        let (Last::Length(length), Last::Length(other)) = (&mut way.last, &set.last) else {
            return None;
        };
        let asked = |tests: &[Test]| -> Vec<_> { tests.iter().map(Test::as_exception).collect() };
        if asked(&way.tests) != asked(&set.tests)
            || (length.word, &length.more) != (other.word, &other.more)
        {
            return None;
        }
        // At the place of what it is worth, or a factor.
        let worth = with_sign(other.bias.wrapping_sub(length.bias));
        let more = if worth.is_power_of_two() {
            (flag.as_bit(worth.trailing_zeros())?, Round::NOTHING)
        } else {
            (flag.as_bit(0)?, Round::new(worth, 0))
        };
        length.more.push(more);
        for test in &mut way.tests {
            test.to = begin;
        }
        way.begin = begin;
        way.need = step.need.max(way.need).max(set.need);
        Some(way)
    }

    /// The way that is a test and then this one.
    fn behind(&self, begin: usize, test: &Test) -> Option<Self> {
        let bytes = test.word.bytes();
        let both = join(&bytes, &self.bytes);
        let is_big = test.word.is_big();
        let about = |way: Self, bytes: &Range<usize>, is_big| {
            let test = test.clone().about(bytes.start, is_big)?;
            Some((way.about(bytes, is_big)?, test))
        };
        let (mut way, test) = about(self.clone(), &both, self.is_big)
            .or_else(|| about(self.clone(), &both, is_big))
            .or_else(|| about(Self::to(begin, Last::Turn(self.begin)), &bytes, is_big))?;
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
            length.move_to(offset, is_big)?;
        }
        (self.offset, self.is_big, self.bytes) = (offset, is_big, bytes.clone());
        Some(self)
    }

    /// Whether it ends with a length that [`short_end`](Self::short_end) says.
    pub(super) const fn has_length(&self) -> bool {
        matches!(self.last, Last::Length(_))
    }

    /// The same as a form, if it is no more than one can say.
    pub(super) fn quick_form(&self) -> Option<QuickForm> {
        let Last::Length(length) = &self.last else {
            return None;
        };
        let form = length.quick_form(self.offset, self.is_big)?;
        let form = form.needing(self.need);
        (self.tests.iter()).try_fold(form, |form, test| form.unless(test.as_exception()))
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
            if test.holds(word) {
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
    pub(super) fn end(&self, bytes: &[u8]) -> End {
        let outcome = match (self.short_end(bytes), &self.last) {
            (ShortEnd::Length(length), _) => Some(Outcome::of_words(low(length.get()), None, None)),
            (ShortEnd::Last, Last::Sum(sum)) => (sum.of_words(bytes).and_then(as_length))
                .map(|length| Outcome::of_words(low(length.get()), None, None)),
            (ShortEnd::Last, Last::Labelled(labelled)) => labelled.outcome_of_words(bytes),
            (ShortEnd::Last, Last::Decide(decision, is_inside_usual)) => {
                match decision.sum.of_words(bytes) {
                    Some(sum) => return End::Turn(turn(decision, sum, *is_inside_usual)),
                    None => None,
                }
            }
            (ShortEnd::Last, Last::Step(at)) => return End::Step(*at),
            (ShortEnd::Turn(at), _) => return End::Turn(at),
            _ => None,
        };
        outcome.map_or(End::Step(self.begin), End::Outcome)
    }
}

/// What a result says, if it is a length. (For no length, the general form knows what to say.)
#[inline(always)]
fn as_length(result: u64) -> Option<NonZeroU64> {
    NonZeroU64::new(low(result).into()).filter(|length| length.get() <= LONGEST)
}

/// Whether it is usual that the number is inside.
fn is_inside_usual(decision: &Decision, inside: &Way, outside: &Way) -> bool {
    if inside.is_dead() || outside.is_dead() {
        return outside.is_dead();
    }
    let word = decision.sum.as_word();
    let half = word.map_or(decision.keep, |(word, _)| word.mask()) / 2;
    // Of two halves, the one that is known sooner.
    let is_sooner = inside.has_length() && inside.tests.len() < outside.tests.len();
    decision.span > half || decision.span == half && is_sooner
}

/// Where a decision leads to.
#[inline(always)]
fn turn(decision: &Decision, sum: u64, is_inside_usual: bool) -> usize {
    let (usual, other) = if is_inside_usual {
        (decision.inside, decision.outside)
    } else {
        (decision.outside, decision.inside)
    };
    if decision.is_inside(sum) == is_inside_usual {
        return usual;
    }
    // (A branch, as above.)
    cold_path();
    other
}
