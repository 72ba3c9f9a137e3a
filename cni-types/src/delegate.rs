//! Calling another plugin: find it in `CNI_PATH`, run it with the caller's environment and stdin, read its answer.
//!
//! CNI spec 1.1.0, section 4 "Plugin Delegation".

use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
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
        let stdin = stdin_of(call.conf().bytes()).map_err(failed)?;
        let output = std::process::Command::new(&self.program)
            .env_clear()
            .envs(call.env().iter())
            .env("CNI_COMMAND", command.as_str())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(std::process::Child::wait_with_output)
            .map_err(failed)?;
        log::debug!("ran {} {}", self.program.display(), command.as_str());
        if !output.stderr.is_empty() {
            // Passed on for the person who reads the runtime's log; nothing depends on it.
            let _ = std::io::stderr().write_all(&output.stderr);
        }
        if output.status.success() { Ok(output.stdout) } else { Err(failure(&output)) }
    }
}

/// A memory file and not a pipe: a delegate that does not read its stdin cannot block us.
fn stdin_of(bytes: &[u8]) -> std::io::Result<Stdio> {
    let mut file = std::fs::File::from(memfd_create("cni-stdin", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
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
