//! Puts a function and all it calls into one program.
//!
//! Functions are placed in the order in which calls to them are found, main first, each as it is;
//! only the distances of calls are made anew. In the object such a call is one of two kinds:
//!
//! - within a section, the distance may be final, as that of a jump is;
//! - else there is a relocation. The constant then is what would be the distance if the relocation's
//!   symbol was the next instruction: -1 for a function's own symbol, more for a function that is
//!   counted from its section's start.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use object::elf::{R_BPF_64_32, R_BPF_NONE, RelocationType};
use object::{
    Object as _, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex,
    SectionKind, SymbolIndex, SymbolKind,
};

use super::{Function, Object, Place, malformed, not_an_object};
use crate::{Error, Insn, MAX_INSNS, Result};

/// Length of an instruction, as objects count.
const INSN_BYTES: u64 = Insn::BYTES as u64;

/// Links the function at `main` and those that it reaches.
pub(super) fn link(object: &Object, main: Place) -> Result<Vec<Insn>> {
    let mut linker = Linker {
        object,
        sections: BTreeMap::new(),
        relocation_count: 0,
        starts: BTreeMap::new(),
        calls: Vec::new(),
        insns: Vec::new(),
    };
    linker.place(main)?;
    // Placing a function may find more calls.
    let mut resolved = 0;
    while let Some(&(at, target)) = linker.calls.get(resolved) {
        let start = match linker.starts.get(&target) {
            Some(&start) => start,
            None => linker.place(target)?,
        };
        // Both are below MAX_INSNS.
        let distance = start as i64 - (at as i64 + 1);
        linker.insns[at].imm = i32::try_from(distance).expect("programs are shorter");
        resolved += 1;
    }
    Ok(linker.insns)
}

struct Linker<'a, 'data> {
    object: &'a Object<'data>,
    /// Those with a function that was placed.
    sections: BTreeMap<usize, Section<'data>>,
    /// In all of `sections`. One table can be given to many sections, so that the object's length
    /// is no bound.
    relocation_count: usize,
    /// Where functions were placed.
    starts: BTreeMap<Place, usize>,
    /// Calls that were placed, and the functions they lead to.
    calls: Vec<(usize, Place)>,
    insns: Vec<Insn>,
}

struct Section<'data> {
    code: &'data [u8],
    /// By the offset in bytes of what they change.
    relocations: BTreeMap<u64, Relocation>,
}

#[derive(Clone, Copy)]
struct Relocation {
    kind: RelocationType,
    symbol: SymbolIndex,
}

impl<'data> Linker<'_, 'data> {
    /// Appends the function at a place to the program. Returns where it begins there.
    fn place(&mut self, place: Place) -> Result<usize> {
        let (section_index, offset) = place;
        let object = self.object;
        let function = object.functions[&place];
        if let Entry::Vacant(vacant) = self.sections.entry(section_index) {
            let budget = MAX_INSNS - self.relocation_count;
            let section = read_section(object, section_index, budget)?;
            self.relocation_count += section.relocations.len();
            vacant.insert(section);
        }
        let section = &self.sections[&section_index];
        let code = code_of(object, &function, offset, section.code)?;
        let start = self.insns.len();
        if code.len() > MAX_INSNS - start {
            return Err(Error::TooLong { limit: MAX_INSNS });
        }
        self.starts.insert(place, start);
        let end = offset + function.len_bytes;
        let mut relocations = section.relocations.range(offset..end).peekable();
        let mut is_second_half = false;
        for (index, &bytes) in code.iter().enumerate() {
            let insn = Insn::decode(bytes);
            let here = (section_index, offset + index as u64 * INSN_BYTES);
            let next = here.1 + INSN_BYTES;
            let relocation = relocations.next_if(|&(&at, _)| at < next);
            if relocation.is_some_and(|(&at, _)| at != here.1 || is_second_half) {
                return Err(not_an_object("damaged: relocation within an instruction"));
            }
            let target = match relocation {
                Some((_, &relocation)) => relocated_target(object, insn, relocation).map(Some),
                None if insn.is_local_call() && !is_second_half => Ok(Some(target_of(insn, here))),
                None => Ok(None),
            };
            let target = target.and_then(|target| match target {
                Some(place) if !object.functions.contains_key(&place) => {
                    Err("calls what is not the start of a function".to_owned())
                }
                target => Ok(target),
            });
            let target = target.map_err(|problem| Error::Unlinkable {
                function: object.name_of(&function),
                index,
                problem,
            })?;
            self.calls
                .extend(target.map(|target| (start + index, target)));
            is_second_half = !is_second_half && insn.is_wide();
            self.insns.push(insn);
        }
        Ok(start)
    }
}

