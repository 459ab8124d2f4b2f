//! Everything that a parser program can be read from: text, an array of classic
//! instructions, raw instructions, an object, and a right object with damage.
//!
//! The first byte chooses which. Whatever comes is a program or an error; a
//! program has its jumps and calls where they should be.

#![no_main]

use kcm_bpf::{Error, Insn, MAX_INSNS, SockFilter, classic, disassemble, elf, op};
use libfuzzer_sys::fuzz_target;

const OBJECTS: [&[u8]; 4] = [
    include_bytes!("../../crates/kcm-bpf/tests/objects/ldap.o"),
    include_bytes!("../../crates/kcm-bpf/tests/objects/subprogram.o"),
    include_bytes!("../../crates/kcm-bpf/tests/objects/sections.o"),
    include_bytes!("../../crates/kcm-bpf/tests/objects/map.o"),
];

fuzz_target!(|input: &[u8]| {
    let Some((&choice, rest)) = input.split_first() else {
        return;
    };
    match choice % 5 {
        0 => text(&String::from_utf8_lossy(rest)),
        1 => array(rest),
        2 => raw(rest),
        3 => object(rest),
        _ => damaged(OBJECTS[usize::from(choice / 5) % OBJECTS.len()], rest),
    }
});

fn text(text: &str) {
    let Ok(program) = classic::parse_text(text).inspect_err(check_error) else {
        return;
    };
    let mut written = program.len().to_string();
    for insn in &program {
        written += &format!(",{insn}");
    }
    assert_eq!(classic::parse_text(&written), Ok(program.clone()));
    translate(&program);
}

fn array(bytes: &[u8]) {
    let (chunks, _) = bytes.as_chunks();
    let insn = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; 8]| SockFilter {
        code: u16::from_le_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_le_bytes([k0, k1, k2, k3]),
    };
    translate(&chunks.iter().map(insn).collect::<Vec<_>>());
}

fn translate(program: &[SockFilter]) {
    let Ok(translated) = classic::to_ebpf(program).inspect_err(check_error) else {
        return;
    };
    check_listing(&translated);
    for (index, insn) in translated.iter().enumerate() {
        assert!(insn.dst <= op::FP && insn.src <= op::FP);
        if matches!(insn.class(), op::JMP | op::JMP32) && insn.code != op::JMP | op::EXIT {
            assert!(insn.off >= 0, "backwards: {insn}");
            assert!(index + 1 + insn.off as usize <= translated.len());
        }
    }
    assert_eq!(translated.last().map(|i| i.code), Some(op::JMP | op::EXIT));
}

fn raw(bytes: &[u8]) {
    let Ok(program) = Insn::decode_all(bytes).inspect_err(check_error) else {
        return;
    };
    let written: Vec<u8> = program.iter().flat_map(|insn| insn.encode()).collect();
    assert_eq!(written, bytes);
    check_listing(&program);
}

fn damaged(object: &[u8], damage: &[u8]) {
    let mut bytes = object.to_vec();
    let (chunks, _) = damage.as_chunks();
    for &[a0, a1, value] in chunks {
        let at = usize::from(u16::from_le_bytes([a0, a1])) % bytes.len();
        bytes[at] = value;
    }
    self::object(&bytes);
}

fn object(bytes: &[u8]) {
    for section in [None, Some(".text"), Some("second")] {
        let Ok(program) = elf::load(bytes, section).inspect_err(check_error) else {
            continue;
        };
        assert!((1..=MAX_INSNS).contains(&program.len()));
        check_listing(&program);
        let mut insns = program.iter().enumerate();
        while let Some((index, insn)) = insns.next() {
            if insn.is_wide() {
                insns.next();
            } else if insn.is_local_call() {
                let target = index as i64 + 1 + i64::from(insn.imm);
                let target = usize::try_from(target).expect("a call to before the program");
                assert!(target < program.len());
            }
        }
    }
}

fn check_listing(program: &[Insn]) {
    let lines = disassemble(program).to_string().lines().count();
    assert!((program.len().div_ceil(2)..=program.len()).contains(&lines));
}

fn check_error(error: &Error) {
    assert!([2, 7, 8, 22, 95].contains(&error.errno()), "{error}");
    assert!(!error.to_string().is_empty());
}
