//! The one way to a checkpoint: write, sync, publish.
//!
//! | step | on disk | a crash after it |
//! |---|---|---|
//! | write | `checkpoint_N.tmp` with new files, links to older ones, manifest | is swept |
//! | sync | the same, durable: files, manifest, directory | is swept |
//! | publish | renamed to `checkpoint_N`, parent synced, read back | the checkpoint is there |
//!
//! The log may be cut only after the last step, and only up to the checkpoint before, which is why
//! only [`Published`] says how far.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::base::sources;
use super::checkpoint_reader::read_manifest;
use super::error::IncrementalCheckpointError;
use super::layout::MANIFEST_NAME;
use super::links::check_linked;
use super::manager::{ChainFile, IncrementalCheckpointManager, Result};
use super::merge::{Merge, Plan, Source};
use super::metadata::{CheckpointFile, CoreDigest, IncrementalCheckpointMetadata};
use super::overlay::{CoreChanges, Overlay};
use super::state_file::StateFileReader;
use super::tokens::{Draft, DraftFile, Published, Synced, WalFloor, Written};
use crate::error::Detail;
use crate::format::digest::record_digest;
use crate::format::manifest::MAX_MANIFEST_LEN;
use crate::ids::{CheckpointId, CoreId, Epoch, WalPosition};
use crate::parallel::in_parallel;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{read_small_file, write_all_at};

impl IncrementalCheckpointManager {
    /// Makes a checkpoint of everything up to now: durable, read back, and older ones beyond
    /// `max_retained` removed. `wal_position` is only noted in it.
    ///
    /// # Errors
    /// `EpochMismatch` when the epoch is before that of the newest checkpoint; `Poisoned`; and any
    /// failure to write, sync or read back, which poisons the manager. The newest checkpoint then
    /// is still the one before, on disk and for this manager.
    pub fn create_checkpoint(&mut self, wal_position: u64) -> Result<IncrementalCheckpointMetadata> {
        let id = self.next_checkpoint_id()?;
        let published = self.create_checkpoint_as(id, WalPosition(wal_position))?;
        Ok(published.into_metadata())
    }

    /// As [`Self::create_checkpoint`], with an id of the caller's choice.
    ///
    /// # Errors
    /// As [`Self::create_checkpoint`]; `AlreadyExists` for an id that is not larger than every id
    /// ever used.
    pub fn create_checkpoint_as(&mut self, id: CheckpointId, wal_position: WalPosition) -> Result<Published> {
        let written = self.write(id, wal_position)?;
        let synced = self.sync(written)?;
        let published = self.publish(synced)?;
        // The checkpoint is there whatever happens to old ones; a failure stops the next call.
        if let Err(error) = self.cleanup_old_checkpoints() {
            tracing::warn!(%error, "could not remove old checkpoints");
        }
        Ok(published)
    }

    /// The id the next checkpoint gets: one more than any that was ever used.
    ///
    /// # Errors
    /// `AlreadyExists` when all ids are used up.
    pub fn next_checkpoint_id(&self) -> Result<CheckpointId> {
        match self.highest_id {
            None => Ok(CheckpointId(1)),
            Some(highest) if highest < CheckpointId::LAST => Ok(highest.next()),
            Some(_) => Err(already_exists(
                "the largest possible checkpoint id is used".into(),
                "If no program of yours chose it, move the directory with that number away and open again; \
                 otherwise put the state into a new directory, with smaller ids.",
            )),
        }
    }

