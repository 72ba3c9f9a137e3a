//! [`LockFile`]: a lock whose file is removed with the directory around it.
//!
//! Whoever removes the file holds its lock, so that one who has opened it before gets the lock of a file that nobody
//! else will ever find. That is why a lock only counts while its file still stands at its path.

use std::fs::{File, TryLockError};
use std::io::Result;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Instant;

use cni_types::regular_file::stands_at;
use nix::poll::{PollTimeout, poll};

/// Milliseconds between two tries.
const AGAIN: u16 = 2;

/// A lock that is held; it is given back with the file.
#[derive(Debug)]
pub(super) struct LockFile(File);

impl LockFile {
    /// The lock at `path`, whose file is made where there is none; `None` when somebody else holds it.
    ///
    /// # Errors
    /// The operating system's; [`NotFound`](std::io::ErrorKind::NotFound) when the directory is not there.
    pub(super) fn try_take(path: &Path) -> Result<Option<Self>> {
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            match file.try_lock() {
                Ok(()) if stands_at(&file, path)? => return Ok(Some(Self(file))),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The lock at `path`, waited for as long as it takes.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub(super) fn take(path: &Path) -> Result<Self> {
        loop {
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            file.lock()?;
            if stands_at(&file, path)? {
                return Ok(Self(file));
            }
        }
    }

    /// The lock at `path`, waited for until `deadline`; `None` when somebody else holds it still.
    ///
    /// # Errors
    /// As [`try_take`](Self::try_take).
    pub(super) fn take_until(path: &Path, deadline: Instant) -> Result<Option<Self>> {
        loop {
            match Self::try_take(path)? {
                None if Instant::now() < deadline => {
                    let _ = poll(&mut [], PollTimeout::from(AGAIN));
                }
                taken => return Ok(taken),
            }
        }
    }
}

impl From<LockFile> for OwnedFd {
    fn from(lock: LockFile) -> Self {
        lock.0.into()
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_at_a_time_has_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = LockFile::try_take(&path).unwrap();
        assert!(held.is_some());
        assert!(LockFile::try_take(&path).unwrap().is_none());
        assert!(LockFile::take_until(&path, Instant::now() + Duration::from_millis(5)).unwrap().is_none());
        drop(held);
        assert!(LockFile::try_take(&path).unwrap().is_some());
    }

    #[test]
    fn the_lock_of_a_removed_file_counts_for_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let removed = LockFile::try_take(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(!stands_at(&removed.0, &path).unwrap());
        let held = LockFile::try_take(&path).unwrap().unwrap();
        assert!(stands_at(&held.0, &path).unwrap() && !stands_at(&removed.0, &path).unwrap());
    }

    #[test]
    fn without_its_directory_there_is_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("gone/lock");
        assert_eq!(LockFile::try_take(&missing).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
