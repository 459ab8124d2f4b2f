//! Classic programs, translated, against an interpreter that is written after the manual.
#![allow(missing_docs)]

mod common;

use common::{good_program, run};
use kcm_bpf::{SockFilter, classic};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_translation_gives_what_the_program_does(
        program in (0u32..4).prop_flat_map(good_program),
        message in prop::collection::vec(any::<u8>(), 0..420),
    ) {
        let translated = classic::to_ebpf(&program).expect("a good program");
        let expected = interpret(&program, &message).unwrap_or(0);
        prop_assert_eq!(run(&translated, &message), expected.cast_signed());
    }

    #[test]
    fn text_comes_back(program in prop::collection::vec(any::<(u16, u8, u8, u32)>(), 1..40)) {
        let insn = |(code, jt, jf, k)| SockFilter { code, jt, jf, k };
        let program: Vec<_> = program.into_iter().map(insn).collect();
        for separator in [",", "\n", " ,\n  "] {
            let mut text = program.len().to_string();
            for insn in &program {
                text += separator;
                text += &insn.to_string();
            }
            prop_assert_eq!(classic::parse_text(&text), Ok(program.clone()));
            text += separator;
            prop_assert_eq!(classic::parse_text(&text), Ok(program.clone()));
        }
    }

    #[test]
    fn any_text_gives_a_program_or_an_error(text in "[0-9]{1,2}[0-9, \n]{0,60}") {
        let _ = classic::parse_text(&text);
    }
}

/// `None`: it ended with 0 because a load was out of range, or for a division by 0.
fn interpret(program: &[SockFilter], message: &[u8]) -> Option<u32> {
    let (mut a, mut x, mut memory, mut pc) = (0u32, 0u32, [0u32; 16], 0);
    let len = u32::try_from(message.len()).expect("short");
    let load = |offset: u32, code: u16| -> Option<u32> {
        let offset = usize::try_from(offset.cast_signed()).ok()?;
        let size = [4, 2, 1][usize::from(code >> 3 & 3)];
        let bytes = message.get(offset..offset + size)?;
        Some(
            bytes
                .iter()
                .fold(0, |value, &byte| value << 8 | u32::from(byte)),
        )
    };
    loop {
        let SockFilter { code, jt, jf, k } = program[pc];
        pc += 1;
        let operand = if code & 8 == 0 { k } else { x };
        let mut jump = |holds: bool| pc += usize::from(if holds { jt } else { jf });
        match code {
            0x20 if k == 0xffff_f028 => a ^= x,
            0x20 | 0x28 | 0x30 => a = load(k, code)?,
            0x40 | 0x48 | 0x50 => a = load(x.wrapping_add(k), code)?,
            0x80 => a = len,
            0x81 => x = len,
            0x00 => a = k,
            0x01 => x = k,
            0x60 => a = memory[k as usize],
            0x61 => x = memory[k as usize],
            0x02 => memory[k as usize] = a,
            0x03 => memory[k as usize] = x,
            0xb1 => x = 4 * (load(k, 0x30)? & 0xf),
            0x04 | 0x0c => a = a.wrapping_add(operand),
            0x14 | 0x1c => a = a.wrapping_sub(operand),
            0x24 | 0x2c => a = a.wrapping_mul(operand),
            0x34 | 0x3c => a = a.checked_div(operand)?,
            0x94 | 0x9c => a = a.checked_rem(operand)?,
            0x44 | 0x4c => a |= operand,
            0x54 | 0x5c => a &= operand,
            0xa4 | 0xac => a ^= operand,
            0x64 | 0x6c => a <<= operand & 31,
            0x74 | 0x7c => a >>= operand & 31,
            0x84 => a = a.wrapping_neg(),
            0x05 => pc += k as usize,
            0x15 | 0x1d => jump(a == operand),
            0x25 | 0x2d => jump(a > operand),
            0x35 | 0x3d => jump(a >= operand),
            0x45 | 0x4d => jump(a & operand != 0),
            0x06 => return Some(k),
            0x16 => return Some(a),
            0x07 => x = a,
            0x87 => a = x,
            _ => panic!("{code:#x}"),
        }
    }
}
