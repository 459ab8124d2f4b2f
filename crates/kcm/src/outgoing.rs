//! Messages on their way out, and how they are handed to the system.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use crate::{sys, transport::Carrier};

/// Small addressed messages are queued together up to this many bytes.
pub(crate) const GATHER_BYTES: usize = 32 << 10;
/// Messages in one system call: below the system's limit of 1,024 pieces, and more gain nothing.
const MOST_PIECES: usize = 256;
/// Bytes in one system call: what a send buffer takes at once.
const MOST_BYTES: usize = 256 << 10;

/// A message that waits to be sent.
pub(crate) struct Outgoing {
    /// One message; addressed ones that are small share an entry, to go out and be dropped together.
    bytes: Vec<u8>,
    /// A range of a file, after the bytes.
    file: Option<(OwnedFd, Range<u64>)>,
    /// It must go to this connection.
    pub(crate) addressed: bool,
}

impl Outgoing {
    /// A copy of what these pieces hold, without the first `skip` bytes.
    pub(crate) fn copy_of(pieces: &[IoSlice<'_>], skip: usize, addressed: bool) -> Self {
        Self {
            bytes: concat(pieces, skip),
            file: None,
            addressed,
        }
    }

    pub(crate) fn with_file(
        header: &[u8],
        file: OwnedFd,
        range: Range<u64>,
        addressed: bool,
    ) -> Self {
        Self {
            bytes: header.into(),
            file: Some((file, range)),
            addressed,
        }
    }

    /// What it begins with: all of it, but for a file.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        let file = self
            .file
            .as_ref()
            .map_or(0, |(_, range)| range.end - range.start);
        self.bytes.len() + usize::try_from(file).unwrap_or(usize::MAX)
    }

