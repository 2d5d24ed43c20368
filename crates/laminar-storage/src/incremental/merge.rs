//! Several sorted sources as one, and when files are worth merging.
//!
//! # When to merge
//! A core's state is a chain of files, oldest first; a key's newest record counts. Every checkpoint
//! that changes something adds a file, so files must be merged now and then. The rule: walking from
//! the newest to the oldest, a file is taken along when it is less than twice as large as everything
//! newer than it, in bytes or in records. What is left alone is therefore always at least twice as large
//! as all that is newer: the number of files is logarithmic in the size of the state, all of them
//! together are at most one and a half times the oldest, and each record is rewritten a logarithmic
//! number of times. Records count beside bytes so that many small tombstones cannot keep many large
//! dead values alive.
//!
//! Chains that are short and small are left alone: there is nothing to win.

use super::error::IncrementalCheckpointError;
use super::overlay::SortedChanges;
use super::state_file::FileCursor;
use crate::format::state_file::StateRecord;

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// When files are worth merging. The defaults suit everything but tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MergePolicy {
    /// A chain of at most this many files is left alone while it has at most `small_bytes` in all.
    pub small_files: usize,
    /// See `small_files`.
    pub small_bytes: u64,
}

impl Default for MergePolicy {
    fn default() -> Self {
        Self { small_files: 8, small_bytes: 1 << 20 }
    }
}

/// How much a file or a set of changes weighs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Bytes.
    pub bytes: u64,
    /// Records, tombstones included.
    pub records: u64,
}

impl Weight {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            records: self.records.saturating_add(other.records),
        }
    }
}

impl MergePolicy {
    /// The first file, counted from the oldest, that is to be merged with all newer ones and the new
    /// changes; the number of files when none is.
    #[must_use]
    pub fn first_to_merge(&self, chain: &[Weight], changes: Weight) -> usize {
        if changes.records == 0 {
            return chain.len();
        }
        let total = chain.iter().fold(changes, |sum, file| sum.plus(*file));
        if chain.len() < self.small_files && total.bytes <= self.small_bytes {
            return chain.len();
        }
        let mut first = chain.len();
        let mut newer = changes;
        for (at, file) in chain.iter().enumerate().rev() {
            if file.bytes < newer.bytes.saturating_mul(2) || file.records < newer.records.saturating_mul(2) {
                first = at;
            }
            newer = newer.plus(*file);
        }
        first
    }
}

/// Where records come from, in strictly growing key order.
#[derive(Debug)]
pub enum Source<'a> {
    /// A state file.
    File(FileCursor),
    /// Changes in memory.
    Memory(SortedChanges<'a>),
    /// Other sources, merged, without what they delete.
    Live(Box<Merge<'a>>),
}

impl<'a> Source<'a> {
    /// The live records of a merge.
    #[must_use]
    pub fn live(merge: Merge<'a>) -> Self {
        Self::Live(Box::new(merge))
    }

    /// Goes to the next record. Memory starts on its first record, everything else before it.
    fn advance(&mut self) -> Result<()> {
        match self {
            Self::File(cursor) => cursor.advance().map(drop),
            Self::Memory(changes) => {
                changes.advance();
                Ok(())
            }
            Self::Live(merge) => {
                merge.step()?;
                while merge.on_key().is_some_and(|record| record.value.is_none()) {
                    merge.step()?;
                }
                Ok(())
            }
        }
    }

    fn current(&mut self) -> Option<StateRecord<'_>> {
        match self {
            Self::File(cursor) => cursor.current(),
            Self::Memory(changes) => changes.current(),
            Self::Live(merge) => merge.on_key(),
        }
    }
}

/// Sorted sources as one: each key once, with its newest record.
#[derive(Debug)]
pub struct Merge<'a> {
    /// Oldest first.
    sources: Vec<Source<'a>>,
    /// Sources that stand on the key that was given out last.
    used: Vec<usize>,
}

impl<'a> Merge<'a> {
    /// Merges sources that are given oldest first.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption` of the first block of a file.
    pub fn new(mut sources: Vec<Source<'a>>) -> Result<Self> {
        for source in &mut sources {
            if !matches!(source, Source::Memory(_)) {
                source.advance()?;
            }
        }
        Ok(Self { sources, used: Vec::new() })
    }

    /// The next key's newest record, deletions included; `None` at the end.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption`.
    pub fn next_record(&mut self) -> Result<Option<StateRecord<'_>>> {
        self.step()?;
        Ok(self.on_key())
    }

    pub(super) fn step(&mut self) -> Result<()> {
        for at in self.used.drain(..) {
            if let Some(source) = self.sources.get_mut(at) {
                source.advance()?;
            }
        }
        let mut smallest: Option<&[u8]> = None;
        for (at, source) in self.sources.iter_mut().enumerate() {
            let Some(record) = source.current() else {
                continue;
            };
            match smallest.map(|key| record.key.cmp(key)) {
                Some(std::cmp::Ordering::Greater) => continue,
                Some(std::cmp::Ordering::Equal) => {}
                Some(std::cmp::Ordering::Less) | None => self.used.clear(),
            }
            smallest = Some(record.key);
            self.used.push(at);
        }
        Ok(())
    }

    /// The record the merge stands on.
    pub(super) fn on_key(&mut self) -> Option<StateRecord<'_>> {
        // Later sources are newer, and the last one pushed is the latest.
        let newest = self.used.last().copied()?;
        self.sources.get_mut(newest)?.current()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(sizes: &[u64]) -> Vec<Weight> {
        sizes.iter().map(|&n| Weight { bytes: n * 1000, records: n }).collect()
    }

    #[test]
    fn a_file_less_than_twice_everything_newer_is_merged() {
        let policy = MergePolicy { small_files: 0, small_bytes: 0 };
        let one = weights(&[1])[0];
        let first = |sizes: &[u64]| policy.first_to_merge(&weights(sizes), one);
        assert_eq!(first(&[]), 0);
        assert_eq!(first(&[2]), 1);
        assert_eq!(first(&[1]), 0);
        assert_eq!(first(&[100, 6, 2]), 3);
        assert_eq!(first(&[100, 5, 2]), 1);
        assert_eq!(first(&[17, 6, 2]), 0);
        // Many small tombstones over few large values.
        let small = Weight { bytes: 30, records: 60 };
        assert_eq!(policy.first_to_merge(&weights(&[100]), small), 0);
    }

    #[test]
    fn small_chains_and_empty_changes_are_left_alone() {
        let policy = MergePolicy::default();
        let one = weights(&[1])[0];
        assert_eq!(policy.first_to_merge(&weights(&[1; 7]), one), 7);
        assert_eq!(policy.first_to_merge(&weights(&[1; 8]), one), 0);
        assert_eq!(policy.first_to_merge(&weights(&[1; 8]), Weight::default()), 8);
    }

    /// Whatever the sizes of the changes, chains stay logarithmic and the oldest file dominates.
    #[test]
    fn chains_stay_short() {
        let policy = MergePolicy { small_files: 0, small_bytes: 0 };
        let mut chain: Vec<Weight> = Vec::new();
        for step in 0..10_000_u64 {
            let change = weights(&[1 + step * 7919 % 50])[0];
            let first = policy.first_to_merge(&chain, change);
            let merged = chain.drain(first..).fold(change, Weight::plus);
            chain.push(merged);
            assert!(chain.len() <= 14, "{chain:?}");
            let total: u64 = chain.iter().map(|file| file.bytes).sum();
            assert!(total <= chain[0].bytes * 2);
        }
    }
}
