//! The system calls that are more than one call into rustix.
//!
//! # Contract of the unsafe code
//!
//! The two raw system interfaces used here touch no memory of this process except where stated:
//! `sigaction` reads and writes the structures passed to it, `tgkill` takes numbers. So does `ioctl`,
//! and writes one; `sched_getcpu` gives one; `clock_gettime` writes the structure passed to it.

use std::{
    io,
    ops::Range,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::OnceLock,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, OFlags},
    io::Errno,
    net::{AddressFamily, SocketType, sockopt},
    thread::{MembarrierCommand, Pid},
};

use crate::error::Error;

/// Whether [`membarrier`] works here; asks (and registers the process) once.
pub(crate) fn membarrier_ready() -> bool {
    static READY: OnceLock<bool> = OnceLock::new();
    // Loom knows nothing of it: its models use real fences.
    !cfg!(loom)
        && *READY.get_or_init(|| {
            rustix::thread::membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
                && rustix::thread::membarrier(MembarrierCommand::PrivateExpedited).is_ok()
        })
}

/// A full memory barrier on every processor that runs a thread of this process.
pub(crate) fn membarrier() {
    // It has worked at registration, and fails only where it is not supported.
    let done = rustix::thread::membarrier(MembarrierCommand::PrivateExpedited);
    assert!(
        done.is_ok(),
        "membarrier worked at first and now says {done:?}"
    );
}

/// When so long a time is over. [`Duration::MAX`], which means for ever, is a hundred years: no clock
/// goes so far that it could be added to a time.
pub(crate) fn from_now(wait: Duration) -> Instant {
    const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    Instant::now() + wait.min(FOR_EVER)
}

/// Bytes that the processor's caches hold together.
pub(crate) const LINE_BYTES: usize = 64;

/// Asks the processor to bring the line of memory that is here into its cache, and goes on at once.
#[inline]
pub(crate) fn prefetch_line<T>(at: *const T) {
    let line = at.cast::<i8>();
    // SAFETY: a hint, which reads nothing and faults on no address.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line);
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, readonly));
    }
}

/// Checks that a descriptor may be attached; gives the socket's cookie, unique in the system.
pub(crate) fn check_attachable(fd: BorrowedFd<'_>) -> Result<u64, Error> {
    let kind = match sockopt::socket_type(fd) {
        Ok(kind) => kind,
        Err(Errno::NOTSOCK | Errno::BADF) => return Err(Error::NotASocket),
        Err(e) => return Err(e.into()),
    };
    let domain = sockopt::socket_domain(fd)?;
    let family_fits = match domain {
        AddressFamily::INET | AddressFamily::INET6 => {
            sockopt::socket_protocol(fd)? == Some(rustix::net::ipproto::TCP)
        }
        AddressFamily::UNIX => true,
        _ => false,
    };
    if kind != SocketType::STREAM || !family_fits || sockopt::socket_acceptconn(fd)? {
        return Err(Error::Unsupported);
    }
    // A socket whose peer is gone already may be attached: it has data, or an end to tell.
    match rustix::net::getpeername(fd) {
        Ok(_) => {}
        Err(Errno::NOTCONN) if domain != AddressFamily::UNIX && had_peer(fd) => {}
        Err(Errno::NOTCONN) => return Err(Error::Unsupported),
        Err(e) => return Err(e.into()),
    }
    Ok(sockopt::socket_cookie(fd)?)
}

/// Checks that this range can be read from this descriptor: what is found out later costs the
/// connection that the message has begun on.
pub(crate) fn check_readable(file: &impl AsFd, range: &Range<u64>) -> io::Result<()> {
    let stat = rustix::fs::fstat(file)?;
    let flags = rustix::fs::fcntl_getfl(file)?;
    if flags.contains(OFlags::PATH) || flags & OFlags::RWMODE == OFlags::WRONLY {
        return Err(Errno::BADF.into());
    }
    let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    let len_bytes = u64::try_from(stat.st_size).unwrap_or(0);
    if !is_regular || range.start > range.end || range.end > len_bytes {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

/// Whether this socket is TCP, of those that can be attached.
pub(crate) fn is_tcp(fd: BorrowedFd<'_>) -> bool {
    sockopt::socket_domain(fd).is_ok_and(|domain| domain != AddressFamily::UNIX)
}

/// Whether a TCP socket without a peer has had one, or is about to: then a read says 0 or an error,
/// not "not connected", nor that it was refused.
fn had_peer(fd: BorrowedFd<'_>) -> bool {
    let mut byte = [0u8; 1];
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    !matches!(
        rustix::net::recv(fd, &mut byte, flags),
        Err(Errno::NOTCONN | Errno::CONNREFUSED)
    )
}

/// Whether the descriptor polls as one of these at this moment; hung up and broken ones do.
pub(crate) fn polls(fd: BorrowedFd<'_>, flags: PollFlags) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(fd, flags)];
    matches!(poll(&mut fds, Some(&Timespec::default())), Ok(n) if n > 0)
}

/// Bytes that the system has received and nobody has read; 0 where it does not say.
pub(crate) fn unread_bytes(fd: BorrowedFd<'_>) -> usize {
    let n = rustix::io::ioctl_fionread(fd).unwrap_or(0);
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Bytes sent that the peer has not acknowledged; 0 where the system does not say.
pub(crate) fn unacknowledged_bytes(fd: BorrowedFd<'_>) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: writes one int to a live one.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut n) };
    if result == 0 {
        usize::try_from(n).unwrap_or(0)
    } else {
        0
    }
}

/// The processor that this thread is on, at this moment. (The C library reads a word that the system
/// keeps up to date. rustix asks through the vDSO, which takes longer, and reads this program's own ELF
/// headers to find it, where Valgrind lets it crash.)
pub(crate) fn processor() -> usize {
    // SAFETY: takes and touches nothing.
    let processor = unsafe { libc::sched_getcpu() };
    usize::try_from(processor).unwrap_or(0)
}

/// Makes a descriptor blocking or not; says what it was.
pub(crate) fn set_nonblocking(fd: impl AsFd, nonblocking: bool) -> io::Result<bool> {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    let flags = fcntl_getfl(&fd)?;
    let was = flags.contains(OFlags::NONBLOCK);
    if was != nonblocking {
        let mut new = flags;
        new.set(OFlags::NONBLOCK, nonblocking);
        fcntl_setfl(&fd, new)?;
    }
    Ok(was)
}

/// The time, as [`Instant`] has it, in nanoseconds: a number, where it is read for every burst. (The
/// difference of two [`Instant`]s costs as much as to read the clock, its quotient twice that.)
pub(crate) fn now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC)
}

/// The same by a clock that is some milliseconds coarse and costs a fifth of the exact one.
pub(crate) fn coarse_now_ns() -> u64 {
    clock_ns(libc::CLOCK_MONOTONIC_COARSE)
}

/// (The C library's, for Valgrind: see [`processor`].)
fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: writes one structure, a live one. The clocks are such as every Linux has.
    unsafe { libc::clock_gettime(clock, &raw mut now) };
    // Both are above zero, and the sum fits for centuries.
    now.tv_sec.cast_unsigned() * 1_000_000_000 + now.tv_nsec.cast_unsigned()
}

