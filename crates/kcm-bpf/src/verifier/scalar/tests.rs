//! Sets against the numbers that they must have.

use super::*;
use proptest::prelude::*;

const ALUS: [Alu; 14] = [
    Alu::Add,
    Alu::Sub,
    Alu::Mul,
    Alu::Div,
    Alu::SDiv,
    Alu::Or,
    Alu::And,
    Alu::Lsh,
    Alu::Rsh,
    Alu::Mod,
    Alu::SMod,
    Alu::Xor,
    Alu::Mov,
    Alu::Arsh,
];
const CMPS: [Cmp; 12] = [
    Cmp::Eq,
    Cmp::Ne,
    Cmp::Gt,
    Cmp::Ge,
    Cmp::Lt,
    Cmp::Le,
    Cmp::SGt,
    Cmp::SGe,
    Cmp::SLt,
    Cmp::SLe,
    Cmp::Set,
    Cmp::Clear,
];

fn has(set: &Scalar, n: u64) -> bool {
    set.covers(&Scalar::constant(n))
}

/// Numbers near the places where arithmetic turns over, and others.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        0..70u64,
        (0..64u32, 0..5u64).prop_map(|(shift, n)| (1u64 << shift).wrapping_add(n).wrapping_sub(2)),
        (0..200u64).prop_map(|n| n.wrapping_neg()),
        any::<u32>().prop_map(u64::from),
    ]
}

/// A step of a random calculation with two sets, each of which has a number that is followed.
#[derive(Clone, Debug)]
enum Step {
    Alu(Alu, bool),
    /// The comparison or its opposite, whichever holds.
    Cmp(Cmp, bool),
    Swap(u32, bool),
    SignExtend(u32, bool),
    Part(u8),
    Exchange,
    Immediate(u64),
    Byte(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..ALUS.len(), any::<bool>()).prop_map(|(i, wide)| Step::Alu(ALUS[i], wide)),
        4 => (0..CMPS.len(), any::<bool>()).prop_map(|(i, wide)| Step::Cmp(CMPS[i], wide)),
        1 => (1..4u32, any::<bool>()).prop_map(|(i, reverse)| Step::Swap(8 << i, reverse)),
        1 => (0..3u32, any::<bool>()).prop_map(|(i, wide)| Step::SignExtend(8 << i, wide)),
        1 => (0..8u8).prop_map(Step::Part),
        2 => Just(Step::Exchange),
        2 => number().prop_map(Step::Immediate),
        1 => any::<u8>().prop_map(Step::Byte),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever is done with numbers, the sets that follow it have them.
    #[test]
    fn no_number_gets_lost(
        numbers in (number(), number()),
        steps in prop::collection::vec(step(), 1..24),
    ) {
        let (mut n, mut m) = numbers;
        let (mut a, mut b) = (Scalar::UNKNOWN, Scalar::UNKNOWN);
        for step in steps {
            match step {
                Step::Alu(alu, wide) => {
                    a = Scalar::alu(alu, wide, &a, &b);
                    n = alu.eval(wide, n, m);
                }
                Step::Cmp(cmp, wide) => {
                    let cmp = if cmp.holds(wide, n, m) { cmp } else { cmp.opposite() };
                    let assumed = Scalar::assume(cmp, wide, &a, &b);
                    prop_assert!(assumed.is_some(), "{cmp:?} {wide} of {n:#x} {m:#x}, {a:?} {b:?}");
                    (a, b) = assumed.unwrap_or((a, b));
                }
                Step::Swap(bits, reverse) => {
                    let swap = Swap { bits, reverse };
                    a = a.swap(swap);
                    n = swap.eval(n);
                }
                Step::SignExtend(bits, wide) => {
                    a = a.sign_extend(bits, wide);
                    n = sign_extend(bits, wide, n);
                }
                Step::Part(at) => {
                    a = a.part(at, 1);
                    n = n >> (8 * at) & 0xff;
                }
                Step::Exchange => {
                    (a, b, n, m) = (b, a, m, n);
                }
                Step::Immediate(value) => {
                    b = Scalar::constant(value);
                    m = value;
                }
                Step::Byte(value) => {
                    a = Scalar::of_bytes(1);
                    n = value.into();
                }
            }
            prop_assert!(has(&a, n), "{n:#x} not in {a:?} after {step:?}");
            prop_assert!(has(&b, m), "{m:#x} not in {b:?} after {step:?}");
        }
    }
}

