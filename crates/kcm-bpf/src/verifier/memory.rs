//! Loads from the context and the stack, and stores to them.

use crate::decode::Operand;
use crate::verifier::explore::Notes;
use crate::verifier::scalar::Scalar;
use crate::verifier::state::{Reg, Slot, State};
use crate::verifier::{Reason, STACK_BYTES};

/// What of the context a load or a store is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Context {
    /// Bytes of `len`, from this one on.
    Len(u8),
    /// Bytes of the five words `cb`, from this one on.
    Cb(u8),
    /// A field that is 0 for a message.
    Zero,
}

/// Offset of `cb` in `struct __sk_buff`, in bytes.
const CB: i64 = 48;
/// Its length in bytes: five words.
pub(crate) const CB_BYTES: usize = 20;
/// The length of `struct __sk_buff` in bytes.
const SK_BUFF_BYTES: i64 = 192;

const DIRECT: &str = "a socket filter cannot access packet bytes by pointer; use \
                      bpf_skb_load_bytes or load_byte, load_half, load_word";
const NOT_A_PACKET: &str = "a message in a byte stream has no such thing";
const SOCKET: &str = "a parser sees a message only, not the socket that it came from";
const NOT_FOR_FILTERS: &str = "this field is not for socket filters";

/// A load of `size` bytes through `base`.
pub(crate) fn load(
    state: &State,
    notes: &mut Notes,
    base: u8,
    off: i16,
    size: u8,
) -> Result<Reg, Reason> {
    match *state.reg(base) {
        Reg::Context { moved } => {
            let field = context(&moved, base, off, size)?;
            notes.context(Some(field), base)?;
            Ok(Reg::number(Scalar::of_bytes(size)))
        }
        Reg::Stack { depth, offset } => {
            notes.context(None, base)?;
            let (least, greatest) =
                place(state, notes, depth, base, &offset, off.into(), size.into())?;
            read(state, depth, least, greatest, size)
        }
        Reg::Nothing => Err(Reason::Uninitialised { reg: base }),
        Reg::Number { .. } => Err(Reason::NotAPointer { reg: base }),
    }
}

/// A store of `size` bytes through `base`.
pub(crate) fn store(
    state: &mut State,
    notes: &mut Notes,
    base: u8,
    off: i16,
    size: u8,
    value: Operand,
) -> Result<(), Reason> {
    let stored = match value {
        Operand::Imm(imm) => Reg::number(Scalar::immediate(imm)),
        Operand::Reg(reg) => match *state.reg(reg) {
            Reg::Nothing => return Err(Reason::Uninitialised { reg }),
            is => is,
        },
    };
    let leak = |what| match value {
        Operand::Reg(reg) if stored.is_pointer() => Err(Reason::PointerLeak { reg, what }),
        _ => Ok(()),
    };
    match *state.reg(base) {
        Reg::Context { moved } => {
            leak("the context must not get it")?;
            let field = context(&moved, base, off, size)?;
            if !matches!(field, Context::Cb(_)) {
                return Err(Reason::Context {
                    offset: off.into(),
                    size,
                    problem: "only cb[0] to cb[4] can be written",
                });
            }
            notes.context(Some(field), base)
        }
        Reg::Stack { depth, offset } => {
            if size != 8 {
                leak("it can be stored only as a whole")?;
            }
            // It would outlive the frame that it points to.
            if matches!(stored, Reg::Stack { .. }) && usize::from(depth) + 1 != state.frames.len() {
                leak("a pointer to the stack cannot be stored in a caller's stack")?;
            }
            notes.context(None, base)?;
            let (least, greatest) =
                place(state, notes, depth, base, &offset, off.into(), size.into())?;
            if least != greatest {
                leak("its place on the stack must be known")?;
            }
            write(state, depth, least, greatest, size, stored, value);
            Ok(())
        }
        Reg::Nothing => Err(Reason::Uninitialised { reg: base }),
        Reg::Number { .. } => Err(Reason::NotAPointer { reg: base }),
    }
}

