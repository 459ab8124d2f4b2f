//! What holds between requests: tags, flushes, fids, sessions; and what a client that misbehaves
//! cannot do.

mod client;
#[path = "../../../crates/kcm-cli/tests/serve/keepalive.rs"]
mod keepalive;

use client::*;
use std::{
    collections::HashMap,
    fs,
    io::{ErrorKind, Read, Write},
    thread,
    time::{Duration, Instant},
};

const MIB: u32 = 1 << 20;

/// A file of a few MiB, open as fid 1, and a client with it.
fn with_large_file(served: &Served) -> Client {
    let bytes: Vec<u8> = (0..4 * MIB).map(|at| at.to_le_bytes()[1]).collect();
    fs::write(served.path("large"), bytes).expect("written");
    let mut c = served.client();
    c.open(1, "large", 2).expect("open");
    c
}

#[test]
fn versions_are_negotiated() {
    let served = Served::new(&["--msize", "65536"]);
    let mut c = served.connect();
    assert_eq!(
        c.fails(TCLUNK, Body::new().u32(0)),
        EPROTO,
        "before Tversion"
    );
    c.send(TVERSION, NOTAG, &Body::new().u32(8192).string("9P2000.u"));
    assert_eq!(&c.receive().body[4..], b"\x07\0unknown");
    assert_eq!(
        c.fails(TCLUNK, Body::new().u32(0)),
        EPROTO,
        "no version was agreed on"
    );
    c.send(TVERSION, NOTAG, &Body::new().u32(100).string("9P2000.L"));
    assert_eq!(c.receive().errno(), Some(EMSGSIZE));
    assert_eq!(c.version(1 << 30), 65_536);
    assert_eq!(c.version(8_192), 8_192);
    assert_eq!(
        c.fails(TAUTH, Body::new().u32(1).string("").string("").u32(0)),
        EOPNOTSUPP
    );
    let attach = |fid, auth| Body::new().u32(fid).u32(auth).string("").string("").u32(0);
    assert_eq!(c.fails(TATTACH, attach(0, 5)), EINVAL);
    assert_eq!(c.fails(TATTACH, attach(NOFID, NOFID)), EINVAL);
    c.ok(TATTACH, attach(0, NOFID));
    assert_eq!(c.fails(TATTACH, attach(0, NOFID)), EBUSY);
    assert_eq!(
        c.fails(TXATTRWALK, Body::new().u32(0).u32(1).string("user.x")),
        EOPNOTSUPP
    );
    // Reads and lists are cut to what a message carries.
    fs::write(served.path("f"), vec![7; 100_000]).expect("written");
    c.open(1, "f", 0).expect("open");
    assert_eq!(c.read(1, 0, u32::MAX).expect("open").len(), 8_192 - 24);
}

#[test]
fn a_session_begins_anew_after_what_is_under_way() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    for _ in 0..20 {
        let mut bytes = Vec::new();
        for tag in 0..8 {
            bytes.extend(message(TREAD, tag, &read_body(1, 0, MIB)));
        }
        bytes.extend(message(
            TVERSION,
            NOTAG,
            &Body::new().u32(MIB).string("9P2000.L"),
        ));
        c.stream.write_all(&bytes).expect("sent");
        let kinds: Vec<_> = (0..9).map(|_| c.receive().kind).collect();
        assert_eq!(kinds, [[TREAD + 1; 8].as_slice(), &[TVERSION + 1]].concat());
        assert_eq!(c.clunk(1), Err(EBADF), "no fid is left");
        c.ok(
            TATTACH,
            Body::new().u32(0).u32(NOFID).string("").string("").u32(0),
        );
        c.open(1, "large", 0).expect("open");
    }
    drop(c);
}

#[test]
fn requests_of_one_client_are_answered_at_once() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    let begin = Instant::now();
    loop {
        // A long one and a short one: some time the short one overtakes.
        let mut bytes = message(TREAD, 1, &read_body(1, 0, MIB));
        bytes.extend(message(TGETATTR, 2, &Body::new().u32(0).u64(0x7ff)));
        c.stream.write_all(&bytes).expect("sent");
        let (first, second) = (c.receive(), c.receive());
        assert_eq!(u32::from(first.tag) + u32::from(second.tag), 3);
        if first.tag == 2 {
            return;
        }
        assert!(begin.elapsed() < SOON, "one after the other");
    }
}

