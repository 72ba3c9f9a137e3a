//! The index: which addresses a holder has, and which addresses are taken, each found by reading a block or two of one
//! file, however many leases there are.
//!
//! It only ever repeats what the lease files say, and can be lost at any time: [`super::disk`] makes it anew from them
//! whenever it is missing, broken, from an earlier boot, or behind. It is behind exactly when the directory's
//! modification time is not the one that we gave the directory after our last change ([`Stamp`]): whoever else creates
//! or removes a file there, also between two changes of one call, gives it the current time of the kernel's clock. A
//! backup that is put back over it brings its own modification time along, and an index that goes with it; that shows in
//! the time of the directory's last change of any kind.
//!
//! The file is a row of blocks. The first is the header; then come two hash tables, one of [`Entry`]s by holder, one of
//! [`Chunk`]s, the bitmaps of taken addresses. A bucket that overflows goes on in the next block. Each block carries a
//! checksum of itself, its place and the index's generation, so that a torn, damaged or foreign block is noticed when
//! it is read. Nothing here opens a lease file.

mod slots;

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use cni_types::BootId;

use self::slots::{BLOCK, Block, Bucket, Chunk, Slot, Table, checksum, damaged, field};
use super::Era;
use super::hash::mix;
use super::stamp::Stamp;
use crate::span::{Point, Span};

pub(super) use self::slots::{Broken, Entry, Location};

const MAGIC: &[u8; 8] = b"hlipam 4";

/// Fill of a table, in slots a block on average, at which it is made anew with twice the blocks.
const ENTRIES_A_BLOCK: usize = 8;
const CHUNKS_A_BLOCK: usize = 4;
const MIN_BLOCKS: usize = 8;

/// How many blocks are read at once where all of them are.
const BLOCKS_AT_ONCE: usize = 128;

#[derive(Debug)]
enum Image {
    /// As it is on disk; each change is written at once.
    Disk(File),
    /// Made anew; on disk only once it is saved.
    Memory(Vec<Block>),
}

/// How much an index holds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Room {
    entries: usize,
    chunks: usize,
}

/// The index of one network.
#[derive(Debug)]
pub(super) struct Index {
    image: Image,
    boot: Option<BootId>,
    stamp: Option<Stamp>,
    generation: u64,
    entries: Table,
    entry_count: usize,
    /// How many of the entries are of an earlier boot.
    dead_count: usize,
    chunks: Table,
    chunk_count: usize,
}

impl Index {
    /// An index without leases, with room for as many as `like` has, and some more.
    pub(super) fn empty(boot: Option<BootId>, like: Room) -> Self {
        let blocks = |count: usize, a_block: usize| (count + count / 16).div_ceil(a_block).max(MIN_BLOCKS);
        Self::sized(boot, blocks(like.entries, ENTRIES_A_BLOCK), blocks(like.chunks, CHUNKS_A_BLOCK))
    }

    fn sized(boot: Option<BootId>, entry_blocks: usize, chunk_blocks: usize) -> Self {
        let entries = Table { first: 1, blocks: entry_blocks };
        let chunks = Table { first: 1 + entries.blocks, blocks: chunk_blocks };
        let generation = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(1, |since| mix(since.as_nanos() as u64));
        Self {
            image: Image::Memory(vec![[0; BLOCK]; chunks.all().end]),
            boot,
            stamp: None,
            generation,
            entries,
            entry_count: 0,
            dead_count: 0,
            chunks,
            chunk_count: 0,
        }
    }

    /// The index saved at `path`; `None` when there is none that can be read.
    pub(super) fn load(path: &Path) -> Option<Self> {
        let file = File::options().read(true).write(true).open(path).or_else(|_| File::open(path)).ok()?;
        let mut header = [0; BLOCK];
        file.read_exact_at(&mut header, 0).ok()?;
        if header[8..16] != *MAGIC || header[..8] != checksum(&header, 0, 0).to_le_bytes() {
            return None;
        }
        let count = |at| u32::from_le_bytes(field(&header, at)) as usize;
        let boot = field::<{ BootId::LEN }>(&header, 64);
        let entries = Table { first: 1, blocks: count(40) };
        let chunks = Table { first: 1 + entries.blocks, blocks: count(44) };
        (entries.blocks > 0 && chunks.blocks > 0).then(|| Self {
            image: Image::Disk(file),
            boot: (boot != [0; BootId::LEN]).then(|| BootId::from_bytes(boot)),
            stamp: Some(Stamp {
                seconds: i64::from_le_bytes(field(&header, 16)),
                nanoseconds: i64::from_le_bytes(field(&header, 24)),
                changed: i64::from_le_bytes(field(&header, 104)),
            }),
            generation: u64::from_le_bytes(field(&header, 32)),
            entries,
            entry_count: count(48),
            dead_count: count(56),
            chunks,
            chunk_count: count(52),
        })
    }

