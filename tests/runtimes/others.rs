//! What the table in `plugins/alias-dns/README.md` says of others, tried with them: each of these makes the fixture
//! that its column stands on. The story `recorded_names` holds the table against the fixtures.
//!
//! Run by name only, since the fixtures are kept: `scripts/test others`. Sections are headed as the table's rows are.

use std::path::PathBuf;

use integration_tests::{Cmd, Output, Suite, wait_until};

use crate::support::{Dockerd, IMAGE, Podman, Site, Transcript};

/// So many containers share a name that their addresses do not fit into 512 bytes.
const MANY: u32 = 35;

/// A client that runs containers: docker's, or podman's, which takes the same words.
trait Client {
    const NAME: &'static str;
    /// Where the containers' names are asked for, and the domain they are in.
    const SERVER: &'static str;
    const DOMAIN: &'static str;
    fn command(&self, line: &str) -> Cmd;
}

impl Client for Dockerd<'_> {
    const NAME: &'static str = "docker";
    const SERVER: &'static str = "127.0.0.11";
    const DOMAIN: &'static str = "testnet";

    fn command(&self, line: &str) -> Cmd {
        self.command(line)
    }
}

impl Client for Podman<'_> {
    const NAME: &'static str = "podman";
    const SERVER: &'static str = "172.20.0.1";
    const DOMAIN: &'static str = "dns.podman";

    fn command(&self, line: &str) -> Cmd {
        self.command(line)
    }
}

struct Teller<'a, C> {
    site: &'a Site,
    client: C,
    transcript: Transcript<'a>,
}

