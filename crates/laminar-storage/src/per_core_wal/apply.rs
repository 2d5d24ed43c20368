//! From the log into the next checkpoint: the records between two checkpoints, applied to the
//! checkpoint manager.
//!
//! This is `wal.replay(last checkpoint ..) ─▶ apply_batch`, the one way in which changes get into a
//! checkpoint, whether a `Store`, a coordinator or a re-sharding recovery makes it.

use std::sync::Arc;

use super::entry::WalOperation;
use super::error::PerCoreWalError;
use super::merge::MergedEntries;
use super::recovery::cursor::CoreCursor;
use super::recovery::plan::Span;
use super::recovery::survey::{CoreLog, Survey};
use crate::format::digest::StateDigest;
use crate::format::record::Record;
use crate::format::segment_header::WalMode;
use crate::ids::{CoreId, Epoch, Incarnation, Sequence};
use crate::incremental::lanes::Lane;
use crate::incremental::{CoreOffsets, IncrementalCheckpointError, IncrementalCheckpointManager};
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
}

impl Applied {
    /// The digest of every core at the end of `epoch`, if every core's last barrier has one.
    pub(crate) fn digests(&self) -> Option<Vec<StateDigest>> {
        self.barriers.iter().map(|(_, digest)| *digest).collect()
    }

    fn at(&mut self, core: CoreId) -> (&mut Sequence, &mut (Epoch, Option<StateDigest>)) {
        if self.cuts.len() <= core.index() {
            self.cuts.resize(core.index() + 1, Sequence::ZERO);
            self.barriers.resize(core.index() + 1, (Epoch::ZERO, None));
        }
        let index = core.index();
        // Both were just made long enough.
        (&mut self.cuts[index], &mut self.barriers[index])
    }
}

/// What one core's records came to.
#[derive(Debug, Default)]
struct Followed {
    changes: u64,
    last: Sequence,
    barrier: Option<(Epoch, Option<StateDigest>)>,
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
        all.changes = cursor.replay(|record, at| {
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
        Ok(all)
    }

    /// Adds it to what is known of the core.
    fn note(self, core: CoreId, applied: &mut Applied, offsets: &mut Vec<CoreOffsets>) {
        if self.last == Sequence::ZERO {
            return;
        }
        let (cut, barrier) = applied.at(core);
        *cut = (*cut).max(self.last);
        *barrier = self.barrier.unwrap_or(*barrier);
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
) -> Result<(), PerCoreWalError> {
    let cursor =
        |log: &CoreLog| CoreCursor::of_incarnation(vfs, survey, log.core, span(log.core), incarnation);
    let offsets_before = manager.core_offsets().to_vec();
    let mut offsets = offsets_before.clone();
    let header = survey.header_of(incarnation);
    let mode = header.map_or(WalMode::Plain, |header| header.mode);
    // A coordinator's manager has one lane, whatever log it is given.
    let has_lanes = header.is_some_and(|header| usize::from(header.core_count) == manager.core_count());
    let before = |core: CoreId| offsets_before.get(core.index()).cloned().unwrap_or_default();
    if mode == WalMode::Epochs && has_lanes {
        let follow = |lane: &mut Lane<'_>| match survey.core(lane.core()) {
            Some(log) => {
                Followed::of(cursor(log), mode, before(log.core), |key, value| lane.apply(key, value))
            }
            None => Ok(Followed::default()),
        };
        let followed = manager.with_lanes(follow).map_err(checkpoint_error)??;
        for (core, followed) in (0..).map(CoreId).zip(followed) {
            applied.changes += followed.changes;
            followed.note(core, applied, &mut offsets);
        }
    } else {
        for log in &survey.cores {
            Followed::of(cursor(log), mode, before(log.core), |_, _| Ok(()))?.note(
                log.core,
                applied,
                &mut offsets,
            );
        }
        applied.changes += apply_merged(survey.cores.iter().map(cursor).collect(), manager)?;
    }
    manager.set_core_offsets(offsets).map_err(checkpoint_error)
}

/// Two low-level writers may write the same key; the total order decides between them.
fn apply_merged(
    cursors: Vec<CoreCursor>,
    manager: &mut IncrementalCheckpointManager,
) -> Result<u64, PerCoreWalError> {
    let mut changes = 0;
    for entry in MergedEntries::new(cursors) {
        let entry = entry?;
        let core = CoreId(u16::try_from(entry.core_id % manager.core_count()).unwrap_or(0));
        let (key, value) = match &entry.operation {
            WalOperation::Put { key, value } => (key, Some(value.as_slice())),
            WalOperation::Delete { key } => (key, None),
            _ => continue,
        };
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
