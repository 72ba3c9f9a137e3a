//! `bridge` beside the reference's where there is much to do at once: parallel calls, a network that fills, an address
//! that changes hands, memory.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_rs::NetNs;
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

use crate::bridge::network;
use crate::call::{Plugin, SUITES, Target, settle};
use crate::table::quantile;

/// Calls that run side by side.
const WORKERS: usize = 8;

/// Attachments that the workers make, and take away again.
const ATTACHMENTS: usize = 64;

/// Containers on the network, and which suites are given the time to attach so many.
const FILLED: [(usize, &[usize]); 3] = [(1, &[0, 1]), (200, &[0, 1]), (1000, &[0])];

/// Calls at each size, of which the median counts.
const CALLS_WHEN_FILLED: usize = 15;

/// After so long the kernel is done with what every new port sends to all others (IPv6 duplicates and memberships).
const SETTLED: Duration = Duration::from_secs(10);

/// Longest wait for an address to be reachable.
const PATIENCE: Duration = Duration::from_secs(60);

/// The networks here have the second octets from this one on.
const FIRST_PLACE: usize = 100;

pub(crate) fn bench() -> Result<()> {
    println!("\n{WORKERS} calls at once, attachments per second\n");
    println!("{:<31} {:>9} {:>9} {:>9}", "verb", "ours", "reference", "ratio");
    for (place, case, early) in [(0, "", false), (2, ", earlyReturn", true)] {
        let [ours, theirs] = [parallel(place, 0, early)?, parallel(place, 1, early)?];
        for (verb, (ours, theirs)) in ["ADD", "DEL"].into_iter().zip(ours.into_iter().zip(theirs)) {
            println!("{:<31} {ours:>9.0} {theirs:>9.0} {:>8.1}x", format!("{verb}{case}"), ours / theirs);
        }
    }

    println!("\nADD with ipMasq beside other containers, median in milliseconds\n");
    println!("{:<31} {:>9} {:>9}", "containers", "ours", "reference");
    let networks = SUITES.iter().enumerate().map(|(suite, _)| Filling::new(suite));
    let mut networks = networks.collect::<Result<Vec<_>>>()?;
    for (containers, suites) in FILLED {
        let mut line = format!("{containers:<31}");
        for suite in suites {
            let median = networks[*suite].add_beside(containers)?;
            line.push_str(&format!(" {:>9.2}", median.as_secs_f64() * 1e3));
        }
        println!("{line}");
    }

    println!("\na reused address answers its neighbour, milliseconds after ADD has returned\n");
    println!("{:<31} {:>9} {:>9}", "", "ours", "reference");
    let [ours, theirs] = [reused(0)?, reused(1)?].map(|time| time.as_secs_f64() * 1e3);
    println!("{:<31} {ours:>9.0} {theirs:>9.0}", "");
    Ok(())
}

/// Prints the peak memory of a process of each suite. The kernel keeps the most of all children so far, so nothing of
/// the reference may have been called before.
pub(crate) fn peaks() -> Result<()> {
    let [ours, theirs] = [peak(0)?, peak(1)?];
    println!("peak memory of a process at ADD, in KiB: ours {ours}, reference {theirs}\n");
    Ok(())
}

fn peak(suite: usize) -> Result<i64> {
    let name = format!("memory{suite}");
    NetNs::new(&name).with_context(|| format!("make network namespace {name}"))?;
    call(suite, "ADD", &name, &network(80 + suite, suite, &json!({ "isDefaultGateway": true })))?;
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?.max_rss())
}

/// ADDs and DELs per second of `WORKERS` that share the work.
fn parallel(place: usize, suite: usize, early: bool) -> Result<[f64; 2]> {
    let place = FIRST_PLACE + place + suite;
    let config = network(place, suite, &json!({ "isDefaultGateway": true, "earlyReturn": early }));
    let names: Vec<String> = (0..ATTACHMENTS).map(|number| format!("parallel{place}-{number}")).collect();
    for name in &names {
        NetNs::new(name).with_context(|| format!("make network namespace {name}"))?;
    }
    let mut rates = [0.0; 2];
    for (rate, verb) in rates.iter_mut().zip(["ADD", "DEL"]) {
        let begin = Instant::now();
        share(&names, |name| call(suite, verb, name, &config).map(drop))?;
        *rate = ATTACHMENTS as f64 / begin.elapsed().as_secs_f64();
        settle()?;
    }
    Ok(rates)
}

