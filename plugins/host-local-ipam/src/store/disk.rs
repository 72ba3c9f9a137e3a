//! The store of this host: one file a lease, in the reference plugin's layout, so that either plugin can take over from
//! the other at any moment.
//!
//! In `<data directory>/<network>/`, as the reference has it: `<address>` (mode 0600) holds
//! `<container id>\r\n<ifname>`, `last_reserved_ip.N` the address leased last from range set N, `lock` is locked with
//! `flock(2)` during every call. What is our own is beside it, in `<data directory>/.host-local-ipam/`, where the
//! reference never looks: the index, the sticky names, and for a moment the lease that is being written.
//!
//! A lease file is written there and then moved to its place, so it is whole or absent. A kill between any two system
//! calls leaves either no lease, or one that says whose it is; the index is then behind, which the next call notices.
//! Files that name nobody are free. Nothing is synced to the disk: a power loss ends every container too.

mod listing;
mod upkeep;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cni_types::{Attachment, BootId, NetnsCookie};

pub(crate) use self::listing::{Content, LeaseFile};
use self::upkeep::{AsOf, Changes, Lease, Reading};
use super::files::{Rewritable, is_absence, make_directory, move_in, remove_file};
use super::hash::hash;
use super::index::{Entry, Index, Location, Room};
use super::lock::Lock;
use super::names::Names;
use super::past::Past;
use super::scan::{self, LAST_RESERVED, LOCK};
use super::stamp::{Changed, Given, Stamp};
use super::{Era, Held, Holder, Life, Place, Reservation, StickyName, Store, StoreError, content_of};
use crate::namespaces::Living;
use crate::span::{Point, Span};

/// Our own files that are written and then moved to where they belong: a lease, and an index.
const NEW_LEASE: &str = "lease";
const NEW_INDEX: &str = "index.new";
const UNFINISHED: [&str; 2] = [NEW_LEASE, NEW_INDEX];

/// A lease that is written where the leases are, since our own directory cannot be used.
const NEW_LEASE_BESIDE: &str = "lease.new";

/// Longer than any address in writing.
const MAX_ADDRESS: usize = 64;

/// In a network of at most so many leases a holder that the index does not know is looked for in the files as well,
/// which then costs less than a millisecond: so a lease that somebody edited in place is found too.
const CHEAP_SCAN: usize = 256;

/// The leases of one network, locked.
#[derive(Debug)]
pub(crate) struct DiskStore {
    place: Place,
    directory: PathBuf,
    boot: Option<BootId>,
    /// Of the container that leases.
    netns: Option<NetnsCookie>,
    living: RefCell<Living>,
    index: Index,
    /// Those that were read, to be written again.
    cursors: Vec<Cursor>,
    changes: Changes,
    as_of: AsOf,
    _lock: Lock,
}

/// The file of the address leased last from a range set.
#[derive(Debug)]
struct Cursor {
    set: usize,
    file: Rewritable,
}

