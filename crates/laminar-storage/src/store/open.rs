//! Opening a store: lock, find the state, fill the cores, begin a new incarnation.
//!
//! Nothing is written before the state has been found and loaded; a crash anywhere leaves a directory
//! from which the same state is found again (invariant I1).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::builder::StoreBuilder;
use super::checkpointer::{Checkpointer, Found};
use super::core_store::CoreStore;
use super::drain::Drain;
use super::error::StoreError;
use super::fork::Fork;
use super::objective::Recovered;
use super::rebuild::{Rebuilt, rebuild, wants_rebuild};
use super::settled::Settled;
use super::shared::{Shared, Standing};
use super::{Opened, Store};
use crate::error::{Detail, io_detail};
use crate::format::digest::StateDigest;
use crate::format::record::Record;
use crate::format::segment_header::WalMode;
use crate::format::state_file::StateRecord;
use crate::ids::{CheckpointId, CoreId, Epoch, Sequence};
use crate::incremental::open::lock_checkpoints;
use crate::incremental::recovery::digests::Mismatch;
use crate::incremental::recovery::locate::{IsDamagedCheckpoint, Located, locate};
use crate::incremental::{
    CheckpointReader, CoreOffsets, IncrementalCheckpointError, IncrementalCheckpointManager, flatten,
};
use crate::pace::Commits;
use crate::parallel::in_parallel;
use crate::per_core_wal::evidence::testify_to;
use crate::per_core_wal::incarnation::{Beginning, make_durable};
use crate::per_core_wal::manager::lock_directory;
use crate::per_core_wal::recovery::cursor::{CoreCursor, Replayed};
use crate::per_core_wal::recovery::plan::{Base, Wanted};
use crate::per_core_wal::recovery::survey::CoreLog;
use crate::per_core_wal::recovery::tail::Place;
use crate::per_core_wal::{PerCoreWalError, PerCoreWalManager};
use crate::progress::Watch;
use crate::report::{DigestCheck, PhaseTimes, RecoveryReport};
use crate::ring0::{CoreDrain, CoreState, StateConfig, new_state};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{FileKind, Vfs, create_dir_durably};

/// The lock file of a store; never removed.
const LOCK: &str = "LOCK";

/// What keeps everybody else out while it lives.
type StoreLock = Box<dyn std::fmt::Debug + Send + Sync>;

/// The locks of a store's three directories.
#[derive(Debug)]
pub(crate) struct Locks {
    wal: Arc<dyn std::fmt::Debug + Send + Sync>,
    pub(crate) checkpoints: Arc<dyn std::fmt::Debug + Send + Sync>,
    /// Held, and never looked at. Released last: whoever gets it finds the others free.
    _store: StoreLock,
}

/// Where the parts of a store are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) wal: PathBuf,
    pub(crate) checkpoints: PathBuf,
}

impl Layout {
    pub(crate) fn of(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), wal: dir.join("wal"), checkpoints: dir.join("checkpoints") }
    }

    /// The store's own directory may be a symbolic link of the user's; what is in it may not be one.
    pub(crate) fn refuse_links(&self, vfs: &dyn Vfs) -> Result<(), StoreError> {
        for path in [&self.wal, &self.checkpoints] {
            let io = |e| StoreError::Io(Box::new(io_detail("could not look at", path, e)));
            if vfs.kind(path).map_err(io)? == Some(FileKind::Other) {
                let e = std::io::ErrorKind::NotADirectory.into();
                let detail = io_detail("something that is no directory is in the way", path, e);
                return Err(StoreError::Io(Box::new(detail.remedy(
                    "Put the directory itself there; only the path of the whole store may be a symbolic link.",
                ))));
            }
        }
        Ok(())
    }
}

/// Why a state could not be loaded.
#[derive(Debug)]
pub(crate) enum LoadFailure {
    Checkpoint(IncrementalCheckpointError),
    Store(StoreError),
}

impl From<IncrementalCheckpointError> for LoadFailure {
    fn from(error: IncrementalCheckpointError) -> Self {
        Self::Checkpoint(error)
    }
}

impl From<PerCoreWalError> for LoadFailure {
    fn from(error: PerCoreWalError) -> Self {
        Self::Store(error.into())
    }
}

impl From<LoadFailure> for StoreError {
    fn from(failure: LoadFailure) -> Self {
        match failure {
            LoadFailure::Checkpoint(error) => error.into(),
            LoadFailure::Store(error) => error,
        }
    }
}

