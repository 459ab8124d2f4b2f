//! Keys and classes: a key's messages go to one socket at a time and in order, an answer to who asked,
//! and a higher class first; and whoever is slow, stuck or gone holds up nobody else.

mod common;

use std::{
    collections::HashMap,
    io::Read as _,
    net::TcpStream,
    panic,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::{epoll::*, *};
use kcm::{
    Builder, ConnectionId, DEFAULT_KEY_PATIENCE, Error, Frame, Framing, Message, Multiplexor,
    Verdict,
};

/// In tests that wait for it.
const PATIENCE: Duration = Duration::from_millis(150);

/// Four bytes of length, then the class, a mark whether there is a key, the key and a number.
const LEN: usize = 16;

fn keyed_framing() -> Framing {
    Framing::closure(|bytes| {
        let Some(head) = bytes.first_chunk::<10>() else {
            return Verdict::NeedMore(10);
        };
        let len = u32::from_be_bytes(head[..4].try_into().expect("four"));
        let frame = Frame::new(len.into()).with_class(head[4]);
        let key = u32::from_be_bytes(head[6..].try_into().expect("four"));
        Verdict::Message(if head[5] == 1 {
            frame.with_key(key)
        } else {
            frame
        })
    })
}

fn keyed(key: impl Into<Option<u32>>, class: u8, number: u32) -> Vec<u8> {
    let key = key.into();
    let mut bytes = u32::try_from(LEN).expect("short").to_be_bytes().to_vec();
    bytes.extend([class, u8::from(key.is_some())]);
    bytes.extend(key.unwrap_or(0).to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(number.to_be_bytes());
    bytes
}

#[track_caller]
fn number(message: &[u8]) -> u32 {
    assert_eq!(message.len(), LEN);
    u32::from_be_bytes(message[12..].try_into().expect("four"))
}

fn builder() -> Builder {
    Multiplexor::builder(keyed_framing())
}

/// One in which no socket counts as stuck, however slow the machine is.
fn keyed_mux() -> Multiplexor {
    let mux = builder().key_patience(10 * SOON).build();
    mux.expect("a mux")
}

/// A connection on which all of this has arrived.
fn connection_with(mux: &Multiplexor, bytes: &[u8]) -> (ConnectionId, TcpStream) {
    let (ours, peer) = tcp_pair();
    let look = ours.try_clone().expect("dup");
    write(&peer, bytes);
    wait_arrived(&look, bytes.len());
    (mux.attach(ours).expect("attached"), peer)
}

#[test]
fn a_message_tells_its_key_and_class() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut socket = mux.socket().expect("a socket");
        let labels = [
            (Some(7), 0),
            (None, 3),
            (None, 0),
            (Some(u32::MAX), 255),
            (Some(0), 0),
        ];
        let label = |n: u32| labels[n as usize % 5];
        let bytes: Vec<_> = (0..5000)
            .flat_map(|n| keyed(label(n).0, label(n).1, n))
            .collect();
        let check = |message: &Message, n: u32| {
            assert_eq!(number(message), n);
            assert_eq!((message.key(), message.class()), label(n));
        };
        let (_, peer) = attached(&mux);
        let writer = thread::spawn(move || write(&peer, &bytes));
        let mut kept = Vec::new();
        while kept.len() < 5000 {
            match kept.len() % 3 {
                0 => kept.push(soon(&mut socket)),
                1 => {
                    let seen = socket.peek().expect("a look");
                    check(&seen, u32::try_from(kept.len()).expect("few"));
                    kept.push(soon(&mut socket));
                }
                _ => kept.extend(socket.recv_batch(7).expect("a batch")),
            }
        }
        writer.join().expect("written");
        (0..).zip(&kept).for_each(|(n, message)| check(message, n));

        // Natives give neither.
        let (id, peer) = attached(&mux);
        mux.connection(id).expect("attached").set_framing(framing());
        write(&peer, &keyed(1, 2, 3)[..0]);
        write(&peer, &message(b"plain"));
        let plain = soon(&mut socket);
        assert_eq!((plain.key(), plain.class()), (None, 0));
    });
}

