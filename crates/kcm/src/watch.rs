//! Waiting for the connections: what the one thread does that watches (`hub.rs`).
//!
//! One connection is watched *alone*: the thread blocks in a receive on it, and its descriptor is
//! in no epoll. This is the only way that ties with a hand-written blocking loop: with the
//! descriptor also in an epoll the rate is 0.94 to 0.97 of it, with a wait before each receive
//! 0.89. Several connections are watched in an epoll, edge-triggered, up to [`HARVEST`] events at
//! once.
//!
//! A thread that is blocked in a receive can't be reached through a descriptor when a second
//! connection is attached, or the multiplexor is shut down. It is interrupted by a signal that
//! everybody ignores (SIGURG; `sys::nudge`). The signal may come just before the thread enters the
//! system and be lost, so it is repeated until the thread says that it is back. A thread that
//! blocks the signal watches through the epoll.

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll},
    io::Errno,
    thread::Pid,
};

use kcm_frame::Step;

use crate::{
    basket::Basket,
    connection::ConnectionId,
    error::Result,
    hub::Hub,
    mux::Mux,
    psock::{Observer, Psock},
    receive::Fill,
    spin::Spin,
    steering::Ready,
    sync::pause,
    sys,
    transport::Carrier,
};

/// Events of one wait with one socket. Fewer cost more waits: with 1, the rate on 200 connections
/// is 0.93 of raw TCP's.
const HARVEST: usize = 64;
/// And with several sockets: what is harvested by one has to be handed to the others.
pub(crate) const HARVEST_SHARED: usize = 16;
/// Connections of a harvest that are fetched into the cache together.
const AHEAD: usize = 8;
/// Between two attempts to interrupt a blocked receive.
const NUDGE_AGAIN: Duration = Duration::from_micros(20);
/// The watch may stand empty for this long, typically, before a successor is woken each time. A
/// wake costs the one that leaves 5 to 10 us, and makes its own absence longer by that (the two may
/// share a processor): with 20 us here, a thread that once was slow stayed so.
const SHORT_ABSENCE_NS: u32 = 50_000;

pub(crate) struct Watch {
    epoll: OwnedFd,
    /// Brings back a thread that waits in the epoll.
    bell: OwnedFd,
    /// The thread that is blocked in a receive on the only connection.
    alone: AtomicI32,
    clock: Clock,
    /// How long a watcher that left with a message typically stayed away, in ns.
    absence_ns: AtomicU32,
}

/// Time during which somebody watched.
///
/// Written by the watcher alone, of which there is one, so that no read-modify-write is needed. Who
/// reads it in between is wrong by the length of one watch at most, once.
#[derive(Default)]
struct Clock {
    total_ns: AtomicU64,
    /// When the watch was taken; 0 while nobody has it.
    since_ns: AtomicU64,
    left_at_ns: AtomicU64,
}

/// The only connection, as a socket remembers it from the last time: looking it up again costs
/// four locked instructions.
pub(crate) struct Known {
    pub(crate) psock: Observer,
    pub(crate) generation: u64,
}

impl Known {
    pub(crate) fn is(&self, psock: &Arc<Psock>, generation: u64) -> bool {
        self.generation == generation && Arc::ptr_eq(&self.psock, psock)
    }
}

/// `Watch::alone` when no thread is blocked in a receive: no thread has this number.
const NOBODY: i32 = 0;
/// Epoll data of the bell. Connections' ids begin at 1.
const BELL: u64 = 0;

