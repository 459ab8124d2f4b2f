//! Framing over real sockets: whatever the lengths, the splits and the way of reading, the
//! messages are the sender's; and what a parser answers does what it does in the kernel.

mod common;

use std::{
    num::NonZeroU64,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use common::*;
use kcm::{
    Bits, EndReason, Endian, Exception, Fault, Framing, Limits, Multiplexor, Parser, QuickForm,
    Socket, SocketType, Verdict,
};

fn mux_of(framing: Framing) -> Multiplexor {
    Multiplexor::builder(framing).build().expect("a mux")
}

/// A parser that answers as a kernel's program does: positive length, 0, or negative errno.
fn kernel(program: impl Fn(&[u8]) -> i32 + Send + Sync + 'static) -> Framing {
    Framing::closure(move |bytes| Verdict::from_kernel(program(bytes), bytes.len()))
}

/// The same as [`framing`], of which the lengths from 40 to 60 have no quick form, nor what has fewer than
/// 20 bytes behind it.
fn quick() -> Framing {
    let word = Bits {
        turn: 32,
        mask: 0xffff_ffff,
    };
    let form = QuickForm::new(0, Endian::Big, word, 4).needing(20);
    let form = form.unless(Exception {
        bits: word,
        low: 40,
        span: 20,
    });
    let form = form.expect("one exception");
    Framing::closure_with_short_way(
        |bytes| NonZeroU64::new(load_and_add(bytes).try_into().ok()?),
        |bytes| Verdict::from_kernel(load_and_add(bytes), bytes.len()),
    )
    .with_quick_forms(move |_| Some(form))
}

/// The "load 32 bits at 0, add 4" program: 0 where the load is out of range.
fn load_and_add(bytes: &[u8]) -> i32 {
    bytes
        .first_chunk()
        .map_or(0, |&len| i32::from_be_bytes(len) + 4)
}

#[test]
fn messages_of_different_lengths_in_one_segment() {
    bounded(20, || {
        // The kernel parses the second from the first byte of the segment.
        for framing in [framing(), kernel(load_and_add), quick()] {
            let mux = mux_of(framing);
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            let lengths = [10 + 4, 30 + 4, 1 + 4, 4, 500 + 4, 4, 7 + 4];
            let messages = lengths.map(|len| message(&vec![9; len - 4]));
            write(&peer, &messages.concat());
            for message in messages {
                assert_eq!(soon(&mut socket)[..], message);
            }
            nothing(&mut socket);
        }
    });
}

#[test]
fn every_split_into_two_writes() {
    bounded(40, || {
        for framing in [framing(), kernel(load_and_add), quick()] {
            let mux = mux_of(framing);
            let (ours, peer) = tcp_pair();
            let look = ours.try_clone().expect("dup");
            mux.attach(ours).expect("attached");
            let mut socket = mux.socket().expect("a socket");
            let messages = [message(b"first"), message(b""), message(b"the third one")];
            let stream = messages.concat();
            for cut in 0..=stream.len() {
                write(&peer, &stream[..cut]);
                wait_arrived(&look, cut);
                // Read what there is, so that the rest is a read of its own.
                let mut got: Vec<_> = drain(&mut socket).iter().map(|m| m.to_vec()).collect();
                write(&peer, &stream[cut..]);
                while got.len() < messages.len() {
                    got.push(soon(&mut socket).to_vec());
                }
                assert_eq!(got, messages, "cut at {cut}");
            }
            nothing(&mut socket);
        }
    });
}

/// The ways to read one or more messages; gives their bytes.
fn read_somehow(socket: &mut Socket, random: &mut Random) -> Vec<Vec<u8>> {
    match random.below(4) {
        0 => vec![socket.recv().expect("a message").to_vec()],
        1 => {
            let mut buffer = vec![0; 300_000];
            let got = socket.recv_into(&mut buffer).expect("a message");
            assert!(!got.truncated && got.end_of_message);
            assert_eq!(got.len_bytes, got.message_bytes);
            buffer.truncate(got.len_bytes);
            vec![buffer]
        }
        2 => {
            let peeked = socket.peek().expect("a message").to_vec();
            let got = socket.recv().expect("the same").to_vec();
            assert_eq!(peeked, got);
            vec![got]
        }
        _ => {
            let max = random.between(1, 40);
            let batch = socket.recv_batch(max).expect("a message");
            let batch: Vec<_> = batch.map(|message| message.to_vec()).collect();
            assert!((1..=max).contains(&batch.len()));
            batch
        }
    }
}

/// Mostly short, sometimes longer than any burst.
fn random_length(random: &mut Random) -> usize {
    match random.below(40) {
        0 => random.between(60_000, 200_000),
        1..=4 => random.between(1000, 9000),
        _ => random.between(NUMBERED_MIN, 200),
    }
}

#[test]
fn random_lengths_splits_and_reads() {
    bounded(60, || {
        const COUNT: u64 = 400;
        for (seed, kind) in (1..).zip([SocketType::Dgram, SocketType::SeqPacket].repeat(6)) {
            let mut random = Random::new(seed);
            let framing = if seed % 4 < 2 { framing() } else { quick() };
            let builder = Multiplexor::builder(framing).socket_type(kind);
            let mux = builder.build().expect("a mux");
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            socket.set_read_timeout(Some(SOON)).expect("a limit");
            let stream: Vec<u8> = (0..COUNT)
                .flat_map(|n| numbered(7, n, random_length(&mut random)))
                .collect();
            let mut cuts = Random::new(seed + 1000);
            let writer = thread::spawn(move || {
                let mut rest = &stream[..];
                while !rest.is_empty() {
                    let most = [1, 5, 30, 3000, 100_000][cuts.below(5)];
                    let cut = cuts.between(1, most + 1).min(rest.len());
                    write(&peer, &rest[..cut]);
                    rest = &rest[cut..];
                }
                peer
            });
            let mut next = 0;
            while next < COUNT {
                for message in read_somehow(&mut socket, &mut random) {
                    assert_eq!(number_of(&message), (7, next));
                    next += 1;
                }
            }
            let _peer = writer.join().expect("written");
            nothing(&mut socket);
        }
    });
}

/// Six bytes of greeting, then messages that begin with their length; the first byte of each
/// message is where the length of the next one's header is changed to.
struct Preface(bool);

impl Parser for Preface {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        match (self.0, bytes) {
            (false, bytes) if bytes.len() < 6 => Verdict::NeedMore(6),
            (false, _) => Verdict::message(6),
            (true, []) => Verdict::NeedMore(1),
            (true, [len, ..]) => Verdict::message((*len).into()),
        }
    }

    fn delivered(&mut self, message: &[u8]) {
        assert_eq!(self.0, message != b"hello!");
        self.0 = true;
    }
}

