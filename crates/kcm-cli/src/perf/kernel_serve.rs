//! Servers on the kernel's KCM sockets.

use std::os::fd::OwnedFd;

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    io::Errno,
    net::{RecvFlags, recv},
};

use super::{
    failure::Failure,
    kernel::{self, Batch},
    raw::{self, EVENTS_PER_WAIT},
    run::Run,
    service::Service,
};

/// Serves one socket until the run is over; `batch`: with `recvmmsg` and `sendmmsg`.
pub(super) fn serve_one<S: Service>(
    run: &Run,
    socket: &OwnedFd,
    largest_bytes: usize,
    batch: bool,
    mut service: S,
) -> Result<S, Failure> {
    let mut replies = Vec::new();
    if batch {
        let mut batch = Batch::new(largest_bytes);
        while !run.is_over() {
            batch.recv(socket)?;
            let mut reply_bytes = 0;
            for message in batch.messages() {
                let begin = replies.len();
                service.serve(message, &mut replies)?;
                reply_bytes = replies.len() - begin;
            }
            if reply_bytes > 0 {
                kernel::send_batch(socket, &replies, reply_bytes)?;
                replies.clear();
            }
        }
        return Ok(service);
    }
    let mut buffer = raw::buffer_for(largest_bytes);
    while !run.is_over() {
        if let Some(count) = kernel::recv_one(socket, &mut buffer)? {
            service.serve(&buffer[..count], &mut replies)?;
            if !replies.is_empty() {
                kernel::send_one(socket, &replies)?;
                replies.clear();
            }
        }
    }
    Ok(service)
}

/// Serves one socket of each connection in an epoll loop until the run is over.
pub(super) fn serve_many<S: Service>(
    run: &Run,
    sockets: &[OwnedFd],
    largest_bytes: usize,
    mut service: S,
) -> Result<S, Failure> {
    let poll =
        epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Failure::errno("epoll_create"))?;
    for (index, socket) in sockets.iter().enumerate() {
        let data = epoll::EventData::new_u64(index as u64);
        epoll::add(&poll, socket, data, epoll::EventFlags::IN)
            .map_err(Failure::errno("epoll_ctl"))?;
    }
    let mut events = Vec::with_capacity(EVENTS_PER_WAIT);
    let mut buffer = raw::buffer_for(largest_bytes);
    let mut reply = Vec::new();
    let look_up = Timespec::try_from(kernel::LOOK_UP).ok();
    while !run.is_over() {
        match epoll::wait(&poll, spare_capacity(&mut events), look_up.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Failure::errno("epoll_wait")(errno)),
        }
        for (index, _) in events.drain(..).map(raw::index_and_flags) {
            let socket = &sockets[index];
            let count = match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((_, count)) => count,
                Err(Errno::AGAIN | Errno::INTR) => continue,
                Err(errno) => return Err(Failure::errno("recv from an AF_KCM socket")(errno)),
            };
            service.serve(&buffer[..count], &mut reply)?;
            if !reply.is_empty() {
                kernel::send_one(socket, &reply)?;
                reply.clear();
            }
        }
    }
    Ok(service)
}
