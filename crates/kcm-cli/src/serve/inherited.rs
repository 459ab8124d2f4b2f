//! Listening sockets that a service manager has opened: `LISTEN_FDS` of them, from descriptor 3 on,
//! meant for the process `LISTEN_PID` (sd_listen_fds(3)).
//!
//! Contract: [`take`] is called once, while the process has opened no descriptor that could have one
//! of these numbers (and is still open), and nobody else takes them. The environment says that they
//! are this process's own; one that is not open is refused before it is owned.

use std::{
    env, fs,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    process,
};

use rustix::io::{FdFlags, fcntl_setfd};

/// The first of them: those below are the standard streams.
const FIRST: RawFd = 3;
/// At most so many: no service has more, and a wrong number is found out.
const MOST: RawFd = 1024;

/// The descriptors, which are closed in workers from now on.
pub(super) fn take() -> Result<Vec<OwnedFd>, String> {
    const HOW: &str = "--listen systemd: no socket was passed on; start it from a .socket unit, or \
                       for a try with `systemd-socket-activate -l PORT kcm serve ...`";
    let number = |name| env::var(name).ok()?.parse::<RawFd>().ok();
    let (Some(count), Some(pid)) = (number("LISTEN_FDS"), number("LISTEN_PID")) else {
        return Err(HOW.into());
    };
    if i64::from(pid) != i64::from(process::id()) || !(1..=MOST).contains(&count) {
        return Err(format!(
            "{HOW} (LISTEN_FDS={count} LISTEN_PID={pid}, this process is {})",
            process::id()
        ));
    }
    (FIRST..FIRST + count)
        .map(|number| {
            if !fs::exists(format!("/proc/self/fd/{number}")).unwrap_or(false) {
                return Err(format!("--listen systemd: descriptor {number} is not open"));
            }
            // SAFETY: open, as was just seen, and this process's to own, as the contract says.
            let fd = unsafe { OwnedFd::from_raw_fd(number) };
            fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|e| format!("descriptor {number}: {e}"))?;
            Ok(fd)
        })
        .collect()
}
