//! What a server does with a message: the same code for every contender.

use std::{sync::Arc, time::Duration};

use super::{
    draw::Draw,
    run::Counter,
    verify::{Mismatch, Template},
};

/// Receives messages, one by one, on one thread. Small services are always inlined: a call more or
/// less for each message would tell a contender's loop from another's.
pub(super) trait Service: Send + 'static {
    /// Checks a message and appends the reply to it, if there is one.
    fn serve(&mut self, message: &[u8], reply: &mut Vec<u8>) -> Result<(), Mismatch>;
}

/// Sends every message back (`rr`, `rr-many`). Its client checks that the number is the one that
/// it sent.
pub(super) struct Echo {
    pub(super) template: Template,
}

impl Service for Echo {
    #[inline(always)]
    fn serve(&mut self, message: &[u8], reply: &mut Vec<u8>) -> Result<(), Mismatch> {
        self.template.check(message)?;
        reply.extend_from_slice(message);
        Ok(())
    }
}

/// Drops every message and says so with its number (`drop`, `pipeline-rr`).
pub(super) struct Acknowledge {
    pub(super) template: Template,
    pub(super) reply: Template,
}

impl Service for Acknowledge {
    #[inline(always)]
    fn serve(&mut self, message: &[u8], reply: &mut Vec<u8>) -> Result<(), Mismatch> {
        let number = self.template.check(message)?;
        let begin = reply.len();
        reply.extend_from_slice(self.reply.bytes());
        self.reply.number(&mut reply[begin..], number);
        Ok(())
    }
}

/// Works for as long as the draw says, then replies (`work`).
pub(super) struct Work {
    pub(super) inner: Acknowledge,
    pub(super) draw: Draw,
    /// How late sleeps end.
    pub(super) lateness: Duration,
}

impl Service for Work {
    fn serve(&mut self, message: &[u8], reply: &mut Vec<u8>) -> Result<(), Mismatch> {
        let number = self.inner.template.check(message)?;
        self.draw.service(number).spend(self.lateness);
        self.inner.serve(message, reply)
    }
}

/// Takes every message and never replies (`pipeline`); counts them where the measurement sees it.
pub(super) struct Sink {
    counter: Arc<Counter>,
    template: Template,
    /// The least number that may come next: the only one, if this is the only sink.
    next: u64,
    /// If it is not: what came.
    shared: Option<Tally>,
}

impl Sink {
    /// `alone`: every message comes here.
    pub(super) fn new(counter: Arc<Counter>, template: Template, alone: bool) -> Self {
        Self {
            counter,
            template,
            next: 0,
            shared: (!alone).then(Tally::default),
        }
    }

    pub(super) fn tally(&self) -> Tally {
        self.shared.unwrap_or_else(|| Tally::of_first(self.next))
    }
}

impl Service for Sink {
    #[inline(always)]
    fn serve(&mut self, message: &[u8], _reply: &mut Vec<u8>) -> Result<(), Mismatch> {
        let number = self.template.check(message)?;
        match &mut self.shared {
            None if number == self.next => self.counter.set(number + 1),
            Some(tally) if number >= self.next => {
                tally.add(number);
                self.counter.set(tally.messages);
            }
            _ => return Err(Mismatch::number(self.next, number)),
        }
        self.next = number + 1;
        Ok(())
    }
}

/// Which numbers have come, in little room: how many, their sum, and the sum of their squares.
/// Losses and doubles that leave all three right do not happen by accident.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    messages: u64,
    sum: u64,
    squares: u64,
}

impl Tally {
    /// That of the numbers from 0 to `messages` - 1.
    pub(super) fn of_first(messages: u64) -> Self {
        let mut tally = Self::default();
        (0..messages).for_each(|number| tally.add(number));
        tally
    }

    /// Both together.
    pub(super) fn merge(self, other: Self) -> Self {
        Self {
            messages: self.messages + other.messages,
            sum: self.sum.wrapping_add(other.sum),
            squares: self.squares.wrapping_add(other.squares),
        }
    }

    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    #[inline]
    fn add(&mut self, number: u64) {
        self.messages += 1;
        self.sum = self.sum.wrapping_add(number);
        self.squares = self.squares.wrapping_add(number.wrapping_mul(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(numbers: &[u64]) -> Tally {
        let mut tally = Tally::default();
        numbers.iter().for_each(|&number| tally.add(number));
        tally
    }

    #[test]
    fn a_sink_takes_each_number_once_and_in_order() {
        let framing = "u32be+4".parse().expect("a good specification");
        let template = Template::with_length(&framing, 64).expect("fits");
        for (numbers, alone, with_others) in [
            (&[0, 1, 2][..], true, true),
            (&[0, 2], false, true),
            (&[0, 1, 1], false, false),
            (&[0, 2, 1], false, false),
        ] {
            for (is_alone, expected) in [(true, alone), (false, with_others)] {
                let mut sink = Sink::new(Arc::default(), template.clone(), is_alone);
                let mut message = template.bytes().to_vec();
                let all_taken = numbers.iter().all(|&number| {
                    template.number(&mut message, number);
                    sink.serve(&message, &mut Vec::new()).is_ok()
                });
                assert_eq!(all_taken, expected, "{numbers:?}, alone: {is_alone}");
            }
        }
    }

    #[test]
    fn tallies_see_what_is_missing_or_doubled() {
        let all = Tally::of_first(6);
        assert_eq!(tally(&[0, 2, 5]).merge(tally(&[1, 3, 4])), all);
        assert_ne!(tally(&[0, 2, 5]).merge(tally(&[1, 3])), all);
        // As many, and the same sum: 1 and 4 became 2 and 3.
        assert_ne!(tally(&[0, 2, 5]).merge(tally(&[2, 3, 3])), all);
    }
}
