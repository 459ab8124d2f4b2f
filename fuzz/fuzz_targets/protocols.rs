//! Any bytes as any protocol that has a name.
//!
//! The input's first bytes choose the protocol, a limit and sizes of arrivals;
//! the rest is the stream. It is cut twice, in those arrivals and in one piece:
//! both must give the same messages and end in the same way. What is a function says what its quick form
//! says.

#![no_main]

use kcm_frame::{Assembler, Fault, Framing, Limits, Stateless, Step, Verdict, protocols};
use libfuzzer_sys::fuzz_target;

/// All messages' lengths, and the fault at the end if there is one.
fn run(
    framing: &Framing,
    limits: Limits,
    stream: &[u8],
    mut arrival: impl FnMut() -> usize,
) -> (Vec<usize>, Option<Fault>) {
    let mut assembler = Assembler::new(framing, limits);
    let (mut start, mut end, mut lengths) = (0, 0, Vec::new());
    let mut forms = Vec::new();
    loop {
        let bytes = &stream[start..end];
        let step = assembler.step(bytes);
        assert_eq!(assembler.step(bytes), step, "asked twice");
        if let Some(Stateless::Closure(function)) = assembler.stateless()
            && let Some(form) = assembler.quick_form(bytes, 256 * lengths.len() as u64)
        {
            // The form of one message, asked of all that follow.
            forms.push(form);
            for form in forms.iter().rev().take(4) {
                if let Some(len) = form.length_of(bytes) {
                    assert_eq!(function.parse(bytes), Verdict::message(len));
                }
            }
        }
        match step {
            Step::Message(frame) => {
                let len = usize::try_from(frame.len).expect("a message that is there");
                assert!(len > 0 && len <= bytes.len() && len <= limits.max_message_bytes);
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

fuzz_target!(|input: &[u8]| {
    let Some((&[which, limit_low, limit_high, ref arrivals @ ..], stream)) =
        input.split_first_chunk::<7>()
    else {
        return;
    };
    let number = usize::from(which) % protocols().len();
    let protocol = protocols().nth(number).expect("below the length");
    let framing = protocol.framing();
    let max_message = match u16::from_le_bytes([limit_low, limit_high]) {
        // The default, for what is announced and never comes.
        0 => Limits::default().max_message_bytes,
        bytes => bytes.into(),
    };
    let limits = Limits::default().with_max_message_bytes(max_message);

    let mut turn = arrivals.iter().cycle();
    let (lengths, fault) = run(&framing, limits, stream, || {
        turn.next().copied().map_or(1, usize::from)
    });
    let (whole_lengths, whole_fault) = run(&framing, limits, stream, || stream.len());
    let name = protocol.name();
    match fault {
        // The message limit strikes a header that arrives in pieces before it
        // is known what is in it.
        Some(Fault::HeaderTooLong { .. }) => assert!(whole_lengths.starts_with(&lengths), "{name}"),
        _ => {
            assert_eq!(lengths, whole_lengths, "{name}");
            let [fault, whole_fault] = [fault, whole_fault].map(|it| it.map(|it| it.errno()));
            assert_eq!(fault, whole_fault, "{name}");
        }
    }
});
