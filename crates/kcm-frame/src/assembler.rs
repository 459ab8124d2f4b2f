//! Framing and limits, applied to the front of one byte stream.
//!
//! The receiver owns the buffer and shows its front again whenever more has
//! come. What has to be remembered between two looks is little but matters: how
//! many bytes are worth waiting for (so that a peer that sends single bytes does
//! not buy a parse with each), at how many bytes the parser did not know the
//! length yet (a shorter one afterwards is a lie), and that a stream once lost
//! stays lost. The path of a whole message with a native framing touches none of
//! this and is inlined into the receiver's loop.

use std::fmt;

use crate::errno::{EIO, EPROTO};
use crate::framing::FrameFn;
use crate::parser::guarded;
use crate::{
    Fault, Fixed, Frame, Framing, LengthField, Limits, Native, Parser, QuickForm, Stateless,
    Varint, Verdict,
};

mod usual;

use usual::Usual;

/// Where the next message of the stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The whole message is there: its `len` is not above the number of bytes.
    Message(Frame),
    /// Not all of the message is there.
    Incomplete {
        /// Bytes, from the message's first, before which it is not worth asking
        /// again. Always more than were shown.
        need: usize,
        /// The message's length in bytes, once known and within the limits.
        len: Option<usize>,
    },
    /// The stream is lost; each later step says so again.
    Fault(Fault),
}

/// Applies a framing and limits to the front of a byte stream (one for each
/// connection).
///
/// Call [`step`](Assembler::step) with the bytes that begin at a message's first
/// one; when it says [`Step::Message`] and the message is taken off the stream,
/// call [`delivered`](Assembler::delivered) and go on with the bytes after it.
/// The [crate's front page](crate) has an example.
#[repr(C)] // What each message asks for stands together.
pub struct Assembler {
    limits: Limits,
    /// Fewer bytes than this need no look at them. 1 exactly when nothing is
    /// remembered of the message; more than any slice has after a fault.
    need: usize,
    rule: Rule,
    /// Most bytes at which the parser did not know the length yet.
    asked_at: usize,
    /// Bytes of the message at the front that are whole fragments, though perhaps
    /// not all there; the parser looks at what comes behind them.
    fragments: usize,
    /// The message at the front, when its end is known but not there.
    known: Option<Frame>,
    fault: Option<Fault>,
    /// The form of a function's usual messages, once it was asked for that.
    usual: Option<Box<Usual>>,
}

/// A framing as one connection holds it.
enum Rule {
    Length(LengthField),
    Varint(Varint),
    Fixed(Fixed),
    Closure(FrameFn),
    Stateful(Box<dyn Parser>),
}

/// `need` of a lost stream. No slice is that long.
const NEVER: usize = usize::MAX;

impl Assembler {
    /// An assembler for the beginning of a stream.
    #[must_use]
    pub fn new(framing: &Framing, limits: Limits) -> Self {
        Self {
            need: 1,
            rule: Rule::of(framing),
            limits,
            asked_at: 0,
            fragments: 0,
            known: None,
            fault: None,
            usual: None,
        }
    }

    /// Looks for the end of the message that begins at `bytes`. Bytes seen
    /// before are shown again.
    ///
    /// * No bytes, or fewer than an earlier step asked for: that answer again,
    ///   without calling the parser.
    /// * A message longer than [`Limits::max_message_bytes`] is a
    ///   [`Fault::TooBig`] as soon as its length is known.
    /// * A length still unknown at [`Limits::max_header_bytes`] (or at
    ///   `max_message_bytes`, which no such message can keep to), or a parser
    ///   that asks for more than that: [`Fault::HeaderTooLong`].
    /// * A length of 0, or not above a number of bytes at which the parser asked
    ///   for more: [`Fault::BadLength`], as it should have been known earlier.
    /// * A message in fragments ([`Verdict::Fragment`]) may have its length known
    ///   late; the header limit then counts from the first byte of each fragment,
    ///   and none is parsed twice.
    #[inline]
    pub fn step(&mut self, bytes: &[u8]) -> Step {
        if bytes.len() < self.need {
            return self.waiting();
        }
        let room = bytes.len().min(self.limits.max_message_bytes) as u64;
        // One after the other: the usual one is then a single comparison away.
        // A native length is never 0 nor below what was asked for, so there is
        // nothing to check but the room.
        if let Rule::Length(field) = &self.rule {
            if let Verdict::Message(frame) = field.parse(bytes)
                && frame.len <= room
            {
                return self.whole(frame);
            }
        } else if let Rule::Varint(varint) = &self.rule {
            if let Verdict::Message(frame) = varint.parse(bytes)
                && frame.len <= room
            {
                return self.whole(frame);
            }
        } else if let Rule::Fixed(fixed) = &self.rule
            && let Verdict::Message(frame) = fixed.parse(bytes)
            && frame.len <= room
        {
            return self.whole(frame);
        }
        self.examine(bytes)
    }

