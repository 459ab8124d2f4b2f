//! Steering: which socket gets a message, where its parser has read more than a length.
//!
//! A parser may give a message a *key* (what belongs together: a session, a stream, a partition) and
//! a *class* (what is more urgent). Without them, whoever asks first gets the next message of any
//! connection. With them:
//!
//! - Messages of one key go to one socket while it has any of that key in hand. So they are worked
//!   on one after the other, and by a thread that has their data in its cache.
//! - An answer whose key a socket has asked for goes to that socket, if it comes soon.
//! - Connections with a message of a higher class at the front have their turn first
//!   (`steering/classes.rs`).
//!
//! The obvious design hashes a key to a socket that has it for good. That brings back what this
//! project exists to avoid: messages in the queue of a thread that is busy, while others are idle.
//! Here a key belongs to a socket only while that works on it. Then it is anybody's again: first the
//! same socket's, since it is the one that asks.
//!
//! ```text
//!                      ┌── nobody has the key, or the socket itself ──▶ take it
//!   front of a         │
//!   connection, ───────┼── another has it ───────────────────────────▶ set it aside for that one,
//!   asked by a socket  │                                               look at the next
//!                      └── another has it, and 256 wait ─────────────▶ hold the connection back
//!
//!   the socket asks again ────────────────────▶ it goes on with what waits of one of its keys
//!   it says done, is dropped,
//!   or has not asked for a second ────────────▶ what waits is announced in the ready list:
//!   an answer's socket does not come in 10 ms ▶ it is for whoever asks
//! ```
//!
//! A message of a busy key could stay at the front of its connection until its socket asks. Then one
//! slow thread would hold up all other keys of that connection, which often carries thousands. So
//! the thread that meets it cuts it off and sets it aside; only 256 messages of one key, for what is
//! set aside takes memory. Then the connection is held back as an ordered one is: its claim is the
//! key's.
//!
//! Nothing can wait for ever: whatever is set aside or held back has a time at which it is for whoever
//! asks. A socket that does not ask for so long is stuck; the price is that two threads work
//! on one key then. A dropped socket, also of a thread that panicked, gives up what it has at once.
//!
//! All of this is a state machine without a clock or threads (`steering/table.rs`), under one lock. A
//! message with a key takes that lock twice, and messages without never: the branch is
//! where a message is cut off its connection, which natives do once for a burst. The state machine
//! only notes what has to be done with the hub and the sockets; that is done when the caller has left all
//! locks. The lock is taken with a connection's receiving side locked, and nothing is called under it.

mod classes;
mod table;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use kcm_frame::Frame;

pub(crate) use classes::ByClass;
pub(crate) use table::Way;

use crate::{
    background, connection::ConnectionId, hub::Kick, message::Message, mux::Mux, psock::Psock,
    socket::SocketState,
};
use table::{Aside, Table};

/// How long a message waits for the socket that works on another of its key, 1 s: longer than nearly
/// any work on one message, for its end gives up the order; and what is late by a second is not lost.
pub const DEFAULT_KEY_PATIENCE: Duration = Duration::from_secs(1);

/// What a parser said of a message beside its length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Label {
    pub(crate) key: Option<u32>,
    pub(crate) class: u8,
}

impl Label {
    /// That of natives.
    pub(crate) const PLAIN: Self = Self {
        key: None,
        class: 0,
    };

    pub(crate) fn of(frame: &Frame) -> Self {
        Self {
            key: frame.key,
            class: frame.class,
        }
    }
}

/// An item of the ready list. Its kind takes a word: with a byte, the compiler copies the 15 bytes behind
/// it as a whole, which were written in parts just before; the processor waits for that.
#[repr(u64)]
pub(crate) enum Ready {
    /// This connection has, or may have, a message.
    Connection(Arc<Psock>),
    /// Messages of this key, the first of this class, have been set aside and are for whoever asks.
    Key(u32, u8),
}

impl Ready {
    /// It will be worked on soon.
    pub(crate) fn prefetch(&self) {
        if let Self::Connection(psock) = self {
            psock.prefetch_for_take();
        }
    }

    pub(crate) fn class(&self) -> u8 {
        match self {
            Self::Connection(psock) => psock.class.load(Ordering::Relaxed),
            Self::Key(_, class) => *class,
        }
    }
}

/// Who has which key, in one multiplexor.
pub(crate) struct Steering {
    /// A key was seen: until then there is nothing to look for.
    used: AtomicBool,
    /// There is news in the table.
    has_news: AtomicBool,
    table: Mutex<Table<Message, Arc<Psock>>>,
}

