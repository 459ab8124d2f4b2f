//! Several event loops over the sockets of one multiplexor: each message wakes one of them, and
//! they mix with threads that block.

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{epoll::*, *};
use kcm::Error;

#[test]
fn request_and_response_in_both_kinds_of_loop() {
    bounded(40, || {
        for edge in [false, true] {
            for loops in [1, 3] {
                let mux = mux();
                let (watched, stop) = stopper();
                let loops: Vec<_> = (0..loops)
                    .map(|_| {
                        let socket = mux.socket().expect("a socket");
                        poller(socket, edge, watched.clone(), |message| {
                            message.reply(message).expect("replied");
                        })
                    })
                    .collect();
                let clients: Vec<_> = (0..3)
                    .map(|connection: u32| {
                        let (_, mut peer) = attached(&mux);
                        thread::spawn(move || {
                            let mut random = Random::new(connection.into());
                            for number in 0..300 {
                                let count = random.between(1, 6) as u64;
                                let requests: Vec<_> = (0..count)
                                    .map(|n| numbered(connection, number * 10 + n, 30))
                                    .collect();
                                write(&peer, &requests.concat());
                                let mut replies: Vec<_> = (0..count)
                                    .map(|_| read_message(&mut peer).expect("a reply"))
                                    .collect();
                                replies.sort_unstable();
                                assert_eq!(replies, requests);
                            }
                        })
                    })
                    .collect();
                clients.into_iter().for_each(|c| c.join().expect("served"));
                drop(stop);
                loops.into_iter().for_each(|l| assert!(l.join().is_ok()));
            }
        }
    });
}

/// Times this thread has gone to sleep.
fn voluntary_switches() -> u64 {
    // SAFETY: `getrusage` fills the structure that it is given, which zeros are a value of.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage
    };
    u64::try_from(usage.ru_nvcsw).expect("a count")
}

#[test]
fn eight_loops_are_no_herd() {
    alone(60, || {
        const COUNT: u64 = 2000;
        for edge in [false, true] {
            let mux = mux();
            let (watched, stop) = stopper();
            let switches = Arc::new(AtomicU64::new(0));
            let counting = Arc::new(AtomicBool::new(false));
            let loops: Vec<_> = (0..8)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    let (watched, switches) = (watched.clone(), switches.clone());
                    let counting = counting.clone();
                    thread::spawn(move || {
                        let looping = if edge {
                            Loop::edge(&socket)
                        } else {
                            Loop::level(&socket)
                        };
                        looping.stop_with(&*watched);
                        let mut before = None;
                        loop {
                            let (_, stopped) = looping.wait(Duration::from_secs(20));
                            if stopped {
                                let all = voluntary_switches() - before.unwrap_or_default();
                                switches.fetch_add(all, Ordering::Relaxed);
                                return before.is_some();
                            }
                            while let Ok(message) = socket.recv() {
                                message.reply(&message).expect("replied");
                                if !edge {
                                    break;
                                }
                            }
                            if before.is_none() && counting.load(Ordering::Relaxed) {
                                before = Some(voluntary_switches());
                            }
                        }
                    })
                })
                .collect();
            let (_, mut first) = attached(&mux);
            let (_, mut second) = attached(&mux);
            counting.store(true, Ordering::Relaxed);
            for number in 0..COUNT {
                let peer = if number % 2 == 0 {
                    &mut first
                } else {
                    &mut second
                };
                write(&mut *peer, &numbered(1, number, 100));
                let reply = read_message(peer).expect("a reply");
                assert_eq!(number_of(&reply), (1, number));
                // Spaced: all loops are asleep again.
                thread::sleep(Duration::from_micros(200));
            }
            drop(stop);
            let awake = loops
                .into_iter()
                .filter_map(|l| l.join().expect("looped").then_some(()));
            let awake = awake.count();
            // A loop that never woke has counted its one sleep, from the beginning.
            let switches = switches.load(Ordering::Relaxed);
            println!("edge {edge}: {switches} switches for {COUNT} messages, {awake} loops woke");
            assert!(
                switches * 10 <= COUNT * 11 + 200,
                "{switches} for {COUNT} messages"
            );
        }
    });
}

#[test]
fn blocked_threads_and_pollers_mix() {
    bounded(40, || {
        const COUNT: u64 = 2000;
        let mux = mux();
        let (watched, stop) = stopper();
        let all = Arc::new(Mutex::new(Vec::new()));
        let note = |all: &Arc<Mutex<Vec<_>>>| {
            let all = all.clone();
            move |message: &kcm::Message| {
                all.lock().expect("no panic").push(number_of(message));
                message.reply(message).expect("replied");
            }
        };
        let pollers: Vec<_> = [false, true, false]
            .into_iter()
            .map(|edge| {
                poller(
                    mux.socket().expect("a socket"),
                    edge,
                    watched.clone(),
                    note(&all),
                )
            })
            .collect();
        let blocked: Vec<_> = (0..2)
            .map(|_| {
                let (mut socket, each) = (mux.socket().expect("a socket"), note(&all));
                thread::spawn(move || {
                    loop {
                        match socket.recv() {
                            Ok(message) => each(&message),
                            Err(Error::Closed) => return,
                            Err(error) => panic!("{error}"),
                        }
                    }
                })
            })
            .collect();
        let clients: Vec<_> = (0..4)
            .map(|connection: u32| {
                let (_, mut peer) = attached(&mux);
                thread::spawn(move || {
                    let mut random = Random::new(connection.into());
                    for number in 0..COUNT / 4 {
                        write(&peer, &numbered(connection, number, 50));
                        read_message(&mut peer).expect("a reply");
                        if random.below(4) == 0 {
                            thread::sleep(Duration::from_micros(random.below(300) as u64));
                        }
                    }
                    peer
                })
            })
            .collect();
        let _peers: Vec<_> = clients
            .into_iter()
            .map(|c| c.join().expect("served"))
            .collect();
        drop(stop);
        pollers.into_iter().for_each(|p| assert!(p.join().is_ok()));
        mux.shutdown();
        blocked
            .into_iter()
            .for_each(|b| b.join().expect("received"));
        let mut all = std::mem::take(&mut *all.lock().expect("no panic"));
        all.sort_unstable();
        let expected = (0..4).flat_map(|c| (0..COUNT / 4).map(move |n| (c, n)));
        assert!(all.into_iter().eq(expected), "each once");
    });
}

#[test]
fn a_told_loop_that_does_not_come_holds_up_nobody() {
    bounded(20, || {
        // The first was told of a message and is busy elsewhere; a thread that asks gets it.
        let mux = mux();
        let (_, peer) = attached(&mux);
        let mut told = mux.socket().expect("a socket");
        let level = Loop::level(&told);
        assert_would_block(&mut told);
        write(&peer, &numbered(1, 1, 20));
        level.assert_ready();
        let mut asking = mux.socket().expect("a socket");
        assert_eq!(number_of(&soon(&mut asking)), (1, 1));
        assert_would_block(&mut told);
        // The same for another that polls: told when the first is gone.
        let polling = Loop::level(&asking);
        assert_would_block(&mut asking);
        write(&peer, &numbered(1, 2, 20));
        drop((told, level));
        polling.assert_ready();
        assert_eq!(number_of(&asking.recv().expect("readable")), (1, 2));
    });
}
