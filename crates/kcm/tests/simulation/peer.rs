//! The far end of a connection: what it is going to send, how it ends, and what it has got.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use kcm::Stream;
use rustix::net::AddressFamily;

use crate::{
    common::{reset, tcp_pair, tcp_unacknowledged_bytes, wait_until},
    random::Random,
    transport::Script,
    wire::{BODY_MIN, Wire},
};

/// What a peer sends, planned from its first byte to its end.
pub(crate) struct Plan {
    pub(crate) wire: Wire,
    pub(crate) bytes: Vec<u8>,
    /// Where each whole message ends.
    pub(crate) ends: Vec<usize>,
    /// The length of the message that is begun and never whole.
    pub(crate) begun: Option<usize>,
    pub(crate) ending: Ending,
}

/// What comes after the last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Nothing: the stream stays.
    Quiet,
    /// The peer has said all, perhaps in the middle of a message; it still listens.
    Eof,
    /// The peer is gone.
    Error(i32),
    /// The last message is longer than the limit.
    TooBig,
}

/// How bytes come and go.
pub(crate) enum Line {
    Script(Arc<Script>),
    Unix(UnixStream),
    Tcp(TcpStream),
}

pub(crate) struct Peer {
    pub(crate) plan: Plan,
    /// Its number among the peers, in each of its messages.
    pub(crate) origin: u16,
    pub(crate) line: RwLock<Option<Line>>,
    feed: Mutex<Feed>,
    got: Mutex<Vec<u8>>,
}

/// How far a peer has come.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Feed {
    /// Bytes of the plan.
    pub(crate) written: usize,
    /// Of these, the first that did not go over the line.
    pub(crate) early: usize,
    /// The ending too.
    pub(crate) ended: bool,
    /// The engine has closed its end: nothing can be written any more.
    pub(crate) refused: bool,
}

/// Which kinds of lines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lines {
    Scripts,
    Sockets,
    Both,
}

impl Plan {
    pub(crate) fn new(random: &mut Random, wire: Wire, origin: u16, longest: usize) -> Self {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        let count = {
            let most = random.pick(&[4, 30, 100]);
            random.below(most)
        };
        for (number, place) in (0..).zip(0..count) {
            let body = wire.body_len(random, longest);
            bytes.extend(wire.message(place, origin, number, body));
            ends.push(bytes.len());
            if bytes.len() > 400_000 {
                break;
            }
        }
        let mut ending = match random.below(8) {
            0..3 => Ending::Quiet,
            3..5 => Ending::Eof,
            5 => Ending::Error(libc::ECONNRESET),
            6 => Ending::Error(libc::ETIMEDOUT),
            _ => Ending::TooBig,
        };
        let place = ends.len();
        let mut begun = None;
        if ending == Ending::TooBig {
            let body = longest + random.between(1, 1000);
            if matches!(wire, Wire::U32 | Wire::Varint | Wire::Text | Wire::Keyed) {
                let header = wire.header(place, body);
                begun = Some(header.len() + body);
                bytes.extend(header);
                bytes.resize(bytes.len() + random.below(100), 7);
            } else {
                ending = Ending::Eof;
            }
        } else if random.below(2) == 0 {
            // It stops in the middle of a message.
            let body = wire.body_len(random, longest).max(BODY_MIN);
            let message = wire.message(place, origin, u32::MAX, body);
            begun = Some(message.len());
            bytes.extend(&message[..random.below(message.len())]);
        }
        Self {
            wire,
            bytes,
            ends,
            begun,
            ending,
        }
    }

    /// Where the message at this place begins.
    pub(crate) fn start(&self, place: usize) -> usize {
        place.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    pub(crate) fn message(&self, place: usize) -> Option<&[u8]> {
        let end = *self.ends.get(place)?;
        Some(&self.bytes[self.start(place)..end])
    }

    /// The key of the message at this place.
    pub(crate) fn key(&self, place: usize) -> Option<u32> {
        let (_, number) = self.wire.identity(self.message(place)?)?;
        self.wire.label(number).0
    }

    /// Messages that are whole in so many bytes.
    pub(crate) fn whole(&self, bytes: usize) -> usize {
        self.ends.partition_point(|&end| end <= bytes)
    }

    /// The place of the message that begins here.
    pub(crate) fn place_at(&self, start: usize) -> Option<usize> {
        if start == 0 {
            return Some(0);
        }
        self.ends
            .binary_search(&start)
            .ok()
            .map(|before| before + 1)
    }
}

impl Peer {
    /// A new peer, and the stream to attach.
    pub(crate) fn new(
        plan: Plan,
        origin: u16,
        random: &mut Random,
        lines: Lines,
    ) -> (Self, Stream) {
        let script = match lines {
            Lines::Scripts => true,
            Lines::Sockets => false,
            Lines::Both => random.below(2) == 0,
        };
        let (line, stream) = if script {
            let dies_at = (random.below(4) == 0).then(|| random.below(20_000));
            let script = Script::new(random.fork(), dies_at);
            let near = Stream::new(script.near());
            (Line::Script(script), near)
        } else if random.below(2) == 0 {
            let (ours, peer) = UnixStream::pair().expect("a pair");
            peer.set_nonblocking(true).expect("non-blocking");
            (Line::Unix(peer), ours.into())
        } else {
            let (ours, peer) = tcp_pair();
            peer.set_nonblocking(true).expect("non-blocking");
            (Line::Tcp(peer), ours.into())
        };
        let peer = Self {
            plan,
            origin,
            line: RwLock::new(Some(line)),
            feed: Mutex::default(),
            got: Mutex::default(),
        };
        (peer, stream)
    }

