//! The index: read instead of the leases, and never believed against them. No timing here: it is the files that are
//! opened that are counted.

use std::process::Command;

use crate::calls::{Network, content, ours, reference};

/// How many system calls a call makes.
fn system_calls(network: &Network, verb: &str, id: &str) -> usize {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strace");
    command.args(["-qq", "-o"]).arg(trace.path()).arg(ours());
    network.prepare(&mut command, verb, id);
    let output = command.output().expect("strace has to be installed");
    assert!(matches!(output.status.code(), Some(0 | 1)), "{output:?}");
    std::fs::read_to_string(trace.path()).unwrap().lines().count()
}

fn fill(network: &Network, count: usize) {
    for number in 0..count {
        network.write(&format!("10.8.{}.{}", number / 256, number % 256), &content(&format!("x{number}")));
    }
}

#[test]
fn the_number_of_leases_makes_no_difference_to_what_a_call_does() {
    let counts = |leases: usize| {
        let network = Network::new("10.8.0.0/16");
        fill(&network, leases);
        network.ask("ADD", "first").ok();
        ["ADD", "CHECK", "DEL"].map(|verb| system_calls(&network, verb, "c1"))
    };
    let (few, many) = (counts(300), counts(5000));
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= few + 16, "{few} system calls with 300 leases, {many} with 5000");
    }
}

#[test]
fn a_nearly_full_range_takes_one_read_for_512_leases() {
    let network = Network::new("10.8.0.0/19");
    fill(&network, 32 * 256);
    std::fs::remove_file(network.leases_dir().join("10.8.31.200")).unwrap();
    assert!(!network.ask("ADD", "before").addresses().is_empty());
    network.ask("DEL", "before").ok();
    std::fs::write(network.leases_dir().join("last_reserved_ip.0"), "10.8.31.201").unwrap();
    let calls = system_calls(&network, "ADD", "c1");
    assert!(calls < 160, "{calls} system calls");
    assert_eq!(network.leases()["10.8.31.200"], content("c1"));
}

#[test]
fn a_full_pool_is_known_without_looking_at_its_files() {
    let network = Network::new("10.8.0.0/22");
    fill(&network, 4 * 256);
    network.ask("ADD", "first").exhausted();
    // The index is from the files by now.
    let calls = system_calls(&network, "ADD", "c1");
    assert!(calls < 100, "{calls} system calls");
    let status = system_calls(&network, "STATUS", "");
    assert!(status < 100, "{status} system calls");
    network.ask("ADD", "c1").exhausted();
    network.ask("DEL", "x7").ok();
    assert_eq!(network.ask("ADD", "c1").address(), "10.8.0.7");
}

#[test]
fn leases_that_nobody_touched_are_not_read_again() {
    let (network, reference) = (Network::new("10.8.0.0/22"), reference());
    fill(&network, 900);
    network.ask("ADD", "mine").ok();
    network.call(&reference, "ADD", "theirs").ok();
    let calls = system_calls(&network, "DEL", "theirs");
    assert!(calls < 900 + 120, "{calls} system calls for 900 leases");
    assert_eq!(network.leases().len(), 901);
}

/// Whether an ADD succeeds with so much address space, in KiB.
fn is_enough(network: &Network, id: &str, kibibytes: usize) -> bool {
    let mut command = Command::new("sh");
    command.args(["-euc", "ulimit -v $1; exec \"$0\""]).arg(ours()).arg(kibibytes.to_string());
    network.prepare(&mut command, "ADD", id);
    command.output().unwrap().status.success()
}

#[test]
fn after_the_reference_wrote_a_call_takes_few_bytes_for_each_lease() {
    let empty = Network::new("10.8.0.0/16");
    let least =
        (512..65_536).step_by(256).find(|&size| is_enough(&empty, &format!("c{size}"), size)).unwrap();
    let network = Network::new("10.8.0.0/16");
    fill(&network, 10_000);
    network.ask("ADD", "first").ok();
    network.call(&reference(), "ADD", "theirs").ok();
    assert!(is_enough(&network, "second", least + 1024), "{least} KiB and 1 MiB are not enough");
    network.ask("DEL", "theirs").ok();
    assert_eq!(network.leases().len(), 10_000 + 2);
}

