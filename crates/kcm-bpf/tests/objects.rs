//! Objects as clang writes them: those in `objects/`, and all parsers of `bpf/`, compiled here for
//! each version of the instruction set if clang is there. A parser is found by its file: it needs a
//! row in [`CASES`], and if it is a protocol's, it is compared with kcm-frame's parser on what other
//! implementations have sent.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::run;
use kcm_bpf::{Error, Insn, Program, elf};
use kcm_frame::{Assembler, Framing, Limits, Protocol, Step};
use proptest::prelude::*;

/// What each parser says of the first bytes of a message.
const CASES: &[(&str, &[u8], i32)] = &[
    ("thrift", b"\0\0\x01\x02", 262),
    ("kafka", b"\0\0\x01\x02", 262),
    ("dns", b"\x01\x02", 260),
    ("9p", b"\x13\x01\0\0", 0x113),
    ("rds", b"seq.....ack.....\0\0\x10\0", 4096 + 48),
    ("rds_announcement", b"seq.....ack.....\0\0\x10\0", 4096 + 40),
    ("http2", b"\0\x01\x05\0\0\0\0\0\x01", 270),
    ("http2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24),
    // A frame whose length begins like the preface.
    ("http2", b"PRI \0\0\0\0\0", 0x50_5249 + 9),
    ("http2_load_bytes", b"\0\x01\x05\0\0\0\0\0\x01", 270),
    ("http2_load_bytes", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24),
    ("http2_load_bytes", b"PRI \0\0\0\0\0", 0x50_5249 + 9),
    ("mysql", b"\x05\x01\0\x07", 265),
    ("mongodb", b"\x05\x01\0\0", 261),
    ("cassandra", b"\x04\0\0\0\x05\0\0\x01\0", 265),
    ("tls", b"\x16\x03\x01\x40\0", 0x4005),
    (
        "bgp",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\x13",
        19,
    ),
    ("diameter", b"\x01\0\x01\x14", 276),
    ("smpp", b"\0\0\0\x2f", 47),
    (
        "memcached_binary",
        b"\x80\0\0\x05\0\0\0\0\0\0\x01\x05",
        261 + 24,
    ),
    ("nvme_tcp", b"\0\0\x80\0\x80\0\0\0", 128),
    ("mqtt", b"\x10\x7f", 129),
    ("mqtt", b"\x10\x80\x01", 128 + 3),
    ("mqtt", b"\x10\xff\xff\xff\x7f", 268_435_455 + 5),
    ("mqtt", b"\x10\xff\xff\xff\xff", -71),
    ("mqtt_loop", b"\x10\x7f", 129),
    ("mqtt_loop", b"\x10\x80\x01", 128 + 3),
    ("mqtt_loop", b"\x10\xff\xff\xff\x7f", 268_435_455 + 5),
    ("mqtt_loop", b"\x10\xff\xff\xff\xff", -71),
    ("mqtt_load_bytes", b"\x10\x80\x01", 128 + 3),
    ("mqtt_load_bytes", b"\x10\xff\xff\xff\xff", -71),
    ("subprogram", b"\x10\x7f", 129),
    ("subprogram", b"\x10\x80\x01", 128 + 3),
    ("subprogram", b"\x10\xff\xff\xff\x7f", 268_435_455 + 5),
    ("subprogram", b"\x10\xff\xff\xff\xff", -71),
    ("ldap", b"\x30\x0c", 14),
    ("ldap", b"\x30\x81\x80", 128 + 3),
    ("ldap", b"\x30\x82\x01\0", 256 + 4),
    ("ldap", b"\x30\x83\x01\0\x02", 65538 + 5),
    ("ldap", b"\x30\x84\0\0\0\x0c", 12 + 6),
    ("ldap", b"\x30\x84\xff\0\0\0", -90),
    ("ldap", b"\x30\x85", -71),
    ("ldap", b"\x30\x80", -71),
    ("ldap", b"\x31\x05", -71),
    ("websocket", b"\x81\x05", 7),
    ("websocket", b"\x81\x85", 11),
    ("websocket", b"\x82\x7e\x01\0", 260),
    ("websocket", b"\x82\xfe\x01\0", 264),
    ("websocket", b"\x82\x7f\0\0\0\0\0\x01\0\0", 65536 + 10),
    ("websocket", b"\x82\xff\0\0\0\0\0\x01\0\0", 65536 + 14),
    ("websocket", b"\x82\x7f\0\0\0\0\x7f\xff\xff\xf6", -90),
    ("websocket", b"\x82\x7f\0\0\0\x01", -90),
    ("iscsi", b"\x01\xc0\0\0\x02\0\0\x05", 48 + 8 + 8),
    ("rpc", b"\x80\0\0\x04", 8),
    ("rpc", b"\0\0\0\x02ab\0\0\0\0\x80\0\0\x01", 6 + 4 + 5),
    ("rpc", b"\x7f\xff\xff\xff", -90),
    ("steering", b"\0\0\x01\x02\x80\x01\0\x01\0\0\0\x04ping", 262),
];

/// Each source has a case. Those whose objects are committed are checked with these, without clang.
#[test]
fn all_parsers_are_those_of_the_protocols() {
    let sources = sources();
    assert!(sources.len() > 20, "{sources:?}");
    let mut objects = 0;
    for source in &sources {
        let name = source.file_stem().unwrap().to_str().unwrap();
        let has_case = CASES.iter().any(|(case, ..)| *case == name);
        assert!(has_case, "{name} is new: it needs a row in CASES");
        let path = here().join(format!("tests/objects/{name}.o"));
        if path.exists() {
            check(source, &fs::read(&path).unwrap());
            objects += 1;
        }
    }
    assert!(objects >= 10, "{objects} objects");
    // Debug information is left out.
    let lean = elf::load(&fixture("subprogram"), None);
    assert_eq!(elf::load(&fixture("debug"), None), lean);
}

#[test]
fn all_parsers_compile_for_all_versions() {
    let versions = clang_versions();
    for source in &sources() {
        for version in &versions {
            check(source, &compile(source, version));
        }
    }
}

/// The program of a source gives its cases, is all that it is said to be, and cuts what other
/// implementations have sent as its protocol does.
fn check(source: &Path, object: &[u8]) {
    let name = source.file_stem().unwrap().to_str().unwrap();
    let insns = elf::load(object, None).unwrap_or_else(|error| panic!("{name}: {error}"));
    check_cases(name, &insns);
    let program = Program::verify(insns).unwrap_or_else(|error| panic!("{name}: {error}"));
    // Of that one, where it reads next is said by the message: but only behind the first fragment.
    let account = program.account().to_string();
    let interprets = account.contains("interpreted");
    assert_eq!(interprets, name == "rpc", "{name}: {account}");
    assert!(
        account.contains("length") || account.contains("varint"),
        "{name}: {account}"
    );
    let Some(protocol) = protocol_of(source) else {
        return;
    };
    let recordings = recordings_of(protocol);
    assert!(!recordings.is_empty(), "no recording of {protocol:?}");
    for bytes in recordings {
        let expected = lengths(&protocol.framing(), &bytes);
        assert!(expected.iter().sum::<usize>() == bytes.len(), "{name}");
        for framing in [program.framing(), program.interpreted()] {
            assert_eq!(lengths(&framing, &bytes), expected, "{name}");
        }
    }
}

/// The protocol whose name the source has, or that of the one which it names in its first line:
/// "MQTT as in mqtt.c". `rds_announcement.c` is none, for it is wrong by design.
fn protocol_of(source: &Path) -> Option<&'static Protocol> {
    let named = |name: &str| Protocol::named(&name.replace('_', "-"));
    if let Some(protocol) = named(source.file_stem()?.to_str()?) {
        return Some(protocol);
    }
    let text = fs::read_to_string(source).unwrap();
    let (_, after) = text.lines().next()?.split_once(" as in ")?;
    let (name, _) = after.split_once(".c")?;
    Some(named(name).unwrap_or_else(|| panic!("{}: no protocol {name}", source.display())))
}

