//! Streams of a program's own that break their contract, or do their work at the worst moment: such
//! a connection ends with an event, and nobody else is disturbed.

mod common;

use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use common::*;
use kcm::{EndReason, Error, Stream, Transport};

type Sending = dyn Fn(&UnixStream, &[IoSlice<'_>]) -> io::Result<usize> + Send + Sync;
type Receiving = dyn Fn(&UnixStream, &mut [u8]) -> io::Result<usize> + Send + Sync;

/// A Unix stream whose calls a test puts others in place of.
struct Own {
    stream: UnixStream,
    send: Box<Sending>,
    recv: Box<Receiving>,
    as_fd: Box<dyn Fn() + Send + Sync>,
}

impl Own {
    /// And its peer.
    fn new() -> (Self, UnixStream) {
        let (stream, peer) = UnixStream::pair().expect("a pair");
        stream.set_nonblocking(true).expect("non-blocking");
        peer.set_read_timeout(Some(SOON)).expect("a time limit");
        let this = Self {
            stream,
            send: Box::new(|mut stream, buffers| stream.write_vectored(buffers)),
            recv: Box::new(|mut stream, buffer| stream.read(buffer)),
            as_fd: Box::new(|| {}),
        };
        (this, peer)
    }
}

impl Transport for Own {
    fn as_fd(&self) -> BorrowedFd<'_> {
        (self.as_fd)();
        self.stream.as_fd()
    }

    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (self.recv)(&self.stream, buffer)
    }

    fn send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        (self.send)(&self.stream, buffers)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }
}

/// A send that panics, or says what cannot be, in the thread that sends.
#[test]
fn a_broken_send_ends_its_connection_alone() {
    let breaks: [fn() -> io::Result<usize>; 3] = [
        || panic!("a panic that this test is about"),
        || Ok(0),
        || Ok(usize::MAX),
    ];
    for broken in breaks {
        bounded(20, move || {
            let mux = mux();
            let receiver = receive_all(&mux);
            let (mut own, mut peer) = Own::new();
            own.send = Box::new(move |_, _| broken());
            let id = mux.attach(Stream::new(own)).expect("attached");
            let socket = mux.socket().expect("a socket");
            let error = socket.send_to(id, &numbered(1, 1, 30)).expect_err("failed");
            let reason = EndReason::System(libc::EIO);
            assert!(
                matches!(error, Error::ConnectionEnded(why) if why == reason),
                "{error}"
            );
            let event = event_soon(&mux);
            assert_eq!((event.connection, event.reason), (id, reason));
            wait_until("it is gone", || mux.connections().is_empty());
            assert_ended(&mut peer);
            // The next is as any other.
            let (_, mut peer) = attached(&mux);
            socket.send(&numbered(1, 2, 30)).expect("sent");
            let got = read_message(&mut peer).expect("a message");
            assert_eq!(number_of(&got), (1, 2));
            mux.shutdown();
            receiver.join().expect("received");
        });
    }
}

/// A panic in the background thread, which many multiplexors share; what had no address goes out on
/// another connection.
#[test]
fn a_panic_in_the_background_disturbs_nobody() {
    bounded(20, || {
        let mux = mux();
        let receiver = receive_all(&mux);
        let (mut own, peer) = Own::new();
        let calls = AtomicUsize::new(0);
        own.send =
            Box::new(
                move |mut stream, buffers| match calls.fetch_add(1, Ordering::Relaxed) {
                    0 => stream.write(&buffers[0][..7]),
                    1 => Err(io::ErrorKind::WouldBlock.into()),
                    _ => panic!("a panic that this test is about"),
                },
            );
        let id = mux.attach(Stream::new(own)).expect("attached");
        let socket = mux.socket().expect("a socket");
        socket.send(&numbered(1, 1, 30)).expect("taken");
        let (_, mut other) = attached(&mux);
        let event = event_soon(&mux);
        assert_eq!(event.connection, id);
        assert_eq!(event.reason, EndReason::System(libc::EIO));
        let got = read_message(&mut other).expect("a message");
        assert_eq!(number_of(&got), (1, 1));
        drop(peer);
        // The background thread goes on.
        let long = numbered(1, 2, 8 << 20);
        socket.set_nonblocking(true).expect("non-blocking");
        socket.send(&long).expect("taken");
        let got = read_message(&mut other).expect("a message");
        assert_eq!(number_of(&got), (1, 2));
        mux.shutdown();
        receiver.join().expect("received");
    });
}

/// A receive that panics after a whole message.
#[test]
fn a_panic_in_a_receive_ends_its_connection_alone() {
    bounded(20, || {
        let mux = mux();
        let (mut own, peer) = Own::new();
        let received = AtomicBool::new(false);
        own.recv = Box::new(move |mut stream, buffer| {
            assert!(!received.load(Ordering::Relaxed), "this test is about it");
            let result = stream.read(buffer);
            received.store(result.is_ok(), Ordering::Relaxed);
            result
        });
        let id = mux.attach(Stream::new(own)).expect("attached");
        let receiver = receive_all(&mux);
        write(&peer, &numbered(1, 1, 30));
        let event = event_soon(&mux);
        assert_eq!(event.connection, id);
        assert_eq!(event.reason, EndReason::System(libc::EIO));
        let (_, other) = attached(&mux);
        write(&other, &numbered(1, 2, 30));
        wait_until("it came", || mux.stats().counters.rx_messages == 2);
        mux.shutdown();
        let all = receiver.join().expect("received");
        assert_eq!(all, [numbered(1, 1, 30), numbered(1, 2, 30)]);
    });
}

