//! What the end-to-end tests share: streams in pairs, messages that carry their number, threads
//! known to be asleep, and a bound on everybody's time.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub(crate) mod epoll;
pub(crate) mod traffic;

use std::{
    fs,
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    panic,
    sync::{PoisonError, RwLock, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kcm::{ConnectionEvent, ConnectionId, Error, Framing, Message, Multiplexor, Socket};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// A tenth of a second: enough for what must not happen to have had its chance.
pub(crate) const A_WHILE: Duration = Duration::from_millis(100);
/// What must happen has happened by then, unless it never will.
pub(crate) const SOON: Duration = Duration::from_secs(5);
/// "At once", on a machine that does other work too.
pub(crate) const PROMPT: Duration = Duration::from_millis(500);

/// Tests that count what the whole process has hold this for writing.
static PROCESS: RwLock<()> = RwLock::new(());

/// Runs a test, and fails it when it takes longer than that.
pub(crate) fn bounded(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let _others = PROCESS.read().unwrap_or_else(PoisonError::into_inner);
    run(seconds, test);
}

/// As [`bounded`], with no other test of this process beside it.
pub(crate) fn alone(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let _others = PROCESS.write().unwrap_or_else(PoisonError::into_inner);
    run(seconds, test);
}

fn run(seconds: u64, test: impl FnOnce() + Send + 'static) {
    let (done, finished) = mpsc::channel::<()>();
    let name = thread::current().name().unwrap_or("test").to_owned();
    let worker = thread::Builder::new().name(name.clone()).spawn(move || {
        let _done = done;
        test();
    });
    let worker = worker.expect("a thread");
    match finished.recv_timeout(Duration::from_secs(seconds)) {
        Err(mpsc::RecvTimeoutError::Timeout) => {
            panic!("watchdog: {name} was not done within {seconds} s")
        }
        _ => {
            if let Err(reason) = worker.join() {
                panic::resume_unwind(reason);
            }
        }
    }
}

/// Says why a test does without something: straight to the descriptor, as the output of a test that
/// passes is not shown.
pub(crate) fn skipped(reason: &str) {
    let _ = rustix::io::write(io::stderr(), format!("skipped: {reason}\n").as_bytes());
}

/// Waits for something that no call waits for.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "waited {SOON:?} in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Starts a thread and returns when it sleeps, which is in the blocking call that it begins with.
pub(crate) fn spawn_asleep<T: Send + 'static>(
    f: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let (tell, told) = mpsc::channel();
    let handle = thread::spawn(move || {
        tell.send(rustix::thread::gettid().as_raw_nonzero())
            .expect("somebody listens");
        f()
    });
    let stat = format!("/proc/self/task/{}/stat", told.recv().expect("its id"));
    let mut looks = 0;
    wait_until("the thread sleeps", || {
        // "123 (name) S ..."; gone if it has ended.
        let asleep = fs::read_to_string(&stat)
            .ok()
            .and_then(|stat| Some(stat.rsplit_once(") ")?.1.starts_with('S')))
            .unwrap_or(true);
        looks = if asleep { looks + 1 } else { 0 };
        looks == 5
    });
    handle
}

/// A connected pair over loopback, without Nagle's delay.
pub(crate) fn tcp_pair() -> (TcpStream, TcpStream) {
    tcp_pair_at("127.0.0.1:0")
}

/// A connected pair over this address.
pub(crate) fn tcp_pair_at(address: &str) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(address).expect("a listener");
    tcp_pair_of(&listener)
}

/// A connected pair over this listener: the accepted end, then the other.
pub(crate) fn tcp_pair_of(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let peer = connect(listener.local_addr().expect("an address"));
    let (stream, _) = listener.accept().expect("the peer");
    stream.set_nodelay(true).expect("no delay");
    (stream, peer)
}

/// A peer that gives up reading after [`SOON`].
pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let peer = TcpStream::connect(address).expect("a connection");
    peer.set_nodelay(true).expect("no delay");
    peer.set_read_timeout(Some(SOON)).expect("a time limit");
    peer
}

/// The framing of nearly all tests: a 32-bit big-endian body length, then the body.
pub(crate) fn framing() -> Framing {
    "u32be+4".parse().expect("a framing")
}

