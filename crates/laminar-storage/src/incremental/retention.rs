//! Finding checkpoints, and removing the ones nobody needs.
//!
//! Files are shared between checkpoints by hard link, so a directory can go without looking at any
//! other. It first gets the name of trash, durably, and only then loses its content: a crash never
//! leaves half a checkpoint under a checkpoint's name. Only names this library makes are removed.

use std::io;
use std::path::Path;

use super::checkpoint_reader::{CheckpointReader, read_manifest};
use super::error::IncrementalCheckpointError;
use super::layout::{EntryName, MANIFEST_NAME, parse_state_file_name};
use super::manager::{IncrementalCheckpointManager, Result};
use super::metadata::IncrementalCheckpointMetadata;
use super::state_map::StateMap;
use crate::error::Detail;
use crate::ids::CheckpointId;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{FileKind, Vfs};

/// What stands in a directory of checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Published checkpoints, oldest first, whether or not they are good.
    pub checkpoints: Vec<CheckpointId>,
    /// Left behind by a crash: checkpoints that were never finished or not fully deleted.
    pub leftovers: Vec<EntryName>,
}

impl Listing {
    /// Lists a directory. One that does not exist is empty.
    ///
    /// # Errors
    /// `Io`.
    pub fn read(vfs: &dyn Vfs, checkpoint_dir: &Path) -> Result<Self> {
        let fail = |e| IncrementalCheckpointError::io("could not list the checkpoints", checkpoint_dir, e);
        if vfs.kind(checkpoint_dir).map_err(fail)?.is_none() {
            return Ok(Self::default());
        }
        let mut listing = Self::default();
        let entries = match vfs.read_dir(checkpoint_dir).map_err(fail) {
            Err(_) if sabotaged(Sabotage::FailedListingIsEmpty) => Vec::new(),
            entries => entries?,
        };
        for (name, kind) in entries {
            match (EntryName::parse(&name), kind) {
                (Some(EntryName::Checkpoint(id)), FileKind::Dir) => listing.checkpoints.push(id),
                (Some(leftover), FileKind::Dir) => listing.leftovers.push(leftover),
                _ => {}
            }
        }
        listing.checkpoints.sort_unstable();
        Ok(listing)
    }
}

/// Looking at checkpoints.
impl IncrementalCheckpointManager {
    /// The newest checkpoint, freshly read from disk.
    ///
    /// # Errors
    /// As [`Self::load_checkpoint_metadata`]; `NotFound` when it was removed by another hand.
    pub fn find_latest_checkpoint(&self) -> Result<Option<IncrementalCheckpointMetadata>> {
        match self.latest_checkpoint_id() {
            Some(id) => self.read_metadata(CheckpointId(id)).map(Some),
            None => Ok(None),
        }
    }

    /// The id of the newest checkpoint.
    #[must_use]
    pub fn latest_checkpoint_id(&self) -> Option<u64> {
        self.latest.as_ref().map(|latest| latest.id)
    }

    /// The directory of the newest checkpoint.
    #[cfg(feature = "object-store")]
    pub(crate) fn newest_dir(&self) -> Option<std::path::PathBuf> {
        self.latest.as_ref().map(|latest| latest.checkpoint_path(&self.config.checkpoint_dir))
    }

    /// What a checkpoint says about itself; `None` when there is no such checkpoint.
    ///
    /// # Errors
    /// `Corruption`, `ChecksumMismatch`, `UnsupportedVersion`, `Io`.
    pub fn load_checkpoint_metadata(&self, id: u64) -> Result<Option<IncrementalCheckpointMetadata>> {
        let dir = EntryName::Checkpoint(CheckpointId(id)).path(&self.config.checkpoint_dir);
        match self.vfs.kind(&dir).map_err(Self::io("could not look at", &dir))? {
            None => Ok(None),
            Some(_) => match self.read_metadata(CheckpointId(id)) {
                Err(IncrementalCheckpointError::NotFound(detail)) => {
                    Err(IncrementalCheckpointError::Corruption(detail))
                }
                other => other.map(Some),
            },
        }
    }

    /// The whole state of a checkpoint, in memory.
    ///
    /// # Errors
    /// `NotFound`; `Corruption`, `ChecksumMismatch`, `UnsupportedVersion`, `Io`.
    pub fn load_checkpoint_state(&self, id: u64) -> Result<StateMap> {
        if self.load_checkpoint_metadata(id)?.is_none() {
            return Err(self.no_such_checkpoint(CheckpointId(id)));
        }
        let dir = EntryName::Checkpoint(CheckpointId(id)).path(&self.config.checkpoint_dir);
        CheckpointReader::open(self.vfs.as_ref(), &dir)?.load()
    }

