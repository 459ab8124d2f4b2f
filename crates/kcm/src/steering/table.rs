//! Which socket has which key, and what waits for it: a state machine without lock, clock or thread.
//!
//! It is told what sockets do and answers what is to be done: its news. Sockets are numbers that
//! are not used anew before [`Table::leave`]. `M` is a message, `C` a connection.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    time::{Duration, Instant},
};

use crate::connection::ConnectionId;

/// Messages of one key that may be set aside: enough for the burst of a busy key, so that what
/// stands behind it on its connection is reached; few enough that a key which gets more than its
/// socket can do closes the TCP window soon, as any slow receiver does.
pub(crate) const MOST_ASIDE: usize = 256;
/// Connections held back by a key go on when no more than this are left of its messages: not for
/// each message that is taken, which would wake a thread each.
const FEW_ASIDE: usize = MOST_ASIDE / 2;
/// How long an answer waits for the socket that has asked for it: a thread that waits for it is
/// there in 50 us, and one that is busy with something short soon after. A hundredth of what a
/// person notices.
pub(crate) const ANSWER_WAIT: Duration = Duration::from_millis(10);
/// Answers that one socket can wait for; the oldest question is forgotten then, as one that was never
/// answered. Enough for a deep pipeline, and 24 KiB.
pub(crate) const MOST_WANTED: usize = 1024;

/// What becomes of a message at the front of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// It is the asking socket's.
    Take,
    /// It is another's: to be cut off, and handed to [`Table::set_aside`].
    Aside,
    /// It stays where it is, and the table has its connection until there is room.
    Held,
}

/// A message that waits for a socket, and where it comes from.
pub(crate) struct Aside<M> {
    pub(crate) message: M,
    pub(crate) class: u8,
    pub(crate) connection: ConnectionId,
    /// In the connection's stream.
    pub(crate) position: u64,
}

/// What has to be done, by whoever finds it.
pub(crate) struct News<C> {
    /// Messages of this key wait for whoever asks; the class of the first.
    pub(crate) announce: Vec<(u32, u8)>,
    /// A message was set aside for the socket that works on its key.
    pub(crate) ring: Vec<usize>,
    /// An answer waits for this socket.
    pub(crate) call: Vec<usize>,
    /// These may go on.
    pub(crate) release: Vec<C>,
    /// [`Table::expire`] is to be called then.
    pub(crate) timer: Option<Instant>,
}

pub(crate) struct Table<M, C> {
    /// How long a message waits for the socket that works on its key.
    patience: Duration,
    keys: HashMap<u32, Key<M, C>>,
    sockets: Vec<Hand>,
    due: BTreeSet<(Instant, u32)>,
    /// When the next timer comes that was asked for.
    timer_at: Option<Instant>,
    news: News<C>,
    closed: bool,
}

/// What is known of one key; nothing is kept of one that nobody has, awaits, or wants.
struct Key<M, C> {
    with: With,
    /// In the order in which they go out.
    waiting: VecDeque<Aside<M>>,
    /// Sockets that wait for an answer with this key.
    wanted: VecDeque<usize>,
    /// Connections at whose front there is a message of this key.
    held: Vec<C>,
    /// When the patience of what waits is over.
    due: Option<Instant>,
    /// The ready list has, or will have, this key.
    announced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum With {
    Nobody,
    /// The socket works on so many messages of it.
    Hand {
        socket: usize,
        messages: usize,
    },
    /// What waits is an answer for this socket.
    Reserved(usize),
}

/// What a socket has to do with keys.
#[derive(Default)]
struct Hand {
    /// It works on them.
    keys: Vec<u32>,
    /// Answers are there.
    reserved: VecDeque<u32>,
    /// It waits for answers; the oldest first.
    wanted: VecDeque<u32>,
}

impl<M, C> Table<M, C> {
    pub(crate) fn new(patience: Duration) -> Self {
        Self {
            patience,
            keys: HashMap::new(),
            sockets: Vec::new(),
            due: BTreeSet::new(),
            timer_at: None,
            news: News::default(),
            closed: false,
        }
    }

    /// A message of this key stands at the front of a connection, and the socket asks.
    /// `may_pass`: what stands behind it may go out before it.
    pub(crate) fn meet(
        &mut self,
        key: u32,
        socket: usize,
        may_pass: bool,
        connection: impl FnOnce() -> C,
        now: impl Fn() -> Instant,
    ) -> Way {
        if self.try_take(key, socket) {
            return Way::Take;
        }
        let entry = self.keys.entry(key).or_default();
        if !may_pass && entry.with == With::Nobody && entry.waiting.is_empty() {
            // An answer for another, which has not come for it: it cannot wait here alone.
            self.give(key, socket, 1);
            return Way::Take;
        }
        if may_pass && entry.waiting.len() < MOST_ASIDE {
            return Way::Aside;
        }
        entry.held.push(connection());
        self.settle(key, now);
        Way::Held
    }

