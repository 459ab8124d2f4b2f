//! References bought in advance, and views given back together: a thread that walks through a burst
//! pays for all of its messages at once.
//!
//! The contract of the unsafe code is that of `chunk.rs`.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    ptr::{self, NonNull},
    slice,
    sync::atomic::compiler_fence,
};

use super::{Block, Buffer, Slice};
use crate::{
    sync::{Arc, AtomicBool, AtomicUsize, Mutex, Ordering, lock},
    sys,
};

/// Views of a block that one thread has dropped while it walks through the burst in it. They are
/// given back together: an atomic operation for each would keep the processor from working ahead
/// on the next message, and costs as much as all the rest.
///
/// The count is the thread's own. Should the walk end on another thread (the socket was moved), that
/// one closes the count; the same two sides as in `lease.rs`, settled in the same way.
pub(super) struct Dropped {
    /// The block that is walked, as an address; 0 without one. Changed under `collected`.
    block: AtomicUsize,
    count: AtomicUsize,
    closed: AtomicBool,
    /// Up to which count another thread has collected.
    collected: Mutex<usize>,
}

/// A thread's walk; ends with the thread at the latest.
struct Walk {
    dropped: Arc<Dropped>,
    release: unsafe fn(usize, usize),
}

thread_local! {
    /// The block that this thread walks through, and where it counts.
    pub(super) static WALKED: Cell<(usize, *const Dropped)> = const { Cell::new((0, ptr::null())) };
    static WALK: RefCell<Option<Walk>> = const { RefCell::new(None) };
}

impl Dropped {
    /// One more; false when the count is closed.
    #[inline(always)]
    pub(super) fn add(&self) -> bool {
        let count = self.count.load(Ordering::Relaxed) + 1;
        // SYNC: this store and the load below stand in this order for a thread that has passed
        // the `membarrier` in `collect`.
        self.count.store(count, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        !self.closed.load(Ordering::Relaxed)
    }

    /// Whether the last one that was added is in what was collected when the count was closed.
    #[cold]
    pub(super) fn last_was_collected(&self) -> bool {
        self.count.load(Ordering::Relaxed) <= *lock(&self.collected)
    }

    /// Another thread takes what was counted of this block, and closes the count.
    fn collect(&self, block: usize) -> usize {
        let mut collected = lock(&self.collected);
        if self.block.load(Ordering::Relaxed) != block || self.closed.load(Ordering::Relaxed) {
            return 0;
        }
        self.closed.store(true, Ordering::Relaxed);
        // SYNC: with `add`.
        sys::membarrier();
        *collected = self.count.load(Ordering::Relaxed);
        *collected
    }

    /// The thread itself takes what it counted and nobody collected, and walks another block.
    fn restart(&self, block: usize) -> usize {
        let mut collected = lock(&self.collected);
        let closed = self.closed.swap(false, Ordering::Relaxed);
        self.block.store(block, Ordering::Relaxed);
        *collected = 0;
        let count = self.count.swap(0, Ordering::Relaxed);
        // What was dropped after closing was given back at once.
        if closed { 0 } else { count }
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        let (block, _) = WALKED.replace((0, ptr::null()));
        let count = self.dropped.restart(0);
        // SAFETY: these references were given up by their views on this thread and kept for it;
        // `release` is that of the block's own type.
        unsafe { (self.release)(block, count) };
    }
}

impl<T> Buffer<T> {
    /// References for all views that can be made of a part of the filled bytes: one for each byte.
    pub(crate) fn credit(&self, range: Range<usize>) -> Credit<T> {
        assert!(range.start <= range.end && range.end <= self.filled);
        let left = range.end - range.start;
        // Relaxed: made from a reference that exists.
        self.head().refs.fetch_add(left, Ordering::Relaxed);
        Credit {
            block: self.block,
            left,
            position: range.start,
            end: range.end,
            words: Block::bytes(self.block).as_ptr(),
            words_end: 0,
            walk: None,
        }
    }
}

/// A stock of references to a block.
pub(crate) struct Credit<T> {
    block: NonNull<Block<T>>,
    /// Not below the number of bytes that are left.
    left: usize,
    position: usize,
    end: usize,
    /// So many bytes behind this as a position says, if that is below `words_end`, 8 filled bytes begin.
    words: *const u8,
    words_end: usize,
    walk: Option<Arc<Dropped>>,
}

// SAFETY: as for `Buffer`, without the writing.
unsafe impl<T: Send + Sync> Send for Credit<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Credit<T> {}

impl<T> Credit<T> {
    /// This thread begins to walk through the block: what it drops of it counts as left in stock,
    /// until [`Credit::end_walk`].
    pub(crate) fn begin_walk(&mut self) {
        /// # Safety
        ///
        /// As [`Block::release`], of a block of this type, if `n` is not 0.
        unsafe fn release<T>(block: usize, n: usize) {
            let block = ptr::with_exposed_provenance_mut::<Block<T>>(block);
            if let (Some(block), true) = (NonNull::new(block), n > 0) {
                // SAFETY: the caller's contract.
                unsafe { Block::release(block, n) };
            }
        }
        if !sys::membarrier_ready() {
            return;
        }
        let block = self.block.as_ptr().expose_provenance();
        // A thread that is ending counts nothing any more.
        let _ = WALK.try_with(|walk| {
            let mut walk = walk.borrow_mut();
            let walk = walk.get_or_insert_with(|| Walk {
                dropped: Arc::new(Dropped {
                    block: AtomicUsize::new(0),
                    count: AtomicUsize::new(0),
                    closed: AtomicBool::new(false),
                    collected: Mutex::new(0),
                }),
                release: release::<T>,
            });
            let (before, _) = WALKED.replace((block, Arc::as_ptr(&walk.dropped)));
            let count = walk.dropped.restart(block);
            // SAFETY: as in `Walk::drop`.
            unsafe { (walk.release)(before, count) };
            walk.release = release::<T>;
            self.walk = Some(walk.dropped.clone());
        });
    }

