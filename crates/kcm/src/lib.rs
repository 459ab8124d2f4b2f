//! Message sockets over TCP: Linux's Kernel Connection Multiplexor (KCM), in user space.
//!
//! A [`Multiplexor`] joins N message sockets to M connected byte streams. A [`Framing`] says
//! where the messages of a stream end; each message, whole, goes to whichever socket asks next.
//! Nothing changes on the wire, and the peer need not know.
//!
//! ```no_run
//! use kcm::{Framing, Multiplexor};
//! use std::net::TcpListener;
//!
//! fn main() -> std::io::Result<()> {
//!     // The messages: a 32-bit big-endian body length, then the body.
//!     let framing: Framing = "u32be+4".parse().map_err(kcm::Error::from)?;
//!     let mux = Multiplexor::builder(framing).build()?;
//!     mux.listen(TcpListener::bind("127.0.0.1:7000")?)?;
//!     let workers: Vec<_> = (0..4)
//!         .map(|_| {
//!             let mut socket = mux.socket()?;
//!             Ok(std::thread::spawn(move || {
//!                 // One message at a time, from any connection, to any idle worker.
//!                 while let Ok(request) = socket.recv() {
//!                     let _ = request.reply(&request);
//!                 }
//!             }))
//!         })
//!         .collect::<kcm::Result<_>>()?;
//!     for worker in workers {
//!         let _ = worker.join();
//!     }
//!     Ok(())
//! }
//! ```

#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
compile_error!("kcm runs on Linux on x86-64 and aarch64");

mod attach;
mod background;
mod basket;
mod biased;
mod builder;
mod chunk;
mod claim;
mod connection;
mod crowd;
mod delivery;
mod ends;
mod error;
mod event;
mod gather;
mod granted;
mod hub;
mod latch;
mod lease;
mod memory;
mod message;
mod multiplexor;
mod mux;
mod origin;
mod outgoing;
mod psock;
mod psocks;
mod read_on;
mod readiness;
mod receive;
mod revoke;
mod ring;
mod send;
mod socket;
mod solo;
mod spin;
mod stats;
mod steering;
mod sync;
mod sys;
mod transmit;
mod transport;
mod unaddressed;
mod walk;
mod watch;
mod write_queue;
mod write_right;
mod writer;

#[cfg(all(test, not(loom)))]
mod engine_tests;

pub use builder::{
    Builder, DEFAULT_LINGER, DEFAULT_MAX_CONNECTIONS, DEFAULT_MAX_MEMORY_BYTES,
    DEFAULT_MAX_SOCKETS, DEFAULT_SEND_BUFFER_BYTES, MuxLimits,
};
pub use connection::{Connection, ConnectionId};
pub use error::{AttachError, Error, Result};
pub use event::{ConnectionEvent, EndReason};
pub use message::Message;
pub use multiplexor::Multiplexor;
pub use send::SendFlags;
pub use socket::{Batch, Received, Socket, SocketType};
pub use stats::{
    ConnectionStats, Counters, Snapshot, SocketStats, proc_net_kcm, proc_net_kcm_stats,
};
pub use steering::DEFAULT_KEY_PATIENCE;
pub use transport::{Stream, Transport};

pub use kcm_frame::{
    Bits, Endian, Exception, Fault, Fixed, Frame, FrameError, Framing, Header, LengthField, Limits,
    Parser, Protocol, QuickForm, Round, Varint, Verdict, protocols,
};

/// Compiles what the README shows.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
