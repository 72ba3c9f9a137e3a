//! containerd, with `ctr` and, for its CRI, `crictl`.

use std::fs;

use integration_tests::{Cmd, Output, Running, wait_until};
use serde_json::{Value, json};

use super::Site;
use super::site::IMAGE;

const SOCKET: &str = "/run/ctd/sock";

/// Which containerd: each starts its own shim, found in its own `PATH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// Debian 12's package.
    V1_6,
    /// As built by `scripts/setup-runtimes`.
    V2_4,
}

impl Release {
    fn path(self) -> String {
        const SYSTEM: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
        match self {
            Self::V1_6 => SYSTEM.to_owned(),
            Self::V2_4 => {
                let built = Site::installed("containerd");
                format!("{}:{SYSTEM}", built.parent().unwrap_or(&built).display())
            }
        }
    }

    /// The configuration: roots of its own, and as many networks for a pod as `networks`.
    fn configuration(self, networks: usize) -> String {
        const DIRS: &str =
            "root = \"/run/ctd/root\"\nstate = \"/run/ctd/state\"\n[grpc]\naddress = \"/run/ctd/sock\"\n";
        match self {
            Self::V1_6 => format!(
                r#"version = 2
{DIRS}
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/opt/cni/bin"
conf_dir = "/etc/cni/net.d"
max_conf_num = {networks}
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"#
            ),
            Self::V2_4 => format!(
                r#"version = 3
{DIRS}
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "localhost/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
enable_unprivileged_ports = false
enable_unprivileged_icmp = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
max_conf_num = {networks}
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "runc"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"#
            ),
        }
    }
}

/// A containerd that runs on a site, with the image loaded.
pub(crate) struct Containerd<'a> {
    site: &'a Site,
    release: Release,
    daemon: Running,
}

impl<'a> Containerd<'a> {
    /// Starts one, whose pods join the first network of `/etc/cni/net.d`.
    #[track_caller]
    pub(crate) fn start(site: &'a Site, release: Release) -> Self {
        Self::start_with_networks(site, release, 1)
    }

    /// Starts one, whose pods join the first networks of `/etc/cni/net.d`.
    #[track_caller]
    pub(crate) fn start_with_networks(site: &'a Site, release: Release, networks: usize) -> Self {
        site.write("/run/ctd/config.toml", release.configuration(networks));
        site.write("/run/ctd/crictl.yaml", "");
        let containerd = Self { site, release, daemon: Self::launch(site, release) };
        containerd.wait_until_it_answers();
        let image = Site::installed("image.tar");
        for namespace in ["default", "k8s.io"] {
            containerd
                .ctr(&format!("--namespace {namespace} images import {}", image.display()))
                .run()
                .success();
        }
        containerd
    }

    fn launch(site: &Site, release: Release) -> Running {
        let words = ["containerd", "--config", "/run/ctd/config.toml", "--log-level", "warn"];
        site.host().command(words).env("PATH", release.path()).start()
    }

    #[track_caller]
    fn wait_until_it_answers(&self) {
        wait_until("containerd answers", || {
            let ready = self.crictl("version").run().status == 0 && self.ctr("version").run().status == 0;
            ready.then_some(())
        });
    }

    /// Kills the daemon as the kernel would, and starts it again. Containers and their shims live on.
    #[track_caller]
    pub(crate) fn kill_and_restart(self) -> Self {
        let Self { site, release, daemon } = self;
        daemon.kill();
        daemon.wait();
        let containerd = Self { site, release, daemon: Self::launch(site, release) };
        containerd.wait_until_it_answers();
        containerd
    }

