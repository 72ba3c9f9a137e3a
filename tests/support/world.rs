//! A machine of the test's own.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::binaries::{Suite, built_programs};
use crate::command::{Cmd, Output, Running, words};
use crate::outside::Outside;
use crate::plugin::PluginCall;

/// A machine of the test's own: network, mount, PID, IPC and UTS namespaces that nobody else is in, with `/run`,
/// `/etc` and `/var/lib` of its own. Everything in it ends when the value is dropped, or the test process dies.
#[derive(Debug, Clone)]
pub struct World {
    machine: Arc<Machine>,
}

/// A network namespace of a world in which commands are run: the host's, or one under `/run/netns`.
#[derive(Debug, Clone)]
pub struct Space {
    machine: Arc<Machine>,
    name: String,
}

/// A container as the plugins know it: a network namespace, an id, and the `/etc/resolv.conf` that the runtime
/// writes for it.
#[derive(Debug, Clone)]
pub struct Container {
    space: Space,
    dns: Arc<Mutex<Vec<Value>>>,
}

#[derive(Debug)]
struct Machine {
    outer: Child,
    first: u32,
    /// The world ends when this closes.
    life: Option<ChildStdin>,
}

impl World {
    /// A new machine, with nothing on it but loopback.
    ///
    /// # Panics
    /// When namespaces cannot be made.
    #[expect(clippy::new_without_default, reason = "starts a process; no default value has such an effect")]
    #[track_caller]
    pub fn new() -> Self {
        let program = program();
        let mut outer = Command::new(&program)
            .arg("init")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        let lines = BufReader::new(outer.stdout.take().expect("stdout is piped")).lines();
        // One line of the outer process and one of the first, in whichever order they come.
        let said: Vec<String> = lines.map_while(Result::ok).take(2).collect();
        let pid = said.iter().find_map(|line| line.strip_prefix("pid ")).and_then(|pid| pid.parse().ok());
        let Some(first) = pid.filter(|_| said.iter().any(|line| line == "ready")) else {
            drop(outer.stdin.take());
            let mut reason = String::new();
            let stderr = outer.stderr.take().map(|mut stderr| stderr.read_to_string(&mut reason));
            panic!(
                "no private namespaces for this test (as root, or where user namespaces are allowed): {said:?} {reason} {stderr:?}"
            );
        };
        let life = outer.stdin.take();
        Self { machine: Arc::new(Machine { outer, first, life }) }
    }

    /// The host: where a runtime runs, and the plugins with it.
    pub fn host(&self) -> Space {
        self.space("host")
    }

    /// A new container called `name`, which is its id too. It has a namespace with loopback, not yet any network.
    #[track_caller]
    pub fn container(&self, name: &str) -> Container {
        let container = Container { space: self.netns(name), dns: Arc::default() };
        container.write_resolv_conf();
        container
    }

    /// A new network namespace under `/run/netns`, with loopback up.
    #[track_caller]
    pub fn netns(&self, name: &str) -> Space {
        self.host().command([program().as_os_str(), OsStr::new("netns"), OsStr::new(name)]).run().success();
        let space = self.space(name);
        space.run("ip link set lo up").success();
        space
    }

    /// Removes a network namespace, as when a container dies.
    #[track_caller]
    pub fn remove_netns(&self, name: &str) {
        self.host().run(&format!("ip netns delete {name}")).success();
    }

    /// Puts another host behind this one. See [`Outside`].
    #[track_caller]
    pub fn outside(&self) -> Outside {
        Outside::new(self)
    }

