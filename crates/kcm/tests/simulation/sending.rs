//! What the threads of a simulation send.

use std::io::IoSlice;

use kcm::{Error, Message, SendFlags, SocketType};

use crate::{actor::Actor, sent::US};

/// A message of which all but the last part was given to `send_with`.
pub(crate) struct Unfinished {
    pub(crate) number: u32,
    last: Vec<u8>,
}

impl Actor {
    /// Sends something in one of all ways.
    pub(crate) fn send(&mut self) {
        match self.random.below(10) {
            0..3 => self.send_one(),
            3..6 => self.send_to(),
            6..8 => self.send_batch(),
            _ => self.send_parts(),
        }
    }

    /// The next message to be sent.
    fn compose(&mut self, to: Option<usize>) -> (u32, Vec<u8>) {
        let setup = &self.world.setup;
        let body = setup.wire.body_len(&mut self.random, setup.longest);
        let number = self.world.sent().begin(self.number, to, body);
        (number, setup.wire.message(0, US, number, body))
    }

    /// A socket that does not wait, or not long.
    fn sender(&mut self) -> usize {
        let one = self.random.below(self.sockets.len());
        let nonblocking = self.world.setup.threads == 1 || self.random.once_in(2);
        let socket = &self.sockets[one].socket;
        socket.set_nonblocking(nonblocking).expect("as it was told");
        one
    }

    /// A send has returned.
    fn note_sent<T>(&self, number: u32, result: &Result<T, Error>) {
        self.world.sent().end(number, result.is_ok());
        if let Err(error) = result {
            assert!(
                matches!(
                    error,
                    Error::WouldBlock
                        | Error::NotConnected
                        | Error::NoSuchConnection
                        | Error::ConnectionEnded(_)
                ),
                "{error}"
            );
        }
    }

    fn send_one(&mut self) {
        let one = self.sender();
        let (number, message) = self.compose(None);
        let (front, back) = message.split_at(self.random.below(message.len()));
        let pieces = [IoSlice::new(front), IoSlice::new(back)];
        let result = self.sockets[one].socket.send_vectored(&pieces);
        self.note_sent(number, &result);
    }

    fn send_to(&mut self) {
        let Some(id) = self.world.random_connection(&mut self.random) else {
            return;
        };
        let far = self.world.model().connection(id).far;
        let one = self.sender();
        let (number, message) = self.compose(Some(far));
        let socket = &self.sockets[one].socket;
        let result = if self.world.setup.questions && self.random.once_in(2) {
            let key = self.random.pick(&[1, 2, 3]);
            socket.send_keyed_to(id, key, &message)
        } else {
            socket.send_to(id, &message)
        };
        self.note_sent(number, &result);
    }

    /// Answers to the connection that a message came from.
    pub(crate) fn reply(&mut self, message: &Message) {
        let id = message.connection();
        let far = self.world.model().connection(id).far;
        // A reply waits for room, behind those kept back before it.
        let queued = |limit| {
            let connection = self.world.mux.connection(id);
            connection.is_ok_and(|connection| connection.queued_bytes() >= limit)
        };
        let limit = self.world.setup.send_buffer_bytes;
        if self.alone && (limit < 1 << 20 || queued(1)) {
            let peer = self.world.model().peers[far].peer.clone();
            peer.take_all();
        }
        if queued(limit) {
            return;
        }
        let (number, answer) = self.compose(Some(far));
        let result = message.reply(&answer);
        self.note_sent(number, &result);
    }

    fn send_batch(&mut self) {
        let one = self.sender();
        let count = self.random.between(1, 20);
        let batch: Vec<_> = (0..count).map(|_| self.compose(None)).collect();
        let pieces: Vec<_> = batch.iter().map(|(_, m)| IoSlice::new(m)).collect();
        let result = self.sockets[one].socket.send_batch(&pieces);
        let taken = *result.as_ref().unwrap_or(&0);
        assert!(result.is_err() || taken > 0, "it says that it took none");
        for (at, (number, _)) in batch.iter().enumerate() {
            self.world.sent().end(*number, at < taken);
        }
    }

    /// A message in several calls, the last of which may come much later.
    fn send_parts(&mut self) {
        let one = self.sender();
        let dgram = self.world.setup.socket_type == SocketType::Dgram;
        let more = if dgram {
            SendFlags::MORE
        } else {
            SendFlags::empty()
        };
        if self.sockets[one].unfinished.is_none() {
            let (number, message) = self.compose(None);
            let mut rest = &message[..];
            for _ in 0..self.random.below(3) {
                let (part, after) = rest.split_at(self.random.below(rest.len()));
                let result = self.sockets[one].socket.send_with(part, more);
                assert_eq!(result.expect("kept"), part.len());
                rest = after;
            }
            let last = rest.to_vec();
            self.sockets[one].unfinished = Some(Unfinished { number, last });
            if self.random.once_in(3) {
                return;
            }
        }
        let Some(Unfinished { number, last }) = self.sockets[one].unfinished.take() else {
            return;
        };
        let mut flags = if dgram {
            SendFlags::empty()
        } else {
            SendFlags::EOR
        };
        if self.random.once_in(2) {
            flags = flags | SendFlags::BATCH;
        }
        let result = self.sockets[one].socket.send_with(&last, flags);
        if result.is_err() && !dgram {
            // Kept, but for these bytes.
            self.sockets[one].unfinished = Some(Unfinished { number, last });
            return;
        }
        self.note_sent(number, &result);
    }
}
