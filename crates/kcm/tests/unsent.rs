//! What has been sent and is not yet on its way: finished without help, moved whole to another
//! connection, refused in time, or drained at the end; never cut inside a message.

mod common;

use std::{
    fs::File,
    io::{IoSlice, Read, Write},
    net::TcpStream,
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use common::*;
use kcm::{ConnectionId, EndReason, Error, Limits, Multiplexor, MuxLimits, Socket};

const MIB: usize = 1 << 20;

/// Attaches one end of a new TCP pair, of which the other takes little in while it does not read.
/// Else the system may take all of 8 MiB: 4 for the end that sends, and what it has tuned itself to
/// for the one that receives, up to 32.
fn attached_tight(mux: &Multiplexor) -> (ConnectionId, TcpStream) {
    let (id, peer) = attached(mux);
    tighten(&peer);
    (id, peer)
}

fn tighten(peer: &TcpStream) {
    rustix::net::sockopt::set_socket_recv_buffer_size(peer, 64 << 10).expect("a small buffer");
}

/// A message of 8 MiB that a peer which does not read cannot take in.
fn stuck(mux: &Multiplexor, number: u64) -> Socket {
    let socket = mux.socket().expect("a socket");
    socket.set_nonblocking(true).expect("non-blocking");
    socket.send(&numbered(1, number, 8 * MIB)).expect("taken");
    let queued: usize = mux.connections().iter().map(|c| c.queued_bytes()).sum();
    assert!(queued > 0, "the peer's buffers hold less than 8 MiB");
    socket
}

fn with_linger(linger: Duration) -> Multiplexor {
    let builder = Multiplexor::builder(framing()).linger(linger);
    builder.build().expect("a mux")
}

fn mux_with_send_buffer(bytes: usize) -> Multiplexor {
    let mut limits = MuxLimits::default();
    limits.send_buffer_bytes = bytes;
    let builder = Multiplexor::builder(framing()).mux_limits(limits);
    builder.build().expect("a mux")
}

#[test]
fn a_message_cut_by_a_reset_goes_out_whole_on_another_connection() {
    bounded(30, || {
        let mux = mux();
        let (dying, mut peer) = attached_tight(&mux);
        let receiver = receive_all(&mux);
        let _socket = stuck(&mux, 1);
        let (_, other) = attached(&mux);
        // Some of it arrives, not all.
        let mut seen = vec![0; MIB];
        peer.read_exact(&mut seen).expect("a part");
        assert_eq!(seen[..], numbered(1, 1, 8 * MIB)[..MIB]);
        reset(peer);
        let event = event_soon(&mux);
        assert_eq!((event.connection, event.reason), (dying, EndReason::Reset));
        let reader = read_all(other);
        wait_until("it is sent", || {
            mux.connections().iter().all(|c| c.queued_bytes() == 0)
        });
        mux.shutdown();
        assert_eq!(reader.join().expect("read"), [(1, 1)], "whole, and once");
        drop(receiver);
    });
}

#[test]
fn a_message_that_lost_its_only_connection_waits_for_the_next() {
    bounded(30, || {
        let mux = mux();
        let (_, peer) = attached_tight(&mux);
        let receiver = receive_all(&mux);
        let _socket = stuck(&mux, 1);
        reset(peer);
        assert_eq!(event_soon(&mux).reason, EndReason::Reset);
        let (_, other) = attached(&mux);
        let reader = read_all(other);
        wait_until("it is sent", || {
            mux.connections().iter().all(|c| c.queued_bytes() == 0)
        });
        mux.shutdown();
        assert_eq!(reader.join().expect("read"), [(1, 1)], "whole, and once");
        drop(receiver);
    });
}

#[test]
fn a_reply_never_moves_to_another_connection() {
    bounded(30, || {
        let mux = mux();
        let (dying, mut peer) = attached_tight(&mux);
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &numbered(1, 1, 20));
        let request = soon(&mut socket);
        let (other, mut survivor) = attached(&mux);
        let replying = spawn_asleep(move || {
            let replied = request.reply(&numbered(5, 5, 12 * MIB));
            (request, replied)
        });
        peer.read_exact(&mut vec![0; MIB]).expect("a part");
        reset(peer);
        nothing(&mut socket);
        let event = event_soon(&mux);
        assert_eq!((event.connection, event.reason), (dying, EndReason::Reset));
        let (request, _told_or_not) = replying.join().expect("it came back");
        // Later ones fail at once.
        let error = request.reply(&numbered(6, 6, 20)).expect_err("it is gone");
        assert!(
            matches!(error, Error::ConnectionEnded(_) | Error::NoSuchConnection),
            "{error}"
        );
        let error = socket
            .send_to(dying, &numbered(7, 7, 20))
            .expect_err("gone");
        assert!(
            matches!(error, Error::ConnectionEnded(_) | Error::NoSuchConnection),
            "{error}"
        );
        // The other connection has seen nothing of it.
        socket.send_to(other, &numbered(8, 8, 20)).expect("sent");
        let first = read_message(&mut survivor).expect("a message");
        assert_eq!(number_of(&first), (8, 8));
        mux.shutdown();
        assert_ended(&mut survivor);
    });
}

