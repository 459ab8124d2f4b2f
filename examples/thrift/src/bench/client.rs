//! The client of both contenders: many calls under way on several connections, from one thread,
//! which also keeps the time. Every reply is checked: it is one to a call of this connection that is
//! under way, and right in each byte.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    io::{self, Read as _, Write as _},
    net::{Shutdown, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    time::{ClockId, clock_gettime},
};

use crate::{
    case::Case,
    draw::Draw,
    template::{Template, walk},
};

/// What one read asks for.
const BURST_BYTES: usize = 64 << 10;
/// It looks at the clock at least this often.
const LONGEST_WAIT: Duration = Duration::from_millis(20);
/// After so long without a reply one was lost.
const STALL_LIMIT: Duration = Duration::from_secs(15);

/// What one contender did in one round.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    /// Calls in a second.
    pub(crate) rate: f64,
    /// In microseconds.
    pub(crate) mean_us: f64,
    pub(crate) deviation_us: f64,
    /// The server's processor time for a call, in microseconds.
    pub(crate) cpu_us: f64,
}

/// Asks until the time is over, and measures.
pub(crate) fn drive(
    case: &Case,
    draw: Draw,
    streams: Vec<TcpStream>,
    duration: Duration,
) -> io::Result<Sample> {
    let mut client = Client::new(case, draw, streams)?;
    let begin = Instant::now();
    client.run_until(begin + duration / 5)?;
    client.latency = Latency::default();
    let before = Reading::now()?;
    client.run_until(before.at + duration)?;
    let (after, latency) = (Reading::now()?, client.latency);
    client.finish()?;
    Ok(latency.sample(before, after))
}

struct Client {
    connections: Vec<Connection>,
    call: Template,
    reply: Template,
    draw: Draw,
    pausing_in_flight: usize,
    /// Connections that send another call when their time has come.
    pauses: BinaryHeap<Reverse<(Instant, usize)>>,
    latency: Latency,
    last_reply_at: Instant,
    buffer: Vec<u8>,
    burst: Vec<u8>,
}

struct Connection {
    stream: TcpStream,
    in_flight: usize,
    /// The number of the next call.
    next: i64,
    /// Calls to be sent now.
    due: usize,
    /// Calls under way and when they were sent. Replies come nearly in order.
    under_way: VecDeque<(i64, Instant)>,
    /// The beginning of a reply that has not come as a whole.
    tail: Vec<u8>,
}

impl Client {
    fn new(case: &Case, draw: Draw, streams: Vec<TcpStream>) -> io::Result<Self> {
        let templates = || {
            Ok((
                Template::call(case.method, case.data_bytes)?,
                Template::reply(case.method)?,
            ))
        };
        let (call, reply) = templates().map_err(|e: thrift::Error| io::Error::other(e))?;
        let connections = streams.into_iter().zip(case.in_flight).enumerate();
        Ok(Self {
            connections: connections
                .map(|(index, (stream, &in_flight))| Connection {
                    stream,
                    in_flight,
                    next: i64::try_from(index << 40).expect("a few connections"),
                    due: in_flight,
                    under_way: VecDeque::with_capacity(in_flight),
                    tail: Vec::new(),
                })
                .collect(),
            call,
            reply,
            draw,
            pausing_in_flight: case.pausing_in_flight,
            pauses: BinaryHeap::new(),
            latency: Latency::default(),
            last_reply_at: Instant::now(),
            buffer: vec![0; BURST_BYTES],
            burst: Vec::with_capacity(BURST_BYTES),
        })
    }

    fn run_until(&mut self, end: Instant) -> io::Result<()> {
        let mut now = Instant::now();
        while now < end {
            while let Some(&Reverse((at, index))) =
                self.pauses.peek().filter(|next| next.0.0 <= now)
            {
                self.pauses.pop();
                debug_assert!(at <= now);
                self.connections[index].due += 1;
            }
            for index in 0..self.connections.len() {
                self.send_due(index)?;
            }
            self.receive()?;
            now = Instant::now();
        }
        Ok(())
    }

    /// Asks for nothing more and waits for what is under way. Nothing comes after that.
    fn finish(mut self) -> io::Result<()> {
        while self.connections.iter().any(|c| !c.under_way.is_empty()) {
            self.receive()?;
        }
        for connection in &mut self.connections {
            connection.stream.shutdown(Shutdown::Write)?;
            connection.stream.set_read_timeout(Some(STALL_LIMIT))?;
            if connection.stream.read(&mut [0])? != 0 || !connection.tail.is_empty() {
                return Err(wrong("more replies than calls"));
            }
        }
        Ok(())
    }

