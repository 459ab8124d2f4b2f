//! `work`: what multiplexing is for. Four workers, uneven connections, now and then a long
//! request.
//!
//! Raw TCP deals connections to workers, so some workers queue while others idle; KCM gives the
//! next message to whoever is free. The draws are in `draw.rs`, the ideal in `ideal.rs`.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    net::TcpStream,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{ClientEnd, Trial};
use crate::perf::{
    draw::{Draw, IN_FLIGHT},
    failure::Failure,
    raw::{self, Replies, U32Be},
    run::Run,
    server::Load,
    service::{Acknowledge, Work},
    stats::{Histogram, Sample},
    verify::{Mismatch, NUMBER_BYTES, Template},
};

pub(super) fn run(trial: &Trial<'_>) -> Result<Sample, Failure> {
    let template = Template::with_body(&trial.row.framing, trial.row.size_bytes)?;
    let reply = Template::with_body(&trial.row.framing, NUMBER_BYTES)?;
    let (draw, lateness) = (trial.draw, trial.lateness);
    let outcome = trial.run(
        Load::Many(Replies::AtOnce),
        template.len(),
        |_| Work {
            inner: Acknowledge {
                template: template.clone(),
                reply: reply.clone(),
            },
            draw,
            lateness,
        },
        |streams| {
            let client = Client::new(streams, draw, template.clone(), reply.clone());
            Ok(move |run: &Run| client.drive(run))
        },
    )?;
    Ok(outcome.sample)
}

struct Client {
    streams: Vec<TcpStream>,
    draw: Draw,
    template: Template,
    reply: Template,
    message: Vec<u8>,
    connections: [Connection; IN_FLIGHT.len()],
    /// When a connection sends again.
    pauses: BinaryHeap<Reverse<(Instant, usize)>>,
    latency: Histogram,
    replies: u64,
}

#[derive(Default)]
struct Connection {
    sent: u32,
    /// Numbers under way and when they were sent; replies come in any order.
    under_way: Vec<(u64, Instant)>,
    /// The beginning of a reply that has not come as a whole.
    tail: Vec<u8>,
}

impl Client {
    fn new(streams: Vec<TcpStream>, draw: Draw, template: Template, reply: Template) -> Self {
        let begin = Instant::now();
        let slots = IN_FLIGHT.into_iter().enumerate();
        Self {
            streams,
            draw,
            message: template.bytes().to_vec(),
            template,
            reply,
            connections: Default::default(),
            pauses: slots
                .flat_map(|(connection, in_flight)| {
                    std::iter::repeat_n(Reverse((begin, connection)), in_flight)
                })
                .collect(),
            latency: Histogram::new(),
            replies: 0,
        }
    }

    fn drive(mut self, run: &Run) -> Result<ClientEnd, Failure> {
        let mut buffer = raw::buffer_for(self.reply.len());
        while !run.is_ending() || self.connections.iter().any(|c| !c.under_way.is_empty()) {
            self.send_due(run)?;
            for index in self.wait()? {
                self.receive(run, index, &mut buffer)?;
            }
        }
        self.streams.iter().for_each(raw::end);
        Ok(ClientEnd {
            messages: self.replies,
            latency: Some(self.latency),
            streams: self.streams,
        })
    }

    /// Sends what has paused long enough.
    fn send_due(&mut self, run: &Run) -> Result<(), Failure> {
        if run.is_ending() {
            self.pauses.clear();
        }
        let now = Instant::now();
        while let Some(&Reverse((_, index))) = self.pauses.peek().filter(|next| next.0.0 <= now) {
            self.pauses.pop();
            let connection = &mut self.connections[index];
            let number = Draw::number(index, connection.sent);
            connection.sent += 1;
            self.template.number(&mut self.message, number);
            connection.under_way.push((number, Instant::now()));
            raw::send_all(&self.streams[index], &self.message)?;
        }
        Ok(())
    }

    /// Waits for a reply or the end of a pause; gives the connections that are readable.
    fn wait(&self) -> Result<Vec<usize>, Failure> {
        let mut polled: Vec<_> = (self.streams.iter())
            .map(|stream| PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::IN))
            .collect();
        // Looks up from time to time whether the run is ending.
        let longest = Duration::from_millis(20);
        let pause = self.pauses.peek().map_or(longest, |next| {
            next.0.0.saturating_duration_since(Instant::now())
        });
        let timeout = Timespec::try_from(pause.min(longest)).ok();
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(Failure::errno("poll")(errno)),
        }
        let readable = polled.iter().enumerate();
        Ok(readable
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|(index, _)| index)
            .collect())
    }

    fn receive(&mut self, run: &Run, index: usize, buffer: &mut [u8]) -> Result<(), Failure> {
        let connection = &mut self.connections[index];
        let held = connection.tail.len();
        buffer[..held].copy_from_slice(&connection.tail);
        let Some(count) = raw::recv_now(&self.streams[index], &mut buffer[held..])? else {
            return Ok(());
        };
        let end = held + count;
        let now = Instant::now();
        let at = raw::walk(&buffer[..end], U32Be, |message| {
            let number = self.reply.check(message)?;
            let place = connection.under_way.iter().position(|(n, _)| *n == number);
            let (_, sent) = connection.under_way.swap_remove(place.ok_or_else(|| {
                Mismatch::new(format!("a reply to {number:#x}, which was not under way"))
            })?);
            self.replies += 1;
            if run.is_measured() {
                self.latency.record(now - sent);
            }
            self.pauses
                .push(Reverse((now + self.draw.pause(number), index)));
            Ok(())
        })?;
        run.counted(self.replies);
        connection.tail.clear();
        connection.tail.extend_from_slice(&buffer[at..end]);
        Ok(())
    }
}
