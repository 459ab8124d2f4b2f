//! Clients that are slow, huge, malformed, flooding or half-open: they are told or cut off, hold no
//! more memory than the limits say, and the others notice nothing.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kcm_example_thrift::{
    generated::store::{Entry, StoreSyncClient, StoreSyncProcessor, TStoreSyncClient as _},
    server::{ASSEMBLY_DEADLINE, MAX_CONNECTIONS, SEND_BUFFER_BYTES, Server, Settings},
    store::Store,
    wire::MAX_MESSAGE_BYTES,
};
use thrift::{
    protocol::{TBinaryInputProtocol, TBinaryOutputProtocol},
    transport::{TFramedReadTransport, TFramedWriteTransport},
};

/// What must happen happens within this, on however busy a machine.
const SOON: Duration = Duration::from_secs(20);

type Client = StoreSyncClient<
    TBinaryInputProtocol<TFramedReadTransport<TcpStream>>,
    TBinaryOutputProtocol<TFramedWriteTransport<TcpStream>>,
>;

fn start(settings: Settings) -> (Server, SocketAddr) {
    let processor = StoreSyncProcessor::new(Store::default());
    let server = Server::start(processor, settings).expect("it starts");
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let address = listener.local_addr().expect("its address");
    server.listen(listener).expect("it listens");
    (server, address)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_nodelay(true).expect("an option");
    stream.set_read_timeout(Some(SOON)).expect("a time limit");
    stream.set_write_timeout(Some(SOON)).expect("a time limit");
    stream
}

fn client(address: SocketAddr) -> Client {
    let stream = connect(address);
    let reading = TFramedReadTransport::new(stream.try_clone().expect("a descriptor"));
    StoreSyncClient::new(
        TBinaryInputProtocol::new(reading, true),
        TBinaryOutputProtocol::new(TFramedWriteTransport::new(stream), true),
    )
}

fn framed(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("short");
    [&len.to_be_bytes()[..], body].concat()
}

/// The body of a call in the binary protocol.
fn binary(method: &str, message_type: u8, arguments: &[u8]) -> Vec<u8> {
    let len = u32::try_from(method.len()).expect("short").to_be_bytes();
    let parts: [&[u8]; 5] = [
        &[0x80, 1, 0, message_type],
        &len,
        method.as_bytes(),
        &[0; 4],
        arguments,
    ];
    parts.concat()
}

/// The same in the compact protocol.
fn compact(method: &str, message_type: u8, arguments: &[u8]) -> Vec<u8> {
    let len = u8::try_from(method.len()).expect("short");
    let parts: [&[u8]; 3] = [
        &[0x82, message_type << 5 | 1, 0, len],
        method.as_bytes(),
        arguments,
    ];
    parts.concat()
}

const CALL: u8 = 1;
const REPLY: u8 = 2;
const EXCEPTION: u8 = 3;
const ONEWAY: u8 = 4;

fn read_frame(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut header = [0; 4];
    stream.read_exact(&mut header)?;
    let mut body = vec![0; u32::from_be_bytes(header) as usize];
    stream.read_exact(&mut body)?;
    Ok(body)
}

#[track_caller]
fn is_cut_off(mut stream: &TcpStream) {
    match stream.read(&mut [0]) {
        Ok(0) => {}
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {}
        other => panic!("not cut off: {other:?}"),
    }
}

#[track_caller]
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn what_is_no_call_is_cut_off() {
    let (_server, address) = start(Settings::default());
    let mut good = client(address);
    let name_beyond = [&[0x80, 1, 0, CALL][..], &[0, 0, 0, 50], b"ping"].concat();
    for body in [
        &b""[..],
        b"GET / HTTP/1.1",
        &[0x80],
        &[0x82],
        // Another version.
        &[
            0x80, 2, 0, CALL, 0, 0, 0, 4, b'p', b'i', b'n', b'g', 0, 0, 0, 0, 0,
        ],
        &[0x82, 0x22, 0, 4, b'p', b'i', b'n', b'g', 0],
        &name_beyond,
        &binary("ping", REPLY, &[0]),
        &binary("ping", EXCEPTION, &[0]),
        &binary("ping", 9, &[0]),
        &compact("ping", REPLY, &[0]),
    ] {
        let mut bad = connect(address);
        bad.write_all(&framed(body)).expect("sent");
        is_cut_off(&bad);
        good.ping().expect("others go on");
    }
}

