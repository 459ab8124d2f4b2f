//! The way of a message from its connection to the socket that asks.
//!
//! A message stays with its connection until a thread asks for one. The thread that has the claim
//! of a connection cuts one message off the front for itself; what is left is
//!
//! - *leased* to it, when nobody else waits: it walks through the rest alone, without locks, until
//!   another thread comes and revokes the lease (`walk.rs`);
//! - put back to the ready list when somebody waits, and one thread is woken;
//! - for a batch, granted up to the caller's share.
//!
//! A message whose key another socket has at work is set aside for that one (`steering.rs`).

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use kcm_frame::{Frame, Step};

use crate::{
    event::EndReason,
    gather,
    granted::Granted,
    latch::Latched,
    message::Message,
    mux::Mux,
    psock::Psock,
    receive::{Fill, Rx},
    socket::SocketState,
    steering::{Label, Way},
    walk::Hand,
};

/// What a socket got from a connection.
pub(crate) struct Taken {
    pub(crate) message: Message,
    /// The connection is ordered, and waits until the socket asks again.
    pub(crate) ordered: Option<Arc<Psock>>,
    /// Some of the messages have a key (`steering.rs`).
    pub(crate) keyed: bool,
    /// It is the first of several that had come, for whomever.
    pub(crate) bursts: bool,
}

impl Mux {
    /// Takes a message from a connection whose claim the caller has; more into `batch`, if up to
    /// `want` are wanted, or a walk through them into `hand`. (As a part of the result, a walk would
    /// be copied twice, whether there is one or not.) Gives the claim back, or keeps it in a lease or
    /// for an ordered connection. `None`: there was none.
    pub(crate) fn take(
        self: &Arc<Self>,
        psock: &Arc<Psock>,
        state: &SocketState,
        want: usize,
        batch: &mut Granted,
        hand: &mut Option<Hand>,
    ) -> Option<Taken> {
        let taken = self.take_untold(psock, state, want, batch, hand);
        self.tell_steering();
        taken
    }

    /// As above; what steering has to tell is still to be told, with no lock held.
    fn take_untold(
        &self,
        psock: &Arc<Psock>,
        state: &SocketState,
        want: usize,
        batch: &mut Granted,
        hand: &mut Option<Hand>,
    ) -> Option<Taken> {
        if psock.receive_disabled.load(Ordering::Acquire) {
            psock.end_partial();
            // Who enables it says that there may be something.
            psock.release(false);
            return None;
        }
        let (mut rx, message, keyed) = self.next_for(psock, state)?;
        let mut taken = Taken {
            message,
            ordered: None,
            keyed,
            bursts: !rx.bytes().is_empty(),
        };
        let in_order = psock.ordered.load(Ordering::Relaxed);
        if !rx.has_returned()
            && !rx.bytes().is_empty()
            && let Some(walk) = self.lease(psock, &mut rx, state, in_order)
        {
            drop(rx);
            gather::begin(psock, walk.began_ns());
            *hand = Some(walk);
            return Some(taken);
        }
        if in_order {
            // The claim stays with the socket: nobody else can take the next message.
            drop(rx);
            psock.hold_for_order();
            taken.ordered = Some(psock.clone());
            return Some(taken);
        }
        if rx.has_returned() {
            for _ in 1..want {
                if let Some(key) = rx.returned_label().and_then(|label| label.key) {
                    if !self.steering.try_take(key, state) {
                        break;
                    }
                    taken.keyed = true;
                }
                let Some(message) = rx.next_returned() else {
                    break;
                };
                state.counters.received(1, message.len());
                batch.push(message);
            }
        } else if !rx.bytes().is_empty() && want > 1 {
            taken.keyed |= self.grant(psock, &mut rx, state, want - 1, batch);
            if !batch.is_empty() {
                gather::begin(psock, None);
            }
        }
        let more = psock.leaves_work(&mut rx);
        drop(rx);
        psock.release(more);
        Some(taken)
    }