/// The buffer of a helper that writes up to `greatest` bytes, and just so many if that is `exact`.
pub(crate) fn helper_buffer(
    state: &mut State,
    notes: &mut Notes,
    reg: u8,
    greatest_size: u64,
    exact: bool,
) -> Result<(), Reason> {
    let Reg::Stack { depth, offset } = *state.reg(reg) else {
        return Err(Reason::Argument {
            reg,
            expected: "a pointer to the stack",
        });
    };
    let (least, greatest) = bounds(reg, &offset, 0, greatest_size)?;
    notes.stack(state, depth, least);
    if least != greatest || !exact {
        // What the helper may leave alone must be there already.
        for at in least..greatest + i64::try_from(greatest_size).unwrap_or(0) {
            if !is_written(state, depth, at) {
                return Err(Reason::UnwrittenBuffer {
                    offset: least,
                    size: greatest_size,
                });
            }
        }
    }
    for at in least..greatest + i64::try_from(greatest_size).unwrap_or(0) {
        write_byte(state, depth, at, true, false);
    }
    Ok(())
}

/// Which field of the context is meant.
fn context(moved: &Scalar, base: u8, off: i16, size: u8) -> Result<Context, Reason> {
    if moved.as_constant() != Some(0) {
        return Err(Reason::ContextMoved { reg: base });
    }
    let offset = i64::from(off);
    let refuse = |problem| {
        Err(Reason::Context {
            offset,
            size,
            problem,
        })
    };
    if !(0..SK_BUFF_BYTES).contains(&offset) {
        return refuse("struct __sk_buff has no such field");
    }
    if offset % i64::from(size) != 0 {
        return refuse("not aligned");
    }
    let within = |begin: i64| u8::try_from(offset - begin).unwrap_or(0);
    let cb = CB..CB + CB_BYTES as i64;
    if cb.contains(&offset) {
        if offset + i64::from(size) > cb.end {
            return refuse("reaches beyond cb[4]");
        }
        return Ok(Context::Cb(within(CB)));
    }
    match offset {
        76..84 | 140..144 => return refuse(DIRECT),
        4..8 | 16..20 | 40..44 => return refuse(NOT_A_PACKET),
        168..176 => return refuse(SOCKET),
        72..76 | 88..140 | 144..164 | 180.. => return refuse(NOT_FOR_FILTERS),
        _ => {}
    }
    if size == 8 {
        return refuse("its fields are 4 bytes wide");
    }
    Ok(if offset < 4 {
        Context::Len(within(0))
    } else {
        Context::Zero
    })
}

/// The least and the greatest offset of an access, checked to be in the stack, aligned, and noted.
fn place(
    state: &State,
    notes: &mut Notes,
    depth: u8,
    base: u8,
    offset: &Scalar,
    off: i64,
    size: u64,
) -> Result<(i64, i64), Reason> {
    let (least, greatest) = bounds(base, offset, off, size)?;
    // The bits of the offset say it for all places at once.
    let moved = offset
        .bits
        .add(super::known::Known::constant(off.cast_unsigned()));
    if moved.greatest() & (size - 1) != 0 {
        return Err(Reason::StackAlignment {
            offset: least,
            size,
        });
    }
    notes.stack(state, depth, least);
    Ok((least, greatest))
}

fn bounds(base: u8, offset: &Scalar, off: i64, size: u64) -> Result<(i64, i64), Reason> {
    let moved = |end: i64| {
        end.checked_add(off)
            .ok_or(Reason::PointerOutOfRange { reg: base })
    };
    let (least, greatest) = (moved(offset.s.least)?, moved(offset.s.greatest)?);
    let lowest = -(STACK_BYTES as i64);
    let end = i64::try_from(size)
        .ok()
        .and_then(|size| greatest.checked_add(size));
    if least < lowest || end.is_none_or(|end| end > 0) {
        return Err(Reason::StackRange {
            least,
            greatest,
            size,
        });
    }
    Ok((least, greatest))
}