    /// A file of the world as this process can open it. No part of the path may be a link.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let inside = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        PathBuf::from(format!("/proc/{}/root", self.machine.first)).join(inside)
    }

    /// The content of a file of the world.
    ///
    /// # Panics
    /// When it cannot be read.
    #[track_caller]
    pub fn read(&self, path: impl AsRef<Path>) -> String {
        let path = path.as_ref();
        std::fs::read_to_string(self.path(path))
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    }

    /// Writes a file of the world, and the directories above it.
    ///
    /// # Panics
    /// When it cannot be written.
    #[track_caller]
    pub fn write(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        let inside = self.path(&path);
        let written = inside.parent().map_or(Ok(()), std::fs::create_dir_all);
        written
            .and_then(|()| std::fs::write(&inside, content))
            .unwrap_or_else(|error| panic!("write {}: {error}", path.as_ref().display()));
    }

    /// Writes a program of the world, which can be executed at once. Not by this process: the children that other tests
    /// are just starting would hold it open for writing, and what is being written is not executed.
    ///
    /// # Panics
    /// When it cannot be written.
    #[track_caller]
    pub fn write_program(&self, path: &str, content: &str) {
        let script = "mkdir -p \"$(dirname \"$1\")\" && cat > \"$1\" && chmod 755 \"$1\"";
        self.host().command(["sh", "-c", script, "sh", path]).stdin(content).run().success();
    }

    /// A call of our plugin `name` on the host, to be completed and run.
    pub fn plugin(&self, name: &str) -> PluginCall {
        PluginCall::new(self, Suite::Ours, name)
    }

    /// The same, started by `tracer`, a command and its arguments.
    pub fn traced_plugin(&self, tracer: &[&str], name: &str) -> PluginCall {
        PluginCall::traced(self, tracer, name)
    }

    /// A call of a plugin of either suite on the host.
    pub fn plugin_of(&self, suite: Suite, name: &str) -> PluginCall {
        PluginCall::new(self, suite, name)
    }

    /// A directory on the host with our plugins under all their names, beside the reference's plugins that we have no
    /// answer to, as on a machine where ours were installed over theirs. Its path, for `CNI_PATH`.
    pub fn install_plugins(&self) -> String {
        const DIR: &str = "/run/opt/cni/bin";
        let ours = Suite::Ours.dir();
        let theirs = Suite::Reference.dir();
        let links = [
            (&ours, "bridge", "bridge"),
            (&ours, "host-local-ipam", "host-local-ipam"),
            (&ours, "host-local-ipam", "host-local"),
            (&ours, "alias-dns", "alias-dns"),
            (&ours, "alias-dns", "dnsname"),
            (&theirs, "portmap", "portmap"),
            (&theirs, "firewall", "firewall"),
            (&theirs, "tuning", "tuning"),
            (&theirs, "loopback", "loopback"),
        ];
        let linked = std::fs::create_dir_all(self.path(DIR)).and_then(|()| {
            links.iter().try_for_each(|(dir, binary, name)| {
                let target = std::path::absolute(dir.join(binary))?;
                std::os::unix::fs::symlink(target, self.path(DIR).join(name))
            })
        });
        linked.unwrap_or_else(|error| panic!("link the plugins into {DIR}: {error}"));
        DIR.to_owned()
    }

    pub(crate) fn space(&self, name: &str) -> Space {
        Space { machine: Arc::clone(&self.machine), name: name.to_owned() }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.life.take());
        // Nothing is to be done about a world that ended badly: the kernel has taken it back either way.
        let _ended = self.outer.wait();
    }
}