#[test]
fn a_flush_is_answered_after_its_request() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    for round in 0..200_u32 {
        let flush = |tag, old| message(TFLUSH, tag, &Body::new().u16(old));
        let mut bytes = message(TREAD, 1, &read_body(1, 0, round % 7 * 60_000));
        bytes.extend(flush(2, 1));
        bytes.extend(flush(3, 1));
        bytes.extend(flush(4, 2));
        // Of nothing, and of itself.
        bytes.extend(flush(5, 999));
        bytes.extend(flush(6, 6));
        c.stream.write_all(&bytes).expect("sent");
        let mut place = HashMap::new();
        for at in 0..6 {
            let answer = c.receive();
            assert_eq!(answer.errno(), None);
            assert!(place.insert(answer.tag, at).is_none(), "answered twice");
        }
        assert!(
            place[&1] < place[&2] && place[&2] < place[&4] && place[&1] < place[&3],
            "{place:?}"
        );
        // All tags are free again.
        assert_eq!(c.call(TCLUNK, Body::new().u32(77)), Err(EBADF));
    }
}

#[test]
fn a_tag_in_use_is_refused() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    let begin = Instant::now();
    loop {
        let mut bytes = Vec::new();
        for _ in 0..2 {
            bytes.extend(message(TREAD, 1, &read_body(1, 0, MIB)));
        }
        c.stream.write_all(&bytes).expect("sent");
        let mut errors = [c.receive(), c.receive()].map(|answer| answer.errno());
        errors.sort();
        // (The first may have been answered when the second came.)
        if errors == [None, Some(EBUSY)] {
            break;
        }
        assert_eq!(errors, [None, None]);
        assert!(begin.elapsed() < SOON, "never refused");
    }
    c.send(TCLUNK, NOTAG, &Body::new().u32(1));
    assert_eq!(c.receive().errno(), Some(EINVAL), "no tag at all");
}

#[test]
fn fids_mean_what_they_meant_when_a_request_was_sent() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    for round in 0..50 {
        c.open(2, "large", 0).expect("open");
        let last = if round % 2 == 0 { TCLUNK } else { TREMOVE };
        let mut bytes = Vec::new();
        for tag in 1..5 {
            bytes.extend(message(TREAD, tag, &read_body(2, 0, 500_000)));
        }
        bytes.extend(message(last, 5, &Body::new().u32(2)));
        bytes.extend(message(TREAD, 6, &read_body(2, 0, 10)));
        c.stream.write_all(&bytes).expect("sent");
        for _ in 0..6 {
            let answer = c.receive();
            let expected = (answer.tag == 6).then_some(EBADF);
            assert_eq!(answer.errno(), expected, "{}", answer.tag);
            if answer.kind == TREAD + 1 {
                assert_eq!(int(&answer.body), 500_000);
            }
        }
        if last == TREMOVE {
            fs::write(served.path("large"), vec![1; 600_000]).expect("written");
        }
    }
}

#[test]
fn one_of_several_walks_to_one_fid_wins() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    assert_eq!(c.walk(0, 1, &["large"]), Err(EBUSY));
    assert_eq!(c.walk(1, 1, &[]), Err(EBUSY), "open");
    assert_eq!(c.walk(0, NOFID, &[]), Err(EINVAL));
    assert_eq!(c.walk(0, 9, &["x"; 17]), Err(EINVAL));
    // A second fid of an open one is not open.
    c.walk(1, 2, &[]).expect("a clone");
    assert_eq!(c.read(2, 0, 1), Err(EBADF));
    c.ok(TLOPEN, Body::new().u32(2).u32(0));
    assert_eq!(c.fails(TLOPEN, Body::new().u32(2).u32(0)), EBUSY);
    for _ in 0..50 {
        let walk = |from, to, name| Body::new().u32(from).u32(to).u16(1).string(name);
        let bytes: Vec<_> = (1..6)
            .flat_map(|tag| message(TWALK, tag, &walk(0, 5, "large")))
            .collect();
        c.stream.write_all(&bytes).expect("sent");
        let won = (1..6).filter(|_| match c.receive().errno() {
            None => true,
            Some(errno) => {
                assert_eq!(errno, EBUSY);
                false
            }
        });
        assert_eq!(won.count(), 1);
        c.clunk(5).expect("one");
        // From a fid to itself: a fid afterwards means what one of them found.
        c.walk(0, 5, &[]).expect("the root");
        let bytes: Vec<_> = (1..4)
            .flat_map(|tag| message(TWALK, tag, &walk(5, 5, "large")))
            .collect();
        c.stream.write_all(&bytes).expect("sent");
        let failed = (1..4)
            .filter_map(|_| c.receive().errno())
            .collect::<Vec<_>>();
        assert!(failed.len() < 3, "{failed:?}");
        c.ok(TLOPEN, Body::new().u32(5).u32(0));
        c.clunk(5).expect("a fid");
    }
}

