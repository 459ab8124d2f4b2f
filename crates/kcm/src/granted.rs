//! Messages that a socket was given and has not handed out yet: what is left of a batch.
//!
//! A batch among several sockets takes its share of a burst at once, under the lock of the
//! receiving side. That only finds where each message ends; references for all of them are bought
//! together, and the messages are made as the batch is walked through.

use std::collections::VecDeque;

use crate::{chunk::Credit, message::Message, origin::Origin};

#[derive(Default)]
pub(crate) struct Granted {
    /// Messages that exist already; before the others.
    messages: VecDeque<Message>,
    /// A part of a burst, and where its messages end.
    share: Option<Credit<Origin>>,
    lens: Vec<u32>,
    /// Messages of the share that were handed out.
    next: usize,
}

impl Granted {
    pub(crate) fn is_empty(&self) -> bool {
        self.messages.is_empty() && self.share.is_none()
    }

    /// One that exists already.
    pub(crate) fn push(&mut self, message: Message) {
        self.messages.push_back(message);
    }

    /// Room for the lengths of a share; there must not be another.
    pub(crate) fn lens(&mut self) -> &mut Vec<u32> {
        debug_assert!(self.share.is_none());
        self.lens.clear();
        &mut self.lens
    }

    /// The share whose lengths were noted; this thread walks through it.
    pub(crate) fn set_share(&mut self, mut share: Credit<Origin>) {
        share.begin_walk();
        self.next = 0;
        self.share = Some(share);
    }

    /// The next message.
    pub(crate) fn next(&mut self) -> Option<Message> {
        if let Some(message) = self.messages.pop_front() {
            return Some(message);
        }
        let len = *self.lens.get(self.next)? as usize;
        let slice = self.share.as_mut()?.take(len);
        self.next += 1;
        if self.next == self.lens.len() {
            self.share = None;
        }
        Some(Message::new(slice))
    }

    /// All that is left.
    pub(crate) fn take_all(&mut self) -> VecDeque<Message> {
        std::iter::from_fn(|| self.next()).collect()
    }
}
