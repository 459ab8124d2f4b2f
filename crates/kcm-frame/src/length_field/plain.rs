//! A length field without arithmetic but a shift and a bias: nearly all of them.

use std::hint::cold_path;

use super::Endian;

/// Beyond all bytes.
pub(super) const NOWHERE: usize = usize::MAX;

/// A plain length field: of 8 bytes that begin with it, a byte swap, a shift, a comparison and an addition
/// make the message's length. From [`LengthField::plain`](super::LengthField::plain).
///
/// It looks at 8 bytes, also if the field has fewer. Near the end of the bytes, and where this gives no
/// length, the field itself is to be asked.
///
/// ```
/// use kcm_frame::{Endian, LengthField};
/// let field = LengthField::new(1, 2, Endian::Big)?.bias(3);
/// let plain = field.plain(1000).expect("no arithmetic");
/// assert_eq!(plain.offset(), 1);
/// assert_eq!(plain.length(*b"\0\x05hello "), Some(8));
/// // Longer than what was asked for: the field itself says what that means.
/// assert_eq!(plain.length(*b"\xff\xff......"), None);
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainField {
    pub(super) offset: usize,
    endian: Endian,
    /// Bits by which the field is narrower than 64; and the same with the shift: both are one shift.
    unused_bits: u32,
    spare_bits: u32,
    /// The least number of bytes, before the bias, that gives a length.
    least: u64,
    /// How far above `least` such numbers go. Both make one comparison of what would be three: below the
    /// header's end, below zero, too long.
    span: u64,
    bias: i64,
}

impl PlainField {
    /// Where it begins.
    #[must_use]
    pub const fn offset(&self) -> usize {
        self.offset
    }

    /// The message's length in bytes, above zero. `None`: there is more to say of it than a length.
    #[inline(always)]
    #[must_use]
    pub const fn length(&self, word: [u8; 8]) -> Option<u64> {
        self.biased(match self.endian {
            Endian::Big => u64::from_be_bytes(word) >> self.spare_bits,
            Endian::Little => {
                // Fewer protocols: their turn is a jump, the others' none.
                cold_path();
                u64::from_le_bytes(word) << self.unused_bits >> self.spare_bits
            }
        })
    }

    /// The length for a number of bytes to which the bias is still to be added.
    #[inline(always)]
    pub(super) const fn biased(&self, unbiased: u64) -> Option<u64> {
        if unbiased.wrapping_sub(self.least) > self.span {
            return None;
        }
        // Does not wrap: that is what the comparison was about.
        Some(unbiased.wrapping_add_signed(self.bias))
    }

    pub(super) const fn nowhere() -> Self {
        Self::new(NOWHERE, Endian::Big, 64, 0)
    }

    /// A field of so many bits, of which no value is a length yet.
    pub(super) const fn new(offset: usize, endian: Endian, bits: u32, shift: u32) -> Self {
        Self {
            offset,
            endian,
            unused_bits: 64 - bits,
            spare_bits: 64 - bits + shift,
            least: 0,
            span: 0,
            bias: 0,
        }
    }

    /// The same, with lengths from `shortest` (of a few bytes) to `longest`.
    pub(super) const fn with_lengths(self, shortest: u64, longest: u64, bias: i64) -> Self {
        // Neither sum overflows: the shortest is small, and the bias has 63 bits.
        let by = bias.unsigned_abs();
        let (least, most) = if bias < 0 {
            (shortest + by, longest.saturating_add(by))
        } else {
            (shortest.saturating_sub(by), longest - by)
        };
        let span = most - least;
        Self {
            least,
            span,
            bias,
            ..self
        }
    }

    /// The same, with no length above `max_len`; `None` if that leaves none, or the field is not plain.
    pub(super) fn up_to(self, max_len: u64) -> Option<Self> {
        let shortest = self.least.checked_add_signed(self.bias)?;
        let span = self.span.min(max_len.checked_sub(shortest)?);
        (self.offset != NOWHERE).then_some(Self { span, ..self })
    }
}
