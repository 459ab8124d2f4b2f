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
use tools::{Directory, NOBODY, Server, ended, find, give_away, numbers, parse, run, until};

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
    let long = format!(
        "--txt-record=long.test,{}",
        vec!["x".repeat(250); 40].join(",")
    );
    let server = Server::start(&directory, Signal::TERM, |port| {
        let mut command = Command::new(&dnsmasq);
        command.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
        ]);
        command.args([
            "--no-resolv",
            "--no-hosts",
            "--bind-interfaces",
            "--log-facility=-",
        ]);
        command.args([
            "--listen-address=127.0.0.1",
            "--address=/a.test/192.0.2.1",
            &long,
        ]);
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

    let all = |side: usize| -> Vec<u64> { found.iter().flat_map(|c| c[side].clone()).collect() };
    let (client, server) = (all(0), all(1));
    assert_eq!(client.len(), names.len(), "{text}");
    let with_length = |len: u64| len + 2;
    let asked = numbers(&text, ";; QUERY SIZE: ", "");
    assert_eq!(
        client,
        asked.into_iter().map(with_length).collect::<Vec<_>>()
    );
    let told = numbers(&text, ";; MSG SIZE  rcvd: ", "");
    assert_eq!(
        server,
        told.into_iter().map(with_length).collect::<Vec<_>>()
    );
    assert!(server.iter().any(|&len| len > 10_000), "the long answer");
    compare_with_tshark(
        &directory,
        &recordings,
        &found,
        ("dns", "dns.length"),
        0,
        with_length,
    );
}

#[test]
fn http2_of_nghttp_and_nghttpd() {
    let (Some(nghttpd), Some(nghttp)) = (
        find("nghttpd", "nghttp2-server"),
        find("nghttp", "nghttp2-client"),
    ) else {
        return;
    };
    let directory = Directory::new();
    directory.write("big", &[b'x'; 600_000]);
    directory.write("small", b"hello");
    let server = Server::start(&directory, Signal::TERM, |port| {
        let mut command = Command::new(&nghttpd);
        command.args(["--no-tls", "--address=127.0.0.1"]);
        command.arg(format!("--htdocs={}", directory.0.display()));
        command.arg(port.to_string());
        command
    });
    let proxy = Proxy::new(server.address);
    let mut client = Command::new(nghttp);
    client.args(["--verbose", "--null-out"]);
    for path in ["big", "small", "none"] {
        client.arg(format!("http://{}/{path}", proxy.address));
    }
    let text = run(&mut client);
    let recordings = proxy.finish();
    let found = parse_both("http2", &recordings);

    // A line for each frame; the preface is none and has none.
    let told = |verb: &str| -> Vec<u64> {
        let lines = text
            .lines()
            .filter(|line| line.contains(&format!("] {verb} ")));
        let lines: Vec<_> = lines.collect();
        let lens = numbers(&lines.join("\n"), " frame <length=", ",");
        lens.into_iter().map(|len| len + 9).collect()
    };
    let [[client, server]] = &found[..] else {
        panic!("{} connections", found.len());
    };
    assert_eq!(client[0], 24);
    assert_eq!(client[1..], told("send"), "{text}");
    assert_eq!(*server, told("recv"), "{text}");
    assert!(server.len() > 40, "600 kB take that many frames");
    compare_with_tshark(
        &directory,
        &recordings,
        &found,
        ("http2", "http2.length"),
        1,
        |len| len + 9,
    );
}

