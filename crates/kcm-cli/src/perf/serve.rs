//! The serving side of a scenario, whoever the contender is.

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
    thread,
    time::Duration,
};

use kcm::{Framing, Multiplexor};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{
    engine,
    failure::Failure,
    kernel::{self, Frames, KernelMux},
    kernel_serve,
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

/// How a server is built; each contender takes what concerns it.
#[derive(Clone, Debug)]
pub(super) struct Plan<'a> {
    pub(super) contender: Contender,
    pub(super) framing: &'a Framing,
    /// The largest message.
    pub(super) largest_bytes: usize,
    /// Whether several messages may be under way at once, all of that length.
    pub(super) pipelined: bool,
    /// KCM: sockets with a thread each.
    pub(super) sockets: usize,
    /// Raw TCP: threads with an epoll loop each; `None`: one blocking thread.
    pub(super) loops: Option<usize>,
    pub(super) replies: Replies,
    /// KCM: several messages a call.
    pub(super) batch: bool,
    /// KCM: spin before sleeping.
    pub(super) spin: bool,
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
        plan: &Plan<'_>,
        streams: Vec<TcpStream>,
        service: impl FnMut(usize) -> S,
    ) -> Result<Self, Failure> {
        let (tasks, mux) = match plan.contender {
            Contender::Tcp if raw::is_u32_be(plan.framing) => {
                (start_raw(run, plan, U32Be, streams, service)?, None)
            }
            Contender::Tcp => {
                let native = raw::native(plan.framing)?;
                (start_raw(run, plan, native, streams, service)?, None)
            }
            Contender::Kcm => {
                let (tasks, mux) = start_kcm(run, plan, streams, service)?;
                (tasks, Some(mux))
            }
            Contender::Kernel => (start_kernel(run, plan, streams, service)?, None),
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
    plan: &Plan<'_>,
    cut: impl raw::Cut,
    streams: Vec<TcpStream>,
    mut service: impl FnMut(usize) -> S,
) -> Result<Vec<Task<S>>, Failure> {
    let (largest_bytes, replies) = (plan.largest_bytes, plan.replies);
    let Some(loops) = plan.loops else {
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
    let mut dealt: Vec<Vec<TcpStream>> = (0..loops).map(|_| Vec::new()).collect();
    for (index, stream) in streams.into_iter().enumerate() {
        dealt[index % loops].push(stream);
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
    plan: &Plan<'_>,
    streams: Vec<TcpStream>,
    mut service: impl FnMut(usize) -> S,
) -> Result<(Vec<Task<S>>, Multiplexor), Failure> {
    let (mux, sockets) = engine::multiplexor(plan.framing, plan.spin, streams, plan.sockets)?;
    let batch = plan.batch.then_some(BATCH);
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
    plan: &Plan<'_>,
    streams: Vec<TcpStream>,
    mut service: impl FnMut(usize) -> S,
) -> Result<Vec<Task<S>>, Failure> {
    let (largest_bytes, batch) = (plan.largest_bytes, plan.batch);
    let program = kernel::load_program(match u32::try_from(largest_bytes) {
        Ok(bytes) if plan.pipelined => Frames::Fixed(bytes),
        _ => Frames::U32Be,
    })?;
    if plan.loops.is_none() {
        let mux = KernelMux::new(&program, streams, plan.sockets)?;
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
    let mut workers: Vec<Vec<OwnedFd>> = (0..plan.sockets).map(|_| Vec::new()).collect();
    for stream in streams {
        let mux = KernelMux::new(&program, vec![stream], plan.sockets)?;
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

/// Where the servers' ends of connections are made.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) address: IpAddr,
    /// The network namespace; `None`: this one.
    pub(super) netns: Option<PathBuf>,
}

impl Place {
    /// A socket belongs for life to the namespace of the thread that made it, and one that is
    /// accepted to that of its listener. So one short-lived thread moves, and nobody else.
    fn listen(&self) -> io::Result<TcpListener> {
        let address = (self.address, 0);
        let Some(path) = &self.netns else {
            return TcpListener::bind(address);
        };
        let netns = File::open(path)?;
        let listen = move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpListener::bind(address)
        };
        let listening = thread::spawn(listen).join();
        listening.unwrap_or_else(|_| Err(io::Error::other("the thread that listens has panicked")))
    }
}

/// Connected pairs: the clients' ends, and the servers'.
pub(super) fn pairs(
    count: usize,
    place: &Place,
) -> Result<(Vec<TcpStream>, Vec<TcpStream>), Failure> {
    let connect = || -> io::Result<_> {
        let listener = place.listen()?;
        let address = listener.local_addr()?;
        let mut ends = (Vec::with_capacity(count), Vec::with_capacity(count));
        while ends.0.len() < count {
            let client = TcpStream::connect(address)?;
            let own = client.local_addr()?;
            // Somebody else may have found the port.
            let server = loop {
                let (server, peer) = listener.accept()?;
                if peer == own {
                    break server;
                }
            };
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            ends.0.push(client);
            ends.1.push(server);
        }
        Ok(ends)
    };
    connect().map_err(Failure::system(format!(
        "connect {count} pairs to {} (a limit of open files? see `ulimit -n`)",
        place.address
    )))
}

/// Checks that nothing more came than was asked for; the server has closed the other ends.
pub(super) fn expect_end(streams: &[TcpStream]) -> Result<(), Failure> {
    for mut stream in streams {
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .map_err(Failure::system("SO_RCVTIMEO"))?;
        match stream.read(&mut [0]) {
            Ok(0) => {}
            Ok(_) => {
                return Err(Failure::Verification(
                    "a reply came that nobody asked for: one was sent twice".to_owned(),
                ));
            }
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
            Err(e) => return Err(Failure::system("wait for the server to close")(e)),
        }
    }
    Ok(())
}
