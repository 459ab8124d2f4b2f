//! A burst that one socket walks through alone, a message at a time, without a lock: from the lease of
//! it (`lease.rs`) to its end.
//!
//! [`Hand::next_plain`] is a loop's body in the end, the receive of a small message whole: what it costs
//! is what this crate costs a message beyond a hand-written loop, and that is the number of its
//! instructions (the processor finds five of them to do at a time, so that it hardly matters what waits for
//! what). So it is straight: what nearly all protocols have (a field with the most significant byte first)
//! has no jump on its way, whatever is not plainly so is asked in a call, and one
//! comparison says that the turn goes on, that the 8 bytes are there, and that nothing else is to be
//! given before. A second one says that they are a length within the limits, a third one that so many
//! bytes are there. It was 90 instructions and 7.3 ns once; then 57, with six jumps, and 4.7 ns on a
//! processor where the next 47 take 4.0. Without effect there: taking the last message's length for
//! granted until it is compared, so that the next one's place is known sooner. (Cutting off 16 messages of
//! a batch at once was tried before that: two passes, each message's length stored in between, 7.5 ns
//! where one by one took 6.3.)

use std::{
    collections::VecDeque,
    hint::cold_path,
    num::NonZeroU64,
    sync::{Arc, atomic::Ordering},
};

use kcm_frame::{Native, PlainField, QuickForm, Stateless, Verdict};

use crate::{
    chunk::Credit, gather, message::Message, mux::Mux, origin::Origin, psock::Psock, receive::Rx,
    socket::SocketState, steering::Label, sys,
};

/// How long a lease goes on when there are other connections, which want their turn: about what a
/// hand-written loop takes for a read of small messages. To end a turn costs a send for its replies.
const TURN_NS: u64 = 200_000;

/// How much more is taken without a look at the clock than was taken before it.
const STRIDE: u64 = 16;

/// What a socket walks through alone.
pub(crate) struct Hand {
    credit: Credit<Origin>,
    /// What most messages are asked; the rule has the others.
    asked: Asked,
    rule: Stateless,
    max_message_bytes: u64,
    /// Where it began; and from where on to see whether it is the turn of others.
    start: usize,
    stop: usize,
    /// As `stop`; 0 while it pauses.
    until: usize,
    /// References in the credit at the beginning, one for each message.
    credit_at_start: usize,
    /// Messages that were taken of the burst before this one, if it goes on from that.
    taken_before: u32,
    /// When the turn began, in ns, if there are others.
    began_ns: Option<u64>,
    /// It is over, though there may be more.
    turn_is_over: bool,
    leased: Leased,
}

/// What a length is asked of, by itself. (Which of these is a byte of its own: hidden in a field of the
/// form's, it takes five instructions to read.)
#[repr(u8)]
enum Asked {
    Plain(PlainField),
    Form(QuickForm),
    /// Nothing but the rule.
    Rule,
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
    /// The next whole message, if it is plainly there and still this socket's: what stands in the
    /// caller's loop. `None`: there is something else to be seen to before.
    #[inline(always)]
    pub(crate) fn next_plain(&mut self, state: &SocketState) -> Option<Message> {
        let len = match &self.asked {
            Asked::Plain(field) => field.length(self.credit.word()?)?,
            Asked::Form(form) => form.length(self.credit.word()?)?,
            Asked::Rule => {
                cold_path();
                self.len_by_rule()?.get()
            }
        };
        self.take(len, state)
    }

    /// A call that gives a length, and not the message, which would come out of it in memory: at 10 ns.
    #[inline(never)]
    fn len_by_rule(&self) -> Option<NonZeroU64> {
        if self.credit.position() >= self.until {
            return None;
        }
        let len = len_by(&self.rule, self.credit.rest(), self.max_message_bytes)?;
        NonZeroU64::new(len)
    }

    /// The next whole message, if it is there and still this socket's.
    pub(crate) fn next_by_rule(&mut self, state: &SocketState) -> Option<Message> {
        if self.credit.position() >= self.stop && !self.may_go_on() {
            return None;
        }
        self.take(self.len_by_rule()?.get(), state)
    }

    #[inline(always)]
    fn take(&mut self, len: u64, state: &SocketState) -> Option<Message> {
        let advance = |position, left| state.lease.advance(position, left);
        let slice = self.credit.take_if(usize::try_from(len).ok()?, advance)?;
        Some(Message::new(slice))
    }

    /// Until [`Hand::end_pause`], nothing is plainly there: the socket has something else to give before.
    pub(crate) fn pause(&mut self) {
        self.be_plain_until(0);
    }

    pub(crate) fn end_pause(&mut self) {
        self.be_plain_until(self.stop);
    }

    /// Whether it is still this connection's turn. The clock costs as much as several small messages, so
    /// it is asked after one message, and again when by the pace so far half of the time left may be
    /// over, but for a pace that holds: at most [`STRIDE`] times what has been taken is taken before.
    #[cold]
    #[inline(never)]
    fn may_go_on(&mut self) -> bool {
        let Some(began_ns) = self.began_ns.filter(|_| !self.credit.rest().is_empty()) else {
            return false;
        };
        let age_ns = sys::now_ns().saturating_sub(began_ns);
        self.turn_is_over = age_ns >= TURN_NS;
        if !self.turn_is_over {
            let position = self.credit.position();
            let stride = ((TURN_NS - age_ns) / (2 * age_ns).max(1)).min(STRIDE) as usize;
            // (If it is not even as much again, after the next message.)
            self.stop_at(position + (position - self.start).saturating_mul(stride).max(1));
        }
        !self.turn_is_over
    }

