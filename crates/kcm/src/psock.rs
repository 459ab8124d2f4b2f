//! The state of one attached connection; the kernel calls it a psock.

use std::{
    mem,
    ops::Deref,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use kcm_frame::{Assembler, Framing, Limits, Step};

use crate::{
    attach::Attached,
    claim::Claim,
    connection::ConnectionId,
    event::EndReason,
    latch::{Latch, Latched},
    message::Message,
    mux::Mux,
    receive::Rx,
    socket::SocketState,
    sync::pause,
    sys,
    transmit::Transmit,
    transport::Carrier,
};

/// In the order in which memory is read. With thousands of connections the caches hold none of them, and a
/// message that comes alone asks for the last fields of `tx`, for what follows, and for the first ones of
/// `rx`: five lines in a row, and not twelve here and there.
#[repr(C, align(64))]
pub(crate) struct Psock {
    pub(crate) id: ConnectionId,
    /// The lowest number that was free in the multiplexor.
    pub(crate) index: usize,
    /// The assembly deadline in ns; 0: none.
    deadline_ns: AtomicU64,
    wanted: AtomicUsize,
    pub(crate) tx: Transmit,
    pub(crate) mux: Arc<Mux>,
    /// Who works on what it receives.
    pub(crate) claim: Claim,
    /// Something may have come that was not read yet. Set before [`Claim::notify`], cleared before
    /// reading.
    pub(crate) edge: AtomicBool,
    /// An edge may be missing: the peer has hung up, or has sent an urgent byte, at which a read
    /// stops short. From then on every read goes on until there is nothing more.
    pub(crate) drain: AtomicBool,
    /// That of the message at the front, or of the last that was there.
    pub(crate) class: AtomicU8,
    /// The next message waits for the end of work on the previous one.
    pub(crate) ordered: AtomicBool,
    /// It waits so.
    held_for_order: AtomicBool,
    /// Nothing of it is to be received.
    pub(crate) receive_disabled: AtomicBool,
    /// The assembly deadline of that message has passed.
    pub(crate) deadline_passed: AtomicBool,
    /// A timer for the deadline is set.
    pub(crate) deadline_set: AtomicBool,
    /// It is a socket, on which a thread can block.
    pub(crate) is_socket: bool,
    /// The peer has closed its direction, and may not have got all its answers.
    pub(crate) half_closed: AtomicBool,
    /// The last answer it may have waited for is sent, and somebody will look.
    pub(crate) end_look_set: AtomicBool,
    /// Its descriptor is in the multiplexor's epoll.
    pub(crate) registered: AtomicBool,
    /// Its end has been told.
    ended: AtomicBool,
    /// When, on the multiplexor's clock of watched time, the unfinished message at the front
    /// began; [`NO_PARTIAL`] without one.
    pub(crate) partial_since_ns: AtomicU64,
    pub(crate) counters: PsockCounters,
    rx: Latch<Rx>,
    /// References that are an [`Observer`].
    observers: AtomicUsize,
    /// Its number in the background thread's epoll.
    pub(crate) background_key: OnceLock<u64>,
    /// Its place in the process-wide list of attached streams.
    pub(crate) attached: Mutex<Option<Attached>>,
}

/// `Psock::partial_since_ns` of a connection that is between two messages.
pub(crate) const NO_PARTIAL: u64 = u64::MAX;

/// A reference by which nobody works on its messages: it keeps no half-closed connection open.
pub(crate) struct Observer(Arc<Psock>);

impl Observer {
    pub(crate) fn new(psock: Arc<Psock>) -> Self {
        psock.observers.fetch_add(1, Ordering::SeqCst);
        Self(psock)
    }
}

impl Deref for Observer {
    type Target = Arc<Psock>;

    fn deref(&self) -> &Arc<Psock> {
        &self.0
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        self.0.observers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// What it received. (What was taken to be sent: [`Transmit::taken`].)
#[derive(Default)]
pub(crate) struct PsockCounters {
    pub(crate) rx_messages: AtomicU64,
    pub(crate) rx_bytes: AtomicU64,
    pub(crate) need_more: AtomicU64,
}

impl Psock {
    #[expect(clippy::too_many_arguments, reason = "called once")]
    pub(crate) fn new(
        id: ConnectionId,
        index: usize,
        mux: Arc<Mux>,
        carrier: Arc<Carrier>,
        framing: &Framing,
        limits: Limits,
        already_read: &[u8],
        attached: Option<Attached>,
    ) -> Self {
        let assembler = Assembler::new(framing, limits);
        let this = Self {
            id,
            claim: Claim::new(),
            edge: AtomicBool::new(true),
            drain: AtomicBool::new(false),
            registered: AtomicBool::new(false),
            ordered: AtomicBool::new(mux.ordered),
            class: AtomicU8::new(0),
            partial_since_ns: AtomicU64::new(NO_PARTIAL),
            deadline_passed: AtomicBool::new(false),
            deadline_set: AtomicBool::new(false),
            counters: PsockCounters::default(),
            ended: AtomicBool::new(false),
            attached: Mutex::new(attached),
            is_socket: carrier.is_socket(),
            deadline_ns: AtomicU64::new(0),
            background_key: OnceLock::new(),
            wanted: AtomicUsize::new(0),
            held_for_order: AtomicBool::new(false),
            receive_disabled: AtomicBool::new(false),
            half_closed: AtomicBool::new(false),
            end_look_set: AtomicBool::new(false),
            observers: AtomicUsize::new(0),
            index,
            rx: Latch::new(Rx::new(carrier.clone(), assembler, already_read)),
            tx: Transmit::new(carrier, framing, mux.limits.send_buffer_bytes),
            mux,
        };
        this.set_deadline(limits.assembly_deadline);
        this
    }

    /// The time that a message has to become whole.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        let ns = self.deadline_ns.load(Ordering::Relaxed);
        (ns > 0).then(|| Duration::from_nanos(ns))
    }

    pub(crate) fn set_deadline(&self, deadline: Option<Duration>) {
        let ns = deadline.map_or(0, |d| {
            u64::try_from(d.as_nanos()).unwrap_or(u64::MAX).max(1)
        });
        self.deadline_ns.store(ns, Ordering::Relaxed);
    }

    /// Its claim and its count of references will be changed.
    #[inline]
    pub(crate) fn prefetch_for_claim(self: &Arc<Self>) {
        sys::prefetch_line(&raw const self.claim);
        // (The counts stand in a line of their own, before the value.)
        let value = (&raw const **self).cast::<u8>();
        sys::prefetch_line(value.wrapping_sub(sys::LINE_BYTES));
    }

    /// A message that came alone will be taken from it.
    #[inline]
    pub(crate) fn prefetch_for_take(&self) {
        /// Of 13 in all.
        const LINES: usize = 5;
        let first = mem::offset_of!(Self, mux) / sys::LINE_BYTES;
        let start = (&raw const *self).cast::<u8>();
        for line in first..first + LINES {
            sys::prefetch_line(start.wrapping_add(line * sys::LINE_BYTES));
        }
    }

    /// Whether something may have come; who asks looks now.
    #[inline]
    pub(crate) fn take_edge(&self) -> bool {
        if !self.is_socket {
            return self.edge.swap(false, Ordering::Acquire);
        }
        // SYNC: with the system's lock of a socket, which a read takes after this store, and what arrives
        // takes before it is told of: so nothing of which is told overtakes this store, unread.
        let edge = self.edge.load(Ordering::Acquire);
        if edge {
            self.edge.store(false, Ordering::Relaxed);
        }
        edge
    }

    /// The receiving side. Held over a receive that blocks when its thread watches this
    /// connection alone: who is not that thread brings it back first ([`Psock::lock_rx`]).
    #[inline]
    pub(crate) fn rx(&self) -> Latched<'_, Rx> {
        pause();
        self.rx.lock()
    }

    /// The same, if nobody else has it at this moment.
    pub(crate) fn try_rx(&self) -> Option<Latched<'_, Rx>> {
        pause();
        self.rx.try_lock()
    }

    /// The receiving side, for others than the thread that has the claim.
    pub(crate) fn lock_rx(&self) -> Latched<'_, Rx> {
        pause();
        self.wanted.fetch_add(1, Ordering::SeqCst);
        let rx = loop {
            if let Some(rx) = self.rx.try_lock() {
                break rx;
            }
            self.mux.bring_watcher_back();
            thread::yield_now();
        };
        self.wanted.fetch_sub(1, Ordering::SeqCst);
        rx
    }

    /// Whether somebody else than the thread that has the claim waits for the receiving side: no
    /// thread may block in a receive with it.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst) > 0
    }

    /// Bytes may have come: has a thread look at the connection.
    pub(crate) fn notify(self: &Arc<Self>) {
        pause();
        self.edge.store(true, Ordering::Release);
        if self.claim.notify() {
            // (Where nobody will ask, nothing is to be forgotten either: nobody had work here. The
            // caller may have the receiving side, when memory is given back that others wait for.)
            self.mux.push_ready(self.clone());
        } else {
            // The thread that has the claim may be blocked in a receive.
            self.mux.bring_watcher_back();
        }
    }

    /// The thread that has the claim is done; `more` says whether it leaves work.
    pub(crate) fn release(self: &Arc<Self>, more: bool) {
        pause();
        if self.claim.release(more) && !self.mux.push_ready(self.clone()) {
            self.forget_returned();
        }
    }

    /// A message that was in a socket's hand stands at the front again: for whoever asks next. That
    /// holds for a connection that has left the multiplexor too.
    pub(crate) fn give_back(self: &Arc<Self>, message: Message, socket: &SocketState) {
        let key = message.key();
        let mut rx = self.lock_rx();
        // Who walks through a burst of it is not to go on before this one.
        let revoked = self.mux.revoke_under(self, &mut rx);
        let message = match key {
            Some(key) => self.mux.steering.give_back(key, message),
            None => Some(message),
        };
        if let Some(message) = message {
            rx.return_message(message);
        }
        if let Some(label) = rx.returned_label() {
            self.class.store(label.class, Ordering::Relaxed);
        }
        drop(rx);
        self.offer_returned(revoked);
        if let Some(key) = key {
            self.mux.put_key_down(key, socket);
        }
    }

    /// Messages have been put back; `claimed`: the caller has the claim, from a lease.
    pub(crate) fn offer_returned(self: &Arc<Self>, claimed: bool) {
        if claimed {
            self.release(true);
        } else if self.claim.notify() {
            self.mux.push_ready_first(self.clone());
        } else {
            self.mux.bring_watcher_back();
        }
        // Who closes the multiplexor may not have found it among what is ready.
        if self.mux.is_closed() {
            self.forget_returned();
        }
    }

    /// Nobody will ask for what was given back. (It keeps its connection alive: it must not keep
    /// one that is gone.)
    pub(crate) fn forget_returned(&self) {
        let returned = self.lock_rx().take_returned();
        drop(returned);
    }

    /// A socket has a message of this ordered connection, and its claim.
    pub(crate) fn hold_for_order(&self) {
        self.held_for_order.store(true, Ordering::Release);
    }

    /// The next message of the ordered connection may go out.
    pub(crate) fn release_order(self: &Arc<Self>) {
        if self.held_for_order.swap(false, Ordering::AcqRel) {
            self.let_go();
        }
    }

    /// The thread that has the claim is done; whether it leaves work is to be seen.
    pub(crate) fn let_go(self: &Arc<Self>) {
        let more = self.leaves_work(&mut self.rx());
        self.release(more);
    }

    /// Whether the thread that has the claim would leave work, if it gave the claim back now. One
    /// look ahead, so that nobody is woken for half a message, and its class is known.
    pub(crate) fn leaves_work(self: &Arc<Self>, rx: &mut Rx) -> bool {
        let mut whole = false;
        if !rx.bytes().is_empty() {
            match rx.step() {
                Step::Incomplete { .. } => {}
                Step::Fault(_) => whole = true,
                Step::Message(frame) => {
                    whole = true;
                    self.class.store(frame.class, Ordering::Relaxed);
                }
            }
        }
        if let Some(label) = rx.returned_label() {
            self.class.store(label.class, Ordering::Relaxed);
        }
        let more = whole || rx.has_returned() || self.edge.load(Ordering::Relaxed);
        if !more {
            rx.settle(self);
            if !rx.bytes().is_empty() {
                self.begin_partial(rx.assembler.limits().assembly_deadline);
            }
        }
        more
    }

    /// Has a socket that walks through a burst of it give back what it has not come to.
    pub(crate) fn take_back_lease(self: &Arc<Self>) {
        if self.mux.revoke_lease_of(self) {
            self.release(true);
        }
    }

    /// Changes how it receives: what a socket has leased, by the old ways, is taken back.
    pub(crate) fn change_rx(self: &Arc<Self>, change: impl FnOnce(&mut Rx)) {
        let mut rx = self.lock_rx();
        let revoked = self.mux.revoke_under(self, &mut rx);
        change(&mut rx);
        drop(rx);
        if revoked {
            self.release(true);
        }
    }

    /// Whether its end was told.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Its stream is given back: no end is to be told of it any more. False: it was told.
    pub(crate) fn leave_untold(&self) -> bool {
        !self.ended.swap(true, Ordering::AcqRel)
    }

    /// Tells the end of the connection, the first time.
    pub(crate) fn tell_end(self: &Arc<Self>, reason: EndReason) {
        if !self.ended.swap(true, Ordering::AcqRel) {
            self.mux.tell(self, reason);
        }
    }

    /// Whether a message of it is in a program's hands, or in a socket's, and may still be answered.
    /// The caller has one reference, and so has the multiplexor's list. Others that come and go can
    /// make it seem so for a moment.
    pub(crate) fn is_in_use(self: &Arc<Self>) -> bool {
        const CALLER_AND_LIST: usize = 2;
        // Two looks, for an observer may come or go between them and the count of all.
        let before = self.observers.load(Ordering::SeqCst);
        let references = Arc::strong_count(self);
        let observers = before.min(self.observers.load(Ordering::SeqCst));
        references > CALLER_AND_LIST + observers
    }

    /// Whether it was sent as many messages as it sent: often, all its answers.
    pub(crate) fn is_answered(&self) -> bool {
        let (sent, _) = self.tx.taken();
        sent >= self.counters.rx_messages.load(Ordering::Relaxed)
    }

    /// An unfinished message stands at the front, and nothing more is there: its time runs.
    pub(crate) fn begin_partial(self: &Arc<Self>, deadline: Option<Duration>) {
        let Some(deadline) = deadline else { return };
        if self.partial_since_ns.load(Ordering::Relaxed) != NO_PARTIAL {
            return;
        }
        let now_ns = self.mux.watched_ns();
        self.partial_since_ns.store(now_ns, Ordering::Relaxed);
        if !self.deadline_set.swap(true, Ordering::AcqRel) {
            crate::background::get().deadline(self, deadline);
        }
    }

    /// The message at the front is whole, or there is none.
    pub(crate) fn end_partial(&self) {
        if self.partial_since_ns.load(Ordering::Relaxed) != NO_PARTIAL {
            self.partial_since_ns.store(NO_PARTIAL, Ordering::Relaxed);
            self.deadline_passed.store(false, Ordering::Relaxed);
        }
    }
}
