//! Sockets in somebody else's event loop.
//!
//! A socket's descriptor is an epoll of its own. In it are a *bell* (an eventfd), which rings while
//! the socket has messages in hand or some are ready for anybody, and, once somebody asked for the
//! descriptor, the multiplexor's epoll, which is readable when something has happened on a
//! connection. So it polls readable when a message can be taken, and early at most once for each
//! arrival: bytes that do not complete a message are read by the first `recv` that finds them, and
//! with that the multiplexor's epoll falls silent.
//!
//! Of several such sockets only one is woken by an arrival (`ring.rs`), or by what became ready
//! otherwise ([`Readiness::offer`]), and passes on what it does not take. It has to be one that sleeps,
//! which nobody sees from outside: a loop that takes one message at a time is at work, or asleep after
//! that. So where there are several, and where others wait until a socket asks again (order, keys), the
//! bell goes on ringing after a message. The loop comes once more, without having slept, and if it finds
//! nothing it is known to sleep. Every polled socket then sleeps and is known to, or will look. (To wake
//! all that might sleep, instead: 1.9 context switches a message with eight loops.)

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering, fence},
    },
};

use rustix::event::{EventfdFlags, PollFlags, epoll, eventfd};

use crate::{background, error::Result, mux::Mux, ring::Ring, socket::SocketState, sys};

/// What a multiplexor knows of those who poll.
pub(crate) struct Readiness {
    /// Sockets whose descriptor somebody asked for.
    polled: AtomicUsize,
    /// Threads that wait for any connection to send on.
    senders: AtomicUsize,
    writable: Mutex<Vec<Weak<Writable>>>,
    wants_writable: AtomicBool,
    /// Which of the polled sockets wakes for arrivals.
    pub(crate) ring: Ring<Arc<SocketState>>,
}

/// Counts a thread as waiting to send while it lives.
pub(crate) struct Sending<'a>(&'a AtomicUsize);

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Readiness {
    pub(crate) fn new() -> Self {
        Self {
            polled: AtomicUsize::new(0),
            senders: AtomicUsize::new(0),
            writable: Mutex::default(),
            wants_writable: AtomicBool::new(false),
            ring: Ring::new(),
        }
    }

    /// Sockets in somebody's event loop.
    pub(crate) fn polled(&self) -> usize {
        self.polled.load(Ordering::SeqCst)
    }

    /// Something is ready, and perhaps no thread is awake to take it: tells a socket that sleeps in
    /// its event loop. One that was told before passes on what it does not take.
    pub(crate) fn offer(&self, mux: &Mux) {
        // SYNC: with `offer_rest`: a socket that found a message sees what was made ready, or is not
        // seen as one that sleeps.
        fence(Ordering::SeqCst);
        let may = |socket: &SocketState| socket.poll.is_polled() && !socket.is_receive_disabled();
        if !self.ring.is_led() {
            // Nobody looks whether one that is told comes.
            for socket in mux.all_sockets() {
                if may(&socket) {
                    socket.poll.ring();
                }
            }
            return;
        }
        let sleeps = mux
            .find_socket(|socket| may(socket) && socket.poll.is_idle())
            // One that has taken a message when no other was polled yet may sleep, too.
            .or_else(|| mux.find_socket(|socket| may(socket) && !*socket.poll.rings()));
        if let Some(socket) = sleeps {
            socket.poll.ring();
        }
    }

    /// As above, if something is.
    pub(crate) fn offer_rest(&self, mux: &Mux) {
        if self.polled() == 0 {
            return;
        }
        // SYNC: with `offer`, after this socket was noted as one that does not sleep.
        fence(Ordering::SeqCst);
        if mux.hub.ready() > 0 {
            self.offer(mux);
        }
    }

    pub(crate) fn begin_sending(&self) -> Sending<'_> {
        self.senders.fetch_add(1, Ordering::SeqCst);
        Sending(&self.senders)
    }

    pub(crate) fn has_senders(&self) -> bool {
        self.senders.load(Ordering::SeqCst) > 0
    }

    pub(crate) fn wants_writable(&self) -> bool {
        self.wants_writable.load(Ordering::Relaxed)
    }

    /// Shows on every writable descriptor whether a send would be taken.
    pub(crate) fn update_writable(&self, mux: &Mux) {
        let mut all = self.writable.lock().unwrap_or_else(|e| e.into_inner());
        let can = mux.is_closed() || mux.can_send();
        all.retain(|writable| {
            let writable = writable.upgrade();
            if let Some(writable) = &writable {
                writable.set(can);
            }
            writable.is_some()
        });
    }

    /// Everybody is to look, and finds that it is closed.
    pub(crate) fn close(&self, mux: &Mux) {
        for socket in mux.all_sockets() {
            if socket.poll.is_polled() {
                socket.poll.ring();
            }
        }
        let all = self.writable.lock().unwrap_or_else(|e| e.into_inner());
        for writable in all.iter().filter_map(Weak::upgrade) {
            writable.set(true);
        }
    }
}

