//! The running kernel's own BPF: loads a program as a socket filter, and runs it on bytes.

use std::ffi::{c_long, c_void};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kcm_bpf::Insn;

const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_TEST_RUN: c_long = 10;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;

/// `BPF_PROG_TEST_RUN` takes what looks like an Ethernet frame, and shows a socket filter what
/// comes after its header.
const ETHERNET_HEADER: [u8; 14] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xb5];

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    rest: [u64; 4],
}

/// The beginning of `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    rest: [u64; 2],
}

/// A program that the kernel has accepted.
pub(crate) struct Loaded(OwnedFd);

/// What the kernel's program gives.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) result: i32,
    pub(crate) cb: [u32; 5],
}

/// Loads a program, or gives the end of the verifier's log.
pub(crate) fn load(insns: &[Insn]) -> Result<Loaded, (io::Error, String)> {
    let code: Vec<u8> = insns.iter().flat_map(|insn| insn.encode()).collect();
    let mut log = vec![0u8; 1 << 18];
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_SOCKET_FILTER,
        insn_cnt: u32::try_from(insns.len()).expect("short"),
        insns: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        ..LoadAttr::default()
    };
    if let Ok(fd) = bpf(BPF_PROG_LOAD, &mut attr) {
        // SAFETY: the kernel has just made this descriptor for us.
        return Ok(Loaded(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    attr.log_level = 1;
    attr.log_size = u32::try_from(log.len()).expect("short");
    attr.log_buf = log.as_mut_ptr() as u64;
    match bpf(BPF_PROG_LOAD, &mut attr) {
        // SAFETY: as above.
        Ok(fd) => Ok(Loaded(unsafe { OwnedFd::from_raw_fd(fd) })),
        Err(error) => {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            Err((error, String::from_utf8_lossy(&log[..end]).into_owned()))
        }
    }
}

impl Loaded {
    /// Runs the program on the bytes of a message.
    pub(crate) fn run(&self, message: &[u8]) -> io::Result<Ran> {
        let data: Vec<u8> = ETHERNET_HEADER.iter().chain(message).copied().collect();
        let mut out = vec![0u8; data.len()];
        let mut context = [0u32; 64];
        let mut attr = RunAttr {
            prog_fd: self.0.as_raw_fd().cast_unsigned(),
            data_size_in: u32::try_from(data.len()).expect("short"),
            data_size_out: u32::try_from(out.len()).expect("short"),
            data_in: data.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ctx_size_out: u32::try_from(size_of_val(&context)).expect("short"),
            ctx_out: context.as_mut_ptr() as u64,
            ..RunAttr::default()
        };
        bpf(BPF_PROG_TEST_RUN, &mut attr)?;
        let cb = context[12..17].try_into().expect("five words");
        Ok(Ran {
            result: attr.retval.cast_signed(),
            cb,
        })
    }
}

fn bpf<T>(command: c_long, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is the beginning of a `bpf_attr` of the length given; all that it points to
    // lives until the call returns, and is as long as it says.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr).cast::<c_void>(),
            size_of::<T>(),
        )
    };
    match i32::try_from(result) {
        Ok(fd) if fd >= 0 => Ok(fd),
        _ => Err(io::Error::last_os_error()),
    }
}
