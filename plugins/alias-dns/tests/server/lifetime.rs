//! How the server comes, stays and goes.

use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alias_dns::daemon::{self, Client, ClientError};
use alias_dns::domain_name::DomainName;
use alias_dns::records::disk::Store;
use alias_dns::records::{NetnsRef, Record, RecordKey};
use alias_dns::state_dir::StateDir;
use cni_types::{Attachment, BootId};
use domain::base::iana::Rtype;
use nix::sys::signal::{SigHandler, Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::Pid;

use crate::Test;
use crate::dns::{ask, ask_once, ask_within, connect as connect_over_tcp, query, receive, send};
use crate::serving::{firewalled, ruleset};
use crate::world::{
    BOUND, GATEWAY, PARTS, eventually, host, in_time, inside, is_asleep, key, kill_all, listens, processes,
    put, record, remove, run, settled, signal, signal_if_there, state, try_put_record,
};

/// More than a message to or from the server can tell of.
const NETWORKS: usize = 2600;

/// Where the state of all namespaces is.
const BASE: &str = "/run/cni/alias-dns";

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_worker_or_supervisor_loses_no_query", killed_in_turn),
    ("after_both_are_killed_every_name_is_back_without_help", both_killed),
    ("after_all_are_killed_the_next_verb_brings_every_name_back", all_killed),
    ("a_killed_guard_is_missed_by_the_next_add_or_del", guard_killed),
    ("a_guard_that_is_slow_to_start_guards_all_the_same", slow_guard),
    ("a_hangup_ends_no_part", hangup),
    ("killed_in_any_order_nothing_is_lost_and_nothing_doubled", kill_storm),
    ("where_the_state_outlives_a_boot_an_address_is_whose_it_is_now", outlived_boot),
    ("many_starts_at_once_make_one_server", start_race),
    ("what_is_acknowledged_holds_for_every_later_query", read_your_writes),
    ("ten_thousand_names_come_back_in_time_and_changes_count_at_once", ten_thousand),
    ("edits_by_hand_are_followed_and_broken_ones_cost_nothing", hand_edits),
    ("a_status_tells_what_is_passed_over_now_and_however_many_files_it_is", passed_over),
    ("what_happened_while_events_were_lost_is_seen_and_takes_no_known_name_away", lost_events),
    ("records_that_are_put_back_are_listened_for_by_the_next_verb", put_back),
    ("a_bridge_that_is_made_anew_is_listened_on_by_the_next_verb", bridge_made_anew),
    ("thousands_of_networks_are_told_of_brought_back_handed_over_and_closed", thousands_of_networks),
    ("where_the_kernel_watches_no_more_names_are_served_all_the_same", without_inotify),
    ("a_server_that_hangs_hangs_nobody", hanging_server),
    (
        "more_clients_than_it_has_descriptors_for_keep_a_server_neither_awake_nor_from_its_work",
        too_many_clients,
    ),
    ("gateways_that_take_too_many_descriptors_keep_nobody_else_from_coming_and_going", too_many_gateways),
    ("a_worker_that_cannot_read_the_records_takes_no_place", unread_at_start),
    ("processes_of_others_keep_no_part_from_being_replaced", processes_of_others),
    ("packets_are_parsed_without_rights", rights),
    ("the_callers_pipes_are_not_kept_open", pipes),
    ("a_newer_build_takes_over_without_a_lost_query", upgrade),
    ("a_newer_build_that_comes_too_late_leaves_the_older_one_alone", late_upgrade),
    ("a_server_without_records_leaves_and_leaves_nothing", leaving),
    ("the_server_of_a_unit_waits_for_another_one_and_stays", unit),
    ("the_last_del_leaves_nothing_where_no_server_runs", last_del_without_server),
    ("coming_and_going_at_once_loses_no_name", coming_and_going),
    ("what_is_removed_by_hand_is_missed_at_once", directory_removed),
    ("what_takes_the_place_of_the_control_socket_is_replaced", control_replaced),
    ("the_state_of_dead_namespaces_is_removed", dead_namespaces),
];

fn centos_1() -> Vec<String> {
    ask(GATEWAY, "centos-1", Rtype::A).map(|response| response.answer).unwrap_or_default()
}

fn hangup() {
    // Whoever starts this may have it ignored, as nohup does.
    // SAFETY: the default disposition installs no function.
    #[allow(unsafe_code, reason = "nix cannot tell a harmless disposition from a function")]
    unsafe { nix::sys::signal::signal(Signal::SIGHUP, SigHandler::SigDfl) }.unwrap();
    host();
    put("c1", "172.20.0.2", "centos-1");
    settled();
    // By a plugin, by the supervisor, by the worker.
    for killed in [None, Some("serve"), Some("supervise")] {
        if let Some(part) = killed {
            let before = processes(part);
            signal(part, Signal::SIGKILL);
            eventually("another one", || processes(part).len() == 1 && processes(part) != before);
        }
        settled();
        let before = PARTS.map(processes);
        PARTS.into_iter().for_each(|part| signal(part, Signal::SIGHUP));
        assert_eq!(centos_1(), ["A 172.20.0.2"]);
        assert_eq!(PARTS.map(processes), before);
    }
}

