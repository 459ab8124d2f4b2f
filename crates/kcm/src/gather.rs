//! Replies to the messages of one burst leave together.
//!
//! A send costs some microseconds, nearly all of them in the system and for each call; a burst of
//! small requests answered one by one costs 7 to 18 times what it costs when the replies are
//! gathered into one call. But a reply must not wait for work on later messages. So a thread that
//! walks through a burst keeps its replies to that connection back while it is quick: until the
//! burst is walked through, for 20 us, or 32 KiB, whichever is first. A thread whose last replies
//! were further apart than that does not gather at all.
//!
//! The clock costs 23 ns, as much as two small messages, so it is read only when the pace so far
//! says that half of the time left may be over.
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
    time::{Duration, Instant},
};

use crate::{background, biased::Biased, psock::Psock};

/// The longest that a reply is kept back for the sake of the next ones.
const HOLD: Duration = Duration::from_micros(20);
/// Replies kept back go out at this many bytes.
const MOST_BYTES: usize = 32 << 10;

/// The replies that one thread keeps back.
pub(crate) struct Gathered {
    replies: Biased<Replies>,
    /// Some were added since the last tick of the background thread.
    busy: AtomicBool,
    /// The background thread looks after it.
    ticking: AtomicBool,
}

#[derive(Default)]
struct Replies {
    psock: Option<Arc<Psock>>,
    bytes: Vec<u8>,
    messages: u64,
}

/// How quickly a thread replies.
#[derive(Clone, Copy)]
struct Pace {
    /// The connection whose burst this thread walks through; null without one.
    psock: *const Psock,
    /// When the first of these replies was made.
    since: Option<Instant>,
    /// Replies since.
    replies: u32,
    /// Some of them are kept back.
    held: bool,
    /// At how many of them to look at the clock.
    look_at: u32,
    /// The last replies came quickly after one another.
    quick: bool,
}

thread_local! {
    static PACE: Cell<Pace> = const {
        Cell::new(Pace {
            psock: std::ptr::null(),
            since: None,
            replies: 0,
            held: false,
            look_at: 1,
            quick: false,
        })
    };
    static GATHERED: OnceCell<Arc<Gathered>> = const { OnceCell::new() };
}

/// This thread walks through a burst of this connection, and has more of it in hand.
pub(crate) fn begin(psock: &Arc<Psock>) {
    let pace = PACE.get();
    PACE.set(Pace {
        psock: Arc::as_ptr(psock),
        since: None,
        replies: 0,
        held: false,
        look_at: 1,
        quick: pace.quick,
    });
}

/// The burst is walked through (or the rest was taken by others): sends what was kept back.
pub(crate) fn end() {
    let pace = PACE.get();
    if pace.psock.is_null() {
        return;
    }
    PACE.set(Pace {
        psock: std::ptr::null(),
        ..pace
    });
    if pace.held {
        flush();
    }
}

/// Before something else is sent to this connection: what was kept back goes first.
pub(crate) fn flush_before(psock: &Arc<Psock>) {
    let pace = PACE.get();
    if pace.psock == Arc::as_ptr(psock) && pace.held {
        flush();
    }
}

/// Takes a reply, to send it with the next ones. False: it is to be sent now.
#[inline]
pub(crate) fn hold(psock: &Arc<Psock>, pieces: &[IoSlice<'_>]) -> bool {
    let pace = PACE.get();
    if pace.psock != Arc::as_ptr(psock) {
        return false;
    }
    let (next, hold) = pace.next();
    PACE.set(Pace {
        held: next.held || hold,
        ..next
    });
    if !hold {
        if pace.held {
            flush();
        }
        return false;
    }
    let added = GATHERED.try_with(|gathered| {
        let gathered = gathered.get_or_init(Gathered::new);
        let add = |replies: &mut Replies| replies.add(psock, pieces);
        // SAFETY: `GATHERED` is this thread's, and `add` does nothing but copy.
        let (first, bytes) = unsafe { gathered.replies.own(add) };
        if first {
            gathered.busy.store(true, Ordering::Relaxed);
            if !gathered.ticking.load(Ordering::Relaxed) {
                background::get().tick(gathered);
            }
        }
        bytes
    });
    match added {
        Ok(bytes) => {
            if bytes >= MOST_BYTES {
                flush();
            }
            true
        }
        // The thread is ending.
        Err(_) => false,
    }
}

/// Sends what this thread has kept back.
fn flush() {
    let pace = PACE.get();
    PACE.set(Pace {
        since: None,
        replies: 0,
        held: false,
        look_at: 1,
        ..pace
    });
    let _ = GATHERED.try_with(|gathered| {
        if let Some(gathered) = gathered.get() {
            // SAFETY: `GATHERED` is this thread's, and sending what was gathered does not come
            // back here.
            unsafe { gathered.replies.own(Replies::send) };
        }
    });
}

impl Gathered {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            replies: Biased::new(Replies::default()),
            busy: AtomicBool::new(false),
            ticking: AtomicBool::new(false),
        })
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

    /// A tick of the background thread: sends what was kept back before the last one. Whether
    /// anything was done here since.
    pub(crate) fn tick(&self) -> bool {
        let busy = self.busy.swap(false, Ordering::Relaxed);
        if !busy {
            self.replies.others(Replies::send);
        }
        busy
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.replies.others(Replies::send);
    }
}

impl Replies {
    /// Whether it is the first, and the bytes there are.
    #[inline]
    fn add(&mut self, psock: &Arc<Psock>, pieces: &[IoSlice<'_>]) -> (bool, usize) {
        let first = self.psock.is_none();
        if first {
            self.psock = Some(psock.clone());
        }
        for piece in pieces {
            self.bytes.extend_from_slice(piece);
        }
        self.messages += 1;
        (first, self.bytes.len())
    }

    fn send(&mut self) {
        if let Some(psock) = self.psock.take() {
            psock.tx.send_gathered(&psock, &self.bytes, self.messages);
            self.bytes.clear();
            self.messages = 0;
        }
    }
}

impl Pace {
    #[inline]
    fn next(mut self) -> (Self, bool) {
        self.replies += 1;
        if self.replies < self.look_at {
            return (self, true);
        }
        self.look()
    }

    #[cold]
    fn look(mut self) -> (Self, bool) {
        let now = Instant::now();
        let Some(since) = self.since else {
            self.since = Some(now);
            self.look_at = self.replies + 1;
            return (self, self.quick);
        };
        let age = now - since;
        if age >= HOLD {
            // The pace was slow if few replies fit into the time.
            self.quick = self.replies > 2;
            self.since = None;
            self.replies = 0;
            self.look_at = 1;
            return (self, false);
        }
        self.quick = true;
        let pace_ns = age.as_nanos() / u128::from(self.replies) + 1;
        let more = ((HOLD - age).as_nanos() / pace_ns / 2).clamp(1, 64);
        self.look_at = self.replies + u32::try_from(more).unwrap_or(1);
        (self, true)
    }
}
