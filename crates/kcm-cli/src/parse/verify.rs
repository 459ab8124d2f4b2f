//! `--verify`: what is known of a parser before it has seen a byte.

use kcm_bpf::disassemble;
use kcm_frame::Protocol;

use super::{failure::Failure, rows::Rows};
use crate::spec::Spec;

/// Tells it. A program that is here has passed: one that has not is no framing.
pub(super) fn run(spec: &Spec, rows: &mut Rows) -> Result<(), Failure> {
    let text = &spec.text;
    match (&spec.program, spec.framing.native()) {
        (Some(program), _) => {
            rows.text(format_args!("{}\n", program.account()))?;
            rows.text(format_args!("{}", disassemble(program.insns())))?;
        }
        (None, Some(native)) if native.to_string() == *text => {
            rows.text(format_args!("{text}: compiled code, nothing to verify\n"))?;
        }
        (None, Some(native)) => rows.text(format_args!(
            "{text}: compiled code, the same as {native}; nothing to verify\n"
        ))?,
        (None, None) => {
            rows.text(format_args!(
                "{text}: compiled code of its own, nothing to verify\n"
            ))?;
        }
    }
    if let Some(protocol) = Protocol::named(text) {
        let (summary, note) = (protocol.summary(), protocol.note());
        let space = if note.is_empty() { "" } else { " " };
        let reference = protocol.reference();
        rows.text(format_args!("{summary}.{space}{note}\n{reference}\n"))?;
    }
    rows.flush()
}
