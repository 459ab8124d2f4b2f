//! Who may write to a connection: the right to write, in one word.
//!
//! Any thread may send at any time, and one at a time may write. The task is to lose nothing at the
//! moment when a writer leaves and another thread comes, at next to no cost where nobody else comes,
//! which is nearly always.
//!
//! The idea: one word says that nothing is to be said. It has a bit for the right to write, and
//! one, `LOOK`, for everything out of the ordinary: messages wait, the system takes no more, the
//! connection closes or has ended, somebody holds the lock to change any of it. A word without both
//! bits lets a thread in with one compare-exchange, and the same thread out with another. With
//! `LOOK` the first fails, or the second, and the thread looks what there is, under the lock.
//!
//! ```text
//!             enter                          leave
//!     FREE ──────────▶ WRITING, a lone send ───────▶ FREE       (two locked instructions)
//!       │                 │
//!       │ LOOK            │ LOOK was set meanwhile
//!       ▼                 ▼
//!     the lock: what there is, in `Queue`; `begin_writing`, `stop`
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
//! # Contract of the unsafe code
//!
//! `stream` is read by who has the right to write ([`Writer`]) or the lock, and changed by who has
//! both. A [`Writer`] is made where `WRITING` is set, by the compare-exchange or, under the lock,
//! while nobody writes; it is gone when it has cleared it.

use std::{
    collections::VecDeque,
    io,
    marker::PhantomData,
    ops::{Deref, DerefMut},
    time::Duration,
};

use crate::{
    event::EndReason,
    outgoing::Outgoing,
    sync::{
        AtomicUsize, Condvar, ConstPtr, Mutex, MutexGuard, Ordering, UnsafeCell, lock, pause, wait,
    },
};

/// A thread has the right to write.
const WRITING: usize = 1;
/// There is more to it than the word says: look under the lock.
const LOOK: usize = 2;
/// One thread that keeps replies back.
pub(crate) const KEPT: usize = 4;

/// (What a send that is alone asks for stands last: `psock.rs`.)
#[repr(C)]
pub(crate) struct WriteRight<S> {
    queue: Mutex<Queue>,
    /// Room for a new message, or nothing left to send, or the end.
    changed: Condvar,
    stream: UnsafeCell<Option<S>>,
    word: AtomicUsize,
}

// SAFETY: the stream is shared, and taken away by one thread, as the contract above says.
unsafe impl<S: Send + Sync> Sync for WriteRight<S> {}

/// What waits to be written, and how it stands with the stream.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) messages: VecDeque<Outgoing>,
    /// Bytes of the first message that are out.
    pub(crate) first_sent: usize,
    /// The stream stands inside a message.
    pub(crate) cut: bool,
    /// The system takes no more.
    pub(crate) blocked: bool,
    /// A flush is on its way.
    pub(crate) holding: bool,
    /// What happens when all is sent.
    pub(crate) then: Then,
    pub(crate) ended: Option<EndReason>,
    /// Somebody wants to know whenever a writer leaves.
    pub(crate) look_always: bool,
    /// Threads in [`crate::write_queue::WriteQueue::detach`].
    pub(crate) detaching: usize,
    /// Threads that wait for `changed`.
    waiting: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Then {
    /// New messages are taken.
    #[default]
    Go,
    /// None is; the stream closes.
    Close,
    /// None is; the stream is given back.
    Detach,
}