#[test]
fn malformed_requests_are_refused_and_the_session_goes_on() {
    let served = Served::new(&[]);
    let mut c = with_large_file(&served);
    let good: Vec<(u8, Body)> = vec![
        (TWALK, Body::new().u32(0).u32(5).u16(1).string("large")),
        (TLOPEN, Body::new().u32(1).u32(0)),
        (TREAD, read_body(1, 0, 10)),
        (TGETATTR, Body::new().u32(1).u64(1)),
        (TMKDIR, Body::new().u32(0).string("d").u32(0).u32(0)),
        (TCLUNK, Body::new().u32(1)),
        (TREMOVE, Body::new().u32(1)),
        (TFLUSH, Body::new().u16(1)),
        (
            TLOCK,
            Body::new()
                .u32(1)
                .u8(0)
                .u32(0)
                .u64(0)
                .u64(0)
                .u32(0)
                .string("c"),
        ),
    ];
    for (kind, body) in good {
        for len in 0..body.0.len() {
            assert_eq!(
                c.fails(kind, Body(body.0[..len].to_vec())),
                EBADMSG,
                "{kind} {len}"
            );
        }
        assert_eq!(c.fails(kind, body.u8(0)), EBADMSG, "{kind}, too long");
    }
    // A count that promises more than there is.
    assert_eq!(
        c.fails(TWRITE, read_body(1, 0, u32::MAX).raw(b"abc")),
        EBADMSG
    );
    assert_eq!(
        c.fails(TWRITE, read_body(1, u64::MAX, 3).raw(b"abc")),
        EINVAL
    );
    for kind in [0, 6, 7, 13, 101, 106, 255] {
        assert_eq!(c.fails(kind, Body::new()), EOPNOTSUPP);
    }
    assert_eq!(c.read(1, 0, 4).expect("still there").len(), 4);
}

#[test]
fn impossible_lengths_end_the_connection_and_no_other() {
    let served = Served::new(&[]);
    let mut bystander = served.client();
    let first_msize_and_one = [1, 16, 0, 0, TVERSION, 0xff, 0xff];
    for bytes in [
        &[0, 0, 0, 0][..],
        &[3, 0, 0, 0],
        &[4, 0, 0, 0],
        &[6, 0, 0, 0, 100, 1],
        &[0xff; 8],
        &first_msize_and_one,
    ] {
        let mut c = served.connect();
        c.stream.write_all(bytes).expect("sent");
        let error = c.try_receive().expect_err("closed").kind();
        assert!(
            matches!(error, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset),
            "{error}"
        );
    }
    // Longer than agreed on.
    let mut c = served.connect();
    c.version(8_192);
    c.stream.write_all(&8_193_u32.to_le_bytes()).expect("sent");
    assert!(c.try_receive().is_err());
    assert_eq!(bystander.walk(0, 1, &[]), Ok(0));
}

#[test]
fn a_client_that_never_reads_stops_nobody_and_is_bounded() {
    let served = Served::new(&["--workers", "2"]);
    let _large = with_large_file(&served);
    let before = served.memory();
    let greedy: Vec<_> = (0..6)
        .map(|_| {
            let mut c = served.client();
            c.open(1, "large", 0).expect("open");
            c.stream
                .set_write_timeout(Some(Duration::from_millis(300)))
                .expect("set");
            // Asks for 1 GiB and more, until nobody listens.
            let mut asked = 0_u64;
            for tag in 0..20_000 {
                let ask = message(TREAD, tag, &read_body(1, 0, MIB));
                if c.stream.write_all(&ask).is_err() {
                    break;
                }
                asked += 1;
            }
            assert!(asked > 100, "{asked}");
            c
        })
        .collect();
    // Two workers, six such clients: others are served all the same.
    let mut other = served.client();
    other.create(1, "f");
    for at in 0..200 {
        assert_eq!(other.write(1, at, b"x"), Ok(1));
    }
    // Each: 256 KiB and three messages in the queue, and what is read of its requests.
    let used = served.memory().saturating_sub(before);
    assert!(used < 6 * (8 << 20), "{} MiB", used >> 20);
    // Who reads at last gets all answers that were asked for, and goes on.
    let mut late = greedy.into_iter().next().expect("six");
    for _ in 0..100 {
        assert_eq!(
            late.receive().body.len(),
            4 + usize::try_from(MIB - 24).expect("small")
        );
    }
}

#[test]
fn half_sent_requests_and_idle_clients_stop_nobody() {
    let served = Served::new(&["--workers", "2"]);
    let before = served.memory();
    let half: Vec<_> = (0..100)
        .map(|_| {
            let mut c = served.client();
            // The header of a message of 1 MiB, and a little.
            c.stream
                .write_all(&message(TWRITE, 1, &write_body(1, 0, &[0; 64]))[..40])
                .expect("sent");
            c.stream
                .shutdown(std::net::Shutdown::Read)
                .expect("half closed");
            c
        })
        .collect();
    let mut other = served.client();
    for _ in 0..100 {
        other.walk(0, 1, &[]).expect("served");
        other.clunk(1).expect("served");
    }
    assert!(served.memory().saturating_sub(before) < 100 << 20);
    drop(half);
    let now = || served.descriptors();
    drop(other);
    eventually("connections and fids are closed", || now() < 40);
}

