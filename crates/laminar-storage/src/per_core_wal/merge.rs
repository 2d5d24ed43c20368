//! Merging the logs of all cores into one order, streaming.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::entry::{PerCoreWalEntry, Stamp, View};
use super::error::PerCoreWalError;
use super::recovery::cursor::CoreCursor;
use crate::format::record::Record;
use crate::format::segment_header::SegmentHeader;

/// The records of all cores in order `(epoch, timestamp_ns, core_id, sequence)`, each borrowed while the merge
/// stands on it. Holds one frame per core in memory.
#[derive(Debug)]
pub(crate) struct MergedRecords {
    cursors: Vec<CoreCursor>,
    /// Where the cursors stand, but for the one the merge stands on.
    heads: BinaryHeap<Reverse<Head>>,
    /// The cursor whose record is the current one.
    on: Option<usize>,
    started: bool,
}

/// Where a cursor stands in the total order, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Head {
    order: (u64, u64, usize, u64),
    cursor: usize,
}

impl MergedRecords {
    /// Stands before the first record.
    pub(crate) fn new(cursors: Vec<CoreCursor>) -> Self {
        Self { cursors, heads: BinaryHeap::new(), on: None, started: false }
    }

    /// Bytes of the frames that were handed out so far, per cursor.
    pub(crate) fn bytes(&self) -> Vec<u64> {
        self.cursors.iter().map(CoreCursor::bytes).collect()
    }

    /// Goes to the next record; false after the last. An error ends it.
    pub(crate) fn advance(&mut self) -> Result<bool, PerCoreWalError> {
        let moved = self.step();
        if moved.is_err() {
            self.on = None;
            self.heads.clear();
        }
        moved
    }

    fn step(&mut self) -> Result<bool, PerCoreWalError> {
        if !std::mem::replace(&mut self.started, true) {
            for cursor in 0..self.cursors.len() {
                let head = self.next_head(cursor)?;
                self.heads.extend(head.map(Reverse));
            }
        }
        let next = match self.on.take() {
            Some(cursor) => self.next_head(cursor)?,
            None => None,
        };
        // A core often wrote many records in a row: those need not go through the heap.
        let first = self.heads.peek().map(|Reverse(head)| *head);
        let head = match (next, first) {
            (Some(next), Some(first)) if first < next => {
                self.heads.pop();
                self.heads.push(Reverse(next));
                Some(first)
            }
            (Some(next), _) => Some(next),
            (None, _) => self.heads.pop().map(|Reverse(head)| head),
        };
        self.on = head.map(|head| head.cursor);
        Ok(self.on.is_some())
    }

    fn next_head(&mut self, cursor: usize) -> Result<Option<Head>, PerCoreWalError> {
        let Some(of) = self.cursors.get_mut(cursor) else { return Ok(None) };
        of.advance()?;
        Ok(of.current().map(|(_, at)| Head { order: at.order(), cursor }))
    }

    /// The record it stands on; `None` before the first and after the last.
    pub(crate) fn current(&self) -> Option<(Record<'_>, Stamp)> {
        self.cursors.get(self.on?)?.current()
    }

    /// Header of the segment that has this record.
    pub(crate) fn header(&self) -> Option<&SegmentHeader> {
        self.cursors.get(self.on?)?.header()
    }
}

/// Yields the records of all cores in order `(epoch, timestamp_ns, core_id, sequence)`, holding one
/// frame per core in memory.
///
/// An error ends the iteration.
#[derive(Debug)]
pub struct MergedEntries(MergedRecords);

impl MergedEntries {
    pub(crate) fn new(cursors: Vec<CoreCursor>) -> Self {
        Self(MergedRecords::new(cursors))
    }
}

impl Iterator for MergedEntries {
    type Item = Result<PerCoreWalEntry, PerCoreWalError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.0.advance() {
                Err(error) => return Some(Err(error)),
                Ok(false) => return None,
                Ok(true) => {}
            }
            let (record, at) = self.0.current()?;
            if let View::Entry(entry) = View::of(&record, at) {
                return Some(Ok(entry));
            }
        }
    }
}
