//! A network with IPv4 and IPv6: both work the moment ADD has returned.

use integration_tests::{Attachment, Container, Network, Outside, World, wait_until};
use serde_json::{Value, json};

use crate::bridge_frames::advertise_as_router;

fn two_containers(world: &World) -> (Container, Container) {
    let network = Network::example(world, "dual-stack");
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    network.attach_as(&c1, &Attachment::of(&c1).aliases(&["centos-1"]));
    network.attach_as(&c2, &Attachment::of(&c2).aliases(&["centos-2"]));
    (c1, c2)
}

#[test]
fn both_families_reach_the_other_container_and_the_host() {
    let world = World::new();
    let (c1, _c2) = two_containers(&world);
    let addresses = c1.run("ip -o address show dev eth0 scope global");
    assert!(addresses.success().contains(" 172.22.0.2/16 "), "{addresses}");
    assert!(addresses.stdout.contains(" fd00:172:22::2/64 "), "{addresses}");
    assert!(!addresses.stdout.contains("tentative"), "usable at once: {addresses}");
    for target in ["172.22.0.3", "fd00:172:22::3", "172.22.0.1", "fd00:172:22::1"] {
        assert!(c1.reaches(target), "{target}");
    }
    assert!(world.host().reaches("fd00:172:22::2"));
}

/// What is asked for before the kernel hears it is asked for again a second later. Its workers are held off here, as on a
/// busy host: the ADD and who looks after it have their processor before them.
#[test]
fn solicitations_for_new_addresses_are_heard_the_moment_add_has_returned() {
    let world = World::new();
    let (host, path) = (world.host(), world.install_plugins());
    let allowed = host.run("taskset -pc 1").success().rsplit_once(": ").unwrap().1.trim().to_owned();
    let processor = allowed.split([',', '-']).next().unwrap().to_owned();
    // Not everybody may.
    let first = match host.run("chrt --fifo 50 true").status {
        0 => vec!["taskset", "-c", &processor, "chrt", "--fifo", "50"],
        _ => vec![],
    };
    for round in 0..8 {
        let container = world.container(&format!("c{round}"));
        let config = json!({
            "cniVersion": "1.0.0", "name": format!("n{round}"), "type": "bridge", "bridge": format!("br{round}"),
            "isGateway": true, "ipam": { "type": "host-local-ipam", "subnet": format!("fd00:{round}::/64") },
        });
        world.write("/run/config", config.to_string());
        let script = format!(
            "{path}/bridge < /run/config > /run/result || exit
            cat /proc/thread-self/net/igmp6 > /run/host; ip -o link >> /run/host
            exec nsenter --net={} sh -c 'cat /proc/thread-self/net/igmp6; ip -o link show dev eth0'",
            container.netns_path(),
        );
        let command = host.command(first.iter().copied().chain(["sh", "-c", &script]));
        let call = command.env("CNI_COMMAND", "ADD").env("CNI_PATH", &path).env("CNI_IFNAME", "eth0");
        let call = call.env("CNI_CONTAINERID", container.name()).env("CNI_NETNS", container.netns_path());
        let in_container = call.run();
        for (seen, link, group) in [
            (in_container.success().to_owned(), "eth0".to_owned(), "ff0200000000000000000001ff000002"),
            (world.read("/run/host"), format!("br{round}"), "ff0200000000000000000001ff000001"),
        ] {
            let is_heard = |line: &str| line.contains(&format!(" {link} ")) && line.contains(group);
            assert!(seen.lines().any(is_heard), "{link} hears who asks for {group}: {seen}");
            let discards = |line: &str| line.contains(&format!(" {link}")) && line.contains("qdisc noop");
            assert!(!seen.lines().any(discards), "{link} sends: {seen}");
        }
    }
}

/// While it looks, the host asks for no neighbour there, and nothing that is routed finds a container by IPv6.
#[test]
fn a_new_bridge_looks_for_no_duplicate_of_its_own_address() {
    let world = World::new();
    two_containers(&world);
    let looks = world.host().run("sysctl -n net.ipv6.conf.br-dual.accept_dad");
    assert_eq!(looks.success(), "0\n");
}

#[test]
fn both_families_are_masqueraded_to_the_outside() {
    let world = World::new();
    let outside = world.outside();
    let (c1, _c2) = two_containers(&world);
    let _server = outside.space().serve("[::]:80");
    let answer = c1.fetch(&format!("http://{}/", Outside::ADDRESS));
    assert_eq!(answer, format!("{} called by {}", Outside::ADDRESS, Outside::HOST));
    let answer = c1.fetch(&format!("http://[{}]/", Outside::ADDRESS6));
    assert_eq!(answer, format!("[{}] called by {}", Outside::ADDRESS6, Outside::HOST6));
}

/// The kernel forgets the routes that it has from routers, and hears no router any more, when a host begins to forward.
#[test]
fn a_host_that_begins_to_forward_keeps_its_router() {
    let world = World::new();
    let (host, outside) = (world.host(), world.outside());
    let route = || host.run("ip -6 route show default proto ra").success().to_owned();
    host.run("ip -6 route flush default").success();
    host.run("ip link add quiet0 up type veth peer name quiet1").success();
    let advertised = |what: &str| {
        wait_until(what, || {
            advertise_as_router(outside.space());
            route().contains("dev up0").then_some(())
        });
    };
    advertised("the host has a router");
    two_containers(&world);
    assert_eq!(host.run("sysctl -n net.ipv6.conf.all.forwarding").success(), "1\n");
    assert!(route().contains("dev up0"), "{}", route());
    host.run("ip -6 route flush default").success();
    advertised("the host hears its router again");
    let believes = host.run("sysctl -n net.ipv6.conf.up0.accept_ra net.ipv6.conf.quiet0.accept_ra");
    assert_eq!(believes.success(), "2\n1\n", "a link without a router is left alone");
}

