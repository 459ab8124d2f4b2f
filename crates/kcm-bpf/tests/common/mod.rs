//! What several tests need: an evaluator of eBPF that is as plain as can be, and random classic
//! programs.
#![allow(
    dead_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "no test needs all of it; registers are cut to 32 bits all the time"
)]

pub(crate) mod forms;
pub(crate) mod generate;

use std::io::Write;

use kcm_bpf::{Insn, SockFilter, op::*};
use proptest::prelude::*;

/// Says why a test proves nothing here, past the capture of the test harness.
pub(crate) fn skip(why: &str) {
    let _ = writeln!(std::io::stderr().lock(), "skipped: {why}");
}

const CONTEXT: u64 = 0x1_0000_0000;
const STACK: u64 = 0x2_0000_0000;
const FRAME: usize = 512;
const MAX_FRAMES: usize = 8;
const MAX_STEPS: usize = 1_000_000;

/// Runs a program on the bytes of a message. Anything that a verifier should have refused panics.
pub(crate) fn run(program: &[Insn], message: &[u8]) -> i32 {
    run_over(0, program, message)
}

/// The same; `garbage` is in all registers and bytes of the stack that hold nothing. A program whose
/// result depends on it has read what it did not write.
pub(crate) fn run_over(garbage: u64, program: &[Insn], message: &[u8]) -> i32 {
    Machine {
        program,
        message,
        garbage,
        stack: [0; FRAME * MAX_FRAMES],
        scratch: [0; 20],
        steps: 0,
    }
    .call(0, [CONTEXT, garbage, garbage, garbage, garbage], 0) as i32
}

struct Machine<'a> {
    program: &'a [Insn],
    message: &'a [u8],
    garbage: u64,
    stack: [u8; FRAME * MAX_FRAMES],
    scratch: [u8; 20],
    steps: usize,
}

