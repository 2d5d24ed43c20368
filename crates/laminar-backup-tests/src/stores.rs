//! Checkpoints to back up, and what must come out of a restore.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use laminar_storage::backup::object_store::{ObjectStore, path};
use laminar_storage::backup::{BackupOptions, BackupOwner, BackupTarget, BackupWriter, restore};
use laminar_storage::ids::{Incarnation, StoreId};
use laminar_storage::incremental::{
    CheckpointConfig, CheckpointReader, IncrementalCheckpointError, IncrementalCheckpointManager,
};
use laminar_storage::vfs::OsVfs;

/// A state, as a test compares it.
pub type State = BTreeMap<Vec<u8>, Vec<u8>>;

/// Checkpoints, one built upon the other, that share files.
pub struct Checkpoints {
    temporary: tempfile::TempDir,
    dirs: Vec<PathBuf>,
    states: Vec<State>,
}

impl Checkpoints {
    /// So many checkpoints; each changes a few keys.
    pub fn new(count: usize) -> Self {
        Self::of_size(count, 60, 40)
    }

    /// Small ones that share no file, so that what one of them needed can go with it.
    pub fn full(count: usize) -> Self {
        Self::make(count, 3, 10, false)
    }

    /// As [`Self::new`], with a choice of the number of keys at first and the length of values.
    pub fn of_size(count: usize, keys: u64, value: usize) -> Self {
        Self::make(count, keys, value, true)
    }

    fn make(count: usize, keys: u64, value: usize, incremental: bool) -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let config = CheckpointConfig::new(&temporary.path().join("checkpoints"))
            .with_max_retained(count.max(1))
            .with_incremental(incremental);
        let mut manager = IncrementalCheckpointManager::new(config).unwrap();
        let (mut dirs, mut states, mut state) = (Vec::new(), Vec::new(), State::new());
        for round in 0..count as u64 {
            let keys = if round == 0 { keys } else { 7 };
            for key in 0..keys {
                let mut text = format!("{round}-{key}-").into_bytes();
                text.resize(value.max(text.len()), b'x');
                let key = format!("key-{:05}", key * 13 % 1000 + round).into_bytes();
                manager.put(&key, &text).unwrap();
                state.insert(key, text);
            }
            manager.set_epoch(round + 1);
            let made = manager.create_checkpoint(0).unwrap();
            dirs.push(made.checkpoint_path(&temporary.path().join("checkpoints")));
            states.push(state.clone());
        }
        Self { temporary, dirs, states }
    }

    /// A checkpoint, open.
    pub fn open(&self, at: usize) -> CheckpointReader {
        CheckpointReader::open(&OsVfs::new(), &self.dirs[at]).unwrap()
    }

    /// The state of a checkpoint.
    pub fn state(&self, at: usize) -> &State {
        &self.states[at]
    }

    /// Which checkpoint has this state.
    pub fn position(&self, state: &State) -> Option<usize> {
        self.states.iter().position(|known| known == state)
    }

    /// A directory for whatever else.
    pub fn dir(&self) -> &Path {
        self.temporary.path()
    }
}

/// The state in a directory that was restored.
pub fn state_in(dir: &Path) -> State {
    let reader = CheckpointReader::open(&OsVfs::new(), dir).unwrap();
    reader.verify().unwrap();
    let mut state = State::new();
    for core in reader.cores() {
        reader
            .for_each_live(core, |key, value| {
                state.insert(key.to_vec(), value.to_vec());
                Ok::<_, IncrementalCheckpointError>(())
            })
            .unwrap();
    }
    state
}

/// An owner.
pub fn owner(store: u64, incarnation: u64) -> BackupOwner {
    BackupOwner { store_id: StoreId(store), incarnation: Incarnation(incarnation) }
}

/// Options for tests: small chunks, no pauses.
pub fn quick() -> BackupOptions {
    BackupOptions::new().chunk_bytes(700).attempts(8, Duration::ZERO)
}

/// A target in an object store.
pub fn target(store: &Arc<dyn ObjectStore>) -> BackupTarget {
    BackupTarget::from_store(Arc::clone(store), path::Path::from("a/prefix"), "test://bucket/a/prefix")
        .unwrap()
}

/// A writer of the store 1, in the given life.
pub fn writer(store: &Arc<dyn ObjectStore>, incarnation: u64) -> BackupWriter {
    BackupWriter::open(&target(store), &quick(), owner(1, incarnation)).unwrap()
}

/// Restores the newest backup and returns its state.
pub fn restored(store: &Arc<dyn ObjectStore>) -> State {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("restored");
    restore(&target(store), None, &at, &quick(), |_| {}).unwrap();
    state_in(&at)
}
