//! Real traffic: clients and servers of others talk through a proxy that keeps the bytes, and
//! `kcm parse` has to find the messages that they say they sent.
//!
//! Counted by the implementations themselves, message by message with its length where they tell
//! it, and by tshark where that is installed. A test whose programs are not there says so.

mod proxy;
mod tools;
mod tshark;

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
};

use proxy::{Proxy, Recording, Side};
use rustix::process::Signal;
use tools::{Directory, NOBODY, Server, ended, find, give_away, numbers, parse, run, skip, until};

/// What `kcm parse` finds: for each connection the lengths of the client's and of the server's
/// messages.
fn parse_both(framing: &str, recordings: &[Recording]) -> Vec<[Vec<u64>; 2]> {
    let lens = |recording: &Recording, side| parse(framing, &recording.bytes_of(side));
    recordings
        .iter()
        .map(|recording| [Side::Client, Side::Server].map(|side| lens(recording, side)))
        .collect()
}

/// Holds all of it against the lengths that tshark has in a field of each message, from which
/// `len` makes those of whole messages; `skip` of the client's first messages have no such field.
fn compare_with_tshark(
    directory: &Directory,
    recordings: &[Recording],
    found: &[[Vec<u64>; 2]],
    (protocol, field): (&str, &str),
    skip: usize,
    len: impl Fn(u64) -> u64,
) {
    let Some(told) = tshark::values(directory, recordings, protocol, field) else {
        return;
    };
    for (index, [client, server]) in found.iter().enumerate() {
        let of = |is_client| -> Vec<u64> {
            let values = told.get(&(index, is_client)).into_iter().flatten();
            values.map(|&value| len(value)).collect()
        };
        assert_eq!(client[skip..], of(true), "{protocol}: client {index}");
        assert_eq!(*server, of(false), "{protocol}: server {index}");
    }
}

#[test]
fn dns_of_dig_and_dnsmasq() {
    let (Some(dnsmasq), Some(dig)) = (
        find("dnsmasq", "dnsmasq-base"),
        find("dig", "bind9-dnsutils"),
    ) else {
        return;
    };
    let directory = Directory::new();
    let long = format!("--txt-record=long.test,{}", ["x".repeat(250); 40].join(","));
    let server = Server::start(&directory, Signal::TERM, |port| {
        let mut command = Command::new(&dnsmasq);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--pid-file="]);
        command.args(["--no-resolv", "--no-hosts", "--bind-interfaces", "--log-facility=-"]);
        command.args(["--listen-address=127.0.0.1", "--address=/a.test/192.0.2.1", &long]);
        command.arg(format!("--port={port}"));
        command
    });
    let proxy = Proxy::new(server.address);
    let port = proxy.address.port().to_string();
    let names = ["a.test", "long.test", "b.a.test", "none.test", "a.test"];
    let mut queries = Command::new(dig);
    queries.args(["@127.0.0.1", "-p", &port, "+tries=1"]);
    for (name, kind) in names.iter().zip(["A", "TXT", "A", "A", "AAAA"]) {
        queries.args([*name, kind, "+tcp", "+keepopen", "+qr"]);
    }
    let text = run(&mut queries);
    let recordings = proxy.finish();
    let found = parse_both("dns", &recordings);

    let [client, server] = found.iter().fold([vec![], vec![]], |[mut c, mut s], [client, server]| {
        c.extend(client);
        s.extend(server);
        [c, s]
    });
    assert_eq!(client.len(), names.len(), "{text}");
    let with_length = |len: u64| len + 2;
    let asked = numbers(&text, ";; QUERY SIZE: ", "\n");
    let asked = if asked.is_empty() { sizes(&text, ";; QUERY SIZE:") } else { asked };
    assert_eq!(client, asked.into_iter().map(with_length).collect::<Vec<_>>());
    let told = sizes(&text, ";; MSG SIZE  rcvd:");
    assert_eq!(server, told.into_iter().map(with_length).collect::<Vec<_>>());
    assert!(server.iter().any(|&len| len > 10_000), "the long answer");
    compare_with_tshark(&directory, &recordings, &found, ("dns", "dns.length"), 0, with_length);
}
