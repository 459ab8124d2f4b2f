//! Programs, and what is told of them.

use std::fs;

use serde_json::json;

use crate::harness::*;

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
fn names_of_files_and_sections_may_have_colons() {
    let mut sections = fs::read(object("sections")).expect("an object");
    let (old, new) = (b"second\0", b"se:o:d\0");
    let at = sections.windows(old.len()).position(|name| name == old);
    let at = at.expect("the name of a section");
    sections[at..][..new.len()].copy_from_slice(new);
    let file = File::new("a:b:sections.o", &sections);
    let framing = format!("bpf:{}:se:o:d", file.name());
    let output = parse(&["--framing", &framing], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let framing = format!("bpf:{}", file.name());
    let output = parse(&["--framing", &framing], b"");
    let message = text(&output.stderr);
    assert!(
        message.contains("name the one to run: first, se:o:d"),
        "{message}"
    );
    // Of no file that is there.
    let output = parse(&["--framing", "bpf:not:there.o:third"], b"");
    let message = text(&output.stderr);
    assert!(message.contains(" not:there.o: No such file"), "{message}");
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
                "a length field in 32 bits: len:size=4,bias=4,bits=32\n",
                "exit\n",
            ],
        ),
        ("u16be+2", &["u16be+2: compiled code, nothing to verify"]),
        (
            "dns",
            &["the same as u16be+2", "\nDNS over TCP", ").\nhttps://"],
        ),
        ("http2", &["http2: compiled code of its own"]),
        // What its user has to know.
        ("iscsi", &["HeaderDigest=None", "\nhttps://"]),
        ("amqp", &["0-9-1 and 1.0", "oasis-open.org", "rabbitmq.com"]),
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
