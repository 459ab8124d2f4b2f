//! SIGTERM and SIGINT.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::*;

const WORKER: &str = "time.sleep(float(message[4:])); reply(b'done')";

#[test]
fn what_is_in_hand_is_finished() {
    with_python(|| {
        for signal in [Signal::TERM, Signal::INT] {
            // On a busy machine a worker may take longer to leave than it is given.
            let saw_the_end = (0..5).any(|_| finished_workers(signal) == 2);
            assert!(saw_the_end, "workers see the end of their input");
        }
    });
}

/// Stops a server while a message is in hand: workers that left of themselves.
fn finished_workers(signal: Signal) -> usize {
    let worker = python(WORKER);
    let mut server = Server::start(&["--workers", "2"], &["python3", "-c", &worker]);
    let (mut busy, mut idle) = (server.client(), server.client());
    assert_eq!(busy.ask("0"), "done");
    assert_eq!(idle.ask("0"), "done");
    busy.send("1");
    std::thread::sleep(A_WHILE);
    server.signal(signal);
    // Without an option: 5 s.
    server.line("stopping: 1 messages in hand have 5s");
    // Nobody new is let in.
    eventually("the port is closed", || {
        std::net::TcpStream::connect(server.address).is_err()
    });
    assert_eq!(busy.recv(), b"done");
    idle.is_closed();
    assert_eq!(server.wait().code(), Some(0));
    server.line("nothing was left");
    server.lines("exit status: 0").len()
}

#[test]
fn what_takes_too_long_is_left() {
    with_python(|| {
        // It ignores SIGTERM, too.
        let worker = format!(
            "import signal; signal.signal(15, signal.SIG_IGN)\n{}",
            python(WORKER)
        );
        let options = ["--workers", "1", "--drain-timeout", "0.3"];
        let mut server = Server::start(&options, &["python3", "-c", &worker]);
        let mut client = server.client();
        assert_eq!(client.ask("0"), "done");
        client.send("60");
        std::thread::sleep(A_WHILE);
        let begin = Instant::now();
        server.signal(Signal::TERM);
        assert_eq!(server.wait().code(), Some(1));
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{:?}",
            begin.elapsed()
        );
        server.line("the time to stop is over");
        server.line("signal: 9");
        assert!(server.line("has no answer").contains("6 bytes"));
        client.is_closed();
    });
}

#[test]
fn a_second_signal_means_at_once() {
    with_python(|| {
        let worker = python(WORKER);
        let options = ["--workers", "1", "--drain-timeout", "60"];
        let mut server = Server::start(&options, &["python3", "-c", &worker]);
        let mut client = server.client();
        client.send("60");
        std::thread::sleep(A_WHILE);
        server.signal(Signal::TERM);
        server.line("stopping");
        server.signal(Signal::TERM);
        assert_eq!(server.wait().code(), Some(1));
    });
}

#[test]
fn what_the_last_worker_leaves_is_reported_and_not_waited_for() {
    with_python(|| {
        // It dies of the message, or leaves without having read it.
        for (end, read) in [("os._exit(3)", true), ("sys.exit()", false)] {
            let worker = match read {
                true => python(&format!("time.sleep(1); {end}")),
                false => format!("import sys, time\ntime.sleep(2)\n{end}\n"),
            };
            let options = ["--workers", "1", "--retry", "--drain-timeout", "60"];
            let mut server = Server::start(&options, &["python3", "-c", &worker]);
            let mut client = server.client();
            client.send("last");
            std::thread::sleep(A_WHILE);
            server.signal(Signal::TERM);
            server.line("stopping: 1 messages in hand");
            // `wait` waits for half of the drain's time.
            assert_eq!(server.wait().code(), Some(1));
            let why = if read {
                "has no answer"
            } else {
                "given to nobody"
            };
            assert!(server.line(why).contains(" 8 bytes"));
            assert_eq!(server.lines("is given to another").len(), 0);
            client.is_closed();
        }
    });
}
