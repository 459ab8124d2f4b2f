//! One event loop wakes for an arrival, not all of them.
//!
//! Every polled socket could have the multiplexor's epoll in its own, but then each arrival wakes
//! every loop: with eight loops 7.9 context switches a message. (EPOLLEXCLUSIVE is refused for an
//! epoll in an epoll.) So only one of them, the *leader*, has it enabled; when it takes a message,
//! it hands the lead to a loop that is idle, and where none is, to the first that becomes so. 1.0
//! switches a message.
//!
//! A leader that is idle and yet does not come (its loop is stuck in something else) would hide
//! arrivals from the others. So a loop follows (has its entry disabled) only once it has shown that
//! it answers, and the background thread looks now and then: if something has arrived, or is ready, and
//! the leader did not come, all are enabled again and told. It also enables all when nothing happens for
//! a while, and then sleeps itself.

use std::{os::fd::OwnedFd, time::Duration};

use crate::{
    socket::SocketState,
    sync::{Mutex, MutexGuard, lock},
};

/// Half of how long an arrival may stay hidden behind a stuck leader. A look costs a wake of the background
/// thread, so it is twenty times what a busy loop's turn takes, not less.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// Looks without any receive after which all are enabled and nobody looks any more.
const IDLE_LOOKS: u32 = 50;

/// A socket in an event loop.
pub(crate) trait Polled {
    /// What becomes readable when something arrives.
    type Arrivals;

    fn index(&self) -> usize;

    /// Its last receive found nothing: it sleeps, or will. Set before [`Ring::after_recv`].
    fn is_idle(&self) -> bool;

    /// Whether arrivals wake its loop from now on, also those that are there; false when the system
    /// refused the change.
    fn enable(&self, arrivals: &Self::Arrivals, enabled: bool) -> bool;

    /// Wakes its loop, whether something has arrived or not.
    fn wake(&self);
}

pub(crate) struct Ring<P>(Mutex<State<P>>);

struct State<P> {
    members: Vec<Member<P>>,
    /// The socket that wakes for arrivals; without one all do.
    leader: Option<usize>,
    /// The leader has received since the last look.
    leader_came: bool,
    /// Anybody has.
    busy: bool,
    looking: bool,
    idle_looks: u32,
    /// The last look saw something that the leader had not come for.
    hidden_before: bool,
}

struct Member<P> {
    socket: P,
    /// Its loop has called a receive: it answers.
    answers: bool,
    enabled: bool,
}

