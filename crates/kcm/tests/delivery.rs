//! Delivery by pull: whichever socket asks gets the next message, nothing is lost, nothing comes
//! twice, and nothing waits behind a socket that is busy.

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::{traffic::*, *};
use kcm::{Error, Socket};

/// Receives in all the ways there are until nothing comes any more or `left` is down to 0.
fn consume(mut socket: Socket, left: Arc<AtomicU64>, seed: u64) -> Vec<(u32, u64)> {
    let mut random = Random::new(seed);
    let mut seen = Seen::default();
    let mut buffer = [0; 400];
    socket
        .set_read_timeout(Some(Duration::from_millis(20)))
        .expect("a limit");
    while left.load(Ordering::Relaxed) > 0 {
        let before = seen.all.len();
        match random.below(3) {
            0 => match socket.recv() {
                Ok(message) => seen.note(&message),
                Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
            },
            1 => match socket.recv_into(&mut buffer) {
                Ok(got) => seen.note(&buffer[..got.len_bytes]),
                Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
            },
            _ => match socket.recv_batch(random.between(1, 30)) {
                Ok(batch) => batch.for_each(|message| seen.note(&message)),
                Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
            },
        }
        left.fetch_sub((seen.all.len() - before) as u64, Ordering::Relaxed);
    }
    seen.all
}

#[test]
fn nothing_lost_nothing_twice() {
    bounded(60, || {
        const COUNT: u64 = 5000;
        for (sockets, connections) in [(1, 1), (1, 8), (4, 1), (2, 3), (4, 8), (8, 4)] {
            let mux = mux();
            let left = Arc::new(AtomicU64::new(u64::from(connections) * COUNT));
            let consumers: Vec<_> = (0..sockets)
                .map(|n| {
                    let (socket, left) = (mux.socket().expect("a socket"), left.clone());
                    thread::spawn(move || consume(socket, left, n))
                })
                .collect();
            let senders = senders(&mux, connections, COUNT, 100);
            let _peers: Vec<_> = senders
                .into_iter()
                .map(|s| s.join().expect("sent"))
                .collect();
            let all = consumers
                .into_iter()
                .flat_map(|c| c.join().expect("received"));
            assert_complete(all.collect(), connections, COUNT);
        }
    });
}

#[test]
fn no_message_is_left_behind_a_socket_that_holds_still() {
    bounded(60, || {
        for len in [16, 64, 600] {
            // The other socket was there before.
            let mux = mux();
            let mut busy = mux.socket().expect("a socket");
            let mut idle = mux.socket().expect("a socket");
            let (_, _peer) = burst(&mux, len);
            let mut all = vec![number_of(&soon(&mut busy))];
            all.extend(take_the_others(&mut idle, 99));
            assert_complete(all, 1, 100);

            // It is made after.
            let (_, _peer) = burst(&mux, len);
            drop(idle);
            let mut all = vec![number_of(&soon(&mut busy))];
            let mut idle = busy.try_clone().expect("a clone");
            all.extend(take_the_others(&mut idle, 99));
            assert_complete(all, 1, 100);

            // It waits already.
            let waiting = spawn_asleep(move || take_the_others(&mut idle, 99));
            let (_, _peer) = burst(&mux, len);
            let mut all = Vec::new();
            busy.set_read_timeout(Some(PROMPT)).expect("a limit");
            match busy.recv() {
                // It has got the first, or another.
                Ok(message) => all.push(number_of(&message)),
                // The other was quicker.
                Err(Error::WouldBlock) => {}
                Err(error) => panic!("{error}"),
            }
            all.extend(waiting.join().expect("received"));
            all.extend(drain(&mut busy).iter().map(|message| number_of(message)));
            assert_complete(all, 1, 100);
        }
    });
}

