//! How a connection ends, and the news of it.

use std::{fmt, io};

use kcm_frame::Fault;

use crate::connection::ConnectionId;

/// The end of a connection.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionEvent {
    /// Which connection. The id is never given again to another connection of the multiplexor.
    pub connection: ConnectionId,
    /// Why it ended.
    pub reason: EndReason,
}

/// Why a connection ended. Everything that came whole before it is still delivered.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndReason {
    /// The peer closed its direction between two messages (`EPIPE`). Replies still go out.
    Eof,
    /// The peer closed its direction inside a message (`EPIPE`): so many bytes of it had come.
    EofInMessage {
        /// Bytes of the unfinished message.
        bytes: usize,
    },
    /// The peer reset the connection (`ECONNRESET`).
    Reset,
    /// The peer's bytes could not be framed: message or header too long (`EMSGSIZE`), impossible
    /// length (`EPROTO`), or the parser's own word (its errno).
    Fault(Fault),
    /// A message was not whole within the assembly deadline (`ETIMEDOUT`).
    Deadline,
    /// The program closed the connection ([`crate::Connection::close`]), or shut the multiplexor
    /// down (0).
    Closed,
    /// A system call on the stream failed with this errno.
    System(i32),
}

impl EndReason {
    /// The error number, as in `errno.h`; 0 for [`EndReason::Closed`].
    pub fn errno(&self) -> i32 {
        match self {
            Self::Eof | Self::EofInMessage { .. } => libc::EPIPE,
            Self::Reset => libc::ECONNRESET,
            Self::Fault(fault) => fault.errno(),
            Self::Deadline => libc::ETIMEDOUT,
            Self::Closed => 0,
            Self::System(errno) => *errno,
        }
    }

    pub(crate) fn from_errno(errno: i32) -> Self {
        match errno {
            libc::ECONNRESET | libc::EPIPE => Self::Reset,
            errno => Self::System(errno),
        }
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Eof => f.write_str("the peer closed the connection"),
            Self::EofInMessage { bytes } => {
                write!(
                    f,
                    "the peer closed the connection {bytes} bytes into a message"
                )
            }
            Self::Reset => f.write_str("the peer reset the connection"),
            Self::Fault(fault) => fault.fmt(f),
            Self::Deadline => f.write_str("a message was not whole within the deadline"),
            Self::Closed => f.write_str("closed by this program"),
            Self::System(errno) => io::Error::from_raw_os_error(*errno).fmt(f),
        }
    }
}
