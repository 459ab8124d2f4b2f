//! What one parse costs: by a native length field, by what programs were recognised as, interpreted.
//!
//! `cargo bench -p kcm-bpf`. All take turns, as a receiver calls them. Prints the median time of a parse
//! of the same bytes again and again (*apart*), and of one that begins where the message before ends,
//! as in a receiver (*chained*): then the processor cannot begin it before the other one has given
//! its result. *Net* is what is left of that without the time of a framing that looks at nothing, which
//! is the loop. `cargo bench -p kcm-bpf -- http2` takes only those whose names have that in them. With
//! `--test` it only checks that all find the messages.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Instant;

use kcm_bpf::{Insn, Program, elf, op};
use kcm_frame::{Assembler, Framing, Limits, Stateless, Verdict};

const PARSES: u32 = 20_000;
const ROUNDS: usize = 61;

struct Contender {
    name: &'static str,
    /// Two messages, and room for the load of a third header.
    stream: Vec<u8>,
    lengths: [usize; 2],
    rule: Stateless,
    apart: Vec<f64>,
    chained: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, framing: &Framing, messages: [&[u8]; 2]) -> Self {
        let rule = Assembler::new(framing, Limits::default())
            .stateless()
            .expect("no state");
        let mut stream = messages.concat();
        stream.extend([0; 16]);
        Self {
            name,
            stream,
            lengths: messages.map(<[u8]>::len),
            rule,
            apart: Vec::new(),
            chained: Vec::new(),
        }
    }

    fn check(&self) {
        let (first, second) = (&self.stream[..], &self.stream[self.lengths[0]..]);
        for (bytes, len) in [first, second].into_iter().zip(self.lengths) {
            let verdict = self.rule.parse(bytes);
            let Verdict::Message(frame) = verdict else {
                panic!("{}: {verdict:?} for {bytes:?}", self.name);
            };
            assert_eq!(frame.len, len as u64, "{} disagrees", self.name);
        }
    }

    fn round(&mut self) {
        let begin = Instant::now();
        let mut total = 0;
        for _ in 0..PARSES {
            if let Verdict::Message(frame) = self.rule.parse(black_box(&self.stream)) {
                total += frame.len;
            }
        }
        black_box(total);
        let between = Instant::now();
        black_box(walk(black_box(&self.stream), &self.rule));
        let ns = |from: Instant, to: Instant| {
            to.duration_since(from).as_secs_f64() * 1e9 / f64::from(PARSES)
        };
        self.apart.push(ns(begin, between));
        self.chained.push(ns(between, Instant::now()));
    }
}

/// Walks over the stream, back to its beginning after two messages.
fn walk(stream: &[u8], rule: &Stateless) -> u64 {
    let mut total = 0;
    let mut at = 0;
    for _ in 0..PARSES {
        let Verdict::Message(frame) = rule.parse(&stream[at..]) else {
            return 0;
        };
        total += frame.len;
        at = if at == 0 {
            usize::try_from(frame.len).unwrap_or(0)
        } else {
            0
        };
    }
    total
}

fn verified(insns: &[Insn]) -> Program {
    Program::verify(insns.to_vec()).expect("a safe program")
}

macro_rules! object {
    ($name:literal) => {
        Program::verify(
            elf::load(
                include_bytes!(concat!("../tests/objects/", $name, ".o")),
                None,
            )
            .expect("a good object"),
        )
        .expect("a safe program")
    };
}

