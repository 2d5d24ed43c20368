//! Several sorted sources as one, and when files are worth merging.
//!
//! # When to merge
//! A core's state is a chain of files, oldest first; a key's newest record counts. Every checkpoint
//! that changes something adds a file, so files must be merged now and then. Once there is a base (see
//! `base.rs`), its ranges are renewed a few at a time, and `DEBT`, `PAYMENT` and `MOST_DEBT` say when.
//! Before there is one, files are merged for two reasons; deltas over a base for their number only.
//!
//! *Dead records.* Walking from the newest to the oldest, a file that is less than twice as large as
//! everything newer than it, in bytes or in records, is to be merged with that. As long as the oldest file is not
//! one of them, all files together are at most one and a half times the oldest, and nothing need be done. When it
//! is, everything is merged; unless few records are known to be dead all the same. So it is with the parts of a state
//! that was written for the first time and did not fit in memory: they have few keys in common, and merging them
//! would write all of it twice.
//!
//! *Many files.* What is to be merged by the rule above, and can wait, waits until it is
//! [`MergePolicy::run`] files, large ones not counted. A checkpoint then mostly writes what changed, the number of
//! files stays logarithmic in the size of the state, and each record is rewritten a logarithmic number of times.
//!
//! Records count beside bytes so that many small tombstones cannot keep many large dead values alive.
//! Chains that are short and small are left alone: there is nothing to win.

use super::base::BaseCursor;
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
    /// Files of which a merge makes one, the new changes counted, where only their number is a reason.
    pub run: usize,
    /// A range of the base has at least about so many bytes, if there is that much.
    pub range_bytes: u64,
}

impl Default for MergePolicy {
    fn default() -> Self {
        Self { small_files: 8, small_bytes: 1 << 20, run: 8, range_bytes: 256 << 10 }
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
    /// Whether it is at least this part of `whole`, in bytes or in records.
    fn is_at_least(self, (part, of): (u64, u64), whole: Self) -> bool {
        let at_least = |this: u64, all: u64| this.saturating_mul(of) >= all.saturating_mul(part);
        at_least(self.bytes, whole.bytes) || at_least(self.records, whole.records)
    }

    fn is_less_than_twice(self, newer: Self) -> bool {
        self.bytes < newer.bytes.saturating_mul(2) || self.records < newer.records.saturating_mul(2)
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            records: self.records.saturating_add(other.records),
        }
    }
}

/// How much a range of the base weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeWeight {
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
    /// What is in it.
    pub weight: Weight,
}

/// What a checkpoint does with the files of one core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Everything is written as a new base.
    All,
    /// The changes and the deltas from `first` on become one delta, and these ranges, numbered by key, are written
    /// again. Never all there are.
    Some {
        /// The number of deltas for none of them.
        first: usize,
        /// In the order of their keys.
        ranges: Vec<usize>,
    },
}

/// Until the deltas weigh this part of the base, as a fraction, no range is written again.
const DEBT: (u64, u64) = (1, 4);

/// Ranges that weigh so many times what changed are written again while there is more. So the deltas of one round
/// through all ranges weigh half of the base.
const PAYMENT: u64 = 2;

/// More than this part of the base is too much to be paid little by little, as after one very large change.
const MOST_DEBT: (u64, u64) = (4, 5);

/// Chains without a base never have more files than this: each is a link, a line in the manifest and an open file.
const MOST_FILES: usize = 48;

/// A file of so many bytes is not worth rewriting for there being fewer files.
const LARGE: u64 = 64 << 20;

