//! Names over the wire: Docker's semantics question by question, several networks, and what happens to names when
//! containers, directories and the server are not in order.

use integration_tests::{Attachment, Container, Network, PluginCall, Space, Suite, World, wait_until};
use serde_json::{Value, json};

const N1: &str = "ad9e1859bf3a4c0f8a4d0d7a7d1f6e5c4b3a29180716f5e4d3c2b1a090807060";
const N2: &str = "fa5a06abf4c24c0f8a4d0d7a7d1f6e5c4b3a29180716f5e4d3c2b1a090807060";

/// The network of the first story, and who is on it.
struct Story {
    world: World,
    testnet: Network,
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let testnet = Network::example(&world, "testnet");
        Self { world, testnet }
    }

    /// A container called `name` under these aliases.
    #[track_caller]
    fn container(&self, name: &str, aliases: &[&str]) -> Container {
        let container = self.world.container(name);
        self.testnet.attach_as(&container, &named(&container).aliases(aliases));
        container
    }

    #[track_caller]
    fn alias_dns(&self, args: &str) -> String {
        let line = format!("{} {args}", Suite::Ours.binary("alias-dns").display());
        self.world.host().run(&line).success().to_owned()
    }

    /// The processes of the server, as it says itself.
    #[track_caller]
    fn server_pid(&self) -> String {
        let status: Value = serde_json::from_str(&self.alias_dns("status --json")).unwrap();
        status["pid"].to_string()
    }

    /// The record files on the host.
    fn records(&self) -> String {
        self.world.host().run("find /run/cni/alias-dns -path */records/* -type f -printf %f\\n").stdout
    }

    /// An ADD of alias-dns alone, for a container whose address is 172.20.7.`host`.
    fn add_by_hand(&self, container: &Container, host: u8, more: Value) -> PluginCall {
        self.add_by_hand_of(self.world.plugin("alias-dns"), container, host, more)
    }

    fn add_by_hand_of(&self, call: PluginCall, container: &Container, host: u8, more: Value) -> PluginCall {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "testnet", "type": "alias-dns",
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": "br-testnet", "mac": "02:00:00:00:00:01" },
                    { "name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": container.netns_path() }
                ],
                "ips": [{ "address": format!("172.20.7.{host}/16"), "gateway": "172.20.0.1", "interface": 1 }]
            }
        });
        more.as_object().into_iter().flatten().for_each(|(key, value)| config[key] = value.clone());
        call.verb("ADD").container(container).config(&config)
    }
}

fn named(container: &Container) -> Attachment {
    Attachment::of(container).arg("IgnoreUnknown", "1").arg("CONTAINER_NAME", container.name())
}

/// What `dig` says to `question` at `server`: status, AA, and the records of answer and authority without TTL.
#[track_caller]
fn asked(space: &Space, server: &str, question: &str) -> String {
    let output =
        space.run(&format!("dig @{server} +time=30 +tries=1 +noall +comments +answer +authority {question}"));
    let text = output.success();
    let between = |start: &str, end: char| {
        text.split_once(start)
            .and_then(|(_, rest)| rest.split_once(end))
            .map_or("", |(found, _)| found.trim())
    };
    let mut parts = vec![between("status: ", ',').to_owned()];
    parts.extend(between("flags: ", ';').split(' ').find(|flag| *flag == "aa").map(str::to_owned));
    for line in text.lines().filter(|line| !line.starts_with(';') && !line.is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        parts.push(match words[3] {
            "SOA" => format!("SOA of {}", words[0]),
            rtype => format!("{rtype} {}", words[4..].join(" ")),
        });
    }
    parts.join(" ")
}

#[track_caller]
fn check(space: &Space, server: &str, cases: &[(&str, &str)]) {
    let answers: Vec<(&str, String)> =
        cases.iter().map(|(question, _)| (*question, asked(space, server, question))).collect();
    let expected: Vec<(&str, String)> =
        cases.iter().map(|(question, answer)| (*question, (*answer).to_owned())).collect();
    assert_eq!(answers, expected);
}

