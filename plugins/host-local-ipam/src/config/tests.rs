//! Configurations by value.

use cni_types::Environment;
use serde_json::{Value, json};

use super::*;

fn conf(document: &Value) -> NetConf {
    // DEL is in every version, and reads nothing of its own.
    let document = serde_json::to_vec(document).unwrap();
    NetConf::parse(cni_types::Command::Del, document).unwrap()
}

fn document(ipam: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "net1", "type": "bridge", "ipam": ipam})
}

fn with(mut document: Value, key: &str, value: Value) -> Value {
    document[key] = value;
    document
}

#[track_caller]
fn settings(document: &Value) -> Settings {
    Settings::read(&conf(document)).unwrap()
}

#[track_caller]
fn check_refused(document: &Value, msg: &str) {
    let error = Settings::read(&conf(document)).unwrap_err();
    assert_eq!((error.code(), error.msg()), (ErrorCode::INVALID_CONFIG, msg));
}

fn sets_of(settings: &Settings) -> Vec<String> {
    settings.sets.iter().map(ToString::to_string).collect()
}

fn args(text: &str) -> CniArgs {
    [("CNI_ARGS", text)].into_iter().collect::<Environment>().args().unwrap()
}

#[test]
fn range_sets_come_from_the_runtime_then_from_the_single_range_then_from_the_list() {
    let ipam = json!({
        "type": "host-local", "subnet": "10.1.2.0/24", "rangeStart": "10.1.2.9", "rangeEnd": "10.1.2.20",
        "gateway": "10.1.2.254",
        "ranges": [[{"subnet": "10.2.0.0/24"}, {"subnet": "10.3.0.0/24"}], [{"subnet": "fd00::/64"}]],
    });
    let runtime = json!({"ipRanges": [[{"subnet": "10.0.0.0/24"}]]});
    let settings = settings(&with(document(ipam), "RuntimeConfig", runtime));
    assert_eq!(
        sets_of(&settings),
        [
            "10.0.0.1-10.0.0.254",
            "10.1.2.9-10.1.2.20",
            "10.2.0.1-10.2.0.254,10.3.0.1-10.3.0.254",
            "fd00::1-fd00::ffff:ffff:ffff:ffff",
        ]
    );
}

#[test]
fn keys_match_in_any_case_and_null_or_empty_is_as_if_absent() {
    let ipam = json!({"Ranges": [[{"SUBNET": "10.0.0.0/24", "rangeStart": "", "gateway": null}]], "routes": null,
                      "dataDir": "", "resolvConf": "", "rangeStart": "10.0.0.9", "exclude": null, "allocation": "",
                      "requestableFrom": ""});
    let settings = settings(&document(ipam));
    assert_eq!(sets_of(&settings), ["10.0.0.1-10.0.0.254"]);
    assert_eq!(settings.place, Place::new(Path::new("/var/lib/cni/networks"), "net1"));
    assert_eq!((settings.order, settings.resolv_conf), (Order::RoundRobin, None));
    assert_eq!(settings.requestable_from, RequestableFrom::Range);
}

