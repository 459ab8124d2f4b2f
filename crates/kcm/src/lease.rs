//! A burst that one socket walks through alone, until another thread comes to share it.
//!
//! With nobody else waiting, a thread that has read a burst of messages should take them one by
//! one at the cost of a hand-written loop: no lock, no atomic read-modify-write for each. But a
//! thread that begins to wait later must find what is left, even while the first is busy with a
//! message for a long time. So the burst is *leased*: the holder publishes how far it has come,
//! and any other thread may revoke the lease and take the rest.
//!
//! This is Dekker's problem: the holder writes `position` and reads `revoked`, the revoker writes
//! `revoked` and reads `position`, and at least one of them must see the other's write. A full
//! fence on the holder's side would cost about as much as the rest of its loop. It is needed only
//! when somebody revokes, which is rare, so the revoker pays for both: `membarrier(2)` runs a full
//! fence on every processor that runs a thread of this process, and the holder's side is a fence
//! for the compiler alone. Where the system refuses `membarrier`, the holder fences.
//!
//! Whether the message at which they meet went to the holder is settled under the lock: the
//! revoker leaves the position from which it took.

use std::sync::atomic::compiler_fence;

use crate::{
    sync::{AtomicBool, AtomicUsize, Mutex, Ordering, fence, lock},
    sys,
};

/// The lease of one socket; `T` is what it is leased from.
pub(crate) struct Lease<T> {
    /// Whether the revoker's barrier reaches the holder.
    asymmetric: bool,
    revoked: AtomicBool,
    position: AtomicUsize,
    state: Mutex<State<T>>,
}

enum State<T> {
    Free,
    Held(T),
    Revoked { position: usize },
}

impl<T> Lease<T> {
    pub(crate) fn new() -> Self {
        Self {
            asymmetric: sys::membarrier_ready(),
            revoked: AtomicBool::new(false),
            position: AtomicUsize::new(0),
            state: Mutex::new(State::Free),
        }
    }

    /// The holder: everything from `position` on is leased from `from`.
    pub(crate) fn begin(&self, from: T, position: usize) {
        let mut state = lock(&self.state);
        debug_assert!(matches!(*state, State::Free));
        self.position.store(position, Ordering::Relaxed);
        self.revoked.store(false, Ordering::Relaxed);
        *state = State::Held(from);
    }

    /// The holder: takes everything up to `next`. False: it was revoked, perhaps before;
    /// [`Lease::end`] tells.
    #[inline]
    #[must_use]
    pub(crate) fn advance(&self, next: usize) -> bool {
        // SYNC: this store and the load below stand in this order for the revoker, whose
        // `membarrier` (or fence) in `revoke` stands between its own store and load.
        self.position.store(next, Ordering::Relaxed);
        if self.asymmetric {
            compiler_fence(Ordering::SeqCst);
        } else {
            fence(Ordering::SeqCst);
        }
        !self.revoked.load(Ordering::Relaxed)
    }

    /// The holder gives the lease up: what it was leased from, or, where it was revoked, the
    /// position from which the revoker took.
    pub(crate) fn end(&self) -> Result<T, usize> {
        match std::mem::replace(&mut *lock(&self.state), State::Free) {
            State::Held(from) => Ok(from),
            State::Revoked { position } => Err(position),
            State::Free => unreachable!("a lease ends once"),
        }
    }

    /// Another thread takes what is left: what it was leased from, and the position from which on
    /// it is the caller's now. `None`: nothing is leased, or `unless` says to leave it.
    pub(crate) fn revoke(&self, unless: impl FnOnce(&T) -> bool) -> Option<(T, usize)> {
        let mut state = lock(&self.state);
        match &*state {
            State::Held(from) if !unless(from) => {}
            _ => return None,
        }
        self.revoked.store(true, Ordering::Relaxed);
        // SYNC: with `advance`.
        if self.asymmetric {
            sys::membarrier();
        } else {
            fence(Ordering::SeqCst);
        }
        let position = self.position.load(Ordering::Relaxed);
        match std::mem::replace(&mut *state, State::Revoked { position }) {
            State::Held(from) => Some((from, position)),
            _ => unreachable!("held, as seen above under the same lock"),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    /// A holder races through numbered messages while a thief revokes at a random moment: each
    /// number goes to exactly one of them.
    #[test]
    fn each_message_goes_to_one() {
        const MESSAGES: usize = 2_000;
        for round in 0..300 {
            let lease = Arc::new(Lease::new());
            lease.begin((), 0);
            let thief = {
                let lease = lease.clone();
                thread::spawn(move || {
                    for _ in 0..round * 10 {
                        std::hint::spin_loop();
                    }
                    lease.revoke(|()| false).map(|((), position)| position)
                })
            };
            let mut mine = 0;
            while mine < MESSAGES {
                if lease.advance(mine + 1) {
                    mine += 1;
                    continue;
                }
                break;
            }
            match lease.end() {
                Ok(()) => assert_eq!(thief.join().unwrap(), None),
                Err(position) => {
                    // What the thief saw published is the holder's.
                    assert!(
                        position == mine || position == mine + 1,
                        "{position} {mine}"
                    );
                    assert_eq!(thief.join().unwrap(), Some(position));
                }
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_each_message_goes_to_one() {
        loom::model(|| {
            let lease = Arc::new(Lease::new());
            lease.begin((), 0);
            let thief = {
                let lease = lease.clone();
                thread::spawn(move || lease.revoke(|()| false).map(|((), position)| position))
            };
            let mut mine = 0;
            while mine < 2 && lease.advance(mine + 1) {
                mine += 1;
            }
            match lease.end() {
                Ok(()) => {
                    assert_eq!(mine, 2);
                    assert_eq!(thief.join().unwrap(), None);
                }
                Err(position) => {
                    // The holder takes the message at which they met if the thief began behind it.
                    assert!(position == mine || position == mine + 1);
                    assert_eq!(thief.join().unwrap(), Some(position));
                }
            }
        });
    }
}
