//! The directory of the checkpoint to come, and what is written into it early.
//!
//! Changes that outgrow memory go to part files there, newest wins, so that memory stays bounded
//! however long the next checkpoint is away. After a crash the directory is swept: what is in it
//! comes again from the log, or was never promised.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::base::{FIRST_RANGE, holders};
use super::error::IncrementalCheckpointError;
use super::layout::EntryName;
use super::manager::{ChainFile, IncrementalCheckpointManager, Result};
use super::merge::{Merge, Source};
use super::metadata::{CheckpointFile, CoreOffsets};
use super::overlay::Overlay;
use super::state_file::{BlockCache, FinishedFile, StateFileReader, StateFileWriter};
use crate::error::Detail;
use crate::format::compression::Compression;
use crate::format::state_file::{FileIdentity, StateRecord};
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::pace::{Commits, Pace};
use crate::vfs::{Vfs, VfsFile};

/// A checkpoint directory under its temporary name. Several threads can write into it, each its own file.
#[derive(Debug)]
pub(super) struct Spill {
    pub(super) id: CheckpointId,
    pub(super) dir: PathBuf,
    compression: Compression,
    pace: Pace,
    written: Mutex<Written>,
}

/// What was written into the directory.
#[derive(Debug, Default)]
struct Written {
    next_part: BTreeMap<CoreId, u16>,
    next_range: BTreeMap<CoreId, u16>,
    /// By name.
    files: BTreeMap<String, Arc<dyn VfsFile>>,
}

impl Spill {
    /// Creates the directory.
    pub(super) fn create(
        vfs: &dyn Vfs,
        checkpoint_dir: &Path,
        id: CheckpointId,
        compression: Compression,
        pace: Pace,
    ) -> Result<Self> {
        let dir = EntryName::Pending(id).path(checkpoint_dir);
        vfs.create_dir(&dir)
            .map_err(IncrementalCheckpointManager::io("could not create the checkpoint directory", &dir))?;
        Ok(Self { id, dir, compression, pace, written: Mutex::default() })
    }

    /// Gives the directory the id that was chosen in the end.
    pub(super) fn rename(&mut self, vfs: &dyn Vfs, checkpoint_dir: &Path, id: CheckpointId) -> Result<()> {
        if self.id == id {
            return Ok(());
        }
        let dir = EntryName::Pending(id).path(checkpoint_dir);
        vfs.rename(&self.dir, &dir)
            .map_err(IncrementalCheckpointManager::io("could not rename the checkpoint directory", &dir))?;
        self.id = id;
        self.dir = dir;
        Ok(())
    }

