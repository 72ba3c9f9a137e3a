//! Docker as the oracle: the same story is told to dockerd and to our plugins, and must be answered the same.
//!
//! Both answers of every step are printed side by side. A step whose answers differ must be in [`DIFFERENCES`], with
//! the reason; one that is listed and does not differ is not a difference any more, and fails too.

use integration_tests::{Attachment, Container, Network, Output, Outside, World};

use crate::support::{Dockerd, Site};

/// Steps that ours answers in another way, each with the reason.
const DIFFERENCES: [(&str, &str); 7] = [
    (
        "n2: cat /etc/resolv.conf",
        "our server is at the network's gateway, which needs no rules in each container",
    ),
    ("n2: ping -c 1 -W 1 172.21.0.1", "networks are isolated from each other's gateways too"),
    ("n2: getent hosts 172.20.0.1", "the gateway has a name"),
    (
        "n2: ip route show dev eth1",
        "a further network brings its default route too, behind that of the first, which stays in use",
    ),
    ("n2: ping -c 1 -W 1 x1", "a name that nobody has does not exist, whatever a server elsewhere would say"),
    ("l2: ping -c 1 -W 2 db", "an address has one name, that of its container, whoever asks"),
    (
        "l1: ping -c 1 -W 2 l2",
        "containers of one network know each other's names, where Docker's default bridge has none",
    ),
];

/// What one side tells of each step, in order.
type Told = Vec<(String, String)>;

/// A system that the story is told to.
trait Side {
    /// Runs a command in a container.
    fn exec(&self, container: &str, line: &str) -> Output;
    /// Runs a command on the host.
    fn on_host(&self, line: &str) -> Output;
    /// Stops n1, lets a newcomer take its address, and starts n1 again.
    fn restart_n1(&self);
    /// Has n2 join testnet2 as well, while it runs.
    fn connect_n2(&self);
    /// Has n2 leave testnet2.
    fn disconnect_n2(&self);
}

/// The steps: who asks what. Those of one word are what a [`Side`] does.
const STORY: [&str; 34] = [
    "n2: ip route",
    "n2: cat /etc/resolv.conf",
    "n2: ping -c 1 -W 2 centos-1",
    "n2: ping -c 1 -W 2 n1",
    "n2: ping -c 1 -W 2 n1.testnet",
    "n2: ping -c 1 -W 2 centos-1.testnet",
    "n2: ping -c 1 -W 2 CENTOS-1",
    "n1: ping -c 1 -W 2 centos-2",
    "n2: getent ahosts web",
    "n2: getent hosts 172.20.0.2",
    "n2: getent hosts 172.20.0.1",
    "n2: ping -c 1 -W 1 x1",
    "n2: ping -c 1 -W 1 172.21.0.2",
    "n2: ping -c 1 -W 1 172.21.0.1",
    "n2: ping -c 1 -W 2 172.20.0.1",
    "n2: ping -c 1 -W 2 203.0.113.9",
    "n2: ping -c 1 -W 2 www.example.com",
    "host: ping -c 1 -W 2 172.20.0.2",
    "restart",
    "n2: ping -c 1 -W 2 centos-1",
    "connect",
    "n2: ip route show dev eth1",
    "n2: ping -c 1 -W 2 x1",
    "n2: ping -c 1 -W 2 x1.testnet2",
    "x1: ping -c 1 -W 2 n2",
    "x1: ping -c 1 -W 2 n2.testnet2",
    "n2: ping -c 1 -W 2 n1",
    "n1: ping -c 1 -W 2 n2",
    "n2: getent hosts 172.21.0.2",
    "disconnect",
    "n2: ping -c 1 -W 1 172.21.0.2",
    "n2: ping -c 1 -W 2 n1.testnet",
    "l2: ping -c 1 -W 2 db",
    "l1: ping -c 1 -W 2 l2",
];

fn tell(side: &dyn Side) -> Told {
    let mut told = Told::new();
    for step in STORY {
        let answer = match step.split_once(": ") {
            Some(("host", line)) => essence(&side.on_host(line)),
            Some((container, line)) => essence(&side.exec(container, line)),
            None => {
                match step {
                    "restart" => side.restart_n1(),
                    "connect" => side.connect_n2(),
                    "disconnect" => side.disconnect_n2(),
                    _ => panic!("nobody does {step}"),
                }
                String::new()
            }
        };
        told.push((step.to_owned(), answer));
    }
    told
}

