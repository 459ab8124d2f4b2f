//! `pipeline-rr`: many small requests under way on one connection, with short replies.
//!
//! The client is the same for all contenders: for each burst of replies it sends as many new
//! requests, in one write. Raw TCP's server gathers its replies in the same way.

use std::{net::TcpStream, time::Instant};

use super::{ClientEnd, Trial};
use crate::perf::{
    connections,
    failure::Failure,
    raw::{self, U32Be},
    run::Run,
    server::Load,
    service::Acknowledge,
    stats::{Histogram, Sample},
    verify::{NUMBER_BYTES, Template},
};

/// Requests under way: as many as a byte can number.
const OUTSTANDING: usize = 256;

pub(super) fn run(trial: &Trial<'_>) -> Result<Sample, Failure> {
    let template = Template::with_length(&trial.row.framing, trial.row.size_bytes)?;
    let reply = Template::with_body(&trial.row.framing, NUMBER_BYTES)?;
    let outcome = trial.run(
        Load::Pipelined,
        template.len(),
        |_| Acknowledge {
            template: template.clone(),
            reply: reply.clone(),
        },
        |streams| {
            let stream = connections::only(streams)?;
            let (template, reply) = (template.clone(), reply.clone());
            Ok(move |run: &Run| drive(run, stream, &template, &reply))
        },
    )?;
    Ok(outcome.sample)
}

fn drive(
    run: &Run,
    stream: TcpStream,
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
        let end = held + raw::recv_some(&stream, &mut buffer[held..])?;
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
    raw::end(&stream);
    Ok(ClientEnd {
        messages: next_reply,
        latency: Some(latency),
        streams: vec![stream],
    })
}

#[inline]
fn slot(number: u64) -> usize {
    usize::from(number.to_le_bytes()[0])
}
