//! The half of a core that Ring 1 holds.
//!
//! Drained entries stay with the drain until [`CoreDrain::release`], and are looked at through it: that
//! is what makes reading their records safe, whatever the caller does with a copy of an entry.
#![expect(unsafe_code, reason = "reads the records that changelog entries refer to")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::prefetch;
use super::record::{self, RecordRef, index};
use super::region::Region;
use super::retire::Released;
use crate::format::digest::{StateDigest, joined_digest};
use crate::ids::Epoch;
use crate::incremental::changelog::{ChangelogConsumer, StateChangelogEntry, StateOp};
use crate::sabotage::{Sabotage, sabotaged};

/// How far ahead records, and half of that far the ones they replaced, are fetched.
const FETCH_AHEAD: usize = 16;

/// A change, as Ring 1 writes it to the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// What happened.
    pub op: StateOp,
    /// To which key.
    pub key: &'a [u8],
    /// The new value; empty for a delete.
    pub value: &'a [u8],
}

/// The end of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seal {
    /// The last epoch that is closed. Entries drained since the seal before belong to the first one
    /// that it closes.
    pub epoch: Epoch,
    /// What was given to `CoreState::seal_to`.
    pub commit: Option<Box<[u8]>>,
}

/// What one call of [`CoreDrain::drain`] came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// The entries, to be used with [`CoreDrain::record`] before the release.
    pub entries: Range<usize>,
    /// The end of their epoch, if it was reached.
    pub seal: Option<Seal>,
}

/// What [`CoreDrain::drain`] found out about a change.
#[derive(Clone, Copy, Debug)]
struct Drained {
    digest: u64,
    /// A later change of the batch replaced the record.
    superseded: bool,
}

/// The changes of one core, for Ring 1. `Send`, not `Sync`.
#[derive(Debug)]
pub(crate) struct CoreDrain {
    changelog: ChangelogConsumer,
    /// Keeps the records alive when the state is dropped first.
    records: Arc<Region>,
    released: Arc<Released>,
    /// Popped entries: `..first` released, `first..done` handed out, `done..` not looked at yet.
    held: Vec<StateChangelogEntry>,
    /// Of the batch that was handed out last.
    drained: Vec<Drained>,
    /// Where that batch begins.
    batch: usize,
    first: usize,
    done: usize,
    /// Entries handed out since the beginning, seals included.
    processed: u64,
    digest: StateDigest,
}

impl CoreDrain {
    pub(super) fn new(records: Arc<Region>, changelog: ChangelogConsumer, released: Arc<Released>) -> Self {
        let digest = StateDigest::default();
        let (held, drained) = (Vec::new(), Vec::new());
        Self {
            changelog,
            records,
            released,
            held,
            drained,
            batch: 0,
            first: 0,
            done: 0,
            processed: 0,
            digest,
        }
    }

    /// Takes up to `max` changes, all of one epoch, and the end of that epoch if it comes next. Once their keys and values
    /// have `bytes` or more, it takes no further ones. The digest includes them when this returns.
    pub(crate) fn drain(&mut self, max: usize, bytes: usize) -> Batch {
        if self.done == self.held.len() {
            self.changelog.drain_into(&mut self.held, max.max(1));
        }
        let start = self.done;
        let end = self.held.len().min(start.saturating_add(max));
        let seal_at = (start..self.held.len()).take(max.max(1)).find(|i| self.held[*i].is_seal());
        let last = self.digest_range(start..seal_at.unwrap_or(end), bytes);
        let seal = seal_at.filter(|at| *at == last).map(|at| self.read_seal(at));
        self.done = last + usize::from(seal.is_some());
        self.processed += (self.done - start) as u64;
        Batch { entries: start..last, seal }
    }

    /// An entry of a batch that is not released yet.
    pub(crate) fn entry(&self, index: usize) -> Option<&StateChangelogEntry> {
        self.held[..self.done].get(index).filter(|_| index >= self.first)
    }

    /// Whether a later change of the batch that was handed out last replaced or deleted the value of this one of it. (A value
    /// that comes after a delete does not know of it: both count.) To leave it out is legal because a batch lies within one
    /// epoch, and recovery lands on ends of epochs only.
    pub(crate) fn is_superseded(&self, index: usize) -> bool {
        let drained = index.checked_sub(self.batch).and_then(|nth| self.drained.get(nth));
        drained.is_some_and(|drained| drained.superseded)
    }

