//! Serves `store.thrift`.

use std::{io, net::TcpListener, process::ExitCode};

use clap::Parser;
use kcm::{EndReason, Error};
use kcm_example_thrift::{
    generated::store::StoreSyncProcessor,
    server::{Server, Settings, log},
    store::Store,
};

/// A key-value store that can also calculate, over Thrift: framed transport, binary or compact.
#[derive(Debug, Parser)]
struct Arguments {
    /// Where to listen; with port 0, at a free one, which is printed.
    #[arg(default_value = "127.0.0.1:9090")]
    address: String,
    /// Threads that work on calls.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    workers: u16,
    /// Work on several calls of one connection at once (for clients that match replies by their
    /// sequence id).
    #[arg(long)]
    unordered: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("thrift-server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let listener = TcpListener::bind(&arguments.address).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("listen on {}: {error}", arguments.address),
        )
    })?;
    println!("{}", listener.local_addr()?);

    let settings = Settings {
        workers: arguments.workers.into(),
        ordered: !arguments.unordered,
        ..Settings::default()
    };
    let server = Server::start(StoreSyncProcessor::new(Store::default()), settings)?;
    server.listen(listener)?;
    loop {
        match server.multiplexor().next_event() {
            Ok(end) if matches!(end.reason, EndReason::Eof | EndReason::Closed) => {}
            Ok(end) => log(format_args!(
                "connection {}: {}",
                end.connection, end.reason
            )),
            Err(Error::Closed) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}
