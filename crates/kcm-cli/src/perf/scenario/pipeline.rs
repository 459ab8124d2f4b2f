//! `pipeline`: one way, small messages as fast as they go, to one or more sockets.
//!
//! The sender is the same for all contenders: raw TCP, writes of 64 KiB. Raw TCP's receiver is
//! always one thread: more cannot read one stream.

use std::net::TcpStream;

use super::{ClientEnd, Trial};
use crate::perf::{
    connections,
    failure::Failure,
    raw::{self, BURST_BYTES},
    run::Run,
    server::{Contender, Load},
    service::{Sink, Tally},
    stats::Sample,
    verify::Template,
};

pub(super) fn run(trial: &Trial<'_>) -> Result<Sample, Failure> {
    let template = Template::with_length(&trial.row.header, trial.row.size_bytes)?;
    let alone = trial.row.sockets == 1 || trial.contender == Contender::Tcp;
    let outcome = trial.run(
        Load::Pipelined,
        template.len(),
        |counter| Sink::new(counter, template.clone(), alone),
        |streams| {
            let (stream, template) = (connections::only(streams)?, template.clone());
            Ok(move |run: &Run| send(run, stream, &template))
        },
    )?;
    let tallies = outcome.services.iter().map(Sink::tally);
    let (sent, received) = (
        outcome.messages,
        tallies.fold(Tally::default(), Tally::merge),
    );
    if received != Tally::of_first(sent) {
        return Err(Failure::Verification(format!(
            "{} messages received of {sent}, some lost or doubled",
            received.messages()
        )));
    }
    Ok(outcome.sample)
}

/// Sends numbered messages until the run ends.
fn send(run: &Run, stream: TcpStream, template: &Template) -> Result<ClientEnd, Failure> {
    let each = template.len();
    let mut burst = template.bytes().repeat((BURST_BYTES / each).max(1));
    let mut number = 0;
    while !run.is_ending() {
        for message in burst.chunks_exact_mut(each) {
            template.number(message, number);
            number += 1;
        }
        raw::send_all(&stream, &burst)?;
    }
    raw::end(&stream);
    Ok(ClientEnd {
        messages: number,
        latency: None,
        streams: vec![stream],
    })
}
