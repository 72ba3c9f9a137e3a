//! An internal network: containers find and reach each other, and nothing beyond.

use integration_tests::{Attachment, Network, World};

#[test]
fn an_internal_network_has_names_but_no_way_out() {
    let world = World::new();
    let outside = world.outside();
    let upstream = outside.serve_dns(&[("www.example.test", "198.51.100.7")]);
    let network = Network::example(&world, "internal");
    let (c1, c2) = (world.container("c1"), world.container("c2"));
    network.attach_as(&c1, &Attachment::of(&c1).aliases(&["centos-1"]));
    network.attach_as(&c2, &Attachment::of(&c2).aliases(&["centos-2"]));

    c1.run("ping -c 1 -W 30 centos-2").has_line("64 bytes from centos-2.internal (172.23.0.3): icmp_seq=1");
    assert_eq!(c1.run("ip route show default").success(), "");
    assert!(c1.is_cut_off_from("203.0.113.9"));
    assert!(c1.resolve("www.example.test").is_empty());

    upstream.kill();
    let log = upstream.wait().stderr;
    assert!(!log.contains("www.example.test"), "asked outside all the same:\n{log}");
}
