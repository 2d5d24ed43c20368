//! The memory of the index: blocks of 32 KiB, which are segments or part of a directory.
#![expect(unsafe_code, reason = "turns block numbers into references")]

use std::sync::Arc;

use super::Ring0Error;
use super::bump::Bump;
use super::prefault::Prefaulter;
use super::region::{Base, Region};
use super::segment::{SEGMENT, Segment};

/// Directory entries per block.
pub(super) const DIRECTORY_BLOCK: usize = SEGMENT / size_of::<u32>();

/// A block that holds an initialised segment. Made only by [`Blocks`], so that having one is proof (R0-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Block(u32);

/// A block of the directory's entries: the segment, and whether it overflows into others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Pointer(u32);

const CHAINED: u32 = 1 << 31;

impl Pointer {
    #[inline]
    pub(super) fn block(self) -> Block {
        Block(self.0 & !CHAINED)
    }

    /// Whether the segment has others behind it.
    #[inline]
    pub(super) fn is_chained(self) -> bool {
        self.0 & CHAINED != 0
    }

    pub(super) fn chained(self) -> Self {
        Self(self.0 | CHAINED)
    }
}

impl Block {
    pub(super) fn pointer(self) -> Pointer {
        Pointer(self.0)
    }

    /// As kept in [`Segment::next`].
    pub(super) fn number(self) -> u32 {
        self.0
    }
}

/// The blocks of one index. Used by Ring 0 alone.
#[derive(Debug)]
pub(super) struct Blocks {
    bump: Bump,
    base: Base,
    /// First free block, threaded through [`Segment::next`]; 0 for none.
    free: u32,
    /// Segments in use.
    segments: u32,
}

impl Blocks {
    pub(super) fn new(region: Arc<Region>, helper: Arc<Prefaulter>) -> Result<Self, Ring0Error> {
        let all = region.len();
        let mut bump = Bump::new(region, helper, all);
        // Block 0 means "none"; its bytes are where a segment is copied while it is split.
        bump.take(SEGMENT)?;
        Ok(Self { base: bump.base(), bump, free: 0, segments: 0 })
    }

    /// See [`Bump::grow_in_small_steps`].
    pub(super) fn grow_in_small_steps(&mut self, small: bool) {
        self.bump.grow_in_small_steps(small);
    }

    /// Segments in use.
    pub(super) fn segments(&self) -> u32 {
        self.segments
    }

    /// Bytes handed out.
    pub(super) fn used(&self) -> usize {
        self.bump.used()
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        self.bump.region()
    }

    #[inline]
    fn address(&self, block: u32) -> *mut Segment {
        self.base.at(block as usize * SEGMENT).cast()
    }

    /// The segment in a block.
    #[inline]
    pub(super) fn segment(&self, block: Block) -> &Segment {
        // SAFETY: a `Block` is an initialised, aligned segment (R0-6), changed only through `&mut self`,
        // in a region that lives as long as `self` (R0-2).
        unsafe { &*self.address(block.0) }
    }

    /// The segment in a block, to change.
    #[inline]
    pub(super) fn segment_mut(&mut self, block: Block) -> &mut Segment {
        // SAFETY: as in `segment`; exclusive because of `&mut self`.
        unsafe { &mut *self.address(block.0) }
    }

    /// The segment that belongs to nobody, and two different ones, to change.
    pub(super) fn two_segments(&mut self, a: Block, b: Block) -> (&mut Segment, [&mut Segment; 2]) {
        assert!(a != b && a.0 != 0 && b.0 != 0, "a segment cannot be borrowed twice");
        // SAFETY: as in `segment_mut`; block 0 was handed out zeroed, which is an empty segment, and no
        // `Block` is made of it.
        let none = unsafe { &mut *self.address(0) };
        // SAFETY: as in `segment_mut`; the other references are to other blocks.
        let first = unsafe { &mut *self.address(a.0) };
        // SAFETY: as above.
        let second = unsafe { &mut *self.address(b.0) };
        (none, [first, second])
    }

    /// Sees to it that `blocks` more can be taken.
    #[inline]
    pub(super) fn reserve(&mut self, blocks: usize) -> Result<(), Ring0Error> {
        self.bump.reserve(blocks * SEGMENT)
    }

    /// The segment behind another one.
    pub(super) fn next(&self, block: Block) -> Option<Block> {
        // `next` of a segment in use is only ever written with a block's number.
        Some(self.segment(block).next).filter(|next| *next != 0).map(Block)
    }

