//! A number as it is run: pieces of the message, what is done with them, and a constant.

use std::iter;

use crate::recognise::field::{Order, fields};
use crate::recognise::number::{Bits, LOW, Number};
use crate::recognise::round::Round;
use crate::recognise::word::Word;

/// Pieces of the message, and a constant.
#[derive(Clone, Debug)]
pub(crate) struct Sum {
    /// The first one by itself: most have no other.
    first: Piece,
    more: Vec<Piece>,
    bias: u64,
}

/// Some bits, and what is done with them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    word: Word,
    /// They are of the number of bytes that are there, and not of the message.
    is_of_len: bool,
    then: Vec<Round>,
}

/// Most pieces of one sum: as many as there are bytes in a word.
const MAX_PIECES: usize = 8;

impl Sum {
    /// Nothing, if it takes more pieces than is worth it.
    pub(super) fn new(number: &Number) -> Option<Self> {
        let mut pieces = Vec::new();
        for term in &number.terms {
            let mut parts = pieces_of(&term.bits)?;
            match &mut parts[..] {
                [piece] => piece.then.clone_from(&term.then),
                _ if term.is_plain() => {}
                _ => return None,
            }
            pieces.append(&mut parts);
        }
        if pieces.len() > MAX_PIECES {
            return None;
        }
        let mut pieces = pieces.into_iter();
        Some(Self {
            first: pieces.next().unwrap_or_else(Piece::nothing),
            more: pieces.collect(),
            bias: number.bias,
        })
    }

    /// If it is a single piece of the message.
    pub(crate) fn single(number: &Number) -> Option<Self> {
        Self::new(number).filter(|sum| sum.as_word().is_some() && !number.half)
    }

    /// The piece of the message and the constant, if it is no more than these.
    pub(super) fn as_word(&self) -> Option<(Word, u64)> {
        let piece = &self.first;
        let is_word = self.more.is_empty() && piece.then.is_empty() && !piece.is_of_len;
        is_word.then_some((piece.word, self.bias))
    }

    /// The pieces and what is done with them, if they are all of the message.
    pub(super) fn words(&self) -> Option<Vec<(Word, &[Round])>> {
        if self.as_constant().is_some() {
            return Some(Vec::new());
        }
        let pieces = iter::once(&self.first).chain(&self.more);
        pieces
            .map(|piece| (!piece.is_of_len).then_some((piece.word, &piece.then[..])))
            .collect()
    }

    /// If it is the number of bytes that are there, less pieces of the message: what these can be.
    pub(super) fn most_off_len(&self) -> Option<u64> {
        let pieces = || iter::once(&self.first).chain(&self.more);
        let len = |piece: &&Piece| piece.is_of_len;
        let is_off = |piece: &Piece| piece.then == [Round::new(u64::MAX, 0)];
        let [len_piece] = pieces().filter(len).collect::<Vec<_>>()[..] else {
            return None;
        };
        let others = || pieces().filter(|piece| !piece.is_of_len);
        let is_whole = len_piece.then.is_empty() && len_piece.word.of_number(LOW) == LOW;
        (is_whole && others().all(is_off)).then(|| others().map(|piece| piece.word.mask()).sum())
    }

    pub(super) const fn bias(&self) -> u64 {
        self.bias
    }

    pub(super) fn as_constant(&self) -> Option<u64> {
        (self.more.is_empty() && self.first == Piece::nothing()).then_some(self.bias)
    }

    /// The same as [`of`](Self::of), if it is a single piece of which all 8 bytes are there.
    #[inline(always)]
    pub(crate) fn of_word(&self, bytes: &[u8]) -> Option<u64> {
        Some(self.first.word.of(bytes)?.wrapping_add(self.bias))
    }

    /// The same as [`of`](Self::of), if all 8 bytes of each piece are there.
    #[inline(always)]
    pub(super) fn of_words(&self, bytes: &[u8]) -> Option<u64> {
        let mut sum = self.first.of_word(bytes)?.wrapping_add(self.bias);
        for piece in &self.more {
            sum = sum.wrapping_add(piece.of_word(bytes)?);
        }
        Some(sum)
    }

    /// The sum; bytes that are not there are 0 in it.
    #[inline]
    pub(crate) fn of(&self, bytes: &[u8]) -> u64 {
        let mut sum = self.first.of(bytes).wrapping_add(self.bias);
        for piece in &self.more {
            sum = sum.wrapping_add(piece.of(bytes));
        }
        sum
    }
}

/// The pieces that a row of bits is made of.
fn pieces_of(bits: &Bits) -> Option<Vec<Piece>> {
    let pieces = fields(bits)?.into_iter().map(|field| Piece {
        word: Word::new(&field),
        is_of_len: field.order == Order::Len,
        then: Vec::new(),
    });
    Some(pieces.collect())
}

impl Piece {
    /// A piece that is always 0.
    const fn nothing() -> Self {
        Self {
            word: Word::nothing(),
            is_of_len: true,
            then: Vec::new(),
        }
    }

    #[inline(always)]
    fn of(&self, bytes: &[u8]) -> u64 {
        self.then(if self.is_of_len {
            self.of_len(bytes)
        } else {
            self.word.of_all(bytes)
        })
    }

    #[inline(always)]
    fn of_word(&self, bytes: &[u8]) -> Option<u64> {
        Some(self.then(if self.is_of_len {
            self.of_len(bytes)
        } else {
            self.word.of(bytes)?
        }))
    }

    #[inline(always)]
    fn of_len(&self, bytes: &[u8]) -> u64 {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.word.of_number(len.into())
    }

    #[inline(always)]
    fn then(&self, value: u64) -> u64 {
        self.then.iter().fold(value, |value, round| round.of(value))
    }
}
