//! Instructions as what they mean: the form in which the verifier, the recogniser and the
//! interpreter take them.
//!
//! Decoding is where an instruction is refused for what it is, wherever it may stand: one that does
//! not exist, has something in a field that means nothing there, or asks for something that a
//! parser has not got.

use crate::alu::{Alu, Cmp, Swap};
use crate::verifier::{Reason, Rejection};
use crate::{Insn, op};

/// The second operand of arithmetic, comparisons and stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operand {
    Reg(u8),
    /// Sign-extended to 64 bits.
    Imm(i32),
}

/// One instruction, its registers known to exist and jumps made absolute. Targets are not yet
/// known to lie in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Alu {
        alu: Alu,
        wide: bool,
        dst: u8,
        src: Operand,
    },
    Neg {
        wide: bool,
        dst: u8,
    },
    /// A move of the low `bits` with their sign.
    MovSx {
        wide: bool,
        bits: u32,
        dst: u8,
        src: u8,
    },
    Swap {
        dst: u8,
        swap: Swap,
    },
    Const {
        dst: u8,
        value: u64,
    },
    /// The second half of a `Const`, not to be run.
    ConstEnd,
    Load {
        dst: u8,
        base: u8,
        off: i16,
        size: u8,
        signed: bool,
    },
    Store {
        base: u8,
        off: i16,
        size: u8,
        value: Operand,
    },
    /// A load from the message, in network order, into register 0.
    Packet {
        size: u8,
        index: Option<u8>,
        offset: i32,
    },
    Jump {
        target: i64,
    },
    Branch {
        cmp: Cmp,
        wide: bool,
        dst: u8,
        src: Operand,
        target: i64,
    },
    /// A helper function of the kernel, by its number.
    Helper(i32),
    Call {
        target: i64,
    },
    Exit,
}

impl Op {
    /// The registers that are read, as bits. A call's are not known here: all arguments.
    pub(crate) const fn reads(&self) -> u16 {
        match *self {
            Self::Alu {
                alu: Alu::Mov, src, ..
            } => src.bit(),
            Self::Alu { dst, src, .. } | Self::Branch { dst, src, .. } => 1 << dst | src.bit(),
            Self::Neg { dst, .. } | Self::Swap { dst, .. } => 1 << dst,
            Self::MovSx { src, .. } => 1 << src,
            Self::Load { base, .. } => 1 << base,
            Self::Store { base, value, .. } => 1 << base | value.bit(),
            Self::Packet { index, .. } => {
                1 << op::CTX
                    | match index {
                        Some(index) => 1 << index,
                        None => 0,
                    }
            }
            Self::Helper(_) | Self::Call { .. } => ARGUMENTS,
            Self::Exit => 1,
            Self::Const { .. } | Self::ConstEnd | Self::Jump { .. } => 0,
        }
    }

    /// The registers that hold something else, or nothing, afterwards, as bits.
    pub(crate) const fn writes(&self) -> u16 {
        match *self {
            Self::Alu { dst, .. }
            | Self::Neg { dst, .. }
            | Self::MovSx { dst, .. }
            | Self::Swap { dst, .. }
            | Self::Const { dst, .. }
            | Self::Load { dst, .. } => 1 << dst,
            Self::Packet { .. } | Self::Helper(_) | Self::Call { .. } => ARGUMENTS | 1,
            _ => 0,
        }
    }
}

impl Operand {
    pub(crate) const fn bit(self) -> u16 {
        match self {
            Self::Reg(reg) => 1 << reg,
            Self::Imm(_) => 0,
        }
    }
}

/// Registers 1 to 5, in which arguments are passed, as bits.
pub(crate) const ARGUMENTS: u16 = 0b11_1110;

/// Decodes a whole program.
pub(crate) fn decode(insns: &[Insn]) -> Result<Vec<Op>, Rejection> {
    let mut ops = Vec::with_capacity(insns.len());
    while let Some(insn) = insns.get(ops.len()) {
        let at = ops.len();
        let one = decode_one(insns, at, insn).map_err(|reason| Rejection::at(at, reason))?;
        ops.push(one);
        if let Op::Const { .. } = one {
            ops.push(Op::ConstEnd);
        }
    }
    Ok(ops)
}

