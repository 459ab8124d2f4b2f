//! A parser program, from its instructions to the framing that it means.

use std::fmt;
use std::sync::Arc;

use kcm_frame::{Fixed, Framing, QuickForm, Verdict};

use crate::alu::low;
use crate::interpreter::{Begun, Code, Left, Trap};
use crate::recognise::{Meaning, form_like, recognise};
use crate::verifier::{Figures, Verified, verify};
use crate::{Insn, Result};

/// A verified parser program.
///
/// It is shown bytes that begin at a message's first byte, as a socket filter is shown a packet,
/// and says how long the message is. `r1` is the context, a `struct __sk_buff`, of which there are:
///
/// | field | is |
/// | --- | --- |
/// | `len` | how many bytes are there, at most 2³² - 1 |
/// | `cb[0]` to `cb[4]` | five words to read and write, zero at the beginning |
/// | `mark`, `queue_mapping`, `vlan_present`, `vlan_tci`, `vlan_proto`, `priority`, `ingress_ifindex`, `tc_index`, `hash`, `napi_id`, `gso_segs`, `gso_size` | 0, as for any buffer that came from no network device |
///
/// Packet loads (`load_byte`, `load_half`, `load_word`) are in network order and end the function
/// that they are in with 0 where the message is too short; offsets below zero always are. The
/// helper functions are `bpf_skb_load_bytes`, `bpf_skb_load_bytes_relative` (from the network
/// header, which is the message's first byte; there is no link header), and `bpf_ktime_get_ns`.
///
/// ```
/// use kcm_bpf::{Insn, Program};
/// // r6 = r1; r0 = *(u16 *)skb[0]; r0 += 2; exit
/// let program = Program::verify(vec![
///     Insn { code: 0xbf, dst: 6, src: 1, ..Insn::default() },
///     Insn { code: 0x28, ..Insn::default() },
///     Insn { code: 0x07, imm: 2, ..Insn::default() },
///     Insn { code: 0x95, ..Insn::default() },
/// ])?;
/// assert_eq!(program.run(b"\0\x05hello", 0).result, 7);
/// assert_eq!(program.run(b"\0", 0).result, 0); // need more
/// assert_eq!(program.framing().native(), Some("u16be+2".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Program {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    insns: Vec<Insn>,
    code: Code,
    meaning: Option<Meaning>,
    verified: Verified,
}

/// What a program says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Register 0 as a signed 32-bit number: the message's length in bytes if above zero, 0 for
    /// "not enough bytes to tell", below zero a negated errno.
    pub result: i32,
    /// What the program has left in `cb[0]`, if it wrote that.
    pub key: Option<u32>,
    /// What it has left in `cb[1]`, if it wrote that; 255 for all that is above, so that the order
    /// of classes stays.
    pub class: Option<u8>,
}

