//! Leases of an earlier boot. The kernel's boot id is covered by another one, in a mount namespace.

use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::calls::{Answer, Network, content, in_mount_namespace, ours, reference};

const BOOTS: [&str; 3] = [
    "11111111-1111-1111-1111-111111111111",
    "22222222-2222-2222-2222-222222222222",
    "33333333-3333-3333-3333-333333333333",
];

/// A file that covers the kernel's boot id.
fn boot_id(boot: usize, network: &Network) -> PathBuf {
    let covering = network.data_dir().with_file_name("boot_id");
    std::fs::write(&covering, format!("{}\n", BOOTS[boot])).unwrap();
    covering
}

/// A command that makes a call of ours in another boot.
pub(crate) fn command_in(boot: usize, network: &Network, verb: &str, id: &str) -> Command {
    let covering = boot_id(boot, network);
    let mut command =
        in_mount_namespace(r#"mount --bind "$1" /proc/sys/kernel/random/boot_id; shift; exec "$@""#);
    network.prepare(&mut command, verb, id);
    command.arg(&covering).arg(ours());
    command
}

/// A call of ours in another boot.
fn ask_in(boot: usize, network: &Network, verb: &str, id: &str) -> Answer {
    Answer::of(&command_in(boot, network, verb, id).output().unwrap())
}

/// Two leases of boot 0 in a range of two.
fn full() -> Network {
    let network =
        Network::with(json!({"subnet": "10.8.0.0/29", "rangeStart": "10.8.0.2", "rangeEnd": "10.8.0.3"}));
    for id in ["old1", "old2"] {
        ask_in(0, &network, "ADD", id).ok();
    }
    ask_in(0, &network, "ADD", "late").exhausted();
    network
}

#[test]
fn a_full_range_is_had_again_after_a_reboot() {
    let network = full();
    ask_in(1, &network, "STATUS", "").ok();
    ask_in(1, &network, "ADD", "new1").ok();
    ask_in(1, &network, "ADD", "new2").ok();
    ask_in(1, &network, "ADD", "new3").exhausted();
    assert_eq!(ask_in(1, &network, "STATUS", "").error().0, 50);
    assert_eq!(network.leases().len(), 2);
}

#[test]
fn a_lease_that_cannot_be_removed_keeps_no_other_from_being_had_again() {
    let network = full();
    let pinned = network.leases_dir().join("10.8.0.2");
    let script = r#"mount --bind "$1" /proc/sys/kernel/random/boot_id; mount --bind "$2" "$2"; exec "$3""#;
    let mut command = in_mount_namespace(script);
    network.prepare(&mut command, "ADD", "new");
    let covering = boot_id(1, &network);
    let output = command.arg(&covering).arg(&pinned).arg(ours()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(network.leases()["10.8.0.3"], content("new"));
}

#[test]
fn a_lease_stays_until_it_is_in_the_way() {
    let network = Network::new("10.8.0.0/24");
    ask_in(0, &network, "ADD", "old").ok();
    assert_eq!(ask_in(1, &network, "ADD", "new").address(), "10.8.0.3");
    assert_eq!(network.leases().len(), 2);
    // the same attachment, started again
    assert_eq!(ask_in(1, &network, "ADD", "old").address(), "10.8.0.4");
    assert_eq!(network.leases().into_keys().collect::<Vec<_>>(), ["10.8.0.3", "10.8.0.4"]);
    // asked for by name
    let network = full();
    ask_in(1, &network, "CHECK", "old1").ok();
    let mut asking = Network::new("10.8.0.0/24");
    asking.conf = network.conf_with("runtimeConfig", json!({"ips": ["10.8.0.3"]}));
    assert_eq!(ask_in(1, &asking, "ADD", "new").address(), "10.8.0.3");
    assert_eq!(network.leases()["10.8.0.2"], "old1\r\neth0");
}

#[test]
fn an_address_stays_with_a_name_over_a_reboot() {
    let mut network = Network::with(json!({"subnet": "10.8.0.0/24", "stickyByName": true}));
    network.conf["args"] = json!({"cni": {"containerName": "web"}});
    assert_eq!(ask_in(0, &network, "ADD", "c1").address(), "10.8.0.2");
    assert_eq!(ask_in(1, &network, "ADD", "c2").address(), "10.8.0.2");
    assert_eq!(network.leases().into_values().collect::<Vec<_>>(), ["c2\r\neth0"]);
    // The one of this boot is alive.
    assert_eq!(ask_in(1, &network, "ADD", "c3").address(), "10.8.0.3");
}

#[test]
fn gc_without_a_list_releases_leases_of_an_earlier_boot_and_no_others() {
    let network = Network::new("10.8.0.0/24");
    ask_in(0, &network, "ADD", "old").ok();
    ask_in(0, &network, "GC", "").ok();
    assert_eq!(network.leases().len(), 1);
    ask_in(1, &network, "ADD", "new").ok();
    ask_in(1, &network, "GC", "").ok();
    assert_eq!(network.leases().into_values().collect::<Vec<_>>(), ["new\r\neth0"]);
}

#[test]
fn old_files_alone_prove_nothing() {
    let network = full();
    for address in ["10.8.0.2", "10.8.0.3"] {
        let file = std::fs::File::options().write(true).open(network.leases_dir().join(address)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    ask_in(0, &network, "ADD", "new").exhausted();
    // Neither without any record of the boot that made them.
    std::fs::remove_dir_all(network.data_dir().join(".host-local-ipam")).unwrap();
    ask_in(1, &network, "ADD", "new").exhausted();
    assert_eq!(network.leases().len(), 2);
}

#[test]
fn a_changed_file_time_does_not_hide_a_reboot() {
    let network = full();
    for address in ["10.8.0.2", "10.8.0.3"] {
        let file = std::fs::File::options().write(true).open(network.leases_dir().join(address)).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    }
    ask_in(1, &network, "ADD", "new").ok();
}

#[test]
fn after_a_power_loss_a_lease_is_dead_if_its_file_is_the_one_that_was_recorded() {
    let network = full();
    // The directory has a time that is not the one we left, but is from before this boot; one lease was made again.
    network.write("10.8.0.3", "old2\r\neth0");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    std::fs::File::open(network.leases_dir()).unwrap().set_modified(long_ago).unwrap();
    assert_eq!(ask_in(1, &network, "ADD", "new").address(), "10.8.0.2");
    ask_in(1, &network, "ADD", "late").exhausted();
    assert!(ask_in(1, &network, "ADD", "old2").error().1.contains("duplicate allocation is not allowed"));
}

#[test]
fn where_the_reference_has_been_writing_nothing_is_reclaimed_in_that_boot() {
    let network = full();
    // In boot 1 the reference runs first, and replaces one lease by a live one.
    network.call(&reference(), "DEL", "old1").ok();
    network.call(&reference(), "ADD", "live").ok();
    ask_in(1, &network, "ADD", "new").exhausted();
    ask_in(1, &network, "GC", "").ok();
    assert_eq!(network.leases().len(), 2);
    // By the next boot everything is proved dead.
    ask_in(2, &network, "ADD", "new").ok();
}

#[test]
fn a_lease_made_by_the_reference_after_ours_noticed_the_reboot_is_alive() {
    let network = full();
    ask_in(1, &network, "DEL", "old1").ok();
    network.call(&reference(), "ADD", "live").ok();
    ask_in(1, &network, "ADD", "new").exhausted();
    assert!(network.leases().into_values().any(|holder| holder == "live\r\neth0"));
}

#[test]
fn a_kernel_that_tells_no_boot_id_proves_nothing() {
    let network = full();
    let script = r#"mount --bind /dev/null /proc/sys/kernel/random/boot_id; exec "$@""#;
    let mut command = in_mount_namespace(script);
    network.prepare(&mut command, "ADD", "new");
    assert!(!command.arg(ours()).output().unwrap().status.success());
    assert_eq!(network.leases().len(), 2);
}

#[test]
fn an_index_of_an_earlier_boot_that_is_put_back_declares_nobody_dead() {
    let network =
        Network::with(json!({"subnet": "10.8.0.0/29", "rangeStart": "10.8.0.2", "rangeEnd": "10.8.0.3"}));
    ask_in(0, &network, "ADD", "old").ok();
    let index = std::fs::read(network.index()).unwrap();
    let directory = std::fs::File::open(network.leases_dir()).unwrap();
    let time = directory.metadata().unwrap().modified().unwrap();
    ask_in(1, &network, "DEL", "old").ok();
    for id in ["new1", "new2"] {
        ask_in(1, &network, "ADD", id).ok();
    }
    // As a backup does that is written over what is there.
    std::fs::write(network.index(), index).unwrap();
    directory.set_modified(time).unwrap();
    ask_in(1, &network, "ADD", "late").exhausted();
    assert_eq!(ask_in(1, &network, "ADD", "new1").error().0, 11);
    assert_eq!(network.leases().len(), 2);
}