fn decode_one(insns: &[Insn], at: usize, insn: &Insn) -> Result<Op, Reason> {
    if insn.dst > op::FP || insn.src > op::FP {
        return Err(Reason::NoSuchRegister);
    }
    match insn.class() {
        op::ALU | op::ALU64 => arithmetic(insn),
        op::JMP | op::JMP32 => jump(at, insn),
        op::LD => load_special(insns, at, insn),
        _ => memory(insn),
    }
}

fn arithmetic(insn: &Insn) -> Result<Op, Reason> {
    let &Insn {
        code,
        dst,
        src,
        off,
        imm,
    } = insn;
    let wide = insn.class() == op::ALU64;
    if dst == op::FP {
        return Err(Reason::FramePointerWritten);
    }
    let by_register = code & op::X != 0;
    match code & 0xf0 {
        op::NEG => {
            plain(!by_register && src == 0 && off == 0 && imm == 0)?;
            return Ok(Op::Neg { wide, dst });
        }
        op::END => {
            // In the wide class without a direction: the bytes are swapped in any case.
            plain(src == 0 && off == 0 && !(wide && by_register))?;
            let bits = match imm {
                16 => 16,
                32 => 32,
                64 => 64,
                _ => return Err(Reason::ReservedField),
            };
            let reverse = wide || by_register;
            let swap = Swap { bits, reverse };
            return Ok(Op::Swap { dst, swap });
        }
        op::MOV if by_register && off != 0 => {
            let bits = match off {
                8 => 8,
                16 => 16,
                32 if wide => 32,
                1 => return Err(Reason::Unsupported("a cast between address spaces")),
                _ => return Err(Reason::ReservedField),
            };
            plain(imm == 0)?;
            return Ok(Op::MovSx {
                wide,
                bits,
                dst,
                src,
            });
        }
        _ => {}
    }
    let alu = match (code & 0xf0, off) {
        (op::ADD, 0) => Alu::Add,
        (op::SUB, 0) => Alu::Sub,
        (op::MUL, 0) => Alu::Mul,
        (op::DIV, 0) => Alu::Div,
        (op::DIV, 1) => Alu::SDiv,
        (op::OR, 0) => Alu::Or,
        (op::AND, 0) => Alu::And,
        (op::LSH, 0) => Alu::Lsh,
        (op::RSH, 0) => Alu::Rsh,
        (op::MOD, 0) => Alu::Mod,
        (op::MOD, 1) => Alu::SMod,
        (op::XOR, 0) => Alu::Xor,
        (op::MOV, 0) => Alu::Mov,
        (op::ARSH, 0) => Alu::Arsh,
        (..=op::ARSH, _) => return Err(Reason::ReservedField),
        _ => return Err(Reason::NoSuchInstruction),
    };
    let src = operand(insn)?;
    match (alu, src) {
        (Alu::Div | Alu::SDiv | Alu::Mod | Alu::SMod, Operand::Imm(0)) => {
            Err(Reason::DivisionByZero)
        }
        (Alu::Lsh | Alu::Rsh | Alu::Arsh, Operand::Imm(by))
            if !(0..if wide { 64 } else { 32 }).contains(&by) =>
        {
            Err(Reason::ShiftTooFar)
        }
        _ => Ok(Op::Alu {
            alu,
            wide,
            dst,
            src,
        }),
    }
}

fn jump(at: usize, insn: &Insn) -> Result<Op, Reason> {
    let &Insn {
        code,
        dst,
        src,
        off,
        imm,
    } = insn;
    let wide = insn.class() == op::JMP;
    let kind = code & 0xf0;
    // No slice has more than `isize::MAX` elements, so neither sum overflows.
    let after = |distance: i32| at as i64 + 1 + i64::from(distance);
    match kind {
        op::JA => {
            plain(code & op::X == 0 && dst == 0 && src == 0)?;
            plain(if wide { imm == 0 } else { off == 0 })?;
            let distance = if wide { off.into() } else { imm };
            return Ok(Op::Jump {
                target: after(distance),
            });
        }
        op::CALL | op::EXIT if wide => {
            plain(code & op::X == 0 && dst == 0 && off == 0)?;
            return match (kind, src) {
                (op::CALL, op::CALL_HELPER) => Ok(Op::Helper(imm)),
                (op::CALL, op::CALL_LOCAL) => Ok(Op::Call { target: after(imm) }),
                (op::CALL, 2) => Err(Reason::Unsupported("a call of a kernel function by BTF")),
                (op::EXIT, 0) if imm == 0 => Ok(Op::Exit),
                _ => Err(Reason::ReservedField),
            };
        }
        _ => {}
    }
    let cmp = match kind {
        op::JEQ => Cmp::Eq,
        op::JGT => Cmp::Gt,
        op::JGE => Cmp::Ge,
        op::JSET => Cmp::Set,
        op::JNE => Cmp::Ne,
        op::JSGT => Cmp::SGt,
        op::JSGE => Cmp::SGe,
        op::JLT => Cmp::Lt,
        op::JLE => Cmp::Le,
        op::JSLT => Cmp::SLt,
        op::JSLE => Cmp::SLe,
        0xe0 if wide => return Err(Reason::Unsupported("may_goto")),
        _ => return Err(Reason::NoSuchInstruction),
    };
    Ok(Op::Branch {
        cmp,
        wide,
        dst,
        src: operand(insn)?,
        target: after(off.into()),
    })
}

