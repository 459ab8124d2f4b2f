//! Who writes to a connection, and what waits to be written.
//!
//! Any thread may send at any time, and the peer must see each message whole. So one thread at a
//! time has the right to write. One that finds it taken leaves a copy of its message in the queue
//! and goes; the writer sends what it finds there before it leaves. The task is to lose nothing at
//! the moment when one leaves and another comes, at next to no cost where nobody else comes, which
//! is nearly always.
//!
//! The idea: one word says that nothing is to be said. It has a bit for the right to write, and
//! one, `LOOK`, for everything out of the ordinary: messages wait, the system takes no more, the
//! connection closes or has ended, somebody holds the lock to change any of it. A word without both
//! bits lets a thread in with one compare-exchange, and the same thread out with another. With
//! `LOOK` the first fails, or the second, and the thread looks what there is, under the lock.
//!
//! ```text
//!             enter                             leave
//!     FREE ───────────▶ WRITING   a lone send  ───────▶ FREE        (two instructions)
//!       │                  │
//!       │ LOOK, lock       │ LOOK was set meanwhile, lock
//!       ▼                  ▼
//!     WRITING + LOOK: sends the queue, the lock released over each call
//!       │           │             │              │
//!       ▼           ▼             ▼              ▼
//!     FREE       BLOCKED        CLOSED         ENDED
//!     empty      writable: a    all sent       failed, or given up: what may
//!                thread goes on                go elsewhere is handed back
//! ```
//!
//! `LOOK` is set and cleared under the lock only, and cleared only when the queue is *plain*. So
//! who sets it finds out from the same instruction whether a writer is out, and a writer who is out
//! finds it set when it wants to leave: all of it is one word, there is no order of two variables
//! to get wrong. A mutex in its place costs a lock and an unlock on the way in and on the way out,
//! and a reference to the stream, which could be taken away as soon as the lock is open: six locked
//! instructions for each message, where these are two.
//!
//! The word also counts the threads that keep replies back for one another (`gather.rs`): a
//! connection is not closed before these have sent them.
//!
//! No thread waits for another here, except for room, and in `detach`. Nothing here knows what a
//! connection is: what a call leaves to be seen to (start the background thread, tell the end) is
//! its result, [`Left`]. So that loom can check all of it, with a stream of its own
//! (`write_queue_loom.rs`).
//!
//! # Contract of the unsafe code
//!
//! `stream` is read by who has the right to write ([`Writer`]) or the lock, and changed by who has
//! both. A [`Writer`] is made by the compare-exchange (or, under the lock, while nobody writes) that
//! sets `WRITING`, and goes when it clears it.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    ops::{Deref, DerefMut},
    sync::atomic::{AtomicBool as Flag, AtomicU64 as Counter, AtomicUsize as Size},
    time::Instant,
};

use crate::{
    error::{Error, Result},
    event::EndReason,
    outgoing::{self, GATHER_BYTES, Outgoing, Outlet},
    sync::{AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, UnsafeCell, lock, wait},
};

/// A thread has the right to write.
const WRITING: usize = 1;
/// There is more to it than the word says: look under the lock.
const LOOK: usize = 2;
/// One thread that keeps replies back.
const KEPT: usize = 4;

/// How long a send waits for room.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    Never,
    Until(Instant),
    Forever,
}

/// What a call has left to be seen to.
#[must_use]
pub(crate) enum Left {
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
    Closed,
    /// The stream has failed, or was given up.
    Ended {
        reason: EndReason,
        /// By [`WriteQueue::abort`].
        given_up: bool,
        /// Messages that may go elsewhere.
        again: Vec<Outgoing>,
    },
}

pub(crate) struct WriteQueue<S> {
    word: AtomicUsize,
    queue: Mutex<Queue>,
    /// Room for a new message, or nothing left to send, or the end.
    changed: Condvar,
    stream: UnsafeCell<Option<S>>,
    limit_bytes: usize,
    // Not part of the hand-over: written under the lock or by the writer, read by anybody, as hints
    // and statistics.
    queued_bytes: Size,
    open: Flag,
    sent_at_once: Sent,
    sent_by_queue: Sent,
}

// SAFETY: the stream is shared, and taken away by one thread, as the contract above says.
unsafe impl<S: Send + Sync> Sync for WriteQueue<S> {}

