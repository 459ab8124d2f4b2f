//! A small message that came alone: the shortest way.
//!
//! With many connections and a request under way on each, nearly every message is read by itself. The
//! general way (`delivery.rs`) asks many questions about it, each of which is right for some message;
//! but between two messages the system's work for sockets has driven all of that code out of the
//! processor's nearest caches, so that each line of code that is run at all costs about what 10
//! instructions do. The general way was 100 such lines for this message, and this one is a quarter. For the
//! same reason all of it is one function in the end, from the connection to the message: results that were
//! handed on in memory, and registers saved and restored, were 150 instructions.
//!
//! # No return between two calls of the system
//!
//! And that function is the program's own: all of this is inlined into the caller of [`Socket::recv`], and
//! into that of [`Message::reply`] what sends a reply that waits for no other. For a processor foretells where
//! a function returns to from a stack of its own, and a call of the system leaves that full of the system's
//! returns. So the first `ret` behind it, of a function that was entered before it, goes astray; and where the
//! system guards its own returns against being led astray (measured: Zen 4 with "Safe RET", in a virtual
//! machine), the *next calls of the system* are dearer by that. A hand-written loop, 200 connections, us:
//!
//! | `ret` behind | receive | send |
//! | --- | --- | --- |
//! | none | 0.58 | 3.54 |
//! | the send (as with C's `send`, which is a function) | 0.75 | 4.08 |
//! | both | 0.77 | 4.28 |
//!
//! Functions that are entered *and* left between two calls of the system cost nothing of that: what is rare,
//! or large, stays one, and what is inlined is 1 to 2 KB of code: by `#[inline(always)]` at each step up to the
//! call, for one that is left out brings its return back. With a return behind both, this was 0.93 of a
//! hand-written server's rate; with none, 1.00. (Of calls that block, nothing of it shows: other threads run
//! meanwhile.)
//!
//! The only socket of an only connection (`solo.rs`) goes this way too.
//!
//! What turns out to be anything else is left to the general way, which finds what was read where it
//! would have put it itself.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{
    Rx, SETTLE_BYTES,
    room::{SPARE_BYTES, is_much_too_large, keep_spare},
};
#[cfg(doc)]
use crate::Socket;
use crate::{
    chunk::Buffer, message::Message, mux::Mux, origin::Origin, psock::Psock, socket::SocketState,
};

/// What was read of a connection: one whole native message and no more, already charged to the memory.
pub(crate) struct Single {
    buffer: Buffer<Origin>,
    /// Its place in the stream.
    position: u64,
}

impl Single {
    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    /// The message, which takes over the memory that it was read into.
    #[inline(always)]
    pub(crate) fn into_message(self, psock: Arc<Psock>) -> Message {
        Message::new(self.owned(psock).into_slice(0))
    }

    /// The message. The connection keeps the memory for the next one, which spares it an allocation, and
    /// to say whose it is.
    #[inline]
    pub(crate) fn share(self, rx: &mut Rx, psock: &Arc<Psock>) -> Message {
        let buffer = self.into_buffer(psock);
        let message = Message::new(buffer.slice(0..buffer.len()));
        rx.kept = Some(buffer);
        message
    }

    /// The memory, which has an owner already if it is that of the last message.
    fn into_buffer(self, psock: &Arc<Psock>) -> Buffer<Origin> {
        match self.buffer.owner() {
            Some(_) => self.buffer,
            None => self.owned(psock.clone()),
        }
    }

    #[inline(always)]
    fn owned(self, psock: Arc<Psock>) -> Buffer<Origin> {
        let Self {
            mut buffer,
            position,
        } = self;
        buffer.set_owner(Some(Origin::new(psock, buffer.len(), position)));
        buffer
    }
}

