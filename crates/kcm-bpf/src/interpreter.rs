//! Runs verified programs.
//!
//! A program is prepared once, to steps of 16 bytes with absolute jumps, and then run for each
//! message. What matters is the time of five to ten instructions, a few nanoseconds each:
//!
//! * One step for each instruction, whether its second operand is a register or a constant: the
//!   operand is the sum of both. Register 15 is always 0, and so is the constant of a step that has
//!   a register. An addition costs less than a second set of cases.
//! * Register numbers are masked to the 16 registers there are, so no bounds are checked.
//! * The stack is only there for programs that use it: clearing 512 bytes costs as much as five
//!   instructions.
//! * What a load or store is about was found by the verifier, so that the context needs no
//!   addresses, and an address is an offset in the stack.
//!
//! Nothing here relies on the verifier for memory safety: all accesses are checked, and a jump back
//! or a call costs one of a number of turns. A program that breaks out of its bounds all the same
//! is *trapped*, which is a bug of ours.

use crate::alu::{Alu, Cmp, Swap, low, sign_extend};
use crate::decode::{Op, Operand};
use crate::insn::op;
use crate::verifier::helpers::{KTIME_GET_NS, SKB_LOAD_BYTES, SKB_LOAD_BYTES_RELATIVE};
use crate::verifier::{CB_BYTES, Context, MAX_FRAMES, STACK_BYTES, Verified};

/// A program, ready to run.
#[derive(Debug)]
pub(crate) struct Code {
    steps: Vec<Step>,
    uses_stack: bool,
    /// Jumps back and calls that a run may take.
    turns: u64,
}

/// What a run leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) result: u64,
    pub(crate) cb: [u8; CB_BYTES],
    /// Which words of `cb` were written, as bits.
    pub(crate) written: u8,
}

/// The program left its bounds, which the verifier should have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap;

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    dst: u8,
    src: u8,
    /// Target of a jump; other small numbers.
    to: u32,
    imm: u64,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Alu64(Alu),
    Alu32(Alu),
    Neg {
        wide: bool,
    },
    MovSx {
        wide: bool,
        bits: u8,
    },
    Swap(u8),
    Truncate(u8),
    If64(Cmp),
    If32(Cmp),
    Jump,
    /// One way only: these go back, and are counted.
    Back,
    IfBack {
        cmp: Cmp,
        wide: bool,
    },
    Packet1,
    Packet2,
    Packet4,
    LoadStack {
        size: u8,
        signed: bool,
    },
    StoreStack {
        size: u8,
    },
    LoadLen {
        at: u8,
        size: u8,
        signed: bool,
    },
    LoadCb {
        at: u8,
        size: u8,
        signed: bool,
    },
    StoreCb {
        at: u8,
        size: u8,
    },
    LoadBytes {
        relative: bool,
    },
    Time,
    Call,
    Exit,
    Trap,
}

/// A register that is always 0.
const ZERO: u8 = 15;

/// Registers, as many as a masked number can name.
type Regs = [u64; 16];

impl Code {
    pub(crate) fn new(verified: &Verified) -> Self {
        let functions = &verified.functions;
        let mut function = 0;
        let steps = verified.ops.iter().enumerate().map(|(at, op)| {
            if functions.get(function + 1) == Some(&at) {
                function += 1;
            }
            let frame_bytes = verified.frame_bytes[function];
            prepare(op, at, verified.contexts[at], frame_bytes)
        });
        Self {
            steps: steps.collect(),
            uses_stack: verified.figures.stack_bytes > 0,
            turns: verified.figures.longest as u64,
        }
    }

    /// Runs the program over the bytes of a message. `now_ns` is what it gets for the time.
    #[inline]
    pub(crate) fn run(&self, bytes: &[u8], now_ns: u64) -> Result<Left, Trap> {
        // A function of its own for each, as the stack is cleared when it begins.
        if self.uses_stack {
            self.run_with::<STACK_BYTES>(bytes, now_ns)
        } else {
            self.run_with::<0>(bytes, now_ns)
        }
    }

