//! Over the life of a network: addresses that change hands, rules that vanish, attachments that the reference made,
//! collection of what nobody needs.

use integration_tests::{Container, PluginCall, Running, Suite, World};
use serde_json::{Value, json};

struct Story {
    world: World,
    path: String,
    config: Value,
}

impl Story {
    #[track_caller]
    fn new(keys: &Value) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        let mut config = json!({
            "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0",
            "isGateway": true, "isDefaultGateway": true, "ipMasq": true,
            "ipam": {
                "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }], [{ "subnet": "fd00:1::/64" }]]
            }
        });
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        Self { world, path, config }
    }

    fn call(&self, verb: &str, container: &Container) -> PluginCall {
        self.call_of(Suite::Ours, verb, container)
    }

    fn call_of(&self, suite: Suite, verb: &str, container: &Container) -> PluginCall {
        let call = self.world.plugin_of(suite, "bridge").verb(verb).container(container);
        call.env("CNI_PATH", &self.path).config(&self.config)
    }

    fn host_veths(&self) -> usize {
        self.world.host().run("ip -o link show type veth").success().lines().count()
    }
}

#[test]
fn an_address_is_reachable_at_once_under_its_new_holder() {
    let story = Story::new(&json!({ "runtimeConfig": { "ips": [] } }));
    let (peer, first, second) =
        (story.world.container("peer"), story.world.container("first"), story.world.container("second"));
    story.call("ADD", &peer).run().success();
    let requested = "IP=10.1.2.77;IgnoreUnknown=1";
    story.call("ADD", &first).env("CNI_ARGS", requested).run().success();
    peer.run("ping -c 1 -W 30 10.1.2.77").success();
    story.world.host().run("ping -c 1 -W 30 10.1.2.77").success();

    story.call("DEL", &first).run().success();
    story.call("ADD", &second).env("CNI_ARGS", requested).run().success();
    // Whoever still believes in the old hardware address sends its one packet there, and has no answer.
    peer.run("ping -c 1 -W 30 10.1.2.77").success();
    story.world.host().run("ping -c 1 -W 30 10.1.2.77").success();
}

#[test]
fn the_next_attachment_gives_all_of_them_their_rules_back() {
    let story = Story::new(&json!({ "macspoofchk": true, "ingressPolicy": "same-bridge" }));
    let containers = ["c1", "c2", "c3"].map(|name| story.world.container(name));
    let mut results = containers[..2].iter().map(|container| story.call("ADD", container).run().json());
    let (first, second) = (results.next().unwrap(), results.next().unwrap());
    drop(results);
    let check = |container: &Container, result: &Value| {
        let mut config = story.config.clone();
        config["prevResult"] = result.clone();
        story.call("CHECK", container).config(&config).run()
    };
    check(&containers[0], &first).success();
    story.world.host().run("nft flush ruleset").success();
    check(&containers[0], &first).error(100);
    story.call("ADD", &containers[2]).run().success();
    check(&containers[0], &first).success();
    check(&containers[1], &second).success();
}

/// ADDs and DELs side by side while somebody flushes the ruleset over and over.
#[test]
fn a_storm_with_flushes_in_between_leaves_no_rule_over_and_none_missing() {
    const ROUNDS: usize = 12;
    let story = Story::new(&json!({ "macspoofchk": true, "ingressPolicy": "same-bridge" }));
    let residents = ["r1", "r2", "r3"].map(|name| story.world.container(name));
    let results: Vec<Value> = residents.iter().map(|it| story.call("ADD", it).run().json()).collect();
    let guests: Vec<Container> = (0..8).map(|index| story.world.container(&format!("g{index}"))).collect();
    for round in 0..ROUNDS {
        // Half of them come while the other half go.
        let (coming, going) = match round % 2 {
            0 => (&guests[..4], &guests[4..]),
            _ => (&guests[4..], &guests[..4]),
        };
        let storm: Vec<Running> = (coming.iter().map(|guest| story.call("ADD", guest).start()))
            .chain(going.iter().map(|guest| story.call("DEL", guest).start()))
            .collect();
        for call in storm {
            story.world.host().run("nft flush ruleset").success();
            call.wait().success();
        }
    }
    // The first attachment after the last flush brings everything back.
    story.world.host().run("nft flush ruleset").success();
    let last = story.world.container("last");
    story.call("ADD", &last).run().success();
    for (resident, result) in residents.iter().zip(&results) {
        let mut config = story.config.clone();
        config["prevResult"] = result.clone();
        story.call("CHECK", resident).config(&config).run().success();
    }
    let rules = story.world.host().run("nft list ruleset").success().to_owned();
    for guest in &guests[..4] {
        assert!(!rules.contains(&format!("n/{}/eth0", guest.name())), "{rules}");
    }
    for container in guests.iter().chain(&residents).chain([&last]) {
        story.call("DEL", container).run().success();
    }
    assert_eq!(story.world.host().run("nft list ruleset").success(), "");
}

