//! The server of names as a process: killed in every way, on a host with a second network namespace, and gone without
//! a trace when the last container is.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use integration_tests::{Attachment, Container, Network, Snapshot, Space, Suite, World, wait_until};
use serde_json::{Value, json};

/// Everything that belongs to a server, as `pkill --full` finds it.
const ALL: &str = "alias-dns|cni-names";

/// The parts of a server, as they are called.
const PARTS: [&str; 3] = ["alias-dns serve", "alias-dns supervise", "cni-names guard"];

struct Story {
    world: World,
    testnet: Network,
}

impl Story {
    #[track_caller]
    fn new() -> Self {
        let world = World::new();
        let testnet = Network::example(&world, "testnet");
        Self { world, testnet }
    }

    #[track_caller]
    fn container(&self, name: &str) -> Container {
        let container = self.world.container(name);
        self.testnet.attach_as(&container, &named(&container));
        container
    }

    /// Ends every process of the server, and waits until none is left.
    #[track_caller]
    fn kill_all(&self) {
        let host = self.world.host();
        // A part that is just being executed has no name.
        wait_until("as many of each part", || self.is_whole().then_some(()));
        // Stopped first: none shall see another one's end, and start it again.
        host.run(&format!("pkill -STOP --full {ALL}")).success();
        wait_until("all are gone", || {
            // One that was being started when the others were stopped has a name only now.
            host.run(&format!("pkill -KILL --full {ALL}"));
            (!self.is_running()).then_some(())
        });
    }

    fn is_running(&self) -> bool {
        self.world.host().run(&format!("pgrep --full {ALL}")).status == 0
    }

    /// Whether every server has all of its parts.
    fn is_whole(&self) -> bool {
        let [workers, supervisors, guards] = PARTS.map(|part| {
            let found = self.world.host().command(["pgrep", "--full", "--exact", part]).run();
            found.stdout.lines().count()
        });
        workers > 0 && supervisors == workers && guards == workers
    }

    /// What alias-dns has below `/run`.
    fn state(&self) -> String {
        self.world.host().run("find /run/cni/alias-dns").stdout
    }

    fn rules(&self) -> String {
        self.world.host().run("nft --stateless list ruleset").success().to_owned()
    }
}

fn named(container: &Container) -> Attachment {
    Attachment::of(container).arg("IgnoreUnknown", "1").arg("CONTAINER_NAME", container.name())
}

#[test]
fn killed_all_at_once_it_is_back_for_the_next_query() {
    let story = Story::new();
    let (one, two) = (story.container("one"), story.container("two"));
    let mut back = Vec::new();
    for turn in 0..10 {
        // A part that was just started goes by the name of the one that started it, and would be killed with it.
        wait_until("there is each part", || story.is_whole().then_some(()));
        story.world.host().run("pkill -KILL --full alias-dns").success();
        let killed = Instant::now();
        for (container, name, address) in [(&two, "one", "172.20.0.2"), (&one, "two", "172.20.0.3")] {
            let asked = || container.run(&format!("dig +short +tries=1 +time=1 {name}")).stdout;
            wait_until(&format!("turn {turn}: {name} is back"), || {
                (asked() == format!("{address}\n")).then_some(())
            });
        }
        back.push(killed.elapsed());
    }
    // How soon it can be back. A busy machine may take longer, but hardly each time.
    assert!(back.iter().min() < Some(&Duration::from_secs(1)), "{back:?}");
}

