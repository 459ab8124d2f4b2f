//! A DNS server over TCP for whom every name has the address 127.0.0.1.
//!
//! ```text
//! cargo run --example dns -- 127.0.0.1:5353
//! dig +tcp @127.0.0.1 -p 5353 example.org
//! ```
//!
//! It prints its address, so that port 0 can be asked for. DNS over TCP puts a 16-bit length before
//! each message (RFC 1035, 4.2.2): `u16be+2`. Queries of one connection may be answered in any
//! order (RFC 7766), which is what several sockets of one multiplexor do.

use kcm::{Framing, Multiplexor};
use std::net::TcpListener;

const HEADER: usize = 12;
const TYPE_A: &[u8] = &[0, 1];
const CLASS_IN: &[u8] = &[0, 1];

/// The answer to a query (both without their length), or nothing if it is none.
fn answer(query: &[u8]) -> Option<Vec<u8>> {
    let (header, rest) = query.split_at_checked(HEADER)?;
    if header[2] & 0x80 != 0 {
        return None;
    }
    // The name: labels with their lengths, to one of length 0; then type and class.
    let mut end = 0;
    while *rest.get(end)? != 0 {
        end += 1 + usize::from(rest[end]);
    }
    let question = rest.get(..end + 5)?;
    let (kind, class) = question[end + 1..].split_at(2);
    let known = kind == TYPE_A && class == CLASS_IN;

    let mut reply = header[..2].to_vec();
    // A response, authoritative; opcode and "recursion desired" as in the query. One question.
    reply.extend([
        header[2] & 0x79 | 0x84,
        0,
        0,
        1,
        0,
        u8::from(known),
        0,
        0,
        0,
        0,
    ]);
    reply.extend(question);
    if known {
        // The name of the question (at offset 12), type, class, a minute to live, four bytes.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
    }
    Some(reply)
}

fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:5353".into());
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);

    let framing: Framing = "u16be+2".parse().map_err(kcm::Error::from)?;
    let mux = Multiplexor::builder(framing.clone()).build()?;
    mux.listen(listener)?;
    let mut helper = mux.socket()?;
    let helper_framing = framing.clone();
    std::thread::spawn(move || serve(&mut helper, &helper_framing));
    Ok(serve(&mut mux.socket()?, &framing)?)
}

/// Answers what comes to this socket.
fn serve(socket: &mut kcm::Socket, framing: &Framing) -> kcm::Result<()> {
    loop {
        let query = socket.recv()?;
        if let Some(reply) = answer(&query[2..]) {
            let header = framing.header_for(reply.len() as u64)?;
            // It fails if the client has gone, which is no reason to stop.
            let _ = query.reply(&[&header, &reply[..]].concat());
        }
    }
}
