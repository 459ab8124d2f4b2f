//! Runs verified programs.
//!
//! A program is prepared once, to steps of 16 bytes with absolute jumps, and then run for each
//! message. What matters is the time of five to ten instructions, a few nanoseconds each:
//!
//! * A load from the message, what is done with it at once, and the end of the program behind it
//!   are one step, a [`Formula`]. One that the program begins with comes before all else
//!   ([`Code::begin`]): to clear registers takes longer than a load, and a program that ends there
//!   needs none.
//! * The most frequent steps have cases of their own for a constant and for a register as second
//!   operand. The others take the sum of both: register 15 is always 0, and so is the constant of a
//!   step that has a register.
//! * Register numbers are masked to the 16 registers there are, so no bounds are checked.
//! * The stack is only there for programs that use it: clearing 512 bytes costs as much as five
//!   instructions.
//! * What a load or store is about was found by the verifier, so that the context needs no
//!   addresses, and an address is an offset in the stack.
//!
//! Nothing here relies on the verifier for memory safety: all accesses are checked, and a jump back
//! or a call costs one of a number of turns. A program that breaks out of its bounds all the same
//! is *trapped*, which is a bug of ours.

mod formula;
mod prepare;

use crate::alu::{Alu, Cmp, Swap, low, sign_extend};
use crate::decode::Operand;
use crate::insn::op;
use crate::interpreter::formula::Formula;
use crate::interpreter::prepare::prepare;
use crate::verifier::{CB_BYTES, MAX_FRAMES, STACK_BYTES, Verified};

/// A program, ready to run.
#[derive(Debug)]
pub(crate) struct Code {
    steps: Vec<Step>,
    formulas: Vec<Formula>,
    /// What a run begins with, if that is a load from the message.
    first: Option<Formula>,
    /// Where it goes on: behind moves that change nothing, for all registers but the frame pointer
    /// are 0 at first. (Nearly every program begins with `r6 = r1`, for its packet loads; those that were
    /// classic clear their registers.)
    start: usize,
    frame: Frame,
    /// Jumps back and calls that a run may take.
    turns: u64,
}

/// How far a program came without registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// To its end; this is the result.
    Ended(u64),
    /// To where [`Code::go_on`] goes on, with this in register 0.
    Going(u64),
}

/// What a run leaves behind beside its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) cb: [u8; CB_BYTES],
    /// Which words of `cb` were written, as bits.
    pub(crate) written: u8,
}

/// What has to be cleared for a program before it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frame {
    /// Nothing: it has neither stack nor calls.
    None,
    /// A stack of at most [`SMALL_STACK_BYTES`], and no calls.
    Small,
    Whole,
}

/// As much stack as a copy of a header takes.
const SMALL_STACK_BYTES: usize = 64;

/// The program left its bounds, which the verifier should have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap;

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    dst: u8,
    src: u8,
    /// Target of a jump; other small numbers.
    to: u32,
    imm: u64,
}

/// Hands the lists of operations and of comparisons to another macro: for each, the kinds of steps
/// that do it on 64 and on 32 bits, and for comparisons again those that go back and are counted.
///
/// In one level, each step is one indirect jump. Two levels (`Alu(Add)`) took twice the time.
macro_rules! with_operations {
    ($then:ident! $($rest:tt)*) => {
        $then! {
            [
                Add Add64 Add32 Add64K Add32K,
                Sub Sub64 Sub32 Sub64K Sub32K,
                Mul Mul64 Mul32 Mul64K Mul32K,
                Div Div64 Div32 Div64K Div32K,
                SDiv SDiv64 SDiv32 SDiv64K SDiv32K,
                Or Or64 Or32 Or64K Or32K,
                And And64 And32 And64K And32K,
                Lsh Lsh64 Lsh32 Lsh64K Lsh32K,
                Rsh Rsh64 Rsh32 Rsh64K Rsh32K,
                Mod Mod64 Mod32 Mod64K Mod32K,
                SMod SMod64 SMod32 SMod64K SMod32K,
                Xor Xor64 Xor32 Xor64K Xor32K,
                Mov Mov64 Mov32 Mov64K Mov32K,
                Arsh Arsh64 Arsh32 Arsh64K Arsh32K,
            ]
            [
                Eq IfEq64 IfEq32 IfEq64K IfEq32K BackEq64 BackEq32,
                Ne IfNe64 IfNe32 IfNe64K IfNe32K BackNe64 BackNe32,
                Gt IfGt64 IfGt32 IfGt64K IfGt32K BackGt64 BackGt32,
                Ge IfGe64 IfGe32 IfGe64K IfGe32K BackGe64 BackGe32,
                Lt IfLt64 IfLt32 IfLt64K IfLt32K BackLt64 BackLt32,
                Le IfLe64 IfLe32 IfLe64K IfLe32K BackLe64 BackLe32,
                SGt IfSGt64 IfSGt32 IfSGt64K IfSGt32K BackSGt64 BackSGt32,
                SGe IfSGe64 IfSGe32 IfSGe64K IfSGe32K BackSGe64 BackSGe32,
                SLt IfSLt64 IfSLt32 IfSLt64K IfSLt32K BackSLt64 BackSLt32,
                SLe IfSLe64 IfSLe32 IfSLe64K IfSLe32K BackSLe64 BackSLe32,
                Set IfSet64 IfSet32 IfSet64K IfSet32K BackSet64 BackSet32,
            ]
            $($rest)*
        }
    };
}

