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
//! background thread sends what has been kept back for a tick ([`crate::background`]).

use std::{
    cell::Cell,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::psock::Psock;

/// The longest that a reply is kept back for the sake of the next ones.
const HOLD: Duration = Duration::from_micros(20);

#[derive(Clone, Copy)]
struct Gather {
    /// The connection whose burst this thread walks through; null without one.
    psock: *const Psock,
    /// When the first reply that is kept back was made.
    since: Option<Instant>,
    /// Replies kept back since.
    replies: u32,
    /// At how many of them to look at the clock.
    look_at: u32,
    /// The last replies came quickly after one another.
    quick: bool,
}

thread_local! {
    static GATHER: Cell<Gather> = const {
        Cell::new(Gather {
            psock: std::ptr::null(),
            since: None,
            replies: 0,
            look_at: 1,
            quick: false,
        })
    };
}

/// This thread walks through a burst of this connection, and has more of it in hand.
pub(crate) fn begin(psock: &Arc<Psock>) {
    let _ = GATHER.try_with(|cell| {
        let gather = cell.get();
        cell.set(Gather {
            psock: Arc::as_ptr(psock),
            since: None,
            replies: 0,
            look_at: 1,
            quick: gather.quick,
        });
    });
}

/// The burst is walked through (or the rest was taken by others): sends what was kept back.
pub(crate) fn end(psock: &Arc<Psock>) {
    let kept = GATHER
        .try_with(|cell| {
            let gather = cell.get();
            cell.set(Gather {
                psock: std::ptr::null(),
                ..gather
            });
            gather.replies > 0
        })
        .unwrap_or(true);
    if kept {
        psock.tx.flush(psock);
    }
}

/// Whether this reply may be kept back for the next one.
pub(crate) fn hold(psock: &Arc<Psock>) -> bool {
    GATHER
        .try_with(|cell| {
            let gather = cell.get();
            if gather.psock != Arc::as_ptr(psock) {
                return false;
            }
            let (gather, hold) = gather.next();
            cell.set(gather);
            hold
        })
        .unwrap_or(false)
}

impl Gather {
    fn next(mut self) -> (Self, bool) {
        self.replies += 1;
        if self.replies < self.look_at {
            return (self, true);
        }
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
