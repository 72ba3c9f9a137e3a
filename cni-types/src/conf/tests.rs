use serde_json::json;

use super::*;

fn parse(command: Command, document: &Value) -> Result<NetConf, Error> {
    NetConf::parse(command, serde_json::to_vec(document).unwrap())
}

#[track_caller]
fn check_error(command: Command, document: &Value, code: ErrorCode, text: &str) {
    let error = parse(command, document).unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (code, text));
}

#[test]
fn what_is_no_object_cannot_be_decoded() {
    for bytes in ["", "[]", "5", "{", r#"{"name":"n"} x"#, "\"name\""] {
        let error = NetConf::parse(Command::Add, bytes.as_bytes().to_vec()).unwrap_err();
        assert_eq!(error.code(), ErrorCode::DECODING_FAILURE, "{bytes}");
        assert!(error.msg().starts_with("error unmarshall network config: "), "{error}");
    }
}

#[test]
fn a_network_needs_a_well_formed_name() {
    let code = ErrorCode::INVALID_CONFIG;
    check_error(Command::Add, &Value::Null, code, "missing network name");
    check_error(Command::Del, &json!({"cniVersion": "1.0.0", "name": ""}), code, "missing network name");
    check_error(Command::Add, &json!({"name": "a/b"}), code, "invalid characters found in network name; a/b");
    check_error(
        Command::Add,
        &json!({"name": 5}),
        code,
        "name: invalid type: integer `5`, expected a string",
    );
}

/// The reference's texts for these begin otherwise, and say the same.
#[test]
fn a_key_of_the_protocol_has_its_type_where_nobody_reads_it_either() {
    for (key, value, text) in [
        ("type", json!(5), "type: invalid type: integer `5`, expected a string"),
        (
            "capabilities",
            json!({"ips": "yes"}),
            "capabilities.ips: invalid type: string \"yes\", expected a boolean",
        ),
        ("capabilities", json!([]), "capabilities: invalid type: sequence, expected an object, not []"),
        ("PrevResult", json!("x"), "prevResult: invalid type: string \"x\", expected an object"),
    ] {
        let conf = json!({"name": "n", "cniVersion": "1.1.0", key: value});
        check_error(Command::Add, &conf, ErrorCode::INVALID_CONFIG, text);
        check_error(Command::Status, &conf, ErrorCode::INVALID_CONFIG, text);
        parse(Command::Del, &conf).unwrap();
        parse(Command::Gc, &conf).unwrap();
    }
    let unset = json!({"name": "n", "type": null, "capabilities": null, "prevResult": null});
    parse(Command::Add, &unset).unwrap();
}

#[test]
fn the_version_must_be_one_of_ours_to_the_letter() {
    let spoken = r#"plugin supports ["0.1.0" "0.2.0" "0.3.0" "0.3.1" "0.4.0" "1.0.0" "1.1.0"]"#;
    let code = ErrorCode::INCOMPATIBLE_VERSION;
    for version in ["9.9.9", "1.1", "1.0", "x"] {
        let text = format!("incompatible CNI versions; config is \"{version}\", {spoken}");
        check_error(Command::Add, &json!({"name": "n", "cniVersion": version}), code, &text);
    }
    assert_eq!(parse(Command::Add, &json!({"name": "n"})).unwrap().version(), SpecVersion::V0_1_0);
    assert_eq!(
        parse(Command::Add, &json!({"NAME": "n", "cniversion": "1.1.0"})).unwrap().version(),
        SpecVersion::V1_1_0
    );
}

#[test]
fn a_verb_needs_the_version_that_has_it() {
    let code = ErrorCode::INCOMPATIBLE_VERSION;
    let conf = |version: &str| json!({"name": "n", "cniVersion": version});
    check_error(Command::Check, &conf("0.3.1"), code, "config version does not allow CHECK");
    check_error(Command::Gc, &conf("1.0.0"), code, "config version does not allow GC");
    check_error(Command::Status, &conf(""), code, "config version does not allow STATUS");
    check_error(Command::Check, &conf("2.0.0"), code, "plugin version does not allow CHECK");
    let error = parse(Command::Gc, &conf("x")).unwrap_err();
    assert_eq!(error.code(), ErrorCode::DECODING_FAILURE);
    parse(Command::Check, &conf("0.4.0")).unwrap();
    parse(Command::Gc, &conf("1.1.0")).unwrap();
}

