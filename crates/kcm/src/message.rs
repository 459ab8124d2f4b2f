//! A received message.

use std::{fmt, hint::cold_path, io::IoSlice, ops::Deref, sync::Arc};

use crate::{
    chunk::Slice, connection::ConnectionId, error::Result, gather, origin::Origin, psock::Psock,
    steering::Label, write_queue::Wait,
};

/// One whole message, header included. Keeps its bytes alive, wherever it is sent: a view of what
/// was read, of at most eight times its burst's length or 1 KiB; of an only connection, of the chunk of 256
/// KiB that it shares with the messages around it.
///
/// To keep a small message out of a large burst for long, copy it (`message.to_vec()`).
pub struct Message {
    slice: Slice<Origin>,
}

impl Message {
    pub(crate) fn new(slice: Slice<Origin>) -> Self {
        Self { slice }
    }

    /// The connection that it came from.
    pub fn connection(&self) -> ConnectionId {
        self.psock().id
    }

    /// What its parser says it belongs to ([`crate::Framing`]); `None` for natives. Messages of one key
    /// are worked on one after the other: see [`Socket`](crate::Socket).
    pub fn key(&self) -> Option<u32> {
        self.label().key
    }

    /// Its class of service, by its parser; 0, the ordinary one, for natives. Higher ones go out first.
    pub fn class(&self) -> u8 {
        self.label().class
    }

    /// Sends a message back to the connection that this one came from. It never goes elsewhere.
    ///
    /// Waits while more than the send buffer's limit is queued there; a message that has been
    /// taken is sent without the caller's help. Replies to the messages of one burst leave
    /// together: at its end, after 32 KiB, or after 200 us.
    ///
    /// # Errors
    ///
    /// [`crate::Error::ConnectionEnded`] (`EPIPE`) when the connection has ended.
    #[inline(always)]
    pub fn reply(&self, message: &[u8]) -> Result<()> {
        self.reply_whole(message, Wait::Forever)
    }

    /// As [`Message::reply`], gathered from several pieces.
    pub fn reply_vectored(&self, message: &[IoSlice<'_>]) -> Result<()> {
        let may_wait = self.psock().tx.may_keep_back(message)?;
        self.reply_within(message, Wait::Forever, may_wait)
    }

    /// As [`Message::reply`], but never waits: for a server whose threads shall not stand still
    /// for a peer that does not read.
    ///
    /// # Errors
    ///
    /// As [`Message::reply`], and [`crate::Error::WouldBlock`] (`EAGAIN`) when more than the send
    /// buffer's limit is queued: nothing of this message is sent.
    #[inline(always)]
    pub fn try_reply(&self, message: &[u8]) -> Result<()> {
        self.reply_whole(message, Wait::Never)
    }

    /// A reply that waits behind others is no more than what stands here.
    #[inline(always)]
    fn reply_whole(&self, message: &[u8], wait: Wait) -> Result<()> {
        let psock = self.psock();
        if !gather::is_walking(psock) {
            cold_path();
            return self.reply_alone(message, wait);
        }
        let may_wait = psock.tx.may_keep_back(&[IoSlice::new(message)])?;
        if may_wait && gather::hold_next(psock, message) {
            return Ok(());
        }
        self.reply_within(&[IoSlice::new(message)], wait, may_wait)
    }

    /// To a message that came alone. (All of it inlined, up to the system's call: `receive/single.rs`.)
    #[inline(always)]
    fn reply_alone(&self, message: &[u8], wait: Wait) -> Result<()> {
        let psock = self.psock();
        psock.tx.send_now(psock, message, wait)
    }

    #[inline(never)]
    fn reply_within(&self, message: &[IoSlice<'_>], wait: Wait, may_wait: bool) -> Result<()> {
        if may_wait && gather::hold(self.psock(), message) {
            return Ok(());
        }
        self.reply_now(message, wait)
    }

    #[inline(never)]
    fn reply_now(&self, message: &[IoSlice<'_>], wait: Wait) -> Result<()> {
        let psock = self.psock();
        let result = psock.tx.send(psock, message, true, false, wait);
        gather::sent_alone(psock);
        result
    }

    pub(crate) fn psock(&self) -> &Arc<Psock> {
        &self.origin().psock
    }

    pub(crate) fn label(&self) -> Label {
        self.origin().label_at(self.slice.offset())
    }

    fn origin(&self) -> &Origin {
        let origin = self.slice.owner();
        origin.expect("a connection's buffers have an owner")
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn pinned_bytes(&self) -> usize {
        self.slice.pinned_bytes()
    }

    /// Where it begins in its connection's stream, in bytes.
    pub(crate) fn stream_position(&self) -> u64 {
        self.origin().stream_position() + self.slice.offset() as u64
    }

    /// Another view of the same message, from this byte on.
    pub(crate) fn share_from(&self, from: usize) -> Self {
        Self {
            slice: self.slice.suffix(from),
        }
    }
}

impl Deref for Message {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.slice
    }
}

impl AsRef<[u8]> for Message {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("connection", &self.connection())
            .field("len_bytes", &self.len())
            .field("key", &self.key())
            .field("class", &self.class())
            .finish()
    }
}
