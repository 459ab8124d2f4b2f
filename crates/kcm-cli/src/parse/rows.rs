//! The output: rows in plain columns, or an object a line.
//!
//! Lines of the table that are no rows begin with `#`. A column that has nothing to say says `-`,
//! so that their number does not change. Rows are held back until there are many, or somebody
//! waits ([`Rows::flush`]).

use std::{
    fmt,
    io::{self, BufWriter, Write},
};

use serde::Serialize;

use super::{
    cutter::{Message, Totals},
    failure::Failure,
};
use crate::cli::ParseOptions;

/// First bytes that the table shows unless told otherwise: a line of a hex dump.
const HEAD_BYTES: usize = 16;

/// Rows that are held back: what makes the system call cheap beside them.
const HELD_BYTES: usize = 64 << 10;

/// Prints rows on the standard output.
pub(super) struct Rows {
    out: BufWriter<io::StdoutLock<'static>>,
    json: bool,
    head_bytes: usize,
}

/// A row as JSON. What a parser does not say is not there.
#[derive(Serialize)]
struct JsonRow<'a> {
    n: u64,
    offset: u64,
    len: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "display")]
    head: Option<Hex<'a>>,
}

/// The totals as JSON.
#[derive(Serialize)]
struct JsonTotals {
    messages: u64,
    bytes: u64,
    tail_bytes: u64,
}

impl Rows {
    pub(super) fn new(options: &ParseOptions) -> Self {
        let head_bytes = match options.head {
            Some(bytes) => bytes.into(),
            None if options.json => 0,
            None => HEAD_BYTES,
        };
        Self {
            out: BufWriter::with_capacity(HELD_BYTES, io::stdout().lock()),
            json: options.json,
            head_bytes,
        }
    }

    /// What stands above the rows.
    pub(super) fn begin(&mut self) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        let head = match self.head_bytes {
            0 => "",
            _ => "  first bytes",
        };
        self.text(format_args!(
            "#{:>9}{:>15}{:>12}{:>12}{:>6}{head}\n",
            "n", "offset", "length", "key", "class"
        ))
    }

    /// One row.
    pub(super) fn message(&mut self, message: &Message<'_>) -> Result<(), Failure> {
        let Message {
            number,
            offset,
            frame,
            head,
        } = *message;
        let head = Hex(&head[..head.len().min(self.head_bytes)]);
        let class = (frame.class != 0).then_some(frame.class);
        if self.json {
            return self.json(&JsonRow {
                n: number,
                offset,
                len: frame.len,
                key: frame.key,
                class,
                head: (self.head_bytes > 0).then_some(head),
            });
        }
        let (key, class) = (OrDash(frame.key), OrDash(class));
        self.text(format_args!(
            "{number:>10}{offset:>15}{:>12}{key:>12}{class:>6}",
            frame.len
        ))?;
        if self.head_bytes > 0 {
            let width = 2 * self.head_bytes;
            self.text(format_args!("  {head:<width$}  {}", Ascii(head.0)))?;
        }
        self.text(format_args!("\n"))
    }

    /// The last line; whatever else happens, it is out then.
    pub(super) fn totals(&mut self, totals: Totals) -> Result<(), Failure> {
        let Totals {
            messages,
            bytes,
            tail_bytes,
            tail_of,
        } = totals;
        if self.json {
            self.json(&JsonTotals {
                messages,
                bytes,
                tail_bytes,
            })?;
        } else {
            let (s, of) = (plural(messages), tail_of);
            self.text(format_args!("# {messages} message{s}, {bytes} bytes"))?;
            match of {
                _ if tail_bytes == 0 => {}
                Some(of) => self.text(format_args!(
                    "; unfinished: the first {tail_bytes} bytes of a message of {of}"
                ))?,
                None => self.text(format_args!(
                    "; unfinished: the first {tail_bytes} bytes of a message"
                ))?,
            }
            self.text(format_args!("\n"))?;
        }
        self.flush()
    }

    /// Whether objects are wanted.
    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    /// Plain text.
    pub(super) fn text(&mut self, text: fmt::Arguments<'_>) -> Result<(), Failure> {
        self.out.write_fmt(text).map_err(Failure::output)
    }

    /// An object on a line of its own.
    pub(super) fn json(&mut self, object: &impl Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.out, object).map_err(|e| Failure::output(e.into()))?;
        self.out.write_all(b"\n").map_err(Failure::output)
    }

    /// Whether there are rows that nobody has seen yet.
    pub(super) fn are_held(&self) -> bool {
        !self.out.buffer().is_empty()
    }

    /// Shows what has been held back.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(Failure::output)
    }
}

/// `s` where there is not one.
pub(super) fn plural(count: u64) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Bytes in hexadecimal, two digits each and nothing between.
#[derive(Clone, Copy)]
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        let missing = f.width().unwrap_or(0).saturating_sub(2 * self.0.len());
        write!(f, "{:missing$}", "")
    }
}

/// The same bytes as text, a dot for what is not printed.
struct Ascii<'a>(&'a [u8]);

impl fmt::Display for Ascii<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            let shown = byte == b' ' || byte.is_ascii_graphic();
            write!(f, "{}", char::from(if shown { byte } else { b'.' }))?;
        }
        Ok(())
    }
}

/// A number, or `-`.
struct OrDash<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for OrDash<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.pad("-"),
        }
    }
}

fn display<S: serde::Serializer>(head: &Option<Hex<'_>>, to: S) -> Result<S::Ok, S::Error> {
    match head {
        Some(head) => to.collect_str(head),
        None => to.serialize_none(),
    }
}
