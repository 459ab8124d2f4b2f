//! Follows a program along the one way that a message takes, to what it says of all messages like it.
//!
//! Not all programs come down to nodes ([`mod@super::follow`]): an offset that the message says, a
//! loop for so many bytes as there are in a length, a product of two fields. But a single message
//! goes one way, and what makes the difference is mostly the same for all that follow: the kind of
//! message, the width of its length, the place of a field. So the numbers are symbols as there, and
//! where a decision needs one it is looked up in the message:
//!
//! ```text
//! x = byte 1 of the message, 0x84 here      is x at least 0x80?   yes: a guard, "x is at least 0x80"
//! n = x & 0x7f                              n rounds of a loop:   bits 0 to 6 of byte 1 are pinned
//! length = bytes 2 to 5, big endian         a symbol: it is no matter what it is
//! ```
//!
//! What symbols cannot say is *pinned*: the number is the constant that it is in this message, for
//! all messages in which the bits that it comes from are the same. That is right whatever is done
//! with it, so it needs no list of what programs do: an index, a remainder, a shift by a field, a
//! place in the stack. What no bits of the message say cannot be pinned: the time, and the number of
//! bytes that are there, of which only "at least so many" holds for others too.
//!
//! ([`mod@super::like`] makes a form of it. A table from headers to lengths was the alternative: each
//! length would be an entry of its own, and something would have to be asked before that to know which
//! bytes are the header.)

use std::collections::BTreeSet;
use std::rc::Rc;

use crate::alu::{Cmp, low};
use crate::decode::Op;
use crate::insn::op;
use crate::recognise::condition::{Comparison, Condition, compare};
use crate::recognise::number::{Bit, Number};
use crate::recognise::state::{State, Value, copy, load, simple};
use crate::recognise::tree::Decision;
use crate::verifier::helpers::{SKB_LOAD_BYTES, SKB_LOAD_BYTES_RELATIVE};
use crate::verifier::{Context, Verified};

/// Most instructions that are followed: those of a loop over a few hundred bytes. It is a hundred times
/// what it takes to run them.
const MAX_STEPS: usize = 4096;

/// Most guards that are kept apart: what is asked of more numbers pins them. A form has room for two, and
/// each takes time to see which.
const MAX_GUARDS: usize = 16;

/// What a program has found out about a message, and what it says of it for that.
#[derive(Debug)]
pub(super) struct Trace {
    /// Bytes that must be there.
    pub(super) need: usize,
    /// Bits of the message that must be what they are in this one.
    pub(super) pinned: BTreeSet<u32>,
    /// What numbers must be inside of, or outside.
    pub(super) guards: Vec<(Condition, bool)>,
    /// The length, in its low 32 bits.
    pub(super) result: Number,
}

/// Nothing, if it is no whole header, or more depends on the message than its bits say: whether it is
/// there at all, how long it has been waited for.
pub(super) fn trace(verified: &Verified, message: &[u8]) -> Option<Trace> {
    let mut tracer = Tracer {
        verified,
        message,
        need: 0,
        pinned: BTreeSet::new(),
        guards: Vec::new(),
    };
    let result = tracer.result()?;
    Some(Trace {
        need: tracer.need,
        pinned: tracer.pinned,
        guards: tracer.guards,
        result,
    })
}

struct Tracer<'a> {
    verified: &'a Verified,
    message: &'a [u8],
    need: usize,
    pinned: BTreeSet<u32>,
    guards: Vec<(Condition, bool)>,
}