/// Replies to a burst, of which some are too long to be kept back for the others: all go out in order,
/// and a stream is never asked to send nothing.
#[test]
fn long_replies_go_between_short_ones() {
    bounded(20, || {
        const LENGTHS: [usize; 8] = [50, 100_000, 50, 40_000, 3_000, 36_000, 36_900, 50];
        let mux = mux();
        let mut socket = mux.socket().expect("a socket");
        let (mut own, peer) = Own::new();
        own.send = Box::new(|mut stream, buffers| {
            assert!(buffers.iter().any(|buffer| !buffer.is_empty()));
            stream.write_vectored(buffers)
        });
        mux.attach(Stream::new(own)).expect("attached");
        // Over and over: a thread keeps replies back once it has been quick.
        for _ in 0..20 {
            let burst: Vec<u8> = (0..64).flat_map(|n| numbered(1, n, 20)).collect();
            write(&peer, &burst);
            let mut all = peer.try_clone().expect("a clone");
            let reader = std::thread::spawn(move || {
                for (n, len) in (0..64).zip(LENGTHS.into_iter().cycle()) {
                    let reply = read_message(&mut all).expect("a reply");
                    assert_eq!(reply, numbered(2, n, len));
                }
            });
            for (n, len) in (0..64).zip(LENGTHS.into_iter().cycle()) {
                let message = soon(&mut socket);
                message.reply(&numbered(2, n, len)).expect("sent");
            }
            reader.join().expect("all replies");
        }
    });
}

/// A thread answers a message of a connection just when another closes that and takes it out of the
/// list; and the stream takes only a part at that moment.
#[test]
fn a_send_while_its_connection_leaves_is_finished() {
    bounded(20, || {
        let mux = mux();
        let (mut own, mut peer) = Own::new();
        let leaves = Arc::new(AtomicBool::new(false));
        let late: Arc<Mutex<Option<kcm::Message>>> = Arc::default();
        // What the engine asks for when it takes the descriptor out of its epoll.
        own.as_fd = Box::new({
            let (late, leaves) = (late.clone(), leaves.clone());
            move || {
                if !leaves.load(Ordering::Relaxed) {
                    return;
                }
                let message = late.lock().expect("no panic").take();
                if let Some(message) = message {
                    message.reply(&numbered(2, 2, 3000)).expect("it is open");
                }
            }
        });
        own.send = Box::new({
            let calls = AtomicUsize::new(0);
            move |mut stream, buffers| match calls.fetch_add(1, Ordering::Relaxed) {
                1 => stream.write(&buffers[0][..7]),
                2 => Err(io::ErrorKind::WouldBlock.into()),
                _ => stream.write_vectored(buffers),
            }
        });
        let id = mux.attach(Stream::new(own)).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &numbered(1, 1, 30));
        let message = soon(&mut socket);
        message.reply(&numbered(1, 1, 30)).expect("sent");
        *late.lock().expect("no panic") = Some(message);
        let connection = mux.connection(id).expect("it is there");
        leaves.store(true, Ordering::Relaxed);
        connection.close();
        assert!(late.lock().expect("no panic").is_none(), "it was used");
        for expected in [(1, 1), (2, 2)] {
            let got = read_message(&mut peer).expect("a whole message");
            assert_eq!(number_of(&got), expected);
        }
        assert_ended(&mut peer);
    });
}

#[test]
fn a_transport_comes_back_as_what_it_was() {
    bounded(20, || {
        let mux = mux();
        let (own, mut peer) = Own::new();
        let id = mux.attach(Stream::new(own)).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &[&numbered(1, 1, 20)[..], b"\0\0"].concat());
        assert_eq!(number_of(&soon(&mut socket)), (1, 1));
        nothing(&mut socket);
        let connection = mux.connection(id).expect("it is there");
        let (stream, rest) = mux.unattach(id).expect("unattached");
        assert_eq!(rest, b"\0\0");
        // Not while somebody may still look at it, nor as something else.
        let stream = stream.into_transport::<Own>().map(drop);
        let stream = stream.expect_err("in use");
        drop(connection);
        struct Another;
        impl Transport for Another {
            fn as_fd(&self) -> BorrowedFd<'_> {
                unreachable!("there is none")
            }
            fn recv(&self, _: &mut [u8]) -> io::Result<usize> {
                Ok(0)
            }
            fn send(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
                Ok(0)
            }
            fn shutdown_write(&self) -> io::Result<()> {
                Ok(())
            }
        }
        let stream = stream.into_transport::<Another>().map(drop);
        let stream = stream.expect_err("of another type");
        let Ok(own) = stream.into_transport::<Own>() else {
            panic!("it is what it was");
        };
        write(&own.stream, &numbered(2, 2, 30));
        let got = read_message(&mut peer).expect("a message");
        assert_eq!(number_of(&got), (2, 2));
        // A socket is none.
        let stream = Stream::from(own.stream);
        assert!(stream.into_transport::<Own>().is_err());
    });
}