#[test]
fn without_a_connection() {
    bounded(20, || {
        let mux = mux();
        let socket = mux.socket().expect("a socket");
        let start = Instant::now();
        let error = socket.send(&numbered(1, 1, 20)).expect_err("nowhere");
        assert!(matches!(error, Error::NotConnected), "{error}");
        assert_eq!(error.errno(), libc::ENOTCONN);
        assert!(start.elapsed() < A_WHILE, "at once");

        let wait = Duration::from_millis(200);
        let builder = Multiplexor::builder(framing()).connect_wait(wait);
        let mux = builder.build().expect("a mux");
        let socket = mux.socket().expect("a socket");
        let start = Instant::now();
        let error = socket.send(&numbered(1, 1, 20)).expect_err("nowhere");
        assert!(matches!(error, Error::NotConnected), "{error}");
        assert!(start.elapsed() >= wait && start.elapsed() < wait + PROMPT);

        // One that comes in time is used.
        let builder = Multiplexor::builder(framing()).connect_wait(SOON);
        let mux = builder.build().expect("a mux");
        let socket = mux.socket().expect("a socket");
        let sending = spawn_asleep(move || socket.send(&numbered(1, 1, 20)));
        let (id, mut peer) = attached(&mux);
        sending.join().expect("it came back").expect("sent");
        let got = read_message(&mut peer).expect("a message");
        assert_eq!(number_of(&got), (1, 1));
        // One that has ended is none.
        mux.unattach(id).expect("unattached");
        let socket = mux.socket().expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        assert!(socket.send(&numbered(1, 2, 20)).is_err());
    });
}

#[test]
fn what_a_nonblocking_send_could_not_finish_is_finished() {
    bounded(30, || {
        let mux = mux();
        let (_, peer) = attached_tight(&mux);
        let _socket = stuck(&mux, 7);
        let reader = read_all(peer);
        // Nobody calls anything but this.
        wait_until("it is sent", || mux.connections()[0].queued_bytes() == 0);
        mux.shutdown();
        assert_eq!(reader.join().expect("read"), [(1, 7)]);
    });
}

/// Each of the ways in which a program closes a connection.
fn close(way: u8, mux: Multiplexor, socket: Socket, id: ConnectionId) {
    match way {
        0 => drop((socket, mux)),
        1 => drop((mux, socket)),
        2 => mux.shutdown(),
        _ => mux.connection(id).expect("it is there").close(),
    }
}

#[test]
fn closing_drains_what_is_queued() {
    bounded(40, || {
        for way in 0..4 {
            let mux = with_linger(Duration::from_secs(10));
            let (id, peer) = attached_tight(&mux);
            let socket = stuck(&mux, 3);
            let reader = thread::spawn(move || {
                thread::sleep(A_WHILE);
                read_all(peer).join().expect("read")
            });
            close(way, mux, socket, id);
            // The reader sees an end, so the connection was closed after it.
            assert_eq!(reader.join().expect("read"), [(1, 3)], "way {way}");
        }
    });
}

/// A stream that is closed with bytes unread is reset, and the system throws away what it has not
/// sent yet.
#[test]
fn closing_drains_what_is_queued_though_the_peer_said_more() {
    bounded(60, || {
        for way in 0..4 {
            let mux = with_linger(Duration::from_secs(10));
            let (stream, peer) = tcp_pair();
            tighten(&peer);
            let ours = stream.try_clone().expect("a duplicate");
            let id = mux.attach(stream).expect("attached");
            write(&peer, &numbered(1, 1, 100).repeat(100));
            wait_arrived(&ours, 100 * 100);
            drop(ours);
            let socket = stuck(&mux, 3);
            let reader = thread::spawn(move || {
                thread::sleep(A_WHILE);
                let writer = peer.try_clone().expect("a duplicate");
                let reader = read_all(peer);
                // It goes on, into a closing connection.
                for _ in 0..20 {
                    thread::sleep(Duration::from_millis(1));
                    let _ = (&writer).write(&numbered(1, 1, 100));
                }
                reader.join().expect("read")
            });
            close(way, mux, socket, id);
            assert_eq!(reader.join().expect("read"), [(1, 3)], "way {way}");
        }
    });
}

