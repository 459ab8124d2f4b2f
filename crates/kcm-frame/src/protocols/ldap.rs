//! LDAP version 3: each message is one ASN.1 SEQUENCE in BER (RFC 4511, 5.1).
//!
//! The tag is always 0x30. A length below 128 stands in the second byte; else
//! that byte has its highest bit set and says how many bytes of length follow.
//! LDAP allows only this definite form, and leading zeros in it, which many
//! servers send so as to fill the length in later.

use crate::errno::EPROTO;
use crate::{Bits, Endian, Exception, FrameError, Framing, Header, Parser, QuickForm, Verdict};

pub(super) fn framing() -> Framing {
    Framing::closure_of_protocol(
        |message| Some(form_like(message)),
        |bytes| Ldap.parse(bytes),
        Some(|len| Ldap.header_for(len)),
    )
}

/// The form of messages whose length has as many bytes as this one's.
fn form_like(message: &[u8]) -> QuickForm {
    match *message {
        [SEQUENCE, form, ..] if (1..=MOST_QUICK_BYTES).contains(&(form ^ LONG_FORM)) => {
            long_form(form)
        }
        _ => short_form(),
    }
}

/// The long form: the tag and this byte, then so many bytes of length as that says.
fn long_form(form: u8) -> QuickForm {
    let tag_and_form = Bits {
        turn: 16,
        mask: 0xffff,
    };
    let bits = 8 * u32::from(form ^ LONG_FORM);
    let length = Bits {
        turn: 16 + bits,
        mask: (1 << bits) - 1,
    };
    let header = TAG_AND_FORM_BYTES as u64 + u64::from(form ^ LONG_FORM);
    let value = u64::from(u16::from_be_bytes([SEQUENCE, form]));
    QuickForm::new(0, Endian::Big, length, header)
        .unless(Exception::all_but(tag_and_form, value, 0))
        .expect("one exception")
}

/// The short form: the tag, and a zero bit behind it.
fn short_form() -> QuickForm {
    let tag_and_bit = Bits {
        turn: 9,
        mask: 0x1ff,
    };
    let length = Bits {
        turn: 16,
        mask: 0x7f,
    };
    QuickForm::new(0, Endian::Big, length, TAG_AND_FORM_BYTES as u64)
        .unless(Exception::all_but(tag_and_bit, u64::from(SEQUENCE) << 1, 0))
        .expect("one exception")
}

struct Ldap;

const SEQUENCE: u8 = 0x30;
const LONG_FORM: u8 = 0x80;

/// Bytes before the length of the long form, and the most of it that are read:
/// 64 bits, as the common encoders make no more.
const TAG_AND_FORM_BYTES: usize = 2;
const MOST_LENGTH_BYTES: usize = 8;

/// The most of it that 8 bytes have room for, behind the tag and the form.
const MOST_QUICK_BYTES: u8 = 6;

impl Parser for Ldap {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        let (form, more) = match bytes {
            [SEQUENCE, form, more @ ..] => (*form, more),
            [] | [SEQUENCE] => return Verdict::NeedMore(TAG_AND_FORM_BYTES),
            _ => return Verdict::Error(EPROTO),
        };
        if form < LONG_FORM {
            return Verdict::message(TAG_AND_FORM_BYTES as u64 + u64::from(form));
        }
        let width = usize::from(form & !LONG_FORM);
        // No bytes of length would be the indefinite form.
        if width == 0 || width > MOST_LENGTH_BYTES {
            return Verdict::Error(EPROTO);
        }
        let header = TAG_AND_FORM_BYTES + width;
        let Some(length) = more.get(..width) else {
            return Verdict::NeedMore(header);
        };
        let push = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        match length.iter().fold(0, push).checked_add(header as u64) {
            Some(len) => Verdict::message(len),
            None => Verdict::Error(EPROTO),
        }
    }

    /// Tag and the shortest length.
    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        let bytes = body_len.to_be_bytes();
        let (form, more) = match bytes {
            [.., short] if body_len < LONG_FORM.into() => (short, &bytes[8..]),
            _ => {
                let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                let more = &bytes[zeros..];
                let width = u8::try_from(more.len()).expect("at most eight bytes");
                (LONG_FORM | width, more)
            }
        };
        let len = TAG_AND_FORM_BYTES + more.len();
        if body_len.checked_add(len as u64).is_none() {
            let max = u64::MAX - len as u64;
            return Err(FrameError::BodyTooLong { body_len, max });
        }
        let mut header = Header::zeroed(len).ok_or(FrameError::NoHeader)?;
        header[0] = SEQUENCE;
        header[1] = form;
        header[TAG_AND_FORM_BYTES..].copy_from_slice(more);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::quick;

    #[test]
    fn short_and_long_forms() {
        let parse = |bytes: &[u8]| Ldap.parse(bytes);
        assert_eq!(parse(b""), Verdict::NeedMore(2));
        assert_eq!(parse(b"0"), Verdict::NeedMore(2));
        assert_eq!(parse(b"0\x0c"), Verdict::message(14));
        assert_eq!(parse(b"0\x7f"), Verdict::message(129));
        assert_eq!(parse(b"0\x82\x01"), Verdict::NeedMore(4));
        assert_eq!(parse(b"0\x82\x01\x00"), Verdict::message(4 + 256));
        // Leading zeros.
        assert_eq!(parse(b"0\x84\0\0\0\x05"), Verdict::message(6 + 5));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [
            b"0\x80".as_slice(),
            b"0\x89",
            b"0\xff",
            b"\x16\x03",
            b"0\x88\xff\xff\xff\xff\xff\xff\xff\xf6",
        ] {
            assert_eq!(Ldap.parse(bytes), Verdict::Error(EPROTO), "{bytes:?}");
        }
        let most = b"0\x88\xff\xff\xff\xff\xff\xff\xff\xf5";
        assert_eq!(Ldap.parse(most), Verdict::message(u64::MAX));
    }

    #[test]
    fn headers_are_the_shortest() {
        for (body, header) in [(0, 2), (127, 2), (128, 3), (255, 3), (256, 4), (1 << 32, 7)] {
            let made = Ldap.header_for(body).expect("it has a header");
            assert_eq!(made.len(), header);
            assert_eq!(Ldap.parse(&made), Verdict::message(body + header as u64));
        }
        let most = Ldap.header_for(u64::MAX - 10).map(|header| header.len());
        assert_eq!(most, Ok(10));
        assert!(Ldap.header_for(u64::MAX - 9).is_err());
    }

    #[test]
    fn quick_forms_say_what_the_function_says() {
        let framing = framing();
        quick::check(
            &framing,
            &[
                (*b"\x30\0......", 2),
                (*b"\x30\x7f......", 129),
                (*b"\x30\x81\xff.....", 258),
                (*b"\x30\x82\x01\0....", 260),
                (*b"\x30\x84\0\0\x01\x05..", 267),
                (*b"\x30\x86\xff\0\0\0\0\x01", (0xff << 40) + 9),
            ],
        );
    }
}
