//! Masquerade by the iptables programs as a person sees it: `bridge show` tells of it, `repair` brings it back and
//! `prune` takes away what is left of the dead, whichever iptables the host has.

use std::collections::BTreeSet;

use integration_tests::{Container, Output, PluginCall, Running, Suite, World};
use serde_json::{Value, json};

/// Where the programs are called as the plugin calls them.
const PROGRAMS: &str = "/run/iptables";

/// A host with one kind of iptables, and two containers on the network `net`.
struct Story {
    world: World,
    path: String,
    containers: Vec<Container>,
}

fn config() -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "bridge", "bridge": "br-net", "ipMasq": true,
        "ipMasqBackend": "iptables",
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00:1::/64" }]] },
    })
}

impl Story {
    #[track_caller]
    fn new(kind: &str) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        world.write("/run/net.d/net.conf", config().to_string());
        world.host().run(&format!("mkdir {PROGRAMS}")).success();
        for name in ["iptables", "iptables-restore", "ip6tables", "ip6tables-restore"] {
            world.host().run(&format!("ln -s /usr/sbin/xtables-{kind}-multi {PROGRAMS}/{name}")).success();
        }
        let containers: Vec<Container> = ["one", "two"].map(|name| world.container(name)).into();
        let story = Self { world, path, containers };
        for container in &story.containers {
            story.call("ADD", container, &config()).run().success();
        }
        story
    }

    fn call(&self, verb: &str, container: &Container, config: &Value) -> PluginCall {
        let call = self.world.plugin("bridge").verb(verb).container(container).env("CNI_PATH", &self.path);
        call.env("PATH", PROGRAMS).config(config)
    }

    fn bridge(&self, arguments: &[&str]) -> Output {
        self.start(arguments).wait()
    }

    fn start(&self, arguments: &[&str]) -> Running {
        let program = Suite::Ours.binary("bridge").display().to_string();
        let command =
            self.world.host().command(std::iter::once(program.as_str()).chain(arguments.iter().copied()));
        let command = command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &self.path);
        command.env("PATH", PROGRAMS).start()
    }

    fn masquerade_of(&self, index: usize) -> Value {
        let shown = self.bridge(&["show", "net", "--json"]).json();
        let attachment = &shown["attachments"][index];
        let policy = &attachment["policy"];
        json!([attachment["rules"], policy["ipMasq"], policy["ipMasqBackend"]])
    }

    /// The jumps and chains of the plugin in both families.
    fn ours(&self) -> Vec<String> {
        let listed = |name: &str| {
            let listed = self.world.host().run(&format!("{PROGRAMS}/{name} -t nat -S"));
            listed.success().lines().filter(|line| line.contains("CNI-")).map(str::to_owned).collect()
        };
        let families: [Vec<String>; 2] = [listed("iptables"), listed("ip6tables")];
        families.concat()
    }

    /// Has `changes` to table nat come between what the next call has read and what it writes. The path of the program
    /// that does so.
    fn comes_between(&self, kind: &str, changes: &[&str]) -> String {
        let restore = format!("{PROGRAMS}/iptables-restore");
        let real = format!("/usr/sbin/xtables-{kind}-multi");
        let changes: String =
            changes.iter().map(|change| format!("{real} iptables -t nat {change} || exit 9\n")).collect();
        self.world.host().run(&format!("rm {restore}")).success();
        let program = format!(
            "#!/bin/sh
            if /bin/mkdir /run/came-between 2>/dev/null; then
                {changes}
            fi
            exec {real} iptables-restore \"$@\"
            "
        );
        self.world.write_program(&restore, &program);
        restore
    }

    /// Detaches both containers; nothing of ours stays.
    #[track_caller]
    fn detach_all(&self, kind: &str) {
        for container in &self.containers {
            self.call("DEL", container, &config()).run().success();
        }
        assert_eq!(self.ours(), [""; 0], "{kind}");
    }
}

/// The kinds of iptables that this kernel has.
fn kinds() -> Vec<&'static str> {
    match crate::bridge_accept::has_legacy_tables() {
        true => vec!["nft", "legacy"],
        false => vec!["nft"],
    }
}

