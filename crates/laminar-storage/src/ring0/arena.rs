//! Where the records are: slots of size classes, bumped from a region and reused through one free
//! list per class.
//!
//! A free list is threaded through the free slots themselves, so that it needs no memory and never
//! grows by copying. Taking a slot fetches the one after it into the cache for the next caller.
#![expect(unsafe_code, reason = "owns the free slots and writes records into them")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Ring0Error;
use super::bump::Bump;
use super::class::{CLASSES, Class, UNIT};
use super::prefault::Prefaulter;
use super::record::{self, HEADER_LEN, Header, Kind, RecordRef, index};
use super::region::{Base, Region};
use super::{KEY_AND_VALUE_FIT, prefetch};
use crate::format::digest::joined_digest;

/// Addresses behind the limit of a state, for what a full one needs to go on: tombstones, and the commit of an
/// epoch, of which the longest fits. A multiple of a huge page.
pub(super) const BEYOND_LIMIT: usize = if cfg!(miri) { 2 << 20 } else { 20 << 20 };

/// Bytes of a record that are asked for before it is read: most are no longer.
const RECORD_FETCHED: usize = 192;

/// What a slot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A value that somebody puts: the limit of the state holds.
    Value,
    /// What closes an epoch or makes room, and what was in the state already: the limit does not count.
    Upkeep,
}

/// A slot that belongs to whoever holds this (R0-4).
#[derive(Debug)]
pub(super) struct Slot {
    at: u64,
    class: Class,
}

/// The records of one core, as Ring 0 sees them.
#[derive(Debug)]
pub(super) struct Arena {
    bump: Bump,
    base: Base,
    /// Offset of the first free slot of each class, 0 for none.
    free: [u64; CLASSES],
    /// Bytes in free slots.
    free_bytes: usize,
    /// Bytes that values may take. At least [`BEYOND_LIMIT`] more can be had.
    limit: usize,
}

impl Arena {
    pub(super) fn new(region: Arc<Region>, limit: u64, helper: Arc<Prefaulter>) -> Result<Self, Ring0Error> {
        // The system may have given less than was asked for.
        let most = region.len().saturating_sub(BEYOND_LIMIT);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(most);
        let mut bump = Bump::new(region, helper, limit);
        // Offset 0 means "none", so nothing may live there.
        bump.take(UNIT * 4)?;
        Ok(Self { base: bump.base(), bump, free: [0; CLASSES], free_bytes: 0, limit })
    }

    pub(super) fn region(&self) -> &Arc<Region> {
        self.bump.region()
    }

    /// See [`Bump::grow_in_small_steps`].
    pub(super) fn grow_in_small_steps(&mut self, small: bool) {
        self.bump.grow_in_small_steps(small);
    }

    /// Bytes in slots that hold something: records, and what waits for the drain.
    pub(super) fn live_bytes(&self) -> usize {
        self.bump.used() - self.free_bytes
    }

    pub(super) fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    /// Whether a slot of the class keeps within the limit.
    #[inline]
    pub(super) fn has_room(&self, class: Class) -> bool {
        self.live_bytes() + class.size() <= self.limit
    }

    /// Whether everything that is held keeps within the limit.
    pub(super) fn is_within_limit(&self) -> bool {
        self.live_bytes() <= self.limit
    }

    /// What to say when it does not.
    pub(super) fn full(&self) -> Ring0Error {
        Ring0Error::StateFull { limit_bytes: self.limit as u64 }
    }

    /// The class for a record, once its lengths have been checked.
    #[inline]
    pub(super) fn class_for(key: &[u8], value: &[u8]) -> Result<Class, Ring0Error> {
        Class::for_size(HEADER_LEN + key.len() + value.len()).ok_or(Ring0Error::ValueTooLong(value.len()))
    }

