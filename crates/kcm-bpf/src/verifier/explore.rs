//! Follows all paths of a program.
//!
//! Depth first, as the kernel does it: of a branch, one side is followed to its end and the other
//! one waits. Where paths can come together, the state is kept as a *checkpoint*. It is *open* while
//! paths that went through it have not ended; these are just the checkpoints on the way from the
//! beginning to here. Once it is closed, all that can come after its state is known to be safe, and
//! how long it can take.

use crate::decode::Op;
use crate::verifier::flow::Flow;
use crate::verifier::memory::Context;
use crate::verifier::prune::{How, compare};
use crate::verifier::state::State;
use crate::verifier::step::{Next, step};
use crate::verifier::{
    Figures, MAX_COMPARED, MAX_KEPT_BYTES, MAX_PENDING, MAX_STEPS, Reason, Rejection,
};

/// What exploring has found out, beside that the program is safe.
pub(crate) struct Found {
    /// The deepest byte of the stack that each function uses.
    pub(crate) frame_bytes: Vec<usize>,
    pub(crate) contexts: Vec<Option<Context>>,
    pub(crate) figures: Figures,
}

/// What is noted of the instruction that is being followed.
pub(crate) struct Notes {
    at: usize,
    accesses: Vec<Access>,
    frame_bytes: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    None,
    Stack,
    Context(Context),
}

/// Follows all paths, or says what can go wrong on one.
pub(crate) fn explore(ops: &[Op], flow: &Flow) -> Result<Found, Rejection> {
    let mut explorer = Explorer {
        ops,
        flow,
        notes: Notes {
            at: 0,
            accesses: vec![Access::None; ops.len()],
            frame_bytes: vec![0; flow.functions.len()],
        },
        checkpoints: Vec::new(),
        kept: vec![Kept::default(); ops.len()],
        kept_bytes: 0,
        compared: 0,
        pending: Vec::new(),
        figures: Figures::default(),
    };
    explorer.pending.push(Path {
        state: State::new(),
        at: 0,
        taken: 0,
        last: None,
    });
    while let Some(path) = explorer.pending.pop() {
        explorer.follow(path)?;
    }
    let contexts = explorer.notes.accesses.iter().map(|access| match access {
        Access::Context(context) => Some(*context),
        _ => None,
    });
    Ok(Found {
        contexts: contexts.collect(),
        frame_bytes: explorer.notes.frame_bytes,
        figures: explorer.figures,
    })
}

struct Explorer<'a> {
    ops: &'a [Op],
    flow: &'a Flow,
    notes: Notes,
    checkpoints: Vec<Checkpoint>,
    /// The checkpoints at each instruction.
    kept: Vec<Kept>,
    kept_bytes: usize,
    compared: usize,
    pending: Vec<Path>,
    figures: Figures,
}

/// A path that has been followed up to an instruction.
struct Path {
    state: State,
    at: usize,
    /// Instructions so far.
    taken: usize,
    /// The last checkpoint on it.
    last: Option<usize>,
}

/// Checkpoints at one instruction, oldest first. Those that are open lie one behind the other on
/// the way here, so they close from the end.
#[derive(Clone, Default)]
struct Kept {
    open: Vec<usize>,
    closed: Vec<Closed>,
}

/// A closed checkpoint, and how often it has covered a state or has not.
#[derive(Clone, Copy)]
struct Closed {
    index: usize,
    hits: usize,
    misses: usize,
}

struct Checkpoint {
    state: State,
    at: usize,
    before: Option<usize>,
    /// Instructions up to here.
    taken: usize,
    /// Paths through it that have not ended; 0 once it is closed.
    open: usize,
    /// Most instructions from here to an end, of those paths that have ended.
    longest: usize,
}

/// How many misses a closed checkpoint may have for each hit, and before the first. One that has more
/// is not compared with any longer, as in the kernel: behind a loop of thousands of rounds that each
/// leave another number, none covers any, and comparing all with all would take longer than to follow
/// them.
const MISSES_PER_HIT: usize = 16;

/// How many rounds of a loop are compared with the next one. One would do for most; a loop can also
/// go back and forth between a few states.
const ROUNDS_LOOKED_BACK: usize = 16;

