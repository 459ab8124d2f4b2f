//! The messages of a simulation, as bytes.
//!
//! What the engine's parsers do is done here a second time and in the plainest way, so that a
//! mistake there is not repeated by the judge. Every message says who sent it and which it is, and
//! the rest of its bytes follows from that: none can be taken for another, or for a part of one.

use kcm::{Frame, Framing, Parser, Verdict};

use crate::random::Random;

/// How the messages of a stream are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    U32,
    U16,
    Varint,
    Fixed(usize),
    /// The body's length in decimal digits, and a colon: a closure.
    Text,
    /// The same, with a key and a class by the message's number.
    Keyed,
    /// The message's length, veiled by its place in the stream: a parser with state, which is
    /// wrong for ever when it moves on too early, too late or twice.
    Counted,
}

/// The keys that messages have.
pub(crate) const KEYS: [u32; 3] = [1, 2, 3];
/// Shortest body: who, and which.
pub(crate) const BODY_MIN: usize = 6;
/// A message is known from so many of its first bytes.
pub(crate) const HEAD_MIN: usize = 32;

impl Wire {
    /// One that this engine checks and that any connection can be sent.
    pub(crate) fn plain(random: &mut Random) -> Self {
        match random.below(6) {
            0 | 1 => Self::U32,
            2 => Self::U16,
            3 => Self::Varint,
            4 => Self::Fixed(random.between(BODY_MIN, 300)),
            _ => Self::Text,
        }
    }

    /// The framing of a stream, from the message at this place on.
    pub(crate) fn framing(self, place: usize) -> Framing {
        let spec = match self {
            Self::U32 => "u32be+4".to_owned(),
            Self::U16 => "u16le+2".to_owned(),
            Self::Varint => "varint".to_owned(),
            Self::Fixed(len) => format!("fixed:{len}"),
            Self::Text => return Framing::closure(text),
            Self::Keyed => return Framing::closure(keyed),
            Self::Counted => return Framing::stateful(move || Counted { place }),
        };
        spec.parse().expect("a framing")
    }

    /// A length of a body, of which few are long.
    pub(crate) fn body_len(self, random: &mut Random, longest: usize) -> usize {
        let len = match random.below(40) {
            0 => random.between(BODY_MIN, 200_000),
            1..5 => random.between(BODY_MIN, 6_000),
            5..12 => BODY_MIN,
            _ => random.between(BODY_MIN, 200),
        };
        match self {
            Self::Fixed(len) => len,
            Self::U16 | Self::Counted => len.min(60_000).min(longest - 2),
            _ => len.min(longest - 10),
        }
    }

    /// The message, whole.
    pub(crate) fn message(self, place: usize, origin: u16, number: u32, body: usize) -> Vec<u8> {
        let mut bytes = self.header(place, body);
        let start = bytes.len();
        bytes.extend(origin.to_be_bytes());
        bytes.extend(number.to_be_bytes());
        let mut fill = u32::from(origin).wrapping_mul(0x9e37).wrapping_add(number);
        bytes.resize_with(start + body, || {
            fill = fill.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
            fill.to_be_bytes()[0]
        });
        bytes
    }

    /// What goes before a body.
    pub(crate) fn header(self, place: usize, body: usize) -> Vec<u8> {
        let short = |len: usize| u16::try_from(len).expect("a short message");
        match self {
            Self::U32 => u32::try_from(body).expect("short").to_be_bytes().into(),
            Self::U16 => short(body).to_le_bytes().into(),
            Self::Varint => {
                let (mut bytes, mut rest) = (Vec::new(), body);
                while rest >= 0x80 {
                    bytes.push((rest & 0x7f).to_le_bytes()[0] | 0x80);
                    rest >>= 7;
                }
                bytes.push(rest.to_le_bytes()[0]);
                bytes
            }
            Self::Fixed(_) => Vec::new(),
            Self::Text | Self::Keyed => format!("{body}:").into_bytes(),
            Self::Counted => (short(body + 2) ^ veil(place)).to_be_bytes().into(),
        }
    }

    /// Who sent this message, and which it is; `None` when its head is not all there.
    pub(crate) fn identity(self, message: &[u8]) -> Option<(u16, u32)> {
        let header = match self {
            Self::U32 => 4,
            Self::U16 | Self::Counted => 2,
            Self::Varint => message.iter().position(|byte| byte & 0x80 == 0)? + 1,
            Self::Fixed(_) => 0,
            Self::Text | Self::Keyed => message.iter().position(|&byte| byte == b':')? + 1,
        };
        let body = message.get(header..header + BODY_MIN)?;
        let (origin, number) = body.split_at(2);
        Some((
            u16::from_be_bytes(origin.try_into().ok()?),
            u32::from_be_bytes(number.try_into().ok()?),
        ))
    }
}

impl Wire {
    /// The key and the class of the message of this number.
    pub(crate) fn label(self, number: u32) -> (Option<u32>, u8) {
        match self {
            Self::Keyed => {
                // Runs of one key, and of messages without.
                let key = number / 3 % 4;
                let class = (number % 5 / 2).to_be_bytes()[3];
                ((key > 0).then_some(key), class)
            }
            _ => (None, 0),
        }
    }
}

fn keyed(bytes: &[u8]) -> Verdict {
    let Verdict::Message(frame) = text(bytes) else {
        return text(bytes);
    };
    // The end of the header and of what is known from the body.
    let colon = bytes.iter().position(|&byte| byte == b':');
    let Some((_, number)) = Wire::Keyed.identity(bytes) else {
        return Verdict::NeedMore(colon.map_or(0, |at| at + 1 + BODY_MIN));
    };
    let (key, class) = Wire::Keyed.label(number);
    let labelled = Frame::new(frame.len).with_class(class);
    Verdict::Message(key.map_or(labelled, |key| labelled.with_key(key)))
}

fn veil(place: usize) -> u16 {
    let [low, high, ..] = place.to_le_bytes();
    u16::from_le_bytes([low, high]).wrapping_mul(40_503)
}

fn text(bytes: &[u8]) -> Verdict {
    let mut len = 0u64;
    for (at, byte) in (1..).zip(bytes) {
        match byte {
            b'0'..=b'9' => len = len * 10 + u64::from(byte - b'0'),
            b':' => return Verdict::message(len + at),
            _ => return Verdict::Error(libc::EBADMSG),
        }
    }
    Verdict::NeedMore(bytes.len() + 1)
}

struct Counted {
    place: usize,
}

impl Parser for Counted {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        match bytes {
            [high, low, ..] => {
                Verdict::message((u16::from_be_bytes([*high, *low]) ^ veil(self.place)).into())
            }
            _ => Verdict::NeedMore(2),
        }
    }

    fn delivered(&mut self, message: &[u8]) {
        // Exactly this message, and all of it.
        let len = u16::try_from(message.len()).expect("short") ^ veil(self.place);
        assert_eq!(message[..2], len.to_be_bytes(), "message {}", self.place);
        self.place += 1;
    }
}
