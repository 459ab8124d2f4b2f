//! Ten thousand idle connections: they attach, cost next to nothing, and all work.
//!
//! The other ends live in a second process (this test binary, started again), for one process has
//! not descriptors enough for both where the limit is 20,000.

mod common;

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
};

use common::*;

const CONNECTIONS: usize = 10_000;
const MOST_BYTES_EACH: usize = 2 << 10;
/// Says to a process that it is the second one, and where to connect.
const PEER: &str = "KCM_IDLE_PEER";

/// Memory of this process that is in use, in bytes. (That of the kernel's sockets is not in it.)
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").expect("statm");
    let pages: usize = statm
        .split(' ')
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("pages");
    pages * 4096
}

/// Descriptors that this process may have open.
fn most_descriptors() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit
        .current
        .map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX))
}

/// The second process: connects, and speaks on every connection when told to.
fn peer(address: &str) {
    let mut all: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|_| TcpStream::connect(address).expect("connected"))
        .collect();
    println!("connected");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).expect("told");
    for (number, stream) in all.iter_mut().enumerate() {
        let request = numbered(1, number as u64, 16);
        stream.write_all(&request).expect("sent");
        let mut reply = vec![0; request.len()];
        stream.read_exact(&mut reply).expect("answered");
        assert_eq!(reply, request);
    }
    println!("answered");
}

#[test]
fn ten_thousand_idle_connections() {
    if let Ok(address) = env::var(PEER) {
        return peer(&address);
    }
    if most_descriptors() < CONNECTIONS + 100 {
        let most = most_descriptors();
        skipped(&format!("the limit of descriptors is {most}"));
        return;
    }
    alone(90, || {
        let mux = mux();
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        // The standard library's backlog of 128 overflows, and costs a second each time.
        rustix::net::listen(&listener, 4096).expect("a longer backlog");
        let address = listener.local_addr().expect("an address").to_string();
        let mut socket = mux.socket().expect("a socket");
        let before = resident_bytes();
        mux.listen(listener).expect("listening");
        let mut child = Command::new(env::current_exe().expect("this program"))
            .args(["--exact", "ten_thousand_idle_connections", "--nocapture"])
            .env(PEER, &address)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut told = |what: &str| {
            output
                .by_ref()
                .map_while(Result::ok)
                .any(|line| line.ends_with(what))
        };
        assert!(told("connected"), "the second process could not connect");
        wait_until("all are attached", || {
            mux.connections().len() == CONNECTIONS
        });
        let each = (resident_bytes() - before) / CONNECTIONS;
        println!("{each} bytes each");
        assert!(
            each <= MOST_BYTES_EACH,
            "{each} bytes for an idle connection"
        );
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(b"go\n")
            .expect("told");
        for _ in 0..CONNECTIONS {
            let request = socket.recv().expect("a request");
            request.reply(&request).expect("answered");
        }
        assert!(told("answered"), "not all were answered");
        assert!(child.wait().expect("ended").success());
    });
}