impl Program {
    /// Verifies a linked program: the main function first, subprograms after it.
    ///
    /// # Errors
    ///
    /// [`Error::Rejected`](crate::Error::Rejected) says which instruction is not safe, and why.
    pub fn verify(insns: Vec<Insn>) -> Result<Self> {
        let verified = verify(&insns)?;
        let inner = Inner {
            code: Code::new(&verified),
            meaning: recognise(&verified),
            verified,
            insns,
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Runs the program over bytes that begin at a message's first byte. `now_ns` is what
    /// `bpf_ktime_get_ns` gives.
    #[must_use]
    pub fn run(&self, bytes: &[u8], now_ns: u64) -> Outcome {
        self.inner.run(bytes, now_ns)
    }

    /// The program as a framing, with 0 for the time. See
    /// [`framing_with_clock`](Self::framing_with_clock) for programs that ask for it.
    ///
    /// A program that is a length field in other words, for all bytes there can be, becomes that
    /// length field; in 32 bits, if some value of the field makes a difference (a sum that overflows,
    /// a length below the header's). All others are interpreted, and have
    /// [quick forms](Self::quick_form) for messages that are like one another.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing_with_clock(|| 0)
    }

    /// The same; `now_ns` is asked for the time once for each message that has to be interpreted.
    #[must_use]
    pub fn framing_with_clock(&self, now_ns: impl Fn() -> u64 + Send + Sync + 'static) -> Framing {
        let inner = Arc::clone(&self.inner);
        match &self.inner.meaning {
            Some(Meaning::Fixed(len)) => {
                if let Ok(fixed) = Fixed::new((*len).into()) {
                    return fixed.into();
                }
            }
            Some(Meaning::Field(field)) => {
                if let Some(native) = field.as_length_field() {
                    return native.into();
                }
            }
            Some(Meaning::Varint(varint)) => return (*varint).into(),
            Some(Meaning::Tree(tree)) => {
                let tree = Arc::clone(tree);
                let ask = move |bytes: &[u8]| inner.answer(bytes, now_ns());
                let (form, inner) = (tree.quick_form(), Arc::clone(&self.inner));
                // (Each has a closure of its own, which is then part of what calls it.)
                let framing = if tree.has_short_way() {
                    let whole = Arc::clone(&tree);
                    let plain = move |bytes: &[u8]| tree.length(bytes);
                    let whole =
                        move |bytes: &[u8]| whole.parse(bytes, || ask(bytes)).verdict(bytes.len());
                    Framing::closure_with_short_way(plain, whole)
                } else {
                    Framing::closure(move |bytes| {
                        tree.parse(bytes, || ask(bytes)).verdict(bytes.len())
                    })
                };
                return framing.with_quick_forms(move |message| {
                    let usual = form.filter(|form| form.length_of(message).is_some());
                    let like = || inner.form_like(message);
                    usual.or_else(like).or(form)
                });
            }
            None => {}
        }
        let like = Arc::clone(&self.inner);
        Framing::closure(move |bytes| inner.verdict(bytes, now_ns()))
            .with_quick_forms(move |message| like.form_like(message))
    }

    /// What the program says of messages like the one that begins here, as far as that is in 8 bytes of it;
    /// found by following it along the way of this message, which takes some microseconds. What the form
    /// says of any bytes the program says, without key and class, whatever the time.
    ///
    /// ```
    /// use kcm_bpf::{Insn, Program};
    /// // Byte 0 says where the length is: r6 = r1; r0 = *(u8 *)skb[0]; r7 = r0; r0 = *(u8 *)skb[r7]; exit
    /// let program = Program::verify(vec![
    ///     Insn { code: 0xbf, dst: 6, src: 1, ..Insn::default() },
    ///     Insn { code: 0x30, ..Insn::default() },
    ///     Insn { code: 0xbf, dst: 7, src: 0, ..Insn::default() },
    ///     Insn { code: 0x50, src: 7, ..Insn::default() },
    ///     Insn { code: 0x95, ..Insn::default() },
    /// ])?;
    /// let form = program.quick_form(b"\x02.\x0a.......").ok_or("no form")?;
    /// assert_eq!(form.length_of(b"\x02.\x0b......."), Some(11));
    /// assert_eq!(form.length_of(b"\x01\x0a......."), None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn quick_form(&self, message: &[u8]) -> Option<QuickForm> {
        self.inner.form_like(message)
    }

    /// The instructions.
    #[must_use]
    pub fn insns(&self) -> &[Insn] {
        &self.inner.insns
    }

    /// The verifier's account of the program, for people: how much there was to follow, what it
    /// takes at most, and what it was recognised as.
    pub fn account(&self) -> impl fmt::Display {
        Account(Arc::clone(&self.inner))
    }

    /// Always interpreted, for comparison with what [`framing`](Self::framing) makes of it.
    #[must_use]
    pub fn interpreted(&self) -> Framing {
        let inner = Arc::clone(&self.inner);
        Framing::closure(move |bytes| inner.verdict(bytes, 0))
    }
}

impl Inner {
    fn form_like(&self, message: &[u8]) -> Option<QuickForm> {
        form_like(&self.verified, message)
    }

