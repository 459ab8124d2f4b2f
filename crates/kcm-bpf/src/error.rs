//! What can be wrong with a program, and what to do about it.
//!
//! All of it is the fault of whoever wrote or named the program; nothing here comes from a peer.

use std::fmt;

use crate::{Rejection, SockFilter};

/// An invalid argument (22).
const EINVAL: i32 = 22;
/// Argument list too long (7), which the kernel says of a program that is too long.
const E2BIG: i32 = 7;
/// Exec format error (8): not an object that we can read.
const ENOEXEC: i32 = 8;
/// No such file or directory (2): a section or function that is not there.
const ENOENT: i32 = 2;
/// Permission denied (13), which the kernel says of a program that its verifier refuses.
const EACCES: i32 = 13;
/// Operation not supported (95).
const EOPNOTSUPP: i32 = 95;

/// What this crate's functions return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a program cannot be loaded.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The text of a classic program was not understood. `EINVAL`.
    Text {
        /// The piece of it that is at fault, shortened.
        piece: String,
        /// What is wrong with it, and what should stand there.
        problem: &'static str,
    },
    /// An instruction of a classic program is none, or cannot stand where it stands. `EINVAL`.
    Classic {
        /// Index of the instruction.
        index: usize,
        /// The instruction.
        insn: SockFilter,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A classic program asks for something that the kernel knows and that a message in a byte
    /// stream does not have. `EOPNOTSUPP`.
    NoSuchData {
        /// Index of the instruction.
        index: usize,
        /// What it asks for.
        what: &'static str,
    },
    /// A program has at least one instruction. `EINVAL`.
    Empty,
    /// Raw instructions are 8 bytes each. `EINVAL`.
    RawLength {
        /// How many bytes there were.
        len_bytes: usize,
    },
    /// The program is longer than a program may be. `E2BIG`.
    TooLong {
        /// Most instructions it may have.
        limit: usize,
    },
    /// The bytes are not an object of the right kind. `ENOEXEC`.
    Object {
        /// What is wrong with them, and how to make a right one.
        problem: String,
    },
    /// The object has no such section, or no program in it. `ENOENT`.
    NotFound {
        /// What was looked for.
        wanted: String,
        /// The sections that could have been named.
        sections: Vec<String>,
    },
    /// Several could be meant, and none was named. `EINVAL`.
    Ambiguous {
        /// What there are several of, and what to do.
        what: &'static str,
        /// Their names.
        names: Vec<String>,
    },
    /// The object needs something at run time that a parser has not got, such as a map. `EOPNOTSUPP`.
    Unlinkable {
        /// The function whose code needs it.
        function: String,
        /// Index of the instruction in the function.
        index: usize,
        /// What it needs, and what to do.
        problem: String,
    },
    /// The verifier refuses the program. `EACCES` where it would do something that is not safe,
    /// `EOPNOTSUPP` where it asks for something that a parser has not got.
    Rejected(Rejection),
}

impl Error {
    /// The errno that tells this error to a caller of socket functions.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Text { .. }
            | Self::Classic { .. }
            | Self::Empty
            | Self::RawLength { .. }
            | Self::Ambiguous { .. } => EINVAL,
            Self::NoSuchData { .. } | Self::Unlinkable { .. } => EOPNOTSUPP,
            Self::TooLong { .. } => E2BIG,
            Self::Object { .. } => ENOEXEC,
            Self::NotFound { .. } => ENOENT,
            Self::Rejected(rejection) if rejection.reason().is_unsupported() => EOPNOTSUPP,
            Self::Rejected(_) => EACCES,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text { piece, problem } => write!(f, "classic BPF text: {piece:?}: {problem}"),
            Self::Classic {
                index,
                insn,
                problem,
            } => write!(f, "classic BPF: instruction {index} ({insn}): {problem}"),
            Self::NoSuchData { index, what } => write!(
                f,
                "classic BPF: instruction {index} loads {what}, which a message in a byte stream \
                 does not have"
            ),
            Self::Empty => write!(f, "the program has no instruction"),
            Self::RawLength { len_bytes } => write!(
                f,
                "raw program of {len_bytes} bytes: one or more instructions of 8 bytes are needed"
            ),
            Self::TooLong { limit } => {
                write!(f, "the program has more than {limit} instructions")
            }
            Self::Object { problem } => write!(f, "BPF object: {problem}"),
            Self::NotFound { wanted, sections } if sections.is_empty() => {
                write!(f, "BPF object: no {wanted}, and no other program")
            }
            Self::NotFound { wanted, sections } => {
                let sections = sections.join(", ");
                write!(f, "BPF object: no {wanted}; sections with code: {sections}")
            }
            Self::Ambiguous { what, names } => {
                write!(f, "BPF object: {what}: {}", names.join(", "))
            }
            Self::Unlinkable {
                function,
                index,
                problem,
            } => write!(f, "BPF object: {function}, instruction {index}: {problem}"),
            Self::Rejected(rejection) => rejection.fmt(f),
        }
    }
}

impl std::error::Error for Error {}

impl From<Rejection> for Error {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_are_those_of_linux() {
        assert_eq!(Error::Empty.errno(), 22);
        assert_eq!(Error::TooLong { limit: 1 }.errno(), 7);
        let problem = String::new();
        assert_eq!(Error::Object { problem }.errno(), 8);
        let (wanted, sections) = ("section \"x\"".into(), vec![]);
        let error = Error::NotFound { wanted, sections };
        assert_eq!(error.errno(), 2);
        assert_eq!(
            error.to_string(),
            "BPF object: no section \"x\", and no other program"
        );
        let (index, what) = (3, "a random number");
        assert_eq!(Error::NoSuchData { index, what }.errno(), 95);
    }
}
