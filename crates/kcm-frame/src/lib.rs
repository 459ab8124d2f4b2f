//! Where does each message of a byte stream end?
//!
//! TCP delivers bytes; applications speak messages. This crate holds the one
//! piece of knowledge that joins the two, and nothing else: it looks at bytes
//! that somebody else received and says how long the message at their front is.
//! It has no file descriptor, no clock, no thread and no buffer, so that every
//! rule about framing can be tested (and fuzzed) with plain slices.
//!
//! * [`Framing`] is the rule: a [`LengthField`], a [`Varint`], a [`Fixed`]
//!   length, a closure, or a [`Parser`] with state for each connection. The
//!   first three have a text form (`"u32be+4"`), no virtual call, and can also
//!   make the header of a message to be sent.
//! * [`Protocol`] has the rule of a common protocol ready under its name, which
//!   stands wherever the text form does (`"kafka"`).
//! * [`Limits`] bound what a peer may make us hold.
//! * [`Assembler`] applies both to one stream and remembers just enough of an
//!   incomplete message to not parse it again for each byte that trickles in.
//!
//! ```
//! use kcm_frame::{Assembler, Framing, Limits, Step};
//!
//! // A length of four bytes, big endian, that does not count itself.
//! let framing: Framing = "u32be+4".parse()?;
//! let mut assembler = Assembler::new(&framing, Limits::default());
//!
//! let stream = [0, 0, 0, 2, b'h', b'i', 0, 0, 0, 9];
//! let mut rest = &stream[..];
//! let mut bodies = Vec::new();
//! while let Step::Message(frame) = assembler.step(rest) {
//!     let (message, after) = rest.split_at(usize::try_from(frame.len)?);
//!     bodies.push(&message[4..]);
//!     assembler.delivered(message);
//!     rest = after;
//! }
//! assert_eq!(bodies, [b"hi"]);
//! // The second message is known to take 13 bytes, of which 4 are there.
//! assert_eq!(assembler.step(rest), Step::Incomplete { need: 13, len: Some(13) });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod assembler;
pub mod errno;
mod error;
mod fixed;
mod framing;
mod header;
mod length_field;
mod limits;
mod parser;
mod protocols;
mod quick_form;
mod spec;
mod varint;
mod verdict;

pub use assembler::{Assembler, Step};
pub use error::{Fault, FrameError};
pub use fixed::Fixed;
pub use framing::{FrameFn, Framing, Native, ParserFactory, Stateless};
pub use header::{Header, MAX_HEADER};
pub use length_field::{Endian, LengthField, MAX_FIELD_OFFSET, PlainField};
pub use limits::{
    DEFAULT_ASSEMBLY_DEADLINE, DEFAULT_MAX_HEADER_BYTES, DEFAULT_MAX_MESSAGE_BYTES, Limits,
};
pub use parser::Parser;
pub use protocols::{Protocol, protocols};
pub use quick_form::{Bits, Exception, QuickForm, Round};
pub use varint::Varint;
pub use verdict::{Frame, Verdict};
