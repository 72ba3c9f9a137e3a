//! [`Index`]: a table from a key to the records that hold it, each key stored once and counted by its holders.
//!
//! A slot's number stays the same as long as the key has a holder, so that records refer to their keys by number: four
//! bytes instead of a copy.

use std::cmp::Ordering;
use std::hash::{BuildHasher as _, Hash};

use hashbrown::{DefaultHashBuilder, HashTable};
use slab::Slab;

/// Number of a record.
pub(crate) type RecordIx = u32;

/// Number of a slot of an [`Index`].
pub(super) type SlotIx = u32;

/// A key of an [`Index`], which is looked up by a borrowed form of it.
pub(super) trait Key {
    type Borrowed<'b>: Copy + Hash;

    fn is(&self, borrowed: Self::Borrowed<'_>) -> bool;
    fn borrow(&self) -> Self::Borrowed<'_>;
    fn own(borrowed: Self::Borrowed<'_>) -> Self;
}

#[derive(Debug)]
pub(super) struct Index<K> {
    slots: Slab<Slot<K>>,
    table: HashTable<SlotIx>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct Slot<K> {
    key: K,
    holders: Holders,
}

/// One record is the rule, so only more than one cost an allocation.
#[derive(Debug)]
enum Holders {
    One(RecordIx),
    Many(Box<[RecordIx]>),
}

impl Holders {
    fn as_slice(&self) -> &[RecordIx] {
        match self {
            Self::One(holder) => std::slice::from_ref(holder),
            Self::Many(holders) => holders,
        }
    }
}

impl<K: Key> Default for Index<K> {
    fn default() -> Self {
        Self { slots: Slab::new(), table: HashTable::new(), hasher: DefaultHashBuilder::default() }
    }
}

impl<K: Key> Index<K> {
    pub(super) fn find(&self, key: K::Borrowed<'_>) -> Option<SlotIx> {
        let is_key = |slot: &SlotIx| self.slots[*slot as usize].key.is(key);
        self.table.find(self.hasher.hash_one(key), is_key).copied()
    }

    pub(super) fn key(&self, slot: SlotIx) -> &K {
        &self.slots[slot as usize].key
    }

    /// The holders in the order that they were added by.
    pub(super) fn holders(&self, slot: SlotIx) -> &[RecordIx] {
        self.slots[slot as usize].holders.as_slice()
    }

    /// The holders of `key`; none when nobody holds it.
    pub(super) fn holders_of(&self, key: K::Borrowed<'_>) -> &[RecordIx] {
        self.find(key).map_or(&[], |slot| self.holders(slot))
    }

    /// Adds `holder`, which does not hold `key` yet, at its place by `order`.
    pub(super) fn add(
        &mut self,
        key: K::Borrowed<'_>,
        holder: RecordIx,
        order: impl Fn(RecordIx, RecordIx) -> Ordering,
    ) -> SlotIx {
        if let Some(found) = self.find(key) {
            let slot = &mut self.slots[found as usize];
            let mut holders = slot.holders.as_slice().to_vec();
            let place = holders.partition_point(|other| order(*other, holder).is_lt());
            holders.insert(place, holder);
            slot.holders = Holders::Many(holders.into_boxed_slice());
            return found;
        }
        let hash = self.hasher.hash_one(key);
        // More than four thousand million slots would not fit into memory.
        let added = self.slots.insert(Slot { key: K::own(key), holders: Holders::One(holder) }) as SlotIx;
        let Self { slots, table, hasher } = self;
        table.insert_unique(hash, added, |slot| hasher.hash_one(slots[*slot as usize].key.borrow()));
        added
    }

    /// Takes `holder` away; a key that nobody holds is forgotten.
    pub(super) fn remove(&mut self, slot: SlotIx, holder: RecordIx) {
        let held = &mut self.slots[slot as usize];
        let left: Vec<RecordIx> =
            held.holders.as_slice().iter().copied().filter(|other| *other != holder).collect();
        match left.as_slice() {
            [] => {
                let hash = self.hasher.hash_one(held.key.borrow());
                if let Ok(entry) = self.table.find_entry(hash, |other| *other == slot) {
                    entry.remove();
                }
                self.slots.remove(slot as usize);
            }
            [only] => held.holders = Holders::One(*only),
            _ => held.holders = Holders::Many(left.into_boxed_slice()),
        }
    }
}
