use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn assembler(spec: &str, limits: Limits) -> Assembler {
    Assembler::new(&spec.parse().expect("a good specification"), limits)
}

fn incomplete(need: usize) -> Step {
    Step::Incomplete { need, len: None }
}

fn announced(len: usize) -> Step {
    Step::Incomplete {
        need: len,
        len: Some(len),
    }
}

/// An assembler over a closure, and how often the closure was called.
fn counted(
    f: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static,
    limits: Limits,
) -> (Assembler, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let framing = Framing::closure(move |bytes| {
        counter.fetch_add(1, Ordering::Relaxed);
        f(bytes)
    });
    (Assembler::new(&framing, limits), calls)
}

#[test]
fn no_bytes_are_no_question() {
    let (mut a, calls) = counted(|_| Verdict::Error(5), Limits::default());
    assert_eq!(a.step(&[]), incomplete(1));
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    assert_eq!(
        assembler("fixed:3", Limits::default()).step(&[]),
        incomplete(1)
    );
}

#[test]
fn single_bytes_cost_no_parse_each() {
    let (mut a, calls) = counted(
        |bytes| match bytes {
            [_, _, _, len, ..] => Verdict::message((*len).into()),
            _ => Verdict::NeedMore(4),
        },
        Limits::default(),
    );
    let message = [0, 0, 0, 200]
        .into_iter()
        .chain([1; 196])
        .collect::<Vec<u8>>();
    for end in 1..4 {
        assert_eq!(a.step(&message[..end]), incomplete(4));
    }
    for end in 4..200 {
        assert_eq!(a.step(&message[..end]), announced(200));
    }
    assert_eq!(a.step(&message), Step::Message(Frame::new(200)));
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[test]
fn key_and_class_come_through() {
    let frame = Frame::new(3).with_key(9).with_class(2);
    let (mut a, _) = counted(move |_| Verdict::Message(frame), Limits::default());
    assert_eq!(a.step(b"abc"), Step::Message(frame));
    assert_eq!(a.step(b"ab"), announced(3));
    assert_eq!(a.step(b"abcd"), Step::Message(frame));
}

#[test]
fn a_number_not_above_what_is_there_means_one_more() {
    for asked in 0..=3 {
        let (mut a, _) = counted(move |_| Verdict::NeedMore(asked), Limits::default());
        assert_eq!(a.step(b"abc"), incomplete(4));
    }
}

#[test]
fn no_message_of_no_bytes() {
    let (mut a, _) = counted(|_| Verdict::message(0), Limits::default());
    let fault = Fault::BadLength { len: 0, least: 1 };
    assert_eq!(a.step(b"a"), Step::Fault(fault));
    assert_eq!(fault.errno(), EPROTO);
}

#[test]
fn no_message_that_ends_where_more_was_asked_for() {
    let at_five = |len| {
        counted(
            move |bytes| match bytes.len() {
                0..5 => Verdict::NeedMore(5),
                _ => Verdict::message(len),
            },
            Limits::default(),
        )
        .0
    };
    let mut a = at_five(3);
    assert_eq!(a.step(b"abc"), incomplete(5));
    assert_eq!(
        a.step(b"abcde"),
        Step::Fault(Fault::BadLength { len: 3, least: 4 })
    );
    let mut a = at_five(4);
    assert_eq!(a.step(b"abc"), incomplete(5));
    assert_eq!(a.step(b"abcde"), Step::Message(Frame::new(4)));
    // What was asked for one message does not count for the next.
    a.delivered(b"abcd");
    assert_eq!(a.step(b"efghi"), Step::Message(Frame::new(4)));
}

#[test]
fn a_message_too_big_is_refused_before_its_body() {
    let limits = Limits::default().with_max_message_bytes(100);
    let mut a = assembler("u32be+4", limits);
    assert_eq!(a.step(&[0, 0, 0, 96]), announced(100));
    let mut a = assembler("u32be+4", limits);
    let fault = Fault::TooBig {
        len: 101,
        limit: 100,
    };
    assert_eq!(a.step(&[0, 0, 0, 97]), Step::Fault(fault));
    assert_eq!(fault.errno(), 90);
    // So it is when the whole of it is there.
    let mut a = assembler("fixed:101", limits);
    assert_eq!(a.step(&[0; 101]), Step::Fault(fault));
    let fault = Fault::TooBig {
        len: u64::MAX,
        limit: 100,
    };
    assert_eq!(
        assembler("u64be", limits).step(&[0xff; 8]),
        Step::Fault(fault)
    );
}

#[test]
fn headers_have_a_bound() {
    let limits = Limits::default().with_max_header_bytes(4);
    let too_long = Step::Fault(Fault::HeaderTooLong { limit: 4 });
    let (mut a, _) = counted(|_| Verdict::NeedMore(0), limits);
    assert_eq!(a.step(b"abc"), incomplete(4));
    assert_eq!(a.step(b"abcd"), too_long);
    // At once when the parser says so at once.
    let (mut a, _) = counted(|_| Verdict::NeedMore(5), limits);
    assert_eq!(a.step(b"a"), too_long);
    let (mut a, _) = counted(|_| Verdict::NeedMore(usize::MAX), limits);
    assert_eq!(a.step(b"a"), too_long);
    // A message has no header longer than itself.
    let limits = limits.with_max_message_bytes(3);
    let (mut a, _) = counted(|_| Verdict::NeedMore(0), limits);
    assert_eq!(
        a.step(b"abc"),
        Step::Fault(Fault::HeaderTooLong { limit: 3 })
    );
}

/// A byte of length without itself; the highest bit says that it is not the last.
fn fragments(bytes: &[u8]) -> Verdict {
    match bytes.first() {
        None => Verdict::NeedMore(1),
        Some(0xff) => Verdict::NeedMore(0),
        Some(&head) if head & 0x80 != 0 => Verdict::Fragment(1 + u64::from(head & 0x7f)),
        Some(&head) => Verdict::message(1 + u64::from(head)),
    }
}

#[test]
fn fragments_are_one_message_and_none_is_parsed_twice() {
    let message: Vec<u8> = [0x80].repeat(1000).into_iter().chain([1, 7]).collect();
    let (mut a, calls) = counted(fragments, Limits::default().with_max_header_bytes(1));
    for end in 1..=1000 {
        assert_eq!(a.step(&message[..end]), incomplete(end + 1));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1000);
    assert_eq!(a.step(&message[..1001]), announced(1002));
    let whole = Step::Message(Frame::new(1002));
    for _ in 0..3 {
        assert_eq!(a.step(&message), whole);
    }
    assert_eq!(calls.load(Ordering::Relaxed), 1001);
    a.delivered(&message);
    // Nothing of it counts for the next one.
    assert_eq!(a.step(&[1, 7]), Step::Message(Frame::new(2)));
    assert_eq!(a.step(&message), whole);
    assert_eq!(calls.load(Ordering::Relaxed), 1001 + 1 + 1001);
}

#[test]
fn a_fragment_has_its_own_header_limit_and_the_message_has_one() {
    let limits = Limits::default()
        .with_max_header_bytes(2)
        .with_max_message_bytes(9);
    let (mut a, _) = counted(fragments, limits);
    assert_eq!(a.step(&[0x84, 0, 0, 0, 0, 0xff]), incomplete(7));
    assert_eq!(
        a.step(&[0x84, 0, 0, 0, 0, 0xff, 0]),
        Step::Fault(Fault::HeaderTooLong { limit: 7 })
    );
    // Exactly as long as may be, a byte more, and one that cannot end in time.
    for (last, step) in [
        (0x03, announced(9)),
        (0x04, Step::Fault(Fault::TooBig { len: 10, limit: 9 })),
        (0x83, Step::Fault(Fault::TooBig { len: 10, limit: 9 })),
        (0x82, incomplete(9)),
    ] {
        let (mut a, _) = counted(fragments, limits);
        assert_eq!(a.step(&[0x84, 0, 0, 0, 0, last]), step, "{last:#x}");
    }
    let (mut a, _) = counted(fragments, limits);
    assert_eq!(a.step(&[0x84]), incomplete(6));
    a.set_limits(limits.with_max_message_bytes(5));
    assert!(matches!(a.step(&[0x84]), Step::Fault(fault) if fault.errno() == 90));
}

#[test]
fn fragments_go_forward() {
    let bad = |len, least| Step::Fault(Fault::BadLength { len, least });
    let (mut a, _) = counted(|_| Verdict::Fragment(0), Limits::default());
    assert_eq!(a.step(b"abc"), bad(0, 1));
    // The last is a fragment too, and has at least a byte.
    let last_is = |len| {
        move |bytes: &[u8]| match bytes {
            [b'f', ..] => Verdict::Fragment(2),
            _ => Verdict::message(len),
        }
    };
    let (mut a, _) = counted(last_is(0), Limits::default());
    assert_eq!(a.step(b"f.x"), bad(2, 3));
    let (mut a, _) = counted(last_is(u64::MAX), Limits::default());
    assert!(matches!(
        a.step(b"f.x"),
        Step::Fault(Fault::TooBig { len: u64::MAX, .. })
    ));
    let (mut a, _) = counted(|_| Verdict::Fragment(u64::MAX), Limits::default());
    assert!(matches!(
        a.step(b"f.x"),
        Step::Fault(Fault::TooBig { len: u64::MAX, .. })
    ));
    // Asked for three bytes, it cannot be a fragment of two.
    let (mut a, _) = counted(
        |bytes| match bytes.len() {
            0..3 => Verdict::NeedMore(3),
            _ => Verdict::Fragment(2),
        },
        Limits::default(),
    );
    assert_eq!(a.step(b"ab"), incomplete(3));
    assert_eq!(a.step(b"abc"), bad(2, 3));
}

#[test]
fn a_lost_stream_stays_lost() {
    let (mut a, calls) = counted(|_| Verdict::Error(22), Limits::default());
    let fault = Step::Fault(Fault::Parser { errno: 22 });
    assert_eq!(a.step(b"a"), fault);
    a.delivered(b"a");
    a.set_limits(Limits::default());
    assert_eq!(a.step(b"b"), fault);
    assert_eq!(a.step(&[]), fault);
    a.set_framing(&"fixed:1".parse().expect("a good specification"));
    assert_eq!(a.step(b"b"), fault);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[test]
fn an_errno_that_is_none_becomes_eproto() {
    for errno in [0, -71, i32::MIN] {
        let (mut a, _) = counted(move |_| Verdict::Error(errno), Limits::default());
        assert_eq!(a.step(b"a"), Step::Fault(Fault::Parser { errno: EPROTO }));
    }
}

#[test]
fn native_errors_say_what_is_wrong() {
    let mut a = assembler("u16be", Limits::default());
    assert_eq!(
        a.step(&[0, 1]),
        Step::Fault(Fault::BadLength { len: 1, least: 2 })
    );
    let mut a = assembler("varint:max=1", Limits::default());
    assert_eq!(
        a.step(&[0x80]),
        Step::Fault(Fault::Parser { errno: EPROTO })
    );
}

#[test]
fn new_limits_hold_for_the_message_at_the_front() {
    let limits = Limits::default();
    let mut a = assembler("u32be+4", limits);
    assert_eq!(a.step(&[0, 0, 0, 9]), announced(13));
    a.set_limits(limits.with_max_message_bytes(13));
    assert_eq!(a.step(&[0, 0, 0, 9]), announced(13));
    a.set_limits(limits.with_max_message_bytes(12));
    assert_eq!(a.limits().max_message_bytes, 12);
    assert_eq!(
        a.step(&[0, 0, 0, 9]),
        Step::Fault(Fault::TooBig { len: 13, limit: 12 })
    );

    let mut a = assembler("u32be+4", limits);
    assert_eq!(a.step(&[0]), incomplete(4));
    a.set_limits(limits.with_max_header_bytes(3));
    assert_eq!(a.step(&[0]), Step::Fault(Fault::HeaderTooLong { limit: 3 }));

    // Between messages nothing is remembered that could break them.
    let mut a = assembler("u32be+4", limits);
    a.set_limits(limits.with_max_message_bytes(0));
    assert_eq!(a.step(&[]), incomplete(1));
    assert_eq!(a.step(&[0]), Step::Fault(Fault::HeaderTooLong { limit: 0 }));
}

#[test]
fn a_new_framing_reads_the_front_anew() {
    let mut a = assembler("u32be+4", Limits::default());
    assert_eq!(a.step(&[0, 0, 0, 9]), announced(13));
    a.set_framing(&"u16be+2".parse().expect("a good specification"));
    assert!(
        matches!(a.stateless(), Some(Stateless::Native(native)) if Ok(native) == "u16be+2".parse())
    );
    assert_eq!(a.step(&[0, 0, 0, 9]), Step::Message(Frame::new(2)));
    a.set_framing(&Framing::closure(|_| Verdict::message(1)));
    assert!(matches!(a.stateless(), Some(Stateless::Closure(_))));
    assert_eq!(a.step(&[0, 9]), Step::Message(Frame::new(1)));
}

#[test]
fn debug_shows_the_framing_as_text() {
    let text = format!("{:?}", assembler("u32be+4", Limits::default()));
    assert!(
        text.starts_with("Assembler { framing: u32be+4, limits: "),
        "{text}"
    );
}

#[test]
fn a_panic_of_the_parser_is_a_fault() {
    struct Fragile(u8);
    impl Parser for Fragile {
        fn parse(&self, bytes: &[u8]) -> Verdict {
            assert_ne!(bytes[0], 9, "a panic that this test is about");
            Verdict::message(self.0.into())
        }
        fn delivered(&mut self, message: &[u8]) {
            assert_ne!(message[0], 8, "a panic that this test is about");
        }
    }
    let fault = Step::Fault(Fault::Parser { errno: EIO });
    let closure = Framing::closure(|bytes| Verdict::message(bytes[bytes.len()].into()));
    assert_eq!(
        Assembler::new(&closure, Limits::default()).step(&[1]),
        fault
    );
    let stateful = Framing::stateful(|| Fragile(2));
    let mut a = Assembler::new(&stateful, Limits::default());
    assert_eq!(a.step(&[1, 1]), Step::Message(Frame::new(2)));
    a.delivered(&[1, 1]);
    assert_eq!(a.step(&[9]), fault);
    let mut a = Assembler::new(&stateful, Limits::default());
    assert_eq!(a.step(&[8, 1]), Step::Message(Frame::new(2)));
    a.delivered(&[8, 1]);
    assert_eq!(a.step(&[1, 1]), fault, "its state cannot be trusted");
}

#[test]
fn a_parser_leaves_the_rest_of_the_stream_to_a_framing() {
    /// A first message of 3 bytes; its first byte is the length of the others, unless it is a 7.
    struct First(u64);
    impl Parser for First {
        fn parse(&self, _: &[u8]) -> Verdict {
            Verdict::message(3)
        }
        fn delivered(&mut self, message: &[u8]) {
            self.0 = message[0].into();
        }
        fn rest(&self) -> Option<Framing> {
            assert_ne!(self.0, 8, "a panic that this test is about");
            (self.0 != 7).then(|| Framing::Fixed(Fixed::new(self.0).expect("a length")))
        }
    }
    let framing = Framing::stateful(|| First(0));
    let mut a = Assembler::new(&framing, Limits::default());
    // Byte by byte, so that something is remembered when it goes.
    for have in 1..3 {
        assert!(matches!(a.step(&[7; 3][..have]), Step::Incomplete { .. }));
    }
    assert_eq!(a.step(&[7; 3]), Step::Message(Frame::new(3)));
    a.delivered(&[7; 3]);
    assert!(a.stateless().is_none());
    assert_eq!(a.step(&[2, 0, 0]), Step::Message(Frame::new(3)));
    a.delivered(&[2, 0, 0]);
    assert!(a.stateless().is_some());
    assert_eq!(a.step(&[0; 3]), Step::Message(Frame::new(2)));
    // Another connection begins anew.
    let mut other = Assembler::new(&framing, Limits::default());
    assert_eq!(other.step(&[8; 3]), Step::Message(Frame::new(3)));
    other.delivered(&[8; 3]);
    assert_eq!(
        other.step(&[8; 3]),
        Step::Fault(Fault::Parser { errno: EIO })
    );
}
