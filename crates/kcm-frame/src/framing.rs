//! The rule by which a stream is cut into messages.
//!
//! A [`Framing`] is made once and shared by all connections that speak the same
//! protocol; what one connection needs for itself is in its
//! [`Assembler`](crate::Assembler). The rules that are plain values are also
//! available as [`Native`], which is `Copy` and can be applied without a virtual
//! call, as the innermost loop of a receiver wants it.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use crate::errno::EIO;
use crate::parser::guarded;
use crate::{Fixed, Frame, FrameError, Header, LengthField, Parser, QuickForm, Varint, Verdict};

/// How messages are found in a stream.
///
/// ```
/// use kcm_frame::{Framing, Verdict};
/// let from_text: Framing = "len:offset=2,size=2,endian=little".parse()?;
///
/// // Lines: what no length field can say, a closure can.
/// let lines = Framing::closure(|bytes| match bytes.iter().position(|&b| b == b'\n') {
///     Some(at) => Verdict::message(at as u64 + 1),
///     None => Verdict::NeedMore(0),
/// });
/// assert!(from_text.native().is_some() && lines.native().is_none());
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Framing {
    /// An integer of fixed width in the header.
    Length(LengthField),
    /// A varint in the header.
    Varint(Varint),
    /// All messages have one length.
    Fixed(Fixed),
    /// A function of the bytes alone.
    Closure(FrameFn),
    /// A parser of its own for each connection.
    Stateful(ParserFactory),
}

impl Framing {
    /// Framing by a function of the bytes alone. It is called with bytes that
    /// begin at a message's first one, from whichever thread receives. A panic
    /// in it is a fault of the stream, as with [`Parser`].
    pub fn closure(f: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static) -> Self {
        Self::Closure(FrameFn::new(f))
    }

    /// The same with a short way: `plain` gives the length of a message without key and class, if
    /// it can tell that quickly. Else `f` is asked, which would say the same of all bytes.
    ///
    /// It is worth being apart because it needs no more than a length field does, if it calls
    /// nothing; a few nanoseconds less for each message.
    ///
    /// ```
    /// use std::num::NonZeroU64;
    /// use kcm_frame::{Framing, Verdict};
    /// // A length in one byte; behind 255, in the next two.
    /// let framing = Framing::closure_with_short_way(
    ///     |bytes| match *bytes {
    ///         [len @ ..255, ..] => NonZeroU64::new(len.into()),
    ///         _ => None,
    ///     },
    ///     |bytes| match *bytes {
    ///         [255, high, low, ..] => Verdict::message(u16::from_be_bytes([high, low]).into()),
    ///         [255, ..] => Verdict::NeedMore(3),
    ///         [len, ..] => Verdict::message(len.into()),
    ///         [] => Verdict::NeedMore(1),
    ///     },
    /// );
    /// # let _ = framing;
    /// ```
    pub fn closure_with_short_way(
        plain: impl Fn(&[u8]) -> Option<NonZeroU64> + Send + Sync + 'static,
        f: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        Self::Closure(FrameFn::with_short_way(plain, f))
    }

    /// The same framing, whose usual messages have a [`QuickForm`]. A receiver that walks through a burst
    /// asks that first, and needs no call then.
    ///
    /// `form_like` is shown bytes that begin at a message's first byte, and gives a form for messages like
    /// this one, if there is one. Whatever it gives: what the form says of any bytes, the function would
    /// say, without key and class. It is asked when messages begin to come and then seldom: when the
    /// one at hand is none that the form given before knows. So it may take a thousand times as long as the
    /// function.
    ///
    /// Only a function is given one: the other framings remain what they are.
    ///
    /// ```
    /// use kcm_frame::{Bits, Endian, Framing, QuickForm, Verdict};
    /// // A length in the first two bytes.
    /// let framing = Framing::closure(|bytes| match *bytes {
    ///     [high, low, ..] => Verdict::message(2 + u64::from(u16::from_be_bytes([high, low]))),
    ///     _ => Verdict::NeedMore(2),
    /// });
    /// let form = QuickForm::new(0, Endian::Big, Bits { turn: 16, mask: 0xffff }, 2);
    /// let framing = framing.with_quick_forms(move |_| Some(form));
    /// let Framing::Closure(function) = framing else { unreachable!() };
    /// assert_eq!(function.quick_form(b"\0\x05hello..."), Some(form));
    /// ```
    #[must_use]
    pub fn with_quick_forms(
        mut self,
        form_like: impl Fn(&[u8]) -> Option<QuickForm> + Send + Sync + 'static,
    ) -> Self {
        if let Self::Closure(function) = &mut self {
            function.form_like = Some(Arc::new(form_like));
        }
        self
    }

    /// The same of a protocol that has a name: a function that is short as a whole, and may make headers,
    /// too. (With a parser for each connection a message costs several times as much to receive, as its
    /// state is behind the connection's lock.)
    pub(crate) fn closure_of_protocol(
        form_like: impl Fn(&[u8]) -> Option<QuickForm> + Send + Sync + 'static,
        f: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static,
        header_for: Option<HeaderFn>,
    ) -> Self {
        let function = FrameFn {
            header_for,
            ..FrameFn::new(f)
        };
        Self::Closure(function).with_quick_forms(form_like)
    }

