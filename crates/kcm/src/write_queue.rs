//! What waits to be written to a connection.
//!
//! Any thread may send at any time, and the peer must see each message whole. So one thread at a
//! time writes (`write_right.rs`). One that finds another writing leaves a copy of its message in
//! the queue and goes; the writer sends what it finds there before it leaves (`writer.rs`).
//!
//! No thread waits for another here, except for room, and in [`WriteQueue::detach`]. Nothing here
//! knows what a connection is: what a call leaves to be seen to (the background thread is to go on,
//! the end is to be told) is its result, [`Left`]. So loom can check all of it, with a stream of its
//! own (`write_queue_loom.rs`).

use std::{
    io::IoSlice,
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize},
    time::Instant,
};

use crate::{
    error::{Error, Result},
    event::EndReason,
    outgoing::{GATHER_BYTES, Outgoing, Outlet},
    sync::Ordering,
    write_right::{KEPT, Locked, Then, WriteRight},
};

/// How long a send waits for room.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    Never,
    Until(Instant),
    Forever,
}

/// What a call has left to be seen to.
#[must_use]
pub(crate) enum Left<S> {
    /// Nothing.
    Plain,
    /// Nothing by this call: a message is in the queue, and another thread will send it.
    Queued,
    /// A message waits for [`WriteQueue::flush`], the first one.
    Held,
    /// All is sent, and others may have waited for that.
    Empty,
    /// The system takes no more: [`WriteQueue::writable`] is to be called when it does.
    Blocked,
    /// All is sent, and the stream is closed for writing.
    Closed(S),
    /// It was given up, but had ended before: who ended it sees to that.
    Over,
    /// The stream has failed, or was given up.
    Ended {
        reason: EndReason,
        /// By [`WriteQueue::abort`].
        given_up: bool,
        /// Messages that may go elsewhere.
        again: Vec<Outgoing>,
    },
}

/// How a send ended, where it is more than this: the message is out, and nothing is left to be seen
/// to. That is nearly always, and is `None`: a result of this size, returned for each message, costs
/// more than the way in and out (the processor cannot forward what is written in parts and read as a
/// whole).
pub(crate) type Outcome<S> = Option<Box<(Result<()>, Left<S>)>>;

/// (What a send that is alone asks for stands last: `psock.rs`.)
#[repr(C)]
pub(crate) struct WriteQueue<S> {
    limit_bytes: usize,
    // No part of the hand-over: written under the lock or by the writer, read by anybody, as hints
    // and statistics.
    queued_bytes: AtomicUsize,
    pub(crate) open: AtomicBool,
    pub(crate) sent_by_queue: Sent,
    pub(crate) right: WriteRight<S>,
    pub(crate) sent_at_once: Sent,
}

/// Messages and bytes.
#[derive(Default)]
pub(crate) struct Sent {
    messages: AtomicU64,
    bytes: AtomicU64,
}

/// A message that its sender still has.
pub(crate) struct Message<'m> {
    pub(crate) pieces: &'m [IoSlice<'m>],
    pub(crate) len: usize,
    /// As how many it counts: replies that were kept back go as one.
    pub(crate) count: usize,
    pub(crate) addressed: bool,
    /// [`KEPT`], if it was kept back until now.
    pub(crate) kept: usize,
}

impl<'m> Message<'m> {
    #[inline]
    pub(crate) fn new(pieces: &'m [IoSlice<'m>], addressed: bool) -> Self {
        Self {
            pieces,
            len: pieces.iter().map(|piece| piece.len()).sum(),
            count: 1,
            addressed,
            kept: 0,
        }
    }
}

impl<S: Outlet> WriteQueue<S> {
    pub(crate) fn new(stream: S, limit_bytes: usize) -> Self {
        Self {
            right: WriteRight::new(stream),
            limit_bytes,
            queued_bytes: AtomicUsize::new(0),
            open: AtomicBool::new(true),
            sent_at_once: Sent::default(),
            sent_by_queue: Sent::default(),
        }
    }

    /// Bytes that wait here.
    #[inline]
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// Whether new messages are taken at all.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Messages and bytes taken so far.
    pub(crate) fn taken(&self) -> (u64, u64) {
        let sum = |a: &AtomicU64, b: &AtomicU64| {
            let (a, b) = (a.load(Ordering::Relaxed), b.load(Ordering::Relaxed));
            a.wrapping_add(b)
        };
        let (direct, queued) = (&self.sent_at_once, &self.sent_by_queue);
        (
            sum(&direct.messages, &queued.messages),
            sum(&direct.bytes, &queued.bytes),
        )
    }

    /// The stream, until it is closed or given back.
    pub(crate) fn stream(&self) -> Option<S>
    where
        S: Clone,
    {
        self.right.stream()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.right.peek().ended.is_some()
    }

