//! The kernel's own KCM, as a contender where the running kernel has it (`--against kernel`).
//!
//! It is used as its documentation says. A kernel socket cannot answer one of several
//! connections, so a server of many gives each connection a multiplexor of its own and each
//! worker a clone of every one of them, which is how Thrift was moved to it.
//!
//! The program that frames is shown the first byte of a buffer instead of the first byte of the
//! message. With the length field (`u32be+4`) that goes wrong as soon as a buffer begins inside a
//! message, which is sure to happen to a pipeline. So there the program says a constant: all
//! messages have one length, and the kernel is at its best.
//!
//! # Unsafe contract
//!
//! Everything unsafe here is a system call that the C library has no safe form of: `ioctl` of
//! `SIOCKCMATTACH` and `SIOCKCMCLONE`, `bpf(BPF_PROG_LOAD)`, `recvmmsg`, `sendmmsg`. Each is given
//! pointers to locals, or to buffers that the caller lends for the call, with their true lengths;
//! a descriptor that comes back is owned from then on and by nobody else.

use std::{
    io,
    net::TcpStream,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, sockopt},
};

use super::failure::Failure;

/// Messages that one `recvmmsg` takes.
const BATCH: usize = 64;
/// How often a receiver looks whether the run is over: the kernel tells it of no end.
pub(super) const LOOK_UP: Duration = Duration::from_millis(50);

/// The sockets of one kernel multiplexor.
pub(super) struct KernelMux {
    pub(super) sockets: Vec<OwnedFd>,
}

impl KernelMux {
    /// Attaches these streams to so many sockets of a new multiplexor.
    pub(super) fn new(
        program: &OwnedFd,
        streams: Vec<TcpStream>,
        sockets: usize,
    ) -> Result<Self, Failure> {
        let first = socket()?;
        for stream in &streams {
            let request = Attach {
                fd: stream.as_raw_fd(),
                program: program.as_raw_fd(),
            };
            // SAFETY: the request is a `struct kcm_attach`, valid for the call, which only reads it.
            let result =
                unsafe { libc::ioctl(first.as_raw_fd(), SIOCKCMATTACH, &raw const request) };
            checked(result).map_err(Failure::system("SIOCKCMATTACH"))?;
        }
        let mut all = vec![first];
        while all.len() < sockets {
            all.push(clone(&all[0])?);
        }
        for socket in &all {
            sockopt::set_socket_timeout(socket, sockopt::Timeout::Recv, Some(LOOK_UP))
                .map_err(Failure::errno("SO_RCVTIMEO"))?;
        }
        // The multiplexor holds the streams from now on; its last socket closes them.
        drop(streams);
        Ok(Self { sockets: all })
    }
}

/// Fails where the kernel has no KCM, or we no right to use it.
pub(super) fn probe() -> Result<(), Failure> {
    // In this order, so that the more common hindrance is the one told.
    drop(socket()?);
    load_program(Frames::U32Be).map(drop)
}

/// What the program says about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Frames {
    /// Framing `u32be+4`.
    U32Be,
    /// All messages have this length.
    Fixed(u32),
}

/// Loads a program that frames.
pub(super) fn load_program(frames: Frames) -> Result<OwnedFd, Failure> {
    let exit = instruction(0x95, 0, 0);
    let instructions: [u64; 4] = match frames {
        Frames::U32Be => [
            instruction(0xbf, 0x16, 0), // r6 = r1, the context that loads read from
            instruction(0x20, 0, 0), // r0 = big-endian word at 0; returns 0 if it is not there yet
            instruction(0x07, 0x00, 4), // r0 += 4
            exit,
        ],
        Frames::Fixed(bytes) => {
            let answer = instruction(0xb7, 0x00, bytes); // r0 = bytes
            [answer, answer, answer, exit]
        }
    };
    let attributes = LoadProgram {
        program_type: 1, // BPF_PROG_TYPE_SOCKET_FILTER
        instruction_count: 4,
        instructions: instructions.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        ..LoadProgram::default()
    };
    // SAFETY: attributes begin as the kernel's `union bpf_attr` for BPF_PROG_LOAD and point to
    // instructions and a licence that outlive the call; the size is theirs.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            5, // BPF_PROG_LOAD
            &raw const attributes,
            size_of::<LoadProgram>(),
        )
    };
    let fd = i32::try_from(result).unwrap_or(-1);
    checked(fd).map_err(Failure::system(
        "load the kernel's framing program (--against kernel needs root or CAP_BPF)",
    ))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Receives one message. `None`: none came for [`LOOK_UP`].
