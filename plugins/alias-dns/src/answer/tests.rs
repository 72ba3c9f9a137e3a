use std::fmt::Write as _;
use std::net::Ipv4Addr;

use cni_types::Attachment;
use proptest::prelude::*;

use super::*;
use crate::domain_name::DomainName;
use crate::records::{Link, Record, RecordKey};

const N1: &str = "ad9e1859bf3a0000000000000000000000000000000000000000000000000000";
const N2: &str = "fa5a06abf4c20000000000000000000000000000000000000000000000000000";
const X1: &str = "951fb7e91e810000000000000000000000000000000000000000000000000000";

/// A record to change what a test is about.
fn record(network: &str, container_id: &str, address: &str, names: &[&str]) -> Record {
    let (bridge, gateways): (_, &[&str]) = match network {
        "testnet" => ("br-testnet", &["172.20.0.1/16"]),
        "testnet2" => ("br-testnet2", &["172.18.0.1/16"]),
        "dual" => ("br-dual", &["10.90.0.254/24", "fd12::1/64"]),
        _ => ("br-other", &["10.89.0.1/20"]),
    };
    Record {
        key: RecordKey::new(network, Attachment::new(container_id, "eth0").unwrap()).unwrap(),
        boot: None,
        joined: 1,
        bridge: bridge.into(),
        gateways: gateways.iter().map(|gateway| gateway.parse().unwrap()).collect(),
        addresses: address.split_whitespace().map(|ip| ip.parse().unwrap()).collect(),
        names: names.iter().map(|name| DomainName::new(*name).unwrap()).collect(),
        links: Vec::new(),
        domain: DomainName::new(network).unwrap(),
        other_domains: Vec::new(),
        ttl: 5,
        forward: true,
        upstreams: Vec::new(),
        netns: None,
    }
}

fn link(target: &str, alias: &str) -> Link {
    Link { target: DomainName::new(target).unwrap(), alias: DomainName::new(alias).unwrap() }
}

/// What stood when `captures/docker-02-userdefined.txt` was taken: n1 and n2 on testnet, n2 linked to n1 as `lnk`, both
/// with the alias `shared`; x1 on testnet2, also called `centos-1` there.
fn docker() -> Vec<Record> {
    vec![
        record("testnet", N1, "172.20.0.2", &["n1", "centos-1", "shared", "ad9e1859bf3a"]),
        Record {
            links: vec![link("n1", "lnk")],
            joined: 2,
            ..record("testnet", N2, "172.20.0.3", &["n2", "shared", "fa5a06abf4c2"])
        },
        record("testnet2", X1, "172.18.0.2", &["x1", "centos-1", "951fb7e91e81"]),
    ]
}

/// n2 after `docker network connect testnet2`.
fn connected() -> Vec<Record> {
    let mut records = docker();
    records.push(Record { joined: 3, ..record("testnet2", N2, "172.18.0.3", &["n2", "fa5a06abf4c2"]) });
    records
}

const FROM_N1: Asker<'_> = asker("br-testnet", [172, 20, 0, 2]);
const FROM_N2: Asker<'_> = asker("br-testnet", [172, 20, 0, 3]);
const FROM_HOST: Asker<'_> = asker("br-testnet", [172, 20, 0, 1]);

const fn asker(bridge: &str, ip: [u8; 4]) -> Asker<'_> {
    let gateway = IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], 0, 1));
    Asker { bridge, gateway, source: IpAddr::V4(Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3])) }
}

/// The answer to `TYPE name` in words, with `rotation` 0.
fn asked(zones: &Zones, asker: Asker<'_>, question: &str) -> String {
    rotated(zones, asker, question, 0)
}

fn rotated(zones: &Zones, asker: Asker<'_>, question: &str, rotation: u32) -> String {
    let (rtype, name) = question.split_once(' ').unwrap();
    let name: Name<Vec<u8>> = name.parse().unwrap();
    let question = Question { name: name.for_slice(), rtype: rtype.parse().unwrap() };
    let zone = |apex: Apex| Name::from_slice(&name.as_slice()[apex.0..]).unwrap().fmt_with_dot().to_string();
    match answer(zones, asker, question, rotation) {
        Answer::Addresses(set) => {
            let mut text = set.rtype().to_string();
            assert_eq!(set.iter().count(), set.len());
            set.iter().for_each(|ip| write!(text, " {ip}").unwrap());
            text
        }
        Answer::Pointer(pointer) => format!("PTR {}.{}.", pointer.name, pointer.domain),
        Answer::Soa(apex) => format!("SOA {}", zone(apex)),
        Answer::Ns(apex) => format!("NS {}", zone(apex)),
        Answer::NoData(apex) => format!("NODATA {}", zone(apex)),
        Answer::NxDomain(apex) => format!("NXDOMAIN {}", zone(apex)),
        Answer::Forward(upstreams) => format!("FORWARD {upstreams:?}"),
        Answer::Refused => "REFUSED".into(),
    }
}

