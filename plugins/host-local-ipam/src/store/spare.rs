//! How a lease file gets to its place and away from it.
//!
//! It is written under a name of our own and then moved, so the file of an address is whole or absent. A lease that is
//! given back is moved to that same name, emptied of whom it was of, and waits there for the next: a file system like
//! ext4 does not give a new file the inode of one that was removed in the last minutes, and looks for another one past
//! all of those, which in a network where containers come and go takes longer than all the rest of a lease.
//!
//! Only one call at a time is here, since the network is locked.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, Stat, fstat, openat, renameat_with};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::index::Changed;
use super::{Holder, scan};

/// Type and permissions of a lease file.
const LEASE_MODE: u32 = libc::S_IFREG | 0o600;

/// Longest content of a file that is kept, in bytes: that of a lease is far shorter.
const MAX_KEPT: usize = 4096;

/// A file whose content will be replaced.
#[derive(Debug)]
pub(super) struct Rewritable {
    pub(super) file: File,
    /// Of the content, in bytes, or as much of it as was looked at.
    pub(super) length: usize,
}

impl Rewritable {
    /// In place and without emptying it first: a kill in between leaves some content, not none, and file systems make a
    /// point of writing out at once what is emptied and written again.
    pub(super) fn write(&self, text: &str) -> io::Result<()> {
        self.file.write_all_at(text.as_bytes(), 0)?;
        if self.length > text.len() { self.file.set_len(text.len() as u64) } else { Ok(()) }
    }

    /// The same with blanks, in as many bytes as there are.
    fn blank(&self) -> io::Result<()> {
        let blanks = [b'\n'; MAX_KEPT];
        let blanks = blanks.get(..self.length).ok_or(ErrorKind::FileTooLarge)?;
        self.file.write_all_at(blanks, 0)
    }
}

/// Writes `content` to the file at `aside`, which is made if it is missing, and moves it to `path`; `AlreadyExists` when
/// there is such a file.
pub(super) fn move_in(aside: &Path, path: &Path, content: &str) -> io::Result<Changed> {
    let file = match reopen(aside)? {
        Some(file) => file,
        None => {
            let file = File::options().write(true).create_new(true).mode(0o600).open(aside)?;
            Rewritable { file, length: 0 }
        }
    };
    let moved = file.write(content).and_then(|()| rename_to_free(aside, path));
    if moved.is_err()
        && let Err(error) = std::fs::remove_file(aside)
    {
        log::warn!("remove {}: {error}", aside.display());
    }
    moved.map(|()| fstat(&file.file).map_or(Changed::UNKNOWN, |stat| Changed::of(&stat)))
}

/// Moves the lease file at `path` to `aside`, where it names nobody any more, or from there to nowhere. `false` when it
/// is still in its place, since it could not be moved or another one waits there.
pub(super) fn move_out(path: &Path, aside: &Path) -> bool {
    if renameat_with(CWD, path, CWD, aside, RenameFlags::NOREPLACE).is_err() {
        return false;
    }
    let blanked = match reopen(aside) {
        Ok(Some(file)) => file.blank(),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    if blanked.is_err()
        && let Err(error) = std::fs::remove_file(aside)
    {
        log::warn!("remove {}: {error}", aside.display());
    }
    true
}

/// Whether there is a file at `aside` that a killed call had written, or not yet blanked.
pub(super) fn names_somebody(aside: &Path) -> bool {
    match scan::read(aside) {
        Ok(content) => Holder::parse(&content).is_some(),
        Err(error) => error.kind() != ErrorKind::NotFound,
    }
}

/// Opens the file that waits at `aside`; `None` if there is none, or it was none of ours and is gone.
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
        // Some file systems, NFS among them, cannot do that in one step.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            if let Err(error) = std::fs::remove_file(from) {
                log::warn!("remove {}: {error}", from.display());
            }
            Ok(())
        }
        other => Ok(other?),
    }
}