/// The descriptors of one socket.
pub(crate) struct Poll {
    epoll: OwnedFd,
    bell: OwnedFd,
    /// Whether the bell rings; changes together with it. (An atomic beside it once said so of a bell
    /// that had just been silenced, for ever.)
    rings: Mutex<bool>,
    /// Somebody asked for the descriptor.
    polled: OnceLock<()>,
    /// Polled, and its last receive found nothing.
    idle: AtomicBool,
    writable: OnceLock<Arc<Writable>>,
}

impl Poll {
    pub(crate) fn new() -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&epoll, &bell, data, epoll::EventFlags::IN)?;
        Ok(Self {
            epoll,
            bell,
            rings: Mutex::new(false),
            polled: OnceLock::new(),
            idle: AtomicBool::new(false),
            writable: OnceLock::new(),
        })
    }

    /// The descriptor; from the first call on the socket counts as polled.
    pub(crate) fn fd(
        &self,
        mux: &Mux,
        socket: &Arc<SocketState>,
        must_ask_again: bool,
    ) -> BorrowedFd<'_> {
        self.polled.get_or_init(|| {
            self.idle.store(true, Ordering::SeqCst);
            mux.readiness.polled.fetch_add(1, Ordering::SeqCst);
            mux.break_solo();
            mux.empty_baskets();
            let registered = mux.register_all().is_ok();
            let data = epoll::EventData::new_u64(1);
            let nested = epoll::add(&self.epoll, mux.watch.epoll(), data, epoll::EventFlags::IN);
            mux.readiness.ring.join(socket.clone());
            mux.bring_watcher_back();
            if must_ask_again
                || mux.has_for(socket)
                // What another walks through is for who asks. (With several sockets no walk begins
                // from now on.)
                || mux.leases.load(Ordering::SeqCst) > 0
                || mux.is_closed()
                || !registered
                || nested.is_err()
            {
                // Early at worst, never late: also where the system has no room for the wait.
                self.ring();
            }
        });
        self.epoll.as_fd()
    }

    pub(crate) fn is_polled(&self) -> bool {
        self.polled.get().is_some()
    }

    /// Whether arrivals at the multiplexor make the descriptor readable; false when the system
    /// refused the change.
    pub(crate) fn enable(&self, epoll: &OwnedFd, enabled: bool) -> bool {
        let flags = if enabled {
            epoll::EventFlags::IN
        } else {
            epoll::EventFlags::empty()
        };
        epoll::modify(&self.epoll, epoll, epoll::EventData::new_u64(1), flags).is_ok()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.idle.load(Ordering::SeqCst)
    }

    fn rings(&self) -> MutexGuard<'_, bool> {
        self.rings.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Makes the descriptor readable.
    pub(crate) fn ring(&self) {
        let mut rings = self.rings();
        if !std::mem::replace(&mut *rings, true) {
            // Its counter is 0 or 1: it takes one more.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    fn hush(&self) {
        let mut rings = self.rings();
        if std::mem::replace(&mut *rings, false) {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
    }

    /// A receive on a polled socket is over. `again`: it has more in hand, or what others wait for.
    pub(crate) fn after_recv(
        &self,
        mux: &Arc<Mux>,
        socket: &SocketState,
        found: bool,
        again: bool,
    ) {
        let ring = &mux.readiness.ring;
        if socket.is_receive_disabled() && !mux.is_closed() {
            self.idle.store(false, Ordering::SeqCst);
            ring.stand_aside(mux.watch.epoll(), socket.index);
            if again {
                self.ring();
            } else {
                self.hush();
            }
            return;
        }
        self.idle.store(!found, Ordering::SeqCst);
        if ring.after_recv(mux.watch.epoll(), socket.index, found) {
            background::get().look_at_ring(mux);
        }
        let again = again || (found && mux.readiness.polled() > 1);
        if again || mux.has_for(socket) || mux.is_closed() {
            self.ring();
            return;
        }
        self.hush();
        // What became ready just before the bell fell silent.
        if mux.has_for(socket) || mux.is_closed() {
            self.ring();
        }
    }

    /// The socket is closed.
    pub(crate) fn close(&self, mux: &Mux, socket: &SocketState) {
        if self.is_polled() {
            mux.readiness.ring.leave(mux.watch.epoll(), socket.index);
            self.idle.store(false, Ordering::SeqCst);
            mux.readiness.polled.fetch_sub(1, Ordering::SeqCst);
            // It may have been told of it.
            mux.readiness.offer_rest(mux);
        }
    }

    /// The descriptor that polls writable; made at the first call.
    pub(crate) fn writable_fd(&self, mux: &Mux) -> Result<BorrowedFd<'_>> {
        if self.writable.get().is_none() {
            let writable = Arc::new(Writable::new()?);
            if self.writable.set(writable.clone()).is_ok() {
                let mut all = mux
                    .readiness
                    .writable
                    .lock()
                    .unwrap_or_else(|e| e.into_inner());
                all.push(Arc::downgrade(&writable));
                drop(all);
                mux.readiness.wants_writable.store(true, Ordering::SeqCst);
                mux.readiness.update_writable(mux);
            }
        }
        match self.writable.get() {
            Some(writable) => Ok(writable.fd.as_fd()),
            None => Err(crate::Error::Closed),
        }
    }
}

