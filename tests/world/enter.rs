//! Runs one command in a world: `world enter PID NETNS COMMAND [ARGUMENT…]`.
//!
//! PID is the world's first process; NETNS is `host`, or the name of a namespace under `/run/netns`. Exits as the
//! command did, with 128 + n after signal n, as a shell does.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::geteuid;

use crate::private_dirs;

pub(crate) fn run(args: Vec<OsString>) -> Result<ExitCode> {
    let mut args = args.into_iter();
    let mut next = |what: &str| args.next().with_context(|| format!("no {what} given"));
    let (pid, netns, program) = (next("pid")?, next("netns")?, next("command")?);

    let here = std::env::current_dir().context("find the current directory")?;
    // All opened before the first step: the world's /proc does not show the process that enters it.
    let namespace = |name: &str| {
        let path = Path::new("/proc").join(&pid).join("ns").join(name);
        File::open(&path).with_context(|| format!("open {}", path.display()))
    };
    let (mounts, network, pids) = (namespace("mnt")?, namespace("net")?, namespace("pid")?);
    let (ipc, uts) = (namespace("ipc")?, namespace("uts")?);
    if !geteuid().is_root() {
        setns(namespace("user")?, CloneFlags::CLONE_NEWUSER).context("enter the user namespace")?;
    }
    setns(mounts, CloneFlags::CLONE_NEWNS).context("enter the mount namespace")?;
    // Entering leads to the root directory; where the world has the caller's directory too, go back there.
    if here.is_dir() {
        std::env::set_current_dir(&here).with_context(|| format!("change to {}", here.display()))?;
    }
    setns(ipc, CloneFlags::CLONE_NEWIPC).context("enter the IPC namespace")?;
    setns(uts, CloneFlags::CLONE_NEWUTS).context("enter the UTS namespace")?;
    if netns == "host" {
        setns(network, CloneFlags::CLONE_NEWNET).context("enter the host's network namespace")?;
    } else {
        let path = Path::new("/run/netns").join(&netns);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("enter {}", path.display()))?;
        unshare(CloneFlags::CLONE_NEWNS).context("make the container's mount namespace")?;
        private_dirs::mount_for_netns(&Path::new("/etc/netns").join(&netns))?;
    }
    setns(pids, CloneFlags::CLONE_NEWPID).context("enter the PID namespace")?;

    let mut command = Command::new(&program);
    command.args(args);
    let status = command.status().with_context(|| format!("run {}", program.display()))?;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(u8::try_from(code.unwrap_or(125)).unwrap_or(125)))
}