/// Its lease is another's by then: reclaimed, or released by hand.
#[test]
fn what_is_left_of_the_dead_goes_and_the_next_holder_of_the_address_keeps_what_is_its_own() {
    let keys = json!({ "ingressPolicy": "isolated", "macspoofchk": true, "runtimeConfig": { "ips": [] } });
    for late in ["DEL", "GC", "GC with a list"] {
        for dead_keys in [json!({}), json!({ "ipMasqBackend": "iptables" })] {
            let mut story = Story::new(&keys);
            story.config.as_object_mut().unwrap().extend(dead_keys.as_object().unwrap().clone());
            let [dies, lives] = ["dies", "lives"].map(|name| story.world.container(name));
            let requested = "IP=10.1.2.77;IgnoreUnknown=1";
            story.call("ADD", &dies).env("CNI_ARGS", requested).run().success();
            let gone = story.call("DEL", &dies);
            story.world.remove_netns("dies");
            let leases = "/var/lib/cni/networks/n";
            for address in ["10.1.2.77", "fd00:1::2"] {
                story.world.host().run(&format!("rm {leases}/{address}")).success();
            }
            story.world.host().run(&format!("rm {leases}/last_reserved_ip.1")).success();
            let result = story.call("ADD", &lives).env("CNI_ARGS", requested).run().json();
            assert_eq!(result["ips"][1]["address"], "fd00:1::2/64");

            let last = match late {
                "DEL" => gone,
                "GC" => story.call("GC", &lives),
                _ => {
                    let mut config = story.config.clone();
                    config["cni.dev/valid-attachments"] =
                        json!([{ "containerID": "lives", "ifname": "eth0" }]);
                    story.call("GC", &lives).config(&config)
                }
            };
            last.run().success();
            let mut config = story.config.clone();
            config["prevResult"] = result;
            story.call("CHECK", &lives).config(&config).run().success();
        }
    }
}

#[test]
fn the_bridge_keeps_its_hardware_address_and_mtu_whatever_its_ports() {
    let story = Story::new(&json!({ "mtu": 1400 }));
    let shown = || {
        let link = story.world.host().run("ip -o link show dev br0").success().to_owned();
        let words: Vec<&str> = link.split_whitespace().collect();
        let after = |word: &str| {
            let place = words.iter().position(|found| *found == word).unwrap();
            words[place + 1].to_owned()
        };
        (after("link/ether"), after("mtu"))
    };
    let (c1, c2) = (story.world.container("c1"), story.world.container("c2"));
    story.call("ADD", &c1).run().success();
    let made = shown();
    assert_eq!(made.1, "1400");
    story.call("ADD", &c2).run().success();
    story.call("DEL", &c1).run().success();
    story.call("DEL", &c2).run().success();
    assert_eq!(shown(), made);
}

/// IPv6 needs 1280 bytes, and a bridge that is fitted to such a port loses its IPv6 addresses.
#[test]
fn a_container_with_a_tiny_mtu_leaves_its_neighbours_theirs() {
    let story = Story::new(&json!({}));
    let (wide, narrow) = (story.world.container("wide"), story.world.container("narrow"));
    let (v4, v6) = (json!([[{ "subnet": "10.1.2.0/24" }]]), story.config["ipam"]["ranges"][1].clone());
    story.call("ADD", &wide).run().success();
    let before = story.world.host().run("ip -o addr show dev br0 scope global").success().to_owned();
    assert!(before.contains("fd00:1::1/64"), "{before}");

    let mut config = story.config.clone();
    config["mtu"] = json!(600);
    let refused = story.call("ADD", &narrow).config(&config).run();
    assert!(refused.error(7).contains("1280"), "{refused}");
    config["ipam"]["ranges"] = json!([v6]);
    let refused = story.call("ADD", &narrow).config(&config).run();
    assert!(refused.error(7).contains("1280"), "{refused}");

    config["ipam"]["ranges"] = v4;
    let result = story.call("ADD", &narrow).config(&config).run().json();
    assert!(narrow.run("ip -o link show dev eth0").success().contains("mtu 600"));
    narrow.run("ping -c 1 -W 30 10.1.2.1").success();
    assert!(wide.reaches("fd00:1::1"));
    config["prevResult"] = result;
    story.call("CHECK", &narrow).config(&config).run().success();
    story.call("DEL", &narrow).config(&config).run().success();
    assert_eq!(story.world.host().run("ip -o addr show dev br0 scope global").success(), before);
    assert!(story.world.host().run("ip -o link show dev br0").success().contains("mtu 1500"));
}

