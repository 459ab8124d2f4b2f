//! The second part of a request: the system calls, and the reply. Any number run at once, also of
//! one client; each works on files of its own, that no other request can close under it.

mod attributes;
mod data;
mod names;
mod open;

use crate::{
    request::Request,
    session::Session,
    wire::{Reply, Result},
};

/// Does what is asked, and writes the reply's fields.
pub(crate) fn run(session: &Session, request: Request<'_>, reply: &mut Reply) -> Result<()> {
    let export = &session.shared.export;
    match request {
        Request::Attach { fid, path } => names::attach(session, fid, path, reply),
        Request::Walk { from, to, names } => names::walk(session, &from, to, &names, reply),
        Request::Open { file, flags } => open::open(session, &file, flags, reply),
        Request::Create {
            directory,
            name,
            flags,
            mode,
        } => open::create(session, &directory, name, flags, mode, reply),
        Request::Read {
            file,
            offset,
            count,
        } => data::read(session, &file, offset, count, reply),
        Request::Write { file, offset, data } => data::write(session, &file, offset, data, reply),
        Request::ReadDirectory {
            directory,
            offset,
            count,
        } => data::read_directory(session, &directory, offset, count, reply),
        Request::Sync { file, data_only } => data::sync(&file, data_only),
        Request::Lock { file, lock } => data::lock(session, &file, lock, reply),
        Request::GetLock { file, lock } => data::get_lock(session, &file, lock, reply),
        Request::GetAttributes { file } => attributes::get(export, &file, reply),
        Request::SetAttributes { file, set } => attributes::set(export, &file, set),
        Request::StatFs { file } => attributes::stat_fs(export, &file, reply),
        Request::MakeDirectory {
            directory,
            name,
            mode,
        } => names::make_directory(export, &directory, name, mode, reply),
        Request::MakeNode {
            directory,
            name,
            mode,
        } => names::make_node(export, &directory, name, mode, reply),
        Request::Symlink {
            directory,
            name,
            target,
        } => names::symlink(export, &directory, name, target, reply),
        Request::ReadLink { link } => names::read_link(&link, reply),
        Request::Link {
            directory,
            file,
            name,
        } => names::link(export, &directory, &file, name),
        Request::Rename {
            file,
            directory,
            name,
        } => names::rename(export, &file, &directory, name),
        Request::RenameAt { from, old, to, new } => names::rename_at(export, &from, old, &to, new),
        Request::UnlinkAt {
            directory,
            name,
            flags,
        } => names::unlink_at(export, &directory, name, flags),
        Request::Remove { file } => names::remove(export, &file),
        Request::Clunk => Ok(()),
    }
}
