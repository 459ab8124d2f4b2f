//! From classic BPF to eBPF.
//!
//! A is r0, where eBPF's packet loads leave their value too and where a result has to be; X is r7,
//! which they leave alone; the context is r6, where they expect it. The scratch memory is at the
//! end of the stack. Arithmetic and comparisons are the 32-bit ones, so both registers always hold
//! a number below 2^32.
//!
//! Only what can be reached is translated: classic programs may have dead code, eBPF programs may
//! not. As jumps go forward, one pass knows what can be reached and another can place it.

use super::check::ancillary;
use super::op::*;
use super::{MAX_CLASSIC_INSNS, SockFilter};
use crate::op::{ALU64, CTX, EXIT, FP, JLE, JLT, JMP32, JNE, MOV};
use crate::{Error, Insn, Result};

const REG_A: u8 = 0;
const REG_X: u8 = 7;
/// Holds A while `ldx msh` needs its register.
const REG_TMP: u8 = 8;

/// Most instructions that one becomes (`ldx msh`).
const MAX_EXPANSION: usize = 6;
/// Instructions before the first.
const PROLOGUE: usize = 3;
const _: () = assert!(MAX_CLASSIC_INSNS * MAX_EXPANSION + PROLOGUE <= i16::MAX as usize);

/// Translates a program that was checked.
pub(super) fn translate(program: &[SockFilter]) -> Result<Vec<Insn>> {
    let reachable = reachable(program);
    let mut out = Output::default();
    out.mov(CTX, 1);
    out.mov32_imm(REG_A, 0);
    out.mov32_imm(REG_X, 0);
    debug_assert_eq!(out.insns.len(), PROLOGUE);
    for (index, &insn) in program.iter().enumerate() {
        let start = out.insns.len();
        out.starts.push(start);
        if reachable[index] {
            out.translate_one(index, insn)?;
            debug_assert!(out.insns.len() - start <= MAX_EXPANSION);
        }
    }
    Ok(out.link())
}

fn reachable(program: &[SockFilter]) -> Vec<bool> {
    let mut reachable = vec![false; program.len()];
    reachable[0] = true;
    for (index, insn) in program.iter().enumerate() {
        if !reachable[index] {
            continue;
        }
        let next = index + 1;
        let [code, _] = insn.code.to_le_bytes();
        match code & 0x07 {
            RET => {}
            JMP if code & 0xf0 == JA => reachable[next + insn.k as usize] = true,
            JMP => {
                reachable[next + usize::from(insn.jt)] = true;
                reachable[next + usize::from(insn.jf)] = true;
            }
            _ => reachable[next] = true,
        }
    }
    reachable
}

#[derive(Default)]
struct Output {
    insns: Vec<Insn>,
    /// Where the translation of each classic instruction begins.
    starts: Vec<usize>,
    /// Jumps, and the classic instructions that they lead to.
    jumps: Vec<(usize, usize)>,
}

impl Output {
    fn translate_one(&mut self, index: usize, insn: SockFilter) -> Result<()> {
        let SockFilter { jt, jf, k, .. } = insn;
        let [code, _] = insn.code.to_le_bytes();
        let size = code & 0x18;
        match (code & 0x07, code & 0xf8) {
            (LD, MEM) => self.load(REG_A, FP, scratch_offset(k)),
            (LDX, MEM) => self.load(REG_X, FP, scratch_offset(k)),
            (ST, _) => self.store_scratch(k, REG_A),
            (STX, _) => self.store_scratch(k, REG_X),
            (LD, mode) => match mode & 0xe0 {
                ABS if k == AD_ALU_XOR_X => self.alu(XOR, REG_A, Operand::Reg(REG_X)),
                ABS => self.packet(ABS | size, 0, packet_offset(index, k)?),
                IND => {
                    refuse_header_base(index, k)?;
                    self.packet(IND | size, REG_X, k);
                }
                LEN => self.load(REG_A, CTX, 0),
                _ => self.mov32_imm(REG_A, k),
            },
            (LDX, mode) => match mode & 0xe0 {
                MSH => {
                    let offset = packet_offset(index, k)?;
                    self.alu(MOV, REG_TMP, Operand::Reg(REG_A));
                    self.packet(ABS | B, 0, offset);
                    self.alu(AND, REG_A, Operand::Imm(0xf));
                    self.alu(LSH, REG_A, Operand::Imm(2));
                    self.alu(MOV, REG_X, Operand::Reg(REG_A));
                    self.alu(MOV, REG_A, Operand::Reg(REG_TMP));
                }
                LEN => self.load(REG_X, CTX, 0),
                _ => self.mov32_imm(REG_X, k),
            },
            (ALU, operation) => {
                let operand = operand(code, k);
                let operation = operation & 0xf0;
                if matches!(operation, DIV | MOD) && matches!(operand, Operand::Reg(_)) {
                    // if X == 0, return 0
                    self.jump32(JNE, Operand::Imm(0), REG_X, 2);
                    self.mov32_imm(REG_A, 0);
                    self.exit();
                }
                self.alu(operation, REG_A, operand);
            }
            (JMP, operation) => {
                let next = index + 1;
                if operation & 0xf0 == JA {
                    self.goto(next + k as usize, next);
                } else {
                    let (yes, no) = (next + usize::from(jt), next + usize::from(jf));
                    self.branch(operation & 0xf0, operand(code, k), yes, no, next);
                }
            }
            (RET, source) => {
                if source == K {
                    self.mov32_imm(REG_A, k);
                }
                self.exit();
            }
            // The check has left only these two.
            (_, source) => {
                let (to, from) = if source == TXA {
                    (REG_A, REG_X)
                } else {
                    (REG_X, REG_A)
                };
                self.alu(MOV, to, Operand::Reg(from));
            }
        }
        Ok(())
    }

