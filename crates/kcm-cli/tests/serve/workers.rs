//! Workers that die, hang or misbehave: the others, and all connections, notice nothing.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use crate::harness::*;

/// Echoes; does something else when a message begins with `!`.
fn unless(special: &str) -> String {
    python(&format!(
        "if message[4:5] == b'!':\n {special}\nelse: reply(message[4:])"
    ))
}

#[test]
fn each_has_a_socket_of_its_own_as_standard_input_and_output() {
    with_python(|| {
        for (transport, kind) in [("seqpacket", "SOCK_SEQPACKET"), ("stream", "SOCK_STREAM")] {
            // Answers slowly, so that each of them has its turn.
            let worker = "import os, socket, time\n\
                          fds = [os.fstat(n).st_ino for n in (0, 1)]\n\
                          kind = socket.SocketKind(socket.socket(fileno=os.dup(0)).getsockopt(\
                          socket.SOL_SOCKET, socket.SO_TYPE)).name\n\
                          own = f'{kind} {fds[0]} {fds[1]} {os.getpid()}'.encode()\n\
                          own = len(own).to_bytes(4, 'big') + own\n\
                          if kind == 'SOCK_STREAM': own = len(own).to_bytes(4, 'big') + own\n\
                          while os.read(0, 1 << 18): time.sleep(0.2); os.write(1, own)\n";
            let options = ["--workers", "3", "--worker-transport", transport];
            let server = Server::start(&options, &["python3", "-c", worker]);
            let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
            let mut seen = std::collections::HashSet::new();
            eventually("all three have answered", || {
                clients.iter_mut().for_each(|client| client.send("who"));
                for client in &mut clients {
                    let answer = String::from_utf8(client.recv()).expect("text");
                    let words: Vec<_> = answer.split(' ').map(str::to_owned).collect();
                    assert_eq!((&words[0][..], &words[1]), (kind, &words[2]), "{answer}");
                    seen.insert((words[1].clone(), words[3].clone()));
                }
                seen.len() >= 3
            });
            assert_eq!(seen.len(), 3, "{seen:?}");
        }
    });
}

#[test]
fn a_message_goes_to_an_idle_worker() {
    with_python(|| {
        let worker = unless("time.sleep(4); reply(b'late')");
        let server = Server::start(&["--workers", "2"], &["python3", "-c", &worker]);
        let (mut slow, mut quick) = (server.client(), server.client());
        quick.ask("both have started");
        let begin = Instant::now();
        slow.send("!");
        // Behind it on its own connection, and on another.
        slow.send("behind");
        for n in 0..100 {
            quick.ask(&n.to_string());
        }
        assert_eq!(slow.recv(), b"behind");
        let took = begin.elapsed();
        assert_eq!(slow.recv(), b"late");
        assert!(took < Duration::from_secs(4), "they waited for {took:?}");
    });
}

#[test]
fn one_that_dies_is_reported_and_restarted() {
    with_python(|| {
        let worker = unless("os._exit(3)");
        let server = Server::start(&["--workers", "1", "--json"], &["python3", "-c", &worker]);
        let (mut killer, mut other) = (server.client(), server.client());
        assert_eq!(other.ask("before"), "before");
        killer.send("!12345");
        let line = server.line("message-lost");
        let json: serde_json::Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&json["len"], &json["worker"]), (&10.into(), &1.into()));
        let peer = killer.0.local_addr().expect("an address").to_string();
        assert!(
            json["message"].as_str().expect("text").contains(&peer),
            "{line}"
        );
        assert!(json["time"].as_f64() > Some(1.7e9));
        assert!(server.line("worker-ended").contains("exit status: 3"));
        // Both connections are as before.
        assert_eq!(other.ask("after"), "after");
        assert_eq!(killer.ask("after"), "after");
    });
}