fn killed_in_turn() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    settled();
    for turn in 0..20 {
        let part = if turn % 3 == 1 { "supervise" } else { "serve" };
        signal(part, Signal::SIGKILL);
        assert_eq!(inside("c1", centos_1), ["A 172.20.0.2"], "turn {turn}, {part}");
        settled();
    }
}

fn both_killed() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    let mut gone = Vec::new();
    for turn in 0..10 {
        settled();
        let began = Instant::now();
        // The worker's end must not reach the supervisor while it lives.
        signal("supervise", Signal::SIGSTOP);
        signal("serve", Signal::SIGKILL);
        signal("supervise", Signal::SIGKILL);
        let answered = || inside("c1", || ask_once(GATEWAY, "centos-1", Duration::from_millis(50)));
        eventually(&format!("it is back in turn {turn}"), answered);
        gone.push(began.elapsed());
    }
    // How soon it can be back. A busy machine may take longer, but hardly each time.
    assert!(gone.iter().min() < Some(&Duration::from_secs(1)), "{gone:?}");
}

fn all_killed() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    kill_all();
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    kill_all();
    remove("c2");
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    kill_all();
    // What STATUS and GC do.
    tended();
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    kill_all();
    // What CHECK does.
    assert!(in_time("ask", || Client::ensure(&state())?.contains(&key("c1"))));
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}

fn guard_killed() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    settled();
    let guard = processes("guard");
    signal("guard", Signal::SIGKILL);
    eventually("it is gone", || processes("guard").is_empty());
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    put("c2", "172.20.0.3", "centos-2");
    eventually("there is another one", || processes("guard").len() == 1 && processes("guard") != guard);
    // The supervisor has its channel, too: a worker that it starts goes on being guarded.
    signal("serve", Signal::SIGKILL);
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    both_killed_once();
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    // With the last record, too: somebody has to clear away what the server leaves.
    settled();
    signal("guard", Signal::SIGKILL);
    eventually("it is gone", || processes("guard").is_empty());
    remove("c1");
    remove("c2");
    eventually("all is cleared away", || !Path::new(BASE).exists());
}

/// A boot that was longer than this one has left a record that says it was made later than anything today.
fn outlived_boot() {
    host();
    let left = Record { joined: u64::MAX, ..record("c9", "172.20.0.2", "left") };
    Store::new(&state()).write(&left).expect("write the record");
    // Of a boot that was shorter than this one, and of whose containers nobody has the address.
    let earlier = BootId::from_bytes([b'0'; BootId::LEN]);
    let dead = Record { boot: Some(earlier), ..record("c8", "172.20.0.8", "dead") };
    Store::new(&state()).write(&dead).expect("write the record");
    put("c1", "172.20.0.2", "centos-1");
    assert_eq!(inside("c1", centos_1), ["A 172.20.0.2"]);
    assert_eq!(ask(GATEWAY, "dead", Rtype::A).unwrap().rcode, "NXDOMAIN");
    assert_eq!(Store::new(&state()).read(&dead.key).unwrap(), None);
    assert!(Store::new(&state()).read(&left.key).unwrap().is_some());

    // As when somebody puts back what he has saved.
    Store::new(&state()).write(&dead).expect("write the record");
    for _ in 0..2 {
        put("c1", "172.20.0.2", "centos-1");
        assert_eq!(ask(GATEWAY, "dead", Rtype::A).unwrap().rcode, "NXDOMAIN");
        signal("serve", Signal::SIGKILL);
    }
    assert_eq!(ask(GATEWAY, "dead", Rtype::A).unwrap().rcode, "NXDOMAIN");
}

/// As on a busy machine: each part that a server starts is executed later than the server waits for its guard.
fn slow_guard() {
    host();
    let image = std::env::current_exe().unwrap();
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=execveat"]);
    traced.args(["-e", "inject=execveat:delay_enter=700000"]);
    let mut traced = traced.arg(image).args(["--put", "c1", "172.20.0.2", "centos-1"]).spawn().unwrap();
    eventually("there is a server", || !processes("serve").is_empty());
    for _ in 0..2 {
        both_killed_once();
        assert_eq!(centos_1(), ["A 172.20.0.2"]);
    }
    // What it follows ends with the test.
    traced.kill().unwrap();
    traced.wait().unwrap();
}

fn both_killed_once() {
    settled();
    signal("supervise", Signal::SIGSTOP);
    signal("serve", Signal::SIGKILL);
    signal("supervise", Signal::SIGKILL);
    eventually("it is back", || ask_once(GATEWAY, "centos-1", Duration::from_millis(50)));
}

