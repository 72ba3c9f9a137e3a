//! The servers that are compared: each with its own gateway address on the bridge, all with the same names.

use std::fmt::Write as _;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use integration_tests::Suite;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{BRIDGE, CLIENT, CLIENT_NETNS, LATE, LATE_NAME, address_of, name_of};
use crate::call::{Plugin, Target, Timed};

/// How long a server may take to come up with all names.
const START: Duration = Duration::from_secs(60);

/// One of the servers.
pub(crate) trait Server {
    /// What the column is called.
    fn title(&self) -> &str;
    /// Where it listens.
    fn address(&self) -> Ipv4Addr;
    /// What names end in.
    fn domain(&self) -> &'static str;
    /// Starts anew with the containers below `count`.
    fn restart(&mut self, count: u32) -> Result<()>;
    /// Makes one container more known: when it returns, the server has been told.
    fn attach(&mut self) -> Result<Option<Timed>>;
    /// Takes it back.
    fn detach(&mut self) -> Result<()>;
    /// Its processes.
    fn pids(&self) -> Result<Vec<Pid>>;
}

/// User and system time of all threads of `server` so far.
pub(crate) fn cpu(server: &dyn Server) -> Result<Duration> {
    let mut nanos = 0;
    for pid in server.pids()? {
        for task in fs::read_dir(format!("/proc/{pid}/task")).context("threads of a server")? {
            let path = task?.path().join("schedstat");
            let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let on_cpu = text.split_whitespace().next().context("schedstat is empty")?;
            nanos += on_cpu.parse::<u64>().context("schedstat")?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// What the processes of `server` hold in memory, in kB; pages that two of them share count twice.
pub(crate) fn memory(server: &dyn Server) -> Result<u64> {
    let resident = |pid: Pid| -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).context("status of a server")?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.split_whitespace().next());
        kilobytes.context("no VmRSS")?.parse().context("VmRSS")
    };
    server.pids()?.into_iter().map(resident).sum()
}

/// alias-dns: the plugin, and the server that it starts.
pub(crate) struct Ours {
    plugin: Plugin,
    records: PathBuf,
}

/// How the command lines of a server's processes begin.
const PARTS: [&[u8]; 3] = [b"alias-dns\0serve\0", b"alias-dns\0supervise\0", b"cni-names\0guard\0"];

impl Ours {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 90, 255, 1);

    /// Attaches the client, which starts the server.
    pub(crate) fn start() -> Result<Self> {
        let plugin = Plugin::of(Suite::Ours, "alias-dns");
        let target = Target { container_id: "0123456789ab", netns: CLIENT_NETNS };
        plugin.call("ADD", target, &Self::config("client", CLIENT))?;
        let states = fs::read_dir("/run/cni/alias-dns").context("the state of alias-dns")?;
        let state = states.flatten().next().context("alias-dns has no state")?;
        Ok(Self { plugin, records: state.path().join("records").join(BRIDGE) })
    }

    fn config(name: &str, address: Ipv4Addr) -> Value {
        json!({
            "cniVersion": "1.0.0",
            "name": BRIDGE,
            "type": "alias-dns",
            "args": { "cni": { "containerName": name } },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": BRIDGE }, { "name": "eth0", "sandbox": CLIENT_NETNS }],
                "ips": [{ "address": format!("{address}/16"), "gateway": Self::ADDRESS, "interface": 1 }]
            }
        })
    }

    /// The record of container `number`, made from the client's as ADD writes it.
    fn write_record(&self, client: &Value, number: u32) -> Result<()> {
        let id = format!("{number:064x}");
        let mut record = client.clone();
        record["containerID"] = json!(id);
        record["addresses"] = json!([address_of(number)]);
        record["names"] = json!([name_of(number)]);
        let aside = self.records.join(format!(".new-{id}:eth0"));
        fs::write(&aside, record.to_string()).with_context(|| format!("write {}", aside.display()))?;
        fs::rename(&aside, self.records.join(format!("{id}:eth0"))).context("rename a record")
    }
}

impl Server for Ours {
    fn title(&self) -> &'static str {
        "alias-dns"
    }

    fn address(&self) -> Ipv4Addr {
        Self::ADDRESS
    }

    fn domain(&self) -> &'static str {
        BRIDGE
    }

    fn restart(&mut self, count: u32) -> Result<()> {
        let path = self.records.join("0123456789ab:eth0");
        let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let client = serde_json::from_slice(&text).context("the client's record")?;
        for number in 0..count {
            self.write_record(&client, number)?;
        }
        // All its processes go, so that nothing of the growth is left; the next call starts them anew.
        for pid in self.pids()? {
            kill(pid, Signal::SIGKILL).context("kill alias-dns")?;
        }
        self.attach()?;
        self.detach()
    }

    fn attach(&mut self) -> Result<Option<Timed>> {
        let target = Target { container_id: "fedcba987654", netns: CLIENT_NETNS };
        self.plugin.call("ADD", target, &Self::config(LATE_NAME, LATE)).map(Some)
    }

    fn detach(&mut self) -> Result<()> {
        let target = Target { container_id: "fedcba987654", netns: CLIENT_NETNS };
        self.plugin.call("DEL", target, &Self::config(LATE_NAME, LATE)).map(drop)
    }

    fn pids(&self) -> Result<Vec<Pid>> {
        let mut pids = Vec::new();
        for entry in fs::read_dir("/proc").context("processes")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if PARTS.iter().any(|part| command.starts_with(part)) {
                pids.push(Pid::from_raw(pid));
            }
        }
        Ok(pids)
    }
}