#[track_caller]
fn check(records: Vec<Record>, asker: Asker<'_>, cases: &[(&str, &str)]) {
    let zones = Zones::load(records);
    let answered: Vec<(&str, String)> =
        cases.iter().map(|(question, _)| (*question, asked(&zones, asker, question))).collect();
    let expected: Vec<(&str, String)> =
        cases.iter().map(|(question, answer)| (*question, (*answer).to_owned())).collect();
    assert_eq!(answered, expected);
}

/// Line by line what the capture has, and what Docker left without an answer.
#[test]
fn a_container_is_answered_as_docker_answers() {
    check(
        docker(),
        FROM_N2,
        &[
            ("A centos-1", "A 172.20.0.2"),
            ("A centos-1.testnet", "A 172.20.0.2"),
            ("A n1", "A 172.20.0.2"),
            ("A n1.testnet", "A 172.20.0.2"),
            ("A lnk", "A 172.20.0.2"),
            ("A lnk.testnet", "A 172.20.0.2"),
            ("A ad9e1859bf3a", "A 172.20.0.2"),
            ("A x1", "NXDOMAIN ."),
            ("A CENTOS-1", "A 172.20.0.2"),
            ("A Centos-1.TestNet", "A 172.20.0.2"),
            ("A nosuch", "NXDOMAIN ."),
            ("AAAA centos-1", "NODATA ."),
            ("AAAA centos-1.testnet", "NODATA testnet."),
            ("PTR 2.0.20.172.in-addr.arpa", "PTR n1.testnet."),
            ("PTR 3.0.20.172.in-addr.arpa", "PTR n2.testnet."),
            ("PTR 1.0.20.172.in-addr.arpa", "PTR _gateway.testnet."),
            ("TXT centos-1", "NODATA ."),
            ("MX centos-1", "NODATA ."),
            ("SRV centos-1.testnet", "NODATA testnet."),
            ("SOA centos-1.testnet", "NODATA testnet."),
            ("NS centos-1.testnet", "NODATA testnet."),
            ("HTTPS centos-1", "NODATA ."),
            ("ANY centos-1", "A 172.20.0.2"),
        ],
    );
}

#[test]
fn a_shared_alias_has_all_addresses_in_turn() {
    let zones = Zones::load(docker());
    let turns: Vec<String> = (0..4).map(|turn| rotated(&zones, FROM_N2, "A shared", turn)).collect();
    assert_eq!(
        turns,
        [
            "A 172.20.0.2 172.20.0.3",
            "A 172.20.0.3 172.20.0.2",
            "A 172.20.0.2 172.20.0.3",
            "A 172.20.0.3 172.20.0.2"
        ]
    );
}

#[test]
fn a_link_is_seen_by_its_container_alone() {
    check(
        docker(),
        FROM_N1,
        &[("A lnk", "NXDOMAIN ."), ("A lnk.testnet", "NXDOMAIN testnet."), ("A n2", "A 172.20.0.3")],
    );
}

#[test]
fn a_link_follows_its_target_by_name() {
    let mut zones = Zones::load(docker());
    let n1 = record("testnet", N1, "172.20.0.2", &["n1"]);
    zones.remove(&n1.key);
    assert_eq!(asked(&zones, FROM_N2, "A lnk"), "NXDOMAIN .");
    assert_eq!(asked(&zones, FROM_N2, "A lnk.testnet"), "NXDOMAIN testnet.");
    let addresses = vec!["172.20.0.77".parse().unwrap()];
    zones.apply(Record { joined: 9, addresses, ..n1 });
    assert_eq!(asked(&zones, FROM_N2, "A lnk"), "A 172.20.0.77");
    assert_eq!(asked(&zones, FROM_N2, "AAAA lnk"), "NODATA .");
}

#[test]
fn a_link_hides_a_real_name_from_its_container_even_without_target() {
    let mut records = docker();
    records[1].links = vec![link("n1", "centos-9"), link("later", "db")];
    records.push(record("testnet", "c9", "172.20.0.9", &["centos-9", "db"]));
    check(
        records.clone(),
        FROM_N2,
        &[("A centos-9", "A 172.20.0.2"), ("A centos-9.testnet", "A 172.20.0.2"), ("A db", "NXDOMAIN .")],
    );
    check(records, FROM_N1, &[("A centos-9", "A 172.20.0.9"), ("A db", "A 172.20.0.9")]);
}

#[test]
fn a_container_on_several_networks_sees_all_of_them_the_first_one_first() {
    check(
        connected(),
        FROM_N2,
        &[
            ("A centos-1", "A 172.20.0.2"),
            ("A centos-1.testnet2", "A 172.18.0.2"),
            ("A x1", "A 172.18.0.2"),
            ("A x1.testnet", "NXDOMAIN testnet."),
            ("PTR 2.0.20.172.in-addr.arpa", "PTR n1.testnet."),
            ("PTR 2.0.18.172.in-addr.arpa", "PTR x1.testnet2."),
        ],
    );
    // The same container, asking by its other interface.
    check(connected(), asker("br-testnet2", [172, 18, 0, 3]), &[("A centos-1", "A 172.20.0.2")]);
    check(
        connected(),
        asker("br-testnet2", [172, 18, 0, 2]),
        &[("A centos-1", "A 172.18.0.2"), ("A n1", "NXDOMAIN .")],
    );
}