    /// Adds one more message to an entry, if they may share it.
    fn share(&mut self, pieces: &[IoSlice<'_>], len: usize) -> bool {
        let fits = self.addressed && self.file.is_none() && self.bytes.len() + len <= GATHER_BYTES;
        if fits {
            pieces
                .iter()
                .for_each(|piece| self.bytes.extend_from_slice(piece));
        }
        fits
    }
}

/// Adds a copy of a message of `len` bytes at the end.
pub(crate) fn append(
    messages: &mut VecDeque<Outgoing>,
    pieces: &[IoSlice<'_>],
    len: usize,
    addressed: bool,
) {
    let shared = addressed
        && messages
            .back_mut()
            .is_some_and(|last| last.share(pieces, len));
    if !shared {
        messages.push_back(Outgoing::copy_of(pieces, 0, addressed));
    }
}

/// Drops the messages of which all is sent; the bytes sent of the one that is first then.
pub(crate) fn drop_sent(messages: &mut VecDeque<Outgoing>, mut sent: usize) -> usize {
    while let Some(first) = messages.front() {
        let len = first.len();
        if sent < len {
            break;
        }
        sent -= len;
        messages.pop_front();
    }
    sent
}

/// All pieces as one, without the first `skip` bytes.
pub(crate) fn concat(pieces: &[IoSlice<'_>], mut skip: usize) -> Vec<u8> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut bytes = Vec::with_capacity(len.saturating_sub(skip));
    for piece in pieces {
        let from = skip.min(piece.len());
        bytes.extend_from_slice(&piece[from..]);
        skip -= from;
    }
    bytes
}

/// Where a connection's messages go. One thread at a time calls it (`write_queue.rs`).
pub(crate) trait Outlet {
    /// Sends from the caller's memory what is taken at once: the number of bytes.
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// The same of one piece.
    #[inline]
    fn send_one(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send(&[IoSlice::new(bytes)])
    }

    /// Sends from the front of the queue, without the first message's first `skip` bytes: the
    /// number of bytes taken, or `WouldBlock`.
    fn send_front(&self, messages: &VecDeque<Outgoing>, skip: usize) -> io::Result<usize>;

    /// Nothing more will be sent.
    fn shutdown(&self);

    /// It will be closed inside a message: the peer is not to take what came for all.
    fn reset(&self);
}

impl Outlet for Arc<Carrier> {
    #[inline]
    fn send(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut rest = pieces;
        let mut sent = 0;
        loop {
            let now = &rest[..rest.len().min(MOST_PIECES)];
            let asked: usize = now.iter().map(|piece| piece.len()).sum();
            match Carrier::send(self, now, false) {
                Ok(n) => {
                    sent += n;
                    rest = &rest[now.len()..];
                    if n < asked || rest.is_empty() {
                        return Ok(sent);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(sent),
                Err(e) => return Err(e),
            }
        }
    }

    #[inline(always)]
    fn send_one(&self, bytes: &[u8]) -> io::Result<usize> {
        self.send_now(bytes).or_else(|e| match e.kind() {
            io::ErrorKind::Interrupted => self.send(&[IoSlice::new(bytes)]),
            io::ErrorKind::WouldBlock => Ok(0),
            _ => Err(e),
        })
    }

    fn send_front(&self, messages: &VecDeque<Outgoing>, mut skip: usize) -> io::Result<usize> {
        let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
        let (mut count, mut bytes) = (0, 0);
        let mut file_follows = false;
        for message in messages {
            let part = &message.bytes[skip.min(message.bytes.len())..];
            if !part.is_empty() {
                pieces[count] = IoSlice::new(part);
                count += 1;
                bytes += part.len();
            }
            if let Some((file, range)) = &message.file {
                if count == 0 {
                    let start = range.start + (skip - message.bytes.len()) as u64;
                    return send_file(self, file, &(start..range.end));
                }
                file_follows = true;
                break;
            }
            skip = 0;
            if count == MOST_PIECES || bytes >= MOST_BYTES {
                break;
            }
        }
        loop {
            match Carrier::send(self, &pieces[..count], file_follows) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn shutdown(&self) {
        self.shutdown_write();
    }

    fn reset(&self) {
        if self.is_socket() {
            // With this, closing it sends a reset. Should the system refuse, it is closed anyway.
            let linger = Some(Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(self.as_fd(), linger);
        }
    }
}

fn send_file(carrier: &Carrier, file: &OwnedFd, range: &Range<u64>) -> io::Result<usize> {
    // The flag belongs to the socket, not to the call; a blocked receive is not disturbed by it,
    // and one that begins meanwhile looks again (`watch.rs`).
    if carrier.is_socket() {
        sys::set_nonblocking(carrier.as_fd(), true)?;
    }
    let result = carrier.send_file(file.as_fd(), range);
    if carrier.is_socket() {
        sys::set_nonblocking(carrier.as_fd(), false)?;
    }
    match result {
        // The file has become shorter than what the header has promised.
        Ok(0) => Err(io::Error::from_raw_os_error(libc::EIO)),
        result => result,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn queue_of(lengths: &[usize]) -> VecDeque<Outgoing> {
        let message = |len: &usize| Outgoing {
            bytes: vec![0; *len],
            file: None,
            addressed: false,
        };
        lengths.iter().map(message).collect()
    }

    #[test]
    fn what_is_sent_is_dropped_message_by_message() {
        for (sent, left, of_first) in [(0, 3, 0), (2, 3, 2), (3, 2, 0), (7, 2, 4), (12, 0, 0)] {
            let mut queue = queue_of(&[3, 5, 4]);
            assert_eq!(drop_sent(&mut queue, sent), of_first, "{sent} sent");
            assert_eq!(queue.len(), left, "{sent} sent");
        }
    }

    #[test]
    fn small_addressed_messages_share_an_entry() {
        let mut queue = VecDeque::new();
        let small = [IoSlice::new(b"ab"), IoSlice::new(b"c")];
        append(&mut queue, &small, 3, true);
        append(&mut queue, &small, 3, true);
        assert_eq!(queue.len(), 1);
        assert_eq!(queue[0].bytes, b"abcabc");
        append(&mut queue, &small, 3, false);
        append(&mut queue, &small, 3, false);
        assert_eq!(queue.len(), 3, "each of these may go elsewhere by itself");
        let large = vec![0; GATHER_BYTES];
        append(&mut queue, &[IoSlice::new(&large)], large.len(), true);
        append(&mut queue, &small, 3, true);
        assert_eq!(queue.len(), 5);
    }

    #[test]
    fn a_copy_skips_what_is_out() {
        let pieces = [IoSlice::new(b"ab"), IoSlice::new(b"cde")];
        for skip in 0..=5 {
            assert_eq!(concat(&pieces, skip), &b"abcde"[skip..]);
        }
    }
}