    /// Framing by a parser with state; `make` is called once for each
    /// connection.
    pub fn stateful<P: Parser + 'static>(make: impl Fn() -> P + Send + Sync + 'static) -> Self {
        Self::Stateful(ParserFactory(Arc::new(move || Box::new(make()))))
    }

    /// The rule as a plain value, if it is one.
    #[must_use]
    pub fn native(&self) -> Option<Native> {
        match self {
            Self::Length(field) => Some(Native::Length(*field)),
            Self::Varint(varint) => Some(Native::Varint(*varint)),
            Self::Fixed(fixed) => Some(Native::Fixed(*fixed)),
            Self::Closure(_) | Self::Stateful(_) => None,
        }
    }

    /// The header that goes before a body of `body_len` bytes. A stateful
    /// framing answers for the first message of a connection.
    ///
    /// # Errors
    ///
    /// [`FrameError::NoHeader`] for a closure of the caller's, and for parsers that
    /// make none; else those of [`Native::header_for`].
    pub fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        match self {
            Self::Length(field) => field.header_for(body_len),
            Self::Varint(varint) => varint.header_for(body_len),
            Self::Fixed(fixed) => fixed.header_for(body_len),
            Self::Closure(function) => match function.header_for {
                Some(header_for) => header_for(body_len),
                None => Err(FrameError::NoHeader),
            },
            Self::Stateful(factory) => factory.make().header_for(body_len),
        }
    }
}

impl From<LengthField> for Framing {
    fn from(field: LengthField) -> Self {
        Self::Length(field)
    }
}

impl From<Varint> for Framing {
    fn from(varint: Varint) -> Self {
        Self::Varint(varint)
    }
}

impl From<Fixed> for Framing {
    fn from(fixed: Fixed) -> Self {
        Self::Fixed(fixed)
    }
}

impl From<Native> for Framing {
    fn from(native: Native) -> Self {
        match native {
            Native::Length(field) => Self::Length(field),
            Native::Varint(varint) => Self::Varint(varint),
            Native::Fixed(fixed) => Self::Fixed(fixed),
        }
    }
}

/// The framings that are plain values: no virtual call, and a text form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Native {
    /// An integer of fixed width in the header.
    Length(LengthField),
    /// A varint in the header.
    Varint(Varint),
    /// All messages have one length.
    Fixed(Fixed),
}

impl Native {
    /// Reads the length of the message that begins at `bytes`. A length that it
    /// gives is above zero, the same for all longer slices that begin with these
    /// bytes, and (but for a [`LengthField::in_32_bits`]) not below the end of what
    /// was read for it.
    #[inline(always)]
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Verdict {
        match self {
            Self::Length(field) => field.parse(bytes),
            Self::Varint(varint) => varint.parse(bytes),
            Self::Fixed(fixed) => fixed.parse(bytes),
        }
    }

    /// The header that goes before a body of `body_len` bytes; both together
    /// parse as one message.
    ///
    /// # Errors
    ///
    /// [`FrameError::BodyTooLong`], [`FrameError::NotRepresentable`] or
    /// [`FrameError::HeaderTooLong`], as each kind of framing says.
    pub fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        match self {
            Self::Length(field) => field.header_for(body_len),
            Self::Varint(varint) => varint.header_for(body_len),
            Self::Fixed(fixed) => fixed.header_for(body_len),
        }
    }
}

/// The framings that look at a message's bytes alone: whoever has the bytes can cut them, without the
/// connection's [`Assembler`](crate::Assembler).
#[derive(Clone, Debug)]
pub enum Stateless {
    /// A plain value.
    Native(Native),
    /// A function.
    Closure(FrameFn),
}

impl Stateless {
    /// What the rule says of bytes that begin at a message's first byte. Of a function, this is what
    /// it gives: an assembler has still to refuse a length of 0.
    #[inline(always)]
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Verdict {
        match self {
            Self::Native(native) => native.parse(bytes),
            Self::Closure(function) => function.parse(bytes),
        }
    }
}

/// Gives the length of a message that is nothing but long; else 0, and the verdict in the other place.
///
/// The usual answer is then a number in a register. A verdict has 24 bytes, which the function would
/// write and its caller read: the next message's address would wait for that.
type DynFrameFn = dyn Fn(&[u8], &mut Verdict) -> u64 + Send + Sync;
type DynFormFn = dyn Fn(&[u8]) -> Option<QuickForm> + Send + Sync;
type HeaderFn = fn(u64) -> Result<Header, FrameError>;
type DynParserFactory = dyn Fn() -> Box<dyn Parser> + Send + Sync;

/// A function that frames; made by [`Framing::closure`].
#[derive(Clone)]
pub struct FrameFn {
    find: Arc<DynFrameFn>,
    /// What goes before a body, if that is known.
    header_for: Option<HeaderFn>,
    /// What it says of messages like one.
    form_like: Option<Arc<DynFormFn>>,
}

