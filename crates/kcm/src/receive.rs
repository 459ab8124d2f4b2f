//! The receiving side of a connection: bytes in, in as few system calls and copies as can be.
//!
//! A read goes into a thread's own spare chunk of 256 KiB, or behind what is left of the
//! connection's chunk, or, for a message that is longer than a chunk, into memory of just its
//! length. What is kept of it follows from how much came:
//!
//! - Little (up to [`SETTLE_BYTES`]): it is copied into memory of its own size, and the chunk, still
//!   warm in the cache, stays with the thread. So a message that somebody keeps, or an unfinished
//!   one, never pins more than eight times what was read with it, or 1 KiB. The next reads of the connection
//!   go into memory of about that size at once, and again without a copy, if they bring as much.
//! - More: the connection keeps the chunk, and its messages are views of it.
//!
//! An idle connection holds no chunk at all, unless it is the only one.

use std::{
    collections::VecDeque,
    io, mem,
    sync::{Arc, atomic::Ordering},
};

mod ahead;
mod room;
mod single;

use ahead::Ahead;
use kcm_frame::{Assembler, Frame, QuickForm, Step};
use room::{keep_spare, owned};

use crate::{
    chunk::{Buffer, Slice},
    event::EndReason,
    message::Message,
    origin::Origin,
    psock::Psock,
    steering::Label,
    transport::Carrier,
};

/// Bytes of a read. Four times what a hand-written loop commonly asks for: a call costs 1 to 2 us
/// beside its copy, so that a stream of 64-byte messages costs 12.2 ns a message instead of 14.1.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;
/// What was read pins at most so many times its length.
const MOST_PINNED: usize = 8;
/// Up to here what was read is copied out of the chunk.
const SETTLE_BYTES: usize = CHUNK_BYTES / MOST_PINNED;
/// Room worth a read: with less, what is left moves to a new chunk.
const ROOM_BYTES: usize = CHUNK_BYTES / 8;

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

/// In the order in which a message that comes alone asks for it, what it does not ask for last
/// (`psock.rs`).
#[repr(C)]
pub(crate) struct Rx {
    /// `None` when nothing more is to be read.
    carrier: Option<Arc<Carrier>>,
    buffer: Option<Buffer<Origin>>,
    /// Where, in the buffer, the next message begins.
    pub(crate) position: usize,
    /// Where, in the stream, the buffer begins.
    stream_position: u64,
    /// About the most that a read has brought lately.
    usual_bytes: usize,
    ahead: Ahead,
    /// The memory of the last message that came alone, of an only connection: for the next one.
    kept: Option<Buffer<Origin>>,
    pub(crate) assembler: Assembler,
}

