//! The end of a simulation: everything is let go, drained, closed and compared.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    actor::{Actor, Got},
    common::SOON,
    model::{Model, State},
    sent::Fate,
    world::World,
};

impl World {
    /// Lets all lines take what they are sent.
    pub(crate) fn open_lines(&self) {
        self.peers().iter().for_each(|peer| peer.take_all());
    }

    fn queued_bytes(&self) -> usize {
        let connections = self.mux.connections();
        connections.iter().map(|c| c.queued_bytes()).sum()
    }

    /// Compares what came with what had to, and closes.
    pub(crate) fn finish(&self, mut actors: Vec<Actor>) {
        self.open_lines();
        for actor in &mut actors {
            actor.kept.clear();
            actor.alone = true;
        }
        self.drain(&mut actors);
        wait("what is queued is sent", || {
            self.open_lines();
            // Gathered replies and ends of batches, which the background thread sends.
            self.queued_bytes() == 0
        });
        self.check_while_open();
        self.model().shut_down = true;
        self.mux.shutdown();
        drop(actors);
        self.take_events();
        self.check_closed();
    }

    /// Gives everything that the peers still have, and receives until nothing is missing.
    fn drain(&self, actors: &mut [Actor]) {
        let one_thread = self.setup.threads == 1;
        let end = Instant::now() + SOON;
        let mut quiet = 0;
        loop {
            let mut moved = false;
            for peer in self.peers() {
                let before = *peer.feed();
                peer.give(usize::MAX);
                peer.read();
                let now = *peer.feed();
                moved |= (before.written, before.ended) != (now.written, now.ended);
            }
            for actor in &mut *actors {
                actor.enable_all();
                for one in 0..actor.sockets.len() {
                    while actor.receive(one) == Got::Some {
                        moved = true;
                        actor.kept.clear();
                    }
                }
            }
            self.take_events();
            if moved {
                quiet = 0;
                continue;
            }
            quiet += 1;
            let missing = self.model().missing();
            if missing.is_empty() && quiet > 2 {
                break;
            }
            // What has arrived on a script is there at once.
            assert!(
                Instant::now() < end && !(one_thread && quiet > 200 && !missing.is_empty()),
                "it never came, with {} bytes in use: {missing:#?}",
                self.mux.stats().memory_bytes
            );
            thread::sleep(Duration::from_micros(200));
        }
    }

    fn check_while_open(&self) {
        let model = self.model();
        let stats = self.mux.stats();
        assert_eq!(
            (stats.counters.rx_messages, stats.counters.rx_bytes),
            (model.received, model.received_bytes),
            "messages and bytes received, by the counters and in truth"
        );
        assert_eq!(stats.attached, model.attaches, "connections attached");
        let there = usize::try_from(stats.attached - stats.unattached).expect("few");
        assert_eq!(there, stats.connections.len(), "connections there");
    }

    fn check_closed(&self) {
        // Ends that closing brings are told by then.
        wait("every connection has ended", || {
            self.take_events();
            let model = self.model();
            let mut all = model.connections.iter();
            all.all(|(id, c)| c.state == State::Unattached || model.has_ended(*id))
        });
        self.model().check_received();
        let fates = self.fates(&self.model());
        let peers = self.peers();
        // Closing goes on in the background, which may have to wait for a processor.
        let mut before = usize::MAX;
        wait("what was sent has come", || {
            self.open_lines();
            let now = peers.iter().map(|peer| peer.got().len()).sum();
            let same = std::mem::replace(&mut before, now) == now;
            thread::sleep(Duration::from_millis(30));
            same
        });
        let all: Vec<_> = peers.iter().map(|p| &**p).zip(fates).collect();
        let sent = self.sent();
        let found = sent.check(self.setup.wire, &all);
        let stats = self.mux.stats();
        assert_eq!(stats.attached, stats.unattached, "all have left");
        let taken = sent.taken();
        let counted = stats.counters.tx_messages;
        assert!(
            (found.messages..=taken + stats.tx_retries).contains(&counted),
            "{counted} messages sent by the counter, {taken} taken, {} came, {} sent again",
            found.messages,
            stats.tx_retries
        );
        if found.missing == 0 && stats.tx_retries == 0 {
            assert_eq!(counted, taken, "messages sent");
        }
    }

    /// What became of each peer's line.
    fn fates(&self, model: &Model) -> Vec<Fate> {
        let fate = |far: usize| {
            let peer = &model.peers[far].peer;
            let mine = model.connections.values().filter(|c| c.far == far);
            if peer.is_dead() {
                return if peer.script().is_some() {
                    Fate::Died
                } else {
                    Fate::Swallowed
                };
            }
            for connection in mine {
                let impatient = !self.setup.patient() && connection.state != State::Unattached;
                if impatient || connection.was_cut() {
                    return Fate::Died;
                }
            }
            Fate::Sound
        };
        (0..model.peers.len()).map(fate).collect()
    }
}

impl Actor {
    fn enable_all(&mut self) {
        for sock in &self.sockets {
            sock.socket.set_receive_disabled(false);
        }
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !done() {
        assert!(Instant::now() < end, "waited {SOON:?} in vain: {what}");
        thread::sleep(Duration::from_micros(200));
    }
}
