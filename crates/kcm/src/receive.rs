//! The receiving side of a connection: bytes in, in as few system calls and copies as can be.
//!
//! A read goes into a thread's own spare chunk of 256 KiB, or behind what is left of the
//! connection's chunk, or, for a message that is longer than a chunk, into memory of just its
//! length. What is kept of it follows from how much came:
//!
//! - Little (up to [`SETTLE_BYTES`]): it is copied into memory of its own size, and the chunk, still
//!   warm in the cache, stays with the thread. So a message that somebody keeps, or an unfinished
//!   one, never pins more than eight times what was read with it. The next reads of the connection
//!   go into memory of about that size at once, without a copy.
//! - More: the connection keeps the chunk, and its messages are views of it.
//!
//! An idle connection holds no chunk at all, unless it is the only one.

use std::{
    cell::RefCell,
    collections::VecDeque,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use kcm_frame::{Assembler, Step};

use crate::{
    chunk::{Buffer, Slice},
    event::EndReason,
    memory::{LEAST_BYTES, Room, Wanted},
    message::Message,
    psock::Psock,
    transport::Carrier,
};

/// Bytes of a read. Four times what a hand-written loop commonly asks for: a call costs 1 to 2 us
/// beside its copy, so that a stream of 64-byte messages costs 12.2 ns a message instead of 14.1.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// Up to here what was read is copied out of the chunk; an eighth of it.
const SETTLE_BYTES: usize = CHUNK_BYTES / 8;
/// Room worth a read: with less, what is left moves to a new chunk.
const ROOM_BYTES: usize = CHUNK_BYTES / 8;

thread_local! {
    /// One chunk that this thread reads into next.
    static SPARE: RefCell<Option<Buffer<Origin>>> = const { RefCell::new(None) };
}

/// Whose bytes a chunk holds; given back to the multiplexor's memory with the chunk.
pub(crate) struct Origin {
    pub(crate) psock: Arc<Psock>,
    /// What of the multiplexor's memory it takes: the bytes that are filled. (The system gives
    /// memory for the others when they are.)
    charged_bytes: AtomicUsize,
    /// Where in the connection's stream the chunk begins; changed only while nobody has a view of it.
    stream_position: AtomicU64,
}

impl Origin {
    fn new(psock: &Arc<Psock>, charged_bytes: usize, stream_position: u64) -> Self {
        Self {
            psock: psock.clone(),
            charged_bytes: AtomicUsize::new(charged_bytes),
            stream_position: AtomicU64::new(stream_position),
        }
    }

    pub(crate) fn stream_position(&self) -> u64 {
        self.stream_position.load(Ordering::Relaxed)
    }

    /// So many bytes are filled now.
    fn recharge(&self, filled_bytes: usize) {
        let before = self.charged_bytes.swap(filled_bytes, Ordering::Relaxed);
        let memory = &self.psock.mux.memory;
        if filled_bytes > before {
            memory.charge(filled_bytes - before);
        } else if before > filled_bytes {
            memory.release(before - filled_bytes);
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.psock.mux.memory.release(*self.charged_bytes.get_mut());
    }
}

/// What became of a read.
pub(crate) enum Fill {
    /// Some bytes came.
    Some,
    /// Nothing more is there now.
    Nothing,
    /// The multiplexor's memory is used up: the connection is held back until some is free.
    HeldBack,
    /// The end, after everything before it.
    End(EndReason),
}

pub(crate) struct Rx {
    /// `None` when nothing more is to be read.
    carrier: Option<Arc<Carrier>>,
    pub(crate) assembler: Assembler,
    buffer: Option<Buffer<Origin>>,
    /// Where, in the buffer, the next message begins.
    pub(crate) position: usize,
    /// Where, in the stream, the buffer begins.
    stream_position: u64,
    /// Messages that were cut off and given back, in the order of the stream: before all others.
    returned: VecDeque<Message>,
    /// Bytes that were read before the connection was attached.
    early: Vec<u8>,
    /// Its message may be finished beyond the limit of memory.
    pass: bool,
    /// About the most that a read has brought lately.
    usual_bytes: usize,
}

impl Rx {
    pub(crate) fn new(carrier: Arc<Carrier>, assembler: Assembler, already_read: &[u8]) -> Self {
        Self {
            carrier: Some(carrier),
            assembler,
            buffer: None,
            position: 0,
            stream_position: 0,
            returned: VecDeque::new(),
            early: already_read.to_vec(),
            pass: false,
            usual_bytes: 0,
        }
    }

    /// Bytes read and not delivered.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer
            .as_ref()
            .map_or(&[], |buffer| &buffer.filled()[self.position..])
    }

    /// Looks for a whole message at the front.
    pub(crate) fn step(&mut self) -> Step {
        let bytes = match &self.buffer {
            Some(buffer) => &buffer.filled()[self.position..],
            None => &[],
        };
        self.assembler.step(bytes)
    }

    /// Cuts the message off the front, of which a step has said that it is whole. While much
    /// memory is in use, a small one is copied, so that it does not pin its chunk: somebody keeps
    /// messages.
    pub(crate) fn cut(&mut self, psock: &Arc<Psock>, len: usize) -> Option<Message> {
        let buffer = self.buffer.as_ref()?;
        let range = self.position..self.position + len;
        if range.end == buffer.len() && buffer.capacity() <= SETTLE_BYTES {
            return self.cut_all(psock, len);
        }
        let pins = len <= SETTLE_BYTES && buffer.capacity() > SETTLE_BYTES;
        let slice: Slice<Origin> = if pins && psock.mux.memory.is_much_used() {
            let mut small = owned(psock, len, self.stream_position + self.position as u64);
            small.extend(&buffer.filled()[range]);
            small.slice(0..len)
        } else {
            buffer.slice(range)
        };
        self.pass_over(psock, len);
        Some(Message::new(slice))
    }

    /// The message at the front, which is whole, has been taken.
    pub(crate) fn pass_over(&mut self, psock: &Psock, len: usize) {
        if let Some(buffer) = &self.buffer {
            let message = &buffer.filled()[self.position..][..len];
            self.assembler.delivered(message);
        }
        self.end_pass(psock);
        self.position += len;
    }

    /// As above, where nothing is left behind it: the message takes the buffer with it.
    fn cut_all(&mut self, psock: &Psock, len: usize) -> Option<Message> {
        let slice = self.buffer.take()?.into_slice(self.position);
        self.position += len;
        self.rebase();
        self.assembler.delivered(&slice);
        self.end_pass(psock);
        Some(Message::new(slice))
    }

    /// Puts a message back that was cut off.
    pub(crate) fn return_message(&mut self, message: Message) {
        let at = message.stream_position();
        let place = self
            .returned
            .partition_point(|other| other.stream_position() < at);
        self.returned.insert(place, message);
    }

    /// The first of the messages that were given back.
    pub(crate) fn next_returned(&mut self) -> Option<Message> {
        self.returned.pop_front()
    }

    pub(crate) fn has_returned(&self) -> bool {
        !self.returned.is_empty()
    }

    pub(crate) fn take_returned(&mut self) -> VecDeque<Message> {
        std::mem::take(&mut self.returned)
    }

    /// What is left begins the buffer from now on.
    fn rebase(&mut self) {
        self.stream_position += self.position as u64;
        self.position = 0;
    }

    /// Says where the next message begins, after others have walked through a part.
    pub(crate) fn set_position(&mut self, position: usize) {
        self.position = position;
    }

    /// The buffer, to lease it.
    pub(crate) fn buffer(&self) -> Option<&Buffer<Origin>> {
        self.buffer.as_ref()
    }

    /// Gives the buffer up when nothing is left in it. The only connection keeps a chunk: it will
    /// be read next.
    fn give_up_if_empty(&mut self, psock: &Psock) {
        let position = self.position;
        if let Some(buffer) = self.buffer.take_if(|buffer| {
            buffer.len() == position
                && (psock.mux.psock_count() != 1 || buffer.capacity() != CHUNK_BYTES)
        }) {
            keep_spare(buffer);
            self.rebase();
        }
    }

    /// Keeps an unfinished message in memory of its own size, if it is small.
    pub(crate) fn settle(&mut self, psock: &Arc<Psock>) {
        self.give_up_if_empty(psock);
        let len = self.bytes().len();
        let Some(buffer) = &self.buffer else { return };
        if psock.mux.psock_count() == 1 || len > SETTLE_BYTES || buffer.capacity() <= SETTLE_BYTES {
            return;
        }
        let mut small = owned(psock, len, self.stream_position + self.position as u64);
        small.extend(&buffer.filled()[self.position..]);
        if let Some(large) = self.buffer.replace(small) {
            keep_spare(large);
        }
        self.rebase();
    }

    /// Nothing more will be read. What is left is no message, and given back should the stream be.
    /// (It leaves the buffer, which keeps its connection alive: it must not keep one that is gone.)
    pub(crate) fn stop(&mut self, psock: &Psock) {
        self.end_pass(psock);
        self.carrier = None;
        self.early = self.take_rest();
    }

    fn end_pass(&mut self, psock: &Psock) {
        if self.pass {
            self.pass = false;
            psock.mux.memory.end_pass();
        }
    }

    /// Whether what is missing can only come from the stream.
    pub(crate) fn must_wait(&self) -> bool {
        self.carrier.is_some() && self.early.is_empty()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.carrier.is_none()
    }

    /// Everything that was read and not delivered, to be given back with the stream.
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        let mut rest = self.bytes().to_vec();
        rest.append(&mut self.early);
        self.buffer = None;
        self.rebase();
        rest
    }

    pub(crate) fn carrier(&self) -> Option<&Arc<Carrier>> {
        self.carrier.as_ref()
    }

    /// Reads once. `need` is how many bytes the message at the front needs at least, `len` its
    /// whole length if known; `blocking`: waits until there is something.
    pub(crate) fn fill(
        &mut self,
        psock: &Arc<Psock>,
        need: usize,
        len: Option<usize>,
        blocking: bool,
    ) -> Fill {
        if self.carrier.is_none() {
            return Fill::Nothing;
        }
        if !self.early.is_empty() {
            return self.fill_early(psock);
        }
        let whole = len.unwrap_or_else(|| self.unknown_length(need));
        let Some((mut buffer, fresh)) = self.room_for(psock, whole) else {
            return Fill::HeldBack;
        };
        let Some(carrier) = &self.carrier else {
            return Fill::Nothing;
        };
        // A long message gets its own memory, to its end and no further; so does one with a pass.
        let most = if whole > CHUNK_BYTES || self.pass {
            whole - (buffer.len() - self.position)
        } else {
            // (Somebody else may have taken the room meanwhile: then it is a little too much.)
            psock
                .mux
                .memory
                .room_bytes()
                .map_or(ROOM_BYTES, |room| room.min(CHUNK_BYTES))
        };
        let asked = most.min(buffer.room_len());
        let result = loop {
            match carrier.recv(&mut buffer, asked, blocking) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted && !blocking => {}
                result => break result,
            }
        };
        let fill = match result {
            Ok(0) => Fill::End(if carrier.was_reset() {
                EndReason::Reset
            } else if buffer.len() == self.position {
                EndReason::Eof
            } else {
                EndReason::EofInMessage {
                    bytes: buffer.len() - self.position,
                }
            }),
            Ok(n) => {
                // A read that took all it could, or one after which no event can be counted on.
                // (Only of a socket is it known that a short read leaves nothing behind.)
                if n == asked || !psock.is_socket || psock.drain.load(Ordering::Relaxed) {
                    psock.edge.store(true, Ordering::Relaxed);
                }
                self.usual_bytes = n.max(self.usual_bytes - self.usual_bytes / 8);
                Fill::Some
            }
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Fill::Nothing,
                _ => Fill::End(EndReason::from_errno(e.raw_os_error().unwrap_or(libc::EIO))),
            },
        };
        self.put_back(psock, buffer, fresh);
        fill
    }

    /// The bytes that were read before the stream was attached come first.
    fn fill_early(&mut self, psock: &Arc<Psock>) -> Fill {
        let early = std::mem::take(&mut self.early);
        self.stream_position += self.position as u64;
        let mut buffer = owned(
            psock,
            self.bytes().len() + early.len(),
            self.stream_position,
        );
        buffer.extend(self.bytes());
        buffer.extend(&early);
        self.buffer = Some(buffer);
        self.position = 0;
        psock.edge.store(true, Ordering::Relaxed);
        Fill::Some
    }

    /// For how long a message there is to be room if it takes `need` bytes at least and nobody knows
    /// more. A message in fragments tells its length last and may have any number of them: its
    /// memory is doubled when it is full, since moved for each fragment it would cost the square of
    /// their number, and filled, since a read for each fragment is as slow.
    fn unknown_length(&self, need: usize) -> usize {
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

    /// A buffer that begins with what is left and has room for `whole` bytes in all; whether it
    /// is a thread's spare one. `None`: the connection is held back.
    fn room_for(&mut self, psock: &Arc<Psock>, whole: usize) -> Option<(Buffer<Origin>, bool)> {
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
            new.set_owner(Some(Origin::new(psock, whole, at)));
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
        /// A read that fills its room has to be followed by another.
        const SPARE_BYTES: usize = 64;
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
    fn can_compact(&self, capacity: usize) -> bool {
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
            if self.pass {
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
                Room::Pass => self.pass = true,
                Room::No => return false,
            }
        }
    }

    /// Memory in use for the unfinished message at the front alone. What was received and dropped
    /// since the last read takes none any more.
    fn begun_bytes(&mut self) -> usize {
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
    fn put_back(&mut self, psock: &Arc<Psock>, mut buffer: Buffer<Origin>, fresh: bool) {
        let len = buffer.len() - self.position;
        if len == 0 && fresh {
            self.rebase();
            keep_spare(buffer);
        } else if fresh
            && len <= SETTLE_BYTES
            && buffer.capacity() == CHUNK_BYTES
            && psock.mux.psock_count() != 1
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
                buffer.set_owner(Some(Origin::new(psock, filled, self.stream_position)));
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
fn owned(psock: &Arc<Psock>, len: usize, stream_position: u64) -> Buffer<Origin> {
    psock.mux.memory.charge(len);
    let mut buffer = Buffer::with_capacity(len);
    buffer.set_owner(Some(Origin::new(psock, len, stream_position)));
    buffer
}

fn take_spare() -> Buffer<Origin> {
    SPARE
        .with_borrow_mut(Option::take)
        .unwrap_or_else(|| Buffer::with_capacity(CHUNK_BYTES))
}

/// Keeps a chunk for the thread's next read, unless somebody still looks at its messages.
fn keep_spare(mut buffer: Buffer<Origin>) {
    if buffer.capacity() == CHUNK_BYTES && buffer.is_unique() {
        buffer.clear();
        // What a thread that is ending cannot keep is freed.
        let _ = SPARE.try_with(|spare| spare.borrow_mut().replace(buffer));
    }
}
