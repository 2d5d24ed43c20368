//! Log and checkpoints together, for programs that drive them themselves.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::apply::{Applied, apply_incarnation, checkpoint_error};
use super::error::PerCoreWalError;
use super::manager::PerCoreWalManager;
use super::recovery::plan::{RecoveryMode, Span, Wanted, cut_of};
use super::recovery::survey::Survey;
use crate::error::Detail;
use crate::ids::{CheckpointId, CoreId, Epoch, Sequence, WalPosition};
use crate::incremental::recovery::locate::Failure;
use crate::incremental::recovery::recover_state;
use crate::incremental::{
    CheckpointConfig, IncrementalCheckpointError, IncrementalCheckpointManager, IncrementalCheckpointMetadata,
};
use crate::progress::Watch;

/// Makes checkpoints of a log: closes an epoch on all cores, syncs them, applies their records in
/// order to the state, publishes the checkpoint, and only then cuts the log.
#[derive(Debug)]
pub struct CheckpointCoordinator {
    wal: PerCoreWalManager,
    checkpoints: IncrementalCheckpointManager,
    /// Per core, the last record that the checkpoint manager has.
    applied: Vec<Sequence>,
    truncate: bool,
}

impl CheckpointCoordinator {
    /// Brings a log and a directory of checkpoints together. The checkpoints must have been made from
    /// this log, or without any, before the log was begun.
    ///
    /// All of the newest checkpoint is read, and compared with its digests. Where a `Store` logged anything behind it,
    /// the state is recovered once as [`crate::incremental::RecoveryManager`] does by default, in memory, and its digest compared.
    ///
    /// # Errors
    /// `Checkpoint` when the checkpoints cannot be opened, do not have the digests that they carry, or belong to another log;
    /// `Corrupted`, `SegmentNotFound` when a `Store`'s log is not whole from the newest checkpoint on, or what is recovered from both
    /// does not have the digest that is stored there; `Io`. Checkpoints and records are as they were then; the log
    /// has been opened.
    pub fn new(mut wal: PerCoreWalManager, config: CheckpointConfig) -> Result<Self, PerCoreWalError> {
        let truncate = config.truncate_wal;
        let dir = config.checkpoint_dir.clone();
        let vfs = wal.config().vfs().clone();
        let mut checkpoints =
            IncrementalCheckpointManager::with_vfs(config, vfs).map_err(checkpoint_error)?;
        let latest = checkpoints.find_latest_checkpoint().map_err(checkpoint_error)?;
        checkpoints.bind_wal(wal.store_id()).map_err(checkpoint_error)?;
        // Recovery takes what is below the epoch of a checkpoint without a log to be in it.
        if wal.epoch() <= checkpoints.epoch() && latest.is_some() {
            wal.set_epoch_all(Epoch(checkpoints.epoch()).next().0)?;
        }
        let cuts = latest.filter(|m| m.bound_to_wal).map_or_else(Vec::new, |m| m.wal_cuts);
        let applied: Vec<_> = cuts.iter().map(|cut| Sequence(cut.sequence)).collect();
        compare_digests(&wal, &dir, &applied)?;
        Ok(Self { wal, checkpoints, applied, truncate })
    }

    /// Makes checkpoint `id` of everything appended so far, and cuts the log as far as the checkpoint
    /// before allows. When this returns, the checkpoint is durable. State that a `Store` of several cores left is laid out for
    /// one core first, which reads all of it once.
    ///
    /// # Errors
    /// `Checkpoint` for an id that is not larger than every one used, and when the checkpoint cannot
    /// be written; `Io` when the log cannot be synced. The state on disk is the one before, then. `Io` also when only
    /// the log could not be cut: the checkpoint is there all the same.
    pub fn create_checkpoint(&mut self, id: u64) -> Result<IncrementalCheckpointMetadata, PerCoreWalError> {
        let truncate = self.truncate;
        self.checkpoint(CheckpointId(id), truncate)
    }

    /// As [`Self::create_checkpoint`], leaving the log as it is.
    ///
    /// # Errors
    /// As [`Self::create_checkpoint`].
    pub fn create_checkpoint_no_truncate(
        &mut self,
        id: u64,
    ) -> Result<IncrementalCheckpointMetadata, PerCoreWalError> {
        self.checkpoint(CheckpointId(id), false)
    }

    fn checkpoint(
        &mut self,
        id: CheckpointId,
        truncate: bool,
    ) -> Result<IncrementalCheckpointMetadata, PerCoreWalError> {
        // Before anything is written: an id that cannot be used must not cost an epoch.
        let next = self.checkpoints.next_checkpoint_id().map_err(checkpoint_error)?;
        if id < next {
            let what = format!("checkpoint {id} was given, ids up to {} are used", next.0 - 1);
            return Err(checkpoint_error(IncrementalCheckpointError::AlreadyExists(Box::new(
                Detail::new(what).remedy("Give a larger id."),
            ))));
        }
        self.lay_out().map_err(checkpoint_error)?;
        let epoch = Epoch(self.wal.advance_epoch()?);
        self.wal.write_epoch_barrier_all()?;
        self.wal.sync_all()?;
        let applied = self.apply(epoch)?;
        self.checkpoints.set_epoch(epoch.0);
        self.checkpoints.set_wal_cuts(&self.applied).map_err(checkpoint_error)?;
        let position = WalPosition(self.wal.synced_positions().into_iter().fold(0, u64::saturating_add));
        tracing::debug!(%id, %epoch, changes = applied.changes, "checkpoint");
        let published = self.checkpoints.create_checkpoint_as(id, position).map_err(checkpoint_error)?;
        if truncate {
            self.wal.truncate_before(&published)?;
        }
        for core in 0..self.wal.num_cores() {
            self.wal.writer_checked(core)?.append_checkpoint(id.0)?;
        }
        Ok(published.into_metadata())
    }

