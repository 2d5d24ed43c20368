//! Savepoints: a checkpoint under a name of the user's, which nothing here ever removes; and the way back,
//! a savepoint as the first checkpoint of a new store.
//!
//! | step | on disk | a crash after it |
//! |---|---|---|
//! | fill | `NAME.unfinished`: links to (or copies of) the state files, the manifest, files of the program | is removed by the next try |
//! | sync | the same, durable: copies, manifest, directory | is removed by the next try |
//! | publish | renamed to `NAME`, parent synced, read back | it is there, complete |
//!
//! The directory stands on its own, as every checkpoint's does (I13): the file system counts who still
//! needs a file. Only sealed, synced files are linked, so that neither side can change what the other has.
//! A failure removes what was begun and touches nothing of the store: it poisons nobody.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use super::checkpoint_reader::{CheckpointReader, read_manifest};
use super::error::IncrementalCheckpointError;
use super::layout::{EntryName, MANIFEST_NAME, can_be_own_file};
use super::links::link_or_copy;
use super::manager::{IncrementalCheckpointManager, Result};
use super::metadata::IncrementalCheckpointMetadata;
use super::retention::{Listing, remove_known_and, sweep};
use crate::error::Detail;
use crate::format::manifest::MAX_MANIFEST_LEN;
use crate::ids::{CheckpointId, Epoch};
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::{FileKind, Vfs, VfsFile, absolute, dir_kind, parent_of, read_small_file, write_all_at};

/// Added to the name of a savepoint while it is made.
const UNFINISHED: &str = ".unfinished";

/// What [`IncrementalCheckpointManager::savepoint`] and [`crate::Store::savepoint`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavepointReceipt {
    /// Where it is.
    pub path: PathBuf,
    /// The checkpoint it holds.
    pub id: CheckpointId,
    /// The epoch whose end it holds.
    pub epoch: Epoch,
    /// Its keys.
    pub keys: u64,
    /// Bytes of its state files.
    pub bytes: u64,
    /// Number of its state files.
    pub files: usize,
    /// How many of them are copies, because the file system would not link them; 0 when it costs no room.
    pub copied: usize,
}

impl IncrementalCheckpointManager {
    /// Gives the newest checkpoint a second life in the new directory `dir`: complete, durable, read back,
    /// standing on its own, and never removed by this library. Changes that no checkpoint has yet are not
    /// in it. The state files are shared by hard link where the file system allows that, otherwise copied.
    ///
    /// Works on a poisoned manager too, whose newest checkpoint is still what it was.
    ///
    /// # Errors
    /// `NotFound` when there is no checkpoint yet; `AlreadyExists` when there is something at `dir`;
    /// `InvalidConfig` when `dir` cannot be used: its parent does not exist, or it would be among the files
    /// of the store; `Corruption` and the like when the checkpoint turns out damaged; `Io`. Nothing is
    /// left at `dir` then, this manager is as it was, and the same call may be made again.
    pub fn savepoint(&self, dir: impl AsRef<Path>) -> Result<SavepointReceipt> {
        self.savepoint_with(dir, &[])
    }

    /// As [`Self::savepoint`], with small files of the program's own beside those of the state: name and
    /// content of each. They are complete whenever the savepoint is.
    ///
    /// # Errors
    /// As [`Self::savepoint`]; `InvalidConfig` for a name that is no file name, or one of this library's.
    pub fn savepoint_with(
        &self,
        dir: impl AsRef<Path>,
        own_files: &[(&str, &[u8])],
    ) -> Result<SavepointReceipt> {
        let target = self.check_target(dir.as_ref())?;
        check_names(own_files)?;
        let vfs = self.vfs.as_ref();
        let Some(latest) = &self.latest else {
            let detail = Detail::new("there is no checkpoint yet").at_path(&self.config.checkpoint_dir);
            return Err(IncrementalCheckpointError::NotFound(Box::new(detail.remedy("Make one first."))));
        };
        let source = latest.checkpoint_path(&self.config.checkpoint_dir);
        let reader = CheckpointReader::open(vfs, &source)?;
        let path = source.join(MANIFEST_NAME);
        let manifest = read_small_file(vfs, &path, MAX_MANIFEST_LEN)
            .map_err(Self::io("could not read the manifest", &path))?;
        if reader.metadata() != latest {
            let what = "the manifest is not the one that was written";
            return Err(IncrementalCheckpointError::corruption(Detail::new(what).at_path(path)));
        }
        let pending = with_suffix(&target);
        let replica = Replica {
            reader: &reader,
            metadata: latest,
            manifest: &manifest,
            own_files,
            pending: &pending,
            target: &target,
            sealed: true,
        };
        let copied =
            replica.remove_leftover(vfs).and_then(|()| replica.make(vfs)).map_err(beside_the_store)?;
        let receipt = SavepointReceipt {
            id: CheckpointId(latest.id),
            epoch: Epoch(latest.epoch),
            keys: latest.key_count,
            bytes: latest.size_bytes,
            files: latest.files.len(),
            copied,
            path: target,
        };
        tracing::info!(?receipt, "savepoint");
        Ok(receipt)
    }

