//! Walks over all records of a state file, one block in memory at a time.

use std::ops::Range;
use std::sync::Arc;

use super::reader::{BlockBytes, StateFileReader};
use crate::format::state_file::{Fault, RECORD_HEADER_LEN, StateRecord};
use crate::incremental::error::IncrementalCheckpointError;
use crate::incremental::reshard::KeyRange;

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// A position between the records of a state file; starts before the first.
#[derive(Debug)]
pub struct FileCursor {
    reader: Arc<StateFileReader>,
    /// The next block to read.
    next_block: usize,
    bytes: BlockBytes,
    /// Where the next record starts in `bytes`.
    at: usize,
    /// Where key and value of the current record are in `bytes`.
    current: Option<(Range<usize>, Option<Range<usize>>)>,
    /// Records of the block that are still to come, as the index promises.
    left_in_block: u32,
    tombstones: u64,
    /// Last key of the block before.
    border: Option<Vec<u8>>,
    /// Which keys are wanted; the lower border is taken out once it is passed.
    range: KeyRange,
    /// Whether the records before `range` or behind it are left out, so that they cannot be counted.
    partial: bool,
}

impl FileCursor {
    pub(super) fn new(reader: Arc<StateFileReader>) -> Self {
        Self {
            reader,
            next_block: 0,
            bytes: BlockBytes::default(),
            at: 0,
            current: None,
            left_in_block: 0,
            tombstones: 0,
            border: None,
            range: KeyRange::default(),
            partial: false,
        }
    }

    /// A cursor over `range`, whose first key is not before the block `first`.
    pub(super) fn within(reader: Arc<StateFileReader>, first: usize, range: KeyRange) -> Self {
        let partial = range != KeyRange::default();
        Self { next_block: first, range, partial, ..Self::new(reader) }
    }

    /// The record the cursor is on; `None` before the first and after the last.
    #[must_use]
    pub fn current(&self) -> Option<StateRecord<'_>> {
        let (key, value) = self.current.as_ref()?;
        Some(StateRecord {
            key: self.bytes.raw.get(key.clone())?,
            value: match value {
                Some(value) => Some(self.bytes.raw.get(value.clone())?),
                None => None,
            },
        })
    }

    /// Is the current record the last one of its block?
    #[must_use]
    pub(crate) fn ends_block(&self) -> bool {
        self.left_in_block == 0
    }

    /// Goes to the next record; false after the last.
    ///
    /// # Errors
    /// `Io`; `ChecksumMismatch` and `Corruption`, naming file and offset. The cursor is then at
    /// its end.
    pub fn advance(&mut self) -> Result<bool> {
        let done = self.step_within();
        if done.is_err() {
            self.end();
        }
        done
    }

    /// Goes behind the last record.
    fn end(&mut self) {
        self.current = None;
        self.border = None;
        self.at = self.bytes.raw.len();
        self.next_block = self.reader.blocks();
        self.left_in_block = 0;
    }

    fn step_within(&mut self) -> Result<bool> {
        let mut there = self.step()?;
        if let Some(from) = self.range.from.take() {
            while there && self.current().is_some_and(|record| record.key < from.as_slice()) {
                there = self.step()?;
            }
        }
        if let Some(to) = &self.range.to
            && self.current().is_some_and(|record| record.key >= to.as_slice())
        {
            self.end();
            there = false;
        }
        Ok(there)
    }

    fn step(&mut self) -> Result<bool> {
        if self.at == self.bytes.raw.len() && !self.load_block()? {
            return Ok(false);
        }
        let rest = self.bytes.raw.get(self.at..).unwrap_or_default();
        let (record, after) = StateRecord::decode(rest).map_err(|f| self.fault(&f))?;
        let in_order = match &self.current {
            Some((key, _)) => self.bytes.raw.get(key.clone()).is_some_and(|previous| previous < record.key),
            None => self.border.as_deref().is_none_or(|border| border < record.key),
        };
        if !in_order || self.left_in_block == 0 {
            return Err(self.fault(&Fault::Damaged("a block has records its index entry does not allow")));
        }
        let key_start = self.at + RECORD_HEADER_LEN;
        let key = key_start..key_start + record.key.len();
        let value = record.value.map(|value| key.end..key.end + value.len());
        self.tombstones += u64::from(value.is_none());
        self.at = self.bytes.raw.len() - after.len();
        self.current = Some((key, value));
        self.left_in_block -= 1;
        Ok(true)
    }

    /// Reads the next block; false when there is none, after checking that all is accounted for.
    fn load_block(&mut self) -> Result<bool> {
        if self.left_in_block != 0 {
            return Err(self.fault(&Fault::Damaged("a block has fewer records than its index entry says")));
        }
        if let Some((key, _)) = self.current.take() {
            self.border = self.bytes.raw.get(key).map(<[u8]>::to_vec);
        }
        let Some((records, first_key)) = self.reader.promise(self.next_block) else {
            let finished = std::mem::take(&mut self.border).is_some();
            if finished && !self.partial && self.tombstones != self.reader.meta().tombstones {
                return Err(self.fault(&Fault::Damaged("another number of tombstones than the footer says")));
            }
            return Ok(false);
        };
        self.reader.read_block(self.next_block, &mut self.bytes)?;
        self.at = 0;
        self.left_in_block = records;
        self.next_block += 1;
        let (first, _) = StateRecord::decode(&self.bytes.raw).map_err(|f| self.fault(&f))?;
        if first.key != first_key {
            return Err(
                self.fault(&Fault::Damaged("a block starts with another key than its index entry says"))
            );
        }
        Ok(true)
    }

    /// What is wrong where it stands.
    pub(in crate::incremental) fn damaged(&self, what: &'static str) -> IncrementalCheckpointError {
        self.fault(&Fault::Damaged(what))
    }

    fn fault(&self, fault: &Fault) -> IncrementalCheckpointError {
        self.reader.fault(fault, self.next_block.saturating_sub(1))
    }
}
