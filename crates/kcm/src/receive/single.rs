//! A small message that came alone: the shortest way.
//!
//! With many connections and a request under way on each, nearly every message is read by itself. The
//! general way (`delivery.rs`) asks many questions about it, each of which is right for some message;
//! but between two messages the system's work for sockets has driven all of that code out of the
//! processor's nearest caches, so that each line of code that is run at all costs about what 10
//! instructions do. The general way was 100 such lines for this message, and this one is a quarter.
//!
//! What turns out to be anything else is left to the general way, which finds what was read where it
//! would have put it itself.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
};

use super::{Rx, SETTLE_BYTES};
use crate::{
    chunk::Buffer, message::Message, mux::Mux, origin::Origin, psock::Psock, socket::SocketState,
};

/// A read that fills its room has to be followed by another.
pub(super) const SPARE_BYTES: usize = 64;

impl Mux {
    /// Takes a message from a connection whose claim the caller has, if it is a small one that came
    /// alone, and gives the claim back. Otherwise gives the connection back, with its claim.
    #[inline(never)]
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
        let Some((mut buffer, position)) = rx.read_single(&psock) else {
            drop(rx);
            return Err(psock);
        };
        psock.end_partial();
        psock.class.store(0, Ordering::Relaxed);
        psock.count_received(state, 1, buffer.len());
        drop(rx);
        buffer.set_owner(Some(Origin::new(psock, buffer.len(), position)));
        let message = Message::new(buffer.into_slice(0));
        let psock = message.psock();
        psock.release(psock.edge.load(Ordering::Relaxed));
        Ok(message)
    }
}

impl Rx {
    /// Reads once, if there is nothing of this connection and it usually sends little. One whole
    /// native message and no more, already charged to the memory, and its place in the stream; anything
    /// else that was read stays here.
    fn read_single(&mut self, psock: &Arc<Psock>) -> Option<(Buffer<Origin>, u64)> {
        let capacity = self.usual_bytes + SPARE_BYTES;
        let at_rest = self.buffer.is_none()
            && self.usual_bytes > 0
            && capacity <= SETTLE_BYTES
            && self.early.is_empty()
            && self.returned.is_empty()
            && !self.pass;
        let carrier = self.carrier.as_ref().filter(|_| at_rest)?;
        let memory = &psock.mux.memory;
        memory.room_bytes().filter(|&room| room >= capacity)?;
        if !psock.edge.swap(false, Ordering::Acquire) {
            return None;
        }
        let mut buffer = Buffer::with_capacity(capacity);
        let n = match carrier.recv(&mut buffer, capacity, false) {
            Ok(n) if n > 0 => n,
            result => return self.meet(psock, &result),
        };
        self.note_read(psock, n, capacity);
        psock.count_read();
        memory.charge(n);
        self.rebase();
        let position = self.stream_position;
        if !self.assembler.is_one_message(buffer.filled()) {
            buffer.set_owner(Some(Origin::new(psock.clone(), n, position)));
            self.buffer = Some(buffer);
            return None;
        }
        self.stream_position += n as u64;
        Some((buffer, position))
    }

    /// Nothing was read: the general way goes on with this.
    #[cold]
    fn meet<T>(&mut self, psock: &Psock, result: &io::Result<usize>) -> Option<T> {
        match self.what_ends(result) {
            Some(reason) => {
                self.met = Some(reason);
                psock.edge.store(true, Ordering::Relaxed);
            }
            // There is nothing, or it is not known.
            None => {
                let unknown = result
                    .as_ref()
                    .is_err_and(|e| e.kind() == io::ErrorKind::Interrupted);
                psock.edge.fetch_or(unknown, Ordering::Relaxed);
            }
        }
        None
    }
}
