//! Input of every kind and length, and output that somebody reads or does not.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{ChildStdin, Command, Stdio},
    thread,
};

use serde_json::{Value, json};

use crate::harness::*;

#[test]
fn rows_come_as_the_input_comes() {
    for json in [&["--json"][..], &[]] {
        let arguments = [&["--framing", "u32be+4"][..], json].concat();
        let mut child = kcm(&arguments).spawn().expect("the kcm command starts");
        let (mut stdin, lines) = lines_of(&mut child);
        if json.is_empty() {
            let heading = lines.recv_timeout(SOON).expect("at once");
            assert!(heading.starts_with('#'), "{heading}");
        }
        for number in 0..3 {
            // In two pieces, the second of which goes into the next message.
            stdin.write_all(b"\0\0\0\x05he").expect("it reads");
            stdin.write_all(b"llo").expect("it reads");
            let row = lines.recv_timeout(SOON).expect("before more is sent");
            let begin = format!("{number:>10}{:>15}", number * 9);
            let object = format!("{{\"n\":{number},\"offset\":{},", number * 9);
            assert!(
                row.starts_with(if json.is_empty() { &begin } else { &object }),
                "{row}"
            );
        }
        drop(stdin);
        assert!(lines.recv_timeout(SOON).expect("totals").contains('3'));
        assert!(child.wait().expect("it ends").success());
    }
}

#[test]
fn memory_stays_bounded_whatever_is_announced() {
    const TEN_GIB: u64 = 10 << 30;
    const SENT: u64 = 256 << 20;
    let arguments = [
        "--framing",
        "u64be+8",
        "--json",
        "--max-message",
        "10G",
        "--head",
        "9",
    ];
    let mut child = kcm(&arguments).spawn().expect("the kcm command starts");
    let (mut stdin, lines) = lines_of(&mut child);
    let zeros = vec![0; 1 << 20];
    let send = |stdin: &mut ChildStdin| {
        for _ in 0..SENT >> 20 {
            stdin.write_all(&zeros).expect("it reads");
        }
    };
    // One that ends, one message among many, and one that does not end.
    stdin.write_all(&SENT.to_be_bytes()).expect("it reads");
    send(&mut stdin);
    let first = json!({"n": 0, "offset": 0, "len": SENT + 8, "head": "000000001000000000"});
    let row = lines.recv_timeout(SOON).expect("a row");
    assert_eq!(row.parse::<Value>().expect("JSON"), first);
    stdin
        .write_all(&[0, 0, 0, 0, 0, 0, 0, 1, b'x'])
        .expect("it reads");
    let second = json!({"n": 1, "offset": SENT + 8, "len": 9, "head": "000000000000000178"});
    let row = lines.recv_timeout(SOON).expect("a row");
    assert_eq!(row.parse::<Value>().expect("JSON"), second);
    stdin
        .write_all(&(TEN_GIB - 8).to_be_bytes())
        .expect("it reads");
    send(&mut stdin);
    let most_kib = most_memory_kib(&child);
    assert!(most_kib < 32 << 10, "{most_kib} KiB");
    drop(stdin);
    let totals = json!({"messages": 2, "bytes": SENT + 17, "tail_bytes": SENT + 8});
    let row = lines.recv_timeout(SOON).expect("totals");
    assert_eq!(row.parse::<Value>().expect("JSON"), totals);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn a_message_above_the_limit_is_an_error_at_once() {
    let mut child = kcm(&["--framing", "u64be"])
        .spawn()
        .expect("the kcm command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin
        .write_all(&(10_u64 << 30).to_be_bytes())
        .expect("it reads");
    // Nothing of the message itself, and no end.
    let output = child.wait_with_output().expect("it ends");
    drop(stdin);
    let error = "error: offset 0: peer announced a message of 10737418240 bytes, the limit is \
                 16777216 (--max-message sets another)\n";
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(1), error)
    );
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = kcm(&["--framing", "fixed:1"])
        .spawn()
        .expect("the kcm command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    // More than the pipes hold: it ends before its input does.
    let feeding = thread::spawn(move || while stdin.write_all(&[b'x'; 4096]).is_ok() {});
    let mut line = String::new();
    stdout.read_line(&mut line).expect("the heading");
    drop(stdout);
    let output = child.wait_with_output().expect("it ends");
    feeding.join().expect("it cannot write any more");
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
}

#[test]
fn a_bar_is_shown_beside_rows_that_go_elsewhere_and_only_then() {
    let stream = File::new("bar", b"");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&stream.0)
        .expect("opens");
    // All zeros, none of them on the disk: enough for some tenths of a second.
    file.set_len(1 << 30).expect("a sparse file");
    let parse = format!(
        "{} parse --framing fixed:16777216",
        env!("CARGO_BIN_EXE_kcm")
    );
    let stream = stream.name();
    for (line, is_shown) in [
        (format!("{parse} {stream} >/dev/null"), true),
        (format!("{parse} {stream}"), false),
        (
            format!("head -c 200000000 {stream} | {parse} >/dev/null"),
            false,
        ),
    ] {
        // `script` gives the command a terminal, and passes on what that shows.
        let output = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .stdin(Stdio::null())
            .output();
        let Ok(output) = output else {
            let _ = rustix::io::write(std::io::stderr(), b"skipped: script is not installed\n");
            return;
        };
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{line}: {shown}");
        assert_eq!(shown.contains(" % parsed"), is_shown, "{line}: {shown}");
    }
}