    /// All checkpoints, newest first. Damaged ones this manager was told to pass over are left out.
    ///
    /// # Errors
    /// `Io`; `Corruption` and the like when a manifest cannot be read.
    pub fn list_checkpoints(&self) -> Result<Vec<IncrementalCheckpointMetadata>> {
        let mut found = Vec::new();
        for id in self.good_ids()?.into_iter().rev() {
            if let Some(metadata) = self.load_checkpoint_metadata(id.get())? {
                found.push(metadata);
            }
        }
        Ok(found)
    }

    fn good_ids(&self) -> Result<Vec<CheckpointId>> {
        let mut ids = Listing::read(self.vfs.as_ref(), &self.config.checkpoint_dir)?.checkpoints;
        ids.retain(|id| !self.skipped.contains(id));
        Ok(ids)
    }

    fn read_metadata(&self, id: CheckpointId) -> Result<IncrementalCheckpointMetadata> {
        let dir = EntryName::Checkpoint(id).path(&self.config.checkpoint_dir);
        let metadata = read_manifest(self.vfs.as_ref(), &dir)?;
        check_id(&dir, id, &metadata)?;
        Ok(metadata)
    }

    fn no_such_checkpoint(&self, id: CheckpointId) -> IncrementalCheckpointError {
        let detail = Detail::new(format!("there is no checkpoint {id}")).at_path(&self.config.checkpoint_dir);
        IncrementalCheckpointError::NotFound(Box::new(
            detail.remedy("Use one that is there: list_checkpoints and 'laminar info' list them."),
        ))
    }
}

/// Removing checkpoints.
impl IncrementalCheckpointManager {
    /// Removes one checkpoint. The state of this manager stays what it is; if it was the newest, the
    /// next checkpoint is written in full.
    ///
    /// # Errors
    /// `NotFound`; `InvalidConfig` for the newest checkpoint of a write-ahead log, which relies on
    /// it; `Poisoned`; `Io`, which poisons the manager.
    pub fn delete_checkpoint(&mut self, id: u64) -> Result<()> {
        self.check_usable()?;
        let id = CheckpointId(id);
        let ids = Listing::read(self.vfs.as_ref(), &self.config.checkpoint_dir)?.checkpoints;
        if !ids.contains(&id) {
            return Err(self.no_such_checkpoint(id));
        }
        let newest = self.latest_checkpoint_id() == Some(id.get());
        if !newest {
            return self.remove(id);
        }
        self.check_nothing_in_flight()?;
        if self.latest.as_ref().is_some_and(|latest| latest.bound_to_wal) {
            let what = format!("checkpoint {id} is the newest one, the write-ahead log relies on it");
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).at_path(&self.config.checkpoint_dir).remedy("Make a newer one first."),
            ));
        }
        // Look before anything is gone: the one before becomes the newest, and must be readable.
        let before = self.good_ids()?.into_iter().rfind(|&other| other < id);
        let before = before.map(|before| self.read_metadata(before)).transpose()?;
        self.remove(id)?;
        self.latest = before;
        self.rewrite_all = true;
        Ok(())
    }

    /// Removes all but the `max_retained` newest checkpoints.
    ///
    /// # Errors
    /// As [`Self::cleanup_old_checkpoints_keep`].
    pub fn cleanup_old_checkpoints(&self) -> Result<()> {
        self.cleanup_old_checkpoints_keep(self.config.max_retained)
    }

    /// Removes all but the `keep` newest checkpoints. Checkpoints this manager was told to pass over
    /// are neither counted nor removed.
    ///
    /// # Errors
    /// `InvalidConfig` for 0; `Poisoned`; `Io`. When the checkpoints cannot be listed, nothing is
    /// removed; a removal that fails poisons the manager.
    pub fn cleanup_old_checkpoints_keep(&self, keep: usize) -> Result<()> {
        self.check_usable()?;
        if keep == 0 {
            let what = "keep is 0, it must be at least 1";
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Correct it; nothing was removed."),
            ));
        }
        let ids = self.good_ids()?;
        let old = ids.len().saturating_sub(keep);
        let newest = if sabotaged(Sabotage::RetentionTakesNewest) { ids.len() - old } else { 0 };
        for &id in ids.iter().skip(newest).take(old) {
            match self.remove(id) {
                // What is in a read-only layer takes no room that its removal would give back.
                Err(error) if is_in_a_lower_layer(&error) => {
                    tracing::warn!(%error, "an old checkpoint is left in place");
                }
                removed => removed?,
            }
        }
        Ok(())
    }

    /// Removes, as well as that goes, what will never be published because this manager was stopped while writing
    /// it: on a full disk the log needs the room. What of it the state is read from stays open.
    pub(super) fn give_room_back(&self) {
        let (vfs, dir) = (self.vfs.as_ref(), self.config.checkpoint_dir.as_path());
        let removed = Listing::read(vfs, dir).and_then(|mut listing| {
            listing.leftovers.retain(|entry| matches!(entry, EntryName::Pending(_)));
            sweep(vfs, dir, &listing.leftovers)
        });
        if let Err(error) = removed {
            tracing::warn!(%error, "could not remove the checkpoint that failed");
        }
    }

    /// Removes a checkpoint. A failure poisons the manager, except where nothing can have happened.
    fn remove(&self, id: CheckpointId) -> Result<()> {
        let removed = self.try_remove(id);
        if removed.as_ref().is_err_and(is_in_a_lower_layer) {
            return removed;
        }
        self.poison_on_error(removed)
    }

    fn try_remove(&self, id: CheckpointId) -> Result<()> {
        let (vfs, parent) = (self.vfs.as_ref(), self.config.checkpoint_dir.as_path());
        let (dir, trash) = (EntryName::Checkpoint(id).path(parent), EntryName::Trash(id).path(parent));
        vfs.rename(&dir, &trash).map_err(Self::io("could not move the checkpoint to trash", &dir))?;
        vfs.sync_dir(parent).map_err(Self::io("could not sync the directory of checkpoints", parent))?;
        if !remove_known(vfs, &trash, Room::Later)? {
            tracing::warn!(path = %trash.display(), "left in place, it has files of another origin");
        }
        Ok(())
    }
}

