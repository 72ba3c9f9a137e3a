//! Other firewalls that drop what is forwarded: without `acceptForward` they are named, with it packets pass, and
//! when the last container is gone they are what they were.

use integration_tests::{Attachment, Container, Network, Output, Outside, Suite, World};
use serde_json::{Value, json};

/// A firewall as its owner has it, and the chain that an ADD names.
struct Firewall {
    name: &'static str,
    commands: &'static [&'static str],
    chains: &'static [&'static str],
}

const IPTABLES: Firewall = Firewall {
    name: "iptables with policy drop",
    commands: &["iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP"],
    chains: &["ip filter FORWARD: policy drop", "ip6 filter FORWARD: policy drop"],
};

const REJECT: Firewall = Firewall {
    name: "iptables that ends with a rule",
    commands: &[
        "iptables -A FORWARD -s 192.0.2.0/24 -j DROP",
        "iptables -A FORWARD -j REJECT",
        "ip6tables -A FORWARD -j REJECT",
    ],
    chains: &["ip filter FORWARD: a rule of it is reject", "ip6 filter FORWARD: a rule of it is reject"],
};

/// As Docker 27 leaves it, but for its containers.
const DOCKER: Firewall = Firewall {
    name: "Docker",
    commands: &[
        "iptables -P FORWARD DROP",
        "iptables -N DOCKER-USER",
        "iptables -N DOCKER-FORWARD",
        "iptables -A DOCKER-FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT",
        "iptables -A DOCKER-FORWARD ! -i docker0 -o docker0 -j DROP",
        "iptables -A DOCKER-USER -s 192.0.2.0/24 -j DROP",
        "iptables -A DOCKER-USER -j RETURN",
        "iptables -A FORWARD -j DOCKER-USER",
        "iptables -A FORWARD -j DOCKER-FORWARD",
        "ip6tables -P FORWARD DROP",
        "ip6tables -N DOCKER-USER",
        "ip6tables -A FORWARD -j DOCKER-USER",
    ],
    chains: &["ip filter FORWARD: policy drop", "ip6 filter FORWARD: policy drop"],
};

const NFTABLES: Firewall = Firewall {
    name: "nftables",
    commands: &[
        "nft add table inet firewall",
        "nft add chain inet firewall through { type filter hook forward priority 10; policy drop; }",
        "nft add rule inet firewall through ct state invalid drop",
    ],
    chains: &["inet firewall through: policy drop"],
};

/// The shape of firewalld's: the end of a zone's chain rejects, before the end of the base chain does.
const ZONES: Firewall = Firewall {
    name: "zones",
    commands: &[
        "nft add table inet zones",
        "nft add chain inet zones forward { type filter hook forward priority 10; policy accept; }",
        "nft add chain inet zones by_zone",
        "nft add chain inet zones public",
        "nft add rule inet zones public reject with icmpx admin-prohibited",
        "nft add rule inet zones by_zone goto public",
        "nft add rule inet zones forward ct state established,related accept",
        "nft add rule inet zones forward jump by_zone",
        "nft add rule inet zones forward reject with icmpx admin-prohibited",
    ],
    chains: &["inet zones forward: a rule of its chain public is reject"],
};

/// The shape of firewalld's rules where it writes them by iptables: all interfaces are in the last zone, as `+`.
const IPTABLES_ZONES: Firewall = Firewall {
    name: "zones by iptables",
    commands: &[
        "iptables -N FORWARD_ZONES",
        "iptables -N FWD_public",
        "iptables -A FWD_public -j REJECT",
        "iptables -A FORWARD_ZONES -i + -g FWD_public",
        "iptables -A FORWARD -i lo -j ACCEPT",
        "iptables -A FORWARD -i + -o + -j FORWARD_ZONES",
        "iptables -A FORWARD -j REJECT --reject-with icmp-host-prohibited",
        "ip6tables -A FORWARD -i + -j REJECT",
    ],
    chains: &[
        "ip filter FORWARD: a rule of its chain FWD_public is reject",
        "ip6 filter FORWARD: a rule of it is reject",
    ],
};

const FIREWALLS: [&Firewall; 6] = [&IPTABLES, &REJECT, &DOCKER, &NFTABLES, &ZONES, &IPTABLES_ZONES];

/// A host with other firewalls and something behind it, and two networks of which only `net` has the key.
struct Story {
    world: World,
    outside: Outside,
    path: String,
    before: String,
}

impl Story {
    #[track_caller]
    fn new(firewalls: &[&Firewall]) -> Self {
        let world = World::new();
        let outside = world.outside();
        let path = world.install_plugins();
        for firewall in firewalls {
            for command in firewall.commands {
                world.host().run(command).success();
            }
        }
        outside.route("10.1.0.0/16");
        outside.route("fd00:1::/64");
        let story = Self { world, outside, path, before: String::new() };
        Self { before: story.foreign(), ..story }
    }