impl Watch {
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = epoll::EventFlags::IN;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(BELL), flags)?;
        Ok(Self {
            epoll,
            bell,
            alone: AtomicI32::new(NOBODY),
            clock: Clock::default(),
            absence_ns: AtomicU32::new(0),
        })
    }

    pub(crate) fn epoll(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Puts a connection into the epoll. The caller has the list of connections locked.
    pub(crate) fn register(&self, psock: &Psock) -> Result<()> {
        use epoll::EventFlags;
        if psock.registered.swap(true, Ordering::Relaxed) {
            return Ok(());
        }
        let Some(carrier) = psock.carrier_for_epoll() else {
            return Ok(());
        };
        pause();
        // PRI: a read stops short at an urgent byte.
        let flags = EventFlags::IN | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET;
        let data = epoll::EventData::new_u64(psock.id.0);
        match epoll::add(&self.epoll, carrier.as_fd(), data, flags) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(e) => {
                psock.registered.store(false, Ordering::Relaxed);
                Err(e.into())
            }
        }
    }

    /// Takes it out.
    pub(crate) fn unregister(&self, psock: &Psock) {
        if let Some(carrier) = psock.carrier_for_epoll() {
            self.unregister_carrier(psock, &carrier);
        }
    }

    /// Takes it out; where it is closed already, the system has done so.
    pub(crate) fn unregister_carrier(&self, psock: &Psock, carrier: &Carrier) {
        if psock.registered.swap(false, Ordering::Relaxed) {
            let _ = epoll::delete(&self.epoll, carrier.as_fd());
        }
    }

    /// Makes the kicked watcher return from where it waits.
    pub(crate) fn bring_back<T>(&self, hub: &Hub<T>) {
        self.ring();
        while hub.is_kicked() {
            // SYNC: with `begin_alone`, which stores the thread before it looks whether it is
            // kicked: one of the two sees the other.
            match Pid::from_raw(self.alone.load(Ordering::SeqCst)) {
                Some(thread) => sys::nudge(thread),
                // It is not blocked in a receive, and looks before it is; or the bell brings it.
                None => return,
            }
            std::thread::sleep(NUDGE_AGAIN);
        }
    }

    /// The calling thread, which has the watch, is about to block in a receive. False: it must not,
    /// it is wanted elsewhere.
    pub(crate) fn begin_alone<T>(&self, hub: &Hub<T>) -> bool {
        let thread = Pid::as_raw(Some(sys::this_thread()));
        // SYNC: sequentially consistent, as the kick: see `bring_back`.
        self.alone.swap(thread, Ordering::SeqCst);
        let may = !hub.is_kicked();
        if !may {
            self.end_alone();
        }
        may
    }

    /// It is back.
    pub(crate) fn end_alone(&self) {
        self.alone.store(NOBODY, Ordering::Release);
    }

    fn ring(&self) {
        // It fails only when it rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    pub(crate) fn watched_ns(&self, polled: bool) -> u64 {
        let now_ns = sys::coarse_now_ns();
        let clock = &self.clock;
        let since_ns = match clock.since_ns.load(Ordering::Relaxed) {
            // Somebody who polls waits all the time.
            0 if polled => clock.left_at_ns.load(Ordering::Relaxed),
            0 => now_ns,
            since_ns => since_ns,
        };
        clock.total_ns.load(Ordering::Relaxed) + now_ns.saturating_sub(since_ns)
    }

    fn enter(&self) {
        self.clock
            .since_ns
            .store(sys::coarse_now_ns(), Ordering::Relaxed);
    }

    fn leave(&self) {
        let now_ns = sys::coarse_now_ns();
        let clock = &self.clock;
        let since_ns = clock.since_ns.load(Ordering::Relaxed);
        let total_ns = clock.total_ns.load(Ordering::Relaxed) + now_ns.saturating_sub(since_ns);
        clock.total_ns.store(total_ns, Ordering::Relaxed);
        clock.since_ns.store(0, Ordering::Relaxed);
        clock.left_at_ns.store(now_ns, Ordering::Relaxed);
    }

    /// A thread that left the watch with a message asks for the next one. Keeps about the median of
    /// such absences: a mean would be carried off by the few in which the thread was preempted.
    pub(crate) fn note_absence(&self, left_at: Instant) {
        let away = u32::try_from(left_at.elapsed().as_nanos()).unwrap_or(u32::MAX);
        let typical = self.absence_ns.load(Ordering::Relaxed);
        let step = typical / 16 + 100;
        let typical = if away > typical {
            typical.saturating_add(step)
        } else {
            typical.saturating_sub(step)
        };
        self.absence_ns.store(typical, Ordering::Relaxed);
    }
}

impl Mux {
    /// Watches, at most until `deadline`. A connection of which the caller has the claim then, or
    /// none. `left_at` is when the caller last left the watch, `known` what it was alone with; others that
    /// it finds may go to its `basket`, if it takes messages that come alone.
    pub(crate) fn watch(
        self: &Arc<Self>,
        spin: &mut Spin,
        left_at: &mut Option<Instant>,
        known: &mut Option<Known>,
        basket: Option<&mut Basket<Arc<Psock>>>,
        deadline: Option<Instant>,
    ) -> Option<Arc<Psock>> {
        self.watch.enter();
        let mut others: Vec<Arc<Psock>> = Vec::new();
        let own = match self.watchable_alone(known) {
            Some(psock) => self.watch_alone(psock, spin, deadline),
            None => {
                // A connection that cannot be watched alone after all.
                if let Some(only) = self.only_psock()
                    && !only.registered.load(Ordering::Relaxed)
                {
                    let _ = self.register_all();
                }
                let timeout = deadline.map(|at| at.saturating_duration_since(Instant::now()));
                self.watch_epoll(&mut others, spin, timeout)
            }
        };
        self.watch.leave();
        if self.socket_count() > 1 {
            *left_at = Some(Instant::now());
        }
        let successor =
            own.is_some() && self.watch.absence_ns.load(Ordering::Relaxed) > SHORT_ABSENCE_NS;
        if let Some(basket) = basket {
            self.fill_basket(basket, &mut others);
        }
        self.hub
            .leave_watch(others.into_iter().map(ready), successor);
        own
    }

