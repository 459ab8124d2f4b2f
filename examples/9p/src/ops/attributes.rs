//! Attributes of files and of the file system.

use rustix::{
    fs::{
        AtFlags, FileType, Gid, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid, chmodat,
        chownat, fstat, fstatfs, ftruncate, utimensat,
    },
    io::Errno,
};

use super::names::permissions;
use crate::{
    export::Export,
    fids::Fid,
    request::SetAttributes,
    wire::{Reply, Result},
};

/// What Rgetattr has: all that `stat` tells. (What else the protocol has room for, Linux does not
/// tell there.)
const GOT: u64 = 0x7ff;

/// The bits of Tsetattr.
mod valid {
    pub(super) const MODE: u32 = 0x1;
    pub(super) const UID: u32 = 0x2;
    pub(super) const GID: u32 = 0x4;
    pub(super) const SIZE: u32 = 0x8;
    pub(super) const ATIME: u32 = 0x10;
    pub(super) const MTIME: u32 = 0x20;
    pub(super) const ATIME_SET: u32 = 0x80;
    pub(super) const MTIME_SET: u32 = 0x100;
}

pub(super) fn get(export: &Export, file: &Fid, reply: &mut Reply) -> Result<()> {
    let stat = fstat(file)?;
    #[allow(clippy::useless_conversion, reason = "32 bits on aarch64")]
    let links = u64::from(stat.st_nlink);
    reply.put_u64(GOT);
    reply.put_qid(export.qid(&stat));
    reply.put_u32(stat.st_mode);
    reply.put_u32(stat.st_uid);
    reply.put_u32(stat.st_gid);
    reply.put_u64(links);
    reply.put_u64(stat.st_rdev);
    reply.put_u64(stat.st_size.cast_unsigned());
    reply.put_u64(u64::try_from(stat.st_blksize).unwrap_or(4096));
    reply.put_u64(stat.st_blocks.cast_unsigned());
    for (seconds, nanoseconds) in [
        (stat.st_atime, stat.st_atime_nsec),
        (stat.st_mtime, stat.st_mtime_nsec),
        (stat.st_ctime, stat.st_ctime_nsec),
        // When it was made, its generation and its data version: not known.
        (0, 0),
        (0, 0),
    ] {
        reply.put_u64(seconds.cast_unsigned());
        reply.put_u64(nanoseconds);
    }
    Ok(())
}

/// In an order in which one does not undo another: a new owner takes set-user-id away, a new size
/// sets the time.
pub(super) fn set(export: &Export, file: &Fid, set: SetAttributes) -> Result<()> {
    export.writable()?;
    let has = |bit| set.valid & bit != 0;
    if has(valid::SIZE) {
        set_size(export, file, set.size)?;
    }
    if has(valid::UID) || has(valid::GID) {
        // The greatest number means "not" to the system.
        let id = |bit, id| (has(bit) && id != u32::MAX).then_some(id);
        let user = id(valid::UID, set.uid).map(Uid::from_raw);
        let group = id(valid::GID, set.gid).map(Gid::from_raw);
        chownat(file, "", user, group, AtFlags::EMPTY_PATH)?;
    }
    if has(valid::MODE) {
        if FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Symlink {
            return Err(Errno::OPNOTSUPP);
        }
        let (descriptors, number) = export.path(file);
        chmodat(descriptors, number, permissions(set.mode), AtFlags::empty())?;
    }
    if has(valid::ATIME) || has(valid::MTIME) {
        let times = Timestamps {
            last_access: time(has(valid::ATIME), has(valid::ATIME_SET), set.atime)?,
            last_modification: time(has(valid::MTIME), has(valid::MTIME_SET), set.mtime)?,
        };
        utimensat(file, "", &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

pub(super) fn stat_fs(export: &Export, file: &Fid, reply: &mut Reply) -> Result<()> {
    /// The type that the Linux client shows to its programs.
    const V9FS_MAGIC: u32 = 0x0102_1997;
    let stat = fstatfs(file)?;
    reply.put_u32(V9FS_MAGIC);
    reply.put_u32(u32::try_from(stat.f_bsize).unwrap_or(4096));
    reply.put_u64(stat.f_blocks);
    reply.put_u64(stat.f_bfree);
    reply.put_u64(stat.f_bavail);
    reply.put_u64(stat.f_files);
    reply.put_u64(stat.f_ffree);
    reply.put_u64(export.root_stat().st_dev);
    reply.put_u32(u32::try_from(stat.f_namelen).unwrap_or(255));
    Ok(())
}

fn set_size(export: &Export, file: &Fid, size: u64) -> Result<()> {
    // Open for writing: that counts, even if the file may not be written any more.
    if file.is_open() && ftruncate(file, size).is_ok() {
        return Ok(());
    }
    match FileType::from_raw_mode(fstat(file)?.st_mode) {
        FileType::RegularFile => ftruncate(export.open(file, OFlags::WRONLY)?, size),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::INVAL),
    }
}

/// One of the two times: left alone, now, or this one.
fn time(changed: bool, given: bool, (seconds, nanoseconds): (u64, u64)) -> Result<Timespec> {
    let special = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    Ok(match (changed, given) {
        (false, _) => special(UTIME_OMIT),
        (true, false) => special(UTIME_NOW),
        (true, true) => Timespec {
            tv_sec: seconds.cast_signed(),
            tv_nsec: match i64::try_from(nanoseconds) {
                Ok(nanoseconds @ 0..1_000_000_000) => nanoseconds,
                _ => return Err(Errno::INVAL),
            },
        },
    })
}
