//! Parser programs: BPF that says where a message ends.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod alu;
pub mod classic;
mod decode;
mod disasm;
pub mod elf;
mod error;
mod insn;
mod interpreter;
mod program;
mod recognise;
mod verifier;

pub use classic::SockFilter;
pub use disasm::disassemble;
pub use error::{Error, Result};
pub use insn::{Insn, MAX_INSNS, op};
pub use program::{Outcome, Program};
pub use verifier::{Reason, Rejection};
