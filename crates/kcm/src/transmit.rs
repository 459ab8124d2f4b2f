//! The sending side of a connection.
//!
//! Any thread may send. The one that finds nobody writing becomes the *writer*: it sends its own
//! message straight from the caller's memory, without a copy, and then whatever others have left
//! in the queue meanwhile, many messages in one system call (`write_queue.rs`). No lock is held
//! over a system call, and no message is ever mixed with another.
//!
//! What the system does not take is kept (a copy of the rest) and sent by the background thread as
//! soon as it does; so a call that has returned needs no further help, and a peer that does not
//! read holds up nobody. A new message has to wait while more than the limit is queued; the one
//! that crosses the limit goes in whole, as in the kernel.
//!
//! Here the queue meets the rest of the connection: what each call of it leaves to be done is done
//! here, without any of its locks ([`Transmit::see_to`]).

use std::{
    io::IoSlice,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use kcm_frame::{Framing, Verdict};

use crate::{
    background,
    error::{Error, Result},
    event::EndReason,
    outgoing::{GATHER_BYTES, Outgoing, concat},
    psock::Psock,
    sync::pause,
    transport::Carrier,
    write_queue::{Left, Outcome, Wait, WriteQueue},
};

/// (In this order: `psock.rs`.)
#[repr(C)]
pub(crate) struct Transmit {
    /// For the check in debug builds.
    framing: Mutex<Framing>,
    /// Messages and bytes that count among those of connections that are gone.
    counted_as_gone: Mutex<(u64, u64)>,
    /// The connection has left the multiplexor.
    gone: AtomicBool,
    queue: WriteQueue<Arc<Carrier>>,
}

impl Transmit {
    pub(crate) fn new(carrier: Arc<Carrier>, framing: &Framing, limit_bytes: usize) -> Self {
        Self {
            queue: WriteQueue::new(carrier, limit_bytes),
            framing: Mutex::new(framing.clone()),
            gone: AtomicBool::new(false),
            counted_as_gone: Mutex::default(),
        }
    }

    /// Bytes that wait here.
    #[inline]
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queue.queued_bytes()
    }

    /// Whether new messages are taken at all.
    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.queue.is_open()
    }

    /// Whether a new message would be taken at once; `None` when never again.
    pub(crate) fn has_room(&self, limit_bytes: usize) -> Option<bool> {
        self.is_open().then(|| self.queued_bytes() < limit_bytes)
    }

    /// The stream, until it is closed or given back.
    pub(crate) fn carrier(&self) -> Option<Arc<Carrier>> {
        self.queue.stream()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.queue.has_ended()
    }

    /// Whether nothing waits here, nor with a thread that writes or keeps replies back.
    pub(crate) fn has_sent_all(&self) -> bool {
        self.queue.has_sent_all()
    }

    /// Messages and bytes taken to be sent.
    pub(crate) fn taken(&self) -> (u64, u64) {
        self.queue.taken()
    }

    pub(crate) fn set_framing(&self, framing: &Framing) {
        *self.framing.lock().unwrap_or_else(|e| e.into_inner()) = framing.clone();
    }

    /// Sends one message, straight from the caller's memory as far as the system takes it at once.
    /// `addressed`: it must go to this connection; `hold`: it may wait for [`Transmit::flush`].
    #[inline]
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
        if !hold {
            self.check(pieces)?;
            return self.sent(psock, self.queue.send(pieces, addressed, wait));
        }
        self.check(pieces)?;
        let (result, left) = self.queue.hold(pieces, addressed, wait);
        self.see_to(psock, left);
        result
    }

    /// As above, a message to this connection, from a thread that keeps nothing back for it.
    #[inline(always)]
    pub(crate) fn send_now(&self, psock: &Arc<Psock>, message: &[u8], wait: Wait) -> Result<()> {
        if message.is_empty() {
            return Ok(());
        }
        self.check(&[IoSlice::new(message)])?;
        self.sent(psock, self.queue.send_one(message, wait))
    }

    /// A send is over.
    #[inline]
    fn sent(&self, psock: &Arc<Psock>, outcome: Outcome<Arc<Carrier>>) -> Result<()> {
        match outcome {
            None => Ok(()),
            Some(outcome) => self.see_to_outcome(psock, *outcome),
        }
    }

    #[cold]
    #[inline(never)]
    fn see_to_outcome(
        &self,
        psock: &Arc<Psock>,
        (result, left): (Result<()>, Left<Arc<Carrier>>),
    ) -> Result<()> {
        self.see_to(psock, left);
        result
    }

    /// Sends what was held.
    pub(crate) fn flush(&self, psock: &Arc<Psock>) {
        self.see_to(psock, self.queue.flush());
    }

    /// Whether a reply may be kept back for the next ones: the connection is open, and has room
    /// for them.
    #[inline]
    pub(crate) fn may_keep_back(&self, pieces: &[IoSlice<'_>]) -> Result<bool> {
        // (An empty one is none.)
        if pieces.iter().all(|piece| piece.is_empty()) {
            return Ok(false);
        }
        self.check(pieces)?;
        Ok(self.is_open() && self.queued_bytes() < GATHER_BYTES)
    }

    /// A thread begins to keep replies back; it ends with [`Transmit::send_kept`]. False: the
    /// connection takes none any more.
    #[must_use]
    pub(crate) fn keep_back(&self) -> bool {
        self.queue.keep_back()
    }

    /// Sends replies that were kept back for one another.
    pub(crate) fn send_kept(&self, psock: &Arc<Psock>, bytes: &[u8], messages: usize) {
        self.see_to(psock, self.queue.send_kept(bytes, messages));
    }

    /// Queues a message and writes.
    pub(crate) fn send_outgoing(
        &self,
        psock: &Arc<Psock>,
        message: Outgoing,
        wait: Wait,
    ) -> std::result::Result<(), Box<(Error, Outgoing)>> {
        if let Err(e) = self.check_front(message.bytes(), message.len()) {
            return Err(Box::new((e, message)));
        }
        let left = self.queue.push(message, wait)?;
        self.see_to(psock, left);
        Ok(())
    }

    /// Takes over a message of a connection that died; gives it back when this one has ended too.
    pub(crate) fn send_again(
        &self,
        psock: &Arc<Psock>,
        message: Outgoing,
    ) -> std::result::Result<(), Outgoing> {
        let left = self.queue.push_again(message)?;
        self.see_to(psock, left);
        Ok(())
    }

    /// The system may take more again.
    pub(crate) fn writable(&self, psock: &Arc<Psock>) {
        self.see_to(psock, self.queue.writable());
    }

    /// Takes no new message, and closes when all is sent. Whether it is closed already.
    pub(crate) fn close(&self, psock: &Arc<Psock>) -> bool {
        self.see_to(psock, self.queue.close());
        self.carrier().is_none()
    }

    /// Gives up what is still queued, takes the connection out of the multiplexor, and tells its
    /// end; a thread that is writing at this moment does so when it is back.
    pub(crate) fn abort(&self, psock: &Arc<Psock>, reason: EndReason) {
        self.see_to(psock, self.queue.abort(reason));
    }

    /// Waits until all is sent, at most until `deadline`, and takes the stream away.
    pub(crate) fn detach(&self, deadline: Instant) -> Result<Option<Arc<Carrier>>> {
        self.queue.detach(deadline)
    }

    /// The peer has closed its direction: whenever all is sent, that may have been the last answer
    /// it waits for (`Psock::half_closed` is set).
    pub(crate) fn is_half_closed(&self) {
        self.queue.look_always();
    }

    /// The connection has left the multiplexor: what it has sent, and will still send, counts among
    /// that of the connections that are gone.
    pub(crate) fn count_as_gone(&self, psock: &Psock) {
        self.gone.store(true, Ordering::Relaxed);
        // Who begins to write after this comes to `see_to`, and so does who writes now.
        self.queue.look_always();
        self.count_late(psock);
    }

    fn count_late(&self, psock: &Psock) {
        let mut counted = self
            .counted_as_gone
            .lock()
            .unwrap_or_else(|e| e.into_inner());
        let (messages, bytes) = self.taken();
        let more = |now: u64, before: u64| now.wrapping_sub(before);
        psock
            .mux
            .counters
            .count_late(more(messages, counted.0), more(bytes, counted.1));
        *counted = (messages, bytes);
    }

    /// Does what a call of the queue has left to be done.
    #[inline]
    fn see_to(&self, psock: &Arc<Psock>, left: Left<Arc<Carrier>>) {
        if !matches!(left, Left::Plain) {
            self.see_to_rest(psock, left);
        }
    }

    #[cold]
    fn see_to_rest(&self, psock: &Arc<Psock>, left: Left<Arc<Carrier>>) {
        pause();
        if self.gone.load(Ordering::Relaxed) {
            self.count_late(psock);
        }
        match left {
            Left::Plain => {}
            Left::Queued => {
                if self.queued_bytes() >= psock.mux.limits.send_buffer_bytes {
                    psock.mux.sendable();
                }
            }
            Left::Held => background::get().flush_later(psock),
            Left::Empty => {
                psock.mux.sendable();
                if psock.half_closed.load(Ordering::Acquire) && psock.is_answered() {
                    background::get().answered(psock);
                }
            }
            Left::Blocked => {
                psock.mux.sendable();
                background::get().watch_writable(psock);
            }
            Left::Closed(carrier) => {
                background::see_off(carrier, psock.mux.linger);
                end_linger(psock);
                psock.mux.sendable();
            }
            // Its end is told by who ended it, once that is done.
            Left::Over => drop(psock.mux.remove_psock(psock.id)),
            Left::Ended {
                reason,
                given_up,
                again,
            } => {
                psock.mux.resend(again.into_iter());
                psock.mux.sendable();
                end_linger(psock);
                // Whoever receives finds out what is left to read.
                psock.drain.store(true, Ordering::Relaxed);
                psock.notify();
                if given_up {
                    psock.mux.remove_psock(psock.id);
                }
                // After that: who hears of the end finds all else done.
                psock.tell_end(reason);
            }
        }
    }

    /// In debug builds: what is sent is one whole message to the connection's own parser.
    #[inline]
    fn check(&self, pieces: &[IoSlice<'_>]) -> Result<()> {
        if !cfg!(debug_assertions) {
            return Ok(());
        }
        let whole = concat(pieces, 0);
        self.check_front(&whole, whole.len())
    }

    /// The same of a message of `len` bytes that begins with these.
    fn check_front(&self, front: &[u8], len: usize) -> Result<()> {
        if !cfg!(debug_assertions) || !self.is_open() {
            return Ok(());
        }
        let framing = self.framing.lock().unwrap_or_else(|e| e.into_inner());
        let Some(native) = framing.native() else {
            return Ok(());
        };
        match native.parse(front) {
            Verdict::Message(frame) if frame.len == len as u64 => Ok(()),
            // The length stands in the file.
            Verdict::NeedMore(_) if front.len() < len => Ok(()),
            _ => Err(Error::NotOneMessage),
        }
    }
}

/// There is nothing more to send: a closing connection need not be kept for it.
fn end_linger(psock: &Psock) {
    if let Some(background) = background::if_started() {
        background.end_linger(psock);
    }
}