macro_rules! define_kinds {
    (
        [$($alu:ident $alu64:ident $alu32:ident $alu64k:ident $alu32k:ident,)*]
        [$(
            $cmp:ident $if64:ident $if32:ident $if64k:ident $if32k:ident $back64:ident
            $back32:ident,
        )*]
        { $($other:tt)* }
    ) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Kind {
            $($alu64, $alu32, $alu64k, $alu32k,)*
            $($if64, $if32, $if64k, $if32k, $back64, $back32,)*
            $($other)*
        }

        impl Kind {
            const fn of_alu(alu: Alu, wide: bool, by: Operand) -> Self {
                match (alu, wide, by) {
                    $(
                        (Alu::$alu, true, Operand::Reg(_)) => Self::$alu64,
                        (Alu::$alu, false, Operand::Reg(_)) => Self::$alu32,
                        (Alu::$alu, true, Operand::Imm(_)) => Self::$alu64k,
                        (Alu::$alu, false, Operand::Imm(_)) => Self::$alu32k,
                    )*
                }
            }

            const fn of_branch(cmp: Cmp, wide: bool, by: Operand, back: bool) -> Self {
                match (cmp, wide, back, by) {
                    $(
                        (Cmp::$cmp, true, false, Operand::Reg(_)) => Self::$if64,
                        (Cmp::$cmp, false, false, Operand::Reg(_)) => Self::$if32,
                        (Cmp::$cmp, true, false, Operand::Imm(_)) => Self::$if64k,
                        (Cmp::$cmp, false, false, Operand::Imm(_)) => Self::$if32k,
                        (Cmp::$cmp, true, true, _) => Self::$back64,
                        (Cmp::$cmp, false, true, _) => Self::$back32,
                    )*
                    // No instruction has this comparison.
                    (Cmp::Clear, ..) => Self::Trap,
                }
            }
        }
    };
}

with_operations! { define_kinds! {
    Neg64,
    Neg32,
    MovSx64,
    MovSx32,
    Swap16,
    Swap32,
    Swap64,
    Truncate,
    Const,
    Jump,
    Back,
    Field,
    Packet1,
    Packet2,
    Packet4,
    LoadStack,
    StoreStack1,
    StoreStack2,
    StoreStack4,
    StoreStack8,
    LoadLen,
    LoadCb,
    StoreCb,
    LoadBytes,
    LoadBytesRelative,
    Time,
    Call,
    Exit,
    Trap,
} }

/// The `match` over all kinds: those of the lists, and others that are given.
macro_rules! dispatch {
    (
        [$($alu:ident $alu64:ident $alu32:ident $alu64k:ident $alu32k:ident,)*]
        [$(
            $cmp:ident $if64:ident $if32:ident $if64k:ident $if32k:ident $back64:ident
            $back32:ident,
        )*]
        ($step:ident, $dst:expr, $by:expr, $go:ident, $turns:ident)
        { $($other:pat => $body:expr,)* }
    ) => {
        match $step.kind {
            $(
                Kind::$alu64 => $dst = Alu::$alu.eval(true, $dst, $by),
                Kind::$alu32 => $dst = Alu::$alu.eval(false, $dst, $by),
                Kind::$alu64k => $dst = Alu::$alu.eval(true, $dst, $step.imm),
                Kind::$alu32k => $dst = Alu::$alu.eval(false, $dst, $step.imm),
            )*
            $(
                Kind::$if64 => {
                    if Cmp::$cmp.holds(true, $dst, $by) {
                        $go!($step.to);
                    }
                }
                Kind::$if32 => {
                    if Cmp::$cmp.holds(false, $dst, $by) {
                        $go!($step.to);
                    }
                }
                Kind::$if64k => {
                    if Cmp::$cmp.holds(true, $dst, $step.imm) {
                        $go!($step.to);
                    }
                }
                Kind::$if32k => {
                    if Cmp::$cmp.holds(false, $dst, $step.imm) {
                        $go!($step.to);
                    }
                }
                Kind::$back64 => {
                    if Cmp::$cmp.holds(true, $dst, $by.wrapping_add($step.imm)) {
                        $turns = $turns.checked_sub(1).ok_or(Trap)?;
                        $go!($step.to);
                    }
                }
                Kind::$back32 => {
                    if Cmp::$cmp.holds(false, $dst, $by.wrapping_add($step.imm)) {
                        $turns = $turns.checked_sub(1).ok_or(Trap)?;
                        $go!($step.to);
                    }
                }
            )*
            $($other => $body,)*
        }
    };
}

