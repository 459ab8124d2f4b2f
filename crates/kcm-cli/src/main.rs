//! The `kcm` command: `perf` measures message sockets against raw TCP on this machine, `parse` shows
//! where the messages of a byte stream end, `serve` answers them with worker processes.

#![warn(missing_docs)]

use std::process::ExitCode;

use clap::Parser as _;

mod cli;
mod parse;
mod perf;
mod progress;
mod serve;
mod spec;

/// Exit code: a message was wrong, or the work could not be done.
const EXIT_FAILED: u8 = 1;
/// Exit code: the command line asks for something that cannot be.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // clap exits by itself: 0 for --help and --version, 2 for an option that cannot be.
    let code = match cli::Cli::parse().command {
        cli::Command::Perf(options) => run_perf(&options),
        cli::Command::Parse(options) => run_parse(&options),
        cli::Command::Serve(options) => run_serve(options),
    };
    code.map_or(ExitCode::SUCCESS, ExitCode::from)
}

fn run_perf(options: &cli::PerfOptions) -> Option<u8> {
    let failure = perf::run(options).err()?;
    let code = match failure {
        // The reader (`kcm perf | head`) has seen enough.
        perf::Failure::OutputClosed => return None,
        perf::Failure::Usage(_) => EXIT_USAGE,
        _ => EXIT_FAILED,
    };
    eprintln!("kcm: {failure}");
    Some(code)
}

fn run_parse(options: &cli::ParseOptions) -> Option<u8> {
    let failure = parse::run(options).err()?;
    let code = match failure {
        parse::Failure::OutputClosed => return None,
        // This alone is a statement about the stream.
        parse::Failure::Framing { .. } => EXIT_FAILED,
        parse::Failure::System { .. } => EXIT_USAGE,
    };
    eprintln!("error: {failure}");
    Some(code)
}

fn run_serve(options: serve::ServeOptions) -> Option<u8> {
    let failure = match serve::run(options) {
        Ok(true) => return None,
        // The log says what was left.
        Ok(false) => return Some(EXIT_FAILED),
        Err(failure) => failure,
    };
    eprintln!("kcm: {failure}");
    Some(match failure {
        serve::Failure::Usage(_) => EXIT_USAGE,
        serve::Failure::System { .. } => EXIT_FAILED,
    })
}
