//! Each rule, with a program that keeps it and one that does not.

use super::*;
use crate::Insn;
use crate::op::*;

const EXIT_: Insn = Insn::new(JMP | EXIT, 0, 0, 0, 0);
const SAVE_CTX: Insn = copy(6, 1);

const fn set(dst: u8, imm: i32) -> Insn {
    Insn::new(ALU64 | MOV, dst, 0, 0, imm)
}

const fn copy(dst: u8, src: u8) -> Insn {
    Insn::new(ALU64 | MOV | X, dst, src, 0, 0)
}

const fn add(dst: u8, imm: i32) -> Insn {
    Insn::new(ALU64 | ADD, dst, 0, 0, imm)
}

const fn load_byte(offset: i32) -> Insn {
    Insn::new(LD | ABS | B, 0, 0, 0, offset)
}

const fn load(size: u8, dst: u8, base: u8, off: i16) -> Insn {
    Insn::new(LDX | MEM | size, dst, base, off, 0)
}

const fn store(size: u8, base: u8, src: u8, off: i16) -> Insn {
    Insn::new(STX | MEM | size, base, src, off, 0)
}

const fn call(distance: i32) -> Insn {
    Insn::new(JMP | CALL, 0, CALL_LOCAL, 0, distance)
}

const fn helper(number: i32) -> Insn {
    Insn::new(JMP | CALL, 0, CALL_HELPER, 0, number)
}

#[track_caller]
fn accepted(insns: &[Insn]) -> Figures {
    match verify(insns) {
        Ok(verified) => verified.figures,
        Err(rejection) => panic!("refused: {rejection}"),
    }
}

#[track_caller]
fn refused(insns: &[Insn], at: usize, reason: Reason) {
    match verify(insns) {
        Ok(_) => panic!("accepted"),
        Err(rejection) => assert_eq!(
            (rejection.index(), rejection.reason()),
            (Some(at), &reason),
            "{rejection}"
        ),
    }
}

#[test]
fn instructions_are_checked_for_themselves() {
    refused(&[Insn::new(0xff, 0, 0, 0, 0)], 0, Reason::NoSuchInstruction);
    refused(&[set(11, 0), EXIT_], 0, Reason::NoSuchRegister);
    refused(
        &[Insn::new(ALU64 | MOV, 0, 1, 0, 0), EXIT_],
        0,
        Reason::ReservedField,
    );
    refused(
        &[Insn::new(ALU64 | DIV, 0, 0, 0, 0), EXIT_],
        0,
        Reason::DivisionByZero,
    );
    refused(
        &[Insn::new(ALU | LSH, 0, 0, 0, 32), EXIT_],
        0,
        Reason::ShiftTooFar,
    );
    refused(&[set(10, 0), EXIT_], 0, Reason::FramePointerWritten);
    refused(
        &[Insn::new(LD | IMM | DW, 0, 0, 0, 0)],
        0,
        Reason::HalfConstant,
    );
    refused(&[SAVE_CTX, load_byte(-1), EXIT_], 1, Reason::NegativeOffset);
    let map = Insn::new(LD | IMM | DW, 1, 1, 0, 0);
    let Err(rejection) = verify(&[map, Insn::new(0, 0, 0, 0, 0), EXIT_]) else {
        panic!("accepted")
    };
    assert!(rejection.to_string().contains("map"), "{rejection}");
}

#[test]
fn the_shape_is_checked() {
    refused(&[set(0, 1)], 0, Reason::NoExit);
    refused(&[set(0, 1), EXIT_, EXIT_], 2, Reason::Unreachable);
    let target = 5;
    let away = Insn::new(JMP | JA, 0, 0, 4, 0);
    refused(&[away, EXIT_], 0, Reason::BadTarget { target });
    // Into a 64-bit constant, and into another function.
    let constant = [
        Insn::new(LD | IMM | DW, 0, 0, 0, 1),
        Insn::new(0, 0, 0, 0, 0),
    ];
    refused(
        &[
            Insn::new(JMP | JA, 0, 0, 1, 0),
            constant[0],
            constant[1],
            EXIT_,
        ],
        0,
        Reason::BadTarget { target: 2 },
    );
    refused(
        &[
            call(2),
            Insn::new(JMP | JA, 0, 0, 2, 0),
            EXIT_,
            set(0, 1),
            EXIT_,
        ],
        1,
        Reason::BadTarget { target: 4 },
    );
    refused(&[call(1), EXIT_, call(-1), EXIT_], 2, Reason::Recursion);
}

