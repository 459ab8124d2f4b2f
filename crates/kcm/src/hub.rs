//! Where receiving threads meet: what is ready, who watches, who sleeps.
//!
//! There is no I/O thread. A thread that asks for a message and finds none becomes the *watcher*:
//! it waits for the connections (in epoll, or in a receive on the only one), keeps the first that
//! has something, and leaves the others here for the threads that *park*. There is one watcher at
//! most; all others park on a lock that costs them nothing while they sleep. (Where none of them waits, it
//! may keep what it finds: `basket.rs`.)
//!
//! ```text
//!                     ┌── item ready ──────────────────────────────▶ work on it
//!   turn() ──────────┼── nobody watches ──▶ watch ──leave_watch()──▶ work on it
//!        ▲            └── else ──▶ park ──woken──┐
//!        └──────────────────────────────────────┘
//! ```
//!
//! Waking is what costs, and is rationed (`hub/sleep.rs`).
//!
//! What waits for one certain thread (`steering.rs`) is not here; the thread is *called*, and told so.
//!
//! What is pushed while all threads are awake finds its taker without a wake: each looks here
//! before it watches or parks. What is pushed while the only waiting thread watches needs a
//! *kick*: the watcher waits inside the system, where this lock does not reach it. [`Hub::push`]
//! says so, and the caller (`watch.rs`) knows how.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

mod sleep;

pub(crate) use sleep::{Parker, SharedParker};

use crate::{
    crowd::Crowd,
    steering::ByClass,
    sync::{Arc, AtomicBool, AtomicU8, AtomicUsize, Mutex, MutexGuard, Ordering, lock, loom_fence},
};
use sleep::{wake_one, wake_up};

/// A woken thread that has not arrived for so long, several times what it takes at most on an idle
/// processor, is kept from it. Looked at after so many takes.
const LATE: Duration = Duration::from_micros(200);
const TAKES_BETWEEN_LOOKS: usize = 16;

/// What a thread is to do next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn<T> {
    /// Work on this.
    Item(T),
    /// Watch, then [`Hub::leave_watch`].
    Watch,
    /// Something waits for this thread alone ([`Hub::call`]).
    Called,
    /// The time is over.
    TimedOut,
    /// There is nothing to come any more.
    Closed,
}

/// What has to be done to bring the watcher back, if anything.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kick {
    None,
    Watcher,
}

pub(crate) struct Hub<T> {
    state: Mutex<State<T>>,
    /// Threads that wait or are about to, and have no message in hand.
    waiting: AtomicUsize,
    /// Length of `State::ready`, and the highest class in it, to be read without the lock.
    ready: AtomicUsize,
    highest: AtomicU8,
    class_of: fn(&T) -> u8,
    /// The watcher was told to come back.
    kicked: AtomicBool,
    /// Who is at work has too few processors, so that those who wait are not to be woken
    /// (`crowd.rs`); to be read without the lock.
    crowded: AtomicBool,
    /// Another number after each take; not their count, as several threads may count at once.
    takes: AtomicUsize,
    /// What it was at the last look whether a woken thread is late.
    looked_at: AtomicUsize,
}

struct State<T> {
    ready: ByClass<T>,
    /// The last to come is the first to be woken: its memory is still in the cache.
    parked: Vec<Arc<Parker>>,
    watcher: bool,
    /// A woken thread has not arrived yet, since then.
    waking: Option<Instant>,
    crowd: Crowd,
    /// Who of the parked sleeps in slices.
    deputy: Option<Arc<Parker>>,
    /// Watches so far: tells the deputy whether anything happened.
    watches: u64,
    closed: bool,
}

