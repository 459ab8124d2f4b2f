//! A 9P2000.L file server over one directory.
//!
//! 9P is a protocol of small requests, each with a *tag*: a client may have many under way, and
//! they may be answered in any order. Most servers tie a connection to a thread and so answer a
//! client's requests one by one. Here any worker takes the next request of any client. What makes
//! that right is the split of a request in two:
//!
//! ```text
//!   connection:  Tread tag 1   Tflush of 1   Tclunk ...     in the order of the stream
//!                     |             |            |
//!       admission     v             v            v          one at a time for each connection:
//!                 tag, fids     waits for 1   fid leaves    decode, look up, note (request.rs)
//!                     |                          |
//!       execution     v                          v          by as many workers as there are:
//!                   pread                      reply        the system calls (ops/)
//! ```
//!
//! A connection's next message is given out only when the one before it is admitted
//! ([`kcm::Builder::ordered`], [`kcm::Socket::done`]). So a flush always finds the request that was
//! sent before it, and a request holds the file that its fid meant when it was sent, whatever
//! happens to the fid while it runs.
//!
//! Lock order: none is taken while another is held.

#![forbid(unsafe_code)]

mod aside;
pub mod export;
pub mod fids;
mod locks;
mod ops;
mod request;
pub mod server;
pub mod session;
mod tags;
pub mod wire;

pub use export::Export;
pub use server::{Options, Server};
pub use session::{Session, Shared};
