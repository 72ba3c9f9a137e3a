//! podman 4 and the networks that it generates itself, as they stand: our bridge, host-local and dnsname between
//! the reference's portmap, firewall and tuning.

use integration_tests::{Output, Suite, wait_until};

use crate::support::{Podman, Site};

/// What a ping of `target` from `container` prints.
fn ping(podman: &Podman<'_>, container: &str, target: &str) -> Output {
    podman.exec(container, &format!("ping -c 1 -W 30 {target}"))
}

#[test]
fn containers_find_each_other_by_name_and_alias_and_after_a_restart_too() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.run("c1", "--network testnet --network-alias centos-1");
    podman.run("c2", "--network testnet --network-alias centos-2");
    for name in ["centos-1", "c1", "centos-1.dns.podman", "C1"] {
        ping(&podman, "c2", name)
            .has_line(&format!("PING {name}"))
            .has_line("64 bytes from c1.dns.podman (10.89.0.2): icmp_seq=1");
    }
    // The other way round, though c1 came first.
    ping(&podman, "c1", "centos-2").has_line("64 bytes from c2.dns.podman (10.89.0.3)");

    podman.ok("stop --time 0 c1");
    ping(&podman, "c2", "centos-1").failure();
    podman.ok("start c1");
    assert_eq!(podman.address("c1", "testnet"), "10.89.0.4");
    ping(&podman, "c2", "centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.4)");

    podman.ok("network reload c1");
    ping(&podman, "c2", "centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.4)");

    podman.ok("rm --force --time 0 c1");
    ping(&podman, "c2", "centos-1").failure();
    ping(&podman, "c2", "centos-2").has_line("64 bytes from");
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left(&[]);
}

#[test]
fn container_on_two_networks_is_found_on_both_and_finds_the_names_of_both() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 left");
    podman.ok("network create --subnet 10.90.0.0/24 right");
    podman.run("c1", "--network left --network-alias one");
    podman.run("c2", "--network right --network-alias two");
    podman.run("both", "--network left,right --network-alias middle");
    ping(&podman, "both", "one").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    ping(&podman, "both", "two").has_line("64 bytes from c2.dns.podman (10.90.0.2)");
    ping(&podman, "c1", "middle").has_line("64 bytes from both.dns.podman (10.89.0.3)");
    ping(&podman, "c2", "middle").has_line("64 bytes from both.dns.podman (10.90.0.3)");
    // The names of one network are not those of the other.
    ping(&podman, "c1", "two").failure();
    podman.ok("network disconnect right both");
    ping(&podman, "c2", "middle").failure();
    ping(&podman, "c1", "middle").has_line("64 bytes from both.dns.podman (10.89.0.3)");
    podman.remove_all(&["left", "right"]);
    site.assert_nothing_is_left(&[]);
}

#[test]
fn isolated_networks_do_not_reach_each_other() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 --opt isolate=true left");
    podman.ok("network create --subnet 10.90.0.0/24 --opt isolate=true right");
    podman.run("c1", "--network left");
    podman.run("c2", "--network right");
    podman.run("c3", "--network right");
    ping(&podman, "c1", "10.90.0.2").failure();
    ping(&podman, "c3", "10.90.0.2").has_line("64 bytes from");
    podman.remove_all(&["left", "right"]);
    // The reference's firewall keeps its isolation of a bridge.
    site.assert_nothing_is_left_but(&[], &integration_tests::Snapshot::OF_THE_REFERENCES_ISOLATION);
}

#[test]
fn internal_network_reaches_its_own_containers_and_nothing_else() {
    let site = Site::new();
    let podman = Podman::new(&site);
    let _outside = site.outside();
    podman.ok("network create --internal --subnet 10.91.0.0/24 --opt mtu=1400 internal");
    podman.run("c1", "--network internal");
    podman.run("c2", "--network internal");
    ping(&podman, "c2", "10.91.0.2").has_line("64 bytes from");
    ping(&podman, "c2", integration_tests::Outside::ADDRESS).failure();
    let link = podman.exec("c2", "ip link show eth0");
    assert!(link.success().contains("mtu 1400"), "{link}");
    podman.remove_all(&["internal"]);
    site.assert_nothing_is_left(&["up0"]);
}

