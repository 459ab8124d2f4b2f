//! Woken threads that do not come, because nobody is pushed off the processor for them: what they were
//! woken for is not handed out message by message until they do.

mod common;

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use common::*;

const WORKERS: usize = 4;
const CONNECTIONS: usize = 4;
/// Requests that each connection has under way: few enough that in a debug build on a slow machine, too, all
/// replies to a burst may wait for one another.
/// (Measured in a debug build on a busy machine: 19 to 53 replies in a read, and 1 to 7 where nobody looks for
/// late threads. With 256 under way it was 37 to 114, and 1 to 105: nothing in between to tell them apart.)
const UNDER_WAY: usize = 64;
const BODY: &[u8] = b"ping";
const MESSAGE_BYTES: usize = 8;
const WORK: Duration = Duration::from_nanos(200);
const ROUNDS: usize = 300;

/// Lets this thread run until it sleeps, or for a tenth of a second, whoever else wakes.
fn run_on() -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the system reads the structure, and keeps nothing of it.
    match unsafe { libc::sched_setscheduler(0, libc::SCHED_RR, &raw const parameter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A connection that keeps its requests under way.
struct Client {
    peer: TcpStream,
    due: usize,
    replies: Vec<u8>,
    reads: usize,
}

impl Client {
    fn new(peer: TcpStream) -> Self {
        Self {
            peer,
            due: UNDER_WAY,
            replies: Vec::new(),
            reads: 0,
        }
    }

    fn send(&mut self) {
        let burst = message(BODY).repeat(self.due);
        self.peer.write_all(&burst).expect("a write");
    }

    fn receive(&mut self) {
        let before = self.replies.len() / MESSAGE_BYTES;
        let mut room = [0; UNDER_WAY * MESSAGE_BYTES];
        let len = self.peer.read(&mut room).expect("a read");
        self.replies.extend(&room[..len]);
        self.reads += 1;
        self.due = self.replies.len() / MESSAGE_BYTES - before;
    }
}

#[test]
fn replies_are_gathered_though_the_woken_do_not_come() {
    let [here, there, ..] = processors()[..] else {
        skipped("one processor only");
        return;
    };
    if let Err(e) = thread::spawn(run_on).join().expect("no panic") {
        skipped(&format!("SCHED_RR is not allowed: {e}"));
        return;
    }
    alone(60, move || {
        let mux = mux();
        let workers = [(); WORKERS].map(|()| {
            let mut socket = mux.socket().expect("a socket");
            thread::spawn(move || {
                stay_on(here);
                run_on().expect("it was allowed");
                while let Ok(message) = socket.recv() {
                    spin(WORK);
                    // (At the end, connections with requests under way are closed.)
                    let _ = message.reply(&message);
                }
            })
        });
        stay_on(there);
        let mut clients = [(); CONNECTIONS].map(|()| Client::new(attached(&mux).1));
        for _ in 0..ROUNDS {
            clients.iter_mut().for_each(Client::send);
            clients.iter_mut().for_each(Client::receive);
        }
        mux.shutdown();
        for worker in workers {
            worker.join().expect("no panic");
        }
        let (mut replies, mut reads) = (0, 0);
        for client in clients {
            let sent = message(BODY).repeat(client.replies.len() / MESSAGE_BYTES + 1);
            assert!(sent.starts_with(&client.replies));
            replies += client.replies.len() / MESSAGE_BYTES;
            reads += client.reads;
        }
        let together = replies / reads;
        eprintln!("{together} replies in a read");
        assert!(together >= UNDER_WAY / 4, "{together} replies in a read");
    });
}
