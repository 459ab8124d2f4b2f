//! Where clients connect.

use std::{
    fmt, fs, io,
    net::TcpListener,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::PathBuf,
    str::FromStr,
};

use kcm::Stream;
use rustix::net::{AddressFamily, SocketType, sockopt};

use super::{failure::Failure, inherited};

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
    /// All that one `--listen` stands for.
    pub(super) fn open(address: &Address) -> Result<Vec<Self>, Failure> {
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
                let inherited = inherited::take().map_err(Failure::Usage)?;
                let adopted: Result<_, _> = inherited.into_iter().map(Self::adopt).collect();
                adopted?
            }
        };
        for listener in &opened {
            listener
                .set_nonblocking()
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

    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => listener.set_nonblocking(true),
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
fn bind_unix(path: &PathBuf) -> io::Result<UnixListener> {
    let error = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        result => return result,
    };
    match UnixStream::connect(path) {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        _ => Err(error),
    }
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
