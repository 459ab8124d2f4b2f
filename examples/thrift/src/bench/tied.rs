//! The contender that Thrift's own threaded server is: a thread for each connection, which reads a
//! call, works on it, and writes the reply, with Thrift's own transports and protocols.
//!
//! (Not `thrift::server::TServer` itself, which never ends; this is what its threads do.)

use std::{
    io,
    net::TcpStream,
    thread::{self, JoinHandle},
};

use thrift::{
    TransportErrorKind,
    protocol::{TBinaryInputProtocol, TBinaryOutputProtocol},
    server::TProcessor,
    transport::{TFramedReadTransport, TFramedWriteTransport, TIoChannel as _, TTcpChannel},
};

/// Starts a thread for each connection, which ends with it.
pub(crate) fn start<P: TProcessor + Send + Sync + 'static>(
    streams: Vec<TcpStream>,
    processor: impl Fn() -> P,
) -> Vec<JoinHandle<io::Result<()>>> {
    let threads = streams.into_iter().map(|stream| {
        let processor = processor();
        thread::spawn(move || serve(stream, &processor).map_err(io::Error::other))
    });
    threads.collect()
}

fn serve<P: TProcessor>(stream: TcpStream, processor: &P) -> thrift::Result<()> {
    let (reads, writes) = TTcpChannel::with_stream(stream).split()?;
    let mut input = TBinaryInputProtocol::new(TFramedReadTransport::new(reads), true);
    let mut output = TBinaryOutputProtocol::new(TFramedWriteTransport::new(writes), true);
    loop {
        match processor.process(&mut input, &mut output) {
            Ok(()) => {}
            Err(thrift::Error::Transport(e)) if e.kind == TransportErrorKind::EndOfFile => {
                return Ok(());
            }
            Err(e) => return Err(e),
        }
    }
}
