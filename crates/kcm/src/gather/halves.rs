//! The first half of a burst's replies may leave ahead of the second.
//!
//! A peer that keeps a fixed number of requests under way, and a server that answers each burst with
//! one send, take turns: one sleeps while the other works. Sent in two parts, the first half of the
//! replies is worked on over there while the second is made here; soon the requests come in two parts
//! as well, and both sides are always at work:
//!
//! ```text
//! together   here   ████████░░░░░░░░████████░░░░░░░░
//!            peer   ░░░░░░░░████████░░░░░░░░████████
//!
//! in halves  here   ████▒████▒████▒████▒████▒████▒
//!            peer   ░░░░████▒████▒████▒████▒████▒
//! ```
//!
//! Measured with 256 requests of 64 bytes under way: the rate went from 0.84 to 1.0 to 1.25 of a hand-written
//! loop's, the mean latency from 1.23 to between 1.05 and 0.87, and the processor time from 1.2 to 1.45,
//! since there are twice as many sends and receives. So this is for who has that time to spare. It has to hold that
//!
//! - the thread has waited for the burst, as the only one of its multiplexor that could have worked
//!   meanwhile;
//! - the last packet came from another processor: with both ends on one, neither works while the
//!   other does (0.57 of the rate, where together it is 0.78);
//! - the first half takes as long as a send does at best.
//!
//! Where the halves are is known from the burst before: peers of this kind send what they get
//! replies for. Tried: sending after every 128 replies, without these conditions (the same in this
//! scenario, and four threads on one processor lost a tenth); after every 64, which is a send too many
//! (0.8 of the rate). A first part of a twelfth or a quarter: the peer gets it alone more often, but the parts
//! are too uneven to keep both sides at work (0.96 of the rate, where halves had 0.99 in the same runs); of three
//! quarters or more: next to nothing is won (0.84 to 0.9, and halves 1.0 to 1.2 in theirs).

use std::cell::Cell;

/// Who waited for so long for a burst had nothing else to do: more than the receive takes, less than
/// it takes to wake a thread here and one there.
const IDLE_NS: u64 = 10_000;
/// The least that the first half has to take: what a send costs at best.
const WORTH_A_SEND_NS: u64 = 3_000;
/// With fewer replies to a burst, not even a look at the clock is worth it.
const MANY: u32 = 32;

/// What one thread knows about the bursts that it replies to.
pub(super) struct Halves {
    /// It is the only socket of its multiplexor: while it waits, no other does its work.
    alone: Cell<bool>,
    /// Replies to this burst that have been sent, and all to the one before.
    sent: Cell<u32>,
    before: Cell<u32>,
    /// When that one ended, in ns, if it had many.
    ended_ns: Cell<Option<u64>>,
    /// The reply with which the first half goes; 0: no halves.
    middle: Cell<u32>,
}

impl Halves {
    pub(super) const fn new() -> Self {
        Self {
            alone: Cell::new(false),
            sent: Cell::new(0),
            before: Cell::new(0),
            ended_ns: Cell::new(None),
            middle: Cell::new(0),
        }
    }

    /// A burst begins, for a thread that is the `only` one to receive, or not.
    pub(super) fn begin(&self, only: bool) {
        self.alone.set(only);
        self.before.set(self.sent.take());
        self.middle.set(0);
    }

    /// Replies to it were sent.
    pub(super) fn note_sent(&self, replies: u32) {
        self.sent.set(self.sent.get() + replies);
    }

    /// The burst is over, and its last replies are sent.
    pub(super) fn end(&self, now_ns: impl FnOnce() -> u64) {
        let many = self.alone.get() && self.sent.get() >= MANY;
        self.ended_ns.set(many.then(now_ns));
    }

    /// At the first reply to a burst: whether there shall be halves.
    pub(super) fn decide(&self, now_ns: u64, peer_is_elsewhere: impl FnOnce() -> bool) {
        let ended_ns = self.ended_ns.take();
        let waited = ended_ns.is_some_and(|ended_ns| now_ns.saturating_sub(ended_ns) >= IDLE_NS);
        if waited && self.alone.get() && self.before.get() >= MANY && peer_is_elsewhere() {
            self.middle.set(self.before.get() / 2);
        }
    }

    /// Whether the replies so far, made within this time, are the first half.
    pub(super) fn is_middle(&self, replies: u32, age_ns: u64) -> bool {
        let is_middle = (1..=replies).contains(&self.middle.get());
        if is_middle {
            self.middle.set(0);
        }
        is_middle && age_ns >= WORTH_A_SEND_NS
    }

    /// The reply at which to ask, when there have been `replies` and `next` would be early enough
    /// otherwise.
    pub(super) fn ask_at(&self, replies: u32, next: u32) -> u32 {
        match self.middle.get() {
            middle if middle > replies => next.min(middle),
            _ => next,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: u64 = 1_000;

    /// After a burst of 100 replies; the next one has its first reply `waited` later. Its middle.
    fn middle(waited_ns: u64, only: bool, elsewhere: bool) -> u32 {
        let (halves, now_ns) = (Halves::new(), 7_000_000);
        halves.begin(only);
        halves.note_sent(60);
        halves.note_sent(40);
        halves.end(|| now_ns);
        halves.begin(only);
        halves.decide(now_ns + waited_ns, || elsewhere);
        halves.middle.get()
    }

    #[test]
    fn only_who_waited_alone_for_a_peer_elsewhere_has_time_for_halves() {
        assert_eq!(middle(10 * US, true, true), 50);
        assert_eq!(middle(9 * US, true, true), 0);
        assert_eq!(middle(10 * US, false, true), 0);
        assert_eq!(middle(10 * US, true, false), 0);
    }

    #[test]
    fn a_short_burst_stays_whole_and_is_not_timed() {
        let halves = Halves::new();
        halves.begin(true);
        halves.note_sent(MANY - 1);
        halves.end(|| unreachable!("no look at the clock"));
        halves.begin(true);
        halves.decide(7_000_000, || true);
        assert_eq!(halves.middle.get(), 0);
    }

    #[test]
    fn the_first_half_goes_once() {
        let halves = Halves::new();
        halves.middle.set(50);
        assert_eq!((halves.ask_at(2, 60), halves.ask_at(2, 40)), (50, 40));
        assert!(!halves.is_middle(49, 9 * US));
        assert!(halves.is_middle(50, 9 * US));
        assert!(!halves.is_middle(99, 9 * US));
        assert_eq!(halves.ask_at(51, 99), 99);
    }

    #[test]
    fn a_quick_first_half_waits_for_the_second() {
        let halves = Halves::new();
        halves.middle.set(50);
        assert!(!halves.is_middle(50, 2 * US));
        assert!(!halves.is_middle(51, 9 * US));
    }
}