#[test]
fn dotted_names_are_searched_as_docker_does() {
    let mut records = docker();
    records[1].key = RecordKey::new("testnet", Attachment::new(N2, "eth0").unwrap()).unwrap();
    records.push(record("testnet", "c4", "172.20.0.4", &["a.b.c"]));
    records.push(record("testnet", "c5", "172.20.0.5", &["web-1", "web-1.default"]));
    records
        .push(Record { domain: DomainName::new("b.c").unwrap(), ..record("b.c", N2, "10.89.0.9", &["me"]) });
    records.push(Record {
        domain: DomainName::new("b.c").unwrap(),
        ..record("b.c", "c6", "10.89.0.6", &["a", "z"])
    });
    check(
        records,
        FROM_N2,
        &[
            ("A a.b.c", "A 172.20.0.4"),
            ("A a.b.c.testnet", "A 172.20.0.4"),
            ("A z.b.c", "A 10.89.0.6"),
            ("A web-1.default", "A 172.20.0.5"),
            ("A web-1.default.testnet", "A 172.20.0.5"),
            ("A y.b.c", "NXDOMAIN b.c."),
        ],
    );
}

#[test]
fn what_only_stands_above_a_domain_or_a_link_has_no_data() {
    let name = |text: &str| DomainName::new(text).unwrap();
    let linking = Record {
        links: vec![link("a", "db.prod.shop")],
        other_domains: vec![name("dns.podman"), name("deep.below.testnet")],
        ..record("testnet", N1, "172.20.0.2", &["a"])
    };
    let records = || vec![linking.clone(), record("testnet", N2, "172.20.0.3", &["b"])];
    check(
        records(),
        FROM_N1,
        &[
            ("A a.dns.podman", "A 172.20.0.2"),
            ("A podman", "NODATA ."),
            ("A odman", "NXDOMAIN ."),
            ("A below.testnet", "NODATA testnet."),
            ("A x.below.testnet", "NXDOMAIN testnet."),
            ("A db.prod.shop", "A 172.20.0.2"),
            ("A prod.shop.testnet", "NODATA testnet."),
            ("A shop", "NODATA ."),
            ("A prod", "NXDOMAIN ."),
        ],
    );
    // The link is private, and so is what stands above it.
    check(records(), FROM_N2, &[("A shop", "NXDOMAIN ."), ("A shop.testnet", "NXDOMAIN testnet.")]);
}

#[test]
fn a_name_that_only_stands_above_others_has_no_data() {
    let names = ["a", "web.default", "x.y.example.com"];
    let records = || {
        vec![
            record("testnet", N1, "172.20.0.2", &names),
            record("testnet", N2, "172.20.0.3", &["api.default"]),
            record("testnet2", X1, "172.18.0.2", &["b.elsewhere"]),
        ]
    };
    check(
        records(),
        FROM_N1,
        &[
            ("A web.default.testnet", "A 172.20.0.2"),
            ("A default.testnet", "NODATA testnet."),
            ("TXT DEFAULT.TestNet", "NODATA TestNet."),
            ("A y.example.com.testnet", "NODATA testnet."),
            ("A com.testnet", "NODATA testnet."),
            ("A web.testnet", "NXDOMAIN testnet."),
            ("A x.default.testnet", "NXDOMAIN testnet."),
            ("A efault.testnet", "NXDOMAIN testnet."),
            ("A elsewhere.testnet", "NXDOMAIN testnet."),
            ("A elsewhere.testnet2", "NXDOMAIN testnet2."),
            ("A default", "NODATA ."),
            ("DS default", "NODATA ."),
            ("A elsewhere", "NXDOMAIN ."),
            ("A example.com", "FORWARD []"),
        ],
    );
    // As long as one of them is there.
    let mut zones = Zones::load(records());
    zones.remove(&record("testnet", N2, "172.20.0.3", &[]).key);
    assert_eq!(asked(&zones, FROM_N1, "A default.testnet"), "NODATA testnet.");
    zones.apply(record("testnet", N1, "172.20.0.2", &["a"]));
    assert_eq!(asked(&zones, FROM_N1, "A default.testnet"), "NXDOMAIN testnet.");
}

#[test]
fn what_stands_above_ours_has_no_data_where_nobody_else_is_asked() {
    let internal = Record {
        links: vec![link("a", "db.prod.shop")],
        domain: DomainName::new("deep.corp.example").unwrap(),
        forward: false,
        gateways: vec!["172.20.0.1/25".parse().unwrap(), "fd00:20::1/66".parse().unwrap()],
        ..record("testnet", N1, "172.20.0.2", &["a", "x.y.z"])
    };
    check(
        vec![internal],
        FROM_N1,
        &[
            ("A y.z", "NODATA ."),
            ("A prod.shop", "NODATA ."),
            ("TXT Corp.Example", "NODATA ."),
            ("A w.z", "NXDOMAIN ."),
            ("A other.example", "NXDOMAIN ."),
            ("NS arpa", "NODATA ."),
            ("NS in-addr.arpa", "NODATA ."),
            ("NS 172.in-addr.arpa", "NODATA ."),
            ("NS 0.20.172.In-Addr.arpa", "NODATA ."),
            ("NS d.f.ip6.arpa", "NODATA ."),
            ("NS e.f.ip6.arpa", "NXDOMAIN ."),
            ("NS 10.in-addr.arpa", "NXDOMAIN ."),
            ("NS x.172.in-addr.arpa", "NXDOMAIN ."),
            ("NS home.arpa", "NXDOMAIN ."),
        ],
    );
}

