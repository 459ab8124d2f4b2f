//! WebSocket after its upgrade: frames of RFC 6455, section 5.2.
//!
//! ```text
//! flags and opcode 1 | mask bit, length 7 bits | length 2 or 8 | mask 4 | payload
//! ```
//!
//! The length is in the second byte up to 125; 126 and 127 say that it follows
//! in two or eight bytes. A client's frames have a mask, a server's do not. A
//! message here is a frame, not what its fragments are together: control frames
//! may stand between those, and have to be answered.

use crate::errno::EPROTO;
use crate::{
    Bits, Endian, Exception, FrameError, Framing, Header, Parser, QuickForm, Round, Verdict,
};

pub(super) fn framing() -> Framing {
    Framing::closure_of_protocol(
        |message| Some(form_like(message)),
        |bytes| Websocket.parse(bytes),
        Some(|len| Websocket.header_for(len)),
    )
}

/// Frames whose length is as wide as this one's, with mask and without. (8 bytes of it leave no room for
/// what says so.)
fn form_like(message: &[u8]) -> QuickForm {
    let short = Bits {
        turn: 16,
        mask: (!MASKED).into(),
    };
    let (form, others) = match *message {
        [first, second, ..] if first & CONTROL == 0 && second & !MASKED == LEN_IN_2_BYTES => {
            let no_control = Bits {
                mask: short.mask | u64::from(CONTROL) << 8,
                ..short
            };
            let length = Bits {
                turn: 32,
                mask: 0xffff,
            };
            (
                QuickForm::new(0, Endian::Big, length, SHORT_HEADER_BYTES + 2),
                Exception::all_but(no_control, LEN_IN_2_BYTES.into(), 0),
            )
        }
        _ => (
            QuickForm::new(0, Endian::Big, short, SHORT_HEADER_BYTES),
            Exception {
                bits: short,
                low: LEN_IN_2_BYTES.into(),
                span: (LEN_IN_8_BYTES - LEN_IN_2_BYTES).into(),
            },
        ),
    };
    // From where it says 128 to where it says 4.
    let mask_bytes = Bits {
        turn: 16 - (MASKED.trailing_zeros() - MASK_BYTES.trailing_zeros()),
        mask: MASK_BYTES,
    };
    form.unless(others)
        .and_then(|form| form.plus(mask_bytes, Round::NOTHING))
        .expect("one exception, one term")
}

struct Websocket;

/// In the first byte: this is the last fragment; set in opcodes of control frames.
const FINAL: u8 = 0x80;
const CONTROL: u8 = 0x08;
const BINARY: u8 = 0x02;

/// In the second byte.
const MASKED: u8 = 0x80;
const LEN_IN_2_BYTES: u8 = 126;
const LEN_IN_8_BYTES: u8 = 127;

/// Longest payload whose length is in the second byte, and of a control frame.
const SHORT_PAYLOAD: u8 = 125;

/// Flags, opcode and a length in the second byte.
const SHORT_HEADER_BYTES: u64 = 2;

const MASK_BYTES: u64 = 4;

impl Parser for Websocket {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        let &[first, second, ref more @ ..] = bytes else {
            return Verdict::NeedMore(2);
        };
        let short = second & !MASKED;
        if first & CONTROL != 0 && short > SHORT_PAYLOAD {
            return Verdict::Error(EPROTO);
        }
        let (header, payload) = match short {
            LEN_IN_2_BYTES => match more.first_chunk() {
                Some(len) => (4, u16::from_be_bytes(*len).into()),
                None => return Verdict::NeedMore(4),
            },
            LEN_IN_8_BYTES => match more.first_chunk() {
                Some(len) => (10, u64::from_be_bytes(*len)),
                None => return Verdict::NeedMore(10),
            },
            _ => (SHORT_HEADER_BYTES, short.into()),
        };
        // The highest bit has to be zero; so nothing can overflow below.
        if i64::try_from(payload).is_err() {
            return Verdict::Error(EPROTO);
        }
        let mask = if second & MASKED != 0 { MASK_BYTES } else { 0 };
        Verdict::message(header + mask + payload)
    }

    /// The header of a binary frame without mask, as servers send it.
    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        if i64::try_from(body_len).is_err() {
            let max = i64::MAX.unsigned_abs();
            return Err(FrameError::BodyTooLong { body_len, max });
        }
        let bytes = body_len.to_be_bytes();
        let (short, more) = match body_len {
            0..=125 => (bytes[7], &bytes[8..]),
            126..=0xffff => (LEN_IN_2_BYTES, &bytes[6..]),
            _ => (LEN_IN_8_BYTES, &bytes[..]),
        };
        let mut header = Header::zeroed(2 + more.len()).ok_or(FrameError::NoHeader)?;
        header[0] = FINAL | BINARY;
        header[1] = short;
        header[2..].copy_from_slice(more);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::quick;

    #[test]
    fn three_widths_of_length_with_mask_and_without() {
        let parse = |bytes: &[u8]| Websocket.parse(bytes);
        assert_eq!(parse(b"\x82"), Verdict::NeedMore(2));
        assert_eq!(parse(b"\x82\x7d"), Verdict::message(2 + 125));
        assert_eq!(parse(b"\x82\xfd"), Verdict::message(2 + 4 + 125));
        assert_eq!(parse(b"\x82\x7e\x01"), Verdict::NeedMore(4));
        assert_eq!(parse(b"\x82\x7e\x01\x00"), Verdict::message(4 + 256));
        assert_eq!(parse(b"\x82\xfe\x01\x00"), Verdict::message(4 + 4 + 256));
        assert_eq!(parse(b"\x82\x7f\0\0\0\0\0\0\x01"), Verdict::NeedMore(10));
        assert_eq!(
            parse(b"\x82\xff\0\0\0\0\0\x01\0\0"),
            Verdict::message(10 + 4 + 65_536)
        );
        assert_eq!(
            parse(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff"),
            Verdict::message((1 << 63) + 13)
        );
    }

    #[test]
    fn what_the_rfc_forbids_of_lengths() {
        let long = b"\x82\x7f\x80\0\0\0\0\0\0\0";
        assert_eq!(Websocket.parse(long), Verdict::Error(EPROTO));
        assert_eq!(Websocket.parse(b"\x89\x7e"), Verdict::Error(EPROTO));
        assert_eq!(Websocket.parse(b"\x89\x7d"), Verdict::message(127));
    }

    #[test]
    fn headers_are_the_shortest() {
        for (body, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let made = Websocket.header_for(body).expect("it has a header");
            assert_eq!(made.len(), header);
            assert_eq!(
                Websocket.parse(&made),
                Verdict::message(body + header as u64)
            );
        }
        assert!(Websocket.header_for(1 << 63).is_err());
    }

    #[test]
    fn quick_forms_say_what_the_function_says() {
        let framing = framing();
        quick::check(
            &framing,
            &[
                (*b"\x82\0......", 2),
                (*b"\x81\x7d......", 127),
                (*b"\x89\xfd......", 131),
                (*b"\x82\x7e\x01\0....", 4 + 256),
                (*b"\x01\xfe\xff\xff....", 4 + 4 + 65_535),
            ],
        );
    }
}