impl Steering {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            used: AtomicBool::new(false),
            has_news: AtomicBool::new(false),
            table: Mutex::new(Table::new(patience)),
        }
    }

    /// Whether any message or question had a key so far.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    fn begin_use(&self) {
        // (Without a write where it is known, which would take the line from the others.)
        if !self.is_used() {
            self.used.store(true, Ordering::Relaxed);
        }
    }

    fn with<R>(&self, f: impl FnOnce(&mut Table<Message, Arc<Psock>>) -> R) -> R {
        let mut table = self.table.lock().unwrap_or_else(|e| e.into_inner());
        let result = f(&mut table);
        if table.has_news() {
            self.has_news.store(true, Ordering::Release);
        }
        result
    }

    /// What becomes of a message of this key at the front of a connection, whose receiving side
    /// the caller has locked. For [`Way::Held`] its claim is no longer the caller's.
    pub(crate) fn meet(&self, key: u32, socket: &SocketState, psock: &Arc<Psock>) -> Way {
        self.begin_use();
        let may_pass = !psock.ordered.load(Ordering::Relaxed);
        self.with(|table| table.meet(key, socket.index, may_pass, || psock.clone(), Instant::now))
    }

    /// Whether a message of this key is the socket's; if not, it stays where it is.
    pub(crate) fn try_take(&self, key: u32, socket: &SocketState) -> bool {
        self.begin_use();
        self.with(|table| table.try_take(key, socket.index))
    }

    /// Sets a message aside that was cut off; nobody wants it once all is closed.
    pub(crate) fn set_aside(&self, key: u32, message: Message) {
        let aside = aside(message);
        let unwanted = self.with(|table| table.set_aside(key, aside, Instant::now));
        drop(unwanted);
    }

    /// A message with this key goes back, its connection's receiving side being locked; the message,
    /// if it is to stand at the front of its connection.
    pub(crate) fn give_back(&self, key: u32, message: Message) -> Option<Message> {
        let aside = aside(message);
        self.with(|table| table.give_back(key, aside))
    }

    /// Whether messages wait for this socket alone.
    #[inline]
    pub(crate) fn has_for(&self, socket: &SocketState) -> bool {
        self.is_used() && self.has_in_use_for(socket)
    }

    #[cold]
    #[inline(never)]
    fn has_in_use_for(&self, socket: &SocketState) -> bool {
        self.with(|table| table.has_for(socket.index))
    }

    /// What waits of this connection is not to be received any more.
    pub(crate) fn forget(&self, connection: ConnectionId) {
        if self.is_used() {
            let forgotten = self.with(|table| table.forget(connection, Instant::now));
            drop(forgotten);
        }
    }

    /// Nobody asks any more.
    pub(crate) fn close(&self) {
        let all = self.with(Table::close);
        drop(all);
    }
}

fn aside(message: Message) -> Aside<Message> {
    Aside {
        class: message.class(),
        connection: message.connection(),
        position: message.stream_position(),
        message,
    }
}

impl Mux {
    /// The socket is done with the keys that it has, and asks for more: what waits for it, up to
    /// `most` messages.
    pub(crate) fn ask_by_key(
        self: &Arc<Self>,
        socket: &SocketState,
        most: usize,
        out: impl FnMut(Message),
    ) {
        let highest = self.hub.highest_class();
        (self.steering).with(|table| table.ask(socket.index, most, highest, out, Instant::now));
        self.tell_steering();
    }

    /// The socket is done with the keys that it has.
    pub(crate) fn finish_keys(self: &Arc<Self>, socket: &SocketState) {
        (self.steering).with(|table| table.finish(socket.index, Instant::now));
        self.tell_steering();
    }

    /// What waits of a key that was found in the ready list.
    pub(crate) fn take_key(
        self: &Arc<Self>,
        key: u32,
        socket: &SocketState,
        most: usize,
        out: impl FnMut(Message),
    ) {
        (self.steering)
            .with(|table| table.take_announced(key, socket.index, most, out, Instant::now));
        self.tell_steering();
    }

    /// A message of this key has left the socket's hand.
    pub(crate) fn put_key_down(self: &Arc<Self>, key: u32, socket: &SocketState) {
        (self.steering).with(|table| table.put_down(key, socket.index, Instant::now));
        self.tell_steering();
    }

    /// The socket waits for an answer with this key; `ask` asks for it.
    pub(crate) fn await_key<E>(
        self: &Arc<Self>,
        key: u32,
        socket: &SocketState,
        ask: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        self.steering.begin_use();
        // First: the answer may be here before the call returns.
        (self.steering).with(|table| table.want(key, socket.index, Instant::now));
        let asked = ask();
        if asked.is_err() {
            (self.steering).with(|table| table.want_no_more(key, socket.index, Instant::now));
        }
        self.tell_steering();
        asked
    }

    /// The socket is gone.
    pub(crate) fn leave_steering(self: &Arc<Self>, socket: &SocketState) {
        if self.steering.is_used() {
            (self.steering).with(|table| table.leave(socket.index, Instant::now));
            self.tell_steering();
        }
    }

    /// The background thread: somebody's time may be over.
    pub(crate) fn expire_keys(self: &Arc<Self>) {
        (self.steering).with(|table| table.expire(Instant::now()));
        self.tell_steering();
    }

    /// Does what the table has noted; with no lock held.
    pub(crate) fn tell_steering(self: &Arc<Self>) {
        let steering = &self.steering;
        if !steering.has_news.load(Ordering::Acquire)
            || !steering.has_news.swap(false, Ordering::AcqRel)
        {
            return;
        }
        let news = steering.with(Table::take_news);
        for (key, class) in news.announce {
            self.push(Ready::Key(key, class));
        }
        for psock in news.release {
            psock.release(true);
        }
        for index in news.ring.iter().chain(&news.call) {
            if let Some(socket) = self.socket_state(*index)
                && socket.poll.is_polled()
            {
                socket.poll.ring();
            }
        }
        for index in news.call {
            if let Some(socket) = self.socket_state(index)
                && self.hub.call(&socket.parker) == Kick::Watcher
            {
                self.watch.bring_back(&self.hub);
            }
        }
        if let Some(at) = news.timer {
            background::get().look_at_keys(self, at);
        }
    }
}
