//! `rr-many` and `drop`: many connections, one request at a time on each.
//!
//! One raw TCP client drives all connections for every contender, so that only the receiver
//! differs; the receiver's processor time is the figure to look at.

use std::{net::TcpStream, sync::Arc, time::Instant};

use rustix::{
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    failure::Failure,
    plan::Row,
    raw::{self, EVENTS_PER_WAIT, Replies},
    run::{ClientEnd, Run, Side, Timing},
    serve::{self, Contender, Plan, Server},
    service::{Acknowledge, Echo, Service},
    stats::{Histogram, Sample},
    verify::{NUMBER_BYTES, Template},
};

/// `rr-many`: the request comes back.
pub(super) fn run_echo(
    row: &Row,
    contender: Contender,
    run: &Arc<Run>,
    timing: Timing,
) -> Result<Sample, Failure> {
    let template = Template::with_body(&row.framing, row.size_bytes)?;
    let echo = |_| Echo {
        template: template.clone(),
    };
    measure(row, contender, run, timing, &template, &template, echo)
}

/// `drop`: the request is dropped, a short reply says so.
pub(super) fn run_drop(
    row: &Row,
    contender: Contender,
    run: &Arc<Run>,
    timing: Timing,
) -> Result<Sample, Failure> {
    let template = Template::with_body(&row.framing, row.size_bytes)?;
    let reply = Template::with_body(&row.framing, NUMBER_BYTES)?;
    let acknowledge = |_| Acknowledge {
        template: template.clone(),
        reply: reply.clone(),
    };
    measure(row, contender, run, timing, &template, &reply, acknowledge)
}

fn measure<S: Service>(
    row: &Row,
    contender: Contender,
    run: &Arc<Run>,
    timing: Timing,
    request: &Template,
    reply: &Template,
    service: impl FnMut(usize) -> S,
) -> Result<Sample, Failure> {
    let plan = Plan {
        contender,
        framing: &row.framing,
        largest_bytes: request.len(),
        pipelined: false,
        sockets: row.sockets,
        loops: Some(row.sockets),
        replies: Replies::PerBurst,
        batch: false,
        spin: false,
    };
    let (clients, servers) = serve::pairs(row.connections, &row.place)?;
    let server = Server::start(run, &plan, servers, service)?;
    let (request, reply) = (request.clone(), reply.clone());
    let client = run.spawn(Side::Sender, move |run| {
        drive(run, clients, &request, &reply)
    })?;
    let mut sample = run.measure(timing)?;
    let end = run.join(client)?;
    server.stop(run)?;
    serve::expect_end(&end.streams)?;
    sample.latency = Some(end.latency);
    Ok(sample)
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
            match recv(
                stream,
                &mut under_way.reply[under_way.held..],
                RecvFlags::DONTWAIT,
            ) {
                Ok((_, 0)) => {
                    return Err(Failure::Verification("no reply but the end".to_owned()));
                }
                Ok((_, count)) => under_way.held += count,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(errno) => return Err(Failure::errno("recv")(errno)),
            }
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
    for stream in &streams {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    Ok(ClientEnd { latency, streams })
}