#[test]
fn where_nothing_of_it_is_left_every_verb_brings_it_back() {
    let story = Story::new();
    let (one, two) = (story.container("one"), story.container("two"));
    let gone = story.container("gone");
    let verbs: [(&str, &dyn Fn()); 5] = [
        ("CHECK", &|| story.testnet.check(&named(&one)).unwrap()),
        ("STATUS", &|| story.testnet.status().unwrap()),
        ("GC", &|| story.testnet.gc(&[&named(&one), &named(&two), &named(&gone)]).unwrap()),
        ("DEL", &|| story.testnet.detach_as(&gone, &named(&gone))),
        ("ADD", &|| drop(story.container("new"))),
    ];
    for (verb, call) in verbs {
        story.kill_all();
        assert!(two.resolve("one").is_empty(), "{verb}: there is no server");
        call();
        assert_eq!(two.resolve("one"), ["172.20.0.2"], "{verb}");
    }
}

#[test]
fn after_the_last_container_nothing_is_left() {
    let story = Story::new();
    let host = story.world.host();
    host.run("iptables -A INPUT -p icmp -j ACCEPT").success();
    host.run("iptables -A INPUT -j DROP").success();
    let first = Snapshot::of(&story.world);
    for server_is_killed in [false, true] {
        let taken =
            host.start("dnsmasq --conf-file=/dev/null --no-daemon --no-resolv --listen-address=0.0.0.0");
        wait_until("port 53 is taken", || (host.run("ss -lnuH sport = 53").stdout.len() > 1).then_some(()));
        let (one, two) = (story.container("one"), story.container("two"));
        assert_eq!(two.resolve("one").len(), 1);
        assert!(story.rules().contains("cni-names-br-testnet-172.20.0.1"), "{}", story.rules());
        story.testnet.detach_as(&one, &named(&one));
        if server_is_killed {
            story.kill_all();
        }
        story.testnet.detach_as(&two, &named(&two));
        wait_until("the server is gone", || (!story.is_running()).then_some(()));
        assert_eq!(story.state(), "");
        taken.kill();
        taken.wait();
        for name in ["one", "two"] {
            story.world.remove_netns(name);
        }
        let differences = first.differences(&Snapshot::of(&story.world));
        let of_names =
            |line: &&String| line.contains("names") || line.contains("dport") || line.contains("alias-dns");
        assert_eq!(differences.iter().filter(of_names).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}

/// ADD or DEL of alias-dns alone in `host`, for a container of network testnet whose name is its id.
#[track_caller]
fn call(host: &Space, binary: &Path, bridge: &str, verb: &str, name: &str, address: &str) {
    let config: Value = json!({
        "cniVersion": "1.0.0", "name": "testnet", "type": "alias-dns",
        "args": { "cni": { "containerName": name } },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": bridge }, { "name": "eth0", "sandbox": "/run/netns/of-nobody" }],
            "ips": [{ "address": format!("{address}/16"), "gateway": "172.20.0.1", "interface": 1 }]
        }
    });
    let environment = [
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", name),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/"),
        ("CNI_NETNS", "/run/netns/of-nobody"),
    ];
    let command = host.command([binary]).stdin(config.to_string());
    environment.iter().fold(command, |command, (key, value)| command.env(key, value)).run().success();
}

