//! The server: workers on one multiplexor for all clients.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::TcpListener,
    num::NonZeroUsize,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::Duration,
};

use kcm::{
    Connection, ConnectionEvent, ConnectionId, EndReason, Framing, Limits, Message, Multiplexor,
    MuxLimits, Socket,
};
use rustix::{
    net::sockopt,
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

use crate::{
    aside::{self, Aside, BEHIND_BYTES},
    export::Export,
    session::{FIRST_MSIZE, MIN_MSIZE, Session, Shared},
    wire::Reply,
};

/// Largest message unless told otherwise, 1 MiB: what the Linux client asks for over TCP at most.
pub const DEFAULT_MAX_MSIZE: u32 = 1 << 20;
/// Clients at once unless told otherwise, 256. One that never reads can hold the largest message for
/// each worker; the usual one, next to nothing.
pub const DEFAULT_MAX_CLIENTS: usize = 256;
/// Workers unless told otherwise, at least 4: they wait for disks, not only for processors. More cost
/// small requests something: on two processors they wake each other, and get in the way of whoever asks
/// (in the benchmark 8 give 1.05 to 1.2 times the rate of a thread for each client, 4 give 1.2 to 1.3).
const MIN_WORKERS: usize = 4;
/// Descriptors that are neither for fids, nor counted for each client (its connection, and a socket of
/// two if it is put aside) or each worker (its socket, and two of a walk under way): those of the server.
const OTHER_DESCRIPTORS: usize = 64;
const CLIENT_DESCRIPTORS: usize = 3;
const WORKER_DESCRIPTORS: usize = 4;
/// The first message has to have come after one to two times this time, 5 s: a client begins with
/// Tversion at once. Of those that never do it, as many as there are places would keep out all others.
const FIRST_MESSAGE_LIMIT: Duration = Duration::from_secs(5);
/// A message has to be whole after this time; the Linux client sends each in one piece.
const ASSEMBLY_DEADLINE: Duration = Duration::from_secs(30);
/// A client that does not acknowledge anything for so long is gone, in ms: 2 minutes, as long as
/// a network may be down without its mounts being lost.
const GONE_AFTER_MS: u32 = 120_000;

/// One that says nothing is asked by TCP after this time whether it is still there, and then every so
/// often: without it a client that is gone would keep its locks for hours.
const PROBED_AFTER: Duration = Duration::from_secs(60);
const PROBED_EVERY: Duration = Duration::from_secs(15);

/// How a server is to be.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that answer requests.
    pub workers: NonZeroUsize,
    /// The greatest `msize` that is agreed to, in bytes.
    pub max_msize: u32,
    /// Connections at once.
    pub max_clients: usize,
}

impl Default for Options {
    fn default() -> Self {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self {
            workers: NonZeroUsize::MIN.saturating_add(processors.max(MIN_WORKERS) - 1),
            max_msize: DEFAULT_MAX_MSIZE,
            max_clients: DEFAULT_MAX_CLIENTS,
        }
    }
}

/// A running server.
pub struct Server {
    mux: Multiplexor,
    clients: Arc<Clients>,
    /// Its end ends the thread that looks for silent connections.
    _stop: Sender<()>,
}

/// A connection and its session.
pub(crate) struct Client {
    session: Session,
    connection: Connection,
}

struct Clients {
    shared: Arc<Shared>,
    by_connection: Mutex<HashMap<ConnectionId, Arc<Client>>>,
}

impl Server {
    /// Serves the clients of this listener from now on.
    ///
    /// # Errors
    ///
    /// Those of the system: no thread or descriptor left; too few descriptors for so many clients.
    pub fn start(listener: TcpListener, export: Export, options: Options) -> io::Result<Self> {
        let workers = options.workers.get();
        let max_msize = options.max_msize.max(MIN_MSIZE);
        let message_bytes = usize::try_from(max_msize).unwrap_or(usize::MAX);
        // What each client can have queued when all workers have a request of it, and its
        // flushes: then no worker ever waits for a client.
        let send_buffer_bytes = message_bytes.saturating_mul(workers.saturating_add(1));
        let send_buffer_bytes = send_buffer_bytes.saturating_add(2 * BEHIND_BYTES);
        let framing: Framing = "9p".parse().map_err(kcm::Error::from)?;
        let mut limits = MuxLimits::default();
        limits.max_connections = options.max_clients;
        limits.max_sockets = workers.saturating_add(options.max_clients);
        limits.send_buffer_bytes = send_buffer_bytes;
        // Clients that stop inside of a message cannot fill it, and have all others wait for their
        // deadline.
        let unfinished_bytes = message_bytes.saturating_mul(options.max_clients);
        limits.max_memory_bytes = limits.max_memory_bytes.max(unfinished_bytes);
        let mux = Multiplexor::builder(framing)
            .ordered(true)
            .limits(message_limits(FIRST_MSIZE))
            .mux_limits(limits)
            .build()?;

        let others = OTHER_DESCRIPTORS
            .saturating_add(CLIENT_DESCRIPTORS.saturating_mul(options.max_clients))
            .saturating_add(WORKER_DESCRIPTORS.saturating_mul(workers));
        let max_fids = descriptors().saturating_sub(others);
        if max_fids < options.max_clients {
            return Err(io::Error::other(format!(
                "too few descriptors for {} clients: raise the limit (ulimit -n) beyond {}",
                options.max_clients,
                others.saturating_add(options.max_clients)
            )));
        }
        let clients = Arc::new(Clients {
            shared: Shared::new(export, max_fids, max_msize),
            by_connection: Mutex::default(),
        });
        let aside = aside::start()?;
        for number in 0..workers {
            let worker = Worker {
                mux: mux.clone(),
                clients: clients.clone(),
                aside: aside.clone(),
            };
            let socket = mux.socket()?;
            thread::Builder::new()
                .name(format!("9p-worker-{number}"))
                .spawn(move || worker.run(socket))?;
        }
        let (stop, stopped) = channel();
        let (all, known) = (mux.clone(), clients.clone());
        thread::Builder::new()
            .name("9p-silent".to_owned())
            .spawn(move || known.close_silent(&all, &stopped))?;
        // What is accepted takes these over: it lets go of clients that vanish.
        sockopt::set_socket_keepalive(&listener, true)?;
        sockopt::set_tcp_keepidle(&listener, PROBED_AFTER)?;
        sockopt::set_tcp_keepintvl(&listener, PROBED_EVERY)?;
        sockopt::set_tcp_user_timeout(&listener, GONE_AFTER_MS)?;
        mux.listen(listener)?;
        Ok(Self {
            mux,
            clients,
            _stop: stop,
        })
    }

