//! The iptables programs: which there are, and how they are asked and told.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use cni_types::process::Process;
use cni_types::{Error, ErrorCode};

use super::NAT;
use crate::family::Family;

/// Where the programs are looked for when the runtime has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest wait for other programs that change the rules, in seconds.
const LOCK_PATIENCE: &str = "20";

/// A change that somebody else's came before is made anew, at most this often; each time one of them has been made.
const ATTEMPTS: usize = 20;

/// Exit status of iptables when somebody else changed the rules at the same time.
const RESOURCE_PROBLEM: i32 = 4;

/// The programs of one family, for one table.
#[derive(Debug)]
pub(crate) struct Tool {
    table: &'static str,
    program: PathBuf,
}

impl Tool {
    /// The programs for [`NAT`], of whatever kind the plain name is.
    ///
    /// # Errors
    /// Code 7 when there are none.
    pub(super) fn find(family: Family) -> Result<Self, Error> {
        let name = name(family);
        let program = in_path(name).ok_or_else(|| not_found("ipMasqBackend", name))?;
        Ok(Self { table: NAT, program })
    }

    /// The programs that work on the tables from before nf_tables.
    ///
    /// # Errors
    /// Code 7 when there are none.
    pub(crate) fn legacy(family: Family, table: &'static str) -> Result<Self, Error> {
        let plain = name(family);
        let name = format!("{plain}-legacy");
        // Where both are installed, the plain name is a link to one of them.
        let is_legacy = |program: &PathBuf| {
            !program.canonicalize().is_ok_and(|target| target.to_string_lossy().contains("nft"))
        };
        let program = in_path(&name).or_else(|| in_path(plain).filter(is_legacy));
        Ok(Self { table, program: program.ok_or_else(|| not_found("acceptForward", name))? })
    }

    /// The rules of the table.
    ///
    /// # Errors
    /// As [`install`](super::install).
    pub(crate) fn list(&self) -> Result<Vec<String>, Error> {
        let output = run(&self.program, &["-w", LOCK_PATIENCE, "-t", self.table, "-S"], "")?;
        Ok(String::from_utf8_lossy(&output).lines().map(str::to_owned).collect())
    }

    /// Makes, in one transaction, the changes that `look` finds needed in the rules of the table; looks again when it fails
    /// and the rules are others by then. Returns what `look` found in the end. `present` is what was [listed](Self::list).
    ///
    /// # Errors
    /// As [`install`](super::install).
    pub(crate) fn change<T>(
        &self,
        mut present: Vec<String>,
        look: impl Fn(&[String]) -> (String, T),
    ) -> Result<T, Error> {
        for _ in 1..ATTEMPTS {
            let (script, found) = look(&present);
            let Err(error) = self.apply(&script) else { return Ok(found) };
            let now = self.list()?;
            if now == present {
                return Err(error);
            }
            present = now;
        }
        let (script, found) = look(&present);
        self.apply(&script).map(|()| found)
    }

    /// Changes the table in one transaction.
    ///
    /// # Errors
    /// As [`install`](super::install).
    fn apply(&self, script: &str) -> Result<(), Error> {
        if script.is_empty() {
            return Ok(());
        }
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        let restore = self.program.with_file_name(format!("{name}-restore"));
        let script = format!("*{}\n{script}COMMIT\n", self.table);
        run(&restore, &["-w", LOCK_PATIENCE, "--noflush"], &script).map(drop)
    }
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

fn search_path() -> OsString {
    std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into())
}

fn in_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .map(|directory| directory.join(name))
        .find(|program| program.is_file())
}

fn not_found(key: &str, name: impl Display) -> Error {
    Error::invalid_config(key, format_args!("failed to find {name} in {}", search_path().display()))
}

fn run(program: &Path, arguments: &[&str], stdin: &str) -> Result<Vec<u8>, Error> {
    let output = Process::start(program, arguments, std::env::vars_os(), stdin.as_bytes())?.wait()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let code = match output.status.code() {
        Some(RESOURCE_PROBLEM) => ErrorCode::TRY_AGAIN_LATER,
        _ => ErrorCode::INTERNAL,
    };
    let words = String::from_utf8_lossy(&output.stderr);
    Err(Error::new(code, format!("{} failed ({}): {}", program.display(), output.status, words.trim_end())))
}
