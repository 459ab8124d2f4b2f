//! The multiplexor: N sockets over M connections.

use std::{fmt, net::TcpListener, sync::Arc};

use kcm_frame::Framing;

use crate::{
    builder::Builder,
    connection::{Connection, ConnectionId},
    error::{AttachError, Result},
    event::ConnectionEvent,
    mux::Mux,
    socket::Socket,
    stats::Snapshot,
    transport::Stream,
};

/// N message sockets over M connections; both come and go at any time, from any thread. Cloning
/// gives another handle to the same multiplexor. When the last handle and the last socket are
/// gone, it closes its connections.
///
/// There is no kernel object behind it: it cannot be passed to another process.
///
/// ```
/// use kcm::{Framing, Multiplexor};
/// use std::{io::Write, os::unix::net::UnixStream};
///
/// # fn main() -> std::io::Result<()> {
/// let framing: Framing = "u16be+2".parse().map_err(kcm::Error::from)?;
/// let mux = Multiplexor::builder(framing).build()?;
/// let (ours, mut theirs) = UnixStream::pair()?;
/// let id = mux.attach(ours)?;
/// theirs.write_all(b"\0\x02hi\0\x03you")?;
///
/// let mut socket = mux.socket()?;
/// assert_eq!(&*socket.recv()?, b"\0\x02hi");
/// let message = socket.recv()?;
/// assert_eq!((&*message, message.connection()), (&b"\0\x03you"[..], id));
/// # Ok(()) }
/// ```
pub struct Multiplexor {
    mux: Arc<Mux>,
}

impl Multiplexor {
    /// Begins to make a multiplexor whose connections carry messages of this framing.
    pub fn builder(framing: impl Into<Framing>) -> Builder {
        Builder::new(framing.into())
    }

    pub(crate) fn new(builder: Builder) -> Result<Self> {
        Ok(Self::of(Mux::new(builder)?))
    }

    fn of(mux: Arc<Mux>) -> Self {
        mux.add_handle();
        Self { mux }
    }

    /// Attaches a connected TCP or Unix stream socket, or a [`Stream`] of another kind, of which
    /// nothing was read yet that belongs here (`SIOCKCMATTACH`). The multiplexor owns it from
    /// then on; do not read or write it through another descriptor.
    ///
    /// # Errors
    ///
    /// The stream comes back with the error: not a socket (`ENOENT`); another kind of socket, or
    /// a listening or unconnected one (`EOPNOTSUPP`); attached already, here or elsewhere in this
    /// process (`EALREADY`); too many connections (`ENFILE`); shut down (`ESHUTDOWN`).
    pub fn attach(&self, stream: impl Into<Stream>) -> Result<ConnectionId, AttachError> {
        self.mux.attach(stream.into(), &self.mux.framing, &[])
    }

    /// Attaches a stream with a framing of its own, and the bytes already read from it: for a
    /// protocol that switches in mid-stream, as HTTP/1 to WebSocket.
    ///
    /// # Errors
    ///
    /// As [`Multiplexor::attach`].
    pub fn attach_with(
        &self,
        stream: impl Into<Stream>,
        framing: impl Into<Framing>,
        already_read: &[u8],
    ) -> Result<ConnectionId, AttachError> {
        self.mux
            .attach(stream.into(), &framing.into(), already_read)
    }

    /// Gives the stream back, and every byte that was read from it and that no socket can receive
    /// any more (`SIOCKCMUNATTACH`, which loses them). Whole messages that were read already stay
    /// receivable; the bytes given back begin at a message's first one. Waits until what is
    /// queued to be sent is sent, at most for the linger time.
    ///
    /// # Errors
    ///
    /// Not, or not any more, of this multiplexor (`ENOENT`); not all could be sent within the
    /// linger time (`EAGAIN`): the connection stays attached then.
    pub fn unattach(&self, id: ConnectionId) -> Result<(Stream, Vec<u8>)> {
        self.mux.unattach(id)
    }

    /// Accepts and attaches the listener's connections from now on, in the background, until the
    /// multiplexor closes; sets `TCP_NODELAY` on them. At the limit of connections, or of descriptors,
    /// the others wait in the listener's backlog.
    ///
    /// # Errors
    ///
    /// Those of the system, and `ESHUTDOWN`.
    pub fn listen(&self, listener: TcpListener) -> Result<()> {
        self.mux.listen(listener)
    }

    /// A new socket. Costs two descriptors.
    ///
    /// # Errors
    ///
    /// Too many sockets (`ENFILE`), no descriptor left (`EMFILE`), shut down (`ESHUTDOWN`).
    pub fn socket(&self) -> Result<Socket> {
        Socket::new(self.mux.clone())
    }

    /// A handle to one connection.
    ///
    /// # Errors
    ///
    /// Not, or not any more, of this multiplexor (`ENOENT`).
    pub fn connection(&self, id: ConnectionId) -> Result<Connection> {
        Connection::new(self.mux.psock(id)?)
    }

    /// All connections attached now.
    pub fn connections(&self) -> Vec<Connection> {
        let psocks = self.mux.all_psocks();
        psocks
            .into_iter()
            .filter_map(|psock| Connection::new(psock).ok())
            .collect()
    }

    /// Waits for the end of a connection. Each end is told once, in their order. It is found by the
    /// thread that has received everything before it, or whose send fails; and, where no thread
    /// receives or all are busy, within about 100 ms by the one that waits here.
    ///
    /// That one receives nothing: whole messages that wait to be received have their end behind them,
    /// a reset as well as a close, and it is told once they are taken. So it is for a connection with
    /// [`crate::Connection::set_receive_disabled`], once that is enabled again.
    ///
    /// # Errors
    ///
    /// `ESHUTDOWN` when the multiplexor was shut down and all ends are told.
    pub fn next_event(&self) -> Result<ConnectionEvent> {
        self.mux.next_event()
    }

    /// The end of a connection that has not been told yet, if any. Looks for ends that no receiver
    /// finds as [`Multiplexor::next_event`] does, at most every 100 ms.
    pub fn try_next_event(&self) -> Option<ConnectionEvent> {
        self.mux.try_next_event()
    }

    /// The counters at this moment.
    pub fn stats(&self) -> Snapshot {
        Snapshot::of(&self.mux)
    }

    /// Closes all connections (what is queued still goes out, within the linger time) and wakes
    /// every blocked caller: with [`crate::Error::Closed`], or, who waits to send to a certain
    /// connection, with [`crate::Error::ConnectionEnded`].
    pub fn shutdown(&self) {
        self.mux.close();
    }
}

impl Clone for Multiplexor {
    fn clone(&self) -> Self {
        Self::of(self.mux.clone())
    }
}

impl Drop for Multiplexor {
    fn drop(&mut self) {
        self.mux.drop_handle();
    }
}

impl fmt::Debug for Multiplexor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Multiplexor")
            .field("sockets", &self.mux.socket_count())
            .field("connections", &self.mux.psock_count())
            .finish_non_exhaustive()
    }
}
