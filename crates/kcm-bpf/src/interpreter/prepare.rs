//! From an instruction to a step, as it is run.

use crate::decode::{Op, Operand};
use crate::interpreter::{Kind, Step, ZERO, shape, sign};
use crate::verifier::Context;
use crate::verifier::helpers::{KTIME_GET_NS, SKB_LOAD_BYTES, SKB_LOAD_BYTES_RELATIVE};

/// Makes a step of an instruction.
pub(super) fn prepare(op: &Op, at: usize, context: Option<Context>, frame_bytes: usize) -> Step {
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
            let kind = Kind::of_alu(alu, wide, src);
            let (src, imm) = operand(src);
            Step {
                kind,
                dst,
                src,
                imm,
                ..trap
            }
        }
        Op::Neg { wide, dst } => Step {
            kind: if wide { Kind::Neg64 } else { Kind::Neg32 },
            dst,
            ..trap
        },
        Op::MovSx {
            wide,
            bits,
            dst,
            src,
        } => Step {
            kind: if wide { Kind::MovSx64 } else { Kind::MovSx32 },
            dst,
            src,
            to: bits,
            ..trap
        },
        Op::Swap { dst, swap } => {
            let kind = match (swap.reverse, swap.bits) {
                (true, 16) => Kind::Swap16,
                (true, 32) => Kind::Swap32,
                (true, _) => Kind::Swap64,
                (false, _) => Kind::Truncate,
            };
            Step {
                kind,
                dst,
                to: swap.bits,
                ..trap
            }
        }
        Op::Const { dst, value } => Step {
            kind: Kind::Const,
            dst,
            imm: value,
            ..trap
        },
        // Gone over; the step before goes here, and it costs less than a second jump.
        Op::ConstEnd => Step {
            kind: Kind::Or64K,
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
                kind: Kind::LoadLen,
                dst,
                to: shape(size, signed),
                imm: at.into(),
                ..trap
            },
            Some(Context::Cb(at)) => Step {
                kind: Kind::LoadCb,
                dst,
                to: shape(size, signed),
                imm: at.into(),
                ..trap
            },
            Some(Context::Zero) => Step {
                kind: Kind::Const,
                dst,
                ..trap
            },
            None => Step {
                kind: Kind::LoadStack,
                dst,
                src: base,
                to: shape(size, signed),
                imm: sign(off.into()),
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
                Some(Context::Cb(at)) => (Kind::StoreCb, u32::from(size) << 8 | u32::from(at)),
                None => (
                    match size {
                        1 => Kind::StoreStack1,
                        2 => Kind::StoreStack2,
                        4 => Kind::StoreStack4,
                        _ => Kind::StoreStack8,
                    },
                    i32::from(off).cast_unsigned(),
                ),
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
            let kind = Kind::of_branch(cmp, wide, src, goes_back(target));
            let (src, imm) = operand(src);
            Step {
                kind,
                dst,
                src,
                to: index(target),
                imm,
            }
        }
        Op::Helper(number) => {
            let kind = match number {
                KTIME_GET_NS => Kind::Time,
                SKB_LOAD_BYTES => Kind::LoadBytes,
                SKB_LOAD_BYTES_RELATIVE => Kind::LoadBytesRelative,
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
