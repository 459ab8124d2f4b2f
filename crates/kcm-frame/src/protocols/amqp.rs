//! AMQP 0-9-1 and 1.0, which share a name, a port and a greeting.
//!
//! The greeting is eight bytes: `AMQP`, and a version. In 0-9-1 only the client
//! sends it (the server does so just to say no, and hangs up); in 1.0 both do,
//! and twice where SASL comes first, which has a greeting of its own. The frames
//! of the two have nothing in common:
//!
//! ```text
//! 0-9-1   type 1 | channel 2 | size 4 | payload: size bytes      | 0xCE
//! 1.0     size 4 | doff 1 | type 1 | channel 2 | payload         size counts all
//! ```
//!
//! A stream that begins without greeting is a server's of 0-9-1. The octet at the
//! end of its frames is looked at when a frame leaves: the frame is delivered
//! whatever it is, but nothing is after one that ended wrongly.

use crate::errno::{EPROTO, EPROTONOSUPPORT};
use crate::{Bits, Endian, Exception, Framing, Parser, QuickForm, Verdict};

pub(super) fn framing() -> Framing {
    Framing::stateful(|| Amqp {
        phase: Phase::Opening,
    })
}

struct Amqp {
    phase: Phase,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// A greeting, or a frame of 0-9-1.
    Opening,
    /// Frames of 0-9-1.
    Frames091,
    /// Frames of 1.0 or its second greeting.
    Sasl,
    /// Frames of 1.0.
    Frames10,
    /// A frame did not end where it said.
    Lost,
}

const NAME: &[u8; 4] = b"AMQP";
const GREETING_BYTES: usize = 8;

/// In 0-9-1, what is around a frame's payload: seven bytes before it, the octet
/// of its end behind it.
const AROUND_PAYLOAD_091: u64 = 7 + 1;
const FRAME_END_091: u8 = 0xce;

/// Least frame of 1.0: its header. (Empty ones keep a connection alive.)
const LEAST_FRAME_10: u32 = 8;

impl Parser for Amqp {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        match (self.phase, bytes.first()) {
            (Phase::Lost, _) => Verdict::Error(EPROTO),
            (_, None) => Verdict::NeedMore(1),
            (Phase::Opening | Phase::Sasl, Some(b'A')) => match bytes.first_chunk().map(after) {
                None => Verdict::NeedMore(GREETING_BYTES),
                Some(Ok(_)) => Verdict::message(GREETING_BYTES as u64),
                Some(Err(errno)) => Verdict::Error(errno),
            },
            (Phase::Opening | Phase::Frames091, Some(&kind)) => frame_091(kind, bytes),
            (Phase::Sasl | Phase::Frames10, Some(_)) => frame_10(bytes),
        }
    }

    fn delivered(&mut self, message: &[u8]) {
        self.phase = match (self.phase, message.first_chunk().map(after)) {
            (Phase::Opening | Phase::Sasl, Some(Ok(phase))) => phase,
            (Phase::Opening | Phase::Frames091, _) if message.last() == Some(&FRAME_END_091) => {
                Phase::Frames091
            }
            (Phase::Opening | Phase::Frames091, _) => Phase::Lost,
            (phase, _) => phase,
        };
    }

    /// (Frames of 0-9-1 have an end that is looked at when they leave, and need a parser for that.)
    fn rest(&self) -> Option<Framing> {
        (self.phase == Phase::Frames10)
            .then(|| Framing::closure_of_protocol(|_| Some(quick_form_10()), frame_10, None))
    }
}

/// What comes after this greeting.
fn after(greeting: &[u8; GREETING_BYTES]) -> Result<Phase, i32> {
    match greeting.strip_prefix(NAME) {
        Some([0, 0, 9, 1]) => Ok(Phase::Frames091),
        Some([0, 1, 0, 0]) => Ok(Phase::Frames10),
        Some([3, 1, 0, 0]) => Ok(Phase::Sasl),
        // 0-8 to 0-10 (of another form), or TLS inside of 1.0.
        Some(_) => Err(EPROTONOSUPPORT),
        None => Err(EPROTO),
    }
}

