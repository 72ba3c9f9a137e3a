//! How the index follows the files: made anew from them where it does not, and saved where nobody else has been writing.

use std::io::{self, ErrorKind};

use super::{DiskStore, NEW_INDEX};
use crate::store::files::make_directory;
use crate::store::hash::hash;
use crate::store::index::{Broken, Entry, Index, Location};
use crate::store::past::{Dead, Past};
use crate::store::scan::{self, Found};
use crate::store::stamp::{Changed, Given, Stamp};
use crate::store::{Era, Holder, StoreError};

/// What has happened since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    None,
    /// Files were made or removed, and the index follows.
    Kept,
    /// The index could not follow, so it must not be saved.
    Lost,
}

/// The times of the directory as of which the index tells. Not everybody who makes or removes a file there asks for the
/// lock.
#[derive(Debug, Clone, Copy)]
pub(super) enum AsOf {
    /// As they were before the files were read.
    Seen(Stamp),
    /// As we gave them after our last change.
    Given(Given),
    /// Somebody else has changed the directory since.
    Unknown,
}

/// Which files are read when the index is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    All,
    /// Those that the index before did not know as they are now.
    Changed,
}

/// What a file means to the index.
pub(super) enum Lease {
    Held(Entry),
    /// Empty, or no holder's name: free.
    Nobody,
    Unreadable,
}

impl Lease {
    pub(super) fn read(found: &Found<'_>) -> io::Result<Self> {
        let Some(text) = found.read()? else { return Ok(Self::Unreadable) };
        let Some(holder) = Holder::parse(&text.bytes) else { return Ok(Self::Nobody) };
        Ok(Self::Held(Entry {
            holder: hash(holder.content().as_bytes()),
            address: found.address,
            changed: Changed::of(&text.stat),
            era: Era::ThisBoot,
            netns: None,
            location: if found.is_in_place { Location::ByAddress } else { Location::Elsewhere },
        }))
    }
}

impl DiskStore {
    /// Saves the index, so that the next call need not read the files. Without it nothing is wrong, only slower.
    pub(crate) fn finish(mut self) {
        if self.changes == Changes::Lost || (self.changes == Changes::None && self.index.is_saved()) {
            return;
        }
        let own = self.place.own_directory();
        let (path, aside) = (self.place.own_file("index"), self.place.own_file(NEW_INDEX));
        if !self.is_undisturbed() {
            log::info!("index {} not saved: somebody else has been writing", path.display());
            return;
        }
        let mut save = || {
            let stamp = match self.as_of {
                AsOf::Given(Given { stamp, .. }) => stamp,
                AsOf::Seen(_) | AsOf::Unknown => Stamp::set(&self.directory)?.stamp,
            };
            match self.index.save(&path, &aside, stamp) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    make_directory(&own)?;
                    self.index.save(&path, &aside, stamp)
                }
                other => other,
            }
        };
        if let Err(error) = save() {
            log::info!("index {} not saved: {error}", path.display());
        }
    }

    /// Whether nobody else has changed the directory since the index was brought up to date.
    pub(super) fn is_undisturbed(&self) -> bool {
        match self.as_of {
            AsOf::Seen(stamp) | AsOf::Given(Given { kept: stamp, .. }) => {
                Stamp::of(&self.directory).is_ok_and(|now| now == stamp)
            }
            AsOf::Unknown => false,
        }
    }

    /// Makes a change in the directory, and gives that its time at once, so that what others change is told from it.
    pub(super) fn changing<T>(&mut self, change: impl FnOnce(&Self) -> T) -> T {
        let undisturbed = self.is_undisturbed();
        let outcome = change(self);
        self.as_of = match Stamp::set(&self.directory) {
            Ok(given) if undisturbed => AsOf::Given(given),
            _ => AsOf::Unknown,
        };
        if self.changes == Changes::None {
            self.changes = Changes::Kept;
        }
        outcome
    }

    pub(super) fn each_file(
        &self,
        visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        scan::each(&self.directory, visit).map_err(|source| StoreError::new("read", &self.directory, source))
    }

    /// Makes the index anew from the files.
    pub(super) fn rebuild(&mut self, past: &Past, reading: Reading) -> Result<(), StoreError> {
        self.changes = Changes::Lost;
        self.as_of = Stamp::of(&self.directory).map_or(AsOf::Unknown, AsOf::Seen);
        let mut index = Index::empty(self.boot, past.room);
        self.each_file(&mut |found| {
            if reading == Reading::Changed
                && let Some(known) = past.untouched(found)
            {
                return Ok(index.insert(past.told_of(known))?);
            }
            let inserted = match Lease::read(found)? {
                Lease::Held(entry) => index.insert(past.told_of(entry)),
                Lease::Unreadable => found.address.map_or(Ok(()), |address| index.mark_taken(address)),
                Lease::Nobody => Ok(()),
            };
            Ok(inserted?)
        })?;
        self.index = index;
        self.changes = Changes::Kept;
        Ok(())
    }

    /// What the index knows, for the one that takes its place.
    pub(super) fn known(&self) -> Past {
        let as_of = match self.as_of {
            AsOf::Seen(stamp) | AsOf::Given(Given { kept: stamp, .. }) => Some(stamp),
            AsOf::Unknown => None,
        };
        Past::new(&self.index, Dead::Known, as_of)
    }

    /// Asks the index; if it turns out to be broken, makes it anew and asks again.
    pub(super) fn with_index<T>(
        &mut self,
        ask: impl Fn(&Index) -> Result<T, Broken>,
    ) -> Result<T, StoreError> {
        match ask(&self.index) {
            Ok(answer) => Ok(answer),
            Err(_) => {
                self.rebuild(&Past::default(), Reading::All)?;
                ask(&self.index).map_err(|broken| StoreError::new("index", &self.directory, broken.into()))
            }
        }
    }

    /// Lets the index follow what was done to the files; if it cannot, makes it anew from them.
    pub(super) fn follow(
        &mut self,
        change: impl FnOnce(&mut Index) -> Result<(), Broken>,
    ) -> Result<(), StoreError> {
        match change(&mut self.index) {
            Ok(()) => {
                self.changes = Changes::Kept;
                Ok(())
            }
            Err(_) => self.rebuild(&Past::default(), Reading::All),
        }
    }
}