impl<C: Client> Teller<'_, C> {
    /// A command of the client, as typed on the host.
    #[track_caller]
    fn client(&mut self, line: &str) -> Output {
        self.transcript.run("host", &format!("{} {line}", C::NAME), self.client.command(line))
    }

    /// Runs a container of the image.
    #[track_caller]
    fn run(&mut self, options: &str) {
        let line = format!("run --detach {options} {IMAGE}");
        let output = self.client.command(&line).run();
        let id = output.success().trim().to_owned();
        self.transcript.conceal(&id, "ID");
        let name = options.split_whitespace().nth(1).unwrap_or_default();
        self.transcript.conceal(&id[..12], &format!("SHORT-ID-OF-{name}"));
        self.transcript.note("host", &format!("{} {line}", C::NAME));
    }

    /// A command in a container.
    #[track_caller]
    fn exec(&mut self, container: &str, line: &str) {
        let command = self.client.command(&format!("exec {container} {line}"));
        self.transcript.run(container, line, command);
    }

    /// The network namespace of a container.
    #[track_caller]
    fn netns_of(&self, container: &str) -> String {
        let pid = self.client.command(&format!("inspect --format {{{{.State.Pid}}}} {container}")).run();
        format!("/proc/{}/ns/net", pid.success().trim())
    }

    /// What the network's server answers a container.
    #[track_caller]
    fn dig(&mut self, container: &str, question: &str) {
        let netns = self.netns_of(container);
        // netavark's bridge takes another hardware address when ports come and go, and what is sent to the old one is
        // lost: that is no matter of names.
        wait_until("the gateway answers", || {
            let ping = format!("nsenter --net={netns} ping -n -c 1 -W 1 172.20.0.1");
            (self.site.host().run(&ping).status == 0).then_some(())
        });
        self.transcript.dig(container, &netns, &format!("{question} @{}", C::SERVER));
    }

    /// The rows that are tried in the same way whoever answers.
    #[track_caller]
    fn tell(&mut self, link: impl FnOnce(&mut Self), join_both: &[&str]) {
        self.client("network create --subnet 172.20.0.0/16 testnet").success();
        self.client("network create --subnet 172.21.0.0/16 testnet2").success();
        self.run("--name n1 --network testnet --network-alias centos-1 --network-alias shared");
        self.run("--name n2 --network testnet --network-alias centos-2 --network-alias shared");
        self.run("--name n3 --network testnet --network-alias shared");
        self.run("--name x1 --network testnet2");
        let domain = C::DOMAIN;

        self.transcript.row("name, alias, short id");
        let id = self.client.command("inspect --format {{.Id}} n1").run().success()[..12].to_owned();
        for name in ["n1", "centos-1", &id, &format!("n1.{domain}")] {
            self.dig("n2", name);
        }
        self.transcript.row("`name.network`");
        self.dig("n2", "n1.testnet");
        self.transcript.row("private links, by name at query time");
        link(self);
        self.transcript.row("shared alias");
        for _ in 0..9 {
            self.dig("n2", "+short shared");
        }
        self.transcript.row("reverse");
        self.dig("n2", "-x 172.20.0.2");
        self.transcript.row("other types of a known name");
        for kind in ["AAAA", "MX", "TXT", "SRV", "HTTPS"] {
            self.dig("n2", &format!("n1 {kind}"));
            self.dig("n2", &format!("n1.{domain} {kind}"));
        }
        self.transcript.row("unknown name of a network");
        self.dig("n2", "nosuch");
        self.dig("n2", &format!("nosuch.{domain}"));
        self.transcript.row("name that only stands above others");
        self.run("--name a.b --network testnet");
        for name in ["a.b", "b", &format!("a.b.{domain}"), &format!("b.{domain}")] {
            self.dig("n2", name);
        }
        self.transcript.row("names of several networks");
        for line in join_both {
            match line.strip_prefix("run ") {
                Some(options) => self.run(options),
                None => {
                    self.client(line).success();
                }
            }
        }
        for line in ["cat /etc/resolv.conf", "getent hosts n1", "getent hosts x1"] {
            self.exec("both", line);
        }
        self.transcript.row("unknown source on the bridge");
        self.ask_as_a_stranger();
        self.transcript.row("more addresses than fit");
        for number in 1..=MANY {
            self.client
                .command(&format!(
                    "run --detach --name many{number} --network testnet --network-alias many {IMAGE}"
                ))
                .run()
                .success();
        }
        self.transcript.note(
            "host",
            &format!(
                "{} run --detach --name many1 --network testnet --network-alias many {IMAGE}  # to many{MANY}",
                C::NAME
            ),
        );
        for options in ["+noedns +ignore", "+noedns", "+noedns +tcp", "+bufsize=1232"] {
            self.dig("n2", &format!("{options} many"));
        }
        self.dig("n2", "n1");
    }

    /// Somebody on the bridge whom no runtime has put there.
    #[track_caller]
    fn ask_as_a_stranger(&mut self) {
        let host = self.site.host();
        let links = host.run("ip -o address show to 172.20.0.1");
        let bridge = links.success().split_whitespace().nth(1).unwrap_or_default().to_owned();
        let stranger = self.site.netns("stranger");
        for line in [
            "ip link add str0 type veth peer name eth0 netns stranger".to_owned(),
            format!("ip link set str0 up master {bridge}"),
        ] {
            host.run(&line).success();
        }
        for line in ["ip link set eth0 up", "ip address add 172.20.99.99/16 dev eth0"] {
            self.transcript.run("stranger", line, stranger.command(line.split_whitespace())).success();
        }
        for address in ["172.20.0.1", "172.20.0.2"] {
            stranger.run(&format!("ping -n -q -c 1 -W 5 {address}")).success();
            self.transcript.dig("stranger", &stranger.netns_path(), &format!("n1 @{address}"));
        }
        self.site.remove_netns("stranger");
    }
}

/// Ends the containers whose addresses did not fit, so that a restart does not wait for them.
#[track_caller]
fn remove_many<C: Client>(teller: &Teller<'_, C>) {
    let all = (1..=MANY).map(|number| format!(" many{number}")).collect::<String>();
    teller.client.command(&format!("rm --force{all}")).run().success();
}