#[test]
fn calls_are_nested_so_deep_and_no_deeper() {
    let chain = |functions: usize| {
        let mut insns = Vec::new();
        for _ in 1..functions {
            insns.extend([call(1), EXIT_]);
        }
        insns.extend([set(0, 1), EXIT_]);
        insns
    };
    accepted(&chain(MAX_FRAMES));
    let Err(rejection) = verify(&chain(MAX_FRAMES + 1)) else {
        panic!("accepted")
    };
    let limit = MAX_FRAMES;
    assert_eq!(rejection.reason(), &Reason::TooManyFrames { limit });
}

#[test]
fn the_stack_of_a_chain_of_calls_is_limited() {
    let two = |main: i16, callee: i16| {
        [
            set(0, 1),
            store(DW, 10, 0, -main),
            call(1),
            EXIT_,
            set(0, 1),
            store(DW, 10, 0, -callee),
            EXIT_,
        ]
    };
    assert_eq!(accepted(&two(256, 256)).stack_bytes, 512);
    let Err(rejection) = verify(&two(256, 264)) else {
        panic!("accepted")
    };
    let (bytes, limit) = (528, 512);
    assert_eq!(rejection.reason(), &Reason::StackTotal { bytes, limit });
}

#[test]
fn every_path_must_have_written_what_is_read() {
    refused(&[EXIT_], 0, Reason::Uninitialised { reg: 0 });
    let branch = Insn::new(JMP | JNE, 0, 0, 1, 7);
    let one_side = [SAVE_CTX, load_byte(0), branch, set(2, 1), copy(0, 2), EXIT_];
    refused(&one_side, 4, Reason::Uninitialised { reg: 2 });
    // A call takes registers 1 to 5.
    refused(
        &[set(1, 1), call(2), copy(0, 1), EXIT_, set(0, 1), EXIT_],
        2,
        Reason::Uninitialised { reg: 1 },
    );
    let (offset, size) = (-8, 8);
    refused(
        &[load(DW, 0, 10, -8), EXIT_],
        0,
        Reason::UninitialisedStack { offset, size },
    );
    // Four bytes of eight.
    refused(
        &[set(1, 0), store(W, 10, 1, -8), load(DW, 0, 10, -8), EXIT_],
        2,
        Reason::UninitialisedStack { offset, size },
    );
    accepted(&[set(1, 0), store(W, 10, 1, -8), load(H, 0, 10, -6), EXIT_]);
}

#[test]
fn no_pointer_gets_out() {
    let leak = |insns: &[Insn], at, reg| match verify(insns) {
        Ok(_) => panic!("accepted"),
        Err(rejection) => {
            let index = rejection.index();
            let found =
                matches!(rejection.reason(), Reason::PointerLeak { reg: r, .. } if *r == reg);
            assert!(found && index == Some(at), "{rejection}");
        }
    };
    leak(&[copy(0, 10), EXIT_], 1, 0);
    leak(&[store(DW, 1, 1, 48), set(0, 0), EXIT_], 0, 1);
    leak(&[store(W, 10, 1, -8), set(0, 0), EXIT_], 0, 1);
    leak(
        &[Insn::new(ALU64 | SUB | X, 1, 10, 0, 0), set(0, 0), EXIT_],
        0,
        1,
    );
    leak(&[Insn::new(ALU | MOV | X, 0, 1, 0, 0), EXIT_], 0, 1);
    leak(&[Insn::new(JMP | JEQ, 1, 0, 0, 0), set(0, 0), EXIT_], 0, 1);
    refused(
        &[store(DW, 10, 1, -8), load(W, 0, 10, -8), EXIT_],
        1,
        Reason::PointerInPieces { offset: -8 },
    );
    // As a whole it comes back.
    accepted(&[
        store(DW, 10, 1, -8),
        load(DW, 2, 10, -8),
        load(W, 0, 2, 0),
        EXIT_,
    ]);
    // Not even a caller's stack may get one that ends with the function.
    leak(
        &[
            copy(1, 10),
            call(2),
            set(0, 0),
            EXIT_,
            store(DW, 1, 10, -8),
            set(0, 0),
            EXIT_,
        ],
        4,
        10,
    );
}

