//! Opening and creating files.

use rustix::{
    fs::{FileType, OFlags, fstat},
    io::Errno,
};
use std::sync::Mutex;

use super::names::permissions;
use crate::{
    fids::{Handle, Opened},
    session::Session,
    wire::{Name, Reply, Result},
};

/// Flags of Tlopen and Tlcreate, by the protocol: those of Linux on x86, whatever runs here. Those
/// that are not listed do not matter to a server, and are ignored.
mod flag {
    pub(super) const ACCESS: u32 = 0o3;
    pub(super) const WRITE_ONLY: u32 = 0o1;
    pub(super) const READ_WRITE: u32 = 0o2;
    pub(super) const EXCLUSIVE: u32 = 0o200;
    pub(super) const TRUNCATE: u32 = 0o1000;
    pub(super) const APPEND: u32 = 0o2000;
    pub(super) const DATA_SYNC: u32 = 0o10_000;
    pub(super) const SYNC: u32 = 0o4_000_000;
    pub(super) const DIRECTORY: u32 = 0o200_000;
}

pub(super) fn open(session: &Session, file: &Handle, flags: u32, reply: &mut Reply) -> Result<()> {
    let export = &session.shared.export;
    if file.fid.is_open() {
        return Err(Errno::BUSY);
    }
    let system_flags = to_system(flags)?;
    if writes(flags) {
        export.writable()?;
    }
    let is_directory = FileType::from_raw_mode(fstat(file)?.st_mode) == FileType::Directory;
    let opened = match is_directory {
        true if writes(flags) => return Err(Errno::ISDIR),
        true => Opened::Directory(Mutex::new(())),
        false => Opened::File,
    };
    let fd = export.open(file, system_flags)?;
    put_opened(session, &fd, reply)?;
    session.fids.replace(file, fd, opened)
}

/// The fid of the directory becomes one of the new file.
pub(super) fn create(
    session: &Session,
    directory: &Handle,
    name: Name<'_>,
    flags: u32,
    mode: u32,
    reply: &mut Reply,
) -> Result<()> {
    let export = &session.shared.export;
    export.writable()?;
    if directory.fid.is_open() {
        return Err(Errno::BUSY);
    }
    let system_flags = to_system(flags)?;
    let fd = match export.create(directory, name, system_flags, permissions(mode)) {
        Err(Errno::EXIST) if flags & flag::EXCLUSIVE == 0 => {
            let there = export.look_up(directory, name)?;
            match FileType::from_raw_mode(fstat(&there)?.st_mode) {
                FileType::Directory => return Err(Errno::ISDIR),
                _ => export.open(&there, system_flags)?,
            }
        }
        created => created?,
    };
    put_opened(session, &fd, reply)?;
    session.fids.replace(directory, fd, Opened::File)
}

/// The file's qid, and no limit of its own for a read or write.
fn put_opened(session: &Session, fd: impl std::os::fd::AsFd, reply: &mut Reply) -> Result<()> {
    reply.put_qid(session.shared.export.qid(&fstat(fd)?));
    reply.put_u32(0);
    Ok(())
}

fn writes(flags: u32) -> bool {
    flags & flag::ACCESS != 0 || flags & flag::TRUNCATE != 0
}

fn to_system(flags: u32) -> Result<OFlags> {
    let mut system = match flags & flag::ACCESS {
        0 => OFlags::RDONLY,
        flag::WRITE_ONLY => OFlags::WRONLY,
        flag::READ_WRITE => OFlags::RDWR,
        _ => return Err(Errno::INVAL),
    };
    for (theirs, ours) in [
        (flag::TRUNCATE, OFlags::TRUNC),
        (flag::APPEND, OFlags::APPEND),
        (flag::DATA_SYNC, OFlags::DSYNC),
        (flag::SYNC, OFlags::SYNC),
        (flag::DIRECTORY, OFlags::DIRECTORY),
    ] {
        if flags & theirs != 0 {
            system |= ours;
        }
    }
    Ok(system)
}
