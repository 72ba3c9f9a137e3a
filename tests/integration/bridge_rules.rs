//! What the bridge's rules do to packets: ingress policies, published ports, masquerade.
//!
//! Bridged frames pass the rules for routed packets as well when `bridge-nf-call-iptables` is 1, so every policy is
//! tested both ways.

use integration_tests::{Attachment, Container, Network, Outside, Space, Suite, World};
use serde_json::{Value, json};

/// A network `name` on `10.NUMBER.0.0/16` and `fd00:NUMBER::/64`, with bridge `br-NUMBER`.
fn network(world: &World, name: &str, number: u8, policy: &str) -> Network {
    let bridge = json!({
        "type": "bridge", "bridge": format!("br-{number}"), "isDefaultGateway": true, "ipMasq": true,
        "ingressPolicy": policy,
        "ipam": { "type": "host-local-ipam", "ranges": [
            [{ "subnet": format!("10.{number}.0.0/16") }], [{ "subnet": format!("fd00:{number}::/64") }],
        ] },
    });
    Network::new(world, json!({ "cniVersion": "1.0.0", "name": name, "plugins": [bridge] }))
}

/// A container on `network`.
pub(crate) fn member(world: &World, network: &Network, name: &str) -> Container {
    let container = world.container(name);
    network.attach(&container);
    container
}

fn bridge_calls_iptables(world: &World, value: u8) {
    for family in ["ip", "ip6"] {
        let key = format!("net.bridge.bridge-nf-call-{family}tables={value}");
        world.host().run(&format!("sysctl -q -w {key}")).success();
    }
}

#[track_caller]
pub(crate) fn check(from: &Space, targets: &[&str], expected: bool) {
    for target in targets {
        from.assert_reach(target, expected, "by the rules");
    }
}

/// A bridge that no plugin made, such as Docker's, with one container on 10.99.0.2.
fn foreign_container(world: &World) -> Space {
    let space = world.netns("foreign");
    for line in [
        "ip link add br-foreign type bridge",
        "ip address add 10.99.0.1/16 dev br-foreign",
        "ip -6 address add fd00:99::1/64 dev br-foreign nodad",
        "ip link set br-foreign up",
        "ip link add f0 master br-foreign type veth peer name eth0 netns foreign",
        "ip link set f0 up",
    ] {
        world.host().run(line).success();
    }
    for line in [
        "ip address add 10.99.0.2/16 dev eth0",
        "ip -6 address add fd00:99::2/64 dev eth0 nodad",
        "ip link set eth0 up",
        "ip route add default via 10.99.0.1",
        "ip -6 route add default via fd00:99::1",
    ] {
        space.run(line).success();
    }
    space
}

fn same_bridge_lets_in_only(bridge_nf_call: u8) {
    let world = World::new();
    bridge_calls_iptables(&world, bridge_nf_call);
    let outside = world.outside();
    let (guarded, open) = (network(&world, "guarded", 1, "same-bridge"), network(&world, "open", 2, ""));
    let (one, two) = (member(&world, &guarded, "one"), member(&world, &guarded, "two"));
    let stranger = member(&world, &open, "stranger");
    let foreign = foreign_container(&world);
    outside.route("10.1.0.0/16");
    outside.route("fd00:1::/64");

    let inside = ["10.1.0.2", "10.1.0.1", "fd00:1::2", "fd00:1::1"];
    check(&two, &inside, true);
    check(&world.host(), &inside, true);
    for outsider in [&stranger, &foreign, outside.space()] {
        check(outsider, &inside, false);
    }
    check(
        &one,
        &["10.2.0.2", "10.99.0.2", Outside::ADDRESS, Outside::HOST, "fd00:2::2", Outside::ADDRESS6],
        true,
    );
    check(&stranger, &["10.99.0.2", Outside::ADDRESS], true);
}

#[test]
fn same_bridge_lets_in_only_its_own_and_the_host() {
    same_bridge_lets_in_only(0);
}

#[test]
fn same_bridge_lets_in_only_its_own_and_the_host_when_bridged_frames_pass_iptables() {
    same_bridge_lets_in_only(1);
}

