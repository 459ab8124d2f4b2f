//! Verified programs: interpreted, recognised, and in an evaluator that is as plain as can be, they
//! give the same.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::forms::agrees_in_form;
use common::generate::{Random, program, spoil};
use common::{good_program, run, run_over};
use kcm_bpf::{Insn, Program, classic, disassemble, elf, op::*};
use kcm_frame::{Framing, Verdict};
use proptest::prelude::*;

fn parse(framing: &Framing, bytes: &[u8]) -> Verdict {
    match framing {
        Framing::Closure(f) => f.parse(bytes),
        native => native.native().expect("one of the two").parse(bytes),
    }
}

/// What the quick form of a program's usual messages says of this one, if there is one.
fn usual_length(framing: &Framing, message: &[u8]) -> Option<u64> {
    match framing {
        // (Of no message there is no other.)
        Framing::Closure(function) => function.quick_form(&[])?.length_of(message),
        _ => None,
    }
}

/// All ways of running a program agree on these bytes, whatever was in registers and stack before.
/// How many more are needed may differ: a length field knows it, the kernel's 0 does not say.
fn agrees(program: &Program, message: &[u8]) -> Result<(), TestCaseError> {
    let plain = run(program.insns(), message);
    let outcome = program.run(message, 0);
    let listing = || disassemble(program.insns()).to_string();
    prop_assert_eq!(outcome.result, plain, "{:?}\n{}", message, listing());
    let over_garbage = run_over(0xdead_beef_1234_5678, program.insns(), message);
    prop_assert_eq!(over_garbage, plain, "{:?}\n{}", message, listing());
    let interpreted = parse(&program.interpreted(), message);
    let framing = program.framing();
    let framed = parse(&framing, message);
    match (interpreted, framed) {
        (Verdict::NeedMore(_), Verdict::NeedMore(_)) => {}
        _ => prop_assert_eq!(interpreted, framed, "{:?}\n{}", message, listing()),
    }
    if let Some(len) = usual_length(&framing, message) {
        let quick = Verdict::message(len);
        prop_assert_eq!(interpreted, quick, "{:?}\n{}", message, listing());
    }
    agrees_in_form(program, message)?;
    Ok(())
}

/// As above, of a program in which nothing can go wrong.
fn agrees_on_all(insns: Vec<Insn>, messages: &[Vec<u8>]) -> Result<(), TestCaseError> {
    let program = Program::verify(insns).expect("nothing in it can go wrong");
    (messages.iter()).try_for_each(|message| agrees(&program, message))
}

fn message() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..90),
        prop::collection::vec(0u8..4, 0..90),
        prop::collection::vec(prop::sample::select(vec![0u8, 0x7f, 0x80, 0xff]), 0..24),
    ]
}

