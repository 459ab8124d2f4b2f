//! A decision as it is run: a few comparisons of fields, then a length that is a sum of fields.
//!
//! What makes it quicker than instructions: nothing is stored between a load from the message and
//! the length that comes of it, and a decision is a branch that the processor foresees, so that the
//! next message can be looked at before this one's decisions are known to be right.
//!
//! Nearly all steps compare some bits with a number, or give a field that is moved and added to.
//! Those that look at the same 8 bytes are one [`Way`], which loads them once. Ways are left for good
//! at the first step that has none, or near the end of the bytes: the general form goes on from there.

mod way;

use std::hint::cold_path;
use std::num::NonZeroU64;

use kcm_frame::{Frame, Verdict};

use crate::alu::low;
use crate::recognise::field::{Order, fields};
use crate::recognise::follow::{self, Node, Then};
use crate::recognise::number::{Bits, Change, LOW, Number};
use crate::recognise::tree::way::{End, Way};
use crate::recognise::word::Word;

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
    /// Whether `(sum - minus) & keep` is not above `span`.
    Decide {
        sum: Sum,
        minus: Option<Box<Sum>>,
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

/// Pieces of the message, and a constant.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    /// The first one by itself: most have no other.
    first: Piece,
    more: Vec<Piece>,
    bias: u64,
}

/// Some bits, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    word: Word,
    /// They are of the number of bytes that are there, and not of the message.
    is_of_len: bool,
    then: Vec<Change>,
}

/// Most pieces of one sum: as many as there are bytes in a word.
const MAX_PIECES: usize = 8;

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
                    let mut sum = Sum::new(&condition.plus)?;
                    sum.bias = sum.bias.wrapping_sub(condition.low);
                    let minus = match condition.minus.as_constant() {
                        Some(0) => None,
                        _ => Some(Box::new(Sum::new(&condition.minus)?)),
                    };
                    Run::Decide {
                        sum,
                        minus,
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

    /// Whether some messages have a length and no more, of which [`length`](Self::length) knows.
    pub(crate) fn has_plain_lengths(&self) -> bool {
        self.ways.iter().any(Way::has_length)
    }

    /// The length of a message, if that is all there is to say of it and all steps to it are quick;
    /// what [`parse`](Self::parse) says may still be one.
    #[inline(always)]
    pub(crate) fn length(&self, bytes: &[u8]) -> Option<NonZeroU64> {
        let mut way = &self.usual;
        loop {
            match way.end(bytes) {
                End::Length(length) => return Some(length),
                End::Turn(at) => way = self.ways.get(at)?,
                End::Other(_) | End::Step(_) => return None,
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
                End::Other(other) => {
                    let Some((length, key, class)) = other.values(bytes) else {
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
                    minus,
                    keep,
                    span,
                    inside,
                    outside,
                } => {
                    let mut difference = sum.of(bytes);
                    if let Some(minus) = minus {
                        difference = difference.wrapping_sub(minus.of(bytes));
                    }
                    if difference & keep <= *span {
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

fn changed(value: u64, changes: &[Change]) -> u64 {
    changes.iter().fold(value, |value, change| change.of(value))
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

impl Sum {
    fn new(number: &Number) -> Option<Self> {
        let mut pieces = Vec::new();
        for term in &number.terms {
            let mut parts = pieces_of(&term.bits)?;
            match &mut parts[..] {
                [piece] => piece.then.clone_from(&term.then),
                _ if term.is_plain() => {}
                _ => return None,
            }
            pieces.append(&mut parts);
        }
        if pieces.len() > MAX_PIECES {
            return None;
        }
        let mut pieces = pieces.into_iter();
        Some(Self {
            first: pieces.next().unwrap_or_else(Piece::nothing),
            more: pieces.collect(),
            bias: number.bias,
        })
    }

    /// If it is a single piece of the message.
    pub(crate) fn single(number: &Number) -> Option<Self> {
        let is_single = |sum: &Self| sum.is_single() && !sum.first.is_of_len;
        Self::new(number).filter(|sum| is_single(sum) && !number.half)
    }

    fn is_constant(&self) -> bool {
        self.more.is_empty() && self.first == Piece::nothing()
    }

    fn is_single(&self) -> bool {
        self.more.is_empty() && self.first.then.is_empty()
    }

    /// The same as [`of`](Self::of), if it is a single piece of which all 8 bytes are there.
    #[inline(always)]
    pub(crate) fn of_word(&self, bytes: &[u8]) -> Option<u64> {
        Some(self.first.word.of(bytes)?.wrapping_add(self.bias))
    }

    #[inline]
    pub(crate) fn of(&self, bytes: &[u8]) -> u64 {
        let mut sum = self.first.of(bytes).wrapping_add(self.bias);
        for piece in &self.more {
            sum = sum.wrapping_add(piece.of(bytes));
        }
        sum
    }
}

/// The pieces that a row of bits is made of.
fn pieces_of(bits: &Bits) -> Option<Vec<Piece>> {
    let pieces = fields(bits)?.into_iter().map(|field| Piece {
        word: Word::new(&field),
        is_of_len: field.order == Order::Len,
        then: Vec::new(),
    });
    Some(pieces.collect())
}

impl Piece {
    /// A piece that is always 0.
    const fn nothing() -> Self {
        Self {
            word: Word::nothing(),
            is_of_len: true,
            then: Vec::new(),
        }
    }

    #[inline(always)]
    fn of(&self, bytes: &[u8]) -> u64 {
        let piece = if self.is_of_len {
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            self.word.of_number(len.into())
        } else {
            self.word.of_all(bytes)
        };
        changed(piece, &self.then)
    }
}
