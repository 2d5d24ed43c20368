//! A large range of addresses that is given memory in chunks, in order, and never moves.
//!
//! Reserved without access rights, so that it costs nothing but addresses. A chunk is made
//! accessible, asked to be huge pages, and filled by the kernel before anybody may use it:
//! the first touch of memory is what makes a store stall otherwise. How much is there ahead of need grows with
//! the region, because a busy machine may leave the helper that fills it waiting, or be slow to give memory.
//!
//! A small region is not unmapped at once when it is dropped: a few are kept, zeroed, for the next
//! opening, which then asks the system for nothing.
#![expect(unsafe_code, reason = "maps, commits and unmaps memory")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use super::arena::BEYOND_LIMIT;

/// Size and alignment of a huge page, and of a chunk of all but small regions, which are multiples of it. Short, because
/// whoever needs memory at once waits for the chunk that is being filled.
pub(super) const HUGE_PAGE: usize = 2 << 20;
/// Of what a region has, an eighth is there ahead of need, or a quarter up to this much. A core that does nothing but insert
/// fills it within some ten milliseconds.
const AHEAD_BY_A_QUARTER: usize = 8 << 20;
/// Never more than this.
const AHEAD_MOST: usize = 64 << 20;
/// A region of at most this many bytes is given memory in small chunks and without huge pages: whoever
/// sets the lowest limit wants many small stores, or to open one many times.
const SMALL_REGION: usize = 2 * (4 << 20) + BEYOND_LIMIT;
const SMALL_CHUNK: usize = 128 << 10;
/// As many small regions are kept for later, each with at most so many bytes committed.
const SPARES: usize = 24;
const SPARE_BYTES: usize = 2 << 20;
/// A reservation that the system refuses is halved down to this.
const SMALLEST: usize = 64 << 20;

/// Where a region begins. Dereferencing what is computed from it is what needs proof.
#[derive(Clone, Copy, Debug)]
pub(super) struct Base(NonNull<u8>);

// SAFETY: an address by itself gives no access; every dereference states which invariant of the
// module makes it exclusive or read-only.
unsafe impl Send for Base {}
// SAFETY: as above.
unsafe impl Sync for Base {}

impl Base {
    /// The address `offset` bytes in.
    #[inline]
    pub(super) fn at(self, offset: usize) -> *mut u8 {
        self.0.as_ptr().wrapping_add(offset)
    }
}

/// The reservation and how much of it has memory. Shared by Ring 0, which uses it and grows it
/// when it must, the helper that grows it ahead, and Ring 1, which reads records.
#[derive(Debug)]
pub(super) struct Region {
    base: Base,
    len: usize,
    /// What to give back to the system; there until the region is dropped.
    map: Option<Map>,
    /// Bytes from `base` that are accessible and filled: grows only, `0..=len`, written by whoever fills a chunk.
    committed: AtomicUsize,
    /// Up to where the helper should commit: grows only, written by Ring 0.
    wanted: AtomicUsize,
    /// Everything from here on is still zeros: grows only, written by whoever handed the bytes out when
    /// it goes.
    used: AtomicUsize,
    /// Whether somebody fills a chunk. It is filled without the lock, so that others can see between two chunks that theirs is there.
    filling: Mutex<bool>,
    filled: Condvar,
}

/// A small region without an owner. Its committed bytes are zeros.
#[derive(Debug)]
struct Spare {
    map: Map,
    base: Base,
    len: usize,
    committed: usize,
}

static KEPT: Mutex<Vec<Spare>> = Mutex::new(Vec::new());

impl Region {
    /// Reserves `bytes`, or less when the system refuses, and commits the first chunk.
    pub(super) fn reserve(bytes: u64) -> io::Result<Self> {
        let asked = usize::try_from(bytes).unwrap_or(usize::MAX / 4).min(1 << 45);
        let mut len = asked.max(HUGE_PAGE).next_multiple_of(HUGE_PAGE);
        if let Some(spare) = Self::spare(len) {
            return Ok(spare);
        }
        let (map, base) = loop {
            match Map::reserve(len) {
                Ok(done) => break done,
                Err(error) if len <= SMALLEST => return Err(error),
                Err(_) => len = (len / 2).next_multiple_of(HUGE_PAGE),
            }
        };
        let region = Self::of(Spare { map, base, len, committed: 0 });
        region.commit(1)?;
        Ok(region)
    }

    fn of(Spare { map, base, len, committed }: Spare) -> Self {
        Self {
            base,
            len,
            map: Some(map),
            committed: AtomicUsize::new(committed),
            wanted: AtomicUsize::new(0),
            used: AtomicUsize::new(0),
            filling: Mutex::new(false),
            filled: Condvar::new(),
        }
    }

    /// A region of this length that was kept.
    fn spare(len: usize) -> Option<Self> {
        if len > SMALL_REGION {
            return None;
        }
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        let at = kept.iter().rposition(|spare| spare.len == len)?;
        Some(Self::of(kept.swap_remove(at)))
    }