#[test]
fn a_mistake_is_named_with_its_key_its_value_and_the_references_text() {
    let conf = json!({"cniVersion": "1.0.0", "name": "net1", "type": "x"});
    check_refused(&conf, "ipam: IPAM config missing 'ipam' key");
    for (ipam, msg) in [
        (json!({}), "ipam.ranges: no IP ranges specified"),
        (json!({"ranges": [[]]}), "ipam.ranges[0]: invalid range set 0: empty range set"),
        (
            json!({"ranges": [[{"gateway": "10.0.0.1"}]]}),
            "ipam.ranges[0][0].subnet: invalid range set 0: IP <nil> not v4 nor v6 (there is no subnet)",
        ),
        (json!({"subnet": ""}), "ipam.subnet: invalid CIDR address: "),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0"}]]}),
            "ipam.ranges[0][0].subnet: invalid CIDR address: 10.0.0.0",
        ),
        (
            json!({"subnet": "10.0.0.0/31"}),
            "ipam.subnet: invalid range set 0: Network 10.0.0.0/31 too small to allocate from",
        ),
        (
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}, {"subnet": "10.0.0.0/24", "rangeEnd": "10.0.1.5"}]]}),
            "ipam.ranges[1][1].rangeEnd: invalid range set 1: RangeEnd 10.0.1.5 not in network 10.0.0.0/24",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "gateway": "192.168.0.1"}),
            "ipam.gateway: invalid range set 0: gateway 192.168.0.1 not in network 10.0.0.0/24",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}, {"subnet": "fd00::/64"}]]}),
            "ipam.ranges[0]: invalid range set 0: mixed address families (10.0.0.1-10.0.0.254 and \
             fd00::1-fd00::ffff:ffff:ffff:ffff)",
        ),
        (
            json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "10.0.0.0/25"}]]}),
            "ipam.ranges[1]: range set 0 overlaps with 1 (10.0.0.1-10.0.0.254 and 10.0.0.1-10.0.0.126)",
        ),
        (json!({"ranges": {}}), "ipam.ranges: invalid type: map, expected a sequence, not {}"),
        (
            json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "foo"}]}),
            "ipam.routes[1].dst: invalid CIDR address: foo",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "allocation": "random"}),
            "ipam.allocation: unknown variant `random`, expected `round-robin` or `lowest`",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "exclude": ["10.0.0.1", "x"]}),
            "ipam.exclude[1]: invalid IP address: x",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "exclude": ["10.0.0.5/24"]}),
            "ipam.exclude[0]: Network has host bits set. For a subnet mask of length 24 the network address is \
             10.0.0.0 (given: 10.0.0.5/24)",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "exclude": ["10.0.0.9-10.0.0.1"]}),
            "ipam.exclude[0]: 10.0.0.9-10.0.0.1 ends before it starts",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "exclude": ["10.0.0.9-fd00::9"]}),
            "ipam.exclude[0]: 10.0.0.9-fd00::9 starts in one address family and ends in the other",
        ),
    ] {
        check_refused(&document(ipam), msg);
    }
    let ranges = json!({"ipRanges": [[{"subnet": "10.0.0.1/24"}]]});
    check_refused(
        &with(document(json!({"subnet": "10.0.0.0/24"})), "runtimeConfig", ranges),
        "runtimeConfig.ipRanges[0][0].subnet: invalid range set 0: Network has host bits set. For a subnet mask of \
         length 24 the network address is 10.0.0.0 (given: 10.0.0.1/24)",
    );
}

