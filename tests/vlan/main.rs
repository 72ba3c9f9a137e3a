//! VLANs of the bridge plugin: what the ports are in, which frames pass, and that it is what the reference makes.
//!
//! They need a kernel that filters bridge ports by VLAN. `scripts/test-vlan` runs them in a virtual machine with one,
//! which is also the oldest kernel that the plugin's rules are tried on.

mod rules;

use std::collections::BTreeMap;

use integration_tests::{Container, Output, Outside, PluginCall, Suite, World};
use serde_json::{Value, json};

/// How a port carries a VLAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    /// Frames without a tag belong to it and leave without one.
    Native,
    /// Its frames leave without a tag, but none that comes without one belongs to it.
    Untagged,
    /// Its frames have its tag.
    Tagged,
}

/// The VLANs of a port.
type Vlans = BTreeMap<u64, Carried>;

/// A host on which containers are attached to networks on the bridge `br0`.
struct Story {
    world: World,
    suite: Suite,
    path: String,
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        Self::of(Suite::Ours)
    }

    #[track_caller]
    fn of(suite: Suite) -> Self {
        let world = World::new();
        let path = world.install_plugins();
        Self { world, suite, path }
    }

    /// The same host, after an upgrade to our plugins.
    fn as_ours(&self) -> Self {
        Self { suite: Suite::Ours, path: self.path.clone(), world: self.world.clone() }
    }

    fn call(&self, verb: &str, container: &Container, config: &Value) -> PluginCall {
        let call = self.world.plugin_of(self.suite, "bridge").verb(verb).container(container);
        call.env("CNI_PATH", &self.path).config(config)
    }

    /// A container `name` attached to the network of `config`, and the result.
    #[track_caller]
    fn attach(&self, name: &str, config: &Value) -> (Container, Value) {
        let container = self.world.container(name);
        let result = self.add(&container, config);
        (container, result)
    }

    #[track_caller]
    fn add(&self, container: &Container, config: &Value) -> Value {
        let output = self.call("ADD", container, config).run();
        output.success();
        output.json()
    }

    /// What CHECK finds; nothing when all is well.
    #[track_caller]
    fn found(&self, container: &Container, config: &Value, result: &Value) -> String {
        let mut config = config.clone();
        config["prevResult"] = result.clone();
        let output = self.call("CHECK", container, &config).run();
        if output.status == 0 { String::new() } else { output.error(100) }
    }

    #[track_caller]
    fn host(&self, line: &str) -> String {
        self.world.host().run(line).success().to_owned()
    }

    /// The VLANs of the port called `port`.
    #[track_caller]
    fn vlans(&self, port: &str) -> Vlans {
        let listed = self.world.host().run(&format!("bridge -json vlan show dev {port}")).json();
        let mut vlans = Vlans::new();
        for vlan in listed[0]["vlans"].as_array().into_iter().flatten() {
            let flags = vlan["flags"].to_string();
            let carried = match (flags.contains("PVID"), flags.contains("Egress Untagged")) {
                (true, true) => Carried::Native,
                (false, true) => Carried::Untagged,
                (false, false) => Carried::Tagged,
                (true, false) => panic!("native on the way in only: {vlan}"),
            };
            let first = vlan["vlan"].as_u64().unwrap();
            vlans.extend((first..=vlan["vlanEnd"].as_u64().unwrap_or(first)).map(|id| (id, carried)));
        }
        vlans
    }

    /// The name of the port behind `link`, the other end of a pair on the host.
    #[track_caller]
    fn port_of(&self, link: &str) -> String {
        let shown = self.world.host().run(&format!("ip -json link show dev {link}")).json();
        shown[0]["link"].as_str().unwrap().to_owned()
    }

    /// `bridge repair` by what stands in `/run/net.d`.
    fn repair(&self) -> Output {
        let program = self.suite.binary("bridge").display().to_string();
        let command = self.world.host().command([program.as_str(), "repair"]);
        command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &self.path).run()
    }

    fn filters(&self, bridge: &str) -> bool {
        let shown = self.world.host().run(&format!("ip -json -d link show dev {bridge}")).json();
        shown[0]["linkinfo"]["info_data"]["vlan_filtering"] == 1
    }
}

/// A network without a gateway on 10.1.2.0/24, with these keys as well.
fn network(keys: &Value) -> Value {
    let mut config = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "bridge", "bridge": "br0",
        "ipam": { "type": "host-local", "ranges": [[{ "subnet": "10.1.2.0/24" }]] },
    });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

/// The same with a gateway.
fn routed(keys: &Value) -> Value {
    let mut config = network(keys);
    config["isGateway"] = json!(true);
    config
}

/// The name of a result's host veth.
fn host_veth(result: &Value) -> &str {
    result["interfaces"][1]["name"].as_str().unwrap()
}

/// The first address of a result, without its length.
fn address(result: &Value) -> &str {
    result["ips"][0]["address"].as_str().unwrap().split('/').next().unwrap()
}

