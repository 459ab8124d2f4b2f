//! The directory that is served, and how nothing outside of it is reached.
//!
//! No path is ever built from what a client says. A client's name is one component, without `/`,
//! and not `..` ([`Name`]); it is looked up in a directory that the client reached in the same way,
//! by descriptor, and `openat2` with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS` has the kernel
//! refuse whatever leads elsewhere, also while somebody renames and replaces things. A symbolic
//! link is opened as itself: its text is for the client to follow, on the client's side.
//!
//! A fid's descriptor is `O_PATH`: it names a file without opening it, so a device or FIFO that
//! lies in the directory is looked at and not touched. What is opened for reading and writing (only
//! regular files and directories) is opened again through `/proc/self/fd`, which leads to the very
//! file that was looked at. From there the kernel also tells by what name a file is known now, for
//! the two old requests that name a file by its fid alone (Trename, Tremove). That name is a hint:
//! it is looked up beneath the root, and has to be the same file.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2,
        readlinkat, statat,
    },
    io::Errno,
};

use crate::wire::{Name, Qid, Result};

/// A directory to be served.
#[derive(Debug)]
pub struct Export {
    root: OwnedFd,
    root_stat: Stat,
    /// `/proc/self/fd`.
    descriptors: OwnedFd,
    read_only: bool,
}

/// Beneath the directory where it begins; never by a link.
const CONFINED: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_SYMLINKS);

/// A descriptor that names a file; of a link, the link.
const NAMED: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Export {
    /// # Errors
    ///
    /// Says which directory cannot be opened, and why; or that there is no `/proc`, or no
    /// `openat2` (Linux 5.6).
    pub fn new(directory: &Path, read_only: bool) -> io::Result<Self> {
        let failed = |what: String| {
            move |errno: Errno| {
                let error = io::Error::from(errno);
                io::Error::new(error.kind(), format!("{what}: {error}"))
            }
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(directory, flags, Mode::empty())
            .map_err(failed(format!("cannot serve {}", directory.display())))?;
        openat2(&root, ".", flags, Mode::empty(), CONFINED)
            .map_err(failed("openat2 is needed (Linux 5.6)".to_owned()))?;
        let descriptors = open("/proc/self/fd", flags, Mode::empty())
            .map_err(failed("/proc is needed".to_owned()))?;
        let root_stat = fstat(&root)?;
        Ok(Self {
            root,
            root_stat,
            descriptors,
            read_only,
        })
    }

    /// # Errors
    ///
    /// `EROFS` if nothing may be changed.
    pub fn writable(&self) -> Result<()> {
        (!self.read_only).then_some(()).ok_or(Errno::ROFS)
    }

    /// The directory itself.
    pub fn root(&self) -> Result<OwnedFd> {
        openat2(&self.root, ".", NAMED, Mode::empty(), CONFINED)
    }

    /// What has this name in a directory.
    pub fn look_up(&self, directory: impl AsFd, name: Name<'_>) -> Result<OwnedFd> {
        openat2(directory, name.bytes(), NAMED, Mode::empty(), CONFINED)
    }

    /// Another descriptor of the same file.
    pub fn again(&self, file: impl AsFd) -> Result<OwnedFd> {
        rustix::io::fcntl_dupfd_cloexec(file, 0)
    }

    /// Makes a regular file, which must not be there yet, and opens it.
    pub fn create(
        &self,
        directory: impl AsFd,
        name: Name<'_>,
        flags: OFlags,
        mode: Mode,
    ) -> Result<OwnedFd> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat2(directory, name.bytes(), flags, mode, CONFINED)
    }

    /// Opens a file that is known. Only regular files and directories: to open a FIFO or a device
    /// does something, and that is the client's business on the client's side.
    pub fn open(&self, file: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
        match FileType::from_raw_mode(fstat(&file)?.st_mode) {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::OPNOTSUPP),
        }
        let number = self.descriptor(&file);
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        openat(&self.descriptors, number, flags, Mode::empty())
    }

    /// A known file as a path: a directory, and a name in it that leads to the file itself. (If
    /// the file is a link, to the link, which is not followed any further.)
    pub fn path(&self, file: impl AsFd) -> (&OwnedFd, String) {
        (&self.descriptors, self.descriptor(file))
    }

    /// The directory that a file is in, and its name there, at this moment.
    ///
    /// # Errors
    ///
    /// `ENOENT`: it was removed; `EBUSY`: it is the root.
    pub fn locate(&self, file: impl AsFd) -> Result<(OwnedFd, Vec<u8>)> {
        let path = self.known_as(&file)?;
        let root = self.known_as(&self.root)?;
        let path = path.strip_prefix(&*root).ok_or(Errno::NOENT)?;
        // `/directory/name`; without the first slash if the root is `/`, which ends in it.
        let path = path.strip_prefix(b"/").unwrap_or(path);
        if path.is_empty() {
            return Err(Errno::BUSY);
        }
        let (directory, name) = match path.iter().rposition(|&b| b == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b"."[..], path),
        };
        let flags = NAMED | OFlags::DIRECTORY;
        let directory = openat2(&self.root, directory, flags, Mode::empty(), CONFINED)?;
        let found = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let wanted = fstat(&file)?;
        if (found.st_dev, found.st_ino) != (wanted.st_dev, wanted.st_ino) {
            return Err(Errno::NOENT);
        }
        Ok((directory, name.to_vec()))
    }

    /// The qid of a file with these attributes.
    pub fn qid(&self, stat: &Stat) -> Qid {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => 0x80,
            FileType::Symlink => 0x02,
            _ => 0,
        };
        // Any change of the file changes its ctime; the low bits change most.
        let changed = stat.st_ctime.cast_unsigned().wrapping_mul(1_000_000_000);
        let changed = changed.wrapping_add(stat.st_ctime_nsec) ^ stat.st_size.cast_unsigned();
        Qid {
            kind,
            version: low_half(changed ^ changed >> 32),
            path: self.file_number(stat.st_dev, stat.st_ino),
        }
    }

    /// The root's attributes.
    pub fn root_stat(&self) -> &Stat {
        &self.root_stat
    }

    /// One number for each file. What is mounted inside has inode numbers of its own, so the
    /// device is mixed in there.
    pub fn file_number(&self, device: u64, inode: u64) -> u64 {
        let other = device ^ self.root_stat.st_dev;
        inode ^ other.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    fn known_as(&self, file: impl AsFd) -> Result<Vec<u8>> {
        let path = readlinkat(&self.descriptors, self.descriptor(file), Vec::new())?;
        Ok(path.into_bytes())
    }

    fn descriptor(&self, file: impl AsFd) -> String {
        use std::os::fd::AsRawFd;
        file.as_fd().as_raw_fd().to_string()
    }
}

/// The lower 32 bits.
fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