    /// Ends the daemon.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.daemon.kill();
        self.daemon.wait();
    }

    /// A `ctr` command as typed.
    pub(crate) fn ctr(&self, line: &str) -> Cmd {
        let words = ["ctr", "--address", SOCKET].into_iter().chain(line.split_whitespace());
        self.site.host().command(words).env("PATH", self.release.path())
    }

    /// A `crictl` command as typed.
    pub(crate) fn crictl(&self, line: &str) -> Cmd {
        let program = Site::installed("crictl");
        let endpoint = format!("unix://{SOCKET}");
        let options =
            ["--config", "/run/ctd/crictl.yaml", "--runtime-endpoint", &endpoint, "--timeout", "110s"];
        let program = [program.to_str().expect("the cache has a plain path")];
        let words = program.into_iter().chain(options).chain(line.split_whitespace());
        self.site.host().command(words)
    }

    /// Writes the description of a pod, `more` on top of what every pod has; the command that runs it.
    pub(crate) fn pod(&self, name: &str, more: &Value) -> Cmd {
        let mut pod = json!({
            "metadata": { "name": name, "uid": format!("uid-{name}"), "namespace": "default", "attempt": 0 },
            "hostname": name,
            "log_directory": "/run/ctd/logs",
            "linux": {},
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            pod[key] = value.clone();
        }
        let file = format!("/run/ctd/pods/{name}.json");
        self.site.write(&file, pod.to_string());
        self.crictl(&format!("runp {file}"))
    }

    /// Runs a pod; its id.
    #[track_caller]
    pub(crate) fn run_pod(&self, name: &str, more: &Value) -> String {
        self.pod(name, more).run().success().trim().to_owned()
    }

    /// Runs a web server in a pod that was run under `name`; the container's id.
    #[track_caller]
    pub(crate) fn run_container(&self, name: &str, pod: &str) -> String {
        let container = json!({
            "metadata": { "name": "web" },
            "image": { "image": IMAGE },
            "command": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"],
            "log_path": format!("{name}.log"),
            "linux": {},
        });
        let file = format!("/run/ctd/pods/{name}.web.json");
        self.site.write(&file, container.to_string());
        let created = self.crictl(&format!("create {pod} {file} /run/ctd/pods/{name}.json")).run();
        let id = created.success().trim().to_owned();
        self.crictl(&format!("start {id}")).run().success();
        id
    }

    /// Runs a command in a container of a pod.
    #[track_caller]
    pub(crate) fn exec(&self, container: &str, line: &str) -> Output {
        self.crictl(&format!("exec --sync {container} {line}")).run()
    }

    /// The address of a pod's first network.
    #[track_caller]
    pub(crate) fn address(&self, pod: &str) -> String {
        let inspected = self.crictl(&format!("inspectp {pod}")).run();
        inspected.success();
        inspected.json()["status"]["network"]["ip"].as_str().unwrap_or_default().to_owned()
    }

    /// Stops and removes a pod.
    #[track_caller]
    pub(crate) fn remove_pod(&self, pod: &str) {
        self.crictl(&format!("stopp {pod}")).run().success();
        self.crictl(&format!("rmp {pod}")).run().success();
    }

    /// Makes a network the only one, once the daemon has seen it.
    #[track_caller]
    pub(crate) fn use_network(&self, list: &Value) {
        let dir = self.site.path("/etc/cni/net.d");
        for file in fs::read_dir(&dir).into_iter().flatten().filter_map(Result::ok) {
            fs::remove_file(file.path())
                .unwrap_or_else(|error| panic!("remove {}: {error}", file.path().display()));
        }
        self.site.write("/etc/cni/net.d/10-network.conflist", list.to_string());
        wait_until("containerd has read its network", || {
            let info = self.crictl("info").run();
            let loaded = &info.json()["cniconfig"]["Networks"][1]["Config"];
            // What it shows of a network is the text of each plugin, with its keys in any order.
            let sources: Vec<Value> = loaded["Plugins"]
                .as_array()?
                .iter()
                .map(|plugin| {
                    serde_json::from_str(plugin["Source"].as_str().unwrap_or_default()).unwrap_or_default()
                })
                .collect();
            (loaded["Name"] == list["name"] && json!(sources) == list["plugins"]).then_some(())
        });
    }
}