fn kill_storm() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    let mut noise = 7_u32;
    for turn in 0..40 {
        for part in PARTS {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if noise >> 30 != 0 {
                processes(part).into_iter().for_each(|process| signal_if_there(process, Signal::SIGKILL));
            }
        }
        // Where everything has to start again and the machine is busy, ADD may be told to try later.
        put("c2", "172.20.0.3", &format!("turn-{turn}"));
        assert_eq!(centos_1(), ["A 172.20.0.2"], "turn {turn}");
        let name = format!("turn-{turn}");
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().answer, ["A 172.20.0.3"], "turn {turn}");
    }
    settled();
}

fn start_race() {
    host();
    let starters: Vec<_> = (2..22)
        .map(|number| {
            let arguments =
                [&format!("c{number}"), &format!("172.20.0.{number}"), &format!("centos-{number}")];
            Command::new("/proc/self/exe").arg("--put").args(arguments).spawn().unwrap()
        })
        .collect();
    for mut starter in starters {
        assert!(starter.wait().unwrap().success());
    }
    // One that is about to become another part still goes by the name of the first.
    settled();
    for number in 2..22 {
        let name = format!("centos-{number}");
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().answer, [format!("A 172.20.0.{number}")]);
    }
}

fn read_your_writes() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    for turn in 0..100 {
        let name = format!("turn-{turn}");
        put("c2", "172.20.0.3", &name);
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
        remove("c2");
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().rcode, "NXDOMAIN");
        if turn % 20 == 0 {
            signal("serve", Signal::SIGKILL);
        }
    }
}

fn ten_thousand() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    let store = Store::new(&state());
    for number in 0..10_000_u32 {
        let address = std::net::Ipv4Addr::from_bits(0xac14_0a00 + number).to_string();
        let mut record = record(&format!("many{number}"), &address, &format!("name-{number}"));
        record.addresses.truncate(1);
        store.write(&record).unwrap();
    }
    kill_all();
    // Without optimization, and beside all other tests, it may take longer than one call waits: then the next one
    // finds the server ready.
    tended();
    put("c2", "172.20.0.3", "centos-2");
    for (name, address) in
        [("name-0", "172.20.10.0"), ("name-9999", "172.20.49.15"), ("centos-2", "172.20.0.3")]
    {
        assert_eq!(ask(GATEWAY, name, Rtype::A).unwrap().answer, [format!("A {address}")]);
    }
    for turn in 0..20 {
        let name = format!("turn-{turn}");
        put("c2", "172.20.0.3", &name);
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
        remove("c2");
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().rcode, "NXDOMAIN");
    }
    // By the supervisor, then by the guard: the same names again, and whoever asks meanwhile only waits.
    signal("serve", Signal::SIGKILL);
    assert_eq!(ask(GATEWAY, "name-5000", Rtype::A).unwrap().answer, ["A 172.20.29.136"]);
    both_killed_once();
    assert_eq!(ask(GATEWAY, "name-5000", Rtype::A).unwrap().answer, ["A 172.20.29.136"]);
}

fn hand_edits() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    let path = alias_dns::records::disk::Store::new(&state()).path(&key("c1"));
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, "{").unwrap();
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(ask(GATEWAY, "centos-1", Rtype::A).unwrap().rcode, "NXDOMAIN");
    std::fs::write(&path, text).unwrap();
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}

fn lost_events() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    let records = state().records().join("testnet");
    std::fs::write(records.join("c1:eth0"), "{").unwrap();
    signal("serve", Signal::SIGSTOP);
    // Each file is two events.
    let queue = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    for number in 0..=queue.trim().parse::<u32>().unwrap() / 2 {
        let path = records.join(format!(".new-{number}"));
        std::fs::write(&path, "").unwrap();
        std::fs::remove_file(path).unwrap();
    }
    std::fs::remove_file(records.join("c2:eth0")).unwrap();
    Store::new(&state()).write(&record("c3", "172.20.0.4", "centos-3")).unwrap();
    let write_on_other_network = |container, address, name| {
        let key = RecordKey::new("other", Attachment::new(container, "eth0").unwrap()).unwrap();
        Store::new(&state()).write(&Record { key, ..record(container, address, name) }).unwrap();
    };
    write_on_other_network("c4", "172.20.0.5", "centos-4");
    signal("serve", Signal::SIGCONT);
    let is_seen = |name| ask(GATEWAY, name, Rtype::A).unwrap().rcode == "NOERROR";
    eventually("what nobody told is seen", || is_seen("centos-3") && is_seen("centos-4"));
    write_on_other_network("c5", "172.20.0.6", "centos-5");
    eventually("a network that came meanwhile is followed", || is_seen("centos-5"));
    assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().rcode, "NXDOMAIN");
    // Its file cannot be read, which takes no name away that was known before.
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}