    fn locked<R>(&self, change: impl FnOnce(&mut Written) -> R) -> R {
        // Nothing in there is ever half changed.
        change(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Creates the next delta of a core.
    pub(super) fn begin(&self, vfs: &dyn Vfs, store_id: StoreId, core: CoreId) -> Result<StateFileWriter> {
        let part = self.locked(|written| {
            let next = written.next_part.entry(core).or_insert(0);
            let part = (*next < FIRST_RANGE).then_some(*next)?;
            *next += 1;
            Some(part)
        });
        self.create_file(vfs, store_id, core, part)
    }

    /// Creates the next range of a core.
    fn begin_range(&self, vfs: &dyn Vfs, store_id: StoreId, core: CoreId) -> Result<StateFileWriter> {
        let part = self.locked(|written| {
            let next = written.next_range.entry(core).or_insert(FIRST_RANGE);
            let part = *next;
            *next = next.checked_add(1)?;
            Some(part)
        });
        self.create_file(vfs, store_id, core, part)
    }

    fn create_file(
        &self,
        vfs: &dyn Vfs,
        store_id: StoreId,
        core: CoreId,
        part: Option<u16>,
    ) -> Result<StateFileWriter> {
        let part = part.ok_or_else(|| {
            let detail = Detail::new("too much was spilled since the last checkpoint").on_core(core);
            IncrementalCheckpointError::Backpressure(Box::new(detail.remedy("Make a checkpoint.")))
        })?;
        let identity = FileIdentity { store_id, checkpoint: self.id, core, part };
        let path = self.dir.join(CheckpointFile::of(&identity).name);
        StateFileWriter::create(vfs, &path, identity, self.compression, self.pace.clone())
    }

    /// Writes the records of a merge into the next file of a core, without the tombstones where nothing
    /// older is left; no file when there are no records.
    pub(super) fn write(
        &self,
        vfs: &dyn Vfs,
        store_id: StoreId,
        core: CoreId,
        mut merge: Merge<'_>,
        drop_tombstones: bool,
    ) -> Result<Option<FinishedFile>> {
        let mut writer: Option<StateFileWriter> = None;
        while let Some(record) = merge.next_record()? {
            if drop_tombstones && record.value.is_none() {
                continue;
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                None => writer.insert(self.begin(vfs, store_id, core)?),
            };
            writer.push(record)?;
        }
        writer.map(|writer| self.finish(writer)).transpose()
    }

    /// Writes the live records of a merge into ranges of a core, each of about so many bytes.
    pub(super) fn write_ranges(
        &self,
        vfs: &dyn Vfs,
        store_id: StoreId,
        core: CoreId,
        mut merge: Merge<'_>,
        mut len: u64,
    ) -> Result<Vec<FinishedFile>> {
        let (mut finished, mut writer) = (Vec::new(), None::<StateFileWriter>);
        while let Some(record) = merge.next_record()? {
            if record.value.is_none() {
                continue;
            }
            if let Some(full) = writer.take_if(|writer| writer.record_bytes() >= len) {
                finished.push(self.finish(full)?);
                // Where packed bytes were taken for raw ones, there is far more than was thought.
                if finished.len().is_multiple_of(64) {
                    len = len.saturating_mul(2);
                }
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                None => writer.insert(self.begin_range(vfs, store_id, core)?),
            };
            writer.push(record)?;
        }
        finished.extend(writer.map(|writer| self.finish(writer)).transpose()?);
        Ok(finished)
    }

    /// Ends a file that was begun here.
    pub(super) fn finish(&self, writer: StateFileWriter) -> Result<FinishedFile> {
        let finished = writer.finish()?;
        self.track(finished.meta.name.clone(), Arc::clone(&finished.file));
        Ok(finished)
    }

    /// Remembers a file that must be synced.
    pub(super) fn track(&self, name: String, file: Arc<dyn VfsFile>) {
        self.locked(|written| written.files.insert(name, file));
    }

    /// Syncs a file that was finished here, once and for all.
    pub(super) fn sync(&self, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        let file = self.locked(|written| written.files.remove(name));
        // What is left to sync is less than a step.
        file.map_or(Ok(()), |file| self.pace.step(0, || file.sync_data()))
            .map_err(IncrementalCheckpointManager::io("could not sync a part of a state", &path))
    }

    /// Removes a file that was merged into another.
    pub(super) fn discard(&self, vfs: &dyn Vfs, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        self.locked(|written| written.files.remove(name));
        vfs.remove_file(&path)
            .map_err(IncrementalCheckpointManager::io("could not remove a merged state file", &path))
    }

    /// The files that are not known to be durable.
    pub(super) fn into_unsynced(self) -> Vec<Arc<dyn VfsFile>> {
        self.written.into_inner().unwrap_or_else(PoisonError::into_inner).files.into_values().collect()
    }

    /// Opens a file that was finished here.
    pub(super) fn open(&self, finished: &FinishedFile, store_id: StoreId) -> Result<ChainFile> {
        let path = self.dir.join(&finished.meta.name);
        let identity = finished.meta.identity(store_id);
        let file = Arc::clone(&finished.file);
        let reader = StateFileReader::from_file(file, path, identity, &finished.meta)?;
        Ok(ChainFile { reader: Arc::new(reader), spilled: true })
    }
}

impl IncrementalCheckpointManager {
    /// Takes the directory of the checkpoint to come, creating it when there is none yet.
    pub(super) fn take_spill(&mut self) -> Result<Spill> {
        match self.spill.take() {
            Some(spill) => Ok(spill),
            None => self.create_spill(self.next_checkpoint_id()?),
        }
    }

    /// From now on checkpoints are made beside these syncs of a log, and leave the device to them as [`Pace`] says.
    pub(crate) fn make_way_for(&mut self, commits: &Arc<Commits>) {
        self.commits = Arc::clone(commits);
    }

    /// Creates the directory of a checkpoint.
    pub(super) fn create_spill(&self, id: CheckpointId) -> Result<Spill> {
        let pace = Pace::beside(&self.commits);
        Spill::create(self.vfs.as_ref(), &self.config.checkpoint_dir, id, self.config.compression, pace)
    }

    /// Moves the changes from memory to part files.
    pub(super) fn spill_overlay(&mut self) -> Result<()> {
        let done = self.try_spill();
        self.poison_on_error(done)
    }

    fn try_spill(&mut self) -> Result<()> {
        let live_keys = self.live_keys_with(&self.overlay)?;
        let spill = self.take_spill()?;
        let mut parts = Vec::new();
        for (core, changes) in self.cores().zip(self.overlay.cores()) {
            if changes.is_empty() {
                continue;
            }
            let drop_tombstones = self.chains.get(core.index()).is_none_or(Vec::is_empty);
            let merge = Merge::new(vec![Source::Memory(changes.sorted())])?;
            let vfs = self.vfs.as_ref();
            if let Some(finished) = spill.write(vfs, self.store_id, core, merge, drop_tombstones)? {
                parts.push((core, spill.open(&finished, self.store_id)?));
            }
        }
        for (core, part) in parts {
            if let Some(chain) = self.chains.get_mut(core.index()) {
                chain.push(part);
            }
        }
        self.overlay = Overlay::new(self.chains.len());
        self.live_keys = live_keys;
        self.spill = Some(spill);
        Ok(())
    }

    /// Number of live keys once `changes` are in the chains; `None` when that is not known. A log's
    /// coordinator brings the number itself, so nothing is looked up for it.
    pub(super) fn live_keys_with(&self, changes: &Overlay) -> Result<Option<u64>> {
        let (Some(mut live), false) = (self.live_keys, self.bound) else {
            return Ok(None);
        };
        for (chain, changes) in self.chains.iter().zip(changes.cores()) {
            let mut caches: Vec<BlockCache> = chain.iter().map(|_| BlockCache::default()).collect();
            for StateRecord { key, value: change } in changes.iter() {
                let mut was_live = false;
                for at in holders(chain, key) {
                    let (Some(file), Some(cache)) = (chain.get(at), caches.get_mut(at)) else { continue };
                    if let Some(known) = file.reader.get(key, cache)? {
                        was_live = known.is_some();
                        break;
                    }
                }
                live = match (was_live, change.is_some()) {
                    (false, true) => live.saturating_add(1),
                    (true, false) => live.saturating_sub(1),
                    _ => live,
                };
            }
        }
        Ok(Some(live))
    }
}

/// Input positions of a state, spread over as many cores as there are.
pub(super) fn offsets_for(cores: usize, known: &[CoreOffsets], flat: CoreOffsets) -> Vec<CoreOffsets> {
    if !known.is_empty() {
        return known.to_vec();
    }
    let mut offsets = vec![CoreOffsets::default(); cores.max(1)];
    if let Some(first) = offsets.first_mut() {
        *first = flat;
    }
    offsets
}
