//! Bits of 8 bytes of the message, moved to where they count.
//!
//! `(word & mask) >> right << left` is what a field means; a turn and a mask behind it is the same,
//! and one step less for the next message's address to wait for.

use std::ops::Range;

use kcm_frame::Bits;

use crate::alu::low;
use crate::recognise::field::{Field, Order};

/// Bits of the 8 bytes from `offset` on, turned to the left, then masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(super) offset: usize,
    is_big: bool,
    turn: u32,
    mask: u64,
}

/// No byte: joined with others, it is these.
pub(super) const NO_BYTES: Range<usize> = Range {
    start: usize::MAX,
    end: 0,
};

impl Word {
    /// The field at the front of the word that begins with it. (Of the length, it is the bits of that
    /// as a word.)
    pub(super) const fn new(field: &Field) -> Self {
        let is_big = matches!(field.order, Order::Big);
        // In network order, a field that the word begins with stands at its top.
        let unused = if is_big { 64 - 8 * field.width } else { 0 };
        Self {
            offset: field.offset,
            is_big,
            turn: (field.left + 128 - field.right - unused) % 64,
            mask: (field.mask >> field.right) << field.left,
        }
    }

    /// A word of which nothing is left.
    pub(super) const fn nothing() -> Self {
        Self {
            offset: 0,
            is_big: false,
            turn: 0,
            mask: 0,
        }
    }

    /// The bits, or nothing if not all of the 8 bytes are there.
    #[inline(always)]
    pub(crate) fn of(&self, bytes: &[u8]) -> Option<u64> {
        word(bytes, self.offset).map(|word| self.of_word(word))
    }

    /// The bits, those of bytes that are not there being 0.
    #[inline(always)]
    pub(super) fn of_all(&self, bytes: &[u8]) -> u64 {
        let word = match word(bytes, self.offset) {
            Some(word) => word,
            None => last_bytes(bytes, self.offset),
        };
        self.of_word(word)
    }

    #[inline(always)]
    fn of_word(&self, word: [u8; 8]) -> u64 {
        let word = if self.is_big {
            u64::from_be_bytes(word)
        } else {
            u64::from_le_bytes(word)
        };
        self.of_number(word)
    }

    #[inline(always)]
    pub(super) const fn of_number(&self, word: u64) -> u64 {
        word.rotate_left(self.turn) & self.mask
    }

    /// What is done with the 8 bytes.
    pub(super) const fn bits(&self) -> Bits {
        Bits {
            turn: self.turn,
            mask: self.mask,
        }
    }

    /// If it is a single bit: the same at this place.
    pub(super) const fn as_bit(&self, place: u32) -> Option<Self> {
        if !self.mask.is_power_of_two() {
            return None;
        }
        Some(Self {
            turn: (self.turn + 64 - self.mask.trailing_zeros() + place) % 64,
            mask: 1 << place,
            ..*self
        })
    }

    /// The order in which the 8 bytes are read.
    pub(super) const fn is_big(&self) -> bool {
        self.is_big
    }

    /// The same bits of 8 bytes that are read in this order, if they are moved as a whole then too.
    pub(super) fn in_order(&self, is_big: bool) -> Option<Self> {
        let bytes = self.bytes();
        if is_big == self.is_big || self.mask == 0 {
            return Some(Self { is_big, ..*self });
        }
        // A single byte, which is as far from the other end as it was from the one.
        let index = low((bytes.start.checked_sub(self.offset)?) as u64);
        let by = if is_big {
            128 + 16 * index - 56
        } else {
            56 + 128 - 16 * index
        };
        (bytes.len() == 1).then_some(Self {
            is_big,
            turn: (self.turn + by) % 64,
            ..*self
        })
    }

    /// The same bits in the other order, not moved at all, and what a number of them is then.
    pub(super) fn exchanged(&self, value: u64) -> Option<(Self, u64)> {
        if value & !self.mask != 0 {
            return None;
        }
        let other = |value: u64| value.rotate_right(self.turn).swap_bytes();
        let word = Self {
            offset: self.offset,
            is_big: !self.is_big,
            turn: 0,
            mask: other(self.mask),
        };
        Some((word, other(value)))
    }