    /// Notes that the bytes before `end` may have been written.
    pub(super) fn note_used(&self, end: usize) {
        self.used.fetch_max(end, Ordering::Release);
    }

    pub(super) fn base(&self) -> Base {
        self.base
    }

    /// Bytes reserved: the most that can ever be committed.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes that may be used. What another thread committed is filled memory to whoever reads this.
    pub(super) fn committed(&self) -> usize {
        self.committed.load(Ordering::Acquire)
    }

    fn is_small(&self) -> bool {
        self.len <= SMALL_REGION
    }

    /// Bytes of a chunk: small stores stay small.
    pub(super) fn chunk(&self) -> usize {
        if self.is_small() { SMALL_CHUNK } else { HUGE_PAGE }
    }

    /// Bytes to have ahead of need once there are `committed`.
    pub(super) fn ahead(&self, committed: usize) -> usize {
        if self.is_small() {
            return SMALL_CHUNK;
        }
        (committed / 4).min(AHEAD_BY_A_QUARTER).max(committed / 8).clamp(HUGE_PAGE, AHEAD_MOST)
    }

    /// Commits chunks until at least `end` bytes, or everything reserved, can be used. What another thread fills meanwhile is
    /// waited for, and what it fills after that is not.
    pub(super) fn commit(&self, end: usize) -> io::Result<()> {
        let end = end.min(self.len);
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        while self.committed() < end {
            if *filling {
                filling = self.filled.wait(filling).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            *filling = true;
            drop(filling);
            let done = self.fill_next_chunk();
            filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
            *filling = false;
            self.filled.notify_all();
            done?;
        }
        Ok(())
    }

    /// Only for whoever set `filling`.
    fn fill_next_chunk(&self) -> io::Result<()> {
        let committed = self.committed.load(Ordering::Relaxed);
        let chunk = self.chunk().min(self.len - committed);
        let map = self.map.as_ref().ok_or(io::ErrorKind::NotFound)?;
        map.commit(self.base.at(committed), chunk)?;
        self.committed.store(committed + chunk, Ordering::Release);
        Ok(())
    }

    /// Asks the helper to commit up to `end`.
    pub(super) fn want(&self, end: usize) {
        self.wanted.fetch_max(end, Ordering::Release);
    }

    /// The helper's work: commits a chunk of what is wanted, and says whether there may be more to do. A failure is left for Ring 0
    /// to meet and report.
    pub(super) fn commit_wanted(&self) -> bool {
        let (wanted, committed) = (self.wanted.load(Ordering::Acquire).min(self.len), self.committed());
        // Where Ring 0 fills a chunk itself, it asks again for what it still wants: others need not wait for it.
        wanted > committed && !self.is_being_filled() && self.commit(committed + 1).is_ok()
    }

    fn is_being_filled(&self) -> bool {
        *self.filling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let (used, committed) = (*self.used.get_mut(), *self.committed.get_mut());
        if self.len > SMALL_REGION || committed > SPARE_BYTES || used > committed {
            return;
        }
        let Some(map) = self.map.take() else { return };
        // SAFETY: committed (R0-1), and nobody else's: this is the last owner, and whoever holds a
        // reference into the region borrows from an owner (R0-2).
        unsafe { self.base.at(0).write_bytes(0, used) };
        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < SPARES {
            kept.push(Spare { map, base: self.base, len: self.len, committed });
        }
    }
}

/// A mapping of the system's, unmapped on drop.
#[cfg(not(miri))]
#[derive(Debug)]
struct Map {
    start: Base,
    len: usize,
}

#[cfg(not(miri))]
impl Map {
    /// Reserves `len` bytes aligned to a huge page.
    fn reserve(len: usize) -> io::Result<(Self, Base)> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        let with_slack = len + HUGE_PAGE;
        // SAFETY: a new private anonymous mapping at an address of the kernel's choice touches
        // nothing that exists.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                with_slack,
                ProtFlags::empty(),
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let start =
            NonNull::new(start.cast::<u8>()).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        let map = Self { start: Base(start), len: with_slack };
        let skip = start.as_ptr().align_offset(HUGE_PAGE);
        let base =
            NonNull::new(map.start.at(skip)).ok_or_else(|| io::Error::other("mapped at address zero"))?;
        Ok((map, Base(base)))
    }