#[test]
fn what_is_not_ours_goes_to_the_upstreams_unless_it_may_not() {
    let upstream: SocketAddr = "9.9.9.9:53".parse().unwrap();
    check(
        docker(),
        FROM_N2,
        &[
            ("A example.com", "FORWARD []"),
            ("NS .", "FORWARD []"),
            ("PTR 1.2.0.192.in-addr.arpa", "FORWARD []"),
            ("PTR 172.in-addr.arpa", "FORWARD []"),
            ("A nosuch", "NXDOMAIN ."),
            // Whoever validates begins at the root.
            ("DS com", "FORWARD []"),
            ("DNSKEY Com", "FORWARD []"),
            ("NS com", "NXDOMAIN ."),
            ("SOA com", "NXDOMAIN ."),
            ("DNSKEY arpa", "FORWARD []"),
            ("ANY com", "NXDOMAIN ."),
            ("HTTPS com", "NXDOMAIN ."),
            ("DS n1", "NODATA ."),
            ("DS testnet", "NODATA testnet."),
            ("A nosuch.testnet", "NXDOMAIN testnet."),
            // A network that n2 is not on is ours all the same.
            ("A x1.testnet2", "NXDOMAIN testnet2."),
            ("PTR 2.0.18.172.in-addr.arpa", "NXDOMAIN 18.172.in-addr.arpa."),
        ],
    );
    let mut records = connected();
    records[1].upstreams = Vec::new();
    records[3].upstreams = vec![upstream];
    check(records.clone(), FROM_N2, &[("A example.com", "FORWARD [9.9.9.9:53]")]);
    records.iter_mut().for_each(|record| record.forward = false);
    check(
        records.clone(),
        FROM_N2,
        &[
            ("A example.com", "NXDOMAIN ."),
            ("DS com", "NXDOMAIN ."),
            ("PTR 1.2.0.192.in-addr.arpa", "NXDOMAIN ."),
            ("NS .", "NS ."),
            ("A .", "NODATA ."),
        ],
    );
    records[3].forward = true;
    check(records, FROM_N2, &[("A example.com", "FORWARD [9.9.9.9:53]")]);
}

#[test]
fn the_host_sees_the_network_that_it_asks() {
    check(
        docker(),
        FROM_HOST,
        &[
            ("A centos-1", "A 172.20.0.2"),
            ("A lnk", "NXDOMAIN ."),
            ("A x1", "NXDOMAIN ."),
            ("PTR 2.0.20.172.in-addr.arpa", "PTR n1.testnet."),
            ("A example.com", "FORWARD []"),
        ],
    );
}

#[test]
fn the_host_sees_the_network_that_it_asks_by_whatever_gateway_address_it_asks() {
    let second = Record {
        bridge: "br-testnet".into(),
        ..record("testnet2", X1, "172.18.0.2", &["x1", "centos-1", "951fb7e91e81"])
    };
    let records = || vec![record("testnet", N1, "172.20.0.2", &["centos-1"]), second.clone()];
    for asker in [FROM_HOST, asker("br-testnet", [172, 18, 0, 1])] {
        for (gateway, centos_1, x1) in [
            ([172, 20, 0, 1], "A 172.20.0.2", "NXDOMAIN ."),
            ([172, 18, 0, 1], "A 172.18.0.2", "A 172.18.0.2"),
        ] {
            let asker = Asker { gateway: gateway.into(), ..asker };
            check(records(), asker, &[("A centos-1", centos_1), ("A x1", x1)]);
        }
    }
}

#[test]
fn the_host_finds_every_gateway_of_a_network_whichever_its_containers_have() {
    let narrow = Record {
        gateways: vec!["10.90.0.254/24".parse().unwrap()],
        ..record("dual", "c1", "10.90.0.200", &["d1"])
    };
    let gateway = IpAddr::from([10, 90, 0, 254]);
    check(
        vec![narrow, record("dual", "c2", "10.90.0.201 fd12::a", &["d2"])],
        Asker { bridge: "br-dual", gateway, source: gateway },
        &[
            ("A _gateway.dual", "A 10.90.0.254"),
            ("AAAA _gateway.dual", "AAAA fd12::1"),
            ("MX _gateway.dual", "NODATA dual."),
        ],
    );
}

#[test]
fn of_networks_with_the_same_gateway_the_host_sees_the_first_by_name_whichever_came_first() {
    let on_bridge = |network, address: &str| Record {
        bridge: "br-testnet".into(),
        gateways: vec!["172.20.0.1/16".parse().unwrap()],
        ..record(network, network, address, &["web"])
    };
    let (first, second) = (on_bridge("a", "172.20.0.2"), on_bridge("b", "172.20.0.3"));
    for records in [vec![first.clone(), second.clone()], vec![second, first]] {
        check(records, FROM_HOST, &[("A web", "A 172.20.0.2")]);
    }
}

