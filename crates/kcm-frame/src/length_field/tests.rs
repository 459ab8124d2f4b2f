use proptest::prelude::*;

use super::*;

fn field(offset: usize, width: usize, endian: Endian) -> LengthField {
    LengthField::new(offset, width, endian).expect("a good specification")
}

fn header(field: LengthField, body_len: u64) -> Result<Vec<u8>, FrameError> {
    field.header_for(body_len).map(|header| header.to_vec())
}

#[test]
fn refuses_widths_and_offsets_out_of_range() {
    for width in [0, 9, usize::MAX] {
        let refused = LengthField::new(0, width, Endian::Big);
        assert_eq!(refused, Err(FrameError::FieldWidth { width }));
    }
    for offset in [65_536, usize::MAX] {
        let refused = LengthField::new(offset, 1, Endian::Big);
        assert_eq!(refused, Err(FrameError::FieldOffset { offset }));
    }
    assert!(LengthField::new(65_535, 8, Endian::Little).is_ok());
}

#[test]
fn every_width_and_order_reads_its_bytes_and_no_others() {
    let digits = [1_u8, 2, 3, 4, 5, 6, 7, 8];
    for width in 1..=8 {
        let big = digits[..width]
            .iter()
            .fold(0, |n, &d| n << 8 | u64::from(d));
        let little = digits[..width]
            .iter()
            .rev()
            .fold(0, |n, &d| n << 8 | u64::from(d));
        for (endian, expected) in [(Endian::Big, big), (Endian::Little, little)] {
            // The bias lifts the small numbers over the end of the field.
            let field = field(3, width, endian).bias(11);
            for behind in [0, 1, 20] {
                let mut bytes = vec![0xee; 3 + width + behind];
                bytes[3..3 + width].copy_from_slice(&digits[..width]);
                assert_eq!(
                    field.parse(&bytes),
                    Verdict::message(expected + 11),
                    "{field}"
                );
                for short in 0..3 + width {
                    let verdict = field.parse(&bytes[..short]);
                    assert_eq!(verdict, Verdict::NeedMore(3 + width), "{field} at {short}");
                }
            }
        }
    }
}

#[test]
fn the_general_way_agrees_with_the_short_one() {
    let bytes = [0, 0, 1, 44, 0, 1, 0, 0, 9, 9, 8, 7];
    for width in 1..=8 {
        for endian in [Endian::Big, Endian::Little] {
            let plain = field(2, width, endian).shift(5).bias(10);
            assert!(is_plain(&plain));
            let mut general = plain;
            general.plain.offset = NOWHERE;
            for len in 0..=bytes.len() {
                assert_eq!(
                    plain.parse(&bytes[..len]),
                    general.parse(&bytes[..len]),
                    "{plain}"
                );
            }
        }
    }
}

fn is_plain(field: &LengthField) -> bool {
    field.plain.offset == field.offset
}

#[test]
fn plainness_follows_the_last_setting() {
    let plain = field(0, 4, Endian::Big);
    assert!(!is_plain(&plain.mask(0xff)));
    assert!(is_plain(&plain.shift(31)));
    assert!(!is_plain(&plain.shift(32)));
    assert!(!is_plain(&plain.scale(2)));
    assert_eq!(plain.mask(0xff).mask(u64::MAX), plain);
    assert_eq!(plain.shift(1).scale(2).shift(0).scale(1), plain);
    assert_eq!(field(0, 1, Endian::Little), field(0, 1, Endian::Big));
}

#[test]
fn mask_shift_scale_and_bias_in_this_order() {
    let field = field(0, 2, Endian::Big)
        .mask(0x0ff0)
        .shift(4)
        .scale(8)
        .bias(-2);
    assert_eq!(field.parse(&[0xf0, 0x2f]), Verdict::message(2 * 8 - 2));
    assert_eq!(header(field, 12), Ok(vec![0x00, 0x20]));
    assert_eq!(
        header(field, 11),
        Err(FrameError::NotRepresentable { body_len: 11 })
    );
    assert_eq!(header(field, 255 * 8 - 4), Ok(vec![0x0f, 0xf0]));
    let (body_len, max) = (256 * 8 - 4, 255 * 8 - 4);
    assert_eq!(
        header(field, body_len),
        Err(FrameError::BodyTooLong { body_len, max })
    );
}