    /// The path of a savepoint that can be made.
    pub(crate) fn check_target(&self, dir: &Path) -> Result<PathBuf> {
        let target = resolved(dir);
        let invalid = |what: String, remedy: &'static str| {
            let detail = Detail::new(what).at_path(&target).remedy(remedy);
            Err(IncrementalCheckpointError::invalid(detail))
        };
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.is_empty() || name.ends_with(UNFINISHED) || EntryName::parse(&name).is_some() {
            let what = format!("{name:?} cannot be the name of a savepoint");
            return invalid(what, "Choose a name that is not one of the library's own.");
        }
        let own = [Some(&self.config.checkpoint_dir), self.config.wal_path.as_ref()];
        if own.into_iter().flatten().any(|own| target.starts_with(resolved(own))) {
            let what = "a savepoint cannot be among the files of its store".to_owned();
            return invalid(what, "Choose a directory outside of it.");
        }
        let look = |path: &Path| {
            dir_kind(self.vfs.as_ref(), path)
                .map_err(Self::io("could not look at", path))
                .map_err(beside_the_store)
        };
        let parent = parent_of(&target);
        if look(parent)? != Some(FileKind::Dir) {
            let what = format!("the savepoint's parent directory {} does not exist", parent.display());
            return invalid(what, "Create it first.");
        }
        if look(&target)?.is_some() {
            let detail = Detail::new("there is something of this name already").at_path(&target);
            let detail = detail.remedy("Choose another name, or remove what is there.");
            return Err(IncrementalCheckpointError::AlreadyExists(Box::new(detail)));
        }
        Ok(target)
    }
}

/// What [`import`] found or made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Imported {
    /// The epoch whose end the savepoint holds.
    pub(crate) epoch: Epoch,
    /// It was there already, from an earlier try. Whoever goes on must see that nothing followed it.
    pub(crate) existed: bool,
}

/// Makes the savepoint in `savepoint` the first checkpoint in a directory of checkpoints that has none,
/// and whose lock the caller has. Every byte of it is read and checked before anything is written.
///
/// The checkpoint belongs to no log, so that a new log can continue it; the checkpoint after it is
/// written in full, under the identity of that log.
pub(crate) fn import(
    vfs: &dyn Vfs,
    savepoint: &Path,
    checkpoint_dir: &Path,
    has_log: bool,
) -> Result<Imported> {
    let reader = open_savepoint(vfs, savepoint)?;
    let metadata = without_log(reader.metadata());
    let (id, epoch) = (CheckpointId(metadata.id), Epoch(metadata.epoch));
    let target = EntryName::Checkpoint(id).path(checkpoint_dir);
    let listing = Listing::read(vfs, checkpoint_dir)?;
    let was_used = listing.leftovers.iter().any(|entry| matches!(entry, EntryName::Trash(_)));
    if has_log || was_used || !listing.checkpoints.is_empty() {
        let again = listing.checkpoints.contains(&id) && read_manifest(vfs, &target)? == metadata;
        return if again { Ok(Imported { epoch, existed: true }) } else { Err(in_use(checkpoint_dir)) };
    }
    reader.verify_in_parallel(vfs).map_err(unusable)?;
    sweep(vfs, checkpoint_dir, &listing.leftovers)?;
    let manifest = metadata.to_json()?;
    let replica = Replica {
        reader: &reader,
        metadata: &metadata,
        manifest: manifest.as_bytes(),
        own_files: &[],
        pending: &EntryName::Pending(id).path(checkpoint_dir),
        target: &target,
        sealed: false,
    };
    replica.make(vfs)?;
    tracing::info!(savepoint = %savepoint.display(), %epoch, "began from a savepoint");
    Ok(Imported { epoch, existed: false })
}

/// The refusal to mix a savepoint with a state that is there.
pub(crate) fn in_use(checkpoint_dir: &Path) -> IncrementalCheckpointError {
    let detail = Detail::new("there is a state already, a savepoint can only become a new one")
        .at_path(parent_of(checkpoint_dir))
        .remedy("Name a new directory, or open what is here without the savepoint; nothing was changed.");
    IncrementalCheckpointError::AlreadyExists(Box::new(detail))
}

