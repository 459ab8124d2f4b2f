//! The command line of `kcm serve`.

use std::{ffi::OsString, time::Duration};

use clap::{Args, ValueEnum, builder::RangedU64ValueParser};

use super::listen::Address;
use crate::{
    cli::{bytes, seconds},
    spec::Spec,
};

/// Workers at most, as many as a multiplexor has sockets by default.
const MOST_WORKERS: i64 = 1024;
/// Messages in one addressed worker's hands at most: they are looked through for each answer.
const MOST_IN_FLIGHT: i64 = 1024;

/// The options of `kcm serve`.
#[derive(Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct ServeOptions {
    /// Where clients connect: HOST:PORT (port 0: any that is free; `[::]` takes IPv4, too), unix:PATH,
    /// or systemd for the sockets that a service manager passes on (LISTEN_FDS). May be given several
    /// times
    #[arg(long, short, value_name = "ADDR", required = true)]
    pub(crate) listen: Vec<Address>,

    /// How messages are framed: the name of a protocol (dns, ...), a length field (u32be+4,
    /// len:offset=1,size=2, varint, fixed:64), bpf:FILE.o, ... (see `kcm parse --help`)
    #[arg(long, short, value_name = "SPEC")]
    pub(crate) framing: Spec,

    /// Worker processes [default: the number of processors]
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=MOST_WORKERS))]
    pub(crate) workers: Option<u16>,

    /// Workers do not answer: one is idle when it reads again
    #[arg(long, conflicts_with = "addressed")]
    pub(crate) no_reply: bool,

    /// Each message and each answer begins with the connection's id, 64 bits in network byte
    /// order; a worker may have several messages in hand and answer them in any order
    #[arg(long)]
    pub(crate) addressed: bool,

    /// Messages that one worker may have in hand
    #[arg(long, value_name = "N", requires = "addressed", default_value = "16",
          value_parser = clap::value_parser!(u16).range(1..=MOST_IN_FLIGHT))]
    pub(crate) in_flight: u16,

    /// The next message of a connection waits for the answer to the one before
    #[arg(long, conflicts_with = "no_reply")]
    pub(crate) ordered: bool,

    /// A message whose worker dies is given to another, once
    #[arg(long)]
    pub(crate) retry: bool,

    /// What a worker's standard input and output is
    #[arg(long, value_name = "KIND", value_enum, default_value = "seqpacket")]
    pub(crate) worker_transport: WorkerTransport,

    /// Longest message of a client in bytes, header included; K and M stand for powers of 1024
    /// [default: what a datagram carries, about 200 kB; with --worker-transport stream 16M]
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) max_message: Option<usize>,

    /// Longest time in seconds that a client takes to send a message it has begun, or to read
    /// anything of the replies that wait for it
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "30")]
    pub(crate) deadline: Duration,

    /// Longest time in seconds that a worker has a message; then it is killed [default: none]
    #[arg(long, value_name = "SECONDS", value_parser = seconds, conflicts_with = "no_reply")]
    pub(crate) worker_deadline: Option<Duration>,

    /// Connections at once; others wait until one ends, or has sent nothing for the --deadline and
    /// is closed for them
    #[arg(long, value_name = "N", default_value_t = kcm::DEFAULT_MAX_CONNECTIONS,
          value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    pub(crate) max_connections: usize,

    /// Memory for messages received, at least --max-message, and as much again for replies that clients
    /// have not read. Where others wait for it, clients that do not finish a message or do not read are
    /// closed before the --deadline
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "256M")]
    pub(crate) memory: usize,

    /// After SIGTERM or SIGINT: seconds for what is in hand
    #[arg(long, value_name = "SECONDS", value_parser = seconds, default_value = "5")]
    pub(crate) drain_timeout: Duration,

    /// Log lines as JSON objects
    #[arg(long)]
    pub(crate) json: bool,

    /// The worker, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// What lies between this program and a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WorkerTransport {
    /// A SOCK_SEQPACKET socket: one read is one message, one write is one reply
    Seqpacket,
    /// A stream socket, with a length before each message and reply: 32 bits in network byte
    /// order, not counting itself. For long messages
    Stream,
}

const AFTER_HELP: &str = "\
A worker:
  Its standard input and output are one socket: one read is one whole message, header included; one
  write is the reply to it, as it is to stand on the wire. An empty write says that there is none. It
  gets its next message after that; at the end of the input it leaves. Debugging output belongs on
  the standard error. Read with room for the longest message (256 KiB are enough for datagrams): what
  does not fit is lost. A shell reads with `dd bs=256K count=1`.

  A worker that ends is started again: at once, and after failures in a row with a pause of 0.1 s, which
  is doubled each time, up to 5 s, if it has not finished any message. One that writes without having
  a message, or too much, is killed.

Examples:
  kcm serve --listen 127.0.0.1:7000 --framing u32be+4 -- python3 worker.py
  kcm serve --listen 127.0.0.1:53 --listen '[::1]:53' --framing dns --workers 8 --retry -- ./resolver
  kcm serve --listen unix:/run/jobs.sock --framing varint --no-reply -- ./consume
  kcm serve --listen 127.0.0.1:0 --framing u32be+4 --worker-transport stream --max-message 64M \\
      -- ./worker
  systemd-socket-activate -l 7000 kcm serve --listen systemd --framing u16be+2 -- ./worker

Log:
  Lines on the standard error; with --json objects with the keys time, event, message, and what there
  is of worker, pid, connection, peer, len, status.

Exit codes:
  0  stopped by SIGTERM or SIGINT, and all that was in hand was answered
  1  stopped with messages or replies left, or the system failed
  2  the command line asks for something that cannot be";
