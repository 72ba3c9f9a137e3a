//! The record directory: what has changed there is looked at, and what cannot be read is passed over.

use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{Life, Worker};
use crate::records::disk::{Store, Unreadable};
use crate::records::watch::{Change, Watch};
use crate::records::{Record, RecordKey};

/// How long after descriptors or memory have run out the records are read again.
const RECOVERY: Duration = Duration::from_millis(100);

/// Files that were passed over, of which a status tells.
const MAX_UNREADABLE_TOLD: usize = 64;

pub(super) fn by_path(unreadable: Vec<Unreadable>) -> BTreeMap<PathBuf, String> {
    unreadable.into_iter().map(|Unreadable { path, reason, .. }| (path, reason)).collect()
}

pub(super) fn in_words(key: &RecordKey) -> String {
    format!("{}/{}/{}", key.network(), key.container_id(), key.ifname())
}

impl Worker {
    /// Looks at what has changed in the directory.
    pub(super) fn follow(&mut self) -> Life {
        for change in self.watch.as_mut().map(Watch::changes).unwrap_or_default() {
            match change {
                Change::Record(key) => {
                    let _ = self.look_at(&key);
                }
                Change::Network(network) => {
                    let known = self.server.desk().zones.keys_on(&network);
                    self.look_at_all(known.into_iter().collect(), |store, put| {
                        store.read_each_on(&network, put)
                    });
                }
                Change::Everything => self.look_at_everything(),
                Change::Gone => return Life::Over,
            }
        }
        self.note_records();
        Life::On
    }

    /// Reads everything again where something could not be read for want of descriptors or memory.
    pub(super) fn read_again(&mut self) {
        if self.unread.is_some_and(|until| until <= Instant::now()) {
            self.unread = None;
            self.look_at_everything();
            self.note_records();
        }
    }

    fn look_at_everything(&mut self) {
        let known = self.server.desk().zones.keys().collect();
        self.look_at_all(known, |store, put| store.read_each(put));
    }

    /// Answers by what the file of `key` says now; tells which records it shares an address or a name with, `None` when
    /// there is no record.
    pub(super) fn look_at(&mut self, key: &RecordKey) -> std::result::Result<Option<Vec<RecordKey>>, String> {
        let read = self.store.read(key);
        if read.is_ok() {
            self.unreadable.remove(&self.store.path(key));
        }
        let zones = &mut self.server.desk().zones;
        match read {
            Ok(Some(record)) if !record.is_of_earlier_boot() => {
                log::debug!("answers by the record of {}", in_words(key));
                Ok(Some(zones.apply(record).rivals))
            }
            // One of an earlier boot, that somebody puts back, is of a container that is dead.
            Ok(_) => {
                log::debug!("no longer answers by a record of {}", in_words(key));
                zones.remove(key);
                Ok(None)
            }
            // What was known before stays: a broken edit shall not take a name away.
            Err(unreadable) => {
                let told = unreadable.to_string();
                let Unreadable { path, reason, is_scarcity } = unreadable;
                if is_scarcity {
                    self.unread = Some(Instant::now() + RECOVERY);
                }
                if self.unreadable.get(&path) != Some(&reason) {
                    log::warn!("passed over {told}");
                    self.unreadable.insert(path, reason);
                }
                Err(told)
            }
        }
    }

    /// Answers by what `read` finds, instead of what was known of `known`.
    fn look_at_all(
        &mut self,
        mut known: HashSet<RecordKey>,
        read: impl FnOnce(&Store, &mut dyn FnMut(Record)) -> Vec<Unreadable>,
    ) {
        let Self { server, store, unreadable, .. } = self;
        let zones = &mut server.desk().zones;
        let passed_over = read(store, &mut |record| {
            unreadable.remove(&store.path(&record.key));
            if !record.is_of_earlier_boot() {
                known.remove(&record.key);
                zones.apply(record);
            }
        });
        if passed_over.iter().any(|unreadable| unreadable.is_scarcity) {
            self.unread = Some(Instant::now() + RECOVERY);
        }
        unreadable.extend(by_path(passed_over));
        // Gone, or not to be read any more.
        for key in known {
            let _ = self.look_at(&key);
        }
    }

    /// The files that are passed over, in words; of very many only the first, for it all goes into one message.
    pub(super) fn still_unreadable(&mut self) -> Vec<String> {
        // Nobody tells of a file that is no record by its name and goes.
        self.unreadable.retain(|path, _| path.symlink_metadata().is_ok());
        let in_words = |(path, reason): (&PathBuf, &String)| format!("{}: {reason}", path.display());
        let mut told: Vec<String> = self.unreadable.iter().take(MAX_UNREADABLE_TOLD).map(in_words).collect();
        if self.unreadable.len() > told.len() {
            told.push(format!("and {} more", self.unreadable.len() - told.len()));
        }
        told
    }
}
