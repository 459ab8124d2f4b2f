//! Bits of the message as fields: pieces of it that are moved as a whole.

use crate::recognise::number::{Bit, Bits};

/// `(field & mask) >> right << left`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    pub(super) order: Order,
    pub(super) offset: usize,
    /// 1 to 8 bytes.
    pub(super) width: u32,
    pub(super) mask: u64,
    pub(super) right: u32,
    pub(super) left: u32,
}

/// How the bytes make a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Big,
    Little,
    /// It is no field of the message but the number of bytes that are there.
    Len,
}

/// A bit: where it goes to, and which one it is.
type Part = (u32, Bit);

/// The fewest fields that the bits were found to be made of: one, or one for each byte. None, if they
/// are not all of them bits of the message or of the length.
pub(super) fn fields(bits: &Bits) -> Option<Vec<Field>> {
    let mut parts: Vec<Part> = Vec::new();
    for (i, bit) in (0..).zip(bits) {
        match bit {
            Bit::Zero => {}
            Bit::One => return None,
            bit => parts.push((i, *bit)),
        }
    }
    if let Some(field) = one(&parts, None) {
        return Some(vec![field]);
    }
    let mut fields = Vec::new();
    while let Some(first) = parts.first().copied() {
        let same = |part: &Part| {
            let distance = |part: &Part| Some(i64::from(part.0) - i64::from(place(part.1)?));
            distance(part) == distance(&first) && byte(part.1) == byte(first.1)
        };
        let (together, rest): (Vec<Part>, Vec<Part>) = parts.iter().copied().partition(same);
        fields.push(one(&together, None)?);
        parts = rest;
    }
    Some(fields)
}

/// One field of the bits that a row has, if it is that; it goes up to this byte of the message, if
/// that is given.
pub(super) fn single(bits: &Bits, end: usize) -> Option<Field> {
    let parts: Vec<Part> = (0..).zip(bits.iter().copied()).collect();
    let parts: Vec<Part> = parts
        .into_iter()
        .filter(|(_, bit)| *bit != Bit::Zero)
        .collect();
    one(&parts, Some(end)).filter(|field| field.order != Order::Len)
}

fn one(parts: &[Part], end: Option<usize>) -> Option<Field> {
    if parts.iter().all(|(_, bit)| matches!(bit, Bit::Len(_))) {
        return moved(Order::Len, 0, 8, parts);
    }
    let bytes = || parts.iter().map(|(_, bit)| byte(*bit));
    let first = bytes().try_fold(usize::MAX, |least, byte| Some(least.min(byte?)))?;
    let last = bytes().flatten().max()?;
    let end = end.unwrap_or(last + 1);
    let width = u32::try_from(end.checked_sub(first)?).ok()?;
    if !(1..=8).contains(&width) || last >= end {
        return None;
    }
    [Order::Big, Order::Little]
        .into_iter()
        .find_map(|order| moved(order, first, width, parts))
}

/// The byte of the message that a bit is of.
fn byte(bit: Bit) -> Option<usize> {
    match bit {
        Bit::Packet(at) => usize::try_from(at / 8).ok(),
        _ => None,
    }
}

/// A bit's place in its byte, or in the length.
fn place(bit: Bit) -> Option<u32> {
    match bit {
        Bit::Packet(at) => Some(at % 8),
        Bit::Len(at) => Some(at.into()),
        _ => None,
    }
}

/// The field, if in this order of bytes all its bits are moved by the same number of places.
fn moved(order: Order, offset: usize, width: u32, parts: &[Part]) -> Option<Field> {
    let mut mask = 0u64;
    let mut distance = None;
    for &(to, bit) in parts {
        let index = || u32::try_from(byte(bit)?.checked_sub(offset)?).ok();
        let from = place(bit)?
            + 8 * match order {
                Order::Big => width - 1 - index()?,
                Order::Little => index()?,
                Order::Len => 0,
            };
        let by = i64::from(to) - i64::from(from);
        if *distance.get_or_insert(by) != by {
            return None;
        }
        mask |= 1 << from;
    }
    let by = i32::try_from(distance?).ok()?;
    let right = by.min(0).unsigned_abs();
    Some(Field {
        order,
        offset,
        width,
        mask,
        right,
        left: by.max(0).unsigned_abs(),
    })
}