/// A multiplexor of that framing.
pub(crate) fn mux() -> Multiplexor {
    Multiplexor::builder(framing()).build().expect("a mux")
}

/// Attaches one end of a new TCP pair; gives the id and the peer.
pub(crate) fn attached(mux: &Multiplexor) -> (ConnectionId, TcpStream) {
    let (stream, peer) = tcp_pair();
    (mux.attach(stream).expect("attached"), peer)
}

/// One message with this body.
pub(crate) fn message(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a short body");
    [&len.to_be_bytes()[..], body].concat()
}

/// The processors that this process may use.
pub(crate) fn processors() -> Vec<usize> {
    let allowed = sched_getaffinity(None).expect("a set");
    let all = 0..CpuSet::MAX_CPU;
    all.filter(|&cpu| allowed.is_set(cpu)).collect()
}

/// Keeps the calling thread on one of them.
pub(crate) fn stay_on(processor: usize) {
    let mut one = CpuSet::new();
    one.set(processor);
    sched_setaffinity(None, &one).expect("one of its own");
}

/// Shortest length of [`numbered`].
pub(crate) const NUMBERED_MIN: usize = 16;

/// A message of `len` bytes in all that carries two numbers, and bytes that follow from them.
pub(crate) fn numbered(connection: u32, number: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len);
    let body = u32::try_from(len - 4).expect("a short body");
    bytes.extend(body.to_be_bytes());
    bytes.extend(connection.to_be_bytes());
    bytes.extend(number.to_be_bytes());
    let mut fill = filling(connection, number);
    bytes.resize_with(len, || {
        fill = fill.wrapping_add(1);
        fill
    });
    bytes
}

/// The two numbers of such a message, each byte of which is looked at.
#[track_caller]
pub(crate) fn number_of(bytes: &[u8]) -> (u32, u64) {
    assert!(bytes.len() >= NUMBERED_MIN, "{} bytes", bytes.len());
    let (len, rest) = bytes.split_at(4);
    assert_eq!(len, u32::try_from(rest.len()).expect("short").to_be_bytes());
    let connection = u32::from_be_bytes(rest[..4].try_into().expect("four"));
    let number = u64::from_be_bytes(rest[4..12].try_into().expect("eight"));
    let mut fill = filling(connection, number);
    for (at, &byte) in rest[12..].iter().enumerate() {
        fill = fill.wrapping_add(1);
        assert!(
            byte == fill,
            "message {number} of {connection}: byte {}",
            at + 16
        );
    }
    (connection, number)
}

fn filling(connection: u32, number: u64) -> u8 {
    (u64::from(connection) * 31 + number * 7).to_le_bytes()[0]
}

/// Reads one length-prefixed message from a plain stream.
pub(crate) fn read_message(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 4];
    stream.read_exact(&mut message)?;
    let body = u32::from_be_bytes(message[..].try_into().expect("four"));
    message.resize(4 + body as usize, 0);
    stream.read_exact(&mut message[4..])?;
    Ok(message)
}

/// Reads numbered messages in a thread of its own, until the end of the stream.
pub(crate) fn read_all(mut peer: TcpStream) -> JoinHandle<Vec<(u32, u64)>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        while let Ok(message) = read_message(&mut peer) {
            all.push(number_of(&message));
        }
        all
    })
}

/// The next message, which must come soon.
#[track_caller]
pub(crate) fn soon(socket: &mut Socket) -> Message {
    socket.set_read_timeout(Some(SOON)).expect("a time limit");
    socket.recv().expect("a message soon")
}

/// Nothing can be received, now or in a while.
#[track_caller]
pub(crate) fn nothing(socket: &mut Socket) {
    socket.set_read_timeout(Some(A_WHILE)).expect("a limit");
    let got = socket.recv().map(|message| message.to_vec());
    assert!(matches!(got, Err(Error::WouldBlock)), "{got:?}");
}

/// Everything that can be received at this moment.
#[track_caller]
pub(crate) fn drain(socket: &mut Socket) -> Vec<Message> {
    socket.set_nonblocking(true).expect("non-blocking");
    let mut messages = Vec::new();
    loop {
        match socket.recv() {
            Ok(message) => messages.push(message),
            Err(Error::WouldBlock) => break,
            Err(error) => panic!("{error}"),
        }
    }
    socket.set_nonblocking(false).expect("blocking");
    messages
}

