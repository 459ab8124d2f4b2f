//! A decision as it is run: a few comparisons of fields, then a length that is a sum of fields.
//!
//! What makes it quicker than instructions: nothing is stored between a load from the message and
//! the length that comes of it, and a decision is a branch that the processor foresees, so that the
//! next message can be looked at before this one's decisions are known to be right.
//!
//! Nearly all steps compare some bits with a number, or give a field that is moved and added to. For
//! these there is a [`Quick`] form that takes a third of the instructions. It is left for good at the
//! first step that has none, or near the end of the bytes: the general form goes on from there.

use std::hint::cold_path;

use kcm_frame::{Frame, Verdict};

use crate::alu::{Alu, low};
use crate::recognise::field::{Order, fields};
use crate::recognise::follow::{End, Node, Then};
use crate::recognise::number::{Bits, Change, LOW, Number};

/// A program as decisions.
#[derive(Debug)]
pub(crate) struct Tree {
    /// A step leads only to those before it; it begins at the last one.
    steps: Vec<Step>,
    /// The same steps, where it can be.
    quick: Vec<Quick>,
    pub(super) decisions: usize,
    pub(super) lengths: usize,
}

#[derive(Debug)]
struct Step {
    /// Bytes that must be there; else it goes on at `short`.
    need: usize,
    short: usize,
    then: Run,
}

/// A step that needs 8 bytes from `offset` on, and `need` bytes in all.
#[derive(Debug)]
enum Quick {
    /// Whether some bits of the message, as they lie, are `value`.
    Match {
        offset: usize,
        need: usize,
        mask: u64,
        value: u64,
        inside: usize,
        outside: usize,
    },
    /// A length, with nothing but a constant to be added.
    Length(Row),
    /// A length to which more is done.
    Changed(Box<Row>),
    /// A length, a key and a class.
    Labelled(Box<[Row; 3]>),
    No,
}

/// Bits that are next to each other, in 8 bytes from `offset` on: what stands above them is shifted
/// out to the left, what stands below to the right.
#[derive(Debug)]
struct Row {
    offset: usize,
    need: usize,
    is_big: bool,
    up: u32,
    down: u32,
    then: Vec<Change>,
    bias: u64,
    /// Whether there is such a number at all: a label may be missing.
    is_there: bool,
}

#[derive(Debug)]
enum Run {
    /// Whether `(sum - minus) & keep` is not above `span`.
    Decide {
        sum: Sum,
        minus: Option<Box<Sum>>,
        keep: u64,
        span: u64,
        inside: usize,
        outside: usize,
    },
    Length(Sum),
    /// With a key, a class, or both.
    Labelled(Box<[Option<Sum>; 3]>),
}

/// Pieces of the message, and a constant.
#[derive(Debug)]
pub(crate) struct Sum {
    /// The first one by itself: most have no other.
    first: Piece,
    more: Vec<Piece>,
    bias: u64,
}

/// `(word & mask) >> right << left` of 8 bytes of the message, and what is done with it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece {
    source: Source,
    offset: usize,
    mask: u64,
    right: u32,
    left: u32,
    then: Vec<Change>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Big,
    Little,
    /// The number of bytes that are there.
    Len,
}

/// Most pieces of one sum: as many as there are bytes in a word.
const MAX_PIECES: usize = 8;