/// The recording of Docker's answers, and a proper answer where Docker's was none.
#[test]
fn a_user_defined_network_answers_as_dockers_does() {
    let story = Story::new();
    let (n1, n2) = (story.world.container("n1"), story.world.container("n2"));
    story.testnet.attach_as(&n1, &named(&n1).id(N1).aliases(&["centos-1", "shared"]));
    let linking = named(&n2).id(N2).aliases(&["shared"]).capability("links", json!(["n1:lnk"]));
    story.testnet.attach_as(&n2, &linking);
    let testnet2 = Network::example(&story.world, "testnet2");
    let x1 = story.world.container("x1");
    testnet2.attach_as(&x1, &named(&x1));

    check(
        &n2,
        "172.20.0.1",
        &[
            ("centos-1", "NOERROR aa A 172.20.0.2"),
            ("centos-1.testnet", "NOERROR aa A 172.20.0.2"),
            ("n1", "NOERROR aa A 172.20.0.2"),
            ("n1.testnet", "NOERROR aa A 172.20.0.2"),
            ("lnk", "NOERROR aa A 172.20.0.2"),
            ("lnk.testnet", "NOERROR aa A 172.20.0.2"),
            ("ad9e1859bf3a", "NOERROR aa A 172.20.0.2"),
            ("CENTOS-1", "NOERROR aa A 172.20.0.2"),
            ("+tcp centos-1", "NOERROR aa A 172.20.0.2"),
            ("centos-1 AAAA", "NOERROR aa SOA of ."),
            ("centos-1.testnet AAAA", "NOERROR aa SOA of testnet."),
            ("-x 172.20.0.2", "NOERROR aa PTR n1.testnet."),
            ("-x 172.20.0.3", "NOERROR aa PTR n2.testnet."),
            ("-x 172.20.0.1", "NOERROR aa PTR _gateway.testnet."),
            ("-x 172.20.0.9", "NXDOMAIN aa SOA of 20.172.in-addr.arpa."),
            ("centos-1.testnet TXT", "NOERROR aa SOA of testnet."),
            ("centos-1.testnet MX", "NOERROR aa SOA of testnet."),
            ("centos-1.testnet SRV", "NOERROR aa SOA of testnet."),
            ("centos-1.testnet NS", "NOERROR aa SOA of testnet."),
            ("centos-1.testnet SOA", "NOERROR aa SOA of testnet."),
            ("centos-1.testnet HTTPS", "NOERROR aa SOA of testnet."),
            ("centos-1.testnet ANY", "NOERROR aa A 172.20.0.2"),
            ("testnet SOA", "NOERROR aa SOA of testnet."),
            ("testnet NS", "NOERROR aa NS testnet."),
            ("nosuch", "NXDOMAIN aa SOA of ."),
            ("nosuch.testnet", "NXDOMAIN aa SOA of testnet."),
            ("x1", "NXDOMAIN aa SOA of ."),
            ("x1.testnet2", "NXDOMAIN aa SOA of testnet2."),
        ],
    );
    let in_turn = [asked(&n2, "172.20.0.1", "shared"), asked(&n2, "172.20.0.1", "shared")];
    let mut sorted = in_turn.clone();
    sorted.sort();
    assert_eq!(sorted, ["NOERROR aa A 172.20.0.2 A 172.20.0.3", "NOERROR aa A 172.20.0.3 A 172.20.0.2"]);
    assert!(n1.resolve("lnk").is_empty(), "the link is n2's alone");
    check(
        &story.world.host(),
        "172.20.0.1",
        &[("centos-1", "NOERROR aa A 172.20.0.2"), ("lnk", "NXDOMAIN aa SOA of .")],
    );
}

#[test]
fn a_container_on_two_networks_resolves_in_both() {
    let story = Story::new();
    let testnet2 = Network::example(&story.world, "testnet2");
    let (n1, x1, both) =
        (story.world.container("n1"), story.world.container("x1"), story.world.container("both"));
    story.testnet.attach_as(&n1, &named(&n1).aliases(&["centos-1"]));
    testnet2.attach_as(&x1, &named(&x1).aliases(&["centos-1"]));
    story.testnet.attach_as(&both, &named(&both));
    testnet2.attach_as(&both, &named(&both).ifname("eth1"));
    let x1_address = x1.run("hostname -I").success().trim().to_owned();

    assert_eq!(both.resolve("centos-1"), ["172.20.0.2"], "the network that it joined first");
    for name in ["centos-1.testnet2", "x1", "x1.testnet2"] {
        assert_eq!(both.resolve(name).join(" "), x1_address, "{name}");
    }
    assert!(n1.resolve("x1").is_empty());
    assert!(x1.resolve("n1").is_empty());
}

#[test]
fn a_strangers_query_is_refused() {
    let story = Story::new();
    let n1 = story.container("n1", &[]);
    n1.run("ip address add 172.20.99.99/16 dev eth0").success();
    check(&n1, "172.20.0.1 -b 172.20.99.99", &[("n1", "REFUSED"), ("www.example.test", "REFUSED")]);
    check(&n1, "172.20.0.1", &[("n1", "NOERROR aa A 172.20.0.2")]);
}