    /// To `yes` if A compares so, else to `no`. What leads to `next` need not jump.
    fn branch(&mut self, condition: u8, operand: Operand, yes: usize, no: usize, next: usize) {
        let inverted = match condition {
            JEQ => Some(JNE),
            JGT => Some(JLE),
            JGE => Some(JLT),
            _ => None,
        };
        match inverted {
            _ if yes == no => self.goto(yes, next),
            Some(inverted) if yes == next => {
                self.jumps.push((self.insns.len(), no));
                self.jump32(inverted, operand, REG_A, 0);
            }
            _ => {
                self.jumps.push((self.insns.len(), yes));
                self.jump32(condition, operand, REG_A, 0);
                self.goto(no, next);
            }
        }
    }

    fn goto(&mut self, target: usize, next: usize) {
        if target != next {
            self.jumps.push((self.insns.len(), target));
            self.push(JMP | JA, 0, 0, 0, 0);
        }
    }

    fn jump32(&mut self, condition: u8, operand: Operand, dst: u8, off: i16) {
        let (source, src, imm) = operand.parts();
        self.push(JMP32 | condition | source, dst, src, off, imm);
    }

    fn alu(&mut self, operation: u8, dst: u8, operand: Operand) {
        let (source, src, imm) = operand.parts();
        self.push(ALU | operation | source, dst, src, 0, imm);
    }

    fn mov(&mut self, dst: u8, src: u8) {
        self.push(ALU64 | MOV | X, dst, src, 0, 0);
    }

    fn mov32_imm(&mut self, dst: u8, k: u32) {
        self.alu(MOV, dst, Operand::Imm(k));
    }

    fn packet(&mut self, mode_and_size: u8, src: u8, k: u32) {
        self.push(LD | mode_and_size, 0, src, 0, k.cast_signed());
    }

    fn load(&mut self, dst: u8, base: u8, off: i16) {
        self.push(LDX | MEM | W, dst, base, off, 0);
    }

    fn store_scratch(&mut self, word: u32, src: u8) {
        let code = STX | MEM | W;
        self.push(code, FP, src, scratch_offset(word), 0);
    }

    fn exit(&mut self) {
        self.push(JMP | EXIT, 0, 0, 0, 0);
    }

    fn push(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn {
            code,
            dst,
            src,
            off,
            imm,
        });
    }

    fn link(mut self) -> Vec<Insn> {
        for (at, target) in self.jumps {
            let distance = self.starts[target] - (at + 1);
            self.insns[at].off = i16::try_from(distance).expect("asserted at the limits");
        }
        self.insns
    }
}

#[derive(Clone, Copy)]
enum Operand {
    Imm(u32),
    Reg(u8),
}

impl Operand {
    const fn parts(self) -> (u8, u8, i32) {
        match self {
            Self::Imm(k) => (K, 0, k.cast_signed()),
            Self::Reg(register) => (X, register, 0),
        }
    }
}

const fn operand(code: u8, k: u32) -> Operand {
    if code & X == 0 {
        Operand::Imm(k)
    } else {
        Operand::Reg(REG_X)
    }
}

/// Where a word of scratch memory lies on the stack.
fn scratch_offset(word: u32) -> i16 {
    let word = i16::try_from(word).expect("checked: below 16");
    (word - i16::from(SCRATCH_WORDS)) * 4
}

/// The offset of an absolute load, if it is one from the message's start.
fn packet_offset(index: usize, k: u32) -> Result<u32> {
    let what = match k {
        0..=0x7fff_ffff => return Ok(k),
        NET_OFF..AD_OFF => "from its network header",
        LL_OFF..NET_OFF => "from its link header",
        AD_OFF.. => ancillary(k).unwrap_or("ancillary data"),
        _ => "from before its start",
    };
    Err(Error::NoSuchData { index, what })
}

/// Refuses an indirect load from one of the packet's headers. Other negative constants are fine, X
/// may make up for them.
fn refuse_header_base(index: usize, k: u32) -> Result<()> {
    /// No header is longer than this.
    const LONGEST: u32 = 0xffff;
    let is_at = |base: u32| (base..=base + LONGEST).contains(&k);
    if is_at(NET_OFF) || is_at(LL_OFF) {
        packet_offset(index, k)?;
    }
    Ok(())
}
