//! What a program has in its registers and its memory while it is followed: symbols in place of numbers.

use std::rc::Rc;

use crate::alu::{Alu, low};
use crate::decode::{Op, Operand};
use crate::insn::op;
use crate::recognise::number::{Bit, Number};
use crate::recognise::seen::Seen;
use crate::verifier::helpers::KTIME_GET_NS;
use crate::verifier::{CB_BYTES, Context, STACK_BYTES, Verified};
use kcm_frame::MAX_FIELD_OFFSET;

#[derive(Clone, Debug)]
pub(super) enum Value {
    Unknown,
    Number(Number),
    /// An address in the stack, as the interpreter counts them.
    Stack(u64),
}

/// A byte of memory: this one of that value.
pub(super) type Cell = Option<(Rc<Value>, u8)>;

#[derive(Clone)]
pub(super) struct State {
    pub(super) at: usize,
    pub(super) depth: usize,
    pub(super) regs: [Value; 11],
    /// Empty until it is written.
    pub(super) stack: Vec<Cell>,
    pub(super) cb: Vec<Cell>,
    pub(super) written: u8,
    /// What the callers keep, and where they go on.
    pub(super) callers: Vec<([Value; 5], usize)>,
    /// The bytes that are there: at least so many, and fewer than so many.
    pub(super) least: usize,
    pub(super) fewer_than: usize,
    /// What was said of them.
    pub(super) seen: Seen,
}

impl State {
    pub(super) fn new() -> Self {
        let mut regs = std::array::from_fn(|_| Value::Unknown);
        regs[usize::from(op::FP)] = Value::Stack(STACK_BYTES as u64);
        let zero = Rc::new(Value::Number(Number::constant(0)));
        Self {
            at: 0,
            depth: 0,
            regs,
            stack: Vec::new(),
            cb: vec![Some((zero, 0)); CB_BYTES],
            written: 0,
            callers: Vec::new(),
            least: 0,
            fewer_than: usize::MAX,
            seen: Seen::default(),
        }
    }

    pub(super) fn reg(&self, reg: u8) -> &Value {
        &self.regs[usize::from(reg)]
    }

    pub(super) fn set(&mut self, reg: u8, value: Value) {
        self.regs[usize::from(reg)] = value;
    }

    fn set_number(&mut self, reg: u8, number: Option<Number>) {
        self.set(reg, number.map_or(Value::Unknown, Value::Number));
    }

    pub(super) fn number(&self, reg: u8) -> Option<&Number> {
        match self.reg(reg) {
            Value::Number(number) => Some(number),
            _ => None,
        }
    }

    fn constant(&self, reg: u8) -> Option<u64> {
        self.number(reg)?.as_constant()
    }

    pub(super) fn operand(&self, operand: Operand) -> Value {
        match operand {
            Operand::Reg(reg) => self.reg(reg).clone(),
            Operand::Imm(imm) => Value::Number(Number::constant(i64::from(imm).cast_unsigned())),
        }
    }

    /// The bytes of memory that a load is of.
    pub(super) fn cells_mut(&mut self, op: Op, context: Option<Context>) -> Option<&mut [Cell]> {
        let Op::Load {
            base, off, size, ..
        } = op
        else {
            return None;
        };
        let (memory, at) = match (context, self.reg(base)) {
            (Some(Context::Cb(at)), _) => (&mut self.cb, at.into()),
            (None, Value::Stack(at)) => {
                let at = at.wrapping_add_signed(off.into());
                (&mut self.stack, usize::try_from(at).ok()?)
            }
            _ => return None,
        };
        memory.get_mut(at..)?.get_mut(..size.into())
    }

    /// Where in the message a packet load is from, if its index is a constant.
    pub(super) fn packet_offset(&self, index: Option<u8>, offset: i32) -> Option<usize> {
        let index = match index {
            None => 0,
            Some(reg) => self.constant(reg)?,
        };
        let offset = low(index).wrapping_add(offset.cast_unsigned());
        usize::try_from(offset).ok().filter(is_near)
    }