#[test]
fn the_others_go_on_when_one_dies() {
    with_python(|| {
        let worker = unless("os._exit(3)").replace(
            "else: reply",
            "elif message[4:5] == b'?': time.sleep(1); reply(b'slow')\n else: reply",
        );
        let server = Server::start(&["--workers", "2"], &["python3", "-c", &worker]);
        let (mut slow, mut killer) = (server.client(), server.client());
        slow.send("?");
        for n in 0..3 {
            killer.send("!");
            assert_eq!(killer.ask(&n.to_string()), n.to_string());
        }
        assert_eq!(slow.recv(), b"slow");
        eventually("three are reported", || {
            server.lines("has no answer").len() == 3
        });
    });
}

#[test]
fn with_retry_another_gets_it_once() {
    with_python(|| {
        let directory = Directory::new("retry");
        let tries = directory.file("tries");
        let worker = unless(&format!(
            "open('{tries}', 'a').write(message[4:].decode() + '\\n'); \
             n = open('{tries}').read().count(message[4:].decode()); \
             os.kill(os.getpid(), 9) if n == 1 or message[5:6] == b'!' else reply(b'at last')"
        ));
        let server = Server::start(&["--workers", "2", "--retry"], &["python3", "-c", &worker]);
        let mut client = server.client();
        assert_eq!(client.ask("!once"), "at last");
        assert!(server.line("is given to another").contains("9 bytes"));
        client.send("!!always");
        server.line("has no answer");
        assert_eq!(client.ask("fine"), "fine");
        let tried = fs::read_to_string(&tries).expect("they tried");
        assert_eq!(tried, "!once\n!once\n!!always\n!!always\n");
        assert!(server.line("signal: 9").contains("worker"));
    });
}

#[test]
fn one_that_leaves_after_each_message_is_started_again_at_once() {
    with_python(|| {
        let worker = python("reply(message[4:]); sys.exit(0)");
        let server = Server::start(&["--workers", "1"], &["python3", "-c", &worker]);
        let mut client = server.client();
        for n in 0..10 {
            assert_eq!(client.ask(&n.to_string()), n.to_string());
        }
        assert!(server.lines("in a row").is_empty());
        assert!(server.lines("has no answer").is_empty());
    });
}

#[test]
fn one_that_fails_at_once_is_tried_again_ever_more_rarely() {
    bounded(|| {
        let begin = Instant::now();
        let server = Server::start(&["--workers", "1"], &["false"]);
        let mut client = server.client();
        client.send("waits for a worker");
        let line = server.line("after 4 failures in a row");
        assert!(line.contains("400ms"), "{line}");
        thread::sleep(A_WHILE);
        let ends = server.lines("exit status: 1").len();
        // Pauses of 0, 0.1, 0.2, 0.4, 0.8, 1.6 s and so on, up to 5 s.
        let most = 5 + usize::try_from(begin.elapsed().as_secs()).expect("few") * 2;
        assert!(ends <= most, "{ends} starts in {:?}", begin.elapsed());
        // The message that nobody has read is not lost.
        assert!(server.lines("has no answer").is_empty());
        client.hears_nothing();
    });
}

#[test]
fn messages_that_kill_workers_do_not_keep_others_from_theirs() {
    with_python(|| {
        let options = ["--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", &unless("os._exit(3)")]);
        let (mut good, mut bad) = (server.client(), server.client());
        // Were the pauses doubled, the last would be 5 s.
        for _ in 0..9 {
            let asked = Instant::now();
            assert_eq!(good.ask("meanwhile"), "meanwhile");
            let took = asked.elapsed();
            assert!(took < Duration::from_secs(3), "held up for {took:?}");
            bad.send("!");
        }
        server.line("it is started again in 100ms");
    });
}

