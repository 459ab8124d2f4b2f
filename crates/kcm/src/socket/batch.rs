//! Messages taken together: several of a burst for one call.
//!
//! A batch goes through a burst a *row* at a time (`Hand::next_row`, `Granted::next_row`): a row's
//! messages are cut off at once, so that each costs little more than to find its end.

use std::fmt;

use super::Socket;
use crate::{chunk::Row, error::Result, message::Message, origin::Origin};

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
        let left = max.max(1);
        if self.partial.is_none() {
            let next = match &mut self.hand {
                Some(hand) => hand.next_row(&self.state, left, &mut self.lens),
                None => None,
            };
            if let Some(row) = next {
                return Ok(Batch::new(self, row, left));
            }
            let first = self.recv_slow(left)?;
            self.granted.push_front(first);
        }
        Ok(Batch::new(self, Row::empty(), left))
    }
}

/// Messages taken together; from [`Socket::recv_batch`].
pub struct Batch<'a> {
    /// The next of them; `Socket::lens` has their lengths.
    row: Row<Origin>,
    /// Which of the lengths is next.
    next: usize,
    /// How many may be taken beside the row.
    left: usize,
    socket: &'a mut Socket,
}

impl<'a> Batch<'a> {
    fn new(socket: &'a mut Socket, row: Row<Origin>, max: usize) -> Self {
        Self {
            next: 0,
            left: max - row.views(),
            row,
            socket,
        }
    }
}

impl Iterator for Batch<'_> {
    type Item = Message;

    #[inline(always)]
    fn next(&mut self) -> Option<Message> {
        if self.row.views() == 0 {
            // By value: a batch whose address goes elsewhere could not stay in registers.
            match self.socket.more_of_batch(self.left) {
                More::Row(row) => {
                    self.left -= row.views();
                    self.next = 0;
                    self.row = row;
                }
                More::One(message) => {
                    self.left -= 1;
                    return Some(message);
                }
                More::None => {
                    self.left = 0;
                    return None;
                }
            }
        }
        let len = *self.socket.lens.get(self.next)?;
        self.next += 1;
        Some(Message::new(self.row.take(len as usize)))
    }
}

/// What a batch goes on with.
enum More {
    Row(Row<Origin>),
    One(Message),
    None,
}

impl Socket {
    /// More for a batch that may take `left`.
    #[inline(never)]
    fn more_of_batch(&mut self, left: usize) -> More {
        if left == 0 {
            return More::None;
        }
        if let Some((message, from)) = self.partial.take() {
            return More::One(message.share_from(from));
        }
        if let Some(message) = self.granted.next_single() {
            return More::One(message);
        }
        let row = match &mut self.hand {
            Some(hand) => hand.next_row(&self.state, left, &mut self.lens),
            None => self.granted.next_row(left, &mut self.lens),
        };
        if row.is_none() && self.hand.is_some() && self.state.lease.is_revoked() {
            // What was cut off just before is still this socket's.
            self.end_hand();
            if let Some(message) = self.granted.next_single() {
                return More::One(message);
            }
        }
        row.map_or(More::None, More::Row)
    }

    /// A batch is over; what was not taken from it is for whoever asks next.
    #[inline(never)]
    fn end_batch(&mut self, row: Row<Origin>, next: usize) {
        if row.views() > 0 || !self.granted.is_empty() {
            self.return_rest(row, next);
        }
        self.after_recv(true);
    }

    #[cold]
    fn return_rest(&mut self, mut row: Row<Origin>, next: usize) {
        match &mut self.hand {
            // Rows are of the walk, what was granted is not.
            Some(hand) if self.granted.is_empty() => {
                if hand.put_back(&self.state, row) {
                    return;
                }
            }
            _ => {
                for &len in &self.lens[next..][..row.views()] {
                    self.granted.push(Message::new(row.take(len as usize)));
                }
            }
        }
        let walks = self.hand.is_some();
        let back = self.end_hand();
        let messages = self.granted.take_all();
        self.give_back(messages);
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
        let row = std::mem::replace(&mut self.row, Row::empty());
        self.socket.end_batch(row, self.next);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}