#[derive(Default)]
struct Queue {
    messages: VecDeque<Outgoing>,
    /// Bytes of the first message that are out.
    first_sent: usize,
    /// The stream stands inside a message.
    cut: bool,
    /// The system takes no more.
    blocked: bool,
    /// [`Left::Held`] was said, and `flush` is still to come.
    holding: bool,
    /// What happens when all is sent.
    then: Then,
    ended: Option<EndReason>,
    /// Somebody wants to know whenever a writer leaves.
    look_always: bool,
    /// Threads that wait for `changed`.
    waiting: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Then {
    /// New messages are taken.
    #[default]
    Go,
    /// None is; the stream closes.
    Close,
    /// None is; the stream is given back.
    Detach,
}

/// Messages and bytes.
#[derive(Default)]
struct Sent {
    messages: Counter,
    bytes: Counter,
}

/// A message that its sender still has.
struct Message<'m> {
    pieces: &'m [IoSlice<'m>],
    len: usize,
    /// As how many it counts: replies that were kept back go as one.
    count: usize,
    addressed: bool,
    /// [`KEPT`], if it was kept back until now.
    kept: usize,
}

impl<'m> Message<'m> {
    #[inline]
    fn new(pieces: &'m [IoSlice<'m>], addressed: bool) -> Self {
        Self {
            pieces,
            len: pieces.iter().map(|piece| piece.len()).sum(),
            count: 1,
            addressed,
            kept: 0,
        }
    }
}

