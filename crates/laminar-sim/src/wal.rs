//! Scenarios of the low-level functions: the logs of several cores, and logs with checkpoints.
//!
//! What is promised there: after recovery every core has a prefix of what was appended to it, in order,
//! with at least everything up to its last sync; after a reset all cores are empty, or none is.

use std::path::Path;
use std::sync::Arc;

use laminar_storage::incremental::{CheckpointConfig, RecoveryConfig};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalError, PerCoreWalManager,
    WalOperation,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{ImageId, SimDisk};

use crate::driver::Scenario;
use crate::log::Log;
use crate::oracle::State;

const WAL: &str = "/wal";
const CHECKPOINTS: &str = "/checkpoints";

/// One thing that a program does with a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalDo {
    /// Appends so many records with values of so many bytes to a core.
    Append(usize, usize, usize),
    /// Syncs one core.
    Sync(usize),
    /// Syncs all cores.
    SyncAll,
    /// Closes the epoch on all cores and begins the next, without a sync.
    Epoch,
    /// Makes a checkpoint and cuts the log.
    Checkpoint,
    /// Makes a checkpoint and leaves the log as it is.
    CheckpointOnly,
    /// Syncs all cores through the coordinator.
    Flush,
    /// Appends source offset and watermark to the log of core 0.
    Commit(u64, i64),
    /// Reads every synced record back, merged.
    Merge,
    /// Opens the log again.
    Reopen,
    /// Forgets everything.
    Reset,
}

/// What is appended to a core.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Change {
    /// A key with its new value.
    Key(Vec<u8>, Option<Vec<u8>>),
    /// A source offset and a watermark.
    Position(u64, i64),
}

/// What was appended to a core.
type Ops = Vec<Change>;

/// What a core holds, and its source offset and watermark.
type Found = (State, Option<(u64, i64)>);

/// What is known of the logs.
#[derive(Clone, Debug, Default, Hash)]
pub struct WalModel {
    cores: Vec<(Ops, usize)>,
    /// A reset is under way.
    resetting: bool,
}

impl WalModel {
    fn synced(&mut self, core: usize) {
        let (ops, synced) = &mut self.cores[core];
        *synced = ops.len();
    }

    /// How much of every core's log the state found holds.
    fn check(&self, found: &[Found]) -> Result<Vec<usize>, String> {
        if self.resetting && found.iter().all(|core| *core == Found::default()) {
            return Ok(vec![0; found.len()]);
        }
        let mut prefixes = Vec::new();
        for (core, ((ops, synced), found)) in self.cores.iter().zip(found).enumerate() {
            let fits = (0..=ops.len()).rev().find(|n| apply(&ops[..*n]) == *found);
            match fits {
                Some(n) if n >= *synced => prefixes.push(n),
                Some(n) => return Err(format!("LOST: core {core} has {n} records, {synced} were synced")),
                None => return Err(format!("WRONG: core {core} has no prefix of its {} records", ops.len())),
            }
        }
        Ok(prefixes)
    }

    fn adopt(&mut self, prefixes: &[usize]) {
        self.resetting = false;
        for ((ops, synced), prefix) in self.cores.iter_mut().zip(prefixes) {
            ops.truncate(*prefix);
            *synced = *prefix;
        }
    }
}

fn apply(ops: &[Change]) -> Found {
    let (mut state, mut position) = Found::default();
    for change in ops {
        match change {
            Change::Key(key, Some(value)) => drop(state.insert(key.clone(), value.clone())),
            Change::Key(key, None) => drop(state.remove(key)),
            Change::Position(offset, watermark) => position = Some((*offset, *watermark)),
        }
    }
    (state, position)
}

/// A script on a log of several cores.
#[derive(Clone, Debug)]
pub struct WalScenario {
    /// Its name.
    pub name: &'static str,
    /// Cores.
    pub cores: usize,
    /// With checkpoints.
    pub coordinated: bool,
    /// Bytes written ahead.
    pub preallocation: u64,
    /// Recovery repairs all segments first.
    pub repairs: bool,
    /// What is done.
    pub script: Vec<WalDo>,
}

/// A log, with its checkpoints or without.
enum Open {
    Plain(PerCoreWalManager),
    Coordinated(Box<CheckpointCoordinator>),
}

impl Open {
    fn wal(&mut self) -> &mut PerCoreWalManager {
        match self {
            Self::Plain(wal) => wal,
            Self::Coordinated(coordinator) => coordinator.wal_manager_mut(),
        }
    }
}

