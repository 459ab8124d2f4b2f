//! Readiness: a socket's descriptors inside the caller's own epoll loop. Readable when a message can
//! be taken and never late; early at most once for each arrival.

mod common;

use std::{sync::mpsc, thread, time::Duration};

use common::{epoll::*, *};
use kcm::{Error, Multiplexor, MuxLimits};
use rustix::event::epoll::EventFlags;

#[test]
fn readable_when_a_message_can_be_taken() {
    bounded(20, || {
        let mux = mux();
        let mut socket = mux.socket().expect("a socket");
        let level = Loop::level(&socket);
        let edge = Loop::edge(&socket);
        let (_, peer) = attached(&mux);
        assert_would_block(&mut socket);
        level.assert_idle();
        edge.wait(Duration::ZERO);
        edge.assert_idle();
        for number in 0..100 {
            write(
                &peer,
                &[numbered(1, number, 16), numbered(2, number, 40)].concat(),
            );
            level.assert_ready();
            edge.assert_ready();
            // Level-triggered: as long as one is left.
            assert_eq!(number_of(&socket.recv().expect("readable")), (1, number));
            level.assert_ready();
            assert_eq!(number_of(&socket.recv().expect("readable")), (2, number));
            assert_would_block(&mut socket);
            edge.wait(Duration::ZERO);
            level.assert_idle();
            edge.assert_idle();
        }
    });
}

#[test]
fn readable_however_the_message_came() {
    bounded(20, || {
        let mux = mux();
        let (ours, peer) = tcp_pair();
        let look = ours.try_clone().expect("dup");
        mux.attach(ours).expect("attached");
        // It was there before the descriptor was asked for, ...
        write(&peer, &numbered(1, 1, 30));
        wait_arrived(&look, 30);
        let mut polled = mux.socket().expect("a socket");
        let edge = Loop::edge(&polled);
        edge.assert_ready();
        assert_eq!(number_of(&polled.recv().expect("readable")), (1, 1));
        // ... comes with its connection, ...
        assert_would_block(&mut polled);
        edge.wait(Duration::ZERO);
        let (ours, _other) = tcp_pair();
        mux.attach_with(ours, framing(), &numbered(1, 2, 50))
            .expect("attached");
        edge.assert_ready();
        assert_eq!(number_of(&polled.recv().expect("readable")), (1, 2));
        // ... or was read by a thread that keeps another one of its burst.
        assert_would_block(&mut polled);
        edge.wait(Duration::ZERO);
        let mut asking = mux.socket().expect("a socket");
        write(&peer, &[numbered(1, 3, 30), numbered(1, 4, 30)].concat());
        let first = soon(&mut asking);
        edge.assert_ready();
        let second = polled.recv().expect("readable");
        let mut numbers = [number_of(&first), number_of(&second)];
        numbers.sort_unstable();
        assert_eq!(numbers, [(1, 3), (1, 4)]);
        // The end of all can be received too.
        assert_would_block(&mut polled);
        edge.wait(Duration::ZERO);
        mux.shutdown();
        edge.assert_ready();
        assert!(matches!(polled.recv().map(drop), Err(Error::Closed)));
    });
}

#[test]
fn readable_when_it_is_shut_down() {
    bounded(20, || {
        for connections in [0, 1, 3] {
            let mux = mux();
            let _peers: Vec<_> = (0..connections).map(|_| attached(&mux)).collect();
            let mut sockets = [(); 3].map(|()| mux.socket().expect("a socket"));
            let loops = [0, 1, 2].map(|n| Loop::edge(&sockets[n]));
            sockets.iter_mut().for_each(assert_would_block);
            for looping in &loops {
                looping.wait(Duration::ZERO);
                looping.assert_idle();
            }
            mux.shutdown();
            for (socket, looping) in sockets.iter_mut().zip(&loops) {
                looping.assert_ready();
                assert!(matches!(socket.recv().map(drop), Err(Error::Closed)));
            }
        }
    });
}