    /// As [`Table::meet`], where the message can as well stay.
    pub(crate) fn try_take(&mut self, key: u32, socket: usize) -> bool {
        if self.closed {
            return true;
        }
        let entry = self.keys.entry(key).or_default();
        // What waits is older.
        let free = entry.waiting.is_empty()
            && match entry.with {
                With::Nobody => entry.wanted.front().is_none_or(|first| *first == socket),
                With::Hand { socket: other, .. } => other == socket,
                With::Reserved(_) => false,
            };
        if free {
            self.give(key, socket, 1);
        }
        free
    }

    /// A message that [`Table::meet`] said is another socket's. Gives it back when all is closed.
    pub(crate) fn set_aside(
        &mut self,
        key: u32,
        aside: Aside<M>,
        now: impl Fn() -> Instant,
    ) -> Option<M> {
        if self.closed {
            return Some(aside.message);
        }
        let entry = self.keys.entry(key).or_default();
        entry.waiting.push_back(aside);
        if let (With::Hand { socket, .. }, 1) = (entry.with, entry.waiting.len()) {
            self.news.ring.push(socket);
        }
        self.settle(key, now);
        None
    }

    /// The socket is done with all that it has, and asks for more: what waits of its keys, if no
    /// higher class is ready elsewhere, or answers. At most `most` messages.
    pub(crate) fn ask(
        &mut self,
        socket: usize,
        most: usize,
        highest: u8,
        out: impl FnMut(M),
        now: impl Fn() -> Instant,
    ) {
        let mut own = None;
        self.put_down_all(
            socket,
            |key, entry| {
                let goes_on = own.is_none()
                    && entry.waiting.front().is_some_and(|it| it.class >= highest)
                    && entry.wanted.front().is_none_or(|first| *first == socket);
                if goes_on {
                    own = Some(key);
                }
                !goes_on
            },
            &now,
        );
        let own = own.or_else(|| self.hand(socket).reserved.front().copied());
        if let Some(key) = own {
            self.hand_out(key, socket, most, out, now);
        }
    }

    /// The socket is done with all that it has.
    pub(crate) fn finish(&mut self, socket: usize, now: impl Fn() -> Instant) {
        self.put_down_all(socket, |_, _| true, &now);
    }

    /// The socket found this key in the ready list: what waits of it, at most `most` messages.
    pub(crate) fn take_announced(
        &mut self,
        key: u32,
        socket: usize,
        most: usize,
        out: impl FnMut(M),
        now: impl Fn() -> Instant,
    ) {
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        entry.announced = false;
        if entry.with == With::Nobody
            && !entry.waiting.is_empty()
            && entry.wanted.front().is_none_or(|first| *first == socket)
        {
            self.hand_out(key, socket, most, out, now);
        } else {
            self.settle(key, now);
        }
    }

    /// A message that a socket was given goes back; the message, if it has to go to its connection
    /// (before what waits here it can only stand here).
    pub(crate) fn give_back(&mut self, key: u32, aside: Aside<M>) -> Option<M> {
        let waiting = match self.keys.get_mut(&key) {
            Some(entry) if !entry.waiting.is_empty() => &mut entry.waiting,
            _ => return Some(aside.message),
        };
        let of_same = |other: &Aside<M>| other.connection == aside.connection;
        let older = |other: &Aside<M>| of_same(other) && other.position < aside.position;
        let place = waiting.iter().rposition(older).map_or(0, |at| at + 1);
        waiting.insert(place, aside);
        None
    }

    /// One message of this key is no longer in the socket's hand.
    pub(crate) fn put_down(&mut self, key: u32, socket: usize, now: impl Fn() -> Instant) {
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        let With::Hand {
            socket: holder,
            messages,
        } = &mut entry.with
        else {
            return;
        };
        if *holder != socket {
            return;
        }
        *messages -= 1;
        if *messages == 0 {
            self.take_away(key);
            self.settle(key, now);
        }
    }

    /// The socket has asked a question whose answer has this key.
    pub(crate) fn want(&mut self, key: u32, socket: usize, now: impl Fn() -> Instant) {
        if self.closed {
            return;
        }
        let entry = self.keys.entry(key).or_default();
        entry.wanted.push_back(socket);
        let hand = self.hand(socket);
        hand.wanted.push_back(key);
        if hand.wanted.len() > MOST_WANTED
            && let Some(&oldest) = hand.wanted.front()
        {
            self.want_no_more(oldest, socket, &now);
        }
        self.settle(key, now);
    }

