//! The contender without KCM: event threads, each with its own connections, dealt in turn, as
//! Thrift's own non-blocking servers have it.
//!
//! Written as carefully as one would by hand: up to 64 events for each wait, one read of 64 KiB for
//! each event, frames answered where they lie, no allocation for a message that is whole, and the
//! replies of a burst in one write, unless calls take so long that each should leave at once.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    thread::{self, JoinHandle},
};

use kcm_example_thrift::wire;
use rustix::{buffer::spare_capacity, event::epoll, io::Errno};
use thrift::server::TProcessor;

use crate::template::walk;

const EVENTS_PER_WAIT: usize = 64;
const BURST_BYTES: usize = 64 << 10;

/// Starts so many threads, which end with their connections.
pub(crate) fn start<P: TProcessor + Send + Sync + 'static>(
    streams: Vec<TcpStream>,
    threads: usize,
    at_once: bool,
    processor: impl Fn() -> P,
) -> Vec<JoinHandle<io::Result<()>>> {
    let mut hands: Vec<Vec<TcpStream>> = (0..threads).map(|_| Vec::new()).collect();
    for (index, stream) in streams.into_iter().enumerate() {
        hands[index % threads].push(stream);
    }
    hands
        .into_iter()
        .map(|hand| {
            let processor = processor();
            thread::spawn(move || serve(&hand, at_once, &processor))
        })
        .collect()
}

fn serve<P: TProcessor>(streams: &[TcpStream], at_once: bool, processor: &P) -> io::Result<()> {
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (index, stream) in streams.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, stream, data, epoll::EventFlags::IN)?;
    }
    let mut tails = vec![Vec::new(); streams.len()];
    let mut buffer = vec![0; BURST_BYTES];
    let mut replies = Vec::with_capacity(BURST_BYTES);
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut open = streams.len();
    while open > 0 {
        match epoll::wait(&poll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for event in events.drain(..) {
            let index = usize::try_from(event.data.u64()).expect("an index of this process");
            let (mut stream, tail) = (&streams[index], &mut tails[index]);
            buffer[..tail.len()].copy_from_slice(tail);
            let count = stream.read(&mut buffer[tail.len()..])?;
            if count == 0 {
                epoll::delete(&poll, stream)?;
                stream.shutdown(std::net::Shutdown::Both)?;
                open -= 1;
                continue;
            }
            let end = tail.len() + count;
            let at = walk(&buffer[..end], |message| {
                wire::answer(processor, message, &mut replies).map_err(io::Error::other)?;
                if at_once {
                    stream.write_all(&replies)?;
                    replies.clear();
                }
                Ok::<_, io::Error>(())
            })?;
            if !replies.is_empty() {
                stream.write_all(&replies)?;
                replies.clear();
            }
            tail.clear();
            tail.extend_from_slice(&buffer[at..end]);
        }
    }
    Ok(())
}