/// A result with what is random in it taken out.
fn shape(result: &Value) -> Value {
    let mut shape = result.clone();
    for interface in shape["interfaces"].as_array_mut().unwrap() {
        assert_eq!(interface["mac"].as_str().map(str::len), Some(17), "{result}");
        interface["mac"] = json!("a hardware address");
        if interface["name"].as_str().is_some_and(|name| name.starts_with("veth")) {
            interface["name"] = json!("a veth");
        }
    }
    shape
}

/// `ids` all tagged.
fn tagged(ids: impl IntoIterator<Item = u64>) -> Vlans {
    ids.into_iter().map(|id| (id, Carried::Tagged)).collect()
}

/// `others`, and one native VLAN.
fn native(id: u64, mut others: Vlans) -> Vlans {
    others.insert(id, Carried::Native);
    others
}

#[test]
fn containers_reach_those_of_their_own_vlan_only() {
    let story = Story::new();
    let (first, result) = story.attach("c1", &network(&json!({ "vlan": 100 })));
    let (_second, same) = story.attach("c2", &network(&json!({ "vlan": 100 })));
    let (third, other) = story.attach("c3", &network(&json!({ "vlan": 200 })));
    assert!(story.filters("br0"));
    for (result, id) in [(&result, 100), (&same, 100), (&other, 200)] {
        assert_eq!(story.vlans(host_veth(result)), native(id, Vlans::new()));
    }
    assert!(first.reaches(address(&same)));
    assert!(first.is_cut_off_from(address(&other)));
    assert!(third.is_cut_off_from(address(&result)));
}

/// Each set of keys, and the VLANs that the port is in with it.
fn cases() -> Vec<(Value, Vlans)> {
    let trunk = json!([{ "id": 101 }, { "minID": 200, "maxID": 210 }]);
    let ids = || tagged([101].into_iter().chain(200..=210));
    let beside_default = Vlans::from([(1, Carried::Untagged)]);
    vec![
        (json!({ "vlan": 100 }), native(100, Vlans::new())),
        (json!({ "vlan": 1 }), native(1, Vlans::new())),
        (json!({ "vlan": 4094 }), native(4094, Vlans::new())),
        (json!({ "vlan": 100, "preserveDefaultVlan": true }), native(100, beside_default)),
        (json!({ "vlanTrunk": trunk }), native(1, ids())),
        (json!({ "vlanTrunk": trunk, "preserveDefaultVlan": true }), native(1, ids())),
        (json!({ "vlanTrunk": trunk, "vlan": 100 }), native(100, ids())),
        (json!({ "vlanTrunk": [{ "minID": 1, "maxID": 3 }] }), native(1, tagged([2, 3]))),
        (json!({ "vlanTrunk": [] }), native(1, Vlans::new())),
        (json!({ "vlanTrunk": [], "vlan": 100 }), native(100, Vlans::new())),
    ]
}

#[test]
fn the_port_is_in_the_vlans_that_the_reference_puts_it_into() {
    let stories = [Story::new(), Story::of(Suite::Reference)];
    for (number, (keys, expected)) in cases().into_iter().enumerate() {
        let config = network(&keys);
        let name = format!("c{number}");
        let [ours, theirs] = [0, 1].map(|suite: usize| {
            let story = &stories[suite];
            let (container, result) = story.attach(&name, &config);
            let vlans = story.vlans(host_veth(&result));
            (container, result, vlans)
        });
        assert!(stories[0].filters("br0"), "{keys}");
        assert_eq!((&ours.2, &theirs.2), (&expected, &expected), "{keys}: ours and the reference's");
        assert_eq!(shape(&ours.1), shape(&theirs.1), "{keys}");
        assert_eq!(stories[0].found(&ours.0, &config, &ours.1), "", "{keys}");
    }
}

#[test]
fn an_empty_trunk_leaves_the_port_in_the_default_vlan_of_the_bridge() {
    for suite in [Suite::Ours, Suite::Reference] {
        let story = Story::of(suite);
        story.host("ip link add br0 type bridge vlan_filtering 1 vlan_default_pvid 7");
        let config = network(&json!({ "vlanTrunk": [] }));
        let (container, result) = story.attach("c1", &config);
        assert_eq!(story.vlans(host_veth(&result)), native(7, Vlans::new()), "{suite:?}");
        if suite == Suite::Ours {
            assert_eq!(story.found(&container, &config, &result), "");
        }
    }
}

#[test]
fn the_native_vlan_may_be_one_of_the_trunk() {
    let story = Story::new();
    let config = network(&json!({ "vlan": 100, "vlanTrunk": [{ "minID": 99, "maxID": 101 }] }));
    let (container, result) = story.attach("c1", &config);
    assert_eq!(story.vlans(host_veth(&result)), native(100, tagged([99, 101])));
    assert_eq!(story.found(&container, &config, &result), "");
}

