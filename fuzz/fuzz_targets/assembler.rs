//! Any framing, limits, stream and way of arriving.
//!
//! The input's first bytes choose a framing, limits and sizes of arrivals; the
//! rest is the stream. The stream is cut twice, in those arrivals and in one
//! piece, and both must give the same messages; on the way each answer of the
//! assembler is held against its promises.

#![no_main]

use kcm_frame::{
    Assembler, Endian, Fault, Fixed, Framing, LengthField, Limits, Native, Parser, Step, Varint,
    Verdict,
};
use libfuzzer_sys::fuzz_target;

/// Takes choices off the front of the input; an empty input chooses zeros.
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        self.bytes::<1>()[0]
    }

    fn below(&mut self, end: u8) -> usize {
        usize::from(self.byte() % end)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let taken = self.0.len().min(N);
        let mut out = [0; N];
        out[..taken].copy_from_slice(&self.0[..taken]);
        self.0 = &self.0[taken..];
        out
    }
}

/// A small number mostly, so that messages end within the stream.
fn number(choices: &mut Choices) -> u64 {
    match choices.byte() {
        255 => u64::from_le_bytes(choices.bytes()),
        small => u64::from(small),
    }
}

fn length_field(choices: &mut Choices) -> LengthField {
    let how = choices.byte();
    let endian = if how & 1 == 0 {
        Endian::Big
    } else {
        Endian::Little
    };
    let (offset, width) = (choices.below(24), 1 + choices.below(8));
    let mut field = LengthField::new(offset, width, endian).expect("in range");
    if how & 2 != 0 {
        field = field.mask(u64::from_le_bytes(choices.bytes()));
    }
    if how & 4 != 0 {
        field = field.shift(choices.below(66) as u32);
    }
    if how & 8 != 0 {
        field = field.scale(number(choices));
    }
    if how & 16 != 0 {
        field = field.bias(i64::from(choices.byte() as i8));
    }
    if how & 32 != 0 {
        field = field.bias(i64::from_le_bytes(choices.bytes()));
    }
    field
}

/// A preface of five bytes, then messages whose length also depends on how many
/// came before.
struct Stateful {
    messages: u64,
}

impl Parser for Stateful {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        match bytes {
            _ if self.messages == 0 => Verdict::message(5),
            [] | [_] => Verdict::NeedMore(2),
            [255, ..] => Verdict::Error(74),
            [len, odd, ..] => {
                // Never below the two bytes it takes to tell.
                Verdict::message(2 + u64::from(*len) + (self.messages + u64::from(*odd)) % 2)
            }
        }
    }

    fn delivered(&mut self, message: &[u8]) {
        assert!(!message.is_empty());
        self.messages += 1;
    }
}

fn framing(choices: &mut Choices) -> Framing {
    match choices.below(8) {
        0..4 => length_field(choices).into(),
        4 => {
            let (offset, max) = (choices.below(24), 1 + choices.below(10));
            Varint::new(offset, max).expect("in range").into()
        }
        5 => Fixed::new(number(choices).max(1)).expect("not zero").into(),
        6 => {
            let end = choices.byte();
            Framing::closure(
                move |bytes| match bytes.iter().position(|&byte| byte == end) {
                    Some(at) => Verdict::message(at as u64 + 1),
                    None => Verdict::NeedMore(0),
                },
            )
        }
        _ => Framing::stateful(|| Stateful { messages: 0 }),
    }
}

/// All messages' lengths, and the fault at the end if there is one.
fn run(
    framing: &Framing,
    limits: Limits,
    stream: &[u8],
    mut arrival: impl FnMut() -> usize,
) -> (Vec<usize>, Option<Fault>) {
    let mut assembler = Assembler::new(framing, limits);
    let (mut start, mut end, mut lengths) = (0, 0, Vec::new());
    loop {
        let bytes = &stream[start..end];
        let step = assembler.step(bytes);
        assert_eq!(assembler.step(bytes), step, "asked twice");
        match step {
            Step::Message(frame) => {
                let len = usize::try_from(frame.len).expect("a message that is there");
                assert!(len > 0 && len <= bytes.len() && len <= limits.max_message_bytes);
                if let Some(native) = framing.native() {
                    check_native(native, &bytes[..len]);
                }
                assembler.delivered(&bytes[..len]);
                lengths.push(len);
                start += len;
            }
            Step::Incomplete { need, len } => {
                assert!(need > bytes.len());
                assert!(bytes.is_empty() || need <= limits.max_message_bytes);
                assert!(len.is_none_or(|len| len == need));
                if end == stream.len() {
                    return (lengths, None);
                }
                end = stream.len().min(end + arrival().max(1));
            }
            Step::Fault(fault) => {
                assert!(fault.errno() > 0 && !fault.to_string().is_empty());
                assert_eq!(assembler.step(&[]), step, "asked later");
                return (lengths, Some(fault));
            }
        }
    }
}

/// The message parses alone as in the stream, and a header made for its body
/// gives a message of the same length.
fn check_native(native: Native, message: &[u8]) {
    let len = message.len() as u64;
    assert_eq!(native.parse(message), Verdict::message(len));
    let Ok(empty) = native.header_for(0) else {
        return;
    };
    if let Some(body_len) = len.checked_sub(empty.len() as u64)
        && let Ok(header) = native.header_for(body_len)
        && !header.is_empty()
    {
        let total = header.len() as u64 + body_len;
        assert_eq!(native.parse(&header), Verdict::message(total));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut choices = Choices(input);
    let framing = framing(&mut choices);
    let max_message = usize::from(u16::from_le_bytes(choices.bytes()));
    let max_header = usize::from(choices.byte());
    let limits = Limits::default()
        .with_max_message_bytes(max_message)
        .with_max_header_bytes(if max_header == 255 {
            usize::MAX
        } else {
            max_header
        });
    let arrivals: [u8; 4] = choices.bytes();
    let stream = choices.0;

    let mut turn = arrivals.iter().cycle();
    let (lengths, fault) = run(&framing, limits, stream, || {
        turn.next().copied().map_or(1, usize::from)
    });
    let (whole_lengths, whole_fault) = run(&framing, limits, stream, || stream.len());
    match fault {
        // A header limit can strike only a header that arrives in pieces.
        Some(Fault::HeaderTooLong { .. }) => {
            assert!(whole_lengths.starts_with(&lengths));
        }
        _ => {
            assert_eq!(lengths, whole_lengths);
            assert_eq!(
                fault.map(|fault| fault.errno()),
                whole_fault.map(|fault| fault.errno())
            );
        }
    }
});
