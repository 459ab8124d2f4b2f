//! What the writer of a connection does.
//!
//! ```text
//!     send_at_once: from its sender's memory ──▶ FREE
//!        │ others have come               │ the system takes a part
//!        ▼                                ▼
//!     write: the queue, the lock released over each call
//!        │           │             │              │
//!        ▼           ▼             ▼              ▼
//!      FREE       BLOCKED        CLOSED         ENDED
//!      empty      writable: a    all sent       failed, or given up: what may
//!                 thread goes on                go elsewhere is handed back
//! ```

use std::io::{self, IoSlice};

use crate::{
    error::{Error, Result},
    event::EndReason,
    outgoing::{self, Outgoing, Outlet},
    sync::Ordering,
    write_queue::{Left, Message, Outcome, WriteQueue},
    write_right::{Locked, Queue, Then, Writer},
};

impl<S: Outlet> WriteQueue<S> {
    /// Sends a message with the lock just taken, or queues it.
    pub(crate) fn send_locked<'a>(
        &'a self,
        mut locked: Locked<'a, S>,
        message: Message<'_>,
    ) -> Outcome<S> {
        if locked.is_free() && locked.messages.is_empty() {
            let writer = locked.begin_writing();
            drop(locked);
            return self.send_at_once(writer, message);
        }
        self.append(&mut locked, &message);
        let left = if locked.is_free() {
            self.write(locked.begin_writing(), locked)
        } else {
            Left::Queued
        };
        Some(Box::new((Ok(()), left)))
    }

    pub(crate) fn append(&self, locked: &mut Locked<'_, S>, message: &Message<'_>) {
        let Message { pieces, len, .. } = *message;
        outgoing::append(&mut locked.messages, pieces, len, message.addressed);
        self.set_queued(locked, self.queued_bytes() + len);
        self.sent_by_queue.add(message.count, len);
        self.right.unkeep(message.kept);
    }

    #[inline]
    pub(crate) fn send_at_once<'a>(
        &'a self,
        writer: Writer<'a, S>,
        message: Message<'_>,
    ) -> Outcome<S> {
        let result = (writer.stream().get()).and_then(|stream| stream.send(message.pieces));
        match result {
            Ok(n) if n == message.len => {
                self.sent_at_once.add(message.count, message.len);
                match writer.leave(message.kept) {
                    Ok(()) => None,
                    Err(writer) => self.look_before_leaving(writer, message.kept),
                }
            }
            result => Some(Box::new(self.keep_rest(writer, &message, result))),
        }
    }

    /// The same of one piece, to this connection.
    #[inline(always)]
    pub(crate) fn send_one_at_once<'a>(
        &'a self,
        writer: Writer<'a, S>,
        bytes: &[u8],
    ) -> Outcome<S> {
        let result = match writer.stream().get() {
            Ok(stream) => stream.send_one(bytes),
            Err(e) => Err(e),
        };
        match result {
            Ok(n) if n == bytes.len() => {
                self.sent_at_once.add(1, n);
                match writer.leave(0) {
                    Ok(()) => None,
                    Err(writer) => self.look_before_leaving(writer, 0),
                }
            }
            result => self.keep_rest_of_one(writer, bytes, result),
        }
    }

    #[cold]
    #[inline(never)]
    fn keep_rest_of_one<'a>(
        &'a self,
        writer: Writer<'a, S>,
        bytes: &[u8],
        result: io::Result<usize>,
    ) -> Outcome<S> {
        let pieces = [IoSlice::new(bytes)];
        let message = Message::new(&pieces, true);
        Some(Box::new(self.keep_rest(writer, &message, result)))
    }

    #[cold]
    fn look_before_leaving<'a>(&'a self, writer: Writer<'a, S>, kept: usize) -> Outcome<S> {
        let locked = self.right.lock();
        self.right.unkeep(kept);
        Some(Box::new((Ok(()), self.write(writer, locked))))
    }

    /// A message was not taken whole.
    #[cold]
    fn keep_rest<'a>(
        &'a self,
        writer: Writer<'a, S>,
        message: &Message<'_>,
        result: io::Result<usize>,
    ) -> (Result<()>, Left<S>) {
        let mut locked = self.right.lock();
        self.right.unkeep(message.kept);
        let n = match result {
            Ok(n) => n,
            Err(e) => {
                let (reason, given_up) = locked.end_after(&e);
                let left = self.end(writer, locked, reason, given_up);
                return (Err(Error::ConnectionEnded(reason)), left);
            }
        };
        // An unaddressed message is kept whole: should the connection die, it goes out again from
        // its beginning on another.
        let addressed = message.addressed;
        let skip = if addressed { n } else { 0 };
        let rest = Outgoing::copy_of(message.pieces, skip, addressed);
        locked.messages.push_front(rest);
        locked.first_sent = n - skip;
        locked.cut = n > 0;
        self.set_queued(&locked, self.queued_bytes() + message.len - n);
        let ended = locked.ended;
        // Given up by another thread meanwhile: then it has no place to go to.
        let lost = ended.filter(|_| addressed);
        if lost.is_none() {
            self.sent_by_queue.add(message.count, message.len);
        }
        let left = match ended {
            None => self.block(writer, locked),
            Some(reason) => self.end(writer, locked, reason, true),
        };
        (
            lost.map_or(Ok(()), |reason| Err(Error::ConnectionEnded(reason))),
            left,
        )
    }

    /// Sends until the queue is empty or the system takes no more, and leaves.
    pub(crate) fn write<'a>(&'a self, writer: Writer<'a, S>, mut locked: Locked<'a, S>) -> Left<S> {
        loop {
            if let Some(reason) = locked.ended {
                // Given up while this thread wrote; or there is nobody to write to.
                if writer.has_stream() {
                    return self.end(writer, locked, reason, true);
                }
                writer.stop(&locked);
                return Left::Plain;
            }
            if locked.messages.is_empty() {
                return self.all_sent(writer, locked);
            }
            let mut flight = std::mem::take(&mut locked.messages);
            let first_sent = locked.first_sent;
            drop(locked);
            let result =
                (writer.stream().get()).and_then(|stream| stream.send_front(&flight, first_sent));
            locked = self.right.lock();
            let sent = *result.as_ref().unwrap_or(&0);
            let first_sent = outgoing::drop_sent(&mut flight, first_sent + sent);
            locked.cut = first_sent > 0 || (locked.cut && sent == 0);
            locked.first_sent = first_sent;
            // What came meanwhile is behind.
            std::mem::swap(&mut locked.messages, &mut flight);
            locked.messages.append(&mut flight);
            self.set_queued(&locked, self.queued_bytes().saturating_sub(sent));
            match result {
                _ if locked.ended.is_some() => {}
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return self.block(writer, locked);
                }
                Err(e) => {
                    let (reason, given_up) = locked.end_after(&e);
                    return self.end(writer, locked, reason, given_up);
                }
            }
        }
    }

    fn all_sent<'a>(&'a self, writer: Writer<'a, S>, mut locked: Locked<'a, S>) -> Left<S> {
        let closes = locked.then == Then::Close && self.right.kept() == 0;
        let mut stream = None;
        if closes {
            locked.ended.get_or_insert(EndReason::Closed);
            stream = writer.take_stream(&locked);
        }
        writer.stop(&locked);
        drop(locked);
        if let Some(stream) = stream {
            stream.shutdown();
            return Left::Closed(stream);
        }
        Left::Empty
    }

    fn block<'a>(&'a self, writer: Writer<'a, S>, mut locked: Locked<'a, S>) -> Left<S> {
        locked.blocked = true;
        writer.stop(&locked);
        Left::Blocked
    }

    pub(crate) fn end<'a>(
        &'a self,
        writer: Writer<'a, S>,
        mut locked: Locked<'a, S>,
        reason: EndReason,
        given_up: bool,
    ) -> Left<S> {
        locked.ended.get_or_insert(reason);
        self.open.store(false, Ordering::Relaxed);
        let stream = writer.take_stream(&locked);
        let cut = std::mem::take(&mut locked.cut);
        locked.blocked = false;
        locked.first_sent = 0;
        let messages = std::mem::take(&mut locked.messages);
        let again: Vec<_> = messages
            .into_iter()
            .filter(|message| !message.addressed)
            .collect();
        let again_bytes = again.iter().map(Outgoing::len).sum();
        self.sent_by_queue.take_back(again.len(), again_bytes);
        self.set_queued(&locked, 0);
        writer.stop(&locked);
        drop(locked);
        if let (Some(stream), true, true) = (&stream, cut, given_up) {
            stream.reset();
        }
        Left::Ended {
            reason,
            given_up,
            again,
        }
    }
}

impl Queue {
    /// Why a connection ends whose stream has failed, and whether another thread has given it up
    /// already.
    fn end_after(&self, e: &io::Error) -> (EndReason, bool) {
        match self.ended {
            Some(reason) => (reason, true),
            None => {
                let errno = e.raw_os_error().unwrap_or(libc::EIO);
                (EndReason::from_errno(errno), false)
            }
        }
    }
}
