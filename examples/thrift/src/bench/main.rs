//! The three cases that were published for KCM and Thrift, and one beside them, measured: one
//! multiplexor for all connections against connections dealt to threads, and against a thread for each
//! connection.
//!
//! The dealt side has as many threads as KCM, and calls the same generated processor by the same code
//! ([`kcm_example_thrift::wire`]): what a careful programmer writes by hand. A thread for each is
//! Thrift's own server. All are asked by the same client, in this
//! process but on another processor. They take turns, round by round, in rotating order, and only
//! ratios within a round are compared, for a machine's speed drifts by more than what differs.

#![forbid(unsafe_code)]

mod case;
mod client;
mod contender;
mod dealt;
mod draw;
mod report;
mod template;
mod tied;

use std::{io, process::ExitCode, time::Duration};

use clap::Parser;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{
    case::{CASES, Case},
    client::Sample,
    contender::Contender,
};

/// Measures one multiplexor for all connections against connections dealt to threads, and against a
/// thread for each connection.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which cases; all without any.
    #[arg(value_parser = CASES.map(|case| case.name))]
    cases: Vec<String>,
    /// Rounds of each contender.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds that a round measures, after a fifth of that to warm up.
    #[arg(long, default_value_t = 0.5, value_parser = seconds)]
    duration: f64,
    /// Threads of each server, but of the one with a thread for each connection.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.01..=60.0).contains(&seconds) => Ok(seconds),
        _ => Err("a number of seconds from 0.01 to 60".to_owned()),
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("thrift-bench: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let processors = separate_processors()?;
    if let Some([_, servers]) = processors {
        // What is started from here on, the engine's background thread included, stays there.
        pin(servers)?;
    } else {
        eprintln!("only one processor: client and server share it, and rates mean little");
    }
    let asked_for = |case: &&Case| {
        arguments.cases.is_empty() || arguments.cases.iter().any(|name| *name == case.name)
    };
    for case in CASES.iter().filter(asked_for) {
        let rounds: Vec<_> = (0..arguments.rounds)
            .map(|round| measure(case, round, arguments, processors))
            .collect::<Result<_, _>>()?;
        report::print(case, &rounds);
    }
    Ok(())
}

/// One round: each contender once.
fn measure(
    case: &'static Case,
    round: u32,
    arguments: &Arguments,
    processors: Option<[usize; 2]>,
) -> io::Result<[Sample; Contender::ALL.len()]> {
    let duration = Duration::from_secs_f64(arguments.duration);
    let mut samples = [Sample::default(); Contender::ALL.len()];
    for turn in 0..samples.len() {
        let which = (turn + round as usize) % samples.len();
        let draw = draw::Draw::new(round.into());
        let (streams, server) =
            Contender::ALL[which].start(case, draw, usize::from(arguments.workers))?;
        let client = std::thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || {
                if let Some([client, _]) = processors {
                    pin(client)?;
                }
                client::drive(case, draw, streams, duration)
            })?;
        let result = client.join();
        let result = result.unwrap_or_else(|_| Err(io::Error::other("the client has panicked")));
        samples[which] = result?;
        server.stop()?;
    }
    Ok(samples)
}

/// Two of the processors that this process may run on.
fn separate_processors() -> io::Result<Option<[usize; 2]>> {
    let allowed = sched_getaffinity(None)?;
    let mut processors = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
    Ok(match (processors.next(), processors.next()) {
        (Some(first), Some(second)) => Some([first, second]),
        _ => None,
    })
}

/// Keeps the calling thread, and those that it starts, on this processor.
fn pin(processor: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(processor);
    Ok(sched_setaffinity(None, &set)?)
}
