//! What the tables of the index are made of: entries and bitmaps, in blocks that carry a checksum. Pure: it opens nothing.

use std::{array, io};

use cni_types::NetnsCookie;

use crate::span::{Point, Span};
use crate::store::Era;
use crate::store::hash::mix;
use crate::store::stamp::Changed;

pub(super) const BLOCK: usize = 512;
pub(super) type Block = [u8; BLOCK];

/// Checksum, number of slots, overflow mark, padding.
const BUCKET_HEAD: usize = 16;

/// The index cannot be used: it is damaged, or reading or writing it failed.
#[derive(Debug)]
pub(in crate::store) struct Broken(io::Error);

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

impl From<Broken> for io::Error {
    fn from(Broken(error): Broken) -> Self {
        error
    }
}

pub(super) fn damaged() -> Broken {
    Broken(io::Error::new(io::ErrorKind::InvalidData, "the index is damaged"))
}

/// How the file of a lease is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Location {
    /// It is in the network's directory, and its name is the address as we write it.
    ByAddress,
    /// It has another name or is further down; a walk through the directory finds it.
    Elsewhere,
}

/// One lease file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) struct Entry {
    /// [`hash`](crate::store::hash::hash) of the file's content, without space around it.
    pub(in crate::store) holder: u64,
    /// What the file's name means, if it is an address.
    pub(in crate::store) address: Option<Point>,
    pub(in crate::store) changed: Changed,
    pub(in crate::store) era: Era,
    /// The holder's namespace, if it was seen when the lease was made.
    pub(in crate::store) netns: Option<NetnsCookie>,
    pub(in crate::store) location: Location,
}

/// Which of a row of addresses are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The addresses' common leading bits.
    pub(super) number: u128,
    pub(super) taken: [u64; Self::WORDS],
}

impl Chunk {
    pub(super) const WORDS: usize = 8;
    /// Low bits of an address: which one of the chunk it is.
    const BITS: u32 = 9;

    pub(super) fn number_of(point: Point) -> u128 {
        point.bits() >> Self::BITS
    }

    pub(super) fn key_of(number: u128) -> u64 {
        mix(number as u64 ^ mix((number >> 64) as u64))
    }

    /// Word and bit of `point`.
    pub(super) fn place_of(point: Point) -> (usize, u64) {
        let low = (point.bits() & ((1 << Self::BITS) - 1)) as usize;
        (low / 64, 1 << (low % 64))
    }

    /// The lowest free address of `span`, as far as it is in this chunk.
    pub(super) fn first_free(&self, span: Span) -> Option<Point> {
        let base = self.number << Self::BITS;
        let from = span.first().bits().max(base);
        let to = span.last().bits().min(base | ((1 << Self::BITS) - 1));
        (0..Self::WORDS).find_map(|word| {
            let start = base + (word as u128) * 64;
            if to < start || from > start + 63 {
                return None;
            }
            let skipped = from.saturating_sub(start) as u32;
            let free = !self.taken[word] & (u64::MAX << skipped);
            let point = start + u128::from(free.trailing_zeros());
            (free != 0 && point <= to).then_some(Point::from_bits(point))
        })
    }
}

/// What a table is made of.
pub(super) trait Slot: Copy {
    const SIZE: usize;
    const PER_BLOCK: usize = (BLOCK - BUCKET_HEAD) / Self::SIZE;
    fn key(&self) -> u64;
    fn encode(&self, bytes: &mut [u8]);
    fn decode(bytes: &[u8]) -> Self;
}

/// The `N` bytes of a field that starts at `at`.
pub(super) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    array::from_fn(|index| bytes[at + index])
}

impl Slot for Entry {
    const SIZE: usize = 48;

    fn key(&self) -> u64 {
        self.holder
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..8].copy_from_slice(&self.holder.to_le_bytes());
        // `::` is never leased.
        bytes[8..24].copy_from_slice(&self.address.map_or(0, Point::bits).to_le_bytes());
        bytes[24..32].copy_from_slice(&self.changed.at.to_le_bytes());
        bytes[32] = u8::from(self.era == Era::EarlierBoot);
        bytes[33] = u8::from(self.location == Location::Elsewhere);
        bytes[34..40].copy_from_slice(&self.changed.inode.to_le_bytes()[..6]);
        bytes[40..48].copy_from_slice(&self.netns.map_or(0, NetnsCookie::number).to_le_bytes());
    }

    fn decode(bytes: &[u8]) -> Self {
        let address = u128::from_le_bytes(field(bytes, 8));
        Self {
            holder: u64::from_le_bytes(field(bytes, 0)),
            address: (address != 0).then_some(Point::from_bits(address)),
            changed: Changed {
                at: i64::from_le_bytes(field(bytes, 24)),
                inode: u64::from_le_bytes(field(bytes, 32)) >> 16,
            },
            era: if bytes[32] == 0 { Era::ThisBoot } else { Era::EarlierBoot },
            netns: NetnsCookie::from_number(u64::from_le_bytes(field(bytes, 40))),
            location: if bytes[33] == 0 { Location::ByAddress } else { Location::Elsewhere },
        }
    }
}

impl Slot for Chunk {
    const SIZE: usize = 80;

    fn key(&self) -> u64 {
        Self::key_of(self.number)
    }

    fn encode(&self, bytes: &mut [u8]) {
        bytes[..16].copy_from_slice(&self.number.to_le_bytes());
        for (word, bytes) in self.taken.iter().zip(bytes[16..].chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Self {
        Self {
            number: u128::from_le_bytes(field(bytes, 0)),
            taken: array::from_fn(|word| u64::from_le_bytes(field(bytes, 16 + word * 8))),
        }
    }
}

/// The slots of one block.
pub(super) struct Bucket<S> {
    pub(super) slots: Vec<S>,
    /// A slot that belongs here had to go to a later block.
    pub(super) overflowed: bool,
}

impl<S: Slot> Bucket<S> {
    pub(super) fn decode(block: &Block) -> Result<Self, Broken> {
        let count = usize::from(block[8]);
        if count > S::PER_BLOCK {
            return Err(damaged());
        }
        let slots = block[BUCKET_HEAD..].chunks_exact(S::SIZE).take(count).map(S::decode).collect();
        Ok(Self { slots, overflowed: block[9] != 0 })
    }

    pub(super) fn encode(&self) -> Block {
        let mut block = [0; BLOCK];
        block[8] = self.slots.len() as u8;
        block[9] = u8::from(self.overflowed);
        for (slot, bytes) in self.slots.iter().zip(block[BUCKET_HEAD..].chunks_exact_mut(S::SIZE)) {
            slot.encode(bytes);
        }
        block
    }
}

/// A row of blocks that is a hash table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) first: usize,
    pub(super) blocks: usize,
}

impl Table {
    /// The blocks that a slot with `key` may be in, in the order to look.
    pub(super) fn probe(self, key: u64) -> impl Iterator<Item = usize> {
        let start = (key % self.blocks as u64) as usize;
        (0..self.blocks).map(move |step| self.first + (start + step) % self.blocks)
    }

    pub(super) fn all(self) -> std::ops::Range<usize> {
        self.first..self.first + self.blocks
    }
}

/// Of everything in `block` but the checksum itself, of its place, and of the index that it belongs to.
pub(super) fn checksum(block: &Block, number: usize, generation: u64) -> u64 {
    let seed = mix(generation ^ (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let (words, _) = block[8..].as_chunks::<8>();
    mix(words.iter().fold(seed, |sum, word| {
        (sum.rotate_left(5) ^ u64::from_le_bytes(*word)).wrapping_mul(0x517c_c1b7_2722_0a95)
    }))
}
