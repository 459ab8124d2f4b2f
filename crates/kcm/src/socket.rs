//! A message socket of a multiplexor: receiving.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    connection::ConnectionId,
    delivery::{Hand, HandEnd},
    error::{Error, Result},
    gather,
    hub::{Parker, SharedParker, Turn},
    lease::Lease,
    message::Message,
    mux::Mux,
    psock::Psock,
    readiness::Poll,
    send::OpenMessage,
    spin::Spin,
    watch::Known,
};

/// What a read of less than a message does with the rest, as for the kernel's sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketType {
    /// The rest of a message that did not fit is dropped; a send is a message unless
    /// [`crate::SendFlags::MORE`] says that it goes on.
    Dgram,
    /// The rest stays for the next read; a message ends at [`crate::SendFlags::EOR`].
    SeqPacket,
}

/// What [`Socket::recv_into`] did.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Bytes copied.
    pub len_bytes: usize,
    /// The message's whole length.
    pub message_bytes: usize,
    /// Datagram sockets: the rest was dropped (`MSG_TRUNC`).
    pub truncated: bool,
    /// The message ends here (`MSG_EOR`).
    pub end_of_message: bool,
    /// Where it came from.
    pub connection: ConnectionId,
}

/// A message socket: receives from, and sends to, any connection of its multiplexor.
///
/// One thread at a time receives on a socket (it takes `&mut self`); [`Socket::try_clone`] makes
/// another for another thread. While a thread waits, no message is left behind a busy one: what
/// one socket has not been given yet, any other can take. A message that is given belongs to the
/// socket's thread, which may drop it, keep it, or send it elsewhere.
///
/// Dropping a socket loses nothing: messages that it was not given yet go to the others.
pub struct Socket {
    pub(crate) mux: Arc<Mux>,
    pub(crate) state: Arc<SocketState>,
    /// A burst that this socket walks through.
    hand: Option<Hand>,
    /// Messages granted to a batch.
    granted: VecDeque<Message>,
    /// A message that was looked at, or read in part, and how far.
    partial: Option<(Message, usize)>,
    /// An ordered connection whose message this socket has.
    ordered: Option<Arc<Psock>>,
    /// The open message of `send_with`.
    pub(crate) open: OpenMessage,
    parker: SharedParker,
    spin: Spin,
    left_watch_at: Option<Instant>,
    /// The connection that this socket has last been alone with.
    known: Option<Known>,
    /// It retains the watch (`solo.rs`), unless somebody has broken that off.
    solo: bool,
    /// Messages taken since the last look for events of other connections.
    takes: u32,
}

/// What others see of a socket.
pub(crate) struct SocketState {
    pub(crate) index: usize,
    pub(crate) lease: Lease<Arc<Psock>>,
    pub(crate) poll: Poll,
    pub(crate) receive_disabled: AtomicBool,
    nonblocking: AtomicBool,
    /// In ns; 0: none.
    read_timeout_ns: AtomicU64,
    write_timeout_ns: AtomicU64,
    pub(crate) waiting: AtomicBool,
    pub(crate) counters: crate::stats::SocketCounters,
    /// Where the last unaddressed message went.
    pub(crate) last_sent_to: AtomicU64,
}

impl SocketState {
    /// Whether a receive is more than to wait until there is a message.
    fn has_settings(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
            || self.receive_disabled.load(Ordering::Relaxed)
            || self.read_timeout_ns.load(Ordering::Relaxed) != 0
    }
}

/// Messages taken from the ready list before the other connections are looked at again.
const TAKES_BETWEEN_LOOKS: u32 = 64;

impl Socket {
    pub(crate) fn new(mux: Arc<Mux>) -> Result<Self> {
        let poll = Poll::new()?;
        let state = mux.add_socket(|index| SocketState {
            index,
            lease: Lease::new(),
            poll,
            receive_disabled: AtomicBool::new(false),
            nonblocking: AtomicBool::new(false),
            read_timeout_ns: AtomicU64::new(0),
            write_timeout_ns: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            counters: crate::stats::SocketCounters::default(),
            last_sent_to: AtomicU64::new(0),
        })?;
        mux.add_handle();
        Ok(Self {
            mux,
            state,
            hand: None,
            granted: VecDeque::new(),
            partial: None,
            ordered: None,
            open: OpenMessage::default(),
            parker: Parker::new(),
            spin: Spin::default(),
            left_watch_at: None,
            known: None,
            solo: false,
            takes: 0,
        })
    }

