//! The KCM contender: this project's multiplexor, used as its documentation says.

use std::net::TcpStream;

use kcm::{Error, Framing, Message, Multiplexor, Socket};

use super::{failure::Failure, service::Service, verify::Mismatch};

/// A multiplexor of these streams with so many sockets.
pub(super) fn multiplexor(
    framing: &Framing,
    spin: bool,
    streams: Vec<TcpStream>,
    sockets: usize,
) -> Result<(Multiplexor, Vec<Socket>), Failure> {
    let mux = Multiplexor::builder(framing.clone())
        .spin(spin)
        .build()
        .map_err(Failure::library("make a multiplexor"))?;
    for stream in streams {
        mux.attach(stream)
            .map_err(|e| Failure::library("attach a connection")(e.into()))?;
    }
    let sockets: Result<_, _> = (0..sockets).map(|_| mux.socket()).collect();
    Ok((mux, sockets.map_err(Failure::library("make a socket"))?))
}

/// Serves this socket until the multiplexor is shut down, one message at a time.
pub(super) fn serve<S: Service>(mut socket: Socket, mut service: S) -> Result<S, Failure> {
    let mut reply = Vec::new();
    loop {
        match socket.recv() {
            Ok(message) => answer(&mut service, &message, &mut reply)?,
            Err(e) => return ended(e, "receive a message").map(|()| service),
        }
    }
}

/// Why a socket receives no more. (A function that is given the error, so that the loop's messages stay in
/// registers: see [`Socket::recv`].)
#[cold]
#[inline(never)]
fn ended(e: Error, what: &'static str) -> Result<(), Failure> {
    match e {
        Error::Closed => Ok(()),
        e => Err(Failure::library(what)(e)),
    }
}

/// The same, up to `max` messages at a time.
pub(super) fn serve_batches<S: Service>(
    mut socket: Socket,
    max: usize,
    mut service: S,
) -> Result<S, Failure> {
    let mut reply = Vec::new();
    loop {
        match socket.recv_batch(max) {
            Ok(batch) => {
                for message in batch {
                    answer(&mut service, &message, &mut reply)?;
                }
            }
            Err(e) => return ended(e, "receive messages").map(|()| service),
        }
    }
}

#[inline(always)]
fn answer<S: Service>(
    service: &mut S,
    message: &Message,
    reply: &mut Vec<u8>,
) -> Result<(), Failure> {
    service.serve(message, reply)?;
    if !reply.is_empty() {
        message
            .reply(reply)
            .map_err(Failure::library("reply to a message"))?;
        reply.clear();
    }
    Ok(())
}

/// A client of one connection.
pub(super) struct Client {
    mux: Multiplexor,
    socket: Socket,
}

impl Client {
    pub(super) fn new(framing: &Framing, spin: bool, stream: TcpStream) -> Result<Self, Failure> {
        let (mux, mut sockets) = multiplexor(framing, spin, vec![stream], 1)?;
        let socket = sockets
            .pop()
            .ok_or_else(|| Failure::Stalled("no socket was made".to_owned()))?;
        Ok(Self { mux, socket })
    }

    /// Sends one message and receives one.
    #[inline]
    pub(super) fn exchange(
        &mut self,
        request: &[u8],
        check: impl FnOnce(&[u8]) -> Result<(), Mismatch>,
    ) -> Result<(), Failure> {
        self.socket
            .send(request)
            .map_err(Failure::library("send a message"))?;
        let reply = self
            .socket
            .recv()
            .map_err(Failure::library("receive a reply"))?;
        Ok(check(&reply)?)
    }

    pub(super) fn close(self) {
        self.mux.shutdown();
    }
}