/// The connection is sound, but its message cannot be finished: the peer is not left waiting.
#[test]
fn a_file_cut_short_while_it_waits_ends_its_connection() {
    bounded(30, || {
        let mut limits = MuxLimits::default();
        limits.send_buffer_bytes = 16 * MIB;
        let builder = Multiplexor::builder(framing()).mux_limits(limits);
        let mux = builder.build().expect("a mux");
        let (id, mut peer) = attached_tight(&mux);
        let receiver = receive_all(&mux);
        let path = std::env::temp_dir().join(format!("kcm-cut-short-{}", std::process::id()));
        let file = File::create_new(&path).expect("a file");
        std::fs::remove_file(&path).expect("it has no name any more");
        file.set_len(100).expect("100 bytes");
        let socket = stuck(&mux, 1);
        let header = 100_u32.to_be_bytes();
        let sent = socket.send_file(Some(id), &header, file.as_fd(), 0..100);
        sent.expect("taken");
        file.set_len(50).expect("50 bytes");
        let got = read_message(&mut peer).expect("the one before");
        assert_eq!(number_of(&got), (1, 1));
        let event = event_soon(&mux);
        assert_eq!(
            (event.connection, event.reason),
            (id, EndReason::System(libc::EIO))
        );
        let mut rest = Vec::new();
        peer.read_to_end(&mut rest).expect("its end");
        assert_eq!(rest.len(), 54, "inside a message");
        wait_until("it is gone", || mux.connections().is_empty());
        mux.shutdown();
        receiver.join().expect("received");
    });
}

#[test]
fn draining_ends_with_the_linger_time() {
    bounded(20, || {
        let linger = Duration::from_millis(300);
        let mux = with_linger(linger);
        let (_, mut peer) = attached_tight(&mux);
        let socket = stuck(&mux, 3);
        let start = Instant::now();
        drop((socket, mux));
        assert!(start.elapsed() < linger + PROMPT, "{:?}", start.elapsed());
        thread::sleep(linger + A_WHILE);
        // What is in the system's buffers may arrive; the message never does.
        let mut got = Vec::new();
        let end = peer.read_to_end(&mut got).map_err(|error| error.kind());
        assert!(got.len() < 8 * MIB, "it was cut");
        let reset = std::io::ErrorKind::ConnectionReset;
        assert_eq!(end, Err(reset), "and the peer cannot take it for all");
        assert!(start.elapsed() < linger + SOON, "and the connection closed");
    });
}

#[test]
fn a_send_that_times_out_was_not_sent() {
    bounded(40, || {
        let mux = mux();
        let (id, peer) = attached(&mux);
        let socket = mux.socket().expect("a socket");
        let limit = Duration::from_millis(200);
        socket.set_write_timeout(Some(limit)).expect("a limit");
        let mut sent = 0;
        let error = loop {
            let start = Instant::now();
            match socket.send(&numbered(1, sent, 100_000)) {
                Ok(()) => sent += 1,
                Err(error) => {
                    assert!(start.elapsed() >= limit && start.elapsed() < limit + PROMPT);
                    break error;
                }
            }
            assert!(sent < 500, "50 MB are more than any buffer holds");
        };
        assert!(matches!(error, Error::WouldBlock), "{error}");
        let reader = read_all(peer);
        socket.set_write_timeout(None).expect("no limit");
        socket.send_to(id, &numbered(2, 0, 16)).expect("sent");
        mux.shutdown();
        let expected = (0..sent).map(|n| (1, n)).chain([(2, 0)]);
        assert!(reader.join().expect("read").into_iter().eq(expected));
    });
}