/// What an answer says, without times and in an order of its own where the order rotates.
fn essence(output: &Output) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in output.stdout.lines().chain(output.stderr.lines()) {
        let line = line.split(" ttl=").next().unwrap_or(line);
        let line = line.split(", time ").next().unwrap_or(line);
        let shown = line.trim_end();
        if !shown.is_empty() && !shown.starts_with("rtt ") && !shown.starts_with("---") {
            lines.push(shown.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }
    if lines.iter().any(|line| line.contains(" STREAM")) {
        // glibc puts the name it asked for behind the first address, whichever that is.
        lines = lines.iter().map(|line| line.split(' ').take(2).collect::<Vec<_>>().join(" ")).collect();
        lines.sort();
    }
    lines.push(format!("exit status {}", output.status));
    lines.join("\n")
}

struct Docker<'a>(Dockerd<'a>, &'a World);

impl Side for Docker<'_> {
    fn exec(&self, container: &str, line: &str) -> Output {
        self.0.command(&format!("exec {container} {line}")).run()
    }

    fn on_host(&self, line: &str) -> Output {
        self.1.host().run(line)
    }

    fn restart_n1(&self) {
        self.0.ok("stop --time 0 n1");
        self.0.run("newcomer", "--network testnet");
        self.0.ok("start n1");
    }

    fn connect_n2(&self) {
        self.0.ok("network connect testnet2 n2");
    }

    fn disconnect_n2(&self) {
        self.0.ok("network disconnect testnet2 n2");
    }
}

struct Ours {
    world: World,
    testnet: Network,
    testnet2: Network,
    containers: Vec<(&'static str, Container)>,
    n1: Attachment,
}

impl Side for Ours {
    fn exec(&self, container: &str, line: &str) -> Output {
        let found = self.containers.iter().find(|(name, _)| *name == container);
        found.unwrap_or_else(|| panic!("no container {container}")).1.run(line)
    }

    fn on_host(&self, line: &str) -> Output {
        self.world.host().run(line)
    }

    fn restart_n1(&self) {
        let n1 = &self.containers[0].1;
        self.testnet.detach_as(n1, &self.n1);
        let newcomer = self.world.container("newcomer");
        let wish = Attachment::of(&newcomer).arg("IP", "172.20.0.2");
        self.testnet.attach_as(&newcomer, &wish);
        self.testnet.attach_as(n1, &self.n1);
    }

    fn connect_n2(&self) {
        let n2 = &self.containers[1].1;
        self.testnet2.attach_as(n2, &named(n2, "n2", &[]).ifname("eth1"));
    }

    fn disconnect_n2(&self) {
        let n2 = &self.containers[1].1;
        self.testnet2.detach_as(n2, &named(n2, "n2", &[]).ifname("eth1"));
    }
}

/// An attachment with a name, as a runtime tells it.
fn named(container: &Container, name: &str, aliases: &[&str]) -> Attachment {
    Attachment::of(container).arg("IgnoreUnknown", "1").arg("CONTAINER_NAME", name).aliases(aliases)
}

fn tell_docker() -> Told {
    let site = Site::new();
    let outside = site.outside();
    let _dns = outside.serve_dns(&[("www.example.com", Outside::ADDRESS)]);
    let docker = Dockerd::start(&site);
    docker.ok("network create --subnet 172.20.0.0/16 testnet");
    docker.ok("network create --subnet 172.21.0.0/16 testnet2");
    docker.run("n1", "--network testnet --network-alias centos-1 --network-alias web");
    docker.run("n2", "--network testnet --network-alias centos-2 --network-alias web");
    docker.run("x1", "--network testnet2");
    docker.run("l1", "");
    docker.run("l2", "--link l1:db");
    let side = Docker(docker, &site);
    let told = tell(&side);
    side.0.ok("rm --force n1 n2 x1 l1 l2 newcomer");
    side.0.stop();
    told
}

fn tell_ours() -> Told {
    let world = World::new();
    let outside = world.outside();
    let _dns = outside.serve_dns(&[("www.example.com", Outside::ADDRESS)]);
    let [testnet, testnet2, link] =
        ["testnet", "testnet2", "link"].map(|name| Network::example(&world, name));
    let containers = ["n1", "n2", "x1", "l1", "l2"].map(|name| (name, world.container(name)));
    let of = |index: usize| &containers[index].1;
    let n1 = named(of(0), "n1", &["centos-1", "web"]);
    testnet.attach_as(of(0), &n1);
    testnet.attach_as(of(1), &named(of(1), "n2", &["centos-2", "web"]));
    testnet2.attach_as(of(2), &named(of(2), "x1", &[]));
    link.attach_as(of(3), &named(of(3), "l1", &[]));
    link.attach_as(of(4), &named(of(4), "l2", &[]).arg("LINKS", "l1:db"));
    tell(&Ours { world, testnet, testnet2, containers: containers.into(), n1 })
}

#[test]
#[expect(clippy::print_stdout, reason = "the two answers side by side are what a reader of this test wants")]
fn the_same_story_is_answered_the_same() {
    let (docker, ours) = (tell_docker(), tell_ours());
    let mut wrong = Vec::new();
    for ((step, theirs), (_, ours)) in docker.iter().zip(&ours) {
        println!("=== {step}\n--- docker\n{theirs}\n--- ours\n{ours}");
        let reason = DIFFERENCES.iter().find(|(listed, _)| listed == step).map(|(_, reason)| reason);
        match (theirs == ours, reason) {
            (false, None) => wrong.push(format!("{step}\n--- docker\n{theirs}\n--- ours\n{ours}")),
            (false, Some(reason)) => println!("--- differs: {reason}"),
            (true, Some(_)) => wrong.push(format!("{step}\nis listed as a difference, and is none")),
            (true, None) => {}
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n\n"));
}
