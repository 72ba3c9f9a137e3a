//! Collects the times of both suites, and prints them side by side.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::call::Timed;

/// Verbs in the order in which they are printed.
const VERBS: [&str; 3] = ["ADD", "CHECK", "DEL"];

/// The times of one case: for each verb, those of ours and those of theirs.
#[derive(Default)]
pub(crate) struct Times {
    wall: BTreeMap<&'static str, [Vec<Duration>; 2]>,
    cpu: BTreeMap<&'static str, [Vec<Duration>; 2]>,
}

impl Times {
    /// Adds a call by the suite of column `suite`.
    pub(crate) fn note(&mut self, verb: &'static str, suite: usize, timed: &Timed) {
        self.wall.entry(verb).or_default()[suite].push(timed.wall);
        self.cpu.entry(verb).or_default()[suite].push(timed.cpu);
    }

    /// Prints a line for each verb.
    pub(crate) fn print(&self, case: &str) {
        for verb in VERBS.into_iter().filter(|verb| self.wall.contains_key(verb)) {
            let [ours, theirs] = &self.wall[verb];
            let [our_cpu, their_cpu] = &self.cpu[verb];
            println!(
                "{case:<24} {verb:<6} {:>9.2} {:>9.2} {:>8.1}x {:>8.1}x {:>8.1}x",
                millis(quantile(ours, 50)),
                millis(quantile(theirs, 50)),
                ratio(ours, theirs, 50),
                ratio(ours, theirs, 90),
                ratio(our_cpu, their_cpu, 50),
            );
        }
    }
}

/// The line above the table.
pub(crate) fn print_head(rounds: u32) {
    println!("medians of {rounds} calls each, in milliseconds; ratios are reference / ours\n");
    println!(
        "{:<24} {:<6} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "case", "verb", "ours", "reference", "p50", "p90", "cpu p50"
    );
}

fn ratio(ours: &[Duration], theirs: &[Duration], percent: usize) -> f64 {
    millis(quantile(theirs, percent)) / millis(quantile(ours, percent)).max(f64::EPSILON)
}

/// The time that `percent` of `times` do not exceed.
pub(crate) fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    let place = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(place).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