/// Twenty residents, and eight workers that attach and detach on the same network all the time.
#[test]
fn in_a_storm_of_adds_and_dels_the_residents_resolve_at_every_moment() {
    const RESIDENTS: usize = 20;
    const WORKERS: usize = 8;
    const ROUNDS: usize = 15;
    /// How often the residents are asked at least while the storm lasts; on a busy machine it has to last longer for that.
    const ASKED: usize = 3;
    const MOST_ROUNDS: usize = 100 * ROUNDS;
    let story = Story::new();
    story.container("first");
    let (host, binary) = (story.world.host(), Suite::Ours.binary("alias-dns"));
    let residents: Vec<(String, String)> =
        (0..RESIDENTS).map(|number| (format!("resident-{number}"), format!("172.20.1.{number}"))).collect();
    for (name, address) in &residents {
        call(&host, &binary, "br-testnet", "ADD", name, address);
    }
    let mut questions = vec!["dig".to_owned()];
    for (name, _) in &residents {
        questions.extend(["@172.20.0.1", "+short", "+tries=1", "+time=30", name].map(str::to_owned));
    }
    let expected: String = residents.iter().map(|(_, address)| format!("{address}\n")).collect();
    let ask_all = || host.command(&questions).run().stdout;
    let asked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (host, binary, asked) = (&host, &binary, &asked);
                scope.spawn(move || {
                    let (name, address) = (format!("worker-{worker}"), format!("172.20.2.{worker}"));
                    let lasts = |round: &usize| *round < ROUNDS || asked.load(Ordering::Relaxed) < ASKED;
                    for _ in (0..MOST_ROUNDS).take_while(lasts) {
                        for verb in ["ADD", "DEL"] {
                            call(host, binary, "br-testnet", verb, &name, &address);
                        }
                    }
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            assert_eq!(ask_all(), expected, "after {asked:?} rounds");
            asked.fetch_add(1, Ordering::Relaxed);
        }
        assert!(asked.load(Ordering::Relaxed) >= ASKED, "{asked:?}");
    });
    assert_eq!(ask_all(), expected);
    assert!(host.run("dig +short @172.20.0.1 worker-0").stdout.is_empty());
}

/// A second host network namespace that has the same `/run`.
struct SecondHost<'w> {
    space: Space,
    world: &'w World,
}

impl SecondHost<'_> {
    fn call(&self, verb: &str, name: &str, address: &str) {
        call(&self.space, &Suite::Ours.binary("alias-dns"), "br0", verb, name, address);
    }

    fn resolve(&self, name: &str) -> String {
        let output = self.space.run(&format!("dig +short +tries=1 +time=30 @172.20.0.1 {name}"));
        output.stdout.lines().filter(|line| !line.starts_with(';')).collect()
    }

    fn directories(&self) -> usize {
        self.world.host().run("ls /run/cni/alias-dns").stdout.lines().count()
    }
}

#[test]
fn two_network_namespaces_with_one_run_directory_have_a_server_each() {
    let story = Story::new();
    let second = SecondHost { space: story.world.netns("second"), world: &story.world };
    for line in [
        "ip link set lo up",
        "ip link add br0 type bridge",
        "ip address add 172.20.0.1/16 dev br0",
        "ip link set br0 up",
    ] {
        second.space.run(line).success();
    }
    let one = story.container("one");
    second.call("ADD", "one", "172.20.5.5");
    second.call("ADD", "two", "172.20.6.6");
    assert_eq!(
        (second.resolve("one").as_str(), one.resolve("one").join("").as_str()),
        ("172.20.5.5", "172.20.0.2")
    );
    assert_eq!((second.resolve("two").as_str(), one.resolve("two").len()), ("172.20.6.6", 0));
    assert_eq!(second.directories(), 2);
    // One host's server is killed: the other's notices nothing, and each has its own names again.
    story.kill_all();
    story.testnet.status().unwrap();
    assert_eq!((second.resolve("one").as_str(), one.resolve("one").join("").as_str()), ("", "172.20.0.2"));
    second.call("DEL", "two", "172.20.6.6");
    assert_eq!(
        (second.resolve("one").as_str(), one.resolve("one").join("").as_str()),
        ("172.20.5.5", "172.20.0.2")
    );
    second.call("DEL", "one", "172.20.5.5");
    wait_until("the second host's server is gone without a trace", || {
        (second.directories() == 1).then_some(())
    });
    assert_eq!(one.resolve("one"), ["172.20.0.2"]);
}

