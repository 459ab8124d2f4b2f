//! Apache Thrift's Python client against the server: every method, both protocols, several clients
//! at once. It is installed for the test, the version of `requirements.txt`; without a way to do so
//! the test says that it is skipped.

use std::{
    fs,
    io::{self, BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A server that runs; it ends with this.
struct Server {
    process: Child,
    port: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn start(arguments: &[&str]) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_thrift-server"));
    command.arg("127.0.0.1:0").args(arguments);
    let mut process = command.stdout(Stdio::piped()).spawn().expect("it starts");
    let stdout = process.stdout.take().expect("its output");
    let mut line = String::new();
    let read = BufReader::new(stdout).read_line(&mut line);
    read.expect("its address");
    let (_, port) = line.trim().rsplit_once(':').expect("an address");
    Server {
        port: port.to_owned(),
        process,
    }
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Straight to the descriptor, as the output of a test that passes is not shown.
fn skipped(why: &str) {
    let reason = format!("skipped: Apache Thrift's Python client: {why}\n");
    let _ = rustix::io::write(io::stderr(), reason.as_bytes());
}

/// The directory that has the client's library; nothing, after saying so, if it cannot be had.
fn library() -> Option<PathBuf> {
    let requirements = here().join("requirements.txt");
    let pinned = fs::read_to_string(&requirements).expect("it is there");
    let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join(pinned.trim());
    if library.join("thrift").is_dir() {
        return Some(library);
    }
    // Complete under its name, or not there.
    let unfinished = library.with_extension(format!("{}.unfinished", std::process::id()));
    let _ = fs::remove_dir_all(&unfinished);
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
    pip.args(["--disable-pip-version-check", "--root-user-action=ignore"]);
    pip.arg("--requirement").arg(requirements);
    pip.arg("--target").arg(&unfinished);
    match pip.output() {
        Ok(output) if output.status.success() => {
            if fs::rename(&unfinished, &library).is_err() {
                assert!(library.is_dir(), "somebody else was quicker");
            }
            Some(library)
        }
        Ok(output) => {
            skipped(&String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(e) => {
            skipped(&format!("python3: {e}"));
            None
        }
    }
}

/// A client program; its output is checked by [`finish`].
fn client(library: &Path, program: &str, arguments: &[&str]) -> Child {
    let path = std::env::join_paths([library, &here().join("client")]).expect("no colons");
    let mut python = Command::new("python3");
    python.arg(here().join(program)).args(arguments);
    python.env("PYTHONPATH", path);
    python.env("PYTHONDONTWRITEBYTECODE", "1");
    python.stdout(Stdio::piped()).stderr(Stdio::piped());
    python.spawn().expect("it has run before")
}

#[track_caller]
fn finish(client: Child) -> String {
    let output = client.wait_with_output().expect("its output");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_method_in_both_protocols_by_several_clients_at_once() {
    let Some(library) = library() else { return };
    for mode in [&[][..], &["--unordered", "--workers", "1"]] {
        let server = start(mode);
        let clients: Vec<_> = (0..6)
            .map(|n| {
                let protocol = ["binary", "compact"][n % 2];
                let name = format!("client {n}");
                let arguments = ["127.0.0.1", &server.port, protocol, &name];
                client(&library, "tests/every_method.py", &arguments)
            })
            .collect();
        for client in clients {
            assert_eq!(finish(client), "all right\n");
        }
    }
}

#[test]
fn the_client_of_the_readme() {
    let Some(library) = library() else { return };
    let server = start(&[]);
    let output = finish(client(
        &library,
        "client/client.py",
        &["127.0.0.1", &server.port],
    ));
    for line in [
        "6 * 7 = 42",
        "1 / 0: division by zero",
        "forgotten: greeting",
    ] {
        assert!(output.contains(line), "{output}");
    }
}
