//! Whatever the bytes of a message are: no panic, and a reply that is framed and not too long. What
//! the store takes is bounded.

use kcm_example_thrift::{
    generated::store::{
        Entry, Full, StoreSyncHandler as _, StoreSyncProcessor, TStoreSyncClient as _,
    },
    store::Store,
    wire::{self, MAX_MESSAGE_BYTES},
};
use proptest::prelude::*;
use thrift::protocol::{
    TBinaryInputProtocol, TBinaryOutputProtocol, TCompactInputProtocol, TCompactOutputProtocol,
};

/// The body of a good call, as the generated client sends it.
fn a_call(compact: bool, which: usize) -> Vec<u8> {
    let mut body = Vec::new();
    let entry = || {
        let labels = [("a".to_owned(), "b".to_owned())];
        Entry::new("key".to_owned(), vec![1, 2, 3], Some(labels.into()))
    };
    macro_rules! call {
        ($input:expr, $output:expr) => {{
            let mut client =
                kcm_example_thrift::generated::store::StoreSyncClient::new($input, $output);
            // No reply will come: what counts is what was sent.
            match which {
                0 => drop(client.ping()),
                1 => drop(client.put(entry())),
                2 => drop(client.get_all(vec!["key".to_owned(), "other".to_owned()])),
                3 => drop(client.find(String::new(), 7)),
                _ => drop(client.forget("key".to_owned())),
            }
        }};
    }
    let nothing = std::io::empty;
    if compact {
        call!(
            TCompactInputProtocol::new(nothing()),
            TCompactOutputProtocol::new(&mut body)
        );
    } else {
        call!(
            TBinaryInputProtocol::new(nothing(), true),
            TBinaryOutputProtocol::new(&mut body, true)
        );
    }
    body
}

fn check(body: &[u8]) -> bool {
    let processor = StoreSyncProcessor::new(Store::default());
    let message = [&[0; 4], body].concat();
    let mut replies = b"before".to_vec();
    let result = wire::answer(&processor, &message, &mut replies);
    let reply = replies.strip_prefix(b"before").expect("it appends");
    if let Some((header, rest)) = reply.split_first_chunk() {
        assert_eq!(u32::from_be_bytes(*header) as usize, rest.len());
        assert!(result.is_ok() && reply.len() <= MAX_MESSAGE_BYTES);
        assert_eq!(
            rest.first(),
            body.first(),
            "the reply is in the call's protocol"
        );
    }
    result.is_ok()
}

#[test]
fn good_calls_are_answered() {
    for compact in [false, true] {
        for which in 0..5 {
            assert!(check(&a_call(compact, which)), "{compact} {which}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn any_bytes_do_no_harm(
        first in prop_oneof![Just(0x80_u8), Just(0x82), any::<u8>()],
        rest in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        check(&[&[first], &rest[..]].concat());
    }

    #[test]
    fn changed_calls_do_no_harm(
        compact: bool,
        which in 0_usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
        cut: bool,
    ) {
        let mut body = a_call(compact, which);
        for (at, byte) in changes {
            let at = at.index(body.len());
            body[at] = byte;
        }
        if cut {
            body.truncate(end.index(body.len()));
        }
        check(&body);
    }
}

#[test]
fn the_store_has_an_end_and_room_again() {
    let store = Store::new(10_000);
    let entry = |n: u32, bytes: usize| Entry::new(n.to_string(), vec![0; bytes], None);
    for n in 0..8 {
        assert!(!store.handle_put(entry(n, 1000)).expect("there is room"));
    }
    let error = store.handle_put(entry(8, 1000)).expect_err("no room");
    let thrift::Error::User(error) = error else {
        panic!("{error}");
    };
    assert!(
        error
            .downcast_ref::<Full>()
            .is_some_and(|full| full.limit_bytes == 10_000)
    );
    // In place of another there is.
    assert!(store.handle_put(entry(7, 1500)).expect("there is room"));
    store.handle_forget("7".to_owned()).expect("no error");
    store.handle_forget("7".to_owned()).expect("no error");
    assert!(!store.handle_put(entry(8, 1000)).expect("there is room"));
    assert!(store.handle_put(entry(9, 1000)).is_err());
}
