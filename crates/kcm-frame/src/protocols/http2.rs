//! HTTP/2: frames with 24 bits of length, after a preface in one direction.
//!
//! A client begins with 24 bytes that are no frame (RFC 9113, section 3.4), a
//! server does not. Which of them a stream comes from is seen at its first byte:
//! a frame begins with the high byte of its length, and no first frame has
//! 64 KiB, since none longer than 16 KiB may be sent before the peer has allowed
//! it. Whatever else begins there is no HTTP/2: `GET ...` of an older version,
//! or TLS.

use crate::errno::EPROTO;
use crate::{Endian, FrameError, Framing, Header, LengthField, Parser, Verdict};

pub(super) fn framing() -> Framing {
    Framing::stateful(|| Http2 { begun: false })
}

struct Http2 {
    /// A message has been seen: only frames from here on.
    begun: bool,
}

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's header, which its length does not count.
const HEADER_BYTES: i64 = 9;

/// The field of a frame's length.
fn frames() -> LengthField {
    let field = LengthField::new(0, 3, Endian::Big);
    field.expect("three bytes at the front").bias(HEADER_BYTES)
}

impl Parser for Http2 {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        match bytes {
            [b'P', ..] if !self.begun => match bytes.first_chunk() {
                None => Verdict::NeedMore(PREFACE.len()),
                Some(PREFACE) => Verdict::message(PREFACE.len() as u64),
                Some(_) => Verdict::Error(EPROTO),
            },
            [high, ..] if *high != 0 && !self.begun => Verdict::Error(EPROTO),
            _ => frames().parse(bytes),
        }
    }

    fn delivered(&mut self, _message: &[u8]) {
        self.begun = true;
    }

    fn rest(&self) -> Option<Framing> {
        self.begun.then(|| frames().into())
    }

    /// The header of a frame, of type DATA on stream 0 until told otherwise.
    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        frames().header_for(body_len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Http2 = Http2 { begun: false };

    #[test]
    fn a_preface_or_a_frame_comes_first() {
        assert_eq!(FRESH.parse(b"P"), Verdict::NeedMore(24));
        assert_eq!(FRESH.parse(PREFACE), Verdict::message(24));
        let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100];
        assert_eq!(FRESH.parse(&settings[..2]), Verdict::NeedMore(3));
        assert_eq!(FRESH.parse(&settings), Verdict::message(15));
    }

    #[test]
    fn what_is_no_http2_is_refused_at_once() {
        assert_eq!(FRESH.parse(b"G"), Verdict::Error(EPROTO));
        assert_eq!(FRESH.parse(&[0x16]), Verdict::Error(EPROTO));
        let almost = b"PRI * HTTP/1.1\r\n\r\nSM\r\n\r\n";
        assert_eq!(FRESH.parse(almost), Verdict::Error(EPROTO));
    }

    #[test]
    fn the_preface_is_special_only_at_the_beginning() {
        let mut parser = FRESH;
        assert!(parser.rest().is_none());
        parser.delivered(PREFACE);
        assert_eq!(parser.parse(PREFACE), Verdict::message(0x50_5249 + 9));
        let rest = parser.rest().and_then(|rest| rest.native());
        assert_eq!(rest, "u24be+9".parse().ok());
    }
}
