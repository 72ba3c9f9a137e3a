//! Network namespaces: opening, comparing, visiting. The only `setns` of the plugin is here.
//!
//! The process belongs to the host's namespace throughout: a visit to a container's opens what has to be opened there
//! (a socket stays in the namespace that it was opened in) and comes back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cni_types::{Error, ErrorCode, netns_mounts};
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{FsType, NSFS_MAGIC, PROC_SUPER_MAGIC, fstatfs};

use crate::netlink::Netlink;

/// The namespace that this thread is in. Unlike `/proc/self`, right also in a process whose first thread has ended.
const OWN: &str = "/proc/thread-self/ns/net";

/// What is mounted where, for this thread (proc_pid_mountinfo(5)).
const MOUNTS: &str = "/proc/thread-self/mountinfo";

/// A network namespace, kept alive while this is held.
#[derive(Debug)]
pub(crate) struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the container's namespace at `path`.
    ///
    /// # Errors
    /// Code 8 in the reference's words when there is none, or it is something else.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let shown = format!("{:?}", path.display().to_string());
        let invalid = |reason: String| {
            Error::new(ErrorCode::INVALID_NETNS, format!("CNI_NETNS: failed to open netns {shown}: {reason}"))
        };
        // What is no namespace may be a FIFO, and its writer would be waited for.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file =
            opened.map_err(|error| invalid(format!("failed to Statfs {shown}: {}", message_of(&error))))?;
        let kind =
            fstatfs(&file).map_err(|errno| invalid(format!("failed to Statfs {shown}: {}", errno.desc())))?;
        // Kernels before 3.19 showed namespaces as files of /proc itself.
        let FsType(magic) = kind.filesystem_type();
        if ![NSFS_MAGIC, PROC_SUPER_MAGIC].contains(&FsType(magic)) {
            return Err(invalid(format!("unknown FS magic on {shown}: {magic:x}")));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens the host's namespace, the one that the plugin was started in.
    ///
    /// # Errors
    /// Code 5 when /proc is not there.
    pub(crate) fn own() -> Result<Self, Error> {
        let file = File::open(OWN).map_err(|error| Error::io(format_args!("open {OWN}"), &error))?;
        Ok(Self { file, path: PathBuf::from(OWN) })
    }

    /// Whether `other` is the same namespace, by whatever path.
    pub(crate) fn is(&self, other: &Self) -> io::Result<bool> {
        let (ours, theirs) = (self.file.metadata()?, other.file.metadata()?);
        Ok((ours.dev(), ours.ino()) == (theirs.dev(), theirs.ino()))
    }

    /// Does `visit` in this namespace and comes back to `home`.
    ///
    /// # Errors
    /// Code 8 when this is no network namespace, and what `visit` says.
    pub(crate) fn visit<T>(&self, home: &Self, visit: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let enter = |netns: &Self| {
            setns(&netns.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
                let path = netns.path.display();
                Error::new(
                    ErrorCode::INVALID_NETNS,
                    format!("enter network namespace {path}: {}", errno.desc()),
                )
            })
        };
        enter(self)?;
        let visited = visit();
        // Once more if the kernel lacked the memory for it: whatever else is done, also to take back what has been
        // done, would be done in the wrong place.
        enter(home).or_else(|_| enter(home))?;
        visited
    }

    /// Opens a connection to this namespace's routing tables.
    ///
    /// # Errors
    /// Code 8 when this is no network namespace.
    pub(crate) fn netlink(&self, home: &Self) -> Result<Netlink, Error> {
        self.visit(home, || Netlink::open().map_err(|failure| Error::internal(failure).context("netlink")))
    }

    /// Waits until nobody excludes us, and keeps everybody from doing so while the guard lives.
    ///
    /// The lock is on the namespace itself, not on a file of ours, so nothing can be left over and a plugin that is
    /// killed lets go. Who attaches a port shares; who removes a bridge because it has none excludes. One guard at a
    /// time: they are all of one open file, whose lock the last one takes over.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn share(&self) -> Result<LinkLock<'_>, Error> {
        take(&self.file, File::lock_shared)?;
        Ok(LinkLock { file: &self.file })
    }

    /// Waits until nobody shares or excludes, and keeps everybody out while the guard lives.
    ///
    /// # Errors
    /// Code 5.
    pub(crate) fn exclude(&self) -> Result<LinkLock<'_>, Error> {
        take(&self.file, File::lock)?;
        Ok(LinkLock { file: &self.file })
    }
}

fn take(file: &File, lock: impl Fn(&File) -> io::Result<()>) -> Result<(), Error> {
    loop {
        match lock(file) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            taken => return taken.map_err(|error| Error::io("lock the network namespace", &error)),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Holds off those who would make or remove bridges at the same time, while it lives.
#[derive(Debug)]
pub(crate) struct LinkLock<'a> {
    file: &'a File,
}

impl LinkLock<'_> {
    /// Does `make` while nobody else shares or excludes. In between others may have had their turn.
    ///
    /// # Errors
    /// Code 5, and what `make` says.
    pub(crate) fn alone<T>(&self, make: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        take(self.file, File::lock)?;
        let made = make();
        take(self.file, File::lock_shared)?;
        made
    }
}

impl Drop for LinkLock<'_> {
    fn drop(&mut self) {
        // What cannot be unlocked is unlocked when its file is closed, at the latest at the end of the process.
        if let Err(error) = self.file.unlock() {
            log::warn!("unlock the network namespace: {error}");
        }
    }
}

/// Where network namespaces are bound to, as `ip netns` and container runtimes do: each is kept alive by that.
///
/// # Errors
/// Code 5.
pub(crate) fn mounted() -> Result<Vec<PathBuf>, Error> {
    let mounts = std::fs::read(MOUNTS).map_err(|error| Error::io(format_args!("read {MOUNTS}"), &error))?;
    Ok(netns_mounts::mounted(&mounts).map(|(_, point)| point).collect())
}

/// The system's words for an error, without the number that Rust adds.
fn message_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(errno) => nix::errno::Errno::from_raw(errno).desc().to_lowercase(),
        None => error.to_string(),
    }
}
