//! Parser programs: BPF that says where a message ends.
//!
//! A program comes as classic BPF ([`classic`]), as an object that clang made ([`elf`]), or as raw
//! instructions ([`Insn::decode_all`]). Each gives the same thing, a list of eBPF instructions, which
//! [`disassemble`] shows:
//!
//! ```
//! // DNS over TCP, in the text form of `tcpdump -ddd`: ldh [0]; add #2; ret a
//! let classic = kcm_bpf::classic::parse_text("3,40 0 0 0,4 0 0 2,22 0 0 0")?;
//! let program = kcm_bpf::classic::to_ebpf(&classic)?;
//! println!("{}", kcm_bpf::disassemble(&program));
//! # Ok::<(), kcm_bpf::Error>(())
//! ```
//!
//! Parsers in C for some protocols, and the header that they need, are in this crate's directory
//! `bpf`.

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