fn contenders() -> Vec<Contender> {
    let save = Insn::new(op::ALU64 | op::MOV | op::X, op::CTX, 1, 0, 0);
    let word = Insn::new(op::LD | op::ABS | op::W, 0, 0, 0, 0);
    let exit = Insn::new(op::JMP | op::EXIT, 0, 0, 0, 0);
    let h2 = verified(&[
        save,
        word,
        Insn::new(op::ALU64 | op::RSH, 0, 0, 0, 8),
        Insn::new(op::ALU64 | op::ADD, 0, 0, 0, 9),
        exit,
    ]);
    // Products and quotients are no length fields.
    let tripled = verified(&[
        save,
        word,
        Insn::new(op::ALU64 | op::MUL, 0, 0, 0, 3),
        Insn::new(op::ALU64 | op::ADD, 0, 0, 0, 6),
        exit,
    ]);
    // (For a word below 12: less than 2 words of 6 bytes.)
    let quotient = verified(&[
        save,
        word,
        Insn::new(op::ALU64 | op::DIV, 0, 0, 0, 6),
        Insn::new(op::ALU64 | op::ADD, 0, 0, 0, 8),
        exit,
    ]);
    let thrift = object!("thrift");
    let http2 = object!("http2");
    let http2_load_bytes = object!("http2_load_bytes");
    let mqtt = object!("mqtt");
    let ldap = object!("ldap");
    let steering = object!("steering");
    let rpc = object!("rpc");
    let iscsi = object!("iscsi");
    let websocket = object!("websocket");
    let native: Framing = "len:size=4,shift=8,bias=9".parse().expect("a good one");
    let (fixed, of_native): (Framing, _) = ("fixed:9".parse().expect("good"), native.native());
    let of_native = of_native.expect("a native");
    let frames: [&[u8]; 2] = [&[0; 9], b"\0\0\x01\0\0\0\0\0\0!"];
    let words: [&[u8]; 2] = [b"\0\0\0\x05hello", b"\0\0\0\x06hello!"];
    let triples: [&[u8]; 2] = [b"\0\0\0\x01.....", b"\0\0\0\x02........"];
    let packets: [&[u8]; 2] = [b"\x10\x07.......", b"\x10\x08........"];
    let entries: [&[u8]; 2] = [b"\x30\x07.......", b"\x30\x08........"];
    let quotients: [&[u8]; 2] = [b"\0\0\0\x07.....", b"\0\0\0\x0c......"];
    let long_entries: [&[u8]; 2] = [b"\x30\x84\0\0\0\x03...", b"\x30\x84\0\0\0\x04...."];
    let pdus: [&[u8]; 2] = [
        b"....\0\0\0\x02........................................ab..",
        b"....\x01\0\0\x05........................................0123hello...",
    ];
    let masked: [&[u8]; 2] = [b"\x81\x85keyshello", b"\x81\x86keyshello!"];
    let unmasked: [&[u8]; 2] = [b"\x81\x07.......", b"\x81\x08........"];
    let records: [&[u8]; 2] = [b"\x80\0\0\x05hello", b"\x80\0\0\x06hello!"];
    let calls: [&[u8]; 2] = [b"\0\0\0\x0c........ping", b"\0\0\0\x0d........ping!"];
    vec![
        Contender::new("nothing: a fixed length", &fixed, [&[0; 9], &[0; 9]]),
        Contender::new(
            "nothing, by a closure",
            &Framing::closure(|_| Verdict::message(9)),
            [&[0; 9], &[0; 9]],
        ),
        Contender::new("native length field", &native, frames),
        Contender::new(
            "the same, by a closure",
            &Framing::closure(move |bytes| of_native.parse(bytes)),
            frames,
        ),
        Contender::new("five instructions, recognised", &h2.framing(), frames),
        Contender::new("thrift.o, recognised", &thrift.framing(), words),
        Contender::new("mqtt.o, recognised", &mqtt.framing(), packets),
        Contender::new("http2.o, a tree", &http2.framing(), frames),
        Contender::new("http2_load_bytes.o", &http2_load_bytes.framing(), frames),
        Contender::new("ldap.o", &ldap.framing(), entries),
        Contender::new("ldap.o, 4 bytes of length", &ldap.framing(), long_entries),
        Contender::new("iscsi.o", &iscsi.framing(), pdus),
        Contender::new("websocket.o, masked", &websocket.framing(), masked),
        Contender::new("websocket.o, not masked", &websocket.framing(), unmasked),
        Contender::new("rpc.o", &rpc.framing(), records),
        Contender::new("steering.o", &steering.framing(), calls),
        Contender::new("a product", &tripled.framing(), triples),
        Contender::new("a quotient", &quotient.framing(), quotients),
        Contender::new("five instructions, interpreted", &h2.interpreted(), frames),
        Contender::new("thrift.o, interpreted", &thrift.interpreted(), words),
        Contender::new("mqtt.o, interpreted", &mqtt.interpreted(), packets),
        Contender::new("http2.o, interpreted", &http2.interpreted(), frames),
        Contender::new("ldap.o, interpreted", &ldap.interpreted(), entries),
        Contender::new("steering.o, interpreted", &steering.interpreted(), calls),
    ]
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let mut contenders = contenders();
    for contender in &contenders {
        contender.check();
    }
    if test {
        return;
    }
    // The first one is always there: it is taken off the others.
    if let Some(wanted) = std::env::args().skip(1).find(|arg| !arg.starts_with('-')) {
        let mut index = 0;
        contenders.retain(|contender| {
            index += 1;
            index == 1 || contender.name.contains(&wanted)
        });
    }
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::round);
    }
    let mut nothing = None;
    println!("{:32}  apart    net  chained    net", "ns a parse");
    for contender in &mut contenders {
        let (apart, chained) = (median(&mut contender.apart), median(&mut contender.chained));
        let (no_apart, no_chained) = *nothing.get_or_insert((apart, chained));
        println!(
            "{:32} {apart:6.2} {:6.2}   {chained:6.2} {:6.2}",
            contender.name,
            apart - no_apart,
            chained - no_chained
        );
    }
}
