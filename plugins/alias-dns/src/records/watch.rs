//! Watching the record directory (inotify(7)): the safety net for what nobody told the server, such as an edit by hand
//! or a plugin that was killed between writing its record and saying so.
//!
//! It tells what may have changed, never what it is now: the reader looks at the files.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::Result;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use super::RecordKey;
use super::disk::{Store, is_hashed};

/// What may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// One record.
    Record(RecordKey),
    /// The records of one network.
    Network(String),
    /// Anything: events were lost.
    Everything,
    /// The directory itself is gone.
    Gone,
}

/// A watched record directory.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: Inotify,
    store: Store,
    root: WatchDescriptor,
    networks: HashMap<WatchDescriptor, String>,
}

impl Watch {
    /// Watches the records of `store` from now on.
    pub(crate) fn new(store: Store) -> Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let root = inotify.add_watch(store.root(), flags)?;
        let mut watch = Self { inotify, store, root, networks: HashMap::new() };
        watch.watch_networks();
        Ok(watch)
    }

    /// What may have changed since the last time.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => {
                    for event in events {
                        if let Some(change) = self.change(&event)
                            && changes.last() != Some(&change)
                        {
                            changes.push(change);
                        }
                    }
                }
                Err(Errno::EINTR) => {}
                // Nothing more.
                Err(_) => return changes,
            }
        }
    }

    fn change(&mut self, event: &InotifyEvent) -> Option<Change> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            self.watch_networks();
            return Some(Change::Everything);
        }
        if event.wd == self.root {
            if event.mask.intersects(
                AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_IGNORED,
            ) {
                return Some(Change::Gone);
            }
            let network = event.name.as_deref().and_then(OsStr::to_str)?.to_owned();
            if event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
                self.watch_network(&network);
            }
            // Records may have come before the watch.
            return Some(Change::Network(network));
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.networks.remove(&event.wd);
            return None;
        }
        let network = self.networks.get(&event.wd)?;
        let path = self.store.root().join(network).join(event.name.as_deref()?);
        if is_hashed(&path) {
            // One that is gone can no longer be asked whose it was.
            return Some(Change::Network(network.clone()));
        }
        self.store.key_of(&path).map(Change::Record)
    }

    fn watch_networks(&mut self) {
        let Ok(entries) = std::fs::read_dir(self.store.root()) else { return };
        for entry in entries.flatten() {
            if let Some(network) = entry.file_name().to_str() {
                self.watch_network(network);
            }
        }
    }

    /// A directory that is gone again already, or a stray file, needs no watch.
    fn watch_network(&mut self, network: &str) {
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let path: &Path = &self.store.root().join(network);
        if let Ok(watched) = self.inotify.add_watch(path, flags) {
            self.networks.insert(watched, network.to_owned());
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use cni_types::Attachment;

    use super::*;
    use crate::state_dir::StateDir;

    fn key(network: &str, container_id: &str) -> RecordKey {
        RecordKey::new(network, Attachment::new(container_id, "eth0").unwrap()).unwrap()
    }

    #[test]
    fn every_kind_of_change_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(&StateDir::at(directory.path()));
        let root = store.root().to_owned();
        std::fs::create_dir_all(root.join("old")).unwrap();
        let mut watch = Watch::new(store).unwrap();
        assert_eq!(watch.changes(), []);

        std::fs::write(root.join("old/c1:eth0"), "x").unwrap();
        assert_eq!(watch.changes(), [Change::Record(key("old", "c1"))]);
        std::fs::rename(root.join("old/c1:eth0"), root.join("old/c2:eth0")).unwrap();
        assert_eq!(watch.changes(), [Change::Record(key("old", "c1")), Change::Record(key("old", "c2"))]);
        std::fs::remove_file(root.join("old/c2:eth0")).unwrap();
        std::fs::write(root.join("old/stray"), "x").unwrap();
        assert_eq!(watch.changes(), [Change::Record(key("old", "c2"))]);

        std::fs::create_dir(root.join("new")).unwrap();
        assert_eq!(watch.changes(), [Change::Network("new".into())]);
        std::fs::write(root.join("new/c3:eth0"), "x").unwrap();
        assert_eq!(watch.changes(), [Change::Record(key("new", "c3"))]);
        std::fs::write(root.join("new/~0:eth0"), "x").unwrap();
        assert_eq!(watch.changes(), [Change::Network("new".into())]);
        std::fs::remove_file(root.join("new/~0:eth0")).unwrap();
        assert_eq!(watch.changes(), [Change::Network("new".into())]);
        std::fs::remove_dir_all(root.join("new")).unwrap();
        assert_eq!(watch.changes(), [Change::Record(key("new", "c3")), Change::Network("new".into())]);

        std::fs::remove_dir_all(&root).unwrap();
        assert!(watch.changes().contains(&Change::Gone));
    }
}
