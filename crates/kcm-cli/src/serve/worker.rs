//! One worker: a process, or the pause before the next one.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    ops::Deref,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use kcm::{ConnectionId, Message};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{channel::Channel, options::WorkerTransport};

/// The pause after a second failure in a row, 0.1 s (the first is followed by none): with a
/// processor that is busy starting Python, most of it is left to the others.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause, 5 s: who repairs the cause does not wait long. (One that had finished messages
/// before it failed waits for the first pause only: a client with a message that kills workers now and
/// then is not to have all others wait.)
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A worker that has lived for 10 s did not fail at once: failures are counted anew.
const HEALTHY_LIFE: Duration = Duration::from_secs(10);
/// From the end of its input to SIGTERM, and from there to SIGKILL, 0.5 s each: who heeds either is
/// gone in a few milliseconds.
pub(super) const END_GRACE: Duration = Duration::from_millis(500);

/// How workers are started.
pub(super) struct Recipe {
    pub(super) command: Vec<OsString>,
    pub(super) transport: WorkerTransport,
    /// It is to be seen when a message was read.
    pub(super) watched: bool,
}

/// A message in a worker's hands.
pub(super) struct Job {
    pub(super) bytes: Bytes,
    pub(super) connection: ConnectionId,
    pub(super) len_bytes: usize,
    /// Its worker died once already.
    pub(super) retried: bool,
    pub(super) given_at: Instant,
    /// The worker has it (with `--no-reply`, where that is to be seen).
    pub(super) read: bool,
    /// How often it was taken back from a worker that did not read it.
    pub(super) moves: u32,
}

/// A message's bytes.
pub(super) enum Bytes {
    /// As it was received; keeps a half-closed connection open for the reply.
    Received(Message),
    /// Of one that is not answered: it must not keep its connection. Empty, if it is not to be
    /// given to anybody again.
    Copied(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Received(message) => message,
            Self::Copied(bytes) => bytes,
        }
    }
}

impl Job {
    pub(super) fn new(message: Message, read: bool) -> Self {
        Self {
            connection: message.connection(),
            len_bytes: message.len(),
            bytes: Bytes::Received(message),
            retried: false,
            given_at: Instant::now(),
            read,
            moves: 0,
        }
    }

    /// Its worker has read it, and will not answer; `again`: another may have to.
    pub(super) fn note_read(&mut self, again: bool) {
        self.read = true;
        self.given_at = Instant::now();
        let copy = if again {
            self.bytes.to_vec()
        } else {
            Vec::new()
        };
        self.bytes = Bytes::Copied(copy);
    }
}

pub(super) struct Worker {
    pub(super) state: State,
    /// In a row.
    failures: u32,
}

pub(super) enum State {
    Running(Process),
    /// Until it is started again.
    Waiting(Instant),
    /// Never again.
    Ended,
}

pub(super) struct Process {
    child: Child,
    pub(super) pidfd: OwnedFd,
    pub(super) channel: Channel,
    started_at: Instant,
    /// In the order in which it was given them.
    pub(super) hand: VecDeque<Job>,
    /// It has finished a message.
    pub(super) finished: bool,
    /// It has; or, with `--no-reply`, has read one.
    pub(super) useful: bool,
    /// A message was taken back from it, and it has read none since: it is busy for long.
    pub(super) missed: bool,
    /// It is given nothing any more; the next step, and when.
    ending: Option<(Step, Instant)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Terminate,
    Kill,
    /// Its end comes.
    None,
}

/// What a process was good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It has not failed.
    Good,
    /// It has failed, and had finished messages before.
    Useful,
    /// It has failed, and nothing else.
    Useless,
}

impl Worker {
    pub(super) fn start(recipe: &Recipe) -> io::Result<Self> {
        Ok(Self {
            state: State::Running(Process::start(recipe)?),
            failures: 0,
        })
    }

    pub(super) fn process(&mut self) -> Option<&mut Process> {
        match &mut self.state {
            State::Running(process) => Some(process),
            State::Waiting(_) | State::Ended => None,
        }
    }

