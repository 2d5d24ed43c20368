//! Recovering a state from checkpoints and a log: `Checkpoint(epoch) + WAL.replay(epoch..)`.
//!
//! Nothing here writes, unless a repair is asked for. [`crate::Store`] recovers through the same
//! [`locate`], only into its cores' memory instead of into a map.

pub(crate) mod digests;
pub(crate) mod locate;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use self::digests::{Comparison, Mismatch};
use self::locate::{Failure, Located, locate};
use super::error::IncrementalCheckpointError;
use super::state_map::StateMap;
use crate::format::digest::StateDigest;
use crate::format::record::{Commit, Record};
use crate::format::segment_header::{SegmentHeader, WalMode};
use crate::ids::{CoreId, Epoch};
use crate::incremental::{CheckpointReader, CoreOffsets};
use crate::per_core_wal::recovery::cursor::CoreCursor;
use crate::per_core_wal::recovery::plan::Wanted;
use crate::per_core_wal::recovery::repair::repair_segments;
use crate::per_core_wal::{MergedRecords, PerCoreWalError, RecoveryMode, Stamp};
use crate::progress::Watch;
use crate::report::{CoreReport, DigestCheck, RecoveryReport};
use crate::vfs::{OsVfs, Vfs, absolute};

/// Where to recover from, and how.
#[derive(Clone, Debug)]
pub struct RecoveryConfig {
    /// Directory of the checkpoints.
    pub checkpoint_dir: PathBuf,
    /// Directory of the log's segments, of one core or of many.
    pub wal_path: PathBuf,
    /// Cut torn tails off the files. Default false: they are only passed over, and reported.
    pub repair_wal: bool,
    /// Keep a list of every change replayed. Default false.
    pub collect_state_changes: bool,
    /// Stop after that many changes, in the log's total order. Default: all.
    pub max_wal_entries: u64,
    /// Which records count. Default [`RecoveryMode::AllSynced`].
    pub mode: RecoveryMode,
    vfs: Arc<dyn Vfs>,
}

impl RecoveryConfig {
    /// Recovers every synced record on top of the newest checkpoint.
    #[must_use]
    pub fn new(checkpoint_dir: &Path, wal_path: &Path) -> Self {
        Self {
            checkpoint_dir: absolute(checkpoint_dir),
            wal_path: absolute(wal_path),
            repair_wal: false,
            collect_state_changes: false,
            max_wal_entries: u64::MAX,
            mode: RecoveryMode::AllSynced,
            vfs: Arc::new(OsVfs::new()),
        }
    }

    /// Sets [`Self::repair_wal`]. The log must not be in use.
    #[must_use]
    pub fn with_repair_wal(mut self, repair: bool) -> Self {
        self.repair_wal = repair;
        self
    }

    /// Sets [`Self::collect_state_changes`].
    #[must_use]
    pub fn with_collect_state_changes(mut self, collect: bool) -> Self {
        self.collect_state_changes = collect;
        self
    }

    /// Sets [`Self::max_wal_entries`]. A state that was cut short like that is not the one to go on
    /// from; it is for looking at how it came to be.
    #[must_use]
    pub fn with_max_wal_entries(mut self, max: u64) -> Self {
        self.max_wal_entries = max;
        self
    }

    /// Sets [`Self::mode`].
    #[must_use]
    pub fn with_mode(mut self, mode: RecoveryMode) -> Self {
        self.mode = mode;
        self
    }

    /// Uses another outside world than the operating system.
    #[must_use]
    pub fn with_vfs(mut self, vfs: Arc<dyn Vfs>) -> Self {
        self.vfs = vfs;
        self
    }

    /// The outside world in use.
    #[must_use]
    pub fn vfs(&self) -> &Arc<dyn Vfs> {
        &self.vfs
    }
}

/// A change that was replayed from the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayedChange {
    /// The key.
    pub key: Vec<u8>,
    /// Its new value; `None` when it was deleted.
    pub value: Option<Vec<u8>>,
    /// Epoch of the change.
    pub epoch: u64,
    /// Core that wrote it.
    pub core_id: usize,
}