impl Mux {
    /// Takes a message from a connection whose claim the caller has, if it is a small one that came
    /// alone, and gives the claim back. Otherwise gives the connection back, with its claim.
    #[inline(always)]
    pub(crate) fn take_single(
        &self,
        psock: Arc<Psock>,
        state: &SocketState,
    ) -> Result<Message, Arc<Psock>> {
        if psock.receive_disabled.load(Ordering::Acquire)
            || psock.ordered.load(Ordering::Relaxed)
            || self.psock_count() == 1
        {
            return Err(psock);
        }
        let mut rx = psock.rx();
        let single = if rx.is_at_rest() {
            rx.read_single(&psock, false)
        } else {
            None
        };
        let Some(single) = single else {
            drop(rx);
            return Err(psock);
        };
        psock.end_partial();
        psock.class.store(0, Ordering::Relaxed);
        psock.count_received(state, 1, single.len());
        drop(rx);
        psock.release(psock.edge.load(Ordering::Relaxed));
        Ok(single.into_message(psock))
    }
}

impl Rx {
    /// Whether nothing is there of this connection, and it usually sends little. (An empty chunk that it
    /// kept goes to the thread.)
    #[inline]
    pub(crate) fn is_at_rest(&mut self) -> bool {
        if self.usual_bytes == 0 || self.usual_bytes > SETTLE_BYTES - SPARE_BYTES {
            return false;
        }
        let position = self.position;
        if self.buffer.is_some()
            && let Some(buffer) = self.buffer.take_if(|buffer| buffer.len() == position)
        {
            self.rebase();
            keep_spare(buffer);
        }
        self.buffer.is_none() && self.ahead.is_empty()
    }

    /// Reads once, for a connection at rest; `blocking`: waits until there is something. Anything else
    /// that was read stays here.
    #[inline(always)]
    pub(crate) fn read_single(&mut self, psock: &Arc<Psock>, blocking: bool) -> Option<Single> {
        let carrier = self.carrier.as_ref()?;
        let memory = &psock.mux.memory;
        let capacity = self.usual_bytes + SPARE_BYTES;
        memory.room_bytes().filter(|&room| room >= capacity)?;
        if !blocking && !psock.take_edge() {
            return None;
        }
        let mut buffer = memory_for_single(self.kept.take(), capacity);
        let n = match carrier.recv(&mut buffer, capacity, blocking) {
            Ok(n) if n > 0 => n,
            result => return self.meet(psock, result),
        };
        if is_much_too_large(&buffer, n) {
            buffer = moved(buffer);
        }
        self.note_read(psock, n, capacity);
        psock.count_read();
        self.rebase();
        let position = self.stream_position;
        match buffer.owner() {
            Some(origin) => origin.restart(n, position),
            None => memory.charge(n),
        }
        let single = Single { buffer, position };
        if !self.assembler.is_one_message(single.buffer.filled()) {
            self.buffer = Some(single.into_buffer(psock));
            return None;
        }
        self.stream_position += n as u64;
        Some(single)
    }

    /// Nothing was read: the general way goes on with this.
    #[cold]
    #[inline(never)]
    fn meet<T>(&mut self, psock: &Psock, result: io::Result<usize>) -> Option<T> {
        match self.what_ends(&result) {
            Some(reason) => {
                self.meet_again(reason);
                psock.edge.store(true, Ordering::Relaxed);
            }
            // There is nothing, or it is not known.
            None => {
                let unknown = result.is_err_and(|e| e.kind() == io::ErrorKind::Interrupted);
                psock.edge.fetch_or(unknown, Ordering::Relaxed);
            }
        }
        None
    }
}

/// The same bytes in memory of just their size.
#[cold]
fn moved(buffer: Buffer<Origin>) -> Buffer<Origin> {
    let mut small = Buffer::with_capacity(buffer.len());
    small.extend(buffer.filled());
    keep_spare(buffer);
    small
}

/// That of the last one, if it was kept and nobody looks at it any more.
#[inline(always)]
fn memory_for_single(kept: Option<Buffer<Origin>>, capacity: usize) -> Buffer<Origin> {
    kept.and_then(|kept| restarted(kept, capacity))
        .unwrap_or_else(|| Buffer::with_capacity(capacity))
}

#[inline(never)]
fn restarted(mut kept: Buffer<Origin>, capacity: usize) -> Option<Buffer<Origin>> {
    if kept.capacity() < capacity || !kept.is_unique() {
        return None;
    }
    kept.restart();
    Some(kept)
}
