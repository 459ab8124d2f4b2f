//! Programs that say in instructions what a length field says in one formula.
//!
//! A straight program is followed once with symbols in place of numbers. The symbol is a row of 64
//! bits, each 0, 1, or a certain bit of the message, and a number added to it. Shifts, masks, swaps
//! and ors of disjoint parts just move bits about, so it does not matter in which of many ways a
//! compiler has written a 24-bit little-endian field. What comes out as one piece of at most 8
//! bytes of the message, moved by some places, is a [`Field`]; anything else is left to the
//! interpreter.
//!
//! A pattern list over opcodes was the alternative. It recognises what its author has seen.
//!
//! A field is evaluated as the kernel would, in 32 bits with overflow. That is a [`LengthField`]
//! only if no value of the field gives a length that is below the field's end or not a positive
//! 32-bit number: for these the two disagree.

use std::fmt;

use kcm_frame::{Endian, LengthField, MAX_FIELD_OFFSET};

use crate::alu::{Alu, Swap, low};
use crate::decode::{Op, Operand};

/// What a program comes down to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Always this length, which is above 0.
    Fixed(u32),
    Field(Field),
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
pub(crate) fn recognise(ops: &[Op]) -> Option<Meaning> {
    let mut regs: [Option<Symbol>; 11] = [None; 11];
    // How much of the message must be there.
    let mut end = 0;
    for op in ops.iter().filter(|op| **op != Op::ConstEnd) {
        match *op {
            Op::Const { dst, value } => {
                *regs.get_mut(usize::from(dst))? = Some(Symbol::constant(value));
            }
            Op::Alu {
                alu,
                wide,
                dst,
                src,
            } => {
                let dst = usize::from(dst);
                let by = match src {
                    Operand::Reg(reg) => *regs.get(usize::from(reg))?,
                    Operand::Imm(imm) => Some(Symbol::constant(i64::from(imm).cast_unsigned())),
                };
                let old = *regs.get(dst)?;
                *regs.get_mut(dst)? = match (alu, old, by) {
                    (Alu::Mov, _, Some(by)) => by.cut(wide),
                    (_, Some(old), Some(by)) => old.alu(alu, wide, &by),
                    // A pointer perhaps; it does not come to be the result.
                    _ => None,
                };
            }
            Op::Swap { dst, swap } => {
                let dst = regs.get_mut(usize::from(dst))?;
                *dst = dst.and_then(|symbol| symbol.swap(swap));
            }
            Op::Packet {
                size,
                index,
                offset,
            } => {
                let index = match index {
                    None => 0,
                    Some(reg) => (*regs.get(usize::from(reg))?)?.as_constant()?,
                };
                let offset = low(index).wrapping_add(offset.cast_unsigned());
                let offset = usize::try_from(offset.cast_signed()).ok()?;
                end = end.max(offset.checked_add(size.into())?);
                regs[..6].fill(None);
                regs[0] = Some(Symbol::packet(offset, size.into()));
            }
            Op::Exit => return conclude(&regs[0]?, end),
            _ => return None,
        }
    }
    None
}

/// A number as the message's bits make it.
#[derive(Clone, Copy)]
struct Symbol {
    /// The least significant bit first.
    bits: [Bit; 64],
    /// Added to it.
    bias: u64,
    /// Only the lower half is as said here.
    half: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bit {
    Zero,
    One,
    /// This bit of the message: 8 times its byte's offset, plus its place in it, counted from the
    /// least significant.
    Packet(usize),
}

impl Symbol {
    fn constant(value: u64) -> Self {
        Self {
            bits: std::array::from_fn(|i| match value >> i & 1 {
                0 => Bit::Zero,
                _ => Bit::One,
            }),
            bias: 0,
            half: false,
        }
    }

    /// Bytes of the message, as they are loaded: the first one is the most significant.
    fn packet(offset: usize, size: usize) -> Self {
        Self {
            bits: std::array::from_fn(|i| {
                if i < 8 * size {
                    let byte = offset + size - 1 - i / 8;
                    Bit::Packet(8 * byte + i % 8)
                } else {
                    Bit::Zero
                }
            }),
            bias: 0,
            half: false,
        }
    }

    fn as_constant(&self) -> Option<u64> {
        let mut value = self.bias;
        for (i, bit) in self.bits.iter().enumerate() {
            match bit {
                Bit::Zero => {}
                Bit::One => value = value.wrapping_add(1 << i),
                Bit::Packet(_) => return None,
            }
        }
        (!self.half).then_some(value)
    }

