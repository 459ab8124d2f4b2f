//! Where clients connect.

use std::{
    fmt, fs, io,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{fs::FileTypeExt as _, net::UnixListener},
    },
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use kcm::Stream;
use rustix::{
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt},
};

use super::{failure::Failure, inherited};

/// A client that has said nothing for this long is asked by TCP whether it is still there, 1 minute:
/// rarely enough to cost nothing.
const PROBED_AFTER: Duration = Duration::from_secs(60);
/// And asked again, until it has not answered [`PROBES`] times: it is gone 2 minutes after its last
/// word.
const PROBED_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// What `--listen` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A host and a port.
    Tcp(String),
    /// A path in the file system.
    Unix(PathBuf),
    /// Whatever is passed on.
    Systemd,
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "systemd" {
            return Ok(Self::Systemd);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                false => Ok(Self::Unix(path.into())),
                true => Err("a path is needed: unix:/run/example.sock".into()),
            };
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(
                "HOST:PORT is needed, such as 127.0.0.1:7000 or [::]:7000; or unix:PATH; or systemd"
                    .into(),
            ),
        }
    }
}

/// A listening socket; accepts without waiting.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix {
        listener: UnixListener,
        /// Made here, and removed at the end.
        path: Option<PathBuf>,
    },
}

impl Listener {
    /// All that the `--listen`s stand for. What is inherited is taken first, before other
    /// descriptors could have its numbers.
    pub(super) fn open_all(addresses: &[Address]) -> Result<Vec<Self>, Failure> {
        let is_systemd = |address: &&Address| **address == Address::Systemd;
        let mut inherited = match addresses.iter().filter(is_systemd).count() {
            0 => Vec::new(),
            1 => inherited::take().map_err(Failure::Usage)?,
            _ => {
                return Err(Failure::Usage(
                    "--listen systemd: once is enough, for all sockets that are passed on".into(),
                ));
            }
        };
        let mut listeners = Vec::new();
        for address in addresses {
            listeners.extend(Self::open(address, &mut inherited)?);
        }
        Ok(listeners)
    }

    fn open(address: &Address, inherited: &mut Vec<OwnedFd>) -> Result<Vec<Self>, Failure> {
        let opened = match address {
            Address::Tcp(host) => {
                let listener = TcpListener::bind(host.as_str())
                    .map_err(Failure::system(format_args!("--listen {host}")))?;
                vec![Self::Tcp(listener)]
            }
            Address::Unix(path) => {
                let name = format!("--listen unix:{}", path.display());
                let listener = bind_unix(path).map_err(Failure::system(name))?;
                let path = Some(path.clone());
                vec![Self::Unix { listener, path }]
            }
            Address::Systemd => {
                let adopted: Result<_, _> = inherited.drain(..).map(Self::adopt).collect();
                adopted?
            }
        };
        for listener in &opened {
            listener
                .prepare()
                .map_err(Failure::system(format_args!("--listen {listener}")))?;
        }
        Ok(opened)
    }

    fn adopt(fd: OwnedFd) -> Result<Self, Failure> {
        const WRONG: &str = "--listen systemd: a listening stream socket is needed (in the unit: \
                             ListenStream=, and Accept=no)";
        let wrong = |_| Failure::Usage(WRONG.into());
        let listening = sockopt::socket_type(&fd).map_err(wrong)? == SocketType::STREAM
            && sockopt::socket_acceptconn(&fd).map_err(wrong)?;
        match sockopt::socket_domain(&fd).map_err(wrong)? {
            AddressFamily::INET | AddressFamily::INET6 if listening => Ok(Self::Tcp(fd.into())),
            AddressFamily::UNIX if listening => Ok(Self::Unix {
                listener: fd.into(),
                path: None,
            }),
            _ => Err(Failure::Usage(WRONG.into())),
        }
    }

    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => {
                // What is accepted takes these over.
                sockopt::set_socket_keepalive(listener, true)?;
                sockopt::set_tcp_keepidle(listener, PROBED_AFTER)?;
                sockopt::set_tcp_keepintvl(listener, PROBED_EVERY)?;
                sockopt::set_tcp_keepcnt(listener, PROBES)?;
                listener.set_nonblocking(true)
            }
            Self::Unix { listener, .. } => listener.set_nonblocking(true),
        }
    }

    /// The next connection, and its peer's address.
    pub(super) fn accept(&self) -> io::Result<(Stream, String)> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept()?;
                // Replies are small; those that are queued are gathered by the multiplexor.
                let _ = stream.set_nodelay(true);
                (stream.into(), peer.to_string())
            }
            Self::Unix { listener, .. } => (listener.accept()?.0.into(), self.to_string()),
        })
    }
}

/// Binds, also where a server that is gone has left its socket.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_left_over(path) => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        result => result,
    }
}

/// Whether this is a socket that nobody listens at. (A file that is none refuses connections, too;
/// a server that has no time for them now is there nevertheless, and not waited for.)
fn is_left_over(path: &Path) -> bool {
    let refuses = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&probe, &SocketAddrUnix::new(path)?)
    };
    fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket())
        && refuses() == Err(Errno::CONNREFUSED)
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix { listener, .. } => listener.as_fd(),
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => match listener.local_addr() {
                Ok(address) => address.fmt(f),
                Err(_) => f.write_str("tcp"),
            },
            Self::Unix { listener, .. } => match listener.local_addr() {
                Ok(address) if address.as_pathname().is_some() => {
                    let path = address.as_pathname().map(|path| path.display());
                    write!(f, "unix:{}", path.expect("it was asked for"))
                }
                _ => f.write_str("unix"),
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix {
            path: Some(path), ..
        } = self
        {
            // Somebody may have removed it before.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_three_forms() {
        let parse = |text: &str| text.parse::<Address>();
        assert_eq!(parse("systemd"), Ok(Address::Systemd));
        assert_eq!(parse("unix:/a:b"), Ok(Address::Unix("/a:b".into())));
        assert_eq!(parse("[::]:0"), Ok(Address::Tcp("[::]:0".into())));
        for wrong in ["", "7000", ":7000", "host", "host:", "host:70000", "unix:"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
