//! A framing as it is written on a command line, resolved: the only place that knows all forms.
//!
//! A name or a length field is text that `kcm-frame` reads. A program is loaded and verified here,
//! while the command line is read, so that no command ever sees one that has not passed.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    str::FromStr,
};

use kcm_bpf::{Insn, Program, classic, elf};
use kcm_frame::Framing;

/// Longest object file that is read, in bytes. A program has at most some million instructions of
/// 8 bytes, and debug information beside it.
const MAX_OBJECT_BYTES: u64 = 64 << 20;

/// What `--framing SPEC` stands for.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// As it was written.
    pub(crate) text: String,
    pub(crate) framing: Framing,
    /// The program behind it, if it is one.
    pub(crate) program: Option<Program>,
}

impl FromStr for Spec {
    /// Why it is none, and what to do; for a person.
    type Err = String;

    /// Reads one of these forms:
    ///
    /// * the name of a protocol: `http2`;
    /// * a length field, varint or fixed length: `u32be+4`, `len:...`, `varint:...`, `fixed:N`;
    /// * `bpf:FILE` or `bpf:FILE:SECTION`: a program in an object file that clang made;
    /// * `cbpf:TEXT`: classic BPF, as `tcpdump -ddd` prints it, newlines or commas between the
    ///   instructions.
    fn from_str(text: &str) -> Result<Self, String> {
        let insns = match text.split_once(':') {
            Some(("bpf", object)) => load_object(object)?,
            Some(("cbpf", classic)) => load_classic(classic)?,
            _ => {
                return Ok(Self {
                    text: text.to_owned(),
                    framing: text.parse().map_err(explain)?,
                    program: None,
                });
            }
        };
        let program = Program::verify(insns).map_err(|e| e.to_string())?;
        Ok(Self {
            text: text.to_owned(),
            framing: program.framing(),
            program: Some(program),
        })
    }
}

/// The library's error, and the forms that only the command knows.
fn explain(error: kcm_frame::FrameError) -> String {
    format!("{error}; or bpf:FILE.o[:SECTION], cbpf:TEXT; `kcm parse --list` lists the protocols")
}

fn load_classic(text: &str) -> Result<Vec<Insn>, String> {
    classic::parse_text(text)
        .and_then(|program| classic::to_ebpf(&program))
        .map_err(|e| e.to_string())
}

/// `FILE` or `FILE:SECTION`. A colon may be part of a file's name, if there is such a file.
fn load_object(text: &str) -> Result<Vec<Insn>, String> {
    let (file, section) = match text.rsplit_once(':') {
        Some((file, section)) if !Path::new(text).exists() => (file, Some(section)),
        _ => (text, None),
    };
    let object = read(Path::new(file)).map_err(|e| {
        format!("{file}: {e}; an object file is needed, as `clang -O2 -target bpf -c` makes it")
    })?;
    elf::load(&object, section).map_err(|e| format!("{file}: {e}"))
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut file = File::open(path)?.take(MAX_OBJECT_BYTES + 1);
    if file.read_to_end(&mut bytes)? as u64 > MAX_OBJECT_BYTES {
        let problem = format!("longer than {MAX_OBJECT_BYTES} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(bytes)
}