fn passed_over() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    let told =
        || in_time("ask", || Client::connect_existing(&state())?.expect("a server").status()).unreadable;
    let network = state().records().join("testnet");
    let path = network.join("c2:eth0");
    for content in ["{", "[]", ""] {
        std::fs::write(&path, content).unwrap();
        eventually("it is passed over", || told().len() == 1);
    }
    std::fs::remove_file(&path).unwrap();
    eventually("nothing is passed over", || told().is_empty());
    for number in 0..3000 {
        std::fs::write(network.join(format!("{number:0>60}:eth0")), "{").unwrap();
    }
    eventually("all are passed over", || told().last().is_some_and(|last| last == "and 2936 more"));
    assert_eq!(
        told()[0],
        format!("./testnet/{:0>60}:eth0: EOF while parsing an object at line 1 column 1", 0)
    );
}

fn put_back() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    put("c2", "172.20.0.3", "centos-2");
    let network = state().records().join("testnet");
    let away = || {
        let server = || in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
        std::fs::rename(&network, "/run/away").unwrap();
        eventually("nobody listens", || server().listeners.is_empty());
        std::fs::rename("/run/away", &network).unwrap();
        eventually("the records are back", || server().records == 2);
    };
    away();
    // What CHECK does.
    assert!(listens(&record("c1", "172.20.0.2", "centos-1")));
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    away();
    // What STATUS does.
    tended();
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    // One on a bridge that is not there stays closed, and is told.
    let strange = Record { bridge: "br9".to_owned(), ..record("c3", "172.20.0.4", "centos-3") };
    Store::new(&state()).write(&strange).unwrap();
    eventually("the record is there", || in_time("ask", || Client::ensure(&state())?.contains(&key("c3"))));
    assert!(!listens(&strange));
    tended();
}

fn bridge_made_anew() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    let listens = || listens(&record("c1", "172.20.0.2", "centos-1"));
    let anew = || {
        run(&format!(
            "ip link delete br0 && ip link add br0 type bridge && ip addr add {GATEWAY}/16 dev br0 && ip link set br0 up"
        ));
    };
    anew();
    // What CHECK does.
    assert!(listens());
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    anew();
    // What STATUS does.
    tended();
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    run("ip link delete br0");
    assert!(!listens());
}

fn thousands_of_networks() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    // A hundred on a bridge, which is faster made than one on each.
    let subnet = |n: usize| format!("10.{}.{}", 100 + n / 250, n % 250);
    let bridge = |n: usize| format!("hundred-{}", n / 100);
    let bridges = (0..NETWORKS).step_by(100).map(|n| format!("link add {0} up type bridge\n", bridge(n)));
    let addresses = (0..NETWORKS).map(|n| format!("addr add {}.1/24 dev {}\n", subnet(n), bridge(n)));
    std::fs::write("/run/batch", bridges.chain(addresses).collect::<String>()).unwrap();
    run("ip -batch /run/batch");
    let network = |n: usize| Record {
        key: RecordKey::new(&format!("network-{n}"), key("c1").attachment().clone()).unwrap(),
        bridge: bridge(n),
        gateways: vec![format!("{}.1/24", subnet(n)).parse().unwrap()],
        addresses: vec![format!("{}.2", subnet(n)).parse().unwrap()],
        domain: DomainName::new(format!("network-{n}")).unwrap(),
        ..record("c1", "172.20.0.2", "centos-1")
    };
    let store = Store::new(&state());
    (0..NETWORKS).for_each(|n| store.write(&network(n)).unwrap());
    let status = || in_time("ask", || Client::connect_existing(&state())?.expect("a server").status());
    eventually("they are known", || status().networks.len() == NETWORKS + 1);
    eventually("they are listened for", || {
        // A busy machine does not open them all in the time of one call.
        let _ = daemon::tend(&state());
        status().listeners.iter().all(|listener| listener.port.is_some())
    });
    let answered = || {
        let gateway = format!("{}.1", subnet(NETWORKS - 1));
        ask(&gateway, "centos-1", Rtype::A).is_some_and(|response| response.answer.len() == 1)
    };
    assert!(answered());
    assert!(listens(&network(NETWORKS - 1)));
    let explained = in_time("query", || Client::ensure(&state())?.query("centos-1", "A", None));
    assert_eq!(explained.len(), NETWORKS + 2);
    let everything_is_back = || {
        answered()
            && status().listeners.iter().filter(|listener| listener.port.is_some()).count() == NETWORKS + 2
    };
    for part in ["supervise", "serve", "supervise"] {
        settled();
        let old = processes(part);
        signal(part, Signal::SIGKILL);
        eventually("another one is there", || processes(part).iter().any(|new| !old.contains(new)));
        eventually("everything is back", everything_is_back);
    }
    let old = processes("serve");
    run(&format!("cp /proc/{}/exe /run/newer", std::process::id()));
    eventually("a newer build has taken over", || {
        run("/run/newer --put c1 172.20.0.2 centos-1");
        let new = processes("serve");
        new.len() == 1 && new != old
    });
    assert!(everything_is_back());
    // What GC does.
    let keys: Vec<RecordKey> = (1..NETWORKS).map(|n| network(n).key).collect();
    assert!(keys.iter().all(|key| store.remove(key).unwrap()));
    in_time("remove", || Client::connect_existing(&state())?.expect("a server").remove(&keys));
    assert_eq!((status().records, status().listeners.len()), (2, 3));
}

