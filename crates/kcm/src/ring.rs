//! One event loop wakes for an arrival, not all of them.
//!
//! Every polled socket could have the multiplexor's epoll in its own, but then each arrival wakes
//! every loop: with eight loops 7.9 context switches a message. (EPOLLEXCLUSIVE is refused for an
//! epoll in an epoll.) So only one of them, the *leader*, has it enabled; when it takes a message,
//! it hands the lead to a loop that is idle. 1.0 switches a message.
//!
//! A leader that is stuck in something else would hide arrivals from the others. So a loop follows
//! (has its entry disabled) only once it has shown that it answers, and the background thread looks
//! now and then: if something has arrived and the leader did not come, all are enabled again. It
//! also does that when nothing happens for a while, and then sleeps itself.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{background, mux::Mux, socket::SocketState};

/// Half of how long an arrival may stay hidden behind a stuck leader. A look costs a wake of the background
/// thread, so it is twenty times what a busy loop's turn takes, not less.
pub(crate) const LOOK: Duration = Duration::from_millis(20);
/// Looks without any receive after which all are enabled and nobody looks any more.
const IDLE_LOOKS: u32 = 50;

#[derive(Default)]
pub(crate) struct Ring(Mutex<State>);

#[derive(Default)]
struct State {
    members: Vec<Member>,
    /// The socket that wakes for arrivals; without one all do.
    leader: Option<usize>,
    /// The leader has received since the last look.
    leader_came: bool,
    /// Anybody has.
    busy: bool,
    looking: bool,
    idle_looks: u32,
    /// The last look saw an arrival that the leader had not come for.
    hidden_before: bool,
}

struct Member {
    socket: Arc<SocketState>,
    /// Its loop has called a receive: it answers.
    answers: bool,
    enabled: bool,
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A socket is polled from now on; its entry is enabled.
    pub(crate) fn join(&self, socket: Arc<SocketState>) {
        self.lock().members.push(Member {
            socket,
            answers: false,
            enabled: true,
        });
    }

    /// It is closed.
    pub(crate) fn leave(&self, mux: &Mux, socket: &SocketState) {
        let mut state = self.lock();
        state
            .members
            .retain(|member| member.socket.index != socket.index);
        if state.leader == Some(socket.index) {
            state.enable_all(mux.watch.epoll());
        }
    }

    /// A receive on this socket is over; `found`: it has work now, and another is to lead.
    pub(crate) fn after_recv(&self, mux: &Arc<Mux>, socket: &SocketState, found: bool) {
        let mut state = self.lock();
        let Some(place) = state
            .members
            .iter()
            .position(|m| m.socket.index == socket.index)
        else {
            return;
        };
        state.busy = true;
        if state.members.len() < 2 {
            return;
        }
        let epoll = mux.watch.epoll();
        state.members[place].answers = true;
        let leads = state.leader == Some(socket.index);
        state.leader_came |= leads;
        match (found, state.leader) {
            // It answers now; it was not known to when the leader was chosen.
            (true, Some(_)) if !leads => state.enable(place, false, epoll),
            (true, _) => state.hand_on(place, epoll),
            (false, None) => state.lead(place, epoll),
            (false, Some(_)) if leads => {}
            (false, Some(_)) => state.enable(place, false, epoll),
        }
        if state.leader.is_some() && !state.looking {
            state.looking = true;
            state.idle_looks = 0;
            drop(state);
            background::get().look_at_ring(mux);
        }
    }

    /// The background thread looks; whether to look again.
    pub(crate) fn look(&self, mux: &Mux) -> bool {
        let mut state = self.lock();
        let epoll = mux.watch.epoll();
        let came = std::mem::take(&mut state.leader_came);
        if std::mem::take(&mut state.busy) {
            state.idle_looks = 0;
        } else {
            state.idle_looks += 1;
        }
        let idle = state.idle_looks >= IDLE_LOOKS;
        // Twice: what has arrived just before this look is no sign of anything.
        let hidden = !came && is_readable(epoll);
        let stuck = hidden && state.hidden_before;
        state.hidden_before = hidden;
        if idle || stuck {
            state.enable_all(epoll);
        }
        state.looking = !idle;
        !idle
    }
}

impl State {
    /// The leader has work: another that is idle leads, the next in turn.
    fn hand_on(&mut self, place: usize, epoll: &OwnedFd) {
        let count = self.members.len();
        let next = (1..count).map(|i| (place + i) % count).find(|i| {
            let member = &self.members[*i];
            member.answers && member.socket.poll.is_idle()
        });
        self.lead(next.unwrap_or(place), epoll);
    }

    /// This one leads; the others that answer follow.
    fn lead(&mut self, place: usize, epoll: &OwnedFd) {
        // First the new one: an arrival in between is seen twice rather than not at all.
        self.enable(place, true, epoll);
        self.leader = Some(self.members[place].socket.index);
        self.leader_came = true;
        for other in 0..self.members.len() {
            if other != place && self.members[other].answers {
                self.enable(other, false, epoll);
            }
        }
    }

    fn enable_all(&mut self, epoll: &OwnedFd) {
        self.leader = None;
        (0..self.members.len()).for_each(|place| self.enable(place, true, epoll));
    }

    fn enable(&mut self, place: usize, enabled: bool, epoll: &OwnedFd) {
        let member = &mut self.members[place];
        if member.enabled != enabled && member.socket.poll.enable(epoll, enabled) {
            member.enabled = enabled;
        }
    }
}

fn is_readable(epoll: &OwnedFd) -> bool {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(epoll, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&now)), Ok(n) if n > 0)
}
