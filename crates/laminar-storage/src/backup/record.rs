//! Records of the log: who owns the backups, which of them count, and what each consists of.
//!
//! A record is JSON in the envelope of a checkpoint's manifest ([`crate::format::manifest`]), with a checksum over every
//! byte. It is canonical: only the exact bytes that [`Record::encode`] writes are accepted.

use std::collections::HashSet;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::error::{BackupError, Result};
use crate::error::Detail;
use crate::format::manifest;
use crate::format::state_file::Fault;
use crate::ids::{BackupId, Epoch, Incarnation, StoreId};
use crate::incremental::IncrementalCheckpointMetadata;
use crate::incremental::layout::{MANIFEST_NAME, parse_state_file_name};

/// Version of the records.
const VERSION: u32 = 1;

/// Whose backups they are, in which life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackupOwner {
    /// The identity of the store's log.
    pub store_id: StoreId,
    /// The opening of the store; a later one takes over from earlier ones.
    pub incarnation: Incarnation,
}

/// An opening of a store, as its backups know it.
#[derive(Clone, Debug)]
pub(crate) struct Opening {
    pub(crate) owner: BackupOwner,
    reached: Arc<AtomicU64>,
}

impl Opening {
    /// One that begins with the state of this epoch.
    pub(crate) fn new(owner: BackupOwner, point: Epoch) -> Self {
        Self { owner, reached: Arc::new(AtomicU64::new(point.0)) }
    }

    /// The newest epoch of which it is sure that it is this store's: it was opened with it, or has made a backup of it, somewhere where
    /// it was not refused.
    pub(super) fn reached(&self) -> Epoch {
        Epoch(self.reached.load(Ordering::Acquire))
    }

    /// A backup of this epoch is about to be made: it may count from now on, whatever is heard of it.
    pub(super) fn reaches(&self, epoch: Epoch) {
        self.reached.fetch_max(epoch.0, Ordering::AcqRel);
    }
}

/// One writer: tells records of its own from those of anybody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriterId {
    pub(super) owner: BackupOwner,
    /// A random number.
    pub(super) nonce: Nonce,
}

/// A random number that a writer gives itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Nonce(pub(super) u64);

/// The number of an object among those of one writer; never used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Serial(pub(super) u32);

/// Which object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ObjectId {
    /// The claim of the writer that made it.
    pub(super) term: BackupId,
    pub(super) serial: Serial,
}

/// One file of a backup, in chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Object {
    /// The file's name in the checkpoint's directory.
    pub(super) name: String,
    pub(super) id: ObjectId,
    pub(super) len: u64,
    /// Bytes of every chunk but the last, which may have fewer.
    pub(super) chunk_len: u64,
    /// 128-bit xxh3 of the whole file, in hexadecimal.
    pub(super) hash: String,
    /// CRC-32C of each chunk.
    pub(super) chunks: Vec<u32>,
}

impl Object {
    /// Where a chunk begins and how long it is.
    pub(super) fn extent(&self, chunk: usize) -> (u64, u64) {
        let from = self.chunk_len.saturating_mul(chunk as u64).min(self.len);
        (from, self.chunk_len.min(self.len - from))
    }

    fn is_sound(&self) -> bool {
        let plain = FilePath::new(&self.name).file_name().is_some_and(|name| name == self.name.as_str());
        plain
            && self.name != MANIFEST_NAME
            && self.chunk_len > 0
            && self.chunks.len() as u64 == self.len.div_ceil(self.chunk_len)
            && self.chunks.len() <= u32::MAX as usize
            && self.hash.len() == 32
    }
}

/// What a backup consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    /// The checkpoint's `metadata.json`, byte for byte.
    pub(super) manifest: String,
    /// The state files and the program's own files.
    pub(super) objects: Vec<Object>,
}

/// Which backups go on counting when there is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// So many, the new one among them.
    Newest(usize),
    /// This one and all after it; 0 for all.
    Since(BackupId),
}

/// One record of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format_version: u32,
    pub(super) id: BackupId,
    /// The claim of its writer; its own id for a claim.
    pub(super) term: BackupId,
    pub(super) writer: WriterId,
    /// The backups that count, oldest first, this one included.
    pub(super) retained: Vec<BackupId>,
    /// None: a claim.
    pub(super) backup: Option<Contents>,
}

