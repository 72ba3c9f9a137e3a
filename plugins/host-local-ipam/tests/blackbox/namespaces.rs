//! Leases of containers whose network namespace is gone, without a DEL and without a reboot.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::calls::{Answer, Network, content, ours, reference};
use crate::reboot::command_in;

/// What an ordinary user needs to make other namespaces.
fn users() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("--map-root-user")
}

/// A process that keeps a namespace, until this is dropped.
struct Keeper(Child);

impl Keeper {
    /// Runs a shell in namespaces of its own, and waits until it says that it is ready.
    fn run(script: &str, namespaces: &[&str]) -> Self {
        let mut child = Command::new("unshare")
            .args(users())
            .args(namespaces)
            .args(["sh", "-c", &format!("{script}; echo; exec sleep 600")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        Self(child)
    }

    /// One that is in a network namespace of its own.
    fn new() -> Self {
        Self::run(":", &["--net"])
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn ask_in(netns: &Path, network: &Network, verb: &str, id: &str) -> Answer {
    Answer::of(&network.command(ours(), verb, id).env("CNI_NETNS", netns).output().unwrap())
}

/// Who looks for namespaces enters each, and is found in it by whoever looks at the same time: so there is one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A network of two addresses.
fn network() -> Network {
    Network::with(json!({"subnet": "10.8.0.0/29", "rangeStart": "10.8.0.2", "rangeEnd": "10.8.0.3"}))
}

/// Whether every process of the machine can be seen, without which nothing is proved: so it is in the virtual machine of
/// `scripts/test-vlan`. Says so where it cannot.
#[expect(clippy::print_stderr, reason = "the reason for a test that is skipped")]
fn sees_all() -> bool {
    let is_at = |inode, path| std::fs::metadata(path).is_ok_and(|namespace| namespace.ino() == inode);
    let all = is_at(0xefff_fffc, "/proc/self/ns/pid")
        && is_at(0xefff_fffd, "/proc/self/ns/user")
        && std::fs::metadata("/proc/1/ns/net").is_ok();
    if !all {
        eprintln!("skipped: not every process of this machine can be seen (the virtual machine tests that)");
    }
    all
}

/// Asks for the address that the dead have: it is had where their death can be proved.
fn assert_had_again(network: &Network, netns: &Path, id: &str) {
    let answer = ask_in(netns, network, "ADD", id);
    if sees_all() { answer.ok() } else { answer.exhausted() }
}

fn states(network: &Network) -> Vec<(String, String)> {
    let printed = network.type_words(&["list", "net1", "--json"]).stdout;
    let rows: Vec<Value> = serde_json::from_slice(&printed).unwrap();
    let word = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.iter().map(|row| (word(row, "containerID"), word(row, "state"))).collect()
}

#[test]
fn a_full_range_is_had_again_from_the_dead_and_never_from_the_living() {
    let _alone = alone();
    let network = network();
    let [dies, lives, comes] = [(); 3].map(|()| Keeper::new());
    ask_in(&dies.netns(), &network, "ADD", "dies").ok();
    ask_in(&lives.netns(), &network, "ADD", "lives").ok();
    ask_in(&comes.netns(), &network, "ADD", "comes").exhausted();
    assert_eq!(network.ask("STATUS", "").error().0, 50);
    assert_eq!(states(&network), [("dies".into(), "live".into()), ("lives".into(), "live".into())]);

    drop(dies);
    if sees_all() {
        network.ask("STATUS", "").ok();
        assert_eq!(states(&network), [("dies".into(), "stale".into()), ("lives".into(), "live".into())]);
    }
    assert_had_again(&network, &comes.netns(), "comes");
    ask_in(&comes.netns(), &network, "ADD", "another").exhausted();
    assert_eq!(network.ask("STATUS", "").error().0, 50);
    assert_eq!(network.leases()["10.8.0.3"], content("lives"));
}

#[test]
fn a_namespace_lives_in_a_thread_an_open_file_or_a_mount() {
    let _alone = alone();
    // A thread of this process.
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        let namespaces = if nix::unistd::geteuid().is_root() {
            CloneFlags::CLONE_NEWNET
        } else {
            // Only a process of one thread may have new users; the kept ones are all that is asked about then.
            CloneFlags::empty()
        };
        unshare(namespaces).unwrap();
        let (process, thread) = (std::process::id(), nix::unistd::gettid());
        tell.send(PathBuf::from(format!("/proc/{process}/task/{thread}/ns/net"))).unwrap();
        let _ = ended.recv();
    });
    let in_thread = told.recv().unwrap();

    // A file that is open here, of a namespace that its process has left.
    let keeper = Keeper::new();
    let file = File::open(keeper.netns()).unwrap();
    drop(keeper);
    let in_file = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));

    // A mount that only another mount namespace has.
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("a name with space");
    std::fs::write(&place, "").unwrap();
    let mount = format!("unshare --net mount --bind /proc/self/ns/net '{}'", place.display());
    let mounter = Keeper::run(&mount, &["--mount"]);
    let in_mount = PathBuf::from(format!("/proc/{}/root{}", mounter.0.id(), place.display()));

