//! Against a real kernel: each test has a network namespace of its own, so it needs root there (or a user namespace
//! entered before). What the rules do to packets is told by the integration tests.

use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

use super::*;

const MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// An attachment that owns what [`Attached`] borrows.
struct Sample {
    network: String,
    attachment: Attachment,
    host_veth: String,
    gateway_link: String,
    addresses: Vec<IpNetwork>,
    gateways: Vec<IpAddr>,
    policy: Policy,
}

const OPEN: Policy =
    Policy { masquerade: false, ingress: IngressPolicy::Open, ra_guard: false, mac_spoof_check: false };
const MASQUERADED: Policy = Policy { masquerade: true, ..OPEN };
const SAME_BRIDGE: Policy = Policy { ingress: IngressPolicy::SameBridge, ..OPEN };
const ISOLATED: Policy = Policy { ingress: IngressPolicy::Isolated, ..OPEN };
const ALL: Policy =
    Policy { masquerade: true, ingress: IngressPolicy::Isolated, ra_guard: true, mac_spoof_check: true };

impl Sample {
    /// Container number `number` of network `testnet` on bridge `br-test`.
    fn new(number: u8, policy: Policy) -> Self {
        Self {
            network: "testnet".to_owned(),
            attachment: Attachment::new(&format!("c{number}"), "eth0").unwrap(),
            host_veth: format!("veth{number}"),
            gateway_link: "br-test".to_owned(),
            addresses: vec![
                format!("172.20.0.{number}/16").parse().unwrap(),
                format!("fd00:20::{number}/64").parse().unwrap(),
            ],
            gateways: vec!["172.20.0.1".parse().unwrap(), "fd00:20::1".parse().unwrap()],
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
            mac: MAC,
            addresses: &self.addresses,
            gateways: &self.gateways,
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
fn ra_guard_reads_as_documented() {
    check_golden(Policy { ra_guard: true, ..OPEN }, include_str!("golden/ra-guard.nft"));
}

#[test]
fn mac_spoof_check_reads_as_documented() {
    check_golden(Policy { mac_spoof_check: true, ..OPEN }, include_str!("golden/mac-spoof-check.nft"));
}