/// An eventfd that polls writable when told so: a full one is not.
struct Writable {
    fd: OwnedFd,
    full: Mutex<bool>,
}

impl Writable {
    fn new() -> Result<Self> {
        Ok(Self {
            fd: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            full: Mutex::new(false),
        })
    }

    fn set(&self, writable: bool) {
        /// The largest count an eventfd holds.
        const FULL: u64 = u64::MAX - 1;
        let mut full = self.full.lock().unwrap_or_else(|e| e.into_inner());
        if *full == writable {
            *full = !writable;
            let _ = if writable {
                rustix::io::read(&self.fd, &mut [0; 8])
            } else {
                rustix::io::write(&self.fd, &FULL.to_ne_bytes())
            };
        }
    }
}

impl Mux {
    /// The background thread looks whether messages are hidden behind a loop that does not come;
    /// whether to look again.
    pub(crate) fn look_at_ring(&self) -> bool {
        let epoll = self.watch.epoll();
        let waits = || self.hub.ready() > 0 || sys::polls(epoll.as_fd(), PollFlags::IN);
        self.readiness.ring.look(epoll, waits)
    }

    /// Whether something is ready that this socket could take.
    fn has_for(&self, socket: &SocketState) -> bool {
        self.hub.ready() > 0 || self.steering.has_for(socket)
    }
}

/// Whether the socket is to look at its bell: for the receive path.
impl SocketState {
    pub(crate) fn is_receive_disabled(&self) -> bool {
        self.receive_disabled.load(Ordering::Relaxed)
    }
}
