//! Why `kcm parse` ended early.

use std::{borrow::Cow, fmt, io};

use kcm_frame::Fault;

/// Why it failed; the text says what to do where something can be done.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The stream cannot be framed from here on.
    Framing {
        /// Bytes before the message that is at fault.
        offset: u64,
        fault: Fault,
    },
    /// A file could not be read, or the rows not be written.
    System {
        doing: Cow<'static, str>,
        error: io::Error,
    },
    /// Whoever read the standard output has gone.
    OutputClosed,
}

impl Failure {
    /// A system call failed while `doing` this.
    pub(super) fn system(doing: impl Into<Cow<'static, str>>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        |error| Self::System { doing, error }
    }

    /// The standard output could not be written.
    pub(super) fn output(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::system("write to the standard output")(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Framing { offset, fault } => {
                write!(f, "offset {offset}: {fault}")?;
                if let Fault::TooBig { .. } = fault {
                    f.write_str(" (--max-message sets another)")?;
                }
                Ok(())
            }
            Self::System { doing, error } => write!(f, "{doing}: {error}"),
            Self::OutputClosed => f.write_str("the standard output was closed"),
        }
    }
}
