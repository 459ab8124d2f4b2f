//! `kcm parse` as its users call it.

use std::{
    env, fs,
    io::{BufRead as _, BufReader, Write as _},
    path::PathBuf,
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::{Value, json};

/// What must happen happens within this time.
const SOON: Duration = Duration::from_secs(20);

/// Two messages in framing `u32be+4`, and the beginning of a third.
const STREAM: &[u8] = b"\0\0\0\x05hello\0\0\0\x09nice body\0\0\0\x07a ta";

fn kcm(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kcm"));
    command
        .arg("parse")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Runs it with these bytes on its standard input.
fn parse(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = kcm(arguments).spawn().expect("the kcm command starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    thread::scope(|scope| {
        // It may have seen enough before the end.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().expect("it ends")
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

fn objects(bytes: &[u8]) -> Vec<Value> {
    let lines = text(bytes).lines();
    lines
        .map(|line| serde_json::from_str(line).expect("an object a line"))
        .collect()
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, stdout: &str, stderr: &str) {
    assert_eq!(text(&output.stderr), stderr);
    assert_eq!(text(&output.stdout), stdout);
    assert_eq!(output.status.code(), Some(code));
}

/// A program that was made from `crates/kcm-bpf/bpf/NAME.c`.
fn object(name: &str) -> String {
    format!(
        "{}/../kcm-bpf/tests/objects/{name}.o",
        env!("CARGO_MANIFEST_DIR")
    )
}

/// A file that goes away.
struct File(PathBuf);

impl File {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = env::temp_dir().join(format!("kcm-parse-{}-{name}", std::process::id()));
        fs::write(&path, bytes).expect("written");
        Self(path)
    }

    fn name(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

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
    let error = "error: offset 0: parser rejected the stream (errno 71)\n";
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(1), error)
    );
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
        // A file is looked at when the table has not begun, or has no row yet.
        assert!(!text(&output.stdout).contains("messages"), "{arguments:?}");
    }
}

/// Lines as they come.
fn lines_of(child: &mut Child) -> (ChildStdin, mpsc::Receiver<String>) {
    let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
    let (send, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    (child.stdin.take().expect("a pipe"), lines)
}

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

/// The most memory that the process has had so far, in KiB.
fn most_memory_kib(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
    number
        .and_then(|number| number.parse().ok())
        .expect("a number of KiB")
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
fn programs_find_the_messages_and_say_their_keys() {
    // Calls of Thrift as the strict binary protocol has them: version, name, number.
    let call = |name: &str, body: usize| {
        let mut message = vec![
            0x80,
            1,
            0,
            1,
            0,
            0,
            0,
            u8::try_from(name.len()).expect("short"),
        ];
        message.extend(name.as_bytes());
        message.resize(message.len() + body, 0);
        [
            &u32::try_from(message.len()).expect("short").to_be_bytes()[..],
            &message,
        ]
        .concat()
    };
    let stream = [call("getName", 10), call("setName", 2000)].concat();
    let steering = format!("bpf:{}", object("steering"));
    let output = parse(&["--framing", &steering, "--json"], &stream);
    let key = |name: &[u8; 4]| u32::from_be_bytes(*name);
    let expected = [
        json!({"n": 0, "offset": 0, "len": 29, "key": key(b"getN"), "class": 1}),
        json!({"n": 1, "offset": 29, "len": 2019, "key": key(b"setN")}),
        json!({"messages": 2, "bytes": 2048, "tail_bytes": 0}),
    ];
    assert_eq!(objects(&output.stdout), expected);
    let output = parse(&["--framing", &steering], &stream);
    let rows: Vec<_> = text(&output.stdout).lines().collect();
    let key_and_class = format!("{:>12}{:>6}  ", key(b"getN"), 1);
    assert!(rows[1].contains(&key_and_class), "{}", rows[1]);
    let key_alone = format!("{:>12}{:>6}  ", key(b"setN"), "-");
    assert!(rows[2].contains(&key_alone), "{}", rows[2]);

    let thrift = format!("bpf:{}", object("thrift"));
    let cbpf = "cbpf:3,32 0 0 0,4 0 0 4,22 0 0 0";
    let same = parse(&["--framing", "thrift", "--json"], &stream).stdout;
    for framing in [&thrift, cbpf] {
        assert_eq!(
            parse(&["--framing", framing, "--json"], &stream).stdout,
            same
        );
    }
    let second = format!("bpf:{}:second", object("sections"));
    assert!(parse(&["--framing", &second], b"").status.success());
}

#[test]
fn verify_needs_no_input() {
    let thrift = format!("bpf:{}", object("thrift"));
    let cbpf = "cbpf:3,32 0 0 0,4 0 0 4,22 0 0 0";
    for (framing, words) in [
        (
            &thrift[..],
            &["instructions: ", "runs as: ", "skb[0]", "exit\n"][..],
        ),
        (
            cbpf,
            &[
                "instructions: ",
                "4 bytes at 0, big endian, plus 4",
                "exit\n",
            ],
        ),
        ("u16be+2", &["u16be+2: compiled code, nothing to verify"]),
        ("dns", &["the same as u16be+2"]),
        ("http2", &["http2: compiled code of its own"]),
    ] {
        let mut child = kcm(&["--framing", framing, "--verify"])
            .spawn()
            .expect("starts");
        // Its input stays open: it is not read.
        let stdin = child.stdin.take().expect("a pipe");
        let output = child.wait_with_output().expect("it ends");
        drop(stdin);
        let told = text(&output.stdout);
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
        for word in words {
            assert!(told.contains(word), "{word} is missing in\n{told}");
        }
    }
    let file = File::new("verify", STREAM);
    let output = parse(&["--framing", cbpf, "--verify", file.name()], b"");
    let told = text(&output.stdout);
    assert!(
        told.contains("exit\n") && told.contains("# 2 messages, 22 bytes;"),
        "{told}"
    );
}

#[test]
fn time_tells_the_nanoseconds_a_message() {
    let stream = STREAM[..22].repeat(100);
    let output = parse(&["--framing", "u32be+4", "--time"], &stream);
    let told = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(told.contains(" ns a message at least, "), "{told}");
    assert!(told.ends_with("# 200 messages, 2200 bytes\n"), "{told}");

    let output = parse(&["--framing", "u32be+4", "--time", "--json"], &stream);
    let told = &objects(&output.stdout)[0];
    assert_eq!(
        (&told["messages"], &told["bytes"]),
        (&json!(200), &json!(2200))
    );
    let ns = |key: &str| told["ns_per_message"][key].as_f64().expect("a number");
    assert!(0.0 < ns("min") && ns("min") <= ns("median"), "{told}");

    let output = parse(&["--framing", "u32be+4", "--time"], b"\0");
    assert!(text(&output.stdout).starts_with("nothing to time"));
    assert!(output.status.success());
    let output = parse(&["--framing", "u32be", "--time"], b"\0\0\0\x05x\0\0\0\x01");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("error: offset 5: "));
    assert!(text(&output.stdout).contains("# 1 message, 5 bytes\n"));
}

#[test]
fn all_protocols_are_listed_and_can_be_named() {
    let output = parse(&["--list"], b"");
    let list = text(&output.stdout);
    let json = objects(&parse(&["--list", "--json"], b"").stdout);
    assert_eq!(list.lines().count(), json.len());
    for (line, protocol) in list.lines().zip(&json) {
        let name = protocol["name"].as_str().expect("a name");
        assert!(line.starts_with(name), "{line}");
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
