//! The command line: what can be asked for, and how it is explained.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kcm::Framing;

/// Message sockets over TCP: the Kernel Connection Multiplexor in user space.
#[derive(Parser)]
#[command(name = "kcm", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Measure message sockets (KCM) against raw TCP, over loopback
    ///
    /// Every scenario is run by each contender in turn, round by round in rotating order. Length,
    /// number and content of every message are checked on the way.
    Perf(PerfOptions),
}

/// The options of `kcm perf`.
#[derive(Args)]
#[command(after_long_help = AFTER_HELP)]
pub(crate) struct PerfOptions {
    /// The scenarios to run; all of them if none is named
    #[arg(value_name = "SCENARIO")]
    pub(crate) scenarios: Vec<ScenarioName>,

    /// How long one contender runs in one round, in seconds, after a warm-up of a fifth of it
    /// [default: 0.5; work: 2]
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) duration: Option<Duration>,

    /// Rounds; in each, every contender runs once [default: 15]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) rounds: Option<u32>,

    /// Fewer and shorter rounds: everything within 30 seconds
    #[arg(long, conflicts_with_all = ["duration", "rounds"])]
    pub(crate) quick: bool,

    /// Connections of rr-many [default: 200] and drop [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) connections: Option<u16>,

    /// Receiving sockets, and threads of raw TCP's server, of every scenario but rr's lone socket
    /// [default: work 4, rr 3, rr-many 1 and 2, pipeline 1, 2 and 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: Option<u16>,

    /// Bytes after the header in rr, rr-many and drop; bytes of a whole message in pipeline and
    /// pipeline-rr [default: 1 and 100, 5000, 64]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) size: Option<u32>,

    /// How pipeline's messages are framed: u32be+4, u16le, len:offset=1,size=2, varint, fixed:64, ...
    #[arg(long, value_name = "SPEC", default_value = "u32be+4")]
    pub(crate) framing: Framing,

    /// The processors of the sending and of the receiving side: `0,1`; `0` puts both on one;
    /// `none` leaves it to the system [default: two different ones where there are two; work
    /// always none]
    #[arg(long, value_name = "CPUS", value_parser = pins)]
    pub(crate) pin: Option<PinChoice>,

    /// Make the servers' ends in this network namespace (`/run/netns/NAME`), so that the messages
    /// go over whatever joins it to the command's own; needs `--address`, and root
    #[arg(long, value_name = "FILE", requires = "address")]
    pub(crate) netns: Option<PathBuf>,

    /// The servers' address [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub(crate) address: Option<IpAddr>,

    /// A third contender. `kernel`: the kernel's own AF_KCM sockets, where it has them (needs
    /// the right to load a BPF program)
    #[arg(long, value_name = "WHOM")]
    pub(crate) against: Option<Against>,

    /// Print JSON, and nothing else, on the standard output
    #[arg(long)]
    pub(crate) json: bool,

    /// Write the JSON to this file
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScenarioName {
    /// One connection, one request at a time, KCM at both ends
    Rr,
    /// 200 connections, one request at a time on each
    RrMany,
    /// 5 kB requests that the server drops, with a short reply
    Drop,
    /// Uneven work on uneven connections, four workers
    Work,
    /// One way, 64-byte messages as fast as they go
    Pipeline,
    /// 256 requests of 64 bytes under way on one connection
    PipelineRr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Against {
    Kernel,
}

/// What `--pin` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PinChoice {
    None,
    Cpus { sender: usize, receiver: usize },
}

const AFTER_HELP: &str = "\
Examples:
  kcm perf --quick                      everything, within 30 seconds
  kcm perf rr rr-many                   two scenarios, 15 rounds each
  kcm perf pipeline --framing u24be+9 --size 200
  kcm perf work --duration 5 --rounds 20 --output work.json
  kcm perf --quick --json | jq '.rows[] | [.scenario, .ratio.median]'
  kcm perf rr --pin 0                   both ends on processor 0

Exit codes:
  0  measured, and every message was right
  1  a message was lost, doubled or wrong, or the measurement could not be made
  2  the command line asks for something that cannot be";

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a decimal number of seconds is needed, such as 0.5".to_owned())?;
    if !(0.001..=3600.0).contains(&seconds) {
        return Err("from 0.001 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn pins(text: &str) -> Result<PinChoice, String> {
    const FORMS: &str = "two processor numbers such as 0,1, one such as 0, or none";
    if text == "none" {
        return Ok(PinChoice::None);
    }
    let number = |piece: &str| piece.trim().parse::<usize>().map_err(|_| FORMS.to_owned());
    let (sender, receiver) = match text.split_once(',') {
        Some((sender, receiver)) => (number(sender)?, number(receiver)?),
        None => (number(text)?, number(text)?),
    };
    Ok(PinChoice::Cpus { sender, receiver })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn pins_in_three_forms() {
        assert_eq!(pins("none"), Ok(PinChoice::None));
        let cpus = |sender, receiver| Ok(PinChoice::Cpus { sender, receiver });
        assert_eq!(pins("3"), cpus(3, 3));
        assert_eq!(pins("0,1"), cpus(0, 1));
        assert!(pins("0,1,2").is_err() && pins("x").is_err());
    }

    #[test]
    fn durations_are_decimal() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert!(seconds("0").is_err() && seconds("inf").is_err() && seconds("-1").is_err());
    }
}
