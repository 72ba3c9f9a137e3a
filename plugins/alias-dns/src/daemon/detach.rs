//! Leaving the caller: a runtime waits for the end of its plugin's pipes, and stops everything in its session and its
//! control group, so that the server must hold none of them.

use std::ffi::OsStr;
use std::io::{Result, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use cni_types::logging;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::{ForkResult, close, fork, setsid};

use super::image::{self, LOG_VARIABLE, PASSED_ON, Part};
use super::seqpacket::Seqpacket;
use crate::state_dir::StateDir;

/// Names the descriptor by which whoever starts a server hears how it went.
pub(crate) const STARTER_VARIABLE: &str = "ALIAS_DNS_STARTER";

/// Names the state directory: the caller's environment, which else tells it, is not passed on.
const STATE_VARIABLE: &str = "ALIAS_DNS_STATE";

/// Where the control groups are mounted (cgroups(7)): one hierarchy of version 2, or one of version 1 a directory.
const CGROUPS: &str = "/sys/fs/cgroup";

/// The file of a control group that lists its members, and takes new ones.
const MEMBERS: &str = "cgroup.procs";

/// The first descriptor behind the standard ones.
const FIRST: u32 = 3;

/// A process' open descriptors, by number (proc(5)).
const OPEN: &str = "/proc/self/fd";

/// Descriptors that a server of many networks and connections needs.
const MAX_FILES: u64 = 16_384;

/// Starts this binary as the server of `state`; it has nothing in common with the caller but the returned channel.
pub(crate) fn start_server(state: &StateDir) -> Result<Seqpacket> {
    start(Part::Worker, STARTER_VARIABLE, |command| {
        command.current_dir("/").env(STATE_VARIABLE, state.path());
    })
}

/// Starts this binary as a guard of the server of `state`, which lives in its records; as [`start_server`] does.
pub(crate) fn start_guard(state: &StateDir) -> Result<Seqpacket> {
    start(Part::Guard, image::CHANNEL_VARIABLE, |command| {
        command.current_dir(state.records());
    })
}

/// Starts `part`, which finds the far end of the returned channel in `variable`.
fn start(part: Part, variable: &str, set: impl FnOnce(&mut Command)) -> Result<Seqpacket> {
    let (near, far) = Seqpacket::pair()?;
    let far = far.into_fd();
    // The image will stand where the first free descriptor may be.
    let inherited = fcntl(&far, FcntlArg::F_DUPFD_CLOEXEC(image::IMAGE_FD + 1))?;
    drop(far);
    // SAFETY: fcntl has just made this descriptor, so nobody else owns it.
    #[allow(unsafe_code, reason = "nix returns duplicated descriptors raw")]
    let inherited = unsafe { OwnedFd::from_raw_fd(inherited) };
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(OsStr::from_bytes(part.name().to_bytes()))
        .arg(OsStr::from_bytes(part.argument().to_bytes()))
        .env_clear()
        .env(variable, inherited.as_raw_fd().to_string());
    set(&mut command);
    for variable in PASSED_ON {
        command.envs(std::env::var_os(variable).map(|value| (variable, value)));
    }
    command.stdin(Stdio::null()).stdout(Stdio::null());
    if let Some((file, level)) = logging::file() {
        command.stderr(file).env(LOG_VARIABLE, level.as_str());
    } else if std::env::var_os(image::CHANNEL_VARIABLE).is_some() {
        // A part of a server itself: its own log is the new one's.
        command.stderr(Stdio::inherit());
    } else {
        command.stderr(Stdio::null());
    }
    // SAFETY: between fork and exec only system calls are made, on values that exist already.
    #[allow(unsafe_code, reason = "what happens between fork and exec cannot be checked by the compiler")]
    unsafe {
        command.pre_exec(move || {
            // What it cannot mark, the server itself closes.
            let _ = close_range(FIRST, u32::MAX, nix::libc::CLOSE_RANGE_CLOEXEC);
            fcntl(&inherited, FcntlArg::F_SETFD(FdFlag::empty()))?;
            setsid()?;
            // Other name servers read their files anew at it, and whoever is used to that sends it to all processes of the
            // name at once; this one has nothing to read, and would be gone with all its parts.
            signal(Signal::SIGHUP, SigHandler::SigIgn)?;
            umask(Mode::from_bits_truncate(0o022));
            // A session's leader could get a terminal again; its child cannot, and nobody waits for it.
            match fork()? {
                ForkResult::Parent { .. } => nix::libc::_exit(0),
                ForkResult::Child => Ok(()),
            }
        });
    }
    // This waits for the exec of the grandchild, and then for the end of the child.
    let _ = command.spawn()?.wait();
    Ok(near)
}

/// The channel to whoever started this server by [`start_server`], and the state directory given with it; `None` for a
/// person.
pub(crate) fn inherited_starter() -> Option<(Seqpacket, StateDir)> {
    let state = std::env::var_os(STATE_VARIABLE)?;
    let number = std::env::var(STARTER_VARIABLE).ok()?.parse().ok()?;
    Some((image::inherited(number)?.into(), StateDir::at(state)))
}

/// Logs as the plugin does that has handed over its log file.
pub(crate) fn follow_log(part: Part) {
    let level = std::env::var(LOG_VARIABLE).ok().and_then(|level| level.parse().ok());
    if let (Some(level), Ok(part)) = (level, part.argument().to_str()) {
        logging::date_stderr(level, part);
    }
}

/// What a new server does first: everything inherited but `keep` is closed, and the control group left.
pub(crate) fn settle(keep: Option<RawFd>) {
    close_inherited(keep);
    leave_cgroups(Path::new(CGROUPS));
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(MAX_FILES);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
    }
    forget_limit_of_processes();
}