fn without_inotify() {
    const ALONE: &str = "WITHOUT_INOTIFY";
    if std::env::var_os(ALONE).is_none() {
        // The limits are those of a user namespace, so that nobody else's are touched.
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]);
        command.arg("--mount-proc").arg(std::env::current_exe().unwrap());
        command.args(["--inside", "where_the_kernel_watches_no_more_names_are_served_all_the_same"]);
        assert!(command.env(ALONE, "").status().unwrap().success());
        return;
    }
    host();
    std::fs::write("/proc/sys/user/max_inotify_instances", "0").unwrap();
    put("c1", "172.20.0.2", "centos-1");
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    settled();
    let old = processes("serve");
    signal("serve", Signal::SIGKILL);
    eventually("another worker is there", || processes("serve").iter().any(|new| !old.contains(new)));
    eventually("the name is back", || centos_1() == ["A 172.20.0.2"]);
    remove("c1");
    eventually("it has left", || PARTS.iter().all(|part| processes(part).is_empty()));
}

fn hanging_server() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    signal("serve", Signal::SIGSTOP);
    let began = Instant::now();
    let error = Client::ensure(&state()).unwrap().contains(&key("c1")).unwrap_err();
    assert!(began.elapsed() < BOUND, "{:?}", began.elapsed());
    assert_eq!(cni_types::Error::from(error).code(), cni_types::ErrorCode::TRY_AGAIN_LATER);
    signal("serve", Signal::SIGCONT);
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}

fn too_many_clients() {
    host();
    let image = std::env::current_exe().unwrap();
    // The server that it starts may have as few.
    run(&format!("prlimit --nofile=40:40 {} --put c1 172.20.0.2 centos-1", image.display()));
    settled();
    let [server] = processes("serve")[..] else { panic!("one server") };
    let descriptors = || std::fs::read_dir(format!("/proc/{server}/fd")).unwrap().count();
    let control = UnixAddr::new(&state().path().join("control")).unwrap();
    let clients: Vec<OwnedFd> = (0..60)
        .map(|_| {
            let client =
                socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
            connect(client.as_raw_fd(), &control).unwrap();
            client
        })
        .collect();
    eventually("it has no more descriptors", || descriptors() == 40);
    let before = processor_time(server);
    std::thread::sleep(Duration::from_secs(1));
    let taken = processor_time(server) - before;
    assert!(taken < 20, "{taken} of 100 ticks");
    // Nor can this be read yet.
    Store::new(&state()).write(&record("c2", "172.20.0.3", "by-hand")).unwrap();
    // It cannot be taken yet.
    let mut stream = connect_over_tcp(GATEWAY);
    send(&mut stream, &query(7, "centos-1", Rtype::A, None));
    assert_eq!(ask(GATEWAY, "centos-1", Rtype::A).unwrap().answer, ["A 172.20.0.2"]);
    drop(clients);
    assert_eq!(receive(&mut stream).unwrap().answer, ["A 172.20.0.2"]);
    let by_hand = || ask(GATEWAY, "by-hand", Rtype::A).map(|response| response.answer);
    eventually("it is read", || by_hand().is_some_and(|answer| answer == ["A 172.20.0.3"]));
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
    assert_eq!(processes("serve"), [server]);
}

fn too_many_gateways() {
    host();
    let image = std::env::current_exe().unwrap();
    run(&format!("prlimit --nofile=40:40 {} --put c1 172.20.0.2 centos-1", image.display()));
    settled();
    let network = |n: usize| Record {
        key: RecordKey::new(&format!("network-{n}"), key("c1").attachment().clone()).unwrap(),
        gateways: vec![format!("10.9.{n}.1/24").parse().unwrap()],
        addresses: vec![format!("10.9.{n}.2").parse().unwrap()],
        ..record("c1", "172.20.0.2", "centos-1")
    };
    (0..20).for_each(|n| run(&format!("ip addr add 10.9.{n}.1/24 dev br0")));
    let put_on = |n| {
        in_time("apply", || match try_put_record(&network(n)) {
            Err(ClientError::Refused(reason)) => Ok(Err(reason)),
            put => put.map(Ok),
        })
    };
    let (last, reason) = (0..20).find_map(|n| put_on(n).err().map(|reason| (n, reason))).expect("a refusal");
    assert_eq!(reason, format!("too few descriptors are left to listen on 10.9.{last}.1 (RLIMIT_NOFILE)"));
    let take_back = |n| {
        Store::new(&state()).remove(&network(n).key).unwrap();
        in_time("remove", || {
            Client::connect_existing(&state())?.expect("a server").remove(&[network(n).key])
        });
    };
    take_back(last);
    // Whom it concerns not is attached and detached as ever.
    let centos_2 = || ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer;
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(centos_2(), ["A 172.20.0.3"]);
    remove("c2");
    assert_eq!(centos_2(), [""; 0]);
    take_back(0);
    assert_eq!(put_on(last), Ok(()));
    assert_eq!(
        ask(&format!("10.9.{last}.1"), "centos-1", Rtype::A).unwrap().answer,
        [format!("A 10.9.{last}.2")]
    );
}