fn open_savepoint(vfs: &dyn Vfs, dir: &Path) -> Result<CheckpointReader> {
    CheckpointReader::open(vfs, dir).map_err(|error| match error {
        IncrementalCheckpointError::NotFound(_) => {
            let detail = Detail::new(format!("there is no savepoint here: it has no {MANIFEST_NAME}"));
            IncrementalCheckpointError::invalid(detail.at_path(dir).remedy("Check the path."))
        }
        other => unusable(other),
    })
}

/// The checkpoint as one that was made without a log.
fn without_log(savepoint: &IncrementalCheckpointMetadata) -> IncrementalCheckpointMetadata {
    let mut metadata = savepoint.clone();
    metadata.bound_to_wal = false;
    metadata.wal_cuts.clear();
    metadata.wal_position = 0;
    metadata.parent_id = None;
    metadata.is_incremental = false;
    metadata
}

/// A directory that is made from a checkpoint's files.
struct Replica<'a> {
    reader: &'a CheckpointReader,
    /// What the new directory's manifest says, and its bytes.
    metadata: &'a IncrementalCheckpointMetadata,
    manifest: &'a [u8],
    own_files: &'a [(&'a str, &'a [u8])],
    pending: &'a Path,
    target: &'a Path,
    /// Whether the files are known to be durable where they are.
    sealed: bool,
}

impl Replica<'_> {
    /// Makes it, or leaves nothing behind, as far as the disk allows that; returns how many files are copies.
    fn make(&self, vfs: &dyn Vfs) -> Result<usize> {
        let io = IncrementalCheckpointManager::io;
        vfs.create_dir(self.pending).map_err(io("could not create the directory", self.pending))?;
        let mut renaming = false;
        let made = self.fill(vfs).and_then(|copies| {
            self.publish(vfs, &mut renaming)?;
            self.read_back(vfs, &copies)?;
            Ok(copies.len())
        });
        if made.is_err() {
            let removed = self.take_back(vfs, renaming);
            tracing::warn!(path = %self.target.display(), ?removed, "gave up what was begun");
        }
        made
    }

    /// What a crash brings back of it afterwards is complete or has the name of something unfinished: when it
    /// may have its final name on disk, its files stay until that name is durably gone.
    fn take_back(&self, vfs: &dyn Vfs, renaming: bool) -> Result<bool> {
        let io = IncrementalCheckpointManager::io;
        // A renaming that failed may have taken place.
        if renaming && matches!(vfs.kind(self.pending), Ok(None)) {
            vfs.rename(self.target, self.pending).map_err(io("could not take its name from", self.target))?;
            let parent = parent_of(self.target);
            if !sabotaged(Sabotage::TakenBackUnsynced) {
                vfs.sync_dir(parent).map_err(io("could not sync the directory", parent))?;
            }
        }
        self.remove_pending(vfs)
    }

    /// Writes and syncs everything under the temporary name; returns the names of the copies.
    fn fill(&self, vfs: &dyn Vfs) -> Result<Vec<&str>> {
        let io = IncrementalCheckpointManager::io;
        let mut copies = Vec::new();
        let mut unsynced: Vec<Arc<dyn VfsFile>> = Vec::new();
        for file in self.reader.cores().flat_map(|core| self.reader.files(core)) {
            let name = file.meta().name.as_str();
            match link_or_copy(vfs, file, file.path(), &self.pending.join(name))? {
                Some(copy) => {
                    copies.push(name);
                    unsynced.push(copy);
                }
                // Whoever copied it to where it is need not have synced it.
                None if !self.sealed => {
                    file.file().sync_data().map_err(io("could not sync the state file", file.path()))?;
                }
                None => {}
            }
        }
        let manifest = (MANIFEST_NAME, self.manifest);
        for (name, bytes) in self.own_files.iter().copied().chain([manifest]) {
            let path = self.pending.join(name);
            let written = vfs.create_new(&path).and_then(|file| {
                write_all_at(file.as_ref(), bytes, 0)?;
                Ok(file)
            });
            unsynced.push(written.map_err(io("could not write", &path))?);
        }
        if sabotaged(Sabotage::SavepointNotSynced) {
            return Ok(copies);
        }
        for result in vfs.sync_many(&unsynced) {
            result.map_err(io("could not sync a file of", self.pending))?;
        }
        vfs.sync_dir(self.pending).map_err(io("could not sync the directory", self.pending))?;
        Ok(copies)
    }

    /// Gives it its name, durably.
    fn publish(&self, vfs: &dyn Vfs, renaming: &mut bool) -> Result<()> {
        let io = IncrementalCheckpointManager::io;
        // A rename would silently replace an empty directory.
        if vfs.kind(self.target).map_err(io("could not look at", self.target))?.is_some() {
            let detail = Detail::new("something of this name appeared by another hand").at_path(self.target);
            let detail = detail.remedy("Find out what made it, move it away, and try again.");
            return Err(IncrementalCheckpointError::AlreadyExists(Box::new(detail)));
        }
        *renaming = true;
        vfs.rename(self.pending, self.target).map_err(io("could not give its name to", self.target))?;
        let parent = parent_of(self.target);
        if sabotaged(Sabotage::SavepointNameNotSynced) {
            return Ok(());
        }
        vfs.sync_dir(parent).map_err(io("could not sync the directory", parent))
    }

    /// Checks under the final name that everything is there and as it was written, copies to the last byte.
    fn read_back(&self, vfs: &dyn Vfs, copies: &[&str]) -> Result<()> {
        let manifest = (MANIFEST_NAME, self.manifest);
        for (name, bytes) in self.own_files.iter().copied().chain([manifest]) {
            let path = self.target.join(name);
            let read = read_small_file(vfs, &path, bytes.len() as u64)
                .map_err(IncrementalCheckpointManager::io("could not read back", &path))?;
            if read != bytes {
                let what = "the file reads back different from what was written";
                return Err(IncrementalCheckpointError::corruption(Detail::new(what).at_path(path)));
            }
        }
        let reader = CheckpointReader::open(vfs, self.target)?;
        if reader.metadata() != self.metadata {
            let what = "the manifest reads back different from what was written";
            return Err(IncrementalCheckpointError::corruption(Detail::new(what).at_path(self.target)));
        }
        let files = reader.cores().flat_map(|core| reader.files(core));
        for file in files.filter(|file| copies.contains(&file.meta().name.as_str())) {
            file.verify()?;
        }
        Ok(())
    }

    /// Removes what a crash left under the temporary name, durably.
    fn remove_leftover(&self, vfs: &dyn Vfs) -> Result<()> {
        let io = IncrementalCheckpointManager::io;
        if vfs.kind(self.pending).map_err(io("could not look at", self.pending))?.is_none() {
            return Ok(());
        }
        if !self.remove_pending(vfs)? {
            let detail = Detail::new("this is in the way, and has files of another origin")
                .at_path(self.pending)
                .remedy("Look what it is and remove it, or choose another name for the savepoint.");
            return Err(IncrementalCheckpointError::AlreadyExists(Box::new(detail)));
        }
        let parent = parent_of(self.pending);
        vfs.sync_dir(parent).map_err(io("could not sync the directory", parent))
    }

    fn remove_pending(&self, vfs: &dyn Vfs) -> Result<bool> {
        remove_known_and(vfs, self.pending, |name| self.own_files.iter().any(|(own, _)| *own == name))
    }
}

