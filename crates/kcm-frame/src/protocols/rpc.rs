//! ONC RPC over TCP: records of fragments (RFC 5531, section 11).
//!
//! Each fragment has a header of four bytes: a bit that says "the last one", and
//! 31 bits of length without the header. A message here is a record, with all
//! its fragments and their headers as they were on the wire. Nothing says in
//! advance how long a record is, so its last header may lie anywhere below the
//! message limit; that is what [`Verdict::Fragment`] is for.

use crate::{
    Bits, Endian, Exception, FrameError, Framing, Header, LengthField, Parser, QuickForm, Verdict,
};

pub(super) fn framing() -> Framing {
    Framing::closure_of_protocol(
        |_| Some(quick_form()),
        |bytes| Rpc.parse(bytes),
        Some(|len| Rpc.header_for(len)),
    )
}

/// Records of one fragment.
fn quick_form() -> QuickForm {
    let mark = |mask: u32| Bits {
        turn: 32,
        mask: mask.into(),
    };
    QuickForm::new(0, Endian::Big, mark(!LAST_FRAGMENT), MARK_BYTES.into())
        .unless(Exception {
            bits: mark(LAST_FRAGMENT),
            low: 0,
            span: 0,
        })
        .expect("one exception")
}

struct Rpc;

/// The bit that says so; the others are the length.
const LAST_FRAGMENT: u32 = 1 << 31;

/// Bytes of a fragment's header, which its length does not count.
const MARK_BYTES: u32 = 4;

impl Parser for Rpc {
    fn parse(&self, bytes: &[u8]) -> Verdict {
        let Some(&mark) = bytes.first_chunk() else {
            return Verdict::NeedMore(4);
        };
        let mark = u32::from_be_bytes(mark);
        let len = u64::from(mark & !LAST_FRAGMENT) + u64::from(MARK_BYTES);
        if mark & LAST_FRAGMENT == 0 {
            Verdict::Fragment(len)
        } else {
            Verdict::message(len)
        }
    }

    /// The record mark of a single, last fragment.
    fn header_for(&self, body_len: u64) -> Result<Header, FrameError> {
        let mut header = LengthField::new(0, 4, Endian::Big)?
            .mask((!LAST_FRAGMENT).into())
            .bias(MARK_BYTES.into())
            .header_for(body_len)?;
        header[0] |= 0x80;
        Ok(header)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocols::quick;
    use crate::{Assembler, Fault, Frame, Limits, Step};

    fn fragment(last: bool, len: usize) -> Vec<u8> {
        let mut bytes = Rpc.header_for(len as u64).expect("31 bits").to_vec();
        bytes[0] &= if last { 0xff } else { 0x7f };
        bytes.resize(4 + len, 0xa5);
        bytes
    }

    #[test]
    fn the_last_fragment_may_begin_beyond_the_header_limit() {
        let limits = Limits::default().with_max_header_bytes(4);
        let record = [
            fragment(false, 100_000),
            fragment(false, 0),
            fragment(true, 3),
        ]
        .concat();
        let mut assembler = Assembler::new(&framing(), limits);
        let mut end = 1;
        let mut steps = 0;
        while end < record.len() {
            let Step::Incomplete { need, .. } = assembler.step(&record[..end]) else {
                panic!("not yet");
            };
            assert!(need <= record.len());
            end = need;
            steps += 1;
        }
        // First header, first end and byte behind it, and so on: no look in vain.
        assert!(steps <= 9, "{steps}");
        let whole = Step::Message(Frame::new(record.len() as u64));
        assert_eq!(assembler.step(&record), whole);
        assert_eq!(assembler.step(&record), whole);
        assembler.delivered(&record);
        assert_eq!(
            assembler.step(&fragment(true, 0)),
            Step::Message(Frame::new(4))
        );
    }

    #[test]
    fn the_message_limit_bounds_all_fragments_together() {
        let limits = Limits::default().with_max_message_bytes(12);
        let fits = [fragment(false, 4), fragment(true, 0)].concat();
        let mut assembler = Assembler::new(&framing(), limits);
        assert_eq!(assembler.step(&fits), Step::Message(Frame::new(12)));

        // As soon as it is known, which is before it is there.
        let mut assembler = Assembler::new(&framing(), limits);
        let fault = Fault::TooBig { len: 13, limit: 12 };
        assert_eq!(assembler.step(&fragment(false, 8)[..4]), Step::Fault(fault));
        let mut assembler = Assembler::new(&framing(), limits);
        let endless = fragment(false, 0).repeat(100);
        assert_eq!(assembler.step(&endless), Step::Fault(fault));
    }

    #[test]
    fn makes_marks_of_31_bits() {
        let most = u64::from(!LAST_FRAGMENT);
        let header = Rpc.header_for(most).map(|header| header.to_vec());
        assert_eq!(header, Ok(vec![0xff; 4]));
        assert_eq!(
            Rpc.header_for(most + 1).map_err(|e| e.errno()),
            Err(crate::errno::EMSGSIZE)
        );
    }

    #[test]
    fn the_quick_form_says_what_the_function_says() {
        let framing = framing();
        quick::check(
            &framing,
            &[
                (*b"\x80\0\0\0....", 4),
                (*b"\xff\xff\xff\xff....", (1 << 31) + 3),
            ],
        );
    }
}
