//! Hosts whose containers had their names and addresses from somebody else: podman's dnsname, Docker's default bridge.
//! (From the reference plugins, and back: `integration/migration.rs`.)

use std::os::unix::fs::symlink;

use integration_tests::{Network, Outside};

use crate::support::{Dockerd, Podman, Site};

/// Where Debian's package has dnsname.
const DNSNAME: &str = "/usr/lib/cni/dnsname";

/// What dnsname leaves on a host: its directory, and the rule that lets its server be asked.
const DNSNAME_KEEPS: [&str; 3] = ["/run/containers", "chain INPUT {", "udp dport 53"];

/// Puts another program behind the name dnsname.
fn install_dnsname(site: &Site, program: &str) {
    let link = site.path("/opt/cni/bin/dnsname");
    std::fs::remove_file(&link).unwrap();
    symlink(program, link).unwrap();
}

/// Two containers whose names are dnsname's, and our plugins installed since; the network's dnsmasq still runs.
#[track_caller]
fn two_containers_of_dnsname(podman: &Podman<'_>, site: &Site) {
    let ours = std::fs::read_link(site.path("/opt/cni/bin/dnsname")).unwrap();
    install_dnsname(site, DNSNAME);
    podman.ok("network create --subnet 10.89.0.0/24 testnet");
    podman.run("c1", "--network testnet --network-alias centos-1");
    podman.run("c2", "--network testnet --network-alias centos-2");
    podman.exec("c2", "ping -c 1 -W 5 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    install_dnsname(site, ours.to_str().unwrap());
}

/// Ends the dnsmasq that dnsname has left behind: it is told of no container that ours have detached.
#[track_caller]
fn end_dnsmasq(site: &Site) {
    site.host()
        .command(["sh", "-c", "kill $(cat /run/containers/cni/dnsname/testnet/pidfile)"])
        .run()
        .success();
}

#[test]
fn names_of_podmans_dnsname_become_ours_without_a_restart() {
    let site = Site::new();
    let podman = Podman::new(&site);
    two_containers_of_dnsname(&podman, &site);
    podman.ok("network reload --all");
    podman.exec("c2", "ping -c 1 -W 5 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.exec("c1", "ping -c 1 -W 5 centos-2").has_line("64 bytes from c2.dns.podman (10.89.0.3)");
    // With the old server gone, ours answers as before.
    end_dnsmasq(&site);
    podman.exec("c2", "ping -c 1 -W 5 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left_but(&[], &DNSNAME_KEEPS);
}

#[test]
fn container_that_joins_a_network_of_dnsname_is_served_by_ours_and_finds_the_others_once_they_are_reloaded() {
    let site = Site::new();
    let podman = Podman::new(&site);
    two_containers_of_dnsname(&podman, &site);
    podman.run("c3", "--network testnet --network-alias centos-3");
    podman.exec("c3", "ping -c 1 -W 5 centos-3").has_line("PING centos-3.dns.podman (10.89.0.4)");
    podman.exec("c3", "ping -c 1 -W 5 centos-1").failure();
    podman.ok("network reload c1 c2");
    podman.exec("c3", "ping -c 1 -W 5 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.exec("c1", "ping -c 1 -W 5 centos-3").has_line("64 bytes from c3.dns.podman (10.89.0.4)");
    podman.remove_all(&["testnet"]);
    end_dnsmasq(&site);
    site.assert_nothing_is_left_but(&[], &DNSNAME_KEEPS);
}

#[test]
fn bridge_that_docker_left_serves_our_containers_on_its_addresses() {
    let site = Site::new();
    let outside = site.outside();
    let docker = Dockerd::start(&site);
    docker.run("c0", "");
    docker.ok("rm --force c0");
    docker.stop();
    let network = Network::example(&site, "docker0");
    let (c1, c2) = (site.container("c1"), site.container("c2"));
    let first = network.attach(&c1);
    assert_eq!(first["ips"][0]["address"], "172.17.0.2/16", "{first}");
    assert_eq!(first["ips"][0]["gateway"], "172.17.0.1", "{first}");
    network.attach(&c2);
    for container in [&c1, &c2] {
        for target in ["172.17.0.1", "172.17.0.2", "172.17.0.3", Outside::ADDRESS] {
            assert!(container.reaches(target), "{} to {target}", container.name());
        }
    }
    // From the outside the host's address is all that is seen of them.
    let _server = outside.space().serve("0.0.0.0:80");
    let seen = c1.fetch(&format!("http://{}/", Outside::ADDRESS));
    assert!(seen.ends_with(&format!("called by {}", Outside::HOST)), "{seen}");
    network.detach(&c1);
    network.detach(&c2);
    let links = site.host().run("ip -o link show master docker0");
    assert_eq!(links.success(), "", "ports are left");
}
