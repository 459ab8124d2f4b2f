//! What one instruction does to a state, and whether it may.

use crate::alu::{Alu, Cmp};
use crate::decode::{ARGUMENTS, Op, Operand};
use crate::insn::op;
use crate::verifier::explore::Notes;
use crate::verifier::flow::Flow;
use crate::verifier::helpers::{KTIME_GET_NS, SKB_LOAD_BYTES, SKB_LOAD_BYTES_RELATIVE};
use crate::verifier::scalar::{Range, Scalar};
use crate::verifier::state::{Frame, Reg, State};
use crate::verifier::{Reason, memory};

/// Where a path goes on.
pub(crate) enum Next {
    At(usize),
    /// Here, and there with another state.
    Both(usize, usize, Box<State>),
    /// The program has ended.
    End,
}

/// Pointers can be moved by less than this in one step, in bytes, as in the kernel.
const MAX_MOVE: i64 = 1 << 29;

/// Follows one instruction.
pub(crate) fn step(
    ops: &[Op],
    flow: &Flow,
    state: &mut State,
    notes: &mut Notes,
    at: usize,
) -> Result<Next, Reason> {
    match ops[at] {
        Op::Alu {
            alu,
            wide,
            dst,
            src,
        } => arithmetic(state, alu, wide, dst, src)?,
        Op::Neg { wide, dst } => {
            let is = number(state, dst, "it cannot be negated")?;
            let zero = Scalar::constant(0);
            state.set(dst, Reg::number(Scalar::alu(Alu::Sub, wide, &zero, &is)));
        }
        Op::MovSx {
            wide,
            bits,
            dst,
            src,
        } => {
            let is = number(state, src, "part of it cannot be copied")?;
            state.set(dst, Reg::number(is.sign_extend(bits, wide)));
        }
        Op::Swap { dst, swap } => {
            let is = number(state, dst, "its bytes cannot be swapped")?;
            state.set(dst, Reg::number(is.swap(swap)));
        }
        Op::Const { dst, value } => {
            state.set(dst, Reg::number(Scalar::constant(value)));
            return Ok(Next::At(at + 2));
        }
        Op::ConstEnd => return Err(Reason::HalfConstant),
        Op::Load {
            dst,
            base,
            off,
            size,
            signed,
        } => {
            let mut loaded = memory::load(state, notes, base, off, size)?;
            if signed {
                let Reg::Number { is, .. } = loaded else {
                    return Err(Reason::PointerInPieces { offset: off.into() });
                };
                loaded = Reg::number(is.sign_extend(8 * u32::from(size), true));
            }
            state.set(dst, loaded);
        }
        Op::Store {
            base,
            off,
            size,
            value,
        } => memory::store(state, notes, base, off, size, value)?,
        Op::Packet { size, index, .. } => return packet(state, size, index, at),
        Op::Jump { target } => return Ok(Next::At(index(target))),
        Op::Branch {
            cmp,
            wide,
            dst,
            src,
            target,
        } => return branch(state, cmp, wide, dst, src, at + 1, index(target)),
        Op::Helper(number) => helper(state, notes, number)?,
        Op::Call { target } => {
            let begin = index(target);
            return Ok(call(flow, state, begin, at + 1));
        }
        Op::Exit => {
            let is = *state.reg(0);
            let is_main = state.frames.len() == 1;
            match is {
                Reg::Number { .. } => {}
                // Functions without a result leave any in it, and a caller that takes none does
                // not mind.
                Reg::Nothing | Reg::Context { .. } if !is_main => {}
                Reg::Nothing => return Err(Reason::Uninitialised { reg: 0 }),
                Reg::Context { .. } | Reg::Stack { .. } => {
                    let what = "it cannot be returned";
                    return Err(Reason::PointerLeak { reg: 0, what });
                }
            }
            return Ok(leave(state, is));
        }
    }
    Ok(Next::At(at + 1))
}

/// A target that has been checked.
fn index(target: i64) -> usize {
    usize::try_from(target).unwrap_or(usize::MAX)
}