#[test]
fn a_length_inside_the_header_is_no_length() {
    let plain = field(1, 2, Endian::Big);
    for claim in 0..3 {
        assert_eq!(plain.parse(&[9, 0, claim]), Verdict::Error(EPROTO));
        let fault = Fault::BadLength {
            len: claim.into(),
            least: 3,
        };
        assert_eq!(plain.fault_in(&[9, 0, claim]), fault);
    }
    assert_eq!(plain.parse(&[9, 0, 3]), Verdict::message(3));
    let shorter = plain.bias(-9);
    for claim in 0..12 {
        assert_eq!(shorter.parse(&[9, 0, claim]), Verdict::Error(EPROTO));
    }
    assert_eq!(shorter.parse(&[9, 0, 12]), Verdict::message(3));
}

#[test]
fn sums_outside_of_64_bits_are_errors() {
    let all = [0xff; 8];
    let wide = field(0, 8, Endian::Little);
    assert_eq!(wide.parse(&all), Verdict::message(u64::MAX));
    let above = [
        wide.bias(1),
        wide.scale(2),
        wide.scale(u64::MAX).bias(i64::MAX),
    ];
    for field in above {
        assert_eq!(field.parse(&all), Verdict::Error(EPROTO), "{field}");
        let fault = Fault::BadLength {
            len: u64::MAX,
            least: 8,
        };
        assert_eq!(field.fault_in(&all), fault, "{field}");
    }
    let below = wide.bias(i64::MIN);
    assert_eq!(below.parse(&[0; 8]), Verdict::Error(EPROTO));
    assert_eq!(
        below.fault_in(&[0; 8]),
        Fault::BadLength { len: 0, least: 8 }
    );
    assert_eq!(
        field(0, 1, Endian::Big).bias(-9).parse(&[8]),
        Verdict::Error(EPROTO)
    );
}

#[test]
fn a_field_of_which_nothing_counts_means_its_bias() {
    let base = field(0, 2, Endian::Big).bias(6);
    for field in [
        base.mask(0),
        base.scale(0),
        base.shift(64),
        base.shift(u32::MAX),
    ] {
        assert_eq!(field.parse(&[0xff, 0xff]), Verdict::message(6), "{field}");
        assert!(header(field, 7).is_err(), "{field}");
    }
    assert_eq!(header(base.mask(0), 0), Ok(vec![0; 6]));
    assert_eq!(header(base.shift(64), 0), Ok(vec![0; 6]));
    // With another scale than 1 the bias is no header length.
    assert_eq!(header(base.scale(0), 4), Ok(vec![0; 2]));
}

#[test]
fn headers_of_common_protocols() {
    assert_eq!(
        header(field(0, 4, Endian::Big).bias(4), 5),
        Ok(vec![0, 0, 0, 5])
    );
    assert_eq!(header(field(0, 4, Endian::Little), 5), Ok(vec![9, 0, 0, 0]));
    let http2 = field(0, 3, Endian::Big).bias(9);
    assert_eq!(header(http2, 258), Ok(vec![0, 1, 2, 0, 0, 0, 0, 0, 0]));
    let postgres = field(1, 4, Endian::Big).bias(1);
    assert_eq!(header(postgres, 3), Ok(vec![0, 0, 0, 0, 7]));
    let mysql = field(0, 3, Endian::Little).bias(4);
    assert_eq!(header(mysql, 0xff_ffff), Ok(vec![0xff, 0xff, 0xff, 0]));
    let (body_len, max) = (0x100_0000, 0xff_ffff);
    assert_eq!(
        header(mysql, body_len),
        Err(FrameError::BodyTooLong { body_len, max })
    );
}

