//! One thread of the simulation with its sockets: draws what to do next, does it, and tells the
//! model what it saw. This part receives and moves connections; `sending.rs` sends.

use std::{os::fd::AsFd, sync::Arc, time::Duration};

use kcm::{ConnectionId, Error, Message, Socket, SocketType};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    model::{Asked, Key},
    random::Random,
    sending::Unfinished,
    wire::HEAD_MIN,
    world::World,
};

pub(crate) struct Actor {
    pub(crate) world: Arc<World>,
    pub(crate) random: Random,
    /// Which thread it is.
    pub(crate) number: usize,
    pub(crate) sockets: Vec<Sock>,
    /// Messages that are looked at for a long time.
    pub(crate) kept: Vec<Message>,
    /// No other thread is at work: nobody else would make room for what this one sends.
    pub(crate) alone: bool,
    next_key: Key,
    /// Messages received, for those that end when there are no more.
    pub(crate) received: u64,
}

pub(crate) struct Sock {
    pub(crate) socket: Socket,
    key: Key,
    /// What was read of a message so far, and where from.
    part: Option<(ConnectionId, Vec<u8>)>,
    /// What the next receive must give.
    peeked: Option<(ConnectionId, Vec<u8>)>,
    disabled: bool,
    polled: bool,
    /// What the model said when it asked for the message that it has looked at, or read in part.
    asked: Asked,
    /// A message of which a part was sent.
    pub(crate) unfinished: Option<Unfinished>,
}

impl Sock {
    /// It asks for a message, unless it has one in hand.
    fn ask(&mut self, world: &World) -> Asked {
        if self.peeked.is_none() && self.part.is_none() {
            self.asked = world.model().asks(self.key);
        }
        self.asked
    }
}

/// What became of an attempt to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Got {
    Some,
    Nothing,
}

impl Actor {
    pub(crate) fn new(world: Arc<World>, number: usize, random: Random) -> Self {
        let mut this = Self {
            alone: world.setup.threads == 1,
            world,
            random,
            number,
            sockets: Vec::new(),
            kept: Vec::new(),
            next_key: number * 1_000_000,
            received: 0,
        };
        for _ in 0..this.world.setup.sockets {
            this.add_socket();
        }
        this
    }

    /// Does one thing.
    pub(crate) fn step(&mut self) {
        match self.random.below(100) {
            0..22 => {
                let most = self.random.pick(&[1, 3, 20, 200, 5_000, 100_000]);
                if let Some(peer) = self.world.random_peer(&mut self.random) {
                    peer.give(most);
                }
            }
            22..52 => {
                let one = self.random.below(self.sockets.len());
                self.receive(one);
            }
            52..56 => self.peek(),
            56..58 => self.done(),
            58..78 => self.send(),
            78..82 => self.move_line(),
            82..85 => self.look(),
            85..87 => self.disable(),
            87..89 => self.add_or_drop_socket(),
            89 => self.add_peer(),
            90..93 => self.world.unattach(&mut self.random),
            93 if self.random.once_in(3) => self.world.close(&mut self.random),
            94 if self.random.once_in(3) => self.world.set_limits(&mut self.random),
            95 => self.set_ordered(),
            96 => {
                let keep = self.random.below(self.kept.len() + 1);
                self.kept.truncate(keep);
            }
            97 if self.world.setup.threads == 1 => self.nothing_is_left_behind(),
            _ => self.world.take_events(),
        }
        if self.world.setup.threads == 1 {
            self.world.settle();
        }
    }

    fn add_socket(&mut self) {
        let socket = match self.sockets.first() {
            Some(other) if self.random.once_in(2) => other.socket.try_clone(),
            _ => self.world.mux.socket(),
        };
        let socket = socket.expect("a socket");
        let tiny = Some(Duration::from_micros(300));
        socket.set_read_timeout(tiny).expect("a limit");
        socket.set_write_timeout(tiny).expect("a limit");
        let polled = self.world.setup.polled && self.random.once_in(2);
        if polled {
            let _ = socket.as_fd();
        }
        self.next_key += 1;
        self.sockets.push(Sock {
            socket,
            key: self.next_key,
            part: None,
            peeked: None,
            disabled: false,
            polled,
            asked: Asked::default(),
            unfinished: None,
        });
    }

    fn add_or_drop_socket(&mut self) {
        if self.random.once_in(2) && self.sockets.len() < 8 {
            self.add_socket();
        } else if self.sockets.len() > 1 {
            let one = self.random.below(self.sockets.len());
            self.drop_socket(one);
        }
    }