#[test]
fn small_messages_without_end_take_no_more_memory() {
    let mut child = kcm(&["--framing", "u8+1"])
        .stdout(Stdio::null())
        .spawn()
        .expect("the kcm command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A row is longer than its message: held back, they would take 50 MB.
    for _ in 0..8 {
        stdin.write_all(&[1; 128 << 10]).expect("it reads");
    }
    let most_kib = most_memory_kib(&child);
    assert!(most_kib < 32 << 10, "{most_kib} KiB");
    drop(stdin);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn rows_of_a_file_of_any_length_come_at_once() {
    let file = File::new("sparse", b"\0\0\0\x05hello");
    let end = fs::OpenOptions::new().write(true).open(&file.0);
    // Zeros, none of them on the disk: 16 GiB.
    end.and_then(|end| end.set_len(16 << 30))
        .expect("a sparse file");
    let mut child = kcm(&["--framing", "u32be+4", "--json", file.name()])
        .spawn()
        .expect("the kcm command starts");
    let mut stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    for row in [
        json!({"n": 0, "offset": 0, "len": 9}),
        json!({"n": 1, "offset": 9, "len": 4}),
    ] {
        line.clear();
        stdout.read_line(&mut line).expect("a row");
        assert_eq!(line.parse::<Value>().expect("JSON"), row);
    }
    let most_kib = most_memory_kib(&child);
    assert!(most_kib < 32 << 10, "{most_kib} KiB");
    drop(stdout);
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn nothing_is_a_stream_too() {
    let file = File::new("empty", b"");
    for arguments in [
        &["--framing", "dns", file.name()][..],
        &["--framing", "dns"],
    ] {
        let output = parse(arguments, b"");
        assert!(text(&output.stdout).ends_with("\n# 0 messages, 0 bytes\n"));
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    }
}

#[test]
fn output_that_cannot_be_written_is_told() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let child = kcm(&["--framing", "u8"])
        .stdout(full.expect("Linux has it"))
        .spawn();
    let output = child
        .and_then(|child| child.wait_with_output())
        .expect("it ends");
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(
        error.starts_with("error: write to the standard output: No space"),
        "{error}"
    );
}

/// Every protocol on junk: rows that follow on each other, then the end or an error with its place.
#[test]
fn junk_is_told_from_messages() {
    // xorshift, from a fixed seed.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let list = parse(&["--list", "--json"], b"");
    for protocol in objects(&list.stdout) {
        let name = protocol["name"].as_str().expect("a name");
        for words in [1, 100, 20_000] {
            let junk: Vec<u8> = (0..words).flat_map(|_| random().to_le_bytes()).collect();
            let output = parse(&["--framing", name, "--json"], &junk);
            let mut rows = objects(&output.stdout);
            let totals = rows.pop().expect("totals");
            let mut offset = 0;
            for (number, row) in rows.iter().enumerate() {
                assert_eq!(
                    (&row["n"], &row["offset"]),
                    (&json!(number), &json!(offset))
                );
                offset += row["len"].as_u64().expect("a length");
            }
            assert_eq!(
                (&totals["messages"], &totals["bytes"]),
                (&json!(rows.len()), &json!(offset))
            );
            let tail = totals["tail_bytes"].as_u64().expect("a number");
            let error = text(&output.stderr);
            match output.status.code() {
                Some(0) => {
                    assert_eq!((offset + tail, error), (junk.len() as u64, ""), "{name}");
                }
                code => {
                    assert_eq!((code, tail), (Some(1), 0), "{name}");
                    let place = format!("error: offset {offset}: ");
                    assert!(error.starts_with(&place), "{name}: {error}");
                }
            }
        }
    }
}
