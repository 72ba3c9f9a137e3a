//! ADD, CHECK and DEL of this plugin and of the reference, call by call in turn, with more and more leases in the
//! directory: `cargo bench -p host-local-ipam [LEASES...]`.
//!
//! Needs the reference `host-local` in `target/peers`, or in the directory that `CNI_TEST_PEERS` names.

#![allow(clippy::print_stdout, reason = "a table is what this program is for")]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

const VERBS: [&str; 3] = ["ADD", "CHECK", "DEL"];
/// Rounds with few leases, and with so many that a call of the reference takes a tenth of a second and more.
const ROUNDS: usize = 200;
const ROUNDS_WHEN_SLOW: usize = 15;
const SLOW_FROM: usize = 5_000;
/// A /16 whose every address is taken but for ten.
const NEARLY_FULL: usize = 65_533 - 10;

struct Side {
    program: PathBuf,
    data_dir: tempfile::TempDir,
    conf: PathBuf,
}

#[derive(Default)]
struct Times {
    wall: Vec<Duration>,
    cpu: Vec<Duration>,
}

impl Side {
    fn new(program: PathBuf, leases: usize) -> Self {
        let data_dir = tempfile::tempdir().unwrap();
        let network = data_dir.path().join("net1");
        std::fs::create_dir(&network).unwrap();
        for number in 0..leases {
            let name = format!("10.1.{}.{}", (number + 2) / 256, (number + 2) % 256);
            std::fs::write(network.join(name), format!("x{number}\r\neth0")).unwrap();
        }
        let conf = data_dir.path().join("conf");
        let text = format!(
            r#"{{"cniVersion":"1.0.0","name":"net1","type":"bridge","ipam":{{"type":"host-local",
               "dataDir":"{}","ranges":[[{{"subnet":"10.1.0.0/16"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}}}"#,
            data_dir.path().display()
        );
        std::fs::write(&conf, text).unwrap();
        Self { program, data_dir, conf }
    }

    fn call(&self, verb: &str, id: &str) -> (Duration, Duration) {
        let cpu = || {
            let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
            let spent = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
            Duration::from_micros(spent.try_into().unwrap())
        };
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", "/run/netns/there-is-none")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nowhere")
            .stdin(File::open(&self.conf).unwrap())
            .stdout(Stdio::null());
        let (cpu_before, begin) = (cpu(), Instant::now());
        let status = command.status().unwrap();
        let (wall, cpu) = (begin.elapsed(), cpu() - cpu_before);
        assert!(
            status.success(),
            "{} {verb} {id} with {}",
            self.program.display(),
            self.data_dir.path().display()
        );
        (wall, cpu)
    }
}

fn median(times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1000.0
}

fn measure(leases: usize, ours: &Path, reference: &Path) {
    let sides = [Side::new(ours.to_owned(), leases), Side::new(reference.to_owned(), leases)];
    let mut times: [[Times; VERBS.len()]; 2] = Default::default();
    for side in &sides {
        side.call("ADD", "warm-up");
    }
    for round in 0..if leases < SLOW_FROM { ROUNDS } else { ROUNDS_WHEN_SLOW } {
        let id = format!("c{round}");
        for (number, verb) in VERBS.into_iter().enumerate() {
            for (side, times) in sides.iter().zip(&mut times) {
                let (wall, cpu) = side.call(verb, &id);
                times[number].wall.push(wall);
                times[number].cpu.push(cpu);
            }
        }
    }
    let [mut ours, mut theirs] = times;
    for (verb, (ours, theirs)) in VERBS.into_iter().zip(ours.iter_mut().zip(&mut theirs)) {
        let (ours_wall, theirs_wall) = (median(&mut ours.wall), median(&mut theirs.wall));
        println!(
            "| {leases} | {verb} | {ours_wall:.2} | {theirs_wall:.2} | {:.0} | {:.2} | {:.2} |",
            theirs_wall / ours_wall,
            median(&mut ours.cpu),
            median(&mut theirs.cpu),
        );
        std::io::stdout().flush().unwrap();
    }
}

/// Peak resident memory of one call, in KiB, as the kernel keeps it for the largest child: so a smaller program has to
/// come first.
fn peak(program: &Path) -> i64 {
    let side = Side::new(program.to_owned(), 0);
    side.call("ADD", "c1");
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss()
}

fn main() {
    let ours = Path::new(env!("CARGO_BIN_EXE_host-local-ipam"));
    let peers = std::env::var_os("CNI_TEST_PEERS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers"), PathBuf::from);
    let reference = peers.join("host-local");
    assert!(reference.is_file(), "no {}: run scripts/setup, or set CNI_TEST_PEERS", reference.display());

    let memory = [peak(ours), peak(&reference)];
    let counts: Vec<usize> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    println!("| leases | call | ours ms | reference ms | ratio | ours CPU ms | reference CPU ms |");
    println!("|---|---|---|---|---|---|---|");
    for leases in if counts.is_empty() { vec![0, 1_000, 10_000, 60_000, NEARLY_FULL] } else { counts } {
        measure(leases, ours, &reference);
    }
    println!("\nMedians. Peak memory: ours {} KiB, reference {} KiB.", memory[0], memory[1]);
}