/// A register that is always 0.
const ZERO: u8 = 15;

/// Registers, as many as a masked number can name.
type Regs = [u64; 16];

impl Code {
    pub(crate) fn new(verified: &Verified) -> Self {
        let functions = &verified.functions;
        let mut function = 0;
        let steps = verified.ops.iter().enumerate().map(|(at, op)| {
            if functions.get(function + 1) == Some(&at) {
                function += 1;
            }
            let frame_bytes = verified.frame_bytes[function];
            prepare(op, at, verified.contexts[at], frame_bytes)
        });
        let mut steps: Vec<Step> = steps.collect();
        let formulas = Formula::all(&verified.ops, &mut steps);
        let is_idle = |step: &&Step| {
            let moves = matches!(
                step.kind,
                Kind::Mov64 | Kind::Mov32 | Kind::Mov64K | Kind::Mov32K
            );
            moves && step.imm == 0 && step.src != op::FP && step.dst != op::FP
        };
        let start = steps.iter().take_while(is_idle).count();
        let first = match steps.get(start) {
            Some(step) if step.kind == Kind::Field => formulas.get(step.to as usize).cloned(),
            _ => None,
        };
        Self {
            start: first.as_ref().map_or(start, |formula| formula.next),
            first,
            steps,
            formulas,
            frame: match verified.figures.stack_bytes {
                0 if functions.len() == 1 => Frame::None,
                ..=SMALL_STACK_BYTES if functions.len() == 1 => Frame::Small,
                _ => Frame::Whole,
            },
            turns: verified.figures.longest as u64,
        }
    }

    /// Begins a run over the bytes of a message: nearly all programs begin with a load from it, and
    /// the shortest are no more than that. Whatever a run needs is made only for the others.
    #[inline(always)]
    pub(crate) fn begin(&self, bytes: &[u8]) -> Begun {
        let Some(formula) = &self.first else {
            return Begun::Going(0);
        };
        match formula.value(bytes) {
            Some(value) if !formula.is_result => Begun::Going(value),
            value => Begun::Ended(value.unwrap_or(0)),
        }
    }

    /// Goes on with a run over the same bytes and gives its result. `now_ns` is what the program gets
    /// for the time.
    ///
    /// The result comes back in registers. As a part of what is left behind it would be written in
    /// pieces and read as a whole, for which the processor waits longer than the program takes.
    #[inline]
    pub(crate) fn go_on(
        &self,
        first: u64,
        bytes: &[u8],
        now_ns: u64,
        left: &mut Left,
    ) -> Result<u64, Trap> {
        // A loop of its own for each, as what there is is cleared before the first step.
        match self.frame {
            Frame::None => self.run_with::<0, 0>(first, bytes, now_ns, left),
            Frame::Small => self.run_with::<SMALL_STACK_BYTES, 0>(first, bytes, now_ns, left),
            Frame::Whole => {
                self.run_with::<STACK_BYTES, { MAX_FRAMES - 1 }>(first, bytes, now_ns, left)
            }
        }
    }