#[test]
fn many_that_hold_still_and_one_that_does_not() {
    bounded(20, || {
        let mux = mux();
        let mut all = Vec::new();
        let (held, holding) = mpsc::channel();
        let mut releases = Vec::new();
        for _ in 0..7 {
            // Threads that wait, get one, and are then stuck with it.
            let (mut socket, held) = (mux.socket().expect("a socket"), held.clone());
            let (release, released) = mpsc::channel::<()>();
            releases.push(release);
            spawn_asleep(move || {
                let message = soon(&mut socket);
                held.send(number_of(&message)).expect("somebody counts");
                let _ = released.recv();
            });
        }
        let (_, _peer) = burst(&mux, 50);
        for _ in 0..7 {
            all.push(
                holding
                    .recv_timeout(PROMPT)
                    .expect("each waiting one gets one"),
            );
        }
        let mut last = mux.socket().expect("a socket");
        all.extend(take_the_others(&mut last, 93));
        assert_complete(all, 1, 100);
    });
}

#[test]
fn a_connection_behind_a_busy_one() {
    bounded(20, || {
        // One socket holds a message of a burst; another connection's message goes to the other.
        let mux = mux();
        let mut busy = mux.socket().expect("a socket");
        let (_, _first) = burst(&mux, 64);
        let _held = soon(&mut busy);
        let mut idle = mux.socket().expect("a socket");
        let (id, second) = attached(&mux);
        write(&second, &numbered(9, 9, 40));
        let start = Instant::now();
        let found = (0..100).any(|_| soon(&mut idle).connection() == id);
        assert!(found && start.elapsed() < PROMPT, "{:?}", start.elapsed());
    });
}

#[test]
fn an_ordered_connection_waits_for_done() {
    bounded(20, || {
        let mux = mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (id, peer) = attached(&mux);
        let connection = mux.connection(id).expect("it is there");
        connection.set_ordered(true);
        let stream: Vec<u8> = (0..6).flat_map(|n| numbered(1, n, 20)).collect();
        write(&peer, &stream);
        assert_eq!(number_of(&soon(&mut first)), (1, 0));
        nothing(&mut second);
        // Others are not held up.
        let (_, other) = attached(&mux);
        write(&other, &numbered(2, 0, 20));
        assert_eq!(number_of(&soon(&mut second)), (2, 0));
        // "Done" wakes the one that waits.
        let waiting = spawn_asleep(move || (number_of(&soon(&mut second)), second));
        first.done();
        let (got, mut second) = waiting.join().expect("received");
        assert_eq!(got, (1, 1));
        nothing(&mut first);
        // Asking again means done.
        assert_eq!(number_of(&soon(&mut second)), (1, 2));
        // So does the end of the socket.
        let waiting = spawn_asleep(move || (number_of(&soon(&mut first)), first));
        drop(second);
        let (got, mut first) = waiting.join().expect("received");
        assert_eq!(got, (1, 3));
        // Without order, all can have the rest.
        connection.set_ordered(false);
        let mut second = mux.socket().expect("a socket");
        assert_eq!(number_of(&soon(&mut second)), (1, 4));
        assert_eq!(number_of(&soon(&mut first)), (1, 5));
    });
}

#[test]
fn a_connection_can_be_ordered_from_its_first_message() {
    let framing: kcm::Framing = "u8+1".parse().expect("a specification");
    let mux = kcm::Multiplexor::builder(framing)
        .ordered(true)
        .build()
        .expect("a multiplexor");
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
    mux.attach(ours).expect("attached");
    std::io::Write::write_all(&mut theirs, &[0, 1, 7]).expect("sent");
    let mut first = mux.socket().expect("a socket");
    let mut second = mux.socket().expect("a socket");
    second.set_nonblocking(true).expect("set");
    assert_eq!(&*first.recv().expect("a message"), &[0]);
    assert!(matches!(second.recv(), Err(Error::WouldBlock)));
    first.done();
    assert_eq!(&*second.recv().expect("a message"), &[1, 7]);
}

