//! Numbered messages on many connections, and the proof that all came, once and in order.

use std::{
    collections::HashMap,
    net::TcpStream,
    thread::{self, JoinHandle},
    time::Instant,
};

use kcm::{ConnectionId, Multiplexor, Socket};

use super::{
    NUMBERED_MIN, PROMPT, Random, attached, number_of, numbered, soon, tcp_pair, wait_arrived,
    write,
};

/// Sends `count` numbered messages on each of `connections` new connections, in random pieces.
pub(crate) fn senders(
    mux: &Multiplexor,
    connections: u32,
    count: u64,
    seed: u64,
) -> Vec<JoinHandle<TcpStream>> {
    (0..connections)
        .map(|connection| {
            let (_, peer) = attached(mux);
            let mut random = Random::new(seed + u64::from(connection));
            thread::spawn(move || {
                let mut pending = Vec::new();
                for number in 0..count {
                    let len = random.between(NUMBERED_MIN, 300);
                    pending.extend(numbered(connection, number, len));
                    if random.below(20) == 0 {
                        // Now and then in the middle of a message.
                        let cut = pending.len() - random.below(2) * 9;
                        write(&peer, &pending[..cut]);
                        pending.drain(..cut);
                    }
                }
                write(&peer, &pending);
                peer
            })
        })
        .collect()
}

/// What one consumer saw: per connection in ascending order, which is checked as it comes.
#[derive(Default)]
pub(crate) struct Seen {
    last: HashMap<u32, u64>,
    pub(crate) all: Vec<(u32, u64)>,
}

impl Seen {
    pub(crate) fn note(&mut self, message: &[u8]) {
        let (connection, number) = number_of(message);
        let last = self.last.insert(connection, number);
        assert!(
            last < Some(number),
            "{number} after {last:?} of {connection}"
        );
        self.all.push((connection, number));
    }
}

/// Everything was seen, and once.
#[track_caller]
pub(crate) fn assert_complete(mut all: Vec<(u32, u64)>, connections: u32, count: u64) {
    all.sort_unstable();
    let expected = (0..connections).flat_map(|c| (0..count).map(move |n| (c, n)));
    let first_wrong = all.iter().copied().zip(expected).find(|(a, b)| a != b);
    assert_eq!(first_wrong, None, "got and expected");
    assert_eq!(all.len() as u64, u64::from(connections) * count);
}

/// A burst of a hundred messages, all of it in the kernel.
pub(crate) fn burst(mux: &Multiplexor, len: usize) -> (ConnectionId, TcpStream) {
    let (ours, peer) = tcp_pair();
    let look = ours.try_clone().expect("dup");
    let bytes: Vec<u8> = (0..100).flat_map(|n| numbered(0, n, len)).collect();
    write(&peer, &bytes);
    wait_arrived(&look, bytes.len());
    (mux.attach(ours).expect("attached"), peer)
}

/// Takes the messages after the first, each of which must come at once.
#[track_caller]
pub(crate) fn take_the_others(socket: &mut Socket, count: usize) -> Vec<(u32, u64)> {
    let mut seen = Seen::default();
    for _ in 0..count {
        let start = Instant::now();
        seen.note(&soon(socket));
        assert!(
            start.elapsed() < PROMPT,
            "it was left behind: {:?}",
            start.elapsed()
        );
    }
    seen.all
}