/// The slot with the byte at this offset, and which of its bytes that is.
fn slot_of(at: i64) -> (usize, u8) {
    // Offsets go from -512 to -1, so -1 - at from 0 to 511.
    let down = usize::try_from(-1 - at).unwrap_or(0);
    (down / 8, 7 - u8::try_from(down % 8).unwrap_or(0))
}

fn is_written(state: &State, depth: u8, at: i64) -> bool {
    let (slot, byte) = slot_of(at);
    let frame = &state.frames[usize::from(depth)];
    frame.slot(slot).readable() & 1 << byte != 0
}

fn read(state: &State, depth: u8, least: i64, greatest: i64, size: u8) -> Result<Reg, Reason> {
    let frame = &state.frames[usize::from(depth)];
    if least == greatest {
        let (index, byte) = slot_of(least);
        let mask = 0xffu8 >> (8 - size) << byte;
        let slot = frame.slot(index);
        match slot {
            Slot::Whole(reg) if size == 8 => return Ok(reg),
            Slot::Whole(Reg::Number { is, .. }) => return Ok(Reg::number(is.part(byte, size))),
            Slot::Half { is, .. } if byte + size <= 4 => {
                return Ok(Reg::number(is.part(byte, size)));
            }
            Slot::Bytes { zero, .. } if zero & mask == mask => {
                return Ok(Reg::number(Scalar::constant(0)));
            }
            _ => {}
        }
    }
    for at in least..greatest + i64::from(size) {
        if !is_written(state, depth, at) {
            let (slot, _) = slot_of(at);
            if let Slot::Whole(reg) = frame.slot(slot)
                && reg.is_pointer()
            {
                return Err(Reason::PointerInPieces { offset: at });
            }
            return Err(Reason::UninitialisedStack {
                offset: least,
                size: size.into(),
            });
        }
    }
    Ok(Reg::number(Scalar::of_bytes(size)))
}

fn write(
    state: &mut State,
    depth: u8,
    least: i64,
    greatest: i64,
    size: u8,
    stored: Reg,
    value: Operand,
) {
    if least != greatest {
        // One of several places: all of them may have changed.
        for at in least..greatest + i64::from(size) {
            write_byte(state, depth, at, false, false);
        }
        return;
    }
    let (index, byte) = slot_of(least);
    if size == 8 {
        let stored = match (stored, value) {
            // The register and its copy hold the same.
            (Reg::Number { is, id: 0 }, Operand::Reg(reg)) if is.as_constant().is_none() => {
                let id = state.fresh_id();
                let named = Reg::Number { is, id };
                state.set(reg, named);
                named
            }
            _ => stored,
        };
        *state.frames[usize::from(depth)].slot_mut(index) = Slot::Whole(stored);
        return;
    }
    let is = match stored {
        Reg::Number { is, .. } => is,
        _ => Scalar::UNKNOWN,
    };
    if size == 4 && byte == 0 {
        let slot = state.frames[usize::from(depth)].slot_mut(index);
        let (written, _) = slot.blurred();
        *slot = Slot::Half {
            is: is.low_half(),
            written: written | 0x0f,
        };
        return;
    }
    let zero = is.part(0, size).as_constant() == Some(0);
    for at in least..least + i64::from(size) {
        write_byte(state, depth, at, true, zero);
    }
}

/// A byte is written, or may be.
fn write_byte(state: &mut State, depth: u8, at: i64, surely: bool, is_zero: bool) {
    let (index, byte) = slot_of(at);
    let slot = state.frames[usize::from(depth)].slot_mut(index);
    let bit = 1 << byte;
    if let Slot::Half { written, .. } = slot
        && byte >= 4
    {
        *written |= if surely { bit } else { 0 };
        return;
    }
    let (mut written, mut zero) = slot.blurred();
    if surely {
        written |= bit;
    }
    zero = if is_zero { zero | bit } else { zero & !bit };
    *slot = Slot::Bytes { written, zero };
}
