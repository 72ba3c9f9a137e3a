//! The directories that a world has for itself: `/run`, `/etc`, `/var/lib`, `/proc`, `/sys`.
//!
//! `/etc` and `/var/lib` keep what the machine has there, as links, so programs still find their configuration; what
//! a test or a plugin writes there (`/etc/resolv.conf`, `/etc/netns`, `/var/lib/cni`) stays in the world. Works in a
//! user namespace too, where no directory of the machine can be written.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use crate::init;

/// Where the machine's own directories are still to be seen.
const MACHINE: &str = "/run/machine";

/// Entries of `/etc` that a world writes itself.
const OWN_ETC: [&str; 4] = ["cni", "hosts", "netns", "resolv.conf"];

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";

pub(crate) fn mount_all() -> Result<()> {
    init::keep_mounts_private()?;
    pseudo("proc", "/proc")?;
    pseudo("sysfs", "/sys")?;
    pseudo("tmpfs", "/run")?;
    shadow("/etc", &OWN_ETC)?;
    shadow("/var/lib", &["cni"])?;
    write("/etc/hosts", HOSTS)?;
    write("/etc/resolv.conf", "")?;
    for dir in ["/etc/netns", "/etc/cni/net.d", "/var/lib/cni", "/run/netns"] {
        fs::create_dir_all(dir).with_context(|| format!("make {dir}"))?;
    }
    Ok(())
}

/// A container's own view: its files of `/etc/netns/NAME` in place of the world's, as `ip netns exec` does it, and
/// the `/sys` of the network namespace that the caller is in.
pub(crate) fn mount_for_netns(files: &Path) -> Result<()> {
    init::keep_mounts_private()?;
    pseudo("sysfs", "/sys")?;
    for name in ["hosts", "resolv.conf"] {
        let (from, to) = (files.join(name), Path::new("/etc").join(name));
        if from.exists() {
            mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .with_context(|| format!("mount {} on {}", from.display(), to.display()))?;
        }
    }
    Ok(())
}

fn pseudo(kind: &str, target: &str) -> Result<()> {
    mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
        .with_context(|| format!("mount {kind} on {target}"))
}

/// An empty `dir` with a link to each of the machine's entries, but for those in `own`.
fn shadow(dir: &str, own: &[&str]) -> Result<()> {
    let machine = format!("{MACHINE}{dir}");
    fs::create_dir_all(&machine).with_context(|| format!("make {machine}"))?;
    mount(Some(dir), machine.as_str(), None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("mount {dir} on {machine}"))?;
    pseudo("tmpfs", dir)?;
    for entry in fs::read_dir(&machine).with_context(|| format!("list {machine}"))? {
        let entry = entry.with_context(|| format!("list {machine}"))?;
        if own.iter().any(|name| entry.file_name() == **name) {
            continue;
        }
        let link = Path::new(dir).join(entry.file_name());
        symlink(entry.path(), &link).with_context(|| format!("make link {}", link.display()))?;
    }
    Ok(())
}

fn write(path: &str, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {path}"))
}
