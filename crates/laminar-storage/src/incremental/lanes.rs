//! Changing the cores of a manager on several threads: a lane is one core's part of it.
//!
//! A core's changes and files are its lane's alone. Shared are the directory of the checkpoint to come, which is
//! created by the first lane that has to spill, and the count of the memory in use.

use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::manager::{ChainFile, IncrementalCheckpointManager, Result, check_lengths, poisoned};
use super::merge::{Merge, Source};
use super::overlay::CoreChanges;
use super::spill::Spill;
use crate::error::Detail;
use crate::format::compression::Compression;
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::parallel::in_parallel;
use crate::sync::{Mutex, lock};
use crate::vfs::Vfs;

/// Bytes by which a lane's memory grows before the others hear of it.
const COUNT_EVERY: usize = 64 << 10;

/// One core's part of a manager, for a thread of its own.
#[derive(Debug)]
pub(crate) struct Lane<'a> {
    core: CoreId,
    changes: &'a mut CoreChanges,
    chain: &'a mut Vec<ChainFile>,
    /// What `Shared::memory` has of this lane.
    counted: usize,
    shared: &'a Shared<'a>,
}

/// What the lanes of a manager have in common.
#[derive(Debug)]
struct Shared<'a> {
    vfs: &'a dyn Vfs,
    checkpoint_dir: &'a Path,
    poison: &'a OnceLock<Detail>,
    store_id: StoreId,
    next_id: CheckpointId,
    compression: Compression,
    /// The directory being written belongs to the checkpoint in flight; spilling can wait for it.
    may_spill: bool,
    budget: usize,
    /// Lanes with less than this do not spill, lest they write many small files because of another
    /// one's changes. All of them together can be above the budget by half of it.
    worth_spilling: usize,
    memory: AtomicUsize,
    spilled: AtomicBool,
    creating: Mutex<()>,
    spill: OnceLock<Spill>,
}

impl IncrementalCheckpointManager {
    /// Runs `work` with the lane of every core, on several threads, and returns what it said, by core, or
    /// its first error.
    ///
    /// # Errors
    /// `Poisoned`, and `AlreadyExists` when all checkpoint ids are used up; nothing was done then.
    pub(crate) fn with_lanes<R: Send, E: Send>(
        &mut self,
        work: impl Fn(&mut Lane<'_>) -> std::result::Result<R, E> + Sync,
    ) -> Result<std::result::Result<Vec<R>, E>> {
        self.check_usable()?;
        let cores = self.cores();
        let shared = Shared {
            vfs: self.vfs.as_ref(),
            checkpoint_dir: &self.config.checkpoint_dir,
            poison: &self.poison,
            store_id: self.store_id,
            next_id: self.next_checkpoint_id()?,
            compression: self.config.compression,
            may_spill: self.in_flight.is_none(),
            budget: self.options.overlay_budget,
            worth_spilling: self.options.overlay_budget / 2 / self.chains.len().max(1),
            memory: AtomicUsize::new(self.overlay.memory()),
            spilled: AtomicBool::new(false),
            creating: Mutex::new(()),
            spill: self.spill.take().map_or_else(OnceLock::new, OnceLock::from),
        };
        let parts = self.overlay.cores_mut().iter_mut().zip(&mut self.chains);
        let lanes: Vec<_> = cores
            .zip(parts)
            .map(|(core, (changes, chain))| {
                let counted = changes.memory();
                Lane { core, changes, chain, counted, shared: &shared }
            })
            .collect();
        let done = in_parallel(shared.vfs, lanes, |mut lane| work(&mut lane));
        let Shared { spill, spilled, .. } = shared;
        self.spill = spill.into_inner();
        if spilled.into_inner() {
            // The log's barriers bring the number; otherwise it is counted when it is needed.
            self.live_keys = None;
        }
        if self.poisoned_by().is_some() {
            self.give_room_back();
        }
        Ok(done)
    }
}

impl Lane<'_> {
    /// The core.
    pub(crate) fn core(&self) -> CoreId {
        self.core
    }