/// The signal that makes a blocked receive return (see `watch.rs`). Ignored by default, so that
/// one too many harms nobody; Go's runtime uses it for the same reason.
const NUDGE: libc::c_int = libc::SIGURG;

/// Whether [`nudge`] can interrupt a system call of the calling thread: the process has a handler
/// for the signal that lets calls be interrupted, and this thread does not block it.
pub(crate) fn nudge_ready() -> bool {
    static HANDLER: OnceLock<bool> = OnceLock::new();
    thread_local! {
        static UNBLOCKED: bool = !nudge_blocked();
    }
    *HANDLER.get_or_init(install_nudge_handler) && UNBLOCKED.with(|unblocked| *unblocked)
}

/// The calling thread, for [`nudge`].
pub(crate) fn this_thread() -> Pid {
    thread_local! {
        static THREAD: Pid = rustix::thread::gettid();
    }
    THREAD.with(|thread| *thread)
}

/// Interrupts the system call of a thread of this process, if it is in one.
pub(crate) fn nudge(thread: Pid) {
    let process = rustix::process::getpid();
    // SAFETY: takes three numbers. A thread that is gone gives ESRCH, which is as good.
    unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            process.as_raw_nonzero().get(),
            thread.as_raw_nonzero().get(),
            NUDGE,
        );
    }
}

extern "C" fn on_nudge(_: libc::c_int) {}

fn install_nudge_handler() -> bool {
    // SAFETY: an all-zero sigaction is a valid value (SIG_DFL, empty mask); both pointers are to
    // live values; the handler does nothing, so it is async-signal-safe.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(NUDGE, std::ptr::null(), &raw mut now) != 0 {
            return false;
        }
        if now.sa_sigaction != libc::SIG_DFL && now.sa_sigaction != libc::SIG_IGN {
            // The program's own handler stays; it does if calls are interrupted by it.
            return now.sa_flags & libc::SA_RESTART == 0;
        }
        let mut ours: libc::sigaction = std::mem::zeroed();
        let handler: extern "C" fn(libc::c_int) = on_nudge;
        ours.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(NUDGE, &raw const ours, std::ptr::null_mut()) == 0
    }
}

fn nudge_blocked() -> bool {
    // SAFETY: reads the calling thread's mask into a live, initialised set.
    unsafe {
        let mut mask: libc::sigset_t = std::mem::zeroed();
        libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut mask) != 0
            || libc::sigismember(&raw const mask, NUDGE) != 0
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::{
        net::{TcpListener, TcpStream, UdpSocket},
        os::unix::net::{UnixDatagram, UnixStream},
    };

    #[test]
    fn only_connected_streams_are_attachable() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let cookie = check_attachable(stream.as_fd()).unwrap();
        assert_eq!(
            check_attachable(stream.try_clone().unwrap().as_fd()).unwrap(),
            cookie
        );
        assert_ne!(check_attachable(accepted.as_fd()).unwrap(), cookie);
        let errno = |fd: BorrowedFd<'_>| check_attachable(fd).unwrap_err().errno();
        assert_eq!(errno(listener.as_fd()), libc::EOPNOTSUPP);
        assert_eq!(
            errno(UdpSocket::bind("127.0.0.1:0").unwrap().as_fd()),
            libc::EOPNOTSUPP
        );
        assert_eq!(
            errno(UnixDatagram::unbound().unwrap().as_fd()),
            libc::EOPNOTSUPP
        );
        assert_eq!(
            errno(std::fs::File::open("/dev/null").unwrap().as_fd()),
            libc::ENOENT
        );
        let (a, _b) = UnixStream::pair().unwrap();
        assert!(check_attachable(a.as_fd()).is_ok());
        // The peer is gone, but there is an end to tell.
        drop(accepted);
        assert!(check_attachable(stream.as_fd()).is_ok());
    }
}
