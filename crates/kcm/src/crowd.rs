//! More threads at work than processors to run them.
//!
//! A thread that goes through bursts sleeps only when nothing is ready. Where two of them have one
//! processor between them, the scheduler takes it from one in the middle of a burst, for some
//! milliseconds, and what that one has in hand stands still so long: the rest of its burst, and the
//! replies that it keeps back. Threads with connections of their own escape this, as they sleep
//! after each burst and wake with the next. (Measured: four threads on one processor, four
//! connections with 256 requests under way on each: the deviation of the latency was 13 times as
//! high as theirs.)
//!
//! One can see it: a thread that asks for more, while another one went to work on a burst *on the
//! same processor*, knows that it has pushed that one off. It makes room, that is, sleeps as if there
//! were nothing, and the other goes on; so there are soon as many at work as can run at once. The
//! wakes that would bring the others back are left out for a while ([`Crowd`]), and a thread walks
//! alone though others wait (`walk.rs`).
//!
//! This is for threads that were *quick* with their last burst: who is long busy may sleep himself.
//! Should a quick one be long busy this time, one of the sleeping threads (the deputy, `hub/sleep.rs`)
//! takes what it has left within two milliseconds, and wakes are as before.
//!
//! Tried before: `sched_yield` instead of sleeping, which halves the deviation and no more, since
//! there are still as many at work; to go by how late woken threads arrive, which says little, as
//! most of them push the waker off at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::{mux::Mux, socket::SocketState, sys};

/// A thread is quick if it needs less than this for a message, about what it costs to wake another
/// thread for it ...
const QUICK_NS: u64 = 5_000;

/// ... and this for each time that it takes something: a read, and a reply.
const QUICK_TAKE_NS: u64 = 20_000;

/// To look costs some 100 ns.
const TAKES_BETWEEN_LOOKS: u32 = 8;

/// Others take something so often while a thread that was pushed off its processor is not back on
/// one: more often than in the longest of the scheduler's slices. After that, it has gone elsewhere.
pub(crate) const FRESH_TAKES: usize = 1024;

/// Wakes that are left out between two that are tried: at first, and at most.
const FEW_WAKES: u32 = 16;
const MANY_WAKES: u32 = 256;

/// Which wakes to leave out. While threads make room again and again, nearly all of them; once they
/// do not, twice as many are tried each time, until the crowd is forgotten.
#[derive(Default)]
pub(crate) struct Crowd {
    /// Wakes that are left out until the next one is tried.
    left: u32,
    /// How many there were between the last two; 0: no crowd.
    between: u32,
    /// A thread has made room since the last one.
    made_room: bool,
}

impl Crowd {
    pub(crate) fn is_there(&self) -> bool {
        self.between > 0
    }

    /// A thread makes room for another.
    pub(crate) fn make_room(&mut self) {
        self.between = (self.between * 2).clamp(FEW_WAKES, MANY_WAKES);
        self.left = self.between;
        self.made_room = true;
    }

    /// Whether a wake is to be left out. `late`: a woken thread has still not arrived.
    pub(crate) fn leaves_out(&mut self, late: bool) -> bool {
        if self.left > 0 {
            self.left -= 1;
            return true;
        }
        if !std::mem::take(&mut self.made_room) && !late {
            self.between /= 2;
        }
        if self.between < FEW_WAKES {
            self.between = 0;
        }
        self.left = self.between;
        false
    }

    /// Whether a thread may walk alone through a burst, of which it would wake another for the rest
    /// otherwise. When the next wake is to be tried, it may not.
    pub(crate) fn lets_walk(&mut self) -> bool {
        let lets = self.left > 1;
        if lets {
            self.left -= 1;
        }
        lets
    }
}

/// The processor on which a socket's thread went to work on a burst; nowhere, if it has none, or
/// was not quick with the last one.
pub(crate) struct Place {
    processor: AtomicUsize,
    /// What [`crate::hub::Hub::takes`] was.
    takes: AtomicUsize,
}

impl Place {
    const NOWHERE: usize = usize::MAX;

    pub(crate) fn new() -> Self {
        Self {
            processor: AtomicUsize::new(Self::NOWHERE),
            takes: AtomicUsize::new(0),
        }
    }

    fn is(&self, processor: usize, takes: usize) -> bool {
        let age = takes.wrapping_sub(self.takes.load(Ordering::Relaxed));
        self.processor.load(Ordering::Relaxed) == processor && age < FRESH_TAKES
    }

