//! Bad input is refused with the right code and the name of what is wrong, and leaves everything as it was.

use integration_tests::{Container, PluginCall, Snapshot, World};
use serde_json::{Value, json};

/// A world with a container already attached, so that there is something that must not change.
struct Story {
    world: World,
    container: Container,
    before: Snapshot,
}

fn bridge_config() -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": true, "ipMasq": true,
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.2.0/24" }]] }
    })
}

/// A chained call needs the result of the plugin before.
fn dns_config(container: &Container) -> Value {
    json!({
        "cniVersion": "1.1.0", "name": "n", "type": "alias-dns",
        "prevResult": {
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "br0", "mac": "02:00:00:00:00:01" },
                { "name": "veth0", "mac": "02:00:00:00:00:02" },
                { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": container.netns_path() }
            ],
            "ips": [{ "address": "10.1.2.77/24", "gateway": "10.1.2.1", "interface": 2 }]
        }
    })
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let resident = world.container("resident");
        world.plugin("bridge").verb("ADD").container(&resident).config(&bridge_config()).run().success();
        let container = world.container("c1");
        let before = Snapshot::of(&world);
        Self { world, container, before }
    }

    /// `config` with the value at `pointer` (RFC 6901) replaced.
    fn with(config: &Value, pointer: &str, value: Value) -> Value {
        let mut config = config.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        config
    }

    /// The call fails with `code`, `msg` contains every part of `said`, nothing has changed, neither on the host nor
    /// in the container.
    #[track_caller]
    fn refuses(&self, call: PluginCall, code: u32, said: &[&str]) {
        let output = call.run();
        assert_eq!(output.status, 1, "must be refused, with {said:?} named: {output}");
        let msg = output.error(code);
        for part in said {
            assert!(msg.contains(part), "{part:?} is not named: {output}");
        }
        self.before.assert_unchanged(&self.world);
        let links = self.container.run("ip -o link show");
        assert_eq!(links.success().lines().count(), 1, "left in the container: {links}");
    }

    fn add(&self, plugin: &str, config: &Value) -> PluginCall {
        self.world.plugin(plugin).verb("ADD").container(&self.container).config(config)
    }
}

#[test]
fn bridge_names_the_wrong_key_and_value() {
    let story = Story::new();
    let subnet = "/ipam/ranges/0/0/subnet";
    let cases = [
        ("/mtu", json!("1500"), 7, ["mtu", "1500"]),
        ("/mtu", json!(-1), 7, ["mtu", "-1"]),
        ("/isGateway", json!("true"), 7, ["isGateway", "true"]),
        ("/vlan", json!(5000), 7, ["vlan", "5000"]),
        ("/bridge", json!(7), 7, ["bridge", "7"]),
        ("/bridge", json!("br%d"), 7, ["bridge", "br%d"]),
        ("/bridge", json!("all"), 7, ["bridge", "all"]),
        ("/mtu", json!("1500"), 7, ["mtu", "a whole number from 0"]),
        ("/bridge", json!("a-name-longer-than-fifteen"), 7, ["bridge", "a-name-longer-than-fifteen"]),
        ("/ingressPolicy", json!("closed"), 7, ["ingressPolicy", "closed"]),
        ("/ipMasqBackend", json!("ebtables"), 7, ["ipMasqBackend", "ebtables"]),
        ("/runtimeConfig", json!({ "mac": "zz:00" }), 7, ["mac", "zz:00"]),
        ("/ipam", json!("host-local-ipam"), 7, ["ipam", "host-local-ipam"]),
        (subnet, json!("10.1.2.0"), 7, ["ipam.ranges[0][0].subnet", "10.1.2.0"]),
        (subnet, json!("10.1.2.0/33"), 7, ["ipam.ranges[0][0].subnet", "10.1.2.0/33"]),
        (subnet, json!(42), 7, ["ipam.ranges[0][0].subnet", "42"]),
        ("/ipam/routes", json!([{ "dst": "nowhere" }]), 7, ["ipam.routes[0].dst", "nowhere"]),
    ];
    for (pointer, value, code, said) in cases {
        let config = Story::with(&bridge_config(), pointer, value);
        story.refuses(story.add("bridge", &config), code, &said);
    }
}

