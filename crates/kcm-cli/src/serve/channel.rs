//! Between this program and one worker: a pair of sockets, of which the worker has one as its
//! standard input and output.
//!
//! Nothing here waits. What the worker does not read yet stays in the outbox, which is bounded by
//! what a worker may have in hand. What it writes is read up to a limit.
//!
//! How to see that a worker has read its message, on Linux (measured on 6.18): a datagram is charged
//! to the sender's buffer until the receiver takes it, and at that moment the sender polls writable,
//! an edge each time, as long as a quarter of the buffer is free then. `SIOCOUTQ` falls to 0 with
//! it, but takes the length of kernel memory for the message's. So the edge says when to look, and
//! the other end, of which a duplicate is kept, says by polling readable that the message is still
//! there. From this duplicate it can be taken back, too: a datagram goes to one reader, whole. (That
//! keeps the other end open: the end of the worker is told by its pidfd alone.)
//!
//! A worker that closes its end with a message unread is told as `ECONNRESET`, once, before what it
//! wrote last: so a message that nobody has read is known, and not lost.
//!
//! A datagram of length 0 and the end of the stream both read as 0 bytes; only after the end does
//! the socket poll as hung up.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, SocketFlags,
        SocketType, recv, sendmsg, shutdown, socketpair, sockopt,
    },
};

use super::options::WorkerTransport;

/// Bytes of the length before a message in a stream.
const LENGTH_BYTES: usize = 4;
/// Read from a stream at once, 64 KiB: the usual buffer of a pipe.
const READ_BYTES: usize = 64 << 10;

/// This program's end.
pub(super) struct Channel {
    socket: OwnedFd,
    transport: WorkerTransport,
    /// The worker's end, to see and take back what it has not read.
    worker_end: Option<OwnedFd>,
    /// What the system did not take yet: datagrams, or pieces of the stream.
    outbox: VecDeque<Vec<u8>>,
    /// Bytes of the first piece that are out.
    sent: usize,
    /// Read from a stream; the first `consumed` bytes are done with.
    inbox: Vec<u8>,
    consumed: usize,
    /// The worker has closed its end with something unread in it.
    unread: bool,
}

/// What a worker has written.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming<'a> {
    /// One write, or one message of the stream.
    Message(&'a [u8]),
    /// Nothing now.
    Nothing,
    /// It has closed its end.
    Closed,
    /// A message of so many bytes, above the limit.
    TooLong(u64),
}

/// The longest datagram that a worker's socket carries, in bytes.
pub(super) fn longest_datagram() -> io::Result<usize> {
    /// What the kernel keeps of the send buffer for itself.
    const KEPT_BYTES: usize = 32;
    let (channel, worker_end) = Channel::pair(WorkerTransport::Seqpacket, false)?;
    let buffer_bytes = sockopt::socket_send_buffer_size(&channel.socket)?;
    let mut len = buffer_bytes.saturating_sub(KEPT_BYTES);
    let datagram = vec![0; len];
    // The system may have less memory in one piece than the buffer's size promises.
    while let Err(error) = rustix::net::send(
        &channel.socket,
        &datagram[..len],
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    ) {
        len -= len / 8;
        if len < 8 {
            return Err(error.into());
        }
    }
    drop(worker_end);
    Ok(len)
}

impl Channel {
    /// A channel, and the worker's end of it. `watched`: what the worker has not read can be seen
    /// and taken back.
    pub(super) fn pair(transport: WorkerTransport, watched: bool) -> io::Result<(Self, OwnedFd)> {
        let kind = match transport {
            WorkerTransport::Seqpacket => SocketType::SEQPACKET,
            WorkerTransport::Stream => SocketType::STREAM,
        };
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        let channel = Self {
            socket: ours,
            transport,
            worker_end: watched.then(|| theirs.try_clone()).transpose()?,
            outbox: VecDeque::new(),
            sent: 0,
            inbox: Vec::new(),
            consumed: 0,
            unread: false,
        };
        Ok((channel, theirs))
    }