#[test]
fn localhost_is_whoever_asks_and_never_asked_for_elsewhere() {
    check(
        docker(),
        FROM_N2,
        &[
            ("A localhost", "A 127.0.0.1"),
            ("AAAA LocalHost", "AAAA ::1"),
            ("A x.localhost", "A 127.0.0.1"),
            ("ANY localhost", "A 127.0.0.1"),
            ("TXT x.localhost", "NODATA localhost."),
            ("TXT localhost", "NODATA localhost."),
            ("SOA localhost", "SOA localhost."),
            ("A localhost.testnet", "NXDOMAIN testnet."),
            ("A localhost.example", "FORWARD []"),
        ],
    );
    let named = vec![record("testnet", N1, "172.20.0.2", &["localhost"])];
    check(named, FROM_N1, &[("A localhost", "A 172.20.0.2")]);
}

#[test]
fn a_stranger_is_refused_whatever_it_asks() {
    for stranger in [
        asker("br-testnet", [172, 20, 0, 99]),
        asker("br-testnet2", [172, 20, 0, 3]),
        asker("br-testnet2", [172, 20, 0, 1]),
        asker("eth0", [172, 20, 0, 3]),
    ] {
        check(docker(), stranger, &[("A centos-1", "REFUSED"), ("A example.com", "REFUSED")]);
    }
    // A gateway address that the network has only on the bridge that it has moved to.
    let moved = Record {
        bridge: "br-new".into(),
        gateways: vec!["172.21.0.1/16".parse().unwrap()],
        ..record("testnet", X1, "172.21.0.2", &["x1"])
    };
    let stranger = Asker { source: [172, 21, 0, 1].into(), ..FROM_HOST };
    check([docker(), vec![moved]].concat(), stranger, &[("A centos-1", "REFUSED")]);
}

#[test]
fn a_zone_is_described_at_its_apex() {
    check(
        docker(),
        FROM_N2,
        &[
            ("SOA testnet", "SOA testnet."),
            ("NS testnet", "NS testnet."),
            ("ANY testnet", "SOA testnet."),
            ("A testnet", "NODATA testnet."),
            ("SOA 20.172.in-addr.arpa", "SOA 20.172.in-addr.arpa."),
            ("NS 20.172.in-addr.arpa", "NS 20.172.in-addr.arpa."),
            ("PTR 20.172.in-addr.arpa", "NODATA 20.172.in-addr.arpa."),
            ("PTR 0.20.172.in-addr.arpa", "NODATA 20.172.in-addr.arpa."),
            ("A _gateway.testnet", "A 172.20.0.1"),
            ("AAAA _gateway.testnet", "NODATA testnet."),
            ("A _gateway", "NXDOMAIN ."),
        ],
    );
}

#[test]
fn of_domains_within_each_other_the_innermost_is_the_zone() {
    let of_domain = |network, address, domain| Record {
        domain: DomainName::new(domain).unwrap(),
        ..record(network, N1, address, &["c1"])
    };
    let records = || {
        vec![
            of_domain("testnet", "172.20.0.2", "eu.corp.example"),
            of_domain("testnet2", "172.18.0.2", "corp.example"),
        ]
    };
    check(
        records(),
        FROM_N1,
        &[
            ("A nosuch.eu.corp.example", "NXDOMAIN eu.corp.example."),
            ("A nosuch.us.corp.example", "NXDOMAIN corp.example."),
        ],
    );
}

#[test]
fn reverse_names_that_are_no_address_do_not_exist() {
    check(
        docker(),
        FROM_N2,
        &[
            ("PTR 9.0.20.172.in-addr.arpa", "NXDOMAIN 20.172.in-addr.arpa."),
            ("A 2.0.20.172.in-addr.arpa", "NODATA 20.172.in-addr.arpa."),
            ("ANY 2.0.20.172.in-addr.arpa", "PTR n1.testnet."),
            ("PTR 7.2.0.20.172.in-addr.arpa", "NXDOMAIN 20.172.in-addr.arpa."),
            ("PTR x.20.172.in-addr.arpa", "NXDOMAIN 20.172.in-addr.arpa."),
            ("PTR 02.0.20.172.in-addr.arpa", "NXDOMAIN 20.172.in-addr.arpa."),
            ("PTR 256.0.20.172.in-addr.arpa", "NXDOMAIN 20.172.in-addr.arpa."),
            ("PTR in-addr.arpa", "FORWARD []"),
        ],
    );
}

#[test]
fn a_prefix_within_a_label_makes_zones_of_the_next_label() {
    let records =
        vec![record("other", "c1", "10.89.3.4", &["c1"]), record("other", "c2", "10.89.0.6", &["c2"])];
    check(
        records,
        asker("br-other", [10, 89, 3, 4]),
        &[
            ("PTR 4.3.89.10.in-addr.arpa", "PTR c1.other."),
            ("PTR 5.3.89.10.in-addr.arpa", "NXDOMAIN 3.89.10.in-addr.arpa."),
            ("SOA 3.89.10.in-addr.arpa", "SOA 3.89.10.in-addr.arpa."),
            ("PTR 5.16.89.10.in-addr.arpa", "FORWARD []"),
            ("PTR 89.10.in-addr.arpa", "FORWARD []"),
        ],
    );
}