    /// Another socket of the same multiplexor (`SIOCKCMCLONE`), with settings of its own.
    ///
    /// # Errors
    ///
    /// As [`crate::Multiplexor::socket`].
    pub fn try_clone(&self) -> Result<Self> {
        Self::new(self.mux.clone())
    }

    /// The next message. Waits for one, unless the socket is non-blocking or its read timeout
    /// passes.
    ///
    /// # Errors
    ///
    /// `EAGAIN` ([`Error::WouldBlock`]); `ESHUTDOWN` ([`Error::Closed`]). The end of a connection
    /// is no error here: it is an event ([`crate::Multiplexor::next_event`]).
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Message> {
        if let Some(hand) = &mut self.hand
            && self.partial.is_none()
            && let Some(message) = hand.next(&self.state)
        {
            return Ok(message);
        }
        self.recv_slow(1)
    }

    /// The next message, copied: one message, or, on a seqpacket socket, the next part of it.
    ///
    /// # Errors
    ///
    /// As [`Socket::recv`].
    pub fn recv_into(&mut self, buffer: &mut [u8]) -> Result<Received> {
        let (message, from) = match self.partial.take() {
            Some(partial) => partial,
            None => (self.recv()?, 0),
        };
        let rest = &message[from..];
        let len = rest.len().min(buffer.len());
        buffer[..len].copy_from_slice(&rest[..len]);
        let whole = len == rest.len();
        let keep = !whole && self.mux.socket_type == SocketType::SeqPacket;
        let received = Received {
            len_bytes: len,
            message_bytes: message.len(),
            truncated: !whole && !keep,
            end_of_message: !keep,
            connection: message.connection(),
        };
        if keep {
            self.partial = Some((message, from + len));
        }
        self.after_recv(true);
        Ok(received)
    }

