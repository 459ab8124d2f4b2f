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
//! It handles the plain case alone: one whole message and nothing behind it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU8, Ordering},
};

use kcm_frame::Step;

use crate::{
    message::Message, mux::Mux, psock::Psock, receive::Fill, socket::SocketState, spin::Spin,
    watch::Known,
};

const NONE: u8 = 0;
const RETAINED: u8 = 1;
const ACTIVE: u8 = 2;

/// Who retains the watch of a multiplexor.
pub(crate) struct Solo {
    state: AtomicU8,
    /// The connection whose claim is retained.
    psock: Mutex<Option<Arc<Psock>>>,
}

impl Solo {
    pub(crate) fn new() -> Self {
        Self {
            state: AtomicU8::new(NONE),
            psock: Mutex::new(None),
        }
    }

    fn change(&self, from: u8, to: u8) -> bool {
        // SYNC: sequentially consistent with `Hub::begin_waiting`: either a thread that begins to
        // wait sees that the watch is retained, or who retains it sees the thread.
        self.state
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

impl Mux {
    /// Whether a socket that is alone may retain what it has.
    fn allows_solo(&self) -> bool {
        self.socket_count() == 1
            && self.psock_count() == 1
            && self.readiness.polled() == 0
            && !self.hub.is_kicked()
            && !self.memory.is_much_used()
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
        *self.solo.psock.lock().unwrap_or_else(|e| e.into_inner()) = Some(psock.clone());
        self.solo.state.store(RETAINED, Ordering::SeqCst);
        // Who came in between has seen no solo to break off.
        if self.hub.waiting() > 0 || !self.allows_solo() {
            self.break_solo();
            return false;
        }
        true
    }

    /// Somebody else is to have the watch and the claim, if they are retained and not in use.
    pub(crate) fn break_solo(&self) {
        if self.solo.state.load(Ordering::SeqCst) == RETAINED && self.solo.change(RETAINED, NONE) {
            self.give_solo_up();
        }
    }

    fn give_solo_up(&self) {
        let psock = self
            .solo
            .psock
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take();
        self.hub.leave_watch([], false);
        if let Some(psock) = psock {
            psock.release(true);
        }
    }

    /// The next message, if it is the plain case; otherwise everything is given up, and the
    /// caller goes the ordinary way.
    pub(crate) fn receive_solo(
        &self,
        known: &Known,
        state: &SocketState,
        spin: &mut Spin,
    ) -> Option<Message> {
        if !self.solo.change(RETAINED, ACTIVE) {
            return None;
        }
        let message = if known.generation == self.generation() && self.allows_solo() {
            self.receive_alone(&known.psock, state, spin)
        } else {
            None
        };
        if message.is_some() && self.solo.change(ACTIVE, RETAINED) {
            if self.hub.waiting() > 0 || !self.allows_solo() {
                self.break_solo();
            }
            return message;
        }
        self.solo.state.store(NONE, Ordering::Release);
        self.give_solo_up();
        message
    }

    fn receive_alone(
        &self,
        psock: &Arc<Psock>,
        state: &SocketState,
        spin: &mut Spin,
    ) -> Option<Message> {
        let mut rx = psock.rx();
        let Step::Incomplete { need, len } = rx.step() else {
            return None;
        };
        if !rx.bytes().is_empty() || rx.has_returned() || !rx.must_wait() || psock.is_wanted() {
            return None;
        }
        if psock.receive_disabled.load(Ordering::Relaxed) {
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
        let len = rx.bytes().len();
        if frame.len != len as u64 {
            return None;
        }
        let message = rx.cut(psock, len)?;
        psock.count_received(state, 1, message.len());
        Some(message)
    }
}
