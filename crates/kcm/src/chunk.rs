//! Reference-counted memory that received bytes live in.
//!
//! One system call reads many messages. Copying each into memory of its own would cost more than
//! all the rest, so messages are views of the block that the system wrote them to, and the block
//! lives as long as the last of them.
//!
//! ```text
//!            shared: any number of Slices            the Buffer's own
//!   ├────────┬────────┬──────────────┬──────────┼───────────────────────┤
//!   │ msg    │ msg    │ msg          │ partial  │ room                  │
//!   └────────┴────────┴──────────────┴──────────┴───────────────────────┘
//!   0                                           filled           capacity
//! ```
//!
//! There is one [`Buffer`] for a block: the right to append. Bytes below `filled` never change
//! while anybody else holds the block; bytes above it are seen by the `Buffer` alone. A [`Slice`]
//! is a view of filled bytes. A [`Credit`] is a stock of references bought in one atomic operation
//! (`chunk/credit.rs`).
//!
//! # Contract of the unsafe code
//!
//! - `Block::refs` counts one for the `Buffer`, one for each `Slice`, and what is left in each
//!   `Credit`. Whoever takes it to 0 frees the block, and nobody touches the block after giving up
//!   a reference.
//! - Bytes below `Buffer::initialised` are initialised, which is not below `filled`; those above may
//!   not be.
//! - Only the `Buffer` writes: above `filled` at any time; below `filled`, and the owner, only when
//!   `refs` is 1, when no other view exists.

use std::{
    io,
    mem::{ManuallyDrop, MaybeUninit},
    ops::{Deref, Range},
    ptr::NonNull,
    slice,
};

mod block;
mod credit;

pub(crate) use credit::Credit;

use crate::sync::Ordering;
use block::Block;
use credit::WALKED;

/// The right to append to a block.
pub(crate) struct Buffer<T> {
    block: NonNull<Block<T>>,
    filled: usize,
    /// Bytes that are initialised; not below `filled`.
    initialised: usize,
}

// SAFETY: a Buffer is one reference and the only writer; the rest of the block is only read, and
// its count is atomic. `T` is reached through it by reference from several threads, and dropped by
// any.
unsafe impl<T: Send + Sync> Send for Buffer<T> {}
// SAFETY: as above; `&Buffer` gives only reads.
unsafe impl<T: Send + Sync> Sync for Buffer<T> {}

impl<T> Buffer<T> {
    /// A new block with room for `capacity` bytes (at least one).
    #[inline]
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let block = Block::new(capacity.max(1));
        Self {
            block,
            filled: 0,
            initialised: 0,
        }
    }

    fn head(&self) -> &Block<T> {
        // SAFETY: this Buffer's reference keeps the block alive.
        unsafe { self.block.as_ref() }
    }

    pub(crate) fn capacity(&self) -> usize {
        self.head().capacity
    }

    /// Number of bytes that are filled.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// Whether nobody else holds the block.
    pub(crate) fn is_unique(&self) -> bool {
        // SYNC: acquire, with the release in `Block::release`: the others' reads are over.
        self.head().refs.load(Ordering::Acquire) == 1
    }

    /// The filled bytes.
    pub(crate) fn filled(&self) -> &[u8] {
        // SAFETY: initialised, inside the block, and written only through `&mut self`.
        unsafe { slice::from_raw_parts(Block::bytes(self.block).as_ptr(), self.filled) }
    }

    /// Bytes that can still be appended.
    pub(crate) fn room_len(&self) -> usize {
        self.capacity() - self.filled
    }

    fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let len = self.room_len();
        // SAFETY: inside the block; no Slice reaches above `filled`, and there is one Buffer,
        // borrowed mutably.
        unsafe {
            let start = Block::bytes(self.block).add(self.filled);
            slice::from_raw_parts_mut(start.cast().as_ptr(), len)
        }
    }

    /// Appends what `read` puts at the beginning of the room (of at most `most` bytes of it) and
    /// gives back as the part that it initialised. The number of bytes.
    #[inline(always)]
    pub(crate) fn append<E>(
        &mut self,
        most: usize,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<&mut [u8], E>,
    ) -> Result<usize, E> {
        let room = self.room();
        let most = most.min(room.len());
        let room = &mut room[..most];
        let start = room.as_ptr().cast::<u8>();
        let initialised = read(room)?;
        assert!(initialised.is_empty() || initialised.as_ptr() == start);
        let n = initialised.len();
        self.fill_to(self.filled + n);
        Ok(n)
    }

    /// As above, for who is not trusted with memory that is not initialised, and says how many bytes
    /// it put there.
    pub(crate) fn append_initialised(
        &mut self,
        most: usize,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let (filled, initialised) = (self.filled, self.initialised);
        let most = most.min(self.room_len());
        // Once for a block: what was received before is as good.
        if let Some(fresh) = self.room()[..most].get_mut(initialised - filled..) {
            fresh.fill(MaybeUninit::new(0));
        }
        self.initialised = initialised.max(filled + most);
        // SAFETY: inside the block and initialised; no Slice reaches above `filled`, and there is
        // one Buffer, borrowed mutably.
        let room = unsafe {
            let start = Block::bytes(self.block).add(filled);
            slice::from_raw_parts_mut(start.as_ptr(), most)
        };
        let n = read(room)?;
        if n > most {
            return Err(io::Error::other("a transport claims more than fits"));
        }
        self.fill_to(filled + n);
        Ok(n)
    }

    fn fill_to(&mut self, filled: usize) {
        self.filled = filled;
        self.initialised = self.initialised.max(filled);
    }

    /// Appends a copy of `bytes`, for which there must be room.
    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].write_copy_of_slice(bytes);
        self.fill_to(self.filled + bytes.len());
    }

    /// Keeps only the filled bytes from `start` on, moved to the front. The block must be unique.
    pub(crate) fn keep_from(&mut self, start: usize) {
        assert!(self.is_unique() && start <= self.filled);
        // SAFETY: unique, so nobody else sees the bytes; both ranges are inside the filled part.
        unsafe {
            let bytes = Block::bytes(self.block).as_ptr();
            bytes.copy_from(bytes.add(start), self.filled - start);
        }
        self.filled -= start;
    }

    /// Forgets the bytes and whose they were. The block must be unique.
    pub(crate) fn clear(&mut self) {
        self.set_owner(None);
        self.filled = 0;
    }

    /// Forgets the bytes, and not whose they were. The block must be unique.
    pub(crate) fn restart(&mut self) {
        assert!(self.is_unique());
        self.filled = 0;
    }

    /// Says whose bytes these are. The block must be unique.
    #[inline]
    pub(crate) fn set_owner(&mut self, owner: Option<T>) {
        assert!(self.is_unique());
        // SAFETY: unique, so no Slice can be reading the owner.
        let place = unsafe { &mut *self.head().owner.get() };
        if place.is_some() {
            *place = None;
        }
        // SAFETY: as above; and there is nothing to be dropped. (An assignment would call for that.)
        unsafe { std::ptr::write(place, owner) };
    }

    /// Whose bytes these are.
    pub(crate) fn owner(&self) -> Option<&T> {
        // SAFETY: written only through `&mut self`.
        unsafe { (*self.head().owner.get()).as_ref() }
    }

    /// A view of a part of the filled bytes.
    pub(crate) fn slice(&self, range: Range<usize>) -> Slice<T> {
        assert!(range.start <= range.end && range.end <= self.filled);
        // Relaxed: made from a reference that exists.
        self.head().refs.fetch_add(1, Ordering::Relaxed);
        Slice {
            block: self.block,
            // SAFETY: inside the filled part.
            start: unsafe { Block::bytes(self.block).add(range.start) },
            len: range.end - range.start,
        }
    }

    /// A view of the filled bytes from `start` on, in place of the right to append.
    #[inline]
    pub(crate) fn into_slice(self, start: usize) -> Slice<T> {
        let whole = ManuallyDrop::new(self);
        assert!(start <= whole.filled);
        Slice {
            block: whole.block,
            // SAFETY: inside the filled part. (The Buffer's reference becomes the Slice's.)
            start: unsafe { Block::bytes(whole.block).add(start) },
            len: whole.filled - start,
        }
    }
}

