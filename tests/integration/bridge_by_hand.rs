//! What a person types: `bridge list`, `show`, `repair` and `prune`, compared with what the kernel says.

use integration_tests::{Attachment, Container, Network, Output, Suite, World};
use serde_json::{Value, json};

/// Two containers on the network `net`, configured where a person's runtime would have it.
struct Story {
    world: World,
    network: Network,
    containers: Vec<Container>,
    path: String,
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let path = world.install_plugins();
        let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [{
            "type": "bridge", "bridge": "br-net", "isDefaultGateway": true, "ipMasq": true,
            "ingressPolicy": "same-bridge",
            "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }]] },
        }] });
        world.write("/run/net.d/net.conflist", list.to_string());
        let network = Network::new(&world, list);
        let containers: Vec<Container> = ["one", "two"].map(|name| world.container(name)).into();
        for container in &containers {
            network.attach(container);
        }
        Self { world, network, containers, path }
    }

    fn bridge(&self, arguments: &[&str]) -> Output {
        let program = Suite::Ours.binary("bridge").display().to_string();
        let command =
            self.world.host().command(std::iter::once(program.as_str()).chain(arguments.iter().copied()));
        command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &self.path).run()
    }

    /// A value that `ip -json` shows of a link on the host.
    fn kernel(&self, link: &str, key: &str) -> Value {
        let shown = self.world.host().run(&format!("ip -json link show dev {link}")).json();
        shown[0][key].clone()
    }
}

#[test]
fn list_and_show_say_what_the_kernel_says() {
    let story = Story::new();
    let listed = story.bridge(&["list", "--json"]).json();
    assert_eq!(listed["networks"].as_array().map(Vec::len), Some(1), "{listed}");
    let shown = story.bridge(&["show", "net", "--json"]).json();
    assert_eq!(shown, listed["networks"][0]);
    assert_eq!(shown["bridge"]["mac"], story.kernel("br-net", "address"));
    assert_eq!(shown["bridge"]["mtu"], story.kernel("br-net", "mtu"));
    assert_eq!(shown["bridge"]["addresses"], json!(["10.1.0.1/16"]));
    for (index, container) in story.containers.iter().enumerate() {
        let attachment = &shown["attachments"][index];
        assert_eq!(attachment["containerID"], container.name());
        let inside = container.run("ip -json link show dev eth0").json();
        assert_eq!(attachment["mac"], inside[0]["address"]);
        assert_eq!(attachment["addresses"], json!([format!("10.1.0.{}/16", index + 2)]));
        assert_eq!((&attachment["state"], &attachment["rules"]), (&json!("up"), &json!(true)));
        let host_veth = attachment["hostVeth"].as_str().unwrap();
        assert_eq!(story.kernel(host_veth, "master"), "br-net");
    }
    let text = story.bridge(&["show", "net"]).success().to_owned();
    for part in ["br-net", "10.1.0.1/16", "one eth0 (up)", "two eth0 (up)", "10.1.0.3/16"] {
        assert!(text.contains(part), "no {part} in {text}");
    }
    story.containers[0].run("ip link set eth0 down").success();
    let shown = story.bridge(&["show", "net", "--json"]).json();
    assert_ne!(shown["attachments"][0]["state"], "up");
    story.bridge(&["show", "nothing"]).failure();
}

#[test]
fn the_graph_has_every_attachment_once() {
    let story = Story::new();
    let graph = story.bridge(&["show", "net", "--dot"]).success().to_owned();
    assert!(graph.starts_with("graph \"net\" {") && graph.contains("br-net"), "{graph}");
    for container in &story.containers {
        assert_eq!(graph.matches(&format!("label=\"{}\"", container.name())).count(), 1, "{graph}");
    }
    assert_eq!(graph.matches("\"br-net\" -- ").count(), 2, "{graph}");
    // It is the only network, so all are the same.
    let all = |format: &str| story.bridge(&["show", format]).success().to_owned();
    assert_eq!(all("--dot"), graph);
    assert_eq!(story.bridge(&["show"]).success(), story.bridge(&["show", "net"]).success());
    assert_eq!(all("--json"), story.bridge(&["list", "--json"]).success());
}

