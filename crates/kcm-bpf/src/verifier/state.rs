//! What the registers and the stack hold at one point of one path.

use std::fmt;

use crate::insn::op;
use crate::verifier::scalar::Scalar;

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reg {
    /// Nothing that may be read.
    Nothing,
    /// A number. Registers and slots with the same `id` above 0 hold the same number, so that what
    /// is learned of one is known of all.
    Number { is: Scalar, id: u32 },
    /// The context, moved by so many bytes.
    Context { moved: Scalar },
    /// The stack: so many bytes from the end of the frame of the function at this depth of calls.
    Stack { depth: u8, offset: Scalar },
}

impl Reg {
    pub(crate) const fn number(is: Scalar) -> Self {
        Self::Number { is, id: 0 }
    }

    pub(crate) const fn is_pointer(&self) -> bool {
        matches!(self, Self::Context { .. } | Self::Stack { .. })
    }
}

/// Eight bytes of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Slot {
    /// Single bytes, of which nothing is known but (one bit for each) that they were written, and
    /// that they are zero.
    Bytes { written: u8, zero: u8 },
    /// A register that was stored as a whole.
    Whole(Reg),
    /// The lower half of a number, stored in the first four bytes; of the others, those `written`.
    Half { is: Scalar, written: u8 },
}

impl Slot {
    pub(crate) const EMPTY: Self = Self::Bytes {
        written: 0,
        zero: 0,
    };

    /// Which bytes may be read as bytes of a number.
    pub(crate) const fn readable(&self) -> u8 {
        match self {
            Self::Bytes { written, .. } | Self::Half { written, .. } => *written,
            Self::Whole(Reg::Number { .. }) => 0xff,
            Self::Whole(_) => 0,
        }
    }

    /// The same bytes, with less known of them.
    pub(crate) const fn blurred(&self) -> (u8, u8) {
        match self {
            Self::Bytes { written, zero } => (*written, *zero),
            Self::Whole(Reg::Number { is, .. }) => match is.as_constant() {
                Some(0) => (0xff, 0xff),
                _ => (0xff, 0),
            },
            Self::Half { written, .. } => (*written, 0),
            // Half a pointer is nothing.
            Self::Whole(_) => (0, 0),
        }
    }
}

/// One function in the course of being run.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    /// Which function.
    pub(crate) function: usize,
    /// Where its caller goes on.
    pub(crate) back: usize,
    pub(crate) regs: [Reg; 11],
    /// Slot `i` lies at `-8 * (i + 1)`; slots beyond the end are empty.
    pub(crate) stack: Vec<Slot>,
}

impl Frame {
    /// The frame of a function that begins, at this depth of calls, with nothing but its stack.
    pub(crate) fn new(function: usize, back: usize, depth: u8) -> Self {
        let mut regs = [Reg::Nothing; 11];
        regs[usize::from(op::FP)] = Reg::Stack {
            depth,
            offset: Scalar::constant(0),
        };
        Self {
            function,
            back,
            regs,
            stack: Vec::new(),
        }
    }

    pub(crate) fn slot(&self, index: usize) -> Slot {
        self.stack.get(index).copied().unwrap_or(Slot::EMPTY)
    }

    pub(crate) fn slot_mut(&mut self, index: usize) -> &mut Slot {
        if self.stack.len() <= index {
            self.stack.resize(index + 1, Slot::EMPTY);
        }
        &mut self.stack[index]
    }
}

/// The frames of all functions on the way, the running one last.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) frames: Vec<Frame>,
    /// The last number given out to registers that hold the same.
    pub(crate) last_id: u32,
}

impl State {
    /// At the beginning of the main function.
    pub(crate) fn new() -> Self {
        let mut frame = Frame::new(0, 0, 0);
        frame.regs[1] = Reg::Context {
            moved: Scalar::constant(0),
        };
        Self {
            frames: vec![frame],
            last_id: 0,
        }
    }

    pub(crate) fn frame(&self) -> &Frame {
        self.frames
            .last()
            .expect("the main function's is always there")
    }

    pub(crate) fn frame_mut(&mut self) -> &mut Frame {
        self.frames
            .last_mut()
            .expect("the main function's is always there")
    }

    pub(crate) fn reg(&self, reg: u8) -> &Reg {
        &self.frame().regs[usize::from(reg)]
    }

    pub(crate) fn set(&mut self, reg: u8, value: Reg) {
        self.frame_mut().regs[usize::from(reg)] = value;
    }

    /// A name for a number that will be in two places.
    pub(crate) fn fresh_id(&mut self) -> u32 {
        self.last_id += 1;
        self.last_id
    }

    /// `is` has been learned of the number in `reg`, and so of all its copies.
    pub(crate) fn learn(&mut self, reg: u8, is: Scalar) {
        let Reg::Number { id, .. } = *self.reg(reg) else {
            return;
        };
        let learned = Reg::Number { is, id };
        self.set(reg, learned);
        if id == 0 {
            return;
        }
        let same = |other: &Reg| matches!(other, Reg::Number { id: other, .. } if *other == id);
        for frame in &mut self.frames {
            for other in frame.regs.iter_mut().filter(|reg| same(reg)) {
                *other = learned;
            }
            for slot in &mut frame.stack {
                if let Slot::Whole(other) = slot
                    && same(other)
                {
                    *other = learned;
                }
            }
        }
    }

    /// About how much memory it takes, in bytes.
    pub(crate) fn size_bytes(&self) -> usize {
        let slots: usize = self.frames.iter().map(|frame| frame.stack.len()).sum();
        size_of::<Self>() + self.frames.len() * size_of::<Frame>() + slots * size_of::<Slot>()
    }
}

impl fmt::Display for Reg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Number { is, .. } => is.fmt(f),
            Self::Context { moved } => match moved.as_constant() {
                Some(0) => f.write_str("ctx"),
                _ => write!(f, "ctx+{moved}"),
            },
            Self::Stack { offset, .. } => match offset.as_constant() {
                Some(0) => f.write_str("fp"),
                Some(n) => write!(f, "fp{:+}", n.cast_signed()),
                None => write!(f, "fp+{offset}"),
            },
        }
    }
}

impl fmt::Display for State {
    /// The registers of the running function, and what it has stored as a whole.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frame = self.frame();
        let mut gap = "";
        for (reg, is) in frame.regs.iter().enumerate() {
            if *is != Reg::Nothing {
                write!(f, "{gap}r{reg}={is}")?;
                gap = " ";
            }
        }
        for (index, slot) in frame.stack.iter().enumerate() {
            let at = 8 * (index + 1);
            match slot {
                Slot::Whole(reg) => write!(f, "{gap}fp-{at}={reg}")?,
                Slot::Half { is, .. } => write!(f, "{gap}fp-{at}={is}")?,
                Slot::Bytes { .. } => {}
            }
        }
        Ok(())
    }
}
