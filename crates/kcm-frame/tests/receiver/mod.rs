//! A receiver that takes messages off a stream as it arrives in pieces, and
//! watches the assembler while it does.

use kcm_frame::{Assembler, Fault, Frame, Stateless, Step};

/// What a receiver gets out of a stream that arrives up to each of `cuts`, and
/// then as a whole.
pub(crate) struct Received {
    pub(crate) messages: Vec<Vec<u8>>,
    pub(crate) fault: Option<Fault>,
    pub(crate) rest: Vec<u8>,
}

impl Received {
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.messages.iter().map(Vec::len).collect()
    }
}

/// Runs an assembler over `stream` and checks the promises that hold for every
/// framing on the way.
pub(crate) fn receive(assembler: &mut Assembler, stream: &[u8], cuts: &[usize]) -> Received {
    let mut arrivals: Vec<usize> = cuts.iter().map(|&cut| cut.min(stream.len())).collect();
    arrivals.push(stream.len());
    arrivals.sort_unstable();
    let mut messages = Vec::new();
    let mut start = 0;
    // Where a message begins of which something was shown.
    let mut shown = None;
    for end in arrivals {
        loop {
            let bytes = &stream[start..end];
            let is_one = assembler.is_one_message(bytes);
            let step = assembler.step(bytes);
            if shown.replace(start) != Some(start) {
                let native = matches!(assembler.stateless(), Some(Stateless::Native(_)));
                let all = Frame::new(bytes.len() as u64);
                assert_eq!(is_one, native && step == Step::Message(all), "{step:?}");
            }
            // A parser of no principle may say something else about a message
            // that is there, once it is asked anew.
            if matches!(assembler.stateless(), Some(Stateless::Native(_)))
                || !matches!(step, Step::Message(_))
            {
                assert_eq!(assembler.step(bytes), step, "asked twice");
            }
            match step {
                Step::Message(frame) => {
                    let len = usize::try_from(frame.len).expect("a message that is there");
                    assert!(len > 0 && len <= bytes.len());
                    assert!(len <= assembler.limits().max_message_bytes);
                    assembler.delivered(&bytes[..len]);
                    messages.push(bytes[..len].to_vec());
                    start += len;
                }
                Step::Incomplete { need, len } => {
                    assert!(need > bytes.len());
                    assert!(need <= assembler.limits().max_message_bytes.max(1));
                    assert!(len.is_none_or(|len| len >= need));
                    break;
                }
                Step::Fault(fault) => {
                    assert!(fault.errno() > 0);
                    assert_eq!(assembler.step(&[]), step, "asked later");
                    let rest = stream[start..].to_vec();
                    return Received {
                        messages,
                        fault: Some(fault),
                        rest,
                    };
                }
            }
        }
    }
    Received {
        messages,
        fault: None,
        rest: stream[start..].to_vec(),
    }
}
