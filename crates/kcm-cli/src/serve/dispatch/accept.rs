//! The dispatcher's doors: connections are let in while there is room.

use std::{io, time::Instant};

use kcm::{Error, Stream};
use rustix::{event::epoll, io::Errno};

use super::{Dispatcher, LISTENER};
use crate::serve::{
    clients::TICK,
    log::Line,
    worker::{Job, State},
};

/// Connections accepted in one turn, before others have theirs.
const ACCEPTS: usize = 64;

impl Dispatcher {
    pub(super) fn accept(&mut self, number: usize) {
        for _ in 0..ACCEPTS {
            // It may have been closed, or be full, since the event.
            let listener = self.listeners.get(number);
            let Some(listener) = listener.filter(|_| self.full_until.is_none()) else {
                return;
            };
            match listener.accept() {
                Ok((stream, peer)) => {
                    if !self.attach(stream, peer) {
                        self.stop_accepting();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    let message = format!("no more connections for now: {error} (see ulimit -n)");
                    self.log.write_client(Line::new("no-descriptor", message));
                    self.stop_accepting();
                }
                // A client that is gone already.
                Err(_) => {}
            }
        }
    }

    /// False: there is no room.
    fn attach(&mut self, stream: Stream, peer: String) -> bool {
        let clients = &self.clients;
        match clients.peers.attach(&clients.mux, stream, &peer) {
            Err(full) if matches!(full.error, Error::LimitReached { .. }) => {
                self.unattached = Some((full.stream, peer));
                false
            }
            // One that could not be attached has been reset meanwhile.
            Ok(_) | Err(_) => true,
        }
    }

    pub(super) fn stop_accepting(&mut self) {
        for listener in &self.listeners {
            let _ = epoll::delete(&self.epoll, listener);
        }
        self.wait_for_room();
    }

    /// Those that say nothing may have to go.
    fn wait_for_room(&mut self) {
        let now = Instant::now();
        self.full_until = Some(now + TICK);
        let (workers, again, no_reply) = (&self.workers, &self.again, self.options.no_reply);
        self.clients.make_room(now, || {
            let hands = workers.iter().filter_map(|worker| match &worker.state {
                State::Running(process) => Some(&process.hand),
                State::Waiting(_) | State::Ended => None,
            });
            // Who is not answered waits only until it is read.
            let waits = |job: &&Job| !(no_reply && job.read);
            let given = hands.flatten().filter(waits).chain(again);
            given.map(|job| job.connection).collect()
        });
    }

    pub(super) fn accept_again(&mut self) -> Result<(), Errno> {
        if let Some((stream, peer)) = self.unattached.take()
            && !self.attach(stream, peer)
        {
            self.wait_for_room();
            return Ok(());
        }
        self.full_until = None;
        for (number, listener) in (0..).zip(&self.listeners) {
            self.add(listener, LISTENER | number, epoll::EventFlags::IN)?;
        }
        Ok(())
    }
}
