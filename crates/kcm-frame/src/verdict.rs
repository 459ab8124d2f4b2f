//! What a parser says about the bytes it is shown.
//!
//! The kernel's parsers answer with one signed integer (a length, zero, or a
//! negative errno). Here the three meanings are three variants, so that they
//! cannot be mixed up, and a message can carry a routing key and a class beside
//! its length; [`Verdict::from_kernel`] takes the old convention.

/// What a parser says about bytes that begin at a message's first byte.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The message is known: where it ends, and perhaps more about it. The
    /// message need not be there as a whole yet.
    Message(Frame),
    /// Not enough bytes to tell. At least this many bytes are needed, counted
    /// from the message's first byte; zero, or a number not above what is there
    /// already, means "one more".
    NeedMore(usize),
    /// A message made of fragments: the first is known to be this many bytes long,
    /// its header included, and is not the last. The parser is asked next about
    /// the bytes behind it, as if the message began there, until it says
    /// [`Message`](Self::Message) with the length of the last fragment alone.
    ///
    /// So each fragment is parsed once, however many there are; it is the message
    /// limit that bounds their sum, and the header limit holds for each.
    Fragment(u64),
    /// The stream cannot be framed; a positive errno says why.
    Error(i32),
}

impl Verdict {
    /// A message of `len` bytes in total, header included, without key or class.
    #[inline]
    #[must_use]
    pub const fn message(len: u64) -> Self {
        Self::Message(Frame::new(len))
    }

    /// The verdict that a kernel KCM parser means by `result`, when it has been
    /// shown `have` bytes: above zero the message's length in bytes, zero "show
    /// me more", below zero a negated errno.
    ///
    /// ```
    /// use kcm_frame::{Verdict, errno::EPROTO};
    /// assert_eq!(Verdict::from_kernel(12, 4), Verdict::message(12));
    /// assert_eq!(Verdict::from_kernel(0, 4), Verdict::NeedMore(5));
    /// assert_eq!(Verdict::from_kernel(-71, 4), Verdict::Error(EPROTO));
    /// ```
    #[must_use]
    pub const fn from_kernel(result: i32, have: usize) -> Self {
        if result > 0 {
            Self::message(result.unsigned_abs() as u64)
        } else if result == 0 {
            Self::NeedMore(have.saturating_add(1))
        } else {
            // The most negative number has no positive twin; no errno is near it.
            Self::Error(result.saturating_neg())
        }
    }
}

/// One message: its length and what the parser read in its header.
///
/// ```
/// use kcm_frame::Frame;
/// let frame = Frame::new(64).with_key(7).with_class(1);
/// assert_eq!((frame.len, frame.key, frame.class), (64, Some(7), 1));
/// ```
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Bytes of the whole message, header included.
    pub len: u64,
    /// Which messages belong together, if the parser can tell; messages of one
    /// key can be kept in order.
    pub key: Option<u32>,
    /// Class of service; 0 is the ordinary one.
    pub class: u8,
}

impl Frame {
    /// A message of `len` bytes in total, without key, of class 0.
    #[inline]
    #[must_use]
    pub const fn new(len: u64) -> Self {
        Self {
            len,
            key: None,
            class: 0,
        }
    }

    /// The same message with a key.
    #[inline]
    #[must_use]
    pub const fn with_key(mut self, key: u32) -> Self {
        self.key = Some(key);
        self
    }

    /// The same message with a class.
    #[inline]
    #[must_use]
    pub const fn with_class(mut self, class: u8) -> Self {
        self.class = class;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_results_at_their_edges() {
        assert_eq!(
            Verdict::from_kernel(i32::MAX, 0),
            Verdict::message(0x7fff_ffff)
        );
        assert_eq!(
            Verdict::from_kernel(0, usize::MAX),
            Verdict::NeedMore(usize::MAX)
        );
        assert_eq!(Verdict::from_kernel(-1, 9), Verdict::Error(1));
        assert_eq!(Verdict::from_kernel(i32::MIN, 9), Verdict::Error(i32::MAX));
    }
}
