//! Plans by value: what a configuration and leases come to.

use std::path::PathBuf;

use cni_types::NetConf;
use serde_json::{Value, json};

use super::*;
use crate::config::tests::settings;

fn leases(document: Value) -> CniResult {
    CniResult::decode(&document, SpecVersion::V1_0_0).unwrap()
}

#[track_caller]
fn plan(conf: Value, result: Value) -> Plan {
    Plan::new(&settings(conf).unwrap(), leases(result)).unwrap()
}

fn net(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// Routes as a person would type them.
fn routes(plan: &Plan) -> Vec<String> {
    plan.routes
        .iter()
        .map(|route| {
            let mut text = route.dst.to_string();
            if let Some(via) = route.via {
                text += &format!(" via {via}");
            }
            for (name, value) in [("mtu", route.mtu), ("advmss", route.advmss), ("metric", route.priority)] {
                if value != 0 {
                    text += &format!(" {name} {value}");
                }
            }
            if route.table != MAIN_TABLE {
                text += &format!(" table {}", route.table);
            }
            if route.onlink {
                text += " onlink";
            }
            text
        })
        .collect()
}

const DUAL: &str = r#"{"ips": [
    {"address": "172.17.0.2/16", "gateway": "172.17.0.1"},
    {"address": "fd00:17::2/64", "gateway": "fd00:17::1"}
]}"#;

fn dual() -> Value {
    serde_json::from_str(DUAL).unwrap()
}

#[test]
fn of_a_chains_addresses_those_are_the_attachments_that_its_interface_has_or_nobody() {
    let result = leases(json!({
        "interfaces": [{"name": "eth0"}, {"name": "eth0", "sandbox": "/n"}, {"name": "eth1", "sandbox": "/n"}],
        "ips": [
            {"address": "10.0.0.1/24", "interface": 0}, {"address": "10.0.0.2/24", "interface": 1},
            {"address": "10.0.0.3/24", "interface": 2}, {"address": "10.0.0.4/24"},
            {"address": "10.0.0.5/24", "interface": 9},
        ],
    }));
    let addresses: Vec<IpNetwork> = addresses_of(&result, "eth0").map(|ip| ip.address).collect();
    assert_eq!(addresses, [net("10.0.0.2/24"), net("10.0.0.4/24"), net("10.0.0.5/24")]);
}

#[test]
fn a_default_gateway_gives_each_family_one_default_route() {
    let plan = plan(json!({"isDefaultGateway": true}), dual());
    assert_eq!(routes(&plan), ["0.0.0.0/0 via 172.17.0.1", "::/0 via fd00:17::1"]);
    assert_eq!(plan.gateways, [net("172.17.0.1/16"), net("fd00:17::1/64")]);
    let told = plan.to_result(Vec::new()).routes;
    assert_eq!(told.iter().filter_map(|route| route.gw).count(), 2);
}

#[test]
fn a_leased_default_route_without_a_next_hop_is_that_default_route() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "0.0.0.0/0"}]);
    let plan = plan(json!({"isDefaultGateway": true}), result);
    assert_eq!(routes(&plan), ["0.0.0.0/0 via 172.17.0.1", "::/0 via fd00:17::1"]);
    assert_eq!(plan.to_result(Vec::new()).routes[0].gw, Some("172.17.0.1".parse().unwrap()));
}

#[test]
fn a_leased_default_route_with_its_own_next_hop_is_kept() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "0.0.0.0/0", "gw": "172.17.0.9"}]);
    let plan = plan(json!({"isDefaultGateway": true}), result);
    assert_eq!(routes(&plan), ["0.0.0.0/0 via 172.17.0.9", "::/0 via fd00:17::1"]);
}

#[test]
fn a_default_route_of_another_table_is_not_the_one() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "0.0.0.0/0", "table": 100}]);
    let plan = plan(json!({"isDefaultGateway": true}), result);
    assert_eq!(
        routes(&plan),
        ["0.0.0.0/0 via 172.17.0.1 table 100", "0.0.0.0/0 via 172.17.0.1", "::/0 via fd00:17::1"]
    );
}

#[test]
fn table_0_is_the_main_one() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "0.0.0.0/0", "table": 0}, {"dst": "10.0.0.0/8", "table": 0}]);
    let plan = plan(json!({"isDefaultGateway": true}), result);
    assert_eq!(
        routes(&plan),
        ["0.0.0.0/0 via 172.17.0.1", "10.0.0.0/8 via 172.17.0.1", "::/0 via fd00:17::1"]
    );
    assert_eq!(plan.to_result(Vec::new()).routes[1].table, Some(0), "the result tells it as it was leased");
}

#[test]
fn default_routes_come_in_the_order_of_the_addresses() {
    let result = json!({"ips": [
        {"address": "fd00::2/64", "gateway": "fd00::1"}, {"address": "10.0.0.2/24", "gateway": "10.0.0.1"},
    ]});
    let plan = plan(json!({"isDefaultGateway": true}), result);
    assert_eq!(routes(&plan), ["::/0 via fd00::1", "0.0.0.0/0 via 10.0.0.1"]);
}

