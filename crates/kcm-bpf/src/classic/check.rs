//! What the kernel refuses in a classic program is refused here, and nothing else is.
//!
//! Its rules: known operations only, jumps into the program and forward only, constants that an
//! operation can take, a `ret` at the end, and no scratch word read that is not written on every
//! way to the read.

use super::op::*;
use super::{MAX_CLASSIC_INSNS, SockFilter};
use crate::{Error, Result};

/// Refuses what cannot be translated.
pub(super) fn check(program: &[SockFilter]) -> Result<()> {
    let Some(last) = program.last() else {
        return Err(Error::Empty);
    };
    if program.len() > MAX_CLASSIC_INSNS {
        let limit = MAX_CLASSIC_INSNS;
        return Err(Error::TooLong { limit });
    }
    for (index, &insn) in program.iter().enumerate() {
        let following = program.len() - index - 1;
        if let Some(problem) = problem_of(insn, following) {
            return Err(refuse(index, insn, problem));
        }
    }
    if last.code & 0x07 != u16::from(RET) {
        let problem = "the last instruction must be a ret";
        return Err(refuse(program.len() - 1, *last, problem));
    }
    check_scratch(program)
}

fn refuse(index: usize, insn: SockFilter, problem: &'static str) -> Error {
    Error::Classic {
        index,
        insn,
        problem,
    }
}

/// What is wrong with an instruction that `following` others stand behind.
fn problem_of(insn: SockFilter, following: usize) -> Option<&'static str> {
    let Ok(code) = u8::try_from(insn.code) else {
        return Some("no such operation");
    };
    let k = insn.k;
    let bad_word = k >= u32::from(SCRATCH_WORDS);
    let reaches = |skip: u64| skip < following as u64;
    match (code & 0x07, code & 0xf8) {
        (LD | LDX, MEM) | (ST | STX, 0) => bad_word.then_some("scratch words are 0 to 15"),
        (LD, mode) => match (mode & 0xe0, mode & 0x18) {
            (ABS, W | H | B) => (k >= AD_OFF && ancillary(k).is_none())
                .then_some("no such ancillary data, and no packet is so long"),
            (IND, W | H | B) | (IMM | LEN, W) => None,
            _ => Some("no such load"),
        },
        (LDX, mode) => match (mode & 0xe0, mode & 0x18) {
            (MSH, B) | (IMM | LEN, W) => None,
            _ => Some("no such load into X"),
        },
        (ALU, operation) => match (operation & 0xf0, operation & 0x08) {
            (DIV | MOD, K) => (k == 0).then_some("division by 0"),
            (LSH | RSH, K) => (k >= 32).then_some("A has 32 bits: shift by 0 to 31"),
            (ADD | SUB | MUL | OR | AND | XOR, K) | (NEG, K) => None,
            (ADD | SUB | MUL | DIV | MOD | OR | AND | XOR | LSH | RSH, X) => None,
            _ => Some("no such operation on A"),
        },
        (JMP, operation) => match (operation & 0xf0, operation & 0x08) {
            (JA, K) => (!reaches(u64::from(k))).then_some("jump beyond the end"),
            (JEQ | JGT | JGE | JSET, K | X) => {
                let farthest = insn.jt.max(insn.jf);
                (!reaches(u64::from(farthest))).then_some("jump beyond the end")
            }
            _ => Some("no such jump"),
        },
        (RET, K | A) | (MISC, TAX | TXA) => None,
        _ => Some("no such operation"),
    }
}

/// Refuses reads of scratch words that are not written on every way from the start.
///
/// Jumps go forward only, so one pass suffices: each jump narrows what is known to be written at
/// its target. As in the kernel, what stands behind a `ret` counts as if the `ret` fell through;
/// what stands behind a jump does not.
fn check_scratch(program: &[SockFilter]) -> Result<()> {
    const ALL: u16 = u16::MAX;
    let mut written_at = vec![ALL; program.len()];
    let mut written: u16 = 0;
    for (index, &insn) in program.iter().enumerate() {
        written &= written_at[index];
        let next = index + 1;
        // All operations are known here, and so fit 8 bits.
        let [code, _] = insn.code.to_le_bytes();
        match (code & 0x07, code & 0xf8) {
            (ST | STX, _) => written |= 1 << insn.k,
            (LD | LDX, MEM) if written & (1 << insn.k) == 0 => {
                let problem = "this scratch word is not written on every way to here";
                return Err(refuse(index, insn, problem));
            }
            (JMP, JA) => {
                written_at[next + insn.k as usize] &= written;
                written = ALL;
            }
            (JMP, _) => {
                written_at[next + usize::from(insn.jt)] &= written;
                written_at[next + usize::from(insn.jf)] &= written;
                written = ALL;
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the kernel's ancillary data at an offset is, if there is any.
pub(super) const fn ancillary(k: u32) -> Option<&'static str> {
    Some(match k.wrapping_sub(AD_OFF) {
        0 => "the packet's protocol",
        4 => "the packet's type",
        8 => "the interface's index",
        12 => "a netlink attribute",
        16 => "a nested netlink attribute",
        20 => "the packet's mark",
        24 => "the packet's queue",
        28 => "the interface's type",
        32 => "the packet's hash",
        36 => "the processor's number",
        40 => "A ^ X",
        44 => "the VLAN tag",
        48 => "whether there is a VLAN tag",
        52 => "the payload's offset",
        56 => "a random number",
        60 => "the VLAN protocol",
        _ => return None,
    })
}
