//! Key to arena offset, by extendible hashing: a directory over the top bits of the hash points to
//! segments of fixed size; a full one is split in two.
//!
//! ```text
//!   hash >> (64 - depth) ──▶ directory: [ 0 | 0 | 1 | 2 ]      4 bytes each, doubled when a segment
//!                                         └─┬─┘   │   │        needs a bit more than it has
//!                                       segment  segment ...   32 KiB each, split at 85 %
//! ```
//!
//! So the worst insertion costs a split, some ten microseconds, at any number of keys. Segments are
//! never merged: an index that was large keeps its memory.
//!
//! Keys whose hashes agree in more bits than there are segments to tell apart would double the
//! directory for nothing. Their segment overflows into a chain instead: slow, and correct.

use std::sync::Arc;

use super::Ring0Error;
use super::blocks::{Block, Blocks, DIRECTORY_BLOCK, Directory, Pointer};
use super::hash::KeyHasher;
use super::prefault::Prefaulter;
use super::prefetch;
use super::record::index as to_index;
use super::region::Region;
use super::segment::{At, Entry, FULL, Needle};

/// Doublings beyond what evenly spread keys need, before a segment overflows instead.
const SPARE_DEPTH: u32 = 4;

/// A place in the index, good until the index changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    block: Block,
    at: At,
}

/// What a search for a key that will be written came to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Lookup {
    /// The key's record, and the place that points to it.
    Found(Place, u64),
    /// The key is absent; this place is free for it.
    Room(Place),
}

/// The index of one core. Used by Ring 0 alone.
#[derive(Debug)]
pub(super) struct Index {
    directory: Directory,
    /// Bits of the hash that choose the pointer, `1..64`; the directory has two to this many pointers.
    depth: u32,
    blocks: Blocks,
    hasher: KeyHasher,
    /// Keys in the index.
    len: u64,
}

impl Index {
    pub(super) fn new(
        region: Arc<Region>,
        helper: Arc<Prefaulter>,
        hasher: KeyHasher,
    ) -> Result<Self, Ring0Error> {
        let mut blocks = Blocks::new(region, helper)?;
        let mut directory = blocks.directory(DIRECTORY_BLOCK)?;
        let first = blocks.take()?;
        directory.pointers_mut(2).fill(first.pointer());
        Ok(Self { directory, depth: 1, blocks, hasher, len: 0 })
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes of segments and directories.
    pub(super) fn used(&self) -> usize {
        self.blocks.used()
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        self.blocks.region()
    }

    /// See [`super::bump::Bump::grow_in_small_steps`].
    pub(super) fn grow_in_small_steps(&mut self, small: bool) {
        self.blocks.grow_in_small_steps(small);
    }

    #[inline]
    fn pointers(&self) -> usize {
        1 << self.depth
    }

    #[inline]
    fn slot_of(&self, hash: u64) -> usize {
        to_index(hash >> (64 - self.depth))
    }

    /// Fetches what a search for `hash` will read, and a change will write.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        let home = self.blocks.segment(self.pointer_of(hash).block()).home_address(hash);
        prefetch::line_to_write(home);
        prefetch::line(home.wrapping_add(64));
    }

    /// [`Self::prefetch`] for a key that is probably new: where its segment says how full it is, too. Segments begin at
    /// multiples of their size, so that few of these lines stay in the processor's caches beside each other.
    #[inline]
    pub(super) fn prefetch_to_fill(&self, hash: u64) {
        let segment = self.blocks.segment(self.pointer_of(hash).block());
        prefetch::line_to_write((&raw const *segment).cast());
        let home = segment.home_address(hash);
        prefetch::line_to_write(home);
        prefetch::line_to_write(home.wrapping_add(64));
    }

    /// Fetches the part of what a search for `hash` will read that would otherwise be asked for late.
    #[inline]
    pub(super) fn prefetch_to_read(&self, hash: u64) {
        let home = self.blocks.segment(self.pointer_of(hash).block()).home_address(hash);
        prefetch::line(home.wrapping_add(64));
    }