/// A recovered state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveredState {
    /// Epoch that the state is of; 0 when there was nothing.
    pub epoch: u64,
    /// Bytes of all cores' logs that the state contains, or what the checkpoint noted where that is
    /// more.
    pub wal_position: u64,
    /// Puts and deletes replayed.
    pub wal_entries_replayed: u64,
    /// Where to go on reading each source.
    pub source_offsets: BTreeMap<String, u64>,
    /// The smallest watermark of the cores that have one.
    pub watermark: Option<i64>,
    /// The checkpoint it started from.
    pub checkpoint_id: Option<u64>,
    /// Every change replayed, in order, where that was asked for.
    pub state_changes: Vec<ReplayedChange>,
    /// The state itself.
    pub state: StateMap,
    /// What recovery did.
    pub report: RecoveryReport,
}

impl RecoveredState {
    /// No state, at epoch 0.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Was there anything: a checkpoint, a change, an offset?
    #[must_use]
    pub fn has_state(&self) -> bool {
        self.checkpoint_id.is_some() || self.wal_entries_replayed > 0 || !self.source_offsets.is_empty()
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.state.get(key)
    }

    /// Number of keys.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// Are there no keys?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.is_empty()
    }

    /// Keys and values, in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.state.iter()
    }
}

/// Recovers a state: the newest good checkpoint, and the log on top of it.
#[derive(Clone, Debug)]
pub struct RecoveryManager {
    config: RecoveryConfig,
}

impl RecoveryManager {
    /// A manager that recovers as `config` says.
    #[must_use]
    pub fn new(config: RecoveryConfig) -> Self {
        Self { config }
    }

    /// Recovers. Directories that do not exist yet are an empty state at epoch 0. Recovering again
    /// gives the same. The digests that a [`crate::Store`] stored are compared; [`crate::DigestCheck`] says whether the
    /// whole state was.
    ///
    /// # Errors
    /// `Corruption` when what is there is damaged in a way that could lose something acknowledged, or does not have the
    /// digest that was stored with it; `UnsupportedVersion`, `Io`. Nothing was changed then.
    pub fn recover(&self) -> Result<RecoveredState, IncrementalCheckpointError> {
        let keep = self.config.collect_state_changes;
        Ok(recover_wanted(&self.config, Wanted::Mode(self.config.mode), keep, &Watch::default())?.whole())
    }

    /// Recovers with the default settings.
    ///
    /// # Errors
    /// As [`Self::recover`].
    pub fn recover_simple(
        checkpoint_dir: &Path,
        wal_path: &Path,
    ) -> Result<RecoveredState, IncrementalCheckpointError> {
        Self::new(RecoveryConfig::new(checkpoint_dir, wal_path)).recover()
    }

    /// Recovers, keeping the list of changes.
    ///
    /// # Errors
    /// As [`Self::recover`].
    pub fn recover_with_changes(
        checkpoint_dir: &Path,
        wal_path: &Path,
    ) -> Result<RecoveredState, IncrementalCheckpointError> {
        Self::new(RecoveryConfig::new(checkpoint_dir, wal_path).with_collect_state_changes(true)).recover()
    }
}

/// Checkpoint and changes.
pub(crate) struct Parts {
    /// Everything but `state` is that of the end; that too, unless changes were kept.
    pub(crate) state: RecoveredState,
    /// Where they are kept, not applied to the state.
    pub(crate) changes: Vec<ReplayedChange>,
    /// Per core, bytes of its log that count.
    pub(crate) positions: Vec<u64>,
}

impl Parts {
    fn whole(mut self) -> RecoveredState {
        for change in &self.changes {
            self.state.state.apply(&change.key, change.value.as_deref());
        }
        self.state.report.keys = self.state.state.len() as u64;
        self.state.state_changes = self.changes;
        self.state
    }
}

impl From<Failure> for IncrementalCheckpointError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Checkpoint(error) => error,
            Failure::Log(error) => error.into(),
        }
    }
}

impl From<PerCoreWalError> for IncrementalCheckpointError {
    fn from(error: PerCoreWalError) -> Self {
        let detail = Box::new(error.detail().clone());
        match error {
            PerCoreWalError::Io(_) | PerCoreWalError::Locked(_) => Self::Io(detail),
            PerCoreWalError::ChecksumMismatch(_) => Self::ChecksumMismatch(detail),
            PerCoreWalError::NewerFormat(_) => Self::UnsupportedVersion(detail),
            PerCoreWalError::EpochMismatch(_) => Self::EpochMismatch(detail),
            PerCoreWalError::Poisoned(_) => Self::Poisoned(detail),
            PerCoreWalError::InvalidCore(_) | PerCoreWalError::InvalidInput(_) => Self::InvalidConfig(detail),
            PerCoreWalError::TornWrite(_)
            | PerCoreWalError::Corrupted(_)
            | PerCoreWalError::SegmentNotFound(_)
            | PerCoreWalError::Checkpoint(_) => Self::Corruption(detail),
        }
    }
}

