//! `rr`: one connection, one request at a time, the contender at both ends.

use std::{io::Read as _, net::TcpStream, sync::Arc, time::Instant};

use kcm::Framing;

use super::{
    engine,
    failure::Failure,
    kernel::{self, Frames, KernelMux},
    plan::Row,
    raw::{self, Cut as _, Replies, U32Be},
    run::{ClientEnd, Run, Side, Timing},
    serve::{self, Contender, Plan, Server},
    service::Echo,
    stats::{Histogram, Sample},
    verify::{Mismatch, Template},
};

pub(super) fn run(
    row: &Row,
    contender: Contender,
    run: &Arc<Run>,
    timing: Timing,
) -> Result<Sample, Failure> {
    let template = Template::with_body(&row.framing, row.size_bytes)?;
    let plan = Plan {
        contender,
        framing: &row.framing,
        largest_bytes: template.len(),
        pipelined: false,
        sockets: row.sockets,
        loops: None,
        replies: Replies::PerBurst,
        batch: false,
        spin: row.spin,
    };
    let (clients, servers) = serve::pairs(1, &row.place)?;
    let server = Server::start(run, &plan, servers, |_| Echo {
        template: template.clone(),
    })?;
    let client = client(contender, &row.framing, row.spin, clients, template.len())?;
    let client = run.spawn(Side::Sender, move |run| drive(run, client, &template))?;
    let mut sample = run.measure(timing)?;
    let end = run.join(client)?;
    server.stop(run)?;
    serve::expect_end(&end.streams)?;
    sample.latency = Some(end.latency);
    Ok(sample)
}

enum Client {
    Tcp { stream: TcpStream, buffer: Vec<u8> },
    Kcm(Box<engine::Client>),
    Kernel { mux: KernelMux, buffer: Vec<u8> },
}

fn client(
    contender: Contender,
    framing: &Framing,
    spin: bool,
    streams: Vec<TcpStream>,
    largest_bytes: usize,
) -> Result<Client, Failure> {
    let buffer = raw::buffer_for(largest_bytes);
    let mut streams = streams;
    match contender {
        Contender::Kernel => Ok(Client::Kernel {
            mux: KernelMux::new(&kernel::load_program(Frames::U32Be)?, streams, 1)?,
            buffer,
        }),
        contender => {
            let stream = streams
                .pop()
                .ok_or_else(|| Failure::Stalled("no connection was made".to_owned()))?;
            Ok(match contender {
                Contender::Kcm => {
                    Client::Kcm(Box::new(engine::Client::new(framing, spin, stream)?))
                }
                _ => Client::Tcp { stream, buffer },
            })
        }
    }
}

fn drive(run: &Run, client: Client, template: &Template) -> Result<ClientEnd, Failure> {
    let mut streams = Vec::new();
    let latency = match client {
        Client::Tcp { stream, mut buffer } => {
            let latency = closed_loop(run, template, |request, check| {
                exchange_raw(&stream, &mut buffer, request, check)
            })?;
            let _ = stream.shutdown(std::net::Shutdown::Write);
            streams.push(stream);
            latency
        }
        Client::Kcm(mut client) => {
            let latency = closed_loop(run, template, |request, check| {
                client.exchange(request, check)
            })?;
            client.close();
            latency
        }
        Client::Kernel { mux, mut buffer } => {
            let socket = &mux.sockets[0];
            closed_loop(run, template, |request, check| {
                kernel::send_one(socket, request)?;
                loop {
                    if let Some(count) = kernel::recv_one(socket, &mut buffer)? {
                        return Ok(check(&buffer[..count])?);
                    }
                }
            })?
        }
    };
    Ok(ClientEnd { latency, streams })
}

/// Checks one reply.
type Check<'a> = &'a dyn Fn(&[u8]) -> Result<(), Mismatch>;

fn closed_loop(
    run: &Run,
    template: &Template,
    mut exchange: impl FnMut(&[u8], Check<'_>) -> Result<(), Failure>,
) -> Result<Histogram, Failure> {
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
    Ok(latency)
}

fn exchange_raw(
    mut stream: &TcpStream,
    buffer: &mut [u8],
    request: &[u8],
    check: Check<'_>,
) -> Result<(), Failure> {
    raw::send_all(stream, request)?;
    let mut held = 0;
    loop {
        match stream.read(&mut buffer[held..]) {
            Ok(0) => return Err(Failure::Verification("no reply but the end".to_owned())),
            Ok(count) => held += count,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Failure::system("recv")(e)),
        }
        if let Some(len) = U32Be.cut(&buffer[..held])?
            && held >= len
        {
            // One request, one reply: whatever is behind it belongs to nobody.
            return Ok(check(&buffer[..held])?);
        }
    }
}