#[test]
fn the_stack_has_bounds() {
    let range = |offset, size| Reason::StackRange {
        least: offset,
        greatest: offset,
        size,
    };
    let at = |size, off| [set(0, 0), store(size, 10, 0, off), EXIT_];
    accepted(&at(DW, -512));
    refused(&at(DW, -520), 1, range(-520, 8));
    refused(&at(B, 0), 1, range(0, 1));
    refused(&at(DW, 0), 1, range(0, 8));
    let (offset, size) = (-6, 4);
    refused(&at(W, -6), 1, Reason::StackAlignment { offset, size });
    refused(
        &[load(B, 0, 0, 0), EXIT_],
        0,
        Reason::Uninitialised { reg: 0 },
    );
    refused(
        &[set(2, 5), load(B, 0, 2, 0), EXIT_],
        1,
        Reason::NotAPointer { reg: 2 },
    );
}

/// A byte of the message as an index of an array on the stack, with or without a bound.
fn indexed(bound: Insn) -> Vec<Insn> {
    vec![
        SAVE_CTX,
        set(1, 0),
        store(DW, 10, 1, -8),
        load_byte(0),
        bound,
        copy(2, 10),
        Insn::new(ALU64 | ADD | X, 2, 0, 0, 0),
        load(B, 0, 2, -8),
        EXIT_,
    ]
}

#[test]
fn an_index_must_have_a_bound() {
    accepted(&indexed(Insn::new(ALU64 | AND, 0, 0, 0, 7)));
    accepted(&indexed(Insn::new(JMP | JGT, 0, 0, 3, 7)));
    accepted(&indexed(Insn::new(JMP32 | JGT, 0, 0, 3, 7)));
    accepted(&indexed(Insn::new(ALU | MOD, 0, 0, 0, 8)));
    let (least, size) = (-8, 1);
    for (bound, greatest) in [
        (Insn::new(ALU64 | AND, 0, 0, 0, 15), 7),
        (Insn::new(JMP | JGT, 0, 0, 3, 8), 0),
    ] {
        let reason = Reason::StackRange {
            least,
            greatest,
            size,
        };
        refused(&indexed(bound), 7, reason);
    }
    // The copy of a register is bounded with it.
    let mut copied = indexed(copy(3, 0));
    copied.insert(5, Insn::new(JMP | JGT, 3, 0, 3, 7));
    accepted(&copied);
    // So is a copy of its lower half, where the upper one is zero: newer clangs copy so.
    copied[4] = Insn::new(ALU | MOV | X, 3, 0, 0, 0);
    accepted(&copied);
    copied[5] = Insn::new(JMP32 | JGT, 3, 0, 3, 7);
    accepted(&copied);
    copied[3] = load(DW, 0, 6, 48);
    let reg = 2;
    refused(&copied, 7, Reason::PointerOutOfRange { reg });
}

#[test]
fn the_context_has_its_fields() {
    accepted(&[load(W, 0, 1, 0), EXIT_]);
    accepted(&[load(B, 0, 1, 1), EXIT_]);
    accepted(&[set(0, 1), store(DW, 1, 0, 56), EXIT_]);
    let problem = |insns: &[Insn]| match verify(insns) {
        Ok(_) => panic!("accepted"),
        Err(rejection) => match rejection.reason() {
            Reason::Context { problem, .. } => *problem,
            other => panic!("{other}"),
        },
    };
    assert!(problem(&[load(W, 0, 1, 76), EXIT_]).contains("bpf_skb_load_bytes"));
    assert!(problem(&[load(W, 0, 1, 16), EXIT_]).contains("message"));
    // `sk`, which a socket filter may read in the kernel, and `tstamp`, which it may not.
    assert!(problem(&[load(DW, 0, 1, 168), EXIT_]).contains("not the socket"));
    assert!(problem(&[load(DW, 0, 1, 152), EXIT_]).contains("not for socket filters"));
    assert!(problem(&[load(W, 0, 1, 192), EXIT_]).contains("no such field"));
    assert!(problem(&[load(W, 0, 1, -4), EXIT_]).contains("no such field"));
    assert!(problem(&[load(H, 0, 1, 1), EXIT_]).contains("aligned"));
    assert!(problem(&[load(DW, 0, 1, 0), EXIT_]).contains("4 bytes"));
    assert!(problem(&[load(DW, 0, 1, 64), EXIT_]).contains("beyond cb[4]"));
    assert!(problem(&[set(0, 1), store(W, 1, 0, 0), EXIT_]).contains("only cb"));
    refused(
        &[add(1, 4), load(W, 0, 1, 44), EXIT_],
        1,
        Reason::ContextMoved { reg: 1 },
    );
    // The kernel wants one kind of memory for an instruction too.
    let (branch, jump) = (
        Insn::new(JMP | JEQ, 0, 0, 2, 0),
        Insn::new(JMP | JA, 0, 0, 1, 0),
    );
    let either = [
        SAVE_CTX,
        set(2, 0),
        store(DW, 10, 2, -8),
        load_byte(0),
        branch,
        copy(2, 6),
        jump,
        copy(2, 10),
        load(W, 0, 2, -8),
        EXIT_,
    ];
    assert!(verify(&either).is_err());
}

