//! CHECK of the bridge plugin sees each thing that ADD made, and is not disturbed by what others do.

use integration_tests::{Attachment, Container, Network, Suite, World};
use serde_json::{Value, json};

/// A container on a gateway network with two families, and what ADD answered.
struct Story {
    world: World,
    container: Container,
    path: String,
    config: Value,
    result: Value,
}

impl Story {
    #[track_caller]
    fn new(keys: &Value) -> Self {
        Self::wired_by(Suite::Ours, keys)
    }

    #[track_caller]
    fn wired_by(suite: Suite, keys: &Value) -> Self {
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0",
            "isGateway": true, "isDefaultGateway": true, "ipMasq": true, "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]],
                "routes": [{ "dst": "10.9.0.0/16", "mtu": 1400, "advmss": 1300 }]
            }
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let world = World::new();
        let container = world.container("c1");
        let path = world.install_plugins();
        let mut story = Self { world, container, path, config, result: Value::Null };
        let add = story.world.plugin_of(suite, "bridge").verb("ADD").env("CNI_PATH", &story.path);
        story.result = add.container(&story.container).config(&story.config).run().json();
        assert!(story.result["interfaces"].is_array(), "{}", story.result);
        story
    }

    /// What CHECK finds, by whatever path the namespace is told; nothing when all is well.
    fn found_by(&self, netns: &str) -> String {
        let mut config = self.config.clone();
        config["prevResult"] = self.result.clone();
        let check = self.world.plugin("bridge").verb("CHECK").container(&self.container);
        let output = check.env("CNI_NETNS", netns).env("CNI_PATH", &self.path).config(&config).run();
        match output.status {
            0 => String::new(),
            _ => output.error(100),
        }
    }

    fn found(&self) -> String {
        self.found_by(&self.container.netns_path())
    }

    fn host_veth(&self) -> &str {
        self.result["interfaces"][1]["name"].as_str().unwrap()
    }
}

/// `damage` done on the host, or in the container, is found and named.
#[track_caller]
fn sees(in_container: bool, damage: &str, named: &str) {
    let story = Story::new(&json!({ "macspoofchk": true }));
    assert_eq!(story.found(), "");
    let damage = damage.replace("VETH", story.host_veth());
    match in_container {
        true => story.container.run(&damage).success().to_owned(),
        false => story.world.host().run(&damage).success().to_owned(),
    };
    let found = story.found();
    assert!(found.contains(named), "after `{damage}` CHECK said {found:?}");
}

#[test]
fn damage_on_the_host_is_named() {
    for (damage, named) in [
        ("ip address delete 10.1.2.1/24 dev br0", "gateway address 10.1.2.1/24 is missing on \"br0\""),
        ("ip address delete fd00:1::1/64 dev br0", "gateway address fd00:1::1/64 is missing on \"br0\""),
        ("sysctl -w net.ipv4.ip_forward=0", "the host does not forward IPv4"),
        ("sysctl -w net.ipv4.conf.br0.forwarding=0", "the host does not forward IPv4 from \"br0\""),
        ("sysctl -w net.ipv6.conf.br0.accept_ra=2", "bridge \"br0\" accepts router advertisements"),
        ("sysctl -w net.ipv6.conf.VETH.accept_ra=1", "accepts router advertisements"),
        ("ip link set br0 type bridge no_linklocal_learn 0", "learns from frames that it does not forward"),
        ("nft flush ruleset", "nf_tables"),
        ("ip link set br0 down", "bridge \"br0\" is down"),
        (
            "ip link set br0 address 02:00:00:00:00:77",
            "hardware address of bridge \"br0\" is 02:00:00:00:00:77",
        ),
        ("ip link delete br0", "bridge \"br0\" is missing"),
        ("ip link set VETH down", "is down"),
        ("ip link set VETH nomaster", "is not a port of bridge \"br0\""),
        ("ip link set VETH mtu 1400", "MTU of \"eth0\" is 1500, not 1400"),
        ("bridge link set dev VETH hairpin off", "hairpin mode of host veth"),
        ("bridge link set dev VETH isolated on", "isolation of host veth"),
        ("bridge link set dev VETH flood off", "flooding of unicast frames of host veth"),
        ("bridge link set dev VETH mcast_flood off", "flooding of multicast frames of host veth"),
        ("bridge link set dev VETH bcast_flood off", "flooding of broadcast frames of host veth"),
        ("bridge link set dev VETH locked on", "lock of host veth"),
        ("ip link set br0 arp off", "\"br0\" resolves no addresses"),
        // Listening, which only a spanning tree has reason for.
        ("bridge link set dev VETH state 1", "does not forward"),
        ("ip link delete VETH", "is missing"),
        ("ip link set VETH alias other", "mark of host veth"),
        ("ip link set VETH alias cni:n/other/eth0", "mark of host veth"),
    ] {
        sees(false, damage, named);
    }
}

