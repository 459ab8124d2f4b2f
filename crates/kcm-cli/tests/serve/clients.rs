//! Clients that misbehave: they take no more memory than the limits say, and hold up nobody.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::Shutdown,
    thread,
    time::{Duration, Instant},
};

use crate::{harness::*, keepalive};

/// Echoes; `big` is answered by 100 kB.
fn worker() -> String {
    python("reply(b'x' * 100000 if message[4:] == b'big' else message[4:])")
}

#[test]
fn one_above_the_limit_is_closed_with_a_report() {
    with_python(|| {
        let options = ["--max-message", "1000", "--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let (mut long, mut other) = (server.client(), server.client());
        assert_eq!(long.ask("short"), "short");
        long.send("a".repeat(997));
        long.is_closed();
        let peer = long.0.local_addr().expect("an address").to_string();
        assert!(server.line("ended: ").contains(&peer));
        assert_eq!(other.ask(&"b".repeat(996)), "b".repeat(996));
    });
}

#[test]
fn half_a_message_has_its_deadline() {
    with_python(|| {
        let options = ["--deadline", "0.5", "--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let (mut half, mut idle) = (server.client(), server.client());
        assert_eq!(idle.ask("served"), "served");
        half.0.write_all(b"\0\0\0\x09half").expect("sent");
        half.is_closed();
        server.line("within the deadline");
        // Nothing begun, nothing late.
        assert_eq!(idle.ask("still"), "still");
    });
}

#[test]
fn one_that_trickles_has_the_same_deadline() {
    with_python(|| {
        let options = ["--deadline", "0.5", "--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let mut trickling = server.client();
        trickling.0.write_all(b"\0\0\x10\0").expect("sent");
        let begin = Instant::now();
        while trickling.0.write_all(b"x").is_ok() {
            assert!(begin.elapsed() < SOON, "it is still let");
            thread::sleep(Duration::from_millis(20));
        }
        server.line("within the deadline");
    });
}

#[test]
fn ones_that_stop_inside_of_long_messages_hold_up_nobody() {
    with_python(|| {
        // Together they would fill the memory more than twice, for a minute each time.
        let options = ["--memory", "8M", "--workers", "1", "--deadline", "60"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let mut good = server.client();
        assert_eq!(good.ask("before"), "before");
        let before = server.memory();
        let begun = [&190_000_u32.to_be_bytes()[..], &[b'x'; 180_000]].concat();
        let mut stuck: Vec<_> = (0..100).map(|_| server.client()).collect();
        for client in &mut stuck {
            client.0.set_nonblocking(true).expect("non-blocking");
            // As much as the system takes.
            let _ = client.0.write(&begun);
        }
        let begin = Instant::now();
        let mut most = 0;
        while server
            .lines("its message is not whole, and others wait")
            .is_empty()
        {
            assert!(begin.elapsed() < SOON, "none is closed");
            assert_eq!(good.ask("meanwhile"), "meanwhile");
            most = most.max(server.memory());
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(server.client().ask("a new one"), "a new one");
        assert_eq!(good.ask("after"), "after");
        assert!(begin.elapsed() < SOON, "held up for {:?}", begin.elapsed());
        let more = most.saturating_sub(before);
        assert!(more < 32 << 20, "{more} bytes more");
    });
}

#[test]
fn slow_ones_that_hold_up_nobody_have_their_time() {
    with_python(|| {
        // Memory is short for one more message of that length, but nobody needs it.
        let options = ["--memory", "1M", "--max-message", "190K", "--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let mut slow: Vec<_> = (0..5).map(|_| server.client()).collect();
        let long = message(vec![b'x'; 190_000]);
        let (begin, rest) = long.split_at(180_000);
        for client in &mut slow {
            client.0.write_all(begin).expect("sent");
        }
        let mut other = server.client();
        for _ in 0..20 {
            assert_eq!(other.ask("meanwhile"), "meanwhile");
            thread::sleep(Duration::from_millis(100));
        }
        for client in &mut slow {
            client.0.write_all(rest).expect("sent");
            assert_eq!(client.recv().len(), 190_000);
        }
    });
}

#[test]
fn ones_that_are_gone_leave_nothing_behind() {
    with_python(|| {
        let worker = python("time.sleep(0.05); reply(message[4:])");
        let server = Server::start(&["--workers", "2"], &["python3", "-c", &worker]);
        let mut good = server.client();
        for round in 0..20 {
            let mut hasty = server.client();
            hasty.send("not waited for");
            drop(hasty);
            assert_eq!(good.ask(&round.to_string()), round.to_string());
        }
        // Their replies have nowhere to go, and that is nobody's fault.
        assert!(server.lines("worker").is_empty());
        let descriptors = || {
            let all = std::fs::read_dir(format!("/proc/{}/fd", server.id()));
            all.expect("it runs").count()
        };
        let few = 40;
        eventually("all are closed", || descriptors() < few);
    });
}

#[test]
fn ones_that_do_not_read_are_bounded_and_hold_up_nobody() {
    with_python(|| {
        let options = ["--memory", "8M", "--workers", "2", "--deadline", "2"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let mut good = server.client();
        assert_eq!(good.ask("before"), "before");
        let before = server.memory();
        let mut greedy: Vec<_> = (0..200).map(|_| server.client()).collect();
        for client in &mut greedy {
            // 30 MB of replies each, were they all made.
            let many = message("big").repeat(300);
            let _ = client.0.set_write_timeout(Some(A_WHILE));
            let _ = client.0.write_all(&many);
        }
        let mut most = 0;
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(3) {
            let asked = Instant::now();
            assert_eq!(good.ask("meanwhile"), "meanwhile");
            let took = asked.elapsed();
            assert!(took < Duration::from_secs(5), "held up for {took:?}");
            most = most.max(server.memory());
            thread::sleep(Duration::from_millis(5));
        }
        // Received and unread messages, each within --memory; and nothing of those that are closed.
        let more = most.saturating_sub(before);
        assert!(more < 32 << 20, "{more} bytes more");
        server.line("is closed with");
    });
}

#[test]
fn one_that_reads_late_gets_everything() {
    with_python(|| {
        let server = Server::start(&["--workers", "2"], &["python3", "-c", &worker()]);
        let mut client = server.client();
        const COUNT: usize = 300;
        for _ in 0..COUNT {
            client.send("big");
        }
        thread::sleep(Duration::from_millis(500));
        for _ in 0..COUNT {
            assert_eq!(client.recv().len(), 100_000);
        }
        assert_eq!(client.ask("and after"), "and after");
    });
}

#[test]
fn more_than_allowed_wait_for_a_place() {
    with_python(|| {
        let options = ["--max-connections", "3", "--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", &worker()]);
        let mut clients: Vec<_> = (0..5).map(|_| server.client()).collect();
        for client in &mut clients[..3] {
            assert_eq!(client.ask("in"), "in");
        }
        clients[3].send("waits");
        clients[3].hears_nothing();
        clients.remove(0);
        assert_eq!(clients[2].recv(), b"waits");
    });
}

#[test]
fn ones_that_say_nothing_keep_nobody_out() {
    with_python(|| {
        let worker = python("time.sleep(float(message[4:])); reply(message[4:])");
        let options = [
            "--max-connections",
            "3",
            "--deadline",
            "1",
            "--workers",
            "2",
        ];
        let server = Server::start(&options, &["python3", "-c", &worker]);
        let mut busy = server.client();
        let mut silent: Vec<_> = (0..2).map(|_| server.client()).collect();
        for client in &mut silent {
            assert_eq!(client.ask("0"), "0");
        }
        busy.send("4");
        // Nobody waits for a place: all may stay.
        thread::sleep(Duration::from_secs(2));
        assert!(server.lines("is closed").is_empty());
        let mut new = server.client();
        assert_eq!(new.ask("0.0"), "0.0");
        // One was enough, and who waits for an answer is not silent.
        assert_eq!(busy.recv(), b"4");
        assert_eq!(server.lines("others wait for a place").len(), 1);
        let stays = |client: &mut Client| {
            client.0.set_read_timeout(Some(A_WHILE)).expect("a timeout");
            let got = client.0.read(&mut [0; 1]);
            got.is_err_and(|e| e.kind() == ErrorKind::WouldBlock)
        };
        let stay: Vec<bool> = silent.iter_mut().map(stays).collect();
        assert_eq!(stay.iter().filter(|&&stays| stays).count(), 1, "{stay:?}");
    });
}

#[test]
fn ones_that_are_gone_without_a_word_are_found() {
    with_python(|| {
        let server = Server::start(&["--workers", "1"], &["python3", "-c", &worker()]);
        let mut client = server.client();
        assert_eq!(client.ask("hi"), "hi");
        let left = || keepalive::time_left(server.address.port());
        eventually("a timer runs", || left().is_some());
        assert!(
            left().is_some_and(|left| left <= Duration::from_secs(61)),
            "{:?}",
            left()
        );
    });
}

#[test]
fn a_flood_of_broken_ones_is_no_flood_of_lines() {
    with_python(|| {
        let server = Server::start(&["--workers", "1"], &["python3", "-c", &worker()]);
        let mut good = server.client();
        let begin = Instant::now();
        for n in 0..400 {
            let mut broken = server.client();
            broken.0.write_all(&[0xff; 64]).expect("sent");
            if n % 20 == 0 {
                assert_eq!(good.ask("meanwhile"), "meanwhile");
            }
        }
        let seconds = usize::try_from(begin.elapsed().as_secs()).expect("few") + 2;
        let lines = server.lines("connection ").len();
        assert!(
            lines > 0 && lines <= 51 * seconds,
            "{lines} lines in {seconds} s"
        );
    });
}

#[test]
fn one_that_has_said_all_still_gets_its_answers() {
    with_python(|| {
        let worker = python("time.sleep(0.1); reply(message[4:])");
        let server = Server::start(&["--workers", "1"], &["python3", "-c", &worker]);
        let mut client = server.client();
        (0..5).for_each(|n| client.send([n]));
        client.0.shutdown(Shutdown::Write).expect("half-closed");
        (0..5).for_each(|n| assert_eq!(client.recv(), [n]));
        assert_eq!(client.0.read(&mut [0; 1]).expect("the end"), 0);
    });
}

#[test]
fn one_that_has_said_all_and_is_not_answered_is_closed() {
    with_python(|| {
        let silent = python("os.write(1, b'')");
        let dying = python("os._exit(1)");
        let deaf = python("pass");
        for (options, worker) in [
            (&["--workers", "1"][..], &silent),
            (&["--workers", "1", "--ordered"], &silent),
            (&["--workers", "2"], &dying),
            (&["--workers", "1", "--no-reply"], &deaf),
        ] {
            let server = Server::start(options, &["python3", "-c", worker]);
            let mut client = server.client();
            client.send("the last word");
            client.0.shutdown(Shutdown::Write).expect("half closed");
            client.is_closed();
        }
    });
}
