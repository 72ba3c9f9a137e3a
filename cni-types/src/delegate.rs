//! Calling another plugin: find it in `CNI_PATH`, run it with the caller's environment and stdin, read its answer.
//!
//! CNI spec 1.1.0, section 4 "Plugin Delegation".

use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Output};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde_json::Value;

use crate::command::Command;
use crate::skel::NetworkCall;
use crate::{CniResult, Error, ErrorCode};

/// A plugin found on disk.
#[derive(Debug, Clone)]
pub struct Delegate {
    program: PathBuf,
}

impl Delegate {
    /// Finds the plugin called `name` in the directories of `CNI_PATH`, the first one that has it.
    ///
    /// # Errors
    /// Code 7 with the reference's texts when there is no such file.
    pub fn find(name: &str, path: &[PathBuf]) -> Result<Self, Error> {
        let invalid = |msg: String| Error::new(ErrorCode::INVALID_CONFIG, msg);
        if name.is_empty() {
            return Err(invalid("no plugin name provided".into()));
        }
        if name.contains('/') {
            return Err(invalid(format!("invalid plugin name: {name}")));
        }
        match path.iter().map(|directory| directory.join(name)).find(|program| program.is_file()) {
            Some(program) => Ok(Self { program }),
            None => {
                let searched: Vec<_> = path.iter().map(|directory| directory.display().to_string()).collect();
                Err(invalid(format!("failed to find plugin \"{name}\" in path [{}]", searched.join(" "))))
            }
        }
    }

    /// The program that is run.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// ADD, with the delegate's result.
    ///
    /// # Errors
    /// The delegate's own error, its code kept; code 6 when its output is no result.
    pub fn add(&self, call: &NetworkCall) -> Result<CniResult, Error> {
        let stdout = self.run(Command::Add, call)?;
        let unreadable = |reason: String| {
            let output = String::from_utf8_lossy(&stdout);
            Error::new(
                ErrorCode::DECODING_FAILURE,
                format!("plugin {} answered ADD with no valid result: {reason}", self.program.display()),
            )
            .with_details(output)
        };
        let document: Value =
            serde_json::from_slice(&stdout).map_err(|error| unreadable(error.to_string()))?;
        CniResult::decode(&document, call.conf().version()).map_err(|error| unreadable(error.to_string()))
    }

    /// CHECK.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn check(&self, call: &NetworkCall) -> Result<(), Error> {
        self.run(Command::Check, call).map(drop)
    }

    /// DEL.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn del(&self, call: &NetworkCall) -> Result<(), Error> {
        self.run(Command::Del, call).map(drop)
    }

    /// GC.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn gc(&self, call: &NetworkCall) -> Result<(), Error> {
        self.run(Command::Gc, call).map(drop)
    }

    /// STATUS.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        self.run(Command::Status, call).map(drop)
    }

    fn run(&self, command: Command, call: &NetworkCall) -> Result<Vec<u8>, Error> {
        let failed = |source: std::io::Error| {
            let program = self.program.display();
            match source.kind() {
                // The file is being written, as during an upgrade in place.
                std::io::ErrorKind::ExecutableFileBusy => {
                    Error::new(ErrorCode::TRY_AGAIN_LATER, format!("execute {program}: {source}"))
                }
                _ => Error::io(format!("execute {program}"), &source),
            }
        };
        let mut delegate = std::process::Command::new(&self.program);
        delegate.env_clear().envs(call.env().iter()).env("CNI_COMMAND", command.as_str());
        let output = match run_to_end(&mut delegate, call.conf().bytes()).map_err(failed)? {
            End::Exited(output) => output,
            End::Interrupted => {
                let text = format!("asked to end while {} ran", self.program.display());
                return Err(Error::new(ErrorCode::TRY_AGAIN_LATER, text));
            }
        };
        log::debug!("ran {} {}", self.program.display(), command.as_str());
        if !output.stderr.is_empty() {
            // Passed on for the person who reads the runtime's log; nothing depends on it.
            let _ = std::io::stderr().write_all(&output.stderr);
        }
        if output.status.success() { Ok(output.stdout) } else { Err(failure(&output)) }
    }
}

/// How a delegate's run ended.
enum End {
    Exited(Output),
    /// A signal asked the caller to end, so the delegate was killed.
    Interrupted,
}

/// Runs `delegate` with `stdin` until it ends.
///
/// A caller may hold back the signals that ask it to end, so as not to leave things half done. One that comes is
/// heeded here all the same, and left for the caller to find: a delegate may run for long, and nothing says that it
/// ever ends.
fn run_to_end(delegate: &mut std::process::Command, stdin: &[u8]) -> std::io::Result<End> {
    let (mut stdout, mut stderr) = (memory_file(&[])?, memory_file(&[])?);
    let child = delegate
        .stdin(memory_file(stdin)?)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()?;
    Ok(match wait(child)? {
        Some(status) => {
            let mut output = Output { status, stdout: Vec::new(), stderr: Vec::new() };
            for (file, bytes) in [(&mut stdout, &mut output.stdout), (&mut stderr, &mut output.stderr)] {
                file.rewind()?;
                file.read_to_end(bytes)?;
            }
            End::Exited(output)
        }
        None => End::Interrupted,
    })
}

/// Waits until `child` has ended; kills it when a signal comes that asks the caller to end and is held back.
fn wait(mut child: Child) -> std::io::Result<Option<ExitStatus>> {
    let held = SigSet::thread_get_mask()?;
    let ending = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter();
    let heeded: SigSet = ending.filter(|signal| held.contains(*signal)).collect();
    if heeded.iter().next().is_none() {
        return child.wait().map(Some);
    }
    let signals = SignalFd::with_flags(&heeded, SfdFlags::SFD_CLOEXEC)?;
    let end = end_of(&child)?;
    let mut awaited =
        [PollFd::new(end.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
    while let Err(errno) = poll(&mut awaited, PollTimeout::NONE) {
        if errno != Errno::EINTR {
            return Err(errno.into());
        }
    }
    let status = child.try_wait()?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    Ok(status)
}

/// A descriptor that becomes readable when `child` ends (pidfd_open(2)).
fn end_of(child: &Child) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two numbers, and the descriptor that it makes belongs to nobody else.
    #[allow(unsafe_code, reason = "neither std nor nix opens a pidfd")]
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, libc::c_long::from(child.id().cast_signed()), 0) {
            fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd as libc::c_int)),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

/// Memory files and not pipes: a delegate that does not read its stdin cannot block us, nor one that leaves a process
/// behind which holds its stdout.
fn memory_file(content: &[u8]) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("cni", MFdFlags::MFD_CLOEXEC)?);
    if !content.is_empty() {
        file.write_all(content)?;
        file.rewind()?;
    }
    Ok(file)
}

/// What a delegate that failed says, in the reference's words where it says nothing that can be read.
fn failure(output: &Output) -> Error {
    let stdout = &output.stdout;
    if stdout.is_empty() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Error::new(
            ErrorCode::UNKNOWN,
            match stderr.is_empty() {
                true => format!("netplugin failed with no error message: {}", output.status),
                false => format!("netplugin failed: {stderr:?}"),
            },
        );
    }
    serde_json::from_slice(stdout).unwrap_or_else(|error| {
        let stdout = String::from_utf8_lossy(stdout);
        Error::new(
            ErrorCode::UNKNOWN,
            format!("netplugin failed but error parsing its diagnostic message {stdout:?}: {error}"),
        )
    })
}

#[cfg(test)]
mod tests;