#[test]
fn show_tells_of_masquerade_by_iptables() {
    for kind in kinds() {
        let story = Story::new(kind);
        assert_eq!(story.masquerade_of(0), json!([true, true, "iptables"]), "{kind}");
        let text = story.bridge(&["show", "net"]).success().to_owned();
        assert_eq!(text.matches("rules: ipMasq by iptables\n").count(), 2, "{kind}: {text}");

        story.call("DEL", &story.containers[0], &config()).run().success();
        assert_eq!(story.masquerade_of(0), json!([true, true, "iptables"]), "{kind}: the other one's");
        for program in ["iptables", "ip6tables"] {
            story.world.host().run(&format!("{PROGRAMS}/{program} -t nat -F")).success();
        }
        assert_eq!(story.masquerade_of(0), json!([false, null, null]), "{kind}");
        assert!(story.bridge(&["show", "net"]).success().contains("rules: none\n"), "{kind}");
    }
}

#[test]
fn repair_brings_back_what_was_flushed() {
    for kind in kinds() {
        let story = Story::new(kind);
        let before = story.ours();
        assert_eq!(before.len(), 16, "{before:?}");
        for command in ["iptables -t nat -F", "ip6tables -t nat -F POSTROUTING", "iptables -t nat -X"] {
            story.world.host().run(&format!("{PROGRAMS}/{command}")).success();
        }
        let told = story.bridge(&["repair", "net"]).success().to_owned();
        assert_eq!(
            told.matches("repaired: iptables rule is missing in table nat: ").count(),
            8,
            "{kind}: {told}"
        );
        assert_eq!(story.bridge(&["repair"]).success(), "", "{kind}");
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        assert_eq!(sorted(story.ours()), sorted(before), "{kind}");
        story.detach_all(kind);
    }
}

/// The first rule of a container's chain decides: there anybody can undo the masquerade without removing it.
#[test]
fn a_rule_of_somebody_else_in_a_containers_chain_is_named_and_repair_removes_it() {
    for kind in kinds() {
        let story = Story::new(kind);
        let one = &story.containers[0];
        story.call("DEL", one, &config()).run().success();
        let mut attached = config();
        attached["prevResult"] = story.call("ADD", one, &config()).run().json();
        let before = story.ours();
        // Both families have the same ones.
        let chains: BTreeSet<&str> = before.iter().filter_map(|line| line.strip_prefix("-N ")).collect();
        for chain in chains {
            for program in ["iptables", "ip6tables"] {
                let rule = format!("{chain} -m comment --comment mine -j ACCEPT");
                story.world.host().run(&format!("{PROGRAMS}/{program} -t nat -I {rule}")).success();
            }
        }
        let changed = story.call("CHECK", one, &attached).run().error(100);
        let told = "iptables rule of somebody else is in table nat: -A CNI-";
        assert_eq!(changed.matches(told).count(), 2, "{kind}: {changed}");
        let repaired = story.bridge(&["repair", "net"]).success().to_owned();
        assert_eq!(repaired.matches(&format!("repaired: {told}")).count(), 4, "{kind}: {repaired}");
        assert_eq!(story.ours(), before, "{kind}");
        story.call("CHECK", one, &attached).run().success();
        story.detach_all(kind);
    }
}

