//! A message socket of a multiplexor: sending.

use std::{
    io::IoSlice,
    ops::{BitOr, Range},
    os::fd::BorrowedFd,
    sync::{Arc, atomic::Ordering},
};

use crate::{
    connection::ConnectionId,
    error::{Error, Result},
    outgoing::Outgoing,
    psock::Psock,
    socket::{Socket, SocketType},
    sys,
    write_queue::Wait,
};

/// Flags of [`Socket::send_with`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SendFlags(u8);

impl SendFlags {
    /// `MSG_MORE`: the message goes on in the next call (datagram sockets).
    pub const MORE: Self = Self(1);
    /// `MSG_EOR`: the message ends here (seqpacket sockets).
    pub const EOR: Self = Self(2);
    /// `MSG_BATCH`: more messages follow at once; this one need not go out before they do.
    pub const BATCH: Self = Self(4);

    /// No flag.
    pub const fn empty() -> Self {
        Self(0)
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for SendFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A message that is being put together, and a connection that is to be flushed.
#[derive(Default)]
pub(crate) struct OpenMessage {
    bytes: Vec<u8>,
    batch: Option<Arc<Psock>>,
}

/// Sending. A message that a call has taken goes out without further help, whole, and never mixed
/// with another; the peer sees it once, or, if its connection dies in the middle of it, not at all
/// (it has a part that can never be completed). What was handed to TCP and not yet received by the
/// peer when the connection dies is lost, as always with TCP.
///
/// An *unaddressed* message goes to the connection on which least is queued, and whole to another
/// if that one dies in the middle of it. An addressed one, and a reply, goes to its connection or
/// nowhere.
impl Socket {
    /// Sends one message to any connection. An empty message is nothing, and not sent.
    ///
    /// # Errors
    ///
    /// `ENOTCONN` without a live connection ([`crate::Builder::connect_wait`] waits for one);
    /// `EAGAIN` when all are full and the socket is non-blocking or its write timeout passes;
    /// `ESHUTDOWN`. Nothing is sent then.
    pub fn send(&self, message: &[u8]) -> Result<()> {
        self.send_vectored(&[IoSlice::new(message)])
    }

    /// As [`Socket::send`], gathered from several pieces.
    ///
    /// # Errors
    ///
    /// As [`Socket::send`].
    pub fn send_vectored(&self, message: &[IoSlice<'_>]) -> Result<()> {
        self.send_anywhere(message, false).map(drop)
    }

    /// Sends one message to this connection.
    ///
    /// # Errors
    ///
    /// `ENOENT` when the multiplexor has no such connection (any more, or was shut down), `EPIPE` when
    /// it has ended, `EAGAIN` as [`Socket::send`].
    pub fn send_to(&self, to: ConnectionId, message: &[u8]) -> Result<()> {
        self.send_to_vectored(to, &[IoSlice::new(message)])
    }

    /// As [`Socket::send_to`], gathered from several pieces.
    ///
    /// # Errors
    ///
    /// As [`Socket::send_to`].
    pub fn send_to_vectored(&self, to: ConnectionId, message: &[IoSlice<'_>]) -> Result<()> {
        let psock = self.mux.psock(to)?;
        psock
            .tx
            .send(&psock, message, true, false, self.wait_to_send())?;
        self.count(message.iter().map(|piece| piece.len()).sum());
        Ok(())
    }

    /// As [`Socket::send`], of a question whose answer will have this key ([`Message::key`]): the
    /// answer is preferably this socket's. It goes to it if it waits or asks within 10 ms, and if no
    /// other socket works on a message of this key; else to whoever asks. Answers to several
    /// questions of one key go to those who asked, in the order of the questions. The 1,024 newest
    /// questions of a socket are remembered.
    ///
    /// # Errors
    ///
    /// As [`Socket::send`].
    ///
    /// ```no_run
    /// use kcm::{Framing, Multiplexor, Verdict};
    ///
    /// // Eight bytes, of which the first four are the number of the question.
    /// let framing = Framing::closure(|bytes| match bytes.first_chunk() {
    ///     Some(number) => {
    ///         Verdict::Message(kcm::Frame::new(8).with_key(u32::from_be_bytes(*number)))
    ///     }
    ///     None => Verdict::NeedMore(4),
    /// });
    /// let mux = Multiplexor::builder(framing).build()?;
    /// mux.attach(std::net::TcpStream::connect("127.0.0.1:7000")?)?;
    /// let mut socket = mux.socket()?;
    /// socket.send_keyed(7, b"\0\0\0\x07ping")?;
    /// let answer = socket.recv()?;
    /// assert_eq!(answer.key(), Some(7));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// [`Message::key`]: crate::Message::key
    pub fn send_keyed(&self, key: u32, message: &[u8]) -> Result<()> {
        (self.mux).await_key(key, &self.state, || self.send(message))
    }

    /// As [`Socket::send_keyed`], to this connection.
    ///
    /// # Errors
    ///
    /// As [`Socket::send_to`].
    pub fn send_keyed_to(&self, to: ConnectionId, key: u32, message: &[u8]) -> Result<()> {
        (self.mux).await_key(key, &self.state, || self.send_to(to, message))
    }

    /// Sends several messages, unaddressed, each whole; those that go to one connection leave in
    /// as few system calls as may be. Returns how many were taken: all, unless an error comes
    /// after the first.
    ///
    /// # Errors
    ///
    /// As [`Socket::send`], when none was taken.
    pub fn send_batch(&self, messages: &[IoSlice<'_>]) -> Result<usize> {
        let mut held: Vec<Arc<Psock>> = Vec::new();
        let mut taken = 0;
        let mut result = Ok(());
        for message in messages {
            match self.send_anywhere(std::slice::from_ref(message), true) {
                Ok(Some(psock)) if !held.iter().any(|other| Arc::ptr_eq(other, &psock)) => {
                    held.push(psock);
                }
                Ok(_) => {}
                Err(e) => {
                    result = Err(e);
                    break;
                }
            }
            taken += 1;
        }
        for psock in held {
            psock.tx.flush(&psock);
        }
        if taken > 0 {
            return Ok(taken);
        }
        result.map(|()| taken)
    }

    /// Sends a message, or a part of one, with flags, as `sendmsg` on the kernel's sockets; the
    /// number of bytes taken.
    ///
    /// A datagram socket's message ends with the first call without [`SendFlags::MORE`], a
    /// seqpacket socket's with [`SendFlags::EOR`], which may come with no bytes. Parts are kept
    /// here until then. With [`SendFlags::BATCH`] the message waits for the next one without it
    /// (or for a millisecond).
    ///
    /// # Errors
    ///
    /// As [`Socket::send`]. The message that was being put together is dropped then by a datagram
    /// socket, and kept, without the bytes of this call, by a seqpacket socket.
    pub fn send_with(&mut self, bytes: &[u8], flags: SendFlags) -> Result<usize> {
        let ends = match self.mux.socket_type {
            SocketType::Dgram => !flags.contains(SendFlags::MORE),
            SocketType::SeqPacket => flags.contains(SendFlags::EOR),
        };
        if !ends {
            self.open.bytes.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let open = std::mem::take(&mut self.open.bytes);
        let batch = flags.contains(SendFlags::BATCH);
        let pieces = [IoSlice::new(&open), IoSlice::new(bytes)];
        let sent_on = match self.send_anywhere(&pieces, batch) {
            Ok(sent_on) => sent_on,
            Err(e) => {
                if self.mux.socket_type == SocketType::SeqPacket {
                    self.open.bytes = open;
                }
                return Err(e);
            }
        };
        let before = self.open.batch.take();
        if batch {
            if let (Some(before), Some(now)) = (&before, &sent_on)
                && !Arc::ptr_eq(before, now)
            {
                before.tx.flush(before);
            }
            self.open.batch = sent_on.or(before);
        } else if let Some(before) = before {
            before.tx.flush(&before);
        }
        Ok(bytes.len())
    }

    /// Sends one message made of `header` and a range of a file, which the system moves itself
    /// (`sendfile`). Unaddressed without `to`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a range that is not in the file, or what is no regular file; `EBADF` for a file
    /// that is not open for reading; else as [`Socket::send`] and [`Socket::send_to`]. Should the file be cut short before it is sent, the message can't be
    /// finished: its connection ends with `EIO`.
    pub fn send_file(
        &self,
        to: Option<ConnectionId>,
        header: &[u8],
        file: BorrowedFd<'_>,
        range: Range<u64>,
    ) -> Result<()> {
        let file = file.try_clone_to_owned()?;
        sys::check_readable(&file, &range)?;
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let mut message = Outgoing::with_file(header, file, range, to.is_some());
        let wait = self.wait_to_send();
        loop {
            let psock = match to {
                Some(to) => self.mux.psock(to)?,
                None => self.choose(wait)?,
            };
            let (error, back) = match psock.tx.send_outgoing(&psock, message, wait) {
                Ok(()) => {
                    self.count(header.len() + len);
                    return Ok(());
                }
                Err(failed) => *failed,
            };
            match error {
                Error::ConnectionEnded(_) if to.is_none() => message = back,
                error => return Err(error),
            }
        }
    }

    /// Polls writable (`EPOLLOUT`, and only that has a meaning) when a send of a new unaddressed
    /// message would not block. Made at the first call; costs a descriptor.
    ///
    /// # Errors
    ///
    /// No descriptor left (`EMFILE`).
    pub fn writable_fd(&self) -> Result<BorrowedFd<'_>> {
        self.state.poll.writable_fd(&self.mux)
    }

    /// Sends to the best connection there is; the connection, unless the message was empty.
    fn send_anywhere(&self, message: &[IoSlice<'_>], hold: bool) -> Result<Option<Arc<Psock>>> {
        let len = message.iter().map(|piece| piece.len()).sum();
        if len == 0 {
            return Ok(None);
        }
        let wait = self.wait_to_send();
        loop {
            let psock = self.choose(wait)?;
            // It does not wait here: should this one fill up meanwhile, another may be free.
            match psock.tx.send(&psock, message, false, hold, Wait::Never) {
                Ok(()) => {
                    self.state.last_sent_to.store(psock.id.0, Ordering::Relaxed);
                    self.count(len);
                    return Ok(Some(psock));
                }
                Err(Error::ConnectionEnded(_) | Error::WouldBlock) => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// The connection for an unaddressed message; waits for one, or for room.
    fn choose(&self, wait: Wait) -> Result<Arc<Psock>> {
        let mut none_until = None;
        loop {
            if self.mux.is_closed() {
                return Err(Error::Closed);
            }
            let last = match self.state.last_sent_to.load(Ordering::Relaxed) {
                0 => None,
                id => Some(ConnectionId(id)),
            };
            let deadline = match self.mux.choose(last) {
                Ok(psock) => return Ok(psock),
                Err(true) => match wait {
                    Wait::Never => return Err(Error::WouldBlock),
                    Wait::Until(deadline) => Some(deadline),
                    Wait::Forever => None,
                },
                Err(false) => {
                    if self.mux.connect_wait.is_zero() || matches!(wait, Wait::Never) {
                        return Err(Error::NotConnected);
                    }
                    Some(*none_until.get_or_insert_with(|| sys::from_now(self.mux.connect_wait)))
                }
            };
            if !self
                .mux
                .wait_for_arrival(deadline, || self.mux.choose(last).is_err())
            {
                return Err(match self.mux.choose(last) {
                    Err(false) => Error::NotConnected,
                    _ => Error::WouldBlock,
                });
            }
        }
    }

    fn wait_to_send(&self) -> Wait {
        if self.is_nonblocking() {
            return Wait::Never;
        }
        self.write_deadline().map_or(Wait::Forever, Wait::Until)
    }

    fn count(&self, len: usize) {
        let counters = &self.state.counters;
        counters.tx_messages.fetch_add(1, Ordering::Relaxed);
        counters.tx_bytes.fetch_add(len as u64, Ordering::Relaxed);
    }
}
