//! Where recovery lands, and which records it replays.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::survey::Survey;
use crate::error::Detail;
use crate::format::segment_header::{SegmentHeader, WalMode};
use crate::ids::{CoreId, Epoch, Sequence, StoreId};
use crate::per_core_wal::error::PerCoreWalError;
use crate::progress::Watch;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::Vfs;

/// Which records count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecoveryMode {
    /// Only epochs that were closed and durable on all cores. What `Store` uses.
    CompleteEpochs,
    /// Every valid record, whether or not its epoch was closed: the plain view of the log.
    #[default]
    AllSynced,
}

/// How to decide which records count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// What the caller says.
    Mode(RecoveryMode),
    /// What whoever wrote the log acknowledged: complete epochs for a `Store`, every synced record
    /// for the low-level functions.
    Acknowledged,
}

/// The checkpoint that recovery starts from.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    pub(crate) epoch: Epoch,
    /// The log it was made from; `None` for a checkpoint that was made without one.
    pub(crate) log: Option<StoreId>,
    /// Per core, the last sequence it contains; cores beyond the list use the largest.
    pub(crate) cuts: Vec<Sequence>,
}

impl Base {
    /// The largest sequence that it says to contain.
    pub(crate) fn last_covered(&self) -> Sequence {
        self.cuts.iter().max().copied().filter(|_| self.log.is_some()).unwrap_or(Sequence::ZERO)
    }

    /// Every record of `core` up to this sequence is in the checkpoint.
    pub(crate) fn cut(&self, core: CoreId) -> Sequence {
        if self.log.is_none() {
            return Sequence::ZERO;
        }
        cut_of(&self.cuts, core)
    }
}

/// The cut of a core: every record up to it is in the checkpoint. Cores beyond the list belong to an
/// earlier layout, of which everything lies below the largest cut.
pub(crate) fn cut_of(cuts: &[Sequence], core: CoreId) -> Sequence {
    let largest = || cuts.iter().max().copied().unwrap_or(Sequence::ZERO);
    cuts.get(core.index()).copied().unwrap_or_else(largest)
}

/// Which records of a core to replay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Only records with a larger sequence.
    pub(crate) after: Sequence,
    /// Only epochs from here on.
    pub(crate) from_epoch: Epoch,
    /// Only epochs up to here.
    pub(crate) up_to: Epoch,
}

/// The decision of recovery, made before anything is replayed or changed.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) survey: Survey,
    pub(crate) base: Option<Base>,
    pub(crate) mode: RecoveryMode,
    /// The epoch that recovery lands on: all of it and nothing after it counts (I1).
    pub(crate) point: Epoch,
}

impl Plan {
    /// Surveys the log in `wal_dir` as far as `base` does not cover it, and decides.
    pub(crate) fn make(
        vfs: &Arc<dyn Vfs>,
        wal_dir: &Path,
        base: Option<Base>,
        wanted: Wanted,
        watch: &Watch,
    ) -> Result<Self, PerCoreWalError> {
        let covered = |core| base.as_ref().map_or(Sequence::ZERO, |base| base.cut(core));
        let survey = Survey::watched(vfs, wal_dir, &covered, &[], watch)?;
        let mode = match wanted {
            Wanted::Mode(mode) => mode,
            Wanted::Acknowledged if survey.mode() == Some(WalMode::Plain) => RecoveryMode::AllSynced,
            Wanted::Acknowledged => RecoveryMode::CompleteEpochs,
        };
        let mut plan = Self { survey, base, mode, point: Epoch::ZERO };
        plan.check_identity(wal_dir)?;
        plan.check_beginning(wal_dir)?;
        plan.check_coverage(wal_dir)?;
        plan.check_departed()?;
        plan.point = plan.find_point(wal_dir)?;
        Ok(plan)
    }

