//! PostgreSQL's protocol, version 3: a type byte and a length, but not at first.
//!
//! The first packet of a client has no type byte, only a length and a code: it
//! is the start-up packet, or asks for encryption or for another session's query
//! to be cancelled. The server answers a question for encryption with a single
//! byte; then the client, if still there in plain text, asks again or starts.
//!
//! Both directions are told by their first byte: a length of at most 10,000
//! begins with a zero, and the server's first message with a type is `R`, `E` or
//! `v`, as it sends neither notices (`N`) nor parameters (`S`) before the client
//! is authenticated. This must be settled by that one byte: behind the answer
//! comes nothing until the client has seen it.

use crate::errno::EPROTO;
use crate::{Bits, Endian, Exception, Framing, Parser, QuickForm, Verdict};

pub(super) fn framing() -> Framing {
    Framing::stateful(|| Postgres { opening: true })
}

struct Postgres {
    /// Packets without type and single bytes may come.
    opening: bool,
}

/// `SSLRequest`, `GSSENCRequest` and `CancelRequest`, which the codes of
/// versions are far from. They do not begin the session.
const REQUESTS: [[u8; 4]; 3] = [
    80_877_103_u32.to_be_bytes(),
    80_877_104_u32.to_be_bytes(),
    80_877_102_u32.to_be_bytes(),
];

/// Least packet without type: a length and a code.
const LEAST_OPENING_BYTES: u32 = 8;

/// Greatest that servers take.
const MOST_OPENING_BYTES: u32 = 10_000;

/// Least that the length behind a type can say: itself.
const LENGTH_BYTES: u32 = 4;

impl Parser for Postgres {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        let Some(&kind) = bytes.first() else {
            return Verdict::NeedMore(1);
        };
        match kind {
            b'S' | b'N' | b'G' if self.opening => Verdict::message(1),
            0 if self.opening => match bytes.first_chunk().map(|len| u32::from_be_bytes(*len)) {
                None => Verdict::NeedMore(4),
                Some(len @ LEAST_OPENING_BYTES..=MOST_OPENING_BYTES) => {
                    Verdict::message(len.into())
                }
                Some(_) => Verdict::Error(EPROTO),
            },
            _ => with_type(bytes),
        }
    }

    fn delivered(&mut self, message: &[u8]) {
        self.opening &= match message {
            [0, _, _, _, code @ ..] => REQUESTS.iter().any(|request| code.starts_with(request)),
            [_] => true,
            _ => false,
        };
    }

    fn rest(&self) -> Option<Framing> {
        (!self.opening)
            .then(|| Framing::closure_of_protocol(|_| Some(quick_form()), with_type, None))
    }
}

/// A message with a type byte. All types are letters or digits. Encrypted records begin otherwise.
fn with_type(bytes: &[u8]) -> Verdict {
    match *bytes {
        [] => Verdict::NeedMore(1),
        [kind, ..] if !kind.is_ascii_alphanumeric() => Verdict::Error(EPROTO),
        [_, a, b, c, d, ..] => match u32::from_be_bytes([a, b, c, d]) {
            len @ LENGTH_BYTES.. => Verdict::message(u64::from(len) + 1),
            _ => Verdict::Error(EPROTO),
        },
        _ => Verdict::NeedMore(5),
    }
}

/// Messages whose type is a letter. (Digits are a third range; they are answers without contents.)
fn quick_form() -> QuickForm {
    const CASE: u8 = b'a' - b'A';
    let letter = Bits {
        turn: 8,
        mask: (!CASE).into(),
    };
    let length = Bits {
        turn: 40,
        mask: u32::MAX.into(),
    };
    let too_short = Exception {
        bits: length,
        low: 0,
        span: u64::from(LENGTH_BYTES) - 1,
    };
    QuickForm::new(0, Endian::Big, length, 1)
        .unless(Exception::all_but(
            letter,
            b'A'.into(),
            (b'Z' - b'A').into(),
        ))
        .and_then(|form| form.unless(too_short))
        .expect("two exceptions")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::quick;

    const FRESH: Postgres = Postgres { opening: true };
    const SSL_REQUEST: &[u8] = &[0, 0, 0, 8, 4, 210, 22, 47];
    const START_UP: &[u8] = b"\0\0\0\x11\0\x03\0\0user\0me\0\0";

    /// What is said of these bytes by what the parser leaves the stream to.
    fn rest(parser: &Postgres, bytes: &[u8]) -> Verdict {
        let Some(Framing::Closure(rest)) = parser.rest() else {
            panic!("it is a function")
        };
        rest.parse(bytes)
    }

    #[test]
    fn a_client_may_ask_before_it_starts() {
        let mut client = FRESH;
        for _ in 0..2 {
            assert_eq!(client.parse(SSL_REQUEST), Verdict::message(8));
            client.delivered(SSL_REQUEST);
        }
        assert_eq!(client.parse(START_UP), Verdict::message(17));
        client.delivered(START_UP);
        assert_eq!(client.parse(b"S\0\0\0\x04"), Verdict::message(5));
        assert_eq!(client.parse(START_UP), Verdict::Error(EPROTO));
        assert_eq!(rest(&client, b"S\0\0\0\x04"), Verdict::message(5));
        assert_eq!(rest(&client, START_UP), Verdict::Error(EPROTO));
    }

    #[test]
    fn a_request_to_cancel_is_known_by_its_code() {
        let mut client = FRESH;
        let cancel = b"\0\0\0\x10\x04\xd2\x16\x2e\0\0\0\x07key.";
        assert_eq!(client.parse(cancel), Verdict::message(16));
        client.delivered(cancel);
        assert_eq!(client.parse(START_UP), Verdict::message(17));
    }

    #[test]
    fn an_answer_is_one_byte_and_is_told_by_it() {
        let mut server = FRESH;
        for answer in [b"N", b"N", b"S"] {
            assert_eq!(server.parse(answer), Verdict::message(1));
            server.delivered(answer);
        }
        let ok = b"R\0\0\0\x08\0\0\0\0";
        assert_eq!(server.parse(&ok[..4]), Verdict::NeedMore(5));
        assert_eq!(server.parse(ok), Verdict::message(9));
        server.delivered(ok);
        assert_eq!(server.parse(b"S\0\0\0\x16"), Verdict::message(23));
        assert_eq!(rest(&server, b"S\0\0\0\x16"), Verdict::message(23));
    }

    #[test]
    fn impossible_lengths_and_encryption_are_refused() {
        for bytes in [
            b"\0\0\0\x07\0".as_slice(),
            b"\0\0\x27\x11\0",
            b"R\0\0\0\x03",
            b"\x16\x03\x01\x02\0",
        ] {
            assert_eq!(FRESH.parse(bytes), Verdict::Error(EPROTO), "{bytes:?}");
        }
    }

    #[test]
    fn the_quick_form_says_what_the_function_says() {
        let framing = Postgres { opening: false }.rest().expect("begun");
        quick::check(
            &framing,
            &[
                (*b"D\0\0\x01\x04...", 261),
                (*b"z\0\0\0\x04...", 5),
                (*b"A\xff\xff\xff\xff...", 1 << 32),
            ],
        );
    }
}