    /// An empty segment.
    pub(super) fn take(&mut self) -> Result<Block, Ring0Error> {
        let block = if self.free == 0 {
            let at = self.bump.take(SEGMENT)?;
            // A fresh block is all zeros, which is what an empty segment is made of.
            Block(Self::number(at))
        } else {
            let block = Block(self.free);
            self.free = self.segment(block).next;
            self.segment_mut(block).clear();
            block
        };
        self.segments += 1;
        Ok(block)
    }

    #[expect(clippy::cast_possible_truncation, reason = "a region has at most 2^44 bytes, so 2^29 blocks")]
    fn number(at: usize) -> u32 {
        (at / SEGMENT) as u32
    }

    /// A directory with room for `capacity` pointers, a multiple of [`DIRECTORY_BLOCK`].
    pub(super) fn directory(&mut self, capacity: usize) -> Result<Directory, Ring0Error> {
        let at = self.bump.take(capacity * size_of::<u32>())?;
        Ok(Directory { base: self.base, at, capacity })
    }

    /// Turns a directory that is no longer used into free blocks.
    pub(super) fn recycle(&mut self, directory: Directory) {
        let first = Self::number(directory.at);
        for block in first..first + Self::number(directory.capacity * size_of::<u32>()) {
            // Any bytes are a valid segment, so that this is one; it is cleared when taken.
            let next = self.free;
            self.segment_mut(Block(block)).next = next;
            self.free = block;
        }
    }
}

/// Memory for pointers, all of it zeroed or written. Belongs to the [`Blocks`] it came from and does
/// not outlive them; not `Clone`, so that there is one owner.
#[derive(Debug)]
pub(super) struct Directory {
    base: Base,
    at: usize,
    /// Pointers that fit.
    pub(super) capacity: usize,
}

impl Directory {
    /// The first `len` pointers.
    #[inline]
    pub(super) fn pointers(&self, len: usize) -> &[Pointer] {
        debug_assert!(len <= self.capacity);
        // SAFETY: committed, aligned to a block and initialised (R0-6); the owner holds the region
        // as well (R0-2), and changes go through `&mut self`.
        unsafe { std::slice::from_raw_parts(self.base.at(self.at).cast(), len) }
    }

    /// The first `len` pointers, to change.
    pub(super) fn pointers_mut(&mut self, len: usize) -> &mut [Pointer] {
        assert!(len <= self.capacity);
        // SAFETY: as in `pointers`; exclusive because of `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.base.at(self.at).cast(), len) }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::super::region::HUGE_PAGE;
    use super::*;

    /// Memory for as many blocks as there are in the smallest region.
    fn blocks() -> Blocks {
        let region = Arc::new(Region::reserve(HUGE_PAGE as u64).unwrap());
        Blocks::new(region, Prefaulter::of_process()).unwrap()
    }

    #[test]
    fn a_pointer_says_whether_its_segment_overflows() {
        let block = blocks().take().unwrap();
        let (plain, chained) = (block.pointer(), block.pointer().chained());
        assert!(!plain.is_chained() && chained.is_chained());
        assert_eq!([plain.block(), chained.block()], [block, block]);
        assert!(chained.chained().is_chained());
    }

    #[test]
    fn segments_and_their_bytes_are_counted() {
        let mut blocks = blocks();
        // The first block is for splitting.
        assert_eq!((blocks.segments(), blocks.used()), (0, SEGMENT));
        for _ in 0..3 {
            blocks.take().unwrap();
        }
        assert_eq!((blocks.segments(), blocks.used()), (3, 4 * SEGMENT));
    }

    #[test]
    fn a_directory_that_was_outgrown_becomes_empty_segments() {
        let mut blocks = blocks();
        let mut directory = blocks.directory(2 * DIRECTORY_BLOCK).unwrap();
        directory.pointers_mut(2 * DIRECTORY_BLOCK).fill(Pointer(7));
        let used = blocks.used();
        blocks.recycle(directory);
        let (first, second) = (blocks.take().unwrap(), blocks.take().unwrap());
        assert_ne!(first, second);
        assert_eq!(blocks.used(), used, "no more memory was needed");
        for block in [first, second] {
            assert_eq!((blocks.segment(block).count, blocks.next(block)), (0, None));
        }
        blocks.take().unwrap();
        assert_eq!(blocks.used(), used + SEGMENT);
    }

    /// A put that was accepted waits, and must find memory when it is its turn.
    #[test]
    fn what_is_promised_can_be_had() {
        let mut blocks = blocks();
        let left = HUGE_PAGE / SEGMENT - 1;
        assert!(matches!(blocks.reserve(left + 1), Err(Ring0Error::StateFull { .. })));
        blocks.reserve(left).unwrap();
        for _ in 0..left {
            blocks.take().unwrap();
        }
        assert!(blocks.take().is_err() && blocks.reserve(1).is_err());
    }
}