    pub(crate) fn feed(&self) -> MutexGuard<'_, Feed> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends up to so many more bytes of the plan, and the ending behind the last.
    pub(crate) fn give(&self, most: usize) {
        let mut feed = self.feed();
        if feed.ended || feed.refused {
            return;
        }
        let rest = &self.plan.bytes[feed.written..];
        if !rest.is_empty() {
            let piece = &rest[..most.min(rest.len())];
            match self.write(piece) {
                Some(n) => feed.written += n,
                None => feed.refused = true,
            }
            return;
        }
        feed.ended = true;
        match self.plan.ending {
            Ending::Quiet | Ending::TooBig => {}
            Ending::Eof => self.with_line(|line| match line {
                Line::Script(script) => script.end(0),
                // The engine may have closed it.
                Line::Unix(stream) => drop(stream.shutdown(Shutdown::Write)),
                Line::Tcp(stream) => drop(stream.shutdown(Shutdown::Write)),
            }),
            Ending::Error(errno) => self.die(errno),
        }
    }

    fn with_line(&self, f: impl FnOnce(&Line)) {
        if let Some(line) = &*self.line.read().unwrap_or_else(PoisonError::into_inner) {
            f(line);
        }
    }

    /// The number of bytes taken; `None`: never again.
    fn write(&self, bytes: &[u8]) -> Option<usize> {
        let mut taken = None;
        self.with_line(|line| {
            let result = match line {
                Line::Script(script) if script.arrive(bytes) => Ok(bytes.len()),
                Line::Script(_) => return,
                Line::Unix(stream) => (&*stream).write(bytes),
                Line::Tcp(stream) => (&*stream).write(bytes),
            };
            taken = match result {
                Err(e) if e.kind() == ErrorKind::WouldBlock => Some(0),
                result => result.ok(),
            };
        });
        taken
    }

    /// It is gone, with what it got so far.
    fn die(&self, errno: i32) {
        self.read();
        if let Some(script) = self.script() {
            script.end(errno);
            return;
        }
        let line = self
            .line
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(Line::Tcp(stream)) = line {
            reset(stream);
        }
    }

    pub(crate) fn script(&self) -> Option<Arc<Script>> {
        match &*self.line.read().unwrap_or_else(PoisonError::into_inner) {
            Some(Line::Script(script)) => Some(script.clone()),
            _ => None,
        }
    }

    /// The error with which its line has died.
    pub(crate) fn error(&self) -> Option<i32> {
        match self.script() {
            Some(script) => script.error(),
            None => self.is_dead().then_some(libc::ECONNRESET),
        }
    }

    /// It has gone away, or its line has died under a send.
    pub(crate) fn is_dead(&self) -> bool {
        let gone = self
            .line
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .is_none();
        gone || self.script().is_some_and(|script| script.is_dead())
    }

    /// Reads what has been sent to it.
    pub(crate) fn read(&self) {
        let mut got = self.got.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_line(|line| {
            let mut more = |from: &mut dyn Read| {
                // The end, an error, or nothing more now.
                let mut room = [0; 16 << 10];
                while let Ok(n @ 1..) = from.read(&mut room) {
                    got.extend_from_slice(&room[..n]);
                }
            };
            match line {
                Line::Script(_) => {}
                Line::Unix(stream) => more(&mut &*stream),
                Line::Tcp(stream) => more(&mut &*stream),
            }
        });
    }

    /// Reads all that was sent to it on this stream, also what is still on its way.
    pub(crate) fn read_to_the_last(&self, stream: &Stream) {
        self.read();
        if !is_tcp(stream) {
            return;
        }
        wait_until("the peer's TCP has all", || {
            let all_came = tcp_unacknowledged_bytes(stream) == 0;
            self.read();
            all_came || self.is_dead()
        });
    }

    /// Takes what is sent to it, now and later.
    pub(crate) fn take_all(&self) {
        match self.script() {
            Some(script) => script.set_room(usize::MAX),
            None => self.read(),
        }
    }

    /// Everything that was sent to it.
    pub(crate) fn got(&self) -> Vec<u8> {
        self.read();
        match self.script() {
            Some(script) => script.sent(),
            None => self
                .got
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        }
    }
}

/// Whether the stream is TCP; that of a script has the descriptor of a Unix stream.
pub(crate) fn is_tcp(stream: &Stream) -> bool {
    let domain = rustix::net::sockopt::socket_domain(stream);
    domain.is_ok_and(|domain| domain != AddressFamily::UNIX)
}
