//! Every file of `conf-examples` does what it says, as it stands.

use std::collections::BTreeSet;

use integration_tests::{Attachment, Network, Snapshot, Suite, World, fixture};
use serde_json::json;

/// Every example, with the address that its first container gets.
const EXAMPLES: [(&str, &str); 10] = [
    ("cnitool", "172.24.0.2/16"),
    ("containerd", "10.85.0.2/16"),
    ("docker0", "172.17.0.2/16"),
    ("dual-stack", "172.22.0.2/16"),
    ("internal", "172.23.0.2/16"),
    ("kubernetes", "10.244.0.2/24"),
    ("link", "172.18.0.2/16"),
    ("podman", "10.88.0.2/16"),
    ("testnet", "172.20.0.2/16"),
    ("testnet2", "172.21.0.2/16"),
];

#[test]
fn every_example_is_listed_here() {
    let dir = Suite::examples();
    let files = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let found: BTreeSet<String> = files.collect();
    let listed: BTreeSet<String> = EXAMPLES.iter().map(|(name, _)| format!("{name}.conflist")).collect();
    assert_eq!(found, listed);
}

#[test]
fn every_example_is_named_as_its_file_and_readable_by_old_and_new_runtimes() {
    for (name, _) in EXAMPLES {
        let list = fixture(&format!("conf-examples/{name}.conflist"));
        assert_eq!(list["name"], name);
        assert_eq!(list["cniVersion"], "1.0.0", "{name}");
        assert_eq!(list["cniVersions"], json!(["1.0.0", "1.1.0"]), "{name}");
    }
}

#[test]
fn every_verb_of_every_example_succeeds_and_leaves_nothing() {
    for (name, address) in EXAMPLES {
        let world = World::new();
        let network = Network::example(&world, name);
        let (resident, guest) = (world.container("resident"), world.container("guest"));
        network.status().unwrap_or_else(|failure| panic!("{name}: {failure}"));
        let result = network.attach(&resident);
        assert_eq!(result["ips"][0]["address"], address, "{name}: {result}");
        let before = Snapshot::of(&world);

        let attachment = Attachment::of(&guest).aliases(&["guest-alias"]);
        network.attach_as(&guest, &attachment);
        network.check(&attachment).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        network.check(&Attachment::of(&resident)).unwrap_or_else(|failure| panic!("{name}: {failure}"));
        network.status().unwrap_or_else(|failure| panic!("{name}: {failure}"));
        network
            .gc(&[&attachment, &Attachment::of(&resident)])
            .unwrap_or_else(|failure| panic!("{name}: {failure}"));
        network.check(&attachment).unwrap_or_else(|failure| panic!("{name}: after GC: {failure}"));
        network.detach_as(&guest, &attachment);
        before.assert_unchanged(&world);
    }
}

#[test]
fn every_example_works_for_a_runtime_of_1_0_0_too() {
    for (name, address) in EXAMPLES {
        let world = World::new();
        let mut list = fixture(&format!("conf-examples/{name}.conflist"));
        list["cniVersions"] = json!(["1.0.0"]);
        let network = Network::with_plugins_of(&world, list, &[Suite::Ours, Suite::Reference]);
        let container = world.container("c1");
        let result = network.attach(&container);
        assert_eq!(result["cniVersion"], "1.0.0", "{name}: {result}");
        assert_eq!(result["ips"][0]["address"], address, "{name}: {result}");
        network.detach(&container);
    }
}
