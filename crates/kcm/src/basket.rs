//! Connections that one socket has harvested for itself.
//!
//! With many connections and a request under way on each, one wait finds many of them ready (`watch.rs`),
//! and they all come by through the ready list (`hub.rs`): a lock, a class, a count and a look for somebody
//! to wake, in and out, a quarter of all instructions of a small message's receive. Where nobody else waits
//! all of that is for nobody. So the socket keeps what it has harvested, each connection with its claim, in
//! a *basket* of its own, and takes one after the other out of it by some ten instructions, none of them
//! locked (`biased.rs`).
//!
//! What must hold is that no message is left behind a busy thread while another waits. So the basket is
//! open to others: who begins to wait, or to poll, empties it (`Mux::take_a_basket`), keeps the first
//! connection, and leaves the rest to the ready list. Who fills one looks afterwards whether somebody has
//! begun to wait: one sees the other. As emptying costs 2 us for both threads, no basket is filled for a
//! while then, as no walk through a burst begins (`revoke.rs`).
//!
//! Only what is plain goes this way: connections of the ordinary class, while no key is in use, for a socket
//! whose last message came alone too (`receive/single.rs`). Before its socket does anything else, it leaves
//! what is left to the ready list.
//!
//! # Contract of the unsafe code
//!
//! That of `biased.rs`: [`Basket`], which cannot be copied, is the owner's end, and lends itself to one
//! thread at a time.

use std::sync::Arc as StdArc;

use crate::{
    biased::Biased,
    mux::Mux,
    psock::Psock,
    socket::SocketState,
    sync::{Arc, AtomicBool, AtomicUsize, Ordering, loom_fence},
};

struct Shared<T> {
    /// The next one last.
    items: Biased<Vec<T>>,
    /// Something is in it; changes together with that.
    filled: AtomicBool,
}

/// The end of its owner.
pub(crate) struct Basket<T>(Arc<Shared<T>>);

/// The end of all others.
pub(crate) struct OthersBasket<T>(Arc<Shared<T>>);

/// How many baskets of a multiplexor are filled.
pub(crate) struct Baskets(AtomicUsize);

impl Baskets {
    pub(crate) fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// Whether something is in any of them.
    pub(crate) fn any(&self) -> bool {
        loom_fence();
        self.0.load(Ordering::SeqCst) > 0
    }
}

impl<T> Basket<T> {
    pub(crate) fn new() -> (Self, OthersBasket<T>) {
        let shared = Arc::new(Shared {
            items: Biased::new(Vec::new()),
            filled: AtomicBool::new(false),
        });
        (Self(shared.clone()), OthersBasket(shared))
    }

    /// Fills it, which is empty, with these. The caller has to look then whether anybody waits.
    pub(crate) fn fill(&mut self, items: &mut Vec<T>, all: &Baskets) {
        if items.is_empty() {
            return;
        }
        items.reverse();
        let filled = &self.0.filled;
        // SAFETY: the only owner's end, borrowed mutably.
        unsafe {
            self.0.items.own(|mine| {
                debug_assert!(mine.is_empty());
                std::mem::swap(mine, items);
                filled.store(true, Ordering::Relaxed);
            });
        }
        // SYNC: sequentially consistent with `Hub::begin_waiting` and `Poll::fd`: a thread that begins to
        // wait or to poll sees the basket, or is seen by the caller.
        all.0.fetch_add(1, Ordering::SeqCst);
        loom_fence();
    }

    /// The next one; `soon` is told of the one after it.
    #[inline]
    pub(crate) fn next(&mut self, all: &Baskets, soon: impl FnOnce(&T)) -> Option<T> {
        let filled = &self.0.filled;
        // SAFETY: as above.
        let (item, emptied) = unsafe {
            self.0.items.own(|mine| {
                let item = mine.pop();
                let after = mine.last();
                let emptied = after.is_none() && item.is_some();
                after.map(soon);
                if emptied {
                    filled.store(false, Ordering::Relaxed);
                }
                (item, emptied)
            })
        };
        if emptied {
            all.0.fetch_sub(1, Ordering::Relaxed);
        }
        item
    }

    /// Whether something is in it; a moment old.
    #[inline]
    pub(crate) fn is_filled(&self) -> bool {
        self.0.filled.load(Ordering::Relaxed)
    }

    /// All that is left.
    pub(crate) fn take_all(&mut self, all: &Baskets) -> Vec<T> {
        // SAFETY: as above.
        let items = unsafe { self.0.items.own(|mine| self.0.taken(mine)) };
        counted_out(items, all)
    }
}

impl<T> OthersBasket<T> {
    /// All that is left, in its order.
    pub(crate) fn take_all(&self, all: &Baskets) -> Vec<T> {
        // (To look behind the lock costs all processors a barrier.)
        if !self.0.filled.load(Ordering::Relaxed) {
            return Vec::new();
        }
        counted_out(self.0.items.others(|items| self.0.taken(items)), all)
    }
}

impl<T> Shared<T> {
    fn taken(&self, items: &mut Vec<T>) -> Vec<T> {
        self.filled.store(false, Ordering::Relaxed);
        std::mem::take(items)
    }
}

