//! Bytes of 9P2000.L: integers are little-endian; a string is a 16-bit length and its bytes.
//!
//! ```text
//! message:  size[4] type[1] tag[2] ...      size counts itself
//! qid:      type[1] version[4] path[8]      what a file is, its change count, its number
//! ```
//!
//! The protocol: <https://ericvh.github.io/9p-rfc/rfc9p2000.html>, and for what .L adds
//! <https://github.com/chaos/diod/blob/master/protocol.md>.

use rustix::io::Errno;

/// What goes wrong in a request is told to the client by its Linux error number.
pub type Result<T> = std::result::Result<T, Errno>;

/// Of every message: size, type and tag.
pub const HEADER_BYTES: usize = 7;
/// What `msize` leaves for the data of a read, a write or a directory: the header of the longest
/// of these messages, by the protocol's own reckoning.
pub const IO_HEADER_BYTES: u32 = 24;
/// The tag of a Tversion, which no other request may have.
pub const NO_TAG: u16 = !0;
/// No fid: for an attach without authentication.
pub const NO_FID: u32 = !0;
/// The only version spoken here.
pub const VERSION: &[u8] = b"9P2000.L";

/// The types of requests. A reply has the type of its request, and one.
pub mod kind {
    #![expect(missing_docs, reason = "the protocol's names")]
    pub const LERROR_REPLY: u8 = 7;
    pub const STATFS: u8 = 8;
    pub const LOPEN: u8 = 12;
    pub const LCREATE: u8 = 14;
    pub const SYMLINK: u8 = 16;
    pub const MKNOD: u8 = 18;
    pub const RENAME: u8 = 20;
    pub const READLINK: u8 = 22;
    pub const GETATTR: u8 = 24;
    pub const SETATTR: u8 = 26;
    pub const READDIR: u8 = 40;
    pub const FSYNC: u8 = 50;
    pub const LOCK: u8 = 52;
    pub const GETLOCK: u8 = 54;
    pub const LINK: u8 = 70;
    pub const MKDIR: u8 = 72;
    pub const RENAMEAT: u8 = 74;
    pub const UNLINKAT: u8 = 76;
    pub const VERSION: u8 = 100;
    pub const ATTACH: u8 = 104;
    pub const FLUSH: u8 = 108;
    pub const WALK: u8 = 110;
    pub const READ: u8 = 116;
    pub const WRITE: u8 = 118;
    pub const CLUNK: u8 = 120;
    pub const REMOVE: u8 = 122;
}

/// What the protocol says about a file wherever it names one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qid {
    /// 0x80: a directory; 0x02: a symbolic link; 0: anything else.
    pub kind: u8,
    /// Another one after each change.
    pub version: u32,
    /// One for each file.
    pub path: u64,
}

/// One component of a path: not empty, not `.` or `..`, without `/` and NUL.
#[derive(Clone, Copy, Debug)]
pub struct Name<'a>(&'a [u8]);

impl<'a> Name<'a> {
    /// # Errors
    ///
    /// `EINVAL` for what is no component.
    pub fn new(bytes: &'a [u8]) -> Result<Self> {
        let good =
            !matches!(bytes, b"" | b"." | b"..") && !bytes.iter().any(|b| b"/\0".contains(b));
        good.then_some(Self(bytes)).ok_or(Errno::INVAL)
    }

    /// For a system call.
    pub fn bytes(self) -> &'a [u8] {
        self.0
    }
}

/// Reads a request's fields, one after the other. What is not there is `EBADMSG`.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// From the first byte behind the header.
    pub fn new(body: &'a [u8]) -> Self {
        Self(body)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk().ok_or(Errno::BADMSG)?;
        self.0 = rest;
        Ok(*array)
    }

    /// An integer of 8 bits.
    pub fn u8(&mut self) -> Result<u8> {
        self.array().map(u8::from_le_bytes)
    }

    /// An integer of 16 bits.
    pub fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    /// An integer of 32 bits.
    pub fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    /// An integer of 64 bits.
    pub fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// So many bytes.
    pub fn bytes(&mut self, len: u64) -> Result<&'a [u8]> {
        let len = usize::try_from(len).map_err(|_| Errno::BADMSG)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::BADMSG)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A string, which need not be UTF-8: names on Linux are not.
    pub fn string(&mut self) -> Result<&'a [u8]> {
        let len = self.u16()?;
        self.bytes(u64::from(len))
    }

    /// A string that is a file's name.
    pub fn name(&mut self) -> Result<Name<'a>> {
        Name::new(self.string()?)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Nothing may be left.
    pub fn end(self) -> Result<()> {
        self.is_empty().then_some(()).ok_or(Errno::BADMSG)
    }
}