#[test]
fn lengths_that_a_mask_with_holes_cannot_say() {
    let field = field(0, 1, Endian::Big).mask(0x0d);
    assert_eq!(header(field, 3), Ok(vec![4]));
    assert_eq!(
        header(field, 5),
        Err(FrameError::NotRepresentable { body_len: 5 })
    );
    let too_long = FrameError::BodyTooLong {
        body_len: 13,
        max: 12,
    };
    assert_eq!(header(field, 13), Err(too_long));
}

#[test]
fn a_product_beyond_64_bits_is_not_saved_by_the_bias() {
    let field = field(0, 8, Endian::Big).scale(6).bias(i64::MIN);
    let bytes = (u64::MAX / 6 + 1).to_be_bytes();
    assert_eq!(field.parse(&bytes), Verdict::Error(EPROTO));
    let fault = Fault::BadLength {
        len: u64::MAX,
        least: 8,
    };
    assert_eq!(field.fault_in(&bytes), fault);
}

#[test]
fn a_total_below_the_bias_cannot_be_said() {
    let field = field(0, 1, Endian::Big).scale(2).bias(10);
    assert_eq!(
        header(field, 2),
        Err(FrameError::NotRepresentable { body_len: 2 })
    );
    assert_eq!(header(field, 9), Ok(vec![0]));
}

#[test]
fn headers_have_a_greatest_length() {
    let too_long = |len| Err(FrameError::HeaderTooLong { len });
    assert_eq!(
        header(field(120, 8, Endian::Big), 0).map(|h| h.len()),
        Ok(128)
    );
    assert_eq!(header(field(121, 8, Endian::Big), 0), too_long(129));
    assert_eq!(header(field(0, 4, Endian::Big).bias(129), 0), too_long(129));
    let most = field(0, 4, Endian::Big).bias(i64::MAX);
    assert_eq!(header(most, 0), too_long(i64::MAX.unsigned_abs()));
    let body_len = u64::MAX;
    let max = u64::MAX - 8;
    let refused = header(field(0, 8, Endian::Big), body_len);
    assert_eq!(refused, Err(FrameError::BodyTooLong { body_len, max }));
}

#[test]
fn in_32_bits_as_a_kernel_program_calculates() {
    let field = |bias| LengthField::new(0, 4, Endian::Big).map(|f| f.bias(bias).in_32_bits());
    let say = |bias, value: u32| {
        field(bias)
            .expect("a good field")
            .parse(&value.to_be_bytes())
    };
    assert_eq!(say(4, 0), Verdict::message(4));
    assert_eq!(say(4, 0x7fff_fffb), Verdict::message(0x7fff_ffff));
    // One more, and it is below zero.
    assert_eq!(say(4, 0x7fff_fffc), Verdict::Error(i32::MAX));
    assert_eq!(say(4, 0xffff_fffb), Verdict::Error(1));
    assert_eq!(say(4, 0xffff_fffc), Verdict::NeedMore(5));
    // Below the field's own end, which a native length never is.
    assert_eq!(say(4, 0xffff_fffd), Verdict::message(1));
    assert_eq!(say(-5, 6), Verdict::message(1));
    assert_eq!(say(-5, 5), Verdict::NeedMore(5));
    assert_eq!(say(-5, 4), Verdict::Error(1));
    let fault = field(4)
        .expect("a good field")
        .fault_in(&[0xff, 0xff, 0xff, 0xfb]);
    assert_eq!(fault, Fault::Parser { errno: 1 });
    let longest = field(4).expect("a good field").header_for(0x7fff_fffc);
    assert!(matches!(
        longest,
        Err(FrameError::BodyTooLong {
            max: 0x7fff_fffb,
            ..
        })
    ));
}