/// The number in a register.
fn number(state: &State, reg: u8, what: &'static str) -> Result<Scalar, Reason> {
    match *state.reg(reg) {
        Reg::Number { is, .. } => Ok(is),
        Reg::Nothing => Err(Reason::Uninitialised { reg }),
        _ => Err(Reason::PointerLeak { reg, what }),
    }
}

fn arithmetic(
    state: &mut State,
    alu: Alu,
    wide: bool,
    dst: u8,
    src: Operand,
) -> Result<(), Reason> {
    let by = match src {
        Operand::Imm(imm) => Reg::number(Scalar::immediate(imm)),
        Operand::Reg(reg) => match *state.reg(reg) {
            Reg::Nothing => return Err(Reason::Uninitialised { reg }),
            is => is,
        },
    };
    // With an upper half of zero, the lower one is the whole.
    let is_short = |is: &Scalar| is.u.greatest <= u64::from(u32::MAX);
    let copies = wide || matches!(&by, Reg::Number { is, .. } if is_short(is));
    if alu == Alu::Mov && copies {
        let mut copy = by;
        if let (Reg::Number { is, id: 0 }, Operand::Reg(reg)) = (by, src)
            && is.as_constant().is_none()
        {
            let id = state.fresh_id();
            copy = Reg::Number { is, id };
            state.set(reg, copy);
        }
        state.set(dst, copy);
        return Ok(());
    }
    let old = if alu == Alu::Mov {
        // Only the other operand counts.
        Reg::number(Scalar::constant(0))
    } else {
        *state.reg(dst)
    };
    let result = match (old, by) {
        (Reg::Nothing, _) => return Err(Reason::Uninitialised { reg: dst }),
        (Reg::Number { is: a, .. }, Reg::Number { is: b, .. }) => {
            Reg::number(Scalar::alu(alu, wide, &a, &b))
        }
        (pointer, Reg::Number { is, .. }) if wide && matches!(alu, Alu::Add | Alu::Sub) => {
            moved(&pointer, alu, &is).ok_or(Reason::PointerOutOfRange { reg: dst })?
        }
        (Reg::Number { is, .. }, pointer) if wide && alu == Alu::Add => {
            moved(&pointer, alu, &is).ok_or(Reason::PointerOutOfRange { reg: dst })?
        }
        (pointer, _) => {
            let what = "only 64-bit numbers can be added to it or subtracted from it";
            let reg = match src {
                Operand::Reg(reg) if !pointer.is_pointer() => reg,
                _ => dst,
            };
            return Err(Reason::PointerLeak { reg, what });
        }
    };
    state.set(dst, result);
    Ok(())
}

/// A pointer, moved by a number within reason.
fn moved(pointer: &Reg, alu: Alu, by: &Scalar) -> Option<Reg> {
    let usable = |range: Range<i64>| range.least > -MAX_MOVE && range.greatest < MAX_MOVE;
    if !usable(by.s) {
        return None;
    }
    let place = |old: &Scalar| {
        let new = Scalar::alu(alu, true, old, by);
        usable(new.s).then_some(new)
    };
    Some(match pointer {
        Reg::Context { moved } => Reg::Context {
            moved: place(moved)?,
        },
        Reg::Stack { depth, offset } => Reg::Stack {
            depth: *depth,
            offset: place(offset)?,
        },
        _ => return None,
    })
}

fn branch(
    state: &mut State,
    cmp: Cmp,
    wide: bool,
    dst: u8,
    src: Operand,
    next: usize,
    target: usize,
) -> Result<Next, Reason> {
    let what = "it cannot be compared";
    let a = number(state, dst, what)?;
    let b = match src {
        Operand::Imm(imm) => Scalar::immediate(imm),
        Operand::Reg(reg) => number(state, reg, what)?,
    };
    let learn = |state: &mut State, (a, b): (Scalar, Scalar)| {
        state.learn(dst, a);
        if let Operand::Reg(reg) = src {
            // The first may have been a copy of the second, and then both are known of it.
            state.learn(reg, b);
        }
    };
    let taken = Scalar::assume(cmp, wide, &a, &b);
    let not_taken = Scalar::assume(cmp.opposite(), wide, &a, &b);
    Ok(match (taken, not_taken) {
        (Some(taken), Some(not_taken)) => {
            let mut there = state.clone();
            learn(&mut there, taken);
            learn(state, not_taken);
            Next::Both(next, target, Box::new(there))
        }
        (Some(taken), None) => {
            learn(state, taken);
            Next::At(target)
        }
        (None, Some(not_taken)) => {
            learn(state, not_taken);
            Next::At(next)
        }
        // Nothing comes here: what is known contradicts itself. Follow one side all the same.
        (None, None) => Next::At(next),
    })
}

