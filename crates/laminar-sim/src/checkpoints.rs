//! Scenarios of the checkpoint manager by itself: state that only checkpoints make durable.
//!
//! What is promised there: a checkpoint that `create_checkpoint` returned is there after any crash, exactly
//! as it was, until it is removed; a new manager has the state of the newest one. While a checkpoint is
//! made or removed, a crash leaves it whole or not at all.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use laminar_storage::incremental::merge::MergePolicy;
use laminar_storage::incremental::{
    CheckpointConfig, IncrementalCheckpointError, IncrementalCheckpointManager, ManagerOptions,
    validate_checkpoint_in,
};
use laminar_storage::vfs::Vfs;
use laminar_storage::vfs::sim::{ImageId, SimDisk};

use crate::driver::Scenario;
use crate::log::Log;
use crate::oracle::State;

const DIR: &str = "/checkpoints";

/// One thing that a program does with the manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointDo {
    /// Gives each key of a range a new value of so many bytes.
    Put(u32, u32, usize),
    /// Deletes a key.
    Delete(u32),
    /// Sets source offset and watermark.
    Position(u64, i64),
    /// Makes a checkpoint, of the next epoch.
    Create,
    /// Removes the checkpoint that many before the newest.
    Remove(usize),
    /// Removes all but so many.
    Keep(usize),
    /// Opens the directory again.
    Reopen,
}

/// What one checkpoint holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Content {
    state: State,
    epoch: u64,
    offset: Option<u64>,
    watermark: Option<i64>,
}

/// What is known of the checkpoints.
#[derive(Clone, Debug, Default, Hash)]
pub struct CheckpointModel {
    now: Content,
    /// Every checkpoint that can be found, with its content; those that must be found have `true`.
    known: BTreeMap<u64, (Content, bool)>,
    round: u64,
}

impl CheckpointModel {
    /// A checkpoint with the present content is about to be made. Of the older ones retention may remove
    /// all but so many.
    fn creating(&mut self, id: u64, retained: usize) {
        self.known.insert(id, (self.now.clone(), false));
        self.may_go(self.known.len().saturating_sub(retained));
    }

    /// The oldest so many may be found or not from now on.
    fn may_go(&mut self, oldest: usize) {
        for (_, must) in self.known.values_mut().take(oldest) {
            *must = false;
        }
    }

    fn created(&mut self, id: u64) {
        if let Some((_, must)) = self.known.get_mut(&id) {
            *must = true;
        }
    }

    /// These are there now, and nothing else.
    fn found(&mut self, found: &BTreeMap<u64, Content>) {
        self.known = found.iter().map(|(id, content)| (*id, (content.clone(), true))).collect();
        self.now = found.values().next_back().cloned().unwrap_or_default();
    }

    fn check(&self, found: &BTreeMap<u64, Content>) -> Result<(), String> {
        for (id, content) in found {
            let (expected, _) = self.known.get(id).ok_or_else(|| format!("PHANTOM: checkpoint {id}"))?;
            if content != expected {
                return Err(format!("WRONG: checkpoint {id} is {content:?}, expected {expected:?}"));
            }
        }
        match self.known.iter().find(|(id, (_, must))| *must && !found.contains_key(id)) {
            Some((id, _)) => Err(format!("LOST: checkpoint {id} is not there")),
            None => Ok(()),
        }
    }
}

/// A script for the manager.
#[derive(Clone, Debug)]
pub struct CheckpointScenario {
    /// Its name.
    pub name: &'static str,
    /// Checkpoints kept.
    pub retained: usize,
    /// Whether a checkpoint writes only what changed.
    pub incremental: bool,
    /// How large the ranges of a base are, where the small states of scenarios are to have several.
    pub range_bytes: Option<u64>,
    /// What is done.
    pub script: Vec<CheckpointDo>,
}

fn text<T>(result: Result<T, IncrementalCheckpointError>) -> Result<T, String> {
    result.map_err(|e| e.to_string())
}

impl CheckpointScenario {
    fn open(&self, vfs: Arc<dyn Vfs>) -> Result<IncrementalCheckpointManager, IncrementalCheckpointError> {
        let config = CheckpointConfig::new(Path::new(DIR))
            .with_max_retained(self.retained)
            .with_incremental(self.incremental);
        let mut options = ManagerOptions::default();
        if let Some(range_bytes) = self.range_bytes {
            options.merge = MergePolicy { small_files: 0, small_bytes: 0, run: 3, range_bytes };
        }
        IncrementalCheckpointManager::with_options(config, vfs, options)
    }