/// Whoever waits to send, to this connection or to any, and what ends it.
#[test]
fn who_waits_to_send_hears_of_the_end() {
    bounded(40, || {
        for (way, unaddressed) in [
            (2, libc::ESHUTDOWN),
            (3, libc::ENOTCONN),
            (4, libc::ENOTCONN),
        ] {
            let mux = mux();
            let (id, peer) = attached_tight(&mux);
            let receiver = receive_all(&mux);
            let socket = stuck(&mux, 0);
            socket.set_nonblocking(false).expect("blocking");
            let other = socket.try_clone().expect("a clone");
            let to_it = spawn_asleep(move || other.send_to(id, &numbered(1, 1, 20)));
            let to_any = spawn_asleep(move || socket.send(&numbered(1, 2, 20)));
            let start = Instant::now();
            match way {
                2 => mux.shutdown(),
                3 => mux.connection(id).expect("it is there").close(),
                _ => reset(peer.try_clone().expect("dup")),
            }
            if way == 4 {
                drop(peer);
            }
            let errno = |sent: kcm::Result<()>| sent.expect_err("nowhere").errno();
            let told = errno(to_it.join().expect("woken"));
            assert_eq!(told, libc::EPIPE, "way {way}");
            let told = errno(to_any.join().expect("woken"));
            assert_eq!(told, unaddressed, "way {way}");
            assert!(start.elapsed() < PROMPT, "{:?}", start.elapsed());
            mux.shutdown();
            receiver.join().expect("received");
        }
        // And who waits for any connection at all.
        let builder = Multiplexor::builder(framing()).connect_wait(SOON);
        let mux = builder.build().expect("a mux");
        let socket = mux.socket().expect("a socket");
        let waiting = spawn_asleep(move || socket.send(&numbered(1, 1, 20)));
        mux.shutdown();
        let error = waiting.join().expect("woken").expect_err("nowhere");
        assert!(matches!(error, Error::Closed), "{error}");
    });
}

#[test]
fn over_the_send_buffer_a_new_message_would_block() {
    bounded(30, || {
        let mux = mux_with_send_buffer(100_000);
        let (id, peer) = attached(&mux);
        let connection = mux.connection(id).expect("it is there");
        let socket = mux.socket().expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        let mut sent = 0;
        let error = loop {
            match socket.send(&numbered(1, sent, 30_000)) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
            assert!(sent < 2000, "60 MB are more than any buffer holds");
        };
        assert!(matches!(error, Error::WouldBlock), "{error}");
        let queued = connection.queued_bytes();
        assert!((70_000..=130_000).contains(&queued), "{queued}");
        // The length of a message does not matter, only what is queued before it: not even a
        // short one goes in now, and a batch says that none was taken.
        assert!(matches!(
            socket.send(&numbered(1, 0, 16)),
            Err(Error::WouldBlock)
        ));
        let short = numbered(1, 0, 16);
        match socket.send_batch(&[IoSlice::new(&short)]) {
            Ok(0) | Err(Error::WouldBlock) => {}
            other => panic!("{other:?}"),
        }
        let reader = read_all(peer);
        wait_until("there is room", || connection.queued_bytes() == 0);
        socket
            .send(&numbered(1, sent, 1 << 20))
            .expect("a long one goes in whole");
        mux.shutdown();
        assert!(
            reader
                .join()
                .expect("read")
                .into_iter()
                .eq((0..=sent).map(|n| (1, n)))
        );
    });
}

#[test]
fn unattach_with_unsent_bytes_keeps_the_stream_in_frame() {
    bounded(30, || {
        let mux = mux();
        let (id, peer) = attached_tight(&mux);
        let _socket = stuck(&mux, 0);
        let reader = thread::spawn(move || {
            thread::sleep(A_WHILE);
            read_all(peer).join().expect("read")
        });
        let (stream, rest) = mux.unattach(id).expect("unattached");
        assert!(rest.is_empty());
        let stream = stream.into_tcp().expect("TCP");
        stream.set_nonblocking(false).expect("blocking");
        write(&stream, &numbered(9, 9, 30));
        drop(stream);
        let all = reader.join().expect("read");
        assert_eq!(all, [(1, 0), (9, 9)]);
    });
}

#[test]
fn unattach_that_cannot_send_all_in_time_leaves_the_connection_as_it_was() {
    bounded(30, || {
        let linger = Duration::from_millis(200);
        let mux = with_linger(linger);
        let (id, peer) = attached_tight(&mux);
        let socket = stuck(&mux, 0);
        let start = Instant::now();
        let error = mux.unattach(id).map(drop).expect_err("not in this time");
        assert_eq!(error.errno(), libc::EAGAIN);
        assert!(start.elapsed() >= linger && start.elapsed() < linger + PROMPT);
        let reader = read_all(peer);
        socket.set_nonblocking(false).expect("blocking");
        socket.send_to(id, &numbered(1, 1, 30)).expect("sent");
        mux.unattach(id).expect("now it can be");
        assert_eq!(reader.join().expect("read"), [(1, 0), (1, 1)]);
    });
}