impl IsDamagedCheckpoint for LoadFailure {
    fn is_damaged_checkpoint(&self) -> bool {
        matches!(self, Self::Checkpoint(error) if error.is_corruption())
    }
}

/// One core, filled.
struct Loaded {
    state: CoreState,
    drain: CoreDrain,
    offsets: CoreOffsets,
    digest: StateDigest,
    /// The digest that was stored with the recovery point, if one was.
    expected: Option<StateDigest>,
    replayed: Replayed,
    /// Time spent on the checkpoint and on the log.
    loading: Duration,
    replaying: Duration,
}

/// Says to which epoch all parts of a whole recover, given what this one has.
pub(crate) type Agree<'a> = &'a mut dyn FnMut(Epoch) -> Result<Epoch, StoreError>;

/// The epoch that a part lands on: agreed once, and kept to however often the state is looked for.
struct Agreement<'a> {
    agree: Option<Agree<'a>>,
    agreed: Option<Epoch>,
    /// What this part has by itself.
    found: Option<Epoch>,
}

impl Agreement<'_> {
    fn lower(
        &mut self,
        vfs: &Arc<dyn Vfs>,
        located: &mut Located,
        layout: &Layout,
    ) -> Result<(), LoadFailure> {
        let Some(agree) = &mut self.agree else { return Ok(()) };
        self.found = Some(located.plan.point);
        let agreed = match self.agreed {
            Some(agreed) => agreed,
            None => {
                // The others take this epoch for one that is here for good.
                make_durable(vfs, &layout.wal, &located.plan.survey)?;
                *self.agreed.insert(agree(located.plan.point).map_err(LoadFailure::Store)?)
            }
        };
        Ok(located.plan.land_on(&layout.wal, agreed)?)
    }

    /// What is laid out anew is a checkpoint, beside which the log still holds what was discarded, and says to reach there: not
    /// before that is gone.
    fn check_rebuild(&self, located: &Located, layout: &Layout, wanted: u16) -> Result<(), StoreError> {
        let Some(found) = self.found.filter(|found| *found > located.plan.point) else { return Ok(()) };
        let written = located.plan.survey.core_count();
        Err(StoreError::invalid(
            Detail::new(format!(
                "this part has epoch {found} and lands on {}, and cannot be laid out for {wanted} cores in the same opening",
                located.plan.point
            ))
            .at_path(&layout.dir)
            .in_epoch(located.plan.point)
            .remedy(format!("Open it with {written} cores, then again with {wanted}; nothing was changed.")),
        ))
    }
}