    /// Everything the manager finds, each checkpoint read and validated; its own state is the newest's.
    fn find(
        &self,
        vfs: &dyn Vfs,
        seed: u64,
        manager: &IncrementalCheckpointManager,
    ) -> Result<BTreeMap<u64, Content>, String> {
        let mut found = BTreeMap::new();
        for metadata in text(manager.list_checkpoints())? {
            let dir = metadata.checkpoint_path(Path::new(DIR));
            text(validate_checkpoint_in(vfs, &dir))?;
            let state = text(manager.load_checkpoint_state(metadata.id))?;
            let content = Content {
                state: state.iter().map(|(k, v)| (k.to_vec(), v.to_vec())).collect(),
                epoch: metadata.epoch,
                offset: metadata.source_offsets.get("in").copied(),
                watermark: metadata.watermark,
            };
            found.insert(metadata.id, content);
        }
        let newest = found.values().next_back().cloned().unwrap_or_default();
        for n in 0..12 {
            let key = key(seed, n);
            if text(manager.get(&key))?.as_ref() != newest.state.get(&key) {
                return Err(format!("WRONG: the manager's own state differs in {}", key.escape_ascii()));
            }
        }
        let own = (manager.epoch(), manager.source_offsets().get("in").copied(), manager.watermark());
        if own != (newest.epoch, newest.offset, newest.watermark) {
            return Err(format!("WRONG: the manager is at {own:?}, its newest checkpoint at {newest:?}"));
        }
        Ok(found)
    }

    /// Opens and judges.
    fn reopen(
        &self,
        disk: &SimDisk,
        log: &mut Log<CheckpointModel>,
    ) -> Result<IncrementalCheckpointManager, String> {
        let vfs = log.vfs(disk);
        let manager = text(self.open(Arc::clone(&vfs)))?;
        let found = self.find(vfs.as_ref(), disk.seed(), &manager)?;
        log.model().check(&found)?;
        log.note(disk, |model| model.found(&found));
        Ok(manager)
    }

    fn act(
        &self,
        act: CheckpointDo,
        manager: &mut IncrementalCheckpointManager,
        disk: &SimDisk,
        log: &mut Log<CheckpointModel>,
    ) -> Result<(), String> {
        match act {
            CheckpointDo::Put(from, to, len) => (from..to).try_for_each(|n| {
                let model = log.model_mut();
                model.round += 1;
                let (key, value) = (key(disk.seed(), n), value(disk.seed(), model.round, len));
                model.now.state.insert(key.clone(), value.clone());
                text(manager.put(&key, &value))
            }),
            CheckpointDo::Delete(n) => {
                let key = key(disk.seed(), n);
                log.model_mut().now.state.remove(&key);
                text(manager.delete(&key))
            }
            CheckpointDo::Position(offset, watermark) => {
                let now = &mut log.model_mut().now;
                (now.offset, now.watermark) = (Some(offset), Some(watermark));
                manager.set_source_offset("in".into(), offset);
                manager.set_watermark(watermark);
                Ok(())
            }
            CheckpointDo::Create => {
                let epoch = manager.epoch() + 1;
                manager.set_epoch(epoch);
                log.model_mut().now.epoch = epoch;
                let next = text(manager.next_checkpoint_id())?.get();
                log.note(disk, |model| model.creating(next, self.retained));
                let made = text(manager.create_checkpoint(epoch * 100))?;
                if made.id != next {
                    return Err(format!("WRONG: checkpoint {} was made, {next} was announced", made.id));
                }
                log.note(disk, |model| model.created(next));
                Ok(())
            }
            CheckpointDo::Remove(back) => {
                let ids: Vec<u64> = text(manager.list_checkpoints())?.iter().map(|m| m.id).collect();
                let Some(id) = ids.get(back).copied() else { return Ok(()) };
                log.note(disk, |model| model.known.get_mut(&id).map(|known| known.1 = false));
                text(manager.delete_checkpoint(id))?;
                log.note(disk, |model| model.known.remove(&id));
                Ok(())
            }
            CheckpointDo::Keep(keep) => {
                log.note(disk, |model| model.may_go(model.known.len().saturating_sub(keep)));
                text(manager.cleanup_old_checkpoints_keep(keep))?;
                log.note(disk, |model| {
                    while model.known.len() > keep {
                        model.known.pop_first();
                    }
                });
                Ok(())
            }
            CheckpointDo::Reopen => Ok(()),
        }
    }
}

fn key(seed: u64, n: u32) -> Vec<u8> {
    crate::store::key(seed, n)
}

