//! Small messages that come one by one on several connections, which are read the shortest way; and all
//! that may come in place of one.

mod common;

use std::{io::Read, net::TcpStream, time::Duration};

use common::*;
use kcm::{ConnectionId, EndReason, Limits, Multiplexor, Socket, SocketType, Verdict};

/// A multiplexor with two connections that have sent a small message each.
struct Two {
    mux: Multiplexor,
    socket: Socket,
    id: ConnectionId,
    peer: TcpStream,
    other: TcpStream,
}

impl Two {
    fn new() -> Self {
        Self::on(mux())
    }

    fn on(mux: Multiplexor) -> Self {
        let socket = mux.socket().expect("a socket");
        let (id, peer) = attached(&mux);
        let (_, other) = attached(&mux);
        socket.set_read_timeout(Some(SOON)).expect("a time limit");
        let mut this = Self {
            mux,
            socket,
            id,
            peer,
            other,
        };
        this.all_is_well();
        this
    }

    /// Single messages come and are answered, on both connections.
    fn all_is_well(&mut self) {
        for number in 0..3 {
            for mut peer in [&self.peer, &self.other] {
                let sent = numbered(1, number, 40);
                write(peer, &sent);
                let message = self.socket.recv().expect("a message");
                assert_eq!(*message, sent[..]);
                message.reply(&message).expect("a reply");
                let mut reply = [0; 40];
                peer.read_exact(&mut reply).expect("a reply");
                assert_eq!(reply, sent[..]);
            }
        }
    }

    /// How the first connection ends after this, while the other goes on.
    fn end_after(self, act: impl FnOnce(TcpStream) -> Option<TcpStream>) -> EndReason {
        let Self {
            mux,
            mut socket,
            id,
            peer,
            other,
        } = self;
        let _peer = act(peer);
        socket
            .set_read_timeout(Some(A_WHILE))
            .expect("a time limit");
        assert!(socket.recv().is_err(), "nothing whole was sent");
        let event = event_soon(&mux);
        assert_eq!(event.connection, id);
        let sent = numbered(2, 7, 40);
        write(&other, &sent);
        assert_eq!(*socket.recv().expect("a message"), sent[..]);
        event.reason
    }
}

#[test]
fn singles_are_counted_and_take_no_memory_when_they_are_gone() {
    bounded(20, || {
        let mut two = Two::new();
        two.all_is_well();
        let stats = two.mux.stats();
        assert_eq!(
            (stats.counters.rx_messages, stats.counters.rx_bytes),
            (12, 480)
        );
        assert_eq!(
            (stats.counters.tx_messages, stats.counters.tx_bytes),
            (12, 480)
        );
        assert_eq!(stats.sockets[0].counters.rx_messages, 12);
        assert_eq!(stats.memory_bytes, 0);
        for connection in &stats.connections {
            assert_eq!(
                (connection.counters.rx_messages, connection.unread_bytes),
                (6, 0)
            );
            assert!(!connection.in_message);
        }
        let sent = numbered(3, 1, 40);
        write(&two.peer, &sent);
        let kept = two.socket.recv().expect("a message");
        assert_eq!(two.mux.stats().memory_bytes, 40);
        let (_, rest) = two.mux.unattach(two.id).expect("unattached");
        assert!(rest.is_empty());
        assert_eq!(*kept, sent[..]);
        drop(kept);
        assert_eq!(two.mux.stats().memory_bytes, 0);
    });
}

#[test]
fn what_is_no_single_message_is_received_as_ever() {
    bounded(20, || {
        let mut two = Two::new();
        // Several at once, the last of them cut; then its rest with a short one behind it.
        let long = numbered(1, 9, 90);
        let burst = [&numbered(1, 7, 16)[..], &numbered(1, 8, 20), &long[..30]].concat();
        write(&two.peer, &burst);
        assert_eq!(
            *two.socket.recv().expect("the first"),
            numbered(1, 7, 16)[..]
        );
        assert_eq!(
            *two.socket.recv().expect("the second"),
            numbered(1, 8, 20)[..]
        );
        write(&two.peer, &[&long[30..], &numbered(1, 10, 16)].concat());
        assert_eq!(*two.socket.recv().expect("the third"), long[..]);
        assert_eq!(
            *two.socket.recv().expect("the fourth"),
            numbered(1, 10, 16)[..]
        );
        two.all_is_well();
        // More than is usual, and much more.
        for len in [104, 105, 3000, 1 << 20] {
            let sent = numbered(1, 11, len);
            write(&two.peer, &sent);
            assert_eq!(*two.socket.recv().expect("a long one"), sent[..]);
        }
        two.all_is_well();
    });
}

