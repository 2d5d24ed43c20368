//! The first pass over a log: finds every segment that counts, checks every byte of it, and learns
//! where each core's log ends. Changes nothing. Each core is walked from its newest segment back along
//! the chain of predecessors, as far as needed: to the first segment that a checkpoint covers completely.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::identity::{CURRENT, read_closed, read_current, read_synced};
use super::walk::Walk;
use crate::error::Detail;
use crate::format::current::Current;
use crate::format::segment_header::{SegmentHeader, WalMode};
use crate::ids::{CoreId, Epoch, Incarnation, SegmentNumber, Sequence, StoreId, TimestampNs};
use crate::parallel::in_parallel;
use crate::per_core_wal::error::PerCoreWalError;
use crate::per_core_wal::reader::read_header;
use crate::per_core_wal::segment::{SegmentName, list_segments};
use crate::progress::Watch;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{FileKind, Vfs, dir_kind};

/// One segment that counts.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// Offset of the first frame that the checkpoint does not cover.
    pub(crate) start: u64,
    /// Bytes that hold its header and its frames.
    pub(crate) len: u64,
    pub(crate) file_len: u64,
    /// Bytes that a later frame testifies to have been synced.
    pub(crate) proven: u64,
    pub(crate) records: u64,
    pub(crate) min_epoch: Epoch,
    pub(crate) max_epoch: Epoch,
    /// Of its last record; what its header says of those before it when it has none.
    pub(crate) last_sequence: Sequence,
    /// The case of the truth table, and how long the torn end is: up to the end of the file, where nothing else follows.
    pub(crate) case: char,
    pub(crate) dropped: u64,
    /// The file ends within a frame: more bytes could make a whole one of what was dropped.
    pub(crate) ends_in_frame: bool,
}

impl Segment {
    /// Whether it has records behind this one. Its file may stand among those of later ones that a checkpoint does not
    /// cover, and be covered itself.
    pub(crate) fn has_records_after(&self, after: Sequence) -> bool {
        self.records > 0 && self.last_sequence > after
    }
}

/// One core's log.
#[derive(Clone, Debug)]
pub(crate) struct CoreLog {
    pub(crate) core: CoreId,
    /// A chain without gaps, oldest first. Never empty.
    pub(crate) segments: Vec<Segment>,
    /// Where the log ends, everything discarded included, so that nothing is used twice.
    pub(crate) last_sequence: Sequence,
    pub(crate) last_timestamp: TimestampNs,
    pub(crate) last_epoch: Epoch,
    /// Last epoch closed on this core.
    pub(crate) sealed_epoch: Epoch,
    /// Epochs up to this one were acknowledged, as records of this core testify.
    pub(crate) acknowledged: Epoch,
    /// How long everything behind its end was searched.
    pub(crate) searching: Duration,
}

impl CoreLog {
    /// Bytes of the log up to its end, over all its segments.
    pub(crate) fn position(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.header.position_at(segment.len))
    }
}

/// Everything the first pass learned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    pub(crate) store_id: Option<StoreId>,
    pub(crate) current: Option<Current>,
    pub(crate) cores: Vec<CoreLog>,
    /// Last epoch acknowledged when the store was closed in order, as far as that is known.
    pub(crate) closed: Epoch,
    /// Files of interrupted creations, and segments that a reset left behind.
    pub(crate) leftovers: Vec<PathBuf>,
    /// Largest incarnation and segment number in any file name.
    pub(crate) max_incarnation: Incarnation,
    pub(crate) max_number: SegmentNumber,
}

/// How far back a core's log is needed: records up to this sequence are covered by a checkpoint.
pub(crate) type Covered<'a> = &'a (dyn Fn(CoreId) -> Sequence + Sync);

/// What is known of checkpoints.
#[derive(Clone, Copy)]
pub(super) enum Coverage<'a> {
    UpTo(Covered<'a>),
    /// There may be some.
    Unknown,
}

impl Coverage<'_> {
    pub(super) fn of(self, core: CoreId) -> Sequence {
        match self {
            Self::UpTo(covered) => covered(core),
            Self::Unknown => Sequence::ZERO,
        }
    }
}

/// Where a core's log ends, for whoever reads it while it grows: the segment in use, and how much of
/// it is durable.
pub(crate) type LogEnd = (SegmentNumber, u64);

impl Survey {
    /// Surveys everything that is there, for whoever knows nothing of checkpoints. Of the segments that a `Store` made
    /// superfluous and removed, a power cut may have left some: those behind a gap are passed over. Where no `Store` wrote
    /// behind the gap, something is missing.
    pub(crate) fn whole(vfs: &Arc<dyn Vfs>, dir: &Path, ends: &[LogEnd]) -> Result<Self, PerCoreWalError> {
        Self::look(vfs, dir, Coverage::Unknown, ends, &Watch::default())
    }

