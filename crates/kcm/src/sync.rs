//! The synchronisation primitives of the modules that are model-checked: those of `std`, or
//! loom's under `--cfg loom`.

use std::time::Duration;

#[cfg(not(loom))]
pub(crate) use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence},
    },
    thread::yield_now,
};

#[cfg(loom)]
pub(crate) use loom::{
    cell::{ConstPtr, UnsafeCell},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence},
    },
    thread::yield_now,
};

/// Locks, also after a panic of another thread: every critical section of this crate leaves its
/// data whole at each step that could panic, so there is nothing to be poisoned.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    pause();
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Waits on a condition variable; whether the time ran out.
pub(crate) fn wait<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    timeout: Option<Duration>,
) -> (MutexGuard<'a, T>, bool) {
    match timeout {
        // Loom has no time: under it every wait ends by a wake.
        Some(timeout) if !cfg!(loom) => {
            let (guard, result) = condvar
                .wait_timeout(guard, timeout)
                .unwrap_or_else(|e| e.into_inner());
            (guard, result.timed_out())
        }
        _ => (
            condvar.wait(guard).unwrap_or_else(|e| e.into_inner()),
            false,
        ),
    }
}

/// A place between two steps that others may come between. With `--cfg pauses` they do: now and then
/// the thread yields there or sleeps, so that tests meet schedules that are rare otherwise.
#[inline(always)]
pub(crate) fn pause() {
    #[cfg(all(pauses, not(loom)))]
    pauses::pause();
}

#[cfg(all(pauses, not(loom)))]
mod pauses {
    use std::{cell::Cell, collections::hash_map::RandomState, hash::BuildHasher, thread, time};

    thread_local! {
        static RANDOM: Cell<u64> = Cell::new(RandomState::new().hash_one(0) | 1);
    }

    pub(super) fn pause() {
        // (A thread that is ending goes on at once.)
        let random = RANDOM.try_with(|random| {
            // xorshift64
            let mut x = random.get();
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            random.set(x);
            x
        });
        match random.unwrap_or(u64::MAX) % 512 {
            0..16 => thread::yield_now(),
            16..20 => thread::sleep(time::Duration::from_micros(50)),
            20 => thread::sleep(time::Duration::from_millis(1)),
            _ => {}
        }
    }
}

/// Stands after, or before, a sequentially consistent operation that has to be seen in one order with
/// those on another variable. Loom orders such operations only where they are on one variable, but
/// knows the fence.
#[inline(always)]
pub(crate) fn loom_fence() {
    #[cfg(loom)]
    fence(Ordering::SeqCst);
}

/// `std`'s cell with the interface of loom's, which finds accesses that overlap.
#[cfg(not(loom))]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with<R>(&self, access: impl FnOnce(*const T) -> R) -> R {
        access(self.0.get())
    }

    #[inline(always)]
    pub(crate) fn get(&self) -> ConstPtr<T> {
        ConstPtr(self.0.get())
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, access: impl FnOnce(*mut T) -> R) -> R {
        access(self.0.get())
    }
}

/// A reading access that has begun.
#[cfg(not(loom))]
pub(crate) struct ConstPtr<T>(*const T);

#[cfg(not(loom))]
impl<T> ConstPtr<T> {
    /// # Safety
    ///
    /// Nobody changes the value meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn deref(&self) -> &T {
        // SAFETY: the caller's contract.
        unsafe { &*self.0 }
    }
}
