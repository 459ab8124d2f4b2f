//! Random programs on the running kernel and here: what both accept gives the same result, and
//! where they differ about accepting, the reason is one of a list.
//!
//! Needs `bpf(2)`, which means root on most systems; says so and proves nothing where that is not
//! allowed. `KCM_BPF_SEED` and `KCM_BPF_PROGRAMS` choose which programs, and how many.
#![allow(
    missing_docs,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "random numbers are cut to size all the time"
)]

#[path = "kernel/bpf.rs"]
mod bpf;
mod common;

use std::collections::BTreeMap;
use std::io::Write;

use bpf::{Loaded, load};
use common::generate::{Random, program, spoil};
use kcm_bpf::{Error, Insn, Program, Reason, disassemble, op};

const PROGRAMS: u64 = 3000;
const SEED: u64 = 1;

/// Why we refuse what the kernel, asked by root, accepts. All other reasons would be a mistake.
fn is_meant(reason: &Reason) -> Option<&'static str> {
    Some(match reason {
        Reason::PointerLeak { .. } => "root may see pointers as numbers",
        Reason::UninitialisedStack { .. } | Reason::UnwrittenBuffer { .. } => {
            "root may read stack that was never written"
        }
        Reason::PointerInPieces { .. } => "root may read parts of stored pointers",
        Reason::NegativeOffset => "a packet has link and network headers",
        Reason::Unsupported(_) => "atomics, maps, kernel functions, may_goto",
        Reason::Helper { .. } => "other helper functions",
        Reason::Context { .. } => "fields that only a packet has",
        Reason::ReservedField
        | Reason::NoSuchInstruction
        | Reason::DivisionByZero
        | Reason::ShiftTooFar
        | Reason::FramePointerWritten => "an impossible instruction that no path leads to",
        _ => return None,
    })
}

/// Why we accept what the kernel refuses, by a piece of its log.
const MORE_THAN_THE_KERNEL: &[(&str, &str)] = &[
    (
        "LD_ABS is not allowed in subprogs without BTF",
        "packet loads in subprograms need type information there",
    ),
    (
        "LD_ABS is only allowed in functions that return",
        "packet loads in subprograms need type information there",
    ),
];

/// We know how wide a packet load is and what comes of a division, and so that some branch is never
/// taken; the kernel does not, follows it, and may find something there. Few programs are accepted
/// for this reason.
const KNOWN_BETTER: &str = "bounds of packet loads and divisions, which the kernel does not follow";

/// Where the kernel has refused a program.
#[derive(Clone, Copy)]
enum Refused {
    At(usize),
    /// It came back to this instruction with nothing changed.
    EndlessLoop(usize),
}

impl Refused {
    /// From the log of the kernel's verifier.
    fn of(log: &str) -> Option<Self> {
        let endless = |line: &str| {
            let at = line.strip_prefix("infinite loop detected at insn ")?;
            Some(Self::EndlessLoop(at.parse().ok()?))
        };
        let followed = |line: &str| Some(Self::At(line.split_once(": (")?.0.parse().ok()?));
        log.lines()
            .find_map(endless)
            .or_else(|| log.lines().rev().find_map(followed))
    }

    /// Whether it is for lack of that knowledge: knowing no more of such results than the kernel, we
    /// refuse this very instruction too. Of an endless loop, each of us finds another instruction.
    fn blindly(self, insns: &[Insn]) -> bool {
        let (Self::At(at) | Self::EndlessLoop(at)) = self;
        let Err(Error::Rejected(rejection)) = Program::verify(blurred(insns, at)) else {
            return false;
        };
        match self {
            Self::At(at) => rejection.index() == Some(at),
            Self::EndlessLoop(_) => *rejection.reason() == Reason::EndlessLoop,
        }
    }
}

