//! `rr-many` and `drop`: many connections, one request at a time on each.
//!
//! One raw TCP client drives all connections for every contender, so that only the receiver
//! differs; the receiver's processor time is the figure to look at.

use std::{net::TcpStream, time::Instant};

use super::{ClientEnd, Trial};
use crate::perf::{
    failure::Failure,
    raw::{self, EVENTS_PER_WAIT, Replies},
    run::Run,
    server::Load,
    service::{Acknowledge, Echo, Service},
    stats::{Histogram, Sample},
    verify::{NUMBER_BYTES, Template},
};

/// `rr-many`: the request comes back.
pub(super) fn run_echo(trial: &Trial<'_>) -> Result<Sample, Failure> {
    let template = Template::with_body(&trial.row.framing, trial.row.size_bytes)?;
    let echo = || Echo {
        template: template.clone(),
    };
    run(trial, &template, &template, echo)
}

/// `drop`: the request is dropped, a short reply says so.
pub(super) fn run_drop(trial: &Trial<'_>) -> Result<Sample, Failure> {
    let template = Template::with_body(&trial.row.framing, trial.row.size_bytes)?;
    let reply = Template::with_body(&trial.row.framing, NUMBER_BYTES)?;
    let acknowledge = || Acknowledge {
        template: template.clone(),
        reply: reply.clone(),
    };
    run(trial, &template, &reply, acknowledge)
}

fn run<S: Service>(
    trial: &Trial<'_>,
    request: &Template,
    reply: &Template,
    service: impl Fn() -> S,
) -> Result<Sample, Failure> {
    let load = Load::Many(Replies::PerBurst);
    let outcome = trial.run(
        load,
        request.len(),
        |_| service(),
        |streams| {
            let (request, reply) = (request.clone(), reply.clone());
            Ok(move |run: &Run| drive(run, streams, &request, &reply))
        },
    )?;
    Ok(outcome.sample)
}

/// One connection's request under way.
struct UnderWay {
    number: u64,
    sent: Instant,
    /// As much of the reply as has come.
    reply: Vec<u8>,
    held: usize,
}

fn drive(
    run: &Run,
    streams: Vec<TcpStream>,
    request: &Template,
    reply: &Template,
) -> Result<ClientEnd, Failure> {
    let poll = raw::epoll_of(&streams)?;
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut latency = Histogram::new();
    let mut message = request.bytes().to_vec();
    let mut all = Vec::with_capacity(streams.len());
    for (index, stream) in streams.iter().enumerate() {
        // Numbers of different connections differ, so that a reply gone astray shows.
        let under_way = UnderWay {
            number: (index as u64) << 40 | index as u64,
            sent: Instant::now(),
            reply: vec![0; reply.len()],
            held: 0,
        };
        request.number(&mut message, under_way.number);
        raw::send_all(stream, &message)?;
        all.push(under_way);
    }
    let (mut open, mut replies) = (streams.len(), 0);
    while open > 0 {
        raw::wait(&poll, &mut events)?;
        for (index, _) in events.drain(..).map(raw::index_and_flags) {
            let (stream, under_way) = (&streams[index], &mut all[index]);
            let room = &mut under_way.reply[under_way.held..];
            let Some(count) = raw::recv_now(stream, room)? else {
                continue;
            };
            under_way.held += count;
            // Another event tells of the rest, except when a large reply came while we read.
            if under_way.held < under_way.reply.len() {
                continue;
            }
            reply.check_numbered(&under_way.reply, under_way.number)?;
            let now = Instant::now();
            if run.is_measured() {
                latency.record(now - under_way.sent);
            }
            replies += 1;
            run.counted(replies);
            if run.is_ending() {
                open -= 1;
                continue;
            }
            under_way.held = 0;
            under_way.number += 1;
            under_way.sent = now;
            request.number(&mut message, under_way.number);
            raw::send_all(stream, &message)?;
        }
    }
    streams.iter().for_each(raw::end);
    Ok(ClientEnd {
        messages: replies,
        latency: Some(latency),
        streams,
    })
}