#[test]
fn a_trunk_carries_its_vlans_tagged_and_no_other() {
    let story = Story::new();
    let (trunk, _) = story.attach("c1", &network(&json!({ "vlanTrunk": [{ "id": 101 }] })));
    let (_inside, inside) = story.attach("c2", &network(&json!({ "vlan": 101 })));
    let (_outside, outside) = story.attach("c3", &network(&json!({ "vlan": 102 })));
    trunk.run("ip link set eth0 down").success();
    trunk.run("ip address flush dev eth0").success();
    trunk.run("ip link set eth0 up").success();
    for (id, own, target, expected) in
        [(101, "10.1.2.91/24", address(&inside), true), (102, "10.1.2.92/24", address(&outside), false)]
    {
        trunk.run(&format!("ip link add link eth0 name tagged type vlan id {id}")).success();
        trunk.run(&format!("ip address add {own} dev tagged")).success();
        trunk.run("ip link set tagged up").success();
        trunk.assert_reach(target, expected, &format!("VLAN {id}"));
        trunk.run("ip link delete tagged").success();
    }
}

#[test]
fn the_gateway_of_a_vlan_is_what_the_reference_makes() {
    for keys in [
        json!({ "vlan": 100 }),
        json!({ "vlan": 100, "preserveDefaultVlan": true }),
        json!({ "vlan": 100, "isDefaultGateway": true, "vlanTrunk": [{ "id": 101 }] }),
    ] {
        let config = routed(&keys);
        let [ours, theirs] = [Suite::Ours, Suite::Reference].map(|suite| {
            let story = Story::of(suite);
            let (first, result) = story.attach("c1", &config);
            let (_second, next) = story.attach("c2", &config);
            let port = story.port_of("br0.100");
            assert!(first.reaches("10.1.2.1") && first.reaches(address(&next)), "{suite:?} {keys}");
            assert!(story.world.host().reaches(address(&result)), "{suite:?} {keys}");
            assert_eq!(result["interfaces"][3]["name"], "br0.100", "{suite:?} {keys}");
            let addressed = |link: &str| story.host(&format!("ip -o -4 address show dev {link}"));
            assert!(addressed("br0.100").contains(" 10.1.2.1/24 "), "{suite:?} {keys}");
            assert_eq!(addressed("br0"), "", "{suite:?} {keys}");
            let veths = || story.host("ip -o link show type veth").lines().count();
            let attached = veths();
            let vlans = (story.vlans(&port), story.vlans(host_veth(&result)));
            if suite == Suite::Ours {
                assert_eq!(story.found(&first, &config, &result), "", "{keys}");
                let list = format!("{} list", suite.binary("bridge").display());
                assert!(story.host(&list).contains(" br0     10.1.2.1/24 "), "{keys}: {}", story.host(&list));
            }
            let forwards = story.host("cat /proc/sys/net/ipv4/ip_forward");
            for name in ["c1", "c2"] {
                let del = story.world.plugin_of(suite, "bridge").verb("DEL").env("CNI_CONTAINERID", name);
                let del = del.env("CNI_NETNS", &format!("/run/netns/{name}")).env("CNI_PATH", &story.path);
                del.config(&config).run().success();
            }
            let left = (veths(), addressed("br0.100").contains(" 10.1.2.1/24 "), story.vlans(&port));
            (shape(&result), shape(&next), vlans, attached, forwards, left)
        });
        assert_eq!(ours, theirs, "{keys}: ours and the reference's");
    }
}

#[test]
fn two_vlans_of_a_bridge_have_a_gateway_each() {
    let story = Story::new();
    let config = |id: u8| {
        let mut config = routed(&json!({ "name": format!("n{id}"), "vlan": id, "isDefaultGateway": true }));
        config["ipam"]["ranges"] =
            json!([[{ "subnet": format!("10.1.{id}.0/24") }], [{ "subnet": format!("fd00:{id}::/64") }]]);
        config
    };
    let (first, _) = story.attach("c1", &config(100));
    let (_second, other) = story.attach("c2", &config(200));
    for target in ["10.1.100.1", "fd00:100::1", "10.1.200.1"] {
        assert!(first.reaches(target), "{target}");
    }
    // By the host, which routes between them.
    assert!(first.reaches(address(&other)));
    for id in [100, 200] {
        assert_eq!(story.vlans(&story.port_of(&format!("br0.{id}"))), native(id, Vlans::new()));
    }
}

/// The host receives by the gateway interfaces, not by the bridge.
#[test]
fn a_container_of_two_vlans_is_answered_in_both_under_a_strict_reverse_path_filter_of_the_host() {
    for maker in [Suite::Ours, Suite::Reference] {
        two_vlans_are_answered(maker);
    }
}

