//! Ours and the reference on one directory: each finds, checks and releases what the other leased.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::Child;

use serde_json::json;

use crate::calls::{Network, content, ours, reference};

fn both() -> [std::path::PathBuf; 2] {
    [ours().to_owned(), reference()]
}

#[test]
fn a_data_directory_is_the_same_for_both_however_it_is_written() {
    let [ours, theirs] = both();
    let mut network = Network::new("10.8.0.0/24");
    let data_dir = network.data_dir();
    std::fs::create_dir_all(data_dir.join("far/away")).unwrap();
    std::os::unix::fs::symlink(data_dir.join("far/away"), data_dir.join("link")).unwrap();
    let absolute = |path: &str| data_dir.join(path).display().to_string();
    let written = [
        absolute("link/../one"),
        absolute("link/two/../../three"),
        format!("/..{}/", absolute("four")),
        "missing/../five/".to_owned(),
        "./six//.".to_owned(),
        "../../seven".to_owned(),
    ];
    for (number, written) in written.iter().enumerate() {
        let directory = data_dir.join("a/b/c").join(number.to_string());
        std::fs::create_dir_all(&directory).unwrap();
        network.conf["ipam"]["dataDir"] = json!(written);
        let call = |program: &Path, verb, id| {
            let mut command = network.command(program, verb, id);
            command.current_dir(&directory).output().unwrap()
        };
        for (program, id) in [(&ours, "c1"), (&theirs, "c2"), (&ours, "c3")] {
            let output = call(program, "ADD", id);
            let address = format!("10.8.0.{}", &id[1..].parse::<u8>().unwrap() + 1);
            let answer = String::from_utf8_lossy(&output.stdout);
            assert!(answer.contains(&address), "{written} {id}: {answer}");
        }
        for (program, id) in [(&theirs, "c1"), (&ours, "c2"), (&theirs, "c3")] {
            assert!(call(program, "DEL", id).status.success(), "{written} {id}");
        }
        let output = call(&ours, "ADD", "c1");
        assert!(String::from_utf8_lossy(&output.stdout).contains("10.8.0.5/"), "{written}");
    }
}

#[test]
fn each_refuses_checks_and_releases_what_the_other_leased() {
    let [ours, theirs] = both();
    for (one, other) in [(&ours, &theirs), (&theirs, &ours)] {
        let network =
            Network::with(json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]]}));
        network.call(one, "ADD", "c1").ok();
        network.call(other, "ADD", "c2").ok();
        let (_, msg) = network.call(other, "ADD", "c1").error();
        let text = "10.8.0.2 has been allocated to c1, duplicate allocation is not allowed";
        assert!(msg.contains(text), "{msg}");
        network.call(other, "CHECK", "c1").ok();
        network.call(one, "CHECK", "c2").ok();
        network.call(other, "DEL", "c1").ok();
        network.call(one, "DEL", "c2").ok();
        assert!(network.leases().is_empty());
        let (_, msg) = network.call(one, "CHECK", "c2").error();
        assert!(msg.contains("Failed to find address added by container c2"), "{msg}");
    }
}

#[test]
fn calls_in_turn_never_lease_an_address_twice_and_go_on_from_one_cursor() {
    let programs = both();
    let network = Network::new("10.8.0.0/27");
    let mut addresses = Vec::new();
    for number in 0..29 {
        let program = &programs[number % 2];
        addresses.push(network.call(program, "ADD", &format!("c{number}")).address());
        if number % 5 == 4 {
            network.call(&programs[(number / 5) % 2], "DEL", &format!("c{number}")).ok();
        }
    }
    let wanted: Vec<String> = (2..31).map(|low| format!("10.8.0.{low}")).collect();
    assert_eq!(addresses, wanted);
}

#[test]
fn calls_in_parallel_never_lease_an_address_twice() {
    let programs = both();
    let network = Network::new("10.8.0.0/24");
    let children: Vec<Child> = (0..60)
        .map(|number| network.command(&programs[number % 2], "ADD", &format!("c{number}")).spawn().unwrap())
        .collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let holders: BTreeSet<String> = network.leases().into_values().collect();
    assert_eq!(holders, (0..60).map(|number| content(&format!("c{number}"))).collect());
    for number in 0..60 {
        network.call(&programs[(number + 1) % 2], "DEL", &format!("c{number}")).ok();
    }
    assert!(network.leases().is_empty());
}

