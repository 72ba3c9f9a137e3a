//! Configurations by value: what is accepted as what, and what is refused in which words.

use std::path::PathBuf;

use cni_types::Command;
use serde_json::{Value, json};

use super::*;

/// Settings for the keys in `conf`, of a network whose IPAM plugin is there.
pub(crate) fn settings(conf: Value) -> Result<Settings, Error> {
    settings_with_args(conf, "")
}

fn settings_with_args(mut conf: Value, args: &str) -> Result<Settings, Error> {
    let document = conf.as_object_mut().unwrap();
    for (key, value) in [("cniVersion", "1.0.0"), ("name", "net"), ("type", "bridge")] {
        document.entry(key).or_insert_with(|| value.into());
    }
    document.entry("ipam").or_insert_with(|| json!({"type": "sh"}));
    let conf = NetConf::parse(Command::Add, serde_json::to_vec(&conf).unwrap())?;
    let path = [PathBuf::from("/bin")];
    Settings::new(&conf, &CniArgs::parse(args)?, |name| Delegate::find(name, &path))
}

#[track_caller]
fn check_refused(conf: Value, msg: &str) {
    let error = settings(conf).unwrap_err();
    assert_eq!((error.msg(), error.code()), (msg, ErrorCode::INVALID_CONFIG));
}

#[test]
fn an_empty_configuration_is_a_switch_called_cni0() {
    let settings = settings(json!({"ipam": {}})).unwrap();
    assert_eq!((settings.network.as_str(), settings.bridge()), ("net", "cni0"));
    assert_eq!(settings.gateway, GatewayRole::None);
    assert_eq!(settings.port, Conduct::NEW);
    assert_eq!((settings.mtu, settings.vlans, settings.mac, settings.dns), (None, None, None, None));
    assert_eq!((settings.masquerade, settings.ingress), (None, IngressPolicy::Open));
    assert!(settings.ipam.is_none() && !settings.promiscuous && !settings.mac_spoof_check);
}

#[test]
fn keys_count_in_any_case_and_null_keeps_the_default() {
    let settings = settings(json!({"BRIDGE": "br7", "ISGATEWAY": true, "mtu": null})).unwrap();
    assert_eq!((settings.bridge(), settings.is_gateway(), settings.mtu), ("br7", true, None));
}

#[test]
fn a_default_gateway_is_a_gateway() {
    let settings = settings(json!({"isDefaultGateway": true, "forceAddress": true})).unwrap();
    let conflict = AddressConflict::Replace;
    assert_eq!(settings.gateway, GatewayRole::Gateway { default_route: true, conflict });
}

#[test]
fn masquerade_is_for_networks_with_addresses_and_written_by_nftables_unless_told_otherwise() {
    let backend = |conf| settings(conf).unwrap().masquerade;
    assert_eq!(backend(json!({"ipMasq": true})), Some(MasqueradeBackend::Nftables));
    assert_eq!(backend(json!({"ipMasq": true, "ipMasqBackend": ""})), Some(MasqueradeBackend::Nftables));
    assert_eq!(
        backend(json!({"ipMasq": true, "ipMasqBackend": "iptables"})),
        Some(MasqueradeBackend::Iptables)
    );
    assert_eq!(backend(json!({"ipMasq": true, "ipam": {}})), None);
    assert_eq!(backend(json!({"ipMasqBackend": "iptables"})), None);
    assert_eq!(backend(json!({"ipMasqBackend": "x"})), None);
    assert_eq!(backend(json!({"ipMasq": true, "ipam": {}, "ipMasqBackend": "x"})), None);
    check_refused(
        json!({"ipMasq": true, "ipMasqBackend": "x"}),
        "ipMasqBackend: unknown ipmasq backend \"x\"",
    );
}

#[test]
fn an_isolated_network_isolates_its_ports() {
    let isolated = settings(json!({"ingressPolicy": "isolated"})).unwrap();
    assert!(isolated.port.isolated && isolated.ingress == IngressPolicy::Isolated);
    assert!(!settings(json!({"ingressPolicy": "same-bridge"})).unwrap().port.isolated);
    check_refused(json!({"ingressPolicy": "x"}), "ingressPolicy: unknown ingress policy: \"x\"");
}

#[test]
fn what_excludes_each_other_is_refused() {
    check_refused(
        json!({"hairpinMode": true, "promiscMode": true}),
        "hairpinMode: cannot set hairpin mode and promiscuous mode at the same time",
    );
    check_refused(
        json!({"disableContainerInterface": true}),
        "disableContainerInterface: cannot use IPAM when DisableContainerInterface flag is set",
    );
}

#[test]
fn the_bridge_has_a_name_that_a_link_can_have() {
    check_refused(json!({"bridge": ""}), "bridge: could not add \"\": the name cannot be empty");
    check_refused(
        json!({"bridge": "0123456789abcdef"}),
        "bridge: could not add \"0123456789abcdef\": the name has more than 15 bytes",
    );
    for name in [".", "..", "a/b", "a b", "a:b", "a\0b"] {
        check_refused(
            json!({"bridge": name}),
            &format!("bridge: could not add \"{name}\": not the name of an interface"),
        );
    }
}

#[test]
fn a_wrong_value_is_named_by_its_key() {
    check_refused(
        json!({"mtu": "1500"}),
        "mtu: invalid type: string \"1500\", expected a whole number from 0 to 4294967295",
    );
    check_refused(json!({"mtu": 67}), "mtu: 67 is not between 68 and 65535");
    check_refused(
        json!({"isGateway": "true"}),
        "isGateway: invalid type: string \"true\", expected a boolean",
    );
    check_refused(json!({"earlyReturn": 1}), "earlyReturn: invalid type: integer `1`, expected a boolean");
    check_refused(
        json!({"ipam": {"type": "none such"}}),
        "ipam.type: failed to find plugin \"none such\" in path [/bin]",
    );
}

