//! A length written as an integer of fixed width in the header.
//!
//! This is the framing of nearly every binary protocol, and the reason why it
//! is a value and not a closure: the address of the next message depends on
//! this parse, so its time is added to every message, and a known shape costs a
//! load, a byte swap and an addition. It also runs backwards, which makes the
//! header of a message to be sent.

mod plain;

use crate::errno::EPROTO;
use crate::{Fault, FrameError, Header, Verdict};
use plain::NOWHERE;
pub use plain::PlainField;

/// Greatest offset of a length field in bytes: it lies in the first 64 KiB,
/// where [`DEFAULT_MAX_HEADER_BYTES`](crate::DEFAULT_MAX_HEADER_BYTES) ends too.
pub const MAX_FIELD_OFFSET: usize = 0xffff;

/// Which end of an integer comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endian {
    /// Most significant byte first, as in network byte order.
    Big,
    /// Least significant byte first.
    Little,
}

/// Where the length field lies and how a message's length follows from it:
///
/// length = ((field & mask) >> shift) * scale + bias
///
/// in bytes, header included. A length below the end of the field itself, or
/// outside of 64 bits, is an `EPROTO`. (A kernel's parser program calculates otherwise:
/// [`in_32_bits`](LengthField::in_32_bits).)
///
/// ```
/// use kcm_frame::{Endian, LengthField, Verdict};
/// // PostgreSQL: a type byte, then a length that counts itself but not the type.
/// let field = LengthField::new(1, 4, Endian::Big)?.bias(1);
/// assert_eq!(field.parse(b"Q\0\0\0\x09body"), Verdict::message(10));
/// assert_eq!(field.parse(b"Q\0\0"), Verdict::NeedMore(5));
/// assert_eq!(&field.header_for(5)?[..], b"\0\0\0\0\x09");
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)] // What each message asks for stands together.
pub struct LengthField {
    /// What follows from the other fields, for the usual way; each setter makes it anew. Of a field
    /// that is not plain it lies beyond all bytes, so that one comparison tells both.
    plain: PlainField,
    pub(crate) width: usize,
    pub(crate) endian: Endian,
    pub(crate) offset: usize,
    /// `offset + width`: bytes that must be there, and the shortest message.
    end: usize,
    pub(crate) bias: i64,
    pub(crate) mask: u64,
    pub(crate) shift: u32,
    pub(crate) scale: u64,
    /// Calculated as a kernel's program would.
    pub(crate) in_32_bits: bool,
}

impl LengthField {
    /// An integer of `width` bytes, `offset` bytes after the message's first
    /// one, that is the message's length as it stands.
    ///
    /// # Errors
    ///
    /// [`FrameError::FieldWidth`] unless `width` is 1 to 8;
    /// [`FrameError::FieldOffset`] if `offset` is above [`MAX_FIELD_OFFSET`].
    pub const fn new(offset: usize, width: usize, endian: Endian) -> Result<Self, FrameError> {
        if width == 0 || width > 8 {
            return Err(FrameError::FieldWidth { width });
        }
        if offset > MAX_FIELD_OFFSET {
            return Err(FrameError::FieldOffset { offset });
        }
        let field = Self {
            plain: PlainField::nowhere(),
            // One byte has no order; equal fields shall compare as equal.
            endian: if width == 1 { Endian::Big } else { endian },
            width,
            offset,
            end: offset + width,
            bias: 0,
            mask: full_mask(width),
            shift: 0,
            scale: 1,
            in_32_bits: false,
        };
        Ok(field.reshaped())
    }

    /// Which bits of the field count. Bits beyond the field's width are ignored;
    /// without any bit the length is always the bias.
    #[must_use]
    pub const fn mask(mut self, mask: u64) -> Self {
        self.mask = mask & full_mask(self.width);
        self.reshaped()
    }

    /// How many bits the masked field is moved to the right. From 64 on, nothing
    /// is left of it.
    #[must_use]
    pub const fn shift(mut self, shift: u32) -> Self {
        self.shift = if shift > 64 { 64 } else { shift };
        self.reshaped()
    }

    /// How many bytes one unit of the field means.
    #[must_use]
    pub const fn scale(mut self, scale: u64) -> Self {
        self.scale = scale;
        self.reshaped()
    }

    /// How many bytes the message is longer than the field says (below zero:
    /// shorter), as when the length does not count the header.
    #[must_use]
    pub const fn bias(mut self, bias: i64) -> Self {
        self.bias = bias;
        self.reshaped()
    }

    /// The length is what a parser program of the kernel's KCM calculates, which has 32 bits with a
    /// sign and takes what overflows as it comes: the sum's low half, of which above zero means a
    /// length (also one below the end of the field), zero "show me more", and below zero an errno.
    ///
    /// ```
    /// use kcm_frame::{Endian, LengthField, Verdict};
    /// let field = LengthField::new(0, 4, Endian::Big)?.bias(4).in_32_bits();
    /// assert_eq!(field.parse(&[0, 0, 0, 9]), Verdict::message(13));
    /// assert_eq!(field.parse(&[0xff, 0xff, 0xff, 0xff]), Verdict::message(3));
    /// assert_eq!(field.parse(&[0xff, 0xff, 0xff, 0xfb]), Verdict::Error(1));
    /// # Ok::<(), kcm_frame::FrameError>(())
    /// ```
    #[must_use]
    pub const fn in_32_bits(mut self) -> Self {
        self.in_32_bits = true;
        self.reshaped()
    }

