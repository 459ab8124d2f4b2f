//! A multiplexor, its connections and its sockets under a random schedule, against a naive model:
//! nothing is lost, nothing comes twice, nothing is mixed or cut.
//!
//! Tests of single rules look where somebody thought of looking; what is lost between two of them
//! (a socket dropped with a lease while its connection is unattached while a reply is kept back)
//! is found by chance, and chance needs a judge that knows every right outcome. Everything is drawn
//! from a seed. With one thread the schedule repeats (but for the engine's background thread);
//! with several it does not, but the model is the same.
//!
//! `KCM_SIM_SEED=17` runs that seed alone, `KCM_SIM_SEEDS=5000` so many.

mod common;

#[path = "simulation/actor.rs"]
mod actor;
#[path = "simulation/finish.rs"]
mod finish;
#[path = "simulation/model.rs"]
mod model;
#[path = "simulation/peer.rs"]
mod peer;
#[path = "simulation/random.rs"]
mod random;
#[path = "simulation/sending.rs"]
mod sending;
#[path = "simulation/sent.rs"]
mod sent;
#[path = "simulation/transport.rs"]
mod transport;
#[path = "simulation/wire.rs"]
mod wire;
#[path = "simulation/world.rs"]
mod world;

use std::{
    env,
    net::TcpListener,
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use actor::Actor;
use common::{alone, open_descriptors, wait_until};
use random::Random;
use world::{Setup, World};

/// Longest time of one seed: it takes some 150 ms.
const SEED_SECONDS: u64 = 60;

#[test]
fn one_thread() {
    seeds(60, |_| 1);
}

#[test]
fn several_threads() {
    seeds(12, |random| random.between(2, 5));
}

fn seeds(count: u64, threads: fn(&mut Random) -> usize) {
    let number = |name| {
        env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("KCM_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("KCM_SIM_SEEDS").unwrap_or(count),
    };
    for seed in seeds {
        // `alone`: descriptors of the whole process are counted.
        let run = move || alone(SEED_SECONDS, move || simulate(seed, threads));
        if let Err(reason) = panic::catch_unwind(run) {
            eprintln!("seed {seed}: run it alone with KCM_SIM_SEED={seed}");
            panic::resume_unwind(reason);
        }
    }
}

fn simulate(seed: u64, threads: fn(&mut Random) -> usize) {
    let mut random = Random::new(seed);
    let threads = threads(&mut random);
    let setup = Setup::new(&mut random, threads);
    start_background();
    let before = open_descriptors();
    if env::var_os("KCM_SIM_SEED").is_some() {
        eprintln!("{setup:#?}");
    }
    let world = World::new(setup);
    for _ in 0..setup.connections {
        world.attach(&mut random);
    }
    world.note_stranded(&world.model());
    let actors: Vec<_> = (0..threads)
        .map(|number| Actor::new(world.clone(), number, random.fork()))
        .collect();
    let actors = if threads == 1 {
        work(actors)
    } else {
        work_together(&world, actors)
    };
    world.finish(actors);
    drop(world);
    wait_until("no descriptor is leaked", || open_descriptors() <= before);
}

fn work(mut actors: Vec<Actor>) -> Vec<Actor> {
    for actor in &mut actors {
        for _ in 0..actor.world.setup.steps {
            actor.step();
        }
    }
    actors
}

/// Each in a thread of its own, while another lets lines go that would hold somebody up.
fn work_together(world: &Arc<World>, actors: Vec<Actor>) -> Vec<Actor> {
    let over = Arc::new(AtomicBool::new(false));
    let helper = {
        let (world, over) = (world.clone(), over.clone());
        thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                world.open_lines();
                thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let each = |actor: Actor| {
        thread::spawn(move || {
            let mut actor = actor;
            for _ in 0..actor.world.setup.steps {
                actor.step();
                match actor.random.below(20) {
                    0 => thread::sleep(Duration::from_micros(50)),
                    1..5 => thread::yield_now(),
                    _ => {}
                }
            }
            actor
        })
    };
    let threads: Vec<_> = actors.into_iter().map(each).collect();
    let results: Vec<_> = threads.into_iter().map(thread::JoinHandle::join).collect();
    over.store(true, Ordering::Relaxed);
    helper.join().expect("the helper");
    let result: Result<Vec<_>, _> = results.into_iter().collect();
    result.unwrap_or_else(|reason| panic::resume_unwind(reason))
}

/// The engine's background thread keeps two descriptors for ever.
fn start_background() {
    let mux = common::mux();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    mux.listen(listener).expect("it accepts in the background");
    mux.shutdown();
}
