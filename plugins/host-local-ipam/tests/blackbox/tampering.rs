//! Directories that somebody else has been at: an administrator, a backup, another tool.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::between::{Now, ends_or_waits, stopped_behind};
use crate::calls::{Answer, Network, content, in_mount_namespace, ours, reference};

/// A call that is ended after a minute: one that waits for the other end of a FIFO never ends by itself.
fn ask_bounded(network: &Network, verb: &str, id: &str) -> Answer {
    let mut command = Command::new("timeout");
    network.prepare(&mut command, verb, id);
    let output = command.arg("60").arg(ours()).output().unwrap();
    assert_ne!(output.status.code(), Some(124), "{verb} {id} waits for ever");
    Answer { success: output.status.success(), stdout: String::from_utf8(output.stdout).unwrap() }
}

fn make_fifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap();
}

#[test]
fn a_lock_that_is_a_symbolic_link_locks_what_it_leads_to() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    let lock = network.leases_dir().join("lock");
    fs::rename(&lock, network.data_dir().join("lock")).unwrap();
    symlink("../lock", &lock).unwrap();
    network.call(&reference(), "ADD", "c2").ok();
    assert_eq!(network.ask("ADD", "c3").address(), "10.8.0.4");
    network.ask("CHECK", "c2").ok();
    network.ask("DEL", "c1").ok();
    assert_eq!(network.leases().into_values().collect::<Vec<_>>(), [content("c2"), content("c3")]);
}

#[test]
fn a_call_waits_for_another_one_whose_lock_file_was_removed() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    // What such a call still holds.
    let directory = fs::File::open(network.leases_dir()).unwrap();
    directory.lock().unwrap();
    fs::remove_file(network.leases_dir().join("lock")).unwrap();
    let mut child = network.command(ours(), "ADD", "c2").spawn().unwrap();
    assert!(ends_or_waits(&mut child) == Now::Waiting);
    assert_eq!(network.leases().len(), 1);
    directory.unlock().unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(network.leases().len(), 2);
}

#[test]
fn leases_whose_lock_leads_nowhere_are_not_taken_for_none() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    let lock = network.leases_dir().join("lock");
    fs::remove_file(&lock).unwrap();
    symlink("nowhere/lock", &lock).unwrap();
    for verb in ["DEL", "GC", "CHECK"] {
        let (code, msg) = network.ask(verb, "c1").error();
        assert!(code == 5 && msg.contains(lock.to_str().unwrap()), "{verb}: {msg}");
    }
    assert!(network.leases_dir().join("10.8.0.2").exists());
}

#[test]
fn nobody_waits_for_the_other_end_of_a_fifo() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    let lock = network.leases_dir().join("lock");
    fs::remove_file(&lock).unwrap();
    make_fifo(&lock);
    ask_bounded(&network, "ADD", "c2").ok();
    ask_bounded(&network, "DEL", "c1").ok();
    let last = network.leases_dir().join("last_reserved_ip.0");
    fs::remove_file(&last).unwrap();
    make_fifo(&last);
    let (code, msg) = ask_bounded(&network, "ADD", "c3").error();
    assert!(code == 5 && msg.contains("last_reserved_ip.0"), "{msg}");
    assert_eq!(network.type_words(&["list", "net1"]).stdout.split(|byte| *byte == b'\n').count(), 3);
}

#[test]
fn our_own_directory_may_be_anything_else() {
    type Make = fn(&Path);
    let nowhere: Make = |own| symlink("nowhere/further", own).unwrap();
    let round: Make = |own| symlink(own, own).unwrap();
    let file: Make = |own| fs::write(own, "").unwrap();
    for make in [nowhere, round, file, make_fifo] {
        let network = Network::new("10.8.0.0/29");
        network.ask("ADD", "c1").ok();
        let own = network.data_dir().join(".host-local-ipam");
        fs::remove_dir_all(&own).unwrap();
        make(&own);
        assert_eq!(network.ask("ADD", "c2").address(), "10.8.0.3");
        network.ask("STATUS", "").ok();
        assert_eq!(network.ask("ADD", "c2").error().0, 11);
        network.ask("CHECK", "c2").ok();
        network.ask("DEL", "c1").ok();
        network.ask("DEL", "c1").ok();
        network.gc(&["c3"]).ok();
        assert!(network.leases().is_empty());
    }
}