impl DiskStore {
    /// Waits for the lock and opens the leases of a network, whose directory is made if it is missing.
    pub(crate) fn open(place: &Place) -> Result<Self, StoreError> {
        let directory = place.directory();
        let path = directory.join(LOCK);
        let lock = match Lock::acquire(&directory, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_directory(&directory).map_err(|source| StoreError::new("create", &directory, source))?;
                // On a full disk there is room for the directory and not for the lock, without which no DEL gets by it.
                Lock::acquire(&directory, &path).inspect_err(|_| drop(std::fs::remove_dir(&directory)))
            }
            other => other,
        };
        Self::locked(place, directory, lock.map_err(|source| StoreError::new("lock", &path, source))?)
    }

    /// The same, but makes no directory: without one there are no leases, and `None` is returned.
    pub(crate) fn open_existing(place: &Place) -> Result<Option<Self>, StoreError> {
        let directory = place.directory();
        let path = directory.join(LOCK);
        match Lock::acquire(&directory, &path) {
            Ok(lock) => Self::locked(place, directory, lock).map(Some),
            // A symbolic link that leads nowhere is there all the same, and so may leases be.
            Err(error) if is_absence(&error) && !path.is_symlink() => Ok(None),
            Err(source) => Err(StoreError::new("lock", &path, source)),
        }
    }

    fn locked(place: &Place, directory: PathBuf, lock: Lock) -> Result<Self, StoreError> {
        let stamp = Stamp::of(&directory).map_err(|source| StoreError::new("look at", &directory, source))?;
        let boot = BootId::current();
        let saved = Index::load(&place.own_file("index"));
        let mut store = Self {
            place: place.clone(),
            directory,
            boot,
            netns: None,
            living: RefCell::default(),
            index: Index::empty(boot, Room::default()),
            cursors: Vec::new(),
            changes: Changes::None,
            as_of: AsOf::Given(Given { stamp, kept: stamp }),
            _lock: lock,
        };
        match saved {
            Some(index) if index.boot() == boot && index.stamp() == Some(stamp) => store.index = index,
            Some(earlier) => store.rebuild(&Past::read(&earlier, boot, stamp), Reading::Changed)?,
            None => store.rebuild(&Past::default(), Reading::All)?,
        }
        Ok(store)
    }

    /// Notes with the leases to come which namespace they are for. Without a boot id nothing is noted: a later boot gives
    /// the same cookies.
    pub(crate) fn lease_for(&mut self, netns: Option<NetnsCookie>) {
        self.netns = netns.filter(|_| self.boot.is_some());
    }

    /// Releases every lease of `attachment`, wherever it is, and tells how many there were.
    pub(crate) fn release_all(&mut self, attachment: &Attachment) -> Result<usize, StoreError> {
        let entries = self.entries_of(attachment)?;
        let count = entries.len();
        if count == 0 {
            self.remove_unfinished();
        }
        let released = entries.into_iter().map(|entry| match (entry.location, entry.address) {
            (Location::ByAddress, Some(address)) => self.release_at(&self.path_of(address), address),
            _ => self.release_elsewhere(entry.holder),
        });
        each_of(released)?;
        Ok(count)
    }

    /// Removes what a call that was killed had written and not moved into place. Nobody is at it while we hold the lock.
    /// It keeps no address from anybody, so that what cannot be removed, something else by that name, is no failure.
    pub(crate) fn remove_unfinished(&self) {
        let own = UNFINISHED.map(|kind| self.place.own_file(kind));
        for path in own.iter().chain([&self.directory.join(NEW_LEASE_BESIDE)]) {
            if let Err(error) = remove_file(path) {
                log::warn!("{error}");
            }
        }
    }

    /// The leases of `attachment`, the index confirmed by the files where it knows none.
    pub(crate) fn leases_of(&mut self, attachment: &Attachment) -> Result<Vec<Point>, StoreError> {
        let entries = self.entries_of(attachment)?;
        Ok(entries.into_iter().filter_map(|entry| entry.address).collect())
    }

    /// Who holds `address`; `None` when there is no such file, or it names nobody.
    pub(crate) fn holder_of(&mut self, address: Point) -> Result<Option<Holder>, StoreError> {
        let path = self.file_of(address)?;
        match scan::read(&path) {
            Ok(bytes) => Ok(Holder::parse(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StoreError::new("read", &path, source)),
        }
    }

    /// Whether a lease in one of `spans` can be had by reclaiming it.
    pub(crate) fn has_reclaimable(&mut self, spans: &[Span]) -> Result<bool, StoreError> {
        let entries = self.with_index(Index::entries)?;
        Ok(entries.iter().any(|entry| is_in_place_within(entry, spans) && self.life_of(entry) == Life::Over))
    }

    /// The addresses that `name` had last.
    pub(crate) fn addresses_of(&self, name: &StickyName) -> Vec<Point> {
        Names::of(&self.place).addresses(name)
    }

    /// Remembers `addresses` as those of `name`.
    pub(crate) fn record_name(&mut self, name: &StickyName, addresses: &[Point]) -> Result<(), StoreError> {
        Names::of(&self.place).record(name, addresses)
    }

    fn path_of(&self, address: Point) -> PathBuf {
        self.directory.join(address.to_string())
    }

    /// The file that the lease of `address` is in: where somebody has renamed it to another spelling or moved it further
    /// down, the index says that the address is taken, and there is no file by its name.
    fn file_of(&mut self, address: Point) -> Result<PathBuf, StoreError> {
        let mut path = self.path_of(address);
        let is_taken = self.with_index(|index| index.first_free(Span::of_one(address)))?.is_none();
        if is_taken && path.symlink_metadata().is_err() {
            self.each_file(&mut |found| {
                if found.address == Some(address) {
                    path = found.path();
                }
                Ok(())
            })?;
        }
        Ok(path)
    }

    /// Removes the lease of `address` that is in the file at `path`.
    fn release_at(&mut self, path: &Path, address: Point) -> Result<(), StoreError> {
        let holder = scan::read(path).ok().and_then(|bytes| Holder::parse(&bytes));
        self.changing(|_| remove_file(path))?;
        self.follow(|index| match holder {
            Some(holder) => index.remove(hash(holder.content().as_bytes()), address),
            None => index.mark_free(address),
        })
    }

    /// As in the reference, those that carry the container id alone count when there are no others. Where the index knows
    /// none, a small network's files are asked.
    fn entries_of(&mut self, attachment: &Attachment) -> Result<Vec<Entry>, StoreError> {
        let found = self.entries_of_either(attachment)?;
        let unscanned = self.index.is_saved();
        if found.is_empty() && unscanned && self.index.len() <= CHEAP_SCAN {
            self.rebuild(&self.known(), Reading::All)?;
            return self.entries_of_either(attachment);
        }
        Ok(found)
    }

    fn entries_of_either(&mut self, attachment: &Attachment) -> Result<Vec<Entry>, StoreError> {
        let found = self.confirmed(&content_of(attachment))?;
        if found.is_empty() { self.confirmed(attachment.container_id()) } else { Ok(found) }
    }

    /// The lease files whose content is `content`, each seen to be so.
    fn confirmed(&mut self, content: &str) -> Result<Vec<Entry>, StoreError> {
        let holder = hash(content.as_bytes());
        loop {
            let entries = self.with_index(|index| index.find(holder))?;
            let wrong = entries.iter().find(|entry| !self.confirms(entry, content));
            match wrong {
                None => return Ok(entries),
                // Made from the files a moment ago, so another content has the same hash.
                Some(_) if !self.index.is_saved() => {
                    return Ok(entries.into_iter().filter(|entry| self.confirms(entry, content)).collect());
                }
                Some(_) => self.rebuild(&Past::default(), Reading::All)?,
            }
        }
    }

    fn confirms(&self, entry: &Entry, content: &str) -> bool {
        match (entry.location, entry.address) {
            (Location::ByAddress, Some(address)) => scan::read(&self.path_of(address))
                .is_ok_and(|bytes| Holder::parse(&bytes).is_some_and(|holder| holder.content() == content)),
            // Looked at when it is released.
            _ => true,
        }
    }

    /// Removes every file of `holder`, whatever its name.
    fn release_elsewhere(&mut self, holder: u64) -> Result<(), StoreError> {
        let mut theirs = Vec::new();
        self.each_file(&mut |found| {
            if matches!(Lease::read(found)?, Lease::Held(entry) if entry.holder == holder) {
                theirs.push(found.path());
            }
            Ok(())
        })?;
        let removed = each_of(theirs.iter().map(|path| remove_file(path)));
        self.rebuild(&self.known(), Reading::Changed)?;
        removed
    }

    /// Whether the holder of `address` can still be alive.
    fn life_at(&mut self, holder: &Holder, address: Point) -> Result<Life, StoreError> {
        let holder = hash(holder.content().as_bytes());
        let entries = self.with_index(|index| index.find(holder))?;
        let entry = entries.iter().find(|entry| entry.address == Some(address));
        Ok(entry.map_or(Life::Possible, |entry| self.life_of(entry)))
    }

    /// Whether the holder of a lease can still be alive.
    fn life_of(&self, lease: &Entry) -> Life {
        let is_gone = |netns| self.living.borrow_mut().lacks(netns);
        if lease.era == Era::EarlierBoot || lease.netns.is_some_and(is_gone) {
            Life::Over
        } else {
            Life::Possible
        }
    }

    /// Makes the lease file at `path`, whole; `None` when there is a file.
    fn write_lease(&self, path: &Path, content: &str) -> io::Result<Option<Changed>> {
        let aside = self.place.own_file(NEW_LEASE);
        let written = match move_in(&aside, path, content) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_directory(&self.place.own_directory()).and_then(|()| move_in(&aside, path, content))
            }
            other => other,
        };
        written.or_else(|error| {
            // Our own directory cannot be written, is on another file system, or is something else.
            log::info!("write {}: {error}", aside.display());
            move_in(&self.directory.join(NEW_LEASE_BESIDE), path, content)
        })
    }
}

