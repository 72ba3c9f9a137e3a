//! Containers on `docker0` reach each other, the host and the outside by virtual IP.

use integration_tests::{Attachment, Network, Outside, Snapshot, World};

#[test]
fn containers_get_addresses_behind_the_gateway_in_order() {
    let world = World::new();
    let network = Network::example(&world, "docker0");
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    for (container, address) in [(&c1, "172.17.0.2/16"), (&c2, "172.17.0.3/16")] {
        let result = network.attach(container);
        assert_eq!(result["cniVersion"], "1.1.0", "{result}");
        assert_eq!(result["ips"][0]["address"], address, "{result}");
        assert_eq!(result["ips"][0]["gateway"], "172.17.0.1", "{result}");
        let interfaces = result["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), 3, "{result}");
        assert_eq!(interfaces[0]["name"], "docker0");
        assert_eq!(interfaces[2]["name"], "eth0");
        assert_eq!(interfaces[2]["sandbox"], *container.netns_path());

        let shown = container.run("ip -o -4 address show dev eth0");
        assert!(shown.success().contains(&format!(" {address} ")), "{shown}");
        let mac = interfaces[2]["mac"].as_str().unwrap();
        assert!(container.run("ip link show dev eth0").success().contains(mac), "{result}");
        container.run("ip route").has_line("default via 172.17.0.1 dev eth0");
    }
    assert!(world.host().run("ip -o -4 address show dev docker0").success().contains(" 172.17.0.1/16 "));
}

#[test]
fn a_container_reaches_another_by_virtual_ip_and_is_seen_under_its_own() {
    let world = World::new();
    let network = Network::example(&world, "docker0");
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    network.attach(&c1);
    network.attach(&c2);
    c1.run("ping -c 1 -W 30 172.17.0.3").has_line("64 bytes from 172.17.0.3: icmp_seq=1 ttl=64");
    let _server = c2.serve("172.17.0.3:80");
    assert_eq!(c1.fetch("http://172.17.0.3/"), "172.17.0.3 called by 172.17.0.2");
}

#[test]
fn host_and_container_reach_each_other_by_virtual_ip() {
    let world = World::new();
    let _outside = world.outside();
    let network = Network::example(&world, "docker0");
    let c1 = world.container("c1");
    network.attach(&c1);

    world.host().run("ping -c 1 -W 30 172.17.0.2").has_line("64 bytes from 172.17.0.2: icmp_seq=1 ttl=64");
    let _in_container = c1.serve("172.17.0.2:80");
    assert_eq!(world.host().fetch("http://172.17.0.2/"), "172.17.0.2 called by 172.17.0.1");

    let _on_host = world.host().serve("0.0.0.0:8080");
    for address in ["172.17.0.1", Outside::HOST] {
        let answer = c1.fetch(&format!("http://{address}:8080/"));
        assert_eq!(answer, format!("{address}:8080 called by 172.17.0.2"));
    }
}

#[test]
fn the_outside_sees_a_container_under_the_hosts_address() {
    let world = World::new();
    let outside = world.outside();
    let network = Network::example(&world, "docker0");
    let c1 = world.container("c1");
    network.attach(&c1);
    let _server = outside.space().serve("203.0.113.9:80");

    let answer = c1.fetch("http://203.0.113.9/");
    assert_eq!(answer, format!("203.0.113.9 called by {}", Outside::HOST));
    c1.run("ping -c 1 -W 30 203.0.113.9").has_line("64 bytes from 203.0.113.9: icmp_seq=1 ttl=63");
}

#[test]
fn the_outside_is_reached_though_new_links_of_the_host_do_not_forward() {
    let world = World::new();
    let outside = world.outside();
    for setting in ["ip_forward=1", "conf.default.forwarding=0"] {
        world.host().run(&format!("sysctl -q -w net.ipv4.{setting}")).success();
    }
    let docker0 = Network::example(&world, "docker0");
    let container = world.container("centos-1");
    docker0.attach(&container);
    container.assert_reach(Outside::ADDRESS, true, "by the bridge's own switch");
    drop(outside);
}

#[test]
fn the_last_container_takes_the_rules_along() {
    let world = World::new();
    let _outside = world.outside();
    let before = Snapshot::of(&world);
    let network = Network::example(&world, "docker0");
    let containers = [world.container("c1"), world.container("c2")];
    for container in &containers {
        network.attach(container);
    }
    assert_ne!(Snapshot::of(&world).section("nftables"), before.section("nftables"));
    for container in &containers {
        network.detach(container);
    }
    // As with every bridge plugin the bridge itself stays, with its gateway address and forwarding.
    before.assert_nothing_is_left(&world, &["docker0"], &[]);
}

#[test]
fn a_container_that_comes_and_goes_leaves_the_others_and_the_host_as_they_were() {
    let world = World::new();
    let outside = world.outside();
    let network = Network::example(&world, "docker0");
    let (resident, guest) = (world.container("resident"), world.container("guest"));
    network.attach(&resident);
    let _server = outside.space().serve("203.0.113.9:80");
    let before = Snapshot::of(&world);

    network.attach(&guest);
    assert!(resident.reaches("172.17.0.3"));
    network.check(&Attachment::of(&guest)).unwrap();
    network.detach(&guest);
    assert_eq!(
        guest.run("ip -o link").success().lines().count(),
        1,
        "only loopback is left in the container"
    );
    before.assert_unchanged(&world);
    assert!(resident.fetch("http://203.0.113.9/").ends_with(Outside::HOST));
    network.check(&Attachment::of(&resident)).unwrap();
}
