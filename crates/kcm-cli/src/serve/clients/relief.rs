//! Relief when unfinished messages fill the memory.
//!
//! Above `--memory` the multiplexor reads nothing more, so that TCP's windows close and clients wait.
//! That is right while workers are busy with what it holds. But clients that begin long messages and
//! do not go on hold memory that no worker can free: without more, all others would wait until the
//! deadline of those, again and again.
//!
//! So while workers are idle, memory is short and what somebody has sent stays unread, a message that
//! was begun has not the deadline, but from one look to the next. Then clients that have sent nothing
//! more are closed; and only if there is none, also those that have: they may be held up themselves.
//!
//! A look asks the system about every connection. So nobody looks unless something came, and then once
//! in [`LOOK`].

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use kcm::{ConnectionId, ConnectionStats};

use super::Clients;
use crate::serve::log::Line;

/// From one look to the next, 0.5 s: longer than packets take that are lost and sent again, and
/// 10,000 connections are looked at in a few hundredths of it.
const LOOK: Duration = Duration::from_millis(500);

/// What was seen.
#[derive(Default)]
pub(super) struct Relief {
    next_look: Option<Instant>,
    /// At the last look.
    seen: HashMap<ConnectionId, ConnectionStats>,
}

impl Clients {
    /// A worker is idle, and something may have come that was no message.
    pub(in crate::serve) fn something_came(&mut self) {
        if self.relief.next_look.is_none() {
            self.relief.next_look = Some(Instant::now() + LOOK);
        }
    }

    /// When to call [`Clients::relieve`] next, if at all.
    pub(in crate::serve) fn next_look(&self) -> Option<Instant> {
        self.relief.next_look
    }

    /// Closes who holds up others with an unfinished message, if it is time to look; `idle`: workers
    /// are.
    pub(in crate::serve) fn relieve(&mut self, now: Instant, idle: bool) {
        if self.relief.next_look.is_none_or(|at| now < at) {
            return;
        }
        let stats = self.mux.stats();
        let seen = std::mem::take(&mut self.relief).seen;
        let short = stats.memory_bytes.saturating_add(self.message_bytes) > self.max_held_bytes;
        let begun = stats.connections.iter().any(|c| c.in_message);
        if !(short && begun) {
            return;
        }
        if !idle {
            // Once they are, perhaps nothing more comes that would call for a look.
            self.relief.next_look = Some(now + LOOK);
            return;
        }
        // Those of which no message has come since the last look, then and now.
        let still = |holds: fn(&ConnectionStats) -> bool| {
            let (seen, now) = (&seen, &stats.connections);
            now.iter().filter(move |now| {
                let then = seen.get(&now.id).filter(|then| holds(then));
                let messages = then.map(|then| then.counters.rx_messages);
                holds(now) && messages == Some(now.counters.rx_messages)
            })
        };
        let (stuck, held_up): (Vec<_>, Vec<_>) =
            still(|c| c.in_message).partition(|c| c.unread_bytes == 0);
        let others_wait = still(|c| c.unread_bytes > 0).any(|c| !self.is_disabled(c.id));
        self.relief = Relief {
            next_look: Some(now + LOOK),
            seen: (stats.connections.iter().cloned())
                .map(|connection| (connection.id, connection))
                .collect(),
        };
        if !others_wait {
            return;
        }
        for connection in if stuck.is_empty() { held_up } else { stuck } {
            let id = connection.id;
            let name = self.peers.name(id);
            let message = format!(
                "{name} is closed: its message is not whole, and others wait for the memory \
                 (--memory)"
            );
            let line = Line::new("connection-closed", message).with("connection", id.as_u64());
            self.log.write_client(line);
            if let Ok(connection) = self.mux.connection(id) {
                connection.close();
            }
        }
    }
}