    /// Everything that is not of our own tables, with what iptables makes of it.
    fn foreign(&self) -> String {
        let host = self.world.host();
        let nft = host.run("nft --stateless list ruleset").success().to_owned();
        let ours = ["table inet cni-bridge", "table bridge cni-bridge", "table bridge cni-ra-guard"];
        let others: Vec<&str> = nft
            .split_inclusive("\n}\n")
            .filter(|table| !ours.iter().any(|name| table.trim_start().starts_with(name)))
            .collect();
        let listed = |program: &str| host.run(&format!("{program} -S")).success().to_owned();
        format!("{}{}{}", others.concat(), listed("iptables"), listed("ip6tables"))
    }

    fn network(&self, name: &str, number: u8, keys: Value) -> Network {
        Network::new(&self.world, list(name, number, keys))
    }

    fn accepting(&self, policy: &str) -> Network {
        self.network("net", 1, json!({ "acceptForward": true, "ingressPolicy": policy }))
    }

    #[track_caller]
    fn assert_foreign_is_as_before(&self) {
        assert_eq!(self.foreign(), self.before);
    }

    fn bridge(&self, arguments: &[&str]) -> Output {
        let program = Suite::Ours.binary("bridge").display().to_string();
        let command =
            self.world.host().command(std::iter::once(program.as_str()).chain(arguments.iter().copied()));
        command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &self.path).run()
    }
}

/// A network on `10.NUMBER.0.0/16` and `fd00:NUMBER::/64`, with bridge `br-NUMBER`.
fn list(name: &str, number: u8, keys: Value) -> Value {
    let mut bridge = json!({
        "type": "bridge", "bridge": format!("br-{number}"), "isDefaultGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local-ipam", "ranges": [
            [{ "subnet": format!("10.{number}.0.0/16") }], [{ "subnet": format!("fd00:{number}::/64") }],
        ] },
    });
    bridge.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    json!({ "cniVersion": "1.1.0", "name": name, "plugins": [bridge] })
}

#[track_caller]
fn check(from: &Container, targets: &[&str], expected: bool, why: &str) {
    for target in targets {
        from.assert_reach(target, expected, why);
    }
}

const BEHIND: [&str; 2] = [Outside::ADDRESS, Outside::ADDRESS6];

#[test]
fn without_the_key_packets_are_dropped_and_the_chain_is_named() {
    for firewall in FIREWALLS {
        let story = Story::new(&[firewall]);
        let container = story.world.container("c1");
        let network = story.network("net", 1, json!({}));
        let output = network.plugin_call("ADD", 0, Some(&Attachment::of(&container)), None).run();
        output.success();
        for chain in firewall.chains {
            assert!(output.stderr.contains(chain), "{}: no {chain} in {output}", firewall.name);
        }
        check(&container, &BEHIND, false, firewall.name);
        story.assert_foreign_is_as_before();
    }
}

#[test]
fn with_the_key_packets_pass_and_afterwards_the_firewall_is_what_it_was() {
    for firewall in FIREWALLS {
        let story = Story::new(&[firewall]);
        let network = story.accepting("");
        let (one, two) = (story.world.container("one"), story.world.container("two"));
        let output = network.plugin_call("ADD", 0, Some(&Attachment::of(&one)), None).run();
        output.success();
        assert_eq!(output.stderr, "", "{}", firewall.name);
        check(&one, &BEHIND, true, firewall.name);
        assert!(story.outside.space().reaches("10.1.0.2"), "{}: its policy is open", firewall.name);

        let with_one = story.foreign();
        assert!(with_one.contains("cni-bridge accept-forward-net"), "{with_one}");
        network.attach(&two);
        assert_eq!(story.foreign(), with_one, "one set of rules for the network");
        check(&two, &BEHIND, true, firewall.name);
        network.check(&Attachment::of(&two)).unwrap();

        network.del(&Attachment::of(&one)).unwrap();
        check(&two, &BEHIND, true, firewall.name);
        network.detach(&two);
        story.assert_foreign_is_as_before();
    }
}

#[test]
fn all_firewalls_at_once_are_passed() {
    let story = Story::new(&[&DOCKER, &NFTABLES, &ZONES]);
    let network = story.accepting("same-bridge");
    let one = story.world.container("one");
    network.attach(&one);
    check(&one, &BEHIND, true, "all at once");
    network.detach(&one);
    story.assert_foreign_is_as_before();
}

#[test]
fn nobody_is_let_in_whom_the_policy_refuses() {
    for policy in ["same-bridge", "isolated"] {
        for firewall in [&DOCKER, &NFTABLES] {
            let story = Story::new(&[firewall]);
            let network = story.accepting(policy);
            let other = story.network("other", 2, json!({ "acceptForward": true }));
            let (one, two) = (story.world.container("one"), story.world.container("two"));
            let stranger = story.world.container("stranger");
            network.attach(&one);
            network.attach(&two);
            other.attach(&stranger);
            let why = format!("{policy} behind {}", firewall.name);
            check(&one, &BEHIND, true, &why);
            check(&one, &["10.2.0.2"], true, &why);
            check(&stranger, &["10.1.0.2", "10.1.0.1", "fd00:1::2"], false, &why);
            check(&two, &["10.1.0.2"], policy == "same-bridge", &why);
            assert!(story.outside.space().is_cut_off_from("10.1.0.2"), "{why}");
            // Not even when nothing of ours but the accept rules is left.
            story.world.host().run("nft delete table inet cni-bridge").success();
            assert!(story.outside.space().is_cut_off_from("10.1.0.2"), "{why}");
        }
    }
}

