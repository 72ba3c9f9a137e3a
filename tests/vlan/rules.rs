//! The rules on this kernel: they can be installed, do their work, can be listed and removed.

use integration_tests::{Container, Outside, Suite};
use serde_json::{Value, json};

use crate::{Story, address, host_veth, routed};

#[test]
fn masquerade_and_isolation_work_and_go() {
    let story = Story::new();
    let config = |number: u8| {
        let mut config = routed(&json!({
            "name": format!("n{number}"), "bridge": format!("br{number}"), "isDefaultGateway": true, "ipMasq": true,
            "ingressPolicy": "same-bridge", "macspoofchk": true,
        }));
        config["ipam"]["ranges"] = json!([
            [{ "subnet": format!("10.2.{number}.0/24") }], [{ "subnet": format!("fd00:{number}::/64") }],
        ]);
        config
    };
    let before = story.host("nft list ruleset");
    let _outside = story.world.outside();
    let (first, result) = story.attach("c1", &config(1));
    let (_second, same) = story.attach("c2", &config(1));
    let (third, other) = story.attach("c3", &config(2));
    let listed = story.host("nft list ruleset");
    assert!(listed.contains("masquerade") && listed.contains(host_veth(&result)), "{listed}");
    assert!(first.reaches(address(&same)));
    assert!(first.is_cut_off_from(address(&other)) && third.is_cut_off_from(address(&result)));
    // The outside knows no way back to the containers' addresses.
    for target in [Outside::ADDRESS, Outside::ADDRESS6] {
        assert!(first.reaches(target), "{target}");
    }
    assert_eq!(story.found(&first, &config(1), &result), "");

    for (name, number, result) in [("c1", 1, result), ("c2", 1, same), ("c3", 2, other)] {
        let mut config = config(number);
        config["prevResult"] = result;
        let del = story.world.plugin("bridge").verb("DEL").env("CNI_CONTAINERID", name).env("CNI_NETNS", "");
        del.env("CNI_PATH", &story.path).config(&config).run().success();
    }
    assert_eq!(story.host("nft list ruleset"), before);
}

/// A network with a policy in VLAN `number`.
fn in_vlan(number: u8, policy: &str, keys: &Value) -> Value {
    let mut config = routed(&json!({
        "name": format!("n{number}"), "vlan": number, "isDefaultGateway": true, "ipMasq": true, "ingressPolicy": policy,
    }));
    config["ipam"]["ranges"] = json!([
        [{ "subnet": format!("10.2.{number}.0/24") }], [{ "subnet": format!("fd00:{number}::/64") }],
    ]);
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    config
}

#[track_caller]
fn check(from: &Container, to: &str, expected: bool, why: &str) {
    from.assert_reach(to, expected, why);
}

/// Frames on their way to the gateway's port are bridged, and those between containers are too.
fn a_vlan_is_wired(bridge_calls_iptables: u8, firewall: bool) {
    for policy in ["", "same-bridge", "isolated"] {
        let why = format!("{policy:?}, bridge-nf-call-iptables {bridge_calls_iptables}, firewall {firewall}");
        let story = Story::new();
        for family in ["ip", "ip6"] {
            story.host(&format!(
                "sysctl -q -w net.bridge.bridge-nf-call-{family}tables={bridge_calls_iptables}"
            ));
        }
        let outside = story.world.outside();
        outside.route("10.2.0.0/16");
        outside.route("fd00:5::/64");
        if firewall {
            story.host("nft add table inet firewall");
            story.host(
                "nft add chain inet firewall through { type filter hook forward priority 10; policy drop; }",
            );
        }
        let before = story.host("nft list ruleset");
        let config = |number| in_vlan(number, policy, &json!({ "acceptForward": firewall }));
        let (first, result) = story.attach("c1", &config(5));
        let (second, same) = story.attach("c2", &config(5));
        let (third, other) = story.attach("c3", &config(6));
        let open = policy.is_empty();
        for target in [Outside::ADDRESS, Outside::ADDRESS6, "10.2.5.1", "fd00:5::1"] {
            check(&first, target, true, &why);
        }
        check(&second, address(&result), policy != "isolated", &why);
        check(&third, address(&result), open, &why);
        check(&first, address(&other), open, &why);
        outside.space().assert_reach(address(&same), open, &why);
        assert_eq!(story.found(&first, &config(5), &result), "", "{why}");
        let program = Suite::Ours.binary("bridge").display().to_string();
        let shown = story.world.host().command([program.as_str(), "show", "n5"]).run();
        assert!(!shown.success().contains("dropped by"), "{why}: {shown}");
        for (container, number) in [(&first, 5), (&second, 5), (&third, 6)] {
            story.call("DEL", container, &config(number)).run().success();
        }
        assert_eq!(story.host("nft list ruleset"), before, "{why}");
    }
}

#[test]
fn a_vlan_is_wired_whether_bridged_frames_pass_iptables() {
    for bridge_calls_iptables in [0, 1] {
        a_vlan_is_wired(bridge_calls_iptables, false);
    }
}

#[test]
fn a_vlan_is_let_through_a_firewall_whether_bridged_frames_pass_iptables() {
    for bridge_calls_iptables in [0, 1] {
        a_vlan_is_wired(bridge_calls_iptables, true);
    }
}

/// Frames of the VLAN are bridged on the link that the plain network's rules are about.
#[test]
fn a_vlan_and_a_plain_network_share_a_bridge_whether_bridged_frames_pass_iptables() {
    for (bridge_calls_iptables, of_plain, of_vlan) in [
        (0, "isolated", ""),
        (1, "isolated", ""),
        (1, "isolated", "same-bridge"),
        (1, "same-bridge", "isolated"),
    ] {
        let why =
            format!("plain {of_plain:?}, VLAN {of_vlan:?}, bridge-nf-call-iptables {bridge_calls_iptables}");
        let story = Story::new();
        for family in ["ip", "ip6"] {
            story.host(&format!(
                "sysctl -q -w net.bridge.bridge-nf-call-{family}tables={bridge_calls_iptables}"
            ));
        }
        let outside = story.world.outside();
        let before = story.host("nft list ruleset");
        let mut plain = in_vlan(1, of_plain, &json!({}));
        plain.as_object_mut().unwrap().remove("vlan");
        let vlan = in_vlan(5, of_vlan, &json!({}));
        let (p1, first) = story.attach("p1", &plain);
        let (v1, in_vlan) = story.attach("v1", &vlan);
        let (p2, second) = story.attach("p2", &plain);
        let (v2, same_vlan) = story.attach("v2", &vlan);
        for container in [&p1, &v1] {
            for target in [Outside::ADDRESS, Outside::ADDRESS6] {
                check(container, target, true, &why);
            }
        }
        check(&p1, address(&second), of_plain != "isolated", &why);
        check(&v1, address(&same_vlan), of_vlan != "isolated", &why);
        for (from, to, policy) in [(&p1, &in_vlan, of_vlan), (&v1, &first, of_plain)] {
            check(from, address(to), policy.is_empty(), &why);
        }
        for (container, config, result) in
            [(&p1, &plain, &first), (&p2, &plain, &second), (&v1, &vlan, &in_vlan), (&v2, &vlan, &same_vlan)]
        {
            assert_eq!(story.found(container, config, result), "", "{why}");
        }
        for (container, config) in [(&p1, &plain), (&v1, &vlan), (&p2, &plain), (&v2, &vlan)] {
            story.call("DEL", container, config).run().success();
        }
        drop(outside);
        assert_eq!(story.host("nft list ruleset"), before, "{why}");
    }
}