    /// What `bpf_skb_load_bytes` copies, if its arguments are constants: from where in the message, to
    /// where in the stack, and how much.
    pub(super) fn load_bytes(&self, relative: bool) -> Option<(usize, u64, usize)> {
        let from = usize::try_from(low(self.constant(2)?)).ok();
        let Value::Stack(to) = *self.reg(3) else {
            return None;
        };
        let len = usize::try_from(low(self.constant(4)?)).ok()?;
        // From the network header, which is the message's first byte.
        if relative && low(self.constant(5)?) != 1 {
            return None;
        }
        Some((from.filter(is_near)?, to, len))
    }

    /// What helpers and packet loads leave in the registers of arguments.
    pub(super) fn called(&mut self) {
        self.regs[1..6].fill(Value::Unknown);
    }

    /// Calls a function from this instruction.
    pub(super) fn call(&mut self, verified: &Verified, at: usize, target: i64) -> Option<()> {
        let function = verified.functions.partition_point(|&f| f <= at) - 1;
        let saved = std::array::from_fn(|i| self.regs[6 + i].clone());
        self.callers.push((saved, self.at));
        let Value::Stack(fp) = *self.reg(op::FP) else {
            return None;
        };
        let bytes = *verified.frame_bytes.get(function)? as u64;
        self.set(op::FP, Value::Stack(fp.checked_sub(bytes)?));
        self.at = usize::try_from(target).ok()?;
        Some(())
    }

    /// Ends the function that is under way. True: it was the main one.
    pub(super) fn leave(&mut self, result: Value) -> bool {
        self.called();
        self.set(0, result);
        match self.callers.pop() {
            Some((saved, back)) => {
                self.regs[6..].clone_from_slice(&saved);
                self.at = back;
                false
            }
            None => true,
        }
    }
}

pub(super) fn zero() -> Value {
    Value::Number(Number::constant(0))
}

/// Whether this can be the offset of a length field.
fn is_near(offset: &usize) -> bool {
    *offset <= MAX_FIELD_OFFSET
}

/// Instructions after which the next one comes.
pub(super) fn simple(state: &mut State, op: Op, context: Option<Context>) -> Option<()> {
    match op {
        Op::Const { dst, value } => state.set(dst, Value::Number(Number::constant(value))),
        Op::Alu {
            alu,
            wide,
            dst,
            src,
        } => {
            let by = state.operand(src);
            let value = match (alu, state.reg(dst).clone(), by) {
                (Alu::Mov, _, by) if wide => by,
                (Alu::Mov, _, Value::Number(by)) => Value::Number(by.cut(false)),
                (_, Value::Number(old), Value::Number(by)) => {
                    old.alu(alu, wide, by).map_or(Value::Unknown, Value::Number)
                }
                (Alu::Add, Value::Stack(at), Value::Number(by))
                | (Alu::Add, Value::Number(by), Value::Stack(at)) => by
                    .as_constant()
                    .map_or(Value::Unknown, |by| Value::Stack(at.wrapping_add(by))),
                (Alu::Sub, Value::Stack(at), Value::Number(by)) => by
                    .as_constant()
                    .map_or(Value::Unknown, |by| Value::Stack(at.wrapping_sub(by))),
                _ => Value::Unknown,
            };
            state.set(dst, value);
        }
        Op::Neg { wide, dst } => {
            let negated = (state.number(dst).cloned()).and_then(|old| old.negated(wide));
            state.set_number(dst, negated);
        }
        Op::MovSx {
            wide,
            bits,
            dst,
            src,
        } => {
            let extended = state
                .number(src)
                .and_then(|old| old.sign_extend(bits, wide));
            state.set_number(dst, extended);
        }
        Op::Swap { dst, swap } => {
            let swapped = state.number(dst).and_then(|old| old.swap(swap));
            state.set_number(dst, swapped);
        }
        Op::Load {
            dst,
            base,
            off,
            size,
            signed,
        } => {
            let value = match context {
                Some(Context::Zero) => zero(),
                Some(Context::Len(at)) => Value::Number(Number::len(at, size)),
                Some(Context::Cb(at)) => load(&state.cb, at.into(), size).unwrap_or(Value::Unknown),
                None => match *state.reg(base) {
                    Value::Stack(at) => {
                        let at = at.wrapping_add_signed(off.into());
                        load(&state.stack, at, size).unwrap_or(Value::Unknown)
                    }
                    _ => Value::Unknown,
                },
            };
            let value = match value {
                Value::Number(number) if signed => number
                    .sign_extend(8 * u32::from(size), true)
                    .map_or(Value::Unknown, Value::Number),
                value => value,
            };
            state.set(dst, value);
        }
        Op::Store {
            base,
            off,
            size,
            value,
        } => {
            let value = state.operand(value);
            match (context, state.reg(base)) {
                (Some(Context::Cb(at)), _) => {
                    store(&mut state.cb, at.into(), size, value)?;
                    state.written |= if size == 8 { 0b11 } else { 1 } << (at / 4);
                }
                (None, Value::Stack(at)) => {
                    let at = at.wrapping_add_signed(off.into());
                    state.stack.resize(STACK_BYTES, None);
                    store(&mut state.stack, at, size, value)?;
                }
                _ => return None,
            }
        }
        Op::Helper(KTIME_GET_NS) => {
            state.called();
            state.set(0, Value::Unknown);
        }
        _ => return None,
    }
    Some(())
}

