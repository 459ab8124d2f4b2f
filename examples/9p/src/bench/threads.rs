//! The server to compare with: a thread for each client, which reads a message's length, and then
//! the rest of it, and answers before it reads the next.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::Arc,
    thread,
};

use ninep::{Session, Shared, wire::Reply};

const LENGTH_BYTES: usize = 4;

/// Serves the listener's clients from now on.
pub(crate) fn start(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    thread::Builder::new()
        .name("threads-accept".to_owned())
        .spawn(move || {
            for (id, stream) in (0..).zip(listener.incoming()) {
                let Ok(stream) = stream else { return };
                let session = Session::new(id, shared.clone());
                thread::spawn(move || serve(stream, &session));
            }
        })?;
    Ok(())
}

/// Until the client has gone, or has sent what is no message.
fn serve(mut stream: TcpStream, session: &Session) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = Vec::new();
    let mut reply = Reply::default();
    loop {
        message.resize(LENGTH_BYTES, 0);
        stream.read_exact(&mut message)?;
        let len = u32::from_le_bytes([message[0], message[1], message[2], message[3]]);
        let len = usize::try_from(len.min(session.msize())).unwrap_or(usize::MAX);
        message.resize(len.max(LENGTH_BYTES), 0);
        stream.read_exact(&mut message[LENGTH_BYTES..])?;
        let send = |reply: &[u8]| drop((&stream).write_all(reply));
        if session.serve(&message, &mut reply, || (), send).is_err() {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
}