    /// A slot that was used before.
    #[inline]
    pub(super) fn reuse(&mut self, class: Class) -> Option<Slot> {
        let at = self.free[class.index()];
        if at == 0 {
            return None;
        }
        // SAFETY: slots in a free list have been used (R0-3) and are Ring 0's alone (R0-4).
        let next = unsafe { record::header(self.base, at) }.prev;
        self.free[class.index()] = next;
        self.free_bytes -= class.size();
        if next != 0 {
            prefetch::range_to_write(self.base.at(index(next)), class.size());
        }
        Some(Slot { at, class })
    }

    /// A slot that nobody used yet, or, rather than growing past what the state needs, a free one of
    /// a larger class.
    pub(super) fn fresh(&mut self, class: Class, purpose: Purpose) -> Result<Slot, Ring0Error> {
        let size = class.size();
        if purpose == Purpose::Value && self.bump.used() + size > self.limit {
            return self.split_larger(class).ok_or(self.full());
        }
        let much_is_free = self.free_bytes > self.bump.used() / 8;
        if much_is_free
            && !self.bump.has_plenty(size)
            && let Some(slot) = self.split_larger(class)
        {
            return Ok(slot);
        }
        match self.bump.take(size) {
            Ok(at) => Ok(Slot { at: at as u64, class }),
            Err(Ring0Error::StateFull { .. }) => self.split_larger(class).ok_or(self.full()),
            Err(error) => self.split_larger(class).ok_or(error),
        }
    }

    /// Cuts a slot out of a larger free one; what remains is a free slot again.
    fn split_larger(&mut self, class: Class) -> Option<Slot> {
        let larger = class.larger().find(|larger| self.free[larger.index()] != 0)?;
        let Slot { at, .. } = self.reuse(larger)?;
        let mut rest = at + class.size() as u64;
        let end = at + larger.size() as u64;
        while rest < end {
            // The largest class that fits exactly into what is left, from the sizes there are.
            let left = index(end - rest);
            let fits = Class::for_size(left + 1).map_or(class, |above| above.smaller());
            let header = Header {
                value_len: 0,
                key_len: 0,
                class: fits,
                kind: Kind::Free,
                prev: 0,
                digest: AtomicU64::new(0),
            };
            if fits.size() < HEADER_LEN.next_multiple_of(UNIT) {
                // Too small for a header: lost until the store is opened again.
                break;
            }
            // SAFETY: part of a slot that was Ring 0's alone (R0-4), large enough for a header.
            unsafe { record::write(self.base, rest, header, &[], &[]) };
            // SAFETY: just written, and nobody else knows it.
            unsafe { self.free(rest) };
            rest += fits.size() as u64;
        }
        Some(Slot { at, class })
    }

    /// Fills a slot and says where it is. Nobody else knows the record until Ring 0 publishes it.
    #[inline]
    pub(super) fn write(
        &mut self,
        slot: Slot,
        kind: Kind,
        prev: u64,
        digest: u64,
        key: &[u8],
        value: &[u8],
    ) -> u64 {
        let (key_len, value_len) = (u16::try_from(key.len()), u32::try_from(value.len()));
        let (Ok(key_len), Ok(value_len)) = (key_len, value_len) else { unreachable!("{KEY_AND_VALUE_FIT}") };
        assert!(HEADER_LEN + key.len() + value.len() <= slot.class.size(), "{KEY_AND_VALUE_FIT}");
        let header =
            Header { value_len, key_len, class: slot.class, kind, prev, digest: AtomicU64::new(digest) };
        // SAFETY: the slot is the caller's alone (R0-4), lies in committed memory, is aligned to 16
        // bytes, and has room for all three by the check above.
        unsafe { record::write(self.base, slot.at, header, key, value) };
        slot.at
    }

    /// Says which record the one at `at` replaces.
    ///
    /// # Safety
    /// `at` is a record that Ring 0 has written and not published (R0-4).
    #[inline]
    pub(super) unsafe fn set_prev(&mut self, at: u64, prev: u64) {
        // SAFETY: used, and known to nobody else, by the caller's promise.
        unsafe { record::header_mut(self.base, at) }.prev = prev;
    }

