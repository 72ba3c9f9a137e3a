//! Several bridges: containers of one network do not reach those of another, unless they are on both.

use integration_tests::{Attachment, Network, Outside, World};

#[test]
fn containers_of_isolated_networks_do_not_reach_each_other() {
    let world = World::new();
    let outside = world.outside();
    let (one, two) = (Network::example(&world, "testnet"), Network::example(&world, "testnet2"));
    let (a1, a2, b1) = (world.container("a1"), world.container("a2"), world.container("b1"));
    one.attach(&a1);
    one.attach(&a2);
    two.attach(&b1);

    assert!(a1.reaches("172.20.0.3"), "its own network");
    for (from, to) in [(&a1, "172.21.0.2"), (&b1, "172.20.0.2"), (&a1, "172.21.0.1"), (&b1, "172.20.0.1")] {
        assert!(from.is_cut_off_from(to), "{} reaches {to} of the other network", from.name());
    }
    let _server = b1.serve("0.0.0.0:80");
    a1.run("curl --silent --max-time 2 http://172.21.0.2/").failure();

    let _outside_server = outside.space().serve("203.0.113.9:80");
    for container in [&a1, &b1] {
        assert!(world.host().reaches(if container.name() == "a1" { "172.20.0.2" } else { "172.21.0.2" }));
        assert!(container.fetch("http://203.0.113.9/").ends_with(Outside::HOST), "going out stays free");
    }
}

#[test]
fn an_open_network_does_not_reach_into_an_isolated_one() {
    let world = World::new();
    let (open, isolated) = (Network::example(&world, "docker0"), Network::example(&world, "testnet"));
    let (stranger, resident) = (world.container("stranger"), world.container("resident"));
    open.attach(&stranger);
    isolated.attach(&resident);
    assert!(stranger.is_cut_off_from("172.20.0.2"));
    assert!(stranger.is_cut_off_from("172.20.0.1"));
    assert!(resident.reaches("172.17.0.2"), "what it asks itself is answered");
}

#[test]
fn names_stay_inside_their_network() {
    let world = World::new();
    let (one, two) = (Network::example(&world, "testnet"), Network::example(&world, "testnet2"));
    let (a1, b1) = (world.container("a1"), world.container("b1"));
    one.attach_as(&a1, &Attachment::of(&a1).aliases(&["centos-1"]));
    two.attach_as(&b1, &Attachment::of(&b1).aliases(&["centos-2"]));
    assert!(a1.resolve("centos-2").is_empty());
    assert!(b1.resolve("centos-1").is_empty());
    assert_eq!(b1.resolve("centos-2"), ["172.21.0.2"]);
}

#[test]
fn a_container_on_two_networks_resolves_and_reaches_in_both() {
    let world = World::new();
    let (one, two) = (Network::example(&world, "testnet"), Network::example(&world, "testnet2"));
    let (a1, b1, both) = (world.container("a1"), world.container("b1"), world.container("both"));
    one.attach_as(&a1, &Attachment::of(&a1).aliases(&["centos-1"]));
    two.attach_as(&b1, &Attachment::of(&b1).aliases(&["centos-2"]));
    one.attach_as(&both, &Attachment::of(&both).aliases(&["both"]));
    two.attach_as(&both, &Attachment::of(&both).ifname("eth1").aliases(&["both"]));

    both.run("ping -c 1 -W 30 centos-1").has_line("64 bytes from centos-1.testnet (172.20.0.2): icmp_seq=1");
    both.run("ping -c 1 -W 30 centos-2").has_line("64 bytes from centos-2.testnet2 (172.21.0.2): icmp_seq=1");
    assert_eq!(a1.resolve("both"), ["172.20.0.3"]);
    assert_eq!(b1.resolve("both"), ["172.21.0.3"]);
    assert!(a1.reaches("172.20.0.3"));
    assert!(b1.reaches("172.21.0.3"));
    assert!(a1.is_cut_off_from("172.21.0.2"), "it is no router between its networks");
}

#[test]
fn leaving_one_network_keeps_the_other() {
    let world = World::new();
    let (one, two) = (Network::example(&world, "testnet"), Network::example(&world, "testnet2"));
    let (a1, both) = (world.container("a1"), world.container("both"));
    one.attach_as(&a1, &Attachment::of(&a1).aliases(&["centos-1"]));
    one.attach_as(&both, &Attachment::of(&both));
    let second = Attachment::of(&both).ifname("eth1");
    two.attach_as(&both, &second);
    two.detach_as(&both, &second);
    assert_eq!(both.resolve("centos-1"), ["172.20.0.2"]);
    assert!(both.reaches("172.20.0.2"));
    assert_eq!(both.run("ip -o link").success().lines().count(), 2, "loopback and eth0");
}