#[test]
fn directories_in_the_way_of_our_own_files_keep_no_call_from_its_work() {
    let network = Network::new("10.8.0.0/29");
    network.ask("ADD", "c1").ok();
    let own = network.data_dir().join(".host-local-ipam");
    fs::remove_dir_all(&own).unwrap();
    for name in ["net1.lease", "net1.index", "net1.index.new"] {
        fs::create_dir_all(own.join(name)).unwrap();
    }
    network.ask("ADD", "c2").ok();
    network.ask("DEL", "unknown").ok();
    network.gc(&["c2"]).ok();
    assert_eq!(network.leases().into_values().collect::<Vec<_>>(), [content("c2")]);
}

#[test]
fn a_lease_by_another_spelling_of_its_address_is_one() {
    let network = Network::new("fd00:8::/64");
    network.ask("ADD", "c1").ok();
    fs::create_dir(network.leases_dir().join("moved")).unwrap();
    for (name, id) in [("FD00:8::A", "c2"), ("moved/fd00:8::b", "c3")] {
        network.write(name, &content(id));
    }
    for (address, id) in [("fd00:8::a", "c2"), ("fd00:8::b", "c3")] {
        let refused = network.add_with_args("other", &format!("IP={address}")).document();
        assert_eq!(refused["details"], format!("{address} is leased to {id} (eth0)"), "{refused}");
        let printed = network.type_words(&["release", "net1", address]);
        let said = String::from_utf8(printed.stdout).unwrap();
        assert_eq!(said, format!("released {address} of {id} (eth0)\n"));
        assert_eq!(network.add_with_args(id, &format!("IP={address}")).address(), address);
    }
    assert!(!network.leases_dir().join("FD00:8::A").exists());
}

#[test]
fn a_container_id_may_be_as_long_as_a_variable_of_the_environment() {
    let network = Network::new("10.8.0.0/24");
    for length in [4090, 4091, 100_000] {
        let id = "x".repeat(length);
        network.ask("ADD", &id).ok();
        assert_eq!(network.ask("ADD", &id).error().0, 11, "{length}");
        network.ask("CHECK", &id).ok();
        network.ask("DEL", &id).ok();
        assert!(network.leases_dir().read_dir().unwrap().count() == 2, "{length}");
    }
}

#[test]
fn what_is_removed_by_hand_while_a_call_is_at_work_is_noticed() {
    // In the midst of keeping the index up to date, and of making it anew.
    for (call, is_behind) in [("newfstatat:when=100", true), ("pwrite64:when=2", false)] {
        let network = Network::with(json!({"subnet": "10.8.0.0/22", "allocation": "lowest"}));
        for number in 2..255 {
            network.write(&format!("10.8.0.{number}"), &content("old"));
            network.write(&format!("10.8.1.{number}"), &content("old"));
        }
        network.ask("CHECK", "old").ok();
        if is_behind {
            network.write("10.8.2.7", &content("other"));
        }
        let remove = || fs::remove_file(network.leases_dir().join("10.8.0.9")).unwrap();
        let (answer, ()) = stopped_behind(&network, "ADD", "c1", call, remove);
        answer.ok();
        assert_eq!(network.ask("ADD", "c2").address(), "10.8.0.9", "{call}");
    }
}

