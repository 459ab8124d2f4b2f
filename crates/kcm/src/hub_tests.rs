use std::{sync::mpsc, thread};

use super::*;

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(10))
}

#[test]
fn one_watches_and_the_others_park() {
    let hub: Hub<u32> = Hub::new();
    let parker = Parker::new();
    assert_eq!(hub.turn(&parker, soon()), Turn::Watch);
    assert_eq!(hub.try_turn(), Turn::TimedOut);
    let past = Some(Instant::now());
    assert_eq!(hub.turn(&parker, past), Turn::TimedOut);
    hub.leave_watch([1, 2], false);
    assert_eq!(hub.pop(|_| ()), Some(1));
    assert_eq!(hub.turn(&parker, soon()), Turn::Item(2));
    assert_eq!(hub.try_turn(), Turn::Watch);
}

#[test]
fn an_item_is_taken_out_from_among_others() {
    let hub: Hub<u32> = Hub::new();
    assert!(!hub.is_watched());
    assert_eq!(hub.try_turn(), Turn::Watch);
    assert!(hub.is_watched());
    hub.leave_watch([1, 2, 3], false);
    assert!(!hub.is_watched());
    assert_eq!(hub.take_out(|item| *item == 2), Some(2));
    assert_eq!(hub.take_out(|item| *item == 2), None);
    assert_eq!((hub.ready(), hub.pop(|_| ())), (2, Some(1)));
    assert_eq!(hub.pop(|_| ()), Some(3));
}

#[test]
fn a_push_wakes_a_parked_thread_or_kicks_the_watcher() {
    let hub: Arc<Hub<u32>> = Arc::new(Hub::new());
    assert_eq!(hub.turn(&Parker::new(), soon()), Turn::Watch);
    assert!(!hub.is_kicked());
    assert_eq!(hub.push(7), Ok(Kick::Watcher));
    assert!(hub.is_kicked());
    assert_eq!(hub.push(8), Ok(Kick::None), "it is on its way");
    hub.leave_watch([], false);
    assert!(!hub.is_kicked());
    assert_eq!(
        (hub.pop(|_| ()), hub.pop(|_| ()), hub.pop(|_| ())),
        (Some(7), Some(8), None)
    );

    assert_eq!(hub.turn(&Parker::new(), soon()), Turn::Watch);
    let (send, receive) = mpsc::channel();
    let other = {
        let hub = hub.clone();
        thread::spawn(move || {
            send.send(()).unwrap();
            hub.turn(&Parker::new(), soon())
        })
    };
    receive.recv().unwrap();
    while lock(&hub.state).parked.is_empty() {
        thread::yield_now();
    }
    assert_eq!(hub.push(9), Ok(Kick::None));
    assert_eq!(other.join().unwrap(), Turn::Item(9));
}

#[test]
fn the_deputy_takes_an_empty_watch_over() {
    let hub: Arc<Hub<u32>> = Arc::new(Hub::new());
    assert_eq!(hub.turn(&Parker::new(), soon()), Turn::Watch);
    let other = {
        let hub = hub.clone();
        thread::spawn(move || hub.turn(&Parker::new(), soon()))
    };
    while lock(&hub.state).parked.is_empty() {
        thread::yield_now();
    }
    // It leaves with the only message, and wakes nobody, unless the other sleeps soundly.
    hub.leave_watch([], false);
    assert_eq!(other.join().unwrap(), Turn::Watch);
}

#[test]
fn closing_sends_everybody_home() {
    let hub: Arc<Hub<u32>> = Arc::new(Hub::new());
    assert_eq!(hub.turn(&Parker::new(), soon()), Turn::Watch);
    let others: Vec<_> = (0..3)
        .map(|_| {
            let hub = hub.clone();
            thread::spawn(move || hub.turn(&Parker::new(), soon()))
        })
        .collect();
    while lock(&hub.state).parked.len() < 3 {
        thread::yield_now();
    }
    assert_eq!(hub.close().0, Kick::Watcher);
    for other in others {
        assert_eq!(other.join().unwrap(), Turn::Closed);
    }
    assert_eq!(hub.push(1), Err(1));
    assert_eq!(hub.try_turn(), Turn::Closed);
}

/// Whoever makes room is the deputy, and looks once the others take nothing any more; so it does when
/// there is a watcher.
#[test]
fn the_deputy_looks_for_what_a_crowd_has_left_behind() {
    let hub: Arc<Hub<u32>> = Arc::new(Hub::new());
    assert_eq!(hub.turn(&Parker::new(), soon()), Turn::Watch);
    let parker = Parker::new();
    hub.make_room(&parker, soon(), || ());
    assert_eq!(hub.turn(&parker, soon()), Turn::Called);
    assert!(!hub.is_crowded());
}

#[test]
fn in_a_crowd_a_rest_is_left_to_those_at_work() {
    let hub: Hub<u32> = Hub::new();
    let sleeps = Parker::new();
    let wakes = |hub: &Hub<u32>| lock(&hub.state).waking.take().is_some();
    let park = |deputy: bool| {
        let mut state = lock(&hub.state);
        state.parked = vec![sleeps.clone()];
        state.deputy = deputy.then(|| sleeps.clone());
    };
    park(true);
    assert_eq!(hub.push(1), Ok(Kick::None));
    assert!(wakes(&hub), "no crowd yet");

    lock(&hub.state).crowd.make_room();
    park(true);
    assert_eq!(hub.push(2), Ok(Kick::None));
    assert!(!wakes(&hub), "the deputy looks after it");
    assert!(hub.is_crowded());
    let _waiting = hub.begin_waiting();
    assert!(hub.lets_walk() && !hub.is_wanted());
    assert_eq!(hub.pop(|_| ()), Some(1));
    assert!(!wakes(&hub), "nor for the rest");

    park(false);
    assert_eq!(hub.push(3), Ok(Kick::None));
    assert!(wakes(&hub), "nobody looks after it");
}