/// In networks whose gateways `maker` has made.
fn two_vlans_are_answered(maker: Suite) {
    let before = Story::of(maker);
    let story = before.as_ours();
    story.host("sysctl -q -w net.ipv4.conf.default.rp_filter=1");
    let config = |id: u8| {
        // The kernel chooses between two default routes as it likes.
        let is_default = id != 200;
        let mut config =
            routed(&json!({ "name": format!("n{id}"), "vlan": id, "isDefaultGateway": is_default }));
        config["ipam"]["ranges"] = json!([[{ "subnet": format!("10.1.{id}.0/24") }]]);
        config
    };
    for id in [50, 100, 200] {
        before.attach(&format!("first{id}"), &config(id));
    }
    let (asker, _) = story.attach("asker", &config(50));
    let (both, result) = story.attach("both", &config(100));
    story.call("ADD", &both, &config(200)).env("CNI_IFNAME", "eth1").run().success();
    // What the second one is asked leaves by the first.
    for target in ["10.1.100.3", "10.1.200.3"] {
        assert!(asker.reaches(target), "{maker:?}: {target}");
    }
    assert_eq!(story.found(&both, &config(100), &result), "");
    story.host("sysctl -q -w net.ipv4.conf.br0/100.rp_filter=1");
    assert!(asker.is_cut_off_from("10.1.200.3"));
    let found = story.found(&both, &config(100), &result);
    assert!(found.contains("\"br0.100\" filters reverse paths strictly"), "{found}");
}

#[test]
fn an_add_after_one_that_was_killed_completes_the_gateway() {
    let story = Story::new();
    let config = routed(&json!({ "vlan": 100 }));
    let (_first, _) = story.attach("c1", &config);
    let port = story.port_of("br0.100");
    story.host("ip link set br0.100 down");
    story.host(&format!("ip link set {port} down"));
    story.host(&format!("bridge vlan delete vid 100 dev {port}"));
    let (second, _) = story.attach("c2", &config);
    assert_eq!(story.vlans(&port), native(100, Vlans::new()));
    assert!(second.reaches("10.1.2.1"));
}

#[test]
fn check_names_what_keeps_the_port_of_a_gateway_from_its_frames() {
    let config = routed(&json!({ "vlan": 100 }));
    let story = Story::new();
    let (container, result) = story.attach("c1", &config);
    let port = story.port_of("br0.100");
    let of = format!("of bridge port \"{port}\" of gateway interface \"br0.100\"");
    for (change, back, found) in [
        ("isolated on", "isolated off", format!("isolation {of} is on, not off")),
        ("hairpin on", "hairpin off", format!("hairpin mode {of} is on, not off")),
        ("locked on", "locked off", format!("lock {of} is on, not off")),
        ("flood off", "flood on", format!("flooding of unicast frames {of} is off, not on")),
        ("bcast_flood off", "bcast_flood on", format!("flooding of broadcast frames {of} is off, not on")),
        ("state 0", "state 3", format!("{} does not forward", of.trim_start_matches("of "))),
    ] {
        story.host(&format!("bridge link set dev {port} {change}"));
        assert_eq!(story.found(&container, &config, &result), found, "{change}");
        story.host(&format!("bridge link set dev {port} {back}"));
        assert_eq!(story.found(&container, &config, &result), "", "{back}");
    }
}

#[test]
fn an_add_mends_the_port_of_a_gateway_that_is_there() {
    let config = routed(&json!({ "vlan": 100, "portIsolation": true }));
    for damage in [
        "bridge vlan delete vid 100 dev PORT",
        "bridge vlan add vid 100 dev PORT",
        "bridge vlan add vid 300 dev PORT",
        "ip link set PORT down",
        "ip link set PORT nomaster",
        "bridge link set dev PORT isolated on",
        "bridge link set dev PORT hairpin on",
        "bridge link set dev PORT locked on",
        "bridge link set dev PORT flood off",
        "bridge link set dev PORT bcast_flood off",
        "bridge link set dev PORT state 0",
        "bridge vlan set vid 100 dev PORT state 0",
        "bridge vlan set vid 100 dev PORT state 4",
    ] {
        let story = Story::new();
        let (first, _) = story.attach("c1", &config);
        let port = story.port_of("br0.100");
        story.host(&damage.replace("PORT", &port));
        let (second, result) = story.attach("c2", &config);
        assert_eq!(story.vlans(&port), native(100, Vlans::new()), "after `{damage}`");
        assert_eq!(story.found(&second, &config, &result), "", "after `{damage}`");
        assert!(first.reaches("10.1.2.1") && second.reaches("10.1.2.1"), "after `{damage}`");
    }
}

#[test]
fn an_add_names_the_port_of_a_gateway_interface_that_was_renamed() {
    let config = routed(&json!({ "vlan": 100 }));
    let story = Story::new();
    story.attach("c1", &config);
    let port = story.port_of("br0.100");
    let second = story.world.container("c2");
    let refusal = |renamed: &str| {
        let links = story.host("ip -o link").lines().count();
        let refusal = story.call("ADD", &second, &config).run().error(999);
        assert_eq!(story.host("ip -o link").lines().count(), links, "after {renamed}");
        refusal
    };
    for line in ["ip link set br0.100 down", "ip link set br0.100 name other", "ip link set other up"] {
        story.host(line);
    }
    let told = format!(
        "its bridge port \"{port}\" leads to \"other\", which has to be renamed to \"br0.100\" or deleted"
    );
    assert!(refusal("rename").contains(&told), "{}", refusal("rename"));
    story.host("ip link delete other");
    let result = story.add(&second, &config);
    assert!(second.reaches("10.1.2.1"));
    assert_eq!(story.found(&second, &config, &result), "");
}

