//! Files that are whole or absent, whenever the process that makes them is killed.

use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, Stat, fstat, openat, renameat_with};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::StoreError;
use super::stamp::Changed;

/// Type and permissions of a lease file.
const LEASE_MODE: u32 = libc::S_IFREG | 0o600;

/// A file whose content will be replaced.
#[derive(Debug)]
pub(super) struct Rewritable {
    pub(super) file: File,
    /// Of the content, in bytes, or as much of it as was looked at.
    pub(super) length: usize,
}

impl Rewritable {
    /// In place and without emptying it first: a kill in between leaves some address, not none, and file systems make a
    /// point of writing out at once what is emptied and written again.
    pub(super) fn write(&self, text: &str) -> io::Result<()> {
        self.file.write_all_at(text.as_bytes(), 0)?;
        if self.length > text.len() { self.file.set_len(text.len() as u64) } else { Ok(()) }
    }
}

/// Writes `content` to `aside`, a name that nobody else uses while we hold the lock, and moves it to `path`; `None` when
/// there is a file.
pub(super) fn move_in(aside: &Path, path: &Path, content: &str) -> io::Result<Option<Changed>> {
    let make = || -> io::Result<_> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(aside)?;
        Ok(Rewritable { file, length: 0 })
    };
    let file = match make() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => reopen(aside)?.map_or_else(make, Ok)?,
        made => made?,
    };
    let moved = file.write(content).and_then(|()| rename_to_free(aside, path));
    if moved.is_err()
        && let Err(error) = std::fs::remove_file(aside)
    {
        log::warn!("remove {}: {error}", aside.display());
    }
    match moved {
        Ok(()) => Ok(Some(fstat(&file.file).map_or(Changed::UNKNOWN, |stat| Changed::of(&stat)))),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the file of a lease that a killed call never finished, to be written anew; `None` if there is none.
fn reopen(aside: &Path) -> io::Result<Option<Rewritable>> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(CWD, aside, flags, Mode::empty()).and_then(|file| Ok((fstat(&file)?, file)));
    match opened {
        Ok((stat, file)) if could_be_made_by_us(&stat) => {
            Ok(Some(Rewritable { file: file.into(), length: stat.st_size.try_into().unwrap_or(usize::MAX) }))
        }
        Err(Errno::NOENT) => Ok(None),
        // What has another name as well, where a file system cannot rename, may be a lease by now.
        _ => std::fs::remove_file(aside).map(|()| None),
    }
}

fn could_be_made_by_us(stat: &Stat) -> bool {
    stat.st_mode == LEASE_MODE && stat.st_nlink == 1 && stat.st_uid == geteuid().as_raw()
}

/// Renames `from` to `to`; `AlreadyExists` when there is such a file.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems, NFS among them, cannot do that in one step; a filter of system calls may not know the call.
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {}
        other => return Ok(other?),
    }
    match std::fs::hard_link(from, to) {
        Ok(()) => {
            if let Err(error) = std::fs::remove_file(from) {
                log::warn!("remove {}: {error}", from.display());
            }
            Ok(())
        }
        // Others, shared folders of virtual machines among them, have no links either. Whoever makes leases has the lock.
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::Unsupported) => {
            if to.symlink_metadata().is_ok() {
                Err(ErrorKind::AlreadyExists.into())
            } else {
                std::fs::rename(from, to)
            }
        }
        failed => failed,
    }
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        // A read-only file system refuses to remove what is not there as well.
        Err(error) if !is_absence(&error) && path.symlink_metadata().is_ok() => {
            Err(StoreError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Whether there is no such file, since one of its parents is none either or no directory, or since its name is too long
/// for one.
pub(super) fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidFilename)
}
