//! Room for new connections when those that say nothing have all places.
//!
//! A connection without a message costs next to nothing, so it may stay for as long as its client
//! likes; but its place is one of `--max-connections`, or of the system's descriptors. Where others
//! wait for a place, clients that have sent nothing for the deadline, and wait for nothing, give way:
//! the longest silent first, and not all of them at once, as one may be enough. (What is gone without
//! a word is found by TCP's keep-alive, whether others wait or not.)

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use kcm::ConnectionId;

use super::Clients;
use crate::serve::log::Line;

/// From one look at all connections to the next, 0.5 s: 10,000 are looked at in a few hundredths of
/// it.
const LOOK: Duration = Duration::from_millis(500);
/// One of so many silent connections is closed at a look: a flood of silent ones is gone in seconds,
/// and a pool that somebody keeps is not emptied for one newcomer.
const ONE_OF: usize = 8;

/// What was seen.
#[derive(Default)]
pub(super) struct Room {
    next_look: Option<Instant>,
    /// Messages that had come of each silent connection, and since when it is known to be silent.
    silent: HashMap<ConnectionId, (u64, Instant)>,
    /// Told to go, at the last look at which any were.
    going: Vec<ConnectionId>,
}

impl Clients {
    /// Somebody waits for a place. `busy`: connections of which messages are in hand.
    pub(in crate::serve) fn make_room(
        &mut self,
        now: Instant,
        busy: impl FnOnce() -> HashSet<ConnectionId>,
    ) {
        if self.room.next_look.is_some_and(|at| now < at) {
            return;
        }
        self.room.next_look = Some(now + LOOK);
        // Their places are free in a moment.
        self.room
            .going
            .retain(|&id| self.mux.connection(id).is_ok());
        if !self.room.going.is_empty() {
            return;
        }
        let busy = busy();
        let before = std::mem::take(&mut self.room.silent);
        let mut idle = Vec::new();
        for c in self.mux.stats().connections {
            let waits = c.in_message || c.unread_bytes > 0 || c.queued_bytes > 0;
            if waits || busy.contains(&c.id) || self.slow.contains_key(&c.id) {
                continue;
            }
            let messages = c.counters.rx_messages;
            let since = match before.get(&c.id) {
                Some(&(then, since)) if then == messages => since,
                _ => now,
            };
            self.room.silent.insert(c.id, (messages, since));
            if now.duration_since(since) >= self.deadline {
                idle.push((since, c.id));
            }
        }
        idle.sort_unstable_by_key(|&(since, id)| (since, id.as_u64()));
        let some = idle.len().div_ceil(ONE_OF);
        for (_, id) in idle.into_iter().take(some) {
            let name = self.peers.name(id);
            let message = format!(
                "{name} is closed: it has sent nothing for the deadline, and others wait for a place \
                 (--max-connections, ulimit -n)"
            );
            let line = Line::new("connection-closed", message).with("connection", id.as_u64());
            self.log.write_client(line);
            if let Ok(connection) = self.mux.connection(id) {
                connection.close();
                self.room.going.push(id);
            }
        }
    }
}
