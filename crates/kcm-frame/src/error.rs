//! What can go wrong, and whose fault it is.
//!
//! Two kinds are kept apart because they are answered differently. A
//! [`FrameError`] is ours or our operator's: a specification that makes no
//! sense, a body that its framing cannot express; it is reported to whoever
//! called. A [`Fault`] is the peer's (or the parser's): the stream is lost from
//! here on and its connection has to go.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;

use crate::MAX_HEADER;
use crate::errno::{EINVAL, EMSGSIZE, EOPNOTSUPP, EPROTO};

/// Why a stream cannot be framed any further. Always the peer's fault, or the
/// parser's.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The message says it is longer than a message may be. `EMSGSIZE`.
    TooBig {
        /// What it says, in bytes, header included; of a message in fragments that
        /// has not ended yet, the least that it can be.
        len: u64,
        /// The longest that is accepted, in bytes.
        limit: usize,
    },
    /// So many bytes did not suffice to learn the message's length. `EMSGSIZE`.
    HeaderTooLong {
        /// How many were granted.
        limit: usize,
    },
    /// The message says it is shorter than its own header, shorter than bytes
    /// that were already called too few to tell, or its length is beyond 64
    /// bits. `EPROTO`.
    BadLength {
        /// What it says, in bytes: 0 if the sum is below zero, [`u64::MAX`] if
        /// it is above that.
        len: u64,
        /// The least that would have been credible, in bytes.
        least: u64,
    },
    /// The parser gave up on these bytes.
    Parser {
        /// Its reason, a positive errno.
        errno: i32,
    },
}

impl Fault {
    /// The errno that tells this fault to a caller of socket functions.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match *self {
            Self::TooBig { .. } | Self::HeaderTooLong { .. } => EMSGSIZE,
            Self::BadLength { .. } => EPROTO,
            Self::Parser { errno } => errno,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooBig { len, limit } => {
                write!(
                    f,
                    "peer announced a message of {len} bytes, the limit is {limit}"
                )
            }
            Self::HeaderTooLong { limit } => {
                write!(
                    f,
                    "message length still unknown at the header limit of {limit} bytes"
                )
            }
            Self::BadLength { len, least } => {
                write!(
                    f,
                    "peer announced an impossible message length of {len} bytes"
                )?;
                if len < least {
                    write!(f, ", at least {least} were expected")?;
                }
                Ok(())
            }
            Self::Parser { errno } => {
                let why = io::Error::from_raw_os_error(*errno);
                write!(f, "parser rejected the stream: {why}")
            }
        }
    }
}

impl Error for Fault {}

/// Everything this crate's functions can refuse.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrameError {
    /// A text form was not understood. The fault of whoever wrote it. `EINVAL`.
    Spec {
        /// The whole text.
        spec: String,
        /// The piece of it that is at fault.
        piece: String,
        /// What is wrong with the piece.
        problem: &'static str,
        /// What could stand there instead.
        possible: Cow<'static, str>,
    },
    /// A length field has 1 to 8 bytes. The caller's fault. `EINVAL`.
    FieldWidth {
        /// The width asked for, in bytes.
        width: usize,
    },
    /// A length field or varint lies beyond [`MAX_FIELD_OFFSET`]. The caller's
    /// fault. `EINVAL`.
    ///
    /// [`MAX_FIELD_OFFSET`]: crate::MAX_FIELD_OFFSET
    FieldOffset {
        /// The offset asked for, in bytes.
        offset: usize,
    },
    /// A varint has 1 to 10 bytes. The caller's fault. `EINVAL`.
    VarintWidth {
        /// The greatest width asked for, in bytes.
        max_bytes: usize,
    },
    /// Messages of a fixed length of 0 have no end. The caller's fault. `EINVAL`.
    ZeroLength,
    /// The framing only reads headers. The caller's fault. `EOPNOTSUPP`.
    NoHeader,
    /// The header would be longer than [`MAX_HEADER`]. The framing is at fault.
    /// `EOPNOTSUPP`.
    HeaderTooLong {
        /// Its length in bytes.
        len: u64,
    },
    /// The body's length does not fit the length field. The sender's fault.
    /// `EMSGSIZE`.
    BodyTooLong {
        /// Length of the body in bytes.
        body_len: u64,
        /// Longest body that the field has room for, in bytes.
        max: u64,
    },
    /// The length field cannot say this length, though it can say greater ones
    /// (not a multiple of its scale, or bits outside its mask). The sender's
    /// fault. `EINVAL`.
    NotRepresentable {
        /// Length of the body in bytes.
        body_len: u64,
    },
    /// A received stream is lost. The peer's fault.
    Fault(Fault),
}