fn frame_091(kind: u8, bytes: &[u8]) -> Verdict {
    match (kind, bytes) {
        // Method, header, body; heartbeats are of type 8, or 4 by the text of the document.
        (1..=4 | 8, [_, _, _, a, b, c, d, ..]) => {
            let payload = u32::from_be_bytes([*a, *b, *c, *d]);
            Verdict::message(u64::from(payload) + AROUND_PAYLOAD_091)
        }
        (1..=4 | 8, _) => Verdict::NeedMore(7),
        _ => Verdict::Error(EPROTO),
    }
}

fn frame_10(bytes: &[u8]) -> Verdict {
    match bytes.first_chunk().map(|size| u32::from_be_bytes(*size)) {
        None => Verdict::NeedMore(4),
        Some(size @ LEAST_FRAME_10..) => Verdict::message(size.into()),
        Some(_) => Verdict::Error(EPROTO),
    }
}

/// Any frame of 1.0.
fn quick_form_10() -> QuickForm {
    let size = Bits {
        turn: 32,
        mask: u32::MAX.into(),
    };
    QuickForm::new(0, Endian::Big, size, 0)
        .unless(Exception {
            bits: size,
            low: 0,
            span: u64::from(LEAST_FRAME_10) - 1,
        })
        .expect("one exception")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::quick;

    fn fresh() -> Amqp {
        Amqp {
            phase: Phase::Opening,
        }
    }

    /// Takes these messages, each of which must be one.
    fn take(parser: &mut Amqp, messages: &[&[u8]]) {
        for message in messages {
            let len = message.len() as u64;
            assert_eq!(parser.parse(message), Verdict::message(len), "{message:?}");
            parser.delivered(message);
        }
    }

    #[test]
    fn version_0_9_1_with_greeting_and_without() {
        let heartbeat = b"\x08\0\0\0\0\0\0\xce";
        let mut client = fresh();
        take(&mut client, &[b"AMQP\0\0\x09\x01", heartbeat]);
        assert_eq!(client.parse(b"AMQP"), Verdict::Error(EPROTO));
        let mut server = fresh();
        take(
            &mut server,
            &[b"\x01\0\0\0\0\0\x04\0\x0a\0\x0b\xce", heartbeat],
        );
        assert_eq!(server.parse(&heartbeat[..6]), Verdict::NeedMore(7));
    }

    #[test]
    fn nothing_comes_after_a_frame_that_ends_wrongly() {
        let mut parser = fresh();
        take(&mut parser, &[b"\x08\0\0\0\0\0\0\xcf"]);
        assert_eq!(
            parser.parse(b"\x08\0\0\0\0\0\0\xce"),
            Verdict::Error(EPROTO)
        );
    }

    #[test]
    fn version_1_0_greets_twice_with_sasl() {
        let frame = b"\0\0\0\x08\x02\0\0\0";
        let mut parser = fresh();
        let opening = [b"AMQP\x03\x01\0\0", frame, b"AMQP\0\x01\0\0", frame];
        take(&mut parser, &opening.map(|message| message.as_slice()));
        // Now it is the length of a frame.
        assert_eq!(parser.parse(b"AMQP"), Verdict::message(0x414d_5150));
        assert_eq!(parser.parse(b"\0\0\0\x07"), Verdict::Error(EPROTO));
        let Some(Framing::Closure(rest)) = parser.rest() else {
            panic!("it is a function")
        };
        assert_eq!(rest.parse(b"AMQP"), Verdict::message(0x414d_5150));
        assert_eq!(rest.parse(b"\0\0\0\x07"), Verdict::Error(EPROTO));
    }

    #[test]
    fn other_greetings_are_refused() {
        let refused = |bytes: &[u8], errno| {
            assert_eq!(fresh().parse(bytes), Verdict::Error(errno), "{bytes:?}");
        };
        refused(b"AMQP\x01\x01\0\x0a", EPROTONOSUPPORT);
        refused(b"AMQP\x02\x01\0\0", EPROTONOSUPPORT);
        refused(b"AMQX\0\x01\0\0", EPROTO);
        refused(b"GET /", EPROTO);
        assert_eq!(fresh().parse(b"AM"), Verdict::NeedMore(8));
    }

    #[test]
    fn the_quick_form_says_what_the_function_says() {
        let framing = Amqp {
            phase: Phase::Frames10,
        }
        .rest()
        .expect("begun");
        quick::check(
            &framing,
            &[
                (*b"\0\0\0\x08....", 8),
                (*b"\xff\xff\xff\xff....", (1 << 32) - 1),
            ],
        );
    }
}
