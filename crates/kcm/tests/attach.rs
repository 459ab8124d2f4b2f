//! Attaching: what is refused and with which errno, what can carry messages, and that nothing of it
//! is left when all is closed.

mod common;

use std::{
    fs::File,
    io::{self, IoSlice, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::{UnixDatagram, UnixListener, UnixStream},
    },
    thread,
};

use common::*;
use kcm::{
    AttachError, Connection, EndReason, Error, Framing, Message, Multiplexor, Socket, Stream,
    Transport,
};
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType as Kind},
    process::{Resource, Rlimit, getrlimit, setrlimit},
};

/// The error of an attempt that must fail, and the stream that comes back.
#[track_caller]
fn refused(mux: &Multiplexor, stream: impl Into<Stream>) -> (i32, OwnedFd) {
    match mux.attach(stream) {
        Ok(id) => panic!("attached as {id}"),
        Err(AttachError { error, stream }) => {
            (error.errno(), stream.into_fd().expect("a descriptor"))
        }
    }
}

fn unconnected(family: AddressFamily, kind: Kind) -> OwnedFd {
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).expect("a socket")
}

fn set_nonblocking(fd: &OwnedFd) {
    rustix::io::ioctl_fionbio(fd, true).expect("non-blocking");
}

#[test]
fn what_is_not_a_socket_is_refused_with_enoent() {
    bounded(20, || {
        let mux = mux();
        let (reader, writer) = io::pipe().expect("a pipe");
        let (errno, reader) = refused(&mux, OwnedFd::from(reader));
        assert_eq!(errno, libc::ENOENT);
        write(writer, b"still a pipe");
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).expect("text");
        assert_eq!(text, "still a pipe");

        let file = File::open("/proc/self/exe").expect("this program");
        let (errno, file) = refused(&mux, OwnedFd::from(file));
        assert_eq!(errno, libc::ENOENT);
        let mut magic = [0; 4];
        File::from(file).read_exact(&mut magic).expect("its start");
        assert_eq!(&magic, b"\x7fELF");
    });
}

#[test]
fn sockets_without_a_connected_stream_are_refused_with_eopnotsupp() {
    bounded(20, || {
        let mux = mux();
        let udp = UdpSocket::bind("127.0.0.1:0").expect("a UDP socket");
        udp.connect(udp.local_addr().expect("address")).expect("ok");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let (datagram, _peer) = UnixDatagram::pair().expect("a pair");
        let path = std::env::temp_dir().join(format!("kcm-attach-{}", std::process::id()));
        let unix_listener = UnixListener::bind(&path).expect("a listener");
        std::fs::remove_file(path).expect("removed");
        let cases: [(&str, OwnedFd); 8] = [
            ("UDP", udp.into()),
            ("Unix datagrams", datagram.into()),
            ("listening TCP", listener.into()),
            ("listening Unix", unix_listener.into()),
            ("new TCP", unconnected(AddressFamily::INET, Kind::STREAM)),
            ("new TCPv6", unconnected(AddressFamily::INET6, Kind::STREAM)),
            ("new Unix", unconnected(AddressFamily::UNIX, Kind::STREAM)),
            (
                "seqpacket",
                unconnected(AddressFamily::UNIX, Kind::SEQPACKET),
            ),
        ];
        for (what, fd) in cases {
            assert_eq!(refused(&mux, fd).0, libc::EOPNOTSUPP, "{what}");
        }
        // Several paths under one stream: the kernel's KCM does not take it either.
        let mptcp = Some(rustix::net::ipproto::MPTCP);
        match rustix::net::socket_with(
            AddressFamily::INET,
            Kind::STREAM,
            SocketFlags::CLOEXEC,
            mptcp,
        ) {
            Ok(fd) => assert_eq!(refused(&mux, fd).0, libc::EOPNOTSUPP, "MPTCP"),
            Err(e) => skipped(&format!("MPTCP: {e}")),
        }
        // One that nobody has answered, known before it is attached.
        let port = TcpListener::bind("127.0.0.1:0").expect("a port");
        let nobody = port.local_addr().expect("its address");
        drop(port);
        let refused_peer = unconnected(AddressFamily::INET, Kind::STREAM);
        set_nonblocking(&refused_peer);
        // (Told at once, or when it is looked at.)
        let _ = rustix::net::connect(&refused_peer, &nobody);
        assert_eq!(refused(&mux, refused_peer).0, libc::EOPNOTSUPP, "refused");
        assert!(mux.connections().is_empty());
    });
}

