//! On a network of the user's own, containers find each other by name and alias, as with Docker.

use std::time::{Duration, Instant};

use integration_tests::{Attachment, Container, Network, World, wait_until};

/// A network as `conf-examples/testnet.conflist` has it, and the containers of the story.
struct Testnet {
    world: World,
    network: Network,
}

impl Testnet {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let network = Network::example(&world, "testnet");
        Self { world, network }
    }

    /// A container of that id on the network under these aliases.
    #[track_caller]
    fn container(&self, id: &str, aliases: &[&str]) -> Container {
        let container = self.world.container(id);
        self.network.attach_as(&container, &Attachment::of(&container).aliases(aliases));
        container
    }

    #[track_caller]
    fn remove(&self, container: &Container) {
        self.network.detach(container);
        self.world.remove_netns(container.name());
    }
}

#[test]
fn ping_by_alias_prints_what_docker_users_know() {
    let testnet = Testnet::new();
    testnet.container("one", &["centos-1"]);
    let other = testnet.container("two", &["centos-2"]);
    other
        .run("ping -c 1 -W 30 centos-1")
        .has_line("PING centos-1 (172.20.0.2) 56(84) bytes of data.")
        .has_line("64 bytes from centos-1.testnet (172.20.0.2): icmp_seq=1 ttl=64 time=");
    other
        .run("ping -c 1 -W 30 centos-1.testnet")
        .has_line("PING centos-1.testnet (172.20.0.2) 56(84) bytes of data.")
        .has_line("64 bytes from centos-1.testnet (172.20.0.2): icmp_seq=1 ttl=64 time=");
}

#[test]
fn the_container_finds_its_name_server_in_the_result() {
    let testnet = Testnet::new();
    let container = testnet.world.container("one");
    let result = testnet.network.attach_as(&container, &Attachment::of(&container).aliases(&["centos-1"]));
    assert_eq!(result["dns"]["nameservers"][0], "172.20.0.1", "{result}");
    assert_eq!(result["dns"]["search"][0], "testnet", "{result}");
    assert_eq!(result["dns"]["options"][0], "ndots:0", "{result}");
}

#[test]
fn a_name_goes_to_the_name_before_the_alias() {
    let testnet = Testnet::new();
    let named = testnet.world.container("one");
    let attachment = Attachment::of(&named).arg("IgnoreUnknown", "1").arg("K8S_POD_NAME", "n1");
    testnet.network.attach_as(&named, &attachment.aliases(&["centos-1", "lnk"]));
    let other = testnet.container("two", &[]);
    for name in ["n1", "n1.testnet", "centos-1", "centos-1.testnet", "lnk", "lnk.testnet", "CENTOS-1"] {
        assert_eq!(other.resolve(name), ["172.20.0.2"], "{name}");
    }
    other.run("ping -c 1 -W 30 lnk").has_line("64 bytes from n1.testnet (172.20.0.2): icmp_seq=1");
    assert_eq!(other.run("dig +short -x 172.20.0.2").success(), "n1.testnet.\n");
    assert!(other.resolve("nosuch").is_empty());
}

#[test]
fn a_container_is_found_by_the_first_twelve_digits_of_its_id() {
    let testnet = Testnet::new();
    let container = testnet.world.container("one");
    let id = "ad9e1859bf3a4c0f8a4d0d7a7d1f6e5c4b3a29180716f5e4d3c2b1a090807060";
    testnet.network.attach_as(&container, &Attachment::of(&container).id(id));
    let other = testnet.container("two", &[]);
    assert_eq!(other.resolve("ad9e1859bf3a"), ["172.20.0.2"]);
}

#[test]
fn a_service_is_reached_as_alias_and_port() {
    let testnet = Testnet::new();
    let server = testnet.container("one", &["centos-1"]);
    let client = testnet.container("two", &[]);
    let _service = server.serve("0.0.0.0:8080");
    assert_eq!(client.fetch("http://centos-1:8080/"), "centos-1:8080 called by 172.20.0.3");
    assert_eq!(client.fetch("http://centos-1.testnet:8080/"), "centos-1.testnet:8080 called by 172.20.0.3");
}

#[test]
fn a_restarted_container_is_found_at_its_new_address() {
    let testnet = Testnet::new();
    let first = testnet.container("one", &["centos-1"]);
    let other = testnet.container("two", &[]);
    assert_eq!(other.resolve("centos-1"), ["172.20.0.2"]);
    testnet.remove(&first);
    assert!(other.resolve("centos-1").is_empty(), "a removed container is not found");

    testnet.container("again", &["centos-1"]);
    other
        .run("ping -c 1 -W 30 centos-1")
        .has_line("PING centos-1 (172.20.0.4) 56(84) bytes of data.")
        .has_line("64 bytes from centos-1.testnet (172.20.0.4): icmp_seq=1 ttl=64 time=");
}

#[test]
fn the_order_of_creation_does_not_matter() {
    let testnet = Testnet::new();
    let client = testnet.container("client", &["centos-2"]);
    assert!(client.resolve("centos-1").is_empty());
    let server = testnet.container("server", &["centos-1"]);
    assert_eq!(client.resolve("centos-1"), ["172.20.0.3"], "as soon as ADD has returned");
    assert_eq!(server.resolve("centos-2"), ["172.20.0.2"]);
}

