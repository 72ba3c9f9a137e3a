//! How the server comes, stays and goes.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alias_dns::daemon::Client;
use domain::base::iana::Rtype;
use nix::sys::signal::Signal;

use crate::Test;
use crate::dns::ask;
use crate::world::{GATEWAY, eventually, host, inside, key, processes, put, remove, run, signal, state};

pub(crate) const TESTS: &[Test] = &[
    ("a_killed_worker_or_supervisor_loses_no_query", killed_in_turn),
    ("after_both_are_killed_the_next_add_brings_every_name_back", both_killed),
    ("many_starts_at_once_make_one_server", start_race),
    ("what_is_acknowledged_holds_for_every_later_query", read_your_writes),
    ("edits_by_hand_are_followed_and_broken_ones_cost_nothing", hand_edits),
    ("a_server_that_hangs_hangs_nobody", hanging_server),
    ("packets_are_parsed_without_rights", rights),
    ("the_callers_pipes_are_not_kept_open", pipes),
    ("a_newer_build_takes_over_without_a_lost_query", upgrade),
    ("a_server_without_records_leaves", leaving),
];

fn centos_1() -> Vec<String> {
    ask(GATEWAY, "centos-1", Rtype::A).map(|response| response.answer).unwrap_or_default()
}

fn killed_in_turn() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    for turn in 0..20 {
        let part = if turn % 3 == 1 { "supervise" } else { "serve" };
        signal(part, Signal::SIGKILL);
        assert_eq!(inside("c1", centos_1), ["A 172.20.0.2"], "turn {turn}, {part}");
        eventually("there are both again", || {
            processes("serve").len() == 1 && processes("supervise").len() == 1
        });
    }
}

fn both_killed() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    signal("supervise", Signal::SIGSTOP);
    signal("serve", Signal::SIGKILL);
    signal("supervise", Signal::SIGKILL);
    eventually("both are gone", || processes("serve").is_empty() && processes("supervise").is_empty());
    put("c2", "172.20.0.3", "centos-2");
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
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
    assert_eq!((processes("serve").len(), processes("supervise").len()), (1, 1));
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

fn hanging_server() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    signal("serve", Signal::SIGSTOP);
    let began = Instant::now();
    let error = Client::ensure(&state()).unwrap().contains(&key("c1")).unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert_eq!(cni_types::Error::from(error).code(), cni_types::ErrorCode::TRY_AGAIN_LATER);
    signal("serve", Signal::SIGCONT);
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}

fn rights() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    // The second worker is started by a supervisor that has no rights itself.
    for _ in 0..2 {
        for (part, filtered) in [("serve", Some("2")), ("supervise", None)] {
            eventually("it runs", || processes(part).len() == 1);
            assert_eq!(centos_1(), ["A 172.20.0.2"]);
            let status = std::fs::read_to_string(format!("/proc/{}/status", processes(part)[0])).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_whitespace().nth(1).unwrap().to_owned()
            };
            assert_eq!(field("NoNewPrivs:"), "1", "{part}");
            for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
                assert_eq!(field(set), "0000000000000000", "{part} {set}");
            }
            if nix::unistd::geteuid().is_root()
                && std::fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295")
            {
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
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
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
    let newer = processes("serve");
    put("c3", "172.20.0.4", "centos-3");
    assert_eq!(processes("serve"), newer);
}

fn leaving() {
    host();
    put("c1", "172.20.0.2", "centos-1");
    remove("c1");
    assert_eq!(processes("serve").len(), 1);
    std::thread::sleep(Duration::from_secs(8));
    eventually("it leaves", || processes("serve").is_empty() && processes("supervise").is_empty());
    put("c1", "172.20.0.2", "centos-1");
    assert_eq!(centos_1(), ["A 172.20.0.2"]);
}
