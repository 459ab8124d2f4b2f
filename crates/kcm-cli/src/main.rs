//! The `kcm` command.
//!
//! Only `kcm perf` so far: message sockets measured against raw TCP on this machine.

#![warn(missing_docs)]

use std::process::ExitCode;

use clap::Parser as _;

mod cli;
mod perf;

/// Exit code: a message was wrong, or the measurement could not be made.
const EXIT_FAILED: u8 = 1;
/// Exit code: the command line asks for something that cannot be.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    // clap exits by itself: 0 for --help and --version, 2 for an option that cannot be.
    let cli::Cli {
        command: cli::Command::Perf(options),
    } = cli::Cli::parse();
    match perf::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader (`kcm perf | head`) has seen enough.
        Err(perf::Failure::OutputClosed) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("kcm: {failure}");
            ExitCode::from(match failure {
                perf::Failure::Usage(_) => EXIT_USAGE,
                _ => EXIT_FAILED,
            })
        }
    }
}
