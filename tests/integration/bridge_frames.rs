//! What a container may send by its port: it is no router, and with the spoof check nobody else.

use integration_tests::{Attachment, Container, Network, Space, Suite, World, wait_until};
use serde_json::json;

use crate::bridge_rules::{check, member, network_with};

/// Sends a router advertisement to all nodes. The kernel fills in the checksum and the link-local source.
pub(crate) fn advertise_as_router(container: &Space) {
    const SCRIPT: &str = r#"
        use Socket qw(:DEFAULT inet_pton);
        my $index = shift;
        socket(my $s, AF_INET6, SOCK_RAW, 58) or die "socket: $!";
        setsockopt($s, 41, 18, pack("i", 255)) or die "hops: $!";
        my $to = pack_sockaddr_in6(0, inet_pton(AF_INET6, "ff02::1"), $index);
        send($s, pack("CCnCCnNN", 134, 0, 0, 64, 0, 1800, 0, 0), 0, $to) or die "send: $!";
    "#;
    let link = container.run("ip -o link show eth0").success().to_owned();
    let index = link.split(':').next().expect("an index").to_owned();
    container.command(["perl", "-e", SCRIPT, &index]).run().success();
}

/// Whether one of a few advertisements gives `listener` a default route.
fn is_misled(listener: &Container, by: &Container) -> bool {
    listener.run("sysctl -q -w net.ipv6.conf.eth0.accept_ra=2").success();
    (0..3).any(|_| {
        advertise_as_router(by);
        // An answered ping from the same port comes after the advertisement.
        by.reaches("10.1.0.3");
        listener.run("ip -6 route show default proto ra").success().contains("via fe80")
    })
}

#[test]
fn a_container_of_a_gateway_bridge_is_no_router() {
    for (is_gateway, misled) in [(true, false), (false, true)] {
        let world = World::new();
        let net = network_with(&world, json!({ "isGateway": is_gateway }));
        let (rogue, victim) = (member(&world, &net, "rogue"), member(&world, &net, "victim"));
        assert_eq!(is_misled(&victim, &rogue), misled, "isGateway: {is_gateway}");
    }
}

/// Sends a frame by a container's interface: destination, source, and what follows, in hexadecimal digits.
fn send_frame(container: &Container, to: &str, from: &str, rest: &str) {
    const SCRIPT: &str = r#"
        my ($index, $frame) = @ARGV;
        socket(my $s, 17, 3, 0) or die "socket: $!";
        my $to = pack("SnlSCCa8", 17, 0x86dd, $index, 1, 0, 6, "");
        send($s, pack("H*", $frame), 0, $to) or die "send: $!";
    "#;
    let frame = format!("{to}{from}{rest}").replace(':', "");
    let index = container.run("cat /sys/class/net/eth0/ifindex").success().trim().to_owned();
    container.command(["perl", "-e", SCRIPT, &index, &frame]).run().success();
}

/// A router advertisement from fe80::42 to all nodes, with its EtherType.
const ADVERTISEMENT: &str = concat!(
    "86dd6000000000103afffe800000000000000000000000000042",
    "ff020000000000000000000000000001860034e6400007080000000000000000",
);

/// An address of IEEE 802.1D, to which frames are not bridged; that of LLDP.
const UNFORWARDED: &str = "01:80:c2:00:00:0e";

fn has_router(listener: &Space) -> bool {
    listener.run("ip -6 route show default proto ra").success().contains("via fe80::42")
}

fn mac_of(container: &Container) -> String {
    container.run("cat /sys/class/net/eth0/address").success().trim().to_owned()
}

/// A frame that is not bridged comes to the host by the port itself, whatever the bridge believes.
#[test]
fn the_host_takes_no_container_for_a_router_by_whatever_frame() {
    for is_gateway in [true, false] {
        let world = World::new();
        let bridge = json!({
            "type": "bridge", "bridge": "br-1", "isGateway": is_gateway,
            "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": "10.1.0.0/16" }]] },
        });
        let net = Network::new(&world, json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [bridge] }));
        let (rogue, other) = (member(&world, &net, "rogue"), member(&world, &net, "other"));
        let advertise = || {
            send_frame(&rogue, UNFORWARDED, &mac_of(&rogue), ADVERTISEMENT);
            // An answered ping from the same port comes after it.
            rogue.reaches("10.1.0.3");
            has_router(&world.host())
        };
        assert!(!advertise(), "isGateway: {is_gateway}");
        // It was not the frame's fault.
        for port in world.host().run("ls /sys/class/net/br-1/brif").success().lines() {
            world.host().run(&format!("sysctl -q -w net.ipv6.conf.{port}.accept_ra=1")).success();
        }
        wait_until("the host has believed", || advertise().then_some(()));
        drop(other);
    }
}

