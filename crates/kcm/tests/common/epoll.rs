//! Event loops of the tests' own, around the descriptors of sockets.

use std::{
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
    thread,
    time::Duration,
};

use kcm::{Error, Message, Socket};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

use super::SOON;

/// An epoll instance with one descriptor in it.
pub(crate) struct Loop(OwnedFd);

impl Loop {
    pub(crate) fn new(fd: impl AsFd, flags: EventFlags) -> Self {
        let epoll = epoll::create(CreateFlags::CLOEXEC).expect("an epoll");
        epoll::add(&epoll, fd, EventData::new_u64(1), flags).expect("added");
        Self(epoll)
    }

    pub(crate) fn level(socket: &Socket) -> Self {
        socket.set_nonblocking(true).expect("non-blocking");
        Self::new(socket, EventFlags::IN)
    }

    pub(crate) fn edge(socket: &Socket) -> Self {
        socket.set_nonblocking(true).expect("non-blocking");
        Self::new(socket, EventFlags::IN | EventFlags::ET)
    }

    /// Also wakes when the other end of this is dropped.
    pub(crate) fn stop_with(&self, stop: impl AsFd) {
        let flags = EventFlags::HUP | EventFlags::RDHUP;
        epoll::add(&self.0, stop, EventData::new_u64(2), flags).expect("added");
    }

    /// Which descriptors are ready: (the socket's, the one that stops).
    pub(crate) fn wait(&self, limit: Duration) -> (bool, bool) {
        let mut ready = (false, false);
        let mut events = Vec::with_capacity(4);
        let limit = limit.try_into().expect("a short time");
        let spare = rustix::buffer::spare_capacity(&mut events);
        match epoll::wait(&self.0, spare, Some(&limit)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("{error}"),
        }
        for event in events {
            match event.data.u64() {
                1 => ready.0 = true,
                _ => ready.1 = true,
            }
        }
        ready
    }

    #[track_caller]
    pub(crate) fn assert_ready(&self) {
        assert!(
            self.wait(SOON).0,
            "not readable, though a message can be taken"
        );
    }

    #[track_caller]
    pub(crate) fn assert_idle(&self) {
        assert!(
            !self.wait(Duration::from_millis(10)).0,
            "readable without need"
        );
    }
}

#[track_caller]
pub(crate) fn assert_would_block(socket: &mut Socket) {
    let got = socket.recv().map(|message| message.to_vec());
    assert!(matches!(got, Err(Error::WouldBlock)), "{got:?}");
}

/// A loop that receives with a descriptor's help until `stop` hangs up; gives the numbers and the
/// times it woke.
pub(crate) fn poller(
    mut socket: Socket,
    edge: bool,
    stop: Arc<OwnedFd>,
    mut each: impl FnMut(&Message) + Send + 'static,
) -> thread::JoinHandle<u64> {
    thread::spawn(move || {
        let looping = if edge {
            Loop::edge(&socket)
        } else {
            Loop::level(&socket)
        };
        looping.stop_with(&*stop);
        let mut wakes = 0;
        loop {
            let (readable, stopped) = looping.wait(Duration::from_secs(20));
            wakes += u64::from(readable);
            if stopped {
                return wakes;
            }
            // Level-triggered: one message a turn, or none if somebody was quicker.
            loop {
                match socket.recv() {
                    Ok(message) => each(&message),
                    Err(Error::WouldBlock) => break,
                    Err(error) => panic!("{error}"),
                }
                if !edge {
                    break;
                }
            }
        }
    })
}

/// Something whose one end hangs up when the other is dropped.
pub(crate) fn stopper() -> (Arc<OwnedFd>, impl Sized) {
    let (watched, stop) = UnixStream::pair().expect("a pair");
    (Arc::new(watched.into()), stop)
}
