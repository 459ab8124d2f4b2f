//! The ideal of `work`: one queue feeding all workers, simulated event by event.
//!
//! No system calls, no wake-ups, no network: a request waits only while every worker is busy.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Duration,
};

use super::{
    draw::{Draw, IN_FLIGHT},
    stats::{Histogram, Sample},
};

/// How arriving requests find their worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queueing {
    /// One queue; whoever is idle takes its head.
    Shared,
    /// Connections are dealt to workers round robin, each with a queue of its own: what raw TCP
    /// does. Only the tests ask for it, to show what the ideal is worth.
    #[cfg(test)]
    Dealt,
}

/// Simulates the closed loop of `work` and measures it after the warm-up, as a real run does.
pub(super) fn simulate(
    draw: Draw,
    workers: usize,
    queueing: Queueing,
    warm_up: Duration,
    duration: Duration,
) -> Sample {
    let end = warm_up + duration;
    let mut simulation = Simulation::new(draw, workers, queueing);
    let mut latency = Histogram::new();
    let mut messages = 0;
    while let Some((now, request)) = simulation.next_reply() {
        if now >= end {
            break;
        }
        if now >= warm_up {
            messages += 1;
            latency.record(now - request.sent);
        }
    }
    Sample {
        messages,
        elapsed: duration,
        cpu: None,
        latency: Some(latency),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Request {
    number: u64,
    sent: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives(u64),
    Served { worker: usize, request: Request },
}

struct Simulation {
    draw: Draw,
    events: BinaryHeap<Reverse<(Duration, Event)>>,
    /// One, or one for each worker.
    queues: Vec<VecDeque<Request>>,
    idle: Vec<bool>,
    sent: [u32; IN_FLIGHT.len()],
}

impl Simulation {
    fn new(draw: Draw, workers: usize, queueing: Queueing) -> Self {
        let queues = match queueing {
            Queueing::Shared => 1,
            #[cfg(test)]
            Queueing::Dealt => workers,
        };
        let mut simulation = Self {
            draw,
            events: BinaryHeap::new(),
            queues: vec![VecDeque::new(); queues],
            idle: vec![true; workers],
            sent: [0; IN_FLIGHT.len()],
        };
        for (connection, in_flight) in IN_FLIGHT.into_iter().enumerate() {
            for _ in 0..in_flight {
                simulation.send(connection, Duration::ZERO);
            }
        }
        simulation
    }

    /// Runs to the next reply.
    fn next_reply(&mut self) -> Option<(Duration, Request)> {
        loop {
            let Reverse((now, event)) = self.events.pop()?;
            match event {
                Event::Arrives(number) => {
                    let queue = Draw::connection(number) % self.queues.len();
                    self.queues[queue].push_back(Request { number, sent: now });
                    let waits = |worker: &usize| worker % self.queues.len() == queue;
                    if let Some(worker) = (0..self.idle.len())
                        .filter(waits)
                        .find(|&worker| self.idle[worker])
                    {
                        self.start(worker, now);
                    }
                }
                Event::Served { worker, request } => {
                    self.start(worker, now);
                    let pause = self.draw.pause(request.number);
                    self.send(Draw::connection(request.number), now + pause);
                    return Some((now, request));
                }
            }
        }
    }

    fn send(&mut self, connection: usize, at: Duration) {
        let number = Draw::number(connection, self.sent[connection]);
        self.sent[connection] += 1;
        self.events.push(Reverse((at, Event::Arrives(number))));
    }

    fn start(&mut self, worker: usize, now: Duration) {
        let queue = worker % self.queues.len();
        let request = self.queues[queue].pop_front();
        self.idle[worker] = request.is_none();
        if let Some(request) = request {
            let end = now + self.draw.service(request.number).total();
            self.events
                .push(Reverse((end, Event::Served { worker, request })));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(workers: usize, queueing: Queueing) -> Sample {
        let warm_up = Duration::from_secs(1);
        simulate(
            Draw::new(7),
            workers,
            queueing,
            warm_up,
            Duration::from_secs(30),
        )
    }

    #[test]
    fn one_worker_that_never_idles_serves_two_thousand_a_second() {
        let sample = run(1, Queueing::Shared);
        let rate = sample.rate_per_s();
        assert!((rate - 2000.0).abs() < 100.0, "{rate}");
        // Little's law: between 20 (only the busy connections) and 25 requests in the system.
        let latency = sample.latency.expect("measured").mean_us() * 1e-6;
        assert!((20.0..25.0).contains(&(rate * latency)), "{latency}");
    }

    #[test]
    fn enough_workers_leave_nothing_but_service() {
        let sample = run(25, Queueing::Shared);
        let mean = sample.latency.expect("measured").mean_us();
        assert!((mean - 500.0).abs() < 25.0, "{mean}");
    }

    #[test]
    fn the_ideal_beats_dealing_as_much_as_the_module_says() {
        let (ideal, dealt) = (run(4, Queueing::Shared), run(4, Queueing::Dealt));
        let rate = ideal.rate_per_s() / dealt.rate_per_s();
        let [ideal, dealt] = [ideal, dealt].map(|s| s.latency.expect("measured"));
        let mean = ideal.mean_us() / dealt.mean_us();
        let stddev = ideal.stddev_us() / dealt.stddev_us();
        assert!((rate - 1.75).abs() < 0.05, "{rate}");
        assert!((mean - 0.59).abs() < 0.03, "{mean}");
        assert!((stddev - 0.33).abs() < 0.03, "{stddev}");
    }
}
