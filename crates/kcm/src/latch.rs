//! A lock that nearly nobody waits for.
//!
//! The receiving side of a connection is locked for each read by the one thread that has the connection's
//! claim (`claim.rs`), and now and then by others, which want to change something. `std`'s mutex keeps a
//! thread that waits asleep, and for that has a second locked instruction on the way out, and it asks on
//! both ways whether the thread panics: 25 instructions of 800 in the receive of a message that comes
//! alone. This one is opened by a store. Who finds it locked yields, and sleeps for a moment when that
//! does not help (a thread of lower priority may have it).
//!
//! # Contract of the unsafe code
//!
//! The value is reached through a [`Latched`] alone, of which there is one at most: it is made where
//! `locked` changes to true, and clears it when it goes.

use std::{
    cell::UnsafeCell,
    ops::{Deref, DerefMut},
    thread,
    time::Duration,
};

use crate::sync::{AtomicBool, Ordering, yield_now};

/// (The lock beside what of the value is asked for first: `psock.rs`.)
#[repr(C)]
pub(crate) struct Latch<T> {
    locked: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached by one thread at a time (the contract above).
unsafe impl<T: Send> Sync for Latch<T> {}

/// The value, locked.
pub(crate) struct Latched<'a, T>(&'a Latch<T>);

impl<T> Latch<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            locked: AtomicBool::new(false),
            value: UnsafeCell::new(value),
        }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Latched<'_, T> {
        self.try_lock().unwrap_or_else(|| self.wait())
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Latched<'_, T>> {
        // SYNC: acquire, with the release in `Latched::drop`.
        let locked =
            (self.locked).compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        // (Made only then: one that is dropped opens it.)
        locked.is_ok().then(|| Latched(self))
    }

    #[cold]
    #[inline(never)]
    fn wait(&self) -> Latched<'_, T> {
        /// What is done under it takes some microseconds.
        const YIELDS: u32 = 64;
        const NAP: Duration = Duration::from_micros(50);
        let mut yields = 0;
        loop {
            if yields < YIELDS || cfg!(loom) {
                yields += 1;
                yield_now();
            } else {
                thread::sleep(NAP);
            }
            if let Some(latched) = self.try_lock() {
                return latched;
            }
        }
    }
}

impl<T> Deref for Latched<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: this is the only `Latched` there is.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Latched<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Latched<'_, T> {
    #[inline]
    fn drop(&mut self) {
        // SYNC: release, with the acquire in `Latch::try_lock`.
        self.0.locked.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    #[test]
    fn no_count_is_lost_and_a_panic_leaves_it_open() {
        const EACH: u64 = 20_000;
        let latch = Arc::new(Latch::new(0));
        let others: Vec<_> = (0..3)
            .map(|_| {
                let latch = latch.clone();
                thread::spawn(move || {
                    (0..EACH).for_each(|_| *latch.lock() += 1);
                    let _locked = latch.lock();
                    panic!("with the latch locked");
                })
            })
            .collect();
        for other in others {
            assert!(other.join().is_err());
        }
        let locked = latch.lock();
        assert!(latch.try_lock().is_none());
        assert_eq!(*locked, 3 * EACH);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;

    #[test]
    fn loom_one_at_a_time_has_what_is_latched() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            // A loom cell inside finds two accesses that overlap.
            let latch = Arc::new(Latch::new(loom::cell::UnsafeCell::new(0)));
            let add = |latch: &Latch<loom::cell::UnsafeCell<i32>>| {
                latch.lock().with_mut(|n| unsafe { *n += 1 });
            };
            let other = {
                let latch = latch.clone();
                loom::thread::spawn(move || add(&latch))
            };
            add(&latch);
            other.join().unwrap();
            latch.lock().with(|n| assert_eq!(unsafe { *n }, 2));
        });
    }
}