    /// Sends one message, which is `prefix` and `message` in one, now or as soon as there is room.
    pub(super) fn send(&mut self, prefix: &[u8], message: &[u8]) -> io::Result<()> {
        let length = u32::try_from(prefix.len() + message.len())
            .map_err(|_| io::ErrorKind::InvalidInput)?
            .to_be_bytes();
        let length: &[u8] = match self.transport {
            WorkerTransport::Seqpacket => &[],
            WorkerTransport::Stream => &length,
        };
        let pieces = [length, prefix, message];
        let mut sent = 0;
        if self.outbox.is_empty() {
            match self.send_now(&pieces.map(IoSlice::new)) {
                Ok(n) => sent = n,
                Err(Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if sent < pieces.iter().map(|piece| piece.len()).sum() {
            let all = pieces.concat();
            self.outbox.push_back(all[sent..].to_vec());
        }
        Ok(())
    }

    /// Sends what has waited. True: all is out.
    pub(super) fn flush(&mut self) -> io::Result<bool> {
        while let Some(first) = self.outbox.front() {
            match self.send_now(&[IoSlice::new(&first[self.sent..])]) {
                Ok(n) => self.sent += n,
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
            if self.sent == first.len() {
                self.outbox.pop_front();
                self.sent = 0;
            }
        }
        Ok(true)
    }

    /// Whether something waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        !self.outbox.is_empty()
    }

    fn send_now(&self, pieces: &[IoSlice<'_>]) -> Result<usize, Errno> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(
            &self.socket,
            pieces,
            &mut SendAncillaryBuffer::default(),
            flags,
        )
    }

    /// What the worker has written next, at most `limit` bytes; a datagram lands in `buffer`, which
    /// has that length.
    pub(super) fn recv<'a>(
        &'a mut self,
        buffer: &'a mut [u8],
        limit: usize,
    ) -> io::Result<Incoming<'a>> {
        match self.transport {
            WorkerTransport::Seqpacket => self.recv_datagram(buffer),
            WorkerTransport::Stream => self.recv_stream(limit),
        }
    }

    fn recv_datagram<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Incoming<'a>> {
        let Some(len) = self.read(buffer, RecvFlags::TRUNC)? else {
            return Ok(Incoming::Nothing);
        };
        if len == 0 && self.has_hung_up() {
            return Ok(Incoming::Closed);
        }
        Ok(match buffer.get(..len) {
            Some(message) => Incoming::Message(message),
            None => Incoming::TooLong(len as u64),
        })
    }

