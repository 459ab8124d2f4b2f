//! The dispatcher: one thread that moves messages and replies, and keeps workers alive.
//!
//! Each turn waits for events, looks at what they are about, does what time asks for, and then gives
//! messages to idle workers. Every handler looks at the state of things, not at the event, so that an
//! event that comes too late or twice does no harm; only sockets of workers are edge-triggered, and
//! they are read until nothing is left.

use std::{
    collections::VecDeque,
    io,
    mem::MaybeUninit,
    os::{fd::AsFd, unix::net::UnixStream},
    sync::Arc,
    time::{Duration, Instant},
};

use kcm::{Error, Socket, Stream};
use rustix::{
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{
    MessageLimits,
    channel::Incoming,
    clients::{Clients, TICK},
    failure::Failure,
    listen::Listener,
    log::{Line, Log},
    options::{ServeOptions, WorkerTransport},
    worker::{END_GRACE, Job, Recipe, State, Worker},
};

/// Events in one look; more come with the next.
const EVENTS: usize = 64;
/// Connections accepted in one turn, before others have theirs.
const ACCEPTS: usize = 64;
/// How long a worker that closes its socket may take to end, before it is killed: 1 s, in which a
/// busy machine runs an exit handler.
const CLOSED_GRACE: Duration = Duration::from_secs(1);
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

/// Reads a byte for each SIGTERM and SIGINT from now on.
pub(super) fn signals() -> Result<UnixStream, Failure> {
    let make = || {
        let (reader, writer) = UnixStream::pair()?;
        reader.set_nonblocking(true)?;
        signal_hook::low_level::pipe::register(SIGTERM, writer.try_clone()?)?;
        signal_hook::low_level::pipe::register(SIGINT, writer)?;
        Ok(reader)
    };
    make().map_err(Failure::system::<io::Error>("signals cannot be received"))
}

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
    workers: Vec<Worker>,
    /// Messages that come before new ones: their workers did not read them, or died (`--retry`).
    again: VecDeque<Job>,
    /// For one datagram.
    buffer: Vec<u8>,
    drain: Option<Drain>,
}