/// Whether a directory could not be renamed because it is in a lower layer of an overlay file system, as a state that
/// came with a container's image is. Its files can be renamed and removed, but it cannot.
fn is_in_a_lower_layer(error: &IncrementalCheckpointError) -> bool {
    let cause = error.detail().io_error();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::CrossesDevices)
}

/// Removes what crashes left behind; returns what had to stay because unknown files are in it.
pub(super) fn sweep(vfs: &dyn Vfs, checkpoint_dir: &Path, leftovers: &[EntryName]) -> Result<Vec<EntryName>> {
    let mut stay = Vec::new();
    for &entry in leftovers {
        let path = entry.path(checkpoint_dir);
        if remove_known(vfs, &path, Room::Now)? {
            tracing::info!(path = %path.display(), "removed what a crash left behind");
        } else {
            tracing::warn!(path = %path.display(), "left in place, it has files of another origin");
            stay.push(entry);
        }
    }
    if stay.len() < leftovers.len() {
        // So that no name of it can come back under a new directory of that name.
        vfs.sync_dir(checkpoint_dir).map_err(IncrementalCheckpointManager::io(
            "could not sync the directory of checkpoints",
            checkpoint_dir,
        ))?;
    }
    Ok(stay)
}

/// When the room that files took must be free again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Now,
    Later,
}

/// Removes a directory whose files are all ours; false, and nothing removed, when one is not.
fn remove_known(vfs: &dyn Vfs, dir: &Path, room: Room) -> Result<bool> {
    remove_named(vfs, dir, |_| false, room)
}

/// As [`remove_known`], where files of some other names are ours too.
pub(super) fn remove_known_and(vfs: &dyn Vfs, dir: &Path, also: impl Fn(&str) -> bool) -> Result<bool> {
    remove_named(vfs, dir, also, Room::Now)
}

fn remove_named(vfs: &dyn Vfs, dir: &Path, also: impl Fn(&str) -> bool, room: Room) -> Result<bool> {
    let fail = |action| IncrementalCheckpointManager::io(action, dir);
    let entries = vfs.read_dir(dir).map_err(fail("could not list"))?;
    let known = |name: &str, kind: &FileKind| {
        matches!(kind, FileKind::File { .. })
            && (name == MANIFEST_NAME || parse_state_file_name(name).is_some() || also(name))
    };
    if !entries.iter().all(|(name, kind)| known(name, kind)) {
        return Ok(false);
    }
    for (name, _) in &entries {
        let path = dir.join(name);
        let removed = match room {
            Room::Now => vfs.remove_file(&path),
            Room::Later => vfs.remove_file_lazily(&path),
        };
        removed.map_err(IncrementalCheckpointManager::io("could not remove", &path))?;
    }
    vfs.remove_dir(dir).map_err(fail("could not remove"))?;
    Ok(true)
}

/// A checkpoint under the name of another is not that other one.
pub(super) fn check_id(dir: &Path, id: CheckpointId, metadata: &IncrementalCheckpointMetadata) -> Result<()> {
    if metadata.id == id.get() {
        return Ok(());
    }
    let what = format!("the manifest is that of checkpoint {}", metadata.id);
    Err(IncrementalCheckpointError::corruption(Detail::new(what).at_path(dir.join(MANIFEST_NAME))))
}
