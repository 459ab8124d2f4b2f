//! The memory of a block, and a spare piece of it for each thread.
//!
//! What a thread has freed last is, as a rule, of the size that it needs next: a burst like the one before,
//! a message like the others. To get it back from the allocator takes 140 instructions, where the whole
//! receive of a message that comes alone takes 1,000; and beyond 1 KiB, where the allocator keeps nothing
//! for each thread, 200 to 400.
//!
//! The contract of the unsafe code is that of `chunk.rs`.

use std::{
    alloc::{Layout, alloc, dealloc, handle_alloc_error},
    cell::{Cell, UnsafeCell},
    ptr::NonNull,
};

use crate::sync::{AtomicUsize, Ordering, fence};

/// Head of a block; the bytes follow it.
#[repr(C)]
pub(super) struct Block<T> {
    pub(super) refs: AtomicUsize,
    pub(super) capacity: usize,
    /// Whom the bytes came from; dropped with the block, or when the buffer is used anew.
    pub(super) owner: UnsafeCell<Option<T>>,
}

/// Size of the head, and alignment of large blocks. Where a destination lies up to 32 bytes behind
/// its source, modulo a page, some processors copy at a tenth of their speed; what comes in whole
/// pages is copied to such a place unless this is aligned (20 ns more for a message of 64 bytes).
const HEAD_BYTES: usize = 64;
/// Alignment of the others: that of all memory.
const HEAD_ALIGN: usize = 16;
/// From here on a block is large. For smaller ones aligned memory costs more than it can save.
const LARGE_BYTES: usize = 32 << 10;

thread_local! {
    static SPARE: Spare = const { Spare(Cell::new(None)) };
}

/// Memory for a block that is not large. (A chunk is kept by who reads into it.)
struct Spare(Cell<Option<Memory>>);

struct Memory {
    start: NonNull<u8>,
    capacity: usize,
}

impl<T> Block<T> {
    /// A block with room for `capacity` bytes or more, at most twice as many: what is kept of a read
    /// pins all of it.
    #[inline]
    pub(super) fn new(capacity: usize) -> NonNull<Self> {
        let Memory { start, capacity } = Memory::take(capacity);
        let block: NonNull<Self> = start.cast();
        // SAFETY: memory of the right layout, which is nobody else's.
        unsafe {
            block.write(Self {
                refs: AtomicUsize::new(1),
                capacity,
                owner: UnsafeCell::new(None),
            });
        }
        block
    }

    pub(super) fn bytes(this: NonNull<Self>) -> NonNull<u8> {
        const { assert!(size_of::<Self>() <= HEAD_BYTES && align_of::<Self>() <= HEAD_ALIGN) };
        // SAFETY: the bytes follow the head in the same allocation (`Memory::layout`).
        unsafe { this.cast().add(HEAD_BYTES) }
    }

    /// Gives up `n` references.
    ///
    /// # Safety
    ///
    /// The caller owns them and does not use the block afterwards.
    pub(super) unsafe fn release(this: NonNull<Self>, n: usize) {
        // SAFETY: the caller's references keep the block alive up to the operations below.
        let refs = unsafe { &this.as_ref().refs };
        // SYNC: both pair with the acquire loads here and in `Buffer::is_unique`, and with the fence: what
        // the other threads did with the bytes happens before. (Who has all references there are is alone:
        // nobody else has one to make another from. That is the usual case, and spares a locked
        // instruction.)
        let is_last = refs.load(Ordering::Acquire) == n || {
            let before = refs.fetch_sub(n, Ordering::Release);
            debug_assert!(before >= n);
            before == n
        };
        if is_last {
            fence(Ordering::Acquire);
            // SAFETY: nobody else can reach the block any more.
            unsafe { Self::free(this) };
        }
    }

    #[cold]
    unsafe fn free(this: NonNull<Self>) {
        // SAFETY: the caller is the last one (`release`).
        unsafe {
            let capacity = this.as_ref().capacity;
            this.drop_in_place();
            Memory {
                start: this.cast(),
                capacity,
            }
            .give_back();
        }
    }
}

impl Memory {
    fn layout(capacity: usize) -> Layout {
        let align = if capacity < LARGE_BYTES {
            HEAD_ALIGN
        } else {
            HEAD_BYTES
        };
        // A capacity that makes this overflow could not have been allocated.
        let size = HEAD_BYTES.checked_add(capacity);
        let layout = size.and_then(|size| Layout::from_size_align(size, align).ok());
        layout.expect("capacity fits in memory")
    }

    #[inline]
    fn take(capacity: usize) -> Self {
        if capacity < LARGE_BYTES
            && let Ok(Some(spare)) = SPARE.try_with(|spare| spare.0.take())
        {
            if (capacity..=2 * capacity).contains(&spare.capacity) {
                return spare;
            }
            spare.give_back();
        }
        Self::allocate(capacity)
    }

    #[cold]
    #[inline(never)]
    fn allocate(capacity: usize) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout is not empty: it holds at least the head.
        let start = unsafe { alloc(layout) };
        match NonNull::new(start) {
            Some(start) => Self { start, capacity },
            None => handle_alloc_error(layout),
        }
    }

    /// Keeps it for this thread in place of what it has kept, or frees it.
    fn give_back(self) {
        let kept = self.capacity < LARGE_BYTES;
        let mut memory = Some(self);
        if kept {
            // (A thread that is ending keeps nothing.)
            let _ = SPARE.try_with(|spare| memory = spare.0.replace(memory.take()));
        }
        if let Some(memory) = memory {
            memory.free();
        }
    }

    fn free(self) {
        // SAFETY: allocated with this layout, and given up by its owner, who had it as a value.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.capacity)) };
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        if let Some(memory) = self.0.take() {
            memory.free();
        }
    }
}
