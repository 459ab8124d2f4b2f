//! A parser with state, as a protocol with a connection preface needs it: 24
//! bytes once, and frames with a 24-bit length and 9 bytes of header from then
//! on. What must not happen is that looking moves the state.

use kcm_frame::{
    Assembler, Endian, FrameError, Framing, Header, LengthField, Limits, Parser, Step, Verdict,
};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const ENOPROTOOPT: i32 = 92;

struct Prefaced {
    frames: LengthField,
    preface_seen: bool,
}

impl Prefaced {
    fn framing() -> Framing {
        let frames = LengthField::new(0, 3, Endian::Big).unwrap().bias(9);
        Framing::stateful(move || Self {
            frames,
            preface_seen: false,
        })
    }
}

impl Parser for Prefaced {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        if self.preface_seen {
            return self.frames.parse(bytes);
        }
        match bytes.get(..PREFACE.len()) {
            Some(preface) if preface == PREFACE => Verdict::message(24),
            Some(_) => Verdict::Error(ENOPROTOOPT),
            None => Verdict::NeedMore(24),
        }
    }

    fn delivered(&mut self, message: &[u8]) {
        assert!(self.preface_seen || message == PREFACE);
        self.preface_seen = true;
    }

    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        self.frames.header_for(body_len)
    }
}

/// The preface, and frames with bodies of 5, 0 and 300 bytes.
fn stream() -> (Vec<u8>, Vec<usize>) {
    let framing = Prefaced::framing();
    let (mut stream, mut lengths) = (PREFACE.to_vec(), vec![24]);
    for body in [5_usize, 0, 300] {
        stream.extend_from_slice(&framing.header_for(body as u64).unwrap());
        stream.resize(stream.len() + body, 0xff);
        lengths.push(9 + body);
    }
    (stream, lengths)
}

/// Takes what is there off the stream, each step three times over.
fn take(assembler: &mut Assembler, bytes: &[u8], lengths: &mut Vec<usize>) -> usize {
    let mut taken = 0;
    loop {
        let rest = &bytes[taken..];
        let step = assembler.step(rest);
        assert_eq!(assembler.step(rest), step);
        assert_eq!(assembler.step(rest), step);
        match step {
            Step::Message(frame) => {
                let len = usize::try_from(frame.len).unwrap();
                assembler.delivered(&rest[..len]);
                lengths.push(len);
                taken += len;
            }
            Step::Incomplete { .. } => return taken,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn every_cut_gives_the_preface_and_the_frames() {
    let (stream, expected) = stream();
    for cut in 0..=stream.len() {
        let mut assembler = Assembler::new(&Prefaced::framing(), Limits::default());
        let mut lengths = Vec::new();
        let taken = take(&mut assembler, &stream[..cut], &mut lengths);
        take(&mut assembler, &stream[taken..], &mut lengths);
        assert_eq!(lengths, expected, "cut at {cut}");
    }
}

#[test]
fn looking_does_not_move_the_state() {
    let mut parser = Prefaced {
        frames: LengthField::new(0, 3, Endian::Big).unwrap().bias(9),
        preface_seen: false,
    };
    let (stream, _) = stream();
    for _ in 0..3 {
        assert_eq!(parser.parse(&stream), Verdict::message(24));
    }
    parser.delivered(&stream[..24]);
    for _ in 0..3 {
        assert_eq!(parser.parse(&stream[24..]), Verdict::message(14));
    }
}

#[test]
fn connections_do_not_share_state() {
    let framing = Prefaced::framing();
    let (stream, expected) = stream();
    let mut first = Assembler::new(&framing, Limits::default());
    let mut lengths = Vec::new();
    take(&mut first, &stream, &mut lengths);
    assert_eq!(lengths, expected);
    let mut second = Assembler::new(&framing, Limits::default());
    assert!(
        matches!(second.step(&stream[24..]), Step::Fault(fault) if fault.errno() == ENOPROTOOPT)
    );
}

#[test]
fn a_preface_too_long_for_the_limits_is_refused_at_its_first_byte() {
    let limits = Limits::default().with_max_header_bytes(23);
    let mut assembler = Assembler::new(&Prefaced::framing(), limits);
    assert!(matches!(assembler.step(b"P"), Step::Fault(fault) if fault.errno() == 90));
}