    /// Takes the first message that may be this socket's; those before it are set aside for others.
    /// Whether it has a key. `None`: there is none; the claim is given back, or the connection is held
    /// back with it, then.
    fn next_for<'a>(
        &self,
        psock: &'a Arc<Psock>,
        state: &SocketState,
    ) -> Option<(Latched<'a, Rx>, Message, bool)> {
        let mut rx = psock.rx();
        loop {
            let (returned, frame, key);
            if let Some(label) = rx.returned_label() {
                (returned, frame, key) = (true, None, label.key);
            } else {
                let front;
                (rx, front) = self.whole_front(psock, rx)?;
                psock.class.store(front.class, Ordering::Relaxed);
                if front.key.is_none() {
                    // The usual one, for anybody.
                    let message = rx.cut(psock, &front)?;
                    psock.count_received(state, 1, message.len());
                    return Some((rx, message, false));
                }
                (returned, frame, key) = (false, Some(front), front.key);
            }
            let way = match key {
                None => Way::Take,
                Some(key) => self.steering.meet(key, state, psock),
            };
            if way == Way::Held {
                return None;
            }
            let message = match &frame {
                Some(frame) => rx.cut(psock, frame)?,
                None => rx.next_returned()?,
            };
            let len = message.len();
            if !returned {
                psock.count_cut(1, len);
            }
            match (way, key) {
                (Way::Aside, Some(key)) => self.steering.set_aside(key, message),
                _ => {
                    state.counters.received(1, len);
                    return Some((rx, message, key.is_some()));
                }
            }
        }
    }

    /// A whole message at the front, after a read if there must be one. `None`: there is none; the
    /// claim is given back then.
    fn whole_front<'a>(
        &self,
        psock: &'a Arc<Psock>,
        mut rx: Latched<'a, Rx>,
    ) -> Option<(Latched<'a, Rx>, Frame)> {
        let end = loop {
            let (need, len) = match rx.step() {
                Step::Message(frame) => {
                    psock.end_partial();
                    return Some((rx, frame));
                }
                Step::Fault(fault) => break Some(EndReason::Fault(fault)),
                Step::Incomplete { need, len } => (need, len),
            };
            let fill = if psock.edge.swap(false, Ordering::Acquire) {
                rx.fill(psock, need, len, false)
            } else {
                Fill::Nothing
            };
            match fill {
                Fill::Some => {
                    psock.count_read();
                }
                Fill::Nothing if psock.deadline_passed.load(Ordering::Relaxed) => {
                    break Some(EndReason::Deadline);
                }
                // Its sending side has failed, which need not end what comes in: nothing is there.
                Fill::Nothing if psock.drain.load(Ordering::Relaxed) && psock.tx.is_over() => {
                    break Some(EndReason::Closed);
                }
                Fill::Nothing => {
                    rx.settle(psock);
                    if !rx.bytes().is_empty() {
                        psock.begin_partial(rx.assembler.limits().assembly_deadline);
                    }
                    break None;
                }
                Fill::HeldBack => {
                    psock.edge.store(true, Ordering::Relaxed);
                    break None;
                }
                Fill::End(reason) => break Some(reason),
            }
        };
        drop(rx);
        if let Some(reason) = end {
            self.end_receiving(psock, reason);
        }
        psock.release(false);
        None
    }

    /// Cuts up to `want` messages off the front for a batch, at most the caller's share of the
    /// bytes that are there, and none that is another's. Whether some have a key.
    fn grant(
        &self,
        psock: &Arc<Psock>,
        rx: &mut Rx,
        state: &SocketState,
        want: usize,
        batch: &mut Granted,
    ) -> bool {
        let share = rx.bytes().len() / (self.hub.waiting() + 1);
        let (mut messages, mut bytes, mut keyed) = (0, 0, false);
        // Where messages are copied, or some have a label, each is one of its own.
        let mut apart = self.memory.is_much_used();
        while messages < want as u64
            && bytes < share
            && let Step::Message(frame) = rx.step()
            && (apart || Label::of(&frame) != Label::PLAIN)
            && (frame.key).is_none_or(|key| self.steering.try_take(key, state))
            && let Some(message) = rx.cut(psock, &frame)
        {
            apart = true;
            keyed |= frame.key.is_some();
            messages += 1;
            bytes += message.len();
            batch.push(message);
        }
        rx.note_label(Label::PLAIN);
        let begin = rx.position;
        let lens = batch.lens();
        while messages < want as u64
            && bytes < share
            && let Step::Message(frame) = rx.step()
            && Label::of(&frame) == Label::PLAIN
            && let Ok(len) = u32::try_from(frame.len)
        {
            lens.push(len);
            let len = len as usize;
            rx.pass_over(psock, len);
            messages += 1;
            bytes += len;
        }
        if let Some(buffer) = rx.buffer()
            && rx.position > begin
        {
            batch.set_share(buffer.credit(begin..rx.position));
        }
        psock.count_received(state, messages, bytes);
        keyed
    }

    /// Nothing more can be received from this connection, whose claim the caller has.
    pub(crate) fn end_receiving(&self, psock: &Arc<Psock>, reason: EndReason) {
        {
            let mut rx = psock.rx();
            if rx.is_stopped() {
                return;
            }
            rx.stop(psock);
        }
        psock.end_partial();
        self.receiving_ended(psock, reason);
    }
}

impl Psock {
    /// Counts messages as received by a socket. The caller has the receiving side locked, and the
    /// socket is its own, so that no read-modify-write is needed.
    pub(crate) fn count_received(&self, state: &SocketState, messages: u64, bytes: usize) {
        self.count_cut(messages, bytes);
        state.counters.received(messages, bytes);
    }

    /// Counts messages that left the connection, for whichever socket. The caller has the receiving
    /// side locked.
    fn count_cut(&self, messages: u64, bytes: usize) {
        add(&self.counters.rx_messages, messages);
        add(&self.counters.rx_bytes, bytes as u64);
    }

    /// Counts a read that was needed. The caller has the receiving side locked.
    pub(crate) fn count_read(&self) {
        add(&self.counters.need_more, 1);
    }
}

/// Adds to a counter that one thread at a time changes.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
}