impl Tree {
    /// Nothing, if some number takes more pieces than is worth it.
    pub(super) fn new(nodes: &[Node]) -> Option<Self> {
        let mut tree = Self {
            steps: Vec::with_capacity(nodes.len()),
            quick: Vec::with_capacity(nodes.len()),
            decisions: 0,
            lengths: 0,
        };
        for node in nodes {
            let then = match &node.then {
                Then::Decide {
                    condition,
                    inside,
                    outside,
                } => {
                    tree.decisions += 1;
                    let mut sum = Sum::new(&condition.plus)?;
                    sum.bias = sum.bias.wrapping_sub(condition.low);
                    let minus = match condition.minus.as_constant() {
                        Some(0) => None,
                        _ => Some(Box::new(Sum::new(&condition.minus)?)),
                    };
                    Run::Decide {
                        sum,
                        minus,
                        keep: if condition.half { LOW } else { u64::MAX },
                        span: condition.span,
                        inside: *inside,
                        outside: *outside,
                    }
                }
                Then::End(End { result, key, class }) => {
                    let is_length =
                        (result.as_constant()).is_none_or(|result| low(result).cast_signed() > 0);
                    tree.lengths += usize::from(is_length);
                    let length = Sum::new(result)?;
                    let label = |number: &Option<Number>| match number {
                        Some(number) => Sum::new(number).map(Some),
                        None => Some(None),
                    };
                    match (label(key)?, label(class)?) {
                        (None, None) => Run::Length(length),
                        (key, class) => Run::Labelled(Box::new([Some(length), key, class])),
                    }
                }
            };
            let step = Step {
                need: node.need,
                short: node.short,
                then,
            };
            tree.quick.push(Quick::new(&step).unwrap_or(Quick::No));
            tree.steps.push(step);
        }
        Some(tree)
    }

    /// What the program says of bytes that begin at a message's first one.
    #[inline]
    pub(crate) fn parse(&self, bytes: &[u8]) -> Verdict {
        let mut at = self.steps.len().wrapping_sub(1);
        loop {
            match self.quick.get(at) {
                Some(Quick::Match {
                    offset,
                    need,
                    mask,
                    value,
                    inside,
                    outside,
                }) => {
                    let Some(word) = word(bytes, *offset).filter(|_| bytes.len() >= *need) else {
                        break;
                    };
                    // A branch, and not a choice between two addresses: the processor would wait
                    // for the number.
                    if u64::from_le_bytes(word) & mask == *value {
                        cold_path();
                        at = *inside;
                    } else {
                        at = *outside;
                    }
                }
                Some(Quick::Length(row)) => {
                    let Some(length) = row.plain(bytes) else {
                        break;
                    };
                    let result = low(length.wrapping_add(row.bias)).cast_signed();
                    if result <= 0 {
                        break;
                    }
                    return Verdict::message(result.unsigned_abs().into());
                }
                // Calls from here: what has none shall not pay for them.
                Some(Quick::Changed(row)) => return self.changed(at, row, bytes),
                Some(Quick::Labelled(rows)) => return self.labelled(at, rows, bytes),
                _ => break,
            }
        }
        self.go_on(at, bytes)
    }

    #[inline(never)]
    fn changed(&self, at: usize, row: &Row, bytes: &[u8]) -> Verdict {
        match row.of(bytes) {
            Some(length) => Verdict::from_kernel(low(length).cast_signed(), bytes.len()),
            None => self.go_on(at, bytes),
        }
    }

    #[inline(never)]
    fn labelled(&self, at: usize, [length, key, class]: &[Row; 3], bytes: &[u8]) -> Verdict {
        let rows = (length.of(bytes), key.of(bytes), class.of(bytes));
        let (Some(length_value), Some(key_value), Some(class_value)) = rows else {
            return self.go_on(at, bytes);
        };
        let result = low(length_value).cast_signed();
        if result <= 0 {
            return Verdict::from_kernel(result, bytes.len());
        }
        let mut frame = Frame::new(result.unsigned_abs().into());
        if key.is_there {
            frame = frame.with_key(low(key_value));
        }
        if class.is_there {
            frame = frame.with_class(crate::program::class(low(class_value)));
        }
        Verdict::Message(frame)
    }

