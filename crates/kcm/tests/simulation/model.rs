//! What must come out of a multiplexor, thought of in the simplest way: per peer a row of
//! messages, each of which is taken once; per socket no step back; per connection one end.
//!
//! The model is told what was done and what was seen, and panics at the first thing that cannot
//! be. What must have happened in the end, it says when asked.

use std::{collections::HashMap, sync::Arc};

use kcm::{ConnectionEvent, ConnectionId, EndReason, Fault};

use crate::{
    peer::{Ending, Peer},
    wire::KEYS,
};

/// A socket of the simulation, for as long as it lives.
pub(crate) type Key = usize;

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) peers: Vec<Far>,
    pub(crate) connections: HashMap<ConnectionId, Connection>,
    /// Ids of connections that may be used, in the order of their coming.
    pub(crate) attached: Vec<ConnectionId>,
    /// Where each socket stands in each connection's row, for each key, and when it asked for that.
    seen: HashMap<(Key, ConnectionId, Option<u32>), (usize, Asked)>,
    /// Who works on which key of messages.
    keys: HashMap<u32, Key>,
    /// One thread does everything, and it is known who works on what.
    one_thread: bool,
    /// See [`Asked`].
    aside: u64,
    /// Answers are awaited by their keys: such a message may wait for its socket.
    questions: bool,
    /// Times that a socket gave messages back that it had been given: begun, and done.
    returns_begun: u64,
    returns_ended: u64,
    pub(crate) received: u64,
    pub(crate) received_bytes: u64,
    pub(crate) attaches: u64,
    pub(crate) shut_down: bool,
}

/// How things were when a socket asked for a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Asked {
    /// `returns_ended`.
    returns: u64,
    /// The keys of which a message may have been set aside, as bits: another socket worked on one
    /// since there was last none of it to be had.
    aside: u64,
}

/// A peer's row.
pub(crate) struct Far {
    pub(crate) peer: Arc<Peer>,
    /// Who took each message: the connection that it came from.
    taken: Vec<Option<ConnectionId>>,
    /// Where its stream was given back for good.
    pub(crate) left_at: Option<usize>,
}

/// One attachment of a stream.
pub(crate) struct Connection {
    pub(crate) far: usize,
    /// The place of its first message, and behind its last when it was unattached.
    pub(crate) first: usize,
    pub(crate) upto: Option<usize>,
    pub(crate) state: State,
    end: Option<EndReason>,
    /// Its next message waits for the holder of the previous one.
    pub(crate) ordered: bool,
    holder: Option<Key>,
    /// Limits that were in force at some time.
    pub(crate) limits: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Attached,
    /// Somebody is about to unattach it.
    Leaving,
    Unattached,
    Closed,
    /// It had ended when it was to be unattached: what was not read then is gone.
    Missed,
}

impl Model {
    pub(crate) fn new(one_thread: bool, questions: bool) -> Self {
        Self {
            one_thread,
            questions,
            ..Self::default()
        }
    }

    pub(crate) fn add_peer(&mut self, peer: Arc<Peer>) -> usize {
        self.peers.push(Far {
            taken: vec![None; peer.plan.ends.len()],
            peer,
            left_at: None,
        });
        self.peers.len() - 1
    }

    pub(crate) fn attached(&mut self, id: ConnectionId, far: usize, first: usize, limit: usize) {
        self.attaches += 1;
        self.attached.push(id);
        let before = self.connections.insert(
            id,
            Connection {
                far,
                first,
                upto: None,
                state: State::Attached,
                end: None,
                ordered: false,
                holder: None,
                limits: vec![limit],
            },
        );
        assert!(before.is_none(), "{id} was given twice");
    }

    /// It is not to be used any more.
    pub(crate) fn leave(&mut self, id: ConnectionId, state: State) {
        self.attached.retain(|&other| other != id);
        self.connection(id).state = state;
    }

    pub(crate) fn connection(&mut self, id: ConnectionId) -> &mut Connection {
        self.connections
            .get_mut(&id)
            .unwrap_or_else(|| panic!("connection {id} was never attached"))
    }

    /// A socket is about to ask; it is done with what it had. Gives what [`Model::taken`] wants.
    pub(crate) fn asks(&mut self, socket: Key) -> Asked {
        for connection in self.connections.values_mut() {
            if connection.holder == Some(socket) {
                connection.holder = None;
            }
        }
        self.keys.retain(|_, holder| *holder != socket);
        if self.one_thread {
            for key in KEYS {
                if self.keys.contains_key(&key) {
                    self.aside |= 1 << key;
                } else if self.aside & 1 << key != 0 && !self.is_anything_there(key) {
                    self.aside &= !(1 << key);
                }
            }
        }
        Asked {
            returns: self.returns_ended,
            aside: self.aside,
        }
    }

