//! Quick forms that are found from a message: which messages have one, and what it knows of others.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::forms::agrees_in_form;
use common::generate::{Random, program};
use kcm_bpf::{Insn, Program, classic, elf, op::*};
use proptest::prelude::*;

fn object(name: &str) -> Program {
    let objects = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/objects");
    let object = fs::read(objects.join(name).with_extension("o")).expect("a file");
    Program::verify(elf::load(&object, None).expect("good")).expect("safe")
}

/// What every program begins with, and with what it ends.
fn verified(middle: &[Insn]) -> Program {
    let begin = [Insn::new(ALU64 | MOV | X, 6, 1, 0, 0)];
    let end = [Insn::new(JMP | EXIT, 0, 0, 0, 0)];
    Program::verify([&begin, middle, &end].concat()).expect("safe")
}

/// The form of the first of these messages knows the lengths of all.
fn knows(program: &Program, messages: &[(&[u8], u64)]) {
    let whole = |message: &[u8]| [message, &[0; 24]].concat();
    let first = whole(messages[0].0);
    let form = agrees_in_form(program, &first).expect("it is right");
    let form = form.expect("there is one");
    for (message, len) in messages {
        let message = whole(message);
        assert_eq!(i64::from(program.run(&message, 0).result), *len as i64);
        assert_eq!(form.length_of(&message), Some(*len), "{message:?} {form:?}");
    }
}

fn has_none(program: &Program, message: &[u8]) {
    assert_eq!(program.quick_form(message), None);
}

#[test]
fn an_indirect_load() {
    // A = byte 5; X = A; A = half a word from X on; A += 22.
    let text = "5,48 0 0 5,7 0 0 0,72 0 0 0,4 0 0 22,22 0 0 0";
    let insns =
        classic::to_ebpf(&classic::parse_text(text).expect("a program")).expect("a good one");
    let program = Program::verify(insns).expect("safe");
    knows(
        &program,
        &[
            (b"\x01\x02\x00\x03.\x02", 25),
            (b"..\x01\x07.\x02", 0x107 + 22),
        ],
    );
    // Byte 200 is no more in the same 8 bytes.
    has_none(&program, &[200; 250]);
}

#[test]
fn a_remainder() {
    let program = verified(&[
        Insn::new(LD | ABS | H, 0, 0, 0, 0),
        Insn::new(ALU64 | MOV | X, 7, 0, 0, 0),
        Insn::new(ALU64 | MOD, 0, 0, 0, 7),
        Insn::new(ALU64 | ADD | X, 0, 7, 0, 0),
        Insn::new(ALU64 | ADD, 0, 0, 0, 2),
    ]);
    // What each length has is no more than its own.
    knows(&program, &[(b"\0\x0a", 2 + 10 + 3)]);
    knows(&program, &[(b"\x01\0.", 2 + 256 + 4)]);
}

#[test]
fn products_of_two_fields() {
    let program = verified(&[
        Insn::new(LD | ABS | B, 0, 0, 0, 0),
        Insn::new(ALU64 | MOV | X, 7, 0, 0, 0),
        Insn::new(LD | ABS | H, 0, 0, 0, 1),
        Insn::new(ALU64 | MUL | X, 0, 7, 0, 0),
        Insn::new(ALU64 | ADD, 0, 0, 0, 3),
    ]);
    // The smaller one is pinned, and the other one can be any.
    knows(
        &program,
        &[
            (b"\x05\x01\x00", 5 * 256 + 3),
            (b"\x05\xff\xff", 5 * 0xffff + 3),
        ],
    );
}

#[test]
fn a_length_of_many_bytes() {
    let ldap = object("ldap");
    knows(&ldap, &[(b"\x30\x05", 7), (b"\x30\x7f", 129)]);
    knows(&ldap, &[(b"\x30\x81\x80", 131), (b"\x30\x81\xff", 258)]);
    knows(
        &ldap,
        &[
            (b"\x30\x84\0\0\0\x0c", 18),
            (b"\x30\x84\0\x01\0\0", 65_536 + 6),
            (b"\x30\x84\0\xff\xff\xff", 0xff_ffff + 6),
        ],
    );
    let websocket = object("websocket");
    knows(
        &websocket,
        &[(b"\x82\x7e\x01\0", 260), (b"\x81\x7e\xff\xff", 65_535 + 4)],
    );
    knows(
        &websocket,
        &[(b"\x82\xfe\x01\0", 264), (b"\x82\xfe\x02\0", 520)],
    );
    // Its 8 bytes of length and what says so are 9.
    has_none(&websocket, b"\x82\x7f\0\0\0\0\0\x01\0\0......");
}

