//! A program's view of one attached connection.

use std::{
    fmt,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::{Arc, atomic::Ordering},
};

use kcm_frame::{Framing, Limits};

use crate::{
    error::{Error, Result},
    psock::{Observer, Psock},
    stats::ConnectionStats,
    transport::Carrier,
};

/// Names a connection of a multiplexor; never given twice by the same multiplexor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub(crate) u64);

impl ConnectionId {
    /// As a number, for logs and for passing on. Above 0.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// From the number that [`ConnectionId::as_u64`] gave.
    pub fn from_u64(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A handle to an attached connection, from [`crate::Multiplexor::connection`]. It does not keep
/// the connection attached, but it keeps its descriptor open.
pub struct Connection {
    psock: Observer,
    carrier: Arc<Carrier>,
}

impl Connection {
    pub(crate) fn new(psock: Arc<Psock>) -> Result<Self> {
        let carrier = psock.tx.carrier().ok_or(Error::NoSuchConnection)?;
        Ok(Self {
            psock: Observer::new(psock),
            carrier,
        })
    }

    /// Its id.
    pub fn id(&self) -> ConnectionId {
        self.psock.id
    }

    /// The peer's address.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for a stream that is not TCP; `ENOTCONN` when the peer is gone.
    pub fn peer_addr(&self) -> Result<SocketAddr> {
        if !self.carrier.is_socket() {
            return Err(Error::Unsupported);
        }
        let address = rustix::net::getpeername(self.carrier.as_fd())?;
        let address = address.ok_or(Error::Unsupported)?;
        SocketAddr::try_from(address).map_err(|_| Error::Unsupported)
    }

    /// Bytes that wait here to be handed to the system.
    pub fn queued_bytes(&self) -> usize {
        self.psock.tx.queued_bytes()
    }

    /// Changes the limits; they hold for an unfinished message at the front too.
    pub fn set_limits(&self, limits: Limits) {
        self.psock.change_rx(|rx| rx.assembler.set_limits(limits));
        self.psock.set_deadline(limits.assembly_deadline);
        self.psock.notify();
    }

    /// Changes the framing, from the next byte on that no socket has been given.
    pub fn set_framing(&self, framing: impl Into<Framing>) {
        let framing = framing.into();
        self.psock
            .change_rx(|rx| rx.assembler.set_framing(&framing));
        self.psock.tx.set_framing(&framing);
        self.psock.notify();
    }

    /// Ordered: the next message goes out only when the socket that has the previous one asks
    /// again or says [`crate::Socket::done`]. Without it, several sockets may work on messages of
    /// one connection at once.
    pub fn set_ordered(&self, ordered: bool) {
        self.psock.ordered.store(ordered, Ordering::Relaxed);
        self.psock.take_back_lease();
        if !ordered {
            self.psock.release_order();
        }
    }

    /// While set, nothing of this connection is received: its messages stay where they are, TCP's
    /// window closes, and the time of an unfinished message does not run. The others go on. For a
    /// program that still has to do for this peer, such as to give it replies that it does not
    /// read. What a socket was given before is not taken back.
    pub fn set_receive_disabled(&self, disabled: bool) {
        // SYNC: release, with the acquire in `Mux::take`: who sees it enabled sees its time reset.
        if disabled {
            self.psock.receive_disabled.store(true, Ordering::Release);
            self.psock.take_back_lease();
            self.psock.mux.break_solo();
        } else {
            self.psock.end_partial();
            self.psock.receive_disabled.store(false, Ordering::Release);
        }
        self.psock.notify();
    }

    /// Its counters.
    pub fn stats(&self) -> ConnectionStats {
        ConnectionStats::of(&self.psock)
    }

    /// Closes it: nothing more is received, and what is queued goes out within the linger time
    /// (in the background; this returns at once). Told as [`crate::EndReason::Closed`].
    pub fn close(&self) {
        self.psock.mux.close_psock(&self.psock);
    }

    /// Whether it has ended.
    pub fn is_closed(&self) -> bool {
        self.psock.has_ended()
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.carrier.as_fd()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.id())
            .field("queued_bytes", &self.queued_bytes())
            .finish_non_exhaustive()
    }
}
