//! What is printed: the medians of each contender, and the ratios of each round.

use crate::{case::Case, client::Sample, contender::Contender};

/// A figure of a sample, and how many digits of it after the point are worth seeing.
struct Figure {
    name: &'static str,
    of: fn(&Sample) -> f64,
    /// Where it is among the published ones.
    published: Option<usize>,
}

const FIGURES: [Figure; 4] = [
    Figure {
        name: "calls/s",
        of: |sample| sample.rate,
        published: Some(0),
    },
    Figure {
        name: "mean us",
        of: |sample| sample.mean_us,
        published: Some(1),
    },
    Figure {
        name: "deviation us",
        of: |sample| sample.deviation_us,
        published: Some(2),
    },
    Figure {
        name: "server CPU us/call",
        of: |sample| sample.cpu_us,
        published: None,
    },
];

/// Prints one case as tables that Markdown takes.
pub(crate) fn print(case: &Case, rounds: &[[Sample; Contender::ALL.len()]]) {
    println!("\n{}: {}; {} rounds\n", case.name, case.what, rounds.len());
    print!("| median of rounds |");
    FIGURES
        .iter()
        .for_each(|figure| print!(" {} |", figure.name));
    println!("\n| --- | --- | --- | --- | --- |");
    for (which, contender) in Contender::ALL.iter().enumerate() {
        print!("| {} |", contender.name());
        for figure in &FIGURES {
            let [_, median, _] = spread(rounds.iter().map(|round| (figure.of)(&round[which])));
            print!(" {median:.1} |");
        }
        println!();
    }
    for base in Contender::WITHOUT_KCM {
        print_ratios(case, rounds, base);
    }
}

/// Those of the contenders behind the one that they are compared with.
fn print_ratios(case: &Case, rounds: &[[Sample; Contender::ALL.len()]], base: Contender) {
    println!(
        "\n| to {}: median (min to max) | rate | mean | deviation | server CPU |",
        base.name()
    );
    println!("| --- | --- | --- | --- | --- |");
    let base = Contender::ALL.iter().position(|other| *other == base);
    let base = base.expect("it is one of them");
    for (which, contender) in Contender::ALL.iter().enumerate().skip(base + 1) {
        print!("| {} |", contender.name());
        for figure in &FIGURES {
            let ratio = |round: &[Sample; Contender::ALL.len()]| {
                (figure.of)(&round[which]) / (figure.of)(&round[base])
            };
            let [min, median, max] = spread(rounds.iter().map(ratio));
            print!(" {median:.2} ({min:.2} to {max:.2}) |");
        }
        println!();
    }
    let Some(published) = case.published else {
        return;
    };
    print!("| published: kernel's KCM |");
    for figure in &FIGURES {
        match figure.published {
            Some(at) => print!(" {:.2} |", published[at]),
            None => print!("  |"),
        }
    }
    println!();
}

/// Least, median and greatest; there is at least one.
fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let last = values.len() - 1;
    [values[0], values[values.len() / 2], values[last]]
}
