//! What carries a connection's bytes: a socket, or anything that implements [`Transport`].

use std::{
    any::Any,
    fmt,
    io::{self, IoSlice},
    net::TcpStream,
    ops::Range,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    panic::{self, AssertUnwindSafe},
    sync::Arc,
};

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::{chunk::Buffer, sys};

/// A byte stream that is not a plain socket: TLS, shared memory, a test's fault injector.
///
/// All calls are non-blocking. One thread at a time receives and one thread at a time sends; the
/// two may overlap. They are made by whatever thread sends or receives, or by the background thread.
///
/// A `recv` or `send` that panics, or claims another number of bytes than can be, has failed: its
/// connection ends with `EIO`. The panic goes no further than its message on the standard error, for
/// the caller may have nothing to do with this stream.
pub trait Transport: Any + Send + Sync {
    /// A descriptor that epoll can wait on, edge-triggered: readable when [`Transport::recv`] may
    /// have something new, writable when [`Transport::send`] may.
    fn as_fd(&self) -> BorrowedFd<'_>;

    /// Reads into the buffer: the number of bytes, 0 at the end of the stream, or `WouldBlock`.
    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Writes from the buffers, in their order: the number of bytes taken, not 0, or `WouldBlock`.
    fn send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Says that nothing more will be sent, as `shutdown(SHUT_WR)`.
    fn shutdown_write(&self) -> io::Result<()>;
}

/// A byte stream given to, or got back from, a multiplexor.
pub struct Stream(pub(crate) Arc<Carrier>);

impl Stream {
    /// A stream of another kind than a socket.
    pub fn new(transport: impl Transport) -> Self {
        Self(Arc::new(Carrier::Other(Box::new(transport))))
    }

    /// The socket, or the stream itself when it is not one (or, which the system may refuse, when
    /// it cannot be duplicated while a [`crate::Connection`] still refers to it).
    pub fn into_fd(self) -> Result<OwnedFd, Self> {
        match Arc::try_unwrap(self.0) {
            Ok(Carrier::Socket(fd)) => Ok(fd),
            Ok(other) => Err(Self(Arc::new(other))),
            Err(shared) => match &*shared {
                Carrier::Socket(fd) => fd.try_clone().map_err(|_| Self(shared)),
                Carrier::Other(_) => Err(Self(shared)),
            },
        }
    }

    /// The transport that was given to [`Stream::new`], if it is of this type; else the stream itself
    /// (also while a [`crate::Connection`] still refers to it).
    pub fn into_transport<T: Transport>(self) -> Result<T, Self> {
        match Arc::try_unwrap(self.0) {
            Ok(Carrier::Other(transport)) if (&*transport as &dyn Any).is::<T>() => {
                let transport: Box<dyn Any> = transport;
                Ok(*transport
                    .downcast()
                    .expect("it was just asked for its type"))
            }
            Ok(other) => Err(Self(Arc::new(other))),
            Err(shared) => Err(Self(shared)),
        }
    }

    /// The stream as a `TcpStream`; the stream itself when it is not a socket.
    pub fn into_tcp(self) -> Result<TcpStream, Self> {
        self.into_fd().map(TcpStream::from)
    }

    /// The stream as a `UnixStream`; the stream itself when it is not a socket.
    pub fn into_unix(self) -> Result<UnixStream, Self> {
        self.into_fd().map(UnixStream::from)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.as_fd()).finish()
    }
}

