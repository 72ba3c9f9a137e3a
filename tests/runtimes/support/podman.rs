//! podman 4 with its CNI backend, as Debian 12 has it.

use integration_tests::{Cmd, Output};

use super::Site;

const CONFIGURATION: &str = r#"
[containers]
default_ulimits = ["nofile=1024:4096", "nproc=4096:4096"]
log_driver = "k8s-file"

[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"

[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
"#;

/// podman on a site, with its own storage, and the image loaded.
pub(crate) struct Podman<'a> {
    site: &'a Site,
}

impl<'a> Podman<'a> {
    #[track_caller]
    pub(crate) fn new(site: &'a Site) -> Self {
        site.write("/etc/containers.conf", CONFIGURATION);
        let podman = Self { site };
        podman.ok(&format!("load --quiet --input {}", Site::installed("image.tar").display()));
        podman
    }

    /// A podman command as typed.
    pub(crate) fn command(&self, line: &str) -> Cmd {
        const STORAGE: &str = "podman --root /run/podman/root --runroot /run/podman/run --tmpdir /run/podman/tmp \
                               --storage-driver overlay";
        let words = STORAGE.split_whitespace().chain(line.split_whitespace());
        self.site.host().command(words).env("CONTAINERS_CONF", "/etc/containers.conf")
    }

    /// Runs a podman command, which must succeed; what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        self.command(line).run().success().trim().to_owned()
    }

    /// Starts a container called `name` with these options of `podman run`.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, options: &str) {
        self.ok(&format!("run --detach --name {name} {options} {}", super::site::IMAGE));
    }

    /// Runs a command in a container.
    #[track_caller]
    pub(crate) fn exec(&self, container: &str, line: &str) -> Output {
        self.command(&format!("exec {container} {line}")).run()
    }

    /// The container's address on a network, as podman knows it.
    #[track_caller]
    pub(crate) fn address(&self, container: &str, network: &str) -> String {
        let inspected = self.command(&format!("inspect {container}")).run();
        inspected.success();
        let address = &inspected.json()[0]["NetworkSettings"]["Networks"][network]["IPAddress"];
        address.as_str().unwrap_or_else(|| panic!("{container} has no address on {network}")).to_owned()
    }

    /// Removes all containers and these networks.
    #[track_caller]
    pub(crate) fn remove_all(&self, networks: &[&str]) {
        self.ok("rm --all --force --time 0");
        for network in networks {
            self.ok(&format!("network rm {network}"));
        }
    }
}
