//! How a socket finds its next message: what it holds, what is ready, or by waiting.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{Socket, deadline};
use crate::{
    error::Error,
    gather,
    hub::Turn,
    message::Message,
    psock::{Observer, Psock},
    steering::Ready,
    walk::HandEnd,
    watch::Known,
};

/// Messages taken from the ready list before the other connections are looked at again.
const TAKES_BETWEEN_LOOKS: u32 = 64;
/// As many as a walk through a burst counts at most, for it takes longer.
const TAKES_OF_A_TURN: u32 = 16;

impl Socket {
    /// The next message, where it is not plainly there.
    #[inline(never)]
    pub(super) fn recv_otherwise(&mut self, want: usize) -> Result<Message, NoMessage> {
        // (Two ways, each with a frame of its own.)
        if self.hand.is_some() {
            self.recv_in_hand(want)
        } else {
            self.recv_any(want)
        }
    }

    /// The next message of a burst in hand, or another.
    #[inline(never)]
    fn recv_in_hand(&mut self, want: usize) -> Result<Message, NoMessage> {
        if let Some(hand) = &mut self.hand
            && self.partial.is_none()
        {
            if let Some(message) = hand.next_by_rule(&self.state) {
                return Ok(message);
            }
            if let Some(known) = &self.known
                && !self.state.has_settings()
                && !self.keyed
                && self.granted.is_empty()
                && let Some(message) = self.mux.read_on(hand, known, &self.state)
            {
                return Ok(message);
            }
        }
        self.recv_any(want)
    }

    /// Everything but the next message of a burst in hand.
    #[cold]
    #[inline(never)]
    fn recv_any(&mut self, want: usize) -> Result<Message, NoMessage> {
        self.empty_basket();
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
        let mut back = None;
        if self.must_ask_again() {
            if let Some(message) = self.go_on(want, &mut back) {
                self.after_recv(true);
                return Ok(message);
            }
        } else {
            // Replies to the last batch.
            gather::end();
            if let Some(message) = self.next_at_once(want) {
                return Ok(message);
            }
        }
        let result = self.wait(back, want);
        self.after_recv(result.is_ok());
        result
    }

    /// The next message of what this socket has in hand. If there is none, that is finished; `back` is
    /// the connection of a walk that has ended.
    fn go_on(&mut self, want: usize, back: &mut Option<Arc<Psock>>) -> Option<Message> {
        if let Some((message, from)) = self.take_partial() {
            return Some(message.share_from(from));
        }
        if let Some(message) = self.granted.next() {
            return Some(message);
        }
        // Replies to the last batch: a hand that ends has sent its own.
        if self.hand.is_none() {
            gather::end();
        } else {
            *back = self.end_hand();
            if let Some(message) = self.granted.next() {
                return Some(message);
            }
        }
        self.finish_ordered();
        if !self.keyed {
            return None;
        }
        if self.state.is_receive_disabled() {
            self.finish_keys();
            return None;
        }
        let message = self.next_by_key(want)?;
        if let Some(psock) = back.take() {
            psock.release(true);
        }
        Some(message)
    }

    /// The next message of what this socket has harvested for itself, if there is nothing else to see to.
    /// (All of it inlined into the program's loop, and out of the way of a walk: `receive/single.rs`.)
    #[inline(always)]
    pub(super) fn next_of_basket(&mut self, want: usize) -> Option<Message> {
        while self.lone
            && self.partial.is_none()
            && self.mux.hub.ready() == 0
            && !self.state.is_receive_disabled()
            && !self.mux.steering.is_used()
        {
            let baskets = &self.mux.baskets;
            let soon = |psock: &Arc<Psock>| psock.prefetch_for_take();
            let psock = self.basket.next(baskets, soon)?;
            match self.mux.take_single(psock, &self.state) {
                Ok(message) => return Some(message),
                Err(psock) => {
                    let message = self.take_any(psock, want);
                    if message.is_some() {
                        return message;
                    }
                }
            }
        }
        None
    }

    /// What this socket has harvested for itself is for whoever asks, before it turns to other things.
    #[inline]
    pub(super) fn empty_basket(&mut self) {
        if self.basket.is_filled() {
            let psocks = self.basket.take_all(&self.mux.baskets);
            psocks.into_iter().for_each(|psock| psock.release(true));
        }
    }

    /// Takes a message from a connection that is ready, for a socket with nothing in hand, if there is
    /// nothing else to see to, descriptors that are polled included: of many connections the usual case,
    /// and a few lines of the processor's cache for it (`receive/single.rs`).
    #[inline]
    fn next_at_once(&mut self, want: usize) -> Option<Message> {
        let hub = &self.mux.hub;
        if hub.ready() == 0
            || self.takes >= TAKES_BETWEEN_LOOKS
            || !self.pace.rests()
            || self.state.is_receive_disabled()
            || self.mux.steering.has_for(&self.state)
            || self.mux.readiness.polled() > 0
        {
            return None;
        }
        self.takes += 1;
        let ready = hub.pop(Ready::prefetch)?;
        self.take_ready(ready, want)
    }

