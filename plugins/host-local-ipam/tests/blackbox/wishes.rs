//! The keys that the reference does not have.

use serde_json::json;

use crate::calls::{Network, content};

#[test]
fn excluded_addresses_are_never_leased() {
    let network = Network::with(json!({
        "subnet": "10.8.0.0/29", "exclude": ["10.8.0.2", "10.8.0.4-10.8.0.5"],
    }));
    assert_eq!(network.ask("ADD", "c1").address(), "10.8.0.3");
    assert_eq!(network.ask("ADD", "c2").address(), "10.8.0.6");
    network.ask("ADD", "c3").exhausted();
    let (code, msg) = network.add_with_args("c3", "IP=10.8.0.4").error();
    assert!(code == 7 && msg.contains("requested ip 10.8.0.4 is excluded"), "{msg}");
}

#[test]
fn twenty_thousand_excluded_addresses_take_no_seconds_of_the_processor() {
    let excluded: Vec<String> =
        (0..20_000).map(|number| format!("10.8.{}.{}", number / 100, 2 + number % 100 * 2)).collect();
    let network = Network::with(json!({"subnet": "10.8.0.0/16", "exclude": excluded}));
    assert_eq!(network.add_within(5, "c1").address(), "10.8.0.3");
}

#[test]
fn a_hundred_thousand_requested_addresses_take_no_seconds_of_the_processor() {
    let requested: Vec<String> =
        (0..100_000).map(|number| format!("10.{}.{}.9", 8 + number / 256 % 240, number % 256)).collect();
    let mut network = Network::new("10.8.0.0/24");
    network.conf["runtimeConfig"] = json!({"ips": requested});
    let (code, msg) = network.add_within(10, "c1").error();
    assert!(
        code == 7 && msg.starts_with("failed to allocate all requested IPs: 10.8.1.9 10.8.2.9 "),
        "{code}"
    );
    assert!(network.leases().is_empty());
}

#[test]
fn the_lowest_free_address_is_leased_first() {
    let network = Network::with(json!({"subnet": "10.8.0.0/24", "allocation": "lowest"}));
    for id in ["c1", "c2", "c3"] {
        network.ask("ADD", id).ok();
    }
    network.ask("DEL", "c2").ok();
    assert_eq!(network.ask("ADD", "c4").address(), "10.8.0.3");
    assert_eq!(network.files()["last_reserved_ip.0"], b"10.8.0.3");
}

#[test]
fn a_requested_address_may_be_outside_the_range_but_inside_the_subnet() {
    let keys = json!({"subnet": "10.8.0.0/24", "rangeStart": "10.8.0.100", "requestableFrom": "subnet"});
    let network = Network::with(keys);
    assert_eq!(network.add_with_args("c1", "IP=10.8.0.7").address(), "10.8.0.7");
    assert_eq!(network.ask("ADD", "c2").address(), "10.8.0.100");
    assert!(!network.add_with_args("c3", "IP=10.8.1.7").success);
    network.ask("CHECK", "c1").ok();
    network.ask("DEL", "c1").ok();
    assert_eq!(network.leases().into_values().collect::<Vec<_>>(), [content("c2")]);
    network.ask("DEL", "c2").ok();
    assert_eq!(network.add_with_args("c3", "IP=10.8.0.8").address(), "10.8.0.8");
    assert_eq!(network.ask("ADD", "c4").address(), "10.8.0.101", "the one released last has to rest");
}

#[test]
fn an_address_stays_with_a_name_while_it_is_free() {
    let keys =
        json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]], "stickyByName": true});
    let network = Network::with(keys);
    let web = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web";
    let first = network.add_with_args("c1", web).addresses();
    network.ask("DEL", "c1").ok();
    network.add_with_args("c2", "CONTAINER_NAME=db").ok();
    assert_eq!(network.add_with_args("c3", web).addresses(), first);
    network.ask("DEL", "c3").ok();
    // somebody else has it now
    network.add_with_args("c4", &format!("IP={};CONTAINER_NAME=thief", first[0])).ok();
    let second = network.add_with_args("c5", web).addresses();
    assert!(second[0] != first[0] && second[1] == first[1], "{second:?}");
    network.ask("DEL", "c4").ok();
    network.ask("DEL", "c5").ok();
    assert_eq!(network.add_with_args("c6", web).addresses(), second);
    // asking for an address is stronger
    network.ask("DEL", "c6").ok();
    assert_eq!(network.add_with_args("c7", &format!("IP=10.8.0.99;{web}")).addresses()[0], "10.8.0.99");
}

#[test]
fn a_name_that_has_moved_loses_nothing_when_its_old_address_goes_to_another() {
    let network =
        Network::with(json!({"subnet": "10.8.0.0/24", "allocation": "lowest", "stickyByName": true}));
    let add = |id, name: &str| network.add_with_args(id, &format!("CONTAINER_NAME={name}")).address();
    assert_eq!(add("old", "web"), "10.8.0.2");
    assert_eq!(add("new", "web"), "10.8.0.3");
    network.ask("DEL", "old").ok();
    assert_eq!(add("other", "db"), "10.8.0.2");
    network.ask("DEL", "other").ok();
    network.ask("DEL", "new").ok();
    assert_eq!(add("newest", "web"), "10.8.0.3");
}

#[test]
fn an_address_from_outside_the_range_stays_with_a_name_too() {
    let keys = json!({
        "subnet": "10.8.0.0/24", "rangeStart": "10.8.0.100", "requestableFrom": "subnet", "stickyByName": true,
    });
    let network = Network::with(keys);
    assert_eq!(network.add_with_args("c1", "IP=10.8.0.7;CONTAINER_NAME=web").address(), "10.8.0.7");
    network.ask("DEL", "c1").ok();
    assert_eq!(network.add_with_args("c2", "CONTAINER_NAME=web").address(), "10.8.0.7");
    assert_eq!(network.add_with_args("c3", "CONTAINER_NAME=web").address(), "10.8.0.100");
}

#[test]
fn what_the_other_plugins_of_a_chain_read_in_cni_args_is_no_mistake() {
    let network = Network::new("10.8.0.0/24");
    let chain = "CONTAINER_NAME=web;ALIASES=a,b;LINKS=db:sql;MAC=02:00:00:00:00:01;IP=10.8.0.9";
    assert_eq!(network.add_with_args("c1", chain).address(), "10.8.0.9");
    let (code, msg) = network.add_with_args("c2", "CONTAINER_NAME=web;COLOUR=red").error();
    assert_eq!((code, msg.as_str()), (4, "CNI_ARGS: ARGS: unknown args [\"COLOUR=red\"]"));
    assert_eq!(network.leases().len(), 1);
}