    /// Makes this the index at `path`, of a directory that is stamped `stamp`. `aside` is a name beside it.
    pub(super) fn save(&mut self, path: &Path, aside: &Path, stamp: Stamp) -> io::Result<()> {
        self.stamp = Some(stamp);
        let header = self.header();
        match &mut self.image {
            Image::Disk(file) => file.write_all_at(&header, 0),
            Image::Memory(blocks) => {
                for (number, block) in blocks.iter_mut().enumerate().skip(1) {
                    let sum = checksum(block, number, self.generation);
                    block[..8].copy_from_slice(&sum.to_le_bytes());
                }
                blocks[0] = header;
                let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(aside)?;
                file.write_all_at(blocks.as_flattened(), 0)
                    .and_then(|()| std::fs::rename(aside, path))
                    .inspect_err(|_| drop(std::fs::remove_file(aside)))
            }
        }
    }

    fn header(&self) -> Block {
        let mut block = [0; BLOCK];
        block[8..16].copy_from_slice(MAGIC);
        if let Some(stamp) = self.stamp {
            block[16..24].copy_from_slice(&stamp.seconds.to_le_bytes());
            block[24..32].copy_from_slice(&stamp.nanoseconds.to_le_bytes());
            block[104..112].copy_from_slice(&stamp.changed.to_le_bytes());
        }
        block[32..40].copy_from_slice(&self.generation.to_le_bytes());
        let counts =
            [self.entries.blocks, self.chunks.blocks, self.entry_count, self.chunk_count, self.dead_count];
        for (count, bytes) in counts.into_iter().zip(block[40..60].chunks_exact_mut(4)) {
            bytes.copy_from_slice(&(count as u32).to_le_bytes());
        }
        if let Some(boot) = &self.boot {
            block[64..64 + BootId::LEN].copy_from_slice(boot.bytes());
        }
        let sum = checksum(&block, 0, 0);
        block[..8].copy_from_slice(&sum.to_le_bytes());
        block
    }

    pub(super) fn boot(&self) -> Option<BootId> {
        self.boot
    }

