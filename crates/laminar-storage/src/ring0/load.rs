//! Filling the state of a core when it is opened, with what checkpoint and log have of it.
//!
//! What is loaded comes from the disk in order and belongs all over the index, so that each record would wait
//! for one read from memory, and each that replaces another for two. So a record waits here, as a put does in
//! `pending.rs`, until as many more have come, and so does the one that it replaces; the reads of many
//! overlap then.
#![expect(unsafe_code, reason = "reads and frees the records that are replaced")]

use std::sync::atomic::Ordering;

use super::Ring0Error;
use super::arena::{Arena, Purpose, Slot};
use super::class::Class;
use super::index::Lookup;
use super::record::Kind;
use super::segment::Needle;
use super::state::{CoreState, check};

/// Records that wait for their place in the index, and records that wait to be freed. More than a processor
/// has reads from memory in flight gains nothing.
const WAITING_MOST: usize = 16;
/// A record with more bytes than this waits for nothing, and nothing is waiting beside it: copying it takes longer
/// than a read from memory, and what is held here must not need room that a full state does not have.
const LARGE: usize = 1024;

/// First in, first out.
#[derive(Debug)]
struct Queue<T> {
    items: [T; WAITING_MOST],
    /// Items ever added and ever taken; `added - WAITING_MOST ..= added`.
    added: usize,
    taken: usize,
}

impl<T: Copy> Queue<T> {
    fn new(nothing: T) -> Self {
        Self { items: [nothing; WAITING_MOST], added: 0, taken: 0 }
    }

    /// Adds an item; when there is no room, the oldest one has to go.
    #[inline]
    fn add(&mut self, item: T) -> Option<T> {
        let oldest = if self.added - self.taken == WAITING_MOST { self.take() } else { None };
        self.items[self.added % WAITING_MOST] = item;
        self.added += 1;
        oldest
    }

    #[inline]
    fn take(&mut self) -> Option<T> {
        let oldest = (self.taken < self.added).then(|| self.items[self.taken % WAITING_MOST]);
        self.taken += usize::from(oldest.is_some());
        oldest
    }
}

/// A record in the arena, of a put or a delete, that nobody else knows (R0-4).
///
/// Made of whole words only: to copy one with a gap, the processor would wait until everything that was written before
/// has arrived in memory.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    needle: Needle,
    at: u64,
}

/// Applies what is in the log already: nothing goes to the changelog, and a slot that is replaced is soon free
/// again. Everything is applied, in order, once [`Self::finish`] has returned.
#[derive(Debug)]
pub(crate) struct Loader<'a> {
    state: &'a mut CoreState,
    waiting: Queue<Waiting>,
    /// Records that the index does not point to any more and whose digest is not subtracted yet.
    replaced: Queue<u64>,
    /// What the digest of the state grew by: a new record's comes, a replaced one's goes.
    growth: u64,
}

impl CoreState {
    /// Begins to load. No change may be on its way to Ring 1.
    pub(crate) fn loader(&mut self) -> Result<Loader<'_>, Ring0Error> {
        self.flush()?;
        if !self.retired.is_quiet() {
            return Err(Ring0Error::NotQuiet);
        }
        self.reclaim(usize::MAX);
        self.grow_in_small_steps(true);
        let nothing = Waiting { needle: Needle::new(0, &[]), at: 0 };
        Ok(Loader { state: self, waiting: Queue::new(nothing), replaced: Queue::new(0), growth: 0 })
    }

    fn grow_in_small_steps(&mut self, small: bool) {
        self.arena.grow_in_small_steps(small);
        self.index.grow_in_small_steps(small);
    }

    /// After loading: whether what was loaded keeps within the limit. On the way there it need not, because the log
    /// leaves out versions that were replaced soon after, and a record that made room comes later than it was.
    pub(crate) fn check_limit(&self) -> Result<(), Ring0Error> {
        if self.arena.is_within_limit() { Ok(()) } else { Err(self.arena.full()) }
    }
}

impl Drop for Loader<'_> {
    fn drop(&mut self) {
        self.state.grow_in_small_steps(false);
    }
}