#[test]
fn ones_that_connect_and_say_nothing_keep_nobody_out() {
    let served = Served::new(&["--max-clients", "4"]);
    let mut resting = served.client();
    let silent: Vec<_> = (0..3).map(|_| served.connect()).collect();
    // In the backlog, until they are gone.
    let mut other = served.client();
    other.walk(0, 1, &[]).expect("served");
    drop(silent);
    resting.walk(0, 1, &[]).expect("who has begun may rest");
}

#[test]
fn half_sent_requests_leave_memory_to_others() {
    const MSIZE: u32 = 16 << 20;
    let served = Served::new(&["--msize", "16777216"]);
    let half: Vec<_> = (0..40)
        .map(|_| {
            let mut c = served.connect();
            assert_eq!(c.version(MSIZE), MSIZE);
            // More than is read without reserving all of it.
            let begin = [&MSIZE.to_le_bytes()[..], &[TWRITE; 300 << 10]].concat();
            c.stream.write_all(&begin).expect("sent");
            c
        })
        .collect();
    let begin = Instant::now();
    let mut other = served.client();
    other.create(1, "f");
    let data = vec![7; 1 << 19];
    assert_eq!(other.write(1, 0, &data), Ok(1 << 19));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(20), "served after {took:?}");
    drop(half);
}

#[test]
fn one_client_leaves_descriptors_for_others() {
    // 800 for fids: what is left of 1,000 when connections and sockets have theirs.
    let few = &["prlimit", "--nofile=1000:1000"];
    let served = Served::under(few, &["--max-clients", "20", "--workers", "4"]);
    let (mut greedy, mut other) = (served.client(), served.client());
    let refused = (1..1000).find(|&fid| greedy.walk(0, fid, &[]) == Err(EMFILE));
    assert!(
        refused.is_some_and(|fid| (300..450).contains(&fid)),
        "{refused:?}"
    );
    for fid in 1..150 {
        other.walk(0, fid, &[]).expect("some are left");
    }
    assert_eq!(greedy.walk(0, 999, &[]), Err(EMFILE));
    for fid in 1..200 {
        greedy.clunk(fid).expect("a fid");
    }
    assert_eq!(greedy.walk(0, 999, &[]), Ok(0));
}

#[test]
fn a_flood_of_small_requests_is_answered() {
    let served = Served::new(&[]);
    let mut c = served.client();
    let mut writer = c.stream.try_clone().expect("cloned");
    const FLOOD: u32 = 100_000;
    let flood = thread::spawn(move || {
        for chunk in 0..FLOOD / 1000 {
            let bytes: Vec<_> = (0..1000)
                .flat_map(|n| {
                    let tag = u16::try_from((chunk * 1000 + n) % 60_000).expect("small");
                    message(TFLUSH, tag, &Body::new().u16(NOTAG))
                })
                .collect();
            writer.write_all(&bytes).expect("sent");
        }
    });
    let mut bystander = served.client();
    for _ in 0..FLOOD {
        let answer = c.receive();
        assert_eq!(answer.kind, TFLUSH + 1);
    }
    flood.join().expect("all was sent");
    bystander.walk(0, 1, &[]).expect("served");
    assert!(served.memory() < 100 << 20);
}

#[test]
fn many_clients_at_once_see_their_own_files() {
    let served = Served::new(&[]);
    thread::scope(|scope| {
        for number in 0..16_u32 {
            let served = &served;
            scope.spawn(move || {
                let mut c = served.client();
                c.create(1, &format!("file-{number}"));
                for round in 0..200_u32 {
                    let bytes = (number << 16 | round).to_le_bytes();
                    assert_eq!(c.write(1, u64::from(round) * 4, &bytes), Ok(4));
                    assert_eq!(c.read(1, u64::from(round) * 4, 4).expect("open"), bytes);
                }
            });
        }
    });
    // A client that goes in the middle of everything.
    let mut c = served.connect();
    c.stream.write_all(&[9]).expect("sent");
    drop(c);
    let mut rest = Vec::new();
    let mut last = served.connect();
    last.stream
        .shutdown(std::net::Shutdown::Write)
        .expect("done");
    last.stream.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty());
}

#[test]
fn a_client_that_is_gone_without_a_word_is_found() {
    let served = Served::new(&[]);
    let mut c = served.client();
    assert_eq!(c.walk(0, 1, &[]), Ok(0));
    let (_, port) = served.address.rsplit_once(':').expect("an address");
    let port = port.parse().expect("a port");
    let left = || keepalive::time_left(port);
    eventually("a timer runs", || left().is_some());
    assert!(
        left().is_some_and(|left| left <= Duration::from_secs(61)),
        "{:?}",
        left()
    );
}
