//! Savepoints of a scenario's store, and stores that begin with them.
//!
//! Whatever is found under the name of a savepoint is complete, and what was returned is found. A fork that
//! was begun is the savepoint, or what came after it; none that was used is ever taken back.

use std::path::{Path, PathBuf};

use laminar_storage::incremental::{CheckpointReader, IncrementalCheckpointError};
use laminar_storage::{CoreStore, Opened, Store, StoreBuilder, StoreError};

use super::{Live, text};
use crate::oracle::State;

/// The key that a fork adds.
const FORKED: &[u8] = b"forked";

fn saved_dir(n: u8) -> PathBuf {
    PathBuf::from(format!("/saved-{n}"))
}

impl Live<'_> {
    /// Makes savepoint number `n`. When that fails, the store goes on.
    pub(super) fn savepoint(&mut self, n: u8) -> Result<(), String> {
        match self.store()?.savepoint(saved_dir(n)) {
            Ok(receipt) => {
                let found = self.saved(n)?;
                if let Some(expected) = self.log.model().expected(receipt.epoch) {
                    let expected: State = expected.state.into_iter().flatten().collect();
                    if found != expected {
                        return Err(format!(
                            "WRONG: savepoint {n} does not hold the state of epoch {}",
                            receipt.epoch
                        ));
                    }
                }
                self.log.note(self.disk, |model| model.saved(n));
                Ok(())
            }
            Err(error) => {
                self.failed.get_or_insert(error.to_string());
                Ok(())
            }
        }
    }

    /// Begins a store with savepoint number `n`, and adds a key to it.
    pub(super) fn fork(&mut self, n: u8, cores: u16) -> Result<(), String> {
        if self.failed.is_some() {
            return Ok(());
        }
        let saved = self.saved(n)?;
        let Opened { store, mut cores, .. } =
            text_of(self.builder(n, cores).from_savepoint(saved_dir(n)).open())?;
        if contents(&cores) != saved {
            return Err(format!("WRONG: fork {n} is not its savepoint"));
        }
        let own = self.router.route(FORKED, cores.len());
        text(cores[own].put(FORKED, b"1"))?;
        let epochs: Result<Vec<_>, String> =
            cores.iter_mut().map(|core| text_of(core.seal_epoch())).collect();
        for epoch in epochs? {
            text(store.wait_durable(epoch))?;
        }
        self.log.note(self.disk, |model| model.forked(n));
        text(store.checkpoint())?;
        drop(cores);
        text(store.close())
    }

    /// Judges all savepoints and their forks that a crash left.
    pub(super) fn check_savepoints(&mut self) -> Result<(), String> {
        let vfs = self.log.vfs(self.disk);
        for n in 0..self.scenario.savepoints() {
            let (must_be, must_be_forked) = self.log.model().has_savepoint(n);
            let there = vfs.kind(&saved_dir(n)).map_err(|e| e.to_string())?.is_some();
            if !there {
                if must_be {
                    return Err(format!("LOST: savepoint {n}"));
                }
                continue;
            }
            let saved = self.saved(n)?;
            // Anything that disk and log decide: the number of operations is not part of that.
            let cores = if self.log.model().acked().get().is_multiple_of(2) { 1 } else { 2 };
            let opened = match self.builder(n, cores).from_savepoint(saved_dir(n)).open() {
                Ok(opened) if must_be_forked => {
                    return Err(format!("LOST: fork {n} began anew at {}", opened.report.recovery_point));
                }
                Ok(opened) => opened,
                Err(StoreError::InvalidInput(_)) => text_of(self.builder(n, cores).open())?,
                Err(error) => return Err(format!("fork {n}: {error}")),
            };
            let mut found = contents(&opened.cores);
            let was_used = found.remove(FORKED).is_some();
            if found != saved || (must_be_forked && !was_used) {
                return Err(format!("WRONG: fork {n} is neither its savepoint nor what came after it"));
            }
        }
        Ok(())
    }

    fn builder(&self, n: u8, cores: u16) -> StoreBuilder {
        let builder = Store::builder(Path::new(&format!("/fork-{n}"))).cores(usize::from(cores));
        let builder = builder.settings(self.scenario.settings.clone()).router(self.scenario.router());
        builder.manager_options(self.scenario.manager.clone()).vfs(self.log.vfs(self.disk))
    }

    /// The state of a savepoint, every byte of it checked.
    fn saved(&self, n: u8) -> Result<State, String> {
        let vfs = self.log.vfs(self.disk);
        let read = || {
            let reader = CheckpointReader::open(vfs.as_ref(), &saved_dir(n))?;
            reader.verify()?;
            Ok(reader.load()?.into_iter().collect())
        };
        read().map_err(|error: IncrementalCheckpointError| format!("savepoint {n}: {error}"))
    }
}

fn text_of<T>(result: Result<T, StoreError>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

fn contents(cores: &[CoreStore]) -> State {
    cores.iter().flat_map(CoreStore::iter).map(|(k, v)| (k.to_vec(), v.to_vec())).collect()
}
