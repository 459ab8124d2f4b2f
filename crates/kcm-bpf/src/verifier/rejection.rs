//! Why a program is refused.

use std::fmt;

use crate::Insn;
use crate::insn::op;
use crate::verifier::helpers;

/// A program that the verifier refuses: where, why, and what the registers held there.
///
/// ```
/// use kcm_bpf::{Error, Insn, Program};
/// let exit = Insn { code: 0x95, ..Insn::default() };
/// let Err(Error::Rejected(rejection)) = Program::verify(vec![exit]) else { panic!() };
/// assert_eq!(rejection.index(), Some(0));
/// assert_eq!(
///     rejection.to_string(),
///     "instruction 0, `exit`: register r0 is read, but nothing was put into it on this path (r1=ctx r10=fp)"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    index: Option<usize>,
    insn: Option<Insn>,
    reason: Reason,
    registers: String,
}

impl Rejection {
    /// The instruction that is at fault, counted from the program's first; nothing if it is the
    /// program as a whole.
    #[must_use]
    pub const fn index(&self) -> Option<usize> {
        self.index
    }

    /// The instruction itself.
    #[must_use]
    pub const fn insn(&self) -> Option<Insn> {
        self.insn
    }

    /// What is wrong with it.
    #[must_use]
    pub const fn reason(&self) -> &Reason {
        &self.reason
    }

    /// What the registers held before the instruction, as text (`r1=ctx r2=0..255 r10=fp`). Empty if
    /// the instruction is refused wherever it stands.
    #[must_use]
    pub fn registers(&self) -> &str {
        &self.registers
    }

    pub(crate) const fn at(index: usize, reason: Reason) -> Self {
        Self {
            index: Some(index),
            insn: None,
            reason,
            registers: String::new(),
        }
    }

    pub(crate) const fn whole(reason: Reason) -> Self {
        Self {
            index: None,
            insn: None,
            reason,
            registers: String::new(),
        }
    }

    /// As one of this program.
    pub(crate) fn of(mut self, program: &[Insn]) -> Self {
        self.insn = self.index.and_then(|index| program.get(index).copied());
        self
    }

    pub(crate) fn with_registers(mut self, registers: String) -> Self {
        self.registers = registers;
        self
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(index) = self.index {
            write!(f, "instruction {index}")?;
            if let Some(insn) = self.insn {
                write!(f, ", `{insn}`")?;
            }
            write!(f, ": ")?;
        }
        self.reason.fmt(f)?;
        if !self.registers.is_empty() {
            write!(f, " ({})", self.registers)?;
        }
        Ok(())
    }
}

/// What is wrong with a program. Its author's fault, or that of the compiler's options.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// There is no such instruction.
    NoSuchInstruction,
    /// Registers are 0 to 10.
    NoSuchRegister,
    /// A field that means nothing in this instruction is not zero, or holds none of the values that
    /// it may hold.
    ReservedField,
    /// The kernel has this, a parser here has not.
    Unsupported(&'static str),
    /// A division by the constant 0.
    DivisionByZero,
    /// A shift by a constant below zero or not below the width.
    ShiftTooFar,
    /// A 64-bit constant without its second half.
    HalfConstant,
    /// Register 10 cannot be written.
    FramePointerWritten,
    /// A message has no link or network header, which is what offsets below zero are for.
    NegativeOffset,
    /// A jump or call leads out of its function, out of the program, or into a constant.
    BadTarget {
        /// Where it leads to.
        target: i64,
    },
    /// The end of a function can be walked over.
    NoExit,
    /// No path leads here.
    Unreachable,
    /// Functions that call themselves, directly or not.
    Recursion,
    /// Calls are nested deeper than the kernel takes.
    TooManyFrames {
        /// Most functions on the way, the main one included.
        limit: usize,
    },
    /// A helper function of the kernel's that a parser has not got.
    Helper {
        /// Its number.
        number: i32,
    },
    /// A register is read that holds nothing on this path.
    Uninitialised {
        /// The register.
        reg: u8,
    },
    /// Bytes of the stack are read that hold nothing on this path.
    UninitialisedStack {
        /// Where, in bytes from the frame's end; below zero.
        offset: i64,
        /// How many bytes are read.
        size: u64,
    },
    /// A helper may leave alone bytes of its buffer on the stack that hold nothing on this path: where
    /// it writes to, or how much, is not one number.
    UnwrittenBuffer {
        /// Where the buffer begins, in bytes from the frame's end; below zero.
        offset: i64,
        /// How many bytes are written at most.
        size: u64,
    },
    /// A pointer would be seen as a number: returned, stored outside of the stack, calculated with,
    /// compared.
    PointerLeak {
        /// The register with the pointer.
        reg: u8,
        /// What would be done with it.
        what: &'static str,
    },
    /// A pointer was moved by more than can be followed.
    PointerOutOfRange {
        /// The register with the pointer.
        reg: u8,
    },
    /// A load or store through a register that holds a number.
    NotAPointer {
        /// The register.
        reg: u8,
    },
    /// A load or store through a context pointer that was moved.
    ContextMoved {
        /// The register.
        reg: u8,
    },
    /// There is no such field in the context, or it cannot be read or written so.
    Context {
        /// Offset in `struct __sk_buff` in bytes.
        offset: i64,
        /// How many bytes.
        size: u8,
        /// What is wrong.
        problem: &'static str,
    },
    /// A load, a store or a helper's buffer is not inside of the stack.
    StackRange {
        /// Least offset from the frame's end, in bytes.
        least: i64,
        /// Greatest offset.
        greatest: i64,
        /// How many bytes from there.
        size: u64,
    },
    /// A load or store of the stack is not aligned to its size.
    StackAlignment {
        /// Offset from the frame's end, in bytes.
        offset: i64,
        /// How many bytes.
        size: u64,
    },
    /// Part of a pointer on the stack is read.
    PointerInPieces {
        /// Offset from the frame's end, in bytes.
        offset: i64,
    },
    /// A helper function gets something else than it takes.
    Argument {
        /// The register.
        reg: u8,
        /// What must be in it.
        expected: &'static str,
    },
    /// A load from the message needs the context in register 6.
    PacketContext,
    /// The functions of one chain of calls use more than the stack.
    StackTotal {
        /// What they use together, in bytes.
        bytes: usize,
        /// The whole stack.
        limit: usize,
    },
    /// The path comes back to an instruction and nothing has changed: the loop has no end.
    EndlessLoop,
    /// There is more to explore than is worth it: a loop with too many rounds, or none that can be
    /// seen to end.
    TooComplex {
        /// What there is too much of.
        what: &'static str,
        /// The most that is done.
        limit: usize,
    },
}

