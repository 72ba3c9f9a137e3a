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

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use cni_types::Attachment;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, Stat, fstat, openat, renameat_with};
use rustix::io::Errno;
use rustix::process::geteuid;

use super::boot::{self, BootId};
use super::index::{Broken, Changed, Entry, Given, Index, Location, Room, Stamp, fingerprint, hash};
use super::lock::Lock;
use super::names::Names;
use super::scan::{self, FileText, Found, LAST_RESERVED, LOCK};
use super::{Era, Held, Holder, Place, Reservation, StickyName, Store, StoreError, content_of};
use crate::span::{Point, Span};

/// Our own files that are written and then moved to where they belong: a lease, and an index.
const NEW_LEASE: &str = "lease";
const NEW_INDEX: &str = "index.new";
const UNFINISHED: [&str; 2] = [NEW_LEASE, NEW_INDEX];

/// A lease that is written where the leases are, since our own directory cannot be used.
const NEW_LEASE_BESIDE: &str = "lease.new";

/// Type and permissions of a lease file.
const LEASE_MODE: u32 = libc::S_IFREG | 0o600;

/// Longer than any address in writing.
const MAX_ADDRESS: usize = 64;

/// In a network of at most so many leases a holder that the index does not know is looked for in the files as well,
/// which then costs less than a millisecond: so a lease that somebody edited in place is found too.
const CHEAP_SCAN: usize = 256;

/// A lease as its file says.
#[derive(Debug)]
pub(crate) struct LeaseFile {
    pub(crate) path: PathBuf,
    /// `None` when the file's name is none.
    pub(crate) address: Option<Point>,
    pub(crate) content: Content,
    pub(crate) era: Era,
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

/// The leases of one network, locked.
#[derive(Debug)]
pub(crate) struct DiskStore {
    place: Place,
    directory: PathBuf,
    boot: Option<BootId>,
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

/// A file whose content will be replaced.
#[derive(Debug)]
struct Rewritable {
    file: File,
    /// Of the content, in bytes, or as much of it as was looked at.
    length: usize,
}

/// What has happened since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Changes {
    None,
    /// Files were made or removed, and the index follows.
    Kept,
    /// The index could not follow, so it must not be saved.
    Lost,
}

/// The times of the directory as of which the index tells. Not everybody who makes or removes a file there asks for the
/// lock.
#[derive(Debug, Clone, Copy)]
enum AsOf {
    /// As they were before the files were read.
    Seen(Stamp),
    /// As we gave them after our last change.
    Given(Given),
    /// Somebody else has changed the directory since.
    Unknown,
}

/// What an index that is given up tells about the leases that are there now.
#[derive(Default)]
struct Past {
    /// Sorted by file.
    leases: Vec<Known>,
    room: Room,
    dead: Dead,
}

/// A lease as it was, in few bytes: there may be very many.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// [`fingerprint`] of the file, but for the lowest bits, which are the `OF_` and `IN_` ones.
    file: u64,
    /// As in [`Entry::holder`].
    holder: u64,
}

impl Known {
    const OF_EARLIER_BOOT: u64 = 1;
    const IN_PLACE: u64 = 2;
    const FILE: u64 = !(Self::OF_EARLIER_BOOT | Self::IN_PLACE);

    fn new(entry: &Entry) -> Self {
        let mut file = fingerprint(entry.address, entry.changed) & Self::FILE;
        if entry.era == Era::EarlierBoot {
            file |= Self::OF_EARLIER_BOOT;
        }
        if entry.location == Location::ByAddress {
            file |= Self::IN_PLACE;
        }
        Self { file, holder: entry.holder }
    }

    fn era(self) -> Era {
        if self.file & Self::OF_EARLIER_BOOT == 0 { Era::ThisBoot } else { Era::EarlierBoot }
    }

    fn is_in_place(self) -> bool {
        self.file & Self::IN_PLACE != 0
    }
}

/// Which leases have a holder that is provably dead.
#[derive(Default)]
enum Dead {
    #[default]
    None,
    /// All: nobody has touched the directory since an earlier boot.
    All,
    /// Those that the index knows, and whose files are untouched.
    Untouched,
    /// Of these, those that the index says are dead.
    Known,
}

