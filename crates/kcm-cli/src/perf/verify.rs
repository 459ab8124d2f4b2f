//! What a message must look like, and the check of it.
//!
//! Both contenders' messages go through the same check. It has to be strict and next to free
//! (a 64-byte message costs some 10 ns in all): a length, an integer, a compare.

use std::fmt;

use kcm::Framing;

use super::failure::Failure;

/// Bytes of a message's number.
pub(super) const NUMBER_BYTES: usize = 8;

/// One kind of message: header, number (little endian), and bytes that differ from place to place,
/// so that a message cut at the wrong place shows.
#[derive(Clone, Debug)]
pub(super) struct Template {
    bytes: Box<[u8]>,
    /// Where the number begins: after the header.
    number_at: usize,
    /// Where it ends; a body of less than eight bytes holds the number's low bytes only.
    rest_at: usize,
}

impl Template {
    /// A message with a body of so many bytes.
    pub(super) fn with_body(framing: &Framing, body_bytes: usize) -> Result<Self, Failure> {
        let header = framing.header_for(body_bytes as u64).map_err(|e| {
            Failure::Usage(format!(
                "no message with a body of {body_bytes} bytes in this framing: {e}"
            ))
        })?;
        let number_at = header.len();
        let rest_at = number_at + body_bytes.min(NUMBER_BYTES);
        let mut bytes = header.to_vec();
        bytes.resize(rest_at, 0);
        bytes.extend((rest_at..number_at + body_bytes).map(pattern));
        Ok(Self {
            bytes: bytes.into(),
            number_at,
            rest_at,
        })
    }

    /// A message of so many bytes, header included, with room for the whole number.
    pub(super) fn with_length(framing: &Framing, message_bytes: usize) -> Result<Self, Failure> {
        let longest_header = message_bytes.min(kcm_frame::MAX_HEADER);
        (0..=longest_header)
            .map(|header_bytes| message_bytes - header_bytes)
            .take_while(|body_bytes| *body_bytes >= NUMBER_BYTES)
            .find_map(|body_bytes| {
                Self::with_body(framing, body_bytes)
                    .ok()
                    .filter(|template| template.bytes.len() == message_bytes)
            })
            .ok_or_else(|| {
                Failure::Usage(format!(
                    "this framing has no message of {message_bytes} bytes with {NUMBER_BYTES} \
                     bytes after the header: give another --size or --framing"
                ))
            })
    }

    /// Length of the message, header included.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The message with this number, written over `message`, which begins as [`Template::bytes`].
    #[inline]
    pub(super) fn number(&self, message: &mut [u8], number: u64) {
        if let Some(place) = message
            .get_mut(self.number_at..)
            .and_then(<[u8]>::first_chunk_mut)
            .filter(|_| self.rest_at - self.number_at == NUMBER_BYTES)
        {
            *place = number.to_le_bytes();
        } else {
            let low_bytes = &number.to_le_bytes()[..self.rest_at - self.number_at];
            message[self.number_at..self.rest_at].copy_from_slice(low_bytes);
        }
    }

    /// The message with number 0.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Checks length and content; gives the number (its low bytes, in a short message).
    #[inline(always)]
    pub(super) fn check(&self, message: &[u8]) -> Result<u64, Mismatch> {
        if message.len() != self.bytes.len()
            || !same(&message[self.rest_at..], &self.bytes[self.rest_at..])
        {
            return Err(self.mismatch(message));
        }
        let number = &message[self.number_at..self.rest_at];
        match number.first_chunk::<NUMBER_BYTES>() {
            Some(bytes) => Ok(u64::from_le_bytes(*bytes)),
            None => Ok(low_bytes(number)),
        }
    }

    /// Checks all of it.
    #[inline]
    pub(super) fn check_numbered(&self, message: &[u8], number: u64) -> Result<(), Mismatch> {
        let found = self.check(message)?;
        if self.holds(found, number) {
            Ok(())
        } else {
            Err(Mismatch::number(number, found))
        }
    }

    /// Whether the number read from a message is this one, as far as the message has room for it.
    #[inline]
    fn holds(&self, found: u64, number: u64) -> bool {
        let unused_bits = 64 - 8 * (self.rest_at - self.number_at);
        found == number << unused_bits >> unused_bits
    }

    #[cold]
    fn mismatch(&self, message: &[u8]) -> Mismatch {
        if message.len() != self.bytes.len() {
            return Mismatch::new(format!(
                "{} bytes long instead of {}",
                message.len(),
                self.bytes.len()
            ));
        }
        let at = (self.rest_at..message.len()).find(|&at| message[at] != self.bytes[at]);
        Mismatch::new(format!(
            "content differs, first at byte {} of {}",
            at.unwrap_or(self.rest_at),
            self.bytes.len()
        ))
    }
}

/// What is wrong with a message. No larger than it must be: a check's result is to fit registers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch(Box<str>);

impl Mismatch {
    #[cold]
    pub(super) fn new(what: String) -> Self {
        Self(what.into())
    }

    #[cold]
    pub(super) fn number(expected: u64, found: u64) -> Self {
        Self::new(format!(
            "number {found} where {expected} was due (lost, doubled or out of order)"
        ))
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Mismatch> for Failure {
    fn from(mismatch: Mismatch) -> Self {
        Self::Verification(mismatch.0.into())
    }
}

/// Whether two slices of one length are equal. Inline, and so half the cost of calling `memcmp`
/// for the 52 bytes that matter most.
#[inline]
fn same(a: &[u8], b: &[u8]) -> bool {
    const STEP: usize = 32;
    let (Some(a_end), Some(b_end)) = (a.last_chunk::<STEP>(), b.last_chunk::<STEP>()) else {
        return a == b;
    };
    let (a, b) = (a.as_chunks::<STEP>().0, b.as_chunks::<STEP>().0);
    a.iter().zip(b).all(|(a, b)| a == b) && a_end == b_end
}

fn low_bytes(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The byte at this place of every message.
fn pattern(at: usize) -> u8 {
    let [.., high] = (at as u64 + 1)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_be_bytes();
    high ^ 0x5a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framing(spec: &str) -> Framing {
        spec.parse().expect("a good specification")
    }

    #[test]
    fn a_message_passes_its_own_check_only() {
        for body_bytes in [1, 7, 8, 9, 60, 5000] {
            let template = Template::with_body(&framing("u32be+4"), body_bytes).expect("fits");
            let mut message = template.bytes().to_vec();
            template.number(&mut message, 0x0102_0304_0506_0708);
            let number = 0x0102_0304_0506_0708;
            assert_eq!(template.check_numbered(&message, number), Ok(()));
            assert!(template.check_numbered(&message, number + 1).is_err());
            assert!(template.check(&message[..message.len() - 1]).is_err());
            if body_bytes > NUMBER_BYTES {
                let last = message.len() - 1;
                message[last] ^= 1;
                assert!(template.check(&message).is_err());
            }
        }
    }

    #[test]
    fn lengths_count_the_header() {
        for (spec, header_bytes) in [
            ("u32be+4", 4),
            ("varint", 1),
            ("fixed:64", 0),
            ("u24be+9", 9),
        ] {
            let template = Template::with_length(&framing(spec), 64).expect("fits");
            assert_eq!(
                (template.len(), template.number_at),
                (64, header_bytes),
                "{spec}"
            );
        }
        assert!(Template::with_length(&framing("fixed:63"), 64).is_err());
        assert!(Template::with_length(&framing("u32be+4"), 11).is_err());
    }
}