/// `bpf_skb_load_bytes`, where the bytes are there.
pub(super) fn copy(state: &mut State, from: usize, to: u64, len: usize) -> Option<()> {
    state.stack.resize(STACK_BYTES, None);
    for i in 0..len {
        let byte = Number::packet(u32::try_from(from + i).ok()?, 1);
        store(&mut state.stack, to + i as u64, 1, Value::Number(byte))?;
    }
    state.called();
    state.set(0, zero());
    Some(())
}

/// And where they are not.
pub(super) fn refuse(state: &mut State, to: u64, len: usize) -> Option<()> {
    const EFAULT: i64 = 14;
    state.stack.resize(STACK_BYTES, None);
    for i in 0..len {
        store(&mut state.stack, to + i as u64, 1, zero())?;
    }
    state.called();
    let error = Number::constant((-EFAULT).cast_unsigned());
    state.set(0, Value::Number(error));
    Some(())
}

fn store(memory: &mut [Cell], at: u64, size: u8, value: Value) -> Option<()> {
    let at = usize::try_from(at).ok()?;
    let value = Rc::new(value);
    for (i, cell) in (0..size).zip(memory.get_mut(at..)?.get_mut(..size.into())?) {
        *cell = Some((Rc::clone(&value), i));
    }
    Some(())
}

pub(super) fn load(memory: &[Cell], at: u64, size: u8) -> Option<Value> {
    let at = usize::try_from(at).ok()?;
    let cells = memory.get(at..)?.get(..size.into())?;
    let first = &cells.first()?.as_ref()?.0;
    let is_one = (0..size).zip(cells).all(|(i, cell)| {
        (cell.as_ref()).is_some_and(|(value, byte)| Rc::ptr_eq(value, first) && *byte == i)
    });
    if is_one {
        return match (&**first, size) {
            (value, 8) => Some(value.clone()),
            (Value::Number(number), _) => {
                let mask = Number::constant(u64::MAX >> (64 - 8 * u32::from(size)));
                Some(Value::Number(number.clone().alu(Alu::And, true, mask)?))
            }
            _ => None,
        };
    }
    let mut bits = [Bit::Zero; 64];
    for (i, cell) in cells.iter().enumerate() {
        let (value, byte) = cell.as_ref()?;
        let Value::Number(number) = &**value else {
            return None;
        };
        let (to, from) = (8 * i, 8 * usize::from(*byte));
        bits[to..to + 8].copy_from_slice(&number.as_bits()?[from..from + 8]);
    }
    Some(Value::Number(Number::of_bits(bits)))
}