impl<S: Outlet + Clone> WriteQueue<S> {
    pub(crate) fn new(stream: S, limit_bytes: usize) -> Self {
        Self {
            word: AtomicUsize::new(0),
            queue: Mutex::new(Queue::default()),
            changed: Condvar::new(),
            stream: UnsafeCell::new(Some(stream)),
            limit_bytes,
            queued_bytes: Size::new(0),
            open: Flag::new(true),
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
        let sum = |a: &Counter, b: &Counter| {
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
    pub(crate) fn stream(&self) -> Option<S> {
        let _queue = lock(&self.queue);
        // SAFETY: read, with the lock.
        self.stream.with(|stream| unsafe { (*stream).clone() })
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.queue).ended.is_some()
    }

    /// Whether nothing waits here, nor with a thread that keeps replies back.
    pub(crate) fn has_sent_all(&self) -> bool {
        lock(&self.queue).messages.is_empty() && self.kept() == 0
    }

    /// From now on no writer leaves without a [`Left`] that says so.
    pub(crate) fn look_always(&self) {
        self.lock().look_always = true;
    }

    /// Sends one message, straight from the caller's memory as far as the system takes it at once.
    /// `addressed`: it must go to this connection.
    #[inline]
    pub(crate) fn send(
        &self,
        pieces: &[IoSlice<'_>],
        addressed: bool,
        wait: Wait,
    ) -> (Result<()>, Left) {
        let message = Message::new(pieces, addressed);
        match self.enter() {
            Some(writer) => self.send_at_once(writer, message),
            None => self.send_slow(message, wait),
        }
    }

    #[cold]
    fn send_slow(&self, message: Message<'_>, wait: Wait) -> (Result<()>, Left) {
        match self.lock_with_room(wait) {
            Ok(locked) => self.send_locked(locked, message),
            Err(e) => (Err(e), Left::Plain),
        }
    }

    /// Takes one message, to send it with the next ones, or when `flush` is called.
    pub(crate) fn hold(
        &self,
        pieces: &[IoSlice<'_>],
        addressed: bool,
        wait: Wait,
    ) -> (Result<()>, Left) {
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
    pub(crate) fn flush(&self) -> Left {
        let mut locked = self.lock();
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
        // Who closes the connection has set LOOK before it looks for these: one sees the other.
        let before = self.word.fetch_add(KEPT, Ordering::Relaxed);
        before & LOOK == 0 || self.may_keep_back()
    }

    #[cold]
    fn may_keep_back(&self) -> bool {
        let locked = self.lock();
        let open = locked.ended.is_none() && locked.then == Then::Go;
        if !open {
            self.unkeep(KEPT);
            locked.notify();
        }
        open
    }

    /// Sends replies that were kept back: so many messages. Their callers have gone: should the
    /// connection have ended, its event has told them.
    pub(crate) fn send_kept(&self, bytes: &[u8], messages: usize) -> Left {
        let pieces = [IoSlice::new(bytes)];
        let message = Message {
            count: messages,
            kept: KEPT,
            ..Message::new(&pieces, true)
        };
        if let Some(writer) = self.enter() {
            return self.send_at_once(writer, message).1;
        }
        let locked = self.lock();
        if locked.ended.is_some() {
            self.unkeep(KEPT);
            locked.notify();
            return Left::Plain;
        }
        self.send_locked(locked, message).1
    }

    /// Queues a message and writes.
    pub(crate) fn push(
        &self,
        message: Outgoing,
        wait: Wait,
    ) -> std::result::Result<Left, Box<(Error, Outgoing)>> {
        match self.lock_with_room(wait) {
            Ok(locked) => Ok(self.push_locked(locked, message)),
            Err(e) => Err(Box::new((e, message))),
        }
    }

    /// Takes over a message of a connection that died; gives it back when this one has ended too.
    pub(crate) fn push_again(&self, message: Outgoing) -> std::result::Result<Left, Outgoing> {
        let locked = self.lock();
        if locked.ended.is_some() || locked.then != Then::Go {
            return Err(message);
        }
        Ok(self.push_locked(locked, message))
    }

    fn push_locked<'a>(&'a self, mut locked: Locked<'a, S>, message: Outgoing) -> Left {
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
    pub(crate) fn writable(&self) -> Left {
        let mut locked = self.lock();
        if std::mem::take(&mut locked.blocked) {
            return self.write(locked.begin_writing(), locked);
        }
        Left::Plain
    }

    /// Takes no new message, and closes the stream when all is sent.
    pub(crate) fn close(&self) -> Left {
        let mut locked = self.lock();
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
    pub(crate) fn abort(&self, reason: EndReason) -> Left {
        let mut locked = self.lock();
        if locked.is_writing() {
            locked.ended.get_or_insert(reason);
            self.open.store(false, Ordering::Relaxed);
            return Left::Queued;
        }
        self.end(locked.begin_writing(), locked, reason, true)
    }

    /// Waits until all is sent, at most until `deadline`, and takes the stream away; `None` if it
    /// is gone.
    pub(crate) fn detach(&self, deadline: Instant) -> Result<Option<S>> {
        let mut locked = self.lock();
        if locked.then == Then::Go {
            locked.then = Then::Detach;
        }
        self.open.store(false, Ordering::Relaxed);
        drop(locked);
        let mut queue = lock(&self.queue);
        loop {
            let idle = self.word.load(Ordering::Relaxed) & WRITING == 0 && !queue.blocked;
            if idle && queue.messages.is_empty() && self.kept() == 0 {
                let mut locked = self.look(queue);
                locked.ended.get_or_insert(EndReason::Closed);
                let writer = locked.begin_writing();
                let stream = writer.take_stream(&locked);
                writer.stop(&locked);
                return Ok(stream);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && !cfg!(loom) {
                let mut locked = self.look(queue);
                if locked.then == Then::Detach {
                    locked.then = Then::Go;
                    self.open.store(locked.ended.is_none(), Ordering::Relaxed);
                }
                return Err(Error::WouldBlock);
            }
            queue.waiting += 1;
            (queue, _) = wait(&self.changed, queue, Some(left));
            queue.waiting -= 1;
        }
    }

    // The right to write, and the lock.

    #[inline]
    fn enter(&self) -> Option<Writer<'_, S>> {
        let mut word = self.word.load(Ordering::Relaxed);
        while word & (WRITING | LOOK) == 0 {
            // SYNC: acquire, with the release of the writer before, in `leave` or `stop`.
            match self.word.compare_exchange_weak(
                word,
                word | WRITING,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Some(Writer(self)),
                Err(now) => word = now,
            }
        }
        None
    }

    /// The lock, to change something: no writer comes or goes unseen.
    fn lock(&self) -> Locked<'_, S> {
        self.look(lock(&self.queue))
    }

    fn look<'a>(&'a self, queue: MutexGuard<'a, Queue>) -> Locked<'a, S> {
        // Only who has the lock changes this bit.
        if self.word.load(Ordering::Relaxed) & LOOK == 0 {
            // SYNC: acquire, with the release in `leave`: of a writer that is gone, all is seen.
            self.word.fetch_or(LOOK, Ordering::Acquire);
        }
        Locked { owner: self, queue }
    }

    fn lock_with_room(&self, wait_for: Wait) -> Result<Locked<'_, S>> {
        let mut queue = lock(&self.queue);
        loop {
            if let Some(reason) = queue.ended {
                return Err(Error::ConnectionEnded(reason));
            }
            if queue.then != Then::Go {
                return Err(Error::ConnectionEnded(EndReason::Closed));
            }
            if self.queued_bytes() < self.limit_bytes {
                return Ok(self.look(queue));
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
            queue.waiting += 1;
            (queue, _) = wait(&self.changed, queue, timeout);
            queue.waiting -= 1;
        }
    }

    /// Threads that keep replies back.
    fn kept(&self) -> usize {
        self.word.load(Ordering::Relaxed) / KEPT
    }

    fn unkeep(&self, kept: usize) {
        if kept > 0 {
            self.word.fetch_sub(kept, Ordering::Relaxed);
        }
    }

    /// Written under the lock only, so that no read-modify-write is needed.
    fn set_queued(&self, _: &Locked<'_, S>, bytes: usize) {
        self.queued_bytes.store(bytes, Ordering::Relaxed);
    }

    // Sending.

    fn send_locked<'a>(
        &'a self,
        mut locked: Locked<'a, S>,
        message: Message<'_>,
    ) -> (Result<()>, Left) {
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
        (Ok(()), left)
    }

    fn append(&self, locked: &mut Locked<'_, S>, message: &Message<'_>) {
        let Message { pieces, len, .. } = *message;
        outgoing::append(&mut locked.messages, pieces, len, message.addressed);
        self.set_queued(locked, self.queued_bytes() + len);
        self.sent_by_queue.add(message.count, len);
        self.unkeep(message.kept);
    }

    #[inline]
    fn send_at_once<'a>(
        &'a self,
        writer: Writer<'a, S>,
        message: Message<'_>,
    ) -> (Result<()>, Left) {
        let result = writer.with_stream(|stream| stream.send(message.pieces));
        match result {
            Ok(n) if n == message.len => {
                self.sent_at_once.add(message.count, message.len);
                match writer.leave(message.kept) {
                    Ok(()) => (Ok(()), Left::Plain),
                    Err(writer) => (Ok(()), self.look_before_leaving(writer, message.kept)),
                }
            }
            result => self.keep_rest(writer, &message, result),
        }
    }

    #[cold]
    fn look_before_leaving<'a>(&'a self, writer: Writer<'a, S>, kept: usize) -> Left {
        let locked = self.lock();
        self.unkeep(kept);
        self.write(writer, locked)
    }

    /// A message was not taken whole.
    #[cold]
    fn keep_rest<'a>(
        &'a self,
        writer: Writer<'a, S>,
        message: &Message<'_>,
        result: io::Result<usize>,
    ) -> (Result<()>, Left) {
        let mut locked = self.lock();
        self.unkeep(message.kept);
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
    fn write<'a>(&'a self, writer: Writer<'a, S>, mut locked: Locked<'a, S>) -> Left {
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
            let result = writer.with_stream(|stream| stream.send_front(&flight, first_sent));
            locked = self.lock();
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

    fn all_sent<'a>(&'a self, writer: Writer<'a, S>, mut locked: Locked<'a, S>) -> Left {
        let closes = locked.then == Then::Close && self.kept() == 0;
        let mut stream = None;
        if closes {
            locked.ended.get_or_insert(EndReason::Closed);
            stream = writer.take_stream(&locked);
        }
        writer.stop(&locked);
        drop(locked);
        if let Some(stream) = stream {
            stream.shutdown();
            return Left::Closed;
        }
        Left::Empty
    }

    fn block<'a>(&'a self, writer: Writer<'a, S>, mut locked: Locked<'a, S>) -> Left {
        locked.blocked = true;
        writer.stop(&locked);
        Left::Blocked
    }