#[test]
fn a_comparison_of_32_bits_bounds_the_register() {
    let any = Scalar::UNKNOWN.low_half();
    let ten = Scalar::constant(10);
    let (a, _) = Scalar::assume(Cmp::Lt, false, &any, &ten).expect("possible");
    assert_eq!(a.u, Range::new(0, 9));
    // Of a register whose upper half is unknown, only the lower half is bounded …
    let (a, _) = Scalar::assume(Cmp::Lt, false, &Scalar::UNKNOWN, &ten).expect("possible");
    assert_eq!(a.u.greatest, u64::MAX - 0xffff_ffff + 9);
    // … until it is cut off.
    assert_eq!(a.low_half().u, Range::new(0, 9));
}

#[test]
fn going_below_zero_in_32_bits_keeps_its_bounds() {
    let a = Scalar::up_to(10);
    let less = Scalar::alu(Alu::Add, false, &a, &Scalar::immediate(-1));
    assert_eq!(less.s32, Range::new(-1, 9));
    assert_eq!(less.sign_extend(32, true).s, Range::new(-1, 9));
}

/// As clang cuts and extends numbers where it has no instructions of 32 bits.
#[test]
fn shifted_up_and_down_only_the_lower_half_is_left() {
    let by = |alu, set: &Scalar| Scalar::alu(alu, true, set, &Scalar::constant(32));
    let three_to_fifteen = Scalar::alu(Alu::Add, true, &Scalar::up_to(12), &Scalar::immediate(3));
    // Less 2, with a carry out of the lower half.
    let two = Scalar::constant(0xffff_fffe);
    let less = Scalar::alu(Alu::Add, true, &three_to_fifteen, &two);
    let shifted = by(Alu::Lsh, &less);
    assert_eq!(by(Alu::Rsh, &shifted).u, Range::new(1, 13));
    let below = Scalar::alu(Alu::Sub, true, &Scalar::up_to(10), &Scalar::constant(4));
    let shifted = by(Alu::Lsh, &below.low_half());
    assert_eq!(by(Alu::Arsh, &shifted).s, Range::new(-4, 6));
}

/// As in a loop that counts 64 bits and compares 32.
#[test]
fn a_sum_keeps_the_bounds_of_its_lower_half() {
    let six = Scalar::constant(6);
    let (below, _) = Scalar::assume(Cmp::Lt, false, &Scalar::UNKNOWN, &six).expect("possible");
    let more = Scalar::alu(Alu::Add, true, &below, &Scalar::constant(1));
    assert_eq!(more.u32, Range::new(1, 6));
    let less = Scalar::alu(Alu::Sub, true, &below, &Scalar::constant(1));
    assert_eq!(less.s32, Range::new(-1, 4));
}

#[test]
fn what_cannot_be_is_seen() {
    let a = Scalar::up_to(10);
    for (cmp, n) in [(Cmp::Gt, 10), (Cmp::Eq, 11), (Cmp::Set, 16)] {
        assert_eq!(Scalar::assume(cmp, true, &a, &Scalar::constant(n)), None);
    }
    let five = Scalar::constant(5);
    assert_eq!(Scalar::assume(Cmp::Ne, true, &five, &five), None);
    assert_eq!(
        Scalar::assume(Cmp::SLt, false, &a, &Scalar::constant(0)),
        None
    );
}

#[test]
fn sets_are_shown_briefly() {
    let shown = |s: Scalar| s.to_string();
    assert_eq!(shown(Scalar::immediate(-3)), "-3");
    assert_eq!(shown(Scalar::of_bytes(1)), "0..255");
    assert_eq!(shown(Scalar::UNKNOWN), "?");
}