    #[inline(always)]
    fn verdict(&self, bytes: &[u8], now_ns: u64) -> Verdict {
        let first = match self.code.begin(bytes) {
            Begun::Ended(result) => {
                return Verdict::from_kernel(low(result).cast_signed(), bytes.len());
            }
            Begun::Going(first) => first,
        };
        let mut left = Left::default();
        let result = self.go_on(first, bytes, now_ns, &mut left);
        if result <= 0 || left.written & 0b11 == 0 {
            return Verdict::from_kernel(result, bytes.len());
        }
        Outcome::new(result, &left).verdict(bytes.len())
    }

    /// The same, for who seldom asks.
    #[cold]
    fn answer(&self, bytes: &[u8], now_ns: u64) -> Outcome {
        self.run(bytes, now_ns)
    }

    fn run(&self, bytes: &[u8], now_ns: u64) -> Outcome {
        let mut left = Left::default();
        let result = match self.code.begin(bytes) {
            Begun::Ended(result) => low(result).cast_signed(),
            Begun::Going(first) => self.go_on(first, bytes, now_ns, &mut left),
        };
        Outcome::new(result, &left)
    }

    #[inline]
    fn go_on(&self, first: u64, bytes: &[u8], now_ns: u64, left: &mut Left) -> i32 {
        match self.code.go_on(first, bytes, now_ns, left) {
            Ok(result) => low(result).cast_signed(),
            // The verifier has made sure that this is not. Should it be wrong, the stream ends.
            Err(Trap) => {
                debug_assert!(false, "a verified program left its bounds");
                -EFAULT
            }
        }
    }
}

/// Bad address (14): what a stream ends with whose parser left its bounds.
pub(crate) const EFAULT: i32 = 14;

/// A class is what a program leaves, at most 255, so that the order of classes stays.
fn class(word: u32) -> u8 {
    u8::try_from(word).unwrap_or(u8::MAX)
}

impl Outcome {
    fn new(result: i32, left: &Left) -> Self {
        let word = |n: usize| {
            let bytes = left.cb.as_chunks().0.get(n).copied();
            bytes
                .map(u32::from_le_bytes)
                .filter(|_| left.written & 1 << n != 0)
        };
        Self {
            result,
            key: word(0),
            class: word(1).map(class),
        }
    }

    /// Of the words that a program leaves.
    #[inline(always)]
    pub(crate) fn of_words(result: u32, key: Option<u32>, class_word: Option<u32>) -> Self {
        Self {
            result: result.cast_signed(),
            key,
            class: class_word.map(class),
        }
    }

    /// What this means for a message of which `have` bytes are there.
    #[inline(always)]
    #[must_use]
    pub fn verdict(&self, have: usize) -> Verdict {
        let mut verdict = Verdict::from_kernel(self.result, have);
        if let Verdict::Message(frame) = &mut verdict {
            frame.key = self.key;
            frame.class = self.class.unwrap_or(0);
        }
        verdict
    }
}

struct Account(Arc<Inner>);

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Figures {
            steps,
            paths,
            pruned,
            states,
            longest,
            stack_bytes,
        } = self.0.verified.figures;
        let insns = self.0.insns.len();
        writeln!(f, "instructions: {insns}, at most {longest} in one run")?;
        writeln!(
            f,
            "followed: {steps} steps, {paths} paths to their end, {pruned} to one of {states} states"
        )?;
        writeln!(f, "stack: {stack_bytes} bytes")?;
        write!(f, "runs as: ")?;
        match &self.0.meaning {
            Some(Meaning::Fixed(len)) => write!(f, "messages of {len} bytes"),
            Some(Meaning::Field(field)) => field.fmt(f),
            Some(Meaning::Varint(varint)) => write!(f, "a varint: {varint}"),
            Some(Meaning::Tree(tree)) => tree.fmt(f),
            None => write!(f, "interpreted instructions"),
        }
    }
}
