//! Counters: a snapshot for programs, and the text of the kernel's `/proc/net/kcm` and
//! `/proc/net/kcm_stats`, in its columns, with right values where the kernel's are wrong (the
//! swapped, never summed and doubly counted ones are listed in `docs/semantics.md`).

use std::{
    fmt::Write,
    os::fd::AsFd,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use kcm_frame::Fault;

use crate::{
    connection::ConnectionId,
    event::EndReason,
    mux::Mux,
    psock::{NO_PARTIAL, Psock, PsockCounters},
    socket::SocketState,
};

/// Messages and bytes, both ways.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages received: given to a socket.
    pub rx_messages: u64,
    /// Bytes of them, headers included.
    pub rx_bytes: u64,
    /// Messages taken to be sent.
    pub tx_messages: u64,
    /// Bytes of them, headers included.
    pub tx_bytes: u64,
}

/// One socket.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct SocketStats {
    /// The lowest number that was free in the multiplexor when it was made.
    pub index: usize,
    /// What it received and sent.
    pub counters: Counters,
    /// A thread waits on it for a message.
    pub waiting: bool,
    /// It is given no messages ([`crate::Socket::set_receive_disabled`]).
    pub receive_disabled: bool,
}

/// One connection.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct ConnectionStats {
    /// Its id.
    pub id: ConnectionId,
    /// The lowest number that was free in the multiplexor when it was attached.
    pub index: usize,
    /// What came from it and went to it.
    pub counters: Counters,
    /// Bytes that wait here to be handed to the system.
    pub queued_bytes: usize,
    /// Bytes that the system has not been asked for.
    pub unread_bytes: usize,
    /// Bytes handed to the system that the peer has not acknowledged.
    pub unacknowledged_bytes: usize,
    /// Times that more bytes were needed to find the end of a message.
    pub need_more: u64,
    /// An unfinished message has begun.
    pub in_message: bool,
}

/// A multiplexor at one moment.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// All of it since its beginning, what is gone included.
    pub counters: Counters,
    /// Connections attached since its beginning.
    pub attached: u64,
    /// Connections that left, by unattach or by their end.
    pub unattached: u64,
    /// Messages that were sent again on another connection, because theirs died.
    pub tx_retries: u64,
    /// Bytes of memory that received messages take.
    pub memory_bytes: usize,
    /// Its sockets.
    pub sockets: Vec<SocketStats>,
    /// Its connections.
    pub connections: Vec<ConnectionStats>,
}

impl Snapshot {
    pub(crate) fn of(mux: &Mux) -> Self {
        let sockets: Vec<_> = mux
            .all_sockets()
            .iter()
            .map(|s| SocketStats::of(s))
            .collect();
        Self {
            counters: mux.counters.totals(&sockets, &mux.all_psocks()),
            attached: mux.counters.attach.load(Ordering::Relaxed),
            unattached: mux.counters.unattach.load(Ordering::Relaxed),
            tx_retries: mux.counters.tx_retries.load(Ordering::Relaxed),
            memory_bytes: mux.memory.used_bytes(),
            sockets,
            connections: mux
                .all_psocks()
                .iter()
                .map(|p| ConnectionStats::of(p))
                .collect(),
        }
    }
}

impl SocketStats {
    fn of(socket: &SocketState) -> Self {
        let mut counters = socket.counters.counters();
        if let Some((_, messages, bytes)) = socket.lease.progress() {
            counters.rx_messages += messages as u64;
            counters.rx_bytes += bytes as u64;
        }
        Self {
            index: socket.index,
            counters,
            waiting: socket.waiting.load(Ordering::Relaxed),
            receive_disabled: socket.is_receive_disabled(),
        }
    }
}

impl ConnectionStats {
    pub(crate) fn of(psock: &Psock) -> Self {
        let mut totals = Totals::default();
        totals.add(&psock.counters, psock.tx.taken());
        totals.add_in_hand(psock);
        let carrier = psock.tx.carrier().filter(|carrier| carrier.is_socket());
        // A socket that is gone has nothing unread and nothing unacknowledged.
        let asked = |ask: fn(std::os::fd::BorrowedFd<'_>) -> usize| {
            carrier.as_ref().map_or(0, |carrier| ask(carrier.as_fd()))
        };
        Self {
            id: psock.id,
            index: psock.index,
            counters: totals.counters(),
            queued_bytes: psock.tx.queued_bytes(),
            unread_bytes: asked(crate::sys::unread_bytes),
            unacknowledged_bytes: asked(crate::sys::unacknowledged_bytes),
            need_more: psock.counters.need_more.load(Ordering::Relaxed),
            in_message: psock.partial_since_ns.load(Ordering::Relaxed) != NO_PARTIAL,
        }
    }
}