    /// Reads the length of the message that begins at `bytes`.
    ///
    /// Gives `NeedMore(offset + width)` if the field is not there as a whole,
    /// and `Error(EPROTO)` if the length is below `offset + width` or overflows.
    #[inline(always)]
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Verdict {
        // One load for all widths, and branches that always go the same way.
        let word = bytes.get(self.plain.offset..).and_then(<[u8]>::first_chunk);
        match word.and_then(|word| self.plain.length(*word)) {
            Some(len) => Verdict::message(len),
            None => self.parse_general(bytes),
        }
    }

    /// The length, if the field is a plain one that is there as a whole; also near the end of the bytes. If
    /// it gives none, [`parse`](Self::parse) says what that means.
    #[inline(always)]
    pub(crate) fn plain_length(&self, bytes: &[u8]) -> Option<u64> {
        let tail = bytes.get(self.plain.offset..)?;
        let word = match tail.first_chunk() {
            Some(word) => *word,
            None if tail.len() >= self.width => short_word(tail)?,
            None => return None,
        };
        self.plain.length(word)
    }

    /// The field by itself, for who reads the lengths of many messages: those of at most `max_len` bytes.
    /// `None` if there is more to it than a shift and a bias.
    #[must_use]
    pub fn plain(&self, max_len: u64) -> Option<PlainField> {
        self.plain.up_to(max_len)
    }