/// The streams of a protocol, from the recordings that kcm-frame is tested with.
fn recordings_of(protocol: &Protocol) -> Vec<Vec<u8>> {
    let directory = here().join("../kcm-frame/tests/protocols");
    let mut streams = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if !name.starts_with(&format!("{}-", protocol.name())) || !name.ends_with(".txt") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let mut stream = Vec::new();
        // Hexadecimal digits, and perhaps how many times; the line before has the lengths.
        for line in text.lines().filter(|line| !line.starts_with('#')).skip(1) {
            let (digits, times) = line.split_once('*').unwrap_or((line, "1"));
            let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
            let piece: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
            stream.extend(piece.repeat(times.parse().unwrap()));
        }
        streams.push(stream);
    }
    streams
}

/// The messages' lengths, up to the end of the stream or to a fault.
fn lengths(framing: &Framing, mut stream: &[u8]) -> Vec<usize> {
    let mut assembler = Assembler::new(framing, Limits::default());
    let mut lengths = Vec::new();
    while let Step::Message(frame) = assembler.step(stream) {
        let (message, rest) = stream.split_at(usize::try_from(frame.len).unwrap());
        assembler.delivered(message);
        lengths.push(message.len());
        stream = rest;
    }
    lengths
}

/// Runs all cases of a parser, and on all that could have come before the whole.
fn check_cases(name: &str, program: &[Insn]) {
    let cases = CASES.iter().filter(|(case, ..)| *case == name);
    let mut count = 0;
    for (_, bytes, expected) in cases {
        for (more, filler) in [(0, 0), (1, 0xff), (100, 0x55)] {
            let mut message = bytes.to_vec();
            message.resize(bytes.len() + more, filler);
            assert_eq!(run(program, &message), *expected, "{name}: {message:?}");
        }
        for end in 0..bytes.len() {
            let result = run(program, &bytes[..end]);
            let known = result == 0 || result == *expected;
            assert!(known, "{name}: {result} from {end} bytes of {bytes:?}");
        }
        assert_eq!(run(program, &[]), 0, "{name}: a length out of nothing");
        count += 1;
    }
    assert!(count > 0, "no case for {name}");
}