#[test]
fn published_ports_are_let_in() {
    for firewall in [&DOCKER, &NFTABLES] {
        let story = Story::new(&[firewall]);
        let network = story.accepting("same-bridge");
        let one = story.world.container("one");
        network.attach(&one);
        let _web = one.serve("0.0.0.0:80");
        for line in [
            "nft add table ip published",
            "nft add chain ip published before { type nat hook prerouting priority dstnat; }",
            "nft add rule ip published before tcp dport 8080 fib daddr type local dnat to 10.1.0.2:80",
        ] {
            story.world.host().run(line).success();
        }
        story.outside.space().fetch(&format!("http://{}:8080/", Outside::HOST));
    }
}

#[test]
fn what_the_firewall_drops_by_a_rule_of_its_own_stays_dropped() {
    let story = Story::new(&[&DOCKER]);
    let host = story.world.host();
    for line in [
        "ip link add docker0 type bridge",
        "ip address add 172.17.0.1/16 dev docker0",
        "ip link set docker0 up",
        "iptables -I DOCKER-USER -d 203.0.113.0/24 -o up0 -p tcp --dport 81 -j DROP",
    ] {
        host.run(line).success();
    }
    let docker = story.world.netns("docker");
    host.run("ip link add d0 master docker0 type veth peer name eth0 netns docker").success();
    host.run("ip link set d0 up").success();
    for line in [
        "ip address add 172.17.0.2/16 dev eth0",
        "ip link set eth0 up",
        "ip route add default via 172.17.0.1",
    ] {
        docker.run(line).success();
    }
    let network = story.accepting("");
    let one = story.world.container("one");
    network.attach(&one);
    check(&one, &["172.17.0.2"], false, "Docker keeps its containers to itself");
    assert!(docker.reaches("10.1.0.2"), "Docker's may go out, and the network is open");
    check(&one, &BEHIND, true, "Docker");
}

/// What somebody does to the rules, and whether the next ADD or a repair brings them back.
#[test]
fn rules_come_back_after_a_flush_and_check_misses_them_until_then() {
    for (firewall, flush) in [
        (&DOCKER, "iptables -F DOCKER-USER"),
        (&DOCKER, "ip6tables -F DOCKER-USER"),
        (&IPTABLES, "iptables -F FORWARD"),
        (&NFTABLES, "nft flush chain inet firewall through"),
    ] {
        let story = Story::new(&[firewall]);
        let network = story.accepting("same-bridge");
        story.world.write(
            "/run/net.d/net.conflist",
            list("net", 1, json!({ "acceptForward": true, "ingressPolicy": "same-bridge" })).to_string(),
        );
        let (one, two) = (story.world.container("one"), story.world.container("two"));
        network.attach(&one);
        for restore in ["next ADD", "repair"] {
            story.world.host().run(flush).success();
            let failure = network.check(&Attachment::of(&one)).unwrap_err();
            assert!(failure.msg.contains("lacks the rule that accepts"), "after {flush}: {failure}");
            match restore {
                "repair" => {
                    assert!(story.bridge(&["repair", "net"]).success().contains("accepts what"), "{flush}");
                    assert_eq!(story.bridge(&["repair", "net"]).success(), "");
                }
                _ => drop(network.attach(&two)),
            }
            check(&one, &BEHIND, true, flush);
            network.check(&Attachment::of(&one)).unwrap();
        }
        for container in [&one, &two] {
            network.detach(container);
        }
        assert!(!story.foreign().contains("cni-bridge"), "{}", story.foreign());
    }
}

#[test]
fn the_rules_go_with_the_key_and_with_the_last_container_that_came_with_it() {
    for keys in [json!({}), json!({ "ipMasq": false }), json!({ "ingressPolicy": "same-bridge" })] {
        for verb in ["ADD", "DEL", "GC"] {
            let story = Story::new(&[&DOCKER, &NFTABLES]);
            let without = story.network("net", 1, keys.clone());
            let mut with_key = keys.clone();
            with_key["acceptForward"] = json!(true);
            let accepting = story.network("net", 1, with_key);
            let (one, two) = (story.world.container("one"), story.world.container("two"));
            accepting.attach(&one);
            match verb {
                "ADD" => drop(without.attach(&two)),
                "DEL" => without.detach(&one),
                _ => {
                    std::fs::remove_file(story.world.path("/var/lib/cni/results/net-one-eth0")).unwrap();
                    without.gc(&[]).unwrap();
                }
            }
            story.assert_foreign_is_as_before();
        }
    }
}

