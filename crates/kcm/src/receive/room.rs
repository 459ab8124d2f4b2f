//! The memory that a read goes to, and that what it brought is kept in.

use std::{
    cell::RefCell,
    sync::{Arc, atomic::Ordering},
};

use super::{CHUNK_BYTES, MOST_PINNED, ROOM_BYTES, Rx, SETTLE_BYTES};
use crate::{
    chunk::Buffer,
    memory::{LEAST_BYTES, Room, Wanted},
    origin::Origin,
    psock::Psock,
};

/// Room beyond what a read usually brings: one that fills its room has to be followed by another.
pub(super) const SPARE_BYTES: usize = 64;

thread_local! {
    /// One chunk that this thread reads into next.
    static SPARE: RefCell<Option<Buffer<Origin>>> = const { RefCell::new(None) };
}

impl Rx {
    /// For how long a message there is to be room if it takes `need` bytes at least and nobody knows
    /// more. A message in fragments tells its length last and may have any number of them: its
    /// memory is doubled when it is full, since moved for each fragment it would cost the square of
    /// their number, and filled, since a read for each fragment is as slow.
    pub(super) fn unknown_length(&self, need: usize) -> usize {
        if need <= CHUNK_BYTES {
            return need;
        }
        let own = self.buffer.as_ref();
        match own.map_or(0, |own| own.capacity() - self.position) {
            room if room >= need => room,
            _ => {
                let most = self.assembler.limits().max_message_bytes;
                need.saturating_mul(2).min(most).max(need)
            }
        }
    }

    /// For how much of a message of `len` bytes there is to be room. One that is longer than any by
    /// default is believed as far as it has come: memory for it grows by doubling, like that of one
    /// whose length nobody knows. Its peer may have announced more than there is.
    pub(super) fn known_length(&self, len: usize) -> usize {
        const AT_ONCE_BYTES: usize = 64 << 20;
        if len <= AT_ONCE_BYTES {
            return len;
        }
        let there = self.bytes().len();
        let own = self.buffer.as_ref();
        let whole = match own.map_or(0, |own| own.capacity() - self.position) {
            room if room >= AT_ONCE_BYTES && room > there => room,
            _ => AT_ONCE_BYTES.max(there.saturating_mul(2)),
        };
        whole.min(len)
    }

    /// A buffer that begins with what is left and has room for `whole` bytes in all; whether it
    /// is a thread's spare one. `None`: the connection is held back.
    pub(super) fn room_for(
        &mut self,
        psock: &Arc<Psock>,
        whole: usize,
    ) -> Option<(Buffer<Origin>, bool)> {
        let long = whole > CHUNK_BYTES;
        let moves = self.can_compact(whole.max(CHUNK_BYTES));
        let own = self.buffer.as_ref();
        if moves || own.is_some_and(|own| own.room_len() >= self.room_worth(whole)) {
            // (A long message has reserved its memory.)
            let reserved = own.is_some_and(|own| own.capacity() > CHUNK_BYTES);
            if !reserved && !self.may_read(psock, whole, false) {
                return None;
            }
            if moves {
                self.compact();
            }
            return self.buffer.take().map(|buffer| (buffer, false));
        }
        if !self.may_read(psock, whole, long) {
            return None;
        }
        let mut new = if long {
            let mut new = Buffer::with_capacity(whole);
            let at = self.stream_position + self.position as u64;
            new.set_owner(Some(Origin::new(psock.clone(), whole, at)));
            new
        } else {
            match self.usual_capacity(psock, whole) {
                Some(capacity) => Buffer::with_capacity(capacity),
                None => take_spare(),
            }
        };
        new.extend(self.bytes());
        if let Some(old) = self.buffer.take() {
            keep_spare(old);
        }
        self.rebase();
        Some((new, !long))
    }

    /// Memory for a usual read of this connection, if these are small.
    fn usual_capacity(&self, psock: &Psock, whole: usize) -> Option<usize> {
        let capacity = (whole.max(self.bytes().len() + self.usual_bytes)) + SPARE_BYTES;
        (self.usual_bytes > 0 && capacity <= SETTLE_BYTES && psock.mux.psock_count() != 1)
            .then_some(capacity)
    }

    /// Room in the buffer that is worth a read.
    fn room_worth(&self, whole: usize) -> usize {
        let missing = whole.saturating_sub(self.bytes().len());
        if whole > CHUNK_BYTES {
            missing
        } else {
            missing.max(ROOM_BYTES)
        }
    }