#[test]
fn mqtt_of_mosquitto() {
    let (Some(mosquitto), Some(publish), Some(subscribe)) = (
        find("mosquitto", "mosquitto"),
        find("mosquitto_pub", "mosquitto-clients"),
        find("mosquitto_sub", "mosquitto-clients"),
    ) else {
        return;
    };
    let directory = Directory::new();
    let big = directory.write("big", &[b'x'; 200_000]);
    let server = Server::start(&directory, Signal::TERM, |port| {
        let mut command = Command::new(&mosquitto);
        command.args(["-v", "-p", &port.to_string()]);
        command
    });
    let proxy = Proxy::new(server.address);
    let to_proxy = |program: &Path, more: &[&str]| {
        let mut command = Command::new(program);
        command.args([
            "-d",
            "-h",
            "127.0.0.1",
            "-p",
            &proxy.address.port().to_string(),
        ]);
        command.args(more);
        command
    };
    let subscriber = to_proxy(&subscribe, &["-t", "t/#", "-q", "2", "-C", "4"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the client starts");
    until("subscribed", || server.log().contains("Sending SUBACK"));
    let big = big.to_str().expect("UTF-8");
    let mut texts = Vec::new();
    for more in [
        &["-t", "t/2", "-q", "2", "-m", "twice said"][..],
        &["-t", "t/1", "-q", "1", "-m", "once", "-V", "5"],
        &["-t", "t/empty", "-n"],
        &["-t", "t/0", "-f", big],
    ] {
        texts.push(run(&mut to_proxy(&publish, more)));
    }
    let subscribed = ended(subscriber);
    texts.insert(0, String::from_utf8_lossy(&subscribed.stdout).into_owned());
    let recordings = proxy.finish();
    let found = parse_both("mqtt", &recordings);

    assert_eq!(found.len(), texts.len());
    for ([client, server], text) in found.iter().zip(&texts) {
        let told = |verb: &str| {
            let lines = text.lines().filter(|line| line.starts_with("Client "));
            lines.filter(|line| line.contains(verb)).count()
        };
        assert_eq!(client.len(), told(" sending "), "{text}");
        assert_eq!(server.len(), told(" received "), "{text}");
        assert!(client.len() >= 3 && !server.is_empty(), "{text}");
    }
    assert!(found.iter().flatten().flatten().any(|&len| len > 200_000));
    compare_with_tshark(
        &directory,
        &recordings,
        &found,
        ("mqtt", "mqtt.len"),
        0,
        |len| {
            let digits = match len {
                ..0x80 => 1,
                ..0x4000 => 2,
                ..0x20_0000 => 3,
                _ => 4,
            };
            1 + digits + len
        },
    );
}

#[test]
fn postgres_of_libpq() {
    let (Some(postgres), Some(initdb), Some(python)) = (
        find("postgres", "postgresql-15"),
        find("initdb", "postgresql-15"),
        find("python3", "python3"),
    ) else {
        return;
    };
    let directory = Directory::new();
    let data = directory.0.join("data");
    fs::create_dir(&data).expect("a new directory");
    let is_root = give_away(&data);
    // It refuses to run as root.
    let as_nobody = |program: &Path| {
        let mut command = Command::new(program);
        command
            .current_dir("/")
            .env("LC_ALL", "C")
            .arg("-D")
            .arg(&data);
        if is_root {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    };
    run(as_nobody(&initdb).args(["-U", "postgres", "-A", "trust", "--no-sync", "--no-locale"]));
    let server = Server::start(&directory, Signal::INT, |port| {
        let mut command = as_nobody(&postgres);
        command.args(["-F", "-h", "127.0.0.1", "-k", "", "-p", &port.to_string()]);
        command
    });
    until("ready", || {
        server.log().contains("ready to accept connections")
    });
    let proxy = Proxy::new(server.address);
    let trace = directory.0.join("trace");
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/traffic/libpq_trace.py");
    let port = proxy.address.port();
    let mut client = Command::new(python);
    client.arg(script).arg(format!(
        "host=127.0.0.1 port={port} user=postgres dbname=postgres sslmode=prefer gssencmode=disable"
    ));
    run(client.arg(&trace));
    let recordings = proxy.finish();
    let found = parse_both("postgres", &recordings);

    let [[client, server]] = &found[..] else {
        panic!("{} connections", found.len());
    };
    let [asked, answered] = traced(&fs::read_to_string(trace).expect("UTF-8"));
    assert_eq!(*client, asked);
    // The answer to the request for SSL (`N`), and that no password is needed, it does not trace.
    assert_eq!(server[..2], [1, 9]);
    assert_eq!(server[2..], answered);
    assert!(client.len() > 100 && server.len() > 1000);
    compare_postgres_with_tshark(&directory, &recordings, &found);
}

/// Lengths of the messages of client and server in libpq's trace: a line for each, with columns
/// for time, sender, length without the type, and name. What only later versions trace is left
/// out.
fn traced(trace: &str) -> [Vec<u64>; 2] {
    const UNTYPED: [&str; 3] = ["Unknown message", "SSLRequest", "StartupMessage"];
    const LATER: [&str; 2] = ["SSLResponse", "Authentication"];
    let mut lens = [vec![], vec![]];
    for line in trace.lines() {
        // A text in a message may have several lines.
        let columns: Vec<_> = line.split('\t').collect();
        let [_, from @ ("F" | "B"), len, name, ..] = columns[..] else {
            continue;
        };
        let Ok(len) = len.parse::<u64>() else {
            continue;
        };
        let is_one_of = |names: &[&str]| names.iter().any(|begin| name.starts_with(begin));
        if !is_one_of(&LATER) {
            let type_bytes = u64::from(!is_one_of(&UNTYPED));
            lens[usize::from(from == "B")].push(len + type_bytes);
        }
    }
    lens
}

/// It has no field for the type of the first messages nor for the answer of one byte.
fn compare_postgres_with_tshark(
    directory: &Directory,
    recordings: &[Recording],
    found: &[[Vec<u64>; 2]],
) {
    let protocol = ("pgsql", "pgsql.length");
    let Some(told) = tshark::values(directory, recordings, protocol.0, protocol.1) else {
        return;
    };
    for (index, [client, server]) in found.iter().enumerate() {
        let with_type = |key| told[&key].iter().map(|len| len + 1).collect::<Vec<_>>();
        let of_client = with_type((index, true));
        assert_eq!(client[2..], of_client[2..]);
        assert_eq!([client[0] + 1, client[1] + 1], of_client[..2]);
        assert_eq!(server[1..], with_type((index, false)));
    }
}
