//! Text to framing and back: what is read must be written as text that reads as
//! the same framing, and what is refused must be refused with its own text in
//! the message. Neither may panic.

#![no_main]

use kcm_frame::{Framing, Native};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Native>() {
        Ok(native) => {
            let written = native.to_string();
            assert_eq!(
                written.parse::<Native>(),
                Ok(native),
                "{text:?} became {written:?}"
            );
            let framing = written
                .parse::<Framing>()
                .expect("a native framing is a framing");
            assert_eq!(framing.native(), Some(native));
            // The shortest form is a fixed point.
            assert_eq!(native.to_string(), written);
            let _ = native.parse(text.as_bytes());
            if let Ok(header) = native.header_for(text.len() as u64) {
                assert!(header.len() <= kcm_frame::MAX_HEADER);
            }
        }
        Err(error) => {
            assert_eq!(error.errno(), 22);
            assert!(error.to_string().starts_with(&format!("{text:?}: ")));
        }
    }
});
