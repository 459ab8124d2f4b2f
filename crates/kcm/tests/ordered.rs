//! Ordered connections: the next message goes out when the socket that has the previous one asks
//! again, says done, or is gone; whatever else happens meanwhile.

mod common;

use std::{
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use common::{traffic::*, *};
use kcm::{Error, Multiplexor, Socket};

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
fn a_builder_makes_every_connection_ordered() {
    bounded(20, || {
        let mux = Multiplexor::builder(framing()).ordered(true);
        let mux = mux.build().expect("a mux");
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (_, peer) = attached(&mux);
        let stream: Vec<u8> = (0..2).flat_map(|n| numbered(1, n, 20)).collect();
        write(&peer, &stream);
        assert_eq!(number_of(&soon(&mut first)), (1, 0));
        nothing(&mut second);
        first.done();
        assert_eq!(number_of(&soon(&mut second)), (1, 1));
    });
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

/// Two sockets of one multiplexor, and an ordered connection on which this many messages have come.
fn ordered(count: u64) -> (Multiplexor, Socket, Socket, kcm::ConnectionId, TcpStream) {
    let mux = Multiplexor::builder(framing()).ordered(true);
    let mux = mux.build().expect("a mux");
    let first = mux.socket().expect("a socket");
    let second = mux.socket().expect("a socket");
    let (id, peer) = attached(&mux);
    let stream: Vec<u8> = (0..count).flat_map(|n| numbered(1, n, 20)).collect();
    write(&peer, &stream);
    (mux, first, second, id, peer)
}

/// The first socket walks through a burst; it loses the rest, but the connection waits for it.
fn waits_though(lost: impl FnOnce(&Multiplexor, &Socket, kcm::ConnectionId) + Send + 'static) {
    bounded(20, || {
        let (mux, mut first, mut second, id, _peer) = ordered(6);
        assert_eq!(number_of(&soon(&mut first)), (1, 0));
        assert_eq!(number_of(&soon(&mut first)), (1, 1));
        lost(&mux, &first, id);
        nothing(&mut second);
        first.done();
        assert_eq!(number_of(&soon(&mut second)), (1, 2));
        nothing(&mut first);
        drop(second);
        first.set_receive_disabled(false);
        for n in 3..6 {
            assert_eq!(number_of(&soon(&mut first)), (1, n));
        }
    });
}

#[test]
fn it_waits_though_its_socket_gets_nothing_more() {
    waits_though(|_, first, _| first.set_receive_disabled(true));
}

#[test]
fn it_waits_though_it_is_unattached() {
    waits_though(|mux, _, id| {
        mux.unattach(id).expect("it was attached");
    });
}

#[test]
fn it_waits_though_its_framing_changes() {
    waits_though(|mux, _, id| {
        let connection = mux.connection(id).expect("it is there");
        connection.set_framing(framing());
    });
}

#[test]
fn it_waits_though_a_batch_is_dropped() {
    bounded(20, || {
        let (_mux, mut first, mut second, _, _peer) = ordered(6);
        assert_eq!(number_of(&soon(&mut first)), (1, 0));
        let taken: Vec<_> = first.recv_batch(4).expect("a batch").take(2).collect();
        assert_eq!(number_of(&taken[0]), (1, 1));
        nothing(&mut second);
        assert_eq!(number_of(&soon(&mut first)), (1, 3));
        nothing(&mut second);
        first.done();
        assert_eq!(number_of(&soon(&mut second)), (1, 4));
    });
}

/// A burst of slow messages is not worked through while another connection waits.
#[test]
fn a_long_burst_does_not_starve_the_others() {
    for ordered in [true, false] {
        bounded(20, move || {
            const WORK: Duration = Duration::from_millis(2);
            let mux = Multiplexor::builder(framing()).ordered(ordered);
            let mux = mux.build().expect("a mux");
            let mut socket = mux.socket().expect("a socket");
            let (busy, peer) = attached(&mux);
            let stream: Vec<u8> = (0..500).flat_map(|n| numbered(1, n, 20)).collect();
            write(&peer, &stream);
            assert_eq!(soon(&mut socket).connection(), busy);
            let (_, other) = attached(&mux);
            write(&other, &numbered(2, 0, 20));
            // (Before the next look around, the events of 64 messages may pass by.)
            let before_it = (0..500)
                .take_while(|_| {
                    thread::sleep(WORK);
                    soon(&mut socket).connection() == busy
                })
                .count();
            assert!(before_it < 10, "after {before_it} others");
        });
    }
}
