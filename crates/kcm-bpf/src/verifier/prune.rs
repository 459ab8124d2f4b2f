//! Whether a state has been explored already.
//!
//! A state needs no second look if one that allows everything it allows has been followed to all
//! its ends. Two things make that happen often: registers that are not read any more do not count,
//! and numbers that no branch, no address and no helper depends on count only as numbers (both from
//! [`Flow`]).

use crate::verifier::flow::Flow;
use crate::verifier::scalar::Scalar;
use crate::verifier::state::{Frame, Reg, Slot, State};

/// How two states are compared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// The new one allows nothing that the old one does not.
    Covered,
    /// Both are the same, as far as it matters: the path between them can be gone for ever.
    Same,
}

/// Compares an `old` state with a `new` one at the same instruction. `work` grows by the number of
/// registers and slots that had to be looked at.
pub(crate) fn compare(
    flow: &Flow,
    at: usize,
    old: &State,
    new: &State,
    how: How,
    work: &mut usize,
) -> bool {
    if old.frames.len() != new.frames.len() {
        return false;
    }
    let mut comparison = Comparison {
        how,
        ids: Vec::new(),
    };
    // The running function first: it differs most often.
    let mut at = at;
    for (old, new) in old.frames.iter().zip(&new.frames).rev() {
        if !comparison.frames(flow, at, old, new, work) {
            return false;
        }
        at = new.back;
    }
    true
}

struct Comparison {
    how: How,
    /// Which name of the old state is which of the new one.
    ids: Vec<(u32, u32)>,
}

impl Comparison {
    fn frames(
        &mut self,
        flow: &Flow,
        at: usize,
        old: &Frame,
        new: &Frame,
        work: &mut usize,
    ) -> bool {
        if old.function != new.function || old.back != new.back {
            return false;
        }
        let (live, vital) = (flow.live[at], flow.vital[at]);
        for (reg, (old, new)) in old.regs.iter().zip(&new.regs).enumerate() {
            *work += 1;
            let bit = 1 << reg;
            if live & bit != 0 && !self.regs(old, new, vital & bit != 0) {
                return false;
            }
        }
        let slots = match self.how {
            // What the old state had not written, it cannot have read.
            How::Covered => old.stack.len(),
            How::Same => old.stack.len().max(new.stack.len()),
        };
        (0..slots).all(|index| {
            *work += 1;
            self.slots(&old.slot(index), &new.slot(index))
        })
    }

    fn regs(&mut self, old: &Reg, new: &Reg, vital: bool) -> bool {
        match (old, new) {
            (Reg::Nothing, _) => self.how == How::Covered || *new == Reg::Nothing,
            (Reg::Number { .. }, Reg::Number { .. }) if !vital => true,
            (Reg::Number { is, id }, Reg::Number { is: new, id: to }) => {
                self.scalars(is, new) && self.names(*id, *to)
            }
            (Reg::Context { moved }, Reg::Context { moved: new }) => self.scalars(moved, new),
            (
                Reg::Stack { depth, offset },
                Reg::Stack {
                    depth: d,
                    offset: o,
                },
            ) => depth == d && self.scalars(offset, o),
            _ => false,
        }
    }

    fn slots(&mut self, old: &Slot, new: &Slot) -> bool {
        match (old, new) {
            (Slot::Whole(old), Slot::Whole(new)) => self.regs(old, new, true),
            (Slot::Half { is, written }, Slot::Half { is: n, written: w }) => {
                self.scalars(is, n) && self.bits(*written, *w)
            }
            (Slot::Bytes { .. }, _) => {
                let ((written, zero), (w, z)) = (old.blurred(), new.blurred());
                // A pointer in a slot that was never read is as good as nothing.
                self.bits(written, w)
                    && self.bits(zero, z)
                    && (self.how == How::Covered || matches!(new, Slot::Bytes { .. }))
            }
            _ => false,
        }
    }

    fn scalars(&self, old: &Scalar, new: &Scalar) -> bool {
        match self.how {
            How::Covered => old.covers(new),
            How::Same => old == new,
        }
    }

    fn bits(&self, old: u8, new: u8) -> bool {
        match self.how {
            How::Covered => old & !new == 0,
            How::Same => old == new,
        }
    }

    /// Numbers that were known to be the same must still be so.
    fn names(&mut self, old: u32, new: u32) -> bool {
        if old == 0 {
            return true;
        }
        match self.ids.iter().find(|(from, _)| *from == old) {
            // A number without a name is the same as no other.
            Some((_, to)) => new != 0 && *to == new,
            None => {
                self.ids.push((old, new));
                true
            }
        }
    }
}
