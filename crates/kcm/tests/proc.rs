//! The texts of `/proc/net/kcm` and `/proc/net/kcm_stats`: the kernel's columns, with the values
//! that the kernel should have had.

mod common;

use std::collections::HashMap;

use common::*;
use kcm::{Limits, Multiplexor, SocketType, proc_net_kcm, proc_net_kcm_stats};

/// Shuts a multiplexor down, so that a failed test leaves none behind that the next would see.
struct Shut(Multiplexor);

impl Drop for Shut {
    fn drop(&mut self) {
        self.0.shutdown();
    }
}

/// One line of `/proc/net/kcm` after its header: the object, and its columns.
struct Line {
    object: String,
    numbers: [u64; 4],
    rest: String,
}

/// The columns of a line, cut where the kernel's format cuts them.
fn line(text: &str) -> Line {
    let (object, rest) = text.split_at(14);
    let widths = [11, 17, 11, 17];
    let mut at = 1;
    let numbers = widths.map(|width| {
        let column = &rest[at..at + width];
        at += width;
        assert!(column.ends_with(' '), "{text:?}");
        column.trim_end().parse().expect("a number")
    });
    Line {
        object: object.trim_end().to_owned(),
        numbers,
        rest: rest[at..].to_owned(),
    }
}

/// The lines after the two of the header, which are looked at here.
fn lines() -> (usize, Vec<Line>) {
    let text = proc_net_kcm();
    assert!(text.ends_with('\n'));
    let mut lines = text.lines();
    let first = lines.next().expect("a first line");
    let count = first
        .strip_prefix("*** KCM statistics (")
        .and_then(|rest| rest.strip_suffix(" MUX) ****"))
        .expect("the kernel's first line");
    assert_eq!(
        lines.next().expect("a second line").trim_end(),
        "Object         RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         \
         Recv-Q   Rmem     Send-Q   Smem     Status"
    );
    let count = count.parse().expect("a count");
    (count, lines.map(line).collect())
}

#[track_caller]
fn find<'a>(lines: &'a [Line], object: &str) -> &'a Line {
    let found = lines.iter().find(|line| line.object.trim_start() == object);
    found.unwrap_or_else(|| panic!("no line for {object}"))
}

#[test]
fn every_object_has_its_line() {
    alone(20, || {
        assert_eq!(lines().0, 0, "no multiplexor is left from elsewhere");
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let mut first = mux.socket().expect("a socket");
        let mut second = mux.socket().expect("a socket");
        for number in 0..10 {
            write(&peer, &numbered(1, number, 100));
            let socket = if number < 7 { &mut first } else { &mut second };
            let message = soon(socket);
            // Right at once, not a burst later.
            let (_, lines) = lines();
            assert_eq!(
                find(&lines, "mux").numbers[..2],
                [number + 1, (number + 1) * 100]
            );
            drop(message);
        }
        for number in 0..3 {
            second.send_to(id, &numbered(1, number, 50)).expect("sent");
            read_message(&mut peer).expect("a message");
        }
        // Half a message more: no message, and no bytes of one, yet.
        write(&peer, &numbered(1, 10, 100)[..60]);
        nothing(&mut first);
        let (count, lines) = lines();
        assert_eq!(count, 1);
        let objects: Vec<_> = lines.iter().map(|line| line.object.as_str()).collect();
        assert_eq!(objects, ["mux", "   kcm-0", "   kcm-1", "   psock-0"]);
        assert_eq!(find(&lines, "mux").numbers, [10, 1000, 3, 150]);
        let status = find(&lines, "mux").rest.trim_end();
        assert_eq!(
            status,
            "-        -        -        -        KCMs: 2, Psocks 1"
        );
        assert_eq!(find(&lines, "kcm-0").numbers, [7, 700, 0, 0]);
        assert_eq!(find(&lines, "kcm-1").numbers, [3, 300, 3, 150]);
        assert_eq!(find(&lines, "psock-0").numbers, [10, 1000, 3, 150]);

        // The same in the snapshot for programs.
        let snapshot = mux.stats();
        assert_eq!(snapshot.counters.rx_messages, 10);
        assert_eq!(snapshot.counters.rx_bytes, 1000);
        assert_eq!(snapshot.counters.tx_messages, 3);
        assert_eq!(snapshot.counters.tx_bytes, 150);
        assert_eq!(snapshot.sockets.len(), 2);
        let counters: HashMap<_, _> = snapshot
            .sockets
            .iter()
            .map(|s| (s.index, s.counters))
            .collect();
        assert_eq!(counters[&0].rx_messages, 7);
        assert_eq!(counters[&1].tx_bytes, 150);
        assert_eq!(snapshot.connections.len(), 1);
        assert_eq!(snapshot.connections[0].id, id);
        assert_eq!(snapshot.connections[0].counters, snapshot.counters);
        let connection = mux.connection(id).expect("it is there");
        assert_eq!(connection.stats().counters, snapshot.counters);
        assert_eq!(connection.stats().queued_bytes, 0);
    });
}