    /// A core that a later layout does not have has no successor that says how long its log was. The
    /// later openings say up to which epoch it had to reach; without a checkpoint from after that, it must.
    fn check_departed(&self) -> Result<(), PerCoreWalError> {
        let covered = self.base.as_ref().map_or(Epoch::ZERO, |base| base.epoch);
        for log in self.survey.cores.iter().filter(|log| log.core.0 >= self.survey.core_count()) {
            let Some(last) = log.segments.last() else { continue };
            let needed = self.survey.void_above(last.header.incarnation);
            // What its first segment was opened with did not come from this log.
            let opened_with = log.segments.iter().map(|segment| segment.header.void_above).max();
            let known = log.sealed_epoch.max(opened_with.unwrap_or_default());
            if needed != Epoch::MAX && covered < needed && known < needed {
                return Err(PerCoreWalError::corrupted(
                    Detail::new(format!(
                        "this core's log ends with epoch {known}, but the store was opened with another number \
                         of cores at epoch {needed}"
                    ))
                    .at_path(&last.path)
                    .on_core(log.core)
                    .in_epoch(needed)
                    .remedy("Restore the checkpoint made then, or this file; nothing was changed."),
                ));
            }
        }
        self.check_left_behind(covered)
    }

    /// Nor does it say anything when all of its log is gone, as it is once a checkpoint has it. What the other cores wrote
    /// beside it is only half of that opening then.
    fn check_left_behind(&self, covered: Epoch) -> Result<(), PerCoreWalError> {
        // Also those that a checkpoint covers on the cores that are there: what the missing one wrote may lie behind it.
        let behind = self.survey.cores.iter().filter(|log| log.last_sequence > self.span(log.core).after);
        let used = behind.flat_map(|log| &log.segments).filter(|segment| segment.records > 0);
        let incarnations: BTreeSet<_> = used.map(|segment| segment.header.incarnation).collect();
        for incarnation in incarnations {
            let needed = self.survey.void_above(incarnation);
            let cores = self.survey.header_of(incarnation).map_or(0, |header| header.core_count);
            if needed == Epoch::MAX || covered >= needed {
                continue;
            }
            let gone = |core: &CoreId| self.survey.core(*core).is_none_or(|log| log.segments.is_empty());
            if let Some(core) = (self.survey.core_count()..cores).map(CoreId).find(gone) {
                let what = format!(
                    "this core's log is gone, but the store was opened with another number of cores at epoch {needed}, and \
                     there is no checkpoint from then"
                );
                return Err(PerCoreWalError::SegmentNotFound(Box::new(
                    Detail::new(what)
                        .on_core(core)
                        .in_epoch(needed)
                        .remedy("Restore the newest checkpoint; nothing was changed."),
                )));
            }
        }
        Ok(())
    }

    /// Which records of `core` to replay.
    pub(crate) fn span(&self, core: CoreId) -> Span {
        let up_to = match self.mode {
            RecoveryMode::CompleteEpochs => self.point,
            RecoveryMode::AllSynced => Epoch::MAX,
        };
        match &self.base {
            None => Span { after: Sequence::ZERO, from_epoch: Epoch::ZERO, up_to },
            // Replaying the checkpoint's own epoch again changes nothing; leaving it out could lose
            // what was written in it after the checkpoint.
            Some(base) if base.log.is_none() => Span { after: Sequence::ZERO, from_epoch: base.epoch, up_to },
            Some(base) if sabotaged(Sabotage::ReplaySkipsOne) => {
                Span { after: base.cut(core).next(), from_epoch: Epoch::ZERO, up_to }
            }
            Some(base) => Span { after: base.cut(core), from_epoch: Epoch::ZERO, up_to },
        }
    }

    /// A checkpoint made from a log needs that very log.
    fn check_identity(&self, wal_dir: &Path) -> Result<(), PerCoreWalError> {
        let Some(expected) = self.base.as_ref().and_then(|base| base.log) else { return Ok(()) };
        match self.survey.store_id {
            Some(found) if found == expected => Ok(()),
            Some(found) => Err(PerCoreWalError::corrupted(
                Detail::new(format!(
                    "the checkpoint was made from log {:016x}, this is log {:016x}",
                    expected.0, found.0
                ))
                .at_path(wal_dir)
                .remedy("Put the log and the checkpoints of the same store together; nothing was changed."),
            )),
            None => Err(PerCoreWalError::SegmentNotFound(Box::new(
                Detail::new("the checkpoint was made from a log, and there is none here")
                    .at_path(wal_dir)
                    .remedy(
                        "Restore the log directory; without it changes after the checkpoint would be lost.",
                    ),
            ))),
        }
    }