impl Rx {
    pub(crate) fn new(carrier: Arc<Carrier>, assembler: Assembler, already_read: &[u8]) -> Self {
        let mut ahead = Ahead::default();
        if !already_read.is_empty() {
            ahead.put().early = already_read.to_vec();
        }
        Self {
            carrier: Some(carrier),
            buffer: None,
            position: 0,
            stream_position: 0,
            usual_bytes: 0,
            ahead,
            kept: None,
            assembler,
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

    /// What most messages from here on may be asked, if the framing has that; so many were received.
    pub(crate) fn quick_form(&mut self, received: u64) -> Option<QuickForm> {
        let bytes = self.buffer.as_ref()?.filled();
        (self.assembler).quick_form(&bytes[self.position..], received)
    }

    /// Cuts the message off the front, of which a step has said that it is whole. While much
    /// memory is in use, a small one is copied, so that it does not pin its chunk: somebody keeps
    /// messages.
    pub(crate) fn cut(&mut self, psock: &Arc<Psock>, frame: &Frame) -> Option<Message> {
        self.note_label(Label::of(frame));
        let buffer = self.buffer.as_ref()?;
        let len = usize::try_from(frame.len).ok()?;
        let range = self.position..self.position.checked_add(len)?;
        if range.end == buffer.len() && buffer.capacity() <= SETTLE_BYTES {
            return self.cut_all(psock, len);
        }
        let pins = len <= SETTLE_BYTES && buffer.capacity() > SETTLE_BYTES;
        let slice: Slice<Origin> = if pins && psock.mux.memory.is_much_used() {
            let mut small = owned(psock, len, self.stream_position + self.position as u64);
            small.extend(&buffer.filled()[range]);
            if let Some(origin) = small.owner() {
                origin.note_label(0, Label::of(frame));
            }
            small.slice(0..len)
        } else {
            buffer.slice(range)
        };
        self.pass_over(psock, len);
        Some(Message::new(slice))
    }

    /// Messages from the front of the buffer on have this label.
    pub(crate) fn note_label(&self, label: Label) {
        if let Some(origin) = self.buffer.as_ref().and_then(Buffer::owner) {
            origin.note_label(self.position, label);
        }
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
        let returned = &mut self.ahead.put().returned;
        let place = returned.partition_point(|other| other.stream_position() < at);
        returned.insert(place, message);
    }

    /// The first of the messages that were given back.
    pub(crate) fn next_returned(&mut self) -> Option<Message> {
        self.ahead.take(|ahead| ahead.returned.pop_front())
    }

    /// What the parser said of it, if there is one.
    pub(crate) fn returned_label(&self) -> Option<Label> {
        self.ahead.things()?.returned.front().map(Message::label)
    }

    pub(crate) fn has_returned(&self) -> bool {
        self.ahead.has(|ahead| !ahead.returned.is_empty())
    }

    pub(crate) fn take_returned(&mut self) -> VecDeque<Message> {
        self.ahead.take(|ahead| mem::take(&mut ahead.returned))
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
        let rest = self.take_rest();
        if !rest.is_empty() {
            self.ahead.put().early = rest;
        }
    }

    fn has_early(&self) -> bool {
        self.ahead.has(|ahead| !ahead.early.is_empty())
    }

    fn take_early(&mut self) -> Vec<u8> {
        self.ahead.take(|ahead| mem::take(&mut ahead.early))
    }

    fn has_pass(&self) -> bool {
        self.ahead.has(|ahead| ahead.pass)
    }

    fn end_pass(&mut self, psock: &Psock) {
        if self.ahead.take(|ahead| mem::take(&mut ahead.pass)) {
            psock.mux.memory.end_pass();
        }
    }

    /// Whether what is missing can only come from the stream.
    pub(crate) fn must_wait(&self) -> bool {
        self.carrier.is_some() && !self.has_early()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.carrier.is_none()
    }

    /// Everything that was read and not delivered, to be given back with the stream.
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        let mut rest = self.bytes().to_vec();
        rest.append(&mut self.take_early());
        self.buffer = None;
        self.kept = None;
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
        if self.has_early() {
            return self.fill_early(psock);
        }
        if let Some(reason) = self.ahead.take(|ahead| ahead.met.take()) {
            return Fill::End(reason);
        }
        let whole = len.map_or_else(|| self.unknown_length(need), |len| self.known_length(len));
        let Some((mut buffer, fresh)) = self.room_for(psock, whole) else {
            return Fill::HeldBack;
        };
        let Some(carrier) = &self.carrier else {
            return Fill::Nothing;
        };
        // A long message gets its own memory, to its end and no further; so does one with a pass.
        let most = if whole > CHUNK_BYTES || self.has_pass() {
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
        let brought = *result.as_ref().unwrap_or(&0);
        if brought > 0 {
            self.note_read(psock, brought, asked);
        }
        self.put_back(psock, buffer, fresh);
        if brought > 0 {
            return Fill::Some;
        }
        self.what_ends(&result).map_or(Fill::Nothing, Fill::End)
    }

    /// A read has brought `n` bytes of the `asked`.
    #[inline]
    fn note_read(&mut self, psock: &Psock, n: usize, asked: usize) {
        // One that took all it could, or one after which no event can be counted on.
        // (Only of a socket is it known that a short read leaves nothing behind.)
        if n == asked || !psock.is_socket || psock.drain.load(Ordering::Relaxed) {
            psock.edge.store(true, Ordering::Relaxed);
        }
        self.usual_bytes = n.max(self.usual_bytes - self.usual_bytes / 8);
    }

    /// A read has met the end of the stream; the next one is to meet it again.
    pub(crate) fn meet_again(&mut self, reason: EndReason) {
        self.ahead.put().met = Some(reason);
    }

    /// Why the connection ends after a read that brought nothing; `None`: it does not.
    fn what_ends(&self, result: &io::Result<usize>) -> Option<EndReason> {
        match result {
            Ok(_) if self.carrier().is_some_and(|carrier| carrier.was_reset()) => {
                Some(EndReason::Reset)
            }
            Ok(_) => Some(match self.bytes().len() {
                0 => EndReason::Eof,
                bytes => EndReason::EofInMessage { bytes },
            }),
            Err(e) => match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => None,
                _ => Some(EndReason::from_errno(e.raw_os_error().unwrap_or(libc::EIO))),
            },
        }
    }

    /// The bytes that were read before the stream was attached come first.
    fn fill_early(&mut self, psock: &Arc<Psock>) -> Fill {
        let early = self.take_early();
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
}
