//! The loads, and what they have in common: connections are made, a server is started, a client
//! drives it, the window is measured, and in the end nothing may be missing or left over.
//!
//! A scenario's file says what is special about it: its messages, what its server has to be good
//! at, what that does with a message, and the client.

mod many;
mod pipeline;
mod pipeline_rr;
mod rr;
mod work;

use std::{net::TcpStream, sync::Arc, time::Duration};

use super::{
    affinity::Pins,
    connections,
    draw::Draw,
    failure::Failure,
    plan::Row,
    run::{Counter, Run, Side},
    server::{Contender, Load, Server, Setup},
    service::Service,
    stats::{Histogram, Sample},
};
use crate::cli::ScenarioName;

/// One contender in one round of one row.
pub(super) struct Trial<'a> {
    row: &'a Row,
    contender: Contender,
    draw: Draw,
    /// How late sleeps end here, for services that sleep.
    lateness: Duration,
    run: Arc<Run>,
}

/// What a client brings home.
struct ClientEnd {
    /// Messages sent, and for each a reply where there are any.
    messages: u64,
    /// `None`: there are no replies.
    latency: Option<Histogram>,
    /// Kept open until the server has stopped; what still comes then was sent twice.
    streams: Vec<TcpStream>,
}

/// What a trial came to.
struct Outcome<S> {
    sample: Sample,
    messages: u64,
    services: Vec<S>,
}

impl<'a> Trial<'a> {
    pub(super) fn new(
        row: &'a Row,
        contender: Contender,
        pins: Pins,
        draw: Draw,
        lateness: Duration,
    ) -> Self {
        // Four workers on one processor would wait for that, not for messages.
        let pins = match row.scenario {
            ScenarioName::Work => Pins::NONE,
            _ => pins,
        };
        Self {
            row,
            contender,
            draw,
            lateness,
            run: Run::new(row.sockets, pins),
        }
    }

    /// Makes it.
    pub(super) fn measure(&self) -> Result<Sample, Failure> {
        match self.row.scenario {
            ScenarioName::Rr => rr::run(self),
            ScenarioName::RrMany => many::run_echo(self),
            ScenarioName::Drop => many::run_drop(self),
            ScenarioName::Work => work::run(self),
            ScenarioName::Pipeline => pipeline::run(self),
            ScenarioName::PipelineRr => pipeline_rr::run(self),
        }
    }

    /// From the first connection to the last thread. The server's threads get a `service` each,
    /// which may count messages where the measurement sees it; `client` gives what drives the
    /// clients' ends of the connections, on a thread of its own.
    fn run<S: Service, C>(
        &self,
        load: Load,
        largest_bytes: usize,
        mut service: impl FnMut(Arc<Counter>) -> S,
        client: impl FnOnce(Vec<TcpStream>) -> Result<C, Failure>,
    ) -> Result<Outcome<S>, Failure>
    where
        C: FnOnce(&Run) -> Result<ClientEnd, Failure> + Send + 'static,
    {
        let Self {
            row,
            contender,
            ref run,
            ..
        } = *self;
        let setup = Setup {
            contender,
            row,
            load,
            largest_bytes,
        };
        let (clients, servers) = connections::pairs(row.connections, &row.place)?;
        let server = Server::start(run, &setup, servers, |index| service(run.counter(index)))?;
        let client = run.spawn(Side::Sender, client(clients)?)?;
        let mut sample = run.measure(row.timing)?;
        let end = run.join(client)?;
        run.wait_for(end.messages)?;
        let services = server.stop(run)?;
        connections::expect_end(&end.streams)?;
        sample.latency = end.latency;
        Ok(Outcome {
            sample,
            messages: end.messages,
            services,
        })
    }
}
