//! The quick form of the messages that come on one connection.
//!
//! A form is found from a message and is right for messages like that one. What comes on a connection is
//! mostly of one kind, and for a long time: so the form is kept, and another one is asked for when a message
//! is none that it knows. To find one can take as long as a thousand messages with it: it is not asked for
//! again before so many messages have passed that what one of them has to bear is next to nothing.

use crate::QuickForm;

/// Messages from one question to the next: a program of twenty instructions is followed in 10 us, which is
/// 40 ns for each of these where no form helps, and nothing where one does.
const ASK_EVERY: u64 = 256;

/// What was found last, and when to ask again.
#[derive(Default)]
pub(super) struct Usual {
    form: Option<QuickForm>,
    ask_at: u64,
}

impl Usual {
    /// The form for messages from this one on, of which `delivered` went before.
    pub(super) fn form(
        &mut self,
        message: &[u8],
        delivered: u64,
        form_like: impl FnOnce(&[u8]) -> Option<QuickForm>,
    ) -> Option<QuickForm> {
        let knows_it = (self.form).is_some_and(|form| form.length_of(message).is_some());
        if !knows_it && delivered >= self.ask_at {
            self.ask_at = delivered.saturating_add(ASK_EVERY);
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
        assert_eq!(form(1, 10_001 + 2 * ASK_EVERY - 1), Some(form_for(2)));
        assert_eq!(form(1, 10_001 + 2 * ASK_EVERY), Some(form_for(1)));
        assert_eq!(asked, 4);
    }
}