    /// The epoch of the checkpoint that a `Store`'s log was begun on, zero for none; `None` where the log does not reach
    /// back so far, or somebody else wrote its beginning.
    pub(crate) fn begun_on(&self) -> Option<Epoch> {
        let segments = self.survey.cores.iter().flat_map(|log| &log.segments).map(|segment| &segment.header);
        // Openings that took no record tell it on, and the last of them counts: the log has nothing of what they were
        // opened with.
        let unused = segments
            .filter(|header| header.mode == WalMode::Epochs && header.last_sequence == Sequence::ZERO);
        unused.map(|header| header.void_above).max()
    }

    /// Header of the oldest segment of the oldest incarnation, of any core.
    fn oldest(&self) -> Option<&SegmentHeader> {
        let oldest = self.survey.cores.iter().filter_map(|log| log.segments.first());
        oldest.map(|segment| &segment.header).min_by_key(|header| header.incarnation)
    }

    /// A log that was begun on a checkpoint made without it, as a fork is, has no record of what was there
    /// before. Its first incarnation says which epoch that was; without such a checkpoint, the beginning of
    /// the log is not that of the state.
    fn check_beginning(&self, wal_dir: &Path) -> Result<(), PerCoreWalError> {
        let known = self.base.as_ref().map_or(Epoch::ZERO, |base| base.epoch);
        let Some(first) = self.oldest() else { return Ok(()) };
        let begins = first.mode == WalMode::Epochs && !first.previous.exists();
        let begun_on = begins.then_some(first.void_above).max(self.begun_on()).unwrap_or_default();
        if begun_on <= known || sabotaged(Sabotage::ForkWithoutSavepoint) {
            return Ok(());
        }
        Err(PerCoreWalError::SegmentNotFound(Box::new(
            Detail::new(format!("this log was begun on a checkpoint of epoch {begun_on}, which is not here"))
                .at_path(wal_dir)
                .on_core(first.core)
                .in_epoch(begun_on)
                .remedy("Restore the missing checkpoint; nothing was changed."),
        )))
    }

    /// Every core's log must reach back to the checkpoint, or to its beginning.
    fn check_coverage(&self, wal_dir: &Path) -> Result<(), PerCoreWalError> {
        // Those of the log's layout. A checkpoint may be laid out for any number of cores.
        for core in (0..self.survey.core_count()).map(CoreId) {
            let missing = |what: String, epoch: Epoch| {
                Err(PerCoreWalError::SegmentNotFound(Box::new(
                    Detail::new(what)
                        .at_path(wal_dir)
                        .on_core(core)
                        .in_epoch(epoch)
                        .remedy("Restore the missing checkpoint or segment; nothing was changed."),
                )))
            };
            let Some(oldest) = self.survey.core(core).and_then(|log| log.segments.first()) else {
                // An interrupted first start leaves some cores without a segment, and no record on any. A fork
                // that was then re-sharded has a checkpoint that is bound to the log and has nothing of it.
                let covered = self.base.as_ref().map_or(Sequence::ZERO, Base::last_covered);
                let never_used = covered == Sequence::ZERO && !self.survey.has_records();
                if self.survey.current.is_none() && never_used {
                    continue;
                }
                return missing("this core has no segment at all".to_owned(), Epoch::ZERO);
            };
            let header = &oldest.header;
            let reaches = match &self.base {
                // Nothing was ever written before: an opening that took no record left it.
                None => header.last_sequence == Sequence::ZERO,
                Some(base) if base.log.is_none() => header.last_epoch <= base.epoch,
                Some(base) => header.last_sequence <= base.cut(core),
            };
            if header.previous.exists() && !reaches {
                let from = self.base.as_ref().map_or_else(
                    || "there is no checkpoint".to_owned(),
                    |base| format!("the checkpoint ends with epoch {}", base.epoch),
                );
                return missing(
                    format!("this core's log begins after epoch {}, but {from}", header.last_epoch),
                    header.last_epoch,
                );
            }
        }
        Ok(())
    }

