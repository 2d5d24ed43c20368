//! The predecessor's log and checkpoints, put together as its documentation does it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use laminar_core::state::StateSnapshot;
use laminar_storage::{
    CheckpointConfig, CheckpointCoordinator, PerCoreRecoveryManager, PerCoreWalConfig, PerCoreWalManager,
    RecoveryConfig, WalOperation, recover_per_core,
};

use crate::Error;
use crate::keys::{key, value};

/// As all peers have.
const CORES: usize = 1;

pub type Map = HashMap<Vec<u8>, Vec<u8>>;

/// Who gives a checkpoint the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checkpoint {
    /// `create_checkpoint` of the coordinator, which merges the log.
    OfLog,
    /// `create_checkpoint_with_state`, which is handed a snapshot of a map that the application has.
    WithState,
}

pub struct Store {
    coordinator: CheckpointCoordinator,
    /// What the application has, if snapshots are made of it.
    state: Option<Map>,
    checkpoints: u64,
}

impl Store {
    /// A new one, in a directory that does not exist yet.
    pub fn create(dir: &Path, checkpoint: Checkpoint) -> Result<Self, Error> {
        fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let log = PerCoreWalManager::new(PerCoreWalConfig::new(&log_dir(dir), CORES))?;
        let config = CheckpointConfig::new(&checkpoint_dir(dir)).with_wal_path(&log_dir(dir));
        let coordinator = CheckpointCoordinator::new(log, config)?;
        let state = (checkpoint == Checkpoint::WithState).then(Map::new);
        Ok(Self { coordinator, state, checkpoints: 0 })
    }

    /// Gives keys a value of this version, durably.
    pub fn put(&mut self, numbers: impl Iterator<Item = u64>, version: u32) -> Result<(), Error> {
        let writer = self.coordinator.wal_manager_mut().writer(0);
        for number in numbers {
            let (key, value) = (key(number), value(number, version));
            writer.append_put(&key, &value)?;
            if let Some(state) = &mut self.state {
                state.insert(key.to_vec(), value.to_vec());
            }
        }
        Ok(writer.sync()?)
    }

    /// Either kind leaves an empty log.
    pub fn checkpoint(&mut self) -> Result<(), Error> {
        self.checkpoints += 1;
        match &self.state {
            None => {
                self.coordinator.create_checkpoint(self.checkpoints)?;
            }
            Some(state) => {
                let pairs = state.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
                let snapshot = StateSnapshot::new(pairs).to_bytes()?;
                let checkpoints = self.coordinator.checkpoint_manager_mut();
                checkpoints.create_checkpoint_with_state(0, HashMap::new(), None, &snapshot)?;
                // Its own way of doing this is part of the other kind.
                self.coordinator.wal_manager_mut().reset_all()?;
            }
        }
        Ok(())
    }
}

fn log_dir(dir: &Path) -> PathBuf {
    dir.join("wal")
}

fn checkpoint_dir(dir: &Path) -> PathBuf {
    dir.join("checkpoints")
}

/// What comes back from the last checkpoint, and the log after it.
pub fn recovered(dir: &Path) -> Result<Map, Error> {
    let recovered = recover_per_core(&log_dir(dir), &checkpoint_dir(dir), CORES)?;
    let mut map = Map::new();
    if let Some(snapshot) = &recovered.base_state.state_snapshot {
        map.extend(snapshot.data().iter().cloned());
    }
    for change in recovered.state_changes {
        apply(&mut map, change.key, change.value);
    }
    Ok(map)
}

/// What comes back from a log without any checkpoint.
pub fn read_log(dir: &Path) -> Result<Map, Error> {
    let log = PerCoreWalConfig::new(&log_dir(dir), CORES);
    let checkpoints = RecoveryConfig::new(&checkpoint_dir(dir), &log.segment_path(0));
    let mut map = Map::new();
    for entry in PerCoreRecoveryManager::new(log, checkpoints).recover_wal_only()? {
        match entry.operation {
            WalOperation::Put { key, value } => apply(&mut map, key, Some(value)),
            WalOperation::Delete { key } => apply(&mut map, key, None),
            _ => {}
        }
    }
    Ok(map)
}

fn apply(map: &mut Map, key: Vec<u8>, value: Option<Vec<u8>>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