/// Recovers what is `wanted` of the directories. What whoever wrote them acknowledged is what opening a store would recover.
pub(crate) fn recover_state(
    vfs: &Arc<dyn Vfs>,
    checkpoint_dir: &Path,
    wal_path: &Path,
    wanted: Wanted,
    watch: &Watch,
) -> Result<RecoveredState, Failure> {
    let config = RecoveryConfig::new(checkpoint_dir, wal_path).with_vfs(Arc::clone(vfs));
    Ok(recover_wanted(&config, wanted, false, watch)?.whole())
}

/// Whether any digest can be met: low-level logs have none, and then nothing need be added up.
fn carries_digests(located: &Located) -> bool {
    located.metadata().is_some_and(|metadata| !metadata.digests.is_empty())
        || located.plan.survey.has_stores_records(|core| located.plan.span(core).after)
}

/// The state is not what was stored: every checksum is right, and something else is wrong.
fn wrong_digest(config: &RecoveryConfig, located: &Located, wrong: Mismatch) -> PerCoreWalError {
    let checkpoint = located.checkpoint.as_ref().filter(|reader| Epoch(reader.metadata().epoch) == wrong.at);
    let place = checkpoint.map_or(config.wal_path.as_path(), CheckpointReader::dir);
    PerCoreWalError::corrupted(wrong.detail("recovered").at_path(place).remedy(
        "If one key was written on two cores, that is why: open it as a store, with the number of cores it was written with. \
         Otherwise report this with a copy of the directory; nothing was changed.",
    ))
}

/// Recovers checkpoint and changes, apart.
pub(crate) fn recover_parts(config: &RecoveryConfig) -> Result<Parts, Failure> {
    recover_wanted(config, Wanted::Mode(config.mode), true, &Watch::default())
}

/// Changes are applied as they are read, so that no more than the state is in memory, or kept apart.
fn recover_wanted(
    config: &RecoveryConfig,
    wanted: Wanted,
    keep: bool,
    watch: &Watch,
) -> Result<Parts, Failure> {
    let started = Instant::now();
    if config.repair_wal {
        repair_segments(&config.vfs, &config.wal_path)?;
    }
    let (located, (mut state, mut digests)) =
        locate(&config.vfs, &config.checkpoint_dir, &config.wal_path, wanted, watch, |located| {
            watch.loading(located.checkpoint_bytes(), located.plan.survey.uncovered());
            base_state(located, watch).map_err(Failure::from)
        })?;
    let (mut kept, digested) = (Kept::default(), digests.is_some());
    let each = |key: &[u8], value: Option<&[u8]>, at: Stamp| match (keep, digested) {
        (true, true) => kept.add_digested(&state.state, key, value, at),
        (true, false) => {
            kept.add(key, value, at);
            StateDigest::default()
        }
        (false, true) => state.state.apply_digested(key, value),
        (false, false) => {
            state.state.apply(key, value);
            StateDigest::default()
        }
    };
    let Replayed { counts, offsets, bytes, whole } = replay(config, &located, watch, digests.as_mut(), each)?;
    (state.source_offsets, state.watermark) = super::flatten(&offsets);
    state.epoch = located.plan.point.0.max(state.epoch);
    state.wal_entries_replayed = counts.values().sum();
    let positions = positions(&located);
    state.wal_position = state.wal_position.max(positions.iter().copied().fold(0, u64::saturating_add));
    state.report = report(&located, &state, &counts, &bytes);
    state.report.phases.recover = started.elapsed();
    state.report.phases.survey = located.surveying;
    if let Some(digests) = digests {
        let keys = (!keep).then_some(state.state.len() as u64);
        let compared = digests.finish(keys).map_err(|wrong| wrong_digest(config, &located, wrong))?;
        // What was cut short is not what the recovery point says, however well its parts agree.
        state.report.digest = if whole { compared } else { DigestCheck::NotStored };
    }
    Ok(Parts { state, changes: kept.changes, positions })
}