#[test]
fn one_that_dies_before_it_reads_loses_nothing() {
    with_python(|| {
        let directory = Directory::new("unread");
        let flag = directory.file("flag");
        // The first leaves with a message in its socket.
        let script = format!(
            "import os, time\nif not os.path.exists('{flag}'):\n open('{flag}', 'w')\n \
             import select; select.select([0], [], []); os._exit(1)\n{}",
            unless("pass")
        );
        let server = Server::start(&["--workers", "1"], &["python3", "-c", &script]);
        assert_eq!(server.client().ask("still there"), "still there");
        server.line("exit status: 1");
        assert!(server.lines("has no answer").is_empty());
    });
}

#[test]
fn no_reply_a_worker_is_idle_when_it_reads_again() {
    with_python(|| {
        let directory = Directory::new("no-reply");
        let done = directory.file("done");
        let worker = python(&format!(
            "if message[4:] == b'slow': time.sleep(4)\n\
             open('{done}', 'a').write(message[4:].decode() + '\\n')"
        ));
        let options = ["--no-reply", "--workers", "2"];
        let mut server = Server::start(&options, &["python3", "-c", &worker]);
        let mut client = server.client();
        let lines = || fs::read_to_string(&done).unwrap_or_default();
        for n in 0..4 {
            client.send(format!("first {n}"));
        }
        eventually("both work", || lines().lines().count() == 4);
        let begin = Instant::now();
        client.send("slow");
        for n in 0..200 {
            client.send(format!("{n}"));
        }
        eventually("all but one are done", || lines().lines().count() == 204);
        assert!(
            begin.elapsed() < Duration::from_secs(4),
            "they waited: {:?}",
            begin.elapsed()
        );
        assert!(!lines().contains("slow"));
        // The drain waits for it too.
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success(), "{:#?}", server.lines(""));
        assert!(lines().contains("slow"));
        let mut all: Vec<_> = lines().lines().map(str::to_owned).collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 205, "each exactly once");
    });
}

/// Where nothing else brings a worker to its end: longer than one that is started on a machine with
/// much to do takes for a message.
fn deadline_if_needed(reported: &str) -> &'static [&'static str] {
    match reported {
        "--worker-deadline" => &["--worker-deadline", "10"],
        _ => &[],
    }
}

/// Workers that do as they should not; each is ended, and another takes its place.
#[test]
fn misbehaving_ones_are_replaced() {
    let cases = [
        (
            "os.write(1, frame(b'one')); os.write(1, frame(b'two'))",
            "without having a message",
        ),
        (
            "import socket; s = socket.socket(fileno=1); \
             s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20); s.send(b'x' * 400000)",
            "400000 bytes at once",
        ),
        ("os.close(0); os.close(1); time.sleep(60)", "does not end"),
        ("os.fork() or time.sleep(60); os._exit(4)", "exit status: 4"),
        (
            "import socket; socket.socket(fileno=0).shutdown(2); time.sleep(60)",
            "does not end",
        ),
        ("time.sleep(60)", "--worker-deadline"),
    ];
    for (misdeed, reported) in cases {
        with_python(move || {
            let worker = unless(misdeed);
            let options = [&["--workers", "1"][..], deadline_if_needed(reported)].concat();
            let server = Server::start(&options, &["python3", "-c", &worker]);
            let (mut bad, mut good) = (server.client(), server.client());
            assert_eq!(good.ask("before"), "before");
            bad.send("!");
            server.line(reported);
            assert_eq!(good.ask("after"), "after", "{misdeed}");
            // No child of it is left.
            server.line("ended, ");
            let children = format!("/proc/{0}/task/{0}/children", server.id());
            if let Ok(children) = fs::read_to_string(children) {
                assert_eq!(
                    children.split_whitespace().count(),
                    1,
                    "{misdeed}: {children}"
                );
            }
        });
    }
}

