use proptest::prelude::*;
use serde_json::json;

use super::*;

fn cidr(text: &str) -> IpNetwork {
    ip::parse_cidr(text).unwrap()
}

/// What the bridge plugin answers for a dual-stack container, with every field of a route used once.
fn dual_stack() -> CniResult {
    let interface = |name: &str, mac: &str, sandbox: &str| Interface {
        name: name.into(),
        mac: mac.into(),
        sandbox: sandbox.into(),
        ..Interface::default()
    };
    CniResult {
        interfaces: vec![
            interface("docker0", "02:42:00:00:00:01", ""),
            interface("veth01", "02:42:00:00:00:02", ""),
            interface("eth0", "02:42:00:00:00:03", "/run/netns/c1"),
        ],
        ips: vec![
            IpConfig {
                interface: Some(2),
                address: cidr("172.17.0.2/16"),
                gateway: Some([172, 17, 0, 1].into()),
            },
            IpConfig { interface: Some(2), address: cidr("fd00::2/64"), gateway: None },
        ],
        routes: vec![
            Route { gw: Some([172, 17, 0, 1].into()), ..Route::to(cidr("0.0.0.0/0")) },
            Route {
                mtu: 1400,
                advmss: 1360,
                priority: 7,
                table: Some(0),
                scope: Some(0),
                ..Route::to(cidr("fd01::5/64"))
            },
        ],
        dns: Dns { search: vec!["testnet".into()], nameservers: vec!["172.17.0.1".into()], ..Dns::default() },
    }
}

#[track_caller]
fn check_encoded(result: &CniResult, version: SpecVersion, expected: &str) {
    let encoded = result.encode(version).unwrap();
    assert_eq!(encoded, expected.trim(), "\n{encoded}");
}

#[test]
fn version_0_2_0_has_one_block_a_family_and_only_destinations_and_gateways() {
    check_encoded(
        &dual_stack(),
        SpecVersion::V0_2_0,
        r#"
{
    "cniVersion": "0.2.0",
    "ip4": {
        "ip": "172.17.0.2/16",
        "gateway": "172.17.0.1",
        "routes": [
            {
                "dst": "0.0.0.0/0",
                "gw": "172.17.0.1"
            }
        ]
    },
    "ip6": {
        "ip": "fd00::2/64",
        "routes": [
            {
                "dst": "fd01::5/64"
            }
        ]
    },
    "dns": {
        "nameservers": [
            "172.17.0.1"
        ],
        "search": [
            "testnet"
        ]
    }
}"#,
    );
}

#[test]
fn version_0_4_0_spells_out_the_family_and_always_has_dns() {
    let result = CniResult { dns: Dns::default(), ..dual_stack() };
    check_encoded(
        &result,
        SpecVersion::V0_4_0,
        r#"
{
    "cniVersion": "0.4.0",
    "interfaces": [
        {
            "name": "docker0",
            "mac": "02:42:00:00:00:01"
        },
        {
            "name": "veth01",
            "mac": "02:42:00:00:00:02"
        },
        {
            "name": "eth0",
            "mac": "02:42:00:00:00:03",
            "sandbox": "/run/netns/c1"
        }
    ],
    "ips": [
        {
            "version": "4",
            "interface": 2,
            "address": "172.17.0.2/16",
            "gateway": "172.17.0.1"
        },
        {
            "version": "6",
            "interface": 2,
            "address": "fd00::2/64"
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "172.17.0.1"
        },
        {
            "dst": "fd01::5/64",
            "mtu": 1400,
            "advmss": 1360,
            "priority": 7,
            "table": 0,
            "scope": 0
        }
    ],
    "dns": {}
}"#,
    );
}

