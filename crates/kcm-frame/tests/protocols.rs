//! Each protocol that has a name, against bytes that another implementation sent.
//!
//! The streams lie in `protocols/`, with the lengths that their makers counted;
//! `protocols/make.py` says how they came to be and makes them again.

use std::fs;
use std::path::Path;

use kcm_frame::{Assembler, Fault, FrameError, Framing, Limits, Protocol, Step, protocols};
use proptest::prelude::*;
use receiver::receive;

mod receiver;

/// One direction of a recorded connection.
struct Recording {
    name: String,
    protocol: &'static Protocol,
    told: Told,
    bytes: Vec<u8>,
}

/// What its maker said of the messages in it.
enum Told {
    Lengths(Vec<usize>),
    Count(usize),
}

impl Recording {
    /// Fails unless these are the messages.
    fn check(&self, lengths: &[usize]) {
        match &self.told {
            Told::Lengths(told) => assert_eq!(lengths, told, "{}", self.name),
            Told::Count(count) => {
                assert_eq!(lengths.len(), *count, "{}: {lengths:?}", self.name);
                let bytes: usize = lengths.iter().sum();
                assert_eq!(bytes, self.bytes.len(), "{}", self.name);
            }
        }
    }

    fn assembler(&self, limits: Limits) -> Assembler {
        Assembler::new(&self.protocol.framing(), limits)
    }

    /// The lengths as they come when all is there at once, after a check.
    fn lengths(&self) -> Vec<usize> {
        let received = receive(&mut self.assembler(Limits::default()), &self.bytes, &[]);
        assert_eq!(received.fault, None, "{}", self.name);
        assert_eq!(received.rest, [], "{}", self.name);
        self.check(&received.lengths());
        received.lengths()
    }
}

fn recordings() -> Vec<Recording> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocols");
    let mut recordings = Vec::new();
    for entry in fs::read_dir(directory).expect("the directory of recordings") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let text = fs::read_to_string(&path).expect("a readable recording");
            recordings.push(read(name, &text));
        }
    }
    recordings
}

