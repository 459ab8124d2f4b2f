//! One socket that goes from burst to burst of its only connection, and all that may come while it
//! waits for the next one, with its walk and the watch in its hands (`read_on.rs`).

mod common;

use std::{
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use common::*;
use kcm::{ConnectionId, EndReason, Error, Fault, Framing, Limits, Message, Multiplexor, Socket};

/// Enough for a walk that reads on.
const BURST: u64 = 20;
const LEN: usize = 40;

struct Walk {
    mux: Multiplexor,
    socket: Socket,
    id: ConnectionId,
    peer: TcpStream,
    sent: u64,
    received: u64,
}

impl Walk {
    /// Two bursts have been walked through: whoever receives next reads on.
    fn new() -> Self {
        let mux = mux();
        let (id, peer) = attached(&mux);
        let mut walk = Self {
            socket: mux.socket().expect("a socket"),
            mux,
            id,
            peer,
            sent: 0,
            received: 0,
        };
        for _ in 0..2 {
            walk.send_burst();
            walk.receive_burst();
        }
        walk
    }

    fn send_burst(&mut self) {
        let burst = self.sent..self.sent + BURST;
        self.sent = burst.end;
        let bytes: Vec<u8> = burst.flat_map(|n| numbered(1, n, LEN)).collect();
        write(&self.peer, &bytes);
    }

    fn receive_burst(&mut self) -> Vec<Message> {
        (0..BURST).map(|_| self.receive()).collect()
    }

    fn receive(&mut self) -> Message {
        let message = self.socket.recv().expect("a message");
        assert_eq!(*message, numbered(1, self.received, LEN)[..]);
        self.received += 1;
        message
    }

    /// Receives while something is done, and gives back what came of it.
    fn meanwhile<R>(
        mut self,
        act: impl FnOnce(&Multiplexor, ConnectionId, &TcpStream) -> R,
    ) -> (Self, Result<Message, Error>, R) {
        let (mux, id) = (self.mux.clone(), self.id);
        let peer = self.peer.try_clone().expect("the peer");
        let receiver = spawn_asleep(move || {
            let result = self.socket.recv();
            (self, result)
        });
        let acted = act(&mux, id, &peer);
        let (walk, result) = receiver.join().expect("no panic");
        (walk, result, acted)
    }

    /// How the connection ends after this, which is done while it waits; then it is shut down.
    fn end_after(self, act: impl FnOnce(&TcpStream)) -> EndReason {
        let (_, result, reason) = self.meanwhile(|mux, _, peer| {
            act(peer);
            let reason = event_soon(mux).reason;
            mux.shutdown();
            reason
        });
        assert!(matches!(result, Err(Error::Closed)), "{result:?}");
        reason
    }
}

#[test]
fn bursts_follow_one_another_whatever_is_kept_of_them() {
    bounded(20, || {
        let mut walk = Walk::new();
        let mut kept = Vec::new();
        for round in 0..100 {
            walk.send_burst();
            let messages = walk.receive_burst();
            if round % 3 == 0 {
                kept.extend(messages);
            }
        }
        let stats = walk.mux.connection(walk.id).expect("there").stats();
        assert_eq!(stats.counters.rx_messages, walk.received);
        assert_eq!(stats.counters.rx_bytes, walk.received * LEN as u64);
        for message in kept {
            let (_, number) = number_of(&message);
            assert_eq!(*message, numbered(1, number, LEN)[..]);
        }
    });
}

#[test]
fn bursts_may_be_cut_anywhere() {
    bounded(20, || {
        let mut walk = Walk::new();
        let mut random = Random::new(7);
        for _ in 0..200 {
            let burst = walk.sent..walk.sent + BURST;
            walk.sent = burst.end;
            let bytes: Vec<u8> = burst.flat_map(|n| numbered(1, n, LEN)).collect();
            let (first, second) = bytes.split_at(random.below(bytes.len()));
            write(&walk.peer, first);
            for _ in 0..first.len() / LEN {
                walk.receive();
            }
            let (peer, second) = (walk.peer.try_clone().expect("the peer"), second.to_vec());
            let rest = thread::spawn(move || write(&peer, &second));
            while walk.received < walk.sent {
                walk.receive();
            }
            rest.join().expect("written");
        }
    });
}

#[test]
fn batches_go_on_too() {
    bounded(20, || {
        let mut walk = Walk::new();
        for _ in 0..50 {
            walk.send_burst();
            while walk.received < walk.sent {
                for message in walk.socket.recv_batch(6).expect("messages") {
                    assert_eq!(*message, numbered(1, walk.received, LEN)[..]);
                    walk.received += 1;
                }
            }
        }
    });
}

#[test]
fn another_socket_shares_what_comes() {
    bounded(20, || {
        let walk = Walk::new();
        let mut other = walk.mux.socket().expect("a socket");
        let (walk, mine, others) = walk.meanwhile(|_, _, peer| {
            let other = spawn_asleep(move || other.recv().map(|message| message.to_vec()));
            write(peer, &numbered(1, 40, LEN));
            // (Whoever has it, the next one is for who still waits.)
            write(peer, &numbered(1, 41, LEN));
            other
        });
        let mut both = [
            mine.expect("a message").to_vec(),
            others.join().expect("no panic").expect("a message"),
        ];
        both.sort();
        assert_eq!(both, [numbered(1, 40, LEN), numbered(1, 41, LEN)]);
        drop(walk);
    });
}

#[test]
fn another_connection_is_heard() {
    bounded(20, || {
        let (_walk, result, (id, _peer)) = Walk::new().meanwhile(|mux, _, _| {
            let (id, peer) = attached(mux);
            write(&peer, &numbered(2, 0, LEN));
            (id, peer)
        });
        assert_eq!(result.expect("a message").connection(), id);
    });
}

#[test]
fn shutting_down_wakes_it() {
    bounded(20, || {
        let (_, result, ()) = Walk::new().meanwhile(|mux, _, _| mux.shutdown());
        assert!(matches!(result, Err(Error::Closed)), "{result:?}");
    });
}

#[test]
fn a_connection_that_is_taken_away_comes_with_its_rest() {
    bounded(20, || {
        let walk = Walk::new();
        let half = &numbered(1, 40, LEN)[..LEN / 2];
        write(&walk.peer, half);
        let (_, result, rest) = walk.meanwhile(|mux, id, _| {
            let (_stream, rest) = mux.unattach(id).expect("the stream");
            mux.shutdown();
            rest
        });
        assert_eq!(rest, half);
        assert!(matches!(result, Err(Error::Closed)), "{result:?}");
    });
}

#[test]
fn new_framing_and_limits_hold_for_the_next_burst() {
    bounded(20, || {
        let (mut walk, result, ()) = Walk::new().meanwhile(|mux, id, peer| {
            let connection = mux.connection(id).expect("there");
            connection.set_framing("fixed:3".parse::<Framing>().expect("a framing"));
            write(peer, b"abcdef");
        });
        assert_eq!(*result.expect("a message"), *b"abc");
        assert_eq!(*walk.socket.recv().expect("a message"), *b"def");

        let walk = Walk::new();
        let connection = walk.mux.connection(walk.id).expect("there");
        let reason = walk.end_after(|peer| {
            connection.set_limits(Limits::default().with_max_message_bytes(LEN - 1));
            write(peer, &numbered(1, 40, LEN));
        });
        let too_big = matches!(reason, EndReason::Fault(Fault::TooBig { .. }));
        assert!(too_big, "{reason:?}");
    });
}

#[test]
fn what_was_changed_during_the_walk_holds() {
    bounded(20, || {
        let mut walk = Walk::new();
        walk.send_burst();
        for _ in 0..BURST / 2 {
            walk.receive();
        }
        walk.mux.connection(walk.id).expect("there").close();
        for _ in 0..BURST / 2 {
            walk.receive();
        }
        assert_eq!(walk.end_after(|_| ()), EndReason::Closed);
    });
}

#[test]
fn ends_are_told_after_what_came_before() {
    bounded(20, || {
        for (tail, expected) in [
            (0, EndReason::Eof),
            (LEN / 2, EndReason::EofInMessage { bytes: LEN / 2 }),
        ] {
            let mut walk = Walk::new();
            walk.send_burst();
            write(&walk.peer, &numbered(1, 60, LEN)[..tail]);
            walk.receive_burst();
            let end = |peer: &TcpStream| peer.shutdown(Shutdown::Write).expect("half closed");
            assert_eq!(walk.end_after(end), expected);
        }
    });
}

#[test]
fn the_rest_of_a_message_is_not_waited_for_for_ever() {
    bounded(20, || {
        let mut walk = Walk::new();
        let deadline = Some(Duration::from_millis(200));
        let connection = walk.mux.connection(walk.id).expect("there");
        connection.set_limits(Limits::default().with_assembly_deadline(deadline));
        walk.send_burst();
        write(&walk.peer, &numbered(1, 60, LEN)[..LEN / 2]);
        walk.receive_burst();
        assert_eq!(walk.end_after(|_| ()), EndReason::Deadline);
    });
}
