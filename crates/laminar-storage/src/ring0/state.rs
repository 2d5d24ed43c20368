//! The half of a core that its own thread holds: what changes it. Reading is in `read.rs`,
//! filling it when it is opened in `load.rs`.
#![expect(unsafe_code, reason = "reads records through the index and retires them")]

use super::arena::{Arena, Purpose, Slot};
use super::class::Class;
use super::hash::KeyHasher;
use super::index::{Index, Lookup, Place};
use super::pending::{Pending, WAITING_MOST, Waiting};
use super::record::Kind;
use super::retire::{RetireQueue, Retired};
use super::segment::Needle;
use super::{KEY_AND_VALUE_FIT, Ring0Error};
use crate::format::{MAX_KEY_LEN, MAX_VALUE_LEN};
use crate::ids::{CoreId, Epoch};
use crate::incremental::changelog::{ChangelogProducer, StateChangelogEntry};

/// How many reclaims ahead a retired slot is fetched into the cache.
const FETCH_AHEAD: u64 = 12;
/// Bytes fetched of it, whose size is not known before: header, key and a usual value.
const FETCH_BYTES: usize = 192;
/// Released slots that are looked at, in search for one that fits, before fresh memory is used.
const RECLAIM_MOST: usize = 64;

/// The state of one core, for the thread that owns it. `Send`, not `Sync`.
#[derive(Debug)]
pub(crate) struct CoreState {
    core: CoreId,
    pub(super) hasher: KeyHasher,
    pub(super) arena: Arena,
    pub(super) index: Index,
    changelog: ChangelogProducer,
    pub(super) retired: RetireQueue,
    pub(super) pending: Pending,
}

#[inline]
pub(super) fn check(key: &[u8], value: &[u8]) -> Result<(), Ring0Error> {
    if key.len() > MAX_KEY_LEN {
        return Err(Ring0Error::KeyTooLong(key.len()));
    }
    if value.len() > MAX_VALUE_LEN {
        return Err(Ring0Error::ValueTooLong(value.len()));
    }
    Ok(())
}

/// The length as entries have it, once [`check`] has passed.
#[inline]
fn value_len(value: &[u8]) -> u32 {
    let Ok(len) = u32::try_from(value.len()) else { unreachable!("{KEY_AND_VALUE_FIT}") };
    len
}

impl CoreState {
    pub(super) fn new(
        core: CoreId,
        hasher: KeyHasher,
        arena: Arena,
        index: Index,
        changelog: ChangelogProducer,
        retired: RetireQueue,
    ) -> Self {
        Self { core, hasher, arena, index, changelog, retired, pending: Pending::new() }
    }

    /// The core this is the state of.
    pub(crate) fn core(&self) -> CoreId {
        self.core
    }

    /// Gives `key` a value. Ring 1 sees it a few puts later, or after [`Self::flush`].
    #[inline]
    pub(crate) fn try_put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Ring0Error> {
        check(key, value)?;
        let hash = self.hasher.hash(key);
        self.index.prefetch(hash);
        if self.pending.is_full() {
            self.fetch_for_midway();
            self.finish_oldest()?;
        }
        self.reserve_entry()?;
        self.index.reserve_splits(WAITING_MOST)?;
        let slot = self.allocate(Arena::class_for(key, value)?, Purpose::Value)?;
        let at = self.arena.write(slot, Kind::Put, 0, 0, key, value);
        let needle = Needle::new(hash, key);
        self.pending.add(Waiting { needle, at, value_len: value_len(value) });
        Ok(())
    }

    /// Asks for the record in which the key of a waiting put will be looked for.
    #[inline]
    fn fetch_for_midway(&self) {
        if let Some(put) = self.pending.midway().filter(|put| put.needle.is_long())
            && let Some(at) = self.index.candidate(&put.needle)
        {
            self.arena.prefetch_to_read(at);
        }
    }

    /// Passes everything put so far on to Ring 1, which otherwise happens when more is put.
    #[inline]
    pub(crate) fn flush(&mut self) -> Result<(), Ring0Error> {
        while self.pending.len() > 0 {
            self.finish_oldest()?;
        }
        Ok(())
    }

    /// Pushes the oldest waiting put to the changelog and points the index to it. Room in the ring was
    /// reserved when it was put, and so was memory for the index; should even that not be enough,
    /// the put keeps waiting, and can be read, and the operation that came now fails.
    #[inline]
    fn finish_oldest(&mut self) -> Result<(), Ring0Error> {
        let Some(Waiting { needle, at, value_len }) = self.pending.oldest() else {
            return Ok(());
        };
        let arena = &self.arena;
        // SAFETY: a waiting put is a record that this thread wrote (R0-3), and not free.
        let same = |other| unsafe { arena.record(other) }.key == unsafe { arena.record(at) }.key;
        let lookup = self.index.find_or_room(&needle, same)?;
        let entry = StateChangelogEntry::put(self.changelog.epoch(), needle.hash, at, value_len);
        match lookup {
            Lookup::Found(place, prev) => {
                // SAFETY: it was written by this thread and not pushed yet, so that nobody else knows
                // it (R0-4).
                unsafe { self.arena.set_prev(at, prev) };
                self.push(entry, Retired::record(prev));
                self.index.swing(place, &needle, at);
            }
            Lookup::Room(place) => {
                self.push(entry, Retired::NOTHING);
                self.index.insert(place, &needle, at);
            }
        }
        self.pending.finish_oldest();
        Ok(())
    }

