//! Follows a program with symbols in place of numbers, along all of its ways.
//!
//! Where the way depends on the message, both sides are followed and a [`Node`] says which is taken.
//! A loop whose rounds do not depend on the message is walked round, and a call is followed, so that
//! what is left has neither. A node leads only to nodes that were there before it.
//!
//! ```text
//!            is it the first bytes of the preface?
//!               yes /                  \ no
//!     are 8 bytes there? (else 0)       length = bits 8 to 31 + 9
//!     is it the second 4?
//!       yes /          \ no
//!  length = 24          length = bits 8 to 31 + 9     (the same node: it is there already)
//! ```

use crate::alu::low;
use crate::decode::Op;
use crate::recognise::condition::{Comparison, Condition, compare};
use crate::recognise::number::Number;
use crate::recognise::state::{State, Value, copy, load, refuse, simple, zero};
use crate::verifier::Verified;
use crate::verifier::helpers::{SKB_LOAD_BYTES, SKB_LOAD_BYTES_RELATIVE};

/// Most nodes of a decision. Those of protocols have up to 20; more would be run through no faster
/// than instructions.
pub(super) const MAX_NODES: usize = 64;

/// Most decisions on one way. It bounds the depth of the recursion here.
const MAX_DEPTH: usize = 32;

/// Most instructions that are followed, over all ways: a few milliseconds.
const MAX_STEPS: usize = 4096;

/// A decision, or the end of a way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// Bytes of the message that must be there for this; else it goes on at `short`.
    pub(super) need: usize,
    pub(super) short: usize,
    pub(super) then: Then,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Then {
    Decide {
        condition: Condition,
        inside: usize,
        outside: usize,
    },
    End(End),
    /// What follows cannot be said so: it is for the instructions.
    Ask,
}

impl Node {
    /// All nodes that it leads to.
    fn next(&self, mut leads_to: impl FnMut(usize)) {
        if self.need > 0 {
            leads_to(self.short);
        }
        if let Then::Decide {
            inside, outside, ..
        } = self.then
        {
            leads_to(inside);
            leads_to(outside);
        }
    }

    /// The same with the nodes it leads to at other places.
    fn moved(&self, place: impl Fn(usize) -> usize) -> Self {
        let mut node = self.clone();
        node.short = if node.need > 0 { place(node.short) } else { 0 };
        if let Then::Decide {
            inside, outside, ..
        } = &mut node.then
        {
            (*inside, *outside) = (place(*inside), place(*outside));
        }
        node
    }
}

/// What the program leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Its low 32 bits count.
    pub(super) result: Number,
    pub(super) key: Option<Number>,
    pub(super) class: Option<Number>,
}

/// All ways of a program: nodes, of which the last one is the first to be asked. Nothing, if there
/// are too many, or the first instructions cannot be said so.
pub(super) fn follow(verified: &Verified) -> Option<Vec<Node>> {
    let mut follower = Follower {
        verified,
        nodes: Vec::new(),
        steps: 0,
    };
    let root = follower.try_way(State::new())?;
    Some(reached(&follower.nodes, root))
}

/// The nodes that are reached from the root, in their order. Some were only steps to others.
fn reached(nodes: &[Node], root: usize) -> Vec<Node> {
    let mut is_reached = vec![false; nodes.len()];
    is_reached[root] = true;
    let mut places = vec![0; nodes.len()];
    // From the root down, as a node leads only to those before it.
    for (index, node) in nodes.iter().enumerate().rev() {
        if is_reached[index] {
            node.next(|next| is_reached[next] = true);
        }
    }
    let mut kept: Vec<Node> = Vec::new();
    for (index, node) in nodes.iter().enumerate() {
        if is_reached[index] {
            places[index] = kept.len();
            kept.push(node.moved(|next| places[next]));
        }
    }
    kept
}

struct Follower<'a> {
    verified: &'a Verified,
    nodes: Vec<Node>,
    steps: usize,
}

