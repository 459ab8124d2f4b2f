//! How much memory a multiplexor's received messages may take.
//!
//! Above the limit connections are not read: TCP's window closes, and their peers wait. They are
//! noted here and looked at again when memory is given back. A message longer than a chunk
//! reserves its whole length before its body is read.
//!
//! Unfinished messages of many connections can fill the limit together; nobody can receive them,
//! so that none of their memory would ever be given back. Therefore one connection at a time gets a
//! *pass*: it may read what its message still lacks, and nothing behind it, beyond the limit. It
//! gets one only if what others than those held back have in use leaves room for the message:
//! while a program keeps messages up to the limit, nobody gets a pass. So the memory in use never
//! exceeds twice the limit, and a single message that is longer than the limit is let in alone.

use std::sync::{
    Arc, Mutex, MutexGuard, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use crate::psock::Psock;

/// Up to here small messages may pin the chunk that they came in, 2 MiB: 8 chunks.
const MOST_PINNED_BYTES: usize = 2 << 20;

pub(crate) struct Memory {
    limit_bytes: usize,
    used_bytes: AtomicUsize,
    /// Somebody is held back.
    holding_back: AtomicBool,
    held_back: Mutex<HeldBack>,
}

#[derive(Default)]
struct HeldBack {
    /// Each with the memory that its unfinished message has in use.
    waiting: Vec<(Weak<Psock>, usize)>,
    /// Who has the pass.
    pass: Option<Weak<Psock>>,
}

/// Less room than this, a page, is not worth a read.
pub(crate) const LEAST_BYTES: usize = 4 << 10;

/// What a connection asks memory for.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// Now.
    pub(crate) bytes: usize,
    /// The whole message at the front, as far as it is known.
    pub(crate) message_bytes: usize,
    /// In use for the part of it that is there.
    pub(crate) begun_bytes: usize,
}

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Yes,
    /// For the message at the front and no more; until [`Memory::end_pass`].
    Pass,
    /// The connection is held back.
    No,
}

impl Memory {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            used_bytes: AtomicUsize::new(0),
            holding_back: AtomicBool::new(false),
            held_back: Mutex::default(),
        }
    }

    /// Whether so much is in use that small messages are copied out of their chunks. A few chunks
    /// are always under way; more than this means that somebody keeps messages.
    pub(crate) fn is_much_used(&self) -> bool {
        self.used_bytes.load(Ordering::Relaxed) > MOST_PINNED_BYTES.min(self.limit_bytes / 4)
    }

    pub(crate) fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// Takes memory without asking: what was read must be kept.
    pub(crate) fn charge(&self, bytes: usize) {
        self.used_bytes.fetch_add(bytes, Ordering::SeqCst);
    }

    /// How much may be read now, if it is anything. Takes nothing.
    pub(crate) fn room_bytes(&self) -> Option<usize> {
        match self.used_bytes.load(Ordering::Relaxed) {
            0 => Some(usize::MAX),
            used => Some(self.limit_bytes.saturating_sub(used)).filter(|&room| room >= LEAST_BYTES),
        }
    }

    /// Takes memory, if there is so much.
    pub(crate) fn reserve(&self, bytes: usize) -> bool {
        self.used_bytes
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                self.has_room_beside(used, bytes).then_some(used + bytes)
            })
            .is_ok()
    }

    /// Notes a connection that has to wait, unless there is room after all, or a pass for it.
    #[cold]
    pub(crate) fn hold_back(&self, wanted: Wanted, psock: &Arc<Psock>) -> Room {
        let this = Arc::downgrade(psock);
        let mut held_back = self.held_back();
        // SYNC: sequentially consistent with `release`.
        self.holding_back.store(true, Ordering::SeqCst);
        if self.has_room_beside(self.used_bytes.load(Ordering::SeqCst), wanted.bytes) {
            return Room::Yes;
        }
        held_back
            .waiting
            .retain(|(other, _)| other.strong_count() > 0 && !other.ptr_eq(&this));
        let has_pass = |pass: &Weak<Psock>| pass.strong_count() > 0;
        let pass_is_free = !held_back.pass.as_ref().is_some_and(has_pass);
        let unfinished: usize = held_back.waiting.iter().map(|(_, begun)| begun).sum();
        let unfinished = unfinished + wanted.begun_bytes;
        let others = self.used_bytes().saturating_sub(unfinished);
        if wanted.begun_bytes > 0
            && pass_is_free
            && self.has_room_beside(others, wanted.message_bytes)
        {
            held_back.pass = Some(this);
            return Room::Pass;
        }
        held_back.waiting.push((this, wanted.begun_bytes));
        Room::No
    }

    /// The message is whole, or never will be: the next may have the pass.
    #[cold]
    pub(crate) fn end_pass(&self) {
        self.held_back().pass = None;
        self.let_go();
    }

    /// Gives memory back.
    pub(crate) fn release(&self, bytes: usize) {
        // SYNC: sequentially consistent with `hold_back`: either it sees the memory, or this
        // thread sees the one that is held back.
        self.used_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if self.holding_back.load(Ordering::SeqCst) {
            self.let_go();
        }
    }

    /// (What is longer than the limit itself is let in alone.)
    fn has_room_beside(&self, used_bytes: usize, bytes: usize) -> bool {
        used_bytes == 0 || used_bytes.saturating_add(bytes) <= self.limit_bytes
    }

    fn held_back(&self) -> MutexGuard<'_, HeldBack> {
        self.held_back.lock().unwrap_or_else(|e| e.into_inner())
    }

    #[cold]
    fn let_go(&self) {
        let waiting = {
            let mut held_back = self.held_back();
            self.holding_back.store(false, Ordering::SeqCst);
            std::mem::take(&mut held_back.waiting)
        };
        for psock in waiting.iter().filter_map(|(psock, _)| psock.upgrade()) {
            psock.notify();
        }
    }
}