    fn drop_socket(&mut self, one: usize) {
        let sock = self.sockets.swap_remove(one);
        let mut model = self.world.model();
        model.begin_return();
        model.asks(sock.key);
        drop(model);
        drop(sock.socket);
        self.world.model().end_return();
        if let Some(unfinished) = sock.unfinished {
            self.world.sent().end(unfinished.number, false);
        }
    }

    fn add_peer(&mut self) {
        if self.world.peers().len() < 20 {
            self.world.attach(&mut self.random);
        }
    }

    fn set_ordered(&mut self) {
        let Some(id) = self.world.random_connection(&mut self.random) else {
            return;
        };
        if self.world.setup.ordered {
            return;
        }
        let on = self.random.once_in(2);
        if let Ok(connection) = self.world.mux.connection(id) {
            connection.set_ordered(on);
        }
    }

    fn done(&mut self) {
        let one = self.random.below(self.sockets.len());
        let sock = &mut self.sockets[one];
        if sock.peeked.is_none() && sock.part.is_none() {
            self.world.model().asks(sock.key);
        }
        sock.socket.done();
    }

    fn disable(&mut self) {
        let one = self.random.below(self.sockets.len());
        let disabled = self.random.once_in(2);
        self.set_disabled(one, disabled);
    }

    fn set_disabled(&mut self, one: usize, disabled: bool) {
        let sock = &mut self.sockets[one];
        sock.disabled = disabled;
        sock.socket.set_receive_disabled(disabled);
    }

    /// A line blocks, or takes more; or says that it is ready when it is not.
    fn move_line(&mut self) {
        let Some(peer) = self.world.random_peer(&mut self.random) else {
            return;
        };
        match peer.script() {
            Some(script) if self.random.once_in(8) => script.signal(),
            Some(script) => {
                let room = self.random.pick(&[0, 1, 40, 5_000, usize::MAX, usize::MAX]);
                script.set_room(room);
            }
            None => peer.read(),
        }
    }

    /// When no descriptor tells of a message, there is none, whatever the last receives found. (Of
    /// several, only one need tell.)
    fn look(&mut self) {
        if self.world.setup.threads > 1 {
            return;
        }
        let readable = |sock: &Sock| {
            let mut fds = [PollFd::from_borrowed_fd(sock.socket.as_fd(), PollFlags::IN)];
            poll(&mut fds, Some(&Timespec::default())).expect("poll") > 0
        };
        if (self.sockets.iter()).any(|sock| sock.polled && readable(sock)) {
            return;
        }
        for one in 0..self.sockets.len() {
            let polled = self.sockets[one].polled && !self.sockets[one].disabled;
            if polled && self.receive_somehow(one, true) == Got::Some {
                panic!("socket {one} had a message that no descriptor told of");
            }
        }
    }

    /// Receives on this socket in one of all ways.
    pub(crate) fn receive(&mut self, one: usize) -> Got {
        let nonblocking = self.random.once_in(2);
        self.receive_somehow(one, nonblocking)
    }

    fn receive_somehow(&mut self, one: usize, nonblocking: bool) -> Got {
        let sock = &mut self.sockets[one];
        sock.socket
            .set_nonblocking(nonblocking)
            .expect("as it was told");
        let asked = sock.ask(&self.world);
        match self.random.below(4) {
            0 => self.receive_into(one, asked),
            1 => self.receive_batch(one, asked),
            _ => match self.sockets[one].socket.recv() {
                Ok(message) => {
                    self.note(one, asked, &message);
                    self.use_message(message);
                    Got::Some
                }
                Err(error) => self.nothing(one, &error),
            },
        }
    }

    fn nothing(&self, one: usize, error: &Error) -> Got {
        assert!(matches!(error, Error::WouldBlock), "{error}");
        let sock = &self.sockets[one];
        let nothing = sock.part.is_none() && sock.peeked.is_none();
        assert!(nothing, "a message that was looked at is gone");
        Got::Nothing
    }

