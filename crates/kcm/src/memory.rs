//! How much memory a multiplexor's received messages may take.
//!
//! Above the limit connections are not read: TCP's window closes, and their peers wait. They are
//! noted here and looked at again when memory is given back. A message longer than a chunk
//! reserves its whole length before its body is read, so that those begun can always be finished;
//! everything smaller fits into what was read already.

use std::sync::{
    Arc, Mutex, Weak,
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
    held_back: Mutex<Vec<Weak<Psock>>>,
}

impl Memory {
    pub(crate) fn new(limit_bytes: usize) -> Self {
        Self {
            limit_bytes,
            used_bytes: AtomicUsize::new(0),
            holding_back: AtomicBool::new(false),
            held_back: Mutex::new(Vec::new()),
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

    /// Whether so much may be read now; if not, the connection is held back.
    pub(crate) fn has_room(&self, bytes: usize, psock: &Arc<Psock>) -> bool {
        self.fits(bytes) || !self.hold_back(bytes, psock)
    }

    /// Takes memory if there is so much; if not, the connection is held back.
    pub(crate) fn reserve(&self, bytes: usize, psock: &Arc<Psock>) -> bool {
        let take = || {
            self.used_bytes
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| {
                    // A message longer than the limit itself is let in alone.
                    (used == 0 || used.saturating_add(bytes) <= self.limit_bytes)
                        .then_some(used + bytes)
                })
                .is_ok()
        };
        take() || (!self.hold_back(bytes, psock) && take())
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

    fn fits(&self, bytes: usize) -> bool {
        let used = self.used_bytes.load(Ordering::SeqCst);
        used == 0 || used.saturating_add(bytes) <= self.limit_bytes
    }

    /// Notes a connection that has to wait. False: there is room after all.
    #[cold]
    fn hold_back(&self, bytes: usize, psock: &Arc<Psock>) -> bool {
        let mut held_back = self.held_back.lock().unwrap_or_else(|e| e.into_inner());
        self.holding_back.store(true, Ordering::SeqCst);
        if self.fits(bytes) {
            return false;
        }
        held_back.push(Arc::downgrade(psock));
        true
    }

    #[cold]
    fn let_go(&self) {
        let held_back = {
            let mut held_back = self.held_back.lock().unwrap_or_else(|e| e.into_inner());
            self.holding_back.store(false, Ordering::SeqCst);
            std::mem::take(&mut *held_back)
        };
        for psock in held_back.iter().filter_map(Weak::upgrade) {
            psock.notify();
        }
    }
}
