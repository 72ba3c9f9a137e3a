//! What an index that is given up still tells: which files need not be read again, and whose holders are provably dead.

use std::time::{Duration, SystemTime};

use cni_types::{BootId, NetnsCookie};

use super::Era;
use super::index::{Entry, Index, Location, Room};
use super::scan::Found;
use super::stamp::{Changed, Stamp, fingerprint};
use crate::span::Point;

/// What an index that is given up tells about the leases that are there now.
#[derive(Default)]
pub(super) struct Past {
    /// Sorted by file.
    leases: Vec<Known>,
    pub(super) room: Room,
    dead: Dead,
    /// A file changed before this, in nanoseconds, has another time if it was changed since. One that is not older may
    /// have been changed again within the same tick of its file system's clock, which is up to two seconds.
    settled: Option<i64>,
}

impl Past {
    /// What `index` knows of a directory that was stamped `as_of`; nothing where it is damaged.
    pub(super) fn new(index: &Index, dead: Dead, as_of: Option<Stamp>) -> Self {
        let mut leases = Vec::with_capacity(index.len());
        if index.each_entry(|entry| leases.push(Known::new(&entry))).is_err() {
            return Self { dead, ..Self::default() };
        }
        leases.sort_unstable_by_key(|known| known.file);
        Self { leases, room: index.room(), dead, settled: as_of.map(|stamp| stamp.changed) }
    }

    /// Judges by an index that was saved, in the end, under another boot id. If the directory still has the stamp of that
    /// moment, nobody has made a lease since. If not, and the directory was changed before this boot began, as after a
    /// power loss, those leases are dead whose files are untouched since. If it was changed in this boot, somebody else
    /// has been writing there, and nothing is proved.
    pub(super) fn read(earlier: &Index, boot: Option<BootId>, stamp: Stamp) -> Self {
        let is_of_another_boot = boot.is_some() && earlier.boot().is_some_and(|theirs| Some(theirs) != boot);
        let dead = if !is_of_another_boot {
            Dead::None
        } else if earlier.stamp() == Some(stamp) {
            Dead::All
        } else if boot_started().is_some_and(|started| stamp.is_before(started)) {
            Dead::Untouched
        } else {
            Dead::None
        };
        let mut past = Self::new(earlier, dead, earlier.stamp());
        if boot.is_none() || earlier.boot() != boot {
            past.leases.iter_mut().for_each(|known| known.netns = None);
        }
        past
    }

    /// The leases whose file was this one, as it is.
    fn of_file(&self, address: Option<Point>, changed: Changed) -> impl Iterator<Item = Known> {
        let file = fingerprint(address, changed) & Known::FILE;
        let first = self.leases.partition_point(|known| known.file < file);
        self.leases[first..].iter().copied().take_while(move |known| known.file & Known::FILE == file)
    }

    /// The lease that `found` was, if nobody has touched it since.
    pub(super) fn untouched(&self, found: &Found<'_>) -> Option<Entry> {
        if !found.is_in_place || self.leases.is_empty() {
            return None;
        }
        let changed = Changed::of(&found.stat()?);
        if self.settled.is_none_or(|settled| changed.at >= settled) {
            return None;
        }
        let known = self.of_file(found.address, changed).find(|known| known.is_in_place())?;
        Some(Entry {
            holder: known.holder,
            address: found.address,
            changed,
            era: known.era(),
            netns: known.netns,
            location: Location::ByAddress,
        })
    }

    /// The lease with what is known of its holder.
    pub(super) fn told_of(&self, lease: Entry) -> Entry {
        let known =
            || self.of_file(lease.address, lease.changed).filter(|known| known.holder == lease.holder);
        let dead = match self.dead {
            Dead::None => false,
            Dead::All => true,
            Dead::Untouched => known().next().is_some(),
            Dead::Known => known().any(|known| known.era() == Era::EarlierBoot),
        };
        Entry {
            era: if dead { Era::EarlierBoot } else { Era::ThisBoot },
            netns: known().find_map(|known| known.netns),
            ..lease
        }
    }
}

/// Which leases have a holder that is provably dead.
#[derive(Default)]
pub(super) enum Dead {
    #[default]
    None,
    /// All: nobody has touched the directory since an earlier boot.
    All,
    /// Those that the index knows, and whose files are untouched.
    Untouched,
    /// Of these, those that the index says are dead.
    Known,
}

/// A lease as it was, in few bytes: there may be very many.
#[derive(Debug, Clone, Copy)]
struct Known {
    /// [`fingerprint`] of the file, but for the lowest bits, which are the `OF_` and `IN_` ones.
    file: u64,
    /// As in [`Entry::holder`].
    holder: u64,
    /// As in [`Entry::netns`].
    netns: Option<NetnsCookie>,
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
        Self { file, holder: entry.holder, netns: entry.netns }
    }

    fn era(self) -> Era {
        if self.file & Self::OF_EARLIER_BOOT == 0 { Era::ThisBoot } else { Era::EarlierBoot }
    }

    fn is_in_place(self) -> bool {
        self.file & Self::IN_PLACE != 0
    }
}

/// When the kernel started, by today's clock. That clock may be wrong: never rely on this alone.
fn boot_started() -> Option<SystemTime> {
    let text = std::fs::read_to_string("/proc/uptime").ok()?;
    let uptime: f64 = text.split(' ').next()?.parse().ok()?;
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(uptime).ok()?)
}
