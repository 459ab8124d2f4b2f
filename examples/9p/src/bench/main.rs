//! The benchmark that KCM was published with for 9P: small requests of many clients, with messages
//! taken whole from a multiplexor against a thread for each client that reads a header, and then
//! the rest.
//!
//! ```text
//! cargo run --release -p kcm-example-9p --bin 9p-bench
//! ```
//!
//! Each of 32 clients writes a file of its own in pieces of 32 bytes, and reads it back, one request
//! at a time: 4,096 round trips each way. Both servers are the same but for the way in which
//! messages come to them and replies go out: the same sessions, the same directory. Both run in
//! this process all the time; a round is one after the other, in turns which is first. One thread
//! plays all clients (as somebody else's machine would be, it is not part of what is measured, and
//! costs as little as can be). Every reply is checked, and every byte read.

#![forbid(unsafe_code)]

mod clients;
mod threads;

use std::{
    collections::HashMap,
    fs, io,
    net::{SocketAddr, TcpListener},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use clients::Load;
use ninep::{Export, Options, Server, Shared};

/// Fids for the threads' server: far more than the clients have.
const MAX_FIDS: usize = 10_000;
/// Bytes of the longest message that the clients ask for.
const MSIZE: u32 = 8_192;

/// 9P on a multiplexor against a thread for each client.
#[derive(Parser)]
#[command(name = "9p-bench")]
struct Arguments {
    /// Clients
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    clients: u32,
    /// Bytes of each write and read
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    bytes: u32,
    /// Round trips of each client, each way
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    round_trips: u32,
    /// Rounds of both
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Workers on the multiplexor [default: as many as the server has]
    #[arg(long)]
    workers: Option<NonZeroUsize>,
    /// Where the files lie [default: a new directory in /dev/shm, so that no disk is measured]
    #[arg(long)]
    directory: Option<PathBuf>,
}

/// What one server did in one round.
struct Measured {
    write: Duration,
    read: Duration,
    /// Processor time of the server's threads.
    processor: Duration,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("9p-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let own = PathBuf::from(format!("/dev/shm/9p-bench-{}", std::process::id()));
    let directory = arguments.directory.as_ref().unwrap_or(&own);
    fs::create_dir_all(directory)?;
    let result = rounds(arguments, directory);
    if arguments.directory.is_none() {
        fs::remove_dir_all(directory)?;
    }
    result
}

fn rounds(arguments: &Arguments, directory: &Path) -> io::Result<()> {
    let load = Load {
        clients: arguments.clients,
        bytes: arguments.bytes,
        round_trips: arguments.round_trips,
        msize: MSIZE,
    };
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let kcm_address = listener.local_addr()?;
    let defaults = Options::default();
    let options = Options {
        workers: arguments.workers.unwrap_or(defaults.workers),
        max_msize: MSIZE,
        max_clients: 2 * usize::try_from(arguments.clients).unwrap_or(usize::MAX),
    };
    let server = Server::start(listener, Export::new(directory, false)?, options)?;
    std::thread::spawn(move || while server.next_end().is_ok() {});
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let threads_address = listener.local_addr()?;
    let shared = Shared::new(Export::new(directory, false)?, MAX_FIDS, MSIZE);
    threads::start(listener, shared)?;

    println!(
        "{} clients, {} bytes, {} round trips each way, {} rounds, {} workers, {} processors",
        arguments.clients,
        arguments.bytes,
        arguments.round_trips,
        arguments.rounds,
        options.workers,
        std::thread::available_parallelism()?
    );
    // Pages, connections and branch predictors come to rest.
    let warm_up = Load {
        round_trips: load.round_trips.min(256),
        ..load
    };
    measure(&warm_up, kcm_address)?;
    measure(&warm_up, threads_address)?;
    let mut results = Vec::new();
    for round in 0..arguments.rounds {
        let (kcm, threads);
        if round % 2 == 0 {
            kcm = measure(&load, kcm_address)?;
            threads = measure(&load, threads_address)?;
        } else {
            threads = measure(&load, threads_address)?;
            kcm = measure(&load, kcm_address)?;
        }
        results.push((kcm, threads));
    }
    report(&load, &results);
    Ok(())
}

fn measure(load: &Load, address: SocketAddr) -> io::Result<Measured> {
    let mut clients = clients::connect(load, address)?;
    let before = processor_times()?;
    let write = clients.write_all()?;
    let read = clients.read_all()?;
    let after = processor_times()?;
    let processor = after.iter().map(|(thread, &time)| {
        let before = before.get(thread).copied().unwrap_or_default();
        time.saturating_sub(before)
    });
    Ok(Measured {
        write,
        read,
        processor: processor.sum(),
    })
}

/// Processor time that each of this process's threads has used, but for the one that plays the
/// clients. Servers are idle when this is read, so no running thread's figure is late.
fn processor_times() -> io::Result<HashMap<String, Duration>> {
    let own = rustix::thread::gettid().as_raw_nonzero().to_string();
    let mut times = HashMap::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let entry = entry?;
        let thread = entry.file_name().to_string_lossy().into_owned();
        // A thread may have ended meanwhile.
        let Ok(text) = fs::read_to_string(entry.path().join("schedstat")) else {
            continue;
        };
        let nanoseconds = text.split(' ').next().and_then(|text| text.parse().ok());
        if thread != own {
            times.insert(
                thread,
                Duration::from_nanos(nanoseconds.unwrap_or_default()),
            );
        }
    }
    Ok(times)
}

fn report(load: &Load, results: &[(Measured, Measured)]) {
    let operations = f64::from(load.clients) * f64::from(load.round_trips);
    let row = |name: &str, value: fn(&Measured) -> Duration, operations: f64, rate: bool| {
        let per_operation_us = |time: Duration| time.as_secs_f64() * 1e6 / operations;
        let mut ratios: Vec<_> = results
            .iter()
            .map(|(kcm, threads)| {
                let (kcm, threads) = (value(kcm).as_secs_f64(), value(threads).as_secs_f64());
                if rate { threads / kcm } else { kcm / threads }
            })
            .collect();
        let mut of_kcm: Vec<_> = results
            .iter()
            .map(|(kcm, _)| per_operation_us(value(kcm)))
            .collect();
        let mut of_threads: Vec<_> = results
            .iter()
            .map(|(_, threads)| per_operation_us(value(threads)))
            .collect();
        for list in [&mut ratios, &mut of_kcm, &mut of_threads] {
            list.sort_by(f64::total_cmp);
        }
        let middle = results.len() / 2;
        println!(
            "{name:<28} {:>9.2} {:>9.2}   {:>5.2} {:>5.2} {:>5.2}",
            of_kcm[middle],
            of_threads[middle],
            ratios[0],
            ratios[middle],
            ratios[ratios.len() - 1],
        );
    };
    println!(
        "{:<28} {:>9} {:>9}   {:>5} {:>5} {:>5}",
        "", "kcm", "threads", "min", "median", "max"
    );
    row(
        "write: us each, rate's ratio",
        |m| m.write,
        operations,
        true,
    );
    row("read: us each, rate's ratio", |m| m.read, operations, true);
    row(
        "both: us each, rate's ratio",
        |m| m.write + m.read,
        2.0 * operations,
        true,
    );
    row(
        "server's CPU: us each, ratio",
        |m| m.processor,
        2.0 * operations,
        false,
    );
}
