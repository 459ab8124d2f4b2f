//! What a message through `kcm serve` costs, beside two other ways to have it answered by a process.
//!
//! ```text
//!   kcm serve      client ──TCP──▶ kcm ──SEQPACKET──▶ worker, and back
//!   threads        client ──TCP──▶ a Python server with a thread for each connection, and back
//!   two hops       client ──datagram──▶ a thread that copies ──datagram──▶ worker, and back
//! ```
//!
//! *Threads* is what would be written instead; *two hops* is the least that anything between a
//! client and a worker process can cost: no TCP, no framing, nobody to choose from, one blocking
//! read and write for each hop. All answer each message with its body in capitals; "work" adds a
//! loop in Python of some 100 us. Each client connection has one request under way.
//!
//! `cargo bench -p kcm-cli --bench serve` takes half a minute. Other builds of the command are
//! measured beside it, in turns: `cargo bench -p kcm-cli --bench serve -- /path/to/kcm`.

use std::{
    env,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    os::{fd::OwnedFd, unix::net::UnixDatagram},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(200);
/// Before each round is measured, in part of its time.
const WARM_UP: Duration = Duration::from_millis(40);
const BODY_BYTES: usize = 64;

const PYTHON_WORKER: &str = "\
import os, struct, sys
def serve(work):
    room = memoryview(bytearray(256 << 10))
    while size := os.readv(0, [room]):
        body = bytes(room[4:size])
        for _ in work: pass
        body = body.upper()
        os.write(1, struct.pack('!I', len(body)) + body)
serve(range(int(sys.argv[1])))
";

const PYTHON_THREADS: &str = "\
import socket, socketserver, struct, sys
work = range(int(sys.argv[1]))
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream = self.request.makefile('rb')
        while len(header := stream.read(4)) == 4:
            body = stream.read(struct.unpack('!I', header)[0])
            for _ in work: pass
            body = body.upper()
            self.request.sendall(struct.pack('!I', len(body)) + body)
class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 128
with Server(('127.0.0.1', 0), Handler) as server:
    print('listening on 127.0.0.1:%d' % server.server_address[1], file=sys.stderr, flush=True)
    server.serve_forever()
";

/// Turns of a loop in Python that take some 100 us.
const WORK_TURNS: &str = "5000";

fn main() -> io::Result<()> {
    let directory = Directory::new()?;
    let worker = directory.build_worker()?;
    // `cargo bench` adds arguments of its own, which begin with `-`.
    let others = env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'));
    let kcms: Vec<String> = [env!("CARGO_BIN_EXE_kcm").to_owned()]
        .into_iter()
        .chain(others)
        .collect();
    let python = |turns: &str| {
        ["python3", "-c", PYTHON_WORKER, turns]
            .map(str::to_owned)
            .to_vec()
    };
    let c = vec![worker];
    println!(
        "{ROUNDS} rounds of {ROUND:?}, {BODY_BYTES} B in a message; medians, and the ratio to the \
         last line within a round: median, min-max\n"
    );
    for (title, worker, turns) in [
        ("a worker in C", c, None),
        ("a worker in Python", python("0"), Some("0")),
        (
            "a worker in Python, with work",
            python(WORK_TURNS),
            Some(WORK_TURNS),
        ),
    ] {
        for clients in [1, 16] {
            let mut contenders = Vec::new();
            for kcm in &kcms {
                for workers in ["1", "2"] {
                    let name = format!(
                        "{}, {workers} workers",
                        if kcm == &kcms[0] { "kcm serve" } else { kcm }
                    );
                    contenders.push((name, Contender::serve(kcm, workers, &worker, clients)?));
                }
            }
            contenders.push((
                "two hops".to_owned(),
                Contender::two_hops(&worker, clients)?,
            ));
            if let Some(turns) = turns {
                contenders.push(("threads".to_owned(), Contender::threads(turns, clients)?));
            }
            println!("{title}; {clients} clients");
            measure(&mut contenders)?;
        }
    }
    Ok(())
}

/// All of them in turns.
fn measure(contenders: &mut [(String, Contender)]) -> io::Result<()> {
    let mut rates = vec![Vec::new(); contenders.len()];
    for round in 0..ROUNDS {
        for turn in 0..contenders.len() {
            let index = (round + turn) % contenders.len();
            rates[index].push(contenders[index].1.rate()?);
        }
    }
    let last = rates.last().cloned().unwrap_or_default();
    for ((name, _), rates) in contenders.iter().zip(&mut rates) {
        let mut ratios: Vec<f64> = rates.iter().zip(&last).map(|(a, b)| a / b).collect();
        ratios.sort_by(f64::total_cmp);
        rates.sort_by(f64::total_cmp);
        let (rate, ratio) = (rates[rates.len() / 2], ratios[ratios.len() / 2]);
        println!(
            "  {name:<24}{rate:>9.0}/s {:>7.1} us   {ratio:>5.2} ({:.2}-{:.2})",
            1e6 / rate,
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
    println!();
    Ok(())
}

/// A server, and clients that are connected to it.
struct Contender {
    clients: Vec<Client>,
    /// Ends with it; after the clients.
    _server: Process,
}

enum Client {
    Stream(TcpStream),
    Datagram(UnixDatagram),
}

impl Contender {
    fn serve(kcm: &str, workers: &str, worker: &[String], clients: usize) -> io::Result<Self> {
        let mut command = Command::new(kcm);
        command.args(["serve", "--listen", "127.0.0.1:0", "--framing", "u32be+4"]);
        command.args(["--workers", workers, "--"]).args(worker);
        Self::connect(command, clients)
    }

    fn threads(turns: &str, clients: usize) -> io::Result<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", PYTHON_THREADS, turns]);
        Self::connect(command, clients)
    }

    /// To a server that says on its standard error where it listens.
    fn connect(mut command: Command, clients: usize) -> io::Result<Self> {
        let mut server = Process(
            command
                .stdin(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()?,
        );
        let stderr = server.0.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut line = String::new();
        BufReader::new(stderr).read_line(&mut line)?;
        let address = line.trim().rsplit(' ').next().unwrap_or_default();
        let connect = |_| {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            Ok(Client::Stream(stream))
        };
        Ok(Self {
            clients: (0..clients).map(connect).collect::<io::Result<_>>()?,
            _server: server,
        })
    }

    /// All clients share one pair: the copying thread would have to wait for several otherwise.
    fn two_hops(worker: &[String], clients: usize) -> io::Result<Self> {
        let (client, near) = UnixDatagram::pair()?;
        let (far, worker_end) = UnixDatagram::pair()?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        let worker_end = OwnedFd::from(worker_end);
        let child = Command::new(&worker[0])
            .args(&worker[1..])
            .stdin(worker_end.try_clone()?)
            .stdout(worker_end)
            .spawn()?;
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            let mut hop = |from: &UnixDatagram, to: &UnixDatagram| {
                let len = from.recv(&mut buffer)?;
                to.send(&buffer[..len])
            };
            // The end of either side.
            while hop(&near, &far)
                .and_then(|_| hop(&far, &near))
                .is_ok_and(|len| len > 0)
            {}
        });
        let share = |_| Ok(Client::Datagram(client.try_clone()?));
        Ok(Self {
            clients: (0..clients).map(share).collect::<io::Result<_>>()?,
            _server: Process(child),
        })
    }

    /// Messages a second, with one under way for each client.
    fn rate(&mut self) -> io::Result<f64> {
        let body = [b'a'; BODY_BYTES];
        let request = [&[0, 0, 0, u8::try_from(BODY_BYTES).unwrap_or(0)][..], &body].concat();
        let reply = request.to_ascii_uppercase();
        let mut buffer = vec![0; reply.len()];
        for client in &mut self.clients {
            client.send(&request)?;
        }
        let begin = Instant::now();
        let (mut messages, mut measured_since) = (0_u32, None);
        while begin.elapsed() < WARM_UP + ROUND {
            if measured_since.is_none() && begin.elapsed() >= WARM_UP {
                measured_since = Some((messages, Instant::now()));
            }
            for client in &mut self.clients {
                client.recv(&mut buffer)?;
                assert_eq!(buffer, reply, "a wrong reply");
                client.send(&request)?;
                messages += 1;
            }
        }
        let (before, since) = measured_since.unwrap_or((0, begin));
        let rate = f64::from(messages - before) / since.elapsed().as_secs_f64();
        for client in &mut self.clients {
            client.recv(&mut buffer)?;
        }
        Ok(rate)
    }
}

impl Client {
    fn send(&mut self, message: &[u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write_all(message),
            Self::Datagram(socket) => socket.send(message).map(|_| ()),
        }
    }

    fn recv(&mut self, room: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.read_exact(room),
            Self::Datagram(socket) => socket.recv(room).map(|_| ()),
        }
    }
}

/// Killed when it is not needed any more; workers see the end of their input.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Where the worker in C is built.
struct Directory(PathBuf);

impl Directory {
    fn new() -> io::Result<Self> {
        let path = env::temp_dir().join(format!("kcm-bench-{}", std::process::id()));
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }

    fn build_worker(&self) -> io::Result<String> {
        let program = self.0.join("worker").display().to_string();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/serve/worker.c");
        let built = Command::new("cc")
            .args(["-O2", "-o", &program, source])
            .status()?;
        match built.success() {
            true => Ok(program),
            false => Err(io::Error::other("cc cannot build the worker")),
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