    fn end<'a>(
        &'a self,
        writer: Writer<'a, S>,
        mut locked: Locked<'a, S>,
        reason: EndReason,
        given_up: bool,
    ) -> Left {
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

/// The right to write, and to use the stream.
#[must_use]
struct Writer<'a, S>(&'a WriteQueue<S>);

impl<S: Outlet> Writer<'_, S> {
    fn has_stream(&self) -> bool {
        // SAFETY: read, with the right to write.
        self.0.stream.with(|stream| unsafe { (*stream).is_some() })
    }

    #[inline]
    fn with_stream<R>(&self, call: impl FnOnce(&S) -> io::Result<R>) -> io::Result<R> {
        // SAFETY: read, with the right to write.
        self.0.stream.with(|stream| match unsafe { &*stream } {
            Some(stream) => call(stream),
            None => Err(io::Error::from_raw_os_error(libc::EPIPE)),
        })
    }

    fn take_stream(&self, _: &Locked<'_, S>) -> Option<S> {
        // SAFETY: changed, with the right to write and the lock.
        self.0.stream.with_mut(|stream| unsafe { (*stream).take() })
    }

    /// Leaves, with what it has kept back sent, if there is nothing else to see to.
    #[inline]
    fn leave(self, kept: usize) -> std::result::Result<(), Self> {
        let word = &self.0.word;
        let mut now = word.load(Ordering::Relaxed);
        while now & LOOK == 0 {
            // SYNC: release, with the acquire of the next writer in `enter`, and of who looks.
            match word.compare_exchange_weak(
                now,
                now - WRITING - kept,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(other) => now = other,
            }
        }
        Err(self)
    }

    /// Leaves, having looked.
    fn stop(self, locked: &Locked<'_, S>) {
        // SYNC: release, with the acquire of the next writer in `enter`.
        self.0.word.fetch_and(!WRITING, Ordering::Release);
        locked.notify();
    }
}

