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
    sync::{AtomicU8, AtomicUsize, Mutex, Ordering, fence, lock},
    sys,
};

/// The lease of one socket; `T` is what it is leased from.
pub(crate) struct Lease<T> {
    /// [`REVOKED`] and [`FENCED`]; neither, as a rule.
    flags: AtomicU8,
    position: AtomicUsize,
    /// For the counters: where the lease began, and how much then and now is left of the holder's
    /// stock of messages.
    start: AtomicUsize,
    stock: AtomicUsize,
    left: AtomicUsize,
    state: Mutex<State<T>>,
}

/// Somebody takes the rest.
const REVOKED: u8 = 1;
/// The revoker's barrier does not reach the holder, which has to fence itself.
const FENCED: u8 = 2;

enum State<T> {
    Free,
    Held(T),
    Revoked { from: T, position: usize },
}

impl<T> Lease<T> {
    pub(crate) fn new() -> Self {
        let fenced = if sys::membarrier_ready() { 0 } else { FENCED };
        Self {
            flags: AtomicU8::new(fenced),
            position: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            stock: AtomicUsize::new(0),
            left: AtomicUsize::new(0),
            state: Mutex::new(State::Free),
        }
    }

    /// The holder: everything from `position` on is leased from `from`, at most `stock` messages.
    pub(crate) fn begin(&self, from: T, position: usize, stock: usize) {
        let mut state = lock(&self.state);
        debug_assert!(matches!(*state, State::Free));
        self.start_at(position, stock);
        self.flags.fetch_and(!REVOKED, Ordering::Relaxed);
        *state = State::Held(from);
    }

    /// The holder, whom nobody revokes meanwhile: the lease is of other bytes now, from `position` on.
    pub(crate) fn restart(&self, position: usize, stock: usize) {
        // (For who looks at the counters.)
        let _state = lock(&self.state);
        self.start_at(position, stock);
    }

    /// The caller has the state locked.
    fn start_at(&self, position: usize, stock: usize) {
        self.position.store(position, Ordering::Relaxed);
        self.start.store(position, Ordering::Relaxed);
        self.stock.store(stock, Ordering::Relaxed);
        self.left.store(stock, Ordering::Relaxed);
    }

    /// The holder: takes everything up to `next`, after `taken` messages before. False: it was revoked, perhaps before;
    /// [`Lease::end`] tells.
    #[inline(always)]
    #[must_use]
    pub(crate) fn advance(&self, next: usize, left: usize) -> bool {
        // SYNC: this store and the load below stand in this order for the revoker, whose
        // `membarrier` (or fence) in `revoke` stands between its own store and load.
        self.position.store(next, Ordering::Relaxed);
        self.left.store(left, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        self.flags.load(Ordering::Relaxed) == 0 || !self.is_revoked_behind_fence()
    }

    #[cold]
    #[inline(never)]
    fn is_revoked_behind_fence(&self) -> bool {
        // SYNC: as above, where the revoker's barrier does not reach this thread.
        fence(Ordering::SeqCst);
        self.is_revoked()
    }

    /// The holder: whether it was revoked.
    pub(crate) fn is_revoked(&self) -> bool {
        self.flags.load(Ordering::Relaxed) & REVOKED != 0
    }

    /// The holder gives the lease up: what it was leased from; where it was revoked, with the
    /// position from which the revoker took.
    pub(crate) fn end(&self) -> Result<T, (T, usize)> {
        match std::mem::replace(&mut *lock(&self.state), State::Free) {
            State::Held(from) => Ok(from),
            State::Revoked { from, position } => Err((from, position)),
            State::Free => unreachable!("a lease ends once"),
        }
    }

    /// What is leased now, if anything.
    pub(crate) fn leased(&self) -> Option<T>
    where
        T: Clone,
    {
        match &*lock(&self.state) {
            State::Held(from) => Some(from.clone()),
            _ => None,
        }
    }

    /// For the counters: what the holder has taken of it, in messages and bytes, that
    /// [`Lease::end`] has not told it yet.
    pub(crate) fn progress(&self) -> Option<(T, usize, usize)>
    where
        T: Clone,
    {
        let state = lock(&self.state);
        let from = match &*state {
            State::Held(from) | State::Revoked { from, .. } => from.clone(),
            State::Free => return None,
        };
        let bytes = self.position.load(Ordering::Relaxed) - self.start.load(Ordering::Relaxed);
        let taken = self.stock.load(Ordering::Relaxed) - self.left.load(Ordering::Relaxed);
        Some((from, taken, bytes))
    }

    /// Another thread takes what is left: what it was leased from, and the position from which on it
    /// is the caller's now. `None`: nothing is leased any more, or not what `of` says.
    pub(crate) fn revoke(&self, of: impl FnOnce(&T) -> bool) -> Option<(T, usize)>
    where
        T: Clone,
    {
        let mut state = lock(&self.state);
        let from = match std::mem::replace(&mut *state, State::Free) {
            State::Held(from) if of(&from) => from,
            other => {
                *state = other;
                return None;
            }
        };
        let before = self.flags.fetch_or(REVOKED, Ordering::Relaxed);
        // SYNC: with `advance`.
        if before & FENCED == 0 {
            sys::membarrier();
        } else {
            fence(Ordering::SeqCst);
        }
        let position = self.position.load(Ordering::Relaxed);
        *state = State::Revoked {
            from: from.clone(),
            position,
        };
        Some((from, position))
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
            lease.begin((), 0, usize::MAX);
            let thief = {
                let lease = lease.clone();
                thread::spawn(move || {
                    for _ in 0..round * 10 {
                        std::hint::spin_loop();
                    }
                    lease.revoke(|()| true)
                })
            };
            let mut mine = 0;
            while mine < MESSAGES {
                if lease.advance(mine + 1, 0) {
                    mine += 1;
                    continue;
                }
                break;
            }
            match lease.end() {
                Ok(()) => assert_eq!(thief.join().unwrap(), None),
                Err(((), position)) => {
                    // What the thief saw published is the holder's.
                    assert!(
                        position == mine || position == mine + 1,
                        "{position} {mine}"
                    );
                    assert_eq!(thief.join().unwrap(), Some(((), position)));
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
            lease.begin((), 0, usize::MAX);
            let thief = {
                let lease = lease.clone();
                thread::spawn(move || lease.revoke(|()| true))
            };
            let mut mine = 0;
            while mine < 2 && lease.advance(mine + 1, 0) {
                mine += 1;
            }
            match lease.end() {
                Ok(()) => {
                    assert_eq!(mine, 2);
                    assert_eq!(thief.join().unwrap(), None);
                }
                Err(((), position)) => {
                    // The holder takes the message at which they met if the thief began behind it.
                    assert!(position == mine || position == mine + 1);
                    assert_eq!(thief.join().unwrap(), Some(((), position)));
                }
            }
        });
    }
}
