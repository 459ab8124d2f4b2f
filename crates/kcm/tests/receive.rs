//! What one receive call gives: short buffers on both socket types, peeking, batches, messages
//! from tiny to the limit, and what a message that is kept costs.

mod common;

use std::{
    net::{TcpListener, TcpStream},
    os::fd::AsFd,
    thread,
    time::Duration,
};

use common::*;
use kcm::{EndReason, Error, Fault, Limits, Message, Multiplexor, MuxLimits, Socket, SocketType};
use rustix::net::sockopt;

fn mux_of(kind: SocketType) -> Multiplexor {
    let builder = Multiplexor::builder(framing()).socket_type(kind);
    builder.build().expect("a mux")
}

#[test]
fn a_datagram_that_does_not_fit_is_cut_and_says_so() {
    bounded(20, || {
        let mux = mux_of(SocketType::Dgram);
        let (id, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        for room in [0, 1, 3, 4, 39, 40, 41, 1000] {
            let sent = numbered(1, 1, 40);
            write(&peer, &sent);
            write(&peer, &numbered(1, 2, 16));
            let mut buffer = vec![0xee; room];
            let got = socket.recv_into(&mut buffer).expect("a part of it");
            let fits = room.min(40);
            assert_eq!(got.len_bytes, fits);
            assert_eq!(buffer[..fits], sent[..fits]);
            assert!(buffer[fits..].iter().all(|&byte| byte == 0xee));
            assert_eq!(got.message_bytes, 40, "the true length");
            assert_eq!(got.truncated, room < 40);
            assert!(got.end_of_message, "the rest is gone: this is its end");
            assert_eq!(got.connection, id);
            // The rest was dropped.
            assert_eq!(number_of(&soon(&mut socket)), (1, 2));
        }
    });
}

#[test]
fn a_seqpacket_is_read_in_parts() {
    bounded(20, || {
        let mux = mux_of(SocketType::SeqPacket);
        let (id, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        let mut random = Random::new(3);
        for number in 0..200 {
            let sent = numbered(1, number, random.between(16, 300));
            write(&peer, &sent);
            let mut got = Vec::new();
            loop {
                let mut part = vec![0; random.between(1, 100)];
                let read = socket.recv_into(&mut part).expect("a part");
                assert!(!read.truncated);
                assert_eq!((read.message_bytes, read.connection), (sent.len(), id));
                got.extend_from_slice(&part[..read.len_bytes]);
                // The end is told with the last byte, not before and not after.
                assert_eq!(read.end_of_message, got.len() == sent.len());
                if read.end_of_message {
                    break;
                }
                assert_eq!(read.len_bytes, part.len(), "filled, as there is more");
            }
            assert_eq!(got, sent);
        }
        nothing(&mut socket);
    });
}

#[test]
fn a_half_read_message_stays_with_its_socket() {
    bounded(20, || {
        let mux = mux_of(SocketType::SeqPacket);
        let (id, peer) = attached(&mux);
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let sent = numbered(1, 0, 60);
        write(
            &peer,
            &[&sent[..], &numbered(1, 1, 30), &numbered(1, 2, 30)].concat(),
        );
        let mut part = [0; 25];
        first.set_read_timeout(Some(SOON)).expect("a limit");
        assert!(!first.recv_into(&mut part).expect("a part").end_of_message);
        // Others get the next ones, never the rest of this.
        assert_eq!(number_of(&soon(&mut second)), (1, 1));
        // Not even when its socket is disabled, or its connection gone.
        first.set_receive_disabled(true);
        assert_eq!(number_of(&soon(&mut second)), (1, 2));
        nothing(&mut second);
        mux.unattach(id).expect("unattached");
        first.set_receive_disabled(false);
        let got = first.recv_into(&mut part).expect("the next part");
        assert_eq!((got.len_bytes, got.end_of_message), (25, false));
        assert_eq!(part[..], sent[25..50]);
        let got = first.recv_into(&mut part).expect("the last part");
        assert_eq!((got.len_bytes, got.end_of_message), (10, true));
        assert_eq!(part[..10], sent[50..]);
        nothing(&mut first);
    });
}

#[test]
fn peek_takes_nothing() {
    bounded(20, || {
        for kind in [SocketType::Dgram, SocketType::SeqPacket] {
            let mux = mux_of(kind);
            let (id, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            socket.set_nonblocking(true).expect("non-blocking");
            assert!(matches!(socket.peek(), Err(Error::WouldBlock)));
            socket.set_nonblocking(false).expect("blocking");
            socket.set_read_timeout(Some(SOON)).expect("a limit");
            write(&peer, &[numbered(1, 1, 50), numbered(1, 2, 60)].concat());
            for number in 1..=2 {
                for _ in 0..3 {
                    let peeked = socket.peek().expect("a message");
                    assert_eq!(number_of(&peeked), (1, number));
                    assert_eq!(peeked.connection(), id);
                }
                let mut buffer = [0; 100];
                let got = socket.recv_into(&mut buffer).expect("the same");
                assert_eq!(number_of(&buffer[..got.len_bytes]), (1, number));
            }
            assert_eq!(mux.stats().counters.rx_messages, 2);
            nothing(&mut socket);
        }
    });
}

#[test]
fn a_half_read_message_is_peeked_at_and_received_from_where_it_was_left() {
    bounded(20, || {
        let mux = mux_of(SocketType::SeqPacket);
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        socket.set_read_timeout(Some(SOON)).expect("a limit");
        let sent = numbered(1, 1, 60);
        for way in 0..3 {
            write(&peer, &[&sent[..], &numbered(1, 2, 20)].concat());
            let got = socket.recv_into(&mut [0; 25]).expect("a part");
            assert!(!got.end_of_message);
            // No room is no end.
            let got = socket.recv_into(&mut []).expect("nothing of it");
            let seen = (got.len_bytes, got.truncated, got.end_of_message);
            assert_eq!(seen, (0, false, false));
            for _ in 0..2 {
                assert_eq!(socket.peek().expect("the rest")[..], sent[25..]);
            }
            match way {
                0 => assert_eq!(socket.recv().expect("the rest")[..], sent[25..]),
                1 => {
                    let mut rest = [0; 60];
                    let got = socket.recv_into(&mut rest).expect("the rest");
                    assert!(got.end_of_message);
                    assert_eq!((got.len_bytes, got.message_bytes), (35, 60));
                    assert_eq!(rest[..35], sent[25..]);
                }
                _ => {
                    let mut batch = socket.recv_batch(1).expect("one");
                    assert_eq!(batch.next().expect("the rest")[..], sent[25..]);
                }
            }
            assert_eq!(number_of(&soon(&mut socket)), (1, 2));
        }
    });
}

#[test]
fn a_peeked_message_is_not_lost_with_its_socket() {
    bounded(20, || {
        let mux = mux();
        let (_, peer) = attached(&mux);
        let mut first = mux.socket().expect("a socket");
        first.set_read_timeout(Some(SOON)).expect("a limit");
        write(&peer, &[numbered(1, 1, 50), numbered(1, 2, 60)].concat());
        assert_eq!(number_of(&first.peek().expect("a message")), (1, 1));
        drop(first);
        let mut second = mux.socket().expect("a socket");
        assert_eq!(number_of(&soon(&mut second)), (1, 1));
        assert_eq!(number_of(&soon(&mut second)), (1, 2));
    });
}

#[test]
fn a_batch_waits_for_the_first_and_takes_what_is_there() {
    bounded(20, || {
        let mux = mux();
        let (ours, peer) = tcp_pair();
        let look = ours.try_clone().expect("dup");
        mux.attach(ours).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        socket.set_read_timeout(Some(A_WHILE)).expect("a limit");
        assert!(matches!(
            socket.recv_batch(10).map(Iterator::count),
            Err(Error::WouldBlock)
        ));
        let bytes: Vec<u8> = (0..100).flat_map(|n| numbered(1, n, 20)).collect();
        write(&peer, &bytes);
        wait_arrived(&look, bytes.len());
        // Nobody else waits: all of it, up to the maximum.
        let mut next = 0;
        for max in [1, 7, 50, 1000] {
            let batch = socket.recv_batch(max).expect("some");
            let numbers: Vec<_> = batch.map(|message| number_of(&message).1).collect();
            assert_eq!(numbers.len() as u64, (max as u64).min(100 - next));
            assert!(
                numbers
                    .iter()
                    .copied()
                    .eq(next..next + numbers.len() as u64)
            );
            next += numbers.len() as u64;
        }
        assert_eq!(next, 100);
        // What is not taken out of a batch is not lost.
        write(&peer, &bytes);
        wait_arrived(&look, bytes.len());
        let mut batch = socket.recv_batch(50).expect("some");
        let first = batch.next().map(|message| number_of(&message));
        assert_eq!(first, Some((1, 0)));
        drop(batch);
        for number in 1..100 {
            assert_eq!(number_of(&soon(&mut socket)), (1, number));
        }
    });
}

#[test]
fn a_batch_takes_its_share_while_others_wait() {
    bounded(20, || {
        for round in 0..20 {
            let mux = mux();
            let (_, peer) = attached(&mux);
            let waiting: Vec<_> = (0..4)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    socket.set_read_timeout(Some(SOON)).expect("a limit");
                    spawn_asleep(move || {
                        // Once only: what it leaves has to be enough for the others.
                        let batch = socket.recv_batch(1000).expect("its share");
                        let numbers: Vec<_> = batch.map(|m| number_of(&m).1).collect();
                        (numbers, socket)
                    })
                })
                .collect();
            let bytes: Vec<u8> = (0..100).flat_map(|n| numbered(1, n, 20)).collect();
            write(&peer, &bytes);
            let shares: Vec<_> = waiting
                .into_iter()
                .map(|t| t.join().expect("received"))
                .collect();
            let mut all = Vec::new();
            for (numbers, mut socket) in shares {
                assert!(!numbers.is_empty() && numbers.len() <= 50, "round {round}");
                all.extend(numbers);
                all.extend(drain(&mut socket).iter().map(|m| number_of(m).1));
            }
            let mut last = mux.socket().expect("a socket");
            all.extend(drain(&mut last).iter().map(|m| number_of(m).1));
            all.sort_unstable();
            assert!(all.into_iter().eq(0..100), "round {round}");
        }
    });
}

/// Sends these bytes in pieces while the socket receives.
fn transfer(peer: TcpStream, bytes: Vec<u8>, piece: usize, socket: &mut Socket) -> Message {
    let writer = thread::spawn(move || {
        for piece in bytes.chunks(piece) {
            write(&peer, piece);
        }
        peer
    });
    let message = soon(socket);
    drop(writer.join().expect("written"));
    message
}

#[test]
fn messages_up_to_the_limit() {
    bounded(60, || {
        const LIMIT: usize = 16 << 20;
        for len in [1 << 20, LIMIT - 1, LIMIT] {
            let mux = mux();
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            let message = transfer(peer, numbered(1, 1, len), 1 << 20, &mut socket);
            assert_eq!(message.len(), len);
            assert_eq!(number_of(&message), (1, 1));
        }
        // One byte more.
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let receiver = receive_all(&mux);
        write(&peer, &numbered(1, 1, 100));
        let announced = u32::try_from(LIMIT + 1 - 4).expect("below 4 GiB");
        write(&peer, &announced.to_be_bytes());
        let event = event_soon(&mux);
        assert_eq!(event.connection, id);
        let (len, limit) = (LIMIT as u64 + 1, LIMIT);
        assert_eq!(event.reason, EndReason::Fault(Fault::TooBig { len, limit }));
        assert_eq!(event.reason.errno(), libc::EMSGSIZE);
        assert_ended(&mut peer);
        mux.shutdown();
        assert_eq!(receiver.join().expect("received"), [numbered(1, 1, 100)]);
    });
}

/// With hardly a limit: a peer that announces more than any machine has costs what it sends.
#[test]
fn a_long_message_takes_memory_as_it_comes() {
    alone(60, || {
        const MIB: usize = 1 << 20;
        let framing: kcm::Framing = "u64be+8".parse().expect("a framing");
        let limits = Limits::default().with_max_message_bytes(usize::MAX);
        for len in [1 << 45, i64::MAX as u64] {
            let mux = Multiplexor::builder(framing.clone()).limits(limits).build();
            let mux = mux.expect("a mux");
            let (_, peer) = attached(&mux);
            let receiver = receive_all(&mux);
            write(&peer, &len.to_be_bytes());
            write(&peer, &[7; 1000]);
            thread::sleep(A_WHILE);
            assert!(mux.stats().memory_bytes <= 128 * MIB);
            drop(peer);
            let reason = event_soon(&mux).reason;
            assert_eq!(reason, EndReason::EofInMessage { bytes: 1008 });
            mux.shutdown();
            assert!(receiver.join().expect("received").is_empty());
        }
        // One that does come is whole.
        let mux = Multiplexor::builder(framing).limits(limits).build();
        let mux = mux.expect("a mux");
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        let writer = thread::spawn(move || {
            write(&peer, &(150 * MIB as u64).to_be_bytes());
            for piece in 0..150 {
                write(&peer, &[piece; MIB]);
            }
            write(&peer, &[0, 0, 0, 0, 0, 0, 0, 1, 9]);
            peer
        });
        let message = soon(&mut socket);
        let pieces = message[8..].chunks(MIB);
        assert_eq!(pieces.len(), 150);
        for (piece, bytes) in (0..).zip(pieces) {
            assert!(bytes == [piece; MIB], "piece {piece}");
        }
        assert_eq!(soon(&mut socket)[8..], [9]);
        drop(writer.join().expect("written"));
    });
}

#[test]
fn a_long_message_among_short_ones() {
    bounded(30, || {
        let mux = mux();
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        // All offsets that a burst can begin and end at, around the sizes of bursts.
        let lengths = [65_536, 65_535, 65_537, 131_072, 262_144, 1_000_000, 262_143];
        let mut bytes = Vec::new();
        let mut expected = 0;
        for len in lengths {
            for len in [16, 17, len, 40] {
                bytes.extend(numbered(1, expected, len));
                expected += 1;
            }
        }
        let writer = thread::spawn(move || {
            write(&peer, &bytes);
            peer
        });
        for number in 0..expected {
            assert_eq!(number_of(&soon(&mut socket)), (1, number));
        }
        writer.join().expect("written");
    });
}

#[test]
fn nearly_the_receive_buffer_in_tiny_segments() {
    bounded(60, || {
        // The kernel's KCM never completes either of these.
        for (buffer, len, segment) in [(65_536, 62_259, 500), (131_072, 124_518, 200)] {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
            sockopt::set_socket_recv_buffer_size(&listener, buffer / 2).expect("SO_RCVBUF");
            let (ours, peer) = tcp_pair_of(&listener);
            let mux = mux();
            mux.attach(ours).expect("attached");
            let mut socket = mux.socket().expect("a socket");
            let message = transfer(peer, numbered(1, 1, len), segment, &mut socket);
            assert_eq!(number_of(&message), (1, 1));
        }
        // And all of it there before anybody asks.
        let (ours, peer) = tcp_pair();
        sockopt::set_socket_recv_buffer_size(&ours, 32_768).expect("SO_RCVBUF");
        peer.set_nonblocking(true).expect("non-blocking");
        let bytes = numbered(1, 1, 62_259);
        let sent: usize = bytes
            .chunks(500)
            .map_while(|piece| std::io::Write::write(&mut &peer, piece).ok())
            .sum();
        peer.set_nonblocking(false).expect("blocking");
        let mux = mux();
        mux.attach(ours).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        let message = transfer(peer, bytes[sent..].to_vec(), 500, &mut socket);
        assert_eq!(number_of(&message), (1, 1));
    });
}

/// Keeps one short message of each burst of this many bytes, and drops the others.
fn keep_some(mux: &Multiplexor, bursts: u64, len: usize) -> Vec<Message> {
    let (_, peer) = attached(mux);
    let mut socket = mux.socket().expect("a socket");
    let fill = numbered(2, 0, 1000).repeat(len / 1000);
    let writer = thread::spawn(move || {
        for number in 0..bursts {
            write(&peer, &[&numbered(1, number, 64), &fill[..]].concat());
        }
        peer
    });
    let mut kept = Vec::new();
    for number in 0..bursts {
        let message = soon(&mut socket);
        assert_eq!(number_of(&message), (1, number));
        kept.push(message);
        for _ in 0..len / 1000 {
            assert_eq!(soon(&mut socket).len(), 1000);
        }
    }
    writer.join().expect("written");
    kept
}

fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("/proc");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("VmRSS").trim().trim_end_matches(" kB");
    kib.parse::<usize>().expect("a number") << 10
}

