//! Clients that were not written for this: `dig` and `rpcinfo` against the examples, and Python's
//! asyncio, which sends byte by byte. A client that is not installed is said to be skipped.

mod common;

use std::{
    io::{self, BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use common::*;

/// An example that runs; it ends with this.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where the examples are that were built with this test, after building what is not there.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let profile = test.parent().and_then(Path::parent).expect("target/debug");
    let target = profile.parent().expect("target");
    let mut build = Command::new(env!("CARGO"));
    build.args([
        "build",
        "--quiet",
        "--offline",
        "--example",
        name,
        "--target-dir",
    ]);
    build.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
    if profile.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().expect("cargo").success(), "example {name}");
    profile.join("examples").join(name)
}

fn start(name: &str) -> Server {
    let mut command = Command::new(example(name));
    command.arg("127.0.0.1:0").stdout(Stdio::piped());
    let mut process = command.spawn().expect("it starts");
    let stdout = process.stdout.take().expect("its output");
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .expect("its address");
    let address = line.trim().parse().expect("its address");
    Server { process, address }
}

/// Runs a client; nothing, after saying so, if it is not installed.
fn run(client: &str, arguments: &[&str]) -> Option<Output> {
    // Not in everybody's search path.
    let beside = format!("/usr/sbin/{client}");
    for program in [client, &beside] {
        match Command::new(program).args(arguments).output() {
            Ok(output) => return Some(output),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => panic!("{program}: {error}"),
        }
    }
    skipped(&format!("{client} is not installed"));
    None
}

#[track_caller]
fn text(output: Output) -> String {
    let text = String::from_utf8(output.stdout).expect("text");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    text
}

#[test]
fn dig() {
    bounded(120, || {
        let server = start("dns");
        let port = server.address.port().to_string();
        let server = ["@127.0.0.1", "-p", &port, "+tcp", "+time=5", "+tries=1"];
        let Some(output) = run("dig", &[&server[..], &["+short", "example.org"]].concat()) else {
            return;
        };
        assert_eq!(text(output), "127.0.0.1\n");
        // Several on one connection.
        let names: Vec<String> = (0..50).map(|n| format!("name-{n}.example")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let output = run(
            "dig",
            &[&server[..], &["+keepopen", "+short"], &names].concat(),
        );
        let output = text(output.expect("it was there"));
        assert_eq!(output, "127.0.0.1\n".repeat(50));
        // In full, and of another type.
        let output = run("dig", &[&server[..], &["example.org", "A"]].concat());
        let output = text(output.expect("it was there"));
        assert!(output.contains("status: NOERROR"), "{output}");
        assert!(output.contains("(TCP)"), "{output}");
        assert!(!output.contains("WARNING: Message"), "{output}");
        let output = run("dig", &[&server[..], &["example.org", "AAAA"]].concat());
        let output = text(output.expect("it was there"));
        assert!(output.contains("status: NOERROR"), "{output}");
        assert!(output.contains("ANSWER: 0"), "{output}");
    });
}

#[test]
fn rpcinfo() {
    bounded(120, || {
        let server = start("rpc");
        let [high, low] = server.address.port().to_be_bytes();
        let address = format!("127.0.0.1.{high}.{low}");
        let ping = ["-a", &address, "-T", "tcp", "100000"];
        let Some(output) = run("rpcinfo", &[&ping[..], &["2"]].concat()) else {
            return;
        };
        let ready = |version| format!("program 100000 version {version} ready and waiting\n");
        assert_eq!(text(output), ready(2));
        // It asks for version 0, and for all between those that it is told.
        let output = run("rpcinfo", &ping).expect("it was there");
        assert_eq!(text(output), ready(2) + &ready(3) + &ready(4));
        // Another program is not here.
        let other = ["-a", &address, "-T", "tcp", "100003", "3"];
        let output = run("rpcinfo", &other).expect("it was there");
        assert!(!output.status.success());
    });
}

#[test]
fn asyncio_byte_by_byte() {
    bounded(120, || {
        let server = start("echo");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/byte_by_byte.py");
        let (host, port) = (
            server.address.ip().to_string(),
            server.address.port().to_string(),
        );
        if let Some(output) = run("python3", &[script, &host, &port]) {
            assert_eq!(text(output), "160 messages, byte by byte\n");
        }
    });
}