impl Record {
    /// The record with which a writer takes the backups over.
    pub(super) fn claim(id: BackupId, writer: WriterId, retained: Vec<BackupId>) -> Self {
        Self { format_version: VERSION, id, term: id, writer, retained, backup: None }
    }

    /// The record that makes a backup count, and those not any more that need not be kept.
    pub(super) fn backup(after: &Self, term: BackupId, contents: Contents, keep: Keep) -> Self {
        let id = after.id.next();
        let mut retained = after.retained.clone();
        retained.push(id);
        match keep {
            Keep::Newest(count) => drop(retained.drain(..retained.len().saturating_sub(count.max(1)))),
            Keep::Since(oldest) => retained.retain(|id| *id >= oldest),
        }
        Self { format_version: VERSION, id, term, writer: after.writer, retained, backup: Some(contents) }
    }

    pub(super) fn encode(&self) -> Result<String> {
        let text = serde_json::to_string(self)
            .map_err(|e| BackupError::corruption(format!("the record cannot be encoded: {e}"), "log"))?;
        Ok(manifest::seal(&text))
    }

    /// Decodes record `id`, which was read from `object`.
    pub(super) fn decode(bytes: &[u8], id: BackupId, object: &str) -> Result<Self> {
        let damaged = |what: &str| BackupError::corruption(what.to_owned(), object);
        let text = std::str::from_utf8(bytes).map_err(|_| damaged("the record is not text"))?;
        let text = manifest::open(text).map_err(|fault| match fault {
            Fault::NewerVersion { found } => newer(found, object),
            Fault::Checksum { .. } => damaged("the record's checksum is wrong"),
            _ => damaged("this is not a record of a backup's log"),
        })?;
        let record: Self =
            serde_json::from_str(text).map_err(|e| damaged(&format!("the record does not parse: {e}")))?;
        if record.format_version != VERSION {
            return Err(newer(record.format_version, object));
        }
        if !serde_json::to_string(&record).is_ok_and(|again| again == text) {
            return Err(damaged("the record is not in the form this library writes"));
        }
        if record.id != id {
            return Err(damaged("the record is that of another number"));
        }
        record.check().map_err(|what| damaged(&what))?;
        Ok(record)
    }

    /// What the checkpoint says about itself; none for a claim.
    pub(super) fn metadata(&self) -> Option<Result<IncrementalCheckpointMetadata>> {
        let contents = self.backup.as_ref()?;
        Some(IncrementalCheckpointMetadata::from_json(&contents.manifest).map_err(|error| {
            BackupError::corruption(
                format!("the manifest in record {}: {}", self.id, error.detail().what()),
                "log",
            )
        }))
    }

    /// The fields that must agree with each other.
    fn check(&self) -> std::result::Result<(), String> {
        let ordered = self.retained.is_sorted_by(|a, b| a < b);
        if !ordered || self.retained.iter().any(|id| *id > self.id) || self.term > self.id {
            return Err("the record names later records".into());
        }
        if self.backup.is_some() != (self.retained.last() == Some(&self.id)) {
            return Err("the record does not name itself, or names itself without a backup".into());
        }
        let Some(contents) = &self.backup else {
            return if self.term == self.id { Ok(()) } else { Err("the claim has another term".into()) };
        };
        let metadata = IncrementalCheckpointMetadata::from_json(&contents.manifest)
            .map_err(|error| format!("its manifest: {}", error.detail().what()))?;
        let mut names = HashSet::new();
        let sound = |object: &Object| object.is_sound() && object.id.term <= self.term;
        if let Some(object) =
            contents.objects.iter().find(|object| !sound(object) || !names.insert(object.name.as_str()))
        {
            return Err(format!("the object of {:?} makes no sense", object.name));
        }
        let state = contents.objects.iter().filter(|object| parse_state_file_name(&object.name).is_some());
        let state = state.map(|object| (object.name.as_str(), object.len));
        if !state.eq(metadata.files.iter().map(|file| (file.name.as_str(), file.len))) {
            return Err("the objects are not the files of the manifest".into());
        }
        Ok(())
    }
}

fn newer(found: u32, object: &str) -> BackupError {
    let detail = Detail::new(format!("record version {found}, this library reads version {VERSION}"));
    let detail = detail.at_path(object).remedy("Open it with the version of laminar-storage that wrote it.");
    BackupError::Refused(Box::new(detail))
}