#[test]
fn of_subnets_within_each_other_the_innermost_is_the_zone() {
    let wide =
        Record { gateways: vec!["172.0.0.1/8".parse().unwrap()], ..record("wide", N1, "172.0.0.2", &[]) };
    let inner = record("testnet", N2, "172.20.0.3", &["n2"]);
    for records in [vec![wide.clone(), inner.clone()], vec![inner, wide]] {
        let cases = [
            ("PTR 9.0.20.172.in-addr.arpa", "NXDOMAIN 20.172.in-addr.arpa."),
            ("PTR 20.172.in-addr.arpa", "NODATA 20.172.in-addr.arpa."),
            ("PTR 9.0.21.172.in-addr.arpa", "NXDOMAIN 172.in-addr.arpa."),
            ("PTR 172.in-addr.arpa", "NODATA 172.in-addr.arpa."),
        ];
        check(records.clone(), FROM_N2, &cases);
        let mut zones = Zones::load(records);
        zones.remove(&record("wide", N1, "172.0.0.2", &[]).key);
        assert_eq!(asked(&zones, FROM_N2, "PTR 9.0.21.172.in-addr.arpa"), "FORWARD []");
        assert_eq!(asked(&zones, FROM_N2, cases[0].0), cases[0].1);
    }
}

#[test]
fn no_zone_of_one_address_denies_itself() {
    let small = Record {
        gateways: vec!["10.1.1.1/28".parse().unwrap()],
        ..record("testnet", N1, "10.1.1.5", &["n1"])
    };
    check(
        vec![small],
        asker("br-testnet", [10, 1, 1, 5]),
        &[
            ("PTR 5.1.1.10.in-addr.arpa", "PTR n1.testnet."),
            ("PTR 6.1.1.10.in-addr.arpa", "NODATA 6.1.1.10.in-addr.arpa."),
            ("SOA 6.1.1.10.in-addr.arpa", "SOA 6.1.1.10.in-addr.arpa."),
            ("PTR x.6.1.1.10.in-addr.arpa", "NXDOMAIN 6.1.1.10.in-addr.arpa."),
            ("PTR 16.1.1.10.in-addr.arpa", "FORWARD []"),
        ],
    );
}

#[test]
fn an_address_outside_of_its_gateways_subnet_is_reversed_as_well() {
    let routed = Record {
        gateways: vec!["10.1.1.1/32".parse().unwrap()],
        ..record("testnet", N1, "10.1.1.5", &["n1"])
    };
    check(
        vec![routed],
        asker("br-testnet", [10, 1, 1, 5]),
        &[
            ("PTR 5.1.1.10.in-addr.arpa", "PTR n1.testnet."),
            ("TXT 5.1.1.10.in-addr.arpa", "NODATA 5.1.1.10.in-addr.arpa."),
            ("SOA 5.1.1.10.in-addr.arpa", "SOA 5.1.1.10.in-addr.arpa."),
            ("PTR 1.1.1.10.in-addr.arpa", "PTR _gateway.testnet."),
            ("PTR 6.1.1.10.in-addr.arpa", "FORWARD []"),
        ],
    );
}

#[test]
fn both_families_are_answered() {
    let records =
        vec![record("dual", "c1", "10.90.0.200 fd12::99", &["d1"]), record("dual", "c2", "fd12::a", &["d2"])];
    let nibbles = |last: &str| {
        format!("PTR {last}.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.2.1.d.f.ip6.arpa")
    };
    let zone = "0.0.0.0.0.0.0.0.0.0.0.0.2.1.d.f.ip6.arpa.";
    check(
        records,
        Asker { bridge: "br-dual", gateway: "fd12::1".parse().unwrap(), source: "fd12::99".parse().unwrap() },
        &[
            ("A d1", "A 10.90.0.200"),
            ("AAAA d1", "AAAA fd12::99"),
            ("A d2", "NODATA ."),
            ("AAAA d2", "AAAA fd12::a"),
            ("ANY d2", "AAAA fd12::a"),
            (&nibbles("a"), "PTR d2.dual."),
            (&nibbles("A"), "PTR d2.dual."),
            (&nibbles("1"), "PTR _gateway.dual."),
            (&nibbles("b"), &format!("NXDOMAIN {zone}")),
            (&nibbles("10"), &format!("NXDOMAIN {zone}")),
            ("AAAA _gateway.dual", "AAAA fd12::1"),
        ],
    );
}

#[test]
fn a_domain_of_its_own_goes_first_and_the_networks_name_stays() {
    let podman = Record {
        domain: DomainName::new("dns.podman").unwrap(),
        other_domains: vec![DomainName::new("testnet").unwrap()],
        ..record("testnet", N1, "172.20.0.2", &["c1"])
    };
    check(
        vec![podman],
        FROM_N1,
        &[
            ("A c1.dns.podman", "A 172.20.0.2"),
            ("A c1.testnet", "A 172.20.0.2"),
            ("PTR 2.0.20.172.in-addr.arpa", "PTR c1.dns.podman."),
            ("A nosuch.dns.podman", "NXDOMAIN dns.podman."),
            ("SOA DNS.Podman", "SOA DNS.Podman."),
            ("A x.podman", "FORWARD []"),
        ],
    );
}

