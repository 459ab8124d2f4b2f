//! `kcm perf`: what KCM costs and gains against raw TCP, measured so that the figures hold.
//!
//! All contenders run every scenario over loopback in this process, one after the other within a
//! round, in an order that rotates from round to round: the speed of a machine drifts by more
//! than the differences that matter, so only ratios within a round are worth anything. Messages
//! are checked on the way by the same code for all (`verify`), serving code is the same for all
//! (`service`), and the window that is measured is opened and closed from outside (`run`).
//!
//! `plan` makes rows of the options. For each a contender's `server` and a `scenario`'s client run
//! against each other; `raw`, `engine` and `kernel` are what the contenders are made of. `stats`
//! makes figures of the samples, `report` and `json` tell them.

mod affinity;
mod connections;
mod cputime;
mod draw;
mod engine;
mod failure;
mod header;
mod ideal;
mod json;
mod kernel;
mod kernel_serve;
mod lateness;
mod machine;
mod plan;
mod raw;
mod report;
mod run;
mod scenario;
mod server;
mod service;
mod stats;
mod verify;

pub(crate) use failure::Failure;

use std::{
    fs::{self, OpenOptions},
    num::NonZeroU64,
    path::Path,
};

use self::{
    affinity::Pins,
    draw::Draw,
    ideal::Queueing,
    json::{Document, RowResult, ToIdeal, ToKernel},
    machine::Machine,
    plan::{Plan, Row},
    scenario::Trial,
    server::Contender,
    stats::{Figures, Ratios, Sample},
};
use crate::{
    cli::{Against, PerfOptions, ScenarioName},
    progress::Progress,
};

/// Measures what the options say and tells the result.
pub(crate) fn run(options: &PerfOptions) -> Result<(), Failure> {
    let mut contenders = vec![Contender::Tcp, Contender::Kcm];
    if options.against == Some(Against::Kernel) {
        kernel::probe()?;
        contenders.push(Contender::Kernel);
    }
    let mut plan = Plan::new(options, u32::try_from(contenders.len()).unwrap_or(u32::MAX))?;
    let pins = Pins::choose(options.pin)?;
    if let Some(path) = &options.output {
        // Now, and not after the measurement, is the time to hear that it cannot be written. What it
        // holds stays until there is something new.
        let failure = Failure::system(format!("write {}", path.display()));
        let open = OpenOptions::new().append(true).create(true).open(path);
        open.map_err(failure)?;
    }
    // Sleeping threads wake when they are to, not up to 50 us later; threads inherit it.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))
        .map_err(Failure::errno("set the timer slack"))?;

    let machine = Machine::this_one();
    if !options.json {
        report::print(&report::header(&machine, &plan))?;
    }
    let mut progress = Progress::new(plan.time().as_nanos());
    let mut rows = Vec::with_capacity(plan.rows.len());
    for next in 0..plan.rows.len() {
        plan.keep_to_time(next, progress.elapsed());
        let row = &plan.rows[next];
        let result = measure_row(row, plan.rounds, &contenders, pins, &mut progress);
        progress.clear();
        let result = result?;
        if !options.json {
            report::print(&report::row(&result))?;
        }
        rows.push(result);
    }

    if !options.json {
        report::print(&report::notes(&rows))?;
        let seconds = progress.elapsed().as_secs_f64();
        report::print(&format!("Every message was right. Took {seconds:.0} s.\n"))?;
    }
    if options.json || options.output.is_some() {
        let document = Document::new(&machine, &plan, &rows);
        let mut text = serde_json::to_string_pretty(&document)
            .map_err(|e| Failure::system("write the result as JSON")(e.into()))?;
        text.push('\n');
        if let Some(path) = &options.output {
            write_file(path, text.as_bytes())?;
        }
        if options.json {
            report::print(&text)?;
        }
    }
    Ok(())
}

/// All rounds of one row.
fn measure_row(
    row: &Row,
    rounds: u32,
    contenders: &[Contender],
    pins: Pins,
    progress: &mut Progress,
) -> Result<RowResult, Failure> {
    let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); contenders.len()];
    let mut ideal = Vec::new();
    let lateness = match row.scenario {
        ScenarioName::Work => Some(lateness::of_sleeps(Draw::usual_sleep(), row.sockets)?),
        _ => None,
    };
    for round in 0..rounds {
        let draw = Draw::new(u64::from(round));
        for turn in 0..contenders.len() {
            let index = (turn + round as usize) % contenders.len();
            let contender = contenders[index];
            let label = format!("{} over {}", row.label(), contender.name());
            progress.show(&format!("{label} {}/{rounds}", round + 1));
            let trial = Trial::new(row, contender, pins, draw, lateness.unwrap_or_default());
            samples[index].push(trial.measure().map_err(|e| e.within(&label))?);
            progress.advance(row.timing.whole().as_nanos());
        }
        if row.scenario == ScenarioName::Work {
            let timing = row.timing;
            let queueing = Queueing::Shared;
            ideal.push(ideal::simulate(
                draw,
                row.sockets,
                queueing,
                timing.warm_up,
                timing.duration,
            ));
        }
    }
    let [tcp, kcm, kernel @ ..] = &samples[..] else {
        return Err(Failure::Stalled("nothing was measured".to_owned()));
    };
    let (tcp_figures, kcm_figures) = (Figures::of(tcp), Figures::of(kcm));
    let mut result = RowResult::new(row, tcp_figures, kcm_figures, Ratios::new(kcm, tcp));
    if let [kernel] = kernel {
        result.kernel = Some(Figures::of(kernel));
        result.to_kernel = Some(ToKernel(Ratios::new(kcm, kernel)));
        result.kernel_to_tcp = Some(Ratios::new(kernel, tcp));
    }
    result.sleep_late_us = lateness.map(|lateness| lateness.as_secs_f64() * 1e6);
    if !ideal.is_empty() {
        result.ideal = Some(Figures::of(&ideal));
        result.to_ideal = Some(ToIdeal(Ratios::new(kcm, &ideal)));
        result.ideal_to_tcp = Some(Ratios::new(&ideal, tcp));
    }
    Ok(result)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let failure = Failure::system(format!("write {}", path.display()));
    fs::write(path, bytes).map_err(failure)
}
