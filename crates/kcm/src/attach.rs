//! Attaching streams, and giving them back.

use std::{
    collections::HashSet,
    net::TcpListener,
    os::fd::AsFd,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
};

use kcm_frame::{Framing, Step};

use crate::{
    background,
    connection::ConnectionId,
    error::{AttachError, Error, Result},
    gather,
    mux::Mux,
    psock::Psock,
    sys,
    transport::{Carrier, Stream},
};

/// All streams attached in this process, by socket cookie: two multiplexors that read one stream
/// would each get half of its messages.
static ATTACHED: Mutex<Option<HashSet<u64>>> = Mutex::new(None);

fn attached() -> MutexGuard<'static, Option<HashSet<u64>>> {
    ATTACHED.lock().unwrap_or_else(|e| e.into_inner())
}

/// A stream's place in the list; also remembers how its descriptor was set.
pub(crate) struct Attached {
    cookie: u64,
    was_nonblocking: bool,
}

impl Attached {
    fn new(carrier: &Carrier) -> Result<Option<Self>> {
        if !carrier.is_socket() {
            return Ok(None);
        }
        let cookie = sys::check_attachable(carrier.as_fd())?;
        if !attached().get_or_insert_default().insert(cookie) {
            return Err(Error::AlreadyAttached);
        }
        let mut this = Self {
            cookie,
            was_nonblocking: false,
        };
        this.was_nonblocking = sys::set_nonblocking(carrier.as_fd(), false)?;
        Ok(Some(this))
    }

    fn restore(self, carrier: &Carrier) {
        if self.was_nonblocking {
            // It could be set before; if not now, the caller finds it blocking.
            let _ = sys::set_nonblocking(carrier.as_fd(), true);
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(all) = attached().as_mut() {
            all.remove(&self.cookie);
        }
    }
}

impl Mux {
    pub(crate) fn attach(
        self: &Arc<Self>,
        stream: Stream,
        framing: &Framing,
        already_read: &[u8],
    ) -> Result<ConnectionId, AttachError> {
        let carrier = stream.0;
        let mut taken = match Attached::new(&carrier) {
            Ok(taken) => taken,
            Err(error) => {
                return Err(AttachError {
                    error,
                    stream: Stream(carrier),
                });
            }
        };
        let added = self.add_psock(|id, index| {
            Ok(Arc::new(Psock::new(
                id,
                index,
                self.clone(),
                carrier.clone(),
                framing,
                self.message_limits,
                already_read,
                taken.take(),
            )))
        });
        match added {
            Ok(psock) => Ok(psock.id),
            Err(error) => {
                if let Some(taken) = taken {
                    taken.restore(&carrier);
                }
                Err(AttachError {
                    error,
                    stream: Stream(carrier),
                })
            }
        }
    }

    pub(crate) fn unattach(self: &Arc<Self>, id: ConnectionId) -> Result<(Stream, Vec<u8>)> {
        let psock = self.psock(id)?;
        gather::flush_before(&psock);
        // What was begun is finished first: a stream is never given back inside a message.
        let carrier = psock.tx.detach(sys::from_now(self.linger))?;
        let taken = psock
            .attached
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .take();
        // With the stream in hand, whoever finds the connection's end at this moment does not tell it.
        let untold = carrier.is_some() && psock.leave_untold();
        // Counted before the connection's counters are added up at its removal.
        let rest = self.stop_receiving(&psock);
        if self.remove_psock(id).is_none() && !untold {
            return Err(Error::NoSuchConnection);
        }
        match carrier {
            Some(carrier) => {
                // Out of the list, so that nobody registers it any more: with an entry left behind,
                // the next attachment would have its events under this one's id.
                self.watch.unregister_carrier(&psock, &carrier);
                background::get().forget(&psock, &carrier);
                if let Some(taken) = taken {
                    taken.restore(&carrier);
                }
                Ok((Stream(carrier), rest))
            }
            // It ended before, or while, it was taken away; what is whole stays receivable.
            None => Err(Error::NoSuchConnection),
        }
    }

    /// Takes the receiving side away from whoever works on it. Whole messages that were read stay to
    /// be received; gives the rest.
    fn stop_receiving(&self, psock: &Arc<Psock>) -> Vec<u8> {
        let mut rx = psock.lock_rx();
        let mut messages = Vec::new();
        // A socket that walks through a burst keeps what it has taken; the rest is cut here.
        let revoked = self.revoke_under(psock, &mut rx);
        while let Step::Message(frame) = rx.step() {
            let Some(message) = rx.cut(psock, &frame) else {
                break;
            };
            let counters = &psock.counters;
            counters.rx_messages.fetch_add(1, Ordering::Relaxed);
            counters.rx_bytes.fetch_add(frame.len, Ordering::Relaxed);
            messages.push(message);
        }
        for message in messages {
            rx.return_message(message);
        }
        let rest = rx.take_rest();
        rx.stop(psock);
        psock.end_partial();
        drop(rx);
        psock.offer_returned(revoked);
        rest
    }

    pub(crate) fn listen(self: &Arc<Self>, listener: TcpListener) -> Result<()> {
        if self.is_closed() {
            return Err(Error::Closed);
        }
        listener.set_nonblocking(true)?;
        background::get().listen(self, listener)
    }

    /// Accepts what waits at the listener. False: the limit of connections is reached.
    pub(crate) fn accept_from(self: &Arc<Self>, listener: &TcpListener) -> bool {
        /// Connections accepted in a row, before others have their turn.
        const MOST: usize = 64;
        for _ in 0..MOST {
            if self.psock_count() >= self.limits.max_connections {
                return false;
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    // Messages are small, and queued ones are gathered here.
                    let _ = stream.set_nodelay(true);
                    // A peer that is gone already is no error of ours.
                    let _ = self.attach(stream.into(), &self.framing, &[]);
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                // No descriptor left: as the limit.
                Err(e) if matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    return false;
                }
                Err(_) => {}
            }
        }
        true
    }
}

impl Psock {
    /// The stream, while it may be registered anywhere.
    pub(crate) fn carrier_for_epoll(&self) -> Option<Arc<Carrier>> {
        self.tx.carrier()
    }

    /// Whether a thread may block in a receive on it.
    pub(crate) fn can_be_watched_alone(&self) -> bool {
        self.is_socket
    }
}
