//! Parser programs: BPF that says where a message ends.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod classic;
mod error;
mod insn;

pub use classic::SockFilter;
pub use error::{Error, Result};
pub use insn::{Insn, MAX_INSNS, op};