    /// What a `Store` left is laid out for its cores and its router, which nobody here knows: keys of this log would stand
    /// where the `Store` does not look. In one core they are where its next opening distributes them from.
    fn lay_out(&mut self) -> Result<(), IncrementalCheckpointError> {
        if self.checkpoints.core_count() == 1 {
            return Ok(());
        }
        let offsets = self.checkpoints.core_offsets().to_vec();
        self.checkpoints.reshard(1, |_| CoreId::ZERO)?;
        self.checkpoints.set_core_offsets(offsets)
    }

    /// Applies every record that the checkpoint manager does not have yet, up to `epoch`.
    fn apply(&mut self, epoch: Epoch) -> Result<Applied, PerCoreWalError> {
        let vfs = self.wal.config().vfs().clone();
        let cuts = self.applied.clone();
        let after = |core: CoreId| cut_of(&cuts, core);
        let survey = Survey::up_to(&vfs, self.wal.base_dir(), &after, &self.wal.ends())?;
        self.wal.truncation_scope().check_is_ours(&survey)?;
        let span = |core| Span { after: after(core), from_epoch: Epoch::ZERO, up_to: epoch };
        let mut applied = Applied { cuts: self.applied.clone(), ..Applied::default() };
        applied.barriers.resize(applied.cuts.len(), (Epoch::ZERO, None));
        for incarnation in survey.incarnations(after) {
            let (checkpoints, watch) = (&mut self.checkpoints, &Watch::default());
            apply_incarnation(&vfs, &survey, incarnation, span, checkpoints, &mut applied, watch)?;
        }
        self.applied.clone_from(&applied.cuts);
        Ok(applied)
    }

    /// Makes everything appended so far durable, without a checkpoint.
    ///
    /// # Errors
    /// `Io` when the log cannot be synced.
    pub fn flush(&mut self) -> Result<(), PerCoreWalError> {
        self.wal.sync_all()
    }

    /// The epoch that new records belong to.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.wal.epoch()
    }

    /// Source offsets as of the last checkpoint.
    #[must_use]
    pub fn source_offsets(&self) -> &BTreeMap<String, u64> {
        self.checkpoints.source_offsets()
    }

    /// Watermark as of the last checkpoint.
    #[must_use]
    pub fn watermark(&self) -> Option<i64> {
        self.checkpoints.watermark()
    }

    /// All checkpoints, newest first.
    ///
    /// # Errors
    /// `Checkpoint` when the directory cannot be read.
    pub fn list_checkpoints(&self) -> Result<Vec<IncrementalCheckpointMetadata>, PerCoreWalError> {
        self.checkpoints.list_checkpoints().map_err(checkpoint_error)
    }

    /// The log.
    #[must_use]
    pub fn wal_manager(&self) -> &PerCoreWalManager {
        &self.wal
    }

    /// The log, to append to.
    pub fn wal_manager_mut(&mut self) -> &mut PerCoreWalManager {
        &mut self.wal
    }

    /// The checkpoints.
    #[must_use]
    pub fn checkpoint_manager(&self) -> &IncrementalCheckpointManager {
        &self.checkpoints
    }

    /// The checkpoints, to change the state of the next one. What is changed here is in checkpoints only and not in the log:
    /// where a checkpoint is damaged and recovery begins at the one before, it is as of that one.
    pub fn checkpoint_manager_mut(&mut self) -> &mut IncrementalCheckpointManager {
        &mut self.checkpoints
    }

    /// Appends source offsets and watermark to the log of core 0, so that the next checkpoint and any
    /// recovery have them.
    ///
    /// # Errors
    /// As [`super::CoreWalWriter::append_commit`].
    pub fn commit(
        &mut self,
        offsets: HashMap<String, u64>,
        watermark: Option<i64>,
    ) -> Result<(), PerCoreWalError> {
        self.wal.writer_checked(0)?.append_commit(offsets, watermark).map(drop)
    }
}

/// What a `Store` logged behind the newest checkpoint goes into the next one file by file, without the state as a whole
/// ever being there. So it is put together once before that, to be compared with the digests in the log.
fn compare_digests(
    wal: &PerCoreWalManager,
    checkpoint_dir: &Path,
    applied: &[Sequence],
) -> Result<(), PerCoreWalError> {
    let (vfs, after) = (wal.config().vfs(), |core| cut_of(applied, core));
    if !Survey::up_to(vfs, wal.base_dir(), &after, &wal.ends())?.has_stores_records(after) {
        return Ok(());
    }
    // All that the next checkpoint will have: also epochs that not every core closed.
    let wanted = Wanted::Mode(RecoveryMode::AllSynced);
    match recover_state(vfs, checkpoint_dir, wal.base_dir(), wanted, &Watch::default()) {
        Ok(_) => Ok(()),
        Err(Failure::Checkpoint(error)) => Err(checkpoint_error(error)),
        Err(Failure::Log(error)) => Err(error),
    }
}
