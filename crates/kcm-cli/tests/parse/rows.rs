//! Rows, totals, errors, and what is said of a command line that cannot be.

use std::fs;

use serde_json::json;

use crate::harness::*;

#[test]
fn a_row_for_each_message_and_the_totals() {
    let table = "\
#        n         offset      length         key class  first bytes
         0              0           9           -     -  0000000568656c6c6f                ....hello
         1              9          13           -     -  000000096e69636520626f6479        ....nice body
# 2 messages, 22 bytes; unfinished: the first 8 bytes of a message of 11
";
    let file = File::new("rows", STREAM);
    for (arguments, input) in [
        (&["--framing", "u32be+4"][..], STREAM),
        (&["--framing", "u32be+4", "-"], STREAM),
        (&["--framing", "u32be+4", file.name()], b""),
        (&["-f", "len:size=4,bias=4", file.name()], b""),
    ] {
        assert_ends(&parse(arguments, input), 0, table, "");
    }
}

#[test]
fn an_object_a_line() {
    let rows = "\
{\"n\":0,\"offset\":0,\"len\":9}
{\"n\":1,\"offset\":9,\"len\":13}
{\"messages\":2,\"bytes\":22,\"tail_bytes\":8}
";
    assert_ends(
        &parse(&["--framing", "u32be+4", "--json"], STREAM),
        0,
        rows,
        "",
    );
    let output = parse(&["--framing", "u32be+4", "--json", "--head", "6"], STREAM);
    let head = json!({"n": 1, "offset": 9, "len": 13, "head": "000000096e69"});
    assert_eq!(objects(&output.stdout)[1], head);
    let empty = "{\"messages\":0,\"bytes\":0,\"tail_bytes\":0}\n";
    assert_ends(&parse(&["--framing", "http2", "--json"], b""), 0, empty, "");
}

#[test]
fn an_unfinished_tail_is_stated_and_no_error() {
    for (input, stated) in [
        (&STREAM[..22], "# 2 messages, 22 bytes\n"),
        (
            &STREAM[..25],
            "; unfinished: the first 3 bytes of a message\n",
        ),
        (
            &STREAM[..26],
            "; unfinished: the first 4 bytes of a message of 11\n",
        ),
    ] {
        let output = parse(&["--framing", "u32be+4"], input);
        assert!(
            text(&output.stdout).ends_with(stated),
            "{}",
            text(&output.stdout)
        );
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    }
}

#[test]
fn a_framing_error_comes_after_rows_and_totals() {
    // The length counts itself: 3 cannot be.
    let input = b"\0\0\0\x06hi\0\0\0\x03xxxxxxx";
    let output = parse(&["--framing", "u32be", "--json"], input);
    let rows = "{\"n\":0,\"offset\":0,\"len\":6}\n{\"messages\":1,\"bytes\":6,\"tail_bytes\":0}\n";
    let error = "error: offset 6: peer announced an impossible message length of 3 bytes, at \
                 least 4 were expected\n";
    assert_ends(&output, 1, rows, error);

    let output = parse(&["--framing", "u32be"], input);
    assert!(text(&output.stdout).ends_with("# 1 message, 6 bytes\n"));
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(1), error)
    );

    // A program's own refusal: ret #-71.
    let output = parse(&["--framing", "cbpf:1,6 0 0 4294967225"], b"x");
    let error = "error: offset 0: parser rejected the stream: Protocol error (os error 71)\n";
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(1), error)
    );
}

#[test]
fn help_shows_examples_and_exit_codes() {
    let output = parse(&["--help"], b"");
    assert!(output.status.success());
    let help = text(&output.stdout);
    for word in [
        "Examples:",
        "Exit codes:",
        "bpf:parser.o",
        "cbpf:",
        "--max-message",
        "tail_bytes",
    ] {
        assert!(help.contains(word), "{word} is missing in\n{help}");
    }
}

#[test]
fn all_protocols_are_listed_and_can_be_named() {
    let output = parse(&["--list"], b"");
    let list = text(&output.stdout);
    let json = objects(&parse(&["--list", "--json"], b"").stdout);
    assert_eq!(list.lines().count(), json.len());
    let column = |line: &str, summary: &str| line.find(summary);
    let first = column(list, json[0]["summary"].as_str().expect("words"));
    for (line, protocol) in list.lines().zip(&json) {
        let name = protocol["name"].as_str().expect("a name");
        assert!(line.starts_with(name), "{line}");
        let summary = protocol["summary"].as_str().expect("words");
        assert_eq!(column(line, summary), first, "a table: {line}");
        assert!(
            protocol["reference"]
                .as_str()
                .expect("a link")
                .starts_with("https://")
        );
        let output = parse(&["--framing", name], b"");
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    for name in ["http2", "dns", "postgres", "rpc", "thrift"] {
        assert!(
            json.iter().any(|protocol| protocol["name"] == name),
            "{name}"
        );
    }
}

#[test]
fn what_cannot_be_is_exit_code_2_and_says_what_to_do() {
    let thrift = fs::read(object("thrift")).expect("an object");
    // Its first instruction, r6 = r1, made r6 = r7: nothing is in r7.
    let at = thrift
        .windows(8)
        .position(|insn| insn == [0xbf, 0x16, 0, 0, 0, 0, 0, 0]);
    let mut unsafe_program = thrift.clone();
    unsafe_program[at.expect("clang saves the context") + 1] = 0x76;
    let unsafe_program = File::new("unsafe.o", &unsafe_program);
    let unsafe_program = format!("bpf:{}", unsafe_program.name());
    let [map, sections] = ["map", "sections"].map(|name| format!("bpf:{}", object(name)));
    let no_section = format!("{sections}:third");
    for (arguments, why) in [
        (&["--framing", "u31be"][..], "bpf:FILE.o"),
        (&["--framing", "htpt2"], "http2"),
        (
            &["--framing", "bpf:/nonexistent.o"],
            "clang -O2 -target bpf -c",
        ),
        (&["--framing", "bpf:"], "a file is needed"),
        (&["--framing", "bpf:/dev/zero"], "longer than"),
        (&["--framing", "bpf:/bin/sh"], "clang -O2 -target bpf"),
        (&["--framing", &map], "a parser has no maps"),
        (
            &["--framing", &sections],
            "name the one to run: first, second",
        ),
        (&["--framing", &no_section], "first, second"),
        (&["--framing", &unsafe_program], "r7"),
        (
            &["--framing", "cbpf:1,32 0 0 0"],
            "the last instruction must be a ret",
        ),
        (&["--framing", "cbpf:2,6 0 0 0"], "classic BPF text"),
        (&["--framing", "u8", "/nonexistent"], "open /nonexistent"),
        (&["--framing", "u8", "/"], "read /: Is a directory"),
        (
            &["--framing", "u8", "--max-message", "0"],
            "such as 1000, 64K, 16M",
        ),
        (
            &["--framing", "u8", "--json", "--verify"],
            "cannot be used with",
        ),
        (&["--list", "--framing", "u8"], "cannot be used with"),
        (&["stream.bin"], "--framing <SPEC>"),
    ] {
        let output = parse(arguments, b"");
        let message = text(&output.stderr);
        assert_eq!(
            output.status.code(),
            Some(2),
            "{arguments:?} said\n{message}"
        );
        assert!(message.contains(why), "{arguments:?} said\n{message}");
        assert!(
            message.starts_with("error: "),
            "{arguments:?} said\n{message}"
        );
        // Nothing is told before it is known that it can be.
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}