    /// It has not after all: its newest question of this key.
    pub(crate) fn want_no_more(&mut self, key: u32, socket: usize, now: impl Fn() -> Instant) {
        let entry = self.keys.get(&key);
        let answered = entry.is_some_and(|entry| {
            let others = entry
                .wanted
                .iter()
                .filter(|other| **other == socket)
                .skip(1);
            entry.with == With::Reserved(socket) && others.count() == 0
        });
        if answered {
            self.take_away(key);
        } else {
            self.forget_want(key, socket, true);
        }
        self.settle(key, now);
    }

    /// Takes keys and answers from those whose time is over.
    pub(crate) fn expire(&mut self, now: Instant) {
        if self.timer_at.is_none_or(|at| at > now) {
            // A timer that came too late to matter.
            return;
        }
        self.timer_at = None;
        while let Some(&(at, key)) = self.due.first()
            && at <= now
        {
            self.take_away(key);
            self.settle(key, || now);
        }
        self.set_timer();
    }

    /// Whether something waits for this socket alone.
    pub(crate) fn has_for(&self, socket: usize) -> bool {
        let Some(hand) = self.sockets.get(socket) else {
            return false;
        };
        let waits = |key| {
            self.keys
                .get(key)
                .is_some_and(|entry| !entry.waiting.is_empty())
        };
        !hand.reserved.is_empty() || hand.keys.iter().any(waits)
    }

    /// The socket is gone.
    pub(crate) fn leave(&mut self, socket: usize, now: impl Fn() -> Instant) {
        self.put_down_all(socket, |_, _| true, &now);
        while let Some(&key) = self.hand(socket).wanted.front() {
            self.want_no_more(key, socket, &now);
        }
    }

    /// Nothing more is to be received from this connection: what waits of it.
    pub(crate) fn forget(&mut self, connection: ConnectionId, now: impl Fn() -> Instant) -> Vec<M> {
        let mut forgotten = Vec::new();
        let waits = |entry: &Key<M, C>| entry.waiting.iter().any(|it| it.connection == connection);
        let of_it = self.keys.iter().filter(|(_, entry)| waits(entry));
        let keys: Vec<u32> = of_it.map(|(key, _)| *key).collect();
        for key in keys {
            if let Some(entry) = self.keys.get_mut(&key) {
                let (gone, rest): (VecDeque<_>, _) =
                    (entry.waiting.drain(..)).partition(|it| it.connection == connection);
                let before = gone.len() + rest.len();
                entry.waiting = rest;
                let empty = entry.waiting.is_empty() && matches!(entry.with, With::Reserved(_));
                forgotten.extend(gone.into_iter().map(|it| it.message));
                self.release_held(key, before);
                if empty {
                    self.take_away(key);
                }
                self.settle(key, &now);
            }
        }
        forgotten
    }

    /// All that is kept, to be dropped; from now on every message is for who asks.
    pub(crate) fn close(&mut self) -> impl Sized + use<M, C> {
        self.closed = true;
        self.due.clear();
        self.sockets.clear();
        (
            std::mem::take(&mut self.keys),
            std::mem::take(&mut self.news),
        )
    }

    pub(crate) fn take_news(&mut self) -> News<C> {
        std::mem::take(&mut self.news)
    }

    pub(crate) fn has_news(&self) -> bool {
        !self.news.is_empty()
    }

    fn hand(&mut self, socket: usize) -> &mut Hand {
        if self.sockets.len() <= socket {
            self.sockets.resize_with(socket + 1, Hand::default);
        }
        &mut self.sockets[socket]
    }

    /// The key is the socket's, with so many messages more.
    fn give(&mut self, key: u32, socket: usize, more: usize) {
        let entry = self.keys.entry(key).or_default();
        if let With::Hand { messages, .. } = &mut entry.with {
            *messages += more;
            return;
        }
        let reserved = entry.with == With::Reserved(socket);
        let asked = entry.wanted.front() == Some(&socket);
        entry.with = With::Hand {
            socket,
            messages: more,
        };
        if asked {
            self.forget_want(key, socket, false);
        }
        let hand = self.hand(socket);
        hand.keys.push(key);
        if reserved {
            hand.reserved.retain(|other| *other != key);
        }
    }

    /// What waits of the key goes to the socket.
    fn hand_out(
        &mut self,
        key: u32,
        socket: usize,
        most: usize,
        mut out: impl FnMut(M),
        now: impl Fn() -> Instant,
    ) {
        let entry = self.keys.entry(key).or_default();
        let before = entry.waiting.len();
        let count = most.min(before);
        entry.waiting.drain(..count).for_each(|it| out(it.message));
        self.release_held(key, before);
        self.not_due(key);
        self.give(key, socket, count);
        self.settle(key, now);
    }