/// The next event, which must come soon.
#[track_caller]
pub(crate) fn event_soon(mux: &Multiplexor) -> ConnectionEvent {
    let mut event = None;
    wait_until("an event", || {
        event = mux.try_next_event();
        event.is_some()
    });
    event.expect("there is one")
}

/// A thread that receives and drops everything, until the multiplexor is shut down.
pub(crate) fn receive_all(mux: &Multiplexor) -> JoinHandle<Vec<Vec<u8>>> {
    let mut socket = mux.socket().expect("a socket");
    thread::spawn(move || {
        let mut messages = Vec::new();
        loop {
            match socket.recv() {
                Ok(message) => messages.push(message.to_vec()),
                Err(Error::Closed) => return messages,
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// A thread that answers every message with itself, until the multiplexor is shut down.
pub(crate) fn echo(mux: &Multiplexor) -> JoinHandle<()> {
    let mut socket = mux.socket().expect("a socket");
    thread::spawn(move || {
        loop {
            match socket.recv() {
                Ok(message) => {
                    // The peer may be gone.
                    let _ = message.reply(&message);
                }
                Err(Error::Closed) => return,
                Err(error) => panic!("{error}"),
            }
        }
    })
}

/// Closes with RST instead of FIN.
pub(crate) fn reset(stream: TcpStream) {
    rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO)).expect("linger 0");
    drop(stream);
}

/// Waits until so many bytes can be read from this descriptor (another one of the same stream).
pub(crate) fn wait_arrived(stream: impl AsFd, bytes: usize) {
    wait_until("bytes arrive", || {
        let there = rustix::io::ioctl_fionread(&stream).expect("FIONREAD");
        there >= bytes as u64
    });
}

/// Bytes that have come to this end of a TCP connection since it was made, read or not.
pub(crate) fn tcp_received_bytes(stream: impl AsFd) -> u64 {
    /// Of `struct tcp_info` in the kernel's `uapi/linux/tcp.h`: the state, and
    /// `tcpi_bytes_received`, which counts the end of the stream as one.
    const STATE: usize = 0;
    const BYTES_RECEIVED: usize = 128;
    const CLOSE_WAIT: u8 = 8;
    let mut info = [0u8; 256];
    let mut len = libc::socklen_t::try_from(info.len()).expect("short");
    // SAFETY: an open descriptor, and room for as many bytes as it is told of.
    let result = unsafe {
        libc::getsockopt(
            stream.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    let bytes = *info[BYTES_RECEIVED..].first_chunk().expect("eight bytes");
    u64::from_ne_bytes(bytes) - u64::from(info[STATE] == CLOSE_WAIT)
}

/// Bytes sent on this TCP connection that have not come to the other end for sure.
pub(crate) fn tcp_unacknowledged_bytes(stream: impl AsFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: an open descriptor, and room for the one number that this asks for.
    let result = unsafe { libc::ioctl(stream.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    u64::try_from(bytes).expect("not negative")
}

/// The peer's stream is at its end: nothing more comes, by FIN or RST.
#[track_caller]
pub(crate) fn assert_ended(peer: &mut impl Read) {
    let mut rest = Vec::new();
    match peer.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
    }
    assert!(rest.is_empty(), "{} bytes more", rest.len());
}

/// Descriptors that this process has open.
pub(crate) fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// Writes all, waiting as long as it takes.
#[track_caller]
pub(crate) fn write(mut stream: impl Write, bytes: &[u8]) {
    stream.write_all(bytes).expect("written");
}

/// Numbers that look random and follow from a seed, which is printed.
pub(crate) struct Random(u64);

impl Random {
    /// From this seed, or the one in `KCM_TEST_SEED`.
    pub(crate) fn new(seed: u64) -> Self {
        let seed = std::env::var("KCM_TEST_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(seed);
        println!("seed {seed}");
        Self(seed)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let z = z ^ (z >> 31);
        usize::try_from(z % end as u64).expect("below a usize")
    }

    /// A number from `start` up to and without `end`.
    pub(crate) fn between(&mut self, start: usize, end: usize) -> usize {
        start + self.below(end - start)
    }
}

/// Works for so long.
pub(crate) fn spin(time: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < time {
        std::hint::spin_loop();
    }
}