impl<P: Polled> Ring<P> {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(State {
            members: Vec::new(),
            leader: None,
            leader_came: false,
            busy: false,
            looking: false,
            idle_looks: 0,
            hidden_before: false,
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State<P>> {
        lock(&self.0)
    }

    /// Whether one loop is told for all, and somebody looks whether it comes.
    pub(crate) fn is_led(&self) -> bool {
        self.lock().leader.is_some()
    }

    /// A socket is polled from now on; its entry is enabled.
    pub(crate) fn join(&self, socket: P) {
        self.lock().members.push(Member {
            socket,
            answers: false,
            enabled: true,
        });
    }

    /// It is closed.
    pub(crate) fn leave(&self, arrivals: &P::Arrivals, index: usize) {
        let mut state = self.lock();
        state
            .members
            .retain(|member| member.socket.index() != index);
        if state.leader == Some(index) {
            state.enable_all(arrivals);
        }
    }

    /// It is to be given nothing, until a receive on it is over again: it does not wake for arrivals.
    pub(crate) fn stand_aside(&self, arrivals: &P::Arrivals, index: usize) {
        let mut state = self.lock();
        if let Some(place) = state.place(index) {
            if state.leader == Some(index) {
                state.enable_all(arrivals);
            }
            state.enable(place, false, arrivals);
        }
    }

    /// A receive on this socket is over; `found`: it has work now, and another is to lead. True:
    /// the caller is to see that somebody begins to [`Ring::look`].
    #[must_use]
    pub(crate) fn after_recv(&self, arrivals: &P::Arrivals, index: usize, found: bool) -> bool {
        let mut state = self.lock();
        let Some(place) = state.place(index) else {
            return false;
        };
        state.busy = true;
        if state.members.len() < 2 {
            state.enable(place, true, arrivals);
            return false;
        }
        state.members[place].answers = true;
        let leads = state.leader == Some(index);
        state.leader_came |= leads;
        match (found, state.leader) {
            // It answers now; it was not known to when the leader was chosen.
            (true, Some(_)) if !leads => state.enable(place, false, arrivals),
            (true, _) => state.hand_on(place, arrivals),
            (false, Some(_)) if leads => {}
            // One that is at work found no idle one to hand the lead to.
            (false, Some(leader)) if state.is_idle(leader) => state.enable(place, false, arrivals),
            (false, _) => state.lead(place, arrivals),
        }
        let begins = state.leader.is_some() && !state.looking;
        if begins {
            state.looking = true;
            state.idle_looks = 0;
        }
        begins
    }

    /// The background thread looks; `waits`: something is there to be received. Whether to look again.
    pub(crate) fn look(&self, arrivals: &P::Arrivals, waits: impl FnOnce() -> bool) -> bool {
        let mut state = self.lock();
        let came = std::mem::take(&mut state.leader_came);
        if std::mem::take(&mut state.busy) {
            state.idle_looks = 0;
        } else {
            state.idle_looks += 1;
        }
        let idle = state.idle_looks >= IDLE_LOOKS;
        // Twice: what has arrived just before this look is no sign of anything.
        let hidden = !came && waits();
        let stuck = hidden && state.hidden_before;
        state.hidden_before = hidden;
        if idle || stuck {
            state.enable_all(arrivals);
        }
        if stuck {
            // What is ready has left the multiplexor's epoll.
            state.members.iter().for_each(|member| member.socket.wake());
        }
        state.looking = !idle;
        !idle
    }
}

impl<P: Polled> State<P> {
    fn place(&self, index: usize) -> Option<usize> {
        let mut members = self.members.iter();
        members.position(|member| member.socket.index() == index)
    }

    fn is_idle(&self, index: usize) -> bool {
        let place = self.place(index);
        place.is_some_and(|place| self.members[place].socket.is_idle())
    }

    /// The leader has work: another that is idle leads, the next in turn.
    fn hand_on(&mut self, place: usize, arrivals: &P::Arrivals) {
        let count = self.members.len();
        let next = (1..count).map(|i| (place + i) % count).find(|i| {
            let member = &self.members[*i];
            member.answers && member.socket.is_idle()
        });
        self.lead(next.unwrap_or(place), arrivals);
    }

    /// This one leads; the others that answer follow.
    fn lead(&mut self, place: usize, arrivals: &P::Arrivals) {
        // First the new one: an arrival in between is seen twice rather than not at all.
        self.enable(place, true, arrivals);
        self.leader = Some(self.members[place].socket.index());
        self.leader_came = true;
        for other in 0..self.members.len() {
            if other != place && self.members[other].answers {
                self.enable(other, false, arrivals);
            }
        }
    }

    fn enable_all(&mut self, arrivals: &P::Arrivals) {
        self.leader = None;
        (0..self.members.len()).for_each(|place| self.enable(place, true, arrivals));
    }

    fn enable(&mut self, place: usize, enabled: bool, arrivals: &P::Arrivals) {
        let member = &mut self.members[place];
        if member.enabled != enabled && member.socket.enable(arrivals, enabled) {
            member.enabled = enabled;
        }
    }
}

impl Polled for std::sync::Arc<SocketState> {
    /// The multiplexor's epoll.
    type Arrivals = OwnedFd;

    fn index(&self) -> usize {
        self.index
    }

    fn is_idle(&self) -> bool {
        self.poll.is_idle()
    }

    fn enable(&self, arrivals: &OwnedFd, enabled: bool) -> bool {
        self.poll.enable(arrivals, enabled)
    }

    fn wake(&self) {
        self.poll.ring();
    }
}

#[cfg(all(test, loom))]
#[path = "ring_loom.rs"]
mod loom_tests;