#[test]
fn loops() {
    let mqtt = object("mqtt_loop");
    knows(&mqtt, &[(b"\x10\x05", 7), (b"\x20\x7f", 129)]);
    knows(
        &mqtt,
        &[(b"\x10\x80\x01", 131), (b"\x31\xff\x7f", 16_383 + 3)],
    );
    // Of three bytes the highest one is as it is.
    knows(
        &mqtt,
        &[
            (b"\x10\x80\x80\x01", 16_384 + 4),
            (b"\x31\xff\xff\x01", 32_767 + 4),
        ],
    );
    // As many rounds as a byte says, each with a byte more: they are added.
    let program = verified(&[
        Insn::new(LD | ABS | B, 0, 0, 0, 0),
        Insn::new(ALU64 | AND, 0, 0, 0, 7),
        Insn::new(ALU64 | MOV | X, 7, 0, 0, 0),
        Insn::new(ALU64 | MOV, 8, 0, 0, 9),
        Insn::new(ALU64 | MOV, 9, 0, 0, 0),
        Insn::new(JMP | JGE | X, 9, 7, 4, 0),
        Insn::new(ALU64 | ADD, 9, 0, 0, 1),
        Insn::new(LD | IND | B, 0, 9, 0, 0),
        Insn::new(ALU64 | ADD | X, 8, 0, 0, 0),
        Insn::new(JMP | JA, 0, 0, -5, 0),
        Insn::new(ALU64 | MOV | X, 0, 8, 0, 0),
    ]);
    knows(&program, &[(b"\x02\x03\x04", 16), (b"\x02\xff\xff", 519)]);
    knows(&program, &[(b"\x07\x01\x01\x01\x01\x01\x01\x01", 16)]);
}

#[test]
fn what_is_not_in_8_bytes_has_no_form() {
    let time = verified(&[
        Insn::new(JMP | CALL, 0, 0, 0, 5),
        Insn::new(ALU64 | AND, 0, 0, 0, 7),
        Insn::new(ALU64 | ADD, 0, 0, 0, 1),
    ]);
    has_none(&time, &[1; 32]);
    // All that is there.
    let len = verified(&[Insn::new(LDX | MEM | W, 0, 6, 0, 0)]);
    has_none(&len, &[1; 32]);
    // Two bytes that are far from one another.
    let far = verified(&[
        Insn::new(LD | ABS | B, 0, 0, 0, 0),
        Insn::new(ALU64 | MOV | X, 7, 0, 0, 0),
        Insn::new(LD | ABS | B, 0, 0, 0, 8),
        Insn::new(ALU64 | ADD | X, 0, 7, 0, 0),
    ]);
    has_none(&far, &[1; 32]);
    // A key.
    has_none(
        &object("steering"),
        b"\0\0\x01\x02\x80\x01\0\x01\0\0\0\x04ping....",
    );
    // No message.
    has_none(&object("ldap"), b"\x31\x05......");
    has_none(&object("ldap"), b"");
}

/// "At least so many bytes" is what a form can say of how many there are.
#[test]
fn bytes_that_must_be_there() {
    let program = verified(&[
        Insn::new(LDX | MEM | W, 7, 6, 0, 0),
        Insn::new(ALU64 | MOV, 0, 0, 0, 0),
        Insn::new(JMP | JLT, 7, 0, 2, 20),
        Insn::new(LD | ABS | B, 0, 0, 0, 0),
        Insn::new(ALU64 | ADD, 0, 0, 0, 20),
    ]);
    knows(&program, &[(b"\x01", 21), (b"\xff", 275)]);
    let form = program.quick_form(&[1; 20]).expect("one");
    assert_eq!(form.length_of(&[1; 19]), None);
    has_none(&program, &[1; 19]);
}