#[test]
fn asked_addresses_are_given_and_ports_published() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.ok("network create --subnet 10.90.0.0/24 --ip-range 10.90.0.128/25 --gateway 10.90.0.254 --ipv6 --subnet fd12::/64 dual");
    podman.run("fixed", "--network testnet --ip 10.89.0.77 --mac-address 92:d0:c6:0a:29:33");
    let link = podman.exec("fixed", "ip -o address show eth0");
    assert!(link.success().contains("10.89.0.77/24"), "{link}");
    assert!(podman.exec("fixed", "ip link show eth0").success().contains("92:d0:c6:0a:29:33"));

    podman.run("dual", "--network dual:ip=10.90.0.200,ip=fd12::99");
    let addresses = podman.exec("dual", "ip -o address show eth0").success().to_owned();
    assert!(addresses.contains("10.90.0.200/24") && addresses.contains("fd12::99/64"), "{addresses}");
    podman.run("peer", "--network dual");
    ping(&podman, "peer", "-6 dual").has_line("64 bytes from dual.dns.podman (fd12::99)");
    ping(&podman, "peer", "-4 dual").has_line("64 bytes from dual.dns.podman (10.90.0.200)");

    podman.ok(&format!(
        "run --detach --name web --network testnet --publish 8080:80 {} httpd -f -p 80 -h /www",
        crate::support::IMAGE
    ));
    let page = wait_until("the web server listens", || {
        let output = site.host().run("curl --silent --max-time 5 http://127.0.0.1:8080/");
        (output.status == 0).then_some(output.stdout)
    });
    assert_eq!(page.trim(), "It works!");
    let peer = podman.exec("fixed", "fetch web");
    assert!(peer.success().contains("called by [::ffff:10.89.0.77]"), "{peer}");
    podman.remove_all(&["testnet", "dual"]);
    site.assert_nothing_is_left(&[]);
}

#[test]
fn ten_containers_at_once_get_addresses_and_names_of_their_own() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    let starting: Vec<_> = (1..=10)
        .map(|number| {
            let image = crate::support::IMAGE;
            podman.command(&format!("run --detach --name c{number} --network testnet {image}")).start()
        })
        .collect();
    for container in starting {
        container.wait().success();
    }
    let addresses: std::collections::BTreeSet<String> =
        (1..=10).map(|number| podman.address(&format!("c{number}"), "testnet")).collect();
    assert_eq!(addresses.len(), 10, "{addresses:?}");
    for number in 2..=10 {
        ping(&podman, "c1", &format!("c{number}")).has_line(&format!("64 bytes from c{number}.dns.podman"));
    }
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left(&[]);
}

#[test]
fn with_dns_of_its_own_a_container_is_found_but_does_not_ask_us() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.run("c1", "--network testnet");
    podman.run("c2", "--network testnet --dns 203.0.113.9");
    // podman's own choice: the servers that the user names take the place of the network's.
    let resolv_conf = podman.exec("c2", "cat /etc/resolv.conf").success().to_owned();
    assert!(
        resolv_conf.contains("nameserver 203.0.113.9") && !resolv_conf.contains("10.89.0.1"),
        "{resolv_conf}"
    );
    ping(&podman, "c1", "c2").has_line("64 bytes from c2.dns.podman (10.89.0.3)");
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left(&[]);
}