fn isolated_containers_do_not_meet(bridge_nf_call: u8) {
    let world = World::new();
    bridge_calls_iptables(&world, bridge_nf_call);
    let outside = world.outside();
    let isolated = network(&world, "isolated", 1, "isolated");
    let open = network(&world, "open", 2, "");
    let (one, two) = (member(&world, &isolated, "one"), member(&world, &isolated, "two"));
    let stranger = member(&world, &open, "stranger");

    check(&one, &["10.1.0.3", "fd00:1::3"], false);
    // By the gateway, as a container can try that has the right to set routes.
    for (container, other) in [(&one, 3), (&two, 2)] {
        container.run(&format!("ip route add 10.1.0.{other}/32 via 10.1.0.1")).success();
        container.run(&format!("ip -6 route add fd00:1::{other}/128 via fd00:1::1")).success();
    }
    check(&one, &["10.1.0.3", "fd00:1::3"], false);
    check(&stranger, &["10.1.0.2", "10.1.0.1", "fd00:1::2", "fd00:1::1"], false);
    check(&one, &["10.1.0.1", "10.2.0.2", Outside::ADDRESS, "fd00:1::1", Outside::ADDRESS6], true);
    check(&world.host(), &["10.1.0.2", "10.1.0.3", "fd00:1::3"], true);
    drop(outside);
}

#[test]
fn isolated_containers_do_not_meet_not_even_by_the_gateway() {
    isolated_containers_do_not_meet(0);
}

#[test]
fn isolated_containers_do_not_meet_when_bridged_frames_pass_iptables() {
    isolated_containers_do_not_meet(1);
}

fn published_ports_are_open(policy: &str, bridge_nf_call: u8) {
    let world = World::new();
    bridge_calls_iptables(&world, bridge_nf_call);
    let outside = world.outside();
    let (guarded, open) = (network(&world, "guarded", 1, policy), network(&world, "open", 2, ""));
    let (server, stranger) = (member(&world, &guarded, "server"), member(&world, &open, "stranger"));
    let _web = server.serve("0.0.0.0:80");
    outside.route("10.1.0.0/16");
    for line in [
        "nft add table ip published",
        "nft add chain ip published before { type nat hook prerouting priority dstnat; }",
        "nft add rule ip published before tcp dport 8080 fib daddr type local dnat to 10.1.0.2:80",
    ] {
        world.host().run(line).success();
    }
    let url = format!("http://{}:8080/", Outside::HOST);
    for client in [outside.space(), &stranger] {
        client.fetch(&url);
        client.run("curl --silent --max-time 2 http://10.1.0.2/").failure();
    }
}

#[test]
fn published_ports_are_open_whatever_the_policy() {
    for (policy, bridge_nf_call) in [("same-bridge", 0), ("same-bridge", 1), ("isolated", 0), ("isolated", 1)]
    {
        published_ports_are_open(policy, bridge_nf_call);
    }
}

#[test]
fn a_milder_policy_lets_new_containers_meet_beside_an_old_isolated_one() {
    let world = World::new();
    bridge_calls_iptables(&world, 1);
    let old = member(&world, &network(&world, "net", 1, "isolated"), "old");
    let milder = network(&world, "net", 1, "same-bridge");
    let (one, two) = (member(&world, &milder, "one"), member(&world, &milder, "two"));
    check(&one, &["10.1.0.4"], true);
    check(&two, &["10.1.0.3"], true);
    drop(old);
}

#[test]
fn only_what_leaves_the_subnet_is_masqueraded() {
    let world = World::new();
    let outside = world.outside();
    let net = network(&world, "net", 1, "");
    let (one, two) = (member(&world, &net, "one"), member(&world, &net, "two"));
    let _inside = two.serve("10.1.0.3:80");
    let _outside = outside.space().serve("203.0.113.9:80");
    assert!(one.fetch("http://10.1.0.3/").ends_with("10.1.0.2"));
    assert!(one.fetch("http://203.0.113.9/").ends_with(Outside::HOST));
    // By the gateway and back: the address that is seen is still the container's own.
    one.run("ip route add 10.1.0.3/32 via 10.1.0.1").success();
    assert!(one.fetch("http://10.1.0.3/").ends_with("10.1.0.2"));
}

