//! Where messages come from and how workers get them: languages, addresses, framings, limits.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    process::Command,
};

use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
    },
};

use crate::harness::*;

/// Several clients, several messages in flight: every reply is right, and on its connection.
fn capitals(server: &Server, messages: usize) {
    let mut clients: Vec<_> = (0..4).map(|_| server.client()).collect();
    for round in 0..messages {
        for (n, client) in clients.iter_mut().enumerate() {
            client.send(format!("client {n} round {round}"));
        }
        for (n, client) in clients.iter_mut().enumerate() {
            let expected = format!("CLIENT {n} ROUND {round}");
            assert_eq!(client.recv(), expected.as_bytes());
        }
    }
}

#[test]
fn a_worker_in_python() {
    with_python(|| {
        let server = Server::start(&["--workers", "2"], &["python3", &example("worker.py")]);
        capitals(&server, 100);
        // As long as a datagram carries.
        let long = vec![b'a'; 200_000];
        let mut client = server.client();
        client.send(&long);
        assert_eq!(client.recv(), long.to_ascii_uppercase());
    });
}

#[test]
fn a_worker_in_shell() {
    bounded(|| {
        let server = Server::start(&["--workers", "2"], &[&example("worker.sh")]);
        capitals(&server, 5);
    });
}

#[test]
fn a_worker_in_c() {
    if !has("cc") {
        return;
    }
    bounded(|| {
        let directory = Directory::new("c");
        let program = directory.file("worker");
        let built = Command::new("cc")
            .args([
                "-Wall",
                "-Werror",
                "-O2",
                "-o",
                &program,
                &example("worker.c"),
            ])
            .status();
        assert!(built.expect("cc starts").success());
        let server = Server::start(&["--workers", "2"], &[&program]);
        capitals(&server, 200);
    });
}

#[test]
fn dig_asks_a_worker_in_python() {
    if !has("dig") {
        return;
    }
    with_python(|| {
        let worker = example("dns.py");
        let server = Server::start_as(&["--framing", "dns"], &["python3", &worker]);
        let port = server.address.port().to_string();
        let names: Vec<String> = (0..50).map(|n| format!("name-{n}.example")).collect();
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &port, "+tcp", "+time=20", "+tries=1"]);
        let output = dig.args(["+keepopen", "+short"]).args(&names).output();
        let output = output.expect("dig starts");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "127.0.0.1\n".repeat(50)
        );
    });
}

#[test]
fn several_addresses_and_a_path() {
    with_python(|| {
        let directory = Directory::new("path");
        let path = directory.file("socket");
        let unix = format!("unix:{path}");
        let options = ["--listen", "[::1]:0", "--listen", &unix, "--workers", "1"];
        let worker = example("worker.py");
        let mut server = Server::start(&options, &["python3", &worker]);
        server.line("listening on unix:");
        assert_eq!(server.client().ask("tcp"), "TCP");
        let v6 = server.line("listening on [::1]:");
        let v6 = v6.rsplit(' ').next().expect("an address").parse();
        assert_eq!(Client::connect(v6.expect("an address")).ask("six"), "SIX");
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.write_all(&message("unix")).expect("sent");
        let mut reply = [0; 8];
        stream.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..], message("UNIX"));
        // The path goes with it; one that a server in use has is left alone.
        let output = usage(&["--listen", &unix, "--framing", "u32be+4", "--", "cat"]);
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            stream.write_all(&message("unix")).map_err(|e| e.kind()),
            Ok(())
        );
        stream.read_exact(&mut reply).expect("a reply");
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success());
        assert!(!fs::exists(&path).expect("a directory"));
    });
}