impl<T> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: this Buffer's own reference.
        unsafe { Block::release(self.block, 1) };
    }
}

/// A view of filled bytes, which keeps them alive.
pub(crate) struct Slice<T> {
    block: NonNull<Block<T>>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a Slice only reads filled bytes and the owner.
unsafe impl<T: Send + Sync> Send for Slice<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Slice<T> {}

impl<T> Slice<T> {
    /// Whose bytes these are.
    #[inline]
    pub(crate) fn owner(&self) -> Option<&T> {
        // SAFETY: written only while the block is unique, which it is not while this Slice lives.
        unsafe { (*self.block.as_ref().owner.get()).as_ref() }
    }

    /// Out of line, so that the drop in a walk is small enough to stand in the caller's loop; and by
    /// value, for a Slice whose address went elsewhere could not stay in registers.
    ///
    /// # Safety
    ///
    /// As [`Block::release`].
    #[inline(never)]
    unsafe fn release(block: NonNull<Block<T>>, n: usize) {
        // SAFETY: the caller's contract.
        unsafe { Block::release(block, n) };
    }

    /// What it keeps alive.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn pinned_bytes(&self) -> usize {
        // SAFETY: alive through this Slice.
        unsafe { self.block.as_ref() }.capacity
    }

    /// Where in the block it begins.
    pub(crate) fn offset(&self) -> usize {
        self.start.addr().get() - Block::bytes(self.block).addr().get()
    }

    /// Another view, of the bytes from `from` on.
    pub(crate) fn suffix(&self, from: usize) -> Self {
        assert!(from <= self.len);
        // SAFETY: alive through this Slice. Relaxed: made from a reference that exists.
        unsafe { self.block.as_ref() }
            .refs
            .fetch_add(1, Ordering::Relaxed);
        Self {
            block: self.block,
            // SAFETY: not beyond the end of this view.
            start: unsafe { self.start.add(from) },
            len: self.len - from,
        }
    }
}

impl<T> Deref for Slice<T> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: filled, and unchanged while this Slice lives.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for Slice<T> {
    #[inline(always)]
    fn drop(&mut self) {
        let (walked, dropped) = WALKED.get();
        if walked == self.block.as_ptr().addr() {
            // SAFETY: while a block is walked, `WALK` keeps the counter alive: it clears `WALKED`
            // before it goes.
            let dropped = unsafe { &*dropped };
            if dropped.add() || dropped.last_was_collected() {
                return;
            }
        }
        // SAFETY: this Slice's own reference.
        unsafe { Self::release(self.block, 1) };
    }
}

#[cfg(test)]
#[path = "chunk_tests.rs"]
mod tests;
