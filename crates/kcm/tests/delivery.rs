//! Delivery by pull: whichever socket asks gets the next message, nothing is lost, nothing comes
//! twice, and nothing waits behind a socket that is busy.

mod common;

use std::{
    sync::{
        Arc,
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

/// Sockets that take batches take the rest of a burst from one another all the time. What one had cut
/// off already at that moment is still its own: nobody gets it behind later ones.
#[test]
fn batches_keep_the_order_when_a_burst_changes_hands() {
    bounded(60, || {
        const COUNT: u64 = 400_000;
        let mux = mux();
        let left = Arc::new(AtomicU64::new(COUNT));
        // The first is always there; the others come now and then, and find it in a burst.
        let consumers: Vec<_> = (0..3)
            .map(|pause_us| {
                let (mut socket, left) = (mux.socket().expect("a socket"), left.clone());
                thread::spawn(move || {
                    let mut seen = Seen::default();
                    let limit = Some(Duration::from_millis(20));
                    socket.set_read_timeout(limit).expect("a limit");
                    while left.load(Ordering::Relaxed) > 0 {
                        let before = seen.all.len();
                        if pause_us > 0 {
                            thread::sleep(Duration::from_micros(50 * pause_us));
                        }
                        match socket.recv_batch(1000) {
                            Ok(batch) => batch.for_each(|message| seen.note(&message)),
                            Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
                        }
                        left.fetch_sub((seen.all.len() - before) as u64, Ordering::Relaxed);
                    }
                    seen.all
                })
            })
            .collect();
        let senders = senders(&mux, 1, COUNT, 20);
        let _peers: Vec<_> = (senders.into_iter())
            .map(|s| s.join().expect("sent"))
            .collect();
        let all = (consumers.into_iter()).flat_map(|c| c.join().expect("received"));
        assert_complete(all.collect(), 1, COUNT);
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

/// A busy thread looks for events beside one that waits for them: it must not take the news that is
/// meant to bring that one back, or nothing reaches it any more.
#[test]
fn a_watcher_is_reached_while_others_look_beside_it() {
    bounded(60, || {
        const COUNT: u64 = 400;
        for round in 0..200 {
            let mux = mux();
            let received = Arc::new(AtomicU64::new(0));
            let workers: Vec<_> = (0..3)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    let received = received.clone();
                    thread::spawn(move || {
                        while socket.recv().is_ok() {
                            received.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            let peers: Vec<_> = (0..3).map(|_| attached(&mux).1).collect();
            for (connection, peer) in (0..).zip(&peers) {
                let burst: Vec<_> = (0..COUNT)
                    .flat_map(|number| numbered(connection, number, 16))
                    .collect();
                write(peer, &burst);
            }
            wait_until("all is received", || {
                received.load(Ordering::SeqCst) == 3 * COUNT
            });
            mux.shutdown();
            for worker in workers {
                wait_until(
                    &format!("round {round}: a thread is told of the end"),
                    || worker.is_finished(),
                );
            }
        }
    });
}

extern "C" fn note_nothing(_: libc::c_int) {}

/// Sends this thread a signal that interrupts system calls, and is nothing else.
fn interrupt(thread: i32) {
    // SAFETY: the handler touches nothing; the structure is read by the system, and zeros are a value
    // of it (no flags: `SA_RESTART` is not among them).
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = note_nothing as *const () as usize;
        let done = libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut());
        assert_eq!(done, 0, "a handler");
        libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGUSR1);
    }
}

/// Runs this in a thread that gets signals while it waits; `go` lets it have what it waits for.
fn interrupted<T: Send + 'static>(
    waits: impl FnOnce() -> T + Send + 'static,
    go: impl FnOnce(),
) -> T {
    let (tell, told) = mpsc::channel();
    let waiting = spawn_asleep(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero().get())
            .expect("somebody listens");
        waits()
    });
    let thread = told.recv().expect("its id");
    for _ in 0..10 {
        interrupt(thread);
        thread::sleep(Duration::from_millis(2));
    }
    assert!(!waiting.is_finished(), "it goes on waiting");
    go();
    waiting.join().expect("it came back")
}

#[test]
fn a_signal_ends_no_wait() {
    bounded(30, || {
        // In a receive on the only connection, in epoll, and behind another thread.
        for (connections, others) in [(1, 0), (3, 0), (1, 1)] {
            let mux = mux();
            let peers: Vec<_> = (0..connections).map(|_| attached(&mux).1).collect();
            let others: Vec<_> = (0..others)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    spawn_asleep(move || number_of(&soon(&mut socket)))
                })
                .collect();
            let count = 1 + others.len() as u64;
            let mut socket = mux.socket().expect("a socket");
            let mut got = vec![interrupted(
                move || number_of(&socket.recv().expect("a message")),
                || {
                    for number in 0..count {
                        write(&peers[0], &numbered(1, number, 20));
                    }
                },
            )];
            got.extend(others.into_iter().map(|t| t.join().expect("received")));
            got.sort_unstable();
            assert!(got.into_iter().eq((0..count).map(|n| (1, n))));
        }
        // In a send for which there is no room, or no connection.
        let mux = mux();
        let (id, peer) = attached(&mux);
        rustix::net::sockopt::set_socket_recv_buffer_size(&peer, 64 << 10).expect("small");
        let socket = mux.socket().expect("a socket");
        socket
            .send_to(id, &numbered(1, 0, 12 << 20))
            .expect("taken");
        let mut reader = None;
        let sent = interrupted(
            move || socket.send_to(id, &numbered(1, 1, 20)),
            || reader = Some(read_all(peer)),
        );
        sent.expect("sent");
        mux.shutdown();
        let got = reader.expect("it was started").join().expect("read");
        assert_eq!(got, [(1, 0), (1, 1)]);
    });
}