fn value(seed: u64, round: u64, len: usize) -> Vec<u8> {
    let fill = round.wrapping_mul(167).wrapping_add(seed).to_le_bytes()[0];
    [round.to_string().as_bytes(), &vec![fill; len]].concat()
}

impl Scenario for CheckpointScenario {
    type Model = CheckpointModel;

    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn start(&self) -> CheckpointModel {
        CheckpointModel::default()
    }

    fn run(&self, disk: &SimDisk, log: &mut Log<CheckpointModel>) -> Result<(), String> {
        let mut manager = self.reopen(disk, log)?;
        for act in &self.script {
            if *act == CheckpointDo::Reopen {
                drop(manager);
                manager = self.reopen(disk, log)?;
            }
            self.act(*act, &mut manager, disk, log)?;
        }
        Ok(())
    }

    fn recover(&self, disk: &SimDisk, log: &mut Log<CheckpointModel>) -> Result<(), String> {
        self.reopen(disk, log).map(drop)
    }

    /// Opens again, which must give the same, makes a checkpoint, and looks whether it survives a power cut.
    fn go_on(&self, disk: &SimDisk, log: &mut Log<CheckpointModel>) -> Result<(), String> {
        use CheckpointDo::{Create, Delete, Position, Put};
        let mut manager = self.reopen(disk, log).map_err(|e| format!("opened twice: {e}"))?;
        for act in [Put(1, 3, 30), Delete(0), Position(7, 7), Create, Put(4, 5, 10)] {
            self.act(act, &mut manager, disk, log)?;
        }
        drop(manager);
        if disk.has_lost_names() {
            return Ok(());
        }
        let cut = disk.snapshot().image(&ImageId::default()).mount();
        let manager = self.open(Arc::new(cut.clone())).map_err(|e| format!("after a power cut: {e}"))?;
        let found = self.find(&cut, disk.seed(), &manager)?;
        log.model().check(&found).map_err(|e| format!("after a power cut: {e}"))
    }

    fn read_when_full(&self, disk: &SimDisk, log: &Log<CheckpointModel>) -> Result<(), String> {
        match self.open(log.vfs(disk)) {
            Ok(manager) => log.model().check(&self.find(disk, disk.seed(), &manager)?),
            // Where nothing is, a directory would have to be made.
            Err(error) if error.detail().is_out_of_space() => Ok(()),
            Err(error) => Err(format!("open: {error}")),
        }
    }
}

/// All scenarios of the checkpoint manager.
#[must_use]
pub fn checkpoint_scenarios() -> Vec<CheckpointScenario> {
    use CheckpointDo::{Create, Delete, Keep, Position, Put, Remove, Reopen};
    let scenario = |name, retained, incremental, script: &[CheckpointDo]| {
        let script = script.to_vec();
        CheckpointScenario { name, retained, incremental, range_bytes: None, script }
    };
    let mut rounds = Vec::new();
    for n in 0..6 {
        rounds.extend([Put(n % 3, n % 3 + 3, 200), Delete(n), Position(u64::from(n), 10), Create]);
    }
    let removed = [
        [Create, Put(0, 4, 30), Create, Put(2, 5, 600), Create, Remove(0)],
        [Put(5, 6, 20), Create, Remove(1), Reopen, Remove(0), Reopen],
        [Put(0, 1, 9), Create, Remove(0), Delete(1), Create, Reopen],
    ];
    let kept = [
        [Put(0, 3, 40), Create, Put(3, 5, 40), Create, Put(1, 2, 900), Create],
        [Create, Keep(2), Reopen, Delete(4), Create, Keep(1)],
    ];
    let reopened = [Put(0, 3, 700), Create, Put(3, 4, 20), Reopen, Put(2, 6, 30), Create, Reopen, Create];
    let mut ranges = vec![Put(0, 12, 400), Create, Reopen];
    for n in [3, 9, 0, 6, 11] {
        ranges.extend([Put(n, n + 1, 300), Delete((n + 5) % 12), Create]);
    }
    let ranges =
        CheckpointScenario { range_bytes: Some(900), ..scenario("checkpoints-ranges", 2, true, &ranges) };
    vec![
        ranges,
        scenario("checkpoints-retain-one", 1, true, &rounds),
        scenario("checkpoints-retain-two", 2, true, &rounds),
        scenario("checkpoints-in-full", 3, false, &rounds),
        scenario("checkpoints-removed", 5, true, &removed.concat()),
        scenario("checkpoints-cleaned", 9, true, &kept.concat()),
        scenario("checkpoints-reopened", 2, true, &reopened),
    ]
}