#[test]
fn our_examples_are_networks_of_podman_as_they_stand() {
    let site = Site::new();
    let podman = Podman::new(&site);
    for name in ["testnet", "testnet2", "docker0", "internal", "dual-stack", "link"] {
        let example = Suite::examples().join(format!("{name}.conflist"));
        site.write(format!("/etc/cni/net.d/{name}.conflist"), std::fs::read(example).unwrap());
    }
    podman.run("c1", "--network testnet --network-alias centos-1");
    podman.run("c2", "--network testnet,testnet2");
    podman.run("c3", "--network testnet2 --network-alias centos-3");
    ping(&podman, "c2", "centos-1").has_line("64 bytes from c1.testnet (172.20.0.2)");
    ping(&podman, "c2", "centos-3").has_line("64 bytes from c3.testnet2 (172.21.0.3)");
    ping(&podman, "c3", "172.20.0.2").failure();
    for (network, first) in [
        ("docker0", "172.17.0.2"),
        ("internal", "172.23.0.2"),
        ("dual-stack", "172.22.0.2"),
        ("link", "172.18.0.2"),
    ] {
        podman.run(&format!("first-{network}"), &format!("--network {network}"));
        podman.run(&format!("second-{network}"), &format!("--network {network}"));
        assert_eq!(podman.address(&format!("first-{network}"), network), first);
        ping(&podman, &format!("second-{network}"), first).has_line("64 bytes from");
    }
    podman.remove_all(&[]);
    site.assert_nothing_is_left(&["br-testnet", "br-testnet2", "docker0", "br-internal", "br-dual", "link0"]);
}

#[test]
fn our_example_takes_the_place_of_the_default_network() {
    let site = Site::new();
    let podman = Podman::new(&site);
    let example = std::fs::read(Suite::examples().join("podman.conflist")).unwrap();
    site.write("/etc/cni/net.d/87-podman.conflist", example);
    podman.ok(&format!(
        "run --detach --name web --publish 8080:80 {} httpd -f -p 80 -h /www",
        crate::support::IMAGE
    ));
    podman.run("c2", "");
    assert_eq!(podman.address("web", "podman"), "10.88.0.2");
    ping(&podman, "c2", "web").has_line("64 bytes from web.podman (10.88.0.2)");
    let page = wait_until("the web server listens", || {
        let output = site.host().run("curl --silent --max-time 5 http://127.0.0.1:8080/");
        (output.status == 0).then_some(output.stdout)
    });
    assert_eq!(page.trim(), "It works!");
    podman.remove_all(&[]);
    site.assert_nothing_is_left(&["cni-podman0"]);
}

/// The containers of a pod share the namespace of one that podman puts before them, and its names: those of the pod.
#[test]
fn pod_is_found_by_its_name_and_alias_and_after_a_restart_too() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.ok("pod create --infra-image localhost/pause:1 --name web --network testnet --network-alias site");
    podman.run("server", "--pod web");
    podman.run("client", "--network testnet");
    for name in ["web", "site"] {
        ping(&podman, "client", name).has_line("64 bytes from web.dns.podman (10.89.0.2)");
    }
    ping(&podman, "server", "client").has_line("64 bytes from client.dns.podman (10.89.0.3)");

    podman.ok("pod stop --time 0 web");
    ping(&podman, "client", "site").failure();
    podman.ok("pod start web");
    ping(&podman, "client", "site").has_line("64 bytes from web.dns.podman (10.89.0.4)");
    // The namespace is the pod's.
    podman.ok("restart --time 0 server");
    ping(&podman, "server", "client").has_line("64 bytes from client.dns.podman (10.89.0.3)");

    podman.ok("pod rm --force --time 0 web");
    ping(&podman, "client", "site").failure();
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left(&[]);
}

#[test]
fn names_are_back_without_help_after_the_server_was_killed() {
    let site = Site::new();
    let podman = Podman::new(&site);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.run("c1", "--network testnet --network-alias centos-1");
    podman.run("c2", "--network testnet");
    for _ in 0..3 {
        site.host().command(["sh", "-c", "kill -9 $(pgrep -f '[a]lias-dns serve')"]).run().success();
        ping(&podman, "c2", "centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    }
    podman.run("c3", "--network testnet");
    ping(&podman, "c3", "centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left(&[]);
}
