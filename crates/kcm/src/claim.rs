//! Who works on a connection: at most one thread at a time, and never none when there is work.
//!
//! ```text
//!            notify: push to the ready list
//!      IDLE ─────────────────────────────────▶ QUEUED
//!        ▲  ╲                                    │ claim: popped from the ready list
//!        │   ╲ claim_idle, claim_for_news        ▼
//!        │    ╲────────────────────────────▶ CLAIMED ◀─┐
//!        │ release(nothing more)                 │     │ claim
//!        └───────────────────────────────────────┤     │
//!                                         notify ▼     │
//!                                            NOTIFIED ─┴─ release: push again
//! ```
//!
//! A connection stands in the ready list at most once (QUEUED). News that comes while a thread
//! works on it is kept (NOTIFIED), so that nothing which arrived behind its back is forgotten.

use crate::sync::{AtomicU8, Ordering};

const IDLE: u8 = 0;
const QUEUED: u8 = 1;
const CLAIMED: u8 = 2;
const NOTIFIED: u8 = 3;

pub(crate) struct Claim(AtomicU8);

impl Claim {
    pub(crate) fn new() -> Self {
        Self(AtomicU8::new(IDLE))
    }

    /// There may be work. True: the caller must push the connection to the ready list.
    #[must_use]
    pub(crate) fn notify(&self) -> bool {
        self.note_news(QUEUED)
    }

    /// There may be work. True: the caller has it, and the claim.
    #[must_use]
    #[inline]
    pub(crate) fn claim_for_news(&self) -> bool {
        self.claim_idle() || self.claim_noted()
    }

    /// As above, of a connection that was not idle just before.
    #[cold]
    fn claim_noted(&self) -> bool {
        self.note_news(CLAIMED)
    }

    /// There may be work; whether it was idle, and is `now` this.
    fn note_news(&self, now: u8) -> bool {
        // SYNC: the release half pairs with the acquire in `claim` and `release`: what the caller
        // noted before (the edge) is seen by the thread that works next. The acquire half is for who has
        // the claim with this, as in `claim`.
        let before = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |state| {
                Some(match state {
                    IDLE => now,
                    CLAIMED => NOTIFIED,
                    other => other,
                })
            });
        before == Ok(IDLE)
    }

    /// The caller popped the connection from the ready list and works on it now.
    pub(crate) fn claim(&self) {
        // SYNC: acquire, with the release of the previous worker and of the notifier.
        let before = self.0.swap(CLAIMED, Ordering::AcqRel);
        debug_assert_eq!(before, QUEUED);
    }

    /// Begins to work on a connection that has none to do. False: somebody else has it.
    #[must_use]
    pub(crate) fn claim_idle(&self) -> bool {
        // SYNC: acquire, with the release of the previous worker.
        self.0
            .compare_exchange(IDLE, CLAIMED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whether there has been news since the caller, who works, had the connection.
    pub(crate) fn has_news(&self) -> bool {
        // SYNC: acquire, with the release in `notify`.
        self.0.load(Ordering::Acquire) == NOTIFIED
    }

    /// The caller stops working; `more` says whether it left work. True: the caller must push the
    /// connection to the ready list.
    #[must_use]
    pub(crate) fn release(&self, more: bool) -> bool {
        if !more {
            // SYNC: release, with the acquire of the next worker.
            match self
                .0
                .compare_exchange(CLAIMED, IDLE, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => return false,
                Err(state) => debug_assert_eq!(state, NOTIFIED),
            }
        }
        // SYNC: as above.
        self.0.store(QUEUED, Ordering::Release);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn stands_in_the_list_once() {
        let claim = Claim::new();
        assert!(claim.notify());
        assert!(!claim.notify());
        claim.claim();
        assert!(!claim.claim_idle());
        assert!(!claim.notify());
        assert!(claim.release(false), "news came meanwhile");
        claim.claim();
        assert!(claim.release(true));
        claim.claim();
        assert!(!claim.release(false));
        assert!(claim.claim_idle());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::{Arc, AtomicBool, AtomicUsize};
    use loom::thread;

    /// Bytes arrive (edge, then notify) while a worker finishes: they are always worked on, by
    /// exactly one worker at a time.
    #[test]
    fn loom_no_arrival_is_forgotten() {
        no_arrival_is_forgotten(Claim::notify, |claim| claim.claim());
    }

    /// The same where who brings the news has the claim with it.
    #[test]
    fn loom_no_arrival_is_forgotten_by_who_claims_with_it() {
        no_arrival_is_forgotten(Claim::claim_for_news, |_| {});
    }

    fn no_arrival_is_forgotten(news: fn(&Claim) -> bool, claim_it: fn(&Claim)) {
        loom::model(move || {
            let claim = Arc::new(Claim::new());
            let edge = Arc::new(AtomicBool::new(false));
            let working = Arc::new(AtomicUsize::new(0));
            let list = Arc::new(AtomicUsize::new(0));
            assert!(claim.claim_idle());
            let arrival = {
                let (claim, edge, list) = (claim.clone(), edge.clone(), list.clone());
                thread::spawn(move || {
                    edge.store(true, Ordering::Relaxed);
                    if news(&claim) {
                        list.fetch_add(1, Ordering::AcqRel);
                    }
                })
            };
            working.fetch_add(1, Ordering::Relaxed);
            let seen = edge.swap(false, Ordering::Relaxed);
            working.fetch_sub(1, Ordering::Relaxed);
            let pushed = claim.release(false);
            if pushed {
                list.fetch_add(1, Ordering::AcqRel);
            }
            arrival.join().unwrap();
            let queued = list.load(Ordering::Acquire);
            assert!(queued <= 1);
            if queued == 1 {
                if !pushed {
                    claim_it(&claim);
                } else {
                    claim.claim();
                }
                edge.swap(false, Ordering::Relaxed);
            } else {
                assert!(seen);
            }
            assert!(!edge.load(Ordering::Relaxed), "an arrival was forgotten");
        });
    }
}