/// They are not in nf_tables, where the record of them is.
#[test]
fn the_rules_in_legacy_iptables_go_when_the_key_has_gone_and_when_the_record_was_lost() {
    if !has_legacy_tables() {
        return;
    }
    for keys in [json!({}), json!({ "ipMasq": false }), json!({ "ingressPolicy": "same-bridge" })] {
        for verb in ["ADD", "repair", "DEL", "GC"] {
            let story = Story::new(&[]);
            let host = story.world.host();
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                host.run(&format!("{program} -P FORWARD DROP")).success();
            }
            let legacy = || {
                let listed = |program: &str| host.run(&format!("{program} -S")).success().to_owned();
                listed("iptables-legacy") + &listed("ip6tables-legacy")
            };
            let before = legacy();
            story.world.write("/run/net.d/net.conflist", list("net", 1, keys.clone()).to_string());
            let without = story.network("net", 1, keys.clone());
            let mut with_key = keys.clone();
            with_key["acceptForward"] = json!(true);
            let accepting = story.network("net", 1, with_key);
            let (one, two) = (story.world.container("one"), story.world.container("two"));
            accepting.attach(&one);
            assert_ne!(legacy(), before);
            match verb {
                "ADD" => drop(without.attach(&two)),
                "repair" => assert_ne!(story.bridge(&["repair", "net"]).success(), ""),
                _ => {
                    host.run("nft flush ruleset").success();
                    match verb {
                        "DEL" => accepting.detach(&one),
                        _ => {
                            let cached = story.world.path("/var/lib/cni/results/net-one-eth0");
                            std::fs::remove_file(cached).unwrap();
                            accepting.gc(&[]).unwrap();
                        }
                    }
                }
            }
            assert_eq!(legacy(), before, "{keys} {verb}");
        }
    }
}

#[test]
fn rules_whose_record_was_deleted_are_found_all_the_same() {
    for last in ["DEL", "GC", "prune"] {
        let story = Story::new(&[&DOCKER, &NFTABLES]);
        let network = story.accepting("same-bridge");
        let other = story.network("other", 2, json!({ "acceptForward": true }));
        let (one, stays) = (story.world.container("one"), story.world.container("stays"));
        other.attach(&stays);
        let with_other = story.foreign();
        network.attach(&one);
        for table in ["inet cni-bridge", "bridge cni-ra-guard"] {
            story.world.host().run(&format!("nft delete table {table}")).success();
        }
        match last {
            "DEL" => network.detach(&one),
            _ => {
                story.world.remove_netns("one");
                integration_tests::wait_until("the pair is gone", || {
                    let links = story.world.host().run("ip -o link show master br-1");
                    links.stdout.is_empty().then_some(())
                });
                match last {
                    "GC" => network.gc(&[]).unwrap(),
                    _ => drop(story.bridge(&["prune"]).success().to_owned()),
                }
            }
        }
        assert_eq!(story.foreign(), with_other, "{last} keeps what another network has");
        other.detach(&stays);
        story.assert_foreign_is_as_before();
    }
}

#[test]
fn an_add_that_is_killed_at_any_moment_leaves_the_firewall_as_it_was_after_del() {
    let story = Story::new(&[&DOCKER, &NFTABLES]);
    let network = story.accepting("same-bridge");
    let one = Attachment::of(&story.world.container("one"));
    for round in 0..24_u32 {
        let add = network.plugin_call("ADD", 0, Some(&one), None).start();
        add.wait_for_start();
        // The moment is what is tested.
        std::thread::sleep(std::time::Duration::from_micros(u64::from(round) * 300));
        add.kill();
        add.wait();
        network.del(&one).unwrap();
        story.assert_foreign_is_as_before();
    }
}

#[test]
fn a_failed_add_takes_its_rules_back() {
    for keys in [
        json!({ "acceptForward": true }),
        json!({ "ipMasq": false }),
        json!({ "isDefaultGateway": false, "ipMasq": false, "macspoofchk": true }),
    ] {
        let story = Story::new(&[&DOCKER, &NFTABLES]);
        let routes = json!([{ "dst": "10.7.0.0/16", "gw": "192.0.2.1" }]);
        let mut keys = keys;
        keys["ipam"] = json!({ "type": "host-local-ipam", "subnet": "10.1.0.0/16", "routes": routes });
        let network = story.network("net", 1, keys.clone());
        let one = story.world.container("one");
        network.add(&Attachment::of(&one)).unwrap_err();
        story.assert_foreign_is_as_before();
        let tables = story.world.host().run("nft list tables").success().to_owned();
        assert!(!tables.contains("cni"), "{keys}: {tables}");
    }
}

