//! A message socket of a multiplexor: receiving.

use std::{
    fmt,
    hint::cold_path,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

mod batch;
mod next;

pub use batch::Batch;

use crate::{
    basket::{Basket, OthersBasket},
    connection::ConnectionId,
    crowd::{Pace, Place},
    error::{Error, Result},
    gather,
    granted::Granted,
    hub::{Parker, SharedParker},
    lease::Lease,
    message::Message,
    mux::Mux,
    psock::Psock,
    readiness::Poll,
    send::OpenMessage,
    spin::Spin,
    walk::{Hand, Leased},
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
/// Where a parser gives messages keys, those of one key go to one socket while it has any of that key
/// in hand: until it asks again, or says [`Socket::done`]. A socket that has not asked for a second
/// ([`crate::Builder::key_patience`]) counts as stuck, and the next message of the key goes to
/// another. Where a parser gives classes, connections with a message of a higher class at the front
/// have their turn first; those of others have one turn of 17 at least.
///
/// Dropping a socket loses nothing: messages that it was not given yet go to the others.
pub struct Socket {
    pub(crate) mux: Arc<Mux>,
    pub(crate) state: Arc<SocketState>,
    /// A burst that this socket walks through.
    hand: Option<Hand>,
    /// Messages granted to a batch.
    granted: Granted,
    /// A message that was looked at, or read in part, and how far.
    partial: Option<(Message, usize)>,
    /// An ordered connection whose message this socket has.
    ordered: Option<Arc<Psock>>,
    /// It has messages with a key in hand (`steering.rs`).
    keyed: bool,
    /// The open message of `send_with`.
    pub(crate) open: OpenMessage,
    spin: Spin,
    left_watch_at: Option<Instant>,
    pace: Pace,
    /// The connection that this socket has last been alone with.
    known: Option<Known>,
    /// It retains the watch (`solo.rs`), unless somebody has broken that off.
    solo: bool,
    /// Connections that it has harvested for itself.
    basket: Basket<Arc<Psock>>,
    /// Its last message came alone, and nothing else was in hand then.
    lone: bool,
    /// Messages taken since the last look for events of other connections.
    takes: u32,
}

/// What others see of a socket.
pub(crate) struct SocketState {
    pub(crate) index: usize,
    pub(crate) lease: Lease<Leased>,
    pub(crate) basket: OthersBasket<Arc<Psock>>,
    pub(crate) poll: Poll,
    pub(crate) receive_disabled: AtomicBool,
    nonblocking: AtomicBool,
    /// In ns; 0: none.
    read_timeout_ns: AtomicU64,
    write_timeout_ns: AtomicU64,
    pub(crate) waiting: AtomicBool,
    pub(crate) place: Place,
    pub(crate) counters: crate::stats::SocketCounters,
    /// Where the last unaddressed message went.
    pub(crate) last_sent_to: AtomicU64,
    /// Where its thread sleeps.
    pub(crate) parker: SharedParker,
}

impl SocketState {
    /// Whether a receive is more than to wait until there is a message.
    fn has_settings(&self) -> bool {
        self.nonblocking.load(Ordering::Relaxed)
            || self.receive_disabled.load(Ordering::Relaxed)
            || self.read_timeout_ns.load(Ordering::Relaxed) != 0
    }
}

impl Socket {
    pub(crate) fn new(mux: Arc<Mux>) -> Result<Self> {
        let poll = Poll::new()?;
        let (basket, others_basket) = Basket::new();
        let state = mux.add_socket(|index| SocketState {
            index,
            lease: Lease::new(),
            basket: others_basket,
            poll,
            receive_disabled: AtomicBool::new(false),
            nonblocking: AtomicBool::new(false),
            read_timeout_ns: AtomicU64::new(0),
            write_timeout_ns: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            place: Place::new(),
            counters: crate::stats::SocketCounters::default(),
            last_sent_to: AtomicU64::new(0),
            parker: Parker::new(),
        })?;
        mux.add_handle();
        Ok(Self {
            mux,
            state,
            hand: None,
            granted: Granted::default(),
            partial: None,
            ordered: None,
            keyed: false,
            open: OpenMessage::default(),
            spin: Spin::default(),
            left_watch_at: None,
            pace: Pace::default(),
            known: None,
            solo: false,
            basket,
            lone: false,
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
    ///
    /// In a loop where nanoseconds count, give an error away to a function of its own: while the loop looks
    /// at it by reference, the whole result has to stand in memory, and a message that is read there just
    /// after it was written in parts costs 13 ns more.
    #[inline(always)]
    pub fn recv(&mut self) -> Result<Message> {
        self.recv_of(1)
    }

    /// The next message, for who wants so many of its burst.
    #[inline(always)]
    fn recv_of(&mut self, want: usize) -> Result<Message> {
        if let Some(hand) = &mut self.hand
            && let Some(message) = hand.next_plain(&self.state)
        {
            return Ok(message);
        }
        if self.basket.is_filled() {
            cold_path();
            if let Some(message) = self.next_of_basket(want) {
                return Ok(message);
            }
        }
        Ok(self.recv_otherwise(want)?)
    }

    /// The next message, copied: one message, or, on a seqpacket socket, the next part of it.
    ///
    /// # Errors
    ///
    /// As [`Socket::recv`].
    pub fn recv_into(&mut self, buffer: &mut [u8]) -> Result<Received> {
        let (message, from) = match self.take_partial() {
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
            self.keep_partial(message, from + len);
        }
        self.after_recv(true);
        Ok(received)
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
            self.keep_partial(message, 0);
            self.after_recv(true);
        }
        match &self.partial {
            Some((message, from)) => Ok(message.share_from(*from)),
            None => Err(Error::WouldBlock),
        }
    }

    /// A message is to be received before all others, from this byte on.
    fn keep_partial(&mut self, message: Message, from: usize) {
        self.partial = Some((message, from));
        if let Some(hand) = &mut self.hand {
            hand.pause();
        }
    }

    fn take_partial(&mut self) -> Option<(Message, usize)> {
        let partial = self.partial.take()?;
        if let Some(hand) = &mut self.hand {
            hand.end_pause();
        }
        Some(partial)
    }

    /// Says that this socket is done with what it received, without asking for more: the next
    /// message of an ordered connection ([`crate::Connection::set_ordered`]) or of a key
    /// ([`Message::key`]) may go to others, and replies kept back for one another go out. (A message
    /// that was only looked at, or read in part, is still to be received: its connection and its key
    /// wait.)
    pub fn done(&mut self) {
        if self.partial.is_none() {
            if self
                .hand
                .as_ref()
                .is_some_and(|hand| hand.leased().in_order)
                && let Some(psock) = self.end_hand()
            {
                psock.let_go();
            }
            // (What another thread has left to this socket of a walk is still to be received.)
            if self.granted.is_empty() {
                self.finish_ordered();
            }
            self.finish_keys();
        }
        gather::end();
        if let Some(hand) = &self.hand {
            gather::begin(&hand.leased().psock, None);
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
            self.mux.empty_basket_of(&self.state);
        }
        self.after_recv(false);
        if disabled {
            // It may have been told of what is ready.
            self.mux.readiness.offer_rest(&self.mux);
        }
    }

    pub(crate) fn is_nonblocking(&self) -> bool {
        self.state.nonblocking.load(Ordering::Relaxed)
    }

    pub(crate) fn write_deadline(&self) -> Option<Instant> {
        deadline(&self.state.write_timeout_ns)
    }
}

/// Polls readable (`EPOLLIN`) when a message can be taken, in an event loop of the caller's: level-
/// or edge-triggered, with poll, epoll, or an async runtime. Make the socket non-blocking. After
/// a receive that said `EAGAIN` it is readable again only when more bytes have come, and at most
/// once for each arrival when these do not complete a message. After a receive that gave a message it
/// may be readable once more though there is no other: where several sockets are polled, or others wait
/// until this one asks again. The descriptor is the socket's: only poll it.
impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.state
            .poll
            .fd(&self.mux, &self.state, self.must_ask_again())
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.solo {
            self.mux.break_solo();
        }
        self.empty_basket();
        let back = self.end_hand();
        let mut messages = self.granted.take_all();
        messages.extend(self.partial.take().map(|(message, _)| message));
        self.give_back(messages);
        self.finish_ordered();
        if let Some(psock) = back {
            psock.release(true);
        }
        self.mux.leave_steering(&self.state);
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
