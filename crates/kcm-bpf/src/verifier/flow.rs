//! What can be said of a program without following values: its functions, where jumps lead, and
//! which registers matter where.
//!
//! The shape is the kernel's demand: a function ends with `exit` or a jump, jumps stay inside of
//! it, every instruction can be reached, functions do not call themselves.
//!
//! Two sets of registers are found for each instruction, going backwards until nothing changes.
//! *Live* registers may be read before they are written. *Vital* ones may, besides, decide
//! something: where a branch goes, what is accessed, how much a helper writes. A length that is put
//! together from packet bytes and returned is live and not vital, and so two paths that differ only
//! in it need not both be followed.

use crate::alu::Alu;
use crate::decode::{ARGUMENTS, Op, Operand};
use crate::insn::op;
use crate::verifier::{MAX_FRAMES, Reason, Rejection};

/// The shape of a program.
#[derive(Debug)]
pub(crate) struct Flow {
    /// First instruction of each function, ascending; the main one is the first.
    pub(crate) functions: Vec<usize>,
    /// For each instruction, the registers that may still be read, as bits, before it runs.
    pub(crate) live: Vec<u16>,
    /// Those of them that may decide something.
    pub(crate) vital: Vec<u16>,
    /// Whether paths can come together before this instruction.
    pub(crate) joins: Vec<bool>,
    /// The functions that each function calls.
    pub(crate) calls: Vec<Vec<usize>>,
}

/// Finds it, or says what is wrong with it.
pub(crate) fn analyse(ops: &[Op]) -> Result<Flow, Rejection> {
    let functions = functions(ops)?;
    let mut flow = Flow {
        calls: vec![Vec::new(); functions.len()],
        functions,
        live: vec![0; ops.len()],
        vital: vec![0; ops.len()],
        joins: vec![false; ops.len()],
    };
    for function in 0..flow.functions.len() {
        flow.check_function(ops, function)?;
    }
    let order = flow.callees_first()?;
    for function in order {
        flow.find_live(ops, function);
    }
    Ok(flow)
}

/// The beginnings of all functions: the program's, and what is called.
fn functions(ops: &[Op]) -> Result<Vec<usize>, Rejection> {
    let mut functions = vec![0];
    for (at, op) in ops.iter().enumerate() {
        if let Op::Call { target } = *op {
            let index = usize::try_from(target).ok();
            match index.and_then(|index| Some((index, ops.get(index)?))) {
                Some((index, op)) if *op != Op::ConstEnd => functions.push(index),
                _ => return Err(Rejection::at(at, Reason::BadTarget { target })),
            }
        }
    }
    functions.sort_unstable();
    functions.dedup();
    Ok(functions)
}

impl Flow {
    /// The number of the function that begins at this instruction.
    pub(crate) fn function_at(&self, index: usize) -> usize {
        self.functions.partition_point(|&begin| begin <= index) - 1
    }

    /// First instruction of a function, and the first one after it.
    fn bounds(&self, ops: &[Op], function: usize) -> (usize, usize) {
        let end = self.functions.get(function + 1).copied();
        (self.functions[function], end.unwrap_or(ops.len()))
    }

    fn check_function(&mut self, ops: &[Op], function: usize) -> Result<(), Rejection> {
        let (begin, end) = self.bounds(ops, function);
        if !matches!(ops[end - 1], Op::Exit | Op::Jump { .. }) {
            return Err(Rejection::at(end - 1, Reason::NoExit));
        }
        for (at, op) in ops.iter().enumerate().take(end).skip(begin) {
            match *op {
                Op::Jump { target } | Op::Branch { target, .. } => {
                    let inside = usize::try_from(target).ok().filter(|target| {
                        (begin..end).contains(target) && ops[*target] != Op::ConstEnd
                    });
                    let Some(index) = inside else {
                        return Err(Rejection::at(at, Reason::BadTarget { target }));
                    };
                    // A jump to the next instruction included: paths may meet there.
                    self.joins[index] = true;
                }
                Op::Call { target } => {
                    let callee = self.function_at(usize::try_from(target).unwrap_or(0));
                    self.calls[function].push(callee);
                }
                _ => {}
            }
        }
        self.calls[function].sort_unstable();
        self.calls[function].dedup();
        let mut reached = vec![false; end - begin];
        let mut ahead = vec![begin];
        while let Some(at) = ahead.pop() {
            if std::mem::replace(&mut reached[at - begin], true) {
                continue;
            }
            ahead.extend(next(ops, at).into_iter().flatten());
        }
        let lost = (begin..end).find(|&at| !reached[at - begin] && ops[at] != Op::ConstEnd);
        match lost {
            Some(at) => Err(Rejection::at(at, Reason::Unreachable)),
            None => Ok(()),
        }
    }

