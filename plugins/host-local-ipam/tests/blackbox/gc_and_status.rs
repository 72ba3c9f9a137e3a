//! CHECK, GC and STATUS.

use serde_json::json;

use crate::calls::{Network, ours};

#[test]
fn gc_releases_what_no_valid_attachment_holds_under_either_key() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let network = Network::new("10.8.0.0/24");
        for id in ["c1", "c2", "c3"] {
            network.ask("ADD", id).ok();
        }
        network.write("10.8.0.9", "c2");
        network.write("10.8.0.10", "gone");
        network.write("10.8.0.11", "");
        let valid = json!([{"containerID": "c2", "ifname": "eth0"}, {"containerID": "c3", "ifname": "eth1"}]);
        network.ask_with(&network.conf_with(key, valid), "GC", "").ok();
        assert_eq!(network.leases().into_keys().collect::<Vec<_>>(), ["10.8.0.3", "10.8.0.9"]);
        assert_eq!(network.ask("ADD", "c4").address(), "10.8.0.5");
        network.ask("DEL", "c4").ok();
        network.gc(&[]).ok();
        assert!(network.leases().is_empty());
    }
}

#[test]
fn gc_without_a_list_removes_only_what_names_nobody() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    network.write("10.8.0.9", "");
    network.write("10.8.0.10", "\0\0\0");
    network.ask("GC", "").ok();
    assert_eq!(network.leases().into_keys().collect::<Vec<_>>(), ["10.8.0.2"]);
}

#[test]
fn gc_leaves_what_is_no_lease_file() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    network.write("notes", "who has what");
    network.write("holder", "c1");
    std::fs::create_dir(network.leases_dir().join("10.8.0.9")).unwrap();
    std::os::unix::fs::symlink("nowhere", network.leases_dir().join("10.8.0.10")).unwrap();
    network.gc(&[]).ok();
    let mut left: Vec<_> = std::fs::read_dir(network.leases_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort_unstable();
    assert_eq!(left, ["10.8.0.10", "10.8.0.9", "holder", "last_reserved_ip.0", "lock", "notes"]);
}

#[test]
fn gc_reports_a_malformed_list() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    let conf =
        network.conf_with("cni.dev/valid-attachments", json!([{"containerID": "a/b", "ifname": "eth0"}]));
    assert_eq!(network.ask_with(&conf, "GC", "").error().0, 7);
    assert_eq!(network.leases().len(), 1);
}

#[test]
fn status_names_the_range_set_that_is_full() {
    let network =
        Network::with(json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "10.9.0.0/30"}]]}));
    network.ask("STATUS", "").ok();
    network.ask("ADD", "c1").ok();
    let before = network.files();
    let (code, msg) = network.ask("STATUS", "").error();
    assert_eq!(code, 50);
    assert!(msg.contains("range set 1 is full") && msg.contains("10.9.0.1-10.9.0.2"), "{msg}");
    assert_eq!(network.files(), before);
    network.ask("DEL", "c1").ok();
    network.ask("STATUS", "").ok();
    network.write("10.9.0.2", "");
    network.ask("STATUS", "").ok();
}

#[test]
fn status_knows_a_range_that_leaves_nothing_to_lease_before_the_first_lease_too() {
    let network = Network::with(
        json!({"ranges": [[{"subnet": "fd00:8::/64"}], [{"subnet": "10.8.0.0/30"}]], "exclude": ["10.8.0.2"]}),
    );
    let (code, msg) = network.ask("STATUS", "").error();
    assert!(code == 50 && msg.contains("range set 1 is full"), "{code} {msg}");
    assert!(!network.data_dir().exists());
    network.ask("ADD", "c1").exhausted();
}

#[test]
fn status_tells_what_is_in_the_way_of_leases() {
    for target in ["nowhere", "net1"] {
        let network = Network::new("10.8.0.0/24");
        std::fs::create_dir_all(network.data_dir()).unwrap();
        std::os::unix::fs::symlink(target, network.leases_dir()).unwrap();
        cannot_keep(&network);
    }
    let network = Network::new("10.8.0.0/24");
    std::fs::create_dir_all(network.leases_dir().join("lock")).unwrap();
    cannot_keep(&network);
}

#[track_caller]
fn cannot_keep(network: &Network) {
    assert_eq!(network.ask("ADD", "c1").error().0, 5);
    let (code, msg) = network.ask("STATUS", "").error();
    assert!(code == 50 && msg.starts_with("network net1: leases cannot be kept: "), "{code} {msg}");
}

#[test]
fn status_refuses_a_wrong_configuration_and_what_is_not_there_is_no_fault() {
    let network = Network::with(json!({"subnet": "10.8.0.1/24"}));
    assert_eq!(network.ask("STATUS", "").error().0, 7);
}

#[test]
fn check_compares_the_leases_with_the_previous_result() {
    let network =
        Network::with(json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]]}));
    let result = network.ask("ADD", "c1").document();
    let check = |result| network.ask_with(&network.conf_with("prevResult", result), "CHECK", "c1");
    check(result.clone()).ok();

    let mut elsewhere = result.clone();
    elsewhere["ips"].as_array_mut().unwrap().push(json!({"address": "192.168.7.7/24"}));
    check(elsewhere).ok();

    let mut other = result.clone();
    other["ips"][0]["address"] = json!("10.8.0.77/24");
    let differing = "10.8.0.2 is leased but not in prevResult; 10.8.0.77 is in prevResult but not leased";
    assert_eq!(check(other).error(), (100, differing.to_owned()));

    std::fs::remove_file(network.leases_dir().join("fd00:8::2")).unwrap();
    let (_, msg) = check(result.clone()).error();
    assert_eq!(msg, "fd00:8::2 is in prevResult but not leased");

    std::fs::remove_file(network.leases_dir().join("10.8.0.2")).unwrap();
    let gone = "host-local: Failed to find address added by container c1";
    assert_eq!(check(result).error(), (100, gone.to_owned()));
}

#[test]
fn check_misses_a_lease_outside_the_range_too_where_such_can_be_asked_for() {
    let network = Network::with(json!({
        "ranges": [[{"subnet": "10.8.0.0/24", "rangeStart": "10.8.0.100"}], [{"subnet": "fd00:8::/64"}]],
        "requestableFrom": "subnet",
    }));
    let result = network.add_with_args("c1", "IP=10.8.0.7").document();
    let conf = network.conf_with("prevResult", result);
    network.ask_with(&conf, "CHECK", "c1").ok();
    std::fs::remove_file(network.leases_dir().join("10.8.0.7")).unwrap();
    let (_, msg) = network.ask_with(&conf, "CHECK", "c1").error();
    assert_eq!(msg, "10.8.0.7 is in prevResult but not leased");
}

#[test]
fn check_sees_a_lease_that_somebody_else_took_over_in_place() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    network.write("10.8.0.2", "thief\r\neth0");
    assert!(!network.ask("CHECK", "c1").success);
    network.ask("CHECK", "thief").ok();
    network.call(ours(), "DEL", "c1").ok();
    assert_eq!(network.leases().len(), 1);
    network.call(ours(), "DEL", "thief").ok();
    assert!(network.leases().is_empty());
}
