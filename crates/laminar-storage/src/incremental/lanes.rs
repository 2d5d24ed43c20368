//! Changing the cores of a manager on several threads: a lane is one core's part of it.
//!
//! A core's changes and files are its lane's alone. Shared are the directory of the checkpoint to come, which is
//! created by the first lane that has to spill, and the count of the memory in use.
//!
//! Where the outside world allows threads, a lane that spills goes on with the next changes while another thread sorts
//! the ones before, writes them, and syncs their file; one part at a time.

use std::panic::resume_unwind;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{Scope, ScopedJoinHandle};

use super::error::IncrementalCheckpointError;
use super::manager::{ChainFile, IncrementalCheckpointManager, Result, check_lengths, poisoned};
use super::merge::{Merge, Source};
use super::overlay::CoreChanges;
use super::spill::Spill;
use super::staged::Staged;
use crate::error::Detail;
use crate::format::compression::Compression;
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::pace::{Commits, Pace, give_way};
use crate::parallel::in_parallel;
use crate::sync::{Mutex, lock};
use crate::vfs::Vfs;

/// Bytes by which a lane's memory grows before the others hear of it.
const COUNT_EVERY: usize = 64 << 10;

/// One core's part of a manager, for a thread of its own.
#[derive(Debug)]
pub(crate) struct Lane<'scope, 'a> {
    core: CoreId,
    changes: &'a mut CoreChanges,
    /// Those that are not made yet.
    staged: Staged,
    chain: &'a mut Vec<ChainFile>,
    /// What `Shared::memory` has of this lane, but for the part that is being written.
    counted: usize,
    shared: &'a Shared<'a>,
    /// Where a thread can be started that writes a part.
    threads: &'scope Scope<'scope, 'a>,
    /// The part that is being written.
    writing: Option<ScopedJoinHandle<'scope, Part>>,
}

/// What came of writing a part: its file, if there is anything in it; or what went wrong, and the changes.
type Part = std::result::Result<Option<ChainFile>, Box<(IncrementalCheckpointError, CoreChanges)>>;

/// Why a lane did not come to its end.
enum Stopped<E> {
    /// What it did failed.
    Work(E),
    /// Its last part could not be written.
    Part(IncrementalCheckpointError),
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
    commits: &'a Arc<Commits>,
    /// The directory being written belongs to the checkpoint in flight; spilling can wait for it.
    may_spill: bool,
    /// Whether a part is written on a thread of its own.
    threads: bool,
    /// Memory that may be in use before a lane spills. Parts that are being written are in it.
    room: usize,
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
    /// `Poisoned`, and `AlreadyExists` when all checkpoint ids are used up; nothing was done then. What went wrong
    /// with the last part that a lane spilled.
    pub(crate) fn with_lanes<R: Send, E: Send>(
        &mut self,
        work: impl Fn(&mut Lane<'_, '_>) -> std::result::Result<R, E> + Sync,
    ) -> Result<std::result::Result<Vec<R>, E>> {
        self.check_usable()?;
        let cores = self.cores();
        // shuttle knows nothing of these threads.
        let threads = self.vfs.parallel() && !cfg!(all(test, shuttle));
        let shared = Shared {
            vfs: self.vfs.as_ref(),
            checkpoint_dir: &self.config.checkpoint_dir,
            poison: &self.poison,
            store_id: self.store_id,
            next_id: self.next_checkpoint_id()?,
            compression: self.config.compression,
            commits: &self.commits,
            may_spill: self.in_flight.is_none(),
            threads,
            // While a part is written, as much again comes in.
            room: if threads { self.options.overlay_budget / 2 } else { self.options.overlay_budget },
            worth_spilling: self.options.overlay_budget / 2 / self.chains.len().max(1),
            memory: AtomicUsize::new(self.overlay.memory()),
            spilled: AtomicBool::new(false),
            creating: Mutex::new(()),
            spill: self.spill.take().map_or_else(OnceLock::new, OnceLock::from),
        };
        let parts = self.overlay.cores_mut().iter_mut().zip(&mut self.chains);
        let done = std::thread::scope(|threads| {
            let lanes: Vec<_> = cores
                .zip(parts)
                .map(|(core, (changes, chain))| {
                    let counted = changes.memory();
                    let staged = Staged::within(shared.worth_spilling);
                    Lane { core, changes, staged, chain, counted, shared: &shared, threads, writing: None }
                })
                .collect();
            in_parallel(shared.vfs, lanes, |mut lane| {
                let done = work(&mut lane).map_err(Stopped::Work);
                lane.staged.make(lane.changes);
                // Also after a failure: what is in no memory any more must be in a file.
                let last = lane.finish_part().map_err(Stopped::Part);
                done.and_then(|done| last.map(|()| done))
            })
        });
        let Shared { spill, spilled, .. } = shared;
        self.spill = spill.into_inner();
        if spilled.into_inner() {
            // The log's barriers bring the number; otherwise it is counted when it is needed.
            self.live_keys = None;
        }
        if self.poisoned_by().is_some() {
            self.give_room_back();
        }
        match done {
            Ok(done) => Ok(Ok(done)),
            Err(Stopped::Work(error)) => Ok(Err(error)),
            Err(Stopped::Part(error)) => Err(error),
        }
    }
}

