//! All clients, played by one thread: each has one request under way, and sends its next one when
//! the reply has come and is right.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::event::epoll;

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) clients: u32,
    pub(crate) bytes: u32,
    pub(crate) round_trips: u32,
    pub(crate) msize: u32,
}

/// Clients with their files open.
pub(crate) struct Clients {
    load: Load,
    streams: Vec<TcpStream>,
    poll: OwnedFd,
}

const READ: u8 = 116;
const WRITE: u8 = 118;
const HEADER_BYTES: usize = 7;
/// All replies of the set-up, and those of 4 KiB of data, are shorter.
const LONGEST_REPLY: usize = 8192;
const FILE_FID: u32 = 1;
/// Header, fid, offset and count of a request.
const REQUEST_BYTES: usize = HEADER_BYTES + 4 + 8 + 4;

/// Connects them all; each makes its file.
pub(crate) fn connect(load: &Load, address: SocketAddr) -> io::Result<Clients> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut streams = Vec::new();
    for number in 0..load.clients {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let name = format!("client-{number}");
        let mut version = words(&[load.msize]);
        version.extend(b"\x08\x009P2000.L");
        call(&mut stream, 100, u16::MAX, &version)?;
        // Attach as fid 0 (no authentication, no names), walk to fid 1, create.
        call(&mut stream, 104, 0, &words(&[0, u32::MAX, 0, u32::MAX]))?;
        let mut walk = words(&[0, FILE_FID]);
        walk.extend([0, 0]);
        call(&mut stream, 110, 0, &walk)?;
        let mut create = words(&[FILE_FID]);
        create.extend(u16::try_from(name.len()).unwrap_or_default().to_le_bytes());
        create.extend(name.as_bytes());
        // Read and write, truncate.
        create.extend(words(&[0o1002, 0o600, 0]));
        call(&mut stream, 14, 0, &create)?;
        let data = epoll::EventData::new_u64(u64::from(number));
        epoll::add(&poll, &stream, data, epoll::EventFlags::IN)?;
        streams.push(stream);
    }
    Ok(Clients {
        load: *load,
        streams,
        poll,
    })
}

impl Clients {
    /// All clients write their files; how long that took.
    pub(crate) fn write_all(&mut self) -> io::Result<Duration> {
        let count = self.load.bytes;
        self.all(WRITE, |reply, _, _| reply == count.to_le_bytes())
    }

    /// All clients read their files, and compare.
    pub(crate) fn read_all(&mut self) -> io::Result<Duration> {
        let mut expected = vec![0; data_bytes(&self.load)];
        self.all(READ, |reply, client, round_trip| {
            fill(&mut expected, client, round_trip);
            reply[4..] == expected
        })
    }

    fn all(
        &mut self,
        kind: u8,
        mut is_right: impl FnMut(&[u8], usize, u32) -> bool,
    ) -> io::Result<Duration> {
        let mut request = vec![0; REQUEST_BYTES];
        let mut reply = vec![0; LONGEST_REPLY];
        let mut done = vec![0; self.streams.len()];
        let mut left = self.streams.len();
        let mut events = Vec::with_capacity(self.streams.len());
        let begin = Instant::now();
        for client in 0..self.streams.len() {
            self.ask(kind, client, 0, &mut request)?;
        }
        while left > 0 {
            epoll::wait(
                &self.poll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            )?;
            for event in events.drain(..) {
                let client = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
                let len = read_reply(&mut self.streams[client], &mut reply)?;
                let body = &reply[HEADER_BYTES..len];
                if reply[4] != kind + 1 || !is_right(body, client, done[client]) {
                    return Err(io::Error::other("a reply was wrong"));
                }
                done[client] += 1;
                if done[client] == self.load.round_trips {
                    left -= 1;
                } else {
                    self.ask(kind, client, done[client], &mut request)?;
                }
            }
        }
        Ok(begin.elapsed())
    }

    fn ask(
        &mut self,
        kind: u8,
        client: usize,
        round_trip: u32,
        request: &mut Vec<u8>,
    ) -> io::Result<()> {
        request.truncate(REQUEST_BYTES);
        if kind == WRITE {
            request.resize(REQUEST_BYTES + data_bytes(&self.load), 0);
            fill(&mut request[REQUEST_BYTES..], client, round_trip);
        }
        let len = u32::try_from(request.len()).unwrap_or(u32::MAX);
        let offset = u64::from(round_trip) * u64::from(self.load.bytes);
        request[..4].copy_from_slice(&len.to_le_bytes());
        request[4..HEADER_BYTES].copy_from_slice(&[kind, 0, 0]);
        request[HEADER_BYTES..11].copy_from_slice(&FILE_FID.to_le_bytes());
        request[11..19].copy_from_slice(&offset.to_le_bytes());
        request[19..REQUEST_BYTES].copy_from_slice(&self.load.bytes.to_le_bytes());
        self.streams[client].write_all(request)
    }
}

fn data_bytes(load: &Load) -> usize {
    usize::try_from(load.bytes).unwrap_or(usize::MAX)
}

/// Data that no other client has, nor this one elsewhere.
fn fill(data: &mut [u8], client: usize, round_trip: u32) {
    let word = (u64::try_from(client).unwrap_or_default() << 32 | u64::from(round_trip))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .to_le_bytes();
    for (at, byte) in data.iter_mut().enumerate() {
        *byte = word[at % 8];
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A request that has to succeed.
fn call(stream: &mut TcpStream, kind: u8, tag: u16, body: &[u8]) -> io::Result<()> {
    let len = u32::try_from(HEADER_BYTES + body.len()).unwrap_or(u32::MAX);
    let mut request = len.to_le_bytes().to_vec();
    request.push(kind);
    request.extend(tag.to_le_bytes());
    request.extend(body);
    stream.write_all(&request)?;
    let mut reply = vec![0; LONGEST_REPLY];
    read_reply(stream, &mut reply)?;
    match reply[4] {
        reply if reply == kind + 1 => Ok(()),
        _ => Err(io::Error::other(format!("request {kind} failed"))),
    }
}

/// A whole reply, usually with one read.
fn read_reply(stream: &mut TcpStream, reply: &mut [u8]) -> io::Result<usize> {
    let mut held = 0;
    loop {
        let count = stream.read(&mut reply[held..])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        held += count;
        if held < HEADER_BYTES {
            continue;
        }
        let len = u32::from_le_bytes([reply[0], reply[1], reply[2], reply[3]]);
        if usize::try_from(len) == Ok(held) {
            return Ok(held);
        }
    }
}
