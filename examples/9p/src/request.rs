//! What a client asks, understood: the fields of each request, with the files that its fids mean.
//!
//! This is the part of a request that is done in the order of the stream: fids are looked up, and
//! the number of a fid that is given up (Tclunk, Tremove) is freed, here.

use std::sync::Arc;

use rustix::io::Errno;

use crate::{
    fids::{Fid, Fids, Handle},
    locks::{Lock, Owner},
    wire::{Name, Reader, Result, kind},
};

/// Names in one walk, by the protocol.
const MAX_WALK_NAMES: u16 = 16;

/// The requests that are about files.
#[derive(Debug)]
pub(crate) enum Request<'a> {
    Attach {
        fid: u32,
        path: &'a [u8],
    },
    Walk {
        from: Handle,
        to: u32,
        names: Vec<Name<'a>>,
    },
    Open {
        file: Handle,
        flags: u32,
    },
    Create {
        directory: Handle,
        name: Name<'a>,
        flags: u32,
        mode: u32,
    },
    Read {
        file: Arc<Fid>,
        offset: u64,
        count: u32,
    },
    Write {
        file: Arc<Fid>,
        offset: u64,
        data: &'a [u8],
    },
    ReadDirectory {
        directory: Arc<Fid>,
        offset: u64,
        count: u32,
    },
    GetAttributes {
        file: Arc<Fid>,
    },
    SetAttributes {
        file: Arc<Fid>,
        set: SetAttributes,
    },
    StatFs {
        file: Arc<Fid>,
    },
    MakeDirectory {
        directory: Arc<Fid>,
        name: Name<'a>,
        mode: u32,
    },
    MakeNode {
        directory: Arc<Fid>,
        name: Name<'a>,
        mode: u32,
    },
    Symlink {
        directory: Arc<Fid>,
        name: Name<'a>,
        target: &'a [u8],
    },
    ReadLink {
        link: Arc<Fid>,
    },
    Link {
        directory: Arc<Fid>,
        file: Arc<Fid>,
        name: Name<'a>,
    },
    Rename {
        file: Arc<Fid>,
        directory: Arc<Fid>,
        name: Name<'a>,
    },
    RenameAt {
        from: Arc<Fid>,
        old: Name<'a>,
        to: Arc<Fid>,
        new: Name<'a>,
    },
    UnlinkAt {
        directory: Arc<Fid>,
        name: Name<'a>,
        flags: u32,
    },
    Remove {
        file: Arc<Fid>,
    },
    Clunk,
    Sync {
        file: Arc<Fid>,
        data_only: bool,
    },
    Lock {
        file: Arc<Fid>,
        lock: FileLock,
    },
    GetLock {
        file: Arc<Fid>,
        lock: FileLock,
    },
}

/// The fields of Tsetattr.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SetAttributes {
    pub(crate) valid: u32,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) atime: (u64, u64),
    pub(crate) mtime: (u64, u64),
}

/// The fields of Tlock and Tgetlock.
#[derive(Debug)]
pub(crate) struct FileLock {
    /// `None`: to unlock.
    pub(crate) write: Option<bool>,
    pub(crate) start: u64,
    /// 0: to the end of the file, wherever that will be.
    pub(crate) len: u64,
    pub(crate) process: u32,
    pub(crate) client_id: Vec<u8>,
}