/// Takes as many processes as may be had. The limit was meant for the caller's user; this one is to become nobody, whose
/// processes in all containers are counted together (getrlimit(2), RLIMIT_NPROC), and must start another worker then.
fn forget_limit_of_processes() {
    let unlimited = setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY);
    if let (Err(_), Ok((_, hard))) = (unlimited, getrlimit(Resource::RLIMIT_NPROC)) {
        let _ = setrlimit(Resource::RLIMIT_NPROC, hard, hard);
    }
}

/// Joins the topmost control groups below `top`. Where one cannot be written, the server stays where it is, dies with the
/// caller's group, and is started again by the next ADD.
fn leave_cgroups(top: &Path) {
    let join = |group: &Path| {
        // Without a hierarchy there is no such file, and none must be made.
        let members = std::fs::File::options().write(true).open(group.join(MEMBERS));
        members.and_then(|mut members| members.write_all(b"0"))
    };
    // A file of that name in front of hierarchies is somebody's mistake, and the groups of version 2 are no hierarchies.
    if statfs(top).is_ok_and(|cgroups| cgroups.filesystem_type() == CGROUP2_SUPER_MAGIC) {
        let _ = join(top);
        return;
    }
    for hierarchy in std::fs::read_dir(top).into_iter().flatten().flatten() {
        let _ = join(&hierarchy.path());
    }
}

fn close_inherited(keep: Option<RawFd>) {
    let closed = match keep.and_then(|keep| u32::try_from(keep).ok()) {
        Some(keep) => close_range(FIRST, keep - 1, 0).and_then(|()| close_range(keep + 1, u32::MAX, 0)),
        None => close_range(FIRST, u32::MAX, 0),
    };
    if closed.is_err() {
        close_one_by_one(keep);
    }
}

/// Where close_range(2) is not to be had. Without `/proc` nobody tells what is open, and it stays so.
fn close_one_by_one(keep: Option<RawFd>) {
    let listed = std::fs::read_dir(OPEN).into_iter().flatten().flatten();
    let numbers = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<RawFd>().ok());
    // The listing is closed before what it lists is: its own descriptor is among them.
    let inherited: Vec<_> = numbers
        .filter(|number| u32::try_from(*number).is_ok_and(|number| number >= FIRST) && Some(*number) != keep)
        .collect();
    for number in inherited {
        let _ = close(number);
    }
}

/// close_range(2), of Linux 5.9; its flag [`CLOSE_RANGE_CLOEXEC`](nix::libc::CLOSE_RANGE_CLOEXEC) is of 5.11.
fn close_range(first: u32, last: u32, flags: u32) -> nix::Result<()> {
    // SAFETY: called before anything of this process owns a descriptor in the range, or only to mark it.
    #[allow(unsafe_code, reason = "nix does not know close_range")]
    let closed = unsafe { nix::libc::syscall(nix::libc::SYS_close_range, first, last, flags) };
    Errno::result(closed).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_hierarchy_is_left_whatever_stands_beside_them() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join(MEMBERS), "123\n").unwrap();
        for hierarchy in ["memory", "unified"] {
            std::fs::create_dir(top.path().join(hierarchy)).unwrap();
            std::fs::write(top.path().join(hierarchy).join(MEMBERS), "").unwrap();
        }
        std::fs::create_dir(top.path().join("none")).unwrap();
        leave_cgroups(top.path());
        let written = |path: &str| std::fs::read_to_string(top.path().join(path).join(MEMBERS));
        for hierarchy in ["memory", "unified"] {
            assert_eq!(written(hierarchy).unwrap(), "0", "{hierarchy}");
        }
        assert_eq!(written("").unwrap(), "123\n");
        assert!(written("none").is_err());
    }
}