    /// Up to `max` messages at once: waits for the first, and takes others that are there,
    /// from the same burst. While other sockets wait it takes no more than its share.
    ///
    /// Gives an iterator; what is not taken from it stays for the next receive, of any socket.
    ///
    /// # Errors
    ///
    /// As [`Socket::recv`].
    pub fn recv_batch(&mut self, max: usize) -> Result<Batch<'_>> {
        let max = max.max(1);
        let first = match &mut self.hand {
            Some(hand) if self.partial.is_none() => hand.next(&self.state),
            _ => None,
        };
        let first = match first {
            Some(first) => First::Fresh(first),
            None if self.partial.is_some() => First::Begun,
            None => First::Fresh(self.recv_slow(max)?),
        };
        Ok(Batch {
            left: max - 1,
            first,
            socket: self,
        })
    }

    /// The next message, or what is left of one that was read in part; it stays, with this socket,
    /// to be received.
    ///
    /// # Errors
    ///
    /// As [`Socket::recv`].
    pub fn peek(&mut self) -> Result<Message> {
        if self.partial.is_none() {
            let message = self.recv()?;
            self.partial = Some((message, 0));
            self.after_recv(true);
        }
        match &self.partial {
            Some((message, from)) => Ok(message.share_from(*from)),
            None => Err(Error::WouldBlock),
        }
    }

    /// Says that this socket is done with what it received, without asking for more: the next
    /// message of an ordered connection may go to others ([`crate::Connection::set_ordered`]), and
    /// replies kept back for one another go out. (A message that was only looked at, or read in
    /// part, is still to be received: its connection waits.)
    pub fn done(&mut self) {
        if self.partial.is_none() {
            self.finish_ordered();
        }
        gather::end();
        if let Some(hand) = &self.hand {
            gather::begin(&hand.psock);
        }
    }

    /// How long a receive waits; `None` (the default): for ever. Then it is `EAGAIN`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a zero duration, as in `std::net`.
    pub fn set_read_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        set_timeout(&self.state.read_timeout_ns, timeout)
    }

    /// How long a send waits for room; `None` (the default): for ever. Then it is `EAGAIN`.
    ///
    /// # Errors
    ///
    /// `EINVAL` for a zero duration, as in `std::net`.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> Result<()> {
        set_timeout(&self.state.write_timeout_ns, timeout)
    }

    /// Whether calls on this socket return `EAGAIN` instead of waiting.
    ///
    /// # Errors
    ///
    /// None today; as in `std::net`.
    pub fn set_nonblocking(&self, nonblocking: bool) -> Result<()> {
        self.state.nonblocking.store(nonblocking, Ordering::Relaxed);
        Ok(())
    }

    /// `KCM_RECV_DISABLE`: while set, this socket is given no message. Moves nothing: messages
    /// are with their connections, for the other sockets. A receive that waits already is not
    /// disturbed.
    pub fn set_receive_disabled(&self, disabled: bool) {
        self.state
            .receive_disabled
            .store(disabled, Ordering::Relaxed);
        if disabled {
            self.mux.revoke_lease_from(&self.state);
        } else {
            self.state
                .poll
                .after_recv(&self.mux, &self.state, false, false);
        }
    }

    pub(crate) fn is_nonblocking(&self) -> bool {
        self.state.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn write_deadline(&self) -> Option<Instant> {
        deadline(&self.state.write_timeout_ns)
    }

    /// Everything but the next message of a burst in hand.
    #[cold]
    #[inline(never)]
    fn recv_slow(&mut self, want: usize) -> Result<Message> {
        if self.solo {
            if let Some(known) = &self.known
                && !self.state.has_settings()
                && self.partial.is_none()
                && let Some(message) = self.mux.receive_solo(known, &self.state, &mut self.spin)
            {
                return Ok(message);
            }
            self.solo = false;
            self.mux.break_solo();
        }
        if let Some((message, from)) = self.partial.take() {
            self.after_recv(true);
            return Ok(message.share_from(from));
        }
        if let Some(message) = self.granted.pop_front() {
            self.after_recv(true);
            return Ok(message);
        }
        self.finish_ordered();
        let mut back = None;
        if let Some(hand) = self.hand.take() {
            match hand.end(&self.mux, &self.state) {
                HandEnd::Back(psock) => back = Some(psock),
                HandEnd::Revoked(Some(message)) => return Ok(message),
                HandEnd::Revoked(None) => {}
            }
        }
        let result = self.wait(back, want);
        self.after_recv(result.is_ok());
        result
    }

    /// Finds a message: in the connection whose claim this socket has, among what is ready, in
    /// another socket's lease, or by waiting.
    fn wait(&mut self, back: Option<Arc<Psock>>, want: usize) -> Result<Message> {
        if let Some(psock) = back {
            // The others have their turn first.
            if self.mux.hub.ready() > 0 || self.state.is_receive_disabled() {
                psock.release(true);
            } else if let Some(message) = self.take(psock, want) {
                return Ok(message);
            }
        }
        let nonblocking = self.is_nonblocking();
        let deadline = deadline(&self.state.read_timeout_ns);
        if self.state.is_receive_disabled() {
            return self.wait_disabled(nonblocking, deadline);
        }
        let mut looked = false;
        loop {
            self.takes += 1;
            if self.takes >= TAKES_BETWEEN_LOOKS {
                self.takes = 0;
                if self.mux.psock_count() > 1 {
                    self.mux.harvest_for_all();
                }
            }
            if let Some(psock) = self.mux.hub.pop() {
                psock.claim.claim();
                if let Some(message) = self.take(psock, want) {
                    return Ok(message);
                }
                continue;
            }
            match self.turn(nonblocking, &mut looked, deadline) {
                Got::Psock(psock) => {
                    if let Some(message) = self.take(psock, want) {
                        return Ok(message);
                    }
                }
                Got::Nothing => {
                    if nonblocking && self.mux.hub.ready() == 0 {
                        return Err(Error::WouldBlock);
                    }
                }
                Got::TimedOut => return Err(Error::WouldBlock),
                Got::Closed => return Err(Error::Closed),
            }
        }
    }

    /// Waits, counted as waiting, for something to work on.
    fn turn(&mut self, nonblocking: bool, looked: &mut bool, deadline: Option<Instant>) -> Got {
        let Self {
            mux,
            state,
            parker,
            spin,
            left_watch_at,
            known,
            ..
        } = self;
        if let Some(left_at) = left_watch_at.take() {
            mux.watch.note_absence(left_at);
        }
        let _waiting = mux.hub.begin_waiting();
        mux.break_solo();
        state.waiting.store(true, Ordering::Relaxed);
        let got = match mux.revoke_a_lease() {
            Some(psock) => Got::Psock(psock),
            None => {
                let turn = if nonblocking {
                    mux.hub.try_turn()
                } else {
                    mux.hub.turn(parker, deadline)
                };
                match turn {
                    Turn::Item(psock) => {
                        psock.claim.claim();
                        Got::Psock(psock)
                    }
                    Turn::Watch => {
                        let psock = if nonblocking {
                            mux.glance(looked)
                        } else {
                            mux.watch(spin, left_watch_at, known, deadline)
                        };
                        psock.map_or(Got::Nothing, Got::Psock)
                    }
                    Turn::TimedOut if nonblocking => {
                        mux.glance_beside().map_or(Got::TimedOut, Got::Psock)
                    }
                    Turn::TimedOut => Got::TimedOut,
                    Turn::Closed => Got::Closed,
                }
            }
        };
        state.waiting.store(false, Ordering::Relaxed);
        match got {
            Got::Nothing if deadline.is_some_and(|at| at <= Instant::now()) => Got::TimedOut,
            got => got,
        }
    }

    /// A disabled socket is given nothing, however long it waits.
    fn wait_disabled(&mut self, nonblocking: bool, deadline: Option<Instant>) -> Result<Message> {
        /// Between two looks whether it is enabled again: nobody waits for this in a hurry.
        const LOOK: Duration = Duration::from_millis(5);
        loop {
            if self.mux.is_closed() {
                return Err(Error::Closed);
            }
            if !self.state.is_receive_disabled() {
                return self.wait(None, 1);
            }
            if nonblocking || deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(Error::WouldBlock);
            }
            std::thread::sleep(LOOK);
        }
    }

    fn take(&mut self, psock: Arc<Psock>, want: usize) -> Option<Message> {
        let generation = self.mux.generation();
        let taken = self
            .mux
            .take(&psock, &self.state, want, &mut self.granted)?;
        if self.mux.psock_count() == 1 {
            if taken.hand.is_none() && taken.ordered.is_none() && self.mux.socket_count() == 1 {
                self.solo = self.mux.establish_solo(&psock);
            }
            self.known = Some(Known { psock, generation });
        }
        self.hand = taken.hand;
        self.ordered = taken.ordered;
        Some(taken.message)
    }

    /// Messages that this socket was given are for whoever asks next; then it is done with their
    /// connection.
    fn give_back(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.state.counters.returned(message.len());
            message.psock().clone().give_back(message);
        }
        if self.partial.is_none() {
            self.finish_ordered();
        }
    }

    /// The ordered connection that this socket was working on may go on.
    fn finish_ordered(&mut self) {
        if let Some(psock) = self.ordered.take() {
            psock.release_order();
        }
    }

    /// Keeps the descriptor true to what is there.
    fn after_recv(&self, found: bool) {
        if self.state.poll.is_polled() {
            self.state
                .poll
                .after_recv(&self.mux, &self.state, found, self.has_messages());
        }
    }

    fn has_messages(&self) -> bool {
        self.hand.is_some() || !self.granted.is_empty() || self.partial.is_some()
    }
}

