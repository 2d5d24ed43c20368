//! The directory of the checkpoint to come, and what is written into it early.
//!
//! Changes that outgrow memory go to part files there, newest wins, so that memory stays bounded
//! however long the next checkpoint is away. After a crash the directory is swept: what is in it
//! comes again from the log, or was never promised.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::IncrementalCheckpointError;
use super::layout::EntryName;
use super::manager::{ChainFile, IncrementalCheckpointManager, Result};
use super::merge::{Merge, Source};
use super::metadata::{CheckpointFile, CoreOffsets};
use super::overlay::Overlay;
use super::state_file::{BlockCache, FinishedFile, StateFileReader, StateFileWriter};
use crate::error::Detail;
use crate::format::MAX_CORES;
use crate::format::state_file::{FileIdentity, StateRecord};
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::vfs::{Vfs, VfsFile};

/// A checkpoint directory under its temporary name.
#[derive(Debug)]
pub(super) struct Spill {
    pub(super) id: CheckpointId,
    pub(super) dir: PathBuf,
    next_part: BTreeMap<CoreId, u16>,
    /// Files written into it, by name.
    files: BTreeMap<String, Arc<dyn VfsFile>>,
}

impl Spill {
    /// Creates the directory.
    pub(super) fn create(vfs: &dyn Vfs, checkpoint_dir: &Path, id: CheckpointId) -> Result<Self> {
        let dir = EntryName::Pending(id).path(checkpoint_dir);
        vfs.create_dir(&dir)
            .map_err(IncrementalCheckpointManager::io("could not create the checkpoint directory", &dir))?;
        Ok(Self { id, dir, next_part: BTreeMap::new(), files: BTreeMap::new() })
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

    /// The identity of the next file of a core.
    pub(super) fn next_identity(&mut self, store_id: StoreId, core: CoreId) -> Result<FileIdentity> {
        let next = self.next_part.entry(core).or_insert(0);
        let part = *next;
        *next = next.checked_add(1).ok_or_else(|| {
            let detail = Detail::new("too much was spilled since the last checkpoint").on_core(core);
            IncrementalCheckpointError::Backpressure(Box::new(detail.remedy("Make a checkpoint.")))
        })?;
        Ok(FileIdentity { store_id, checkpoint: self.id, core, part })
    }

    /// Writes the records of a merge, without the tombstones where nothing older is left; no file
    /// when there are no records.
    pub(super) fn write(
        &mut self,
        vfs: &dyn Vfs,
        identity: FileIdentity,
        mut merge: Merge<'_>,
        drop_tombstones: bool,
    ) -> Result<Option<FinishedFile>> {
        let path = self.dir.join(CheckpointFile::of(&identity).name);
        let mut writer: Option<StateFileWriter> = None;
        while let Some(record) = merge.next_record()? {
            if drop_tombstones && record.value.is_none() {
                continue;
            }
            let writer = match &mut writer {
                Some(writer) => writer,
                None => writer.insert(StateFileWriter::create(vfs, &path, identity)?),
            };
            writer.push(record)?;
        }
        writer.map(|writer| self.finish(writer)).transpose()
    }

    fn finish(&mut self, writer: StateFileWriter) -> Result<FinishedFile> {
        let finished = writer.finish()?;
        self.files.insert(finished.meta.name.clone(), Arc::clone(&finished.file));
        Ok(finished)
    }

    /// Remembers a file that must be synced.
    pub(super) fn track(&mut self, name: String, file: Arc<dyn VfsFile>) {
        self.files.insert(name, file);
    }

    /// Removes a file that was merged into another.
    pub(super) fn discard(&mut self, vfs: &dyn Vfs, name: &str) -> Result<()> {
        let path = self.dir.join(name);
        self.files.remove(name);
        vfs.remove_file(&path)
            .map_err(IncrementalCheckpointManager::io("could not remove a merged state file", &path))
    }

    /// The files that are not known to be durable.
    pub(super) fn into_unsynced(self) -> Vec<Arc<dyn VfsFile>> {
        self.files.into_values().collect()
    }

    fn open(&self, finished: &FinishedFile, identity: FileIdentity) -> Result<ChainFile> {
        let path = self.dir.join(&finished.meta.name);
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
            None => Spill::create(self.vfs.as_ref(), &self.config.checkpoint_dir, self.next_checkpoint_id()?),
        }
    }

