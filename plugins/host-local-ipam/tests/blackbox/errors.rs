//! Bad input: our message carries the key's path, the reference's text and the value given, and nothing is left behind.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::ioctl_fionread;
use serde_json::{Value, json};

use crate::calls::{Network, ours, reference};

/// Our code and the start of our message for `ipam` keys that the reference refuses too, in the same words.
#[track_caller]
fn check(keys: Value, code: u64, key: &str) {
    let mine = Network::with(keys.clone());
    let (our_code, our_msg) = mine.call(ours(), "ADD", "c1").error();
    let (_, their_msg) = Network::with(keys.clone()).call(&reference(), "ADD", "c1").error();
    assert_eq!(our_code, code, "{keys}: {our_msg}");
    let (start, value) = our_msg.split_once(" (").unwrap_or((&our_msg, ""));
    assert_eq!(start, format!("{key}{their_msg}"), "{keys}");
    assert!(value.is_empty() || value.ends_with(')'), "{keys}: {our_msg}");
    assert!(!mine.data_dir().exists(), "{keys} left something behind");
}

#[test]
fn a_wrong_range_is_refused_in_the_references_words() {
    check(json!({}), 7, "ipam.ranges: ");
    check(json!({"subnet": ""}), 7, "ipam.subnet: ");
    for subnet in ["10.0.0.0/31", "10.0.0.5/24", "::ffff:10.0.0.0/120", "fd00::1/64", "10.0.0.0", "foo/24"] {
        check(json!({"subnet": subnet}), 7, "ipam.subnet: ");
        check(json!({"ranges": [[{"subnet": subnet}]]}), 7, "ipam.ranges[0][0].subnet: ");
        let (_, msg) = Network::new(subnet).ask("ADD", "c1").error();
        assert!(msg.contains(subnet), "{msg} does not name {subnet}");
    }
    let net = "10.0.0.0/24";
    check(json!({"subnet": net, "rangeStart": "10.0.1.1"}), 7, "ipam.rangeStart: ");
    check(json!({"subnet": net, "rangeStart": "10.0.0.9", "rangeEnd": "10.0.0.5"}), 7, "ipam.rangeStart: ");
    check(json!({"subnet": net, "rangeEnd": "10.0.1.5"}), 7, "ipam.rangeEnd: ");
    check(json!({"ranges": [[]]}), 7, "ipam.ranges[0]: ");
    check(json!({"ranges": [[{"gateway": "10.0.0.1"}]]}), 7, "ipam.ranges[0][0].subnet: ");
    check(json!({"ranges": [[{"subnet": net}, {"subnet": "fd00::/64"}]]}), 7, "ipam.ranges[0]: ");
    check(json!({"ranges": [[{"subnet": net}, {"subnet": "10.0.0.0/25"}]]}), 7, "ipam.ranges[0]: ");
    check(json!({"ranges": [[{"subnet": net}], [{"subnet": "10.0.0.128/25"}]]}), 7, "ipam.ranges[1]: ");
    check(json!({"subnet": net, "ranges": [[{"subnet": "10.0.0.128/25"}]]}), 7, "ipam.ranges[0]: ");
    check(json!({"subnet": net, "routes": [{"dst": "foo"}]}), 7, "ipam.routes[0].dst: ");
}

#[test]
fn what_cannot_be_had_is_refused_in_the_references_words() {
    for (address, code) in [("10.8.0.1", 7), ("10.8.1.9", 7), ("10.8.0.2", 11), ("10.8.0.255", 7)] {
        let mut messages = Vec::new();
        for program in [ours().to_owned(), reference()] {
            let network = Network::new("10.8.0.0/24");
            network.call(&program, "ADD", "holder").ok();
            let answer = network.add_with_args_of(&program, "c1", &format!("IP={address}"));
            if program == ours() && address != "10.8.0.255" {
                assert_eq!(answer.error().0, code, "{address}");
            }
            messages.push(answer.error().1);
            assert_eq!(network.leases().len(), 1);
        }
        assert_eq!(messages[0], messages[1], "{address}");
    }
}

#[test]
fn the_holder_of_a_requested_address_is_named() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "holder").ok();
    let answer = network.add_with_args("c1", "IP=10.8.0.2");
    assert_eq!(answer.document()["details"], "10.8.0.2 is leased to holder (eth0)");
}

#[test]
fn a_wrong_type_is_named_with_its_key() {
    for (keys, msg) in [
        (json!({"subnet": 5}), "ipam.subnet: "),
        (json!({"ranges": "10.0.0.0/24"}), "ipam.ranges: "),
        (json!({"subnet": "10.0.0.0/24", "stickyByName": "yes"}), "ipam.stickyByName: "),
        (
            json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "10.0.0.0/8", "mtu": "1500"}]}),
            "ipam.routes[0].mtu: ",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "routes": [{"dst": "10.0.0.0/8", "scope": 300}]}),
            "ipam.routes[0].scope: invalid value: integer `300`, expected a whole number from 0 to 255",
        ),
        (
            json!({"subnet": "10.0.0.0/24", "gateway": "10.0.1.1"}),
            "ipam.gateway: invalid range set 0: gateway 10.0.1.1 not in network 10.0.0.0/24",
        ),
    ] {
        let network = Network::with(keys);
        let (code, text) = network.ask("ADD", "c1").error();
        assert!(code == 7 && text.starts_with(msg), "{code} {text}");
        assert!(!network.data_dir().exists());
    }
}