impl Store for DiskStore {
    fn held_by(&mut self, attachment: &Attachment) -> Result<Vec<Held>, StoreError> {
        let mut entries = self.confirmed(&content_of(attachment))?;
        entries.extend(self.confirmed(attachment.container_id())?);
        let held = entries
            .into_iter()
            .filter_map(|entry| Some(Held { address: entry.address?, life: self.life_of(&entry) }));
        Ok(held.collect())
    }

    fn first_free(&mut self, span: Span) -> Result<Option<Point>, StoreError> {
        self.with_index(|index| index.first_free(span))
    }

    fn reserve(&mut self, address: Point, attachment: &Attachment) -> Result<Reservation, StoreError> {
        let path = self.path_of(address);
        let content = content_of(attachment);
        let failed = |source| StoreError::new("create", &path, source);
        let there = self.file_of(address)?;
        let lease = |store: &Self| store.write_lease(&path, &content);
        let mut written = if there == path { self.changing(lease).map_err(failed)? } else { None };
        if written.is_none() {
            match scan::read(&there).map(|bytes| Holder::parse(&bytes)) {
                Ok(None) => {
                    self.changing(|_| remove_file(&there))?;
                    written = self.changing(lease).map_err(failed)?;
                }
                Ok(Some(holder)) => {
                    self.follow(|index| index.mark_taken(address))?;
                    let life = self.life_at(&holder, address)?;
                    return Ok(Reservation::Taken { holder: Some(holder), life });
                }
                Err(_) => {
                    self.follow(|index| index.mark_taken(address))?;
                    return Ok(Reservation::Taken { holder: None, life: Life::Possible });
                }
            }
        }
        let entry = Entry {
            holder: hash(content.as_bytes()),
            address: Some(address),
            changed: written.ok_or_else(|| failed(ErrorKind::AlreadyExists.into()))?,
            era: Era::ThisBoot,
            netns: self.netns,
            location: Location::ByAddress,
        };
        self.follow(|index| index.insert(entry))?;
        Ok(Reservation::Made)
    }

