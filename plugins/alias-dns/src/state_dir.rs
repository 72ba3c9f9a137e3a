//! [`StateDir`]: where this host network namespace keeps its names. It owns the paths and makes the directories; what
//! stands in the files is their owners' business.
//!
//! ```text
//! /run/cni/alias-dns/                 or $XDG_RUNTIME_DIR/cni/alias-dns where /run cannot be written
//!   4026531840-1/                     one per host network namespace: inode, cookie
//!     records/<network>/<container id>:<ifname>
//!     ...                             the server's own: lock, control socket
//! ```
//! An inode alone would not do: the kernel gives the inode of a dead namespace to the next one, which would then find
//! the names of the dead one. The cookie is never given twice between two boots.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use cni_types::{Environment, Error, NetnsCookie};

/// Where state lives while the host runs.
const RUN: &str = "/run";

/// Below [`RUN`] or `XDG_RUNTIME_DIR`.
const SUBDIR: &str = "cni/alias-dns";

/// How often a directory is made again that is taken away while it is made.
const MAX_ATTEMPTS: usize = 16;

/// The state directory of one host network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// The one of the namespace that this process is in. Nothing is made.
    ///
    /// # Errors
    /// Code 5 when the namespace cannot be told.
    pub fn of_host(env: &Environment) -> Result<Self, Error> {
        let id = netns_id().map_err(|error| Error::io("tell the host's network namespace", &error))?;
        Ok(Self { path: base(env).join(id) })
    }

    /// The one at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the records stand, one directory a network.
    pub fn records(&self) -> PathBuf {
        self.path.join("records")
    }

    /// The directory with one for each namespace.
    pub(crate) fn base(&self) -> Option<&Path> {
        self.path.parent()
    }

    /// Those of other namespaces.
    pub(crate) fn others(&self) -> impl Iterator<Item = Self> {
        let entries = self.base().map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
        let paths = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        paths.map(|entry| Self::at(entry.path())).filter(move |other| other != self)
    }

    /// Makes the directory and those above it, for the owner alone.
    ///
    /// # Errors
    /// The operating system's.
    pub fn create(&self) -> io::Result<()> {
        create_private(&self.path)
    }
}

/// Makes `path` and what is missing above it, for the owner alone.
///
/// Whoever clears another namespace's state away may take the directory above just before this one is made in it.
pub(crate) fn create_private(path: &Path) -> io::Result<()> {
    let create = || DirBuilder::new().recursive(true).mode(0o700).create(path);
    for _ in 1..MAX_ATTEMPTS {
        match create() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            created => return created,
        }
    }
    create()
}

/// `/run/cni/alias-dns` where it can be written. An unprivileged user has a directory of his own; without one the
/// error that follows names `/run`.
fn base(env: &Environment) -> PathBuf {
    let run = Path::new(RUN).join(SUBDIR);
    match own(env) {
        Some(own) if !writable(&run) => own.join(SUBDIR),
        _ => run,
    }
}

/// The user's own directory. podman as root passes an empty path, which would mean wherever the caller happens to be;
/// by the XDG base directory specification one that is not absolute counts as none.
fn own(env: &Environment) -> Option<PathBuf> {
    env.get("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|own| own.is_absolute())
}

/// Whether `path`, or the nearest directory above it that exists, lets this process write.
pub(crate) fn writable(path: &Path) -> bool {
    nearest_existing(path).is_some_and(|nearest| {
        nearest.is_dir() && nix::unistd::access(nearest, nix::unistd::AccessFlags::W_OK).is_ok()
    })
}

/// `path`, or the nearest above it that exists.
pub(crate) fn nearest_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.exists())
}

/// `<inode>-<cookie>`; only the inode before Linux 5.14, which has no cookie to ask for.
fn netns_id() -> io::Result<String> {
    let inode = std::fs::metadata("/proc/self/ns/net")?.ino();
    Ok(match NetnsCookie::own() {
        Ok(cookie) => format!("{inode}-{}", cookie.number()),
        Err(_) => inode.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_told_by_the_namespace() {
        let state = StateDir::of_host(&Environment::default()).unwrap();
        let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let path = state.path().to_str().unwrap();
        assert!(path.starts_with(&format!("/run/cni/alias-dns/{inode}")), "{path}");
        assert_eq!(state, StateDir::of_host(&Environment::default()).unwrap());
    }

    #[test]
    fn only_an_absolute_path_is_a_directory_of_ones_own() {
        let own = |path| own(&[("XDG_RUNTIME_DIR", path)].into_iter().collect());
        assert_eq!(own("/run/user/7"), Some("/run/user/7".into()));
        assert_eq!([own(""), own("user/7")], [None, None]);
        assert_eq!(super::own(&Environment::default()), None);
    }

    #[test]
    fn what_can_be_written_is_told_by_the_nearest_directory_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        assert!(writable(&dir.path().join("not/there/yet")));
        assert!(!writable(Path::new("/proc/sys/not/there")));
    }
}
