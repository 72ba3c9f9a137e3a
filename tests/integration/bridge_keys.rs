//! Keys of the bridge plugin whose meaning no other story is about: each does to packets what it does with the reference
//! plugin, which is told the same.

use integration_tests::{Container, Output, PluginCall, Suite, World};
use serde_json::{Value, json};

const SUITES: [Suite; 2] = [Suite::Ours, Suite::Reference];

/// A host on which the plugin of one suite wires containers.
struct Story {
    world: World,
    suite: Suite,
    path: String,
}

impl Story {
    #[track_caller]
    fn new(suite: Suite) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        Self { world, suite, path }
    }

    fn call(&self, verb: &str, container: &Container, config: &Value) -> PluginCall {
        let call = self.world.plugin_of(self.suite, "bridge").verb(verb).container(container);
        call.env("CNI_PATH", &self.path).config(config)
    }

    fn add(&self, container: &Container, config: &Value) -> Output {
        self.call("ADD", container, config).run()
    }

    /// A container `name` attached to the network of `config`, and the result.
    #[track_caller]
    fn attach(&self, name: &str, config: &Value) -> (Container, Value) {
        let container = self.world.container(name);
        let output = self.add(&container, config);
        output.success();
        (container, output.json())
    }

    /// How many frames the host has received on a link.
    #[track_caller]
    fn received(&self, link: &str) -> u64 {
        counted(&self.world.host().run(&format!("cat /sys/class/net/{link}/statistics/rx_packets")))
    }
}

#[track_caller]
fn counted(output: &Output) -> u64 {
    output.success().trim().parse().unwrap()
}

/// A network on 10.1.0.0/24 with a gateway, with these keys as well.
fn network(keys: &Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }]] },
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

/// The same without addresses: a switch.
fn switch(keys: &Value) -> Value {
    let mut config = network(keys);
    for key in ["isGateway", "ipam"] {
        config.as_object_mut().unwrap().remove(key);
    }
    config
}

/// Has a container send so many frames to a hardware address that nobody has: the bridge floods them.
#[track_caller]
fn send_to_nobody(container: &Container, frames: u32) {
    container.run("ip neigh replace 10.1.0.99 lladdr 02:00:00:00:00:99 dev eth0").success();
    container.run(&format!("ping -n -q -c {frames} -i 0.002 -W 1 10.1.0.99")).failure();
}

#[test]
fn another_gateway_address_is_refused_unless_it_may_replace_the_one_that_is_there() {
    for suite in SUITES {
        let story = Story::new(suite);
        story.attach("one", &network(&json!({})));
        let ipam = json!({ "type": "host-local", "ranges": [[{ "subnet": "10.2.0.0/24" }]] });
        let other = network(&json!({ "name": "other", "ipam": ipam }));
        let two = story.world.container("two");
        let refusal = story.add(&two, &other);
        assert_ne!(refusal.status, 0, "{suite:?}: {refusal}");
        assert!(refusal.stdout.contains("already has an IP address different from 10.2.0.1/24"), "{refusal}");
        story.call("DEL", &two, &other).run().success();
        let addresses = || story.world.host().run("ip -4 -o address show dev br0").success().to_owned();
        assert!(addresses().contains("10.1.0.1/24") && !addresses().contains("10.2.0.1"), "{}", addresses());

        let mut forced = other.clone();
        forced["forceAddress"] = json!(true);
        story.add(&two, &forced).success();
        assert!(
            !addresses().contains("10.1.0.1/24") && addresses().contains("10.2.0.1/24"),
            "{}",
            addresses()
        );
        assert!(two.reaches("10.2.0.1"), "{suite:?}");
    }
}

