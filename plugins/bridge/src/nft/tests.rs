//! Against a real kernel: each test has a network namespace of its own, so it needs root there (or a user namespace
//! entered before). What the rules do to packets is told by the integration tests.

use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::netlink::Netlink;

/// An attachment that owns what [`Attached`] borrows.
struct Sample {
    network: String,
    attachment: Attachment,
    host_veth: String,
    gateway_link: String,
    mac: [u8; 6],
    addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
    /// Whether the gateway is one of a VLAN.
    vlan: bool,
    policy: Policy,
}

const OPEN: Policy =
    Policy { masquerade: false, ingress: IngressPolicy::Open, mac_spoof_check: false, accept_forward: false };
const MASQUERADED: Policy = Policy { masquerade: true, ..OPEN };
const SAME_BRIDGE: Policy = Policy { ingress: IngressPolicy::SameBridge, ..OPEN };
const ISOLATED: Policy = Policy { ingress: IngressPolicy::Isolated, ..OPEN };
const ALL: Policy = Policy {
    masquerade: true,
    ingress: IngressPolicy::Isolated,
    mac_spoof_check: true,
    accept_forward: false,
};

impl Sample {
    /// Container number `number` of network `testnet` on bridge `br-test`.
    fn new(number: u8, policy: Policy) -> Self {
        Self {
            network: "testnet".to_owned(),
            attachment: Attachment::new(&format!("c{number}"), "eth0").unwrap(),
            host_veth: format!("veth{number}"),
            gateway_link: "br-test".to_owned(),
            mac: [2, 0, 0, 0, 0, number],
            addresses: vec![
                format!("172.20.0.{number}/16").parse().unwrap(),
                format!("fd00:20::{number}/64").parse().unwrap(),
            ],
            gateways: vec!["172.20.0.1".parse().unwrap(), "fd00:20::1".parse().unwrap()],
            vlan: false,
            policy,
        }
    }

    fn owner(&self) -> Owner<'_> {
        Owner { network: &self.network, attachment: &self.attachment, host_veth: &self.host_veth }
    }

    fn attached(&self) -> Attached<'_> {
        Attached {
            owner: self.owner(),
            gateway_link: &self.gateway_link,
            mac: self.mac,
            addresses: &self.addresses,
            gateways: &self.gateways,
            vlan_gateway: self.vlan.then_some(VlanGateway {
                bridge: "br-test",
                port: "veth-gateway",
                mac: [2, 0, 0, 0, 1, 0],
            }),
            port_words: &[],
            policy: self.policy,
        }
    }
}

/// A namespace without rules, for the calling test's thread.
fn namespace() -> Rules {
    unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of the test's own");
    Rules::open().unwrap()
}

fn nft(words: &str) -> String {
    let output = Command::new("nft").args(words.split(' ')).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "nft {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn ruleset() -> String {
    nft("list ruleset")
}