impl Reason {
    /// Whether the program asks for something that exists and is not to be had here, rather than
    /// for something wrong.
    pub(crate) const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Unsupported(_) | Self::Helper { .. })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchInstruction => write!(f, "there is no such instruction"),
            Self::NoSuchRegister => write!(f, "there are registers r0 to r{} only", op::FP),
            Self::ReservedField => write!(f, "a field of the instruction must be zero and is not"),
            Self::Unsupported(what) => write!(f, "{what}: a parser has no such thing"),
            Self::DivisionByZero => write!(f, "division by the constant 0"),
            Self::ShiftTooFar => write!(f, "shift by as many bits as there are, or more"),
            Self::HalfConstant => write!(f, "64-bit constant without its second half"),
            Self::FramePointerWritten => write!(f, "r10, the frame pointer, cannot be written"),
            Self::NegativeOffset => write!(
                f,
                "packet load below offset 0: a message has no link or network header, \
                 byte 0 is its first one"
            ),
            Self::BadTarget { target } => {
                write!(f, "leads to {target}, where no instruction of it begins")
            }
            Self::NoExit => write!(f, "a function must end with exit or a jump"),
            Self::Unreachable => write!(f, "no path leads here"),
            Self::Recursion => write!(f, "a function calls itself; use a bounded loop"),
            Self::TooManyFrames { limit } => {
                write!(f, "calls are nested deeper than {limit} functions")
            }
            Self::Helper { number } => {
                match helpers::name(*number) {
                    Some(name) => write!(f, "bpf_{name}#{number}")?,
                    None => write!(f, "there is no helper function {number}")?,
                }
                write!(f, ": a parser has {}", helpers::AVAILABLE)
            }
            Self::Uninitialised { reg } => write!(
                f,
                "register r{reg} is read, but nothing was put into it on this path"
            ),
            Self::UninitialisedStack { offset, size } => write!(
                f,
                "{size} bytes at fp{offset:+} are read, but not all were written on this path"
            ),
            Self::UnwrittenBuffer { offset, size } => write!(
                f,
                "up to {size} bytes at fp{offset:+} are written, and the others hold nothing on this \
                 path: fill the buffer with zeros first"
            ),
            Self::PointerLeak { reg, what } => write!(f, "r{reg} is a pointer: {what}"),
            Self::PointerOutOfRange { reg } => {
                write!(
                    f,
                    "pointer r{reg} is moved by a number without usable bounds"
                )
            }
            Self::NotAPointer { reg } => write!(f, "memory is accessed through r{reg}, a number"),
            Self::ContextMoved { reg } => write!(
                f,
                "the context is accessed through r{reg}, which was moved off its beginning"
            ),
            Self::Context {
                offset,
                size,
                problem,
            } => write!(f, "{size} bytes at ctx{offset:+}: {problem}"),
            Self::StackRange {
                least,
                greatest,
                size,
            } => {
                write!(f, "{size} bytes at fp{least:+}")?;
                if greatest != least {
                    write!(f, " to fp{greatest:+}")?;
                }
                write!(
                    f,
                    " are not inside of the stack, fp-{} to fp",
                    super::STACK_BYTES
                )
            }
            Self::StackAlignment { offset, size } => {
                write!(f, "{size} bytes at fp{offset:+} are not aligned")
            }
            Self::PointerInPieces { offset } => {
                write!(
                    f,
                    "there is a pointer at fp{offset:+}, which can be read only as a whole"
                )
            }
            Self::Argument { reg, expected } => write!(f, "r{reg} must hold {expected}"),
            Self::PacketContext => write!(f, "a packet load needs the context in r6"),
            Self::StackTotal { bytes, limit } => {
                write!(
                    f,
                    "nested functions use {bytes} bytes of stack, the limit is {limit}"
                )
            }
            Self::EndlessLoop => write!(f, "the loop comes back here with nothing changed"),
            Self::TooComplex { what, limit } => {
                write!(
                    f,
                    "the program is too complex: more than {limit} {what}; has every loop an end \
                     that can be seen?"
                )
            }
        }
    }
}
