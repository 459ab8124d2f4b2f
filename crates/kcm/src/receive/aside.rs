//! What comes before the next read of a connection: rarely anything.
//!
//! So all of it stands in memory of its own. A connection that has nothing of it is smaller by that, and
//! finds out by one question that there is none.

use std::collections::VecDeque;

use crate::{event::EndReason, message::Message};

#[derive(Default)]
pub(super) struct Aside(Option<Box<Things>>);

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

impl Aside {
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    #[inline]
    pub(super) fn things(&self) -> Option<&Things> {
        self.0.as_deref()
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
