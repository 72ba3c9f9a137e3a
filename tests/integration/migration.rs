//! A node changes from the reference plugins to ours, and back, with containers running and its configuration as it is.

use std::path::{Path, PathBuf};

use integration_tests::{Attachment, Container, Network, Outside, Snapshot, Suite, World};
use serde_json::{Value, json};

/// What people have: bridge over host-local, with masquerade.
fn list(backend: &str) -> Value {
    json!({
        "cniVersion": "1.0.0",
        "name": "mynet",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "mynet0",
                "isGateway": true,
                "ipMasq": true,
                "ipMasqBackend": backend,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": "10.22.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}

/// A directory with our plugins under the reference's names, and the reference's others.
fn installed(test: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, binary) in [("bridge", "bridge"), ("host-local", "host-local-ipam")] {
        let link = dir.join(name);
        let _made_by_an_earlier_run = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(std::path::absolute(Suite::Ours.binary(binary)).unwrap(), link).unwrap();
    }
    vec![dir, Suite::Reference.dir()]
}

/// A world, its network as the reference serves it and as ours do, and three containers.
struct Story {
    world: World,
    reference: Network,
    ours: Network,
    containers: [Container; 3],
    before: Snapshot,
    _outside: Outside,
}

impl Story {
    fn new(test: &str, backend: &str) -> Self {
        let world = World::new();
        let outside = world.outside();
        let reference = Network::with_plugins_of(&world, list(backend), &[Suite::Reference]);
        let ours = reference.served_from(&installed(test));
        let containers = ["c1", "c2", "c3"].map(|name| world.container(name));
        let before = Snapshot::of(&world);
        Self { world, reference, ours, containers, before, _outside: outside }
    }

    /// Every container reaches every other, the host, and what is behind it.
    #[track_caller]
    fn assert_all_reach_all(&self, addresses: &[&str]) {
        for (container, own) in self.containers.iter().zip(addresses) {
            for target in addresses.iter().chain(&["10.22.0.1", Outside::ADDRESS]) {
                assert!(container.reaches(target), "{own} to {target}");
            }
        }
    }

    /// Nothing of a container is left, but `expected`.
    #[track_caller]
    fn assert_nothing_is_left(&self, expected: &[&str]) {
        let expected = [&["sysctls: * net/ipv4/conf/all/rp_filter = *"], expected].concat();
        self.before.assert_nothing_is_left(&self.world, &["mynet0"], &expected);
    }
}

/// What stays of the reference's masquerade: its table, with no rule of a container in it.
const REFERENCE_TABLE: [&str; 8] = [
    "nftables: + table inet cni_plugins_masquerade",
    "nftables: + table inet cni_plugins_masquerade: comment *",
    "nftables: + table inet cni_plugins_masquerade: chain masq_checks",
    "nftables: + table inet cni_plugins_masquerade: chain masq_checks: comment *",
    "nftables: + table inet cni_plugins_masquerade: chain postrouting",
    "nftables: + table inet cni_plugins_masquerade: chain postrouting: type nat hook postrouting priority srcnat; policy accept;",
    "nftables: + table inet cni_plugins_masquerade: chain postrouting: * return",
    "nftables: + table inet cni_plugins_masquerade: chain postrouting: goto masq_checks",
];

#[test]
fn containers_of_the_reference_live_on_under_ours_and_are_detached_by_them() {
    for backend in ["nftables", "iptables"] {
        let story = Story::new(&format!("from-reference-{backend}"), backend);
        let [c1, c2, c3] = &story.containers;
        story.reference.attach(c1);
        story.reference.attach(c2);
        let third = story.ours.attach(c3);
        assert_eq!(third["ips"][0]["address"], "10.22.0.4/16", "{third}");
        story.assert_all_reach_all(&["10.22.0.2", "10.22.0.3", "10.22.0.4"]);

        story.ours.detach(c1);
        assert!(c2.is_cut_off_from("10.22.0.2"));
        // The second one's runtime has lost everything, and the container is dead.
        story.world.remove_netns("c2");
        let second = Attachment::of(c2).netns("");
        story.ours.plugin_call("DEL", 0, Some(&second), None).run().success();
        story.ours.detach(c3);
        story.assert_nothing_is_left(&[&REFERENCE_TABLE[..], &["files: + /var/lib/cni/results/*"]].concat());
    }
}

#[test]
fn containers_of_ours_live_on_under_the_reference_and_are_detached_by_it() {
    let story = Story::new("to-reference", "nftables");
    let [c1, c2, c3] = &story.containers;
    story.ours.attach(c1);
    story.ours.attach(c2);
    let third = story.reference.attach(c3);
    assert_eq!(third["ips"][0]["address"], "10.22.0.4/16", "{third}");
    story.assert_all_reach_all(&["10.22.0.2", "10.22.0.3", "10.22.0.4"]);

    for container in &story.containers {
        story.reference.detach(container);
    }
    // The reference does not know our table; a person removes it when the last of our containers is gone.
    let tables = story.world.host().run("nft list tables");
    let ours: Vec<&str> =
        tables.success().lines().filter(|line| !line.contains("cni_plugins_masquerade")).collect();
    assert!(!ours.is_empty(), "{tables}");
    for table in ours {
        story.world.host().run(&format!("nft delete {table}")).success();
    }
    story.assert_nothing_is_left(&REFERENCE_TABLE);
}

#[test]
fn a_container_that_the_reference_attached_passes_check_under_ours_once_attached_again() {
    let story = Story::new("check", "nftables");
    let c1 = &story.containers[0];
    story.reference.attach(c1);
    story.ours.detach(c1);
    story.ours.attach(c1);
    story.ours.check(&Attachment::of(c1)).unwrap();
    story.ours.detach(c1);
    story.assert_nothing_is_left(&REFERENCE_TABLE);
}