#[test]
fn an_address_belongs_to_the_newest_record_that_has_it() {
    let old = record("testnet", "old", "172.20.0.2", &["old", "shared"]);
    let new = Record { joined: 5, ..record("testnet", "new", "172.20.0.2", &["new", "shared"]) };
    for records in [vec![old.clone(), new.clone()], vec![new.clone(), old.clone()]] {
        check(
            records,
            FROM_N1,
            &[
                ("A new", "A 172.20.0.2"),
                ("A shared", "A 172.20.0.2"),
                ("A old", "NODATA ."),
                ("PTR 2.0.20.172.in-addr.arpa", "PTR new.testnet."),
            ],
        );
    }
    let mut zones = Zones::load([old.clone()]);
    let renamed = Record { names: vec![DomainName::new("new").unwrap()], ..new };
    assert_eq!(zones.apply(renamed.clone()).rivals, std::slice::from_ref(&old.key));
    assert_eq!(zones.apply(old).rivals, []);
    zones.remove(&renamed.key);
    assert_eq!(asked(&zones, FROM_N1, "A old"), "A 172.20.0.2");
}

#[test]
fn whoever_holds_a_name_of_a_new_record_on_its_network_is_told_and_of_many_a_few() {
    let predecessor = record("testnet", "predecessor", "172.20.0.2", &["web-1", "web"]);
    let elsewhere = record("testnet2", "elsewhere", "172.18.0.2", &["web-1"]);
    let other = record("testnet", "other", "172.20.0.3", &["web-2"]);
    let replica =
        |number: u8| record("testnet", &format!("replica-{number}"), &format!("172.20.1.{number}"), &["all"]);
    let new = |joined, names| Record { joined, ..record("testnet", "new", "172.20.0.9", names) };
    let mut zones = Zones::load([predecessor.clone(), elsewhere, other]);
    assert_eq!(zones.apply(new(7, &["WEB-1", "web"])).rivals, [predecessor.key]);
    // By the clock it may be the older one.
    assert_eq!(zones.apply(new(0, &["web"])).rivals.len(), 1);
    assert_eq!(zones.apply(new(7, &["new"])).rivals, []);
    zones.apply(record("testnet", &"x".repeat(100_000), "172.20.0.8", &["long"]));
    assert_eq!(zones.apply(new(7, &["long"])).rivals, []);
    (0..100).for_each(|number| drop(zones.apply(replica(number))));
    let told: Vec<_> = (0..100).map(|joined| zones.apply(new(joined, &["all"])).rivals).collect();
    assert!(told.iter().all(|rivals| rivals.len() == 4), "{told:?}");
    let seen: std::collections::BTreeSet<_> = told.into_iter().flatten().collect();
    assert_eq!(seen.len(), 100);
}

#[test]
fn whoever_asks_is_the_newest_with_the_address_on_any_network_of_the_bridge() {
    let on_other = |joined, names: &[&str]| Record {
        bridge: "br-testnet".into(),
        joined,
        ..record("another", X1, "172.20.0.2", names)
    };
    let records = |joined| {
        vec![
            record("testnet", N2, "172.20.0.3", &["n2"]),
            Record { joined: 5, ..record("testnet", N1, "172.20.0.2", &["n1"]) },
            on_other(joined, &["x1"]),
        ]
    };
    check(records(4), FROM_N1, &[("A n2", "A 172.20.0.3"), ("A x1", "NXDOMAIN .")]);
    check(records(6), FROM_N1, &[("A n2", "NXDOMAIN ."), ("A x1", "A 172.20.0.2")]);
}

#[test]
fn a_set_of_records_has_the_shortest_ttl() {
    let mut records = docker();
    records[0].ttl = 60;
    records[1].ttl = 7;
    let zones = Zones::load(records);
    let name: Name<Vec<u8>> = "shared".parse().unwrap();
    let question = Question { name: name.for_slice(), rtype: Rtype::A };
    let Answer::Addresses(set) = answer(&zones, FROM_N2, question, 0) else { panic!("no addresses") };
    assert_eq!(set.ttl(), 7);
}

#[test]
fn the_reason_tells_how_a_name_was_found() {
    let zones = Zones::load(docker());
    let reason = |asker, name: &str| {
        let name: Name<Vec<u8>> = name.parse().unwrap();
        format!("{:?}", explain(&zones, asker, Question { name: name.for_slice(), rtype: Rtype::A }, 0).1)
    };
    assert_eq!(reason(FROM_N2, "centos-1"), "Name { network: \"testnet\" }");
    assert_eq!(reason(FROM_N2, "lnk"), "Link { network: \"testnet\", target: RelativeName(n1) }");
    assert_eq!(reason(FROM_N2, "nosuch"), "SingleLabel");
    assert_eq!(reason(FROM_N2, "nosuch.testnet"), "OurZone");
    assert_eq!(reason(FROM_N2, "example.com"), "Elsewhere");
    assert_eq!(reason(asker("br-testnet", [9, 9, 9, 9]), "centos-1"), "UnknownAsker");
}

