//! Whether a container still has the namespace that its record names. It enters nothing.
//!
//! Only proof counts: a record is somebody's name. The kernel tells of the device at the host's end of the container's
//! link whether there is a namespace at its other end. A path proves less: another runtime may see other files there, or
//! none. So one counts only where there is no such device, and only for those who see the same files.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use nft_netlink::attribute::{find, put};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs, statfs};

use crate::records::{NetnsRef, Record};
use crate::route_netlink::Routing;

/// The mount namespace of whoever looks at it.
const OWN_MOUNTS: &str = "/proc/self/ns/mnt";

/// Attributes of namespaces (`net_namespace.h`), and a link's for that of its other end (`if_link.h`); libc has them for
/// glibc alone.
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
const IFLA_LINK_NETNSID: u16 = 37;

/// Leaves a link's counters out of the answer (`rtnetlink.h`).
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// The head of a message about a link (`struct ifinfomsg`), and where it has the index.
const IFINFOMSG: usize = 16;
const INDEX: usize = 4;

impl NetnsRef {
    /// The namespace at `path`; `None` when none can be seen there. The first of the host's devices `listed` that leads
    /// there is remembered.
    pub(crate) fn look<'n>(path: &Path, listed: impl IntoIterator<Item = &'n str>) -> Option<Self> {
        // Something else may stand there, which nobody waits for.
        let netns = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
        if fstatfs(&netns).ok()?.filesystem_type() != NSFS_MAGIC {
            return None;
        }
        Some(Self {
            path: path.to_owned(),
            inode: netns.metadata().ok()?.ino(),
            seen_from: own_mounts(),
            link: link_into(&netns, listed),
        })
    }

    /// One that is gone, for those who see the files of this process.
    #[cfg(test)]
    pub(crate) fn of_nobody() -> Self {
        Self { path: "/run/netns/of nobody".into(), inode: 1, seen_from: own_mounts(), link: None }
    }

    /// Whether the namespace is provably gone. To be asked in the host's network namespace, of which the record is.
    pub fn is_gone(&self) -> bool {
        match self.link {
            Some(index) => leads_nowhere(index),
            None => self.is_gone_from_its_path(),
        }
    }

    /// Whether another one, or nothing, stands where it was seen, for whoever sees the same files.
    pub(crate) fn is_gone_from_its_path(&self) -> bool {
        if self.seen_from.is_none() || self.seen_from != own_mounts() {
            return false;
        }
        match std::fs::metadata(&self.path) {
            Ok(_) => namespace_inode(&self.path).is_some_and(|inode| inode != self.inode),
            Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory),
        }
    }
}

impl Record {
    /// Whether the container is provably dead. To be asked in the host's network namespace, of which the record is.
    pub fn is_dead(&self) -> bool {
        self.is_of_earlier_boot() || self.netns.as_ref().is_some_and(NetnsRef::is_gone)
    }

    /// Whether that is so where the record is of another host network namespace, whose devices cannot be asked for.
    pub(crate) fn is_dead_elsewhere(&self) -> bool {
        self.is_of_earlier_boot() || self.netns.as_ref().is_some_and(NetnsRef::is_gone_from_its_path)
    }
}

fn namespace_inode(path: &Path) -> Option<u64> {
    let is_namespace = statfs(path).is_ok_and(|filesystem| filesystem.filesystem_type() == NSFS_MAGIC);
    is_namespace.then(|| std::fs::metadata(path).ok()).flatten().map(|file| file.ino())
}

/// The mount namespace of this process.
fn own_mounts() -> Option<u64> {
    Some(std::fs::metadata(OWN_MOUNTS).ok()?.ino())
}

/// The index of the first of `listed` whose other end is in `netns`.
fn link_into<'n>(netns: &File, listed: impl IntoIterator<Item = &'n str>) -> Option<u32> {
    let fd = netns.as_raw_fd().cast_unsigned();
    let routing = Routing::open().ok()?;
    let there = netns_id(&routing, NETNSA_FD, fd.to_ne_bytes()).ok()?.filter(|id| *id >= 0)?;
    let links = listed.into_iter().filter_map(|name| link(&routing, 0, Some(name)).ok());
    links.filter(|link| link.netns == Some(there)).map(|link| link.index).next()
}

