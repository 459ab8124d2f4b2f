//! From a framed call to a framed reply.
//!
//! Both protocols begin with a byte that tells them apart, so each message may be in either. All
//! that a peer announces within a message (the length of a string, the size of a list) is held to
//! the length of that message, which is here as a whole: it cannot make us reserve more.

use thrift::{
    ApplicationError, ApplicationErrorKind, ProtocolError, ProtocolErrorKind, TConfiguration,
    protocol::{
        TBinaryInputProtocol, TBinaryOutputProtocol, TCompactInputProtocol, TCompactOutputProtocol,
        TInputProtocol, TMessageType, TOutputProtocol,
    },
    server::{TProcessor, handle_process_result},
};

/// The length before each message of framed transport: 32 bits, big-endian, of what follows.
pub const HEADER_BYTES: usize = 4;

/// The longest call, and the longest reply, header included. Clients take 16,384,000 bytes unless
/// told otherwise; a store of small values needs far less, and what a client may make us hold is a
/// multiple of this.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;

/// Begins a message of the binary protocol, version 1.
const BINARY: u8 = 0x80;
/// Begins a message of the compact protocol.
const COMPACT: u8 = 0x82;

/// How a message is encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Binary,
    Compact,
}

/// Calls the processor with one framed message, and appends the framed reply, if there is one (a
/// oneway call has none).
///
/// # Errors
///
/// The message is no call that could be answered: its connection is best closed. Arguments that
/// cannot be read, and an unknown method, are answered with an exception instead.
pub fn answer<P: TProcessor>(
    processor: &P,
    message: &[u8],
    replies: &mut Vec<u8>,
) -> thrift::Result<()> {
    let body = message.get(HEADER_BYTES..).unwrap_or_default();
    let (protocol, wants_reply) = classify(body)?;
    let begin = replies.len();
    replies.extend([0; HEADER_BYTES]);
    let mut result = protocol.converse(body, replies, |i, o| processor.process(i, o));
    if result.is_ok() && replies.len() - begin > MAX_MESSAGE_BYTES {
        replies.truncate(begin + HEADER_BYTES);
        result = protocol.converse(body, replies, |i, o| refuse(i, o, "the reply is too long"));
    }
    let len = replies.len() - begin - HEADER_BYTES;
    // An exception for a oneway call would be taken for the reply to the next one.
    if result.is_err() || len == 0 || !wants_reply {
        replies.truncate(begin);
        return result;
    }
    let header = u32::try_from(len).map_err(|_| malformed("a reply beyond 32 bits of length"))?;
    replies[begin..begin + HEADER_BYTES].copy_from_slice(&header.to_be_bytes());
    Ok(())
}

/// The protocol of a message, and whether its sender waits for a reply. The processor reads both
/// again and checks all of it, but does not say which type of message it was.
fn classify(body: &[u8]) -> thrift::Result<(Protocol, bool)> {
    let (protocol, message_type) = match *body {
        [BINARY, _, _, message_type, ..] => (Protocol::Binary, message_type),
        [COMPACT, type_and_version, ..] => (Protocol::Compact, type_and_version >> 5),
        _ => return Err(malformed("neither the binary nor the compact protocol")),
    };
    match TMessageType::try_from(message_type)? {
        TMessageType::Call => Ok((protocol, true)),
        TMessageType::OneWay => Ok((protocol, false)),
        _ => Err(malformed("a reply, where a call was expected")),
    }
}

impl Protocol {
    /// Reads from the body and appends to `out`.
    fn converse(
        self,
        body: &[u8],
        out: &mut Vec<u8>,
        what: impl FnOnce(&mut dyn TInputProtocol, &mut dyn TOutputProtocol) -> thrift::Result<()>,
    ) -> thrift::Result<()> {
        let limits = TConfiguration::builder()
            .max_frame_size(Some(body.len()))
            .max_message_size(Some(body.len()))
            .max_container_size(Some(body.len()))
            .max_string_size(Some(body.len()))
            .build()?;
        match self {
            Self::Binary => what(
                &mut TBinaryInputProtocol::with_config(body, true, limits),
                &mut TBinaryOutputProtocol::new(out, true),
            ),
            Self::Compact => what(
                &mut TCompactInputProtocol::with_config(body, limits),
                &mut TCompactOutputProtocol::new(out),
            ),
        }
    }
}

/// Answers a call with an exception that the interface does not know.
fn refuse(
    input: &mut dyn TInputProtocol,
    output: &mut dyn TOutputProtocol,
    why: &str,
) -> thrift::Result<()> {
    let call = input.read_message_begin()?;
    let error = ApplicationError::new(ApplicationErrorKind::InternalError, why);
    handle_process_result(&call, Err(error.into()), output)
}

fn malformed(why: &str) -> thrift::Error {
    ProtocolError::new(ProtocolErrorKind::InvalidData, why).into()
}
