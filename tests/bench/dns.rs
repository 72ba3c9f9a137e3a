//! The server of names against dnsmasq and aardvark-dns, with the same names and the same client.
//!
//! Loads and single questions take turns server by server and round by round. Where a single question is asked from the
//! CPU that its server runs on, and where from another, which has to be woken, are two measurements: left to itself the
//! kernel keeps to either for minutes. A change is an ADD for ours and an edit
//! of the file with SIGHUP, as their plugins do it, for theirs.

mod client;
mod placement;
mod server;

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use netns_rs::NetNs;

use self::client::{Client, IMPATIENCE, Kind, PATIENCE};
use self::placement::Placement;
use self::server::{Aardvark, Dnsmasq, Ours, Server, await_start, cpu, memory};
use crate::table::quantile;

/// The bridge, the network and its domain.
const BRIDGE: &str = "benchdns";
const CLIENT_NETNS: &str = "/run/netns/benchdns";
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 90, 0, 2);

/// The container that comes and goes.
const LATE_NAME: &str = "late";
const LATE: Ipv4Addr = Ipv4Addr::new(10, 90, 254, 1);

/// Containers with one name each.
const SIZES: [u32; 2] = [1_000, 10_000];

/// Single questions in a round, for each placement.
const QUESTIONS: u32 = 1_000;

/// Changes that are timed, and those that memory is looked at after: the latter by ours alone, for with the peers' way
/// they would take minutes.
const CHANGES: u32 = 20;
const MANY_CHANGES: u32 = 1_000;

/// A server that needs no CPU for so long has done what it had to.
const REST: Duration = Duration::from_millis(30);

/// What one server did.
#[derive(Default)]
struct Seen {
    queries: [u64; 3],
    cpu: [Duration; 3],
    per_second: [Vec<f64>; 3],
    /// By kind of question and by placement.
    latency: [[Vec<Duration>; 2]; 3],
    change: Vec<Duration>,
    change_cpu: Vec<Duration>,
    plugin: Vec<Duration>,
    /// Queries after a change that were not answered by it yet.
    failed: u32,
    memory: [u64; 2],
}

pub(crate) fn bench(rounds: u32) -> Result<()> {
    make_network()?;
    let aardvark =
        std::env::var_os("CNI_BENCH_AARDVARK").context("CNI_BENCH_AARDVARK: the path of aardvark-dns")?;
    let mut servers: [Box<dyn Server>; 3] =
        [Box::new(Ours::start()?), Box::new(Dnsmasq::new()), Box::new(Aardvark::new(aardvark.into())?)];
    let mut client = Client::inside(CLIENT_NETNS)?;
    println!("{rounds} rounds; ratios are peer / ours\n");
    let titles: Vec<&str> = servers.iter().map(|server| server.title()).collect();
    print!("{:<35}", "names, what");
    titles.iter().for_each(|title| print!(" {title:>14}"));
    println!(" {:>8} {:>8}", "ratio", "ratio");
    for size in SIZES {
        let seen = measure(&mut servers, &mut client, size, rounds)?;
        print(size, &seen);
    }
    Ok(())
}

