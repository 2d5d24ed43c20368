//! What a checkpoint says about itself: its manifest, `metadata.json`.
//!
//! The manifest lists the complete set of files the checkpoint needs, each with length and checksum,
//! so that a directory stands on its own. It is canonical: only the exact bytes [`to_json`] writes
//! are accepted, so a changed byte cannot pass.
//!
//! [`to_json`]: IncrementalCheckpointMetadata::to_json

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::IncrementalCheckpointError;
use super::layout::{EntryName, parse_state_file_name, state_file_name};
use crate::error::Detail;
use crate::format::digest::StateDigest;
use crate::format::segment_header::WalMode;
use crate::format::state_file::FileIdentity;
use crate::format::{FORMAT_VERSION, MAX_CORES, manifest};
use crate::ids::{CheckpointId, CoreId, StoreId};
use crate::sabotage::{Sabotage, sabotaged};

type Result<T> = std::result::Result<T, IncrementalCheckpointError>;

/// Everything a checkpoint says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IncrementalCheckpointMetadata {
    /// Number of the checkpoint; the newest has the largest.
    pub id: u64,
    /// The epoch whose end the checkpoint holds.
    pub epoch: u64,
    /// When it was made, in milliseconds since the Unix epoch. A label, nothing is decided by it.
    pub timestamp: u64,
    /// Position in the write-ahead log, as the caller gave it.
    pub wal_position: u64,
    /// Where each input is to be read on from, over all cores.
    pub source_offsets: BTreeMap<String, u64>,
    /// The smallest watermark of the cores that have one.
    pub watermark: Option<i64>,
    /// Bytes of all state files, linked ones included.
    pub size_bytes: u64,
    /// Live keys.
    pub key_count: u64,
    /// Whether only what changed was written. False for the first and where all was rewritten.
    pub is_incremental: bool,
    /// The checkpoint it was built upon.
    pub parent_id: Option<u64>,
    /// Names of all state files, in the order of `files`.
    pub sst_files: Vec<String>,
    /// Random identity of the checkpoint set; the log's identity where `bound_to_wal`.
    pub store_id: u64,
    /// Whether it was written over a write-ahead log with the same `store_id`.
    pub bound_to_wal: bool,
    /// Number of cores the files are laid out for.
    pub core_count: u16,
    /// Per core of the log: all records up to this one are in the checkpoint. Empty when not bound.
    pub wal_cuts: Vec<WalCut>,
    /// Per core: its input positions and watermark.
    pub core_offsets: Vec<CoreOffsets>,
    /// Per core: digest and number of live keys. Empty when unknown.
    pub digests: Vec<CoreDigest>,
    /// All state files, by core, and of one core from the oldest to the newest.
    pub files: Vec<CheckpointFile>,
}

/// Up to where one core's log is in a checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WalCut {
    /// Sequence number of the last record that is in the checkpoint.
    pub sequence: u64,
}

/// Input positions and watermark of one core.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreOffsets {
    /// Where each of the core's inputs is to be read on from.
    pub offsets: BTreeMap<String, u64>,
    /// The core's watermark.
    pub watermark: Option<i64>,
}

impl CoreOffsets {
    /// Those of one of `cores` cores. The log that a coordinator made a checkpoint of may have had more; the
    /// first core takes over theirs.
    pub(crate) fn of(all: &[Self], core: CoreId, cores: u16) -> Self {
        let mut own: Vec<_> = all.get(core.index()).cloned().into_iter().collect();
        if core == CoreId::ZERO {
            own.extend(all.iter().skip(usize::from(cores)).cloned());
        }
        let (offsets, watermark) = flatten(&own);
        Self { offsets, watermark }
    }

    /// Takes over what a commit record says. A store's record names every source that its core reads, so
    /// that one it does not name was removed; those of the low-level functions add to each other.
    pub(crate) fn commit(&mut self, offsets: HashMap<String, u64>, watermark: Option<i64>, mode: WalMode) {
        if mode == WalMode::Epochs {
            self.offsets.clear();
        }
        self.offsets.extend(offsets);
        self.watermark = watermark.or(self.watermark);
    }
}