#[test]
fn a_bridge_that_the_call_would_have_made_is_not_left_either() {
    let story = Story::new();
    let config = Story::with(&bridge_config(), "/bridge", json!("br-new"));
    let config = Story::with(&config, "/name", json!("other"));
    let full = Story::with(&config, "/ipam/ranges/0/0/subnet", json!("10.9.0.0/33"));
    story.refuses(story.add("bridge", &full), 7, &["ipam.ranges[0][0].subnet"]);
    let twice = Story::with(
        &config,
        "/ipam/routes",
        json!([{ "dst": "10.5.0.0/16", "gw": "10.1.2.1" }, { "dst": "10.5.0.0/16", "gw": "10.1.2.1" }]),
    );
    let output = story.add("bridge", &twice).run();
    assert_eq!(output.status, 1, "{output}");
    story.before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
}

#[test]
fn bridge_refuses_namespaces_and_interfaces_that_are_none() {
    let story = Story::new();
    let call = || story.add("bridge", &bridge_config());
    let gone = call().env("CNI_NETNS", "/run/netns/gone").run();
    let msg = gone.json()["msg"].to_string();
    assert!(gone.status == 1 && msg.contains("/run/netns/gone"), "{gone}");
    story.before.assert_unchanged(&story.world);

    let file = call().env("CNI_NETNS", "/etc/hosts").run();
    let msg = file.json()["msg"].to_string();
    assert!(file.status == 1 && msg.contains("/etc/hosts"), "{file}");
    story.before.assert_unchanged(&story.world);

    // Nobody will ever write to it.
    story.world.host().run("mkfifo /run/fifo").success();
    story.refuses(call().env("CNI_NETNS", "/run/fifo"), 8, &["CNI_NETNS", "/run/fifo"]);
    call().verb("DEL").env("CNI_NETNS", "/run/fifo").run().success();
    story.before.assert_unchanged(&story.world);

    story.refuses(call().env("CNI_NETNS", "/proc/self/ns/net"), 8, &["should not be the same"]);

    // What the path named when the container was attached is gone, and somebody else has its number.
    call().run().success();
    call().verb("DEL").env("CNI_NETNS", "/proc/self/ns/net").run().error(8);
    story.before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);

    // No interface ever had such a name, so nobody has to look for it.
    let mut config = bridge_config();
    config["prevResult"] =
        json!({ "cniVersion": "1.0.0", "interfaces": [{ "name": "an-interface-name-too-long" }] });
    call().verb("DEL").config(&config).run().success();

    // The kernel would make an `eth0` of the first, and the answer would be wrong.
    for ifname in ["eth%d", "all", "default"] {
        story.refuses(call().env("CNI_IFNAME", ifname), 4, &["CNI_IFNAME", ifname]);
    }

    let taken = call().env("CNI_IFNAME", "lo").run();
    let msg = taken.json()["msg"].to_string();
    assert!(taken.status == 1 && taken.json()["code"] != 999 && msg.contains("lo"), "{taken}");
    story.before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
}

#[test]
fn bridge_refuses_a_bridge_name_that_is_something_else() {
    let story = Story::new();
    story.world.host().run("ip link add taken0 type veth peer name taken1").success();
    let before = Snapshot::of(&story.world);
    let config = Story::with(&bridge_config(), "/bridge", json!("taken0"));
    let output = story.add("bridge", &config).run();
    assert!(output.status == 1 && output.json()["msg"].to_string().contains("taken0"), "{output}");
    before.assert_unchanged_but(&story.world, &Snapshot::OF_THE_ALLOCATOR);
}

#[test]
fn bridge_refuses_a_missing_allocator_by_name() {
    let story = Story::new();
    let config = Story::with(&bridge_config(), "/ipam/type", json!("no-such-ipam"));
    let output = story.add("bridge", &config).run();
    assert!(output.status == 1 && output.json()["msg"].to_string().contains("no-such-ipam"), "{output}");
    assert_ne!(output.json()["code"], 999, "{output}");
    story.before.assert_unchanged(&story.world);
    let config = Story::with(&bridge_config(), "/ipam/type", json!("../bin/evil"));
    let output = story.add("bridge", &config).run();
    assert!(output.status == 1 && output.json()["msg"].to_string().contains("../bin/evil"), "{output}");
    story.before.assert_unchanged(&story.world);
}