#[test]
fn show_tells_policy_rules_and_names() {
    let story = Story::new();
    let shown = story.bridge(&["show", "net", "--json"]).json();
    assert_eq!(shown["ingressPolicy"], "same-bridge");
    let policy = json!({
        "ipMasq": true, "ipMasqBackend": "nftables", "ingressPolicy": "same-bridge", "acceptForward": false,
        "macspoofchk": false, "raGuard": true,
    });
    assert_eq!(shown["attachments"][0]["policy"], policy);
    assert_eq!(shown["attachments"][0]["names"], json!([]));

    let named = Network::example(&story.world, "testnet");
    let container = story.world.container("named");
    named.attach_as(&container, &integration_tests::Attachment::of(&container).aliases(&["centos-1"]));
    let shown = story.bridge(&["show", "testnet", "--json"]).json();
    let names = shown["attachments"][0]["names"].to_string();
    assert!(names.contains("\"named\"") || names.contains("\"centos-1\""), "{shown}");
    assert!(story.bridge(&["show", "testnet"]).success().contains("centos-1"));
    assert!(story.bridge(&["show", "testnet", "--dot"]).success().contains("centos-1"));
}

#[test]
fn show_names_the_chain_of_others_that_drops() {
    let story = Story::new();
    let obstacles = || story.bridge(&["show", "net", "--json"]).json()["obstacles"].clone();
    assert_eq!(obstacles(), json!([]));
    story.world.host().run("iptables -P FORWARD DROP").success();
    assert_eq!(obstacles(), json!(["ip filter FORWARD: policy drop"]));
    assert!(story.bridge(&["show", "net"]).success().contains("dropped by ip filter FORWARD"));
    for direction in ["-i", "-o"] {
        story.world.host().run(&format!("iptables -I FORWARD {direction} br-net -j ACCEPT")).success();
    }
    assert_eq!(obstacles(), json!([]));
}

#[test]
fn repair_brings_the_flushed_rules_back() {
    let story = Story::new();
    let rules = || story.world.host().run("nft -s list ruleset").success().to_owned();
    let count = |text: &str| text.matches("net/").count();
    let before = rules();
    story.world.host().run("nft flush ruleset").success();
    assert_eq!(story.bridge(&["show", "net", "--json"]).json()["attachments"][0]["rules"], json!(false));
    assert!(story.bridge(&["repair", "net"]).success().contains("repaired: "));
    assert_eq!(count(&rules()), count(&before));
    assert_eq!(story.bridge(&["repair"]).success(), "");
    for container in &story.containers {
        story.network.check(&integration_tests::Attachment::of(container)).unwrap();
    }
}

/// What libcni reads: lists before single configurations, each by name, and no copies that an editor keeps.
#[test]
fn repair_goes_by_the_configuration_that_runtimes_read() {
    let story = Story::new();
    let plugin = |policy: &str| {
        json!({
            "type": "bridge", "bridge": "br-net", "isDefaultGateway": true, "ipMasq": true,
            "ingressPolicy": policy,
            "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }]] },
        })
    };
    let mut single = plugin("");
    single
        .as_object_mut()
        .unwrap()
        .extend([("cniVersion".into(), json!("1.0.0")), ("name".into(), json!("net"))]);
    story.world.write("/run/net.d/00-single.conf", single.to_string());
    let open = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [plugin("")] }).to_string();
    // More than one, since the order of a directory's entries is nobody's choice.
    for copy in
        ["00-net", "10-copy.bak", "net.conflist.bak", "net.conflist~", "net.conflist.dpkg-old", "z.conflist"]
    {
        story.world.write(format!("/run/net.d/{copy}"), open.clone());
    }
    assert_eq!(story.bridge(&["repair", "net"]).success(), "");
    assert_eq!(story.bridge(&["show", "net", "--json"]).json()["ingressPolicy"], json!("same-bridge"));
    for container in &story.containers {
        story.network.check(&Attachment::of(container)).unwrap();
    }
}

#[test]
fn repair_needs_no_cni_path_where_the_ipam_plugin_stands_beside_it() {
    let story = Story::new();
    story.world.host().run("nft flush ruleset").success();
    let program = Suite::Ours.binary("bridge").display().to_string();
    let command = story.world.host().command([program.as_str(), "repair"]);
    assert!(command.env("NETCONFPATH", "/run/net.d").run().success().contains("repaired: "));
    for container in &story.containers {
        story.network.check(&Attachment::of(container)).unwrap();
    }
    // An empty variable is none.
    let command = story.world.host().command([program.as_str(), "repair"]);
    let elsewhere = command.env("NETCONFPATH", "").run();
    assert!(elsewhere.stderr.contains("/etc/cni/net.d"), "{elsewhere}");
}

