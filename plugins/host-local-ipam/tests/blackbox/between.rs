//! What another call does between two system calls of one: each is stopped behind each of them, one after the other, and
//! the other one comes to its end, or has to wait, before it goes on. What comes of both is what comes of one after the
//! other, in either order.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::json;

use crate::calls::{Answer, Network, content, ours, reference};
use crate::crash::moments;

/// Where a call that another one may keep out has come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Now {
    Ended,
    /// For a lock.
    Waiting,
}

/// Looks at `child` until it has ended or waits for a lock.
pub(crate) fn ends_or_waits(child: &mut Child) -> Now {
    let waiter = format!(" {} ", child.id());
    loop {
        if child.try_wait().unwrap().is_some() {
            return Now::Ended;
        }
        // Lines of those who wait begin with an arrow (proc_locks(5)).
        let locks = std::fs::read_to_string("/proc/locks").unwrap();
        if locks.lines().any(|line| line.contains("->") && line.contains(&waiter)) {
            return Now::Waiting;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// A call of ours, stopped behind the given system call (`name:when=number`); `meanwhile` runs, and the call goes on.
pub(crate) fn stopped_behind<T>(
    network: &Network,
    verb: &str,
    id: &str,
    call: &str,
    meanwhile: impl FnOnce() -> T,
) -> (Answer, T) {
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new("strace");
    command.args(["-f", "-e", &format!("inject={call}:signal=STOP"), "-o"]).arg(trace.path()).arg(ours());
    network.prepare(&mut command, verb, id);
    let mut child = command.spawn().expect("strace has to be installed");
    let stopped = loop {
        let traced = std::fs::read_to_string(trace.path()).unwrap();
        if let Some(line) = traced.lines().find(|line| line.contains("--- stopped by SIGSTOP ---")) {
            break line.split_whitespace().next().unwrap().to_owned();
        }
        assert!(child.try_wait().unwrap().is_none(), "not stopped: {traced}");
        std::thread::sleep(Duration::from_millis(1));
    };
    let told = meanwhile();
    assert!(Command::new("kill").args(["-CONT", &stopped]).status().unwrap().success());
    (Answer::of(&child.wait_with_output().unwrap()), told)
}

/// What the other one does, and how it is called.
type Other = (&'static str, fn(&Network) -> Command);

const OTHERS: [Other; 7] = [
    ("ADD of another", |network| network.command(ours(), "ADD", "other")),
    ("ADD of the same", |network| network.command(ours(), "ADD", "victim")),
    ("DEL of the same", |network| network.command(ours(), "DEL", "victim")),
    ("GC", |network| network.command(ours(), "GC", "")),
    ("release", |network| {
        let mut command = network.command(ours(), "", "");
        command.env_remove("CNI_COMMAND").args(["release", "net1", "10.8.0.4", "--data-dir"]);
        command.arg(network.data_dir());
        command
    }),
    ("the reference's ADD", |network| network.command(&reference(), "ADD", "other")),
    ("the reference's DEL", |network| network.command(&reference(), "DEL", "victim")),
];

/// Five addresses to lease, two of them leased; `others` are as valid as they are, and the victim is not.
fn prepared() -> Network {
    let mut network = Network::with(json!({"subnet": "10.8.0.0/29", "rangeEnd": "10.8.0.7"}));
    let valid = ["a", "b", "other"].map(|id| json!({"containerID": id, "ifname": "eth0"}));
    network.conf["cni.dev/valid-attachments"] = json!(valid);
    for id in ["a", "b"] {
        network.ask("ADD", id).ok();
    }
    network
}

fn with_the_victim() -> Network {
    let network = prepared();
    network.ask("ADD", "victim").ok();
    network
}

/// Both answers and all files.
type Outcome = ([Answer; 2], BTreeMap<String, Vec<u8>>);

/// What comes of `verb` and `other`, one after the other, in both orders.
fn in_turn(verb: &str, ready: fn() -> Network, other: Other) -> [Outcome; 2] {
    let theirs = |network: &Network| Answer::of(&other.1(network).output().unwrap());
    let (first, second) = (ready(), ready());
    let before = first.ask(verb, "victim");
    let answers = [before, theirs(&first)];
    let earlier = theirs(&second);
    [(answers, first.files()), ([second.ask(verb, "victim"), earlier], second.files())]
}

fn stopped_everywhere(verb: &str, ready: fn() -> Network) {
    let wanted = OTHERS.map(|other| in_turn(verb, ready, other));
    let mut waited = 0;
    for (step, (call, number)) in moments(&ready(), verb).into_iter().enumerate() {
        // There is no behind.
        if call == "exit_group" {
            continue;
        }
        let place = step % OTHERS.len();
        let (name, other) = OTHERS[place];
        let moment = format!("{verb} stopped behind {call} {number}, {name}");
        let network = ready();
        let (answer, (theirs, now)) =
            stopped_behind(&network, verb, "victim", &format!("{call}:when={number}"), || {
                let mut child = other(&network).spawn().unwrap();
                let now = ends_or_waits(&mut child);
                (child, now)
            });
        waited += usize::from(now == Now::Waiting);
        let theirs = Answer::of(&theirs.wait_with_output().unwrap());
        let outcome = ([answer, theirs], network.files());
        assert!(wanted[place].contains(&outcome), "{moment}: {outcome:?}, not one of {:?}", wanted[place]);
        check_index(&network, &moment);
    }
    assert!(waited > 10, "only {waited} waited");
}

/// The index tells what the files do: whose the leases are, and which addresses are free.
fn check_index(network: &Network, moment: &str) {
    let before = network.leases();
    for id in ["a", "b", "victim", "other"] {
        let held = before.values().any(|holder| *holder == content(id));
        assert_eq!(network.ask("CHECK", id).success, held, "{moment}: {id}");
    }
    let free = 5 - before.len();
    let leased: BTreeSet<String> =
        (0..free).map(|number| network.ask("ADD", &format!("c{number}")).address()).collect();
    assert!(leased.len() == free && leased.iter().all(|address| !before.contains_key(address)), "{moment}");
    network.ask("ADD", "late").exhausted();
}

#[test]
fn an_add_and_whatever_another_call_does_come_to_the_same_as_in_turn() {
    stopped_everywhere("ADD", prepared);
}

#[test]
fn a_del_and_whatever_another_call_does_come_to_the_same_as_in_turn() {
    stopped_everywhere("DEL", with_the_victim);
}

#[test]
fn a_gc_and_whatever_another_call_does_come_to_the_same_as_in_turn() {
    stopped_everywhere("GC", with_the_victim);
}