/// A straight program of one or two loads, and what compilers make lengths of them with.
fn straight() -> impl Strategy<Value = Vec<Insn>> {
    let step = (0..17u8, any::<u8>(), any::<bool>(), any::<i32>());
    (
        0..20i32,
        0..3usize,
        prop::collection::vec(step, 0..6),
        prop::option::of(-4..70i32),
    )
        .prop_map(|(offset, size, steps, bias)| {
            let mut insns = vec![
                Insn::new(ALU64 | MOV | X, 6, 1, 0, 0),
                Insn::new(LD | ABS | [B, H, W][size], 0, 0, 0, offset),
            ];
            for (kind, n, wide, imm) in steps {
                let class = if wide { ALU64 } else { ALU };
                let shift = i32::from(n) % if wide { 40 } else { 32 } / 4 * 4;
                insns.extend(match kind {
                    0 => vec![Insn::new(class | LSH, 0, 0, 0, shift)],
                    1 | 2 => vec![Insn::new(class | RSH, 0, 0, 0, shift)],
                    3 => vec![Insn::new(
                        class | AND,
                        0,
                        0,
                        0,
                        [0xff, 0xffff, 0xff_ffff, 0x7fff_ffff, imm][usize::from(n) % 5],
                    )],
                    4 => vec![Insn::new(ALU | END | X, 0, 0, 0, 16 << (n % 3))],
                    5 => vec![Insn::new(ALU64 | END, 0, 0, 0, 16 << (n % 3))],
                    6 => vec![Insn::new(class | ADD, 0, 0, 0, imm)],
                    7 => vec![Insn::new(class | SUB, 0, 0, 0, imm % 256)],
                    8 => vec![Insn::new(class | OR, 0, 0, 0, imm)],
                    9 => vec![Insn::new(class | MUL, 0, 0, 0, 1 << (n % 8))],
                    10 => vec![Insn::new(class | ARSH, 0, 0, 0, shift)],
                    11 => vec![Insn::new(class | XOR, 0, 0, 0, imm)],
                    12 => vec![Insn::new(class | MUL, 0, 0, 0, imm)],
                    13 => vec![Insn::new(
                        class | [DIV, MOD][usize::from(n & 1)],
                        0,
                        0,
                        i16::from(n & 2 != 0),
                        if imm == 0 { 7 } else { imm },
                    )],
                    14 => vec![Insn::new(class | NEG, 0, 0, 0, 0)],
                    // Rounded up to whole words.
                    15 => vec![
                        Insn::new(class | ADD, 0, 0, 0, 3),
                        Insn::new(class | AND, 0, 0, 0, !3),
                    ],
                    // Another part of the same field.
                    _ => vec![
                        Insn::new(class | MOV | X, 7, 0, 0, 0),
                        Insn::new(class | LSH, 7, 0, 0, 8),
                        Insn::new(LD | ABS | B, 0, 0, 0, offset + [1, 2, 4][size]),
                        Insn::new(class | if n & 1 == 0 { OR } else { ADD } | X, 0, 7, 0, 0),
                    ],
                });
            }
            if let Some(bias) = bias {
                insns.push(Insn::new(ALU64 | ADD, 0, 0, 0, bias));
            }
            insns.push(Insn::new(JMP | EXIT, 0, 0, 0, 0));
            insns
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn random_programs(seed: u64, message in message()) {
        let insns = program(&mut Random(seed));
        if let Ok(program) = Program::verify(insns) {
            agrees(&program, &message)?;
        }
    }

    #[test]
    fn classic_programs(
        program in (0u32..4).prop_flat_map(good_program),
        message in message(),
    ) {
        let insns = classic::to_ebpf(&program).expect("a good program");
        match Program::verify(insns) {
            Ok(program) => agrees(&program, &message)?,
            Err(error) => prop_assert!(false, "{error}"),
        }
    }

    #[test]
    fn straight_programs(
        insns in straight(),
        messages in prop::collection::vec(message(), 8),
    ) {
        agrees_on_all(insns, &messages)?;
    }
}

proptest! {
    // Fewer: some of them are loops that it takes a million steps to refuse.
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// What is wrong with them must have been found.
    #[test]
    fn spoiled_programs(seed: u64, message in message()) {
        let mut random = Random(seed);
        let mut insns = program(&mut random);
        spoil(&mut random, &mut insns);
        if let Ok(program) = Program::verify(insns) {
            agrees(&program, &message)?;
        }
    }
}

/// If this fails, the property of straight programs proves little.
#[test]
fn straight_programs_are_often_recognised() {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut fields, mut functions) = (0, 0);
    for _ in 0..1000 {
        let insns = straight()
            .new_tree(&mut runner)
            .expect("no filter")
            .current();
        let account = Program::verify(insns).expect("safe").account().to_string();
        fields += u32::from(account.contains("a length field:"));
        functions += u32::from(account.contains("a length field in 32 bits:"));
    }
    assert!(fields > 50, "{fields} length fields of 1000");
    assert!(functions > 200, "{functions} fields in 32 bits of 1000");
}

#[test]
fn random_programs_are_mostly_accepted() {
    let refused = (0..500)
        .filter(|&seed| Program::verify(program(&mut Random(seed))).is_err())
        .count();
    assert!(refused < 50, "{refused} of 500");
}

#[test]
fn what_clang_makes_is_accepted_and_agrees() {
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    let mut programs = 0;
    let mut random = Random(7);
    for entry in fs::read_dir(objects).expect("a directory") {
        let path = entry.expect("an entry").path();
        let Some(Ok(insns)) = (path.extension().is_some_and(|ext| ext == "o"))
            .then(|| elf::load(&fs::read(&path).expect("a file"), None))
        else {
            continue;
        };
        let program =
            Program::verify(insns).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        programs += 1;
        for _ in 0..2000 {
            let len = random.below(40);
            let wild = random.one_in(2);
            let message: Vec<u8> = (0..len)
                .map(|_| match random.next().to_le_bytes() {
                    [byte, ..] if wild => byte,
                    [a, b, ..] => a & b & 0x83,
                })
                .collect();
            agrees(&program, &message)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        }
    }
    assert!(programs >= 10, "{programs} objects");
}

fn recognised(insns: &[Insn]) -> Option<String> {
    let program = Program::verify(insns.to_vec()).expect("safe");
    let native = program.framing().native()?;
    Some(format!("{native:?}"))
}

/// What the same length field in words gives.
fn spec(text: &str) -> Option<String> {
    let framing: Framing = text.parse().expect("a good specification");
    Some(format!("{:?}", framing.native()?))
}

/// A number that is added to itself again and again: a sum of 2³² parts, if each were kept.
#[test]
fn sums_that_double_are_verified_at_once() {
    let doubled = "7 0 0 0,12 0 0 0,".repeat(32);
    let text = format!("66,32 0 0 0,{doubled}22 0 0 0");
    let program = classic::parse_text(&text).expect("a program");
    let program = Program::verify(classic::to_ebpf(&program).expect("a program")).expect("safe");
    assert_eq!(program.run(b"\0\0\0\x01", 0).result, 0);
    let twice = classic::parse_text("4,32 0 0 0,7 0 0 0,12 0 0 0,22 0 0 0").expect("a program");
    let twice = Program::verify(classic::to_ebpf(&twice).expect("a program")).expect("safe");
    assert_eq!(twice.run(b"\0\0\0\x03", 0).result, 6);
}

#[test]
fn a_plain_length_field_it_is_only_if_every_value_says_so() {
    let insn = |code, imm| Insn {
        code,
        imm,
        ..Insn::default()
    };
    let save = Insn {
        code: ALU64 | MOV | X,
        dst: 6,
        src: 1,
        ..Insn::default()
    };
    let exit = insn(JMP | EXIT, 0);
    let (word, half) = (insn(LD | ABS | W, 0), insn(LD | ABS | H, 0));
    let add = |n| insn(ALU64 | ADD, n);
    assert_eq!(recognised(&[save, half, add(2), exit]), spec("u16be+2"));
    // 0 would mean "need more", and 1 a message that ends before its own length.
    assert_eq!(recognised(&[save, half, exit]), spec("len:size=2,bits=32"));
    assert_eq!(
        recognised(&[save, half, add(1), exit]),
        spec("len:size=2,bias=1,bits=32")
    );
    // 2^32 - 1 and 4 more is 3 in 32 bits.
    assert_eq!(
        recognised(&[save, word, add(4), exit]),
        spec("len:size=4,bias=4,bits=32")
    );
    // Up to 31 bits and no more.
    let shift = |n| insn(ALU64 | RSH, n);
    assert_eq!(
        recognised(&[save, word, shift(8), add(9), exit]),
        spec("len:size=4,shift=8,bias=9")
    );
    assert_eq!(
        recognised(&[save, word, shift(2), add(4), exit]),
        spec("len:size=4,shift=2,bias=4")
    );
    assert_eq!(
        recognised(&[save, word, shift(1), add(4), exit]),
        spec("len:size=4,shift=1,bias=4,bits=32")
    );
    // A swap makes it little endian.
    let swap = insn(ALU64 | END, 16);
    assert_eq!(
        recognised(&[save, half, swap, add(2), exit]),
        spec("u16le+2")
    );
    assert_eq!(recognised(&[insn(ALU64 | MOV, 64), exit]), spec("fixed:64"));
    assert_eq!(recognised(&[insn(ALU64 | MOV, 0), exit]), None);
}

#[test]
fn key_and_class_are_what_the_program_leaves() {
    let insn = |code, dst, off, imm| Insn {
        code,
        dst,
        src: 0,
        off,
        imm,
    };
    let leave = |stores: &[Insn]| {
        let mut insns = stores.to_vec();
        insns.extend([insn(ALU64 | MOV, 0, 0, 9), insn(JMP | EXIT, 0, 0, 0)]);
        let outcome = Program::verify(insns).expect("safe").run(b"", 0);
        (outcome.key, outcome.class)
    };
    assert_eq!(leave(&[]), (None, None));
    assert_eq!(leave(&[insn(ST | MEM | W, 1, 48, 7)]), (Some(7), None));
    assert_eq!(leave(&[insn(ST | MEM | W, 1, 48, 0)]), (Some(0), None));
    // Part of a word is the word; the rest of it is 0.
    assert_eq!(leave(&[insn(ST | MEM | B, 1, 49, 1)]), (Some(256), None));
    assert_eq!(leave(&[insn(ST | MEM | W, 1, 52, 3)]), (None, Some(3)));
    assert_eq!(leave(&[insn(ST | MEM | W, 1, 52, 256)]), (None, Some(255)));
    // Both at once; the upper half of -1 is the class.
    assert_eq!(
        leave(&[insn(ST | MEM | DW, 1, 48, -1)]),
        (Some(u32::MAX), Some(255))
    );
}

/// A few loads, comparisons with what they gave, and a length for each way: a constant, a field, or
/// what comes of all loads; with a key or without one.
fn branching() -> impl Strategy<Value = Vec<Insn>> {
    let part = (
        (0..3usize, 0..12i32, any::<bool>()),
        (0..11usize, any::<bool>(), any::<i32>(), 0..4usize),
        (any::<i32>(), 0..3usize),
    );
    let parts = prop::collection::vec(part, 1..6);
    (parts, 0..12i32, 0..3usize).prop_map(|(parts, field, end)| {
        let mut insns = vec![
            Insn::new(ALU64 | MOV | X, 6, 1, 0, 0),
            Insn::new(ALU64 | MOV, 7, 0, 0, 9),
            Insn::new(LDX | MEM | W, 8, 6, 0, 0),
        ];
        for ((size, offset, keep), (cmp, wide, imm, kind), (result, then)) in parts {
            insns.push(Insn::new(LD | ABS | [B, H, W][size], 0, 0, 0, offset));
            if keep {
                insns.push(Insn::new(ALU | ADD | X, 7, 0, 0, 0));
            }
            let class = if wide { JMP } else { JMP32 };
            let jump = class | [JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, JLT, JLE, JSLT, JSLE][cmp];
            // Some that messages have.
            let constant = imm & 0x83;
            let way: &[Insn] = &match then {
                0 => vec![
                    Insn::new(ALU64 | MOV, 0, 0, 0, result),
                    Insn::new(JMP | EXIT, 0, 0, 0, 0),
                ],
                1 => vec![
                    Insn::new(LD | ABS | [B, H, W][size], 0, 0, 0, offset ^ 1),
                    Insn::new(ALU64 | RSH, 0, 0, 0, result & 7),
                    Insn::new(ALU64 | ADD, 0, 0, 0, result & 0x1f),
                    Insn::new(JMP | EXIT, 0, 0, 0, 0),
                ],
                _ => vec![
                    Insn::new(ALU64 | RSH, 7, 0, 0, 1),
                    Insn::new(ALU | XOR, 7, 0, 0, 5),
                ],
            };
            let off = i16::try_from(way.len()).expect("short");
            insns.push(match kind {
                0 => Insn::new(jump, 0, 0, off, imm),
                1 => Insn::new(jump, 0, 0, off, constant),
                // The rest of the message is there, or not.
                2 => Insn::new(jump | X, 0, 8, off, 0),
                _ => Insn::new(jump, 7, 0, off, constant),
            });
            insns.extend(way);
        }
        insns.extend(match end {
            0 => vec![
                Insn::new(STX | MEM | W, 6, 7, 48, 0),
                Insn::new(ALU64 | MOV | X, 0, 7, 0, 0),
            ],
            1 => vec![Insn::new(ALU64 | MOV | X, 0, 7, 0, 0)],
            _ => vec![
                Insn::new(LD | ABS | H, 0, 0, 0, field),
                Insn::new(ALU64 | ADD, 0, 0, 0, field + 2),
            ],
        });
        insns.push(Insn::new(JMP | EXIT, 0, 0, 0, 0));
        insns
    })
}

/// What headers of protocols are made of: some comparisons with numbers that messages have, behind which
/// there is an error or a constant, then a length of several fields to each of which something is done,
/// and perhaps a key.
fn headers() -> impl Strategy<Value = Vec<Insn>> {
    const NUMBERS: [i32; 16] = [
        0,
        1,
        2,
        3,
        0x7f,
        0x80,
        0xff,
        0x100,
        0x180,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        -1,
        i32::MIN,
        0x7f00_0000,
    ];
    let field = (0..3usize, 0..9i32, 0..6u8);
    let test = (
        (field.clone(), 0..6u8, 0..40i32),
        0..11usize,
        any::<bool>(),
        0..NUMBERS.len(),
        any::<bool>(),
    );
    let part = (field, 0..16u8, 0..40i32, any::<bool>());
    let flag = prop::option::of((0..9i32, 0..8u8, -9..40i32));
    let tests = prop::collection::vec(test, 0..4);
    let parts = prop::collection::vec(part, 0..4);
    (tests, parts, flag, -60..60i32, 0..4u8).prop_map(|(tests, parts, flag, bias, key)| {
        let load = |insns: &mut Vec<Insn>, (size, offset, swap): (usize, i32, u8)| {
            insns.push(Insn::new(LD | ABS | [B, H, W][size], 0, 0, 0, offset));
            if swap == 0 {
                insns.push(Insn::new(ALU64 | END, 0, 0, 0, [16, 16, 32][size]));
            }
        };
        let mut insns = vec![
            Insn::new(ALU64 | MOV | X, 6, 1, 0, 0),
            Insn::new(ALU64 | MOV, 7, 0, 0, bias),
            Insn::new(LDX | MEM | W, 8, 6, 0, 0),
        ];
        // A mask that is there or not, before all comparisons.
        if let Some((offset, bit, more)) = flag {
            insns.extend([
                Insn::new(LD | ABS | B, 0, 0, 0, offset),
                Insn::new(JMP | JSET, 0, 0, 1, 1 << bit),
                Insn::new(ALU64 | ADD, 7, 0, 0, more),
            ]);
        }
        for ((field, kind, few), cmp, wide, number, is_error) in tests {
            load(&mut insns, field);
            let class = if wide { JMP } else { JMP32 };
            let jump = class | [JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, JLT, JLE, JSLT, JSLE][cmp];
            let result = if is_error { -71 } else { 9 };
            match kind {
                // So many bytes must have come, or as many as the field says.
                0 => insns.push(Insn::new(jump, 8, 0, 2, few)),
                1 => insns.extend([
                    Insn::new(ALU64 | AND, 0, 0, 0, 0xf),
                    Insn::new(ALU64 | ADD, 0, 0, 0, few),
                    Insn::new(jump | X, 8, 0, 2, 0),
                ]),
                _ => insns.push(Insn::new(jump, 0, 0, 2, NUMBERS[number])),
            }
            insns.push(Insn::new(ALU64 | MOV, 0, 0, 0, result));
            insns.push(Insn::new(JMP | EXIT, 0, 0, 0, 0));
        }
        for (field, kind, n, wide) in parts {
            load(&mut insns, field);
            let class = if wide { ALU64 } else { ALU };
            let k = |operation, imm| Insn::new(class | operation, 0, 0, 0, imm);
            insns.extend(match kind {
                0 => vec![k(MUL, n)],
                1 => vec![k(RSH, n & 7)],
                2 => vec![k(AND, 0x7f)],
                3 | 4 => vec![k(ADD, 3), k(AND, !3)],
                5 | 6 => vec![k(DIV, n.max(1))],
                7 => vec![k(MOD, n.max(1))],
                8 => vec![Insn::new(class | NEG, 0, 0, 0, 0), k(AND, 3)],
                9 => vec![k(ADD, n), k(RSH, 2), k(MUL, 12)],
                10 => vec![k(SUB, n), k(ARSH, 1), k(XOR, -1)],
                11 => vec![k(MUL, 5), k(DIV, n + 3), k(OR, 1)],
                12 => vec![k(ADD, n), k(LSH, 4)],
                13 => vec![k(AND, 0x10), Insn::new(JMP | JEQ, 0, 0, 1, 0), k(MOV, n)],
                _ => vec![],
            });
            let add = if n % 8 == 7 { SUB } else { ADD };
            insns.push(Insn::new(class | add | X, 7, 0, 0, 0));
        }
        if key == 0 {
            insns.push(Insn::new(LD | ABS | W, 0, 0, 0, 12));
            insns.push(Insn::new(STX | MEM | W, 6, 0, 48, 0));
        }
        insns.push(Insn::new(ALU64 | MOV | X, 0, 7, 0, 0));
        insns.push(Insn::new(JMP | EXIT, 0, 0, 0, 0));
        insns
    })
}

/// Bytes for which such comparisons hold now and then, and lengths are short.
fn header_bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(vec![0u8, 0, 0, 1, 2, 3, 0x7f, 0x80, 0xff]);
    prop::collection::vec(byte, 24..32)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(700))]

    /// With all that a receiver sees of each message while it comes.
    #[test]
    fn programs_of_headers(
        insns in headers(),
        messages in prop::collection::vec(header_bytes(), 4),
    ) {
        let program = Program::verify(insns).expect("nothing in it can go wrong");
        for message in &messages {
            for len in 0..=message.len() {
                agrees(&program, &message[..len])?;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn branching_programs(
        insns in branching(),
        messages in prop::collection::vec(message(), 8),
    ) {
        agrees_on_all(insns, &messages)?;
    }
}

/// If this fails, the properties above prove little.
#[test]
fn such_programs_are_often_recognised() {
    let is_tree = |program: &Program| program.account().to_string().contains("from fields");
    let has_term = |program: &Program| match program.framing() {
        Framing::Closure(function) => {
            format!("{:?}", function.quick_form(&[])).contains("term: Some")
        }
        _ => false,
    };
    let (branching, trees) = (of_1000(&branching(), is_tree), of_1000(&headers(), is_tree));
    assert!(branching > 400, "{branching} trees of 1000");
    assert!(trees > 800, "{trees} trees of 1000");
    let terms = of_1000(&headers(), has_term);
    assert!(terms > 50, "{terms} quick forms with a term of 1000");
    let straight = of_1000(&straight(), has_term);
    assert!(straight > 100, "{straight} quick forms with a term of 1000");
}

#[test]
fn usual_messages_have_quick_forms() {
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    for (name, message, len) in [
        ("http2", b"\0\x01\0\0\0\0\0\0", Some(256 + 9)),
        ("ldap", b"\x30\x05......", Some(2 + 5)),
        ("rpc", b"\x80\0\0\x04....", Some(4 + 4)),
        ("iscsi", b"....\x02\0\0\x05", Some(48 + 8 + 8)),
        (
            "iscsi",
            b"....\xff\xff\xff\xff",
            Some(48 + 1020 + (1 << 24)),
        ),
        ("websocket", b"\x81\x05......", Some(2 + 5)),
        ("websocket", b"\x81\xfd......", Some(2 + 4 + 125)),
        // What is no usual message.
        ("http2", b"PRI * HT", None),
        ("ldap", b"\x31\x05......", None),
        ("ldap", b"\x30\x81......", None),
        ("rpc", b"\0\0\0\x04....", None),
        ("websocket", b"\x81\x7e......", None),
        ("websocket", b"\x81\xff......", None),
    ] {
        let object = fs::read(objects.join(name).with_extension("o")).expect("a file");
        let program = Program::verify(elf::load(&object, None).expect("good")).expect("safe");
        let message = [&message[..], &[0; 56]].concat();
        assert_eq!(
            usual_length(&program.framing(), &message),
            len,
            "{name}: {message:?}"
        );
    }
}

/// Of a word at 0, with which something is done.
#[test]
fn products_and_quotients_have_quick_forms_within_31_bits() {
    let of_word = |then: &[(u8, i32)], word: u32| {
        let mut insns = vec![
            Insn::new(ALU64 | MOV | X, 6, 1, 0, 0),
            Insn::new(LD | ABS | W, 0, 0, 0, 0),
        ];
        insns.extend(
            then.iter()
                .map(|(code, imm)| Insn::new(*code, 0, 0, 0, *imm)),
        );
        insns.push(Insn::new(JMP | EXIT, 0, 0, 0, 0));
        let program = Program::verify(insns).expect("safe");
        usual_length(&program.framing(), &[word.to_be_bytes(), [0; 4]].concat())
    };
    let product = [(ALU64 | MUL, 3), (ALU64 | ADD, 6)];
    assert_eq!(of_word(&product, 2), Some(12));
    assert_eq!(of_word(&product, 715_827_880), Some(2_147_483_646));
    // 2^31 + 1 is below zero; 2^32 + 2 is 2, which only the function says.
    assert_eq!(of_word(&product, 715_827_881), None);
    assert_eq!(of_word(&product, 1_431_655_764), None);
    let quotient = [(ALU | DIV, 6), (ALU64 | ADD, 8)];
    assert_eq!(of_word(&quotient, 17), Some(10));
    assert_eq!(of_word(&quotient, u32::MAX), Some(715_827_890));
    // Less, in 32 bits and in 64: never 0, nor below it.
    for class in [ALU, ALU64] {
        let less = [(ALU64 | MUL, 5), (class | SUB, 20)];
        assert_eq!(of_word(&less, 5), Some(5));
        assert_eq!(of_word(&less, 4), None);
        assert_eq!(of_word(&less, 3), None);
    }
}

/// How many of 1000 programs are such.
fn of_1000(programs: &impl Strategy<Value = Vec<Insn>>, such: impl Fn(&Program) -> bool) -> usize {
    use proptest::strategy::ValueTree;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    (0..1000)
        .filter(|_| {
            let insns = programs.new_tree(&mut runner).expect("no filter");
            such(&Program::verify(insns.current()).expect("safe"))
        })
        .count()
}
