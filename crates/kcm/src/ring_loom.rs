use loom::thread;

use super::*;
use crate::sync::{Arc, AtomicBool, Condvar, Ordering};

/// Stands for the multiplexor's epoll in those of two loops: level-triggered.
struct Arrivals {
    state: Mutex<Inside>,
    changed: Condvar,
}

struct Inside {
    there: usize,
    enabled: [bool; 2],
}

impl Arrivals {
    fn arrive(&self) {
        lock(&self.state).there += 1;
        self.changed.notify_all();
    }

    fn wait_until(&self, ready: impl Fn(&Inside) -> bool) {
        let mut state = lock(&self.state);
        while !ready(&state) {
            state = self.changed.wait(state).unwrap();
        }
    }
}

struct Loop {
    index: usize,
    idle: AtomicBool,
}

impl Polled for Arc<Loop> {
    type Arrivals = Arrivals;

    fn index(&self) -> usize {
        self.index
    }

    fn is_idle(&self) -> bool {
        self.idle.load(Ordering::SeqCst)
    }

    fn enable(&self, arrivals: &Arrivals, enabled: bool) -> bool {
        lock(&arrivals.state).enabled[self.index] = enabled;
        arrivals.changed.notify_all();
        true
    }

    fn wake(&self) {}
}

struct Shared {
    arrivals: Arrivals,
    ring: Ring<Arc<Loop>>,
    loops: [Arc<Loop>; 2],
}

impl Shared {
    fn new() -> Arc<Self> {
        let loops = [0, 1].map(|index| {
            Arc::new(Loop {
                index,
                idle: AtomicBool::new(true),
            })
        });
        let ring = Ring::new();
        loops.iter().for_each(|one| ring.join(one.clone()));
        Arc::new(Self {
            arrivals: Arrivals {
                state: Mutex::new(Inside {
                    there: 0,
                    enabled: [true; 2],
                }),
                changed: Condvar::new(),
            },
            ring,
            loops,
        })
    }

    /// A receive of this loop; whether it found something.
    fn receive(&self, index: usize) -> bool {
        let mut state = lock(&self.arrivals.state);
        let found = state.there > 0;
        state.there -= usize::from(found);
        drop(state);
        self.loops[index].idle.store(!found, Ordering::SeqCst);
        let _look = self.ring.after_recv(&self.arrivals, index, found);
        found
    }

    /// Receives whenever the loop is woken, until it has found something, with which it is busy for
    /// ever.
    fn run(&self, index: usize) {
        while !self.receive(index) {
            (self.arrivals).wait_until(|state| state.enabled[index] && state.there > 0);
        }
    }
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// While one loop is at work, whatever it led, the other is told of the next arrival.
#[test]
fn loom_an_idle_loop_is_told_while_the_other_is_busy() {
    check(|| {
        let shared = Shared::new();
        let loops = [0, 1].map(|index| {
            let shared = shared.clone();
            thread::spawn(move || shared.run(index))
        });
        shared.arrivals.arrive();
        shared.arrivals.arrive();
        for one in loops {
            one.join().unwrap();
        }
    });
}

/// A loop closes its socket, which may lead.
#[test]
fn loom_a_leader_that_leaves_hides_nothing() {
    check(|| {
        let shared = Shared::new();
        let leaving = {
            let shared = shared.clone();
            thread::spawn(move || {
                let found = shared.receive(0);
                shared.ring.leave(&shared.arrivals, 0);
                found
            })
        };
        let staying = {
            let shared = shared.clone();
            thread::spawn(move || shared.run(1))
        };
        shared.arrivals.arrive();
        if leaving.join().unwrap() {
            shared.arrivals.arrive();
        }
        staying.join().unwrap();
    });
}

/// A loop that seems idle never comes: looking finds out, and the other is told.
#[test]
fn loom_a_look_finds_a_leader_that_does_not_come() {
    check(|| {
        let shared = Shared::new();
        // It leads, or will not: the other may be first.
        let stuck = {
            let shared = shared.clone();
            thread::spawn(move || shared.receive(0))
        };
        let other = {
            let shared = shared.clone();
            thread::spawn(move || shared.run(1))
        };
        if stuck.join().unwrap() {
            unreachable!("nothing is there");
        }
        shared.arrivals.arrive();
        // One may see that the leader came before, two are needed for what is hidden.
        for _ in 0..3 {
            let there = || lock(&shared.arrivals.state).there > 0;
            shared.ring.look(&shared.arrivals, there);
        }
        other.join().unwrap();
    });
}
