//! A host with a bridge and containers on it, and the records of these.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use alias_dns::daemon::{self, Client, ClientError};
use alias_dns::domain_name::DomainName;
use alias_dns::records::disk::Store;
use alias_dns::records::{Record, RecordKey};
use alias_dns::state_dir::StateDir;
use alias_dns::zone::Listener;
use cni_types::Attachment;
use ipnetwork::IpNetwork;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The state directory of every test's own host.
pub(crate) const STATE: &str = "/run/cni/alias-dns/test";

/// The bridge's addresses.
pub(crate) const GATEWAY: &str = "172.20.0.1";
pub(crate) const GATEWAY_V6: &str = "fd00:20::1";

/// Runs a command line, which has to succeed.
pub(crate) fn run(line: &str) {
    let output = Command::new("sh").args(["-c", line]).output().expect("sh");
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Makes a host with `br0`, and the containers `c1` (172.20.0.2) and `c2` (172.20.0.3) as network namespaces.
pub(crate) fn host() {
    run("mount -t tmpfs tmpfs /run && mkdir -p /run/netns && ip link set lo up");
    run(&format!(
        "ip link add br0 type bridge && ip addr add {GATEWAY}/16 dev br0 && \
         ip addr add {GATEWAY_V6}/64 dev br0 nodad && ip link set br0 up"
    ));
    container("c1", 2);
    container("c2", 3);
    await_address("ip", GATEWAY_V6);
}

/// Makes the container `name` on `br0`, with 172.20.0.`number`.
pub(crate) fn container(name: &str, number: u8) {
    run(&format!(
        "ip netns add {name} && ip link add v{number} type veth peer name eth0 netns {name} && \
         ip link set v{number} master br0 up && ip -n {name} link set lo up && \
         ip -n {name} addr add 172.20.0.{number}/16 dev eth0 && \
         ip -n {name} addr add fd00:20::{number}/64 dev eth0 nodad && ip -n {name} link set eth0 up && \
         ip -n {name} route add default via {GATEWAY}"
    ));
    await_address(&format!("ip -n {name}"), &format!("fd00:20::{number}"));
}

/// Waits until packets to an IPv6 address of one's own get there: the kernel makes the route for a new address in the
/// background, and until then they leave by the link. `ip` is how that program is called for the namespace.
pub(crate) fn await_address(ip: &str, address: &str) {
    let line = format!("{ip} -6 route show table local {address}");
    eventually(&format!("there is a route to {address}"), || {
        let output = Command::new("sh").args(["-c", &line]).output().expect("sh");
        output.status.success() && !output.stdout.is_empty()
    });
}

/// What `f` returns when it is called in the network namespace `name`.
pub(crate) fn inside<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> T {
    let netns = File::open(Path::new("/run/netns").join(name)).expect("netns");
    let thread = std::thread::spawn(move || {
        setns(netns, CloneFlags::CLONE_NEWNET).expect("setns");
        f()
    });
    thread.join().expect("thread in a netns")
}

/// The state of this test's host.
pub(crate) fn state() -> StateDir {
    StateDir::at(STATE)
}

/// Whose record that of `container` is.
pub(crate) fn key(container: &str) -> RecordKey {
    RecordKey::new("testnet", Attachment::new(container, "eth0").unwrap()).unwrap()
}

/// A record of one container with one name.
pub(crate) fn record(container: &str, address: &str, name: &str) -> Record {
    let v4: IpAddr = address.parse().unwrap();
    let v6 = address.rsplit('.').next().map(|last| format!("fd00:20::{last}").parse().unwrap());
    Record {
        key: key(container),
        boot: None,
        joined: 1,
        bridge: "br0".to_owned(),
        gateways: vec![format!("{GATEWAY}/16").parse().unwrap(), format!("{GATEWAY_V6}/64").parse().unwrap()],
        addresses: std::iter::once(v4).chain(v6).collect(),
        names: vec![DomainName::new(name).unwrap()],
        links: Vec::new(),
        domain: DomainName::new("testnet").unwrap(),
        other_domains: Vec::new(),
        ttl: 0,
        forward: true,
        upstreams: Vec::new(),
        netns: None,
    }
}

/// Does what ADD does: writes the record, and has the server answer by it.
pub(crate) fn put(container: &str, address: &str, name: &str) {
    put_record(&record(container, address, name));
}

/// On a machine so busy that a call runs out of its time, ADD is told to try later, and tried again.
pub(crate) fn put_record(record: &Record) {
    in_time("apply", || try_put_record(record));
}

/// What `call` of a client returns; it must not fail but by running out of its time, and then it is called again.
pub(crate) fn in_time<T>(what: &str, call: impl Fn() -> Result<T, ClientError>) -> T {
    let deadline = Instant::now() + BOUND;
    loop {
        let began = Instant::now();
        match call() {
            Ok(returned) => return returned,
            Err(error) if began.elapsed() >= daemon::PATIENCE && Instant::now() < deadline => {
                println!("{what} ran out of its time: {error}");
            }
            Err(error) => panic!("{what}: {error} after {:?}", began.elapsed()),
        }
    }
}

/// The same, which may fail as ADD may.
pub(crate) fn try_put_record(record: &Record) -> Result<(), ClientError> {
    Store::new(&state()).write(record).expect("write the record");
    Client::ensure(&state())?.apply(&record.key, &listeners_of(record)).map(drop)
}

/// Where the server answers by `record`.
pub(crate) fn listeners_of(record: &Record) -> Vec<Listener> {
    let of = |gateway: &IpNetwork| Listener { bridge: record.bridge.clone(), gateway: gateway.ip() };
    record.gateways.iter().map(of).collect()
}

/// What CHECK asks: whether the server answers by the record from its gateways, which are opened where that is possible.
pub(crate) fn listens(record: &Record) -> bool {
    in_time("check", || Client::ensure(&state())?.listens(&record.key, &listeners_of(record)))
}

/// Does what DEL does.
pub(crate) fn remove(container: &str) {
    Store::new(&state()).remove(&key(container)).expect("remove the record");
    in_time("remove", || {
        let server = Client::connect_existing(&state())?;
        match server.map(|mut server| server.remove(&[key(container)])) {
            // There is none, or it died on the way.
            None | Some(Err(ClientError::Lost(_))) => daemon::tend(&state()),
            Some(removed) => removed,
        }
    });
}

/// The parts of a server.
pub(crate) const PARTS: [&str; 3] = ["serve", "supervise", "guard"];

/// Kills every part of the server, and waits until they are gone.
pub(crate) fn kill_all() {
    let all = || PARTS.into_iter().flat_map(processes);
    // Stopped first: none shall see another one's end.
    all().for_each(|process| signal_if_there(process, Signal::SIGSTOP));
    let is_part = |line: &[u8]| PARTS.iter().any(|part| line == command_line(part));
    eventually("all are gone", || {
        // One that was being started when the others were stopped has a name only now, or not even yet. All are looked
        // at in one pass: one that takes the name of another part meanwhile is neither.
        let left = running(|line| line.is_empty() || is_part(line));
        all().for_each(|process| signal_if_there(process, Signal::SIGKILL));
        left.is_empty()
    });
}

/// A process that has just ended by itself needs no signal.
pub(crate) fn signal_if_there(process: Pid, signal: Signal) {
    let _ = kill(process, signal);
}

/// The processes that are that part of a server.
pub(crate) fn processes(part: &str) -> Vec<Pid> {
    running(|line| line == command_line(part))
}

/// How that part of a server was called.
fn command_line(part: &str) -> Vec<u8> {
    let name = if part == "guard" { "cni-names" } else { "alias-dns" };
    format!("{name}\0{part}\0").into_bytes()
}

/// The processes whose arguments are `wanted`; those of one that is just being executed are empty.
fn running(wanted: impl Fn(&[u8]) -> bool) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let status = || std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        // One that has ended has none any more.
        let has_ended =
            || !status().lines().any(|line| line.starts_with("State:") && !line.contains(['Z', 'X']));
        if wanted(&line) && !(line.is_empty() && has_ended()) {
            found.push(Pid::from_raw(id));
        }
    }
    found
}

/// Whether a process waits for something.
pub(crate) fn is_asleep(process: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:\tS"))
}

/// Sends `signal` to that part of the server.
pub(crate) fn signal(part: &str, signal: Signal) {
    for process in processes(part) {
        signal_if_there(process, signal);
    }
}

/// How long anything may take that is waited for. Far more than it needs: it only ends a test that is broken.
pub(crate) const BOUND: Duration = Duration::from_secs(60);

/// Waits until there is one of each part, which goes by its own name.
pub(crate) fn settled() {
    wait(
        || PARTS.iter().all(|part| processes(part).len() == 1),
        || {
            let found: Vec<_> = PARTS.iter().map(|part| (part, processes(part))).collect();
            format!("there is one of each: {found:?}")
        },
    );
}

/// Waits until `holds`, for a minute at most.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) {
    wait(holds, || what.to_owned());
}

fn wait(holds: impl Fn() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + BOUND;
    while !holds() {
        assert!(Instant::now() < deadline, "not so within a minute: {}", what());
        std::thread::sleep(Duration::from_millis(5));
    }
}
