//! Processor time of this process's threads, exact to the nanosecond.
//!
//! `CLOCK_PROCESS_CPUTIME_ID` may lag a scheduler tick for threads that run on another processor
//! just now; the clock of a single thread never does. So each thread's own clock is read, by its
//! id, which the C library has no portable call for.
//!
//! # Unsafe contract
//!
//! One block: `clock_gettime` with a pointer to a local `timespec`. A clock id that does not exist
//! (the thread has ended) is an error return, never undefined behaviour.

use std::{fs, io, time::Duration};

use rustix::process::Pid;

/// Every thread of this process with the time that it has used so far.
pub(super) fn of_all_threads() -> io::Result<Vec<(Pid, Duration)>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        if let Some(thread) = id.and_then(Pid::from_raw)
            && let Some(time) = of_thread(thread)
        {
            threads.push((thread, time));
        }
    }
    Ok(threads)
}

/// `None`: there is no such thread any more.
fn of_thread(thread: Pid) -> Option<Duration> {
    /// `CPUCLOCK_SCHED | CPUCLOCK_PERTHREAD_MASK`, part of the kernel's interface.
    const SCHEDULED_TIME_OF_THREAD: libc::clockid_t = 2 | 4;
    let clock = !thread.as_raw_nonzero().get() << 3 | SCHEDULED_TIME_OF_THREAD;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writes of a timespec for the whole call.
    let result = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if result != 0 {
        return None;
    }
    Some(Duration::new(
        u64::try_from(time.tv_sec).ok()?,
        u32::try_from(time.tv_nsec).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_the_thread_that_works() {
        let own = rustix::thread::gettid();
        let used = || {
            let all = of_all_threads().expect("proc is mounted");
            all.into_iter().find(|(thread, _)| *thread == own)
        };
        // The time of the clock includes both looks.
        let begin = std::time::Instant::now();
        let (_, before) = used().expect("this thread lives");
        while begin.elapsed() < Duration::from_millis(5) {}
        let (_, after) = used().expect("this thread lives");
        let (used, elapsed) = (after - before, begin.elapsed());
        assert!(used > Duration::ZERO && used <= elapsed, "{used:?}");
    }
}
