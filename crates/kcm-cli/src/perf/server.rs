//! The serving side of a scenario, whoever the contender is.

use std::{net::TcpStream, os::fd::OwnedFd, sync::Arc};

use kcm::{Framing, Multiplexor};

use super::{
    engine,
    failure::Failure,
    kernel::{self, Frames, KernelMux},
    kernel_serve,
    plan::Row,
    raw::{self, Replies, U32Be},
    run::{Run, Side, Task},
    service::Service,
};

/// Messages that a batch takes at most: what 64 KiB hold of 64 bytes.
const BATCH: usize = 1024;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contender {
    Tcp,
    Kcm,
    /// The kernel's KCM.
    Kernel,
}

impl Contender {
    /// For progress and errors.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "raw TCP",
            Self::Kcm => "KCM",
            Self::Kernel => "the kernel's KCM",
        }
    }
}

/// What a server has to be good at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// One connection, one message at a time.
    Single,
    /// One connection, many messages under way, all of one length.
    Pipelined,
    /// Many connections: raw TCP has as many epoll loops as KCM has sockets.
    Many(Replies),
}

/// How a server is built; each contender takes what concerns it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup<'a> {
    pub(super) contender: Contender,
    pub(super) row: &'a Row,
    pub(super) load: Load,
    /// The largest message.
    pub(super) largest_bytes: usize,
}

impl Setup<'_> {
    /// By which the contender cuts messages.
    fn framing(&self) -> &Framing {
        match self.contender {
            Contender::Tcp => &self.row.header,
            Contender::Kcm | Contender::Kernel => &self.row.framing,
        }
    }
}

/// The threads of a server.
pub(super) struct Server<S> {
    tasks: Vec<Task<S>>,
    mux: Option<Multiplexor>,
}

impl<S: Service> Server<S> {
    /// Serves these connections with a service for each thread.
    pub(super) fn start(
        run: &Arc<Run>,
        setup: &Setup<'_>,
        streams: Vec<TcpStream>,
        service: impl FnMut(usize) -> S,
    ) -> Result<Self, Failure> {
        let (tasks, mux) = match setup.contender {
            Contender::Tcp if raw::is_u32_be(setup.framing()) => {
                (start_raw(run, setup, U32Be, streams, service)?, None)
            }
            Contender::Tcp => {
                let native = raw::native(setup.framing())?;
                (start_raw(run, setup, native, streams, service)?, None)
            }
            Contender::Kcm => {
                let (tasks, mux) = start_kcm(run, setup, streams, service)?;
                (tasks, Some(mux))
            }
            Contender::Kernel => (start_kernel(run, setup, streams, service)?, None),
        };
        Ok(Self { tasks, mux })
    }

    /// Stops the threads, once their clients have closed, and gives their services back.
    pub(super) fn stop(self, run: &Run) -> Result<Vec<S>, Failure> {
        run.set_over();
        if let Some(mux) = &self.mux {
            mux.shutdown();
        }
        self.tasks.into_iter().map(|task| run.join(task)).collect()
    }
}

fn start_raw<S: Service>(
    run: &Arc<Run>,
    setup: &Setup<'_>,
    cut: impl raw::Cut,
    streams: Vec<TcpStream>,
    mut service: impl FnMut(usize) -> S,
) -> Result<Vec<Task<S>>, Failure> {
    let largest_bytes = setup.largest_bytes;
    let Load::Many(replies) = setup.load else {
        return streams
            .into_iter()
            .enumerate()
            .map(|(index, stream)| {
                let service = service(index);
                run.spawn(Side::Receiver, move |_| {
                    raw::serve_one(stream, cut, largest_bytes, service)
                })
            })
            .collect();
    };
    let mut dealt: Vec<Vec<TcpStream>> = (0..setup.row.sockets).map(|_| Vec::new()).collect();
    for (index, stream) in streams.into_iter().enumerate() {
        dealt[index % setup.row.sockets].push(stream);
    }
    dealt
        .into_iter()
        .enumerate()
        .map(|(index, streams)| {
            let service = service(index);
            run.spawn(Side::Receiver, move |_| {
                raw::serve_many(streams, cut, largest_bytes, replies, service)
            })
        })
        .collect()
}

fn start_kcm<S: Service>(
    run: &Arc<Run>,
    setup: &Setup<'_>,
    streams: Vec<TcpStream>,
    mut service: impl FnMut(usize) -> S,
) -> Result<(Vec<Task<S>>, Multiplexor), Failure> {
    let (mux, sockets) =
        engine::multiplexor(setup.framing(), setup.row.spin, streams, setup.row.sockets)?;
    let batch = setup.row.batch.then_some(BATCH);
    let tasks: Result<_, _> = sockets
        .into_iter()
        .enumerate()
        .map(|(index, socket)| {
            let service = service(index);
            run.spawn(Side::Receiver, move |_| match batch {
                Some(max) => engine::serve_batches(socket, max, service),
                None => engine::serve(socket, service),
            })
        })
        .collect();
    Ok((tasks?, mux))
}

fn start_kernel<S: Service>(
    run: &Arc<Run>,
    setup: &Setup<'_>,
    streams: Vec<TcpStream>,
    mut service: impl FnMut(usize) -> S,
) -> Result<Vec<Task<S>>, Failure> {
    let (largest_bytes, batch) = (setup.largest_bytes, setup.row.batch);
    let program = kernel::load_program(match u32::try_from(largest_bytes) {
        Ok(bytes) if setup.load == Load::Pipelined => Frames::Fixed(bytes),
        _ => Frames::U32Be,
    })?;
    if !matches!(setup.load, Load::Many(_)) {
        let mux = KernelMux::new(&program, streams, setup.row.sockets)?;
        return mux
            .sockets
            .into_iter()
            .enumerate()
            .map(|(index, socket)| {
                let service = service(index);
                run.spawn(Side::Receiver, move |run| {
                    kernel_serve::serve_one(run, &socket, largest_bytes, batch, service)
                })
            })
            .collect();
    }
    let mut workers: Vec<Vec<OwnedFd>> = (0..setup.row.sockets).map(|_| Vec::new()).collect();
    for stream in streams {
        let mux = KernelMux::new(&program, vec![stream], setup.row.sockets)?;
        for (worker, socket) in workers.iter_mut().zip(mux.sockets) {
            worker.push(socket);
        }
    }
    workers
        .into_iter()
        .enumerate()
        .map(|(index, sockets)| {
            let service = service(index);
            run.spawn(Side::Receiver, move |run| {
                kernel_serve::serve_many(run, &sockets, largest_bytes, service)
            })
        })
        .collect()
}
