//! `kcm serve`: the messages of all clients to worker processes in any language.
//!
//! ```text
//!   client ──TCP──▶ ┌─────────────┐                ┌────────────┐ ──SEQPACKET──▶ worker
//!   client ──TCP──▶ │ multiplexor │ ──a message──▶ │ dispatcher │ ──SEQPACKET──▶ worker
//!   client ◀──TCP── │             │ ◀──a reply──── │            │ ◀─SEQPACKET─── worker
//!                   └─────────────┘                └────────────┘
//! ```
//!
//! One thread, the dispatcher, moves everything and waits for nothing but its epoll. It asks the
//! multiplexor for a message only when a worker is idle: until then the message stays with its
//! connection, and in the end with its client, as TCP's window closes. So nothing is queued before a
//! busy worker while another is idle, and memory is bounded by what is in hand.
//!
//! A thread for each worker, with a `kcm::Socket` of its own, would balance by itself. But it can
//! wait for only one thing: for a message, for its worker's reply, its death, its deadline, for room
//! in a slow client's buffer, or for SIGTERM. With one thread each of these is a line of a table,
//! and its cost is small beside two processes' switches for each message.

mod channel;
mod clients;
mod dispatch;
mod failure;
mod inherited;
mod listen;
mod log;
mod options;
mod worker;

use std::{sync::Arc, thread, time::Duration};

use kcm::{DEFAULT_SEND_BUFFER_BYTES, Limits, Multiplexor, MuxLimits};

pub(crate) use failure::Failure;
pub(crate) use options::ServeOptions;

use self::{
    clients::Clients,
    dispatch::Dispatcher,
    listen::Listener,
    log::{Line, Log},
    options::WorkerTransport,
    worker::{Recipe, Worker},
};

/// Bytes of the connection id before an addressed message.
const ADDRESS_BYTES: usize = 8;
/// What a connection that is closed may still send, 1 s: it is closed for not reading, or for its
/// broken messages.
const LINGER: Duration = Duration::from_secs(1);

/// Serves until a signal. True: all that was in hand was answered.
pub(crate) fn run(options: ServeOptions) -> Result<bool, Failure> {
    let log = Arc::new(Log::new(options.json));
    let limits = MessageLimits::of(&options)?;
    let listeners = Listener::open_all(&options.listen)?;
    // Nothing is started before signals are heard.
    let signals = dispatch::signals()?;
    let recipe = Recipe {
        command: options.command.clone(),
        transport: options.worker_transport,
        watched: options.no_reply,
    };
    let program = options.command[0].display();
    let count = match options.workers {
        Some(count) => usize::from(count),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let workers = (0..count)
        .map(|_| Worker::start(&recipe))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Failure::Usage(format!("{program} cannot be started: {error}")))?;

    let mut mux_limits = MuxLimits::default();
    mux_limits.max_memory_bytes = options.memory;
    mux_limits.max_connections = options.max_connections;
    mux_limits.send_buffer_bytes = DEFAULT_SEND_BUFFER_BYTES.min(options.memory);
    let mux = Multiplexor::builder(options.framing.framing.clone())
        .limits(
            Limits::default()
                .with_max_message_bytes(limits.message_bytes)
                .with_assembly_deadline(Some(options.deadline)),
        )
        .mux_limits(mux_limits)
        .linger(LINGER)
        .build()
        .map_err(Failure::system("a multiplexor cannot be made"))?;
    let clients = Clients::new(
        mux.clone(),
        log.clone(),
        options.ordered,
        options.memory,
        limits.message_bytes,
        options.deadline,
    );
    let ends = {
        let (mux, log, peers) = (mux.clone(), log.clone(), clients.peers.clone());
        thread::spawn(move || peers.tell_ends(&mux, &log))
    };
    for listener in &listeners {
        let address = listener.to_string();
        let message = format!("listening on {address}");
        log.write(Line::new("listening", message).with("address", address));
    }
    let mut dispatcher = Dispatcher::new(
        options, recipe, limits, log, clients, listeners, workers, signals,
    )?;
    let drained = dispatcher.run();
    mux.shutdown();
    let _ = ends.join();
    drained
}

/// How long messages may be.
#[derive(Clone, Copy, Debug)]
struct MessageLimits {
    /// A client's.
    message_bytes: usize,
    /// What a worker writes at once, address included.
    written_bytes: usize,
}

impl MessageLimits {
    fn of(options: &ServeOptions) -> Result<Self, Failure> {
        let address = if options.addressed { ADDRESS_BYTES } else { 0 };
        let limits = match options.worker_transport {
            WorkerTransport::Seqpacket => {
                let datagram = channel::longest_datagram()
                    .map_err(Failure::system("a SOCK_SEQPACKET socket cannot be made"))?;
                let most = datagram.saturating_sub(address);
                let message_bytes = options.max_message.unwrap_or(most);
                if message_bytes > most {
                    return Err(Failure::Usage(format!(
                        "--max-message {message_bytes}: on this system a message to a worker has \
                         at most {most} bytes (a SOCK_SEQPACKET datagram); for longer ones use \
                         --worker-transport stream, or raise the sysctl net.core.wmem_default"
                    )));
                }
                Self {
                    message_bytes,
                    written_bytes: datagram,
                }
            }
            WorkerTransport::Stream => {
                let longest = kcm_frame::DEFAULT_MAX_MESSAGE_BYTES;
                let message_bytes = options.max_message.unwrap_or(longest);
                if u32::try_from(message_bytes + address).is_err() {
                    return Err(Failure::Usage(format!(
                        "--max-message {message_bytes}: the length before a message in a stream \
                         has 32 bits, so that 4 GiB are too much"
                    )));
                }
                Self {
                    message_bytes,
                    // A short request may have a long reply.
                    written_bytes: message_bytes.max(longest) + address,
                }
            }
        };
        let (longest, memory) = (limits.message_bytes, options.memory);
        if longest > memory {
            return Err(Failure::Usage(format!(
                "--memory {memory}: a message of a client may have {longest} bytes, which must have \
                 room there; give more, or a smaller --max-message"
            )));
        }
        Ok(Self {
            // Who is sent more would be closed for it.
            written_bytes: limits.written_bytes.min(memory.saturating_add(address)),
            ..limits
        })
    }
}