/// As firewalld's with `NftablesTableOwner=yes`.
#[test]
fn a_table_that_only_its_owner_can_change_is_named_and_keeps_no_rule_from_other_firewalls() {
    let story = Story::new(&[&NFTABLES]);
    let host = story.world.host();
    let owner = |rule: &str| {
        let table = format!(
            "add table inet owned {{ flags owner; }}
             add chain inet owned through {{ type filter hook forward priority 20; policy drop; }}
             add rule inet owned through ct state established accept
             add rule inet owned through {rule}
            "
        );
        // As long as this lives, so do the socket of `nft` and its table.
        const HOLD: &str =
            r#"open(my $nft, "|-", "nft", "-i") or die; print $nft $ARGV[0]; $nft->flush; sleep"#;
        let owner = host.command(["perl", "-MIO::Handle", "-e", HOLD, &table]).start();
        integration_tests::wait_until("the table is there", || {
            host.run("nft list chain inet owned through").stdout.contains(rule).then_some(())
        });
        owner
    };
    let network = story.accepting("same-bridge");
    let one = story.world.container("one");
    for (rule, is_named) in [("udp dport 9 accept", true), ("iifname \"br-1\" accept", false)] {
        let owner = owner(rule);
        let output = network.plugin_call("ADD", 0, Some(&Attachment::of(&one)), None).run();
        let result = output.json();
        let named = "forwarded packets of br-1 are dropped by inet owned through: policy drop, \
                     in a table that only its owner can change\n";
        assert_eq!(output.stderr.contains(named), is_named, "{rule}: {output}");
        assert_eq!(output.stderr.lines().count(), usize::from(is_named), "{rule}: {output}");
        assert!(story.foreign().contains("cni-bridge accept-forward-net"), "{}", story.foreign());
        check(&one, &BEHIND, !is_named, rule);
        let call = |verb| network.plugin_call(verb, 0, Some(&Attachment::of(&one)), Some(&result));
        call("CHECK").run().success();
        let shown = story.bridge(&["show", "net"]).success().to_owned();
        assert_eq!(shown.contains("only its owner can change"), is_named, "{shown}");
        call("DEL").run().success();
        owner.kill();
        integration_tests::wait_until("the owner's table is gone", || {
            (host.run("nft list table inet owned").status != 0).then_some(())
        });
        story.assert_foreign_is_as_before();
    }
}

#[test]
fn the_rules_change_with_the_policy() {
    let legacy = Firewall {
        name: "legacy iptables",
        commands: &["iptables-legacy -P FORWARD DROP", "ip6tables-legacy -A FORWARD -j REJECT"],
        chains: &[],
    };
    let mut firewalls = FIREWALLS.to_vec();
    if has_legacy_tables() {
        firewalls.push(&legacy);
    }
    let policies = ["", "same-bridge", "isolated"];
    for firewall in firewalls {
        let story = Story::new(&[firewall]);
        let host = story.world.host();
        let rules = || {
            let legacy = match firewall.name {
                "legacy iptables" => ["iptables-legacy -S", "ip6tables-legacy -S"]
                    .map(|command| host.run(command).success().to_owned())
                    .concat(),
                _ => String::new(),
            };
            let rules = story.foreign() + &legacy;
            let mut own: Vec<String> =
                rules.lines().filter(|line| line.contains("cni-bridge")).map(str::to_owned).collect();
            own.sort();
            own
        };
        let one = story.world.container("one");
        let wished = policies.map(|policy| {
            let network = story.accepting(policy);
            network.attach(&one);
            let wished = rules();
            network.detach(&one);
            wished
        });
        let two = story.world.container("two");
        for (from, before) in policies.into_iter().zip(&wished) {
            for (to, after) in policies.into_iter().zip(&wished).filter(|(to, _)| *to != from) {
                let why = format!("{}: \"{from}\" becomes \"{to}\"", firewall.name);
                let (old, new) = (story.accepting(from), story.accepting(to));
                old.attach(&one);
                assert_eq!(&rules(), before, "{why}");
                new.check(&Attachment::of(&one)).unwrap_err();
                new.attach(&two);
                assert_eq!(&rules(), after, "{why}");
                new.check(&Attachment::of(&one)).unwrap();

                let failure = old.check(&Attachment::of(&two)).unwrap_err();
                assert!(failure.msg.contains("of another ingressPolicy"), "{why}: {failure}");
                let conf = list("net", 1, json!({ "acceptForward": true, "ingressPolicy": from }));
                story.world.write("/run/net.d/net.conflist", conf.to_string());
                let told = story.bridge(&["repair", "net"]).success().to_owned();
                assert!(told.contains("of another ingressPolicy"), "{why}: {told}");
                assert_eq!(story.bridge(&["repair", "net"]).success(), "", "{why}");
                assert_eq!(&rules(), before, "{why}");
                for container in [&one, &two] {
                    old.detach(container);
                }
                assert_eq!(rules(), [""; 0], "{why}");
            }
        }
    }
}

#[test]
fn parallel_first_attachments_write_the_rules_once() {
    let story = Story::new(&[&DOCKER, &NFTABLES]);
    let network = story.accepting("");
    let containers: Vec<Container> =
        (0..16).map(|index| story.world.container(&format!("c{index}"))).collect();
    let adds: Vec<_> = containers
        .iter()
        .map(|container| network.plugin_call("ADD", 0, Some(&Attachment::of(container)), None).start())
        .collect();
    for add in adds {
        add.wait().success();
    }
    let listed = story.world.host().run("iptables -S").success().to_owned();
    assert_eq!(listed.matches("cni-bridge accept-forward-net").count(), 2, "{listed}");
    check(&containers[15], &BEHIND, true, "parallel");
    let dels: Vec<_> = containers
        .iter()
        .map(|container| network.plugin_call("DEL", 0, Some(&Attachment::of(container)), None).start())
        .collect();
    for del in dels {
        del.wait().success();
    }
    story.assert_foreign_is_as_before();
}

