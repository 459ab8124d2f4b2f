//! A burst that one socket walks through alone, a message or a row of messages at a time, without a
//! lock: from the lease of it (`lease.rs`) to its end.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use kcm_frame::{Stateless, Verdict};

use crate::{
    chunk::{Credit, Row},
    gather,
    message::Message,
    mux::Mux,
    origin::Origin,
    psock::Psock,
    receive::Rx,
    socket::SocketState,
    steering::Label,
};

/// How long a lease goes on when there are other connections, which want their turn: about what a
/// hand-written loop takes for a read of small messages. To end a turn costs a send for its replies.
const TURN: Duration = Duration::from_micros(200);
/// Messages of which a batch takes hold at once: what is done once for a row costs a message next to
/// nothing then; and few enough to leave to others what one thread is long busy with.
const ROW: usize = 16;

/// The lengths of a row's messages.
pub(crate) type Lens = [u32; ROW];

/// What a socket walks through alone.
pub(crate) struct Hand {
    credit: Credit<Origin>,
    rule: Stateless,
    start: usize,
    max_message_bytes: u64,
    /// References in the credit at the beginning, one for each message; and those at which to see
    /// whether it is the turn of others.
    credit_at_start: usize,
    credit_at_stop: usize,
    /// When the turn began, if there are others.
    began: Option<Instant>,
    /// It is over, though there may be more.
    turn_is_over: bool,
    leased: Leased,
}

/// What a walk goes through.
#[derive(Clone)]
pub(crate) struct Leased {
    pub(crate) psock: Arc<Psock>,
    /// The connection was ordered when the walk began: nobody else has its turn before the walk
    /// ends, so that nobody revokes it to have that.
    pub(crate) in_order: bool,
}

/// How a walk ends.
pub(crate) enum HandEnd {
    /// The socket has the connection's claim again.
    Back(Arc<Psock>),
    /// Another thread took the rest; messages up to where both met may still be this socket's.
    Revoked {
        messages: VecDeque<Message>,
        /// The connection is ordered, and waits until the socket asks again.
        ordered: Option<Arc<Psock>>,
    },
}

impl Hand {
    /// The next whole message, if it is there and still this socket's.
    #[inline(always)]
    pub(crate) fn next(&mut self, state: &SocketState) -> Option<Message> {
        if self.credit.left() == self.credit_at_stop && !self.may_go_on() {
            return None;
        }
        let len = self.whole_message(self.credit.rest())?;
        let next = self.credit.position() + len;
        if !state.lease.advance(next, self.credit.left() - 1) {
            return None;
        }
        Some(Message::new(self.credit.take(len)))
    }

    /// The next whole messages, at most `most`, that are there and still this socket's: taken
    /// together, so that a message costs little more than to find its end.
    pub(crate) fn next_row(
        &mut self,
        state: &SocketState,
        most: usize,
        lens: &mut Lens,
    ) -> Option<Row<Origin>> {
        if self.credit.left() == self.credit_at_stop && !self.may_go_on() {
            return None;
        }
        let most = most.min(self.credit.left() - self.credit_at_stop);
        let (mut views, mut bytes) = (0, 0);
        let mut rest = self.credit.rest();
        for place in lens.iter_mut().take(most) {
            let Some(len) = self.whole_message(rest) else {
                break;
            };
            let Ok(short) = u32::try_from(len) else {
                break;
            };
            *place = short;
            bytes += len;
            views += 1;
            rest = &rest[len..];
        }
        let next = self.credit.position() + bytes;
        if views == 0 || !state.lease.advance(next, self.credit.left() - views) {
            return None;
        }
        Some(self.credit.take_row(bytes, views))
    }

    /// Whether it is still this connection's turn; asked after one message, two, four, ... of it, so
    /// that quick ones are done without a look at the clock, and slow ones are few.
    #[cold]
    #[inline(never)]
    fn may_go_on(&mut self) -> bool {
        let left = self.credit.left();
        let Some(began) = self.began.filter(|_| left > 0) else {
            return false;
        };
        self.turn_is_over = began.elapsed() >= TURN;
        if !self.turn_is_over {
            self.credit_at_stop = left.saturating_sub(self.credit_at_start - left);
        }
        !self.turn_is_over
    }

    /// Whether it ended for the sake of other connections.
    pub(crate) fn turn_is_over(&self) -> bool {
        self.turn_is_over
    }

    /// Messages that were taken.
    pub(crate) fn taken(&self) -> u32 {
        u32::try_from(self.credit_at_start - self.credit.left()).unwrap_or(u32::MAX)
    }

    pub(crate) fn leased(&self) -> &Leased {
        &self.leased
    }

    /// Puts back what a batch did not take of a row of this walk, for this socket or another.
    /// False: the lease was revoked meanwhile.
    pub(crate) fn put_back(&mut self, state: &SocketState, row: Row<Origin>) -> bool {
        self.credit.put_back(row);
        (state.lease).advance(self.credit.position(), self.credit.left())
    }

    /// The length of the message at the front, if it is there as a whole and nothing but its length
    /// is known of it: steering has no say in a walk.
    #[inline(always)]
    fn whole_message(&self, rest: &[u8]) -> Option<usize> {
        whole_message(&self.rule, rest, self.max_message_bytes)
    }

