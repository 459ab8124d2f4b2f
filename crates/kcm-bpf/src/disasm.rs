//! Programs as text, one instruction a line, as `llvm-objdump -d` writes them, with decimal numbers
//! and without labels. A call of a known helper function has its name behind it.

use std::fmt;

use crate::Insn;
use crate::op::*;
use crate::verifier::helpers;

/// A listing of a program, for people. Any instructions can be listed; what is none is shown as
/// `<unknown>` with its bytes.
///
/// ```
/// use kcm_bpf::{classic, disassemble};
/// let program = classic::to_ebpf(&classic::parse_text("2,48 0 0 16,22 0 0 0")?)?;
/// let listing = disassemble(&program).to_string();
/// assert_eq!(listing.lines().nth(3), Some("    3: r0 = *(u8 *)skb[16]"));
/// # Ok::<(), kcm_bpf::Error>(())
/// ```
#[must_use]
pub fn disassemble(program: &[Insn]) -> impl fmt::Display {
    Listing(program)
}

struct Listing<'a>(&'a [Insn]);

impl fmt::Display for Listing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut insns = self.0.iter().enumerate();
        while let Some((index, insn)) = insns.next() {
            write!(f, "{index:>5}: ")?;
            match self.0.get(index + 1) {
                Some(second) if insn.is_wide() && second.code == 0 => {
                    insns.next();
                    let value = (i64::from(second.imm) << 32) | i64::from(insn.imm.cast_unsigned());
                    write_wide(f, insn, value)?;
                }
                _ => insn.fmt(f)?,
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

/// As one line of a listing. Of a 64-bit constant the lower half only, as the other is in the next
/// instruction.
impl fmt::Display for Insn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = match self.class() {
            LD => write_packet_load(f, self),
            LDX => write_load(f, self),
            ST | STX => write_store(f, self),
            ALU | ALU64 => write_alu(f, self),
            _ => write_jump(f, self),
        };
        written.unwrap_or_else(|| write_unknown(f, self))
    }
}

/// `None`: there is no such instruction.
type Written = Option<fmt::Result>;

fn write_unknown(f: &mut fmt::Formatter<'_>, insn: &Insn) -> fmt::Result {
    write!(f, "<unknown>")?;
    for byte in insn.encode() {
        write!(f, " {byte:02x}")?;
    }
    Ok(())
}

fn write_wide(f: &mut fmt::Formatter<'_>, insn: &Insn, value: i64) -> fmt::Result {
    let dst = insn.dst;
    match insn.src {
        0 => write!(f, "r{dst} = {value} ll"),
        kind => write!(f, "r{dst} = {value} ll # kind {kind}"),
    }
}

fn write_packet_load(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    if insn.is_wide() {
        return Some(write_wide(f, insn, i64::from(insn.imm.cast_unsigned())));
    }
    let (bits, imm, src) = (bits(insn), insn.imm, insn.src);
    match insn.code & 0xe0 {
        _ if bits == 64 => None,
        ABS => Some(write!(f, "r0 = *(u{bits} *)skb[{imm}]")),
        IND if imm == 0 => Some(write!(f, "r0 = *(u{bits} *)skb[r{src}]")),
        IND => Some(write!(f, "r0 = *(u{bits} *)skb[r{src} {}]", Offset(imm))),
        _ => None,
    }
}

fn write_load(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    let (dst, src, bits, off) = (insn.dst, insn.src, bits(insn), Offset(insn.off));
    let sign = match insn.code & 0xe0 {
        MEM => 'u',
        MEMSX if bits < 64 => 's',
        _ => return None,
    };
    Some(write!(f, "r{dst} = *({sign}{bits} *)(r{src} {off})"))
}

fn write_store(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    let (dst, src, bits, off) = (insn.dst, insn.src, bits(insn), Offset(insn.off));
    match (insn.class(), insn.code & 0xe0) {
        (ST, MEM) => Some(write!(f, "*(u{bits} *)(r{dst} {off}) = {}", insn.imm)),
        (STX, MEM) => Some(write!(f, "*(u{bits} *)(r{dst} {off}) = r{src}")),
        (STX, ATOMIC) if bits >= 32 => write_atomic(f, insn),
        _ => None,
    }
}

fn write_atomic(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    const FETCH: i32 = 0x01;
    const XCHG: i32 = 0xe1;
    const CMPXCHG: i32 = 0xf1;
    let (dst, src, bits, off) = (insn.dst, insn.src, bits(insn), Offset(insn.off));
    let r = if bits == 64 { 'r' } else { 'w' };
    let place = format!("(r{dst} {off}");
    match insn.imm {
        XCHG => {
            return Some(write!(
                f,
                "{r}{src} = xchg{}{place}, {r}{src})",
                suffix(bits)
            ));
        }
        CMPXCHG => {
            let suffix = suffix(bits);
            return Some(write!(f, "{r}0 = cmpxchg{suffix}{place}, {r}0, {r}{src})"));
        }
        _ => {}
    }
    let (name, operator) = match u8::try_from(insn.imm & !FETCH) {
        Ok(ADD) => ("add", "+="),
        Ok(OR) => ("or", "|="),
        Ok(AND) => ("and", "&="),
        Ok(XOR) => ("xor", "^="),
        _ => return None,
    };
    Some(if insn.imm & FETCH == 0 {
        write!(f, "lock *(u{bits} *){place}) {operator} {r}{src}")
    } else {
        write!(
            f,
            "{r}{src} = atomic_fetch_{name}((u{bits} *){place}), {r}{src})"
        )
    })
}

