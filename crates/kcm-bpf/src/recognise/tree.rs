//! A decision as it is run: a few comparisons of fields, then a length that is a sum of fields.
//!
//! What makes it quicker than instructions: nothing is stored between a load from the message and
//! the length that comes of it, and a decision is a branch that the processor foresees, so that the
//! next message can be looked at before this one's decisions are known to be right.
//!
//! Nearly all steps compare some bits with a number, or give a field that is moved and added to.
//! Those that look at the same 8 bytes are one [`Way`], which loads them once. Ways are left for good
//! where the instructions are asked, and near the end of the bytes: the general form goes on from
//! there, one step after the other.

mod way;

use std::hint::cold_path;
use std::num::NonZeroU64;

use kcm_frame::{Frame, Verdict};

use crate::alu::low;
use crate::recognise::follow::{self, Node, Then};
use crate::recognise::number::{LOW, Number};
use crate::recognise::sum::Sum;
use crate::recognise::tree::way::{End, ShortEnd, Way};

/// A program as decisions.
#[derive(Debug)]
pub(crate) struct Tree {
    /// A step leads only to those before it; it begins at the last one.
    steps: Vec<Step>,
    /// For each step, the usual way on from there.
    ways: Vec<Way>,
    /// The last of them, at hand.
    usual: Way,
    pub(super) decisions: usize,
    pub(super) lengths: usize,
    /// For some messages the instructions are asked.
    pub(super) asks: bool,
}

#[derive(Debug)]
struct Step {
    /// Bytes that must be there; else it goes on at `short`.
    need: usize,
    short: usize,
    then: Run,
}

#[derive(Debug)]
enum Run {
    /// Whether `(sum - low) & keep` is not above `span`.
    Decide {
        sum: Sum,
        low: u64,
        keep: u64,
        span: u64,
        inside: usize,
        outside: usize,
    },
    Length(Sum),
    /// With a key, a class, or both.
    Labelled(Box<(Sum, Option<Sum>, Option<Sum>)>),
    /// The instructions say it.
    Ask,
}

impl Tree {
    /// Nothing, if some number takes more pieces than is worth it, or no message has a length without
    /// the instructions.
    pub(super) fn new(nodes: &[Node]) -> Option<Self> {
        let (mut decisions, mut lengths, mut asks) = (0, 0, false);
        let mut steps = Vec::with_capacity(nodes.len());
        let mut ways = Vec::with_capacity(nodes.len());
        for node in nodes {
            let then = match &node.then {
                Then::Decide {
                    condition,
                    inside,
                    outside,
                } => {
                    decisions += 1;
                    Run::Decide {
                        sum: Sum::new(&condition.number)?,
                        low: condition.low,
                        keep: if condition.half { LOW } else { u64::MAX },
                        span: condition.span,
                        inside: *inside,
                        outside: *outside,
                    }
                }
                Then::Ask => {
                    asks = true;
                    Run::Ask
                }
                Then::End(follow::End { result, key, class }) => {
                    let is_length =
                        (result.as_constant()).is_none_or(|result| low(result).cast_signed() > 0);
                    lengths += usize::from(is_length);
                    let length = Sum::new(result)?;
                    let label = |number: &Option<Number>| match number {
                        Some(number) => Sum::new(number).map(Some),
                        None => Some(None),
                    };
                    match (label(key)?, label(class)?) {
                        (None, None) => Run::Length(length),
                        (key, class) => Run::Labelled(Box::new((length, key, class))),
                    }
                }
            };
            let step = Step {
                need: node.need,
                short: node.short,
                then,
            };
            ways.push(Way::new(ways.len(), &step, &ways));
            steps.push(step);
        }
        if asks && lengths == 0 {
            return None;
        }
        Some(Self {
            usual: ways.last()?.clone(),
            ways,
            steps,
            decisions,
            lengths,
            asks,
        })
    }

    /// Whether the usual message has a length and no more, of which [`length`](Self::length) knows.
    pub(crate) fn has_short_way(&self) -> bool {
        self.usual.has_length()
    }

    /// The length of a message, if that is all there is to say of it and it takes no more than a few
    /// times 8 bytes; what [`parse`](Self::parse) says may still be one.
    #[inline(always)]
    pub(crate) fn length(&self, bytes: &[u8]) -> Option<NonZeroU64> {
        let mut way = &self.usual;
        loop {
            match way.short_end(bytes) {
                ShortEnd::Length(length) => return Some(length),
                ShortEnd::Turn(at) => way = self.ways.get(at)?,
                ShortEnd::Last | ShortEnd::Step => return None,
            }
        }
    }

    /// What the program says of bytes that begin at a message's first one; `ask` asks its instructions.
    ///
    /// (All in one: a verdict that a call gives is written in parts and read as a whole, for which the
    /// processor waits longer than for the rest.)
    #[inline(always)]
    pub(crate) fn parse(&self, bytes: &[u8], ask: impl FnOnce() -> Verdict) -> Verdict {
        let mut way = &self.usual;
        loop {
            match way.end(bytes) {
                End::Length(length) => return Verdict::message(length.get()),
                End::Turn(at) => match self.ways.get(at) {
                    Some(next) => way = next,
                    None => return self.go_on(at, bytes, ask),
                },
                End::Labelled(labels) => {
                    let Some((length, key, class)) = labels.values(bytes) else {
                        return self.go_on(way.begin(), bytes, ask);
                    };
                    return labelled(length, key, class, bytes.len());
                }
                End::Step(at) => return self.go_on(at, bytes, ask),
            }
        }
    }

    /// The same from a step on, for all of them.
    #[inline(never)]
    fn go_on(&self, mut at: usize, bytes: &[u8], ask: impl FnOnce() -> Verdict) -> Verdict {
        while let Some(step) = self.steps.get(at) {
            if bytes.len() < step.need {
                at = step.short;
                continue;
            }
            match &step.then {
                Run::Decide {
                    sum,
                    low,
                    keep,
                    span,
                    inside,
                    outside,
                } => {
                    if sum.of(bytes).wrapping_sub(*low) & keep <= *span {
                        cold_path();
                        at = *inside;
                    } else {
                        at = *outside;
                    }
                }
                Run::Length(sum) => {
                    let result = low(sum.of(bytes)).cast_signed();
                    return Verdict::from_kernel(result, bytes.len());
                }
                Run::Ask => return ask(),
                Run::Labelled(sums) => {
                    let (length, key, class) = &**sums;
                    let value = |sum: &Sum| low(sum.of(bytes));
                    let (key, class) = (key.as_ref().map(value), class.as_ref().map(value));
                    return labelled(value(length), key, class, bytes.len());
                }
            }
        }
        // No step leads out of the tree.
        debug_assert!(false, "a decision leads nowhere");
        Verdict::Error(crate::program::EFAULT)
    }
}

/// What a result and labels mean of a message of which `have` bytes are there.
#[inline(always)]
fn labelled(result: u32, key: Option<u32>, class: Option<u32>, have: usize) -> Verdict {
    let result = result.cast_signed();
    if result <= 0 {
        return Verdict::from_kernel(result, have);
    }
    let mut frame = Frame::new(result.unsigned_abs().into());
    frame.key = key;
    frame.class = class.map_or(0, crate::program::class);
    Verdict::Message(frame)
}