#[test]
fn a_new_binary_takes_the_place_of_the_running_one() {
    let story = Story::new();
    let one = story.container("one");
    let host = story.world.host();
    let line = format!("{} status --json", Suite::Ours.binary("alias-dns").display());
    let status = || host.run(&line).json();
    let old = status();
    let binary = Suite::Ours.binary("alias-dns");
    host.run(&format!("cp {} /run/alias-dns", binary.display())).success();
    let asked =
        one.command(["sh", "-c", "for i in $(seq 200); do dig +short +tries=1 +time=30 one; done"]).start();
    call(&host, Path::new("/run/alias-dns"), "br-testnet", "ADD", "newer", "172.20.7.7");
    let answers = asked.wait().stdout;
    let unanswered = answers.lines().filter(|line| *line != "172.20.0.2").count();
    assert_eq!((unanswered, answers.lines().count()), (0, 200));
    let new = status();
    assert_ne!(old["pid"], new["pid"]);
    for part in PARTS {
        wait_until(&format!("{part} is the new one alone"), || {
            let pids = host.command(["pgrep", "--full", "--exact", part]).run().stdout;
            let images = pids.lines().map(|pid| host.run(&format!("readlink /proc/{pid}/exe")).stdout);
            (images.collect::<String>() == "/run/alias-dns\n").then_some(())
        });
    }
    assert_eq!(one.resolve("newer"), ["172.20.7.7"]);
}

/// Attaches the container by `bridge` alone; the configuration of alias-dns that comes next.
#[track_caller]
fn chained_after_bridge(world: &World, path: &str, container: &Container) -> Value {
    let bridge = json!({
        "cniVersion": "1.1.0", "name": "n", "type": "bridge", "bridge": "br0", "isGateway": true,
        "ipam": { "type": "host-local", "subnet": "10.1.2.0/24" }
    });
    let add = world.plugin("bridge").verb("ADD").container(container).env("CNI_PATH", path);
    let added = add.config(&bridge).run();
    json!({ "cniVersion": "1.1.0", "name": "n", "type": "alias-dns", "prevResult": added.json() })
}

#[test]
fn a_host_that_cannot_be_asked_is_not_said_to_lack_the_gateway() {
    let world = World::new();
    let path = world.install_plugins();
    let container = world.container("c1");
    let names = chained_after_bridge(&world, &path, &container);
    let tracer = ["strace", "-qq", "-o", "/dev/null", "-e", "inject=socket:error=EMFILE"];
    let add = world.traced_plugin(&tracer, "alias-dns").verb("ADD").container(&container);
    let refused = add.env("CNI_PATH", &path).config(&names).run();
    let msg = refused.error(5);
    assert!(msg.starts_with("look for the device that has 10.1.2.1: No file descriptors available"), "{msg}");
}

/// As before Linux 5.9, and under filters of system calls that are older than that one.
#[test]
fn without_close_range_too_nothing_of_the_callers_stays_open() {
    let world = World::new();
    let path = world.install_plugins();
    let container = world.container("c1");
    let names = chained_after_bridge(&world, &path, &container);
    // The tracer stays with the server, and would keep the test's pipes from their end.
    let script = "exec 9>/run/held >/run/stdout 2>/run/stderr
        exec strace -D -f -qq -o /run/trace -e trace=close_range -e inject=close_range:error=ENOSYS \"$@\"";
    let add = world.traced_plugin(&["sh", "-c", script, "sh"], "alias-dns").verb("ADD").container(&container);
    let status = add.env("CNI_PATH", &path).config(&names).run().status;
    let host = world.host();
    assert_eq!(status, 0, "{}", host.run("cat /run/stdout /run/stderr"));
    assert!(host.run("cat /run/trace").success().contains("ENOSYS"), "nobody was refused");
    let open = format!("for pid in $(pgrep --full '^({ALL})'); do readlink /proc/$pid/fd/*; done");
    let open = host.command(["sh", "-c", &open]).run();
    let open = open.stdout.lines().collect::<Vec<_>>();
    assert!(open.iter().any(|file| file.starts_with("socket:")), "no server was found: {open:?}");
    let callers: Vec<_> = open.iter().filter(|file| file.starts_with("/run/")).collect();
    assert!(
        !callers.iter().any(|file| ["/run/held", "/run/stdout", "/run/stderr"].contains(*file)),
        "{callers:?}"
    );
}