/// Opens a store; as a part of a whole if there is somebody to agree with.
pub(crate) fn open(builder: &StoreBuilder, agree: Option<Agree<'_>>) -> Result<Opened, StoreError> {
    builder.validate()?;
    let vfs = builder.vfs_ref();
    let layout = Layout::of(builder.path());
    let io = |action| move |e| StoreError::Io(Box::new(io_detail(action, builder.path(), e)));
    create_dir_durably(vfs.as_ref(), &layout.dir).map_err(io("could not create the store's directory"))?;
    layout.refuse_links(vfs.as_ref())?;
    let lock = lock_store(vfs, &layout)?;
    // All locks come before the first look, so that nobody can add to what was seen.
    let locks = Locks {
        wal: lock_directory(&builder.wal_config(&layout))?,
        checkpoints: lock_checkpoints(vfs.as_ref(), &layout.checkpoints).map_err(held)?,
        _store: lock,
    };
    let started = Instant::now();
    let fork = Fork::begin(builder, &layout)?;
    let watch = builder.watch();
    let is_part = agree.is_some();
    let mut agreement = Agreement { agree, agreed: None, found: None };
    let mut rebuilt = None;
    let (located, loaded, time) = loop {
        let looked = Instant::now();
        let load =
            |located: &mut Located| {
                agreement.lower(vfs, located, &layout)?;
                if let Some(fork) = &fork {
                    fork.check_unused(located, &layout)?;
                }
                if wants_rebuild(located, builder.core_count()) {
                    agreement
                        .check_rebuild(located, &layout, builder.core_count())
                        .map_err(LoadFailure::Store)?;
                    if rebuilt.is_some() {
                        // The checkpoint that was made just now is damaged, and the one before is laid out for other cores.
                        let detail = Detail::new(
                            "this checkpoint was laid out anew, and the one that was made of it is damaged",
                        );
                        let path = located
                            .checkpoint
                            .as_ref()
                            .map_or(layout.checkpoints.as_path(), CheckpointReader::dir);
                        return Err(IncrementalCheckpointError::corruption(detail.at_path(path).remedy(
                            "Check the device, then open again: the state as it was before is whole.",
                        ))
                        .into());
                    }
                    // Rebuilding reads all of the checkpoint; a damaged one is passed over before that.
                    // It reads the checkpoint twice then: to look, and to distribute it.
                    let (checkpoint, log) = (located.checkpoint_bytes(), located.plan.survey.uncovered());
                    watch.resharding(checkpoint.saturating_mul(2), log);
                    let verify = |reader: &CheckpointReader| reader.verify_in_parallel(vfs.as_ref());
                    located.checkpoint.as_ref().map_or(Ok(()), verify)?;
                    return Ok(None);
                }
                load_cores(builder, located, &watch).map(Some)
            };
        let found = locate(vfs, &layout.checkpoints, &layout.wal, Wanted::Acknowledged, &watch, load);
        match found.map_err(StoreError::from)? {
            (located, Some(loaded)) => break (located, loaded, looked.elapsed()),
            (located, None) => rebuilt = Some(rebuild(builder, &layout, &located, &locks, &watch)?),
        }
    };
    if first_epoch(&located) > Epoch::LAST {
        return Err(StoreError::invalid(
            Detail::new("all epochs are used up")
                .at_path(builder.path())
                .in_epoch(located.plan.point)
                .remedy("Read the state with StateReader and put it into a new store; nothing was changed."),
        ));
    }
    let found = Instant::now();
    let report = describe(builder, &located, &loaded, rebuilt.as_ref())?;
    let measured = measured(&located, &loaded, time);
    let (store, cores) = begin(builder, &layout, &located, loaded, measured, locks, is_part)?;
    let phases = PhaseTimes { recover: found - started, survey: located.surveying, begin: found.elapsed() };
    store.shared.began_in(phases.begin.saturating_add(located.plan.survey.searching()));
    watch.done(report.keys);
    tracing::info!(dir = %layout.dir.display(), point = %report.recovery_point, keys = report.keys, "opened");
    Ok(Opened { store, cores, report: RecoveryReport { phases, ..report } })
}

/// A lock that somebody else has is no failure of the disk.
fn held(error: IncrementalCheckpointError) -> StoreError {
    let kind = error.detail().io_error().map(std::io::Error::kind);
    let detail = Box::new(error.detail().clone());
    if kind == Some(std::io::ErrorKind::WouldBlock) { StoreError::Locked(detail) } else { error.into() }
}

/// One process per directory (I14).
fn lock_store(vfs: &Arc<dyn Vfs>, layout: &Layout) -> Result<StoreLock, StoreError> {
    let path = layout.dir.join(LOCK);
    match vfs.lock(&path) {
        Ok(lock) => Ok(lock),
        Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Err(StoreError::Locked(Box::new(
            Detail::new("the store is open in this or another process")
                .at_path(&path)
                .remedy("Close it there first; to look at it meanwhile use StateReader."),
        ))),
        Err(e) => Err(StoreError::Io(Box::new(io_detail("could not lock the store", &path, e)))),
    }
}

/// Fills every core from checkpoint and log, in parallel.
fn load_cores(builder: &StoreBuilder, located: &Located, watch: &Watch) -> Result<Vec<Loaded>, LoadFailure> {
    watch.loading(located.checkpoint_bytes(), located.plan.survey.uncovered());
    let cores = (0..builder.core_count()).map(CoreId);
    in_parallel(builder.vfs_ref().as_ref(), cores, |core| load_core(builder, located, core, watch))
}

