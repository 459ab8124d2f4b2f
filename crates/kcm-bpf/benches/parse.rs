//! What one parse costs: as a native length field, as a recognised program, interpreted.
//!
//! `cargo bench -p kcm-bpf`. Prints the median time of a parse of the same bytes again and again, and
//! of one that begins where the message before ends, as in a receiver: then the processor cannot
//! begin it before the other one has given its result. With `--test` it only checks that all agree.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use kcm_bpf::{Insn, Program, op};
use kcm_frame::{Framing, Native, Verdict};

const PARSES: u32 = 20_000;
const ROUNDS: usize = 101;

/// Messages of 9 and 10 bytes in turn: 24 bits of length big endian, not counting 9 bytes of
/// header.
fn stream() -> Vec<u8> {
    [
        [0u8, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
    ]
    .iter()
    .flat_map(|message| &message[..9 + usize::from(message[2])])
    .copied()
    .collect()
}

/// Walks over the stream, back to its beginning after two messages.
fn walk(stream: &[u8], parse: impl Fn(&[u8]) -> Verdict) -> u64 {
    let mut total = 0;
    let mut at = 0;
    for _ in 0..PARSES {
        let Verdict::Message(frame) = parse(&stream[at..]) else {
            return 0;
        };
        total += frame.len;
        at = if at == 0 { frame.len as usize } else { 0 };
    }
    total
}

fn measure(name: &str, stream: &[u8], test: bool, parse: impl Fn(&[u8]) -> Verdict) {
    let expected = u64::from(PARSES / 2) * 19;
    assert_eq!(walk(stream, &parse), expected, "{name} disagrees");
    if test {
        return;
    }
    let [apart, chained] = [
        median(|| {
            let mut total = 0;
            for _ in 0..PARSES {
                if let Verdict::Message(frame) = parse(black_box(stream)) {
                    total += frame.len;
                }
            }
            black_box(total);
        }),
        median(|| {
            black_box(walk(black_box(stream), &parse));
        }),
    ];
    println!("{name:35} {apart:5.2} ns apart, {chained:5.2} ns one after the other");
}

/// The median time of rounds, in nanoseconds for each parse.
fn median(round: impl Fn()) -> f64 {
    let mut times: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let begin = Instant::now();
            round();
            begin.elapsed().as_secs_f64() * 1e9 / f64::from(PARSES)
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[ROUNDS / 2]
}

fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn {
        code,
        dst,
        src,
        off,
        imm,
    }
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    // Behind the second message there is room for the load of a third header.
    let mut stream = stream();
    stream.extend([0; 16]);
    let native: Native = "len:size=4,shift=8,bias=9".parse().expect("a good one");
    measure("native length field", &stream, test, |bytes| {
        native.parse(bytes)
    });

    let program = Program::verify(vec![
        insn(op::ALU64 | op::MOV | op::X, op::CTX, 1, 0, 0),
        insn(op::LD | op::ABS | op::W, 0, 0, 0, 0),
        insn(op::ALU64 | op::RSH, 0, 0, 0, 8),
        insn(op::ALU64 | op::ADD, 0, 0, 0, 9),
        insn(op::JMP | op::EXIT, 0, 0, 0, 0),
    ])
    .expect("a safe program");
    let recognised = program.framing().native().expect("a length field");
    measure("five instructions, recognised", &stream, test, |bytes| {
        recognised.parse(bytes)
    });
    let Framing::Closure(interpreted) = program.interpreted() else {
        unreachable!("it is a closure");
    };
    measure("five instructions, interpreted", &stream, test, |bytes| {
        interpreted.parse(bytes)
    });

    // A sum that can overflow 32 bits is no length field, and needs no interpreter either.
    let Framing::Closure(closed) = closed_form().framing() else {
        unreachable!("no length field goes above 32 bits");
    };
    let mut words = Vec::new();
    for len in [9u32, 10] {
        let mut message = vec![0; len as usize];
        message[..4].copy_from_slice(&(len - 4).to_be_bytes());
        words.extend(message);
    }
    words.extend([0; 16]);
    measure("four instructions, as a function", &words, test, |bytes| {
        closed.parse(bytes)
    });
}

/// Thrift's frames: a 32-bit length, not counting its own 4 bytes.
fn closed_form() -> Program {
    Program::verify(vec![
        insn(op::ALU64 | op::MOV | op::X, op::CTX, 1, 0, 0),
        insn(op::LD | op::ABS | op::W, 0, 0, 0, 0),
        insn(op::ALU64 | op::ADD, 0, 0, 0, 4),
        insn(op::JMP | op::EXIT, 0, 0, 0, 0),
    ])
    .expect("a safe program")
}
