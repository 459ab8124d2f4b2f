//! A client of its own, written from the protocol's documents and not from the server, and the
//! server as a process.

#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// What must happen, happens within this time, on any machine.
pub(crate) const SOON: Duration = Duration::from_secs(20);
pub(crate) const NOFID: u32 = u32::MAX;
pub(crate) const NOTAG: u16 = u16::MAX;

pub(crate) const RLERROR: u8 = 7;
pub(crate) const TSTATFS: u8 = 8;
pub(crate) const TLOPEN: u8 = 12;
pub(crate) const TLCREATE: u8 = 14;
pub(crate) const TSYMLINK: u8 = 16;
pub(crate) const TMKNOD: u8 = 18;
pub(crate) const TRENAME: u8 = 20;
pub(crate) const TREADLINK: u8 = 22;
pub(crate) const TGETATTR: u8 = 24;
pub(crate) const TSETATTR: u8 = 26;
pub(crate) const TXATTRWALK: u8 = 30;
pub(crate) const TXATTRCREATE: u8 = 32;
pub(crate) const TREADDIR: u8 = 40;
pub(crate) const TFSYNC: u8 = 50;
pub(crate) const TLOCK: u8 = 52;
pub(crate) const TGETLOCK: u8 = 54;
pub(crate) const TLINK: u8 = 70;
pub(crate) const TMKDIR: u8 = 72;
pub(crate) const TRENAMEAT: u8 = 74;
pub(crate) const TUNLINKAT: u8 = 76;
pub(crate) const TVERSION: u8 = 100;
pub(crate) const TAUTH: u8 = 102;
pub(crate) const TATTACH: u8 = 104;
pub(crate) const TFLUSH: u8 = 108;
pub(crate) const TWALK: u8 = 110;
pub(crate) const TREAD: u8 = 116;
pub(crate) const TWRITE: u8 = 118;
pub(crate) const TCLUNK: u8 = 120;
pub(crate) const TREMOVE: u8 = 122;

pub(crate) const EPERM: u32 = 1;
pub(crate) const ENOENT: u32 = 2;
pub(crate) const EBADF: u32 = 9;
pub(crate) const EBUSY: u32 = 16;
pub(crate) const EEXIST: u32 = 17;
pub(crate) const ENOTDIR: u32 = 20;
pub(crate) const EISDIR: u32 = 21;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const EMFILE: u32 = 24;
pub(crate) const EROFS: u32 = 30;
pub(crate) const ENOTEMPTY: u32 = 39;
pub(crate) const ELOOP: u32 = 40;
pub(crate) const EPROTO: u32 = 71;
pub(crate) const EBADMSG: u32 = 74;
pub(crate) const EMSGSIZE: u32 = 90;
pub(crate) const EOPNOTSUPP: u32 = 95;

/// A server of a directory of its own, beside which there is something that must not be reached.
pub(crate) struct Served {
    child: Child,
    pub(crate) address: String,
    base: PathBuf,
}

impl Served {
    pub(crate) fn new(options: &[&str]) -> Self {
        Self::under(&["env"], options)
    }

    /// The server started by this command.
    pub(crate) fn under(command: &[&str], options: &[&str]) -> Self {
        Self::start(command, options, Stdio::inherit())
    }

    /// Its standard error goes there.
    pub(crate) fn logging_to(log: impl Into<Stdio>) -> Self {
        Self::start(&["env"], &[], log.into())
    }

