use super::*;
use crate::disassemble;

#[test]
fn what_tcpdump_prints_is_read() {
    // tcpdump -ddd -y EN10MB 'ip[0] & 0xf = 5', cut to what matters.
    let lines = "4\n48 0 0 14\n84 0 0 15\n21 0 1 5\n6 0 0 262144\n";
    let commas = lines.replace('\n', ",");
    let program = parse_text(lines).unwrap();
    assert_eq!(parse_text(&commas), Ok(program.clone()));
    let compare = SockFilter {
        code: 21,
        jt: 0,
        jf: 1,
        k: 5,
    };
    assert_eq!(program[2], compare);
}

#[test]
fn text_that_is_none_is_shown() {
    let cases = [
        ("", "\"\": the number of instructions should stand first"),
        ("1 6 0 0 0", "first, and before a line's end or a comma"),
        ("ldh [0]", "\"ldh [0]\": the number of instructions"),
        ("48 0 0 0", "\"48 0 0 0\": the number of instructions"),
        ("2,6 0 0 1", "\"2\": so many instructions should follow"),
        ("1,6 0 0 1,6 0 0 2", "\"6 0 0 2\": more instructions than"),
        ("1,6 0 0", "\"6 0 0\": an instruction should be four"),
        (
            "1,6 0 0 1 1",
            "\"6 0 0 1 1\": an instruction should be four",
        ),
        ("1,6 0 256 1", "\"6 0 256 1\": code is a number below 65536"),
        ("1,6 0 0 -1", "\"6 0 0 -1\": code is a number below 65536"),
        ("1,6 0 0 4294967296", "code is a number below 65536"),
    ];
    for (text, expected) in cases {
        let error = parse_text(text).unwrap_err();
        assert_eq!(error.errno(), 22);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
    assert_eq!(parse_text("0"), Err(Error::Empty));
    assert_eq!(parse_text("4097,6 0 0 1").unwrap_err().errno(), 7);
    let error = parse_text(&"ä".repeat(5000)).unwrap_err();
    assert!(error.to_string().len() < 300, "{error}");
}

#[test]
fn what_the_kernel_refuses_is_refused_with_the_place() {
    let cases = [
        (
            "1,0 0 0 0",
            "instruction 0 (0 0 0 0): the last instruction must be a ret",
        ),
        (
            "2,255 0 0 0,6 0 0 0",
            "instruction 0 (255 0 0 0): no such operation",
        ),
        (
            "2,5 0 0 1,6 0 0 0",
            "instruction 0 (5 0 0 1): jump beyond the end",
        ),
        ("2,5 0 0 4294967295,6 0 0 0", "jump beyond the end"),
        (
            "2,21 0 1 5,6 0 0 0",
            "instruction 0 (21 0 1 5): jump beyond the end",
        ),
        ("2,52 0 0 0,6 0 0 0", "division by 0"),
        ("2,148 0 0 0,6 0 0 0", "division by 0"),
        ("2,100 0 0 32,6 0 0 0", "shift by 0 to 31"),
        ("2,2 0 0 16,6 0 0 0", "scratch words are 0 to 15"),
        ("2,96 0 0 3,6 0 0 0", "this scratch word is not written"),
        ("2,32 0 0 4294963202,6 0 0 0", "no such ancillary data"),
        // Written on one of two ways.
        (
            "4,21 1 0 5,2 0 0 3,96 0 0 3,22 0 0 0",
            "instruction 2 (96 0 0 3): this scratch word",
        ),
    ];
    for (text, expected) in cases {
        let error = to_ebpf(&parse_text(text).unwrap()).unwrap_err();
        assert_eq!(error.errno(), 22);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
    assert_eq!(to_ebpf(&[]), Err(Error::Empty));
}

#[test]
fn what_only_packets_have_is_named() {
    let cases = [
        ("2,32 0 0 4294963220,6 0 0 0", "the packet's mark"),
        ("2,48 0 0 4294963256,6 0 0 0", "a random number"),
        ("2,48 0 0 4293918720,6 0 0 0", "from its network header"),
        ("2,80 0 0 4293918729,6 0 0 0", "from its network header"),
        ("2,40 0 0 4292870156,6 0 0 0", "from its link header"),
        ("2,177 0 0 2147483648,6 0 0 0", "from before its start"),
    ];
    for (text, expected) in cases {
        let error = to_ebpf(&parse_text(text).unwrap()).unwrap_err();
        assert_eq!(error.errno(), 95);
        assert!(error.to_string().contains(expected), "{text}: {error}");
    }
}

#[test]
fn a_translation_reads_as_its_source() {
    // ldb [0]; jgt #3, 1, 0; ret #0; ldh [x + 2]; div x; ret a
    let text = "6,48 0 0 0,37 1 0 3,6 0 0 0,72 0 0 2,60 0 0 0,22 0 0 0";
    let program = to_ebpf(&parse_text(text).unwrap()).unwrap();
    let expected = "    0: r6 = r1
    1: w0 = 0
    2: w7 = 0
    3: r0 = *(u8 *)skb[0]
    4: if w0 > 3 goto +2
    5: w0 = 0
    6: exit
    7: r0 = *(u16 *)skb[r7 + 2]
    8: if w7 != 0 goto +2
    9: w0 = 0
   10: exit
   11: w0 /= w7
   12: exit
";
    assert_eq!(disassemble(&program).to_string(), expected);
}

#[test]
fn dead_code_is_left_out() {
    // ja 1; ret #7; ret #8
    let program = to_ebpf(&parse_text("3,5 0 0 1,6 0 0 7,6 0 0 8").unwrap()).unwrap();
    let listing = disassemble(&program).to_string();
    assert!(
        listing.contains("goto +0") && !listing.contains("= 7"),
        "{listing}"
    );
}

#[test]
fn the_longest_program_keeps_its_longest_jump() {
    let msh = SockFilter {
        code: 0xb1,
        ..SockFilter::default()
    };
    let ret = SockFilter {
        code: 0x06,
        ..SockFilter::default()
    };
    let mut program = vec![msh; MAX_CLASSIC_INSNS];
    // Over all of the longest ones, to the end; they stay reachable from the next.
    program[0] = SockFilter {
        code: 0x15,
        jt: 0,
        jf: 1,
        k: 1,
    };
    program[1] = SockFilter {
        code: 0x05,
        k: 4093,
        ..SockFilter::default()
    };
    program[MAX_CLASSIC_INSNS - 1] = ret;
    let translated = to_ebpf(&program).unwrap();
    let farthest = translated.iter().map(|insn| insn.off).max();
    assert_eq!(farthest, Some(4093 * 6));
    program.push(ret);
    assert_eq!(to_ebpf(&program).unwrap_err().errno(), 7);
}