/// With the first address of a subnet the kernel takes the later ones.
#[test]
fn a_gateway_address_that_goes_with_the_one_that_makes_room_comes_back() {
    let story = Story::new(Suite::Ours);
    story.attach("one", &switch(&json!({})));
    let host = story.world.host();
    for address in ["10.1.0.9/24", "10.1.0.1/24"] {
        host.run(&format!("ip address add {address} dev br0")).success();
    }
    let ranges = json!([[{ "subnet": "10.1.0.0/24" }], [{ "subnet": "10.2.0.0/24" }]]);
    let ipam = json!({ "type": "host-local", "ranges": ranges });
    story.attach("two", &network(&json!({ "forceAddress": true, "ipam": ipam })));
    let addresses = host.run("ip -4 -o address show dev br0").success().to_owned();
    assert!(["10.1.0.1/24", "10.2.0.1/24"].iter().all(|gateway| addresses.contains(gateway)), "{addresses}");
    assert!(!addresses.contains("10.1.0.9"), "{addresses}");
}

/// The kernel has no two addresses of different scope in one IPv4 subnet.
#[test]
fn an_address_that_stays_on_the_link_is_in_the_way_in_its_own_subnet_only() {
    let story = Story::new(Suite::Ours);
    story.attach("one", &switch(&json!({})));
    let host = story.world.host();
    host.run("ip address add 169.254.9.9/16 dev br0 scope link").success();
    story.attach("two", &network(&json!({})));

    host.run("ip address flush dev br0").success();
    host.run("ip address add 10.1.0.9/24 dev br0 scope link").success();
    let three = story.world.container("three");
    let refusal = story.add(&three, &network(&json!({}))).json();
    assert_eq!(refusal["code"], 7, "{refusal}");
    assert!(refusal["msg"].as_str().unwrap().contains("already has an IP address"), "{refusal}");
    story.add(&three, &network(&json!({ "forceAddress": true }))).success();
    assert!(three.reaches("10.1.0.1"));
}

#[test]
fn an_interface_that_is_to_stay_down_does_and_works_once_somebody_brings_it_up() {
    for suite in SUITES {
        let story = Story::new(suite);
        let config = switch(&json!({ "disableContainerInterface": true }));
        let (one, result) = story.attach("one", &config);
        let (two, _) = story.attach("two", &config);
        assert_eq!(result["ips"].as_array().map_or(0, Vec::len), 0, "{suite:?}: {result}");
        for (number, container) in [(1, &one), (2, &two)] {
            let link = container.run("ip -o link show dev eth0").success().to_owned();
            assert!(link.contains("state DOWN"), "{suite:?}: {link}");
            container.run(&format!("ip address add 10.1.0.{number}/24 dev eth0")).success();
        }
        assert!(one.is_cut_off_from("10.1.0.2"), "{suite:?}");
        for container in [&one, &two] {
            container.run("ip link set eth0 up").success();
        }
        assert!(one.reaches("10.1.0.2"), "{suite:?}");
    }
}

/// It names no VLAN: a kernel that cannot filter by them does without, and a bridge that is there is left as it is. (The
/// reference asks the first even so.)
#[test]
fn an_empty_trunk_is_served_whatever_the_kernel_and_the_bridge_can() {
    for (suite, bridge_is_there) in [(Suite::Ours, false), (Suite::Ours, true), (Suite::Reference, true)] {
        let story = Story::new(suite);
        let host = story.world.host();
        if bridge_is_there {
            for command in ["br0 type bridge", "other type veth peer name port"] {
                host.run(&format!("ip link add {command}")).success();
            }
            host.run("ip link set port master br0").success();
        }
        let mut config = network(&json!({ "vlanTrunk": [] }));
        let (one, result) = story.attach("one", &config);
        assert!(one.reaches("10.1.0.1"), "{suite:?}, {bridge_is_there}");
        config["prevResult"] = result;
        story.call("CHECK", &one, &config).run().success();
        if bridge_is_there {
            let bridge = host.run("ip -json -d link show dev br0").json();
            assert_eq!(bridge[0]["linkinfo"]["info_data"]["vlan_filtering"], 0, "{suite:?}");
        }
    }
}

