//! An ONC RPC server over TCP that answers the NULL procedure ("are you there?") of the port mapper.
//!
//! ```text
//! cargo run --example rpc -- 127.0.0.1:1110
//! rpcinfo -a 127.0.0.1.4.86 -T tcp 100000 2
//! ```
//!
//! It prints its address, so that port 0 can be asked for; the last two numbers of what `rpcinfo`
//! wants are the port's high and low byte. A message over TCP is a record of fragments (RFC 5531,
//! section 11), each with 31 bits of length under a bit that says "the last". Only records of one
//! fragment are understood here, which is what all common clients send.

use kcm::{Framing, Multiplexor};
use std::net::TcpListener;

const LAST_FRAGMENT: u32 = 1 << 31;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const RPC_VERSION: u32 = 2;
const ACCEPTED: u32 = 0;
const NO_CREDENTIALS: u32 = 0;

const PORT_MAPPER: u32 = 100_000;
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=4;
const NULL: u32 = 0;

const SUCCESS: u32 = 0;
const PROGRAM_UNAVAILABLE: u32 = 1;
const VERSION_MISMATCH: u32 = 2;
const PROCEDURE_UNAVAILABLE: u32 = 3;

/// The reply to a record, both with their record mark, or nothing if it is no call.
fn reply(record: &[u8]) -> Option<Vec<u8>> {
    let mut words = record.chunks_exact(4).map(|word| {
        let word = word.try_into().unwrap_or_default();
        u32::from_be_bytes(word)
    });
    let mut word = || words.next();
    let mark = word()?;
    let (transaction, kind, rpc_version) = (word()?, word()?, word()?);
    let (program, version, procedure) = (word()?, word()?, word()?);
    if mark & LAST_FRAGMENT == 0 || kind != CALL || rpc_version != RPC_VERSION {
        return None;
    }
    let mut reply = vec![0, transaction, REPLY, ACCEPTED, NO_CREDENTIALS, 0];
    match (program, procedure) {
        (PORT_MAPPER, _) if !VERSIONS.contains(&version) => {
            reply.extend([VERSION_MISMATCH, *VERSIONS.start(), *VERSIONS.end()]);
        }
        (PORT_MAPPER, NULL) => reply.push(SUCCESS),
        (PORT_MAPPER, _) => reply.push(PROCEDURE_UNAVAILABLE),
        _ => reply.push(PROGRAM_UNAVAILABLE),
    }
    let len = u32::try_from(4 * (reply.len() - 1)).ok()?;
    reply[0] = LAST_FRAGMENT | len;
    Some(reply.into_iter().flat_map(u32::to_be_bytes).collect())
}

fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:1110".into());
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);

    let framing = "len:size=4,mask=0x7fffffff,bias=4";
    let framing: Framing = framing.parse().map_err(kcm::Error::from)?;
    let mux = Multiplexor::builder(framing).build()?;
    mux.listen(listener)?;
    let mut socket = mux.socket()?;
    loop {
        let call = socket.recv()?;
        if let Some(reply) = reply(&call) {
            // It fails if the client has gone, which is no reason to stop.
            let _ = call.reply(&reply);
        }
    }
}
