//! Finding the state: the newest checkpoint that is good, and the log that continues it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Detail;
use crate::ids::{CheckpointId, Epoch, Sequence, StoreId};
use crate::incremental::layout::EntryName;
use crate::incremental::retention::check_id;
use crate::incremental::{
    CheckpointReader, IncrementalCheckpointError, IncrementalCheckpointMetadata, Listing,
};
use crate::per_core_wal::PerCoreWalError;
use crate::per_core_wal::recovery::plan::{Base, Plan, Wanted};
use crate::progress::Watch;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::Vfs;

/// Where a state is, and what to replay on it. Nothing was changed to find this out.
#[derive(Debug)]
pub(crate) struct Located {
    /// The checkpoint to start from.
    pub(crate) checkpoint: Option<CheckpointReader>,
    /// What to replay.
    pub(crate) plan: Plan,
    /// Newer checkpoints that are damaged.
    pub(crate) skipped: Vec<CheckpointId>,
    /// How long the survey took.
    pub(crate) surveying: Duration,
}

impl Located {
    pub(crate) fn metadata(&self) -> Option<&IncrementalCheckpointMetadata> {
        self.checkpoint.as_ref().map(CheckpointReader::metadata)
    }

    /// Whether the log can have what the damaged checkpoints had: one without any record has nothing of it.
    fn covers_what_was_skipped(&self) -> bool {
        self.skipped.is_empty() || self.plan.survey.has_records() || sabotaged(Sabotage::SkippedUncovered)
    }

    /// A checkpoint that was made without a log is what a `Store`'s log was begun on, or it was made beside it, and then says
    /// nothing about it: the epoch that the log was begun on instead.
    fn was_made_beside(&self) -> Option<Epoch> {
        let base =
            self.plan.base.as_ref().filter(|base| base.log.is_none() && self.plan.survey.has_records())?;
        self.plan.begun_on().filter(|begun_on| *begun_on != base.epoch)
    }

    /// Bytes of the checkpoint's blocks: what loading reads of it.
    pub(crate) fn checkpoint_bytes(&self) -> u64 {
        self.checkpoint.as_ref().map_or(0, CheckpointReader::block_bytes)
    }
}

/// Why a state was not found or not loaded.
#[derive(Debug)]
pub(crate) enum Failure {
    Checkpoint(IncrementalCheckpointError),
    Log(PerCoreWalError),
}

impl From<IncrementalCheckpointError> for Failure {
    fn from(error: IncrementalCheckpointError) -> Self {
        Self::Checkpoint(error)
    }
}

impl From<PerCoreWalError> for Failure {
    fn from(error: PerCoreWalError) -> Self {
        Self::Log(error)
    }
}

