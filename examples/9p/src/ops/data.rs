//! What files hold: reading and writing, the entries of directories, locks.

use std::os::fd::AsFd;

use rustix::{
    fs::{FileType, RawDir, SeekFrom, fdatasync, fstat, fsync, seek},
    io::{Errno, pread, pwrite},
};

use crate::{
    fids::Fid,
    request::FileLock,
    session::Session,
    wire::{HEADER_BYTES, IO_HEADER_BYTES, Reply, Result},
};

/// Bytes of directory entries that are asked of the system at once, 32 KiB, as by the C library.
const DIRECTORY_BYTES: usize = 32 << 10;
/// A qid, an offset, a type and a name's length.
const ENTRY_BYTES: usize = 13 + 8 + 1 + 2;

/// Fewer bytes than asked for, as many as a message carries, are no error.
pub(super) fn read(
    session: &Session,
    file: &Fid,
    offset: u64,
    count: u32,
    reply: &mut Reply,
) -> Result<()> {
    let count = most(session, count);
    reply.put_u32(0);
    let done = pread(file, reply.room(count), offset)?;
    reply.advance(done);
    reply.set_u32(0, length(done)?);
    Ok(())
}

pub(super) fn write(
    session: &Session,
    file: &Fid,
    offset: u64,
    data: &[u8],
    reply: &mut Reply,
) -> Result<()> {
    session.shared.export.writable()?;
    let done = pwrite(file, data, offset)?;
    reply.put_u32(length(done)?);
    Ok(())
}

/// An offset is what the system calls a cookie: the place behind an entry.
pub(super) fn read_directory(
    session: &Session,
    directory: &Fid,
    offset: u64,
    count: u32,
    reply: &mut Reply,
) -> Result<()> {
    let export = &session.shared.export;
    let position = directory.directory().ok_or(Errno::NOTDIR)?;
    let stat = fstat(directory)?;
    let root = export.root_stat();
    let is_root = (stat.st_dev, stat.st_ino) == (root.st_dev, root.st_ino);
    let most = 4 + most(session, count);
    reply.put_u32(0);
    seek(directory, SeekFrom::Start(offset))?;
    let mut buffer = Vec::with_capacity(DIRECTORY_BYTES.min(most.max(1024)));
    let mut entries = RawDir::new(directory.as_fd(), buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if reply.body_len() + ENTRY_BYTES + name.len() > most {
            if reply.body_len() == 4 {
                return Err(Errno::INVAL);
            }
            break;
        }
        // What is above the root is nobody's business.
        let inode = if is_root && name == b".." {
            stat.st_ino
        } else {
            entry.ino()
        };
        let (qid_kind, entry_kind) = match entry.file_type() {
            FileType::Directory => (0x80, 4),
            FileType::Symlink => (0x02, 10),
            FileType::RegularFile => (0, 8),
            FileType::Fifo => (0, 1),
            FileType::CharacterDevice => (0, 2),
            FileType::BlockDevice => (0, 6),
            FileType::Socket => (0, 12),
            _ => (0, 0),
        };
        reply.put_u8(qid_kind);
        reply.put_u32(0);
        reply.put_u64(export.file_number(stat.st_dev, inode));
        reply.put_u64(entry.next_entry_cookie());
        reply.put_u8(entry_kind);
        reply.put_string(name)?;
    }
    drop(position);
    reply.set_u32(0, length(reply.body_len() - 4)?);
    Ok(())
}

pub(super) fn sync(file: &Fid, data_only: bool) -> Result<()> {
    match data_only {
        true => fdatasync(file),
        false => fsync(file),
    }
}

/// Never waits: a client that wants to is told "blocked", and asks again.
pub(super) fn lock(session: &Session, file: &Fid, lock: FileLock, reply: &mut Reply) -> Result<()> {
    const SUCCESS: u8 = 0;
    const BLOCKED: u8 = 1;
    let key = lockable(file)?;
    let locks = &session.shared.locks;
    let unlock = lock.write.is_none();
    let lock = lock.of_session(session.id)?;
    let status = if unlock {
        locks.unlock(key, &lock.range, &lock.owner)?;
        SUCCESS
    } else if locks.lock(key, lock)? {
        SUCCESS
    } else {
        BLOCKED
    };
    reply.put_u8(status);
    Ok(())
}

/// Tells a lock that is in the way, or that there is none.
pub(super) fn get_lock(
    session: &Session,
    file: &Fid,
    lock: FileLock,
    reply: &mut Reply,
) -> Result<()> {
    let key = lockable(file)?;
    let (start, len) = (lock.start, lock.len);
    let wanted = lock.of_session(session.id)?;
    match session.shared.locks.conflict(key, &wanted) {
        Some(held) => {
            reply.put_u8(if held.write {
                FileLock::WRITE
            } else {
                FileLock::READ
            });
            let (first, last) = held.range.into_inner();
            reply.put_u64(first);
            reply.put_u64(if last == u64::MAX {
                0
            } else {
                last - first + 1
            });
            reply.put_u32(held.owner.process);
            reply.put_string(&held.owner.client_id)
        }
        None => {
            reply.put_u8(FileLock::UNLOCK);
            reply.put_u64(start);
            reply.put_u64(len);
            reply.put_u32(wanted.owner.process);
            reply.put_string(&wanted.owner.client_id)
        }
    }
}

fn lockable(file: &Fid) -> Result<crate::locks::FileKey> {
    if !file.is_open() {
        return Err(Errno::BADF);
    }
    let stat = fstat(file)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Bytes of data that may be in the reply.
fn most(session: &Session, count: u32) -> usize {
    let count = count.min(session.msize() - IO_HEADER_BYTES);
    usize::try_from(count).unwrap_or(HEADER_BYTES)
}

fn length(len: usize) -> Result<u32> {
    u32::try_from(len).map_err(|_| Errno::MSGSIZE)
}