#[test]
fn a_mac_is_taken_from_three_places_and_seen_by_the_neighbours() {
    const MACS: [&str; 3] = ["02:00:00:00:00:0a", "02:00:00:00:00:0b", "02:00:00:00:00:0c"];
    let [runtime, args, env] = MACS;
    for suite in SUITES {
        for (places, expected) in [
            (vec!["env"], env),
            (vec!["env", "args"], args),
            (vec!["env", "args", "runtime"], runtime),
            (vec!["runtime"], runtime),
        ] {
            let story = Story::new(suite);
            let mut config = network(&json!({}));
            if places.contains(&"runtime") {
                config["runtimeConfig"] = json!({ "mac": runtime });
            }
            if places.contains(&"args") {
                config["args"] = json!({ "cni": { "mac": args } });
            }
            let in_env = if places.contains(&"env") { format!("MAC={env}") } else { String::new() };
            let container = story.world.container("one");
            let output = story.call("ADD", &container, &config).env("CNI_ARGS", &in_env).run();
            output.success();
            assert_eq!(output.json()["interfaces"][2]["mac"], expected, "{suite:?} {places:?}");
            let address = container.run("cat /sys/class/net/eth0/address").success().trim().to_owned();
            assert_eq!(address, expected, "{suite:?} {places:?}");
            assert!(story.world.host().reaches("10.1.0.2"), "{suite:?} {places:?}");
            let neighbour = story.world.host().run("ip neigh show 10.1.0.2 dev br0").success().to_owned();
            assert!(neighbour.contains(expected), "{suite:?} {places:?}: {neighbour}");
        }
    }
}

#[test]
fn dns_of_the_network_replaces_that_of_the_allocator_as_a_whole() {
    for suite in SUITES {
        let story = Story::new(suite);
        story.world.write("/run/resolv.conf", "nameserver 192.0.2.1\nsearch of-the.allocator\n");
        let ipam = json!({
            "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }]], "resolvConf": "/run/resolv.conf",
        });
        let (_, result) = story.attach("one", &network(&json!({ "ipam": ipam })));
        let allocators = json!({ "nameservers": ["192.0.2.1"], "search": ["of-the.allocator"] });
        assert_eq!(result["dns"], allocators, "{suite:?}");
        let (_, result) = story.attach("two", &network(&json!({ "ipam": ipam, "dns": { "domain": "d" } })));
        assert_eq!(result["dns"], json!({ "domain": "d" }), "{suite:?}");
        let (_, result) = story.attach("three", &network(&json!({ "ipam": ipam, "dns": {} })));
        assert_eq!(result["dns"], allocators, "{suite:?}");
        let none = json!({ "ipam": ipam, "dns": { "nameservers": [], "search": null } });
        let (_, result) = story.attach("four", &network(&none));
        assert_eq!(result["dns"], Value::Null, "{suite:?}");
    }
}

#[test]
fn isolated_ports_reach_the_gateway_and_ports_that_are_not_isolated() {
    for suite in SUITES {
        let story = Story::new(suite);
        let (one, _) = story.attach("one", &network(&json!({ "portIsolation": true })));
        story.attach("two", &network(&json!({ "portIsolation": true })));
        let (open, _) = story.attach("open", &network(&json!({})));
        assert!(one.is_cut_off_from("10.1.0.3"), "{suite:?}");
        for target in ["10.1.0.1", "10.1.0.4"] {
            assert!(one.reaches(target), "{suite:?}: {target}");
        }
        assert!(open.reaches("10.1.0.3"), "{suite:?}");
    }
}

#[test]
fn a_hairpin_port_gets_its_own_frames_back() {
    const FRAMES: u32 = 100;
    for suite in SUITES {
        for hairpin in [false, true] {
            let story = Story::new(suite);
            let (one, _) = story.attach("one", &network(&json!({ "hairpinMode": hairpin })));
            let received = || counted(&one.run("cat /sys/class/net/eth0/statistics/rx_packets"));
            let before = received();
            send_to_nobody(&one, FRAMES);
            let back = received() - before;
            // The kernel's own neighbour discovery may add some.
            assert_eq!(back >= u64::from(FRAMES), hairpin, "{suite:?}: {back} frames came back");
        }
    }
}

