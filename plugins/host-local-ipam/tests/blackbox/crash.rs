//! Killed before any of its system calls, and at random moments: what is left is a whole lease or none, and DEL, GC and
//! ADD go on as if nothing had been.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use crate::calls::{Network, content, ours, reference};

/// Five addresses to lease; two of them are.
fn prepared() -> Network {
    with_two_leases(json!({"subnet": "10.8.0.0/29", "rangeEnd": "10.8.0.7", "stickyByName": true}))
}

fn with_two_leases(keys: Value) -> Network {
    let network = Network::with(keys);
    for id in ["a", "b"] {
        network.ask("ADD", id).ok();
    }
    network
}

fn strace(network: &Network, verb: &str, options: &[&str]) -> (bool, String) {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strace");
    command.args(["-qq", "-o"]).arg(trace.path()).args(options).arg(ours());
    network.prepare(&mut command, verb, "victim");
    command.env("CNI_ARGS", "CONTAINER_NAME=victim");
    let output = command.output().expect("strace has to be installed");
    (output.status.success(), std::fs::read_to_string(trace.path()).unwrap())
}

/// Name and count so far of each system call that `verb` makes after it has started to read its input.
pub(crate) fn moments(network: &Network, verb: &str) -> Vec<(String, usize)> {
    let (success, trace) = strace(network, verb, &[]);
    assert!(success, "{trace}");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut moments = Vec::new();
    let mut started = false;
    for line in trace.lines() {
        let Some((name, _)) = line.split_once('(') else { continue };
        let count = seen.entry(name.to_owned()).or_default();
        *count += 1;
        started |= line.contains("/lock");
        if started {
            moments.push((name.to_owned(), *count));
        }
    }
    assert!(moments.len() > 20, "{trace}");
    moments
}

/// Address and content of the leases of all but the victim.
fn others(network: &Network) -> BTreeMap<String, String> {
    network.leases().into_iter().filter(|(_, holder)| *holder != content("victim")).collect()
}

