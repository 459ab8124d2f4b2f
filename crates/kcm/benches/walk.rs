//! What a small message costs beyond the system's work: a burst of 64-byte messages that is
//! always there, walked through by hand, one message a call, and in batches; and with a reply to each.
//!
//! `cargo bench -p kcm --bench walk [ROUNDS]` prints nanoseconds a message, minimum and median of
//! rounds that take turns. The stream is memory, so that no system call is in the figures; the copy
//! of the burst, which a system call would do too, is, for all three.

use std::{
    hint::black_box,
    io::{self, IoSlice},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use kcm::{Framing, Multiplexor, Socket, Stream, Transport};
use rustix::event::{EventfdFlags, eventfd};

const MESSAGE_BYTES: usize = 64;
const BURST_BYTES: usize = 64 << 10;
const MESSAGES_A_ROUND: u64 = 1 << 20;
const CONTENDERS: [&str; 6] = [
    "copy alone",
    "by hand",
    "recv",
    "recv_batch",
    "by hand, replies",
    "recv, replies",
];
const REPLY: [u8; 12] = [0, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8];
const BATCH: usize = 1024;

/// A stream of messages without end.
struct Endless {
    burst: Aligned,
    readable: OwnedFd,
}

impl Endless {
    fn new() -> io::Result<Self> {
        let mut message = [7; MESSAGE_BYTES];
        message[..4].copy_from_slice(&60u32.to_be_bytes());
        Ok(Self {
            burst: Aligned::new(&message.repeat(BURST_BYTES / MESSAGE_BYTES)),
            readable: eventfd(1, EventfdFlags::CLOEXEC)?,
        })
    }
}

/// Bytes at a multiple of 64, as the engine has them: some processors copy at a tenth of their speed
/// to a place that is a little behind the source, modulo a page.
struct Aligned {
    memory: Vec<u8>,
    from: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let mut memory = vec![0; bytes.len() + 64];
        let from = memory.as_ptr().align_offset(64);
        memory[from..][..bytes.len()].copy_from_slice(bytes);
        memory.truncate(from + bytes.len());
        Self { memory, from }
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.from..]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.from..]
    }
}

impl Transport for Endless {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.readable.as_fd()
    }

    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let burst = self.burst.bytes();
        let len = burst
            .len()
            .min(buffer.len() / MESSAGE_BYTES * MESSAGE_BYTES);
        buffer[..len].copy_from_slice(&burst[..len]);
        Ok(len)
    }

    fn send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(buffers.iter().map(|buffer| buffer.len()).sum())
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Ok(())
    }
}

/// What is done with a message: a little, and the same for all.
#[inline(always)]
fn look(sum: &mut u64, message: &[u8]) {
    if let Some(number) = message[4..].first_chunk() {
        *sum = sum.wrapping_add(u64::from_le_bytes(*number));
    }
}

fn copy(stream: &Endless, buffer: &mut [u8]) -> io::Result<u64> {
    let mut sum = 0;
    for _ in 0..MESSAGES_A_ROUND / (BURST_BYTES / MESSAGE_BYTES) as u64 {
        sum += black_box(stream.recv(buffer)?) as u64;
    }
    Ok(sum)
}

#[inline(never)]
fn by_hand(stream: &Endless, buffer: &mut [u8], reply: bool) -> io::Result<u64> {
    let (mut sum, mut messages) = (0, 0);
    let mut replies = Vec::with_capacity(BURST_BYTES);
    while messages < MESSAGES_A_ROUND {
        let len = stream.recv(buffer)?;
        let mut rest = &buffer[..len];
        while let Some(header) = rest.first_chunk::<4>() {
            let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX) + 4;
            let Some((message, after)) = rest.split_at_checked(len) else {
                break;
            };
            look(&mut sum, message);
            if reply {
                replies.extend_from_slice(&REPLY);
            }
            messages += 1;
            rest = after;
        }
        stream.send(&[IoSlice::new(&replies)])?;
        replies.clear();
    }
    Ok(sum)
}

#[inline(never)]
fn single(socket: &mut Socket, reply: bool) -> kcm::Result<u64> {
    let mut sum = 0;
    for _ in 0..MESSAGES_A_ROUND {
        let message = socket.recv()?;
        look(&mut sum, &message);
        if reply {
            message.reply(&REPLY)?;
        }
    }
    Ok(sum)
}

#[inline(never)]
fn batches(socket: &mut Socket) -> kcm::Result<u64> {
    let (mut sum, mut messages) = (0, 0);
    while messages < MESSAGES_A_ROUND {
        for message in socket.recv_batch(BATCH)? {
            look(&mut sum, &message);
            messages += 1;
        }
    }
    Ok(sum)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds: usize = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(15);
    let framing: Framing = "u32be+4".parse()?;
    let mux = Multiplexor::builder(framing).build()?;
    mux.attach(Stream::new(Endless::new()?))?;
    let mut socket = mux.socket()?;
    let stream = Endless::new()?;
    let mut buffer = Aligned::new(&[0; BURST_BYTES]);
    let buffer = buffer.bytes_mut();
    let mut times = CONTENDERS.map(|_| Vec::new());
    for _ in 0..rounds {
        for (contender, times) in times.iter_mut().enumerate() {
            let begin = Instant::now();
            black_box(match contender {
                0 => copy(&stream, buffer)?,
                1 => by_hand(&stream, buffer, false)?,
                2 => single(&mut socket, false)?,
                3 => batches(&mut socket)?,
                4 => by_hand(&stream, buffer, true)?,
                _ => single(&mut socket, true)?,
            });
            times.push(begin.elapsed());
        }
    }
    for (name, mut times) in CONTENDERS.into_iter().zip(times) {
        times.sort();
        let ns = |time: Duration| time.as_secs_f64() * 1e9 / MESSAGES_A_ROUND as f64;
        let (least, median) = (ns(times[0]), ns(times[times.len() / 2]));
        println!("{name:<18} {least:6.2} ns min  {median:6.2} ns median");
    }
    Ok(())
}