/// A trunk through it may be meant to carry a provider's tags.
#[test]
fn check_leaves_it_to_a_person_what_tags_their_own_bridge_knows() {
    let story = Story::new();
    story.host("ip link add br0 type bridge vlan_filtering 1 vlan_protocol 802.1ad");
    let config = network(&json!({ "vlanTrunk": [{ "id": 101 }] }));
    let (container, result) = story.attach("c1", &config);
    assert_eq!(story.found(&container, &config, &result), "");
}

/// The rules of whoever is there are about the hardware address of the one that is gone.
#[test]
fn an_add_that_makes_a_gateway_interface_anew_brings_the_rules_of_the_others_to_it() {
    let config =
        routed(&json!({ "vlan": 100, "ipMasq": true, "ingressPolicy": "same-bridge", "macspoofchk": true }));
    let story = Story::new();
    let (first, result) = story.attach("c1", &config);
    story.host("ip link delete br0.100");
    assert!(first.is_cut_off_from("10.1.2.1"));
    let (second, later) = story.attach("c2", &config);
    assert_eq!(story.found(&first, &config, &result), "");
    assert_eq!(story.found(&second, &config, &later), "");
    assert!(first.reaches("10.1.2.1") && second.reaches("10.1.2.1"));
}

/// Two networks in one VLAN, with a policy each; an ADD knows the configuration of its own.
#[test]
fn a_gateway_interface_that_is_made_anew_is_the_one_that_other_networks_know() {
    let story = Story::new();
    for family in ["ip", "ip6"] {
        story.host(&format!("sysctl -q -w net.bridge.bridge-nf-call-{family}tables=1"));
    }
    let _outside = story.world.outside();
    let config = |number: u8, keys: &Value| {
        let mut config = routed(&json!({
            "name": format!("n{number}"), "vlan": 100, "isDefaultGateway": true, "ipMasq": true,
        }));
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        config["ipam"]["ranges"] = json!([[{
            "subnet": "10.1.2.0/24", "rangeStart": format!("10.1.2.{number}0"), "rangeEnd": format!("10.1.2.{number}9"),
        }]]);
        config
    };
    let (ours, theirs) = (config(1, &json!({})), config(2, &json!({ "macspoofchk": true })));
    let (first, one) = story.attach("c1", &ours);
    let (second, two) = story.attach("c2", &theirs);
    let reaches =
        |container: &Container| container.reaches("10.1.2.1") && container.reaches(Outside::ADDRESS);
    for round in ["remembered", "forgotten"] {
        let mac = story.host("cat /sys/class/net/br0.100/address");
        story.host("ip link delete br0.100");
        assert!(!second.reaches(Outside::ADDRESS), "{round}");
        if round == "forgotten" {
            story.host("nft flush ruleset");
        }
        let (third, three) = story.attach(&format!("c3-{round}"), &ours);
        assert_eq!(story.host("cat /sys/class/net/br0.100/address") == mac, round == "remembered");
        if round == "forgotten" {
            story.attach("c4", &theirs);
            // Until they ask again, they send to the address that is gone.
            for container in [&first, &second] {
                container.run("ip neighbour flush all").success();
            }
        }
        for (container, config, result) in
            [(&first, &ours, &one), (&second, &theirs, &two), (&third, &ours, &three)]
        {
            assert_eq!(story.found(container, config, result), "", "{round}");
            assert!(reaches(container), "{round}: {}", container.name());
        }
    }
}

/// Both ends of its pair are in the host's namespace, so it stays when the bridge goes.
#[test]
fn a_gateway_whose_bridge_was_removed_is_put_on_the_next_one() {
    let config = routed(&json!({ "vlan": 100 }));
    for maker in [Suite::Ours, Suite::Reference] {
        let before = Story::of(maker);
        before.attach("c1", &config);
        let story = before.as_ours();
        story.host("ip link delete br0");
        let (second, result) = story.attach("c2", &config);
        assert!(second.reaches("10.1.2.1"), "{maker:?}");
        assert_eq!(story.found(&second, &config, &result), "", "{maker:?}");
    }
}

#[test]
fn a_gateway_interface_of_the_reference_that_is_down_is_brought_up() {
    let config = routed(&json!({ "vlan": 100 }));
    let reference = Story::of(Suite::Reference);
    reference.attach("c1", &config);
    let story = reference.as_ours();
    story.host("ip link set br0.100 down");
    let (second, result) = story.attach("c2", &config);
    assert!(second.reaches("10.1.2.1"));
    assert_eq!(story.found(&second, &config, &result), "");
}

