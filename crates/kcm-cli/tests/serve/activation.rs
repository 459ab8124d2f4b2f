//! Listening sockets that somebody else has opened, as a service manager does.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    os::unix::net::UnixStream,
    process::{Command, Stdio},
    thread,
    time::Instant,
};

use crate::harness::*;

/// systemd's own tool for it: it listens, and starts the command when somebody connects.
fn activated(options: &[&str], worker: &str) -> Command {
    let mut command = Command::new("systemd-socket-activate");
    command.args(options);
    command.args([env!("CARGO_BIN_EXE_kcm"), "serve", "--listen", "systemd"]);
    command.args(["--framing", "u32be+4", "--workers", "1"]);
    command.args(["--", "python3", "-c", worker]);
    command
}

/// Connects as soon as somebody listens.
fn connect(path: &str) -> UnixStream {
    let until = Instant::now() + SOON;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => {
                stream.set_read_timeout(Some(SOON)).expect("a timeout");
                return stream;
            }
            Err(error) => assert!(Instant::now() < until, "{path}: {error}"),
        }
        thread::sleep(A_WHILE / 30);
    }
}

#[test]
fn systemd_starts_it_with_its_first_client() {
    if !has("systemd-socket-activate") {
        return;
    }
    with_python(|| {
        let directory = Directory::new("systemd");
        let path = directory.file("socket");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let port = port.expect("a free port").to_string();
        let worker = python(
            "reply(b' '.join(k.encode() for k in os.environ if k.startswith('LISTEN_')) \
             + message[4:].upper())",
        );
        let command = activated(&["-l", &path, "-l", &port, "--fdname=a:b"], &worker);
        let first = thread::spawn({
            let path = path.clone();
            move || connect(&path)
        });
        let mut server = Server::spawn(command);
        let mut first = first.join().expect("connected");
        first.write_all(&message("first")).expect("sent");
        let mut reply = [0; 9];
        first.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..], message("FIRST"));
        // The other socket, and more clients of both.
        server.line(&format!("listening on unix:{path}"));
        server.line(&format!("listening on {port}"));
        let mut client = Client::connect(port.parse().expect("an address"));
        assert_eq!(client.ask("tcp"), "TCP");
        let mut second = connect(&path);
        second.write_all(&message("after")).expect("sent");
        second.read_exact(&mut reply).expect("a reply");
        assert_eq!(reply[..], message("AFTER"));
        // It is the manager's to remove.
        server.signal(rustix::process::Signal::TERM);
        assert!(server.wait().success());
        assert!(std::fs::exists(&path).expect("a directory"));
    });
}

#[test]
fn what_is_no_listening_stream_socket_is_refused() {
    if !has("systemd-socket-activate") {
        return;
    }
    bounded(|| {
        let directory = Directory::new("accept");
        // As with Accept=yes: a connection is passed on, and not the socket that listens.
        let path = directory.file("socket");
        let mut command = activated(&["--accept", "-l", &path], "");
        command.stderr(Stdio::piped());
        let mut manager = command.spawn().expect("it starts");
        let mut client = connect(&path);
        // The connection ends with the command.
        assert_eq!(client.read(&mut [0; 1]).expect("the end"), 0);
        let stderr = manager.stderr.take().expect("a pipe");
        let refused = BufReader::new(stderr)
            .lines()
            .map_while(Result::ok)
            .any(|line| line.contains("Accept=no"));
        // It would wait for the next.
        let _ = manager.kill();
        let _ = manager.wait();
        assert!(refused);
    });
}

#[test]
fn an_inherited_socket_is_no_workers_business() {
    with_python(|| {
        // As systemd does it: descriptor 3 listens, and the environment says so.
        let script = "import os, socket, sys\n\
                      s = socket.create_server(('127.0.0.1', 0))\n\
                      s.fileno() == 3 or os.dup2(s.fileno(), 3)\n\
                      os.set_inheritable(3, True)\n\
                      os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
                      os.execv(sys.argv[1], sys.argv[1:])\n";
        let worker = python(
            "links = [os.readlink(f'/proc/self/fd/{n}') for n in range(2, 64) \
             if os.path.lexists(f'/proc/self/fd/{n}')]\n\
             sockets = [link for link in links if link.startswith('socket')]\n\
             reply(repr(sockets).encode() + os.environ.get('LISTEN_FDS', '').encode())",
        );
        let mut command = Command::new("python3");
        command.args(["-c", script, env!("CARGO_BIN_EXE_kcm"), "serve"]);
        command.args(["--listen", "systemd", "--framing", "u32be+4"]);
        command.args(["--", "python3", "-c", &worker]);
        let server = Server::spawn(command);
        // The worker has no socket beside its own.
        assert_eq!(server.client().ask("hi"), "[]");
    });
    let output = usage(&["--listen", "systemd", "--framing", "u8", "--", "cat"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("systemd-socket-activate"));
}

#[test]
fn its_own_sockets_are_not_taken_for_inherited_ones() {
    if !has("python3") {
        return;
    }
    // No descriptor 3, whatever the environment says; the first socket that is opened has this number.
    let script = "import os, sys\n\
                  os.closerange(3, 64)\n\
                  os.environ.update(LISTEN_FDS='1', LISTEN_PID=str(os.getpid()))\n\
                  os.execv(sys.argv[1], sys.argv[1:])\n";
    let refused = |listen: &[&str]| {
        let mut command = Command::new("timeout");
        command.args(["60", "python3", "-c", script, env!("CARGO_BIN_EXE_kcm")]);
        command.args(["serve", "--framing", "u8"]).args(listen);
        let output = command.args(["--", "cat"]).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let own = refused(&["--listen", "127.0.0.1:0", "--listen", "systemd"]);
    assert!(own.contains("descriptor 3 is not open"), "{own}");
    let twice = refused(&["--listen", "systemd", "--listen", "systemd"]);
    assert!(twice.contains("once is enough"), "{twice}");
}
