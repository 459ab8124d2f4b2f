//! `--list`: the protocols that have a name.

use kcm_frame::protocols;
use serde::Serialize;

use super::{failure::Failure, rows::Rows};

/// A protocol as JSON.
#[derive(Serialize)]
struct JsonProtocol<'a> {
    name: &'a str,
    summary: &'a str,
    note: &'a str,
    reference: &'a str,
    /// The text that means the same; none where it takes code.
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<&'a str>,
}

/// Lists them.
pub(super) fn run(rows: &mut Rows) -> Result<(), Failure> {
    for protocol in protocols() {
        let (name, summary, spec) = (protocol.name(), protocol.summary(), protocol.spec());
        let (note, reference) = (protocol.note(), protocol.reference());
        if rows.is_json() {
            rows.json(&JsonProtocol {
                name,
                summary,
                note,
                reference,
                spec,
            })?;
        } else {
            let spec = spec.unwrap_or("-");
            rows.text(format_args!(
                "{name:<17} {spec:<33} {summary}; {reference}\n"
            ))?;
        }
    }
    rows.flush()
}
