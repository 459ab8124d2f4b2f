//! One simulated multiplexor with its peers, everything about it drawn from a seed; and the
//! coming and going of its connections.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use kcm::{ConnectionId, Error, Limits, Multiplexor, MuxLimits, SocketType, Stream};

use crate::{
    common::{SOON, tcp_received_bytes},
    model::{Model, State},
    peer::{Feed, Lines, Peer, Plan, is_tcp},
    random::Random,
    sent::Sent,
    wire::Wire,
};

/// What a seed decides once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Threads that work on it; 1: the schedule is the same each time.
    pub(crate) threads: usize,
    pub(crate) lines: Lines,
    /// What this side sends, and most peers.
    pub(crate) wire: Wire,
    pub(crate) socket_type: SocketType,
    pub(crate) longest: usize,
    pub(crate) memory_bytes: usize,
    pub(crate) send_buffer_bytes: usize,
    pub(crate) sticky: bool,
    pub(crate) spin: bool,
    /// Long enough for everything, or too short for a peer that does not read.
    pub(crate) linger: Duration,
    pub(crate) connections: usize,
    pub(crate) sockets: usize,
    pub(crate) steps: usize,
    /// Some sockets are in an event loop.
    pub(crate) polled: bool,
    /// Connections are ordered.
    pub(crate) ordered: bool,
    /// Some peers' messages have keys and classes.
    pub(crate) keyed: bool,
    /// And answers are awaited by them.
    pub(crate) questions: bool,
}

pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) mux: Multiplexor,
    model: Mutex<Model>,
    sent: Mutex<Sent>,
}

impl Setup {
    pub(crate) fn new(random: &mut Random, threads: usize) -> Self {
        let longest = random.pick(&[1 << 24, 1 << 24, 1 << 24, 3_000]);
        let tight = random.once_in(4);
        Self {
            threads,
            lines: random.pick(&[Lines::Scripts, Lines::Scripts, Lines::Sockets, Lines::Both]),
            wire: Wire::plain(random),
            socket_type: random.pick(&[SocketType::Dgram, SocketType::SeqPacket]),
            longest,
            // At least room for the longest message and for some chunks.
            memory_bytes: if tight { 400_000 } else { 256 << 20 },
            send_buffer_bytes: random.pick(&[1 << 20, 1 << 20, 4_000]),
            sticky: random.once_in(4),
            spin: random.once_in(6),
            linger: random.pick(&[Duration::from_millis(20), Duration::from_secs(20)]),
            connections: random.pick(&[1, 1, 2, 4, 9]),
            sockets: random.pick(&[1, 2, 4]),
            steps: random.between(30, 500) * if threads > 1 { 2 } else { 1 },
            polled: random.once_in(4),
            ordered: random.once_in(4),
            keyed: random.once_in(2),
            questions: random.once_in(2),
        }
    }

    /// Whether closing waits long enough for every peer.
    pub(crate) fn patient(&self) -> bool {
        self.linger > SOON
    }
}

impl World {
    pub(crate) fn new(setup: Setup) -> Arc<Self> {
        let mut limits = MuxLimits::default();
        limits.max_memory_bytes = setup.memory_bytes;
        limits.send_buffer_bytes = setup.send_buffer_bytes;
        let mux = Multiplexor::builder(setup.wire.framing(0))
            .mux_limits(limits)
            .limits(message_limits(setup.longest))
            .socket_type(setup.socket_type)
            .sticky_send(setup.sticky)
            .spin(setup.spin)
            .linger(setup.linger)
            // No socket counts as stuck: the order of keys holds.
            .key_patience(Duration::from_secs(3600))
            .build()
            .expect("a mux");
        Arc::new(Self {
            setup,
            mux,
            model: Mutex::new(Model::new(setup.threads == 1, setup.questions)),
            sent: Mutex::default(),
        })
    }