/// All that depends on no more than 8 bytes has a form.
#[test]
fn such_programs_mostly_have_forms() {
    let mut random = Random(3);
    let (mut lengths, mut forms) = (0, 0);
    for seed in 0..2000 {
        let Ok(program) = Program::verify(program(&mut Random(seed))) else {
            continue;
        };
        let bytes = (0..8).flat_map(|_| random.next().to_le_bytes());
        let message: Vec<u8> = bytes.map(|byte| byte & 0x83).collect();
        let outcome = program.run(&message, 0);
        if outcome.result > 0 && outcome.key.is_none() && outcome.class.is_none() {
            lengths += 1;
            forms += u32::from(program.quick_form(&message).is_some());
        }
    }
    assert!(2 * forms > lengths, "{forms} forms of {lengths} lengths");
}

/// Operands, places in the message and in the stack, and ways are said by the message's first 8 bytes, in all
/// combinations.
fn dependent() -> impl Strategy<Value = Vec<Insn>> {
    let step = (0..14_u8, 0..4_u8, 0..8_i32, any::<bool>());
    prop::collection::vec(step, 1..12).prop_map(|steps| {
        // Registers 7 to 9 hold numbers, and a word of the stack.
        let mut insns = vec![Insn::new(ALU64 | MOV | X, 6, 1, 0, 0)];
        for (reg, offset) in [(7, 0), (8, 1), (9, 2)] {
            insns.push(Insn::new(LD | ABS | B, 0, 0, 0, offset));
            insns.push(Insn::new(ALU64 | MOV | X, reg, 0, 0, 0));
        }
        insns.push(Insn::new(STX | MEM | DW, FP, 7, -8, 0));
        for (kind, which, imm, wide) in steps {
            let (a, b) = (7 + which % 3, 7 + (which + 1) % 3);
            let class = if wide { ALU64 } else { ALU };
            let jump = if wide { JMP } else { JMP32 };
            let alu = |operation| vec![Insn::new(class | operation | X, a, b, 0, 0)];
            insns.extend(match kind {
                0 => alu(ADD),
                1 => alu(SUB),
                2 => alu(MUL),
                3 => alu(DIV),
                4 => alu(MOD),
                5 => alu(XOR),
                6 => alu(LSH),
                7 => alu(RSH),
                8 => vec![
                    Insn::new(ALU64 | AND, a, 0, 0, 3),
                    Insn::new(LD | IND | B, 0, a, 0, imm % 5),
                    Insn::new(ALU64 | MOV | X, b, 0, 0, 0),
                ],
                9 => vec![
                    Insn::new(
                        jump | [JGT, JEQ, JSLT, JSET][which as usize] | X,
                        a,
                        b,
                        1,
                        0,
                    ),
                    Insn::new(ALU64 | ADD, a, 0, 0, imm),
                ],
                10 => vec![
                    Insn::new(jump | [JLE, JNE, JSGE, JSET][which as usize], a, 0, 1, imm),
                    Insn::new(ALU64 | XOR, b, 0, 0, imm),
                ],
                // A place in the stack that the message says.
                11 => vec![
                    Insn::new(ALU64 | MOV | X, 2, a, 0, 0),
                    Insn::new(ALU64 | AND, 2, 0, 0, 7),
                    Insn::new(ALU64 | MOV | X, 3, FP, 0, 0),
                    Insn::new(ALU64 | ADD | X, 3, 2, 0, 0),
                    Insn::new(LDX | MEM | B, b, 3, -8, 0),
                ],
                12 => vec![
                    Insn::new(STX | MEM | DW, FP, a, -8, 0),
                    Insn::new(LDX | MEM | H, b, FP, -8 + 2 * i16::from(which), 0),
                ],
                _ => vec![Insn::new(class | AND, a, 0, 0, 0xff)],
            });
        }
        insns.push(Insn::new(ALU64 | MOV | X, 0, 7, 0, 0));
        insns.push(Insn::new(ALU | AND, 0, 0, 0, 0xffff));
        insns.push(Insn::new(ALU | ADD, 0, 0, 0, 1));
        insns.push(Insn::new(JMP | EXIT, 0, 0, 0, 0));
        insns
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![0..9_u8, any::<u8>()], 24)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(3000) })]

    /// As they look at 8 bytes at most, they have a form for each message.
    #[test]
    fn programs_that_do_what_the_message_says(
        insns in dependent(),
        messages in prop::collection::vec(bytes(), 3),
    ) {
        let program = Program::verify(insns).expect("nothing in it can go wrong");
        for message in &messages {
            let form = agrees_in_form(&program, message)?;
            let listing = kcm_bpf::disassemble(program.insns());
            prop_assert!(form.is_some(), "{:?}\n{}", message, listing);
        }
    }
}