impl<'a> Request<'a> {
    /// # Errors
    ///
    /// `EBADMSG`: not a message of this kind; `EOPNOTSUPP`: of a kind that is not known here;
    /// `EINVAL`: a field that cannot be; `EBADF`: a fid that is none.
    pub(crate) fn decode(request_kind: u8, body: &'a [u8], fids: &Fids) -> Result<Self> {
        let mut r = Reader::new(body);
        let fid = |number| fids.get(number).map(|handle| handle.fid);
        Ok(match request_kind {
            kind::ATTACH => {
                let (number, auth_fid) = (r.u32()?, r.u32()?);
                let (_user, path, _user_id) = (r.string()?, r.string()?, r.u32()?);
                r.end()?;
                if auth_fid != crate::wire::NO_FID {
                    return Err(Errno::INVAL);
                }
                Self::Attach { fid: number, path }
            }
            kind::WALK => {
                let (from, to, count) = (r.u32()?, r.u32()?, r.u16()?);
                if count > MAX_WALK_NAMES {
                    return Err(Errno::INVAL);
                }
                let names = (0..count).map(|_| r.name()).collect::<Result<_>>()?;
                r.end()?;
                Self::Walk {
                    from: fids.get(from)?,
                    to,
                    names,
                }
            }
            kind::LOPEN => {
                let (number, flags) = (r.u32()?, r.u32()?);
                r.end()?;
                Self::Open {
                    file: fids.get(number)?,
                    flags,
                }
            }
            kind::LCREATE => {
                let (number, name, flags, mode, _gid) =
                    (r.u32()?, r.name()?, r.u32()?, r.u32()?, r.u32()?);
                r.end()?;
                Self::Create {
                    directory: fids.get(number)?,
                    name,
                    flags,
                    mode,
                }
            }
            kind::READ | kind::READDIR => {
                let (number, offset, count) = (r.u32()?, r.u64()?, r.u32()?);
                r.end()?;
                let file = fid(number)?;
                if request_kind == kind::READ {
                    Self::Read {
                        file,
                        offset,
                        count,
                    }
                } else {
                    Self::ReadDirectory {
                        directory: file,
                        offset,
                        count,
                    }
                }
            }
            kind::WRITE => {
                let (number, offset, count) = (r.u32()?, r.u64()?, r.u32()?);
                let data = r.bytes(u64::from(count))?;
                r.end()?;
                Self::Write {
                    file: fid(number)?,
                    offset,
                    data,
                }
            }
            kind::GETATTR => {
                let (number, _mask) = (r.u32()?, r.u64()?);
                r.end()?;
                Self::GetAttributes { file: fid(number)? }
            }
            kind::SETATTR => {
                let number = r.u32()?;
                let set = SetAttributes {
                    valid: r.u32()?,
                    mode: r.u32()?,
                    uid: r.u32()?,
                    gid: r.u32()?,
                    size: r.u64()?,
                    atime: (r.u64()?, r.u64()?),
                    mtime: (r.u64()?, r.u64()?),
                };
                r.end()?;
                Self::SetAttributes {
                    file: fid(number)?,
                    set,
                }
            }
            kind::STATFS => Self::StatFs {
                file: fid(only_fid(r)?)?,
            },
            kind::READLINK => Self::ReadLink {
                link: fid(only_fid(r)?)?,
            },
            kind::MKDIR => {
                let (number, name, mode, _gid) = (r.u32()?, r.name()?, r.u32()?, r.u32()?);
                r.end()?;
                Self::MakeDirectory {
                    directory: fid(number)?,
                    name,
                    mode,
                }
            }
            kind::MKNOD => {
                let (number, name, mode) = (r.u32()?, r.name()?, r.u32()?);
                let (_major, _minor, _gid) = (r.u32()?, r.u32()?, r.u32()?);
                r.end()?;
                Self::MakeNode {
                    directory: fid(number)?,
                    name,
                    mode,
                }
            }
            kind::SYMLINK => {
                let (number, name, target, _gid) = (r.u32()?, r.name()?, r.string()?, r.u32()?);
                r.end()?;
                Self::Symlink {
                    directory: fid(number)?,
                    name,
                    target,
                }
            }
            kind::LINK => {
                let (directory, number, name) = (r.u32()?, r.u32()?, r.name()?);
                r.end()?;
                Self::Link {
                    directory: fid(directory)?,
                    file: fid(number)?,
                    name,
                }
            }
            kind::RENAME => {
                let (number, directory, name) = (r.u32()?, r.u32()?, r.name()?);
                r.end()?;
                Self::Rename {
                    file: fid(number)?,
                    directory: fid(directory)?,
                    name,
                }
            }
            kind::RENAMEAT => {
                let (from, old, to, new) = (r.u32()?, r.name()?, r.u32()?, r.name()?);
                r.end()?;
                Self::RenameAt {
                    from: fid(from)?,
                    old,
                    to: fid(to)?,
                    new,
                }
            }
            kind::UNLINKAT => {
                let (number, name, flags) = (r.u32()?, r.name()?, r.u32()?);
                r.end()?;
                Self::UnlinkAt {
                    directory: fid(number)?,
                    name,
                    flags,
                }
            }
            kind::REMOVE => Self::Remove {
                file: fids.take(only_fid(r)?)?.fid,
            },
            kind::CLUNK => {
                fids.take(only_fid(r)?)?;
                Self::Clunk
            }
            kind::FSYNC => {
                let number = r.u32()?;
                // Older clients do not send it.
                let data_only = !r.is_empty() && r.u32()? != 0;
                r.end()?;
                Self::Sync {
                    file: fid(number)?,
                    data_only,
                }
            }
            kind::LOCK => {
                let (number, lock_kind, _flags) = (r.u32()?, r.u8()?, r.u32()?);
                let lock = FileLock::decode(lock_kind, r)?;
                Self::Lock {
                    file: fid(number)?,
                    lock,
                }
            }
            kind::GETLOCK => {
                let (number, lock_kind) = (r.u32()?, r.u8()?);
                let lock = FileLock::decode(lock_kind, r)?;
                Self::GetLock {
                    file: fid(number)?,
                    lock,
                }
            }
            // Among them: authentication and extended attributes.
            _ => return Err(Errno::OPNOTSUPP),
        })
    }
}

impl FileLock {
    /// The types of locks, by the protocol.
    pub(crate) const READ: u8 = 0;
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const UNLOCK: u8 = 2;

    fn decode(lock_kind: u8, mut r: Reader<'_>) -> Result<Self> {
        let write = match lock_kind {
            Self::READ => Some(false),
            Self::WRITE => Some(true),
            Self::UNLOCK => None,
            _ => return Err(Errno::INVAL),
        };
        let (start, len, process, client_id) = (r.u64()?, r.u64()?, r.u32()?, r.string()?);
        r.end()?;
        if client_id.len() > crate::locks::MAX_CLIENT_ID_BYTES {
            return Err(Errno::INVAL);
        }
        let client_id = client_id.to_vec();
        Ok(Self {
            write,
            start,
            len,
            process,
            client_id,
        })
    }

    /// As the lock (for unlocking: any lock) of a connection.
    pub(crate) fn of_session(self, session: u64) -> Result<Lock> {
        let last = match self.len {
            0 => u64::MAX,
            len => self.start.checked_add(len - 1).ok_or(Errno::OVERFLOW)?,
        };
        let owner = Owner {
            session,
            client_id: self.client_id,
            process: self.process,
        };
        let write = self.write.unwrap_or(false);
        Ok(Lock {
            range: self.start..=last,
            write,
            owner,
        })
    }
}

fn only_fid(mut r: Reader<'_>) -> Result<u32> {
    let number = r.u32()?;
    r.end()?;
    Ok(number)
}