#[test]
fn a_refused_stream_is_still_usable() {
    bounded(20, || {
        let (mux, other) = (mux(), mux());
        let (stream, mut peer) = tcp_pair();
        let twin = stream.try_clone().expect("dup");
        let id = mux.attach(stream).expect("attached");
        // Through a second descriptor, to the same and to another multiplexor.
        let (errno, twin) = refused(&mux, twin);
        assert_eq!(errno, libc::EALREADY);
        let (errno, twin) = refused(&other, twin);
        assert_eq!(errno, libc::EALREADY);
        let duplicate = twin.try_clone().expect("dup");
        assert_eq!(refused(&other, duplicate).0, libc::EALREADY);

        // Neither attachment nor stream took harm.
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &message(b"in"));
        assert_eq!(soon(&mut socket)[..], message(b"in"));
        write(TcpStream::from(twin), &message(b"out"));
        assert_eq!(read_message(&mut peer).expect("a message"), message(b"out"));

        // Once unattached it may go anywhere.
        let (stream, rest) = mux.unattach(id).expect("unattached");
        assert!(rest.is_empty());
        let id = other.attach(stream).expect("attached elsewhere");
        let mut socket = other.socket().expect("a socket");
        write(&peer, &message(b"again"));
        assert_eq!(soon(&mut socket)[..], message(b"again"));
        let (stream, _) = other.unattach(id).expect("unattached");
        mux.attach(stream).expect("attached where it was at first");
    });
}

/// One message each way over a stream attached here.
fn exchange(mux: &Multiplexor, stream: impl Into<Stream>, mut peer: impl Read + Write) {
    let id = mux.attach(stream).expect("attached");
    let mut socket = mux.socket().expect("a socket");
    for len in [4, 16, 1000, 100_000] {
        let request = vec![7; len];
        let request = message(&request);
        write(&mut peer, &request);
        let got = soon(&mut socket);
        assert_eq!(got[..], request);
        assert_eq!(got.connection(), id);
        got.reply(&got).expect("replied");
        assert_eq!(read_message(&mut peer).expect("the reply"), request);
    }
    mux.unattach(id).expect("unattached");
}

#[test]
fn tcp_of_both_families_and_unix_streams() {
    bounded(20, || {
        let mux = mux();
        let (stream, peer) = tcp_pair();
        exchange(&mux, stream, peer);
        if TcpListener::bind("[::1]:0").is_ok() {
            let (stream, peer) = tcp_pair_at("[::1]:0");
            let expected = peer.local_addr().expect("address");
            let id = mux.attach(stream).expect("attached");
            let connection = mux.connection(id).expect("it is there");
            assert_eq!(connection.peer_addr().expect("address"), expected);
            let (stream, _) = mux.unattach(id).expect("unattached");
            exchange(&mux, stream, peer);
        } else {
            skipped("no IPv6 loopback here");
        }
        let (stream, peer) = UnixStream::pair().expect("a pair");
        exchange(&mux, stream, peer);
        let (stream, _peer) = UnixStream::pair().expect("a pair");
        let id = mux.attach(stream).expect("attached");
        let connection = mux.connection(id).expect("it is there");
        assert!(connection.peer_addr().is_err());
    });
}

/// All bytes turned over on their way: nobody can go past it to the descriptor.
struct Turned(UnixStream);

impl Transport for Turned {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn recv(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = (&self.0).read(buffer)?;
        buffer[..len].iter_mut().for_each(|byte| *byte = !*byte);
        Ok(len)
    }

    fn send(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let bytes = buffers.iter().flat_map(|buffer| buffer.iter());
        let turned: Vec<u8> = bytes.take(3000).map(|byte| !byte).collect();
        (&self.0).write(&turned)
    }

    fn shutdown_write(&self) -> io::Result<()> {
        self.0.shutdown(Shutdown::Write)
    }
}

/// The peer of [`Turned`].
struct TurnedPeer(UnixStream);

impl Read for TurnedPeer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.0.read(buffer)?;
        buffer[..len].iter_mut().for_each(|byte| *byte = !*byte);
        Ok(len)
    }
}

impl Write for TurnedPeer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let turned: Vec<u8> = bytes.iter().map(|byte| !byte).collect();
        self.0.write(&turned)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn any_transport_carries_messages() {
    bounded(20, || {
        let mux = mux();
        let (stream, peer) = UnixStream::pair().expect("a pair");
        stream.set_nonblocking(true).expect("non-blocking");
        exchange(&mux, Stream::new(Turned(stream)), TurnedPeer(peer));

        let (stream, mut peer) = UnixStream::pair().expect("a pair");
        stream.set_nonblocking(true).expect("non-blocking");
        let id = mux.attach(Stream::new(Turned(stream))).expect("attached");
        let (stream, _) = mux.unattach(id).expect("unattached");
        let stream = stream.into_fd().expect_err("it is not a socket");
        mux.attach(stream).expect("attached again");
        drop(mux);
        assert_ended(&mut peer);
    });
}