impl Loader<'_> {
    /// Gives `key` a value.
    #[inline]
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Ring0Error> {
        self.add(Kind::Put, key, value)
    }

    /// Removes `key`, if it is there.
    #[inline]
    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<(), Ring0Error> {
        self.add(Kind::Tombstone, key, &[])
    }

    /// How many keys there are, but for what waits.
    pub(crate) fn len(&self) -> u64 {
        self.state.index.len()
    }

    /// Applies what waits. Returns what the digest of the state grew by since loading began, by wrapping.
    pub(crate) fn finish(mut self) -> Result<u64, Ring0Error> {
        self.settle()?;
        Ok(self.growth)
    }

    /// Lets nothing wait any more.
    fn settle(&mut self) -> Result<(), Ring0Error> {
        while let Some(waiting) = self.waiting.take() {
            self.apply(waiting)?;
        }
        while let Some(old) = self.replaced.take() {
            self.free(old);
        }
        Ok(())
    }

    #[inline]
    fn add(&mut self, kind: Kind, key: &[u8], value: &[u8]) -> Result<(), Ring0Error> {
        check(key, value)?;
        if key.len() + value.len() > LARGE {
            self.settle()?;
            self.add_waiting(kind, key, value)?;
            return self.settle();
        }
        self.add_waiting(kind, key, value)
    }

    #[inline]
    fn add_waiting(&mut self, kind: Kind, key: &[u8], value: &[u8]) -> Result<(), Ring0Error> {
        let needle = Needle::new(self.state.hasher.hash(key), key);
        self.state.index.prefetch_to_fill(needle.hash);
        let slot = self.slot(Arena::class_for(key, value)?)?;
        let at = self.state.arena.write(slot, kind, 0, 0, key, value);
        match self.waiting.add(Waiting { needle, at }) {
            Some(oldest) => self.apply(oldest),
            None => Ok(()),
        }
    }

    #[inline]
    fn slot(&mut self, class: Class) -> Result<Slot, Ring0Error> {
        match self.state.arena.reuse(class) {
            Some(slot) => Ok(slot),
            None => self.state.arena.fresh(class, Purpose::Upkeep),
        }
    }

    #[inline]
    fn apply(&mut self, Waiting { needle, at }: Waiting) -> Result<(), Ring0Error> {
        let CoreState { arena, index, .. } = &mut *self.state;
        // SAFETY: a record that this thread wrote, and nobody else knows it (R0-4).
        let kind = unsafe { arena.record(at) }.header.kind;
        if kind == Kind::Put {
            // Not when it was written: its bytes would have to be waited for then.
            // SAFETY: a record that this thread wrote, and nobody else knows it (R0-4).
            let digest = unsafe { arena.digest(at) };
            self.growth = self.growth.wrapping_add(digest);
        }
        // SAFETY: the index only asks about records that it points to, which are live, and `at` is a record
        // that this thread wrote and nobody else knows (R0-4); neither is free.
        let same = |other| unsafe { arena.record(other) }.key == unsafe { arena.record(at) }.key;
        if kind == Kind::Put {
            match index.find_or_room(&needle, same)? {
                Lookup::Found(place, old) => {
                    index.swing(place, &needle, at);
                    self.replace(old);
                }
                Lookup::Room(place) => index.insert(place, &needle, at),
            }
            return Ok(());
        }
        if let Some((place, old)) = index.find(&needle, same) {
            index.remove(place, needle.hash);
            self.replace(old);
        }
        // SAFETY: nobody else ever knew it (R0-4), and nobody will.
        unsafe { self.state.arena.free(at) };
        Ok(())
    }

    /// The index does not point to the record at `old` any more.
    #[inline]
    fn replace(&mut self, old: u64) {
        self.state.arena.prefetch(old, 1);
        if let Some(oldest) = self.replaced.add(old) {
            self.free(oldest);
        }
    }

    #[inline]
    fn free(&mut self, old: u64) {
        // SAFETY: it was live when the index pointed to it (R0-4), and is not free yet.
        let gone = unsafe { self.state.arena.record(old) }.header.digest.load(Ordering::Relaxed);
        self.growth = self.growth.wrapping_sub(gone);
        // SAFETY: the index does not point to it, and this is the only place that frees what was replaced.
        // Every entry that was ever pushed is released, so that Ring 1 looks at no record, and none is pushed
        // while this borrows the state (R0-5).
        unsafe { self.state.arena.free(old) };
    }
}
