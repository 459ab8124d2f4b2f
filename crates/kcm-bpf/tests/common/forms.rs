//! Forms that are found from a message, asked of others.

use super::generate::Random;
use kcm_bpf::{Program, disassemble};
use kcm_frame::QuickForm;
use proptest::prelude::*;

/// The form of this message, if there is one, says what the program says: of the message, and of others
/// that are like it, more and less.
pub(crate) fn agrees_in_form(
    program: &Program,
    message: &[u8],
) -> Result<Option<QuickForm>, TestCaseError> {
    let Some(form) = program.quick_form(message) else {
        return Ok(None);
    };
    prop_assert!(
        form.length_of(message).is_some(),
        "{:?} {:?}",
        message,
        form
    );
    let seed = message
        .iter()
        .fold(program.insns().len() as u64, |seed, byte| {
            seed.wrapping_mul(257).wrapping_add((*byte).into())
        });
    let random = &mut Random(seed);
    // Every bit, and so the bounds of every guard.
    let near = message.len().min(form.offset() + 10);
    for at in 0..8 * near {
        let mut other = message.to_vec();
        other[at / 8] ^= 1 << (at % 8);
        holds(program, &form, &other)?;
    }
    for _ in 0..64 {
        holds(program, &form, &changed(random, message, near))?;
    }
    for len in (0..message.len()).chain([message.len() + 1, message.len() + 40]) {
        let mut other = message.to_vec();
        other.resize(len, 0);
        holds(program, &form, &other)?;
    }
    Ok(Some(form))
}

/// The same message with a few bytes changed.
fn changed(random: &mut Random, message: &[u8], near: usize) -> Vec<u8> {
    let mut other = message.to_vec();
    if near == 0 {
        return other;
    }
    for _ in 0..=random.below(4) {
        let at = random.below(near as u64) as usize;
        other[at] = match random.below(4) {
            0 => random.next() as u8,
            1 => other[at].wrapping_add(1),
            2 => other[at].wrapping_sub(1),
            _ => other[at] ^ 1 << random.below(8),
        };
    }
    other
}

fn holds(program: &Program, form: &QuickForm, message: &[u8]) -> Result<(), TestCaseError> {
    let Some(len) = form.length_of(message) else {
        return Ok(());
    };
    let outcome = program.run(message, 0x1234_5678_9abc);
    let listing = || disassemble(program.insns()).to_string();
    prop_assert_eq!(
        i64::from(outcome.result),
        len as i64,
        "{:?} {:?}\n{}",
        message,
        form,
        listing()
    );
    let label = (outcome.key, outcome.class.unwrap_or(0));
    prop_assert_eq!(label, (None, 0), "{:?} {:?}\n{}", message, form, listing());
    Ok(())
}
