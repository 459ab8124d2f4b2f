//! Messages for whichever connection: where they go, and what becomes of them when that one dies.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use crate::{connection::ConnectionId, mux::Mux, outgoing::Outgoing, psock::Psock};

#[derive(Default)]
pub(crate) struct Unaddressed {
    /// Where the next send begins to look.
    next: AtomicUsize,
    /// Threads wait here for a connection, or for room on one.
    arrivals: Mutex<()>,
    arrived: Condvar,
    /// Messages of connections that died, while there is no other.
    stranded: Mutex<VecDeque<Outgoing>>,
}

impl Unaddressed {
    /// A connection has come, or has room, or none will ever come: wakes who waits for that.
    pub(crate) fn has_changed(&self) {
        drop(self.arrivals.lock().unwrap_or_else(|e| e.into_inner()));
        self.arrived.notify_all();
    }
}

impl Mux {
    /// The connection for an unaddressed message: one on which least is queued, in turn. Gives
    /// `Err(true)` when there is one but all are full, `Err(false)` when there is none.
    pub(crate) fn choose(&self, last: Option<ConnectionId>) -> Result<Arc<Psock>, bool> {
        /// With more queued than this, affinity gives way.
        const SHORT_BYTES: usize = 64 << 10;
        let psocks = self.psocks();
        if self.sticky_send
            && let Some(last) = last
            && let Some(psock) = psocks.get(last)
        {
            let short_bytes = SHORT_BYTES.min(self.limits.send_buffer_bytes);
            if psock.tx.queued_bytes() < short_bytes && psock.tx.is_open() {
                return Ok(psock.clone());
            }
        }
        let row = psocks.row();
        let first = match row.len() {
            0 | 1 => 0,
            count => self.unaddressed.next.fetch_add(1, Ordering::Relaxed) % count,
        };
        let (before, from_first) = row.split_at(first);
        let mut best: Option<(usize, &Arc<Psock>)> = None;
        for psock in from_first.iter().chain(before) {
            let queued = psock.tx.queued_bytes();
            if best.is_some_and(|(least, _)| queued >= least) || !psock.tx.is_open() {
                continue;
            }
            best = Some((queued, psock));
            if queued == 0 {
                break;
            }
        }
        match best {
            None => Err(false),
            Some((queued, _)) if queued >= self.limits.send_buffer_bytes => Err(true),
            Some((_, psock)) => Ok(psock.clone()),
        }
    }

    /// Whether an unaddressed send would be taken now.
    pub(crate) fn can_send(&self) -> bool {
        let limit = self.limits.send_buffer_bytes;
        (self.psocks().row().iter()).any(|psock| psock.tx.has_room(limit) == Some(true))
    }

    /// Room for a message may have come somewhere: wakes who waits for any.
    pub(crate) fn sendable(&self) {
        if self.readiness.wants_writable() {
            self.readiness.update_writable(self);
        }
        if self.readiness.has_senders() {
            self.unaddressed.has_changed();
        }
    }

    /// Waits until a connection comes, or has room; `still_not` is asked under the lock. False:
    /// the time is over.
    pub(crate) fn wait_for_arrival(
        &self,
        deadline: Option<Instant>,
        still_not: impl Fn() -> bool,
    ) -> bool {
        let _sender = self.readiness.begin_sending();
        let Unaddressed {
            arrivals, arrived, ..
        } = &self.unaddressed;
        let guard = arrivals.lock().unwrap_or_else(|e| e.into_inner());
        if self.is_closed() || !still_not() {
            return true;
        }
        match deadline {
            None => drop(arrived.wait(guard)),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                drop(arrived.wait_timeout(guard, left));
            }
        }
        true
    }

    /// Unaddressed messages of a connection that died go out whole on others. Without any, they
    /// wait for the next to come; they are bounded by what was queued.
    pub(crate) fn resend(&self, messages: impl Iterator<Item = Outgoing>) {
        for mut message in messages {
            self.counters.tx_retries.fetch_add(1, Ordering::Relaxed);
            // Each try ends, or finds a connection closed, which is not chosen again.
            loop {
                let Ok(psock) = self.choose_any() else {
                    self.stranded().push_back(message);
                    // One that came just now has not seen it.
                    if let Ok(psock) = self.choose_any() {
                        self.send_stranded(&psock);
                    }
                    break;
                };
                match psock.tx.send_again(&psock, message) {
                    Ok(()) => break,
                    Err(back) => message = back,
                }
            }
        }
    }

    /// A connection has come: messages that found none go out on it.
    pub(crate) fn send_stranded(&self, psock: &Arc<Psock>) {
        loop {
            let Some(message) = self.stranded().pop_front() else {
                return;
            };
            if let Err(back) = psock.tx.send_again(psock, message) {
                self.stranded().push_front(back);
                return;
            }
        }
    }

    fn stranded(&self) -> MutexGuard<'_, VecDeque<Outgoing>> {
        let stranded = &self.unaddressed.stranded;
        stranded.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn choose_any(&self) -> Result<Arc<Psock>, ()> {
        let psocks = self.psocks();
        (psocks.row().iter())
            .filter(|psock| psock.tx.is_open())
            .min_by_key(|psock| psock.tx.queued_bytes())
            .cloned()
            .ok_or(())
    }
}
