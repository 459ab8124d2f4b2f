//! The sending side of a connection.
//!
//! Any thread may send. The one that finds nobody writing becomes the *writer*: it sends its own
//! message straight from the caller's memory, without a copy, and then whatever others have left
//! in the queue meanwhile, many messages in one system call. The others copy their message into
//! the queue and go. No lock is held over a system call, and no message is ever mixed with another:
//! there is one writer, and it begins a message only when the one before is out.
//!
//! ```text
//!          send: queue empty, nobody writes          all sent
//!   FREE ────────────────────────────────▶ WRITING ──────────▶ FREE
//!                                           ▲   │ the system takes no more
//!                          writable, or     │   ▼
//!                          linger is over   └─ BLOCKED
//! ```
//!
//! What the system does not take is kept (a copy of the rest) and sent by the background thread as
//! soon as it does; so a call that has returned needs no further help, and a peer that does not
//! read holds up nobody. A new message has to wait while more than the limit is queued; the one
//! that crosses the limit goes in whole, as in the kernel.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    ops::Range,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use kcm_frame::Framing;

use crate::{
    background,
    error::{Error, Result},
    event::EndReason,
    psock::Psock,
    sys,
    transport::Carrier,
};

/// Replies kept back for one another go out at this many bytes.
const GATHER_BYTES: usize = 32 << 10;
/// Messages in one system call: below the system's limit of 1,024 pieces, and more gain nothing.
const MOST_PIECES: usize = 256;
/// Bytes in one system call: what a send buffer takes at once.
const MOST_BYTES: usize = 256 << 10;

/// How long a send waits for room.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wait {
    Never,
    Until(Instant),
    Forever,
}

/// A message that waits to be sent.
pub(crate) struct Outgoing {
    /// One message; addressed ones that are small share an entry, to go out and be dropped together.
    bytes: Vec<u8>,
    /// A range of a file, after the bytes.
    file: Option<(OwnedFd, Range<u64>)>,
    /// It must go to this connection.
    pub(crate) addressed: bool,
}

impl Outgoing {
    pub(crate) fn with_file(
        header: &[u8],
        file: OwnedFd,
        range: Range<u64>,
        addressed: bool,
    ) -> Self {
        Self {
            bytes: header.into(),
            file: Some((file, range)),
            addressed,
        }
    }

    fn len(&self) -> usize {
        let file = self
            .file
            .as_ref()
            .map_or(0, |(_, range)| range.end - range.start);
        self.bytes.len() + usize::try_from(file).unwrap_or(usize::MAX)
    }
}

pub(crate) struct Transmit {
    queue: Mutex<Queue>,
    /// Room for a new message, or the end.
    room: Condvar,
    queued_bytes: AtomicUsize,
    open: AtomicBool,
    /// Threads that keep replies back for one another.
    kept_back: AtomicUsize,
}

struct Queue {
    carrier: Option<Arc<Carrier>>,
    framing: Framing,
    messages: VecDeque<Outgoing>,
    /// Bytes of the first message that are out.
    first_sent: usize,
    state: State,
    /// The background thread will flush what is kept back here.
    holding: bool,
    /// What happens at the end of the queue.
    then: Then,
    ended: Option<EndReason>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// New messages are taken.
    Go,
    /// None is; the stream closes.
    Close,
    /// None is; the stream is given back.
    Detach,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    Writing,
    Blocked,
}

impl Transmit {
    pub(crate) fn new(carrier: Arc<Carrier>, framing: &Framing) -> Self {
        Self {
            queue: Mutex::new(Queue {
                carrier: Some(carrier),
                framing: framing.clone(),
                messages: VecDeque::new(),
                first_sent: 0,
                state: State::Free,
                holding: false,
                then: Then::Go,
                ended: None,
            }),
            room: Condvar::new(),
            queued_bytes: AtomicUsize::new(0),
            open: AtomicBool::new(true),
            kept_back: AtomicUsize::new(0),
        }
    }