/// Whether this kernel has the tables of iptables from before nf_tables; says so when it has not.
#[expect(clippy::print_stderr, reason = "the reason for a test that is skipped")]
pub(crate) fn has_legacy_tables() -> bool {
    let world = World::new();
    let missing = ["iptables-legacy -S", "ip6tables-legacy -S"]
        .into_iter()
        .map(|command| world.host().run(command))
        .find(|listed| listed.status != 0);
    if let Some(listed) = &missing {
        eprintln!("skipped: this kernel has no tables of iptables from before nf_tables: {listed}");
    }
    missing.is_none()
}

#[test]
fn a_chain_of_legacy_iptables_that_drops_is_named() {
    if !has_legacy_tables() {
        return;
    }
    for (commands, reason) in [
        (["-P FORWARD DROP", "-A FORWARD -i br0 -j LOG"].as_slice(), Some("policy drop")),
        (&["-A FORWARD -p udp -j DROP", "-A FORWARD -j DROP"], Some("a rule of it is drop")),
        (&["-N ZONE", "-A FORWARD -g ZONE", "-A ZONE -j REJECT"], Some("a rule of its chain ZONE is reject")),
        (
            &["-N USER", "-A FORWARD -j USER", "-A USER -i br-1 -j ACCEPT", "-P FORWARD DROP"],
            Some("policy drop"),
        ),
        (
            &[
                "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A FORWARD -i br+ ! -o br-1 -j ACCEPT",
                "-P FORWARD DROP",
            ],
            None,
        ),
        (
            &[
                "-A FORWARD -m state --state ESTABLISHED -j ACCEPT",
                "-N USER",
                "-A FORWARD -j USER",
                "-A USER -i br-1 -m comment --comment out -j ACCEPT",
                "-P FORWARD DROP",
            ],
            None,
        ),
        (
            &[
                "-A FORWARD -m state --state ESTABLISHED -j ACCEPT",
                "-N USER",
                "-A FORWARD -i br-2 -j USER",
                "-A USER -j ACCEPT",
                "-P FORWARD DROP",
            ],
            Some("policy drop"),
        ),
        (&["-A FORWARD -i br-1 -m conntrack --ctstate NEW -j DROP"], Some("a rule of it is drop")),
        (&["-A FORWARD -i br-2 -m conntrack --ctstate NEW -j DROP"], None),
    ] {
        let story = Story::new(&[]);
        for program in ["iptables-legacy", "ip6tables-legacy"] {
            for command in commands {
                story.world.host().run(&format!("{program} {command}")).success();
            }
        }
        let network = story.network("net", 1, json!({}));
        let container = story.world.container("c1");
        let output = network.plugin_call("ADD", 0, Some(&Attachment::of(&container)), None).run();
        output.success();
        let named = |program: &str| {
            reason.map(|reason| {
                format!(
                    "forwarded packets of br-1 are dropped by {program}-legacy filter FORWARD: {reason}\n"
                )
            })
        };
        let told: String = ["iptables", "ip6tables"].into_iter().filter_map(named).collect();
        let said: String =
            output.stderr.lines().map(|line| line.trim_start_matches("bridge: ").to_owned() + "\n").collect();
        assert_eq!(said, told, "{commands:?}");
        let shown = story.bridge(&["show", "net"]).success().to_owned();
        let obstacles: String = shown
            .lines()
            .filter_map(|line| line.strip_prefix("! "))
            .map(|line| line.to_owned() + "\n")
            .collect();
        assert_eq!(obstacles, told.replace(" of br-1 ", " "), "{commands:?}");
    }
}