#[test]
fn the_runtimes_mac_counts_before_the_arguments_in_the_document_and_those_before_the_environments() {
    let mac = |conf, args| settings_with_args(conf, args).unwrap().mac.map(|mac| mac.to_string());
    let (env, args, runtime) = ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03");
    let in_env = format!("MAC={env};IgnoreUnknown=1;K8S_POD_NAME=p");
    assert_eq!(mac(json!({}), &in_env).as_deref(), Some(env));
    assert_eq!(mac(json!({"args": {"cni": {"mac": args}}}), &in_env).as_deref(), Some(args));
    let both = json!({"args": {"cni": {"mac": args}}, "RuntimeConfig": {"mac": runtime}});
    assert_eq!(mac(both, &in_env).as_deref(), Some(runtime));
    assert_eq!(mac(json!({}), "IP=10.0.0.2"), None);
}

#[test]
fn a_wrong_mac_is_named_by_where_it_stands() {
    check_refused(
        json!({"runtimeConfig": {"mac": "zz"}}),
        "runtimeConfig.mac: address zz: invalid MAC address",
    );
    check_refused(json!({"args": {"cni": {"mac": "zz"}}}), "args.cni.mac: address zz: invalid MAC address");
    let error = settings_with_args(json!({}), "MAC=zz").unwrap_err();
    assert_eq!(error.msg(), "CNI_ARGS: MAC: address zz: invalid MAC address");
    assert_eq!(error.code(), ErrorCode::INVALID_ENVIRONMENT);
}

#[test]
fn vlans_are_ranges_and_single_ids_sorted_and_each_once() {
    let vlans = |conf| settings(conf).unwrap().vlans;
    assert_eq!(vlans(json!({"vlan": 0})), None);
    assert_eq!(
        vlans(json!({"vlan": 100, "preserveDefaultVlan": true})),
        Some(Vlans { untagged: Some(100), trunk: Vec::new(), keep_default: true })
    );
    assert_eq!(
        vlans(json!({"vlanTrunk": [{"id": 101}, {"minID": 99, "maxID": 101, "id": 7}]})),
        Some(Vlans { untagged: None, trunk: vec![7, 99, 100, 101], keep_default: false })
    );
    assert_eq!(
        vlans(json!({"vlanTrunk": []})),
        Some(Vlans { untagged: None, trunk: Vec::new(), keep_default: false })
    );
}

#[test]
fn a_vlan_that_is_none_is_refused_in_the_references_words() {
    for id in [-100, 4095, 5000] {
        check_refused(
            json!({"vlan": id}),
            &format!("vlan: invalid VLAN ID {id} (must be between 0 and 4094)"),
        );
    }
    let both = "minID and maxID should be configured simultaneously";
    for (entry, reason) in [
        (json!({"minID": 0, "maxID": 5}), "incorrect trunk minID parameter".to_owned()),
        (json!({"minID": 1, "maxID": 4095}), "incorrect trunk maxID parameter".to_owned()),
        (json!({"minID": 9, "maxID": 5}), "minID is greater than maxID in trunk parameter".to_owned()),
        (json!({"minID": 9}), format!("{both}, maxID is missing")),
        (json!({"maxID": 9}), format!("{both}, minID is missing")),
        (json!({"id": 0}), "incorrect trunk id parameter".to_owned()),
        (json!({"id": 4095}), "incorrect trunk id parameter".to_owned()),
    ] {
        check_refused(json!({"vlanTrunk": [{"id": 5}, entry]}), &format!("vlanTrunk[1]: {reason}"));
    }
}

#[test]
fn a_gateway_on_a_vlan_has_a_link_of_its_own() {
    let settings = settings(json!({"bridge": "br0", "vlan": 100, "isGateway": true})).unwrap();
    assert_eq!(settings.gateway_link(), "br0.100");
    check_refused(
        json!({"bridge": "bridge-of-mine", "vlan": 100, "isGateway": true}),
        "vlan: the gateway interface \"bridge-of-mine.100\" would have a name of more than 15 bytes",
    );
    let switch = json!({"bridge": "bridge-of-mine", "vlan": 100, "isGateway": true, "ipam": {}});
    assert_eq!(self::settings(switch).unwrap().gateway_link(), "bridge-of-mine");
}

#[test]
fn what_remains_readable_of_a_broken_configuration_is_read() {
    let conf =
        |document: Value| NetConf::parse(Command::Del, serde_json::to_vec(&document).unwrap()).unwrap();
    let broken =
        conf(json!({"name": "n", "bridge": "br1", "mtu": "x", "ipam": {"type": "host-local", "subnet": 5}}));
    assert_eq!(ipam_type(&broken).unwrap().as_deref(), Some("host-local"));
    assert_eq!(bridge_of(&broken).as_deref(), Some("br1"));
    let worse = conf(json!({"name": "n", "bridge": 5, "ipam": 7}));
    assert_eq!(bridge_of(&worse), None);
    let error = ipam_type(&worse).unwrap_err();
    assert_eq!(
        (error.code(), error.msg()),
        (ErrorCode::INVALID_CONFIG, "ipam: invalid type: integer `7`, expected an object")
    );
    assert_eq!(ipam_type(&conf(json!({"name": "n"}))).unwrap(), None);
    assert!(returns_early(&conf(json!({"name": "n", "mtu": "x", "earlyReturn": true}))));
    assert!(!returns_early(&conf(json!({"name": "n", "earlyReturn": "x"}))));
}