impl Tracer<'_> {
    fn result(&mut self) -> Option<Number> {
        let mut state = State::new();
        for _ in 0..MAX_STEPS {
            let at = state.at;
            state.at += 1;
            let op = *self.verified.ops.get(at)?;
            match op {
                Op::ConstEnd => {}
                Op::Jump { target } => state.at = usize::try_from(target).ok()?,
                Op::Branch {
                    cmp,
                    wide,
                    dst,
                    src,
                    target,
                } => {
                    let (a, by) = (state.reg(dst).clone(), state.operand(src));
                    let (Value::Number(a), Value::Number(b)) = (a, by) else {
                        return None;
                    };
                    if self.holds(cmp, wide, a, b)? {
                        state.at = usize::try_from(target).ok()?;
                    }
                }
                Op::Packet {
                    size,
                    index,
                    offset,
                } => {
                    if let Some(reg) = index {
                        self.pin_register(&mut state, reg)?;
                    }
                    let offset = state.packet_offset(index, offset)?;
                    self.needs(offset + usize::from(size))?;
                    state.called();
                    let loaded = Number::packet(u32::try_from(offset).ok()?, size.into());
                    let loaded = loaded.with_known(|at| {
                        let is_pinned = self.pinned.contains(&at);
                        is_pinned.then(|| self.bit(Bit::Packet(at)) != 0)
                    });
                    state.set(0, Value::Number(loaded?));
                }
                Op::Helper(SKB_LOAD_BYTES | SKB_LOAD_BYTES_RELATIVE) => {
                    let relative = op == Op::Helper(SKB_LOAD_BYTES_RELATIVE);
                    for reg in [2, 4].into_iter().chain(relative.then_some(5)) {
                        self.pin_register(&mut state, reg)?;
                    }
                    let (from, to, len) = state.load_bytes(relative)?;
                    self.needs(from.checked_add(len)?)?;
                    copy(&mut state, from, to, len)?;
                }
                Op::Exit => {
                    let result = state.reg(0).clone();
                    if state.leave(result) {
                        return self.end(&state);
                    }
                }
                Op::Call { target } => state.call(self.verified, at, target)?,
                _ => self.simple(&mut state, op, self.verified.contexts[at])?,
            }
        }
        None
    }

    /// So many bytes must be there, and are.
    fn needs(&mut self, bytes: usize) -> Option<()> {
        if bytes > self.message.len() {
            return None;
        }
        self.need = self.need.max(bytes);
        Some(())
    }

    fn bit(&self, bit: Bit) -> u64 {
        match bit {
            Bit::Zero => 0,
            Bit::One => 1,
            Bit::Packet(at) => {
                let byte = usize::try_from(at / 8).ok();
                let byte = byte.and_then(|byte| self.message.get(byte));
                byte.map_or(0, |byte| u64::from(byte >> (at % 8) & 1))
            }
            Bit::Len(at) => {
                let len = u32::try_from(self.message.len()).unwrap_or(u32::MAX);
                u64::from(len) >> at & 1
            }
        }
    }

    fn value(&self, number: &Number) -> u64 {
        number.value(|bit| self.bit(bit))
    }

    /// What the number is in this message, and in all in which these bits are the same. Nothing, if more
    /// than bits of the message make it.
    fn pin(&mut self, number: &Number) -> Option<u64> {
        if number.is_of_len() {
            return None;
        }
        self.pinned.extend(number.packet_bits());
        Some(self.value(number))
    }

    fn pin_register(&mut self, state: &mut State, reg: u8) -> Option<()> {
        let value = self.pin(state.number(reg)?)?;
        state.set(reg, Value::Number(Number::constant(value)));
        Some(())
    }

    /// Whether it is so, in this message and in others that keep to the guards.
    fn holds(&mut self, cmp: Cmp, wide: bool, mut a: Number, mut b: Number) -> Option<bool> {
        loop {
            match compare(cmp, wide, a.clone(), b.clone()) {
                Some(Comparison::Known(holds)) => return Some(holds),
                Some(Comparison::Unknown(condition, opposite)) => {
                    if let Some(is_inside) = self.guard(condition) {
                        return Some(is_inside != opposite);
                    }
                }
                None => {}
            }
            // It cannot be said so: by what costs least, then.
            let number = [&mut a, &mut b]
                .into_iter()
                .filter(|number| !number.is_of_len() && number.as_constant().is_none())
                .min_by_key(|number| number.packet_bits().count())?;
            *number = Number::constant(self.pin(number)?);
        }
    }

    /// Whether the number is inside, once this is a guard; nothing, if it cannot be one.
    fn guard(&mut self, condition: Condition) -> Option<bool> {
        if condition.number.is_of_len() {
            let (need, is_inside) = Decision::new(&condition, 0, 0)?.known_by_len()?;
            return self.needs(need).map(|()| is_inside);
        }
        let is_inside = condition.is_inside(self.value(&condition.number));
        let is_one_number =
            is_inside && condition.span == 0 && condition.number.as_bits().is_some();
        if is_one_number || self.guards.len() >= MAX_GUARDS {
            self.pin(&condition.number)?;
        } else {
            self.guards.push((condition, is_inside));
        }
        Some(is_inside)
    }

    /// Instructions after which the next one comes; with constants where symbols cannot say what they do.
    fn simple(&mut self, state: &mut State, op: Op, context: Option<Context>) -> Option<()> {
        let (Op::Alu { dst, .. }
        | Op::Neg { dst, .. }
        | Op::MovSx { dst, .. }
        | Op::Swap { dst, .. }
        | Op::Load { dst, .. }) = op
        else {
            return simple(state, op, context);
        };
        let mut before = state.reg(dst).clone();
        loop {
            simple(state, op, context)?;
            if !matches!(state.reg(dst), Value::Unknown) {
                return Some(());
            }
            state.set(dst, before);
            if !self.pin_one(state, op) && !self.pin_memory(state, op, context) {
                state.set(dst, Value::Unknown);
                return Some(());
            }
            before = state.reg(dst).clone();
        }
    }

    /// Pins the register of fewest bits, of those that an instruction reads. False: there is none.
    fn pin_one(&mut self, state: &mut State, op: Op) -> bool {
        let bits = |reg: &u8| {
            let number = state.number(*reg).filter(|number| !number.is_of_len())?;
            Some(number.packet_bits().count()).filter(|bits| *bits > 0)
        };
        let reads = (0..=op::FP).filter(|reg| op.reads() >> reg & 1 != 0);
        let reg = reads.filter(|reg| bits(reg).is_some()).min_by_key(bits);
        reg.is_some_and(|reg| self.pin_register(state, reg).is_some())
    }

    /// Pins what a load from memory is of. False: it is not to be pinned, or a constant already.
    fn pin_memory(&mut self, state: &mut State, op: Op, context: Option<Context>) -> bool {
        let mut is_new = false;
        for cell in state.cells_mut(op, context).into_iter().flatten() {
            let Some((Value::Number(number), byte)) =
                cell.as_ref().map(|(value, byte)| (&**value, *byte))
            else {
                return false;
            };
            is_new |= number.as_constant().is_none();
            let Some(value) = self.pin(number) else {
                return false;
            };
            *cell = Some((Rc::new(Value::Number(Number::constant(value))), byte));
        }
        is_new
    }

    /// The result, if it is a length and nothing else is left.
    fn end(&mut self, state: &State) -> Option<Number> {
        if state.written & 1 != 0 {
            return None;
        }
        // A class of 0 is none.
        if state.written & 2 != 0 {
            match load(&state.cb, 4, 4) {
                Some(Value::Number(class)) if low(self.pin(&class)?) == 0 => {}
                _ => return None,
            }
        }
        let result = state.number(0)?.clone().into_result();
        let length = low(self.value(&result)).cast_signed();
        (length > 0 && !result.is_of_len()).then_some(result)
    }
}