enum Got {
    Psock(Arc<Psock>),
    Nothing,
    TimedOut,
    Closed,
}

/// Polls readable (`EPOLLIN`) when a message can be taken, in an event loop of the caller's: level-
/// or edge-triggered, with poll, epoll, or an async runtime. Make the socket non-blocking. After
/// a receive that said `EAGAIN` it is readable again only when more bytes have come, and at most
/// once for each arrival when these do not complete a message. The descriptor is the socket's:
/// only poll it.
impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state
            .poll
            .fd(&self.mux, &self.state, self.has_messages())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.solo {
            self.mux.break_solo();
        }
        let mut messages = std::mem::take(&mut self.granted);
        messages.extend(self.partial.take().map(|(message, _)| message));
        let mut back = None;
        if let Some(hand) = self.hand.take() {
            match hand.end(&self.mux, &self.state) {
                HandEnd::Back(psock) => back = Some(psock),
                HandEnd::Revoked(message) => messages.extend(message),
            }
        }
        self.give_back(messages);
        if let Some(psock) = back {
            psock.release(true);
        }
        self.state.poll.close(&self.mux, &self.state);
        self.mux.counters.absorb_socket(&self.state.counters);
        self.mux.remove_socket(self.state.index);
        self.mux.drop_handle();
    }
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket")
            .field("index", &self.state.index)
            .finish_non_exhaustive()
    }
}

