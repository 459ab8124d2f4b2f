//! The dispatcher's workers: what they write, how they end, and what takes their place.

use std::{
    collections::VecDeque,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rustix::{
    event::epoll,
    io::Errno,
    process::{WaitId, WaitIdOptions, waitid},
};

use super::{Dispatcher, PROCESS, SOCKET};
use crate::serve::{
    channel::Incoming,
    log::Line,
    options::ServeOptions,
    worker::{Job, Life, State},
};

/// How long a worker that closes its socket may take to end, before it is killed: 1 s, in which a
/// busy machine runs an exit handler.
pub(super) const CLOSED_GRACE: Duration = Duration::from_secs(1);

impl Dispatcher {
    pub(super) fn watch_worker(&mut self, number: usize) -> Result<(), Errno> {
        let no_reply = self.options.no_reply;
        let epoll = &self.epoll;
        let State::Running(process) = &self.workers[number].state else {
            return Ok(());
        };
        let data = |kind| epoll::EventData::new_u64(kind | number as u64);
        let flags = socket_flags(no_reply);
        epoll::add(epoll, &process.channel, data(SOCKET), flags)?;
        epoll::add(epoll, &process.pidfd, data(PROCESS), epoll::EventFlags::IN)
    }

    pub(super) fn watch_room(&mut self, number: usize, watch: bool) {
        let flags = socket_flags(watch || self.options.no_reply);
        if let State::Running(process) = &self.workers[number].state {
            let data = epoll::EventData::new_u64(SOCKET | number as u64);
            // It is there, so that nothing needs memory.
            let _ = epoll::modify(&self.epoll, &process.channel, data, flags);
        }
    }

    /// Whatever a worker's socket has to say; of one that was killed nothing is wanted any more.
    pub(super) fn look_at_socket(&mut self, number: usize) {
        let process = self.workers[number].process();
        let Some(process) = process.filter(|process| !process.was_killed()) else {
            return;
        };
        if process.channel.is_waiting() && process.channel.flush().unwrap_or(true) {
            self.watch_room(number, false);
        }
        if self.options.no_reply {
            self.note_read(number);
        }
        self.take_replies(number);
    }

    /// With `--no-reply`: if it has read its message, it is done with the one before.
    fn note_read(&mut self, number: usize) {
        let Some(process) = self.workers[number].process() else {
            return;
        };
        if let Some(last) = process.hand.back_mut()
            && !last.read
            && !process.channel.is_unread()
        {
            last.note_read(self.options.retry);
            let before = process.hand.drain(..process.hand.len() - 1);
            process.finished |= before.count() > 0;
            process.useful = true;
            process.missed = false;
        }
    }

    /// Reads everything that it has written.
    fn take_replies(&mut self, number: usize) {
        loop {
            let Some(process) = self.workers[number].process() else {
                return;
            };
            let incoming = match process.channel.recv(&mut self.buffer, self.written_bytes) {
                Ok(incoming) => incoming,
                Err(_) => Incoming::Closed,
            };
            let complaint = match incoming {
                Incoming::Nothing => return,
                Incoming::Closed => {
                    process.kill_at(Instant::now() + CLOSED_GRACE);
                    return;
                }
                Incoming::TooLong(len) => {
                    let most = self.written_bytes;
                    format!("it wrote {len} bytes at once, and {most} are the limit")
                }
                Incoming::Message(written) => {
                    match take_answered(&self.options, &mut process.hand, written) {
                        Ok((job, reply)) => {
                            (process.finished, process.useful) = (true, true);
                            let id = job.connection;
                            self.clients.reply(&self.socket, job, reply);
                            self.clients.finish(id);
                            continue;
                        }
                        Err(complaint) => complaint,
                    }
                }
            };
            self.kill(number, &complaint);
            return;
        }
    }

    pub(super) fn kill(&mut self, number: usize, why: &str) {
        let Some(process) = self.workers[number].process() else {
            return;
        };
        let pid = process.id();
        process.kill();
        let message = format!("worker {} (pid {pid}) is killed: {why}", number + 1);
        let line = Line::new("worker-killed", message).with("worker", number + 1);
        self.log.write(line.with("pid", pid));
    }

    /// Its process has ended.
    pub(super) fn bury(&mut self, number: usize) {
        let draining = self.drain.is_some();
        if !self.workers[number].process().is_some_and(|process| {
            let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
            let id = WaitId::PidFd(process.pidfd.as_fd());
            waitid(id, look).is_ok_and(|status| status.is_some())
        }) {
            return;
        }
        // Its last words.
        self.look_at_socket(number);
        let now = Instant::now();
        let worker = &mut self.workers[number];
        let State::Running(mut process) = std::mem::replace(&mut worker.state, State::Ended) else {
            return;
        };
        let status = match process.reap() {
            Ok(status) => status,
            Err(_) => return,
        };
        let pid = process.id();
        let mut text = format!("worker {} (pid {pid}) ended, {status}", number + 1);
        if !draining {
            let life = process.life(status, now);
            let pause = worker.pause(life, now);
            text += "; it is started again";
            if !pause.is_zero() {
                text += &format!(" in {pause:?}");
            }
            if let (Life::Useless, n @ 2..) = (life, worker.failures()) {
                text += &format!(", after {n} failures in a row");
            }
        }
        let line = Line::new("worker-ended", text)
            .with("worker", number + 1)
            .with("pid", pid)
            .with("status", status.to_string());
        self.log.write(line);

        let hand = std::mem::take(&mut process.hand);
        // Whether it had read its only message is known; with several, it is not.
        let unread = process.channel.closed_unread() && !self.options.addressed;
        for mut job in hand.into_iter().rev() {
            if draining && self.options.no_reply && status.success() && job.read {
                continue;
            }
            if unread || !job.read && process.channel.take_back() {
                self.again.push_front(job);
                continue;
            }
            let retry = self.options.retry && !job.retried && self.can_give();
            self.report(&job, number, retry);
            if retry {
                job.retried = true;
                job.read = !self.options.no_reply;
                self.again.push_front(job);
            } else {
                self.clients.finish(job.connection);
                if let Some(drain) = &mut self.drain {
                    drain.complete = false;
                }
            }
        }
    }

    fn report(&self, job: &Job, number: usize, retry: bool) {
        let id = job.connection;
        let what = match (retry, self.options.no_reply) {
            (true, _) => "is given to another",
            (false, false) => "has no answer",
            (false, true) => "may not be finished",
        };
        let message = format!(
            "worker {} had a message of {} bytes of {}: it {what}",
            number + 1,
            job.len_bytes,
            self.clients.peers.name(id),
        );
        let event = if retry {
            "message-retried"
        } else {
            "message-lost"
        };
        let line = Line::new(event, message)
            .with("worker", number + 1)
            .with("connection", id.as_u64());
        self.log.write(line.with("len", job.len_bytes));
    }

    pub(super) fn restart(&mut self, number: usize, now: Instant) {
        let started = self.workers[number].restart(&self.recipe, now);
        let started = started.and_then(|()| Ok(self.watch_worker(number)?));
        if let Err(error) = started {
            let message = format!("worker {} cannot be started: {error}", number + 1);
            let line = Line::new("worker-not-started", message);
            self.log.write(line.with("worker", number + 1));
            if self.workers[number].process().is_some() {
                self.workers[number].pause(Life::Useless, now);
            }
        }
    }
}

/// What to hear of a worker's socket; `room`: also when it has read something.
fn socket_flags(room: bool) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    flags.set(epoll::EventFlags::OUT, room);
    flags
}

/// The message that this write answers, and the reply; or what is wrong with it.
fn take_answered<'a>(
    options: &ServeOptions,
    hand: &mut VecDeque<Job>,
    written: &'a [u8],
) -> Result<(Job, &'a [u8]), String> {
    let len = written.len();
    if options.no_reply {
        return Err(format!(
            "it wrote {len} bytes, and with --no-reply nothing is to be written (debugging output \
             belongs on the standard error)"
        ));
    }
    if !options.addressed {
        let job = hand.pop_front().ok_or_else(|| {
            format!(
                "it wrote {len} bytes without having a message (one write is one reply; debugging \
                 output belongs on the standard error)"
            )
        })?;
        return Ok((job, written));
    }
    let Some((address, reply)) = written.split_first_chunk() else {
        return Err(format!(
            "it wrote {len} bytes, and with --addressed 8 of a connection's id come first"
        ));
    };
    let id = u64::from_be_bytes(*address);
    let place = (hand.iter()).position(|job| job.connection.as_u64() == id);
    place
        .and_then(|place| hand.remove(place))
        .map(|job| (job, reply))
        .ok_or_else(|| {
            format!("it wrote {len} bytes to connection {id}, of which it has no message")
        })
}