/// By what our IPAM plugin says, and by what the reference's does.
#[test]
fn leases_that_are_gone_are_named_and_so_is_what_else_differs() {
    let mut story = Story::new(&json!({}));
    let host = story.world.host();
    host.run("rm /var/lib/cni/networks/n/10.1.2.2").success();
    assert_eq!(story.found(), "10.1.2.2 is in prevResult but not leased");
    host.run("rm /var/lib/cni/networks/n/fd00:1::2").success();
    let gone = "host-local: Failed to find address added by container c1";
    assert_eq!(story.found(), gone);
    host.run("ip address delete 10.1.2.1/24 dev br0").success();
    let both = format!("gateway address 10.1.2.1/24 is missing on \"br0\"; {gone}");
    assert_eq!(story.found(), both);
    story.path = Suite::Reference.dir().display().to_string();
    assert_eq!(story.found(), both);
}

#[test]
fn a_host_veth_that_was_renamed_is_named_and_removed() {
    let story = Story::new(&json!({}));
    let host = story.world.host();
    for command in ["VETH down", "VETH name other", "other up"] {
        host.run(&format!("ip link set {}", command.replace("VETH", story.host_veth()))).success();
    }
    let found = story.found();
    assert!(found.contains("host veth of \"eth0\" is called \"other\", not"), "{found}");
    // It is still known for ours: its rules are looked at.
    host.run("nft flush ruleset").success();
    let found = story.found();
    assert!(found.contains("nf_tables"), "{found}");
    let del = story.world.plugin("bridge").verb("DEL").container(&story.container);
    del.env("CNI_PATH", &story.path).config(&story.config).run().success();
    assert!(!host.run("ip -o link show").success().contains("other"), "the pair is left");
}

#[test]
fn damage_in_the_container_is_named() {
    for (damage, named) in [
        ("ip address delete 10.1.2.2/24 dev eth0", "address 10.1.2.2/24 is missing on \"eth0\""),
        ("ip address delete fd00:1::2/64 dev eth0", "address fd00:1::2/64 is missing on \"eth0\""),
        ("ip route delete 10.1.2.0/24", "route 10.1.2.0/24 of address 10.1.2.2/24 is missing"),
        ("ip route delete fd00:1::/64", "route fd00:1::/64 of address fd00:1::2/64 is missing"),
        ("ip route delete default", "route 0.0.0.0/0 via 10.1.2.1 is missing"),
        ("ip route delete 10.9.0.0/16", "route 10.9.0.0/16 via 10.1.2.1 is missing"),
        ("ip route change 10.9.0.0/16 via 10.1.2.1 mtu 1300 advmss 1300", "MTU of route 10.9.0.0/16"),
        (
            "ip route change 10.9.0.0/16 via 10.1.2.1 mtu 1400",
            "advmss of route 10.9.0.0/16 via 10.1.2.1 is 0",
        ),
        ("ip link set eth0 address 02:00:00:00:00:78", "hardware address of \"eth0\" is 02:00:00:00:00:78"),
        ("sysctl -w net.ipv6.conf.eth0.accept_ra=2", "\"eth0\" accepts router advertisements"),
        ("ip link set eth0 arp off", "interface \"eth0\" of the container resolves no addresses"),
        ("ip link set eth0 down", "interface \"eth0\" of the container is down"),
        ("ip link delete eth0", "interface \"eth0\" is missing in the container"),
    ] {
        sees(true, damage, named);
    }
}