/// Finds the newest state that `load` can load; before it does, it may lower the recovery point. When a checkpoint is damaged, wherever that shows, the
/// one before is tried: it is as good as the newest as long as the log reaches back to it, which the
/// plan checks. When no checkpoint will do, the error of the newest is returned.
pub(crate) fn locate<T, E>(
    vfs: &Arc<dyn Vfs>,
    checkpoint_dir: &Path,
    wal_dir: &Path,
    wanted: Wanted,
    watch: &Watch,
    mut load: impl FnMut(&mut Located) -> Result<T, E>,
) -> Result<(Located, T), E>
where
    E: From<IncrementalCheckpointError> + From<PerCoreWalError> + IsDamagedCheckpoint,
{
    let listing = Listing::read(vfs.as_ref(), checkpoint_dir)?;
    let mut skipped = Vec::new();
    let mut first_error = None;
    for id in listing.checkpoints.iter().rev() {
        let dir = EntryName::Checkpoint(*id).path(checkpoint_dir);
        let attempt = (|| {
            let reader =
                CheckpointReader::open_watched(vfs.as_ref(), &dir, watch).map_err(|error| match error {
                    // The directory is there, so a manifest that is not is damage.
                    IncrementalCheckpointError::NotFound(d) => IncrementalCheckpointError::Corruption(d),
                    other => other,
                })?;
            check_id(&dir, *id, reader.metadata())?;
            let mut located = plan(vfs, wal_dir, wanted, Some(reader), skipped.clone(), watch)?;
            if let Some(begun_on) = located.was_made_beside() {
                return Err(made_beside(&dir, &located, begun_on).into());
            }
            if !located.covers_what_was_skipped() {
                let detail =
                    Detail::new("there is a newer checkpoint, which is damaged, and no log behind this one");
                return Err(IncrementalCheckpointError::corruption(detail.at_path(&dir)).into());
            }
            let loaded = load(&mut located)?;
            Ok((located, loaded))
        })();
        match attempt {
            Ok(found) => return Ok(found),
            Err(error) => {
                let error: E = error;
                let damaged = error.is_damaged_checkpoint();
                // Behind a damaged checkpoint, whatever an older one fails with matters less.
                let first = first_error.unwrap_or(error);
                if !damaged {
                    return Err(first);
                }
                tracing::warn!(checkpoint = %id, "the checkpoint is damaged; trying the one before");
                first_error = Some(first);
                skipped.push(*id);
            }
        }
    }
    let attempt =
        plan(vfs, wal_dir, wanted, None, skipped, watch).map_err(E::from).and_then(|mut located| {
            if !located.covers_what_was_skipped() {
                return Ok(None);
            }
            let loaded = load(&mut located)?;
            Ok(Some((located, loaded)))
        });
    match (attempt, first_error) {
        (Ok(Some(found)), _) => Ok(found),
        (_, Some(first)) => Err(first),
        (Err(error), None) => Err(error),
        // Nothing was skipped, so there is nothing that would have to be covered.
        (Ok(None), None) => Err(IncrementalCheckpointError::corruption(
            Detail::new("there is no checkpoint").at_path(checkpoint_dir),
        )
        .into()),
    }
}

/// No damage, so that no other is taken in its place: whoever made it wanted it for something.
fn made_beside(dir: &Path, located: &Located, begun_on: Epoch) -> IncrementalCheckpointError {
    let epoch = located.plan.base.as_ref().map_or(Epoch::ZERO, |base| base.epoch);
    let what = format!(
        "this checkpoint was made without the store's log, which was begun on epoch {begun_on}: it does not say which \
         records it has"
    );
    IncrementalCheckpointError::invalid(
        Detail::new(what)
            .at_path(dir)
            .in_epoch(epoch)
            .remedy("Move its directory away, and the state is what the log says; nothing was changed."),
    )
}

/// Is the error about the contents of a checkpoint, so that another one may do?
pub(crate) trait IsDamagedCheckpoint {
    fn is_damaged_checkpoint(&self) -> bool;
}

impl IsDamagedCheckpoint for Failure {
    fn is_damaged_checkpoint(&self) -> bool {
        matches!(self, Self::Checkpoint(error) if error.is_corruption())
    }
}

fn plan(
    vfs: &Arc<dyn Vfs>,
    wal_dir: &Path,
    wanted: Wanted,
    checkpoint: Option<CheckpointReader>,
    skipped: Vec<CheckpointId>,
    watch: &Watch,
) -> Result<Located, PerCoreWalError> {
    let base = checkpoint.as_ref().map(|reader| base_of(reader.metadata()));
    watch.surveying();
    let started = Instant::now();
    let plan = Plan::make(vfs, wal_dir, base, wanted, watch)?;
    Ok(Located { checkpoint, plan, skipped, surveying: started.elapsed() })
}

