//! Workers on one multiplexor for all connections.
//!
//! What a client may do to the others is bounded here. It cannot hold a worker: a message is handed
//! out only when all of it has come, and a reply is never waited for; a client that lets more
//! than [`SEND_BUFFER_BYTES`] of replies pile up is cut off. It cannot hold memory beyond its
//! message and these replies, nor, with many connections, more than [`MAX_CONNECTIONS`] times that;
//! and it cannot hold a connection without using it for longer than the idle limit.

use std::{
    collections::HashMap,
    fmt,
    io::{self, Write as _},
    net::TcpListener,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use kcm::{ConnectionId, Error, Framing, Limits, Message, Multiplexor, MuxLimits, Socket};
use thrift::server::TProcessor;

use crate::wire::{self, MAX_MESSAGE_BYTES};

/// Connections at once; others wait in the listener's backlog.
pub const MAX_CONNECTIONS: usize = 256;
/// Calls that were read and not answered yet, of all connections: the longest of each. Were it less,
/// clients that stop inside of long calls could fill it, and everybody else would wait for their
/// deadline.
pub const MAX_MEMORY_BYTES: usize = MAX_CONNECTIONS * MAX_MESSAGE_BYTES;
/// Replies that a client leaves unread, beyond what the system keeps for it. One that asks and
/// reads in turn has none here.
pub const SEND_BUFFER_BYTES: usize = 1 << 20;
/// A call must be whole so long after its first byte.
pub const ASSEMBLY_DEADLINE: Duration = Duration::from_secs(10);
/// A connection is closed after this time without a call.
pub const DEFAULT_IDLE_LIMIT: Duration = Duration::from_secs(300);
/// And already after this one while all [`MAX_CONNECTIONS`] are taken: others may wait for a place. It
/// is looked so often, too.
pub const CROWDED_IDLE_LIMIT: Duration = Duration::from_secs(5);

/// What may be chosen about a server.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Threads that work on calls.
    pub workers: usize,
    /// The calls of a connection are worked on one after the other, which clients rely on that
    /// match replies by their order, or read what a oneway call has written. Without it, several
    /// workers may work for one connection at once, for clients that match replies by sequence id.
    pub ordered: bool,
    /// See [`DEFAULT_IDLE_LIMIT`].
    pub idle_limit: Duration,
    /// See [`ASSEMBLY_DEADLINE`].
    pub assembly_deadline: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 4,
            ordered: true,
            idle_limit: DEFAULT_IDLE_LIMIT,
            assembly_deadline: ASSEMBLY_DEADLINE,
        }
    }
}

/// A service that runs, until this is dropped.
#[derive(Debug)]
pub struct Server {
    mux: Multiplexor,
    threads: Vec<JoinHandle<()>>,
    /// Its end ends the thread that looks for idle connections.
    stop: Option<mpsc::Sender<()>>,
}

impl Server {
    /// Starts the workers.
    ///
    /// # Errors
    ///
    /// Those of the system: too few descriptors, or threads.
    pub fn start<P>(processor: P, settings: Settings) -> kcm::Result<Self>
    where
        P: TProcessor + Send + Sync + 'static,
    {
        let framing: Framing = "thrift".parse()?;
        let limits = Limits::default()
            .with_max_message_bytes(MAX_MESSAGE_BYTES)
            .with_assembly_deadline(Some(settings.assembly_deadline));
        let mut mux_limits = MuxLimits::default();
        mux_limits.max_connections = MAX_CONNECTIONS;
        mux_limits.max_memory_bytes = MAX_MEMORY_BYTES;
        mux_limits.send_buffer_bytes = SEND_BUFFER_BYTES;
        let mux = Multiplexor::builder(framing)
            .limits(limits)
            .mux_limits(mux_limits)
            .ordered(settings.ordered)
            .build()?;

        let (stop, stopped) = mpsc::channel();
        let mut server = Self {
            mux: mux.clone(),
            threads: Vec::new(),
            stop: Some(stop),
        };
        let processor = Arc::new(processor);
        for _ in 0..settings.workers {
            let (mux, socket, processor) = (mux.clone(), mux.socket()?, Arc::clone(&processor));
            server.spawn("worker", move || work(&mux, socket, &*processor))?;
        }
        server.spawn("idle", move || {
            close_idle(&mux, &stopped, settings.idle_limit);
        })?;
        Ok(server)
    }

    /// Serves what connects there.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn listen(&self, listener: TcpListener) -> kcm::Result<()> {
        self.mux.listen(listener)
    }

    /// The multiplexor, for connections made elsewhere, ends of connections, and counters.
    pub fn multiplexor(&self) -> &Multiplexor {
        &self.mux
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> kcm::Result<()> {
        let thread = thread::Builder::new().name(name.to_owned()).spawn(body)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.mux.shutdown();
        self.stop = None;
        for thread in self.threads.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// Answers one call after the other, of whatever connection, until the multiplexor is shut down.
fn work<P: TProcessor>(mux: &Multiplexor, mut socket: Socket, processor: &P) {
    let mut reply = Vec::new();
    loop {
        let call = match socket.recv() {
            Ok(call) => call,
            Err(Error::Closed) => return,
            Err(e) => return log(format_args!("a worker ends: {e}")),
        };
        reply.clear();
        if let Err(e) = wire::answer(processor, &call, &mut reply) {
            cut_off(mux, &call, &e.to_string());
        } else if !reply.is_empty()
            && let Err(Error::WouldBlock) = call.try_reply(&reply)
        {
            cut_off(mux, &call, "it does not read its replies");
        }
        // If the connection has ended, its event tells why.
    }
}

fn cut_off(mux: &Multiplexor, call: &Message, why: &str) {
    if let Ok(connection) = mux.connection(call.connection()) {
        connection.close();
        log(format_args!(
            "connection {} is cut off: {why}",
            connection.id()
        ));
    }
}

/// A line on the standard error. If nobody reads it any more, that is no reason to stop, as it
/// would be for `eprintln!`.
pub fn log(line: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Closes connections that have not been called on for too long.
fn close_idle(mux: &Multiplexor, stopped: &mpsc::Receiver<()>, limit: Duration) {
    // The calls of each, and since when there were so many.
    let mut seen: HashMap<ConnectionId, (u64, Instant)> = HashMap::new();
    let look_every = limit.min(CROWDED_IDLE_LIMIT);
    while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(look_every) {
        let connections = mux.connections();
        let crowded = connections.len() >= MAX_CONNECTIONS;
        let limit = if crowded { look_every } else { limit };
        let now = Instant::now();
        let before = std::mem::take(&mut seen);
        for connection in connections {
            let calls = connection.stats().counters.rx_messages;
            let since = match before.get(&connection.id()) {
                Some(&(then, since)) if then == calls => since,
                _ => now,
            };
            if now.duration_since(since) >= limit {
                connection.close();
            }
            seen.insert(connection.id(), (calls, since));
        }
    }
}
