//! Putting the files of a checkpoint where they are not there yet.
//!
//! A file is put in chunks, each an object of its own. So there is no upload that could be left half done: a chunk is there
//! as a whole or not at all, and what a crash leaves are whole objects that no record names, which are swept.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use xxhash_rust::xxh3::Xxh3;

use super::error::{BackupError, Result};
use super::names::{ChunkNumber, FILES, chunk_name};
use super::record::{Object, ObjectId, Serial};
use super::remote::{Kept, Remote};
use crate::format::checksum::crc32c;
use crate::ids::BackupId;
use crate::incremental::state_file::StateFileReader;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::read_exact_at;

/// Bytes that are hashed at a time.
const HASHED_AT_A_TIME: u64 = 4 << 20;

/// A file to be backed up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// Of the checkpoint.
    State(&'a Arc<StateFileReader>),
    /// Of the program.
    Own(&'a str, &'a [u8]),
}

/// Tells the files of one store apart, without reading them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    name: String,
    len: u64,
    checksum: u32,
}

impl Source<'_> {
    fn key(&self) -> FileKey {
        match self {
            Self::State(file) => {
                let meta = file.meta();
                FileKey { name: meta.name.clone(), len: meta.len, checksum: meta.checksum }
            }
            Self::Own(name, bytes) => {
                FileKey { name: (*name).to_owned(), len: bytes.len() as u64, checksum: crc32c(bytes) }
            }
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::State(file) => file.meta().len,
            Self::Own(_, bytes) => bytes.len() as u64,
        }
    }

    fn read(&self, from: u64, len: u64) -> Result<Bytes> {
        let size = usize::try_from(len).unwrap_or(usize::MAX);
        match self {
            Self::State(file) => {
                let mut bytes = vec![0; size];
                read_exact_at(file.file(), &mut bytes, from)
                    .map_err(BackupError::local("could not read the state file", file.path()))?;
                Ok(bytes.into())
            }
            Self::Own(_, bytes) => {
                let from = usize::try_from(from).unwrap_or(usize::MAX);
                Ok(Bytes::copy_from_slice(
                    bytes.get(from..).and_then(|rest| rest.get(..size)).unwrap_or_default(),
                ))
            }
        }
    }

    /// Reads and checks all of it: what is damaged is no backup.
    fn verify(&self) -> Result<()> {
        match self {
            Self::State(file) => Ok(file.verify()?),
            Self::Own(..) => Ok(()),
        }
    }
}

/// The name of a hash in a record.
pub(super) fn hash_text(hash: u128) -> String {
    format!("{hash:032x}")
}

/// What this writer knows to be there.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Files of this store that were compared with, or became, an object.
    same: HashMap<FileKey, Object>,
    /// Number of the next object.
    next: u32,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) files: usize,
    pub(super) chunks: usize,
    pub(super) bytes: u64,
}

impl Known {
    /// Forgets objects that may be removed, before they are.
    pub(super) fn keep_only(&mut self, needed: impl Fn(ObjectId) -> bool) {
        self.same.retain(|_, object| needed(object.id));
    }

    /// The object with the content of a file, if there is one: known, or among `there` and found to be the same.
    fn find(&mut self, remote: &Remote, source: &Source<'_>, there: &[Object]) -> Result<Option<Object>> {
        let key = source.key();
        if let Some(object) = self.same.get(&key) {
            return Ok(Some(object.clone()));
        }
        let mut like =
            there.iter().filter(|object| object.name == key.name && object.len == key.len).peekable();
        if like.peek().is_none() {
            return Ok(None);
        }
        let hash = hash_of(remote, source)?;
        let found = like.find(|object| object.hash == hash).cloned();
        if let Some(object) = &found {
            self.same.insert(key, object.clone());
        }
        Ok(found)
    }