impl Follower<'_> {
    /// The node with which it goes on from a state. Nothing, if there are too many.
    fn way(&mut self, state: State) -> Option<usize> {
        let node = self.try_way(state);
        if node.is_some() || self.steps > MAX_STEPS || self.nodes.len() > MAX_NODES {
            return node;
        }
        self.push(Node {
            need: 0,
            short: 0,
            then: Then::Ask,
        })
    }

    /// The same; nothing also if it cannot be said in nodes.
    fn try_way(&mut self, mut state: State) -> Option<usize> {
        loop {
            self.steps += 1;
            if self.steps > MAX_STEPS || state.depth > MAX_DEPTH {
                return None;
            }
            let at = state.at;
            state.at += 1;
            let op = *self.verified.ops.get(at)?;
            match op {
                Op::ConstEnd => {}
                Op::Jump { target } => state.at = usize::try_from(target).ok()?,
                Op::Branch {
                    cmp,
                    wide,
                    dst,
                    src,
                    target,
                } => {
                    let Value::Number(by) = state.operand(src) else {
                        return None;
                    };
                    let target = usize::try_from(target).ok()?;
                    match compare(cmp, wide, state.number(dst)?.clone(), by)? {
                        Comparison::Known(true) => state.at = target,
                        Comparison::Known(false) => {}
                        Comparison::Unknown(condition, opposite) => {
                            let condition = condition.simplified(&state.seen);
                            let (inside, outside) = state.seen.sides(&condition);
                            let (yes, no) = if opposite {
                                (outside, inside)
                            } else {
                                (inside, outside)
                            };
                            match (yes, no) {
                                (Some(yes), Some(no)) => {
                                    let holds = State {
                                        at: target,
                                        depth: state.depth + 1,
                                        seen: yes,
                                        ..state.clone()
                                    };
                                    (state.depth, state.seen) = (state.depth + 1, no);
                                    let (no, yes) = (self.way(state)?, self.way(holds)?);
                                    let (inside, outside) =
                                        if opposite { (no, yes) } else { (yes, no) };
                                    return self.decide(condition, inside, outside);
                                }
                                // It is decided already.
                                (Some(_), None) => state.at = target,
                                _ => {}
                            }
                        }
                    }
                }
                Op::Packet {
                    size,
                    index,
                    offset,
                } => {
                    let offset = state.packet_offset(index, offset)?;
                    let end = offset + usize::from(size);
                    let short = |state: &mut State| state.leave(zero());
                    let there = |state: &mut State| {
                        state.called();
                        let number = Number::packet(u32::try_from(offset).ok()?, size.into());
                        state.set(0, Value::Number(number));
                        Some(())
                    };
                    if state.least >= end {
                        there(&mut state)?;
                    } else if state.fewer_than <= end {
                        if short(&mut state) {
                            return self.end(&state);
                        }
                    } else {
                        let mut less = state.clone();
                        (less.depth, less.fewer_than) = (state.depth + 1, end);
                        (state.depth, state.least) = (state.depth + 1, end);
                        there(&mut state)?;
                        let short = if short(&mut less) {
                            self.end(&less)?
                        } else {
                            self.way(less)?
                        };
                        let node = self.way(state)?;
                        return self.need(end, short, node);
                    }
                }
                Op::Helper(SKB_LOAD_BYTES | SKB_LOAD_BYTES_RELATIVE) => {
                    let relative = op == Op::Helper(SKB_LOAD_BYTES_RELATIVE);
                    let (from, to, len) = state.load_bytes(relative)?;
                    let end = from + len;
                    if state.least >= end {
                        copy(&mut state, from, to, len)?;
                    } else if state.fewer_than <= end {
                        refuse(&mut state, to, len)?;
                    } else {
                        let mut less = state.clone();
                        (less.depth, less.fewer_than) = (state.depth + 1, end);
                        (state.depth, state.least) = (state.depth + 1, end);
                        refuse(&mut less, to, len)?;
                        copy(&mut state, from, to, len)?;
                        let (short, node) = (self.way(less)?, self.way(state)?);
                        return self.need(end, short, node);
                    }
                }
                Op::Exit => {
                    let result = state.reg(0).clone();
                    if state.leave(result) {
                        return self.end(&state);
                    }
                }
                Op::Call { target } => state.call(self.verified, at, target)?,
                _ => simple(&mut state, op, self.verified.contexts[at])?,
            }
        }
    }

    fn push(&mut self, node: Node) -> Option<usize> {
        if let Some(known) = self.nodes.iter().position(|known| *known == node) {
            return Some(known);
        }
        self.nodes.push(node);
        (self.nodes.len() <= MAX_NODES).then(|| self.nodes.len() - 1)
    }

    fn decide(&mut self, condition: Condition, inside: usize, outside: usize) -> Option<usize> {
        if inside == outside {
            return Some(inside);
        }
        self.push(Node {
            need: 0,
            short: 0,
            then: Then::Decide {
                condition,
                inside,
                outside,
            },
        })
    }

    /// The node, if so many bytes are there, else the other.
    fn need(&mut self, need: usize, short: usize, node: usize) -> Option<usize> {
        if short == node {
            return Some(node);
        }
        let mut node = self.nodes.get(node)?.clone();
        if node.need != 0 && node.short != short {
            // Two different ways for messages that are too short: one node cannot say it.
            return None;
        }
        (node.need, node.short) = (node.need.max(need), short);
        self.push(node)
    }

    fn end(&mut self, state: &State) -> Option<usize> {
        let result = |number: Number| state.seen.simplified(number).into_result();
        let word = |n: u64| match load(&state.cb, 4 * n, 4) {
            Some(Value::Number(number)) => Some(result(number)),
            _ => None,
        };
        let mut end = End {
            result: result(state.number(0)?.clone()),
            key: None,
            class: None,
        };
        // Nothing of both is there without a length.
        let has_length = (end.result.as_constant()).is_none_or(|len| low(len).cast_signed() > 0);
        if has_length && state.written & 1 != 0 {
            end.key = Some(word(0)?);
        }
        if has_length && state.written & 2 != 0 {
            end.class = Some(word(1)?);
        }
        self.push(Node {
            need: 0,
            short: 0,
            then: Then::End(end),
        })
    }
}
