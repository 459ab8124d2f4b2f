//! Quick forms that are found from a message, while messages of several kinds come: whichever form the
//! connection has, all come out right, and it is asked for seldom.

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use common::*;
use kcm::{Bits, Endian, Exception, Framing, Multiplexor, QuickForm, Socket, Verdict};
use kcm_bpf::{Program, classic};

/// A protocol, and its messages: of this kind, with so many bytes behind the header.
struct Traffic {
    framing: fn() -> Framing,
    kinds: u8,
    message: fn(kind: u8, body: u16) -> Vec<u8>,
}

const TRAFFIC: [Traffic; 3] = [
    Traffic {
        framing: || "ldap".parse().expect("a protocol"),
        kinds: 9,
        message: ldap,
    },
    Traffic {
        framing: || "websocket".parse().expect("a protocol"),
        kinds: 6,
        message: websocket,
    },
    Traffic {
        framing: indirect,
        kinds: 16,
        message: indirect_message,
    },
];

/// The length in the second byte, or in so many more.
fn ldap(kind: u8, body: u16) -> Vec<u8> {
    let body = if kind == 0 { body.min(127) } else { body };
    let len = u64::from(body).to_be_bytes();
    let width = kind.max(2);
    let header = match kind {
        0 => vec![0x30, len[7]],
        _ => [&[0x30, 0x80 + width], &len[8 - usize::from(width)..]].concat(),
    };
    [header, vec![9; body.into()]].concat()
}

/// Three widths, with a mask and without.
fn websocket(kind: u8, body: u16) -> Vec<u8> {
    let len = u64::from(body).to_be_bytes();
    let mask = 0x80 * (kind & 1);
    let header = match kind / 2 {
        0 if body < 126 => vec![0x82, mask | len[7]],
        2 => [&[0x82, mask | 127], &len[..]].concat(),
        _ => vec![0x82, mask | 126, len[6], len[7]],
    };
    [
        header,
        vec![0; usize::from(mask / 32)],
        vec![7; body.into()],
    ]
    .concat()
}

/// 22 bytes and as many as the two bytes say whose place is in byte 5.
fn indirect() -> Framing {
    let text = "5,48 0 0 5,7 0 0 0,72 0 0 0,4 0 0 22,22 0 0 0";
    let program = classic::to_ebpf(&classic::parse_text(text).expect("a program")).expect("good");
    Program::verify(program).expect("safe").framing()
}

fn indirect_message(kind: u8, body: u16) -> Vec<u8> {
    let mut message = vec![3; 22 + usize::from(body)];
    // (Not over itself.)
    let place = if kind == 4 || kind == 5 { 0 } else { kind };
    message[5] = place;
    let place = usize::from(place);
    message[place..place + 2].copy_from_slice(&body.to_be_bytes());
    message
}

/// Some messages one by one, or in a batch.
fn read(socket: &mut Socket, random: &mut Random) -> Vec<Vec<u8>> {
    if random.below(2) == 0 {
        return vec![socket.recv().expect("a message").to_vec()];
    }
    let batch = socket.recv_batch(random.between(1, 300));
    let batch = batch.expect("a message");
    batch.map(|message| message.to_vec()).collect()
}

/// Sends all of it in pieces, and receives just these messages.
fn all_come(mux: &Multiplexor, messages: &[Vec<u8>], random: &mut Random) {
    let (_, peer) = attached(mux);
    let mut socket = mux.socket().expect("a socket");
    socket.set_read_timeout(Some(SOON)).expect("a limit");
    let stream = messages.concat();
    let mut cuts = Random::new(messages.len() as u64);
    let writer = thread::spawn(move || {
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let most = [20, 3000, 100_000][cuts.below(3)];
            let cut = cuts.between(1, most + 1).min(rest.len());
            write(&peer, &rest[..cut]);
            rest = &rest[cut..];
        }
        peer
    });
    let mut expected = messages.iter();
    while expected.len() > 0 {
        for message in read(&mut socket, random) {
            assert_eq!(Some(&message), expected.next());
        }
    }
    let _peer = writer.join().expect("written");
    nothing(&mut socket);
}