impl DiskStore {
    /// Waits for the lock and opens the leases of a network, whose directory is made if it is missing.
    pub(crate) fn open(place: &Place) -> Result<Self, StoreError> {
        let directory = place.directory();
        let path = directory.join(LOCK);
        let lock = match Lock::acquire(&directory, &path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_directory(&directory).map_err(|source| StoreError::new("create", &directory, source))?;
                Lock::acquire(&directory, &path)
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
        let stamp = stamp_of(&directory).map_err(|source| StoreError::new("look at", &directory, source))?;
        let boot = BootId::current();
        let saved = Index::load(&place.own_file("index"));
        let mut store = Self {
            place: place.clone(),
            directory,
            boot,
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

    /// Every lease, by address, and every leftover.
    pub(crate) fn leases(&mut self) -> Result<Vec<LeaseFile>, StoreError> {
        let eras: BTreeMap<(u64, Option<Point>), Era> = self
            .with_index(Index::entries)?
            .into_iter()
            .map(|entry| ((entry.holder, entry.address), entry.era))
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
            let era = match &content {
                Content::Holder(holder) => eras.get(&(hash(holder.content().as_bytes()), found.address)),
                _ => None,
            };
            leases.push(LeaseFile {
                era: era.copied().unwrap_or(Era::ThisBoot),
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
        let outcome = leases.into_iter().try_for_each(|lease| {
            removed = true;
            remove_file(&lease.path)
        });
        if removed {
            self.rebuild(&self.known(), Reading::Changed)?;
            self.changes = Changes::Kept;
        }
        outcome
    }

    /// Releases every lease of `attachment`, wherever it is, and tells how many there were.
    pub(crate) fn release_all(&mut self, attachment: &Attachment) -> Result<usize, StoreError> {
        let entries = self.entries_of(attachment)?;
        let count = entries.len();
        if count == 0 {
            self.remove_unfinished();
        }
        for entry in entries {
            match (entry.location, entry.address) {
                (Location::ByAddress, Some(address)) => self.release_at(&self.path_of(address), address)?,
                _ => self.release_elsewhere(entry.holder)?,
            }
        }
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
        if !self.index.has_dead() {
            return Ok(false);
        }
        let entries = self.with_index(Index::entries)?;
        Ok(entries.iter().any(|entry| is_reclaimable(entry, spans)))
    }

    /// The addresses that `name` had last.
    pub(crate) fn addresses_of(&self, name: &StickyName) -> Vec<Point> {
        Names::of(&self.place).addresses(name)
    }

    /// Remembers `addresses` as those of `name`.
    pub(crate) fn record_name(&mut self, name: &StickyName, addresses: &[Point]) -> Result<(), StoreError> {
        Names::of(&self.place).record(name, addresses)
    }

    /// Whether nobody else has changed the directory since the index was brought up to date.
    fn is_undisturbed(&self) -> bool {
        match self.as_of {
            AsOf::Seen(stamp) | AsOf::Given(Given { kept: stamp, .. }) => {
                stamp_of(&self.directory).is_ok_and(|now| now == stamp)
            }
            AsOf::Unknown => false,
        }
    }

    /// Makes a change in the directory, and gives that its time at once, so that what others change is told from it.
    fn changing<T>(&mut self, change: impl FnOnce(&Self) -> T) -> T {
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

    fn each_file(&self, visit: &mut dyn FnMut(&Found<'_>) -> io::Result<()>) -> Result<(), StoreError> {
        scan::each(&self.directory, visit).map_err(|source| StoreError::new("read", &self.directory, source))
    }

    /// Makes the index anew from the files.
    fn rebuild(&mut self, past: &Past, reading: Reading) -> Result<(), StoreError> {
        self.changes = Changes::Lost;
        self.as_of = stamp_of(&self.directory).map_or(AsOf::Unknown, AsOf::Seen);
        let mut index = Index::empty(self.boot, past.room);
        self.each_file(&mut |found| {
            if reading == Reading::Changed
                && let Some(known) = past.untouched(found)
            {
                return Ok(index.insert(Entry { era: past.era(&known), ..known })?);
            }
            let inserted = match Lease::read(found)? {
                Lease::Held(entry) => index.insert(Entry { era: past.era(&entry), ..entry }),
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
    fn known(&self) -> Past {
        Past::new(&self.index, Dead::Known)
    }

    /// Asks the index; if it turns out to be broken, makes it anew and asks again.
    fn with_index<T>(&mut self, ask: impl Fn(&Index) -> Result<T, Broken>) -> Result<T, StoreError> {
        match ask(&self.index) {
            Ok(answer) => Ok(answer),
            Err(_) => {
                self.rebuild(&Past::default(), Reading::All)?;
                ask(&self.index).map_err(|broken| StoreError::new("index", &self.directory, broken.into()))
            }
        }
    }

    /// Lets the index follow what was done to the files; if it cannot, makes it anew from them.
    fn follow(&mut self, change: impl FnOnce(&mut Index) -> Result<(), Broken>) -> Result<(), StoreError> {
        match change(&mut self.index) {
            Ok(()) => {
                self.changes = Changes::Kept;
                Ok(())
            }
            Err(_) => self.rebuild(&Past::default(), Reading::All),
        }
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
        theirs.iter().try_for_each(|path| remove_file(path))?;
        self.rebuild(&self.known(), Reading::Changed)
    }

    /// Whether the holder of `address` can still be alive.
    fn era_of(&mut self, holder: &Holder, address: Point) -> Result<Era, StoreError> {
        let holder = hash(holder.content().as_bytes());
        let entries = self.with_index(|index| index.find(holder))?;
        let entry = entries.iter().find(|entry| entry.address == Some(address));
        Ok(entry.map_or(Era::ThisBoot, |entry| entry.era))
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

/// Which files are read when the index is made anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    All,
    /// Those that the index before did not know as they are now.
    Changed,
}

/// What a file means to the index.
enum Lease {
    Held(Entry),
    /// Empty, or no holder's name: free.
    Nobody,
    Unreadable,
}

impl Lease {
    fn read(found: &Found<'_>) -> io::Result<Self> {
        let Some(text) = found.read()? else { return Ok(Self::Unreadable) };
        let Some(holder) = Holder::parse(&text.bytes) else { return Ok(Self::Nobody) };
        Ok(Self::Held(Entry {
            holder: hash(holder.content().as_bytes()),
            address: found.address,
            changed: Changed::of(&text.stat),
            era: Era::ThisBoot,
            location: if found.is_in_place { Location::ByAddress } else { Location::Elsewhere },
        }))
    }
}

/// When the content of a file was written.
fn modified(text: &FileText) -> Option<SystemTime> {
    let since = Duration::new(text.stat.st_mtime.try_into().ok()?, text.stat.st_mtime_nsec.try_into().ok()?);
    SystemTime::UNIX_EPOCH.checked_add(since)
}

impl Past {
    /// What `index` knows; nothing where it is damaged.
    fn new(index: &Index, dead: Dead) -> Self {
        let mut leases = Vec::with_capacity(index.len());
        if index.each_entry(|entry| leases.push(Known::new(&entry))).is_err() {
            return Self { dead, ..Self::default() };
        }
        leases.sort_unstable_by_key(|known| known.file);
        Self { leases, room: index.room(), dead }
    }

    /// Judges by an index that was saved, in the end, under another boot id. If the directory still has the stamp of that
    /// moment, nobody has made a lease since. If not, and the directory was changed before this boot began, as after a
    /// power loss, those leases are dead whose files are untouched since. If it was changed in this boot, somebody else
    /// has been writing there, and nothing is proved.
    fn read(earlier: &Index, boot: Option<BootId>, stamp: Stamp) -> Self {
        let is_of_another_boot = boot.is_some() && earlier.boot().is_some_and(|theirs| Some(theirs) != boot);
        let dead = if !is_of_another_boot {
            Dead::None
        } else if earlier.stamp() == Some(stamp) {
            Dead::All
        } else if boot::started().is_some_and(|started| stamp.is_before(started)) {
            Dead::Untouched
        } else {
            Dead::None
        };
        Self::new(earlier, dead)
    }

    /// The leases whose file was this one, as it is.
    fn of_file(&self, address: Option<Point>, changed: Changed) -> impl Iterator<Item = Known> {
        let file = fingerprint(address, changed) & Known::FILE;
        let first = self.leases.partition_point(|known| known.file < file);
        self.leases[first..].iter().copied().take_while(move |known| known.file & Known::FILE == file)
    }

    /// The lease that `found` was, if nobody has touched it since.
    fn untouched(&self, found: &Found<'_>) -> Option<Entry> {
        if !found.is_in_place || self.leases.is_empty() {
            return None;
        }
        let changed = Changed::of(&found.stat()?);
        let known = self.of_file(found.address, changed).find(|known| known.is_in_place())?;
        Some(Entry {
            holder: known.holder,
            address: found.address,
            changed,
            era: known.era(),
            location: Location::ByAddress,
        })
    }

    fn era(&self, entry: &Entry) -> Era {
        let mut known =
            self.of_file(entry.address, entry.changed).filter(|known| known.holder == entry.holder);
        let dead = match self.dead {
            Dead::None => false,
            Dead::All => true,
            Dead::Untouched => known.next().is_some(),
            Dead::Known => known.any(|known| known.era() == Era::EarlierBoot),
        };
        if dead { Era::EarlierBoot } else { Era::ThisBoot }
    }
}

impl Store for DiskStore {
    fn held_by(&mut self, attachment: &Attachment) -> Result<Vec<Held>, StoreError> {
        let mut entries = self.confirmed(&content_of(attachment))?;
        entries.extend(self.confirmed(attachment.container_id())?);
        let held =
            entries.into_iter().filter_map(|entry| Some(Held { address: entry.address?, era: entry.era }));
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
                    let era = self.era_of(&holder, address)?;
                    return Ok(Reservation::Taken { holder: Some(holder), era });
                }
                Err(_) => {
                    self.follow(|index| index.mark_taken(address))?;
                    return Ok(Reservation::Taken { holder: None, era: Era::ThisBoot });
                }
            }
        }
        let entry = Entry {
            holder: hash(content.as_bytes()),
            address: Some(address),
            changed: written.ok_or_else(|| failed(ErrorKind::AlreadyExists.into()))?,
            era: Era::ThisBoot,
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
        if !self.index.has_dead() {
            return Ok(looked_again);
        }
        let dead: Vec<Entry> = self
            .with_index(Index::entries)?
            .into_iter()
            .filter(|entry| entry.location == Location::ByAddress && is_reclaimable(entry, within))
            .collect();
        for address in dead.iter().filter_map(|entry| entry.address) {
            self.release_at(&self.path_of(address), address)?;
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

impl Rewritable {
    /// In place and without emptying it first: a kill in between leaves some address, not none, and file systems make a
    /// point of writing out at once what is emptied and written again.
    fn write(&self, text: &str) -> io::Result<()> {
        self.file.write_all_at(text.as_bytes(), 0)?;
        if self.length > text.len() { self.file.set_len(text.len() as u64) } else { Ok(()) }
    }
}

fn is_reclaimable(entry: &Entry, within: &[Span]) -> bool {
    let inside = entry.address.is_some_and(|address| within.iter().any(|span| span.contains(address)));
    entry.era == Era::EarlierBoot && inside
}

/// Writes `content` to `aside`, a name that nobody else uses while we hold the lock, and moves it to `path`; `None` when
/// there is a file.
fn move_in(aside: &Path, path: &Path, content: &str) -> io::Result<Option<Changed>> {
    let make = || -> io::Result<_> {
        let file = File::options().write(true).create_new(true).mode(0o600).open(aside)?;
        Ok(Rewritable { file, length: 0 })
    };
    let file = match make() {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => reopen(aside)?.map_or_else(make, Ok)?,
        made => made?,
    };
    let moved = file.write(content).and_then(|()| rename_to_free(aside, path));
    if moved.is_err()
        && let Err(error) = std::fs::remove_file(aside)
    {
        log::warn!("remove {}: {error}", aside.display());
    }
    match moved {
        Ok(()) => Ok(Some(fstat(&file.file).map_or(Changed::UNKNOWN, |stat| Changed::of(&stat)))),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(None),
        Err(error) => Err(error),
    }
}

/// Opens the file of a lease that a killed call never finished, to be written anew; `None` if there is none.
fn reopen(aside: &Path) -> io::Result<Option<Rewritable>> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = openat(CWD, aside, flags, Mode::empty()).and_then(|file| Ok((fstat(&file)?, file)));
    match opened {
        Ok((stat, file)) if could_be_made_by_us(&stat) => {
            Ok(Some(Rewritable { file: file.into(), length: stat.st_size.try_into().unwrap_or(usize::MAX) }))
        }
        Err(Errno::NOENT) => Ok(None),
        // What has another name as well, where a file system cannot rename, may be a lease by now.
        _ => std::fs::remove_file(aside).map(|()| None),
    }
}

fn could_be_made_by_us(stat: &Stat) -> bool {
    stat.st_mode == LEASE_MODE && stat.st_nlink == 1 && stat.st_uid == geteuid().as_raw()
}

/// Renames `from` to `to`; `AlreadyExists` when there is such a file.
fn rename_to_free(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // Some file systems, NFS among them, cannot do that in one step.
        Err(Errno::INVAL | Errno::NOSYS) => {
            std::fs::hard_link(from, to)?;
            if let Err(error) = std::fs::remove_file(from) {
                log::warn!("remove {}: {error}", from.display());
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

fn stamp_of(directory: &Path) -> io::Result<Stamp> {
    std::fs::metadata(directory).map(|metadata| Stamp::of(&metadata))
}

fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn remove_file(path: &Path) -> Result<(), StoreError> {
    match std::fs::remove_file(path) {
        // A read-only file system refuses to remove what is not there as well.
        Err(error) if !is_absence(&error) && path.symlink_metadata().is_ok() => {
            Err(StoreError::new("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Whether there is no such file, since one of its parents is none either or no directory.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}