    #[inline(never)]
    fn run_with<const STACK: usize, const CALLS: usize>(
        &self,
        first: u64,
        bytes: &[u8],
        now_ns: u64,
        left: &mut Left,
    ) -> Result<u64, Trap> {
        let mut stack = [0u8; STACK];
        let mut callers = [Caller::default(); CALLS];
        let mut depth = 0;
        let mut regs: Regs = [0; 16];
        regs[0] = first;
        regs[usize::from(op::FP)] = STACK as u64;
        let mut turns = self.turns;
        // A slice's iterator, for it costs less to go on than an index.
        let mut ahead = self.steps.get(self.start..).unwrap_or(&[]).iter();
        macro_rules! go {
            ($to:expr) => {
                ahead = self.steps.get($to as usize..).ok_or(Trap)?.iter()
            };
        }
        /// Ends the function with a result.
        macro_rules! leave {
            ($result:expr) => {{
                let result = $result;
                if CALLS == 0 || depth == 0 {
                    return Ok(result);
                }
                depth -= 1;
                let caller = callers.get(depth).ok_or(Trap)?;
                regs[SAVED].copy_from_slice(&caller.registers);
                regs[0] = result;
                go!(caller.back);
            }};
        }
        while let Some(step) = ahead.next() {
            let (dst, src) = (usize::from(step.dst & 15), usize::from(step.src & 15));
            with_operations! { dispatch! (step, regs[dst], regs[src], go, turns) {
                Kind::Neg64 => regs[dst] = Alu::Sub.eval(true, 0, regs[dst]),
                Kind::Neg32 => regs[dst] = Alu::Sub.eval(false, 0, regs[dst]),
                Kind::MovSx64 => regs[dst] = sign_extend(step.to, true, regs[src]),
                Kind::MovSx32 => regs[dst] = sign_extend(step.to, false, regs[src]),
                Kind::Swap16 => regs[dst] = reverse(16).eval(regs[dst]),
                Kind::Swap32 => regs[dst] = reverse(32).eval(regs[dst]),
                Kind::Swap64 => regs[dst] = reverse(64).eval(regs[dst]),
                Kind::Truncate => {
                    let swap = Swap { bits: step.to, reverse: false };
                    regs[dst] = swap.eval(regs[dst]);
                },
                Kind::Const => regs[dst] = step.imm,
                Kind::Jump => go!(step.to),
                Kind::Back => {
                    turns = turns.checked_sub(1).ok_or(Trap)?;
                    go!(step.to);
                },
                Kind::Field => {
                    let formula = self.formulas.get(step.to as usize).ok_or(Trap)?;
                    match formula.value(bytes) {
                        Some(value) if formula.is_result => leave!(value),
                        Some(value) => {
                            regs[0] = value;
                            go!(formula.next);
                        }
                        None => leave!(0),
                    }
                },
                Kind::Packet1 => {
                    let offset = low(regs[src].wrapping_add(step.imm));
                    match packet(bytes, offset, |[byte]: [u8; 1]| byte.into()) {
                        Some(value) => regs[0] = value,
                        None => leave!(0),
                    }
                },
                Kind::Packet2 => {
                    let offset = low(regs[src].wrapping_add(step.imm));
                    match packet(bytes, offset, |b| u16::from_be_bytes(b).into()) {
                        Some(value) => regs[0] = value,
                        None => leave!(0),
                    }
                },
                Kind::Packet4 => {
                    let offset = low(regs[src].wrapping_add(step.imm));
                    match packet(bytes, offset, |b| u32::from_be_bytes(b).into()) {
                        Some(value) => regs[0] = value,
                        None => leave!(0),
                    }
                },
                Kind::LoadStack => {
                    let address = regs[src].wrapping_add(step.imm);
                    regs[dst] = load(&stack, address, step.to).ok_or(Trap)?;
                },
                Kind::StoreStack1 => {
                    let value = regs[src].wrapping_add(step.imm);
                    store(&mut stack, moved(regs[dst], step.to), 1, value).ok_or(Trap)?;
                },
                Kind::StoreStack2 => {
                    let value = regs[src].wrapping_add(step.imm);
                    store(&mut stack, moved(regs[dst], step.to), 2, value).ok_or(Trap)?;
                },
                Kind::StoreStack4 => {
                    let value = regs[src].wrapping_add(step.imm);
                    store(&mut stack, moved(regs[dst], step.to), 4, value).ok_or(Trap)?;
                },
                Kind::StoreStack8 => {
                    let value = regs[src].wrapping_add(step.imm);
                    store(&mut stack, moved(regs[dst], step.to), 8, value).ok_or(Trap)?;
                },
                Kind::LoadLen => {
                    let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                    regs[dst] = load(&len.to_le_bytes(), step.imm, step.to).ok_or(Trap)?;
                },
                Kind::LoadCb => regs[dst] = load(&left.cb, step.imm, step.to).ok_or(Trap)?,
                Kind::StoreCb => {
                    let (at, size) = (step.to & 0xff, step.to >> 8);
                    let value = regs[src].wrapping_add(step.imm);
                    store(&mut left.cb, at.into(), size, value).ok_or(Trap)?;
                    left.written |= if size == 8 { 0b11 } else { 1 } << (at / 4);
                },
                Kind::LoadBytes | Kind::LoadBytesRelative => {
                    let relative = step.kind == Kind::LoadBytesRelative;
                    regs[0] = load_bytes(bytes, &mut stack, &regs, relative).ok_or(Trap)?;
                },
                Kind::Time => regs[0] = now_ns,
                Kind::Call => {
                    turns = turns.checked_sub(1).ok_or(Trap)?;
                    let caller = callers.get_mut(depth).ok_or(Trap)?;
                    caller.registers.copy_from_slice(&regs[SAVED]);
                    caller.back = self.steps.len() - ahead.len();
                    depth += 1;
                    let fp = usize::from(op::FP);
                    regs[fp] = regs[fp].wrapping_sub(step.imm);
                    go!(step.to);
                },
                Kind::Exit => leave!(regs[0]),
                Kind::Trap => return Err(Trap),
            } }
        }
        Err(Trap)
    }
}

