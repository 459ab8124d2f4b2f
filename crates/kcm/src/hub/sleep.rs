//! Sleeping and waking: who parks, who of them looks after the others, and which wakes are left out.
//!
//! Waking is what costs (4 to 45 us until the woken thread runs; a lock costs 5 ns), so it is
//! rationed:
//!
//! - One wake is under way at a time. The woken thread wakes the next if there is more than it
//!   takes itself. So never more threads wake than there are items.
//! - A watcher that leaves with the only message wakes nobody if it usually comes back soon: the
//!   next message most often arrives after that. Should it be kept this time, the *deputy* takes
//!   over: one of the parked threads, which sleeps in slices of [`DEPUTY_SLICE`] and looks whether
//!   the watch stands empty. When a whole slice passed in which nothing happened, it sleeps
//!   soundly, and the next watcher that leaves finds no deputy and wakes somebody.
//! - Where more threads are at work than processors run them, wakes are left out (`crowd.rs`); the
//!   deputy takes what is left behind then.
//! - Measured with three sockets on one connection: all in one epoll 0.86 of the rate of a single
//!   blocking thread; waking a successor at each departure 0.66 to 0.69; this 0.93.

use std::time::{Duration, Instant};

use super::{Hub, State};
use crate::{
    crowd::{self, Crowd},
    sync::{Arc, AtomicBool, Condvar, MutexGuard, Ordering, wait},
};

/// How long the watch may stand empty while a message might be waiting: about a hundred times
/// what handing a message over costs, and short against what a user notices. (In a crowd, the deputy
/// interrupts who is at work, which costs 1 % of a server of small requests; with 4 ms there, it left calls
/// waiting for 8 now and then.)
const DEPUTY_SLICE: Duration = Duration::from_millis(1);

/// Where one thread sleeps.
pub(crate) struct Parker {
    pub(super) condvar: Condvar,
    /// It is to look what waits for it; changed with the hub locked.
    pub(super) called: AtomicBool,
}

pub(crate) type SharedParker = Arc<Parker>;

impl Parker {
    pub(crate) fn new() -> SharedParker {
        Arc::new(Self {
            condvar: Condvar::new(),
            called: AtomicBool::new(false),
        })
    }
}

impl<T> Hub<T> {
    /// Hands the wake on, when more is ready than the caller takes.
    #[inline]
    pub(super) fn wake_for_rest(&self, state: &mut State<T>) -> Option<Arc<Parker>> {
        if state.parked.is_empty() || state.ready.is_empty() {
            return None;
        }
        self.wake_a_parked(state)
    }

    #[cold]
    #[inline(never)]
    fn wake_a_parked(&self, state: &mut State<T>) -> Option<Arc<Parker>> {
        if self.leaves_out_wake(state) {
            None
        } else {
            wake_one(state)
        }
    }

    /// Whether to leave a wake out. The deputy looks after what is left behind.
    pub(super) fn leaves_out_wake(&self, state: &mut State<T>) -> bool {
        if state.deputy.is_none() || !state.crowd.is_there() {
            return false;
        }
        let left_out = state.crowd.leaves_out(state.waking.is_some());
        self.crowded
            .store(state.crowd.is_there(), Ordering::Relaxed);
        left_out
    }

    /// Sleeps until woken, until the deadline, or for the deputy's slice.
    pub(super) fn park<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<T>>,
        parker: &Arc<Parker>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, State<T>> {
        state.parked.push(parker.clone());
        if state.deputy.is_none() {
            state.deputy = Some(parker.clone());
        }
        let mut seen = state.watches;
        let mut seen_takes = self.takes();
        loop {
            let deputy = state.is_deputy(parker);
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let slice = match (deputy, left) {
                (true, Some(left)) => Some(left.min(DEPUTY_SLICE)),
                (true, None) => Some(DEPUTY_SLICE),
                (false, left) => left,
            };
            let timed_out;
            (state, timed_out) = wait(&parker.condvar, state, slice);
            let still_parked = state
                .parked
                .iter()
                .position(|other| Arc::ptr_eq(other, parker));
            let Some(place) = still_parked else {
                // Woken. This thread looks now, whatever it was woken for.
                state.waking = None;
                break;
            };
            let takes = self.takes();
            let over = deadline.is_some_and(|deadline| deadline <= Instant::now());
            let crowded = state.crowd.is_there();
            // Those at work in a crowd look after the watch; who has stopped left something behind.
            let others_go_on = crowded && takes != seen_takes;
            let left_behind = crowded && deputy && timed_out && !others_go_on;
            if left_behind {
                state.crowd = Crowd::default();
                self.crowded.store(false, Ordering::Relaxed);
                self.note_takes(crowd::FRESH_TAKES);
                parker.called.store(true, Ordering::Relaxed);
            }
            if over || left_behind || !(state.watcher || others_go_on) {
                state.parked.remove(place);
                break;
            }
            if deputy && timed_out {
                if state.watches == seen && !others_go_on {
                    state.deputy = None;
                }
                (seen, seen_takes) = (state.watches, takes);
            }
        }
        state.end_deputy(parker);
        state
    }
}

impl<T> State<T> {
    fn is_deputy(&self, parker: &Arc<Parker>) -> bool {
        (self.deputy.as_ref()).is_some_and(|deputy| Arc::ptr_eq(deputy, parker))
    }

    /// This one parks no more.
    pub(super) fn end_deputy(&mut self, parker: &Arc<Parker>) {
        if self.is_deputy(parker) {
            self.deputy = None;
        }
    }
}

/// Takes a parked thread that is to be woken, unless one is on its way already.
pub(super) fn wake_one<T>(state: &mut State<T>) -> Option<Arc<Parker>> {
    if state.waking.is_some() {
        return None;
    }
    let parker = state.parked.pop()?;
    state.waking = Some(Instant::now());
    state.end_deputy(&parker);
    Some(parker)
}

/// Wakes it, once the lock is free.
pub(super) fn wake_up(parker: Option<Arc<Parker>>) {
    if let Some(parker) = parker {
        parker.condvar.notify_one();
    }
}