pub(super) fn recv_one(socket: &OwnedFd, buffer: &mut [u8]) -> Result<Option<usize>, Failure> {
    match rustix::net::recv(socket, buffer, rustix::net::RecvFlags::empty()) {
        Ok((_, count)) => Ok(Some(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(Failure::errno("recv from an AF_KCM socket")(errno)),
    }
}

/// Sends one message whole.
pub(super) fn send_one(socket: &OwnedFd, message: &[u8]) -> Result<(), Failure> {
    match send(socket, message, SendFlags::NOSIGNAL) {
        Ok(count) if count == message.len() => Ok(()),
        Ok(count) => Err(Failure::Verification(format!(
            "the kernel took {count} of a message's {} bytes",
            message.len()
        ))),
        Err(errno) => Err(Failure::errno("send to an AF_KCM socket")(errno)),
    }
}

/// Room for a batch of messages, and what the batch was.
pub(super) struct Batch {
    buffer: Vec<u8>,
    largest_bytes: usize,
    lengths: Vec<usize>,
}

impl Batch {
    pub(super) fn new(largest_bytes: usize) -> Self {
        Self {
            buffer: vec![0; BATCH * largest_bytes],
            largest_bytes,
            lengths: Vec::with_capacity(BATCH),
        }
    }

    /// Receives up to 64 messages with one system call; waits for the first, at most for
    /// [`LOOK_UP`].
    pub(super) fn recv(&mut self, socket: &OwnedFd) -> Result<(), Failure> {
        self.lengths.clear();
        // Not by a blocking `recvmmsg`: with that the kernel was seen to sleep on a full queue.
        let mut polled = [PollFd::new(socket, PollFlags::IN)];
        match poll(&mut polled, Timespec::try_from(LOOK_UP).ok().as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(()),
            Ok(_) => {}
            Err(errno) => return Err(Failure::errno("poll an AF_KCM socket")(errno)),
        }
        let mut pieces: Vec<_> = (self.buffer.chunks_exact_mut(self.largest_bytes))
            .map(|room| libc::iovec {
                iov_base: room.as_mut_ptr().cast(),
                iov_len: room.len(),
            })
            .collect();
        let mut headers: Vec<_> = pieces.iter_mut().map(header_of).collect();
        // SAFETY: each header points to one iovec, which points to its own part of the buffer; all
        // outlive the call.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                u32::try_from(headers.len()).unwrap_or(0),
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        match checked(count) {
            Ok(count) => {
                let received = headers.iter().take(usize::try_from(count).unwrap_or(0));
                self.lengths.extend(received.map(|h| h.msg_len as usize));
                Ok(())
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(Failure::system("recvmmsg from an AF_KCM socket")(e)),
        }
    }

    pub(super) fn messages(&self) -> impl Iterator<Item = &[u8]> {
        let rooms = self.buffer.chunks_exact(self.largest_bytes);
        rooms.zip(&self.lengths).map(|(room, &len)| &room[..len])
    }
}

/// Sends several messages of one length with as few system calls as the kernel allows.
pub(super) fn send_batch(socket: &OwnedFd, messages: &[u8], each: usize) -> Result<(), Failure> {
    let mut pieces: Vec<_> = messages
        .chunks_exact(each)
        .map(|message| libc::iovec {
            iov_base: message.as_ptr().cast_mut().cast(),
            iov_len: message.len(),
        })
        .collect();
    let mut headers: Vec<_> = pieces.iter_mut().map(header_of).collect();
    let mut rest = &mut headers[..];
    while !rest.is_empty() {
        // SAFETY: each header points to one iovec, which points into `messages`; all outlive the
        // call, which only reads the messages.
        let count = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                rest.as_mut_ptr(),
                u32::try_from(rest.len()).unwrap_or(0),
                libc::MSG_NOSIGNAL,
            )
        };
        let count = checked(count).map_err(Failure::system("sendmmsg to an AF_KCM socket"))?;
        rest = &mut rest[usize::try_from(count).unwrap_or(0)..];
    }
    Ok(())
}

const AF_KCM: u16 = 41;
const SIOCKCMATTACH: libc::Ioctl = 0x89e0;
const SIOCKCMCLONE: libc::Ioctl = 0x89e2;

/// `struct kcm_attach`.
#[repr(C)]
struct Attach {
    fd: i32,
    program: i32,
}

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
}

/// One eBPF instruction: operation, registers (source above target), immediate.
const fn instruction(operation: u8, registers: u8, immediate: u32) -> u64 {
    let [i0, i1, i2, i3] = immediate.to_ne_bytes();
    u64::from_ne_bytes([operation, registers, 0, 0, i0, i1, i2, i3])
}

fn socket() -> Result<OwnedFd, Failure> {
    rustix::net::socket_with(
        AddressFamily::from_raw(AF_KCM),
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(Failure::errno(
        "make an AF_KCM socket (--against kernel needs a kernel with CONFIG_AF_KCM; try `modprobe kcm`)",
    ))
}

fn clone(socket: &OwnedFd) -> Result<OwnedFd, Failure> {
    let mut fd: i32 = -1;
    // SAFETY: the kernel writes a `struct kcm_clone`, which is one descriptor, to `fd`.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCKCMCLONE, &raw mut fd) };
    checked(result).map_err(Failure::system("SIOCKCMCLONE"))?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn header_of(piece: &mut libc::iovec) -> libc::mmsghdr {
    // SAFETY: the structure consists of integers and pointers, for which all zeros is valid.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = piece;
    header.msg_hdr.msg_iovlen = 1;
    header
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_kernels_kcm_it_is_said_so() {
        match probe() {
            Ok(()) => println!("this kernel has AF_KCM"),
            Err(failure) => {
                println!("skipped: {failure}");
                assert!(failure.to_string().contains("--against kernel"));
            }
        }
    }
}