impl FrameFn {
    fn new(f: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static) -> Self {
        Self {
            find: Arc::new(move |bytes, other| split(f(bytes), other)),
            header_for: None,
            form_like: None,
        }
    }

    fn with_short_way(
        plain: impl Fn(&[u8]) -> Option<NonZeroU64> + Send + Sync + 'static,
        f: impl Fn(&[u8]) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        // (A call in the last place, so that the short way needs no frame on the stack.)
        Self {
            find: Arc::new(move |bytes, other| match plain(bytes) {
                Some(len) => len.get(),
                None => ask(&f, bytes, other),
            }),
            header_for: None,
            form_like: None,
        }
    }

    /// What it says of messages like the one that these bytes begin with, if a form can say it. See
    /// [`Framing::with_quick_forms`].
    #[must_use]
    pub fn quick_form(&self, message: &[u8]) -> Option<QuickForm> {
        let form_like = self.form_like.as_ref()?;
        guarded(|| form_like(message))?
    }

    /// Calls the function; an error of errno `EIO` if that panicked.
    #[inline]
    #[must_use]
    pub fn parse(&self, bytes: &[u8]) -> Verdict {
        let mut other = Verdict::Error(EIO);
        match guarded(|| (self.find)(bytes, &mut other)) {
            None | Some(0) => other,
            Some(len) => Verdict::message(len),
        }
    }

    /// Calls the function and looks at what it gives; `None` if it panicked. (What `look` gives
    /// should be a number: what has parts is written by the guard and read again.)
    #[inline]
    pub fn parse_with<R>(&self, bytes: &[u8], look: impl FnOnce(Verdict) -> R) -> Option<R> {
        guarded(|| {
            let mut other = Verdict::Error(EIO);
            match (self.find)(bytes, &mut other) {
                0 => look(other),
                len => look(Verdict::message(len)),
            }
        })
    }
}

/// A verdict as a [`DynFrameFn`] gives it.
#[inline(always)]
fn split(verdict: Verdict, other: &mut Verdict) -> u64 {
    match verdict {
        Verdict::Message(frame) if frame == Frame::new(frame.len) && frame.len > 0 => frame.len,
        verdict => {
            *other = verdict;
            0
        }
    }
}

#[inline(never)]
fn ask(f: &impl Fn(&[u8]) -> Verdict, bytes: &[u8], other: &mut Verdict) -> u64 {
    split(f(bytes), other)
}

impl fmt::Debug for FrameFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FrameFn(..)")
    }
}

/// What makes one parser for each connection; made by [`Framing::stateful`].
#[derive(Clone)]
pub struct ParserFactory(Arc<DynParserFactory>);

impl ParserFactory {
    /// A parser for a new connection.
    #[must_use]
    pub fn make(&self) -> Box<dyn Parser> {
        (self.0)()
    }
}

impl fmt::Debug for ParserFactory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ParserFactory(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Shy;

    impl Parser for Shy {
        fn parse(&self, _bytes: &[u8]) -> Verdict {
            Verdict::NeedMore(0)
        }
    }

    #[test]
    fn natives_survive_the_way_through_framing() {
        for text in ["u16le-3", "varint", "fixed:9"] {
            let native: Native = text.parse().expect("a good specification");
            assert_eq!(Framing::from(native).native(), Some(native));
        }
    }

    #[test]
    fn only_natives_make_headers_unasked() {
        let closure = Framing::closure(|_| Verdict::NeedMore(0));
        assert_eq!(closure.header_for(1), Err(FrameError::NoHeader));
        assert_eq!(
            Framing::stateful(|| Shy).header_for(1),
            Err(FrameError::NoHeader)
        );
    }

    #[test]
    fn functions_have_forms_and_other_framings_none() {
        let form_like = |message: &[u8]| {
            assert!(!message.is_empty(), "a panic is no form");
            let byte = crate::Bits {
                turn: 8,
                mask: 0xff,
            };
            Some(QuickForm::new(0, crate::Endian::Big, byte, 0))
        };
        let Framing::Closure(plain) = Framing::closure(|_| Verdict::NeedMore(0)) else {
            panic!("it is a function");
        };
        assert_eq!(plain.quick_form(&[1]), None);
        let Framing::Closure(function) = Framing::Closure(plain).with_quick_forms(form_like) else {
            panic!("it is still one");
        };
        assert_eq!(function.quick_form(&[1]), form_like(&[1]));
        assert_eq!(function.quick_form(&[]), None);
        let native: Native = "u16le-3".parse().expect("a good specification");
        let framing = Framing::from(native).with_quick_forms(form_like);
        assert_eq!(framing.native(), Some(native));
    }

    #[test]
    fn functions_are_shown_by_name_only() {
        let closure = Framing::closure(|_| Verdict::NeedMore(0));
        assert_eq!(format!("{closure:?}"), "Closure(FrameFn(..))");
        assert_eq!(
            format!("{:?}", Framing::stateful(|| Shy)),
            "Stateful(ParserFactory(..))"
        );
    }
}
