//! Messages taken together: several of a burst for one call.

use std::{fmt, mem, result};

use super::{Socket, next::NoMessage};
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
        let first = match self.take_partial() {
            Some((message, from)) => First::Rest(message, from),
            None => First::Message(self.recv_of(max)?),
        };
        Ok(Batch {
            first,
            beside: max - 1,
            floor: usize::MAX,
            socket: self,
        })
    }
}

/// Messages taken together; from [`Socket::recv_batch`].
pub struct Batch<'a> {
    first: First,
    /// How many may be taken beside the first, if that is not taken yet, or nothing is walked through.
    beside: usize,
    /// Of a walk, whose stock goes down by one with each message: at which the batch is over. So a
    /// message of a burst is one comparison dearer than one that is received by itself, and not two
    /// numbers, of which one is written.
    floor: usize,
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
        if let Some(hand) = &mut self.socket.hand
            && hand.stock() > self.floor
            && let Some(message) = hand.next_plain(&self.socket.state)
        {
            return Some(message);
        }
        self.next_otherwise().ok()
    }
}

impl Batch<'_> {
    /// The next message, where it is not plainly there. (As of a receive, its result is of another kind
    /// than what the loop gets: so the two ways do not meet in memory, which costs 0.3 ns a message.)
    #[inline(never)]
    fn next_otherwise(&mut self) -> result::Result<Message, NoMessage> {
        self.find_next().ok_or(NoMessage::WouldBlock)
    }

    fn find_next(&mut self) -> Option<Message> {
        match mem::replace(&mut self.first, First::None) {
            First::None => {}
            First::Message(message) => {
                self.begin_walk();
                return Some(message);
            }
            First::Rest(message, from) => {
                self.begin_walk();
                return Some(message.share_from(from));
            }
        }
        if let Some(hand) = &mut self.socket.hand {
            if hand.stock() <= self.floor {
                return None;
            }
            if let Some(message) = hand.next_by_rule(&self.socket.state) {
                return Some(message);
            }
            // (Beside a walk nothing is granted.)
            self.beside = hand.stock() - self.floor;
            if self.socket.state.lease.is_revoked() {
                // What was cut off just before is still this socket's.
                self.socket.end_hand();
            }
        }
        self.beside = self.beside.checked_sub(1)?;
        self.socket.granted.next()
    }

    /// The first message is taken.
    fn begin_walk(&mut self) {
        if let Some(hand) = &self.socket.hand {
            self.floor = hand.stock().saturating_sub(self.beside);
        }
    }
}

impl Socket {
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
            First::Rest(message, from) => self.socket.keep_partial(message, from),
        }
        self.socket.after_recv(true);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}