#[test]
fn kinds_that_change_in_mid_stream() {
    bounded(60, || {
        for (seed, traffic) in (1..).zip(TRAFFIC.iter().cycle().take(12)) {
            let mut random = Random::new(seed);
            let mut messages = Vec::new();
            let below = |random: &mut Random, end: u16| {
                u16::try_from(random.below(end.into())).expect("below a u16")
            };
            let kind_of =
                |random: &mut Random| below(random, traffic.kinds.into()).to_le_bytes()[0];
            // Mostly of one kind, for a while; then of another one.
            for _ in 0..8 {
                let usual = kind_of(&mut random);
                for _ in 0..random.between(1, 700) {
                    let (kind, body) = match random.below(12) {
                        0 => (kind_of(&mut random), below(&mut random, 3000)),
                        _ => (usual, below(&mut random, 100)),
                    };
                    messages.push((traffic.message)(kind, body));
                }
            }
            let mux = Multiplexor::builder((traffic.framing)());
            all_come(&mux.build().expect("a mux"), &messages, &mut random);
        }
    });
}

/// The length in the second byte; the first one is the kind, of each of which there is a form.
fn of_kinds(asked: Arc<AtomicU64>) -> Framing {
    let byte = |turn| Bits { turn, mask: 0xff };
    Framing::closure(|bytes| match *bytes {
        [_, len, ..] => Verdict::message(len.into()),
        _ => Verdict::NeedMore(2),
    })
    .with_quick_forms(move |message| {
        asked.fetch_add(1, Ordering::Relaxed);
        let kind = u64::from(*message.first()?);
        QuickForm::new(0, Endian::Big, byte(16), 0).unless(Exception::all_but(byte(8), kind, 0))
    })
}

#[test]
fn forms_are_asked_for_seldom() {
    bounded(60, || {
        const COUNT: usize = 20_000;
        let asked = Arc::new(AtomicU64::new(0));
        // (A function's messages are walked through on an only connection.)
        let mux = || {
            let mux = Multiplexor::builder(of_kinds(asked.clone()));
            mux.build().expect("a mux")
        };
        let mut random = Random::new(5);
        let messages = |kinds: &[u8]| -> Vec<_> {
            let kinds = kinds.iter().cycle().zip((20..70).cycle());
            let message =
                |(kind, len): (&u8, u8)| [&[*kind, len], &vec![0; len.into()][2..]].concat();
            kinds.map(message).take(COUNT).collect()
        };
        // Each of another kind: it is asked for after 256 of them, then 512, ...
        let kinds: Vec<u8> = (0..251).collect();
        all_come(&mux(), &messages(&kinds), &mut random);
        let times = asked.swap(0, Ordering::Relaxed);
        assert!((1..=9).contains(&times), "asked {times} times");
        // All of one kind.
        all_come(&mux(), &messages(&[8]), &mut random);
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    });
}

/// What the framing before had found is forgotten.
#[test]
fn another_framing_has_other_forms() {
    bounded(20, || {
        let form_of = |bias: u8| {
            let byte = Bits {
                turn: 8,
                mask: 0xff,
            };
            let form = QuickForm::new(0, Endian::Big, byte, bias.into());
            Framing::closure(move |bytes| match bytes.first() {
                Some(&len) => Verdict::message(u64::from(len) + u64::from(bias)),
                None => Verdict::NeedMore(1),
            })
            .with_quick_forms(move |_| Some(form))
        };
        let mux = Multiplexor::builder(form_of(10)).build().expect("a mux");
        let (id, peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        for bias in [10, 11, 30] {
            let connection = mux.connection(id).expect("attached");
            connection.set_framing(form_of(bias));
            let len = 5 + usize::from(bias);
            write(&peer, &vec![5; 50 * len]);
            for _ in 0..50 {
                assert_eq!(soon(&mut socket).len(), len);
            }
            nothing(&mut socket);
        }
    });
}