/// dnsmasq with a hosts file, as dnsname runs it.
pub(crate) struct Dnsmasq {
    count: u32,
    child: Option<Child>,
}

impl Dnsmasq {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 90, 255, 2);
    const HOSTS: &str = "/run/dnsmasq.hosts";

    pub(crate) fn new() -> Self {
        Self { count: 0, child: None }
    }

    fn write_hosts(&self, late: bool) -> Result<()> {
        let lines = entries(self.count, late).fold(String::new(), |mut text, (name, address)| {
            let _ = writeln!(text, "{address} {name}.{BRIDGE}");
            text
        });
        fs::write(Self::HOSTS, lines).context("write the hosts of dnsmasq")
    }

    fn reload(&self, late: bool) -> Result<()> {
        self.write_hosts(late)?;
        hang_up(&self.pids()?)
    }
}

impl Server for Dnsmasq {
    fn title(&self) -> &'static str {
        "dnsmasq"
    }

    fn address(&self) -> Ipv4Addr {
        Self::ADDRESS
    }

    fn domain(&self) -> &'static str {
        BRIDGE
    }

    fn restart(&mut self, count: u32) -> Result<()> {
        self.stop();
        self.count = count;
        self.write_hosts(false)?;
        // In a session of its own, as the others are and as it is as a service: the scheduler shares out the processor
        // by session (`sched_autogroup`), and a server in its client's is woken a microsecond or two sooner.
        let child = Command::new("setsid")
            .args([
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--user=root",
                "--pid-file",
                "--no-resolv",
            ])
            .args(["--no-hosts", "--bind-interfaces", "--except-interface=lo", "--local-ttl=5"])
            .arg(format!("--addn-hosts={}", Self::HOSTS))
            .arg(format!("--listen-address={}", Self::ADDRESS))
            .arg(format!("--local=/{BRIDGE}/"))
            .arg("--local=/90.10.in-addr.arpa/")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start dnsmasq")?;
        self.child = Some(child);
        Ok(())
    }

    fn attach(&mut self) -> Result<Option<Timed>> {
        self.reload(true).map(|()| None)
    }

    fn detach(&mut self) -> Result<()> {
        self.reload(false)
    }

    fn pids(&self) -> Result<Vec<Pid>> {
        Ok(self.child.iter().map(|child| Pid::from_raw(child.id() as i32)).collect())
    }
}

impl Dnsmasq {
    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        self.stop();
    }
}

/// aardvark-dns as netavark runs it.
pub(crate) struct Aardvark {
    binary: PathBuf,
    title: String,
    count: u32,
}

impl Aardvark {
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 90, 255, 3);
    const CONFIG: &str = "/run/aardvark";

    pub(crate) fn new(binary: PathBuf) -> Result<Self> {
        let output = Command::new(&binary).arg("--version").output().context("aardvark-dns --version")?;
        let title = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { binary, title: title.replace("aardvark-dns", "aardvark"), count: 0 })
    }

    fn write_network(&self, late: bool) -> Result<()> {
        let mut text = format!("{}\nclient {CLIENT}  client\n", Self::ADDRESS);
        for (name, address) in entries(self.count, late) {
            let _ = writeln!(text, "{name} {address}  {name}");
        }
        fs::create_dir_all(Self::CONFIG).context("the directory of aardvark-dns")?;
        fs::write(Path::new(Self::CONFIG).join(BRIDGE), text).context("write the network of aardvark-dns")
    }

    fn reload(&self, late: bool) -> Result<()> {
        self.write_network(late)?;
        hang_up(&self.pids()?)
    }
}

impl Server for Aardvark {
    fn title(&self) -> &str {
        &self.title
    }

    fn address(&self) -> Ipv4Addr {
        Self::ADDRESS
    }

    fn domain(&self) -> &'static str {
        "dns.podman"
    }

    fn restart(&mut self, count: u32) -> Result<()> {
        if self.count > 0 {
            for pid in self.pids()? {
                kill(pid, Signal::SIGKILL).context("kill aardvark-dns")?;
            }
        }
        self.count = count;
        self.write_network(false)?;
        // It goes to the background by itself.
        let status = Command::new(&self.binary)
            .args(["--config", Self::CONFIG, "--port", "53", "--filter-search-domain", ".dns.podman", "run"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .context("start aardvark-dns")?;
        if !status.success() {
            bail!("aardvark-dns does not start: {status}");
        }
        Ok(())
    }

    fn attach(&mut self) -> Result<Option<Timed>> {
        self.reload(true).map(|()| None)
    }

    fn detach(&mut self) -> Result<()> {
        self.reload(false)
    }

    fn pids(&self) -> Result<Vec<Pid>> {
        let path = Path::new(Self::CONFIG).join("aardvark.pid");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(vec![Pid::from_raw(text.trim().parse().context("aardvark.pid")?)])
    }
}

fn entries(count: u32, late: bool) -> impl Iterator<Item = (String, Ipv4Addr)> {
    let late = late.then(|| (LATE_NAME.to_owned(), LATE));
    (0..count).map(|number| (name_of(number), address_of(number))).chain(late)
}

fn hang_up(pids: &[Pid]) -> Result<()> {
    pids.iter().try_for_each(|pid| kill(*pid, Signal::SIGHUP)).context("send SIGHUP")
}

/// Waits until `is_there` says so.
pub(crate) fn await_start(title: &str, mut is_there: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + START;
    while Instant::now() < deadline {
        if is_there()? {
            return Ok(());
        }
    }
    bail!("{title} does not answer within {START:?}")
}