impl Mux {
    /// Keeps these, of which the caller has the claims, for one socket, whose thread has just come back from
    /// waiting, if nobody else wants them. Otherwise they are left where they are.
    pub(crate) fn fill_basket(
        &self,
        basket: &mut Basket<StdArc<Psock>>,
        psocks: &mut Vec<StdArc<Psock>>,
    ) {
        let plain = |psock: &StdArc<Psock>| psock.class.load(Ordering::Relaxed) == 0;
        if !self.allows_baskets()
            || !self.may_lease_again(psocks.len())
            || !psocks.iter().all(plain)
        {
            return;
        }
        basket.fill(psocks, &self.baskets);
        if !self.allows_baskets() {
            *psocks = basket.take_all(&self.baskets);
        }
    }

    /// The caller, who counts as waiting, is the only one.
    fn allows_baskets(&self) -> bool {
        self.hub.waiting() == 1 && self.readiness.polled() == 0
    }

    /// Empties what another socket keeps for itself: a connection with its claim for the caller, the
    /// others for whoever asks.
    pub(crate) fn take_a_basket(&self) -> Option<StdArc<Psock>> {
        if !self.baskets.any() {
            return None;
        }
        let mut sockets = self.all_sockets().into_iter();
        let mut psocks = sockets.find_map(|socket| {
            let psocks = socket.basket.take_all(&self.baskets);
            (!psocks.is_empty()).then(|| psocks.into_iter())
        })?;
        self.hold_leases_off();
        let first = psocks.next();
        psocks.for_each(|psock| psock.release(true));
        first
    }

    /// What sockets keep for themselves is for whoever asks.
    pub(crate) fn empty_baskets(&self) {
        if self.baskets.any() {
            (self.all_sockets().iter()).for_each(|socket| self.empty_basket_of(socket));
        }
    }

    /// The same of one socket.
    pub(crate) fn empty_basket_of(&self, socket: &SocketState) {
        let psocks = socket.basket.take_all(&self.baskets);
        psocks.into_iter().for_each(|psock| psock.release(true));
    }
}

fn counted_out<T>(mut items: Vec<T>, all: &Baskets) -> Vec<T> {
    if !items.is_empty() {
        all.0.fetch_sub(1, Ordering::Relaxed);
        items.reverse();
    }
    items
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn goes_out_in_the_order_that_it_came_in() {
        let all = Baskets::new();
        let (mut basket, others) = Basket::new();
        basket.fill(&mut Vec::new(), &all);
        assert!(!all.any() && !basket.is_filled());
        basket.fill(&mut vec![1, 2, 3, 4], &all);
        assert!(all.any() && basket.is_filled());
        let mut soon = None;
        assert_eq!(basket.next(&all, |item| soon = Some(*item)), Some(1));
        assert_eq!(soon, Some(2));
        assert_eq!(others.take_all(&all), [2, 3, 4]);
        assert!(!all.any() && !basket.is_filled());
        assert_eq!(basket.next(&all, |_| {}), None);
        basket.fill(&mut vec![5], &all);
        assert_eq!(basket.next(&all, |_| {}), Some(5));
        assert!(!all.any() && !basket.is_filled());
        basket.fill(&mut vec![6, 7], &all);
        assert_eq!(basket.take_all(&all), [6, 7]);
        assert!(!all.any());
    }

    /// An owner goes through numbered items while a thief empties the basket again and again: each number
    /// comes out once.
    #[test]
    fn each_item_goes_to_one() {
        const FILLS: usize = 2_000;
        let all = Arc::new(Baskets::new());
        let (mut basket, others) = Basket::new();
        let done = Arc::new(AtomicBool::new(false));
        let thief = {
            let (all, done) = (all.clone(), done.clone());
            thread::spawn(move || {
                let mut taken = Vec::new();
                while !done.load(Ordering::Acquire) {
                    taken.extend(others.take_all(&all));
                }
                taken
            })
        };
        let mut taken = Vec::new();
        for fill in 0..FILLS {
            basket.fill(&mut (8 * fill..8 * fill + 8).collect(), &all);
            taken.extend(std::iter::from_fn(|| basket.next(&all, |_| {})));
        }
        done.store(true, Ordering::Release);
        taken.extend(thief.join().unwrap());
        taken.sort_unstable();
        assert!(taken.into_iter().eq(0..8 * FILLS));
        assert!(!all.any());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::thread;

    use super::*;
    use crate::hub::{Hub, Parker, Turn};

    /// One thread harvests items, takes one and never asks again; another begins to wait at any moment: it
    /// gets one of the others, without the first one's help.
    #[test]
    fn loom_nothing_is_left_in_a_basket_while_a_thread_waits() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let hub = Arc::new(Hub::new());
            let all = Arc::new(Baskets::new());
            let (mut basket, others) = Basket::new();
            // (Of the watch that another has, nothing comes.)
            assert!(hub.try_watch());
            let waiter = {
                let (hub, all) = (hub.clone(), all.clone());
                thread::spawn(move || {
                    let _waiting = hub.begin_waiting();
                    if all.any()
                        && let Some(first) = others.take_all(&all).into_iter().next()
                    {
                        return first;
                    }
                    match hub.turn(&Parker::new(), None) {
                        Turn::Item(item) => item,
                        _ => unreachable!("the watch is taken, and nobody closes or calls"),
                    }
                })
            };
            let mut items = vec![1, 2, 3];
            basket.fill(&mut items, &all);
            let mine = if hub.waiting() > 0 {
                basket.take_all(&all)
            } else {
                basket.next(&all, |_| {}).into_iter().collect()
            };
            // All but the first goes to whoever asks.
            let mut mine = mine.into_iter();
            let first = mine.next();
            for item in mine {
                assert!(hub.push(item).is_ok());
            }
            let others = waiter.join().unwrap();
            assert_ne!(Some(others), first);
        });
    }
}