/// Digest of one core's live state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreDigest {
    /// Wrapping sum of [`record_digest`](crate::format::digest::record_digest) over the live keys.
    pub digest: u64,
    /// Number of live keys.
    pub live_keys: u64,
}

impl From<&CoreDigest> for StateDigest {
    fn from(core: &CoreDigest) -> Self {
        Self { digest: core.digest, live_keys: core.live_keys }
    }
}

impl From<&StateDigest> for CoreDigest {
    fn from(core: &StateDigest) -> Self {
        Self { digest: core.digest, live_keys: core.live_keys }
    }
}

/// One state file of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CheckpointFile {
    /// Its name; says checkpoint, core and part again.
    pub name: String,
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
    /// The core whose records it holds.
    pub core: u16,
    /// Its number among the files that checkpoint wrote for the core: below 0x8000 it is a delta, from
    /// there on a range of the base.
    pub part: u16,
    /// Length in bytes.
    pub len: u64,
    /// Checksum of its footer, and through it of every byte.
    pub checksum: u32,
    /// Records, tombstones included.
    pub records: u64,
    /// Records that delete their key.
    pub tombstones: u64,
}

impl CheckpointFile {
    /// The identity that stands in the file and salts its checksums.
    #[must_use]
    pub fn identity(&self, store_id: StoreId) -> FileIdentity {
        FileIdentity {
            store_id,
            checkpoint: CheckpointId(self.checkpoint),
            core: CoreId(self.core),
            part: self.part,
        }
    }

    /// Describes a file from its identity.
    #[must_use]
    pub(crate) fn of(identity: &FileIdentity) -> Self {
        let (checkpoint, core, part) = (identity.checkpoint.get(), identity.core.get(), identity.part);
        let name = state_file_name(checkpoint, core, part);
        Self { name, checkpoint, core, part, len: 0, checksum: 0, records: 0, tombstones: 0 }
    }

    fn place(&self) -> (u16, u64, u16) {
        (self.core, self.checkpoint, self.part)
    }
}

/// The inner object of `metadata.json`, field by field in the order on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format_version: u32,
    id: u64,
    epoch: u64,
    timestamp: u64,
    wal_position: u64,
    source_offsets: BTreeMap<String, u64>,
    watermark: Option<i64>,
    size_bytes: u64,
    key_count: u64,
    is_incremental: bool,
    parent_id: Option<u64>,
    store_id: u64,
    bound_to_wal: bool,
    core_count: u16,
    wal_cuts: Vec<WalCut>,
    core_offsets: Vec<CoreOffsets>,
    digests: Vec<CoreDigest>,
    files: Vec<ManifestFile>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestFile {
    name: String,
    len: u64,
    checksum: u32,
    records: u64,
    tombstones: u64,
}