fn text<T>(result: Result<T, PerCoreWalError>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

impl WalScenario {
    fn config(&self, vfs: &Arc<dyn Vfs>) -> PerCoreWalConfig {
        PerCoreWalConfig::new(Path::new(WAL), self.cores)
            .with_segment_size(4096)
            .with_preallocation(self.preallocation)
            .with_vfs(Arc::clone(vfs))
    }

    fn repaired(self) -> Self {
        Self { repairs: true, ..self }
    }

    fn open(&self, vfs: &Arc<dyn Vfs>) -> Result<Open, PerCoreWalError> {
        let wal = PerCoreWalManager::new(self.config(vfs))?;
        if !self.coordinated {
            return Ok(Open::Plain(wal));
        }
        let config = CheckpointConfig::new(Path::new(CHECKPOINTS)).with_max_retained(2);
        Ok(Open::Coordinated(Box::new(CheckpointCoordinator::new(wal, config)?)))
    }

    /// What recovery finds, core by core.
    fn find(&self, vfs: &Arc<dyn Vfs>) -> Result<Vec<Found>, String> {
        let config = RecoveryConfig::new(Path::new(CHECKPOINTS), Path::new(WAL));
        let recovered = text(PerCoreRecoveryManager::new(self.config(vfs), config).recover())?;
        let mut states = vec![Found::default(); self.cores];
        let base = &recovered.base_state;
        states[0].1 = base.source_offsets.get("in").copied().zip(base.watermark);
        for (key, value) in recovered.state().iter() {
            let core = usize::from(key.first().copied().unwrap_or(0));
            let (state, _) = states.get_mut(core).ok_or("WRONG: a key of no core")?;
            state.insert(key.to_vec(), value.to_vec());
        }
        Ok(states)
    }

    /// Whether what was synced is there when the power goes now.
    fn survives_power_cut(&self, disk: &SimDisk, model: &WalModel) -> Result<(), String> {
        if disk.has_lost_names() {
            return Ok(());
        }
        let cut: Arc<dyn Vfs> = Arc::new(disk.snapshot().image(&ImageId::default()).mount());
        model.check(&self.find(&cut)?).map(drop)
    }

    /// Judges what recovery finds, and opens the log, which makes it durable.
    fn reopen(&self, disk: &SimDisk, log: &mut Log<WalModel>) -> Result<Open, String> {
        let vfs = &log.vfs(disk);
        let found = self.find(vfs)?;
        let prefixes = log.model().check(&found)?;
        if self.repairs {
            let config = RecoveryConfig::new(Path::new(CHECKPOINTS), Path::new(WAL));
            text(PerCoreRecoveryManager::new(self.config(vfs), config).repair_all_segments())?;
        }
        let open = text(self.open(vfs))?;
        log.note(disk, |model| model.adopt(&prefixes));
        let again = self.find(vfs)?;
        if again != found {
            return Err("WRONG: opening changed what is recovered".into());
        }
        Ok(open)
    }

    fn act(
        &self,
        act: WalDo,
        open: &mut Open,
        disk: &SimDisk,
        log: &mut Log<WalModel>,
    ) -> Result<(), String> {
        match act {
            WalDo::Append(core, count, len) => {
                for _ in 0..count {
                    let number = log.model().cores[core].0.len();
                    let slot = u8::try_from(number % 5).unwrap_or_default();
                    let key = vec![u8::try_from(core).unwrap_or_default(), slot];
                    // Every change makes a difference, so that what is found tells how many there were.
                    let there = apply(&log.model().cores[core].0).0.contains_key(&key);
                    let value = (number % 7 != 3 || !there).then(|| {
                        let fill = byte(disk.seed(), number);
                        [number.to_string().as_bytes(), &vec![fill; len]].concat()
                    });
                    let change = Change::Key(key.clone(), value.clone());
                    log.note(disk, |model| model.cores[core].0.push(change));
                    let writer = open.wal().writer(core);
                    text(match &value {
                        Some(value) => writer.append_put(&key, value),
                        None => writer.append_delete(&key),
                    })?;
                }
                Ok(())
            }
            WalDo::Sync(core) => {
                text(open.wal().writer(core).sync())?;
                log.note(disk, |model| model.synced(core));
                Ok(())
            }
            WalDo::SyncAll => {
                text(open.wal().sync_all())?;
                log.note(disk, |model| (0..self.cores).for_each(|core| model.synced(core)));
                Ok(())
            }
            WalDo::Epoch => {
                text(open.wal().write_epoch_barrier_all())?;
                text(open.wal().advance_epoch()).map(drop)
            }
            WalDo::Checkpoint | WalDo::CheckpointOnly => {
                let Open::Coordinated(coordinator) = open else { return Ok(()) };
                let newest = coordinator.checkpoint_manager().latest_checkpoint_id().unwrap_or(0);
                text(if act == WalDo::Checkpoint {
                    coordinator.create_checkpoint(newest + 1)
                } else {
                    coordinator.create_checkpoint_no_truncate(newest + 1)
                })?;
                log.note(disk, |model| (0..self.cores).for_each(|core| model.synced(core)));
                Ok(())
            }
            WalDo::Flush => {
                let Open::Coordinated(coordinator) = open else { return Ok(()) };
                text(coordinator.flush())?;
                log.note(disk, |model| (0..self.cores).for_each(|core| model.synced(core)));
                Ok(())
            }
            WalDo::Commit(offset, watermark) => {
                let offset = offset + 1000 * log.model().cores[0].0.len() as u64;
                log.note(disk, |model| model.cores[0].0.push(Change::Position(offset, watermark)));
                let offsets = [("in".to_owned(), offset)].into();
                text(open.wal().writer(0).append_commit(offsets, Some(watermark))).map(drop)
            }
            WalDo::Merge => merged_is(open.wal(), log.model()),
            WalDo::Reopen => Ok(()),
            WalDo::Reset => {
                log.note(disk, |model| model.resetting = true);
                text(open.wal().reset_all())?;
                log.note(disk, |model| model.adopt(&vec![0; self.cores]));
                Ok(())
            }
        }
    }
}

/// Whether the log, merged, is what was appended and synced, core by core in order.
fn merged_is(wal: &PerCoreWalManager, model: &WalModel) -> Result<(), String> {
    let merged = text(wal.merge_segments())?;
    if !merged.is_sorted() {
        return Err("WRONG: merged records are not in order".into());
    }
    for (core, (ops, synced)) in model.cores.iter().enumerate() {
        let own = merged.iter().filter(|entry| entry.core_id == core);
        let own: Ops = own
            .filter_map(|entry| match &entry.operation {
                WalOperation::Put { key, value } => Some(Change::Key(key.clone(), Some(value.clone()))),
                WalOperation::Delete { key } => Some(Change::Key(key.clone(), None)),
                WalOperation::Commit { offsets, watermark } => {
                    Some(Change::Position(offsets.get("in").copied()?, (*watermark)?))
                }
                WalOperation::Checkpoint { .. } | WalOperation::EpochBarrier { .. } => None,
            })
            .collect();
        if own != ops[..*synced] {
            return Err(format!("WRONG: core {core}: {} records merged, {synced} were synced", own.len()));
        }
    }
    Ok(())
}

fn byte(seed: u64, number: usize) -> u8 {
    (number as u64).wrapping_mul(167).wrapping_add(seed).to_le_bytes()[0]
}

impl Scenario for WalScenario {
    type Model = WalModel;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn start(&self) -> WalModel {
        WalModel { cores: vec![(Ops::new(), 0); self.cores], resetting: false }
    }

    fn run(&self, disk: &SimDisk, log: &mut Log<WalModel>) -> Result<(), String> {
        let mut open = text(self.open(&log.vfs(disk)))?;
        for act in &self.script {
            if *act == WalDo::Reopen {
                drop(open);
                open = self.reopen(disk, log)?;
            }
            self.act(*act, &mut open, disk, log)?;
        }
        Ok(())
    }

    fn recover(&self, disk: &SimDisk, log: &mut Log<WalModel>) -> Result<(), String> {
        self.reopen(disk, log).map(drop)
    }

    fn go_on(&self, disk: &SimDisk, log: &mut Log<WalModel>) -> Result<(), String> {
        let mut open = self.reopen(disk, log).map_err(|e| format!("opened twice: {e}"))?;
        let work = [WalDo::Append(0, 1, 30), WalDo::Commit(99, 9), WalDo::Append(self.cores - 1, 2, 10)];
        for act in work.into_iter().chain([WalDo::SyncAll]) {
            self.act(act, &mut open, disk, log)?;
        }
        if self.coordinated {
            self.act(WalDo::Checkpoint, &mut open, disk, log)?;
        } else {
            self.act(WalDo::Merge, &mut open, disk, log)?;
        }
        self.act(WalDo::Append(0, 1, 10), &mut open, disk, log)?;
        drop(open);
        self.survives_power_cut(disk, log.model()).map_err(|e| format!("after a power cut: {e}"))?;
        self.reopen(disk, log).map(drop)
    }

    fn read_when_full(&self, disk: &SimDisk, log: &Log<WalModel>) -> Result<(), String> {
        let vfs = log.vfs(disk);
        log.model().check(&self.find(&vfs)?)?;
        // It may want for space to begin a new incarnation.
        match self.open(&vfs) {
            Err(error) if !error.detail().is_out_of_space() => return Err(format!("open: {error}")),
            _ => {}
        }
        log.model().check(&self.find(&vfs)?).map(drop)
    }
}

/// All scenarios of the low-level functions.
#[must_use]
pub fn wal_scenarios() -> Vec<WalScenario> {
    let scenario = |name, cores, script: Vec<WalDo>| WalScenario {
        name,
        cores,
        coordinated: false,
        preallocation: 0,
        repairs: false,
        script,
    };
    let coordinated =
        |name, cores, script| WalScenario { coordinated: true, ..scenario(name, cores, script) };
    vec![
        scenario("wal-plain", 2, plain()),
        scenario("wal-four-cores", 4, four_cores()),
        scenario("wal-roll", 1, roll()),
        WalScenario { preallocation: 4096, ..scenario("wal-preallocated", 2, plain()) },
        WalScenario { repairs: true, ..scenario("wal-repaired", 2, plain()) },
        scenario("wal-reset", 2, reset()),
        scenario("wal-positions", 1, positions()),
        coordinated("wal-checkpoints", 2, checkpoints()),
        coordinated("wal-checkpoints-kept", 1, kept()),
        coordinated("wal-reused", 1, reused()),
        coordinated("wal-checkpoints-repaired", 2, kept()).repaired(),
    ]
}

fn plain() -> Vec<WalDo> {
    use WalDo::{Append, Epoch, Merge, Reopen, Sync, SyncAll};
    let mut script = vec![Append(0, 4, 40), Append(1, 2, 300), SyncAll, Append(1, 3, 20), Sync(1)];
    script.extend([Append(0, 2, 700), Epoch, Append(0, 1, 10), Sync(0), Append(1, 2, 10), Merge, Reopen]);
    script.extend([Append(1, 1, 10), SyncAll, Merge]);
    script
}

fn four_cores() -> Vec<WalDo> {
    use WalDo::{Append, Epoch, Merge, Reopen, Sync, SyncAll};
    let mut script = vec![Append(0, 1, 40), Append(3, 2, 30), Sync(3), Append(2, 1, 600), SyncAll, Epoch];
    script.extend([Append(1, 2, 20), Sync(1), Sync(0), Merge, Reopen, Append(2, 1, 9), SyncAll, Merge]);
    script
}

fn roll() -> Vec<WalDo> {
    use WalDo::{Append, Reopen, Sync, SyncAll};
    vec![Append(0, 6, 900), Sync(0), Append(0, 4, 1500), SyncAll, Append(0, 3, 2000), Reopen]
}

fn reset() -> Vec<WalDo> {
    use WalDo::{Append, Merge, Reopen, Reset, SyncAll};
    let mut script = vec![Append(0, 3, 40), Append(1, 3, 40), SyncAll, Reset, Append(0, 2, 40), SyncAll];
    script.extend([Append(1, 2, 40), Merge, Reopen, Append(1, 1, 10), Reset, Reset]);
    script
}

fn positions() -> Vec<WalDo> {
    use WalDo::{Append, Commit, Epoch, Merge, Reopen, Reset, Sync, SyncAll};
    let mut script = vec![Commit(5, 50), Append(0, 1, 20), SyncAll, Commit(3, 60), Sync(0), Epoch];
    script.extend([Commit(9, -1), Append(0, 2, 500), Commit(10, 7), Merge, Reopen, Commit(2, 2), SyncAll]);
    script.extend([Reset, Commit(1, 1), Sync(0), Merge]);
    script
}

fn checkpoints() -> Vec<WalDo> {
    use WalDo::{Append, Checkpoint, Commit, Reopen, SyncAll};
    let mut script = Vec::new();
    for round in 0..4 {
        script.extend([Append(0, 3, 700), Append(1, 1 + round, 400), SyncAll, Append(0, 1, 30)]);
        script.extend([Commit(round as u64, 5), Checkpoint]);
    }
    script.extend([Append(1, 2, 30), Reopen, Append(0, 1, 30), Checkpoint]);
    script
}

/// Segments that the log was cut by are used again.
fn reused() -> Vec<WalDo> {
    use WalDo::{Append, Checkpoint, SyncAll};
    let mut script = Vec::new();
    for round in 0..7 {
        script.extend([Append(0, 6, 900), SyncAll, Checkpoint, Append(0, 1 + round, 40), SyncAll]);
    }
    script.extend([Append(0, 2, 300), SyncAll, Append(0, 1, 5)]);
    script
}

fn kept() -> Vec<WalDo> {
    use WalDo::{Append, Checkpoint, CheckpointOnly, Commit, Flush, Reopen};
    let mut script = vec![Append(0, 2, 40), CheckpointOnly, Append(0, 2, 900), Flush, Commit(4, 4)];
    script.extend([CheckpointOnly, Append(0, 1, 30), Reopen, Append(0, 2, 30), CheckpointOnly, Checkpoint]);
    script.extend([Append(0, 1, 2000), Checkpoint, Reopen, Flush, CheckpointOnly]);
    script
}
