//! A TCP proxy that keeps what went through it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// A connection without traffic for so long is given up: no test here is silent for that long.
const IDLE: Duration = Duration::from_secs(20);

/// Who sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// One connection: what was read from either side, in the order of reading.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recording(pub(crate) Vec<(Side, Vec<u8>)>);

impl Recording {
    /// All bytes of one side.
    pub(crate) fn bytes_of(&self, side: Side) -> Vec<u8> {
        let pieces = self.0.iter().filter(|(from, _)| *from == side);
        pieces.flat_map(|(_, bytes)| bytes).copied().collect()
    }
}

/// Listens on a port of its own until [`Proxy::finish`].
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    over: Arc<AtomicBool>,
    accepting: JoinHandle<Vec<Recording>>,
}

impl Proxy {
    /// A proxy before the server at `to`.
    pub(crate) fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("bound");
        let over = Arc::new(AtomicBool::new(false));
        let accepting = thread::spawn({
            let over = Arc::clone(&over);
            move || accept(&listener, to, &over)
        });
        Self {
            address,
            over,
            accepting,
        }
    }

    /// All connections that there were, once they are closed, in the order of their beginning.
    pub(crate) fn finish(self) -> Vec<Recording> {
        self.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        self.accepting.join().expect("the proxy does not panic")
    }
}

fn accept(listener: &TcpListener, to: SocketAddr, over: &AtomicBool) -> Vec<Recording> {
    let mut connections = Vec::new();
    loop {
        let (client, _) = listener.accept().expect("a connection");
        if over.load(Ordering::SeqCst) {
            break;
        }
        connections.push(thread::spawn(move || carry(&client, to)));
    }
    let ended = connections.into_iter().map(JoinHandle::join);
    ended.map(|end| end.expect("no panic")).collect()
}

fn carry(client: &TcpStream, to: SocketAddr) -> Recording {
    let server = TcpStream::connect(to).expect("the server listens");
    let recording = Mutex::new(Recording::default());
    thread::scope(|scope| {
        scope.spawn(|| copy(Side::Client, client, &server, &recording));
        scope.spawn(|| copy(Side::Server, &server, client, &recording));
    });
    recording.into_inner().expect("no panic")
}

fn copy(side: Side, mut from: &TcpStream, mut to: &TcpStream, recording: &Mutex<Recording>) {
    from.set_read_timeout(Some(IDLE)).expect("possible");
    let mut buffer = vec![0; 16 << 10];
    // A reset is an end, too.
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let bytes = &buffer[..count];
        // Kept before it is passed on: an answer then stands behind its question.
        let mut all = recording.lock().expect("no panic");
        all.0.push((side, bytes.to_vec()));
        drop(all);
        if to.write_all(bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