    fn new_object(&mut self, remote: &Remote, term: BackupId, source: &Source<'_>) -> Result<Object> {
        let FileKey { name, len, .. } = source.key();
        let serial = Serial(self.next);
        self.next = self.next.checked_add(1).ok_or_else(|| {
            BackupError::invalid("all numbers of objects are used", remote.url(), "Open the store again.")
        })?;
        let chunk_len = remote.options.chunk_bytes;
        let chunks = usize::try_from(len.div_ceil(chunk_len)).unwrap_or(usize::MAX);
        if u32::try_from(chunks).is_err() {
            let what = format!("{name} would need {chunks} objects");
            return Err(BackupError::invalid(what, remote.url(), "Set a larger chunk_bytes."));
        }
        let id = ObjectId { term, serial };
        Ok(Object { name, id, len, chunk_len, hash: String::new(), chunks: vec![0; chunks] })
    }

    /// Puts what is not there yet; returns the objects of all files, in order.
    pub(super) async fn send(
        &mut self,
        remote: &Remote,
        term: BackupId,
        sources: &[Source<'_>],
        there: &[Object],
    ) -> Result<(Vec<Object>, Sent)> {
        let mut objects = Vec::with_capacity(sources.len());
        let mut new = Vec::new();
        for (at, source) in sources.iter().enumerate() {
            if let Some(object) = self.find(remote, source, there)? {
                objects.push(object);
            } else {
                remote.stop.check()?;
                source.verify()?;
                objects.push(self.new_object(remote, term, source)?);
                new.push(at);
            }
        }
        let mut sent = Sent { files: new.len(), ..Sent::default() };
        {
            let objects = &mut objects;
            let mut hasher = Xxh3::new();
            let jobs = new.iter().flat_map(|&at| {
                let chunks = sources.get(at).map_or(0, |s| s.len().div_ceil(remote.options.chunk_bytes));
                // A file without bytes has no chunk, and still a hash.
                (0..chunks.max(1)).map(move |chunk| (at, usize::try_from(chunk).unwrap_or(usize::MAX)))
            });
            // Read in order, one chunk ahead of what is under way; put in any order.
            let puts = jobs.map(|(at, chunk)| -> Result<Option<(String, Bytes)>> {
                let (Some(source), Some(object)) = (sources.get(at), objects.get_mut(at)) else {
                    return Ok(None);
                };
                let (from, len) = object.extent(chunk);
                let bytes = source.read(from, len)?;
                hasher.update(&bytes);
                if from + len == object.len {
                    object.hash = hash_text(std::mem::take(&mut hasher).digest128());
                }
                let number = ChunkNumber(u32::try_from(chunk).unwrap_or(u32::MAX));
                Ok(object.chunks.get_mut(chunk).map(|crc| {
                    *crc = crc32c(&bytes);
                    (chunk_name(object.id, number), bytes)
                }))
            });
            let mut puts = stream::iter(puts)
                .map(|put| async move {
                    let Some((name, bytes)) = put? else { return Ok(0) };
                    remote.make_way(bytes.len() as u64).await?;
                    if sabotaged(Sabotage::ChunkNotPut) && name.ends_with("00000000") {
                        return Ok(0);
                    }
                    let kept = remote.keep(FILES, &name, &bytes).await?;
                    tracing::trace!(name, ?kept, again = kept == Kept::Old, "chunk");
                    Ok::<_, BackupError>(bytes.len() as u64)
                })
                .buffer_unordered(remote.options.concurrency);
            while let Some(bytes) = puts.try_next().await? {
                sent.bytes += bytes;
                sent.chunks += usize::from(bytes > 0);
            }
        }
        for &at in &new {
            if let (Some(source), Some(object)) = (sources.get(at), objects.get(at)) {
                self.same.insert(source.key(), object.clone());
            }
        }
        Ok((objects, sent))
    }
}

/// Hash of a whole file.
fn hash_of(remote: &Remote, source: &Source<'_>) -> Result<String> {
    let (mut hasher, mut from) = (Xxh3::new(), 0);
    while from < source.len() {
        remote.stop.check()?;
        let len = HASHED_AT_A_TIME.min(source.len() - from);
        hasher.update(&source.read(from, len)?);
        from += len;
    }
    Ok(hash_text(hasher.digest128()))
}
