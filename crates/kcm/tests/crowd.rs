//! More receiving threads than processors: all of them on one, each quick with its messages.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use common::*;
use kcm::Multiplexor;

/// The body of a message whose receiver stops, until it is told to go on.
const STOP: &[u8] = b"stop";
const PING: &[u8] = b"ping";
const MESSAGE_BYTES: usize = 8;

const WORKERS: usize = 4;
const CONNECTIONS: usize = 3;
/// Requests that each of them has under way: a burst, if a short one.
const UNDER_WAY: usize = 4;

/// Threads that answer every message with itself, all on one processor.
struct Workers {
    mux: Multiplexor,
    stopped: mpsc::Receiver<mpsc::Sender<()>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Workers {
    fn start(ordered: bool) -> Self {
        let builder = Multiplexor::builder(framing()).ordered(ordered);
        let mux = builder.build().expect("a mux");
        let (stops, stopped) = mpsc::channel();
        let one = processors()[0];
        let threads = (0..WORKERS).map(|_| {
            let (mut socket, stops) = (mux.socket().expect("a socket"), stops.clone());
            thread::spawn(move || {
                stay_on(one);
                while let Ok(message) = socket.recv() {
                    if message.ends_with(STOP) {
                        let (go_on, told) = mpsc::channel();
                        stops.send(go_on).expect("somebody listens");
                        told.recv().expect("told");
                    }
                    message.reply(&message).expect("a reply");
                }
            })
        });
        Self {
            threads: threads.collect(),
            mux,
            stopped,
        }
    }

    fn end(self) {
        self.mux.shutdown();
        for thread in self.threads {
            thread.join().expect("no panic");
        }
    }
}

/// Connections with many requests under way, from threads of their own.
struct Load {
    over: Arc<AtomicBool>,
    replies: Vec<Arc<AtomicU64>>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    fn start(mux: &Multiplexor) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let (replies, threads) = (0..CONNECTIONS)
            .map(|_| {
                let (_, peer) = attached(mux);
                let replies = Arc::new(AtomicU64::new(0));
                let (over, count) = (over.clone(), replies.clone());
                (
                    replies,
                    thread::spawn(move || keep_busy(peer, &over, &count)),
                )
            })
            .unzip();
        Self {
            over,
            replies,
            threads,
        }
    }

    fn replies(&self) -> Vec<u64> {
        self.replies
            .iter()
            .map(|count| count.load(Relaxed))
            .collect()
    }

    /// Replies of each connection in some time.
    fn measure(&self, time: Duration) -> Vec<u64> {
        let before = self.replies();
        thread::sleep(time);
        let after = self.replies();
        after.iter().zip(before).map(|(a, b)| a - b).collect()
    }

    fn end(self) {
        self.over.store(true, Relaxed);
        for thread in self.threads {
            thread.join().expect("every reply came");
        }
    }
}

fn keep_busy(mut peer: TcpStream, over: &AtomicBool, replies: &AtomicU64) {
    let ping = message(PING);
    peer.write_all(&ping.repeat(UNDER_WAY)).expect("a write");
    let mut buffer = [0; UNDER_WAY * MESSAGE_BYTES];
    let mut have = 0;
    let mut under_way = UNDER_WAY;
    while under_way > 0 {
        have += peer.read(&mut buffer[have..]).expect("replies");
        let whole = have / MESSAGE_BYTES;
        for reply in buffer[..have].chunks_exact(MESSAGE_BYTES) {
            assert_eq!(reply, ping);
        }
        buffer.copy_within(whole * MESSAGE_BYTES..have, 0);
        have %= MESSAGE_BYTES;
        replies.fetch_add(whole as u64, Relaxed);
        under_way -= whole;
        if !over.load(Relaxed) {
            peer.write_all(&ping.repeat(whole)).expect("a write");
            under_way += whole;
        }
    }
}

#[test]
fn every_connection_gets_its_share() {
    for ordered in [false, true] {
        alone(30, move || {
            let workers = Workers::start(ordered);
            let load = Load::start(&workers.mux);
            load.measure(A_WHILE);
            let shares = load.measure(5 * A_WHILE);
            let (least, most) = (shares.iter().min(), shares.iter().max());
            assert!(
                least.expect("some") * 20 > *most.expect("some"),
                "{shares:?}"
            );
            load.end();
            workers.end();
        });
    }
}

/// A thread that was quick before stops at one message, in the middle of a burst, while others go on:
/// what it had come to is lost to nobody, and what it had not come to is taken by the others. Nor do they
/// take it for one that has only been pushed off its processor, and wait for it again and again.
#[test]
fn who_stops_is_not_waited_for() {
    alone(60, || {
        let workers = Workers::start(false);
        let (_, mut peer) = attached(&workers.mux);
        let load = Load::start(&workers.mux);
        let (mut with_all, mut without_one) = (0, 0);
        for round in 0..5 {
            let before: u64 = load.measure(2 * A_WHILE).iter().sum();
            let pings = message(PING).repeat(20);
            let burst = [pings.clone(), message(STOP), pings].concat();
            peer.write_all(&burst).expect("a write");
            let go_on = workers.stopped.recv_timeout(SOON).expect("it came to it");
            let begin = Instant::now();
            for _ in 0..40 {
                let mut reply = [0; MESSAGE_BYTES];
                peer.read_exact(&mut reply).expect("a reply");
                assert_eq!(reply[..], message(PING));
            }
            assert!(begin.elapsed() < PROMPT, "{round}: {:?}", begin.elapsed());
            let during: u64 = load.measure(2 * A_WHILE).iter().sum();
            (with_all, without_one) = (with_all + before, without_one + during);
            go_on.send(()).expect("it waits");
            let mut reply = [0; MESSAGE_BYTES];
            peer.read_exact(&mut reply).expect("the last reply");
            assert_eq!(reply[..], message(STOP));
        }
        assert!(
            without_one * 2 > with_all,
            "{with_all}, and {without_one} without one"
        );
        load.end();
        workers.end();
    });
}