#[test]
fn the_allocator_names_the_wrong_key_and_value() {
    let story = Story::new();
    let range = |range: Value| json!([[range]]);
    let cases = [
        ("/ipam/ranges", json!([]), 7, vec!["ipam.ranges"]),
        ("/ipam/ranges", json!("10.1.2.0/24"), 7, vec!["ipam.ranges", "10.1.2.0/24"]),
        ("/ipam/ranges", range(json!({})), 7, vec!["ipam.ranges[0][0].subnet"]),
        (
            "/ipam/ranges",
            range(json!({ "subnet": "10.1.2.7/24" })),
            7,
            vec!["ipam.ranges[0][0].subnet", "10.1.2.0"],
        ),
        (
            "/ipam/ranges",
            range(json!({ "subnet": "10.1.2.0/24", "rangeStart": "10.1.3.1" })),
            7,
            vec!["ipam.ranges[0][0].rangeStart", "10.1.3.1"],
        ),
        (
            "/ipam/ranges",
            range(json!({ "subnet": "10.1.2.0/24", "gateway": "10.9.9.9" })),
            7,
            vec!["ipam.ranges[0][0].gateway", "10.9.9.9"],
        ),
        ("/ipam/dataDir", json!(7), 7, vec!["ipam.dataDir", "7"]),
        ("/args", json!({ "cni": { "ips": ["10.99.0.1"] } }), 7, vec!["10.99.0.1"]),
    ];
    for (pointer, value, code, said) in cases {
        let config = Story::with(&bridge_config(), pointer, value);
        story.refuses(story.add("host-local-ipam", &config), code, &said);
        story.refuses(story.add("bridge", &config), code, &said);
    }
    let requested = story.add("host-local-ipam", &bridge_config()).env("CNI_ARGS", "IP=10.1.2.2");
    let output = requested.run();
    assert!(output.json()["msg"].to_string().contains("10.1.2.2"), "{output}");
    story.before.assert_unchanged(&story.world);
    story.refuses(story.add("host-local-ipam", &bridge_config()).env("CNI_ARGS", "IP"), 4, &["IP"]);
}

#[test]
fn a_full_range_is_said_and_leaves_nothing() {
    let world = World::new();
    let config = Story::with(&bridge_config(), "/ipam/ranges/0/0/subnet", json!("10.1.2.0/30"));
    let (first, second) = (world.container("first"), world.container("second"));
    world.plugin("bridge").verb("ADD").container(&first).config(&config).run().success();
    let before = Snapshot::of(&world);
    let output = world.plugin("bridge").verb("ADD").container(&second).config(&config).run();
    assert_eq!(output.status, 1, "{output}");
    assert_ne!(output.json()["code"], 999, "{output}");
    assert!(output.json()["msg"].to_string().contains("10.1.2."), "{output}");
    before.assert_unchanged(&world);
    assert_eq!(second.run("ip -o link").success().lines().count(), 1);
}

#[test]
fn alias_dns_names_the_wrong_key_and_value() {
    let story = Story::new();
    let config = dns_config(&story.container);
    let cases = [
        ("/ttl", json!("soon"), 7, vec!["ttl", "soon"]),
        ("/domainName", json!("bad name"), 7, vec!["domainName", "bad name"]),
        ("/upstreams", json!(["nowhere"]), 7, vec!["upstreams[0]", "nowhere"]),
        ("/runtimeConfig", json!({ "aliases": 7 }), 7, vec!["runtimeConfig.aliases", "7"]),
        (
            "/runtimeConfig",
            json!({ "aliases": ["bad alias"] }),
            7,
            vec!["runtimeConfig.aliases", "bad alias"],
        ),
        (
            "/runtimeConfig",
            json!({ "links": ["mysql:bad alias"] }),
            7,
            vec!["runtimeConfig.links", "bad alias"],
        ),
        ("/prevResult/ips/0/address", json!("10.1.2.77"), 7, vec!["prevResult.ips[0].address", "10.1.2.77"]),
    ];
    for (pointer, value, code, said) in cases {
        story.refuses(story.add("alias-dns", &Story::with(&config, pointer, value)), code, &said);
    }
    let mut first = config.clone();
    first.as_object_mut().unwrap().remove("prevResult");
    story.refuses(story.add("alias-dns", &first), 7, &["prevResult"]);
    let no_gateway =
        Story::with(&config, "/prevResult/ips", json!([{ "address": "10.1.2.77/24", "interface": 2 }]));
    story.refuses(story.add("alias-dns", &no_gateway), 7, &["gateway"]);
}
