//! Who is measured, behind one face.

use std::{
    io,
    net::{TcpListener, TcpStream},
    thread::JoinHandle,
};

use kcm_example_thrift::{
    generated::bench::{BenchSyncHandler, BenchSyncProcessor},
    server::{Server, Settings},
};

use crate::{case::Case, dealt, draw::Draw, tied};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Connections dealt to threads, by hand.
    Dealt,
    /// A thread for each connection, as Thrift's own server has it.
    Tied,
    /// One multiplexor; several workers may work for one connection at once.
    Kcm,
    /// One multiplexor; each connection's calls one after the other.
    KcmOrdered,
}

/// The serving side of a round.
pub(crate) enum Running {
    Threads(Vec<JoinHandle<io::Result<()>>>),
    Kcm(Server),
}

impl Contender {
    pub(crate) const ALL: [Self; 4] = [Self::Dealt, Self::Tied, Self::Kcm, Self::KcmOrdered];
    /// Those that the others are compared with.
    pub(crate) const WITHOUT_KCM: [Self; 2] = [Self::Dealt, Self::Tied];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dealt => "dealt to threads",
            Self::Tied => "a thread each",
            Self::Kcm => "KCM",
            Self::KcmOrdered => "KCM, ordered",
        }
    }

    /// Starts a server and connects to it: gives the clients' ends.
    pub(crate) fn start(
        self,
        case: &Case,
        draw: Draw,
        threads: usize,
    ) -> io::Result<(Vec<TcpStream>, Running)> {
        let (clients, servers) = pairs(case.in_flight.len())?;
        let processor = move || BenchSyncProcessor::new(Service { draw });
        let running = match self {
            Self::Dealt => {
                Running::Threads(dealt::start(servers, threads, case.is_work, processor))
            }
            Self::Tied => Running::Threads(tied::start(servers, processor)),
            Self::Kcm | Self::KcmOrdered => {
                let settings = Settings {
                    workers: threads,
                    ordered: self == Self::KcmOrdered,
                    ..Settings::default()
                };
                let server = Server::start(processor(), settings)?;
                for stream in servers {
                    server.multiplexor().attach(stream)?;
                }
                Running::Kcm(server)
            }
        };
        Ok((clients, running))
    }
}

impl Running {
    /// After the clients have closed.
    pub(crate) fn stop(self) -> io::Result<()> {
        match self {
            Self::Threads(threads) => threads.into_iter().try_for_each(|thread| {
                let result = thread.join();
                result.unwrap_or_else(|_| Err(io::Error::other("a server's thread has panicked")))
            }),
            Self::Kcm(server) => {
                drop(server);
                Ok(())
            }
        }
    }
}

/// The handler of `bench.thrift`.
struct Service {
    draw: Draw,
}

impl BenchSyncHandler for Service {
    fn handle_discard(&self, number: i64, _data: Vec<u8>) -> thrift::Result<i64> {
        Ok(number)
    }

    fn handle_work(&self, number: i64) -> thrift::Result<i64> {
        self.draw.work(number);
        Ok(number)
    }

    fn handle_echo(&self, number: i64) -> thrift::Result<i64> {
        Ok(number)
    }
}

/// Connected pairs over loopback: the clients' ends, and the servers'.
fn pairs(count: usize) -> io::Result<(Vec<TcpStream>, Vec<TcpStream>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut ends = (Vec::new(), Vec::new());
    while ends.0.len() < count {
        let client = TcpStream::connect(address)?;
        let (server, peer) = listener.accept()?;
        if peer != client.local_addr()? {
            return Err(io::Error::other("somebody else has connected"));
        }
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        ends.0.push(client);
        ends.1.push(server);
    }
    Ok(ends)
}
