//! Whether leases could be written, found out without writing anything.

use std::io;
use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::{Place, StoreError};

/// Tells what would keep a lease from being written at `place`: permissions, a read-only or a full file system. What
/// does not exist yet is judged by the nearest directory that does.
pub(crate) fn require_writable(place: &Place) -> Result<(), StoreError> {
    let directory = place.directory();
    // A link that leads nowhere is there as well, and in the way, and so is a name that no file can have.
    let is_missing =
        |error: io::Error| matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let exists = |path: &&Path| !path.symlink_metadata().is_err_and(is_missing);
    let existing = directory.ancestors().find(exists).unwrap_or(Path::new("."));
    let failed = |source| StoreError::new("write to", existing, source);
    access(existing, Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| failed(errno.into()))?;
    if !existing.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    let disk = statvfs(existing).map_err(|errno| failed(errno.into()))?;
    // Some file systems have no fixed size or number of files, and say that it is 0: ramfs, a tmpfs without limits, btrfs.
    let is_full = (disk.f_blocks > 0 && disk.f_bfree == 0) || (disk.f_files > 0 && disk.f_ffree == 0);
    if is_full {
        return Err(failed(io::ErrorKind::StorageFull.into()));
    }
    Ok(())
}
