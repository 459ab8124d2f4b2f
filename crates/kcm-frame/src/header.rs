//! The bytes that go before a body.
//!
//! A sender makes one header for each message, so it lives inline: no
//! allocation, and small enough that clearing and copying it does not show.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Longest header that can be made, in bytes.
///
/// Room for the fixed headers of the protocols that carry a length field (most
/// have 4 to 24 bytes, iSCSI has 48, SMB over TCP 68, NVMe over TCP up to 128),
/// in no more than two cache lines.
pub const MAX_HEADER: usize = 128;

/// A message's header, made by `header_for`: a slice of at most [`MAX_HEADER`]
/// bytes, zero except for the length field. A protocol with more in its header
/// writes the rest through `DerefMut`.
///
/// ```
/// use kcm_frame::Framing;
/// // HTTP/2: 24 bits of body length, then type, flags and stream identifier.
/// let framing: Framing = "u24be+9".parse()?;
/// let mut header = framing.header_for(5)?;
/// header[3] = 6;
/// assert_eq!(&header[..], [0, 0, 5, 6, 0, 0, 0, 0, 0]);
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
#[derive(Clone, Copy)]
pub struct Header {
    bytes: [u8; MAX_HEADER],
    len: usize,
}

impl Header {
    /// A header of `len` zero bytes; `None` if that is more than [`MAX_HEADER`].
    /// A [`Parser`](crate::Parser) begins with this in its own `header_for`.
    #[inline]
    #[must_use]
    pub const fn zeroed(len: usize) -> Option<Self> {
        if len > MAX_HEADER {
            return None;
        }
        Some(Self {
            bytes: [0; MAX_HEADER],
            len,
        })
    }
}

impl Deref for Header {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl DerefMut for Header {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Header {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl PartialEq for Header {
    /// Equal are the bytes of the header; what lies behind them does not count.
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Header {}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Header").field(&&**self).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_longer_than_the_room_there_is() {
        assert_eq!(
            Header::zeroed(MAX_HEADER).map(|h| h.len()),
            Some(MAX_HEADER)
        );
        assert_eq!(Header::zeroed(MAX_HEADER + 1), None);
    }

    #[test]
    fn shows_only_its_bytes() {
        let mut header = Header::zeroed(2).expect("two bytes fit");
        header[1] = 7;
        assert_eq!(format!("{header:?}"), "Header([0, 7])");
        assert_ne!(Some(header), Header::zeroed(2));
    }
}
