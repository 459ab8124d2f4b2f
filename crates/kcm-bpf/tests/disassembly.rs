//! The disassembler against what `llvm-objdump` 19 printed of `disassembly/instructions.s`:
//!
//! ```sh
//! clang-19 -target bpf -mcpu=v4 -c instructions.s -o instructions.o
//! llvm-objdump-19 -d --no-print-imm-hex --mattr=+alu32 instructions.o | tail -n +7 >instructions.txt
//! ```
//!
//! It prints labels besides, and `w` for registers of loads and stores up to 32 bits when it knows of
//! 32-bit arithmetic.
#![allow(missing_docs)]

use kcm_bpf::{Insn, disassemble};

const GOLDEN: &str = include_str!("disassembly/instructions.txt");

#[test]
fn every_instruction_reads_as_llvm_writes_it() {
    let mut count = 0;
    for line in GOLDEN.lines() {
        let (number_and_bytes, text) = line.rsplit_once('\t').expect("columns");
        let (_, bytes) = number_and_bytes.split_once(":\t").expect("columns");
        let bytes: Vec<_> = bytes
            .split(' ')
            .map(|byte| u8::from_str_radix(byte, 16).expect("a byte"))
            .collect();
        let program = Insn::decode_all(&bytes).expect("whole instructions");
        let listing = disassemble(&program).to_string();
        let ours = listing
            .strip_prefix("    0: ")
            .expect("one line")
            .trim_end();
        let (ours, _) = ours.split_once(" # ").unwrap_or((ours, ""));
        assert_eq!(ours, plain(text), "{line}");
        count += 1;
    }
    assert!(count > 80, "{count}");
}

/// A line of LLVM's without labels, and with loads and stores by `r`.
fn plain(text: &str) -> String {
    let (text, _) = text.split_once(" <f").unwrap_or((text, ""));
    let is_access = text.contains(" = *(") || text.starts_with("*(");
    if is_access {
        text.replace('w', "r")
    } else {
        text.to_owned()
    }
}

#[test]
fn what_llvm_cannot_print_is_printed_too() {
    let cases = [
        // Offset and register together: only the translation of classic programs makes it.
        ([0x48, 0x70, 0, 0, 14, 0, 0, 0], "r0 = *(u16 *)skb[r7 + 14]"),
        (
            [0x48, 0x70, 0, 0, 0xfe, 0xff, 0xff, 0xff],
            "r0 = *(u16 *)skb[r7 - 2]",
        ),
        ([0x85, 0x10, 0, 0, 5, 0, 0, 0], "call +5"),
        ([0x85, 0, 0, 0, 26, 0, 0, 0], "call 26 # bpf_skb_load_bytes"),
        ([0x85, 0, 0, 0, 7, 0, 0, 0], "call 7 # bpf_get_prandom_u32"),
        ([0x85, 0, 0, 0, 0, 1, 0, 0], "call 256"),
        ([0x85, 0x20, 0, 0, 9, 0, 0, 0], "call 9 # kind 2"),
        (
            [0xc3, 0x21, 0xfc, 0xff, 0x41, 0, 0, 0],
            "w2 = atomic_fetch_or((u32 *)(r1 - 4), w2)",
        ),
        // The first half of a constant whose second half is missing.
        (
            [0x18, 0x01, 0, 0, 0xff, 0xff, 0xff, 0xff],
            "r1 = 4294967295 ll",
        ),
        (
            [0xff, 0, 0, 0, 0, 0, 0, 1],
            "<unknown> ff 00 00 00 00 00 00 01",
        ),
        ([0x05, 0, 0xff, 0x7f, 0, 0, 0, 0], "goto +32767"),
        ([0x05, 0, 0, 0x80, 0, 0, 0, 0], "goto -32768"),
    ];
    for (bytes, expected) in cases {
        assert_eq!(Insn::decode(bytes).to_string(), expected);
    }
}
