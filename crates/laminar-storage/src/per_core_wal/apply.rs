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
use crate::format::record::{Commit, Record};
use crate::format::segment_header::WalMode;
use crate::ids::{CoreId, Epoch, Incarnation, Sequence};
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

/// Applies what `span` lets through of the segments of one incarnation to the manager, whose layout
/// is that incarnation's.
pub(crate) fn apply_incarnation(
    vfs: &Arc<dyn Vfs>,
    survey: &Survey,
    incarnation: Incarnation,
    span: impl Fn(CoreId) -> Span,
    manager: &mut IncrementalCheckpointManager,
    applied: &mut Applied,
) -> Result<(), PerCoreWalError> {
    let cursor =
        |log: &CoreLog| CoreCursor::of_incarnation(vfs, survey, log.core, span(log.core), incarnation);
    let mut offsets = manager.core_offsets().to_vec();
    let mode = survey.header_of(incarnation).map(|header| header.mode);
    let mut note =
        |core: CoreId, record: &Record<'_>, epoch: Epoch, sequence: Sequence, applied: &mut Applied| {
            let (cut, barrier) = applied.at(core);
            *cut = (*cut).max(sequence);
            match record {
                Record::Barrier { digest, .. } => *barrier = (epoch, *digest),
                Record::Commit(body) => {
                    if let Some(commit) = body.decode() {
                        commit_to(&mut offsets, core, commit, mode.unwrap_or(WalMode::Plain));
                    }
                }
                _ => {}
            }
        };
    if mode == Some(WalMode::Epochs) {
        for log in &survey.cores {
            cursor(log).replay(|record, at| {
                let change = match record {
                    Record::Put { key, value } => Some((*key, Some(*value))),
                    Record::Delete { key } => Some((*key, None)),
                    _ => None,
                };
                if let Some((key, value)) = change {
                    applied.changes += 1;
                    manager.apply(log.core, key, value).map_err(checkpoint_error)?;
                }
                note(log.core, record, Epoch(at.epoch), Sequence(at.sequence), applied);
                Ok(())
            })?;
        }
    } else {
        // Two low-level writers may write the same key; the total order decides between them.
        for log in &survey.cores {
            cursor(log).replay(|record, at| {
                note(log.core, record, Epoch(at.epoch), Sequence(at.sequence), applied);
                Ok(())
            })?;
        }
        let merged = MergedEntries::new(survey.cores.iter().map(cursor).collect());
        for entry in merged {
            let entry = entry?;
            let core = CoreId(u16::try_from(entry.core_id % manager.core_count()).unwrap_or(0));
            let (key, value) = match &entry.operation {
                WalOperation::Put { key, value } => (key, Some(value.as_slice())),
                WalOperation::Delete { key } => (key, None),
                _ => continue,
            };
            applied.changes += 1;
            manager.apply_unrouted(core, key, value).map_err(checkpoint_error)?;
        }
    }
    manager.set_core_offsets(offsets).map_err(checkpoint_error)
}

fn commit_to(all: &mut Vec<CoreOffsets>, core: CoreId, commit: Commit, mode: WalMode) {
    if all.len() <= core.index() {
        all.resize_with(core.index() + 1, CoreOffsets::default);
    }
    if let Some(of_core) = all.get_mut(core.index()) {
        of_core.commit(commit.offsets, commit.watermark, mode);
    }
}

pub(crate) fn checkpoint_error(error: IncrementalCheckpointError) -> PerCoreWalError {
    match error {
        IncrementalCheckpointError::Io(detail) => PerCoreWalError::Io(detail),
        IncrementalCheckpointError::Poisoned(detail) => PerCoreWalError::Poisoned(detail),
        other => PerCoreWalError::Checkpoint(Box::new(other.detail().clone())),
    }
}