#[test]
fn the_previous_result_is_read_only_when_asked_for_and_its_faults_are_named() {
    let conf = json!({"name": "n", "cniVersion": "1.0.0", "prevResult": {"ips": [{"address": "x"}]}});
    let error = parse(Command::Del, &conf).unwrap().prev_result().unwrap_err();
    assert_eq!(error.to_string(), "prevResult.ips[0].address: invalid CIDR address: x");
    assert_eq!(error.code(), ErrorCode::INVALID_CONFIG);
    let conf = json!({"name": "n", "cniVersion": "1.0.0", "prevResult": "x"});
    let error = parse(Command::Del, &conf).unwrap().prev_result().unwrap_err();
    assert_eq!(error.to_string(), "prevResult: invalid type: string \"x\", expected an object");

    let conf = json!({"name": "n", "cniVersion": "0.2.0", "prevResult": {"ip4": {"ip": "10.0.0.2/8"}}});
    let result = parse(Command::Add, &conf).unwrap().prev_result().unwrap().unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.0.0.2/8");
    assert_eq!(
        parse(Command::Add, &json!({"name": "n", "prevResult": null})).unwrap().prev_result(),
        Ok(None)
    );
}

#[test]
fn valid_attachments_come_under_either_key_and_absent_is_not_empty() {
    let entries = json!([{"containerID": "c1", "ifname": "eth0"}]);
    let with = |key: &str, value: &Value| {
        let conf = json!({"name": "n", "cniVersion": "1.1.0", key: value});
        parse(Command::Gc, &conf).unwrap().valid_attachments()
    };
    let expected = Ok(Some(vec![Attachment::new("c1", "eth0").unwrap()]));
    assert_eq!(with("cni.dev/valid-attachments", &entries), expected);
    assert_eq!(with("cni.dev/attachments", &entries), expected);
    assert_eq!(with("cni.dev/valid-attachments", &json!([])), Ok(Some(Vec::new())));
    assert_eq!(with("other", &json!([])), Ok(None));
    for (key, value, text) in [
        (
            "cni.dev/attachments",
            json!([{"containerID": "a b", "ifname": "eth0"}]),
            "cni.dev/attachments[0]: invalid characters in containerID; a b",
        ),
        (
            "cni.dev/valid-attachments",
            json!([{"containerID": "c1"}]),
            "cni.dev/valid-attachments[0]: missing field `ifname`",
        ),
        (
            "cni.dev/valid-attachments",
            json!("c1"),
            "cni.dev/valid-attachments: invalid type: string \"c1\", expected a sequence",
        ),
    ] {
        assert_eq!(with(key, &value).unwrap_err().to_string(), text);
    }
}

#[test]
fn what_only_gc_reads_keeps_no_other_verb_from_its_work() {
    let conf = json!({"name": "n", "cniVersion": "1.1.0", "cni.dev/attachments": "c1"});
    for command in [Command::Add, Command::Del, Command::Check, Command::Status] {
        parse(command, &conf).unwrap();
    }
}

#[test]
fn only_a_plugins_own_unknown_keys_are_reported() {
    for key in [
        "capabilities.x",
        "args.cni.ips",
        "runtimeConfig.dns",
        "prevResult.ips",
        "ipam",
        "ipam.x",
        "cni.dev/attachments",
        "CNIVERSION",
    ] {
        assert!(!OwnKeys::Top.covers(key), "{key}");
    }
    for key in ["bridgeName", "vlanTrunk[0].x", "dns.x"] {
        assert!(OwnKeys::Top.covers(key), "{key}");
        assert!(!OwnKeys::Ipam.covers(key), "{key}");
    }
    assert!(OwnKeys::Ipam.covers("ipam.subnett"));
    assert!(!OwnKeys::Ipam.covers("ipam"));
}

#[test]
fn the_log_keys_are_read_in_any_case_and_a_mistake_is_named() {
    let keys = |document: Value| parse(Command::Add, &document).unwrap().log_keys();
    assert!(keys(json!({"name": "n", "logLevel": null, "logFile": ""})).unwrap().are_absent());
    let found = keys(json!({"name": "n", "LOGLEVEL": "Debug", "logfile": "/var/log/cni.log"})).unwrap();
    assert_eq!(found.level, Some(log::LevelFilter::Debug));
    assert_eq!(found.file.unwrap().as_os_str(), "/var/log/cni.log");
    for (document, text) in [
        (
            json!({"name": "n", "logLevel": "verbose"}),
            "logLevel: \"verbose\" is none of off, error, warn, info, debug, trace",
        ),
        (json!({"name": "n", "logLevel": 3}), "logLevel: expected a string, got 3"),
        (json!({"name": "n", "logFile": ["/x"]}), "logFile: expected a string, got [\"/x\"]"),
    ] {
        let error = keys(document).unwrap_err();
        assert_eq!((error.code(), error.msg()), (ErrorCode::INVALID_CONFIG, text));
    }
}
