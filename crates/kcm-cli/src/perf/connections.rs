//! The connections of a scenario: made before it, and looked at once more after it.

use std::{
    fs::File,
    io::{self, Read as _},
    net::{IpAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::failure::Failure;

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
        let listen = || {
            let namespace = Some(LinkNameSpaceType::Network);
            File::open(path)
                .and_then(|netns| Ok(move_into_link_name_space(netns.as_fd(), namespace)?))
                .map_err(|e| {
                    io::Error::new(e.kind(), format!("--netns {}: {e}", path.display()))
                })?;
            TcpListener::bind(address)
        };
        let listening = thread::scope(|scope| scope.spawn(listen).join());
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
    connect().map_err(|e| {
        let hint = match e.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => " (`ulimit -n` shows and raises the limit)",
            Some(libc::EADDRNOTAVAIL) => " (--address has to be one of the servers' end)",
            _ => "",
        };
        Failure::system(format!("connect {count} pairs to {}{hint}", place.address))(e)
    })
}

/// The one connection of a scenario that has one.
pub(super) fn only(streams: Vec<TcpStream>) -> Result<TcpStream, Failure> {
    let mut streams = streams.into_iter();
    streams
        .next()
        .ok_or_else(|| Failure::Stalled("no connection was made".to_owned()))
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
