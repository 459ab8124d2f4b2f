//! Framings as text, for command lines and configuration files.
//!
//! Two spellings serve two readers. The short one (`u32be+4`) covers what most
//! protocols use and can be typed from memory; the long one (`len:size=4,...`)
//! names each number. Writing always takes the shortest text that reads back as
//! an equal value, and an error shows the piece that is wrong beside what could
//! stand there, as its reader is a person with a typing error.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::length_field::full_mask;
use crate::protocols::{self, Protocol};
use crate::varint::MAX_VARINT_BYTES;
use crate::{Endian, Fixed, FrameError, Framing, LengthField, Native, Varint};

/// All there is besides names, for error messages.
const FORMS: &str = "one of u8, u16be, u16le, u24be, u24le, u32be, u32le, u40be, u40le, u48be, \
                     u48le, u56be, u56le, u64be, u64le (each with +N or -N), \
                     len:size=N[,offset=N][,endian=big|little][,mask=N][,shift=N][,scale=N]\
                     [,bias=N], varint[:offset=N,max=N], fixed:N";

const LEN_KEYS: &str = "one of offset, size, endian, mask, shift, scale, bias, each once";
const VARINT_KEYS: &str = "one of offset, max, each once";
const OFFSETS: &str = "0 to 65535";
const WIDTHS: &str = "1 to 8";
const VARINT_WIDTHS: &str = "1 to 10";
const UNSIGNED: &str = "a decimal number, or a hexadecimal one after 0x";

impl FromStr for Framing {
    type Err = FrameError;

    /// Reads a framing that is a plain value (see [`Native`]'s `from_str`), or the
    /// name of any [`Protocol`].
    ///
    /// # Errors
    ///
    /// [`FrameError::Spec`] (`EINVAL`), which names the piece at fault.
    fn from_str(spec: &str) -> Result<Self, FrameError> {
        match Protocol::named(spec) {
            Some(protocol) => Ok(protocol.framing()),
            None => Reader { spec }.native().map(Self::from),
        }
    }
}

impl FromStr for Native {
    type Err = FrameError;

    /// Reads one of these forms:
    ///
    /// * `u8`, `u16be`, `u16le`, ... `u64be`, `u64le`: a [`LengthField`] at the
    ///   message's first byte, in steps of 8 bits; `+N` or `-N` after it is the
    ///   bias.
    /// * `len:size=4,offset=1,endian=big,mask=0xffff,shift=4,scale=8,bias=1`: a
    ///   [`LengthField`] with all there is. Only the size has to be given.
    /// * `varint:offset=1,max=4`: a [`Varint`]; without more, `varint` means
    ///   offset 0 and up to 10 bytes.
    /// * `fixed:N`: a [`Fixed`] length of N bytes.
    /// * `dns`, `kafka`, ...: the name of a [`Protocol`] that has one of the above
    ///   as its [`spec`](Protocol::spec).
    ///
    /// Numbers are decimal, or hexadecimal after `0x`, and count bytes, but for
    /// mask, shift and scale.
    ///
    /// # Errors
    ///
    /// [`FrameError::Spec`] (`EINVAL`), which names the piece at fault.
    ///
    /// ```
    /// let error = "u32xe+4".parse::<kcm_frame::Native>().unwrap_err().to_string();
    /// assert!(error.starts_with(r#""u32xe+4": unknown length field "u32xe": one of u8,"#));
    /// ```
    fn from_str(spec: &str) -> Result<Self, FrameError> {
        let reader = Reader { spec };
        match Protocol::named(spec) {
            Some(protocol) => protocol.native().ok_or_else(|| {
                reader.error(
                    "no plain length in protocol",
                    spec,
                    "its framing takes code",
                )
            }),
            None => reader.native(),
        }
    }
}

impl fmt::Display for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length(field) => field.fmt(f),
            Self::Varint(varint) => varint.fmt(f),
            Self::Fixed(fixed) => fixed.fmt(f),
        }
    }
}

impl fmt::Display for LengthField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let full = full_mask(self.width);
        if self.offset == 0 && self.mask == full && self.shift == 0 && self.scale == 1 {
            let endian = match self.endian {
                _ if self.width == 1 => "",
                Endian::Big => "be",
                Endian::Little => "le",
            };
            write!(f, "u{}{endian}", 8 * self.width)?;
            if self.bias != 0 {
                write!(f, "{:+}", self.bias)?;
            }
            return Ok(());
        }
        write!(f, "len:size={}", self.width)?;
        if self.offset != 0 {
            write!(f, ",offset={}", self.offset)?;
        }
        if self.endian == Endian::Little {
            f.write_str(",endian=little")?;
        }
        if self.mask != full {
            write!(f, ",mask={:#x}", self.mask)?;
        }
        if self.shift != 0 {
            write!(f, ",shift={}", self.shift)?;
        }
        if self.scale != 1 {
            write!(f, ",scale={}", self.scale)?;
        }
        if self.bias != 0 {
            write!(f, ",bias={}", self.bias)?;
        }
        Ok(())
    }
}