    /// The same from a step on, for all of them.
    #[inline(never)]
    fn go_on(&self, mut at: usize, bytes: &[u8]) -> Verdict {
        while let Some(step) = self.steps.get(at) {
            if bytes.len() < step.need {
                at = step.short;
                continue;
            }
            match &step.then {
                Run::Decide {
                    sum,
                    minus,
                    keep,
                    span,
                    inside,
                    outside,
                } => {
                    let mut difference = sum.of(bytes);
                    if let Some(minus) = minus {
                        difference = difference.wrapping_sub(minus.of(bytes));
                    }
                    if difference & keep <= *span {
                        cold_path();
                        at = *inside;
                    } else {
                        at = *outside;
                    }
                }
                Run::Length(sum) => {
                    let result = low(sum.of(bytes)).cast_signed();
                    return Verdict::from_kernel(result, bytes.len());
                }
                Run::Labelled(sums) => return labelled(sums, bytes),
            }
        }
        // No step leads out of the tree.
        debug_assert!(false, "a decision leads nowhere");
        Verdict::Error(crate::program::EFAULT)
    }
}

impl Quick {
    fn new(step: &Step) -> Option<Self> {
        let need = step.need;
        match &step.then {
            Run::Decide {
                sum,
                minus: None,
                keep,
                span: 0,
                inside,
                outside,
            } => {
                let piece = &sum.first;
                if !sum.is_single() || piece.source == Source::Len {
                    return None;
                }
                // The value for which nothing is left, put where the field is.
                let value = sum.bias.wrapping_neg() & keep;
                let place = value >> piece.left << piece.right;
                let back = (place & piece.mask) >> piece.right << piece.left;
                // All bits count, in the general form too.
                let all = piece.mask >> piece.right << piece.left;
                if back != value || all & !keep != 0 {
                    return None;
                }
                let as_it_lies = |word: u64| match piece.source {
                    Source::Big => word.swap_bytes(),
                    _ => word,
                };
                Some(Self::Match {
                    offset: piece.offset,
                    need,
                    mask: as_it_lies(piece.mask),
                    value: as_it_lies(place),
                    inside: *inside,
                    outside: *outside,
                })
            }
            Run::Length(sum) => {
                let row = Row::new(sum, need)?;
                Some(if row.then.is_empty() {
                    Self::Length(row)
                } else {
                    Self::Changed(Box::new(row))
                })
            }
            Run::Labelled(sums) => {
                let row = |sum: &Option<Sum>| match sum {
                    Some(sum) => Row::new(sum, need),
                    None => Some(Row::constant(need, 0, false)),
                };
                let [length, key, class] = &**sums;
                Some(Self::Labelled(Box::new([
                    row(length)?,
                    row(key)?,
                    row(class)?,
                ])))
            }
            Run::Decide { .. } => None,
        }
    }
}

impl Row {
    fn new(sum: &Sum, need: usize) -> Option<Self> {
        let piece = &sum.first;
        if *piece == Piece::nothing() {
            return Some(Self::constant(need, sum.bias, true));
        }
        let (up, low) = (piece.mask.leading_zeros(), piece.mask.trailing_zeros());
        let is_row = piece.mask << up >> (up + low) == u64::MAX >> (up + low);
        if !is_row
            || !sum.more.is_empty()
            || piece.left != 0
            || piece.right != low
            || piece.source == Source::Len
        {
            return None;
        }
        Some(Self {
            offset: piece.offset,
            need,
            is_big: piece.source == Source::Big,
            up,
            down: up + low,
            then: piece.then.clone(),
            bias: sum.bias,
            is_there: true,
        })
    }

    /// A number that no byte changes: nothing is left of the first ones.
    fn constant(need: usize, value: u64, is_there: bool) -> Self {
        let nothing = Change {
            alu: Alu::And,
            wide: true,
            by: 0,
        };
        Self {
            offset: 0,
            need,
            is_big: false,
            up: 0,
            down: 0,
            then: vec![nothing],
            bias: value,
            is_there,
        }
    }

