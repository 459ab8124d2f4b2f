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
        kept: vec![Vec::new(); ops.len()],
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
    /// The checkpoints at each instruction whose states are kept, oldest first.
    kept: Vec<Vec<usize>>,
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

struct Checkpoint {
    state: State,
    before: Option<usize>,
    /// Instructions up to here.
    taken: usize,
    /// Paths through it that have not ended; 0 once it is closed.
    open: usize,
    /// Most instructions from here to an end, of those paths that have ended.
    longest: usize,
}

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
        // The newest first: paths come back first to where they went apart last.
        for &index in self.kept[path.at].iter().rev() {
            let old = &self.checkpoints[index];
            let how = if old.open == 0 {
                How::Covered
            } else {
                How::Same
            };
            let work = &mut self.compared;
            if !compare(self.flow, path.at, &old.state, &path.state, how, work) {
                continue;
            }
            if how == How::Covered {
                return Ok(Some(old.longest));
            }
            let registers = path.state.to_string();
            return Err(Rejection::at(path.at, Reason::EndlessLoop).with_registers(registers));
        }
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
        self.kept[path.at].push(index);
        // The path's place at the checkpoint before goes to this one.
        self.checkpoints.push(Checkpoint {
            state: path.state.clone(),
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
