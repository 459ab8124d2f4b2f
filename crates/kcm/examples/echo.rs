//! Answers every message with itself; messages are a 32-bit big-endian body length and a body.
//!
//! ```text
//! cargo run --example echo -- 127.0.0.1:7000
//! printf '\0\0\0\5hello' | nc -N 127.0.0.1 7000
//! ```

use kcm::{Framing, Multiplexor};
use std::net::TcpListener;

fn main() -> std::io::Result<()> {
    let address = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "127.0.0.1:7000".into());
    let listener = TcpListener::bind(address)?;
    println!("{}", listener.local_addr()?);

    let framing: Framing = "u32be+4".parse().map_err(kcm::Error::from)?;
    let mux = Multiplexor::builder(framing).build()?;
    mux.listen(listener)?;
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let mut socket = mux.socket()?;
            Ok(std::thread::spawn(move || {
                // One message at a time, from any connection, to any idle worker.
                while let Ok(request) = socket.recv() {
                    let _ = request.reply(&request);
                }
            }))
        })
        .collect::<kcm::Result<_>>()?;
    for worker in workers {
        let _ = worker.join();
    }
    Ok(())
}