#[test]
fn values_do_not_lag_by_a_burst() {
    alone(20, || {
        for sockets in [1, 2] {
            let mux = mux();
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            let _others: Vec<_> = (1..sockets)
                .map(|_| mux.socket().expect("a socket"))
                .collect();
            write(&peer, &numbered(1, 0, 20).repeat(100));
            for number in 1..=100 {
                soon(&mut socket);
                let (_, lines) = lines();
                for object in ["mux", "kcm-0", "psock-0"] {
                    let line = find(&lines, object);
                    assert_eq!(line.numbers, [number, number * 20, 0, 0], "{object}");
                }
                assert_eq!(mux.stats().counters.rx_messages, number);
            }
        }
    });
}

#[test]
fn numbers_are_the_lowest_free_ones() {
    alone(20, || {
        let mux = mux();
        let first = mux.socket().expect("a socket");
        let _second = mux.socket().expect("a socket");
        let (id, _peer) = attached(&mux);
        let (_, _other) = attached(&mux);
        drop(first);
        mux.unattach(id).expect("unattached");
        let objects = |lines: Vec<Line>| -> Vec<String> {
            lines
                .into_iter()
                .map(|line| line.object.trim_start().to_owned())
                .collect()
        };
        assert_eq!(objects(lines().1), ["mux", "kcm-1", "psock-1"]);
        let _again = mux.socket().expect("a socket");
        let (_, _peer) = attached(&mux);
        let mut now = objects(lines().1);
        now.sort_unstable();
        assert_eq!(now, ["kcm-0", "kcm-1", "mux", "psock-0", "psock-1"]);
        drop((_again, _second, mux));
        wait_until("it is gone", || lines().0 == 0);
        assert!(lines().1.is_empty());
    });
}