#[test]
fn a_message_that_comes_byte_by_byte() {
    bounded(30, || {
        for sockets in [1, 2] {
            let mux = mux();
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            // With a second polled socket, whichever is told.
            let mut second = mux.socket().expect("a socket");
            let level = Loop::level(&socket);
            let other = (sockets == 2).then(|| Loop::level(&second));
            second.set_nonblocking(true).expect("non-blocking");
            assert_would_block(&mut socket);
            assert_would_block(&mut second);
            let bytes = numbered(1, 1, 60);
            let (last, first) = bytes.split_last().expect("some");
            let mut early = 0;
            for byte in first {
                write(&peer, &[*byte]);
                // Not a message: it may be readable once, and after that must not be.
                let (one, _) = level.wait(Duration::from_millis(5));
                let two = other
                    .as_ref()
                    .is_some_and(|l| l.wait(Duration::from_millis(5)).0);
                if one {
                    assert_would_block(&mut socket);
                }
                if two {
                    assert_would_block(&mut second);
                }
                early += u64::from(one) + u64::from(two);
                level.assert_idle();
                if let Some(other) = &other {
                    other.assert_idle();
                }
            }
            println!("{early} early wakes for 59 arrivals");
            write(&peer, &[*last]);
            let message = match &other {
                None => {
                    level.assert_ready();
                    socket.recv()
                }
                Some(other) => {
                    let mut got = Err(Error::WouldBlock);
                    wait_until("one of the two is told", || {
                        if level.wait(Duration::ZERO).0 {
                            got = socket.recv();
                        }
                        if got.is_err() && other.wait(Duration::ZERO).0 {
                            got = second.recv();
                        }
                        got.is_ok()
                    });
                    got
                }
            };
            assert_eq!(number_of(&message.expect("readable")), (1, 1));
        }
    });
}

#[test]
fn wakes_for_a_trickle_are_at_most_its_bytes() {
    bounded(30, || {
        for edge in [false, true] {
            let mux = mux();
            let (_, peer) = attached(&mux);
            let (watched, stop) = stopper();
            let (told, received) = mpsc::channel();
            let socket = mux.socket().expect("a socket");
            let looping = poller(socket, edge, watched, move |message| {
                told.send(number_of(message)).expect("somebody listens");
            });
            let mut bytes = 0;
            for number in 0..10 {
                for byte in numbered(1, number, 40) {
                    write(&peer, &[byte]);
                    bytes += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                let got = received.recv_timeout(SOON).expect("a message");
                assert_eq!(got, (1, number));
            }
            drop(stop);
            let wakes = looping.join().expect("looped");
            println!("edge {edge}: {wakes} wakes for {bytes} bytes");
            // One more may be for the attaching.
            assert!(wakes <= bytes + 1, "{wakes} wakes for {bytes} bytes");
        }
    });
}

fn small_buffer() -> Multiplexor {
    let mut limits = MuxLimits::default();
    limits.send_buffer_bytes = 100_000;
    let builder = Multiplexor::builder(framing()).mux_limits(limits);
    builder.build().expect("a mux")
}

#[test]
fn writable_when_a_send_would_not_block() {
    bounded(20, || {
        for edge in [false, true] {
            let mux = small_buffer();
            let (id, mut peer) = attached(&mux);
            let connection = mux.connection(id).expect("it is there");
            let socket = mux.socket().expect("a socket");
            socket.set_nonblocking(true).expect("non-blocking");
            let flags = if edge {
                EventFlags::OUT | EventFlags::ET
            } else {
                EventFlags::OUT
            };
            let looping = Loop::new(socket.writable_fd().expect("a descriptor"), flags);
            assert!(looping.wait(SOON).0, "nothing is queued");
            let mut sent = 0;
            while socket.send(&numbered(1, sent, 30_000)).is_ok() {
                sent += 1;
                assert!(sent < 2000, "60 MB are more than any buffer holds");
            }
            // The edge that may have been left from before.
            looping.wait(Duration::ZERO);
            assert!(!looping.wait(A_WHILE).0, "a send would block");
            // Another connection that can take it makes it writable.
            let (second, _other) = attached(&mux);
            assert!(looping.wait(SOON).0, "there is a free connection");
            socket.send(&numbered(2, 0, 100)).expect("on the free one");
            mux.unattach(second).expect("unattached");
            assert!(
                socket.send(&numbered(3, 0, 100)).is_err(),
                "only the full one is left"
            );
            looping.wait(Duration::ZERO);
            assert!(!looping.wait(A_WHILE).0, "a send would block");
            // The peer reads, and it is again.
            for number in 0..sent {
                let got = read_message(&mut peer).expect("a message");
                assert_eq!(number_of(&got), (1, number));
            }
            assert!(looping.wait(SOON).0, "there is room again");
            wait_until("all has gone", || connection.queued_bytes() == 0);
            socket.send(&numbered(1, sent, 100)).expect("room");
        }
    });
}
