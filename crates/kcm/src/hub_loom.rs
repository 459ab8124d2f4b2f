use loom::thread;

use super::*;
use crate::sync::Condvar;

/// Stands for the system: bytes arrive, and the watcher that waits in it returns.
struct System {
    arrived: Mutex<usize>,
    changed: Condvar,
    kicked: AtomicBool,
}

impl System {
    fn new() -> Self {
        Self {
            arrived: Mutex::new(0),
            changed: Condvar::new(),
            kicked: AtomicBool::new(false),
        }
    }

    fn arrive(&self) {
        *lock(&self.arrived) += 1;
        self.changed.notify_all();
    }

    fn kick(&self) {
        let guard = lock(&self.arrived);
        self.kicked.store(true, Ordering::SeqCst);
        drop(guard);
        self.changed.notify_all();
    }

    /// Everything that has arrived; waits for something, or for a kick.
    fn wait(&self) -> usize {
        let mut arrived = lock(&self.arrived);
        while *arrived == 0 && !self.kicked.swap(false, Ordering::SeqCst) {
            arrived = self.changed.wait(arrived).unwrap();
        }
        std::mem::take(&mut *arrived)
    }
}

/// Pushes a message, from outside.
fn push(hub: &Hub<u32>, system: &System) {
    if hub.push(1) == Ok(Kick::Watcher) {
        system.kick();
    }
}

fn close(hub: &Hub<u32>, system: &System) {
    if hub.close().0 == Kick::Watcher {
        system.kick();
    }
}

/// Receives one message, as a socket does.
fn receive(hub: &Hub<u32>, system: &System) -> bool {
    let parker = Parker::new();
    loop {
        let _waiting = hub.begin_waiting();
        match hub.turn(&parker, None) {
            Turn::Item(_) => return true,
            Turn::Closed => return false,
            Turn::TimedOut | Turn::Called => unreachable!(),
            Turn::Watch => {
                let arrived = if !hub.is_kicked() { system.wait() } else { 0 };
                let others = (1..arrived).map(|_| 0);
                // The deputy needs time, which loom has not: a successor is woken instead.
                hub.leave_watch(others, true);
                if arrived > 0 {
                    return true;
                }
            }
        }
    }
}

/// Two threads receive two messages that arrive together or apart: both get theirs.
#[test]
fn loom_no_message_is_left_while_a_thread_waits() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let hub = Arc::new(Hub::new());
        let system = Arc::new(System::new());
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                let (hub, system) = (hub.clone(), system.clone());
                thread::spawn(move || assert!(receive(&hub, &system)))
            })
            .collect();
        system.arrive();
        system.arrive();
        for receiver in receivers {
            receiver.join().unwrap();
        }
    });
}

/// A push from outside reaches a thread wherever it waits; so does closing.
#[test]
fn loom_a_push_reaches_whoever_waits() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let hub = Arc::new(Hub::new());
        let system = Arc::new(System::new());
        let receivers: Vec<_> = (0..2)
            .map(|_| {
                let (hub, system) = (hub.clone(), system.clone());
                thread::spawn(move || receive(&hub, &system))
            })
            .collect();
        push(&hub, &system);
        close(&hub, &system);
        let received = receivers
            .into_iter()
            .filter(|_| true)
            .map(|r| r.join().unwrap());
        assert!(received.filter(|received| *received).count() <= 1);
    });
}

/// One of two receivers is called while a message arrives: it comes back, and nothing is left with
/// the other asleep.
#[test]
fn loom_a_call_reaches_its_thread_and_leaves_nothing_behind() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let hub = Arc::new(Hub::new());
        let system = Arc::new(System::new());
        let parker = Parker::new();
        let called = {
            let (hub, system, parker) = (hub.clone(), system.clone(), parker.clone());
            thread::spawn(move || {
                let mut items = 0;
                loop {
                    let _waiting = hub.begin_waiting();
                    match hub.turn(&parker, None) {
                        Turn::Called => return items,
                        Turn::Item(_) => items += 1,
                        Turn::Closed | Turn::TimedOut => unreachable!(),
                        Turn::Watch => {
                            let arrived = if !hub.is_kicked() { system.wait() } else { 0 };
                            hub.leave_watch((0..arrived).map(|_| 0), true);
                        }
                    }
                }
            })
        };
        let other = {
            let (hub, system) = (hub.clone(), system.clone());
            thread::spawn(move || receive(&hub, &system))
        };
        system.arrive();
        if hub.call(&parker) == Kick::Watcher {
            system.kick();
        }
        let taken = called.join().unwrap();
        if taken > 0 {
            close(&hub, &system);
        }
        // Either it got the message first, or the other gets it without further help.
        assert_eq!(other.join().unwrap(), taken == 0);
    });
}

/// A thread makes room for another and gives back what it has in hand: the other finds it, wherever
/// it is.
#[test]
fn loom_what_is_given_back_to_make_room_is_found() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let hub = Arc::new(Hub::new());
        let system = Arc::new(System::new());
        let makes_room = {
            let (hub, system) = (hub.clone(), system.clone());
            thread::spawn(move || {
                let parker = Parker::new();
                let _waiting = hub.begin_waiting();
                hub.make_room(&parker, None, || {
                    push(&hub, &system);
                });
            })
        };
        assert!(receive(&hub, &system));
        // It would wait for the next message now.
        close(&hub, &system);
        makes_room.join().unwrap();
    });
}
