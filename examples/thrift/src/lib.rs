//! A Thrift service over framed transport, with the compact and the binary protocol, whose workers
//! share all connections.
//!
//! Thrift's servers tie a connection to a thread (for as long as it is open, or for as long as a
//! call takes), because a thread that reads a stream must know where it was in it. Here the unit is
//! the message: a worker asks one [`kcm::Socket`] for the next call, whichever connection it came
//! on, and answers with [`kcm::Message::try_reply`]. Nothing else of Thrift changes: the encoding
//! and the code that the Thrift compiler generates are Apache's, and so are the clients.
//!
//! ```text
//!   client  client  client        unchanged Thrift clients, TFramedTransport
//!      \      |      /
//!     kcm::Multiplexor            one for all; framing "thrift"
//!      /      |      \
//!   worker  worker  worker        server.rs: a message in, a reply out
//!      \      |      /
//!     generated processor         wire.rs picks the protocol by the first byte
//!             |
//!           store.rs              the handler: what the service does
//! ```

#![forbid(unsafe_code)]

pub mod generated;
pub mod server;
pub mod store;
pub mod wire;
