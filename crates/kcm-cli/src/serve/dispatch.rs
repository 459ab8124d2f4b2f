//! The dispatcher: one thread that moves messages and replies, and keeps workers alive.
//!
//! Each turn waits for events, looks at what they are about, does what time asks for, and then gives
//! messages to idle workers. Every handler looks at the state of things, not at the event, so that an
//! event that comes too late or twice does no harm; only sockets of workers are edge-triggered, and
//! they are read until nothing is left.

mod accept;
mod attend;
mod drain;

use std::{
    collections::VecDeque,
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use kcm::{Socket, Stream};
use rustix::{
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};

pub(super) use self::drain::signals;
use self::{attend::CLOSED_GRACE, drain::Drain};
use super::{
    MessageLimits,
    clients::{Clients, TICK},
    failure::Failure,
    listen::Listener,
    log::{Line, Log},
    options::{ServeOptions, WorkerTransport},
    worker::{Job, Recipe, State, Worker},
};

/// Events in one look; more come with the next.
const EVENTS: usize = 64;
/// With `--no-reply`: a message not read for so long is given to a worker that may be idle. A worker
/// that waits reads within microseconds. Doubled with each move of the message.
const PATIENCE: Duration = Duration::from_millis(1);
/// It is doubled so often: to 64 ms.
const MOST_DOUBLINGS: u32 = 6;

const SIGNAL: u64 = 0;
const MESSAGES: u64 = 1;
/// Listeners, workers' sockets and workers' pidfds: the kind above, the number below.
const LISTENER: u64 = 1 << 32;
const SOCKET: u64 = 2 << 32;
const PROCESS: u64 = 3 << 32;
const KIND: u64 = !0 << 32;

pub(super) struct Dispatcher {
    options: ServeOptions,
    recipe: Recipe,
    written_bytes: usize,
    log: Arc<Log>,
    clients: Clients,
    socket: Socket,
    epoll: OwnedFd,
    signals: UnixStream,
    listeners: Vec<Listener>,
    /// There is no room for more connections until then at least; the listeners are not in the
    /// epoll.
    full_until: Option<Instant>,
    /// Accepted, when there was no room.
    unattached: Option<(Stream, String)>,
    /// The multiplexor's socket is in the epoll.
    receiving: bool,
    /// Something has come from a client in this turn.
    told: bool,
    workers: Vec<Worker>,
    /// Messages that come before new ones: their workers did not read them, or died (`--retry`).
    again: VecDeque<Job>,
    /// For one datagram.
    buffer: Vec<u8>,
    drain: Option<Drain>,
}

impl Dispatcher {
    #[expect(clippy::too_many_arguments, reason = "called once")]
    pub(super) fn new(
        options: ServeOptions,
        recipe: Recipe,
        limits: MessageLimits,
        log: Arc<Log>,
        clients: Clients,
        listeners: Vec<Listener>,
        workers: Vec<Worker>,
        signals: UnixStream,
    ) -> Result<Self, Failure> {
        let socket = clients.mux.socket().map_err(Failure::system("a socket"))?;
        socket
            .set_nonblocking(true)
            .map_err(Failure::system("a socket"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Failure::system("epoll"))?;
        let buffer_bytes = match recipe.transport {
            WorkerTransport::Seqpacket => limits.written_bytes,
            WorkerTransport::Stream => 0,
        };
        let mut this = Self {
            options,
            recipe,
            written_bytes: limits.written_bytes,
            log,
            clients,
            socket,
            epoll,
            signals,
            listeners,
            full_until: None,
            unattached: None,
            receiving: false,
            told: false,
            workers,
            again: VecDeque::new(),
            buffer: vec![0; buffer_bytes],
            drain: None,
        };
        let start = |this: &mut Self| {
            this.add(&this.signals, SIGNAL, epoll::EventFlags::IN)?;
            this.accept_again()?;
            (0..this.workers.len()).try_for_each(|number| this.watch_worker(number))
        };
        start(&mut this).map_err(Failure::system("epoll"))?;
        Ok(this)
    }

    /// Runs to the end of a drain. True: everything in hand was finished.
    pub(super) fn run(&mut self) -> Result<bool, Failure> {
        loop {
            self.give().map_err(Failure::system("epoll"))?;
            let now = Instant::now();
            if let Some(complete) = self.drained(now) {
                return Ok(complete);
            }
            let timeout = self.next_time(now).map(|at| {
                let wait = at.saturating_duration_since(now);
                Timespec {
                    tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(wait.subsec_nanos()),
                }
            });
            let mut room = [const { MaybeUninit::uninit() }; EVENTS];
            let events = match epoll::wait(&self.epoll, &mut room, timeout.as_ref()) {
                Ok((events, _)) => events,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(Failure::system("epoll")(error)),
            };
            for event in events.iter() {
                self.event(event.data.u64());
            }
            self.timers(Instant::now());
        }
    }

    fn event(&mut self, data: u64) {
        let number = usize::try_from(data & !KIND).unwrap_or(usize::MAX);
        match data & KIND {
            LISTENER => self.accept(number),
            SOCKET => self.look_at_socket(number),
            PROCESS => self.bury(number),
            _ if data == SIGNAL => self.signal(),
            // The turn ends with giving them to whoever is idle.
            _ => self.told = true,
        }
    }

    /// When there is something to do without an event.
    fn next_time(&self, now: Instant) -> Option<Instant> {
        let mut next = self.clients.next_tick();
        let mut consider = |at: Option<Instant>| next = [next, at].into_iter().flatten().min();
        consider(self.clients.next_look());
        consider(self.full_until);
        consider(self.drain.as_ref().map(|_| now + TICK));
        let can_move = self.can_move_offers() && self.idle_worker(None).is_some();
        for worker in &self.workers {
            match &worker.state {
                State::Waiting(at) if self.drain.is_none() => consider(Some(*at)),
                State::Waiting(_) | State::Ended => {}
                State::Running(process) => {
                    consider(process.next_step());
                    let oldest = process.hand.front().filter(|_| !process.is_ending());
                    if let (Some(oldest), Some(d)) = (oldest, self.options.worker_deadline) {
                        consider(Some(oldest.given_at + d));
                    }
                    let offered = process.hand.back().filter(|job| !job.read && can_move);
                    if let Some(job) = offered {
                        consider(Some((job.given_at + patience(job)).max(now + PATIENCE)));
                    }
                }
            }
        }
        next
    }

    fn timers(&mut self, now: Instant) {
        self.clients.tick(&self.socket, now);
        self.clients.relieve(now, self.receiving);
        if self.full_until.is_some_and(|at| at <= now) && self.accept_again().is_err() {
            // Where the system has no room for it now, it has next time.
            self.stop_accepting();
        }
        for number in 0..self.workers.len() {
            let deadline = self.options.worker_deadline;
            let worker = &mut self.workers[number];
            match &mut worker.state {
                State::Running(process) => {
                    let late = deadline.is_some_and(|deadline| {
                        let first = process.hand.front();
                        first.is_some_and(|job| now >= job.given_at + deadline)
                    });
                    let pid = process.id();
                    if late && !process.is_ending() {
                        self.kill(number, "it has had a message for the --worker-deadline");
                    } else if process.step(now) {
                        let message = format!("worker {} (pid {pid}) does not end", number + 1);
                        let line = Line::new("worker-stays", message).with("worker", number + 1);
                        self.log.write(line.with("pid", pid));
                    }
                }
                State::Waiting(at) if *at <= now && self.drain.is_none() => {
                    self.restart(number, now);
                }
                State::Waiting(_) | State::Ended => {}
            }
        }
        if self.can_move_offers() {
            self.move_offers(now);
        }
    }

    /// Gives messages to workers while there are both.
    fn give(&mut self) -> Result<(), Errno> {
        let idle = loop {
            let Some(number) = self.idle_worker(None) else {
                break false;
            };
            let Some(job) = self.next_job() else {
                break true;
            };
            self.give_to(number, job);
        };
        // (What came while all were busy was not told of; and beside a message that was given, others
        // may have found no memory.)
        if (std::mem::take(&mut self.told) || !self.receiving) && idle {
            self.clients.something_came();
        }
        // Who is busy is not to be told of messages.
        let receive = idle && self.drain.is_none();
        if receive != self.receiving {
            let fd = self.socket.as_fd();
            if receive {
                let data = epoll::EventData::new_u64(MESSAGES);
                epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?;
            } else {
                epoll::delete(&self.epoll, fd)?;
            }
            self.receiving = receive;
        }
        Ok(())
    }

    fn next_job(&mut self) -> Option<Job> {
        if let Some(job) = self.again.pop_front() {
            return Some(job);
        }
        if self.drain.is_some() {
            return None;
        }
        // Nothing now; a multiplexor that is shut down has no more either.
        let message = self.socket.recv().ok()?;
        self.clients.begin(message.connection());
        Some(Job::new(message, !self.options.no_reply))
    }

    /// A worker that may be given a message: the one with the fewest, and the lowest number, whose
    /// memory is warm; with `--no-reply`, the one that has read its last message longest ago.
    fn idle_worker(&self, but: Option<usize>) -> Option<usize> {
        let most = match (self.options.addressed, self.options.no_reply) {
            (true, _) => usize::from(self.options.in_flight),
            // One that it works on, and one that it has not read.
            (_, true) => 2,
            _ => 1,
        };
        let mut best = None;
        for (number, worker) in self.workers.iter().enumerate() {
            let State::Running(process) = &worker.state else {
                continue;
            };
            let hand = &process.hand;
            let unread = hand.back().is_some_and(|job| !job.read);
            if process.is_ending()
                || process.channel.is_waiting()
                || unread
                || hand.len() >= most
                || but == Some(number)
            {
                continue;
            }
            let since = hand.back().filter(|_| self.options.no_reply);
            let rank = (hand.len(), process.missed, since.map(|job| job.given_at));
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, number));
            }
        }
        best.map(|(_, number)| number)
    }

    fn give_to(&mut self, number: usize, mut job: Job) {
        let Some(process) = self.workers[number].process() else {
            self.again.push_front(job);
            return;
        };
        let address = job.connection.as_u64().to_be_bytes();
        let prefix: &[u8] = if self.options.addressed {
            &address
        } else {
            &[]
        };
        if process.channel.send(prefix, &job.bytes).is_err() {
            // It has closed its socket; its end is told soon, or brought about.
            process.kill_at(Instant::now() + CLOSED_GRACE);
            self.again.push_front(job);
            return;
        }
        job.given_at = Instant::now();
        process.hand.push_back(job);
        if process.channel.is_waiting() {
            self.watch_room(number, true);
        }
    }

    fn can_move_offers(&self) -> bool {
        self.options.no_reply && self.recipe.transport == WorkerTransport::Seqpacket
    }

    /// With `--no-reply`: what a busy worker has not read goes to one that may be idle.
    fn move_offers(&mut self, now: Instant) {
        for number in 0..self.workers.len() {
            let Some(other) = self.idle_worker(Some(number)) else {
                // This one may be the only one that is idle.
                continue;
            };
            let Some(process) = self.workers[number].process() else {
                continue;
            };
            if let Some(offered) = process.hand.pop_back_if(|job| {
                !job.read && now >= job.given_at + patience(job) && process.channel.take_back()
            }) {
                process.missed = true;
                let moves = offered.moves + 1;
                self.give_to(other, Job { moves, ..offered });
            }
        }
    }

    fn add(&self, fd: impl AsFd, data: u64, flags: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(data), flags)
    }
}

fn patience(job: &Job) -> Duration {
    PATIENCE * (1 << job.moves.min(MOST_DOUBLINGS))
}