fn unread_at_start() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    settled();
    let ([worker], [supervisor]) = (&processes("serve")[..], &processes("supervise")[..]) else {
        panic!("one of each")
    };
    eventually("the supervisor gives up its rights", || status_field(*supervisor, "NoNewPrivs:") == "1");
    let limit = |files: usize| {
        // As its own user, for that takes no right.
        let user = status_field(*supervisor, "Uid:");
        let who = format!("setpriv --reuid {user} --regid {user} --keep-groups");
        run(&format!("{who} prlimit --pid {supervisor} --nofile={files}:"));
    };
    // Enough for what the next one is handed over, and not for a look into a directory.
    limit(std::fs::read_dir(format!("/proc/{worker}/fd")).unwrap().count());
    signal_if_there(*worker, Signal::SIGKILL);
    let next = || processes("serve").into_iter().find(|next| next != worker);
    eventually("another one has begun", || next().is_some());
    let first = next();
    eventually("and has ended", || next() != first);
    limit(1024);
    eventually("the name is back", || {
        ask(GATEWAY, "centos-1", Rtype::A).is_some_and(|response| response.answer == ["A 172.20.0.2"])
    });
}

/// What the kernel tells of `process` under `name` (proc_pid_status(5)).
fn status_field(process: Pid, name: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().to_owned()
}

/// What `process` has taken of the processors so far, in ticks (proc_pid_stat(5)).
fn processor_time(process: Pid) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // Behind the name, which may have spaces in it.
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    fields.skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}

/// Whether the server may become another user than it was started by.
fn becomes_nobody() -> bool {
    nix::unistd::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")
}

fn processes_of_others() {
    host();
    let image = std::env::current_exe().unwrap();
    let put = format!("{} --put c1 172.20.0.2 centos-1", image.display());
    if becomes_nobody() {
        // Somebody else's, of a container that has no user of its own.
        run(
            "for n in 1 2 3 4; do setpriv --reuid 65534 --regid 65534 --clear-groups sleep 300 > /dev/null 2>&1 & done",
        );
        run(&format!("prlimit --nproc=2: {put}"));
    } else {
        run(&put);
    }
    for part in ["serve", "supervise"] {
        settled();
        let old = processes(part);
        signal(part, Signal::SIGKILL);
        eventually("another one is there", || processes(part).iter().any(|new| !old.contains(new)));
        assert_eq!(ask(GATEWAY, "centos-1", Rtype::A).unwrap().answer, ["A 172.20.0.2"]);
    }
}

fn rights() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    // The second worker is started by a supervisor that has no rights itself.
    for _ in 0..2 {
        for (part, filtered) in [("serve", Some("2")), ("supervise", None)] {
            settled();
            assert_eq!(centos_1(), ["A 172.20.0.2"]);
            let field = |name: &str| status_field(processes(part)[0], name);
            if part == "supervise" {
                // It has its name before it gives up its rights. A worker that answers has none any more.
                eventually("the supervisor gives up its rights", || field("NoNewPrivs:") == "1");
            }
            assert_eq!(field("NoNewPrivs:"), "1", "{part}");
            for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{part} {set}");
            }
            if becomes_nobody() {
                assert_eq!(field("Uid:"), "65534", "{part}");
            }
            if let Some(filtered) = filtered {
                assert_eq!(field("Seccomp:"), filtered, "{part}");
            }
        }
        signal("serve", Signal::SIGKILL);
    }
}

