//! Ends of connections: telling them, and finding those that nobody comes upon.
//!
//! An end is found by the threads that receive: it stands behind the last message of its stream, and
//! the read that brings nothing more finds it. But threads may all be busy for long, or do nothing but
//! send, or there are none; and who only waits for ends would wait for ever. So who asks for an end and
//! finds none told *looks* itself, every [`LOOK`], in two steps:
//!
//! - It takes what the multiplexor's epoll has to tell, when no receiver is there to take it, and leaves
//!   it to them as any thread does that looks beside the watcher (`watch.rs`): in the ready list, with a
//!   bell for those who poll. Nothing is read. Whoever takes an event by which a connection has *hung
//!   up* notes that here: a receiver may turn to long work on another message next.
//! - A connection that has hung up is read until something whole stands at its front, which waits for a
//!   receiver with the end behind it, or until its end is found. Of all others not a byte is read, so
//!   that TCP's window closes while nobody receives. One that has hung up sends no more than its TCP
//!   holds already.
//!
//! The only connection may be in no epoll, as one is that a thread blocks on. The system is asked whether
//! it has hung up, which that thread does not notice.
//!
//! The looker does not wait for a connection's claim, which a thread at work keeps for long when the
//! connection is ordered. It locks the receiving side and takes back what is leased, as `unattach` does.
//! A connection that is over leaves the ready list: in a program that never receives it would stay there
//! for ever, and count as one in use.
//!
//! Rejected: a second epoll for hang-ups alone, since each arrival would wake two; asking the system
//! about every connection, which takes milliseconds for 10,000 of them.

use std::{
    collections::{BTreeSet, VecDeque},
    os::fd::AsFd,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use kcm_frame::Step;
use rustix::event::PollFlags;

use crate::{
    connection::ConnectionId,
    error::{Error, Result},
    event::{ConnectionEvent, EndReason},
    mux::Mux,
    psock::Psock,
    receive::Fill,
    steering::Ready,
    sys,
    watch::HARVEST_SHARED,
};

/// Ends of connections kept for [`crate::Multiplexor::next_event`], 65,536 (3 MiB): as many as
/// there may be connections. A program that never asks loses the oldest.
const MOST_EVENTS: usize = 65_536;

/// Between two looks for ends that no receiver finds, and so about the time after which one is told at
/// the latest. What a person takes for at once; a look costs some microseconds, a ten-thousandth of it.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) struct Ends {
    told: Mutex<Told>,
    has_event: Condvar,
    /// Connections in the list of which the system has said that they have hung up.
    hung_up: Mutex<BTreeSet<ConnectionId>>,
}

struct Told {
    events: VecDeque<ConnectionEvent>,
    /// The multiplexor is closed, and the ends of all connections are told.
    all: bool,
    next_look: Instant,
}

impl Ends {
    pub(crate) fn new() -> Self {
        Self {
            told: Mutex::new(Told {
                events: VecDeque::new(),
                all: false,
                next_look: Instant::now(),
            }),
            has_event: Condvar::new(),
            hung_up: Mutex::default(),
        }
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hung_up(&self) -> MutexGuard<'_, BTreeSet<ConnectionId>> {
        self.hung_up.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The system says that this connection has hung up. The caller has the list of connections locked.
    #[cold]
    pub(crate) fn note_hung_up(&self, connection: ConnectionId) {
        self.hung_up().insert(connection);
    }

    /// It leaves the list, which the caller has locked.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        self.hung_up().remove(&connection);
    }

    /// There will be no more: everybody who waits is to leave.
    pub(crate) fn close(&self) {
        self.told().all = true;
        self.has_event.notify_all();
    }
}

impl Mux {
    /// The end of a connection, told once.
    pub(crate) fn tell(&self, psock: &Arc<Psock>, reason: EndReason) {
        self.counters.count_end(reason);
        let mut told = self.ends.told();
        if told.events.len() == MOST_EVENTS {
            told.events.pop_front();
        }
        told.events.push_back(ConnectionEvent {
            connection: psock.id,
            reason,
        });
        drop(told);
        self.ends.has_event.notify_one();
    }

    pub(crate) fn try_next_event(self: &Arc<Self>) -> Option<ConnectionEvent> {
        let mut told = self.ends.told();
        if told.events.is_empty() && told.next_look <= Instant::now() {
            told = self.look_for_ends(told);
        }
        told.events.pop_front()
    }