    /// All functions, each after those that it calls.
    fn callees_first(&self) -> Result<Vec<usize>, Rejection> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.functions.len()];
        let mut order = Vec::with_capacity(self.functions.len());
        // Functions on the way, with the number of their calls that were followed.
        let mut way = vec![(0, 0)];
        marks[0] = Mark::Open;
        // The main function is the only one that nothing need call.
        while let Some((function, followed)) = way.last_mut() {
            let Some(&callee) = self.calls[*function].get(*followed) else {
                marks[*function] = Mark::Done;
                order.push(*function);
                way.pop();
                continue;
            };
            *followed += 1;
            match marks[callee] {
                Mark::Done => {}
                Mark::Open => {
                    let begin = self.functions[callee];
                    return Err(Rejection::at(begin, Reason::Recursion));
                }
                Mark::New => {
                    marks[callee] = Mark::Open;
                    way.push((callee, 0));
                }
            }
        }
        match marks.iter().position(|mark| *mark != Mark::Done) {
            Some(function) => {
                let begin = self.functions[function];
                Err(Rejection::at(begin, Reason::Unreachable))
            }
            None => Ok(order),
        }
    }

    /// The functions on the longest way down from the main one, and the most stack that any way
    /// uses, given what each function uses itself.
    pub(crate) fn check_depth(&self, frame_bytes: &[usize]) -> Result<usize, Rejection> {
        let order = self.callees_first()?;
        let mut frames = vec![1; self.functions.len()];
        let mut bytes = frame_bytes.to_vec();
        for function in order {
            let below = &self.calls[function];
            frames[function] += below
                .iter()
                .map(|&callee| frames[callee])
                .max()
                .unwrap_or(0);
            bytes[function] += below.iter().map(|&callee| bytes[callee]).max().unwrap_or(0);
        }
        if frames[0] > MAX_FRAMES {
            let limit = MAX_FRAMES;
            return Err(Rejection::whole(Reason::TooManyFrames { limit }));
        }
        Ok(bytes[0])
    }

    /// Goes from each instruction whose sets have grown to those before it. A set grows at most
    /// once for each register, so that this ends soon whatever the jumps are like.
    fn find_live(&mut self, ops: &[Op], function: usize) {
        let (begin, end) = self.bounds(ops, function);
        let mut jumps: Vec<(usize, usize)> = (begin..end)
            .filter_map(|at| match ops[at] {
                Op::Jump { target } | Op::Branch { target, .. } => {
                    Some((usize::try_from(target).ok()?, at))
                }
                _ => None,
            })
            .collect();
        jumps.sort_unstable();
        // Taken from the end, so that a function without loops takes one round.
        let mut ahead: Vec<usize> = (begin..end).collect();
        while let Some(at) = ahead.pop() {
            let (mut live, mut vital) = (0, 0);
            for next in next(ops, at).into_iter().flatten() {
                live |= self.live[next];
                vital |= self.vital[next];
            }
            let (live, vital) = self.before(ops, at, function, live, vital);
            if live == self.live[at] && vital == self.vital[at] {
                continue;
            }
            self.live[at] = live;
            self.vital[at] = vital;
            let first = jumps.partition_point(|&(target, _)| target < at);
            let to_here = jumps[first..]
                .iter()
                .take_while(|(target, _)| *target == at);
            ahead.extend(to_here.map(|(_, from)| from));
            for before in [at.checked_sub(1), at.checked_sub(2)] {
                if let Some(before) = before.filter(|&before| before >= begin)
                    && next(ops, before).contains(&Some(at))
                {
                    ahead.push(before);
                }
            }
        }
    }

    /// The registers that matter before an instruction, from those that do after it.
    fn before(&self, ops: &[Op], at: usize, function: usize, live: u16, vital: u16) -> (u16, u16) {
        let op = &ops[at];
        let (reads, writes) = (op.reads(), op.writes());
        let fp = 1 << op::FP;
        let (live, vital) = match *op {
            // Whatever the callee needs of the arguments.
            Op::Call { target } => {
                let begin = usize::try_from(target).unwrap_or(0);
                (
                    live & !writes | self.live[begin] & ARGUMENTS,
                    vital & !writes | self.vital[begin] & ARGUMENTS,
                )
            }
            // The result of the program decides nothing; that of a function may.
            Op::Exit => (reads, if function == 0 { 0 } else { reads }),
            // What is stored is not followed further: it may decide something. So may any helper's
            // argument, a branch, an address.
            Op::Store { .. } | Op::Load { .. } | Op::Helper(_) | Op::Branch { .. } => {
                (live & !writes | reads, vital & !writes | reads)
            }
            Op::Packet { index, .. } => {
                let index = index.map_or(0, |index| 1 << index);
                let context = 1 << op::CTX;
                // Where a message is read decides nothing, but registers may hold pointers that
                // must not be there.
                (live & !writes | reads | index, vital & !writes | context)
            }
            // A pointer may come of it, whose place is decided by both.
            Op::Alu { dst, src, alu, .. } => {
                let needed = if vital & writes == 0 { 0 } else { reads };
                let kept = if alu == Alu::Mov { 0 } else { 1 << dst };
                let source = match src {
                    Operand::Reg(reg) => 1 << reg,
                    Operand::Imm(_) => 0,
                };
                (live & !writes | source | kept, vital & !writes | needed)
            }
            _ => {
                let needed = if vital & writes == 0 { 0 } else { reads };
                (live & !writes | reads, vital & !writes | needed)
            }
        };
        // The frame pointer is always the same.
        (live & !fp, vital & !fp)
    }
}

/// The instructions that can come after this one in its function.
pub(crate) fn next(ops: &[Op], at: usize) -> [Option<usize>; 2] {
    let to = |target: i64| usize::try_from(target).ok();
    match ops[at] {
        Op::Exit => [None, None],
        Op::Jump { target } => [to(target), None],
        Op::Branch { target, .. } => [Some(at + 1), to(target)],
        Op::Const { .. } => [Some(at + 2), None],
        _ => [Some(at + 1), None],
    }
}
