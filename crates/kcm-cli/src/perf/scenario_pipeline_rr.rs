//! `pipeline-rr`: many small requests under way on one connection, with short replies.
//!
//! The client is the same for all contenders: for each burst of replies it sends as many new
//! requests, in one write. Raw TCP's server gathers its replies in the same way.

use std::{
    io::{self, Read as _},
    net::TcpStream,
    sync::Arc,
    time::Instant,
};

use super::{
    failure::Failure,
    plan::Row,
    raw::{self, Replies, U32Be},
    run::{ClientEnd, Run, Side, Timing},
    serve::{self, Contender, Plan, Server},
    service::Acknowledge,
    stats::{Histogram, Sample},
    verify::{NUMBER_BYTES, Template},
};

/// Requests under way: as many as a byte can number.
const OUTSTANDING: usize = 256;

pub(super) fn run(
    row: &Row,
    contender: Contender,
    run: &Arc<Run>,
    timing: Timing,
) -> Result<Sample, Failure> {
    let template = Template::with_length(&row.framing, row.size_bytes)?;
    let reply = Template::with_body(&row.framing, NUMBER_BYTES)?;
    let plan = Plan {
        contender,
        framing: &row.framing,
        largest_bytes: template.len(),
        pipelined: true,
        sockets: row.sockets,
        loops: None,
        replies: Replies::PerBurst,
        batch: row.batch,
        spin: false,
    };
    let (mut clients, servers) = serve::pairs(1, &row.place)?;
    let server = Server::start(run, &plan, servers, |_| Acknowledge {
        template: template.clone(),
        reply: reply.clone(),
    })?;
    let stream = clients.remove(0);
    let client = run.spawn(Side::Sender, move |run| {
        drive(run, stream, &template, &reply)
    })?;
    let mut sample = run.measure(timing)?;
    let end = run.join(client)?;
    server.stop(run)?;
    serve::expect_end(&end.streams)?;
    sample.latency = Some(end.latency);
    Ok(sample)
}

fn drive(
    run: &Run,
    mut stream: TcpStream,
    request: &Template,
    reply: &Template,
) -> Result<ClientEnd, Failure> {
    let mut latency = Histogram::new();
    let mut buffer = raw::buffer_for(reply.len());
    let mut requests = request.bytes().repeat(OUTSTANDING);
    let mut sent = [Instant::now(); OUTSTANDING];
    let (mut next_request, mut next_reply) = (0_u64, 0_u64);
    let (mut held, mut room) = (0, OUTSTANDING);
    loop {
        if !run.is_ending() {
            let now = Instant::now();
            let burst = &mut requests[..room * request.len()];
            for message in burst.chunks_exact_mut(request.len()) {
                request.number(message, next_request);
                sent[slot(next_request)] = now;
                next_request += 1;
            }
            raw::send_all(&stream, burst)?;
        } else if next_reply == next_request {
            break;
        }
        let end = match stream.read(&mut buffer[held..]) {
            Ok(0) => return Err(Failure::Verification("no reply but the end".to_owned())),
            Ok(count) => held + count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => held,
            Err(e) => return Err(Failure::system("recv")(e)),
        };
        let now = Instant::now();
        let measured = run.is_measured();
        room = 0;
        let at = raw::walk(&buffer[..end], U32Be, |message| {
            reply.check_numbered(message, next_reply)?;
            if measured {
                latency.record(now - sent[slot(next_reply)]);
            }
            next_reply += 1;
            room += 1;
            Ok(())
        })?;
        run.counted(next_reply);
        buffer.copy_within(at..end, 0);
        held = end - at;
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    Ok(ClientEnd {
        latency,
        streams: vec![stream],
    })
}

#[inline]
fn slot(number: u64) -> usize {
    usize::from(number.to_le_bytes()[0])
}