#[test]
fn packet_loads_need_the_context_in_register_6() {
    refused(&[load_byte(0), EXIT_], 0, Reason::PacketContext);
    let index = Insn::new(LD | IND | B, 0, 2, 0, 0);
    refused(
        &[SAVE_CTX, index, EXIT_],
        1,
        Reason::Uninitialised { reg: 2 },
    );
    accepted(&[SAVE_CTX, set(2, 4), index, EXIT_]);
}

/// `bpf_skb_load_bytes(ctx, 0, fp - 8, size)`, then a byte of it.
fn load_bytes(size: Insn) -> Vec<Insn> {
    vec![
        set(2, 0),
        copy(3, 10),
        add(3, -8),
        size,
        helper(helpers::SKB_LOAD_BYTES),
        load(B, 0, 10, -8),
        EXIT_,
    ]
}

#[test]
fn helpers_get_what_they_take() {
    accepted(&load_bytes(set(4, 8)));
    let reg = 4;
    let expected = "a size that is known to be from 1 to 512";
    refused(
        &load_bytes(set(4, 0)),
        4,
        Reason::Argument { reg, expected },
    );
    refused(
        &load_bytes(load(W, 4, 1, 0)),
        4,
        Reason::Argument { reg, expected },
    );
    let (least, greatest, size) = (-8, -8, 9);
    refused(
        &load_bytes(set(4, 9)),
        4,
        Reason::StackRange {
            least,
            greatest,
            size,
        },
    );
    // Of a buffer that is filled in part, the rest must hold something already.
    let mut part = load_bytes(Insn::new(ALU64 | AND, 4, 0, 0, 3));
    part.splice(3..3, [load(W, 4, 1, 0), Insn::new(ALU64 | OR, 4, 0, 0, 1)]);
    let (offset, size) = (-8, 3);
    refused(&part, 6, Reason::UnwrittenBuffer { offset, size });
    part.splice(0..0, [set(2, 0), store(DW, 10, 2, -8)]);
    accepted(&part);
    refused(&[helper(7), EXIT_], 0, Reason::Helper { number: 7 });
    for (number, name) in [
        (1, "bpf_map_lookup_elem#1:"),
        (14, "bpf_get_current_pid_tgid#14:"),
        (208, "bpf_ktime_get_tai_ns#208:"),
        (999, "no helper function 999:"),
        (-1, "no helper function -1:"),
    ] {
        let text = verify(&[helper(number), EXIT_])
            .expect_err("a parser has none of these")
            .to_string();
        assert!(text.contains(name), "{text}");
    }
    accepted(&[helper(helpers::KTIME_GET_NS), EXIT_]);
}