impl IncrementalCheckpointMetadata {
    /// An empty checkpoint of one core.
    #[must_use]
    pub fn new(id: u64, epoch: u64) -> Self {
        Self {
            id,
            epoch,
            timestamp: 0,
            wal_position: 0,
            source_offsets: BTreeMap::new(),
            watermark: None,
            size_bytes: 0,
            key_count: 0,
            is_incremental: false,
            parent_id: None,
            sst_files: Vec::new(),
            store_id: 0,
            bound_to_wal: false,
            core_count: 1,
            wal_cuts: Vec::new(),
            core_offsets: Vec::new(),
            digests: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Where this checkpoint is under the directory of all checkpoints.
    #[must_use]
    pub fn checkpoint_path(&self, checkpoint_dir: &Path) -> PathBuf {
        EntryName::Checkpoint(CheckpointId(self.id)).path(checkpoint_dir)
    }

    /// Bytes of the state files that this checkpoint itself wrote.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.files_written().map(|file| file.len).sum()
    }

    /// The state files that this checkpoint itself wrote; the others are links to older ones.
    pub fn files_written(&self) -> impl Iterator<Item = &CheckpointFile> {
        // Parts that were spilled before the id was chosen carry a number between parent and id.
        let parent = self.parent_id;
        self.files.iter().filter(move |file| parent.is_none_or(|parent| file.checkpoint > parent))
    }

    /// Encodes the content of `metadata.json`.
    ///
    /// # Errors
    /// `InvalidConfig` when the fields contradict each other, so that what is written can always be
    /// read again.
    pub fn to_json(&self) -> Result<String> {
        let refused = |what: String| {
            IncrementalCheckpointError::invalid(
                Detail::new(what).remedy("Correct its fields; if the library made them, report this."),
            )
        };
        if self.sst_files.iter().ne(self.files.iter().map(|file| &file.name)) {
            return Err(refused("sst_files is not the list of the names in files".into()));
        }
        self.check().map_err(refused)?;
        let text = serde_json::to_string(&self.to_manifest())
            .map_err(|e| refused(format!("the manifest cannot be encoded: {e}")))?;
        Ok(manifest::seal(&text))
    }

    /// Decodes the content of `metadata.json`.
    ///
    /// # Errors
    /// `UnsupportedVersion`, `ChecksumMismatch`, or `Corruption` for any text that
    /// [`Self::to_json`] would not have written, down to the byte.
    pub fn from_json(json: &str) -> Result<Self> {
        Self::decode(json, &Detail::new(""))
    }

    /// As [`Self::from_json`], naming the place the text came from.
    pub(crate) fn decode(json: &str, place: &Detail) -> Result<Self> {
        let damaged = |what: String| {
            let mut detail = Detail::new(what);
            if let Some(path) = place.path() {
                detail = detail.at_path(path);
            }
            IncrementalCheckpointError::corruption(detail)
        };
        let text = manifest::open(json)
            .map_err(|fault| IncrementalCheckpointError::from_fault(&fault, place.clone()))?;
        let manifest: Manifest =
            serde_json::from_str(text).map_err(|e| damaged(format!("the manifest does not parse: {e}")))?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(damaged(format!("format version {} never existed", manifest.format_version)));
        }
        let canonical = serde_json::to_string(&manifest).is_ok_and(|again| again == text);
        if !canonical {
            return Err(damaged("the manifest is not in the form this library writes".into()));
        }
        let metadata = Self::from_manifest(manifest).map_err(damaged)?;
        metadata.check().map_err(damaged)?;
        Ok(metadata)
    }

