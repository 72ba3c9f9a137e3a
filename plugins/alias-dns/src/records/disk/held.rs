//! [`Held`]: a record's file that nobody else judges, replaces or removes meanwhile. It counts for those who ask for it
//! alone, and goes with the process.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

use cni_types::regular_file::stands_at;
use nix::poll::{PollTimeout, poll};

use super::is_absence;

/// Milliseconds between two tries.
const AGAIN: u16 = 1;

/// The file that is held, until this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    _file: File,
}

/// What became of a try.
enum Tried {
    Held(Held),
    Missing,
    BySomebodyElse,
}

impl Held {
    /// The file at `path`; `None` where there is none, or somebody else holds it.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn at_once(path: &Path) -> Result<Option<Self>> {
        match Self::attempt(path)? {
            Tried::Held(held) => Ok(Some(held)),
            Tried::Missing | Tried::BySomebodyElse => Ok(None),
        }
    }

    /// The file at `path`, waited for until `deadline`; `None` where there is none, or somebody else holds it still.
    pub(super) fn wait_for(path: &Path, deadline: Instant) -> Option<Self> {
        loop {
            match Self::attempt(path) {
                Ok(Tried::Held(held)) => return Some(held),
                Ok(Tried::BySomebodyElse) if Instant::now() < deadline => {
                    let _ = poll(&mut [], PollTimeout::from(AGAIN));
                }
                // What cannot even be opened is judged by nobody.
                Ok(Tried::Missing | Tried::BySomebodyElse) | Err(_) => return None,
            }
        }
    }

    fn attempt(path: &Path) -> Result<Tried> {
        loop {
            // Something else may stand there, which nobody waits for.
            let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
            let file = match opened {
                Ok(file) => file,
                Err(error) if is_absence(&error) => return Ok(Tried::Missing),
                Err(error) => return Err(error),
            };
            match file.try_lock() {
                // Replaced or removed before it was held.
                Ok(()) if !stands_at(&file, path)? => {}
                Ok(()) => return Ok(Tried::Held(Self { _file: file })),
                Err(TryLockError::WouldBlock) => return Ok(Tried::BySomebodyElse),
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Interrupted => {}
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }
}
