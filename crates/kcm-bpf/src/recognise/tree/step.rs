//! A step of a tree, as any message can take it, near its end too.

use crate::alu::low;
use crate::program::Outcome;
use crate::recognise::condition::Condition;
use crate::recognise::follow::{self, Node, Then};
use crate::recognise::number::{LOW, Number};
use crate::recognise::sum::Sum;

#[derive(Debug)]
pub(super) struct Step {
    /// Bytes that must be there; else it goes on at `short`.
    pub(super) need: usize,
    pub(super) short: usize,
    pub(super) then: Run,
}

#[derive(Debug)]
pub(super) enum Run {
    Decide(Decision),
    Length(Sum),
    Labelled(Box<Labelled>),
    /// The instructions say it.
    Ask,
}

/// Whether `(sum - low) & keep` is not above `span`.
#[derive(Clone, Debug)]
pub(in crate::recognise) struct Decision {
    pub(super) sum: Sum,
    pub(super) low: u64,
    /// All bits, or the low half.
    pub(super) keep: u64,
    pub(super) span: u64,
    pub(super) inside: usize,
    pub(super) outside: usize,
}

/// A length with a key, a class, or both.
#[derive(Clone, Debug)]
pub(super) struct Labelled {
    length: Sum,
    key: Option<Sum>,
    class: Option<Sum>,
}

impl Step {
    /// Nothing, if some number takes more pieces than is worth it.
    pub(super) fn new(node: &Node) -> Option<Self> {
        let then = match &node.then {
            Then::Decide {
                condition,
                inside,
                outside,
            } => Run::Decide(Decision::new(condition, *inside, *outside)?),
            Then::Ask => Run::Ask,
            Then::End(follow::End { result, key, class }) => {
                let length = Sum::new(result)?;
                let label = |number: &Option<Number>| match number {
                    Some(number) => Sum::new(number).map(Some),
                    None => Some(None),
                };
                match (label(key)?, label(class)?) {
                    (None, None) => Run::Length(length),
                    (key, class) => Run::Labelled(Box::new(Labelled { length, key, class })),
                }
            }
        };
        Some(Self {
            need: node.need,
            short: node.short,
            then,
        })
    }
}

impl Decision {
    pub(in crate::recognise) fn new(
        condition: &Condition,
        inside: usize,
        outside: usize,
    ) -> Option<Self> {
        Some(Self {
            sum: Sum::new(&condition.number)?,
            low: condition.low,
            keep: if condition.half { LOW } else { u64::MAX },
            span: condition.span,
            inside,
            outside,
        })
    }

    #[inline(always)]
    pub(super) const fn is_inside(&self, sum: u64) -> bool {
        sum.wrapping_sub(self.low) & self.keep <= self.span
    }

    /// How many bytes must be there for it to be known from that, and whether it is then inside.
    pub(in crate::recognise) fn known_by_len(&self) -> Option<(usize, bool)> {
        /// With more, it would not often be known.
        const MAX_NEED: u32 = 64;
        let off = self.sum.most_off_len()?;
        let from_low = |number: u64| {
            let sum = number.wrapping_add(self.sum.bias());
            sum.wrapping_sub(self.low) & self.keep
        };
        (0..=MAX_NEED).find_map(|need| {
            // All that it can be, from the fewest bytes to the most.
            let least = from_low(u64::from(need).checked_sub(off)?);
            let most = from_low(LOW);
            let is_known = least <= most && (least > self.span || most <= self.span);
            Some((usize::try_from(need).ok()?, most <= self.span)).filter(|_| is_known)
        })
    }
}

impl Labelled {
    pub(super) fn outcome(&self, bytes: &[u8]) -> Outcome {
        let value = |sum: &Sum| low(sum.of(bytes));
        let (key, class) = (self.key.as_ref(), self.class.as_ref());
        Outcome::of_words(value(&self.length), key.map(value), class.map(value))
    }

    /// The same, if all 8 bytes of each piece are there. (Without closures, which would be calls.)
    #[inline(always)]
    pub(super) fn outcome_of_words(&self, bytes: &[u8]) -> Option<Outcome> {
        let length = low(self.length.of_words(bytes)?);
        let key = match &self.key {
            Some(key) => Some(low(key.of_words(bytes)?)),
            None => None,
        };
        let class = match &self.class {
            Some(class) => Some(low(class.of_words(bytes)?)),
            None => None,
        };
        Some(Outcome::of_words(length, key, class))
    }
}
