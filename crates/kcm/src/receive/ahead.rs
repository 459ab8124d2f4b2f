//! What comes before the next read of a connection: rarely anything.
//!
//! So all of it stands in memory of its own. A connection that has nothing of it is smaller by that, and
//! finds out by one question that there is none.

use std::collections::VecDeque;

use crate::{event::EndReason, message::Message};

#[derive(Default)]
pub(super) struct Ahead(Option<Box<Things>>);

#[derive(Default)]
pub(super) struct Things {
    /// Messages that were cut off and given back, in the order of the stream: before all others.
    pub(super) returned: VecDeque<Message>,
    /// Bytes that were read before the connection was attached.
    pub(super) early: Vec<u8>,
    /// The end of the stream, where a read has met it already (`single.rs`).
    pub(super) met: Option<EndReason>,
    /// Its message may be finished beyond the limit of memory.
    pub(super) pass: bool,
}

impl Ahead {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    pub(super) fn things(&self) -> Option<&Things> {
        self.0.as_deref()
    }

    /// Whether there is anything of which this holds.
    #[inline]
    pub(super) fn has(&self, holds: impl FnOnce(&Things) -> bool) -> bool {
        self.things().is_some_and(holds)
    }

    /// To put something there.
    pub(super) fn put(&mut self) -> &mut Things {
        self.0.get_or_insert_default()
    }

    /// Takes something from there, if anything is.
    #[inline]
    pub(super) fn take<R: Default>(&mut self, take: impl FnOnce(&mut Things) -> R) -> R {
        let Some(things) = &mut self.0 else {
            return R::default();
        };
        let taken = take(things);
        if things.are_none() {
            self.0 = None;
        }
        taken
    }
}

impl Things {
    fn are_none(&self) -> bool {
        self.returned.is_empty() && self.early.is_empty() && self.met.is_none() && !self.pass
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::mem;

    use super::*;

    #[test]
    fn nothing_is_there_once_all_is_taken() {
        let mut ahead = Ahead::default();
        assert!(ahead.is_empty());
        ahead.put().early = vec![1];
        ahead.put().met = Some(EndReason::Eof);
        ahead.put().pass = true;
        assert!(ahead.take(|things| things.returned.pop_front()).is_none());
        assert!(ahead.take(|things| mem::take(&mut things.pass)));
        assert_eq!(ahead.take(|things| things.met.take()), Some(EndReason::Eof));
        assert!(ahead.has(|things| !things.early.is_empty()) && !ahead.is_empty());
        assert_eq!(ahead.take(|things| mem::take(&mut things.early)), [1]);
        assert!(ahead.is_empty());
        assert!(!ahead.take(|things| mem::take(&mut things.pass)));
    }
}
