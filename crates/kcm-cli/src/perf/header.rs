//! Messages for a framing that only reads them.
//!
//! `pipeline` needs headers, and raw TCP hand-written framing: both are a native length field. A
//! program (or a parser with code) gives neither, so a length field is looked for by which
//! messages can be made that the program finds, whatever number is in them. For a program that
//! reads a length somewhere near its front there is one; what else it looks at may want a header
//! that `--header` tells. It does not matter whether the field found is *the* field of that
//! protocol: each message parses to its very length, which is all that is measured.

use kcm::Framing;
use kcm_frame::{Assembler, Endian, LengthField, Limits, Native, Step, Varint};

use super::{failure::Failure, verify::Template};
use crate::spec::Spec;

/// Where a length field is looked for. Protocols have theirs in the first few words.
const OFFSETS: usize = 32;
/// Bytes that a length may leave out: those of the header, and what a protocol has behind it.
const BIASES: i64 = 64;
/// In the order of how common they are.
const WIDTHS: [usize; 5] = [4, 2, 3, 1, 8];
const VARINT_BYTES: usize = 10;

/// The length field by which messages of so many bytes are made for this framing.
pub(super) fn find(
    spec: &Spec,
    header: Option<&Spec>,
    message_bytes: usize,
) -> Result<Native, Failure> {
    if let Some(header) = header {
        let native = header.framing.native().ok_or_else(|| {
            Failure::Usage(format!(
                "--header {}: a length field is needed, such as u32be+4",
                header.text
            ))
        })?;
        let template = Template::with_length(&native.into(), message_bytes)?;
        if !are_found(&spec.framing, &template) {
            return Err(Failure::Usage(format!(
                "messages of {message_bytes} bytes made with --header {} do not parse to their \
                 length with --framing {}",
                header.text, spec.text
            )));
        }
        return Ok(native);
    }
    if let Some(native) = spec.framing.native() {
        return Ok(native);
    }
    candidates()
        .find(|native| {
            Template::with_length(&(*native).into(), message_bytes)
                .is_ok_and(|template| are_found(&spec.framing, &template))
        })
        .ok_or_else(|| {
            Failure::Usage(format!(
                "no length field was found by which --framing {} finds messages of \
                 {message_bytes} bytes: name one with --header, or give another --size",
                spec.text
            ))
        })
}

/// Length fields, those before others that are more probable.
fn candidates() -> impl Iterator<Item = Native> {
    let fields = (0..OFFSETS).flat_map(|offset| {
        WIDTHS.into_iter().flat_map(move |width| {
            let endians: &[Endian] = match width {
                1 => &[Endian::Big],
                _ => &[Endian::Big, Endian::Little],
            };
            endians.iter().flat_map(move |&endian| {
                (0..=BIASES).filter_map(move |bias| {
                    let field = LengthField::new(offset, width, endian).ok()?;
                    Some(Native::Length(field.bias(bias)))
                })
            })
        })
    });
    let varints = (0..OFFSETS)
        .filter_map(|offset| Some(Native::Varint(Varint::new(offset, VARINT_BYTES).ok()?)));
    fields.chain(varints)
}

/// Whether the framing finds such messages one after the other, whatever their numbers.
fn are_found(framing: &Framing, template: &Template) -> bool {
    let numbers = [0, 1, 0x0102_0304_0506_0708, u64::MAX / 3, 1 << 63, u64::MAX];
    let mut stream = template.bytes().repeat(numbers.len());
    for (message, number) in stream.chunks_exact_mut(template.len()).zip(numbers) {
        template.number(message, number);
    }
    let mut assembler = Assembler::new(framing, Limits::default());
    let mut rest = &stream[..];
    while !rest.is_empty() {
        match assembler.step(rest) {
            Step::Message(frame) if frame.len == template.len() as u64 => {
                let (message, after) = rest.split_at(template.len());
                assembler.delivered(message);
                rest = after;
            }
            _ => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use kcm_frame::Verdict;

    use super::*;

    fn spec(text: &str) -> Spec {
        text.parse().expect("a good specification")
    }

    /// The framing of a text, as code that only reads it.
    fn opaque(text: &str) -> Spec {
        let native = spec(text).framing.native().expect("native");
        Spec {
            text: "opaque".to_owned(),
            framing: Framing::closure(move |bytes| native.parse(bytes)),
            program: None,
        }
    }

    #[test]
    fn what_is_native_makes_its_own_headers() {
        let native = find(&spec("u24be+9"), None, 64).expect("native");
        assert_eq!(native.to_string(), "u24be+9");
    }

    #[test]
    fn a_header_is_found_for_what_only_reads() {
        for text in [
            "u32be+4",
            "u16le",
            "u24be+9",
            "u8+1",
            "len:offset=16,size=2,bias=48",
            "len:offset=4,size=4,endian=little,bias=8",
            "varint:offset=1",
            "fixed:64",
        ] {
            let framing = opaque(text);
            let native = find(&framing, None, 64).expect(text);
            let template = Template::with_length(&native.into(), 64).expect("has been made");
            assert!(are_found(&framing.framing, &template), "{text}: {native}");
        }
    }

    #[test]
    fn what_cannot_be_found_can_be_told() {
        // The unit is four bytes, and a byte has to be right.
        let inner = spec("len:size=1,offset=1,scale=4").framing.native();
        let inner = inner.expect("native");
        let picky = Spec {
            text: "picky".to_owned(),
            framing: Framing::closure(move |bytes| match bytes.first() {
                Some(0) | None => inner.parse(bytes),
                Some(_) => Verdict::Error(71),
            }),
            program: None,
        };
        assert!(matches!(find(&picky, None, 66), Err(Failure::Usage(_))));
        let header = spec("len:size=1,offset=1,scale=4");
        assert!(find(&picky, Some(&header), 64).is_ok());
        let wrong = spec("u32le");
        assert!(matches!(
            find(&picky, Some(&wrong), 64),
            Err(Failure::Usage(_))
        ));
    }
}