impl Space {
    /// `host`, or the name under `/run/netns`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the namespace is bound, as a runtime writes it into `CNI_NETNS`.
    pub fn netns_path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// A command with these arguments.
    pub fn command<A: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = A>) -> Cmd {
        Cmd::new(self, &argv.into_iter().collect::<Vec<_>>())
    }

    /// Runs a command as typed; words are split at blanks.
    #[track_caller]
    pub fn run(&self, line: &str) -> Output {
        self.command(words(line)).run()
    }

    /// Starts a command as typed; it runs on beside the test.
    #[track_caller]
    pub fn start(&self, line: &str) -> Running {
        self.command(words(line)).start()
    }

    /// Starts a web server on `address:port`, which answers `HOST called by PEER`.
    #[track_caller]
    pub fn serve(&self, address: &str) -> Running {
        self.command([program().as_os_str(), OsStr::new("serve"), OsStr::new(address)])
            .start()
            .wait_for("listening")
    }

    /// What the web server at `url` says.
    #[track_caller]
    pub fn fetch(&self, url: &str) -> String {
        self.run(&format!("curl --silent --show-error --max-time 60 {url}")).success().trim_end().to_owned()
    }

    /// Whether one of two pings of `target` is answered. An answer takes no time to speak of, but on a busy machine
    /// whoever waits for it may.
    ///
    /// IPv6 is tried for half a minute: the kernel makes the route for a new address in the background, and what is
    /// sent to it before is lost.
    #[track_caller]
    pub fn reaches(&self, target: &str) -> bool {
        if !target.contains(':') {
            return self.pings(target, 30);
        }
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let is_answered = self.pings(target, 2);
            if is_answered || Instant::now() >= end {
                return is_answered;
            }
        }
    }

    /// Whether none of two pings of `target` is answered within a second.
    #[track_caller]
    pub fn is_cut_off_from(&self, target: &str) -> bool {
        !self.pings(target, 1)
    }

    /// Asserts that `target` is reached if that is `expected`, and that it is cut off if not.
    ///
    /// # Panics
    /// With `why` when it is otherwise.
    #[track_caller]
    pub fn assert_reach(&self, target: &str, expected: bool, why: &str) {
        let is_so = if expected { self.reaches(target) } else { self.is_cut_off_from(target) };
        assert!(
            is_so,
            "{why}: {} {} {target}",
            self.name,
            if expected { "is cut off from" } else { "reaches" }
        );
    }

    fn pings(&self, target: &str, patience: u8) -> bool {
        self.run(&format!("ping -n -c 2 -i 0.2 -W {patience} {target}")).status == 0
    }

    /// The addresses that glibc finds for `name`, in its order, under this space's own `/etc/resolv.conf`.
    #[track_caller]
    pub fn resolve(&self, name: &str) -> Vec<String> {
        let output = self.run(&format!("getent ahosts {name}"));
        let streams = output.stdout.lines().filter(|line| line.contains("STREAM"));
        streams.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// As [`resolve`](Self::resolve), by musl in place of glibc.
    #[track_caller]
    pub fn resolve_by_musl(&self, name: &str) -> Vec<String> {
        let output = self.command([program().as_os_str(), OsStr::new("resolve"), OsStr::new(name)]).run();
        output.stdout.lines().map(str::to_owned).collect()
    }

    pub(crate) fn enter(&self) -> Command {
        let mut command = Command::new(program());
        command.arg("enter").arg(self.machine.first.to_string()).arg(&self.name);
        command
    }
}

impl Container {
    /// Writes the container's `/etc/resolv.conf` from the `dns` of its networks' results, as podman does, and
    /// nothing from the host.
    pub(crate) fn add_dns(&self, result: &Value) {
        if let Some(dns) = result.get("dns") {
            self.dns.lock().unwrap_or_else(PoisonError::into_inner).push(dns.clone());
        }
        self.write_resolv_conf();
    }

    pub(crate) fn forget_dns(&self, result: &Value) {
        if let Some(dns) = result.get("dns") {
            self.dns.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != dns);
        }
        self.write_resolv_conf();
    }

    fn write_resolv_conf(&self) {
        let networks = self.dns.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let list = |key: &str| -> Vec<String> {
            let values = networks.iter().filter_map(|dns| dns.get(key)?.as_array());
            values.flatten().filter_map(|value| value.as_str().map(str::to_owned)).collect()
        };
        let mut content = String::new();
        for (keyword, key) in [("search", "search"), ("options", "options")] {
            let values = list(key);
            if !values.is_empty() {
                let _infallible = writeln!(content, "{keyword} {}", values.join(" "));
            }
        }
        for nameserver in list("nameservers") {
            let _infallible = writeln!(content, "nameserver {nameserver}");
        }
        let world = World { machine: Arc::clone(&self.space.machine) };
        let files = Path::new("/etc/netns").join(self.name());
        world.write(files.join("resolv.conf"), content);
        world.write(files.join("hosts"), "127.0.0.1\tlocalhost\n::1\tlocalhost\n");
    }
}

impl Deref for Container {
    type Target = Space;

    fn deref(&self) -> &Space {
        &self.space
    }
}

fn program() -> PathBuf {
    built_programs().join("world")
}