#[test]
fn version_1_1_0_sorts_its_keys() {
    check_encoded(
        &dual_stack(),
        SpecVersion::V1_1_0,
        r#"
{
    "cniVersion": "1.1.0",
    "dns": {
        "nameservers": [
            "172.17.0.1"
        ],
        "search": [
            "testnet"
        ]
    },
    "interfaces": [
        {
            "mac": "02:42:00:00:00:01",
            "name": "docker0"
        },
        {
            "mac": "02:42:00:00:00:02",
            "name": "veth01"
        },
        {
            "mac": "02:42:00:00:00:03",
            "name": "eth0",
            "sandbox": "/run/netns/c1"
        }
    ],
    "ips": [
        {
            "address": "172.17.0.2/16",
            "gateway": "172.17.0.1",
            "interface": 2
        },
        {
            "address": "fd00::2/64",
            "interface": 2
        }
    ],
    "routes": [
        {
            "dst": "0.0.0.0/0",
            "gw": "172.17.0.1"
        },
        {
            "advmss": 1360,
            "dst": "fd01::5/64",
            "mtu": 1400,
            "priority": 7,
            "scope": 0,
            "table": 0
        }
    ]
}"#,
    );
}

#[test]
fn an_empty_result_is_just_its_version_and_needs_0_3_0() {
    let empty = CniResult::default();
    check_encoded(&empty, SpecVersion::V1_0_0, "{\n    \"cniVersion\": \"1.0.0\"\n}");
    check_encoded(&empty, SpecVersion::V0_3_0, "{\n    \"cniVersion\": \"0.3.0\",\n    \"dns\": {}\n}");
    let error = empty.encode(SpecVersion::V0_1_0).unwrap_err();
    assert_eq!(error.msg(), "cannot convert: no valid IP addresses");
}

#[test]
fn a_document_without_version_is_of_the_assumed_one() {
    let document = json!({"ip4": {"IP": "10.0.0.2/24", "gateway": ""}});
    let result = CniResult::decode(&document, SpecVersion::V0_2_0).unwrap();
    assert_eq!(result.ips, [IpConfig { interface: None, address: cidr("10.0.0.2/24"), gateway: None }]);
    assert_eq!(CniResult::decode(&Value::Null, SpecVersion::V1_0_0).unwrap(), CniResult::default());
}

#[test]
fn an_index_of_minus_one_is_that_of_no_interface() {
    for (index, wanted) in [(json!(-1), None), (json!(0), Some(0)), (json!(null), None)] {
        let document = json!({"ips": [{"version": "4", "address": "10.0.0.2/24", "interface": index}]});
        let result = CniResult::decode(&document, SpecVersion::V0_3_1).unwrap();
        assert_eq!(result.ips[0].interface, wanted);
    }
}

#[test]
fn an_interface_may_be_without_a_name() {
    for version in [SpecVersion::V0_4_0, SpecVersion::V1_1_0] {
        let result =
            CniResult::decode(&json!({"interfaces": [{"mac": "02:00:00:00:00:01"}]}), version).unwrap();
        assert_eq!(
            (result.interfaces[0].name.as_str(), result.interfaces[0].mac.as_str()),
            ("", "02:00:00:00:00:01")
        );
    }
}

#[test]
fn what_does_not_fit_is_named() {
    for (document, message) in [
        (json!({"cniVersion": "9.9.9"}), "cniVersion: unknown CNI version \"9.9.9\""),
        (json!({"ips": [{"address": "10.0.0.2"}]}), "ips[0].address: invalid CIDR address: 10.0.0.2"),
        (json!({"ips": [{}]}), "ips[0]: missing field `address`"),
        (
            json!({"ips": [{"address": "10.0.0.2/8", "interface": -1}]}),
            "ips[0].interface: invalid value: integer `-1`, expected a whole number from 0",
        ),
        (json!([]), ".: invalid type: sequence, expected an object, not []"),
    ] {
        let error = CniResult::decode(&document, SpecVersion::V1_0_0).unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

/// Any text, control characters and line separators included.
const TEXT: &str = "(?s).{0,8}";

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(TEXT, 0..3)
}

prop_compose! {
    fn any_network()(address: IpAddr, prefix in 0..=32u8) -> IpNetwork {
        IpNetwork::new(address, prefix).unwrap()
    }
}

/// An address or none; no mapped one, which is read as the one of IPv4 that it is.
fn any_address() -> impl Strategy<Value = Option<IpAddr>> {
    any::<Option<IpAddr>>().prop_map(|address| address.map(|address| address.to_canonical()))
}

prop_compose! {
    fn any_route()(
        dst in any_network(), gw in any_address(), mtu: u32, advmss: u32, priority: u32, table: Option<u32>, scope: Option<u8>
    ) -> Route {
        Route { dst, gw, mtu, advmss, priority, table, scope }
    }
}

prop_compose! {
    fn any_interface()(name in TEXT, mac in TEXT, mtu: u32, sandbox in TEXT, socket_path in TEXT, pci_id in TEXT) -> Interface {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id }
    }
}