#[test]
fn an_impostor_is_not_taken_for_the_interface() {
    let story = Story::new(&json!({}));
    let mac = story.result["interfaces"][2]["mac"].as_str().unwrap();
    story.container.run("ip link delete eth0").success();
    story.container.run(&format!("ip link add eth0 address {mac} type veth peer name other")).success();
    let found = story.found();
    assert!(found.contains("is missing") || found.contains("is not the other end"), "{found}");
}

#[test]
fn what_others_do_does_not_disturb() {
    let story = Story::new(&json!({}));
    let host = story.world.host();
    host.run("ip address add 10.77.0.1/24 dev br0").success();
    host.run("nft add table ip others").success();
    story.container.run("ip address add 10.77.0.2/24 dev eth0").success();
    let sniffer = host.command(["tcpdump", "-n", "-i", "br0", "-c", "1000"]).start();
    let promiscuity =
        || host.run("ip -d link show dev br0").success().contains("promiscuity 1").then_some(());
    integration_tests::wait_until("the sniffer has begun", promiscuity);
    assert_eq!(story.found(), "");
    sniffer.kill();
}

/// A chain of the reference's, where `tuning` leaves out of its result what it changes.
#[test]
fn what_tuning_changed_is_no_difference_and_what_others_changed_is() {
    let world = World::new();
    let list = |spoof_check: bool| {
        json!({
            "cniVersion": "1.1.0", "name": "n", "plugins": [
                {
                    "type": "bridge", "bridge": "br0", "isGateway": true, "mtu": 1480,
                    "ingressPolicy": "isolated", "macspoofchk": spoof_check,
                    "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.2.0/24" }]] }
                },
                { "type": "tuning", "mtu": 1400, "mac": "02:00:00:00:00:77", "promisc": true, "allmulti": true }
            ]
        })
    };
    let suites = [Suite::Ours, Suite::Reference];
    let network = Network::with_plugins_of(&world, list(false), &suites);
    let container = world.container("c1");
    let attachment = Attachment::of(&container);
    let result = network.attach(&container);
    network.check(&attachment).unwrap();

    let host_veth = result["interfaces"][1]["name"].as_str().unwrap();
    let found = |network: &Network| {
        let failure = network.check(&attachment).expect_err("nothing is found");
        format!("{}: {}", failure.plugin, failure.msg)
    };
    // Its own CHECK looks at what it has set.
    container.run("ip link set eth0 mtu 1300").success();
    assert!(found(&network).starts_with("tuning: "), "{}", found(&network));
    container.run("ip link set eth0 mtu 1400").success();
    world.host().run(&format!("ip link set {host_veth} mtu 1390")).success();
    let said = found(&network);
    assert_eq!(said, format!("bridge: MTU of host veth \"{host_veth}\" is 1390, not 1480"));
    world.host().run(&format!("ip link set {host_veth} mtu 1480")).success();
    network.check(&attachment).unwrap();
    world.host().run("nft flush ruleset").success();
    assert!(found(&network).contains("nf_tables"), "{}", found(&network));

    // What keeps the container from sending is named, though `tuning` has the address it wants.
    network.del(&attachment).unwrap();
    let strict = Network::with_plugins_of(&world, list(true), &suites);
    strict.attach(&container);
    assert!(found(&strict).contains("sources"), "{}", found(&strict));
    strict.del(&attachment).unwrap();
}