#[test]
fn repair_passes_over_a_network_without_a_configuration_and_says_so() {
    let story = Story::new();
    let other = json!({ "cniVersion": "1.0.0", "name": "alone", "plugins": [{
        "type": "bridge", "bridge": "br-alone", "isGateway": true, "ingressPolicy": "isolated",
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.2.0.0/16" }]] },
    }] });
    let other = Network::new(&story.world, other);
    let alone = story.world.container("alone");
    other.attach(&alone);
    story.world.host().run("nft flush ruleset").success();

    let repaired = story.bridge(&["repair"]);
    assert_eq!(repaired.status, 1, "{}{}", repaired.stdout, repaired.stderr);
    assert!(repaired.stdout.contains("repaired: "), "{}", repaired.stdout);
    let left = "bridge: no configuration of network \"alone\" with a bridge in /run/net.d\n";
    assert_eq!(repaired.stderr, left);
    for container in &story.containers {
        story.network.check(&Attachment::of(container)).unwrap();
    }
    other.check(&Attachment::of(&alone)).unwrap_err();
}

#[test]
fn repair_makes_a_port_deaf_to_routers_again() {
    let story = Story::new();
    let ports = story.world.host().run("ls /sys/class/net/br-net/brif").success().to_owned();
    let port = ports.lines().next().unwrap();
    story.world.host().run(&format!("sysctl -q -w net.ipv6.conf.{port}.accept_ra=1")).success();
    let repaired = format!("repaired: host veth \"{port}\" accepted router advertisements\n");
    assert_eq!(story.bridge(&["repair", "net"]).success(), repaired);
    assert_eq!(story.bridge(&["repair"]).success(), "");
}

#[test]
fn repair_has_a_port_treat_frames_as_the_network_wants() {
    let story = Story::new();
    let ports = story.world.host().run("ls /sys/class/net/br-net/brif").success().to_owned();
    let port = ports.lines().next().unwrap();
    for (change, was) in [
        ("hairpin on", "hairpin mode of host veth \"PORT\" was on"),
        ("isolated on", "isolation of host veth \"PORT\" was on"),
        ("locked on", "lock of host veth \"PORT\" was on"),
        ("flood off", "flooding of unicast frames of host veth \"PORT\" was off"),
        ("mcast_flood off", "flooding of multicast frames of host veth \"PORT\" was off"),
        ("bcast_flood off", "flooding of broadcast frames of host veth \"PORT\" was off"),
        ("state 0", "bridge port \"PORT\" did not forward"),
        // Listening.
        ("state 1", "bridge port \"PORT\" did not forward"),
    ] {
        story.world.host().run(&format!("bridge link set dev {port} {change}")).success();
        let repaired = format!("repaired: {}\n", was.replace("PORT", port));
        assert_eq!(story.bridge(&["repair", "net"]).success(), repaired, "{change}");
        assert_eq!(story.bridge(&["repair"]).success(), "", "{change}");
    }
}

/// Whoever removes a bridge leaves the containers' ports without one; the next ADD makes another.
#[test]
fn repair_puts_ports_back_onto_the_bridge() {
    let story = Story::new();
    let host = |line: &str| story.world.host().run(line).success().to_owned();
    let ports: Vec<String> = host("ls /sys/class/net/br-net/brif").lines().map(str::to_owned).collect();
    let attachments: Vec<Attachment> = story.containers.iter().map(Attachment::of).collect();
    let [one, two] = [&story.containers[0], &story.containers[1]];
    let whole = |after: &str| {
        for attachment in &attachments {
            story.network.check(attachment).unwrap_or_else(|error| panic!("after {after}: {error}"));
        }
        assert!(one.reaches("10.1.0.3") && two.reaches("10.1.0.1"), "after {after}");
        assert_eq!(story.bridge(&["repair"]).success(), "", "after {after}");
    };
    let port = &ports[0];
    for (line, was) in [
        ("down", "host veth \"PORT\" was down"),
        ("nomaster", "host veth \"PORT\" was not a port of bridge \"br-net\""),
    ] {
        host(&format!("ip link set {port} {line}"));
        let repaired = format!("repaired: {}\n", was.replace("PORT", port));
        assert_eq!(story.bridge(&["repair", "net"]).success(), repaired);
        whole(line);
    }

    host("ip link delete br-net");
    assert_eq!(story.bridge(&["repair"]).success(), "", "there is no bridge");
    let three = story.world.container("three");
    story.network.attach(&three);
    assert!(three.is_cut_off_from("10.1.0.2"));
    let repaired = story.bridge(&["repair"]).success().to_owned();
    for port in &ports {
        assert!(repaired.contains(&format!("\"{port}\" was not a port of bridge \"br-net\"")), "{repaired}");
    }
    assert!(three.reaches("10.1.0.2"));
}