/// The reference takes any link of that name as well.
#[test]
fn a_gateway_interface_that_a_person_made_on_top_of_the_bridge_serves() {
    for keys in [
        json!({}),
        json!({ "ingressPolicy": "same-bridge", "ipMasq": true }),
        json!({ "acceptForward": true }),
    ] {
        let story = Story::new();
        for line in [
            "ip link add br0 type bridge vlan_filtering 1",
            "ip link set br0 up",
            "bridge vlan add vid 100 dev br0 self",
            "ip link add link br0 name br0.100 type vlan id 100",
            "ip link set br0.100 up",
        ] {
            story.host(line);
        }
        let mut config = routed(&json!({ "vlan": 100 }));
        config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let (first, result) = story.attach("c1", &config);
        assert!(first.reaches("10.1.2.1"), "{keys}");
        assert_eq!(story.found(&first, &config, &result), "", "{keys}");
        story.host("ip link set br0.100 down");
        assert!(story.found(&first, &config, &result).contains("\"br0.100\" is down"), "{keys}");
    }
}

#[test]
fn a_switch_of_a_vlan_has_no_gateway_interface_whatever_is_asked() {
    let [ours, theirs] = [Suite::Ours, Suite::Reference].map(|suite| {
        let story = Story::of(suite);
        let mut config = routed(&json!({ "vlan": 100, "bridge": "br4567890123" }));
        config.as_object_mut().unwrap().remove("ipam");
        let (container, result) = story.attach("c1", &config);
        if suite == Suite::Ours {
            assert_eq!(story.found(&container, &config, &result), "");
        }
        (shape(&result), story.host("ip -o link").lines().count())
    });
    assert_eq!(ours, theirs, "ours and the reference's");
}

#[test]
fn prune_removes_a_bridge_with_the_gateways_of_several_vlans() {
    let story = Story::new();
    let program = story.suite.binary("bridge").display().to_string();
    let prune = || story.world.host().command([program.as_str(), "prune"]).run().success().to_owned();
    let attachments = [100, 200].map(|id| {
        let mut config = routed(&json!({ "name": format!("n{id}"), "vlan": id }));
        config["ipam"]["ranges"] = json!([[{ "subnet": format!("10.1.{id}.0/24") }]]);
        (story.attach(&format!("c{id}"), &config).0, config)
    });
    for (container, config) in &attachments {
        assert_eq!(prune(), "");
        story.call("DEL", container, config).run().success();
    }
    assert_eq!(prune(), "removed bridge br0\n");
    assert_eq!(story.host("ip -o link").lines().count(), 1, "{}", story.host("ip -o link"));
}

#[test]
fn a_bridge_without_filtering_gets_it_where_that_cuts_nobody_off() {
    let story = Story::new();
    story.host("ip link add br0 type bridge");
    let (plain, _) = story.attach("c0", &network(&json!({})));
    assert!(!story.filters("br0"));
    let (first, result) = story.attach("c1", &network(&json!({ "vlan": 100 })));
    let (_second, same) = story.attach("c2", &network(&json!({ "vlan": 100 })));
    let (_third, default) = story.attach("c3", &network(&json!({})));
    assert!(story.filters("br0"));
    assert!(first.reaches(address(&same)) && plain.reaches(address(&default)));
    assert!(plain.is_cut_off_from(address(&result)));
}

#[test]
fn a_bridge_without_filtering_that_others_use_is_refused_untouched() {
    let story = Story::new();
    for line in [
        "ip link add br0 type bridge",
        "ip link add u0 master br0 type veth peer name u1",
        "ip link set u0 up",
    ] {
        story.host(line);
    }
    let container = story.world.container("c1");
    let links = story.host("ip -o link");
    let config = network(&json!({ "vlan": 100 }));
    let refusal = story.call("ADD", &container, &config).run().error(2);
    assert!(refusal.contains("br0") && refusal.contains("u0"), "{refusal}");
    assert_eq!(story.host("ip -o link"), links);
    assert!(!story.filters("br0"));
}

#[test]
fn an_add_that_fails_leaves_neither_gateway_nor_bridge_nor_rules() {
    let story = Story::new();
    let container = story.world.container("c1");
    let mut config = routed(&json!({ "vlan": 100 }));
    // No such route can be: its gateway is on no network of the container's.
    config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.1" }]);
    story.call("ADD", &container, &config).run().failure();
    assert_eq!(story.host("ip -o link").lines().count(), 1, "{}", story.host("ip -o link"));
    assert_eq!(story.host("nft list ruleset"), "");
}

#[test]
fn an_add_that_fails_beside_another_network_leaves_the_bridge_as_it_was() {
    for of_other in [json!({}), json!({ "vlan": 200 })] {
        let story = Story::new();
        let mut other = routed(&json!({ "name": "other" }));
        other.as_object_mut().unwrap().extend(of_other.as_object().unwrap().clone());
        other["ipam"]["ranges"] = json!([[{ "subnet": "10.1.3.0/24" }]]);
        story.attach("other", &other);
        let container = story.world.container("c1");
        let mut config = routed(&json!({ "vlan": 100 }));
        config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.1" }]);
        let state = || {
            let links = story.host("ip -o link").lines().count();
            (links, story.filters("br0"), story.host("bridge vlan"), story.host("nft list ruleset"))
        };
        let before = state();
        story.call("ADD", &container, &config).run().failure();
        assert_eq!(state(), before, "{of_other}");

        // A container of the VLAN needs its gateway.
        let mut second = routed(&json!({ "name": "second", "vlan": 100, "isGateway": false }));
        second["ipam"]["ranges"] = json!([[{ "subnet": "10.1.4.0/24" }]]);
        story.attach("second", &second);
        story.call("ADD", &container, &config).run().failure();
        assert!(story.filters("br0") && story.host("ip -o link").contains("br0.100"), "{of_other}");
    }
}

