//! From the log into the next checkpoint: the records between two checkpoints, applied to the
//! checkpoint manager.
//!
//! This is `wal.replay(last checkpoint ..) ─▶ apply_batch`, the one way in which changes get into a
//! checkpoint, whether a `Store`, a coordinator or a re-sharding recovery makes it.

use std::path::Path;
use std::sync::Arc;

use super::error::PerCoreWalError;
use super::merge::MergedRecords;
use super::recovery::cursor::{CoreCursor, Reached, Stretch};
use super::recovery::plan::Span;
use super::recovery::survey::{LogEnd, Survey};
use super::recovery::tail::Place;
use crate::format::digest::StateDigest;
use crate::format::record::Record;
use crate::format::segment_header::{SegmentHeader, WalMode};
use crate::ids::{CoreId, Epoch, Incarnation, Sequence};
use crate::incremental::lanes::Lane;
use crate::incremental::{CoreOffsets, IncrementalCheckpointError, IncrementalCheckpointManager};
use crate::progress::Watch;
use crate::vfs::Vfs;

/// What applying a log came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Applied {
    /// Puts and deletes.
    pub(crate) changes: u64,
    /// Per core, the sequence of the last record that is in the manager now.
    pub(crate) cuts: Vec<Sequence>,
    /// Per core, its last barrier: the epoch and the digest that the writer knew.
    pub(crate) barriers: Vec<(Epoch, Option<StateDigest>)>,
    /// Per core, how far its log was read.
    pub(crate) reached: Vec<Reached>,
}

impl Applied {
    /// The digest of every core at the end of `epoch`, if every core's last barrier has one.
    pub(crate) fn digests(&self) -> Option<Vec<StateDigest>> {
        self.barriers.iter().map(|(_, digest)| *digest).collect()
    }

    /// Bytes of the frames that were applied.
    pub(crate) fn bytes(&self) -> u64 {
        self.reached.iter().map(|core| core.bytes).sum()
    }

    /// Did this core close `epoch`? One that has frames of later epochs has closed all before.
    pub(crate) fn closed(&self, core: CoreId, epoch: Epoch) -> bool {
        self.barriers.get(core.index()).is_some_and(|(last, _)| *last >= epoch)
            || self.reached.get(core.index()).is_some_and(|reached| reached.beyond)
    }

    /// Adds what was read of a core.
    fn note(&mut self, core: CoreId, followed: &Followed) {
        let len = core.index() + 1;
        self.reached.resize_with(self.reached.len().max(len), Reached::default);
        if let Some(reached) = self.reached.get_mut(core.index()) {
            reached.place = followed.reached.place.or(reached.place);
            reached.bytes += followed.reached.bytes;
            reached.beyond |= followed.reached.beyond;
        }
        if followed.last == Sequence::ZERO {
            return;
        }
        self.cuts.resize(self.cuts.len().max(len), Sequence::ZERO);
        self.barriers.resize(self.barriers.len().max(len), (Epoch::ZERO, None));
        if let Some(cut) = self.cuts.get_mut(core.index()) {
            *cut = (*cut).max(followed.last);
        }
        if let Some(barrier) = self.barriers.get_mut(core.index()) {
            *barrier = followed.barrier.unwrap_or(*barrier);
        }
    }
}

/// What one core's records came to.
#[derive(Debug, Default)]
struct Followed {
    changes: u64,
    last: Sequence,
    barrier: Option<(Epoch, Option<StateDigest>)>,
    reached: Reached,
    /// Its source offsets and watermark after the last commit.
    offsets: CoreOffsets,
}

impl Followed {
    /// Reads a core's records to the end, and hands each put and delete to `apply`.
    fn of(
        cursor: CoreCursor,
        mode: WalMode,
        offsets: CoreOffsets,
        mut apply: impl FnMut(&[u8], Option<&[u8]>) -> Result<(), IncrementalCheckpointError>,
    ) -> Result<Self, PerCoreWalError> {
        let mut all = Self { offsets, ..Self::default() };
        let replayed = cursor.replay(|record, at| {
            all.last = all.last.max(Sequence(at.sequence));
            match record {
                Record::Put { key, value } => apply(key, Some(value)).map_err(checkpoint_error)?,
                Record::Delete { key } => apply(key, None).map_err(checkpoint_error)?,
                Record::Barrier { digest, .. } => all.barrier = Some((Epoch(at.epoch), *digest)),
                Record::Commit(body) => {
                    if let Some(commit) = body.decode() {
                        all.offsets.commit(commit.offsets, commit.watermark, mode);
                    }
                }
                _ => {}
            }
            Ok(())
        })?;
        (all.changes, all.reached) = (replayed.changes, replayed.reached);
        Ok(all)
    }

    /// Adds it to what is known of the core.
    fn note(self, core: CoreId, applied: &mut Applied, offsets: &mut Vec<CoreOffsets>) {
        applied.note(core, &self);
        if self.last == Sequence::ZERO {
            return;
        }
        if offsets.len() <= core.index() {
            offsets.resize_with(core.index() + 1, CoreOffsets::default);
        }
        if let Some(of_core) = offsets.get_mut(core.index()) {
            *of_core = self.offsets;
        }
    }
}