/// Where bridged frames pass iptables, those to everybody do as well.
#[test]
fn a_broadcast_keeps_its_source() {
    const HEAR: &str = r#"
        use Socket;
        socket(my $s, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
        bind($s, pack_sockaddr_in(6000, INADDR_ANY)) or die "bind: $!";
        $| = 1;
        print "listening\n";
        my $from = recv($s, my $text, 9, 0) or die "recv: $!";
        print inet_ntoa((unpack_sockaddr_in($from))[1]), "\n";
    "#;
    const SHOUT: &str = r#"
        use Socket;
        socket(my $s, PF_INET, SOCK_DGRAM, 0) or die "socket: $!";
        setsockopt($s, SOL_SOCKET, SO_BROADCAST, 1) or die "broadcast: $!";
        send($s, "hello", 0, pack_sockaddr_in(6000, INADDR_BROADCAST)) or die "send: $!";
    "#;
    for bridge_nf_call in [0, 1] {
        let world = World::new();
        bridge_calls_iptables(&world, bridge_nf_call);
        let net = network(&world, "net", 1, "");
        let (one, two) = (member(&world, &net, "one"), member(&world, &net, "two"));
        for listener in [&world.host(), &two] {
            let hear = listener.command(["perl", "-e", HEAR]).start().wait_for("listening");
            one.command(["perl", "-e", SHOUT]).run().success();
            let heard = hear.wait();
            assert!(heard.success().ends_with("10.1.0.2\n"), "{}", heard.stdout);
        }
    }
}

/// A network `net` on `10.1.0.0/16` and `fd00:1::/64`, with further keys for the bridge.
pub(crate) fn network_with(world: &World, keys: serde_json::Value) -> Network {
    let mut bridge = json!({
        "type": "bridge", "bridge": "br-1",
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }]] },
    });
    for (key, value) in keys.as_object().expect("keys of a bridge") {
        bridge[key] = value.clone();
    }
    Network::new(world, json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [bridge] }))
}

/// The kernel finds a link by any of its names, and rules see the one.
#[test]
fn a_bridge_that_is_called_by_another_of_its_names_has_its_rules() {
    let world = World::new();
    for line in ["ip link add bridge-one type bridge", "ip link property add dev bridge-one altname br-1"] {
        world.host().run(line).success();
    }
    let keys = json!({ "isDefaultGateway": true, "ingressPolicy": "same-bridge", "ipMasq": true });
    let net = network_with(&world, keys);
    let stranger = member(&world, &network(&world, "stranger", 2, ""), "stranger");
    let (one, two) = (member(&world, &net, "one"), member(&world, &net, "two"));
    check(&one, &["10.1.0.1", "fd00:1::1", "10.1.0.3", "fd00:1::3", "10.2.0.2"], true);
    check(&stranger, &["10.1.0.1", "fd00:1::1", "10.1.0.2", "fd00:1::3"], false);
    for container in [&one, &two] {
        net.check(&Attachment::of(container)).unwrap();
        net.detach(container);
    }
}

#[test]
fn rules_of_a_network_go_with_its_last_container() {
    let world = World::new();
    let (net, other) = (network(&world, "net", 1, "isolated"), network(&world, "other", 2, "same-bridge"));
    let rules = || world.host().run("nft list ruleset").success().to_owned();
    let resident = member(&world, &other, "resident");
    let before = rules();
    let (one, two) = (member(&world, &net, "one"), member(&world, &net, "two"));
    net.detach(&one);
    assert!(rules().contains("isolated-br-1"));
    net.detach(&two);
    assert_eq!(rules(), before);
    other.detach(&resident);
    assert_eq!(rules(), "");
}

