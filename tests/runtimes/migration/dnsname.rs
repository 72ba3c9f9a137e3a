//! podman's dnsname: a dnsmasq for each network.

use std::os::unix::fs::symlink;

use crate::support::{Podman, Site};

/// Where Debian's package has dnsname.
const DNSNAME: &str = "/usr/lib/cni/dnsname";

/// What dnsname leaves on a host: its directory, and the rule that lets its server be asked.
const DNSNAME_KEEPS: [&str; 2] = [
    "iptables: + ip filter: -A INPUT -i cni-podman1 -p udp -m udp --dport 53 -j ACCEPT",
    "files: + /run/containers/cni/dnsname/*",
];

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
    podman.exec("c2", "ping -c 1 -W 30 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
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
    podman.exec("c2", "ping -c 1 -W 30 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.exec("c1", "ping -c 1 -W 30 centos-2").has_line("64 bytes from c2.dns.podman (10.89.0.3)");
    // With the old server gone, ours answers as before.
    end_dnsmasq(&site);
    podman.exec("c2", "ping -c 1 -W 30 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.remove_all(&["testnet"]);
    site.assert_nothing_is_left_but(&[], &DNSNAME_KEEPS);
}

#[test]
fn container_that_joins_a_network_of_dnsname_is_served_by_ours_and_finds_the_others_once_they_are_reloaded() {
    let site = Site::new();
    let podman = Podman::new(&site);
    two_containers_of_dnsname(&podman, &site);
    podman.run("c3", "--network testnet --network-alias centos-3");
    podman.exec("c3", "ping -c 1 -W 30 centos-3").has_line("PING centos-3.dns.podman (10.89.0.4)");
    podman.exec("c3", "ping -c 1 -W 30 centos-1").failure();
    podman.ok("network reload c1 c2");
    podman.exec("c3", "ping -c 1 -W 30 centos-1").has_line("64 bytes from c1.dns.podman (10.89.0.2)");
    podman.exec("c1", "ping -c 1 -W 30 centos-3").has_line("64 bytes from c3.dns.podman (10.89.0.4)");
    podman.remove_all(&["testnet"]);
    end_dnsmasq(&site);
    site.assert_nothing_is_left_but(&[], &DNSNAME_KEEPS);
}
