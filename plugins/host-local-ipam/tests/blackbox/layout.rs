//! The files and the results, byte for byte the reference's.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use crate::calls::{Network, ours, reference};

fn modes(network: &Network) -> BTreeMap<String, u32> {
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let mut modes: BTreeMap<String, u32> = network
        .files()
        .into_keys()
        .map(|name| {
            let mode = mode(&network.leases_dir().join(&name));
            (name, mode)
        })
        .collect();
    modes.insert(".".into(), mode(&network.leases_dir()));
    modes
}

#[test]
fn files_and_modes_are_the_references() {
    let keys = json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]]});
    let (mine, theirs) = (Network::with(keys.clone()), Network::with(keys));
    for (network, program) in [(&mine, ours()), (&theirs, &reference())] {
        for id in ["cid8", "cid9"] {
            network.call(program, "ADD", id).ok();
        }
        network.call(program, "DEL", "cid8").ok();
    }
    assert_eq!(mine.files(), theirs.files());
    assert_eq!(modes(&mine), modes(&theirs));
    assert_eq!(mine.files()["10.8.0.3"], b"cid9\r\neth0");
    assert_eq!(mine.files()["last_reserved_ip.1"], b"fd00:8::3");
    assert_eq!(modes(&mine)["lock"], 0o750);
}

#[test]
fn the_result_is_the_references_in_every_version() {
    let resolv_conf = tempfile::NamedTempFile::new().unwrap();
    let text = "nameserver 192.0.2.1\ndomain a.example\nsearch b.example c.example\noptions ndots:2 <&>\n";
    std::fs::write(resolv_conf.path(), text).unwrap();
    let routes = json!([
        {"dst": "0.0.0.0/0"}, {"dst": "10.5.5.5/24", "gw": "10.8.0.7"}, {"dst": "::/0", "gw": "FD00:8::9"},
        {"dst": "10.7.0.0/16", "gw": "::ffff:10.8.0.7"},
        {"dst": "10.6.0.0/16", "mtu": 1300, "advmss": 1200, "priority": 7, "table": 0, "scope": 253},
    ]);
    for routes in [json!([]), routes] {
        for dns in ["", resolv_conf.path().to_str().unwrap()] {
            let keys = json!({
                "ranges": [[{"subnet": "10.8.0.0/24", "gateway": "10.8.0.254"}], [{"subnet": "fd00:8::/64"}]],
                "routes": routes, "resolvConf": dns,
            });
            for version in ["", "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
                let answer = |program: &Path| {
                    let mut network = Network::with(keys.clone());
                    network.conf["cniVersion"] = json!(version);
                    network.call(program, "ADD", "c1")
                };
                assert_eq!(answer(ours()), answer(&reference()), "{version} {keys}");
            }
        }
    }
}

#[test]
fn the_directory_of_the_leases_holds_nothing_that_the_reference_does_not_know() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    network.ask("ADD", "c2").ok();
    network.ask("DEL", "c1").ok();
    let names: Vec<String> = network.files().into_keys().collect();
    assert_eq!(names, ["10.8.0.3", "last_reserved_ip.0", "lock"]);
}

#[test]
fn nothing_is_made_for_a_network_that_never_was() {
    let network = Network::new("10.8.0.0/24");
    network.ask("DEL", "c1").ok();
    network.gc(&[]).ok();
    network.ask("STATUS", "").ok();
    assert!(!network.data_dir().exists());
}
