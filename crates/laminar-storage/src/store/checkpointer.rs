//! Checkpoints of a running store: everything that became durable since the last one is read back
//! from the log, applied, written, published, and only then is the log cut.
//!
//! Ring 0 takes no part in it, and Ring 1 only says where the logs end.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::drain::DurableCut;
use super::error::StoreError;
use crate::error::Detail;
use crate::format::digest::StateDigest;
use crate::ids::{CheckpointId, CoreId, Epoch, Sequence, WalPosition};
use crate::incremental::{CoreDigest, IncrementalCheckpointManager, SavepointReceipt};
use crate::per_core_wal::TruncationScope;
use crate::per_core_wal::apply::{Applied, apply_incarnation};
use crate::per_core_wal::recovery::plan::{Span, cut_of};
use crate::per_core_wal::recovery::survey::Survey;
use crate::per_core_wal::truncate::truncate_segments;
use crate::vfs::Vfs;

/// What [`crate::Store::checkpoint`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointReceipt {
    /// The newest checkpoint.
    pub id: CheckpointId,
    /// The epoch whose end it holds.
    pub epoch: Epoch,
    /// Changes since the checkpoint before; 0 also when there was nothing new and none was taken.
    pub changes: u64,
    /// Bytes written for it. Files of older checkpoints that it links to are not counted.
    pub bytes_written: u64,
    /// WAL bytes removed because of it.
    pub wal_bytes_removed: u64,
    /// How long it took.
    pub time: Duration,
}

/// Makes checkpoints of one log.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    manager: IncrementalCheckpointManager,
    scope: TruncationScope,
    vfs: Arc<dyn Vfs>,
    /// What the manager has of the log.
    applied: Applied,
    newest: Option<CheckpointReceipt>,
}

impl Checkpointer {
    /// Goes on from a recovered state: `cuts` is what the manager has, `digests` that of the cores.
    pub(crate) fn new(
        manager: IncrementalCheckpointManager,
        scope: TruncationScope,
        cuts: Vec<Sequence>,
        digests: &[StateDigest],
        point: Epoch,
    ) -> Result<Self, StoreError> {
        let barriers = digests.iter().map(|digest| (point, Some(*digest))).collect();
        let newest = manager.find_latest_checkpoint()?.map(|metadata| CheckpointReceipt {
            id: CheckpointId(metadata.id),
            epoch: Epoch(metadata.epoch),
            changes: 0,
            bytes_written: 0,
            wal_bytes_removed: 0,
            time: Duration::ZERO,
        });
        let vfs = Arc::clone(&scope.policy.vfs);
        Ok(Self { manager, scope, vfs, applied: Applied { changes: 0, cuts, barriers }, newest })
    }

    /// The newest checkpoint.
    pub(crate) fn newest(&self) -> Option<&CheckpointReceipt> {
        self.newest.as_ref()
    }

    /// Makes a checkpoint of the durable epoch; none when there is no new one.
    pub(crate) fn checkpoint(&mut self, cut: &DurableCut) -> Result<CheckpointReceipt, StoreError> {
        if let Some(newest) = self.newest.as_ref().filter(|newest| newest.epoch >= cut.epoch) {
            return Ok(CheckpointReceipt {
                changes: 0,
                bytes_written: 0,
                wal_bytes_removed: 0,
                time: Duration::ZERO,
                ..newest.clone()
            });
        }
        let started = Instant::now();
        let changes = self.apply(cut)?;
        let id = self.manager.next_checkpoint_id()?;
        let position = WalPosition(cut.ends.iter().map(|(_, len)| *len).sum());
        let published = self.manager.create_checkpoint_as(id, position)?;
        let truncation = truncate_segments(&self.scope, &published)?;
        let receipt = CheckpointReceipt {
            id,
            epoch: cut.epoch,
            changes,
            bytes_written: published.metadata().written_bytes(),
            wal_bytes_removed: truncation.bytes,
            time: started.elapsed(),
        };
        tracing::debug!(?receipt, "checkpoint");
        self.newest = Some(receipt.clone());
        Ok(receipt)
    }

    /// Gives the newest checkpoint a second life at `dir`. Nothing removes it meanwhile: whoever would needs
    /// this checkpointer.
    pub(crate) fn savepoint(
        &self,
        dir: &Path,
        own_files: &[(&str, &[u8])],
    ) -> Result<SavepointReceipt, StoreError> {
        Ok(self.manager.savepoint_with(dir, own_files)?)
    }

    /// Whether a savepoint could be made at `dir`.
    pub(crate) fn check_savepoint(&self, dir: &Path) -> Result<(), StoreError> {
        self.manager.check_target(dir)?;
        Ok(())
    }

    /// Applies the log up to the durable epoch to the manager.
    fn apply(&mut self, cut: &DurableCut) -> Result<u64, StoreError> {
        let cuts = self.applied.cuts.clone();
        let after = |core: CoreId| cut_of(&cuts, core);
        let survey = Survey::up_to(&self.vfs, &self.scope.policy.dir, &after, &cut.ends)?;
        self.scope.check_is_ours(&survey)?;
        for core in (0..self.scope.core_count).map(CoreId) {
            let sealed = survey.core(core).map_or(Epoch::ZERO, |log| log.sealed_epoch);
            if sealed < cut.epoch {
                return Err(StoreError::corruption(
                    Detail::new(format!("the log on disk ends with epoch {sealed}, later ones were synced"))
                        .at_path(&self.scope.policy.dir)
                        .on_core(core)
                        .in_epoch(cut.epoch)
                        .remedy("Something else changed the file; stop it, then open the store again."),
                ));
            }
        }
        // Only what is applied to the end counts: after a failure the same records are applied again,
        // the offsets among them.
        let mut applied = self.applied.clone();
        let span = |core| Span { after: after(core), from_epoch: Epoch::ZERO, up_to: cut.epoch };
        for incarnation in survey.incarnations(after) {
            apply_incarnation(&self.vfs, &survey, incarnation, span, &mut self.manager, &mut applied)?;
        }
        let changes = applied.changes - self.applied.changes;
        self.applied = applied;
        self.manager.set_epoch(cut.epoch.0);
        self.manager.set_wal_cuts(&self.applied.cuts)?;
        if let Some(digests) = self.applied.digests() {
            let digests = digests.iter().map(|d| CoreDigest { digest: d.digest, live_keys: d.live_keys });
            self.manager.set_digests(digests.collect())?;
        }
        Ok(changes)
    }
}