#[test]
fn bytes_read_before_attaching_come_first() {
    bounded(20, || {
        let stream: Vec<u8> = (0..4).flat_map(|n| numbered(1, n, 16 + 9)).collect();
        for read in 0..=stream.len() {
            let mux = mux();
            let (ours, peer) = tcp_pair();
            write(&peer, &stream[read..]);
            let mut socket = mux.socket().expect("a socket");
            let attached = mux.attach_with(ours, framing(), &stream[..read]);
            attached.expect("attached");
            for number in 0..4 {
                assert_eq!(number_of(&soon(&mut socket)), (1, number), "read {read}");
            }
        }
    });
}

#[test]
fn bytes_read_before_wake_a_waiting_thread() {
    bounded(20, || {
        let mux = mux();
        let mut socket = mux.socket().expect("a socket");
        let waiting = spawn_asleep(move || number_of(&soon(&mut socket)));
        let (ours, _peer) = tcp_pair();
        let other: Framing = "u32be+4".parse().expect("a framing");
        mux.attach_with(ours, other, &numbered(3, 4, 99))
            .expect("attached");
        assert_eq!(waiting.join().expect("received"), (3, 4));
    });
}

/// How many descriptors are open when nothing is under way; those that the process opens once and keeps
/// are among them.
fn descriptors_at_rest() -> usize {
    drop(attached(&mux()));
    wait_until("the first one is closed", || {
        let before = open_descriptors();
        thread::sleep(A_WHILE / 4);
        open_descriptors() == before
    });
    open_descriptors()
}

#[test]
fn closing_in_any_order_leaks_nothing() {
    alone(30, || {
        let before = descriptors_at_rest();
        for order in 0..6 {
            for connections in [0, 1, 2, 5] {
                let mux = mux();
                let mut peers: Vec<_> = (0..connections).map(|_| attached(&mux).1).collect();
                let mut first = mux.socket().expect("a socket");
                let second = first.try_clone().expect("a clone");
                if let Some(peer) = peers.first() {
                    write(peer, &numbered(1, 1, 16).repeat(3));
                    soon(&mut first);
                }
                let polled = first.as_fd().try_clone_to_owned();
                drop(second.writable_fd().map(|fd| fd.try_clone_to_owned()));
                match order {
                    0 => drop((first, second, mux)),
                    1 => drop((mux, first, second)),
                    2 => drop((second, mux, first)),
                    3 => drop((mux.clone(), mux, second, first)),
                    4 => {
                        mux.shutdown();
                        drop((first, mux, second));
                    }
                    _ => drop((thread::spawn(move || drop(first)).join(), mux, second)),
                }
                drop(polled);
                peers.iter_mut().for_each(assert_ended);
            }
        }
        wait_until("all descriptors are closed", || {
            open_descriptors() == before
        });
    });
}