    /// The bits, if nothing was added to them yet.
    fn as_bits(&self) -> Option<[Bit; 64]> {
        (self.bias == 0 && !self.half).then_some(self.bits)
    }

    fn of_bits(bits: [Bit; 64]) -> Self {
        Self {
            bits,
            bias: 0,
            half: false,
        }
    }

    /// As a register holds it after an operation on 64 or on 32 bits.
    fn cut(self, wide: bool) -> Option<Self> {
        if wide {
            return Some(self);
        }
        Some(match self.as_bits() {
            Some(bits) => Self::of_bits(std::array::from_fn(|i| {
                if i < 32 { bits[i] } else { Bit::Zero }
            })),
            None => Self { half: true, ..self },
        })
    }

    fn alu(self, alu: Alu, wide: bool, by: &Self) -> Option<Self> {
        if let (Some(a), Some(b)) = (self.as_constant(), by.as_constant()) {
            return Some(Self::constant(alu.eval(wide, a, b)));
        }
        match alu {
            Alu::Add | Alu::Sub => {
                // The constant may stand on the left, as in `9 + field`.
                let (symbol, constant) = match (self.as_constant(), by.as_constant()) {
                    (_, Some(constant)) if alu == Alu::Sub => (self, constant.wrapping_neg()),
                    (_, Some(constant)) => (self, constant),
                    (Some(constant), None) if alu == Alu::Add => (*by, constant),
                    // Where no two bits meet, the sum is the parts side by side.
                    (None, None) if alu == Alu::Add => {
                        let (a, b) = (self.as_bits()?, by.as_bits()?);
                        let apart = a
                            .iter()
                            .zip(&b)
                            .all(|(a, b)| *a == Bit::Zero || *b == Bit::Zero);
                        return if apart {
                            self.alu(Alu::Or, wide, by)
                        } else {
                            None
                        };
                    }
                    _ => return None,
                };
                let bias = symbol.bias.wrapping_add(constant);
                // Bits that were constants already are part of it.
                Self { bias, ..symbol }.cut(wide)
            }
            Alu::Mul => {
                let factor = by.as_constant()?;
                if !factor.is_power_of_two() {
                    return None;
                }
                let shift = Self::constant(factor.trailing_zeros().into());
                self.alu(Alu::Lsh, true, &shift)?.cut(wide)
            }
            _ => {
                let symbol = if wide { self } else { self.cut(false)? };
                let bits = symbol.as_bits()?;
                Self::of_bits(move_bits(alu, wide, &bits, by)?).cut(wide)
            }
        }
    }

