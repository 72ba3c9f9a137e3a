//! The allocator against the reference's, by the number of leases that there are already.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use serde_json::{Value, json};

use crate::call::{Plugin, SUITES, Target};
use crate::table::{Times, print_head};

/// Leases at the start, and the part of the rounds that the reference is given the time for.
const SIZES: [(u32, u32); 4] = [(0, 1), (1_000, 2), (10_000, 5), (60_000, 10)];

const WARM_UP: u32 = 2;

/// Suite and place in [`SIZES`], the smaller process first.
const BY_MEMORY: [(usize, usize); 8] = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (0, 3), (1, 3)];

/// No namespace is looked at by an allocator.
const GUEST: Target<'_> = Target { container_id: "guest", netns: "/run/netns/none" };

pub(crate) fn bench(rounds: u32) -> Result<()> {
    let cases = SIZES.map(|(leases, share)| (leases, share, [0, 1].map(|suite| config(leases, suite))));
    for (leases, _, configs) in &cases {
        configs.iter().try_for_each(|config| fill(config, *leases))?;
    }
    let mut peaks = [[0; SIZES.len()]; 2];
    for (suite, case) in BY_MEMORY {
        peaks[suite][case] = peak(suite, &cases[case].2[suite])?;
    }
    print_head(rounds);
    for (leases, share, configs) in &cases {
        measure(configs, (rounds / share).max(10))?.print(&format!("{leases} leases"));
    }
    println!("\npeak memory of a process, in KiB\n");
    println!("{:<24} {:>9} {:>9}", "case", "ours", "reference");
    let [ours, theirs] = peaks;
    for ((leases, _), (ours, theirs)) in SIZES.into_iter().zip(ours.into_iter().zip(theirs)) {
        println!("{:<24} {ours:>9} {theirs:>9}", format!("{leases} leases"));
    }
    Ok(())
}

fn plugin(suite: usize) -> Plugin {
    Plugin::of(SUITES[suite], ["host-local-ipam", "host-local"][suite])
}

/// Peak resident memory of the first call with `config`, in KiB; ours makes the index then, which is the most that it
/// ever does. The kernel keeps the most of all children so far, whence the order of the calls.
fn peak(suite: usize, config: &Value) -> Result<i64> {
    for verb in ["ADD", "DEL"] {
        plugin(suite).call(verb, GUEST, config)?;
    }
    Ok(getrusage(UsageWho::RUSAGE_CHILDREN).context("getrusage")?.max_rss())
}

fn config(leases: u32, suite: usize) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": format!("full{leases}-{suite}"),
        "type": "bridge",
        "ipam": {
            "type": "host-local",
            "dataDir": "/var/lib/cni/bench",
            "ranges": [[{ "subnet": "10.0.0.0/16" }]]
        }
    })
}

/// Writes leases as the plugins write them, from the lowest address up.
fn fill(config: &Value, leases: u32) -> Result<()> {
    let name = config["name"].as_str().context("the network has a name")?;
    let dir = Path::new("/var/lib/cni/bench").join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let first = Ipv4Addr::new(10, 0, 0, 2).to_bits();
    let write = |file: &str, content: String| {
        std::fs::write(dir.join(file), content).with_context(|| format!("write {file} in {}", dir.display()))
    };
    for number in 0..leases {
        write(&Ipv4Addr::from_bits(first + number).to_string(), format!("resident{number}\r\neth0"))?;
    }
    if leases > 0 {
        write("last_reserved_ip.0", Ipv4Addr::from_bits(first + leases - 1).to_string())?;
    }
    Ok(())
}

fn measure(configs: &[Value; 2], rounds: u32) -> Result<Times> {
    let plugins = [0, 1].map(plugin);
    let mut times = Times::default();
    for round in 0..WARM_UP + rounds {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for suite in order {
            let mut config = configs[suite].clone();
            let mut note = |verb, timed: &_| {
                if round >= WARM_UP {
                    times.note(verb, suite, timed);
                }
            };
            let added = plugins[suite].call("ADD", GUEST, &config)?;
            note("ADD", &added);
            config["prevResult"] = added.answer;
            note("CHECK", &plugins[suite].call("CHECK", GUEST, &config)?);
            note("DEL", &plugins[suite].call("DEL", GUEST, &config)?);
        }
    }
    Ok(times)
}