#[test]
fn what_announces_too_long_a_message_is_cut_off_at_once() {
    let (server, address) = start(Settings::default());
    let mut good = client(address);
    for len in [
        u32::try_from(MAX_MESSAGE_BYTES).expect("fits") - 3,
        u32::MAX,
    ] {
        let mut bad = connect(address);
        bad.write_all(&len.to_be_bytes()).expect("sent");
        is_cut_off(&bad);
        good.ping().expect("others go on");
    }
    // The longest is not too long: half of it is read, and waited for.
    let mut long = connect(address);
    let len = u32::try_from(MAX_MESSAGE_BYTES).expect("fits") - 4;
    long.write_all(&len.to_be_bytes()).expect("sent");
    long.write_all(&vec![0x80; MAX_MESSAGE_BYTES / 2])
        .expect("sent");
    wait_until("it is begun", || {
        let stats = server.multiplexor().stats();
        stats
            .connections
            .iter()
            .any(|connection| connection.in_message)
    });
    good.ping().expect("others go on");
    assert_eq!(server.multiplexor().connections().len(), 2);
}

#[test]
fn what_announces_too_much_within_a_message_is_answered_with_an_exception() {
    let (_server, address) = start(Settings::default());
    let stream = connect(address);
    let many = 0x7fff_ffff_u32.to_be_bytes();
    let varint = [0xff, 0xff, 0xff, 0xff, 0x07];
    for body in [
        // A list of 2,147,483,647 numbers; one of as many strings; one of a negative length.
        binary("sum", CALL, &[&[15, 0, 1, 10][..], &many].concat()),
        binary("getAll", CALL, &[&[15, 0, 1, 11][..], &many].concat()),
        binary("sum", CALL, &[15, 0, 1, 10, 0xff, 0xff, 0xff, 0xff]),
        compact("sum", CALL, &[&[0x19, 0xf6][..], &varint].concat()),
        compact("getAll", CALL, &[&[0x19, 0xf8][..], &varint].concat()),
        // A string.
        binary("get", CALL, &[&[11, 0, 1][..], &many].concat()),
        compact("get", CALL, &[&[0x18][..], &varint].concat()),
        // Structs within structs, in a field that is to be skipped.
        binary("ping", CALL, &[12, 0, 9].repeat(300_000)),
        compact("ping", CALL, &[0x1c].repeat(900_000)),
        // Nothing where something must be.
        binary("get", CALL, &[]),
        compact("calculate", CALL, &[0]),
    ] {
        (&stream).write_all(&framed(&body)).expect("sent");
        let reply = read_frame(&stream).expect("an exception");
        let message_type = if reply[0] == 0x80 {
            reply[3]
        } else {
            reply[1] >> 5
        };
        assert_eq!((reply[0], message_type), (body[0], EXCEPTION));
    }
    // No reply to what wants none: the next one is that to the next call.
    for oneway in [
        binary("forget", ONEWAY, &[11, 0, 1, 0x7f, 0, 0, 0]),
        compact("forget", ONEWAY, &[0]),
        binary("nothing", ONEWAY, &[0]),
    ] {
        (&stream).write_all(&framed(&oneway)).expect("sent");
    }
    (&stream)
        .write_all(&framed(&compact("ping", CALL, &[0])))
        .expect("sent");
    assert_eq!(
        read_frame(&stream).expect("a reply"),
        compact("ping", REPLY, &[0])
    );
}

#[test]
fn a_slow_client_holds_up_nobody_and_not_for_long() {
    let (_server, address) = start(Settings {
        workers: 1,
        assembly_deadline: Duration::from_millis(300),
        ..Settings::default()
    });
    let call = framed(&binary("ping", CALL, &[0]));
    let slow: Vec<_> = (1..call.len())
        .map(|len| {
            let mut stream = connect(address);
            stream.write_all(&call[..len]).expect("sent");
            stream
        })
        .collect();
    let mut good = client(address);
    good.ping().expect("it is served beside them");
    slow.iter().for_each(is_cut_off);
    good.ping()
        .expect("one that is between two calls is not late");
}

