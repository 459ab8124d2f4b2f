//! `kcm parse`: where the messages of a byte stream begin and end, as a framing sees it.
//!
//! What a user tries a framing with before trusting it, on what a socket or a capture wrote. So it
//! shows exactly what the engine would do with these bytes (the same assembler, the same limits),
//! works on pipes that never end (rows come as the input comes, memory stays bounded whatever is
//! announced), and its output is easy to take apart: plain columns, or an object a line.
//!
//! Bytes flow one way: `input` reads them, `cutter` finds the messages, `rows` prints them.

mod cutter;
mod failure;
mod input;
mod list;
mod rows;
mod time;
mod verify;

pub(crate) use failure::Failure;

use std::{
    io::{self, IsTerminal as _},
    time::{Duration, Instant},
};

use kcm_frame::Limits;

use self::{
    cutter::{Cut, Cutter},
    input::Input,
    rows::Rows,
};
use crate::{cli::ParseOptions, progress::Progress};

/// How often the bar moves: it is to cost nothing.
const SHOW_EVERY: Duration = Duration::from_millis(100);

/// Does what the options say.
pub(crate) fn run(options: &ParseOptions) -> Result<(), Failure> {
    let mut rows = Rows::new(options);
    if options.list {
        return list::run(&mut rows);
    }
    let spec = (options.framing.as_ref()).expect("clap demands one, unless there is --list");
    if options.verify {
        verify::run(spec, &mut rows)?;
        if options.file.is_none() {
            return Ok(());
        }
    }
    let limits = Limits::default().with_max_message_bytes(options.max_message);
    let input = Input::open(options.file.as_deref())?;
    if options.time {
        return time::run(&spec.framing, limits, input, &mut rows);
    }
    rows.begin()?;
    parse(Cutter::new(&spec.framing, limits), input, &mut rows)
}

/// Reads the input to its end or to where it cannot be framed, and prints all rows and the totals.
fn parse(mut cutter: Cutter, mut input: Input, rows: &mut Rows) -> Result<(), Failure> {
    let mut bar = Bar::new(&input);
    loop {
        match cutter.next() {
            Cut::Message(message) => {
                rows.message(&message)?;
                continue;
            }
            Cut::More => {}
            Cut::Fault(fault) => {
                let totals = cutter.totals();
                rows.totals(totals)?;
                return Err(Failure::Framing {
                    offset: totals.bytes,
                    fault,
                });
            }
        }
        // Who waits for rows gets them before this waits for bytes.
        if rows.are_held() && input.would_wait() {
            rows.flush()?;
        }
        let read = cutter.fill(|room| input.read(room))?;
        if read == 0 {
            return rows.totals(cutter.totals());
        }
        bar.advance(read);
    }
}

/// A bar where it makes sense: on a terminal that does not get the rows, for an input whose
/// length is known.
struct Bar {
    progress: Option<Progress>,
    next: Instant,
}

impl Bar {
    fn new(input: &Input) -> Self {
        let len = input.len().filter(|_| !io::stdout().is_terminal());
        Self {
            progress: len.map(|len| Progress::new(len.into())),
            next: Instant::now() + SHOW_EVERY,
        }
    }

    fn advance(&mut self, bytes: usize) {
        if let Some(progress) = &mut self.progress {
            progress.advance(bytes as u128);
            let now = Instant::now();
            if now >= self.next {
                self.next = now + SHOW_EVERY;
                progress.show("parsed");
            }
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(progress) = &self.progress {
            progress.clear();
        }
    }
}