    fn find_point(&self, wal_dir: &Path) -> Result<Epoch, PerCoreWalError> {
        let base = self.base.as_ref().map_or(Epoch::ZERO, |base| base.epoch);
        if self.mode == RecoveryMode::AllSynced {
            let newest = self
                .survey
                .cores
                .iter()
                .flat_map(|log| &log.segments)
                .map(|segment| segment.max_epoch.min(self.survey.void_above(segment.header.incarnation)));
            return Ok(newest.max().unwrap_or(Epoch::ZERO).max(base));
        }
        let cores = (0..self.survey.core_count()).map(CoreId);
        let sealed = cores.map(|core| self.survey.core(core).map_or(Epoch::ZERO, |log| log.sealed_epoch));
        let sealed = if sabotaged(Sabotage::FastestCoreRecovers) { sealed.max() } else { sealed.min() };
        let point = sealed.unwrap_or(Epoch::ZERO).max(base);
        self.check_closed(wal_dir, point)?;
        self.check_acknowledged(wal_dir, point)?;
        Ok(point)
    }

    /// The log may not end before what was durable at the last orderly end, nor before what the
    /// checkpoint says to contain of it.
    fn check_closed(&self, wal_dir: &Path, point: Epoch) -> Result<(), PerCoreWalError> {
        let (_, last, _) = self.survey.high_water();
        let covered = self.base.as_ref().map_or(Sequence::ZERO, Base::last_covered);
        let what = if self.survey.closed > point {
            format!(
                "the store was closed at epoch {}, but its log ends with epoch {point}",
                self.survey.closed
            )
        } else if covered > last {
            format!("the checkpoint contains records up to {}, but the log ends with {}", covered.0, last.0)
        } else {
            return Ok(());
        };
        Err(PerCoreWalError::corrupted(
            Detail::new(what)
                .at_path(wal_dir)
                .in_epoch(point)
                .remedy("The end of the log was cut off or replaced by an older copy; restore it."),
        ))
    }

    /// Lands on an earlier epoch than the log reaches to: on what all parts of a whole have. What was acknowledged must be
    /// in it, and so must the checkpoint, out of which nothing can be taken again.
    pub(crate) fn land_on(&mut self, wal_dir: &Path, agreed: Epoch) -> Result<(), PerCoreWalError> {
        if agreed == self.point {
            return Ok(());
        }
        let refused = |what: String, remedy: &'static str| {
            Err(PerCoreWalError::EpochMismatch(Box::new(
                Detail::new(what).at_path(wal_dir).in_epoch(self.point).remedy(remedy),
            )))
        };
        if agreed > self.point || self.mode == RecoveryMode::AllSynced {
            return refused(
                format!("epoch {agreed} was agreed on, but this part of the whole has epoch {}", self.point),
                "Agree on an epoch that every part has, of logs that stores wrote; nothing was changed.",
            );
        }
        let base = self.base.as_ref().map_or(Epoch::ZERO, |base| base.epoch);
        if base > agreed {
            return refused(
                format!(
                    "epoch {agreed} was agreed on, but a checkpoint holds epoch {base}, which was settled"
                ),
                "Another part of the whole lost epochs that all had: restore that part. Nothing was changed here.",
            );
        }
        // At an orderly end this alone may say what was settled last.
        if self.survey.closed > agreed {
            return refused(
                format!(
                    "epoch {agreed} was agreed on, but epoch {} was settled when the store was closed",
                    self.survey.closed
                ),
                "Another part of the whole lost epochs that all had: restore that part. Nothing was changed here.",
            );
        }
        self.check_acknowledged(wal_dir, agreed)?;
        self.point = agreed;
        Ok(())
    }

    /// No core's records may testify to an acknowledged epoch that another core cannot deliver.
    fn check_acknowledged(&self, wal_dir: &Path, point: Epoch) -> Result<(), PerCoreWalError> {
        let Some(witness) = self.survey.cores.iter().max_by_key(|log| log.acknowledged) else {
            return Ok(());
        };
        if witness.acknowledged <= point {
            return Ok(());
        }
        let short = self.survey.cores.iter().min_by_key(|log| log.sealed_epoch).unwrap_or(witness);
        Err(PerCoreWalError::corrupted(
            Detail::new(format!(
                "epoch {} was acknowledged, as core {} testifies, but this core's log ends with epoch {}",
                witness.acknowledged, witness.core, short.sealed_epoch
            ))
            .at_path(wal_dir)
            .on_core(short.core)
            .in_epoch(short.sealed_epoch)
            .remedy("The end of this core's log was damaged or replaced; restore it. Nothing was changed."),
        ))
    }
}

#[cfg(test)]
pub(in crate::per_core_wal) mod tests;