/// The checkpoint's state, and what compares digests from there on, if there are any.
fn base_state(
    located: &Located,
    watch: &Watch,
) -> Result<(RecoveredState, Option<Comparison>), IncrementalCheckpointError> {
    let digested = carries_digests(located);
    let Some(reader) = &located.checkpoint else {
        return Ok((RecoveredState::empty(), digested.then(Comparison::of_nothing)));
    };
    let metadata = reader.metadata();
    let mut loaded = vec![StateDigest::default(); usize::from(metadata.core_count)];
    let state = reader.load_with(watch, |state, core, key, value| match loaded.get_mut(core.index()) {
        Some(share) if digested => *share = share.plus(state.apply_digested(key, value)),
        _ => state.apply(key, value),
    })?;
    let state = RecoveredState {
        epoch: metadata.epoch,
        wal_position: metadata.wal_position,
        checkpoint_id: Some(metadata.id),
        state,
        ..RecoveredState::default()
    };
    Ok((state, digested.then(|| Comparison::of_checkpoint(metadata, &loaded))))
}

/// Changes that are kept beside the state that they are changes of.
#[derive(Default)]
struct Kept {
    changes: Vec<ReplayedChange>,
    /// What each changed key adds to the digest of the state now.
    newest: HashMap<Vec<u8>, StateDigest>,
}

impl Kept {
    fn add(&mut self, key: &[u8], value: Option<&[u8]>, at: Stamp) {
        let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
        self.changes.push(ReplayedChange { key, value, epoch: at.epoch, core_id: at.core_id });
    }

    /// Returns by how much the change changes the digest of the state.
    fn add_digested(&mut self, base: &StateMap, key: &[u8], value: Option<&[u8]>, at: Stamp) -> StateDigest {
        self.add(key, value, at);
        let now = StateDigest::of(key, value);
        let before = self.newest.insert(key.to_vec(), now).unwrap_or_else(|| base.digest_of(key));
        now.minus(before)
    }
}

/// Source offsets and watermarks, core by core, while a log is replayed in the total order.
struct Positions {
    cores: Vec<CoreOffsets>,
    /// Number of cores of the incarnation they belong to.
    layout: Option<u16>,
}

impl Positions {
    fn of(located: &Located) -> Self {
        let Some(metadata) = located.metadata() else { return Self { cores: Vec::new(), layout: None } };
        let flat = CoreOffsets { offsets: metadata.source_offsets.clone(), watermark: metadata.watermark };
        let known = &metadata.core_offsets;
        let mut cores = if known.is_empty() { vec![flat] } else { known.clone() };
        let count = located.plan.survey.core_count();
        if located.plan.survey.mode() == Some(WalMode::Epochs) && cores.len() > usize::from(count) {
            // As a store of that many cores took them over when it was opened.
            cores = (0..count).map(|core| CoreOffsets::of(&cores, CoreId(core), count)).collect();
        }
        Self { cores, layout: Some(metadata.core_count) }
    }

    /// A record of the segment with this header comes next. A store that was opened with another number
    /// of cores has given everything to the first of them: what a core of the old layout had must not
    /// stay beside what the cores of the new one say.
    fn enter(&mut self, header: &SegmentHeader) {
        // A coordinator's checkpoint has the state in one core, and the positions where the log's cores left them.
        let of_the_log = |layout: u16| {
            self.cores.len() > usize::from(layout) && self.cores.len() <= usize::from(header.core_count)
        };
        let changed = self.layout.is_some_and(|cores| cores != header.core_count && !of_the_log(cores));
        if changed && header.mode == WalMode::Epochs {
            let (offsets, watermark) = super::flatten(&self.cores);
            self.cores = vec![CoreOffsets { offsets, watermark }];
        }
        self.layout = Some(header.core_count);
    }

    fn commit(
        &mut self,
        header: &SegmentHeader,
        core: usize,
        offsets: HashMap<String, u64>,
        watermark: Option<i64>,
    ) {
        self.enter(header);
        if self.cores.len() <= core {
            self.cores.resize_with(core + 1, CoreOffsets::default);
        }
        if let Some(positions) = self.cores.get_mut(core) {
            positions.commit(offsets, watermark, header.mode);
        }
    }
}