/// ADD, CHECK and DEL are right whatever happens to the index before each of them.
fn check_with(damage: impl Fn(&Network)) {
    let network = Network::new("10.8.0.0/24");
    for number in 0..20 {
        network.ask("ADD", &format!("c{number}")).ok();
    }
    damage(&network);
    network.ask("DEL", "c3").ok();
    damage(&network);
    network.ask("CHECK", "c4").ok();
    damage(&network);
    assert!(network.ask("ADD", "c5").error().1.contains("duplicate"));
    damage(&network);
    assert_eq!(network.ask("ADD", "new").address(), "10.8.0.22");
    damage(&network);
    network.ask("DEL", "new").ok();
    assert_eq!(network.leases().len(), 19);
}

#[test]
fn a_deleted_index_is_made_anew() {
    check_with(|network| drop(std::fs::remove_file(network.index())));
    check_with(|network| drop(std::fs::remove_dir_all(network.data_dir().join(".host-local-ipam"))));
}

#[test]
fn a_damaged_index_is_made_anew() {
    check_with(|network| std::fs::write(network.index(), "nonsense").unwrap());
    check_with(|network| {
        let mut bytes = std::fs::read(network.index()).unwrap();
        for byte in bytes.iter_mut().skip(512) {
            *byte ^= 0x55;
        }
        std::fs::write(network.index(), bytes).unwrap();
    });
    check_with(|network| {
        let mut bytes = std::fs::read(network.index()).unwrap();
        bytes[512..].fill(0);
        std::fs::write(network.index(), bytes).unwrap();
    });
    check_with(|network| {
        drop(std::fs::remove_file(network.index()));
        drop(std::fs::create_dir(network.index()));
    });
}

#[test]
fn an_index_from_before_is_noticed() {
    let network = Network::new("10.8.0.0/24");
    network.ask("ADD", "c1").ok();
    let old = std::fs::read(network.index()).unwrap();
    network.ask("ADD", "c2").ok();
    network.ask("DEL", "c1").ok();
    std::fs::write(network.index(), old).unwrap();
    network.ask("DEL", "c2").ok();
    assert!(network.leases().is_empty());
}

#[test]
fn what_the_reference_wrote_meanwhile_is_noticed_at_once() {
    let (network, reference) = (Network::new("10.8.0.0/24"), reference());
    for round in 0..20 {
        let (mine, theirs) = (format!("m{round}"), format!("t{round}"));
        network.ask("ADD", &mine).ok();
        network.call(&reference, "ADD", &theirs).ok();
        assert!(network.ask("ADD", &theirs).error().1.contains("duplicate"));
        network.call(&reference, "DEL", &mine).ok();
        assert!(!network.ask("CHECK", &mine).success);
        network.ask("DEL", &theirs).ok();
    }
    assert!(network.leases().is_empty());
}

#[test]
fn empty_and_unreadable_files_are_free_when_their_turn_comes() {
    let network = Network::new("10.8.0.0/29");
    network.write("10.8.0.2", "");
    network.write("10.8.0.3", "\0\0\0\0\0\0\0");
    network.write("10.8.0.4", "two words");
    for (id, address) in [("c1", "10.8.0.2"), ("c2", "10.8.0.3"), ("c3", "10.8.0.4"), ("c4", "10.8.0.5")] {
        assert_eq!(network.ask("ADD", id).address(), address);
    }
    network.write("10.8.0.6", "");
    assert_eq!(network.add_with_args("c5", "IP=10.8.0.6").address(), "10.8.0.6");
    network.ask("ADD", "c6").exhausted();
}
