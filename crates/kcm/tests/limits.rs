//! Limits: the time that a message may take, what may be held when nobody receives, how many
//! connections and sockets there may be, and that slow peers cost the others nothing.

mod common;

use std::{
    io::{Read, Write},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use common::*;
use kcm::{EndReason, Error, Limits, Multiplexor, MuxLimits};

fn mux_with(limits: Limits) -> Multiplexor {
    let builder = Multiplexor::builder(framing()).limits(limits);
    builder.build().expect("a mux")
}

#[test]
fn the_deadline_is_for_the_whole_message() {
    bounded(30, || {
        let deadline = Duration::from_millis(300);
        let limits = Limits::default().with_assembly_deadline(Some(deadline));
        // A byte every few milliseconds does not put it off; a header alone neither.
        for (bytes, sockets, poll) in [
            (1000, 1, false),
            (1000, 3, false),
            (3, 1, false),
            (1000, 1, true),
        ] {
            let mux = mux_with(limits);
            let (id, mut peer) = attached(&mux);
            let receivers: Vec<_> = (0..sockets)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    thread::spawn(move || {
                        if poll {
                            return polling(&mut socket);
                        }
                        socket.recv().map(drop)
                    })
                })
                .collect();
            // An idle connection has no deadline.
            thread::sleep(deadline + A_WHILE);
            assert_eq!(mux.try_next_event(), None);
            let start = Instant::now();
            let message = numbered(1, 1, 2000);
            let mut trickle = message[..bytes].chunks(1);
            let event = loop {
                if let Some(byte) = trickle.next() {
                    let _ = peer.write(byte);
                }
                thread::sleep(Duration::from_millis(5));
                if let Some(event) = mux.try_next_event() {
                    break event;
                }
                assert!(
                    start.elapsed() < SOON,
                    "no deadline: {bytes} bytes, {sockets} sockets, polled: {poll}"
                );
            };
            assert_eq!((event.connection, event.reason), (id, EndReason::Deadline));
            assert_eq!(event.reason.errno(), libc::ETIMEDOUT);
            assert!(start.elapsed() >= deadline, "{:?}", start.elapsed());
            assert!(start.elapsed() < deadline + PROMPT, "{:?}", start.elapsed());
            assert_ended(&mut peer);
            mux.shutdown();
            for receiver in receivers {
                let got = receiver.join().expect("woken");
                assert!(matches!(got, Err(Error::Closed)), "{got:?}");
            }
        }
    });
}

/// Receives with a poll loop.
fn polling(socket: &mut kcm::Socket) -> kcm::Result<()> {
    socket.set_nonblocking(true)?;
    loop {
        let flags = rustix::event::PollFlags::IN;
        let fd = rustix::event::PollFd::from_borrowed_fd(std::os::fd::AsFd::as_fd(socket), flags);
        rustix::event::poll(&mut [fd], None)?;
        match socket.recv() {
            Err(Error::WouldBlock) => {}
            other => return other.map(drop),
        }
    }
}

#[test]
fn the_deadline_does_not_run_while_nobody_receives() {
    bounded(20, || {
        let deadline = Duration::from_millis(200);
        let mux = mux_with(Limits::default().with_assembly_deadline(Some(deadline)));
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        // Half a message, and nobody asks.
        write(&peer, &numbered(1, 0, 100)[..50]);
        thread::sleep(deadline * 2);
        write(&peer, &numbered(1, 0, 100)[50..]);
        assert_eq!(number_of(&soon(&mut socket)), (1, 0));
        // Half a message read with the one before it; the rest comes in time, but the only
        // socket is busy for longer.
        write(
            &peer,
            &[&numbered(1, 1, 100)[..], &numbered(1, 2, 100)[..50]].concat(),
        );
        let held = soon(&mut socket);
        assert_eq!(number_of(&held), (1, 1));
        write(&peer, &numbered(1, 2, 100)[50..]);
        thread::sleep(deadline * 2);
        assert_eq!(number_of(&soon(&mut socket)), (1, 2));
        // Whole messages wait as long as they like.
        write(&peer, &numbered(1, 3, 100).repeat(2));
        soon(&mut socket);
        thread::sleep(deadline * 2);
        soon(&mut socket);
        assert_eq!(mux.try_next_event(), None);
        // The first half before, nobody receiving for long, the second half a little after.
        write(
            &peer,
            &[&numbered(1, 4, 100)[..], &numbered(1, 5, 100)[..50]].concat(),
        );
        soon(&mut socket);
        thread::sleep(deadline * 2);
        let late = thread::spawn(move || {
            thread::sleep(deadline / 10);
            write(&peer, &numbered(1, 5, 100)[50..]);
            peer
        });
        assert_eq!(
            number_of(&soon(&mut socket)),
            (1, 5),
            "our own delay is not the peer's"
        );
        assert_eq!(mux.try_next_event(), None);
        drop(late.join());
    });
}

