use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;

const PATIENCE: Duration = Duration::from_millis(100);
const SOCKETS: usize = 4;
const KEYS: u32 = 3;
const CONNECTIONS: usize = 3;

/// A message: its key, connection and place there.
type Message = (u32, usize, u64);

fn aside(message: Message) -> Aside<Message> {
    Aside {
        message,
        class: 0,
        connection: ConnectionId(message.1 as u64),
        position: message.2,
    }
}

/// The table, the hub, the connections and the sockets; and, naively, who works on what.
struct World {
    table: Table<Message, usize>,
    now: Instant,
    timers: Vec<Instant>,
    announced: VecDeque<u32>,
    called: HashSet<usize>,
    /// For each connection what has not gone out, and whether the table holds it back. The last one
    /// is ordered: nothing of it is set aside.
    streams: Vec<(VecDeque<Message>, bool)>,
    sent: u64,
    /// What each socket works on, and has not lost to another.
    hands: Vec<Vec<Message>>,
    /// By key and connection, the last that went out, unless something came back.
    last: HashMap<(u32, usize), u64>,
    received: u64,
}

impl World {
    fn new() -> Self {
        Self {
            table: Table::new(PATIENCE),
            now: Instant::now(),
            timers: Vec::new(),
            announced: VecDeque::new(),
            called: HashSet::new(),
            streams: (0..CONNECTIONS).map(|_| Default::default()).collect(),
            sent: 0,
            hands: vec![Vec::new(); SOCKETS],
            last: HashMap::new(),
            received: 0,
        }
    }

    fn send(&mut self, key: u32, connection: usize) {
        self.sent += 1;
        let message = (key, connection, self.sent);
        self.streams[connection].0.push_back(message);
    }

    fn hear_news(&mut self) {
        let news = self.table.take_news();
        self.announced.extend(news.announce.iter().map(|it| it.0));
        for connection in news.release {
            assert!(std::mem::take(&mut self.streams[connection].1));
        }
        self.called.extend(news.call);
        self.timers.extend(news.timer);
    }

    /// The socket gets a message: nobody else may work on its key, and it is the next.
    fn got(&mut self, socket: usize, message: Message) {
        let (key, connection, position) = message;
        for (other, hand) in self.hands.iter().enumerate() {
            assert!(other == socket || hand.iter().all(|it| it.0 != key));
        }
        let last = self.last.insert((key, connection), position);
        assert!(last.is_none_or(|last| last < position));
        self.hands[socket].push(message);
        self.received += 1;
    }

    /// A receive, as `Socket::recv` does it.
    fn receive(&mut self, socket: usize, most: usize) -> bool {
        let now = self.now;
        self.hands[socket].clear();
        let mut out = Vec::new();
        self.table.ask(socket, most, 0, |it| out.push(it), || now);
        self.hear_news();
        while out.is_empty()
            && let Some(key) = self.announced.pop_front()
        {
            let table = &mut self.table;
            table.take_announced(key, socket, most, |it| out.push(it), || now);
            self.hear_news();
        }
        if !out.is_empty() {
            out.into_iter().for_each(|it| self.got(socket, it));
            return true;
        }
        for connection in 0..CONNECTIONS {
            let may_pass = connection + 1 < CONNECTIONS;
            while !self.streams[connection].1
                && let Some(&message) = self.streams[connection].0.front()
            {
                let way = (self.table).meet(message.0, socket, may_pass, || connection, || now);
                if way == Way::Held {
                    self.streams[connection].1 = true;
                    self.hear_news();
                    break;
                }
                self.streams[connection].0.pop_front();
                if way == Way::Take {
                    self.hear_news();
                    self.got(socket, message);
                    return true;
                }
                assert!(may_pass);
                assert_eq!(
                    self.table.set_aside(message.0, aside(message), || now),
                    None
                );
                self.hear_news();
            }
        }
        false
    }

    fn finish(&mut self, socket: usize) {
        let now = self.now;
        self.hands[socket].clear();
        self.table.finish(socket, || now);
        self.hear_news();
    }

    fn leave(&mut self, socket: usize) {
        let now = self.now;
        self.hands[socket].clear();
        self.table.leave(socket, || now);
        self.hear_news();
    }

    /// The last of what the socket has goes back.
    fn give_back(&mut self, socket: usize) {
        let now = self.now;
        let Some(message) = self.hands[socket].pop() else {
            return;
        };
        let (key, connection, _) = message;
        self.received -= 1;
        self.last.remove(&(key, connection));
        if self.table.give_back(key, aside(message)).is_some() {
            let stream = &mut self.streams[connection].0;
            let place = stream.partition_point(|it| it.2 < message.2);
            stream.insert(place, message);
        }
        self.table.put_down(key, socket, || now);
        self.hear_news();
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        let held_before: Vec<_> = self
            .table
            .keys
            .iter()
            .map(|(k, it)| (*k, it.with))
            .collect();
        let (over, rest) = self.timers.drain(..).partition(|at| *at <= now);
        self.timers = rest;
        let over: Vec<Instant> = over;
        over.iter().for_each(|_| self.table.expire(now));
        // Who lost a key does not count as working on it any more.
        for (key, with) in held_before {
            if let With::Hand { socket, .. } = with
                && !self.table.hand(socket).keys.contains(&key)
            {
                self.hands[socket].retain(|it| it.0 != key);
            }
        }
        self.hear_news();
    }

