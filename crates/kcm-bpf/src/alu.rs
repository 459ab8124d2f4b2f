//! What arithmetic, comparisons and byte swaps do with numbers.
//!
//! The one definition of it: the interpreter runs it, the verifier uses it on constants, and both
//! agree for that reason. It is RFC 9669 with the kernel's word where the RFC leaves one open:
//! a division by zero gives 0, a remainder by zero the dividend, the amount of a shift counts
//! modulo the width, the least number divided by -1 stays itself, and a 32-bit result clears the
//! upper half of its register.

/// An operation on two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Alu {
    Add,
    Sub,
    Mul,
    Div,
    SDiv,
    Or,
    And,
    Lsh,
    Rsh,
    Mod,
    SMod,
    Xor,
    Mov,
    Arsh,
}

impl Alu {
    /// The result; of the lower halves, if not `wide`.
    #[inline(always)]
    pub(crate) fn eval(self, wide: bool, a: u64, b: u64) -> u64 {
        if wide {
            self.eval64(a, b)
        } else {
            self.eval32(low(a), low(b)).into()
        }
    }

    #[inline(always)]
    fn eval64(self, a: u64, b: u64) -> u64 {
        let (signed_a, signed_b) = (a.cast_signed(), b.cast_signed());
        match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div => a.checked_div(b).unwrap_or(0),
            Self::SDiv if b == 0 => 0,
            Self::SDiv => signed_a.wrapping_div(signed_b).cast_unsigned(),
            Self::Or => a | b,
            Self::And => a & b,
            Self::Lsh => a.wrapping_shl(low(b)),
            Self::Rsh => a.wrapping_shr(low(b)),
            Self::Mod => a.checked_rem(b).unwrap_or(a),
            Self::SMod if b == 0 => a,
            Self::SMod => signed_a.wrapping_rem(signed_b).cast_unsigned(),
            Self::Xor => a ^ b,
            Self::Mov => b,
            Self::Arsh => signed_a.wrapping_shr(low(b)).cast_unsigned(),
        }
    }

    #[inline(always)]
    fn eval32(self, a: u32, b: u32) -> u32 {
        let (signed_a, signed_b) = (a.cast_signed(), b.cast_signed());
        match self {
            Self::Add => a.wrapping_add(b),
            Self::Sub => a.wrapping_sub(b),
            Self::Mul => a.wrapping_mul(b),
            Self::Div => a.checked_div(b).unwrap_or(0),
            Self::SDiv if b == 0 => 0,
            Self::SDiv => signed_a.wrapping_div(signed_b).cast_unsigned(),
            Self::Or => a | b,
            Self::And => a & b,
            Self::Lsh => a.wrapping_shl(b),
            Self::Rsh => a.wrapping_shr(b),
            Self::Mod => a.checked_rem(b).unwrap_or(a),
            Self::SMod if b == 0 => a,
            Self::SMod => signed_a.wrapping_rem(signed_b).cast_unsigned(),
            Self::Xor => a ^ b,
            Self::Mov => b,
            Self::Arsh => signed_a.wrapping_shr(b).cast_unsigned(),
        }
    }
}

/// A comparison of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Gt,
    Ge,
    Lt,
    Le,
    SGt,
    SGe,
    SLt,
    SLe,
    /// Some bit is set in both.
    Set,
    /// No bit is set in both. No instruction has this one; it is the opposite of `Set`.
    Clear,
}

impl Cmp {
    /// Whether it is so; of the lower halves, if not `wide`.
    #[inline(always)]
    pub(crate) fn holds(self, wide: bool, a: u64, b: u64) -> bool {
        if wide {
            self.holds64(a, b)
        } else if self.is_signed() {
            let sign_extend = |v| i64::from(low(v).cast_signed()).cast_unsigned();
            self.holds64(sign_extend(a), sign_extend(b))
        } else {
            self.holds64(low(a).into(), low(b).into())
        }
    }