#[test]
fn clients_that_stop_inside_of_long_calls_leave_memory_to_the_others() {
    let (server, address) = start(Settings::default());
    let mut half = framed(&vec![0; MAX_MESSAGE_BYTES - 4]);
    half.pop();
    let stuck: Vec<_> = (1..MAX_CONNECTIONS).map(|_| connect(address)).collect();
    let begin = Instant::now();
    for mut stream in &stuck {
        stream.write_all(&half).expect("read, or in its buffers");
    }
    let connections = || server.multiplexor().connections();
    wait_until("all are in the middle of a call", || {
        connections().iter().all(|c| c.stats().in_message)
    });
    client(address).ping().expect("it is served beside them");
    let took = begin.elapsed();
    assert!(took < ASSEMBLY_DEADLINE, "served after {took:?}");
}

#[test]
fn clients_that_do_not_read_are_cut_off_and_block_no_worker() {
    let (server, address) = start(Settings {
        workers: 2,
        ..Settings::default()
    });
    let mut good = client(address);
    let entry = Entry::new("large".to_owned(), vec![7; 500_000], None);
    good.put(entry).expect("there is room");
    let call = framed(&binary("get", CALL, b"\x0b\0\x01\0\0\0\x05large\0"));
    // More than there are workers, each of whose calls asks for half a megabyte.
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let stream = connect(address);
            let calls = call.repeat(100);
            thread::spawn(move || {
                // It fails when the client is cut off.
                let result = (0..10_000).try_for_each(|_| (&stream).write_all(&calls));
                (result, stream)
            })
        })
        .collect();
    let most = SEND_BUFFER_BYTES + MAX_MESSAGE_BYTES;
    let mut pings = 0;
    wait_until("the floods are cut off", || {
        for connection in server.multiplexor().connections() {
            assert!(connection.queued_bytes() <= most);
        }
        good.ping().expect("it is served beside them");
        pings += 1;
        floods.iter().all(thread::JoinHandle::is_finished)
    });
    for flood in floods {
        let (result, _) = flood.join().expect("no panic");
        assert!(result.is_err(), "a client was not cut off");
    }
    assert!(pings > 0);
}

#[test]
fn a_flood_of_calls_leaves_the_others_their_turn() {
    for ordered in [true, false] {
        let (server, address) = start(Settings {
            workers: 2,
            ordered,
            ..Settings::default()
        });
        let stream = connect(address);
        let calls = framed(&binary("ping", CALL, &[0])).repeat(1000);
        let mut reading = stream.try_clone().expect("a descriptor");
        let reader = thread::spawn(move || io::copy(&mut reading, &mut io::sink()));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let writer = thread::spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                (&stream).write_all(&calls).expect("sent");
            }
            // What is under way by now would take a while to be answered.
            stream.shutdown(std::net::Shutdown::Both).expect("open");
        });
        let mut good = client(address);
        for _ in 0..100 {
            good.ping().expect("it has its turn");
        }
        drop(stop);
        writer.join().expect("written");
        let _ = reader.join().expect("read");
        drop(server);
    }
}

#[test]
fn idle_connections_do_not_keep_others_out() {
    let (server, address) = start(Settings::default());
    let idle: Vec<_> = (0..MAX_CONNECTIONS).map(|_| connect(address)).collect();
    wait_until("all are attached", || {
        server.multiplexor().connections().len() == MAX_CONNECTIONS
    });
    // In the backlog until there is room.
    let mut good = client(address);
    good.ping().expect("it has its turn");
    idle.iter().for_each(is_cut_off);
}

#[test]
fn what_is_said_of_them_needs_no_reader() {
    let (reader, writer) = io::pipe().expect("a pipe");
    let mut process = Command::new(env!("CARGO_BIN_EXE_thrift-server"))
        .args(["127.0.0.1:0", "--workers", "2"])
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .expect("it starts");
    drop(reader);
    let mut line = String::new();
    let stdout = process.stdout.take().expect("its output");
    let read = BufReader::new(stdout).read_line(&mut line);
    read.expect("its address");
    let address = line.trim().parse().expect("an address");
    // No call, which a worker finds; and no frame, which is told as the connection's end.
    let outcome = thread::spawn(move || {
        for broken in [framed(b"no call"), vec![0xff; 8]].iter().cycle().take(8) {
            let mut stream = connect(address);
            stream.write_all(broken).expect("sent");
            is_cut_off(&stream);
        }
        assert!(client(address).ping().is_ok());
    })
    .join();
    let running = process.try_wait();
    let _ = process.kill();
    let _ = process.wait();
    outcome.expect("as before");
    assert_eq!(running.expect("a child"), None, "it has ended");
}
