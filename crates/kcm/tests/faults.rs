//! Faults: every way in which a peer can go wrong or go away, the event that tells it, and that
//! nobody else is disturbed.

mod common;

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use common::*;
use kcm::{EndReason, Fault, Framing, Limits, Multiplexor, Verdict};
use rustix::net::SendFlags;

/// The end of a connection whose peer does this after two whole messages, which are received.
#[track_caller]
fn end_after(mux: &Multiplexor, act: impl FnOnce(TcpStream) -> Option<TcpStream>) -> EndReason {
    let (id, peer) = attached(mux);
    let receiver = receive_all(mux);
    let two = [numbered(1, 0, 100), numbered(1, 1, 40)];
    write(&peer, &two.concat());
    let peer = act(peer);
    let event = event_soon(mux);
    assert_eq!(event.connection, id);
    assert_eq!(mux.try_next_event(), None, "it ends once");
    if let Some(mut peer) = peer {
        assert_ended(&mut peer);
    }
    wait_until("it is gone", || mux.connections().is_empty());
    mux.shutdown();
    assert_eq!(receiver.join().expect("received"), two, "what came whole");
    event.reason
}

#[test]
fn the_peer_ends_it() {
    bounded(20, || {
        let reason = end_after(&mux(), |peer| {
            drop(peer);
            None
        });
        assert_eq!((reason, reason.errno()), (EndReason::Eof, libc::EPIPE));

        let reason = end_after(&mux(), |peer| {
            peer.shutdown(Shutdown::Write).expect("half closed");
            Some(peer)
        });
        assert_eq!(reason, EndReason::Eof);

        for bytes in [1, 3, 4, 5, 99] {
            let reason = end_after(&mux(), |peer| {
                write(&peer, &numbered(1, 2, 100)[..bytes]);
                drop(peer);
                None
            });
            assert_eq!(reason, EndReason::EofInMessage { bytes });
            assert_eq!(reason.errno(), libc::EPIPE);
        }

        for bytes in [0, 50] {
            let reason = end_after(&mux(), |peer| {
                write(&peer, &numbered(1, 2, 100)[..bytes]);
                reset(peer);
                None
            });
            assert_eq!(
                (reason, reason.errno()),
                (EndReason::Reset, libc::ECONNRESET)
            );
        }
    });
}

#[test]
fn a_reset_is_told_as_one_while_spinning() {
    bounded(20, || {
        for _ in 0..30 {
            let mux = Multiplexor::builder(framing()).spin(true).build();
            let reason = end_after(&mux.expect("a mux"), |peer| {
                reset(peer);
                None
            });
            assert_eq!(reason, EndReason::Reset);
        }
    });
}

#[test]
fn what_the_peer_sends_is_refused() {
    bounded(20, || {
        // 4 GiB announced: not a byte of it is waited for.
        let reason = end_after(&mux(), |peer| {
            write(&peer, &[0xff; 4]);
            Some(peer)
        });
        let (len, limit) = (u64::from(u32::MAX) + 4, 16 << 20);
        assert_eq!(reason, EndReason::Fault(Fault::TooBig { len, limit }));
        assert_eq!(reason.errno(), libc::EMSGSIZE);

        // A parser that always wants more, to a peer that always has more.
        let greedy = Framing::closure(|bytes| match bytes {
            [0xff, ..] | [] => Verdict::NeedMore(0),
            [_, _, _, len, ..] => Verdict::message(u64::from(*len) + 4),
            _ => Verdict::NeedMore(4),
        });
        let mux = Multiplexor::builder(greedy.clone()).build().expect("a mux");
        let reason = end_after(&mux, |mut peer| {
            let mut sent = 0;
            while sent < 64 << 20 && peer.write_all(&[0xff; 4096]).is_ok() {
                sent += 4096;
            }
            assert!(sent < 64 << 20, "it ends long before");
            None
        });
        assert_eq!(
            reason,
            EndReason::Fault(Fault::HeaderTooLong { limit: 64 << 10 })
        );
        assert_eq!(reason.errno(), libc::EMSGSIZE);

        // The same with a limit of one's own.
        let limits = Limits::default().with_max_header_bytes(100);
        let mux = Multiplexor::builder(greedy).limits(limits).build();
        let reason = end_after(&mux.expect("a mux"), |peer| {
            for _ in 0..101 {
                let _ = (&peer).write(&[0xff]);
            }
            Some(peer)
        });
        assert_eq!(
            reason,
            EndReason::Fault(Fault::HeaderTooLong { limit: 100 })
        );

        // A parser's own word.
        let strict = Framing::closure(|bytes| match bytes.first_chunk() {
            None => Verdict::NeedMore(4),
            Some(&[0, 0, 0, len]) => Verdict::message(u64::from(len) + 4),
            Some(_) => Verdict::Error(libc::ENODATA),
        });
        let mux = Multiplexor::builder(strict).build().expect("a mux");
        let reason = end_after(&mux, |peer| {
            write(&peer, &[1; 4]);
            Some(peer)
        });
        let errno = libc::ENODATA;
        assert_eq!(reason, EndReason::Fault(Fault::Parser { errno }));
        assert_eq!(reason.errno(), errno);
    });
}

