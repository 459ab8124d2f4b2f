//! Parser programs: BPF that says where a message ends.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod classic;
mod disasm;
pub mod elf;
mod error;
mod insn;

pub use classic::SockFilter;
pub use disasm::disassemble;
pub use error::{Error, Result};
pub use insn::{Insn, MAX_INSNS, op};
