//! Calls, and the replies to them, of which only the number differs.

use thrift::protocol::{
    TBinaryOutputProtocol, TFieldIdentifier, TMessageIdentifier, TMessageType, TOutputProtocol,
    TStructIdentifier, TType,
};

use kcm_example_thrift::wire::HEADER_BYTES;

/// A framed message of the binary protocol that carries a number, in its first field and (the
/// lower half) as its sequence id.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    bytes: Vec<u8>,
    sequence_at: usize,
    number_at: usize,
}

/// Before the name: the protocol's version and the message's type, and the name's length.
const BEFORE_NAME_BYTES: usize = 8;
const SEQUENCE_BYTES: usize = 4;
/// Its type and its id.
const FIELD_HEADER_BYTES: usize = 3;
const NUMBER_BYTES: usize = 8;

impl Template {
    pub(crate) fn call(method: &str, data_bytes: Option<usize>) -> thrift::Result<Self> {
        Self::new(method, TMessageType::Call, 1, data_bytes)
    }

    pub(crate) fn reply(method: &str) -> thrift::Result<Self> {
        Self::new(method, TMessageType::Reply, 0, None)
    }

    fn new(
        method: &str,
        message_type: TMessageType,
        field: i16,
        data_bytes: Option<usize>,
    ) -> thrift::Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES];
        let mut out = TBinaryOutputProtocol::new(&mut bytes, true);
        out.write_message_begin(&TMessageIdentifier::new(method, message_type, 0))?;
        out.write_struct_begin(&TStructIdentifier::new("fields"))?;
        out.write_field_begin(&TFieldIdentifier::new("number", TType::I64, field))?;
        out.write_i64(0)?;
        if let Some(len) = data_bytes {
            out.write_field_begin(&TFieldIdentifier::new("data", TType::String, field + 1))?;
            out.write_bytes(&vec![b'd'; len])?;
        }
        out.write_field_stop()?;
        let len = u32::try_from(bytes.len() - HEADER_BYTES).expect("a few kilobytes");
        bytes[..HEADER_BYTES].copy_from_slice(&len.to_be_bytes());
        let sequence_at = HEADER_BYTES + BEFORE_NAME_BYTES + method.len();
        Ok(Self {
            bytes,
            sequence_at,
            number_at: sequence_at + SEQUENCE_BYTES + FIELD_HEADER_BYTES,
        })
    }

    /// Appends the message with this number.
    pub(crate) fn append(&mut self, number: i64, to: &mut Vec<u8>) {
        to.extend_from_slice(self.numbered(number));
    }

    /// The number of a message, if it is this one in all other respects.
    pub(crate) fn number_of(&mut self, message: &[u8]) -> Option<i64> {
        let number = message
            .get(self.number_at..)?
            .first_chunk::<NUMBER_BYTES>()?;
        let number = i64::from_be_bytes(*number);
        (self.numbered(number) == message).then_some(number)
    }

    fn numbered(&mut self, number: i64) -> &[u8] {
        let bytes = number.to_be_bytes();
        self.bytes[self.number_at..][..NUMBER_BYTES].copy_from_slice(&bytes);
        let lower = &bytes[NUMBER_BYTES - SEQUENCE_BYTES..];
        self.bytes[self.sequence_at..][..SEQUENCE_BYTES].copy_from_slice(lower);
        &self.bytes
    }
}

/// Calls `take` for each whole framed message; says where the first unfinished one begins.
#[inline]
pub(crate) fn walk<E>(
    bytes: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<usize, E> {
    let mut rest = bytes;
    while let Some(header) = rest.first_chunk::<HEADER_BYTES>() {
        let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        let Some((message, after)) = rest.split_at_checked(len.saturating_add(HEADER_BYTES)) else {
            break;
        };
        take(message)?;
        rest = after;
    }
    Ok(bytes.len() - rest.len())
}