/// A program leaves both in its context, and they come through whichever form it runs in.
#[test]
fn a_programs_key_and_class_come_through() {
    const OBJECT: &[u8] = include_bytes!("../../kcm-bpf/tests/objects/steering.o");
    bounded(20, || {
        let insns = kcm_bpf::elf::load(OBJECT, None).expect("an object");
        let program = kcm_bpf::Program::verify(insns).expect("a program");
        // A call of Thrift: its key is the name's beginning, its class 1 where it is short.
        let call = |n: u32| {
            let body_len = if n.is_multiple_of(3) { 1100 } else { 30 };
            let mut bytes = u32::to_be_bytes(body_len).to_vec();
            bytes.extend([0x80, 1, 0, 1, 0, 0, 0, 4]);
            bytes.extend((n % 5).to_be_bytes());
            bytes.resize(bytes.len() + body_len as usize - 12, 0);
            bytes
        };
        for framing in [program.framing(), program.interpreted()] {
            let mux = Multiplexor::builder(framing).build().expect("a mux");
            let mut socket = mux.socket().expect("a socket");
            let (_, mut peer) = attached(&mux);
            write(&peer, &(0..100).flat_map(call).collect::<Vec<_>>());
            for n in 0..100 {
                let message = soon(&mut socket);
                assert_eq!(message[..], call(n), "{n}");
                let class = u8::from(!n.is_multiple_of(3));
                assert_eq!((message.key(), message.class()), (Some(n % 5), class));
            }
            // The answer with its key is for who asked.
            let mut asker = mux.socket().expect("a socket");
            asker.send_keyed(4, &call(4)).expect("sent");
            let mut question = call(4);
            peer.read_exact(&mut question).expect("the question");
            write(&peer, &question);
            assert_eq!(soon(&mut asker).key(), Some(4));
        }
    });
}

/// Four threads and three connections; in half of the rounds with batches.
#[test]
fn messages_of_a_key_are_worked_on_in_order_and_by_one_at_a_time() {
    bounded(60, || {
        const KEYS: u32 = 5;
        const EACH: u32 = 3000;
        for batch in [1, 8] {
            let mux = keyed_mux();
            // For each key: whether somebody works on it; for each key and connection, the last.
            let busy: Arc<Vec<AtomicBool>> =
                Arc::new((0..KEYS).map(|_| AtomicBool::new(false)).collect());
            let last: Arc<Mutex<HashMap<(u32, ConnectionId), u32>>> = Arc::default();
            let received = Arc::new(AtomicU64::new(0));
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    let mut socket = mux.socket().expect("a socket");
                    let (busy, last, received) = (busy.clone(), last.clone(), received.clone());
                    thread::spawn(move || {
                        let mut mine = Vec::new();
                        loop {
                            for key in mine.drain(..) {
                                let busy: &AtomicBool = &busy[key as usize];
                                busy.store(false, Ordering::SeqCst);
                            }
                            let messages: Vec<_> = match socket.recv_batch(batch) {
                                Ok(batch) => batch.collect(),
                                Err(Error::Closed) => return,
                                Err(error) => panic!("{error}"),
                            };
                            for message in &messages {
                                if let Some(key) = message.key() {
                                    let before = busy[key as usize].swap(true, Ordering::SeqCst);
                                    assert!(!before || mine.contains(&key), "two work on {key}");
                                    if !mine.contains(&key) {
                                        mine.push(key);
                                    }
                                    let place = (key, message.connection());
                                    let mut last = last.lock().expect("nobody panicked");
                                    let before = last.insert(place, number(message));
                                    assert!(before.is_none_or(|before| before < number(message)));
                                }
                            }
                            received.fetch_add(messages.len() as u64, Ordering::SeqCst);
                            if number(&messages[0]).is_multiple_of(64) {
                                thread::sleep(Duration::from_micros(50));
                            }
                        }
                    })
                })
                .collect();
            let writers: Vec<_> = (0..3)
                .map(|_| {
                    let (_, peer) = attached(&mux);
                    thread::spawn(move || {
                        for from in (0..EACH).step_by(100) {
                            let bytes: Vec<_> = (from..from + 100)
                                .flat_map(|n| {
                                    // The last is no key, and one is hot.
                                    let key = [0, 0, 0, 1, 2, 3, 4, 5][n as usize * 5 % 8];
                                    keyed((key < KEYS).then_some(key), 0, n)
                                })
                                .collect();
                            write(&peer, &bytes);
                        }
                        peer
                    })
                })
                .collect();
            let _peers: Vec<_> = writers
                .into_iter()
                .map(|it| it.join().expect("written"))
                .collect();
            wait_until("all is received", || {
                received.load(Ordering::SeqCst) == u64::from(3 * EACH)
            });
            let stats = mux.stats();
            let by_sockets: u64 = stats.sockets.iter().map(|it| it.counters.rx_messages).sum();
            assert_eq!(by_sockets, u64::from(3 * EACH));
            mux.shutdown();
            workers
                .into_iter()
                .for_each(|it| it.join().expect("worked"));
        }
    });
}