    /// Whether what is left can be moved to the front of its buffer, which holds so much then.
    pub(super) fn can_compact(&self, capacity: usize) -> bool {
        let own = self.buffer.as_ref();
        self.position > 0 && own.is_some_and(|own| own.capacity() >= capacity && own.is_unique())
    }

    fn compact(&mut self) {
        if let Some(buffer) = &mut self.buffer {
            buffer.keep_from(self.position);
            self.stream_position += self.position as u64;
            self.position = 0;
            if let Some(origin) = buffer.owner() {
                let at = self.stream_position;
                origin.stream_position.store(at, Ordering::Relaxed);
                origin.forget_labels();
            }
        }
    }

    /// Whether more may be read of a message of `whole` bytes at least; if not, the connection is
    /// held back. `take`: its memory is taken with this.
    fn may_read(&mut self, psock: &Arc<Psock>, whole: usize, take: bool) -> bool {
        let memory = &psock.mux.memory;
        loop {
            if take && memory.reserve(whole) || !take && memory.room_bytes().is_some() {
                return true;
            }
            if self.has_pass() {
                if take {
                    memory.charge(whole);
                }
                return true;
            }
            let wanted = Wanted {
                bytes: if take { whole } else { LEAST_BYTES },
                message_bytes: whole,
                begun_bytes: self.begun_bytes(),
            };
            match memory.hold_back(wanted, psock) {
                Room::Yes => {}
                Room::Pass => self.ahead.put().pass = true,
                Room::No => return false,
            }
        }
    }

    /// Memory in use for the unfinished message at the front alone. What was received and dropped
    /// since the last read takes none any more.
    pub(super) fn begun_bytes(&mut self) -> usize {
        if self.can_compact(0) {
            self.compact();
        }
        let Some(own) = self.buffer.as_ref().filter(|own| own.is_unique()) else {
            return 0;
        };
        let Some(origin) = own.owner() else { return 0 };
        if own.capacity() <= CHUNK_BYTES {
            origin.recharge(own.len());
        }
        origin.charged_bytes.load(Ordering::Relaxed)
    }

    /// Keeps what was read, in the memory that suits its length.
    pub(super) fn put_back(&mut self, psock: &Arc<Psock>, mut buffer: Buffer<Origin>, fresh: bool) {
        let len = buffer.len() - self.position;
        if len == 0 && fresh {
            self.rebase();
            keep_spare(buffer);
        } else if fresh
            && is_much_too_large(&buffer, len)
            && (buffer.capacity() != CHUNK_BYTES || psock.mux.psock_count() != 1)
        {
            let mut small = owned(psock, len, self.stream_position + self.position as u64);
            small.extend(&buffer.filled()[self.position..]);
            self.rebase();
            self.buffer = Some(small);
            keep_spare(buffer);
        } else {
            if fresh {
                let filled = buffer.len();
                psock.mux.memory.charge(filled);
                buffer.set_owner(Some(Origin::new(
                    psock.clone(),
                    filled,
                    self.stream_position,
                )));
            } else if let (Some(origin), false) = (buffer.owner(), buffer.capacity() > CHUNK_BYTES)
            {
                // (A long message has reserved its memory.)
                origin.recharge(buffer.len());
            }
            self.buffer = Some(buffer);
        }
    }
}

/// Memory of just this size for bytes of this connection from this place on.
pub(super) fn owned(psock: &Arc<Psock>, len: usize, stream_position: u64) -> Buffer<Origin> {
    psock.mux.memory.charge(len);
    let mut buffer = Buffer::with_capacity(len);
    buffer.set_owner(Some(Origin::new(psock.clone(), len, stream_position)));
    buffer
}

pub(super) fn take_spare() -> Buffer<Origin> {
    SPARE
        .with_borrow_mut(Option::take)
        .unwrap_or_else(|| Buffer::with_capacity(CHUNK_BYTES))
}

/// Whether so many bytes, if somebody keeps them, would pin too much with this.
pub(super) fn is_much_too_large(buffer: &Buffer<Origin>, len: usize) -> bool {
    /// Less in all is not worth a copy.
    const LITTLE_BYTES: usize = 1 << 10;
    let capacity = buffer.capacity();
    capacity > LITTLE_BYTES && capacity >= MOST_PINNED * len
}

/// Keeps a chunk for the thread's next read, unless somebody still looks at its messages.
pub(super) fn keep_spare(mut buffer: Buffer<Origin>) {
    if buffer.capacity() == CHUNK_BYTES && buffer.is_unique() {
        buffer.clear();
        // What a thread that is ending cannot keep is freed.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().replace(buffer));
    }
}
