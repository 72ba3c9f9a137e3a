//! A container that publishes port 53 on every address of the host, as the reference `portmap` does it: the gateways'
//! queries are not for it.

use std::net::{TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;

use alias_dns::daemon;
use alias_dns::records::Record;
use domain::base::iana::Rtype;

use crate::Test;
use crate::dns::{ask, connect, query, receive, send};
use crate::serving::ruleset;
use crate::world::{
    GATEWAY, GATEWAY_V6, container, eventually, host, in_time, inside, kill_all, listens, put, put_record,
    record, remove, run, state,
};

pub(crate) const TESTS: &[Test] = &[
    ("a_port_53_that_is_published_takes_no_query_of_any_network", published),
    ("a_published_port_53_takes_no_query_where_iptables_writes_it", published_by_iptables),
    ("a_published_port_53_takes_no_query_where_iptables_legacy_writes_it", published_by_legacy_iptables),
    ("queries_pass_by_published_ports_again_after_the_rules_were_flushed", flushed),
    ("a_redirect_to_another_port_comes_first_whichever_was_made_last", redirected),
    ("where_nothing_is_translated_no_rule_is_made_for_it", nothing_translated),
];

/// The network of another bridge, which joined before anything was published.
const OTHER_GATEWAY: &str = "172.30.0.1";

/// The host's address outside.
const OUTSIDE: &str = "192.0.2.1";

/// What the container that publishes says to everybody.
const PUBLISHED: &[u8] = b"published";

const BY_NFT: &str = "
    table inet hostports {
        chain hostports { meta l4proto { udp, tcp } th dport 53 dnat ip to 172.20.0.9
            meta l4proto { udp, tcp } th dport 53 dnat ip6 to fd00:20::9
        }
        chain prerouting { type nat hook prerouting priority dstnat;
            fib daddr type local jump hostports
        }
        chain output { type nat hook output priority -100;
            fib daddr type local jump hostports
        }
    }";

fn published() {
    check(&|| {
        std::fs::write("/run/publish", BY_NFT).unwrap();
        run("nft -f /run/publish");
    });
}

fn published_by_iptables() {
    check(&|| publish_by("nft"));
}

fn published_by_legacy_iptables() {
    check(&|| publish_by("legacy"));
}

fn publish_by(backend: &str) {
    for (tool, to) in [("iptables", "172.20.0.9"), ("ip6tables", "fd00:20::9")] {
        for (chain, protocol) in
            [("PREROUTING", "udp"), ("PREROUTING", "tcp"), ("OUTPUT", "udp"), ("OUTPUT", "tcp")]
        {
            run(&format!(
                "{tool}-{backend} -t nat -A {chain} -p {protocol} -m addrtype --dst-type LOCAL --dport 53 \
                 -j DNAT --to-destination {to}"
            ));
        }
    }
}

fn check(publish: &dyn Fn()) {
    hosts();
    publish();
    let before = ruleset();
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    all_are_answered();
    published_port_is_reached();
    let made = with_handles();
    // What a firewall saves as it is listed can be loaded again.
    run("nft list ruleset | nft --check --file -");
    // Nothing is made anew that is there.
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(with_handles(), made);
    remove("c1");
    remove("c2");
    other_network_is_answered();
    remove("other");
    assert_eq!(ruleset(), before);
    published_port_is_reached();
}

fn flushed() {
    hosts();
    let publish = || {
        std::fs::write("/run/publish", BY_NFT).unwrap();
        run("nft flush ruleset && nft -f /run/publish");
    };
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    let added = || put("c1", "172.20.0.2", "centos-1");
    let checked = || assert!(listens(&record("c1", "172.20.0.2", "centos-1")));
    let tended = || in_time("tend", || daemon::tend(&state()));
    let of_another_network = || put_record(&other());
    let calls: [&dyn Fn(); 4] = [&added, &checked, &tended, &of_another_network];
    for call in calls {
        publish();
        call();
        all_are_answered();
        let made = lines_of_rules();
        // Others may take away any part of it.
        for part in [
            "flush chain ip cni-names from-bridges",
            "flush chain ip6 cni-names from-host",
            "flush set ip cni-names bridges",
            "flush set ip6 cni-names gateways",
            "delete table ip cni-names",
            "delete chain ip6 cni-names from-bridges",
        ] {
            run(&format!("nft {part}"));
            tended();
            all_are_answered();
            assert_eq!(lines_of_rules(), made, "{part}");
        }
        published_port_is_reached();
    }
}

fn redirected() {
    hosts();
    publish_by("nft");
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    run("(echo delete table ip cni-names && nft list table ip cni-names && \
          echo delete table ip6 cni-names && nft list table ip6 cni-names) > /run/saved");
    kill_all();
    let _taken = (UdpSocket::bind("[::]:53").unwrap(), TcpListener::bind("[::]:53").unwrap());
    put("c1", "172.20.0.2", "centos-1");
    all_are_answered();
    run("nft -f /run/saved");
    all_are_answered();
}

fn nothing_translated() {
    hosts();
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(ruleset(), "");
    // Translated in one family only: in the other one connections need not be tracked.
    run(
        "nft add table ip6 nat && nft 'add chain ip6 nat post { type nat hook postrouting priority srcnat; }'",
    );
    put("c1", "172.20.0.2", "centos-1");
    assert!(ruleset().contains("table ip6 cni-names") && !ruleset().contains("table ip cni-names"));
}

/// Two networks, the second one with a container already; a container that publishes; and somebody outside.
fn hosts() {
    host();
    container("c9", 9);
    run(&format!(
        "ip link add br1 type bridge && ip addr add {OTHER_GATEWAY}/16 dev br1 && ip link set br1 up && \
         ip netns add other && ip link add o2 type veth peer name eth0 netns other && \
         ip link set o2 master br1 up && ip -n other addr add 172.30.0.2/16 dev eth0 && \
         ip -n other link set eth0 up && \
         ip netns add outside && ip link add out type veth peer name eth0 netns outside && \
         ip addr add {OUTSIDE}/24 dev out && ip link set out up && \
         ip -n outside addr add 192.0.2.2/24 dev eth0 && ip -n outside link set eth0 up"
    ));
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
    std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
    std::thread::spawn(|| {
        inside("c9", || {
            let socket = UdpSocket::bind("[::]:53").unwrap();
            let mut room = [0; 512];
            while let Ok((_, peer)) = socket.recv_from(&mut room) {
                let _ = socket.send_to(PUBLISHED, peer);
            }
        });
    });
    put_record(&other());
}

fn other() -> Record {
    let gateways = vec![format!("{OTHER_GATEWAY}/16").parse().unwrap()];
    let addresses = vec!["172.30.0.2".parse().unwrap()];
    Record { bridge: "br1".to_owned(), gateways, addresses, ..record("other", "172.30.0.2", "centos-3") }
}

fn all_are_answered() {
    let check = |from: &'static str| {
        for server in [GATEWAY, GATEWAY_V6] {
            let expected = ["A 172.20.0.3"];
            assert_eq!(ask(server, "centos-2", Rtype::A).expect(server).answer, expected, "{from}");
            let mut stream = connect(server);
            send(&mut stream, &query(1, "centos-2", Rtype::A, None));
            assert_eq!(receive(&mut stream).expect(server).answer, expected, "{from}");
        }
    };
    inside("c1", move || check("c1"));
    check("the host");
    other_network_is_answered();
}

fn other_network_is_answered() {
    inside("other", || {
        assert_eq!(ask(OTHER_GATEWAY, "centos-3", Rtype::A).unwrap().answer, ["A 172.30.0.2"]);
    });
}

/// The rules of the host, without the order of their tables.
fn lines_of_rules() -> Vec<String> {
    let mut lines: Vec<String> = ruleset().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The rules of the host, with numbers that are never given twice.
fn with_handles() -> String {
    let listed = Command::new("nft").args(["--handle", "--stateless", "list", "ruleset"]).output().unwrap();
    String::from_utf8(listed.stdout).unwrap()
}

fn published_port_is_reached() {
    eventually("the published port is reached from outside", || {
        inside("outside", || {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            let mut room = [0; 512];
            socket.send_to(b"?", (OUTSIDE, 53)).unwrap();
            socket.recv(&mut room).is_ok_and(|len| room[..len] == *PUBLISHED)
        })
    });
}