/// Of one socket.
#[derive(Default)]
pub(crate) struct SocketCounters {
    pub(crate) rx_messages: AtomicU64,
    pub(crate) rx_bytes: AtomicU64,
    pub(crate) tx_messages: AtomicU64,
    pub(crate) tx_bytes: AtomicU64,
}

impl SocketCounters {
    pub(crate) fn rx_messages(&self) -> u64 {
        self.rx_messages.load(Ordering::Relaxed)
    }

    /// Counts messages as received. The socket is the caller's own, so that no read-modify-write
    /// is needed.
    pub(crate) fn received(&self, messages: u64, bytes: usize) {
        let add = |counter: &AtomicU64, n: u64| {
            counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        };
        add(&self.rx_messages, messages);
        add(&self.rx_bytes, bytes as u64);
    }

    /// A message goes back, to be received by any socket. As above.
    pub(crate) fn returned(&self, bytes: usize) {
        let take = |counter: &AtomicU64, n: u64| {
            counter.store(counter.load(Ordering::Relaxed) - n, Ordering::Relaxed);
        };
        take(&self.rx_messages, 1);
        take(&self.rx_bytes, bytes as u64);
    }

    fn counters(&self) -> Counters {
        Counters {
            rx_messages: self.rx_messages.load(Ordering::Relaxed),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_messages: self.tx_messages.load(Ordering::Relaxed),
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Of a multiplexor: what its connections' own counters do not say, or say no more.
#[derive(Default)]
pub(crate) struct MuxCounters {
    /// Of the connections that left.
    gone: PsockCounters,
    gone_tx_messages: AtomicU64,
    gone_tx_bytes: AtomicU64,
    /// What sockets received that are closed.
    rx_messages: AtomicU64,
    rx_bytes: AtomicU64,
    pub(crate) attach: AtomicU64,
    pub(crate) unattach: AtomicU64,
    pub(crate) tx_retries: AtomicU64,
    aborts: AtomicU64,
    bad_length: AtomicU64,
    too_big: AtomicU64,
    timeouts: AtomicU64,
    interrupts: AtomicU64,
    tx_aborts: AtomicU64,
}

impl MuxCounters {
    /// Keeps the counters of a connection that leaves.
    pub(crate) fn absorb(&self, psock: &PsockCounters) {
        for (ours, theirs) in self.gone.all().into_iter().zip(psock.all()) {
            ours.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    /// Counts why a connection ended.
    pub(crate) fn count_end(&self, reason: EndReason) {
        let counter = match reason {
            EndReason::Fault(Fault::TooBig { .. } | Fault::HeaderTooLong { .. }) => &self.too_big,
            EndReason::Fault(Fault::BadLength { .. }) => &self.bad_length,
            EndReason::Fault(_) => &self.interrupts,
            EndReason::Deadline => &self.timeouts,
            EndReason::Reset | EndReason::System(_) => {
                self.tx_aborts.fetch_add(1, Ordering::Relaxed);
                return;
            }
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.aborts.fetch_add(1, Ordering::Relaxed);
    }

    /// Keeps what a socket received that closes.
    pub(crate) fn absorb_socket(&self, socket: &SocketCounters) {
        let counters = socket.counters();
        self.rx_messages
            .fetch_add(counters.rx_messages, Ordering::Relaxed);
        self.rx_bytes
            .fetch_add(counters.rx_bytes, Ordering::Relaxed);
    }

    /// Messages were sent on a connection that is gone, or (below zero, in two's complement) not
    /// sent after all.
    pub(crate) fn count_late(&self, messages: u64, bytes: u64) {
        self.gone_tx_messages.fetch_add(messages, Ordering::Relaxed);
        self.gone_tx_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Messages and bytes sent on connections that are gone.
    fn gone_tx(&self) -> (u64, u64) {
        (
            self.gone_tx_messages.load(Ordering::Relaxed),
            self.gone_tx_bytes.load(Ordering::Relaxed),
        )
    }

    /// All of it: received by sockets (a message may be received after its connection has left),
    /// taken by connections.
    fn totals(&self, sockets: &[SocketStats], psocks: &[Arc<Psock>]) -> Counters {
        let (tx_messages, tx_bytes) = self.gone_tx();
        let mut totals = Counters {
            rx_messages: self.rx_messages.load(Ordering::Relaxed),
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_messages,
            tx_bytes,
        };
        for socket in sockets {
            totals.rx_messages += socket.counters.rx_messages;
            totals.rx_bytes += socket.counters.rx_bytes;
        }
        for psock in psocks {
            let (messages, bytes) = psock.tx.taken();
            totals.tx_messages = totals.tx_messages.wrapping_add(messages);
            totals.tx_bytes = totals.tx_bytes.wrapping_add(bytes);
        }
        totals
    }
}

impl PsockCounters {
    fn all(&self) -> [&AtomicU64; 3] {
        [&self.rx_messages, &self.rx_bytes, &self.need_more]
    }
}

/// Sums over connections: messages and bytes received, the same sent, and how often more bytes were
/// needed.
#[derive(Clone, Copy, Default)]
struct Totals([u64; 5]);

impl Totals {
    fn add(&mut self, psock: &PsockCounters, (tx_messages, tx_bytes): (u64, u64)) {
        let [rx_messages, rx_bytes, need_more] =
            psock.all().map(|counter| counter.load(Ordering::Relaxed));
        let more = [rx_messages, rx_bytes, tx_messages, tx_bytes, need_more];
        for (sum, more) in self.0.iter_mut().zip(more) {
            *sum = sum.wrapping_add(more);
        }
    }

    /// What sockets that walk through a burst of this connection have taken so far.
    fn add_in_hand(&mut self, psock: &Psock) {
        for socket in psock.mux.all_sockets() {
            if let Some((from, messages, bytes)) = socket.lease.progress()
                && std::ptr::eq(Arc::as_ptr(&from.psock), psock)
            {
                self.0[0] += messages as u64;
                self.0[1] += bytes as u64;
            }
        }
    }

    fn counters(&self) -> Counters {
        let [rx_messages, rx_bytes, tx_messages, tx_bytes, _] = self.0;
        Counters {
            rx_messages,
            rx_bytes,
            tx_messages,
            tx_bytes,
        }
    }
}

/// The columns of `/proc/net/kcm_stats`, of one multiplexor or of several.
#[derive(Clone, Copy, Default)]
struct Columns {
    mux: Counters,
    totals: Totals,
    tx_retries: u64,
    attach: u64,
    unattach: u64,
    aborts: u64,
    interrupts: u64,
    bad_length: u64,
    too_big: u64,
    timeouts: u64,
    tx_aborts: u64,
}

impl Columns {
    fn add(&mut self, mux: &Mux) {
        let counters = &mux.counters;
        let psocks = mux.all_psocks();
        let sockets: Vec<_> = mux
            .all_sockets()
            .iter()
            .map(|s| SocketStats::of(s))
            .collect();
        let all = counters.totals(&sockets, &psocks);
        self.mux.rx_messages += all.rx_messages;
        self.mux.rx_bytes += all.rx_bytes;
        self.mux.tx_messages += all.tx_messages;
        self.mux.tx_bytes += all.tx_bytes;
        self.totals.add(&counters.gone, counters.gone_tx());
        for psock in psocks {
            self.totals.add(&psock.counters, psock.tx.taken());
            self.totals.add_in_hand(&psock);
        }
        for (sum, counter) in [
            (&mut self.tx_retries, &counters.tx_retries),
            (&mut self.attach, &counters.attach),
            (&mut self.unattach, &counters.unattach),
            (&mut self.aborts, &counters.aborts),
            (&mut self.interrupts, &counters.interrupts),
            (&mut self.bad_length, &counters.bad_length),
            (&mut self.too_big, &counters.too_big),
            (&mut self.timeouts, &counters.timeouts),
            (&mut self.tx_aborts, &counters.tx_aborts),
        ] {
            *sum += counter.load(Ordering::Relaxed);
        }
    }
}

/// All multiplexors of this process.
#[derive(Default)]
struct Registry {
    live: Vec<Weak<Mux>>,
    past: Columns,
}

static REGISTRY: Mutex<Option<Registry>> = Mutex::new(None);

fn registry() -> MutexGuard<'static, Option<Registry>> {
    REGISTRY.lock().unwrap_or_else(|e| e.into_inner())
}

/// Shows a new multiplexor in the texts below.
pub(crate) fn register(mux: &Arc<Mux>) {
    let mut registry = registry();
    let registry = registry.get_or_insert_default();
    registry.live.retain(|mux| mux.strong_count() > 0);
    registry.live.push(Arc::downgrade(mux));
}

impl Drop for Mux {
    fn drop(&mut self) {
        registry().get_or_insert_default().past.add(self);
    }
}

fn live() -> Vec<Arc<Mux>> {
    let registry = registry();
    let live = registry.iter().flat_map(|registry| &registry.live);
    live.filter_map(Weak::upgrade)
        .filter(|mux| !mux.is_closed())
        .collect()
}

/// All multiplexors of this process in the format of `/proc/net/kcm`.
///
/// In a connection's line, Recv-Q is the number of bytes in TCP's receive queue, Send-Q that of
/// bytes that wait here, Smem that of bytes that TCP has and the peer has not acknowledged (the
/// kernel counts its buffers there).
pub fn proc_net_kcm() -> String {
    let muxes = live();
    let mut text = format!("*** KCM statistics ({} MUX) ****\n", muxes.len());
    let header = [
        "RX-Msgs", "RX-Bytes", "TX-Msgs", "TX-Bytes", "Recv-Q", "Rmem", "Send-Q", "Smem",
    ];
    row(&mut text, "Object", &header.map(String::from), "Status");
    for mux in muxes {
        let snapshot = Snapshot::of(&mux);
        let (sockets, psocks) = (snapshot.sockets.len(), snapshot.connections.len());
        let status = format!("KCMs: {sockets}, Psocks {psocks}");
        let dashes = ["-", "-", "-", "-"].map(String::from);
        row(
            &mut text,
            "mux",
            &cells(&snapshot.counters, dashes),
            &status,
        );
        for socket in &snapshot.sockets {
            let status = if socket.waiting { "RxWait " } else { "" };
            let queues = ["0", "0", "0", "-"].map(String::from);
            let name = format!("   kcm-{}", socket.index);
            row(&mut text, &name, &cells(&socket.counters, queues), status);
        }
        for psock in &snapshot.connections {
            let status = if psock.unread_bytes > 0 {
                "RxWait "
            } else {
                ""
            };
            let queues = [
                psock.unread_bytes,
                0,
                psock.queued_bytes,
                psock.unacknowledged_bytes,
            ];
            let name = format!("   psock-{}", psock.index);
            let cells = cells(&psock.counters, queues.map(|n| n.to_string()));
            row(&mut text, &name, &cells, status);
        }
    }
    text
}

fn cells(counters: &Counters, queues: [String; 4]) -> [String; 8] {
    let [recv_q, rmem, send_q, smem] = queues;
    [
        counters.rx_messages.to_string(),
        counters.rx_bytes.to_string(),
        counters.tx_messages.to_string(),
        counters.tx_bytes.to_string(),
        recv_q,
        rmem,
        send_q,
        smem,
    ]
}

fn row(text: &mut String, name: &str, cells: &[String; 8], status: &str) {
    let [
        rx_msgs,
        rx_bytes,
        tx_msgs,
        tx_bytes,
        recv_q,
        rmem,
        send_q,
        smem,
    ] = cells;
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{name:<14} {rx_msgs:<10} {rx_bytes:<16} {tx_msgs:<10} {tx_bytes:<16} \
         {recv_q:<8} {rmem:<8} {send_q:<8} {smem:<8} {status}"
    );
}

/// The totals of this process, past multiplexors included, in the format of
/// `/proc/net/kcm_stats`.
pub fn proc_net_kcm_stats() -> String {
    let mut all = {
        let registry = registry();
        registry
            .as_ref()
            .map_or_else(Columns::default, |registry| registry.past)
    };
    live().iter().for_each(|mux| all.add(mux));
    let [rx_messages, rx_bytes, tx_messages, tx_bytes, need_more] = all.totals.0;
    let mut text = String::new();
    let mux = [
        ("RX-Msgs", all.mux.rx_messages),
        ("RX-Bytes", all.mux.rx_bytes),
        ("TX-Msgs", all.mux.tx_messages),
        ("TX-Bytes", all.mux.tx_bytes),
        ("TX-Retries", all.tx_retries),
        ("Attach", all.attach),
        ("Unattach", all.unattach),
        ("UnattchRsvd", 0),
        ("RX-RdyDrops", 0),
    ];
    pair(&mut text, "MUX", &mux);
    let psock = [
        ("RX-Msgs", rx_messages),
        ("RX-Bytes", rx_bytes),
        ("TX-Msgs", tx_messages),
        ("TX-Bytes", tx_bytes),
        ("Reserved", 0),
        ("Unreserved", 0),
        ("RX-Aborts", all.aborts),
        ("RX-Intr", all.interrupts),
        ("RX-Unrecov", 0),
        ("RX-MemFail", 0),
        ("RX-NeedMor", need_more),
        ("RX-BadLen", all.bad_length),
        ("RX-TooBig", all.too_big),
        ("RX-Timeout", all.timeouts),
        ("TX-Aborts", all.tx_aborts),
    ];
    pair(&mut text, "Psock", &psock);
    text
}

/// A line of names and a line of values, in columns of the kernel's widths.
fn pair(text: &mut String, title: &str, columns: &[(&str, u64)]) {
    let _ = write!(text, "{title:<8}");
    for (i, (name, _)) in columns.iter().enumerate() {
        let _ = write!(text, " {name:<width$}", width = width(i));
    }
    let _ = write!(text, "\n{:<8}", "");
    for (i, (_, value)) in columns.iter().enumerate() {
        let _ = write!(text, " {value:<width$}", width = width(i));
    }
    text.push('\n');
}

fn width(column: usize) -> usize {
    if matches!(column, 1 | 3) { 16 } else { 10 }
}
