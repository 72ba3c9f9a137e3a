//! A network in a directory of its own, and calls about it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

use serde_json::{Value, json};
use tempfile::TempDir;

/// The program that is tested: the one that was built with the tests, unless they have been taken elsewhere.
pub(crate) fn ours() -> &'static Path {
    static OURS: LazyLock<PathBuf> = LazyLock::new(|| {
        let elsewhere = std::env::var_os("CNI_TEST_PLUGINS").map(PathBuf::from);
        elsewhere.map_or_else(
            || env!("CARGO_BIN_EXE_host-local-ipam").into(),
            |plugins| plugins.join("host-local-ipam"),
        )
    });
    &OURS
}

/// The reference's program.
pub(crate) fn reference() -> PathBuf {
    let usual = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers");
    let program = std::env::var_os("CNI_TEST_PEERS").map_or_else(usual, PathBuf::from).join("host-local");
    assert!(program.is_file(), "no {}: run scripts/setup, or set CNI_TEST_PEERS", program.display());
    program
}

/// What a plugin answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) success: bool,
    pub(crate) stdout: String,
}

impl Answer {
    pub(crate) fn of(output: &Output) -> Self {
        Self { success: output.status.success(), stdout: String::from_utf8(output.stdout.clone()).unwrap() }
    }

    pub(crate) fn document(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The addresses of a successful ADD, without their prefix lengths.
    #[track_caller]
    pub(crate) fn addresses(&self) -> Vec<String> {
        assert!(self.success, "{self:?}");
        let document = self.document();
        let ips = document["ips"].as_array().unwrap_or_else(|| panic!("{self:?}"));
        ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
    }

    /// The only address of a successful ADD.
    #[track_caller]
    pub(crate) fn address(&self) -> String {
        let [address] = self.addresses().try_into().unwrap();
        address
    }

    /// Code and message of a failure.
    #[track_caller]
    pub(crate) fn error(&self) -> (u64, String) {
        assert!(!self.success, "{self:?}");
        let document = self.document();
        (document["code"].as_u64().unwrap(), document["msg"].as_str().unwrap().to_owned())
    }

    #[track_caller]
    pub(crate) fn ok(&self) {
        assert!(self.success, "{self:?}");
    }

    /// Code 11: the set is full.
    #[track_caller]
    pub(crate) fn exhausted(&self) {
        let (code, msg) = self.error();
        assert!(code == 11 && msg.contains("no IP addresses available in range set: "), "{self:?}");
    }
}

/// A network whose data directory is its own.
pub(crate) struct Network {
    directory: TempDir,
    pub(crate) conf: Value,
}

impl Network {
    /// One range set, of `subnet`.
    pub(crate) fn new(subnet: &str) -> Self {
        Self::with(json!({"ranges": [[{"subnet": subnet}]]}))
    }

    /// The network whose `ipam` is `keys` and what has to be there.
    pub(crate) fn with(keys: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut network = Self {
            conf: json!({"cniVersion": "1.1.0", "name": "net1", "type": "bridge", "ipam": keys}),
            directory,
        };
        network.conf["ipam"]["type"] = json!("host-local");
        network.conf["ipam"]["dataDir"] = json!(network.data_dir());
        network
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.directory.path().join("networks")
    }

    /// Where the leases are.
    pub(crate) fn leases_dir(&self) -> PathBuf {
        self.data_dir().join("net1")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.data_dir().join(".host-local-ipam/net1.index")
    }

    /// A command that makes the call; its stdin is the configuration.
    pub(crate) fn command(&self, program: &Path, verb: &str, id: &str) -> Command {
        let mut command = Command::new(program);
        self.prepare(&mut command, verb, id);
        command
    }

    /// Sets what a call of `verb` for `id` needs.
    pub(crate) fn prepare(&self, command: &mut Command, verb: &str, id: &str) {
        let stdin = tempfile::NamedTempFile::new_in(self.directory.path()).unwrap();
        serde_json::to_writer(stdin.as_file(), &self.conf).unwrap();
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_NETNS", "/run/netns/there-is-none")
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nowhere")
            .stdin(std::fs::File::open(stdin.path()).unwrap())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
    }

    pub(crate) fn call(&self, program: &Path, verb: &str, id: &str) -> Answer {
        Answer::of(&self.command(program, verb, id).output().unwrap())
    }

    /// A call of ours.
    pub(crate) fn ask(&self, verb: &str, id: &str) -> Answer {
        self.call(ours(), verb, id)
    }

    /// ADD of ours, which is killed when it has taken so many seconds of a processor, however long that may be.
    pub(crate) fn add_within(&self, seconds: u32, id: &str) -> Answer {
        let mut command = Command::new("sh");
        command.args(["-euc", "ulimit -t \"$1\"; exec \"$0\""]).arg(ours()).arg(seconds.to_string());
        self.prepare(&mut command, "ADD", id);
        Answer::of(&command.output().unwrap())
    }

    /// ADD of ours with `CNI_ARGS`.
    pub(crate) fn add_with_args(&self, id: &str, args: &str) -> Answer {
        self.add_with_args_of(ours(), id, args)
    }

    pub(crate) fn add_with_args_of(&self, program: &Path, id: &str, args: &str) -> Answer {
        Answer::of(&self.command(program, "ADD", id).env("CNI_ARGS", args).output().unwrap())
    }

    /// The same network with `key` of the configuration changed.
    pub(crate) fn conf_with(&self, key: &str, value: Value) -> Value {
        let mut conf = self.conf.clone();
        conf[key] = value;
        conf
    }

    /// A call of ours with another configuration.
    pub(crate) fn ask_with(&self, conf: &Value, verb: &str, id: &str) -> Answer {
        let mut command = self.command(ours(), verb, id);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
        Answer::of(&child.wait_with_output().unwrap())
    }

    /// GC with these container ids valid, each with interface `eth0`.
    pub(crate) fn gc(&self, valid: &[&str]) -> Answer {
        let valid: Vec<Value> = valid.iter().map(|id| json!({"containerID": id, "ifname": "eth0"})).collect();
        self.ask_with(&self.conf_with("cni.dev/valid-attachments", json!(valid)), "GC", "")
    }

    /// Content of every file in the network's directory.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let Ok(entries) = std::fs::read_dir(self.leases_dir()) else { return BTreeMap::new() };
        entries
            .map(|entry| {
                let entry = entry.unwrap();
                (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    /// Address and content of every lease.
    pub(crate) fn leases(&self) -> BTreeMap<String, String> {
        self.files()
            .into_iter()
            .filter(|(name, _)| name.parse::<std::net::IpAddr>().is_ok())
            .map(|(name, content)| (name, String::from_utf8(content).unwrap()))
            .collect()
    }

    pub(crate) fn write(&self, name: &str, content: &str) {
        std::fs::create_dir_all(self.leases_dir()).unwrap();
        std::fs::write(self.leases_dir().join(name), content).unwrap();
    }

    /// What `host-local-ipam` prints when a person types `words`.
    pub(crate) fn type_words(&self, words: &[&str]) -> Output {
        Command::new(ours()).env_clear().args(words).arg("--data-dir").arg(self.data_dir()).output().unwrap()
    }
}

/// `sh` in a mount namespace: nothing that is mounted in it is seen outside. An ordinary user is root in a user
/// namespace for that.
pub(crate) fn in_mount_namespace(script: &str) -> Command {
    let mut command = Command::new("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-euc", script, "sh"]);
    command
}

/// The content of a lease of `id`.
pub(crate) fn content(id: &str) -> String {
    format!("{id}\r\neth0")
}
