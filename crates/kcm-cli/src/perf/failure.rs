//! Why a measurement ended without a result.

use std::{borrow::Cow, fmt, io};

/// Why `kcm perf` failed; its text says what to do where something can be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The command line asks for something that cannot be.
    Usage(String),
    /// A message was lost, doubled, out of order or changed.
    Verification(String),
    /// Messages stopped coming, or a thread did not end.
    Stalled(String),
    /// A system call failed.
    System {
        doing: Cow<'static, str>,
        error: io::Error,
    },
    /// A call of the library failed.
    Library {
        doing: Cow<'static, str>,
        error: kcm::Error,
    },
    /// Whoever read the standard output has gone.
    OutputClosed,
}

impl Failure {
    /// A system call failed while `doing` this.
    pub(crate) fn system(doing: impl Into<Cow<'static, str>>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |error| Self::System { doing, error }
    }

    /// As [`Failure::system`], for rustix.
    pub(crate) fn errno(
        doing: impl Into<Cow<'static, str>>,
    ) -> impl FnOnce(rustix::io::Errno) -> Self {
        let system = Self::system(doing);
        |errno| system(errno.into())
    }

    /// A call of the library failed while `doing` this.
    pub(crate) fn library(doing: impl Into<Cow<'static, str>>) -> impl FnOnce(kcm::Error) -> Self {
        let doing = doing.into();
        |error| Self::Library { doing, error }
    }

    /// The same, and in which run it happened.
    pub(crate) fn within(self, label: &str) -> Self {
        match self {
            Self::Verification(what) => Self::Verification(format!("{label}: {what}")),
            Self::Stalled(what) => Self::Stalled(format!("{label}: {what}")),
            Self::System { doing, error } => Self::System {
                doing: format!("{label}: {doing}").into(),
                error,
            },
            Self::Library { doing, error } => Self::Library {
                doing: format!("{label}: {doing}").into(),
                error,
            },
            other @ (Self::Usage(_) | Self::OutputClosed) => other,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(what) => write!(f, "{what} (see `kcm perf --help`)"),
            Self::Verification(what) => write!(f, "wrong message: {what}"),
            Self::Stalled(what) => write!(f, "stalled: {what}"),
            Self::System { doing, error } => write!(f, "{doing}: {error}"),
            Self::Library { doing, error } => write!(f, "{doing}: {error}"),
            Self::OutputClosed => f.write_str("the standard output was closed"),
        }
    }
}
