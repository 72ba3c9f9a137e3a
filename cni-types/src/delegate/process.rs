//! The process of a delegate: how it is started, waited for, and ended when nobody waits any more. Knows nothing of what
//! is said.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::ExitStatus;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// Signals that ask a process to end and leave it the time to do so.
const ENDING: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// How a process ended, and what it wrote.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

/// How the wait for a process ended.
pub(super) enum End {
    Exited(Output),
    /// A signal asked the caller to end, so the process was killed.
    Interrupted,
}

/// A process that has been started and not waited for.
///
/// Its stdio are memory files and not pipes: one that does not read its stdin cannot block us, nor one that leaves a
/// process behind which holds its stdout.
#[derive(Debug)]
pub(super) struct Process {
    child: Unreaped,
    stdout: File,
    stderr: File,
}

impl Process {
    /// Runs `program` with these variables and this stdin.
    ///
    /// The caller may hold signals back, so as not to leave things half done. The process gets them as ever.
    pub(super) fn start<'a>(
        program: &Path,
        variables: impl Iterator<Item = (&'a OsStr, &'a OsStr)>,
        stdin: &[u8],
    ) -> Result<Self, Errno> {
        let stdin = memory_file(stdin)?;
        let (stdout, stderr) = (memory_file(&[])?, memory_file(&[])?);
        let mut files = PosixSpawnFileActions::init()?;
        for (file, number) in [(&stdin, 0), (&stdout, 1), (&stderr, 2)] {
            files.add_dup2(file.as_raw_fd(), number)?;
        }
        let mut attributes = PosixSpawnAttr::init()?;
        let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
        attributes.set_flags(flags)?;
        let mut mask = SigSet::thread_get_mask()?;
        ENDING.into_iter().for_each(|signal| mask.remove(signal));
        attributes.set_sigmask(&mask)?;
        attributes.set_sigdefault(&[Signal::SIGPIPE, Signal::SIGXFSZ].into_iter().collect())?;
        let program = CString::new(program.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
        let variables =
            variables.map(|(name, value)| variable(name, value)).collect::<Result<Vec<_>, _>>()?;
        let pid = posix_spawn(&*program, &files, &attributes, &[&*program], &variables)?;
        Ok(Self { child: Unreaped(Some(pid)), stdout, stderr })
    }

    /// Waits until it has ended, and kills it when a signal comes that asks the caller to end and is held back.
    ///
    /// That signal is left for the caller to find. It is heeded here all the same: a delegate may run for long, and
    /// nothing says that it ever ends.
    pub(super) fn wait(mut self) -> io::Result<End> {
        let held = SigSet::thread_get_mask()?;
        let heeded: SigSet = ENDING.into_iter().filter(|signal| held.contains(*signal)).collect();
        if heeded.iter().next().is_some() {
            match self.is_interrupted_by(&heeded) {
                Ok(true) => return Ok(End::Interrupted),
                Ok(false) => {}
                // An old kernel, or a filter of system calls. The signal is heeded when the process has ended.
                Err(error) => log::debug!("wait for a signal as well: {error}"),
            }
        }
        let status = self.child.reap()?;
        Ok(End::Exited(Output { status, stdout: content(&self.stdout)?, stderr: content(&self.stderr)? }))
    }

    /// Waits until one of `signals` has come or the process has ended; `false` if it has.
    fn is_interrupted_by(&self, signals: &SigSet) -> io::Result<bool> {
        let Some(pid) = self.child.0 else { return Ok(false) };
        let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC)?;
        let end = end_of(pid)?;
        let mut awaited =
            [PollFd::new(end.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        while let Err(errno) = poll(&mut awaited, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        Ok(awaited[0].any() != Some(true))
    }
}

/// A child process, killed if it is let go of before it has been waited for.
#[derive(Debug)]
struct Unreaped(Option<Pid>);

impl Unreaped {
    /// Waits for its end, once.
    fn reap(&mut self) -> Result<ExitStatus, Errno> {
        let pid = self.0.take().ok_or(Errno::ECHILD)?;
        loop {
            match waitpid(pid, None) {
                Ok(WaitStatus::Exited(_, code)) => return Ok(ExitStatus::from_raw(code << 8)),
                Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(ExitStatus::from_raw(signal as i32)),
                // Without the options that ask for them, nothing else is told.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}

impl Drop for Unreaped {
    fn drop(&mut self) {
        let Some(pid) = self.0 else { return };
        // Neither fails for a child that has not been waited for, and there is nobody to tell.
        let _ = kill(pid, Signal::SIGKILL);
        let _ = self.reap();
    }
}

/// A descriptor that becomes readable when `child` ends (pidfd_open(2)).
fn end_of(child: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers, and the descriptor that it makes belongs to nobody else.
    #[allow(unsafe_code, reason = "neither std nor nix opens a pidfd")]
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(child.as_raw()), 0) {
            fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd as libc::c_int)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn variable(name: &OsStr, value: &OsStr) -> Result<CString, Errno> {
    let mut text = Vec::with_capacity(name.len() + value.len() + 2);
    text.extend_from_slice(name.as_bytes());
    text.push(b'=');
    text.extend_from_slice(value.as_bytes());
    CString::new(text).map_err(|_| Errno::EINVAL)
}

/// A file in memory, at its beginning.
fn memory_file(content: &[u8]) -> Result<File, Errno> {
    let file = File::from(memfd_create("cni", MFdFlags::MFD_CLOEXEC)?);
    if !content.is_empty() {
        // At a position, so that whoever gets it reads from the beginning.
        file.write_all_at(content, 0)
            .map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    }
    Ok(file)
}

/// All of a file, wherever it stands.
fn content(file: &File) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}