impl MergePolicy {
    /// What to do with a core's files. `changes` are those in memory, `changed` also those in deltas that no
    /// checkpoint has yet; `live` are the live keys with the changes, where known. A base is to have about `ranges`.
    #[must_use]
    pub fn plan(
        &self,
        base: &[RangeWeight],
        deltas: &[Weight],
        changes: Weight,
        changed: Weight,
        live: Option<u64>,
        ranges: usize,
    ) -> Plan {
        let some = |first, ranges| Plan::Some { first, ranges };
        if changed.records == 0 {
            return some(deltas.len(), Vec::new());
        }
        if base.is_empty() {
            return self.plan_without_base(deltas, changes, live);
        }
        let size = base.iter().fold(Weight::default(), |sum, range| sum.plus(range.weight));
        let debt = deltas.iter().fold(changes, |sum, file| sum.plus(*file));
        if size.plus(debt).bytes <= self.small_bytes {
            let few = base.len() + deltas.len() < self.small_files;
            return if few { some(deltas.len(), Vec::new()) } else { Plan::All };
        }
        if debt.is_at_least(MOST_DEBT, size) || base.len() >= 2 * ranges {
            return Plan::All;
        }
        let first = self.first_small(deltas, changes, size.bytes / (2 * ranges).max(1) as u64);
        if !debt.is_at_least(DEBT, size) {
            return some(first, Vec::new());
        }
        let due = oldest(base, changed);
        if due.len() == base.len() { Plan::All } else { some(first, due) }
    }

    fn plan_without_base(&self, deltas: &[Weight], changes: Weight, live: Option<u64>) -> Plan {
        let nothing = Plan::Some { first: deltas.len(), ranges: Vec::new() };
        // Where all changes were spilled, the newest of them stand for those in memory.
        let (older, newest) = match deltas.split_last() {
            Some((newest, older)) if changes.records == 0 => (older, *newest),
            _ => (deltas, changes),
        };
        match self.first_to_merge(older, newest, live) {
            0 if changes.records > 0 || !older.is_empty() => Plan::All,
            first if first < older.len() => Plan::Some { first, ranges: Vec::new() },
            _ => nothing,
        }
    }

    /// The first of the newest deltas that are merged for their number; the number of deltas when none are. Each is less
    /// than twice as large as what is newer. Those of `large` bytes are left alone: an old change in a new delta has
    /// to wait longer until it can go.
    fn first_small(&self, deltas: &[Weight], changes: Weight, large: u64) -> usize {
        let (mut first, mut newer) = (deltas.len(), changes);
        for (at, file) in deltas.iter().enumerate().rev() {
            if file.bytes >= large || !file.is_less_than_twice(newer) {
                break;
            }
            first = at;
            newer = newer.plus(*file);
        }
        if deltas.len() - first + 1 >= self.run { first } else { deltas.len() }
    }

    /// The first file, counted from the oldest, that is to be merged with all newer ones and the new
    /// changes; the number of files when none is. `live` are the live keys with the changes, where known.
    fn first_to_merge(&self, chain: &[Weight], changes: Weight, live: Option<u64>) -> usize {
        if changes.records == 0 {
            return chain.len();
        }
        let total = chain.iter().fold(changes, |sum, file| sum.plus(*file));
        if chain.len() < self.small_files && total.bytes <= self.small_bytes {
            return chain.len();
        }
        // The oldest file that is too small for what is newer; and the oldest of those behind which no file is large
        // enough.
        let (mut first, mut run) = (chain.len(), chain.len());
        let mut newer = changes;
        for (at, file) in chain.iter().enumerate().rev() {
            if file.is_less_than_twice(newer) {
                first = at;
                run = if run == at + 1 { at } else { run };
            }
            newer = newer.plus(*file);
        }
        let few_are_dead = || live.is_some_and(|live| few_are_dead(chain, changes, total, live));
        if chain.len() >= MOST_FILES || first == 0 && !few_are_dead() {
            return first;
        }
        let many = |first: usize| {
            let small = chain.iter().skip(first).filter(|file| file.bytes < LARGE).count();
            small + 1 >= self.run
        };
        // Neither the oldest file nor another large one is rewritten for the number of newer ones.
        let any_large = chain.get(first..run).is_some_and(|more| more.iter().any(|file| file.bytes >= LARGE));
        match first {
            1.. if !any_large && many(first) => first,
            _ if many(run) => run,
            _ => chain.len(),
        }
    }
}

