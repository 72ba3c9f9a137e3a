//! podman 4 with its CNI backend, as Debian 12 has it, run by root or by an ordinary user; or with netavark, by root.

use std::fs;
use std::path::{Path, PathBuf};

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

/// What podman is run by, and where it keeps what it has.
const BY_ROOT: &str = "podman --root /run/podman/root --runroot /run/podman/run --tmpdir /run/podman/tmp \
                       --storage-driver overlay";
const BY_USER: &str = "setpriv --reuid 4242 --regid 4242 --clear-groups podman --root /var/lib/box/root \
                       --runroot /run/user/4242/podman --tmpdir /run/user/4242/libpod --storage-driver vfs";

/// podman on a site, with its own storage, and the image loaded.
pub(crate) struct Podman<'a> {
    site: &'a Site,
    storage: &'static str,
}

impl<'a> Podman<'a> {
    #[track_caller]
    pub(crate) fn new(site: &'a Site) -> Self {
        site.write("/etc/containers.conf", CONFIGURATION);
        let podman = Self { site, storage: BY_ROOT };
        podman.ok(&format!("load --quiet --input {}", Site::installed("image.tar").display()));
        podman
    }

    /// podman with netavark and aardvark-dns, which are at `programs`. Its networks are not kept in `/etc/containers`,
    /// which is the machine's own.
    #[track_caller]
    pub(crate) fn with_netavark(site: &'a Site, programs: &[PathBuf]) -> Self {
        const HELPERS: &str = "/run/helpers";
        site.host().run(&format!("mkdir -p {HELPERS}")).success();
        for program in programs {
            site.host().run(&format!("ln -s {} {HELPERS}/", program.display())).success();
        }
        let engine = format!("[engine]\nhelper_binaries_dir = [\"{HELPERS}\"]");
        let own = CONFIGURATION.replace("\"cni\"", "\"netavark\"").replace("[engine]", &engine);
        site.write("/etc/containers.conf", own.replace("/etc/cni/net.d", "/run/podman/networks"));
        let podman = Self { site, storage: BY_ROOT };
        podman.ok(&format!("load --quiet --input {}", Site::installed("image.tar").display()));
        podman
    }

    /// podman of an ordinary user, who has a home (not below `/run`, which podman hides from the plugins), a runtime
    /// directory and further numbers of users, but no right
    /// to see where the plugins were built or the image was made: both are copied.
    #[track_caller]
    pub(crate) fn of_a_user(site: &'a Site) -> Self {
        const USER: &str = "box:x:4242:4242::/var/lib/box:/bin/sh\n";
        for (file, content) in [
            ("passwd", USER),
            ("group", "box:x:4242:\n"),
            ("subuid", "box:100000:65536\n"),
            ("subgid", "box:100000:65536\n"),
        ] {
            // A link to the machine's own.
            let _absent = fs::remove_file(site.path(Path::new("/etc").join(file)));
            site.write(format!("/etc/{file}"), content);
        }
        let own = CONFIGURATION
            .replace("/opt/cni/bin", "/var/lib/box/plugins")
            .replace("/etc/cni/net.d", "/var/lib/box/networks");
        site.write("/etc/containers.conf", own);
        for line in [
            "mkdir -p /var/lib/box/networks /var/lib/box/bin /run/user/4242",
            // The world finds these by way of /run.
            "ln -s /usr/sbin/xtables-nft-multi /var/lib/box/bin/iptables",
            "ln -s /usr/sbin/xtables-nft-multi /var/lib/box/bin/ip6tables",
            "cp -rL /opt/cni/bin /var/lib/box/plugins",
            &format!("cp {} /var/lib/box/image.tar", Site::installed("image.tar").display()),
            "chown -R 4242:4242 /var/lib/box /run/user/4242",
            "chmod 700 /run/user/4242",
            "mknod -m 666 /run/tun c 10 200",
            "mount --bind /run/tun /dev/net/tun",
        ] {
            site.host().run(line).success();
        }
        let podman = Self { site, storage: BY_USER };
        podman.ok("load --quiet --input /var/lib/box/image.tar");
        podman
    }

    /// A podman command as typed.
    pub(crate) fn command(&self, line: &str) -> Cmd {
        let words = self.storage.split_whitespace().chain(line.split_whitespace());
        let command = self.site.host().command(words).env("CONTAINERS_CONF", "/etc/containers.conf");
        match self.storage {
            BY_USER => command
                .env("HOME", "/var/lib/box")
                .env("XDG_RUNTIME_DIR", "/run/user/4242")
                .env("PATH", "/var/lib/box/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            _ => command,
        }
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