#[track_caller]
fn check_golden(policy: Policy, golden: &str) {
    let mut rules = namespace();
    let sample = Sample::new(2, policy);
    assert_eq!(rules.install(&[sample.attached()]).unwrap(), Installed::Anew);
    assert_eq!(ruleset(), golden);
    assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&sample.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn masquerade_reads_as_documented() {
    check_golden(MASQUERADED, include_str!("golden/masquerade.nft"));
}

#[test]
fn same_bridge_reads_as_documented() {
    check_golden(SAME_BRIDGE, include_str!("golden/same-bridge.nft"));
}

#[test]
fn everything_reads_as_documented() {
    check_golden(ALL, include_str!("golden/everything.nft"));
}

#[test]
fn the_ra_guard_reads_as_documented() {
    let mut rules = namespace();
    assert!(!rules.has_guard().unwrap());
    for _ in 0..2 {
        rules.guard().unwrap();
        assert_eq!(ruleset(), include_str!("golden/ra-guard.nft"));
    }
    assert!(rules.has_guard().unwrap());
    assert_eq!(rules.verify_guard().unwrap(), Vec::<String>::new());
    for _ in 0..2 {
        rules.remove_guard().unwrap();
        assert_eq!(ruleset(), "");
    }
}

#[test]
fn the_ra_guard_is_mended_whatever_was_broken() {
    let mut rules = namespace();
    for (damage, words) in [
        ("delete table bridge cni-ra-guard", "table bridge cni-ra-guard is missing"),
        ("add table bridge cni-ra-guard { flags dormant; }", "table bridge cni-ra-guard is dormant"),
        ("delete chain bridge cni-ra-guard prerouting", "chain bridge cni-ra-guard prerouting is missing"),
        (
            "flush chain bridge cni-ra-guard prerouting",
            "chain bridge cni-ra-guard prerouting has other rules",
        ),
        (
            "insert rule bridge cni-ra-guard prerouting accept",
            "chain bridge cni-ra-guard prerouting has other rules",
        ),
        (
            "flush chain bridge cni-ra-guard prerouting ; add rule bridge cni-ra-guard prerouting accept ; \
             add rule bridge cni-ra-guard prerouting accept ; add rule bridge cni-ra-guard prerouting accept",
            "chain bridge cni-ra-guard prerouting has other rules",
        ),
        (
            "chain bridge cni-ra-guard prerouting { policy drop; }",
            "chain bridge cni-ra-guard prerouting has another hook or policy",
        ),
    ] {
        rules.guard().unwrap();
        nft(damage);
        let found = rules.verify_guard().unwrap();
        assert_eq!(found, [format!("nf_tables {words}")], "after {damage}");
        assert_eq!(rules.repair_guard().unwrap(), found, "after {damage}");
        assert_eq!(ruleset(), include_str!("golden/ra-guard.nft"), "after {damage}");
    }
    // What an ADD sees.
    for damage in ["delete table bridge cni-ra-guard", "flush chain bridge cni-ra-guard prerouting"] {
        nft(damage);
        rules.guard().unwrap();
        assert_eq!(ruleset(), include_str!("golden/ra-guard.nft"), "after {damage}");
    }
}

#[test]
fn what_somebody_has_put_into_the_table_of_the_ra_guard_stays() {
    let mut rules = namespace();
    rules.guard().unwrap();
    nft("add chain bridge cni-ra-guard theirs");
    rules.remove_guard().unwrap();
    let left = ruleset();
    assert!(left.contains("chain theirs") && !left.contains("chain prerouting"), "{left}");
    rules.remove_guard().unwrap();
    assert_eq!(ruleset(), left);
}

#[test]
fn mac_spoof_check_reads_as_documented() {
    check_golden(Policy { mac_spoof_check: true, ..OPEN }, include_str!("golden/mac-spoof-check.nft"));
}

#[test]
fn the_ways_to_and_from_the_gateway_of_a_vlan_come_and_go_with_each_container() {
    let mut rules = namespace();
    let of_vlan = |number| {
        let sample = Sample { vlan: true, ..Sample::new(number, MASQUERADED) };
        Sample { gateway_link: "br-test.5".to_owned(), ..sample }
    };
    let ways = || {
        let listed = nft("list set bridge cni-bridge to-gateway");
        let ways = listed.split("elements = {").nth(1).unwrap_or_default().matches("comment").count();
        (
            ways,
            listed.contains("\"veth1\" . 02:00:00:00:01:00"),
            listed.contains("\"veth-gateway\" . 02:00:00:00:00:01"),
        )
    };
    let (one, two) = (of_vlan(1), of_vlan(2));
    rules.install(&[one.attached()]).unwrap();
    assert_eq!(ways(), (2, true, true));
    rules.install(&[two.attached()]).unwrap();
    assert_eq!(ways(), (4, true, true));
    assert_eq!(rules.verify(&one.attached()).unwrap(), Vec::<String>::new());
    nft("flush set bridge cni-bridge to-gateway");
    let lacking = rules.verify(&one.attached()).unwrap();
    assert_eq!(lacking.len(), 2, "{lacking:?}");
    assert!(lacking[0].contains("to-gateway lacks the element of testnet/c1/eth0"), "{lacking:?}");
    rules.repair(&[one.attached(), two.attached()]).unwrap();
    assert_eq!(ways(), (4, true, true));
    rules.remove(&one.owner()).unwrap();
    assert_eq!(ways(), (2, false, false));
    assert_eq!(rules.verify(&two.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&two.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

/// Makes a table what an earlier build, which did not know `set`, would have made: without it and the rules that use it.
#[track_caller]
fn outdate(table: &str, chain: &str, set: &str) {
    let listed = nft(&format!("-a list chain {table} {chain}"));
    let using: Vec<&str> = listed.lines().filter(|line| line.contains(&format!("@{set} "))).collect();
    assert!(!using.is_empty(), "no rule uses {set}: {listed}");
    for rule in using {
        let handle = rule.rsplit_once("handle ").unwrap().1;
        nft(&format!("delete rule {table} {chain} handle {handle}"));
    }
    nft(&format!("delete set {table} {set}"));
}

#[test]
fn a_table_of_an_earlier_build_gets_what_it_lacks_and_goes() {
    const LACKING: [(&str, &str, &str); 2] = [
        ("bridge cni-bridge", "prerouting", "to-gateway"),
        ("inet cni-bridge", "postrouting", "masquerade6"),
    ];
    for (table, chain, set) in LACKING {
        let mut rules = namespace();
        let v4_only = |sample: Sample| Sample {
            addresses: sample.addresses[..1].to_vec(),
            gateways: sample.gateways[..1].to_vec(),
            ..sample
        };
        let old = v4_only(Sample::new(1, Policy { mac_spoof_check: true, ..MASQUERADED }));
        let new = Sample {
            gateway_link: "br-test.5".to_owned(),
            vlan: true,
            ..Sample::new(2, Policy { ingress: IngressPolicy::Open, ..ALL })
        };
        for by in ["join", "install", "repair"] {
            rules.install(&[old.attached()]).unwrap();
            let whole = nft("--stateless list table bridge cni-bridge");
            outdate(table, chain, set);
            assert_ne!(rules.verify(&old.attached()).unwrap(), Vec::<String>::new(), "{set}");
            match by {
                "join" => drop(rules.join(&[new.attached()]).unwrap()),
                "install" => drop(rules.install(&[new.attached()]).unwrap()),
                _ => {
                    let wrong = rules.repair(&[old.attached(), new.attached()]).unwrap();
                    assert!(wrong.iter().any(|words| words.contains(set)), "{set}: {wrong:?}");
                }
            }
            // What is missing of networks is for the caller to bring in when it is told so.
            rules.install(&[new.attached()]).unwrap();
            for attached in [old.attached(), new.attached()] {
                assert_eq!(rules.verify(&attached).unwrap(), Vec::<String>::new(), "{set}, {by}");
            }
            rules.remove(&new.owner()).unwrap();
            let chains = |listed: &str| listed.split_once("chain ").unwrap().1.to_owned();
            assert_eq!(
                chains(&nft("--stateless list table bridge cni-bridge")),
                chains(&whole),
                "{set}, {by}"
            );
            rules.remove(&old.owner()).unwrap();
            assert_eq!(ruleset(), "", "{set}, {by}");
        }
        rules.install(&[old.attached()]).unwrap();
        outdate(table, chain, set);
        rules.remove(&old.owner()).unwrap();
        assert_eq!(ruleset(), "", "{set}: the last one takes the table along");
    }
}

/// The list of a network has a name from the rules that its build has, so that of another build is missing.
#[test]
fn own_rules_of_another_build_are_mended_by_the_next_add() {
    let mut rules = namespace();
    let (old, new) = (Sample::new(2, ALL), Sample::new(3, ALL));
    rules.install(&[old.attached()]).unwrap();
    let listed = nft("-t list chains inet");
    let list = listed.split_whitespace().find(|word| word.starts_with("network-testnet-")).unwrap();
    nft(&format!("rename chain inet cni-bridge {list} network-testnet-00000000"));
    nft("flush chain inet cni-bridge input");
    nft("flush chain bridge cni-bridge prerouting");
    assert_eq!(rules.join(&[new.attached()]).unwrap(), Installed::Anew);
    rules.repair(&[old.attached(), new.attached()]).unwrap();
    for sample in [&old, &new] {
        assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
    }
    assert!(!ruleset().contains("network-testnet-00000000"), "{}", ruleset());
    for sample in [&old, &new] {
        rules.remove(&sample.owner()).unwrap();
    }
    assert_eq!(ruleset(), "");
}

const CHECKED: Policy = Policy { mac_spoof_check: true, ..OPEN };

/// Builds before there were chains of networks in that table had every record lead to the one that counts them.
#[test]
fn records_of_a_build_without_chains_of_networks_are_checked_replaced_and_removed() {
    let mut rules = namespace();
    let (old, new) = (Sample::new(2, CHECKED), Sample::new(3, CHECKED));
    let install_old = |rules: &mut Rules| {
        let before = [ports::content_without_chains(&[old.attached()])];
        content::install(&mut rules.socket, &before, Newcomer::Founds).unwrap();
        assert_eq!(rules.verify(&old.attached()).unwrap(), Vec::<String>::new());
    };
    let old_records = || ruleset().matches(": goto port").count();
    install_old(&mut rules);
    assert_eq!(old_records(), 1, "{}", ruleset());
    rules.remove(&old.owner()).unwrap();
    assert_eq!(ruleset(), "");

    // Each goes without the other, whoever goes first.
    for [first, second] in [[&old, &new], [&new, &old]] {
        install_old(&mut rules);
        rules.install(&[new.attached()]).unwrap();
        for sample in [&old, &new] {
            assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
        }
        rules.remove(&first.owner()).unwrap();
        assert_eq!(rules.verify(&second.attached()).unwrap(), Vec::<String>::new());
        rules.remove(&second.owner()).unwrap();
        assert_eq!(ruleset(), "");
    }

    install_old(&mut rules);
    assert_eq!(rules.join(&[new.attached()]).unwrap(), Installed::Anew);
    rules.repair(&[old.attached(), new.attached()]).unwrap();
    assert_eq!(old_records(), 0, "{}", ruleset());
    nft("delete element bridge cni-bridge mac-check { veth2 }");
    assert_ne!(rules.verify(&old.attached()).unwrap(), Vec::<String>::new());
    for sample in [&old, &new] {
        rules.remove(&sample.owner()).unwrap();
    }
    assert_eq!(ruleset(), "");
}

#[test]
fn who_joins_a_network_that_checks_macs_is_told_what_it_has_lost() {
    let mut rules = namespace();
    let other = Sample { network: "other".to_owned(), ..Sample::new(9, CHECKED) };
    let (one, next) = (Sample::new(2, CHECKED), Sample::new(3, CHECKED));
    rules.install(&[one.attached()]).unwrap();
    assert_eq!(rules.join(&[next.attached()]).unwrap(), Installed::Joined);
    rules.remove(&next.owner()).unwrap();
    // Somebody flushes all, and another network brings the table back.
    nft("flush ruleset");
    rules.install(&[other.attached()]).unwrap();
    assert_eq!(rules.join(&[next.attached()]).unwrap(), Installed::Anew);
    // A network whose configuration has changed has more to bring.
    let [unchecked, checked] = [MASQUERADED, ALL].map(|policy| Sample::new(2, policy));
    let checked = Sample { policy: Policy { ingress: IngressPolicy::Open, ..checked.policy }, ..checked };
    rules.install(&[unchecked.attached()]).unwrap();
    let next = Sample { policy: checked.policy, ..next };
    assert_eq!(rules.join(&[next.attached()]).unwrap(), Installed::Anew);
    rules.repair(&[checked.attached(), next.attached()]).unwrap();
    for sample in [&checked, &next, &other] {
        assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
        rules.remove(&sample.owner()).unwrap();
    }
    assert_eq!(ruleset(), "");
}

#[test]
fn who_joins_a_network_that_needs_less_by_now_is_told_what_it_had() {
    for (before, now) in [
        (CHECKED, OPEN),
        (MASQUERADED, OPEN),
        (SAME_BRIDGE, OPEN),
        (Policy { mac_spoof_check: true, ..MASQUERADED }, MASQUERADED),
        (Policy { mac_spoof_check: true, ..MASQUERADED }, CHECKED),
    ] {
        let mut rules = namespace();
        let (one, next) = (Sample::new(2, before), Sample::new(3, now));
        let other = Sample {
            network: "other".to_owned(),
            gateway_link: "br-o".to_owned(),
            gateways: Vec::new(),
            ..Sample::new(9, ALL)
        };
        rules.install(&[one.attached()]).unwrap();
        rules.install(&[other.attached()]).unwrap();
        assert_eq!(rules.join(&[next.attached()]).unwrap(), Installed::Anew, "{before:?}, {now:?}");
        let one = Sample::new(2, now);
        rules.repair(&[one.attached(), next.attached()]).unwrap();
        assert_eq!(rules.join(&[Sample::new(4, now).attached()]).unwrap(), Installed::Joined);
        for sample in [&one, &next, &other] {
            assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
        }
    }
}

#[test]
fn elements_go_with_their_owner_though_the_records_were_flushed() {
    let mut rules = namespace();
    let (one, other) = (Sample::new(2, ALL), Sample::new(3, ALL));
    rules.install(&[one.attached(), other.attached()]).unwrap();
    nft("flush map inet cni-bridge attachments");
    nft("flush map bridge cni-bridge ports");
    let of = |who: &str| ruleset().matches(&format!("testnet/{who}/eth0")).count();
    let (of_one, of_other) = (of("c2"), of("c3"));
    assert!(of_one > 4 && of_one == of_other, "{}", ruleset());
    rules.remove(&one.owner()).unwrap();
    assert_eq!((of("c2"), of("c3")), (0, of_other), "{}", ruleset());
    // The others' chains are there, and a repair brings their records back.
    rules.repair(&[other.attached()]).unwrap();
    assert_eq!(rules.verify(&other.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&other.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn nft_can_load_what_it_lists() {
    let mut rules = namespace();
    let sample = Sample::new(2, ALL);
    rules.install(&[sample.attached()]).unwrap();
    let listed = ruleset();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, listed.as_bytes()).unwrap();
    nft("flush ruleset");
    nft(&format!("-f {}", file.path().display()));
    assert_eq!(ruleset(), listed);
    assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&sample.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn a_second_attachment_adds_elements_but_no_rule() {
    let mut rules = namespace();
    let (first, second) = (Sample::new(2, ALL), Sample::new(3, ALL));
    rules.install(&[first.attached()]).unwrap();
    let (alone, alone_without_elements) = (ruleset(), nft("-t list ruleset"));
    assert_eq!(rules.install(&[second.attached()]).unwrap(), Installed::Joined);
    assert!(ruleset().contains("testnet/c3/eth0 172.20.0.3 fd00:20::3"), "{}", ruleset());
    assert_eq!(nft("-t list ruleset"), alone_without_elements);
    rules.remove(&second.owner()).unwrap();
    assert_eq!(ruleset(), alone);
}

#[test]
fn networks_do_not_touch_each_other() {
    let mut rules = namespace();
    let resident = Sample::new(2, Policy { ingress: IngressPolicy::SameBridge, ..MASQUERADED });
    rules.install(&[resident.attached()]).unwrap();
    let before = ruleset();
    let other = Sample {
        network: "other".to_owned(),
        gateway_link: "br-other".to_owned(),
        addresses: vec!["10.9.0.3/24".parse().unwrap()],
        gateways: vec!["10.9.0.1".parse().unwrap()],
        ..Sample::new(3, ALL)
    };
    assert_eq!(rules.install(&[other.attached()]).unwrap(), Installed::Anew);
    assert_ne!(ruleset(), before);
    rules.remove(&other.owner()).unwrap();
    assert_eq!(ruleset(), before);
}

#[test]
fn a_gateway_that_is_new_on_a_link_with_a_policy_is_closed_to_others_too() {
    let v4_only = Sample::new(2, SAME_BRIDGE);
    let v4_only = Sample { gateways: v4_only.gateways[..1].to_vec(), ..v4_only };
    let dual = Sample::new(3, SAME_BRIDGE);
    let other_network = Sample { network: "other".to_owned(), ..Sample::new(4, ISOLATED) };
    for newcomer in [dual, other_network] {
        let mut rules = namespace();
        rules.install(&[v4_only.attached()]).unwrap();
        match newcomer.network == v4_only.network {
            true => assert_eq!(rules.join(&[newcomer.attached()]).unwrap(), Installed::Joined),
            false => assert_eq!(rules.install(&[newcomer.attached()]).unwrap(), Installed::Anew),
        }
        assert_eq!(rules.verify(&newcomer.attached()).unwrap(), Vec::<String>::new());
        assert_eq!(rules.verify(&v4_only.attached()).unwrap(), Vec::<String>::new());
        rules.remove(&v4_only.owner()).unwrap();
        assert_eq!(rules.verify(&newcomer.attached()).unwrap(), Vec::<String>::new());
        rules.remove(&newcomer.owner()).unwrap();
        assert_eq!(ruleset(), "");
    }
}

#[test]
fn a_network_that_moves_to_another_link_takes_its_gateway_along() {
    let old = || Sample::new(2, Policy { mac_spoof_check: false, ..ALL });
    let new = || Sample { gateway_link: "br-new".to_owned(), ..old() };
    for by in ["install", "repair"] {
        let mut rules = namespace();
        rules.install(&[old().attached()]).unwrap();
        match by {
            "install" => drop(rules.install(&[new().attached()]).unwrap()),
            _ => drop(rules.repair(&[new().attached()]).unwrap()),
        }
        assert_eq!(rules.verify(&new().attached()).unwrap(), Vec::<String>::new(), "{by}");
        assert!(!ruleset().contains("br-test"), "{by}: {}", ruleset());
        rules.remove(&new().owner()).unwrap();
        assert_eq!(ruleset(), "");
    }
}

#[test]
fn installing_and_removing_again_changes_nothing() {
    let mut rules = namespace();
    let sample = Sample::new(2, ALL);
    rules.install(&[sample.attached()]).unwrap();
    let once = ruleset();
    assert_eq!(rules.install(&[sample.attached()]).unwrap(), Installed::Joined);
    assert_eq!(ruleset(), once);
    rules.remove(&sample.owner()).unwrap();
    rules.remove(&sample.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn a_late_removal_leaves_an_address_to_its_new_holder() {
    let mut rules = namespace();
    let old = Sample::new(2, MASQUERADED);
    let new = Sample {
        attachment: Attachment::new("new", "eth0").unwrap(),
        host_veth: "vethnew".to_owned(),
        ..Sample::new(2, MASQUERADED)
    };
    rules.install(&[old.attached()]).unwrap();
    rules.install(&[new.attached()]).unwrap();
    rules.remove(&old.owner()).unwrap();
    assert_eq!(rules.verify(&new.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&new.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn names_of_any_length_and_any_number_of_addresses_leave_nothing() {
    let mut rules = namespace();
    let mut sample = Sample::new(2, ALL);
    sample.network = "n".repeat(3000);
    sample.attachment = Attachment::new(&"c".repeat(3000), "eth0").unwrap();
    sample
        .addresses
        .extend((1..40_u8).map(|number| format!("10.8.{number}.2/24").parse::<IpNetwork>().unwrap()));
    rules.install(&[sample.attached()]).unwrap();
    assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&sample.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

/// Elements that no comment lists are searched for, and only one's own go.
#[test]
fn what_does_not_fit_into_a_comment_goes_beside_others_too() {
    let mut rules = namespace();
    let of_vlan = |sample: Sample| Sample { gateway_link: "br-test.5".to_owned(), vlan: true, ..sample };
    let resident = of_vlan(Sample::new(3, ALL));
    let long = of_vlan(Sample {
        attachment: Attachment::new(&"c".repeat(3000), "eth0").unwrap(),
        addresses: (1..40_u8).map(|number| format!("172.20.{number}.2/16").parse().unwrap()).collect(),
        ..Sample::new(2, ALL)
    });
    rules.install(&[resident.attached()]).unwrap();
    let alone = ruleset();
    rules.install(&[long.attached()]).unwrap();
    assert_eq!(rules.verify(&long.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&long.owner()).unwrap();
    assert_eq!(ruleset(), alone);
    assert_eq!(rules.verify(&resident.attached()).unwrap(), Vec::<String>::new());
}

#[test]
fn two_addresses_of_one_subnet_leave_nothing() {
    let mut rules = namespace();
    let resident = Sample { network: "other".to_owned(), ..Sample::new(3, MASQUERADED) };
    let mut sample = Sample::new(2, MASQUERADED);
    sample.addresses.push("172.20.0.77/16".parse().unwrap());
    rules.install(&[resident.attached()]).unwrap();
    let alone = ruleset();
    rules.install(&[sample.attached()]).unwrap();
    rules.remove(&sample.owner()).unwrap();
    assert_eq!(ruleset(), alone);
}

/// The container is a member of the bridge and of the VLAN's link, whoever else is.
#[test]
fn a_member_behind_the_gateway_of_a_vlan_comes_and_goes() {
    for policy in [ISOLATED, MASQUERADED, OPEN] {
        let mut rules = namespace();
        let of_vlan = |number| Sample {
            gateway_link: "br-test.5".to_owned(),
            vlan: true,
            ..Sample::new(number, policy)
        };
        let members = |number: u8| {
            let listed = nft("list set inet cni-bridge members");
            ["br-test", "br-test.5"]
                .map(|link| listed.contains(&format!("\"{link}\" . 02:00:00:00:00:0{number} comment")))
        };
        let (one, two) = (of_vlan(1), of_vlan(2));
        rules.install(&[one.attached()]).unwrap();
        rules.install(&[two.attached()]).unwrap();
        let wished = [true, policy.ingress == IngressPolicy::Isolated];
        assert_eq!((members(1), members(2)), (wished, wished), "{policy:?}");
        rules.remove(&one.owner()).unwrap();
        assert_eq!((members(1), members(2)), ([false; 2], wished), "{policy:?}");
        rules.remove(&two.owner()).unwrap();
        assert_eq!(ruleset(), "", "{policy:?}");
    }
}

/// Others may lack theirs as well, and who is killed between his own and theirs would leave no trace of that.
#[test]
fn who_only_joins_makes_no_chain() {
    let mut rules = namespace();
    let (one, two) = (Sample::new(2, MASQUERADED), Sample::new(3, ISOLATED));
    assert_eq!(rules.join(&[one.attached()]).unwrap(), Installed::Anew);
    assert_eq!(ruleset(), "");
    rules.install(&[one.attached()]).unwrap();
    let before = ruleset();
    assert_eq!(rules.join(&[two.attached()]).unwrap(), Installed::Anew);
    assert_eq!(ruleset(), before);
}

/// What an earlier build did not make is there after the next ADD, though that needs nothing of it.
#[test]
fn who_joins_completes_a_table_with_what_he_does_not_need() {
    let mut rules = namespace();
    let (one, two) = (Sample::new(2, MASQUERADED), Sample::new(3, MASQUERADED));
    rules.install(&[one.attached()]).unwrap();
    outdate("inet cni-bridge", "forward", "isolated");
    assert_eq!(rules.join(&[two.attached()]).unwrap(), Installed::Joined);
    for sample in [&one, &two] {
        assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_chain_that_somebody_has_put_into_a_table_of_an_earlier_build_stays() {
    let mut rules = namespace();
    let sample = Sample::new(2, MASQUERADED);
    rules.install(&[sample.attached()]).unwrap();
    outdate("inet cni-bridge", "forward", "isolated");
    nft("add chain inet cni-bridge theirs");
    rules.remove(&sample.owner()).unwrap();
    assert!(ruleset().contains("chain theirs"), "{}", ruleset());
}

#[test]
fn the_first_attachment_of_a_network_wakes_a_dormant_table() {
    let mut rules = namespace();
    let one = Sample::new(2, MASQUERADED);
    let other = Sample { network: "other".to_owned(), ..Sample::new(3, MASQUERADED) };
    rules.install(&[one.attached()]).unwrap();
    nft("add table inet cni-bridge { flags dormant; }");
    assert_eq!(rules.install(&[other.attached()]).unwrap(), Installed::Anew);
    for sample in [&one, &other] {
        assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new());
    }
}

#[test]
fn whoever_has_a_gateway_address_keeps_it() {
    let mut rules = namespace();
    let one = Sample::new(2, ISOLATED);
    let other = Sample {
        network: "other".to_owned(),
        gateway_link: "br-other".to_owned(),
        ..Sample::new(3, ISOLATED)
    };
    rules.install(&[one.attached()]).unwrap();
    rules.install(&[other.attached()]).unwrap();
    assert_eq!(rules.verify(&one.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&one.owner()).unwrap();
    rules.remove(&other.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

/// The others of the network bring their chains along as well, and each knows the gateways of its own families.
#[test]
fn one_repair_mends_what_several_attachments_share() {
    let mut rules = namespace();
    let v4_only = Sample { gateways: vec!["172.20.0.1".parse().unwrap()], ..Sample::new(2, ALL) };
    let samples = [v4_only, Sample::new(3, ALL), Sample::new(4, ALL)];
    let attached: Vec<Attached<'_>> = samples.iter().map(Sample::attached).collect();
    rules.install(&attached).unwrap();
    for attachment in &attached {
        assert_eq!(rules.verify(attachment).unwrap(), Vec::<String>::new());
    }
    let whole = ruleset();
    for damage in [
        "flush map inet cni-bridge gateways4 ; flush map inet cni-bridge gateways6 ; flush map inet cni-bridge isolated",
        "delete element inet cni-bridge attachments { veth2 } ; delete element inet cni-bridge masquerade4 { 172.20.0.3 } ; \
         add element inet cni-bridge masquerade4 { 172.20.0.3 comment \"x\" }",
        "delete element inet cni-bridge attachments { veth2 } ; add element inet cni-bridge attachments { veth2 : accept } ; \
         delete element inet cni-bridge masquerade4 { 172.20.0.3 } ; \
         add element inet cni-bridge masquerade4 { 172.20.0.3 comment \"x\" }",
        "delete element inet cni-bridge attachments { veth2 } ; \
         add element inet cni-bridge attachments { veth2 comment \"testnet/c2/eth0 172.20.0.99\" : accept } ; \
         add element inet cni-bridge masquerade4 { 172.20.0.99 comment \"testnet/c2/eth0\" } ; \
         delete element inet cni-bridge masquerade4 { 172.20.0.3 } ; \
         add element inet cni-bridge masquerade4 { 172.20.0.3 comment \"x\" }",
    ] {
        nft_script(&damage.replace(" ; ", "\n"));
        let mended = rules.repair(&attached).unwrap();
        assert!(!mended.is_empty(), "{damage}");
        let distinct: BTreeSet<&String> = mended.iter().collect();
        assert_eq!(distinct.len(), mended.len(), "{damage}: {mended:?}");
        assert_eq!(sorted(&ruleset()), sorted(&whole), "{damage}");
    }
}

/// Elements are listed in no order.
fn sorted(ruleset: &str) -> Vec<String> {
    let mut words: Vec<String> = ruleset.split_whitespace().map(|word| word.replace(',', "")).collect();
    words.sort();
    words
}

#[test]
fn a_repair_of_the_only_attachment_gives_it_another_policy() {
    for (old, new) in [(ISOLATED, MASQUERADED), (MASQUERADED, ISOLATED), (ALL, MASQUERADED), (ALL, OPEN)] {
        let mut rules = namespace();
        rules.install(&[Sample::new(2, new).attached()]).unwrap();
        let wished = ruleset();
        rules.remove(&Sample::new(2, new).owner()).unwrap();
        rules.install(&[Sample::new(2, old).attached()]).unwrap();
        let mended = rules.repair(&[Sample::new(2, new).attached()]).unwrap();
        let unwished = mended.iter().filter(|words| words.contains("that is not wished")).count();
        let of = |policy: Policy| {
            usize::from(policy.masquerade || policy.ingress != IngressPolicy::Open)
                + usize::from(policy.mac_spoof_check)
        };
        assert_eq!(unwished, of(old).saturating_sub(of(new)), "{old:?} to {new:?}: {mended:?}");
        assert_eq!(ruleset(), wished, "{old:?} to {new:?}");
    }
}

#[test]
fn a_policy_goes_with_the_last_attachment_that_came_with_it() {
    let mut rules = namespace();
    let (isolated, same_bridge) = (Sample::new(2, ISOLATED), Sample::new(3, SAME_BRIDGE));
    rules.install(&[same_bridge.attached()]).unwrap();
    let milder = ruleset();
    rules.install(&[isolated.attached()]).unwrap();
    assert!(ruleset().contains("chain isolated-br-test"));
    rules.remove(&isolated.owner()).unwrap();
    assert_eq!(ruleset(), milder);
    rules.install(&[isolated.attached()]).unwrap();
    rules.remove(&same_bridge.owner()).unwrap();
    assert_eq!(rules.verify(&isolated.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&isolated.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn after_a_flush_one_transaction_brings_everything_back() {
    let mut rules = namespace();
    let samples: Vec<Sample> = (2..40).map(|number| Sample::new(number, ALL)).collect();
    let attached: Vec<Attached<'_>> = samples.iter().map(Sample::attached).collect();
    rules.install(&attached).unwrap();
    nft("flush ruleset");
    assert_eq!(rules.install(&attached[..1]).unwrap(), Installed::Anew);
    rules.install(&attached).unwrap();
    for attachment in &attached {
        assert_eq!(rules.verify(attachment).unwrap(), Vec::<String>::new());
    }
    assert_eq!(rules.records().unwrap().len(), attached.len());
}

#[test]
fn many_attachments_fit_into_one_transaction_even_if_two_claim_one_address() {
    let mut rules = namespace();
    let samples: Vec<Sample> = (0..1500_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            Sample {
                attachment: Attachment::new(&format!("{number:064x}"), "eth0").unwrap(),
                host_veth: format!("veth{number:011x}"),
                mac: [2, 0, 0, 0, high, low],
                addresses: vec![format!("172.20.{high}.{}/16", low.max(1)).parse().unwrap()],
                gateways: vec!["172.20.255.254".parse().unwrap()],
                ..Sample::new(2, ALL)
            }
        })
        .collect();
    let attached: Vec<Attached<'_>> = samples.iter().map(Sample::attached).collect();
    rules.install(&attached).unwrap();
    rules.install(&attached).unwrap();
    assert_eq!(rules.records().unwrap().len(), attached.len());
    assert_eq!(rules.verify(&attached[700]).unwrap(), Vec::<String>::new());
}

#[test]
fn verify_names_each_thing_that_was_broken_and_repair_mends_it() {
    let mut rules = namespace();
    let sample = Sample::new(2, ALL);
    for (damage, words) in [
        ("delete table inet cni-bridge", "table inet cni-bridge is missing"),
        ("delete table bridge cni-bridge", "table bridge cni-bridge is missing"),
        ("flush chain inet cni-bridge forward", "chain inet cni-bridge forward has other rules"),
        (
            "flush chain inet cni-bridge isolated-br-test",
            "chain inet cni-bridge isolated-br-test has other rules",
        ),
        (
            "insert rule inet cni-bridge same-bridge-br-test accept",
            "chain inet cni-bridge same-bridge-br-test has other rules",
        ),
        (
            "flush chain inet cni-bridge subnets",
            "chain inet cni-bridge subnets lacks the rule that leads to masquerade-testnet-172.20.0.0/16",
        ),
        (
            "flush chain inet cni-bridge masquerade-testnet-172.20.0.0/16; \
             add rule inet cni-bridge masquerade-testnet-172.20.0.0/16 ip daddr 172.20.0.0/16 return; \
             add rule inet cni-bridge masquerade-testnet-172.20.0.0/16 masquerade random",
            "chain inet cni-bridge masquerade-testnet-172.20.0.0/16 has other rules",
        ),
        (
            "flush set inet cni-bridge masquerade4",
            "set inet cni-bridge masquerade4 lacks the element of testnet/c2/eth0",
        ),
        (
            "flush map inet cni-bridge isolated",
            "set inet cni-bridge isolated lacks the element that leads to isolated-br-test",
        ),
        (
            "flush map inet cni-bridge attachments",
            "set inet cni-bridge attachments lacks the element of testnet/c2/eth0",
        ),
        (
            "flush set bridge cni-bridge sources",
            "set bridge cni-bridge sources lacks the element of testnet/c2/eth0",
        ),
        ("flush chain bridge cni-bridge prerouting", "chain bridge cni-bridge prerouting has other rules"),
        ("add table bridge cni-bridge { flags dormant; }", "table bridge cni-bridge is dormant"),
        (
            "insert rule inet cni-bridge subnets drop",
            "chain inet cni-bridge subnets has a rule that leads to no network",
        ),
        (
            "chain inet cni-bridge forward { policy drop; }",
            "chain inet cni-bridge forward has another hook or policy",
        ),
    ] {
        rules.install(&[sample.attached()]).unwrap();
        let whole = ruleset();
        nft(damage);
        let found = rules.verify(&sample.attached()).unwrap();
        assert!(found.iter().any(|text| text.contains(words)), "after {damage}: {found:?}");
        let repaired = rules.repair(&[sample.attached()]).unwrap();
        assert_eq!(repaired, found, "after {damage}");
        assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new(), "after {damage}");
        assert_eq!(ruleset().lines().count(), whole.lines().count(), "after {damage}");
        rules.remove(&sample.owner()).unwrap();
        assert_eq!(ruleset(), "", "after {damage}");
    }
}

#[test]
fn the_next_add_wakes_a_dormant_table() {
    let mut rules = namespace();
    let (one, two) = (Sample::new(1, ALL), Sample::new(2, ALL));
    rules.install(&[one.attached()]).unwrap();
    nft("add table inet cni-bridge { flags dormant; }");
    assert_eq!(rules.join(&[two.attached()]).unwrap(), Installed::Anew);
    rules.repair(&[one.attached(), two.attached()]).unwrap();
    assert!(!ruleset().contains("dormant"));
    assert_eq!(rules.verify(&two.attached()).unwrap(), Vec::<String>::new());
}

#[test]
fn the_table_stays_for_the_others_whatever_somebody_made_of_a_record() {
    let mut rules = namespace();
    let checked = Policy { mac_spoof_check: true, ..OPEN };
    let (one, two) = (Sample::new(1, checked), Sample::new(2, checked));
    rules.install(&[one.attached(), two.attached()]).unwrap();
    nft("delete element bridge cni-bridge ports { veth1 }");
    nft("add element bridge cni-bridge ports { veth1 : accept }");
    rules.remove(&one.owner()).unwrap();
    assert_eq!(rules.verify(&two.attached()).unwrap(), Vec::<String>::new());
    rules.remove(&two.owner()).unwrap();
    assert_eq!(ruleset(), "");
}

#[test]
fn a_storm_of_adds_and_dels_leaves_what_the_resident_needs_and_nothing_else() {
    let mut rules = namespace();
    let policies = [ALL, MASQUERADED, SAME_BRIDGE, Policy { mac_spoof_check: true, ..MASQUERADED }];
    let storm = |rounds: u8| {
        std::thread::scope(|scope| {
            for number in 3..67_u8 {
                scope.spawn(move || {
                    for round in 0..rounds {
                        let mut sample =
                            Sample::new(number, policies[usize::from(number + round) % policies.len()]);
                        sample.gateway_link = format!("br-{}", number % 3);
                        sample.network = format!("net{}", number % 3);
                        sample.gateways = vec![format!("172.20.{}.1", number % 3).parse().unwrap()];
                        Rules::open().unwrap().install(&[sample.attached()]).unwrap();
                        assert_eq!(
                            Rules::open().unwrap().verify(&sample.attached()).unwrap(),
                            Vec::<String>::new()
                        );
                        Rules::open().unwrap().remove(&sample.owner()).unwrap();
                    }
                });
            }
        });
    };
    storm(2);
    assert_eq!(ruleset(), "");
    let resident = Sample { gateways: Vec::new(), ..Sample::new(2, ALL) };
    rules.install(&[resident.attached()]).unwrap();
    let alone = ruleset();
    storm(2);
    assert_eq!(rules.verify(&resident.attached()).unwrap(), Vec::<String>::new());
    assert_eq!(ruleset(), alone);
}

/// What somebody did by hand to chains of the tables, and an attachment that joins another one.
#[test]
fn who_joins_brings_chains_back_to_their_hooks_and_fills_those_that_were_flushed() {
    let mut rules = namespace();
    let (one, two) = (Sample::new(2, ALL), Sample::new(3, ALL));
    for by_hand in [
        "add chain inet cni-bridge forward { policy drop; }",
        "add chain inet cni-bridge postrouting { policy drop; }",
        "add chain bridge cni-bridge prerouting { policy drop; }",
        "delete chain inet cni-bridge forward",
        "delete chain bridge cni-bridge prerouting",
        "flush chain inet cni-bridge input",
        "flush chain bridge cni-bridge prerouting",
    ] {
        rules.install(&[one.attached()]).unwrap();
        nft(by_hand);
        assert_eq!(rules.join(&[two.attached()]).unwrap(), Installed::Joined, "{by_hand}");
        for sample in [&one, &two] {
            assert_eq!(rules.verify(&sample.attached()).unwrap(), Vec::<String>::new(), "{by_hand}");
        }
        for sample in [&one, &two] {
            rules.remove(&sample.owner()).unwrap();
        }
        assert_eq!(ruleset(), "", "{by_hand}");
    }
    rules.install(&[one.attached()]).unwrap();
    nft("add rule inet cni-bridge forward counter comment theirs");
    rules.join(&[two.attached()]).unwrap();
    assert!(ruleset().contains("theirs"), "what somebody has added is gone:\n{}", ruleset());
}

#[test]
fn whoever_needs_the_ra_guard_mends_its_policy_and_its_rules() {
    let mut rules = namespace();
    for by_hand in [
        "add chain bridge cni-ra-guard prerouting { policy drop; }",
        "flush chain bridge cni-ra-guard prerouting",
        "delete chain bridge cni-ra-guard prerouting",
    ] {
        rules.guard().unwrap();
        let whole = ruleset();
        nft(by_hand);
        assert_ne!(rules.verify_guard().unwrap(), Vec::<String>::new(), "{by_hand}");
        rules.guard().unwrap();
        assert_eq!(ruleset(), whole, "{by_hand}");
    }
}

/// The chains of others that drop the flows by way of `link`, as a person is told of them.
fn foreign_drops(rules: &mut Rules, link: &str, addresses: &[&str]) -> Vec<String> {
    let mut host = Netlink::open().unwrap();
    let addresses: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    let drops = rules.foreign_drops(&mut Flows::new(&mut host, link, &addresses)).unwrap();
    drops.into_iter().map(|drop| format!("{}: {}", drop.chain, drop.reason)).collect()
}

#[test]
fn foreign_chains_that_drop_are_named_unless_they_accept_the_link() {
    let mut rules = namespace();
    let sample = Sample::new(2, ALL);
    rules.install(&[sample.attached()]).unwrap();
    let mut found = |link| foreign_drops(&mut rules, link, &[]);
    assert_eq!(found("br-test"), Vec::<String>::new());
    nft("add table inet fw");
    nft("add chain inet fw through { type filter hook forward priority 10; policy drop; }");
    assert_eq!(found("br-test"), ["inet fw through: policy drop"]);
    nft("add chain inet fw users");
    nft("add rule inet fw through ct state established,related accept");
    nft("add rule inet fw through jump users");
    nft("add rule inet fw users iifname br-test accept");
    assert_eq!(found("br-test"), Vec::<String>::new());
    assert_eq!(found("br-other"), ["inet fw through: policy drop"]);
    nft("add chain inet fw last { type filter hook forward priority 20; policy accept; }");
    nft("add rule inet fw last counter reject");
    assert_eq!(found("br-test"), ["inet fw last: a rule of it is reject"]);
}

/// A namespace with the bridge `br-test`, and a default route by `uplink`.
fn namespace_with_uplink() -> Rules {
    let rules = namespace();
    for words in [
        "link add br-test type bridge",
        "link add uplink type bridge",
        "address add 192.0.2.1/24 dev uplink",
        "link set uplink up",
        "route add default via 192.0.2.2",
    ] {
        let output = Command::new("ip").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    rules
}

/// What accepts the flows of `br-test` in a chain that drops the rest, and what looks alike and does not.
#[test]
fn a_foreign_chain_is_read_as_the_kernel_takes_it() {
    const REPLIES: &str = "ct state vmap { established : accept, related : accept, invalid : drop }";
    let mut rules = namespace_with_uplink();
    for (passes, chain) in [
        (true, "REPLIES iifname br-test accept"),
        (true, "REPLIES iif br-test accept"),
        (true, "REPLIES iifname { lo, br-test } accept"),
        (true, "REPLIES iifname \"br-*\" counter accept"),
        (true, "REPLIES iifname { \"br-*\", lo } log accept"),
        (true, "REPLIES iifname @ours counter name passed accept"),
        (true, "REPLIES iifname vmap { br-test : jump trusted }"),
        (true, "REPLIES iifname vmap { lo : accept, \"br-*\" : goto trusted }"),
        (true, "REPLIES iifname . oifname vmap { br-test . uplink : accept }"),
        (true, "REPLIES iifname br-test oifname { uplink, other } accept"),
        (true, "REPLIES iifname br-test oif uplink accept"),
        (true, "REPLIES iifname br-test oifname != br-test accept"),
        (true, "REPLIES ct state new iifname br-test accept"),
        (true, "REPLIES ct state { new, untracked } iifname != uplink accept"),
        (true, "ct state established,related accept; iifname br-test accept"),
        (true, "ct state != invalid accept"),
        (true, "ct direction reply accept; iifname br-test accept"),
        (true, "iifname br-test accept; oifname br-test accept"),
        // Half of a flow is none.
        (false, "REPLIES"),
        (false, "iifname br-test accept"),
        (false, "oifname br-test ct state established accept"),
        (false, "REPLIES oifname br-test ct state established accept"),
        (false, "REPLIES oifname br-test accept"),
        // Somebody else's.
        (false, "REPLIES iifname lo accept"),
        (false, "REPLIES iif lo accept"),
        (false, "REPLIES iifname { lo, uplink } accept"),
        (false, "REPLIES iifname \"br-o*\" accept"),
        (false, "REPLIES iifname { \"br-o*\", lo } accept"),
        (false, "REPLIES iifname lo jump trusted"),
        (false, "REPLIES iifname vmap { lo : goto trusted }"),
        (false, "REPLIES iifname != @ours accept"),
        (false, "REPLIES iifname br-test oifname other accept"),
        (false, "REPLIES iifname br-test oifname br-test accept"),
        (false, "REPLIES iifname . oifname vmap { br-test . other : accept }"),
        (false, "REPLIES iifname . ip daddr != { lo . 10.1.0.1 } oifname uplink accept"),
        // Something else is asked as well.
        (false, "REPLIES iifname br-test tcp dport 443 accept"),
        (false, "REPLIES iifname br-test ip daddr 10.0.0.0/8 jump trusted"),
        (false, "REPLIES iifname br-test meta mark 7 accept"),
        (false, "REPLIES iifname br-test limit rate 10/second accept"),
        (false, "REPLIES ct mark 7 jump trusted"),
        // It is dropped first.
        (false, "REPLIES iifname br-test drop; iifname br-test accept"),
        (false, "REPLIES iifname vmap { br-test : drop } ; iifname br-test accept"),
        (false, "REPLIES oifname { uplink } reject; iifname br-test accept"),
        (false, "ct state new drop; iifname br-test accept"),
    ] {
        let words = chain.replace("REPLIES", &format!("{REPLIES};"));
        nft_script(&format!(
            "flush ruleset; table inet fw {{
                set ours {{ type ifname; elements = {{ br-test }}; }}
                counter passed {{ }}
                chain trusted {{ accept; }}
                chain through {{ type filter hook forward priority 0; policy drop; {words}; }}
            }}"
        ));
        let named = foreign_drops(&mut rules, "br-test", &["10.9.0.2"]);
        assert_eq!(named.is_empty(), passes, "{chain}: {named:?}");
    }
}

/// What lets the flows of `br-test` from some addresses through, and what does not.
#[test]
fn a_foreign_chain_is_read_for_the_addresses_of_the_containers() {
    const V4: &[&str] = &["10.9.0.2"];
    const V6: &[&str] = &["fd00:9::2"];
    const BOTH: &[&str] = &["10.9.0.2", "fd00:9::2"];
    let mut rules = namespace_with_uplink();
    for (dropped, addresses, family, policy, chain) in [
        // As flannel has it.
        (false, V4, "ip", "drop", "ip saddr 10.9.0.0/16 accept; ip daddr 10.9.0.0/16 accept"),
        (true, V4, "ip", "drop", "ip saddr 10.9.0.0/16 accept; ip saddr 10.8.0.0/15 accept"),
        (true, V4, "ip", "drop", "ip saddr 10.8.0.0/16 accept; ip daddr 10.8.0.0/16 accept"),
        (false, V4, "ip", "drop", "ct state established accept; ip saddr 10.9.0.0/20 accept"),
        (true, V4, "ip", "drop", "ct state established accept; ip saddr 10.9.16.0/20 accept"),
        (
            false,
            V4,
            "inet",
            "drop",
            "ct state established accept; ip saddr { 10.0.0.0/8, 192.168.0.0/16 } accept",
        ),
        (
            true,
            V4,
            "inet",
            "drop",
            "ct state established accept; ip saddr { 172.16.0.0/12, 192.168.0.0/16 } accept",
        ),
        (
            false,
            V4,
            "inet",
            "drop",
            "ct state established accept; iifname . ip saddr { br-test . 10.9.0.2 } accept",
        ),
        (false, V4, "inet", "drop", "ct state established accept; ip saddr != 10.8.0.0/16 accept"),
        (true, V4, "inet", "drop", "ct state established accept; ip saddr 10.9.0.2 tcp dport 443 accept"),
        (true, V4, "inet", "drop", "ct state established accept; ip daddr 192.0.2.1 accept"),
        (false, V6, "inet", "drop", "ip6 saddr fd00:9::/64 accept; ip6 daddr fd00:9::/64 accept"),
        (true, V6, "inet", "drop", "ip6 saddr fd00:9::/64 accept; ip6 daddr fd00:9:0:1::/64 accept"),
        (true, V6, "inet", "drop", "ip saddr 10.9.0.0/16 accept; ip daddr 10.9.0.0/16 accept"),
        // A container with both has to be let through with both.
        (true, BOTH, "inet", "drop", "ip saddr 10.9.0.0/16 accept; ip daddr 10.9.0.0/16 accept"),
        (true, BOTH, "inet", "drop", "meta nfproto ipv4 accept"),
        (false, BOTH, "inet", "drop", "meta nfproto { ipv4, ipv6 } accept"),
        (false, V4, "inet", "drop", "meta nfproto ipv4 accept"),
        (true, V6, "inet", "drop", "meta nfproto ipv4 accept"),
        // The replies' way is the other way round.
        (false, V4, "inet", "drop", "ct state new accept; iifname uplink oifname br-test accept"),
        (true, V4, "inet", "drop", "ct state new accept; iifname br-other oifname br-test accept"),
        // What is not of a table's family does not come there.
        (false, V4, "ip6", "drop", ""),
        (true, BOTH, "ip6", "drop", ""),
        (false, V6, "ip", "drop", ""),
        (true, V4, "ip", "drop", ""),
        // It accepts the rest.
        (true, V4, "inet", "accept", "iifname br-test drop"),
        (true, V4, "inet", "accept", "ip saddr 10.0.0.0/8 reject"),
        (true, V4, "inet", "accept", "oifname br-test jump refused"),
        (true, BOTH, "inet", "accept", "meta nfproto ipv6 drop"),
        (false, V4, "inet", "accept", "meta nfproto ipv6 drop"),
        (false, V4, "inet", "accept", "iifname br-other drop"),
        (false, V4, "inet", "accept", "iifname br-test ip daddr 192.0.2.1 drop"),
        (
            false,
            V4,
            "inet",
            "accept",
            "iifname br-test accept; oifname br-test accept; ip saddr 10.0.0.0/8 drop",
        ),
        (false, V4, "inet", "accept", "iifname br-test ct state invalid drop"),
    ] {
        nft_script(&format!(
            "flush ruleset; table {family} fw {{
                chain refused {{ drop; }}
                chain through {{ type filter hook forward priority 0; policy {policy}; {chain}; }}
                chain to_the_host {{ type filter hook input priority 0; policy drop; }}
            }}"
        ));
        let named = foreign_drops(&mut rules, "br-test", addresses);
        assert_eq!(named.len() == 1, dropped, "{chain}: {named:?}");
    }
}

fn nft_script(script: &str) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, script.as_bytes()).unwrap();
    nft(&format!("-f {}", file.path().display()));
}

/// What the reference plugins write for container `abc`, as `nft` lists it, and rules of others beside.
const REFERENCE_RULES: &str = r#"
table bridge nat {
    chain PREROUTING {
        type filter hook prerouting priority dstnat; policy accept;
        iifname "vetha" jump cni-br-iface-abc-eth0 comment "macspoofchk-abc-eth0"
        iifname "vethb" jump cni-br-iface-def-eth0 comment "macspoofchk-def-eth0"
    }
    chain cni-br-iface-abc-eth0 {
        jump cni-br-iface-abc-eth0-mac comment "macspoofchk-abc-eth0"
    }
    chain cni-br-iface-abc-eth0-mac {
        ether saddr 02:00:00:00:00:01 return comment "macspoofchk-abc-eth0"
        drop comment "macspoofchk-abc-eth0"
    }
    chain cni-br-iface-def-eth0 {
        drop comment "macspoofchk-def-eth0"
    }
}
table inet cni_plugins_masquerade {
    chain masq_checks {
        ip saddr 10.1.2.2 ip daddr != 10.1.2.0/24 masquerade comment "43d91f8451058a70-e65086f8a75535c6, net: n1, if: eth0, id: abc"
        ip saddr 10.1.2.3 ip daddr != 10.1.2.0/24 masquerade comment "0000000000000000-0000000000000000, net: x"
    }
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        goto masq_checks
    }
}
"#;

#[test]
fn what_the_reference_left_goes_with_a_removal_and_nothing_else_does() {
    let mut rules = namespace();
    let sample = Sample {
        network: "n1".to_owned(),
        attachment: Attachment::new("abc", "eth0").unwrap(),
        ..Sample::new(2, ALL)
    };
    nft_script(REFERENCE_RULES);
    let chain = "CNI-0dc0301bc9564ed905ff7609";
    for (words, comment) in [
        (format!("-N {chain}"), None),
        (format!("-A {chain} -j MASQUERADE"), Some(r#"name: "n1" id: "abc""#)),
        (format!("-A POSTROUTING -s 10.1.2.2 -j {chain}"), Some(r#"name: "n1" id: "abc""#)),
        ("-A POSTROUTING -s 10.1.2.9 -j MASQUERADE".to_owned(), Some("somebody's")),
    ] {
        let mut iptables = Command::new("iptables-nft");
        iptables.args(["-t", "nat"]).args(words.split(' '));
        iptables.args(comment.iter().flat_map(|text| ["-m", "comment", "--comment", text]));
        let output = iptables.output().unwrap();
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    }
    rules.remove(&sample.owner()).unwrap();
    let left = ruleset();
    for gone in ["abc", "10.1.2.2", "CNI-0dc"] {
        assert!(!left.contains(gone), "{gone} is still there:\n{left}");
    }
    for kept in ["macspoofchk-def-eth0", "10.1.2.3", "10.1.2.9", "goto masq_checks"] {
        assert!(left.contains(kept), "{kept} is gone:\n{left}");
    }
}