fn pipes() {
    host();
    let mut starter = Command::new("/proc/self/exe")
        .args(["--put", "c1", "172.20.0.2", "centos-1"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    let mut text = String::new();
    starter.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    starter.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert!(starter.wait().unwrap().success(), "{text}");
    assert!(began.elapsed() < BOUND);
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    settled();
    let server = processes("serve")[0];
    for fd in std::fs::read_dir(format!("/proc/{server}/fd")).unwrap().flatten() {
        let target = std::fs::read_link(fd.path()).unwrap();
        assert!(!target.to_string_lossy().starts_with("pipe:"), "{target:?}");
    }
}

fn upgrade() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    let old = processes("serve");
    run(&format!("cp /proc/{}/exe /run/newer", std::process::id()));
    let mut newer =
        Command::new("/run/newer").args(["--put", "c2", "172.20.0.3", "centos-2"]).spawn().unwrap();
    while newer.try_wait().unwrap().is_none() {
        assert_eq!(centos_1(), ["A 172.20.0.2"]);
    }
    assert!(newer.wait().unwrap().success());
    eventually("only the newer one is left", || processes("serve").len() == 1 && processes("serve") != old);
    for part in ["serve", "supervise"] {
        eventually("there is one", || processes(part).len() == 1);
        let image = std::fs::read_link(format!("/proc/{}/exe", processes(part)[0])).unwrap();
        assert_eq!(image.to_str(), Some("/run/newer"), "{part}");
    }
    signal("serve", Signal::SIGKILL);
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
    assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
    // An older one asks nobody to leave.
    settled();
    let newer = processes("serve");
    put("c3", "172.20.0.4", "centos-3");
    assert_eq!(processes("serve"), newer);
}

fn late_upgrade() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    settled();
    let old = processes("serve");
    run(&format!("cp /proc/{}/exe /run/newer", std::process::id()));
    let mut traced = Command::new("strace");
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=inotify_init1"]);
    // Its server watches the records only when ADD has long given it up.
    traced.args(["-e", "inject=inotify_init1:delay_enter=4000000", "/run/newer"]);
    let mut traced = traced.args(["--put", "c2", "172.20.0.3", "centos-2"]).spawn().unwrap();
    eventually("the newer one is on its way", || processes("serve").len() > 1);
    // Meanwhile others wait for either.
    let mut other =
        Command::new("/proc/self/exe").args(["--put", "c3", "172.20.0.4", "centos-3"]).spawn().unwrap();
    // The tracer ends with the last process that it follows, and so with the newer one.
    let began = Instant::now();
    let (mut asleep, mut looks) = (0, 0);
    while traced.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < BOUND, "{:?} beside {old:?}", processes("serve"));
        assert_eq!(centos_1(), ["A 172.20.0.2"]);
        if other.try_wait().unwrap().is_none() {
            looks += 1;
            asleep += u32::from(is_asleep(old[0]));
        }
    }
    assert!(other.wait().unwrap().success());
    // It is awake to answer, and not to see all the time that there is somebody whom it does not take yet.
    assert!(asleep * 2 >= looks, "asleep in {asleep} of {looks} looks");
    assert_eq!(processes("serve"), old);
    assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
    // Its guard went with the newer one's. The next ADD brings another, and another attempt.
    put("c2", "172.20.0.3", "centos-2");
    settled();
}

fn leaving() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    remove("c1");
    // One that is about to become another part still goes by the name of the first.
    eventually("there is one server", || processes("serve").len() == 1);
    std::thread::sleep(Duration::from_secs(8));
    eventually("it leaves", || PARTS.iter().all(|part| processes(part).is_empty()));
    assert!(!Path::new(BASE).exists(), "{}", listed());
    put("c1", "172.20.0.2", "centos-1");
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}

fn unit() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    settled();
    let earlier: Vec<Pid> = PARTS.into_iter().flat_map(processes).collect();
    let manager = UnixDatagram::bind("/run/notify").unwrap();
    manager.set_read_timeout(Some(BOUND)).unwrap();
    let said = || {
        let mut heard = [0; 128];
        // The end of a child interrupts a wait that has a limit.
        let len = loop {
            match manager.recv(&mut heard) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                received => break received.unwrap(),
            }
        };
        String::from_utf8_lossy(&heard[..len]).into_owned()
    };
    let mut command = Command::new("/proc/self/exe");
    let mut unit =
        command.arg0("alias-dns").arg("serve").env("NOTIFY_SOCKET", "/run/notify").spawn().unwrap();
    assert_eq!(said(), "READY=1\nSTATUS=waiting for the end of a server that a plugin has started");
    earlier.iter().for_each(|process| kill(*process, Signal::SIGSTOP).unwrap());
    earlier.into_iter().for_each(|process| signal_if_there(process, Signal::SIGKILL));
    assert_eq!(said(), "READY=1\nSTATUS=serving");
    assert_eq!(inside("c1", centos_1), ["A 172.20.0.2"]);
    remove("c1");
    std::thread::sleep(Duration::from_secs(11));
    assert!(unit.try_wait().unwrap().is_none(), "it does not leave for want of names");
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer, ["A 172.20.0.3"]);
    eventually("it is the only server", || processes("serve") == [Pid::from_raw(unit.id() as i32)]);
    unit.kill().unwrap();
    unit.wait().unwrap();
}

/// Does what STATUS and GC do.
fn tended() {
    in_time("tend", || alias_dns::daemon::tend(&state()));
}

