//! The protocols that are known by name.
//!
//! Nobody should have to look up again where MySQL keeps its length. Most rows
//! of the table are one length field and therefore a text that reads back as a
//! [`Native`]; the others need a few lines of code, each in a file of its own
//! below this one. A name stands wherever a framing's text form does.
//!
//! What a row does *not* do: it checks no more of a message than is needed to
//! find its end, and enforces no maximum of the protocol's own, as
//! [`Limits`](crate::Limits) are there for that. Where either is surprising, the
//! row's note says so.

use crate::{Framing, Native};

mod amqp;
mod http2;
mod iscsi;
mod ldap;
mod postgres;
#[cfg(test)]
mod quick;
mod rpc;
mod websocket;

/// A protocol that has a name here.
///
/// ```
/// use kcm_frame::{Framing, Native, Protocol, Verdict};
/// let kafka = Protocol::named("kafka").expect("a known name");
/// assert_eq!(kafka.spec(), Some("u32be+4"));
///
/// // The name stands for the text.
/// let framing: Framing = "kafka".parse()?;
/// assert_eq!(framing.native(), Some("u32be+4".parse::<Native>()?));
/// # Ok::<(), kcm_frame::FrameError>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    name: &'static str,
    summary: &'static str,
    note: &'static str,
    reference: &'static str,
    rule: Rule,
}

/// All protocols that have a name, sorted by it.
///
/// ```
/// for protocol in kcm_frame::protocols() {
///     println!("{:18} {}", protocol.name(), protocol.summary());
/// }
/// # assert!(kcm_frame::protocols().len() > 20);
/// ```
pub fn protocols() -> impl ExactSizeIterator<Item = &'static Protocol> + Clone {
    TABLE.iter()
}

impl Protocol {
    /// The protocol of this very name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        protocols().find(|protocol| protocol.name == name)
    }

    /// Its name: small letters, digits and hyphens.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// What it is and what a message of it is, in a few words.
    #[must_use]
    pub const fn summary(&self) -> &'static str {
        self.summary
    }

    /// What its user has to know: which variants, what is not seen, the greatest
    /// message where it is not that of the length field. May be empty.
    #[must_use]
    pub const fn note(&self) -> &'static str {
        self.note
    }

    /// The address of the document that defines it.
    #[must_use]
    pub const fn reference(&self) -> &'static str {
        self.reference
    }

    /// The text form of its framing; `None` if it takes code.
    #[must_use]
    pub const fn spec(&self) -> Option<&'static str> {
        match self.rule {
            Rule::Plain(spec) => Some(spec),
            Rule::Code(_) => None,
        }
    }

    /// Its framing, for both directions of a connection.
    #[must_use]
    pub fn framing(&self) -> Framing {
        match self.rule {
            Rule::Plain(_) => self.native().map(Framing::from),
            Rule::Code(make) => Some(make()),
        }
        .expect("a test reads each text of the table")
    }

    /// Its framing as a plain value, if it is one.
    pub(crate) fn native(&self) -> Option<Native> {
        self.spec().and_then(|spec| spec.parse().ok())
    }
}

