//! A program that a plugin runs: how it is started, waited for, and ended when nobody waits any more. Knows nothing of
//! what is said.

use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::signals::{self, ENDING};
use crate::{Error, ErrorCode};

/// How long a program has to end by itself when the caller is asked to end.
const GRACE: Duration = Duration::from_secs(1);

/// How a process ended, and what it wrote.
#[derive(Debug)]
pub struct Output {
    /// Its exit status, or the signal that ended it.
    pub status: ExitStatus,
    /// All that it wrote to stdout.
    pub stdout: Vec<u8>,
    /// All that it wrote to stderr.
    pub stderr: Vec<u8>,
}

/// A process that has been started and not waited for. Dropped before its end, it is killed: it outlives no call.
///
/// Its stdio are memory files and not pipes: one that does not read its stdin cannot block us, nor one that leaves a
/// process behind which holds its stdout.
#[derive(Debug)]
#[must_use = "a process is killed when it is dropped"]
pub struct Process {
    program: PathBuf,
    child: Unreaped,
    stdout: File,
    stderr: File,
}

impl Process {
    /// Runs `program` with these arguments, variables and stdin.
    ///
    /// The caller may hold signals back, so as not to leave things half done. The process gets them as ever.
    ///
    /// # Errors
    /// Code 5 when it cannot be executed, 11 when it is being written, as during an upgrade in place, or when there may be
    /// no other process at the moment.
    pub fn start(
        program: &Path,
        arguments: &[&str],
        variables: impl Iterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
        stdin: &[u8],
    ) -> Result<Self, Error> {
        spawn(program, arguments, variables, stdin).map_err(|errno| not_started(program, errno))
    }

    /// The program that it runs.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Waits until it has ended, and kills it when it has not a moment after a signal came that asks the caller to end
    /// and is held back.
    ///
    /// That signal is left for the caller to find. It is heeded here all the same: a program may run for long, and
    /// nothing says that it ever ends. But most end soon, and then nobody has to guess what they have done. On the
    /// [way back](signals::WayBack) it has half a minute, whatever comes.
    ///
    /// # Errors
    /// Code 11 when it was killed; 5 when the kernel refuses.
    pub fn wait(&mut self) -> Result<Output, Error> {
        let ended = self.end();
        let program = self.program.display();
        let killed = |why: String| Err(Error::new(ErrorCode::TRY_AGAIN_LATER, why));
        match ended {
            Ok(Ok(output)) => Ok(output),
            Ok(Err(Endless::Asked)) => killed(format!("asked to end while {program} ran")),
            Ok(Err(Endless::OnWayBack(patience))) => {
                killed(format!("{program} did not end within {} s", patience.as_secs()))
            }
            Err(error) => Err(Error::io(format_args!("wait for {program}"), &error)),
        }
    }

    /// Whether it has ended or does so within `patience`; it still has to be [waited for](Self::wait).
    ///
    /// # Errors
    /// What the kernel refuses to tell.
    pub fn ends_within(&self, patience: Duration) -> io::Result<bool> {
        let Some(pid) = self.child.0 else { return Ok(true) };
        ready(end_of(pid)?.as_fd(), None, Some(patience)).map(|ready| ready == Some(Ready::First))
    }

    /// How it ended, or why that is no longer waited for.
    fn end(&mut self) -> io::Result<Result<Output, Endless>> {
        match self.endless() {
            Ok(Some(endless)) => return Ok(Err(endless)),
            Ok(None) => {}
            // An old kernel, or a filter of system calls. A signal is heeded when the process has ended.
            Err(error) => log::debug!("wait for a signal as well: {error}"),
        }
        let status = self.child.reap()?;
        Ok(Ok(Output { status, stdout: content(&self.stdout)?, stderr: content(&self.stderr)? }))
    }

    /// Waits for the end as long as the caller has time; `None` if it has come, or nothing limits that time.
    fn endless(&self) -> io::Result<Option<Endless>> {
        let heeded = signals::heeded()?;
        let on_way_back = signals::way_back_patience();
        let is_bounded = on_way_back.is_some() || heeded.iter().next().is_some();
        let Some(pid) = self.child.0.filter(|_| is_bounded) else { return Ok(None) };
        let end = end_of(pid)?;
        if let Some(patience) = on_way_back {
            let ended = ready(end.as_fd(), None, Some(patience))?;
            return Ok(ended.is_none().then_some(Endless::OnWayBack(patience)));
        }
        let signals = SignalFd::with_flags(&heeded, SfdFlags::SFD_CLOEXEC)?;
        if ready(end.as_fd(), Some(signals.as_fd()), None)? == Some(Ready::First) {
            return Ok(None);
        }
        Ok(ready(end.as_fd(), None, Some(GRACE))?.is_none().then_some(Endless::Asked))
    }
}