    /// The header that goes before a body of `body_len` bytes: all zero but the
    /// field. It is as long as the field's end, or as the bias where that is
    /// more and counts single bytes (`u24be+9` has 9 bytes of header).
    ///
    /// # Errors
    ///
    /// [`FrameError::BodyTooLong`] if the field has no room for the length,
    /// [`FrameError::NotRepresentable`] if it cannot say this very length, and
    /// [`FrameError::HeaderTooLong`] if the header is above
    /// [`MAX_HEADER`](crate::MAX_HEADER).
    pub fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        let header_len = self.header_len();
        let mut header = usize::try_from(header_len)
            .ok()
            .and_then(Header::zeroed)
            .ok_or(FrameError::HeaderTooLong { len: header_len })?;
        let field = self.field_for(header_len, body_len)?;
        let place = &mut header[self.offset..self.end];
        match self.endian {
            Endian::Big => place.copy_from_slice(&field.to_be_bytes()[8 - self.width..]),
            Endian::Little => place.copy_from_slice(&field.to_le_bytes()[..self.width]),
        }
        Ok(header)
    }

    /// What is wrong with bytes that `parse` has called an error.
    #[cold]
    pub(crate) fn fault_in(&self, bytes: &[u8]) -> Fault {
        if let (true, Verdict::Error(errno)) = (self.in_32_bits, self.parse(bytes)) {
            return Fault::Parser { errno };
        }
        let value = bytes
            .get(self.offset..)
            .and_then(|tail| self.load(tail))
            .unwrap_or(0);
        // What is beyond 64 bits before the bias is added does not come back by it.
        let len = match self.extract(value).checked_mul(self.scale) {
            Some(unbiased) if self.bias < 0 => unbiased.saturating_sub(self.bias.unsigned_abs()),
            Some(unbiased) => unbiased.saturating_add(self.bias.unsigned_abs()),
            None => u64::MAX,
        };
        Fault::BadLength {
            len,
            least: self.end as u64,
        }
    }

    /// All masks and scales, and the last bytes of a buffer, at the price of more work.
    #[inline(never)]
    fn parse_general(&self, bytes: &[u8]) -> Verdict {
        let tail = bytes.get(self.offset..);
        let Some(value) = tail.and_then(|tail| self.load(tail)) else {
            return Verdict::NeedMore(self.end);
        };
        match self.extract(value).checked_mul(self.scale) {
            Some(unbiased) => self.conclude(unbiased, bytes.len()),
            None if self.in_32_bits => {
                let unbiased = self.extract(value).wrapping_mul(self.scale);
                self.out_of_range(unbiased, bytes.len())
            }
            None => Verdict::Error(EPROTO),
        }
    }

    /// The verdict for a number of bytes to which the bias is still to be added; `have` are there.
    fn conclude(&self, unbiased: u64, have: usize) -> Verdict {
        match self.plain.biased(unbiased) {
            Some(len) => Verdict::message(len),
            None => self.out_of_range(unbiased, have),
        }
    }

    /// The same for a number that gives no length, or none that a native framing gives at once.
    #[cold]
    fn out_of_range(&self, unbiased: u64, have: usize) -> Verdict {
        if !self.in_32_bits {
            return Verdict::Error(EPROTO);
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the low half is what counts"
        )]
        let sum = unbiased.wrapping_add_signed(self.bias) as u32;
        Verdict::from_kernel(sum.cast_signed(), have)
    }

    /// The field as it stands at the front of `tail`.
    fn load(&self, tail: &[u8]) -> Option<u64> {
        if let Some(&bytes) = tail.first_chunk() {
            return Some(match self.endian {
                Endian::Big => u64::from_be_bytes(bytes) >> (64 - 8 * self.width),
                Endian::Little => u64::from_le_bytes(bytes) & full_mask(self.width),
            });
        }
        // Near the end of the bytes, where eight cannot be read at once.
        let field = tail.get(..self.width)?;
        let push = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        Some(match self.endian {
            Endian::Big => field.iter().fold(0, push),
            Endian::Little => field.iter().rev().fold(0, push),
        })
    }

    /// The part of the field that counts.
    fn extract(&self, value: u64) -> u64 {
        (value & self.mask).checked_shr(self.shift).unwrap_or(0)
    }

    /// Bytes of the header that a sender writes.
    fn header_len(&self) -> u64 {
        let end = self.end as u64;
        match u64::try_from(self.bias) {
            Ok(bias) if self.scale == 1 => end.max(bias),
            _ => end,
        }
    }

    /// The inverse of the formula: what the field holds for such a message.
    fn field_for(&self, header_len: u64, body_len: u64) -> Result<u64, FrameError> {
        let too_long = || match self.longest_body(header_len) {
            // With a bias so far below zero, even no body at all is too long.
            max if body_len <= max => FrameError::NotRepresentable { body_len },
            max => FrameError::BodyTooLong { body_len, max },
        };
        let not_representable = FrameError::NotRepresentable { body_len };
        let total = header_len.checked_add(body_len).ok_or_else(too_long)?;
        if self.in_32_bits && total > LONGEST_IN_32_BITS {
            return Err(too_long());
        }
        // 128 bits hold this difference whatever the bias is.
        let scaled = i128::from(total) - i128::from(self.bias);
        let Ok(scaled) = u64::try_from(scaled) else {
            // What is beyond 64 bits before the bias is added does not come back by it.
            return Err(if scaled < 0 {
                not_representable
            } else {
                too_long()
            });
        };
        let scale = self.scale;
        let units = match (scaled.checked_div(scale), scaled.checked_rem(scale)) {
            (Some(units), Some(0)) => units,
            (None, _) if scaled == 0 => 0,
            _ => return Err(not_representable),
        };
        let greatest = self.extract(u64::MAX);
        if units > greatest {
            return Err(too_long());
        }
        // Not above the greatest, so no bit is lost here; with a shift of 64 the
        // greatest is 0 and so is this.
        let field = units.checked_shl(self.shift).unwrap_or(0);
        if field & !self.mask != 0 {
            return Err(not_representable);
        }
        Ok(field)
    }

    /// The longest body that the field can speak of, for a message to the user.
    fn longest_body(&self, header_len: u64) -> u64 {
        let longest = self
            .extract(u64::MAX)
            .saturating_mul(self.scale)
            .saturating_add_signed(self.bias);
        let longest = if self.in_32_bits {
            longest.min(LONGEST_IN_32_BITS)
        } else {
            longest
        };
        longest.saturating_sub(header_len)
    }

    /// Finds the shape and the range again after a change.
    const fn reshaped(mut self) -> Self {
        if self.in_32_bits {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "the low half is what counts"
            )]
            let bias = self.bias as i32;
            self.bias = bias as i64;
        }
        let longest = if self.in_32_bits {
            LONGEST_IN_32_BITS
        } else {
            u64::MAX
        };
        #[expect(clippy::cast_possible_truncation, reason = "the width is 1 to 8")]
        let bits = 8 * self.width as u32;
        let is_plain = self.mask == full_mask(self.width) && self.shift < bits && self.scale == 1;
        let at = if is_plain { self.offset } else { NOWHERE };
        let shift = if is_plain { self.shift } else { 0 };
        self.plain = PlainField::new(at, self.endian, bits, shift).with_lengths(
            self.end as u64,
            longest,
            self.bias,
        );
        self
    }
}

/// What a positive number of 32 bits with a sign can be.
const LONGEST_IN_32_BITS: u64 = i32::MAX as u64;

/// Four to seven bytes with zeros behind them: the last four of them, moved over the first.
#[inline(always)]
fn short_word(bytes: &[u8]) -> Option<[u8; 8]> {
    let first = u64::from(u32::from_le_bytes(*bytes.first_chunk()?));
    let last = u64::from(u32::from_le_bytes(*bytes.last_chunk()?));
    Some((first | last << (8 * (bytes.len() - 4) % 64)).to_le_bytes())
}

/// All bits of a field of 1 to 8 bytes.
pub(crate) const fn full_mask(width: usize) -> u64 {
    u64::MAX >> (64 - 8 * width)
}

#[cfg(test)]
mod tests;
