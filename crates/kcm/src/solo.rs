//! One socket and one connection: next to nothing between a receive and the system's.
//!
//! A thread that watches a connection alone (`watch.rs`) gives the watch and the claim back with
//! each message, so that another thread could take them. Where there is no other, that is all that
//! separates it from a hand-written loop: some 300 ns of locked instructions in a round trip of 10
//! us. So the only socket *retains* both while its thread works on the message:
//!
//! ```text
//!            establish                    enter (its next receive)
//!   NONE ─────────────────▶ RETAINED ─────────────────────────────▶ ACTIVE ─┐
//!    ▲                       │    ▲                                         │
//!    └───────────────────────┘    └──────────── retain (a message) ─────────┤
//!    ▲        break off (anybody who waits)                                 │
//!    └──────────────────────────────────────────────────────────────────────┘
//!                              leave (anything out of the ordinary)
//! ```
//!
//! While it is RETAINED, anybody who begins to wait for messages breaks it off and has the watch.
//! While it is ACTIVE, its thread is the watcher as any other, and is brought back in the same way.
//! It handles the plain case alone: one whole message without a key, and nothing behind it.

use std::sync::Arc;

use kcm_frame::Step;

use crate::{
    latch::Latched,
    message::Message,
    mux::Mux,
    psock::Psock,
    receive::{Fill, Rx},
    socket::SocketState,
    spin::Spin,
    sync::{AtomicU8, Mutex, Ordering, lock, loom_fence},
    sys,
    watch::Known,
};

const NONE: u8 = 0;
const RETAINED: u8 = 1;
const ACTIVE: u8 = 2;

/// Who retains the watch of a multiplexor; `T` is the connection whose claim it retains with it.
/// What a method gives back is the caller's to give up: the watch, and the claim.
pub(crate) struct Solo<T> {
    state: AtomicU8,
    retained: Mutex<Option<T>>,
}

impl<T> Solo<T> {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU8::new(NONE),
            retained: Mutex::new(None),
        }
    }

    /// The caller has the watch and the claim, and retains them from now on. It has to look then
    /// whether anybody waits: who came before this has seen nothing to break off.
    fn establish(&self, claimed: T) {
        *lock(&self.retained) = Some(claimed);
        // SYNC: as in `change`.
        self.state.store(RETAINED, Ordering::SeqCst);
        loom_fence();
    }

    /// The one that retains them uses them. False: they were broken off.
    fn enter(&self) -> bool {
        self.change(RETAINED, ACTIVE)
    }

    /// It retains them for the next time; it has to look then whether anybody waits.
    fn retain(&self) -> bool {
        self.change(ACTIVE, RETAINED)
    }

    /// It gives them up.
    fn leave(&self) -> Option<T> {
        self.state.store(NONE, Ordering::Release);
        lock(&self.retained).take()
    }

    /// Anybody takes them, if they are retained and not in use.
    fn break_off(&self) -> Option<T> {
        loom_fence();
        if self.state.load(Ordering::SeqCst) != RETAINED || !self.change(RETAINED, NONE) {
            return None;
        }
        // Nobody can retain anything new before the watch has been given up.
        lock(&self.retained).take()
    }

    fn change(&self, from: u8, to: u8) -> bool {
        // SYNC: sequentially consistent with `Hub::begin_waiting`: either a thread that begins to
        // wait sees that the watch is retained, or who retains it sees the thread.
        let changed = self
            .state
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok();
        loom_fence();
        changed
    }
}

impl Mux {
    /// Whether a socket that is alone may retain what it has, to block with it on this thread.
    pub(crate) fn allows_solo(&self) -> bool {
        self.socket_count() == 1
            && self.psock_count() == 1
            && self.readiness.polled() == 0
            && !self.hub.is_kicked()
            && !self.memory.is_much_used()
            && sys::nudge_ready()
    }

    /// After a message of a connection that was watched alone: retains the watch and the claim, if
    /// they are still to be had.
    pub(crate) fn establish_solo(&self, psock: &Arc<Psock>) -> bool {
        if !self.allows_solo() || !psock.can_be_watched_alone() || !psock.claim.claim_idle() {
            return false;
        }
        if !self.hub.try_watch() {
            psock.release(true);
            return false;
        }
        self.solo.establish(psock.clone());
        if self.hub.waiting() > 0 || !self.allows_solo() {
            self.break_solo();
            return false;
        }
        true
    }

    /// Somebody else is to have the watch and the claim, if they are retained and not in use.
    pub(crate) fn break_solo(&self) {
        if let Some(psock) = self.solo.break_off() {
            self.give_solo_up(&psock);
        }
    }

    fn give_solo_up(&self, psock: &Arc<Psock>) {
        self.hub.leave_watch([], false);
        psock.release(true);
    }

    /// The next message, if it is the plain case; otherwise everything is given up, and the
    /// caller goes the ordinary way.
    pub(crate) fn receive_solo(
        &self,
        known: &Known,
        state: &SocketState,
        spin: &mut Spin,
    ) -> Option<Message> {
        if !self.solo.enter() {
            return None;
        }
        let message = if known.generation == self.generation() && self.allows_solo() {
            self.receive_alone(&known.psock, state, spin)
        } else {
            None
        };
        if message.is_some() && self.solo.retain() {
            if self.hub.waiting() > 0 || !self.allows_solo() {
                self.break_solo();
            }
            return message;
        }
        if let Some(psock) = self.solo.leave() {
            self.give_solo_up(&psock);
        }
        message
    }