#[test]
fn without_a_gateway_the_bridge_gets_no_address_and_routes_are_as_leased() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "10.0.0.0/8", "mtu": 1400, "advmss": 1360, "priority": 7}]);
    let plan = plan(json!({}), result);
    assert_eq!(plan.gateways, []);
    assert_eq!(routes(&plan), ["10.0.0.0/8 via 172.17.0.1 mtu 1400 advmss 1360 metric 7"]);
    assert_eq!(plan.to_result(Vec::new()).routes[0].gw, None, "the result tells the route as it was leased");
}

#[test]
fn a_gateway_that_nobody_named_is_the_first_address_of_its_subnet() {
    let result = json!({"ips": [{"address": "10.5.5.5/24"}, {"address": "fd00::5/64"}]});
    let with_gateway = plan(json!({"isGateway": true}), result.clone());
    assert_eq!(with_gateway.gateways, [net("10.5.5.1/24"), net("fd00::1/64")]);
    assert_eq!(plan(json!({}), result).addresses[0].gateway, None);
}

#[test]
fn gateways_come_ipv4_first_and_each_once() {
    let result = json!({"ips": [
        {"address": "fd00::2/64", "gateway": "fd00::1"},
        {"address": "10.0.0.2/24", "gateway": "10.0.0.1"},
        {"address": "10.0.0.3/24", "gateway": "10.0.0.1"},
    ]});
    let plan = plan(json!({"isGateway": true}), result);
    assert_eq!(plan.gateways, [net("10.0.0.1/24"), net("fd00::1/64")]);
    assert!(plan.forwards(Family::V4) && plan.forwards(Family::V6));
}