    fn receive_into(&mut self, one: usize, asked: Asked) -> Got {
        let room = HEAD_MIN + self.random.pick(&[0, 10, 300, 300_000]);
        let mut buffer = vec![0; room];
        let received = match self.sockets[one].socket.recv_into(&mut buffer) {
            Ok(received) => received,
            Err(error) => return self.nothing(one, &error),
        };
        let sock = &mut self.sockets[one];
        let bytes = &buffer[..received.len_bytes];
        let (id, mut part) = sock
            .part
            .take()
            .unwrap_or_else(|| (received.connection, Vec::new()));
        assert_eq!(id, received.connection, "a part of another");
        part.extend_from_slice(bytes);
        let all = part.len() == received.message_bytes;
        if let Some((peeked_id, peeked)) = sock.peeked.take() {
            assert_eq!(peeked_id, id, "another than was looked at");
            assert!(peeked.starts_with(bytes), "other bytes than looked at");
        }
        let stays = !all && self.world.setup.socket_type == SocketType::SeqPacket;
        assert_eq!(received.end_of_message, !stays);
        assert_eq!(received.truncated, !all && !stays);
        if stays {
            self.world.model().holds(sock.key, id, &part);
            sock.part = Some((id, part));
        } else {
            let (key, len) = (sock.key, received.message_bytes);
            self.world.model().taken(key, asked, id, &part, len);
            self.received += 1;
        }
        Got::Some
    }

    fn receive_batch(&mut self, one: usize, asked: Asked) -> Got {
        let max = self.random.pick(&[1, 2, 7, 1000]);
        let enough = match self.random.below(3) {
            0 => self.random.below(max + 1),
            _ => max,
        };
        let returns = enough < max;
        if returns {
            self.world.model().begin_return();
        }
        let mut messages = Vec::new();
        let result = match self.sockets[one].socket.recv_batch(max) {
            Ok(mut batch) => {
                while messages.len() < enough {
                    let Some(message) = batch.next() else { break };
                    messages.push(message);
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        if returns {
            self.world.model().end_return();
        }
        if let Err(error) = result {
            return self.nothing(one, &error);
        }
        assert!(messages.len() <= max);
        for message in messages {
            self.note(one, asked, &message);
            self.use_message(message);
        }
        Got::Some
    }

    /// A message was received whole, or what was left of it.
    fn note(&mut self, one: usize, asked: Asked, message: &Message) {
        let sock = &mut self.sockets[one];
        let id = message.connection();
        if let Some((peeked_id, peeked)) = sock.peeked.take() {
            assert_eq!(peeked_id, id, "another than was looked at");
            assert!(peeked[..] == message[..], "other bytes than looked at");
        }
        let key = sock.key;
        let mut model = self.world.model();
        match sock.part.take() {
            None => {
                model.taken(key, asked, id, message, message.len());
                assert_eq!(
                    (message.key(), message.class()),
                    model.label(id, message),
                    "{id}: key and class"
                );
            }
            Some((part_id, mut part)) => {
                assert_eq!(part_id, id, "the rest of another");
                part.extend_from_slice(message);
                model.taken(key, asked, id, &part, part.len());
            }
        }
        drop(model);
        self.received += 1;
    }

    /// Answers it, keeps it, or drops it.
    fn use_message(&mut self, message: Message) {
        for _ in 0..self.random.pick(&[0, 0, 1, 1, 3]) {
            self.reply(&message);
        }
        if self.random.once_in(4) && self.kept.len() < 30 {
            self.kept.push(message);
        }
    }

    fn peek(&mut self) {
        let one = self.random.below(self.sockets.len());
        let sock = &mut self.sockets[one];
        sock.socket.set_nonblocking(true).expect("as it was told");
        sock.ask(&self.world);
        match sock.socket.peek() {
            Ok(message) => {
                let seen = (message.connection(), message.to_vec());
                // (Of one that was read in part, it is the rest.)
                if sock.part.is_none() {
                    self.world.model().holds(sock.key, seen.0, &seen.1);
                }
                if let Some(before) = sock.peeked.replace(seen.clone()) {
                    assert!(before == seen, "a second look saw another");
                }
            }
            Err(error) => {
                self.nothing(one, &error);
            }
        }
    }

    /// With nobody else at work, all that has arrived can be received at once.
    pub(crate) fn nothing_is_left_behind(&mut self) {
        self.kept.clear();
        for one in 0..self.sockets.len() {
            self.set_disabled(one, false);
        }
        let mut idle = 0;
        // What one socket gives up another may have passed by.
        while idle < 2 {
            idle += 1;
            for one in 0..self.sockets.len() {
                while self.receive_somehow(one, true) == Got::Some {
                    idle = 0;
                    self.kept.clear();
                }
            }
            self.world.take_events();
        }
        let missing = self.world.model().missing();
        let memory = self.world.mux.stats().memory_bytes;
        assert!(
            missing.is_empty(),
            "left behind, with {memory} bytes in use: {missing:#?}"
        );
    }
}
