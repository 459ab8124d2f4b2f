//! Byte-range locks that clients hold on files (Tlock, Tgetlock), as POSIX has them: one client's
//! process can lock any ranges of a file, for reading or writing, and change them piece by piece.
//!
//! They hold among the clients of this server, not against programs on this side. A client that
//! has to wait is told so and asks again, so no worker ever waits. What a client holds goes with its
//! connection. One table for all files: locks are few.

use std::{
    collections::HashMap,
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::io::Errno;

use crate::wire::Result;

/// Ranges of all clients, 8,192: some MiB at most, and looked through in microseconds. No client may
/// have more than are left: 4,096 for the first.
const MAX_RANGES: usize = 8_192;
/// Longest name that a client gives itself, in bytes: Linux sends its host name, of 64 at most.
pub(crate) const MAX_CLIENT_ID_BYTES: usize = 256;

/// A file's device and inode.
pub(crate) type FileKey = (u64, u64);

/// Whose lock it is: of a process of a client of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) session: u64,
    pub(crate) client_id: Vec<u8>,
    pub(crate) process: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// First and last byte.
    pub(crate) range: RangeInclusive<u64>,
    pub(crate) write: bool,
    pub(crate) owner: Owner,
}

impl Lock {
    fn conflicts(&self, other: &Self) -> bool {
        self.owner != other.owner && (self.write || other.write) && self.overlaps(&other.range)
    }

    fn overlaps(&self, range: &RangeInclusive<u64>) -> bool {
        self.range.start() <= range.end() && range.start() <= self.range.end()
    }