#[test]
fn when_nobody_receives_the_sender_has_to_wait() {
    bounded(40, || {
        for busy in [false, true] {
            let mux = mux();
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            let first = busy.then(|| {
                // It holds still with one of a burst.
                write(&peer, &numbered(9, 9, 16));
                soon(&mut socket)
            });
            peer.set_nonblocking(true).expect("non-blocking");
            let mut sent: u64 = 0;
            let mut rest = Vec::new();
            let mut last = Instant::now();
            // Until it cannot write for a while.
            while last.elapsed() < A_WHILE * 2 {
                let bytes = numbered(1, sent, 10_000);
                match (&peer).write(&bytes) {
                    Ok(len) => {
                        sent += 1;
                        last = Instant::now();
                        if len < bytes.len() {
                            rest = bytes[len..].to_vec();
                            break;
                        }
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
                assert!(sent < 6400, "64 MB and still writing");
            }
            thread::sleep(A_WHILE);
            peer.set_nonblocking(false).expect("blocking");
            println!("{sent} messages of 10 kB fit");
            let writer = thread::spawn(move || {
                write(&peer, &rest);
                write(&peer, &numbered(1, sent, 10_000));
                peer
            });
            for number in 0..=sent {
                assert_eq!(number_of(&soon(&mut socket)), (1, number));
            }
            writer.join().expect("written");
            drop(first);
        }
    });
}

#[test]
fn the_memory_limit_stops_reading_and_loses_nothing() {
    bounded(40, || {
        const LIMIT: usize = 4 << 20;
        let mut limits = MuxLimits::default();
        limits.max_memory_bytes = LIMIT;
        let builder = Multiplexor::builder(framing()).mux_limits(limits);
        let mux = builder.build().expect("a mux");
        let writers: Vec<_> = (0..3)
            .map(|connection| {
                let (_, peer) = attached(&mux);
                thread::spawn(move || {
                    for number in 0..100 {
                        write(&peer, &numbered(connection, number, 100_000));
                    }
                    peer
                })
            })
            .collect();
        let mut socket = mux.socket().expect("a socket");
        let mut all = Vec::new();
        while all.len() < 300 {
            let mut held = Vec::new();
            // Everything it may have, kept.
            socket.set_read_timeout(Some(A_WHILE)).expect("a limit");
            loop {
                match socket.recv() {
                    Ok(message) => held.push(message),
                    Err(Error::WouldBlock) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(!held.is_empty(), "nothing is held, and nothing comes");
            let bytes: usize = held.iter().map(|message| message.len()).sum();
            assert!(bytes <= LIMIT + LIMIT / 4, "{bytes} bytes are held");
            if all.is_empty() {
                assert!(bytes >= LIMIT / 2, "only {bytes} bytes could be held");
            }
            all.extend(held.iter().map(|message| number_of(message)));
        }
        all.sort_unstable();
        assert!(
            all.into_iter()
                .eq((0..3).flat_map(|c| (0..100).map(move |n| (c, n))))
        );
        writers
            .into_iter()
            .for_each(|w| drop(w.join().expect("written")));
    });
}

/// Nobody can receive what is not whole, so nothing would ever be given back.
#[test]
fn unfinished_messages_that_fill_the_memory_are_finished_all_the_same() {
    bounded(40, || {
        const LIMIT: usize = 1 << 20;
        const PEERS: u32 = 20;
        let mut limits = MuxLimits::default();
        limits.max_memory_bytes = LIMIT;
        // Within a chunk; and beyond it, where the whole message is reserved at its beginning.
        for len_bytes in [200_000, 600_000] {
            let builder = Multiplexor::builder(framing()).mux_limits(limits);
            let mux = builder.build().expect("a mux");
            let mut socket = mux.socket().expect("a socket");
            socket.set_read_timeout(Some(SOON)).expect("a limit");
            let (begun, may_go_on) = (
                Barrier::new(PEERS as usize + 1),
                Barrier::new(PEERS as usize + 1),
            );
            thread::scope(|scope| {
                for connection in 0..PEERS {
                    let (_, peer) = attached(&mux);
                    let (begun, may_go_on) = (&begun, &may_go_on);
                    scope.spawn(move || {
                        let message = numbered(connection, 0, len_bytes);
                        let part = 40_000 + 1_000 * connection as usize;
                        write(&peer, &message[..part]);
                        begun.wait();
                        may_go_on.wait();
                        write(&peer, &message[part..]);
                        write(&peer, &numbered(connection, 1, 100));
                    });
                }
                begun.wait();
                // As much of it as there is room for is read.
                socket.set_read_timeout(Some(A_WHILE)).expect("a limit");
                assert!(matches!(socket.recv(), Err(Error::WouldBlock)));
                may_go_on.wait();
                socket.set_read_timeout(Some(SOON)).expect("a limit");
                let mut most = 0;
                let mut all: Vec<_> = (0..2 * PEERS)
                    .map(|_| {
                        let message = socket.recv().expect("a message");
                        most = most.max(mux.stats().memory_bytes);
                        number_of(&message)
                    })
                    .collect();
                all.sort_unstable();
                assert!(
                    all.into_iter()
                        .eq((0..PEERS).flat_map(|c| [(c, 0), (c, 1)]))
                );
                assert!(most <= 2 * LIMIT, "{most} bytes were in use");
            });
        }
    });
}

/// What it gives up at its end is the memory that it waits for itself.
#[test]
fn a_connection_that_waits_for_memory_is_closed_with_the_rest() {
    bounded(20, || {
        const LEN: usize = 60_000;
        let mut limits = MuxLimits::default();
        limits.max_memory_bytes = LEN + LEN / 2;
        let builder = Multiplexor::builder(framing()).mux_limits(limits);
        let mux = builder.build().expect("a mux");
        let mut socket = mux.socket().expect("a socket");
        let (_, first) = attached(&mux);
        write(&first, &numbered(0, 0, LEN));
        // Kept, so that there is no room for another.
        let kept = soon(&mut socket);
        let (_, second) = attached(&mux);
        write(&second, &numbered(1, 0, LEN)[..LEN - 1]);
        nothing(&mut socket);
        mux.shutdown();
        assert!(matches!(socket.recv(), Err(Error::Closed)));
        drop(kept);
    });
}

#[test]
fn a_thread_that_waits_for_memory_goes_on_when_there_is_some() {
    bounded(30, || {
        const LIMIT: usize = 1 << 20;
        let mut limits = MuxLimits::default();
        limits.max_memory_bytes = LIMIT;
        let deadline = Duration::from_millis(200);
        for (connections, with_limit) in [(1, false), (1, true), (3, false)] {
            let builder = Multiplexor::builder(framing()).mux_limits(limits);
            // The time in which we do not read is not the peers'.
            let builder = builder.limits(Limits::default().with_assembly_deadline(Some(deadline)));
            let mux = builder.build().expect("a mux");
            let writers: Vec<_> = (0..connections)
                .map(|connection| {
                    let (_, peer) = attached(&mux);
                    thread::spawn(move || {
                        for number in 0..50 {
                            write(&peer, &numbered(connection, number, 100_000));
                        }
                        peer
                    })
                })
                .collect();
            // Everything there may be is held here, ...
            let mut socket = mux.socket().expect("a socket");
            let mut held = Vec::new();
            socket.set_read_timeout(Some(A_WHILE)).expect("a limit");
            while let Ok(message) = socket.recv() {
                held.push(message);
            }
            assert!(held.len() < 50, "{} are above the limit", held.len());
            let first = held.len() as u64;
            let total = u64::from(connections) * 50;
            // ... and somebody waits for the next.
            socket
                .set_read_timeout(with_limit.then_some(SOON))
                .expect("a limit");
            let waiting = spawn_asleep(move || {
                (first..total).for_each(|_| {
                    number_of(&socket.recv().expect("a message"));
                });
            });
            thread::sleep(deadline * 2);
            assert_eq!(mux.try_next_event(), None);
            drop(held);
            waiting.join().expect("it goes on");
            assert_eq!(mux.try_next_event(), None);
            writers.into_iter().for_each(|w| assert!(w.join().is_ok()));
        }
    });
}

#[test]
fn as_many_connections_and_sockets_as_allowed() {
    bounded(20, || {
        let mut limits = MuxLimits::default();
        limits.max_connections = 3;
        limits.max_sockets = 2;
        let builder = Multiplexor::builder(framing()).mux_limits(limits);
        let mux = builder.build().expect("a mux");
        let peers: Vec<_> = (0..3).map(|_| attached(&mux)).collect();
        let (stream, mut peer) = tcp_pair();
        let refused = mux.attach(stream).expect_err("one too many");
        assert!(
            matches!(refused.error, Error::LimitReached { value: 3, .. }),
            "{refused}"
        );
        assert_eq!(refused.error.errno(), libc::ENFILE);
        // It can be told so, or be attached later.
        let stream = refused.stream.into_tcp().expect("TCP");
        write(&stream, b"busy");
        peer.read_exact(&mut [0; 4]).expect("told");
        mux.unattach(peers[0].0).expect("unattached");
        mux.attach(stream).expect("there is room again");

        let first = mux.socket().expect("a socket");
        let second = first.try_clone().expect("a clone");
        let error = first.try_clone().map(drop).expect_err("one too many");
        assert!(
            matches!(error, Error::LimitReached { value: 2, .. }),
            "{error}"
        );
        assert!(mux.socket().is_err());
        drop(second);
        mux.socket().expect("there is room again");
    });
}

#[test]
fn slow_peers_disturb_nobody() {
    bounded(40, || {
        for sockets in [1, 3] {
            let mux = mux();
            let servers: Vec<_> = (0..sockets).map(|_| echo(&mux)).collect();
            // Each in the middle of a message, a byte at a time.
            let mut slow: Vec<_> = (0..50).map(|_| attached(&mux).1).collect();
            let (_, mut fast) = attached(&mux);
            let mut worst = Duration::ZERO;
            for number in 0..1000 {
                let at = usize::try_from(number / 10).expect("short");
                let connection = usize::try_from(number % 50).expect("short");
                if number % 500 < 50 {
                    let bytes = numbered(1, connection as u64, 120);
                    write(&mut slow[connection], &bytes[at / 50..=at / 50]);
                }
                let start = Instant::now();
                write(&fast, &numbered(2, number, 100));
                let reply = read_message(&mut fast).expect("a reply");
                assert_eq!(number_of(&reply), (2, number));
                worst = worst.max(start.elapsed());
            }
            assert!(worst < PROMPT, "{worst:?}");
            // They come to their end too.
            for (connection, peer) in slow.iter_mut().enumerate() {
                write(&mut *peer, &numbered(1, connection as u64, 120)[2..]);
                let reply = read_message(peer).expect("a reply");
                assert_eq!(number_of(&reply), (1, connection as u64));
            }
            mux.shutdown();
            servers.into_iter().for_each(|s| s.join().expect("served"));
        }
    });
}

/// A connection of which nothing is to be received: alone and beside others, with a message that is
/// there already, with a burst leased to a socket, and with one that has begun.
#[test]
fn a_disabled_connection_waits_and_loses_nothing() {
    bounded(60, || {
        for others in [false, true] {
            let limits = Limits::default().with_assembly_deadline(Some(A_WHILE));
            let builder = Multiplexor::builder(framing()).limits(limits);
            let mux = builder.build().expect("a mux");
            let (id, peer) = attached(&mux);
            let beside = others.then(|| attached(&mux));
            let mut socket = mux.socket().expect("a socket");
            let connection = mux.connection(id).expect("attached");
            for number in 0..20 {
                write(&peer, &numbered(1, number, 40));
            }
            assert_eq!(number_of(&soon(&mut socket)), (1, 0));
            connection.set_receive_disabled(true);
            // A part of a message, whose time does not run.
            write(&peer, &numbered(1, 20, 40)[..30]);
            nothing(&mut socket);
            thread::sleep(A_WHILE);
            if let Some((_, other)) = &beside {
                write(other, &numbered(2, 0, 40));
                assert_eq!(number_of(&soon(&mut socket)), (2, 0));
            }
            nothing(&mut socket);
            connection.set_receive_disabled(false);
            for number in 1..20 {
                assert_eq!(number_of(&soon(&mut socket)), (1, number));
            }
            write(&peer, &numbered(1, 20, 40)[30..]);
            assert_eq!(number_of(&soon(&mut socket)), (1, 20));
            // A thread that sleeps in a receive meanwhile.
            connection.set_receive_disabled(true);
            socket.set_read_timeout(Some(SOON)).expect("a limit");
            let waiting = spawn_asleep(move || number_of(&socket.recv().expect("a message")));
            write(&peer, &numbered(1, 21, 40));
            thread::sleep(A_WHILE);
            assert!(!waiting.is_finished());
            connection.set_receive_disabled(false);
            assert_eq!(waiting.join().expect("no panic"), (1, 21));
        }
    });
}