#[test]
fn a_promiscuous_bridge_sees_what_its_containers_say_to_each_other() {
    const PACKETS: u64 = 100;
    for suite in SUITES {
        for promiscuous in [false, true] {
            let story = Story::new(suite);
            let config = network(&json!({ "promiscMode": promiscuous }));
            let (one, _) = story.attach("one", &config);
            story.attach("two", &config);
            assert!(one.reaches("10.1.0.3"), "{suite:?}");
            let before = story.received("br0");
            one.run(&format!("ping -n -q -c {PACKETS} -i 0.002 -W 1 10.1.0.3")).success();
            let seen = story.received("br0") - before;
            assert_eq!(seen >= PACKETS, promiscuous, "{suite:?}: {seen} frames");
        }
    }
}

#[test]
fn a_network_without_addresses_is_a_switch() {
    for suite in SUITES {
        for config in [switch(&json!({})), switch(&json!({ "ipam": {} }))] {
            let story = Story::new(suite);
            let [(one, result), (two, _)] = ["one", "two"].map(|name| story.attach(name, &config));
            assert_eq!(result["ips"].as_array().map_or(0, Vec::len), 0, "{suite:?}: {result}");
            assert_eq!(result["interfaces"].as_array().map_or(0, Vec::len), 3, "{suite:?}: {result}");
            for (number, container) in [(1, &one), (2, &two)] {
                container.run(&format!("ip address add 10.1.0.{number}/24 dev eth0")).success();
            }
            assert!(one.reaches("10.1.0.2"), "{suite:?}");
            for container in [&one, &two] {
                story.call("DEL", container, &config).run().success();
            }
        }
    }
}

/// What the reference fails at, or says and does not do.
#[test]
fn routes_of_the_allocator_are_as_they_are_written() {
    let routed = |routes: Value| {
        let ipam =
            json!({ "type": "host-local", "ranges": [[{ "subnet": "10.1.0.0/24" }]], "routes": routes });
        network(&json!({ "isDefaultGateway": true, "ipam": ipam }))
    };
    let default = routed(json!([{ "dst": "0.0.0.0/0" }]));
    let written = routed(json!([{ "dst": "10.8.0.0/16", "mtu": 1400, "advmss": 1300 }]));

    let story = Story::new(Suite::Reference);
    let refusal = story.add(&story.world.container("one"), &default);
    assert!(refusal.stdout.contains("file exists"), "the reference has learnt it: {refusal}");

    let story = Story::new(Suite::Ours);
    let (one, _) = story.attach("one", &default);
    let routes = one.run("ip route show default").success().to_owned();
    assert_eq!(routes.trim(), "default via 10.1.0.1 dev eth0");
    assert!(one.reaches("10.1.0.1"));
    let (two, _) = story.attach("two", &written);
    let routes = two.run("ip route").success().to_owned();
    let route = "10.8.0.0/16 via 10.1.0.1 dev eth0 mtu 1400 advmss 1300";
    assert!(routes.lines().any(|line| line.trim_end() == route), "no {route}: {routes}");
}

/// So that a network can lead its containers to each other by way of its gateway, where the host's rules see what they
/// say; and whoever is attached to two networks takes the ways of the later one.
#[test]
fn a_later_route_goes_before_an_earlier_one_to_the_same_destination() {
    for suite in SUITES {
        let story = Story::new(suite);
        let config = |number: u8| {
            let subnet = format!("10.{number}.0.0/24");
            network(&json!({
                "name": format!("n{number}"), "bridge": format!("br{number}"), "portIsolation": true,
                "ipam": {
                    "type": "host-local", "ranges": [[{ "subnet": subnet }]],
                    "routes": [{ "dst": subnet, "gw": format!("10.{number}.0.1") }, { "dst": "10.9.0.0/16" }],
                },
            }))
        };
        let (one, _) = story.attach("one", &config(1));
        let (_two, _) = story.attach("two", &config(1));
        // Else the host tells them of the shorter way, which isolation has closed.
        story
            .world
            .host()
            .run("sysctl -q -w net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.br1.send_redirects=0")
            .success();
        assert!(one.reaches("10.1.0.3"), "{suite:?}");
        let output = story.call("ADD", &one, &config(2)).env("CNI_IFNAME", "eth1").run();
        output.success();
        let way = one.run("ip route get 10.9.0.1").success().to_owned();
        assert!(way.starts_with("10.9.0.1 via 10.2.0.1 dev eth1"), "{suite:?}: {way}");
    }
}
