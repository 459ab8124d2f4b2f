//! What must come out at the peers: each message that was taken to be sent, whole, once, at the
//! peer it was for, and nothing else.

use std::collections::HashMap;

use crate::{peer::Peer, wire::Wire};

/// Who the messages of this side are from.
pub(crate) const US: u16 = u16::MAX;

#[derive(Default)]
pub(crate) struct Sent {
    messages: Vec<Message>,
    /// At some time no connection was left to go to: what was under way may be lost.
    pub(crate) stranded: bool,
}

struct Message {
    body: usize,
    /// Only to this peer.
    to: Option<usize>,
    /// Which thread sent it.
    by: usize,
    state: Promise,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Promise {
    /// The call has not returned.
    Open,
    Taken,
    Refused,
}

/// What became of a peer, for what may be missing there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is read to its end, or would be: nothing is missing, nothing is cut.
    Sound,
    /// Its connection died: the last message may be cut, and others have gone with it.
    Died,
    /// As above, and it took with it what had been handed to the system.
    Swallowed,
}

/// What was found at all peers.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) messages: u64,
    pub(crate) missing: u64,
}

impl Sent {
    /// A message is about to be sent; its number.
    pub(crate) fn begin(&mut self, by: usize, to: Option<usize>, body: usize) -> u32 {
        self.messages.push(Message {
            body,
            to,
            by,
            state: Promise::Open,
        });
        u32::try_from(self.messages.len() - 1).expect("few messages")
    }

    /// The call has returned.
    pub(crate) fn end(&mut self, number: u32, taken: bool) {
        self.messages[number as usize].state = if taken {
            Promise::Taken
        } else {
            Promise::Refused
        };
    }

    /// Messages that were taken to be sent.
    pub(crate) fn taken(&self) -> u64 {
        let taken = |message: &&Message| message.state == Promise::Taken;
        self.messages.iter().filter(taken).count() as u64
    }

    /// Looks at what all peers got, and what not.
    pub(crate) fn check(&self, wire: Wire, peers: &[(&Peer, Fate)]) -> Found {
        let mut found: HashMap<u32, usize> = HashMap::new();
        for (far, (peer, fate)) in peers.iter().enumerate() {
            let got = peer.got();
            let mut rest = &got[..];
            let mut last_of = HashMap::new();
            while let Some((number, len)) = self.first(wire, rest, far, *fate) {
                rest = &rest[len..];
                let message = &self.messages[number as usize];
                if let Some(other) = found.insert(number, far) {
                    panic!("message {number} came twice: to peer {other} and to peer {far}");
                }
                if message.to.is_some() {
                    let last = last_of.insert(message.by, number);
                    assert!(
                        last < Some(number),
                        "peer {far}: message {number} after {last:?} of the same thread"
                    );
                }
            }
        }
        let may_go_with_a_peer = peers.iter().any(|(_, fate)| *fate == Fate::Swallowed);
        let mut missing = 0;
        for (number, message) in (0..).zip(&self.messages) {
            if message.state != Promise::Taken || found.contains_key(&number) {
                continue;
            }
            missing += 1;
            match message.to {
                Some(far) => assert_ne!(
                    peers[far].1,
                    Fate::Sound,
                    "message {number} never came to peer {far}, which lives"
                ),
                None => assert!(
                    self.stranded || may_go_with_a_peer,
                    "message {number}, for anybody, never came to anyone"
                ),
            }
        }
        Found {
            messages: found.len() as u64,
            missing,
        }
    }

    /// The first message of what a peer got; `None` at the end.
    fn first(&self, wire: Wire, rest: &[u8], far: usize, fate: Fate) -> Option<(u32, usize)> {
        if rest.is_empty() {
            return None;
        }
        let whole = wire.identity(rest).map(|(origin, number)| {
            assert_eq!(origin, US, "peer {far}: no message begins {:?}", head(rest));
            let message = self.messages.get(number as usize);
            let message = message.unwrap_or_else(|| panic!("peer {far}: no message {number}"));
            let expected = wire.message(0, US, number, message.body);
            let len = expected.len().min(rest.len());
            assert!(
                rest[..len] == expected[..len],
                "peer {far}: message {number} is mixed with another"
            );
            if let Some(to) = message.to {
                assert_eq!(to, far, "message {number} came to the wrong peer");
            }
            (number, expected.len(), message.state)
        });
        match whole {
            Some((number, len, state)) if len <= rest.len() => {
                assert_eq!(state, Promise::Taken, "peer {far} got {number}, refused");
                Some((number, len))
            }
            cut => {
                assert_ne!(
                    fate,
                    Fate::Sound,
                    "peer {far} lives, and is left with {} bytes of {cut:?}",
                    rest.len()
                );
                None
            }
        }
    }
}

pub(crate) fn head(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(40)]
}
