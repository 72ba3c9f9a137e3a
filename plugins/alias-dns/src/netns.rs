//! Whether a container still has the namespace that its record names. It opens nothing and enters nothing.
//!
//! Only proof counts: a record is somebody's name, and a path that this process cannot see may well be seen by the
//! runtime. A namespace is gone when nothing stands at its path, or another namespace.

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::records::{NetnsRef, Record};

impl NetnsRef {
    /// The namespace at `path`; `None` when none can be seen there.
    pub(crate) fn look(path: &Path) -> Option<Self> {
        let inode = namespace_inode(path)?;
        Some(Self { path: path.to_owned(), inode })
    }

    /// Whether the namespace is provably gone.
    pub fn is_gone(&self) -> bool {
        match std::fs::metadata(&self.path) {
            Ok(_) => namespace_inode(&self.path).is_some_and(|inode| inode != self.inode),
            Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }
}

impl Record {
    /// Whether the container is provably dead.
    pub fn is_dead(&self) -> bool {
        self.is_of_earlier_boot() || self.netns.as_ref().is_some_and(NetnsRef::is_gone)
    }
}

fn namespace_inode(path: &Path) -> Option<u64> {
    let is_namespace = statfs(path).is_ok_and(|filesystem| filesystem.filesystem_type() == NSFS_MAGIC);
    is_namespace.then(|| std::fs::metadata(path).ok()).flatten().map(|file| file.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_gone_when_its_path_or_its_inode_is() {
        let own = NetnsRef::look(Path::new("/proc/self/ns/net")).unwrap();
        assert!(!own.is_gone());
        assert!(NetnsRef { inode: own.inode + 1, ..own.clone() }.is_gone());
        assert!(NetnsRef { path: "/run/netns/of nobody".into(), ..own }.is_gone());
    }

    #[test]
    fn a_file_that_is_no_namespace_proves_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(NetnsRef::look(file.path()), None);
        assert!(!NetnsRef { path: file.path().to_owned(), inode: 1 }.is_gone());
    }
}