#[test]
fn what_a_parser_cannot_have_is_refused_by_name() {
    let cases = [
        ("map", "map, instruction 5: uses the map \"counters\""),
        (
            "global",
            "global, instruction 0: uses the global variable \"seen\"",
        ),
        (
            "constant",
            "constant, instruction 8: uses the constant data \".rodata\"",
        ),
        (
            "extern",
            "with_extern, instruction 0: refers to \"elsewhere\"",
        ),
        (
            "address",
            "address, instruction 1: takes the address of the function \"length\"",
        ),
    ];
    for (name, text) in cases {
        let error = elf::load(&fixture(name), None).expect_err(name);
        assert!(matches!(error, Error::Unlinkable { .. }), "{error:?}");
        assert_eq!(error.errno(), 95);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn which_program_is_meant_must_be_clear() {
    let error = elf::load(&fixture("several"), None).unwrap_err();
    assert_eq!(error.errno(), 22);
    assert!(error.to_string().ends_with(": one, two"), "{error}");

    let sections = fixture("sections");
    let error = elf::load(&sections, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "BPF object: several sections have code, name the one to run: first, second"
    );
    let error = elf::load(&sections, Some("third")).unwrap_err();
    assert_eq!(error.errno(), 2);
    assert_eq!(
        error.to_string(),
        "BPF object: no section \"third\" with code; sections with code: .text, first, second"
    );
    // There is such a section, with something else in it.
    let error = elf::load(&sections, Some(".symtab")).unwrap_err();
    assert_eq!(error.errno(), 2);
    // Two static functions are there, and no global one.
    let error = elf::load(&sections, Some(".text")).unwrap_err();
    assert!(error.to_string().contains("no global function"), "{error}");
}

#[test]
fn a_program_has_the_functions_it_reaches_and_no_others() {
    let sections = fixture("sections");
    let first = elf::load(&sections, Some("first")).unwrap();
    let second = elf::load(&sections, Some("second")).unwrap();
    let calls = |program: &[Insn]| program.iter().filter(|i| i.is_local_call()).count();
    let exits = |program: &[Insn]| program.iter().filter(|i| i.code == 0x95).count();
    assert_eq!((calls(&first), exits(&first)), (1, 2));
    assert_eq!((calls(&second), exits(&second)), (2, 3));
    assert_eq!(run(&first, b"\x01\x02\x03"), 0x203);
    assert_eq!(run(&second, b"\x01\x02\x03\x04\x05"), 0x0203_0405 + 0x203);

    let text = elf::load(&fixture("text"), None).unwrap();
    assert_eq!(run(&text, b"\x01\x02\x03\x04"), 0x102 + 2);
    assert_eq!(elf::load(&fixture("text"), Some(".text")), Ok(text));
}

#[test]
fn other_files_are_told_what_they_are() {
    let cases: [(Vec<u8>, &str); 7] = [
        (fixture("big_endian"), "big-endian"),
        (
            fs::read(std::env::current_exe().unwrap()).unwrap(),
            "not for BPF",
        ),
        (b"\x7fELF\x01\x01\x01".to_vec(), "32 bits"),
        (b"BC\xc0\xde".to_vec(), "bitcode"),
        (b"4,48 0 0 0".to_vec(), "not ELF"),
        (Vec::new(), "not ELF"),
        (fixture("thrift")[..100].to_vec(), "damaged"),
    ];
    for (bytes, text) in cases {
        // A test's own program can be too long to be looked at.
        let bytes = &bytes[..bytes.len().min(elf::MAX_OBJECT_BYTES)];
        let error = elf::load(bytes, None).unwrap_err();
        assert_eq!(error.errno(), 8);
        assert!(error.to_string().contains(text), "{text}: {error}");
    }
    let error = elf::load(&vec![0; elf::MAX_OBJECT_BYTES + 1], None).unwrap_err();
    assert!(error.to_string().contains("longer than"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]

    /// Nothing is known of what comes out, only that it comes.
    #[test]
    fn a_damaged_object_is_a_program_or_an_error(
        which in prop::sample::select(vec!["subprogram", "ldap", "map", "sections", "debug"]),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut object = fixture(which);
        for (at, byte) in damage {
            let at = at.index(object.len());
            object[at] = byte;
        }
        let _ = elf::load(&object, None);
        let _ = elf::load(&object, Some("second"));
    }
}

#[test]
fn every_object_cut_short_is_an_error() {
    let object = fixture("subprogram");
    for end in 0..object.len() {
        assert!(elf::load(&object[..end], None).is_err(), "{end}");
    }
}

fn fixture(name: &str) -> Vec<u8> {
    let path = here().join(format!("tests/objects/{name}.o"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir(here().join("bpf")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "c"));
    paths.sort();
    paths
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The versions of the instruction set that clang can compile for; none, after saying so, if it is
/// not installed.
fn clang_versions() -> Vec<&'static str> {
    let mut versions = vec!["v1", "v2", "v3", "v4"];
    let probe = Command::new("clang")
        .args([
            "--target=bpf",
            "-mcpu=help",
            "-x",
            "c",
            "-c",
            "/dev/null",
            "-o",
            "/dev/null",
        ])
        .output();
    match probe {
        Ok(output) => {
            let known = String::from_utf8_lossy(&output.stderr);
            let (can, cannot): (Vec<_>, Vec<_>) = versions
                .iter()
                .partition(|version| known.contains(**version));
            versions = can;
            if !cannot.is_empty() {
                common::skip(&format!("this clang does not know BPF {cannot:?}"));
            }
            // Every clang knows the first; one without BPF fails here.
            assert!(!versions.is_empty(), "clang without BPF: {known}");
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            common::skip("clang is not installed");
            versions.clear();
        }
        Err(error) => panic!("clang: {error}"),
    }
    versions
}

fn compile(source: &Path, version: &str) -> Vec<u8> {
    let name = source.file_stem().unwrap().to_str().unwrap();
    let object = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{version}.o"));
    let output = Command::new("clang")
        .args(["-O2", "-Wall", "-Wextra", "-Werror", "-target", "bpf", "-c"])
        .arg(format!("-mcpu={version}"))
        .arg(source)
        .arg("-o")
        .arg(&object)
        .output()
        .expect("it was there");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {complaint}", source.display());
    fs::read(&object).unwrap()
}