#[test]
fn only_what_a_server_has_left_is_removed() {
    with_python(|| {
        let directory = Directory::new("left");
        let path = directory.file("socket");
        let unix = format!("unix:{path}");
        let refused = || {
            let output = usage(&["--listen", &unix, "--framing", "u8", "--", "cat"]);
            let message = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{message}");
            assert!(message.contains("in use"), "{message}");
        };
        // A file that is no socket.
        fs::write(&path, "precious").expect("written");
        refused();
        assert_eq!(fs::read(&path).expect("it is there"), b"precious");
        fs::remove_file(&path).expect("removed");

        // A server that does not accept, so that connections to it would wait. (No other test's
        // children are to inherit it.)
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let busy = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let busy = busy.expect("a socket");
        let address = SocketAddrUnix::new(&*path).expect("an address");
        bind(&busy, &address).expect("bound");
        listen(&busy, 0).expect("it listens");
        let waiting: Vec<_> = (0..8)
            .map(|_| {
                let client = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
                let client = client.expect("a socket");
                let full = connect(&client, &address) == Err(Errno::AGAIN);
                (client, full)
            })
            .collect();
        assert!(waiting.iter().any(|(_, full)| *full), "its backlog is full");
        refused();
        assert!(fs::exists(&path).expect("a directory"));

        // A server that is gone.
        drop(busy);
        let server = Server::start(&["--listen", &unix], &["python3", &example("worker.py")]);
        server.line("listening on unix:");
        let mut stream = UnixStream::connect(&path).expect("it listens");
        stream.write_all(&message("unix")).expect("sent");
        let mut reply = [0; 8];
        stream.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..], message("UNIX"));
    });
}

#[test]
fn the_longest_message_is_what_a_datagram_carries() {
    // It is said in what refuses a longer one.
    let options = ["--listen", "127.0.0.1:0", "--framing", "u32be+4"];
    let too_long = [&options[..], &["--max-message", "1G", "--", "cat"]].concat();
    let why = String::from_utf8_lossy(&usage(&too_long).stderr).into_owned();
    let most = why
        .split("at most ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    let most: usize = most.and_then(|n| n.parse().ok()).expect(&why);
    bounded(move || {
        let exact = most.to_string();
        for options in [&[][..], &["--max-message", &exact]] {
            let server = Server::start(&[options, &["--workers", "1"]].concat(), &["cat"]);
            let (mut client, mut greedy) = (server.client(), server.client());
            let longest = vec![b'a'; most - 4];
            client.send(&longest);
            greedy.send(vec![b'a'; most - 3]);
            greedy.is_closed();
            // (cat reads less than that at once, and is killed for what it writes then.)
            server.line("connection ");
            assert!(server.line("the limit is").contains(&exact));
        }
    });
}

#[test]
fn a_server_for_nobody_is_refused() {
    let command = "--listen 127.0.0.1:0 --framing u32be+4 --max-connections 0 -- cat";
    let refused = usage(&command.split(' ').collect::<Vec<_>>());
    assert_eq!(refused.status.code(), Some(2));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("--max-connections"), "{why}");
}

#[test]
fn messages_longer_than_a_datagram_need_a_stream() {
    let refused = usage(&[
        "--listen",
        "127.0.0.1:0",
        "--framing",
        "u32be+4",
        "--max-message",
        "300K",
        "--",
        "cat",
    ]);
    assert_eq!(refused.status.code(), Some(2));
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(why.contains("--worker-transport stream"), "{why}");
    with_python(|| {
        let worker = "import os, struct\n\
                      f = os.fdopen(0, 'rb'); out = os.fdopen(1, 'wb')\n\
                      while len(h := f.read(4)) == 4:\n \
                       m = f.read(struct.unpack('!I', h)[0])\n \
                       m = m[:4] + m[4:].upper()\n \
                       out.write(struct.pack('!I', len(m)) + m); out.flush()\n";
        let options = [
            "--worker-transport",
            "stream",
            "--max-message",
            "4M",
            "--workers",
            "2",
        ];
        let server = Server::start(&options, &["python3", "-c", worker]);
        let mut client = server.client();
        for len in [1, 1000, 70_000, 3 << 20] {
            let long = vec![b'a'; len];
            client.send(&long);
            assert_eq!(client.recv(), long.to_ascii_uppercase());
        }
        capitals(&server, 50);
    });
}