    /// What is due on one connection, in one write.
    fn send_due(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        if connection.due == 0 {
            return Ok(());
        }
        self.burst.clear();
        let now = Instant::now();
        for number in (connection.next..).take(connection.due) {
            self.call.append(number, &mut self.burst);
            connection.under_way.push_back((number, now));
            connection.next += 1;
        }
        connection.due = 0;
        connection.stream.write_all(&self.burst)
    }

    /// Waits for replies on any connection, or the end of a pause.
    fn receive(&mut self) -> io::Result<()> {
        let mut polled: Vec<_> = (self.connections.iter())
            .map(|c| PollFd::from_borrowed_fd(c.stream.as_fd(), PollFlags::IN))
            .collect();
        let now = Instant::now();
        let pause = self
            .pauses
            .peek()
            .map(|next| next.0.0.saturating_duration_since(now));
        let wait = pause.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT);
        poll(&mut polled, Timespec::try_from(wait).ok().as_ref())?;
        let readable: Vec<_> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        for (index, _) in readable
            .iter()
            .enumerate()
            .filter(|(_, readable)| **readable)
        {
            self.receive_from(index)?;
        }
        if self.last_reply_at.elapsed() > STALL_LIMIT {
            return Err(wrong("no reply for too long: one was lost"));
        }
        Ok(())
    }

    fn receive_from(&mut self, index: usize) -> io::Result<()> {
        let connection = &mut self.connections[index];
        let held = connection.tail.len();
        self.buffer[..held].copy_from_slice(&connection.tail);
        let end = match connection.stream.read(&mut self.buffer[held..])? {
            0 => return Err(wrong("no reply but the end")),
            count => held + count,
        };
        let now = Instant::now();
        self.last_reply_at = now;
        let pauses = connection.in_flight <= self.pausing_in_flight;
        let at = walk(&self.buffer[..end], |message| {
            let number = self
                .reply
                .number_of(message)
                .ok_or_else(|| wrong("not the reply"))?;
            let place = connection
                .under_way
                .iter()
                .position(|call| call.0 == number);
            let call = place.and_then(|place| connection.under_way.remove(place));
            let (_, sent_at) = call.ok_or_else(|| wrong("a reply that nobody waits for"))?;
            self.latency.record(now - sent_at);
            if pauses {
                let until = now + self.draw.pause(number);
                self.pauses.push(Reverse((until, index)));
            } else {
                connection.due += 1;
            }
            Ok::<_, io::Error>(())
        })?;
        connection.tail.clear();
        connection.tail.extend_from_slice(&self.buffer[at..end]);
        Ok(())
    }
}

fn wrong(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("wrong result: {what}"))
}

/// Count, sum and sum of squares, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Latency {
    count: f64,
    sum_us: f64,
    squares: f64,
}

impl Latency {
    fn record(&mut self, latency: Duration) {
        let us = latency.as_secs_f64() * 1e6;
        self.count += 1.0;
        self.sum_us += us;
        self.squares += us * us;
    }

    fn sample(self, before: Reading, after: Reading) -> Sample {
        let mean_us = self.sum_us / self.count;
        let variance = self.squares / self.count - mean_us * mean_us;
        let server = |r: Reading| r.process.saturating_sub(r.client).as_secs_f64();
        Sample {
            rate: self.count / (after.at - before.at).as_secs_f64(),
            mean_us,
            deviation_us: variance.max(0.0).sqrt(),
            cpu_us: (server(after) - server(before)) * 1e6 / self.count,
        }
    }
}

/// Clocks. The time of the process lags by up to a scheduler's tick for a thread that runs just
/// now, which is less than 1 % of half a second.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Instant,
    /// Processor time of the whole process: the server, and this thread.
    process: Duration,
    client: Duration,
}

impl Reading {
    fn now() -> io::Result<Self> {
        let clock = |id| {
            Duration::try_from(clock_gettime(id)).map_err(|_| io::Error::other("a negative clock"))
        };
        Ok(Self {
            at: Instant::now(),
            process: clock(ClockId::ProcessCPUTime)?,
            client: clock(ClockId::ThreadCPUTime)?,
        })
    }
}