/// The program with any number in place of what is loaded from the message or divided, but for the
/// instruction that is refused.
fn blurred(insns: &[Insn], refused_at: usize) -> Vec<Insn> {
    let mut blurred = insns.to_vec();
    for (at, insn) in blurred.iter_mut().enumerate() {
        let is_load = insn.class() == op::LD && insn.code & 0xe0 != op::IMM;
        let is_division = matches!(insn.class(), op::ALU | op::ALU64)
            && matches!(insn.code & 0xf0, op::DIV | op::MOD);
        if at == refused_at {
            continue;
        }
        if is_load {
            // The time: any number, and registers 1 to 5 are gone, as after a load.
            *insn = Insn::decode([op::JMP | op::CALL, 0, 0, 0, 5, 0, 0, 0]);
        } else if is_division {
            // Any number, too: cb[0] and cb[1].
            *insn = Insn {
                code: op::LDX | op::MEM | op::DW,
                dst: insn.dst,
                src: op::CTX,
                off: 48,
                imm: 0,
            };
        }
    }
    blurred
}

#[test]
fn the_kernel_agrees() {
    let number = |name, default| match std::env::var(name) {
        Ok(text) => text.parse().expect("a number"),
        Err(_) => default,
    };
    let (seed, programs) = (
        number("KCM_BPF_SEED", SEED),
        number("KCM_BPF_PROGRAMS", PROGRAMS),
    );
    let exit = [
        Insn::decode([0xb7, 0, 0, 0, 0, 0, 0, 0]),
        Insn::decode([0x95, 0, 0, 0, 0, 0, 0, 0]),
    ];
    if let Err((error, _)) = load(&exit) {
        common::skip(&format!("bpf(2) loads no program ({error}); run as root"));
        return;
    }
    let mut account = Account::default();
    for n in 0..programs {
        let mut random = Random(seed.wrapping_mul(0x1_0000_0001).wrapping_add(n));
        let mut insns = program(&mut random);
        if random.one_in(2) {
            spoil(&mut random, &mut insns);
        }
        account.compare(&insns, &mut random, &format!("seed {seed}, program {n}"));
    }
    say(&account.show(seed, programs));
    assert!(account.findings.is_empty(), "see above");
    let known_better = account.only_we.get(KNOWN_BETTER).copied();
    assert!(
        known_better.unwrap_or(0) * 200 <= programs,
        "more than every 200th program is accepted for better knowledge"
    );
    assert!(
        account.both * 4 > programs,
        "too few programs that both accept: {}",
        account.both
    );
}

/// Whether the time is asked for and more of it kept than the generator does, which is nothing. No
/// two runs need give the same then.
fn asks_for_the_time(insns: &[Insn]) -> bool {
    let is_call = |insn: &Insn| insn.code == op::JMP | op::CALL && insn.imm == 5;
    let is_dropped = |next: Option<&Insn>| {
        next.is_some_and(|next| next.code == op::ALU64 | op::AND && next.dst == 0 && next.imm == 0)
    };
    (0..insns.len()).any(|at| is_call(&insns[at]) && !is_dropped(insns.get(at + 1)))
}

#[derive(Default)]
struct Account {
    both: u64,
    neither: u64,
    runs: u64,
    /// Accepted by both, but the result may depend on the time.
    timed: u64,
    /// Programs about which the two differ, by reason.
    only_kernel: BTreeMap<&'static str, u64>,
    only_we: BTreeMap<&'static str, u64>,
    findings: Vec<String>,
}

