//! The bytes: a file, or the standard input.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::AsFd as _,
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::failure::Failure;

/// Where the bytes come from.
pub(super) struct Input {
    file: File,
    name: String,
    /// Bytes of a regular file; `None` for what may wait: pipes, terminals, sockets, devices.
    len: Option<u64>,
}

impl Input {
    /// Opens this file, or the standard input for `-` and for none.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, Failure> {
        let (file, name) = match path {
            Some(path) if path != Path::new("-") => {
                let name = path.display().to_string();
                let file = File::open(path).map_err(Failure::system(format!("open {name}")))?;
                (file, name)
            }
            // A descriptor of its own, past the buffer that the standard library puts before it.
            _ => {
                let name = "the standard input";
                let file = io::stdin().as_fd().try_clone_to_owned();
                let file = file.map_err(Failure::system(format!("open {name}")))?;
                (file.into(), name.to_owned())
            }
        };
        let metadata = file.metadata();
        let metadata = metadata.map_err(Failure::system(format!("look at {name}")))?;
        if metadata.is_dir() {
            return Err(Failure::system(format!("read {name}"))(Errno::ISDIR.into()));
        }
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self { file, name, len })
    }

    /// Its length in bytes, if it is a file that has one.
    pub(super) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Reads what is there into `room`; 0 bytes at the end of the input.
    pub(super) fn read(&mut self, room: &mut [u8]) -> Result<usize, Failure> {
        loop {
            match self.file.read(room) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                result => {
                    return result.map_err(Failure::system(format!("read {}", self.name)));
                }
            }
        }
    }

    /// Whether a read would wait for bytes.
    pub(super) fn would_wait(&self) -> bool {
        if self.len.is_some() {
            return false;
        }
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        // What poll does not know how to wait for, read does not wait for either.
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }

    /// Waits for bytes where somebody else has made the descriptor non-blocking.
    fn wait(&self) -> Result<(), Failure> {
        let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(Failure::system(format!("wait for {}", self.name))(e.into())),
        }
    }
}
