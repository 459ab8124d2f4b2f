//! How long a server waits until it asks a silent client whether it is still there. (Also a part of the
//! 9P example's tests.)

use std::{fs, time::Duration};

/// Until TCP's keep-alive asks, of the connection at this port of 127.0.0.1, or `None` while no
/// such timer runs: at first the system waits for an acknowledgement.
pub(crate) fn time_left(server_port: u16) -> Option<Duration> {
    let local = format!("0100007F:{server_port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").expect("it is there");
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    let connection = lines.find(|fields| fields[1] == local && fields[3] == "01")?;
    let hundredths = connection[5].strip_prefix("02:")?;
    let hundredths = u64::from_str_radix(hundredths, 16).ok()?;
    Some(Duration::from_millis(10 * hundredths))
}