/// Applies what `span` lets through of the segments of one incarnation to the manager, whose layout
/// is that incarnation's. Several cores at a time, where the outside world allows that.
pub(crate) fn apply_incarnation(
    vfs: &Arc<dyn Vfs>,
    survey: &Survey,
    incarnation: Incarnation,
    span: impl Fn(CoreId) -> Span + Sync,
    manager: &mut IncrementalCheckpointManager,
    applied: &mut Applied,
    watch: &Watch,
) -> Result<(), PerCoreWalError> {
    let cores: Vec<_> = survey.cores.iter().map(|log| log.core).collect();
    let cursor = |core| CoreCursor::of_incarnation(vfs, survey, core, span(core), incarnation).watched(watch);
    apply_cores(survey.header_of(incarnation), &cores, cursor, manager, applied)
}

/// Applies what was appended to a growing log since these places, one per core, up to `ends` and to the
/// end of the epoch `up_to`.
pub(crate) fn apply_tail(
    vfs: &Arc<dyn Vfs>,
    dir: &Path,
    places: &[Place],
    ends: &[LogEnd],
    up_to: Epoch,
    manager: &mut IncrementalCheckpointManager,
    applied: &mut Applied,
) -> Result<(), PerCoreWalError> {
    let stretches = places.iter().zip(ends).map(|(place, end)| place.up_to(vfs, dir, *end));
    let stretches: Vec<Vec<Stretch>> = stretches.collect::<Result<_, _>>()?;
    let cores: Vec<_> = (0..).map(CoreId).take(stretches.len()).collect();
    let cursor = |core: CoreId| {
        let after = places.get(core.index()).map_or(Sequence::ZERO, |place| place.sequence);
        let stretches = stretches.get(core.index()).into_iter().flatten().cloned();
        CoreCursor::over(vfs, stretches, Span { after, from_epoch: Epoch::ZERO, up_to })
    };
    let header = places.first().map(|place| &place.segment);
    apply_cores(header, &cores, cursor, manager, applied)
}

/// Applies what the cursors of one incarnation's cores come upon; `header` is that of one of its segments.
fn apply_cores(
    header: Option<&SegmentHeader>,
    cores: &[CoreId],
    cursor: impl Fn(CoreId) -> CoreCursor + Sync,
    manager: &mut IncrementalCheckpointManager,
    applied: &mut Applied,
) -> Result<(), PerCoreWalError> {
    let offsets_before = manager.core_offsets().to_vec();
    let mut offsets = offsets_before.clone();
    let mode = header.map_or(WalMode::Plain, |header| header.mode);
    // A coordinator's manager has one lane, whatever log it is given.
    let has_lanes = header.is_some_and(|header| usize::from(header.core_count) == manager.core_count());
    let before = |core: CoreId| offsets_before.get(core.index()).cloned().unwrap_or_default();
    if mode == WalMode::Epochs && has_lanes {
        let follow = |lane: &mut Lane<'_, '_>| match lane.core() {
            core if cores.contains(&core) => {
                Followed::of(cursor(core), mode, before(core), |key, value| lane.apply(key, value))
            }
            _ => Ok(Followed::default()),
        };
        let followed = manager.with_lanes(follow).map_err(checkpoint_error)??;
        for (core, followed) in (0..).map(CoreId).zip(followed) {
            applied.changes += followed.changes;
            followed.note(core, applied, &mut offsets);
        }
    } else {
        for &core in cores {
            Followed::of(cursor(core), mode, before(core), |_, _| Ok(()))?.note(core, applied, &mut offsets);
        }
        applied.changes += apply_merged(cores.iter().copied().map(cursor).collect(), manager)?;
    }
    manager.set_core_offsets(offsets).map_err(checkpoint_error)
}

/// Two low-level writers may write the same key; the total order decides between them.
fn apply_merged(
    cursors: Vec<CoreCursor>,
    manager: &mut IncrementalCheckpointManager,
) -> Result<u64, PerCoreWalError> {
    let mut changes = 0;
    let mut merged = MergedRecords::new(cursors);
    while merged.advance()? {
        let (key, value, at) = match merged.current() {
            Some((Record::Put { key, value }, at)) => (key, Some(value), at),
            Some((Record::Delete { key }, at)) => (key, None, at),
            _ => continue,
        };
        let core = CoreId(u16::try_from(at.core_id % manager.core_count()).unwrap_or(0));
        changes += 1;
        manager.apply_unrouted(core, key, value).map_err(checkpoint_error)?;
    }
    Ok(changes)
}

pub(crate) fn checkpoint_error(error: IncrementalCheckpointError) -> PerCoreWalError {
    match error {
        IncrementalCheckpointError::Io(detail) => PerCoreWalError::Io(detail),
        IncrementalCheckpointError::Poisoned(detail) => PerCoreWalError::Poisoned(detail),
        other => PerCoreWalError::Checkpoint(Box::new(other.detail().clone())),
    }
}
