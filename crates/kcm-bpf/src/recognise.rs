//! Programs that say in instructions what can be said in a few formulas.
//!
//! A program is followed once with symbols in place of numbers ([`mod@follow`]), whose arithmetic is that
//! of [`number`]. Without a decision, what comes out is often one piece of at most 8 bytes of the
//! message, moved by some places: a length field, or else a varint, which kcm-frame has as plain
//! values. The next best is a [`Tree`] of decisions between lengths that are sums of such pieces: an
//! HTTP/2 frame or the preface, a WebSocket header of one of three sizes, a key beside the length.
//! Anything else is left to the interpreter: offsets that the message says, products of two fields,
//! more ways than are worth it; where only some ways come to that, the others are a tree all the same.
//!
//! For messages that are like one another any program is a field as a rule: followed along the one way
//! that a message takes ([`mod@trace`]), it has a form for all that take the same way ([`mod@like`]).
//!
//! ```text
//! follow.rs     all ways of a program: nodes        number.rs     numbers, as bits of the message
//! trace.rs      the one way of a message            term.rs       parts of them
//! state.rs      registers and memory on a way       round.rs      arithmetic with constants
//! seen.rs       what is known on a way              condition.rs  comparisons, as intervals
//! tree.rs       nodes as they are run               field.rs      bits of the message, as fields
//! tree/step.rs  one of them                         word.rs       fields, as they are read
//! tree/way.rs   the usual ones, in a row            sum.rs        numbers, as they are run
//! tree/test.rs  a comparison in such a row          length.rs     those that are in 8 bytes
//! like.rs       a quick form of a message's way
//! ```
//!
//! A pattern list over opcodes was the alternative. It recognises what its author has seen.
//!
//! The kernel evaluates a length in 32 bits, with overflow. Where some value of a field makes a
//! difference (a sum that overflows, a length below the field's end), it is a [`LengthField`] that
//! does so too ([`LengthField::in_32_bits`]); where none does, a plain one.

mod condition;
mod field;
mod follow;
mod length;
mod like;
mod number;
mod round;
mod seen;
mod state;
mod sum;
mod term;
mod trace;
mod tree;
mod word;

use std::fmt;
use std::sync::Arc;

use kcm_frame::errno::EPROTO;
use kcm_frame::{Endian, LengthField, MAX_FIELD_OFFSET, Varint};

use crate::alu::{Cmp, low};
use crate::recognise::condition::{Comparison, compare};
use crate::recognise::field::{Order, single};
use crate::recognise::follow::{End, Node, Then, follow};
pub(crate) use crate::recognise::like::form_like;
use crate::recognise::number::Bit;
pub(crate) use crate::recognise::number::Number;
pub(crate) use crate::recognise::sum::Sum;
pub(crate) use crate::recognise::tree::Tree;
use crate::verifier::Verified;

/// What a program comes down to.
#[derive(Debug)]
pub(crate) enum Meaning {
    /// Always this length, which is above 0.
    Fixed(u32),
    Field(Field),
    Varint(Varint),
    Tree(Arc<Tree>),
}

/// The low 32 bits of `((field & mask) >> right << left) + bias`, or 0 if the field is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    endian: Endian,
    offset: usize,
    /// 1 to 8 bytes.
    width: usize,
    mask: u64,
    right: u32,
    left: u32,
    bias: i32,
}

/// What the program comes down to, if it is one of these.
pub(crate) fn recognise(verified: &Verified) -> Option<Meaning> {
    let nodes = follow(verified)?;
    plain(&nodes)
        .or_else(|| varint(&nodes).map(Meaning::Varint))
        .or_else(|| Some(Meaning::Tree(Arc::new(Tree::new(&nodes)?))))
}

/// The one length, or length field, that a program without decisions is.
fn plain(nodes: &[Node]) -> Option<Meaning> {
    let (root, rest) = nodes.split_last()?;
    let Then::End(End {
        result,
        key: None,
        class: None,
    }) = &root.then
    else {
        return None;
    };
    let bias = low(result.bias).cast_signed();
    if result.terms.is_empty() {
        // With a load before it, it is 0 for a short message.
        return (bias > 0 && root.need == 0).then_some(Meaning::Fixed(low(result.bias)));
    }
    let [term] = &result.terms[..] else {
        return None;
    };
    if !term.is_plain() || !is_zero(rest.get(root.short)?) {
        return None;
    }
    // The field goes up to the last byte that must be there: a length field with less would know
    // the length earlier.
    let field = single(&term.bits, root.need).filter(|field| field.offset <= MAX_FIELD_OFFSET)?;
    Some(Meaning::Field(Field {
        endian: match field.order {
            Order::Little => Endian::Little,
            _ => Endian::Big,
        },
        offset: field.offset,
        width: usize::try_from(field.width).ok()?,
        // What is shifted out need not be masked.
        mask: field.mask | ((1 << field.right) - 1),
        right: field.right,
        left: field.left,
        bias,
    }))
}

