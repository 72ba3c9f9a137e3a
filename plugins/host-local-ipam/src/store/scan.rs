//! Reading every file below a network's directory, as the reference does on each call: the truth that the index repeats.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::span::Point;

/// Longest content that can name a holder; what is longer names nobody.
const MAX_CONTENT: usize = 4096;

/// A file that may be a lease.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    /// The address that its name is, if it is one.
    pub(super) address: Option<Point>,
    /// `None` when it is no file that can be read.
    pub(super) text: Option<FileText>,
}

/// The content of a file and what the kernel says about it.
#[derive(Debug)]
pub(super) struct FileText {
    pub(super) bytes: Vec<u8>,
    pub(super) metadata: Metadata,
}

impl FileText {
    /// Reads the file at `path`, as much of it as can be a lease.
    pub(super) fn read(path: &Path) -> io::Result<Self> {
        // A FIFO that somebody put there must not stop us.
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut bytes = Vec::with_capacity(128);
        (&file).take(MAX_CONTENT as u64).read_to_end(&mut bytes)?;
        Ok(Self { bytes, metadata: file.metadata()? })
    }
}

/// Every file below `directory`, in no order, without the lock and the addresses leased last.
pub(super) fn files(directory: &Path) -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    walk(directory, &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, found: &mut Vec<Found>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_str().unwrap_or_default();
        if name == super::disk::LOCK || name.starts_with(super::disk::LAST_RESERVED) {
            continue;
        }
        let path = entry.path();
        let address = name.parse::<IpAddr>().ok().map(|address| Point::from(address.to_canonical()));
        let is_directory = entry.file_type()?.is_dir();
        let text = if is_directory { None } else { read(&path)? };
        if text.is_some() || address.is_some() {
            found.push(Found { path: path.clone(), address, text });
        }
        if is_directory {
            walk(&path, found)?;
        }
    }
    Ok(())
}

/// `None` for what is no readable file. A fault of this moment is an error: what was not seen must not count as free.
fn read(path: &Path) -> io::Result<Option<FileText>> {
    match FileText::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::IsADirectory => Ok(None),
            _ if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            _ if error.raw_os_error() == Some(libc::ELOOP) => Ok(None),
            _ => Err(error),
        },
    }
}