impl From<TcpStream> for Stream {
    fn from(stream: TcpStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl From<UnixStream> for Stream {
    fn from(stream: UnixStream) -> Self {
        OwnedFd::from(stream).into()
    }
}

impl From<OwnedFd> for Stream {
    fn from(fd: OwnedFd) -> Self {
        Self(Arc::new(Carrier::Socket(fd)))
    }
}

/// What the engine does its input and output on.
pub(crate) enum Carrier {
    Socket(OwnedFd),
    Other(Box<dyn Transport>),
}

impl Carrier {
    /// Whether a thread may block in [`Carrier::recv`].
    pub(crate) fn is_socket(&self) -> bool {
        matches!(self, Self::Socket(_))
    }

    /// Appends what there is now, at most `most` bytes: their number. `blocking`: waits for some, if
    /// this is a socket.
    #[inline(always)]
    pub(crate) fn recv<T>(
        &self,
        buffer: &mut Buffer<T>,
        most: usize,
        blocking: bool,
    ) -> io::Result<usize> {
        match self {
            Self::Socket(fd) => {
                let flags = if blocking {
                    RecvFlags::empty()
                } else {
                    RecvFlags::DONTWAIT
                };
                buffer.append(most, |room| Ok(rustix::net::recv(fd, room, flags)?.0.0))
            }
            Self::Other(transport) => recv_guarded(&**transport, buffer, most),
        }
    }

    /// Sends what the system takes now; `more`: something follows at once, in another call.
    pub(crate) fn send(&self, pieces: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
        let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        flags.set(SendFlags::MORE, more);
        match self {
            Self::Socket(fd) => Ok(match pieces {
                [one] => rustix::net::send(fd, one, flags)?,
                _ => rustix::net::sendmsg(fd, pieces, &mut SendAncillaryBuffer::default(), flags)?,
            }),
            Self::Other(transport) => send_guarded(&**transport, pieces),
        }
    }

    /// The same of one piece.
    #[inline(always)]
    pub(crate) fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Socket(fd) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                Ok(rustix::net::send(fd, bytes, flags)?)
            }
            Self::Other(transport) => send_guarded(&**transport, &[IoSlice::new(bytes)]),
        }
    }

    /// Sends from a file what the system takes now: the number of bytes, 0 at the file's end.
    /// The socket must be in non-blocking mode, for `sendfile` has no flag.
    pub(crate) fn send_file(&self, file: BorrowedFd<'_>, range: &Range<u64>) -> io::Result<usize> {
        /// As much as one call is worth asking for; the system gives less.
        const MOST: u64 = 1 << 20;
        let len = usize::try_from((range.end - range.start).min(MOST)).unwrap_or(0);
        match self {
            Self::Socket(fd) => {
                let mut offset = range.start;
                Ok(rustix::fs::sendfile(fd, file, Some(&mut offset), len)?)
            }
            Self::Other(transport) => {
                let mut copy = vec![0; len.min(64 << 10)];
                let n = rustix::io::pread(file, &mut copy, range.start)?;
                if n == 0 {
                    return Ok(0);
                }
                send_guarded(&**transport, &[IoSlice::new(&copy[..n])])
            }
        }
    }

    /// Whether the end that a receive has just met is that of a reset. The system says so once, to
    /// whoever calls first, which may have been a send; but the connection has no peer any more.
    pub(crate) fn was_reset(&self) -> bool {
        match self {
            Self::Socket(fd) => rustix::net::getpeername(fd) == Err(rustix::io::Errno::NOTCONN),
            Self::Other(_) => false,
        }
    }

    /// Whether some of what was sent to its end has not come to the peer's system yet, and still may.
    /// Throws away what the peer sends: closed with that unread, the connection would be reset, and
    /// what is under way lost; and a peer that waits for room to say more would never read.
    pub(crate) fn is_under_way(&self) -> bool {
        /// The end of the stream counts as one byte, and may be lost.
        const END: usize = 1;
        /// Reads in a row: more than a window holds, for a peer that writes as quickly.
        const MOST_READS: usize = 256;
        // What is written to a Unix stream has arrived.
        let Self::Socket(fd) = self else { return false };
        if !sys::is_tcp(fd.as_fd()) || sys::unacknowledged_bytes(fd.as_fd()) <= END {
            return false;
        }
        let mut room = [0; 16 << 10];
        for _ in 0..MOST_READS {
            match rustix::net::recv(fd, &mut room[..], RecvFlags::DONTWAIT) {
                Ok((_, n)) if n > 0 => {}
                _ => break,
            }
        }
        !self.was_reset()
    }

    /// Nothing more will be sent.
    pub(crate) fn shutdown_write(&self) {
        // The peer may have gone before; there is nobody to tell then.
        let _ = match self {
            Self::Socket(fd) => {
                rustix::net::shutdown(fd, rustix::net::Shutdown::Write).map_err(Into::into)
            }
            Self::Other(transport) => guarded(|| transport.shutdown_write()),
        };
    }
}

/// A call of a transport. Should it panic, no lock, claim or right to write must be left behind, nor
/// the background thread end.
fn guarded<R>(call: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
    // In whatever state it is now: it is asked for nothing but what it can fail at again.
    panic::catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(broken()))
}

#[inline(never)]
fn recv_guarded<T>(
    transport: &dyn Transport,
    buffer: &mut Buffer<T>,
    most: usize,
) -> io::Result<usize> {
    buffer.append_initialised(most, |room| guarded(|| transport.recv(room)))
}

#[inline(never)]
fn send_guarded(transport: &dyn Transport, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let whole: usize = pieces.iter().map(|piece| piece.len()).sum();
    match guarded(|| transport.send(pieces)) {
        // With nothing taken and no `WouldBlock`, it would be tried again for ever.
        Ok(n) if n == 0 || n > whole => Err(broken()),
        result => result,
    }
}

fn broken() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl AsFd for Carrier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Socket(fd) => fd.as_fd(),
            Self::Other(transport) => transport.as_fd(),
        }
    }
}