    #[inline(always)]
    fn holds64(self, a: u64, b: u64) -> bool {
        let (signed_a, signed_b) = (a.cast_signed(), b.cast_signed());
        match self {
            Self::Eq => a == b,
            Self::Ne => a != b,
            Self::Gt => a > b,
            Self::Ge => a >= b,
            Self::Lt => a < b,
            Self::Le => a <= b,
            Self::SGt => signed_a > signed_b,
            Self::SGe => signed_a >= signed_b,
            Self::SLt => signed_a < signed_b,
            Self::SLe => signed_a <= signed_b,
            Self::Set => a & b != 0,
            Self::Clear => a & b == 0,
        }
    }

    #[inline(always)]
    const fn is_signed(self) -> bool {
        matches!(self, Self::SGt | Self::SGe | Self::SLt | Self::SLe)
    }

    /// The comparison that holds exactly where this one does not.
    pub(crate) const fn opposite(self) -> Self {
        match self {
            Self::Eq => Self::Ne,
            Self::Ne => Self::Eq,
            Self::Gt => Self::Le,
            Self::Ge => Self::Lt,
            Self::Lt => Self::Ge,
            Self::Le => Self::Gt,
            Self::SGt => Self::SLe,
            Self::SGe => Self::SLt,
            Self::SLt => Self::SGe,
            Self::SLe => Self::SGt,
            Self::Set => Self::Clear,
            Self::Clear => Self::Set,
        }
    }
}

/// Whether and how bytes change their order on a little-endian machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Swap {
    /// 16, 32 or 64: the low bits that count; those above become 0.
    pub(crate) bits: u32,
    /// To little endian only the width changes.
    pub(crate) reverse: bool,
}

impl Swap {
    #[inline(always)]
    pub(crate) const fn eval(self, value: u64) -> u64 {
        let spare = 64 - self.bits;
        if self.reverse {
            (value << spare).swap_bytes()
        } else {
            value << spare >> spare
        }
    }
}

/// The low `bits` of a number (8, 16 or 32), their highest one being the sign; as 32 bits if not
/// `wide`.
#[inline(always)]
pub(crate) const fn sign_extend(bits: u32, wide: bool, value: u64) -> u64 {
    let spare = 64 - bits;
    let extended = ((value << spare).cast_signed() >> spare).cast_unsigned();
    if wide {
        extended
    } else {
        extended & 0xffff_ffff
    }
}

/// The lower half.
#[inline(always)]
pub(crate) const fn low(value: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant")]
    let low = value as u32;
    low
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_odd_cases_are_the_kernels() {
        let min = 1 << 63;
        assert_eq!(Alu::Div.eval(true, 7, 0), 0);
        assert_eq!(Alu::Mod.eval(true, 7, 0), 7);
        assert_eq!(Alu::Mod.eval(false, u64::MAX, 1 << 32), 0xffff_ffff);
        assert_eq!(Alu::SDiv.eval(true, min, u64::MAX), min);
        assert_eq!(Alu::SMod.eval(true, min, u64::MAX), 0);
        assert_eq!(
            Alu::SMod.eval(false, (-7i64).cast_unsigned(), 3),
            0xffff_ffff
        );
        assert_eq!(Alu::Lsh.eval(true, 1, u64::MAX), min);
        assert_eq!(Alu::Arsh.eval(false, 0x8000_0000, 33), 0xc000_0000);
    }

    #[test]
    fn swaps_and_sign_extension() {
        let reverse = true;
        assert_eq!(Swap { bits: 16, reverse }.eval(0x12345), 0x4523);
        assert_eq!(Swap { bits: 32, reverse }.eval(0x1_0000_0002), 0x0200_0000);
        let reverse = false;
        assert_eq!(Swap { bits: 16, reverse }.eval(0x12345), 0x2345);
        assert_eq!(sign_extend(8, false, 0x180), 0xffff_ff80);
        assert_eq!(sign_extend(8, true, 0x80), 0xffff_ffff_ffff_ff80);
    }
}