    fn recv_stream(&mut self, limit: usize) -> io::Result<Incoming<'_>> {
        self.inbox.drain(..std::mem::take(&mut self.consumed));
        loop {
            if let Some((length, rest)) = self.inbox.split_first_chunk::<LENGTH_BYTES>() {
                let len = u32::from_be_bytes(*length);
                let len = match usize::try_from(len) {
                    Ok(len) if len <= limit => len,
                    _ => return Ok(Incoming::TooLong(len.into())),
                };
                if rest.len() >= len {
                    self.consumed = LENGTH_BYTES + len;
                    return Ok(Incoming::Message(&self.inbox[LENGTH_BYTES..self.consumed]));
                }
            }
            let mut inbox = std::mem::take(&mut self.inbox);
            let begin = inbox.len();
            inbox.resize(begin + READ_BYTES, 0);
            let got = self.read(&mut inbox[begin..], RecvFlags::empty());
            inbox.truncate(begin + got.as_ref().map_or(0, |n| n.unwrap_or(0)));
            self.inbox = inbox;
            match got? {
                None => return Ok(Incoming::Nothing),
                Some(0) => return Ok(Incoming::Closed),
                Some(_) => {}
            }
        }
    }

    /// Reads what there is: `None`, nothing now. An end with something unread is told once, before
    /// the last words.
    fn read(&mut self, buffer: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
        loop {
            match recv(&self.socket, &mut *buffer, flags | RecvFlags::DONTWAIT) {
                Ok((_, len)) => return Ok(Some(len)),
                Err(Errno::CONNRESET) if !self.unread => self.unread = true,
                Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Whether the worker has closed its end with something unread in it; known when it has been
    /// read from to [`Incoming::Closed`].
    pub(super) fn closed_unread(&self) -> bool {
        self.unread
    }

    fn has_hung_up(&self) -> bool {
        polls(&self.socket, PollFlags::RDHUP)
    }

    /// Whether the worker has not read all that was sent; only of a watched channel.
    pub(super) fn is_unread(&self) -> bool {
        self.is_waiting() || (self.worker_end.as_ref()).is_some_and(|end| polls(end, PollFlags::IN))
    }

    /// Takes back the message that the worker has not read; false: it has. (A part of a stream may
    /// be read already, so that nothing of it can be taken back.)
    pub(super) fn take_back(&self) -> bool {
        let Some(end) = &self.worker_end else {
            return false;
        };
        self.transport == WorkerTransport::Seqpacket
            && recv(end, &mut [0; 1][..], RecvFlags::DONTWAIT).is_ok_and(|(_, len)| len > 0)
    }

    /// The worker reads the end of its input, after what was sent.
    pub(super) fn end(&self) {
        // It may have closed its end.
        let _ = shutdown(&self.socket, Shutdown::Write);
    }
}

fn polls(fd: &OwnedFd, flags: PollFlags) -> bool {
    let mut fds = [PollFd::new(fd, flags)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|n| n > 0)
        && fds[0].revents().intersects(flags)
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the head of this file says of the system.
    #[test]
    fn a_datagram_is_seen_unread_and_taken_back() {
        let kind = WorkerTransport::Seqpacket;
        let (mut channel, worker) = Channel::pair(kind, true).expect("a pair");
        let mut buffer = [0; 16];
        assert!(!channel.is_unread() && !channel.take_back());
        channel.send(b"a", b"bc").expect("sent");
        assert!(channel.is_unread());
        assert_eq!(
            recv(&worker, &mut buffer[..], RecvFlags::empty()),
            Ok((3, 3))
        );
        assert!(!channel.is_unread() && !channel.take_back());
        channel.send(b"", b"d").expect("sent");
        assert!(channel.take_back() && !channel.is_unread());
    }

    #[test]
    fn an_empty_write_is_no_end() {
        let kind = WorkerTransport::Seqpacket;
        let (mut channel, worker) = Channel::pair(kind, false).expect("a pair");
        let mut buffer = [0; 4];
        let mut next = |channel: &mut Channel| match channel.recv(&mut buffer, 4) {
            Ok(Incoming::Message(message)) => message.to_vec(),
            other => format!("{other:?}").into_bytes(),
        };
        rustix::net::send(&worker, b"", SendFlags::empty()).expect("sent");
        assert_eq!(next(&mut channel), b"");
        assert_eq!(next(&mut channel), b"Ok(Nothing)");
        rustix::net::send(&worker, b"12345", SendFlags::empty()).expect("sent");
        assert_eq!(next(&mut channel), b"Ok(TooLong(5))");
        // Unread, last words, and the end.
        channel.send(b"", b"unread").expect("sent");
        rustix::net::send(&worker, b"last", SendFlags::empty()).expect("sent");
        drop(worker);
        assert_eq!(next(&mut channel), b"last");
        assert_eq!(next(&mut channel), b"Ok(Closed)");
        assert!(channel.closed_unread());
    }

    #[test]
    fn a_stream_in_pieces() {
        let (mut channel, worker) = Channel::pair(WorkerTransport::Stream, false).expect("a pair");
        let next = |channel: &mut Channel| match channel.recv(&mut [], 5) {
            Ok(Incoming::Message(message)) => message.to_vec(),
            other => format!("{other:?}").into_bytes(),
        };
        let write = |bytes: &[u8]| rustix::net::send(&worker, bytes, SendFlags::empty());
        for byte in b"\0\0\0\x02hi\0\0\0\0\0\0" {
            write(&[*byte]).expect("sent");
        }
        assert_eq!(next(&mut channel), b"hi");
        assert_eq!(next(&mut channel), b"");
        assert_eq!(next(&mut channel), b"Ok(Nothing)");
        write(b"\0\x06").expect("sent");
        assert_eq!(next(&mut channel), b"Ok(TooLong(6))");
    }

    #[test]
    fn what_has_no_room_waits_in_order() {
        for kind in [WorkerTransport::Seqpacket, WorkerTransport::Stream] {
            let (mut channel, worker) = Channel::pair(kind, false).expect("a pair");
            let sent: Vec<Vec<u8>> = (0..40).map(|n| vec![n; 50_000]).collect();
            for message in &sent {
                channel
                    .send(&message[..8], &message[8..])
                    .expect("sent or kept");
            }
            assert!(channel.is_waiting());
            let mut received = Vec::new();
            let mut buffer = vec![0; 100_000];
            loop {
                let all_out = channel.flush().expect("flushed");
                while let Ok((_, n)) = recv(&worker, &mut buffer[..], RecvFlags::DONTWAIT) {
                    received.extend_from_slice(&buffer[..n]);
                }
                if all_out {
                    break;
                }
            }
            let length = |message: &[u8]| match kind {
                WorkerTransport::Seqpacket => Vec::new(),
                WorkerTransport::Stream => u32::try_from(message.len())
                    .expect("short")
                    .to_be_bytes()
                    .to_vec(),
            };
            let expected = sent.iter().flat_map(|m| [length(m), m.clone()].concat());
            assert!(received == expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_longest_datagram_fits_and_no_longer_one() {
        let len = longest_datagram().expect("known");
        let (ours, theirs) = Channel::pair(WorkerTransport::Seqpacket, false).expect("a pair");
        let flags = SendFlags::DONTWAIT;
        let mut room = vec![0; len + 1];
        assert_eq!(rustix::net::send(&ours, &room[..len], flags), Ok(len));
        assert_eq!(
            recv(&theirs, &mut room[..], RecvFlags::empty()),
            Ok((len, len))
        );
        assert_eq!(rustix::net::send(&ours, &room, flags), Err(Errno::MSGSIZE));
    }
}
