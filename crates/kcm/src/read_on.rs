//! From one burst to the next, on one socket and one connection.
//!
//! A socket that has walked through a burst gives up all that it has: the lease, the connection's claim, a
//! reference for each byte. Then it asks for work, and gets them back one by one. Where there are
//! others, they have their turn in between. Where there are none, that is 2,600 instructions and 30
//! locked ones a burst, 0.5 us while the code is in the nearest cache, and twice as much where the
//! system has just driven it out: 1 ns of each message, with a thousand of them in a burst.
//!
//! So the only socket of an only connection keeps its walk. It stops at the end of what was read, takes the
//! watch, blocks in a receive, and goes on with what that has brought:
//!
//! ```text
//!     walk ──▶ end of the burst ──▶ stop ──▶ watch, receive ──▶ go on ──▶ walk
//!      │              claim and lease stay the walker's           │
//!      │                                                          │
//!      └── revoked by who begins to wait, attaches a connection, ─┴── anything out of the ordinary:
//!          changes a setting (it brings the watcher back first)       the general way, from here on
//! ```
//!
//! Nothing is new for the others: the receiving side is locked while lease and position change, and while
//! the thread blocks; who wants to revoke the lease waits for that lock, and while it does it brings back
//! whoever has the watch (`Psock::lock_rx`). Whoever had begun to do so before is seen here.

use std::sync::atomic::Ordering;

use kcm_frame::Step;

use crate::{
    gather, message::Message, mux::Mux, receive::Fill, socket::SocketState, walk::Hand,
    watch::Known,
};

/// With fewer messages than this in the last two bursts a walk does not read on: messages that come alone
/// have a shorter way (`solo.rs`). (Two, for what a peer writes at once may come in two parts, the second
/// of which ends one message: 64 KiB are 53 bytes more than a segment on loopback.)
const LEAST_MESSAGES: u32 = 8;

impl Mux {
    /// The first message of the next burst, which the walk goes on through. `None`: the walk is at its end,
    /// and the general way has the rest of it.
    pub(crate) fn read_on(
        &self,
        hand: &mut Hand,
        known: &Known,
        state: &SocketState,
    ) -> Option<Message> {
        let psock = &known.psock;
        if hand.taken_lately() < LEAST_MESSAGES
            || hand.leased().in_order
            || known.generation != self.generation()
            || self.hub.waiting() > 0
            || self.spin
            || !self.allows_solo()
            || !psock.can_be_watched_alone()
            || psock.registered.load(Ordering::Relaxed)
            || psock.has_ended()
            || psock.receive_disabled.load(Ordering::Relaxed)
            || psock.ordered.load(Ordering::Relaxed)
        {
            return None;
        }
        gather::end();
        let mut rx = psock.try_rx()?;
        if psock.is_wanted() || state.lease.is_revoked() || !rx.must_wait() || rx.has_returned() {
            return None;
        }
        hand.stop(&mut rx, psock, state);
        let Step::Incomplete { need, len } = rx.step() else {
            return None;
        };
        if !self.hub.try_watch() {
            return None;
        }
        if !rx.bytes().is_empty() {
            psock.begin_partial(rx.assembler.limits().assembly_deadline);
        }
        let mut fill = Fill::Nothing;
        // (Who brings news brings back whoever has the watch. What was before is seen here.)
        if !psock.claim.has_news() && self.begin_watch_alone() {
            fill = rx.fill(psock, need, len, true);
            self.end_watch_alone();
        }
        self.hub.leave_watch([], false);
        // The connection is in no epoll that would tell of more.
        psock.edge.store(true, Ordering::Relaxed);
        match fill {
            Fill::Some => {
                psock.count_read();
                hand.go_on(&mut rx, psock, state);
            }
            nothing => {
                // What is left may have moved.
                hand.stay(&rx, state);
                if let Fill::End(reason) = nothing {
                    rx.meet_again(reason);
                }
                return None;
            }
        }
        let message = (hand.next_plain(state)).or_else(|| hand.next_by_rule(state))?;
        psock.end_partial();
        drop(rx);
        gather::begin(psock, None);
        Some(message)
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use crate::{
        hub::{Hub, Kick, Parker, Turn},
        lease::Lease,
        sync::{Arc, AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, lock},
    };

    /// The connection is 7.
    struct Shared {
        hub: Hub<u32>,
        lease: Lease<u32>,
        /// The receiving side is locked. (No mutex: loom blocks who only tries.)
        rx: AtomicBool,
        wanted: AtomicUsize,
        /// Stands for the system: a thread that is blocked in it is interrupted.
        interrupted: Mutex<bool>,
        changed: Condvar,
    }

    impl Shared {
        fn try_rx(&self) -> bool {
            let (free, locked) = (Ordering::Acquire, Ordering::Relaxed);
            (self.rx.compare_exchange(false, true, free, locked)).is_ok()
        }

        fn unlock_rx(&self) {
            self.rx.store(false, Ordering::Release);
        }

        /// As `Psock::lock_rx`.
        fn with_rx<R>(&self, with: impl FnOnce() -> R) -> R {
            self.wanted.fetch_add(1, Ordering::SeqCst);
            loop {
                if self.try_rx() {
                    let result = with();
                    self.unlock_rx();
                    self.wanted.fetch_sub(1, Ordering::SeqCst);
                    return result;
                }
                if self.hub.kick() == Kick::Watcher {
                    *lock(&self.interrupted) = true;
                    self.changed.notify_all();
                }
                thread::yield_now();
            }
        }

        /// As `Mux::read_on`, of a connection that sends nothing more: it comes back when it must.
        fn read_on(&self) {
            if self.hub.waiting() == 0 && self.try_rx() {
                self.read_on_locked();
                self.unlock_rx();
            }
        }

        fn read_on_locked(&self) {
            if self.wanted.load(Ordering::SeqCst) > 0 || self.lease.is_revoked() {
                return;
            }
            self.lease.restart(0, 0);
            if !self.hub.try_watch() {
                return;
            }
            let mut interrupted = lock(&self.interrupted);
            while !*interrupted {
                interrupted = self.changed.wait(interrupted).unwrap();
            }
            self.hub.leave_watch([], false);
        }

        /// As the end of a walk, and the release of the claim.
        fn end(&self) {
            if self.with_rx(|| self.lease.end()).is_ok() {
                let _ = self.hub.push(7);
            }
        }
    }

    /// A thread begins to wait at any moment while another one reads on: it gets the lease, or the
    /// connection when that is given back, or the watch.
    #[test]
    fn loom_who_waits_brings_the_reader_back() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let shared = Arc::new(Shared {
                hub: Hub::new(),
                lease: Lease::new(),
                rx: AtomicBool::new(false),
                wanted: AtomicUsize::new(0),
                interrupted: Mutex::new(false),
                changed: Condvar::new(),
            });
            shared.lease.begin(7, 0, 1);
            let other = {
                let shared = shared.clone();
                thread::spawn(move || {
                    let _waiting = shared.hub.begin_waiting();
                    if shared.lease.leased().is_some()
                        && shared.with_rx(|| shared.lease.revoke(|_| true)).is_some()
                    {
                        return;
                    }
                    match shared.hub.turn(&Parker::new(), None) {
                        Turn::Item(connection) => assert_eq!(connection, 7),
                        Turn::Watch => {}
                        Turn::Closed | Turn::TimedOut | Turn::Called => {
                            unreachable!("nobody closes it, or calls")
                        }
                    }
                })
            };
            shared.read_on();
            shared.end();
            other.join().unwrap();
        });
    }
}