/// Has `WORKERS` do `work` for each of `names`.
fn share(names: &[String], work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let run = || {
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(name)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(run)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker panicked"))
    })
}

/// A network with masquerade that is filled step by step.
struct Filling {
    suite: usize,
    config: Value,
    residents: usize,
}

impl Filling {
    fn new(suite: usize) -> Result<Self> {
        let guest = format!("filling{suite}");
        NetNs::new(&guest).with_context(|| format!("make network namespace {guest}"))?;
        let keys = json!({ "isDefaultGateway": true, "ipMasq": true });
        Ok(Self { suite, config: network(FIRST_PLACE + 10 + suite, suite, &keys), residents: 0 })
    }

    /// The median of an ADD beside so many other containers.
    fn add_beside(&mut self, containers: usize) -> Result<Duration> {
        let names: Vec<String> =
            (self.residents..containers).map(|number| format!("filled{}-{number}", self.suite)).collect();
        for name in &names {
            NetNs::new(name).with_context(|| format!("make network namespace {name}"))?;
        }
        share(&names, |name| call(self.suite, "ADD", name, &self.config).map(drop))?;
        self.residents = containers;
        std::thread::sleep(SETTLED);
        let guest = format!("filling{}", self.suite);
        let mut times = Vec::new();
        for _ in 0..CALLS_WHEN_FILLED {
            times.push(call(self.suite, "ADD", &guest, &self.config)?);
            call(self.suite, "DEL", &guest, &self.config)?;
            settle()?;
        }
        Ok(quantile(&times, 50))
    }
}

/// How long after ADD's return a neighbour that knew the address's last holder reaches the new one.
fn reused(suite: usize) -> Result<Duration> {
    let place = FIRST_PLACE + 20 + suite;
    let keys = json!({ "isDefaultGateway": true });
    let free = network(place, suite, &keys);
    let mut fixed = free.clone();
    let address = format!("10.{place}.7.7");
    fixed["runtimeConfig"] = json!({ "ips": [format!("{address}/16")] });
    let [neighbour, first, second] = ["neighbour", "first", "second"].map(|name| format!("{name}{suite}"));
    for name in [&neighbour, &first, &second] {
        NetNs::new(name).with_context(|| format!("make network namespace {name}"))?;
    }
    call(suite, "ADD", &neighbour, &free)?;
    call(suite, "ADD", &first, &fixed)?;
    ensure!(answers(&neighbour, &address)?, "{address} does not answer its neighbour");
    call(suite, "DEL", &first, &fixed)?;
    call(suite, "ADD", &second, &fixed)?;
    let begin = Instant::now();
    while !answers(&neighbour, &address)? {
        ensure!(begin.elapsed() < PATIENCE, "{address} does not answer within {PATIENCE:?}");
    }
    Ok(begin.elapsed())
}

/// Whether `address` answers an echo request from the namespace within a second.
fn answers(netns: &str, address: &str) -> Result<bool> {
    let mut ping = Command::new("ip");
    ping.args(["netns", "exec", netns, "ping", "-c", "1", "-W", "1", address]);
    let status = ping.stdout(Stdio::null()).stderr(Stdio::null()).status().context("run ping")?;
    Ok(status.success())
}

/// Calls the plugin for the container that is called as its namespace; how long it took.
fn call(suite: usize, verb: &str, name: &str, config: &Value) -> Result<Duration> {
    let netns = format!("/run/netns/{name}");
    let target = Target { container_id: name, netns: &netns };
    Ok(Plugin::of(SUITES[suite], "bridge").call(verb, target, config)?.wall)
}