fn load_core(
    builder: &StoreBuilder,
    located: &Located,
    core: CoreId,
    watch: &Watch,
) -> Result<Loaded, LoadFailure> {
    let started = Instant::now();
    let mut keys = 0;
    let memory = |e| LoadFailure::Store(StoreError::of_ring0(&e, core));
    let (mut state, drain) = new_state(StateConfig {
        core,
        ring_capacity: builder.settings_ref().ring_capacity,
        limit_bytes: limit_bytes(builder.settings_ref().state_limit_bytes, builder.core_count()),
        first_epoch: first_epoch(located),
    })
    .map_err(memory)?;
    let mut offsets = CoreOffsets::default();
    let mut expected = None;
    let mut loader = state.loader().map_err(memory)?;
    if let Some(reader) = &located.checkpoint {
        for file in reader.files(core) {
            let mut cursor = file.cursor();
            while cursor.advance()? {
                match cursor.current() {
                    Some(StateRecord { key, value: Some(value) }) => {
                        loader.put(key, value).map_err(memory)?
                    }
                    Some(StateRecord { key, value: None }) => loader.delete(key).map_err(memory)?,
                    None => {}
                }
                if cursor.ends_block() {
                    watch.keys(&mut keys, loader.len());
                }
            }
        }
        let metadata = reader.metadata();
        offsets = CoreOffsets::of(&metadata.core_offsets, core, builder.core_count());
        expected = metadata.digests.get(core.index()).map(StateDigest::from);
    }
    let loading = started.elapsed();
    let cursor = CoreCursor::new(builder.vfs_ref(), &located.plan.survey, core, located.plan.span(core));
    let cursor = cursor.watched(watch);
    let mut full = Ok(());
    let replayed = cursor.replay(|record, _| {
        let loaded = match record {
            Record::Put { key, value } => loader.put(key, value),
            Record::Delete { key } => loader.delete(key),
            Record::Commit(body) => {
                let commit = body.decode().unwrap_or_default();
                // Any other log was rebuilt into a checkpoint before.
                offsets.commit(commit.offsets, commit.watermark, WalMode::Epochs);
                Ok(())
            }
            Record::Barrier { digest, .. } => {
                expected = *digest;
                watch.keys(&mut keys, loader.len());
                Ok(())
            }
            _ => Ok(()),
        };
        if let (Err(error), true) = (loaded, full.is_ok()) {
            full = Err(memory(error));
        }
        Ok(())
    })?;
    full?;
    let digest = loader.finish().map_err(memory)?;
    state.check_limit().map_err(memory)?;
    let digest = StateDigest { digest, live_keys: state.len() };
    let replaying = started.elapsed().saturating_sub(loading);
    Ok(Loaded { state, drain, offsets, digest, expected, replayed, loading, replaying })
}

/// How fast this recovery was. The cores did not all work at the same time: what it took as a whole, apart
/// from the survey, is divided as the work of the cores divides.
fn measured(located: &Located, loaded: &[Loaded], recover: Duration) -> Recovered {
    let whole = recover.saturating_sub(located.surveying);
    // That is the same however long the log is, and counts with what opening takes beside it.
    let surveying = located.surveying.saturating_sub(located.plan.survey.searching());
    let loading: Duration = loaded.iter().map(|core| core.loading).sum();
    let replaying: Duration = loaded.iter().map(|core| core.replaying).sum();
    let share = loading.as_secs_f64() / (loading + replaying).as_secs_f64().max(f64::MIN_POSITIVE);
    let loading = whole.mul_f64(share.clamp(0.0, 1.0));
    Recovered {
        checkpoint_bytes: located.checkpoint_bytes(),
        loading,
        log_bytes: loaded.iter().map(|core| core.replayed.reached.bytes).sum(),
        replaying: whole.saturating_sub(loading).saturating_add(surveying),
    }
}

/// Address space for all cores together, 32 TiB: a quarter of what a process has, so that thousands of regions
/// leave room for stacks, files and everything else of the program.
const MOST_RESERVED: u64 = 1 << 45;

/// How large the records of one core may become; three times as much address space is reserved for them.
fn limit_bytes(limit: u64, cores: u16) -> u64 {
    limit.min(MOST_RESERVED / 3 / u64::from(cores.max(1)))
}

/// New changes begin above every epoch that was ever used.
fn first_epoch(located: &Located) -> Epoch {
    let (last, _, _) = located.plan.survey.high_water();
    if sabotaged(Sabotage::EpochReused) {
        return located.plan.point.next();
    }
    last.max(located.plan.point).next()
}

