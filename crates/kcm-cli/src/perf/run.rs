//! One contender in one round: its threads, its phases, and the window that is measured.
//!
//! The main thread only sleeps, so the threads that it measures have the processors for
//! themselves; it reads their clocks and counters at both edges of the window.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::Pid;

use super::{
    affinity::{self, Pins},
    cputime,
    failure::Failure,
    stats::{CpuTime, Sample},
};

/// After so long without a message something has gone for good.
const STALL_LIMIT: Duration = Duration::from_secs(15);

/// How long to run before, and during, the measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timing {
    pub(super) warm_up: Duration,
    pub(super) duration: Duration,
}

impl Timing {
    pub(super) fn with_duration(duration: Duration) -> Self {
        Self {
            warm_up: duration / 5,
            duration,
        }
    }

    /// Both together.
    pub(super) fn whole(self) -> Duration {
        self.warm_up + self.duration
    }
}

/// Which side a thread's processor time belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Sender,
    /// Also every thread that a contender makes in the background.
    Receiver,
}

/// What the threads of one contender in one round share.
pub(super) struct Run {
    phase: AtomicU8,
    counters: Box<[Arc<Counter>]>,
    pins: Pins,
    senders: Mutex<Vec<Pid>>,
    failure: Mutex<Option<Failure>>,
    failed: Condvar,
}

const WARM_UP: u8 = 0;
const MEASURED: u8 = 1;
/// Clients begin nothing new and wait for what is under way.
const ENDING: u8 = 2;
/// Servers that cannot see the end of a connection stop.
const OVER: u8 = 3;

/// Messages so far, on cache lines of their own, since it is written for each.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    /// There is one writer.
    #[inline]
    pub(super) fn set(&self, messages: u64) {
        self.0.store(messages, Ordering::Relaxed);
    }
}

/// A thread of a run.
pub(super) struct Task<T>(JoinHandle<Option<T>>);

impl Run {
    /// With so many counters of messages.
    pub(super) fn new(counters: usize, pins: Pins) -> Arc<Self> {
        Arc::new(Self {
            phase: AtomicU8::new(WARM_UP),
            counters: (0..counters).map(|_| Arc::default()).collect(),
            pins,
            senders: Mutex::default(),
            failure: Mutex::default(),
            failed: Condvar::new(),
        })
    }

    /// Starts a thread of this side, on its processor. Its failure ends the run.
    pub(super) fn spawn<T: Send + 'static>(
        self: &Arc<Self>,
        side: Side,
        work: impl FnOnce(&Self) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Task<T>, Failure> {
        let run = Arc::clone(self);
        let body = move || {
            let guard = PanicGuard(&run);
            let cpu = match side {
                Side::Sender => {
                    lock(&run.senders).push(rustix::thread::gettid());
                    run.pins.sender
                }
                Side::Receiver => run.pins.receiver,
            };
            let result = affinity::pin_current_thread(cpu).and_then(|()| work(&run));
            std::mem::forget(guard);
            result.map_err(|failure| run.fail(failure)).ok()
        };
        let name = match side {
            Side::Sender => "perf-sender",
            Side::Receiver => "perf-receiver",
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body);
        thread.map(Task).map_err(Failure::system("start a thread"))
    }

    /// Whether the measured window is open.
    #[inline]
    pub(super) fn is_measured(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == MEASURED
    }

    /// Whether clients are to begin nothing new.
    #[inline]
    pub(super) fn is_ending(&self) -> bool {
        self.phase.load(Ordering::Relaxed) >= ENDING
    }

    /// Whether servers are to stop.
    #[inline]
    pub(super) fn is_over(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == OVER
    }

    /// One of the counters of messages; each has one writer.
    pub(super) fn counter(&self, index: usize) -> Arc<Counter> {
        Arc::clone(&self.counters[index])
    }

    /// Says how many messages have come, in the first counter.
    #[inline]
    pub(super) fn counted(&self, messages: u64) {
        self.counters[0].set(messages);
    }

    /// Lets the contender run, and measures it after the warm-up. Then the clients end.
    pub(super) fn measure(&self, timing: Timing) -> Result<Sample, Failure> {
        self.sleep(timing.warm_up)?;
        self.phase.store(MEASURED, Ordering::Relaxed);
        let begin = self.reading()?;
        self.sleep(timing.duration)?;
        // On a slow machine the window stays open until there is something in it.
        let deadline = Instant::now() + STALL_LIMIT;
        while self.messages() == begin.messages {
            if Instant::now() >= deadline {
                return Err(Failure::Stalled(format!(
                    "no message in {STALL_LIMIT:?}, after {} messages",
                    begin.messages
                )));
            }
            self.sleep(Duration::from_millis(10))?;
        }
        let end = self.reading()?;
        self.phase.store(ENDING, Ordering::Relaxed);
        Ok(Sample {
            messages: end.messages - begin.messages,
            elapsed: end.at - begin.at,
            cpu: Some(CpuTime {
                sender: end.cpu.sender.saturating_sub(begin.cpu.sender),
                receiver: end.cpu.receiver.saturating_sub(begin.cpu.receiver),
            }),
            latency: None,
        })
    }

