//! Replies to a burst that the only socket has waited for: the first half leaves ahead, if the peer is
//! on another processor.

mod common;

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use common::*;

/// Requests under way, each burst sent in one write once the one before is answered.
const UNDER_WAY: usize = 32;
const BODY: &[u8] = b"ping";
/// Half of the replies take as long as a send; all of them less, in a debug build too, than replies
/// wait for one another.
const WORK: Duration = Duration::from_nanos(300);
/// Longer than it takes to be idle.
const PAUSE: Duration = Duration::from_micros(100);
const ROUNDS: usize = 300;

/// In how many of the rounds the first replies came without the last.
fn rounds_in_parts(server_on: usize, client_on: usize) -> usize {
    let mux = mux();
    let (_, client) = attached(&mux);
    let mut socket = mux.socket().expect("a socket");
    let worker = thread::spawn(move || {
        stay_on(server_on);
        while let Ok(message) = socket.recv() {
            spin(WORK);
            message.reply(&message).expect("a reply");
        }
    });
    let client = thread::spawn(move || {
        stay_on(client_on);
        drive(client)
    });
    let in_parts = client.join().expect("no panic");
    mux.shutdown();
    worker.join().expect("no panic");
    in_parts
}

fn drive(mut client: TcpStream) -> usize {
    let burst = message(BODY).repeat(UNDER_WAY);
    let mut replies = vec![0; burst.len()];
    let mut in_parts = 0;
    for _ in 0..ROUNDS {
        spin(PAUSE);
        client.write_all(&burst).expect("sent");
        let first = client.read(&mut replies).expect("replies");
        in_parts += usize::from(first < replies.len());
        client.read_exact(&mut replies[first..]).expect("the rest");
        assert_eq!(replies, burst);
    }
    in_parts
}

#[test]
fn the_first_half_goes_ahead_to_another_processor() {
    let processors = processors();
    let [one, other, ..] = processors[..] else {
        skipped("one processor only");
        return;
    };
    bounded(60, move || {
        let (apart, together) = (rounds_in_parts(one, other), rounds_in_parts(one, one));
        eprintln!("of {ROUNDS} rounds in parts: {apart} apart, {together} on one processor");
        assert!(apart > ROUNDS / 4, "{apart} of {ROUNDS}");
        assert!(together < apart / 2, "{together} on one, {apart} apart");
    });
}
