//! The raw TCP contender: what a careful programmer writes by hand.
//!
//! One `recv` of 64 KiB, the frames walked where they lie, the tail moved to the front, the
//! replies of a burst gathered into one `send`, no allocation for a message. For one connection a
//! blocking loop, since nothing is faster; for many an edge-triggered epoll, up to 64 events a
//! wait, one `recv` an event (a short read has drained the socket).

use std::{
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
};

use kcm::{Framing, Verdict};
use kcm_frame::Native;
use rustix::{
    buffer::spare_capacity,
    event::epoll,
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{failure::Failure, service::Service, verify::Mismatch};

/// What one `recv` asks for.
pub(super) const BURST_BYTES: usize = 64 << 10;
/// Events harvested by one wait.
pub(super) const EVENTS_PER_WAIT: usize = 64;
/// No peer of ours sends more; hand-written framing has such a check, too.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// Says where a message ends: the length of the one at the front, if it is known yet.
pub(super) trait Cut: Copy + Send + 'static {
    fn cut(self, bytes: &[u8]) -> Result<Option<usize>, Mismatch>;
}

/// Framing `u32be+4`, by hand.
#[derive(Clone, Copy)]
pub(super) struct U32Be;

impl Cut for U32Be {
    #[inline]
    fn cut(self, bytes: &[u8]) -> Result<Option<usize>, Mismatch> {
        let Some(header) = bytes.first_chunk() else {
            return Ok(None);
        };
        let body = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if body > MAX_MESSAGE_BYTES {
            return Err(too_long());
        }
        Ok(Some(body + header.len()))
    }
}

impl Cut for Native {
    #[inline]
    fn cut(self, bytes: &[u8]) -> Result<Option<usize>, Mismatch> {
        match self.parse(bytes) {
            Verdict::Message(frame) => match usize::try_from(frame.len) {
                Ok(len) if len <= MAX_MESSAGE_BYTES => Ok(Some(len)),
                _ => Err(too_long()),
            },
            Verdict::NeedMore(_) => Ok(None),
            verdict => Err(Mismatch::new(format!("not framed: {verdict:?}"))),
        }
    }
}

/// When replies leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Replies {
    /// All replies to one burst together: right when a message takes no time.
    PerBurst,
    /// Each as soon as it is there: right when a message takes long.
    AtOnce,
}

/// The framing as hand-written code would have it; calls one of the two.
pub(super) fn native(framing: &Framing) -> Result<Native, Failure> {
    framing
        .native()
        .ok_or_else(|| Failure::Usage("raw TCP needs a framing that has a text form".to_owned()))
}

/// Whether the framing is `u32be+4`.
pub(super) fn is_u32_be(framing: &Framing) -> bool {
    framing.native() == "u32be+4".parse().ok()
}

/// Serves one connection to its end, blocking.
pub(super) fn serve_one<C: Cut, S: Service>(
    mut stream: TcpStream,
    cut: C,
    largest_bytes: usize,
    mut service: S,
) -> Result<S, Failure> {
    let mut buffer = buffer_for(largest_bytes);
    let mut replies = Vec::with_capacity(BURST_BYTES);
    let mut held = 0;
    loop {
        let count = match stream.read(&mut buffer[held..]) {
            Ok(0) if held == 0 => return Ok(service),
            Ok(0) => return Err(cut_short(held)),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::system("recv")(e)),
        };
        let end = held + count;
        let at = walk(&buffer[..end], cut, |message| {
            Ok(service.serve(message, &mut replies)?)
        })?;
        if !replies.is_empty() {
            send_all(&stream, &replies)?;
            replies.clear();
        }
        buffer.copy_within(at..end, 0);
        held = end - at;
    }
}

/// Serves several connections to their ends in one epoll loop.
pub(super) fn serve_many<C: Cut, S: Service>(
    streams: Vec<TcpStream>,
    cut: C,
    largest_bytes: usize,
    when: Replies,
    mut service: S,
) -> Result<S, Failure> {
    let poll = epoll_of(&streams)?;
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut buffer = buffer_for(largest_bytes);
    let mut replies = Vec::with_capacity(BURST_BYTES);
    // The tails of bursts that ended inside a message, nearly always empty.
    let mut tails = vec![Vec::new(); streams.len()];
    let mut open = streams.len();
    while open > 0 {
        wait(&poll, &mut events)?;
        for (index, flags) in events.drain(..).map(index_and_flags) {
            let (stream, tail) = (&streams[index], &mut tails[index]);
            // Behind the last bytes the end may be waiting already: no event would tell of it.
            let read_to_end = flags.intersects(HUNG_UP);
            loop {
                let held = tail.len();
                buffer[..held].copy_from_slice(tail);
                let count = match recv(stream, &mut buffer[held..], RecvFlags::DONTWAIT) {
                    Ok((_, 0)) if held == 0 => {
                        open -= 1;
                        let _ = epoll::delete(&poll, stream);
                        break;
                    }
                    Ok((_, 0)) => return Err(cut_short(held)),
                    Ok((_, count)) => count,
                    Err(Errno::AGAIN) => break,
                    Err(Errno::INTR) => continue,
                    Err(errno) => return Err(Failure::errno("recv")(errno)),
                };
                let end = held + count;
                let at = walk(&buffer[..end], cut, |message| {
                    service.serve(message, &mut replies)?;
                    if when == Replies::AtOnce && !replies.is_empty() {
                        send_all(stream, &replies)?;
                        replies.clear();
                    }
                    Ok(())
                })?;
                if !replies.is_empty() {
                    send_all(stream, &replies)?;
                    replies.clear();
                }
                tail.clear();
                tail.extend_from_slice(&buffer[at..end]);
                if end < buffer.len() && !read_to_end {
                    break;
                }
            }
        }
    }
    Ok(service)
}

