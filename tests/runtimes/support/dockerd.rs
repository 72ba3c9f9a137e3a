//! Docker 20.10: the system whose behaviour this suite brings to other runtimes.

use integration_tests::{Cmd, Running, wait_until};

use super::Site;

const SOCKET: &str = "unix:///run/docker.sock";

/// A dockerd that runs on a site, with the image loaded.
pub(crate) struct Dockerd<'a> {
    site: &'a Site,
    daemon: Running,
}

impl<'a> Dockerd<'a> {
    #[track_caller]
    pub(crate) fn start(site: &'a Site) -> Self {
        // One that finds forwarding off also closes the host's FORWARD chain, which is not what is looked at here.
        site.host().run("sysctl -q -w net.ipv4.ip_forward=1").success();
        let dockerd = Self { site, daemon: Self::launch(site, "") };
        dockerd.wait_until_it_answers();
        dockerd.ok(&format!("load --quiet --input {}", Site::installed("image.tar").display()));
        dockerd
    }

    fn launch(site: &Site, options: &str) -> Running {
        site.host().start(&format!(
            "dockerd --host {SOCKET} --data-root /run/docker/data --exec-root /run/docker/exec \
             --pidfile /run/docker/pid --exec-opt native.cgroupdriver=cgroupfs \
             --default-ulimit nofile=1024:4096 --log-level error {options}"
        ))
    }

    #[track_caller]
    fn wait_until_it_answers(&self) {
        wait_until("dockerd answers", || (self.command("version").run().status == 0).then_some(()));
    }

    /// Kills the daemon as the kernel would. What it has started lives on.
    pub(crate) fn kill(&self) {
        self.daemon.kill();
        // Its containerd keeps its output open, so its end is not that of the command.
        wait_until("dockerd is gone", || (self.command("version").run().status != 0).then_some(()));
    }

    /// Starts another daemon in the place of one that was killed.
    #[track_caller]
    pub(crate) fn restart(&mut self, options: &str) {
        self.daemon = Self::launch(self.site, options);
        self.wait_until_it_answers();
    }

    /// A docker command as typed.
    pub(crate) fn command(&self, line: &str) -> Cmd {
        let words = ["/usr/bin/docker", "--host", SOCKET].into_iter().chain(line.split_whitespace());
        self.site.host().command(words)
    }

    /// Runs a docker command, which must succeed; what it printed.
    #[track_caller]
    pub(crate) fn ok(&self, line: &str) -> String {
        self.command(line).run().success().trim().to_owned()
    }

    /// Starts a container called `name` with these options of `docker run`.
    #[track_caller]
    pub(crate) fn run(&self, name: &str, options: &str) {
        self.ok(&format!("run --detach --name {name} {options} {}", super::IMAGE));
    }

    /// Ends the daemon.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.ok("ps --quiet");
        self.daemon.kill();
        self.daemon.wait();
    }
}
