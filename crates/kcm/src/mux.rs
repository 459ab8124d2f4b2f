//! The inside of a multiplexor: its connections, its sockets, and what joins them.

use std::{
    sync::{
        Arc, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use kcm_frame::{Framing, Limits};
use slab::Slab;

use crate::{
    background,
    basket::Baskets,
    builder::{Builder, MuxLimits},
    connection::ConnectionId,
    ends::Ends,
    error::{Error, Result},
    event::EndReason,
    gather,
    hub::{Hub, Kick},
    memory::Memory,
    psock::Psock,
    psocks::Psocks,
    readiness::Readiness,
    socket::{SocketState, SocketType},
    solo::Solo,
    stats::MuxCounters,
    steering::{Ready, Steering},
    sync::pause,
    unaddressed::Unaddressed,
    watch::Watch,
};

/// How long a connection whose peer has closed its direction waits for an answer while nobody has a
/// message of it. Long enough for a program that remembers the id and answers later; short, because
/// most such peers are simply gone.
pub(crate) const HALF_CLOSE_GRACE: Duration = Duration::from_secs(1);

pub(crate) struct Mux {
    pub(crate) hub: Hub<Ready>,
    pub(crate) watch: Watch,
    pub(crate) solo: Solo<Arc<Psock>>,
    pub(crate) readiness: Readiness,
    pub(crate) memory: Memory,
    pub(crate) steering: Steering,
    pub(crate) limits: MuxLimits,
    pub(crate) framing: Framing,
    pub(crate) message_limits: Limits,
    pub(crate) socket_type: SocketType,
    pub(crate) spin: bool,
    pub(crate) sticky_send: bool,
    pub(crate) ordered: bool,
    pub(crate) connect_wait: Duration,
    pub(crate) linger: Duration,
    psocks: RwLock<Psocks>,
    /// Length of `psocks`, to be read without the lock.
    psock_count: AtomicUsize,
    /// Changes with the list.
    generation: AtomicU64,
    sockets: RwLock<Slab<Arc<SocketState>>>,
    socket_count: AtomicUsize,
    /// Sockets that hold a lease.
    pub(crate) leases: AtomicUsize,
    pub(crate) baskets: Baskets,
    /// Takes until the next lease may be given, after one was revoked.
    pub(crate) lease_holdoff: AtomicU32,
    pub(crate) ends: Ends,
    closed: AtomicBool,
    pub(crate) counters: MuxCounters,
    pub(crate) unaddressed: Unaddressed,
    /// Handles (multiplexors and sockets) that keep it open.
    handles: AtomicUsize,
}

impl Mux {
    pub(crate) fn new(builder: Builder) -> Result<Arc<Self>> {
        let watch = Watch::new()?;
        let mux = Arc::new(Self {
            hub: Hub::by_class(Ready::class),
            steering: Steering::new(builder.key_patience),
            readiness: Readiness::new(),
            watch,
            solo: Solo::new(),
            memory: Memory::new(builder.mux_limits.max_memory_bytes),
            limits: MuxLimits {
                // With 0 there would be room for no message, ever.
                send_buffer_bytes: builder.mux_limits.send_buffer_bytes.max(1),
                ..builder.mux_limits
            },
            framing: builder.framing,
            message_limits: builder.limits,
            socket_type: builder.socket_type,
            spin: builder.spin,
            sticky_send: builder.sticky_send,
            ordered: builder.ordered,
            connect_wait: builder.connect_wait,
            linger: builder.linger,
            psocks: RwLock::default(),
            psock_count: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            sockets: RwLock::default(),
            socket_count: AtomicUsize::new(0),
            leases: AtomicUsize::new(0),
            baskets: Baskets::new(),
            lease_holdoff: AtomicU32::new(0),
            ends: Ends::new(),
            closed: AtomicBool::new(false),
            counters: MuxCounters::default(),
            unaddressed: Unaddressed::default(),
            handles: AtomicUsize::new(0),
        });
        crate::stats::register(&mux);
        Ok(mux)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn psock_count(&self) -> usize {
        self.psock_count.load(Ordering::SeqCst)
    }

    /// Another number whenever a connection has come or gone.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    pub(crate) fn socket_count(&self) -> usize {
        self.socket_count.load(Ordering::Relaxed)
    }

    // Connections.

    /// Adds a connection; `make` gets its id.
    pub(crate) fn add_psock(
        self: &Arc<Self>,
        make: impl FnOnce(ConnectionId, usize) -> Result<Arc<Psock>>,
    ) -> Result<Arc<Psock>> {
        pause();
        let mut psocks = self.psocks.write().unwrap_or_else(|e| e.into_inner());
        if self.is_closed() {
            return Err(Error::Closed);
        }
        if psocks.len() >= self.limits.max_connections {
            return Err(Error::LimitReached {
                limit: "max_connections",
                value: self.limits.max_connections,
            });
        }
        let (id, index) = psocks.next();
        let psock = make(id, index)?;
        // The only connection is watched directly, and in no epoll, unless it must be.
        let alone = psocks.is_empty() && self.readiness.polled() == 0;
        if !alone || !psock.can_be_watched_alone() {
            // All others are in it, except perhaps one that was alone.
            if let [other] = psocks.row() {
                self.watch.register(other)?;
            }
            self.watch.register(&psock)?;
        }
        psocks.insert(psock.clone());
        // SYNC: sequentially consistent with `Mux::lease`: a walk without limit sees this connection,
        // or is seen below.
        self.psock_count.store(psocks.len(), Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::Relaxed);
        let joins_one = psocks.len() == 2;
        drop(psocks);
        if joins_one {
            self.end_lone_walks();
        }
        pause();
        self.counters.attach.fetch_add(1, Ordering::Relaxed);
        // Somebody may be waiting for another connection alone, or for this one already.
        psock.notify();
        self.bring_watcher_back();
        self.unaddressed.has_changed();
        self.send_stranded(&psock);
        self.sendable();
        Ok(psock)
    }

    /// Takes a connection out of the list.
    pub(crate) fn remove_psock(&self, id: ConnectionId) -> Option<Arc<Psock>> {
        pause();
        let mut psocks = self.psocks.write().unwrap_or_else(|e| e.into_inner());
        let psock = psocks.remove(id)?;
        self.watch.unregister(&psock);
        self.ends.forget(id);
        self.psock_count.store(psocks.len(), Ordering::SeqCst);
        self.generation.fetch_add(1, Ordering::Relaxed);
        drop(psocks);
        self.counters.unattach.fetch_add(1, Ordering::Relaxed);
        self.counters.absorb(&psock.counters);
        psock.tx.count_as_gone(&psock);
        self.sendable();
        psock
            .attached
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take();
        Some(psock)
    }

    pub(crate) fn psock(&self, id: ConnectionId) -> Result<Arc<Psock>> {
        self.psocks()
            .get(id)
            .cloned()
            .ok_or(Error::NoSuchConnection)
    }

    pub(crate) fn all_psocks(&self) -> Vec<Arc<Psock>> {
        self.psocks().row().to_vec()
    }

    /// The only connection, if there is just one; `alone` is called with the list locked.
    pub(crate) fn only_psock(&self) -> Option<Arc<Psock>> {
        if self.psock_count() != 1 {
            return None;
        }
        match self.psocks().row() {
            [only] => Some(only.clone()),
            _ => None,
        }
    }

    /// Takes the only connection out of the epoll; false when it is not alone any more.
    pub(crate) fn unregister_only(&self, psock: &Arc<Psock>) -> bool {
        let psocks = self.psocks.write().unwrap_or_else(|e| e.into_inner());
        let alone = matches!(psocks.row(), [only] if Arc::ptr_eq(only, psock))
            && self.readiness.polled() == 0;
        if alone {
            self.watch.unregister(psock);
        }
        alone
    }

    /// Puts all connections into the epoll.
    pub(crate) fn register_all(&self) -> Result<()> {
        let psocks = self.psocks.write().unwrap_or_else(|e| e.into_inner());
        (psocks.row().iter()).try_for_each(|psock| self.watch.register(psock))
    }

    pub(crate) fn psocks(&self) -> RwLockReadGuard<'_, Psocks> {
        pause();
        self.psocks.read().unwrap_or_else(|e| e.into_inner())
    }

    // Receiving.

    /// A connection has work for a thread that receives. False: closed, so that nobody will ask.
    pub(crate) fn push_ready(&self, psock: Arc<Psock>) -> bool {
        self.push(Ready::Connection(psock))
    }

    /// A connection has messages that were given back: older than others.
    pub(crate) fn push_ready_first(&self, psock: Arc<Psock>) {
        self.pushed(self.hub.push_front(Ready::Connection(psock)));
    }

    pub(crate) fn push(&self, ready: Ready) -> bool {
        self.pushed(self.hub.push(ready))
    }

    fn pushed(&self, result: std::result::Result<Kick, Ready>) -> bool {
        let Ok(kick) = result else { return false };
        self.after_push(kick);
        true
    }

    pub(crate) fn after_push(&self, kick: Kick) {
        if kick == Kick::Watcher {
            self.watch.bring_back(&self.hub);
        }
        if self.readiness.polled() > 0 {
            self.readiness.offer(self);
        }
    }

    /// Makes the thread that watches look anew at what it waits for.
    pub(crate) fn bring_watcher_back(&self) {
        if self.hub.kick() == Kick::Watcher {
            self.watch.bring_back(&self.hub);
        }
    }

    /// Time during which somebody waited for messages, in ns. Assembly deadlines are measured on
    /// it: they stand still while nobody would read what a peer sends.
    pub(crate) fn watched_ns(&self) -> u64 {
        self.watch.watched_ns(self.readiness.polled() > 0)
    }

    // The end of connections.

    /// The receiving side of a connection is at its end: nothing more will come.
    pub(crate) fn receiving_ended(&self, psock: &Arc<Psock>, reason: EndReason) {
        match reason {
            EndReason::Eof | EndReason::EofInMessage { .. } if !psock.tx.is_over() => {
                psock.tell_end(reason);
                psock.half_closed.store(true, Ordering::Release);
                psock.tx.is_half_closed();
                if !self.finish_half_closed(psock) {
                    background::get().half_closed(psock);
                }
            }
            _ => psock.tx.abort(psock, reason),
        }
    }

    /// The peer has closed its direction. Once it has its answers, so do we: as many as it sent
    /// messages, and those that who has one of these still sends.
    pub(crate) fn finish_half_closed(&self, psock: &Arc<Psock>) -> bool {
        let done = psock.is_answered() && psock.tx.has_sent_all() && !psock.is_in_use();
        if done {
            self.remove_and_close(psock);
        }
        done
    }

    /// Takes a connection out of the list and closes it: what is queued goes out within the linger
    /// time, and so does what a thread sends that found it in the list just before.
    pub(crate) fn remove_and_close(&self, psock: &Arc<Psock>) {
        if self.remove_psock(psock.id).is_some() && !psock.tx.close(psock) {
            background::get().linger(psock, self.linger);
        }
    }

    /// Closes one connection: what is queued goes out within the linger time.
    pub(crate) fn close_psock(&self, psock: &Arc<Psock>) {
        gather::flush_before(psock);
        psock.tell_end(EndReason::Closed);
        psock.lock_rx().stop(psock);
        psock.forget_returned();
        self.steering.forget(psock.id);
        self.remove_and_close(psock);
        psock.notify();
    }

    // Sockets.

    pub(crate) fn add_socket(
        &self,
        state: impl FnOnce(usize) -> SocketState,
    ) -> Result<Arc<SocketState>> {
        let mut sockets = self.sockets.write().unwrap_or_else(|e| e.into_inner());
        if self.is_closed() {
            return Err(Error::Closed);
        }
        if sockets.len() >= self.limits.max_sockets {
            return Err(Error::LimitReached {
                limit: "max_sockets",
                value: self.limits.max_sockets,
            });
        }
        let entry = sockets.vacant_entry();
        let state = Arc::new(state(entry.key()));
        entry.insert(state.clone());
        self.socket_count.store(sockets.len(), Ordering::Relaxed);
        Ok(state)
    }

    pub(crate) fn remove_socket(&self, index: usize) {
        let mut sockets = self.sockets.write().unwrap_or_else(|e| e.into_inner());
        if sockets.contains(index) {
            sockets.remove(index);
        }
        self.socket_count.store(sockets.len(), Ordering::Relaxed);
    }

    pub(crate) fn socket_state(&self, index: usize) -> Option<Arc<SocketState>> {
        let sockets = self.sockets.read().unwrap_or_else(|e| e.into_inner());
        sockets.get(index).cloned()
    }

    /// The first socket of which this holds.
    pub(crate) fn find_socket(
        &self,
        holds: impl Fn(&SocketState) -> bool,
    ) -> Option<Arc<SocketState>> {
        let sockets = self.sockets.read().unwrap_or_else(|e| e.into_inner());
        let found = sockets.iter().find(|(_, socket)| holds(socket))?;
        Some(found.1.clone())
    }

    pub(crate) fn all_sockets(&self) -> Vec<Arc<SocketState>> {
        let sockets = self.sockets.read().unwrap_or_else(|e| e.into_inner());
        sockets.iter().map(|(_, socket)| socket.clone()).collect()
    }

    // The end of the multiplexor.

    pub(crate) fn add_handle(&self) {
        self.handles.fetch_add(1, Ordering::Relaxed);
    }

    /// A multiplexor or socket handle is gone; with the last one everything closes.
    pub(crate) fn drop_handle(&self) {
        if self.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.close();
        }
    }

    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(background) = background::if_started() {
            background.stop_listening(self);
        }
        let (kick, ready) = self.hub.close();
        if kick == Kick::Watcher {
            self.watch.bring_back(&self.hub);
        }
        for ready in ready {
            if let Ready::Connection(psock) = ready {
                psock.forget_returned();
            }
        }
        self.steering.close();
        for psock in self.all_psocks() {
            self.close_psock(&psock);
        }
        self.readiness.close(self);
        self.unaddressed.has_changed();
        self.ends.close();
    }
}
