//! Level-triggered loops that take one message at each report, and never receive until there is none:
//! each message is reported in time, whatever the other loops are busy with.

mod common;

use std::{
    sync::{Arc, Condvar, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use common::{epoll::*, *};
use kcm::{Message, Multiplexor, Socket};

/// A socket and its loop, the turns of which are the test's.
struct Turns {
    socket: Socket,
    level: Loop,
}

impl Turns {
    fn new(mux: &Multiplexor) -> Self {
        let socket = mux.socket().expect("a socket");
        let level = Loop::level(&socket);
        Self { socket, level }
    }

    /// A turn, if it is readable at this moment.
    fn turn(&mut self) -> Option<Message> {
        if !self.level.wait(Duration::ZERO).0 {
            return None;
        }
        self.socket.recv().ok()
    }

    /// Turns until it would sleep.
    #[track_caller]
    fn settle(&mut self) {
        while self.level.wait(Duration::ZERO).0 {
            assert_would_block(&mut self.socket);
        }
    }

    #[track_caller]
    fn told(&mut self) -> (u32, u64) {
        told([self]).1
    }
}

/// The first of these to be told of a message, and what it is.
#[track_caller]
fn told<const N: usize>(mut loops: [&mut Turns; N]) -> (usize, (u32, u64)) {
    let mut got = None;
    wait_until("a loop is told", || {
        got = loops.iter_mut().enumerate().find_map(|(place, one)| {
            let message = one.turn()?;
            Some((place, number_of(&message)))
        });
        got.is_some()
    });
    got.expect("a message")
}

#[test]
fn after_a_message_of_what_comes_without_bytes() {
    bounded(20, || {
        let mux = mux();
        let (id, peer) = attached(&mux);
        let mut only = Turns::new(&mux);
        write(&peer, &numbered(1, 1, 30));
        assert_eq!(only.told(), (1, 1));
        only.settle();
        // With a new connection, ...
        let (ours, _other) = tcp_pair();
        mux.attach_with(ours, framing(), &numbered(2, 1, 30))
            .expect("attached");
        assert_eq!(only.told(), (2, 1));
        only.settle();
        // ... from one that may be received from again, ...
        let connection = mux.connection(id).expect("it is there");
        connection.set_receive_disabled(true);
        write(&peer, &numbered(1, 2, 30));
        assert!(only.turn().is_none(), "disabled");
        only.settle();
        connection.set_receive_disabled(false);
        assert_eq!(only.told(), (1, 2));
        only.settle();
        // ... and from a socket that has not come to it.
        let mut other = mux.socket().expect("a socket");
        write(&peer, &numbered(1, 3, 30));
        other.set_nonblocking(true).expect("non-blocking");
        let mut looked = false;
        wait_until("it is there", || {
            looked = other.peek().is_ok();
            looked
        });
        only.settle();
        drop(other);
        assert_eq!(only.told(), (1, 3));
        only.settle();
        // A socket that is to be given nothing is told of nothing, until it may have it.
        only.socket.set_receive_disabled(true);
        write(&peer, &numbered(1, 4, 30));
        only.level.assert_idle();
        only.socket.set_receive_disabled(false);
        assert_eq!(only.told(), (1, 4));
    });
}

/// A thread that walks through a burst keeps the rest from nobody who begins to poll.
#[test]
fn of_the_rest_of_a_burst_that_another_has_begun() {
    bounded(20, || {
        let mux = mux();
        let (ours, peer) = tcp_pair();
        let look = ours.try_clone().expect("dup");
        mux.attach(ours).expect("attached");
        let mut walking = mux.socket().expect("a socket");
        let all = [1, 2, 3].map(|number| numbered(1, number, 30));
        write(&peer, &all.concat());
        wait_arrived(&look, 90);
        assert_eq!(number_of(&soon(&mut walking)), (1, 1));
        let mut polling = Turns::new(&mux);
        assert_eq!(polling.told(), (1, 2));
        assert_eq!(polling.told(), (1, 3));
    });
}

/// The rest of a burst on an ordered connection waits until the socket asks again, which it does when
/// it is told to.
#[test]
fn after_a_message_of_an_ordered_connection() {
    bounded(20, || {
        for loops in 1..=2 {
            let mux = mux();
            let (id, peer) = attached(&mux);
            mux.connection(id).expect("it is there").set_ordered(true);
            let mut loops: Vec<_> = (0..loops).map(|_| Turns::new(&mux)).collect();
            for burst in 1..=50 {
                let all: Vec<_> = (0..burst).map(|n| numbered(1, n, 30)).collect();
                write(&peer, &all.concat());
                for number in 0..burst {
                    let got = match &mut loops[..] {
                        [only] => only.told(),
                        [one, two] => told([one, two]).1,
                        _ => unreachable!("one or two"),
                    };
                    assert_eq!(got, (1, number), "of {burst}");
                }
            }
        }
    });
}

/// Two messages for two loops, however they come: who takes the first does not come back.
#[test]
fn the_other_loop_while_one_is_busy() {
    bounded(30, || {
        for at_once in [true, false] {
            for one_connection in [true, false] {
                let mux = mux();
                let (mut one, mut two) = (Turns::new(&mux), Turns::new(&mux));
                let (ours, peer) = tcp_pair();
                let first = ours.try_clone().expect("dup");
                mux.attach(ours).expect("attached");
                let (ours, other) = tcp_pair();
                let second = ours.try_clone().expect("dup");
                mux.attach(ours).expect("attached");
                let mut late = 0;
                for number in 0..50 {
                    if one_connection {
                        let both = [numbered(1, number, 30), numbered(2, number, 30)];
                        write(&peer, &both.concat());
                        wait_arrived(&first, 60);
                    } else if at_once {
                        write(&peer, &numbered(1, number, 30));
                        write(&other, &numbered(2, number, 30));
                        wait_arrived(&first, 30);
                        wait_arrived(&second, 30);
                    } else {
                        write(&peer, &numbered(1, number, 30));
                        wait_arrived(&first, 30);
                    }
                    let (busy, got) = told([&mut one, &mut two]);
                    assert_eq!(got, (1, number));
                    if !at_once && !one_connection {
                        write(&other, &numbered(2, number, 30));
                        wait_arrived(&second, 30);
                    }
                    let idle = if busy == 0 { &mut two } else { &mut one };
                    let since = Instant::now();
                    assert_eq!(idle.told(), (2, number));
                    // Half of how long the others may take to find out that a loop is stuck.
                    late += u32::from(since.elapsed() > Duration::from_millis(10));
                    one.settle();
                    two.settle();
                }
                assert!(late < 10, "{late} of 50 late: {at_once} {one_connection}");
            }
        }
    });
}

/// A loop that closes, or is disabled, after it was told and before it came, leaves it to the other.
#[test]
fn the_other_loop_when_one_that_was_told_leaves() {
    bounded(20, || {
        for disabled in [true, false] {
            for number in 0..20 {
                let mux = mux();
                let (_, peer) = attached(&mux);
                let mut loops = [Turns::new(&mux), Turns::new(&mux)];
                loops.iter_mut().for_each(|one| {
                    assert_would_block(&mut one.socket);
                });
                let (ours, _other) = tcp_pair();
                if number % 2 == 0 {
                    mux.attach_with(ours, framing(), &numbered(1, number, 30))
                        .expect("attached");
                } else {
                    write(&peer, &numbered(1, number, 30));
                }
                let mut told = None;
                wait_until("one is told", || {
                    told = (loops.iter()).position(|one| one.level.wait(Duration::ZERO).0);
                    told.is_some()
                });
                let [one, two] = loops;
                let (gone, mut left) = match told {
                    Some(0) => (one, two),
                    _ => (two, one),
                };
                if disabled {
                    gone.socket.set_receive_disabled(true);
                    assert_eq!(left.told(), (1, number));
                    // And it is not called upon again.
                    left.settle();
                    write(&peer, &numbered(2, number, 30));
                    assert_eq!(left.told(), (2, number));
                    gone.level.assert_idle();
                    gone.socket.set_receive_disabled(false);
                } else {
                    drop(gone);
                    assert_eq!(left.told(), (1, number));
                }
            }
        }
    });
}

/// A loop that was told of what is ready and is stuck in something else holds up nobody for long.
#[test]
fn the_other_loop_when_one_that_was_told_does_not_come() {
    bounded(20, || {
        for settled in [false, true] {
            for other in 0..2 {
                let mux = mux();
                let mut loops = [Turns::new(&mux), Turns::new(&mux)];
                if settled {
                    loops.iter_mut().for_each(|one| {
                        assert_would_block(&mut one.socket);
                    });
                }
                let (ours, _peer) = tcp_pair();
                mux.attach_with(ours, framing(), &numbered(1, 7, 30))
                    .expect("attached");
                assert_eq!(loops[other].told(), (1, 7));
            }
        }
    });
}

/// A blocked thread that finds the messages of several connections, and is busy with the first, leaves the
/// others to the loops.
#[test]
fn the_loop_while_a_blocked_thread_is_busy() {
    bounded(30, || {
        let mux = mux();
        let mut polling = Turns::new(&mux);
        let (_, peer) = attached(&mux);
        let (_, other) = attached(&mux);
        for number in 0..100 {
            let mut socket = mux.socket().expect("a socket");
            let (tell, told) = mpsc::channel();
            let (go_on, wait) = mpsc::channel::<()>();
            let blocked = spawn_asleep(move || {
                let message = socket.recv().expect("a message");
                tell.send(number_of(&message)).expect("somebody listens");
                let _ = wait.recv();
            });
            polling.settle();
            write(&peer, &numbered(1, number, 30));
            write(&other, &numbered(1, number, 30));
            // Whoever comes first takes one, and the loop the one that is left.
            assert_eq!(polling.told(), (1, number));
            match told.recv_timeout(A_WHILE) {
                Ok(got) => assert_eq!(got, (1, number)),
                // It had looked just before.
                Err(_) => {
                    assert_eq!(polling.told(), (1, number));
                    write(&peer, &numbered(1, number, 30));
                    assert_eq!(told.recv_timeout(SOON), Ok((1, number)));
                }
            }
            drop(go_on);
            blocked.join().expect("received");
        }
    });
}

/// Holds its callers until so many are here.
struct Meeting {
    state: Mutex<(usize, u64)>,
    changed: Condvar,
}

impl Meeting {
    fn hold(&self, count: usize) {
        let mut state = self.state.lock().expect("no panic");
        state.0 += 1;
        let round = state.1;
        if state.0 == count {
            *state = (0, round + 1);
            self.changed.notify_all();
        }
        while state.1 == round {
            state = self.changed.wait(state).expect("no panic");
        }
    }
}

/// As many messages as loops, on any connections: each is held until all are in hand.
#[test]
fn all_loops_at_once() {
    bounded(60, || {
        for loops in 1..=4 {
            for connections in [1, 2, 5] {
                let mux = mux();
                let meeting = Arc::new(Meeting {
                    state: Mutex::new((0, 0)),
                    changed: Condvar::new(),
                });
                let (watched, stop) = stopper();
                let (tell, told) = mpsc::channel();
                let pollers: Vec<_> = (0..loops)
                    .map(|_| {
                        let (meeting, tell) = (meeting.clone(), tell.clone());
                        let socket = mux.socket().expect("a socket");
                        poller(socket, false, watched.clone(), move |message| {
                            meeting.hold(loops);
                            tell.send(number_of(message)).expect("somebody listens");
                        })
                    })
                    .collect();
                let peers: Vec<_> = (0..connections).map(|_| attached(&mux).1).collect();
                let mut random = Random::new(loops as u64 * 10 + connections as u64);
                for number in 0..100 {
                    let mut bursts = vec![Vec::new(); connections];
                    let mut sent: Vec<_> = (0..loops)
                        .map(|n| {
                            let n = number * 10 + n as u64;
                            bursts[random.below(connections)].extend(numbered(1, n, 30));
                            (1, n)
                        })
                        .collect();
                    for (peer, burst) in peers.iter().zip(&bursts) {
                        write(peer, burst);
                    }
                    let mut got: Vec<_> = (0..loops)
                        .map(|n| {
                            told.recv_timeout(SOON).unwrap_or_else(|_| {
                                panic!("round {number}: {n} of {loops}, {connections} connections")
                            })
                        })
                        .collect();
                    got.sort_unstable();
                    sent.sort_unstable();
                    assert_eq!(got, sent);
                    if random.below(3) == 0 {
                        thread::sleep(Duration::from_micros(random.below(500) as u64));
                    }
                }
                drop(stop);
                pollers.into_iter().for_each(|p| assert!(p.join().is_ok()));
            }
        }
    });
}

/// Bursts of 1 to 50, pushed by peers that wait for nothing but the end of each.
#[test]
fn bursts_that_go_on_coming() {
    bounded(60, || {
        for loops in [1, 2, 4] {
            for connections in [1, 3, 8] {
                let mux = mux();
                let (watched, stop) = stopper();
                let pollers: Vec<_> = (0..loops)
                    .map(|_| {
                        let socket = mux.socket().expect("a socket");
                        poller(socket, false, watched.clone(), |message| {
                            message.reply(message).expect("replied");
                        })
                    })
                    .collect();
                let clients: Vec<_> = (0..connections)
                    .map(|connection: u32| {
                        let (_, mut peer) = attached(&mux);
                        thread::spawn(move || {
                            let mut random = Random::new(connection.into());
                            for round in 0..40 {
                                let count = random.between(1, 51) as u64;
                                let all: Vec<_> = (0..count)
                                    .map(|n| numbered(connection, round * 100 + n, 40))
                                    .collect();
                                let bytes = all.concat();
                                // In pieces that end anywhere.
                                let mut rest = &bytes[..];
                                while !rest.is_empty() {
                                    let len = random.between(1, 400).min(rest.len());
                                    write(&peer, &rest[..len]);
                                    rest = &rest[len..];
                                }
                                let mut replies: Vec<_> = (0..count)
                                    .map(|_| read_message(&mut peer).expect("a reply"))
                                    .collect();
                                replies.sort_unstable();
                                assert!(replies == all, "each once");
                            }
                            peer
                        })
                    })
                    .collect();
                let _peers: Vec<_> = (clients.into_iter())
                    .map(|c| c.join().expect("served"))
                    .collect();
                drop(stop);
                pollers.into_iter().for_each(|p| assert!(p.join().is_ok()));
            }
        }
    });
}