impl Machine<'_> {
    fn call(&mut self, mut pc: usize, arguments: [u64; 5], depth: usize) -> u64 {
        let mut r = [self.garbage; 16];
        r[1..6].copy_from_slice(&arguments);
        self.stack[FRAME * depth..][..FRAME].fill(self.garbage as u8);
        r[usize::from(FP)] = STACK + (FRAME * (depth + 1)) as u64;
        loop {
            self.steps += 1;
            assert!(self.steps < MAX_STEPS, "endless loop");
            let insn = self.program[pc];
            pc += 1;
            let (dst, src) = (usize::from(insn.dst), usize::from(insn.src));
            let imm = i64::from(insn.imm) as u64;
            let value = if insn.code & X == 0 { imm } else { r[src] };
            let size = match insn.code & 0x18 {
                B => 1,
                H => 2,
                W => 4,
                _ => 8,
            };
            match (insn.class(), insn.code & 0xf0) {
                (LD, _) if insn.is_wide() => {
                    let high = i64::from(self.program[pc].imm) as u64;
                    r[dst] = high << 32 | (imm & 0xffff_ffff);
                    pc += 1;
                }
                (LD, _) => {
                    assert_eq!(r[usize::from(CTX)], CONTEXT, "r6 is not the context");
                    let index = if insn.code & 0xe0 == IND { r[src] } else { 0 };
                    let offset = index.wrapping_add(imm) as i32;
                    match self.packet(offset, size) {
                        Some(value) => r[0] = value,
                        None => return 0,
                    }
                    r[1..6].fill(self.garbage);
                }
                (LDX, _) => {
                    let value = self.load(r[src].wrapping_add_signed(insn.off.into()), size);
                    let unused = 64 - 8 * size as u32;
                    r[dst] = match insn.code & 0xe0 {
                        MEMSX => ((value << unused) as i64 >> unused) as u64,
                        _ => value,
                    };
                }
                (ST, _) => self.store(r[dst].wrapping_add_signed(insn.off.into()), size, imm),
                (STX, _) => self.store(r[dst].wrapping_add_signed(insn.off.into()), size, r[src]),
                (ALU | ALU64, END) => {
                    let bits = 64 - insn.imm as u32;
                    let swapped = r[dst].swap_bytes() >> bits;
                    let kept = r[dst] << bits >> bits;
                    let swap = insn.class() == ALU64 || insn.code & X != 0;
                    r[dst] = if swap { swapped } else { kept };
                }
                (ALU, operation) => {
                    r[dst] = alu32(operation, r[dst] as u32, value as u32, insn.off).into();
                }
                (ALU64, operation) => r[dst] = alu64(operation, r[dst], value, insn.off),
                (JMP, EXIT) => return r[0],
                (JMP, CALL) if insn.src == CALL_LOCAL => {
                    let target = pc.wrapping_add_signed(insn.imm as isize);
                    r[0] = self.call(target, r[1..6].try_into().unwrap(), depth + 1);
                    r[1..6].fill(self.garbage);
                }
                (JMP, CALL) => {
                    let [_, _, offset, to, len, begin, ..] = r;
                    r[1..6].fill(self.garbage);
                    if insn.imm == 5 {
                        r[0] = 0;
                        continue;
                    }
                    assert!(matches!(insn.imm, 26 | 68), "unknown helper");
                    r[0] = -14i64 as u64;
                    let (offset, len) = (offset as u32 as usize, len as usize);
                    let relative = insn.imm == 68;
                    let end = if relative && (offset > 0xffff || begin as u32 != 1) {
                        usize::MAX
                    } else {
                        offset + len
                    };
                    let at = (to - STACK) as usize;
                    if let Some(bytes) = self.message.get(offset..end) {
                        self.stack[at..at + len].copy_from_slice(bytes);
                        r[0] = 0;
                    } else {
                        self.stack[at..at + len].fill(0);
                    }
                }
                (JMP, JA) => pc = pc.wrapping_add_signed(insn.off.into()),
                (JMP32, JA) => pc = pc.wrapping_add_signed(insn.imm as isize),
                (class, comparison) => {
                    let (a, b) = if class == JMP {
                        (r[dst], value)
                    } else {
                        (r[dst] & 0xffff_ffff, value & 0xffff_ffff)
                    };
                    let signed = |v: u64| {
                        if class == JMP {
                            v as i64
                        } else {
                            i64::from(v as i32)
                        }
                    };
                    let (sa, sb) = (signed(a), signed(b));
                    let holds = match comparison {
                        JEQ => a == b,
                        JNE => a != b,
                        JGT => a > b,
                        JGE => a >= b,
                        JLT => a < b,
                        JLE => a <= b,
                        JSET => a & b != 0,
                        JSGT => sa > sb,
                        JSGE => sa >= sb,
                        JSLT => sa < sb,
                        JSLE => sa <= sb,
                        _ => panic!("no such jump: {insn}"),
                    };
                    if holds {
                        pc = pc.wrapping_add_signed(insn.off.into());
                    }
                }
            }
        }
    }

    fn packet(&self, offset: i32, size: usize) -> Option<u64> {
        let offset = usize::try_from(offset).ok()?;
        let bytes = self.message.get(offset..offset.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte)),
        )
    }

    fn load(&self, address: u64, size: usize) -> u64 {
        match (address.wrapping_sub(CONTEXT), size) {
            (field @ 0..4, _) => {
                let len = (self.message.len() as u64) >> (8 * field);
                len & (u64::MAX >> (64 - 8 * size))
            }
            (field @ 48..68, _) => {
                let mut bytes = [0; 8];
                let field = field as usize - 48;
                bytes[..size].copy_from_slice(&self.scratch[field..field + size]);
                u64::from_le_bytes(bytes)
            }
            (0..192, _) => 0,
            _ => {
                let at = (address - STACK) as usize;
                let mut bytes = [0; 8];
                bytes[..size].copy_from_slice(&self.stack[at..at + size]);
                u64::from_le_bytes(bytes)
            }
        }
    }

    fn store(&mut self, address: u64, size: usize, value: u64) {
        match (address.wrapping_sub(CONTEXT), size) {
            (field @ 48..68, _) => {
                let field = field as usize - 48;
                self.scratch[field..field + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
            _ => {
                let at = (address - STACK) as usize;
                self.stack[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
            }
        }
    }
}

fn alu32(operation: u8, a: u32, b: u32, off: i16) -> u32 {
    match operation {
        ADD => a.wrapping_add(b),
        SUB => a.wrapping_sub(b),
        MUL => a.wrapping_mul(b),
        DIV | MOD if off == 1 => {
            let wide = alu64(operation, a as i32 as u64, b as i32 as u64, 1);
            wide as u32
        }
        DIV => a.checked_div(b).unwrap_or(0),
        MOD => a.checked_rem(b).unwrap_or(a),
        OR => a | b,
        AND => a & b,
        XOR => a ^ b,
        LSH => a << (b & 31),
        RSH => a >> (b & 31),
        ARSH => (a as i32 >> (b & 31)) as u32,
        NEG => a.wrapping_neg(),
        MOV => match off {
            8 => i32::from(b as i8) as u32,
            16 => i32::from(b as i16) as u32,
            _ => b,
        },
        _ => panic!("no such operation: {operation:#x}"),
    }
}

fn alu64(operation: u8, a: u64, b: u64, off: i16) -> u64 {
    match operation {
        ADD => a.wrapping_add(b),
        SUB => a.wrapping_sub(b),
        MUL => a.wrapping_mul(b),
        DIV if off == 1 => match b {
            0 => 0,
            _ => (a as i64).wrapping_div(b as i64) as u64,
        },
        MOD if off == 1 => match b {
            0 => a,
            _ => (a as i64).wrapping_rem(b as i64) as u64,
        },
        DIV => a.checked_div(b).unwrap_or(0),
        MOD => a.checked_rem(b).unwrap_or(a),
        OR => a | b,
        AND => a & b,
        XOR => a ^ b,
        LSH => a << (b & 63),
        RSH => a >> (b & 63),
        ARSH => (a as i64 >> (b & 63)) as u64,
        NEG => a.wrapping_neg(),
        MOV => match off {
            8 => i64::from(b as i8) as u64,
            16 => i64::from(b as i16) as u64,
            32 => i64::from(b as i32) as u64,
            _ => b,
        },
        _ => panic!("no such operation: {operation:#x}"),
    }
}

/// A classic program that is right, with all that can change its result; the result is below 257,
/// being the byte of A that `byte` says, plus 1, unless the program ends before.
pub(crate) fn good_program(byte: u32) -> impl Strategy<Value = Vec<SockFilter>> {
    let raw = (any::<u8>(), any::<u32>(), 0u32..6, any::<u8>(), any::<u8>());
    prop::collection::vec(raw, 1..24).prop_map(move |raw| {
        let mut program = Vec::new();
        for word in 0..4 {
            program.push(insn(0x00, 0x1234_5678 * (word + 1)));
            program.push(insn(0x02, word));
        }
        for (index, &(choice, k, kind, jt, jf)) in raw.iter().enumerate() {
            let following = (raw.len() - index) as u8;
            // Numbers of all sizes, as often near the end of a message as not.
            let k = match kind {
                0 => k,
                1 => k % 8,
                2 => k % 64,
                3 => k % 512,
                4 => !(k % 16),
                _ => 1 << (k % 32),
            };
            let mut made = match choice % 64 {
                0..6 => insn(
                    u16::from(ABS | [W, H, B][usize::from(choice / 64) % 3]),
                    k % 400,
                ),
                6..12 => {
                    // In the link or the network header, which a message has not.
                    let is_base = [0xffe0, 0xfff0].contains(&(k >> 16));
                    let k = if is_base { k % 400 } else { k };
                    insn(u16::from(IND | [W, H, B][usize::from(choice / 64) % 3]), k)
                }
                12 => insn(0x80, 0),
                13 => insn(0x81, 0),
                14..16 => insn(0x60, k % 4),
                16..18 => insn(0x61, k % 4),
                18..20 => insn(0x02, k % 4),
                20..22 => insn(0x03, k % 4),
                22 => insn(0xb1, k % 400),
                23 => insn(0x20, 0xffff_f028),
                24 => insn(0x00, k),
                25 => insn(0x01, k),
                26..29 => insn(0x07, 0),
                29..31 => insn(0x87, 0),
                31 => insn(0x84, 0),
                32 => insn(0x05, u32::from(jt % following)),
                33 => insn(0x06, k % 300),
                34..44 => {
                    let comparison = u16::from([JEQ, JGT, JGE, JSET][usize::from(choice / 64)]);
                    insn(0x05 | comparison | u16::from(choice & 8), k)
                }
                _ => {
                    let all = [ADD, SUB, MUL, DIV, MOD, OR, AND, XOR, LSH, RSH];
                    let operation = all[usize::from(jt) % all.len()];
                    let k = match operation {
                        DIV | MOD => k.max(1),
                        LSH | RSH => k % 32,
                        _ => k,
                    };
                    insn(0x04 | u16::from(operation) | u16::from(choice & 8), k)
                }
            };
            if (34..44).contains(&(choice % 64)) {
                (made.jt, made.jf) = (jt % following, jf % following);
            }
            program.push(made);
        }
        program.extend([
            insn(0x74, 8 * byte),
            insn(0x54, 0xff),
            insn(0x04, 1),
            insn(0x16, 0),
        ]);
        program
    })
}

/// A classic program that may be wrong in any way, though not in all at once.
pub(crate) fn any_program() -> impl Strategy<Value = Vec<SockFilter>> {
    let code = prop_oneof![
        20 => prop::sample::select(vec![
            0x00u16, 0x01, 0x02, 0x03, 0x04, 0x0c, 0x05, 0x06, 0x16, 0x07, 0x87, 0x20, 0x28, 0x30,
            0x40, 0x48, 0x50, 0x60, 0x61, 0x80, 0x81, 0xb1, 0x84, 0x15, 0x1d, 0x25, 0x35, 0x45,
            0x34, 0x3c, 0x94, 0x9c, 0x64, 0x6c, 0x74, 0x7c, 0xa4, 0xac, 0x54,
        ]),
        1 => 0u16..256,
    ];
    let k = prop_oneof![
        4 => 0u32..4,
        1 => Just(15u32),
        1 => 0u32..70,
        1 => 0xffff_f000u32 - 4..0xffff_f000 + 70,
        1 => any::<u32>(),
    ];
    let one =
        (code, 0u8..6, 0u8..6, k).prop_map(|(code, jt, jf, k)| SockFilter { code, jt, jf, k });
    (prop::collection::vec(one, 0..12), prop::bool::weighted(0.9)).prop_map(|(mut program, ret)| {
        if ret {
            program.push(insn(0x06, 1));
        }
        program
    })
}

pub(crate) fn insn(code: u16, k: u32) -> SockFilter {
    let (jt, jf) = (0, 0);
    SockFilter { code, jt, jf, k }
}