/// Constants of 64 bits and loads from the message.
fn load_special(insns: &[Insn], at: usize, insn: &Insn) -> Result<Op, Reason> {
    let &Insn {
        code,
        dst,
        src,
        off,
        imm,
    } = insn;
    if insn.is_wide() {
        match src {
            0 => {}
            1..=6 => {
                return Err(Reason::Unsupported(
                    "the address of a map, variable or function",
                ));
            }
            _ => return Err(Reason::ReservedField),
        }
        let end = insns.get(at + 1).ok_or(Reason::HalfConstant)?;
        if end.code != 0 {
            return Err(Reason::HalfConstant);
        }
        plain(off == 0 && end.dst == 0 && end.src == 0 && end.off == 0)?;
        if dst == op::FP {
            return Err(Reason::FramePointerWritten);
        }
        let value = u64::from(end.imm.cast_unsigned()) << 32 | u64::from(imm.cast_unsigned());
        return Ok(Op::Const { dst, value });
    }
    let size = width(code);
    let index = match code & 0xe0 {
        op::ABS => None,
        op::IND => Some(src),
        _ => return Err(Reason::NoSuchInstruction),
    };
    if size == 8 {
        return Err(Reason::NoSuchInstruction);
    }
    plain(dst == 0 && off == 0 && (index.is_some() || src == 0))?;
    if index.is_none() && imm < 0 {
        return Err(Reason::NegativeOffset);
    }
    Ok(Op::Packet {
        size,
        index,
        offset: imm,
    })
}

fn memory(insn: &Insn) -> Result<Op, Reason> {
    let &Insn {
        code,
        dst,
        src,
        off,
        imm,
    } = insn;
    let size = width(code);
    match (insn.class(), code & 0xe0) {
        (op::LDX, mode @ (op::MEM | op::MEMSX)) => {
            let signed = mode == op::MEMSX;
            if signed && size == 8 {
                return Err(Reason::NoSuchInstruction);
            }
            plain(imm == 0)?;
            if dst == op::FP {
                return Err(Reason::FramePointerWritten);
            }
            Ok(Op::Load {
                dst,
                base: src,
                off,
                size,
                signed,
            })
        }
        (op::ST, op::MEM) => {
            plain(src == 0)?;
            let value = Operand::Imm(imm);
            Ok(Op::Store {
                base: dst,
                off,
                size,
                value,
            })
        }
        (op::STX, op::MEM) => {
            plain(imm == 0)?;
            let value = Operand::Reg(src);
            Ok(Op::Store {
                base: dst,
                off,
                size,
                value,
            })
        }
        (op::STX, op::ATOMIC) => Err(Reason::Unsupported("an atomic operation")),
        _ => Err(Reason::NoSuchInstruction),
    }
}

/// The second operand, with the field that it leaves empty checked.
fn operand(insn: &Insn) -> Result<Operand, Reason> {
    if insn.code & op::X != 0 {
        plain(insn.imm == 0)?;
        Ok(Operand::Reg(insn.src))
    } else {
        plain(insn.src == 0)?;
        Ok(Operand::Imm(insn.imm))
    }
}

/// Bytes of a load or store.
const fn width(code: u8) -> u8 {
    match code & 0x18 {
        op::W => 4,
        op::H => 2,
        op::B => 1,
        _ => 8,
    }
}

const fn plain(unused_fields_are_zero: bool) -> Result<(), Reason> {
    if unused_fields_are_zero {
        Ok(())
    } else {
        Err(Reason::ReservedField)
    }
}
