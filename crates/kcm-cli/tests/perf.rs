//! `kcm perf` as its users call it: tiny runs of everything, and what happens when it cannot be.

use std::{
    io::Read as _,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn kcm(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kcm"))
        .args(arguments)
        .output()
        .expect("the kcm command starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON, and nothing else")
}

#[test]
fn all_rows_are_measured_and_told_as_json() {
    // (Long enough for a message of each, also while other tests have the processors.)
    let output = kcm(&["perf", "--duration", "0.1", "--rounds", "1", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "no progress bar off a terminal");
    let json = json(&output.stdout);
    assert!(json["machine"]["cpu_model"].is_string());
    let rows = json["rows"].as_array().expect("rows");
    let mut found: Vec<_> = rows
        .iter()
        .map(|row| {
            let scenario = row["scenario"].as_str().expect("a scenario");
            let number = |key: &str| row[key].as_u64().expect("a number");
            let flag = |key: &str| row[key].as_bool().expect("a flag");
            let (size, sockets) = (number("size_bytes"), number("sockets"));
            (scenario, size, sockets, flag("batch"), flag("spin"))
        })
        .collect();
    found.sort_unstable();
    let mut expected = vec![
        ("drop", 5000, 1, false, false),
        ("work", 60, 4, false, false),
    ];
    for size in [1, 100] {
        let rr = |sockets, spin| ("rr", size, sockets, false, spin);
        expected.extend([rr(1, false), rr(1, true), rr(3, false)]);
        expected.extend([1, 2].map(|sockets| ("rr-many", size, sockets, false, false)));
    }
    for batch in [false, true] {
        expected.extend([1, 2, 4].map(|sockets| ("pipeline", 64, sockets, batch, false)));
        expected.push(("pipeline-rr", 64, 1, batch, false));
    }
    expected.sort_unstable();
    assert_eq!(found, expected);

    for row in rows {
        let latency = ["mean", "stddev", "p50", "p99"];
        for contender in ["tcp", "kcm"] {
            let figures = &row[contender];
            assert!(figures["rate_per_s"].as_f64() > Some(0.0), "{row}");
            for side in ["sender", "receiver"] {
                assert!(figures["cpu_ns_per_message"][side].as_f64() > Some(0.0));
            }
            let one_way = row["scenario"] == "pipeline";
            for key in latency {
                assert_eq!(figures["latency_us"][key].is_number(), !one_way, "{key}");
            }
        }
        let ratio = ["min", "median", "max"].map(|key| row["ratio"][key].as_f64());
        assert!(ratio[0].is_some() && ratio.is_sorted(), "{ratio:?}");
        let is_work = row["scenario"] == "work";
        assert_eq!(row["ideal"]["rate_per_s"].is_number(), is_work);
        let late_us = row["sleep_late_us"].as_f64();
        assert_eq!(late_us.is_some_and(|us| us > 0.0), is_work, "{row}");
        for key in latency {
            assert_eq!(row["ideal"]["latency_us"][key].is_number(), is_work);
        }
    }
}

#[test]
fn a_pipe_gets_a_plain_table() {
    let arguments = [
        "perf",
        "drop",
        "pipeline",
        "--workers",
        "1",
        "--duration",
        "0.02",
    ];
    let output = kcm(&[&arguments[..], &["--rounds", "2"]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let table = text(&output.stdout);
    assert!(!table.contains('\x1b') && output.stderr.is_empty());
    for word in ["drop", "pipeline", "TCP", "KCM", "Every message was right"] {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
}

#[test]
fn other_framings_sizes_and_places() {
    for framing in [
        "u16le+2",
        "varint",
        "fixed:200",
        "len:offset=3,size=2,bias=5",
    ] {
        let arguments = ["perf", "pipeline", "--framing", framing, "--size", "200"];
        let brief = [
            "--duration",
            "0.02",
            "--rounds",
            "1",
            "--json",
            "--pin",
            "none",
        ];
        let output = kcm(&[&arguments[..], &brief[..]].concat());
        assert!(
            output.status.success(),
            "{framing}: {}",
            text(&output.stderr)
        );
        assert_eq!(json(&output.stdout)["rows"][0]["size_bytes"], 200);
    }
}

/// A program that was made from `crates/kcm-bpf/bpf/NAME.c`.
fn program(name: &str) -> String {
    let manifest = env!("CARGO_MANIFEST_DIR");
    format!("bpf:{manifest}/../kcm-bpf/tests/objects/{name}.o")
}

#[test]
fn framings_that_only_read_get_headers_that_they_find() {
    let brief = [
        "--workers",
        "1",
        "--duration",
        "0.02",
        "--rounds",
        "1",
        "--pin",
        "none",
    ];
    let told = "its messages are made, and cut by raw TCP, with the length field";
    for (more, is_told) in [
        // Recognised as a length field.
        (
            &["--framing", "cbpf:3,40 0 0 0,4 0 0 2,22 0 0 0"][..],
            false,
        ),
        // The same, with sums that may overflow 32 bits.
        (&["--framing", &program("thrift")], false),
        (&["--framing", "cbpf:3,32 0 0 0,4 0 0 4,22 0 0 0"], false),
        // As a varint, also where the header is said.
        (
            &["--framing", &program("mqtt_loop"), "--size", "300"],
            false,
        ),
        (
            &[
                "--framing",
                &program("mqtt"),
                "--header",
                "varint:offset=1,max=4",
            ],
            false,
        ),
        // No length fields.
        (&["--framing", &program("steering")], true),
        (
            &["--framing", &program("steering"), "--header", "u32be+4"],
            true,
        ),
        (&["--framing", "http2"], true),
        (&["--framing", "9p"], false),
    ] {
        let output = kcm(&[&["perf", "pipeline"], more, &brief].concat());
        assert!(
            output.status.success(),
            "{more:?}: {}",
            text(&output.stderr)
        );
        let table = text(&output.stdout);
        assert!(
            table.contains("Every message was right"),
            "{more:?}\n{table}"
        );
        assert_eq!(table.contains(told), is_told, "{more:?}\n{table}");
    }
}

#[test]
fn the_file_holds_the_json_and_the_output_the_table() {
    let path = std::env::temp_dir().join(format!("kcm-perf-{}.json", std::process::id()));
    let file = path.to_str().expect("UTF-8");
    let arguments = [
        "perf",
        "rr",
        "--size",
        "9",
        "--duration",
        "0.01",
        "--rounds",
        "1",
    ];
    let output = kcm(&[&arguments[..], &["--output", file]].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("KCM"));
    let written = std::fs::read(&path).expect("the file is there");
    let _ = std::fs::remove_file(&path);
    assert_eq!(json(&written)["rows"].as_array().map(Vec::len), Some(3));
}

#[test]
fn what_cannot_be_is_exit_code_2_and_says_why() {
    for (arguments, why) in [
        (&["perf", "rrr"][..], "rr-many"),
        (&["perf", "--duration", "soon"], "decimal number of seconds"),
        (&["perf", "--duration", "-1"], "from 0.001 to 3600"),
        (&["perf", "--rounds", "0"], "1..=10000"),
        (&["perf", "--size", "-1"], "1..=1048576"),
        (&["perf", "--pin", "-1"], "none"),
        (&["perf", "--framing", "u31be"], "u32be"),
        (&["perf", "pipeline", "--framing", "fixed:65"], "--size"),
        (&["perf", "pipeline", "--size", "11"], "--size"),
        (&["perf", "pipeline", "--framing", "bpf:none.o"], "none.o"),
        // ret #-71: no message at all.
        (
            &["perf", "pipeline", "--framing", "cbpf:1,6 0 0 4294967225"],
            "--header",
        ),
        (
            &[
                "perf",
                "pipeline",
                "--framing",
                "http2",
                "--header",
                "u32be+4",
            ],
            "do not parse",
        ),
        (
            &["perf", "pipeline", "--header", "http2"],
            "a length field is needed",
        ),
        (&["perf", "rr", "--pin", "9999"], "--pin 9999"),
        (&["perf", "--quick", "--rounds", "3"], "cannot be used with"),
        (&["perf", "--against", "time"], "kernel"),
        (&["parf"], "perf"),
        (&[], "Usage"),
    ] {
        let output = kcm(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        let message = text(&output.stderr);
        assert!(message.contains(why), "{arguments:?} said\n{message}");
    }
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let output = kcm(&["perf", "--help"]);
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in [
        "Examples:",
        "Exit codes:",
        "kcm perf --quick",
        "pipeline-rr",
        "--against",
    ] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_told_before_measuring() {
    let output = kcm(&["perf", "rr", "--output", "/nonexistent/kcm.json"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/nonexistent/kcm.json"));
    assert!(output.stdout.is_empty());
}

#[test]
fn what_fails_names_its_reason_and_keeps_the_last_result() {
    let path = std::env::temp_dir().join(format!("kcm-perf-kept-{}.json", std::process::id()));
    let file = path.to_str().expect("UTF-8");
    std::fs::write(&path, "of yesterday").expect("written");
    let elsewhere = ["--address", "192.0.2.1"];
    for (more, why) in [
        (&[][..], "--address has to be"),
        (
            &["--netns", "/nonexistent/netns"],
            "--netns /nonexistent/netns",
        ),
        (&["--netns", "/etc/passwd"], "--netns /etc/passwd"),
    ] {
        let arguments = [&["perf", "rr", "--output", file], &elsewhere[..], more].concat();
        let output = kcm(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let message = text(&output.stderr);
        assert!(message.contains(why), "{message}");
        assert!(!message.contains("ulimit"), "{message}");
        let kept = std::fs::read_to_string(&path).expect("the file is there");
        assert_eq!(kept, "of yesterday");
    }
    let _ = std::fs::remove_file(&path);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kcm"))
        .args(["perf", "pipeline", "--duration", "0.02", "--rounds", "1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the kcm command starts");
    drop(child.stdout.take());
    let status = child.wait().expect("it ends");
    let mut errors = String::new();
    let read = child
        .stderr
        .take()
        .map(|mut stderr| stderr.read_to_string(&mut errors));
    assert!(matches!(read, Some(Ok(_))));
    assert!(status.success(), "{errors}");
    assert_eq!(errors, "");
}