/// The end, since a signal.
struct Drain {
    until: Instant,
    /// Nothing is in hand any more; workers are told to go.
    ending: bool,
    /// Nothing was left behind so far.
    complete: bool,
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
            // Messages: the turn ends with giving them to whoever is idle.
            _ => {}
        }
    }

    /// When there is something to do without an event.
    fn next_time(&self, now: Instant) -> Option<Instant> {
        let mut next = self.clients.next_tick();
        let mut consider = |at: Option<Instant>| next = [next, at].into_iter().flatten().min();
        consider(self.full_until);
        consider(self.drain.as_ref().map(|_| now + TICK));
        for worker in &self.workers {
            match &worker.state {
                State::Waiting(at) if self.drain.is_none() => consider(Some(*at)),
                State::Waiting(_) | State::Ended => {}
                State::Running(process) => {
                    consider(process.next_step());
                    if let Some(oldest) = process.hand.front() {
                        consider(self.options.worker_deadline.map(|d| oldest.given_at + d));
                    }
                    let offered = process.hand.back().filter(|job| !job.read);
                    if self.options.no_reply
                        && let Some(job) = offered
                    {
                        consider(Some((job.given_at + patience(job)).max(now + PATIENCE)));
                    }
                }
            }
        }
        next
    }

    fn timers(&mut self, now: Instant) {
        self.clients.tick(&self.socket, now);
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
                        first.is_some_and(|job| job.read && now >= job.given_at + deadline)
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
        if self.options.no_reply {
            self.move_offers(now);
        }
    }

    // Clients.

    fn accept(&mut self, number: usize) {
        for _ in 0..ACCEPTS {
            // It may have been closed, or be full, since the event.
            let listener = self.listeners.get(number);
            let Some(listener) = listener.filter(|_| self.full_until.is_none()) else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => {
                    if !self.attach(stream, peer) {
                        self.stop_accepting();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error)
                    if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) =>
                {
                    let message = format!("no more connections for now: {error} (see ulimit -n)");
                    self.log.write_client(Line::new("no-descriptor", message));
                    self.stop_accepting();
                }
                // A client that is gone already.
                Err(_) => {}
            }
        }
    }

    /// False: there is no room.
    fn attach(&mut self, stream: Stream, peer: String) -> bool {
        let clients = &self.clients;
        match clients.peers.attach(&clients.mux, stream, &peer) {
            Err(full) if matches!(full.error, Error::LimitReached { .. }) => {
                self.unattached = Some((full.stream, peer));
                false
            }
            // One that could not be attached has been reset meanwhile.
            Ok(_) | Err(_) => true,
        }
    }

    fn stop_accepting(&mut self) {
        for listener in &self.listeners {
            let _ = epoll::delete(&self.epoll, listener);
        }
        self.full_until = Some(Instant::now() + TICK);
    }

    fn accept_again(&mut self) -> Result<(), Errno> {
        if let Some((stream, peer)) = self.unattached.take()
            && !self.attach(stream, peer)
        {
            self.full_until = Some(Instant::now() + TICK);
            return Ok(());
        }
        self.full_until = None;
        for (number, listener) in (0..).zip(&self.listeners) {
            self.add(listener, LISTENER | number, epoll::EventFlags::IN)?;
        }
        Ok(())
    }

    // Messages.

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
        Some(Job {
            message,
            retried: false,
            given_at: Instant::now(),
            read: !self.options.no_reply,
            moves: 0,
        })
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
            let rank = (hand.len(), since.map(|job| job.given_at));
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
        let address = job.message.connection().as_u64().to_be_bytes();
        let prefix: &[u8] = if self.options.addressed { &address } else { &[] };
        if process.channel.send(prefix, &job.message).is_err() {
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

    /// With `--no-reply`: what a busy worker has not read goes to one that may be idle.
    fn move_offers(&mut self, now: Instant) {
        for number in 0..self.workers.len() {
            let Some(other) = self.idle_worker(Some(number)) else {
                return;
            };
            let Some(process) = self.workers[number].process() else {
                continue;
            };
            if let Some(offered) = process.hand.pop_back_if(|job| {
                !job.read && now >= job.given_at + patience(job) && process.channel.take_back()
            }) {
                let moves = offered.moves + 1;
                self.give_to(other, Job { moves, ..offered });
            }
        }
    }

    // Workers.

    fn watch_worker(&mut self, number: usize) -> Result<(), Errno> {
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

    fn watch_room(&mut self, number: usize, watch: bool) {
        let flags = socket_flags(watch || self.options.no_reply);
        if let State::Running(process) = &self.workers[number].state {
            let data = epoll::EventData::new_u64(SOCKET | number as u64);
            // It is there, so that nothing needs memory.
            let _ = epoll::modify(&self.epoll, &process.channel, data, flags);
        }
    }

    /// Whatever a worker's socket has to say.
    fn look_at_socket(&mut self, number: usize) {
        let Some(process) = self.workers[number].process() else {
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
            last.read = true;
            last.given_at = Instant::now();
            process.hand.drain(..process.hand.len() - 1);
            process.useful = true;
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
                Err(_) => Incoming::Closed { unread: false },
            };
            let complaint = match incoming {
                Incoming::Nothing => return,
                Incoming::Closed { unread } => {
                    process.unread |= unread;
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
                            process.useful = true;
                            let id = job.message.connection();
                            self.clients.reply(&self.socket, job.message, reply);
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

    fn kill(&mut self, number: usize, why: &str) {
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
    fn bury(&mut self, number: usize) {
        let draining = self.drain.is_some();
        if !self.workers[number].process().is_some_and(|process| {
            let pidfd = &process.pidfd;
            rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED
                    | rustix::process::WaitIdOptions::NOHANG
                    | rustix::process::WaitIdOptions::NOWAIT,
            )
            .is_ok_and(|status| status.is_some())
        }) {
            return;
        }
        // Its last words.
        if !self.workers[number].process().is_some_and(|p| p.was_killed()) {
            self.look_at_socket(number);
        }
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
            let good = process.lived_well(status, now);
            let pause = worker.pause(good, now);
            text += &match worker.failures() {
                0 | 1 => "; it is started again".to_owned(),
                n => format!("; it is started again in {pause:?}, after {n} failures in a row"),
            };
        }
        let line = Line::new("worker-ended", text)
            .with("worker", number + 1)
            .with("pid", pid)
            .with("status", status.to_string());
        self.log.write(line);

        let hand = std::mem::take(&mut process.hand);
        // Whether it had read its only message is known; with several, it is not.
        let unread = process.unread && !self.options.addressed;
        for mut job in hand.into_iter().rev() {
            if draining && self.options.no_reply && status.success() && job.read {
                continue;
            }
            if unread || !job.read && process.channel.take_back() {
                self.again.push_front(job);
                continue;
            }
            let retry = self.options.retry && !job.retried;
            self.report(&job, number, retry);
            if retry {
                job.retried = true;
                job.read = !self.options.no_reply;
                self.again.push_front(job);
            } else {
                self.clients.finish(job.message.connection());
                if let Some(drain) = &mut self.drain {
                    drain.complete = false;
                }
            }
        }
    }

    fn report(&self, job: &Job, number: usize, retry: bool) {
        let id = job.message.connection();
        let what = match retry {
            true => "is given to another",
            false => "has no answer",
        };
        let message = format!(
            "worker {} had a message of {} bytes of {}: it {what}",
            number + 1,
            job.message.len(),
            self.clients.peers.name(id),
        );
        let event = if retry { "message-retried" } else { "message-lost" };
        let line = Line::new(event, message)
            .with("worker", number + 1)
            .with("connection", id.as_u64());
        self.log.write(line.with("len", job.message.len()));
    }

    fn restart(&mut self, number: usize, now: Instant) {
        let started = self.workers[number].restart(&self.recipe, now);
        let started = started.and_then(|()| Ok(self.watch_worker(number)?));
        if let Err(error) = started {
            let message = format!("worker {} cannot be started: {error}", number + 1);
            let line = Line::new("worker-not-started", message);
            self.log.write(line.with("worker", number + 1));
            if self.workers[number].process().is_some() {
                self.workers[number].pause(false, now);
            }
        }
    }

    // The end.

    fn signal(&mut self) {
        if !matches!(io::Read::read(&mut &self.signals, &mut [0]), Ok(1)) {
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
        self.log.write(Line::new("stopping", message).with("messages", in_hand));
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
    fn drained(&mut self, now: Instant) -> Option<bool> {
        let in_hand = self.in_hand();
        let drain = self.drain.as_mut()?;
        let over = now >= drain.until;
        if !drain.ending && (over || in_hand == 0 && self.clients.have_all()) {
            drain.ending = true;
            drain.complete &= !over;
            if over {
                let message = format!("the time to stop is over, with {in_hand} messages in hand");
                self.log.write(Line::new("drain-timeout", message).with("messages", in_hand));
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
            true => "stopped; nothing was left",
            false => "stopped; messages or replies were left",
        };
        self.log.write(Line::new("stopped", message).with("complete", complete));
        Some(complete)
    }

    fn add(&self, fd: impl AsFd, data: u64, flags: epoll::EventFlags) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, epoll::EventData::new_u64(data), flags)
    }
}

/// What to hear of a worker's socket; `room`: also when it has read something.
fn socket_flags(room: bool) -> epoll::EventFlags {
    let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    flags.set(epoll::EventFlags::OUT, room);
    flags
}

fn patience(job: &Job) -> Duration {
    PATIENCE * (1 << job.moves.min(MOST_DOUBLINGS))
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
    let place = (hand.iter()).position(|job| job.message.connection().as_u64() == id);
    place
        .and_then(|place| hand.remove(place))
        .map(|job| (job, reply))
        .ok_or_else(|| format!("it wrote {len} bytes to connection {id}, of which it has no message"))
}
