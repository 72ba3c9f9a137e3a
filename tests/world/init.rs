//! Makes the namespaces of a world and is their first process.
//!
//! An ordinary user gets a user namespace around them, in which that user is root. Ends when stdin closes: the
//! kernel then kills whatever is left in the PID namespace, and the other namespaces go with their last process.

use std::io::{Read as _, Write as _};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{getegid, geteuid};

use crate::private_dirs;

/// Outside the PID namespace: makes everything, starts the first process, says its pid and waits for it.
pub(crate) fn make_namespaces() -> Result<ExitCode> {
    become_root()?;
    let private = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(private).context("make the world's namespaces")?;
    let itself = std::env::current_exe().context("find the world program")?;
    let mut first = Command::new(itself).arg("first").spawn().context("start the world's first process")?;
    say(&format!("pid {}", first.id()))?;
    let status = first.wait().context("wait for the world's first process")?;
    ensure!(status.success(), "the world's first process ended: {status}");
    Ok(ExitCode::SUCCESS)
}

/// Inside: its own mounts, loopback up, `ready` on stdout, then nothing but reaping until stdin closes.
pub(crate) fn be_first_process() -> Result<ExitCode> {
    private_dirs::mount_all()?;
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().context("run ip")?;
    ensure!(up.success(), "ip link set lo up: {up}");

    let children = SigSet::from(Signal::SIGCHLD);
    children.thread_block().context("block SIGCHLD")?;
    std::thread::spawn(move || reap(children));
    say("ready")?;
    std::io::stdin().read_to_end(&mut Vec::new()).context("wait for the end of the test")?;
    Ok(ExitCode::SUCCESS)
}

fn become_root() -> Result<()> {
    let (user, group) = (geteuid(), getegid());
    if user.is_root() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWUSER).context(
        "make a user namespace (this kernel may refuse it to ordinary users: run the tests as root then)",
    )?;
    for (file, content) in [
        ("/proc/self/setgroups", "deny".to_owned()),
        ("/proc/self/uid_map", format!("0 {user} 1")),
        ("/proc/self/gid_map", format!("0 {group} 1")),
    ] {
        std::fs::write(file, content).with_context(|| format!("write {file}"))?;
    }
    Ok(())
}

/// Orphans of the world are the first process's to collect; a zombie would look like something left behind.
fn reap(children: SigSet) {
    while children.wait().is_ok() {
        while matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Ok(status) if status != WaitStatus::StillAlive)
        {
        }
    }
}

fn say(line: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).context("write to the test")
}

/// Mounts that come from another mount namespace must not go back there.
pub(crate) fn keep_mounts_private() -> Result<()> {
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("make all mounts private")
}