#[test]
fn check_names_what_somebody_changed_about_the_vlans() {
    let keys = json!({ "vlan": 100, "vlanTrunk": [{ "minID": 200, "maxID": 203 }] });
    let config = routed(&keys);
    for (damage, named) in [
        ("bridge vlan delete vid 100 dev VETH", "VLAN 100"),
        ("bridge vlan delete vid 202 dev VETH", "VLAN 202"),
        ("bridge vlan add vid 100 dev VETH", "VLAN 100"),
        ("bridge vlan add vid 201 untagged dev VETH", "VLAN 201"),
        ("bridge vlan add vid 300 dev VETH", "VLAN 300"),
        ("ip link set br0 type bridge vlan_filtering 0", "br0"),
        ("ip link set br0 type bridge vlan_protocol 802.1ad", "tags of IEEE 802.1Q"),
        ("bridge vlan set vid 202 dev VETH state 0", "VLAN 202 does not forward on port"),
        ("bridge vlan set vid 100 dev PORT state 4", "VLAN 100 does not forward on port"),
        ("bridge vlan delete vid 100 dev PORT", "VLAN 100"),
        ("ip link set PORT nomaster", "br0.100"),
        ("ip link set PORT down", "br0.100"),
        ("ip link set br0.100 down", "br0.100"),
        ("sysctl -w net/ipv6/conf/br0.100/accept_ra=1", "\"br0.100\" accepts router advertisements"),
        ("ip link delete br0.100", "br0.100"),
        ("ip address delete 10.1.2.1/24 dev br0.100", "10.1.2.1"),
    ] {
        let story = Story::new();
        let (container, result) = story.attach("c1", &config);
        assert_eq!(story.found(&container, &config, &result), "");
        let port = story.port_of("br0.100");
        story.host(&damage.replace("VETH", host_veth(&result)).replace("PORT", &port));
        let found = story.found(&container, &config, &result);
        assert!(found.contains(named), "after `{damage}` CHECK said {found:?}");
    }
}

#[test]
fn repair_puts_a_port_back_into_its_vlans() {
    let config = routed(&json!({ "vlan": 100, "vlanTrunk": [{ "minID": 200, "maxID": 203 }] }));
    let story = Story::new();
    let (container, result) = story.attach("c1", &config);
    story.world.write("/run/net.d/net.conf", config.to_string());
    let port = host_veth(&result);
    for damage in ["delete vid 100", "delete vid 202", "add vid 201 untagged", "add vid 300"] {
        story.host(&format!("bridge vlan {damage} dev {port}"));
    }
    let vlans = story.vlans(port);
    story.host(&format!("bridge vlan set vid 203 dev {port} state 4"));
    let repair = || story.repair();
    let said = repair().success().to_owned();
    for id in [100, 201, 202, 203, 300] {
        assert!(said.contains(&format!("VLAN {id} ")), "{said}");
    }
    assert_ne!(story.vlans(port), vlans);
    assert_eq!(story.found(&container, &config, &result), "");

    // New on a bridge, a port is in that one's default VLAN.
    let vlans = story.vlans(port);
    story.host(&format!("ip link set {port} nomaster"));
    let said = repair().success().to_owned();
    assert_eq!(said, format!("repaired: host veth \"{port}\" was not a port of bridge \"br0\"\n"));
    assert_eq!(story.vlans(port), vlans);
    assert_eq!(story.found(&container, &config, &result), "");
    story.host("ip link delete br0");
    assert_eq!(repair().success(), "");
}

/// Ways to take a port of VLAN 7 out of it, or it out of a port.
const OUT_OF_VLAN_7: [&str; 5] = [
    "bridge vlan delete vid 7 dev PORT",
    "bridge vlan add vid 7 dev PORT",
    "bridge vlan add vid 300 pvid untagged dev PORT",
    "bridge vlan set vid 7 dev PORT state 0",
    "bridge vlan set vid 7 dev PORT state 4",
];

/// The same of the bridge itself.
fn of_bridge(damage: &str) -> String {
    let itself = if damage.contains(" set ") { "" } else { " self" };
    damage.replace("PORT", "br0") + itself
}

