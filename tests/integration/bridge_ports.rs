//! How ports and interfaces behave: their flags as the kernel has them, duplicate address detection, reverse paths.

use std::time::Instant;

use integration_tests::{Attachment, Container, Network, World};
use serde_json::{Value, json};

/// A network `net` on bridge `br-1` with further keys for the bridge.
fn network(world: &World, keys: &Value) -> Network {
    named(world, "net", 1, keys)
}

/// A network on `10.NUMBER.0.0/16` and `fd00:NUMBER::/64`, with bridge `br-NUMBER` and further keys.
fn named(world: &World, name: &str, number: u8, keys: &Value) -> Network {
    let mut bridge = json!({
        "type": "bridge", "bridge": format!("br-{number}"), "isDefaultGateway": true,
        "ipam": { "type": "host-local-ipam", "ranges": [
            [{ "subnet": format!("10.{number}.0.0/16") }], [{ "subnet": format!("fd00:{number}::/64") }],
        ] },
    });
    bridge.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Network::new(world, json!({ "cniVersion": "1.0.0", "name": name, "plugins": [bridge] }))
}

fn attached(world: &World, network: &Network, name: &str) -> (Container, Value) {
    let container = world.container(name);
    let result = network.attach(&container);
    (container, result)
}

#[test]
fn the_flags_of_a_port_are_those_that_were_asked_for() {
    for (key, hairpin, isolated, promiscuous) in [
        ("isGateway", "off", "off", false),
        ("hairpinMode", "on", "off", false),
        ("portIsolation", "off", "on", false),
        ("promiscMode", "off", "off", true),
    ] {
        let world = World::new();
        let (_container, result) = attached(&world, &network(&world, &json!({ key: true })), "one");
        let host_veth = result["interfaces"][1]["name"].as_str().unwrap();
        let port = world.host().run(&format!("bridge -d link show dev {host_veth}")).success().to_owned();
        assert!(port.contains(&format!("hairpin {hairpin} ")), "{key}: {port}");
        assert!(port.contains(&format!("isolated {isolated} ")), "{key}: {port}");
        let bridge = world.host().run("ip -d link show dev br-1").success().to_owned();
        assert_eq!(bridge.contains("PROMISC"), promiscuous, "{key}: {bridge}");
    }
}

#[test]
fn with_duplicate_address_detection_an_address_is_usable_when_add_returns_and_a_taken_one_is_refused() {
    let world = World::new();
    let net = network(&world, &json!({ "enabledad": true }));
    let begun = Instant::now();
    let (one, _) = attached(&world, &net, "one");
    assert!(begun.elapsed().as_millis() > 500, "nothing was waited for");
    let addresses = one.run("ip -6 address show dev eth0 scope global").success().to_owned();
    assert!(addresses.contains("fd00:1::2/64") && !addresses.contains("tentative"), "{addresses}");
    assert!(one.reaches("fd00:1::1"));

    // Somebody has the next address without having leased it.
    one.run("ip -6 address add fd00:1::3/64 dev eth0 nodad").success();
    let two = world.container("two");
    let refusal = net.add(&Attachment::of(&two)).unwrap_err();
    assert_eq!(refusal.code, 11, "{refusal}");
    assert!(refusal.msg.contains("fd00:1::3") && refusal.msg.contains("in use"), "{refusal}");
    two.run("ip link show dev eth0").failure();

    let (three, _) = attached(&world, &network(&world, &json!({ "enabledad": false })), "three");
    assert!(three.reaches("10.1.0.1"));
}

#[test]
fn a_container_of_two_networks_is_answered_in_both_under_a_strict_reverse_path_filter_of_the_host() {
    let world = World::new();
    for scope in ["all", "default"] {
        world
            .host()
            .run(&format!("sysctl -q -w net.ipv4.conf.{scope}.rp_filter={}", u8::from(scope == "default")))
            .success();
    }
    let (first, second) = (named(&world, "first", 1, &json!({})), named(&world, "second", 2, &json!({})));
    let container = world.container("both");
    first.attach(&container);
    second.attach_as(&container, &Attachment::of(&container).ifname("eth1"));
    let (in_first, _) = attached(&world, &first, "one");
    let (in_second, _) = attached(&world, &second, "two");
    // By its other network as well: the answer leaves by the default route.
    for target in ["10.1.0.2", "10.2.0.2"] {
        assert!(in_first.reaches(target), "first to {target}");
        assert!(in_second.reaches(target), "second to {target}");
        assert!(world.host().reaches(target), "host to {target}");
    }
}

/// What is asked by the first network and answered by the second, whose default route there is, in a container that
/// judges sources strictly itself.
#[test]
fn a_container_that_filters_strictly_itself_answers_on_the_network_that_it_had_first() {
    let world = World::new();
    let first = named(&world, "first", 1, &json!({ "isDefaultGateway": false, "isGateway": true }));
    let (second, third) = (named(&world, "second", 2, &json!({})), named(&world, "third", 3, &json!({})));
    let container = world.container("both");
    container.run("sysctl -q -w net.ipv4.conf.default.rp_filter=1").success();
    first.attach(&container);
    let strict = container.run("sysctl -n net.ipv4.conf.eth0.rp_filter").success().to_owned();
    assert_eq!(strict.trim(), "1", "alone it stays as it is");
    second.attach_as(&container, &Attachment::of(&container).ifname("eth1"));
    let (asker, _) = attached(&world, &third, "asker");
    for target in ["10.1.0.2", "10.2.0.2"] {
        assert!(asker.reaches(target), "{target}");
    }
    first.check(&Attachment::of(&container)).unwrap();
    container.run("sysctl -q -w net.ipv4.conf.eth0.rp_filter=1").success();
    assert!(asker.is_cut_off_from("10.1.0.2"));
    let failure = first.check(&Attachment::of(&container)).unwrap_err();
    assert!(failure.msg.contains("\"eth0\" filters reverse paths strictly"), "{failure}");
}

/// What the third network asks the second one's address is answered by the first one, which has the default route.
#[test]
fn check_names_a_gateway_that_filters_strictly_where_the_container_has_other_networks() {
    let world = World::new();
    let (first, third) = (named(&world, "first", 1, &json!({})), named(&world, "third", 3, &json!({})));
    // The kernel chooses between two default routes as it likes.
    let second = named(&world, "second", 2, &json!({ "isDefaultGateway": false, "isGateway": true }));
    let container = world.container("both");
    let (alone, on_second) = (Attachment::of(&container), Attachment::of(&container).ifname("eth1"));
    first.attach(&container);
    let filter = |value: u8| {
        world.host().run(&format!("sysctl -q -w net.ipv4.conf.br-1.rp_filter={value}")).success();
    };
    filter(1);
    first.check(&alone).unwrap();

    second.attach_as(&container, &on_second);
    let (asker, _) = attached(&world, &third, "asker");
    assert!(asker.reaches("10.2.0.2"));
    first.check(&alone).unwrap();
    filter(1);
    assert!(asker.is_cut_off_from("10.2.0.2"));
    let failure = first.check(&alone).unwrap_err();
    assert!(failure.msg.contains("\"br-1\" filters reverse paths strictly"), "{failure}");
    second.check(&on_second).unwrap();
}
