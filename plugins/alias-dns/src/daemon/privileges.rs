//! Giving up rights: user and groups, capabilities, what executing could add, and all system calls but those needed.
//!
//! Packets come from anybody, so whoever parses them must own nothing. Each step is tried by itself, for not every
//! place allows every one: inside a user namespace there may be no other user to become.

use std::collections::BTreeMap;

use nix::sys::prctl;
use nix::unistd::{Gid, Uid, getegid, geteuid, setgroups, setresgid, setresuid};
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::image::IMAGE_FD;

/// The user and group that own nothing.
const NOBODY: u32 = 65_534;

/// Becomes nobody where that is possible, without capabilities, and without a way to get any by executing a file.
///
/// # Errors
/// Names what still is held afterwards.
pub(crate) fn drop_rights() -> Result<(), String> {
    if geteuid().is_root() {
        // Takes a capability itself, so first of all.
        if let Err(error) = caps::clear(None, caps::CapSet::Bounding) {
            log::debug!("bounding set: {error}");
        }
        // The groups first: without the user's rights they could no longer be left.
        let left = setgroups(&[])
            .and_then(|()| setresgid(Gid::from_raw(NOBODY), Gid::from_raw(NOBODY), Gid::from_raw(NOBODY)))
            .and_then(|()| setresuid(Uid::from_raw(NOBODY), Uid::from_raw(NOBODY), Uid::from_raw(NOBODY)));
        if let Err(errno) = left {
            log::debug!("stay user {} and group {}: {errno}", geteuid(), getegid());
        }
    }
    prctl::set_no_new_privs().map_err(|errno| format!("no_new_privs: {errno}"))?;
    for set in
        [caps::CapSet::Ambient, caps::CapSet::Inheritable, caps::CapSet::Effective, caps::CapSet::Permitted]
    {
        caps::clear(None, set).map_err(|error| format!("capabilities: {error}"))?;
    }
    Ok(())
}

/// Refuses every system call that [`allowed`] does not name, for this process and all that it starts.
///
/// # Errors
/// When the kernel does not take the filter.
pub(crate) fn confine() -> Result<(), String> {
    let arch = std::env::consts::ARCH.try_into().map_err(|error| format!("system-call filter: {error}"))?;
    // A refused call fails with EPERM, as for a user without the right. A kill would turn a library's harmless probe
    // into an outage.
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(
        allowed().map_err(|error| format!("system-call filter: {error}"))?,
        refuse,
        SeccompAction::Allow,
        arch,
    )
    .and_then(seccompiler::BpfProgram::try_from)
    .map_err(|error| format!("system-call filter: {error}"))
    .and_then(|program| {
        seccompiler::apply_filter(&program).map_err(|error| format!("system-call filter: {error}"))
    })
}

/// What the worker needs, and what a supervisor needs that the worker starts when its own is gone.
///
/// Nothing here makes, writes, renames or removes a file, changes the network, makes a namespace, or touches another
/// user's process. One image can be executed: that at [`IMAGE_FD`], which cannot be closed or replaced, for nothing here
/// duplicates a descriptor to a given number.
fn allowed() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ANY_ARGUMENTS.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_close, vec![when(0, SeccompCmpOp::Ne, IMAGE_FD as u64)?]);
    rules.insert(
        libc::SYS_execveat,
        vec![SeccompRule::new(vec![
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, IMAGE_FD as u64)?,
            SeccompCondition::new(4, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::AT_EMPTY_PATH as u64)?,
        ])?],
    );
    rules.insert(
        libc::SYS_fcntl,
        [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL]
            .into_iter()
            .map(|command| when(1, SeccompCmpOp::Eq, command as u64))
            .collect::<Result<_, _>>()?,
    );
    // Files are opened to be read.
    let writes = (libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC) as u64;
    rules.insert(libc::SYS_openat, vec![when(2, SeccompCmpOp::MaskedEq(writes), libc::O_RDONLY as u64)?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![when(1, SeccompCmpOp::MaskedEq(writes), libc::O_RDONLY as u64)?]);
    // Processes are started where this one is.
    let elsewhere = libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWUTS;
    rules.insert(libc::SYS_clone, vec![when(0, SeccompCmpOp::MaskedEq(elsewhere as u64), 0)?]);
    // The index of a device by its name, for addresses with a scope; and what a C library asks of a descriptor.
    rules.insert(
        libc::SYS_ioctl,
        [u64::from(libc::SIOCGIFINDEX as u32), u64::from(libc::FIONBIO as u32)]
            .into_iter()
            .map(|request| when(1, SeccompCmpOp::Eq, request))
            .collect::<Result<_, _>>()?,
    );
    rules.insert(
        libc::SYS_socket,
        [libc::AF_INET, libc::AF_INET6, libc::AF_UNIX]
            .into_iter()
            .map(|family| when(0, SeccompCmpOp::Eq, family as u64))
            .collect::<Result<_, _>>()?,
    );
    Ok(rules)
}

fn when(argument: u8, is: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value)?])
}

const ANY_ARGUMENTS: &[i64] = &[
    // Sockets that are open already or come over the control socket; upstream queries.
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Waiting.
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_restart_syscall,
    // Reading records and resolv.conf.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_fstat,
    libc::SYS_getdents64,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_lseek,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    libc::SYS_newfstatat,
    libc::SYS_read,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    libc::SYS_statx,
    libc::SYS_write,
    libc::SYS_writev,
    // Memory, signals, the C library.
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_tkill,
    // Starting this image again, and being started.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_arch_prctl,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_exit,
    libc::SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    libc::SYS_prctl,
    libc::SYS_rseq,
    libc::SYS_seccomp,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_wait4,
];

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn the_filter_can_be_built() {
        let rules = allowed().unwrap();
        assert!(!rules.contains_key(&libc::SYS_execve) && !rules.contains_key(&libc::SYS_dup3));
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter = SeccompFilter::new(rules, SeccompAction::Errno(1), SeccompAction::Allow, arch).unwrap();
        assert!(seccompiler::BpfProgram::try_from(filter).unwrap().len() > 50);
    }

    #[test]
    fn files_are_read_and_not_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "content").unwrap();
        // The filter is that of a thread, and goes with it.
        let confined = std::thread::spawn(move || {
            prctl::set_no_new_privs().unwrap();
            confine().unwrap();
            let refused = |options: &mut OpenOptions| options.open(&path).unwrap_err().raw_os_error();
            (
                std::fs::read_to_string(&path).unwrap(),
                refused(OpenOptions::new().write(true)),
                refused(OpenOptions::new().read(true).append(true)),
                refused(OpenOptions::new().write(true).create(true).truncate(true)),
            )
        });
        let refused = Some(libc::EPERM);
        assert_eq!(confined.join().unwrap(), ("content".to_owned(), refused, refused, refused));
    }
}
