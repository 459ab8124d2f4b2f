//! The clients' side: replies on their way out, and whose messages have to wait.
//!
//! A reply goes straight to the system. Of a client that does not read, some queue up in the
//! multiplexor; when that is full too, replies are *parked* here, their workers are free for others,
//! and nothing more of that client is received: so a client makes us hold at most its send buffer
//! and the answers to what was in hand. All clients together may hold as much as `--memory` says;
//! above it, who holds most is closed. Who reads nothing for the deadline is closed, too.
//!
//! With `--ordered`, a connection of which a message is in hand is not received from either.

mod relief;
mod room;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

use kcm::{Connection, ConnectionId, EndReason, Error, Multiplexor, Socket, Stream};
use rustix::net::{Shutdown, shutdown, sockopt};

use self::{relief::Relief, room::Room};
use super::{
    log::{Line, Log},
    worker::{Bytes, Job},
};

/// Queues of clients that do not read are looked at so often: a queue of the default 1 MiB drains
/// within it at 800 Mbit/s, and the look costs next to nothing.
pub(super) const TICK: Duration = Duration::from_millis(10);

/// The peers' addresses of the connections, for the log.
#[derive(Clone, Default)]
pub(super) struct Peers(Arc<Mutex<HashMap<ConnectionId, String>>>);

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, String>> {
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Attaches a stream, and knows it before its end can be told.
    pub(super) fn attach(
        &self,
        mux: &Multiplexor,
        stream: Stream,
        peer: &str,
    ) -> Result<ConnectionId, kcm::AttachError> {
        let mut peers = self.lock();
        let id = mux.attach(stream)?;
        peers.insert(id, peer.to_owned());
        Ok(id)
    }

    /// The connection as the log names it.
    pub(super) fn name(&self, id: ConnectionId) -> String {
        match self.lock().get(&id) {
            Some(peer) => format!("connection {id} ({peer})"),
            None => format!("connection {id}"),
        }
    }

    /// Tells how connections end, if it is not the usual way, until the multiplexor is shut down.
    pub(super) fn tell_ends(&self, mux: &Multiplexor, log: &Log) {
        while let Ok(event) = mux.next_event() {
            let name = self.name(event.connection);
            let peer = self.lock().remove(&event.connection);
            let reason = event.reason;
            if matches!(
                reason,
                EndReason::Eof | EndReason::Reset | EndReason::Closed
            ) {
                continue;
            }
            let line = Line::new("connection-ended", format_args!("{name} ended: {reason}"))
                .with("connection", event.connection.as_u64())
                .with("peer", peer)
                .with("errno", reason.errno());
            log.write_client(line);
        }
    }
}

/// What is to be done for clients.
pub(super) struct Clients {
    pub(super) mux: Multiplexor,
    pub(super) peers: Peers,
    log: Arc<Log>,
    /// With `--ordered`: connections of which a message is in hand.
    in_hand: Option<HashSet<ConnectionId>>,
    slow: HashMap<ConnectionId, Slow>,
    /// When they are looked at next: not with each message.
    next_tick: Instant,
    /// Bytes of replies that clients have not read; never less than there are.
    held_bytes: usize,
    /// `--memory`.
    max_held_bytes: usize,
    /// The longest message.
    message_bytes: usize,
    deadline: Duration,
    relief: Relief,
    room: Room,
}

/// A client that has not read all of its replies.
struct Slow {
    /// Replies that the multiplexor had no room for. The messages keep a half-closed connection.
    parked: VecDeque<(Bytes, Vec<u8>)>,
    /// Bytes queued and parked when it was looked at, and added since.
    held_bytes: usize,
    /// When it last read something.
    read_at: Instant,
}

impl Clients {
    pub(super) fn new(
        mux: Multiplexor,
        log: Arc<Log>,
        ordered: bool,
        max_held_bytes: usize,
        message_bytes: usize,
        deadline: Duration,
    ) -> Self {
        Self {
            mux,
            peers: Peers::default(),
            log,
            in_hand: ordered.then(HashSet::new),
            slow: HashMap::new(),
            next_tick: Instant::now(),
            held_bytes: 0,
            max_held_bytes,
            message_bytes,
            deadline,
            relief: Relief::default(),
            room: Room::default(),
        }
    }