    /// The caller, which has the watch, is about to block in a receive on the only connection. False: it
    /// must not, it is wanted elsewhere.
    pub(crate) fn begin_watch_alone(&self) -> bool {
        self.watch.enter();
        let may = self.watch.begin_alone(&self.hub);
        if !may {
            self.watch.leave();
        }
        may
    }

    /// It is back.
    pub(crate) fn end_watch_alone(&self) {
        self.watch.end_alone();
        self.watch.leave();
    }

    /// Looks what is ready, without waiting, as a thread that has the watch. A connection that is
    /// in no epoll is looked at once: `looked` says whether it was.
    pub(crate) fn glance(self: &Arc<Self>, looked: &mut bool) -> Option<Arc<Psock>> {
        let mut own = None;
        let mut others = Vec::new();
        match self.only_psock() {
            Some(psock) if !psock.registered.load(Ordering::Relaxed) => {
                if !std::mem::replace(looked, true) && psock.claim.claim_idle() {
                    psock.edge.store(true, Ordering::Relaxed);
                    own = Some(psock);
                }
            }
            _ => own = self.harvest(&mut others, Some(Duration::ZERO), true),
        }
        self.hub.leave_watch(others.into_iter().map(ready), false);
        own
    }

    /// Looks for events beside a thread that has the watch at this moment: it may have looked just
    /// before they came, and an edge-triggered loop is not told of them twice.
    pub(crate) fn glance_beside(self: &Arc<Self>) -> Option<Arc<Psock>> {
        let mut others = Vec::new();
        let own = self.harvest(&mut others, Some(Duration::ZERO), false);
        if !others.is_empty() {
            let kick = self.hub.extend(others.into_iter().map(ready));
            self.after_push(kick);
        }
        own
    }

    /// Looks for events while the ready list keeps everybody busy, so that the connections in it
    /// do not starve the others.
    pub(crate) fn harvest_for_all(self: &Arc<Self>) {
        if let Some(psock) = self.glance_beside() {
            psock.release(true);
        }
    }

    /// The only connection, with its claim, if a thread may block in a receive on it.
    fn watchable_alone(&self, known: &mut Option<Known>) -> Option<Arc<Psock>> {
        let psock = match known {
            Some(known) if known.generation == self.generation() => known.psock.clone(),
            _ => {
                *known = None;
                self.only_psock()?
            }
        };
        if self.readiness.polled() > 0
            || !psock.can_be_watched_alone()
            || !sys::nudge_ready()
            || psock.is_wanted()
            || psock.has_ended()
            || psock.receive_disabled.load(Ordering::Relaxed)
            || !psock.claim.claim_idle()
        {
            return None;
        }
        if psock.registered.load(Ordering::Relaxed) && !self.unregister_only(&psock) {
            psock.release(true);
            return None;
        }
        Some(psock)
    }

    /// Blocks in a receive on the only connection.
    fn watch_alone(
        &self,
        psock: Arc<Psock>,
        spin: &mut Spin,
        deadline: Option<Instant>,
    ) -> Option<Arc<Psock>> {
        let mut rx = psock.rx();
        let (need, len) = match rx.step() {
            Step::Incomplete { need, len } if rx.must_wait() && !rx.has_returned() => (need, len),
            // There is something to do, or nothing to wait for.
            _ => {
                drop(rx);
                return Some(psock);
            }
        };
        psock.edge.store(false, Ordering::Relaxed);
        if self.spin {
            let mut fill = Fill::Nothing;
            spin.until(|| {
                fill = rx.fill(&psock, need, len, false);
                !matches!(fill, Fill::Nothing)
            });
            if !matches!(fill, Fill::Nothing) {
                drop(rx);
                return self.watched(psock, fill, deadline);
            }
        }
        if !rx.bytes().is_empty() {
            psock.begin_partial(rx.assembler.limits().assembly_deadline);
        }
        if !self.watch.begin_alone(&self.hub) {
            drop(rx);
            psock.release(true);
            return None;
        }
        // With a time limit, the wait is a call of its own: the socket's own time limit is the
        // program's, not ours to set.
        let in_time = match (deadline, rx.carrier()) {
            (Some(deadline), Some(carrier)) => wait_readable(carrier.as_fd(), deadline),
            _ => true,
        };
        let fill = if in_time {
            rx.fill(&psock, need, len, deadline.is_none())
        } else {
            Fill::Nothing
        };
        self.watch.end_alone();
        drop(rx);
        self.watched(psock, fill, deadline)
    }