    #[inline(always)]
    fn run_with<const STACK: usize>(&self, bytes: &[u8], now_ns: u64) -> Result<Left, Trap> {
        let mut stack = [0u8; STACK];
        let mut regs: Regs = [0; 16];
        regs[usize::from(op::FP)] = STACK as u64;
        let mut left = Left {
            result: 0,
            cb: [0; CB_BYTES],
            written: 0,
        };
        let mut callers = Callers::default();
        let mut turns = self.turns;
        let steps = &self.steps[..];
        let mut at = 0;
        loop {
            let Some(step) = steps.get(at) else {
                return Err(Trap);
            };
            at += 1;
            let (dst, src) = (usize::from(step.dst & 15), usize::from(step.src & 15));
            let by = regs[src].wrapping_add(step.imm);
            match step.kind {
                Kind::Alu64(alu) => regs[dst] = alu.eval(true, regs[dst], by),
                Kind::Alu32(alu) => regs[dst] = alu.eval(false, regs[dst], by),
                Kind::Neg { wide } => regs[dst] = Alu::Sub.eval(wide, 0, regs[dst]),
                Kind::MovSx { wide, bits } => {
                    regs[dst] = sign_extend(bits.into(), wide, regs[src]);
                }
                Kind::Swap(bits) => {
                    let swap = Swap {
                        bits: bits.into(),
                        reverse: true,
                    };
                    regs[dst] = swap.eval(regs[dst]);
                }
                Kind::Truncate(bits) => {
                    let swap = Swap {
                        bits: bits.into(),
                        reverse: false,
                    };
                    regs[dst] = swap.eval(regs[dst]);
                }
                Kind::If64(cmp) => {
                    if cmp.holds(true, regs[dst], by) {
                        at = step.to as usize;
                    }
                }
                Kind::If32(cmp) => {
                    if cmp.holds(false, regs[dst], by) {
                        at = step.to as usize;
                    }
                }
                Kind::Jump => at = step.to as usize,
                Kind::Back => {
                    turns = turns.checked_sub(1).ok_or(Trap)?;
                    at = step.to as usize;
                }
                Kind::IfBack { cmp, wide } => {
                    if cmp.holds(wide, regs[dst], by) {
                        turns = turns.checked_sub(1).ok_or(Trap)?;
                        at = step.to as usize;
                    }
                }
                Kind::Packet1 | Kind::Packet2 | Kind::Packet4 => {
                    let value = match step.kind {
                        Kind::Packet1 => packet(bytes, low(by), |[b]: [u8; 1]| b.into()),
                        Kind::Packet2 => packet(bytes, low(by), |b| u16::from_be_bytes(b).into()),
                        _ => packet(bytes, low(by), u32::from_be_bytes),
                    };
                    match value {
                        Some(value) => regs[0] = value.into(),
                        None => {
                            regs[0] = 0;
                            match callers.leave(&mut regs) {
                                Some(back) => at = back,
                                None => return Ok(left),
                            }
                        }
                    }
                }
                Kind::LoadStack { size, signed } => {
                    let value = load(&stack, by, size).ok_or(Trap)?;
                    regs[dst] = extended(value, size, signed);
                }
                Kind::StoreStack { size } => {
                    // The address is in `dst`, moved by `to`.
                    let offset = i64::from(step.to.cast_signed()).cast_unsigned();
                    let address = regs[dst].wrapping_add(offset);
                    store(&mut stack, address, size, by).ok_or(Trap)?;
                }
                Kind::LoadLen { at, size, signed } => {
                    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    let value = load(&len.to_le_bytes(), at.into(), size).ok_or(Trap)?;
                    regs[dst] = extended(value, size, signed);
                }
                Kind::LoadCb { at, size, signed } => {
                    let value = load(&left.cb, at.into(), size).ok_or(Trap)?;
                    regs[dst] = extended(value, size, signed);
                }
                Kind::StoreCb { at, size } => {
                    store(&mut left.cb, at.into(), size, by).ok_or(Trap)?;
                    let words = if size == 8 { 0b11 } else { 1 };
                    left.written |= words << (at / 4);
                }
                Kind::LoadBytes { relative } => {
                    let begin = if relative { regs[5] } else { NETWORK };
                    let outcome = load_bytes(bytes, &mut stack, begin, &regs, relative);
                    regs[0] = outcome.ok_or(Trap)?;
                }
                Kind::Time => regs[0] = now_ns,
                Kind::Call => {
                    turns = turns.checked_sub(1).ok_or(Trap)?;
                    callers.enter(&mut regs, at, step.imm).ok_or(Trap)?;
                    at = step.to as usize;
                }
                Kind::Exit => match callers.leave(&mut regs) {
                    Some(back) => at = back,
                    None => {
                        left.result = regs[0];
                        return Ok(left);
                    }
                },
                Kind::Trap => return Err(Trap),
            }
        }
    }
}