    /// Surveys a log that is being written, up to the given ends of its cores.
    pub(crate) fn up_to(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        covered: Covered<'_>,
        ends: &[LogEnd],
    ) -> Result<Self, PerCoreWalError> {
        Self::watched(vfs, dir, covered, ends, &Watch::default())
    }

    /// As [`Self::up_to`], counting the bytes that are read.
    pub(crate) fn watched(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        covered: Covered<'_>,
        ends: &[LogEnd],
        watch: &Watch,
    ) -> Result<Self, PerCoreWalError> {
        Self::look(vfs, dir, Coverage::UpTo(covered), ends, watch)
    }

    /// A missing directory is an empty log.
    fn look(
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        covered: Coverage<'_>,
        ends: &[LogEnd],
        watch: &Watch,
    ) -> Result<Self, PerCoreWalError> {
        let io = |action, e| PerCoreWalError::io(action, dir, e);
        match dir_kind(vfs.as_ref(), dir).map_err(|e| io("could not look at the log directory", e))? {
            None => return Ok(Self::default()),
            Some(FileKind::Dir) => {}
            Some(_) => {
                return Err(io("could not open the log directory", std::io::ErrorKind::NotADirectory.into()));
            }
        }
        // Before anything is listed or read: beside a store that goes on, the log has at least what is noted.
        let synced = read_synced(vfs.as_ref(), dir)?;
        let mut names =
            list_segments(vfs.as_ref(), dir).map_err(|e| io("could not list the log directory", e))?;
        // What was begun after the ends were noted is still being written.
        names.retain(|name| ends.get(name.core.index()).is_none_or(|(number, _)| name.number <= *number));
        let current = read_current(vfs.as_ref(), dir)?;
        let mut survey = Self { store_id: current.map(|c| c.store_id), current, ..Self::default() };
        for name in &names {
            survey.max_incarnation = survey.max_incarnation.max(name.incarnation);
            survey.max_number = survey.max_number.max(name.number);
        }
        survey.max_incarnation =
            survey.max_incarnation.max(current.map_or(Incarnation::ZERO, |c| c.incarnation));
        let store_id = survey.find_store_id(vfs, dir, &names)?;
        let walk = Walk { vfs: vfs.as_ref(), dir, current, covered, ends, store_id, synced, watch };
        survey.store_id = walk.store_id;
        survey.closed = read_closed(vfs.as_ref(), dir, store_id)?;
        let mut per_core: Vec<Vec<SegmentName>> = Vec::new();
        for name in names {
            match per_core.last_mut() {
                Some(core) if core.first().is_some_and(|first| first.core == name.core) => core.push(name),
                _ => per_core.push(vec![name]),
            }
        }
        for (log, leftovers) in in_parallel(vfs.as_ref(), &per_core, |names| walk.core(names))? {
            survey.leftovers.extend(leftovers);
            survey.cores.extend(log);
        }
        survey.require_established(dir)?;
        Ok(survey)
    }

    /// The log of a core.
    pub(crate) fn core(&self, core: CoreId) -> Option<&CoreLog> {
        self.cores.iter().find(|log| log.core == core)
    }

    /// How long what stands behind the ends of the logs was searched, all of them at a time. It does not grow with the log.
    pub(crate) fn searching(&self) -> Duration {
        self.cores.iter().map(|log| log.searching).max().unwrap_or_default()
    }

    /// Bytes of the log that a checkpoint does not cover.
    pub(crate) fn uncovered(&self) -> u64 {
        let segments = self.cores.iter().flat_map(|log| &log.segments);
        segments.map(|segment| segment.len.saturating_sub(segment.start)).sum()
    }

    /// Header of the newest segment of the newest incarnation, of any core.
    pub(crate) fn newest(&self) -> Option<&SegmentHeader> {
        self.cores
            .iter()
            .filter_map(|log| log.segments.last())
            .map(|segment| &segment.header)
            .max_by_key(|header| header.incarnation)
    }

    /// Header of a segment of the newest incarnation that has records, where there is one.
    pub(crate) fn newest_used(&self) -> Option<&SegmentHeader> {
        let segments = self.cores.iter().flat_map(|log| &log.segments);
        segments.filter(|s| s.records > 0).map(|s| &s.header).max_by_key(|header| header.incarnation)
    }

    /// Cores of the newest incarnation that could take records; 0 for an empty log. An incarnation
    /// whose start was interrupted has none, and does not count.
    pub(crate) fn core_count(&self) -> u16 {
        match (self.current, self.newest_used()) {
            (Some(current), Some(used)) if used.incarnation > current.incarnation => used.core_count,
            (Some(current), _) => current.core_count,
            (None, used) => used.or(self.newest()).map_or(0, |header| header.core_count),
        }
    }

