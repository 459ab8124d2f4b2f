//! One instruction of eBPF: 8 bytes.
//!
//! This is the form that everything in this crate meets in. Classic programs are translated to it,
//! objects are read and linked to it, the verifier judges it, and the interpreter is made from it.
//! A program is a slice of these: the main function begins at index 0, its subprograms follow, a
//! call to one (`call` with `src` = 1) is relative to the next instruction as a jump is, and a
//! 64-bit constant takes two.
//!
//! Numbers and names are those of [RFC 9669](https://www.rfc-editor.org/rfc/rfc9669).

use crate::{Error, Result};

/// Most instructions that a program may have, subprograms included: as many as the kernel takes
/// from a privileged caller. It bounds the memory that a load needs, to 12 MB.
pub const MAX_INSNS: usize = 1_000_000;

/// One 8-byte instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Insn {
    /// Operation: class in the low three bits.
    pub code: u8,
    /// Register that is written, 0 to 10.
    pub dst: u8,
    /// Register that is read, 0 to 10; for `call` and 64-bit constants, which kind.
    pub src: u8,
    /// Jump distance in instructions, or offset in bytes.
    pub off: i16,
    /// Constant.
    pub imm: i32,
}

impl Insn {
    /// Its length in memory, in bytes.
    pub const BYTES: usize = 8;

    /// An instruction of these parts, in the order of the kernel's `BPF_RAW_INSN`.
    ///
    /// ```
    /// use kcm_bpf::{Insn, Program, op};
    /// // r0 = 9
    /// let nine = Insn::new(op::ALU64 | op::MOV, 0, 0, 0, 9);
    /// let exit = Insn::new(op::JMP | op::EXIT, 0, 0, 0, 0);
    /// assert!(Program::verify(vec![nine, exit]).is_ok());
    /// ```
    #[must_use]
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        Self {
            code,
            dst,
            src,
            off,
            imm,
        }
    }

    /// Reads an instruction as it lies in the memory of a little-endian machine. Any 8 bytes are
    /// one, with registers up to 15; what makes no sense is the verifier's to refuse.
    ///
    /// ```
    /// use kcm_bpf::Insn;
    /// let exit = Insn::decode([0x95, 0, 0, 0, 0, 0, 0, 0]);
    /// assert_eq!(exit.code, kcm_bpf::op::JMP | kcm_bpf::op::EXIT);
    /// assert_eq!(exit.encode(), [0x95, 0, 0, 0, 0, 0, 0, 0]);
    /// ```
    #[must_use]
    pub const fn decode(bytes: [u8; Self::BYTES]) -> Self {
        let [code, registers, o0, o1, i0, i1, i2, i3] = bytes;
        Self {
            code,
            dst: registers & 0xf,
            src: registers >> 4,
            off: i16::from_le_bytes([o0, o1]),
            imm: i32::from_le_bytes([i0, i1, i2, i3]),
        }
    }

    /// Writes an instruction as [`decode`](Self::decode) reads it. Registers have four bits; of
    /// greater numbers the low four are written.
    #[must_use]
    pub const fn encode(self) -> [u8; Self::BYTES] {
        let [o0, o1] = self.off.to_le_bytes();
        let [i0, i1, i2, i3] = self.imm.to_le_bytes();
        let registers = (self.dst & 0xf) | (self.src << 4);
        [self.code, registers, o0, o1, i0, i1, i2, i3]
    }

    /// Reads a whole program of raw bytes, as `llvm-objcopy -O binary` or `bpftool prog dump`
    /// write them.
    ///
    /// # Errors
    ///
    /// [`Error::RawLength`] (`EINVAL`) unless the bytes are whole instructions,
    /// [`Error::TooLong`] (`E2BIG`) beyond [`MAX_INSNS`].
    pub fn decode_all(bytes: &[u8]) -> Result<Vec<Self>> {
        let (chunks, rest) = bytes.as_chunks();
        if chunks.is_empty() || !rest.is_empty() {
            let len_bytes = bytes.len();
            return Err(Error::RawLength { len_bytes });
        }
        if chunks.len() > MAX_INSNS {
            return Err(Error::TooLong { limit: MAX_INSNS });
        }
        Ok(chunks.iter().copied().map(Self::decode).collect())
    }

    /// Its class: one of those at the head of [`op`].
    #[must_use]
    pub const fn class(&self) -> u8 {
        self.code & 0x07
    }

    /// Whether this is the first half of a 64-bit constant. The second half has code 0 and the
    /// upper 32 bits in `imm`.
    #[must_use]
    pub const fn is_wide(&self) -> bool {
        self.code == op::LD | op::IMM | op::DW
    }

    /// Whether this calls a function of the same program.
    #[must_use]
    pub const fn is_local_call(&self) -> bool {
        self.code == op::JMP | op::CALL && self.src == op::CALL_LOCAL
    }
}