/// A pair of which one end is a port of the bridge: what `bridge` makes for a VLAN, and lists behind the bridge.
#[test]
fn the_gateway_of_a_vlan_answers_on_its_own_interface() {
    let world = World::new();
    let (host, container) = (world.host(), world.container("c1"));
    for line in [
        "ip link add br0 up type bridge",
        "ip link add br0.10 up type veth peer name gateway",
        "ip link set gateway up master br0",
        "ip address add 10.9.0.1/24 dev br0.10",
        // Where the kernel filters by VLAN, the bridge itself does not hear who asks for the gateway.
        "sysctl -qw net.ipv4.conf.br0.arp_ignore=1",
        "ip link add veth0 up master br0 type veth peer name eth0 netns c1",
    ] {
        host.run(line).success();
    }
    container.run("ip address add 10.9.0.2/24 dev eth0").success();
    container.run("ip link set eth0 up").success();
    let config = json!({
        "cniVersion": "1.0.0", "name": "vlan", "type": "alias-dns",
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [
                { "name": "br0" },
                { "name": "veth0" },
                { "name": "eth0", "sandbox": container.netns_path() },
                { "name": "br0.10" }
            ],
            "ips": [{ "address": "10.9.0.2/24", "gateway": "10.9.0.1", "interface": 2 }]
        }
    });
    let call = || world.plugin("alias-dns").container(&container).config(&config);
    call().verb("ADD").run().success();
    for space in [&host, &container] {
        check(space, "10.9.0.1", &[("c1", "NOERROR aa A 10.9.0.2")]);
    }
    call().verb("CHECK").run().success();
}

#[test]
fn a_gateway_that_the_host_does_not_have_is_refused_though_it_can_be_bound_to() {
    let story = Story::new();
    story.container("resident", &[]);
    let container = story.world.container("c1");
    let before = story.records();
    story.world.host().run("sysctl -qw net.ipv4.ip_nonlocal_bind=1").success();
    let add = |gateway: &str| {
        let more = json!({ "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "br-testnet" }, { "name": "eth0", "sandbox": container.netns_path() }],
            "ips": [{ "address": "172.20.7.8/16", "gateway": gateway, "interface": 1 }]
        } });
        story.add_by_hand(&container, 8, more).run()
    };
    for gateway in ["172.20.0.254", "172.20.255.255", "0.0.0.0", "224.0.0.1"] {
        let msg = add(gateway).error(7);
        assert!(msg.contains(&format!("gateway {gateway} is not an address of this host")), "{msg}");
    }
    assert_eq!(story.records(), before);
    // A second address of the subnet, which the kernel prefers no source for.
    story.world.host().run("ip address add 172.20.0.254/16 dev br-testnet").success();
    add("172.20.0.254").success();
    assert_ne!(story.records(), before);
}

#[test]
fn the_dead_holder_of_an_address_makes_room() {
    let story = Story::new();
    story.container("resident", &[]);
    let (old, new) = (story.world.container("old"), story.world.container("new"));
    story.add_by_hand(&old, 7, json!({ "runtimeConfig": { "aliases": ["was"] } })).run().success();
    story.world.remove_netns("old");
    story.add_by_hand(&new, 7, json!({ "runtimeConfig": { "aliases": ["is"] } })).run().success();
    check(
        &story.world.host(),
        "172.20.0.1",
        &[
            ("is", "NOERROR aa A 172.20.7.7"),
            ("was", "NXDOMAIN aa SOA of ."),
            ("-x 172.20.7.7", "NOERROR aa PTR is.testnet."),
        ],
    );
    assert!(!story.records().contains("old"), "{}", story.records());
}

#[test]
fn a_container_made_anew_is_found_at_its_new_address_alone_though_the_old_one_died_without_del() {
    let story = Story::new();
    let resident = story.container("resident", &["shared"]);
    let (old, new) = (story.world.container("old"), story.world.container("new"));
    let names = json!({ "runtimeConfig": { "aliases": ["again", "shared"] } });
    story.add_by_hand(&old, 7, names.clone()).run().success();
    story.world.remove_netns("old");
    story.add_by_hand(&new, 8, names).run().success();
    check(&story.world.host(), "172.20.0.1", &[("again", "NOERROR aa A 172.20.7.8")]);
    // Nor does one who lives lose what he shares.
    let mut shared = resident.resolve("shared");
    shared.sort();
    assert_eq!(shared, ["172.20.0.2", "172.20.7.8"]);
    assert!(!story.records().contains("old"), "{}", story.records());
}

