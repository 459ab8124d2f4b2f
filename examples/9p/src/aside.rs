//! Clients that do not read their replies.
//!
//! A reply that the system does not take is queued, and the queue has a limit. Without more, a
//! client that only asks and never reads would soon have every worker waiting to send to it. So a
//! worker that is given a request of a client with much still to read does not begin with it: it
//! puts the request aside, with the socket that it came by, and goes on with another socket. The
//! connection is ordered, and this socket has not said that it is done: no more of the client's
//! requests come. What one client can have is bounded thereby: [`BEHIND_BYTES`], the replies to the
//! requests that were admitted before, and one request here.
//!
//! One thread looks after all that are put aside. It sleeps while there are none.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::Duration,
};

use kcm::{Message, Socket};

use crate::{
    server::{Client, serve_one},
    wire::Reply,
};

/// Bytes that a client may have still to read when another request of it is begun, 256 KiB:
/// some of the largest replies, on top of what the system's buffers hold.
pub(crate) const BEHIND_BYTES: usize = 256 << 10;
/// How often it is looked whether a client has read on.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A request that was put aside.
pub(crate) struct Aside {
    pub(crate) client: Arc<Client>,
    pub(crate) message: Message,
    pub(crate) socket: Socket,
}

/// Starts the thread. It ends when the senders are gone and all is served.
pub(crate) fn start() -> std::io::Result<Sender<Aside>> {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("9p-aside".to_owned())
        .spawn(move || look_after(&receiver))?;
    Ok(sender)
}

fn look_after(receiver: &Receiver<Aside>) {
    let mut reply = Reply::default();
    let mut waiting = Vec::new();
    while let Ok(first) = receiver.recv() {
        waiting.push(first);
        while !waiting.is_empty() {
            thread::sleep(LOOK_EVERY);
            waiting.extend(receiver.try_iter());
            for mut aside in waiting.extract_if(.., |aside| !aside.client.is_behind()) {
                serve_one(&aside.client, &mut aside.socket, &aside.message, &mut reply);
            }
        }
    }
}