/// The same, where a worker has more to do wrong.
#[test]
fn misbehaving_ones_are_replaced_in_every_mode() {
    // What the first worker does; the next one does what it should.
    let cases = [
        (
            &["--addressed"][..],
            "os.write(1, b'short')",
            "8 of a connection's id come first",
        ),
        (
            &["--addressed"],
            "os.write(1, bytes(7) + b'\\xff' + frame(b'whose?'))",
            "of which it has no message",
        ),
        (
            &["--addressed"],
            "[os.write(1, message[:8] + frame(b'flood')) for _ in range(1000000)]",
            "of which it has no message",
        ),
        (
            &[],
            "[os.write(1, frame(b'flood')) for _ in range(1000000)]",
            "without having",
        ),
        (
            &[],
            "[os.write(1, b'') for _ in range(1000000)]",
            "wrote 0 bytes without having",
        ),
        (
            &["--no-reply"],
            "os.write(1, b'hello')",
            "with --no-reply nothing is to be written",
        ),
        (
            &["--worker-transport", "stream"],
            "os.write(1, b'\\xff' * 4)",
            "it wrote 4294967295 bytes at once",
        ),
        (
            &["--worker-transport", "stream"],
            "os.write(1, struct.pack('!I', 16 << 20)); os.write(1, b'x' * 70000); time.sleep(60)",
            "--worker-deadline",
        ),
    ];
    for (mode, misdeed, reported) in cases {
        with_python(move || {
            let directory = Directory::new("misdeeds");
            let (first, done) = (directory.file("first"), directory.file("done"));
            let worker = format!(
                "import os, struct, time\n\
                 def frame(body): return struct.pack('!I', len(body)) + body\n\
                 mode = '{}'\n\
                 try: os.mkdir('{first}'); bad = True\n\
                 except FileExistsError: bad = False\n\
                 while message := os.read(0, 1 << 18):\n \
                  if bad: {misdeed}\n \
                  open('{done}', 'ab').write(message)\n \
                  if mode != '--no-reply': os.write(1, message)\n",
                mode.first().unwrap_or(&"")
            );
            let options = [mode, &["--workers", "1"], deadline_if_needed(reported)].concat();
            let server = Server::start(&options, &["python3", "-c", &worker]);
            let (mut bad, mut good) = (server.client(), server.client());
            bad.send("to the first");
            assert!(server.line("is killed: ").contains(reported), "{misdeed}");
            good.send("to the next");
            match mode {
                ["--no-reply"] => eventually("it is done", || {
                    fs::read(&done)
                        .unwrap_or_default()
                        .ends_with(b"to the next")
                }),
                _ => assert_eq!(good.recv(), b"to the next", "{misdeed}"),
            }
            let memory = server.memory();
            assert!(memory < 64 << 20, "{misdeed}: {memory} bytes");
        });
    }
}

#[test]
fn ones_that_never_read_hold_up_nobody_else() {
    with_python(|| {
        let directory = Directory::new("never");
        let first = directory.file("first");
        // The first worker never reads.
        let script = format!(
            "import os, time\ntry:\n os.mkdir('{first}'); time.sleep(60)\n\
             except FileExistsError: pass\n{}",
            unless("pass")
        );
        for mode in [&["--workers", "2"][..], &["--workers", "2", "--addressed"]] {
            let _ = fs::remove_dir(&first);
            let script = match mode.len() {
                2 => script.clone(),
                _ => script.replace("os.write(1, frame", "os.write(1, ID + frame").replace(
                    "def handle(message):\n",
                    "def handle(message):\n global ID\n ID, message = message[:8], message[8:]\n",
                ),
            };
            let server = Server::start(mode, &["python3", "-c", &script]);
            // Those that it was given wait; all the others are answered.
            let mut clients: Vec<_> = (0..64).map(|_| server.client()).collect();
            for client in &mut clients {
                client.send("hello");
                client.0.set_nonblocking(true).expect("non-blocking");
            }
            let most = if mode.len() == 2 { 1 } else { 16 };
            eventually("all others are answered", || {
                let answered = |client: &&Client| matches!(client.0.peek(&mut [0; 9]), Ok(9));
                clients.iter().filter(answered).count() >= 64 - most
            });
        }
    });
}