    /// Whether these bytes, of which nothing was shown before, are one whole message
    /// and no more, by a native framing. It need not be told that it was delivered.
    /// Otherwise [`step`](Assembler::step) says what they are.
    #[inline]
    #[must_use]
    pub fn is_one_message(&self, bytes: &[u8]) -> bool {
        if self.need != 1 || bytes.len() > self.limits.max_message_bytes {
            return false;
        }
        // (By itself, as in `step`.)
        if let Rule::Length(field) = &self.rule
            && let Some(len) = field.plain_length(bytes)
        {
            return len == bytes.len() as u64;
        }
        self.is_one_message_by_rule(bytes)
    }

    #[inline(never)]
    fn is_one_message_by_rule(&self, bytes: &[u8]) -> bool {
        let verdict = match &self.rule {
            Rule::Length(field) => field.parse(bytes),
            Rule::Varint(varint) => varint.parse(bytes),
            Rule::Fixed(fixed) => fixed.parse(bytes),
            Rule::Closure(_) | Rule::Stateful(_) => return false,
        };
        matches!(verdict, Verdict::Message(frame) if frame.len == bytes.len() as u64)
    }

    /// The message just reported has left the stream: a parser with state moves
    /// on, and what is remembered of an incomplete message is forgotten.
    #[inline]
    pub fn delivered(&mut self, message: &[u8]) {
        if self.need != 1 {
            self.forget();
        }
        if matches!(self.rule, Rule::Stateful(_)) {
            self.tell(message);
        }
    }

    /// The message at the front, once a step has said its length and that not all
    /// of it is there. Who only counts messages can let it pass by, instead of
    /// holding it, if the framing has no state.
    #[must_use]
    pub fn pending(&self) -> Option<Frame> {
        self.known.filter(|_| self.fault.is_none())
    }