    /// A socket has a message in hand, of which it has seen these bytes.
    pub(crate) fn holds(&mut self, socket: Key, id: ConnectionId, bytes: &[u8]) {
        if let (Some(key), _) = self.label(id, bytes) {
            self.keys.insert(key, socket);
        }
    }

    /// Whether a message of this key has arrived that nobody was given.
    fn is_anything_there(&self, key: u32) -> bool {
        self.peers.iter().any(|far| {
            let plan = &far.peer.plan;
            let whole = plan.whole(far.peer.feed().written);
            (0..whole).any(|place| far.taken[place].is_none() && plan.key(place) == Some(key))
        })
    }

    pub(crate) fn begin_return(&mut self) {
        self.returns_begun += 1;
    }

    pub(crate) fn end_return(&mut self) {
        self.returns_ended += 1;
    }

    /// A socket that asked at `asked` was given this: a message of `len` bytes, or its beginning.
    pub(crate) fn taken(
        &mut self,
        socket: Key,
        asked: Asked,
        id: ConnectionId,
        bytes: &[u8],
        len: usize,
    ) {
        let connection = self
            .connections
            .get_mut(&id)
            .unwrap_or_else(|| panic!("a message of {id}, which was never attached"));
        let far = &mut self.peers[connection.far];
        let plan = &far.peer.plan;
        let (origin, number) = plan
            .wire
            .identity(bytes)
            .unwrap_or_else(|| panic!("{id}: no message begins with {bytes:?}"));
        let place = number as usize;
        let expected = plan.message(place).unwrap_or_else(|| {
            panic!(
                "{id}: message {place}, which is not whole: {:?}",
                crate::sent::head(bytes)
            )
        });
        assert_eq!(origin, far.peer.origin, "{id}: message {place} of another");
        assert_eq!(len, expected.len(), "{id}: the length of message {place}");
        assert!(
            bytes == &expected[..bytes.len()],
            "{id}: the bytes of message {place}"
        );
        assert!(
            place >= connection.first,
            "{id}: message {place} came before it was attached, at {}",
            connection.first
        );
        if let Some(first) = far.taken[place].replace(id) {
            panic!("{id}: message {place} twice, first from {first}");
        }
        if connection.ordered && connection.state == State::Attached {
            if let Some(holder) = connection.holder.filter(|&holder| holder != socket) {
                panic!(
                    "{id} is ordered, and {place} went to socket {socket} while {holder} is at work"
                );
            }
            let before = place.checked_sub(1).filter(|&p| p >= connection.first);
            assert!(
                before.is_none_or(|before| far.taken[before].is_some()),
                "{id} is ordered, and {place} came before the one before it"
            );
            connection.holder = Some(socket);
        }
        let (label, _) = plan.wire.label(number);
        if let Some(label) = label {
            let holder = self.keys.insert(label, socket);
            assert!(
                !self.one_thread || holder.is_none_or(|holder| holder == socket),
                "{id}: {place} of key {label} went to {socket} while {holder:?} is at work"
            );
        }
        // Only a message that had to wait for its key may come after later ones. (With several threads
        // it is not known which had to.)
        let waited = |then: &Asked| match label {
            Some(key) => !self.one_thread || self.questions || then.aside & 1 << key != 0,
            None => false,
        };
        for other in KEYS.map(Some).into_iter().chain([None]) {
            let Some((before, then)) = self.seen.get(&(socket, id, other)) else {
                continue;
            };
            // Messages that another socket had and gave back may be older than its own.
            let given_back = self.returns_begun > then.returns;
            assert!(
                *before < place || given_back || (other != label && waited(then)),
                "{id}: socket {socket} got {place} ({label:?}) after {before} ({other:?}, {then:?}, {:?})",
                connection.state
            );
        }
        self.seen.insert((socket, id, label), (place, asked));
        self.received += 1;
        self.received_bytes += len as u64;
    }

    /// The key and class of this message, by its bytes.
    pub(crate) fn label(&self, id: ConnectionId, bytes: &[u8]) -> (Option<u32>, u8) {
        let wire = self.peers[self.connections[&id].far].peer.plan.wire;
        let (_, number) = wire.identity(bytes).expect("it was known");
        wire.label(number)
    }