/// Messages taken together; from [`Socket::recv_batch`].
pub struct Batch<'a> {
    socket: &'a mut Socket,
    first: First,
    left: usize,
}

/// The first message of a batch.
enum First {
    Taken,
    Fresh(Message),
    /// The one that the socket has looked at, or read in part; it stays there until it is taken.
    Begun,
}

impl Batch<'_> {
    #[cold]
    fn take_first(&mut self) -> Option<Message> {
        match std::mem::replace(&mut self.first, First::Taken) {
            First::Taken => None,
            First::Fresh(message) => Some(message),
            First::Begun => {
                let (message, from) = self.socket.partial.take()?;
                Some(message.share_from(from))
            }
        }
    }
}

impl Iterator for Batch<'_> {
    type Item = Message;

    #[inline(always)]
    fn next(&mut self) -> Option<Message> {
        if !matches!(self.first, First::Taken) {
            return self.take_first();
        }
        if self.left == 0 {
            return None;
        }
        self.left -= 1;
        if let Some(hand) = &mut self.socket.hand {
            return hand.next(&self.socket.state);
        }
        self.socket.granted.pop_front()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        let socket = &mut *self.socket;
        let first = match std::mem::replace(&mut self.first, First::Taken) {
            First::Fresh(first) => Some(first),
            First::Begun | First::Taken => None,
        };
        if first.is_some() || !socket.granted.is_empty() {
            // Not wanted now: for whoever asks next, before what comes behind.
            let hand = if first.is_some() {
                socket.hand.take()
            } else {
                None
            };
            let mut messages = std::mem::take(&mut socket.granted);
            messages.extend(first);
            let mut back = None;
            match hand.map(|hand| hand.end(&socket.mux, &socket.state)) {
                Some(HandEnd::Back(psock)) => back = Some(psock),
                Some(HandEnd::Revoked(message)) => messages.extend(message),
                None => {}
            }
            socket.give_back(messages);
            if let Some(psock) = back {
                psock.release(true);
            }
        }
        socket.after_recv(true);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").finish_non_exhaustive()
    }
}

fn set_timeout(place: &AtomicU64, timeout: Option<Duration>) -> Result<()> {
    let ns = match timeout {
        None => 0,
        Some(Duration::ZERO) => {
            return Err(Error::System(std::io::Error::from_raw_os_error(
                libc::EINVAL,
            )));
        }
        Some(timeout) => u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
    };
    place.store(ns, Ordering::Relaxed);
    Ok(())
}

fn deadline(place: &AtomicU64) -> Option<Instant> {
    match place.load(Ordering::Relaxed) {
        0 => None,
        ns => Instant::now().checked_add(Duration::from_nanos(ns)),
    }
}
