//! A `kcm parse` that runs, and what it is given.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

/// What must happen happens within this time.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Two messages in framing `u32be+4`, and the beginning of a third.
pub(crate) const STREAM: &[u8] = b"\0\0\0\x05hello\0\0\0\x09nice body\0\0\0\x07a ta";

pub(crate) fn kcm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kcm"));
    command
        .arg("parse")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it with these bytes on its standard input.
pub(crate) fn parse(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = kcm(arguments).spawn().expect("the kcm command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    thread::scope(|scope| {
        // It may have seen enough before the end.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("it ends")
    })
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

pub(crate) fn objects(bytes: &[u8]) -> Vec<Value> {
    let lines = text(bytes).lines();
    lines
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect()
}

#[track_caller]
pub(crate) fn assert_ends(output: &Output, code: i32, stdout: &str, stderr: &str) {
    assert_eq!(text(&output.stderr), stderr);
    assert_eq!(text(&output.stdout), stdout);
    assert_eq!(output.status.code(), Some(code));
}

/// A program that was made from `crates/kcm-bpf/bpf/NAME.c`.
pub(crate) fn object(name: &str) -> String {
    format!(
        "{}/../kcm-bpf/tests/objects/{name}.o",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// A file that goes away.
pub(crate) struct File(pub(crate) PathBuf);

impl File {
    pub(crate) fn new(name: &str, bytes: &[u8]) -> Self {
        let path = env::temp_dir().join(format!("kcm-parse-{}-{name}", std::process::id()));
        fs::write(&path, bytes).expect("written");
        Self(path)
    }

    pub(crate) fn name(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Lines as they come.
pub(crate) fn lines_of(child: &mut Child) -> (ChildStdin, mpsc::Receiver<String>) {
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    (child.stdin.take().expect("a pipe"), lines)
}

/// The most memory that the process has had so far, in KiB.
pub(crate) fn most_memory_kib(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number of KiB")
}