/// Why a process is not waited for any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endless {
    /// The caller was asked to end.
    Asked,
    /// The caller is on its way back, and has more to take back.
    OnWayBack(Duration),
}

/// Which of two descriptors can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// The first, whether or not the second can be, too.
    First,
    Second,
}

/// Waits until one of two descriptors can be read; `None` when none can be within `patience`.
fn ready(
    first: BorrowedFd<'_>,
    second: Option<BorrowedFd<'_>>,
    patience: Option<Duration>,
) -> io::Result<Option<Ready>> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    let mut awaited: Vec<PollFd<'_>> =
        std::iter::once(first).chain(second).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = match left {
            Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        match poll(&mut awaited, timeout) {
            Ok(0) if left.is_some_and(|left| left.is_zero()) => return Ok(None),
            // What is left of a millisecond is not waited for.
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) if awaited[0].any() == Some(true) => return Ok(Some(Ready::First)),
            Ok(_) => return Ok(Some(Ready::Second)),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn not_started(program: &Path, errno: Errno) -> Error {
    let program = program.display();
    match errno {
        Errno::ETXTBSY | Errno::EAGAIN => {
            Error::new(ErrorCode::TRY_AGAIN_LATER, format!("execute {program}: {}", errno.desc()))
        }
        _ => Error::io(format_args!("execute {program}"), &errno.into()),
    }
}

fn spawn(
    program: &Path,
    arguments: &[&str],
    variables: impl Iterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>,
    stdin: &[u8],
) -> Result<Process, Errno> {
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
    let name = text(program.as_os_str())?;
    let words = arguments.iter().map(|word| text(OsStr::new(word))).collect::<Result<Vec<_>, _>>()?;
    let words: Vec<&CStr> = std::iter::once(&*name).chain(words.iter().map(|word| &**word)).collect();
    let variables = variables
        .map(|(name, value)| variable(name.as_ref(), value.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let pid = posix_spawn(&*name, &files, &attributes, &words, &variables)?;
    Ok(Process { program: program.to_owned(), child: Unreaped(Some(pid)), stdout, stderr })
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

fn text(words: &OsStr) -> Result<CString, Errno> {
    CString::new(words.as_bytes()).map_err(|_| Errno::EINVAL)
}

fn variable(name: &OsStr, value: &OsStr) -> Result<CString, Errno> {
    text(&[name, OsStr::new("="), value].into_iter().collect::<OsString>())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_a_program_from_its_start_for_a_while_can_work_later() {
        for (errno, code) in
            [(Errno::EAGAIN, ErrorCode::TRY_AGAIN_LATER), (Errno::EMFILE, ErrorCode::IO_FAILURE)]
        {
            let error = not_started(Path::new("/bin/fake"), errno);
            assert_eq!(error.code(), code);
            assert!(error.msg().starts_with("execute /bin/fake: "), "{error:?}");
        }
    }

    #[test]
    fn a_program_gets_its_words_and_its_stdin() {
        let words = ["-c", "read line; echo \"$line $1 $A\"; exit 3", "sh", "word"];
        let mut process =
            Process::start(Path::new("/bin/sh"), &words, [("A", "a")].into_iter(), b"stdin\n").unwrap();
        let output = process.wait().unwrap();
        assert_eq!((output.status.code(), &*output.stdout), (Some(3), &b"stdin word a\n"[..]));
    }

    #[test]
    fn a_program_that_hangs_on_the_way_back_is_waited_for_no_longer_than_the_rest_can_wait() {
        let _back = signals::WayBack::with_patience(Duration::from_millis(200));
        let variables = std::iter::empty::<(&str, &str)>();
        let mut hung = Process::start(Path::new("/bin/sleep"), &["1000"], variables, b"").unwrap();
        let given_up = hung.wait().unwrap_err();
        assert_eq!(given_up.code(), ErrorCode::TRY_AGAIN_LATER);
        assert_eq!(given_up.msg(), "/bin/sleep did not end within 0 s");
    }
}