impl<S> WriteRight<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            word: AtomicUsize::new(0),
            queue: Mutex::default(),
            changed: Condvar::new(),
            stream: UnsafeCell::new(Some(stream)),
        }
    }

    /// The right to write, if there is nothing else to see to.
    #[inline]
    pub(crate) fn enter(&self) -> Option<Writer<'_, S>> {
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
    pub(crate) fn lock(&self) -> Locked<'_, S> {
        self.look(self.peek())
    }

    /// From a look at the queue to a change of it.
    pub(crate) fn look<'a>(&'a self, queue: MutexGuard<'a, Queue>) -> Locked<'a, S> {
        // Only who has the lock changes this bit.
        if self.word.load(Ordering::Relaxed) & LOOK == 0 {
            // SYNC: acquire, with the release in `leave`: of a writer that is gone, all is seen.
            self.word.fetch_or(LOOK, Ordering::Acquire);
        }
        Locked { owner: self, queue }
    }

    /// The lock, to look at the queue.
    pub(crate) fn peek(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// Waits for a change, at most for this long; there may be none yet.
    pub(crate) fn wait<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, Queue> {
        queue.waiting += 1;
        (queue, _) = wait(&self.changed, queue, timeout);
        queue.waiting -= 1;
        queue
    }

    /// Whether a thread has the right to write; exact with the lock and `LOOK`, or at a time that
    /// nobody can enter.
    pub(crate) fn is_writing(&self) -> bool {
        self.word.load(Ordering::Relaxed) & WRITING != 0
    }

    pub(crate) fn stream(&self) -> Option<S>
    where
        S: Clone,
    {
        let _queue = self.peek();
        // SAFETY: read, with the lock.
        self.stream.with(|stream| unsafe { (*stream).clone() })
    }

    /// A thread begins to keep replies back. False: look first whether it may.
    #[inline]
    #[must_use]
    pub(crate) fn keep(&self) -> bool {
        // Who closes the connection has set LOOK before it looks for these: one sees the other.
        self.word.fetch_add(KEPT, Ordering::Relaxed) & LOOK == 0
    }

    /// Threads that keep replies back.
    pub(crate) fn kept(&self) -> usize {
        self.word.load(Ordering::Relaxed) / KEPT
    }

    /// [`KEPT`], or nothing.
    pub(crate) fn unkeep(&self, kept: usize) {
        if kept > 0 {
            self.word.fetch_sub(kept, Ordering::Relaxed);
        }
    }
}

/// The right to write, and to use the stream.
#[must_use]
pub(crate) struct Writer<'a, S>(&'a WriteRight<S>);

impl<S> Writer<'_, S> {
    pub(crate) fn has_stream(&self) -> bool {
        // SAFETY: read, with the right to write.
        self.0.stream.with(|stream| unsafe { (*stream).is_some() })
    }

    #[inline(always)]
    pub(crate) fn stream(&self) -> InUse<'_, S> {
        pause();
        InUse {
            stream: self.0.stream.get(),
            right: PhantomData,
        }
    }

    pub(crate) fn take_stream(&self, _: &Locked<'_, S>) -> Option<S> {
        // SAFETY: changed, with the right to write and the lock.
        self.0.stream.with_mut(|stream| unsafe { (*stream).take() })
    }

    /// Leaves, with what it has kept back sent, if there is nothing else to see to.
    #[inline]
    pub(crate) fn leave(self, kept: usize) -> Result<(), Self> {
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
    pub(crate) fn stop(self, locked: &Locked<'_, S>) {
        // SYNC: release, with the acquire of the next writer in `enter`.
        self.0.word.fetch_and(!WRITING, Ordering::Release);
        locked.notify();
    }
}

/// The stream, in use by who has the right to write. (A value, and no call with the stream, which might not be
/// inlined: `receive/single.rs`.)
pub(crate) struct InUse<'a, S> {
    stream: ConstPtr<Option<S>>,
    right: PhantomData<&'a Writer<'a, S>>,
}

impl<S> InUse<'_, S> {
    /// `EPIPE` when it was taken away.
    #[inline(always)]
    pub(crate) fn get(&self) -> io::Result<&S> {
        // SAFETY: read, with the right to write, which is borrowed.
        let stream = unsafe { self.stream.deref() };
        let none = || io::Error::from_raw_os_error(libc::EPIPE);
        stream.as_ref().ok_or_else(none)
    }
}

/// The queue, locked by one who may change it.
pub(crate) struct Locked<'a, S> {
    owner: &'a WriteRight<S>,
    queue: MutexGuard<'a, Queue>,
}

impl<'a, S> Locked<'a, S> {
    pub(crate) fn is_writing(&self) -> bool {
        // With LOOK set it changes under the lock only.
        self.owner.is_writing()
    }

    /// Nobody writes, and the system takes what is written.
    pub(crate) fn is_free(&self) -> bool {
        !self.is_writing() && !self.queue.blocked
    }

    /// The right to write, while nobody has it.
    pub(crate) fn begin_writing(&self) -> Writer<'a, S> {
        // What the writer before did was seen with LOOK, or with the lock.
        let before = self.owner.word.fetch_or(WRITING, Ordering::Relaxed);
        assert_eq!(before & WRITING, 0, "one thread writes at a time");
        Writer(self.owner)
    }

    pub(crate) fn notify(&self) {
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
}
