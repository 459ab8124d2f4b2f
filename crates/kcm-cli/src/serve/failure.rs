//! Why `kcm serve` cannot serve.

use std::{fmt, io};

/// Its text says what to do where something can be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be.
    Usage(String),
    /// The system refused something.
    System {
        /// What was tried.
        what: String,
        /// What it said.
        error: io::Error,
    },
}

impl Failure {
    /// For `map_err`.
    pub(super) fn system<E: Into<io::Error>>(what: impl fmt::Display) -> impl FnOnce(E) -> Self {
        let what = what.to_string();
        |error| Self::System {
            what,
            error: error.into(),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(text) => f.write_str(text),
            Self::System { what, error } => write!(f, "{what}: {error}"),
        }
    }
}
