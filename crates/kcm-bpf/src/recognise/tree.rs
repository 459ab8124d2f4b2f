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

mod step;
mod test;
mod way;

use std::hint::cold_path;
use std::num::NonZeroU64;

use kcm_frame::QuickForm;

use crate::alu::low;
use crate::program::{EFAULT, Outcome};
use crate::recognise::follow::{Node, Then};
pub(super) use crate::recognise::tree::step::Decision;
use crate::recognise::tree::step::{Run, Step};
pub(super) use crate::recognise::tree::test::Test;
use crate::recognise::tree::way::{End, ShortEnd, Way};

/// A program as decisions.
#[derive(Debug)]
pub(crate) struct Tree {
    /// A step leads only to those before it; it begins at the last one.
    steps: Vec<Step>,
    /// For each step, the usual way on from there.
    ways: Vec<Way>,
    /// The last of them, at hand; or both sides of its decision as one.
    usual: Way,
    pub(super) decisions: usize,
    pub(super) lengths: usize,
    /// For some messages the instructions are asked.
    pub(super) asks: bool,
}

impl Tree {
    /// Nothing, if some number takes more pieces than is worth it, or no message has a length without
    /// the instructions.
    pub(super) fn new(nodes: &[Node]) -> Option<Self> {
        let (mut decisions, mut lengths, mut asks) = (0, 0, false);
        let mut steps = Vec::with_capacity(nodes.len());
        let mut ways = Vec::with_capacity(nodes.len());
        for node in nodes {
            match &node.then {
                Then::Decide { .. } => decisions += 1,
                Then::Ask => asks = true,
                Then::End(end) => {
                    let length = end.result.as_constant();
                    let is_length = length.is_none_or(|length| low(length).cast_signed() > 0);
                    lengths += usize::from(is_length);
                }
            }
            let step = Step::new(node)?;
            ways.push(Way::new(ways.len(), &step, &ways));
            steps.push(step);
        }
        if asks && lengths == 0 {
            return None;
        }
        let usual = Way::both(ways.len() - 1, steps.last()?, &ways);
        Some(Self {
            usual: usual.or_else(|| ways.last().cloned())?,
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

    /// What it says of the usual message, if a form can say it.
    pub(crate) fn quick_form(&self) -> Option<QuickForm> {
        self.usual.quick_form()
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
    /// (An outcome is a few numbers, and stays in registers: a verdict that a call gives is written in
    /// parts and read as a whole, for which the processor waits longer than for the rest.)
    #[inline(always)]
    pub(crate) fn parse(&self, bytes: &[u8], ask: impl FnOnce() -> Outcome) -> Outcome {
        let mut way = &self.usual;
        loop {
            match way.end(bytes) {
                End::Outcome(outcome) => return outcome,
                End::Turn(at) => match self.ways.get(at) {
                    Some(next) => way = next,
                    None => return self.go_on(at, bytes, ask),
                },
                End::Step(at) => return self.go_on(at, bytes, ask),
            }
        }
    }

    /// The same from a step on, for all of them.
    #[inline(never)]
    fn go_on(&self, mut at: usize, bytes: &[u8], ask: impl FnOnce() -> Outcome) -> Outcome {
        while let Some(step) = self.steps.get(at) {
            if bytes.len() < step.need {
                at = step.short;
                continue;
            }
            match &step.then {
                Run::Decide(decision) => {
                    if decision.is_inside(decision.sum.of(bytes)) {
                        cold_path();
                        at = decision.inside;
                    } else {
                        at = decision.outside;
                    }
                }
                Run::Length(sum) => return Outcome::of_words(low(sum.of(bytes)), None, None),
                Run::Labelled(labelled) => return labelled.outcome(bytes),
                Run::Ask => return ask(),
            }
        }
        // No step leads out of the tree.
        debug_assert!(false, "a decision leads nowhere");
        Outcome::of_words(EFAULT.wrapping_neg().cast_unsigned(), None, None)
    }
}
