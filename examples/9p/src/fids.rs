//! Fids: the numbers by which a client names the files that it works with.
//!
//! A [`Fid`] never changes. A request takes its fids out of the table once, when it is admitted,
//! and then holds the files themselves: a clunk or remove that comes later takes the number away,
//! and the file is closed when the last request that uses it is done. Opening a fid, and walking
//! from it to itself, put another `Fid` under the same number, provided that the number still means
//! what it did: of two such requests at once, one loses.
//!
//! Each fid costs a descriptor, and the process has a limited number of them. No client may have
//! more fids than there are descriptors left ([`Budget`]): one client alone can take half of them,
//! a second one half of the rest, and there are always some for the next.

use std::{
    collections::{HashMap, hash_map::Entry},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::io::Errno;

use crate::wire::Result;

/// A file that a client works with, and how it is open.
#[derive(Debug)]
pub struct Fid {
    fd: OwnedFd,
    opened: Opened,
    budget: Arc<Budget>,
}

/// How a file is open.
#[derive(Debug)]
pub enum Opened {
    /// Not: it can be walked from, opened, looked at.
    No,
    /// As a file.
    File,
    /// As a directory. Its descriptor has one position, so one request at a time reads it.
    Directory(Mutex<()>),
}

impl Fid {
    /// Whether it was opened, by Tlopen or Tlcreate.
    pub fn is_open(&self) -> bool {
        !matches!(self.opened, Opened::No)
    }

    /// Its lock, if it is open as a directory.
    pub fn directory(&self) -> Option<MutexGuard<'_, ()>> {
        match &self.opened {
            Opened::Directory(lock) => Some(lock.lock().unwrap_or_else(PoisonError::into_inner)),
            _ => None,
        }
    }
}

impl AsFd for Fid {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Fid {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A fid of a request: its number, and what that meant when the request was admitted.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The client's number.
    pub number: u32,
    /// The file.
    pub fid: Arc<Fid>,
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fid.as_fd()
    }
}

/// The descriptors that fids of all clients may have.
#[derive(Debug)]
pub struct Budget {
    total: usize,
    used: AtomicUsize,
}

impl Budget {
    /// So many in all.
    pub fn new(total: usize) -> Arc<Self> {
        let used = AtomicUsize::new(0);
        Arc::new(Self { total, used })
    }

    fn left(&self) -> usize {
        self.total.saturating_sub(self.used.load(Ordering::Relaxed))
    }
}

/// The fids of one client.
#[derive(Debug)]
pub struct Fids {
    table: Mutex<HashMap<u32, Arc<Fid>>>,
    budget: Arc<Budget>,
}

impl Fids {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        let table = Mutex::default();
        Self { table, budget }
    }

    /// What the number means now.
    ///
    /// # Errors
    ///
    /// `EBADF`: nothing.
    pub(crate) fn get(&self, number: u32) -> Result<Handle> {
        let fid = self.lock().get(&number).cloned().ok_or(Errno::BADF)?;
        Ok(Handle { number, fid })
    }

    /// Frees the number.
    ///
    /// # Errors
    ///
    /// As [`Fids::get`].
    pub(crate) fn take(&self, number: u32) -> Result<Handle> {
        let fid = self.lock().remove(&number).ok_or(Errno::BADF)?;
        Ok(Handle { number, fid })
    }

    /// Gives a number to a file.
    ///
    /// # Errors
    ///
    /// `EBUSY`: the number is in use; `EMFILE`: the client has too many already; `EINVAL`: no fid
    /// may have this number.
    pub(crate) fn insert(&self, number: u32, fd: OwnedFd) -> Result<()> {
        if number == crate::wire::NO_FID {
            return Err(Errno::INVAL);
        }
        let fid = self.fid(fd, Opened::No);
        let mut table = self.lock();
        if table.len() >= self.budget.left() {
            return Err(Errno::MFILE);
        }
        match table.entry(number) {
            Entry::Occupied(_) => Err(Errno::BUSY),
            Entry::Vacant(entry) => {
                entry.insert(fid);
                Ok(())
            }
        }
    }

    /// Puts another file, or another state of it, in the place of a fid.
    ///
    /// # Errors
    ///
    /// `EBADF`: the number was freed, or means something else, since the handle was taken.
    pub(crate) fn replace(&self, old: &Handle, fd: OwnedFd, opened: Opened) -> Result<()> {
        let fid = self.fid(fd, opened);
        match self.lock().get_mut(&old.number) {
            Some(entry) if Arc::ptr_eq(entry, &old.fid) => {
                *entry = fid;
                Ok(())
            }
            _ => Err(Errno::BADF),
        }
    }

    /// Frees all numbers.
    pub(crate) fn clear(&self) {
        let fids = std::mem::take(&mut *self.lock());
        drop(fids);
    }

    fn fid(&self, fd: OwnedFd, opened: Opened) -> Arc<Fid> {
        let budget = self.budget.clone();
        budget.used.fetch_add(1, Ordering::Relaxed);
        Arc::new(Fid { fd, opened, budget })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Arc<Fid>>> {
        // Each critical section is one step that leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fd() -> OwnedFd {
        std::fs::File::open("/dev/null").expect("there").into()
    }

    #[test]
    fn a_number_means_one_file() {
        let fids = Fids::new(Budget::new(100));
        assert_eq!(fids.get(1).err(), Some(Errno::BADF));
        fids.insert(1, fd()).expect("free");
        assert_eq!(fids.insert(1, fd()).err(), Some(Errno::BUSY));
        let held = fids.get(1).expect("there");
        fids.replace(&held, fd(), Opened::File).expect("the same");
        // It means something else by now.
        assert_eq!(
            fids.replace(&held, fd(), Opened::File).err(),
            Some(Errno::BADF)
        );
        let taken = fids.take(1).expect("there");
        assert!(taken.fid.is_open() && !held.fid.is_open());
        assert_eq!(fids.take(1).err(), Some(Errno::BADF));
        assert_eq!(fids.budget.left(), 98);
        drop((held, taken));
        assert_eq!(fids.budget.left(), 100);
    }

    #[test]
    fn a_client_leaves_descriptors_to_others() {
        let budget = Budget::new(40);
        let fill = |fids: &Fids| (0..).find(|&n| fids.insert(n, fd()).is_err());
        let (greedy, other) = (Fids::new(budget.clone()), Fids::new(budget.clone()));
        assert_eq!(fill(&greedy), Some(20));
        assert_eq!(fill(&other), Some(10));
        greedy.clear();
        assert_eq!(budget.left(), 30);
    }
}