/// A bridge with a gateway address for each server, and a container with the client.
fn make_network() -> Result<()> {
    NetNs::new(BRIDGE).with_context(|| format!("make network namespace {BRIDGE}"))?;
    let steps = format!(
        "set -e; ip link set lo up; ip link add {BRIDGE} type bridge; ip link set {BRIDGE} up; \
         for last in 1 2 3; do ip address add 10.90.255.$last/16 dev {BRIDGE}; done; \
         ip link add benchveth type veth peer name eth0 netns {BRIDGE}; \
         ip link set benchveth master {BRIDGE} up; \
         ip -n {BRIDGE} address add {CLIENT}/16 dev eth0; ip -n {BRIDGE} link set eth0 up"
    );
    let output = Command::new("sh").args(["-c", &steps]).output().context("run ip")?;
    ensure!(output.status.success(), "make the network: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn measure(
    servers: &mut [Box<dyn Server>; 3],
    client: &mut Client,
    size: u32,
    rounds: u32,
) -> Result<[Seen; 3]> {
    let mut seen = [(); 3].map(|()| Seen::default());
    for (server, seen) in servers.iter_mut().zip(&mut seen) {
        server.restart(size)?;
        let (address, last) = (server.address(), question(server.as_ref(), Kind::A, size - 1));
        await_start(server.title(), || client.ask(address, Kind::A, &last, IMPATIENCE))?;
        seen.memory[0] = memory(server.as_ref())?;
    }
    for round in 0..rounds {
        for (place, kind) in Kind::ALL.into_iter().enumerate() {
            for turn in 0..servers.len() {
                let column = (turn + round as usize) % servers.len();
                ask(servers[column].as_ref(), client, kind, size, place, &mut seen[column])?;
            }
        }
    }
    for _ in 0..CHANGES {
        for (server, seen) in servers.iter_mut().zip(&mut seen) {
            change(server.as_mut(), client, seen)?;
        }
    }
    let [ours, ..] = servers;
    for _ in CHANGES..MANY_CHANGES {
        ours.attach()?;
        ours.detach()?;
    }
    for (server, seen) in servers.iter().zip(&mut seen) {
        seen.memory[1] = memory(server.as_ref())?;
    }
    Ok(seen)
}

/// One round of one kind: loaded, then one question at a time.
fn ask(
    server: &dyn Server,
    client: &mut Client,
    kind: Kind,
    size: u32,
    place: usize,
    seen: &mut Seen,
) -> Result<()> {
    let names: Vec<String> = (0..size).map(|number| question(server, kind, number)).collect();
    let before = cpu(server)?;
    let load = client.load(server.address(), kind, &names)?;
    seen.cpu[place] += cpu(server)?.saturating_sub(before);
    seen.queries[place] += load.queries;
    seen.per_second[place].push(load.per_second);
    for (placement, latency) in Placement::ALL.into_iter().zip(&mut seen.latency[place]) {
        let _pinned = placement.pin(server)?;
        for name in names.iter().cycle().step_by(7).take(QUESTIONS as usize) {
            let begin = Instant::now();
            let good = client.ask(server.address(), kind, name, PATIENCE)?;
            ensure!(good, "{} does not answer {} {name} as it should", server.title(), kind.title());
            latency.push(begin.elapsed());
        }
    }
    Ok(())
}

/// One container comes and goes. Whoever is still busy with it afterwards shall not be so in the next one's time.
fn change(server: &mut dyn Server, client: &mut Client, seen: &mut Seen) -> Result<()> {
    let name = format!("{LATE_NAME}.{}", server.domain());
    let address = server.address();
    let (cpu_before, begin) = (cpu(server)?, Instant::now());
    let plugin = server.attach()?;
    let mut failed = 0;
    await_start(server.title(), || {
        let good = client.ask(address, Kind::A, &name, IMPATIENCE)?;
        failed += u32::from(!good);
        Ok(good)
    })?;
    seen.change.push(begin.elapsed());
    seen.change_cpu.push(cpu(server)?.saturating_sub(cpu_before));
    seen.failed += failed;
    seen.plugin.extend(plugin.map(|timed| timed.wall));
    server.detach()?;
    await_start(server.title(), || client.ask(address, Kind::Unknown, &name, IMPATIENCE))?;
    let mut before = cpu(server)?;
    await_start(server.title(), || {
        std::thread::sleep(REST);
        let now = cpu(server)?;
        Ok(std::mem::replace(&mut before, now) == now)
    })
}

fn print(size: u32, seen: &[Seen; 3]) {
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        let title = kind.title();
        row(
            size,
            &format!("{title}: CPU us a query"),
            seen.each_ref().map(|seen| micros(seen.cpu[place]) / seen.queries[place] as f64),
        );
        for (number, placement) in Placement::ALL.into_iter().enumerate() {
            row(
                size,
                &format!("{title}: p50 us, {}", placement.title()),
                seen.each_ref().map(|seen| micros(quantile(&seen.latency[place][number], 50))),
            );
        }
        row(
            size,
            &format!("{title}: us a query, loaded"),
            seen.each_ref().map(|seen| {
                1e6 * seen.per_second[place].len() as f64 / seen.per_second[place].iter().sum::<f64>()
            }),
        );
    }
    row(
        size,
        "change to answer: p50 ms",
        seen.each_ref().map(|seen| micros(quantile(&seen.change, 50)) / 1e3),
    );
    row(
        size,
        "change: CPU ms of the server",
        seen.each_ref().map(|seen| micros(quantile(&seen.change_cpu, 50)) / 1e3),
    );
    row(
        size,
        "change: failed queries each",
        seen.each_ref().map(|seen| f64::from(seen.failed) / f64::from(CHANGES)),
    );
    row(size, "RSS at start, MB", seen.each_ref().map(|seen| seen.memory[0] as f64 / 1024.0));
    row(size, "RSS after the changes, MB", seen.each_ref().map(|seen| seen.memory[1] as f64 / 1024.0));
    println!("{size:>6} plugin ADD: p50 {:.2} ms", micros(quantile(&seen[0].plugin, 50)) / 1e3);
}

fn row(size: u32, what: &str, values: [f64; 3]) {
    print!("{size:>6} {what:<28}");
    values.iter().for_each(|value| print!(" {value:>14.2}"));
    let [ours, peers @ ..] = values;
    for peer in peers {
        if ours > 0.0 {
            print!(" {:>7.1}x", peer / ours);
        } else {
            print!(" {:>8}", "-");
        }
    }
    println!();
}

fn question(server: &dyn Server, kind: Kind, number: u32) -> String {
    match kind {
        Kind::A => format!("{}.{}", name_of(number), server.domain()),
        Kind::Unknown => format!("nobody{number}.{}", server.domain()),
        Kind::Ptr => {
            let [a, b, c, d] = address_of(number).octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
    }
}

fn name_of(number: u32) -> String {
    format!("centos-{number}")
}

fn address_of(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 90, 1, 0).to_bits() + number)
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