#[test]
#[ignore = "makes a fixture: run by scripts/test others"]
fn docker() {
    let site = Site::new();
    let transcript = Transcript::start(&site, "Docker's names.", &["dockerd --version", "dig -v"]);
    let mut teller = Teller { site: &site, client: Dockerd::start(&site), transcript };
    teller.tell(
        |teller| {
            teller.run("--name t1 --network testnet --ip 172.20.1.1");
            teller.run("--name l1 --network testnet --link t1:lnk");
            teller.dig("l1", "lnk");
            teller.dig("n2", "lnk");
            teller.client("rm --force t1").success();
            teller.run("--name t1 --network testnet --ip 172.20.1.2");
            teller.dig("l1", "lnk");
        },
        &["run --name both --network testnet", "network connect testnet2 both"],
    );
    remove_many(&teller);
    teller.transcript.row("after a kill of the server");
    for options in ["", "--live-restore"] {
        let netns = teller.netns_of("n2");
        teller.client.kill();
        teller.transcript.note("host", "kill -9 PID-OF-DOCKERD");
        teller.transcript.dig("n2", &netns, &format!("n1 @{}", Dockerd::SERVER));
        teller.client.restart(options);
        teller.transcript.note("host", format!("dockerd {options}").trim_end());
        teller.client("ps --all --filter name=n1 --filter name=n2 --format {{.Names}}:{{.State}}").success();
        if options.is_empty() {
            teller.client("start n1 n2").success();
        }
        teller.dig("n2", "n1");
    }
    teller.transcript.save("docker-20.10-names.txt");
    let ids = teller.client.command("ps --quiet --all").run();
    let ids = ids.success().split_whitespace().collect::<Vec<_>>().join(" ");
    teller.client.command(&format!("rm --force {ids}")).run().success();
    teller.client.stop();
}

/// podman's networks of either kind, whose server has its process id in `pidfile`.
#[track_caller]
fn podman(site: &Site, client: Podman<'_>, transcript: Transcript<'_>, pidfile: &str, fixture: &str) {
    let mut teller = Teller { site, client, transcript };
    teller.tell(
        |teller| {
            teller
                .client(&format!("run --detach --name l1 --network testnet --link n1:lnk {IMAGE}"))
                .failure();
        },
        &["run --name both --network testnet,testnet2"],
    );
    remove_many(&teller);
    teller.transcript.row("after a kill of the server");
    let kill = format!("kill -9 $(cat {pidfile})");
    teller.transcript.run("host", &kill, site.host().command(["sh", "-c", &kill])).success();
    teller.dig("n2", "n1");
    for newcomer in ["--name x2 --network testnet2", "--name n4 --network testnet"] {
        teller.run(newcomer);
        teller.dig("n2", "n1");
    }
    teller.transcript.save(fixture);
    teller.client.remove_all(&["testnet", "testnet2"]);
}

#[test]
#[ignore = "makes a fixture: run by scripts/test others"]
fn aardvark_dns() {
    let site = Site::new();
    let programs = ["aardvark/bin/aardvark-dns", "netavark/usr/lib/podman/netavark"].map(peer);
    let versions = programs.each_ref().map(|program| format!("{} --version", program.display()));
    let versions = ["podman --version", &versions[0], &versions[1], "dig -v"];
    let transcript = Transcript::start(&site, "aardvark-dns, as podman and netavark run it.", &versions);
    let client = Podman::with_netavark(&site, &programs);
    podman(
        &site,
        client,
        transcript,
        "/run/containers/networks/aardvark-dns/aardvark.pid",
        "aardvark-dns-2.1-names.txt",
    );
}

#[test]
#[ignore = "makes a fixture: run by scripts/test others"]
fn dnsname() {
    let site = Site::new();
    let link = site.path("/opt/cni/bin/dnsname");
    std::fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink("/usr/lib/cni/dnsname", link).unwrap();
    let package = "dpkg-query --show golang-github-containernetworking-plugin-dnsname";
    let versions = ["podman --version", package, "dnsmasq --version", "dig -v"];
    let transcript = Transcript::start(&site, "podman's dnsname.", &versions);
    let client = Podman::new(&site);
    podman(&site, client, transcript, "/run/containers/cni/dnsname/testnet/pidfile", "dnsname-1.3-names.txt");
}

/// The program of a peer that is not on the search path.
fn peer(path: &str) -> PathBuf {
    Suite::Reference.dir().join(path)
}
