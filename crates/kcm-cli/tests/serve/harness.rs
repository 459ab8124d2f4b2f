//! A running `kcm serve`, and a client of it.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Condvar, Mutex},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// For what must happen, however slow the machine is.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// For what must not happen.
pub(crate) const A_WHILE: Duration = Duration::from_millis(300);

/// Ends with this, workers included.
pub(crate) struct Server {
    process: Child,
    pub(crate) address: SocketAddr,
    log: Arc<(Mutex<Vec<String>>, Condvar)>,
}

impl Server {
    /// Starts it on a free port, with a length in the header, and the worker behind `--`.
    pub(crate) fn start(options: &[&str], worker: &[&str]) -> Self {
        let framed = ["--framing", "u32be+4"];
        Self::start_as(&[&framed[..], options].concat(), worker)
    }

    /// As [`Server::start`], with a framing among the options.
    pub(crate) fn start_as(options: &[&str], worker: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kcm"));
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        command.args(options).arg("--").args(worker);
        Self::spawn(command)
    }

    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut process = command
            .stderr(Stdio::piped())
            .stdin(Stdio::null())
            .spawn()
            .expect("it starts");
        let log = Arc::new((Mutex::new(Vec::new()), Condvar::new()));
        let stderr = BufReader::new(process.stderr.take().expect("its log"));
        let lines = log.clone();
        thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.0.lock().unwrap_or_else(|e| e.into_inner()).push(line);
                lines.1.notify_all();
            }
        });
        let mut this = Self {
            process,
            address: ([127, 0, 0, 1], 0).into(),
            log,
        };
        let line = this.line("listening on ");
        if let Some(address) = line.split("listening on ").nth(1)
            && let Some(Ok(address)) = address.split(['"', ' ']).next().map(str::parse)
        {
            this.address = address;
        }
        this
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Waits for a line of the log that has this in it.
    #[track_caller]
    pub(crate) fn line(&self, part: &str) -> String {
        let until = Instant::now() + SOON;
        let mut lines = self.log.0.lock().unwrap_or_else(|e| e.into_inner());
        loop {
            if let Some(line) = lines.iter().find(|line| line.contains(part)) {
                return line.clone();
            }
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no line with {part:?} in {lines:#?}");
            lines = self
                .log
                .1
                .wait_timeout(lines, left)
                .unwrap_or_else(|e| e.into_inner())
                .0;
        }
    }

    /// The lines that have this in them so far.
    pub(crate) fn lines(&self, part: &str) -> Vec<String> {
        let lines = self.log.0.lock().unwrap_or_else(|e| e.into_inner());
        lines
            .iter()
            .filter(|line| line.contains(part))
            .cloned()
            .collect()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).expect("a pid"));
        let _ = kill_process(pid.expect("a pid"), signal);
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + SOON;
        loop {
            if let Some(status) = self.process.try_wait().expect("a child") {
                return status;
            }
            assert!(Instant::now() < until, "it does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Memory in use, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let status = status.expect("it runs");
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
        1024 * kilobytes
            .and_then(|n| n.parse::<u64>().ok())
            .expect("a number")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The second signal means at once; then workers are killed within a second.
        for _ in 0..2 {
            self.signal(Signal::TERM);
            thread::sleep(Duration::from_millis(5));
        }
        for _ in 0..1000 {
            if !matches!(self.process.try_wait(), Ok(None)) {
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
        if thread::panicking() {
            let _ = writeln!(io::stderr(), "the log: {:#?}", self.lines(""));
        }
    }
}

/// What it says when it has nothing to serve. (Should it serve after all, it is ended, and says that.)
pub(crate) fn usage(arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["20", env!("CARGO_BIN_EXE_kcm"), "serve"])
        .args(arguments)
        .output()
        .expect("it starts")
}

/// Speaks messages of a 32-bit length and a body.
pub(crate) struct Client(pub(crate) TcpStream);

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(SOON)).expect("a timeout");
        stream.set_write_timeout(Some(SOON)).expect("a timeout");
        Self(stream)
    }

    pub(crate) fn send(&mut self, body: impl AsRef<[u8]>) {
        self.0.write_all(&message(body)).expect("sent");
    }

    #[track_caller]
    pub(crate) fn recv(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).expect("a reply's length");
        let mut body = vec![0; u32::from_be_bytes(length) as usize];
        self.0.read_exact(&mut body).expect("a reply");
        body
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, body: &str) -> String {
        self.send(body);
        String::from_utf8(self.recv()).expect("text")
    }

    /// Nothing comes for a while.
    #[track_caller]
    pub(crate) fn hears_nothing(&mut self) {
        self.0.set_read_timeout(Some(A_WHILE)).expect("a timeout");
        let got = self.0.read(&mut [0; 64]);
        assert!(
            matches!(&got, Err(e) if e.kind() == io::ErrorKind::WouldBlock),
            "{got:?}"
        );
        self.0.set_read_timeout(Some(SOON)).expect("a timeout");
    }

    /// The server closes it, before anything comes.
    #[track_caller]
    pub(crate) fn is_closed(&mut self) {
        match self.0.read(&mut [0; 64]) {
            Ok(0) => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            other => panic!("not closed: {other:?}"),
        }
    }
}

pub(crate) fn message(body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&length, body].concat()
}

/// Runs a test in at most a minute and a half.
pub(crate) fn bounded(test: impl FnOnce() + Send + 'static) {
    const LONGEST: Duration = Duration::from_secs(90);
    let (done, end) = std::sync::mpsc::channel();
    let test = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    if end.recv_timeout(LONGEST) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
        panic!("not done after {LONGEST:?}");
    }
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Whether a program is there; says so if it is not.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new("sh")
        .args(["-c", "command -v \"$0\"", program])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        // Straight to the descriptor, as the output of a test that passes is not shown.
        let reason = format!("skipped: {program} is not installed\n");
        let _ = rustix::io::write(io::stderr(), reason.as_bytes());
    }
    found
}

/// A test with workers in Python, if it is there.
pub(crate) fn with_python(test: impl FnOnce() + Send + 'static) {
    if has("python3") {
        bounded(test);
    }
}

/// A worker in Python: `handle(message)` does what `body` says, with `os`, `sys`, `time` and
/// `struct`; `reply(body)` answers.
pub(crate) fn python(body: &str) -> String {
    let mut script = String::from(
        "import os, struct, sys, time\n\
         def frame(body):\n return struct.pack('!I', len(body)) + body\n\
         def reply(body):\n os.write(1, frame(body))\n\
         def handle(message):\n",
    );
    for line in body.lines() {
        script += &format!(" {line}\n");
    }
    script += "while message := os.read(0, 1 << 18):\n handle(message)\n";
    script
}

/// A file of one of the examples.
pub(crate) fn example(name: &str) -> String {
    format!("{}/../../examples/serve/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A directory that goes with this.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kcm-serve-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).expect("a directory");
        Self(path)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("UTF-8").to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Waits until this is so.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + SOON;
    while !holds() {
        assert!(Instant::now() < until, "not so: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