#[test]
fn a_parser_with_state_for_each_connection() {
    bounded(20, || {
        let stream = b"hello!\x03ab\x01\x0aninechars\x02x";
        let expected: [&[u8]; 5] = [b"hello!", b"\x03ab", b"\x01", b"\x0aninechars", b"\x02x"];
        let mux = mux_of(Framing::stateful(|| Preface(false)));
        let mut socket = mux.socket().expect("a socket");
        for cut in 0..=stream.len() {
            // Each connection begins with the preface anew.
            let (ours, peer) = tcp_pair();
            let look = ours.try_clone().expect("dup");
            let id = mux.attach(ours).expect("attached");
            write(&peer, &stream[..cut]);
            wait_arrived(&look, cut);
            let mut got: Vec<_> = drain(&mut socket).iter().map(|m| m.to_vec()).collect();
            write(&peer, &stream[cut..]);
            while got.len() < expected.len() {
                let message = soon(&mut socket);
                assert_eq!(message.connection(), id);
                got.push(message.to_vec());
            }
            assert_eq!(got, expected, "cut at {cut}");
            mux.unattach(id).expect("unattached");
        }
    });
}

#[test]
fn a_parser_moves_on_only_with_what_is_received() {
    bounded(20, || {
        // The preface alone is received; what is read ahead comes back with `unattach`, and a
        // new parser begins anew with it.
        let mux = mux_of(Framing::stateful(|| Preface(false)));
        let (ours, peer) = tcp_pair();
        let look = ours.try_clone().expect("dup");
        let id = mux.attach(ours).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        write(&peer, b"hello!\x03ab\x09half");
        wait_arrived(&look, 14);
        assert_eq!(soon(&mut socket)[..], *b"hello!");
        let (stream, rest) = mux.unattach(id).expect("unattached");
        let mut got: Vec<_> = drain(&mut socket).iter().flat_map(|m| m.to_vec()).collect();
        got.extend(rest);
        assert_eq!(got, b"\x03ab\x09half");
        mux.attach_with(
            stream,
            Framing::closure(|b| {
                b.first()
                    .map_or(Verdict::NeedMore(1), |&len| Verdict::message(len.into()))
            }),
            b"\x09half",
        )
        .expect("attached");
        write(&peer, b"done");
        assert_eq!(soon(&mut socket)[..], *b"\x09halfdone");
    });
}