    /// As [`IncrementalCheckpointManager::apply`].
    ///
    /// # Errors
    /// As there.
    pub(crate) fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        check_lengths(key, value)?;
        self.changes.put(key, value);
        let memory = self.changes.memory();
        if memory < self.counted + COUNT_EVERY.min(self.shared.worth_spilling) {
            return Ok(());
        }
        let grown = memory - self.counted;
        self.counted = memory;
        let total = self.shared.memory.fetch_add(grown, Ordering::Relaxed) + grown;
        if let Some(cause) = self.shared.poison.get() {
            return Err(poisoned(cause, self.shared.checkpoint_dir));
        }
        if total <= self.shared.budget || memory < self.shared.worth_spilling || !self.shared.may_spill {
            return Ok(());
        }
        let done = self.spill();
        if let Err(error) = &done
            && self.shared.poison.set(error.detail().clone()).is_ok()
        {
            tracing::error!(%error, "checkpoints are stopped");
        }
        done
    }

    /// Moves the changes of this core from memory to a part file.
    fn spill(&mut self) -> Result<()> {
        let Shared { vfs, store_id, .. } = *self.shared;
        let spill = self.shared.spill_dir()?;
        let merge = Merge::new(vec![Source::Memory(self.changes.sorted())])?;
        if let Some(finished) = spill.write(vfs, store_id, self.core, merge, self.chain.is_empty())? {
            self.chain.push(spill.open(&finished, store_id)?);
        }
        *self.changes = CoreChanges::default();
        self.shared.memory.fetch_sub(self.counted, Ordering::Relaxed);
        self.shared.spilled.store(true, Ordering::Relaxed);
        self.counted = 0;
        Ok(())
    }
}

impl Shared<'_> {
    /// The directory of the checkpoint to come, created by the first who asks.
    fn spill_dir(&self) -> Result<&Spill> {
        let _one_at_a_time = lock(&self.creating);
        loop {
            if let Some(spill) = self.spill.get() {
                return Ok(spill);
            }
            let created = Spill::create(self.vfs, self.checkpoint_dir, self.next_id, self.compression)?;
            // Nobody else sets it while the lock is held.
            drop(self.spill.set(created));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::incremental::{CheckpointConfig, IncrementalCheckpointError, ManagerOptions};
    use crate::vfs::OsVfs;
    use crate::vfs::sim::{Duration, Fault, SimDisk};

    fn manager(vfs: Arc<dyn Vfs>, dir: &Path, overlay_budget: usize) -> IncrementalCheckpointManager {
        let options = ManagerOptions { overlay_budget, ..ManagerOptions::default() };
        let mut manager =
            IncrementalCheckpointManager::with_options(CheckpointConfig::new(dir), vfs, options).unwrap();
        manager.set_core_count(3).unwrap();
        manager
    }

    fn fill(lane: &mut Lane<'_>) -> Result<u16> {
        let core = lane.core().0;
        for n in 0..2000_u16 {
            let key = [core.to_be_bytes(), (n % 1500).to_be_bytes()].concat();
            lane.apply(&key, (n % 3 != 1).then_some(&n.to_be_bytes()))?;
        }
        Ok(core)
    }

    /// What threads with small budgets made of it is what one change after the other makes.
    #[test]
    fn lanes_on_several_threads_come_to_the_same_as_single_changes() {
        let root = tempfile::tempdir().unwrap();
        let mut single = manager(Arc::new(SimDisk::new(1)), Path::new("/c"), usize::MAX);
        for core in 0..3_u16 {
            for n in 0..2000_u16 {
                let key = [core.to_be_bytes(), (n % 1500).to_be_bytes()].concat();
                let value = n.to_be_bytes();
                single.apply(CoreId(core), &key, (n % 3 != 1).then_some(&value)).unwrap();
            }
        }
        let worlds: [Arc<dyn Vfs>; 2] = [Arc::new(OsVfs::new()), Arc::new(SimDisk::new(1))];
        for (vfs, budget) in worlds.iter().flat_map(|vfs| [(vfs, 10_000), (vfs, usize::MAX)]) {
            let dir = root.path().join(format!("{budget}-{}", vfs.parallel()));
            let mut several = manager(Arc::clone(vfs), &dir, budget);
            assert_eq!(several.with_lanes(fill).unwrap().unwrap(), [0, 1, 2]);
            let parts = several.chains.iter().map(Vec::len).sum::<usize>();
            assert_eq!(parts > 6, budget == 10_000, "{parts} parts were spilled");
            assert!(several.overlay.memory() <= budget.saturating_mul(3) / 2);
            assert_eq!(several.live_digests().unwrap(), single.live_digests().unwrap());
            several.create_checkpoint(0).unwrap();
        }
    }

    #[test]
    fn a_lane_that_cannot_spill_poisons_the_manager() {
        let disk = SimDisk::new(1);
        let mut several = manager(Arc::new(disk.clone()), Path::new("/c"), 10_000);
        disk.fail_op(disk.ops() + 3, Fault::Enospc, Duration::Once);
        assert!(several.with_lanes(fill).unwrap().is_err());
        let again = several.with_lanes(fill).unwrap_err();
        assert!(matches!(again, IncrementalCheckpointError::Poisoned(_)), "{again}");
        assert!(several.create_checkpoint(0).is_err());
    }
}
