//! The result as a table, for people: one line a contender, printed as soon as a row is measured.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use super::{
    failure::Failure,
    json::RowResult,
    machine::Machine,
    plan::Plan,
    stats::{Figures, Latency, Ratio, Ratios},
};

/// What is above the table.
pub(super) fn header(machine: &Machine, plan: &Plan) -> String {
    format!("{}; {} rounds\n{HEADINGS}", machine.line(), plan.rounds)
}

/// One row: a line for each contender.
pub(super) fn row(result: &RowResult) -> String {
    let row = &result.row;
    let key = format!(
        "{:<12}{:>6} {:>4} {:>5} ",
        result.scenario,
        row.size_bytes,
        row.sockets,
        row.mode()
    );
    let blank = " ".repeat(key.len());
    let mut text = String::new();
    line(&mut text, &key, "TCP", &result.tcp, None);
    line(
        &mut text,
        &blank,
        "KCM",
        &result.kcm,
        Some(&result.to_tcp.0),
    );
    if let Some(kernel) = &result.kernel {
        line(
            &mut text,
            &blank,
            "kernel",
            kernel,
            result.kernel_to_tcp.as_ref(),
        );
    }
    if let Some(ideal) = &result.ideal {
        line(
            &mut text,
            &blank,
            "ideal",
            ideal,
            result.ideal_to_tcp.as_ref(),
        );
    }
    let medians = [
        ("kernel", result.to_kernel.map(|to| to.0)),
        ("ideal", result.to_ideal.map(|to| to.0)),
    ];
    for (whom, ratios) in medians {
        if let Some(ratios) = ratios {
            let _ = writeln!(text, "{blank}KCM / {whom}: {}", in_words(&ratios));
        }
    }
    text
}

/// What to know when reading it, below the table.
pub(super) fn notes(rows: &[RowResult]) -> String {
    let mut text = String::from(
        "\nRates and CPU times are medians over the rounds, latencies are of all messages; ratios \
         are taken within each round.\nA message of a scenario with replies is a request and its \
         reply; sender and recvr: CPU time of the threads of each side.\n",
    );
    let has = |wanted: fn(&RowResult) -> bool| rows.iter().any(wanted);
    if has(|r| r.spin) {
        text.push_str("spin: KCM spins before it sleeps, at both ends; raw TCP does not.\n");
    }
    if has(|r| r.scenario == "pipeline" && r.sockets > 1) {
        text.push_str(
            "pipeline: raw TCP has one receiver in every row; several cannot read one stream.\n",
        );
    }
    let made = rows.iter().find(|r| r.row.framing.native().is_none());
    if let Some(header) = made.and_then(|r| r.row.header.native()) {
        let _ = writeln!(
            text,
            "pipeline: its messages are made, and cut by raw TCP, with the length field {header}; \
             KCM asks --framing."
        );
    }
    if has(|r| r.ideal.is_some()) {
        text.push_str("ideal: one queue feeding all workers, simulated for the same draw.\n");
    }
    if let Some(late_us) = rows.iter().find_map(|r| r.sleep_late_us) {
        let _ = writeln!(
            text,
            "work: sleeps end {late_us:.0} us late on this machine, idle, measured before; services \
             of all contenders sleep so much less."
        );
    }
    if has(|r| r.kernel.is_some()) {
        text.push_str(
            "kernel: AF_KCM; what it does in soft interrupts and kernel threads is in nobody's CPU \
             time. Its framing program says a constant in pipeline and pipeline-rr, since with a \
             length field it would lose the message boundaries.\n",
        );
    }
    text
}

/// Writes to the standard output, which may be a pipe that nobody reads any more.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|e| match e.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::system("write to the standard output")(e),
        })
}

/// The columns; [`row`] and [`line()`] keep to them.
#[rustfmt::skip]
const HEADINGS: &str = "
                                                 |  latency   stddev      p50      p99 |    CPU ns   per msg |        x TCP: rate   lat.   dev.    cpu    rcv
scenario     bytes sock  mode             rate/s |  mean us       us       us       us |    sender     recvr |median      min-max   mean                  cpu
";

fn line(text: &mut String, key: &str, who: &str, figures: &Figures, ratios: Option<&Ratios>) {
    let _ = write!(text, "{key}{who:<7}{:>11} |", grouped(figures.rate_per_s));
    let latency = |value: fn(&Latency) -> f64| short(figures.latency_us.as_ref().map(value));
    let _ = write!(
        text,
        "{:>9}{:>9}{:>9}{:>9} |",
        latency(|l| l.mean),
        latency(|l| l.stddev),
        latency(|l| l.p50),
        latency(|l| l.p99)
    );
    let cpu = figures.cpu_ns_per_message;
    let _ = write!(
        text,
        "{:>10}{:>10} |",
        short(cpu.map(|c| c.sender)),
        short(cpu.map(|c| c.receiver))
    );
    if let Some(ratios) = ratios {
        let range = ratios.rate.map_or_else(String::new, |r| {
            format!("{}-{}", ratio(r.min, 2), ratio(r.max, 2))
        });
        let median = |of: Option<Ratio>| of.map_or_else(String::new, |of| ratio(of.median, 3));
        let _ = write!(
            text,
            "{:>6}{:>13}{:>7}{:>7}{:>7}{:>7}",
            median(ratios.rate),
            range,
            median(ratios.latency_mean),
            median(ratios.latency_stddev),
            median(ratios.cpu),
            median(ratios.cpu_receiver)
        );
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
}

/// With so many decimals, and fewer where the number is not near 1.
fn ratio(value: f64, decimals: usize) -> String {
    match value {
        ..9.995 => format!("{value:.decimals$}"),
        ..99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// The medians that there are, in words.
fn in_words(ratios: &Ratios) -> String {
    let all = [
        ("rate", ratios.rate),
        ("mean latency", ratios.latency_mean),
        ("deviation", ratios.latency_stddev),
        ("p99", ratios.latency_p99),
        ("CPU", ratios.cpu),
        ("receiver's CPU", ratios.cpu_receiver),
    ];
    let present = all.into_iter().filter_map(|(name, of)| Some((name, of?)));
    let texts: Vec<_> = present
        .map(|(name, of)| format!("{name} {}", ratio(of.median, 3)))
        .collect();
    texts.join(", ")
}

/// Three digits or so: the fourth is noise.
fn short(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 99.95 => format!("{value:.1}"),
        Some(value) => grouped(value),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_readable() {
        assert_eq!(grouped(1_234_567.4), "1,234,567");
        assert_eq!(
            (grouped(999.0), grouped(1000.0)),
            ("999".into(), "1,000".into())
        );
        assert_eq!(short(Some(9.96)), "10.0");
        assert_eq!(
            (ratio(1.0, 3), ratio(12.34, 3)),
            ("1.000".into(), "12.3".into())
        );
        assert_eq!(
            (short(Some(123.4)), short(None)),
            ("123".into(), "-".into())
        );
    }
}