#[test]
fn networks_on_one_bridge_keep_each_their_own_rules() {
    for backend in ["nftables", "iptables"] {
        let world = World::new();
        let network = |name: &str, subnet: &str, masquerade: bool, mac_spoof_check: bool| {
            let bridge = json!({
                "type": "bridge", "bridge": "br-1", "macspoofchk": mac_spoof_check,
                "ipMasq": masquerade, "ipMasqBackend": backend,
                "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": subnet }]] },
            });
            Network::new(&world, json!({ "cniVersion": "1.1.0", "name": name, "plugins": [bridge] }))
        };
        let checked = network("checked", "10.1.0.0/16", false, true);
        let masqueraded = network("masqueraded", "10.2.0.0/16", true, false);
        let one = Attachment::of(&member(&world, &checked, "one"));
        let whole = |why: &str| {
            let check = checked.check(&one);
            assert!(check.is_ok(), "{backend}, {why}: {check:?}");
            let rules = world.host().run("nft list ruleset").success().to_owned();
            assert!(!rules.contains("10.1.0."), "{backend}, {why}: {rules}");
        };
        whole("alone");
        masqueraded.attach(&world.container("two"));
        whole("with the first one of the other network");
        for flush in ["nft delete table inet cni-bridge", "nft flush chain ip nat POSTROUTING"] {
            world.host().run(flush);
        }
        masqueraded.attach(&world.container("three"));
        whole("when the other network has lost its rules");
        for two in ["two", "three"] {
            let cached = format!("/var/lib/cni/results/masqueraded-{two}-eth0");
            std::fs::remove_file(world.path(cached)).unwrap();
        }
        masqueraded.gc(&[]).unwrap();
        whole("when nobody is left on the other network");
        let ports = world.host().run("ip -o link show master br-1");
        assert_eq!(ports.success().lines().count(), 1, "{backend}: {ports}");
    }
}

/// Its own table is all that such a network has, and another one has brought that back.
#[test]
fn the_next_add_checks_macs_again_at_everybodys_port_though_another_network_came_first() {
    let world = World::new();
    let [one, other] = [1, 2].map(|number| {
        let bridge = json!({
            "type": "bridge", "bridge": format!("br-{number}"), "macspoofchk": true,
            "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": format!("10.{number}.0.0/16") }]] },
        });
        let name = format!("net{number}");
        Network::new(&world, json!({ "cniVersion": "1.1.0", "name": name, "plugins": [bridge] }))
    });
    let (liar, peer) = (member(&world, &one, "liar"), member(&world, &one, "peer"));
    let lies = |expected| {
        let mac = if expected { "02:00:00:00:00:99" } else { "02:00:00:00:00:98" };
        liar.run(&format!("ip link set eth0 address {mac}")).success();
        liar.assert_reach("10.1.0.3", expected, "with another address than its own");
    };
    let honest = Attachment::of(&peer);
    world.host().run("nft flush ruleset").success();
    other.attach(&world.container("first"));
    assert!(one.check(&honest).is_err());
    lies(true);
    one.attach(&world.container("next"));
    one.check(&honest).unwrap();
    lies(false);
}

/// Network `net` on `br-1` with these keys, as it stands in `/run/net.d`.
fn configured(world: &World, keys: &Value) -> Network {
    let mut bridge = json!({
        "type": "bridge", "bridge": "br-1", "isGateway": true,
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }]] },
    });
    bridge.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    let list = json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [bridge] });
    world.write("/run/net.d/net.conflist", list.to_string());
    Network::new(world, list)
}

/// `bridge repair` by what stands in `/run/net.d`.
#[track_caller]
fn repair(world: &World) -> String {
    let program = Suite::Ours.binary("bridge");
    let plugins = program.parent().unwrap().display().to_string();
    let command = world.host().command([program.display().to_string().as_str(), "repair"]);
    command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &plugins).run().success().to_owned()
}

