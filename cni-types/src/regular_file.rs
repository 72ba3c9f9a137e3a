//! Files whose place somebody else may have given to something else. They are read without waiting: neither a call nor a
//! server must wait for the other end of a FIFO, or take in a device without end.

use std::fs::{File, OpenOptions};
use std::io::{Error, ErrorKind, Read as _, Result};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Octets of a file at most; nothing that is read so is near it.
const LONGEST: u64 = 4 << 20;

/// What stands in the file at `path`.
///
/// # Errors
/// The operating system's; `InvalidInput` for what is no regular file, `FileTooLarge` for one that is longer than 4 MiB.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Error::new(ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut content = Vec::with_capacity(metadata.len().min(LONGEST) as usize + 1);
    file.take(LONGEST + 1).read_to_end(&mut content)?;
    if content.len() as u64 > LONGEST {
        return Err(Error::new(ErrorKind::FileTooLarge, "longer than 4 MiB"));
    }
    Ok(content)
}

/// Whether `file` is what `path` names now.
///
/// # Errors
/// The operating system's.
pub fn stands_at(file: &File, path: &Path) -> Result<bool> {
    let own = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_file_is_read_and_nothing_else_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for content in [&b""[..], b"nameserver 10.0.0.1\n", &vec![7; LONGEST as usize]] {
            std::fs::write(&path, content).unwrap();
            assert!(read(&path).unwrap() == content);
        }
        std::fs::write(&path, vec![7; LONGEST as usize + 1]).unwrap();
        assert_eq!(read(&path).unwrap_err().kind(), ErrorKind::FileTooLarge);
        let fifo = directory.path().join("fifo");
        nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for other in [&fifo, Path::new("/dev/zero"), directory.path()] {
            let (done, outcome) = channel();
            let place = other.to_owned();
            // A thread, so that a wait for the other end fails this test and does not hang it.
            std::thread::spawn(move || done.send(read(&place).map_err(|error| error.kind())));
            let outcome = outcome.recv_timeout(Duration::from_secs(10));
            assert_eq!(outcome, Ok(Err(ErrorKind::InvalidInput)), "{}", other.display());
        }
        assert_eq!(read(&directory.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