#[test]
fn the_bridge_is_deaf_to_routers_again_with_the_next_add_and_with_repair() {
    let story = Story::new();
    let believe =
        || story.world.host().run("sysctl -q -w net.ipv6.conf.br-net.accept_ra=2").success().to_owned();
    believe();
    let named = story.network.check(&Attachment::of(&story.containers[0])).unwrap_err();
    assert!(named.msg.contains("bridge \"br-net\" accepts router advertisements"), "{named}");
    let three = story.world.container("three");
    story.network.attach(&three);
    for container in story.containers.iter().chain([&three]) {
        story.network.check(&Attachment::of(container)).unwrap();
    }
    believe();
    let repaired = "repaired: \"br-net\" accepted router advertisements\n";
    assert_eq!(story.bridge(&["repair", "net"]).success(), repaired);
    assert_eq!(story.bridge(&["repair"]).success(), "");
}

/// A policy that somebody has set by hand, and rules that he has flushed.
#[test]
fn the_next_add_brings_chains_of_ours_back_to_what_they_are() {
    let story = Story::new();
    for (by_hand, name) in [
        ("nft add chain bridge cni-ra-guard prerouting { policy drop; }", "three"),
        ("nft add chain inet cni-bridge forward { policy drop; }", "four"),
        ("nft flush chain inet cni-bridge postrouting", "five"),
    ] {
        story.world.host().command(by_hand.split(' ')).run().success();
        story.network.check(&Attachment::of(&story.containers[0])).unwrap_err();
        let newcomer = story.world.container(name);
        story.network.attach(&newcomer);
        for container in story.containers.iter().chain([&newcomer]) {
            story.network.check(&Attachment::of(container)).unwrap();
        }
        story.network.detach(&newcomer);
    }
}

#[test]
fn prune_removes_what_nobody_uses_and_only_that() {
    let story = Story::new();
    story.world.host().run("ip link add br-foreign type bridge").success();
    assert_eq!(story.bridge(&["prune"]).success(), "");
    for container in &story.containers {
        story.network.detach(container);
    }
    // The kernel would delete it with the bridge.
    story.world.host().run("ip link add on-top link br-net type macvlan").success();
    assert_eq!(story.bridge(&["prune"]).success(), "");
    story.world.host().run("ip link delete on-top").success();
    assert_eq!(story.bridge(&["prune"]).success(), "removed bridge br-net\n");
    let left = story.world.host().run("ip -br link show type bridge").success().to_owned();
    assert!(left.starts_with("br-foreign") && left.lines().count() == 1, "{left}");
}

#[test]
fn who_has_read_enough_of_the_output_is_told_no_error() {
    let story = Story::new();
    let program = Suite::Ours.binary("bridge").display().to_string();
    // A pipe that can be written to and has no reader.
    let script = "mkfifo /run/pipe && exec 4<>/run/pipe 3>/run/pipe 4<&- && exec \"$0\" list >&3";
    let output = story.world.host().command(["sh", "-c", script, &program]).run();
    assert_eq!((output.success(), output.stderr.as_str()), ("", ""));
}

#[test]
fn without_the_rights_the_reason_is_said_once() {
    let story = Story::new();
    let program = Suite::Ours.binary("bridge").display().to_string();
    for verb in ["list", "show", "repair", "prune"] {
        let argv = ["setpriv", "--bounding-set", "-net_admin", program.as_str(), verb];
        let command = story.world.host().command(argv);
        let output = command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", &story.path).run();
        assert_eq!((output.status, output.stdout.as_str()), (1, ""), "{output}");
        let reasons = ["Operation not permitted", "Permission denied"];
        let told: usize = reasons.iter().map(|reason| output.stderr.matches(reason).count()).sum();
        assert_eq!(told, 1, "{output}");
    }
}