/// Records that get in each other's way as often as possible.
fn arbitrary_record() -> impl Strategy<Value = Record> {
    let network = prop::sample::select(vec!["testnet", "testnet2", "other"]);
    let container =
        prop::sample::select(vec![("c1", "eth0"), ("c1", "eth1"), ("c2", "eth0"), ("c3", "eth0")]);
    let name = || prop::sample::select(vec!["a", "b", "A", "c.d", "testnet", "_gateway"]);
    let names = prop::collection::vec(name(), 0..4);
    let links = prop::collection::vec((name(), name()), 0..2);
    (network, container, names, links, 0..3_u8, 1..4_u64).prop_map(
        |(network, (container, ifname), names, links, host, joined)| {
            let addresses = match network {
                "testnet" => format!("172.20.0.{}", host + 2),
                "testnet2" => format!("172.18.0.{} 172.18.1.1", host + 2),
                _ => format!("10.89.0.{host}"),
            };
            let attachment = Attachment::new(container, ifname).unwrap();
            Record {
                key: RecordKey::new(network, attachment).unwrap(),
                links: links.into_iter().map(|(target, alias)| link(target, alias)).collect(),
                joined,
                forward: joined > 1,
                ..record(network, container, &addresses, &names)
            }
        },
    )
}

fn arbitrary_name() -> impl Strategy<Value = Name<Vec<u8>>> {
    let label = prop_oneof![
        prop::sample::select(vec!["a", "b", "c", "d", "testnet", "testnet2", "other", "_gateway"])
            .prop_map(|label| label.as_bytes().to_vec()),
        prop::sample::select(vec!["0", "2", "20", "172", "10", "89", "f", "in-addr", "ip6", "arpa"])
            .prop_map(|label| label.as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 1..64),
    ];
    prop::collection::vec(label, 0..6).prop_filter_map("too long for a name", |labels| {
        let octets: Vec<u8> = labels
            .iter()
            .flat_map(|label| [vec![label.len() as u8], label.clone()].concat())
            .chain([0])
            .collect();
        Name::from_octets(octets).ok()
    })
}

proptest! {
    #[test]
    fn any_question_has_an_answer_whose_zone_is_part_of_its_name(
        records in prop::collection::vec(arbitrary_record(), 0..6),
        name in arbitrary_name(),
        rtype in any::<u16>(),
        rotation in any::<u32>(),
    ) {
        let zones = Zones::load(records);
        let question = Question { name: name.for_slice(), rtype: Rtype::from_int(rtype) };
        for asker in [FROM_N1, FROM_HOST, asker("br-testnet2", [172, 18, 1, 1]), asker("br-other", [10, 89, 0, 0])] {
            match answer(&zones, asker, question, rotation) {
                Answer::Addresses(set) => {
                    let addresses: std::collections::BTreeSet<IpAddr> = set.iter().collect();
                    prop_assert!(set.len() > 0 && addresses.len() == set.len());
                }
                Answer::Soa(apex) | Answer::Ns(apex) | Answer::NoData(apex) | Answer::NxDomain(apex) => {
                    prop_assert!(Name::from_slice(&name.as_slice()[apex.0..]).is_ok());
                }
                Answer::Pointer(_) | Answer::Forward(_) | Answer::Refused => {}
            }
        }
    }

    /// Whatever order records come and go in, the answers are those of the ones that are left.
    #[test]
    fn updates_end_where_a_fresh_load_begins(
        steps in prop::collection::vec((arbitrary_record(), any::<bool>()), 0..24),
    ) {
        let mut zones = Zones::default();
        let mut left: std::collections::BTreeMap<RecordKey, Record> = std::collections::BTreeMap::new();
        for (record, stays) in steps {
            if stays {
                zones.apply(record.clone());
                left.insert(record.key.clone(), record);
            } else {
                let was_there = left.remove(&record.key).is_some();
                prop_assert_eq!(zones.remove(&record.key), was_there);
            }
        }
        let fresh = Zones::load(left.values().cloned());
        prop_assert_eq!(zones.len(), left.len());
        prop_assert_eq!(zones.listeners(), fresh.listeners());
        let networks = |zones: &Zones| -> std::collections::BTreeMap<String, usize> {
            zones.networks().map(|(network, records)| (network.to_owned(), records)).collect()
        };
        prop_assert_eq!(networks(&zones), networks(&fresh));
        prop_assert_eq!(zones.keys().collect::<std::collections::BTreeSet<_>>(), left.keys().cloned().collect());
        for asker in [FROM_N1, FROM_N2, FROM_HOST, asker("br-testnet2", [172, 18, 1, 1]), asker("br-other", [10, 89, 0, 1])] {
            for question in [
                "A a", "A b", "A c.d", "A a.testnet", "A b.testnet2", "A a.other", "A testnet", "A x.testnet",
                "PTR 2.0.20.172.in-addr.arpa", "PTR 1.1.18.172.in-addr.arpa", "PTR 0.0.89.10.in-addr.arpa",
                "A example.com", "A _gateway.testnet",
            ] {
                prop_assert_eq!(asked(&zones, asker, question), asked(&fresh, asker, question));
            }
        }
    }
}
