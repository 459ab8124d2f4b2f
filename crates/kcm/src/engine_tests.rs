//! The engine's first walks: each path of a message once.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use crate::{Error, Framing, Multiplexor};

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (theirs, _) = listener.accept().unwrap();
    ours.set_nodelay(true).unwrap();
    theirs.set_nodelay(true).unwrap();
    (ours, theirs)
}

fn mux() -> Multiplexor {
    let framing: Framing = "u32be+4".parse().unwrap();
    Multiplexor::builder(framing).build().unwrap()
}

fn message(body: &[u8]) -> Vec<u8> {
    let mut message = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    message.extend(body);
    message
}

#[test]
fn one_connection_blocking() {
    let (ours, mut theirs) = pair();
    let mux = mux();
    mux.attach(ours).unwrap();
    let mut socket = mux.socket().unwrap();
    let client = thread::spawn(move || {
        for i in 0..1000u32 {
            theirs.write_all(&message(&i.to_be_bytes())).unwrap();
            let mut reply = [0; 8];
            theirs.read_exact(&mut reply).unwrap();
            assert_eq!(reply[4..], i.to_be_bytes());
        }
    });
    for _ in 0..1000 {
        let request = socket.recv().unwrap();
        request.reply(&request).unwrap();
    }
    client.join().unwrap();
}

#[test]
fn a_burst_in_order_alone() {
    let (ours, mut theirs) = pair();
    let mux = mux();
    mux.attach(ours).unwrap();
    let mut socket = mux.socket().unwrap();
    let sender = thread::spawn(move || {
        let mut bytes = Vec::new();
        for i in 0..200_000u32 {
            let mut body = vec![7; (i % 90) as usize];
            body.extend(i.to_be_bytes());
            bytes.extend(message(&body));
        }
        theirs.write_all(&bytes).unwrap();
    });
    for i in 0..200_000u32 {
        let message = socket.recv().unwrap();
        assert_eq!(message[message.len() - 4..], i.to_be_bytes());
    }
    sender.join().unwrap();
}

#[test]
fn several_sockets_and_connections() {
    let mux = mux();
    let mut peers = Vec::new();
    for _ in 0..10 {
        let (ours, theirs) = pair();
        mux.attach(ours).unwrap();
        peers.push(theirs);
    }
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let mut socket = mux.socket().unwrap();
            thread::spawn(move || {
                let mut count = 0;
                loop {
                    match socket.recv() {
                        Ok(request) => request.reply(&request).unwrap(),
                        Err(Error::Closed) => return count,
                        Err(e) => panic!("{e}"),
                    }
                    count += 1;
                }
            })
        })
        .collect();
    let clients: Vec<_> = peers
        .into_iter()
        .map(|mut peer| {
            thread::spawn(move || {
                for burst in 1..60usize {
                    let mut bytes = Vec::new();
                    (0..burst).for_each(|_| bytes.extend(message(&vec![1; burst])));
                    peer.write_all(&bytes).unwrap();
                    let mut back = vec![0; bytes.len()];
                    peer.read_exact(&mut back).unwrap();
                    assert_eq!(back, bytes);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    mux.shutdown();
    let total: usize = workers.into_iter().map(|w| w.join().unwrap()).sum();
    assert_eq!(total, 10 * (1..60).sum::<usize>());
}

#[test]
fn a_second_connection_reaches_a_blocked_receiver() {
    let mux = mux();
    let (ours, _quiet) = pair();
    mux.attach(ours).unwrap();
    let mut socket = mux.socket().unwrap();
    let receiver = thread::spawn(move || socket.recv().unwrap().to_vec());
    thread::sleep(Duration::from_millis(50));
    let (ours, mut theirs) = pair();
    mux.attach(ours).unwrap();
    theirs.write_all(&message(b"hello")).unwrap();
    assert_eq!(receiver.join().unwrap(), message(b"hello"));
}

#[test]
fn a_lease_is_shared_with_whoever_comes_later() {
    let mux = mux();
    let (ours, mut theirs) = pair();
    mux.attach(ours).unwrap();
    let mut first = mux.socket().unwrap();
    let mut bytes = Vec::new();
    (0..100u32).for_each(|i| bytes.extend(message(&i.to_be_bytes())));
    theirs.write_all(&bytes).unwrap();
    assert_eq!(first.recv().unwrap()[4..], 0u32.to_be_bytes());
    assert_eq!(first.recv().unwrap()[4..], 1u32.to_be_bytes());
    let mut second = first.try_clone().unwrap();
    second
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    for i in 2..50u32 {
        assert_eq!(second.recv().unwrap()[4..], i.to_be_bytes());
    }
    for i in 50..100u32 {
        assert_eq!(first.recv().unwrap()[4..], i.to_be_bytes());
    }
}

#[test]
fn large_messages_and_an_end_in_the_middle() {
    let mux = mux();
    let (ours, mut theirs) = pair();
    let id = mux.attach(ours).unwrap();
    let mut socket = mux.socket().unwrap();
    let sender = thread::spawn(move || {
        for len in [100_000, 1 << 20, 5, (16 << 20) - 4] {
            theirs.write_all(&message(&vec![9; len])).unwrap();
        }
        theirs.write_all(&[0, 0, 0, 9, 1, 2]).unwrap();
    });
    for len in [100_000, 1 << 20, 5, (16 << 20) - 4] {
        let message = socket.recv().unwrap();
        assert_eq!(message.len(), len + 4);
        assert!(message[4..].iter().all(|b| *b == 9));
    }
    sender.join().unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    assert!(matches!(socket.recv(), Err(Error::WouldBlock)));
    let event = mux.next_event().unwrap();
    assert_eq!(event.connection, id);
    assert_eq!(event.reason, crate::EndReason::EofInMessage { bytes: 6 });
}

/// Behind long messages, short ones are read into memory that long ones would fit in: whoever keeps them
/// does not keep all of that.
#[test]
fn a_short_message_behind_long_ones_pins_little() {
    const LEAST_BYTES: usize = 1024;
    let (ours, mut theirs) = pair();
    let (other, _other) = pair();
    let mux = mux();
    mux.attach(ours).unwrap();
    mux.attach(other).unwrap();
    let mut socket = mux.socket().unwrap();
    let mut kept = Vec::new();
    for len in [20_000, 20_000, 20_000, 8, 8, 100, 3_000, 8, 20_000, 300] {
        theirs.write_all(&message(&vec![7; len])).unwrap();
        let message = socket.recv().unwrap();
        let most = LEAST_BYTES.max(8 * message.len());
        let pinned = message.pinned_bytes();
        assert!(pinned <= most, "{pinned} bytes for one of {len}");
        kept.push(message);
    }
}

/// Memory that a burst was read into is there for the next one, and is nobody's meanwhile.
#[test]
fn memory_used_again_keeps_no_connection() {
    let (ours, mut theirs) = pair();
    let (other, _other) = pair();
    let mux = mux();
    let id = mux.attach(ours).unwrap();
    mux.attach(other).unwrap();
    let mut socket = mux.socket().unwrap();
    for _ in 0..4 {
        theirs.write_all(&message(&[1; 60]).repeat(100)).unwrap();
        for _ in 0..100 {
            assert_eq!(socket.recv().unwrap().len(), 64);
        }
    }
    let used = |mux: &Multiplexor| mux.stats().memory_bytes;
    let (_stream, rest) = mux.unattach(id).unwrap();
    assert!(rest.is_empty());
    socket.set_nonblocking(true).unwrap();
    assert!(matches!(socket.recv(), Err(Error::WouldBlock)));
    assert_eq!(used(&mux), 0);
}