#[test]
fn lines_by_a_closure() {
    bounded(20, || {
        let lines = Framing::closure(|bytes| match bytes.iter().position(|&b| b == b'\n') {
            Some(at) => Verdict::message(at as u64 + 1),
            None => Verdict::NeedMore(0),
        });
        let mux = mux_of(lines);
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        for byte in b"GET /\n\nHost" {
            write(&peer, &[*byte]);
        }
        write(&peer, b": x\nlast\n");
        for line in ["GET /\n", "\n", "Host: x\n", "last\n"] {
            assert_eq!(soon(&mut socket)[..], *line.as_bytes());
        }
    });
}

#[test]
fn a_long_record_of_tiny_fragments_is_one_message() {
    bounded(30, || {
        // Longer than a chunk, so that its memory must grow without its length being known; were
        // it moved for each fragment, this would take minutes.
        let mut record = vec![0; 4 << 20];
        record.extend([0x80, 0, 0, 3, 1, 2, 3]);
        let small = [0, 0, 0, 1, 7, 0x80, 0, 0, 1, 8];
        let mux = mux_of("rpc".parse().expect("a known name"));
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        thread::scope(|scope| {
            let stream = [&small[..], &record, &small].concat().repeat(2);
            scope.spawn(move || write(&peer, &stream));
            for _ in 0..2 {
                for message in [&small[..], &record, &small] {
                    assert!(soon(&mut socket)[..] == *message);
                }
            }
        });
        nothing(&mut socket);
    });
}

#[test]
fn the_parser_sees_each_message_from_its_first_byte() {
    bounded(20, || {
        // Each message begins with a byte that occurs nowhere else.
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let mux = mux_of(Framing::closure(move |bytes| {
            count.fetch_add(1, Ordering::Relaxed);
            match bytes {
                [0xa5, len, ..] => Verdict::message((*len).into()),
                [0xa5] => Verdict::NeedMore(2),
                [] => Verdict::NeedMore(1),
                _ => Verdict::Error(libc::EBADMSG),
            }
        }));
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        let mut random = Random::new(5);
        let lengths: Vec<u8> = (0..500)
            .map(|_| u8::try_from(random.between(2, 256)).expect("a byte"))
            .collect();
        let mut stream = Vec::new();
        for &len in &lengths {
            stream.extend([0xa5, len]);
            stream.resize(stream.len() + usize::from(len) - 2, 0x11);
        }
        let writer = thread::spawn(move || {
            for piece in stream.chunks(97) {
                write(&peer, piece);
            }
            peer
        });
        for len in lengths {
            assert_eq!(soon(&mut socket).len(), usize::from(len));
        }
        let _peer = writer.join().expect("written");
        assert!(calls.load(Ordering::Relaxed) >= 500);
        assert_eq!(mux.try_next_event(), None);
    });
}

#[test]
fn each_connection_has_its_own_framing_and_may_change_it() {
    bounded(20, || {
        let mux = mux();
        let mut socket = mux.socket().expect("a socket");
        let (ours, first) = tcp_pair();
        let id = mux
            .attach_with(ours, "u8".parse::<Framing>().expect("a framing"), &[])
            .expect("attached");
        let (_, second) = attached(&mux);
        write(&first, b"\x05four");
        assert_eq!(soon(&mut socket)[..], *b"\x05four");
        write(&second, &message(b"four"));
        assert_eq!(soon(&mut socket)[..], message(b"four"));
        // From the next message on, which is partly here already.
        write(&first, b"\x03");
        nothing(&mut socket);
        let connection = mux.connection(id).expect("it is there");
        connection.set_framing("u16le".parse::<Framing>().expect("a framing"));
        write(&first, b"\0x");
        assert_eq!(soon(&mut socket)[..], *b"\x03\0x");
        // And with whole messages waiting that nobody has received.
        write(&first, b"\x03\0a\x04xyz\x02b");
        assert_eq!(soon(&mut socket)[..], *b"\x03\0a");
        connection.set_framing("u8".parse::<Framing>().expect("a framing"));
        assert_eq!(soon(&mut socket)[..], *b"\x04xyz");
        assert_eq!(soon(&mut socket)[..], *b"\x02b");
    });
}

