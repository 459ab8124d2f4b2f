//! Names in directories: walking, making, linking, renaming, removing.

use std::os::fd::OwnedFd;

use rustix::{
    fs::{
        AtFlags, FileType, Mode, fstat, linkat, mkdirat, mknodat, readlinkat, renameat, symlinkat,
        unlinkat,
    },
    io::Errno,
};

use crate::{
    export::Export,
    fids::{Fid, Handle, Opened},
    session::Session,
    wire::{Name, Qid, Reply, Result},
};

/// Permissions, set-user-id, set-group-id and sticky bit of a mode.
pub(super) const PERMISSION_BITS: u32 = 0o7777;
/// The one flag of Tunlinkat: a directory is meant.
const REMOVE_DIRECTORY: u32 = 0x200;

/// `path`: where in the directory that is served the client wants to begin; `/` or nothing for
/// itself.
pub(super) fn attach(session: &Session, fid: u32, path: &[u8], reply: &mut Reply) -> Result<()> {
    let export = &session.shared.export;
    let mut file = export.root()?;
    for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty()) {
        file = export.look_up(&file, Name::new(name)?)?;
    }
    reply.put_qid(export.qid(&fstat(&file)?));
    session.fids.insert(fid, file)
}

/// A walk that comes only a part of the way tells how far, and makes no fid.
pub(super) fn walk(
    session: &Session,
    from: &Handle,
    to: u32,
    names: &[Name<'_>],
    reply: &mut Reply,
) -> Result<()> {
    let export = &session.shared.export;
    if to == from.number && from.fid.is_open() {
        return Err(Errno::BUSY);
    }
    let mut walked: u16 = 0;
    reply.put_u16(0);
    let mut reached: Option<OwnedFd> = None;
    for &name in names {
        let next = match &reached {
            Some(directory) => export.look_up(directory, name),
            None => export.look_up(from, name),
        };
        let next = match next {
            Ok(next) => next,
            Err(errno) if walked == 0 => return Err(errno),
            Err(_) => {
                reply.set_u16(0, walked);
                return Ok(());
            }
        };
        reply.put_qid(export.qid(&fstat(&next)?));
        reached = Some(next);
        walked += 1;
    }
    reply.set_u16(0, walked);
    let reached = match reached {
        Some(reached) => reached,
        // A second fid of an open file is one that is not open.
        None if from.fid.is_open() => named_again(export, from)?,
        None => export.again(from)?,
    };
    if to == from.number {
        session.fids.replace(from, reached, Opened::No)
    } else {
        session.fids.insert(to, reached)
    }
}

pub(super) fn make_directory(
    export: &Export,
    directory: &Fid,
    name: Name<'_>,
    mode: u32,
    reply: &mut Reply,
) -> Result<()> {
    export.writable()?;
    mkdirat(directory, name.bytes(), permissions(mode))?;
    put_qid_of(export, directory, name, reply)
}

/// FIFOs, sockets and regular files. No devices: whoever can write a file on a server should not
/// make a disk of it appear.
pub(super) fn make_node(
    export: &Export,
    directory: &Fid,
    name: Name<'_>,
    mode: u32,
    reply: &mut Reply,
) -> Result<()> {
    export.writable()?;
    let file_type = FileType::from_raw_mode(mode);
    match file_type {
        FileType::Fifo | FileType::Socket | FileType::RegularFile => {}
        _ => return Err(Errno::PERM),
    }
    mknodat(directory, name.bytes(), file_type, permissions(mode), 0)?;
    put_qid_of(export, directory, name, reply)
}

/// The target is text: nobody follows it here.
pub(super) fn symlink(
    export: &Export,
    directory: &Fid,
    name: Name<'_>,
    target: &[u8],
    reply: &mut Reply,
) -> Result<()> {
    export.writable()?;
    symlinkat(target, directory, name.bytes())?;
    put_qid_of(export, directory, name, reply)
}

pub(super) fn read_link(link: &Fid, reply: &mut Reply) -> Result<()> {
    if FileType::from_raw_mode(fstat(link)?.st_mode) != FileType::Symlink {
        return Err(Errno::INVAL);
    }
    reply.put_string(readlinkat(link, "", Vec::new())?.as_bytes())
}

pub(super) fn link(export: &Export, directory: &Fid, file: &Fid, name: Name<'_>) -> Result<()> {
    export.writable()?;
    let (descriptors, number) = export.path(file);
    linkat(
        descriptors,
        number,
        directory,
        name.bytes(),
        AtFlags::SYMLINK_FOLLOW,
    )
}

pub(super) fn rename(export: &Export, file: &Fid, to: &Fid, new: Name<'_>) -> Result<()> {
    export.writable()?;
    let (from, old) = export.locate(file)?;
    renameat(from, old, to, new.bytes())
}

pub(super) fn rename_at(
    export: &Export,
    from: &Fid,
    old: Name<'_>,
    to: &Fid,
    new: Name<'_>,
) -> Result<()> {
    export.writable()?;
    renameat(from, old.bytes(), to, new.bytes())
}

pub(super) fn unlink_at(
    export: &Export,
    directory: &Fid,
    name: Name<'_>,
    flags: u32,
) -> Result<()> {
    export.writable()?;
    let flags = match flags {
        0 => AtFlags::empty(),
        REMOVE_DIRECTORY => AtFlags::REMOVEDIR,
        _ => return Err(Errno::INVAL),
    };
    unlinkat(directory, name.bytes(), flags)
}

/// The fid is gone already, whatever becomes of this.
pub(super) fn remove(export: &Export, file: &Fid) -> Result<()> {
    export.writable()?;
    let flags = match FileType::from_raw_mode(fstat(file)?.st_mode) {
        FileType::Directory => AtFlags::REMOVEDIR,
        _ => AtFlags::empty(),
    };
    let (directory, name) = export.locate(file)?;
    unlinkat(directory, name, flags)
}

pub(super) fn permissions(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & PERMISSION_BITS)
}

fn put_qid_of(export: &Export, directory: &Fid, name: Name<'_>, reply: &mut Reply) -> Result<()> {
    let qid: Qid = export.qid(&fstat(export.look_up(directory, name)?)?);
    reply.put_qid(qid);
    Ok(())
}

/// A descriptor that only names the file. Opened files are regular ones and directories.
fn named_again(export: &Export, file: &Handle) -> Result<OwnedFd> {
    export.open(file, rustix::fs::OFlags::PATH)
}