#[test]
fn addressed_workers_answer_in_any_order() {
    with_python(|| {
        // Takes three messages, and answers the last one first.
        let worker = "import os\n\
                      while True:\n \
                       three = [os.read(0, 1 << 18) for _ in range(3)]\n \
                       if not three[0]: break\n \
                       for m in reversed(three): os.write(1, m[:8] + m[8:].upper())\n";
        let options = ["--addressed", "--in-flight", "3", "--workers", "1"];
        let server = Server::start(&options, &["python3", "-c", worker]);
        let mut clients: Vec<_> = (0..3).map(|_| server.client()).collect();
        for round in 0..20 {
            for (n, client) in clients.iter_mut().enumerate() {
                client.send(format!("{n}.{round} abc"));
            }
            for (n, client) in clients.iter_mut().enumerate() {
                assert_eq!(client.recv(), format!("{n}.{round} ABC").as_bytes());
            }
        }
        // The same of one connection.
        let mut client = server.client();
        for text in ["a", "b", "c"] {
            client.send(text);
        }
        assert_eq!(
            [client.recv(), client.recv(), client.recv()].concat(),
            b"CBA"
        );
    });
}

#[test]
fn ordered_connections_are_answered_in_order() {
    with_python(|| {
        let worker = python("time.sleep(0.02 * (message[-1] % 3)); reply(message[4:])");
        let server = Server::start(
            &["--ordered", "--workers", "4"],
            &["python3", "-c", &worker],
        );
        let mut clients = [server.client(), server.client()];
        for client in &mut clients {
            (0..30).for_each(|n| client.send([n]));
        }
        for client in &mut clients {
            (0..30).for_each(|n| assert_eq!(client.recv(), [n]));
        }
    });
}

#[test]
fn what_cannot_be_is_said_with_what_to_do() {
    let listen = ["--listen", "127.0.0.1:0"];
    for (arguments, code, why) in [
        (&["--framing", "u8", "--", "cat"][..], 2, "--listen"),
        (&["--framing", "u8"], 2, "COMMAND"),
        (&["--framing", "dsn", "--", "cat"], 2, "--list"),
        (
            &["--framing", "u8", "--workers", "0", "--", "cat"],
            2,
            "1..=1024",
        ),
        (
            &["--framing", "u8", "--", "/nonexistent/worker"],
            2,
            "/nonexistent/worker",
        ),
        (
            &["--framing", "u8", "--in-flight", "2", "--", "cat"],
            2,
            "--addressed",
        ),
        (
            &["--framing", "u8", "--no-reply", "--ordered", "--", "cat"],
            2,
            "--ordered",
        ),
        (
            &["--framing", "u8", "--memory", "100K", "--", "cat"],
            2,
            "--max-message",
        ),
        (
            &["--framing", "u8", "--listen", "7000", "--", "cat"],
            2,
            "HOST:PORT",
        ),
        (
            &["--framing", "u8", "--listen", "192.0.2.1:1", "--", "cat"],
            1,
            "192.0.2.1:1",
        ),
    ] {
        let with_listen = [&listen[..], arguments].concat();
        let output = usage(if why == "--listen" {
            arguments
        } else {
            &with_listen
        });
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?} said\n{message}"
        );
        assert!(message.contains(why), "{arguments:?} said\n{message}");
    }
}

#[test]
fn the_help_has_all_and_its_examples_are_accepted() {
    let help = usage(&["--help"]);
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    for word in [
        "Examples:",
        "Exit codes:",
        "one read is one whole message",
        "--drain-timeout",
    ] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
    // With a worker that is not there, which is told when all before it is as it should be.
    let directory = Directory::new("help");
    let path = format!("unix:{}", directory.file("socket"));
    let outcome = |options: &str| {
        // A port that is free; somebody may be quicker.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = format!(":{}", free.expect("a free port").port());
        let options = options.replace(":53", &port).replace(":7000", &port);
        let options = options.replace("unix:/run/jobs.sock", &path);
        let script = format!("exec \"$0\" serve {options} -- /nonexistent/worker");
        let mut command = Command::new("sh");
        command.args(["-c", &script, env!("CARGO_BIN_EXE_kcm")]);
        let output = command.output().expect("it starts");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let mut examples = 0;
    for line in help.replace("\\\n", " ").lines() {
        let Some(arguments) = line.trim().strip_prefix("kcm serve ") else {
            continue;
        };
        let (options, _) = arguments.split_once(" -- ").expect("a worker");
        let said: Vec<String> = (0..5).map(|_| outcome(options)).collect();
        let accepted = |said: &String| said.contains("/nonexistent/worker cannot be started");
        assert!(said.iter().any(accepted), "{line}\n{said:?}");
        examples += 1;
    }
    assert_eq!(examples, 4, "{help}");
}