    /// Who acknowledges in the newest incarnation that has records.
    pub(crate) fn mode(&self) -> Option<WalMode> {
        self.newest_used().or(self.newest()).map(|header| header.mode)
    }

    /// Largest epoch of a record of this incarnation that later incarnations let stand.
    pub(crate) fn void_above(&self, incarnation: Incarnation) -> Epoch {
        if sabotaged(Sabotage::DiscardedEpochsReturn) {
            return Epoch::MAX;
        }
        self.cores
            .iter()
            .flat_map(|log| &log.segments)
            .filter(|segment| segment.header.incarnation > incarnation)
            .map(|segment| segment.header.void_above)
            .min()
            .unwrap_or(Epoch::MAX)
    }

    /// The incarnations that have records behind `after`, oldest first.
    pub(crate) fn incarnations(&self, after: impl Fn(CoreId) -> Sequence) -> BTreeSet<Incarnation> {
        let used = self.cores.iter().flat_map(|log| &log.segments);
        used.filter(|segment| segment.has_records_after(after(segment.header.core)))
            .map(|segment| segment.header.incarnation)
            .collect()
    }

    /// Whether any record was ever written, as far as the log still reaches.
    pub(crate) fn has_records(&self) -> bool {
        self.cores.iter().flat_map(|log| &log.segments).any(|segment| segment.records > 0)
    }

    /// Whether a `Store` wrote anything behind these sequences: its log carries digests, that of the low-level functions none.
    pub(crate) fn has_stores_records(&self, after: impl Fn(CoreId) -> Sequence) -> bool {
        let of_store = |log: &CoreLog| {
            let mut segments =
                log.segments.iter().filter(|segment| segment.has_records_after(after(log.core)));
            segments.any(|segment| segment.header.mode == WalMode::Epochs)
        };
        self.cores.iter().any(of_store)
    }

    /// Header of any segment of an incarnation.
    pub(crate) fn header_of(&self, incarnation: Incarnation) -> Option<&SegmentHeader> {
        let mut segments = self.cores.iter().flat_map(|log| &log.segments);
        segments.find(|segment| segment.header.incarnation == incarnation).map(|segment| &segment.header)
    }

    /// Largest epoch, sequence and timestamp seen anywhere, discarded or not.
    pub(crate) fn high_water(&self) -> (Epoch, Sequence, TimestampNs) {
        self.cores.iter().fold(Default::default(), |(epoch, sequence, timestamp), log| {
            (epoch.max(log.last_epoch), sequence.max(log.last_sequence), timestamp.max(log.last_timestamp))
        })
    }

    /// The largest epoch that a `Store` was ever opened at here, as far as the log reaches.
    pub(crate) fn opened_at(&self) -> Epoch {
        let segments = self.cores.iter().flat_map(|log| &log.segments);
        let opened = segments.filter(|segment| segment.header.mode == WalMode::Epochs);
        opened.map(|segment| segment.header.void_above).max().unwrap_or_default()
    }

    /// Largest sequence of a record that counts, of any core, or that a header says to have been used before.
    pub(crate) fn last_counting(&self) -> Sequence {
        let segments = self.cores.iter().flat_map(|log| &log.segments);
        segments.map(|segment| segment.last_sequence).max().unwrap_or_default()
    }

    /// Every core of an established incarnation must have a segment of it, or of a later one.
    fn require_established(&self, dir: &Path) -> Result<(), PerCoreWalError> {
        let current = self.current.filter(|_| !sabotaged(Sabotage::MissingCoreIgnored));
        let Some(current) = current else { return Ok(()) };
        for core in (0..current.core_count).map(CoreId) {
            let newest = self.core(core).and_then(|log| log.segments.last());
            if newest.is_none_or(|segment| segment.header.incarnation < current.incarnation) {
                return Err(PerCoreWalError::SegmentNotFound(Box::new(
                    Detail::new(format!(
                        "core {core} has no segment wal-{core}.{:08x}.*.log, but {CURRENT} says that one was written",
                        current.incarnation.0
                    ))
                    .at_path(dir)
                    .on_core(core)
                    .remedy("Restore the missing file; without it acknowledged changes would be lost."),
                )));
            }
        }
        Ok(())
    }

    /// The identity to expect in every header: that of `CURRENT`, or of any segment before there is one. Not that of what
    /// only testifies: alone it may be left over from another log, whose identity a new one must not have (I7).
    fn find_store_id(
        &self,
        vfs: &Arc<dyn Vfs>,
        dir: &Path,
        names: &[SegmentName],
    ) -> Result<Option<StoreId>, PerCoreWalError> {
        if self.store_id.is_some() {
            return Ok(self.store_id);
        }
        for name in names.iter().rev() {
            if let Ok(header) = read_header(vfs.as_ref(), &dir.join(name.file_name()))? {
                return Ok(Some(header.store_id));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