    /// Ends the walk.
    pub(crate) fn end(self, mux: &Mux, state: &SocketState) -> HandEnd {
        let Self {
            mut credit,
            leased: Leased { psock, .. },
            rule,
            start,
            max_message_bytes,
            credit_at_start,
            ..
        } = self;
        let position = credit.position();
        let taken = (credit_at_start - credit.left()) as u64;
        gather::end();
        credit.end_walk();
        // The lease and the position change together, under the lock of the receiving side. (Who
        // revoked the lease may watch the connection by now, with the lock.)
        let mut rx = psock.lock_rx();
        match state.lease.end() {
            Ok(_) => {
                mux.leases.fetch_sub(1, Ordering::SeqCst);
                // The references first: the buffer is used anew when nobody else has any.
                drop(credit);
                rx.set_position(position);
                psock.count_received(state, taken, position - start);
                drop(rx);
                HandEnd::Back(psock)
            }
            // The revoker saw the messages at which both met as taken.
            Err((leased, met_at)) => {
                let mut messages = VecDeque::new();
                while credit.position() < met_at {
                    // They were found before; a function that says something else now changes nothing.
                    let gap = met_at - credit.position();
                    let len = whole_message(&rule, credit.rest(), max_message_bytes);
                    let len = len.filter(|len| *len <= gap).unwrap_or(gap);
                    messages.push_back(Message::new(credit.take(len)));
                }
                let taken = taken + messages.len() as u64;
                psock.count_received(state, taken, met_at - start);
                drop(rx);
                HandEnd::Revoked {
                    messages,
                    ordered: leased.in_order.then_some(psock),
                }
            }
        }
    }
}

impl Mux {
    /// Leases the rest of a burst to the caller, if nobody else waits for a message, or nobody else
    /// may have the next one (`in_order`: to ask again is what lets it go out). The caller has the
    /// receiving side locked, as has who revokes a lease: so nobody does before this is over.
    pub(crate) fn lease(
        &self,
        psock: &Arc<Psock>,
        rx: &Rx,
        state: &SocketState,
        in_order: bool,
    ) -> Option<Hand> {
        let (Some(rule), Some(buffer)) = (rx.assembler.stateless(), rx.buffer()) else {
            return None;
        };
        let alone = self.psock_count() <= 1;
        // A function may find another connection's messages more urgent.
        if !alone && matches!(rule, Stateless::Closure(_)) {
            return None;
        }
        self.hub.look_for_late();
        let holdoff = self.lease_holdoff.load(Ordering::Relaxed);
        if holdoff > 0 && !in_order && !self.hub.is_crowded() {
            self.lease_holdoff.store(holdoff - 1, Ordering::Relaxed);
            return None;
        }
        let others_poll = || self.readiness.polled() > 0 && self.socket_count() > 1;
        if !(in_order || self.hub.lets_walk()) || self.memory.is_much_used() || others_poll() {
            return None;
        }
        // Less than one more message is not worth it.
        let max_message_bytes = rx.assembler.limits().max_message_bytes as u64;
        whole_message(&rule, rx.bytes(), max_message_bytes)?;
        rx.note_label(Label::PLAIN);
        let position = rx.position;
        let mut credit = buffer.credit(position..buffer.len());
        let credit_at_start = credit.left();
        let leased = Leased {
            psock: psock.clone(),
            in_order,
        };
        (state.lease).begin(leased.clone(), position, credit_at_start);
        // SYNC: sequentially consistent with `Hub::begin_waiting`, `Mux::add_psock` and `Poll::fd`: a
        // thread that begins to wait or to poll, or brings a connection, sees the lease, or is seen here.
        self.leases.fetch_add(1, Ordering::SeqCst);
        let wanted = !in_order && self.hub.is_wanted();
        if wanted || (alone && self.psock_count() > 1) || others_poll() {
            let given_up = state.lease.end();
            debug_assert!(given_up.is_ok(), "revoked without the lock");
            self.leases.fetch_sub(1, Ordering::SeqCst);
            return None;
        }
        credit.begin_walk();
        let first = if alone { credit_at_start } else { 1 };
        Some(Hand {
            credit,
            rule,
            start: position,
            max_message_bytes,
            credit_at_start,
            credit_at_stop: credit_at_start.saturating_sub(first),
            began: (!alone).then(Instant::now),
            turn_is_over: false,
            leased,
        })
    }
}

#[inline(always)]
fn whole_message(rule: &Stateless, rest: &[u8], max_message_bytes: u64) -> Option<usize> {
    /// What a message cannot be long.
    const NONE: u64 = 0;
    let len = match rule {
        Stateless::Native(native) => match native.parse(rest) {
            Verdict::Message(frame) => frame.len,
            _ => return None,
        },
        Stateless::Closure(function) => {
            // One with a label is not for a walk.
            let len = function.parse_with(rest, |verdict| match verdict {
                Verdict::Message(frame) if Label::of(&frame) == Label::PLAIN => frame.len,
                _ => NONE,
            });
            len.filter(|len| *len != NONE)?
        }
    };
    if len > max_message_bytes.min(rest.len() as u64) {
        return None;
    }
    #[expect(
        clippy::cast_possible_truncation,
        reason = "not above the slice's length"
    )]
    let len = len as usize;
    Some(len)
}