#[test]
fn whatever_a_configuration_no_longer_asks_for_goes_with_the_next_add_or_a_repair() {
    let key = |key: &str| json!({ key: true });
    let everything = json!({ "ipMasq": true, "macspoofchk": true });
    for (before, now) in [
        (key("macspoofchk"), json!({})),
        (key("ipMasq"), json!({})),
        (everything.clone(), key("ipMasq")),
        (everything.clone(), key("macspoofchk")),
        (json!({}), everything),
        (json!({}), json!({ "macspoofchk": true, "promiscMode": true })),
    ] {
        for by_repair in [false, true] {
            let why = format!("{before} to {now}, by repair: {by_repair}");
            let world = World::new();
            let one = Attachment::of(&member(&world, &configured(&world, &before), "one"));
            let net = configured(&world, &now);
            assert!(net.check(&one).is_err(), "{why}");
            match by_repair {
                true => assert_ne!(repair(&world), "", "{why}"),
                false => drop(member(&world, &net, "two")),
            }
            let check = net.check(&one);
            assert!(check.is_ok(), "{why}: {check:?}");
            assert_eq!(repair(&world), "", "{why}");
        }
    }
}

#[test]
fn the_next_add_has_a_gateway_resolve_addresses_again() {
    let world = World::new();
    let net = configured(&world, &json!({}));
    let one = member(&world, &net, "one");
    world.host().run("ip link set br-1 arp off").success();
    assert!(net.check(&Attachment::of(&one)).is_err());
    assert!(one.is_cut_off_from("10.1.0.1"));
    let two = member(&world, &net, "two");
    for container in [&one, &two] {
        net.check(&Attachment::of(container)).unwrap();
        assert!(container.reaches("10.1.0.1"));
    }
}

/// Each has an address on the bridge.
#[test]
fn a_repair_leaves_the_gateway_address_of_another_network_on_the_bridge_open() {
    let world = World::new();
    let outside = world.outside();
    outside.route("10.1.0.0/16");
    let open = configured(&world, &json!({}));
    let closed = json!({
        "type": "bridge", "bridge": "br-1", "isGateway": true, "ingressPolicy": "same-bridge",
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "fd00:2::/64" }]] },
    });
    let closed = json!({ "cniVersion": "1.1.0", "name": "closed", "plugins": [closed] });
    world.write("/run/net.d/closed.conflist", closed.to_string());
    let closed = Network::new(&world, closed);
    member(&world, &open, "one");
    member(&world, &closed, "two");
    check(outside.space(), &["10.1.0.1"], true);
    assert_eq!(repair(&world), "");
    check(outside.space(), &["10.1.0.1"], true);
    // Nor does an ADD that brings everything back.
    world.host().run("nft flush ruleset").success();
    member(&world, &closed, "three");
    assert_eq!(repair(&world), "");
    check(outside.space(), &["10.1.0.1"], true);
}

/// A container has an address of one of the subnets of a set, and its gateway.
#[test]
fn an_add_after_a_flush_closes_the_gateways_of_others_in_another_subnet() {
    let world = World::new();
    let outside = world.outside();
    outside.route("fd00:1::/64");
    let sets = json!([[{ "subnet": "fd00:1::/126" }, { "subnet": "fd00:2::/64" }]]);
    let ipam = json!({ "type": "host-local-ipam", "ranges": sets });
    let net = configured(&world, &json!({ "ingressPolicy": "same-bridge", "ipam": ipam }));
    let mut members = ["one", "two", "three"].map(|name| member(&world, &net, name)).to_vec();
    check(outside.space(), &["fd00:1::1"], false);
    world.host().run("nft flush ruleset").success();
    check(outside.space(), &["fd00:1::1"], true);
    members.push(member(&world, &net, "four"));
    let addresses = members.last().unwrap().run("ip -6 -o address show dev eth0 scope global");
    assert!(addresses.success().contains("fd00:2::"), "{addresses}");
    for member in &members {
        let check = net.check(&Attachment::of(member));
        assert!(check.is_ok(), "{}: {check:?}", member.name());
    }
    check(outside.space(), &["fd00:1::1"], false);
}

#[test]
fn rules_of_a_network_go_however_many_subnets_it_has() {
    let world = World::new();
    let subnets: Vec<Value> = (0..80).map(|n| json!([{ "subnet": format!("fd00:{n:x}::/64") }])).collect();
    let bridge = json!({
        "type": "bridge", "bridge": "br-1", "isGateway": true, "ipMasq": true, "ingressPolicy": "same-bridge",
        "ipam": { "type": "host-local-ipam", "ranges": subnets },
    });
    let network = Network::new(&world, json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [bridge] }));
    let one = member(&world, &network, "one");
    let two = member(&world, &network, "two");
    network.detach(&one);
    network.check(&Attachment::of(&two)).unwrap();
    network.detach(&two);
    assert_eq!(world.host().run("nft list tables inet").success(), "");
}

