//! What a socket has harvested for itself (a message on each of many connections) is for everybody who
//! asks while that socket's thread is busy.

mod common;

use std::{collections::BTreeSet, io::Read, net::TcpStream, thread};

use common::{epoll::Loop, *};
use kcm::{Multiplexor, Socket};

const CONNECTIONS: u32 = 20;

/// A socket that has just received the first of as many messages as there are connections, after others
/// that came as these do; so that it keeps the rest for itself.
struct Busy {
    mux: Multiplexor,
    socket: Socket,
    peers: Vec<TcpStream>,
    /// Senders of messages that were received.
    got: BTreeSet<u64>,
}

impl Busy {
    fn new() -> Self {
        Self::after(|peers| {
            for peer in &*peers {
                write(peer, &numbered(1, 9, 40));
            }
        })
    }

    /// Receives one message after this; the others, and all that peers do, have come then.
    fn after(act: impl FnOnce(&mut Vec<TcpStream>)) -> Self {
        let mux = mux();
        let mut socket = mux.socket().expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        let mut peers: Vec<_> = (0..CONNECTIONS).map(|_| attached(&mux).1).collect();
        for round in 0..3 {
            for peer in &peers {
                write(peer, &numbered(1, round, 40));
            }
            for _ in &peers {
                let message = socket.recv().expect("a message");
                message.reply(&message).expect("a reply");
            }
            for mut peer in &peers {
                peer.read_exact(&mut [0; 40]).expect("a reply");
            }
        }
        act(&mut peers);
        let mut this = Self {
            mux,
            socket,
            peers,
            got: BTreeSet::new(),
        };
        this.receive(1);
        this
    }

    fn receive(&mut self, messages: usize) {
        for _ in 0..messages {
            note(&mut self.got, &mut self.socket);
        }
    }

    fn is_complete(&self) -> bool {
        self.got.len() == self.peers.len()
    }
}

fn note(got: &mut BTreeSet<u64>, socket: &mut Socket) {
    let message = socket.recv().expect("a message");
    assert_eq!(*message, numbered(1, 9, 40)[..]);
    assert!(got.insert(message.connection().as_u64()), "it came twice");
}

#[test]
fn the_socket_itself_goes_on_with_it() {
    bounded(20, || {
        let mut busy = Busy::new();
        busy.receive(busy.peers.len() - 1);
        assert!(busy.is_complete());
        assert_eq!(busy.mux.stats().memory_bytes, 0);
    });
}

#[test]
fn another_that_begins_to_wait_has_all_of_it() {
    bounded(20, || {
        for nonblocking in [false, true] {
            let mut busy = Busy::new();
            let mut other = busy.mux.socket().expect("a socket");
            other.set_read_timeout(Some(SOON)).expect("a time limit");
            other.set_nonblocking(nonblocking).expect("it is");
            for _ in 1..busy.peers.len() {
                note(&mut busy.got, &mut other);
            }
            assert!(busy.is_complete());
        }
    });
}

#[test]
fn two_share_it_and_each_message_goes_to_one() {
    bounded(40, || {
        for _ in 0..50 {
            let mut busy = Busy::new();
            let mut other = busy.mux.socket().expect("a socket");
            let theirs = thread::spawn(move || {
                let mut got = BTreeSet::new();
                other.set_read_timeout(Some(A_WHILE)).expect("a time limit");
                while let Ok(message) = other.recv() {
                    assert!(got.insert(message.connection().as_u64()), "it came twice");
                }
                got
            });
            busy.socket
                .set_read_timeout(Some(A_WHILE))
                .expect("a time limit");
            while let Ok(message) = busy.socket.recv() {
                assert!(
                    busy.got.insert(message.connection().as_u64()),
                    "it came twice"
                );
            }
            let theirs = theirs.join().expect("it received");
            assert!(busy.got.is_disjoint(&theirs));
            busy.got.extend(theirs);
            assert!(busy.is_complete());
        }
    });
}

#[test]
fn who_polls_is_told_of_it() {
    bounded(20, || {
        let mut busy = Busy::new();
        let mut other = busy.mux.socket().expect("a socket");
        other.set_nonblocking(true).expect("it is");
        let polled = Loop::level(&other);
        for _ in 1..busy.peers.len() {
            polled.assert_ready();
            note(&mut busy.got, &mut other);
        }
        assert!(busy.is_complete());
    });
}

#[test]
fn a_socket_that_is_dropped_or_disabled_leaves_it_to_others() {
    bounded(20, || {
        for disables in [false, true] {
            let Busy {
                mux,
                socket,
                peers,
                mut got,
            } = Busy::new();
            let mut other = mux.socket().expect("a socket");
            other.set_read_timeout(Some(SOON)).expect("a time limit");
            let disabled = disables.then(|| {
                socket.set_receive_disabled(true);
                socket
            });
            for _ in 1..peers.len() {
                note(&mut got, &mut other);
            }
            assert_eq!(got.len(), peers.len());
            drop(disabled);
        }
    });
}

#[test]
fn ends_of_connections_in_it_are_found() {
    bounded(20, || {
        let busy = Busy::after(|peers| {
            write(&peers[0], &numbered(1, 9, 40));
            peers.truncate(1);
        });
        // The socket turns to other things for good.
        let ended: BTreeSet<_> = (1..CONNECTIONS)
            .map(|_| event_soon(&busy.mux).connection.as_u64())
            .collect();
        assert_eq!(ended.len(), CONNECTIONS as usize - 1);
        assert!(ended.is_disjoint(&busy.got));
        wait_until("they are gone", || busy.mux.stats().connections.len() == 1);
    });
}