impl<'a> Lane<'_, 'a> {
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
        if !self.staged.push(key, value) {
            return Ok(());
        }
        self.staged.make(self.changes);
        let memory = self.changes.memory();
        if memory < self.counted + COUNT_EVERY.min(self.shared.worth_spilling) {
            return Ok(());
        }
        give_way();
        let grown = memory - self.counted;
        self.counted = memory;
        let total = self.shared.memory.fetch_add(grown, Ordering::Relaxed) + grown;
        if let Some(cause) = self.shared.poison.get() {
            return Err(poisoned(cause, self.shared.checkpoint_dir));
        }
        if total <= self.shared.room || memory < self.shared.worth_spilling || !self.shared.may_spill {
            return Ok(());
        }
        let spilled = self.spill();
        self.shared.poison_on_error(spilled)
    }

    /// Moves the changes of this core from memory to a part file.
    fn spill(&mut self) -> Result<()> {
        self.take_part()?;
        let (shared, core, first) = (self.shared, self.core, self.chain.is_empty());
        let counted = std::mem::take(&mut self.counted);
        shared.spilled.store(true, Ordering::Relaxed);
        // In here so that they are not lost with a thread that does not start.
        let changes = Arc::new(Mutex::new(Some(std::mem::take(self.changes))));
        if shared.threads {
            let given = Arc::clone(&changes);
            let write = move || {
                let changes = lock(&given).take().unwrap_or_default();
                shared.write_part(core, changes, counted, first, true)
            };
            let thread = std::thread::Builder::new().name("laminar-spill".into());
            self.writing = thread.spawn_scoped(self.threads, write).ok();
            if self.writing.is_some() {
                return Ok(());
            }
        }
        let changes = lock(&changes).take().unwrap_or_default();
        let part = shared.write_part(core, changes, counted, first, false);
        self.took(part)
    }

    /// Waits for the part that is being written, and takes it.
    fn take_part(&mut self) -> Result<()> {
        match self.writing.take() {
            Some(writing) => self.took(writing.join().unwrap_or_else(|panic| resume_unwind(panic))),
            None => Ok(()),
        }
    }

    fn took(&mut self, part: Part) -> Result<()> {
        part.map(|part| self.chain.extend(part)).map_err(|failed| {
            // Everything stays readable.
            let (error, older) = *failed;
            let newer = std::mem::replace(self.changes, older);
            for change in newer.iter() {
                self.changes.put(change.key, change.value);
            }
            error
        })
    }

    /// As [`Self::take_part`], at the end.
    fn finish_part(&mut self) -> Result<()> {
        let taken = self.take_part();
        self.shared.poison_on_error(taken)
    }
}

impl Shared<'_> {
    /// Writes the changes of a core to a part file, and may sync it, which is then not done again.
    fn write_part(
        &self,
        core: CoreId,
        changes: CoreChanges,
        counted: usize,
        drop_tombstones: bool,
        sync: bool,
    ) -> Part {
        let write = || {
            let spill = self.spill_dir()?;
            let merge = Merge::new(vec![Source::Memory(changes.sorted())])?;
            let finished = spill.write(self.vfs, self.store_id, core, merge, drop_tombstones)?;
            if let Some(finished) = finished.as_ref().filter(|_| sync) {
                spill.sync(&finished.meta.name)?;
            }
            finished.map(|finished| spill.open(&finished, self.store_id)).transpose()
        };
        match write() {
            Ok(part) => {
                drop(changes);
                self.memory.fetch_sub(counted, Ordering::Relaxed);
                Ok(part)
            }
            Err(error) => Err(Box::new((error, changes))),
        }
    }

    fn poison_on_error(&self, done: Result<()>) -> Result<()> {
        if let Err(error) = &done
            && self.poison.set(error.detail().clone()).is_ok()
        {
            tracing::error!(%error, "checkpoints are stopped");
        }
        done
    }

    /// The directory of the checkpoint to come, created by the first who asks.
    fn spill_dir(&self) -> Result<&Spill> {
        let _one_at_a_time = lock(&self.creating);
        loop {
            if let Some(spill) = self.spill.get() {
                return Ok(spill);
            }
            let pace = Pace::beside(self.commits);
            let created = Spill::create(self.vfs, self.checkpoint_dir, self.next_id, self.compression, pace)?;
            // Nobody else sets it while the lock is held.
            drop(self.spill.set(created));
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
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

    fn fill(lane: &mut Lane<'_, '_>) -> Result<u16> {
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

    /// A part that another thread could not write leaves its changes where they are looked for.
    #[test]
    fn what_could_not_be_spilled_stays_readable() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("checkpoints");
        let mut several = manager(Arc::new(OsVfs::new()), &dir, 10_000);
        std::fs::remove_dir_all(&dir).unwrap();
        // Another lane would stop this one as soon as its own part could not be written, however early that is.
        let failed = several.with_lanes(|lane| if lane.core() == CoreId(0) { fill(lane) } else { Ok(0) });
        assert!(failed.is_err() || failed.is_ok_and(|done| done.is_err()));
        assert!(several.poisoned_by().is_some());
        let read = |n: u16| several.get_on(CoreId(0), &[[0; 2], n.to_be_bytes()].concat()).unwrap();
        // The first ones were in the part, the last ones came after it.
        let there = (0..2000).filter(|n| n % 3 != 1).take_while(|n| read(*n).is_some()).count();
        assert!(there > 50, "{there}");
        assert_eq!(read(0).unwrap(), 0_u16.to_be_bytes());
    }
}
