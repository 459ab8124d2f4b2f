//! A stream that does what a test tells it: the engine's end of it is a [`Transport`].
//!
//! Its descriptor behaves under an edge-triggered epoll as a socket's does: a new edge whenever
//! bytes arrive and at the end, none when a read has left some; writable unless it said
//! `WouldBlock`, and an edge when it is again. Reads and writes are short at random.

use std::{
    io::{self, ErrorKind, IoSlice, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use kcm::Transport;

use crate::random::Random;

/// The far end of such a stream.
pub(crate) struct Script {
    /// The descriptor that the engine sees: readable by a byte in it, not writable when full.
    ours: UnixStream,
    theirs: UnixStream,
    state: Mutex<State>,
    receiving: AtomicBool,
    sending: AtomicBool,
}

struct State {
    random: Random,
    arrived: Vec<u8>,
    /// Of `arrived`: what the engine has read.
    read: usize,
    /// What comes after it: 0 for the end, or an errno.
    end: Option<i32>,
    sent: Vec<u8>,
    /// It takes so many bytes until it blocks.
    room: usize,
    blocked: bool,
    /// It dies when so much was sent.
    dies_at: usize,
    dead: bool,
    write_shut: bool,
    /// One read or write in so many is a short one.
    one_in: usize,
}

/// The engine's end.
pub(crate) struct Near(Arc<Script>);

impl Script {
    /// `dies_at`: a send fails when so many bytes went through.
    pub(crate) fn new(mut random: Random, dies_at: Option<usize>) -> Arc<Self> {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).expect("non-blocking");
            rustix::net::sockopt::set_socket_send_buffer_size(end, 4096).expect("a small buffer");
        }
        let one_in = [1, 2, 8, usize::MAX][random.below(4)];
        let room = random.below(20_000);
        Arc::new(Self {
            ours,
            theirs,
            state: Mutex::new(State {
                random,
                arrived: Vec::new(),
                read: 0,
                end: None,
                sent: Vec::new(),
                room,
                blocked: false,
                dies_at: dies_at.unwrap_or(usize::MAX),
                dead: false,
                write_shut: false,
                one_in,
            }),
            receiving: AtomicBool::new(false),
            sending: AtomicBool::new(false),
        })
    }

    pub(crate) fn near(self: &Arc<Self>) -> Near {
        Near(self.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes arrive. False: the stream is dead.
    pub(crate) fn arrive(&self, bytes: &[u8]) -> bool {
        let mut state = self.state();
        if state.dead {
            return false;
        }
        state.arrived.extend_from_slice(bytes);
        self.signal();
        true
    }

    /// Nothing more arrives: 0 for the end of the stream, or an errno, which kills it.
    pub(crate) fn end(&self, errno: i32) {
        let mut state = self.state();
        if !state.dead {
            state.end = Some(errno);
        }
        if errno != 0 {
            state.dead = true;
            self.set_writable();
        }
        self.signal();
    }

    /// An edge without any reason.
    pub(crate) fn signal(&self) {
        self.hush();
        (&self.theirs).write_all(&[1]).expect("one byte fits");
    }

    fn hush(&self) {
        let mut bytes = [0; 16];
        while matches!((&self.ours).read(&mut bytes), Ok(n) if n > 0) {}
    }

    /// So many bytes are taken before it blocks, from now on.
    pub(crate) fn set_room(&self, room: usize) {
        let mut state = self.state();
        state.room = room;
        if room > 0 && state.blocked {
            state.blocked = false;
            self.set_writable();
        }
    }

    fn set_writable(&self) {
        let mut bytes = [0; 4096];
        while matches!((&self.theirs).read(&mut bytes), Ok(n) if n > 0) {}
    }

    fn set_unwritable(&self) {
        while (&self.ours).write(&[0; 512]).is_ok() {}
    }

    pub(crate) fn is_blocked(&self) -> bool {
        let state = self.state();
        state.blocked && !state.dead
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.state().dead
    }

    /// The error with which it died.
    pub(crate) fn error(&self) -> Option<i32> {
        let state = self.state();
        state.end.filter(|_| state.dead)
    }

    /// Bytes that the engine has read.
    pub(crate) fn read_bytes(&self) -> usize {
        self.state().read
    }

    /// Everything that the engine has sent.
    pub(crate) fn sent(&self) -> Vec<u8> {
        self.state().sent.clone()
    }
}

impl Transport for Near {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.ours.as_fd()
    }

    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let _alone = Alone::enter(&self.0.receiving, "receive");
        let mut state = self.0.state();
        let there = state.arrived.len() - state.read;
        if there == 0 {
            return match state.end {
                None => Err(ErrorKind::WouldBlock.into()),
                Some(0) => Ok(0),
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            };
        }
        let n = state.some(there.min(buffer.len()));
        buffer[..n].copy_from_slice(&state.arrived[state.read..][..n]);
        state.read += n;
        Ok(n)
    }

    fn send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let _alone = Alone::enter(&self.0.sending, "send");
        let mut state = self.0.state();
        assert!(!state.write_shut, "a send after the end");
        let whole: usize = buffers.iter().map(|buffer| buffer.len()).sum();
        assert!(whole > 0, "a send of nothing");
        if !state.dead && state.sent.len() >= state.dies_at {
            // The peer is gone: what has arrived can still be read.
            state.dead = true;
            state.end = Some(libc::ECONNRESET);
            self.0.signal();
        }
        if state.dead {
            let errno = state.end.unwrap_or(libc::ECONNRESET);
            return Err(io::Error::from_raw_os_error(errno));
        }
        if state.room == 0 {
            state.blocked = true;
            self.0.set_unwritable();
            return Err(ErrorKind::WouldBlock.into());
        }
        let most = whole.min(state.room).min(state.dies_at - state.sent.len());
        let n = state.some(most);
        let mut left = n;
        for buffer in buffers {
            let part = left.min(buffer.len());
            state.sent.extend_from_slice(&buffer[..part]);
            left -= part;
        }
        state.room -= n;
        Ok(n)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.state().write_shut = true;
        Ok(())
    }
}

impl State {
    /// All of it, or now and then less, but something.
    fn some(&mut self, most: usize) -> usize {
        if self.one_in < usize::MAX && self.random.below(self.one_in) == 0 {
            self.random.between(1, most + 1)
        } else {
            most
        }
    }
}

/// One thread at a time, as the engine promises its transports.
struct Alone<'a>(&'a AtomicBool);

impl<'a> Alone<'a> {
    fn enter(busy: &'a AtomicBool, what: &str) -> Self {
        assert!(!busy.swap(true, Ordering::SeqCst), "two threads {what}");
        Self(busy)
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}