    fn swap(&self, swap: Swap) -> Option<Self> {
        let bits = self.as_bits()?;
        let width = usize::try_from(swap.bits).ok()?;
        Some(Self::of_bits(std::array::from_fn(|i| {
            if i >= width {
                Bit::Zero
            } else if swap.reverse {
                bits[width - 8 - i / 8 * 8 + i % 8]
            } else {
                bits[i]
            }
        })))
    }
}

/// The operations that keep each bit whole.
fn move_bits(alu: Alu, wide: bool, bits: &[Bit; 64], by: &Symbol) -> Option<[Bit; 64]> {
    let amount = |shift: u64| usize::try_from(shift & if wide { 63 } else { 31 }).ok();
    Some(match alu {
        Alu::Lsh => {
            let n = amount(by.as_constant()?)?;
            std::array::from_fn(|i| if i < n { Bit::Zero } else { bits[i - n] })
        }
        Alu::Rsh => {
            let n = amount(by.as_constant()?)?;
            std::array::from_fn(|i| bits.get(i + n).copied().unwrap_or(Bit::Zero))
        }
        Alu::Arsh => {
            let n = amount(by.as_constant()?)?;
            let width = if wide { 64 } else { 32 };
            std::array::from_fn(|i| bits[(i + n).min(width - 1)])
        }
        Alu::And | Alu::Or => {
            let other = by.as_bits()?;
            let mut both = [Bit::Zero; 64];
            for (i, bit) in both.iter_mut().enumerate() {
                *bit = match (alu, bits[i], other[i]) {
                    (_, a, b) if a == b => a,
                    (Alu::And, Bit::Zero, _) | (Alu::And, _, Bit::Zero) => Bit::Zero,
                    (Alu::And, Bit::One, a) | (Alu::And, a, Bit::One) => a,
                    (Alu::Or, Bit::One, _) | (Alu::Or, _, Bit::One) => Bit::One,
                    (Alu::Or, Bit::Zero, a) | (Alu::Or, a, Bit::Zero) => a,
                    _ => return None,
                };
            }
            both
        }
        _ => return None,
    })
}

/// What the result means, if it is made of one field.
fn conclude(result: &Symbol, end: usize) -> Option<Meaning> {
    // Ones are as good as added, for they stand where no other bit does.
    let mut bias = low(result.bias);
    let mut parts = Vec::new();
    for (i, bit) in result.bits.iter().enumerate().take(32) {
        match bit {
            Bit::Zero => {}
            Bit::One => bias = bias.wrapping_add(1 << i),
            Bit::Packet(at) => parts.push((i, *at)),
        }
    }
    if parts.is_empty() {
        // With a load before it, it is 0 for a short message.
        let len = bias.cast_signed();
        return (len > 0 && end == 0).then_some(Meaning::Fixed(bias));
    }
    let first = parts.iter().map(|(_, at)| at / 8).min()?;
    // The field goes up to the last byte that must be there: a length field with less would know
    // the length earlier.
    let width = end
        .checked_sub(first)
        .filter(|width| (1..=8).contains(width))?;
    if first > MAX_FIELD_OFFSET {
        return None;
    }
    [Endian::Big, Endian::Little]
        .into_iter()
        .find_map(|endian| field(endian, first, width, &parts, bias.cast_signed()))
        .map(Meaning::Field)
}

/// The field, if in this order of bytes all its bits are moved by the same number of places.
fn field(
    endian: Endian,
    offset: usize,
    width: usize,
    parts: &[(usize, usize)],
    bias: i32,
) -> Option<Field> {
    let mut mask = 0u64;
    let mut moved = None;
    for &(to, at) in parts {
        let byte = at / 8 - offset;
        let from = at % 8
            + 8 * match endian {
                Endian::Big => width - 1 - byte,
                Endian::Little => byte,
            };
        let by = i32::try_from(to).ok()? - i32::try_from(from).ok()?;
        if *moved.get_or_insert(by) != by {
            return None;
        }
        mask |= 1 << from;
    }
    let by = moved?;
    Some(Field {
        endian,
        offset,
        width,
        mask,
        right: by.min(0).unsigned_abs(),
        left: by.max(0).unsigned_abs(),
        bias,
    })
}

impl Field {
    /// What the program gives for these bytes.
    #[inline(always)]
    pub(crate) fn value(&self, bytes: &[u8]) -> i32 {
        let Some(tail) = bytes.get(self.offset..) else {
            return 0;
        };
        let unused_bits = 64 - 8 * self.width;
        let word = match tail.first_chunk() {
            Some(&word) => match self.endian {
                Endian::Big => u64::from_be_bytes(word) >> unused_bits,
                Endian::Little => u64::from_le_bytes(word),
            },
            None => match self.near_the_end(tail) {
                Some(word) => word,
                None => return 0,
            },
        };
        let value = (word & self.mask) >> self.right << self.left;
        low(value).cast_signed().wrapping_add(self.bias)
    }

    /// Fewer than eight bytes are left.
    fn near_the_end(&self, tail: &[u8]) -> Option<u64> {
        let field = tail.get(..self.width)?;
        let push = |value: u64, &byte: &u8| value << 8 | u64::from(byte);
        Some(match self.endian {
            Endian::Big => field.iter().fold(0, push),
            Endian::Little => field.iter().rev().fold(0, push),
        })
    }

    /// The length field that says the same of all bytes, if there is one.
    pub(crate) fn as_length_field(&self) -> Option<LengthField> {
        let end = i64::try_from(self.offset + self.width).ok()?;
        let most = i64::try_from(self.mask >> self.right << self.left).ok()?;
        let bias = i64::from(self.bias);
        // The least value of the field is 0.
        if bias < end || most + bias > i32::MAX.into() {
            return None;
        }
        let field = LengthField::new(self.offset, self.width, self.endian).ok()?;
        Some(
            field
                .mask(self.mask)
                .shift(self.right)
                .scale(1 << self.left)
                .bias(bias),
        )
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            width,
            mask,
            right,
            left,
            bias,
            ..
        } = self;
        let kind = match self.as_length_field() {
            Some(_) => "a length field",
            None => "a field in 32 bits",
        };
        let order = match self.endian {
            Endian::Big => "big",
            Endian::Little => "little",
        };
        write!(f, "{kind}: {width} bytes at {offset}, {order} endian")?;
        if *mask != u64::MAX >> (64 - 8 * width) {
            write!(f, ", mask {mask:#x}")?;
        }
        if *right > 0 {
            write!(f, ", shifted right by {right}")?;
        }
        if *left > 0 {
            write!(f, ", times {}", 1u64 << left)?;
        }
        write!(f, ", plus {bias}")
    }
}