    /// The end of a connection was told.
    pub(crate) fn ended(&mut self, event: &ConnectionEvent) {
        let id = event.connection;
        let shut_down = self.shut_down;
        let connection = self.connection(id);
        let (state, limits) = (connection.state, connection.limits.clone());
        if let Some(before) = connection.end.replace(event.reason) {
            panic!("{id} ended twice: {before}, then {}", event.reason);
        }
        // A peer that has said all, but still listens, can be unattached after the news of it.
        let half = matches!(
            event.reason,
            EndReason::Eof | EndReason::EofInMessage { .. }
        );
        assert!(
            half || state != State::Unattached,
            "{id} was unattached: {event:?}"
        );
        let peer = self.peers[self.connections[&id].far].peer.clone();
        let feed = *peer.feed();
        let plan = &peer.plan;
        let partial = plan.bytes.len() - plan.ends.last().unwrap_or(&0);
        let right = match event.reason {
            EndReason::Closed => state == State::Closed || shut_down,
            EndReason::Eof => feed.ended && plan.ending == Ending::Eof && partial == 0,
            EndReason::EofInMessage { bytes } => {
                feed.ended && plan.ending == Ending::Eof && partial == bytes && bytes > 0
            }
            EndReason::Reset => peer.error() == Some(libc::ECONNRESET),
            EndReason::System(errno) => peer.error() == Some(errno),
            // Which message it was is looked at in the end.
            EndReason::Fault(Fault::TooBig { len, limit }) => {
                len > limit as u64 && limits.contains(&limit)
            }
            _ => false,
        };
        // A Unix stream that is gone may say no more than that it is at its end.
        let gone = peer.script().is_none() && peer.is_dead();
        let gone = gone
            && matches!(
                event.reason,
                EndReason::Eof | EndReason::EofInMessage { .. }
            );
        assert!(
            right || gone,
            "{id} ended with {:?}; planned {:?}, {feed:?}, {partial} bytes in a message, {state:?}",
            event.reason,
            plan.ending,
        );
    }

    pub(crate) fn has_ended(&self, id: ConnectionId) -> bool {
        self.connections[&id].end.is_some()
    }

    /// How many connections take new messages for sure.
    pub(crate) fn live(&self) -> usize {
        self.attached
            .iter()
            .filter(|id| {
                let connection = &self.connections[id];
                connection.end.is_none() && !self.peers[connection.far].peer.is_dead()
            })
            .count()
    }

    /// What is missing of the messages that have arrived whole on connections that live.
    pub(crate) fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (id, connection) in &self.connections {
            let far = &self.peers[connection.far];
            let whole = far.peer.plan.whole(far.peer.feed().written);
            let taken = far.taken[connection.first..]
                .iter()
                .take_while(|taken| taken.is_some())
                .count()
                + connection.first;
            let upto = match connection.state {
                State::Unattached => connection.upto.unwrap_or(connection.first),
                State::Attached if connection.lossy(far, taken) => taken,
                State::Attached => whole,
                // In somebody's hand, perhaps, but never with a gap.
                State::Leaving | State::Closed | State::Missed => taken,
            };
            if taken < upto {
                missing.push(format!(
                    "{id}: {taken} of {upto} messages came ({:?}, end {:?}, feed {:?})",
                    connection.state,
                    connection.end,
                    far.peer.feed()
                ));
            }
        }
        missing
    }

    /// Everything has been drained: what remains to be checked of the receiving side.
    pub(crate) fn check_received(&self) {
        for (id, connection) in &self.connections {
            let far = &self.peers[connection.far];
            let end = connection.upto.unwrap_or(far.taken.len());
            for place in connection.first..far.taken.len() {
                let here = far.taken[place] == Some(*id);
                assert!(
                    place < end || !here,
                    "{id}: {place} came, and was given back too ({end} on)"
                );
            }
            let mine: Vec<_> = (connection.first..end)
                .filter(|&place| far.taken[place] == Some(*id))
                .collect();
            let behind = mine.last().map_or(connection.first, |last| last + 1);
            for gap in (connection.first..behind).filter(|place| !mine.contains(place)) {
                // Closing drops what was given back or waits for its key, while others may have what
                // followed.
                let dropped = self.returns_begun > 0 || far.peer.plan.key(gap).is_some();
                assert!(
                    connection.state == State::Closed && dropped,
                    "{id}: a gap at message {gap} ({:?})",
                    connection.state
                );
            }
            let told = connection.end.is_some();
            match connection.state {
                State::Unattached => {}
                _ => assert!(told, "{id}: no event of its end ({:?})", connection.state),
            }
            if let Some(EndReason::Fault(Fault::TooBig { len, .. })) = connection.end {
                let next = far.peer.plan.message(connection.first + mine.len());
                let next = next.map(<[u8]>::len).or(far.peer.plan.begun);
                assert_eq!(
                    next.map(|len| len as u64),
                    Some(len),
                    "{id}: which was too big?"
                );
            }
        }
    }
}

impl Connection {
    /// Whether its stream may have been cut inside a message that was being sent.
    pub(crate) fn was_cut(&self) -> bool {
        matches!(
            self.end,
            Some(EndReason::Fault(_) | EndReason::Reset | EndReason::System(_))
        )
    }

    /// Whether not all that arrived must come out, when `taken` has.
    fn lossy(&self, far: &Far, taken: usize) -> bool {
        // What TCP throws away at a reset is its own affair.
        if far.peer.line.read().is_ok_and(|line| line.is_none()) {
            return true;
        }
        // Limits that were lowered for a while: this one may have been too big then.
        let next = far.peer.plan.message(taken).map_or(0, <[u8]>::len);
        self.limits.iter().any(|&limit| next > limit)
    }
}