#[test]
fn closing_it_here_is_an_event_too() {
    bounded(20, || {
        let mux = mux();
        let reason = end_after(&mux, |peer| {
            wait_until("both are received", || {
                mux.stats().counters.rx_messages == 2
            });
            mux.connections()[0].close();
            Some(peer)
        });
        assert_eq!((reason, reason.errno()), (EndReason::Closed, 0));
    });
}

#[test]
fn a_half_closed_peer_gets_its_replies_and_then_the_end() {
    bounded(20, || {
        // Straight away, and by a thread that takes its time.
        for delay in [Duration::ZERO, A_WHILE] {
            let mux = mux();
            let (id, mut peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            let server = thread::spawn(move || {
                loop {
                    let Ok(message) = socket.recv() else { return };
                    thread::sleep(delay);
                    message.reply(&message).expect("replied");
                }
            });
            let requests: Vec<_> = (0..3).map(|n| numbered(1, n, 200_000)).collect();
            write(&peer, &requests.concat());
            peer.shutdown(Shutdown::Write).expect("half closed");
            for request in requests {
                assert!(read_message(&mut peer).expect("a reply") == request);
            }
            let start = Instant::now();
            assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
            assert!(
                start.elapsed() < PROMPT,
                "the end came late: {:?}",
                start.elapsed()
            );
            let event = event_soon(&mux);
            assert_eq!((event.connection, event.reason), (id, EndReason::Eof));
            wait_until("it is gone", || mux.connections().is_empty());
            mux.shutdown();
            server.join().expect("served");
        }
    });
}

#[test]
fn a_message_kept_past_the_peers_end_can_be_answered() {
    bounded(20, || {
        // For a moment, and for longer than anybody would think.
        for keep in [Duration::ZERO, Duration::from_millis(2500)] {
            let mux = mux();
            let (_, mut peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            write(&peer, &numbered(1, 1, 50));
            let kept = soon(&mut socket);
            let others = receive_all(&mux);
            peer.shutdown(Shutdown::Write).expect("half closed");
            assert_eq!(event_soon(&mux).reason, EndReason::Eof);
            thread::sleep(keep);
            kept.reply(&numbered(2, 2, 50)).expect("replied");
            let reply = read_message(&mut peer).expect("the reply");
            assert_eq!(number_of(&reply), (2, 2));
            drop(kept);
            let start = Instant::now();
            assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
            assert!(
                start.elapsed() < PROMPT,
                "the end came late: {:?}",
                start.elapsed()
            );
            mux.shutdown();
            others.join().expect("received");
        }
    });
}

/// An answer in several messages; with threads that find the peer's end before the first of them, or
/// in the middle.
#[test]
fn a_half_closed_peer_gets_more_replies_than_it_sent_requests() {
    bounded(60, || {
        for threads in 1..=3 {
            for (before, between) in [(0, 20), (60, 0), (60, 20)].map(|(before, between)| {
                (
                    Duration::from_millis(before),
                    Duration::from_millis(between),
                )
            }) {
                let mux = mux();
                let (_, mut peer) = attached(&mux);
                let servers: Vec<_> = (0..threads)
                    .map(|_| {
                        let mut socket = mux.socket().expect("a socket");
                        thread::spawn(move || {
                            while let Ok(message) = socket.recv() {
                                thread::sleep(before);
                                for _ in 0..5 {
                                    message.reply(&message).expect("replied");
                                    thread::sleep(between);
                                }
                            }
                        })
                    })
                    .collect();
                let requests: Vec<_> = (0..2).map(|n| numbered(1, n, 100)).collect();
                write(&peer, &requests.concat());
                peer.shutdown(Shutdown::Write).expect("half closed");
                let mut replies: Vec<_> = (0..10)
                    .map(|_| number_of(&read_message(&mut peer).expect("a reply")))
                    .collect();
                replies.sort_unstable();
                assert_eq!(replies, [[(1, 0); 5], [(1, 1); 5]].concat());
                let start = Instant::now();
                assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
                assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
                mux.shutdown();
                servers.into_iter().for_each(|s| s.join().expect("served"));
            }
        }
    });
}

#[test]
fn a_half_closed_peer_that_nobody_answers_gets_its_end() {
    bounded(20, || {
        for receivers in [1, 3] {
            let mux = mux();
            let (id, mut peer) = attached(&mux);
            // Who only looks at it does not answer.
            let connection = mux.connection(id).expect("it is there");
            let receivers: Vec<_> = (0..receivers).map(|_| receive_all(&mux)).collect();
            // One that each of them remembers.
            for number in 0..20 {
                write(&peer, &numbered(1, number, 50));
                thread::sleep(Duration::from_millis(1));
            }
            peer.shutdown(Shutdown::Write).expect("half closed");
            // The messages are gone without an answer.
            assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
            wait_until("it is gone", || mux.connections().is_empty());
            drop(connection);
            mux.shutdown();
            for receiver in receivers {
                receiver.join().expect("received");
            }
        }
    });
}

#[test]
fn one_that_nobody_answers_gets_its_end_from_a_socket_that_is_polled_too() {
    bounded(20, || {
        let mux = mux();
        let (_, mut peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        write(&peer, &[numbered(1, 1, 50), numbered(1, 2, 50)].concat());
        peer.shutdown(Shutdown::Write).expect("half closed");
        let mut received = 0;
        wait_until("both came", || {
            received += usize::from(socket.recv().is_ok());
            received == 2
        });
        // The socket looks once more, and then waits in a poll that tells nothing.
        assert!(matches!(socket.recv(), Err(kcm::Error::WouldBlock)));
        assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
        wait_until("it is gone", || mux.connections().is_empty());
    });
}

#[test]
fn an_urgent_byte_harms_nothing() {
    bounded(20, || {
        for sockets in [1, 2] {
            let mux = mux();
            let (_, mut peer) = attached(&mux);
            let (told, numbers) = mpsc::channel();
            for _ in 0..sockets {
                let (mut socket, told) = (mux.socket().expect("a socket"), told.clone());
                thread::spawn(move || {
                    while let Ok(message) = socket.recv() {
                        told.send(number_of(&message)).expect("somebody listens");
                        message.reply(&message).expect("replied");
                    }
                });
            }
            // Between two messages, in a header, and in a body.
            for (number, at) in [0, 2, 4, 20, 99, 100].into_iter().enumerate() {
                let bytes = numbered(1, number as u64, 100);
                write(&peer, &bytes[..at]);
                rustix::net::send(&peer, b"!", SendFlags::OOB).expect("urgent");
                write(&peer, &bytes[at..]);
                write(&peer, &numbered(2, number as u64, 30));
                for connection in [1, 2] {
                    let got = numbers.recv_timeout(SOON).expect("it goes on");
                    if sockets == 1 {
                        assert_eq!(got, (connection, number as u64));
                    }
                    read_message(&mut peer).expect("a reply");
                }
            }
            assert_eq!(mux.try_next_event(), None);
            mux.shutdown();
        }
    });
}

#[test]
fn an_urgent_byte_while_nobody_receives() {
    bounded(20, || {
        let mux = mux();
        let (ours, peer) = tcp_pair();
        let look = ours.try_clone().expect("dup");
        mux.attach(ours).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &numbered(1, 0, 40));
        rustix::net::send(&peer, b"!", SendFlags::OOB).expect("urgent");
        write(&peer, &numbered(1, 1, 40));
        wait_arrived(&look, 40);
        assert_eq!(number_of(&soon(&mut socket)), (1, 0));
        assert_eq!(number_of(&soon(&mut socket)), (1, 1));
        // The last thing of all.
        rustix::net::send(&peer, b"!", SendFlags::OOB).expect("urgent");
        drop(peer);
        nothing(&mut socket);
        assert_eq!(event_soon(&mux).reason, EndReason::Eof);
    });
}

/// A parser that panics at some bytes, with one connection and with several, at the front and in the
/// middle of a burst: those bytes end their connection, and cost no thread.
#[test]
fn a_parser_that_panics_ends_its_connection_alone() {
    bounded(20, || {
        for (connections, burst) in [(1, 1), (1, 100), (3, 1), (3, 100)] {
            let framing = Framing::closure(|bytes| match bytes {
                [0xff, ..] => panic!("a panic that this test is about"),
                [_, _, _, len, ..] => Verdict::message(u64::from(*len) + 4),
                _ => Verdict::NeedMore(4),
            });
            let mux = Multiplexor::builder(framing).build().expect("a mux");
            let receiver = receive_all(&mux);
            let peers: Vec<_> = (0..connections).map(|_| attached(&mux)).collect();
            let (id, peer) = &peers[0];
            let mut bytes: Vec<u8> = (0..burst).flat_map(|n| numbered(1, n, 20)).collect();
            bytes.push(0xff);
            write(peer, &bytes);
            let event = event_soon(&mux);
            assert_eq!(event.connection, *id);
            assert_eq!(event.reason.errno(), libc::EIO, "{:?}", event.reason);
            let (_, other) = attached(&mux);
            write(&other, &numbered(2, 0, 20));
            wait_until("all came", || mux.stats().counters.rx_messages == burst + 1);
            mux.shutdown();
            assert_eq!(receiver.join().expect("received").len() as u64, burst + 1);
        }
    });
}

#[test]
fn a_fault_on_one_connection_is_no_others() {
    bounded(30, || {
        let mux = mux();
        let servers: Vec<_> = (0..2).map(|_| echo(&mux)).collect();
        let (_, mut steady) = attached(&mux);
        let mut random = Random::new(12);
        let mut number = 0;
        for round in 0..200 {
            let (id, mut bad) = attached(&mux);
            write(&bad, &numbered(3, round, 50));
            match random.below(4) {
                0 => write(&bad, &[0xff; 10]),
                1 => write(&bad, &numbered(3, round, 50)[..20]),
                2 => {}
                _ => {
                    read_message(&mut bad).expect("a reply");
                    reset(bad.try_clone().expect("dup"));
                }
            }
            for _ in 0..random.below(5) {
                write(&steady, &numbered(1, number, 100));
                let reply = read_message(&mut steady).expect("a reply");
                assert_eq!(number_of(&reply), (1, number));
                number += 1;
            }
            drop(bad);
            assert_eq!(event_soon(&mux).connection, id, "round {round}");
        }
        mux.shutdown();
        servers.into_iter().for_each(|s| s.join().expect("served"));
    });
}
