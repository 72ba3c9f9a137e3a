//! A world that container runtimes can run in.

use std::fs;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use integration_tests::{Snapshot, World, wait_until};

/// The image that every container of these tests is made of: busybox, ping, getent, ip, nc, and a web server that
/// tells its callers which address it saw them under.
pub(crate) const IMAGE: &str = "localhost/box:1";

/// A world with what a runtime expects of a machine besides: control groups, shared memory, the plugins in
/// `/opt/cni/bin`.
pub(crate) struct Site {
    world: World,
    before: Snapshot,
}

impl Site {
    /// A machine with every plugin: ours, and of the reference's those that we have no answer to.
    #[track_caller]
    pub(crate) fn new() -> Self {
        let world = World::new();
        world.install_plugins();
        let host = world.host();
        let mount = |line: &str| {
            host.run(&format!("mount {line}")).success();
        };
        mount("--bind /run/opt /opt");
        mount("-t tmpfs shm /dev/shm");
        match control_groups() {
            ControlGroups::Unified => mount("-t cgroup2 cgroup /sys/fs/cgroup"),
            ControlGroups::Legacy(hierarchies) => {
                mount("-t tmpfs cgroup /sys/fs/cgroup");
                for (options, place) in hierarchies {
                    host.run(&format!("mkdir -p {place}")).success();
                    mount(&format!("-t cgroup -o {options} cgroup {place}"));
                }
            }
        }
        world.write("/etc/resolv.conf", "nameserver 203.0.113.9\n");
        let before = Snapshot::of(&world);
        Self { world, before }
    }

    /// A file that `scripts/setup-runtimes` made.
    ///
    /// # Panics
    /// When it is not there.
    #[track_caller]
    pub(crate) fn installed(name: &str) -> PathBuf {
        let dir = std::env::var_os("CNI_TEST_RUNTIMES").map_or_else(cache, PathBuf::from);
        let path = dir.join(name);
        assert!(path.exists(), "no {}: run scripts/setup-runtimes, or set CNI_TEST_RUNTIMES", path.display());
        path
    }

    /// Asserts that nothing of any container is left on the host but these bridges.
    ///
    /// # Panics
    /// With everything else that is left.
    #[track_caller]
    pub(crate) fn assert_nothing_is_left(&self, bridges: &[&str]) {
        self.assert_nothing_is_left_but(bridges, &[]);
    }

    /// Asserts that nothing of any container is left on the host: no link, rule, lease, record, namespace or
    /// process. The bridges called so stay by intent, as do `expected`, told as those of
    /// [`Snapshot::assert_unchanged_but`].
    ///
    /// # Panics
    /// With everything that is left.
    #[track_caller]
    pub(crate) fn assert_nothing_is_left_but(&self, bridges: &[&str], expected: &[&str]) {
        // The server of names outlives its last record by some seconds, so that a restarted container finds it.
        wait_until("the server of names has ended, and left nothing", || {
            let processes = self.world.host().run("ps -e -o args=").stdout;
            let lives = ["alias-dns serve", "cni-names guard"].iter().any(|name| processes.contains(name));
            let files = fs::read_dir(self.world.path("/run/cni/alias-dns")).into_iter().flatten();
            (!lives && files.count() == 0).then_some(())
        });
        self.before.assert_nothing_is_left(&self.world, bridges, expected);
        let entries =
            fs::read_dir(self.world.path("/run/netns")).into_iter().flatten().filter_map(Result::ok);
        let mut namespaces: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        namespaces.retain(|name| name != "outside");
        assert!(namespaces.is_empty(), "namespaces are left: {namespaces:?}");
    }
}

impl Deref for Site {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Path::new(&std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    base.unwrap_or_else(home).join("cni-runtimes")
}

/// How this machine mounts control groups.
enum ControlGroups {
    /// Version 2, in one tree.
    Unified,
    /// Version 1: the options that name each hierarchy, and its place.
    Legacy(Vec<(String, String)>),
}

fn control_groups() -> ControlGroups {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("every process can read its mounts");
    let known = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    let controllers: Vec<&str> = known.lines().filter_map(|line| line.split('\t').next()).collect();
    let mut hierarchies = Vec::new();
    for line in mounts.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let place = front.split(' ').nth(4).unwrap_or_default();
        let mut back = back.split(' ');
        let (kind, options) = (back.next().unwrap_or_default(), back.nth(1).unwrap_or_default());
        if kind == "cgroup2" && place == "/sys/fs/cgroup" {
            return ControlGroups::Unified;
        }
        if kind == "cgroup" {
            // Only the controllers and the name tell a hierarchy; the flags are those of its first mount.
            let names = options
                .split(',')
                .filter(|option| option.starts_with("name=") || controllers.contains(option));
            hierarchies.push((names.collect::<Vec<_>>().join(","), place.to_owned()));
        }
    }
    ControlGroups::Legacy(hierarchies)
}
