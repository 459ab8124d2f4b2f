//! One instruction of eBPF, as it stands in memory: 8 bytes.
//!
//! This is the form that everything in this crate meets in. Classic programs are translated to it,
//! objects are read and linked to it, the verifier judges it, and the interpreter is made from it.
//! A program is a slice of these: the main function begins at index 0, its subprograms follow, a
//! call to one (`call` with `src` = 1) is relative to the next instruction as a jump is, and a
//! 64-bit constant takes two.
//!
//! Numbers and names are those of RFC 9669.

/// One 8-byte instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