impl Account {
    fn compare(&mut self, insns: &[Insn], random: &mut Random, name: &str) {
        let listing = || disassemble(insns).to_string();
        match (load(insns), Program::verify(insns.to_vec())) {
            (Ok(theirs), Ok(ours)) => {
                self.both += 1;
                if asks_for_the_time(insns) {
                    self.timed += 1;
                    return;
                }
                self.run(&theirs, &ours, random, &|what| {
                    format!("{name}: {what}\n{}", listing())
                });
            }
            (Err(_), Err(_)) => self.neither += 1,
            (Ok(_), Err(error)) => match &error {
                Error::Rejected(rejection) if is_meant(rejection.reason()).is_some() => {
                    let reason = is_meant(rejection.reason()).unwrap_or("");
                    *self.only_kernel.entry(reason).or_default() += 1;
                }
                _ => self.findings.push(format!(
                    "{name}: the kernel accepts it, we say: {error}\n{}",
                    listing()
                )),
            },
            (Err((error, log)), Ok(ours)) => {
                let known = MORE_THAN_THE_KERNEL
                    .iter()
                    .find(|(piece, _)| log.contains(piece));
                match known {
                    Some((_, reason)) => *self.only_we.entry(reason).or_default() += 1,
                    None if Refused::of(&log).is_some_and(|refused| refused.blindly(insns)) => {
                        *self.only_we.entry(KNOWN_BETTER).or_default() += 1;
                    }
                    None => {
                        let end: Vec<&str> = log.lines().rev().take(6).collect();
                        // (Of no use to the test, but to who looks at it.)
                        let harm = match is_harmless(&ours, random) {
                            Ok(()) => "the plain evaluator finds nothing wrong".to_owned(),
                            Err(message) => format!("{message:?} shows that it is not safe"),
                        };
                        self.findings.push(format!(
                            "{name}: we accept it, and {harm}; the kernel says: {error}: {end:#?}\n{}",
                            listing()
                        ));
                    }
                }
            }
        }
    }

    fn run(
        &mut self,
        theirs: &Loaded,
        ours: &Program,
        random: &mut Random,
        finding: &dyn Fn(String) -> String,
    ) {
        for message in messages(random) {
            let ran = theirs
                .run(&message)
                .expect("the kernel runs what it has loaded");
            let outcome = ours.run(&message, 0);
            self.runs += 1;
            let same = outcome.result == ran.result
                && outcome.key.unwrap_or(0) == ran.cb[0]
                && outcome.class.unwrap_or(0) == u8::try_from(ran.cb[1]).unwrap_or(u8::MAX);
            if !same {
                self.findings.push(finding(format!(
                    "{message:?} gives {outcome:?}, in the kernel {ran:?}"
                )));
                return;
            }
        }
    }

    fn show(&self, seed: u64, programs: u64) -> String {
        let mut text = format!(
            "{programs} programs from seed {seed}: {} accepted by both with the same results of {} \
             runs, except for {} that ask for the time; {} refused by both",
            self.both, self.runs, self.timed, self.neither
        );
        for (who, reasons) in [
            ("accepted by the kernel only", &self.only_kernel),
            ("accepted here only", &self.only_we),
        ] {
            for (reason, count) in reasons {
                text += &format!("\n  {count:5} {who}: {reason}");
            }
        }
        for finding in self.findings.iter().take(5) {
            text += &format!("\nFINDING {finding}");
        }
        if self.findings.len() > 5 {
            text += &format!("\n… and {} more findings", self.findings.len() - 5);
        }
        text
    }
}

/// Short ones and longer ones.
fn messages(random: &mut Random) -> Vec<Vec<u8>> {
    let message = |len| {
        let mut message: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        if random.one_in(2) {
            // Small numbers, as in headers.
            message.iter_mut().for_each(|byte| *byte &= 3);
        }
        message
    };
    [1, 4, 11, 40, 90].map(message).into()
}

/// Whether the plain evaluator, which knows nothing of verifiers, finds that a program stays in bounds,
/// ends, and does not depend on what was in registers and stack before; or the message with which not.
fn is_harmless(program: &Program, random: &mut Random) -> Result<(), Vec<u8>> {
    const ROUNDS: usize = 20;
    let garbage = [0, u64::MAX, 0xdead_beef_1234_5678];
    for message in (0..ROUNDS).flat_map(|_| messages(random)) {
        let result = program.run(&message, 0).result;
        let same = |garbage| {
            let run = || common::run_over(garbage, program.insns(), &message);
            std::panic::catch_unwind(run).is_ok_and(|plain| plain == result)
        };
        if !garbage.into_iter().all(same) {
            return Err(message);
        }
    }
    Ok(())
}

/// Past the capture of the test harness.
fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
