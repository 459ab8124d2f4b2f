//! Classic programs against the running kernel, which takes them as socket filters from anybody: it
//! must accept what we accept, and give what we give.
//!
//! The result of a filter is how many bytes of a packet are kept. The programs here give less than
//! the packets have, so that all of it can be seen.
#![allow(missing_docs)]

mod common;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};

use common::{any_program, good_program, run};
use kcm_bpf::{Error, SockFilter, classic};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use socket2::{Domain, Socket, Type};

#[test]
fn the_kernel_accepts_what_we_accept() {
    let Some(pair) = Pair::new() else { return };
    let [accepted, refused, ours_alone] = [const { Cell::new(0) }; 3];
    let mut runner = runner(20_000);
    let cases = runner.run(&any_program(), |program| {
        let kernel = pair.attach(&program);
        match classic::to_ebpf(&program) {
            Ok(_) => accepted.update(|n| n + 1),
            // What a packet has and a message has not.
            Err(Error::NoSuchData { .. }) => {
                prop_assert!(
                    kernel,
                    "no need to name the data: the kernel refuses it too"
                );
                ours_alone.update(|n| n + 1);
                return Ok(());
            }
            Err(_) => refused.update(|n| n + 1),
        }
        prop_assert_eq!(classic::to_ebpf(&program).map(drop).is_ok(), kernel);
        Ok(())
    });
    cases.unwrap_or_else(|error| panic!("{error}"));
    // A test of refusals alone, or of none, would prove little.
    let counts = [accepted, refused, ours_alone].map(Cell::into_inner);
    assert!(
        counts.iter().all(|&count| count > 100),
        "accepted, refused, by us alone: {counts:?}"
    );
}

#[test]
fn the_kernel_gives_what_we_give() {
    let Some(pair) = Pair::new() else { return };
    let cases = (
        (0u32..4).prop_flat_map(good_program),
        prop::collection::vec(any::<u8>(), 300..420),
    );
    let results = RefCell::new(BTreeSet::new());
    let mut runner = runner(10_000);
    let outcome = runner.run(&cases, |(program, message)| {
        prop_assert!(pair.attach(&program), "refused by the kernel");
        let translated = classic::to_ebpf(&program).expect("a good program");
        let result = run(&translated, &message);
        prop_assert_eq!(result, pair.kept(&message));
        results.borrow_mut().insert(result);
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
    let count = results.into_inner().len();
    assert!(count > 200, "only {count} different results");
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

/// A filter in front of the receiver of datagrams.
struct Pair {
    sender: Socket,
    receiver: Socket,
}

impl Pair {
    /// `None` where there is no such thing.
    fn new() -> Option<Self> {
        let made = Socket::pair(Domain::UNIX, Type::DGRAM, None);
        let (sender, receiver) = made.expect("two descriptors");
        receiver.set_nonblocking(true).expect("a socket");
        let pair = Self { sender, receiver };
        if !pair.attach(&[common::insn(0x06, 1)]) {
            common::skip("socket filters cannot be attached here");
            return None;
        }
        Some(pair)
    }

    fn attach(&self, program: &[SockFilter]) -> bool {
        let program: Vec<_> = program
            .iter()
            .map(|insn| socket2::SockFilter::new(insn.code, insn.jt, insn.jf, insn.k))
            .collect();
        self.receiver.attach_filter(&program).is_ok()
    }

    /// How many bytes of a packet come through.
    fn kept(&self, message: &[u8]) -> i32 {
        let sent = (&self.sender).write(message).expect("the queue is empty");
        assert_eq!(sent, message.len());
        match (&self.receiver).read(&mut [0; 512]) {
            Ok(kept) => i32::try_from(kept).expect("below 512"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }
}