    /// Finds a message: in the connection whose claim this socket has, among what is ready, in
    /// another socket's lease, or by waiting.
    fn wait(&mut self, mut back: Option<Arc<Psock>>, want: usize) -> Result<Message, NoMessage> {
        let nonblocking = self.is_nonblocking();
        let deadline = deadline(&self.state.read_timeout_ns);
        if self.pace.note_done(back.is_some(), &self.mux, &self.state)
            && !nonblocking
            && self.mux.is_crowded(&self.state)
        {
            self.make_room(back.take(), deadline);
        }
        if let Some(psock) = back {
            if self.mux.hub.ready() == 0 {
                self.takes = TAKES_BETWEEN_LOOKS;
            }
            self.look_around();
            let more = psock.leaves_work(&mut psock.rx());
            // The others have their turn first.
            if !more || self.mux.hub.ready() > 0 || self.state.is_receive_disabled() {
                psock.release(more);
            } else if let Some(message) = self.take(psock, want) {
                return Ok(message);
            }
        }
        if self.state.is_receive_disabled() {
            return self.wait_disabled(nonblocking, deadline);
        }
        let mut looked = false;
        loop {
            if self.mux.steering.has_for(&self.state)
                && let Some(message) = self.next_by_key(want)
            {
                return Ok(message);
            }
            self.takes += 1;
            self.look_around();
            if let Some(ready) = self.mux.hub.pop(Ready::prefetch) {
                if let Some(message) = self.take_ready(ready, want) {
                    return Ok(message);
                }
                continue;
            }
            match self.turn(nonblocking, &mut looked, deadline) {
                Got::Ready(ready) => {
                    if let Some(message) = self.take_ready(ready, want) {
                        return Ok(message);
                    }
                }
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

    /// Sleeps, so that another thread can go on with what it has in hand (`crowd.rs`).
    #[cold]
    fn make_room(&mut self, back: Option<Arc<Psock>>, deadline: Option<Instant>) {
        self.pace.rest(&self.state);
        let _waiting = self.mux.hub.begin_waiting();
        self.state.waiting.store(true, Ordering::Relaxed);
        self.mux.hub.make_room(&self.state.parker, deadline, || {
            if let Some(psock) = back {
                psock.let_go();
            }
        });
        self.state.waiting.store(false, Ordering::Relaxed);
    }

    /// Looks for events of other connections, once in a while.
    fn look_around(&mut self) {
        if self.takes >= TAKES_BETWEEN_LOOKS {
            self.takes = 0;
            if self.mux.psock_count() > 1 {
                self.mux.harvest_for_all();
            }
        }
    }

    /// Waits, counted as waiting, for something to work on.
    fn turn(&mut self, nonblocking: bool, looked: &mut bool, deadline: Option<Instant>) -> Got {
        let Self {
            mux,
            state,
            spin,
            left_watch_at,
            known,
            basket,
            lone,
            pace,
            ..
        } = self;
        if let Some(left_at) = left_watch_at.take() {
            mux.watch.note_absence(left_at);
        }
        let _waiting = mux.hub.begin_waiting();
        mux.break_solo();
        state.waiting.store(true, Ordering::Relaxed);
        pace.rest(state);
        let got = match mux.take_a_basket().or_else(|| mux.revoke_a_lease()) {
            Some(psock) => Got::Psock(psock),
            None => {
                let turn = if nonblocking {
                    mux.hub.try_turn()
                } else {
                    mux.hub.turn(&state.parker, deadline)
                };
                match turn {
                    Turn::Item(ready) => Got::Ready(ready),
                    Turn::Called => Got::Nothing,
                    Turn::Watch => {
                        let psock = if nonblocking {
                            mux.glance(looked)
                        } else {
                            let basket = lone.then_some(basket);
                            mux.watch(spin, left_watch_at, known, basket, deadline)
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

    #[inline]
    fn take(&mut self, psock: Arc<Psock>, want: usize) -> Option<Message> {
        self.mux.hub.note_take();
        match self.mux.take_single(psock, &self.state) {
            Ok(message) => {
                self.lone = true;
                Some(message)
            }
            Err(psock) => self.take_any(psock, want),
        }
    }

    /// As above, the general way.
    #[cold]
    #[inline(never)]
    fn take_any(&mut self, psock: Arc<Psock>, want: usize) -> Option<Message> {
        let generation = self.mux.generation();
        let (batch, hand) = (&mut self.granted, &mut self.hand);
        let taken = (self.mux).take(&psock, &self.state, want, batch, hand)?;
        self.lone = false;
        if taken.bursts && self.mux.socket_count() > 1 {
            self.pace.go_to_work(&self.mux, &self.state);
        }
        if self.mux.psock_count() == 1 {
            let plain = self.hand.is_none() && taken.ordered.is_none() && !taken.keyed;
            if plain && self.mux.socket_count() == 1 {
                self.solo = self.mux.establish_solo(&psock);
            }
            if !self
                .known
                .as_ref()
                .is_some_and(|known| known.is(&psock, generation))
            {
                let psock = Observer::new(psock);
                self.known = Some(Known { psock, generation });
            }
        }
        self.ordered = taken.ordered;
        self.keyed |= taken.keyed;
        Some(taken.message)
    }

    fn take_ready(&mut self, ready: Ready, want: usize) -> Option<Message> {
        match ready {
            Ready::Connection(psock) => {
                psock.claim.claim();
                self.take(psock, want)
            }
            Ready::Key(key, _) => self.take_by_key(want, |socket, most, out| {
                socket.mux.take_key(key, &socket.state, most, out);
            }),
        }
    }

    /// What was set aside for this socket, which is done with the keys that it had.
    fn next_by_key(&mut self, want: usize) -> Option<Message> {
        self.keyed = false;
        self.take_by_key(want, |socket, most, out| {
            socket.mux.ask_by_key(&socket.state, most, out);
        })
    }

    fn take_by_key(
        &mut self,
        want: usize,
        take: impl FnOnce(&Self, usize, &mut dyn FnMut(Message)),
    ) -> Option<Message> {
        let mut first = None;
        let mut granted = std::mem::take(&mut self.granted);
        take(self, want, &mut |message| {
            self.state.counters.received(1, message.len());
            if first.is_none() {
                first = Some(message);
            } else {
                granted.push(message);
            }
        });
        self.granted = granted;
        self.keyed |= first.is_some();
        self.lone = false;
        first
    }

    /// Ends the walk through a burst: the connection, if this socket has its claim again. Messages that
    /// are this socket's though somebody else took the rest are granted to it.
    pub(super) fn end_hand(&mut self) -> Option<Arc<Psock>> {
        let hand = self.hand.take()?;
        self.takes += if hand.turn_is_over() {
            TAKES_BETWEEN_LOOKS
        } else {
            hand.taken().min(TAKES_OF_A_TURN)
        };
        match hand.end(&self.mux, &self.state) {
            HandEnd::Back(psock) => Some(psock),
            HandEnd::Revoked { messages, ordered } => {
                (messages.into_iter()).for_each(|message| self.granted.push(message));
                self.ordered = ordered;
                None
            }
        }
    }

    /// Messages that this socket was given are for whoever asks next.
    pub(super) fn give_back(&mut self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.state.counters.returned(message.len());
            message.psock().clone().give_back(message, &self.state);
        }
    }

    /// The ordered connection that this socket was working on may go on.
    pub(super) fn finish_ordered(&mut self) {
        if let Some(psock) = self.ordered.take() {
            psock.release_order();
        }
    }

    /// The keys that this socket was working on are anybody's.
    pub(super) fn finish_keys(&mut self) {
        if std::mem::take(&mut self.keyed) {
            self.mux.finish_keys(&self.state);
        }
    }

    /// Keeps the descriptors true to what is there.
    pub(super) fn after_recv(&self, found: bool) {
        let readiness = &self.mux.readiness;
        if readiness.polled() == 0 {
            return;
        }
        if self.state.poll.is_polled() {
            let again = self.must_ask_again();
            (self.state.poll).after_recv(&self.mux, &self.state, found, again);
        }
        if found {
            // It is busy now, and what came together with this message is for others.
            readiness.offer_rest(&self.mux);
        }
    }

    /// Whether this socket has messages in hand, or something that others wait for until it asks again.
    pub(super) fn must_ask_again(&self) -> bool {
        self.hand.is_some()
            || !self.granted.is_empty()
            || self.partial.is_some()
            || self.ordered.is_some()
            || self.keyed
    }
}

/// Why a receive has no message. Small, and not [`Error`] itself: the two ways through
/// [`Socket::recv`] would then meet in memory, where a message that was just written in parts is
/// read as a whole, for which the processor waits (8 ns a message). As wide as a pointer, so that the
/// compiler does not make bytes of the pointer that stands in its place in a message.
#[repr(usize)]
pub(super) enum NoMessage {
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
    Ready(Ready),
    /// With its claim.
    Psock(Arc<Psock>),
    Nothing,
    TimedOut,
    Closed,
}
