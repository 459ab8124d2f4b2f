//! Bounds of what a peer may make us hold.
//!
//! A length in a header is a promise by a stranger. Without bounds, four bytes
//! on each of many connections reserve all memory, and a message that is never
//! finished keeps its connection (and its buffer) for ever. The numbers here are
//! defaults for people who did not think of it; the values can be anything.

use std::time::Duration;

/// Longest message that is accepted unless told otherwise: 16 MiB.
///
/// The largest value of a 24-bit length field (as in HTTP/2 and MySQL) is just
/// below it, and a thousand connections that all stall just before the end of
/// such a message still fit in the memory of one ordinary server.
pub const DEFAULT_MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Bytes after which a parser must have told the message's length, unless told
/// otherwise: 64 KiB.
///
/// Length fields lie in the first few dozen bytes; text headers (as of HTTP) are
/// commonly cut off by servers between 8 and 64 KiB. A parser that asks for yet
/// more is searching, and its searching from the start again costs the square of
/// this number.
pub const DEFAULT_MAX_HEADER_BYTES: usize = 64 << 10;

/// Time from a message's first byte to its last, unless told otherwise: 30 s.
///
/// Long enough for a message of the default greatest length over a line of
/// 5 Mbit/s, and for several retransmission timeouts in a row.
pub const DEFAULT_ASSEMBLY_DEADLINE: Duration = Duration::from_secs(30);

/// Bounds of what a peer may make us hold.
///
/// ```
/// use kcm_frame::Limits;
/// let limits = Limits::default().with_max_message_bytes(1 << 20).with_assembly_deadline(None);
/// assert_eq!(limits.max_message_bytes, 1 << 20);
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest message in bytes, header included.
    pub max_message_bytes: usize,
    /// Bytes of a message, from its first, after which its length must be known;
    /// of one in fragments, bytes from each fragment's first.
    pub max_header_bytes: usize,
    /// Longest time from a message's first byte to its last; `None` for no
    /// bound. This crate has no clock: whoever reads the socket keeps this one.
    pub assembly_deadline: Option<Duration>,
}

impl Limits {
    /// The same limits with another longest message, in bytes.
    #[must_use]
    pub const fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.max_message_bytes = bytes;
        self
    }

    /// The same limits with another longest header, in bytes.
    #[must_use]
    pub const fn with_max_header_bytes(mut self, bytes: usize) -> Self {
        self.max_header_bytes = bytes;
        self
    }

    /// The same limits with another deadline, or none.
    #[must_use]
    pub const fn with_assembly_deadline(mut self, deadline: Option<Duration>) -> Self {
        self.assembly_deadline = deadline;
        self
    }
}

impl Default for Limits {
    /// The three `DEFAULT_*` constants of this crate.
    fn default() -> Self {
        Self {
            max_message_bytes: DEFAULT_MAX_MESSAGE_BYTES,
            max_header_bytes: DEFAULT_MAX_HEADER_BYTES,
            assembly_deadline: Some(DEFAULT_ASSEMBLY_DEADLINE),
        }
    }
}