/// What the answer to the third of three messages does, after two good ones.
fn end_by(framing: Framing, limits: Limits, bytes: &[u8]) -> (usize, EndReason) {
    let mux = Multiplexor::builder(framing).limits(limits).build();
    let mux = mux.expect("a mux");
    let (id, mut peer) = attached(&mux);
    let receiver = receive_all(&mux);
    write(&peer, bytes);
    let event = event_soon(&mux);
    assert_eq!(event.connection, id);
    assert_ended(&mut peer);
    mux.shutdown();
    (receiver.join().expect("received").len(), event.reason)
}

#[test]
fn what_a_parser_may_answer() {
    bounded(30, || {
        let two = [message(b"one"), message(b"number two")].concat();
        let with = |tail: &[u8]| [&two, tail].concat();
        let limits = Limits::default().with_max_message_bytes(1000);
        let reason = |program: fn(&[u8]) -> i32, tail: &[u8]| {
            let (delivered, reason) = end_by(kernel(program), limits, &with(tail));
            assert_eq!(delivered, 2, "what came whole before it is delivered");
            reason
        };
        // Below zero: the errno.
        for errno in [libc::EPERM, libc::ESTRPIPE, libc::EBADMSG] {
            let got = match errno {
                libc::EPERM => reason(|b| negative(b, libc::EPERM), b"!!!!"),
                libc::ESTRPIPE => reason(|b| negative(b, libc::ESTRPIPE), b"!!!!"),
                _ => reason(|b| negative(b, libc::EBADMSG), b"!!!!"),
            };
            assert_eq!(got, EndReason::Fault(Fault::Parser { errno }));
            assert_eq!(got.errno(), errno);
        }
        // Above the limit.
        let got = reason(load_and_add, &997_u32.to_be_bytes());
        let (len, limit) = (1001, 1000);
        assert_eq!(got, EndReason::Fault(Fault::TooBig { len, limit }));
        assert_eq!(got.errno(), libc::EMSGSIZE);
        // Shorter than what was called too little before.
        let late = |bytes: &[u8]| match bytes {
            [0x7f, ..] if bytes.len() < 20 => 0,
            [0x7f, ..] => 3,
            _ => load_and_add(bytes),
        };
        let mux = mux_of(kernel(late));
        let (_, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &with(&[0x7f; 10]));
        assert_eq!(soon(&mut socket)[..], message(b"one"));
        assert_eq!(soon(&mut socket)[..], message(b"number two"));
        nothing(&mut socket);
        write(&peer, &[0x7f; 10]);
        nothing(&mut socket);
        let event = event_soon(&mux);
        assert!(matches!(
            event.reason,
            EndReason::Fault(Fault::BadLength { len: 3, .. })
        ));
        assert_eq!(event.reason.errno(), libc::EPROTO);
    });
}

/// A program that answers "!" with this errno.
fn negative(bytes: &[u8], errno: i32) -> i32 {
    match bytes {
        [b'!', ..] => -errno,
        _ => load_and_add(bytes),
    }
}

#[test]
fn lengths_that_cannot_be() {
    bounded(20, || {
        let two = [message(b"one"), message(b"number two")].concat();
        let limits = Limits::default();
        // A closure that says "zero bytes" would never get on.
        let zero = Framing::closure(|bytes| match bytes.first_chunk() {
            None => Verdict::NeedMore(4),
            Some(b"zero") => Verdict::message(0),
            Some(&len) => Verdict::message(u64::from(u32::from_be_bytes(len)) + 4),
        });
        let (delivered, reason) = end_by(zero, limits, &[&two[..], b"zero"].concat());
        assert_eq!(delivered, 2);
        assert!(
            matches!(reason, EndReason::Fault(Fault::BadLength { len: 0, .. })),
            "{reason}"
        );
        assert_eq!(reason.errno(), libc::EPROTO);
        // A length that counts itself and is below its own four bytes.
        for len in [0, 3] {
            let little: Framing = "u32le".parse().expect("a framing");
            let (delivered, reason) = end_by(little, limits, &[5, 0, 0, 0, b'x', len, 0, 0, 0]);
            assert_eq!(delivered, 1);
            let bad = Fault::BadLength {
                len: len.into(),
                least: 4,
            };
            assert_eq!(reason, EndReason::Fault(bad));
        }
    });
}
