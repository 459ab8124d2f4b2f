//! Random programs: most of them such that a verifier should accept them, some with a mistake.

use kcm_bpf::{Insn, op::*};

/// A sequence of random numbers that a seed gives.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A constant near where things change.
    pub(crate) fn imm(&mut self) -> i32 {
        match self.below(6) {
            0 => self.next() as i32,
            1 => (self.below(20) as i32) - 10,
            2 => 1 << self.below(32),
            3 => i32::MAX,
            4 => i32::MIN,
            _ => self.below(256) as i32,
        }
    }
}

/// A program in the course of being made.
struct Maker<'a> {
    random: &'a mut Random,
    insns: Vec<Insn>,
    /// Registers that hold numbers, as bits.
    numbers: u16,
    /// Registers that must stay as they are.
    kept: u16,
    /// 8-byte slots that hold numbers, from the frame's end.
    slots: u8,
    /// Where subprograms are called, to be filled in.
    calls: Vec<usize>,
    is_main: bool,
}

/// The context is kept here, which is where packet loads want it.
const CTX_REG: u8 = CTX;

/// A random program.
pub(crate) fn program(random: &mut Random) -> Vec<Insn> {
    let (mut insns, calls) = function(random, true);
    if !calls.is_empty() {
        let begin = insns.len();
        let (callee, _) = function(random, false);
        insns.extend(callee);
        for at in calls {
            insns[at].imm = (begin - at - 1) as i32;
        }
    }
    insns
}

/// Changes something about a program.
pub(crate) fn spoil(random: &mut Random, insns: &mut Vec<Insn>) {
    for _ in 0..=random.below(2) {
        let at = random.below(insns.len() as u64) as usize;
        let other = insns[random.below(insns.len() as u64) as usize];
        match random.below(9) {
            0 => insns[at].dst = random.below(11) as u8,
            1 => insns[at].src = random.below(11) as u8,
            2 => insns[at].off = random.imm() as i16,
            3 => insns[at].imm = random.imm(),
            4 => insns[at].code ^= 1 << random.below(8),
            5 => insns[at] = other,
            6 => insns[at].off = insns[at].off.wrapping_add(random.below(17) as i16 - 8),
            7 => insns[at].code = random.next() as u8,
            _ => {
                insns.remove(at);
                if insns.is_empty() {
                    insns.push(other);
                }
            }
        }
    }
}

fn function(random: &mut Random, is_main: bool) -> (Vec<Insn>, Vec<usize>) {
    let mut maker = Maker {
        random,
        insns: Vec::new(),
        numbers: 0,
        kept: 1 << CTX_REG | 1 << FP,
        slots: 0,
        calls: Vec::new(),
        is_main,
    };
    maker.emit(ALU64 | MOV | X, CTX_REG, 1, 0, 0);
    if !is_main {
        // The second argument is a number.
        maker.numbers |= 1 << 2;
    }
    let parts = 2 + maker.random.below(8);
    for _ in 0..parts {
        maker.part(3);
    }
    let result = maker.number();
    maker.emit(ALU64 | MOV | X, 0, result, 0, 0);
    maker.emit(JMP | EXIT, 0, 0, 0, 0);
    (maker.insns, maker.calls)
}

