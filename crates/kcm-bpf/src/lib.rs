//! Parser programs: BPF that says where a message ends.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod insn;

pub use insn::Insn;
