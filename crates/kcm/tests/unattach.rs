//! Unattaching: every byte of the stream is either received or given back, and none twice, wherever
//! the cut falls and whoever receives meanwhile.

mod common;

use std::{
    io::{self, Read, Write},
    sync::{Arc, Barrier},
    thread,
};

use common::*;
use kcm::{ConnectionId, Error, Stream};

/// Reads what the peer wrote after unattaching.
fn read_rest(stream: Stream) -> Vec<u8> {
    let mut stream = stream.into_tcp().expect("TCP");
    stream.set_nonblocking(false).expect("blocking");
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("the rest");
    bytes
}

#[test]
fn unattach_knows_its_own_connections_only() {
    bounded(20, || {
        let (mux, other) = (mux(), mux());
        let (id, _peer) = attached(&mux);
        let (_, _kept) = attached(&other);
        mux.unattach(id).expect("unattached");
        let again = mux.unattach(id).map(drop).map_err(|error| error.errno());
        assert_eq!(again, Err(libc::ENOENT));
        assert!(mux.connection(id).is_err());
        // Ids are counted for each multiplexor: the other may have one of that name.
        let strange = ConnectionId::from_u64(u64::MAX);
        let foreign = other
            .unattach(strange)
            .map(drop)
            .map_err(|error| error.errno());
        assert_eq!(foreign, Err(libc::ENOENT));
        assert_eq!(other.connections().len(), 1);
    });
}