#[test]
fn a_busy_key_holds_up_no_other_message() {
    bounded(20, || {
        let mux = keyed_mux();
        let (mut slow, mut other) = (mux.socket().expect("one"), mux.socket().expect("two"));
        let bytes = [
            keyed(1, 0, 0),
            keyed(1, 0, 1),
            keyed(2, 0, 2),
            keyed(None, 0, 3),
            keyed(1, 0, 4),
            keyed(2, 0, 5),
        ];
        let (_, _peer) = connection_with(&mux, &bytes.concat());
        let (_, second) = connection_with(&mux, &keyed(1, 0, 6));
        assert_eq!(number(&soon(&mut slow)), 0);
        let mut seen: Vec<_> = drain(&mut other).iter().map(|it| number(it)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [2, 3, 5]);
        // More of the busy key, from elsewhere.
        write(&second, &keyed(1, 0, 7));
        nothing(&mut other);
        // It is all for the one that works on that key: first what is older.
        let rest: Vec<_> = drain(&mut slow).iter().map(|it| number(it)).collect();
        assert_eq!(rest.len(), 4);
        let of_first: Vec<_> = rest.iter().filter(|it| **it < 6).collect();
        assert_eq!(of_first, [&1, &4]);
    });
}

#[test]
fn done_is_enough_and_wakes_another() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (_, _peer) = connection_with(&mux, &[keyed(1, 0, 0), keyed(1, 0, 1)].concat());
        assert_eq!(number(&soon(&mut first)), 0);
        let waiter = spawn_asleep(move || number(&soon(&mut second)));
        first.done();
        assert_eq!(waiter.join().expect("received"), 1);
    });
}

#[test]
fn a_stuck_socket_loses_its_key_in_time() {
    bounded(20, || {
        assert!(DEFAULT_KEY_PATIENCE > PATIENCE);
        let mux = builder().key_patience(PATIENCE).build().expect("a mux");
        let mut stuck = mux.socket().expect("a socket");
        let mut other = mux.socket().expect("a socket");
        let bytes: Vec<_> = (0..600).flat_map(|n| keyed(1, 0, n)).collect();
        let (_, _peer) = connection_with(&mux, &bytes);
        let held = soon(&mut stuck);
        assert_eq!((number(&held), held.key()), (0, Some(1)));
        let begin = Instant::now();
        // Waiting for it blocks, in a receive that sleeps; some of it is at the connection still.
        assert_eq!(number(&soon(&mut other)), 1);
        assert!(begin.elapsed() >= PATIENCE);
        let rest: Vec<_> = (2..600).map(|_| number(&soon(&mut other))).collect();
        assert!(rest.into_iter().eq(2..600));
        assert!(begin.elapsed() < PATIENCE + SOON);
        nothing(&mut stuck);
    });
}

