//! The times by which it is seen that somebody else has changed a directory or a file.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Stat, Timespec, Timestamps, UTIME_OMIT, utimensat};

use super::hash::mix;
use crate::span::Point;

/// The times of a directory, exact to the nanosecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) seconds: i64,
    pub(super) nanoseconds: i64,
    /// `st_ctime`, which nobody can set at will, in nanoseconds.
    pub(super) changed: i64,
}

impl Stamp {
    pub(super) fn of(directory: &Path) -> io::Result<Self> {
        std::fs::metadata(directory).map(|metadata| Self::in_metadata(&metadata))
    }

    fn in_metadata(directory: &Metadata) -> Self {
        let changed = directory.ctime().wrapping_mul(1_000_000_000).wrapping_add(directory.ctime_nsec());
        Self { seconds: directory.mtime(), nanoseconds: directory.mtime_nsec(), changed }
    }

    /// Gives `directory` the time of this moment, and tells what it has then: less, where a file system keeps no
    /// nanoseconds. The time is finer than the kernel's clock for files, whose times are thereby others.
    pub(super) fn set(directory: &Path) -> io::Result<Given> {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let now = Timespec::try_from(since).map_err(io::Error::other)?;
        let omitted = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: omitted, last_modification: now };
        utimensat(CWD, directory, &times, AtFlags::empty())?;
        let kept = Self::of(directory)?;
        Ok(Given { stamp: Self { seconds: now.tv_sec, nanoseconds: now.tv_nsec, ..kept }, kept })
    }

    pub(super) fn is_before(self, time: SystemTime) -> bool {
        let since = u64::try_from(self.seconds).map(Duration::from_secs).unwrap_or_default();
        SystemTime::UNIX_EPOCH + since < time
    }
}

/// A stamp that a directory was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given {
    pub(super) stamp: Stamp,
    /// What the file system has made of it.
    pub(super) kept: Stamp,
}

/// Which file a lease is, and when it was last changed in any way (`st_ctime`, which nobody can set at will): as long
/// as this is the same, so is the content, but for a change within the same tick of the file system's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Changed {
    /// In nanoseconds.
    pub(super) at: i64,
    /// The low six bytes of the inode's number.
    pub(super) inode: u64,
}

impl Changed {
    /// No file's.
    pub(super) const UNKNOWN: Self = Self { at: i64::MIN, inode: 0 };

    pub(super) fn of(file: &Stat) -> Self {
        let nanoseconds = file.st_ctime_nsec as i64;
        Self {
            at: file.st_ctime.wrapping_mul(1_000_000_000).wrapping_add(nanoseconds),
            inode: file.st_ino & ((1 << 48) - 1),
        }
    }
}

/// A number for a file as it is, by which it is known again: of its name's meaning, and of when and where it was changed.
pub(super) fn fingerprint(address: Option<Point>, changed: Changed) -> u64 {
    let bits = address.map_or(0, Point::bits);
    [bits as u64, (bits >> 64) as u64, changed.at as u64]
        .into_iter()
        .fold(changed.inode, |sum, part| mix(sum ^ part).wrapping_add(part))
}
