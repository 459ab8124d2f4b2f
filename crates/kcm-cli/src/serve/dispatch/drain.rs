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

    /// Whether a message can still be given to somebody: workers that end are not started again in
    /// a drain.
    pub(super) fn can_give(&self) -> bool {
        let takes = |worker: &Worker| match &worker.state {
            State::Running(process) => !process.is_ending(),
            State::Waiting(_) | State::Ended => false,
        };
        self.drain.is_none() || self.workers.iter().any(takes)
    }

    /// What waits for a worker when there is none left is lost.
    fn give_up(&mut self) {
        if self.again.is_empty() || self.can_give() {
            return;
        }
        for job in std::mem::take(&mut self.again) {
            let id = job.connection;
            let name = self.clients.peers.name(id);
            let message = format!(
                "a message of {} bytes of {name} is given to nobody: no worker is left",
                job.len_bytes
            );
            let line = Line::new("message-lost", message).with("connection", id.as_u64());
            self.log.write(line.with("len", job.len_bytes));
            self.clients.finish(id);
            if let Some(drain) = &mut self.drain {
                drain.complete = false;
            }
        }
    }

    /// The drain's next step; when all workers have ended, whether it was complete.
    pub(super) fn drained(&mut self, now: Instant) -> Option<bool> {
        self.give_up();
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
