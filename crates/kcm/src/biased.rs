//! A lock that costs its usual owner nothing.
//!
//! One thread, the owner, takes it all the time; others do so rarely. The owner's side is a store
//! and a load, without the fence that a mutex has, which would keep the processor from working on
//! the next message before this one is done: measured, a lock prefix in the loop over a burst costs
//! 14 ns a message, as much as all the rest. Whoever else takes it pays for both, with
//! `membarrier(2)`; see `lease.rs` for the same idea and why it holds.
//!
//! # Contract of the unsafe code
//!
//! [`Biased::own`] is called by one thread at a time, the owner, and not from within itself: by always the
//! same, or by the one that has what cannot be had twice, and came from thread to thread (`basket.rs`). The value
//! is touched by the owner between its store to `active` and the next, having seen it not revoked
//! in between; by others when they have revoked it (under `others`), passed the barrier, and
//! seen `active` false. The barrier makes at least one side see the other.

use std::{cell::UnsafeCell, sync::atomic::compiler_fence};

use crate::{
    sync::{AtomicBool, AtomicU8, Mutex, Ordering, fence, lock, yield_now},
    sys,
};

pub(crate) struct Biased<T> {
    active: AtomicBool,
    /// [`REVOKED`] and [`FENCED`]; neither, as a rule.
    flags: AtomicU8,
    others: Mutex<()>,
    value: UnsafeCell<T>,
}

/// Somebody else has it, or waits for it.
const REVOKED: u8 = 1;
/// The others' barrier does not reach the owner, which has to fence itself.
const FENCED: u8 = 2;

// SAFETY: the value is reached by one thread at a time (the contract above).
unsafe impl<T: Send> Sync for Biased<T> {}

impl<T> Biased<T> {
    pub(crate) fn new(value: T) -> Self {
        let fenced = if sys::membarrier_ready() { 0 } else { FENCED };
        Self {
            active: AtomicBool::new(false),
            flags: AtomicU8::new(fenced),
            others: Mutex::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// The owner's access.
    ///
    /// # Safety
    ///
    /// No two threads call this without having met in between, and `access` does not call it again.
    #[inline(always)]
    pub(crate) unsafe fn own<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        // SYNC: with `others` below: this store and the load after it stand in this order for
        // a thread that has passed the barrier there.
        self.active.store(true, Ordering::Relaxed);
        compiler_fence(Ordering::SeqCst);
        // SYNC: acquire, with the release of `flags` in `others`.
        if self.flags.load(Ordering::Acquire) != 0 {
            self.become_active();
        }
        // SAFETY: active, and not revoked: others wait until this thread is done.
        let result = access(unsafe { &mut *self.value.get() });
        // SYNC: release, with the acquire load of `active` in `others`.
        self.active.store(false, Ordering::Release);
        result
    }

    /// The same up to there, where there is more to it than that.
    #[cold]
    #[inline(never)]
    fn become_active(&self) {
        loop {
            self.active.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            // SYNC: as in `own`.
            if self.flags.load(Ordering::Acquire) & REVOKED == 0 {
                break;
            }
            self.step_aside();
        }
    }

    /// Waits until nobody else has it.
    fn step_aside(&self) {
        self.active.store(false, Ordering::Release);
        drop(lock(&self.others));
    }

    /// Anybody else's access: waits for the owner, and keeps it out meanwhile.
    pub(crate) fn others<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        let _others = lock(&self.others);
        let before = self.flags.fetch_or(REVOKED, Ordering::Relaxed);
        // SYNC: with `own`.
        if before & FENCED == 0 {
            sys::membarrier();
        } else {
            fence(Ordering::SeqCst);
        }
        while self.active.load(Ordering::Acquire) {
            yield_now();
        }
        // SAFETY: revoked and not active: the owner waits for `others`, which this thread holds.
        let result = access(unsafe { &mut *self.value.get() });
        // SYNC: release, with the acquire load of `flags` in `own`.
        self.flags.fetch_and(!REVOKED, Ordering::Release);
        result
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{sync::Arc, thread};

    #[test]
    fn no_count_is_lost() {
        const EACH: u64 = 20_000;
        let count = Arc::new(Biased::new(0u64));
        let other = {
            let count = count.clone();
            thread::spawn(move || (0..EACH / 100).for_each(|_| count.others(|count| *count += 1)))
        };
        for _ in 0..EACH {
            // SAFETY: this thread only.
            unsafe { count.own(|count| *count += 1) };
        }
        other.join().unwrap();
        assert_eq!(count.others(|count| *count), EACH + EACH / 100);
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_one_at_a_time() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            // A loom cell inside finds two accesses that overlap.
            let biased = Arc::new(Biased::new(loom::cell::UnsafeCell::new(0)));
            let other = {
                let biased = biased.clone();
                thread::spawn(move || {
                    biased.others(|cell| cell.with_mut(|n| unsafe { *n += 1 }));
                })
            };
            for _ in 0..2 {
                unsafe { biased.own(|cell| cell.with_mut(|n| *n += 1)) };
            }
            other.join().unwrap();
            biased.others(|cell| cell.with(|n| assert_eq!(unsafe { *n }, 3)));
        });
    }
}
