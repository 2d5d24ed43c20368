//! Checkpoints of a running store: everything that became durable since the last one is read back
//! from the log, applied, written, published, and only then is the log cut.
//!
//! Ring 0 takes no part in it, and Ring 1 only says where the logs end.
//!
//! # What is read
//! What was appended since the last checkpoint, once: the checkpointer knows the place in every core's log up
//! to which it has applied it, and reads on from there. The first checkpoint after opening also reads what
//! recovery replayed, from where the survey found it to begin. When anything there is not as it must be,
//! the log is surveyed from the newest segment back, as recovery would, and that decides: it finds the log
//! in order, or says what is wrong with it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::drain::DurableCut;
use super::error::StoreError;
use super::objective::Made;
use crate::error::Detail;
use crate::format::digest::StateDigest;
#[cfg(feature = "object-store")]
use crate::ids::Incarnation;
use crate::ids::{CheckpointId, CoreId, Epoch, Sequence, WalPosition};
use crate::incremental::{CoreDigest, IncrementalCheckpointManager, SavepointReceipt};
use crate::per_core_wal::apply::{Applied, apply_incarnation, apply_tail};
use crate::per_core_wal::recovery::plan::{Span, cut_of};
use crate::per_core_wal::recovery::survey::Survey;
use crate::per_core_wal::recovery::tail::Place;
use crate::per_core_wal::truncate::truncate_segments;
use crate::per_core_wal::{PerCoreWalError, TruncationScope};
use crate::progress::Watch;
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
    /// WAL bytes that the log was cut by because of it. Their files were removed, or kept to become later segments.
    pub wal_bytes_removed: u64,
    /// How long it took.
    pub time: Duration,
}

/// What the log was when the store was opened.
#[derive(Debug)]
pub(crate) struct Found {
    /// What recovery surveyed.
    pub(crate) survey: Survey,
    /// What the manager has of it, per core.
    pub(crate) cuts: Vec<Sequence>,
    /// The digests of the cores at the recovery point.
    pub(crate) digests: Vec<StateDigest>,
    /// The recovery point.
    pub(crate) point: Epoch,
    /// Where every core's log goes on.
    pub(crate) starts: Vec<Place>,
}

/// Makes checkpoints of one log.
#[derive(Debug)]
pub(crate) struct Checkpointer {
    manager: IncrementalCheckpointManager,
    scope: TruncationScope,
    vfs: Arc<dyn Vfs>,
    /// What the manager has of the log.
    applied: Applied,
    /// What recovery surveyed, until it is applied.
    recovered: Option<Survey>,
    /// The recovery point.
    point: Epoch,
    /// Where the logs of this incarnation begin.
    starts: Vec<Place>,
    newest: Option<CheckpointReceipt>,
    /// What the newest one was like, if it was made since the opening.
    made: Option<Made>,
    #[cfg(feature = "object-store")]
    opening: crate::backup::Opening,
}

impl Checkpointer {
    /// Goes on from a recovered state.
    pub(crate) fn new(
        manager: IncrementalCheckpointManager,
        scope: TruncationScope,
        found: Found,
    ) -> Result<Self, StoreError> {
        let Found { survey, cuts, digests, point, starts } = found;
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
        let applied = Applied { cuts, barriers, ..Applied::default() };
        #[cfg(feature = "object-store")]
        let opening = {
            let (store_id, first) = (scope.store_id, starts.first());
            let incarnation = first.map_or(Incarnation::ZERO, |start| start.segment.incarnation);
            crate::backup::Opening::new(crate::backup::BackupOwner { store_id, incarnation }, point)
        };
        Ok(Self {
            manager,
            scope,
            vfs,
            applied,
            recovered: Some(survey),
            point,
            starts,
            newest,
            made: None,
            #[cfg(feature = "object-store")]
            opening,
        })
    }

    /// The newest checkpoint.
    pub(crate) fn newest(&self) -> Option<&CheckpointReceipt> {
        self.newest.as_ref()
    }

    /// What the newest checkpoint was like, if it was made since the opening.
    pub(crate) fn made(&self) -> Option<Made> {
        self.made
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
        let applying = started.elapsed();
        let id = self.manager.next_checkpoint_id()?;
        let position = WalPosition(cut.ends.iter().map(|(_, len)| *len).sum());
        let published = self.manager.create_checkpoint_as(id, position)?;
        // The checkpoint is there whether or not the log can be cut.
        let truncation = truncate_segments(&self.scope, &published);
        let removed = truncation.as_ref().map_or(0, |truncation| truncation.bytes);
        let receipt = CheckpointReceipt {
            id,
            epoch: cut.epoch,
            changes,
            bytes_written: published.metadata().written_bytes(),
            wal_bytes_removed: removed,
            time: started.elapsed(),
        };
        tracing::debug!(?receipt, "checkpoint");
        self.made = Some(Made {
            position: self.places().iter().map(Place::position).fold(0, u64::saturating_add),
            checkpoint_bytes: published.metadata().size_bytes,
            log_bytes: self.applied.bytes(),
            applying,
            took: receipt.time,
        });
        self.newest = Some(receipt.clone());
        truncation?;
        Ok(receipt)
    }