prop_compose! {
    fn any_ip()(interface: Option<u16>, address in any_network(), gateway in any_address()) -> IpConfig {
        IpConfig { interface: interface.map(usize::from), address, gateway }
    }
}

prop_compose! {
    fn any_dns()(nameservers in texts(), domain in TEXT, search in texts(), options in texts()) -> Dns {
        Dns { nameservers, domain, search, options }
    }
}

prop_compose! {
    fn any_result()(
        interfaces in prop::collection::vec(any_interface(), 0..4),
        ips in prop::collection::vec(any_ip(), 0..4),
        routes in prop::collection::vec(any_route(), 0..4),
        dns in any_dns(),
    ) -> CniResult {
        CniResult { interfaces, ips, routes, dns }
    }
}

fn through(result: &CniResult, version: SpecVersion) -> CniResult {
    let document = serde_json::from_str(&result.encode(version).unwrap()).unwrap();
    CniResult::decode(&document, SpecVersion::LATEST).unwrap()
}

/// The part of `result` that 0.3.x and 0.4.0 have words for.
fn of_0_4(result: CniResult) -> CniResult {
    let interfaces = result.interfaces.into_iter();
    CniResult {
        interfaces: interfaces
            .map(|Interface { name, mac, sandbox, .. }| Interface {
                name,
                mac,
                sandbox,
                ..Interface::default()
            })
            .collect(),
        ..result
    }
}

/// The part of `result` that 0.1.0 and 0.2.0 have words for.
fn of_0_2(result: CniResult) -> CniResult {
    let (mut ips, mut routes) = (Vec::new(), Vec::new());
    for family in [IpNetwork::is_ipv4, IpNetwork::is_ipv6] {
        let Some(first) = result.ips.iter().find(|ip| family(&ip.address)) else { continue };
        ips.push(IpConfig { interface: None, ..first.clone() });
        let hops = result.routes.iter().filter(|route| family(&route.dst));
        routes.extend(hops.map(|route| Route { gw: route.gw, ..Route::to(route.dst) }));
    }
    CniResult { interfaces: Vec::new(), ips, routes, dns: result.dns }
}

proptest! {
    #[test]
    fn a_result_survives_every_version_that_can_hold_it(result in any_result()) {
        prop_assert_eq!(&through(&result, SpecVersion::V1_0_0), &result);
        prop_assert_eq!(&through(&result, SpecVersion::V1_1_0), &result);
        let narrower = of_0_4(result.clone());
        for version in [SpecVersion::V0_3_0, SpecVersion::V0_3_1, SpecVersion::V0_4_0] {
            prop_assert_eq!(&through(&result, version), &narrower);
        }
        if result.require_representable(SpecVersion::V0_2_0).is_ok() {
            let narrowest = of_0_2(result.clone());
            for version in [SpecVersion::V0_1_0, SpecVersion::V0_2_0] {
                prop_assert_eq!(&through(&result, version), &narrowest);
                // And from there through any other version and back.
                for other in SpecVersion::ALL {
                    prop_assert_eq!(&through(&through(&narrowest, other), version), &narrowest);
                }
            }
        }
    }

    #[test]
    fn the_version_stands_in_front_and_the_document_has_no_newline_at_its_end(result in any_result()) {
        for version in [SpecVersion::V0_3_0, SpecVersion::V1_1_0] {
            let text = result.encode(version).unwrap();
            let head = format!("{{\n    \"cniVersion\": \"{version}\"");
            prop_assert!(text.starts_with(&head), "{}", text);
            prop_assert!(text.ends_with(&['\n', '}'][..]), "{}", text);
        }
    }
}