impl Maker<'_> {
    fn emit(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.insns.push(Insn {
            code,
            dst,
            src,
            off,
            imm,
        });
    }

    /// A register that may be written.
    fn target(&mut self) -> u8 {
        loop {
            let reg = self.random.below(10) as u8;
            if self.kept & 1 << reg == 0 {
                return reg;
            }
        }
    }

    /// A register with a number, made if there is none.
    fn number(&mut self) -> u8 {
        let all: Vec<u8> = (0..10).filter(|reg| self.numbers & 1 << reg != 0).collect();
        if all.is_empty() || self.random.one_in(8) {
            let reg = self.target();
            self.constant(reg);
            return reg;
        }
        self.random.pick(&all)
    }

    fn constant(&mut self, reg: u8) {
        let imm = self.random.imm();
        if self.random.one_in(6) {
            let high = self.random.imm();
            self.emit(LD | IMM | DW, reg, 0, 0, imm);
            self.emit(0, 0, 0, 0, high);
        } else {
            let class = self.random.pick(&[ALU, ALU64]);
            self.emit(class | MOV, reg, 0, 0, imm);
        }
        self.numbers |= 1 << reg;
    }

    /// Registers 1 to 5 are gone, register 0 has a number.
    fn called(&mut self) {
        self.numbers &= !0b11_1111;
        self.numbers |= 1;
    }

    fn part(&mut self, depth: u32) {
        match self.random.below(if depth > 0 { 15 } else { 10 }) {
            0..=2 => self.arithmetic(),
            3 | 4 => self.packet(),
            5 => self.stack(),
            6 => self.context(),
            7 => self.indexed_stack(),
            8 => self.helper(),
            9 => self.odd_arithmetic(),
            10 | 11 => self.branch(depth - 1),
            12 => self.bounded_branch(depth - 1),
            13 => self.bounded_loop(depth - 1),
            _ => self.call(),
        }
    }

    fn arithmetic(&mut self) {
        let dst = self.number();
        if self.kept & 1 << dst != 0 {
            return;
        }
        let class = self.random.pick(&[ALU, ALU64]);
        let kind = self
            .random
            .pick(&[ADD, SUB, MUL, DIV, OR, AND, LSH, RSH, MOD, XOR, MOV, ARSH]);
        let is_shift = matches!(kind, LSH | RSH | ARSH);
        let off = i16::from(matches!(kind, DIV | MOD) && self.random.one_in(2));
        if self.random.one_in(2) {
            let src = self.number();
            self.emit(class | kind | X, dst, src, off, 0);
        } else {
            let mut imm = self.random.imm();
            if is_shift {
                imm &= if class == ALU { 31 } else { 63 };
            }
            if matches!(kind, DIV | MOD) && imm == 0 {
                imm = 3;
            }
            self.emit(class | kind, dst, 0, off, imm);
        }
    }

    fn odd_arithmetic(&mut self) {
        let dst = self.number();
        if self.kept & 1 << dst != 0 {
            return;
        }
        match self.random.below(4) {
            0 => {
                let class = self.random.pick(&[ALU, ALU64]);
                self.emit(class | NEG, dst, 0, 0, 0);
            }
            1 => {
                let code = self.random.pick(&[ALU | END, ALU | END | X, ALU64 | END]);
                let bits = self.random.pick(&[16, 32, 64]);
                self.emit(code, dst, 0, 0, bits);
            }
            2 => {
                let src = self.number();
                let bits = self.random.pick(&[8, 16, 32]);
                self.emit(ALU64 | MOV | X, dst, src, bits, 0);
            }
            _ => {
                let src = self.number();
                let bits = self.random.pick(&[8, 16]);
                self.emit(ALU | MOV | X, dst, src, bits, 0);
            }
        }
    }

    fn packet(&mut self) {
        // The kernel takes packet loads in subprograms only with type information.
        if !self.is_main && !self.random.one_in(8) {
            return;
        }
        let size = self.random.pick(&[B, H, W]);
        let offset = self.random.below(40) as i32;
        if self.random.one_in(2) {
            self.emit(LD | ABS | size, 0, 0, 0, offset);
        } else {
            let index = self.number();
            if self.kept & 1 << index == 0 && !self.random.one_in(4) {
                self.emit(ALU64 | AND, index, 0, 0, 0x1f);
            }
            self.emit(LD | IND | size, 0, index, 0, offset - 8);
        }
        self.called();
    }

    fn stack(&mut self) {
        let slot = self.random.below(4) as i16;
        let at = -8 * (slot + 1);
        let (size, bytes) = self.random.pick(&[(B, 1), (H, 2), (W, 4), (DW, 8)]);
        if self.slots & 1 << slot == 0 {
            if self.random.one_in(2) {
                let src = self.number();
                self.emit(STX | MEM | DW, FP, src, at, 0);
            } else {
                let imm = self.random.imm();
                self.emit(ST | MEM | DW, FP, 0, at, imm);
            }
            self.slots |= 1 << slot;
        }
        let within = self.random.below(8 / bytes) as i16 * bytes as i16;
        match self.random.below(4) {
            0 => {
                let src = self.number();
                self.emit(STX | MEM | size, FP, src, at + within, 0);
            }
            1 => {
                let imm = self.random.imm();
                self.emit(ST | MEM | size, FP, 0, at + within, imm);
            }
            2 if size != DW => {
                let dst = self.target();
                self.emit(LDX | MEMSX | size, dst, FP, at + within, 0);
                self.numbers |= 1 << dst;
            }
            _ => {
                let dst = self.target();
                self.emit(LDX | MEM | size, dst, FP, at + within, 0);
                self.numbers |= 1 << dst;
            }
        }
    }

    /// A byte or two at a place on the stack that is calculated.
    fn indexed_stack(&mut self) {
        if self.slots & 3 != 3 {
            return;
        }
        let (index, place) = (self.number(), self.target());
        if index == place || self.kept & 1 << index != 0 {
            return;
        }
        let class = self.random.pick(&[ALU, ALU64]);
        let (size, mask) = self.random.pick(&[(B, 15), (H, 14), (B, 7), (W, 8)]);
        self.emit(class | AND, index, 0, 0, mask);
        self.emit(ALU64 | MOV | X, place, FP, 0, 0);
        self.emit(ALU64 | ADD, place, 0, 0, -16);
        self.emit(ALU64 | ADD | X, place, index, 0, 0);
        self.numbers &= !(1 << place);
        if self.random.one_in(2) {
            let value = self.number();
            if value != place {
                self.emit(STX | MEM | size, place, value, 0, 0);
            }
        } else {
            self.emit(LDX | MEM | size, place, place, 0, 0);
            self.numbers |= 1 << place;
        }
    }

    fn context(&mut self) {
        let (size, bytes) = self.random.pick(&[(B, 1), (H, 2), (W, 4), (DW, 8)]);
        let within = self.random.below(16 / bytes) as i16 * bytes as i16;
        match self.random.below(4) {
            0 => {
                let src = self.number();
                self.emit(STX | MEM | size, CTX_REG, src, 48 + within, 0);
            }
            1 => {
                let dst = self.target();
                self.emit(LDX | MEM | size, dst, CTX_REG, 48 + within, 0);
                self.numbers |= 1 << dst;
            }
            2 => {
                let dst = self.target();
                self.emit(LDX | MEM | W, dst, CTX_REG, 0, 0);
                self.numbers |= 1 << dst;
            }
            _ => {
                let dst = self.target();
                let field = self
                    .random
                    .pick(&[8, 12, 20, 24, 28, 32, 36, 44, 68, 84, 164, 176]);
                self.emit(LDX | MEM | W, dst, CTX_REG, field, 0);
                self.numbers |= 1 << dst;
            }
        }
    }

    fn helper(&mut self) {
        if self.kept & 0b11_1111 != 0 {
            return;
        }
        if self.random.one_in(6) {
            // The time, of which nothing is kept.
            self.emit(JMP | CALL, 0, 0, 0, 5);
            self.emit(ALU64 | AND, 0, 0, 0, 0);
            self.called();
            return;
        }
        let relative = self.random.one_in(4);
        let len = 1 + self.random.below(8) as i32;
        let slot = self.random.below(4) as i32;
        let offset = self.random.imm() % 64;
        self.emit(ALU64 | MOV | X, 1, CTX_REG, 0, 0);
        self.emit(ALU64 | MOV, 2, 0, 0, offset);
        self.emit(ALU64 | MOV | X, 3, FP, 0, 0);
        self.emit(ALU64 | ADD, 3, 0, 0, -8 * (slot + 1));
        self.emit(ALU64 | MOV, 4, 0, 0, len);
        // From the network header, which is where the message begins.
        self.emit(ALU64 | MOV, 5, 0, 0, 1);
        self.emit(JMP | CALL, 0, 0, 0, if relative { 68 } else { 26 });
        if len == 8 {
            self.slots |= 1 << slot;
        }
        self.called();
    }

    fn comparison(&mut self, dst: u8, off: i16) {
        let class = self.random.pick(&[JMP, JMP32]);
        let kind = self
            .random
            .pick(&[JEQ, JGT, JGE, JSET, JNE, JSGT, JSGE, JLT, JLE, JSLT, JSLE]);
        if self.random.one_in(3) {
            let src = self.number();
            self.emit(class | kind | X, dst, src, off, 0);
        } else {
            let imm = self.random.imm();
            self.emit(class | kind, dst, 0, off, imm);
        }
    }

    /// What one side of a branch does, the other does not.
    fn branch(&mut self, depth: u32) {
        let dst = self.number();
        self.comparison(dst, 0);
        self.over(depth);
    }

    /// A branch that bounds an index, which is then used.
    fn bounded_branch(&mut self, depth: u32) {
        if self.slots & 1 == 0 {
            return;
        }
        let (index, place) = (self.number(), self.target());
        if index == place || self.kept & 1 << index != 0 {
            return;
        }
        let class = self.random.pick(&[JMP, JMP32]);
        if class == JMP32 || self.random.one_in(2) {
            self.emit(ALU | MOV | X, index, index, 0, 0);
        }
        // What is compared may be a copy of what is used.
        let copy = self.target();
        let compared = match copy == index || copy == place || self.random.one_in(2) {
            true => index,
            false => {
                let width = self.random.pick(&[ALU, ALU64]);
                self.emit(width | MOV | X, copy, index, 0, 0);
                self.numbers |= 1 << copy;
                copy
            }
        };
        self.emit(class | JGT, compared, 0, 4, 7);
        self.emit(ALU64 | MOV | X, place, FP, 0, 0);
        self.emit(ALU64 | ADD | X, place, index, 0, 0);
        self.emit(LDX | MEM | B, place, place, -8, 0);
        self.emit(JMP | JA, 0, 0, 1, 0);
        self.emit(ALU64 | MOV, place, 0, 0, 5);
        self.numbers |= 1 << place;
        self.part(depth);
    }

    /// The instructions that the branch just made goes over.
    fn over(&mut self, depth: u32) {
        let at = self.insns.len() - 1;
        let (numbers, slots) = (self.numbers, self.slots);
        for _ in 0..=self.random.below(3) {
            self.part(depth);
        }
        if self.random.one_in(5) {
            self.emit(ALU64 | MOV, 0, 0, 0, 7);
            self.emit(JMP | EXIT, 0, 0, 0, 0);
            (self.numbers, self.slots) = (numbers, slots);
        } else {
            self.numbers &= numbers;
            self.slots &= slots;
        }
        self.insns[at].off = (self.insns.len() - at - 1) as i16;
    }

    fn bounded_loop(&mut self, depth: u32) {
        let counter = 7 + self.random.below(3) as u8;
        if self.kept & 1 << counter != 0 {
            return;
        }
        let rounds = 1 + self.random.below(6) as i32;
        self.emit(ALU64 | MOV, counter, 0, 0, 0);
        self.kept |= 1 << counter;
        let begin = self.insns.len();
        let (numbers, slots) = (self.numbers, self.slots);
        for _ in 0..=self.random.below(2) {
            self.part(depth);
        }
        self.numbers &= numbers;
        self.slots &= slots;
        self.emit(ALU64 | ADD, counter, 0, 0, 1);
        let class = self.random.pick(&[JMP, JMP32]);
        let off = begin as i64 - self.insns.len() as i64 - 1;
        self.emit(class | JLT, counter, 0, off as i16, rounds);
        self.kept &= !(1 << counter);
        self.numbers |= 1 << counter;
    }

    fn call(&mut self) {
        if !self.is_main || self.kept & 0b11_1111 != 0 {
            return;
        }
        let number = self.number();
        self.emit(ALU64 | MOV | X, 2, number, 0, 0);
        self.emit(ALU64 | MOV | X, 1, CTX_REG, 0, 0);
        self.calls.push(self.insns.len());
        self.emit(JMP | CALL, 0, CALL_LOCAL, 0, 0);
        self.called();
    }
}