#[test]
fn routes_to_one_destination_stand_side_by_side_and_the_same_one_twice_is_a_mistake() {
    let with = |routes: Value| {
        let mut result = dual();
        result["routes"] = routes;
        Plan::new(&settings(json!({"isDefaultGateway": true})).unwrap(), leases(result))
    };
    let several = with(json!([
        {"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8", "priority": 5}, {"dst": "10.0.0.0/8", "gw": "172.17.0.3"}
    ]));
    assert_eq!(
        routes(&several.unwrap())[..3],
        ["10.0.0.0/8 via 172.17.0.1", "10.0.0.0/8 via 172.17.0.1 metric 5", "10.0.0.0/8 via 172.17.0.3"]
    );
    for twice in [
        json!([{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8"}]),
        json!([{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.1/8", "gw": "172.17.0.1", "mtu": 1400}]),
        json!([{"dst": "0.0.0.0/0"}, {"dst": "0.0.0.0/0"}]),
    ] {
        let dst = twice[0]["dst"].as_str().map(net).unwrap();
        let error = with(twice.clone()).unwrap_err();
        assert!(
            matches!(error, PlanError::SameRouteTwice(route) if route.prefix() == dst.prefix()),
            "{twice}"
        );
    }
}

#[test]
fn a_gateway_outside_every_subnet_is_on_the_link_and_any_other_next_hop_is_not() {
    let result = json!({
        "ips": [{"address": "10.0.0.2/32", "gateway": "169.254.1.1"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.0.0.0/8", "gw": "192.0.2.1"}],
    });
    let plan = plan(json!({}), result);
    assert_eq!(routes(&plan), ["0.0.0.0/0 via 169.254.1.1 onlink", "10.0.0.0/8 via 192.0.2.1"]);
}

#[test]
fn the_next_hop_0_0_0_0_is_none() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "10.0.0.0/8", "gw": "0.0.0.0"}, {"dst": "10.0.0.0/8"}]);
    let plan = plan(json!({}), result);
    assert_eq!(routes(&plan), ["10.0.0.0/8", "10.0.0.0/8 via 172.17.0.1"]);
}

#[test]
fn a_route_has_no_larger_metrics_than_the_kernel_gives_it() {
    let mut result = dual();
    result["routes"] = json!([{"dst": "10.0.0.0/8", "mtu": 65535, "advmss": 65535}]);
    let plan = plan(json!({}), result);
    assert_eq!(routes(&plan), ["10.0.0.0/8 via 172.17.0.1 mtu 65520 advmss 65495"]);
    assert_eq!(
        plan.to_result(Vec::new()).routes[0].mtu,
        65535,
        "the result tells the route as it was leased"
    );
}

#[test]
fn the_configured_dns_replaces_the_leased_one_as_a_whole() {
    let mut result = dual();
    result["dns"] = json!({"nameservers": ["10.0.0.1"], "search": ["leased"]});
    let kept = plan(json!({"dns": {}}), result.clone()).to_result(Vec::new()).dns;
    assert_eq!(kept.nameservers, ["10.0.0.1"]);
    let replaced = plan(json!({"dns": {"search": ["mine"]}}), result).to_result(Vec::new()).dns;
    assert_eq!((replaced.nameservers.len(), replaced.search), (0, vec!["mine".to_owned()]));
}

#[test]
fn a_gateway_that_is_no_address_is_told_and_not_wired() {
    for (family, address, none, dst, default) in [
        (Family::V4, "10.0.0.2/24", "0.0.0.0", "10.9.0.0/16", "0.0.0.0/0"),
        (Family::V6, "fd00::2/64", "::", "fd09::/64", "::/0"),
    ] {
        let result = json!({"ips": [{"address": address, "gateway": none}], "routes": [{"dst": dst}]});
        let plan = plan(json!({"isDefaultGateway": true}), result);
        assert_eq!((plan.gateways.as_slice(), plan.forwards(family)), ([].as_slice(), false));
        assert_eq!(routes(&plan), [dst, default]);
        assert_eq!(plan.to_result(Vec::new()).ips[0].gateway, Some(none.parse().unwrap()));
    }
}

#[test]
fn what_cannot_be_wired_is_refused() {
    let refused =
        |conf: Value, result: Value| Plan::new(&settings(conf).unwrap(), leases(result)).unwrap_err();
    assert_eq!(refused(json!({}), json!({})), PlanError::NoAddress);
    for alone in ["255.255.255.255/32", "10.0.0.5/32", "fd00::5/128"] {
        let error = PlanError::NoRoomForGateway(net(alone));
        assert_eq!(refused(json!({"isGateway": true}), json!({"ips": [{"address": alone}]})), error);
    }
    for (address, gateway, refused_one) in [
        ("224.0.0.2/24", "224.0.0.1", "224.0.0.2"),
        ("ff05::2/64", "ff05::1", "ff05::2"),
        ("10.0.0.2/24", "239.0.0.1", "239.0.0.1"),
        ("::2/64", "::1", "::1"),
    ] {
        let result = json!({"ips": [{"address": address, "gateway": gateway}]});
        let error = PlanError::NoInterfaceAddress(refused_one.parse().unwrap());
        assert_eq!(refused(json!({"isGateway": true}), result), error);
    }
    plan(json!({}), json!({"ips": [{"address": "::2/64", "gateway": "::1"}]}));
    let two_subnets = json!({"ips": [
        {"address": "fd00::2/64", "gateway": "fd00::1"}, {"address": "fd00::3/80", "gateway": "fd00::1"},
    ]});
    assert_eq!(
        refused(json!({"isGateway": true}), two_subnets),
        PlanError::SameGatewayTwice(net("fd00::1/64"), 80)
    );
    assert_eq!(refused(json!({"mtu": 1279}), dual()), PlanError::MtuBelowIpv6(1279));
    plan(json!({"mtu": 1280}), dual());
    let by_route = json!({"ips": [{"address": "10.0.0.2/24"}], "routes": [{"dst": "fd09::/64"}]});
    assert_eq!(refused(json!({"mtu": 576}), by_route.clone()), PlanError::MtuBelowIpv6(576));
    plan(json!({}), by_route);
    for gw in ["172.17.0.1", "0.0.0.0"] {
        let mut result = dual();
        result["routes"] = json!([{"dst": "fd09::/64", "gw": gw}]);
        let error = PlanError::Ipv6ByIpv4(net("fd09::/64"), gw.parse().unwrap());
        assert_eq!(refused(json!({}), result), error);
    }
}

#[test]
fn a_switch_cannot_be_told_in_the_oldest_versions() {
    let conf = NetConf::parse(
        cni_types::Command::Add,
        br#"{"cniVersion": "0.2.0", "name": "n", "type": "bridge"}"#.to_vec(),
    )
    .unwrap();
    let settings = Settings::new(&conf, &cni_types::CniArgs::default(), |name| {
        cni_types::Delegate::find(name, &[PathBuf::from("/")])
    })
    .unwrap();
    let plan = Plan::switch(&settings);
    assert!(plan.require_representable(conf.version()).is_err());
    plan.require_representable(SpecVersion::V0_3_0).unwrap();
}

#[test]
fn an_address_that_is_the_gateways_too_is_found() {
    let gateway = json!({ "isGateway": true });
    let own = |conf: &Value, ips: Value| plan(conf.clone(), json!({ "ips": ips })).own_gateways();
    let twice: IpAddr = "10.5.0.1".parse().unwrap();
    assert_eq!(own(&gateway, json!([{ "address": "10.5.0.1/31" }])), [twice]);
    assert_eq!(own(&gateway, json!([{ "address": "10.5.0.0/31" }])), [twice; 0]);
    // A container may be the gateway of the others, where the bridge is none.
    let switch = json!({});
    assert_eq!(own(&switch, json!([{ "address": "10.5.0.1/24", "gateway": "10.5.0.1" }])), [twice; 0]);
}