#[test]
fn old_versions_have_room_for_one_address_a_family() {
    let msg = "ipam.ranges[0]: CNI version 0.2.0 does not support more than 1 address per family";
    for [one, other] in [["10.0.0.0/24", "10.1.0.0/24"], ["fd00::/64", "fd01::/64"]] {
        let two = json!({"ranges": [[{"subnet": one}], [{"subnet": other}]]});
        check_refused(&with(document(two), "cniVersion", json!("0.2.0")), msg);
    }
    let dual = json!({"ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "fd00::/64"}]]});
    assert_eq!(settings(&with(document(dual), "cniVersion", json!("0.2.0"))).sets.len(), 2);
}

#[test]
fn addresses_are_asked_for_in_three_places_and_each_counts_once() {
    let ipam = json!({"subnet": "10.0.0.0/24"});
    let document = with(document(ipam), "args", json!({"cni": {"ips": ["10.0.0.9", "10.0.0.8/16"]}}));
    let document =
        with(document, "runtimeConfig", json!({"ips": ["10.0.0.9/24", "::ffff:10.0.0.7", "fd00::1"]}));
    let wishes = settings(&document).wishes(&args("IP=10.0.0.8;IgnoreUnknown=1;FOO=bar")).unwrap();
    let texts: Vec<String> = wishes.requested.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["10.0.0.8", "10.0.0.9", "10.0.0.7", "fd00::1"]);
    assert_eq!(wishes.sticky_name, None);
}

#[test]
fn an_address_that_is_none_is_named() {
    let ipam = json!({"subnet": "10.0.0.0/24"});
    for (key, value, msg) in [
        ("args", json!({"cni": {"ips": ["10.0.0.9", "foo"]}}), "args.cni.ips[1]: invalid IP address foo"),
        (
            "runtimeConfig",
            json!({"ips": ["10.0.0.9/99"]}),
            "runtimeConfig.ips[0]: invalid IP address 10.0.0.9/99",
        ),
        ("runtimeConfig", json!({"ips": [""]}), "runtimeConfig.ips[0]: invalid IP address "),
    ] {
        check_refused(&with(document(ipam.clone()), key, value), msg);
    }
    let error = settings(&document(ipam)).wishes(&args("IP=foo")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::INVALID_ENVIRONMENT);
    assert_eq!(error.msg(), "CNI_ARGS: ARGS: error parsing value of pair \"IP=foo\": invalid IP address foo");
}

#[test]
fn unknown_args_are_refused_as_by_the_reference() {
    let settings = settings(&document(json!({"subnet": "10.0.0.0/24"})));
    for text in ["ip=10.0.0.7", "K8S_POD_UID=17"] {
        let error = settings.wishes(&args(text)).unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID_ENVIRONMENT);
        assert_eq!(error.msg(), format!("CNI_ARGS: ARGS: unknown args [\"{text}\"]"));
    }
    let chain = "MAC=02:00:00:00:00:01;CONTAINER_NAME=web;ALIASES=a,b;LINKS=db:sql;IP=10.0.0.7";
    assert_eq!(settings.wishes(&args(chain)).unwrap().requested, ["10.0.0.7".parse::<IpAddr>().unwrap()]);
}

#[test]
fn the_name_that_an_address_stays_with_is_the_containers() {
    let sticky = |document: &Value, text: &str| settings(document).wishes(&args(text)).unwrap().sticky_name;
    assert_eq!(sticky(&document(json!({"subnet": "10.0.0.0/24"})), "CONTAINER_NAME=web"), None);
    let plain = document(json!({"subnet": "10.0.0.0/24", "stickyByName": true}));
    assert_eq!(sticky(&plain, ""), None);
    assert_eq!(sticky(&plain, "CONTAINER_NAME=web"), Some(StickyName::new("web")));
    let pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    assert_eq!(sticky(&plain, pod), Some(StickyName::new("shop/web-0")));
    let named = with(plain, "args", json!({"cni": {"containerName": "db"}}));
    assert_eq!(sticky(&named, ""), Some(StickyName::new("db")));
    assert_eq!(sticky(&named, "K8S_POD_NAME=web"), Some(StickyName::new("web")));
}

#[test]
fn spans_are_written_in_three_ways() {
    for (text, span) in [
        ("10.0.0.7", "10.0.0.7-10.0.0.7"),
        ("10.0.0.16/30", "10.0.0.16-10.0.0.19"),
        ("10.0.0.7 - 10.0.0.9", "10.0.0.7-10.0.0.9"),
        ("fd00::/127", "fd00::-fd00::1"),
    ] {
        assert_eq!(parse_span(text).unwrap().to_string(), span);
    }
}

#[test]
fn the_leases_are_found_however_wrong_the_configuration_is() {
    let place = |document: &Value| place_of(&NetworkCall::new(conf(document), Environment::default()));
    let elsewhere = Place::new(Path::new("/x"), "net1");
    assert_eq!(place(&document(json!({"dataDir": "/x", "ranges": 5, "subnet": "no"}))), elsewhere);
    assert_eq!(place(&document(json!({"DATADIR": "/x"}))), elsewhere);
    let default = Place::new(Path::new(DEFAULT_DATA_DIR), "net1");
    for ipam in [json!({}), json!("no"), json!({"dataDir": 5}), Value::Null] {
        assert_eq!(place(&document(ipam)), default);
    }
}