    /// The record of an entry of a batch that is not released yet.
    pub(crate) fn record(&self, index: usize) -> Option<Record<'_>> {
        let entry = self.entry(index).filter(|entry| !entry.is_seal())?;
        let record = self.read(entry);
        Some(Record { op: entry.op(), key: record.key, value: record.value })
    }

    /// Asks for the record of an entry that [`Self::record`] will be called for soon.
    pub(crate) fn fetch(&self, index: usize) {
        if let Some(entry) = self.held.get(index) {
            prefetch::range(self.records.base().at(record::index(entry.mmap_offset)), 192);
        }
    }

    /// Nothing drained so far will be looked at again: Ring 0 may use the slots.
    pub(crate) fn release(&mut self) {
        self.first = self.done;
        self.released.publish(self.processed);
        self.drained.clear();
        if self.first == self.held.len() {
            self.held.clear();
        } else if self.first > self.held.len() / 2 {
            self.held.drain(..self.first);
        } else {
            return;
        }
        self.first = 0;
        self.done = 0;
    }

    /// The digest of the state after everything drained so far.
    pub(crate) fn digest(&self) -> StateDigest {
        self.digest
    }

    /// Sets the digest that draining continues from: that of the loaded state.
    pub(crate) fn set_digest(&mut self, digest: StateDigest) {
        self.digest = digest;
    }

    /// How many entries, seals included, wait to be drained; may grow at any time.
    pub(crate) fn pending(&self) -> usize {
        self.held.len() - self.done + self.changelog.len()
    }

    /// How many entries the ring has room for.
    pub(crate) fn capacity(&self) -> usize {
        self.changelog.capacity()
    }

    /// Whether nothing waits to be drained.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending() == 0
    }

    /// Whether the state is gone. What it pushed before can still be drained.
    #[cfg(test)]
    pub(crate) fn producer_gone(&self) -> bool {
        self.changelog.producer_gone()
    }

    /// The record of a popped, unreleased entry.
    fn read(&self, entry: &StateChangelogEntry) -> RecordRef<'_> {
        // SAFETY: callers pass entries of `held[first..]`, which Ring 0 pushed after it wrote the
        // record (R0-7) and has not been told to reuse (R0-5); releasing needs `&mut self`, and
        // `self.records` keeps the region (R0-2).
        unsafe { record::read(self.records.base(), entry.mmap_offset) }
    }

    fn read_seal(&self, at: usize) -> Seal {
        let entry = self.held[at];
        let commit = (entry.mmap_offset != 0).then(|| self.read(&entry).value.into());
        Seal { epoch: Epoch(entry.epoch), commit }
    }

    /// Adds changes to the digest, in order: the new record comes, the replaced one goes. Notes which records of the batch
    /// are replaced within it, which the chain of replaced records tells without a search for keys: meanwhile each of them has
    /// its place in the batch where its digest belongs. Returns where it ended: there, or where it had seen so many bytes.
    fn digest_range(&mut self, range: Range<usize>, bytes: usize) -> usize {
        let mut sum = self.digest;
        self.batch = range.start;
        self.drained.clear();
        let mut left = bytes;
        let mut last = range.start;
        for i in range.clone() {
            if left == 0 {
                break;
            }
            self.fetch_ahead(i, range.end);
            let entry = self.held[i];
            let new = self.read(&entry);
            let new_len = new.both.len();
            let digest = if entry.is_put() { joined_digest(new.both, new.key.len()) } else { 0 };
            let prev = new.header.prev;
            new.header.digest.store((i - range.start) as u64, Ordering::Relaxed);
            let (old, superseded) = self.replaced(prev);
            sum.digest = sum.digest.wrapping_sub(old).wrapping_add(digest);
            sum.live_keys =
                sum.live_keys.wrapping_sub(u64::from(prev != 0)).wrapping_add(u64::from(entry.is_put()));
            let first_wins = sabotaged(Sabotage::FirstVersionWins);
            if let Some(earlier) = superseded.filter(|_| !first_wins) {
                self.drained[earlier].superseded = true;
            }
            self.drained.push(Drained { digest, superseded: first_wins && superseded.is_some() });
            left = left.saturating_sub(new_len.max(1));
            last = i + 1;
        }
        for (drained, i) in self.drained.iter().zip(range) {
            self.read(&self.held[i]).header.digest.store(drained.digest, Ordering::Relaxed);
        }
        self.digest = sum;
        last
    }

    /// The digest of the record that a popped, unreleased entry replaced, and its place if it is in the batch that is being
    /// drained.
    fn replaced(&self, prev: u64) -> (u64, Option<usize>) {
        if prev == 0 {
            return (0, None);
        }
        // SAFETY: the entry that replaced it is not released, so that it is not reused (R0-5), and it
        // was written before that entry was pushed (R0-7); `self.records` keeps the region (R0-2).
        let kept = unsafe { record::header(self.records.base(), prev) }.digest.load(Ordering::Relaxed);
        // A digest may be any number: only the record that stands at that place of the batch is in it.
        let place = usize::try_from(kept).ok().filter(|place| *place < self.drained.len());
        match place.filter(|place| self.held[self.batch + place].mmap_offset == prev) {
            Some(place) => (self.drained[place].digest, Some(place)),
            None => (kept, None),
        }
    }

    fn fetch_ahead(&self, i: usize, end: usize) {
        if i + FETCH_AHEAD < end {
            let at = self.held[i + FETCH_AHEAD].mmap_offset;
            prefetch::range(self.records.base().at(index(at)), 192);
        }
        let near = i + FETCH_AHEAD / 2;
        if near < end {
            let prev = self.read(&self.held[near]).header.prev;
            prefetch::line(self.records.base().at(index(prev)));
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::super::tests::{settle, small};
    use super::*;

    /// While a batch is digested its records have their places where digests belong, and a digest may be any number.
    #[test]
    fn a_digest_that_looks_like_a_place_in_the_batch_is_a_digest() {
        let (mut state, mut drain) = small(64);
        state.try_put(b"a", b"1").unwrap();
        settle(&mut state, &mut drain);
        let at = state.index.offsets().next().unwrap();
        // SAFETY: the record of "a" is live (R0-4).
        let header = unsafe { state.arena.record(at) }.header;
        header.digest.store(0, Ordering::Relaxed);
        drain.set_digest(StateDigest { digest: 0, live_keys: 1 });
        state.try_put(b"b", b"2").unwrap();
        state.try_put(b"a", b"3").unwrap();
        state.flush().unwrap();
        let batch = drain.drain(100, usize::MAX);
        assert!(batch.entries.len() == 2 && !batch.entries.clone().any(|i| drain.is_superseded(i)));
        assert_eq!(drain.digest(), state.digest());
    }
}
