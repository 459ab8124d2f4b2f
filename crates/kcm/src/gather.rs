//! Replies to the messages of one burst leave together.
//!
//! A send costs some microseconds, nearly all of them in the system and for each call; a burst of
//! small requests answered one by one costs 7 to 18 times what it costs when the replies are
//! gathered into one call. But a reply must not wait for work on later messages. So a thread that
//! walks through a burst keeps its replies to that connection back while it is quick: until the
//! burst is walked through, for 200 us, or 32 KiB, whichever is first; the reply at which it is over
//! goes with them. That is 30 to 40 times what a send costs. At 20 us a quarter of the thread's time
//! went into sends, and each of them woke the peer; at 100 us the replies to 256 requests were split
//! where the processor was slow for a while, and with them the peer's next requests. A thread that
//! takes as long for a message as a send takes gains nothing, and does not gather.
//!
//! The clock costs 23 ns, as much as two small messages, so it is read only when the pace so far
//! says that half of the time left may be over.
//!
//! Tried: a thread that has had to wait for a burst sends the first half of its replies ahead, so that the
//! peer works on them while it makes the others. While a small message here cost twice what it does now,
//! 256 requests under way came to 1.0 of a hand-written loop's rate by that instead of 0.84, for 1.4 times
//! its processor time; now to 0.96, and without it to 0.99.
//!
//! A thread that breaks its pace (a long job, or it never comes back) leaves replies behind: the
//! background thread sends what has been kept back for a tick (`background.rs`). For its sake the
//! replies are under a lock, one that costs the thread itself next to nothing (`biased.rs`).