/// How a protocol's messages are found.
#[derive(Clone, Copy, Debug)]
enum Rule {
    /// By this text.
    Plain(&'static str),
    /// By a parser that this makes.
    Code(fn() -> Framing),
}

const TABLE: &[Protocol] = &[
    Protocol {
        name: "9p",
        summary: "9P2000 file system, all dialects (9P2000.u, .L)",
        note: "The length counts itself. Its greatest value is negotiated as msize.",
        reference: "https://ericvh.github.io/9p-rfc/rfc9p2000.html",
        rule: Rule::Plain("u32le"),
    },
    Protocol {
        name: "amqp",
        summary: "AMQP 0-9-1 and 1.0, the protocol header included",
        note: "From a connection's beginning, either direction; which version it is follows from \
               there. 1.0: https://docs.oasis-open.org/amqp/core/v1.0/amqp-core-transport-v1.0.html",
        reference: "https://www.rabbitmq.com/amqp-0-9-1-protocol",
        rule: Rule::Code(amqp::framing),
    },
    Protocol {
        name: "bgp",
        summary: "Border Gateway Protocol 4",
        note: "Messages have 19 to 4,096 bytes, with RFC 8654 to 65,535.",
        reference: "https://www.rfc-editor.org/rfc/rfc4271#section-4.1",
        rule: Rule::Plain("len:size=2,offset=16"),
    },
    Protocol {
        name: "cassandra",
        summary: "Cassandra's native protocol (CQL), versions 3 and 4",
        note: "Bodies have at most 256 MiB. Version 3 (native_protocol_v3.spec beside it) has the \
               same header. Version 5 wraps its messages in frames of another \
               form after the first exchange.",
        reference: "https://github.com/apache/cassandra/blob/trunk/doc/native_protocol_v4.spec",
        rule: Rule::Plain("len:size=4,offset=5,bias=9"),
    },
    Protocol {
        name: "diameter",
        summary: "Diameter base protocol",
        note: "The length counts the header, which has 20 bytes.",
        reference: "https://www.rfc-editor.org/rfc/rfc6733#section-3",
        rule: Rule::Plain("len:size=3,offset=1"),
    },
    Protocol {
        name: "dns",
        summary: "DNS over TCP (or inside of TLS)",
        note: "",
        reference: "https://www.rfc-editor.org/rfc/rfc7766#section-8",
        rule: Rule::Plain("u16be+2"),
    },
    Protocol {
        name: "http2",
        summary: "HTTP/2 frames; the connection preface is a message too",
        note: "From a connection's beginning, either direction.",
        reference: "https://www.rfc-editor.org/rfc/rfc9113#section-4.1",
        rule: Rule::Code(http2::framing),
    },
    Protocol {
        name: "iscsi",
        summary: "iSCSI PDUs, data padded",
        note: "Without header and data digests (HeaderDigest=None, DataDigest=None).",
        reference: "https://www.rfc-editor.org/rfc/rfc7143#section-11.2",
        rule: Rule::Code(iscsi::framing),
    },
    Protocol {
        name: "kafka",
        summary: "Apache Kafka, requests and responses",
        note: "Brokers take requests of up to 100 MiB (socket.request.max.bytes).",
        reference: "https://kafka.apache.org/protocol#protocol_common",
        rule: Rule::Plain("u32be+4"),
    },
    Protocol {
        name: "ldap",
        summary: "LDAP version 3",
        note: "Neither after StartTLS nor with a SASL security layer.",
        reference: "https://www.rfc-editor.org/rfc/rfc4511#section-5.1",
        rule: Rule::Code(ldap::framing),
    },
    Protocol {
        name: "memcached-binary",
        summary: "memcached's binary protocol",
        note: "Not the text protocol.",
        reference: "https://github.com/memcached/memcached/wiki/BinaryProtocolRevamped",
        rule: Rule::Plain("len:size=4,offset=8,bias=24"),
    },
    Protocol {
        name: "mongodb",
        summary: "MongoDB wire protocol",
        note: "The length counts the header of 16 bytes; servers take up to 48,000,000 bytes.",
        reference: "https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/",
        rule: Rule::Plain("u32le"),
    },
    Protocol {
        name: "mqtt",
        summary: "MQTT, all versions (3.1 to 5.0)",
        note: "",
        reference: "https://docs.oasis-open.org/mqtt/mqtt/v5.0/mqtt-v5.0.html#_Toc3901021",
        rule: Rule::Plain("varint:offset=1,max=4"),
    },
    Protocol {
        name: "mysql",
        summary: "MySQL and MariaDB client/server protocol: its packets",
        note: "What needs more than 16,777,215 bytes goes on in the next packet. Such a full \
               packet has 16,777,219 bytes: three more than the default limit of a message. \
               Neither compressed nor encrypted connections.",
        reference: "https://dev.mysql.com/doc/dev/mysql-server/latest/\
                    page_protocol_basic_packets.html",
        rule: Rule::Plain("u24le+4"),
    },
    Protocol {
        name: "nvme-tcp",
        summary: "NVMe over TCP: its PDUs",
        note: "The length counts header, padding, data and the digests of both.",
        reference: "https://nvmexpress.org/specification/tcp-transport-specification/",
        rule: Rule::Plain("len:size=4,offset=4,endian=little"),
    },
    Protocol {
        name: "postgres",
        summary: "PostgreSQL, version 3 of its protocol",
        note: "From a connection's beginning, either direction, start-up packets and the one-byte answers \
               included; not encrypted.",
        reference: "https://www.postgresql.org/docs/current/protocol-message-formats.html",
        rule: Rule::Code(postgres::framing),
    },
    Protocol {
        name: "rds",
        summary: "Reliable Datagram Sockets over TCP",
        note: "The length does not count the header of 48 bytes. Messages have at most 1 MiB of \
               data, as Linux sends them.",
        reference: "https://oss.oracle.com/projects/rds/dist/documentation/rds-3.1-spec.html",
        rule: Rule::Plain("len:size=4,offset=16,bias=48"),
    },
    Protocol {
        name: "rpc",
        summary: "ONC RPC (NFS, port mapper): whole records",
        note: "A record has all its fragments with their headers.",
        reference: "https://www.rfc-editor.org/rfc/rfc5531#section-11",
        rule: Rule::Code(rpc::framing),
    },
    Protocol {
        name: "smpp",
        summary: "Short Message Peer-to-Peer, versions 3.3 to 5.0",
        note: "The length counts the header, which has 16 bytes.",
        reference: "https://smpp.org/SMPP_v3_4_Issue1_2.pdf",
        rule: Rule::Plain("u32be"),
    },
    Protocol {
        name: "thrift",
        summary: "Apache Thrift, framed transport and THeader",
        note: "Not the unframed transport, which has no lengths. Servers take up to 16,384,000 \
               bytes by default. THeader: \
               https://github.com/apache/thrift/blob/master/doc/specs/HeaderFormat.md",
        reference: "https://github.com/apache/thrift/blob/master/doc/specs/thrift-rpc.md\
                    #framed-vs-unframed-transport",
        rule: Rule::Plain("u32be+4"),
    },
    Protocol {
        name: "tls",
        summary: "TLS 1.0 to 1.3: its records",
        note: "The greatest record has 18,437 bytes (TLS 1.3: 16,645).",
        reference: "https://www.rfc-editor.org/rfc/rfc8446#section-5.1",
        rule: Rule::Plain("len:size=2,offset=3,bias=5"),
    },
    Protocol {
        name: "websocket",
        summary: "WebSocket frames, after the upgrade",
        note: "Either direction. A message in fragments is several frames.",
        reference: "https://www.rfc-editor.org/rfc/rfc6455#section-5.2",
        rule: Rule::Code(websocket::framing),
    },
];

/// All names, for error messages.
pub(crate) fn names() -> String {
    let names: Vec<_> = protocols().map(Protocol::name).collect();
    names.join(", ")
}

/// The protocol whose name somebody may have meant by `text`.
pub(crate) fn near(text: &str) -> Option<&'static Protocol> {
    // Names have at most 16 letters; nothing longer is a typing error of one.
    let text: Vec<u8> = match text.len() {
        2..=32 => text.to_ascii_lowercase().into_bytes(),
        _ => return None,
    };
    let errors = |protocol: &Protocol| {
        let name = protocol.name.as_bytes();
        if text.len() >= 3 && (name.starts_with(&text) || name.len() >= 3 && text.starts_with(name))
        {
            return Some(1);
        }
        let errors = edit_distance(name, &text);
        (errors <= name.len() / 3).then_some(errors)
    };
    protocols()
        .filter_map(|protocol| Some((errors(protocol)?, protocol)))
        .min_by_key(|&(errors, _)| errors)
        .map(|(_, protocol)| protocol)
}