#[test]
fn an_index_that_is_put_back_with_the_time_of_the_directory_is_behind() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    let index = fs::read(network.index()).unwrap();
    let directory = fs::File::open(network.leases_dir()).unwrap();
    let time = directory.metadata().unwrap().modified().unwrap();
    network.ask("ADD", "c2").ok();
    fs::write(network.index(), index).unwrap();
    directory.set_modified(time).unwrap();
    assert_eq!(network.ask("ADD", "c2").error().0, 11);
}

#[test]
fn the_reason_of_a_failure_is_told_once() {
    let network = Network::new("10.8.0.0/24");
    fs::create_dir_all(network.leases_dir().join("lock")).unwrap();
    let said = String::from_utf8(network.type_words(&["list"]).stderr).unwrap();
    let lock = network.leases_dir().join("lock");
    assert_eq!(said, format!("host-local-ipam: lock {}: Is a directory (os error 21)\n", lock.display()));
}

/// A call during which the lease of `address` cannot be removed, since something is mounted on it.
fn ask_pinned(network: &Network, address: &str, verb: &str, id: &str) -> Answer {
    let mut command = in_mount_namespace(r#"mount --bind "$1" "$1"; shift; exec "$@""#);
    network.prepare(&mut command, verb, id);
    let output = command.arg(network.leases_dir().join(address)).arg(ours()).output().unwrap();
    Answer { success: output.status.success(), stdout: String::from_utf8(output.stdout).unwrap() }
}

#[test]
fn a_lease_that_cannot_be_removed_keeps_no_other() {
    let mut network =
        Network::with(json!({"ranges": [[{"subnet": "10.8.0.0/24"}], [{"subnet": "fd00:8::/64"}]]}));
    for id in ["c1", "c2", "c3"] {
        network.ask("ADD", id).ok();
    }
    let (code, msg) = ask_pinned(&network, "10.8.0.2", "DEL", "c1").error();
    assert!(code == 5 && msg.contains("10.8.0.2"), "{code} {msg}");
    let left = |network: &Network| network.leases().into_keys().collect::<Vec<_>>();
    assert_eq!(left(&network), ["10.8.0.2", "10.8.0.3", "10.8.0.4", "fd00:8::3", "fd00:8::4"]);
    network.conf["cni.dev/valid-attachments"] = json!([{"containerID": "c3", "ifname": "eth0"}]);
    assert_eq!(ask_pinned(&network, "10.8.0.2", "GC", "").error(), (code, msg));
    assert_eq!(left(&network), ["10.8.0.2", "10.8.0.4", "fd00:8::4"]);
    network.ask("DEL", "c1").ok();
    assert_eq!(left(&network), ["10.8.0.4", "fd00:8::4"]);
}

#[test]
fn what_was_written_over_a_lease_counts_though_the_directory_is_as_it_was() {
    let network =
        Network::with(json!({"subnet": "10.8.0.0/29", "rangeStart": "10.8.0.2", "rangeEnd": "10.8.0.3"}));
    for id in ["c1", "c2"] {
        network.ask("ADD", id).ok();
    }
    network.write("10.8.0.2", "other\r\neth0");
    network.ask("DEL", "other").ok();
    assert_eq!(network.leases().into_keys().collect::<Vec<_>>(), ["10.8.0.3"]);
    network.ask("ADD", "c3").ok();
    network.write("10.8.0.3", "");
    assert_eq!(network.ask("ADD", "c4").address(), "10.8.0.3");
}

#[test]
fn a_lease_further_down_is_free_again_when_it_was_released() {
    let network = Network::with(json!({"subnet": "10.8.0.0/24", "allocation": "lowest"}));
    std::fs::create_dir_all(network.leases_dir().join("below")).unwrap();
    network.write("below/10.8.0.2", "c1\r\neth0");
    assert_eq!(network.ask("ADD", "c2").address(), "10.8.0.3");
    network.ask("DEL", "c1").ok();
    assert_eq!(network.ask("ADD", "c3").address(), "10.8.0.2");
}