    #[inline]
    fn pointer_of(&self, hash: u64) -> Pointer {
        self.directory.pointers(self.pointers())[self.slot_of(hash)]
    }

    /// The record of a key.
    #[inline(always)]
    pub(super) fn find(&self, needle: &Needle, same: impl Fn(u64) -> bool) -> Option<(Place, u64)> {
        let pointer = self.pointer_of(needle.hash);
        match self.find_in(pointer.block(), needle, &same) {
            None if pointer.is_chained() => self.find_behind(pointer.block(), needle, same),
            result => result,
        }
    }

    /// A record that has the key, as far as its entry tells.
    #[inline]
    pub(super) fn candidate(&self, needle: &Needle) -> Option<u64> {
        self.find(needle, |_| true).map(|(_, at)| at)
    }

    #[inline(always)]
    fn find_in(&self, block: Block, needle: &Needle, same: impl Fn(u64) -> bool) -> Option<(Place, u64)> {
        let segment = self.blocks.segment(block);
        let at = segment.find(needle, same)?;
        Some((Place { block, at }, segment.record(at)))
    }

    #[cold]
    fn find_behind(&self, first: Block, needle: &Needle, same: impl Fn(u64) -> bool) -> Option<(Place, u64)> {
        let mut block = first;
        while let Some(next) = self.blocks.next(block) {
            block = next;
            let found = self.find_in(block, needle, &same);
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// Sees to it that inserting `keys` more keys, which are spread like hashes, will find memory.
    #[inline]
    pub(super) fn reserve_splits(&mut self, keys: usize) -> Result<(), Ring0Error> {
        self.blocks.reserve(keys + self.directory.capacity * 2 / DIRECTORY_BLOCK)
    }

    /// The record of a key, or a free place for it. Makes room first if there is none, and fails only
    /// when that needs memory that cannot be had.
    #[inline]
    pub(super) fn find_or_room(
        &mut self,
        needle: &Needle,
        same: impl Fn(u64) -> bool,
    ) -> Result<Lookup, Ring0Error> {
        let pointer = self.pointer_of(needle.hash);
        let block = pointer.block();
        if let Some((place, record)) = self.find_in(block, needle, &same) {
            return Ok(Lookup::Found(place, record));
        }
        let segment = self.blocks.segment(block);
        if segment.count < FULL && !pointer.is_chained() {
            return Ok(Lookup::Room(Place { block, at: segment.room(needle.hash) }));
        }
        self.make_room(needle, same)
    }

    /// [`Self::find_or_room`] for a key that is not in the first segment it may be in.
    #[cold]
    fn make_room(&mut self, needle: &Needle, same: impl Fn(u64) -> bool) -> Result<Lookup, Ring0Error> {
        loop {
            let pointer = self.pointer_of(needle.hash);
            let block = pointer.block();
            if pointer.is_chained() {
                return match self.find_behind(block, needle, same) {
                    Some((place, record)) => Ok(Lookup::Found(place, record)),
                    None => self.room_in_chain(block, needle.hash).map(Lookup::Room),
                };
            }
            let segment = self.blocks.segment(block);
            if segment.count < FULL {
                return Ok(Lookup::Room(Place { block, at: segment.room(needle.hash) }));
            }
            if u32::from(segment.depth) < self.depth {
                self.split(block, needle.hash)?;
            } else if self.depth < self.blocks.segments().ilog2() + SPARE_DEPTH {
                self.double()?;
            } else {
                self.chain(block, needle.hash)?;
            }
        }
    }

    /// A free place in the first segment of a chain that has one, or in a new one at its end.
    fn room_in_chain(&mut self, first: Block, hash: u64) -> Result<Place, Ring0Error> {
        let mut block = first;
        while self.blocks.segment(block).count >= FULL {
            block = match self.blocks.next(block) {
                Some(next) => next,
                None => self.append(block)?,
            };
        }
        Ok(Place { block, at: self.blocks.segment(block).room(hash) })
    }

    fn append(&mut self, last: Block) -> Result<Block, Ring0Error> {
        let new = self.blocks.take()?;
        self.blocks.segment_mut(last).next = new.number();
        Ok(new)
    }

    /// The pointers that lead to the segment of `hash`.
    fn pointers_to(&mut self, hash: u64, depth: u8) -> &mut [Pointer] {
        let len = self.pointers();
        let span = 1_usize << (self.depth - u32::from(depth));
        let first = self.slot_of(hash) / span * span;
        &mut self.directory.pointers_mut(len)[first..first + span]
    }

    /// Lets a segment overflow.
    fn chain(&mut self, block: Block, hash: u64) -> Result<(), Ring0Error> {
        self.append(block)?;
        let depth = self.blocks.segment(block).depth;
        self.pointers_to(hash, depth).fill(block.pointer().chained());
        Ok(())
    }

    /// Splits the segment of `hash` by one more bit.
    fn split(&mut self, block: Block, hash: u64) -> Result<(), Ring0Error> {
        let new = self.blocks.take()?;
        let hasher = self.hasher;
        let (scratch, [old, other]) = self.blocks.two_segments(block, new);
        scratch.copy_from(old);
        let depth = scratch.depth + 1;
        old.clear();
        scratch.split_into([old, other], depth, hasher);
        let pointers = self.pointers_to(hash, depth - 1);
        let half = pointers.len() / 2;
        pointers[half..].fill(new.pointer());
        Ok(())
    }

    /// Doubles the directory: every pointer is there twice.
    fn double(&mut self) -> Result<(), Ring0Error> {
        let len = self.pointers();
        if len * 2 > self.directory.capacity {
            let mut larger = self.blocks.directory(self.directory.capacity * 2)?;
            larger.pointers_mut(len).copy_from_slice(self.directory.pointers(len));
            self.blocks.recycle(std::mem::replace(&mut self.directory, larger));
        }
        let pointers = self.directory.pointers_mut(len * 2);
        for slot in (0..len).rev() {
            let pointer = pointers[slot];
            pointers[slot * 2] = pointer;
            pointers[slot * 2 + 1] = pointer;
        }
        self.depth += 1;
        Ok(())
    }

    /// Points an occupied place at another record of its key.
    #[inline]
    pub(super) fn swing(&mut self, place: Place, needle: &Needle, at: u64) {
        self.blocks.segment_mut(place.block).swing(place.at, needle, at);
    }

    /// Fills a free place.
    #[inline]
    pub(super) fn insert(&mut self, place: Place, needle: &Needle, at: u64) {
        self.blocks.segment_mut(place.block).insert(place.at, needle.hash, Entry::new(needle, at));
        self.len += 1;
    }

    /// Frees the place that the key with this hash occupies.
    pub(super) fn remove(&mut self, place: Place, hash: u64) {
        self.blocks.segment_mut(place.block).remove(place.at, hash);
        self.len -= 1;
    }

    /// The offsets of all records, in no particular order.
    pub(super) fn offsets(&self) -> Offsets<'_> {
        Offsets { index: self, pointer: 0, block: None, nth: 0 }
    }
}

/// Iterator over the offsets of all records.
#[derive(Debug)]
pub(super) struct Offsets<'a> {
    index: &'a Index,
    /// The next pointer to follow.
    pointer: usize,
    /// The segment being walked.
    block: Option<Block>,
    /// The next place to look at in it.
    nth: usize,
}

impl Iterator for Offsets<'_> {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        loop {
            let block = match self.block {
                Some(block) => block,
                None => {
                    let pointers = self.index.directory.pointers(self.index.pointers());
                    let block = pointers.get(self.pointer)?.block();
                    let depth = self.index.blocks.segment(block).depth;
                    self.pointer += 1 << (self.index.depth - u32::from(depth));
                    self.nth = 0;
                    block
                }
            };
            if let Some((next, record)) = self.index.blocks.segment(block).first_from(self.nth) {
                self.block = Some(block);
                self.nth = next;
                return Some(record);
            }
            self.block = self.index.blocks.next(block);
            self.nth = 0;
        }
    }
}
