//! Calling another plugin: find it in `CNI_PATH`, run it with the caller's environment and stdin, read its answer.
//!
//! CNI spec 1.1.0, section 4 "Plugin Delegation".

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::command::Command;
use crate::process::{Output, Process};
use crate::skel::NetworkCall;
use crate::{CniResult, Error, ErrorCode, SpecVersion};

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

    /// ADD, with the delegate's result.
    ///
    /// # Errors
    /// The delegate's own error, its code kept; code 6 when its output is no result.
    pub fn add(&self, call: &NetworkCall) -> Result<CniResult, NotAdded> {
        let started = self.start(Command::Add, call);
        started.map_err(|error| NotAdded { error, in_doubt: false })?.added()
    }

    /// DEL.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn del(&self, call: &NetworkCall) -> Result<(), Error> {
        self.start(Command::Del, call)?.ended()
    }

    /// GC.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn gc(&self, call: &NetworkCall) -> Result<(), Error> {
        self.start(Command::Gc, call)?.ended()
    }

    /// STATUS.
    ///
    /// # Errors
    /// The delegate's own error, its code kept.
    pub fn status(&self, call: &NetworkCall) -> Result<(), Error> {
        self.start(Command::Status, call)?.ended()
    }

    /// Starts the delegate and does not wait for it: its start alone takes longer than most of what a plugin does, and
    /// what does not need its answer can be done meanwhile.
    ///
    /// # Errors
    /// Code 5 when it cannot be executed, 11 when it is being written, as during an upgrade in place, or when there may be
    /// no other process at the moment.
    pub fn start(&self, command: Command, call: &NetworkCall) -> Result<Running, Error> {
        let variables = call.env().iter().filter(|(name, _)| *name != "CNI_COMMAND");
        let own = (OsStr::new("CNI_COMMAND"), OsStr::new(command.as_str()));
        let process = Process::start(&self.program, &[], variables.chain([own]), call.conf().bytes())?;
        log::debug!("started {} {}", self.program.display(), command.as_str());
        Ok(Running { command, version: call.conf().version(), process })
    }
}

/// A delegate at work. Dropped before its end, it is killed: it outlives no call.
#[derive(Debug)]
#[must_use = "a delegate is killed when it is dropped"]
pub struct Running {
    command: Command,
    version: SpecVersion,
    process: Process,
}

impl Running {
    /// Waits for the result of an ADD.
    ///
    /// # Errors
    /// The delegate's own error, its code kept; code 6 when its output is no result; code 11 when it was killed since a
    /// signal came that asks the caller to end.
    pub fn added(self) -> Result<CniResult, NotAdded> {
        let (program, version) = (self.process.program().to_owned(), self.version);
        let stdout = self.wait()?;
        let unreadable = |reason: String| {
            let output = String::from_utf8_lossy(&stdout);
            let error = Error::new(
                ErrorCode::DECODING_FAILURE,
                format!("plugin {} answered ADD with no valid result: {reason}", program.display()),
            );
            NotAdded { error: error.with_details(output), in_doubt: true }
        };
        let document: Value =
            serde_json::from_slice(&stdout).map_err(|error| unreadable(error.to_string()))?;
        CniResult::decode(&document, version).map_err(|error| unreadable(error.to_string()))
    }

    /// Waits for the end of a verb that has no result.
    ///
    /// # Errors
    /// The delegate's own error, its code kept; code 11 when it was killed since a signal came that asks the caller to
    /// end, or took too long on the way back.
    pub fn ended(self) -> Result<(), Error> {
        self.wait().map(drop).map_err(|failed| failed.error)
    }

    /// Whether the delegate has ended or does so within `patience`; how it did has still to be asked.
    ///
    /// # Errors
    /// What the kernel refuses to tell.
    pub fn ends_within(&self, patience: Duration) -> std::io::Result<bool> {
        self.process.ends_within(patience)
    }

    fn wait(mut self) -> Result<Vec<u8>, NotAdded> {
        let output = self.process.wait().map_err(|error| NotAdded { error, in_doubt: true })?;
        log::debug!("{} {} has ended", self.process.program().display(), self.command.as_str());
        if !output.stderr.is_empty() {
            // Passed on for the person who reads the runtime's log; nothing depends on it.
            let _ = std::io::stderr().write_all(&output.stderr);
        }
        if output.status.success() { Ok(output.stdout) } else { Err(failure(&output)) }
    }
}

/// What a delegate that failed says, in the reference's words where it says nothing that can be read.
fn failure(output: &Output) -> NotAdded {
    let unsaid = |msg: String| NotAdded { error: Error::new(ErrorCode::UNKNOWN, msg), in_doubt: true };
    let stdout = &output.stdout;
    if stdout.is_empty() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return unsaid(match stderr.is_empty() {
            true => format!("netplugin failed with no error message: {}", output.status),
            false => format!("netplugin failed: {stderr:?}"),
        });
    }
    let reason = match serde_json::from_slice::<Error>(stdout) {
        Ok(said) if said != Error::new(ErrorCode::UNKNOWN, "") => {
            return NotAdded { in_doubt: said.code() == ErrorCode::UNKNOWN, error: said };
        }
        Ok(_) => "neither code nor msg".to_owned(),
        Err(error) => error.to_string(),
    };
    let stdout = String::from_utf8_lossy(stdout);
    unsaid(format!("netplugin failed but error parsing its diagnostic message {stdout:?}: {reason}"))
}

/// An ADD of a delegate's that did not come to a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAdded {
    /// What is to be told.
    pub error: Error,
    /// Whether it may have done its work all the same: it was killed, or what it said is neither a result nor an error.
    /// One that says what is wrong has taken back what it did.
    pub in_doubt: bool,
}

#[cfg(test)]
mod tests;