    /// Tells servers to stop that cannot see the end of a connection.
    pub(super) fn set_over(&self) {
        self.phase.store(OVER, Ordering::Relaxed);
    }

    /// Waits for a thread's end, and says so when it does not come.
    pub(super) fn join<T>(&self, task: Task<T>) -> Result<T, Failure> {
        self.wait_until(|_| task.0.is_finished())?
            .map_err(|messages| {
                Failure::Stalled(format!(
                    "a thread did not end within {STALL_LIMIT:?} after the last of {messages} \
                     messages: a message or a wake-up was lost"
                ))
            })?;
        match task.0.join() {
            Ok(Some(value)) => Ok(value),
            Ok(None) | Err(_) => Err(self.take_failure()),
        }
    }

    /// Waits until this many messages have been counted in all.
    pub(super) fn wait_for(&self, messages: u64) -> Result<(), Failure> {
        self.wait_until(|now| now >= messages)?.map_err(|now| {
            Failure::Verification(format!(
                "{} of {messages} messages lost: no more came within {STALL_LIMIT:?}",
                messages - now
            ))
        })
    }

    /// Waits until this holds with the messages counted so far; gives their number when no more have
    /// come for too long. Fails at once when a thread does.
    fn wait_until(&self, holds: impl Fn(u64) -> bool) -> Result<Result<(), u64>, Failure> {
        let (mut messages, mut since) = (self.messages(), Instant::now());
        loop {
            let now = self.messages();
            if holds(now) {
                return Ok(Ok(()));
            }
            if now != messages {
                (messages, since) = (now, Instant::now());
            } else if since.elapsed() >= STALL_LIMIT {
                return Ok(Err(messages));
            }
            self.sleep(Duration::from_micros(500))?;
        }
    }

    /// Notes why the run has failed, unless that is known already, and wakes the main thread.
    fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
        self.failed.notify_all();
    }

    fn take_failure(&self) -> Failure {
        lock(&self.failure)
            .take()
            .unwrap_or_else(|| Failure::Stalled("a thread ended without a result".to_owned()))
    }

    /// Sleeps; ends at once when a thread fails.
    fn sleep(&self, time: Duration) -> Result<(), Failure> {
        let failure = lock(&self.failure);
        let (failure, _) = self
            .failed
            .wait_timeout_while(failure, time, |failure| failure.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        let failed = failure.is_some();
        drop(failure);
        if failed {
            return Err(self.take_failure());
        }
        Ok(())
    }

    fn messages(&self) -> u64 {
        let counts = self.counters.iter();
        counts.map(|c| c.0.load(Ordering::Relaxed)).sum()
    }

    fn reading(&self) -> Result<Reading, Failure> {
        let (at, messages) = (Instant::now(), self.messages());
        let threads = cputime::of_all_threads().map_err(Failure::system("read /proc/self/task"))?;
        let main_thread = rustix::thread::gettid();
        let senders = lock(&self.senders);
        let mut cpu = CpuTime::default();
        for (thread, time) in threads {
            if senders.contains(&thread) {
                cpu.sender += time;
            } else if thread != main_thread {
                cpu.receiver += time;
            }
        }
        Ok(Reading { at, messages, cpu })
    }
}

struct Reading {
    at: Instant,
    messages: u64,
    cpu: CpuTime,
}

/// A thread that panics would otherwise leave the main thread waiting.
struct PanicGuard<'a>(&'a Run);

impl Drop for PanicGuard<'_> {
    fn drop(&mut self) {
        self.0
            .fail(Failure::Stalled("a thread panicked (see above)".to_owned()));
    }
}

/// Nothing here is left half-changed by a panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Timing = Timing {
        warm_up: Duration::from_secs(60),
        duration: Duration::from_secs(60),
    };

    #[test]
    fn a_thread_that_fails_ends_the_run_at_once() {
        let run = Run::new(1, Pins::NONE);
        let task = run.spawn(Side::Receiver, |_| -> Result<(), Failure> {
            Err(Failure::Verification("as planned".to_owned()))
        });
        assert!(task.is_ok());
        let begin = Instant::now();
        let failure = run.measure(LONG).expect_err("a thread failed");
        assert_eq!(failure.to_string(), "wrong message: as planned");
        assert!(begin.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_thread_that_panics_does_so_too() {
        let run = Run::new(1, Pins::NONE);
        let task = run.spawn(Side::Sender, |_| -> Result<(), Failure> {
            panic!("as planned")
        });
        assert!(task.is_ok());
        assert!(matches!(run.measure(LONG), Err(Failure::Stalled(_))));
    }

    #[test]
    fn what_the_threads_do_is_measured() {
        let run = Run::new(1, Pins::NONE);
        let timing = Timing::with_duration(Duration::from_millis(50));
        let task = run.spawn(Side::Sender, |run| {
            let mut messages = 0;
            while !run.is_ending() {
                messages += 1;
                run.counted(messages);
            }
            Ok(messages)
        });
        let sample = run.measure(timing).expect("measured");
        let all = task.and_then(|task| run.join(task)).expect("joined");
        assert!((1..=all).contains(&sample.messages));
        assert!(sample.elapsed >= timing.duration);
        let cpu = sample.cpu.expect("measured");
        assert!(!cpu.sender.is_zero());
    }
}
