//! The crate's one error type, and what an attempt to attach gives back.

use std::{error, fmt, io};

use kcm_frame::FrameError;

use crate::{event::EndReason, transport::Stream};

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. Each variant says whose fault it is; [`Error::errno`] is the number that the
/// kernel's `AF_KCM` gives for the same condition (where it has the condition at all).
#[non_exhaustive]
#[derive(Debug)]
pub enum Error {
    /// The caller's: the descriptor is not a socket (`ENOENT`, as the kernel's `SIOCKCMATTACH`).
    NotASocket,
    /// The caller's: not a TCP or Unix stream socket, or a listening or unconnected one
    /// (`EOPNOTSUPP`).
    Unsupported,
    /// The caller's: this stream is attached to a multiplexor of this process already (`EALREADY`).
    AlreadyAttached,
    /// The caller's, or the peer was quicker: no connection of this multiplexor has this id
    /// (`ENOENT`).
    NoSuchConnection,
    /// Nobody's: there is no live connection to send on (`ENOTCONN`).
    NotConnected,
    /// The peer's: the connection that this message had to go to has ended (`EPIPE`).
    ConnectionEnded(EndReason),
    /// Nobody's: the call would have to wait and was told not to, or its time limit has passed
    /// (`EAGAIN`, as `SO_RCVTIMEO` and `SO_SNDTIMEO` have it).
    WouldBlock,
    /// The caller's own doing: the multiplexor was shut down (`ESHUTDOWN`).
    Closed,
    /// The caller's: what was sent is not one whole message to the connection's own parser
    /// (`EBADMSG`; checked in debug builds).
    NotOneMessage,
    /// The caller's: a framing that cannot be, or a body that it has no header for (`EINVAL`).
    Frame(FrameError),
    /// A limit that the caller set, or its default, was reached (`ENFILE`).
    LimitReached {
        /// The limit's name.
        limit: &'static str,
        /// Its value.
        value: usize,
    },
    /// The system's: a system call failed.
    System(io::Error),
}

impl Error {
    /// The error number, as in `errno.h`.
    pub fn errno(&self) -> i32 {
        match self {
            Self::NotASocket | Self::NoSuchConnection => libc::ENOENT,
            Self::Unsupported => libc::EOPNOTSUPP,
            Self::AlreadyAttached => libc::EALREADY,
            Self::NotConnected => libc::ENOTCONN,
            Self::ConnectionEnded(_) => libc::EPIPE,
            Self::WouldBlock => libc::EAGAIN,
            Self::Closed => libc::ESHUTDOWN,
            Self::NotOneMessage => libc::EBADMSG,
            Self::Frame(e) => e.errno(),
            Self::LimitReached { .. } => libc::ENFILE,
            Self::System(e) => e.raw_os_error().unwrap_or(libc::EIO),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotASocket => f.write_str("the descriptor is not a socket"),
            Self::Unsupported => {
                f.write_str("only a connected TCP or Unix stream socket can be attached")
            }
            Self::AlreadyAttached => f.write_str("the stream is attached already"),
            Self::NoSuchConnection => f.write_str("no such connection in this multiplexor"),
            Self::NotConnected => f.write_str("the multiplexor has no live connection"),
            Self::ConnectionEnded(reason) => write!(f, "the connection has ended: {reason}"),
            Self::WouldBlock => f.write_str("the call would block, or its time limit has passed"),
            Self::Closed => f.write_str("the multiplexor was shut down"),
            Self::NotOneMessage => {
                f.write_str("what was sent is not one whole message to the connection's parser")
            }
            Self::Frame(e) => e.fmt(f),
            Self::LimitReached { limit, value } => {
                write!(f, "the limit {limit} = {value} is reached")
            }
            Self::System(e) => e.fmt(f),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            Self::Frame(e) => Some(e),
            Self::System(e) => Some(e),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        match e.kind() {
            io::ErrorKind::WouldBlock => Self::WouldBlock,
            _ => Self::System(e),
        }
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(e: rustix::io::Errno) -> Self {
        io::Error::from(e).into()
    }
}

impl From<FrameError> for Error {
    fn from(e: FrameError) -> Self {
        Self::Frame(e)
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> Self {
        match e {
            Error::System(e) => e,
            e => Self::new(Self::from_raw_os_error(e.errno()).kind(), e),
        }
    }
}

/// A failed attempt to attach: why, and the stream, which is still the caller's.
#[derive(Debug)]
pub struct AttachError {
    /// Why.
    pub error: Error,
    /// The stream, untouched.
    pub stream: Stream,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attach: {}", self.error)
    }
}

impl error::Error for AttachError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&self.error)
    }
}

impl From<AttachError> for Error {
    fn from(e: AttachError) -> Self {
        e.error
    }
}

impl From<AttachError> for io::Error {
    fn from(e: AttachError) -> Self {
        e.error.into()
    }
}