    /// The walk is over.
    pub(crate) fn end_walk(&mut self) {
        let Some(dropped) = self.walk.take() else {
            return;
        };
        let block = self.block.as_ptr().expose_provenance();
        let (walked, counter) = WALKED.get();
        self.left += if walked == block && ptr::eq(counter, Arc::as_ptr(&dropped)) {
            WALKED.set((0, ptr::null()));
            dropped.restart(0)
        } else {
            dropped.collect(block)
        };
    }

    /// Gives the stock back; the walk is over.
    pub(crate) fn give_back(&mut self) {
        self.end_walk();
        (self.end, self.words_end) = (self.position, 0);
        let left = std::mem::take(&mut self.left);
        if left > 0 {
            // SAFETY: what is left in stock is this Credit's own. Without any it reaches for nothing: there
            // are no bytes left either.
            unsafe { Block::release(self.block, left) };
        }
    }

    /// Without a stock, it may stand anywhere.
    pub(crate) fn stay_at(&mut self, position: usize) {
        assert_eq!(self.left, 0);
        (self.position, self.end) = (position, position);
    }

    /// References left, without those of views that were dropped in a walk.
    #[inline]
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Where in the block the next view begins.
    #[inline]
    pub(crate) fn position(&self) -> usize {
        self.position
    }

    /// The bytes that are left of those that the credit was taken for.
    #[inline(always)]
    pub(crate) fn rest(&self) -> &[u8] {
        if self.position == self.end {
            return &[];
        }
        // SAFETY: filled bytes, which do not change. The references in stock keep the block alive:
        // there is one at least for each byte.
        unsafe {
            let start = Block::bytes(self.block).add(self.position);
            slice::from_raw_parts(start.as_ptr(), self.end - self.position)
        }
    }

    /// From now on [`Credit::word`] gives the 8 bytes that begin `offset` bytes behind the position, if
    /// that is below `until`, and all of them and `need` bytes in all are there.
    pub(crate) fn set_words(&mut self, offset: usize, need: usize, until: usize) {
        let need = need.max(offset.saturating_add(size_of::<[u8; 8]>()));
        let first_without = (self.end + 1).saturating_sub(need);
        self.words = Block::bytes(self.block).as_ptr().wrapping_add(offset);
        self.words_end = first_without.min(until);
    }

    /// 8 bytes of what comes next.
    #[inline(always)]
    pub(crate) fn word(&self) -> Option<[u8; 8]> {
        if self.position >= self.words_end {
            return None;
        }
        // SAFETY: below `words_end`, all 8 bytes end at `end` or before: they are filled, and do not
        // change. The references in stock keep the block alive: there is one at least.
        Some(unsafe { self.words.add(self.position).cast::<[u8; 8]>().read() })
    }

    /// A view of the next `len` bytes, paid from the stock: if there are so many (and one at least, so
    /// that there is a reference for each view), and `agree` agrees with the position and the stock
    /// that are left.
    #[inline(always)]
    pub(crate) fn take_if(
        &mut self,
        len: usize,
        agree: impl FnOnce(usize, usize) -> bool,
    ) -> Option<Slice<T>> {
        let start = self.position;
        let (next, left) = (start.wrapping_add(len), self.left - 1);
        if next <= start || next > self.end || !agree(next, left) {
            return None;
        }
        (self.position, self.left) = (next, left);
        Some(Slice {
            block: self.block,
            // SAFETY: inside the block.
            start: unsafe { Block::bytes(self.block).add(start) },
            len,
        })
    }

    /// The same, of bytes that are there.
    #[inline(always)]
    pub(crate) fn take(&mut self, len: usize) -> Slice<T> {
        let slice = self.take_if(len, |_, _| true);
        slice.expect("a message that was found has its bytes")
    }
}

impl<T> Drop for Credit<T> {
    fn drop(&mut self) {
        self.give_back();
    }
}