const fn sign(value: i64) -> u64 {
    value.cast_unsigned()
}

/// What a caller finds again when the function that it called has ended.
#[derive(Clone, Copy, Default)]
struct Caller {
    registers: [u64; 5],
    back: usize,
}

/// The registers that a call leaves as they are: those that are saved by rule, and the frame
/// pointer.
const SAVED: std::ops::RangeInclusive<usize> = 6..=10;

const fn reverse(bits: u32) -> Swap {
    Swap {
        bits,
        reverse: true,
    }
}

/// Bytes of the message at an offset that counts as signed: below zero is out of range.
#[inline(always)]
fn packet<const N: usize>(
    bytes: &[u8],
    offset: u32,
    value: impl Fn([u8; N]) -> u64,
) -> Option<u64> {
    if offset > MAX_OFFSET {
        return None;
    }
    bytes
        .get(offset as usize..)?
        .first_chunk()
        .copied()
        .map(value)
}

/// Greatest offset of a load from the message: the kernel's offsets are signed.
const MAX_OFFSET: u32 = i32::MAX.cast_unsigned();

/// Where the offset of `bpf_skb_load_bytes_relative` counts from: the network header, which is
/// where a message begins. The other one, the link header (0), is not there.
const NETWORK: u32 = 1;

/// The greatest offset that `bpf_skb_load_bytes_relative` takes.
const MAX_RELATIVE_OFFSET: u32 = 0xffff;

/// The helpers that copy bytes to the stack: offset in register 2, where to in 3, how many in 4.
/// Gives 0, or `-EFAULT` after clearing the buffer; nothing if the buffer is not in the stack.
fn load_bytes(bytes: &[u8], stack: &mut [u8], regs: &Regs, relative: bool) -> Option<u64> {
    const EFAULT: i64 = 14;
    let begins_here = !relative || low(regs[5]) == NETWORK;
    let at = usize::try_from(regs[3]).ok()?;
    let len = low(regs[4]) as usize;
    let buffer = stack.get_mut(at..)?.get_mut(..len)?;
    let offset = low(regs[2]);
    let limit = if relative {
        MAX_RELATIVE_OFFSET
    } else {
        MAX_OFFSET
    };
    let source = bytes
        .get(offset as usize..)
        .and_then(|tail| tail.get(..len));
    match source {
        Some(source) if offset <= limit && begins_here => {
            buffer.copy_from_slice(source);
            Some(0)
        }
        _ => {
            buffer.fill(0);
            Some((-EFAULT).cast_unsigned())
        }
    }
}

/// How a load is described in a step: its bytes, and 16 more if the sign counts.
fn shape(size: u8, signed: bool) -> u32 {
    u32::from(size) + if signed { SIGNED } else { 0 }
}

const SIGNED: u32 = 16;

#[inline(always)]
fn load(memory: &[u8], address: u64, shape: u32) -> Option<u64> {
    let memory = memory.get(usize::try_from(address).ok()?..)?;
    let value = match shape & (SIGNED - 1) {
        1 => (*memory.first()?).into(),
        2 => u16::from_le_bytes(*memory.first_chunk()?).into(),
        4 => u32::from_le_bytes(*memory.first_chunk()?).into(),
        _ => u64::from_le_bytes(*memory.first_chunk()?),
    };
    Some(if shape & SIGNED == 0 {
        value
    } else {
        sign_extend(8 * (shape & (SIGNED - 1)), true, value)
    })
}

#[inline(always)]
fn store(memory: &mut [u8], address: u64, size: u32, value: u64) -> Option<()> {
    let memory = memory.get_mut(usize::try_from(address).ok()?..)?;
    let size = size as usize;
    memory
        .get_mut(..size)?
        .copy_from_slice(value.to_le_bytes().get(..size)?);
    Some(())
}

/// An address moved by a signed distance.
#[inline(always)]
const fn moved(address: u64, by: u32) -> u64 {
    address.wrapping_add_signed(by.cast_signed() as i64)
}
