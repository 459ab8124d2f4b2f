//! Threads, sockets and connections that come and go while messages flow: the others notice
//! nothing, and no message is lost with them.

mod common;

use std::{
    io::Read,
    net::TcpListener,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{traffic::*, *};
use kcm::{EndReason, Error};

#[test]
fn a_panic_with_a_message_in_hand_wedges_nobody() {
    bounded(20, || {
        let mux = mux();
        let (_, _peer) = burst(&mux, 40);
        let mut all = Vec::new();
        for _ in 0..5 {
            let mut socket = mux.socket().expect("a socket");
            let mut got = None;
            let worker = AssertUnwindSafe(|| {
                let message = soon(&mut socket);
                got = Some(number_of(&message));
                let _dropped_by_the_panic = (message, socket);
                // Unlike `panic!`, quiet.
                std::panic::resume_unwind(Box::new("at work"));
            });
            assert!(catch_unwind(worker).is_err());
            all.extend(got);
        }
        let mut last = mux.socket().expect("a socket");
        all.extend(take_the_others(&mut last, 95));
        assert_complete(all, 1, 100);
    });
}

#[test]
fn a_thread_that_leaves_while_waiting_takes_nothing_with_it() {
    bounded(40, || {
        let mux = mux();
        let (_, peer) = attached(&mux);
        let mut random = Random::new(77);
        let stop = Arc::new(AtomicBool::new(false));
        let impatient: Vec<_> = (0..3)
            .map(|n: u64| {
                let (mux, stop) = (mux.clone(), stop.clone());
                thread::spawn(move || {
                    let mut random = Random::new(n);
                    let mut all = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let mut socket = mux.socket().expect("a socket");
                        let wait = Duration::from_micros(random.between(1, 2000) as u64);
                        socket.set_read_timeout(Some(wait)).expect("a limit");
                        match socket.recv() {
                            Ok(message) => all.push(number_of(&message)),
                            Err(error) => assert!(matches!(error, Error::WouldBlock), "{error}"),
                        }
                    }
                    all
                })
            })
            .collect();
        let mut patient = mux.socket().expect("a socket");
        let steady = thread::spawn(move || {
            let mut all = Vec::new();
            loop {
                match patient.recv() {
                    Ok(message) => all.push(number_of(&message)),
                    Err(Error::Closed) => return all,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        const COUNT: u64 = 2000;
        for number in 0..COUNT {
            write(&peer, &numbered(0, number, 20));
            if random.below(3) == 0 {
                thread::sleep(Duration::from_micros(random.below(1500) as u64));
            }
        }
        wait_until("all is received", || {
            mux.stats().counters.rx_messages == COUNT
        });
        stop.store(true, Ordering::Relaxed);
        let mut all: Vec<_> = impatient
            .into_iter()
            .flat_map(|thread| thread.join().expect("left"))
            .collect();
        mux.shutdown();
        all.extend(steady.join().expect("received"));
        assert_complete(all, 1, COUNT);
    });
}

#[test]
fn sockets_come_and_go_under_traffic() {
    bounded(40, || {
        const COUNT: u64 = 10_000;
        let mux = mux();
        let left = Arc::new(AtomicU64::new(2 * COUNT));
        let passing: Vec<_> = (0..3)
            .map(|n: u64| {
                let (mux, left) = (mux.clone(), left.clone());
                thread::spawn(move || {
                    let mut random = Random::new(n);
                    let mut all = Vec::new();
                    while left.load(Ordering::Relaxed) > 0 {
                        let mut socket = mux.socket().expect("a socket");
                        let limit = Some(Duration::from_millis(5));
                        socket.set_read_timeout(limit).expect("a limit");
                        for _ in 0..random.below(50) {
                            if let Ok(message) = socket.recv() {
                                all.push(number_of(&message));
                                left.fetch_sub(1, Ordering::Relaxed);
                            }
                        }
                        // It may have a burst in hand.
                    }
                    all
                })
            })
            .collect();
        let senders = senders(&mux, 2, COUNT, 500);
        let _peers: Vec<_> = senders
            .into_iter()
            .map(|s| s.join().expect("sent"))
            .collect();
        let all = passing
            .into_iter()
            .flat_map(|p| p.join().expect("received"));
        assert_complete(all.collect(), 2, COUNT);
    });
}

#[test]
fn a_connection_attached_while_a_thread_waits_on_another() {
    bounded(20, || {
        for waiting in [1, 3] {
            let mux = mux();
            let (_, _silent) = attached(&mux);
            let receivers: Vec<_> = (0..waiting)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    spawn_asleep(move || number_of(&soon(&mut socket)))
                })
                .collect();
            for (number, receiver) in receivers.into_iter().enumerate() {
                let (_, peer) = attached(&mux);
                let start = Instant::now();
                write(&peer, &numbered(1, number as u64, 20));
                if waiting == 1 {
                    assert_eq!(receiver.join().expect("received"), (1, 0));
                    assert!(start.elapsed() < PROMPT);
                }
            }
            wait_until("all are received", || {
                mux.stats().counters.rx_messages == waiting
            });
        }
    });
}

#[test]
fn a_thousand_connections_come_and_go_while_messages_flow() {
    bounded(60, || {
        let mux = mux();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let address = listener.local_addr().expect("its address");
        mux.listen(listener).expect("listening");
        let servers: Vec<_> = (0..3).map(|_| echo(&mux)).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let steady = {
            let stop = stop.clone();
            thread::spawn(move || {
                let mut peer = connect(address);
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let message = numbered(0, number, 100);
                    write(&peer, &message);
                    assert_eq!(read_message(&mut peer).expect("a reply"), message);
                    number += 1;
                }
                peer
            })
        };
        let passing: Vec<_> = (1..5)
            .map(|thread: u32| {
                thread::spawn(move || {
                    for round in 0..250 {
                        let mut peer = connect(address);
                        let messages: Vec<_> = (0..3)
                            .map(|n| numbered(thread, round * 3 + n, 40))
                            .collect();
                        write(&peer, &messages.concat());
                        let mut replies: Vec<_> = (0..3)
                            .map(|_| read_message(&mut peer).expect("a reply"))
                            .collect();
                        replies.sort_unstable();
                        assert_eq!(replies, messages);
                        if round % 5 == 0 {
                            reset(peer);
                        }
                    }
                })
            })
            .collect();
        passing.into_iter().for_each(|p| p.join().expect("served"));
        let mut ended = 0;
        wait_until("a thousand ends are told", || {
            while let Some(event) = mux.try_next_event() {
                assert!(
                    matches!(event.reason, EndReason::Eof | EndReason::Reset),
                    "{event:?}"
                );
                ended += 1;
            }
            ended == 1000
        });
        wait_until("one connection is left", || mux.connections().len() == 1);
        stop.store(true, Ordering::Relaxed);
        let mut peer = steady.join().expect("served to the end");
        mux.shutdown();
        servers.into_iter().for_each(|s| s.join().expect("served"));
        assert_eq!(peer.read(&mut [0; 1]).expect("the end"), 0);
    });
}

#[test]
fn shutdown_wakes_everybody() {
    bounded(20, || {
        for connections in [0, 1, 3] {
            let mux = mux();
            let mut peers: Vec<_> = (0..connections).map(|_| attached(&mux).1).collect();
            let waiting: Vec<_> = (0..4)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    spawn_asleep(move || socket.recv().map(|message| message.to_vec()))
                })
                .collect();
            let events = mux.clone();
            let listening = spawn_asleep(move || {
                let mut ended = 0;
                loop {
                    match events.next_event() {
                        Ok(event) => {
                            assert_eq!(event.reason, EndReason::Closed);
                            ended += 1;
                        }
                        Err(Error::Closed) => return ended,
                        Err(error) => panic!("{error}"),
                    }
                }
            });
            mux.shutdown();
            for thread in waiting {
                let got = thread.join().expect("woken");
                assert!(matches!(got, Err(Error::Closed)), "{got:?}");
            }
            assert_eq!(listening.join().expect("woken"), connections);
            peers.iter_mut().for_each(assert_ended);
            // And so it stays.
            let error = mux.socket().and_then(|mut socket| socket.recv().map(drop));
            assert!(matches!(error, Err(Error::Closed)), "{error:?}");
            let (stream, _peer) = tcp_pair();
            let refused = mux.attach(stream).expect_err("it is closed");
            assert!(matches!(refused.error, Error::Closed), "{refused}");
            mux.shutdown();
        }
    });
}
