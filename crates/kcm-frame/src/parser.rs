//! Parsers with state for one connection.
//!
//! Some protocols cannot be framed from the front bytes alone: a connection
//! begins with a preface of its own shape, or a message changes how later ones
//! are framed. Such a parser needs memory, and the danger of memory is that it
//! moves at the wrong time: a receiver parses the same bytes again and again
//! while a message trickles in, and must get the same answer. So [`parse`] gets
//! `&self`, and only [`delivered`] may move the state on.
//!
//! [`parse`]: Parser::parse
//! [`delivered`]: Parser::delivered

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{FrameError, Framing, Header, Verdict};

/// A parser with state for one connection. State moves on only in
/// [`delivered`](Parser::delivered).
///
/// One that panics has lost its stream: that is a fault, of errno `EIO`
/// ([`crate::Fault::Parser`]), and the panic goes no further. (What it panics
/// at are a peer's bytes; a server should not lose a thread by them.)
///
/// ```
/// use kcm_frame::{Framing, Parser, Verdict};
///
/// /// An 8-byte greeting, then messages whose first byte is their length.
/// struct Greeted(bool);
///
/// impl Parser for Greeted {
///     fn parse(&self, bytes: &[u8]) -> Verdict {
///         match (self.0, bytes.first()) {
///             (false, _) => Verdict::message(8),
///             (true, None) => Verdict::NeedMore(1),
///             (true, Some(&len)) => Verdict::message(len.into()),
///         }
///     }
///     fn delivered(&mut self, _message: &[u8]) {
///         self.0 = true;
///     }
/// }
///
/// let framing = Framing::stateful(|| Greeted(false));
/// assert!(framing.native().is_none());
/// ```
pub trait Parser: Send {
    /// Looks at `bytes`, which begin at a message's first byte and may end
    /// anywhere (inside the message or in a later one), and says where the
    /// message ends. Is asked again about the same bytes, and more of them.
    fn parse(&self, bytes: &[u8]) -> Verdict;

    /// Told once for each message, in the order of the stream, when it leaves the
    /// connection; what is parsed next comes after it. All of the message's bytes
    /// are shown.
    fn delivered(&mut self, message: &[u8]) {
        let _ = message;
    }

    /// How the rest of the stream is cut, once that depends on nothing that came before: asked after each
    /// message, and no more when there is one. (A parser is asked under its connection's lock, a framing
    /// without state is not, and takes a small part of the time.) A framing with state is made anew.
    fn rest(&self) -> Option<Framing> {
        None
    }

    /// The header that goes before a body of `body_len` bytes.
    ///
    /// # Errors
    ///
    /// [`FrameError::NoHeader`] (`EOPNOTSUPP`) unless the parser says otherwise.
    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        let _ = body_len;
        Err(FrameError::NoHeader)
    }
}

/// Calls what the program has given to parse; `None` if that panicked. (Inlined, so that what goes in
/// and comes out is in registers: by way of memory a message waits 2 ns longer for its length.)
#[inline(always)]
pub(crate) fn guarded<R>(call: impl FnOnce() -> R) -> Option<R> {
    // Whatever state it leaves behind is asked nothing any more.
    catch_unwind(AssertUnwindSafe(call)).ok()
}