/// The network names no VLAN; the bridge has one for whoever is in no other.
#[test]
fn a_port_that_was_taken_out_of_the_vlan_of_its_bridge_is_named_and_put_back() {
    for (number, damage) in OUT_OF_VLAN_7.into_iter().enumerate() {
        let keys = if number % 2 == 0 { json!({}) } else { json!({ "vlanTrunk": [] }) };
        let why = format!("{keys} after `{damage}`");
        let story = Story::new();
        story.host("ip link add br0 type bridge vlan_filtering 1 vlan_default_pvid 7");
        let config = network(&keys);
        let (container, result) = story.attach("c1", &config);
        let (_other, peer) = story.attach("c2", &config);
        story.world.write("/run/net.d/net.conf", config.to_string());
        let port = host_veth(&result);
        let said = story.repair();
        assert_eq!((story.found(&container, &config, &result).as_str(), said.success()), ("", ""), "{why}");
        // Others are a person's business.
        story.host(&format!("bridge vlan add vid 20 dev {port}"));
        assert_eq!(story.found(&container, &config, &result), "", "{why}");
        story.host(&damage.replace("PORT", port));
        assert!(container.is_cut_off_from(address(&peer)), "{why}");
        let found = story.found(&container, &config, &result);
        assert!(
            found.starts_with("VLAN 7 ") && found.ends_with(&format!(" port \"{port}\"")),
            "{why}: {found}"
        );
        let said = story.repair();
        assert_eq!(said.success(), format!("repaired: {found}\n"), "{why}");
        assert_eq!(story.found(&container, &config, &result), "", "{why}");
        assert!(container.reaches(address(&peer)), "{why}");
        assert_eq!(story.vlans(port)[&20], Carried::Tagged, "{why}");
    }
}

#[test]
fn a_gateway_that_was_taken_out_of_the_vlan_of_its_bridge_is_named_and_put_back_by_the_next_add() {
    for damage in OUT_OF_VLAN_7 {
        let story = Story::new();
        story.host("ip link add br0 type bridge vlan_filtering 1 vlan_default_pvid 7");
        let config = routed(&json!({}));
        let (first, result) = story.attach("c1", &config);
        assert_eq!(story.found(&first, &config, &result), "", "after `{damage}`");
        story.host(&of_bridge(damage));
        assert!(first.is_cut_off_from("10.1.2.1"), "after `{damage}`");
        let found = story.found(&first, &config, &result);
        assert!(
            found.starts_with("VLAN 7 ") && found.ends_with(" bridge \"br0\""),
            "after `{damage}`: {found}"
        );
        let (second, later) = story.attach("c2", &config);
        for (container, result) in [(&first, &result), (&second, &later)] {
            assert_eq!(story.found(container, &config, result), "", "after `{damage}`");
            assert!(container.reaches("10.1.2.1"), "after `{damage}`");
        }
    }
}

/// An ADD would leave the port as it is.
#[test]
fn check_leaves_the_vlans_to_a_person_whose_bridge_has_none_of_its_own() {
    for (bridge, line) in [
        ("vlan_filtering 1 vlan_default_pvid 0", "bridge vlan add vid 20 pvid untagged dev PORT"),
        ("vlan_filtering 1 vlan_default_pvid 0", "bridge vlan add vid 20 dev PORT"),
        ("vlan_filtering 0", "bridge vlan delete vid 1 dev PORT"),
    ] {
        let story = Story::new();
        story.host(&format!("ip link add br0 type bridge {bridge}"));
        let config = routed(&json!({}));
        let (container, result) = story.attach("c1", &config);
        story.host(&line.replace("PORT", host_veth(&result)));
        story.host(&of_bridge(line));
        story.world.write("/run/net.d/net.conf", config.to_string());
        let vlans = (story.vlans(host_veth(&result)), story.vlans("br0"));
        story.attach("c2", &config);
        let said = story.repair();
        assert_eq!(
            (story.found(&container, &config, &result).as_str(), said.success()),
            ("", ""),
            "{bridge}"
        );
        assert_eq!((story.vlans(host_veth(&result)), story.vlans("br0")), vlans, "{bridge}");
    }
}

#[test]
fn check_accepts_what_the_reference_wired() {
    let reference = Story::of(Suite::Reference);
    for (name, keys) in [
        ("c1", json!({ "vlan": 100, "vlanTrunk": [{ "id": 101 }] })),
        ("c2", json!({ "vlan": 200, "preserveDefaultVlan": true })),
        ("c3", json!({ "isGateway": false })),
        ("c4", json!({ "isGateway": false, "vlanTrunk": [] })),
    ] {
        let config = routed(&keys);
        let (container, result) = reference.attach(name, &config);
        assert_eq!(reference.as_ours().found(&container, &config, &result), "", "{keys}");
    }
}

#[test]
fn the_network_with_a_vlan_that_podman_generates_has_it() {
    let list: Value =
        serde_json::from_str(include_str!("../fixtures/podman-4.3-networks/vl.conflist")).unwrap();
    let mut config = list["plugins"][0].clone();
    config["cniVersion"] = list["cniVersion"].clone();
    config["name"] = list["name"].clone();
    let story = Story::new();
    let (first, result) = story.attach("c1", &config);
    assert_eq!(story.vlans(host_veth(&result)), native(7, Vlans::new()));
    assert_eq!(story.found(&first, &config, &result), "");
    assert!(first.reaches("10.89.2.1"));
}
