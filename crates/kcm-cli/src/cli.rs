//! The command line: what can be asked for, and how it is explained.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{serve::ServeOptions, spec::Spec};

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
    Perf(Box<PerfOptions>),

    /// Show where the messages of a byte stream begin and end
    ///
    /// A row for each message: number, offset, length, key and class if the parser gives them,
    /// first bytes. For trying a framing before trusting it, on what a socket, tcpflow or tshark
    /// wrote.
    Parse(ParseOptions),

    /// Answer messages with worker processes, written in any language
    ///
    /// Starts the workers and gives each message of each client, whole, to one that is idle: load is
    /// balanced by messages, not by connections. A dozen lines of a user's code become a server.
    Serve(ServeOptions),
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
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    pub(crate) duration: Option<Duration>,

    /// Rounds; in each, every contender runs once [default: 15]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), allow_negative_numbers = true)]
    pub(crate) rounds: Option<u32>,

    /// Fewer and shorter rounds: everything within 30 seconds
    #[arg(long, conflicts_with_all = ["duration", "rounds"])]
    pub(crate) quick: bool,

    /// Connections of rr-many [default: 200] and drop [default: 16]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=10_000), allow_negative_numbers = true)]
    pub(crate) connections: Option<u16>,

    /// Receiving sockets, and threads of raw TCP's server, of every scenario but rr's lone socket
    /// [default: work 4, rr 3, rr-many 1 and 2, pipeline 1, 2 and 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256), allow_negative_numbers = true)]
    pub(crate) workers: Option<u16>,

    /// Bytes after the header in rr, rr-many and drop; bytes of a whole message in pipeline and
    /// pipeline-rr [default: 1 and 100, 5000, 64]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 20), allow_negative_numbers = true)]
    pub(crate) size: Option<u32>,

    /// How pipeline's messages are framed: u32be+4, u16le, len:offset=1,size=2, varint, fixed:64,
    /// the name of a protocol, bpf:FILE.o, ... (see `kcm parse --help`)
    #[arg(long, value_name = "SPEC", default_value = "u32be+4")]
    pub(crate) framing: Spec,

    /// The header of pipeline's messages, where --framing only reads them (bpf:, cbpf:, some
    /// protocols): a length field by which messages are made that it finds
    /// [default: what the program was recognised as, or else found by trying]
    #[arg(long, value_name = "SPEC")]
    pub(crate) header: Option<Spec>,

    /// The processors of the sending and of the receiving side: `0,1`; `0` puts both on one;
    /// `none` leaves it to the system [default: two different ones where there are two; work
    /// always none]
    #[arg(long, value_name = "CPUS", value_parser = pins, allow_negative_numbers = true)]
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

/// The options of `kcm parse`.
#[derive(Args)]
#[command(after_long_help = AFTER_PARSE_HELP)]
pub(crate) struct ParseOptions {
    /// How messages are framed: the name of a protocol (http2, dns, ...), a length field (u32be+4,
    /// len:offset=1,size=2,bias=3, varint, fixed:64), `bpf:FILE.o[:SECTION]`, or cbpf:TEXT
    #[arg(long, short, value_name = "SPEC", required_unless_present = "list")]
    pub(crate) framing: Option<Spec>,

    /// The bytes of one direction of a connection; `-`, or nothing: the standard input
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// An object a line, and at the end one with the totals
    #[arg(long)]
    pub(crate) json: bool,

    /// Longest message in bytes, header included; K, M, G and T stand for powers of 1024. Most
    /// framings take no more memory for a long one; those with state or fragments hold it
    #[arg(long, value_name = "BYTES", value_parser = bytes, default_value = "16M")]
    pub(crate) max_message: usize,

    /// First bytes of each message that are shown [default: 16; with --json none]
    #[arg(long, value_name = "BYTES")]
    pub(crate) head: Option<u16>,

    /// Print what the verifier says of the program, and its disassembly; no FILE is needed
    #[arg(long, conflicts_with_all = ["json", "time"])]
    pub(crate) verify: bool,

    /// Print no rows, but the nanoseconds that finding a message takes: the input, or its first
    /// 64 MiB, is parsed in memory again and again for half a second
    #[arg(long)]
    pub(crate) time: bool,

    /// List the protocols that have a name
    #[arg(long, conflicts_with_all = ["framing", "file", "verify", "time"])]
    pub(crate) list: bool,
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

const AFTER_PARSE_HELP: &str = "\
Output:
  Lines that begin with # are no rows. Offsets count from the first byte of the input. The totals
  count whole messages; an unfinished one at the end is stated and is no error. With --json a row
  has the keys n, offset, len; key and class if the parser gave them; head (hexadecimal) if --head
  asks for it. The totals have messages, bytes, tail_bytes.

Examples:
  kcm parse --list
  kcm parse --framing dns queries.bin
  tshark -r dump.pcap -q -z follow,tcp,raw,0 | sed -n '/^[0-9a-f]*$/p' | xxd -r -p |
      kcm parse --framing postgres      the client's direction of connection 0
  nc -l 7000 | kcm parse --framing u32be+4 --json | jq .len
  kcm parse --framing bpf:parser.o --verify
  kcm parse --framing bpf:parser.o:socket --time traffic.bin
  kcm parse --framing 'cbpf:3,32 0 0 0,4 0 0 4,22 0 0 0' traffic.bin

Exit codes:
  0  the input was parsed to its end, or nobody reads the output any more
  1  it cannot be framed: `error: offset N: ...` says from where on and why, after rows and totals
  2  the command line asks for something that cannot be: no such framing, a program that is
     refused, a file that cannot be read";

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text
        .parse()
        .map_err(|_| "a decimal number of seconds is needed, such as 0.5".to_owned())?;
    if !(0.001..=3600.0).contains(&seconds) {
        return Err("from 0.001 to 3600 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// A number of bytes, such as 1000 or 10G.
pub(crate) fn bytes(text: &str) -> Result<usize, String> {
    const FORM: &str = "a number of bytes is needed, such as 1000, 64K, 16M or 10G";
    let (digits, shift) = match text.as_bytes() {
        [.., b'K'] => (&text[..text.len() - 1], 10),
        [.., b'M'] => (&text[..text.len() - 1], 20),
        [.., b'G'] => (&text[..text.len() - 1], 30),
        [.., b'T'] => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: usize = digits.parse().map_err(|_| FORM.to_owned())?;
    (number.checked_mul(1 << shift))
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| FORM.to_owned())
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
    fn bytes_in_powers_of_1024() {
        assert_eq!((bytes("1"), bytes("16M")), (Ok(1), Ok(16 << 20)));
        for wrong in ["", "K", "0", "-1", "1.5G", "16MB", "99999999T", "\u{e9}"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_limit_is_that_of_the_library() {
        let cli = Cli::try_parse_from(["kcm", "parse", "--framing", "u8"]).expect("parses");
        let Command::Parse(options) = cli.command else {
            panic!("another command");
        };
        assert_eq!(options.max_message, kcm_frame::DEFAULT_MAX_MESSAGE_BYTES);
    }

    #[test]
    fn durations_are_decimal() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        assert!(seconds("0").is_err() && seconds("inf").is_err() && seconds("-1").is_err());
    }
}