/// How many letters have to be put in, taken out, replaced, or swapped with
/// their neighbour to make one text the other (optimal string alignment).
fn edit_distance(a: &[u8], b: &[u8]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_can_be_used_and_read() {
        for protocol in protocols() {
            let name = protocol.name();
            let framing: Framing = name.parse().expect(name);
            assert_eq!(framing.native(), protocol.native(), "{name}");
            assert_eq!(framing.native(), protocol.framing().native(), "{name}");
            assert_eq!(framing.native().is_some(), protocol.spec().is_some());
            if let (Some(native), Some(spec)) = (framing.native(), protocol.spec()) {
                assert_eq!(native.to_string(), spec, "{name}: the shortest text");
                assert_eq!(name.parse(), Ok(native));
            }
            let letters = name.bytes();
            assert!(
                letters
                    .clone()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            );
            assert!(protocol.reference().starts_with("https://"), "{name}");
            assert!(!protocol.reference().contains(' '), "{name}");
            assert!(!protocol.summary().is_empty(), "{name}");
        }
    }

    /// What has no state is not paid for as if it had.
    #[test]
    fn a_parser_for_each_connection_is_for_those_with_a_beginning() {
        let stateful = |protocol: &&Protocol| matches!(protocol.framing(), Framing::Stateful(_));
        let names: Vec<_> = protocols().filter(stateful).map(Protocol::name).collect();
        assert_eq!(names, ["amqp", "http2", "postgres"]);
    }

    /// What is a function is not called for its usual message.
    #[test]
    fn functions_have_quick_forms() {
        for protocol in protocols() {
            if let Framing::Closure(function) = protocol.framing() {
                assert!(function.quick_form(&[]).is_some(), "{}", protocol.name());
            }
        }
    }

    #[test]
    fn sorted_and_each_name_once() {
        assert!(protocols().is_sorted_by(|a, b| a.name() < b.name()));
    }

    #[test]
    fn near_names_are_found() {
        let meant = |text| near(text).map(Protocol::name);
        for (text, name) in [
            ("thrfit", "thrift"),
            ("DNS", "dns"),
            ("dsn", "dns"),
            ("nvme", "nvme-tcp"),
            ("memcached", "memcached-binary"),
            ("mongo", "mongodb"),
            ("kafkaa", "kafka"),
        ] {
            assert_eq!(meant(text), Some(name), "{text}");
        }
        for text in ["", "u", "u8", "u32", "u16xe", "len", "varin", "fixed", "x"] {
            assert_eq!(meant(text), None, "{text}");
        }
        assert_eq!(meant(&"thrift".repeat(10)), None);
    }

    #[test]
    fn distances() {
        for (a, b, distance) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("abc", "acb", 1),
            ("abc", "abd", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(edit_distance(a.as_bytes(), b.as_bytes()), distance);
            assert_eq!(edit_distance(b.as_bytes(), a.as_bytes()), distance);
        }
    }
}