#[test]
fn a_message_outlives_everything() {
    bounded(20, || {
        let mux = mux();
        let (_, mut peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        write(&peer, &numbered(1, 1, 50_000));
        let kept = soon(&mut socket);
        drop((socket, mux));
        assert_ended(&mut peer);
        assert_eq!(number_of(&kept), (1, 1));
        assert!(kept.reply(&kept).is_err());
    });
}

/// A connection to a listener that accepts no more is still being made.
#[test]
fn a_stream_may_be_attached_while_it_connects() {
    bounded(30, || {
        let listening = unconnected(AddressFamily::INET, Kind::STREAM);
        let any: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        rustix::net::bind(&listening, &any).expect("bound");
        rustix::net::listen(&listening, 0).expect("a backlog of one");
        let listener = TcpListener::from(listening);
        let address = listener.local_addr().expect("an address");
        let _first = TcpStream::connect(address).expect("into the backlog");
        let connecting = unconnected(AddressFamily::INET, Kind::STREAM);
        set_nonblocking(&connecting);
        let progress = rustix::net::connect(&connecting, &address);
        assert_eq!(progress, Err(rustix::io::Errno::INPROGRESS));
        let look = connecting.try_clone().expect("dup");

        let mux = mux();
        let id = mux.attach(connecting).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        // What is sent now waits for the connection.
        socket.set_nonblocking(true).expect("non-blocking");
        socket.send_to(id, &numbered(1, 1, 50)).expect("taken");
        socket.set_nonblocking(false).expect("blocking");
        nothing(&mut socket);
        assert!(
            rustix::net::getpeername(&look).is_err(),
            "not connected yet"
        );
        let _first = listener.accept().expect("the first");
        let (mut peer, _) = listener.accept().expect("connected at last");
        let sent = read_message(&mut peer).expect("a message");
        assert_eq!(number_of(&sent), (1, 1));
        write(&peer, &numbered(2, 2, 60));
        assert_eq!(number_of(&soon(&mut socket)), (2, 2));
    });
}

/// A fast peer is not lost to a race with `accept`.
#[test]
fn a_peer_may_be_gone_before_its_stream_is_attached() {
    bounded(30, || {
        for (way, expected) in [EndReason::Eof, EndReason::Eof, EndReason::Reset]
            .into_iter()
            .enumerate()
        {
            let (ours, peer) = tcp_pair();
            write(&peer, &numbered(1, 1, 100));
            wait_arrived(&ours, 100);
            let half = (way == 0).then(|| {
                peer.shutdown(Shutdown::Write).expect("half closed");
                peer.try_clone().expect("dup")
            });
            match expected {
                EndReason::Reset => {
                    reset(peer);
                    let gone = || rustix::net::getpeername(&ours).is_err();
                    wait_until("the reset", gone);
                }
                _ => drop(peer),
            }
            let mux = mux();
            let id = mux.attach(ours).expect("attached");
            let receiver = receive_all(&mux);
            let event = event_soon(&mux);
            assert_eq!((event.connection, event.reason), (id, expected));
            drop(half);
            mux.shutdown();
            // Linux throws away what was not read when a reset comes, or does not: as it likes.
            let got = receiver.join().expect("received");
            if expected == EndReason::Eof {
                assert_eq!(got, [numbered(1, 1, 100)], "way {way}");
            }
        }
    });
}

#[test]
fn everything_may_be_used_from_any_thread() {
    fn any_thread<T: Send + Sync>() {}
    any_thread::<Multiplexor>();
    any_thread::<Socket>();
    any_thread::<Message>();
    any_thread::<Connection>();
    any_thread::<Stream>();
    any_thread::<Framing>();
    any_thread::<kcm::ConnectionEvent>();
    any_thread::<Error>();
}

#[test]
fn descriptors_are_few_and_their_end_is_an_error() {
    alone(30, || {
        let before = descriptors_at_rest();
        let mux = mux();
        assert_eq!(open_descriptors() - before, 2, "a multiplexor");
        let socket = mux.socket().expect("a socket");
        assert_eq!(open_descriptors() - before, 2 + 2, "a socket");
        socket.writable_fd().expect("one more");
        let _ = socket.as_fd();
        assert_eq!(open_descriptors() - before, 2 + 3, "polled for both");

        let (_, mut peer) = attached(&mux);
        let server = echo(&mux);
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        mux.listen(listener).expect("listening");
        let late = unconnected(AddressFamily::INET, Kind::STREAM);
        let limit = getrlimit(Resource::Nofile);
        let few = Rlimit {
            current: Some(400),
            ..limit
        };
        setrlimit(Resource::Nofile, few).expect("a lower limit");
        let null = File::open("/dev/null").expect("/dev/null");
        let all: Vec<_> = std::iter::from_fn(|| null.try_clone().ok()).collect();
        let errno = |error: Error| error.errno();
        assert_eq!(mux.socket().map(drop).map_err(errno), Err(libc::EMFILE));
        assert_eq!(
            socket.try_clone().map(drop).map_err(errno),
            Err(libc::EMFILE)
        );
        let another = Multiplexor::builder(framing()).build();
        assert_eq!(another.map(drop).map_err(errno), Err(libc::EMFILE));
        // What is there goes on.
        write(&peer, &numbered(1, 1, 40));
        let reply = read_message(&mut peer).expect("a reply");
        assert_eq!(number_of(&reply), (1, 1));
        // Who cannot be accepted now is accepted later.
        rustix::net::connect(&late, &address).expect("into the backlog");
        let mut late = TcpStream::from(late);
        write(&late, &numbered(2, 2, 40));
        thread::sleep(A_WHILE);
        drop(all);
        setrlimit(Resource::Nofile, limit).expect("as it was");
        let reply = read_message(&mut late).expect("a reply");
        assert_eq!(number_of(&reply), (2, 2));
        mux.shutdown();
        server.join().expect("served");
    });
}