    /// Bytes that wait here.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued_bytes.load(Ordering::Relaxed)
    }

    /// Whether new messages are taken at all.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether a new message would be taken at once; `None` when never again.
    pub(crate) fn has_room(&self, limit_bytes: usize) -> Option<bool> {
        self.is_open().then(|| self.queued_bytes() < limit_bytes)
    }

    /// Whether a reply may be kept back for the next ones: the connection is open, and has room
    /// for them.
    #[inline]
    pub(crate) fn may_hold(&self, pieces: &[IoSlice<'_>]) -> Result<bool> {
        if cfg!(debug_assertions) && self.is_open() {
            self.lock().check(pieces)?;
        }
        Ok(self.is_open() && self.queued_bytes() < GATHER_BYTES)
    }

    /// Sends replies that were kept back for one another. Their callers have gone: should the
    /// connection have ended, its event has told them.
    pub(crate) fn send_gathered(&self, psock: &Arc<Psock>, bytes: &[u8], messages: i64) {
        let queue = self.lock();
        if queue.ended.is_none() {
            let _ = self.send_locked(psock, queue, &[IoSlice::new(bytes)], messages, true, false);
        } else {
            drop(queue);
        }
        let queue = self.lock();
        // SYNC: under the lock, as all who look at it before the connection closes.
        self.kept_back.fetch_sub(1, Ordering::Relaxed);
        if queue.state == State::Free && queue.ended.is_none() {
            // Closing, or giving the stream back, may have waited for this.
            self.write(psock, queue);
        }
    }

    /// A thread begins to keep replies back; it ends with [`Transmit::send_gathered`].
    pub(crate) fn keep_back(&self) {
        let _queue = self.lock();
        self.kept_back.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether nothing waits here, nor with a thread that keeps replies back.
    pub(crate) fn has_sent_all(&self) -> bool {
        let queue = self.lock();
        queue.messages.is_empty() && self.kept_back.load(Ordering::Relaxed) == 0
    }

    /// Sends one message, straight from the caller's memory as far as the system takes it at once.
    /// `addressed`: it must go to this connection; `hold`: it may wait for [`Transmit::flush`].
    pub(crate) fn send(
        &self,
        psock: &Arc<Psock>,
        pieces: &[IoSlice<'_>],
        addressed: bool,
        hold: bool,
        wait: Wait,
    ) -> Result<()> {
        if pieces.iter().all(|piece| piece.is_empty()) {
            return Ok(());
        }
        crate::gather::flush_before(psock);
        let queue = self.wait_for_room(psock, wait)?;
        if cfg!(debug_assertions) {
            queue.check(pieces)?;
        }
        self.send_locked(psock, queue, pieces, 1, addressed, hold)
    }

    fn send_locked<'a>(
        &'a self,
        psock: &Arc<Psock>,
        mut queue: MutexGuard<'a, Queue>,
        pieces: &[IoSlice<'_>],
        messages: i64,
        addressed: bool,
        hold: bool,
    ) -> Result<()> {
        let len: usize = pieces.iter().map(|piece| piece.len()).sum();
        if queue.state != State::Free || hold || !queue.messages.is_empty() {
            queue.append(pieces, len, addressed);
            let queued = self.queued_bytes() + len;
            self.set_queued(&queue, queued);
            psock.count_sent(messages, signed(len));
            if queued >= psock.mux.limits.send_buffer_bytes {
                psock.mux.sendable();
            }
            if queue.state == State::Free {
                if !hold || queued >= GATHER_BYTES {
                    self.write(psock, queue);
                } else if !queue.holding {
                    queue.holding = true;
                    drop(queue);
                    background::get().flush_later(psock);
                }
            }
            return Ok(());
        }
        let Some(carrier) = queue.carrier.clone() else {
            return Err(Error::ConnectionEnded(EndReason::Closed));
        };
        queue.state = State::Writing;
        drop(queue);
        let result = send(&carrier, pieces);
        let mut queue = self.lock();
        queue.state = State::Free;
        match result {
            Ok(n) if n == len => {
                psock.count_sent(messages, signed(len));
                if let Some(reason) = queue.ended {
                    self.finish_abort(psock, queue, reason);
                } else if !queue.messages.is_empty() || queue.then != Then::Go {
                    self.write(psock, queue);
                } else {
                    drop(queue);
                    self.after_last(psock);
                }
                Ok(())
            }
            Ok(n) => {
                // An unaddressed message is kept whole: should the connection die, it goes out
                // again from its beginning on another.
                let skip = if addressed { n } else { 0 };
                queue.messages.push_front(Outgoing {
                    bytes: concat(pieces, skip),
                    file: None,
                    addressed,
                });
                queue.first_sent = n - skip;
                self.set_queued(&queue, self.queued_bytes() + len - n);
                // Given up by another thread meanwhile: then it has no place to go to.
                let lost = queue.ended.filter(|_| addressed);
                if lost.is_none() {
                    psock.count_sent(messages, signed(len));
                }
                match queue.ended {
                    None => self.block(psock, queue),
                    Some(reason) => self.finish_abort(psock, queue, reason),
                }
                lost.map_or(Ok(()), |reason| Err(Error::ConnectionEnded(reason)))
            }
            Err(e) => {
                let reason = EndReason::from_errno(e.raw_os_error().unwrap_or(libc::EIO));
                self.fail(psock, queue, reason);
                psock.tell_end(reason);
                Err(Error::ConnectionEnded(reason))
            }
        }
    }

    /// Queues a message and writes.
    pub(crate) fn send_outgoing(
        &self,
        psock: &Arc<Psock>,
        message: Outgoing,
        wait: Wait,
    ) -> std::result::Result<(), Box<(Error, Outgoing)>> {
        let mut queue = match self.wait_for_room(psock, wait) {
            Ok(queue) => queue,
            Err(e) => return Err(Box::new((e, message))),
        };
        let len = message.len();
        queue.messages.push_back(message);
        self.set_queued(&queue, self.queued_bytes() + len);
        psock.count_sent(1, signed(len));
        if queue.state == State::Free {
            self.write(psock, queue);
        }
        Ok(())
    }

    /// Takes over a message of a connection that died; gives it back when this one has ended too.
    pub(crate) fn send_again(
        &self,
        psock: &Arc<Psock>,
        message: Outgoing,
    ) -> std::result::Result<(), Outgoing> {
        let mut queue = self.lock();
        if queue.ended.is_some() || queue.then != Then::Go {
            return Err(message);
        }
        let len = message.len();
        queue.messages.push_back(message);
        self.set_queued(&queue, self.queued_bytes() + len);
        psock.count_sent(1, signed(len));
        if queue.state == State::Free {
            self.write(psock, queue);
        }
        Ok(())
    }

    /// The stream, until it is closed or given back.
    pub(crate) fn carrier(&self) -> Option<Arc<Carrier>> {
        self.lock().carrier.clone()
    }

    /// Sends what was kept back.
    pub(crate) fn flush(&self, psock: &Arc<Psock>) {
        let mut queue = self.lock();
        queue.holding = false;
        if queue.state == State::Free && !queue.messages.is_empty() {
            self.write(psock, queue);
        }
    }

    /// The system may take more again.
    pub(crate) fn writable(&self, psock: &Arc<Psock>) {
        let mut queue = self.lock();
        if queue.state == State::Blocked {
            queue.state = State::Free;
            self.write(psock, queue);
        }
    }

    /// Takes no new message, and closes when the queue is empty. Whether it is closed already.
    pub(crate) fn close(&self, psock: &Arc<Psock>) -> bool {
        let mut queue = self.lock();
        queue.then = Then::Close;
        self.open.store(false, Ordering::Relaxed);
        self.room.notify_all();
        if queue.state == State::Free {
            self.write(psock, queue);
            queue = self.lock();
        }
        queue.carrier.is_none()
    }

    /// Gives up what is still queued, takes the connection out of the multiplexor, and tells its
    /// end; a thread that is writing at this moment does so when it is back, for it has the
    /// messages. A stream cut inside a message is reset, so that its peer does not take what came
    /// for all.
    pub(crate) fn abort(&self, psock: &Arc<Psock>, reason: EndReason) {
        let mut queue = self.lock();
        if queue.state == State::Writing {
            queue.ended.get_or_insert(reason);
            self.open.store(false, Ordering::Relaxed);
            return;
        }
        self.finish_abort(psock, queue, reason);
    }

    fn finish_abort(&self, psock: &Arc<Psock>, queue: MutexGuard<'_, Queue>, reason: EndReason) {
        if let (Some(carrier), true) = (&queue.carrier, queue.first_sent > 0)
            && carrier.is_socket()
        {
            let linger = Some(Duration::ZERO);
            let _ = rustix::net::sockopt::set_socket_linger(carrier.as_fd(), linger);
        }
        self.fail(psock, queue, reason);
        psock.mux.remove_psock(psock.id);
        psock.tell_end(reason);
    }

    /// Waits until nothing is queued, at most until `deadline`, and takes the stream away.
    pub(crate) fn detach(&self, deadline: Instant) -> Result<Option<Arc<Carrier>>> {
        let mut queue = self.lock();
        queue.then = Then::Detach;
        self.open.store(false, Ordering::Relaxed);
        loop {
            let kept_back = self.kept_back.load(Ordering::Relaxed) > 0;
            if queue.state == State::Free && queue.messages.is_empty() && !kept_back {
                queue.ended.get_or_insert(EndReason::Closed);
                self.room.notify_all();
                return Ok(queue.carrier.take());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                queue.then = Then::Go;
                self.open.store(true, Ordering::Relaxed);
                return Err(Error::WouldBlock);
            }
            (queue, _) = self
                .room
                .wait_timeout(queue, left)
                .unwrap_or_else(|e| e.into_inner());
        }
    }

    pub(crate) fn set_framing(&self, framing: &Framing) {
        self.lock().framing = framing.clone();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lock().ended.is_some()
    }

    /// Written under the lock only, so that no read-modify-write is needed.
    fn set_queued(&self, _: &Queue, bytes: usize) {
        self.queued_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Does something while nobody sends or counts.
    pub(crate) fn locked(&self, change: impl FnOnce()) {
        let _queue = self.lock();
        change();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn wait_for_room(&self, psock: &Psock, wait: Wait) -> Result<MutexGuard<'_, Queue>> {
        let limit = psock.mux.limits.send_buffer_bytes;
        let mut queue = self.lock();
        loop {
            if let Some(reason) = queue.ended {
                return Err(Error::ConnectionEnded(reason));
            }
            if queue.then != Then::Go {
                return Err(Error::ConnectionEnded(EndReason::Closed));
            }
            if self.queued_bytes() < limit {
                return Ok(queue);
            }
            queue = match wait {
                Wait::Never => return Err(Error::WouldBlock),
                Wait::Forever => self.room.wait(queue).unwrap_or_else(|e| e.into_inner()),
                Wait::Until(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(Error::WouldBlock);
                    }
                    let (queue, _) = self
                        .room
                        .wait_timeout(queue, left)
                        .unwrap_or_else(|e| e.into_inner());
                    queue
                }
            };
        }
    }

    /// Becomes the writer (the state is free) and sends until the queue is empty or the system
    /// takes no more.
    fn write<'a>(&'a self, psock: &Arc<Psock>, mut queue: MutexGuard<'a, Queue>) {
        debug_assert_eq!(queue.state, State::Free);
        let Some(carrier) = queue.carrier.clone() else {
            return;
        };
        while !queue.messages.is_empty() {
            queue.state = State::Writing;
            let mut flight = std::mem::take(&mut queue.messages);
            let first_sent = queue.first_sent;
            drop(queue);
            let result = send_front(&carrier, &flight, first_sent);
            queue = self.lock();
            queue.state = State::Free;
            let sent = *result.as_ref().unwrap_or(&0);
            queue.first_sent = drop_sent(&mut flight, first_sent + sent);
            // What came meanwhile is behind.
            std::mem::swap(&mut queue.messages, &mut flight);
            queue.messages.append(&mut flight);
            self.set_queued(&queue, self.queued_bytes().saturating_sub(sent));
            // Given up by another thread meanwhile.
            if let Some(reason) = queue.ended {
                self.finish_abort(psock, queue, reason);
                return;
            }
            match result {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.block(psock, queue);
                    return;
                }
                Err(e) => {
                    let reason = EndReason::from_errno(e.raw_os_error().unwrap_or(libc::EIO));
                    self.fail(psock, queue, reason);
                    psock.tell_end(reason);
                    return;
                }
            }
        }
        if queue.then == Then::Close && self.kept_back.load(Ordering::Relaxed) == 0 {
            queue.ended.get_or_insert(EndReason::Closed);
            queue.carrier = None;
            carrier.shutdown_write();
        }
        let closed = queue.then == Then::Close && queue.carrier.is_none();
        drop(queue);
        if closed {
            Self::end_linger(psock);
        }
        self.room.notify_all();
        psock.mux.sendable();
        self.after_last(psock);
    }

    /// There is nothing more to send: a closing connection need not be kept for it.
    fn end_linger(psock: &Psock) {
        if let Some(background) = background::if_started() {
            background.end_linger(psock);
        }
    }

    /// The queue is empty: a peer that waits for nothing but the end may have it.
    fn after_last(&self, psock: &Arc<Psock>) {
        if psock.half_closed.load(Ordering::Acquire) {
            psock.mux.finish_half_closed(psock);
        }
    }

    /// The system takes no more: the background thread goes on when it does.
    fn block(&self, psock: &Arc<Psock>, mut queue: MutexGuard<'_, Queue>) {
        queue.state = State::Blocked;
        drop(queue);
        self.room.notify_all();
        psock.mux.sendable();
        background::get().watch_writable(psock);
    }

    /// The stream is dead, or given up. Messages that may go elsewhere do. (Its end is to be told
    /// after that.)
    fn fail(&self, psock: &Arc<Psock>, mut queue: MutexGuard<'_, Queue>, reason: EndReason) {
        queue.ended.get_or_insert(reason);
        self.open.store(false, Ordering::Relaxed);
        queue.carrier = None;
        queue.state = State::Free;
        queue.first_sent = 0;
        let messages = std::mem::take(&mut queue.messages);
        let again: Vec<_> = messages
            .into_iter()
            .filter(|message| !message.addressed)
            .collect();
        let again_bytes: usize = again.iter().map(Outgoing::len).sum();
        psock.count_sent(-signed(again.len()), -signed(again_bytes));
        self.set_queued(&queue, 0);
        drop(queue);
        self.room.notify_all();
        psock.mux.resend(again.into_iter());
        psock.mux.sendable();
        Self::end_linger(psock);
        // Whoever receives finds out what is left to read.
        psock.drain.store(true, Ordering::Relaxed);
        psock.notify();
    }
}

