//! Programs that may be missing, servers that end with the test, directories that go away.

use std::{
    env, fs,
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// In so long a server listens, or a client ends.
const SOON: Duration = Duration::from_secs(20);
const NAP: Duration = Duration::from_millis(20);

/// The way to a program; nothing, after saying why the test does without, if there is none.
pub(crate) fn find(program: &str, package: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps servers where not every user looks.
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let of_postgres = versions.filter_map(|version| Some(version.ok()?.path().join("bin")));
    let found = env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .chain(of_postgres)
        .map(|directory| directory.join(program))
        .find(|path| path.is_file());
    if found.is_none() {
        skip(&format!("{program} is not installed (Debian: {package})"));
    }
    found
}

/// Says so past the capture of the test harness: the output of a test that passes is not shown.
fn skip(reason: &str) {
    let _ = rustix::io::write(io::stderr(), format!("skipped: {reason}\n").as_bytes());
}

/// A directory of its own that goes away.
pub(crate) struct Directory(pub(crate) PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("kcm-traffic-{}-{number}", std::process::id());
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    /// Writes a file; gives its path.
    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("written");
        path
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that runs until this is dropped.
pub(crate) struct Server {
    process: Child,
    end_with: Signal,
    pub(crate) address: SocketAddr,
    /// What it has printed.
    log: PathBuf,
}

impl Server {
    /// Starts what `command` says for a port, and waits until it listens there.
    pub(crate) fn start(
        directory: &Directory,
        end_with: Signal,
        command: impl Fn(u16) -> Command,
    ) -> Self {
        // Between finding a free port and listening on it somebody else may take it.
        for attempt in 0..5 {
            let probe = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
            let address = probe.local_addr().expect("bound");
            drop(probe);
            let log = directory.0.join(format!("server-{attempt}.log"));
            let out = fs::File::create(&log).expect("created");
            let process = command(address.port())
                .stdin(Stdio::null())
                .stdout(out.try_clone().expect("a descriptor"))
                .stderr(out)
                .spawn()
                .expect("the server starts");
            let mut server = Self {
                process,
                end_with,
                address,
                log,
            };
            if server.listens() {
                return server;
            }
            eprintln!("{}", server.log());
        }
        panic!("the server does not listen");
    }

    fn listens(&mut self) -> bool {
        let begin = Instant::now();
        while begin.elapsed() < SOON {
            if TcpStream::connect(self.address).is_ok() {
                return true;
            }
            if !matches!(self.process.try_wait(), Ok(None)) {
                return false;
            }
            thread::sleep(NAP);
        }
        false
    }

    /// What it has printed so far.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = kill_process(Pid::from_child(&self.process), self.end_with);
            wait(&mut self.process, Duration::from_secs(5));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs a client to its end and gives what it printed; it must succeed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> String {
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    let Output {
        status,
        stdout,
        stderr,
    } = ended(child);
    let text = [stdout, stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{text}");
    text
}

/// Waits for a client's end, but not for ever.
pub(crate) fn ended(child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let waiting = thread::spawn(move || child.wait_with_output());
    let begin = Instant::now();
    while !waiting.is_finished() {
        if begin.elapsed() > 3 * SOON {
            // Not waited for yet, so the number is still its own.
            let _ = kill_process(pid, Signal::KILL);
            panic!("the client does not end");
        }
        thread::sleep(NAP);
    }
    waiting.join().expect("no panic").expect("its output")
}

fn wait(process: &mut Child, limit: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < limit && matches!(process.try_wait(), Ok(None)) {
        thread::sleep(NAP);
    }
}

/// Waits until it is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < SOON, "{what}");
        thread::sleep(NAP);
    }
}

/// The lengths of the messages that `kcm parse` finds in these bytes: all of them, to the end.
#[track_caller]
pub(crate) fn parse(framing: &str, bytes: &[u8]) -> Vec<u64> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kcm"))
        .args(["parse", "--json", "--framing", framing])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the kcm command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let output = thread::scope(|scope| {
        // It may end early; its message then says more than a broken pipe.
        scope.spawn(move || stdin.write_all(bytes));
        ended(child)
    });
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{framing}: {errors}");
    let text = std::str::from_utf8(&output.stdout).expect("UTF-8");
    let mut lens = Vec::new();
    let mut offset = 0;
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).expect("an object a line");
        if let Some(messages) = row["messages"].as_u64() {
            assert_eq!(messages, lens.len() as u64);
            assert_eq!(
                (&row["bytes"], &row["tail_bytes"]),
                (&offset.into(), &0.into())
            );
            assert_eq!(offset, bytes.len() as u64);
            return lens;
        }
        assert_eq!(
            (&row["n"], &row["offset"]),
            (&lens.len().into(), &offset.into())
        );
        let len = row["len"].as_u64().expect("a length");
        offset += len;
        lens.push(len);
    }
    panic!("no totals in\n{text}");
}

/// Numbers that stand behind `before` in each line that has it, and reach to `after` (or the end).
pub(crate) fn numbers(text: &str, before: &str, after: &str) -> Vec<u64> {
    let number = |line: &str| {
        let (_, rest) = line.split_once(before)?;
        let end = rest.find(after).filter(|_| !after.is_empty());
        rest[..end.unwrap_or(rest.len())].trim().parse().ok()
    };
    text.lines().filter_map(number).collect()
}

/// Somebody without rights, for servers that refuse to run as root.
pub(crate) const NOBODY: u32 = 65534;

/// Makes this the property of [`NOBODY`], if this is root; says whether it is.
pub(crate) fn give_away(path: &Path) -> bool {
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("root may");
    }
    is_root
}
