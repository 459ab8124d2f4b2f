//! Properties that hold for every native framing, every stream and every way in
//! which the stream arrives.

mod model;
mod receiver;

use kcm_frame::{Assembler, Fault, Frame, FrameError, Framing, Limits, Native, Step, Verdict};
use model::{Parts, assembler, parts};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use receiver::receive;

/// A stream of messages with bodies as near to the wanted lengths as the framing
/// can say, and the length of each message.
fn stream_of(native: Native, bodies: &[u64], fill: &[u8]) -> (Vec<u8>, Vec<usize>) {
    let mut fill = fill.iter().copied().cycle();
    let (mut stream, mut lengths) = (Vec::new(), Vec::new());
    for &wanted in bodies {
        // Fixed lengths, scales and masks with holes allow few lengths.
        let found = (wanted..wanted + 100)
            .find_map(|body| native.header_for(body).ok().map(|header| (body, header)));
        let Some((body, header)) = found else {
            continue;
        };
        stream.extend_from_slice(&header);
        stream.extend(fill.by_ref().take(usize::try_from(body).unwrap()));
        lengths.push(header.len() + usize::try_from(body).unwrap());
    }
    (stream, lengths)
}

fn bodies() -> impl Strategy<Value = Vec<u64>> {
    vec(prop_oneof![Just(0_u64), 0_u64..40, 0_u64..400], 0..8)
}

