//! A body length written as a varint, as in protobuf streams and MQTT.
//!
//! Such a header has no fixed length, so a message can be told only when the
//! last byte of the number is there; and a peer could write a number without
//! end, so its length has a bound of its own.

use crate::errno::EPROTO;
use crate::length_field::MAX_FIELD_OFFSET;
use crate::{FrameError, Header, Verdict};

/// Bytes that a 64-bit number can take: nine groups of seven bits, and one bit.
pub(crate) const MAX_VARINT_BYTES: usize = 10;

/// Bytes of a varint that hold seven bits of a 64-bit number each; a tenth has
/// room for one bit only.
const WHOLE_GROUPS: usize = 9;

/// A little-endian base 128 number (LEB128) that counts the bytes after it.
/// Text form: `varint:offset=1,max=4`.
///
/// length = offset + bytes of the number + number
///
/// Longer encodings than needed (`80 00` for 0) are read; [`header_for`] writes
/// the shortest.
///
/// ```
/// use kcm_frame::{Varint, Verdict};
/// // MQTT: a type byte, then up to four bytes of remaining length.
/// let varint = Varint::new(1, 4)?;
/// assert_eq!(varint.parse(&[0x30, 0xac, 0x02]), Verdict::message(1 + 2 + 300));
/// assert_eq!(varint.parse(&[0x30, 0xac]), Verdict::NeedMore(3));
/// assert_eq!(&varint.header_for(300)?[..], [0, 0xac, 0x02]);
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
///
/// [`header_for`]: Varint::header_for
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Varint {
    pub(crate) offset: usize,
    pub(crate) max_bytes: usize,
}

impl Varint {
    /// A number of at most `max_bytes` bytes, `offset` bytes after the message's
    /// first one.
    ///
    /// # Errors
    ///
    /// [`FrameError::VarintWidth`] unless `max_bytes` is 1 to 10;
    /// [`FrameError::FieldOffset`] if `offset` is above [`MAX_FIELD_OFFSET`].
    pub const fn new(offset: usize, max_bytes: usize) -> Result<Self, FrameError> {
        if max_bytes == 0 || max_bytes > MAX_VARINT_BYTES {
            return Err(FrameError::VarintWidth { max_bytes });
        }
        if offset > MAX_FIELD_OFFSET {
            return Err(FrameError::FieldOffset { offset });
        }
        Ok(Self { offset, max_bytes })
    }

    /// Reads the length of the message that begins at `bytes`.
    ///
    /// Gives `NeedMore` of one byte more than is there while the number goes on,
    /// and `Error(EPROTO)` if it goes on beyond its greatest width or the length
    /// is beyond 64 bits.
    #[inline]
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Verdict {
        let Some(tail) = bytes.get(self.offset..) else {
            return Verdict::NeedMore(self.offset + 1);
        };
        let mut value = 0_u64;
        for (index, &byte) in tail.iter().take(self.max_bytes).enumerate() {
            let group = u64::from(byte & 0x7f);
            if index == WHOLE_GROUPS && group > 1 {
                return Verdict::Error(EPROTO);
            }
            value |= group << (7 * index);
            if byte & 0x80 == 0 {
                let header = (self.offset + index + 1) as u64;
                return match value.checked_add(header) {
                    Some(len) => Verdict::message(len),
                    None => Verdict::Error(EPROTO),
                };
            }
        }
        if tail.len() < self.max_bytes {
            Verdict::NeedMore(bytes.len() + 1)
        } else {
            Verdict::Error(EPROTO)
        }
    }