/// A repair reads the addresses from the kernel, which has those of IPv6 last, and the newest of them first.
#[test]
fn repaired_rules_are_no_difference_whatever_the_order_and_number_of_the_addresses() {
    let ranges = ["fd00:1::/64", "10.1.2.0/24", "fd00:0::/64", "10.0.2.0/24"]
        .map(|subnet| json!([{ "subnet": subnet }]));
    let story = Story::new(&json!({
        "ingressPolicy": "same-bridge",
        "ipam": { "type": "host-local", "ranges": ranges, "routes": [] }
    }));
    let host = story.world.host();
    story.world.write("/run/net.d/n.conf", story.config.to_string());
    let repair = || {
        host.run("nft flush ruleset").success();
        let bridge = Suite::Ours.binary("bridge");
        let command = host.command([bridge.to_str().unwrap(), "repair"]);
        let repaired = command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &story.path).run();
        assert!(repaired.success().contains("is missing"));
    };
    repair();
    assert_eq!(story.found(), "");
    story.container.run("ip address add 10.77.0.2/24 dev eth0").success();
    repair();
    assert_eq!(story.found(), "");
    // What the address was added to has to be there all the same.
    story.container.run("ip address delete 10.1.2.2/24 dev eth0").success();
    let found = story.found();
    assert!(found.contains("address 10.1.2.2/24 is missing on \"eth0\""), "{found}");
    story.container.run("ip address add 10.1.2.2/24 dev eth0").success();
    host.run("nft delete element inet cni-bridge masquerade4 { 10.1.2.2 }").success();
    let found = story.found();
    assert!(found.contains("masquerade4 lacks the element of n/c1/eth0"), "{found}");
}

#[test]
fn a_port_that_a_spanning_tree_holds_is_no_difference() {
    let story = Story::new(&json!({}));
    story.world.host().run("ip link set br0 type bridge stp_state 1").success();
    // It has to listen and to learn for half a minute before it forwards again.
    for state in ["down", "up"] {
        story.world.host().run(&format!("ip link set {} {state}", story.host_veth())).success();
    }
    assert_eq!(story.found(), "");
}

/// As the chained plugins `sbr` and `vrf` do, and a person who would have another metric.
#[test]
fn the_route_of_an_address_may_be_in_another_table_and_have_another_metric() {
    let story = Story::new(&json!({}));
    for change in [
        "add 10.1.2.0/24 dev eth0 table 100",
        "delete 10.1.2.0/24 table main",
        "add fd00:1::/64 dev eth0 metric 7",
        "delete fd00:1::/64 dev eth0 metric 256",
    ] {
        story.container.run(&format!("ip route {change}")).success();
    }
    assert_eq!(story.found(), "");
}

#[test]
fn a_route_of_table_0_is_looked_for_in_the_main_one() {
    let story = Story::new(&json!({ "ipam": {
        "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]],
        "routes": [{ "dst": "10.9.0.0/16", "table": 0 }, { "dst": "fd00:9::/64", "table": 0 }]
    } }));
    assert_eq!(story.found(), "");
    story.container.run("ip route delete 10.9.0.0/16").success();
    assert!(story.found().contains("route 10.9.0.0/16"), "{}", story.found());
}

#[test]
fn the_scope_of_a_route_is_compared() {
    let story = Story::new(&json!({ "ipam": {
        "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]],
        "routes": [{ "dst": "10.9.0.0/16", "gw": "0.0.0.0", "scope": 253 }, { "dst": "fd00:9::/64", "scope": 253 }]
    } }));
    assert_eq!(story.found(), "");
    story.container.run("ip route replace 10.9.0.0/16 dev eth0 scope global").success();
    assert!(story.found().contains("scope of route 10.9.0.0/16 is 0, not 253"), "{}", story.found());
}