    fn release(&mut self, address: Point) -> Result<(), StoreError> {
        let path = self.file_of(address)?;
        self.release_at(&path, address)
    }

    fn reclaim(&mut self, within: &[Span]) -> Result<bool, StoreError> {
        let looked_again = self.index.is_saved() && (self.index.has_dead() || self.index.len() <= CHEAP_SCAN);
        if looked_again {
            self.rebuild(&self.known(), Reading::All)?;
        }
        let mut entries = self.with_index(Index::entries)?;
        entries.retain(|entry| is_in_place_within(entry, within));
        // Those of an earlier boot first: for them nothing has to be looked for.
        let mut dead: Vec<Entry> = entries.extract_if(.., |entry| entry.era == Era::EarlierBoot).collect();
        if dead.is_empty() {
            entries.retain(|entry| self.life_of(entry) == Life::Over);
            dead = entries;
        }
        for address in dead.iter().filter_map(|entry| entry.address) {
            // Another one may do.
            if let Err(error) = self.release_at(&self.path_of(address), address) {
                log::warn!("{error}");
            }
        }
        Ok(looked_again || !dead.is_empty())
    }

    fn last_reserved(&mut self, set: usize) -> Option<Point> {
        let path = self.directory.join(format!("{LAST_RESERVED}{set}"));
        let file = File::options().read(true).write(true).open(path).ok()?;
        let mut text = [0; MAX_ADDRESS];
        let length = file.read_at(&mut text, 0).ok()?;
        let address = std::str::from_utf8(&text[..length]).ok()?.parse::<IpAddr>().ok();
        self.cursors.push(Cursor { set, file: Rewritable { file, length } });
        address.map(|address| Point::from(address.to_canonical()))
    }

    fn set_last_reserved(&mut self, set: usize, address: Point) -> Result<(), StoreError> {
        let path = self.directory.join(format!("{LAST_RESERVED}{set}"));
        let read = self.cursors.iter().position(|cursor| cursor.set == set);
        let open = || {
            // Without waiting for whoever reads from a FIFO.
            let mut options = File::options();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NONBLOCK);
            let file = options.open(&path)?;
            let length = file.metadata()?.len().try_into().unwrap_or(usize::MAX);
            Ok(Rewritable { file, length })
        };
        let file = match read {
            Some(place) => Ok(self.cursors.swap_remove(place).file),
            None => self.changing(|_| open()),
        };
        file.and_then(|file| file.write(&address.to_string()))
            .map_err(|source| StoreError::new("write", &path, source))
    }
}

/// Does all of these, also when one fails. The first failure is told in the end, the others in the log.
fn each_of(steps: impl Iterator<Item = Result<(), StoreError>>) -> Result<(), StoreError> {
    let mut failures = steps.filter_map(Result::err);
    let first = failures.next();
    failures.for_each(|error| log::error!("{error}"));
    first.map_or(Ok(()), Err)
}

fn is_in_place_within(entry: &Entry, spans: &[Span]) -> bool {
    let inside = entry.address.is_some_and(|address| spans.iter().any(|span| span.contains(address)));
    entry.location == Location::ByAddress && inside
}

#[cfg(test)]
mod tests;