/// A reply that is being written. Its memory is kept for the next one, and never cleared.
#[derive(Debug, Default)]
pub struct Reply {
    bytes: Vec<u8>,
    len: usize,
}

impl Reply {
    /// Begins anew: the reply to a request of this kind.
    pub fn begin(&mut self, request_kind: u8, tag: u16) {
        self.len = 0;
        self.put_u32(0);
        self.put_u8(request_kind.wrapping_add(1));
        self.put_u16(tag);
    }

    /// Rlerror instead of what was begun.
    pub fn fail(&mut self, tag: u16, errno: Errno) {
        self.begin(kind::LERROR_REPLY - 1, tag);
        self.put_u32(errno.raw_os_error().unsigned_abs());
    }

    /// The finished message, if it is no longer than `limit_bytes`.
    pub fn finish(&mut self, limit_bytes: u32) -> Result<&[u8]> {
        let len = u32::try_from(self.len).map_err(|_| Errno::MSGSIZE)?;
        if len > limit_bytes {
            return Err(Errno::MSGSIZE);
        }
        self.bytes[..4].copy_from_slice(&len.to_le_bytes());
        Ok(&self.bytes[..self.len])
    }

    /// The next bytes, to be written to; they count once [`Reply::advance`] says so.
    pub fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.len + len;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        &mut self.bytes[self.len..end]
    }

    /// So many bytes of the room are written.
    pub fn advance(&mut self, len: usize) {
        self.len += len;
        debug_assert!(self.len <= self.bytes.len(), "there was room");
    }

    /// Bytes behind the header so far.
    pub fn body_len(&self) -> usize {
        self.len - HEADER_BYTES
    }

    /// Writes these bytes.
    pub fn put(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.advance(bytes.len());
    }

    /// Writes an integer of 8 bits.
    pub fn put_u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    /// Writes an integer of 16 bits.
    pub fn put_u16(&mut self, value: u16) {
        self.put(&value.to_le_bytes());
    }

    /// Writes an integer of 32 bits.
    pub fn put_u32(&mut self, value: u32) {
        self.put(&value.to_le_bytes());
    }

    /// Writes an integer of 64 bits.
    pub fn put_u64(&mut self, value: u64) {
        self.put(&value.to_le_bytes());
    }

    /// Writes a string; one that is too long for its 16 bits of length is `ENAMETOOLONG`.
    pub fn put_string(&mut self, bytes: &[u8]) -> Result<()> {
        self.put_u16(u16::try_from(bytes.len()).map_err(|_| Errno::NAMETOOLONG)?);
        self.put(bytes);
        Ok(())
    }

    /// Writes a qid.
    pub fn put_qid(&mut self, qid: Qid) {
        self.put_u8(qid.kind);
        self.put_u32(qid.version);
        self.put_u64(qid.path);
    }

    /// Writes over an integer that was written at this place of the body.
    pub fn set_u32(&mut self, at: usize, value: u32) {
        let at = HEADER_BYTES + at;
        self.bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// As [`Reply::set_u32`], of 16 bits.
    pub fn set_u16(&mut self, at: usize, value: u16) {
        let at = HEADER_BYTES + at;
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_components() {
        for bad in [&b""[..], b".", b"..", b"a/b", b"/", b"a\0", b"../x"] {
            assert_eq!(Name::new(bad).err(), Some(Errno::INVAL), "{bad:?}");
        }
        for good in [&b"a"[..], b"...", b".a", b"\xff", b"a b"] {
            assert!(Name::new(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let mut reader = Reader::new(&[2, 0, b'h']);
        assert_eq!(reader.string().err(), Some(Errno::BADMSG));
        assert_eq!(Reader::new(&[1, 2, 3]).u32().err(), Some(Errno::BADMSG));
        assert_eq!(Reader::new(&[1]).bytes(u64::MAX).err(), Some(Errno::BADMSG));
        assert_eq!(Reader::new(&[1]).end(), Err(Errno::BADMSG));
    }

    #[test]
    fn a_reply_is_not_longer_than_allowed() {
        let mut reply = Reply::default();
        reply.begin(kind::READLINK, 3);
        reply.put_string(b"there").expect("short");
        assert_eq!(reply.finish(13).err(), Some(Errno::MSGSIZE));
        assert_eq!(
            reply.finish(14).expect("fits"),
            b"\x0e\0\0\0\x17\x03\0\x05\0there"
        );
    }
}