/// Says what was recovered, and compares it with the digest that was stored with it.
fn describe(
    builder: &StoreBuilder,
    located: &Located,
    loaded: &[Loaded],
    rebuilt: Option<&Rebuilt>,
) -> Result<RecoveryReport, StoreError> {
    let mut report = RecoveryReport::of(located);
    for (core, loaded) in report.cores.iter_mut().zip(loaded) {
        core.replayed = loaded.replayed.changes;
        core.replayed_bytes = loaded.replayed.reached.bytes;
    }
    let total = loaded.iter().fold(StateDigest::default(), |sum, core| sum.plus(core.digest));
    let cores: Option<Vec<_>> = loaded.iter().map(|core| core.expected).collect();
    let mut expected = cores.map(|cores| cores.into_iter().fold(StateDigest::default(), StateDigest::plus));
    if let Some(rebuilt) = rebuilt {
        report.cores.clone_from(&rebuilt.cores);
        report.resharded_from = rebuilt.from_cores;
        expected = rebuilt.expected.or(expected);
    }
    let mut cores = (0..).map(CoreId).zip(loaded);
    let wrong = cores.find(|(_, loaded)| loaded.expected.is_some_and(|expected| expected != loaded.digest));
    if let Some((core, _)) = wrong.filter(|_| !sabotaged(Sabotage::DigestUnchecked)) {
        return Err(digest_mismatch(builder, located, Some(core)));
    }
    match expected {
        Some(expected) if expected != total && !sabotaged(Sabotage::DigestUnchecked) => {
            return Err(digest_mismatch(builder, located, None));
        }
        Some(_) => report.digest = DigestCheck::Verified,
        None => report.digest = DigestCheck::NotStored,
    }
    let offsets: Vec<_> = loaded.iter().map(|core| core.offsets.clone()).collect();
    (report.source_offsets, report.watermark) = flatten(&offsets);
    report.keys = total.live_keys;
    Ok(report)
}

fn digest_mismatch(builder: &StoreBuilder, located: &Located, core: Option<CoreId>) -> StoreError {
    let after = located.metadata().map_or(Epoch::ZERO, |metadata| Epoch(metadata.epoch));
    let wrong = Mismatch { core, after, at: located.plan.point };
    StoreError::corruption(wrong.detail("recovered").at_path(builder.path()).remedy(
        "If one key was written on two cores, that is why: open with the number of cores it was written with. \
         Otherwise report this with a copy of the directory; nothing was changed.",
    ))
}

/// Begins a new incarnation on what was found, and starts the background work.
///
/// On a full disk there is none to begin: then the state that was found, which is durable, is handed out to be read, and
/// the store is poisoned from the start.
fn begin(
    builder: &StoreBuilder,
    layout: &Layout,
    located: &Located,
    loaded: Vec<Loaded>,
    measured: Recovered,
    locks: Locks,
    is_part: bool,
) -> Result<(Store, Vec<CoreStore>), StoreError> {
    let point = located.plan.point;
    let commits = Arc::new(Commits::new(builder.settings_ref().recovery_objective().is_some()));
    let mut manager = IncrementalCheckpointManager::open_on(
        builder.checkpoint_config(layout),
        Arc::clone(builder.vfs_ref()),
        builder.manager_options_ref().clone(),
        located.checkpoint.as_ref(),
        Arc::clone(&locks.checkpoints),
    )?;
    manager.make_way_for(&commits);
    #[cfg(feature = "object-store")]
    let mut opening = None;
    let (writers, begun) = match begin_log(builder, layout, located, &locks)? {
        Ok(wal) => {
            let checkpointer = checkpointer(builder, located, &loaded, manager, &wal)?;
            #[cfg(feature = "object-store")]
            {
                opening = Some(checkpointer.opening());
            }
            (wal.into_writers(), Ok(checkpointer))
        }
        Err(full) => (Vec::new(), Err(StoreError::from(full))),
    };
    let mut drains = Vec::with_capacity(loaded.len());
    let mut halves = Vec::with_capacity(loaded.len());
    for mut core in loaded {
        core.drain.set_digest(core.digest);
        drains.push(core.drain);
        halves.push((core.state, core.offsets));
    }
    let settled = is_part.then(|| Arc::new(Settled::starting_at(point)));
    let drain = Drain::new(drains, writers, point, commits, settled);
    let inline = !builder.vfs_ref().parallel();
    let settings = builder.settings_ref().clone();
    let shared = match begun {
        Ok(checkpointer) => Shared::new(settings, drain, checkpointer, &measured, inline),
        Err(cause) => {
            tracing::error!(error = %cause, "opened to be read only: there is no space for a log");
            Shared::stalled(settings, drain, &standing(located), &measured, inline, &cause)
        }
    };
    let shared = Arc::new(shared);
    let no_thread = |e| {
        let detail = io_detail("could not start the background threads", &layout.dir, e);
        StoreError::Io(Box::new(detail.remedy("Raise the limit of threads (`ulimit -u`), then open again.")))
    };
    #[cfg_attr(
        not(feature = "object-store"),
        expect(unused_mut, reason = "the thread for backups comes with the feature")
    )]
    let mut threads = shared.start().map_err(no_thread)?;
    #[cfg(feature = "object-store")]
    match super::backups::start(builder, layout, located, opening, &shared) {
        Ok(thread) => threads.extend(thread),
        Err(e) => {
            let _ = shared.close(&mut threads);
            return Err(no_thread(e));
        }
    }
    let cores = halves
        .into_iter()
        .map(|(state, offsets)| CoreStore::new(state, offsets, point, Arc::clone(&shared)))
        .collect();
    Ok((Store::new(shared, threads, locks, layout.dir.clone()), cores))
}