#[test]
fn an_unreadable_resolv_conf_is_an_input_error_before_anything_is_leased() {
    let network = Network::with(json!({"subnet": "10.8.0.0/24", "resolvConf": "/there/is/none"}));
    let (code, msg) = network.ask("ADD", "c1").error();
    assert!(code == 5 && msg.starts_with("ipam.resolvConf: open /there/is/none: "), "{code} {msg}");
    assert!(!network.data_dir().exists());

    // Neither ends for one that reads on.
    for device in ["/dev/zero", "/dev/tty"] {
        let network = Network::with(json!({"subnet": "10.8.0.0/24", "resolvConf": device}));
        let (code, msg) = network.ask("ADD", "c1").error();
        assert!(code == 5 && msg.starts_with(&format!("ipam.resolvConf: open {device}: ")), "{code} {msg}");
        assert!(!network.data_dir().exists());
    }
}

#[test]
fn what_add_would_refuse_does_not_keep_del_from_releasing() {
    let network = Network::new("10.8.0.0/24");
    for conf in [
        json!({"ranges": [[{"subnet": "10.8.0.1/24"}]]}),
        json!({"ranges": 7}),
        json!({"subnet": "10.8.0.0/24", "resolvConf": "/there/is/none", "routes": [{}]}),
        json!({}),
    ] {
        network.ask("ADD", "c1").ok();
        let mut broken = network.conf_with("ipam", conf);
        broken["ipam"]["dataDir"] = network.conf["ipam"]["dataDir"].clone();
        network.ask_with(&broken, "DEL", "c1").ok();
        assert!(network.leases().is_empty(), "{broken}");
        network.ask_with(&broken, "DEL", "c1").ok();
    }
}

#[test]
fn a_data_directory_that_is_none_is_an_io_error_for_add_and_no_error_for_del() {
    let mut network = Network::new("10.8.0.0/24");
    network.conf["ipam"]["dataDir"] = json!("/dev/null");
    let (code, msg) = network.ask("ADD", "c1").error();
    assert!(code == 5 && msg.contains("/dev/null/net1"), "{code} {msg}");
    network.ask("DEL", "c1").ok();
    assert_eq!(network.ask("STATUS", "").error().0, 50);
}

#[test]
fn a_network_whose_name_no_directory_can_have_is_an_io_error_for_add_and_no_error_for_del() {
    let mut network = Network::new("10.8.0.0/24");
    network.conf["name"] = json!("n".repeat(256));
    let (code, msg) = network.ask("ADD", "c1").error();
    assert!(code == 5 && msg.contains("Filename too long"), "{code} {msg}");
    network.ask("DEL", "c1").ok();
    network.ask("GC", "").ok();
    let (code, msg) = network.ask("STATUS", "").error();
    assert!(code == 50 && msg.contains("Filename too long"), "{code} {msg}");
}

#[test]
fn check_refuses_the_arguments_that_add_refuses() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    for args in ["a", "X=1", "IP=x", "IgnoreUnknown=maybe"] {
        for program in [ours().to_owned(), reference()] {
            let output = network.command(&program, "CHECK", "c1").env("CNI_ARGS", args).output().unwrap();
            assert!(!output.status.success(), "{program:?} {args}");
        }
        let output = network.command(ours(), "CHECK", "c1").env("CNI_ARGS", args).output().unwrap();
        let error: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(error["code"], 4, "{error}");
    }
    let output = network.command(ours(), "CHECK", "c1").env("CNI_ARGS", "IP=10.8.0.2").output().unwrap();
    assert!(output.status.success());
}

#[test]
fn a_hundred_thousand_unknown_keys_take_no_seconds_of_the_processor() {
    let mut network = Network::new("10.8.0.0/24");
    for number in 0..100_000 {
        network.conf["ipam"][format!("key{number}")] = json!(number);
    }
    assert_eq!(network.add_within(5, "c1").address(), "10.8.0.2");
}

/// The configuration comes piece by piece, and the answer is longer than a pipe holds.
#[test]
fn pipes_that_do_not_block_are_waited_for() {
    let routes: Vec<Value> =
        (0..3000).map(|n| json!({"dst": format!("10.{}.{}.0/24", n / 250, n % 250)})).collect();
    let network = Network::with(json!({"subnet": "10.8.0.0/24", "routes": routes}));
    let (stdin, mut to_stdin) = std::io::pipe().unwrap();
    let (mut from_stdout, stdout) = std::io::pipe().unwrap();
    for end in [stdin.as_fd(), stdout.as_fd()] {
        fcntl_setfl(end, OFlags::NONBLOCK).unwrap();
    }
    let mut command = network.command(ours(), "ADD", "c1");
    let mut child = command.stdin(stdin.try_clone().unwrap()).stdout(stdout).spawn().unwrap();
    drop(command);
    'pieces: for piece in network.conf.to_string().as_bytes().chunks(10_000) {
        to_stdin.write_all(piece).unwrap();
        while ioctl_fionread(&stdin).unwrap() > 0 {
            if child.try_wait().unwrap().is_some() {
                break 'pieces;
            }
            std::thread::yield_now();
        }
    }
    drop(to_stdin);
    let mut answer = String::new();
    from_stdout.read_to_string(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(answer["routes"].as_array().map(Vec::len), Some(3000), "{answer}");
    assert!(child.wait().unwrap().success());
}