#[test]
fn a_shared_alias_answers_with_every_holder_in_turn() {
    let testnet = Testnet::new();
    let holders = [testnet.container("one", &["shared"]), testnet.container("two", &["shared"])];
    let client = testnet.container("three", &[]);
    let answer = || -> Vec<String> {
        client.run("dig +short shared A").success().lines().map(str::to_owned).collect()
    };
    let mut sorted = answer();
    sorted.sort();
    assert_eq!(sorted, ["172.20.0.2", "172.20.0.3"]);
    for first in ["172.20.0.2", "172.20.0.3"] {
        wait_until(&format!("{first} comes first"), || (answer()[0] == first).then_some(()));
    }
    testnet.remove(&holders[0]);
    assert_eq!(answer(), ["172.20.0.3"]);
}

#[test]
fn other_resolvers_find_the_names_too() {
    let testnet = Testnet::new();
    testnet.container("one", &["centos-1"]);
    let client = testnet.container("two", &[]);
    let busybox = client.run("busybox nslookup centos-1");
    assert!(busybox.success().contains("Address: 172.20.0.2"), "{busybox}");
    assert_eq!(client.run("dig +short +tcp centos-1").success(), "172.20.0.2\n");
    assert_eq!(client.run("dig +short +search centos-1").success(), "172.20.0.2\n");
}

#[test]
fn musl_finds_what_glibc_finds_and_nothing_at_once() {
    let testnet = Testnet::new();
    testnet.container("one", &["centos-1", "shared"]);
    let client = testnet.container("two", &["shared"]);
    for name in ["centos-1", "CENTOS-1", "centos-1.testnet", "shared", "one", "nosuch", "nosuch.testnet"] {
        let mut found = [Vec::new(), Vec::new()];
        // Sooner than a resolver would ask again. A busy machine may take longer, but not each time.
        wait_until(&format!("{name} is found, or not, at once"), || {
            let began = Instant::now();
            found = [client.resolve_by_musl(name), client.resolve(name)];
            (began.elapsed() < Duration::from_secs(2)).then_some(())
        });
        found.iter_mut().for_each(|addresses| addresses.sort());
        assert_eq!(found[0], found[1], "{name}");
        assert_eq!(found[0].is_empty(), name.starts_with("nosuch"), "{name}");
    }
}

#[test]
fn a_known_name_has_no_other_types_and_an_unknown_name_does_not_exist() {
    let testnet = Testnet::new();
    testnet.container("one", &["centos-1"]);
    let client = testnet.container("two", &[]);
    for kind in ["AAAA", "MX", "TXT", "SRV", "HTTPS"] {
        let output = client.run(&format!("dig centos-1.testnet {kind}"));
        assert!(output.success().contains("status: NOERROR"), "{output}");
        assert!(output.stdout.contains("ANSWER: 0, AUTHORITY: 1"), "{output}");
        assert!(output.stdout.contains("\tSOA\t"), "{output}");
    }
    let output = client.run("dig nosuch.testnet A");
    assert!(output.success().contains("status: NXDOMAIN"), "{output}");
    assert!(output.stdout.contains("\tSOA\t"), "{output}");
}

#[test]
fn other_names_are_asked_of_the_hosts_upstream_and_ours_are_not() {
    let testnet = Testnet::new();
    let outside = testnet.world.outside();
    let upstream = outside.serve_dns(&[("www.example.test", "198.51.100.7")]);
    testnet.container("one", &["centos-1"]);
    let client = testnet.container("two", &[]);
    assert_eq!(client.resolve("www.example.test"), ["198.51.100.7"]);
    assert_eq!(client.resolve("centos-1"), ["172.20.0.2"]);
    assert!(client.resolve("nosuch.testnet").is_empty());
    client.run("dig +short -x 172.20.0.3").success();

    upstream.kill();
    let log = upstream.wait().stderr;
    assert!(log.contains("www.example.test"), "{log}");
    for private in ["centos-1", "testnet", "172.20.0"] {
        let leaked = log.lines().any(|line| line.contains("query[") && line.contains(private));
        assert!(!leaked, "{private} was asked outside:\n{log}");
    }
}

#[test]
fn the_host_finds_the_names_at_the_gateway() {
    let testnet = Testnet::new();
    testnet.container("one", &["centos-1"]);
    assert_eq!(testnet.world.host().run("dig +short @172.20.0.1 centos-1").success(), "172.20.0.2\n");
}

#[test]
fn names_come_back_after_the_server_was_killed() {
    let testnet = Testnet::new();
    testnet.container("one", &["centos-1"]);
    let client = testnet.container("two", &[]);
    assert_eq!(client.resolve("centos-1"), ["172.20.0.2"]);
    testnet.world.host().run("pkill -KILL -f alias-dns").success();
    testnet.container("three", &["centos-3"]);
    assert_eq!(client.resolve("centos-1"), ["172.20.0.2"]);
    assert_eq!(client.resolve("centos-3"), ["172.20.0.4"]);
}