    /// Starts it again.
    pub(super) fn restart(&mut self, recipe: &Recipe, now: Instant) -> io::Result<()> {
        match Process::start(recipe) {
            Ok(process) => self.state = State::Running(process),
            Err(error) => {
                self.pause(Life::Useless, now);
                return Err(error);
            }
        }
        Ok(())
    }

    /// It is to be started again after a pause, which this gives: none after a good life.
    pub(super) fn pause(&mut self, life: Life, now: Instant) -> Duration {
        self.failures = match life {
            Life::Good => 0,
            Life::Useful => (self.failures + 1).min(2),
            Life::Useless => self.failures + 1,
        };
        let pause = match self.failures {
            0 | 1 => Duration::ZERO,
            n => FIRST_PAUSE
                .saturating_mul(1 << (n - 2).min(16))
                .min(LONGEST_PAUSE),
        };
        self.state = State::Waiting(now + pause);
        pause
    }

    /// Its failures in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }
}

impl Process {
    fn start(recipe: &Recipe) -> io::Result<Self> {
        let (channel, worker_end) = Channel::pair(recipe.transport, recipe.watched)?;
        let (program, arguments) = recipe
            .command
            .split_first()
            .ok_or(io::ErrorKind::InvalidInput)?;
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::from(worker_end.try_clone()?))
            .stdout(Stdio::from(worker_end))
            // A group of its own: a terminal's Ctrl-C is for us alone, and its children end with it.
            .process_group(0)
            .env_remove("LISTEN_FDS")
            .env_remove("LISTEN_PID")
            .env_remove("LISTEN_FDNAMES")
            .spawn()?;
        let pidfd = match pidfd_open(pid_of(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(error.into());
            }
        };
        Ok(Self {
            child,
            pidfd,
            channel,
            started_at: Instant::now(),
            hand: VecDeque::new(),
            finished: false,
            useful: false,
            missed: false,
            ending: None,
        })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it is not to be given messages any more.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Its input ends now; it is asked to go at `terminate_at`, and killed after that.
    pub(super) fn end(&mut self, terminate_at: Instant) {
        if self.ending.is_none() {
            self.channel.end();
            self.ending = Some((Step::Terminate, terminate_at));
        }
    }

    /// It is killed at `at`, unless it ends before.
    pub(super) fn kill_at(&mut self, at: Instant) {
        if self.ending.is_none_or(|(_, other)| other > at) {
            self.ending = Some((Step::Kill, at));
        }
    }

    /// Kills it with all of its children.
    pub(super) fn kill(&mut self) {
        self.ending = Some((Step::None, Instant::now()));
        self.signal(Signal::KILL);
    }

    /// The next step of its end, if it is time. True: it is a signal.
    pub(super) fn step(&mut self, now: Instant) -> bool {
        match self.ending {
            Some((Step::Terminate, at)) if at <= now => {
                self.ending = Some((Step::Kill, now + END_GRACE));
                self.signal(Signal::TERM);
                true
            }
            Some((Step::Kill, at)) if at <= now => {
                self.kill();
                true
            }
            _ => false,
        }
    }

    /// When [`Process::step`] has something to do.
    pub(super) fn next_step(&self) -> Option<Instant> {
        self.ending
            .filter(|(step, _)| *step != Step::None)
            .map(|(_, at)| at)
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, so that the number is still its own.
        let _ = kill_process_group(pid_of(&self.child), signal);
    }

    /// Whether it has been killed: what it wrote is not wanted.
    pub(super) fn was_killed(&self) -> bool {
        matches!(self.ending, Some((Step::None, _)))
    }

    /// Its status, if it has ended; what it has left running ends now.
    pub(super) fn reap(&mut self) -> io::Result<ExitStatus> {
        self.signal(Signal::KILL);
        self.child.wait()
    }

    /// What it was good for, now that it has ended.
    pub(super) fn life(&self, status: ExitStatus, now: Instant) -> Life {
        let long = now.duration_since(self.started_at) >= HEALTHY_LIFE;
        match status.success() && self.useful || long {
            true => Life::Good,
            false if self.finished => Life::Useful,
            false => Life::Useless,
        }
    }
}

impl Drop for Process {
    /// Nothing outlives this program.
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.signal(Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}