    fn set(&self, processor: usize, takes: usize) {
        self.takes.store(takes, Ordering::Relaxed);
        self.processor.store(processor, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.processor.store(Self::NOWHERE, Ordering::Relaxed);
    }
}

/// How quick a socket's thread is with what it takes: looked at after each burst, or after some
/// messages that came alone.
#[derive(Default)]
pub(crate) struct Pace {
    /// Since when it is looked at, in ns, and what the socket had received before.
    since: Option<(u64, u64)>,
    takes: u32,
    quick: bool,
    /// And the time before. (Who was pushed off his processor once is not slow.)
    was_quick: bool,
}

impl Pace {
    /// The thread goes to work on a burst, or a part of it.
    pub(crate) fn go_to_work(&mut self, mux: &Mux, state: &SocketState) {
        if self.since.is_none() {
            self.begin(sys::now_ns(), mux, state);
        }
    }

    fn begin(&mut self, now_ns: u64, mux: &Mux, state: &SocketState) {
        self.since = Some((now_ns, state.counters.rx_messages()));
        self.takes = 0;
        if self.quick {
            state.place.set(sys::processor(), mux.hub.takes());
        } else {
            state.place.leave();
        }
    }

    /// The thread is done with what it took, perhaps a burst. Whether to look how crowded it is.
    pub(crate) fn note_done(&mut self, burst: bool, mux: &Mux, state: &SocketState) -> bool {
        let Some((since_ns, before)) = self.since else {
            return false;
        };
        self.takes += 1;
        if !burst && self.takes < TAKES_BETWEEN_LOOKS {
            return false;
        }
        let now_ns = sys::now_ns();
        let messages = state.counters.rx_messages().saturating_sub(before);
        let most_ns = (QUICK_NS.saturating_mul(messages))
            .saturating_add(QUICK_TAKE_NS * u64::from(self.takes));
        let quick = now_ns.saturating_sub(since_ns) < most_ns;
        self.quick = quick || self.was_quick;
        self.was_quick = quick;
        self.begin(now_ns, mux, state);
        true
    }

    /// Whether nothing is looked at now.
    pub(crate) fn rests(&self) -> bool {
        self.since.is_none()
    }

    /// The thread is about to wait.
    pub(crate) fn rest(&mut self, state: &SocketState) {
        if self.since.take().is_some() {
            state.place.leave();
        }
    }
}

impl Mux {
    /// Whether the caller, a socket's thread that is done with a burst, has pushed another one off
    /// this processor.
    pub(crate) fn is_crowded(&self, state: &SocketState) -> bool {
        let (here, takes) = (sys::processor(), self.hub.takes());
        self.find_socket(|other| other.index != state.index && other.place.is(here, takes))
            .is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wakes that are left out before the next that is not.
    fn left_out(crowd: &mut Crowd) -> usize {
        (0..).take_while(|_| crowd.leaves_out(false)).count()
    }

    #[test]
    fn wakes_are_left_out_while_threads_make_room() {
        let mut crowd = Crowd::default();
        assert_eq!(left_out(&mut crowd), 0);
        for expected in [16, 32, 64, 128, 256, 256] {
            crowd.make_room();
            assert_eq!(left_out(&mut crowd), expected);
            assert!(crowd.is_there());
        }
    }

    #[test]
    fn ever_more_are_tried_once_they_do_not() {
        let mut crowd = Crowd::default();
        crowd.make_room();
        crowd.make_room();
        for expected in [32, 32, 16, 0, 0] {
            assert_eq!(left_out(&mut crowd), expected);
        }
        assert!(!crowd.is_there());
        crowd.make_room();
        assert_eq!(left_out(&mut crowd), 16);
    }

    #[test]
    fn a_place_grows_stale() {
        let place = Place::new();
        assert!(!place.is(3, 0));
        place.set(3, usize::MAX);
        assert!(place.is(3, 0) && !place.is(2, 0));
        assert!(place.is(3, FRESH_TAKES - 2) && !place.is(3, FRESH_TAKES - 1));
        place.leave();
        assert!(!place.is(3, 0));
    }

    #[test]
    fn a_walk_counts_as_a_wake_left_out() {
        let mut crowd = Crowd::default();
        assert!(!crowd.lets_walk());
        crowd.make_room();
        let walks = (0..).take_while(|_| crowd.lets_walk()).count();
        assert_eq!((walks, left_out(&mut crowd)), (15, 1));
    }
}