    /// A small message that comes alone; what else there is is left in the receiving side.
    fn receive_single_alone(
        &self,
        psock: &Arc<Psock>,
        mut rx: Latched<'_, Rx>,
        state: &SocketState,
    ) -> Option<Message> {
        if !self.watch.begin_alone(&self.hub) {
            return None;
        }
        let single = rx.read_single(psock, true);
        self.watch.end_alone();
        // The connection is in no epoll that would tell of more.
        psock.edge.store(true, Ordering::Relaxed);
        let single = single?;
        psock.count_received(state, 1, single.len());
        Some(single.share(&mut rx, psock))
    }

    fn receive_alone(
        &self,
        psock: &Arc<Psock>,
        state: &SocketState,
        spin: &mut Spin,
    ) -> Option<Message> {
        let mut rx = psock.rx();
        if psock.is_wanted() || psock.receive_disabled.load(Ordering::Relaxed) || !rx.must_wait() {
            return None;
        }
        if !self.spin && rx.is_at_rest() {
            return self.receive_single_alone(psock, rx, state);
        }
        let Step::Incomplete { need, len } = rx.step() else {
            return None;
        };
        if !rx.bytes().is_empty() || rx.has_returned() {
            return None;
        }
        let mut fill = Fill::Nothing;
        if self.spin {
            spin.until(|| {
                fill = rx.fill(psock, need, len, false);
                !matches!(fill, Fill::Nothing)
            });
        }
        if matches!(fill, Fill::Nothing) {
            if !self.watch.begin_alone(&self.hub) {
                return None;
            }
            fill = rx.fill(psock, need, len, true);
            self.watch.end_alone();
        }
        match fill {
            Fill::Some => {}
            Fill::End(reason) => {
                drop(rx);
                self.end_receiving(psock, reason);
                return None;
            }
            Fill::Nothing | Fill::HeldBack => {
                psock.edge.store(true, Ordering::Relaxed);
                return None;
            }
        }
        // More than one message, or less: the ordinary way has all that it takes. (What was read
        // says that there may be more: there is.)
        psock.edge.store(true, Ordering::Relaxed);
        let Step::Message(frame) = rx.step() else {
            return None;
        };
        if frame.len != rx.bytes().len() as u64 || frame.key.is_some() {
            return None;
        }
        let message = rx.cut(psock, &frame)?;
        psock.count_received(state, 1, message.len());
        Some(message)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::{
        hub::{Hub, Parker, Turn},
        sync::Arc,
    };

    /// The claimed connection is 7.
    struct Shared {
        hub: Hub<u32>,
        solo: Solo<u32>,
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                hub: Hub::new(),
                solo: Solo::new(),
            })
        }

        fn break_solo(&self) {
            if let Some(claimed) = self.solo.break_off() {
                self.give_up(claimed);
            }
        }

        fn give_up(&self, claimed: u32) {
            self.hub.leave_watch([], false);
            let _ = self.hub.push(claimed);
        }

        fn establish(&self) -> bool {
            if !self.hub.try_watch() {
                return false;
            }
            self.solo.establish(7);
            if self.hub.waiting() > 0 {
                self.break_solo();
                return false;
            }
            true
        }

        /// A receive as the only socket; `alone`: its message is the plain case.
        fn receive(&self, plain: bool) -> bool {
            if !self.solo.enter() {
                return false;
            }
            if plain && self.solo.retain() {
                if self.hub.waiting() > 0 {
                    self.break_solo();
                }
                return true;
            }
            let claimed = self.solo.leave().expect("it was in use");
            self.give_up(claimed);
            false
        }
    }

    /// One socket retains the watch, receives, and turns to something long; another thread begins
    /// to wait meanwhile, at any moment: it gets the connection, or the watch.
    #[test]
    fn loom_who_waits_gets_what_is_retained() {
        for plain in [true, false] {
            let mut model = loom::model::Builder::new();
            model.preemption_bound = Some(3);
            model.check(move || {
                let shared = Shared::new();
                let other = {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        let _waiting = shared.hub.begin_waiting();
                        shared.break_solo();
                        match shared.hub.turn(&Parker::new(), None) {
                            Turn::Item(claimed) => assert_eq!(claimed, 7),
                            Turn::Watch => {}
                            Turn::Closed | Turn::TimedOut | Turn::Called => {
                                unreachable!("nobody closes it, or calls")
                            }
                        }
                    })
                };
                if shared.establish() && shared.receive(true) {
                    shared.receive(plain);
                }
                other.join().unwrap();
            });
        }
    }

    /// Several threads begin to wait at once: the watch is given up once.
    #[test]
    fn loom_it_is_broken_off_once() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Shared::new();
            assert!(shared.establish());
            let other = {
                let shared = shared.clone();
                thread::spawn(move || usize::from(shared.solo.break_off().is_some()))
            };
            let mine = usize::from(shared.solo.break_off().is_some());
            let entered = usize::from(shared.solo.enter());
            assert_eq!(mine + other.join().unwrap() + entered, 1);
        });
    }
}