#[test]
fn short_messages_that_are_kept_do_not_pin_their_bursts() {
    alone(60, || {
        let mux = mux();
        drop(keep_some(&mux, 100, 60_000));
        let before = resident_bytes();
        let kept = keep_some(&mux, 2000, 60_000);
        let more = resident_bytes().saturating_sub(before);
        assert_eq!(kept.len(), 2000);
        // 120 MB have passed, 128 kB are kept.
        assert!(more < 16 << 20, "{more} bytes for {} kept", kept.len());
    });
}

#[test]
fn short_messages_that_are_kept_do_not_use_up_the_memory_limit() {
    bounded(60, || {
        let mut limits = MuxLimits::default();
        limits.max_memory_bytes = 4 << 20;
        let builder = Multiplexor::builder(framing()).mux_limits(limits);
        let mux = builder.build().expect("a mux");
        assert_eq!(keep_some(&mux, 1000, 60_000).len(), 1000);
    });
}

#[test]
fn a_message_may_be_kept_and_answered_by_another_thread() {
    bounded(20, || {
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &numbered(1, 1, 5000));
        let message = soon(&mut socket);
        drop(socket);
        let thread = thread::spawn(move || {
            assert_eq!(number_of(&message), (1, 1));
            message.reply(&numbered(2, 2, 50)).expect("answered");
            message.connection()
        });
        assert_eq!(thread.join().expect("answered"), id);
        let reply = read_message(&mut peer).expect("the answer");
        assert_eq!(number_of(&reply), (2, 2));
    });
}

#[test]
fn limits_of_one_connection_may_change() {
    bounded(20, || {
        let mux = mux();
        let (id, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        let connection = mux.connection(id).expect("it is there");
        assert!(connection.as_fd().try_clone_to_owned().is_ok());
        write(&peer, &numbered(1, 1, 2000));
        assert_eq!(number_of(&soon(&mut socket)), (1, 1));
        connection.set_limits(Limits::default().with_max_message_bytes(1000));
        write(&peer, &numbered(1, 2, 1000));
        assert_eq!(number_of(&soon(&mut socket)), (1, 2));
        write(&peer, &numbered(1, 3, 1001));
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .expect("ok");
        assert!(matches!(socket.recv().map(drop), Err(Error::WouldBlock)));
        let (len, limit) = (1001, 1000);
        let reason = EndReason::Fault(Fault::TooBig { len, limit });
        assert_eq!(event_soon(&mux).reason, reason);
    });
}