/// A receiver takes off every tag that names no VLAN, so an advertisement may come in a few.
#[test]
fn a_container_of_a_gateway_bridge_is_no_router_behind_vlan_tags_either() {
    const TAG: &str = "81000000";
    const SERVICE_TAG: &str = "88a80000";
    for tags in
        [TAG.to_owned(), [TAG, TAG].concat(), [SERVICE_TAG, TAG].concat(), [TAG, SERVICE_TAG].concat()]
    {
        for (is_gateway, misled) in [(true, false), (false, true)] {
            let world = World::new();
            let net = network_with(&world, json!({ "isGateway": is_gateway }));
            let (rogue, victim) = (member(&world, &net, "rogue"), member(&world, &net, "victim"));
            victim.run("sysctl -q -w net.ipv6.conf.eth0.accept_ra=2").success();
            let advertise = || {
                send_frame(&rogue, "33:33:00:00:00:01", &mac_of(&rogue), &format!("{tags}{ADVERTISEMENT}"));
                rogue.reaches("10.1.0.3");
                has_router(&victim)
            };
            match misled {
                false => assert!(!advertise(), "tags {tags}"),
                true => wait_until(&format!("tags {tags} mislead"), || advertise().then_some(())),
            }
        }
    }
}

/// The bridge learns who sent a frame that it does not forward, and no rule sees that frame.
#[test]
fn with_the_spoof_check_a_container_does_not_get_what_is_sent_to_another() {
    for checked in [true, false] {
        let world = World::new();
        let net = network_with(&world, json!({ "isGateway": true, "macspoofchk": checked }));
        let (rogue, victim) = (member(&world, &net, "rogue"), member(&world, &net, "victim"));
        let port = || {
            let fdb = world.host().run(&format!("bridge fdb get {} br br-1", mac_of(&victim)));
            fdb.success().split_whitespace().nth(2).unwrap_or_default().to_owned()
        };
        check(&victim, &["10.1.0.2"], true);
        let own = port();
        let pretend = || {
            send_frame(&rogue, UNFORWARDED, &mac_of(&victim), "88cc0000");
            port() != own
        };
        match checked {
            true => assert!(!pretend(), "the rogue's port is taken for the victim's"),
            false => wait_until("the bridge has learnt", || pretend().then_some(())),
        }
    }
}

#[test]
fn with_the_spoof_check_a_port_takes_frames_of_its_own_mac_only() {
    for (checked, answered) in [(true, false), (false, true)] {
        let world = World::new();
        let net = network_with(&world, json!({ "isGateway": true, "macspoofchk": checked }));
        let (one, two) = (member(&world, &net, "one"), member(&world, &net, "two"));
        check(&one, &["10.1.0.1", "10.1.0.3", "fd00:1::1"], true);
        one.run("ip link set eth0 address 02:00:00:00:00:99").success();
        for target in ["10.1.0.1", "10.1.0.3"] {
            one.run(&format!("ip neighbour flush to {target}"));
        }
        check(&one, &["10.1.0.1", "10.1.0.3"], answered);
        check(&two, &["10.1.0.1"], true);
    }
}

/// A network `name` with bridge `br-NUMBER`, a gateway or not.
fn plain(world: &World, name: &str, number: u8, is_gateway: bool) -> Network {
    let bridge = json!({
        "type": "bridge", "bridge": format!("br-{number}"), "isGateway": is_gateway,
        "ipam": { "type": "host-local-ipam", "ranges": [[{ "subnet": format!("10.{number}.0.0/16") }]] },
    });
    Network::new(world, json!({ "cniVersion": "1.1.0", "name": name, "plugins": [bridge] }))
}

fn ruleset(world: &World) -> String {
    world.host().run("nft list ruleset").success().to_owned()
}

fn port_of(world: &World, bridge: &str) -> String {
    world.host().run(&format!("ls /sys/class/net/{bridge}/brif")).success().trim().to_owned()
}

/// The `bridge` program as a person calls it.
fn by_hand(world: &World, path: &str, verb: &str) -> String {
    let program = Suite::Ours.binary("bridge").display().to_string();
    let command = world.host().command([program.as_str(), verb]);
    command.env("NETCONFPATH", "/run/net.d").env("CNI_PATH", path).run().success().to_owned()
}

