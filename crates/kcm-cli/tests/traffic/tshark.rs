//! The same traffic, counted by tshark.
//!
//! What the proxy recorded is written as a capture: plain IPv4 packets with a TCP header, each
//! piece that was read a segment (or a few). Checksums are left zero, tshark does not look.

use std::{collections::BTreeMap, net::Ipv4Addr, process::Command};

use super::{
    proxy::{Recording, Side},
    tools::{Directory, find, run},
};

const SERVER_PORT: u16 = 7000;
const FIRST_CLIENT_PORT: u16 = 40_000;

/// The values of `field` for each connection and side, as tshark finds them when it reads the
/// port as `protocol`; nothing if it is not there.
pub(crate) fn values(
    directory: &Directory,
    recordings: &[Recording],
    protocol: &str,
    field: &str,
) -> Option<BTreeMap<(usize, bool), Vec<u64>>> {
    let tshark = find("tshark", "tshark")?;
    let path = directory.write("traffic.pcap", &capture(recordings));
    let mut command = Command::new(tshark);
    command.arg("-r").arg(path).args([
        "-d",
        &format!("tcp.port=={SERVER_PORT},{protocol}"),
        "-T",
        "fields",
        "-e",
        "tcp.srcport",
        "-e",
        "tcp.dstport",
        "-e",
        field,
    ]);
    let mut found: BTreeMap<_, Vec<u64>> = BTreeMap::new();
    for line in run(&mut command).lines() {
        let columns: Vec<_> = line.split('\t').collect();
        let [from, to, values] = columns[..] else {
            continue;
        };
        let (Ok(from), Ok(to)) = (from.parse::<u16>(), to.parse::<u16>()) else {
            continue;
        };
        let is_client = to == SERVER_PORT;
        let client = if is_client { from } else { to };
        let key = (usize::from(client - FIRST_CLIENT_PORT), is_client);
        let values = values.split(',').filter(|value| !value.is_empty());
        let values = values.map(|value| value.parse::<u64>().expect("a number"));
        found.entry(key).or_default().extend(values);
    }
    Some(found)
}

/// The connections as a capture file, one after the other.
fn capture(recordings: &[Recording]) -> Vec<u8> {
    const LINKTYPE_RAW: u32 = 101;
    let mut file = Vec::new();
    file.extend(0xa1b2_c3d4_u32.to_le_bytes());
    file.extend([2, 0, 4, 0]);
    file.extend([0; 8]);
    file.extend(0x4_0000_u32.to_le_bytes());
    file.extend(LINKTYPE_RAW.to_le_bytes());
    for (port, recording) in (FIRST_CLIENT_PORT..).zip(recordings) {
        let mut connection = Connection {
            port,
            next: [1000, 2000],
        };
        connection.packet(&mut file, Side::Client, SYN, &[]);
        connection.packet(&mut file, Side::Server, SYN | ACK, &[]);
        connection.packet(&mut file, Side::Client, ACK, &[]);
        for (side, bytes) in &recording.0 {
            for segment in bytes.chunks(1400) {
                connection.packet(&mut file, *side, ACK | PSH, segment);
            }
        }
        connection.packet(&mut file, Side::Client, FIN | ACK, &[]);
        connection.packet(&mut file, Side::Server, FIN | ACK, &[]);
    }
    file
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const PSH: u8 = 8;
const ACK: u8 = 16;

struct Connection {
    port: u16,
    /// Sequence numbers of client and server.
    next: [u32; 2],
}

impl Connection {
    fn packet(&mut self, file: &mut Vec<u8>, side: Side, flags: u8, payload: &[u8]) {
        const HEADERS: usize = 40;
        let us = usize::from(side == Side::Server);
        let mut ports = [self.port, SERVER_PORT];
        let mut hosts = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
        if side == Side::Server {
            ports.reverse();
            hosts.reverse();
        }
        let len = u16::try_from(HEADERS + payload.len()).expect("a segment");
        // Time 0; as much captured as there was.
        file.extend([0; 8]);
        file.extend(u32::from(len).to_le_bytes());
        file.extend(u32::from(len).to_le_bytes());
        // IPv4: 20 bytes, not fragmented, TCP.
        file.extend([0x45, 0]);
        file.extend(len.to_be_bytes());
        file.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
        file.extend(hosts.iter().flat_map(Ipv4Addr::octets));
        // TCP: 20 bytes, a large window.
        file.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
        file.extend(self.next[us].to_be_bytes());
        file.extend(self.next[1 - us].to_be_bytes());
        file.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        file.extend(payload);
        let of_flags = u32::from(flags & (SYN | FIN) != 0);
        let count = u32::try_from(payload.len()).expect("a segment");
        self.next[us] = self.next[us].wrapping_add(count + of_flags);
    }
}
