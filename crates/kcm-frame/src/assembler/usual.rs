//! The quick form of the messages that come on one connection.
//!
//! A form is found from a message and is right for messages like that one. What comes on a connection is
//! mostly of one kind, and for a long time: so the form is kept, and another one is asked for when a message
//! is none that it knows. To find one takes some microseconds, as long as hundreds of messages with it take:
//! it is not asked for again before more than that have passed. Where one after the other is no help, or
//! there is none, ever more have to pass.

use crate::QuickForm;

/// Messages from one question to the next: with a form each of them costs 10 ns or more less, and
/// to find one for a program takes 2 to 15 us.
const ASK_EVERY: u64 = 256;

/// The most of them, where messages are mostly none that the form knows: a question is then 0.2 ns of
/// each.
const ASK_SELDOM: u64 = 65_536;

/// What was found last, and when to ask again.
pub(super) struct Usual {
    form: Option<QuickForm>,
    ask_at: u64,
    ask_every: u64,
}

impl Default for Usual {
    fn default() -> Self {
        Self {
            form: None,
            ask_at: 0,
            ask_every: ASK_EVERY,
        }
    }
}

impl Usual {
    /// The form for messages from this one on, of which `delivered` went before.
    pub(super) fn form(
        &mut self,
        message: &[u8],
        delivered: u64,
        form_like: impl FnOnce(&[u8]) -> Option<QuickForm>,
    ) -> Option<QuickForm> {
        if (self.form).is_some_and(|form| form.length_of(message).is_some()) {
            self.ask_every = (self.ask_every / 2).max(ASK_EVERY);
        } else if delivered >= self.ask_at {
            self.ask_at = delivered.saturating_add(self.ask_every);
            self.ask_every = (self.ask_every * 2).min(ASK_SELDOM);
            // What it was before may still be right for some.
            self.form = form_like(message).or(self.form);
        }
        self.form
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bits, Endian, Exception};

    /// A form for messages that begin with this byte.
    fn form_for(first: u8) -> QuickForm {
        let bits = Bits {
            turn: 0,
            mask: 0xff,
        };
        QuickForm::new(0, Endian::Little, bits, 8)
            .unless(Exception::all_but(bits, first.into(), 0))
            .expect("one exception")
    }

    #[test]
    fn another_one_is_asked_for_when_it_is_time() {
        let mut usual = Usual::default();
        let mut asked = 0;
        let mut form = |message: u8, delivered| {
            usual.form(&[message; 8], delivered, |bytes| {
                asked += 1;
                (bytes[0] != 3).then(|| form_for(bytes[0]))
            })
        };
        assert_eq!(form(1, 7), Some(form_for(1)));
        // It fits, however long.
        assert_eq!(form(1, 10_000), Some(form_for(1)));
        assert_eq!(form(2, 10_001), Some(form_for(2)));
        // One of which there is none: the one before may be right for others.
        assert_eq!(form(3, 10_001 + ASK_EVERY - 1), Some(form_for(2)));
        assert_eq!(form(3, 10_001 + ASK_EVERY), Some(form_for(2)));
        assert_eq!(form(1, 10_001 + 3 * ASK_EVERY - 1), Some(form_for(2)));
        assert_eq!(form(1, 10_001 + 3 * ASK_EVERY), Some(form_for(1)));
        assert_eq!(asked, 4);
    }

    #[test]
    fn where_none_fits_it_is_asked_for_ever_more_seldom() {
        let mut usual = Usual::default();
        let mut asked = 0;
        for delivered in 0..20 * ASK_SELDOM {
            let kind = u8::try_from(delivered % 251).expect("a byte");
            usual.form(&[kind; 8], delivered, |_| {
                asked += 1;
                Some(form_for(255))
            });
        }
        assert!((20..30).contains(&asked), "{asked}");
        // And soon again, when it is of use.
        for delivered in 20 * ASK_SELDOM..22 * ASK_SELDOM {
            let form = usual.form(&[1; 8], delivered, |_| Some(form_for(1)));
            assert!(form.is_some());
        }
        assert_eq!(usual.ask_every, ASK_EVERY);
    }
}
