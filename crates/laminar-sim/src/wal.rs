//! Scenarios of the low-level functions: the logs of several cores, and logs with checkpoints.
//!
//! What is promised there: after recovery every core has a prefix of what was appended to it, in order,
//! with at least everything up to its last sync; after a reset all cores are empty, or none is.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use laminar_storage::incremental::{CheckpointConfig, RecoveryConfig};
use laminar_storage::per_core_wal::{
    CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalError, PerCoreWalManager,
};
use laminar_storage::vfs::sim::SimDisk;

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
    /// Opens the log again.
    Reopen,
    /// Forgets everything.
    Reset,
}

/// What was appended to a core: keys with their new values.
type Ops = Vec<(Vec<u8>, Option<Vec<u8>>)>;

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
    fn check(&self, found: &[State]) -> Result<Vec<usize>, String> {
        if self.resetting && found.iter().all(BTreeMap::is_empty) {
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

fn apply(ops: &[(Vec<u8>, Option<Vec<u8>>)]) -> State {
    let mut state = State::new();
    for (key, value) in ops {
        match value {
            Some(value) => drop(state.insert(key.clone(), value.clone())),
            None => drop(state.remove(key)),
        }
    }
    state
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
    fn config(&self, disk: &SimDisk) -> PerCoreWalConfig {
        PerCoreWalConfig::new(Path::new(WAL), self.cores)
            .with_segment_size(4096)
            .with_preallocation(self.preallocation)
            .with_vfs(Arc::new(disk.clone()))
    }

    fn open(&self, disk: &SimDisk) -> Result<Open, String> {
        let wal = text(PerCoreWalManager::new(self.config(disk)))?;
        if !self.coordinated {
            return Ok(Open::Plain(wal));
        }
        let config = CheckpointConfig::new(Path::new(CHECKPOINTS)).with_max_retained(2);
        Ok(Open::Coordinated(Box::new(text(CheckpointCoordinator::new(wal, config))?)))
    }

    /// What recovery finds, core by core.
    fn find(&self, disk: &SimDisk) -> Result<Vec<State>, String> {
        let config = RecoveryConfig::new(Path::new(CHECKPOINTS), Path::new(WAL));
        let recovered = text(PerCoreRecoveryManager::new(self.config(disk), config).recover())?;
        let mut states = vec![State::new(); self.cores];
        for (key, value) in recovered.state().iter() {
            let core = usize::from(key.first().copied().unwrap_or(0));
            let state = states.get_mut(core).ok_or("a key of no core")?;
            state.insert(key.to_vec(), value.to_vec());
        }
        Ok(states)
    }

    /// Judges what recovery finds, and opens the log, which makes it durable.
    fn reopen(&self, disk: &SimDisk, log: &mut Log<WalModel>) -> Result<Open, String> {
        let found = self.find(disk)?;
        let prefixes = log.model().check(&found)?;
        let open = self.open(disk)?;
        log.note(disk, |model| model.adopt(&prefixes));
        let again = self.find(disk)?;
        if again != found {
            return Err("opening changed what is recovered".into());
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
                    let value = (number % 7 != 3).then(|| {
                        let fill = disk_byte(number);
                        [number.to_string().as_bytes(), &vec![fill; len]].concat()
                    });
                    let (at, change) = (core, (key.clone(), value.clone()));
                    log.note(disk, |model| model.cores[at].0.push(change));
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
            WalDo::Checkpoint => {
                let Open::Coordinated(coordinator) = open else { return Ok(()) };
                let newest = coordinator.checkpoint_manager().latest_checkpoint_id().unwrap_or(0);
                text(coordinator.create_checkpoint(newest + 1))?;
                log.note(disk, |model| (0..self.cores).for_each(|core| model.synced(core)));
                Ok(())
            }
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

fn disk_byte(number: usize) -> u8 {
    u8::try_from(number.wrapping_mul(167) % 251).unwrap_or_default()
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
        let mut open = self.open(disk)?;
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
        let mut open = self.reopen(disk, log)?;
        let work = [WalDo::Append(0, 1, 30), WalDo::Append(self.cores - 1, 2, 10), WalDo::SyncAll];
        for act in work {
            self.act(act, &mut open, disk, log)?;
        }
        if self.coordinated {
            self.act(WalDo::Checkpoint, &mut open, disk, log)?;
        }
        drop(open);
        self.reopen(disk, log).map(drop)
    }
}

/// All scenarios of the low-level functions.
#[must_use]
pub fn wal_scenarios() -> Vec<WalScenario> {
    use WalDo::{Append, Checkpoint, Epoch, Reopen, Reset, Sync, SyncAll};
    let scenario = |name, cores, coordinated, preallocation, script: &[WalDo]| {
        let script = script.to_vec();
        WalScenario { name, cores, coordinated, preallocation, script }
    };
    let plain = [
        Append(0, 4, 40),
        Append(1, 2, 300),
        SyncAll,
        Append(1, 3, 20),
        Sync(1),
        Append(0, 2, 700),
        Epoch,
        Append(0, 1, 10),
        Sync(0),
        Append(1, 2, 10),
        Reopen,
        Append(1, 1, 10),
        SyncAll,
    ];
    let roll = [Append(0, 6, 900), Sync(0), Append(0, 4, 1500), SyncAll, Append(0, 3, 2000), Reopen];
    let reset = [
        Append(0, 3, 40),
        Append(1, 3, 40),
        SyncAll,
        Reset,
        Append(0, 2, 40),
        SyncAll,
        Append(1, 2, 40),
        Reopen,
        Append(1, 1, 10),
        Reset,
        Reset,
    ];
    let mut coordinated = Vec::new();
    for round in 0..4 {
        coordinated.extend([Append(0, 3, 700), Append(1, 1 + round, 400), SyncAll, Append(0, 1, 30)]);
        coordinated.push(Checkpoint);
    }
    coordinated.extend([Append(1, 2, 30), Reopen, Append(0, 1, 30), Checkpoint]);
    vec![
        scenario("wal-plain", 2, false, 0, &plain),
        scenario("wal-roll", 1, false, 0, &roll),
        scenario("wal-preallocated", 2, false, 4096, &plain),
        scenario("wal-reset", 2, false, 0, &reset),
        scenario("wal-checkpoints", 2, true, 0, &coordinated),
    ]
}