    /// The fields that must agree with each other, the complete list of files among them (I13).
    fn check(&self) -> std::result::Result<(), String> {
        let cores = usize::from(self.core_count);
        if cores == 0 || cores > MAX_CORES {
            return Err(format!("core_count is {cores}, it must be 1 to {MAX_CORES}"));
        }
        if self.wal_cuts.len() > MAX_CORES || self.core_offsets.len() > MAX_CORES {
            return Err(format!("more than {MAX_CORES} cores have WAL cuts or source offsets"));
        }
        if self.bound_to_wal == self.wal_cuts.is_empty() {
            return Err("WAL cuts must be there exactly when bound_to_wal is set".into());
        }
        if !self.digests.is_empty() && self.digests.len() != cores {
            return Err(format!("{} digests for {cores} cores", self.digests.len()));
        }
        if !self.core_offsets.is_empty() {
            let (offsets, watermark) = flatten(&self.core_offsets);
            if offsets != self.source_offsets || watermark != self.watermark {
                return Err("source offsets or watermark differ from those of the cores".into());
            }
        }
        if self.parent_id.is_some_and(|parent| parent >= self.id) {
            return Err("parent_id is not smaller than id".into());
        }
        if !self.files.is_sorted_by(|a, b| a.place() < b.place()) {
            return Err("the files are not in order".into());
        }
        let outside = |f: &&CheckpointFile| f.core >= self.core_count || f.checkpoint > self.id;
        if let Some(file) = self.files.iter().find(outside) {
            return Err(format!("{} belongs to no core or to a later checkpoint", file.name));
        }
        let misnamed =
            |f: &&CheckpointFile| parse_state_file_name(&f.name) != Some((f.checkpoint, f.core, f.part));
        if let Some(file) = self.files.iter().find(misnamed).filter(|_| !sabotaged(Sabotage::NameBelieved)) {
            return Err(format!("{:?} is not the name of that state file", file.name));
        }
        let size = self.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.len));
        if size != Some(self.size_bytes) {
            return Err("size_bytes is not the sum of the files".into());
        }
        Ok(())
    }

    fn to_manifest(&self) -> Manifest {
        Manifest {
            format_version: FORMAT_VERSION,
            id: self.id,
            epoch: self.epoch,
            timestamp: self.timestamp,
            wal_position: self.wal_position,
            source_offsets: self.source_offsets.clone(),
            watermark: self.watermark,
            size_bytes: self.size_bytes,
            key_count: self.key_count,
            is_incremental: self.is_incremental,
            parent_id: self.parent_id,
            store_id: self.store_id,
            bound_to_wal: self.bound_to_wal,
            core_count: self.core_count,
            wal_cuts: self.wal_cuts.clone(),
            core_offsets: self.core_offsets.clone(),
            digests: self.digests.clone(),
            files: self
                .files
                .iter()
                .map(|file| ManifestFile {
                    name: file.name.clone(),
                    len: file.len,
                    checksum: file.checksum,
                    records: file.records,
                    tombstones: file.tombstones,
                })
                .collect(),
        }
    }

    fn from_manifest(manifest: Manifest) -> std::result::Result<Self, String> {
        let mut files = Vec::with_capacity(manifest.files.len());
        for file in manifest.files {
            // The name on disk is only ever compared; the path is made from the ids in it.
            let believed = sabotaged(Sabotage::NameBelieved);
            let place = parse_state_file_name(&file.name).or_else(|| believed.then_some((0, 0, 0)));
            let Some((checkpoint, core, part)) = place else {
                return Err(format!("{:?} is not the name of a state file", file.name));
            };
            files.push(CheckpointFile {
                name: if believed { file.name } else { state_file_name(checkpoint, core, part) },
                checkpoint,
                core,
                part,
                len: file.len,
                checksum: file.checksum,
                records: file.records,
                tombstones: file.tombstones,
            });
        }
        Ok(Self {
            id: manifest.id,
            epoch: manifest.epoch,
            timestamp: manifest.timestamp,
            wal_position: manifest.wal_position,
            source_offsets: manifest.source_offsets,
            watermark: manifest.watermark,
            size_bytes: manifest.size_bytes,
            key_count: manifest.key_count,
            is_incremental: manifest.is_incremental,
            parent_id: manifest.parent_id,
            sst_files: files.iter().map(|file| file.name.clone()).collect(),
            store_id: manifest.store_id,
            bound_to_wal: manifest.bound_to_wal,
            core_count: manifest.core_count,
            wal_cuts: manifest.wal_cuts,
            core_offsets: manifest.core_offsets,
            digests: manifest.digests,
            files,
        })
    }
}

/// Offsets of all cores together (the larger one where two cores name the same source) and the
/// smallest watermark of those that have one.
#[must_use]
pub fn flatten(cores: &[CoreOffsets]) -> (BTreeMap<String, u64>, Option<i64>) {
    let mut offsets: BTreeMap<String, u64> = BTreeMap::new();
    for (source, &offset) in cores.iter().flat_map(|core| &core.offsets) {
        let known = offsets.entry(source.clone()).or_insert(offset);
        *known = offset.max(*known);
    }
    (offsets, cores.iter().filter_map(|core| core.watermark).min())
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