#[test]
fn older_forms_of_a_lease_are_honoured() {
    let network = Network::new("10.8.0.0/24");
    network.write("10.8.0.2", "old");
    network.write("10.8.0.3", " spaced\r\neth0\r\n\n");
    network.write("10.8.0.4", "\told2\n");
    network.write("legacy", "named");
    assert_eq!(network.ask("ADD", "c1").address(), "10.8.0.5");
    for id in ["old", "old2", "spaced"] {
        network.ask("CHECK", id).ok();
        assert!(network.ask("ADD", id).error().1.contains("duplicate allocation is not allowed"), "{id}");
        network.ask("DEL", id).ok();
    }
    network.ask("DEL", "named").ok();
    let names: Vec<String> = network.files().into_keys().collect();
    assert_eq!(names, ["10.8.0.5", "last_reserved_ip.0", "lock"]);
}

#[test]
fn an_id_alone_counts_only_when_no_file_names_the_interface_too() {
    for program in both() {
        let network = Network::new("10.8.0.0/24");
        network.write("10.8.0.9", "c1");
        network.write("10.8.0.10", "c1\r\neth0");
        network.write("10.8.0.11", "c1\r\neth1");
        network.call(&program, "DEL", "c1").ok();
        let left: Vec<String> = network.leases().into_keys().collect();
        assert_eq!(left, ["10.8.0.11", "10.8.0.9"], "{}", program.display());
    }
}

#[test]
fn an_id_alone_keeps_its_container_from_a_second_address_though_a_file_elsewhere_names_the_interface_too() {
    for program in both() {
        let network = Network::new("10.8.0.0/24");
        network.write("10.9.0.5", "c1\r\neth0");
        network.write("10.8.0.9", "c1");
        let (_, msg) = network.call(&program, "ADD", "c1").error();
        let wanted = "failed to allocate for range 0: 10.8.0.9 has been allocated to c1, duplicate allocation is not allowed";
        assert_eq!(msg, wanted, "{}", program.display());
        assert_eq!(network.leases().len(), 2);
    }
}

#[test]
fn an_interface_whose_name_is_no_text_keeps_its_address() {
    let network = Network::new("10.8.0.0/24");
    let mut command = network.command(&reference(), "ADD", "c1");
    assert!(command.env("CNI_IFNAME", OsStr::from_bytes(b"\xffeth")).output().unwrap().status.success());
    let is_held = || network.files().get("10.8.0.2").is_some_and(|content| content == b"c1\r\n\xffeth");
    let refused = network.add_with_args("c2", "IP=10.8.0.2").document();
    assert_eq!(refused["details"], "10.8.0.2 is leased to c1 (\u{fffd}eth)", "{refused}");
    for (ifname, is_valid) in [("\u{fffd}eth", true), ("eth", false)] {
        let valid =
            network.conf_with("cni.dev/valid-attachments", json!([{"containerID": "c1", "ifname": ifname}]));
        network.ask_with(&valid, "GC", "").ok();
        assert_eq!(is_held(), is_valid, "{ifname}");
    }
}

#[test]
fn files_further_down_are_released_too() {
    for program in both() {
        let network = Network::new("10.8.0.0/24");
        network.write("10.8.0.2", "x\r\neth0");
        std::fs::create_dir_all(network.leases_dir().join("sub/deeper")).unwrap();
        network.write("sub/deeper/10.8.0.3", "c1\r\neth0");
        network.call(&program, "DEL", "c1").ok();
        assert!(!network.leases_dir().join("sub/deeper/10.8.0.3").exists(), "{}", program.display());
    }
}

#[test]
fn two_interfaces_of_one_container_have_two_addresses() {
    let network = Network::new("10.8.0.0/24");
    let second = |program: &Path, verb: &str| {
        network.command(program, verb, "c1").env("CNI_IFNAME", "eth1").output().unwrap().status.success()
    };
    network.ask("ADD", "c1").ok();
    assert!(second(ours(), "ADD"));
    assert_eq!(network.leases()["10.8.0.3"], "c1\r\neth1");
    network.ask("DEL", "c1").ok();
    assert_eq!(network.leases().into_keys().collect::<Vec<_>>(), ["10.8.0.3"]);
    assert!(second(&reference(), "CHECK") && second(ours(), "DEL"));
    assert!(network.leases().is_empty());
}

#[test]
fn the_name_of_the_program_makes_no_difference() {
    let network = Network::new("10.8.0.0/24");
    let link = network.data_dir().with_file_name("host-local");
    std::os::unix::fs::symlink(ours(), &link).unwrap();
    assert_eq!(network.call(&link, "ADD", "c1").address(), "10.8.0.2");
}