#[test]
fn unattach_gives_back_every_byte_nobody_received() {
    bounded(60, || {
        let lengths = [16, 41, 17, 30];
        let whole: Vec<u8> = (0..)
            .zip(lengths)
            .flat_map(|(n, len)| numbered(1, n, len))
            .collect();
        for cut in 0..=whole.len() {
            for received_first in 0..=lengths.len() {
                let mux = mux();
                let mut socket = mux.socket().expect("a socket");
                let (ours, peer) = tcp_pair();
                let look = ours.try_clone().expect("dup");
                let id = mux.attach(ours).expect("attached");
                write(&peer, &whole[..cut]);
                wait_arrived(&look, cut);
                let mut got = Vec::new();
                socket.set_nonblocking(true).expect("non-blocking");
                for _ in 0..received_first {
                    match socket.recv() {
                        Ok(message) => got.extend_from_slice(&message),
                        Err(Error::WouldBlock) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                let (stream, rest) = mux.unattach(id).expect("unattached");
                for message in drain(&mut socket) {
                    number_of(&message);
                    got.extend_from_slice(&message);
                }
                got.extend(rest);
                write(&peer, &whole[cut..]);
                drop(peer);
                got.extend(read_rest(stream));
                assert!(got == whole, "cut at {cut} after {received_first} messages");
            }
        }
    });
}

#[test]
fn unattach_while_another_socket_has_a_burst_in_hand() {
    bounded(20, || {
        const COUNT: u64 = 100;
        for taken in [1, 2, 50] {
            let mux = mux();
            let mut first = mux.socket().expect("a socket");
            let mut second = mux.socket().expect("a socket");
            let (ours, peer) = tcp_pair();
            let look = ours.try_clone().expect("dup");
            let id = mux.attach(ours).expect("attached");
            let mut bytes: Vec<u8> = (0..COUNT).flat_map(|n| numbered(1, n, 64)).collect();
            let tail = numbered(1, COUNT, 1000);
            bytes.extend(&tail[..10]);
            write(&peer, &bytes);
            wait_arrived(&look, bytes.len());
            let mut numbers: Vec<u64> =
                (0..taken).map(|_| number_of(&soon(&mut first)).1).collect();
            let (stream, rest) = mux.unattach(id).expect("unattached");
            write(&peer, &tail[10..]);
            drop(peer);
            for socket in [&mut second, &mut first] {
                numbers.extend(drain(socket).iter().map(|message| number_of(message).1));
            }
            let mut rest = io::Cursor::new([rest, read_rest(stream)].concat());
            while let Ok(message) = read_message(&mut rest) {
                numbers.push(number_of(&message).1);
            }
            assert_eq!(
                rest.position(),
                rest.get_ref().len() as u64,
                "whole messages"
            );
            numbers.sort_unstable();
            assert!(
                numbers.iter().copied().eq(0..=COUNT),
                "{taken}: {numbers:?}"
            );
        }
    });
}

#[test]
fn unattach_while_a_thread_waits() {
    bounded(20, || {
        let mux = mux();
        let (first, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        let waiting = spawn_asleep(move || number_of(&soon(&mut socket)));
        let (stream, rest) = mux.unattach(first).expect("unattached");
        assert!(rest.is_empty());
        // The waiting thread has let go of it, and takes from another one.
        write(&peer, b"not a message");
        drop(peer);
        assert_eq!(read_rest(stream), b"not a message");
        let (_, peer) = attached(&mux);
        write(&peer, &numbered(2, 1, 20));
        assert_eq!(waiting.join().expect("received"), (2, 1));
    });
}

#[test]
fn unattach_races_with_receivers() {
    bounded(30, || {
        let mut random = Random::new(41);
        for round in 0..60 {
            let mux = mux();
            let (ours, mut peer) = tcp_pair();
            let id = mux.attach(ours).expect("attached");
            let whole: Vec<u8> = (0..50).flat_map(|n| numbered(1, n, 30)).collect();
            let start = Arc::new(Barrier::new(3));
            let receivers: Vec<_> = (0..2)
                .map(|_| {
                    let (mut socket, start) = (mux.socket().expect("a socket"), start.clone());
                    socket.set_read_timeout(Some(A_WHILE)).expect("a limit");
                    thread::spawn(move || {
                        start.wait();
                        let mut numbers = Vec::new();
                        while let Ok(message) = socket.recv() {
                            numbers.push(number_of(&message).1);
                        }
                        numbers
                    })
                })
                .collect();
            let cut = random.below(whole.len());
            peer.write_all(&whole[..cut]).expect("written");
            start.wait();
            for _ in 0..random.below(2000) {
                std::hint::spin_loop();
            }
            let (stream, rest) = mux.unattach(id).expect("unattached");
            peer.write_all(&whole[cut..]).expect("written");
            drop(peer);
            let mut rest = io::Cursor::new([rest, read_rest(stream)].concat());
            let mut all = Vec::new();
            while let Ok(message) = read_message(&mut rest) {
                all.push((number_of(&message).1, 'r'));
            }
            for (receiver, name) in receivers.into_iter().zip('a'..) {
                let numbers = receiver.join().expect("received");
                all.extend(numbers.into_iter().map(|number| (number, name)));
            }
            all.sort_unstable();
            // Who got which: two receivers, and what came back as bytes.
            let numbers = all.iter().map(|&(number, _)| number);
            assert!(numbers.eq(0..50), "round {round}, cut at {cut}: {all:?}");
        }
    });
}

#[test]
fn a_stream_comes_back_as_it_was_given() {
    bounded(20, || {
        for nonblocking in [false, true] {
            let mux = mux();
            let (ours, _peer) = tcp_pair();
            ours.set_nonblocking(nonblocking).expect("mode");
            let id = mux.attach(ours).expect("attached");
            let mut socket = mux.socket().expect("a socket");
            nothing(&mut socket);
            let (stream, _) = mux.unattach(id).expect("unattached");
            let flags = rustix::fs::fcntl_getfl(&stream).expect("flags");
            assert_eq!(flags.contains(rustix::fs::OFlags::NONBLOCK), nonblocking);
        }
    });
}

/// The kernel's says `EALREADY` to the others; here they wait, and it is gone then.
#[test]
fn of_several_threads_that_unattach_one_gets_the_stream() {
    bounded(40, || {
        for round in 0..40_usize {
            let mux = mux();
            let (id, peer) = attached(&mux);
            if round.is_multiple_of(2) {
                // All of them have to wait for it.
                let socket = mux.socket().expect("a socket");
                socket.set_nonblocking(true).expect("non-blocking");
                socket.send_to(id, &numbered(1, 1, 1 << 20)).expect("taken");
            }
            let reader = read_all(peer);
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let mux = mux.clone();
                    thread::spawn(move || mux.unattach(id).map_err(|error| error.errno()))
                })
                .collect();
            let mut streams = 0;
            for thread in threads {
                match thread.join().expect("it came back") {
                    Ok((stream, rest)) => {
                        streams += 1;
                        assert!(stream.into_tcp().is_ok() && rest.is_empty());
                    }
                    Err(errno) => assert_eq!(errno, libc::ENOENT),
                }
            }
            assert_eq!(streams, 1, "round {round}");
            reader.join().expect("read");
        }
    });
}