    let last = Keeper::new();
    for kept in [in_thread, in_file, in_mount] {
        let network = network();
        let dies = Keeper::new();
        ask_in(&kept, &network, "ADD", "kept").ok();
        ask_in(&dies.netns(), &network, "ADD", "dies").ok();
        drop(dies);
        assert_had_again(&network, &last.netns(), "comes");
        ask_in(&last.netns(), &network, "ADD", "another").exhausted();
        assert_eq!(network.leases()["10.8.0.2"], content("kept"), "{}", kept.display());
    }
    drop((file, mounter, end));
    thread.join().unwrap();
}

#[test]
fn what_the_dead_held_is_had_by_whoever_asks_for_it_and_by_who_comes_back() {
    let _alone = alone();
    if !sees_all() {
        return;
    }
    let network = network();
    let first = Keeper::new();
    ask_in(&first.netns(), &network, "ADD", "c1").ok();
    let (code, msg) = ask_in(&first.netns(), &network, "ADD", "c1").error();
    assert!(code == 11 && msg.contains("has been allocated to c1"), "{msg}");
    drop(first);

    let second = Keeper::new();
    ask_in(&second.netns(), &network, "ADD", "c1").ok();
    assert_eq!(network.leases().len(), 1, "the address of the namespace that is gone was not given back");
    let address = network.leases().into_keys().next().unwrap();
    let ask_for_it = |id: &str| {
        let mut command = network.command(ours(), "ADD", id);
        let args = format!("IP={address}");
        Answer::of(&command.env("CNI_NETNS", second.netns()).env("CNI_ARGS", args).output().unwrap())
    };
    assert_eq!(ask_for_it("c2").error().0, 11);
    let third = Keeper::new();
    network.ask("DEL", "c1").ok();
    ask_in(&third.netns(), &network, "ADD", "c3").ok();
    let address = network.leases().into_keys().next().unwrap();
    drop(third);
    let mut command = network.command(ours(), "ADD", "c2");
    let args = format!("IP={address}");
    let answer =
        Answer::of(&command.env("CNI_NETNS", second.netns()).env("CNI_ARGS", args).output().unwrap());
    assert_eq!(answer.address(), address);
}

#[test]
fn gc_without_a_list_releases_what_the_dead_held() {
    let _alone = alone();
    if !sees_all() {
        return;
    }
    let network = network();
    let [dies, lives] = [(); 2].map(|()| Keeper::new());
    ask_in(&dies.netns(), &network, "ADD", "dies").ok();
    ask_in(&lives.netns(), &network, "ADD", "lives").ok();
    drop(dies);
    network.ask("GC", "").ok();
    let holders: Vec<String> = network.leases().into_values().collect();
    assert_eq!(holders, [content("lives")]);
}

#[test]
fn the_namespace_of_a_lease_stays_known_while_the_reference_writes_and_is_forgotten_with_the_index() {
    let _alone = alone();
    let network = network();
    let [dies, comes] = [(); 2].map(|()| Keeper::new());
    ask_in(&dies.netns(), &network, "ADD", "dies").ok();
    network.call(&reference(), "ADD", "theirs").ok();
    drop(dies);
    if sees_all() {
        ask_in(&comes.netns(), &network, "ADD", "comes").ok();
        network.ask("DEL", "comes").ok();
    } else {
        network.ask("DEL", "dies").ok();
    }
    // Of the reference's lease nobody knows the namespace, nor of ours once the index is gone.
    let dies = Keeper::new();
    ask_in(&dies.netns(), &network, "ADD", "dies").ok();
    drop(dies);
    std::fs::remove_file(network.index()).unwrap();
    ask_in(&comes.netns(), &network, "ADD", "comes").exhausted();
}

#[test]
fn nothing_is_proved_where_processes_are_out_of_sight() {
    let _alone = alone();
    let network = network();
    let [dies, lives] = [(); 2].map(|()| Keeper::new());
    ask_in(&dies.netns(), &network, "ADD", "dies").ok();
    ask_in(&lives.netns(), &network, "ADD", "lives").ok();
    drop(dies);
    let mut command = Command::new("unshare");
    command.args(users()).args(["--pid", "--fork", "--mount-proc"]).arg(ours());
    network.prepare(&mut command, "ADD", "comes");
    Answer::of(&command.output().unwrap()).exhausted();
}

/// The kernel gives the same cookies in each boot.
#[test]
fn a_namespace_of_another_boot_proves_nothing() {
    let _alone = alone();
    let network = network();
    let [dies, lives] = [(); 2].map(|()| Keeper::new());
    let add = |boot: usize, netns: &Path, id: &str| {
        Answer::of(&command_in(boot, &network, "ADD", id).env("CNI_NETNS", netns).output().unwrap())
    };
    add(0, &dies.netns(), "dies").ok();
    drop(dies);
    // The reference has been writing since: nothing is known of the earlier boot's leases then.
    network.call(&reference(), "ADD", "theirs").ok();
    add(1, &lives.netns(), "comes").exhausted();
    assert_eq!(network.leases().into_values().collect::<Vec<_>>(), [content("dies"), content("theirs")]);
}
