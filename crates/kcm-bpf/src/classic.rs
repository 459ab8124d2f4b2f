//! Classic BPF: the language of `tcpdump -d`, and what socket filters were written in first.
//!
//! It has an accumulator A, an index X, 16 words of scratch memory and forward jumps only, so that
//! every program ends. The kernel checks such a program and then translates it to eBPF; so do we
//! (`check.rs`, `translate.rs`), with the same refusals and the same results, and everything behind
//! this module knows eBPF alone.
//!
//! A program comes as an array of [`SockFilter`] or as text. The text is what `tcpdump -ddd` prints:
//! the number of instructions, then four decimal numbers for each. They are separated by line ends
//! as it prints them, or by commas as the `bpf` match of iptables takes them.

mod check;
mod translate;

use std::fmt;

use crate::error::shorten;
use crate::{Error, Insn, Result};

/// Most instructions of a classic program: `BPF_MAXINSNS` of the kernel. Translated, every jump
/// still fits the 16 bits that eBPF has for one.
pub const MAX_CLASSIC_INSNS: usize = 4096;

/// One instruction of classic BPF, laid out as `struct sock_filter` of `<linux/filter.h>`.
///
/// Displayed, it is a piece of the text form: `40 0 0 12`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct SockFilter {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the condition holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Constant.
    pub k: u32,
}

impl fmt::Display for SockFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.code, self.jt, self.jf, self.k)
    }
}

/// Reads the text of a classic program. Whether it makes sense is for [`to_ebpf`] to say.
///
/// ```
/// // Length of a DNS message over TCP: ldh [0]; add #2; ret a
/// let program = kcm_bpf::classic::parse_text("3,40 0 0 0,4 0 0 2,22 0 0 0")?;
/// assert_eq!(program.len(), 3);
/// assert_eq!(program[1].k, 2);
/// # Ok::<(), kcm_bpf::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Text`] (`EINVAL`) with the piece that was not understood, [`Error::Empty`] (`EINVAL`),
/// or [`Error::TooLong`] (`E2BIG`) beyond [`MAX_CLASSIC_INSNS`].
pub fn parse_text(text: &str) -> Result<Vec<SockFilter>> {
    // Empty ones are what `tr '\n' ','` makes of the last line's end, or a comma before one.
    let pieces = text.split([',', '\n']).map(str::trim);
    let mut pieces = pieces.filter(|piece| !piece.is_empty());
    let head = pieces.next().unwrap_or_default();
    let count: usize = head.parse().map_err(|_| {
        let problem = "the number of instructions should stand first, and before a line's end or a \
                       comma, as tcpdump -ddd prints it";
        text_error(head, problem)
    })?;
    if count == 0 {
        return Err(Error::Empty);
    }
    if count > MAX_CLASSIC_INSNS {
        let limit = MAX_CLASSIC_INSNS;
        return Err(Error::TooLong { limit });
    }
    let mut program = Vec::with_capacity(count);
    for piece in pieces.by_ref().take(count) {
        program.push(parse_insn(piece)?);
    }
    if program.len() < count {
        return Err(text_error(head, "so many instructions should follow"));
    }
    if let Some(piece) = pieces.next() {
        let problem = "more instructions than the number at the start says";
        return Err(text_error(piece, problem));
    }
    Ok(program)
}

/// Checks a classic program as the kernel does and translates it to eBPF.
///
/// A packet load beyond the end ends the program with 0, "need more", and so does a division by an
/// X that is 0. The result is the low half of r0, which KCM takes as a signed number.
///
/// ```
/// use kcm_bpf::classic;
/// let dns = classic::parse_text("3,40 0 0 0,4 0 0 2,22 0 0 0")?;
/// let program = classic::to_ebpf(&dns)?;
/// assert!(kcm_bpf::disassemble(&program).to_string().contains("r0 = *(u16 *)skb[0]"));
/// # Ok::<(), kcm_bpf::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Empty`] and [`Error::Classic`] (`EINVAL`), [`Error::TooLong`] (`E2BIG`);
/// [`Error::NoSuchData`] (`EOPNOTSUPP`) if the program asks for what a packet has and a message has
/// not: its network and link headers, and all ancillary data. (The ancillary "load" that is none,
/// `SKF_AD_ALU_XOR_X`, is there.)
pub fn to_ebpf(program: &[SockFilter]) -> Result<Vec<Insn>> {
    check::check(program)?;
    translate::translate(program)
}

fn parse_insn(piece: &str) -> Result<SockFilter> {
    let problem = "an instruction should be four decimal numbers: code, jt, jf, k";
    let mut words = piece.split_ascii_whitespace();
    let mut word = || words.next().ok_or_else(|| text_error(piece, problem));
    let parsed = [word()?, word()?, word()?, word()?];
    if words.next().is_some() {
        return Err(text_error(piece, problem));
    }
    let [code, jt, jf, k] = parsed;
    let insn = || {
        Some(SockFilter {
            code: code.parse().ok()?,
            jt: jt.parse().ok()?,
            jf: jf.parse().ok()?,
            k: k.parse().ok()?,
        })
    };
    insn().ok_or_else(|| {
        let problem = "code is a number below 65536, jt and jf are below 256, k is below 2^32";
        text_error(piece, problem)
    })
}

fn text_error(piece: &str, problem: &'static str) -> Error {
    Error::Text {
        piece: shorten(piece),
        problem,
    }
}

/// The parts of [`SockFilter::code`], by their names in `<linux/bpf_common.h>`, and negative offsets
/// from `<linux/filter.h>`.
mod op {
    pub(super) use crate::op::{
        ABS, ADD, ALU, AND, B, DIV, H, IMM, IND, JA, JEQ, JGE, JGT, JMP, JSET, K, LD, LDX, LSH,
        MEM, MOD, MUL, NEG, OR, RSH, ST, STX, SUB, W, X, XOR,
    };

    // Classes that eBPF has given to other things.
    pub(super) const RET: u8 = 0x06;
    pub(super) const MISC: u8 = 0x07;

    // Modes of a load.
    pub(super) const LEN: u8 = 0x80;
    pub(super) const MSH: u8 = 0xa0;

    /// `ret a`.
    pub(super) const A: u8 = 0x10;
    pub(super) const TAX: u8 = 0x00;
    pub(super) const TXA: u8 = 0x80;

    /// Words of scratch memory, `BPF_MEMWORDS`.
    pub(super) const SCRATCH_WORDS: u8 = 16;

    /// From here on an absolute load means ancillary data.
    pub(super) const AD_OFF: u32 = 0xffff_f000;
    /// Base of the network header.
    pub(super) const NET_OFF: u32 = 0xfff0_0000;
    /// Base of the link header.
    pub(super) const LL_OFF: u32 = 0xffe0_0000;
    /// The ancillary load that is an operation: A ^= X.
    pub(super) const AD_ALU_XOR_X: u32 = AD_OFF + 40;
}

#[cfg(test)]
mod tests;