impl Queue {
    /// Adds a copy of a message at the end.
    fn append(&mut self, pieces: &[IoSlice<'_>], len: usize, addressed: bool) {
        if addressed
            && let Some(last) = self.messages.back_mut()
            && last.addressed
            && last.file.is_none()
            && last.bytes.len() + len <= GATHER_BYTES
        {
            pieces
                .iter()
                .for_each(|piece| last.bytes.extend_from_slice(piece));
            return;
        }
        self.messages.push_back(Outgoing {
            bytes: concat(pieces, 0),
            file: None,
            addressed,
        });
    }

    /// In debug builds: what is sent is one whole message to the connection's own parser.
    fn check(&self, pieces: &[IoSlice<'_>]) -> Result<()> {
        let Some(native) = self.framing.native() else {
            return Ok(());
        };
        let whole = concat(pieces, 0);
        match native.parse(&whole) {
            kcm_frame::Verdict::Message(frame) if frame.len == whole.len() as u64 => Ok(()),
            _ => Err(Error::NotOneMessage),
        }
    }
}

fn send(carrier: &Carrier, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
    let mut rest = pieces;
    let mut sent = 0;
    loop {
        let now = &rest[..rest.len().min(MOST_PIECES)];
        let asked: usize = now.iter().map(|piece| piece.len()).sum();
        match carrier.send(now, false) {
            Ok(n) => {
                sent += n;
                rest = &rest[now.len()..];
                if n < asked || rest.is_empty() {
                    return Ok(sent);
                }
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(sent),
            Err(e) => return Err(e),
        }
    }
}

/// Sends from the front of the queue, once.
fn send_front(
    carrier: &Carrier,
    messages: &VecDeque<Outgoing>,
    mut skip: usize,
) -> io::Result<usize> {
    let mut pieces = [IoSlice::new(&[]); MOST_PIECES];
    let (mut count, mut bytes) = (0, 0);
    let mut file_follows = false;
    for message in messages {
        let part = &message.bytes[skip.min(message.bytes.len())..];
        if !part.is_empty() {
            pieces[count] = IoSlice::new(part);
            count += 1;
            bytes += part.len();
        }
        if let Some((file, range)) = &message.file {
            if count == 0 {
                let start = range.start + (skip - message.bytes.len()) as u64;
                return send_file(carrier, file, &(start..range.end));
            }
            file_follows = true;
            break;
        }
        skip = 0;
        if count == MOST_PIECES || bytes >= MOST_BYTES {
            break;
        }
    }
    loop {
        match carrier.send(&pieces[..count], file_follows) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

fn send_file(carrier: &Carrier, file: &OwnedFd, range: &Range<u64>) -> io::Result<usize> {
    // The flag belongs to the socket, not to the call; a blocked receive is not disturbed by it,
    // and one that begins meanwhile looks again (`watch.rs`).
    if carrier.is_socket() {
        sys::set_nonblocking(carrier.as_fd(), true)?;
    }
    let result = carrier.send_file(file.as_fd(), range);
    if carrier.is_socket() {
        sys::set_nonblocking(carrier.as_fd(), false)?;
    }
    match result {
        // The file has become shorter than what the header has promised.
        Ok(0) => Err(io::Error::from_raw_os_error(libc::EIO)),
        result => result,
    }
}

/// Drops the messages of which all is sent; the bytes sent of the one that is first then.
fn drop_sent(messages: &mut VecDeque<Outgoing>, mut sent: usize) -> usize {
    while let Some(first) = messages.front() {
        let len = first.len();
        if sent < len {
            break;
        }
        sent -= len;
        messages.pop_front();
    }
    sent
}

/// For counting.
fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// All pieces as one, without the first `skip` bytes.
fn concat(pieces: &[IoSlice<'_>], mut skip: usize) -> Vec<u8> {
    let len: usize = pieces.iter().map(|piece| piece.len()).sum();
    let mut bytes = Vec::with_capacity(len.saturating_sub(skip));
    for piece in pieces {
        let from = skip.min(piece.len());
        bytes.extend_from_slice(&piece[from..]);
        skip -= from;
    }
    bytes
}
