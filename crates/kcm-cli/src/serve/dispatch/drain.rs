//! The dispatcher's end: what is in hand is finished, replies go out, workers leave.

use std::{
    io::{self, Read as _},
    os::unix::net::UnixStream,
    time::Instant,
};

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    low_level::pipe,
};

use super::Dispatcher;
use crate::serve::{
    failure::Failure,
    log::Line,
    worker::{END_GRACE, State, Worker},
};

/// The end, since a signal.
pub(super) struct Drain {
    until: Instant,
    /// Nothing is in hand any more; workers are told to go.
    ending: bool,
    /// Nothing was left behind so far.
    pub(super) complete: bool,
}

/// Reads a byte for each SIGTERM and SIGINT from now on.
pub(in crate::serve) fn signals() -> Result<UnixStream, Failure> {
    let make = || {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        pipe::register(SIGTERM, writer.try_clone()?)?;
        pipe::register(SIGINT, writer)?;
        Ok(reader)
    };
    make().map_err(Failure::system::<io::Error>("signals cannot be received"))
}

impl Dispatcher {
    pub(super) fn signal(&mut self) {
        if !matches!((&self.signals).read(&mut [0]), Ok(1)) {
            return;
        }
        let now = Instant::now();
        if let Some(drain) = &mut self.drain {
            // The second time it is meant at once.
            drain.until = now;
            return;
        }
        // With them go their places in the epoll.
        self.listeners.clear();
        self.unattached = None;
        self.full_until = None;
        let in_hand = self.in_hand();
        let until = now + self.options.drain_timeout;
        self.drain = Some(Drain {
            until,
            ending: false,
            complete: true,
        });
        let timeout = self.options.drain_timeout;
        let message = format!("stopping: {in_hand} messages in hand have {timeout:?}");
        self.log
            .write(Line::new("stopping", message).with("messages", in_hand));
    }

    /// Messages that are not finished. (With `--no-reply`: that are not read.)
    fn in_hand(&self) -> usize {
        let unfinished = |worker: &Worker| match &worker.state {
            State::Running(process) if self.options.no_reply => {
                process.hand.iter().filter(|job| !job.read).count()
            }
            State::Running(process) => process.hand.len(),
            State::Waiting(_) | State::Ended => 0,
        };
        self.again.len() + self.workers.iter().map(unfinished).sum::<usize>()
    }

    /// The drain's next step; when all workers have ended, whether it was complete.
    pub(super) fn drained(&mut self, now: Instant) -> Option<bool> {
        let in_hand = self.in_hand();
        let drain = self.drain.as_mut()?;
        let over = now >= drain.until;
        if !drain.ending && (over || in_hand == 0 && self.clients.have_all()) {
            drain.ending = true;
            drain.complete &= !over;
            if over {
                let message = format!("the time to stop is over, with {in_hand} messages in hand");
                self.log
                    .write(Line::new("drain-timeout", message).with("messages", in_hand));
            }
            // Who never answers may still work on what it has read.
            let terminate_at = match self.options.no_reply {
                true => drain.until,
                false => now + END_GRACE,
            };
            for worker in &mut self.workers {
                if let Some(process) = worker.process() {
                    process.end(terminate_at.max(now));
                }
            }
        }
        let gone = |worker: &Worker| !matches!(worker.state, State::Running(_));
        if !drain.ending || !self.workers.iter().all(gone) {
            return None;
        }
        let complete = drain.complete;
        let message = match complete {
            true => "stopped; nothing was left in hand",
            false => "stopped; messages or replies were left",
        };
        self.log
            .write(Line::new("stopped", message).with("complete", complete));
        Some(complete)
    }
}