/// As flannel has it for its pods, whom `bridge` attaches.
#[test]
fn a_firewall_is_named_for_what_it_does_to_the_addresses_of_the_containers() {
    let by_iptables = |v4: &str, v6: &str| {
        let ways = |program, network| {
            ["-s", "-d"].map(|way| format!("{program} -A FORWARD {way} {network} -j ACCEPT")).into_iter()
        };
        let policies = ["iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP"].map(str::to_owned);
        policies.into_iter().chain(ways("iptables", v4)).chain(ways("ip6tables", v6)).collect::<Vec<_>>()
    };
    let by_nft = |rule: &str| {
        let chain = "{ type filter hook forward priority 10; policy accept; }";
        [
            "add table inet own".to_owned(),
            format!("add chain inet own f {chain}"),
            format!("add rule inet own f {rule}"),
        ]
        .map(|words| format!("nft {words}"))
        .to_vec()
    };
    let (v4, v6) = ("10.1.0.0/16", "fd00:1::/64");
    let legacy = |commands: Vec<String>| {
        let legacy = |command: String| command.replacen("tables", "tables-legacy", 1);
        commands.into_iter().map(legacy).collect::<Vec<_>>()
    };
    let mut cases = vec![
        (by_iptables(v4, v6), [true, true], ""),
        (by_iptables(v4, "fd00:9::/64"), [true, false], "ip6 filter FORWARD: policy drop"),
        (by_iptables("10.9.0.0/16", v6), [false, true], "ip filter FORWARD: policy drop"),
        (by_nft("ip saddr 10.0.0.0/8 ip daddr != 10.0.0.0/8 counter"), [true, true], ""),
        (
            by_nft("ip saddr { 10.1.0.0/24, 192.168.0.0/16 } reject"),
            [false, true],
            "inet own f: a rule of it is reject",
        ),
        (by_nft("meta nfproto ipv6 drop"), [true, false], "inet own f: a rule of it is drop"),
        (by_nft("oifname br-1 drop"), [false, false], "inet own f: a rule of it is drop"),
        (by_nft("oifname br-9 drop"), [true, true], ""),
    ];
    if has_legacy_tables() {
        cases.push((legacy(by_iptables(v4, v6)), [true, true], ""));
        let (commands, named) =
            (by_iptables("10.9.0.0/16", v6), "iptables-legacy filter FORWARD: policy drop");
        cases.push((legacy(commands), [false, true], named));
        // Only one family has such a table.
        let policy = |program: &str| vec![format!("{program} -P FORWARD DROP")];
        cases.push((policy("iptables-legacy"), [false, true], "iptables-legacy filter FORWARD: policy drop"));
        cases.push((
            policy("ip6tables-legacy"),
            [true, false],
            "ip6tables-legacy filter FORWARD: policy drop",
        ));
    }
    for (commands, reaches, named) in cases {
        let story = Story::new(&[]);
        for command in &commands {
            story.world.host().run(command).success();
        }
        let container = story.world.container("c1");
        let network = story.network("net", 1, json!({}));
        let output = network.plugin_call("ADD", 0, Some(&Attachment::of(&container)), None).run();
        output.success();
        let shown = story.bridge(&["show", "net"]).success().to_owned();
        let told = |text: &str| text.lines().filter(|line| line.contains(" dropped by ")).count();
        let expected = usize::from(!named.is_empty());
        assert_eq!([told(&output.stderr), told(&shown)], [expected; 2], "{commands:?}: {output} {shown}");
        assert!(output.stderr.contains(named) && shown.contains(named), "{commands:?}: {output} {shown}");
        for (target, reaches) in BEHIND.into_iter().zip(reaches) {
            check(&container, &[target], reaches, &commands.join("; "));
        }
    }
}

#[test]
fn what_the_key_has_let_through_is_no_obstacle() {
    let mut firewalls = vec![&IPTABLES, &NFTABLES, &ZONES];
    let legacy = Firewall {
        name: "legacy iptables",
        commands: &["iptables-legacy -P FORWARD DROP", "ip6tables-legacy -A FORWARD -j REJECT"],
        chains: &[],
    };
    if has_legacy_tables() {
        firewalls.push(&legacy);
    }
    for firewall in firewalls {
        for policy in ["", "same-bridge", "isolated"] {
            let story = Story::new(&[firewall]);
            let network = story.accepting(policy);
            network.attach(&story.world.container("one"));
            let shown = story.bridge(&["show", "net"]).success().to_owned();
            assert!(!shown.contains("dropped by"), "{} {policy}: {shown}", firewall.name);
        }
    }
}

const LEGACY: [&str; 2] = ["iptables-legacy", "ip6tables-legacy"];

#[test]
fn those_who_come_and_go_at_once_write_the_rules_in_legacy_iptables_once() {
    const ROUNDS: usize = 6;
    if !has_legacy_tables() {
        return;
    }
    let story = Story::new(&[]);
    let host = story.world.host();
    for program in LEGACY {
        host.run(&format!("{program} -P FORWARD DROP")).success();
    }
    let legacy = || LEGACY.map(|program| host.run(&format!("{program} -S")).success().to_owned());
    let before = legacy();
    let network = story.accepting("");
    let containers: Vec<Container> =
        (0..12).map(|index| story.world.container(&format!("c{index}"))).collect();
    let (some, others) = containers.split_at(6);
    let start = |verb: &'static str, containers: &[Container]| -> Vec<integration_tests::Running> {
        let call = |container| network.plugin_call(verb, 0, Some(&Attachment::of(container)), None).start();
        containers.iter().map(call).collect()
    };
    let wait = |calls: Vec<integration_tests::Running>| {
        for call in calls {
            call.wait().success();
        }
    };
    wait(start("ADD", some));
    let (mut here, mut away) = (some, others);
    for round in 0..ROUNDS {
        for listed in legacy() {
            let count = listed.matches("cni-bridge accept-forward-net").count();
            assert_eq!(count, 2, "each once, and none is missing, in round {round}: {listed}");
        }
        check(&here[0], &BEHIND, true, "round by round");
        let calls = [start("DEL", here), start("ADD", away)];
        calls.into_iter().for_each(wait);
        (here, away) = (away, here);
    }
    wait(start("DEL", here));
    assert_eq!(legacy(), before);
}