/// Makes a step of an instruction.
fn prepare(op: &Op, at: usize, context: Option<Context>, frame_bytes: usize) -> Step {
    let trap = Step {
        kind: Kind::Trap,
        dst: 0,
        src: ZERO,
        to: 0,
        imm: 0,
    };
    let operand = |operand| match operand {
        Operand::Reg(reg) => (reg, 0),
        Operand::Imm(imm) => (ZERO, sign(imm.into())),
    };
    // A program has at most a million instructions.
    let index = |target: i64| u32::try_from(target).unwrap_or(u32::MAX);
    let goes_back = |target: i64| target <= at as i64;
    match *op {
        Op::Alu {
            alu,
            wide,
            dst,
            src,
        } => {
            let (src, imm) = operand(src);
            let kind = if wide {
                Kind::Alu64(alu)
            } else {
                Kind::Alu32(alu)
            };
            Step {
                kind,
                dst,
                src,
                imm,
                ..trap
            }
        }
        Op::Neg { wide, dst } => Step {
            kind: Kind::Neg { wide },
            dst,
            ..trap
        },
        Op::MovSx {
            wide,
            bits,
            dst,
            src,
        } => {
            let bits = u8::try_from(bits).unwrap_or(32);
            let kind = Kind::MovSx { wide, bits };
            Step {
                kind,
                dst,
                src,
                ..trap
            }
        }
        Op::Swap { dst, swap } => {
            let bits = u8::try_from(swap.bits).unwrap_or(64);
            let kind = if swap.reverse {
                Kind::Swap(bits)
            } else {
                Kind::Truncate(bits)
            };
            Step { kind, dst, ..trap }
        }
        Op::Const { dst, value } => Step {
            kind: Kind::Alu64(Alu::Mov),
            dst,
            imm: value,
            ..trap
        },
        // Gone over; the step before goes here, and it costs less than a second jump.
        Op::ConstEnd => Step {
            kind: Kind::Alu64(Alu::Or),
            ..trap
        },
        Op::Load {
            dst,
            base,
            off,
            size,
            signed,
        } => match context {
            Some(Context::Len(at)) => Step {
                kind: Kind::LoadLen { at, size, signed },
                dst,
                ..trap
            },
            Some(Context::Cb(at)) => Step {
                kind: Kind::LoadCb { at, size, signed },
                dst,
                ..trap
            },
            Some(Context::Zero) => Step {
                kind: Kind::Alu64(Alu::Mov),
                dst,
                ..trap
            },
            None => Step {
                kind: Kind::LoadStack { size, signed },
                dst,
                src: base,
                imm: sign(off.into()),
                ..trap
            },
        },
        Op::Store {
            base,
            off,
            size,
            value,
        } => {
            let (src, imm) = operand(value);
            let (kind, to) = match context {
                Some(Context::Cb(at)) => (Kind::StoreCb { at, size }, 0),
                None => (Kind::StoreStack { size }, i32::from(off).cast_unsigned()),
                Some(_) => return trap,
            };
            Step {
                kind,
                dst: base,
                src,
                to,
                imm,
            }
        }
        Op::Packet {
            size,
            index,
            offset,
        } => {
            let kind = match size {
                1 => Kind::Packet1,
                2 => Kind::Packet2,
                _ => Kind::Packet4,
            };
            Step {
                kind,
                src: index.unwrap_or(ZERO),
                imm: sign(offset.into()),
                ..trap
            }
        }
        Op::Jump { target } => Step {
            kind: if goes_back(target) {
                Kind::Back
            } else {
                Kind::Jump
            },
            to: index(target),
            ..trap
        },
        Op::Branch {
            cmp,
            wide,
            dst,
            src,
            target,
        } => {
            let (src, imm) = operand(src);
            let kind = match (goes_back(target), wide) {
                (true, wide) => Kind::IfBack { cmp, wide },
                (false, true) => Kind::If64(cmp),
                (false, false) => Kind::If32(cmp),
            };
            let to = index(target);
            Step {
                kind,
                dst,
                src,
                to,
                imm,
            }
        }
        Op::Helper(number) => {
            let kind = match number {
                KTIME_GET_NS => Kind::Time,
                SKB_LOAD_BYTES => Kind::LoadBytes { relative: false },
                SKB_LOAD_BYTES_RELATIVE => Kind::LoadBytes { relative: true },
                _ => Kind::Trap,
            };
            Step { kind, ..trap }
        }
        Op::Call { target } => Step {
            kind: Kind::Call,
            to: index(target),
            imm: frame_bytes as u64,
            ..trap
        },
        Op::Exit => Step {
            kind: Kind::Exit,
            ..trap
        },
    }
}