impl fmt::Display for Varint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.offset, self.max_bytes) {
            (0, MAX_VARINT_BYTES) => f.write_str("varint"),
            (0, max) => write!(f, "varint:max={max}"),
            (offset, MAX_VARINT_BYTES) => write!(f, "varint:offset={offset}"),
            (offset, max) => write!(f, "varint:offset={offset},max={max}"),
        }
    }
}

impl fmt::Display for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fixed:{}", self.len)
    }
}

/// Takes a text apart, and keeps the whole of it for the errors.
#[derive(Clone, Copy)]
struct Reader<'a> {
    spec: &'a str,
}

impl<'a> Reader<'a> {
    fn native(self) -> Result<Native, FrameError> {
        let (form, rest) = match self.spec.split_once(':') {
            Some((form, rest)) => (form, Some(rest)),
            None => (self.spec, None),
        };
        match (form, rest) {
            ("len", Some(rest)) => self.length_field(rest).map(Native::Length),
            ("varint", rest) => self.varint(rest).map(Native::Varint),
            ("fixed", Some(len)) => self.fixed(len).map(Native::Fixed),
            ("len" | "fixed", None) => Err(self.error("incomplete form", form, FORMS)),
            (_, Some(_)) => Err(self.error("unknown form", form, FORMS)),
            (short, None) => self.short(short).map(Native::Length),
        }
    }

    /// `u24be+9`
    fn short(self, text: &str) -> Result<LengthField, FrameError> {
        let (name, bias) = match text.find(['+', '-']) {
            Some(at) => text.split_at(at),
            None => (text, ""),
        };
        let unknown = || self.unknown(name);
        let (bits, endian) = match (name.strip_suffix("be"), name.strip_suffix("le")) {
            (Some(bits), _) => (bits, Endian::Big),
            (_, Some(bits)) => (bits, Endian::Little),
            _ if name == "u8" => (name, Endian::Big),
            _ => return Err(unknown()),
        };
        let width = match bits {
            "u8" if bits == name => 1,
            "u16" => 2,
            "u24" => 3,
            "u32" => 4,
            "u40" => 5,
            "u48" => 6,
            "u56" => 7,
            "u64" => 8,
            _ => return Err(unknown()),
        };
        let field = LengthField::new(0, width, endian)?;
        if bias.is_empty() {
            return Ok(field);
        }
        Ok(field.bias(self.signed(bias)?))
    }

    /// `size=4,offset=1,...`
    fn length_field(self, text: &'a str) -> Result<LengthField, FrameError> {
        let mut keys = Keys::new(self, text, LEN_KEYS);
        let (mut offset, mut size, mut endian) = ((0, ""), None, Endian::Big);
        let (mut mask, mut shift, mut scale, mut bias) = (u64::MAX, 0, 1, 0);
        while let Some((pair, key, value)) = keys.next()? {
            match key {
                "offset" => offset = (self.narrow(pair, value, OFFSETS)?, pair),
                "size" => size = Some((self.narrow(pair, value, WIDTHS)?, pair)),
                "endian" => {
                    endian = match value {
                        "big" => Endian::Big,
                        "little" => Endian::Little,
                        _ => return Err(self.error("unknown byte order", pair, "big or little")),
                    }
                }
                "mask" => mask = self.unsigned(value)?,
                "shift" => {
                    shift = match self.unsigned(value)?.try_into() {
                        Ok(shift @ 0..=64) => shift,
                        _ => return Err(self.out_of_range(pair, "0 to 64")),
                    }
                }
                "scale" => scale = self.unsigned(value)?,
                "bias" => bias = self.signed(value)?,
                _ => return Err(keys.unknown(pair)),
            }
        }
        let Some((width, size)) = size else {
            return Err(self.error("no size given in", text, "size=1 to size=8 is needed"));
        };
        let field = LengthField::new(offset.0, width, endian).map_err(|error| match error {
            FrameError::FieldWidth { .. } => self.out_of_range(size, WIDTHS),
            _ => self.out_of_range(offset.1, OFFSETS),
        })?;
        Ok(field.mask(mask).shift(shift).scale(scale).bias(bias))
    }

