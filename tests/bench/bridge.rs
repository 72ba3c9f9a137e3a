//! `bridge` with its allocator against the reference's pair. The bridge exists and has a resident container, as on a
//! host in use.

use std::time::Duration;

use anyhow::{Context as _, Result};
use netns_rs::NetNs;
use serde_json::{Value, json};

use crate::call::{Plugin, SUITES, Target, settle};
use crate::table::{Times, print_head};

/// Rounds whose times do not count: the first calls read the binaries from disk.
const WARM_UP: u32 = 3;

pub(crate) fn bench(rounds: u32) -> Result<()> {
    print_head(rounds);
    let cases = [
        ("plain", json!({}), false),
        ("gateway", json!({ "isDefaultGateway": true }), false),
        ("gateway, dual stack", json!({ "isDefaultGateway": true }), true),
        ("ipMasq", json!({ "isDefaultGateway": true, "ipMasq": true }), false),
        (
            "ipMasq, nftables",
            json!({ "isDefaultGateway": true, "ipMasq": true, "ipMasqBackend": "nftables" }),
            false,
        ),
        ("gateway, earlyReturn", json!({ "isDefaultGateway": true, "earlyReturn": true }), false),
    ];
    for (index, (name, keys, dual_stack)) in cases.into_iter().enumerate() {
        let configs = [0, 1].map(|suite| config(index, suite, &keys, dual_stack));
        measure(index, &configs, rounds)?.print(name);
    }
    Ok(())
}

/// Each suite has a bridge, a network and a subnet of its own in each case.
fn config(case: usize, suite: usize, keys: &Value, dual_stack: bool) -> Value {
    let place = case * SUITES.len() + suite;
    let mut config = network(place, suite, keys);
    if dual_stack {
        let ranges = config["ipam"]["ranges"].as_array_mut();
        ranges
            .into_iter()
            .for_each(|ranges| ranges.push(json!([{ "subnet": format!("fd00:{place}::/64") }])));
    }
    config
}

/// The configuration of a network of one suite; `place`, which no other has, is the second octet of its subnet.
pub(crate) fn network(place: usize, suite: usize, keys: &Value) -> Value {
    let allocator = ["host-local-ipam", "host-local"][suite];
    let mut config = json!({
        "cniVersion": "1.0.0",
        "name": format!("bench{place}"),
        "type": "bridge",
        "bridge": format!("bench{place}"),
        "ipam": { "type": allocator, "ranges": [[{ "subnet": format!("10.{place}.0.0/16") }]] }
    });
    for (key, value) in keys.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

/// How long a container lives between CHECK and DEL.
const LIFE: Duration = Duration::from_millis(50);

fn measure(case: usize, configs: &[Value; 2], rounds: u32) -> Result<Times> {
    let plugins = SUITES.map(|suite| Plugin::of(suite, "bridge"));
    let names = [0, 1].map(|suite| [format!("resident{case}-{suite}"), format!("guest{case}-{suite}")]);
    for (suite, [resident, guest]) in names.iter().enumerate() {
        for name in [resident, guest] {
            NetNs::new(name).with_context(|| format!("make network namespace {name}"))?;
        }
        let netns = netns_path(resident);
        let target = Target { container_id: resident, netns: &netns };
        plugins[suite].call("ADD", target, &configs[suite])?;
    }
    let mut times = Times::default();
    for round in 0..WARM_UP + rounds {
        let order = if round % 2 == 0 { [0, 1] } else { [1, 0] };
        for suite in order {
            let guest = &names[suite][1];
            let netns = netns_path(guest);
            let target = Target { container_id: guest, netns: &netns };
            let mut config = configs[suite].clone();
            let mut call = |verb, config: &_| {
                let mut timed = plugins[suite].call(verb, target, config)?;
                // The next call, by the other suite, is not to meet what this one has left.
                timed.cpu += settle()?;
                if round >= WARM_UP {
                    times.note(verb, suite, &timed);
                }
                anyhow::Ok(timed.answer)
            };
            config["prevResult"] = call("ADD", &config)?;
            call("CHECK", &config)?;
            // What a container's life leaves to the kernel to clean up later is done by the time it is detached. Without
            // the pause, DEL would wait for what ADD has left, and the faster suite for more of it.
            std::thread::sleep(LIFE);
            call("DEL", &config)?;
        }
    }
    Ok(times)
}

fn netns_path(name: &str) -> String {
    format!("/run/netns/{name}")
}
