//! `--time`: what it costs to find the messages, and nothing else.
//!
//! The input lies in memory and is walked again and again as the engine's receiver walks a burst:
//! a step of the assembler for each message. Nothing is printed or copied meanwhile. The least is
//! what the parser costs; the median shows how much the machine was disturbed.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use kcm_frame::{Assembler, Framing, Limits, Step};
use serde::Serialize;

use super::{
    cutter::Totals,
    failure::Failure,
    input::Input,
    rows::{Rows, plural},
};

/// Bytes of the input that are looked at: a million messages of 64 bytes, and a small part of any
/// machine's memory.
const MOST_BYTES: usize = 64 << 20;

/// One measurement: so long that reading the clock does not show.
const REPEAT: Duration = Duration::from_millis(5);
/// All measurements together, unless they are too few.
const ALL_REPEATS: Duration = Duration::from_millis(500);
const FEWEST_REPEATS: usize = 5;

/// The result as JSON: the totals, and the time.
#[derive(Serialize)]
struct JsonTime {
    messages: u64,
    bytes: u64,
    tail_bytes: u64,
    repeats: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ns_per_message: Option<JsonNs>,
}

#[derive(Serialize)]
struct JsonNs {
    min: f64,
    median: f64,
}

/// Measures, and tells the result.
pub(super) fn run(
    framing: &Framing,
    limits: Limits,
    input: Input,
    rows: &mut Rows,
) -> Result<(), Failure> {
    let stream = read(input)?;
    let (totals, lost) = walk(framing, limits, &stream);
    let mut times_ns = Vec::new();
    if totals.messages > 0 {
        times_ns = measure(framing, limits, &stream, totals.messages);
        times_ns.sort_by(f64::total_cmp);
    }
    tell(totals, &times_ns, rows)?;
    match lost {
        Some(fault) => Err(Failure::Framing {
            offset: totals.bytes,
            fault,
        }),
        None => Ok(()),
    }
}

fn read(mut input: Input) -> Result<Vec<u8>, Failure> {
    let mut stream = vec![0; MOST_BYTES];
    let mut len = 0;
    while len < stream.len() {
        match input.read(&mut stream[len..])? {
            0 => break,
            count => len += count,
        }
    }
    stream.truncate(len);
    Ok(stream)
}

/// One walk over all of it.
fn walk(framing: &Framing, limits: Limits, stream: &[u8]) -> (Totals, Option<kcm_frame::Fault>) {
    let mut assembler = Assembler::new(framing, limits);
    let mut rest = stream;
    let mut messages = 0;
    let lost = loop {
        match assembler.step(rest) {
            Step::Message(frame) => {
                let len = usize::try_from(frame.len).unwrap_or(rest.len());
                let (message, after) = rest.split_at(len);
                assembler.delivered(message);
                rest = after;
                messages += 1;
            }
            Step::Incomplete { .. } => break None,
            Step::Fault(fault) => break Some(fault),
        }
    };
    let totals = Totals {
        messages,
        bytes: (stream.len() - rest.len()) as u64,
        tail_bytes: if lost.is_some() { 0 } else { rest.len() as u64 },
        tail_of: assembler.pending().map(|frame| frame.len),
    };
    (totals, lost)
}

/// Nanoseconds a message, once for each repeat.
fn measure(framing: &Framing, limits: Limits, stream: &[u8], messages: u64) -> Vec<f64> {
    let begin = Instant::now();
    let mut times_ns = Vec::new();
    while times_ns.len() < FEWEST_REPEATS || begin.elapsed() < ALL_REPEATS {
        let repeat = Instant::now();
        let mut walks = 0.0;
        while repeat.elapsed() < REPEAT {
            // A few at once where one takes no longer than looking at the clock.
            let at_once = (1000 / messages).max(1);
            for _ in 0..at_once {
                black_box(walk(framing, limits, black_box(stream)));
                walks += 1.0;
            }
        }
        let time_ns = repeat.elapsed().as_secs_f64() * 1e9;
        #[expect(clippy::cast_precision_loss, reason = "not above 2^26")]
        let messages = messages as f64;
        times_ns.push(time_ns / (walks * messages));
    }
    times_ns
}

fn tell(totals: Totals, times_ns: &[f64], rows: &mut Rows) -> Result<(), Failure> {
    let median_ns = times_ns.get(times_ns.len() / 2);
    let (repeats, min_ns) = (times_ns.len(), times_ns.first());
    let ns_per_message = min_ns.zip(median_ns);
    if rows.is_json() {
        let rounded = |ns: f64| (ns * 100.0).round() / 100.0;
        rows.json(&JsonTime {
            messages: totals.messages,
            bytes: totals.bytes,
            tail_bytes: totals.tail_bytes,
            repeats,
            ns_per_message: ns_per_message.map(|(&min, &median)| JsonNs {
                min: rounded(min),
                median: rounded(median),
            }),
        })?;
        return rows.flush();
    }
    match ns_per_message {
        Some((min, median)) => rows.text(format_args!(
            "{min:.1} ns a message at least, {median:.1} ns in the median of {repeats} repeat{}\n",
            plural(repeats as u64)
        ))?,
        None => rows.text(format_args!("nothing to time: no whole message\n"))?,
    }
    rows.totals(totals)
}
