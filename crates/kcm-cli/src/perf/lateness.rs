//! How late sleeps end here, measured once while nothing else goes on.
//!
//! Most of a service of `work` is a sleep. On a virtual machine such a sleep ends 25 to 50 us late even
//! where nothing else runs, for an idle processor has to be woken through the host: with 236 us of
//! sleep that made the services of all contenders 8 % longer than the draw says, while the simulated
//! ideal's took what it says. So services sleep that much less. Some end a little before their time
//! then, others after it, and it is the mean that is right. What a contender's own threads add to it,
//! where they are in one another's way, stays on its bill: one value, of the idle machine, is for all
//! contenders and rounds.
//!
//! Sleeps with an absolute end are as late. Rejected: to spin for what is left of a service whose
//! sleep ended early. The late ones stay late, which makes the mean 5 us longer in the same runs; and
//! five threads on two processors have no time to spin.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{failure::Failure, stats::median_of};

/// Sleeps of each thread: in all 0.1 s for those of `work`.
const SLEEPS: usize = 400;

/// How much later than they are to sleeps of this length end, in so many threads at the same time: the
/// median, which a stall of the host does not change. At most half of the length: where sleeps are later
/// than that, a service without any would be too short.
pub(super) fn of_sleeps(length: Duration, threads: usize) -> Result<Duration, Failure> {
    let lateness = median(threads, || {
        let begin = Instant::now();
        thread::sleep(length);
        begin.elapsed().saturating_sub(length)
    })?;
    Ok(lateness.min(length / 2))
}

fn median(threads: usize, once: impl Fn() -> Duration + Sync) -> Result<Duration, Failure> {
    let in_one = || (0..SLEEPS).map(|_| once()).collect::<Vec<_>>();
    let all = thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().spawn_scoped(scope, in_one);
        let sleepers: Vec<_> = (0..threads).map(spawn).collect::<Result<_, _>>()?;
        // (One that panicked measured nothing.)
        let joined = sleepers.into_iter().filter_map(|s| s.join().ok());
        Ok(joined.flatten().collect::<Vec<_>>())
    });
    let all = all.map_err(Failure::system("start a thread"))?;
    let median = median_of(all.iter().map(Duration::as_secs_f64));
    Ok(median.map_or(Duration::ZERO, Duration::from_secs_f64))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[test]
    fn the_rule_counts_and_not_the_exception() {
        let count = AtomicU64::new(0);
        let lateness = median(3, || {
            let nth = count.fetch_add(1, Ordering::Relaxed);
            // One in three was stalled by the host.
            Duration::from_micros(if nth.is_multiple_of(3) { 4000 } else { 30 })
        });
        assert_eq!(lateness.expect("measured"), Duration::from_micros(30));
        assert_eq!(count.into_inner(), 3 * SLEEPS as u64);
    }
}