/// Makes durable what was found, and begins the new incarnation of the log. The inner error is that there is no space for
/// it; who finds no log at all has nothing to read either, and for him it is an error like any other.
fn begin_log(
    builder: &StoreBuilder,
    layout: &Layout,
    located: &Located,
    locks: &Locks,
) -> Result<Result<PerCoreWalManager, PerCoreWalError>, PerCoreWalError> {
    let (config, survey) = (builder.wal_config(layout), &located.plan.survey);
    let secured = PerCoreWalManager::secure(&config, survey)?;
    let beginning = Beginning {
        core_count: builder.core_count(),
        mode: WalMode::Epochs,
        epoch: first_epoch(located),
        after: located.plan.base.as_ref().map_or(Sequence::ZERO, Base::last_covered),
        void_above: located.plan.point,
        reset: false,
    };
    let (vfs, dir) = (Arc::clone(config.vfs()), config.base_dir.clone());
    let exists = survey.current.is_some() || survey.has_records();
    match PerCoreWalManager::begin(config, Arc::clone(&locks.wal), secured, beginning) {
        Err(error) if exists && error.detail().is_out_of_space() => {
            testify_to(vfs.as_ref(), &dir, survey);
            Ok(Err(error))
        }
        begun => begun.map(Ok),
    }
}

/// What there is to be read, for a store that writes nothing.
fn standing(located: &Located) -> Standing {
    let survey = &located.plan.survey;
    let cores = survey.cores.iter().filter(|log| log.core.0 < survey.core_count());
    let positions = cores.map(CoreLog::position);
    let newest = located.metadata().map(|newest| (CheckpointId(newest.id), Epoch(newest.epoch)));
    Standing { wal_bytes: positions.fold(0, u64::saturating_add), newest }
}

/// What makes the checkpoints, going on from what was found.
fn checkpointer(
    builder: &StoreBuilder,
    located: &Located,
    loaded: &[Loaded],
    mut manager: IncrementalCheckpointManager,
    wal: &PerCoreWalManager,
) -> Result<Checkpointer, StoreError> {
    manager.bind_wal(wal.store_id())?;
    manager.set_core_count(usize::from(builder.core_count()))?;
    manager.set_core_offsets(loaded.iter().map(|core| core.offsets.clone()).collect())?;
    let cuts = (0..builder.core_count())
        .map(CoreId)
        .map(|core| located.plan.base.as_ref().map_or(Sequence::ZERO, |base| base.cut(core)));
    let found = Found {
        survey: located.plan.survey.clone(),
        cuts: cuts.collect(),
        digests: loaded.iter().map(|core| core.digest).collect(),
        point: located.plan.point,
        starts: wal.headers().into_iter().map(Place::beginning).collect(),
    };
    Checkpointer::new(manager, wal.truncation_scope(), found)
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::format::MAX_CORES;

    /// 1024 cores with three times 64 GiB each would be more than all the addresses that a process has.
    #[test]
    fn all_cores_together_leave_addresses_to_the_rest_of_the_program() {
        let limit = 64 << 30;
        for cores in 1..=u16::try_from(MAX_CORES).unwrap() {
            let each = limit_bytes(limit, cores);
            assert!(each * 3 * u64::from(cores) <= MOST_RESERVED && each >= 10 << 30, "{cores}");
        }
        assert_eq!(limit_bytes(limit, 170), limit, "the default is what it says on usual machines");
        assert_eq!(limit_bytes(10 << 40, 1), 10 << 40);
    }
}