/// Config `net` with a policy and what else is changed of it.
fn changed(world: &World, policy: &str, masquerade: bool) -> Network {
    network_with(world, json!({ "isDefaultGateway": true, "ipMasq": masquerade, "ingressPolicy": policy }))
}

/// A network whose configuration is changed while it has containers: the next ADD brings the new one to all of them.
#[test]
fn a_changed_policy_holds_for_the_old_containers_from_the_next_add_on() {
    for (before, after) in [
        ("isolated", "same-bridge"),
        ("isolated", ""),
        ("same-bridge", ""),
        ("", "same-bridge"),
        ("same-bridge", "isolated"),
        ("", "isolated"),
    ] {
        for masquerade in [true, false] {
            let world = World::new();
            bridge_calls_iptables(&world, 1);
            let stranger = member(&world, &network(&world, "stranger", 2, ""), "stranger");
            let old_network = changed(&world, before, masquerade);
            let (one, two) = (member(&world, &old_network, "one"), member(&world, &old_network, "two"));
            let new_network = changed(&world, after, masquerade);
            let three = member(&world, &new_network, "three");

            let among_themselves = after != "isolated";
            let why = format!("{before:?} has become {after:?}, masquerade {masquerade}");
            for (from, to) in
                [(&one, "10.1.0.3"), (&two, "10.1.0.4"), (&three, "10.1.0.2"), (&one, "fd00:1::4")]
            {
                from.assert_reach(to, among_themselves, &why);
            }
            for to in ["10.1.0.2", "10.1.0.4", "fd00:1::3", "10.1.0.1"] {
                stranger.assert_reach(to, after.is_empty(), &why);
            }
            assert!(one.reaches("10.2.0.2"), "{why}");
            for container in [&one, &two, &three] {
                new_network.check(&Attachment::of(container)).unwrap();
            }
            for container in [&one, &two, &three] {
                new_network.detach(container);
            }
            let rules = world.host().run("nft list ruleset").success().to_owned();
            assert!(!rules.contains("br-1") && !rules.contains("net/"), "{why}: left over: {rules}");
        }
    }
}

#[test]
fn changed_flags_of_ports_hold_for_the_old_containers_from_the_next_add_on() {
    for keys in [json!({ "ipMasq": true }), json!({ "ingressPolicy": "same-bridge" })] {
        for (before, after) in [(false, true), (true, false)] {
            let world = World::new();
            let with = |isolated: bool| {
                let mut all =
                    json!({ "isDefaultGateway": true, "portIsolation": isolated, "hairpinMode": isolated });
                all.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
                network_with(&world, all)
            };
            let old_network = with(before);
            let (one, two) = (member(&world, &old_network, "one"), member(&world, &old_network, "two"));
            one.assert_reach("10.1.0.3", !before, "as it was");
            let new_network = with(after);
            let three = member(&world, &new_network, "three");
            for to in ["10.1.0.3", "fd00:1::3", "10.1.0.4"] {
                one.assert_reach(to, !after, &format!("portIsolation has become {after} beside {keys}"));
            }
            for container in [&one, &two, &three] {
                new_network.check(&Attachment::of(container)).unwrap();
                new_network.detach(container);
            }
            let rules = world.host().run("nft list ruleset").success().to_owned();
            assert!(!rules.contains("net"), "left over: {rules}");
        }
    }
}

#[test]
fn check_names_a_policy_that_the_configuration_no_longer_has() {
    let world = World::new();
    let one = member(&world, &changed(&world, "isolated", false), "one");
    for (policy, named) in [("same-bridge", "isolation of host veth"), ("", "is not wished")] {
        let failure = changed(&world, policy, false).check(&Attachment::of(&one)).unwrap_err();
        assert!(failure.msg.contains(named), "{failure}");
    }
}
