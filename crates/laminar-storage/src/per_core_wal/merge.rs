//! Merging the logs of all cores into one order, streaming.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::entry::PerCoreWalEntry;
use super::error::PerCoreWalError;
use super::recovery::cursor::CoreCursor;

/// Yields the records of all cores in order `(epoch, timestamp_ns, core_id, sequence)`, holding one
/// frame per core in memory.
///
/// An error ends the iteration.
#[derive(Debug)]
pub struct MergedEntries {
    cursors: Vec<CoreCursor>,
    heads: BinaryHeap<Reverse<(PerCoreWalEntry, usize)>>,
    /// Cursors whose head is missing from the heap.
    hungry: Vec<usize>,
}

impl MergedEntries {
    pub(crate) fn new(cursors: Vec<CoreCursor>) -> Self {
        let hungry = (0..cursors.len()).collect();
        Self { cursors, heads: BinaryHeap::new(), hungry }
    }

    /// Bytes of the frames that were handed out so far, per cursor.
    pub(crate) fn bytes(&self) -> Vec<u64> {
        self.cursors.iter().map(CoreCursor::bytes).collect()
    }

    fn advance(&mut self) -> Result<Option<PerCoreWalEntry>, PerCoreWalError> {
        while let Some(index) = self.hungry.pop() {
            let Some(cursor) = self.cursors.get_mut(index) else { continue };
            if let Some(entry) = cursor.next_entry()? {
                self.heads.push(Reverse((entry, index)));
            }
        }
        Ok(self.heads.pop().map(|Reverse((entry, index))| {
            self.hungry.push(index);
            entry
        }))
    }
}

impl Iterator for MergedEntries {
    type Item = Result<PerCoreWalEntry, PerCoreWalError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance();
        if next.is_err() {
            self.cursors.clear();
            self.heads.clear();
            self.hungry.clear();
        }
        next.transpose()
    }
}