/// As when containerd has a mount namespace of its own, and podman the host's.
#[test]
fn a_runtime_that_sees_no_namespace_of_anothers_containers_takes_none_of_their_names() {
    let story = Story::new();
    let resident = story.container("resident", &["shared"]);
    let (old, new) = (story.world.container("old"), story.world.container("new"));
    let names = json!({ "runtimeConfig": { "aliases": ["shared"] } });
    // Neither of one whose device at the host's end is told, nor of one of which the path alone is known.
    story.add_by_hand(&old, 7, names.clone()).run().success();
    let elsewhere =
        ["unshare", "--mount", "sh", "-c", "mount -t tmpfs tmpfs /run/netns && exec \"$@\"", "sh"];
    story.add_by_hand_of(story.world.traced_plugin(&elsewhere, "alias-dns"), &new, 8, names).run().success();
    let mut shared = resident.resolve("shared");
    shared.sort();
    assert_eq!(shared, ["172.20.0.2", "172.20.7.7", "172.20.7.8"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_and_nothing_is_left() {
    let story = Story::new();
    let resident = story.container("resident", &[]);
    let (host, container) = (story.world.host(), story.world.container("c1"));
    let before = story.records();
    // Over itself, for the server has files open in the mount below.
    host.run("mount --bind /run /run").success();
    host.run("mount -o remount,bind,ro /run").success();
    story.add_by_hand(&container, 8, json!({})).run().error(5);
    story.add_by_hand(&container, 8, json!({ "onError": "warn" })).run().success();
    story.add_by_hand(&container, 8, json!({})).verb("DEL").run().success();
    host.run("umount /run").success();
    // Not with the options that it has: one of them may be the owner, by a number of another user namespace.
    host.run("mount --options-mode ignore -o remount,size=512k /run").success();
    // Ends when the directory is full.
    host.run("dd if=/dev/zero of=/run/full bs=1k").failure();
    story.add_by_hand(&container, 8, json!({})).run().error(5);
    assert_eq!(story.records(), before);
    host.run("rm /run/full").success();
    assert_eq!(resident.resolve("resident"), ["172.20.0.2"]);
    story.add_by_hand(&container, 8, json!({})).run().success();
}

#[test]
fn a_server_that_hangs_fails_add_in_time_and_never_del() {
    let story = Story::new();
    let resident = story.container("resident", &[]);
    let leaving = story.container("leaving", &[]);
    let container = story.world.container("c1");
    let pid = story.server_pid();
    story.world.host().run(&format!("kill -STOP {pid}")).success();
    story.add_by_hand(&container, 8, json!({})).run().error(11);
    story.testnet.detach_as(&leaving, &named(&leaving));
    assert!(!story.records().contains("c1:") && !story.records().contains("leaving:"), "{}", story.records());
    story.world.host().run(&format!("kill -CONT {pid}")).success();
    wait_until("the server to forget", || resident.resolve("leaving").is_empty().then_some(()));
    assert_eq!(resident.resolve("resident"), ["172.20.0.2"]);
    story.add_by_hand(&container, 8, json!({})).run().success();
}

#[test]
fn a_killed_server_is_back_with_all_names() {
    let story = Story::new();
    let resident = story.container("resident", &["alias"]);
    for _ in 0..5 {
        let pid = story.server_pid();
        story.world.host().run(&format!("kill -9 {pid}")).success();
        assert_eq!(resident.resolve("alias"), ["172.20.0.2"]);
    }
}

#[test]
fn names_are_listed_asked_for_and_exported() {
    let story = Story::new();
    let (n1, n2) = (story.world.container("n1"), story.world.container("n2"));
    story.testnet.attach_as(&n1, &named(&n1).id(N1).aliases(&["centos-1"]));
    story.testnet.attach_as(&n2, &named(&n2).id(N2).capability("links", json!(["n1:lnk"])));
    assert_eq!(
        story.alias_dns("list testnet"),
        "NETWORK  CONTAINER     IFNAME  ADDRESSES   NAMES                     LINKS\n\
         testnet  ad9e1859bf3a  eth0    172.20.0.2  n1,centos-1,ad9e1859bf3a  -\n\
         testnet  fa5a06abf4c2  eth0    172.20.0.3  n2,fa5a06abf4c2           lnk=n1\n"
    );
    let answer = story.alias_dns("query lnk --as 172.20.0.3 --type A");
    assert!(
        answer.starts_with("lnk A, asked by 172.20.0.3 on br-testnet: 172.20.0.2\n    a link "),
        "{answer}"
    );
    let hosts = story.alias_dns("hosts testnet");
    assert!(hosts.starts_with("172.20.0.2\tn1.testnet n1 centos-1 ad9e1859bf3a "), "{hosts}");
    let line = format!("{} hosts tesnet", Suite::Ours.binary("alias-dns").display());
    let mistyped = story.world.host().run(&line);
    assert_eq!(mistyped.success(), "");
    let told = "no container has names on network \"tesnet\"; there are: testnet";
    assert!(mistyped.stderr.contains(told), "{mistyped}");
    let status: Value = serde_json::from_str(&story.alias_dns("status --json")).unwrap();
    assert_eq!(status["records"], 2, "{status}");
}