#[test]
fn a_name_has_both_addresses() {
    let world = World::new();
    let (c1, _c2) = two_containers(&world);
    assert_eq!(c1.run("dig +short centos-2 A").success(), "172.22.0.3\n");
    assert_eq!(c1.run("dig +short centos-2 AAAA").success(), "fd00:172:22::3\n");
    assert_eq!(c1.run("dig +short -x fd00:172:22::3").success(), "centos-2.dual-stack.\n");
    let mut found = c1.resolve("centos-2");
    found.sort();
    assert_eq!(found, ["172.22.0.3", "fd00:172:22::3"]);
    // The first may be lost before the kernel has made the routes for the addresses.
    c1.run("ping -6 -c 1 -w 30 centos-2").success();
}

/// As on hosts that were told to do without IPv6; a network that has it by its configuration still has.
#[test]
fn a_host_without_ipv6_has_it_on_the_network_that_asks_for_it() {
    let world = World::new();
    for scope in ["all", "default"] {
        world.host().run(&format!("sysctl -w net.ipv6.conf.{scope}.disable_ipv6=1")).success();
    }
    let (c1, _c2) = two_containers(&world);
    for target in ["172.22.0.1", "fd00:172:22::1", "fd00:172:22::3"] {
        assert!(c1.reaches(target), "{target}");
    }
}

/// Some runtimes switch it off in every namespace that they make.
#[test]
fn a_container_with_ipv6_off_has_it_on_its_loopback_and_the_network_that_asks_for_it() {
    let world = World::new();
    let container = world.container("c1");
    container
        .run("sysctl -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1")
        .success();
    Network::example(&world, "dual-stack").attach(&container);
    for target in ["fd00:172:22::1", "::1"] {
        assert!(container.reaches(target), "{target}");
    }
}

/// A chained plugin takes it down to give it another hardware address.
#[test]
fn an_interface_that_was_down_has_its_addresses_still() {
    let world = World::new();
    let (c1, _c2) = two_containers(&world);
    c1.run("ip link set eth0 down").success();
    c1.run("ip link set eth0 address 02:00:00:00:00:09").success();
    c1.run("ip link set eth0 up").success();
    for target in ["172.22.0.1", "fd00:172:22::1", "fd00:172:22::3"] {
        assert!(c1.reaches(target), "{target}");
    }
}

#[test]
fn an_add_that_fails_leaves_ipv6_on_the_bridge_as_it_was() {
    let world = World::new();
    let host = world.host();
    host.run("ip link add br0 up type bridge").success();
    host.run("sysctl -w net.ipv6.conf.br0.disable_ipv6=1 net.ipv6.conf.br0.accept_ra=2").success();
    let ranges = json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "fd00:1::/64" }]]);
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": { "type": "host-local-ipam", "ranges": ranges,
            "routes": [{ "dst": "10.9.0.0/16", "gw": "10.8.0.1" }] },
    });
    let path = world.install_plugins();
    let container = world.container("c1");
    let add = |config: &Value| {
        let call = world.plugin("bridge").verb("ADD").container(&container);
        call.env("CNI_PATH", &path).config(config).run()
    };
    let switches = || {
        let words = "sysctl -n net.ipv6.conf.br0.disable_ipv6 net.ipv6.conf.br0.accept_ra";
        host.run(words).success().to_owned()
    };
    let refused = add(&config);
    assert_ne!(refused.status, 0, "{refused}");
    assert_eq!(switches(), "1\n2\n");
    config["ipam"]["routes"] = json!([]);
    add(&config).success();
    assert_eq!(switches(), "0\n0\n");
}

/// It has none at all then, and the kernel's own word for that is that the address is invalid.
#[test]
fn a_bridge_that_is_too_narrow_for_ipv6_is_named_with_its_mtu() {
    let world = World::new();
    world.install_plugins();
    let container = world.container("c1");
    world.host().run("ip link add br-1 type bridge").success();
    // One that nobody has chosen follows the ports.
    world.host().run("ip link set br-1 mtu 1000").success();
    let ipv6 = json!({ "ranges": [[{ "subnet": "fd00:1::/64" }]] });
    let route = json!({ "ranges": [[{ "subnet": "10.1.0.0/24" }]], "routes": [{ "dst": "::/0" }] });
    for (mut ipam, keys) in
        [(ipv6.clone(), json!({})), (ipv6, json!({ "isGateway": true, "mtu": 1500 })), (route, json!({}))]
    {
        ipam["type"] = json!("host-local-ipam");
        let mut bridge = json!({ "type": "bridge", "bridge": "br-1", "ipam": ipam });
        bridge.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let network =
            Network::new(&world, json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [bridge] }));
        let refused = network.add(&Attachment::of(&container)).unwrap_err();
        let reason = "mtu: \"br-1\" has 1000, which is less than IPv6 needs, 1280";
        assert_eq!((refused.code, refused.msg.as_str()), (7, reason), "{keys}");
    }
}
