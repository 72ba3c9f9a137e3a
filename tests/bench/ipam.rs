//! The allocator against the reference's, by the number of leases that there are already.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::call::{Plugin, SUITES, Target};
use crate::table::{Times, print_head};

/// Leases at the start, and the part of the rounds that the reference is given the time for.
const SIZES: [(u32, u32); 4] = [(0, 1), (1_000, 2), (10_000, 5), (60_000, 10)];

const WARM_UP: u32 = 2;

pub(crate) fn bench(rounds: u32) -> Result<()> {
    print_head(rounds);
    for (leases, share) in SIZES {
        let configs = [0, 1].map(|suite| config(leases, suite));
        for config in &configs {
            fill(config, leases)?;
        }
        measure(&configs, (rounds / share).max(10))?.print(&format!("{leases} leases"));
    }
    Ok(())
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
    let plugins = [Plugin::of(SUITES[0], "host-local-ipam"), Plugin::of(SUITES[1], "host-local")];
    // No namespace is looked at by an allocator.
    let target = Target { container_id: "guest", netns: "/run/netns/none" };
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
            let added = plugins[suite].call("ADD", target, &config)?;
            note("ADD", &added);
            config["prevResult"] = added.answer;
            note("CHECK", &plugins[suite].call("CHECK", target, &config)?);
            note("DEL", &plugins[suite].call("DEL", target, &config)?);
        }
    }
    Ok(times)
}