/// What tells the two widths of an exchange apart.
const fn suffix(bits: u8) -> &'static str {
    if bits == 64 { "_64" } else { "32_32" }
}

fn write_alu(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    let r = if insn.class() == ALU64 { 'r' } else { 'w' };
    let (dst, src, imm, off) = (insn.dst, insn.src, insn.imm, insn.off);
    let from_register = insn.code & X != 0;
    let operator = match (insn.code & 0xf0, off) {
        (NEG, 0) if !from_register => return Some(write!(f, "{r}{dst} = -{r}{dst}")),
        (END, 0) => return write_swap(f, insn),
        (MOV, 8 | 16 | 32) if from_register => {
            return Some(write!(f, "{r}{dst} = (s{off}){r}{src}"));
        }
        (DIV, 1) => "s/=",
        (MOD, 1) => "s%=",
        (_, off) if off != 0 => return None,
        (MOV, _) => "=",
        (ADD, _) => "+=",
        (SUB, _) => "-=",
        (MUL, _) => "*=",
        (DIV, _) => "/=",
        (OR, _) => "|=",
        (AND, _) => "&=",
        (LSH, _) => "<<=",
        (RSH, _) => ">>=",
        (MOD, _) => "%=",
        (XOR, _) => "^=",
        (ARSH, _) => "s>>=",
        _ => return None,
    };
    Some(if from_register {
        write!(f, "{r}{dst} {operator} {r}{src}")
    } else {
        write!(f, "{r}{dst} {operator} {imm}")
    })
}

fn write_swap(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    let (dst, bits) = (insn.dst, insn.imm);
    let to = match (insn.class(), insn.code & X) {
        _ if !matches!(bits, 16 | 32 | 64) => return None,
        (ALU, K) => "le",
        (ALU, _) => "be",
        (_, K) => "bswap",
        _ => return None,
    };
    Some(write!(f, "r{dst} = {to}{bits} r{dst}"))
}

fn write_jump(f: &mut fmt::Formatter<'_>, insn: &Insn) -> Written {
    let Insn {
        dst, src, off, imm, ..
    } = *insn;
    let from_register = insn.code & X != 0;
    let wide = insn.class() == JMP;
    let comparison = match (insn.code & 0xf0, wide, from_register) {
        (JA, true, false) => return Some(write!(f, "goto {off:+}")),
        (JA, false, false) => return Some(write!(f, "gotol {imm:+}")),
        (CALL, true, false) => return Some(write_call(f, insn)),
        (EXIT, true, false) => return Some(write!(f, "exit")),
        (JA | CALL | EXIT, ..) => return None,
        (JEQ, ..) => "==",
        (JGT, ..) => ">",
        (JGE, ..) => ">=",
        (JSET, ..) => "&",
        (JNE, ..) => "!=",
        (JSGT, ..) => "s>",
        (JSGE, ..) => "s>=",
        (JLT, ..) => "<",
        (JLE, ..) => "<=",
        (JSLT, ..) => "s<",
        (JSLE, ..) => "s<=",
        _ => return None,
    };
    let r = if wide { 'r' } else { 'w' };
    Some(if from_register {
        write!(f, "if {r}{dst} {comparison} {r}{src} goto {off:+}")
    } else {
        write!(f, "if {r}{dst} {comparison} {imm} goto {off:+}")
    })
}

fn write_call(f: &mut fmt::Formatter<'_>, insn: &Insn) -> fmt::Result {
    let imm = insn.imm;
    match (insn.src, imm) {
        (CALL_LOCAL, _) => write!(f, "call {imm:+}"),
        (CALL_HELPER, _) => match helpers::name(imm) {
            Some(name) => write!(f, "call {imm} # bpf_{name}"),
            None => write!(f, "call {imm}"),
        },
        (kind, _) => write!(f, "call {imm} # kind {kind}"),
    }
}

/// Width of a load or store.
const fn bits(insn: &Insn) -> u8 {
    match insn.code & 0x18 {
        B => 8,
        H => 16,
        W => 32,
        _ => 64,
    }
}

/// A distance behind what it counts from: `+ 4`, `- 4`.
struct Offset<T>(T);

impl<T: Copy + Into<i64>> fmt::Display for Offset<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value: i64 = self.0.into();
        let sign = if value < 0 { '-' } else { '+' };
        write!(f, "{sign} {}", value.unsigned_abs())
    }
}