/// The name is part of a comment, and iptables has a way of its own to list that.
#[test]
fn an_interface_with_quotes_in_its_name_has_rules_like_any_other() {
    for kind in kinds() {
        let story = Story::new(kind);
        let before = story.ours();
        let call = |verb: &str, config: &Value| {
            story.call(verb, &story.containers[0], config).env("CNI_IFNAME", r#"a'b"c\d"#).run()
        };
        let mut attached = config();
        attached["prevResult"] = call("ADD", &config()).json();
        call("CHECK", &attached).success();
        assert_eq!(story.bridge(&["repair"]).success(), "", "{kind}");
        call("DEL", &config()).success();
        assert_eq!(story.ours(), before, "{kind}");
    }
}

/// As a DEL that comes between what a repair has read and what it writes.
#[test]
fn a_chain_that_goes_meanwhile_is_brought_back_with_its_rules() {
    for kind in kinds() {
        let story = Story::new(kind);
        let before = story.ours();
        let restore = story.comes_between(kind, &["-F", "-X"]);
        story.world.host().run(&format!("{PROGRAMS}/iptables -t nat -F POSTROUTING")).success();
        let told = story.bridge(&["repair", "net"]).success().to_owned();
        assert_eq!(told.matches("repaired: iptables rule is missing").count(), 6, "{kind}: {told}");
        story.world.host().run("rmdir /run/came-between").success();
        assert_eq!(story.ours().len(), before.len(), "{kind}");

        // One that fails by itself is not tried for ever.
        story.world.host().run(&format!("{PROGRAMS}/iptables -t nat -F POSTROUTING")).success();
        story.world.write_program(&restore, "#!/bin/sh\necho no such luck >&2; exit 2\n");
        assert!(story.bridge(&["repair", "net"]).failure().stderr.contains("no such luck"), "{kind}");
    }
}

/// As the ADD of another interface of the container, whose rules stand in the same chain.
#[test]
fn a_chain_that_comes_meanwhile_keeps_the_rules_that_are_in_it() {
    for kind in kinds() {
        let story = Story::new(kind);
        let container = &story.containers[0];
        let rule = story.ours().into_iter().find(|rule| rule.contains("\\\"one\\\"")).unwrap();
        let chain = rule.split(' ').find(|word| word.starts_with("CNI-")).unwrap();
        story.call("DEL", container, &config()).run().success();
        let comment = r#"-m comment --comment "name: \"net\" id: \"one\"""#;
        let kept = format!("-A {chain} -d 192.0.2.0/24 {comment} -j ACCEPT");
        story.comes_between(kind, &[&format!("-N {chain}"), &kept]);
        story.call("ADD", container, &config()).run().success();
        let listed = story.ours();
        assert!(listed.contains(&kept), "{kind}: {listed:#?}");
        assert_eq!(story.bridge(&["repair"]).success(), "", "{kind}");
        story.detach_all(kind);
    }
}

#[test]
fn repairs_side_by_side_write_each_rule_once() {
    for kind in kinds() {
        let story = Story::new(kind);
        let before = story.ours();
        for program in ["iptables", "ip6tables"] {
            story.world.host().run(&format!("{PROGRAMS}/{program} -t nat -F POSTROUTING")).success();
        }
        let repairs: Vec<_> = (0..6).map(|_| story.start(&["repair", "net"])).collect();
        for repair in repairs {
            repair.wait().success();
        }
        let (mut once, mut after) = (before, story.ours());
        once.sort();
        after.sort();
        assert_eq!(after, once, "{kind}");
    }
}

/// Bridged frames pass what is behind routing where `bridge-nf-call-iptables` is 1.
#[test]
fn what_stays_within_one_of_several_subnets_keeps_its_source() {
    for kind in kinds() {
        let story = Story::new(kind);
        let host = story.world.host();
        for family in ["ip", "ip6"] {
            host.run(&format!("sysctl -w net.bridge.bridge-nf-call-{family}tables=1")).success();
        }
        let mut several = config();
        several["name"] = json!("several");
        several["bridge"] = json!("br-several");
        several["isGateway"] = json!(true);
        let subnets = ["10.2.0.0/24", "10.3.0.0/24", "fd00:2::/64", "fd00:3::/64"];
        several["ipam"]["ranges"] = subnets.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        let [caller, called] = ["caller", "called"].map(|name| story.world.container(name));
        for container in [&caller, &called] {
            story.call("ADD", container, &several).run().success();
        }
        let _server = called.serve("[::]:80");
        for (source, target) in [
            ("10.2.0.2", "10.2.0.3"),
            ("10.3.0.2", "10.3.0.3"),
            ("fd00:2::2", "[fd00:2::3]"),
            ("fd00:3::2", "[fd00:3::3]"),
        ] {
            let answer = caller.fetch(&format!("http://{target}/"));
            assert_eq!(answer, format!("{target} called by {source}"), "{kind}");
        }
        for container in [&caller, &called] {
            story.call("DEL", container, &several).run().success();
        }
        story.detach_all(kind);
    }
}

#[test]
fn the_next_adds_bring_back_what_was_flushed() {
    const FLUSHES: [&[&str]; 3] = [
        &["iptables -t nat -F", "iptables -t nat -X", "ip6tables -t nat -F"],
        &["iptables -t nat -F POSTROUTING"],
        &["ip6tables -t nat -F POSTROUTING"],
    ];
    for kind in kinds() {
        for flush in FLUSHES {
            let story = Story::new(kind);
            let more: Vec<Container> = ["three", "four"].map(|name| story.world.container(name)).into();
            for command in flush {
                story.world.host().run(&format!("{PROGRAMS}/{command}")).success();
            }
            let adds: Vec<_> =
                more.iter().map(|container| story.call("ADD", container, &config()).start()).collect();
            for add in adds {
                add.wait().success();
            }
            assert_eq!(story.bridge(&["repair"]).success(), "", "{kind}, {flush:?}");
            let ours = story.ours();
            assert_eq!(ours.len(), 4 * 8, "{kind}, {flush:?}: each once: {ours:#?}");
            for container in story.containers.iter().chain(&more) {
                story.call("DEL", container, &config()).run().success();
            }
            assert_eq!(story.ours(), [""; 0], "{kind}, {flush:?}");
        }
    }
}

#[test]
fn prune_removes_the_rules_of_the_dead_alone() {
    removes_those_of_the_dead_alone(|story, kind| {
        assert_eq!(story.bridge(&["prune"]).success(), "removed iptables rules of net/one/eth0\n", "{kind}");
        assert_eq!(story.bridge(&["prune"]).success(), "", "{kind}");
    });
}

/// Of another network it removes none, nor any of those that live.
#[test]
fn a_gc_that_is_not_told_who_is_valid_removes_the_rules_of_the_dead_alone() {
    removes_those_of_the_dead_alone(|story, kind| {
        let before = story.ours();
        let gc = |network: &str| {
            let mut config = config();
            config["cniVersion"] = json!("1.1.0");
            config["name"] = json!(network);
            let gc = story.world.plugin("bridge").verb("GC").env("CNI_PATH", &story.path);
            gc.env("PATH", PROGRAMS).config(&config).run().success().to_owned()
        };
        gc("other");
        assert_eq!(story.ours(), before, "{kind}");
        gc("net");
    });
}

#[track_caller]
fn removes_those_of_the_dead_alone(remove: impl Fn(&Story, &str)) {
    for kind in kinds() {
        let story = Story::new(kind);
        story.world.remove_netns("one");
        integration_tests::wait_until("the pair is gone", || {
            let links = story.world.host().run("ip -o link show master br-net");
            (links.stdout.lines().count() == 1).then_some(())
        });
        remove(&story, kind);
        assert_eq!(story.ours().len(), 8, "{kind}");
        assert!(story.ours().iter().all(|line| !line.contains("\\\"one\\\"")), "{kind}: {:?}", story.ours());
    }
}

#[test]
fn rules_go_when_the_configuration_has_forgotten_them() {
    for kind in kinds() {
        let mut forgotten = config();
        forgotten["ipMasqBackend"] = json!("nftables");
        let story = Story::new(kind);
        story.call("DEL", &story.containers[0], &forgotten).run().success();
        assert_eq!(story.ours().len(), 8, "{kind}: the other one's stay: {:?}", story.ours());
        forgotten["cniVersion"] = json!("1.1.0");
        forgotten["cni.dev/valid-attachments"] = json!([]);
        let gc = story.world.plugin("bridge").verb("GC").env("CNI_PATH", &story.path).env("PATH", PROGRAMS);
        gc.config(&forgotten).run().success();
        assert_eq!(story.ours(), [""; 0], "{kind}");
    }
}

/// Its configuration does not say which backend it has chosen.
#[test]
fn rules_of_the_reference_go_with_the_first_del_of_ours() {
    for kind in kinds() {
        let story = Story::new(kind);
        let before = story.ours();
        let container = story.world.container("three");
        let config = json!({
            "cniVersion": "1.0.0", "name": "reference", "type": "bridge", "bridge": "br-ref", "ipMasq": true,
            "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.2.0.0/16" }], [{ "subnet": "fd00:2::/64" }]] },
        });
        let reference = Suite::Reference.dir().display().to_string();
        let add = story.world.plugin_of(Suite::Reference, "bridge").verb("ADD").container(&container);
        let path = format!("{PROGRAMS}:/usr/sbin:/usr/bin");
        add.env("CNI_PATH", &reference).env("PATH", &path).config(&config).run().success();
        assert_ne!(story.ours(), before, "{kind}");
        story.call("DEL", &container, &config).run().success();
        assert_eq!(story.ours(), before, "{kind}");
    }
}

/// They share a chain.
#[test]
fn one_of_two_interfaces_of_a_container_keeps_its_rules_when_the_other_goes() {
    for kind in kinds() {
        let story = Story::new(kind);
        let before = story.ours();
        let one = &story.containers[0];
        for verb in ["ADD", "DEL"] {
            story.call(verb, one, &config()).env("CNI_IFNAME", "eth1").run().success();
            assert_eq!(story.ours().len(), if verb == "ADD" { 18 } else { 16 }, "{kind} {verb}");
            assert_eq!(story.bridge(&["repair"]).success(), "", "{kind} {verb}");
        }
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        assert_eq!(sorted(story.ours()), sorted(before), "{kind}");
    }
}