/// Text that is nearly a specification.
fn nearly_specs() -> impl Strategy<Value = String> {
    let piece = select(vec![
        "len",
        "varint",
        "fixed",
        ":",
        ",",
        "=",
        "+",
        "-",
        "u",
        "8",
        "16",
        "32",
        "64",
        "be",
        "le",
        "size",
        "offset",
        "endian",
        "big",
        "little",
        "mask",
        "shift",
        "scale",
        "bias",
        "max",
        "0x",
        "ff",
        "0",
        "1",
        "4",
        "9",
        "18446744073709551616",
        " ",
        "é",
        "size=4",
        "u32be",
    ]);
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

fn verdicts() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        4 => (0_u64..40).prop_map(Verdict::message),
        1 => any::<u64>().prop_map(Verdict::message),
        4 => (0_usize..40).prop_map(Verdict::NeedMore),
        1 => any::<usize>().prop_map(Verdict::NeedMore),
        1 => any::<i32>().prop_map(Verdict::Error),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(512) })]

    #[test]
    fn messages_come_out_as_they_went_in(
        parts in parts(), bodies in bodies(), fill in vec(any::<u8>(), 1..50),
        cuts in vec(0_usize..2000, 0..20),
    ) {
        let (stream, lengths) = stream_of(parts.native(), &bodies, &fill);
        let received = receive(&mut assembler(parts, Limits::default()), &stream, &cuts);
        prop_assert_eq!(received.fault, None);
        prop_assert_eq!(received.lengths(), lengths);
        prop_assert_eq!(received.messages.concat(), stream);
    }

    #[test]
    fn every_single_cut_is_survived(
        parts in parts(), bodies in bodies(), fill in vec(any::<u8>(), 1..50),
    ) {
        let (stream, lengths) = stream_of(parts.native(), &bodies, &fill);
        let mut all = assembler(parts, Limits::default());
        let every: Vec<usize> = (0..stream.len()).collect();
        prop_assert_eq!(receive(&mut all, &stream, &every).lengths(), lengths.clone());
        for cut in every {
            let mut one = assembler(parts, Limits::default());
            prop_assert_eq!(receive(&mut one, &stream, &[cut]).lengths(), lengths.clone());
        }
    }

    #[test]
    fn any_bytes_are_cut_as_the_model_cuts_them(
        parts in parts(), stream in vec(prop_oneof![0_u8..40, any::<u8>()], 0..400),
        cuts in vec(0_usize..400, 0..20), max_message in 30_usize..300,
    ) {
        let limits = Limits::default().with_max_message_bytes(max_message);
        let received = receive(&mut assembler(parts, limits), &stream, &cuts);
        let (lengths, errno) = parts.cut(&stream, max_message);
        prop_assert_eq!(received.lengths(), lengths);
        prop_assert_eq!(received.fault.map(|fault| fault.errno()), errno);
        prop_assert_eq!([received.messages.concat(), received.rest].concat(), stream);
        // An impossible length is shown together with what was expected.
        if let Some(Fault::BadLength { len, least }) = received.fault {
            prop_assert!(len < least || len == u64::MAX);
        }
    }

    #[test]
    fn a_parse_agrees_with_the_model_at_every_prefix(
        parts in parts(), bytes in vec(any::<u8>(), 0..40),
    ) {
        for end in 1..=bytes.len() {
            let verdict = parts.native().parse(&bytes[..end]);
            match (parts.length(&bytes[..end]), verdict) {
                (None, Verdict::NeedMore(need)) => prop_assert!(need > end),
                (Some(Ok(len)), Verdict::Message(frame)) => prop_assert_eq!(frame, Frame::new(len)),
                (Some(Err(())), Verdict::Error(71)) => {}
                (model, _) => prop_assert!(false, "{:?} at {}: {:?}", verdict, end, model),
            }
        }
    }

    #[test]
    fn a_header_and_its_body_are_one_message(parts in parts(), body_len in any::<u64>(), small in 0_u64..300) {
        for body_len in [small, body_len, body_len >> 32, u64::MAX - small] {
            match parts.native().header_for(body_len) {
                Ok(header) => {
                    let len = header.len() as u64 + body_len;
                    // One byte of body stands for all where there is no header.
                    let bytes = if header.is_empty() { &[0][..] } else { &header[..] };
                    prop_assert_eq!(parts.native().parse(bytes), Verdict::message(len));
                }
                Err(FrameError::BodyTooLong { max, .. }) => prop_assert!(body_len > max),
                Err(FrameError::NotRepresentable { .. } | FrameError::HeaderTooLong { .. }) => {}
                Err(other) => prop_assert!(false, "{}", other),
            }
        }
    }

    #[test]
    fn no_header_is_withheld(
        mask in any::<u64>(), shift in 0_u32..9, scale in 0_u64..5, bias in -9_i64..20,
        body_len in 0_u64..300,
    ) {
        let parts = Parts::Length { offset: 1, width: 1, big: true, mask, shift, scale, bias };
        let header_len = if scale == 1 { u64::try_from(bias).unwrap_or(0).max(2) } else { 2 };
        let possible = (0..=255).any(|byte| parts.length(&[0, byte]) == Some(Ok(header_len + body_len)));
        let header = parts.native().header_for(body_len);
        prop_assert_eq!(header.is_ok(), possible, "{:?}", header);
    }

    #[test]
    fn text_reads_back_as_it_was_written(parts in parts()) {
        let native = parts.native();
        let text = native.to_string();
        prop_assert_eq!(text.parse::<Native>(), Ok(native), "{}", text);
        prop_assert_eq!(text.parse::<Framing>().map(|framing| framing.native()), Ok(Some(native)));
    }

    #[test]
    fn any_text_is_read_or_refused(text in prop_oneof!["\\PC{0,40}", nearly_specs()]) {
        match text.parse::<Native>() {
            Ok(native) => prop_assert_eq!(native.to_string().parse::<Native>(), Ok(native)),
            Err(error) => {
                let named = format!("{text:?}: ");
                prop_assert!(error.to_string().starts_with(&named), "{}", error);
            }
        }
    }

    #[test]
    fn a_parser_that_says_anything_breaks_nothing(
        answers in vec(verdicts(), 64), stream in vec(any::<u8>(), 0..200),
        cuts in vec(0_usize..200, 0..40), max_message in 0_usize..100, max_header in 0_usize..100,
    ) {
        let framing = Framing::closure(move |bytes| {
            answers[(bytes.len() * 7 + usize::from(bytes[0])) % answers.len()]
        });
        let limits = Limits::default()
            .with_max_message_bytes(max_message)
            .with_max_header_bytes(max_header);
        let received = receive(&mut Assembler::new(&framing, limits), &stream, &cuts);
        prop_assert_eq!([received.messages.concat(), received.rest].concat(), stream);
    }

    #[test]
    fn limits_and_framings_can_change_at_any_time(
        first in parts(), second in parts(), stream in vec(0_u8..40, 1..200),
        cut in 0_usize..200, max_message in 0_usize..100,
    ) {
        let mut changed = assembler(first, Limits::default());
        let cut = cut.min(stream.len());
        let before = receive(&mut changed, &stream[..cut], &[]);
        let limits = Limits::default().with_max_message_bytes(max_message);
        changed.set_framing(&Framing::from(second.native()));
        changed.set_limits(limits);
        let rest = [&before.rest, &stream[cut..]].concat();
        let after = receive(&mut changed, &rest, &[]);
        match before.fault {
            Some(_) => prop_assert_eq!(after.fault, before.fault),
            None => {
                let fresh = receive(&mut assembler(second, limits), &rest, &[]);
                prop_assert_eq!(after.lengths(), fresh.lengths());
                prop_assert_eq!(after.fault, fresh.fault);
            }
        }
    }
}

#[test]
fn a_message_takes_no_parse_for_each_of_its_bytes() {
    let mut assembler = Assembler::new(&"u32be+4".parse().unwrap(), Limits::default());
    assert_eq!(
        assembler.step(&[0]),
        Step::Incomplete { need: 4, len: None }
    );
    // Other bytes at the front than before: nobody looks at them.
    assert_eq!(
        assembler.step(&[9, 9, 9]),
        Step::Incomplete { need: 4, len: None }
    );
}