const fn sign(value: i64) -> u64 {
    value.cast_unsigned()
}

/// What callers find again when a function has ended.
#[derive(Default)]
struct Callers {
    depth: usize,
    /// Registers 6 to 10, and where to go on.
    saved: [([u64; 5], usize); MAX_FRAMES - 1],
}

impl Callers {
    fn enter(&mut self, regs: &mut Regs, back: usize, frame_bytes: u64) -> Option<()> {
        let saved = self.saved.get_mut(self.depth)?;
        saved.0.copy_from_slice(&regs[6..11]);
        saved.1 = back;
        self.depth += 1;
        let fp = usize::from(op::FP);
        regs[fp] = regs[fp].wrapping_sub(frame_bytes);
        Some(())
    }

    /// Where the caller goes on; nothing if this was the main function.
    #[inline(always)]
    fn leave(&mut self, regs: &mut Regs) -> Option<usize> {
        if self.depth == 0 {
            return None;
        }
        self.depth -= 1;
        let (saved, back) = self.saved.get(self.depth)?;
        regs[6..11].copy_from_slice(saved);
        Some(*back)
    }
}

/// Bytes of the message at an offset that counts as signed: below zero is out of range.
#[inline(always)]
fn packet<const N: usize>(
    bytes: &[u8],
    offset: u32,
    value: impl Fn([u8; N]) -> u32,
) -> Option<u32> {
    if offset > MAX_OFFSET {
        return None;
    }
    bytes
        .get(offset as usize..)?
        .first_chunk()
        .copied()
        .map(value)
}

/// Greatest offset of a load from the message: the kernel's offsets are signed.
const MAX_OFFSET: u32 = i32::MAX.cast_unsigned();

/// Where the offset of `bpf_skb_load_bytes_relative` counts from: the network header, which is
/// where a message begins. The other one, the link header (0), is not there.
const NETWORK: u64 = 1;

/// The greatest offset that `bpf_skb_load_bytes_relative` takes.
const MAX_RELATIVE_OFFSET: u32 = 0xffff;

/// The helpers that copy bytes to the stack: offset in register 2, where to in 3, how many in 4.
/// Gives 0, or `-EFAULT` after clearing the buffer; nothing if the buffer is not in the stack.
fn load_bytes(
    bytes: &[u8],
    stack: &mut [u8],
    begin: u64,
    regs: &Regs,
    relative: bool,
) -> Option<u64> {
    const EFAULT: i64 = 14;
    let at = usize::try_from(regs[3]).ok()?;
    let len = low(regs[4]) as usize;
    let buffer = stack.get_mut(at..)?.get_mut(..len)?;
    let offset = low(regs[2]);
    let limit = if relative {
        MAX_RELATIVE_OFFSET
    } else {
        MAX_OFFSET
    };
    let source = bytes
        .get(offset as usize..)
        .and_then(|tail| tail.get(..len));
    match source {
        Some(source) if offset <= limit && u64::from(low(begin)) == NETWORK => {
            buffer.copy_from_slice(source);
            Some(0)
        }
        _ => {
            buffer.fill(0);
            Some((-EFAULT).cast_unsigned())
        }
    }
}

#[inline(always)]
fn load(memory: &[u8], address: u64, size: u8) -> Option<u64> {
    let memory = memory.get(usize::try_from(address).ok()?..)?;
    Some(match size {
        1 => (*memory.first()?).into(),
        2 => u16::from_le_bytes(*memory.first_chunk()?).into(),
        4 => u32::from_le_bytes(*memory.first_chunk()?).into(),
        _ => u64::from_le_bytes(*memory.first_chunk()?),
    })
}

#[inline(always)]
fn store(memory: &mut [u8], address: u64, size: u8, value: u64) -> Option<()> {
    let memory = memory.get_mut(usize::try_from(address).ok()?..)?;
    let size = usize::from(size);
    memory
        .get_mut(..size)?
        .copy_from_slice(value.to_le_bytes().get(..size)?);
    Some(())
}

#[inline(always)]
fn extended(value: u64, size: u8, signed: bool) -> u64 {
    if signed {
        sign_extend(8 * u32::from(size), true, value)
    } else {
        value
    }
}
