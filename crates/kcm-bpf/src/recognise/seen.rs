//! What the decisions of a way have said of the message: the values that its bytes can still have.
//!
//! Behind "the width is neither 0 nor above 4, nor 3, nor 2, nor 1" the width is 4, and what is computed
//! with it is a constant. A decision that is made already is none.

use crate::recognise::condition::Condition;
use crate::recognise::number::{Bit, Number};

/// The values of some bytes; all others can have any.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    bytes: Vec<(u32, Values)>,
}

/// Which of 256 values there can be, as bits.
type Values = [u64; 4];

const ANY: Values = [u64::MAX; 4];
const NONE: Values = [0; 4];

impl Seen {
    /// What is known inside of a condition, and outside; nothing where no message comes to.
    pub(super) fn sides(&self, condition: &Condition) -> (Option<Self>, Option<Self>) {
        if let Some(constant) = condition.number.as_constant() {
            let side = |is_there: bool| is_there.then(|| self.clone());
            let is_inside = condition.is_inside(constant);
            return (side(is_inside), side(!is_inside));
        }
        let Some(byte) = condition.number.only_byte() else {
            return (Some(self.clone()), Some(self.clone()));
        };
        let (mut inside, mut outside) = (NONE, NONE);
        for value in values(&self.of(byte)) {
            let is_inside = condition.is_inside(condition.number.of_byte(value));
            let side = if is_inside { &mut inside } else { &mut outside };
            side[usize::from(value / 64)] |= 1 << (value % 64);
        }
        let side = |values| {
            let mut seen = self.clone();
            seen.bytes.retain(|(known, _)| *known != byte);
            seen.bytes.push((byte, values));
            (values != NONE).then_some(seen)
        };
        (side(inside), side(outside))
    }

    /// A number of several terms with those bits that are known. (One of a single term is as good as
    /// it is, and remains what it is on other ways.)
    pub(super) fn simplified(&self, number: Number) -> Number {
        if number.terms.len() < 2 || self.bytes.is_empty() {
            return number;
        }
        let known = number.with_known(|at| {
            let is_set = |value: u8| value >> (at % 8) & 1 != 0;
            let of_byte = self.of(at / 8);
            let mut values = values(&of_byte);
            let first = values.next().map(is_set)?;
            values.all(|value| is_set(value) == first).then_some(first)
        });
        known.unwrap_or(number)
    }

    fn of(&self, byte: u32) -> Values {
        let known = self.bytes.iter().find(|(known, _)| *known == byte);
        known.map_or(ANY, |(_, values)| *values)
    }
}

fn values(values: &Values) -> impl Iterator<Item = u8> {
    (0..=u8::MAX).filter(|value| values[usize::from(value / 64)] >> (value % 64) & 1 != 0)
}

impl Number {
    /// The byte of the message that all of it comes from.
    fn only_byte(&self) -> Option<u32> {
        let mut only = None;
        for bit in self.terms.iter().flat_map(|term| term.bits) {
            match bit {
                Bit::Zero => {}
                Bit::Packet(at) if *only.get_or_insert(at / 8) == at / 8 => {}
                _ => return None,
            }
        }
        only
    }

    /// Its value for one of that byte.
    fn of_byte(&self, byte: u8) -> u64 {
        let value = |at: u32| u64::from(byte >> (at % 8) & 1);
        self.value(|bit| match bit {
            Bit::Packet(at) => value(at),
            _ => 0,
        })
    }
}
