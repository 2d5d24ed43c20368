//! One record of the log as the low-level functions show it.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::format::record::Record;

/// What a [`PerCoreWalEntry`] does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalOperation {
    /// `key` has `value` from here on.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// `key` is gone from here on.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// Source offsets and watermark that belong to the state at this place.
    Commit {
        /// Next position to read from each source.
        offsets: HashMap<String, u64>,
        /// Watermark, if the core has one.
        watermark: Option<i64>,
    },
    /// A checkpoint of everything before was published.
    Checkpoint {
        /// Its id.
        id: u64,
    },
    /// Closes an epoch on this core.
    EpochBarrier {
        /// The epoch.
        epoch: u64,
    },
}

/// One record of one core's log.
///
/// Ordered by `(epoch, timestamp_ns, core_id, sequence)`, the order in which records of several cores
/// are merged. Within one core timestamps strictly increase, so that this order never contradicts the
/// order in which the core wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PerCoreWalEntry {
    /// Epoch it belongs to.
    pub epoch: u64,
    /// Position in its core's order; strictly increasing, never reused.
    pub sequence: u64,
    /// Whose record.
    pub core_id: usize,
    /// Nanoseconds since the Unix epoch, strictly increasing per core.
    pub timestamp_ns: u64,
    /// What it does.
    pub operation: WalOperation,
}

impl PerCoreWalEntry {
    fn new(core_id: usize, epoch: u64, sequence: u64, timestamp_ns: u64, operation: WalOperation) -> Self {
        Self { epoch, sequence, core_id, timestamp_ns, operation }
    }

    /// A put.
    #[must_use]
    pub fn put(
        core_id: usize,
        epoch: u64,
        sequence: u64,
        key: Vec<u8>,
        value: Vec<u8>,
        timestamp_ns: u64,
    ) -> Self {
        Self::new(core_id, epoch, sequence, timestamp_ns, WalOperation::Put { key, value })
    }

    /// A delete.
    #[must_use]
    pub fn delete(core_id: usize, epoch: u64, sequence: u64, key: Vec<u8>, timestamp_ns: u64) -> Self {
        Self::new(core_id, epoch, sequence, timestamp_ns, WalOperation::Delete { key })
    }

    /// A commit of source offsets and watermark.
    #[must_use]
    pub fn commit(
        core_id: usize,
        epoch: u64,
        sequence: u64,
        offsets: HashMap<String, u64>,
        watermark: Option<i64>,
        timestamp_ns: u64,
    ) -> Self {
        Self::new(core_id, epoch, sequence, timestamp_ns, WalOperation::Commit { offsets, watermark })
    }

    /// A note that a checkpoint was published.
    #[must_use]
    pub fn checkpoint(core_id: usize, epoch: u64, sequence: u64, id: u64, timestamp_ns: u64) -> Self {
        Self::new(core_id, epoch, sequence, timestamp_ns, WalOperation::Checkpoint { id })
    }

    /// The end of an epoch.
    #[must_use]
    pub fn epoch_barrier(core_id: usize, epoch: u64, sequence: u64, timestamp_ns: u64) -> Self {
        Self::new(core_id, epoch, sequence, timestamp_ns, WalOperation::EpochBarrier { epoch })
    }

    /// The key of a put or delete.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        match &self.operation {
            WalOperation::Put { key, .. } | WalOperation::Delete { key } => Some(key),
            _ => None,
        }
    }

    /// The value of a put.
    #[must_use]
    pub fn value(&self) -> Option<&[u8]> {
        match &self.operation {
            WalOperation::Put { value, .. } => Some(value),
            _ => None,
        }
    }

    /// Is it a put?
    #[must_use]
    pub fn is_put(&self) -> bool {
        matches!(self.operation, WalOperation::Put { .. })
    }

    /// Is it a delete?
    #[must_use]
    pub fn is_delete(&self) -> bool {
        matches!(self.operation, WalOperation::Delete { .. })
    }

    /// Does it change the state: a put or a delete?
    #[must_use]
    pub fn is_state_operation(&self) -> bool {
        self.is_put() || self.is_delete()
    }

    /// Is it a commit of source offsets?
    #[must_use]
    pub fn is_commit(&self) -> bool {
        matches!(self.operation, WalOperation::Commit { .. })
    }

    /// Is it a checkpoint note?
    #[must_use]
    pub fn is_checkpoint(&self) -> bool {
        matches!(self.operation, WalOperation::Checkpoint { .. })
    }

    /// Is it the end of an epoch?
    #[must_use]
    pub fn is_epoch_barrier(&self) -> bool {
        matches!(self.operation, WalOperation::EpochBarrier { .. })
    }

    fn order(&self) -> (u64, u64, usize, u64) {
        (self.epoch, self.timestamp_ns, self.core_id, self.sequence)
    }
}

impl PartialOrd for PerCoreWalEntry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for PerCoreWalEntry {
    fn cmp(&self, other: &Self) -> Ordering {
        // Two different entries never share core and sequence, so ties do not arise between entries
        // of one log; the operation is not compared.
        self.order().cmp(&other.order())
    }
}

/// Where a record stands in the total order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) core_id: usize,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) timestamp_ns: u64,
}

impl Stamp {
    /// Records of several cores are merged in this order.
    pub(crate) fn order(&self) -> (u64, u64, usize, u64) {
        (self.epoch, self.timestamp_ns, self.core_id, self.sequence)
    }
}

/// What a decoded record is to the low-level view.
pub(crate) enum View {
    Entry(PerCoreWalEntry),
    /// Bookkeeping of the log itself.
    Hidden,
    /// The record's body makes no sense.
    Senseless,
}

impl View {
    pub(crate) fn of(record: &Record<'_>, at: Stamp) -> Self {
        let operation = match record {
            Record::Put { key, value } => WalOperation::Put { key: key.to_vec(), value: value.to_vec() },
            Record::Delete { key } => WalOperation::Delete { key: key.to_vec() },
            Record::Commit(body) => match body.decode() {
                Some(commit) => WalOperation::Commit { offsets: commit.offsets, watermark: commit.watermark },
                None => return Self::Senseless,
            },
            Record::Checkpoint { id } => WalOperation::Checkpoint { id: id.0 },
            Record::Barrier { .. } => WalOperation::EpochBarrier { epoch: at.epoch },
            Record::Confirm { .. } | Record::SegmentEnd { .. } => return Self::Hidden,
        };
        Self::Entry(PerCoreWalEntry::new(at.core_id, at.epoch, at.sequence, at.timestamp_ns, operation))
    }
}
