//! The networks that a real podman 4.3 generated, as they stand, served by our plugins under the names that they ask
//! for: two containers each, found by name and alias where the network has names, checked, and gone without a trace.
//! (The one with a VLAN needs a kernel that filters by it: `tests/vlan`.)

use std::path::{Path, PathBuf};

use integration_tests::{Attachment, Network, Snapshot, Suite, World, fixture};
use serde_json::{Value, json};

/// A directory with ours under those names, before the reference's.
fn plugins(test: &str) -> [PathBuf; 2] {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    std::fs::create_dir_all(&dir).unwrap();
    for (name, binary) in [
        ("bridge", "bridge"),
        ("host-local", "host-local-ipam"),
        ("alias-dns", "alias-dns"),
        ("dnsname", "alias-dns"),
    ] {
        let link = dir.join(name);
        let _made_by_an_earlier_run = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(std::path::absolute(Suite::Ours.binary(binary)).unwrap(), link).unwrap();
    }
    [dir, Suite::Reference.dir()]
}

fn generated(name: &str) -> Value {
    fixture(&format!("tests/fixtures/podman-4.3-networks/{name}.conflist"))
}

/// An attachment as podman asks for it.
fn wish(network: &Network, container: &integration_tests::Container, aliases: &[&str]) -> Attachment {
    Attachment::of(container)
        .arg("IgnoreUnknown", "1")
        .arg("K8S_POD_NAME", container.name())
        .capability("aliases", json!({ network.name(): aliases }))
}

/// Tells the story of a list: `addresses` are those of its second container, `domain` is what its names end in.
#[track_caller]
fn check(list: Value, test: &str, addresses: &[&str], domain: Option<&str>, kept: &[&str]) {
    let world = World::new();
    let bridge = list["plugins"][0]["bridge"].as_str().unwrap().to_owned();
    let has_check = list["cniVersion"].as_str().unwrap() >= "0.4.0";
    let network = Network::new(&world, list).served_from(&plugins(test));
    let before = Snapshot::of(&world);
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    let wishes = [wish(&network, &c1, &["centos-1"]), wish(&network, &c2, &["centos-2"])];
    network.attach_as(&c1, &wishes[0]);
    network.attach_as(&c2, &wishes[1]);
    for address in addresses {
        assert!(c1.reaches(address), "{address}");
    }
    if let Some(domain) = domain {
        for name in ["c2", "centos-2"] {
            c1.run(&format!("ping -4 -c 1 -W 30 {name}"))
                .has_line(&format!("64 bytes from c2.{domain} ({})", addresses[0]));
        }
    }
    if has_check {
        for wish in &wishes {
            network.check(wish).unwrap_or_else(|failure| panic!("{failure}"));
        }
    }
    network.detach_as(&c1, &wishes[0]);
    network.detach_as(&c2, &wishes[1]);
    before.assert_nothing_is_left(&world, &[&bridge], kept);
}

#[test]
fn plain_network() {
    check(generated("testnet"), "plain_network", &["10.89.0.3"], Some("dns.podman"), &[]);
}

#[test]
fn dual_stack_network_whose_range_ends_at_the_broadcast_address() {
    check(generated("dual"), "dual_stack_network", &["10.90.0.130", "fd12::3"], Some("dns.podman"), &[]);
}

#[test]
fn internal_network_has_no_names() {
    check(generated("internal"), "internal_network", &["10.91.0.3"], None, &[]);
}

#[test]
fn isolated_network() {
    let kept = Snapshot::OF_THE_REFERENCES_ISOLATION;
    check(generated("iso"), "isolated_network", &["10.89.1.3"], Some("dns.podman"), &kept);
}

#[test]
fn network_that_declares_every_capability_in_the_words_of_each_version() {
    for version in ["0.2.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        let mut list = generated("capabilities");
        list["cniVersion"] = json!(version);
        check(list, "every_capability", &["10.95.0.3"], Some("caps5"), &[]);
    }
}
