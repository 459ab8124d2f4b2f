//! `pipeline`: one way, small messages as fast as they go, to one or more sockets.
//!
//! The sender is the same for all contenders: raw TCP, writes of 64 KiB. Raw TCP's receiver is
//! always one thread: more cannot read one stream.

use std::{net::TcpStream, sync::Arc};

use super::{
    failure::Failure,
    plan::Row,
    raw::{self, BURST_BYTES, Replies},
    run::{Run, Side, Timing},
    serve::{self, Contender, Plan, Server},
    service::{Sink, Tally},
    stats::Sample,
    verify::Template,
};

pub(super) fn run(
    row: &Row,
    contender: Contender,
    run: &Arc<Run>,
    timing: Timing,
) -> Result<Sample, Failure> {
    let template = Template::with_length(&row.header, row.size_bytes)?;
    let plan = Plan {
        contender,
        framing: match contender {
            Contender::Tcp => &row.header,
            Contender::Kcm | Contender::Kernel => &row.framing,
        },
        largest_bytes: template.len(),
        pipelined: true,
        sockets: row.sockets,
        loops: None,
        replies: Replies::PerBurst,
        batch: row.batch,
        spin: false,
    };
    let alone = row.sockets == 1 || matches!(contender, Contender::Tcp);
    let (mut clients, servers) = serve::pairs(1, &row.place)?;
    let server = Server::start(run, &plan, servers, |index| {
        Sink::new(run.counter(index), template.clone(), alone)
    })?;
    let stream = clients.remove(0);
    let sender = run.spawn(Side::Sender, move |run| send(run, &stream, &template))?;
    let sample = run.measure(timing)?;
    let sent = run.join(sender)?;
    run.wait_for(sent)?;
    let sinks = server.stop(run)?;
    let received = (sinks.iter().map(Sink::tally)).fold(Tally::default(), Tally::merge);
    if received != Tally::of_first(sent) {
        return Err(Failure::Verification(format!(
            "{} messages received of {sent}, some lost or doubled",
            received.messages()
        )));
    }
    Ok(sample)
}

/// Sends numbered messages until the run ends, then closes; gives their number.
fn send(run: &Run, stream: &TcpStream, template: &Template) -> Result<u64, Failure> {
    let each = template.len();
    let mut burst = template.bytes().repeat((BURST_BYTES / each).max(1));
    let mut number = 0;
    while !run.is_ending() {
        for message in burst.chunks_exact_mut(each) {
            template.number(message, number);
            number += 1;
        }
        raw::send_all(stream, &burst)?;
    }
    let _ = stream.shutdown(std::net::Shutdown::Write);
    Ok(number)
}
