//! `rr`: one connection, one request at a time, the contender at both ends.

use std::{net::TcpStream, time::Instant};

use super::{ClientEnd, Trial};
use crate::perf::{
    connections, engine,
    failure::Failure,
    kernel::{self, Frames, KernelMux},
    plan::Row,
    raw::{self, Cut as _, U32Be},
    run::Run,
    server::{Contender, Load},
    service::Echo,
    stats::{Histogram, Sample},
    verify::{Mismatch, Template},
};

pub(super) fn run(trial: &Trial<'_>) -> Result<Sample, Failure> {
    let template = Template::with_body(&trial.row.framing, trial.row.size_bytes)?;
    let outcome = trial.run(
        Load::Single,
        template.len(),
        |_| Echo {
            template: template.clone(),
        },
        |streams| {
            let client = Client::new(trial.contender, trial.row, streams, template.len())?;
            let template = template.clone();
            Ok(move |run: &Run| client.drive(run, &template))
        },
    )?;
    Ok(outcome.sample)
}

enum Client {
    Tcp { stream: TcpStream, buffer: Vec<u8> },
    Kcm(Box<engine::Client>),
    Kernel { mux: KernelMux, buffer: Vec<u8> },
}

impl Client {
    fn new(
        contender: Contender,
        row: &Row,
        streams: Vec<TcpStream>,
        largest_bytes: usize,
    ) -> Result<Self, Failure> {
        let buffer = raw::buffer_for(largest_bytes);
        Ok(match contender {
            Contender::Tcp => Self::Tcp {
                stream: connections::only(streams)?,
                buffer,
            },
            Contender::Kcm => {
                let stream = connections::only(streams)?;
                let client = engine::Client::new(&row.framing, row.spin, stream)?;
                Self::Kcm(Box::new(client))
            }
            Contender::Kernel => Self::Kernel {
                mux: KernelMux::new(&kernel::load_program(Frames::U32Be)?, streams, 1)?,
                buffer,
            },
        })
    }

    fn drive(self, run: &Run, template: &Template) -> Result<ClientEnd, Failure> {
        match self {
            Self::Tcp { stream, mut buffer } => {
                let mut end = closed_loop(run, template, |request, check| {
                    exchange_raw(&stream, &mut buffer, request, check)
                })?;
                raw::end(&stream);
                end.streams.push(stream);
                Ok(end)
            }
            Self::Kcm(mut client) => {
                let end = closed_loop(run, template, |request, check| {
                    client.exchange(request, check)
                })?;
                client.close();
                Ok(end)
            }
            Self::Kernel { mux, mut buffer } => {
                let socket = &mux.sockets[0];
                closed_loop(run, template, |request, check| {
                    kernel::send_one(socket, request)?;
                    loop {
                        if let Some(count) = kernel::recv_one(socket, &mut buffer)? {
                            return Ok(check(&buffer[..count])?);
                        }
                    }
                })
            }
        }
    }
}

/// Checks one reply.
type Check<'a> = &'a dyn Fn(&[u8]) -> Result<(), Mismatch>;

fn closed_loop(
    run: &Run,
    template: &Template,
    mut exchange: impl FnMut(&[u8], Check<'_>) -> Result<(), Failure>,
) -> Result<ClientEnd, Failure> {
    let mut latency = Histogram::new();
    let mut request = template.bytes().to_vec();
    let mut number = 0;
    let mut sent = Instant::now();
    while !run.is_ending() {
        template.number(&mut request, number);
        exchange(&request, &|reply| template.check_numbered(reply, number))?;
        // The end of this request is the beginning of the next.
        let now = Instant::now();
        if run.is_measured() {
            latency.record(now - sent);
        }
        sent = now;
        number += 1;
        run.counted(number);
    }
    Ok(ClientEnd {
        messages: number,
        latency: Some(latency),
        streams: Vec::new(),
    })
}

fn exchange_raw(
    stream: &TcpStream,
    buffer: &mut [u8],
    request: &[u8],
    check: Check<'_>,
) -> Result<(), Failure> {
    raw::send_all(stream, request)?;
    let mut held = 0;
    loop {
        held += raw::recv_some(stream, &mut buffer[held..])?;
        if let Some(len) = U32Be.cut(&buffer[..held])?
            && held >= len
        {
            // One request, one reply: whatever is behind it belongs to nobody.
            return Ok(check(&buffer[..held])?);
        }
    }
}