#[test]
fn loops_must_be_seen_to_end() {
    let count = |to| {
        [
            set(0, 0),
            add(0, 1),
            Insn::new(JMP | JLT, 0, 0, -2, to),
            EXIT_,
        ]
    };
    assert_eq!(accepted(&count(1000)).longest, 2 + 2 * 1000);
    // Nothing changes.
    let still = [set(0, 0), Insn::new(JMP | JA, 0, 0, -1, 0), EXIT_];
    assert!(verify(&still).is_err());
    let still = [set(0, 0), Insn::new(JMP | JEQ, 0, 0, -1, 0), EXIT_];
    refused(&still, 1, Reason::EndlessLoop);
    // It ends, but a byte of the message says when.
    let limit = MAX_STEPS;
    let mut forever = count(i32::MAX);
    forever[2].code = JMP | JNE;
    let what = "steps over all paths";
    match verify(&forever).map(|_| ()) {
        Err(rejection) => {
            assert_eq!(rejection.reason(), &Reason::TooComplex { what, limit });
        }
        Ok(()) => panic!("accepted"),
    }
}

/// A loop that leaves another number each time that it may be left, behind which paths come together:
/// no state there covers another, and that must not cost more than to follow them all.
#[test]
fn a_loop_of_many_ends_is_followed() {
    let insns = [
        SAVE_CTX,
        load(W, 8, 6, 0),
        Insn::new(JMP | JLT, 8, 0, 1, 3000),
        set(8, 3000),
        set(9, 0),
        set(1, 0),
        store(DW, 10, 1, -8),
        Insn::new(JMP | JEQ | X, 9, 8, 5, 0),
        Insn::new(LD | IND | B, 0, 9, 0, 0),
        add(9, 1),
        Insn::new(JMP | JNE, 0, 0, -4, 10),
        store(DW, 10, 9, -8),
        Insn::new(JMP | JA, 0, 0, 0, 0),
        load(DW, 0, 10, -8),
        EXIT_,
    ];
    assert!(accepted(&insns).steps < 50_000);
}

/// Sides of branches that only differ in a result need not be followed twice, so 60 branches in a
/// row are not 2⁶⁰ paths.
#[test]
fn results_make_no_paths() {
    let mut insns = vec![SAVE_CTX, set(7, 0)];
    for n in 0..60 {
        insns.extend([load_byte(n), Insn::new(JMP | JNE, 0, 0, 1, 5), add(7, n)]);
    }
    insns.extend([copy(0, 7), EXIT_]);
    assert!(accepted(&insns).steps < 1000);
}

#[test]
fn a_short_message_ends_a_subprogram_with_0() {
    // The subprogram gives a number from `least` on, which the caller takes as an index from
    // there: then 0 is below the array.
    let index = |least: i16| {
        vec![
            SAVE_CTX,
            set(2, 0),
            store(DW, 10, 2, -8),
            call(4),
            copy(2, 10),
            Insn::new(ALU64 | ADD | X, 2, 0, 0, 0),
            load(B, 0, 2, -8 - least),
            EXIT_,
            SAVE_CTX,
            load_byte(0),
            Insn::new(ALU64 | AND, 0, 0, 0, 3),
            add(0, i32::from(least)),
            EXIT_,
        ]
    };
    accepted(&index(0));
    let (offset, size) = (-9, 1);
    refused(&index(1), 6, Reason::UninitialisedStack { offset, size });
}

#[test]
fn a_rejection_shows_the_registers() {
    let insns = [
        SAVE_CTX,
        load_byte(0),
        store(DW, 10, 0, -16),
        load(B, 3, 0, 0),
        EXIT_,
    ];
    let text = verify(&insns).expect_err("no pointer").to_string();
    assert_eq!(
        text,
        "instruction 3, `r3 = *(u8 *)(r0 + 0)`: memory is accessed through r0, a number \
         (r0=0..255 r6=ctx r10=fp fp-16=0..255)"
    );
}

/// The worst that was thought of still ends within seconds and bounded memory.
#[test]
fn hard_programs_are_refused_in_time() {
    // Every branch makes two states that differ in what decides a later branch.
    let mut insns = vec![SAVE_CTX, set(7, 0)];
    for n in 0..30 {
        insns.extend([
            load_byte(n),
            Insn::new(JMP | JNE, 0, 0, 1, 5),
            add(7, 1 << n),
        ]);
    }
    insns.extend([Insn::new(JMP | JEQ, 7, 0, 0, 3), set(0, 1), EXIT_]);
    let reason = verify(&insns).map(|_| ()).expect_err("2^30 paths");
    assert!(
        matches!(reason.reason(), Reason::TooComplex { .. }),
        "{reason}"
    );
}