    /// First step: writes everything under a temporary name. Changes made after it go into the
    /// checkpoint after this one.
    ///
    /// # Errors
    /// `AlreadyExists` for an id that was used, or while another checkpoint is in flight;
    /// `EpochMismatch`; `InvalidConfig` when the manager is bound to a log and has no cuts of it;
    /// `Poisoned`. Every other failure poisons the manager.
    pub fn write(&mut self, id: CheckpointId, wal_position: WalPosition) -> Result<Written> {
        self.check_usable()?;
        self.check_nothing_in_flight()?;
        self.check_id(id)?;
        self.check_epoch()?;
        if !self.bound && self.latest.as_ref().is_some_and(|latest| latest.bound_to_wal) {
            let what =
                "these checkpoints belong to a write-ahead log, whose records this one would pass over";
            let detail = Detail::new(what).at_path(&self.config.checkpoint_dir);
            return Err(IncrementalCheckpointError::invalid(
                detail.remedy("Make it with the Store or the CheckpointCoordinator of that log."),
            ));
        }
        if self.bound && self.wal_cuts.is_empty() {
            let what = "no WAL cuts were given for this checkpoint";
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Give them with set_wal_cuts before every checkpoint."),
            ));
        }
        self.in_flight = Some(id);
        let changes = std::mem::replace(&mut self.overlay, Overlay::new(self.chains.len()));
        let written = self.try_write(id, wal_position, &changes);
        self.frozen = Some(changes);
        self.poison_on_error(written.map(Written)).inspect_err(|_| self.give_room_back())
    }

    /// Second step: makes everything durable under the temporary name.
    ///
    /// # Errors
    /// `Io`, which poisons the manager; a sync is never tried again. `Poisoned`, `InvalidConfig` for
    /// a token of another manager.
    pub fn sync(&mut self, written: Written) -> Result<Synced> {
        self.check_usable()?;
        let draft = written.0;
        self.check_token(&draft)?;
        let synced = self.try_sync(&draft);
        self.poison_on_error(synced.map(|()| Synced(draft))).inspect_err(|_| self.give_room_back())
    }

    /// Third step: gives the checkpoint its final name, durably, and reads it back. Old checkpoints
    /// stay; [`Self::cleanup_old_checkpoints`] removes them.
    ///
    /// # Errors
    /// `Io`, `Corruption` or `ChecksumMismatch` when what is read back is not what was written; all
    /// poison the manager. `Poisoned`, `InvalidConfig` for a token of another manager.
    pub fn publish(&mut self, synced: Synced) -> Result<Published> {
        self.check_usable()?;
        let draft = synced.0;
        self.check_token(&draft)?;
        let published = self.try_publish(draft);
        self.poison_on_error(published)
    }

    fn check_id(&self, id: CheckpointId) -> Result<()> {
        match self.highest_id {
            _ if id > CheckpointId::LAST => Err(already_exists(
                format!("checkpoint id {id} is too large, the last one is {}", CheckpointId::LAST),
                "Use a smaller one; nothing was changed.",
            )),
            Some(highest) if id <= highest => Err(already_exists(
                format!("checkpoint id {id} cannot be used, ids only grow and {highest} was used already"),
                "Use a larger one; nothing was changed.",
            )),
            _ => Ok(()),
        }
    }

    fn check_epoch(&self) -> Result<()> {
        let (epoch, latest) = (self.current_epoch(), self.latest.as_ref());
        if epoch > Epoch::LAST {
            let what = format!("epoch {epoch} is too large, the last one is {}", Epoch::LAST);
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Set a smaller one with set_epoch; nothing was changed."),
            ));
        }
        match latest {
            Some(latest) if epoch.get() < latest.epoch => {
                let what = format!("checkpoint {} holds epoch {} already", latest.id, latest.epoch);
                let detail = Detail::new(what).in_epoch(epoch).remedy("Epochs only grow.");
                Err(IncrementalCheckpointError::EpochMismatch(Box::new(detail)))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn check_nothing_in_flight(&self) -> Result<()> {
        match self.in_flight {
            None => Ok(()),
            Some(id) => Err(already_exists(
                format!("checkpoint {id} is written and not published yet"),
                "Sync and publish it first, or open again to give it up.",
            )),
        }
    }

    fn check_token(&self, draft: &Draft) -> Result<()> {
        let ours = self.in_flight == Some(CheckpointId(draft.metadata.id))
            && draft.pending_dir.parent() == Some(self.config.checkpoint_dir.as_path());
        if ours {
            return Ok(());
        }
        let what = format!("checkpoint {} is not in flight here", draft.metadata.id);
        Err(IncrementalCheckpointError::invalid(
            Detail::new(what).remedy("Sync and publish it where it was written."),
        ))
    }
}

/// Write.
impl IncrementalCheckpointManager {
    fn try_write(&mut self, id: CheckpointId, wal_position: WalPosition, changes: &Overlay) -> Result<Draft> {
        let mut spill = match self.spill.take() {
            Some(spill) => spill,
            None => self.create_spill(id)?,
        };
        spill.rename(self.vfs.as_ref(), &self.config.checkpoint_dir, id)?;
        let plans: Vec<_> = self.cores().map(|core| (core, self.plan(core, changes))).collect();
        let all_rewritten = plans.iter().all(|(_, plan)| *plan == Plan::All);
        let write = |(core, plan): (CoreId, Plan)| self.write_core(core, &plan, changes, &spill);
        let files = in_parallel(self.vfs.as_ref(), plans, write)?;
        let mut metadata = self.describe(id, wal_position, &files);
        metadata.key_count = self.count_keys(&metadata, all_rewritten, changes)?;
        let manifest = metadata.to_json()?;
        check_manifest_len(manifest.len() as u64, &spill.dir)?;
        let manifest_path = spill.dir.join(MANIFEST_NAME);
        let manifest_file = self
            .vfs
            .create_new(&manifest_path)
            .and_then(|file| write_all_at(file.as_ref(), manifest.as_bytes(), 0).map(|()| file))
            .map_err(Self::io("could not write the manifest", &manifest_path))?;
        let pending_dir = spill.dir.clone();
        self.wal_cuts.clear();
        self.digests.clear();
        Ok(Draft { metadata, manifest, pending_dir, manifest_file, unsynced: spill.into_unsynced(), files })
    }

    fn describe(
        &self,
        id: CheckpointId,
        wal_position: WalPosition,
        files: &[Vec<DraftFile>],
    ) -> IncrementalCheckpointMetadata {
        let mut metadata = IncrementalCheckpointMetadata::new(id.get(), self.epoch());
        metadata.timestamp = self.vfs.now_ns() / 1_000_000;
        metadata.wal_position = wal_position.get();
        metadata.source_offsets = self.source_offsets.clone();
        metadata.watermark = self.watermark;
        metadata.core_offsets = self.core_offsets.clone();
        if sabotaged(Sabotage::OffsetsNotInCheckpoint) {
            metadata.source_offsets.clear();
            metadata.watermark = None;
            metadata.core_offsets.clear();
        }
        metadata.parent_id = self.latest.as_ref().map(|latest| latest.id);
        metadata.store_id = self.store_id.get();
        metadata.bound_to_wal = self.bound;
        metadata.core_count = u16::try_from(self.chains.len()).unwrap_or(u16::MAX);
        metadata.wal_cuts = if self.bound { self.wal_cuts.clone() } else { Vec::new() };
        metadata.digests = self.digests.clone();
        metadata.files = files
            .iter()
            .flatten()
            .filter(|file| !sabotaged(Sabotage::ManifestListsNewOnly) || matches!(file, DraftFile::New(_)))
            .map(|file| match file {
                DraftFile::Open(file) => file.reader.meta().clone(),
                DraftFile::New(meta) => meta.clone(),
            })
            .collect();
        metadata.sst_files = metadata.files.iter().map(|file| file.name.clone()).collect();
        metadata.size_bytes = metadata.files.iter().map(|file| file.len).sum();
        let linked = files.iter().flatten().any(|file| matches!(file, DraftFile::Open(_)));
        let parent_had_files = self.latest.as_ref().is_some_and(|latest| !latest.files.is_empty());
        metadata.is_incremental =
            self.config.incremental && self.latest.is_some() && (linked || !parent_had_files);
        metadata
    }

    /// Digest and number of the live keys of every core, changes in memory included. Reads everything.
    ///
    /// # Errors
    /// `Io`, `ChecksumMismatch`, `Corruption` of the state files.
    pub(crate) fn live_digests(&self) -> Result<Vec<CoreDigest>> {
        let cores = self.chains.iter().zip(self.overlay.cores());
        in_parallel(self.vfs.as_ref(), cores, |(chain, changes)| {
            let mut merge = merge_of(chain, changes)?;
            let mut core = CoreDigest { digest: 0, live_keys: 0 };
            while let Some(record) = merge.next_record()? {
                if let Some(value) = record.value {
                    core.digest = core.digest.wrapping_add(record_digest(record.key, value));
                    core.live_keys += 1;
                }
            }
            Ok(core)
        })
    }

    /// Live keys of the new checkpoint, by the cheapest way that is exact.
    fn count_keys(
        &self,
        metadata: &IncrementalCheckpointMetadata,
        all_rewritten: bool,
        changes: &Overlay,
    ) -> Result<u64> {
        if !metadata.digests.is_empty() {
            return Ok(metadata.digests.iter().map(|core| core.live_keys).sum());
        }
        if all_rewritten {
            return Ok(metadata.files.iter().map(|file| file.records).sum());
        }
        if let Some(live) = self.live_keys_with(changes)? {
            return Ok(live);
        }
        let mut live = 0;
        for (chain, changes) in self.chains.iter().zip(changes.cores()) {
            let mut merge = merge_of(chain, changes)?;
            while let Some(record) = merge.next_record()? {
                live += u64::from(record.value.is_some());
            }
        }
        Ok(live)
    }
}

/// Sync and publish.
impl IncrementalCheckpointManager {
    fn try_sync(&self, draft: &Draft) -> Result<()> {
        let dir = &draft.pending_dir;
        if sabotaged(Sabotage::CheckpointNotSynced) {
            return Ok(());
        }
        // Nothing of it counts before the directory has its name, so all of it can become durable at a time.
        let files: Vec<_> = draft.unsynced.iter().chain([&draft.manifest_file]).cloned().collect();
        for result in self.vfs.sync_many(&files) {
            result.map_err(Self::io("could not sync a file of", dir))?;
        }
        if sabotaged(Sabotage::CheckpointDirNotSynced) {
            return Ok(());
        }
        self.vfs.sync_dir(dir).map_err(Self::io("could not sync the checkpoint directory", dir))
    }

    fn try_publish(&mut self, draft: Draft) -> Result<Published> {
        let parent = self.config.checkpoint_dir.clone();
        let dir = draft.metadata.checkpoint_path(&parent);
        // A rename would silently replace an empty directory.
        let taken = self.vfs.kind(&dir).map_err(Self::io("could not look at", &dir))?;
        if taken.is_some() {
            return Err(already_exists(
                format!("{} appeared by another hand", dir.display()),
                "Find out what made it, move it away, and open again; what was published before is intact.",
            ));
        }
        self.vfs
            .rename(&draft.pending_dir, &dir)
            .map_err(Self::io("could not give the checkpoint its name", &dir))?;
        if !sabotaged(Sabotage::CheckpointNameNotSynced) {
            self.vfs
                .sync_dir(&parent)
                .map_err(Self::io("could not sync the directory of checkpoints", &parent))?;
        }
        let chains = self.read_back(&dir, &draft)?;
        let mut floor = self.wal_floor();
        if sabotaged(Sabotage::LogCutToNewest) {
            floor = floor.map(|_| WalFloor::of(&draft.metadata));
        }
        let id = CheckpointId(draft.metadata.id);
        self.chains = chains;
        self.live_keys = Some(draft.metadata.key_count);
        self.latest = Some(draft.metadata.clone());
        self.highest_id = Some(id);
        self.rewrite_all = false;
        self.frozen = None;
        self.in_flight = None;
        self.since_ns = self.vfs.now_ns();
        self.epoch.fetch_max(draft.metadata.epoch, Ordering::SeqCst);
        Ok(Published { metadata: draft.metadata, floor })
    }

    /// Checks under the final name that everything is there and as it was written, new files to the
    /// last byte, and opens them.
    fn read_back(&self, dir: &Path, draft: &Draft) -> Result<Vec<Vec<ChainFile>>> {
        let vfs = self.vfs.as_ref();
        let path = dir.join(MANIFEST_NAME);
        let manifest = read_small_file(vfs, &path, MAX_MANIFEST_LEN)
            .map_err(Self::io("could not read the manifest back", &path))?;
        if manifest != draft.manifest.as_bytes() || read_manifest(vfs, dir)? != draft.metadata {
            let what = "the manifest reads back different from what was written";
            return Err(IncrementalCheckpointError::corruption(Detail::new(what).at_path(path)));
        }
        let read = |file: &DraftFile| -> Result<_> {
            let reader = match file {
                DraftFile::New(meta) => self.read_file_back(dir, meta)?,
                DraftFile::Open(file) => {
                    check_linked(vfs, dir, file.reader.meta())?;
                    Arc::new(file.reader.renamed(dir))
                }
            };
            Ok(ChainFile { reader, spilled: false })
        };
        let new = draft.files.iter().flatten().filter(|file| matches!(file, DraftFile::New(_))).count();
        match draft.files.as_slice() {
            // A state of one core, written in several parts.
            [files] if new > 1 => Ok(vec![in_parallel(vfs, files, read)?]),
            cores if new > 1 => in_parallel(vfs, cores, |files| files.iter().map(read).collect()),
            cores => cores.iter().map(|files| files.iter().map(read).collect()).collect(),
        }
    }

    fn read_file_back(&self, dir: &Path, meta: &CheckpointFile) -> Result<Arc<StateFileReader>> {
        let reader = Arc::new(StateFileReader::open(self.vfs.as_ref(), dir, meta, self.store_id)?);
        if !sabotaged(Sabotage::NotReadBack) {
            reader.verify()?;
        }
        Ok(reader)
    }

    /// How far the log is not needed even if the checkpoint just published should turn out damaged:
    /// up to the one before, if that is still good and of the same log.
    fn wal_floor(&self) -> Option<WalFloor> {
        let before = self.latest.as_ref()?;
        if !self.bound || !before.bound_to_wal || before.store_id != self.store_id.get() {
            return None;
        }
        let dir = before.checkpoint_path(&self.config.checkpoint_dir);
        let vfs = self.vfs.as_ref();
        let found = read_manifest(vfs, &dir).and_then(|found| {
            // One after the other: there can be as many as a process may open.
            for file in &found.files {
                StateFileReader::open(vfs, &dir, file, self.store_id)?;
            }
            Ok(found)
        });
        match found {
            Ok(found) if found == *before => Some(WalFloor::of(before)),
            Ok(_) => {
                tracing::warn!(checkpoint = before.id, "the log is kept: the checkpoint before changed");
                None
            }
            Err(error) => {
                tracing::warn!(checkpoint = before.id, %error, "the log is kept: the checkpoint before cannot be read");
                None
            }
        }
    }
}

/// A core's whole state.
fn merge_of<'a>(chain: &[ChainFile], changes: &'a CoreChanges) -> Result<Merge<'a>> {
    let mut sources = sources(chain.iter().map(|file| &file.reader), StateFileReader::cursor);
    sources.push(Source::Memory(changes.sorted()));
    Merge::new(sources)
}

/// Nothing is written that could not be read again.
fn check_manifest_len(len: u64, dir: &Path) -> Result<()> {
    if len <= MAX_MANIFEST_LEN {
        return Ok(());
    }
    let what = format!("the manifest would have {len} bytes, {MAX_MANIFEST_LEN} can be read");
    let detail = Detail::new(what).at_path(dir);
    Err(IncrementalCheckpointError::invalid(detail.remedy("Use fewer or shorter source names.")))
}

fn already_exists(what: String, remedy: &'static str) -> IncrementalCheckpointError {
    IncrementalCheckpointError::AlreadyExists(Box::new(Detail::new(what).remedy(remedy)))
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_may_be_as_long_as_can_be_read_and_no_longer() {
        let dir = Path::new("/c");
        check_manifest_len(MAX_MANIFEST_LEN, dir).unwrap();
        let error = check_manifest_len(MAX_MANIFEST_LEN + 1, dir).unwrap_err();
        assert!(matches!(error, IncrementalCheckpointError::InvalidConfig(_)), "{error}");
    }
}
