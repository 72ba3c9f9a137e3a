//! What a person types.

use serde_json::{Value, json};

use crate::calls::{Network, ours};

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn list_shows_every_lease_and_whose_it_is() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    network.write("10.8.0.10", "legacy");
    network.write("10.8.0.9", "");
    std::fs::create_dir(network.leases_dir().join("10.8.0.7")).unwrap();
    std::os::unix::fs::symlink("nowhere", network.leases_dir().join("10.8.0.8")).unwrap();
    let printed = network.type_words(&["list", "net1", "--json"]);
    let mut rows: Value = serde_json::from_slice(&printed.stdout).unwrap();
    for row in rows.as_array_mut().unwrap() {
        let age = row["ageSeconds"].take().as_u64();
        assert_eq!(age.is_none(), row["state"] == "unreadable");
        assert!(age.is_none_or(|age| age < 60));
    }
    let row = |address, id, ifname, state| json!({"network": "net1", "address": address, "containerID": id, "ifname": ifname, "ageSeconds": null, "state": state});
    let wanted = [
        row("10.8.0.2", json!("c1"), json!("eth0"), "live"),
        row("10.8.0.7", Value::Null, Value::Null, "unreadable"),
        row("10.8.0.8", Value::Null, Value::Null, "unreadable"),
        row("10.8.0.9", Value::Null, Value::Null, "leftover"),
        row("10.8.0.10", json!("legacy"), Value::Null, "live"),
    ];
    assert_eq!(rows, json!(wanted));
    let table = text(&network.type_words(&["list"]).stdout);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["NETWORK", "ADDRESS", "CONTAINER", "INTERFACE", "AGE", "STATE"]);
    assert_eq!(
        [lines[1][..4].to_vec(), lines[1][5..].to_vec()].concat(),
        ["net1", "10.8.0.2", "c1", "eth0", "live"]
    );
    assert_eq!(lines.len(), 6);
}

#[test]
fn a_network_that_is_not_there_is_told_from_one_without_leases() {
    let network = Network::new("10.8.0.0/24");
    assert_eq!(text(&network.type_words(&["list", "--json"]).stdout), "[]\n");
    network.ask("ADD", "c1").ok();
    network.ask("DEL", "c1").ok();
    assert_eq!(text(&network.type_words(&["list", "net1", "--json"]).stdout), "[]\n");
    let message = format!("host-local-ipam: there is no network other in {}\n", network.data_dir().display());
    for words in [&["list", "other"][..], &["list", "other", "--json"], &["release", "other", "10.8.0.2"]] {
        let printed = network.type_words(words);
        assert!(!printed.status.success() && printed.stdout.is_empty(), "{words:?}");
        assert_eq!(text(&printed.stderr), message);
    }
}

#[test]
fn release_gives_one_address_back_and_names_its_holder() {
    let network = Network::new("10.8.0.0/30");
    network.ask("ADD", "c1").ok();
    let printed = network.type_words(&["release", "net1", "10.8.0.2"]);
    assert_eq!(text(&printed.stdout), "released 10.8.0.2 of c1 (eth0)\n");
    assert!(printed.status.success());
    network.ask("ADD", "c2").ok();
    for (words, message) in [
        (["release", "net1", "10.8.0.77"], "host-local-ipam: 10.8.0.77 is not leased in network net1\n"),
        (
            ["release", "net1", "lock"],
            "host-local-ipam: invalid IP address lock: invalid IP address syntax; see host-local-ipam --help\n",
        ),
    ] {
        let printed = network.type_words(&words);
        assert!(!printed.status.success() && printed.stdout.is_empty());
        assert_eq!(text(&printed.stderr), message);
    }
    assert_eq!(network.leases().len(), 1);
}

#[test]
fn list_and_release_wait_for_the_lock_before_they_look() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    for words in [&["list", "net1"][..], &["release", "net1", "10.8.0.2"]] {
        let trace = tempfile::NamedTempFile::new().unwrap();
        let mut command = std::process::Command::new("strace");
        command.args(["-qq", "-o"]).arg(trace.path()).arg(ours()).args(words);
        let output =
            command.arg("--data-dir").arg(network.data_dir()).output().expect("strace has to be installed");
        assert!(output.status.success(), "{output:?}");
        let trace = std::fs::read_to_string(trace.path()).unwrap();
        let calls: Vec<&str> = trace.lines().filter(|call| !call.starts_with("execve(")).collect();
        let locked = calls.iter().position(|call| call.starts_with("flock(") && call.contains("LOCK_EX"));
        let (before, after) = calls.split_at(locked.unwrap_or_else(|| panic!("{words:?}: {trace}")));
        let lease = |call: &&&str| call.contains("10.8.0.2");
        assert_eq!(before.iter().find(lease), None, "{words:?}");
        assert!(after.iter().any(|call| lease(&call)), "{words:?}: {trace}");
    }
    assert!(network.leases().is_empty());
}

#[test]
fn help_and_version_are_told_and_a_bare_call_says_what_it_is() {
    let run = |words: &[&str]| std::process::Command::new(ours()).env_clear().args(words).output().unwrap();
    assert!(text(&run(&["--help"]).stdout).contains("host-local-ipam release NETWORK ADDRESS"));
    assert!(text(&run(&["--version"]).stdout).starts_with("host-local-ipam "));
    let bare = run(&[]);
    assert!(bare.status.success() && bare.stdout.is_empty());
    assert!(text(&bare.stderr).starts_with("CNI host-local-ipam plugin "));
    assert!(!run(&["lst"]).status.success());
}