/// The kernel has made one there for the address.
#[test]
fn a_route_to_the_containers_own_subnet_is_compared() {
    let story = Story::new(&json!({ "ipam": {
        "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }]],
        "routes": [{ "dst": "10.1.2.0/24", "gw": "0.0.0.0", "mtu": 1300, "scope": 0 }],
    } }));
    assert_eq!(story.found(), "");
    story.container.run("ip route delete 10.1.2.0/24 mtu 1300").success();
    assert!(story.found().contains("MTU of route 10.1.2.0/24 is 0, not 1300"), "{}", story.found());
}

#[test]
fn an_address_that_the_kernel_makes_no_route_for_passes() {
    let story = Story::new(&json!({ "isDefaultGateway": false, "ipam": {
        "type": "host-local", "ranges": [[{ "subnet": "0.0.0.0/24" }]]
    } }));
    assert_eq!(story.found(), "");
}

#[test]
fn a_route_that_the_kernel_holds_in_other_words_is_no_difference() {
    let story = Story::new(&json!({ "ipam": {
        "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]],
        "routes": [
            { "dst": "10.9.0.0/16", "gw": "0.0.0.0" },
            { "dst": "10.10.0.0/16", "mtu": 65535, "advmss": 65535 },
            { "dst": "10.11.0.0/16", "gw": "fd00:1::1" },
            { "dst": "fd00:9::/64", "mtu": 65535, "advmss": 65535 },
        ]
    } }));
    assert_eq!(story.found(), "");
    for (damage, named) in [
        ("ip route delete 10.9.0.0/16", "route 10.9.0.0/16 is missing"),
        ("ip route change 10.10.0.0/16 via 10.1.2.1 advmss 65495", "MTU of route 10.10.0.0/16"),
        ("ip route change 10.11.0.0/16 via inet6 fd00:1::9", "route 10.11.0.0/16 via fd00:1::1 is missing"),
        ("ip route delete fd00:9::/64", "route fd00:9::/64"),
    ] {
        story.container.run(damage).success();
        assert!(story.found().contains(named), "{}", story.found());
    }
}

#[test]
fn another_path_to_the_same_namespace_is_the_same_namespace() {
    let story = Story::new(&json!({}));
    let inside = story.container.command(["sleep", "600"]).start();
    let pid = integration_tests::wait_until("the sleeper is there", || {
        story.world.host().run("pgrep -x sleep").stdout.lines().next().map(str::to_owned)
    });
    assert_eq!(story.found_by(&format!("/proc/{pid}/ns/net")), "");
    inside.kill();
}

#[test]
fn a_switch_without_addresses_passes() {
    let story = Story::new(&json!({
        "isGateway": false, "isDefaultGateway": false, "ipMasq": false, "ipam": {}
    }));
    assert_eq!(story.found(), "");
    story.world.host().run(&format!("ip link set {} nomaster", story.host_veth())).success();
    assert!(story.found().contains("is not a port"), "{}", story.found());
}

#[test]
fn a_container_that_the_reference_wired_passes() {
    let story = Story::wired_by(Suite::Reference, &json!({}));
    assert_eq!(story.found(), "");
    story.container.run("ip route delete default").success();
    assert!(story.found().contains("route 0.0.0.0/0"), "{}", story.found());
}

/// The reference gives such a bridge no address of its own, neither hardware nor IP: it has that of a port.
#[test]
fn the_bridge_of_a_network_without_addresses_is_no_gateway() {
    let story = Story::wired_by(Suite::Reference, &json!({ "ipam": {}, "ipMasq": false }));
    let add = |name: &str| {
        let other = story.world.container(name);
        let add = story.world.plugin_of(Suite::Reference, "bridge").verb("ADD").container(&other);
        add.env("CNI_PATH", &story.path).config(&story.config).run().success();
    };
    // The lowest address of all ports is the bridge's.
    ["c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9"].into_iter().for_each(add);
    assert_eq!(story.found(), "");
}