/// Whatever a kill left behind, the others' leases are whole, and everything can be had and given back.
fn check_recovery(network: &Network, before: &BTreeMap<String, String>, moment: &str, step: usize) {
    for (address, holder) in network.leases() {
        let known = [content("a"), content("b"), content("victim")].contains(&holder);
        assert!(known, "{moment}: {address} holds {holder:?}");
    }
    match step % 3 {
        0 => network.ask("DEL", "victim").ok(),
        1 => network.call(&reference(), "DEL", "victim").ok(),
        _ => network.gc(&["a", "b"]).ok(),
    }
    assert_eq!(network.leases(), *before, "{moment}");
    for id in ["c", "d", "e"] {
        network.ask("ADD", id).ok();
    }
    network.ask("ADD", "f").exhausted();
    for id in ["c", "d", "e"] {
        network.ask("DEL", id).ok();
    }
    assert_eq!(network.leases(), *before, "{moment}");
    let own: Vec<_> = std::fs::read_dir(network.data_dir().join(".host-local-ipam"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "net1.index" && name != "net1.names")
        .collect();
    assert!(own.is_empty(), "{moment}: {own:?} left");
}

fn kill_everywhere(verb: &str, ready: impl Fn() -> Network) {
    for (step, (call, count)) in moments(&ready(), verb).into_iter().enumerate() {
        let network = ready();
        let before = others(&network);
        let moment = format!("{verb} killed at {call} {count}");
        let inject = format!("inject={call}:signal=KILL:when={count}");
        let (success, trace) = strace(&network, verb, &["-e", &inject]);
        assert!(!success, "{moment}: {trace}");
        check_recovery(&network, &before, &moment, step);
    }
}

#[test]
fn an_add_killed_at_any_system_call_is_recovered() {
    kill_everywhere("ADD", prepared);
}

#[test]
fn an_add_of_two_addresses_killed_at_any_system_call_is_recovered() {
    kill_everywhere("ADD", || {
        with_two_leases(json!({"ranges": [[{"subnet": "10.8.0.0/29"}], [{"subnet": "fd00:8::/64"}]]}))
    });
}

#[test]
fn an_add_that_makes_the_index_anew_killed_at_any_system_call_is_recovered() {
    kill_everywhere("ADD", || {
        let network = Network::new("10.8.0.0/29");
        network.ask("ADD", "a").ok();
        network.call(&reference(), "ADD", "b").ok();
        network
    });
}

#[test]
fn a_gc_killed_at_any_system_call_is_recovered() {
    kill_everywhere("GC", || {
        let mut network = prepared();
        network.add_with_args("victim", "CONTAINER_NAME=victim").ok();
        let valid = json!([{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "eth0"}]);
        network.conf = network.conf_with("cni.dev/valid-attachments", valid);
        network
    });
}

#[test]
fn the_first_add_of_a_network_killed_at_any_system_call_is_recovered() {
    let ready = || Network::with(json!({"subnet": "10.8.0.0/29", "stickyByName": true}));
    for (call, count) in moments(&ready(), "ADD") {
        let network = ready();
        let (success, _) =
            strace(&network, "ADD", &["-e", &format!("inject={call}:signal=KILL:when={count}")]);
        assert!(!success);
        network.ask("DEL", "victim").ok();
        assert!(network.leases().is_empty(), "{call} {count}");
        let addresses: Vec<String> =
            (0..5).map(|number| network.ask("ADD", &format!("c{number}")).address()).collect();
        assert_eq!(addresses.len(), 5);
        network.ask("ADD", "late").exhausted();
    }
}

#[test]
fn a_del_killed_at_any_system_call_is_recovered() {
    kill_everywhere("DEL", || {
        let network = prepared();
        network.add_with_args("victim", "CONTAINER_NAME=victim").ok();
        network
    });
}

#[test]
fn a_system_call_that_fails_fails_the_add_and_leaves_nothing() {
    // Without memory there is no error message either.
    let is_memory = |call: &str| matches!(call, "mmap" | "munmap" | "mremap" | "brk");
    let mut failed = 0;
    for (call, count) in moments(&prepared(), "ADD").into_iter().filter(|(call, _)| !is_memory(call)) {
        for errno in ["EIO", "ENOSPC"] {
            let network = prepared();
            let before = network.leases();
            let inject = format!("inject={call}:error={errno}:when={count}");
            let (success, trace) = strace(&network, "ADD", &["-e", &inject]);
            let held = network.leases().into_values().any(|holder| holder == content("victim"));
            if success {
                assert!(held, "{call} {count} {errno}: {trace}");
            } else {
                failed += 1;
                // An unlink that fails while giving back is reported, and is all that can be done.
                assert_eq!(network.leases(), before, "{call} {count} {errno}: {trace}");
            }
            network.ask("DEL", "victim").ok();
            assert_eq!(network.leases(), before, "{call} {count} {errno}: {trace}");
        }
    }
    assert!(failed > 5, "only {failed} failures injected");
}

#[test]
fn a_file_system_that_cannot_rename_to_a_free_name_links_instead() {
    for errno in ["EINVAL", "ENOSYS", "EPERM"] {
        let network = prepared();
        let (success, trace) = strace(&network, "ADD", &["-e", &format!("inject=renameat2:error={errno}")]);
        assert!(success, "{trace}");
        assert_eq!(network.leases()["10.8.0.4"], content("victim"));
        assert!(!network.data_dir().join(".host-local-ipam/net1.lease").exists());
        network.call(&reference(), "DEL", "victim").ok();
        network.ask("ADD", "next").ok();
        assert_eq!(network.leases().len(), 3);
    }
}

/// As NFS does, for which only a file that is open for writing can be locked by one alone.
#[test]
fn a_file_system_that_locks_for_writers_only_is_locked_by_one() {
    let network = prepared();
    let (success, trace) = strace(&network, "ADD", &["-e", "inject=flock:error=EBADF:when=1"]);
    assert!(success, "{trace}");
    assert_eq!(network.leases()["10.8.0.4"], content("victim"));
    let (_, after) = trace.split_once("EBADF").unwrap_or_else(|| panic!("{trace}"));
    let opened = after.lines().find(|line| line.contains("/net1/lock\"") && line.contains("O_RDWR"));
    let descriptor = opened.and_then(|line| line.rsplit_once("= ")).unwrap_or_else(|| panic!("{trace}")).1;
    let locked = format!("flock({}, LOCK_EX)", descriptor.trim());
    assert!(after.lines().any(|line| line.contains(&locked) && line.trim_end().ends_with("= 0")), "{trace}");
}

#[test]
fn a_file_system_without_links_leases_all_the_same() {
    for errno in ["EPERM", "EOPNOTSUPP", "ENOSYS"] {
        let network = prepared();
        // In the way, and free.
        network.write("10.8.0.4", "");
        let inject = format!("inject=link,linkat:error={errno}");
        let (success, trace) =
            strace(&network, "ADD", &["-e", "inject=renameat2:error=EINVAL", "-e", &inject]);
        assert!(success, "{trace}");
        assert_eq!(network.leases()["10.8.0.4"], content("victim"));
        assert!(!network.data_dir().join(".host-local-ipam/net1.lease").exists());
    }
}

#[test]
fn an_unfinished_file_is_written_anew_only_if_nobody_else_has_it() {
    let network = Network::new("10.8.0.0/24");
    let aside = network.data_dir().join(".host-local-ipam/net1.lease");
    let elsewhere = network.data_dir().join("elsewhere");
    network.ask("ADD", "c1").ok();
    std::fs::write(&elsewhere, "another's").unwrap();
    std::fs::hard_link(&elsewhere, &aside).unwrap();
    network.ask("ADD", "c2").ok();
    std::os::unix::fs::symlink(&elsewhere, &aside).unwrap();
    network.ask("ADD", "c3").ok();
    assert_eq!(std::fs::read_to_string(&elsewhere).unwrap(), "another's");
    std::fs::create_dir(&aside).unwrap();
    network.ask("ADD", "c4").ok();
    let holders: Vec<String> = network.leases().into_values().collect();
    assert_eq!(holders, ["c1", "c2", "c3", "c4"].map(content));
}

#[test]
fn adds_killed_at_random_moments_lose_no_address() {
    let network = Network::new("10.8.0.0/26");
    for round in 0..60u64 {
        let mut child = network.command(ours(), "ADD", &format!("k{round}")).spawn().unwrap();
        // Not to wait for anything: the length of the pause is what is tried out.
        std::thread::sleep(Duration::from_micros(round * 37 % 2500));
        child.kill().unwrap();
        child.wait().unwrap();
        if round % 4 == 0 {
            network.ask("DEL", &format!("k{round}")).ok();
        }
    }
    network.gc(&[]).ok();
    assert!(network.leases().is_empty());
    let addresses: std::collections::BTreeSet<String> =
        (0..61).map(|number| network.ask("ADD", &format!("c{number}")).address()).collect();
    assert_eq!(addresses.len(), 61);
    network.ask("ADD", "late").exhausted();
}