    fn start(command: &[&str], options: &[&str], log: Stdio) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("9p-{}-{number}", std::process::id()));
        fs::create_dir_all(base.join("root")).expect("a directory");
        fs::create_dir(base.join("outside")).expect("a directory");
        fs::write(base.join("outside/secret"), "secret").expect("a file");
        let mut child = Command::new(command[0])
            .args(&command[1..])
            .arg(env!("CARGO_BIN_EXE_9p"))
            .args(["--listen", "127.0.0.1:0"])
            .args(options)
            .arg(base.join("root"))
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("the server starts");
        let mut address = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut address)
            .expect("an address");
        let address = address.trim().to_owned();
        Self {
            child,
            address,
            base,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.base.join("root").join(name)
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.base.join("outside")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Connected only.
    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(&self.address).expect("connected");
        stream.set_read_timeout(Some(SOON)).expect("set");
        stream.set_nodelay(true).expect("set");
        Client {
            stream,
            next_tag: 0,
        }
    }

    /// With a session, and fid 0 on the root.
    pub(crate) fn client(&self) -> Client {
        let mut client = self.connect();
        client.version(1 << 20);
        let attach = Body::new().u32(0).u32(NOFID).string("me").string("").u32(0);
        let qid = client.ok(TATTACH, attach);
        assert_eq!((qid.len(), qid[0]), (13, 0x80));
        client
    }

    /// Memory that the server has, in bytes.
    pub(crate) fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it lives");
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .expect("a line");
        let kib: usize = line
            .split_whitespace()
            .nth(1)
            .expect("a number")
            .parse()
            .expect("one");
        kib << 10
    }

    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.id()))
            .expect("it lives")
            .count()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.base);
    }
}

/// Fields of a message.
#[derive(Clone, Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Body {
    pub(crate) fn new() -> Self {
        Self::default()
    }
    pub(crate) fn u8(self, v: u8) -> Self {
        self.raw(&[v])
    }
    pub(crate) fn u16(self, v: u16) -> Self {
        self.raw(&v.to_le_bytes())
    }
    pub(crate) fn u32(self, v: u32) -> Self {
        self.raw(&v.to_le_bytes())
    }
    pub(crate) fn u64(self, v: u64) -> Self {
        self.raw(&v.to_le_bytes())
    }
    pub(crate) fn string(self, v: impl AsRef<[u8]>) -> Self {
        let v = v.as_ref();
        self.u16(u16::try_from(v.len()).expect("short")).raw(v)
    }
    pub(crate) fn raw(mut self, v: &[u8]) -> Self {
        self.0.extend_from_slice(v);
        self
    }
}

pub(crate) fn message(kind: u8, tag: u16, body: &Body) -> Vec<u8> {
    let len = u32::try_from(7 + body.0.len()).expect("short");
    let start = Body::new().u32(len).u8(kind).u16(tag);
    start.raw(&body.0).0
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) kind: u8,
    pub(crate) tag: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The error number, if it is Rlerror.
    pub(crate) fn errno(&self) -> Option<u32> {
        (self.kind == RLERROR).then(|| int(&self.body))
    }
}

pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    next_tag: u16,
}

impl Client {
    pub(crate) fn version(&mut self, msize: u32) -> u32 {
        self.send(TVERSION, NOTAG, &Body::new().u32(msize).string("9P2000.L"));
        let answer = self.receive();
        assert_eq!(
            (answer.kind, answer.tag),
            (TVERSION + 1, NOTAG),
            "{answer:?}"
        );
        assert_eq!(&answer.body[4..], b"\x08\x009P2000.L");
        int(&answer.body)
    }

    pub(crate) fn send(&mut self, kind: u8, tag: u16, body: &Body) {
        self.stream
            .write_all(&message(kind, tag, body))
            .expect("sent");
    }

    pub(crate) fn receive(&mut self) -> Answer {
        self.try_receive().expect("an answer")
    }

    pub(crate) fn try_receive(&mut self) -> io::Result<Answer> {
        let mut header = [0; 7];
        self.stream.read_exact(&mut header)?;
        let len = usize::try_from(int(&header)).expect("small");
        let mut body = vec![0; len - 7];
        self.stream.read_exact(&mut body)?;
        let tag = u16::from_le_bytes([header[5], header[6]]);
        Ok(Answer {
            kind: header[4],
            tag,
            body,
        })
    }