    /// The limits in force.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Changes the limits. They hold for the message at the front too, if it is
    /// incomplete: the next step says if it breaks them. A stream that is lost
    /// stays so.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
        if self.fault.is_some() || self.need == 1 {
            return;
        }
        match self.known {
            Some(frame) if frame.len > limits.max_message_bytes as u64 => {
                let limit = limits.max_message_bytes;
                self.fail(Fault::TooBig {
                    len: frame.len,
                    limit,
                });
            }
            None if self.need > self.header_limit() => {
                self.fail(Fault::HeaderTooLong {
                    limit: self.header_limit(),
                });
            }
            _ => {}
        }
    }

    /// Changes the framing from the next byte on that has not been delivered: a
    /// message at the front that is incomplete is read anew. A stream that is
    /// lost stays so.
    pub fn set_framing(&mut self, framing: &Framing) {
        self.set_rule(framing);
        self.forget();
    }

    fn set_rule(&mut self, framing: &Framing) {
        self.rule = Rule::of(framing);
        self.usual = None;
    }

    /// The framing, if it looks at a message's bytes alone.
    #[must_use]
    pub fn stateless(&self) -> Option<Stateless> {
        match &self.rule {
            Rule::Length(field) => Some(Stateless::Native(Native::Length(*field))),
            Rule::Varint(varint) => Some(Stateless::Native(Native::Varint(*varint))),
            Rule::Fixed(fixed) => Some(Stateless::Native(Native::Fixed(*fixed))),
            Rule::Closure(function) => Some(Stateless::Closure(function.clone())),
            Rule::Stateful(_) => None,
        }
    }

    /// The quick form that messages from here on may be asked, if the framing is a function that has one;
    /// `bytes` begin at the first one of the next, and `delivered` is how many there were. It is the one
    /// that was given before, unless that does not know this message and it is time to ask for
    /// another ([`Framing::with_quick_forms`]).
    pub fn quick_form(&mut self, bytes: &[u8], delivered: u64) -> Option<QuickForm> {
        let Rule::Closure(function) = &self.rule else {
            return None;
        };
        let usual = self.usual.get_or_insert_default();
        usual.form(bytes, delivered, |bytes| function.quick_form(bytes))
    }

    /// Tells a parser with state of the message, which may have been the last that it is needed for.
    #[inline(never)]
    fn tell(&mut self, message: &[u8]) {
        let Rule::Stateful(parser) = &mut self.rule else {
            return;
        };
        let told = guarded(|| {
            parser.delivered(message);
            parser.rest()
        });
        match told {
            Some(None) => {}
            Some(Some(rest)) => self.set_rule(&rest),
            None => {
                self.fail(Fault::Parser { errno: EIO });
            }
        }
    }

    /// The whole message is there.
    #[inline]
    fn whole(&mut self, frame: Frame) -> Step {
        if self.need != 1 {
            // (A length field in 32 bits may say less than it was asked at.)
            if let Some(fault) = self.too_short(frame.len) {
                return fault;
            }
            self.forget();
        }
        Step::Message(frame)
    }

    /// The answer when there is nothing new to look at.
    #[cold]
    fn waiting(&self) -> Step {
        if let Some(fault) = self.fault {
            return Step::Fault(fault);
        }
        // A known length has passed the limits, so it fits.
        let len = self.known.and_then(|frame| usize::try_from(frame.len).ok());
        Step::Incomplete {
            need: self.need,
            len,
        }
    }

    /// A look at bytes that the short way could not settle.
    #[inline(never)]
    fn examine(&mut self, bytes: &[u8]) -> Step {
        if let Some(frame) = self.known {
            return self.accept(frame, bytes.len());
        }
        loop {
            // Not out of range: `need` is above the fragments, and was there.
            let rest = &bytes[self.fragments..];
            match self.rule.parse(rest) {
                Verdict::Message(mut frame) => {
                    frame.len = frame.len.saturating_add(self.fragments as u64);
                    return self.accept(frame, bytes.len());
                }
                Verdict::NeedMore(need) => {
                    return self.ask(need.saturating_add(self.fragments), bytes.len());
                }
                Verdict::Fragment(len) => {
                    if let Some(step) = self.fragment(len, bytes.len()) {
                        return step;
                    }
                }
                Verdict::Error(errno) => {
                    let fault = match &self.rule {
                        Rule::Length(field) => field.fault_in(rest),
                        // An errno that is none would read as success further up.
                        _ if errno <= 0 => Fault::Parser { errno: EPROTO },
                        _ => Fault::Parser { errno },
                    };
                    return self.fail(fault);
                }
            }
        }
    }

    /// The message's length is known; `have` bytes are there.
    fn accept(&mut self, frame: Frame, have: usize) -> Step {
        if let Some(step) = self.too_short(frame.len) {
            return step;
        }
        let limit = self.limits.max_message_bytes;
        let len = match usize::try_from(frame.len) {
            Ok(len) if len <= limit => len,
            _ => {
                return self.fail(Fault::TooBig {
                    len: frame.len,
                    limit,
                });
            }
        };
        if len <= have && self.fragments == 0 {
            return self.whole(frame);
        }
        // Also for a whole message in fragments: who asks again before taking it
        // shall not have all of them parsed again.
        self.known = Some(frame);
        self.need = len;
        if len <= have {
            return Step::Message(frame);
        }
        Step::Incomplete {
            need: len,
            len: Some(len),
        }
    }

    /// The next `len` bytes are a fragment, and another follows: it is there (and
    /// gives `None`), or has to be waited for. `have` bytes are there.
    fn fragment(&mut self, len: u64, have: usize) -> Option<Step> {
        let end = len.saturating_add(self.fragments as u64);
        if let Some(step) = self.too_short(end) {
            return Some(step);
        }
        let limit = self.limits.max_message_bytes;
        let end = match usize::try_from(end) {
            Ok(end) if end < limit => end,
            _ => {
                let len = end.saturating_add(1);
                return Some(self.fail(Fault::TooBig { len, limit }));
            }
        };
        self.fragments = end;
        self.asked_at = end;
        self.need = end + 1;
        if end < have {
            return None;
        }
        Some(Step::Incomplete {
            need: self.need,
            len: None,
        })
    }

    /// The fault, if the message should have been known to end at `len` earlier.
    fn too_short(&mut self, len: u64) -> Option<Step> {
        if len > self.asked_at as u64 {
            return None;
        }
        let least = self.asked_at as u64 + 1;
        Some(self.fail(Fault::BadLength { len, least }))
    }

    /// The parser wants `need` bytes (or just one more) where `have` are there.
    fn ask(&mut self, need: usize, have: usize) -> Step {
        let limit = self.header_limit();
        if have >= limit || need > limit {
            return self.fail(Fault::HeaderTooLong { limit });
        }
        self.asked_at = have;
        self.need = need.max(have + 1);
        Step::Incomplete {
            need: self.need,
            len: None,
        }
    }

    /// Bytes at which a length must be known. Still unknown at the greatest
    /// length of a message, it could only turn out to be greater.
    fn header_limit(&self) -> usize {
        self.fragments
            .saturating_add(self.limits.max_header_bytes)
            .min(self.limits.max_message_bytes)
    }

    /// The stream is lost.
    #[cold]
    fn fail(&mut self, fault: Fault) -> Step {
        self.fault = Some(fault);
        self.need = NEVER;
        Step::Fault(fault)
    }

    /// Nothing is known of the message at the front. Faults are not forgotten.
    #[cold]
    fn forget(&mut self) {
        self.asked_at = 0;
        self.fragments = 0;
        self.known = None;
        if self.fault.is_none() {
            self.need = 1;
        }
    }
}

