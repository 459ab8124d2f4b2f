//! How a multiplexor is made, and the limits it keeps.

use std::time::Duration;

use kcm_frame::{Framing, Limits};

use crate::{
    error::Result, multiplexor::Multiplexor, socket::SocketType, steering::DEFAULT_KEY_PATIENCE,
};

/// Memory for messages, 256 MiB: sixteen messages of the largest default size at once.
pub const DEFAULT_MAX_MEMORY_BYTES: usize = 256 << 20;
/// Connections, 65,536: an idle one costs about 1 KiB here, so 64 MiB in all.
pub const DEFAULT_MAX_CONNECTIONS: usize = 65_536;
/// Sockets, 1,024: more receiving threads than any machine has processors for.
pub const DEFAULT_MAX_SOCKETS: usize = 1_024;
/// Bytes that may wait to be sent on one connection before a new message has to wait, 1 MiB:
/// several round trips of a fast network; the message that crosses the line still goes in whole.
pub const DEFAULT_SEND_BUFFER_BYTES: usize = 1 << 20;
/// How long closing waits for what is still to be sent, 5 s.
pub const DEFAULT_LINGER: Duration = Duration::from_secs(5);

/// What a multiplexor may hold. Those of a connection's messages are [`Limits`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MuxLimits {
    /// Bytes of memory for received messages; above it nothing more is read until some are
    /// dropped, but for one connection at a time that finishes a message: together never more than
    /// twice this, or a single message. Default [`DEFAULT_MAX_MEMORY_BYTES`].
    pub max_memory_bytes: usize,
    /// Connections attached at once. Default [`DEFAULT_MAX_CONNECTIONS`].
    pub max_connections: usize,
    /// Sockets open at once. Default [`DEFAULT_MAX_SOCKETS`].
    pub max_sockets: usize,
    /// Bytes waiting on one connection from which on a new message has to wait; 0 counts as 1: a
    /// message waits until nothing does. Default [`DEFAULT_SEND_BUFFER_BYTES`].
    pub send_buffer_bytes: usize,
}

impl Default for MuxLimits {
    fn default() -> Self {
        Self {
            max_memory_bytes: DEFAULT_MAX_MEMORY_BYTES,
            max_connections: DEFAULT_MAX_CONNECTIONS,
            max_sockets: DEFAULT_MAX_SOCKETS,
            send_buffer_bytes: DEFAULT_SEND_BUFFER_BYTES,
        }
    }
}

/// Makes a [`Multiplexor`]; from [`Multiplexor::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(crate) framing: Framing,
    pub(crate) limits: Limits,
    pub(crate) mux_limits: MuxLimits,
    pub(crate) socket_type: SocketType,
    pub(crate) spin: bool,
    pub(crate) sticky_send: bool,
    pub(crate) ordered: bool,
    pub(crate) connect_wait: Duration,
    pub(crate) linger: Duration,
    pub(crate) key_patience: Duration,
}

impl Builder {
    pub(crate) fn new(framing: Framing) -> Self {
        Self {
            framing,
            limits: Limits::default(),
            mux_limits: MuxLimits::default(),
            socket_type: SocketType::Dgram,
            spin: false,
            sticky_send: false,
            ordered: false,
            connect_wait: Duration::ZERO,
            linger: DEFAULT_LINGER,
            key_patience: DEFAULT_KEY_PATIENCE,
        }
    }

    /// Limits of a connection's messages: of each connection unless it is given its own
    /// ([`crate::Connection::set_limits`]).
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Limits of the multiplexor itself.
    pub fn mux_limits(mut self, limits: MuxLimits) -> Self {
        self.mux_limits = limits;
        self
    }

    /// The type of its sockets; [`SocketType::Dgram`] unless told otherwise.
    pub fn socket_type(mut self, socket_type: SocketType) -> Self {
        self.socket_type = socket_type;
        self
    }

    /// Spin for a little while before sleeping, for as long as that pays (it tunes itself).
    /// Multiplies the rate of request and response on several processors; off by default, since
    /// it takes processor time that others may want.
    pub fn spin(mut self, on: bool) -> Self {
        self.spin = on;
        self
    }

    /// An unaddressed message stays on the connection of the last one while little is queued
    /// there, for affinity; off by default: it goes where least is queued.
    pub fn sticky_send(mut self, on: bool) -> Self {
        self.sticky_send = on;
        self
    }

    /// Every connection is ordered from its first message on, as with
    /// [`crate::Connection::set_ordered`]; off by default. For a protocol whose clients match
    /// replies to requests by their order.
    pub fn ordered(mut self, on: bool) -> Self {
        self.ordered = on;
        self
    }

    /// How long an unaddressed send waits for a connection when there is none; 0 (the default):
    /// [`crate::Error::NotConnected`] at once.
    pub fn connect_wait(mut self, wait: Duration) -> Self {
        self.connect_wait = wait;
        self
    }

    /// How long closing waits for what is still to be sent; [`DEFAULT_LINGER`].
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// How long a message with a key waits for the socket that works on another one of that key;
    /// then that socket counts as stuck, and any other may have the message.
    /// [`DEFAULT_KEY_PATIENCE`] unless set. (Messages without keys wait for nobody.)
    pub fn key_patience(mut self, patience: Duration) -> Self {
        self.key_patience = patience;
        self
    }

    /// Makes the multiplexor. Fails when the system has no descriptor left (`EMFILE`, `ENFILE`).
    pub fn build(self) -> Result<Multiplexor> {
        Multiplexor::new(self)
    }
}
