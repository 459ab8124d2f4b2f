//! A framing as it is written on a command line, resolved: the only place that knows all forms.
//!
//! A name or a length field is text that `kcm-frame` reads. A program is loaded and verified here,
//! while the command line is read, so that no command ever sees one that has not passed.

use std::{
    fs::File,
    io::{self, Read as _},
    iter,
    path::Path,
    str::FromStr,
};

use kcm_bpf::{Insn, Program, classic, elf, op};
use kcm_frame::Framing;
use rustix::time::{ClockId, clock_gettime};

/// What is to be in a file.
const OBJECT: &str = "an object as `clang -O2 -target bpf -c` makes it";

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
        let framing = match asks_for_time(program.insns()) {
            true => program.framing_with_clock(boot_ns),
            false => program.framing(),
        };
        Ok(Self {
            text: text.to_owned(),
            framing,
            program: Some(program),
        })
    }
}

/// Whether a program would see that its clock stands still.
fn asks_for_time(program: &[Insn]) -> bool {
    const KTIME_GET_NS: i32 = 5;
    program.iter().any(|insn| {
        insn.code == op::JMP | op::CALL && insn.src == op::CALL_HELPER && insn.imm == KTIME_GET_NS
    })
}

/// The time that `bpf_ktime_get_ns` gives in the kernel: since the machine started.
fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let [seconds, ns] = [now.tv_sec, now.tv_nsec].map(|part| u64::try_from(part).unwrap_or(0));
    seconds.saturating_mul(1_000_000_000).saturating_add(ns)
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

/// `FILE` or `FILE:SECTION`. Either name may have colons: the longest name of a file that is there
/// counts, and of none the last colon parts them.
fn load_object(text: &str) -> Result<Vec<Insn>, String> {
    let splits = || {
        let parts = text.rmatch_indices(':');
        parts.map(|(at, _)| (&text[..at], Some(&text[at + 1..])))
    };
    let (file, section) = iter::once((text, None))
        .chain(splits())
        .find(|(file, _)| Path::new(file).exists())
        .or_else(|| splits().next())
        .unwrap_or((text, None));
    if file.is_empty() {
        return Err(format!("a file is needed, bpf:FILE.o: {OBJECT}"));
    }
    let object = read(Path::new(file)).map_err(|e| format!("{file}: {e} ({OBJECT} is needed)"))?;
    elf::load(&object, section).map_err(|e| format!("{file}: {e}"))
}

/// The file, but not much more than an object may have: that is refused later.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let longest = elf::MAX_OBJECT_BYTES as u64 + 1;
    File::open(path)?.take(longest).read_to_end(&mut bytes)?;
    Ok(bytes)
}
