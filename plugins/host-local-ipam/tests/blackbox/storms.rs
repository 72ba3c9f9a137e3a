//! Many calls at once.

use std::collections::BTreeSet;
use std::process::{Child, Output};

use serde_json::json;

use crate::calls::{Network, content, ours};

fn spawn(network: &Network, verb: &str, id: &str) -> Child {
    network.command(ours(), verb, id).spawn().unwrap()
}

fn wait(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

#[test]
fn parallel_adds_get_different_addresses() {
    let network =
        Network::with(json!({"ranges": [[{"subnet": "10.8.0.0/25"}], [{"subnet": "fd00:8::/64"}]]}));
    let outputs = wait((0..64).map(|number| spawn(&network, "ADD", &format!("c{number}"))).collect());
    assert!(outputs.iter().all(|output| output.status.success()));
    let answers: BTreeSet<&[u8]> = outputs.iter().map(|output| output.stdout.as_slice()).collect();
    assert_eq!(answers.len(), 64);
    assert_eq!(network.leases().len(), 128);
    let outputs = wait((0..64).map(|number| spawn(&network, "DEL", &format!("c{number}"))).collect());
    assert!(outputs.iter().all(|output| output.status.success()));
    assert!(network.leases().is_empty());
}

#[test]
fn adds_dels_and_gcs_at_once_lose_nothing() {
    let network = Network::new("10.8.0.0/24");
    for id in ["keep1", "keep2"] {
        network.ask("ADD", id).ok();
    }
    let valid: Vec<_> = (0..24)
        .map(|number| format!("c{number}"))
        .chain(["keep1".into(), "keep2".into()])
        .map(|id| json!({"containerID": id, "ifname": "eth0"}))
        .collect();
    let mut with_list = Network::new("10.8.0.0/24");
    with_list.conf = network.conf_with("cni.dev/valid-attachments", json!(valid));
    let mut children = Vec::new();
    for number in 0..24 {
        children.push(spawn(&network, "ADD", &format!("c{number}")));
        children.push(spawn(&network, "DEL", &format!("other{number}")));
        if number % 6 == 0 {
            children.push(spawn(&with_list, "GC", ""));
        }
    }
    for output in wait(children) {
        assert!(output.status.success(), "{output:?}");
    }
    let holders: Vec<String> = network.leases().into_values().collect();
    let distinct: BTreeSet<String> = holders.iter().cloned().collect();
    let wanted = (0..24).map(|number| content(&format!("c{number}")));
    assert_eq!(distinct, wanted.chain([content("keep1"), content("keep2")]).collect());
    assert_eq!(holders.len(), 26);
}

#[test]
fn failing_adds_that_ask_for_several_addresses_give_back_only_their_own() {
    let network =
        Network::with(json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "10.9.0.0/24"}]]}));
    network.ask("ADD", "running").ok();
    let before = network.leases();
    let taken = json!({"ips": ["10.8.0.77", before.keys().nth(1).unwrap()]});
    let mut failing = Network::new("10.8.0.0/24");
    failing.conf = network.conf_with("runtimeConfig", taken);
    let mut children: Vec<Child> =
        (0..16).map(|number| spawn(&failing, "ADD", &format!("f{number}"))).collect();
    children.push(spawn(&failing, "ADD", "running"));
    for output in wait(children) {
        assert!(!output.status.success(), "{output:?}");
    }
    assert_eq!(network.leases(), before);
}

#[test]
fn one_attachment_added_many_times_at_once_has_one_address() {
    let network = Network::new("10.8.0.0/24");
    let outputs = wait((0..16).map(|_| spawn(&network, "ADD", "c1")).collect());
    assert_eq!(outputs.iter().filter(|output| output.status.success()).count(), 1);
    assert_eq!(network.leases().len(), 1);
}
