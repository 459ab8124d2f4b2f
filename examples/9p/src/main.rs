//! Serves a directory over 9P2000.L.
//!
//! ```text
//! cargo run --release -p kcm-example-9p -- /srv/files
//! mount -t 9p -o trans=tcp,port=5640,version=9p2000.L,msize=1048576 127.0.0.1 /mnt
//! ```

#![forbid(unsafe_code)]

use std::{
    io::{self, Write},
    net::TcpListener,
    num::NonZeroUsize,
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use ninep::{Export, Options, Server, server};
use rustix::fs::Mode;

/// A 9P2000.L file server. It acts with the rights of the user who runs it, for every client that
/// reaches it: 9P over TCP has no authentication.
#[derive(Parser)]
#[command(name = "9p")]
struct Arguments {
    /// The directory to serve; nothing outside of it is reached
    directory: PathBuf,
    /// Address to listen on; port 0 for any
    #[arg(long, default_value = "127.0.0.1:5640")]
    listen: String,
    /// Refuse everything that changes something (EROFS)
    #[arg(long)]
    read_only: bool,
    /// Threads that answer requests [default: one for each processor, at least 4]
    #[arg(long)]
    workers: Option<NonZeroUsize>,
    /// Longest message that clients may ask for, in bytes
    #[arg(long, default_value_t = server::DEFAULT_MAX_MSIZE, value_parser = clap::value_parser!(u32).range(4096..=1 << 24))]
    msize: u32,
    /// Clients at once; others wait until one leaves
    #[arg(long, default_value_t = server::DEFAULT_MAX_CLIENTS)]
    max_clients: usize,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("9p: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    // Clients have applied their programs' masks already.
    rustix::process::umask(Mode::empty());
    let export = Export::new(&arguments.directory, arguments.read_only)?;
    let listener = TcpListener::bind(&arguments.listen).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot listen on {}: {error}", arguments.listen),
        )
    })?;
    let address = listener.local_addr()?;
    let defaults = Options::default();
    let options = Options {
        workers: arguments.workers.unwrap_or(defaults.workers),
        max_msize: arguments.msize,
        max_clients: arguments.max_clients.max(1),
    };
    let server = Server::start(listener, export, options)?;
    println!("{address}");
    io::stdout().flush()?;
    loop {
        let end = server.next_end()?;
        if server::is_fault(&end.reason) {
            // (Not `eprintln!`: if nobody reads it any more, that is no reason to stop.)
            let _ = writeln!(
                io::stderr(),
                "9p: client {}: {}",
                end.connection,
                end.reason
            );
        }
    }
}