/// What replaying a log came to.
struct Replayed {
    /// How many changes count, by core.
    counts: BTreeMap<usize, u64>,
    /// Every core's offsets and watermark after them.
    offsets: Vec<CoreOffsets>,
    /// Bytes replayed of every core's log, in the order of the survey.
    bytes: Vec<u64>,
    /// Whether that is all there was, and not only as much as was asked for.
    whole: bool,
}

/// Hands the changes that count to `each`, in the total order; it says by how much each changes the state's digest.
fn replay(
    config: &RecoveryConfig,
    located: &Located,
    watch: &Watch,
    mut digests: Option<&mut Comparison>,
    mut each: impl FnMut(&[u8], Option<&[u8]>, Stamp) -> StateDigest,
) -> Result<Replayed, PerCoreWalError> {
    let plan = &located.plan;
    let logs = plan.survey.cores.iter().map(|log| log.core);
    let cursor = |core| CoreCursor::new(&config.vfs, &plan.survey, core, plan.span(core)).watched(watch);
    let mut positions = Positions::of(located);
    let (mut counts, mut replayed, mut whole) = (BTreeMap::new(), 0, true);
    let mut merged = MergedRecords::new(logs.map(cursor).collect());
    while merged.advance()? {
        let (Some((record, at)), Some(header)) = (merged.current(), merged.header()) else { break };
        if let Some(digests) = &mut digests {
            digests
                .enter(header.core_count, header.mode)
                .map_err(|wrong| wrong_digest(config, located, wrong))?;
        }
        let (key, value) = match record {
            Record::Put { key, value } => (key, Some(value)),
            Record::Delete { key } => (key, None),
            Record::Commit(body) => {
                let Commit { offsets, watermark } = body.decode().unwrap_or_default();
                positions.commit(header, at.core_id, offsets, watermark);
                continue;
            }
            Record::Barrier { digest, .. } => {
                positions.enter(header);
                if let Some(digests) = &mut digests {
                    digests.barrier(at.core_id, Epoch(at.epoch), digest);
                }
                continue;
            }
            Record::Checkpoint { .. } | Record::Confirm { .. } | Record::SegmentEnd { .. } => continue,
        };
        if replayed >= config.max_wal_entries {
            whole = false;
            break;
        }
        replayed += 1;
        *counts.entry(at.core_id).or_default() += 1;
        let difference = each(key, value, at);
        if let Some(digests) = &mut digests {
            digests.change(at.core_id, difference);
        }
    }
    Ok(Replayed { counts, offsets: positions.cores, bytes: merged.bytes(), whole })
}

fn positions(located: &Located) -> Vec<u64> {
    let survey = &located.plan.survey;
    (0..survey.core_count()).map(|core| survey.core(CoreId(core)).map_or(0, |log| log.position())).collect()
}

fn report(
    located: &Located,
    state: &RecoveredState,
    counts: &BTreeMap<usize, u64>,
    bytes: &[u64],
) -> RecoveryReport {
    let mut report = RecoveryReport::of(located);
    report.recovery_point = Epoch(state.epoch);
    report.source_offsets.clone_from(&state.source_offsets);
    report.watermark = state.watermark;
    for (core, bytes) in report.cores.iter_mut().zip(bytes) {
        core.replayed_bytes = *bytes;
        core.replayed = counts.get(&core.core.index()).copied().unwrap_or(0);
    }
    report
}

impl RecoveryReport {
    /// What is known before anything is replayed.
    pub(crate) fn of(located: &Located) -> Self {
        let cores = located.plan.survey.cores.iter().map(|log| {
            let last = log.segments.last();
            CoreReport {
                core: log.core,
                replayed: 0,
                replayed_bytes: 0,
                dropped_bytes: log.segments.iter().map(|segment| segment.dropped).sum(),
                sealed_epoch: log.sealed_epoch,
                case: last.map(|segment| segment.case),
            }
        });
        Self {
            recovery_point: located.plan.point,
            checkpoint: located.metadata().map(|m| crate::ids::CheckpointId(m.id)),
            checkpoints_skipped: located.skipped.clone(),
            cores: cores.collect(),
            ..Self::default()
        }
    }
}
