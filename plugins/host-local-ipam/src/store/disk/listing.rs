//! Every lease of a network, for those who look at all of them: GC and a person.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::upkeep::{Changes, Reading};
use super::{DiskStore, each_of};
use crate::span::Point;
use crate::store::files::remove_file;
use crate::store::hash::hash;
use crate::store::index::Index;
use crate::store::scan::FileText;
use crate::store::{Holder, Life, StoreError};

/// A lease as its file says.
#[derive(Debug)]
pub(crate) struct LeaseFile {
    pub(crate) path: PathBuf,
    /// `None` when the file's name is none.
    pub(crate) address: Option<Point>,
    pub(crate) content: Content,
    pub(crate) life: Life,
    /// When the lease was made.
    pub(crate) modified: Option<SystemTime>,
}

/// Whom a file says that its address belongs to.
#[derive(Debug)]
pub(crate) enum Content {
    Holder(Holder),
    /// A leftover: the address is free.
    Nobody,
    /// It is no file that can be read, and keeps the address.
    Unreadable,
}

impl DiskStore {
    /// Every lease, by address, and every leftover.
    pub(crate) fn leases(&mut self) -> Result<Vec<LeaseFile>, StoreError> {
        let lives: BTreeMap<(u64, Option<Point>), Life> = self
            .with_index(Index::entries)?
            .into_iter()
            .map(|entry| ((entry.holder, entry.address), self.life_of(&entry)))
            .collect();
        let mut leases = Vec::new();
        self.each_file(&mut |found| {
            let text = found.read()?;
            if text.is_none() && found.address.is_none() {
                return Ok(());
            }
            let content = match &text {
                Some(text) => Holder::parse(&text.bytes).map_or(Content::Nobody, Content::Holder),
                None => Content::Unreadable,
            };
            let life = match &content {
                Content::Holder(holder) => lives.get(&(hash(holder.content().as_bytes()), found.address)),
                _ => None,
            };
            leases.push(LeaseFile {
                life: life.copied().unwrap_or(Life::Possible),
                modified: text.as_ref().and_then(modified),
                content,
                path: found.path(),
                address: found.address,
            });
            Ok(())
        })?;
        leases.sort_by(|one, other| (one.address, &one.path).cmp(&(other.address, &other.path)));
        Ok(leases)
    }

    /// Removes the files of these leases.
    pub(crate) fn remove<'a>(
        &mut self,
        leases: impl IntoIterator<Item = &'a LeaseFile>,
    ) -> Result<(), StoreError> {
        let mut removed = false;
        let outcome = each_of(leases.into_iter().map(|lease| {
            removed = true;
            remove_file(&lease.path)
        }));
        if removed {
            self.rebuild(&self.known(), Reading::Changed)?;
            self.changes = Changes::Kept;
        }
        outcome
    }
}

/// When the content of a file was written.
fn modified(text: &FileText) -> Option<SystemTime> {
    let since = Duration::new(text.stat.st_mtime.try_into().ok()?, text.stat.st_mtime_nsec.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}
