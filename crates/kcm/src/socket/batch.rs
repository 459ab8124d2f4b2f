//! Messages taken together: several of a burst for one call.

use std::{fmt, mem};

use super::Socket;
use crate::{error::Result, message::Message};

impl Socket {
    /// Up to `max` messages at once: waits for the first, and takes others that are there,
    /// from the same burst. While other sockets wait it takes no more than its share.
    ///
    /// Gives an iterator; what is not taken from it stays for the next receive, of any socket.
    ///
    /// # Errors
    ///
    /// As [`Socket::recv`].
    pub fn recv_batch(&mut self, max: usize) -> Result<Batch<'_>> {
        let max = max.max(1);
        let first = match self.partial.take() {
            Some((message, from)) => First::Rest(message, from),
            None => First::Message(self.recv_of(max)?),
        };
        Ok(Batch {
            first,
            left: max - 1,
            socket: self,
        })
    }
}

/// Messages taken together; from [`Socket::recv_batch`].
pub struct Batch<'a> {
    first: First,
    /// How many may be taken beside it.
    left: usize,
    socket: &'a mut Socket,
}

/// A batch's first message, until it is taken.
enum First {
    None,
    Message(Message),
    /// One that was looked at, or read in part up to here: not taken, it stays with this socket.
    Rest(Message, usize),
}

impl Iterator for Batch<'_> {
    type Item = Message;

    #[inline(always)]
    fn next(&mut self) -> Option<Message> {
        if !matches!(self.first, First::None) {
            return mem::replace(&mut self.first, First::None).message();
        }
        self.left = self.left.checked_sub(1)?;
        let walked = match &mut self.socket.hand {
            Some(hand) => hand.next(&self.socket.state),
            None => None,
        };
        if walked.is_some() {
            return walked;
        }
        self.socket.more_of_batch()
    }
}

impl First {
    /// By value: a batch whose address goes elsewhere could not stay in registers.
    #[inline(never)]
    fn message(self) -> Option<Message> {
        match self {
            Self::None => None,
            Self::Message(message) => Some(message),
            Self::Rest(message, from) => Some(message.share_from(from)),
        }
    }
}

impl Socket {
    /// The next message of a batch that is not one of a walk.
    #[cold]
    #[inline(never)]
    fn more_of_batch(&mut self) -> Option<Message> {
        if self.hand.is_some() && self.state.lease.is_revoked() {
            // What was cut off just before is still this socket's.
            self.end_hand();
        }
        self.granted.next()
    }

    /// A batch is over; what was not taken from it is for whoever asks next.
    #[cold]
    #[inline(never)]
    fn return_rest(&mut self, first: Option<Message>) {
        let walks = self.hand.is_some();
        let back = self.end_hand();
        let rest = self.granted.take_all();
        self.give_back(first.into_iter().chain(rest));
        // (Of a walk, others may have been taken before, and be worked on.)
        if !walks {
            self.finish_ordered();
        }
        if let Some(psock) = back {
            psock.release(true);
        }
    }
}

impl Drop for Batch<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        match mem::replace(&mut self.first, First::None) {
            First::None if self.socket.granted.is_empty() => {}
            First::None => self.socket.return_rest(None),
            First::Message(message) => self.socket.return_rest(Some(message)),
            First::Rest(message, from) => self.socket.partial = Some((message, from)),
        }
        self.socket.after_recv(true);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}