#[test]
fn ordered_connections_are_worked_on_in_order() {
    bounded(30, || {
        const COUNT: u64 = 2000;
        let mux = mux();
        let senders = senders(&mux, 3, COUNT, 300);
        for connection in mux.connections() {
            connection.set_ordered(true);
        }
        let log = Arc::new(Mutex::new(Seen::default()));
        let left = Arc::new(AtomicU64::new(3 * COUNT));
        let workers: Vec<_> = (0..4)
            .map(|_| {
                let (log, left) = (log.clone(), left.clone());
                let mut socket = mux.socket().expect("a socket");
                let limit = Some(Duration::from_millis(20));
                socket.set_read_timeout(limit).expect("a limit");
                thread::spawn(move || {
                    while left.load(Ordering::Relaxed) > 0 {
                        match socket.recv() {
                            Ok(message) => {
                                thread::yield_now();
                                log.lock().expect("no panic").note(&message);
                                left.fetch_sub(1, Ordering::Relaxed);
                            }
                            Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
                        }
                    }
                })
            })
            .collect();
        // What was sent before `set_ordered` may have been out of order only if it was received
        // before, and nobody received.
        let _peers: Vec<_> = senders
            .into_iter()
            .map(|s| s.join().expect("sent"))
            .collect();
        workers.into_iter().for_each(|w| w.join().expect("worked"));
        let log = std::mem::take(&mut *log.lock().expect("no panic"));
        assert_complete(log.all, 3, COUNT);
    });
}

#[test]
fn a_disabled_socket_gets_nothing_and_keeps_nothing() {
    bounded(20, || {
        let mux = mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (_, _peer) = burst(&mux, 40);
        let mut all = vec![number_of(&soon(&mut first))];
        // With a burst in hand.
        first.set_receive_disabled(true);
        nothing(&mut first);
        all.extend(take_the_others(&mut second, 50));
        // Nobody is left: everything stays where it is.
        second.set_receive_disabled(true);
        nothing(&mut first);
        nothing(&mut second);
        first.set_receive_disabled(false);
        all.extend(take_the_others(&mut first, 49));
        assert_complete(all, 1, 100);
        nothing(&mut first);
        nothing(&mut second);
    });
}

#[test]
fn time_limits_are_those_of_std_net() {
    bounded(20, || {
        let mux = mux();
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        assert!(socket.set_read_timeout(Some(Duration::ZERO)).is_err());
        assert!(socket.set_write_timeout(Some(Duration::ZERO)).is_err());
        for wait in [Duration::from_millis(1), Duration::from_millis(150)] {
            socket.set_read_timeout(Some(wait)).expect("a limit");
            let start = Instant::now();
            let got = socket.recv().map(|message| message.to_vec());
            assert!(matches!(got, Err(Error::WouldBlock)), "{got:?}");
            assert!(start.elapsed() >= wait && start.elapsed() < wait + PROMPT);
        }
        // The start of a message is no message, and does not lengthen the wait.
        let trickle = thread::spawn(move || {
            for byte in &numbered(1, 1, 40)[..30] {
                write(&peer, &[*byte]);
                thread::sleep(Duration::from_millis(10));
            }
            peer
        });
        let start = Instant::now();
        let got = socket.recv().map(|message| message.to_vec());
        assert!(matches!(got, Err(Error::WouldBlock)), "{got:?}");
        assert!(start.elapsed() < Duration::from_millis(150) + PROMPT);
        let peer = trickle.join().expect("written");

        socket.set_nonblocking(true).expect("non-blocking");
        let start = Instant::now();
        let got = socket.recv().map(|message| message.to_vec());
        assert!(matches!(got, Err(Error::WouldBlock)), "{got:?}");
        assert!(start.elapsed() < A_WHILE);
        write(&peer, &numbered(1, 1, 40)[30..]);
        socket.set_nonblocking(false).expect("blocking");
        socket.set_read_timeout(None).expect("no limit");
        let message = socket.recv().expect("a message");
        assert_eq!(number_of(&message), (1, 1));
    });
}