    /// Moves the changes from memory to part files.
    pub(super) fn spill_overlay(&mut self) -> Result<()> {
        let done = self.try_spill();
        self.poison_on_error(done)
    }

    fn try_spill(&mut self) -> Result<()> {
        let live_keys = self.live_keys_with(&self.overlay)?;
        let mut spill = self.take_spill()?;
        let mut parts = Vec::new();
        for (core, changes) in self.cores().zip(self.overlay.cores()) {
            if changes.is_empty() {
                continue;
            }
            let identity = spill.next_identity(self.store_id, core)?;
            let drop_tombstones = self.chains.get(core.index()).is_none_or(Vec::is_empty);
            let merge = Merge::new(vec![Source::Memory(changes.sorted())])?;
            if let Some(finished) = spill.write(self.vfs.as_ref(), identity, merge, drop_tombstones)? {
                parts.push((core, spill.open(&finished, identity)?));
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
                for (file, cache) in chain.iter().zip(&mut caches).rev() {
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

    /// Lays the whole state out for another number of cores: every live key goes to the core that
    /// `route` names. Nothing of it is durable before the next checkpoint. Input positions move to
    /// the first core; give the new ones with [`Self::set_core_offsets`].
    ///
    /// # Errors
    /// `InvalidConfig` for no cores, too many, or a core that `route` makes up; `AlreadyExists` while
    /// a checkpoint is in flight; `Poisoned`; and whatever fails while the state is read and written,
    /// which poisons the manager.
    pub fn reshard(&mut self, cores: usize, route: impl FnMut(&[u8]) -> CoreId) -> Result<()> {
        self.check_usable()?;
        self.check_nothing_in_flight()?;
        if cores == 0 || cores > MAX_CORES {
            let what = format!("core_count is {cores}, it must be 1 to {MAX_CORES}");
            return Err(IncrementalCheckpointError::invalid(Detail::new(what)));
        }
        let done = self.try_reshard(cores, route);
        self.poison_on_error(done)
    }

    fn try_reshard(&mut self, cores: usize, mut route: impl FnMut(&[u8]) -> CoreId) -> Result<()> {
        let mut spill = self.take_spill()?;
        let mut writers: BTreeMap<CoreId, (FileIdentity, StateFileWriter)> = BTreeMap::new();
        let mut live = 0_u64;
        // Keys are live on one core at most, but an older core may hold a tombstone of a key that
        // moved; so the newest record counts within a core, and live ones win between cores.
        let mut merges = Vec::new();
        for (chain, changes) in self.chains.iter().zip(self.overlay.cores()) {
            let files = chain.iter().map(|file| Source::File(file.reader.cursor()));
            let memory = Source::Memory(changes.sorted());
            merges.push(Merge::new(files.chain([memory]).collect())?);
        }
        let mut merge = Merge::new(merges.into_iter().map(Source::live).collect())?;
        while let Some(record) = merge.next_record()? {
            let core = route(record.key);
            if core.index() >= cores {
                let what = format!("the router names core {core}, there are {cores} cores");
                return Err(IncrementalCheckpointError::invalid(Detail::new(what)));
            }
            let (_, writer) = match writers.entry(core) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(vacant) => {
                    let identity = spill.next_identity(self.store_id, core)?;
                    let path = spill.dir.join(CheckpointFile::of(&identity).name);
                    let writer = StateFileWriter::create(self.vfs.as_ref(), &path, identity)?;
                    vacant.insert((identity, writer))
                }
            };
            writer.push(record)?;
            live += 1;
        }
        drop(merge);
        let mut chains: Vec<Vec<ChainFile>> = (0..cores).map(|_| Vec::new()).collect();
        for (core, (identity, writer)) in writers {
            let finished = spill.finish(writer)?;
            if let Some(chain) = chains.get_mut(core.index()) {
                chain.push(spill.open(&finished, identity)?);
            }
        }
        for old in self.chains.iter().flatten().filter(|file| file.spilled) {
            spill.discard(self.vfs.as_ref(), &old.reader.meta().name)?;
        }
        self.spill = Some(spill);
        self.lay_out(cores);
        self.chains = chains;
        self.rewrite_all = false;
        self.live_keys = Some(live);
        Ok(())
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