    /// Whether nothing waits here, nor with a thread that writes or keeps replies back.
    pub(crate) fn has_sent_all(&self) -> bool {
        let queue = self.right.peek();
        queue.messages.is_empty() && !self.right.is_writing() && self.right.kept() == 0
    }

    /// From now on no writer leaves without a [`Left`] that says so.
    pub(crate) fn look_always(&self) {
        self.right.lock().look_always = true;
    }

    /// Sends one message, straight from the caller's memory as far as the system takes it at once.
    /// `addressed`: it must go to this connection.
    #[inline]
    pub(crate) fn send(&self, pieces: &[IoSlice<'_>], addressed: bool, wait: Wait) -> Outcome<S> {
        let message = Message::new(pieces, addressed);
        match self.right.enter() {
            Some(writer) => self.send_at_once(writer, message),
            None => self.send_slow(message, wait),
        }
    }

    /// The same of one piece, to this connection: the fewest instructions between a reply that waits for
    /// no other and the system's call.
    #[inline(always)]
    pub(crate) fn send_one(&self, bytes: &[u8], wait: Wait) -> Outcome<S> {
        match self.right.enter() {
            Some(writer) => self.send_one_at_once(writer, bytes),
            None => self.send_slow(Message::new(&[IoSlice::new(bytes)], true), wait),
        }
    }

    #[cold]
    fn send_slow(&self, message: Message<'_>, wait: Wait) -> Outcome<S> {
        match self.lock_with_room(wait) {
            Ok(locked) => self.send_locked(locked, message),
            Err(e) => Some(Box::new((Err(e), Left::Plain))),
        }
    }

    /// Takes one message, to send it with the next ones, or when `flush` is called.
    pub(crate) fn hold(
        &self,
        pieces: &[IoSlice<'_>],
        addressed: bool,
        wait: Wait,
    ) -> (Result<()>, Left<S>) {
        let mut locked = match self.lock_with_room(wait) {
            Ok(locked) => locked,
            Err(e) => return (Err(e), Left::Plain),
        };
        self.append(&mut locked, &Message::new(pieces, addressed));
        let left = if !locked.is_free() {
            Left::Queued
        } else if self.queued_bytes() >= GATHER_BYTES {
            self.write(locked.begin_writing(), locked)
        } else if std::mem::replace(&mut locked.holding, true) {
            Left::Plain
        } else {
            Left::Held
        };
        (Ok(()), left)
    }

    /// Sends what `hold` has taken.
    pub(crate) fn flush(&self) -> Left<S> {
        let mut locked = self.right.lock();
        locked.holding = false;
        if locked.is_free() && !locked.messages.is_empty() {
            return self.write(locked.begin_writing(), locked);
        }
        Left::Plain
    }

    /// A thread begins to keep replies back; it ends with `send_kept`. False: none is taken any
    /// more.
    #[inline]
    #[must_use]
    pub(crate) fn keep_back(&self) -> bool {
        self.right.keep() || self.may_keep_back()
    }

    #[cold]
    fn may_keep_back(&self) -> bool {
        let locked = self.right.lock();
        let open = locked.ended.is_none() && locked.then == Then::Go;
        if !open {
            self.right.unkeep(KEPT);
            locked.notify();
        }
        open
    }

    /// Sends replies that were kept back: so many messages. Their callers have gone: should the
    /// connection have ended, its event has told them.
    pub(crate) fn send_kept(&self, bytes: &[u8], messages: usize) -> Left<S> {
        let pieces = [IoSlice::new(bytes)];
        let message = Message {
            count: messages,
            kept: KEPT,
            ..Message::new(&pieces, true)
        };
        if let Some(writer) = self.right.enter() {
            return left_of(self.send_at_once(writer, message));
        }
        let locked = self.right.lock();
        if locked.ended.is_some() {
            self.right.unkeep(KEPT);
            locked.notify();
            return Left::Plain;
        }
        left_of(self.send_locked(locked, message))
    }

    /// Queues a message and writes.
    pub(crate) fn push(
        &self,
        message: Outgoing,
        wait: Wait,
    ) -> std::result::Result<Left<S>, Box<(Error, Outgoing)>> {
        match self.lock_with_room(wait) {
            Ok(locked) => Ok(self.push_locked(locked, message)),
            Err(e) => Err(Box::new((e, message))),
        }
    }

    /// Takes over a message of a connection that died; gives it back when this one has ended too.
    pub(crate) fn push_again(&self, message: Outgoing) -> std::result::Result<Left<S>, Outgoing> {
        let locked = self.right.lock();
        if locked.ended.is_some() || locked.then != Then::Go {
            return Err(message);
        }
        Ok(self.push_locked(locked, message))
    }

    fn push_locked<'a>(&'a self, mut locked: Locked<'a, S>, message: Outgoing) -> Left<S> {
        let len = message.len();
        locked.messages.push_back(message);
        self.set_queued(&locked, self.queued_bytes() + len);
        self.sent_by_queue.add(1, len);
        if locked.is_free() {
            return self.write(locked.begin_writing(), locked);
        }
        Left::Queued
    }

    /// The system may take more again.
    pub(crate) fn writable(&self) -> Left<S> {
        let mut locked = self.right.lock();
        if std::mem::take(&mut locked.blocked) {
            return self.write(locked.begin_writing(), locked);
        }
        Left::Plain
    }

    /// Takes no new message, and closes the stream when all is sent.
    pub(crate) fn close(&self) -> Left<S> {
        let mut locked = self.right.lock();
        locked.then = Then::Close;
        self.open.store(false, Ordering::Relaxed);
        locked.notify();
        if locked.is_free() {
            return self.write(locked.begin_writing(), locked);
        }
        Left::Queued
    }

    /// Gives up what is still queued; a thread that writes at this moment does so when it is back,
    /// for it has the messages. A stream cut inside a message is reset, so that its peer does not
    /// take what came for all.
    pub(crate) fn abort(&self, reason: EndReason) -> Left<S> {
        let mut locked = self.right.lock();
        if locked.is_writing() {
            locked.ended.get_or_insert(reason);
            self.open.store(false, Ordering::Relaxed);
            return Left::Queued;
        }
        if locked.ended.is_some() {
            return Left::Over;
        }
        self.end(locked.begin_writing(), locked, reason, true)
    }

    /// Waits until all is sent, at most until `deadline`, and takes the stream away; `None` if it
    /// is gone.
    pub(crate) fn detach(&self, deadline: Instant) -> Result<Option<S>> {
        let mut locked = self.right.lock();
        if locked.then == Then::Go {
            locked.then = Then::Detach;
        }
        locked.detaching += 1;
        self.open.store(false, Ordering::Relaxed);
        drop(locked);
        let mut queue = self.right.peek();
        loop {
            let idle = !self.right.is_writing() && !queue.blocked;
            if idle && queue.messages.is_empty() && self.right.kept() == 0 {
                let mut locked = self.right.look(queue);
                locked.detaching -= 1;
                locked.ended.get_or_insert(EndReason::Closed);
                let writer = locked.begin_writing();
                let stream = writer.take_stream(&locked);
                writer.stop(&locked);
                return Ok(stream);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !cfg!(loom) {
                let mut locked = self.right.look(queue);
                locked.detaching -= 1;
                // Another thread that waits here relies on it that nobody comes unseen.
                if locked.then == Then::Detach && locked.detaching == 0 {
                    locked.then = Then::Go;
                    self.open.store(locked.ended.is_none(), Ordering::Relaxed);
                }
                return Err(Error::WouldBlock);
            }
            queue = self.right.wait(queue, Some(left));
        }
    }

    fn lock_with_room(&self, wait_for: Wait) -> Result<Locked<'_, S>> {
        let mut queue = self.right.peek();
        loop {
            if let Some(reason) = queue.ended {
                return Err(Error::ConnectionEnded(reason));
            }
            if queue.then != Then::Go {
                return Err(Error::ConnectionEnded(EndReason::Closed));
            }
            if self.queued_bytes() < self.limit_bytes {
                return Ok(self.right.look(queue));
            }
            let timeout = match wait_for {
                Wait::Never => return Err(Error::WouldBlock),
                Wait::Forever => None,
                Wait::Until(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::WouldBlock);
                    }
                    Some(left)
                }
            };
            queue = self.right.wait(queue, timeout);
        }
    }

    /// Written under the lock only, so that no read-modify-write is needed.
    pub(crate) fn set_queued(&self, _: &Locked<'_, S>, bytes: usize) {
        self.queued_bytes.store(bytes, Ordering::Relaxed);
    }
}

fn left_of<S>(outcome: Outcome<S>) -> Left<S> {
    outcome.map_or(Left::Plain, |outcome| outcome.1)
}

impl Sent {
    /// By one thread at a time, so that no read-modify-write is needed.
    #[inline]
    pub(crate) fn add(&self, messages: usize, bytes: usize) {
        let add = |counter: &AtomicU64, n: usize| {
            let now = counter.load(Ordering::Relaxed);
            counter.store(now.wrapping_add(n as u64), Ordering::Relaxed);
        };
        add(&self.messages, messages);
        add(&self.bytes, bytes);
    }

    /// As above; below zero, the sum of both counters is right still.
    pub(crate) fn take_back(&self, messages: usize, bytes: usize) {
        self.add(messages.wrapping_neg(), bytes.wrapping_neg());
    }
}

#[cfg(all(test, loom))]
#[path = "write_queue_loom.rs"]
mod loom_tests;