    /// The record at `at`.
    ///
    /// # Safety
    /// `at` is a record that is not free (R0-3).
    #[inline]
    pub(super) unsafe fn record(&self, at: u64) -> RecordRef<'_> {
        // SAFETY: the caller's promise; only `&mut self` frees or writes slots, and the region
        // lives as long as `self` (R0-2).
        unsafe { record::read(self.base, at) }
    }

    /// Computes the digest of the record at `at`, and keeps it with the record.
    ///
    /// # Safety
    /// `at` is a record that Ring 0 has written and not published (R0-4).
    #[inline]
    pub(super) unsafe fn digest(&mut self, at: u64) -> u64 {
        // SAFETY: a record by the caller's promise, and known to nobody else.
        let record = unsafe { self.record(at) };
        let digest = joined_digest(record.both, record.key.len());
        record.header.digest.store(digest, Ordering::Relaxed);
        digest
    }

    /// Makes a slot available again.
    ///
    /// # Safety
    /// 1. `at` is a slot that has been used and is not free (R0-3).
    /// 2. Neither the index nor Ring 1 will ever look at it again (R0-5).
    #[inline]
    pub(super) unsafe fn free(&mut self, at: u64) {
        // SAFETY: used by (1); by (2) and `&mut self` nobody else reads it.
        let header = unsafe { record::header_mut(self.base, at) };
        let class = header.class;
        header.kind = Kind::Free;
        header.prev = self.free[class.index()];
        self.free[class.index()] = at;
        self.free_bytes += class.size();
    }

    /// Makes what a drained changelog entry retired available again.
    ///
    /// # Safety
    /// `retired` came from the retirement queue, after its release (R0-5).
    #[inline]
    pub(super) unsafe fn free_retired(&mut self, retired: super::retire::Retired) {
        if retired.with_prev() {
            // SAFETY: a tombstone that was published and released; it has been used (R0-3).
            let prev = unsafe { record::header(self.base, retired.at()) }.prev;
            if prev != 0 {
                // SAFETY: it was retired together with its tombstone (R0-5).
                unsafe { self.free(prev) };
            }
        }
        // SAFETY: the caller's promise (R0-5).
        unsafe { self.free(retired.at()) };
    }

    /// Hands on what a drained changelog entry retired when it is one slot of the class; makes it
    /// available again otherwise.
    ///
    /// # Safety
    /// As [`Self::free_retired`].
    #[inline]
    pub(super) unsafe fn reuse_retired(
        &mut self,
        retired: super::retire::Retired,
        class: Class,
    ) -> Option<Slot> {
        if !retired.with_prev() {
            // SAFETY: a record that was published and released; it has been used (R0-3).
            let header = unsafe { record::header(self.base, retired.at()) };
            if header.class == class {
                return Some(Slot { at: retired.at(), class });
            }
        }
        // SAFETY: the caller's promise is the same.
        unsafe { self.free_retired(retired) };
        None
    }

    /// Fetches a slot that will be used soon.
    #[inline]
    pub(super) fn prefetch(&self, at: u64, bytes: usize) {
        prefetch::range_to_write(self.base.at(index(at)), bytes);
    }

    /// The value of a record is read next. Where it begins only the record's header says, which is a read from memory itself;
    /// the length of the key that it was found by says so at once.
    #[inline]
    pub(super) fn prefetch_value(&self, at: u64, key_len: usize) {
        prefetch::line(self.base.at(index(at) + HEADER_LEN + key_len));
    }

    /// A record is read soon.
    #[inline]
    pub(super) fn prefetch_to_read(&self, at: u64) {
        prefetch::range(self.base.at(index(at)), RECORD_FETCHED);
    }
}