    /// Removes `key`; `false`, and nothing goes to the changelog, when it was absent.
    pub(crate) fn try_delete(&mut self, key: &[u8]) -> Result<bool, Ring0Error> {
        check(key, &[])?;
        let hash = self.hasher.hash(key);
        self.index.prefetch(hash);
        self.flush()?;
        self.reserve_entry()?;
        let needle = Needle::new(hash, key);
        let Some((place, at)) = self.find(&needle, key) else {
            return Ok(false);
        };
        self.delete_at(place, at, &needle, key)?;
        Ok(true)
    }

    /// Gives `key` the value that `change` makes of the current one, or removes it on `None`; one
    /// hash and one search. `change` does not run when the ring is full; it has run when the value is too
    /// long or finds no room.
    #[inline]
    pub(crate) fn try_update<V: AsRef<[u8]>>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(Option<&[u8]>) -> Option<V>,
    ) -> Result<(), Ring0Error> {
        check(key, &[])?;
        let hash = self.hasher.hash(key);
        self.index.prefetch(hash);
        self.flush()?;
        self.reserve_entry()?;
        let needle = Needle::new(hash, key);
        let lookup = self.lookup(&needle, key)?;
        let old = match lookup {
            // SAFETY: the index points to it, so it is live (R0-4) and not free.
            Lookup::Found(_, at) => Some(unsafe { self.arena.record(at) }.value),
            Lookup::Room(_) => None,
        };
        match (change(old), lookup) {
            (Some(value), _) => {
                let value = value.as_ref();
                check(key, value)?;
                self.put_at(lookup, &needle, key, value)
            }
            (None, Lookup::Found(place, at)) => self.delete_at(place, at, &needle, key),
            (None, Lookup::Room(_)) => Ok(()),
        }
    }

    /// Puts all pairs, in order. On an error the pairs before the failing one are applied, and their
    /// number comes with it.
    pub(crate) fn try_put_batch<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        &mut self,
        pairs: &[(K, V)],
    ) -> Result<(), (usize, Ring0Error)> {
        for ((key, value), nth) in pairs.iter().zip(0..) {
            self.try_put(key.as_ref(), value.as_ref()).map_err(|error| (nth, error))?;
        }
        Ok(())
    }

    /// The current epoch: the one that the next change belongs to.
    pub(crate) fn epoch(&self) -> Epoch {
        Epoch(self.changelog.epoch())
    }

    /// Closes every epoch from the current one to `epoch`; the next change belongs to the one after.
    /// Changes since the last seal belong to the first of them, the others are empty. `commit` travels
    /// to Ring 1 with the seal, in order with the changes.
    pub(crate) fn seal_to(&mut self, epoch: Epoch, commit: Option<&[u8]>) -> Result<(), Ring0Error> {
        if epoch < self.epoch() {
            return Err(Ring0Error::EpochPassed { current: self.epoch() });
        }
        check(&[], commit.unwrap_or_default())?;
        self.flush()?;
        self.reserve_entry()?;
        let at = match commit {
            Some(bytes) => {
                let slot = self.allocate(Arena::class_for(&[], bytes)?, Purpose::Upkeep)?;
                self.arena.write(slot, Kind::Commit, 0, 0, &[], bytes)
            }
            None => 0,
        };
        self.push(StateChangelogEntry::seal(epoch.get(), at), Retired::record(at));
        self.changelog.set_epoch(epoch.next().get());
        Ok(())
    }

    /// The changelog's counters.
    #[cfg(test)]
    pub(crate) fn changelog(&self) -> &ChangelogProducer {
        &self.changelog
    }

    #[inline(always)]
    pub(super) fn find(&self, needle: &Needle, key: &[u8]) -> Option<(Place, u64)> {
        let arena = &self.arena;
        // SAFETY: the index only asks about records that it points to: live (R0-4) and not free.
        self.index.find(needle, |at| unsafe { arena.record(at) }.key == key)
    }

    #[inline]
    fn lookup(&mut self, needle: &Needle, key: &[u8]) -> Result<Lookup, Ring0Error> {
        let arena = &self.arena;
        // SAFETY: the index only asks about records that it points to: live (R0-4) and not free.
        self.index.find_or_room(needle, |at| unsafe { arena.record(at) }.key == key)
    }

    /// Makes sure that one more entry than those of the waiting puts can be pushed. A place in the
    /// retire queue is a place in the ring: both hold as many, and entries leave the ring first (R0-5).
    #[inline]
    pub(crate) fn reserve_entry(&mut self) -> Result<(), Ring0Error> {
        let needed = self.pending.len() + 1;
        if self.retired.is_half_full() {
            // Allocations take one back for each one that comes; this catches up.
            self.reclaim(4);
        }
        if self.retired.has_room_for(needed) {
            return Ok(());
        }
        self.reclaim(RECLAIM_MOST);
        if self.retired.has_room_for(needed) {
            return Ok(());
        }
        self.changelog.count_overflow();
        // Ring 1 makes room only for what it gets to see.
        self.flush()?;
        Err(Ring0Error::RingFull)
    }

    /// Whether records that were replaced are still to be released by Ring 1, which gets to see all of them now.
    #[cold]
    pub(crate) fn waits_for_release(&mut self) -> bool {
        self.flush().is_ok() && !self.retired.is_quiet()
    }

    /// Takes back what up to `most` released entries retired.
    pub(super) fn reclaim(&mut self, most: usize) {
        for _ in 0..most {
            let Some(retired) = self.retired.take() else {
                return;
            };
            if retired != Retired::NOTHING {
                // SAFETY: the queue gives only what Ring 1 has released (R0-5), and gives it once.
                unsafe { self.arena.free_retired(retired) };
            }
        }
    }

    /// A slot of a class: what the oldest released entry retired if that fits, which is the usual case.
    #[inline]
    fn allocate(&mut self, class: Class, purpose: Purpose) -> Result<Slot, Ring0Error> {
        if purpose == Purpose::Value && !self.arena.has_room(class) {
            self.make_room(class)?;
        }
        if let Some(retired) = self.retired.take() {
            self.arena.prefetch(self.retired.upcoming(FETCH_AHEAD).at(), FETCH_BYTES);
            if retired != Retired::NOTHING {
                // SAFETY: the queue gives only what Ring 1 has released (R0-5), and gives it once.
                if let Some(slot) = unsafe { self.arena.reuse_retired(retired, class) } {
                    return Ok(slot);
                }
            }
        }
        match self.arena.reuse(class) {
            Some(slot) => Ok(slot),
            None => self.allocate_slowly(class, purpose),
        }
    }

    /// Takes back everything that was released, for a state near its limit.
    #[cold]
    fn make_room(&mut self, class: Class) -> Result<(), Ring0Error> {
        self.reclaim(usize::MAX);
        if self.arena.has_room(class) { Ok(()) } else { Err(self.arena.full()) }
    }

    fn allocate_slowly(&mut self, class: Class, purpose: Purpose) -> Result<Slot, Ring0Error> {
        self.reclaim(RECLAIM_MOST);
        match self.arena.reuse(class) {
            Some(slot) => Ok(slot),
            None => self.arena.fresh(class, purpose),
        }
    }

    #[inline]
    fn put_at(
        &mut self,
        lookup: Lookup,
        needle: &Needle,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), Ring0Error> {
        let slot = self.allocate(Arena::class_for(key, value)?, Purpose::Value)?;
        let prev = match lookup {
            Lookup::Found(_, at) => at,
            Lookup::Room(_) => 0,
        };
        let at = self.arena.write(slot, Kind::Put, prev, 0, key, value);
        let epoch = self.changelog.epoch();
        self.push(StateChangelogEntry::put(epoch, needle.hash, at, value_len(value)), Retired::record(prev));
        match lookup {
            Lookup::Found(place, _) => self.index.swing(place, needle, at),
            Lookup::Room(place) => self.index.insert(place, needle, at),
        }
        Ok(())
    }

    fn delete_at(&mut self, place: Place, prev: u64, needle: &Needle, key: &[u8]) -> Result<(), Ring0Error> {
        let slot = self.allocate(Arena::class_for(key, &[])?, Purpose::Upkeep)?;
        let at = self.arena.write(slot, Kind::Tombstone, prev, 0, key, &[]);
        let epoch = self.changelog.epoch();
        self.push(StateChangelogEntry::delete(epoch, needle.hash, at), Retired::with_its_prev(at));
        self.index.remove(place, needle.hash);
        Ok(())
    }

    /// Pushes an entry for which `reserve_entry` has found room, which only this thread uses up.
    #[inline]
    fn push(&mut self, entry: StateChangelogEntry, retired: Retired) {
        let pushed = self.changelog.push(entry);
        assert!(pushed.is_ok(), "the ring has as many places as the retire queue, which has room");
        self.retired.push(retired);
    }
}

impl Drop for CoreState {
    fn drop(&mut self) {
        // What was put belongs to an epoch that nobody can seal any more; Ring 1 still gets to see it.
        let _ = self.flush();
    }
}