/// The oldest ranges that together weigh [`PAYMENT`] times what changed; at least one.
fn oldest(base: &[RangeWeight], changed: Weight) -> Vec<usize> {
    let mut by_age: Vec<_> = base.iter().enumerate().collect();
    by_age.sort_by_key(|(_, range)| range.checkpoint);
    let mut sum = Weight::default();
    let mut ranges = Vec::new();
    for (at, range) in by_age {
        let is_paid = sum.bytes >= changed.bytes.saturating_mul(PAYMENT)
            && sum.records >= changed.records.saturating_mul(PAYMENT);
        if is_paid && !ranges.is_empty() {
            break;
        }
        sum = sum.plus(range.weight);
        ranges.push(at);
    }
    ranges.sort_unstable();
    ranges
}

/// Whether at least two thirds of it all are live, in records and in bytes. Which records are dead is not known; those
/// in the files with the largest ones are taken to be.
fn few_are_dead(chain: &[Weight], changes: Weight, total: Weight, live: u64) -> bool {
    let mut left = total.records.saturating_sub(live);
    if left > live / 2 {
        return false;
    }
    let mean = |of: &Weight| of.bytes / of.records.max(1);
    let mut all: Vec<_> = chain.iter().copied().chain([changes]).collect();
    all.sort_unstable_by_key(|of| std::cmp::Reverse(mean(of)));
    let dead = all.iter().fold(0_u64, |dead, of| {
        let taken = left.min(of.records);
        left -= taken;
        dead.saturating_add(mean(of).saturating_mul(taken))
    });
    dead <= total.bytes / 3
}