/// As somebody else's change that comes between what a call has read and what it writes.
#[test]
fn a_forward_chain_of_legacy_iptables_that_changes_meanwhile_is_looked_at_again() {
    const PROGRAMS: &str = "/run/iptables";
    const REAL: &str = "/usr/sbin/xtables-legacy-multi iptables";
    if !has_legacy_tables() {
        return;
    }
    let story = Story::new(&[]);
    let host = story.world.host();
    host.run(&format!("mkdir {PROGRAMS}")).success();
    for program in LEGACY {
        let real = program.replace("-legacy", "");
        let list = format!("#!/bin/sh\nexec /usr/sbin/xtables-legacy-multi {real} \"$@\"\n");
        story.world.write_program(&format!("{PROGRAMS}/{program}"), &list);
    }
    let meanwhile = |command: &str| {
        let program = format!(
            "#!/bin/sh
            if /bin/mkdir /run/came-between 2>/dev/null; then
                {command} || exit 9
            fi
            exec {REAL}-restore \"$@\"
            "
        );
        story.world.write_program(&format!("{PROGRAMS}/iptables-legacy-restore"), &program);
    };
    let rules = || {
        let listed = host.run(&format!("{REAL} -S FORWARD")).success().to_owned();
        listed.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for rule in ["-s 192.0.2.0/24 -j DROP", "-j REJECT"] {
        host.run(&format!("{REAL} -A FORWARD {rule}")).success();
    }
    let network = story.accepting("");
    let one = story.world.container("one");
    let call = |verb| {
        let call = network.plugin_call(verb, 0, Some(&Attachment::of(&one)), None).env("PATH", PROGRAMS);
        call.run().success().to_owned()
    };

    // There is no second place any more.
    meanwhile(&format!("{REAL} -F FORWARD && {REAL} -P FORWARD DROP"));
    call("ADD");
    let own =
        |link| format!("-A FORWARD {link} -m comment --comment \"cni-bridge accept-forward-net\" -j ACCEPT");
    assert_eq!(rules(), ["-P FORWARD DROP".to_owned(), own("-o br-1"), own("-i br-1")]);

    // Nor is there a first rule.
    host.run("rmdir /run/came-between").success();
    host.run(&format!("{REAL} -A FORWARD -p udp -j ACCEPT")).success();
    meanwhile(&format!("{REAL} -D FORWARD 1"));
    call("DEL");
    host.run("rmdir /run/came-between").success();
    assert_eq!(rules(), ["-P FORWARD DROP", "-A FORWARD -p udp -j ACCEPT"]);
}

/// The tables of iptables from before nf_tables, which nf_tables does not show.
#[test]
fn the_forward_chain_of_legacy_iptables_is_passed_too() {
    if !has_legacy_tables() {
        return;
    }
    for policy in ["", "same-bridge", "isolated"] {
        let story = Story::new(&[]);
        let host = story.world.host();
        for command in [
            "iptables-legacy -P FORWARD DROP",
            "iptables-legacy -N DOCKER-USER",
            "iptables-legacy -A DOCKER-USER -j RETURN",
            "iptables-legacy -A FORWARD -j DOCKER-USER",
            "ip6tables-legacy -A FORWARD -j REJECT",
        ] {
            host.run(command).success();
        }
        let legacy = || {
            let listed = |program: &str| host.run(&format!("{program} -S")).success().to_owned();
            listed("iptables-legacy") + &listed("ip6tables-legacy")
        };
        let before = legacy();
        let without = story.network("other", 2, json!({}));
        let stranger = story.world.container("stranger");
        without.attach(&stranger);
        check(&stranger, &BEHIND, false, "legacy");
        assert_eq!(legacy(), before);

        let keys = json!({ "acceptForward": true, "ingressPolicy": policy });
        story.world.write("/run/net.d/net.conflist", list("net", 1, keys.clone()).to_string());
        let network = story.accepting(policy);
        let (one, two) = (story.world.container("one"), story.world.container("two"));
        network.attach(&one);
        let with_one = legacy();
        assert_eq!(with_one.matches("cni-bridge accept-forward-net").count(), 4, "{with_one}");
        network.attach(&two);
        assert_eq!(legacy(), with_one);
        check(&one, &BEHIND, true, policy);
        check(&stranger, &["10.1.0.2", "fd00:1::2"], policy.is_empty(), policy);
        story.outside.space().assert_reach("10.1.0.2", policy.is_empty(), policy);

        host.run("iptables-legacy -F FORWARD").success();
        let failure = network.check(&Attachment::of(&one)).unwrap_err();
        assert!(failure.msg.contains("iptables rule is missing in table filter"), "{failure}");
        host.run("iptables-legacy -A FORWARD -j DOCKER-USER").success();
        assert!(story.bridge(&["repair", "net"]).success().contains("table filter"));
        network.check(&Attachment::of(&one)).unwrap();
        check(&two, &BEHIND, true, policy);

        network.detach(&one);
        check(&two, &BEHIND, true, policy);
        network.detach(&two);
        assert_eq!(legacy(), before, "{policy}");
    }
}
