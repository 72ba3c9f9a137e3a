//! The lock of a network's directory, shared with the reference plugin: `flock(2)` on its file `lock`. Among ourselves
//! the directory is locked as well: the file may be removed while somebody holds it, and then keeps nobody out.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// How often the lock file may be replaced while we wait for it before that is an error.
const REPLACEMENTS: usize = 100;

/// Held while it lives.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
    _directory: Option<File>,
}

impl Lock {
    /// Waits until nobody else has `directory`, nor the lock file at `path` in it, which is made if it is missing.
    pub(super) fn acquire(directory: &Path, path: &Path) -> io::Result<Self> {
        for _ in 0..REPLACEMENTS {
            let file = open_locked(path)?;
            let held = hold(directory);
            // Whoever removed the directory meanwhile has left us with a lock that nobody else will ever look at.
            match std::fs::metadata(path) {
                Ok(named) if is_same(&named, &file.metadata()?) => {
                    return Ok(Self { _file: file, _directory: held });
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::Error::other("the file is being replaced again and again"))
    }
}

/// Opens the lock file at `path`, made if it is missing, and waits until nobody else has it.
fn open_locked(path: &Path) -> io::Result<File> {
    // As the reference does, through a symbolic link too, and without waiting for whoever writes to a FIFO.
    let flags = libc::O_CREAT | libc::O_NONBLOCK;
    let open = |write| File::options().read(true).write(write).custom_flags(flags).mode(0o750).open(path);
    // Without asking to write, so that a lock that exists works on a read-only disk.
    let file = open(false)?;
    match file.lock() {
        // NFS locks all octets of the file instead, and exclusively only what is open for writing (flock(2)).
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
            let file = open(true)?;
            file.lock().map(|()| file)
        }
        locked => locked.map(|()| file),
    }
}

/// Waits until nobody else has the directory. Where a file system cannot lock one, the lock file has to do.
fn hold(directory: &Path) -> Option<File> {
    let held = File::open(directory).and_then(|file| file.lock().map(|()| file));
    held.inspect_err(|error| log::info!("lock {}: {error}", directory.display())).ok()
}

fn is_same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