    /// Waits for the end of a client's connection, and forgets the client.
    ///
    /// # Errors
    ///
    /// The server was shut down.
    pub fn next_end(&self) -> kcm::Result<ConnectionEvent> {
        let event = self.mux.next_event()?;
        self.clients.forget(event.connection);
        Ok(event)
    }

    /// Closes all connections; the workers end.
    pub fn shutdown(&self) {
        self.mux.shutdown();
    }
}

/// Whether an end says that a client did something wrong.
pub fn is_fault(reason: &EndReason) -> bool {
    !matches!(reason, EndReason::Eof | EndReason::Closed)
}

impl Clients {
    /// The client of a connection; a new one for its first message.
    fn of(&self, mux: &Multiplexor, id: ConnectionId) -> Option<Arc<Client>> {
        if let Some(client) = self.lock().get(&id) {
            return Some(client.clone());
        }
        let client = Arc::new(Client {
            session: Session::new(id.as_u64(), self.shared.clone()),
            // It has ended, and its last message is nobody's.
            connection: mux.connection(id).ok()?,
        });
        self.lock().insert(id, client.clone());
        if client.connection.is_closed() {
            // Its end may have been told before the client was there to be forgotten.
            self.forget(id);
        }
        Some(client)
    }

    /// Closes connections of which no message came between two looks and ever before.
    fn close_silent(&self, mux: &Multiplexor, stopped: &Receiver<()>) {
        let mut before = HashSet::new();
        while stopped.recv_timeout(FIRST_MESSAGE_LIMIT) == Err(RecvTimeoutError::Timeout) {
            let mut silent = mux.connections();
            {
                let clients = self.lock();
                silent.retain(|connection| !clients.contains_key(&connection.id()));
            }
            for connection in &silent {
                if before.contains(&connection.id()) {
                    connection.close();
                }
            }
            before = silent.iter().map(Connection::id).collect();
        }
    }

    fn forget(&self, id: ConnectionId) {
        let client = self.lock().remove(&id);
        // Closes its files: not under the lock.
        drop(client);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<Client>>> {
        self.by_connection
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// It has much still to read.
    pub(crate) fn is_behind(&self) -> bool {
        self.connection.queued_bytes() > BEHIND_BYTES && !self.connection.is_closed()
    }
}

struct Worker {
    mux: Multiplexor,
    clients: Arc<Clients>,
    aside: Sender<Aside>,
}

impl Worker {
    /// One request after the other, of any client, until the server is shut down.
    fn run(&self, mut socket: Socket) {
        let mut reply = Reply::default();
        while let Ok(message) = socket.recv() {
            let Some(client) = self.clients.of(&self.mux, message.connection()) else {
                continue;
            };
            if client.is_behind() {
                let Ok(another) = self.mux.socket() else {
                    // No descriptor left: who does not read pays for it.
                    client.connection.close();
                    continue;
                };
                let socket = std::mem::replace(&mut socket, another);
                let _ = self.aside.send(Aside {
                    client,
                    message,
                    socket,
                });
                continue;
            }
            serve_one(&client, &mut socket, &message, &mut reply);
        }
    }
}

/// Answers a request. The client's next one may be looked at as soon as this one is admitted.
pub(crate) fn serve_one(
    client: &Client,
    socket: &mut Socket,
    message: &Message,
    reply: &mut Reply,
) {
    let Client {
        session,
        connection,
    } = client;
    let msize = session.msize();
    let admitted = || {
        if session.msize() != msize {
            connection.set_limits(message_limits(session.msize()));
        }
        socket.done();
    };
    // A reply fails when the client is gone, which is no reason to stop.
    let send = |reply: &[u8]| drop(message.reply(reply));
    if session.serve(message, reply, admitted, send).is_err() {
        // Shorter than a header.
        connection.close();
    }
}

fn message_limits(msize: u32) -> Limits {
    Limits::default()
        .with_max_message_bytes(usize::try_from(msize).unwrap_or(usize::MAX))
        .with_assembly_deadline(Some(ASSEMBLY_DEADLINE))
}

/// Descriptors that this process may have, after having asked for as many as it may ask for.
fn descriptors() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}
