//! A message socket of a multiplexor: receiving.

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    chunk::Row,
    connection::ConnectionId,
    delivery::{Hand, HandEnd, Lens},
    error::{Error, Result},
    gather,
    granted::Granted,
    hub::{Parker, SharedParker, Turn},
    lease::Lease,
    message::Message,
    mux::Mux,
    psock::Psock,
    readiness::Poll,
    receive::Origin,
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
    granted: Granted,
    /// The lengths of the messages in a batch's row. Here, for what is written in parts must not be
    /// moved as a whole at once: the processor waits for that.
    lens: Lens,
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
            granted: Granted::default(),
            lens: Lens::default(),
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
        Ok(self.recv_slow(1)?)
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
        let left = max.max(1);
        if self.partial.is_none() {
            let next = match &mut self.hand {
                Some(hand) => hand.next_row(&self.state, left, &mut self.lens),
                None => None,
            };
            if let Some(row) = next {
                return Ok(Batch::new(self, row, left));
            }
            let first = self.recv_slow(left)?;
            self.granted.push_front(first);
        }
        Ok(Batch::new(self, Row::empty(), left))
    }

    /// Whether a batch takes more than its share while others wait; off by default. Right when
    /// messages are so quickly done with that waking another thread for some of them costs more.
    pub fn set_batches_take_all(&mut self, on: bool) {
        self.granted.takes_all = on;
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
    fn recv_slow(&mut self, want: usize) -> Result<Message, NoMessage> {
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
        if let Some(message) = self.granted.next() {
            self.after_recv(true);
            return Ok(message);
        }
        // Replies to the last batch: a hand that ends below has sent its own.
        if self.hand.is_none() {
            gather::end();
        }
        self.finish_ordered();
        let mut back = None;
        if let Some(hand) = self.hand.take() {
            match hand.end(&self.mux, &self.state) {
                HandEnd::Back(psock) => back = Some(psock),
                HandEnd::Revoked(mut messages) => {
                    let first = messages.pop_front();
                    // A batch was left with them.
                    self.give_back(messages);
                    if let Some(first) = first {
                        return Ok(first);
                    }
                }
            }
        }
        let result = self.wait(back, want);
        self.after_recv(result.is_ok());
        result
    }

    /// Finds a message: in the connection whose claim this socket has, among what is ready, in
    /// another socket's lease, or by waiting.
    fn wait(&mut self, back: Option<Arc<Psock>>, want: usize) -> Result<Message, NoMessage> {
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
                        return Err(NoMessage::WouldBlock);
                    }
                }
                Got::TimedOut => return Err(NoMessage::WouldBlock),
                Got::Closed => return Err(NoMessage::Closed),
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
    fn wait_disabled(
        &mut self,
        nonblocking: bool,
        deadline: Option<Instant>,
    ) -> Result<Message, NoMessage> {
        /// Between two looks whether it is enabled again: nobody waits for this in a hurry.
        const LOOK: Duration = Duration::from_millis(5);
        loop {
            if self.mux.is_closed() {
                return Err(NoMessage::Closed);
            }
            if !self.state.is_receive_disabled() {
                return self.wait(None, 1);
            }
            if nonblocking || deadline.is_some_and(|at| at <= Instant::now()) {
                return Err(NoMessage::WouldBlock);
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

/// Why a receive has no message. Small, and not [`Error`] itself: the two ways through
/// [`Socket::recv`] would then meet in memory, where a message that was just written in parts is
/// read as a whole, for which the processor waits (8 ns a message).
enum NoMessage {
    WouldBlock,
    Closed,
}

impl From<NoMessage> for Error {
    #[cold]
    fn from(reason: NoMessage) -> Self {
        match reason {
            NoMessage::WouldBlock => Self::WouldBlock,
            NoMessage::Closed => Self::Closed,
        }
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
        let mut messages = self.granted.take_all();
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
    /// The next of them; `Socket::lens` has their lengths.
    row: Row<Origin>,
    /// Which of the lengths is next.
    next: usize,
    /// How many may be taken beside the row.
    left: usize,
    socket: &'a mut Socket,
}

impl<'a> Batch<'a> {
    fn new(socket: &'a mut Socket, row: Row<Origin>, max: usize) -> Self {
        Self {
            next: 0,
            left: max - row.views(),
            row,
            socket,
        }
    }
}

impl Iterator for Batch<'_> {
    type Item = Message;

    #[inline(always)]
    fn next(&mut self) -> Option<Message> {
        if self.row.views() == 0 {
            // By value: a batch whose address goes elsewhere could not stay in registers.
            match self.socket.more_of_batch(self.left) {
                More::Row(row) => {
                    self.left -= row.views();
                    self.next = 0;
                    self.row = row;
                }
                More::One(message) => {
                    self.left -= 1;
                    return Some(message);
                }
                More::None => {
                    self.left = 0;
                    return None;
                }
            }
        }
        let len = *self.socket.lens.get(self.next)?;
        self.next += 1;
        Some(Message::new(self.row.take(len as usize)))
    }
}

/// What a batch goes on with.
enum More {
    Row(Row<Origin>),
    One(Message),
    None,
}

impl Socket {
    /// More for a batch that may take `left`.
    #[inline(never)]
    fn more_of_batch(&mut self, left: usize) -> More {
        if left == 0 {
            return More::None;
        }
        if let Some((message, from)) = self.partial.take() {
            return More::One(message.share_from(from));
        }
        if let Some(message) = self.granted.next_single() {
            return More::One(message);
        }
        let row = match &mut self.hand {
            Some(hand) => hand.next_row(&self.state, left, &mut self.lens),
            None => self.granted.next_row(left, &mut self.lens),
        };
        row.map_or(More::None, More::Row)
    }

    /// A batch is over; what was not taken from it is for whoever asks next.
    #[inline(never)]
    fn end_batch(&mut self, row: Row<Origin>, next: usize) {
        if row.views() > 0 || !self.granted.is_empty() {
            self.return_rest(row, next);
        }
        self.after_recv(true);
    }

    #[cold]
    fn return_rest(&mut self, mut row: Row<Origin>, next: usize) {
        let mut messages = self.granted.take_all();
        match &mut self.hand {
            // Rows are of the walk, what was granted is not.
            Some(hand) if messages.is_empty() => {
                if hand.put_back(&self.state, row) {
                    return;
                }
            }
            _ => {
                for &len in &self.lens[next..][..row.views()] {
                    messages.push_back(Message::new(row.take(len as usize)));
                }
            }
        }
        let mut back = None;
        match self
            .hand
            .take()
            .map(|hand| hand.end(&self.mux, &self.state))
        {
            Some(HandEnd::Back(psock)) => back = Some(psock),
            Some(HandEnd::Revoked(more)) => messages.extend(more),
            None => {}
        }
        self.give_back(messages);
        if let Some(psock) = back {
            psock.release(true);
        }
    }
}

impl Drop for Batch<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        let row = std::mem::replace(&mut self.row, Row::empty());
        self.socket.end_batch(row, self.next);
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