    /// Gives up what only helps, after a failure that may have been for want of room.
    pub(crate) fn make_room(&self) {
        self.scope.policy.spares.clear();
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

    /// Opens the newest checkpoint, which there is once one was made, for a backup by this opening of the store.
    #[cfg(feature = "object-store")]
    pub(crate) fn open_newest(
        &self,
    ) -> Result<(crate::incremental::CheckpointReader, crate::backup::Opening), StoreError> {
        let dir = self.manager.newest_dir().ok_or_else(|| {
            StoreError::invalid(Detail::new("there is no checkpoint yet").remedy("Make one first."))
        })?;
        Ok((crate::incremental::CheckpointReader::open(self.vfs.as_ref(), &dir)?, self.opening()))
    }

    /// This opening of the store, as its backups know it.
    #[cfg(feature = "object-store")]
    pub(crate) fn opening(&self) -> crate::backup::Opening {
        self.opening.clone()
    }

    /// Whether a savepoint could be made at `dir`.
    pub(crate) fn check_savepoint(&self, dir: &Path) -> Result<(), StoreError> {
        self.manager.check_target(dir)?;
        Ok(())
    }

    /// Applies the log up to the durable epoch to the manager.
    fn apply(&mut self, cut: &DurableCut) -> Result<u64, StoreError> {
        let applied = match self.read_on(cut) {
            Ok(applied) if self.is_whole(&applied, cut) => applied,
            Err(error) if !error.is_corruption() => return Err(error.into()),
            odd => {
                if let Err(error) = odd {
                    tracing::warn!(%error, "the log does not go on as it was left; surveying it");
                }
                self.read_again(cut)?
            }
        };
        // Only what is applied to the end counts: after a failure the same records are applied again,
        // the offsets among them.
        self.applied = applied;
        self.recovered = None;
        self.manager.set_epoch(cut.epoch.0);
        self.manager.set_wal_cuts(&self.applied.cuts)?;
        if let Some(digests) = self.applied.digests() {
            self.manager.set_digests(digests.iter().map(CoreDigest::from).collect())?;
        }
        Ok(self.applied.changes)
    }

    /// What is known already, to add to.
    fn known(&self) -> Applied {
        let (cuts, barriers) = (self.applied.cuts.clone(), self.applied.barriers.clone());
        Applied { cuts, barriers, ..Applied::default() }
    }

    /// The place in every core's log up to which the manager has it.
    fn places(&self) -> Vec<Place> {
        let here = |(start, core): (&Place, usize)| {
            let place = self.applied.reached.get(core).and_then(|reached| reached.place);
            // What earlier incarnations have lies before the beginning of this one.
            place.filter(|place| place.segment.incarnation == start.segment.incarnation).unwrap_or(*start)
        };
        self.starts.iter().zip(0..).map(here).collect()
    }

    /// Applies what was appended since the last checkpoint, and before the first one what recovery replayed.
    fn read_on(&mut self, cut: &DurableCut) -> Result<Applied, PerCoreWalError> {
        let mut applied = self.known();
        let places = self.places();
        if let Some(survey) = &self.recovered {
            let cuts = self.applied.cuts.clone();
            let after = |core: CoreId| cut_of(&cuts, core);
            let span = |core| Span { after: after(core), from_epoch: Epoch::ZERO, up_to: self.point };
            let (manager, watch) = (&mut self.manager, &Watch::default());
            for incarnation in survey.incarnations(after) {
                apply_incarnation(&self.vfs, survey, incarnation, span, manager, &mut applied, watch)?;
            }
            // What recovery discarded lies beyond, and says nothing about what was written since.
            applied.reached.iter_mut().for_each(|reached| reached.beyond = false);
        }
        let dir = &self.scope.policy.dir;
        apply_tail(&self.vfs, dir, &places, &cut.ends, cut.epoch, &mut self.manager, &mut applied)?;
        self.keep_places(&mut applied);
        Ok(applied)
    }

    /// Surveys the log as far as no checkpoint has it, and applies what it finds.
    fn read_again(&mut self, cut: &DurableCut) -> Result<Applied, StoreError> {
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
        let mut applied = self.known();
        let span = |core| Span { after: after(core), from_epoch: Epoch::ZERO, up_to: cut.epoch };
        let (manager, watch) = (&mut self.manager, &Watch::default());
        for incarnation in survey.incarnations(after) {
            apply_incarnation(&self.vfs, &survey, incarnation, span, manager, &mut applied, watch)?;
        }
        self.keep_places(&mut applied);
        Ok(applied)
    }

    /// Did every core close the durable epoch, in what was read?
    fn is_whole(&self, applied: &Applied, cut: &DurableCut) -> bool {
        (0..self.scope.core_count).map(CoreId).all(|core| applied.closed(core, cut.epoch))
    }

    /// A core without anything new is still where it was.
    fn keep_places(&self, applied: &mut Applied) {
        let places = self.places();
        applied.reached.resize_with(applied.reached.len().max(places.len()), Default::default);
        for (reached, place) in applied.reached.iter_mut().zip(places) {
            let here = |new: &Place| new.segment.incarnation == place.segment.incarnation;
            reached.place = reached.place.filter(here).or(Some(place));
        }
    }
}