    /// What came of watching a connection alone.
    fn watched(
        &self,
        psock: Arc<Psock>,
        fill: Fill,
        deadline: Option<Instant>,
    ) -> Option<Arc<Psock>> {
        match fill {
            Fill::Some => return Some(psock),
            // Interrupted, or the time is over, or the deadline of its message.
            Fill::Nothing => psock.release(psock.deadline_passed.load(Ordering::Relaxed)),
            Fill::HeldBack => {
                psock.edge.store(true, Ordering::Relaxed);
                psock.release(false);
                self.wait_for_bell(deadline);
            }
            Fill::End(reason) => {
                self.end_receiving(&psock, reason);
                psock.release(false);
            }
        }
        None
    }

    /// Nothing may be read for want of memory: waits until the bell brings the thread back.
    fn wait_for_bell(&self, deadline: Option<Instant>) {
        if self.hub.is_kicked() {
            return;
        }
        let mut fds = [PollFd::new(&self.watch.bell, PollFlags::IN)];
        let timeout = deadline.and_then(timespec_until);
        let _ = poll(&mut fds, timeout.as_ref());
        let _ = rustix::io::read(&self.watch.bell, &mut [0; 8]);
    }

    /// Waits in the epoll.
    fn watch_epoll(
        self: &Arc<Self>,
        others: &mut Vec<Arc<Psock>>,
        spin: &mut Spin,
        timeout: Option<Duration>,
    ) -> Option<Arc<Psock>> {
        if self.hub.is_kicked() {
            return None;
        }
        if self.spin {
            let mut own = None;
            if spin.until(|| {
                own = self.harvest(others, Some(Duration::ZERO), true);
                own.is_some() || self.hub.is_kicked()
            }) {
                return own;
            }
        }
        self.harvest(others, timeout, true)
    }

    /// Waits for events; the first connection and the others, all with their claims. `watches`: the
    /// caller has the watch. The bell is for it alone: who looked beside it and silenced the bell would
    /// leave it asleep, and known to be on its way, for ever.
    fn harvest(
        &self,
        others: &mut Vec<Arc<Psock>>,
        timeout: Option<Duration>,
        watches: bool,
    ) -> Option<Arc<Psock>> {
        let most = if self.socket_count() > 1 {
            HARVEST_SHARED
        } else {
            HARVEST
        };
        let timeout = timeout.map(timespec);
        let mut room = [const { MaybeUninit::uninit() }; HARVEST];
        let Ok((events, _)) = epoll::wait(&self.watch.epoll, &mut room[..most], timeout.as_ref())
        else {
            // Interrupted.
            return None;
        };
        let mut own: Option<Arc<Psock>> = None;
        let mut bell_rings = false;
        let events: &[epoll::Event] = events;
        let psocks = self.psocks();
        others.reserve(events.len());
        // Each is claimed and counted by a locked instruction, which waits for its line of memory alone:
        // so they are all called for before.
        let mut found = [None; AHEAD];
        for (at, event) in events.iter().enumerate() {
            use epoll::EventFlags;
            if at % AHEAD == 0 {
                for (place, event) in found.iter_mut().zip(&events[at..]) {
                    *place = psocks.get(ConnectionId(event.data.u64()));
                    if let Some(psock) = place {
                        psock.prefetch_for_claim();
                    }
                }
            }
            let Some(psock) = found[at % AHEAD] else {
                bell_rings |= event.data.u64() == BELL;
                continue;
            };
            let hung_up = EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR;
            // (A copy: the event is packed.)
            let flags = event.flags;
            if flags.intersects(hung_up | EventFlags::PRI) {
                psock.drain.store(true, Ordering::Relaxed);
                if flags.intersects(hung_up) {
                    self.ends.note_hung_up(psock.id);
                }
            }
            psock.edge.store(true, Ordering::Release);
            if psock.claim.claim_for_news() {
                if own.is_none() {
                    own = Some(Arc::clone(psock));
                } else {
                    others.push(Arc::clone(psock));
                }
            }
        }
        drop(psocks);
        if watches && bell_rings {
            let _ = rustix::io::read(&self.watch.bell, &mut [0; 8]);
        }
        own
    }
}

/// A connection whose claim the caller has, for the ready list.
fn ready(psock: Arc<Psock>) -> Ready {
    let pushes = psock.claim.release(true);
    debug_assert!(pushes, "it leaves work");
    Ready::Connection(psock)
}

/// Waits until the descriptor is readable; false when the time ran out or the wait was
/// interrupted.
fn wait_readable(fd: std::os::fd::BorrowedFd<'_>, deadline: Instant) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    let Some(timeout) = timespec_until(deadline) else {
        return false;
    };
    matches!(poll(&mut fds, Some(&timeout)), Ok(n) if n > 0)
}

fn timespec_until(deadline: Instant) -> Option<Timespec> {
    let left = deadline.saturating_duration_since(Instant::now());
    (!left.is_zero()).then(|| timespec(left))
}

fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}