    /// A number of these bits as it lies in the 8 bytes, read in little-endian order.
    pub(super) const fn as_it_lies(&self, value: u64) -> u64 {
        let value = value.rotate_right(self.turn);
        if self.is_big {
            value.swap_bytes()
        } else {
            value
        }
    }

    /// The bytes of the message that it looks at.
    pub(super) const fn bytes(&self) -> Range<usize> {
        let bits = self.as_it_lies(self.mask);
        if bits == 0 {
            return NO_BYTES;
        }
        let (before, behind) = (bits.trailing_zeros() / 8, bits.leading_zeros() / 8);
        self.offset + before as usize..self.offset + 8 - behind as usize
    }

    /// The same bits in the 8 bytes from another offset on, where all of them are too.
    pub(super) fn moved_to(&self, offset: usize) -> Self {
        // (Modulo 64 it does not matter that these may be below zero.)
        let bits = |offset: usize| low(offset as u64).wrapping_mul(8);
        let by = bits(self.offset).wrapping_sub(bits(offset));
        let turn = if self.is_big {
            self.turn.wrapping_add(by)
        } else {
            self.turn.wrapping_sub(by)
        };
        Self {
            offset,
            turn: turn % 64,
            ..*self
        }
    }

    /// All bits there can be.
    pub(super) const fn mask(&self) -> u64 {
        self.mask
    }
}

/// 8 bytes of the message.
#[inline(always)]
pub(super) fn word(bytes: &[u8], offset: usize) -> Option<[u8; 8]> {
    bytes.get(offset..)?.first_chunk().copied()
}

/// A word of which not all bytes are there; those that count are.
#[cold]
#[inline(never)]
fn last_bytes(bytes: &[u8], offset: usize) -> [u8; 8] {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.get(offset..).unwrap_or(&[])) {
        *to = *from;
    }
    word
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn says_what_the_field_means(
            bytes in any::<[u8; 12]>(),
            (is_big, offset, width) in (any::<bool>(), 0..5_usize, 1..9_u32),
            (mask, right, left) in (any::<u64>(), 0..64_u32, 0..64_u32),
        ) {
            let order = if is_big { Order::Big } else { Order::Little };
            let mask = mask & (u64::MAX >> (64 - 8 * width));
            let field = Field { order, offset, width, mask, right, left };
            let bytes_of_it = bytes.iter().skip(offset).take(width as usize);
            let push = |value: u64, byte: &u8| value << 8 | u64::from(*byte);
            let number = if is_big {
                bytes_of_it.fold(0, push)
            } else {
                bytes_of_it.rev().fold(0, push)
            };
            let word = Word::new(&field);
            let expected = ((number & mask) >> right) << left;
            prop_assert_eq!(word.of_all(&bytes), expected);
            if let Some(value) = word.of(&bytes) {
                prop_assert_eq!(value, expected);
                let lies = u64::from_le_bytes(*bytes[offset..].first_chunk().expect("8 bytes"));
                prop_assert_eq!(lies & word.as_it_lies(word.mask()), word.as_it_lies(value));
            }
            let bit = Word { mask: word.mask() & word.mask().wrapping_neg(), ..word };
            if let (Some(value), Some(moved)) = (bit.of(&bytes), bit.as_bit(left)) {
                prop_assert_eq!(moved.of(&bytes), Some(u64::from(value != 0) << left));
            }
            if let (Some(value), Some(other)) = (word.of(&bytes), word.in_order(!is_big)) {
                prop_assert_eq!((other.is_big(), other.of(&bytes)), (!is_big, Some(value)));
            }
            if let (Some(value), true) = (word.of(&bytes), word.mask() != 0) {
                let (other, exchanged) = word.exchanged(value).expect("one of its numbers");
                prop_assert_eq!((other.is_big(), other.of(&bytes)), (!is_big, Some(exchanged)));
                prop_assert_eq!(word.exchanged(!value), None);
            }
            // From wherever its bytes are all there, it is the same.
            let its = word.bytes();
            for other in 0..5 {
                if other <= its.start && its.end <= other + 8 && word.mask() != 0 {
                    prop_assert_eq!(word.moved_to(other).of(&bytes), Some(expected));
                }
            }
        }
    }
}
