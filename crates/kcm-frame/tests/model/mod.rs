//! A second, slow opinion on where messages end. Nothing here looks at how the
//! crate does it: numbers are 128 bits wide and the stream is read one byte at a
//! time.

use kcm_frame::{Assembler, Endian, Fixed, Framing, LengthField, Native, Varint};
use proptest::prelude::*;

/// A native framing as the numbers it is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Parts {
    Length {
        offset: usize,
        width: usize,
        big: bool,
        mask: u64,
        shift: u32,
        scale: u64,
        bias: i64,
    },
    Varint {
        offset: usize,
        max: usize,
    },
    Fixed {
        len: u64,
    },
}

impl Parts {
    pub(crate) fn native(self) -> Native {
        match self {
            Self::Length {
                offset,
                width,
                big,
                mask,
                shift,
                scale,
                bias,
            } => {
                let endian = if big { Endian::Big } else { Endian::Little };
                let field = LengthField::new(offset, width, endian).expect("in range");
                Native::Length(field.mask(mask).shift(shift).scale(scale).bias(bias))
            }
            Self::Varint { offset, max } => {
                Native::Varint(Varint::new(offset, max).expect("in range"))
            }
            Self::Fixed { len } => Native::Fixed(Fixed::new(len).expect("not zero")),
        }
    }

    /// The length of the message at the front of `bytes`: `None` if it cannot be
    /// told yet, an error if these bytes are no header.
    pub(crate) fn length(self, bytes: &[u8]) -> Option<Result<u64, ()>> {
        match self {
            Self::Fixed { len } => (!bytes.is_empty()).then_some(Ok(len)),
            Self::Varint { offset, max } => {
                let (mut sum, mut weight) = (0_u128, 1_u128);
                for taken in 0..max {
                    let byte = u128::from(*bytes.get(offset + taken)?);
                    sum += byte % 128 * weight;
                    weight *= 128;
                    if sum > u128::from(u64::MAX) {
                        return Some(Err(()));
                    }
                    if byte < 128 {
                        let total = sum + (offset + taken + 1) as u128;
                        return Some(u64::try_from(total).map_err(drop));
                    }
                }
                Some(Err(()))
            }
            Self::Length {
                offset,
                width,
                big,
                mask,
                shift,
                scale,
                bias,
            } => {
                let mut field = bytes.get(offset..offset + width)?.to_vec();
                if big {
                    field.reverse();
                }
                let mut value = 0_u128;
                for (place, byte) in field.into_iter().enumerate() {
                    value += u128::from(byte) * 256_u128.pow(u32::try_from(place).unwrap());
                }
                let counts = (value & u128::from(mask)) / 2_u128.pow(shift);
                // The arithmetic is that of 64 bits, checked at each step: what does not fit before
                // the bias is added does not fit.
                let Ok(units) = u64::try_from(counts * u128::from(scale)) else {
                    return Some(Err(()));
                };
                let total = i128::from(units).checked_add(bias.into()).ok_or(());
                let end = (offset + width) as u64;
                Some(total.and_then(|total| match u64::try_from(total) {
                    Ok(total) if total >= end => Ok(total),
                    _ => Err(()),
                }))
            }
        }
    }

    /// All message lengths in `stream`, and the errno it ends with if it does
    /// not just end.
    pub(crate) fn cut(self, stream: &[u8], max_message: usize) -> (Vec<usize>, Option<i32>) {
        let (mut lengths, mut message) = (Vec::new(), Vec::new());
        for &byte in stream {
            message.push(byte);
            match self.length(&message) {
                None => {}
                Some(Err(())) => return (lengths, Some(71)),
                Some(Ok(len)) if len > max_message as u64 => return (lengths, Some(90)),
                Some(Ok(len)) if len == message.len() as u64 => {
                    lengths.push(message.len());
                    message.clear();
                }
                Some(Ok(len)) => assert!(len > message.len() as u64),
            }
        }
        (lengths, None)
    }
}

/// An assembler over a native framing.
pub(crate) fn assembler(parts: Parts, limits: kcm_frame::Limits) -> Assembler {
    Assembler::new(&Framing::from(parts.native()), limits)
}

fn masks() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => Just(u64::MAX),
        2 => (1_u32..64).prop_map(|bits| u64::MAX >> bits),
        1 => any::<u64>(),
    ]
}

fn scales() -> impl Strategy<Value = u64> {
    prop_oneof![5 => Just(1_u64), 3 => 0_u64..20, 1 => any::<u64>()]
}

fn biases() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0_i64), 6 => -20_i64..40, 1 => any::<i64>()]
}

/// Any native framing, the plain ones more often.
pub(crate) fn parts() -> impl Strategy<Value = Parts> {
    let place = (0_usize..20, 1_usize..=8, any::<bool>());
    let shift = prop_oneof![4 => Just(0_u32), 2 => 0_u32..16, 1 => 0_u32..=64];
    let plain = (place.clone(), biases()).prop_map(|((offset, width, big), bias)| Parts::Length {
        offset,
        width,
        big,
        mask: u64::MAX,
        shift: 0,
        scale: 1,
        bias,
    });
    let general = (place, masks(), shift, scales(), biases()).prop_map(
        |((offset, width, big), mask, shift, scale, bias)| Parts::Length {
            offset,
            width,
            big,
            mask,
            shift,
            scale,
            bias,
        },
    );
    prop_oneof![
        4 => plain,
        4 => general,
        2 => (0_usize..20, 1_usize..=10).prop_map(|(offset, max)| Parts::Varint { offset, max }),
        1 => (1_u64..100).prop_map(|len| Parts::Fixed { len }),
    ]
}