    /// What waits is known to somebody, and for a time that ends.
    fn check(&self) {
        for (key, entry) in &self.table.keys {
            assert!(!entry.is_nothing());
            let waits = !entry.waiting.is_empty();
            match entry.with {
                With::Nobody => assert!(!waits || self.announced.contains(key)),
                With::Hand { socket, messages } => {
                    assert!(messages > 0 && self.table.sockets[socket].keys.contains(key));
                }
                With::Reserved(socket) => {
                    assert!(self.called.contains(&socket) && self.table.has_for(socket));
                    assert!(waits && self.table.sockets[socket].reserved.contains(key));
                }
            }
            if entry.with == With::Nobody {
                assert_eq!(entry.due, None);
                assert!(waits || entry.held.is_empty());
            } else if waits || !entry.held.is_empty() {
                let due = entry.due.expect("it ends");
                assert!(self.timers.iter().any(|at| *at <= due));
            }
        }
    }
}

fn socket() -> std::ops::Range<usize> {
    0..SOCKETS
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Nothing is lost or comes twice; a key's messages of one connection come in order; two sockets
    /// have one key only if the first was stuck; and all comes out in the end.
    #[test]
    fn one_key_one_socket_and_nothing_is_lost(
        ops in prop::collection::vec((0..10u8, socket(), 0..KEYS, 0..CONNECTIONS, 1..4usize), 1..300)
    ) {
        let mut world = World::new();
        for (op, socket, key, connection, most) in ops {
            let now = world.now;
            match op {
                0..3 => world.send(key, connection),
                3..6 => { world.receive(socket, most); }
                6 => world.finish(socket),
                7 => world.give_back(socket),
                8 => match most {
                    1 => world.leave(socket),
                    2 => world.table.want_no_more(key, socket, || now),
                    _ => world.table.want(key, socket, || now),
                },
                _ => world.pass(PATIENCE / 7 * key),
            }
            world.hear_news();
            world.check();
        }
        (0..SOCKETS).for_each(|socket| world.finish(socket));
        // Answers that nobody asks for are for all, a little later.
        for _ in 0..2 * KEYS as usize * MOST_WANTED {
            while world.receive(0, 1) {}
            if world.received == world.sent {
                break;
            }
            world.pass(ANSWER_WAIT);
            world.check();
        }
        prop_assert_eq!(world.received, world.sent);
        (0..SOCKETS).for_each(|socket| world.leave(socket));
        prop_assert!(world.table.keys.is_empty() && world.table.due.is_empty());
    }
}

#[test]
fn what_is_set_aside_is_bounded() {
    let mut world = World::new();
    world.send(1, 0);
    assert!(world.receive(0, 1));
    (0..2 * MOST_ASIDE).for_each(|_| world.send(1, 0));
    assert!(!world.receive(1, 1));
    assert!(world.streams[0].1, "its connection is held back");
    assert_eq!(world.streams[0].0.len(), MOST_ASIDE);
    for _ in 0..MOST_ASIDE - FEW_ASIDE {
        assert!(world.streams[0].1);
        assert!(world.receive(0, 1));
    }
    assert!(!world.streams[0].1);
}

#[test]
fn an_answer_goes_to_who_asked_for_it_and_soon_to_anybody() {
    let mut world = World::new();
    let now = world.now;
    world.table.want(7, 2, || now);
    world.send(7, 0);
    assert!(!world.receive(1, 1), "it is another's");
    assert!(world.receive(2, 1));
    world.finish(2);

    world.table.want(7, 2, || now);
    world.send(7, 0);
    assert!(!world.receive(1, 1));
    world.pass(ANSWER_WAIT);
    assert!(world.receive(1, 1));
}

#[test]
fn two_ask_for_one_key_and_get_the_answers_in_turn() {
    let mut world = World::new();
    let now = world.now;
    world.table.want(7, 2, || now);
    world.table.want(7, 3, || now);
    world.send(7, 0);
    world.send(7, 0);
    assert!(!world.receive(1, 1));
    assert!(world.receive(2, 1));
    world.finish(2);
    assert!(!world.receive(1, 1));
    assert!(world.receive(3, 1));
}

#[test]
fn questions_are_forgotten_beyond_a_number() {
    let mut table: Table<Message, usize> = Table::new(PATIENCE);
    let most = u32::try_from(MOST_WANTED).unwrap();
    let now = Instant::now();
    (0..2 * most).for_each(|key| table.want(key, 0, || now));
    assert_eq!(table.keys.len(), MOST_WANTED);
    assert!(table.try_take(0, 1) && !table.try_take(most, 1));
    table.leave(0, || now);
    table.leave(1, || now);
    assert!(table.keys.is_empty());
}