#[test]
fn every_end_is_told_as_what_it_is() {
    bounded(60, || {
        let sends_and_stays = |bytes: Vec<u8>| {
            move |peer: TcpStream| {
                write(&peer, &bytes);
                Some(peer)
            }
        };
        let limited = |limits| {
            let builder = Multiplexor::builder(framing()).limits(limits);
            Two::on(builder.build().expect("a mux"))
        };
        assert_eq!(Two::new().end_after(|_| None), EndReason::Eof);

        let reason = Two::new().end_after(|peer| {
            reset(peer);
            None
        });
        assert_eq!(reason, EndReason::Reset);

        let reason = Two::new().end_after(|peer| {
            write(&peer, &numbered(1, 7, 40)[..7]);
            None
        });
        assert_eq!(reason, EndReason::EofInMessage { bytes: 7 });

        let two = limited(Limits::default().with_max_message_bytes(64));
        let reason = two.end_after(sends_and_stays(numbered(1, 7, 65)));
        assert_eq!(reason.errno(), libc::EMSGSIZE);

        let deadline = Some(Duration::from_millis(20));
        let two = limited(Limits::default().with_assembly_deadline(deadline));
        let reason = two.end_after(sends_and_stays(numbered(1, 7, 40)[..39].to_vec()));
        assert_eq!(reason, EndReason::Deadline);
    });
}

#[test]
fn other_framings_and_ways_of_receiving() {
    bounded(20, || {
        // A function of the program's.
        let function = kcm::Framing::closure(|bytes| match bytes {
            [_, _, _, len, ..] => Verdict::message(u64::from(*len) + 4),
            _ => Verdict::NeedMore(4),
        });
        Two::on(Multiplexor::builder(function).build().expect("a mux")).all_is_well();

        let ordered = Multiplexor::builder(framing()).ordered(true).build();
        Two::on(ordered.expect("a mux")).all_is_well();

        let parts = Multiplexor::builder(framing())
            .socket_type(SocketType::SeqPacket)
            .build();
        let mut two = Two::on(parts.expect("a mux"));
        let sent = numbered(1, 3, 40);
        write(&two.peer, &sent);
        let mut room = [0; 30];
        assert_eq!(
            two.socket.recv_into(&mut room).expect("a part").len_bytes,
            30
        );
        assert_eq!(room, sent[..30]);
        assert_eq!(
            two.socket.recv_into(&mut room).expect("the rest").len_bytes,
            10
        );
        assert_eq!(room[..10], sent[30..]);

        // Disabled, and enabled again: nothing has moved.
        let mut two = Two::new();
        let connection = two.mux.connection(two.id).expect("it lives");
        connection.set_receive_disabled(true);
        write(&two.peer, &sent);
        two.socket
            .set_read_timeout(Some(A_WHILE))
            .expect("a time limit");
        assert!(two.socket.recv().is_err());
        connection.set_receive_disabled(false);
        assert_eq!(*two.socket.recv().expect("a message"), sent[..]);
    });
}

/// The only connection reads one message after the other into the same memory, but not into that of one
/// that somebody has.
#[test]
fn messages_that_are_kept_stay_as_they_are() {
    let mux = mux();
    let (id, mut peer) = attached(&mux);
    let mut socket = mux.socket().expect("a socket");
    let mut kept = Vec::new();
    for number in 0..40 {
        // Kept for a while or not at all; now and then one that finds no room in the memory kept.
        let body = if number % 9 == 8 { 4000 } else { 40 };
        let sent = numbered(1, number, body);
        write(&peer, &sent);
        let message = socket.recv().expect("a message");
        message.reply(&message).expect("a reply");
        let mut reply = vec![0; sent.len()];
        peer.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply, sent);
        if number % 3 != 0 {
            kept.push((message, sent));
        }
        if number % 7 == 6 {
            kept.remove(0);
        }
        for (message, sent) in &kept {
            assert_eq!(**message, sent[..]);
            assert_eq!(message.connection(), id);
        }
    }
    // Nothing of all that keeps the connection.
    drop(kept);
    drop((socket, mux));
    assert_eq!(peer.read(&mut [0]).expect("the end"), 0);
}