/// Calls `take` for every whole message; returns where the first unfinished one begins.
#[inline]
pub(super) fn walk<C: Cut>(
    bytes: &[u8],
    cut: C,
    mut take: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let mut rest = bytes;
    while let Some(len) = cut.cut(rest)? {
        let Some((message, after)) = rest.split_at_checked(len) else {
            break;
        };
        take(message)?;
        rest = after;
    }
    Ok(bytes.len() - rest.len())
}

/// Room for a burst, and for one message on top of the tail of another.
pub(super) fn buffer_for(largest_bytes: usize) -> Vec<u8> {
    vec![0; BURST_BYTES.max(2 * largest_bytes)]
}

/// An edge-triggered epoll of these streams, each under its index.
pub(super) fn epoll_of<S: AsFd>(streams: &[S]) -> Result<rustix::fd::OwnedFd, Failure> {
    let poll =
        epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Failure::errno("epoll_create"))?;
    for (index, stream) in streams.iter().enumerate() {
        epoll::add(
            &poll,
            stream,
            epoll::EventData::new_u64(index as u64),
            epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET,
        )
        .map_err(Failure::errno("epoll_ctl"))?;
    }
    Ok(poll)
}

/// Waits for up to [`EVENTS_PER_WAIT`] events.
pub(super) fn wait(
    poll: &rustix::fd::OwnedFd,
    events: &mut Vec<epoll::Event>,
) -> Result<(), Failure> {
    match epoll::wait(poll, spare_capacity(events), None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(Failure::errno("epoll_wait")(errno)),
    }
}

pub(super) fn index_and_flags(event: epoll::Event) -> (usize, epoll::EventFlags) {
    let index = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
    (index, event.flags)
}

/// `send` until all is gone.
pub(super) fn send_all(mut stream: &TcpStream, bytes: &[u8]) -> Result<(), Failure> {
    stream.write_all(bytes).map_err(Failure::system("send"))
}

/// Waits for bytes of a reply; gives their number.
#[inline]
pub(super) fn recv_some(mut stream: &TcpStream, room: &mut [u8]) -> Result<usize, Failure> {
    loop {
        match stream.read(room) {
            Ok(0) => return Err(no_reply()),
            Ok(count) => return Ok(count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::system("recv")(e)),
        }
    }
}

/// The same, if there are any now.
#[inline]
pub(super) fn recv_now(stream: &TcpStream, room: &mut [u8]) -> Result<Option<usize>, Failure> {
    match recv(stream, room, RecvFlags::DONTWAIT) {
        Ok((_, 0)) => Err(no_reply()),
        Ok((_, count)) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(Failure::errno("recv")(errno)),
    }
}

/// The client has sent all: the server sees the end of the connection.
pub(super) fn end(stream: &TcpStream) {
    // One that is gone already has been told otherwise.
    let _ = stream.shutdown(Shutdown::Write);
}

const HUNG_UP: epoll::EventFlags = epoll::EventFlags::RDHUP
    .union(epoll::EventFlags::HUP)
    .union(epoll::EventFlags::ERR);

#[cold]
fn too_long() -> Mismatch {
    Mismatch::new(format!("longer than {MAX_MESSAGE_BYTES} bytes"))
}

#[cold]
fn no_reply() -> Failure {
    Failure::Verification("no reply but the end".to_owned())
}

#[cold]
fn cut_short(held: usize) -> Failure {
    Failure::Verification(format!("the stream ended {held} bytes into a message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_cuts_agree_at_every_length() {
        let native: Native = "u32be+4".parse().expect("a good specification");
        let stream = [0, 0, 0, 2, b'h', b'i', 0, 0, 0, 0, 0, 0];
        for end in 0..=stream.len() {
            let mut by_hand = Vec::new();
            let hand_at = walk(&stream[..end], U32Be, |message| {
                by_hand.push(message.to_vec());
                Ok(())
            });
            let mut by_native = Vec::new();
            let native_at = walk(&stream[..end], native, |message| {
                by_native.push(message.to_vec());
                Ok(())
            });
            assert_eq!(by_hand, by_native);
            let whole = [0, 6, 10].into_iter().rfind(|&at| at <= end);
            assert_eq!(hand_at.ok(), whole);
            assert_eq!(native_at.ok(), whole);
        }
        assert!(U32Be.cut(&[0xff; 4]).is_err());
    }
}
