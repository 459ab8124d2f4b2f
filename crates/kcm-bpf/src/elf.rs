//! Programs out of ELF objects, as `clang -O2 -target bpf -c` writes them.
//!
//! Such an object is not yet a program: functions lie in several sections, and a call between them
//! is a relocation. Which function is meant follows libbpf. Each section with code other than
//! `.text` holds a program, the global function in it; `.text` holds functions that programs call,
//! and is a program only when there is no other. So we choose a section (`load`), its one global
//! function becomes main, and the functions that can be reached by calls are put behind it
//! (`link.rs`).
//!
//! What an object can have besides is left out if nothing that runs needs it (a license, debug
//! information, BTF), and refused by name if something does: maps, global variables and constant
//! data need memory beside the program, and a parser has none.
//!
//! The `object` crate reads the format. All of its numbers are from outside and checked here: any
//! bytes give a program or an error.

mod link;

use std::collections::BTreeMap;

use object::elf::{EM_BPF, ET_REL, FileHeader64};
use object::read::elf::{ElfFile64, FileHeader as _};
use object::{
    LittleEndian, Object as _, ObjectSection, ObjectSymbol, SectionKind, SymbolIndex, SymbolKind,
};

use crate::{Error, Insn, Result};

/// Longest object that is read, in bytes. Parsers take some KB, with debug information some 100.
pub const MAX_OBJECT_BYTES: usize = 4 << 20;

/// Most sections with code that an object may have. Each one's name is looked at, and in a senseless
/// object each may be as long as the object: this and the length above bound the time to 1 GB of
/// searching for the end of names, a tenth of a second.
pub const MAX_CODE_SECTIONS: usize = 256;

/// Most names that an error lists.
const MAX_LISTED: usize = 16;

/// The section that holds functions for all programs of an object.
const SHARED: &str = ".text";

/// Reads the program in a section of an object, or in the only section with code besides `.text` if
/// none is named.
///
/// ```
/// // uint32_t thrift(struct __sk_buff *skb) { return load_word(skb, 0) + 4; }
/// let object = include_bytes!("../tests/objects/thrift.o");
/// let program = kcm_bpf::elf::load(object, None)?;
/// assert_eq!(kcm_bpf::disassemble(&program).to_string(), "    \
///     0: r6 = r1
///     1: r0 = *(u32 *)skb[0]
///     2: r0 += 4
///     3: exit
/// ");
/// # Ok::<(), kcm_bpf::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Object`] (`ENOEXEC`) for what is not a BPF object; [`Error::NotFound`] (`ENOENT`) and
/// [`Error::Ambiguous`] (`EINVAL`) if the section or the function in it is not there or not the only
/// one; [`Error::Unlinkable`] (`EOPNOTSUPP`) for maps, global variables, constant data and functions
/// that are elsewhere; [`Error::TooLong`] (`E2BIG`) beyond [`MAX_INSNS`](crate::MAX_INSNS).
pub fn load(object: &[u8], section: Option<&str>) -> Result<Vec<Insn>> {
    let object = Object::parse(object)?;
    let section = object.choose_section(section)?;
    let main = object.main_function(section)?;
    link::link(&object, main)
}

/// An object with an index of its functions.
struct Object<'data> {
    file: ElfFile64<'data, LittleEndian>,
    functions: BTreeMap<Place, Function>,
}

/// The index of a section, and an offset in bytes in it.
type Place = (usize, u64);

#[derive(Clone, Copy)]
struct Function {
    /// Has its name, which only errors need.
    symbol: SymbolIndex,
    len_bytes: u64,
    is_global: bool,
}

impl<'data> Object<'data> {
    fn parse(data: &'data [u8]) -> Result<Self> {
        check_kind(data)?;
        let file = ElfFile64::<LittleEndian>::parse(data).map_err(malformed)?;
        let mut functions: BTreeMap<Place, Function> = BTreeMap::new();
        for symbol in file.symbols() {
            let (SymbolKind::Text, Some(section)) = (symbol.kind(), symbol.section_index()) else {
                continue;
            };
            let function = Function {
                symbol: symbol.index(),
                len_bytes: symbol.size(),
                is_global: symbol.is_global(),
            };
            let place = (section.0, symbol.address());
            // Of several names of one function a global one counts.
            let known = functions.entry(place).or_insert(function);
            if function.is_global && !known.is_global {
                *known = function;
            }
        }
        Ok(Self { file, functions })
    }

