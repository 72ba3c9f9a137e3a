//! The harness itself, shown with the reference plugins: what the other stories rely on.

use integration_tests::{Attachment, Network, Outside, Snapshot, Suite, World};
use serde_json::json;

fn reference_network(world: &World) -> Network {
    let list = json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "plain",
        "plugins": [
            {
                "type": "bridge", "bridge": "docker0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{ "subnet": "172.17.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }]
                }
            },
            { "type": "portmap", "capabilities": { "portMappings": true } }
        ]
    });
    Network::with_plugins_of(world, list, &[Suite::Reference])
}

#[test]
fn a_chain_of_reference_plugins_connects_containers_host_and_outside() {
    let world = World::new();
    let outside = world.outside();
    let network = reference_network(&world);
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    let first = network.attach(&c1);
    assert_eq!(first["ips"][0]["address"], "172.17.0.2/16");
    network.attach(&c2);

    assert!(c1.reaches("172.17.0.3"));
    assert!(world.host().reaches("172.17.0.2"));
    assert!(c2.reaches("172.17.0.1"));
    let _server = outside.space().serve("203.0.113.9:80");
    let answer = c1.fetch("http://203.0.113.9/");
    assert_eq!(answer, format!("203.0.113.9 called by {}", Outside::HOST));
    assert!(outside.space().is_cut_off_from("172.17.0.2"), "the outside has no way back to containers");
}

#[test]
fn a_detached_container_leaves_nothing_and_the_cache_is_libcnis() {
    let world = World::new();
    let network = reference_network(&world);
    let (resident, guest) = (world.container("resident"), world.container("guest"));
    network.attach(&resident);
    let before = Snapshot::of(&world);

    let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    let attachment = Attachment::of(&guest).capability("portMappings", mapping);
    network.attach_as(&guest, &attachment);
    network.check(&attachment).unwrap();
    network.status().unwrap();
    assert!(!before.differences(&Snapshot::of(&world)).is_empty());
    assert_eq!(network.cached_result(&attachment).unwrap()["ips"][0]["address"], "172.17.0.3/16");
    assert!(world.read("/var/lib/cni/results/plain-guest-eth0").contains("cniCacheV1"));

    network.detach_as(&guest, &attachment);
    assert_eq!(network.cached_result(&attachment), None);
    // The port mapper keeps its empty chains, and the allocator where it stopped.
    before.assert_nothing_is_left(&world, &[], &[]);
}

#[test]
fn what_is_left_of_a_container_is_seen() {
    let world = World::new();
    let network = reference_network(&world);
    let guest = world.container("guest");
    let before = Snapshot::of(&world);
    let mapping = json!([{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }]);
    network.attach_as(&guest, &Attachment::of(&guest).capability("portMappings", mapping));
    let left = before.left(&Snapshot::of(&world), &["docker0"]);
    for of_the_guest in [
        "links: + veth",
        "routes: + multicast ff00::/8 dev veth",
        "iptables: + ip nat: :CNI-DN-",
        "iptables: + ip nat: -A CNI-HOSTPORT-DNAT ",
        "iptables: + ip nat: -A POSTROUTING -s 172.17.0.2/32 ",
        "files: + /var/lib/cni/networks/plain/172.17.0.2: \"guest",
        "files: + /var/lib/cni/results/plain-guest-eth0",
    ] {
        assert!(left.iter().any(|line| line.starts_with(of_the_guest)), "{of_the_guest}: {left:#?}");
    }
}

#[test]
fn a_killed_command_and_a_kept_stream_are_noticed() {
    let world = World::new();
    let sleeper = world.host().start("sleep 1000");
    assert!(sleeper.pid() > 1);
    sleeper.kill();
    assert_eq!(sleeper.wait().status, 128 + 9);
    assert_eq!(world.host().command(["sh", "-c", "kill -TERM $$"]).run().status, 128 + 15);
    assert_eq!(world.host().run("false").status, 1);
}

#[test]
fn a_world_has_directories_of_its_own() {
    let world = World::new();
    world.write("/etc/resolv.conf", "nameserver 192.0.2.53\n");
    let container = world.container("c1");
    world.write("/etc/netns/c1/resolv.conf", "nameserver 192.0.2.99\n");
    assert_eq!(world.host().run("cat /etc/resolv.conf").success(), "nameserver 192.0.2.53\n");
    assert_eq!(container.run("cat /etc/resolv.conf").success(), "nameserver 192.0.2.99\n");
    assert_eq!(world.host().run("ls /run/netns").success(), "c1\n");
    assert_eq!(container.run("ls /sys/class/net").success(), "lo\n");
    let other = World::new();
    assert_eq!(other.host().run("ls /run/netns").success(), "");
    assert_eq!(other.host().run("cat /etc/resolv.conf").success(), "");
}

#[test]
fn a_dropped_world_takes_its_processes_along() {
    let world = World::new();
    let pid = world.host().start("sleep 1000").pid();
    let process = format!("/proc/{pid}/exe");
    assert!(std::fs::read_link(&process).is_ok());
    drop(world);
    assert!(std::fs::read_link(&process).is_err());
}

#[test]
fn the_outside_dns_server_answers_what_it_was_told() {
    let world = World::new();
    let outside = world.outside();
    let _server = outside.serve_dns(&[("www.example.test", "198.51.100.7")]);
    assert_eq!(world.host().resolve("www.example.test"), ["198.51.100.7"]);
}