/// All that stands in the state directories.
fn listed() -> String {
    let output = Command::new("find").arg("/run/cni").output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn last_del_without_server() {
    host();
    firewalled();
    let before = ruleset();
    let _udp = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
    for unfinished in [false, true] {
        put("c1", "172.20.0.2", "centos-1");
        put("c2", "172.20.0.3", "centos-2");
        assert!(
            ruleset().contains("cni-names-br0-172.20.0.1") && ruleset().matches("cni: names").count() > 6
        );
        kill_all();
        remove("c1");
        // One that is about to become another part still goes by the name of the first.
        eventually("c2 has a server", || processes("serve").len() == 1);
        kill_all();
        let path = Store::new(&state()).path(&key("c2"));
        if unfinished {
            std::fs::write(path.with_file_name(".new-c3:eth0"), "{").unwrap();
        }
        remove("c2");
        assert_eq!(ruleset(), before);
        assert_eq!(Path::new(BASE).exists(), unfinished, "{}", listed());
    }
    remove("c3");
    assert!(!Path::new(BASE).exists(), "{}", listed());
}

/// Some come while others take the last record away and clear up, with and without a server.
fn coming_and_going() {
    host();
    let until = Instant::now() + Duration::from_secs(5);
    let workers: Vec<_> = (2..6)
        .map(|number| {
            std::thread::spawn(move || {
                let (container, name) = (format!("w{number}"), format!("worker-{number}"));
                let address = format!("172.20.0.{}", number + 100);
                let mut rounds = 0;
                while Instant::now() < until || rounds < 2 {
                    put(&container, &address, &name);
                    eventually(&format!("{name} is answered"), || {
                        // What was asked may be lost with those that are killed.
                        let answer = ask_within(Duration::from_secs(2), GATEWAY, &name, Rtype::A);
                        if answer.is_none() {
                            // All have been killed since: the next verb brings the names back.
                            tended();
                        }
                        answer.is_some_and(|answer| {
                            assert_eq!(answer.answer, [format!("A {address}")]);
                            true
                        })
                    });
                    remove(&container);
                    rounds += 1;
                }
            })
        })
        .collect();
    let mut noise = 3_u32;
    while Instant::now() < until {
        noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_millis(150 + u64::from(noise >> 24)));
        for part in PARTS {
            processes(part).into_iter().for_each(|process| signal_if_there(process, Signal::SIGKILL));
        }
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    kill_all();
    tended();
    assert!(!Path::new(BASE).exists(), "{}", listed());
}

fn directory_removed() {
    host();
    for (removed, keeps_records) in
        [("test/control", true), ("test/lock", true), ("test/records", false), ("", false)]
    {
        put("c1", "172.20.0.2", "centos-1");
        let path = Path::new(BASE).join(removed);
        if path.is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
        put("c2", "172.20.0.3", "centos-2");
        assert_eq!(ask(GATEWAY, "centos-2", Rtype::A).unwrap().answer, ["A 172.20.0.3"], "{removed}");
        let expected: &[&str] = if keeps_records { &["A 172.20.0.2"] } else { &[] };
        assert_eq!(centos_1(), expected, "{removed}");
        settled();
    }
}

fn control_replaced() {
    host();
    // A copy of the socket, which nobody listens at, and what is none.
    let replacements = ["cp -a test/control aside", "echo > aside", "ln -s /nowhere aside"];
    put("c1", "172.20.0.2", "centos-1");
    for (number, replace) in replacements.into_iter().enumerate() {
        settled();
        run(&format!("cd {BASE} && {replace} && mv -fT aside test/control"));
        let (container, name) = (format!("d{number}"), format!("new-{number}"));
        put(&container, "172.20.0.3", &name);
        assert_eq!(ask(GATEWAY, &name, Rtype::A).unwrap().answer, ["A 172.20.0.3"], "{replace}");
        assert_eq!(centos_1(), ["A 172.20.0.2"], "{replace}");
        remove(&container);
    }
}

fn dead_namespaces() {
    host();
    let other = |name: &str, netns: Option<NetnsRef>| {
        let state = StateDir::at(Path::new(BASE).join(name));
        Store::new(&state).write(&Record { netns, ..record("c9", "172.20.0.9", "centos-9") }).unwrap();
        std::fs::write(state.path().join("lock"), "").unwrap();
        state
    };
    let mounts = inode("/proc/self/ns/mnt");
    let seen = |path: &str, inode| NetnsRef { path: path.into(), inode, seen_from: Some(mounts), link: None };
    let gone = seen("/run/netns/gone", 1);
    let elsewhere = NetnsRef { seen_from: Some(mounts + 1), ..gone.clone() };
    let (dead, alive, unknown, unseen, served) = (
        other("1-1", Some(gone.clone())),
        other("1-2", Some(seen("/run/netns/c1", inode("/run/netns/c1")))),
        other("1-3", None),
        other("1-5", Some(elsewhere)),
        other("1-4", Some(gone)),
    );
    let lock = std::fs::File::open(served.path().join("lock")).unwrap();
    lock.try_lock().unwrap();
    put("c1", "172.20.0.2", "centos-1");
    eventually("the dead is forgotten", || !dead.path().exists());
    for kept in [alive, unknown, unseen, served] {
        assert!(kept.path().exists(), "{kept:?}");
    }
}

fn inode(path: &str) -> u64 {
    std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap())
}
