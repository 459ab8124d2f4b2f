//! Proof that a program is safe to run, before it runs.
//!
//! A parser program sees bytes of a peer, in the process of whoever loaded it. Once accepted, it
//! must end soon, read nothing but the message and what it has written itself, and tell nothing
//! about where things lie in memory. The kernel demands the same, and the aim is to accept what it
//! accepts, so the method is the kernel's: follow every path of the program with sets in place of
//! numbers (*abstract interpretation*), and stop at the first thing that could go wrong.
//!
//! ```text
//! decode.rs    each instruction for itself: does it exist, are its fields right
//! flow.rs      the shape: functions, jumps, which registers still matter where
//! explore.rs   all paths, from the first instruction on            ┐
//! step.rs      what an instruction does to a state, and may it     │ state.rs: registers, stack
//! memory.rs    … a load or a store                                 │ scalar.rs, known.rs: numbers
//! prune.rs     has this state been explored already                ┘
//! ```
//!
//! A register holds nothing, a number (its known bits and its bounds), the context, or a place on a
//! stack. A branch splits the path in two, and each side learns from the condition; a side that
//! cannot be is not followed. A function is followed anew for each call. Where paths come together,
//! a state that an explored one covers is not followed again.
//!
//! *Loops* are simply walked round. What bounds the loop bounds the walk, and a state that comes
//! back unchanged is a loop without end. So loops of a few hundred rounds are accepted as they are,
//! and one that depends on nothing but a byte of the message is refused when [`MAX_STEPS`] is
//! reached. Widening (guessing the loop's invariant) would need fewer steps; it gives worse
//! messages, proves no end, and accepts less.
//!
//! *The longest path* is kept while exploring: no run of the program takes more instructions. The
//! interpreter counts its jumps back against it, so that a mistake here would end a run with an
//! error and not hang it.
//!
//! What is refused though the kernel, asked by root, accepts it: pointers as numbers, and stack
//! that was never written (the kernel lets a privileged program read its memory that way); `may_goto`,
//! atomics, maps and kernel functions, which a parser has no use for; and loads at offsets below
//! zero, as a message has no headers of lower layers.

mod explore;
mod flow;
pub(crate) mod helpers;
mod known;
mod memory;
mod prune;
mod rejection;
mod scalar;
mod state;
mod step;

use crate::decode::{Op, decode};
use crate::insn::MAX_INSNS;
use crate::{Insn, op};

pub(crate) use memory::{CB_BYTES, Context};
pub use rejection::{Reason, Rejection};

/// The stack that all functions of one chain of calls have together, in bytes: the kernel's.
pub(crate) const STACK_BYTES: usize = 512;

/// A function's stack is rounded up to a multiple of this, in bytes, as the kernel does it for
/// compiled programs.
const FRAME_ALIGN: usize = 16;

/// Most functions that can be under way at a time, the main one included: the kernel's number.
pub(crate) const MAX_FRAMES: usize = 8;

/// Most instructions that are followed, over all paths: the kernel's number. It takes a second at
/// the worst.
const MAX_STEPS: usize = 1_000_000;

/// Most registers and stack slots that are compared with those of explored states. About the time
/// that [`MAX_STEPS`] takes, so that a program that makes every state a new one cannot make the
/// search for old ones the greater part.
const MAX_COMPARED: usize = 50_000_000;

/// Most paths that wait to be followed: the kernel's number.
const MAX_PENDING: usize = 8192;

/// Memory for explored states, in bytes. When it is used up, no more are kept, and more is explored
/// twice.
const MAX_KEPT_BYTES: usize = 64 << 20;

/// A program that was found to be safe, and what was found out on the way.
#[derive(Debug)]
pub(crate) struct Verified {
    pub(crate) ops: Vec<Op>,
    /// First instruction of each function.
    pub(crate) functions: Vec<usize>,
    /// Stack of each function, in bytes.
    pub(crate) frame_bytes: Vec<usize>,
    /// Which loads and stores are of the context, and of what in it.
    pub(crate) contexts: Vec<Option<Context>>,
    pub(crate) figures: Figures,
}

/// Figures of a verification.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Instructions that were followed, over all paths.
    pub(crate) steps: usize,
    /// Paths that were followed to their end.
    pub(crate) paths: usize,
    /// Paths that ended at an explored state.
    pub(crate) pruned: usize,
    /// States that were kept to be compared with.
    pub(crate) states: usize,
    /// No run takes more instructions.
    pub(crate) longest: usize,
    /// Most stack in use, in bytes.
    pub(crate) stack_bytes: usize,
}

/// Verifies a linked program.
pub(crate) fn verify(insns: &[Insn]) -> Result<Verified, Rejection> {
    check(insns).map_err(|rejection| rejection.of(insns))
}

fn check(insns: &[Insn]) -> Result<Verified, Rejection> {
    if insns.is_empty() {
        return Err(Rejection::whole(Reason::NoExit));
    }
    if insns.len() > MAX_INSNS {
        return Err(Rejection::whole(Reason::TooComplex {
            what: "instructions",
            limit: MAX_INSNS,
        }));
    }
    let ops = decode(insns)?;
    let flow = flow::analyse(&ops)?;
    // Before any state is made: it has a frame for each function on the way.
    flow.check_depth(&vec![0; flow.functions.len()])?;
    let mut found = explore::explore(&ops, &flow)?;
    for bytes in &mut found.frame_bytes {
        *bytes = (*bytes).max(1).next_multiple_of(FRAME_ALIGN);
    }
    let stack_bytes = flow.check_depth(&found.frame_bytes)?;
    if stack_bytes > STACK_BYTES {
        return Err(Rejection::whole(Reason::StackTotal {
            bytes: stack_bytes,
            limit: STACK_BYTES,
        }));
    }
    if !ops.iter().any(uses_stack) {
        found.frame_bytes.fill(0);
    } else {
        found.figures.stack_bytes = stack_bytes;
    }
    Ok(Verified {
        ops,
        functions: flow.functions,
        frame_bytes: found.frame_bytes,
        contexts: found.contexts,
        figures: found.figures,
    })
}

/// Whether the frame pointer is used, without which there is no way to the stack.
fn uses_stack(op: &Op) -> bool {
    !matches!(op, Op::Helper(_) | Op::Call { .. }) && op.reads() & 1 << op::FP != 0
}

#[cfg(test)]
mod tests;