    fn choose_section(&self, wanted: Option<&str>) -> Result<usize> {
        let mut with_code = Vec::new();
        for section in self.file.sections() {
            if section.kind() == SectionKind::Text && section.size() > 0 {
                if with_code.len() == MAX_CODE_SECTIONS {
                    let problem = format!("more than {MAX_CODE_SECTIONS} sections with code");
                    return Err(Error::Object { problem });
                }
                with_code.push((section.name().map_err(malformed)?, section.index().0));
            }
        }
        let fits = |name: &str| wanted.map_or(name != SHARED, |wanted| name == wanted);
        let mut fitting: Vec<_> = with_code.iter().filter(|(name, _)| fits(name)).collect();
        if fitting.is_empty() && wanted.is_none() {
            fitting = with_code.iter().collect();
        }
        let names = |sections: &[&(&str, usize)]| {
            sections
                .iter()
                .take(MAX_LISTED)
                .map(|(name, _)| (*name).to_owned())
                .collect()
        };
        match fitting.as_slice() {
            [(_, index)] => Ok(*index),
            [] => Err(Error::NotFound {
                wanted: match wanted {
                    Some(name) => format!("section {name:?} with code"),
                    None => "section with code".to_owned(),
                },
                sections: names(&with_code.iter().collect::<Vec<_>>()),
            }),
            several => Err(Error::Ambiguous {
                what: "several sections have code, name the one to run",
                names: names(several),
            }),
        }
    }

    fn main_function(&self, section: usize) -> Result<Place> {
        let all = (section, 0)..=(section, u64::MAX);
        let mut globals = self.functions.range(all).filter(|(_, f)| f.is_global);
        let Some((&place, first)) = globals.next() else {
            let problem = "no global function in the section: a program is one, without `static`";
            return Err(not_an_object(problem));
        };
        let Some((_, second)) = globals.next() else {
            return Ok(place);
        };
        let functions = [first, second].into_iter().chain(globals.map(|(_, f)| f));
        Err(Error::Ambiguous {
            what: "the section has several global functions, put the one to run into a section of \
                   its own, or make the others static",
            names: functions
                .take(MAX_LISTED)
                .map(|f| self.name_of(f))
                .collect(),
        })
    }

    fn name_of(&self, function: &Function) -> String {
        let symbol = self.file.symbol_by_index(function.symbol);
        let name = symbol.as_ref().map_or("?", |s| s.name().unwrap_or("?"));
        name.to_owned()
    }
}

/// Says of the usual wrong files what they are.
fn check_kind(data: &[u8]) -> Result<()> {
    if data.len() > MAX_OBJECT_BYTES {
        let problem = format!("longer than {MAX_OBJECT_BYTES} bytes");
        return Err(Error::Object { problem });
    }
    let problem = match data {
        [0x7f, b'E', b'L', b'F', 2, 1, ..] => {
            let header = FileHeader64::<LittleEndian>::parse(data).map_err(malformed)?;
            match (header.e_machine(LittleEndian), header.e_type(LittleEndian)) {
                (EM_BPF, ET_REL) => return Ok(()),
                (EM_BPF, _) => "linked already, so not what the compiler wrote",
                _ => "made for another processor, not for BPF",
            }
        }
        [0x7f, b'E', b'L', b'F', 2, 2, ..] => "big-endian",
        [0x7f, b'E', b'L', b'F', 1, ..] => "of 32 bits, so not BPF",
        [b'B', b'C', 0xc0, 0xde, ..] => "LLVM bitcode, as -emit-llvm and -flto make it",
        _ => "not ELF",
    };
    let problem = format!("{problem} (clang -O2 -target bpfel -c makes the right kind)");
    Err(Error::Object { problem })
}

fn malformed(error: object::Error) -> Error {
    let problem = format!("damaged: {error}");
    Error::Object { problem }
}

fn not_an_object(problem: &str) -> Error {
    let problem = problem.to_owned();
    Error::Object { problem }
}
