//! Any instructions, verified; what passes runs over any bytes.
//!
//! The verifier must say yes or no. A program that it accepts never leaves its bounds nor takes more
//! turns than was found possible (both are debug assertions where it runs), gives the same for the
//! same bytes, and what it was recognised as gives the same as its instructions. So does the form that
//! is found from a message, of others too.
#![no_main]

use kcm_bpf::{Insn, Program, op};
use kcm_frame::{Framing, QuickForm, Verdict};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The message's length, the message, and the rest is the program.
    let Some((&choice, rest)) = input.split_first() else {
        return;
    };
    let (message, code) = rest.split_at(usize::from(choice % 64).min(rest.len()));
    let (code, _) = code.as_chunks();
    let mut insns: Vec<Insn> = code.iter().copied().map(Insn::decode).collect();
    if choice < 192 {
        // Nearer to a program: it begins as most do, ends with its exit, and has registers and jumps
        // that there are.
        for insn in &mut insns {
            insn.dst %= 11;
            if insn.code & 0x07 != op::JMP || insn.code & 0xf0 != op::CALL {
                insn.src %= 11;
            }
            if matches!(insn.class(), op::JMP | op::JMP32) {
                insn.off %= 8;
            }
        }
        let [context, zero, exit] = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0xb7, 0, 0, 0, 0, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ]
        .map(Insn::decode);
        insns.splice(0..0, [context, zero]);
        insns.push(exit);
    }
    let Ok(program) = Program::verify(insns) else {
        return;
    };
    for len in [0, 1, 2, 3, 4, 5, 8, message.len()] {
        let bytes = &message[..len.min(message.len())];
        let outcome = program.run(bytes, 7);
        assert_eq!(outcome, program.run(bytes, 7));
        let framing = program.framing();
        let interpreted = parse(&program.interpreted(), bytes);
        match (interpreted, parse(&framing, bytes)) {
            (Verdict::NeedMore(_), Verdict::NeedMore(_)) => {}
            (interpreted, framed) => assert_eq!(interpreted, framed),
        }
        if let Framing::Closure(function) = &framing
            && let Some(len) = function
                .quick_form(bytes)
                .and_then(|form| form.length_of(bytes))
        {
            assert_eq!(interpreted, Verdict::message(len));
        }
    }
    if let Some(form) = program.quick_form(message) {
        like(&program, &form, message);
    }
    assert!(!program.account().to_string().is_empty());
});

/// The form that was found from a message knows it, and says what the program says of others.
fn like(program: &Program, form: &QuickForm, message: &[u8]) {
    assert!(form.length_of(message).is_some());
    let says = |bytes: &[u8]| {
        if let Some(len) = form.length_of(bytes) {
            assert_eq!(
                program.run(bytes, 9).verdict(bytes.len()),
                Verdict::message(len)
            );
        }
    };
    let mut other = message.to_vec();
    for at in 0..message.len() {
        for change in [1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80, 0x7f, 0xff] {
            other[at] ^= change;
            says(&other);
            // Two at a time: what is pinned may hide one alone.
            if let Some(next) = other.get_mut(at + 1) {
                *next ^= change;
                says(&other);
                other[at + 1] ^= change;
            }
            other[at] ^= change;
        }
        says(&message[..at]);
    }
    says(&[message, &[0; 40]].concat());
}

fn parse(framing: &Framing, bytes: &[u8]) -> Verdict {
    match framing {
        Framing::Closure(f) => f.parse(bytes),
        native => native.native().expect("one of the two").parse(bytes),
    }
}
