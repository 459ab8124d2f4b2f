//! Messages that all have the same length.

use crate::{FrameError, Header, Verdict};

/// Messages of one fixed length, without any header. Text form: `fixed:N`.
///
/// ```
/// use kcm_frame::{Fixed, Verdict};
/// assert_eq!(Fixed::new(512)?.parse(b"any bytes"), Verdict::message(512));
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    pub(crate) len: u64,
}

impl Fixed {
    /// Messages of `len` bytes.
    ///
    /// # Errors
    ///
    /// [`FrameError::ZeroLength`] if `len` is 0: such messages never end.
    pub const fn new(len: u64) -> Result<Self, FrameError> {
        if len == 0 {
            return Err(FrameError::ZeroLength);
        }
        Ok(Self { len })
    }

    /// Says that the message has its fixed length, whatever the bytes are.
    #[inline]
    #[must_use]
    pub const fn parse(&self, bytes: &[u8]) -> Verdict {
        let _ = bytes;
        Verdict::message(self.len)
    }

    /// An empty header, as such messages have none.
    ///
    /// # Errors
    ///
    /// If `body_len` is not exactly the fixed length in bytes:
    /// [`FrameError::BodyTooLong`] above it, else [`FrameError::NotRepresentable`].
    pub fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        if body_len > self.len {
            return Err(FrameError::BodyTooLong {
                body_len,
                max: self.len,
            });
        }
        if body_len < self.len {
            return Err(FrameError::NotRepresentable { body_len });
        }
        Header::zeroed(0).ok_or(FrameError::NoHeader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_of_no_length() {
        assert_eq!(Fixed::new(0), Err(FrameError::ZeroLength));
    }

    #[test]
    fn takes_bodies_of_its_length_only() {
        let fixed = Fixed::new(5).expect("five is a length");
        assert_eq!(fixed.header_for(5).map(|h| h.len()), Ok(0));
        assert_eq!(
            fixed.header_for(4),
            Err(FrameError::NotRepresentable { body_len: 4 })
        );
        assert_eq!(
            fixed.header_for(6),
            Err(FrameError::BodyTooLong {
                body_len: 6,
                max: 5
            })
        );
    }
}