/// Nobody counts the ports: the guard goes with the last one, whatever network that is of and whoever removes it.
#[test]
fn the_guard_is_there_as_long_as_a_port_is_guarded() {
    for last in ["DEL", "DEL without a namespace", "DEL of a renamed port", "GC", "prune", "failing ADD"] {
        let world = World::new();
        let path = world.install_plugins();
        let (one, two) = (plain(&world, "one", 1, true), plain(&world, "two", 2, true));
        let unguarded = plain(&world, "switched", 3, false);
        let switched = member(&world, &unguarded, "switched");
        assert_eq!(ruleset(&world), "");
        let (first, second) = (member(&world, &one, "first"), member(&world, &two, "second"));
        let guard = ruleset(&world);
        assert!(guard.contains("nd-router-advert"), "{guard}");
        let third = member(&world, &one, "third");
        assert_eq!(ruleset(&world), guard, "more ports make no more rules");
        unguarded.detach(&switched);
        one.detach(&third);
        one.detach(&first);
        assert_eq!(ruleset(&world), guard, "the guard is another network's as well");
        match last {
            "DEL" => two.detach(&second),
            "DEL without a namespace" => {
                world.remove_netns("second");
                wait_until("the pair is gone", || port_of(&world, "br-2").is_empty().then_some(()));
                two.detach(&second);
            }
            "DEL of a renamed port" => {
                let port = port_of(&world, "br-2");
                for change in [format!("{port} down"), format!("{port} name other")] {
                    world.host().run(&format!("ip link set {change}")).success();
                }
                two.detach(&second);
            }
            "GC" => two.gc(&[]).unwrap(),
            "prune" => {
                world.remove_netns("second");
                wait_until("the pair is gone", || port_of(&world, "br-2").is_empty().then_some(()));
                assert_eq!(ruleset(&world), guard, "the kernel does not take it along");
                by_hand(&world, &path, "prune");
            }
            _ => {
                two.detach(&second);
                let mut config = two.plugin_config(0);
                config["ipam"]["routes"] = json!([{ "dst": "10.9.0.0/16", "gw": "192.0.2.1" }]);
                let add = world.plugin("bridge").verb("ADD").container(&second).config(&config);
                add.env("CNI_PATH", &path).run().failure();
            }
        }
        assert_eq!(ruleset(&world), "", "{last}");
    }
}

#[test]
fn what_became_of_the_guard_is_named_and_mended() {
    let world = World::new();
    let path = world.install_plugins();
    let net = plain(&world, "net", 1, true);
    let resident = member(&world, &net, "resident");
    let whole = ruleset(&world);
    let port = port_of(&world, "br-1");
    let named = |damage: &str| {
        world.host().run(damage).success();
        net.check(&Attachment::of(&resident)).unwrap_err().msg
    };
    let flush = "nft flush chain bridge cni-ra-guard prerouting";
    let put_to_sleep = "nft add table bridge cni-ra-guard { flags dormant; }";
    for damage in ["nft flush ruleset", flush, put_to_sleep] {
        assert!(named(damage).contains("bridge cni-ra-guard"), "{damage}");
        // An ADD of another network brings it back for all.
        let other = plain(&world, "other", 2, true);
        let guest = member(&world, &other, "guest");
        net.check(&Attachment::of(&resident)).unwrap();
        assert_eq!(ruleset(&world), whole, "{damage}");
        other.detach(&guest);
        world.remove_netns("guest");
    }
    assert_eq!(
        named(&format!("ip link set {port} group 7")),
        format!("group of host veth \"{port}\" is 7, not 6516329")
    );
    world.write(
        "/run/net.d/net.conflist",
        json!({ "cniVersion": "1.1.0", "name": "net", "plugins": [net.plugin_config(0)] }).to_string(),
    );
    assert_eq!(by_hand(&world, &path, "repair"), format!("repaired: group of host veth \"{port}\" was 7\n"));
    net.check(&Attachment::of(&resident)).unwrap();
    world.host().run(flush).success();
    assert!(by_hand(&world, &path, "repair").contains("bridge cni-ra-guard prerouting has other rules"));
    assert_eq!(by_hand(&world, &path, "repair"), "");
    assert_eq!(ruleset(&world), whole);
}

/// An ADD that ends while another's DEL takes the last port away is guarded all the same.
#[test]
fn whoever_is_attached_is_guarded_whatever_goes_meanwhile() {
    const ROUNDS: usize = 12;
    let world = World::new();
    let net = plain(&world, "net", 1, true);
    let guests: Vec<Container> = (0..6).map(|number| world.container(&format!("guest{number}"))).collect();
    std::thread::scope(|scope| {
        for guest in &guests {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    net.attach(guest);
                    net.check(&Attachment::of(guest)).unwrap();
                    net.detach(guest);
                }
            });
        }
    });
    assert_eq!(ruleset(&world), "");
}