    fn stop_at(&mut self, position: usize) {
        self.stop = position;
        self.be_plain_until(position);
    }

    /// Messages that begin before this position may plainly be there.
    fn be_plain_until(&mut self, position: usize) {
        self.until = position;
        let (offset, need) = match &self.asked {
            Asked::Plain(field) => (field.offset(), 0),
            Asked::Form(form) => (form.offset(), form.need()),
            Asked::Rule => return,
        };
        self.credit.set_words(offset, need, position);
    }

    /// Whether it ended for the sake of other connections.
    pub(crate) fn turn_is_over(&self) -> bool {
        self.turn_is_over
    }

    /// References in stock, one of which goes with each message.
    #[inline(always)]
    pub(crate) fn stock(&self) -> usize {
        self.credit.left()
    }

    /// Messages that were taken.
    pub(crate) fn taken(&self) -> u32 {
        u32::try_from(self.credit_at_start - self.credit.left()).unwrap_or(u32::MAX)
    }

    /// The same of the burst at hand and of the one before it.
    pub(crate) fn taken_lately(&self) -> u32 {
        self.taken().saturating_add(self.taken_before)
    }

    /// When it began, in ns, if it is timed.
    pub(crate) fn began_ns(&self) -> Option<u64> {
        self.began_ns
    }

    pub(crate) fn leased(&self) -> &Leased {
        &self.leased
    }

    /// The walk is at the end of what was read. What it has taken is counted, and what it has in stock is
    /// given back, so that the buffer can be used anew. The caller has the receiving side locked, and
    /// nobody has revoked the lease.
    pub(crate) fn stop(&mut self, rx: &mut Rx, psock: &Psock, state: &SocketState) {
        let position = self.credit.position();
        self.taken_before = self.taken();
        state.lease.restart(position, 0);
        rx.set_position(position);
        psock.count_received(state, self.taken_before.into(), position - self.start);
        self.credit.give_back();
        (self.start, self.credit_at_start) = (position, 0);
    }

    /// It has stopped, and is to end here.
    pub(crate) fn stay(&mut self, rx: &Rx, state: &SocketState) {
        self.credit.stay_at(rx.position);
        self.start = rx.position;
        state.lease.restart(rx.position, 0);
    }

    /// It goes on with what was read meanwhile, on the same conditions.
    pub(crate) fn go_on(&mut self, rx: &mut Rx, psock: &Psock, state: &SocketState) {
        let (position, Some(buffer)) = (rx.position, rx.buffer()) else {
            return;
        };
        self.credit = buffer.credit(position..buffer.len());
        self.credit.begin_walk();
        (self.start, self.credit_at_start) = (position, self.credit.left());
        state.lease.restart(position, self.credit_at_start);
        rx.note_label(Label::PLAIN);
        if !matches!(self.asked, Asked::Plain(_)) {
            self.asked = Asked::of(&self.rule, rx, psock, self.max_message_bytes);
        }
        self.stop_at(position + self.credit_at_start);
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
                    let len = len_by(&rule, credit.rest(), max_message_bytes);
                    let len = len.and_then(|len| usize::try_from(len).ok());
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
        rx: &mut Rx,
        state: &SocketState,
        in_order: bool,
    ) -> Option<Hand> {
        let rule = rx.assembler.stateless()?;
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
        let next = len_by(&rule, rx.bytes(), max_message_bytes)?;
        if next > rx.bytes().len() as u64 {
            return None;
        }
        rx.note_label(Label::PLAIN);
        let asked = Asked::of(&rule, rx, psock, max_message_bytes);
        let (position, buffer) = (rx.position, rx.buffer()?);
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
        let mut hand = Hand {
            credit,
            asked,
            rule,
            max_message_bytes,
            start: position,
            stop: position,
            until: position,
            credit_at_start,
            taken_before: 0,
            began_ns: (!alone).then(sys::now_ns),
            turn_is_over: false,
            leased,
        };
        // The message that the caller keeps is one already.
        hand.stop_at(position + if alone { credit_at_start } else { 1 });
        Some(hand)
    }
}

impl Asked {
    fn of(rule: &Stateless, rx: &mut Rx, psock: &Psock, max_message_bytes: u64) -> Self {
        let asked = match rule {
            Stateless::Native(Native::Length(field)) => {
                field.plain(max_message_bytes).map(Self::Plain)
            }
            Stateless::Native(_) => None,
            Stateless::Closure(_) => {
                let received = psock.counters.rx_messages.load(Ordering::Relaxed);
                let form = rx.quick_form(received);
                form.map(|form| Self::Form(form.up_to(max_message_bytes)))
            }
        };
        asked.unwrap_or(Self::Rule)
    }
}

/// The length of the message at the front, if nothing but its length is known of it: steering has no
/// say in a walk.
#[inline(always)]
fn len_by(rule: &Stateless, rest: &[u8], max_message_bytes: u64) -> Option<u64> {
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
    (len <= max_message_bytes).then_some(len)
}
