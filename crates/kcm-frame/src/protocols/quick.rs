//! What the quick forms of protocols are tested with.

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::TestRunner;

use crate::{Framing, Verdict};

/// Of these messages the form that is found from each says the length; and each says of any bytes what the
/// function says, or nothing. So does the form that is found from these.
pub(super) fn check(framing: &Framing, usual: &[([u8; 8], u64)]) {
    for (bytes, len) in usual {
        let length = length(framing, bytes, bytes);
        assert_eq!(length, Some(*len), "{bytes:?}");
    }
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(5000)
    };
    TestRunner::new(config)
        .run(&nearly(usual), |bytes| {
            for (like, _) in usual {
                length(framing, like, &bytes);
            }
            length(framing, &bytes, &bytes);
            Ok(())
        })
        .expect("they agree");
}

/// Any bytes, or the first ones of a message that the form knows, some of them changed; up to a few more
/// than it looks at, or too few.
fn nearly(usual: &[([u8; 8], u64)]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let more = || vec(any::<u8>(), 0..16);
    let message = select(usual.to_vec());
    let changes = vec(weighted(0.2, any::<u8>()), 8);
    let changed =
        (message, changes, more(), 0..24_usize).prop_map(|((message, _), changes, more, len)| {
            let changed = message.iter().zip(changes);
            let mut bytes: Vec<u8> = changed.map(|(byte, new)| new.unwrap_or(*byte)).collect();
            bytes.extend(more);
            bytes.truncate(len);
            bytes
        });
    prop_oneof![1 => more(), 3 => changed]
}

/// If the form of this message says something of these bytes, this, and that the function says the same.
fn length(framing: &Framing, message: &[u8], bytes: &[u8]) -> Option<u64> {
    let Framing::Closure(function) = framing else {
        panic!("it is a function");
    };
    let len = function
        .quick_form(message)
        .expect("it has one")
        .length_of(bytes)?;
    assert_eq!(function.parse(bytes), Verdict::message(len), "{bytes:?}");
    Some(len)
}