impl FrameError {
    /// The errno that tells this error to a caller of socket functions.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Spec { .. }
            | Self::FieldWidth { .. }
            | Self::FieldOffset { .. }
            | Self::VarintWidth { .. }
            | Self::ZeroLength
            | Self::NotRepresentable { .. } => EINVAL,
            Self::NoHeader | Self::HeaderTooLong { .. } => EOPNOTSUPP,
            Self::BodyTooLong { .. } => EMSGSIZE,
            Self::Fault(fault) => fault.errno(),
        }
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spec {
                spec,
                piece,
                problem,
                possible,
            } => {
                write!(f, "{spec:?}: {problem} {piece:?}: {possible}")
            }
            Self::FieldWidth { width } => {
                write!(f, "length field of {width} bytes: 1 to 8 are possible")
            }
            Self::FieldOffset { offset } => {
                let max = crate::MAX_FIELD_OFFSET;
                write!(
                    f,
                    "length field at offset {offset}: 0 to {max} are possible"
                )
            }
            Self::VarintWidth { max_bytes } => {
                write!(f, "varint of up to {max_bytes} bytes: 1 to 10 are possible")
            }
            Self::ZeroLength => write!(f, "fixed message length of 0 bytes"),
            Self::NoHeader => write!(f, "this framing cannot make headers"),
            Self::HeaderTooLong { len } => {
                write!(f, "header of {len} bytes: at most {MAX_HEADER} can be made")
            }
            Self::BodyTooLong { body_len, max } => {
                write!(
                    f,
                    "body of {body_len} bytes: the length field allows at most {max}"
                )
            }
            Self::NotRepresentable { body_len } => {
                write!(
                    f,
                    "body of {body_len} bytes: the length field cannot express it"
                )
            }
            Self::Fault(fault) => fault.fmt(f),
        }
    }
}

impl Error for FrameError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }
}

impl From<Fault> for FrameError {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_are_those_a_socket_gives() {
        assert_eq!(Fault::TooBig { len: 9, limit: 8 }.errno(), 90);
        assert_eq!(Fault::HeaderTooLong { limit: 8 }.errno(), 90);
        assert_eq!(Fault::BadLength { len: 0, least: 1 }.errno(), 71);
        assert_eq!(Fault::Parser { errno: 5 }.errno(), 5);
        assert_eq!(FrameError::from(Fault::Parser { errno: 5 }).errno(), 5);
        assert_eq!(
            FrameError::BodyTooLong {
                body_len: 9,
                max: 8
            }
            .errno(),
            90
        );
        assert_eq!(FrameError::NoHeader.errno(), 95);
        assert_eq!(FrameError::ZeroLength.errno(), 22);
    }

    #[test]
    fn a_length_that_is_too_great_is_not_called_too_small() {
        let text = Fault::BadLength {
            len: u64::MAX,
            least: 4,
        }
        .to_string();
        assert!(!text.contains("at least"), "{text}");
        let text = Fault::BadLength { len: 3, least: 4 }.to_string();
        assert!(text.ends_with("at least 4 were expected"), "{text}");
    }

    #[test]
    fn a_nested_fault_is_the_source() {
        let error = FrameError::from(Fault::HeaderTooLong { limit: 3 });
        assert!(error.source().is_some_and(|s| s.is::<Fault>()));
        assert!(FrameError::NoHeader.source().is_none());
    }
}
