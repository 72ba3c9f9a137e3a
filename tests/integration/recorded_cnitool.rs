//! The calls that a real cnitool made, recorded once, are made again: ours must answer as the plugins did then.
//!
//! The recording (`fixtures/cnitool.jsonl`, one call a line) was made with the reference bridge, host-local, portmap
//! and firewall, and an alias-dns that only passed its `prevResult` on. What is random in an answer (hardware
//! addresses, the host veth's name) is learnt from each new answer and put in its place in the calls that follow.

use integration_tests::{Snapshot, Suite, World};
use serde_json::Value;

use crate::replay::Learnt;

const RECORDING: &str = include_str!("../fixtures/cnitool.jsonl");

#[test]
fn recorded_calls_are_answered_as_they_were() {
    let world = World::new();
    let plugins = world.install_plugins();
    for name in ["rt-c1", "rt-c2"] {
        world.netns(name);
    }
    let before = Snapshot::of(&world);
    let mut learnt = Learnt::default();
    let mut replayed = 0;
    for line in RECORDING.lines() {
        let call: Value = serde_json::from_str(line).unwrap();
        // What the bridge said to its allocator is the bridge's own business.
        if call["caller"] != "cnitool" {
            continue;
        }
        let (seq, plugin, verb) =
            (&call["seq"], call["plugin"].as_str().unwrap(), &call["env"]["CNI_COMMAND"]);
        let shown = format!("call {seq}, {plugin} {verb}");
        // Here the container was replaced by a new one without DEL.
        if call["rc"] == 1 {
            world.remove_netns("rt-c2");
            world.netns("rt-c2");
        }
        let suite = if matches!(plugin, "bridge" | "alias-dns") { Suite::Ours } else { Suite::Reference };
        let mut prepared = world.plugin_of(suite, plugin);
        for (name, value) in call["env"].as_object().unwrap() {
            prepared = prepared.env(name, value.as_str().unwrap());
        }
        let stdin = learnt.applied_to(&call["stdin"]);
        let output = prepared.env("CNI_PATH", &plugins).config(&stdin).run();
        if call["rc"] == 1 {
            // The recorded 999 was the allocator's plain error; ours may say it with a better code.
            let msg = output.failure().json()["msg"].to_string();
            assert!(
                msg.contains("10.82.0.51") || msg.contains("cnitool-fd5e0943565e08cc6a6e"),
                "{shown}: {output}"
            );
        } else if *verb == "ADD" {
            let mut answer = serde_json::from_str::<Value>(output.success()).unwrap();
            if plugin == "alias-dns" {
                let dns = answer.as_object_mut().unwrap().remove("dns").unwrap_or_default();
                assert_eq!(dns["nameservers"][0], "10.82.0.1", "{shown}: {output}");
            }
            learnt.compare(&call["stdout"], &answer, &shown);
        } else {
            assert_eq!(output.success(), "", "{shown}");
        }
        replayed += 1;
    }
    assert_eq!(replayed, 45);
    before.assert_unchanged_but(&world, &[&Snapshot::KEPT[..], &["tbr0"]].concat());
}