#[test]
fn del_removes_what_the_reference_wired_with_and_without_its_namespace() {
    for netns_is_told in [true, false] {
        let story = Story::new(&json!({ "ipMasq": false }));
        let container = story.world.container("c1");
        let result = story.call_of(Suite::Reference, "ADD", &container).run().json();
        assert_eq!(story.host_veths(), 1);
        let mut config = story.config.clone();
        config["prevResult"] = result;
        let del = story.call("DEL", &container).config(&config);
        if netns_is_told { del } else { del.env("CNI_NETNS", "") }.run().success();
        assert_eq!(story.host_veths(), 0);
    }
}

#[test]
fn del_removes_a_renamed_host_veth_with_and_without_its_namespace() {
    for netns in ["/run/netns/c1", "/run/netns/gone", ""] {
        let story = Story::new(&json!({}));
        let (container, other) = (story.world.container("c1"), story.world.container("c2"));
        for container in [&container, &other] {
            let result = story.call("ADD", container).run().json();
            let host_veth = result["interfaces"][1]["name"].as_str().unwrap();
            for change in ["down", "name NAME", "up"] {
                let change = change.replace("NAME", &format!("of-{}", container.name()));
                let name =
                    if change == "up" { format!("of-{}", container.name()) } else { host_veth.to_owned() };
                story.world.host().run(&format!("ip link set {name} {change}")).success();
            }
        }
        story.call("DEL", &container).env("CNI_NETNS", netns).run().success();
        let left = story.world.host().run("ip -o link show type veth").success().to_owned();
        assert!(!left.contains("of-c1") && left.contains("of-c2"), "CNI_NETNS {netns:?}: {left}");
    }
}

#[test]
fn del_removes_a_renamed_host_veth_and_not_what_somebody_else_gave_its_name_to() {
    let story = Story::new(&json!({}));
    let container = story.world.container("c1");
    let result = story.call("ADD", &container).run().json();
    let host_veth = result["interfaces"][1]["name"].as_str().unwrap();
    let host = story.world.host();
    host.run(&format!("ip link set {host_veth} down")).success();
    host.run(&format!("ip link set {host_veth} name renamed")).success();
    host.run(&format!("ip link add {host_veth} type veth peer name theirs")).success();
    story.call("DEL", &container).run().success();
    let left = host.run("ip -o link show type veth").success().to_owned();
    assert!(!left.contains("renamed") && left.contains(host_veth), "{left}");
}

#[test]
fn del_leaves_a_link_alone_that_is_another_attachments() {
    let story = Story::new(&json!({}));
    let container = story.world.container("c1");
    story.call("ADD", &container).run().success();
    let mut other = story.config.clone();
    other["name"] = json!("another");
    story.call("DEL", &container).config(&other).run().success();
    assert_eq!(story.host_veths(), 1);
    story.call("DEL", &container).env("CNI_CONTAINERID", "another").run().success();
    assert_eq!(story.host_veths(), 1);
}

#[test]
fn del_works_with_a_configuration_that_add_would_refuse() {
    let story = Story::new(&json!({}));
    let container = story.world.container("c1");
    story.call("ADD", &container).run().success();
    let mut broken = story.config.clone();
    broken["mtu"] = json!("huge");
    broken["bridge"] = json!(7);
    broken["vlan"] = json!(-1);
    story.call("DEL", &container).config(&broken).run().success();
    assert_eq!(story.host_veths(), 0);
}