#[test]
fn a_dropped_or_panicked_socket_gives_its_key_up_at_once() {
    bounded(20, || {
        for panics in [false, true] {
            let mux = keyed_mux();
            let mut first = mux.socket().expect("a socket");
            let mut second = mux.socket().expect("a socket");
            let bytes = [keyed(1, 0, 0), keyed(1, 0, 1), keyed(1, 0, 2)];
            let (_, _peer) = connection_with(&mux, &bytes.concat());
            assert_eq!(number(&soon(&mut first)), 0);
            let waiter = spawn_asleep(move || {
                let numbers = [number(&soon(&mut second)), number(&soon(&mut second))];
                nothing(&mut second);
                numbers
            });
            if panics {
                let fallen = thread::spawn(move || {
                    let _first = first;
                    panic::resume_unwind(Box::new("a worker fell"));
                });
                fallen.join().expect_err("it did");
            } else {
                drop(first);
            }
            assert_eq!(waiter.join().expect("received"), [1, 2]);
        }
    });
}

#[test]
fn what_is_left_of_a_batch_goes_before_what_was_set_aside() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let all: Vec<_> = (0..4).flat_map(|n| keyed(n % 2, 0, n)).collect();
        let (_, peer) = connection_with(&mux, &all);
        let mut batch = first.recv_batch(4).expect("a batch");
        assert_eq!(number(&batch.next().expect("one")), 0);
        write(&peer, &[keyed(0, 0, 4), keyed(1, 0, 5)].concat());
        // The socket has both keys, with the second of them only in its batch.
        assert!(drain(&mut second).is_empty());
        drop(batch);
        let others: Vec<_> = drain(&mut second).iter().map(|it| number(it)).collect();
        assert_eq!(others, [1, 3, 5]);
        let own: Vec<_> = drain(&mut first).iter().map(|it| number(it)).collect();
        assert_eq!(own, [2, 4]);
    });
}

#[test]
fn a_peeked_message_keeps_its_key() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (_, _peer) = connection_with(&mux, &[keyed(1, 0, 0), keyed(1, 0, 1)].concat());
        assert_eq!(number(&first.peek().expect("a look")), 0);
        first.done();
        nothing(&mut second);
        assert_eq!(first.peek().expect("a look").key(), Some(1));
        // Given back with its socket, and first again.
        drop(first);
        assert_eq!(number(&soon(&mut second)), 0);
        assert_eq!(number(&soon(&mut second)), 1);
    });
}

#[test]
fn a_disabled_socket_is_given_nothing_of_its_key() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (_, _peer) = connection_with(&mux, &[keyed(1, 0, 0), keyed(1, 0, 1)].concat());
        assert_eq!(number(&soon(&mut first)), 0);
        assert!(drain(&mut second).is_empty());
        first.set_receive_disabled(true);
        nothing(&mut first);
        assert_eq!(number(&soon(&mut second)), 1);
    });
}

#[test]
fn event_loops_are_told_of_what_was_set_aside() {
    bounded(20, || {
        for edge in [false, true] {
            let mux = keyed_mux();
            let (mut first, mut second) = (mux.socket().expect("one"), mux.socket().expect("two"));
            let new = |socket| {
                if edge {
                    Loop::edge(socket)
                } else {
                    Loop::level(socket)
                }
            };
            let (one, two) = (new(&first), new(&second));
            let (_, peer) = attached(&mux);
            write(&peer, &keyed(1, 0, 0));
            assert!(one.wait(SOON).0);
            assert_eq!(number(&soon_polled(&mut first)), 0);
            // The other finds the next, which is not its own.
            write(&peer, &keyed(1, 0, 1));
            while two.wait(Duration::from_millis(50)).0 {
                assert!(matches!(second.recv(), Err(Error::WouldBlock)));
            }
            assert!(matches!(second.recv(), Err(Error::WouldBlock)));
            assert!(one.wait(SOON).0, "its own socket is told");
            assert_eq!(number(&soon_polled(&mut first)), 1);
            // And when it says that it is done, the other is.
            write(&peer, &keyed(1, 0, 2));
            while two.wait(Duration::from_millis(50)).0 {
                assert!(matches!(second.recv(), Err(Error::WouldBlock)));
            }
            assert!(matches!(second.recv(), Err(Error::WouldBlock)));
            first.done();
            assert!(two.wait(SOON).0);
            assert_eq!(number(&soon_polled(&mut second)), 2);
        }
    });
}

/// From a non-blocking socket that is readable.
#[track_caller]
fn soon_polled(socket: &mut kcm::Socket) -> Message {
    let mut message = None;
    wait_until("a message", || {
        message = socket.recv().ok();
        message.is_some()
    });
    message.expect("one")
}