    /// Makes `len` bytes at `address` accessible and has the kernel fill them.
    #[cfg(target_os = "linux")]
    fn commit(&self, address: *mut u8, len: usize) -> io::Result<()> {
        use rustix::mm::{Advice, MprotectFlags, madvise, mprotect};
        // SAFETY: the range lies within this mapping, and nobody uses it before `committed` covers
        // it (R0-1), so that no reference sees its rights change.
        unsafe { mprotect(address.cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        if len >= HUGE_PAGE {
            // Only advice: without huge pages everything is slower and nothing is wrong.
            // SAFETY: as above; this advice changes no contents.
            let _ = unsafe { madvise(address.cast(), len, Advice::LinuxHugepage) };
        }
        // SAFETY: as above; populating changes no contents.
        match unsafe { madvise(address.cast(), len, Advice::LinuxPopulateWrite) } {
            Ok(()) => {}
            // Old kernels do not know it: touch every page instead.
            Err(rustix::io::Errno::INVAL) => Self::touch(address, len),
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Makes `len` bytes at `address` accessible and touches them.
    #[cfg(not(target_os = "linux"))]
    fn commit(&self, address: *mut u8, len: usize) -> io::Result<()> {
        use rustix::mm::{MprotectFlags, mprotect};
        // SAFETY: the range lies within this mapping, and nobody uses it before `committed` covers
        // it (R0-1), so that no reference sees its rights change.
        unsafe { mprotect(address.cast(), len, MprotectFlags::READ | MprotectFlags::WRITE) }?;
        Self::touch(address, len);
        Ok(())
    }

    fn touch(address: *mut u8, len: usize) {
        for page in (0..len).step_by(4096) {
            // SAFETY: accessible since the call before, and not yet used by anybody (R0-1).
            unsafe { address.wrapping_add(page).write_volatile(0) };
        }
    }
}

#[cfg(not(miri))]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the whole mapping and nothing else; it is dropped with the last `Arc<Region>`, and
        // whoever holds a reference into it borrows from a holder of that Arc (R0-2).
        let _ = unsafe { rustix::mm::munmap(self.start.0.as_ptr().cast(), self.len) };
    }
}

/// The same on the heap, for an interpreter that has no memory mappings.
#[cfg(miri)]
#[derive(Debug)]
struct Map {
    start: Base,
    layout: std::alloc::Layout,
}

#[cfg(miri)]
impl Map {
    fn reserve(len: usize) -> io::Result<(Self, Base)> {
        if len > SMALLEST {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        let layout = std::alloc::Layout::from_size_align(len, HUGE_PAGE).map_err(io::Error::other)?;
        // SAFETY: the size is not zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let start = Base(NonNull::new(start).ok_or(io::ErrorKind::OutOfMemory)?);
        Ok((Self { start, layout }, start))
    }

    fn commit(&self, _address: *mut u8, _len: usize) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(miri)]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: allocated in `reserve` with this layout.
        unsafe { std::alloc::dealloc(self.start.0.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn how_much_is_there_ahead_grows_with_the_region_and_not_without_end() {
        let region = Region::reserve(64 << 30).unwrap();
        let ahead = [0, 2, 16, 32, 64, 400, 10_000].map(|mib| region.ahead(mib * MIB) / MIB);
        assert_eq!(ahead, [2, 2, 4, 8, 8, 50, 64]);
    }

    #[test]
    fn a_small_region_grows_by_little() {
        // Of a length that no other test has, or it might be given one that was used.
        let region = Region::reserve((SMALL_REGION - HUGE_PAGE) as u64).unwrap();
        assert_eq!((region.ahead(MIB), region.ahead(4 * MIB)), (SMALL_CHUNK, SMALL_CHUNK));
        region.commit(MIB + 1).unwrap();
        assert_eq!(region.committed(), MIB + SMALL_CHUNK);
    }

    #[test]
    fn the_helper_is_done_when_all_that_is_wanted_is_there() {
        let region = Region::reserve((SMALL_REGION + HUGE_PAGE) as u64).unwrap();
        assert!(!region.commit_wanted());
        region.want(2 * HUGE_PAGE + 1);
        assert!(region.commit_wanted() && region.commit_wanted() && !region.commit_wanted());
        region.want(usize::MAX);
        while region.commit_wanted() {}
        assert_eq!(region.committed(), region.len());
    }

    #[test]
    fn no_more_is_committed_than_is_reserved() {
        let region = Region::reserve(3 * HUGE_PAGE as u64).unwrap();
        region.commit(usize::MAX).unwrap();
        assert_eq!(region.committed(), region.len());
    }

    /// Several threads want memory at once: each gets what it asked for, whoever filled it, and all of it is zeros that
    /// can be written.
    #[test]
    fn whoever_waits_for_memory_that_another_thread_fills_finds_it_filled() {
        let end = if cfg!(miri) { 4 * HUGE_PAGE } else { 16 * HUGE_PAGE };
        let region = Region::reserve((BEYOND_LIMIT + 4 * end) as u64).unwrap();
        std::thread::scope(|threads| {
            for part in 0..4 {
                let region = &region;
                threads.spawn(move || {
                    for page in (part..end / HUGE_PAGE).step_by(4) {
                        region.commit((page + 1) * HUGE_PAGE).unwrap();
                        assert!(region.committed() >= (page + 1) * HUGE_PAGE);
                        // SAFETY: committed just now (R0-1), and no other thread uses this page.
                        let byte = unsafe { &mut *region.base().at(page * HUGE_PAGE) };
                        assert_eq!(std::mem::replace(byte, 7), 0);
                    }
                });
            }
        });
        assert_eq!(region.committed(), end);
    }
}