impl fmt::Debug for Assembler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Assembler");
        match &self.rule {
            Rule::Length(field) => out.field("framing", &format_args!("{field}")),
            Rule::Varint(varint) => out.field("framing", &format_args!("{varint}")),
            Rule::Fixed(fixed) => out.field("framing", &format_args!("{fixed}")),
            Rule::Closure(function) => out.field("framing", function),
            Rule::Stateful(_) => out.field("framing", &format_args!("Parser(..)")),
        };
        out.field("limits", &self.limits)
            .field("need", &self.need)
            .field("known", &self.known)
            .field("fault", &self.fault)
            .finish_non_exhaustive()
    }
}

impl Rule {
    fn of(framing: &Framing) -> Self {
        match framing {
            Framing::Length(field) => Self::Length(*field),
            Framing::Varint(varint) => Self::Varint(*varint),
            Framing::Fixed(fixed) => Self::Fixed(*fixed),
            Framing::Closure(function) => Self::Closure(function.clone()),
            Framing::Stateful(factory) => Self::Stateful(factory.make()),
        }
    }

    fn parse(&self, bytes: &[u8]) -> Verdict {
        match self {
            Self::Length(field) => field.parse(bytes),
            Self::Varint(varint) => varint.parse(bytes),
            Self::Fixed(fixed) => fixed.parse(bytes),
            Self::Closure(function) => function.parse(bytes),
            Self::Stateful(parser) => {
                guarded(|| parser.parse(bytes)).unwrap_or(Verdict::Error(EIO))
            }
        }
    }
}

#[cfg(test)]
mod tests;
