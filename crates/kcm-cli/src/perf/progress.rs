//! How far it is, on the standard error, and only when that is a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Short enough that the whole line fits 80 columns.
const BAR_WIDTH: usize = 12;

/// A bar that is drawn between runs, never while something is measured.
pub(super) struct Progress {
    shown: bool,
    begin: Instant,
    total: Duration,
    done: Duration,
}

impl Progress {
    /// For as much running time as this.
    pub(super) fn new(total: Duration) -> Self {
        Self {
            shown: io::stderr().is_terminal(),
            begin: Instant::now(),
            total,
            done: Duration::ZERO,
        }
    }

    /// Says what runs now.
    pub(super) fn show(&self, what: &str) {
        if self.shown {
            let part = self.done.as_secs_f64() / self.total.as_secs_f64().max(f64::MIN_POSITIVE);
            let rest = self.total.saturating_sub(self.done).as_secs();
            eprint!("\r\x1b[K{} {what}, {rest} s left", bar(part));
            let _ = io::stderr().flush();
        }
    }

    /// So much of the running time is over.
    pub(super) fn advance(&mut self, time: Duration) {
        self.done += time;
    }

    /// Takes the bar away, for a line of the table or the end.
    pub(super) fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }

    /// How long it has taken in all.
    pub(super) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

fn bar(part: f64) -> String {
    let cells = (0_u8..).take(BAR_WIDTH).map(f64::from);
    let width = f64::from(u8::try_from(BAR_WIDTH).unwrap_or(u8::MAX));
    let filled: String = cells
        .map(|cell| if cell < part * width { '#' } else { '.' })
        .collect();
    format!("[{filled}] {:3.0} %", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_fill_up() {
        assert!(bar(0.0).starts_with("[............]   0 %"));
        assert!(bar(0.5).starts_with("[######......]  50 %"));
        assert!(bar(1.0).starts_with("[############] 100 %"));
    }
}
