//! How far it is, on the standard error, and only when that is a terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

/// Short enough that the whole line fits 80 columns.
const BAR_WIDTH: usize = 12;

/// A bar on the last line of a terminal, with how much time is probably left.
pub(crate) struct Progress {
    shown: bool,
    begin: Instant,
    total: u128,
    done: u128,
}

impl Progress {
    /// For so much work, in whatever unit.
    pub(crate) fn new(total: u128) -> Self {
        Self {
            shown: io::stderr().is_terminal(),
            begin: Instant::now(),
            total,
            done: 0,
        }
    }

    /// Says what runs now.
    pub(crate) fn show(&self, what: &str) {
        if !self.shown {
            return;
        }
        let part = part(self.done, self.total);
        eprint!("\r\x1b[K{} {what}", bar(part));
        if part > 0.0 {
            let left = self.elapsed().mul_f64((1.0 - part) / part);
            eprint!(", {} s left", left.as_secs());
        }
        let _ = io::stderr().flush();
    }

    /// So much of the work is over.
    pub(crate) fn advance(&mut self, work: u128) {
        self.done += work;
    }

    /// Takes the bar away, for a line of the table or the end.
    pub(crate) fn clear(&self) {
        if self.shown {
            eprint!("\r\x1b[K");
            let _ = io::stderr().flush();
        }
    }

    /// How long it has taken in all.
    pub(crate) fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }
}

/// Never above 1: a file may grow while it is read.
fn part(done: u128, total: u128) -> f64 {
    let permille = done.saturating_mul(1000) / total.max(1);
    f64::from(u16::try_from(permille.min(1000)).unwrap_or(1000)) / 1000.0
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
        assert!(bar(part(0, 0)).starts_with("[............]   0 %"));
        assert!(bar(part(5, 10)).starts_with("[######......]  50 %"));
        assert!(bar(part(11, 10)).starts_with("[############] 100 %"));
    }
}