/// The parts that make up [`Insn::code`], and a few values of other fields, by their names in
/// RFC 9669.
pub mod op {
    #![allow(missing_docs, reason = "the names are the documentation: RFC 9669")]

    // Classes, in the low three bits.
    pub const LD: u8 = 0x00;
    pub const LDX: u8 = 0x01;
    pub const ST: u8 = 0x02;
    pub const STX: u8 = 0x03;
    pub const ALU: u8 = 0x04;
    pub const JMP: u8 = 0x05;
    pub const JMP32: u8 = 0x06;
    pub const ALU64: u8 = 0x07;

    // Second operand of arithmetic and jumps: the constant, or the source register.
    pub const K: u8 = 0x00;
    pub const X: u8 = 0x08;

    // Arithmetic.
    pub const ADD: u8 = 0x00;
    pub const SUB: u8 = 0x10;
    pub const MUL: u8 = 0x20;
    /// Signed with `off` = 1.
    pub const DIV: u8 = 0x30;
    pub const OR: u8 = 0x40;
    pub const AND: u8 = 0x50;
    pub const LSH: u8 = 0x60;
    pub const RSH: u8 = 0x70;
    pub const NEG: u8 = 0x80;
    /// Signed with `off` = 1.
    pub const MOD: u8 = 0x90;
    pub const XOR: u8 = 0xa0;
    /// Sign extending with `off` = 8, 16 or 32.
    pub const MOV: u8 = 0xb0;
    pub const ARSH: u8 = 0xc0;
    /// Byte swap of `imm` = 16, 32 or 64 bits. In class [`ALU`] to little ([`K`]) or big ([`X`])
    /// endian, in class [`ALU64`] always.
    pub const END: u8 = 0xd0;

    // Jumps.
    /// In class [`JMP32`] by `imm`, not `off`.
    pub const JA: u8 = 0x00;
    pub const JEQ: u8 = 0x10;
    pub const JGT: u8 = 0x20;
    pub const JGE: u8 = 0x30;
    pub const JSET: u8 = 0x40;
    pub const JNE: u8 = 0x50;
    pub const JSGT: u8 = 0x60;
    pub const JSGE: u8 = 0x70;
    pub const CALL: u8 = 0x80;
    pub const EXIT: u8 = 0x90;
    pub const JLT: u8 = 0xa0;
    pub const JLE: u8 = 0xb0;
    pub const JSLT: u8 = 0xc0;
    pub const JSLE: u8 = 0xd0;

    // Width of a load or store.
    pub const W: u8 = 0x00;
    pub const H: u8 = 0x08;
    pub const B: u8 = 0x10;
    pub const DW: u8 = 0x18;

    // Mode of a load or store.
    pub const IMM: u8 = 0x00;
    /// Packet load at `imm`, into register 0, in network order.
    pub const ABS: u8 = 0x20;
    /// Packet load at the source register plus `imm`.
    pub const IND: u8 = 0x40;
    pub const MEM: u8 = 0x60;
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;

    // `src` of a call: a helper function by its number, or a function of the same program.
    pub const CALL_HELPER: u8 = 0;
    pub const CALL_LOCAL: u8 = 1;

    /// Register with the end of the function's stack.
    pub const FP: u8 = 10;
    /// Register that must hold the context when a packet load comes.
    pub const CTX: u8 = 6;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_eight_bytes_survive(bytes: [u8; 8]) {
            prop_assert_eq!(Insn::decode(bytes).encode(), bytes);
        }
    }

    #[test]
    fn fields_lie_where_the_document_says() {
        // `if r3 s> -2 goto -3`, as clang writes it.
        let insn = Insn::decode([0x65, 0x03, 0xfd, 0xff, 0xfe, 0xff, 0xff, 0xff]);
        let expected = Insn {
            code: op::JMP | op::JSGT | op::K,
            dst: 3,
            src: 0,
            off: -3,
            imm: -2,
        };
        assert_eq!(insn, expected);
    }

    #[test]
    fn a_raw_program_is_whole_instructions() {
        let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(Insn::decode_all(&exit), Ok(vec![Insn::decode(exit)]));
        for len_bytes in [0, 7, 9] {
            let result = Insn::decode_all(&[0; 9][..len_bytes]);
            assert_eq!(result, Err(Error::RawLength { len_bytes }));
        }
    }
}