/// The queue, locked by one who may change it.
struct Locked<'a, S> {
    owner: &'a WriteQueue<S>,
    queue: MutexGuard<'a, Queue>,
}

impl<'a, S> Locked<'a, S> {
    fn is_writing(&self) -> bool {
        // With LOOK set it changes under the lock only.
        self.owner.word.load(Ordering::Relaxed) & WRITING != 0
    }

    /// Nobody writes, and the system takes what is written.
    fn is_free(&self) -> bool {
        !self.is_writing() && !self.queue.blocked
    }

    /// The right to write, while nobody has it.
    fn begin_writing(&self) -> Writer<'a, S> {
        debug_assert!(!self.is_writing());
        // What the writer before did was seen with LOOK, or with the lock.
        self.owner.word.fetch_or(WRITING, Ordering::Relaxed);
        Writer(self.owner)
    }

    fn notify(&self) {
        if self.queue.waiting > 0 {
            self.owner.changed.notify_all();
        }
    }
}

impl<S> Deref for Locked<'_, S> {
    type Target = Queue;

    fn deref(&self) -> &Queue {
        &self.queue
    }
}

impl<S> DerefMut for Locked<'_, S> {
    fn deref_mut(&mut self) -> &mut Queue {
        &mut self.queue
    }
}

impl<S> Drop for Locked<'_, S> {
    fn drop(&mut self) {
        if self.queue.is_plain() {
            // SYNC: release, with the acquire in `enter`.
            self.owner.word.fetch_and(!LOOK, Ordering::Release);
        }
    }
}

impl Queue {
    /// Whether the word alone says all there is to say.
    fn is_plain(&self) -> bool {
        self.messages.is_empty()
            && !self.blocked
            && !self.look_always
            && self.then == Then::Go
            && self.ended.is_none()
    }

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

impl Sent {
    /// By one thread at a time, so that no read-modify-write is needed.
    #[inline]
    fn add(&self, messages: usize, bytes: usize) {
        let add = |counter: &Counter, n: usize| {
            let now = counter.load(Ordering::Relaxed);
            counter.store(now.wrapping_add(n as u64), Ordering::Relaxed);
        };
        add(&self.messages, messages);
        add(&self.bytes, bytes);
    }

    /// As above; below zero, the sum of both counters is right still.
    fn take_back(&self, messages: usize, bytes: usize) {
        self.add(messages.wrapping_neg(), bytes.wrapping_neg());
    }
}

#[cfg(all(test, loom))]
#[path = "write_queue_loom.rs"]
mod loom_tests;
