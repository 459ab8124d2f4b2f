//! Sending: messages go out whole and unmixed, in few calls, and where they should, without waiting
//! for a peer that does not read.

mod common;

use std::{
    collections::HashSet,
    fs::File,
    io::{IoSlice, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use common::*;
use kcm::{Error, Multiplexor, SendFlags, SocketType, Stream, Transport};
use rustix::fs::{Mode, OFlags};

const MIB: usize = 1 << 20;

#[test]
fn try_reply_does_not_wait_for_a_peer_that_does_not_read() {
    bounded(20, || {
        let mux = mux();
        let (_, peer) = attached(&mux);
        write(&peer, &message(b"?"));
        let mut socket = mux.socket().expect("a socket");
        let request = socket.recv().expect("a request");
        let reply = message(&[7; 100_000]);
        // The system takes some of them, and the queue its limit.
        let mut sent = 0;
        while request.try_reply(&reply).is_ok() {
            sent += 1;
            assert!(sent < 1000, "nothing bounds them");
        }
        let error = request.try_reply(&reply).expect_err("full");
        assert!(matches!(error, Error::WouldBlock), "{error}");
        // Once the peer reads, all of them come, and there is room again.
        let mut replies = vec![0; sent * reply.len()];
        (&peer).read_exact(&mut replies).expect("all of them");
        assert!(replies.chunks(reply.len()).all(|each| each == reply));
        request.try_reply(&reply).expect("sent");
    });
}

#[test]
fn whole_and_unmixed_from_many_threads() {
    bounded(40, || {
        let mux = mux();
        let (id, peer) = attached(&mux);
        let reader = read_all(peer);
        let threads: Vec<_> = (0..6)
            .map(|thread: u32| {
                let socket = mux.socket().expect("a socket");
                thread::spawn(move || {
                    let mut random = Random::new(thread.into());
                    for number in 0..1500 {
                        let len = [30, 500, 40_000][random.below(15).saturating_sub(12)];
                        let message = numbered(thread, number, random.between(16, len));
                        let (a, b) = message.split_at(random.below(message.len()));
                        let parts = [IoSlice::new(a), IoSlice::new(b)];
                        match random.below(4) {
                            0 => socket.send(&message),
                            1 => socket.send_to(id, &message),
                            2 => socket.send_vectored(&parts),
                            _ => socket.send_to_vectored(id, &parts),
                        }
                        .expect("sent");
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("sent"));
        mux.shutdown();
        let all = reader.join().expect("read");
        assert_eq!(all.len(), 6 * 1500);
        // From each thread in its order.
        for thread in 0..6 {
            let numbers = all.iter().filter(|&&(t, _)| t == thread).map(|&(_, n)| n);
            assert!(numbers.eq(0..1500), "thread {thread}");
        }
    });
}

#[test]
fn parts_become_one_message() {
    bounded(20, || {
        let sent = numbered(1, 1, 100);
        let (a, b) = (&sent[..30], &sent[30..]);
        let none = SendFlags::empty();
        for kind in [SocketType::Dgram, SocketType::SeqPacket] {
            let builder = Multiplexor::builder(framing()).socket_type(kind);
            let mux = builder.build().expect("a mux");
            let (_, mut peer) = attached(&mux);
            let mut socket = mux.socket().expect("a socket");
            let other = mux.socket().expect("a socket");
            let (open, last) = match kind {
                SocketType::Dgram => (SendFlags::MORE, none),
                SocketType::SeqPacket => (none, SendFlags::EOR),
            };
            // Nothing is open yet: nothing is sent.
            assert_eq!(socket.send_with(&[], none).expect("no message"), 0);
            assert_eq!(socket.send_with(a, open).expect("a part"), 30);
            // Another socket's message goes before it, not into it.
            other.send(&numbered(2, 2, 50)).expect("sent");
            let got = read_message(&mut peer).expect("it is not held up");
            assert_eq!(number_of(&got), (2, 2));
            assert_eq!(socket.send_with(b, last).expect("the rest"), 70);
            let got = read_message(&mut peer).expect("the whole");
            assert_eq!(number_of(&got), (1, 1));
            // An empty part ends an open message.
            assert_eq!(socket.send_with(&sent, open).expect("all of it"), 100);
            peer.set_read_timeout(Some(A_WHILE)).expect("a limit");
            assert!(peer.read(&mut [0; 1]).is_err(), "it is still open");
            peer.set_read_timeout(Some(SOON)).expect("a limit");
            assert_eq!(socket.send_with(&[], last).expect("the end"), 0);
            let got = read_message(&mut peer).expect("the whole");
            assert_eq!(number_of(&got), (1, 1));
            // And with none open, it is nothing again.
            assert_eq!(socket.send_with(&[], last).expect("no message"), 0);
            socket.send(&numbered(3, 3, 20)).expect("sent");
            let got = read_message(&mut peer).expect("the next");
            assert_eq!(number_of(&got), (3, 3));
            mux.shutdown();
            assert_ended(&mut peer);
        }
    });
}

#[test]
fn an_empty_message_is_nothing_however_it_is_sent() {
    bounded(20, || {
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        // Of a burst, and alone.
        for requests in [10, 1] {
            write(&peer, &numbered(1, 1, 20).repeat(requests));
            for _ in 0..requests {
                let request = soon(&mut socket);
                let none = [IoSlice::new(&[]), IoSlice::new(&[])];
                for sent in [
                    socket.send(&[]),
                    socket.send_vectored(&none),
                    socket.send_to(id, &[]),
                    socket.send_to_vectored(id, &[]),
                    request.reply(&[]),
                    request.try_reply(&[]),
                    request.reply_vectored(&none),
                    request.reply_vectored(&[]),
                ] {
                    sent.expect("nothing");
                }
                assert_eq!(socket.send_batch(&none).expect("nothing"), 2);
            }
        }
        assert_eq!(mux.stats().counters.tx_messages, 0);
        socket.send(&numbered(2, 2, 20)).expect("sent");
        let got = read_message(&mut peer).expect("the only one");
        assert_eq!(number_of(&got), (2, 2));
    });
}

#[test]
fn a_message_left_open_is_never_seen() {
    bounded(20, || {
        let mux = mux();
        let (_, mut peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        let part = socket.send_with(&numbered(1, 1, 100)[..60], SendFlags::MORE);
        part.expect("a part");
        drop(socket);
        let socket = mux.socket().expect("a socket");
        socket.send(&numbered(1, 2, 40)).expect("sent");
        assert_eq!(
            number_of(&read_message(&mut peer).expect("a message")),
            (1, 2)
        );
        drop((socket, mux));
        assert_ended(&mut peer);
    });
}

#[test]
fn an_error_while_building_drops_a_datagram_and_keeps_parts_of_a_seqpacket() {
    bounded(20, || {
        let sent = numbered(1, 1, 100);
        let none = SendFlags::empty();
        for (kind, more, last) in [
            (SocketType::Dgram, SendFlags::MORE, none),
            (SocketType::SeqPacket, none, SendFlags::EOR),
        ] {
            let builder = Multiplexor::builder(framing()).socket_type(kind);
            let mux = builder.build().expect("a mux");
            let mut socket = mux.socket().expect("a socket");
            assert_eq!(socket.send_with(&sent[..40], more).expect("a part"), 40);
            let error = socket.send_with(&sent[40..], last).expect_err("nowhere");
            assert!(matches!(error, Error::NotConnected), "{error}");
            let (_, mut peer) = attached(&mux);
            let whole = match kind {
                SocketType::Dgram => socket.send_with(&sent, last),
                SocketType::SeqPacket => socket.send_with(&sent[40..], last),
            };
            whole.expect("sent");
            let got = read_message(&mut peer).expect("a message");
            assert_eq!(number_of(&got), (1, 1), "{kind:?}");
        }
    });
}

/// Counts the calls that send.
struct Counting(UnixStream, Arc<AtomicUsize>);

impl Transport for Counting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn recv(&self, buffer: &mut [u8]) -> std::io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn send(&self, buffers: &[IoSlice<'_>]) -> std::io::Result<usize> {
        self.1.fetch_add(1, Ordering::Relaxed);
        (&self.0).write_vectored(buffers)
    }

    fn shutdown_write(&self) -> std::io::Result<()> {
        self.0.shutdown(std::net::Shutdown::Write)
    }
}

#[test]
fn batches_leave_in_few_calls() {
    bounded(20, || {
        let mux = mux();
        let calls = Arc::new(AtomicUsize::new(0));
        let (stream, mut peer) = UnixStream::pair().expect("a pair");
        stream.set_nonblocking(true).expect("non-blocking");
        let counting = Counting(stream, calls.clone());
        mux.attach(Stream::new(counting)).expect("attached");
        let mut socket = mux.socket().expect("a socket");
        let messages: Vec<_> = (0..100).map(|n| numbered(1, n, 64)).collect();
        let slices: Vec<_> = messages.iter().map(|m| IoSlice::new(m)).collect();
        assert_eq!(socket.send_batch(&slices).expect("sent"), 100);
        for number in 0..100 {
            let got = read_message(&mut peer).expect("a message");
            assert_eq!(number_of(&got), (1, number));
        }
        let used = calls.swap(0, Ordering::Relaxed);
        assert!(used <= 3, "{used} calls for a batch");
        for (number, message) in messages.iter().enumerate() {
            let last = number == 99;
            let flags = if last {
                SendFlags::empty()
            } else {
                SendFlags::BATCH
            };
            assert_eq!(socket.send_with(message, flags).expect("taken"), 64);
        }
        for number in 0..100 {
            let got = read_message(&mut peer).expect("a message");
            assert_eq!(number_of(&got), (1, number));
        }
        let used = calls.load(Ordering::Relaxed);
        assert!(used <= 3, "{used} calls for MSG_BATCH");
    });
}

#[test]
fn what_a_batch_leaves_behind_goes_out_without_its_end() {
    bounded(20, || {
        let mux = mux();
        let (_, mut peer) = attached(&mux);
        let mut socket = mux.socket().expect("a socket");
        for number in 0..3 {
            let sent = socket.send_with(&numbered(1, number, 30), SendFlags::BATCH);
            assert_eq!(sent.expect("taken"), 30);
            let got = read_message(&mut peer).expect("a message");
            assert_eq!(number_of(&got), (1, number));
        }
        // Nor is it lost with its socket.
        let sent = socket.send_with(&numbered(1, 3, 30), SendFlags::BATCH);
        assert_eq!(sent.expect("taken"), 30);
        drop(socket);
        let got = read_message(&mut peer).expect("a message");
        assert_eq!(number_of(&got), (1, 3));
    });
}

#[test]
fn unaddressed_messages_go_round_or_stay_with_the_last() {
    bounded(20, || {
        for sticky in [false, true] {
            let builder = Multiplexor::builder(framing()).sticky_send(sticky);
            let mux = builder.build().expect("a mux");
            let readers: Vec<_> = (0..3).map(|_| read_all(attached(&mux).1)).collect();
            let socket = mux.socket().expect("a socket");
            for number in 0..9 {
                socket.send(&numbered(1, number, 30)).expect("sent");
            }
            mux.shutdown();
            let mut got: Vec<Vec<u64>> = readers
                .into_iter()
                .map(|r| {
                    r.join()
                        .expect("read")
                        .into_iter()
                        .map(|(_, n)| n)
                        .collect()
                })
                .collect();
            got.sort_unstable();
            if sticky {
                assert_eq!(got, [vec![], vec![], (0..9).collect()]);
            } else {
                assert_eq!(got, [[0, 3, 6], [1, 4, 7], [2, 5, 8]]);
            }
        }
    });
}

#[test]
fn a_sticky_sender_leaves_a_connection_that_is_behind() {
    bounded(30, || {
        let mux = Multiplexor::builder(framing()).sticky_send(true).build();
        let mux = mux.expect("a mux");
        let (first, silent) = attached(&mux);
        rustix::net::sockopt::set_socket_recv_buffer_size(&silent, 64 << 10).expect("small");
        let socket = mux.socket().expect("a socket");
        socket.send(&numbered(1, 0, 30)).expect("sent");
        let (_, other) = attached(&mux);
        // It stays, though another has nothing to do, until this one has much.
        socket.send(&numbered(1, 1, 8 * MIB)).expect("taken");
        let queued = mux.connection(first).expect("it is there").queued_bytes();
        assert!(queued > 64 << 10, "{queued} bytes are queued");
        socket.send(&numbered(1, 2, 30)).expect("sent");
        let (silent, other) = (read_all(silent), read_all(other));
        mux.shutdown();
        assert_eq!(silent.join().expect("read"), [(1, 0), (1, 1)]);
        assert_eq!(other.join().expect("read"), [(1, 2)]);
    });
}

#[test]
fn unaddressed_messages_go_where_least_is_queued() {
    bounded(40, || {
        let mux = mux();
        let (blocked, silent) = attached(&mux);
        let (_, reading) = attached(&mux);
        let socket = mux.socket().expect("a socket");
        socket.set_nonblocking(true).expect("non-blocking");
        socket
            .send_to(blocked, &numbered(0, 0, 8 * MIB))
            .expect("taken");
        socket.set_nonblocking(false).expect("blocking");
        let reader = read_all(reading);
        let start = Instant::now();
        let mut slowest = Duration::ZERO;
        for number in 0..2000 {
            let begun = Instant::now();
            socket.send(&numbered(1, number, 2000)).expect("sent");
            slowest = slowest.max(begun.elapsed());
        }
        assert!(
            slowest < PROMPT,
            "one took {slowest:?}, all {:?}",
            start.elapsed()
        );
        // Everything went to the one that reads; the other is still whole.
        let silent = read_all(silent);
        mux.shutdown();
        assert!(
            reader
                .join()
                .expect("read")
                .into_iter()
                .eq((0..2000).map(|n| (1, n)))
        );
        assert_eq!(silent.join().expect("read"), [(0, 0)]);
    });
}

#[test]
fn a_peer_that_does_not_read_blocks_nobody() {
    bounded(40, || {
        const COUNT: u64 = 6000;
        let mux = mux();
        let (_, silent) = attached(&mux);
        let (_, reading) = attached(&mux);
        let reader = read_all(reading);
        let threads: Vec<_> = (0..3)
            .map(|thread| {
                let socket = mux.socket().expect("a socket");
                thread::spawn(move || {
                    for number in 0..COUNT / 3 {
                        socket.send(&numbered(thread, number, 4096)).expect("sent");
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().expect("sent"));
        let silent = read_all(silent);
        mux.shutdown();
        let reader = reader.join().expect("read");
        let silent = silent.join().expect("read");
        assert!(
            reader.len() > silent.len(),
            "{} {}",
            reader.len(),
            silent.len()
        );
        let all: HashSet<_> = reader.iter().chain(&silent).collect();
        assert_eq!(all.len() as u64, COUNT);
        assert_eq!(
            (reader.len() + silent.len()) as u64,
            COUNT,
            "none came twice"
        );
    });
}

#[test]
fn replies_go_to_their_own_connection() {
    bounded(20, || {
        let mux = mux();
        let mut peers: Vec<_> = (0..20).map(|_| attached(&mux).1).collect();
        let _servers: Vec<_> = (0..3).map(|_| echo(&mux)).collect();
        for number in 0..50 {
            for (peer, connection) in peers.iter_mut().zip(0..) {
                write(peer, &numbered(connection, number, 30));
            }
            for (peer, connection) in peers.iter_mut().zip(0..) {
                let reply = read_message(peer).expect("a reply");
                assert_eq!(number_of(&reply), (connection, number));
            }
        }
        mux.shutdown();
    });
}

#[test]
fn files_are_sent_whole() {
    bounded(30, || {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("kcm-send-file", flags).expect("a file");
        let mut file = File::from(file);
        let body: Vec<u8> = (0..3 * MIB).map(|n| n.to_le_bytes()[0] ^ 0x5a).collect();
        file.write_all(&body).expect("written");
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let socket = mux.socket().expect("a socket");
        for (to, range) in [
            (Some(id), 0..100),
            (None, 17..3 * MIB as u64),
            (Some(id), 5..5),
        ] {
            let len = u32::try_from(range.end - range.start).expect("short");
            let (socket, fd) = (socket.try_clone().expect("a clone"), file.try_clone());
            let sending = {
                let range = range.clone();
                thread::spawn(move || {
                    let fd = fd.expect("dup");
                    socket.send_file(to, &len.to_be_bytes(), fd.as_fd(), range)
                })
            };
            let got = read_message(&mut peer).expect("a message");
            sending.join().expect("it came back").expect("sent");
            let range = usize::try_from(range.start).expect("short")
                ..usize::try_from(range.end).expect("short");
            assert!(got[4..] == body[range]);
        }
        // A file that is shorter than said cannot be sent. Either it is refused, or its connection
        // ends; never is the stream cut and goes on.
        let end = 3 * MIB as u64 + 10;
        let header = 100_u32.to_be_bytes();
        match socket.send_file(Some(id), &header, file.as_fd(), end - 100..end) {
            Err(_) => {
                socket.send_to(id, &numbered(1, 1, 20)).expect("sent");
                let got = read_message(&mut peer).expect("a message");
                assert_eq!(number_of(&got), (1, 1), "still in frame");
            }
            Ok(()) => {
                let mut got = Vec::new();
                let _ = peer.read_to_end(&mut got);
                assert!(got.len() < 104, "it was made whole with what?");
                let event = event_soon(&mux);
                assert_eq!((event.connection, event.reason.errno()), (id, libc::EIO));
                assert!(socket.send_to(id, &numbered(1, 1, 20)).is_err());
            }
        }
    });
}

/// A caller's mistake is told to the caller, and costs no connection.
#[test]
fn what_cannot_be_sent_from_is_refused_before_it_is_begun() {
    bounded(20, || {
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let socket = mux.socket().expect("a socket");
        let path = std::env::temp_dir().join(format!("kcm-send-file-{}", std::process::id()));
        let written = File::create(&path).expect("a file");
        std::fs::write(&path, [b'x'; 100]).expect("100 bytes");
        let named = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).expect("O_PATH");
        std::fs::remove_file(&path).expect("it has no name any more");
        let directory = File::open("/").expect("a directory");
        let (pipe, mut end) = std::io::pipe().expect("a pipe");
        end.write_all(&[b'x'; 100]).expect("100 bytes");
        let device = File::open("/dev/zero").expect("a device");
        for (file, errno) in [
            (written.as_fd(), libc::EBADF),
            (named.as_fd(), libc::EBADF),
            (directory.as_fd(), libc::EINVAL),
            (pipe.as_fd(), libc::EINVAL),
            (device.as_fd(), libc::EINVAL),
        ] {
            for to in [Some(id), None] {
                let sent = socket.send_file(to, &[0, 0, 0, 1], file, 0..1);
                let flags = rustix::fs::fcntl_getfl(file);
                assert_eq!(sent.map_err(|error| error.errno()), Err(errno), "{flags:?}");
            }
        }
        assert_eq!(mux.try_next_event(), None);
        socket.send_to(id, &numbered(1, 1, 20)).expect("sent");
        let got = read_message(&mut peer).expect("a message");
        assert_eq!(number_of(&got), (1, 1), "still in frame");
    });
}

#[test]
fn in_debug_builds_what_is_no_message_is_refused() {
    bounded(20, || {
        if !cfg!(debug_assertions) {
            skipped("messages are checked in debug builds");
            return;
        }
        let mux = mux();
        let (id, mut peer) = attached(&mux);
        let socket = mux.socket().expect("a socket");
        let whole = numbered(1, 1, 30);
        let two = [&whole[..], &whole].concat();
        for wrong in [&whole[..29], &whole[..3], &two[..], &two[..31]] {
            let error = socket.send_to(id, wrong).expect_err("no message");
            assert!(matches!(error, Error::NotOneMessage), "{error}");
            let error = socket.send(wrong).expect_err("no message");
            assert!(matches!(error, Error::NotOneMessage), "{error}");
        }
        // A file with a header of another length, in one piece or beginning in the file.
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = rustix::fs::memfd_create("kcm-no-message", flags).expect("a file");
        let mut file = File::from(file);
        file.write_all(&whole).expect("written");
        for to in [Some(id), None] {
            for len in [25, 27] {
                let error = socket.send_file(to, &[0, 0, 0, len], file.as_fd(), 4..30);
                let error = error.expect_err("no message");
                assert!(matches!(error, Error::NotOneMessage), "{error}");
            }
            let sent = socket.send_file(to, &whole[..2], file.as_fd(), 2..30);
            sent.expect("sent");
            assert_eq!(number_of(&read_message(&mut peer).expect("it")), (1, 1));
        }
        socket.send(&whole).expect("sent");
        assert_eq!(number_of(&read_message(&mut peer).expect("it")), (1, 1));
    });
}