    /// The header that goes before a body of `body_len` bytes: `offset` zero
    /// bytes and the shortest encoding of the number.
    ///
    /// # Errors
    ///
    /// [`FrameError::BodyTooLong`] if the number takes more than `max_bytes` or
    /// the message's length is beyond 64 bits; [`FrameError::HeaderTooLong`] if
    /// the header is above [`MAX_HEADER`](crate::MAX_HEADER).
    pub fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        let groups = body_len.max(1).ilog2() as usize / 7 + 1;
        let len = self.offset + groups;
        if groups > self.max_bytes || body_len.checked_add(len as u64).is_none() {
            return Err(FrameError::BodyTooLong {
                body_len,
                max: self.longest_body(),
            });
        }
        let mut header =
            Header::zeroed(len).ok_or(FrameError::HeaderTooLong { len: len as u64 })?;
        for (index, place) in header[self.offset..].iter_mut().enumerate() {
            let [group, ..] = (body_len >> (7 * index)).to_le_bytes();
            let more = if index + 1 < groups { 0x80 } else { 0 };
            *place = group & 0x7f | more;
        }
        Ok(header)
    }

    /// The longest body that the number can speak of, for a message to the user.
    fn longest_body(&self) -> u64 {
        let header = (self.offset + self.max_bytes) as u64;
        if self.max_bytes > WHOLE_GROUPS {
            u64::MAX - header
        } else {
            (1 << (7 * self.max_bytes)) - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn varint(offset: usize, max_bytes: usize) -> Varint {
        Varint::new(offset, max_bytes).expect("a good specification")
    }

    #[test]
    fn refuses_widths_and_offsets_out_of_range() {
        assert_eq!(
            Varint::new(0, 0),
            Err(FrameError::VarintWidth { max_bytes: 0 })
        );
        assert_eq!(
            Varint::new(0, 11),
            Err(FrameError::VarintWidth { max_bytes: 11 })
        );
        assert_eq!(
            Varint::new(65_536, 1),
            Err(FrameError::FieldOffset { offset: 65_536 })
        );
        assert!(Varint::new(65_535, 10).is_ok());
    }

    #[test]
    fn asks_for_one_byte_more_each_time() {
        let v = varint(2, 3);
        assert_eq!(v.parse(&[]), Verdict::NeedMore(3));
        assert_eq!(v.parse(&[0]), Verdict::NeedMore(3));
        assert_eq!(v.parse(&[0, 0]), Verdict::NeedMore(3));
        assert_eq!(v.parse(&[0, 0, 0x80]), Verdict::NeedMore(4));
        assert_eq!(v.parse(&[0, 0, 0x80, 0x80]), Verdict::NeedMore(5));
        assert_eq!(v.parse(&[0, 0, 0x80, 0x80, 0x80]), Verdict::Error(EPROTO));
        assert_eq!(
            v.parse(&[0, 0, 0x80, 0x80, 0x01]),
            Verdict::message(5 + (1 << 14))
        );
    }

    #[test]
    fn reads_longer_encodings_than_needed() {
        assert_eq!(
            varint(0, 10).parse(&[0x80, 0x80, 0x00]),
            Verdict::message(3)
        );
    }

    #[test]
    fn ends_at_64_bits() {
        let v = varint(0, 10);
        let mut bytes = [0xff; 10];
        bytes[9] = 0x02;
        assert_eq!(v.parse(&bytes), Verdict::Error(EPROTO));
        // The number fits, the sum with its ten bytes does not.
        bytes[9] = 0x01;
        assert_eq!(v.parse(&bytes), Verdict::Error(EPROTO));
        bytes[0] = 0xf5;
        assert_eq!(v.parse(&bytes), Verdict::message(u64::MAX));
        assert_eq!(
            v.header_for(u64::MAX - 10).map(|h| h.to_vec()),
            Ok(bytes.to_vec())
        );
        let max = u64::MAX - 10;
        let body_len = u64::MAX - 9;
        assert_eq!(
            v.header_for(body_len),
            Err(FrameError::BodyTooLong { body_len, max })
        );
    }

    #[test]
    fn writes_the_shortest_encoding() {
        let v = varint(1, 4);
        let header = |body| v.header_for(body).map(|h| h.to_vec());
        assert_eq!(header(0), Ok(vec![0, 0]));
        assert_eq!(header(127), Ok(vec![0, 127]));
        assert_eq!(header(128), Ok(vec![0, 0x80, 1]));
        assert_eq!(header((1 << 28) - 1), Ok(vec![0, 0xff, 0xff, 0xff, 0x7f]));
        let (body_len, max) = (1 << 28, (1 << 28) - 1);
        assert_eq!(
            header(body_len),
            Err(FrameError::BodyTooLong { body_len, max })
        );
    }

    #[test]
    fn makes_no_header_that_does_not_fit() {
        assert_eq!(varint(127, 1).header_for(3).map(|h| h.len()), Ok(128));
        assert_eq!(
            varint(128, 1).header_for(3),
            Err(FrameError::HeaderTooLong { len: 129 })
        );
    }
}
