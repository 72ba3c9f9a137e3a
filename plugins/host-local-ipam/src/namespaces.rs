//! Which network namespaces there are, so that a lease is known to be of a container that is gone.
//!
//! A namespace lives as long as a process or a thread is in it, a file of it is open, or it is mounted somewhere. All of
//! that can be looked at under `/proc` by who may look at every process of the machine, and by nobody else: where this
//! process may not, nothing is proved. What else keeps a namespace (an open socket, the device of a virtual machine whose
//! process has left it) does not count: no container is in such a one. Whoever looks enters each namespace for a moment, in
//! which it lives by that.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cni_types::NetnsCookie;
use cni_types::netns_mounts::{inode_of, mounted};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The first namespaces of processes and of users, in which every other one can be seen (include/linux/proc_ns.h in the
/// kernel's sources).
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;
const FIRST_USER_NAMESPACE: u64 = 0xefff_fffd;

/// Moves this thread into the namespace at `path`; the cookie of it. `None` where none can be entered there, or the
/// kernel gives no cookies.
pub(crate) fn enter(path: &Path) -> Option<NetnsCookie> {
    // Without waiting for whoever writes to a FIFO.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let entered = opened.and_then(|namespace| enter_file(&namespace));
    entered.inspect_err(|error| log::debug!("the namespace {}: {error}", path.display())).ok()
}

fn enter_file(namespace: &File) -> io::Result<NetnsCookie> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    NetnsCookie::own()
}

/// The network namespaces that containers can be in.
#[derive(Debug, Default)]
pub(crate) struct Living {
    looks: Vec<Option<BTreeSet<NetnsCookie>>>,
}

impl Living {
    /// How often all processes are looked at before a namespace counts as gone: it may be handed from one that is looked
    /// at next to one that has been.
    const LOOKS: usize = 2;

    /// Whether a namespace is provably gone. Processes are looked at only where that is not known yet.
    pub(crate) fn lacks(&mut self, namespace: NetnsCookie) -> bool {
        for number in 0..Self::LOOKS {
            if number == self.looks.len() {
                self.looks.push(look());
            }
            if self.looks[number].as_ref().is_none_or(|seen| seen.contains(&namespace)) {
                return false;
            }
        }
        true
    }
}

/// Looks for all namespaces; `None` where one may be out of sight.
fn look() -> Option<BTreeSet<NetnsCookie>> {
    // On a thread of its own, since it enters them.
    let looked = std::thread::scope(|scope| scope.spawn(try_look).join());
    match looked {
        Ok(Ok(seen)) => Some(seen),
        Ok(Err(error)) => {
            log::info!("not all network namespaces can be seen: {error}");
            None
        }
        Err(_) => None,
    }
}

fn try_look() -> io::Result<BTreeSet<NetnsCookie>> {
    require_sight_of_all()?;
    let mut cookies = BTreeSet::new();
    for (inode, paths) in Seen::look()?.namespaces {
        cookies.extend(cookie_of(inode, &paths)?);
    }
    Ok(cookies)
}

/// The first process of all is only to be seen by who sees each of them.
fn require_sight_of_all() -> io::Result<()> {
    for (path, first) in
        [("/proc/self/ns/pid", FIRST_PID_NAMESPACE), ("/proc/self/ns/user", FIRST_USER_NAMESPACE)]
    {
        if std::fs::metadata(path)?.ino() != first {
            return Err(io::Error::other(format!("{path} is not the machine's own")));
        }
    }
    std::fs::metadata("/proc/1/ns/net").map(drop)
}

/// Enters the namespace of this inode by one of the paths that it was seen at; `None` when it is at none of them any
/// more, or mounted where nobody gets to.
fn cookie_of(inode: u64, paths: &BTreeSet<PathBuf>) -> io::Result<Option<NetnsCookie>> {
    for path in paths {
        let is_there = |file: &Metadata| file.ino() == inode;
        if !present(std::fs::metadata(path))?.is_some_and(|file| is_there(&file)) {
            continue;
        }
        if let Some(file) = present(File::open(path))?
            && is_there(&file.metadata()?)
        {
            return enter_file(&file).map(Some);
        }
    }
    Ok(None)
}

/// Namespaces by inode, and where each was seen.
#[derive(Debug, Default)]
struct Seen {
    namespaces: BTreeMap<u64, BTreeSet<PathBuf>>,
    /// The mount namespaces that were looked at, each with the root it was seen from.
    mounts: BTreeSet<[u64; 3]>,
}

impl Seen {
    /// Looks at every process.
    fn look() -> io::Result<Self> {
        let mut seen = Self::default();
        for process in entries(Path::new("/proc"))?.iter().filter(|name| is_number(name)) {
            seen.look_at(&Path::new("/proc").join(process))?;
        }
        Ok(seen)
    }

    /// Looks at one that may end meanwhile.
    fn look_at(&mut self, process: &Path) -> io::Result<()> {
        let threads = process.join("task");
        for thread in entries(&threads)? {
            let path = threads.join(thread).join("ns/net");
            if let Some(file) = present(std::fs::metadata(&path))? {
                self.note(file.ino(), path);
            }
        }
        let files = process.join("fd");
        for file in entries(&files)? {
            let path = files.join(file);
            if let Some(inode) =
                present(std::fs::read_link(&path))?.and_then(|link| inode_of(link.as_os_str()))
            {
                self.note(inode, path);
            }
        }
        let Some(mounts) = present(std::fs::metadata(process.join("ns/mnt")))? else { return Ok(()) };
        let Some(root) = present(std::fs::metadata(process.join("root")))? else { return Ok(()) };
        if self.mounts.insert([mounts.ino(), root.dev(), root.ino()]) {
            let table = present(std::fs::read(process.join("mountinfo")))?.unwrap_or_default();
            for (inode, point) in mounted(&table) {
                let place = point.strip_prefix("/").unwrap_or(&point);
                self.note(inode, process.join("root").join(place));
            }
        }
        Ok(())
    }

    fn note(&mut self, inode: u64, path: PathBuf) {
        self.namespaces.entry(inode).or_default().insert(path);
    }
}

/// What is in a directory; nothing where it is gone.
fn entries(directory: &Path) -> io::Result<Vec<OsString>> {
    let Some(entries) = present(std::fs::read_dir(directory))? else { return Ok(Vec::new()) };
    let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
    Ok(present(names.collect::<io::Result<_>>())?.unwrap_or_default())
}

/// What was found, unless the process has ended.
fn present<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        // The last is what a table of mounts says.
        Err(error) if [Some(libc::ESRCH), Some(libc::EINVAL)].contains(&error.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_number(name: &OsStr) -> bool {
    name.as_bytes().iter().all(u8::is_ascii_digit)
}