    /// A message of this connection was received.
    pub(super) fn begin(&mut self, id: ConnectionId) {
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.insert(id);
            self.set_receiving(id);
        }
    }

    /// It is done with, answered or lost.
    pub(super) fn finish(&mut self, id: ConnectionId) {
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.remove(&id);
            self.set_receiving(id);
        }
    }

    /// Whether everything has left this program, and the peers' systems have it.
    pub(super) fn have_all(&self) -> bool {
        let sent = |connection: &Connection| {
            let stats = connection.stats();
            stats.queued_bytes == 0 && stats.unacknowledged_bytes == 0
        };
        self.slow.values().all(|slow| slow.parked.is_empty())
            && self.mux.connections().iter().all(sent)
    }

    /// When to call [`Clients::tick`] next, if at all.
    pub(super) fn next_tick(&self) -> Option<Instant> {
        (!self.slow.is_empty()).then_some(self.next_tick)
    }

    /// Sends the reply to this message, if it is not empty.
    pub(super) fn reply(&mut self, socket: &Socket, job: Job, reply: &[u8]) {
        let id = job.connection;
        if reply.is_empty() {
            return;
        }
        let parks = (self.slow.get(&id)).is_some_and(|slow| !slow.parked.is_empty());
        if parks || !self.send(socket, id, reply) {
            let slow = self.slow.entry(id).or_insert_with(Slow::new);
            slow.parked.push_back((job.bytes, reply.to_vec()));
            self.hold(id, reply.len());
            self.set_receiving(id);
        } else if let Ok(connection) = self.mux.connection(id)
            && connection.queued_bytes() > 0
        {
            self.slow.entry(id).or_insert_with(Slow::new);
            self.hold(id, reply.len());
        }
    }

    /// Sends what is parked where there is room again, and closes who reads nothing.
    pub(super) fn tick(&mut self, socket: &Socket, now: Instant) {
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        let ids: Vec<ConnectionId> = self.slow.keys().copied().collect();
        for id in ids {
            let Ok(connection) = self.mux.connection(id) else {
                self.forget(id);
                continue;
            };
            while let Some(slow) = self.slow.get_mut(&id)
                && let Some((message, reply)) = slow.parked.pop_front()
            {
                if !self.send(socket, id, &reply) {
                    if let Some(slow) = self.slow.get_mut(&id) {
                        slow.parked.push_front((message, reply));
                    }
                    break;
                }
            }
            let Some(slow) = self.slow.get_mut(&id) else {
                continue;
            };
            let parked: usize = slow.parked.iter().map(|(_, reply)| reply.len()).sum();
            let held_bytes = connection.queued_bytes() + parked;
            if held_bytes < slow.held_bytes {
                slow.read_at = now;
            }
            self.held_bytes = self.held_bytes - slow.held_bytes + held_bytes;
            slow.held_bytes = held_bytes;
            let too_long = now.duration_since(slow.read_at) >= self.deadline;
            if held_bytes == 0 {
                self.forget(id);
            } else if too_long {
                self.close(id, "it has read nothing for the deadline");
            } else if parked == 0 {
                self.set_receiving(id);
            }
        }
    }

    /// False: there is no room now.
    fn send(&self, socket: &Socket, id: ConnectionId, reply: &[u8]) -> bool {
        match socket.send_to(id, reply) {
            Err(Error::WouldBlock) => return false,
            // The client has gone; its end is told elsewhere.
            Ok(()) | Err(Error::NoSuchConnection | Error::ConnectionEnded(_) | Error::Closed) => {}
            Err(error) => {
                let name = self.peers.name(id);
                let message = format!("a reply to {name} cannot be sent: {error}");
                let line = Line::new("reply-failed", message).with("connection", id.as_u64());
                self.log.write_client(line.with("len", reply.len()));
            }
        }
        true
    }

    /// Counts a reply that waits here, within the limit.
    fn hold(&mut self, id: ConnectionId, bytes: usize) {
        if let Some(slow) = self.slow.get_mut(&id) {
            slow.held_bytes += bytes;
            self.held_bytes += bytes;
        }
        while self.held_bytes > self.max_held_bytes
            && let Some((&most, _)) = self.slow.iter().max_by_key(|(_, slow)| slow.held_bytes)
        {
            self.close(
                most,
                "it holds most of the replies that nobody reads (--memory)",
            );
        }
    }

    fn close(&mut self, id: ConnectionId, why: &str) {
        let held_bytes = self.slow.get(&id).map_or(0, |slow| slow.held_bytes);
        let message = format!(
            "{} is closed with {held_bytes} bytes of replies: {why}",
            self.peers.name(id)
        );
        let line = Line::new("connection-closed", message).with("connection", id.as_u64());
        self.log.write_client(line.with("len", held_bytes));
        if let Ok(connection) = self.mux.connection(id) {
            connection.close();
            // What it has not read goes now, here and in the system: kept for the linger time, it
            // would be memory beyond the limit, of as many such clients as come in that time.
            let _ = sockopt::set_socket_linger(&connection, Some(Duration::ZERO));
            let _ = shutdown(&connection, Shutdown::Both);
        }
        self.forget(id);
    }

    fn forget(&mut self, id: ConnectionId) {
        if let Some(slow) = self.slow.remove(&id) {
            self.held_bytes -= slow.held_bytes;
            self.set_receiving(id);
        }
    }

    /// Receives from this connection, or does not.
    fn set_receiving(&self, id: ConnectionId) {
        if let Ok(connection) = self.mux.connection(id) {
            connection.set_receive_disabled(self.is_disabled(id));
        }
    }

    fn is_disabled(&self, id: ConnectionId) -> bool {
        self.in_hand.as_ref().is_some_and(|ids| ids.contains(&id))
            || (self.slow.get(&id)).is_some_and(|slow| !slow.parked.is_empty())
    }
}

impl Slow {
    fn new() -> Self {
        Self {
            parked: VecDeque::new(),
            held_bytes: 0,
            read_at: Instant::now(),
        }
    }
}