    fn surrounds(&self, range: &RangeInclusive<u64>) -> bool {
        self.range.start() < range.start() && range.end() < self.range.end()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Locks {
    files: Mutex<HashMap<FileKey, Vec<Lock>>>,
}

impl Locks {
    /// Takes a lock, in place of what its owner holds of the range. False: somebody else holds it.
    ///
    /// # Errors
    ///
    /// `ENOLCK`: the client has too many.
    pub(crate) fn lock(&self, file: FileKey, lock: Lock) -> Result<bool> {
        let mut files = self.table();
        room_for_more(&files, lock.owner.session)?;
        let held = files.entry(file).or_default();
        if held.iter().any(|other| other.conflicts(&lock)) {
            return Ok(false);
        }
        cut_out(held, &lock.range, &lock.owner);
        held.push(lock);
        Ok(true)
    }

    /// Frees what the owner holds of the range.
    ///
    /// # Errors
    ///
    /// `ENOLCK`: two pieces of a lock would be left, and the client has too many.
    pub(crate) fn unlock(
        &self,
        file: FileKey,
        range: &RangeInclusive<u64>,
        owner: &Owner,
    ) -> Result<()> {
        let mut files = self.table();
        let Some(held) = files.get(&file) else {
            return Ok(());
        };
        if held.iter().any(|l| l.owner == *owner && l.surrounds(range)) {
            room_for_more(&files, owner.session)?;
        }
        if let Some(held) = files.get_mut(&file) {
            cut_out(held, range, owner);
            if held.is_empty() {
                files.remove(&file);
            }
        }
        Ok(())
    }

    /// Whose lock is in the way of this one, if any.
    pub(crate) fn conflict(&self, file: FileKey, lock: &Lock) -> Option<Lock> {
        let files = self.table();
        let held = files.get(&file)?;
        held.iter().find(|other| other.conflicts(lock)).cloned()
    }

    /// Frees all that a connection holds.
    pub(crate) fn release(&self, session: u64) {
        self.table().retain(|_, held| {
            held.retain(|lock| lock.owner.session != session);
            !held.is_empty()
        });
    }

    fn table(&self) -> MutexGuard<'_, HashMap<FileKey, Vec<Lock>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn room_for_more(files: &HashMap<FileKey, Vec<Lock>>, session: u64) -> Result<()> {
    let (mut all, mut of_session) = (0, 0);
    for lock in files.values().flatten() {
        all += 1;
        of_session += usize::from(lock.owner.session == session);
    }
    if of_session >= MAX_RANGES.saturating_sub(all) {
        return Err(Errno::NOLCK);
    }
    Ok(())
}

/// Takes the range out of what the owner holds; of a lock that goes beyond it, the ends stay.
fn cut_out(held: &mut Vec<Lock>, range: &RangeInclusive<u64>, owner: &Owner) {
    let mut ends = Vec::new();
    held.retain(|lock| {
        if lock.owner != *owner || !lock.overlaps(range) {
            return true;
        }
        if lock.range.start() < range.start() {
            ends.push(with_range(lock, *lock.range.start()..=range.start() - 1));
        }
        if lock.range.end() > range.end() {
            ends.push(with_range(lock, range.end() + 1..=*lock.range.end()));
        }
        false
    });
    held.extend(ends);
}

fn with_range(lock: &Lock, range: RangeInclusive<u64>) -> Lock {
    let mut lock = lock.clone();
    lock.range = range;
    lock
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileKey = (1, 2);

    fn lock(process: u32, range: RangeInclusive<u64>, write: bool) -> Lock {
        let client_id = b"host".to_vec();
        let session = u64::from(process);
        let owner = Owner {
            session,
            client_id,
            process,
        };
        Lock {
            range,
            write,
            owner,
        }
    }

    #[test]
    fn ranges_behave_as_bytes_of_a_naive_model_do() {
        const BYTES: usize = 12;
        let locks = Locks::default();
        // For each byte and each of three owners: nothing, a read lock or a write lock.
        let mut model = [[0_u8; 3]; BYTES];
        let mut random = 1_u64;
        let mut below = |limit: u64| {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (random >> 33) % limit
        };
        for _ in 0..20_000 {
            let process = usize::try_from(below(3)).expect("small");
            let (a, b) = (below(12), below(12));
            let range = a.min(b)..=a.max(b);
            let bytes = usize::try_from(a.min(b)).expect("small")
                ..=usize::try_from(a.max(b)).expect("small");
            let write = below(2) == 1;
            let wanted = lock(u32::try_from(process).expect("small"), range.clone(), write);
            if below(3) == 0 {
                assert_eq!(locks.unlock(FILE, &range, &wanted.owner), Ok(()));
                model[bytes].iter_mut().for_each(|byte| byte[process] = 0);
                continue;
            }
            let free = model[bytes.clone()].iter().all(|byte| {
                (0..3)
                    .all(|other| other == process || byte[other] == 0 || byte[other] == 1 && !write)
            });
            assert_eq!(locks.conflict(FILE, &wanted).is_none(), free);
            assert_eq!(locks.lock(FILE, wanted), Ok(free));
            if free {
                model[bytes]
                    .iter_mut()
                    .for_each(|byte| byte[process] = 1 + u8::from(write));
            }
        }
        (0..3).for_each(|session| locks.release(session));
        assert!(locks.table().is_empty());
    }

    #[test]
    fn a_client_has_a_limited_number_and_leaves_some_to_others() {
        let locks = Locks::default();
        let fill = |process: u32| {
            (0..).find(|&at| {
                let refused = locks.lock((1, process.into()), lock(process, at..=at, true));
                refused == Err(Errno::NOLCK)
            })
        };
        assert_eq!((fill(1), fill(2)), (Some(4096), Some(2048)));
        let owner = lock(1, 0..=0, true).owner;
        assert_eq!(locks.unlock((1, 1), &(0..=u64::MAX), &owner), Ok(()));
        assert_eq!(locks.lock((1, 1), lock(1, 1..=1, true)), Ok(true));
    }

    #[test]
    fn unlocking_the_middle_again_and_again_has_the_same_limit() {
        let locks = Locks::default();
        let all = lock(1, 0..=u64::MAX, true);
        let owner = all.owner.clone();
        assert_eq!(locks.lock(FILE, all), Ok(true));
        let refused = (1..).find(|&at| locks.unlock(FILE, &(2 * at..=2 * at), &owner).is_err());
        assert_eq!(refused, Some(4096));
        assert_eq!(locks.unlock(FILE, &(0..=u64::MAX), &owner), Ok(()));
        assert!(locks.table().is_empty());
    }
}
