//! Proofs of how far a checkpoint has come. Only [`Published`] lets anything be removed from the
//! write-ahead log, and only the manager can make one, in this order: `Written`, `Synced`,
//! `Published`.

use std::path::PathBuf;
use std::sync::Arc;

use super::manager::ChainFile;
use super::metadata::{CheckpointFile, IncrementalCheckpointMetadata};
use crate::ids::{CheckpointId, Epoch, Sequence, StoreId};
use crate::vfs::VfsFile;

/// Everything about a checkpoint that is on its way.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) metadata: IncrementalCheckpointMetadata,
    pub(super) manifest: String,
    pub(super) pending_dir: PathBuf,
    pub(super) manifest_file: Arc<dyn VfsFile>,
    /// State files whose bytes are not known to be durable.
    pub(super) unsynced: Vec<Arc<dyn VfsFile>>,
    /// Per core, oldest first.
    pub(super) files: Vec<Vec<DraftFile>>,
}

/// A file of the new checkpoint.
#[derive(Debug)]
pub(super) enum DraftFile {
    /// Open already, from an older checkpoint.
    Open(ChainFile),
    /// Just written or spilled; opened once it is published.
    New(CheckpointFile),
}

/// All bytes of a checkpoint are written, none are known to be durable.
#[derive(Debug)]
#[must_use = "a checkpoint that is not synced and published does not exist"]
pub struct Written(pub(super) Draft);

/// All bytes of a checkpoint are durable, but under a temporary name.
#[derive(Debug)]
#[must_use = "a checkpoint that is not published does not exist"]
pub struct Synced(pub(super) Draft);

impl Written {
    /// What the checkpoint will say about itself.
    #[must_use]
    pub fn metadata(&self) -> &IncrementalCheckpointMetadata {
        &self.0.metadata
    }
}

impl Synced {
    /// What the checkpoint will say about itself.
    #[must_use]
    pub fn metadata(&self) -> &IncrementalCheckpointMetadata {
        &self.0.metadata
    }
}

/// A checkpoint is durable under its final name and was read back.
///
/// It survives every crash from here on. Whoever holds one may remove from the write-ahead log what
/// is before [`Published::wal_floor`], and nothing else.
#[derive(Debug)]
#[must_use = "the write-ahead log can be truncated with it"]
pub struct Published {
    pub(super) metadata: IncrementalCheckpointMetadata,
    pub(super) floor: Option<WalFloor>,
}

impl Published {
    /// What the new checkpoint says about itself.
    #[must_use]
    pub fn metadata(&self) -> &IncrementalCheckpointMetadata {
        &self.metadata
    }

    /// The same, by value.
    #[must_use]
    pub fn into_metadata(self) -> IncrementalCheckpointMetadata {
        self.metadata
    }

    /// How far the log may be removed: up to the second newest checkpoint, so that a damaged newest
    /// one costs nothing. `None` means not at all.
    #[must_use]
    pub fn wal_floor(&self) -> Option<&WalFloor> {
        self.floor.as_ref()
    }
}

impl WalFloor {
    pub(super) fn of(checkpoint: &IncrementalCheckpointMetadata) -> Self {
        Self {
            checkpoint: CheckpointId(checkpoint.id),
            store_id: StoreId(checkpoint.store_id),
            epoch: Epoch(checkpoint.epoch),
            cuts: checkpoint.wal_cuts.iter().map(|cut| Sequence(cut.sequence)).collect(),
        }
    }
}

/// What the second newest checkpoint has of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalFloor {
    /// The second newest checkpoint.
    pub checkpoint: CheckpointId,
    /// The log the cuts are of.
    pub store_id: StoreId,
    /// The epoch whose end that checkpoint holds.
    pub epoch: Epoch,
    /// Per core: records up to and including this one are in that checkpoint.
    pub cuts: Vec<Sequence>,
}