    /// `offset=1,max=4`
    fn varint(self, text: Option<&'a str>) -> Result<Varint, FrameError> {
        let (mut offset, mut max) = ((0, ""), (MAX_VARINT_BYTES, ""));
        if let Some(text) = text {
            let mut keys = Keys::new(self, text, VARINT_KEYS);
            while let Some((pair, key, value)) = keys.next()? {
                match key {
                    "offset" => offset = (self.narrow(pair, value, OFFSETS)?, pair),
                    "max" => max = (self.narrow(pair, value, VARINT_WIDTHS)?, pair),
                    _ => return Err(keys.unknown(pair)),
                }
            }
        }
        Varint::new(offset.0, max.0).map_err(|error| match error {
            FrameError::VarintWidth { .. } => self.out_of_range(max.1, VARINT_WIDTHS),
            _ => self.out_of_range(offset.1, OFFSETS),
        })
    }

    /// `512`
    fn fixed(self, len: &str) -> Result<Fixed, FrameError> {
        Fixed::new(self.unsigned(len)?)
            .map_err(|_| self.out_of_range(len, "a length of at least 1 byte"))
    }

    fn unsigned(self, text: &str) -> Result<u64, FrameError> {
        parse_unsigned(text).ok_or_else(|| self.error("bad number", text, UNSIGNED))
    }

    /// A number that has to fit a smaller type.
    fn narrow<T: TryFrom<u64>>(
        self,
        pair: &str,
        value: &str,
        possible: &'static str,
    ) -> Result<T, FrameError> {
        T::try_from(self.unsigned(value)?).map_err(|_| self.out_of_range(pair, possible))
    }

    fn signed(self, text: &str) -> Result<i64, FrameError> {
        let (negative, digits) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        parse_unsigned(digits)
            .and_then(|number| {
                if negative {
                    0_i64.checked_sub_unsigned(number)
                } else {
                    i64::try_from(number).ok()
                }
            })
            .ok_or_else(|| self.error("bad number", text, UNSIGNED))
    }

    fn out_of_range(self, piece: &str, possible: &'static str) -> FrameError {
        self.error("out of range", piece, possible)
    }

    /// No short form, and no name either.
    fn unknown(self, name: &str) -> FrameError {
        match protocols::near(self.spec) {
            Some(meant) => {
                let possible = format!("did you mean {}?", meant.name());
                self.error("unknown protocol", self.spec, possible)
            }
            None => {
                let possible = format!("{FORMS}, or a protocol: {}", protocols::names());
                self.error("unknown length field", name, possible)
            }
        }
    }

    fn error(
        self,
        problem: &'static str,
        piece: &str,
        possible: impl Into<Cow<'static, str>>,
    ) -> FrameError {
        FrameError::Spec {
            spec: self.spec.to_owned(),
            piece: piece.to_owned(),
            problem,
            possible: possible.into(),
        }
    }
}

/// The `key=value` pairs of a form, each key once.
struct Keys<'a> {
    reader: Reader<'a>,
    rest: Option<&'a str>,
    seen: Vec<&'a str>,
    possible: &'static str,
}

impl<'a> Keys<'a> {
    fn new(reader: Reader<'a>, text: &'a str, possible: &'static str) -> Self {
        Keys {
            reader,
            rest: Some(text),
            seen: Vec::new(),
            possible,
        }
    }

    /// The next pair as a whole, its key and its value.
    fn next(&mut self) -> Result<Option<(&'a str, &'a str, &'a str)>, FrameError> {
        let Some(rest) = self.rest else {
            return Ok(None);
        };
        let (pair, rest) = match rest.split_once(',') {
            Some((pair, rest)) => (pair, Some(rest)),
            None => (rest, None),
        };
        self.rest = rest;
        let Some((key, value)) = pair.split_once('=') else {
            return Err(self
                .reader
                .error("not a key=value pair:", pair, self.possible));
        };
        if self.seen.contains(&key) {
            return Err(self.reader.error("given twice:", pair, self.possible));
        }
        self.seen.push(key);
        Ok(Some((pair, key, value)))
    }

    fn unknown(&self, pair: &str) -> FrameError {
        self.reader.error("unknown key in", pair, self.possible)
    }
}

/// Digits only: what the standard library would take besides (a sign) is said
/// elsewhere or nowhere.
fn parse_unsigned(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.starts_with('+') {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests;
