//! Going through every file below a network's directory, as the reference does on each call: the truth that the index
//! repeats. What is found is read only when it is asked for, and not kept.

use std::ffi::OsStr;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat};
use rustix::io::{Errno, retry_on_intr};
use rustix::path::Arg;

use crate::span::Point;

/// The files beside the leases that [`each`] passes over: the lock, and each range set's address leased last.
pub(super) const LOCK: &str = "lock";
pub(super) const LAST_RESERVED: &str = "last_reserved_ip.";

/// Longest content that can name a holder, in bytes: as much as fits into a variable of the environment, and to spare.
/// What is longer names nobody.
const MAX_CONTENT: usize = 132 << 10;

/// How much is read at once, in bytes: all of any usual lease.
const PIECE: usize = 4096;

/// Room for a thousand names or so, in bytes, so that a directory takes few system calls.
const NAMES_AT_ONCE: usize = 64 << 10;

/// A file that may be a lease.
pub(super) struct Found<'a> {
    /// The address that its name is, if it is one.
    pub(super) address: Option<Point>,
    /// Whether its name is that address as we write it, in the network's own directory.
    pub(super) is_in_place: bool,
    parent: &'a Path,
    directory: BorrowedFd<'a>,
    name: &'a str,
    is_directory: bool,
}

/// The content of a file and what the kernel says about it.
#[derive(Debug)]
pub(super) struct FileText {
    pub(super) bytes: Vec<u8>,
    pub(super) stat: Stat,
}

impl Found<'_> {
    pub(super) fn path(&self) -> PathBuf {
        self.parent.join(self.name)
    }

    /// What the kernel says about the file; `None` when it is no plain one.
    pub(super) fn stat(&self) -> Option<Stat> {
        let stat = statat(self.directory, self.name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(stat)
    }

    /// Reads the file; `None` for what is no readable one. A fault of this moment is an error: what was not seen must
    /// not count as free.
    pub(super) fn read(&self) -> io::Result<Option<FileText>> {
        if self.is_directory {
            return Ok(None);
        }
        let text = open(self.directory, self.name).and_then(|file| {
            let stat = fstat(&file)?;
            Ok(FileText { bytes: content(&file)?, stat })
        });
        match text {
            Ok(text) => Ok(Some(text)),
            Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::ISDIR | Errno::NXIO | Errno::LOOP) => {
                Ok(None)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Reads the file at `path`, as much of it as can be a lease.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    Ok(open(CWD, path).and_then(|file| content(&file))?)
}

fn open(directory: BorrowedFd<'_>, path: impl Arg) -> rustix::io::Result<OwnedFd> {
    // A FIFO that somebody put there must not stop us.
    openat(directory, path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn content(file: &OwnedFd) -> rustix::io::Result<Vec<u8>> {
    let mut piece = [0; PIECE];
    let mut bytes = Vec::new();
    loop {
        let length = retry_on_intr(|| rustix::io::read(file, &mut piece))?;
        bytes.extend_from_slice(&piece[..length]);
        if bytes.len() > MAX_CONTENT {
            return Ok(Vec::new());
        }
        // A plain file gives all that it has at once.
        if length < PIECE {
            return Ok(bytes);
        }
    }
}

/// Shows `visit` every file below `directory`, in no order, without the lock and the addresses leased last.
pub(super) fn each(directory: &Path, visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>) -> io::Result<()> {
    walk(CWD, directory, directory.as_os_str(), Level::Top, visit)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Top,
    Below,
}

fn walk(
    parent: BorrowedFd<'_>,
    path: &Path,
    name: &OsStr,
    level: Level,
    visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(parent, name, flags, Mode::empty())?;
    let mut names = vec![MaybeUninit::uninit(); NAMES_AT_ONCE];
    let mut entries = RawDir::new(&directory, &mut names);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        let text = name.to_str().unwrap_or_default();
        if matches!(text, "." | "..") || text == LOCK || text.starts_with(LAST_RESERVED) {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Unknown => statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory),
            known => known == FileType::Directory,
        };
        let address = text.parse::<IpAddr>().ok().map(|address| Point::from(address.to_canonical()));
        let is_in_place = level == Level::Top && address.is_some_and(|address| address.to_string() == text);
        if !is_directory || address.is_some() {
            visit(&Found {
                address,
                is_in_place,
                parent: path,
                directory: directory.as_fd(),
                name: text,
                is_directory,
            })?;
        }
        if is_directory {
            walk(directory.as_fd(), &path.join(name), name, Level::Below, visit)?;
        }
    }
    Ok(())
}