/// Where records come from, in strictly growing key order.
#[derive(Debug)]
pub enum Source<'a> {
    /// A state file.
    File(FileCursor),
    /// The ranges of a base.
    Base(BaseCursor),
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
            Self::Base(cursor) => cursor.advance(),
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
            Self::Base(cursor) => cursor.current(),
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
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    fn weights(sizes: &[u64]) -> Vec<Weight> {
        sizes.iter().map(|&n| Weight { bytes: n * 1000, records: n }).collect()
    }

    const EAGER: MergePolicy = MergePolicy { small_files: 0, small_bytes: 0, run: 2, range_bytes: 1 };
    const PATIENT: MergePolicy = MergePolicy { run: 4, ..EAGER };

    fn first(policy: MergePolicy, sizes: &[u64], changes: u64, live: Option<u64>) -> usize {
        policy.first_to_merge(&weights(sizes), weights(&[changes])[0], live)
    }

    #[test]
    fn a_file_less_than_twice_everything_newer_is_merged() {
        for (sizes, expected) in
            [(&[][..], 0), (&[2], 1), (&[1], 0), (&[100, 6, 2], 3), (&[100, 5, 2], 1), (&[17, 6, 2], 0)]
        {
            assert_eq!(first(EAGER, sizes, 1, None), expected, "{sizes:?}");
        }
        // Many small tombstones over few large values.
        let small = Weight { bytes: 30, records: 60 };
        assert_eq!(EAGER.first_to_merge(&weights(&[100]), small, None), 0);
    }

    #[test]
    fn what_is_merged_for_its_number_waits_until_it_is_many() {
        for (sizes, expected) in [
            (&[100, 1][..], 2),
            (&[100, 1, 1], 3),
            (&[100, 1, 1, 1], 1),
            (&[100, 8, 1, 1, 1], 2),
            (&[100, 7, 1, 1, 1], 1),
            // The oldest one too small: dead records are no matter of number.
            (&[7, 1, 1, 1], 0),
            (&[1], 0),
        ] {
            assert_eq!(first(PATIENT, sizes, 1, None), expected, "{sizes:?}");
        }
        let large = LARGE / 1000 + 1;
        assert_eq!(first(PATIENT, &[large * 99, large, large, large], large, None), 4);
        assert_eq!(first(PATIENT, &[large * 99, large, large, 1, 1, 1], 1, None), 3);
        assert_eq!(first(PATIENT, &[&[large * 999][..], &[large; MOST_FILES]].concat(), large, None), 1);
    }

    #[test]
    fn files_of_a_size_stay_apart_while_few_of_their_records_are_dead() {
        // Three parts of a state that was written for the first time, and changes.
        assert_eq!(first(PATIENT, &[10, 10], 10, Some(30)), 2);
        assert_eq!(first(PATIENT, &[10, 10], 10, None), 0);
        assert_eq!(first(PATIENT, &[10, 10], 10, Some(20)), 2);
        assert_eq!(first(PATIENT, &[10, 10], 10, Some(19)), 0, "more than half as many dead as live");
        assert_eq!(first(PATIENT, &[10, 10, 10], 1, Some(30)), 3);
        assert_eq!(first(PATIENT, &[10, 10, 10, 1, 1, 1], 1, Some(30)), 3, "only the new ones");
        assert_eq!(first(PATIENT, &[10, 10, 10, 10], 10, Some(50)), 0, "many");
        // A tenth of the records, and perhaps nearly all of the bytes, are dead.
        let chain = [Weight { bytes: 1_000_000, records: 10 }, Weight { bytes: 1000, records: 100 }];
        let changes = Weight { bytes: 100, records: 10 };
        assert_eq!(PATIENT.first_to_merge(&chain, changes, Some(120)), 2);
        assert_eq!(PATIENT.first_to_merge(&chain, changes, Some(110)), 0);
    }

    /// Ranges of a thousand records each, written by these checkpoints.
    fn base(written_by: &[u64]) -> Vec<RangeWeight> {
        let weight = weights(&[1000])[0];
        written_by.iter().map(|&checkpoint| RangeWeight { checkpoint, weight }).collect()
    }

    #[test]
    fn ranges_are_renewed_oldest_first_once_deltas_weigh_a_quarter() {
        let plan = |written_by: &[u64], deltas: &[u64], changes: u64| {
            let changes = weights(&[changes])[0];
            PATIENT.plan(&base(written_by), &weights(deltas), changes, changes, None, 32)
        };
        let some = |first, ranges: &[usize]| Plan::Some { first, ranges: ranges.to_vec() };
        assert_eq!(plan(&[1; 8], &[1000], 0), some(1, &[]), "nothing changed");
        assert_eq!(plan(&[1; 8], &[1000], 999), some(1, &[]));
        assert_eq!(plan(&[1; 8], &[1000], 1000), some(1, &[0, 1]), "twice what changed");
        assert_eq!(plan(&[7, 1, 7, 1, 3, 7, 7, 7], &[1999], 1), some(1, &[1]), "at least one");
        assert_eq!(plan(&[7, 1, 7, 1, 3, 7, 7, 7], &[1000], 1200), some(1, &[1, 3, 4]));
        assert_eq!(plan(&[1; 8], &[3000], 3399), some(1, &[0, 1, 2, 3, 4, 5, 6]));
        assert_eq!(plan(&[1; 8], &[3000], 3400), Plan::All, "too much");
        assert_eq!(plan(&[1; 3], &[100], 1001), Plan::All, "twice that is all there is");
        assert_eq!(plan(&[1; 64], &[], 1), Plan::All, "too many");
        // Deltas are merged for their number, but not those that are large beside the base.
        assert_eq!(plan(&[1; 40], &[50, 50, 50], 50), some(0, &[]));
        assert_eq!(plan(&[1; 40], &[700, 700, 700], 700), some(3, &[]));
        assert_eq!(plan(&[1; 40], &[700, 90, 90, 90], 90), some(1, &[]));
        assert_eq!(plan(&[1; 40], &[90, 90, 700, 90, 90], 90), some(5, &[]), "the large one is in between");
    }

    #[test]
    fn what_was_spilled_counts_as_changed() {
        let (spilled, changes) = (weights(&[2500]), weights(&[1])[0]);
        let changed = changes.plus(spilled[0]);
        let plan = PATIENT.plan(&base(&[1; 8]), &spilled, changes, changed, None, 32);
        assert_eq!(plan, Plan::Some { first: 1, ranges: vec![0, 1, 2, 3, 4, 5] });
        // Also when nothing is left in memory.
        let (none, due) = (Weight::default(), vec![0, 1, 2, 3, 4]);
        let plan = PATIENT.plan(&base(&[1; 8]), &spilled, none, spilled[0], None, 32);
        assert_eq!(plan, Plan::Some { first: 1, ranges: due });
        let parts = weights(&[10; 20]);
        assert_eq!(PATIENT.plan(&[], &parts, none, parts[0], None, 32), Plan::All);
        assert_eq!(
            PATIENT.plan(&[], &parts[..1], none, parts[0], None, 32),
            Plan::Some { first: 1, ranges: Vec::new() }
        );
    }

    #[test]
    fn a_small_state_is_written_anew_when_it_has_many_files() {
        let policy = MergePolicy::default();
        let one = weights(&[1])[0];
        let plan = |deltas| {
            let base = [RangeWeight { checkpoint: 1, weight: one }];
            policy.plan(&base, &vec![one; deltas], one, one, None, 32)
        };
        assert_eq!(plan(6), Plan::Some { first: 6, ranges: Vec::new() });
        assert_eq!(plan(7), Plan::All);
        assert_eq!(policy.plan(&[], &[], one, one, None, 32), Plan::All, "the first checkpoint");
        let nothing = Weight::default();
        assert_eq!(
            policy.plan(&[], &[], nothing, nothing, None, 32),
            Plan::Some { first: 0, ranges: Vec::new() }
        );
    }

    #[test]
    fn small_chains_and_empty_changes_are_left_alone() {
        let policy = MergePolicy::default();
        let one = weights(&[1])[0];
        assert_eq!(policy.first_to_merge(&weights(&[1; 7]), one, None), 7);
        assert_eq!(policy.first_to_merge(&weights(&[1; 8]), one, None), 0);
        assert_eq!(policy.first_to_merge(&weights(&[1; 8]), Weight::default(), None), 8);
    }

    /// Whatever the sizes of the changes, chains stay logarithmic and the oldest file dominates. Returns how often
    /// a record was written.
    fn chains_stay_short(policy: MergePolicy, longest: usize) -> f64 {
        let mut chain: Vec<Weight> = Vec::new();
        let (mut written, mut changed) = (0, 0);
        for step in 0..10_000_u64 {
            let change = weights(&[1 + step * 7919 % 50])[0];
            let first = policy.first_to_merge(&chain, change, None);
            let merged = chain.drain(first..).fold(change, Weight::plus);
            (written, changed) = (written + merged.records, changed + change.records);
            chain.push(merged);
            assert!(chain.len() <= longest, "{chain:?}");
            let total: u64 = chain.iter().map(|file| file.bytes).sum();
            assert!(total <= chain[0].bytes * 2);
        }
        written as f64 / changed as f64
    }

    #[test]
    fn chains_stay_short_and_waiting_saves_writes() {
        let eager = chains_stay_short(EAGER, 14);
        let patient = chains_stay_short(MergePolicy { run: 8, ..EAGER }, 20);
        assert!(patient < eager - 0.5, "{patient} {eager}");
    }

    /// Overwriting the same keys over and over keeps at most half as much dead as live.
    #[test]
    fn known_live_keys_never_keep_more_dead_than_the_rule_allows() {
        let policy = MergePolicy::default();
        let mut chain = weights(&[250_000, 250_000, 100_000]);
        let live = 600_000;
        for _ in 0..500 {
            let change = weights(&[6_000])[0];
            let first = policy.first_to_merge(&chain, change, Some(live));
            let merged = chain.drain(first..).fold(change, Weight::plus);
            // All of it merged: what was overwritten is gone.
            chain.push(if first == 0 { weights(&[live])[0] } else { merged });
            let total: u64 = chain.iter().map(|file| file.records).sum();
            assert!(total <= live * 3 / 2, "{chain:?}");
            assert!(chain.len() <= 20, "{chain:?}");
        }
    }
}