#[test]
fn del_that_cannot_know_who_has_leased_something_says_so_and_removes_the_rest() {
    let story = Story::new(&json!({}));
    let container = story.world.container("c1");
    let leases =
        || story.world.host().run("find /var/lib/cni/networks -name 10.1.2.*").success().lines().count();
    for broken in [json!("host-local"), json!({ "type": 7 }), json!({ "type": "none-such" })] {
        story.call("ADD", &container).run().success();
        let mut config = story.config.clone();
        config["ipam"] = broken;
        let output = story.call("DEL", &container).config(&config).run();
        let msg = output.error(7);
        assert!(msg.starts_with("ipam"), "{output}");
        assert_eq!((story.host_veths(), leases()), (0, 1));
        let collected =
            story.world.plugin("bridge").verb("GC").env("CNI_PATH", &story.path).config(&config).run();
        assert!(collected.error(7).starts_with("ipam"), "{collected}");
        story.call("DEL", &container).run().success();
        assert_eq!(leases(), 0);
    }
}

#[test]
fn gc_removes_what_is_not_valid_and_nothing_when_it_is_not_told() {
    for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
        let story = Story::new(&json!({}));
        let containers = ["c1", "c2", "c3", "c4"].map(|name| story.world.container(name));
        for container in &containers {
            story.call("ADD", container).run().success();
        }
        let gc = |valid: Option<Value>| {
            let mut config = story.config.clone();
            if let Some(valid) = valid {
                config[key] = valid;
            }
            let call = story.world.plugin("bridge").verb("GC").env("CNI_PATH", &story.path).config(&config);
            call.run().success();
        };
        gc(None);
        assert_eq!(story.host_veths(), 4);
        gc(Some(json!([{ "containerID": "c2", "ifname": "eth0" }])));
        assert_eq!(story.host_veths(), 1);
        containers[1].run("ping -c 1 -W 30 10.1.2.1").success();
        gc(Some(json!([])));
        assert_eq!(story.host_veths(), 0);
        assert!(!story.world.host().run("nft list ruleset").success().contains("n/c"));
    }
}

#[test]
fn what_is_collected_is_not_that_of_a_host_veth_which_somebody_renamed() {
    for backend in ["nftables", "iptables"] {
        let story = Story::new(
            &json!({ "ipMasqBackend": backend, "macspoofchk": true, "ingressPolicy": "same-bridge" }),
        );
        let host = story.world.host();
        let container = story.world.container("c1");
        let result = story.call("ADD", &container).run().json();
        let host_veth = result["interfaces"][1]["name"].as_str().unwrap();
        for change in [format!("{host_veth} down"), format!("{host_veth} name other"), "other up".to_owned()]
        {
            host.run(&format!("ip link set {change}")).success();
        }
        let rules = || host.run("nft list ruleset").success().to_owned();
        let before = rules();
        let collect = |valid: Option<Value>| {
            let mut config = story.config.clone();
            config["cni.dev/valid-attachments"] = valid.unwrap_or_default();
            let call = story.world.plugin("bridge").verb("GC").env("CNI_PATH", &story.path);
            call.config(&config).run().success();
        };
        let is_kept = || {
            assert_eq!(rules(), before, "{backend}");
            host.run("ip link show dev other").success();
        };
        collect(None);
        is_kept();
        collect(Some(json!([{ "containerID": "c1", "ifname": "eth0" }])));
        is_kept();
        let bridge = Suite::Ours.binary("bridge");
        assert_eq!(host.run(&format!("{} prune", bridge.display())).success(), "", "{backend}");
        is_kept();
        collect(Some(json!([])));
        assert!(!rules().contains("c1") && story.host_veths() == 0, "{backend}: {}", rules());
    }
}

#[test]
fn two_interfaces_on_one_network_keep_their_iptables_rules_apart() {
    let story = Story::new(&json!({ "ipMasqBackend": "iptables" }));
    let container = story.world.container("c1");
    let eth = |verb: &str, ifname: &str| story.call(verb, &container).env("CNI_IFNAME", ifname).run();
    let result = eth("ADD", "eth0").json();
    eth("ADD", "eth1").success();
    eth("DEL", "eth1").success();
    let mut config = story.config.clone();
    config["prevResult"] = result;
    story.call("CHECK", &container).config(&config).run().success();
    eth("DEL", "eth0").success();
    assert!(!story.world.host().run("iptables -t nat -S").success().contains("CNI-"));
}

#[test]
fn a_forward_chain_that_drops_is_named_and_does_not_fail_the_call() {
    let story = Story::new(&json!({}));
    story.world.host().run("iptables -P FORWARD DROP").success();
    let container = story.world.container("c1");
    let output = story.call("ADD", &container).run();
    output.success();
    assert!(output.stderr.contains("FORWARD"), "{output}");
}