impl Explorer<'_> {
    /// Follows a path to its end; what branches off it is left pending.
    fn follow(&mut self, mut path: Path) -> Result<(), Rejection> {
        loop {
            if self.flow.joins[path.at]
                && let Some(rest) = self.look_up(&mut path)?
            {
                self.figures.pruned += 1;
                self.close(path.last, path.taken + rest);
                return Ok(());
            }
            self.figures.steps += 1;
            path.taken += 1;
            self.notes.at = path.at;
            if self.figures.steps > MAX_STEPS {
                return Err(too_complex(path.at, "steps over all paths", MAX_STEPS));
            }
            match self.step(&mut path)? {
                Next::At(next) => path.at = next,
                Next::Both(next, target, state) => {
                    if self.pending.len() >= MAX_PENDING {
                        return Err(too_complex(path.at, "paths that wait", MAX_PENDING));
                    }
                    if let Some(last) = path.last {
                        self.checkpoints[last].open += 1;
                    }
                    self.pending.push(Path {
                        state: *state,
                        at: target,
                        taken: path.taken,
                        last: path.last,
                    });
                    path.at = next;
                }
                Next::End => {
                    self.figures.paths += 1;
                    self.close(path.last, path.taken);
                    return Ok(());
                }
            }
        }
    }

    fn step(&mut self, path: &mut Path) -> Result<Next, Rejection> {
        let (ops, flow, at) = (self.ops, self.flow, path.at);
        step(ops, flow, &mut path.state, &mut self.notes, at)
            .map_err(|reason| Rejection::at(at, reason).with_registers(path.state.to_string()))
    }

    /// At an instruction where paths come together: how many instructions can follow at most, if
    /// that is known; else the state is kept.
    fn look_up(&mut self, path: &mut Path) -> Result<Option<usize>, Rejection> {
        let Kept { open, closed } = &mut self.kept[path.at];
        let (flow, at, work) = (self.flow, path.at, &mut self.compared);
        let mut compare_with = |index: usize, how| {
            let old: &Checkpoint = &self.checkpoints[index];
            compare(flow, at, &old.state, &path.state, how, work)
        };
        // A loop that changes nothing comes to the same state again within a few rounds.
        let rounds = open.iter().rev().take(ROUNDS_LOOKED_BACK);
        if rounds.copied().any(|index| compare_with(index, How::Same)) {
            let registers = path.state.to_string();
            return Err(Rejection::at(path.at, Reason::EndlessLoop).with_registers(registers));
        }
        // The newest first: paths come back first to where they went apart last.
        for checkpoint in closed.iter_mut().rev() {
            if compare_with(checkpoint.index, How::Covered) {
                checkpoint.hits += 1;
                return Ok(Some(self.checkpoints[checkpoint.index].longest));
            }
            checkpoint.misses += 1;
        }
        closed.retain(|checkpoint| checkpoint.misses <= MISSES_PER_HIT * (checkpoint.hits + 1));
        if self.compared > MAX_COMPARED {
            return Err(too_complex(path.at, "comparisons of states", MAX_COMPARED));
        }
        let bytes = path.state.size_bytes();
        if self.kept_bytes + bytes > MAX_KEPT_BYTES {
            return Ok(None);
        }
        self.kept_bytes += bytes;
        self.figures.states += 1;
        let index = self.checkpoints.len();
        self.kept[path.at].open.push(index);
        // The path's place at the checkpoint before goes to this one.
        self.checkpoints.push(Checkpoint {
            state: path.state.clone(),
            at: path.at,
            before: path.last,
            taken: path.taken,
            open: 1,
            longest: 0,
        });
        path.last = Some(index);
        Ok(None)
    }

    /// A path has ended after so many instructions; so have those checkpoints that waited for it
    /// alone.
    fn close(&mut self, last: Option<usize>, total: usize) {
        let (mut last, mut total) = (last, total);
        while let Some(index) = last {
            let checkpoint = &mut self.checkpoints[index];
            checkpoint.longest = checkpoint.longest.max(total - checkpoint.taken);
            checkpoint.open -= 1;
            if checkpoint.open > 0 {
                return;
            }
            let kept = &mut self.kept[checkpoint.at];
            let closed = kept.open.pop();
            debug_assert_eq!(closed, Some(index), "the last one closes first");
            kept.closed.push(Closed {
                index,
                hits: 0,
                misses: 0,
            });
            total = checkpoint.taken + checkpoint.longest;
            last = checkpoint.before;
        }
        self.figures.longest = self.figures.longest.max(total);
    }
}

impl Notes {
    /// The instruction accesses the context, or the stack. The interpreter takes one way for each
    /// instruction, so it must be the same on all paths.
    pub(crate) fn context(&mut self, field: Option<Context>, base: u8) -> Result<(), Reason> {
        let access = field.map_or(Access::Stack, Access::Context);
        let known = &mut self.accesses[self.at];
        if *known != Access::None && *known != access {
            let what = "it is to the context on one path and to the stack on another";
            return Err(Reason::PointerLeak { reg: base, what });
        }
        *known = access;
        Ok(())
    }

    /// The stack of the function at this depth is used down to this offset.
    pub(crate) fn stack(&mut self, state: &State, depth: u8, least: i64) {
        let function = state.frames[usize::from(depth)].function;
        let bytes = usize::try_from(-least).unwrap_or(0);
        let known = &mut self.frame_bytes[function];
        *known = (*known).max(bytes);
    }
}

#[cold]
fn too_complex(at: usize, what: &'static str, limit: usize) -> Rejection {
    Rejection::at(at, Reason::TooComplex { what, limit })
}