/// Whether it ends here, with 0.
fn is_zero(node: &Node) -> bool {
    node.need == 0 && matches!(&node.then, Then::End(end) if end.result.as_constant() == Some(0))
}

/// The varint that the nodes are. A varint can be written as nodes too, and so they are compared
/// with those of the only one that it could be.
fn varint(nodes: &[Node]) -> Option<Varint> {
    let offset = nodes.last()?.need.checked_sub(1)?;
    (1..=MAX_VARINT_BYTES).find_map(|bytes| {
        let expected = varint_nodes(offset, bytes)?;
        let is_same = is_same(nodes, nodes.len() - 1, &expected, expected.len() - 1);
        is_same.then(|| Varint::new(offset, bytes).ok())?
    })
}

/// Most bytes of a varint whose length fits into 31 bits, whatever they are.
const MAX_VARINT_BYTES: usize = 4;

/// The nodes of a varint, the last one being the first to be asked.
fn varint_nodes(offset: usize, bytes: usize) -> Option<Vec<Node>> {
    let end = |result| Node {
        need: 0,
        short: 0,
        then: Then::End(End {
            result,
            key: None,
            class: None,
        }),
    };
    let error = Number::constant(u64::from(EPROTO.wrapping_neg().cast_unsigned()));
    let mut nodes = vec![end(Number::constant(0)), end(error)];
    let mut longer = 1;
    for count in (1..=bytes).rev() {
        // Seven bits of each byte, the first byte's being the lowest.
        let bits = std::array::from_fn(|i| match u32::try_from(offset + i / 7) {
            Ok(byte) if i < 7 * count => Bit::Packet(8 * byte + u32::try_from(i % 7).unwrap_or(0)),
            _ => Bit::Zero,
        });
        let mut length = Number::of_bits(bits);
        length.bias = (offset + count) as u64;
        nodes.push(end(length));
        let last = Number::packet(u32::try_from(offset + count - 1).ok()?, 1);
        let compared = compare(Cmp::Le, true, last, Number::constant(0x7f))?;
        let Comparison::Unknown(condition, false) = compared else {
            return None;
        };
        nodes.push(Node {
            need: offset + count,
            short: 0,
            then: Then::Decide {
                condition,
                inside: nodes.len() - 1,
                outside: longer,
            },
        });
        longer = nodes.len() - 1;
    }
    Some(nodes)
}

/// Whether two nodes say the same, by what follows from them.
fn is_same(a: &[Node], at: usize, b: &[Node], bt: usize) -> bool {
    let (Some(x), Some(y)) = (a.get(at), b.get(bt)) else {
        return false;
    };
    if x.need != y.need || x.need != 0 && !is_same(a, x.short, b, y.short) {
        return false;
    }
    match (&x.then, &y.then) {
        (Then::End(x), Then::End(y)) => x == y,
        (
            Then::Decide {
                condition: x,
                inside: ai,
                outside: ao,
            },
            Then::Decide {
                condition: y,
                inside: bi,
                outside: bo,
            },
        ) => x == y && is_same(a, *ai, b, *bi) && is_same(a, *ao, b, *bo),
        _ => false,
    }
}

impl Field {
    /// The length field that says the same of all bytes: in 32 bits, unless no value of the field
    /// makes a difference.
    pub(crate) fn as_length_field(&self) -> Option<LengthField> {
        let end = i64::try_from(self.offset + self.width).ok()?;
        let most = (self.mask >> self.right) << self.left;
        let bias = i64::from(self.bias);
        let field = LengthField::new(self.offset, self.width, self.endian)
            .ok()?
            .mask(self.mask)
            .shift(self.right)
            .scale(1 << self.left)
            .bias(bias);
        // The least value of the field is 0.
        let same =
            bias >= end && i64::try_from(most).is_ok_and(|most| most <= i64::from(i32::MAX) - bias);
        Some(if same { field } else { field.in_32_bits() })
    }
}

impl fmt::Display for Field {
    /// As a framing's text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(field) = self.as_length_field() else {
            return f.write_str("a length field");
        };
        let exact = if field == field.in_32_bits() {
            " in 32 bits"
        } else {
            ""
        };
        write!(f, "a length field{exact}: {field}")
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.lengths, self.decisions) {
            (_, 0) => write!(f, "a length from fields"),
            (1, 1) => write!(f, "a length from fields, behind a comparison"),
            (1, n) => write!(f, "a length from fields, behind {n} comparisons"),
            (lengths, 1) => write!(
                f,
                "{lengths} lengths from fields, told apart by a comparison"
            ),
            (lengths, n) => write!(
                f,
                "{lengths} lengths from fields, told apart by {n} comparisons"
            ),
        }?;
        if self.asks {
            write!(f, "; the rest is interpreted")?;
        }
        Ok(())
    }
}