/// Names about as long as there may be: the allocator's files are named after the network, and nothing limits an id.
#[test]
fn the_longest_names_make_no_difference() {
    for (backend, policy) in [("nftables", "same-bridge"), ("iptables", "")] {
        let network = "n".repeat(240);
        let story = Story::new(&json!({
            "name": network, "ipMasqBackend": backend, "ingressPolicy": policy, "macspoofchk": true,
        }));
        let names = ["c1", "c2", "c3"];
        let containers = names.map(|name| story.world.container(name));
        // Alike up to their last byte.
        let id = |name: &str| format!("{}{name}", "i".repeat(300));
        let call = |verb: &str, index: usize| {
            let call = story.call(verb, &containers[index]).env("CNI_CONTAINERID", &id(names[index]));
            call.env("CNI_IFNAME", "an-ifname-of-15")
        };
        let ours = || {
            let nft = story.world.host().run("nft list ruleset").success().to_owned();
            nft.contains("cni-bridge") || nft.contains("nnnn") || story.host_veths() != 0
        };
        let gc = |valid: &[usize]| {
            let mut config = story.config.clone();
            config["cni.dev/valid-attachments"] = valid
                .iter()
                .map(|index| json!({ "containerID": id(names[*index]), "ifname": "an-ifname-of-15" }))
                .collect();
            let call = story.world.plugin("bridge").verb("GC").env("CNI_PATH", &story.path);
            call.config(&config).run().success();
        };
        let results: Vec<Value> = (0..3).map(|index| call("ADD", index).run().json()).collect();
        let check = |index: usize| {
            let mut config = story.config.clone();
            config["prevResult"] = results[index].clone();
            call("CHECK", index).config(&config).run()
        };
        for (index, container) in containers.iter().enumerate() {
            check(index).success();
            container.run("ping -c 1 -W 30 10.1.2.1").success();
        }
        call("DEL", 0).run().success();
        assert_eq!(story.host_veths(), 2);
        gc(&[1]);
        assert_eq!(story.host_veths(), 1);
        check(1).success();
        // Somebody flushes the rules, and the next attachment brings them back for the one that is there.
        story.world.host().run("nft flush ruleset").success();
        call("ADD", 0).run().success();
        if backend == "nftables" {
            check(1).success();
        }
        // One whose container is dead, and whose rules alone are left.
        story.world.remove_netns("c2");
        gc(&[0]);
        assert_eq!(story.host_veths(), 1);
        call("DEL", 0).run().success();
        assert!(!ours(), "{backend}: {}", story.world.host().run("nft list ruleset"));
        for index in 0..3 {
            call("DEL", index).run().success();
        }
    }
}

/// Everything that the reference writes for an attachment, in either backend, goes with our DEL.
#[test]
fn del_removes_the_rules_that_the_reference_wrote() {
    for backend in ["nftables", "iptables"] {
        for netns_is_there in [true, false] {
            let story = Story::new(&json!({ "macspoofchk": true, "ipMasqBackend": backend }));
            let (container, neighbour) = (story.world.container("c1"), story.world.container("c2"));
            let result = story.call_of(Suite::Reference, "ADD", &container).run().json();
            assert!(result["interfaces"].is_array(), "{result}");
            story.call_of(Suite::Reference, "ADD", &neighbour).run().success();
            let rules = || story.world.host().run("nft list ruleset").success().to_owned();
            let before = rules();
            assert!(before.contains("cni-br-iface-c1-eth0") && before.contains("10.1.2.2"), "{before}");

            let mut config = story.config.clone();
            config["prevResult"] = result;
            story.call("CHECK", &container).config(&config).run().success();
            if !netns_is_there {
                story.world.remove_netns("c1");
                config.as_object_mut().unwrap().remove("prevResult");
            }
            let del = story.call("DEL", &container).config(&config);
            if netns_is_there { del } else { del.env("CNI_NETNS", "") }.run().success();
            let left = rules();
            for gone in ["cni-br-iface-c1-", "macspoofchk-c1-", "10.1.2.2 ", "fd00:1::2 "] {
                assert!(!left.contains(gone), "{backend}: {gone} is left in {left}");
            }
            assert!(left.contains("cni-br-iface-c2-eth0") && left.contains("10.1.2.3"), "{left}");
            neighbour.run("ping -c 1 -W 30 10.1.2.1").success();
        }
    }
}