    /// One request and its answer.
    pub(crate) fn call(&mut self, kind: u8, body: Body) -> Result<Vec<u8>, u32> {
        self.next_tag = (self.next_tag + 1) % 1000;
        let tag = self.next_tag;
        self.send(kind, tag, &body);
        let answer = self.receive();
        assert_eq!(answer.tag, tag, "{answer:?}");
        match answer.errno() {
            Some(errno) => Err(errno),
            None => {
                assert_eq!(answer.kind, kind + 1, "{answer:?}");
                Ok(answer.body)
            }
        }
    }

    pub(crate) fn ok(&mut self, kind: u8, body: Body) -> Vec<u8> {
        self.call(kind, body).expect("it succeeds")
    }

    pub(crate) fn fails(&mut self, kind: u8, body: Body) -> u32 {
        self.call(kind, body).expect_err("it fails")
    }

    pub(crate) fn walk(&mut self, from: u32, to: u32, names: &[&str]) -> Result<usize, u32> {
        let count = u16::try_from(names.len()).expect("few");
        let body = Body::new().u32(from).u32(to).u16(count);
        let body = names.iter().fold(body, |body, name| body.string(name));
        let walked = self.call(TWALK, body)?;
        let count = usize::from(u16::from_le_bytes([walked[0], walked[1]]));
        assert_eq!(walked.len(), 2 + 13 * count);
        Ok(count)
    }

    /// Makes a file and opens it for reading and writing, as this fid.
    pub(crate) fn create(&mut self, fid: u32, name: &str) {
        self.walk(0, fid, &[]).expect("the root");
        let create = Body::new().u32(fid).string(name).u32(2).u32(0o644).u32(0);
        assert_eq!(self.ok(TLCREATE, create).len(), 17);
    }

    pub(crate) fn open(&mut self, fid: u32, name: &str, flags: u32) -> Result<(), u32> {
        self.walk(0, fid, &[name])?;
        let opened = self.call(TLOPEN, Body::new().u32(fid).u32(flags));
        if opened.is_err() {
            self.clunk(fid).expect("a fid");
        }
        opened.map(drop)
    }

    pub(crate) fn clunk(&mut self, fid: u32) -> Result<(), u32> {
        self.call(TCLUNK, Body::new().u32(fid)).map(drop)
    }

    pub(crate) fn write(&mut self, fid: u32, offset: u64, data: &[u8]) -> Result<u32, u32> {
        self.call(TWRITE, write_body(fid, offset, data))
            .map(|body| int(&body))
    }

    pub(crate) fn read(&mut self, fid: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let body = self.call(TREAD, read_body(fid, offset, count))?;
        assert_eq!(usize::try_from(int(&body)), Ok(body.len() - 4));
        Ok(body[4..].to_vec())
    }

    /// Names, in any order.
    pub(crate) fn list(&mut self, fid: u32, count: u32) -> Vec<String> {
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let body = self.ok(TREADDIR, read_body(fid, offset, count));
            assert!(body.len() <= 4 + usize::try_from(count).expect("small"));
            let mut rest = &body[4..];
            if rest.is_empty() {
                return names;
            }
            while !rest.is_empty() {
                offset = u64::from_le_bytes(rest[13..21].try_into().expect("eight"));
                let len = usize::from(u16::from_le_bytes([rest[22], rest[23]]));
                names.push(String::from_utf8_lossy(&rest[24..24 + len]).into_owned());
                rest = &rest[24 + len..];
            }
        }
    }
}

pub(crate) fn read_body(fid: u32, offset: u64, count: u32) -> Body {
    Body::new().u32(fid).u64(offset).u32(count)
}

pub(crate) fn write_body(fid: u32, offset: u64, data: &[u8]) -> Body {
    let count = u32::try_from(data.len()).expect("small");
    read_body(fid, offset, count).raw(data)
}

pub(crate) fn int(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}

/// Waits until it holds.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = std::time::Instant::now();
    while !holds() {
        assert!(begin.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