use std::{
    cell::{Cell, OnceCell},
    io::IoSlice,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{background, biased::Biased, psock::Psock, sys};

/// The longest that a reply is kept back for the sake of the next ones.
const HOLD_NS: u64 = 200_000;
/// Replies that are further apart than this, what a send costs, do not wait for one another.
const SLOW_NS: u64 = 5_000;
/// Replies kept back go out at this many bytes.
const MOST_BYTES: usize = 32 << 10;
/// Room for them; a reply that finds none goes out alone.
const ROOM_BYTES: usize = MOST_BYTES + (4 << 10);

/// The replies that one thread keeps back.
pub(crate) struct Gathered {
    replies: Biased<Replies>,
    /// Some were added since the last tick of the background thread ...
    busy: AtomicBool,
    /// ... and there are some, a moment old: to look behind the lock costs all processors a barrier.
    kept: AtomicBool,
    /// The background thread looks after it.
    ticking: AtomicBool,
}

#[derive(Default)]
struct Replies {
    psock: Option<Arc<Psock>>,
    /// [`ROOM_BYTES`] of them, once there was a reply.
    bytes: Vec<u8>,
    len_bytes: usize,
    messages: usize,
}

/// Replies that are kept back.
struct Added {
    bytes: usize,
    messages: usize,
}

/// What a tick of the background thread has found.
pub(crate) struct Ticked {
    /// Something was gathered since the last one.
    pub(crate) busy: bool,
    /// The thread had left replies, which are sent now.
    pub(crate) sent: bool,
}

/// How quickly a thread replies. (A cell for each field: copied as a whole, which the processor
/// cannot forward from the stores of its parts, this cost 10 ns a reply.)
struct Pace {
    /// The connection whose burst this thread walks through; null without one.
    psock: Cell<*const Psock>,
    /// When the burst began, or the first of these replies was made, or one before them was sent.
    since_ns: Cell<Option<u64>>,
    /// Replies since.
    replies: Cell<u32>,
    /// At how many of them to look at the clock.
    look_at: Cell<u32>,
    /// Some of them are kept back.
    held: Cell<bool>,
    /// The last replies came quickly after one another.
    quick: Cell<bool>,
}

thread_local! {
    static PACE: Pace = const {
        Pace {
            psock: Cell::new(std::ptr::null()),
            since_ns: Cell::new(None),
            replies: Cell::new(0),
            look_at: Cell::new(1),
            held: Cell::new(false),
            quick: Cell::new(false),
        }
    };
    static GATHERED: OnceCell<Arc<Gathered>> = const { OnceCell::new() };
}

/// This thread walks through a burst of this connection, and has more of it in hand, since `since_ns` if
/// that is known.
pub(crate) fn begin(psock: &Arc<Psock>, since_ns: Option<u64>) {
    PACE.with(|pace| {
        // A thread may have several sockets: those of another connection go first.
        if pace.held.get() {
            flush(pace);
        }
        pace.restart();
        if let Some(since_ns) = since_ns {
            pace.begin(since_ns);
        }
        pace.psock.set(Arc::as_ptr(psock));
    });
}

/// The burst is walked through (or the rest was taken by others): sends what was kept back.
pub(crate) fn end() {
    PACE.with(|pace| {
        pace.psock.set(std::ptr::null());
        if pace.held.get() {
            flush(pace);
        }
    });
}

/// Whether this thread walks through a burst of this connection: if not, it keeps nothing back for it.
#[inline(always)]
pub(crate) fn is_walking(psock: &Arc<Psock>) -> bool {
    PACE.with(|pace| pace.psock.get() == Arc::as_ptr(psock))
}

/// Before something else is sent to this connection: what was kept back goes first.
pub(crate) fn flush_before(psock: &Arc<Psock>) {
    PACE.with(|pace| {
        if pace.held.get() && pace.psock.get() == Arc::as_ptr(psock) {
            flush(pace);
        }
    });
}

/// Takes a reply that is plainly to wait: behind others, with time and room left. This is the usual
/// case, and all that it takes; the other function has the rest.
#[inline(always)]
pub(crate) fn hold_next(psock: &Arc<Psock>, reply: &[u8]) -> bool {
    PACE.with(|pace| {
        let replies = pace.replies.get() + 1;
        if pace.psock.get() != Arc::as_ptr(psock) || replies >= pace.look_at.get() {
            return false;
        }
        let added = GATHERED.try_with(|gathered| {
            let add = |replies: &mut Replies| replies.add_next(reply);
            // SAFETY: `GATHERED` is this thread's, and `add_next` does nothing but copy.
            (gathered.get()).is_some_and(|gathered| unsafe { gathered.replies.own(add) })
        });
        let added = added.unwrap_or(false);
        if added {
            pace.replies.set(replies);
        }
        added
    })
}

/// Takes a reply, to send it with the next ones. False: it is to be sent now.
pub(crate) fn hold(psock: &Arc<Psock>, pieces: &[IoSlice<'_>]) -> bool {
    PACE.with(|pace| {
        if pace.psock.get() != Arc::as_ptr(psock) {
            return false;
        }
        let waits = pace.next();
        if !waits && !pace.held.get() {
            return false;
        }
        let added = GATHERED.try_with(|gathered| {
            let gathered = gathered.get_or_init(Gathered::new);
            let add = |replies: &mut Replies| replies.add(psock, pieces);
            // SAFETY: `GATHERED` is this thread's, and `add` does nothing but copy.
            let added = unsafe { gathered.replies.own(add) }?;
            pace.held.set(true);
            if added.messages == 1 {
                gathered.begin_busy();
            }
            Some(added.bytes)
        });
        // (A thread that is ending keeps nothing back.)
        let added = added.unwrap_or(None);
        if !waits || added.is_none_or(|bytes| bytes >= MOST_BYTES) {
            flush(pace);
        }
        added.is_some()
    })
}

/// A reply was not kept back, and sent. How quick this thread is counts from here: a send can take
/// longer than all that it would be good to wait for, and a thread that counted it as its own work
/// would never gather again.
pub(crate) fn sent_alone(psock: &Arc<Psock>) {
    PACE.with(|pace| {
        if pace.psock.get() == Arc::as_ptr(psock) {
            pace.restart();
            pace.since_ns.set(Some(sys::now_ns()));
        }
    });
}

/// Sends what this thread has kept back.
#[cold]
#[inline(never)]
fn flush(pace: &Pace) {
    pace.restart();
    let _ = GATHERED.try_with(|gathered| {
        if let Some(gathered) = gathered.get() {
            // SAFETY: `GATHERED` is this thread's, and sending what was gathered does not come
            // back here.
            unsafe { gathered.replies.own(Replies::send) };
            gathered.kept.store(false, Ordering::Relaxed);
        }
    });
}

impl Gathered {
    #[cold]
    #[inline(never)]
    fn new() -> Arc<Self> {
        Arc::new(Self {
            replies: Biased::new(Replies::default()),
            busy: AtomicBool::new(false),
            kept: AtomicBool::new(false),
            ticking: AtomicBool::new(false),
        })
    }

    /// There are replies again.
    #[cold]
    #[inline(never)]
    fn begin_busy(self: &Arc<Self>) {
        self.busy.store(true, Ordering::Relaxed);
        self.kept.store(true, Ordering::Relaxed);
        if !self.ticking.load(Ordering::Relaxed) {
            background::get().tick(self);
        }
    }

    /// Whether the background thread looks after it from now on, and did not before.
    pub(crate) fn begin_ticking(&self) -> bool {
        !self.ticking.swap(true, Ordering::AcqRel)
    }

    /// The background thread looks after it no more.
    pub(crate) fn end_ticking(&self) {
        self.ticking.store(false, Ordering::Release);
        // What was kept back just before.
        self.replies.others(Replies::send);
    }

    /// A tick of the background thread: sends what was kept back before the last one.
    pub(crate) fn tick(&self) -> Ticked {
        let busy = self.busy.swap(false, Ordering::Relaxed);
        let kept = !busy && self.kept.swap(false, Ordering::Relaxed);
        let sent = kept && self.replies.others(Replies::send);
        Ticked { busy, sent }
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.replies.others(Replies::send);
    }
}

impl Replies {
    /// Whether there is room left behind others.
    #[inline(always)]
    fn add_next(&mut self, reply: &[u8]) -> bool {
        let end = self.len_bytes + reply.len();
        let room = self.bytes.get_mut(self.len_bytes..end);
        let (Some(place), true) = (room, self.psock.is_some() && end < MOST_BYTES) else {
            return false;
        };
        copy_short(place, reply);
        self.len_bytes = end;
        self.messages += 1;
        true
    }

    /// What there is then; `None` when there is no room, or the connection takes no more.
    fn add(&mut self, psock: &Arc<Psock>, pieces: &[IoSlice<'_>]) -> Option<Added> {
        if self.psock.is_none() && !self.begin(psock, pieces) {
            return None;
        }
        let mut room = &mut self.bytes[self.len_bytes..];
        for piece in pieces {
            let place;
            (place, room) = room.split_at_mut_checked(piece.len())?;
            copy_short(place, piece);
        }
        self.len_bytes = ROOM_BYTES - room.len();
        self.messages += 1;
        Some(Added {
            bytes: self.len_bytes,
            messages: self.messages,
        })
    }

    #[cold]
    #[inline(never)]
    fn begin(&mut self, psock: &Arc<Psock>, pieces: &[IoSlice<'_>]) -> bool {
        let fits = pieces.iter().map(|piece| piece.len()).sum::<usize>() <= ROOM_BYTES;
        let begins = fits && psock.tx.keep_back();
        if begins {
            self.psock = Some(psock.clone());
            self.bytes.resize(ROOM_BYTES, 0);
        }
        begins
    }

    /// False: there were none.
    fn send(&mut self) -> bool {
        let Some(psock) = self.psock.take() else {
            return false;
        };
        let bytes = &self.bytes[..self.len_bytes];
        psock.tx.send_kept(&psock, bytes, self.messages);
        self.len_bytes = 0;
        self.messages = 0;
        true
    }
}

/// Copies a reply, most often a short one: a call for 12 bytes costs as much as all the rest of
/// keeping them. The two parts may overlap. Both slices are of one length.
#[inline(always)]
fn copy_short(to: &mut [u8], from: &[u8]) {
    fn in_parts<const N: usize>(to: &mut [u8], from: &[u8]) -> Option<()> {
        if from.len() > 2 * N {
            return None;
        }
        *to.first_chunk_mut::<N>()? = *from.first_chunk()?;
        *to.last_chunk_mut::<N>()? = *from.last_chunk()?;
        Some(())
    }
    let short = in_parts::<8>(to, from).or_else(|| in_parts::<16>(to, from));
    if short.is_none() {
        to.copy_from_slice(from);
    }
}

impl Pace {
    fn restart(&self) {
        self.since_ns.set(None);
        self.replies.set(0);
        self.look_at.set(1);
        self.held.set(false);
    }

    /// From here on it counts how quick this thread is: one that was quick keeps the first reply back.
    fn begin(&self, since_ns: u64) {
        self.since_ns.set(Some(since_ns));
        self.look_at.set(if self.quick.get() { 2 } else { 1 });
    }

    /// One more reply; whether it may be kept back.
    #[inline]
    fn next(&self) -> bool {
        let replies = self.replies.get() + 1;
        self.replies.set(replies);
        replies < self.look_at.get() || self.look(replies)
    }

    #[cold]
    #[inline(never)]
    fn look(&self, replies: u32) -> bool {
        let now_ns = sys::now_ns();
        let Some(since_ns) = self.since_ns.get() else {
            self.begin(now_ns);
            return self.quick.get();
        };
        let age_ns = now_ns.saturating_sub(since_ns);
        let quick = age_ns < SLOW_NS * u64::from(replies);
        self.quick.set(quick);
        if !quick || age_ns >= HOLD_NS {
            return false;
        }
        let pace_ns = age_ns / u64::from(replies) + 1;
        let more = ((HOLD_NS - age_ns) / pace_ns / 2).clamp(1, 64);
        self.look_at.set(replies + u32::try_from(more).unwrap_or(1));
        true
    }
}