#[test]
fn an_unattached_connection_leaves_its_keyed_messages() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let whole: Vec<_> = (0..6).flat_map(|n| keyed(n / 3, 0, n)).collect();
        let (id, _peer) = connection_with(&mux, &[&whole[..], b"\0\0"].concat());
        assert_eq!(number(&soon(&mut first)), 0);
        // One is set aside, and one received.
        assert_eq!(number(&soon(&mut second)), 3);
        let (_, rest) = mux.unattach(id).expect("unattached");
        assert_eq!(rest, b"\0\0");
        let of_second: Vec<_> = drain(&mut second).iter().map(|it| number(it)).collect();
        assert_eq!(of_second, [4, 5]);
        let of_first: Vec<_> = drain(&mut first).iter().map(|it| number(it)).collect();
        assert_eq!(of_first, [1, 2]);
        assert!(mux.connections().is_empty());
    });
}

#[test]
fn a_closed_connection_and_a_shutdown_forget_what_was_set_aside() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let bytes: Vec<_> = (0..3).flat_map(|n| keyed(1, 0, n)).collect();
        let (id, _peer) = connection_with(&mux, &bytes);
        let (_, _second_peer) = connection_with(&mux, &keyed(1, 0, 9));
        let held = soon(&mut first);
        assert!(drain(&mut second).is_empty());
        let closed = held.connection();
        mux.connection(closed).expect("attached").close();
        let rest: Vec<_> = drain(&mut first).iter().map(|it| number(it)).collect();
        assert_eq!(rest, if closed == id { vec![9] } else { vec![0, 1, 2] });

        let (_, _third_peer) = connection_with(&mux, &bytes);
        let more = soon(&mut first);
        assert!(drain(&mut second).is_empty());
        mux.shutdown();
        assert!(matches!(first.recv(), Err(Error::Closed)));
        drop((held, more));
        wait_until("no memory is kept", || mux.stats().memory_bytes == 0);
    });
}

#[test]
fn an_ordered_connection_waits_for_its_key() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        let (_, _peer) = connection_with(&mux, &keyed(1, 0, 0));
        assert_eq!(number(&soon(&mut first)), 0);
        let (ours, peer) = tcp_pair();
        let id = mux.attach(ours).expect("attached");
        mux.connection(id).expect("attached").set_ordered(true);
        write(&peer, &[keyed(1, 0, 1), keyed(2, 0, 2)].concat());
        // The next one may not pass it.
        nothing(&mut second);
        first.done();
        assert_eq!(number(&soon(&mut second)), 1);
        assert_eq!(number(&soon(&mut second)), 2);
    });
}

#[test]
fn a_higher_class_goes_first_and_starves_nobody() {
    bounded(20, || {
        const EACH: u32 = 200;
        let mux = keyed_mux();
        let mut socket = mux.socket().expect("a socket");
        let peers: Vec<_> = [0, 7, 3]
            .map(|class| {
                let bytes: Vec<_> = (0..EACH).flat_map(|n| keyed(None, class, n)).collect();
                connection_with(&mux, &bytes)
            })
            .into();
        let classes: Vec<_> = (0..3 * EACH).map(|_| soon(&mut socket).class()).collect();
        // A connection is known once its first message was seen.
        let place = |class, n| {
            let mut all = (0..).zip(&classes).filter(|(_, it)| **it == class);
            all.nth(n).expect("all came").0
        };
        let last = EACH as usize - 1;
        assert!(place(7, last) < 230, "{classes:?}");
        assert!(place(3, last) < 460, "{classes:?}");
        // Each of the lower ones has had its turns while the highest was there.
        for lower in [0, 3] {
            let turns = classes[..place(7, last)].iter().filter(|it| **it == lower);
            assert!((5..=10).contains(&turns.count()), "{classes:?}");
        }
        drop(peers);
    });
}