    /// The bits. Nothing, if not all of the 8 bytes are there.
    #[inline(always)]
    fn plain(&self, bytes: &[u8]) -> Option<u64> {
        let word = word(bytes, self.offset).filter(|_| bytes.len() >= self.need)?;
        let word = if self.is_big {
            u64::from_be_bytes(word)
        } else {
            u64::from_le_bytes(word)
        };
        // (Both amounts are below 64, which the compiler does not know.)
        Some(word << (self.up & 63) >> (self.down & 63))
    }

    /// All of it.
    #[inline(always)]
    fn of(&self, bytes: &[u8]) -> Option<u64> {
        let value = changed(self.plain(bytes)?, &self.then);
        Some(value.wrapping_add(self.bias))
    }
}

fn changed(value: u64, changes: &[Change]) -> u64 {
    changes.iter().fold(value, |value, change| change.of(value))
}

/// 8 bytes of the message.
#[inline(always)]
fn word(bytes: &[u8], offset: usize) -> Option<[u8; 8]> {
    bytes.get(offset..)?.first_chunk().copied()
}

fn labelled([length, key, class]: &[Option<Sum>; 3], bytes: &[u8]) -> Verdict {
    let value = |sum: &Option<Sum>| sum.as_ref().map(|sum| low(sum.of(bytes)));
    let result = value(length).unwrap_or(0).cast_signed();
    if result <= 0 {
        return Verdict::from_kernel(result, bytes.len());
    }
    let mut frame = Frame::new(result.unsigned_abs().into());
    frame.key = value(key);
    frame.class = value(class).map_or(0, crate::program::class);
    Verdict::Message(frame)
}

impl Sum {
    fn new(number: &Number) -> Option<Self> {
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
        let is_single = |sum: &Self| sum.is_single() && sum.first.source != Source::Len;
        Self::new(number).filter(|sum| is_single(sum) && !number.half)
    }

    fn is_single(&self) -> bool {
        self.more.is_empty() && self.first.then.is_empty()
    }

    /// The same as [`of`](Self::of), if it is a single piece of which all 8 bytes are there.
    #[inline(always)]
    pub(crate) fn of_word(&self, bytes: &[u8]) -> Option<u64> {
        let piece = &self.first;
        let word = word(bytes, piece.offset)?;
        let word = match piece.source {
            Source::Big => u64::from_be_bytes(word),
            _ => u64::from_le_bytes(word),
        };
        let piece = (word & piece.mask) >> (piece.right & 63) << (piece.left & 63);
        Some(piece.wrapping_add(self.bias))
    }

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
        source: match field.order {
            Order::Big => Source::Big,
            Order::Little => Source::Little,
            Order::Len => Source::Len,
        },
        // A word that begins with the field: in network order it stands at the top.
        mask: match field.order {
            Order::Big => field.mask << (64 - 8 * field.width),
            _ => field.mask,
        },
        right: match field.order {
            Order::Big => 64 - 8 * field.width + field.right,
            _ => field.right,
        },
        offset: field.offset,
        left: field.left,
        then: Vec::new(),
    });
    Some(pieces.collect())
}

impl Piece {
    /// A piece that is always 0.
    fn nothing() -> Self {
        Self {
            source: Source::Len,
            offset: 0,
            mask: 0,
            right: 0,
            left: 0,
            then: Vec::new(),
        }
    }

    #[inline(always)]
    fn of(&self, bytes: &[u8]) -> u64 {
        let word = match self.source {
            Source::Len => u32::try_from(bytes.len()).unwrap_or(u32::MAX).into(),
            source => {
                let word = match word(bytes, self.offset) {
                    Some(word) => word,
                    None => last_bytes(bytes, self.offset),
                };
                match source {
                    Source::Big => u64::from_be_bytes(word),
                    _ => u64::from_le_bytes(word),
                }
            }
        };
        // Both are below 64, which the compiler does not know.
        let piece = (word & self.mask) >> (self.right & 63) << (self.left & 63);
        changed(piece, &self.then)
    }
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