proptest! {
    /// Whatever the numbers, against the formula in one line.
    #[test]
    fn in_32_bits_is_the_low_half(
        (offset, width, big) in (0usize..6, 1usize..=8, any::<bool>()),
        (mask, shift, left, bias) in (any::<u64>(), 0u32..64, 0u32..32, any::<i32>()),
        bytes in prop::collection::vec(any::<u8>(), 0..24),
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let field = LengthField::new(offset, width, endian).expect("a good field");
        let field = field.mask(mask).shift(shift).scale(1 << left).bias(bias.into()).in_32_bits();
        let verdict = field.parse(&bytes);
        let Some(place) = bytes.get(offset..offset + width) else {
            prop_assert_eq!(verdict, Verdict::NeedMore(offset + width));
            return Ok(());
        };
        let fold = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        let value = if big { place.iter().fold(0, fold) } else { place.iter().rev().fold(0, fold) };
        let low = (((value & mask) >> shift << left) & 0xffff_ffff) as u32;
        let result = low.cast_signed().wrapping_add(bias);
        prop_assert_eq!(verdict, Verdict::from_kernel(result, bytes.len()));
        let text: crate::Native = field.to_string().parse().expect("its own text");
        prop_assert_eq!(text, crate::Native::Length(field));
    }

    /// By itself, a field gives the lengths up to the one that was asked for, and no others.
    #[test]
    fn a_plain_field_says_what_the_field_does(
        (offset, width, big) in (0usize..6, 1usize..=8, any::<bool>()),
        (shift, bias, in_32_bits) in (0u32..70, -300i64..300, any::<bool>()),
        (max_len, wide) in (0u64..70_000, any::<bool>()),
        bytes in prop::collection::vec(prop_oneof![Just(0), any::<u8>()], 14),
    ) {
        let endian = if big { Endian::Big } else { Endian::Little };
        let field = LengthField::new(offset, width, endian).expect("a good field");
        let field = field.shift(shift).bias(bias);
        let field = if in_32_bits { field.in_32_bits() } else { field };
        let max_len = if wide { u64::MAX - max_len } else { max_len };
        let Some(plain) = field.plain(max_len) else {
            // Nothing is left of the field, or of the lengths.
            let shortest = (offset + width).max(usize::try_from(bias).unwrap_or(0));
            prop_assert!(!is_plain(&field) || max_len < shortest as u64);
            return Ok(());
        };
        let word = bytes[plain.offset()..].first_chunk().expect("14 bytes");
        let expected = match field.parse(&bytes) {
            Verdict::Message(frame) if frame.len <= max_len => Some(frame.len),
            _ => None,
        };
        match plain.length(*word) {
            Some(len) => prop_assert_eq!(Some(len), expected),
            // Where a sum wraps, or is below the field's end, the field has more to say.
            None => prop_assert!(in_32_bits || expected.is_none()),
        }
        // Near the end of the bytes, too, if four of them are left.
        for end in offset.max(width)..=bytes.len() {
            let bytes = &bytes[..end];
            let expected = match field.parse(bytes) {
                Verdict::Message(frame) => Some(frame.len),
                _ => None,
            };
            match field.plain_length(bytes) {
                Some(len) => prop_assert_eq!(Some(len), expected),
                None => prop_assert!(in_32_bits || expected.is_none() || end < offset + 4),
            }
        }
    }
}

#[test]
fn a_body_that_is_not_longer_than_the_longest_is_not_called_too_long() {
    // 0 to 255 minus 255: the field alone takes a byte, which no message has.
    let field = field(0, 1, Endian::Big).bias(-255);
    let refused = field.header_for(0);
    assert_eq!(refused, Err(FrameError::NotRepresentable { body_len: 0 }));
}

#[test]
fn no_header_is_made_that_would_be_refused() {
    // Three times the field is beyond 64 bits, though the length is not.
    let field = field(3, 8, Endian::Little)
        .scale(3)
        .bias(-337_709_306_135_906_202);
    let body_len = u64::MAX - 128;
    let refused = field.header_for(body_len);
    assert!(
        matches!(refused, Err(FrameError::BodyTooLong { .. })),
        "{refused:?}"
    );
}