#[test]
fn an_answer_comes_back_to_who_asked() {
    /// For how long an answer is kept for who asked, who may be kept from running for longer: then it is
    /// anybody's.
    const ANSWER_WAIT: Duration = Duration::from_millis(10);
    bounded(40, || {
        let mux = keyed_mux();
        let asked_at = Arc::new(Mutex::new(HashMap::new()));
        let (id, mut peer) = attached(&mux);
        // Sends each question back.
        let echo = thread::spawn(move || {
            while let Ok(question) = read_message_of(&mut peer) {
                write(&peer, &question);
            }
        });
        let askers: Vec<_> = (0..4u32)
            .map(|asker| {
                let mut socket = mux.socket().expect("a socket");
                let asked_at = asked_at.clone();
                thread::spawn(move || {
                    let mut own = 0;
                    for n in 0..500 {
                        let key = asker * 1000 + n;
                        let question = keyed(key, 0, n);
                        asked_at.lock().expect("whole").insert(key, Instant::now());
                        if n % 2 == 0 {
                            socket.send_keyed(key, &question).expect("sent");
                        } else {
                            socket.send_keyed_to(id, key, &question).expect("sent");
                        }
                        let answer = soon(&mut socket).key().expect("a key");
                        let waited = asked_at.lock().expect("whole")[&answer].elapsed();
                        // (It may be the answer to an older question, after another's.)
                        let is_own = answer / 1000 == asker;
                        assert!(is_own || waited >= ANSWER_WAIT, "{waited:?}");
                        own += u32::from(is_own);
                    }
                    // (Its own may be there yet, and is anybody's when the socket is gone.)
                    (own, socket)
                })
            })
            .collect();
        let asked: Vec<_> = askers
            .into_iter()
            .map(|it| it.join().expect("asked"))
            .collect();
        let own: u32 = asked.iter().map(|(own, _)| own).sum();
        // (Without steering it would be a quarter, as where nobody is told of an answer that waits.)
        assert!(own > 1500, "{own} of 2000 came back to who asked");
        mux.shutdown();
        echo.join().expect("echoed");
    });
}

fn read_message_of(stream: &mut impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut message = vec![0; LEN];
    stream.read_exact(&mut message)?;
    Ok(message)
}

#[test]
fn an_answer_that_nobody_comes_for_is_for_all() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut other = mux.socket().expect("a socket");
        let (_, peer) = attached(&mux);
        let asker = mux.socket().expect("a socket");
        asker.send_keyed(7, &keyed(7, 0, 0)).expect("sent");
        write(&peer, &keyed(7, 0, 1));
        let begin = Instant::now();
        assert_eq!(number(&soon(&mut other)), 1);
        assert!(begin.elapsed() >= Duration::from_millis(5));
        // One that is gone waits for nothing.
        asker.send_keyed(8, &keyed(8, 0, 0)).expect("sent");
        drop(asker);
        write(&peer, &keyed(8, 0, 2));
        assert_eq!(number(&soon(&mut other)), 2);
        // One that could not ask neither.
        let strange = ConnectionId::from_u64(u64::MAX);
        let asker = mux.socket().expect("a socket");
        assert!(asker.send_keyed_to(strange, 9, &keyed(9, 0, 0)).is_err());
        write(&peer, &keyed(9, 0, 3));
        assert_eq!(number(&soon(&mut other)), 3);
    });
}

#[test]
fn an_event_loop_is_told_of_its_answer() {
    bounded(20, || {
        let mux = keyed_mux();
        let mut asker = mux.socket().expect("a socket");
        let mut other = mux.socket().expect("a socket");
        let (_, peer) = attached(&mux);
        let waiter = Loop::edge(&asker);
        while waiter.wait(Duration::from_millis(20)).0 {
            assert!(matches!(asker.recv(), Err(Error::WouldBlock)));
        }
        asker.send_keyed(7, &keyed(7, 0, 0)).expect("sent");
        let other = thread::spawn(move || {
            other.set_read_timeout(Some(A_WHILE)).expect("a limit");
            other.recv().map(|message| number(&message))
        });
        write(&peer, &keyed(7, 0, 1));
        assert!(waiter.wait(SOON).0);
        let mine = asker.recv().map(|message| number(&message));
        let others = other.join().expect("waited");
        assert!(
            matches!(mine, Ok(1)) != matches!(others, Ok(1)),
            "{mine:?} {others:?}"
        );
    });
}