#[test]
fn bytes_cut_from_a_datagram_are_counted() {
    alone(20, || {
        for kind in [SocketType::Dgram, SocketType::SeqPacket] {
            let builder = Multiplexor::builder(framing()).socket_type(kind);
            let mux = builder.build().expect("a mux");
            let (_, peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            socket.set_read_timeout(Some(SOON)).expect("a limit");
            write(&peer, &numbered(1, 1, 100));
            let mut end = false;
            while !end {
                end = socket
                    .recv_into(&mut [0; 60])
                    .expect("a part")
                    .end_of_message;
            }
            let (_, lines) = lines();
            for object in ["mux", "kcm-0", "psock-0"] {
                assert_eq!(
                    find(&lines, object).numbers,
                    [1, 100, 0, 0],
                    "{object} {kind:?}"
                );
            }
        }
    });
}

/// `/proc/net/kcm_stats` by "line column".
fn totals() -> HashMap<String, u64> {
    let text = proc_net_kcm_stats();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!(
        lines[0].trim_end(),
        "MUX      RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         TX-Retries Attach     \
         Unattach   UnattchRsvd RX-RdyDrops"
    );
    assert_eq!(
        lines[2].trim_end(),
        "Psock    RX-Msgs    RX-Bytes         TX-Msgs    TX-Bytes         Reserved   Unreserved \
         RX-Aborts  RX-Intr    RX-Unrecov RX-MemFail RX-NeedMor RX-BadLen  RX-TooBig  RX-Timeout \
         TX-Aborts"
    );
    let mut totals = HashMap::new();
    for pair in lines.chunks(2) {
        let mut names = pair[0].split_whitespace();
        let object = names.next().expect("an object");
        let values: Vec<u64> = pair[1]
            .split_whitespace()
            .map(|value| value.parse().expect("a number"))
            .collect();
        let names: Vec<_> = names.collect();
        assert_eq!(names.len(), values.len(), "{text}");
        for (name, value) in names.into_iter().zip(values) {
            // The values stand under their names.
            totals.insert(format!("{object} {name}"), value);
        }
    }
    totals
}

/// How much each total has grown, without those that have not.
fn growth(before: &HashMap<String, u64>) -> HashMap<String, u64> {
    let grown = totals().into_iter().map(|(name, now)| {
        let by = now - before[&name];
        (name, by)
    });
    grown.filter(|&(_, by)| by > 0).collect()
}

#[test]
fn totals_outlive_what_they_count() {
    alone(20, || {
        let before = totals();
        {
            let mux = mux();
            for _ in 0..5 {
                let (id, mut peer) = attached(&mux);
                let mut socket = mux.socket().expect("a socket");
                write(&peer, &numbered(1, 1, 200));
                let request = soon(&mut socket);
                request.reply(&numbered(2, 2, 70)).expect("replied");
                read_message(&mut peer).expect("the reply");
                drop(request);
                mux.unattach(id).expect("unattached");
            }
            let (_, _left) = attached(&mux);
        }
        wait_until("it is gone", || lines().0 == 0);
        let grown = growth(&before);
        for object in ["MUX", "Psock"] {
            for (column, value) in [
                ("RX-Msgs", 5),
                ("RX-Bytes", 1000),
                ("TX-Msgs", 5),
                ("TX-Bytes", 350),
            ] {
                assert_eq!(
                    grown.get(&format!("{object} {column}")),
                    Some(&value),
                    "{column}"
                );
            }
        }
        assert_eq!(grown["MUX Attach"], 6);
        // In the kernel the last two columns are mixed up.
        assert!((5..=6).contains(&grown["MUX Unattach"]), "{grown:?}");
        assert_eq!(grown.get("MUX UnattchRsvd"), None);
        assert_eq!(grown.get("MUX TX-Retries"), None);
        for column in [
            "RX-Aborts",
            "RX-BadLen",
            "RX-TooBig",
            "RX-Timeout",
            "TX-Aborts",
        ] {
            assert_eq!(grown.get(&format!("Psock {column}")), None, "{column}");
        }
    });
}

#[test]
fn each_fault_has_its_column() {
    alone(30, || {
        let end = |framing: kcm::Framing, bytes: &[u8]| {
            let limits = Limits::default().with_assembly_deadline(Some(A_WHILE));
            let mux = Multiplexor::builder(framing).limits(limits).build();
            let mux = mux.expect("a mux");
            let (_, peer) = attached(&mux);
            let receiver = receive_all(&mux);
            let _shut = Shut(mux.clone());
            let before = totals();
            write(&peer, bytes);
            event_soon(&mux);
            let grown = growth(&before);
            mux.shutdown();
            receiver.join().expect("received");
            grown
        };
        let little = || "u32le".parse().expect("a framing");
        let too_big = end(framing(), &[0xff; 4]);
        assert_eq!(
            (
                too_big.get("Psock RX-TooBig"),
                too_big.get("Psock RX-Aborts")
            ),
            (Some(&1), Some(&1))
        );
        let bad = end(little(), &[1, 0, 0, 0]);
        assert_eq!(
            (bad.get("Psock RX-BadLen"), bad.get("Psock RX-Aborts")),
            (Some(&1), Some(&1))
        );
        let late = end(framing(), &[0, 0, 0, 9, 1]);
        assert_eq!(
            (late.get("Psock RX-Timeout"), late.get("Psock RX-Aborts")),
            (Some(&1), Some(&1))
        );
    });
}

#[test]
fn a_message_sent_again_is_a_retry() {
    alone(30, || {
        let before = totals();
        let mux = mux();
        let (_, peer) = attached(&mux);
        let receiver = receive_all(&mux);
        let _shut = Shut(mux.clone());
        let socket = mux.socket().expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        socket.send(&numbered(1, 1, 8 << 20)).expect("taken");
        let (_, mut other) = attached(&mux);
        reset(peer);
        event_soon(&mux);
        let got = read_message(&mut other).expect("the message");
        assert_eq!(number_of(&got), (1, 1));
        let grown = growth(&before);
        assert_eq!(grown.get("MUX TX-Retries"), Some(&1));
        assert_eq!(grown.get("Psock TX-Aborts"), Some(&1));
        // Sent once, of the length that it has.
        assert_eq!(grown.get("MUX TX-Msgs"), Some(&1));
        assert_eq!(grown.get("MUX TX-Bytes"), Some(&(8 << 20)));
        mux.shutdown();
        receiver.join().expect("received");
    });
}