/// Where a call leads to that stands at `here`, or would if it stood there. Beyond all sections if
/// that is before its section's start.
fn target_of(call: Insn, here: Place) -> Place {
    let distance_bytes = (i64::from(call.imm) + 1) * Insn::BYTES as i64;
    let (section, offset) = here;
    let offset = offset.checked_add_signed(distance_bytes);
    (section, offset.unwrap_or(u64::MAX))
}

fn read_section<'data>(
    object: &Object<'data>,
    index: usize,
    max_relocations: usize,
) -> Result<Section<'data>> {
    let section = object
        .file
        .section_by_index(SectionIndex(index))
        .map_err(malformed)?;
    if section.kind() != SectionKind::Text {
        return Err(not_an_object("damaged: function in a section without code"));
    }
    let code = section.data().map_err(malformed)?;
    let mut relocations = BTreeMap::new();
    for (at, relocation) in section.relocations() {
        let RelocationFlags::Elf { r_type: kind } = relocation.flags() else {
            return Err(not_an_object("damaged: relocation of another format"));
        };
        if kind == R_BPF_NONE {
            continue;
        }
        let RelocationTarget::Symbol(symbol) = relocation.target() else {
            return Err(not_an_object("damaged: relocation without a symbol"));
        };
        if !relocation.has_implicit_addend() {
            return Err(not_an_object(
                "relocations with addends: not the work of clang",
            ));
        }
        if relocations.len() == max_relocations {
            return Err(not_an_object(
                "more relocations than a program can have instructions",
            ));
        }
        if relocations
            .insert(at, Relocation { kind, symbol })
            .is_some()
        {
            return Err(not_an_object("damaged: two relocations of one place"));
        }
    }
    Ok(Section { code, relocations })
}

fn code_of<'data>(
    object: &Object,
    function: &Function,
    offset: u64,
    code: &'data [u8],
) -> Result<&'data [[u8; Insn::BYTES]]> {
    let damaged = |what: &str| {
        let problem = format!("function {:?} {what}", object.name_of(function));
        Error::Object { problem }
    };
    if function.len_bytes == 0 {
        return Err(damaged("has no length: assembly must state its .size"));
    }
    let bytes = offset
        .checked_add(function.len_bytes)
        .and_then(|end| {
            let range = usize::try_from(offset).ok()?..usize::try_from(end).ok()?;
            code.get(range)
        })
        .ok_or_else(|| damaged("leaves its section"))?;
    let (insns, rest) = bytes.as_chunks();
    if !rest.is_empty() || !offset.is_multiple_of(INSN_BYTES) {
        return Err(damaged("is not of whole instructions"));
    }
    Ok(insns)
}

/// The function that a call with a relocation leads to; or, as a text, why the relocation is none
/// of a call.
fn relocated_target(object: &Object, insn: Insn, relocation: Relocation) -> Result<Place, String> {
    let symbol = object.file.symbol_by_index(relocation.symbol);
    let symbol = symbol.map_err(|error| format!("refers to a damaged symbol: {error}"))?;
    let name = symbol.name().unwrap_or_default();
    let Some(section_index) = symbol.section_index() else {
        return Err(format!(
            "refers to {name:?}, which the object does not define: a parser must be complete in \
             itself"
        ));
    };
    if insn.is_local_call() && relocation.kind == R_BPF_64_32 {
        return Ok(target_of(insn, (section_index.0, symbol.address())));
    }
    let section = object.file.section_by_index(section_index);
    let section_name = section.as_ref().map_or("?", |s| s.name().unwrap_or("?"));
    let name = if name.is_empty() || symbol.kind() == SymbolKind::Section {
        section_name
    } else {
        name
    };
    Err(if section_name.starts_with(".rodata") {
        format!(
            "uses the constant data {name:?}: a parser has only its code, so compare with numbers, \
             not with strings or tables"
        )
    } else if section_name.starts_with(".data") || section_name.starts_with(".bss") {
        format!(
            "uses the global variable {name:?}: a parser keeps nothing from one message to the next, \
             use local variables"
        )
    } else if section_name.contains("maps") {
        format!("uses the map {name:?}: a parser has no maps, only the message's bytes")
    } else if section_name == super::SHARED || symbol.kind() == SymbolKind::Text {
        format!("takes the address of the function {name:?}: a parser can only call functions")
    } else {
        format!(
            "has a relocation of kind {:?} to {name:?} in section {section_name:?}: a parser has only \
             its code",
            relocation.kind
        )
    })
}