    /// Never held over a call that waits for another thread of the simulation.
    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sent(&self) -> MutexGuard<'_, Sent> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn peers(&self) -> Vec<Arc<Peer>> {
        let model = self.model();
        model.peers.iter().map(|far| far.peer.clone()).collect()
    }

    pub(crate) fn random_peer(&self, random: &mut Random) -> Option<Arc<Peer>> {
        let peers = self.peers();
        (!peers.is_empty()).then(|| peers[random.below(peers.len())].clone())
    }

    pub(crate) fn random_connection(&self, random: &mut Random) -> Option<ConnectionId> {
        let model = self.model();
        let attached = &model.attached;
        (!attached.is_empty()).then(|| attached[random.below(attached.len())])
    }

    /// A new peer.
    pub(crate) fn attach(&self, random: &mut Random) {
        let setup = &self.setup;
        let wire = match random.below(6) {
            0 => Wire::Text,
            1 => Wire::Counted,
            2..4 if setup.keyed => Wire::Keyed,
            _ => setup.wire,
        };
        let mut model = self.model();
        let origin = u16::try_from(model.peers.len()).expect("few peers");
        let plan = Plan::new(random, wire, origin, setup.longest);
        let (peer, stream) = Peer::new(plan, origin, random, setup.lines);
        let far = model.add_peer(Arc::new(peer));
        let early = if random.once_in(4) {
            random.below(300)
        } else {
            0
        };
        let early = early.min(model.peers[far].peer.plan.bytes.len());
        self.attach_at(&mut model, far, 0, stream, early, random);
    }

    /// Attaches a peer's stream from this place on, with so many bytes read already.
    fn attach_at(
        &self,
        model: &mut Model,
        far: usize,
        place: usize,
        stream: Stream,
        early: usize,
        random: &mut Random,
    ) {
        let setup = &self.setup;
        let peer = model.peers[far].peer.clone();
        let plan = &peer.plan;
        let start = plan.start(place);
        let attached = if early == 0 && plan.wire == setup.wire && random.once_in(2) {
            self.mux.attach(stream)
        } else {
            let already_read = &plan.bytes[start..start + early];
            let mut feed = peer.feed();
            if feed.written < start + early {
                // Read before the stream was first attached: it never comes over the line.
                (feed.written, feed.early) = (early, early);
            }
            drop(feed);
            let framing = plan.wire.framing(place);
            self.mux.attach_with(stream, framing, already_read)
        };
        match attached {
            Ok(id) => {
                model.attached(id, far, place, setup.longest);
                // Before anybody can have been given a message.
                if setup.ordered && (setup.threads == 1 || model.received == 0) {
                    // (A line that is dead may have ended it already.)
                    if let Ok(connection) = self.mux.connection(id) {
                        connection.set_ordered(true);
                        model.connection(id).ordered = setup.threads == 1;
                    }
                }
            }
            // A peer that is gone cannot be asked for its name.
            Err(failed) => assert!(peer.is_dead(), "{failed}: {:?}", failed.error),
        }
    }

    /// Takes a connection's stream away; most go back.
    pub(crate) fn unattach(&self, random: &mut Random) {
        let (id, far) = {
            let mut model = self.model();
            if model.attached.is_empty() {
                return;
            }
            let id = model.attached[random.below(model.attached.len())];
            model.leave(id, State::Leaving);
            (id, model.connection(id).far)
        };
        let peer = self.model().peers[far].peer.clone();
        match self.unattach_in_time(id, &peer) {
            Ok((stream, rest)) => self.unattached(id, far, stream, &rest, random),
            Err(Error::WouldBlock) => {
                assert!(!self.setup.patient(), "{id}: the peer takes everything");
                let mut model = self.model();
                model.leave(id, State::Attached);
                model.attached.push(id);
            }
            Err(Error::NoSuchConnection) => {
                let mut model = self.model();
                model.leave(id, State::Missed);
                self.note_stranded(&model);
            }
            Err(error) => panic!("{id}: {error}"),
        }
    }

    /// While it waits, the peer takes what is sent to it: with one thread nobody else would.
    fn unattach_in_time(&self, id: ConnectionId, peer: &Peer) -> Result<(Stream, Vec<u8>), Error> {
        if !self.setup.patient() {
            return self.mux.unattach(id);
        }
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    peer.take_all();
                    thread::sleep(Duration::from_micros(200));
                }
            });
            let result = self.mux.unattach(id);
            over.store(true, Ordering::Relaxed);
            result
        })
    }

    fn unattached(
        &self,
        id: ConnectionId,
        far: usize,
        stream: Stream,
        rest: &[u8],
        random: &mut Random,
    ) {
        let mut model = self.model();
        let peer = model.peers[far].peer.clone();
        let plan = &peer.plan;
        let start = {
            // Nobody writes while it is looked how far the engine has read.
            let feed = peer.feed();
            let read = match peer.script() {
                Some(script) => feed.early + script.read_bytes(),
                None => read_bytes(&stream, &feed),
            };
            read - rest.len()
        };
        assert!(
            plan.bytes[start..].starts_with(rest),
            "{id}: the {} bytes given back are not those from {start} on",
            rest.len()
        );
        let place = plan.place_at(start);
        let place = place.unwrap_or_else(|| panic!("{id}: {start} is in the middle of a message"));
        model.leave(id, State::Unattached);
        let connection = model.connection(id);
        assert!(place >= connection.first, "{id}: more than it was given");
        connection.upto = Some(place);
        if random.once_in(5) {
            model.peers[far].left_at = Some(place);
            self.note_stranded(&model);
            // With bytes unread, TCP takes back what has not come to the peer yet.
            peer.read_to_the_last(&stream);
            drop(stream);
            return;
        }
        self.attach_at(&mut model, far, place, stream, rest.len(), random);
        self.note_stranded(&model);
    }

    /// Closes a connection.
    pub(crate) fn close(&self, random: &mut Random) {
        let mut model = self.model();
        if model.attached.is_empty() {
            return;
        }
        let id = model.attached[random.below(model.attached.len())];
        // It may have ended, by the peer or the background thread.
        if let Ok(connection) = self.mux.connection(id) {
            model.leave(id, State::Closed);
            drop(model);
            connection.close();
            model = self.model();
        }
        self.note_stranded(&model);
    }

    /// Other limits for a connection: lower ones end it at a longer message.
    pub(crate) fn set_limits(&self, random: &mut Random) {
        let Some(id) = self.random_connection(random) else {
            return;
        };
        let longest = random.pick(&[1 << 24, 1 << 20, 5_000, 150]);
        let mut model = self.model();
        model.connection(id).limits.push(longest);
        drop(model);
        if let Ok(connection) = self.mux.connection(id) {
            connection.set_limits(message_limits(longest));
        }
    }

    /// When no connection is left, messages to anybody may be lost.
    pub(crate) fn note_stranded(&self, model: &Model) {
        if model.live() == 0 {
            self.sent().stranded = true;
        }
    }

    /// Notes the ends of connections.
    pub(crate) fn take_events(&self) {
        while let Some(event) = self.mux.try_next_event() {
            let mut model = self.model();
            model.ended(&event);
            self.note_stranded(&model);
        }
    }

    /// Waits until the background thread has sent what it can: then a schedule goes on as it did
    /// before.
    pub(crate) fn settle(&self) {
        let end = Instant::now() + Duration::from_millis(3);
        for connection in self.mux.connections() {
            let far = self.model().connection(connection.id()).far;
            let peer = self.model().peers[far].peer.clone();
            while connection.queued_bytes() > 0
                && !peer.script().is_some_and(|script| script.is_blocked())
                && Instant::now() < end
            {
                thread::yield_now();
            }
        }
    }
}

/// How many bytes of a socket's stream the engine has read: those that came but for those that are
/// still there. (What the peer wrote says nothing of it: a part may be under way, or wait for room.)
fn read_bytes(stream: &Stream, feed: &Feed) -> usize {
    let unread = || rustix::io::ioctl_fionread(stream).expect("FIONREAD");
    let read = if is_tcp(stream) {
        loop {
            let came = tcp_received_bytes(stream);
            let unread = unread();
            if came == tcp_received_bytes(stream) {
                break came - unread;
            }
        }
    } else {
        // What is written to a Unix stream has arrived.
        (feed.written - feed.early) as u64 - unread()
    };
    feed.early + usize::try_from(read).expect("few bytes")
}

fn message_limits(longest: usize) -> Limits {
    Limits::default()
        .with_max_message_bytes(longest)
        .with_assembly_deadline(None)
}
