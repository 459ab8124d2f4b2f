//! iSCSI: PDUs of up to three parts (RFC 7143, section 11.2).
//!
//! ```text
//! basic header 48 | additional headers 4 * n | data, padded to 4
//!                                              ^ its length: 24 bits at 5
//!                   ^ n: 8 bits at 4
//! ```
//!
//! Header and data digests are taken to be off, which is the protocol's default:
//! whether they are on is settled by text in the login phase, in both directions
//! together, and would add four bytes behind headers and data.

use crate::{Bits, Endian, FrameError, Framing, Header, Parser, QuickForm, Round, Verdict};

pub(super) fn framing() -> Framing {
    Framing::closure_of_protocol(
        |_| Some(quick_form()),
        |bytes| Iscsi.parse(bytes),
        Some(|len| Iscsi.header_for(len)),
    )
}

/// All PDUs.
fn quick_form() -> QuickForm {
    let additional = Bits {
        turn: 40 + WORD_BYTES.trailing_zeros(),
        mask: 0xff * WORD_BYTES,
    };
    let data = Bits {
        turn: 0,
        mask: 0xff_ffff,
    };
    let padded = Round {
        plus: WORD_BYTES - 1,
        keep: !(WORD_BYTES - 1),
        ..Round::NOTHING
    };
    let form = QuickForm::new(0, Endian::Big, additional, HEADER_BYTES as u64);
    form.plus(data, padded).expect("one term")
}

struct Iscsi;

const HEADER_BYTES: usize = 48;

/// Additional headers count, and data is padded to, such words.
const WORD_BYTES: u64 = 4;

/// Longest data without padding, of 24 bits of length.
const MOST_DATA_BYTES: u64 = 0xff_fffc;

impl Parser for Iscsi {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        let &[_, _, _, _, words, high, middle, low, ..] = bytes else {
            return Verdict::NeedMore(8);
        };
        let data = u64::from(u32::from_be_bytes([0, high, middle, low]));
        let additional = u64::from(words) * WORD_BYTES;
        Verdict::message(HEADER_BYTES as u64 + additional + data.next_multiple_of(WORD_BYTES))
    }

    /// A basic header for data that needs no padding.
    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        if body_len > MOST_DATA_BYTES {
            let max = MOST_DATA_BYTES;
            return Err(FrameError::BodyTooLong { body_len, max });
        }
        if !body_len.is_multiple_of(WORD_BYTES) {
            return Err(FrameError::NotRepresentable { body_len });
        }
        let mut header = Header::zeroed(HEADER_BYTES).ok_or(FrameError::NoHeader)?;
        header[4..8].copy_from_slice(&body_len.to_be_bytes()[4..]);
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::quick;

    #[test]
    fn all_parts_count_and_data_is_padded() {
        let parse = |words, data: u8| Iscsi.parse(&[1, 0x80, 0, 0, words, 0, 0, data]);
        assert_eq!(parse(0, 0), Verdict::message(48));
        assert_eq!(parse(0, 1), Verdict::message(52));
        assert_eq!(parse(0, 4), Verdict::message(52));
        assert_eq!(parse(255, 5), Verdict::message(48 + 1020 + 8));
        assert_eq!(
            Iscsi.parse(&[0, 0, 0, 0, 255, 255, 255, 255]),
            Verdict::message(48 + 1020 + (1 << 24))
        );
        assert_eq!(Iscsi.parse(&[0; 7]), Verdict::NeedMore(8));
    }

    #[test]
    fn headers_for_whole_words() {
        let header = Iscsi.header_for(0x1_0204).expect("it fits");
        assert_eq!(header.len(), 48);
        assert_eq!(Iscsi.parse(&header), Verdict::message(48 + 0x1_0204));
        assert_eq!(
            Iscsi.header_for(5),
            Err(FrameError::NotRepresentable { body_len: 5 })
        );
        assert!(Iscsi.header_for(1 << 24).is_err());
    }

    #[test]
    fn the_quick_form_says_what_the_function_says() {
        let framing = framing();
        quick::check(
            &framing,
            &[
                (*b"\x01\x80\0\0\0\0\0\0", 48),
                (*b"\x01\x80\0\0\x02\0\x01\x01", 48 + 8 + 260),
                (*b"....\xff\xff\xff\xff", 48 + 1020 + (1 << 24)),
            ],
        );
    }
}