/// A load from the message. It ends the function with 0 if the message is too short, which only
/// concerns its caller.
fn packet(state: &mut State, size: u8, index: Option<u8>, at: usize) -> Result<Next, Reason> {
    match *state.reg(op::CTX) {
        Reg::Context { moved } if moved.as_constant() == Some(0) => {}
        _ => return Err(Reason::PacketContext),
    }
    if let Some(reg) = index {
        number(state, reg, "it cannot be an offset")?;
    }
    let mut short = (state.frames.len() > 1).then(|| Box::new(state.clone()));
    forget_arguments(state);
    state.set(0, Reg::number(Scalar::of_bytes(size)));
    if let Some(state) = &mut short
        && let Next::At(back) = leave(state, Reg::number(Scalar::constant(0)))
        && let Some(there) = short
    {
        return Ok(Next::Both(at + 1, back, there));
    }
    Ok(Next::At(at + 1))
}

fn forget_arguments(state: &mut State) {
    for reg in 1..=5 {
        debug_assert!(ARGUMENTS & 1 << reg != 0);
        state.set(reg, Reg::Nothing);
    }
}

fn call(flow: &Flow, state: &mut State, begin: usize, back: usize) -> Next {
    let function = flow.function_at(begin);
    // The chain of calls was found to be short enough.
    let depth = u8::try_from(state.frames.len()).unwrap_or(u8::MAX);
    let mut frame = Frame::new(function, back, depth);
    frame.regs[1..=5].copy_from_slice(&state.frame().regs[1..=5]);
    forget_arguments(state);
    state.set(0, Reg::Nothing);
    state.frames.push(frame);
    Next::At(begin)
}

/// Goes back to the caller with a result.
fn leave(state: &mut State, result: Reg) -> Next {
    if state.frames.len() == 1 {
        return Next::End;
    }
    let back = state.frame().back;
    state.frames.pop();
    state.set(0, result);
    Next::At(back)
}

fn helper(state: &mut State, notes: &mut Notes, number: i32) -> Result<(), Reason> {
    match number {
        KTIME_GET_NS => {}
        SKB_LOAD_BYTES | SKB_LOAD_BYTES_RELATIVE => {
            if !matches!(*state.reg(1), Reg::Context { moved } if moved.as_constant() == Some(0)) {
                let expected = "the context";
                return Err(Reason::Argument { reg: 1, expected });
            }
            argument(state, 2)?;
            let size = argument(state, 4)?;
            if size.s.least < 1 || size.s.greatest > super::STACK_BYTES as i64 {
                let expected = "a size that is known to be from 1 to 512";
                return Err(Reason::Argument { reg: 4, expected });
            }
            if number == SKB_LOAD_BYTES_RELATIVE {
                argument(state, 5)?;
            }
            let exact = size.as_constant().is_some();
            memory::helper_buffer(state, notes, 3, size.u.greatest, exact)?;
        }
        _ => return Err(Reason::Helper { number }),
    }
    forget_arguments(state);
    state.set(0, Reg::number(Scalar::UNKNOWN));
    Ok(())
}

fn argument(state: &State, reg: u8) -> Result<Scalar, Reason> {
    match *state.reg(reg) {
        Reg::Number { is, .. } => Ok(is),
        Reg::Nothing => Err(Reason::Uninitialised { reg }),
        _ => {
            let expected = "a number";
            Err(Reason::Argument { reg, expected })
        }
    }
}