/// Whether the device with this index is gone, which is never given again, or the namespace at its other end is dead: that
/// is known some time before the device is gone.
fn leads_nowhere(index: u32) -> bool {
    let Ok(routing) = Routing::open() else { return false };
    match link(&routing, index, None) {
        Ok(Link { netns: Some(id), .. }) => {
            let is_none = |error: std::io::Error| error.raw_os_error() == Some(libc::ENOENT);
            id < 0 || netns_id(&routing, NETNSA_NSID, id.to_ne_bytes()).is_err_and(is_none)
        }
        Ok(Link { netns: None, .. }) => false,
        Err(error) => error.raw_os_error() == Some(libc::ENODEV),
    }
}

/// What is asked of a device of this host.
struct Link {
    index: u32,
    /// The number by which the host knows the namespace of its other end; negative when that is dead.
    netns: Option<i32>,
}

/// The device with this index, or of this name where the index is 0.
fn link(routing: &Routing, index: u32, name: Option<&str>) -> Result<Link> {
    let mut question = vec![0; IFINFOMSG];
    question[INDEX..INDEX + 4].copy_from_slice(&index.to_ne_bytes());
    if let Some(name) = name {
        put(&mut question, libc::IFLA_IFNAME, &[name.as_bytes(), b"\0"].concat());
    }
    put(&mut question, libc::IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    let answer = routing.ask(libc::RTM_GETLINK, &question, libc::RTM_NEWLINK)?;
    let (head, attributes) = answer.split_at_checked(IFINFOMSG).ok_or(ErrorKind::InvalidData)?;
    let index = head[INDEX..].first_chunk().copied().map(u32::from_ne_bytes).ok_or(ErrorKind::InvalidData)?;
    let netns = find(attributes, IFLA_LINK_NETNSID).and_then(|id| id.try_into().ok()).map(i32::from_ne_bytes);
    Ok(Link { index, netns })
}

/// The number by which this host knows a namespace, if it has one: that of a descriptor, or with that number.
fn netns_id(routing: &Routing, attribute: u16, value: [u8; 4]) -> Result<Option<i32>> {
    // The head is one octet (`struct rtgenmsg`), filled up.
    let mut question = vec![0; 4];
    put(&mut question, attribute, &value);
    let answer = routing.ask(libc::RTM_GETNSID, &question, libc::RTM_NEWNSID)?;
    let id = answer.get(4..).and_then(|attributes| find(attributes, NETNSA_NSID));
    Ok(id.and_then(|id| id.try_into().ok()).map(i32::from_ne_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_gone_when_its_path_or_its_inode_is() {
        let own = NetnsRef::look(Path::new("/proc/self/ns/net"), []).unwrap();
        assert!(!own.is_gone());
        assert!(NetnsRef { inode: own.inode + 1, ..own.clone() }.is_gone());
        assert!(NetnsRef::of_nobody().is_gone());
    }

    #[test]
    fn a_path_proves_nothing_to_whoever_sees_other_files() {
        let gone = NetnsRef::of_nobody();
        assert!(!NetnsRef { seen_from: gone.seen_from.map(|mounts| mounts + 1), ..gone.clone() }.is_gone());
        assert!(!NetnsRef { seen_from: None, ..gone.clone() }.is_gone());
        // Nor to anybody where a device tells.
        let loopback = nix::net::if_::if_nametoindex("lo").unwrap();
        assert!(!NetnsRef { link: Some(loopback), ..gone }.is_gone());
        let own = NetnsRef::look(Path::new("/proc/self/ns/net"), []).unwrap();
        assert!(NetnsRef { link: Some(i32::MAX.cast_unsigned()), ..own }.is_gone());
    }

    #[test]
    fn a_file_that_is_no_namespace_proves_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(NetnsRef::look(file.path(), []), None);
        assert!(!NetnsRef { path: file.path().to_owned(), ..NetnsRef::of_nobody() }.is_gone());
    }
}
