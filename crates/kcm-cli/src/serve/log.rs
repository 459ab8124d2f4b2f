//! Log lines, for people or for programs.
//!
//! What a client causes is limited in its rate: a flood of broken connections must not become a
//! flood of lines, and who reads them slowly would slow down everybody.

use std::{
    fmt,
    io::{self, Write as _},
    sync::Mutex,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use serde_json::{Map, Value};

/// Lines about clients in a second: as many as a person may want to look through.
const MOST_CLIENT_LINES: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);

/// Where log lines go: the standard error.
pub(super) struct Log {
    json: bool,
    clients: Mutex<Rate>,
}

struct Rate {
    since: Instant,
    lines: u32,
    left_out: u64,
}

/// One line: what happened in a word, in a sentence, and its particulars.
pub(super) struct Line {
    event: &'static str,
    message: String,
    fields: Map<String, Value>,
}

impl Line {
    pub(super) fn new(event: &'static str, message: impl fmt::Display) -> Self {
        Self {
            event,
            message: message.to_string(),
            fields: Map::new(),
        }
    }

    /// With a particular, which the sentence has too.
    pub(super) fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }
}

impl Log {
    pub(super) fn new(json: bool) -> Self {
        Self {
            json,
            clients: Mutex::new(Rate {
                since: Instant::now(),
                lines: 0,
                left_out: 0,
            }),
        }
    }

    /// A line about a worker, or the server itself.
    pub(super) fn write(&self, line: Line) {
        let text = if self.json {
            let mut fields = line.fields;
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            fields.insert("time".into(), time.as_secs_f64().into());
            fields.insert("event".into(), line.event.into());
            fields.insert("message".into(), line.message.into());
            format!("{}\n", Value::Object(fields))
        } else {
            format!("kcm: {}\n", line.message)
        };
        // Nobody is left to tell that the log cannot be written.
        let _ = io::stderr().lock().write_all(text.as_bytes());
    }

    /// A line about a client; beyond so many in a second it is only counted.
    pub(super) fn write_client(&self, line: Line) {
        let mut rate = self.clients.lock().unwrap_or_else(|e| e.into_inner());
        let mut left_out = 0;
        if rate.since.elapsed() >= SECOND {
            left_out = std::mem::take(&mut rate.left_out);
            rate.since = Instant::now();
            rate.lines = 0;
        }
        if rate.lines >= MOST_CLIENT_LINES {
            rate.left_out += 1;
            return;
        }
        rate.lines += 1;
        drop(rate);
        if left_out > 0 {
            let message = format!("{left_out} lines about clients were left out");
            self.write(Line::new("left-out", message).with("lines", left_out));
        }
        self.write(line);
    }
}