fn read(name: &str, text: &str) -> Recording {
    // NAME-SIDE, and both may have hyphens.
    let protocol = protocols()
        .filter(|protocol| name.starts_with(&format!("{}-", protocol.name())))
        .max_by_key(|protocol| protocol.name().len())
        .unwrap_or_else(|| panic!("{name} is of no protocol"));
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let (kind, numbers) = lines.next().and_then(|line| line.split_once(": ")).unwrap();
    let mut numbers = numbers.split(' ').map(|number| number.parse().unwrap());
    let told = match kind {
        "lengths" => Told::Lengths(numbers.collect()),
        "count" => Told::Count(numbers.next().unwrap()),
        _ => panic!("{name}: {kind}"),
    };
    let mut bytes = Vec::new();
    for line in lines {
        let (digits, times) = match line.split_once('*') {
            Some((digits, times)) => (digits, times.parse().unwrap()),
            None => (line, 1),
        };
        let piece: Vec<u8> = (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect();
        bytes.extend(piece.repeat(times));
    }
    Recording {
        name: name.to_owned(),
        protocol,
        told,
        bytes,
    }
}

#[test]
fn every_protocol_has_a_recording() {
    let recordings = recordings();
    for protocol in protocols() {
        assert!(
            recordings
                .iter()
                .any(|recording| recording.protocol.name() == protocol.name()),
            "{}",
            protocol.name()
        );
    }
}

#[test]
fn messages_are_those_that_the_sender_counted() {
    for recording in recordings() {
        recording.lengths();
    }
}

#[test]
fn every_byte_may_be_the_last_that_came() {
    for recording in recordings() {
        let all: Vec<usize> = (0..recording.bytes.len()).collect();
        let mut assembler = recording.assembler(Limits::default());
        let received = receive(&mut assembler, &recording.bytes, &all);
        assert_eq!(received.fault, None, "{}", recording.name);
        recording.check(&received.lengths());
    }
}

#[test]
fn an_unfinished_message_is_no_fault() {
    for recording in recordings() {
        let lengths = recording.lengths();
        // Of a long stream, some of its beginnings.
        for end in (0..recording.bytes.len()).step_by(1 + recording.bytes.len() / 3000) {
            let mut assembler = recording.assembler(Limits::default());
            let received = receive(&mut assembler, &recording.bytes[..end], &[]);
            assert_eq!(received.fault, None, "{} up to {end}", recording.name);
            assert!(lengths.starts_with(&received.lengths()));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_cuts_give_the_same_messages(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40)
    ) {
        for recording in recordings() {
            let cuts: Vec<usize> = cuts
                .iter()
                .map(|cut| cut.index(recording.bytes.len()))
                .collect();
            let mut assembler = recording.assembler(Limits::default());
            let received = receive(&mut assembler, &recording.bytes, &cuts);
            prop_assert_eq!(received.fault, None);
            recording.check(&received.lengths());
        }
    }

    #[test]
    fn a_damaged_stream_is_cut_the_same_however_it_comes(
        at in any::<prop::sample::Index>(),
        damage in any::<[u8; 3]>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
        max_message in prop_oneof![0_usize..300, Just(16 << 20)],
    ) {
        let limits = Limits::default().with_max_message_bytes(max_message);
        for recording in recordings() {
            let mut bytes = recording.bytes.clone();
            bytes.truncate(4000);
            let at = at.index(bytes.len());
            for (place, damage) in bytes[at..].iter_mut().zip(damage) {
                *place = damage;
            }
            let cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            let whole = receive(&mut recording.assembler(limits), &bytes, &[]);
            let pieces = receive(&mut recording.assembler(limits), &bytes, &cuts);
            // A header limit (the message limit is one) strikes only what comes in pieces.
            if let Some(Fault::HeaderTooLong { .. }) = pieces.fault {
                prop_assert!(whole.lengths().starts_with(&pieces.lengths()));
                continue;
            }
            prop_assert_eq!(whole.lengths(), pieces.lengths());
            prop_assert_eq!(
                whole.fault.map(|fault| fault.errno()),
                pieces.fault.map(|fault| fault.errno()),
                "{}", &recording.name
            );
        }
    }
}

#[test]
fn the_limit_of_a_message_holds() {
    for recording in recordings() {
        let lengths = recording.lengths();
        let longest = *lengths.iter().max().unwrap();
        let limits = Limits::default().with_max_message_bytes(longest - 1);
        let received = receive(&mut recording.assembler(limits), &recording.bytes, &[]);
        assert_eq!(received.fault.map(|fault| fault.errno()), Some(90));
        let before = lengths.iter().position(|&len| len == longest).unwrap();
        assert_eq!(received.lengths(), lengths[..before], "{}", recording.name);
        let limits = Limits::default().with_max_message_bytes(longest);
        let received = receive(&mut recording.assembler(limits), &recording.bytes, &[]);
        assert_eq!(received.fault, None, "{}", recording.name);
    }
}

/// What nobody sends, with the errno that it gets.
#[test]
fn impossible_lengths_are_faults() {
    const EPROTO: i32 = 71;
    const EMSGSIZE: i32 = 90;
    const EPROTONOSUPPORT: i32 = 93;
    let cases: &[(&str, &[u8], i32)] = &[
        // Shorter than the length itself.
        ("9p", &[3, 0, 0, 0], EPROTO),
        ("bgp", &[[0xff; 16].as_slice(), &[0, 17]].concat(), EPROTO),
        ("diameter", &[1, 0, 0, 3], EPROTO),
        ("mongodb", &[3, 0, 0, 0], EPROTO),
        ("nvme-tcp", &[0, 0, 128, 0, 7, 0, 0, 0], EPROTO),
        ("smpp", &[0, 0, 0, 3], EPROTO),
        // Signed numbers below zero, and more than the limit.
        ("cassandra", b"\x04\0\0\0\x07\xff\xff\xff\xff", EMSGSIZE),
        ("kafka", &[0xff; 4], EMSGSIZE),
        ("memcached-binary", &[0xff; 12], EMSGSIZE),
        ("rds", &[0xff; 20], EMSGSIZE),
        ("thrift", b"\x80\x01\0\x01", EMSGSIZE),
        ("mysql", b"\xff\xff\xff\0", EMSGSIZE),
        ("iscsi", &[0xff; 8], EMSGSIZE),
        // The number goes on for too long.
        ("mqtt", b"\x30\x80\x80\x80\x80\x01", EPROTO),
        ("ldap", b"\x30\x80", EPROTO),
        ("ldap", b"\x30\x89", EPROTO),
        ("ldap", b"\x30\x84\xff\xff\xff\xff", EMSGSIZE),
        ("ldap", b"\x16\x03\x01", EPROTO),
        ("websocket", b"\x82\x7f\x80\0\0\0\0\0\0\0", EPROTO),
        (
            "websocket",
            b"\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
            EMSGSIZE,
        ),
        ("websocket", b"\x88\x7e", EPROTO),
        // Another protocol.
        ("http2", b"GET / HTTP/1.1\r\n\r\n", EPROTO),
        ("http2", b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", EPROTO),
        ("postgres", b"\x16\x03\x01\x02\0\x01", EPROTO),
        ("postgres", &[0, 0, 0, 7], EPROTO),
        ("postgres", &[0, 1, 0, 0], EPROTO),
        ("postgres", b"R\0\0\0\x03", EPROTO),
        ("amqp", b"GET /", EPROTO),
        ("amqp", b"AMQP\x01\x01\0\x0a", EPROTONOSUPPORT),
        ("amqp", b"AMQP\0\x01\0\0\0\0\0\x07", EPROTO),
        ("amqp", b"\x01\0\0\xff\xff\xff\xff", EMSGSIZE),
        ("rpc", &[0xff; 4], EMSGSIZE),
        ("rpc", b"\0\0\0\x04data\x80\xff\xff\xff", EMSGSIZE),
    ];
    for &(name, bytes, errno) in cases {
        let framing: Framing = name.parse().unwrap();
        let one_by_one: Vec<usize> = (0..bytes.len()).collect();
        for cuts in [&[], &one_by_one[..]] {
            let mut assembler = Assembler::new(&framing, Limits::default());
            let received = receive(&mut assembler, bytes, cuts);
            let fault = received.fault.map(|fault| fault.errno());
            assert_eq!(fault, Some(errno), "{name}: {bytes:?}");
        }
    }
}

#[test]
fn a_header_that_is_made_is_one_that_is_read() {
    let mut made = 0;
    for protocol in protocols() {
        let framing = protocol.framing();
        for body in [0, 4, 100, 128, 1000, 65_536, 1 << 20] {
            let header = match framing.header_for(body) {
                Ok(header) => header,
                Err(FrameError::NoHeader | FrameError::BodyTooLong { .. }) => continue,
                Err(error) => panic!("{}: {error}", protocol.name()),
            };
            let len = header.len() as u64 + body;
            let mut assembler = Assembler::new(&framing, Limits::default());
            // HTTP/2 begins with no frame of 64 KiB, nor does anybody send one before its settings.
            if protocol.name() == "http2" && body >= 1 << 16 {
                assert!(matches!(assembler.step(&header), Step::Fault(_)));
                continue;
            }
            let known = match assembler.step(&header) {
                Step::Message(frame) => Some(frame.len),
                Step::Incomplete { len, .. } => len.map(|len| len as u64),
                _ => None,
            };
            assert_eq!(known, Some(len), "{}, body of {body}", protocol.name());
            made += 1;
        }
    }
    assert!(made > 100, "{made}");
}