fn base_of(metadata: &IncrementalCheckpointMetadata) -> Base {
    Base {
        epoch: Epoch(metadata.epoch),
        log: metadata.bound_to_wal.then_some(StoreId(metadata.store_id)),
        cuts: metadata.wal_cuts.iter().map(|cut| Sequence(cut.sequence)).collect(),
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::incremental::{CheckpointConfig, IncrementalCheckpointManager};
    use crate::per_core_wal::{PerCoreWalConfig, PerCoreWalManager};
    use crate::vfs::sim::{Duration as For, Fault, SimDisk};

    /// Two checkpoints and no log.
    fn two_checkpoints() -> SimDisk {
        let disk = SimDisk::new(1);
        let config = CheckpointConfig::new(Path::new("/c"));
        let mut manager = IncrementalCheckpointManager::with_vfs(config, Arc::new(disk.clone())).unwrap();
        for n in 1..=2_u8 {
            manager.put(&[n], &[n; 100]).unwrap();
            manager.create_checkpoint(0).unwrap();
        }
        drop(manager);
        disk.snapshot().restart()
    }

    fn located(disk: &SimDisk) -> Result<Located, Failure> {
        let vfs: Arc<dyn Vfs> = Arc::new(disk.clone());
        let (checkpoint_dir, wal_dir) = (Path::new("/c"), Path::new("/wal"));
        let load = |_: &mut Located| Ok(());
        locate(&vfs, checkpoint_dir, wal_dir, Wanted::Acknowledged, &Watch::default(), load)
            .map(|(located, ())| located)
    }

    fn damage(disk: &SimDisk, id: u64) {
        let dir = EntryName::Checkpoint(CheckpointId(id)).path(Path::new("/c"));
        disk.flip_bit(dir.join("metadata.json"), 99).unwrap();
    }

    /// A log with a record.
    fn with_log(disk: SimDisk) -> SimDisk {
        let config = PerCoreWalConfig::new(Path::new("/wal"), 1).with_vfs(Arc::new(disk.clone()));
        let mut log = PerCoreWalManager::new(config).unwrap();
        log.writer(0).append_put(b"key", b"value").unwrap();
        log.sync_all().unwrap();
        drop(log);
        disk.snapshot().restart()
    }

    /// The state of the first checkpoint came back, or none at all, and nothing was an error: what the second one had
    /// was gone. Found by reading.
    #[test]
    fn without_a_log_no_older_checkpoint_is_taken_for_a_damaged_one() {
        for both in [false, true] {
            let disk = two_checkpoints();
            damage(&disk, 2);
            if both {
                damage(&disk, 1);
            }
            match located(&disk) {
                Err(Failure::Checkpoint(error)) => {
                    let path = error.detail().path().map(Path::to_path_buf);
                    assert_eq!(path, Some("/c/checkpoint_0000000000000002/metadata.json".into()), "{error}");
                    assert!(error.is_corruption(), "{error}");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn behind_a_damaged_checkpoint_the_one_before_is_taken_and_named() {
        let disk = with_log(two_checkpoints());
        let newest = located(&disk).unwrap();
        assert_eq!((newest.metadata().map(|found| found.id), newest.skipped.as_slice()), (Some(2), &[][..]));
        assert!(newest.checkpoint_bytes() > 200, "{}", newest.checkpoint_bytes());
        damage(&disk, 2);
        let before = located(&disk).unwrap();
        assert_eq!(before.metadata().map(|found| found.id), Some(1));
        assert_eq!(before.skipped, [CheckpointId(2)]);
        assert!((100..200).contains(&before.checkpoint_bytes()), "{}", before.checkpoint_bytes());
        damage(&disk, 1);
        let none = located(&disk).unwrap();
        assert!(none.checkpoint.is_none() && none.checkpoint_bytes() == 0);
        assert_eq!(none.skipped, [CheckpointId(2), CheckpointId(1)]);
    }

    /// A device that fails for a moment must not bring an old state back.
    #[test]
    fn a_checkpoint_that_cannot_be_read_is_not_passed_over() {
        let mut failed = 0;
        for read in 1..40 {
            let disk = two_checkpoints();
            disk.number_reads(true);
            disk.fail_op(disk.ops() + read, Fault::Eio, For::Once);
            match located(&disk) {
                Ok(located) => assert_eq!(located.metadata().map(|found| found.id), Some(2), "read {read}"),
                Err(Failure::Checkpoint(error)) => {
                    assert!(matches!(error, IncrementalCheckpointError::Io(_)), "read {read}: {error}");
                    failed += 1;
                }
                Err(Failure::Log(error)) => assert!(matches!(error, PerCoreWalError::Io(_)), "{error}"),
            }
        }
        assert!(failed > 3, "{failed}");
    }
}