    /// The directory's stamp when this was saved.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        self.stamp
    }

    pub(super) fn is_saved(&self) -> bool {
        matches!(self.image, Image::Disk(_))
    }

    pub(super) fn len(&self) -> usize {
        self.entry_count
    }

    /// What another one needs for the same leases.
    pub(super) fn room(&self) -> Room {
        Room { entries: self.entry_count, chunks: self.chunk_count }
    }

    /// Whether a lease of an earlier boot is left.
    pub(super) fn has_dead(&self) -> bool {
        self.dead_count > 0
    }

    /// The lease files whose content hashes to `holder`.
    pub(super) fn find(&self, holder: u64) -> Result<Vec<Entry>, Broken> {
        let mut found = Vec::new();
        for number in self.entries.probe(holder) {
            let bucket: Bucket<Entry> = self.read(number)?;
            found.extend(bucket.slots.iter().filter(|entry| entry.holder == holder));
            if !bucket.overflowed {
                break;
            }
        }
        Ok(found)
    }

    /// Every lease file.
    pub(super) fn entries(&self) -> Result<Vec<Entry>, Broken> {
        let mut entries = Vec::with_capacity(self.entry_count);
        self.each_entry(|entry| entries.push(entry))?;
        Ok(entries)
    }

    /// Shows `visit` every lease file.
    pub(super) fn each_entry(&self, mut visit: impl FnMut(Entry)) -> Result<(), Broken> {
        self.each(self.entries, |entry| {
            visit(entry);
            Ok(())
        })
    }

    /// Adds a lease file, and marks its address as taken.
    pub(super) fn insert(&mut self, entry: Entry) -> Result<(), Broken> {
        if self.entry_count >= self.entries.blocks * ENTRIES_A_BLOCK {
            self.resize(self.entries.blocks * 2, self.chunks.blocks)?;
        }
        self.put(self.entries, entry)?;
        self.entry_count += 1;
        self.dead_count += usize::from(entry.era == Era::EarlierBoot);
        match entry.address {
            Some(address) => self.mark_taken(address),
            None => Ok(()),
        }
    }

    /// Takes out the lease file of `holder` for `address`, and marks the address as free.
    pub(super) fn remove(&mut self, holder: u64, address: Point) -> Result<(), Broken> {
        for number in self.entries.probe(holder) {
            let mut bucket: Bucket<Entry> = self.read(number)?;
            let is_gone = |entry: &Entry| (entry.holder, entry.address) == (holder, Some(address));
            let gone: Vec<Entry> = bucket.slots.extract_if(.., |entry| is_gone(entry)).collect();
            if !gone.is_empty() {
                self.write(number, &bucket)?;
                let dead = gone.iter().filter(|entry| entry.era == Era::EarlierBoot).count();
                self.entry_count = self.entry_count.saturating_sub(gone.len());
                self.dead_count = self.dead_count.saturating_sub(dead);
            }
            if !bucket.overflowed {
                break;
            }
        }
        self.mark_free(address)
    }

    /// Marks `address` as taken by a file that names no holder.
    pub(super) fn mark_taken(&mut self, address: Point) -> Result<(), Broken> {
        let (word, bit) = Chunk::place_of(address);
        let known = self.change_chunk(address, |chunk| chunk.taken[word] |= bit)?;
        if known {
            return Ok(());
        }
        if self.chunk_count >= self.chunks.blocks * CHUNKS_A_BLOCK {
            self.grow_chunks()?;
        }
        let mut chunk = Chunk { number: Chunk::number_of(address), taken: [0; Chunk::WORDS] };
        chunk.taken[word] |= bit;
        self.put(self.chunks, chunk)?;
        self.chunk_count += 1;
        Ok(())
    }

    /// Marks `address` as free.
    pub(super) fn mark_free(&mut self, address: Point) -> Result<(), Broken> {
        let (word, bit) = Chunk::place_of(address);
        self.change_chunk(address, |chunk| chunk.taken[word] &= !bit).map(drop)
    }

    /// The lowest address of `span` that is not marked as taken: one block read for each run of 512 taken ones.
    pub(super) fn first_free(&self, span: Span) -> Result<Option<Point>, Broken> {
        let last = Chunk::number_of(span.last());
        let mut number = Chunk::number_of(span.first());
        while number <= last {
            let chunk = self.chunk(number)?.unwrap_or(Chunk { number, taken: [0; Chunk::WORDS] });
            if let Some(free) = chunk.first_free(span) {
                return Ok(Some(free));
            }
            number += 1;
        }
        Ok(None)
    }

    fn chunk(&self, number: u128) -> Result<Option<Chunk>, Broken> {
        for block in self.chunks.probe(Chunk::key_of(number)) {
            let bucket: Bucket<Chunk> = self.read(block)?;
            if let Some(chunk) = bucket.slots.iter().find(|chunk| chunk.number == number) {
                return Ok(Some(*chunk));
            }
            if !bucket.overflowed {
                break;
            }
        }
        Ok(None)
    }

    /// Changes the chunk of `address`, and tells whether there is one.
    fn change_chunk(&mut self, address: Point, change: impl Fn(&mut Chunk)) -> Result<bool, Broken> {
        let number = Chunk::number_of(address);
        for block in self.chunks.probe(Chunk::key_of(number)) {
            let mut bucket: Bucket<Chunk> = self.read(block)?;
            if let Some(chunk) = bucket.slots.iter_mut().find(|chunk| chunk.number == number) {
                change(chunk);
                self.write(block, &bucket)?;
                return Ok(true);
            }
            if !bucket.overflowed {
                break;
            }
        }
        Ok(false)
    }

    /// The same index with tables of so many blocks, in memory.
    fn resize(&mut self, entry_blocks: usize, chunk_blocks: usize) -> Result<(), Broken> {
        let mut grown = Self::sized(self.boot, entry_blocks, chunk_blocks);
        self.each(self.entries, |entry: Entry| grown.put(grown.entries, entry))?;
        self.each(self.chunks, |chunk: Chunk| grown.put(grown.chunks, chunk))?;
        (grown.entry_count, grown.dead_count) = (self.entry_count, self.dead_count);
        grown.chunk_count = self.chunk_count;
        *self = grown;
        Ok(())
    }

    /// Twice as many blocks for the chunks. In memory the entries, of which there are far more, stay where they are.
    fn grow_chunks(&mut self) -> Result<(), Broken> {
        let grown = Table { blocks: self.chunks.blocks * 2, ..self.chunks };
        let Image::Memory(blocks) = &mut self.image else {
            return self.resize(self.entries.blocks, grown.blocks);
        };
        let full = blocks.split_off(grown.first);
        blocks.reserve_exact(grown.blocks);
        blocks.resize(grown.all().end, [0; BLOCK]);
        self.chunks = grown;
        for block in &full {
            for chunk in Bucket::<Chunk>::decode(block)?.slots {
                self.put(grown, chunk)?;
            }
        }
        Ok(())
    }

    /// Shows `visit` every slot of `table`, a few blocks at a time.
    fn each<S: Slot>(
        &self,
        table: Table,
        mut visit: impl FnMut(S) -> Result<(), Broken>,
    ) -> Result<(), Broken> {
        match &self.image {
            Image::Memory(blocks) => {
                for block in blocks.get(table.all()).ok_or_else(damaged)? {
                    Bucket::decode(block)?.slots.into_iter().try_for_each(&mut visit)?;
                }
            }
            Image::Disk(file) => {
                let mut piece = vec![[0; BLOCK]; table.blocks.min(BLOCKS_AT_ONCE)];
                for first in table.all().step_by(piece.len()) {
                    let blocks = piece.len().min(table.all().end - first);
                    file.read_exact_at(piece[..blocks].as_flattened_mut(), (first * BLOCK) as u64)?;
                    for (place, block) in piece[..blocks].iter().enumerate() {
                        self.verified(block, first + place)?.slots.into_iter().try_for_each(&mut visit)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn put<S: Slot>(&mut self, table: Table, slot: S) -> Result<(), Broken> {
        for number in table.probe(slot.key()) {
            let mut bucket: Bucket<S> = self.read(number)?;
            if bucket.slots.len() < S::PER_BLOCK {
                bucket.slots.push(slot);
                return self.write(number, &bucket);
            }
            if !bucket.overflowed {
                bucket.overflowed = true;
                self.write(number, &bucket)?;
            }
        }
        Err(damaged())
    }

    fn read<S: Slot>(&self, number: usize) -> Result<Bucket<S>, Broken> {
        match &self.image {
            Image::Memory(blocks) => Bucket::decode(blocks.get(number).ok_or_else(damaged)?),
            Image::Disk(file) => {
                let mut block = [0; BLOCK];
                file.read_exact_at(&mut block, (number * BLOCK) as u64)?;
                self.verified(&block, number)
            }
        }
    }

    /// What block `number` on disk holds.
    fn verified<S: Slot>(&self, block: &Block, number: usize) -> Result<Bucket<S>, Broken> {
        if block[..8] != checksum(block, number, self.generation).to_le_bytes() {
            return Err(damaged());
        }
        Bucket::decode(block)
    }

    fn write<S: Slot>(&mut self, number: usize, bucket: &Bucket<S>) -> Result<(), Broken> {
        let mut block = bucket.encode();
        match &mut self.image {
            // Sums are made when it is saved.
            Image::Memory(blocks) => *blocks.get_mut(number).ok_or_else(damaged)? = block,
            Image::Disk(file) => {
                let sum = checksum(&block, number, self.generation);
                block[..8].copy_from_slice(&sum.to_le_bytes());
                file.write_all_at(&block, (number * BLOCK) as u64)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