    pub(crate) fn next_event(self: &Arc<Self>) -> Result<ConnectionEvent> {
        let mut told = self.ends.told();
        loop {
            if let Some(event) = told.events.pop_front() {
                return Ok(event);
            }
            if told.all {
                return Err(Error::Closed);
            }
            let left = told.next_look.saturating_duration_since(Instant::now());
            told = if left.is_zero() {
                self.look_for_ends(told)
            } else {
                let waited = self.ends.has_event.wait_timeout(told, left);
                waited.unwrap_or_else(PoisonError::into_inner).0
            };
        }
    }

    /// Looks for ends that no receiver finds, without the lock.
    fn look_for_ends<'a>(
        self: &'a Arc<Self>,
        mut told: MutexGuard<'a, Told>,
    ) -> MutexGuard<'a, Told> {
        told.next_look = Instant::now() + LOOK;
        drop(told);
        if let Some(only) = self.only_psock() {
            let carrier = only.carrier_for_epoll();
            if carrier.is_some_and(|carrier| sys::polls(carrier.as_fd(), PollFlags::RDHUP)) {
                self.find_end(&only);
            }
        } else {
            self.harvest_unwatched();
            for psock in self.hung_up_psocks() {
                self.find_end(&psock);
            }
        }
        self.ends.told()
    }

    /// Takes all events that there are now, unless somebody watches, who is woken by them.
    fn harvest_unwatched(self: &Arc<Self>) {
        // One that was alone once may retain the watch over its work, or connections that it found.
        self.break_solo();
        self.empty_baskets();
        for _ in 0..=self.psock_count() / HARVEST_SHARED {
            if self.hub.is_watched() || !sys::polls(self.watch.epoll().as_fd(), PollFlags::IN) {
                return;
            }
            self.harvest_for_all();
        }
    }

    fn hung_up_psocks(&self) -> Vec<Arc<Psock>> {
        let psocks = self.psocks();
        let hung_up = self.ends.hung_up();
        let found = hung_up.iter().filter_map(|id| psocks.get(*id));
        found.cloned().collect()
    }

    /// Finds the end of a connection that has hung up, unless something whole stands before it.
    fn find_end(self: &Arc<Self>, psock: &Arc<Psock>) {
        if psock.receive_disabled.load(Ordering::Acquire) {
            return;
        }
        let mut rx = psock.lock_rx();
        if rx.has_returned() {
            return;
        }
        let mut claimed = self.revoke_under(psock, &mut rx);
        // From here on a read goes on until there is nothing more.
        psock.drain.store(true, Ordering::Relaxed);
        let mut has_read = false;
        let end = loop {
            match rx.step() {
                Step::Message(_) => break None,
                Step::Fault(fault) => break Some(EndReason::Fault(fault)),
                Step::Incomplete { need, len } => match rx.fill(psock, need, len, false) {
                    Fill::Some => {
                        psock.count_read();
                        has_read = true;
                    }
                    Fill::End(reason) => break Some(reason),
                    Fill::HeldBack => {
                        psock.edge.store(true, Ordering::Relaxed);
                        break None;
                    }
                    // As for a receiver: nothing is there, and nothing can be sent.
                    Fill::Nothing if psock.tx.is_over() => break Some(EndReason::Closed),
                    Fill::Nothing => break None,
                },
            }
        };
        let over = end.is_some() || rx.is_stopped();
        drop(rx);
        if over {
            // Who retains it over its work does so for nothing.
            self.break_solo();
            claimed |= self.take_from_ready(psock);
            psock.edge.store(false, Ordering::Relaxed);
        }
        if let Some(reason) = end {
            self.end_receiving(psock, reason);
        }
        if claimed {
            psock.let_go();
        } else if has_read && !over {
            // Something whole, for whoever receives; or a part, whose time runs.
            psock.notify();
        }
    }

    /// Takes the connection, with its claim, out of what is ready. False: it is not there.
    fn take_from_ready(&self, psock: &Arc<Psock>) -> bool {
        let is = |ready: &Ready| matches!(ready, Ready::Connection(it) if Arc::ptr_eq(it, psock));
        let taken = self.hub.take_out(is).is_some();
        if taken {
            psock.claim.claim();
        }
        taken
    }
}
