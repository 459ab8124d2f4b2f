//! A load from the message, and what is done with it at once, as one step.
//!
//! Parsers load a word and then shift, mask, swap and add to it. Each of these is quick; what takes
//! time is to go from one to the next. So they are put together with the arithmetic of the
//! recogniser, as long as what comes out is one piece of the message. Nothing is lost if something
//! jumps into their midst: they are left in their places.

use crate::alu::Alu;
use crate::decode::{Op, Operand};
use crate::interpreter::{Kind, Step};
use crate::recognise::{Number, Sum};
use kcm_frame::MAX_FIELD_OFFSET;

/// What is in register 0 after a load and what follows it.
#[derive(Clone, Debug)]
pub(super) struct Formula {
    /// Bytes that must be there; else the function ends with 0.
    need: usize,
    sum: Sum,
    /// Where it goes on.
    pub(super) next: usize,
    /// Nowhere: it is the function's result.
    pub(super) is_result: bool,
}

impl Formula {
    /// Puts formulas into the steps, in place of loads.
    pub(super) fn all(ops: &[Op], steps: &mut [Step]) -> Vec<Self> {
        let mut formulas = Vec::new();
        for (at, step) in steps.iter_mut().enumerate() {
            // The index is that of a step in a program, of which there are at most a million.
            if let (Some(formula), Ok(index)) = (Self::at(ops, at), u32::try_from(formulas.len())) {
                (step.kind, step.to) = (Kind::Field, index);
                formulas.push(formula);
            }
        }
        formulas
    }

    fn at(ops: &[Op], at: usize) -> Option<Self> {
        let Op::Packet {
            size,
            index: None,
            offset,
        } = *ops.get(at)?
        else {
            return None;
        };
        let begin = usize::try_from(offset).ok()?;
        if begin > MAX_FIELD_OFFSET {
            return None;
        }
        let mut number = Number::packet(u32::try_from(offset).ok()?, size.into());
        let mut sum = Sum::single(&number)?;
        let mut next = at + 1;
        while let Some(more) = ops.get(next).and_then(|op| apply(op, &number)) {
            let Some(whole) = Sum::single(&more) else {
                break;
            };
            (number, sum) = (more, whole);
            next += 1;
        }
        Some(Self {
            need: begin + usize::from(size),
            sum,
            is_result: ops.get(next) == Some(&Op::Exit),
            next,
        })
    }

    /// It, or nothing if the message is too short for it.
    #[inline(always)]
    pub(super) fn value(&self, bytes: &[u8]) -> Option<u64> {
        // What is loaded lies in the word, so that the word is all that must be there.
        match self.sum.of_word(bytes) {
            Some(value) => Some(value),
            None => self.value_near_the_end(bytes),
        }
    }

    #[cold]
    #[inline(never)]
    fn value_near_the_end(&self, bytes: &[u8]) -> Option<u64> {
        (bytes.len() >= self.need).then(|| self.sum.of(bytes))
    }
}

/// What register 0 holds after an instruction that does something with it and a constant.
fn apply(op: &Op, number: &Number) -> Option<Number> {
    match *op {
        // (A move would not depend on the load at all.)
        Op::Alu {
            alu,
            wide,
            dst: 0,
            src: Operand::Imm(imm),
        } if alu != Alu::Mov => {
            let by = Number::constant(i64::from(imm).cast_unsigned());
            number.clone().alu(alu, wide, by)?.exact()
        }
        Op::Swap { dst: 0, swap } => number.swap(swap),
        _ => None,
    }
}