fn check_names(own_files: &[(&str, &[u8])]) -> Result<()> {
    for (name, _) in own_files {
        if !can_be_own_file(name) {
            let what = format!("{name:?} cannot be the name of a file beside those of a savepoint");
            return Err(IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Use a plain file name that is not one of the library's own."),
            ));
        }
    }
    Ok(())
}

/// An absolute path without `.` and `..`, as far as that can be told without looking at the disk.
pub(crate) fn resolved(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in absolute(path).components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                out.pop();
            }
            other => out.push(other),
        }
    }
    out
}

fn with_suffix(target: &Path) -> PathBuf {
    let mut name = target.file_name().map(OsString::from).unwrap_or_default();
    name.push(UNFINISHED);
    target.with_file_name(name)
}

/// What failed was not the store's own disk work: the advice must not be to open it again.
fn beside_the_store(error: IncrementalCheckpointError) -> IncrementalCheckpointError {
    match error {
        IncrementalCheckpointError::Io(detail) => {
            let remedy = if detail.is_out_of_space() {
                "Free space on this file system, then make the savepoint again; the store goes on."
            } else {
                "Remove the cause, or choose another place, then make the savepoint again; the store goes on."
            };
            IncrementalCheckpointError::Io(Box::new(detail.remedy(remedy)))
        }
        other => other,
    }
}

/// A savepoint that is damaged has no other checkpoint behind it.
fn unusable(error: IncrementalCheckpointError) -> IncrementalCheckpointError {
    let remedy = "The savepoint is damaged: restore it from a copy, or use another one; nothing was changed.";
    match error {
        IncrementalCheckpointError::Corruption(detail) => {
            IncrementalCheckpointError::Corruption(Box::new(detail.remedy(remedy)))
        }
        IncrementalCheckpointError::ChecksumMismatch(detail) => {
            IncrementalCheckpointError::ChecksumMismatch(Box::new(detail.remedy(remedy)))
        }
        other => other,
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