    /// Nobody has these keys of the socket any more; those of which `settle` says so are for others
    /// at once.
    fn put_down_all(
        &mut self,
        socket: usize,
        mut settle: impl FnMut(u32, &Key<M, C>) -> bool,
        now: &impl Fn() -> Instant,
    ) {
        let mut keys = std::mem::take(&mut self.hand(socket).keys);
        for key in keys.drain(..) {
            self.not_due(key);
            if let Some(entry) = self.keys.get_mut(&key) {
                entry.with = With::Nobody;
                if settle(key, entry) {
                    self.settle(key, now);
                }
            }
        }
        // (With its memory, for the next.)
        self.hand(socket).keys = keys;
    }

    /// Takes the key from whoever has it.
    fn take_away(&mut self, key: u32) {
        self.not_due(key);
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        match std::mem::replace(&mut entry.with, With::Nobody) {
            With::Nobody => {}
            With::Hand { socket, .. } => self.hand(socket).keys.retain(|other| *other != key),
            With::Reserved(socket) => {
                self.hand(socket).reserved.retain(|other| *other != key);
                self.forget_want(key, socket, false);
            }
        }
    }

    /// A question of this key and socket, the oldest or the newest, is none any more.
    fn forget_want(&mut self, key: u32, socket: usize, newest: bool) {
        if let Some(entry) = self.keys.get_mut(&key) {
            let mut all = entry.wanted.iter();
            let place = if newest {
                all.rposition(|other| *other == socket)
            } else {
                all.position(|other| *other == socket)
            };
            place.map(|place| entry.wanted.remove(place));
        }
        let wanted = &mut self.hand(socket).wanted;
        if let Some(place) = wanted.iter().position(|other| *other == key) {
            wanted.remove(place);
        }
    }

    fn not_due(&mut self, key: u32) {
        if let Some(entry) = self.keys.get_mut(&key)
            && let Some(at) = entry.due.take()
        {
            self.due.remove(&(at, key));
        }
    }

    /// After each change: whoever waits for this key is known to somebody who comes, and for a time
    /// that ends.
    fn settle(&mut self, key: u32, now: impl Fn() -> Instant) {
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        if entry.with == With::Nobody
            && let Some(first) = entry.waiting.front()
        {
            if let Some(&socket) = entry.wanted.front() {
                entry.with = With::Reserved(socket);
                self.news.call.push(socket);
                self.hand(socket).reserved.push_back(key);
            } else if !entry.announced {
                entry.announced = true;
                self.news.announce.push((key, first.class));
            }
        }
        let Some(entry) = self.keys.get_mut(&key) else {
            return;
        };
        if entry.with == With::Nobody && entry.waiting.is_empty() {
            self.news.release.append(&mut entry.held);
        }
        let awaited = !entry.waiting.is_empty() || !entry.held.is_empty();
        let patience = match entry.with {
            With::Nobody => None,
            With::Hand { .. } => Some(self.patience),
            With::Reserved(_) => Some(ANSWER_WAIT),
        };
        if let (None, true, Some(patience)) = (entry.due, awaited, patience)
            // (Later than the clock can tell is never.)
            && let Some(at) = now().checked_add(patience)
        {
            entry.due = Some(at);
            self.due.insert((at, key));
            self.set_timer();
        } else if !awaited {
            self.not_due(key);
        }
        if let Some(entry) = self.keys.get(&key)
            && entry.is_nothing()
        {
            self.keys.remove(&key);
        }
    }

    /// What waits has become less: whether there is room again for connections held back.
    fn release_held(&mut self, key: u32, before: usize) {
        if let Some(entry) = self.keys.get_mut(&key)
            && before > FEW_ASIDE
            && entry.waiting.len() <= FEW_ASIDE
        {
            self.news.release.append(&mut entry.held);
        }
    }

    fn set_timer(&mut self) {
        if let Some(&(at, _)) = self.due.first()
            && self.timer_at.is_none_or(|set| at < set)
        {
            self.timer_at = Some(at);
            self.news.timer = Some(at);
        }
    }
}

impl<M, C> Key<M, C> {
    fn is_nothing(&self) -> bool {
        self.with == With::Nobody
            && self.waiting.is_empty()
            && self.wanted.is_empty()
            && self.held.is_empty()
    }
}

impl<M, C> Default for Key<M, C> {
    fn default() -> Self {
        Self {
            with: With::Nobody,
            waiting: VecDeque::new(),
            wanted: VecDeque::new(),
            held: Vec::new(),
            due: None,
            announced: false,
        }
    }
}

impl<C> News<C> {
    fn is_empty(&self) -> bool {
        self.announce.is_empty()
            && self.ring.is_empty()
            && self.call.is_empty()
            && self.release.is_empty()
            && self.timer.is_none()
    }
}

impl<C> Default for News<C> {
    fn default() -> Self {
        Self {
            announce: Vec::new(),
            ring: Vec::new(),
            call: Vec::new(),
            release: Vec::new(),
            timer: None,
        }
    }
}

#[cfg(all(test, not(loom)))]
#[path = "table_tests.rs"]
mod tests;