/// Counts a thread as waiting while it lives.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T> Hub<T> {
    #[cfg(test)]
    pub(crate) fn new() -> Self {
        Self::by_class(|_| 0)
    }

    /// Items of a higher class go out first, mostly (`steering/classes.rs`).
    pub(crate) fn by_class(class_of: fn(&T) -> u8) -> Self {
        Self {
            class_of,
            state: Mutex::new(State {
                ready: ByClass::default(),
                parked: Vec::new(),
                watcher: false,
                waking: None,
                crowd: Crowd::default(),
                deputy: None,
                watches: 0,
                closed: false,
            }),
            waiting: AtomicUsize::new(0),
            ready: AtomicUsize::new(0),
            highest: AtomicU8::new(0),
            kicked: AtomicBool::new(false),
            crowded: AtomicBool::new(false),
            takes: AtomicUsize::new(0),
            looked_at: AtomicUsize::new(0),
        }
    }

    /// The caller has no message and waits for one from here on.
    pub(crate) fn begin_waiting(&self) -> Waiting<'_> {
        // SYNC: sequentially consistent with `waiting` in a thread that has just published a
        // lease: either it sees this thread, or this thread sees the lease.
        self.waiting.fetch_add(1, Ordering::SeqCst);
        loom_fence();
        Waiting(&self.waiting)
    }

    /// Threads that wait for a message.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Whether somebody waits who is to have what others have in hand.
    pub(crate) fn is_wanted(&self) -> bool {
        self.waiting() > 0 && !self.is_crowded()
    }

    /// Whether a thread may keep a burst to itself: nobody waits, or those who do are not to be woken.
    pub(crate) fn lets_walk(&self) -> bool {
        self.waiting() == 0 || self.is_crowded() && self.crowd_lets_walk()
    }

    /// (With a thread on its way there is no wake to be tried.)
    fn crowd_lets_walk(&self) -> bool {
        let mut state = lock(&self.state);
        state.waking.is_some() || state.crowd.lets_walk()
    }

    /// Looks, once in a while, whether a woken thread has found no processor: who is at work is in its
    /// way then, and goes on as in a crowd. (Where woken threads do not push others off, as with
    /// `SCHED_RR`, all would be handed out one by one for those who cannot come.)
    pub(crate) fn look_for_late(&self) {
        let since = self
            .takes()
            .wrapping_sub(self.looked_at.load(Ordering::Relaxed));
        if since >= TAKES_BETWEEN_LOOKS && self.is_wanted() {
            self.look_for_late_now();
        }
    }

    #[cold]
    fn look_for_late_now(&self) {
        self.looked_at.store(self.takes(), Ordering::Relaxed);
        let mut state = lock(&self.state);
        if state.waking.is_some_and(|since| since.elapsed() >= LATE) {
            self.make_room_locked(&mut state);
        }
    }

    /// Whether those who wait are not to be woken; a moment old.
    pub(crate) fn is_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// The caller takes something from a connection.
    pub(crate) fn note_take(&self) {
        self.note_takes(1);
    }

    fn note_takes(&self, n: usize) {
        let takes = self.takes();
        self.takes.store(takes.wrapping_add(n), Ordering::Relaxed);
    }

    /// Goes on while anybody takes something.
    pub(crate) fn takes(&self) -> usize {
        self.takes.load(Ordering::Relaxed)
    }

    /// The number of ready items; a moment old.
    pub(crate) fn ready(&self) -> usize {
        self.ready.load(Ordering::Relaxed)
    }

    /// The highest class that is ready; a moment old.
    pub(crate) fn highest_class(&self) -> u8 {
        self.highest.load(Ordering::Relaxed)
    }

    /// An item, if one is ready. `soon` is told of one that comes after it.
    pub(crate) fn pop(&self, soon: impl FnOnce(&T)) -> Option<T> {
        if self.ready() == 0 {
            return None;
        }
        let mut state = lock(&self.state);
        let item = self.pop_locked(&mut state);
        state.ready.soon().map(soon);
        let wake = self.wake_for_rest(&mut state);
        drop(state);
        wake_up(wake);
        item
    }

    /// The first item of which this holds, ahead of all others, for a caller that does not wait.
    pub(crate) fn take_out(&self, is: impl Fn(&T) -> bool) -> Option<T> {
        let mut state = lock(&self.state);
        let item = state.ready.take_out(is);
        self.note_ready(&state);
        item
    }

    /// Whether somebody has the watch; a moment old.
    pub(crate) fn is_watched(&self) -> bool {
        lock(&self.state).watcher
    }

    /// Waits for an item, or for the turn to watch, at most until `deadline` (`None`: for ever).
    pub(crate) fn turn(&self, parker: &Arc<Parker>, deadline: Option<Instant>) -> Turn<T> {
        let mut state = lock(&self.state);
        loop {
            if state.closed {
                return Turn::Closed;
            }
            if parker.called.swap(false, Ordering::Relaxed) {
                // It may have been woken for something else too: somebody else is.
                let wake = if state.ready.is_empty() && state.watcher {
                    None
                } else {
                    wake_one(&mut state)
                };
                drop(state);
                wake_up(wake);
                return Turn::Called;
            }
            if let Some(item) = self.pop_locked(&mut state) {
                let wake = self.wake_for_rest(&mut state);
                drop(state);
                wake_up(wake);
                return Turn::Item(item);
            }
            if !state.watcher {
                state.watcher = true;
                state.watches += 1;
                return Turn::Watch;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Turn::TimedOut;
            }
            state = self.park(state, parker, deadline);
        }
    }

    /// As [`Hub::turn`], without waiting.
    pub(crate) fn try_turn(&self) -> Turn<T> {
        let mut state = lock(&self.state);
        if state.closed {
            return Turn::Closed;
        }
        if let Some(item) = self.pop_locked(&mut state) {
            let wake = self.wake_for_rest(&mut state);
            drop(state);
            wake_up(wake);
            return Turn::Item(item);
        }
        if state.watcher {
            return Turn::TimedOut;
        }
        state.watcher = true;
        state.watches += 1;
        Turn::Watch
    }

    /// Takes the watch, if nobody has it and nothing is ready.
    pub(crate) fn try_watch(&self) -> bool {
        let mut state = lock(&self.state);
        let free = !state.watcher && !state.closed && state.ready.is_empty();
        state.watcher |= free;
        free
    }

    /// The watcher has come back, with these items beside the one that it keeps. `successor`:
    /// somebody else must watch at once.
    pub(crate) fn leave_watch(&self, items: impl IntoIterator<Item = T>, successor: bool) {
        let mut state = lock(&self.state);
        debug_assert!(state.watcher);
        state.watcher = false;
        self.kicked.store(false, Ordering::Release);
        if !state.closed {
            self.add_all(&mut state, items);
        }
        self.note_ready(&state);
        let wake = if state.ready.is_empty() {
            if successor || state.deputy.is_none() {
                wake_one(&mut state)
            } else {
                None
            }
        } else {
            self.wake_for_rest(&mut state)
        };
        drop(state);
        wake_up(wake);
    }

    /// The caller sleeps, so that another thread can go on, until it is woken or until `deadline`.
    /// `give_back` may push what it has in hand.
    pub(crate) fn make_room(
        &self,
        parker: &Arc<Parker>,
        deadline: Option<Instant>,
        give_back: impl FnOnce(),
    ) {
        self.make_room_locked(&mut lock(&self.state));
        give_back();
        let state = lock(&self.state);
        if !state.closed && !parker.called.load(Ordering::Relaxed) {
            drop(self.park(state, parker, deadline));
        }
    }

    fn make_room_locked(&self, state: &mut State<T>) {
        state.crowd.make_room();
        self.crowded.store(true, Ordering::Relaxed);
    }

    /// Whether the watcher has been told to come back, and has not yet: for the kicker, and for
    /// the watcher before it waits inside the system. What is pushed, and closing, kicks.
    pub(crate) fn is_kicked(&self) -> bool {
        self.kicked.load(Ordering::SeqCst)
    }

    /// Adds an item at the back; gives it back when all is closed.
    pub(crate) fn push(&self, item: T) -> Result<Kick, T> {
        self.add(item, ByClass::push_back)
    }

    /// As above, at the front: older than what is ready.
    pub(crate) fn push_front(&self, item: T) -> Result<Kick, T> {
        self.add(item, ByClass::push_front)
    }

    /// Adds several items at the back; when all is closed, they are dropped.
    pub(crate) fn extend(&self, items: impl IntoIterator<Item = T>) -> Kick {
        let mut state = lock(&self.state);
        if state.closed {
            return Kick::None;
        }
        self.add_all(&mut state, items);
        self.after_add(state)
    }

    /// Has one thread look what waits for it alone, wherever it waits; should it not wait, it looks
    /// before it does.
    pub(crate) fn call(&self, parker: &Arc<Parker>) -> Kick {
        let mut state = lock(&self.state);
        parker.called.store(true, Ordering::Relaxed);
        let place = state
            .parked
            .iter()
            .position(|other| Arc::ptr_eq(other, parker));
        let Some(place) = place else {
            // It may be the one that watches.
            return self.kick_locked(&state);
        };
        state.parked.remove(place);
        state.end_deputy(parker);
        drop(state);
        wake_up(Some(parker.clone()));
        Kick::None
    }

    /// Brings the watcher back, so that it looks again at what it waits for.
    pub(crate) fn kick(&self) -> Kick {
        self.kick_locked(&lock(&self.state))
    }

    /// Nothing more will come: everybody is to leave. Gives what was ready.
    pub(crate) fn close(&self) -> (Kick, VecDeque<T>) {
        let mut state = lock(&self.state);
        state.closed = true;
        let ready = state.ready.drain();
        self.note_ready(&state);
        for parker in state.parked.drain(..) {
            parker.condvar.notify_all();
        }
        (self.kick_locked(&state), ready)
    }

    fn kick_locked(&self, state: &State<T>) -> Kick {
        // SYNC: sequentially consistent with `is_kicked` in the watcher.
        if state.watcher && !self.kicked.swap(true, Ordering::SeqCst) {
            Kick::Watcher
        } else {
            Kick::None
        }
    }

    fn add(&self, item: T, add: impl FnOnce(&mut ByClass<T>, T, u8)) -> Result<Kick, T> {
        let mut state = lock(&self.state);
        if state.closed {
            return Err(item);
        }
        let class = (self.class_of)(&item);
        add(&mut state.ready, item, class);
        Ok(self.after_add(state))
    }

    fn add_all(&self, state: &mut State<T>, items: impl IntoIterator<Item = T>) {
        for item in items {
            let class = (self.class_of)(&item);
            state.ready.push_back(item, class);
        }
    }

    fn note_ready(&self, state: &State<T>) {
        self.ready.store(state.ready.len(), Ordering::Relaxed);
        self.highest.store(state.ready.highest(), Ordering::Relaxed);
    }

    fn after_add(&self, mut state: MutexGuard<'_, State<T>>) -> Kick {
        self.note_ready(&state);
        // (Somebody is at work, or the watch would not be empty.)
        if !state.watcher && self.leaves_out_wake(&mut state) {
            return Kick::None;
        }
        let wake = wake_one(&mut state);
        // With a wake under way the woken thread looks; a thread that watches would not.
        let kicked = if wake.is_none() && state.waking.is_none() {
            self.kick_locked(&state)
        } else {
            Kick::None
        };
        drop(state);
        wake_up(wake);
        kicked
    }

    fn pop_locked(&self, state: &mut State<T>) -> Option<T> {
        let item = state.ready.pop();
        self.note_ready(state);
        item
    }
}

#[cfg(all(test, not(loom)))]
#[path = "hub_tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "hub_loom.rs"]
mod loom_tests;
