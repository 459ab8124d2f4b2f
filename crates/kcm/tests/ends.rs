//! Ends of connections that no receiver comes upon: found by who waits for events, with no message lost,
//! nothing read for nobody, and no receiver or event loop disturbed.

mod common;

use std::{
    fs,
    io::{self, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use common::{epoll::*, *};
use kcm::{ConnectionEvent, ConnectionId, EndReason, Error, Multiplexor, Socket};
use rustix::thread::{Pid, gettid};

/// Long enough for several looks.
const SOME_LOOKS: Duration = Duration::from_millis(350);

/// A thread that waits for events, as a program has, until the multiplexor is shut down.
struct Waiter {
    events: mpsc::Receiver<ConnectionEvent>,
    mux: Multiplexor,
    thread: Option<JoinHandle<()>>,
}

impl Waiter {
    fn new(mux: &Multiplexor) -> Self {
        let (told, events) = mpsc::channel();
        let waiting = mux.clone();
        let thread = thread::spawn(move || {
            loop {
                match waiting.next_event() {
                    Ok(event) => drop(told.send(event)),
                    Err(Error::Closed) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        Self {
            events,
            mux: mux.clone(),
            thread: Some(thread),
        }
    }

    #[track_caller]
    fn assert_told(&self, connection: ConnectionId, reason: EndReason) {
        let event = self.events.recv_timeout(SOON).expect("an event");
        assert_eq!((event.connection, event.reason), (connection, reason));
    }

    #[track_caller]
    fn assert_silent(&self) {
        assert_eq!(self.events.recv_timeout(SOME_LOOKS).ok(), None);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.mux.shutdown();
        if let Some(Err(reason)) = self.thread.take().map(JoinHandle::join)
            && !thread::panicking()
        {
            std::panic::resume_unwind(reason);
        }
    }
}

/// A multiplexor with so many idle connections, of which somebody waits for events.
fn watched(connections: usize) -> (Multiplexor, Waiter, Vec<(ConnectionId, TcpStream)>) {
    let mux = mux();
    let waiter = Waiter::new(&mux);
    let idle = (0..connections).map(|_| attached(&mux)).collect();
    (mux, waiter, idle)
}

/// What a peer does in the end, and how that is told.
type End = (fn(TcpStream), EndReason);

const ENDS: [End; 4] = [
    (drop, EndReason::Eof),
    (reset, EndReason::Reset),
    (
        |peer| write_and_drop(peer, 7),
        EndReason::EofInMessage { bytes: 7 },
    ),
    (
        |peer| write_and_drop(peer, 39),
        EndReason::EofInMessage { bytes: 39 },
    ),
];

fn write_and_drop(peer: TcpStream, bytes: usize) {
    write(&peer, &numbered(9, 9, 40)[..bytes]);
}

/// Takes so many messages, says so, and then works until it is told to go on; answers the last then.
fn works_long(mut socket: Socket, messages: usize) -> (mpsc::Sender<()>, JoinHandle<Socket>) {
    let (go_on, told) = mpsc::channel();
    let (took, taken) = mpsc::channel();
    let thread = thread::spawn(move || {
        let messages: Vec<_> = (0..messages)
            .map(|_| socket.recv().expect("a message"))
            .collect();
        took.send(()).expect("somebody waits");
        let _ = told.recv();
        // The peer may be gone.
        let _ = messages.last().expect("some").reply(&numbered(8, 8, 30));
        socket
    });
    taken.recv_timeout(SOON).expect("it has its messages");
    (go_on, thread)
}

#[test]
fn without_any_socket() {
    bounded(60, || {
        for connections in [1, 2, 200] {
            for (end, reason) in ENDS {
                let mux = mux();
                let attached: Vec<_> = (0..connections).map(|_| attached(&mux)).collect();
                let waiter = Waiter::new(&mux);
                let mut ids = Vec::new();
                for (id, peer) in attached {
                    end(peer);
                    ids.push(id);
                }
                let events = (0..connections).map(|_| waiter.events.recv_timeout(SOON));
                let mut told: Vec<_> = events
                    .map(|event| event.expect("an event"))
                    .inspect(|event| assert_eq!(event.reason, reason))
                    .map(|event| event.connection)
                    .collect();
                told.sort_unstable();
                assert_eq!(told, ids, "each once");
                wait_until("they are gone", || mux.connections().is_empty());
            }
        }
    });
}

#[test]
fn one_after_the_other_while_others_stay() {
    bounded(30, || {
        let mux = mux();
        let waiter = Waiter::new(&mux);
        let (_, _stays) = attached(&mux);
        for (end, reason) in ENDS {
            let (id, peer) = attached(&mux);
            // Also after the multiplexor has long been silent.
            waiter.assert_silent();
            end(peer);
            waiter.assert_told(id, reason);
        }
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let id = mux.attach(ours).expect("attached");
        drop(theirs);
        waiter.assert_told(id, EndReason::Eof);
        wait_until("one is left", || mux.connections().len() == 1);
    });
}

#[test]
fn ends_from_before_anybody_asked_and_without_waiting() {
    bounded(20, || {
        for connections in [1, 3] {
            let mux = mux();
            let peers: Vec<_> = (0..connections).map(|_| attached(&mux)).collect();
            for (id, peer) in peers {
                drop(peer);
                let event = event_soon(&mux);
                assert_eq!((event.connection, event.reason), (id, EndReason::Eof));
            }
        }
    });
}

#[test]
fn a_socket_that_only_sends() {
    bounded(30, || {
        for others in [0, 2] {
            for (end, reason) in ENDS {
                let (mux, waiter, others) = watched(others);
                let socket = mux.socket().expect("a socket");
                let (id, mut peer) = attached(&mux);
                for number in 0..3 {
                    let pushed = numbered(1, number, 50);
                    socket.send_to(id, &pushed).expect("sent");
                    assert_eq!(read_message(&mut peer).expect("pushed"), pushed);
                }
                end(peer);
                waiter.assert_told(id, reason);
                for (id, mut peer) in others {
                    socket.send_to(id, &numbered(2, 2, 50)).expect("sent");
                    read_message(&mut peer).expect("pushed");
                    peer.shutdown(Shutdown::Write).expect("half closed");
                    waiter.assert_told(id, EndReason::Eof);
                }
            }
        }
    });
}

/// All receivers are at work on messages of one connection; it is another that ends.
#[test]
fn receivers_that_are_busy_with_another_connection() {
    bounded(60, || {
        for receivers in [1, 2] {
            for (end, reason) in ENDS {
                for late in [false, true] {
                    let mux = mux();
                    let waiter = Waiter::new(&mux);
                    let (_, busy) = attached(&mux);
                    // One that comes when the receivers are at work already, or is there before.
                    let early = (!late).then(|| attached(&mux));
                    let work: Vec<_> = (0..receivers)
                        .map(|number| {
                            write(&busy, &numbered(1, number, 30));
                            works_long(mux.socket().expect("a socket"), 1)
                        })
                        .collect();
                    let (id, peer) = early.unwrap_or_else(|| attached(&mux));
                    end(peer);
                    waiter.assert_told(id, reason);
                    for (go_on, thread) in work {
                        drop(go_on);
                        let mut socket = thread.join().expect("worked");
                        write(&busy, &numbered(1, 5, 30));
                        assert_eq!(number_of(&soon(&mut socket)), (1, 5));
                    }
                }
            }
        }
    });
}

/// The connection that ends is the one whose messages are worked on: all of them are taken, one by one,
/// as a walk through a burst, or with the rest waiting for the end of the work.
#[test]
fn receivers_that_are_busy_with_the_connection_that_ends() {
    bounded(60, || {
        for ordered in [false, true] {
            for others in [0, 1] {
                for burst in [1, 3] {
                    for (rest, reason) in [
                        (&[][..], EndReason::Eof),
                        (
                            &[0, 0, 0, 36, 1, 2, 3],
                            EndReason::EofInMessage { bytes: 7 },
                        ),
                    ] {
                        let mux = Multiplexor::builder(framing()).ordered(ordered).build();
                        let mux = mux.expect("a mux");
                        let waiter = Waiter::new(&mux);
                        let _others: Vec<_> = (0..others).map(|_| attached(&mux)).collect();
                        let (id, peer) = attached(&mux);
                        let mut reader = peer.try_clone().expect("dup");
                        let socket = mux.socket().expect("a socket");
                        let bytes: Vec<_> = (0..burst).map(|n| numbered(1, n, 30)).collect();
                        write(&peer, &bytes.concat());
                        let (go_on, thread) = works_long(socket, bytes.len());
                        write(&peer, rest);
                        peer.shutdown(Shutdown::Write).expect("half closed");
                        waiter.assert_told(id, reason);
                        assert_eq!(mux.connections().len(), others + 1, "it has to be answered");
                        drop(go_on);
                        let reply = read_message(&mut reader).expect("a reply");
                        assert_eq!(number_of(&reply), (8, 8));
                        thread.join().expect("worked");
                        wait_until("it is gone", || mux.connections().len() == others);
                    }
                }
            }
        }
    });
}

/// The end stands behind whole messages: they are not lost, and it is told once they are taken.
#[test]
fn what_came_whole_comes_first() {
    bounded(60, || {
        for (others, count) in [(0, 1), (0, 3), (1, 1), (1, 3)] {
            for (end, reason) in ENDS {
                let (mux, waiter, _others) = watched(others);
                let (ours, peer) = tcp_pair();
                let look = ours.try_clone().expect("dup");
                let id = mux.attach(ours).expect("attached");
                let sent: Vec<_> = (0..count).map(|n| numbered(1, n, 50)).collect();
                write(&peer, &sent.concat());
                wait_arrived(&look, 50 * sent.len());
                end(peer);
                waiter.assert_silent();
                let mut socket = mux.socket().expect("a socket");
                for sent in &sent {
                    assert_eq!(*soon(&mut socket), sent[..]);
                }
                // Though the socket does not ask again. (Of a burst, it has the rest in hand until then.)
                waiter.assert_told(id, reason);
                if count > 1 {
                    nothing(&mut socket);
                }
                wait_until("it is gone", || mux.connections().len() == others);
                nothing(&mut socket);
            }
        }
    });
}

#[test]
fn nothing_is_read_for_nobody() {
    bounded(60, || {
        for others in [0, 1] {
            let (mux, waiter, _others) = watched(others);
            let (id, mut peer) = attached(&mux);
            peer.set_nonblocking(true).expect("non-blocking");
            let mut messages = 0;
            let mut rest = Vec::new();
            let mut full_since = Instant::now();
            // Until nothing more is taken over several looks.
            while full_since.elapsed() < SOME_LOOKS {
                if rest.is_empty() {
                    rest = numbered(1, messages, 10_000);
                    messages += 1;
                }
                match peer.write(&rest) {
                    Ok(n) => {
                        rest.drain(..n);
                        full_since = Instant::now();
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(5));
                    }
                    Err(e) => panic!("{e}"),
                }
                assert!(messages < 10_000, "100 MB: somebody reads");
            }
            assert_eq!(mux.stats().memory_bytes, 0, "not a byte is read");
            // With the end behind it all, no more than a read's worth is.
            let whole = if rest.is_empty() {
                messages
            } else {
                messages - 1
            };
            let cut = (10_000 - rest.len()) % 10_000;
            drop(peer);
            waiter.assert_silent();
            assert!(mux.stats().memory_bytes <= 1 << 20, "a read's worth");
            let mut socket = mux.socket().expect("a socket");
            for number in 0..whole {
                assert_eq!(number_of(&soon(&mut socket)), (1, number));
            }
            let reason = match cut {
                0 => EndReason::Eof,
                bytes => EndReason::EofInMessage { bytes },
            };
            waiter.assert_told(id, reason);
        }
    });
}

#[test]
fn a_connection_that_is_not_to_be_received_from() {
    bounded(20, || {
        for others in [0, 1] {
            let (mux, waiter, _others) = watched(others);
            let (id, peer) = attached(&mux);
            let connection = mux.connection(id).expect("it lives");
            connection.set_receive_disabled(true);
            write(&peer, &numbered(1, 1, 40)[..20]);
            drop(peer);
            waiter.assert_silent();
            assert_eq!(connection.stats().unread_bytes, 20, "it was read");
            connection.set_receive_disabled(false);
            waiter.assert_told(id, EndReason::EofInMessage { bytes: 20 });
        }
    });
}

#[test]
fn polled_sockets_are_told_of_every_message() {
    bounded(60, || {
        for sockets in [1, 2] {
            let mux = mux();
            let waiter = Waiter::new(&mux);
            let peers = [attached(&mux).1, attached(&mux).1];
            let mut sockets: Vec<_> = (0..sockets)
                .map(|_| mux.socket().expect("a socket"))
                .collect();
            let loops: Vec<_> = sockets
                .iter()
                .map(|socket| [Loop::edge(socket), Loop::level(socket)])
                .collect();
            sockets.iter_mut().for_each(assert_would_block);
            for number in 0..120 {
                write(&peers[number % 2], &numbered(1, number as u64, 40));
                // As quick as it comes, or after a look has taken the event.
                if number % 10 == 9 {
                    thread::sleep(Duration::from_millis(110));
                }
                let deadline = Instant::now() + SOON;
                let mut got = None;
                while got.is_none() {
                    assert!(Instant::now() < deadline, "{number}: no loop is told");
                    for (socket, [edge, level]) in sockets.iter_mut().zip(&loops) {
                        let short = Duration::from_millis(2);
                        if edge.wait(short).0 | level.wait(Duration::ZERO).0 {
                            while let Ok(message) = socket.recv() {
                                assert_eq!(got, None, "one was sent");
                                got = Some(number_of(&message));
                            }
                        }
                    }
                }
                assert_eq!(got, Some((1, number as u64)));
            }
            let [first, _second] = peers;
            drop(first);
            let event = waiter.events.recv_timeout(SOON).expect("an event");
            assert_eq!(event.reason, EndReason::Eof);
        }
    });
}

/// How often a thread of this process has gone to sleep by itself.
fn sleeps_of(thread: Pid) -> u64 {
    let path = format!("/proc/self/task/{}/status", thread.as_raw_nonzero());
    let status = fs::read_to_string(path).expect("it runs");
    let value = (status.lines()).find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
    value.expect("a count").trim().parse().expect("a number")
}

#[test]
fn who_receives_is_not_woken() {
    bounded(30, || {
        for connections in [1, 2] {
            let mux = mux();
            let peers: Vec<_> = (0..connections).map(|_| attached(&mux)).collect();
            let waiter = Waiter::new(&mux);
            let mut socket = mux.socket().expect("a socket");
            let (told, numbers) = mpsc::channel();
            let (told_id, id) = mpsc::channel();
            let receiver = thread::spawn(move || {
                told_id.send(gettid()).expect("somebody listens");
                while let Ok(message) = socket.recv() {
                    told.send(number_of(&message)).expect("somebody listens");
                }
            });
            let id = id.recv_timeout(SOON).expect("it runs");
            for number in 1..4 {
                write(&peers[0].1, &numbered(1, number, 50));
                assert_eq!(numbers.recv_timeout(SOON), Ok((1, number)));
            }
            thread::sleep(A_WHILE);
            let before = sleeps_of(id);
            waiter.assert_silent();
            waiter.assert_silent();
            assert_eq!(sleeps_of(id), before, "it was woken for nothing");
            write(&peers[0].1, &numbered(1, 9, 50));
            assert_eq!(numbers.recv_timeout(SOON), Ok((1, 9)));
            drop(waiter);
            receiver.join().expect("received");
        }
    });
}

#[test]
fn nothing_is_left_of_connections_that_nobody_received_from() {
    alone(60, || {
        let mux = mux();
        let waiter = Waiter::new(&mux);
        let (_, _stays) = attached(&mux);
        let idle = open_descriptors();
        for _ in 0..3 {
            let all: Vec<_> = (0..50).map(|_| attached(&mux)).collect();
            for (number, (_, peer)) in all.into_iter().enumerate() {
                ENDS[number % ENDS.len()].0(peer);
            }
            for _ in 0..50 {
                waiter.events.recv_timeout(SOON).expect("an event");
            }
            wait_until("they are closed", || open_descriptors() <= idle);
            assert_eq!(mux.stats().memory_bytes, 0);
        }
        // Nor of those whose end a send found.
        let socket = mux.socket().expect("a socket");
        let idle = open_descriptors();
        for _ in 0..50 {
            let (id, peer) = attached(&mux);
            reset(peer);
            wait_until("it is found", || {
                socket.send_to(id, &numbered(1, 1, 40)).is_err()
            });
            let event = waiter.events.recv_timeout(SOON).expect("an event");
            assert_eq!((event.connection, event.reason), (id, EndReason::Reset));
        }
        wait_until("they are closed", || open_descriptors() <= idle);
        assert_eq!(mux.connections().len(), 1);
    });
}