/// No clock goes so far that it could be added to a time.
#[test]
fn the_longest_duration_is_for_ever() {
    bounded(40, || {
        let ever = Duration::MAX;
        for way in 0..5 {
            let mux = with_linger(ever);
            let (id, peer) = attached_tight(&mux);
            let socket = stuck(&mux, 3);
            let reader = thread::spawn(move || {
                thread::sleep(A_WHILE);
                read_all(peer).join().expect("read")
            });
            match way {
                4 => drop(mux.unattach(id).expect("unattached")),
                way => close(way, mux, socket, id),
            }
            assert_eq!(reader.join().expect("read"), [(1, 3)], "way {way}");
        }

        let builder = Multiplexor::builder(framing())
            .connect_wait(ever)
            .key_patience(ever)
            .limits(Limits::default().with_assembly_deadline(Some(ever)));
        let mux = builder.build().expect("a mux");
        let socket = mux.socket().expect("a socket");
        socket.set_write_timeout(Some(ever)).expect("a limit");
        let sending = spawn_asleep(move || {
            socket.send(&numbered(1, 1, 20)).expect("sent");
            socket
        });
        let (_, mut peer) = attached(&mux);
        let got = read_message(&mut peer).expect("a message");
        assert_eq!(number_of(&got), (1, 1));
        let mut socket = sending.join().expect("it came back");
        // Half a message, for a while.
        socket.set_read_timeout(Some(ever)).expect("a limit");
        let receiving = spawn_asleep(move || number_of(&socket.recv().expect("a message")));
        write(&peer, &numbered(2, 2, 60)[..30]);
        thread::sleep(A_WHILE);
        write(&peer, &numbered(2, 2, 60)[30..]);
        assert_eq!(receiving.join().expect("received"), (2, 2));
        assert_eq!(mux.try_next_event(), None);
    });
}

#[test]
fn without_any_send_buffer_messages_go_one_by_one() {
    bounded(20, || {
        let mux = mux_with_send_buffer(0);
        let (id, peer) = attached_tight(&mux);
        let socket = stuck(&mux, 0);
        let error = socket.send(&numbered(1, 1, 20)).expect_err("one waits");
        assert!(matches!(error, Error::WouldBlock), "{error}");
        let error = socket.send_to(id, &numbered(1, 1, 20));
        assert!(matches!(error, Err(Error::WouldBlock)), "{error:?}");
        socket.set_nonblocking(false).expect("blocking");
        let reader = read_all(peer);
        for number in 1..5 {
            socket.send(&numbered(1, number, 20)).expect("sent");
        }
        mux.shutdown();
        assert!(
            reader
                .join()
                .expect("read")
                .into_iter()
                .eq((0..5).map(|n| (1, n)))
        );
    });
}

#[test]
fn unattach_while_others_send_is_prompt_and_in_frame() {
    bounded(30, || {
        for round in 0..100 {
            let mux = mux();
            let (id, peer) = attached(&mux);
            let reader = read_all(peer);
            let senders: Vec<_> = (0..2)
                .map(|thread: u32| {
                    let socket = mux.socket().expect("a socket");
                    thread::spawn(move || {
                        let sent =
                            (0..).find(|&n| socket.send_to(id, &numbered(thread, n, 100)).is_err());
                        sent.expect("it ends")
                    })
                })
                .collect();
            wait_until("they send", || mux.stats().counters.tx_messages > 20);
            let start = Instant::now();
            let (stream, _) = mux.unattach(id).expect("unattached");
            assert!(
                start.elapsed() < PROMPT,
                "round {round}: {:?}",
                start.elapsed()
            );
            let stream = stream.into_tcp().expect("TCP");
            stream.set_nonblocking(false).expect("blocking");
            write(&stream, &numbered(9, 9, 30));
            drop(stream);
            let mut expected = vec![(9, 9)];
            for (sender, thread) in senders.into_iter().zip(0..) {
                let sent = sender.join().expect("sent");
                expected.extend((0..sent).map(|n| (thread, n)));
            }
            let mut all = reader.join().expect("read");
            assert_eq!(all.last(), Some(&(9, 9)), "round {round}");
            all.sort_unstable();
            expected.sort_unstable();
            assert!(all == expected, "round {round}: what was taken was sent");
        }
    });
}
