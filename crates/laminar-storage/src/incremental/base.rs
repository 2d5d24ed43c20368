//! The base: the older and larger part of a core's state, in files that have no key in common.
//!
//! # Ranges and deltas
//! A *range* is a state file whose part number is at least [`FIRST_RANGE`]. It has every key that was live when it was
//! written between its first key and that of the next range; the first range also answers for all keys before it, the
//! last for all behind it. Every other file is a *delta*: what changed, deletions too. A delta's record always counts
//! before what a range says.
//!
//! A checkpoint that changes little adds a delta. When the deltas weigh a quarter of the base, each checkpoint also
//! writes some ranges again, the oldest first, with all deltas applied. So the work of merging is spread over many
//! checkpoints, in proportion to what they change, instead of falling due all at once.
//!
//! # When a delta may go
//! When every range is at least as new, all it says is in them. Deltas go in the order they came: no delta is there
//! without all newer ones, so that a range needs no tombstones. A key that was deleted, and is in an older delta that
//! is still there, is deleted in a newer one that is there as well.
//!
//! Borders are first keys and can only move up, when a range loses its first keys. What comes to the range before in
//! this way had nothing in it when the later range was written, and what was written there since is in deltas that are
//! newer than both.

use std::collections::VecDeque;
use std::sync::Arc;

use super::error::IncrementalCheckpointError;
use super::manager::ChainFile;
use super::merge::Source;
use super::metadata::CheckpointFile;
use super::reshard::KeyRange;
use super::state_file::{FileCursor, StateFileReader};
use crate::format::state_file::StateRecord;

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// The part number of the first range that a checkpoint writes for a core. Deltas have smaller ones.
pub(super) const FIRST_RANGE: u16 = 0x8000;

/// Whether a state file is a range of the base.
pub(super) fn is_range(file: &CheckpointFile) -> bool {
    file.part >= FIRST_RANGE
}

/// A core's state as sources of a merge: the ranges as one, which is the oldest, then the deltas.
pub(super) fn sources<'f, 'a>(
    files: impl Iterator<Item = &'f Arc<StateFileReader>>,
    cursor: impl Fn(&Arc<StateFileReader>) -> FileCursor,
) -> Vec<Source<'a>> {
    let (mut ranges, deltas): (Vec<_>, Vec<_>) = files.partition(|file| is_range(file.meta()));
    ranges.sort_by(|a, b| a.first_keys().next().cmp(&b.first_keys().next()));
    let base = BaseCursor { cursors: ranges.into_iter().map(&cursor).collect(), border: None };
    let base = (!base.cursors.is_empty()).then_some(Source::Base(base));
    base.into_iter().chain(deltas.into_iter().map(|file| Source::File(cursor(file)))).collect()
}

/// Walks over the ranges of a base, one after the other.
#[derive(Debug)]
pub struct BaseCursor {
    /// In the order of their keys; the first one is being read.
    cursors: VecDeque<FileCursor>,
    /// A key of the range before, not before the last block's last one.
    border: Option<Vec<u8>>,
}

impl BaseCursor {
    /// Goes to the next record.
    pub(super) fn advance(&mut self) -> Result<()> {
        let mut changed = false;
        while let Some(cursor) = self.cursors.front_mut() {
            if let Some(record) = cursor.current().filter(|_| cursor.ends_block()) {
                self.border = Some(record.key.to_vec());
            }
            if cursor.advance()? {
                let key = cursor.current().map(|record| record.key);
                if changed && key <= self.border.as_deref() {
                    return Err(cursor.damaged("two ranges of the base have keys in common"));
                }
                return Ok(());
            }
            changed = true;
            self.cursors.pop_front();
        }
        Ok(())
    }

    /// The record it stands on.
    pub(super) fn current(&self) -> Option<StateRecord<'_>> {
        self.cursors.front()?.current()
    }
}

/// One core's files, sorted out.
pub(super) struct CoreFiles<'a> {
    /// By key.
    pub(super) ranges: Vec<&'a ChainFile>,
    /// Oldest first.
    pub(super) deltas: Vec<&'a ChainFile>,
}

impl<'a> CoreFiles<'a> {
    pub(super) fn of(chain: &'a [ChainFile]) -> Self {
        let (mut ranges, deltas): (Vec<_>, Vec<_>) =
            chain.iter().partition(|file| is_range(file.reader.meta()));
        ranges.sort_by(|a, b| first_key(a).cmp(&first_key(b)));
        Self { ranges, deltas }
    }

    /// The keys that a range answers for.
    pub(super) fn keys_of(&self, range: usize) -> KeyRange {
        let border = |at: usize| self.ranges.get(at).and_then(|file| first_key(file)).map(<[u8]>::to_vec);
        KeyRange { from: if range == 0 { None } else { border(range) }, to: border(range + 1) }
    }
}

fn first_key(file: &ChainFile) -> Option<&[u8]> {
    file.reader.first_keys().next()
}

/// Which files of a chain can have a key, in the order in which they are to be asked.
pub(super) fn holders(chain: &[ChainFile], key: &[u8]) -> impl Iterator<Item = usize> + use<> {
    let mut deltas = Vec::new();
    let mut range = None;
    for (at, file) in chain.iter().enumerate().rev() {
        if !is_range(file.reader.meta()) {
            deltas.push(at);
            continue;
        }
        let first = first_key(file);
        if first <= Some(key) && range.is_none_or(|(_, best)| first > best) {
            range = Some((at, first));
        }
    }
    deltas.into_iter().chain(range.map(|(at, _)| at))
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
