//! Which processor each side runs on.
//!
//! A round trip costs 15 us with both ends on one processor and 70 us when each message wakes an
//! idle one; left to itself the system changes between both, and no ratio would hold still.

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use super::failure::Failure;
use crate::cli::PinChoice;

/// The processors of the two sides; `None`: wherever the system puts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    pub(super) sender: Option<usize>,
    pub(super) receiver: Option<usize>,
}

impl Pins {
    pub(super) const NONE: Self = Self {
        sender: None,
        receiver: None,
    };

    /// What the user asks for, or two different processors where there are two.
    pub(super) fn choose(choice: Option<PinChoice>) -> Result<Self, Failure> {
        let allowed = allowed_cpus()?;
        match choice {
            Some(PinChoice::None) => Ok(Self::NONE),
            Some(PinChoice::Cpus { sender, receiver }) => {
                for cpu in [sender, receiver] {
                    if !allowed.contains(&cpu) {
                        return Err(Failure::Usage(format!(
                            "--pin {cpu}: this process may run on the processors {allowed:?} only"
                        )));
                    }
                }
                Ok(Self {
                    sender: Some(sender),
                    receiver: Some(receiver),
                })
            }
            None => Ok(match allowed[..] {
                [sender, receiver, ..] => Self {
                    sender: Some(sender),
                    receiver: Some(receiver),
                },
                _ => Self::NONE,
            }),
        }
    }
}

/// Keeps the calling thread on this processor.
pub(super) fn pin_current_thread(cpu: Option<usize>) -> Result<(), Failure> {
    let Some(cpu) = cpu else {
        return Ok(());
    };
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(Failure::errno(format!("pin to processor {cpu}")))
}

fn allowed_cpus() -> Result<Vec<usize>, Failure> {
    let set = sched_getaffinity(None).map_err(Failure::errno("sched_getaffinity"))?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect())
}
