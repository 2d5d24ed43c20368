//! Putting the files of a checkpoint where they are not there yet.
//!
//! A file is put in chunks, each an object of its own. So there is no upload that could be left half done: a chunk is there
//! as a whole or not at all, and what a crash leaves are whole objects that no record names, which are swept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use xxhash_rust::xxh3::Xxh3;

use super::error::{BackupError, Result};
use super::names::{ChunkNumber, FILES, chunk_name};
use super::record::{Object, ObjectId, Serial};
use super::remote::{Kept, Remote};
use super::sweep::Listing;
use crate::error::Detail;
use crate::format::checksum::crc32c;
use crate::ids::BackupId;
use crate::incremental::state_file::StateFileReader;
use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::read_exact_at;

/// Bytes that are hashed at a time.
pub(super) const HASHED_AT_A_TIME: u64 = 4 << 20;

/// A file to be backed up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source<'a> {
    /// Of the checkpoint.
    State(&'a Arc<StateFileReader>),
    /// Of the program.
    Own(&'a str, &'a [u8]),
}

/// Tells the state files of one store apart, without reading them. The program's own files are told apart by their bytes alone:
/// whoever writes them under one name owes us nothing about a checksum.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileKey {
    name: String,
    len: u64,
    checksum: u32,
}

impl Source<'_> {
    fn key(&self) -> Option<FileKey> {
        match self {
            Self::State(file) => {
                let meta = file.meta();
                Some(FileKey { name: meta.name.clone(), len: meta.len, checksum: meta.checksum })
            }
            Self::Own(..) => None,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::State(file) => &file.meta().name,
            Self::Own(name, _) => name,
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
    /// Files of which an attempt that failed put a part. The next one goes on with the same object.
    begun: HashMap<FileKey, Begun>,
    /// Number of the next object.
    next: u32,
}

/// An object of which some chunks are there.
#[derive(Clone, Debug)]
struct Begun {
    /// Without a hash until all of it has been read; with the checksums of the chunks that are there.
    object: Object,
    /// Per chunk: it is there.
    put: Vec<bool>,
}

impl Begun {
    fn is_complete(&self) -> bool {
        !self.object.hash.is_empty() && self.put.iter().all(|put| *put)
    }

    /// What there is to do for a chunk: read it, and put it unless it is there.
    fn step(&self, file: usize, chunk: usize, source: &Source<'_>, hasher: &mut Xxh3) -> Result<Step> {
        let (from, len) = self.object.extent(chunk);
        let bytes = source.read(from, len)?;
        hasher.update(&bytes);
        let is_last = from + len == self.object.len;
        let hash = is_last.then(|| hash_text(std::mem::take(hasher).digest128()));
        let checksum = crc32c(&bytes);
        let put = match self.put.get(chunk) {
            // A file without bytes has no chunk.
            None => None,
            Some(true) if self.object.chunks.get(chunk) == Some(&checksum) => None,
            Some(true) => return Err(other_bytes(source)),
            Some(false) => {
                let number = ChunkNumber(u32::try_from(chunk).unwrap_or(u32::MAX));
                Some((chunk_name(self.object.id, number), bytes))
            }
        };
        Ok(Step { file, chunk, checksum, hash, put })
    }
}

/// A chunk that was read.
struct Step {
    /// Which of the files that are sent.
    file: usize,
    chunk: usize,
    checksum: u32,
    /// Of the whole file, with its last chunk.
    hash: Option<String>,
    /// What is to be put, and where.
    put: Option<(String, Bytes)>,
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
        self.begun.retain(|_, begun| needed(begun.object.id));
    }

    /// Forgets what is not listed, or with another length: it is put again. A listing that is out of date costs no more than that.
    pub(super) fn keep_listed(&mut self, listing: &Listing) {
        self.same.retain(|_, object| listing.holds_all(object));
        for Begun { object, put } in self.begun.values_mut() {
            for (chunk, put) in put.iter_mut().enumerate() {
                *put &= listing.holds(object, chunk);
            }
        }
    }

    /// The objects that are known of these files, complete or begun.
    pub(super) fn of(&self, sources: &[Source<'_>]) -> HashSet<ObjectId> {
        let keys = sources.iter().filter_map(Source::key);
        let objects = keys.flat_map(|key| {
            let begun = self.begun.get(&key).map(|begun| begun.object.id);
            self.same.get(&key).map(|object| object.id).into_iter().chain(begun)
        });
        objects.collect()
    }

    /// The object with the content of a file, if there is one: known, or among `there` and found to be the same.
    fn find(&mut self, remote: &Remote, source: &Source<'_>, there: &[Object]) -> Result<Option<Object>> {
        let key = source.key();
        if let Some(object) = key.as_ref().and_then(|key| self.same.get(key)) {
            return Ok(Some(object.clone()));
        }
        let is_like = |object: &&Object| object.name == source.name() && object.len == source.len();
        let mut like = there.iter().filter(is_like).peekable();
        if like.peek().is_none() {
            return Ok(None);
        }
        let hash = hash_of(remote, source)?;
        let found = like.find(|object| object.hash == hash).cloned();
        if let (Some(key), Some(object)) = (key, &found) {
            self.same.insert(key, object.clone());
        }
        Ok(found)
    }

    /// The object that a file becomes: one that was begun, or a new one.
    fn begin(&mut self, remote: &Remote, term: BackupId, source: &Source<'_>) -> Result<Begun> {
        if let Some(begun) = source.key().and_then(|key| self.begun.remove(&key)) {
            return Ok(begun);
        }
        let (name, len) = (source.name().to_owned(), source.len());
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
        let object = Object { name, id, len, chunk_len, hash: String::new(), chunks: vec![0; chunks] };
        Ok(Begun { object, put: vec![false; chunks] })
    }

    /// Puts what is not there yet; returns the objects of all files, in order. What an attempt that fails has put is not put again
    /// by the next one.
    pub(super) async fn send(
        &mut self,
        remote: &Remote,
        term: BackupId,
        sources: &[Source<'_>],
        there: &[Object],
    ) -> Result<(Vec<Object>, Sent)> {
        let mut found = Vec::with_capacity(sources.len());
        let mut new = Vec::new();
        for source in sources {
            let object = self.find(remote, source, there)?;
            if object.is_none() {
                remote.stop.check()?;
                source.verify()?;
                new.push(source);
            }
            found.push(object);
        }
        let begun = new.iter().map(|source| self.begin(remote, term, source));
        let mut files = begun.collect::<Result<Vec<_>>>()?;
        let sent = put_all(remote, &new, &mut files).await;
        for (source, file) in new.iter().zip(&files) {
            match source.key() {
                Some(key) if file.is_complete() => drop(self.same.insert(key, file.object.clone())),
                Some(key) => drop(self.begun.insert(key, file.clone())),
                None => {}
            }
        }
        let sent = sent?;
        // A disk may have given other bytes to be sent than to be checked.
        for source in &new {
            remote.stop.check()?;
            source.verify()?;
        }
        let mut files = files.into_iter().map(|file| file.object);
        let objects = found.into_iter().filter_map(|object| object.or_else(|| files.next()));
        Ok((objects.collect(), sent))
    }
}

/// Puts the chunks of files that are not there; what is done stands in `files`, also when it fails.
async fn put_all(remote: &Remote, sources: &[&Source<'_>], files: &mut [Begun]) -> Result<Sent> {
    let mut sent = Sent { files: files.len(), ..Sent::default() };
    let before = files.to_vec();
    let mut hasher = Xxh3::new();
    let steps = sources.iter().zip(&before).enumerate().flat_map(|(file, (source, begun))| {
        // A file without bytes has no chunk, and still a hash.
        (0..begun.put.len().max(1)).map(move |chunk| (file, chunk, *source, begun))
    });
    // Read in order, one chunk ahead of what is under way; put in any order.
    let steps = steps.map(|(file, chunk, source, begun)| {
        remote.stop.check()?;
        begun.step(file, chunk, source, &mut hasher)
    });
    let mut puts = stream::iter(steps)
        .map(|step| async move {
            let mut step: Step = step?;
            let bytes = match step.put.take() {
                Some((name, bytes)) => put_chunk(remote, &name, &bytes).await?,
                None => 0,
            };
            Ok::<_, BackupError>((step, bytes))
        })
        .buffer_unordered(remote.options.concurrency);
    while let Some((step, bytes)) = puts.try_next().await? {
        sent.bytes += bytes;
        sent.chunks += usize::from(bytes > 0);
        let Some(Begun { object, put }) = files.get_mut(step.file) else { continue };
        if let (Some(checksum), Some(put)) = (object.chunks.get_mut(step.chunk), put.get_mut(step.chunk)) {
            (*checksum, *put) = (step.checksum, true);
        }
        if let Some(hash) = step.hash {
            object.hash = hash;
        }
    }
    Ok(sent)
}

/// Puts a chunk; returns how many bytes were.
async fn put_chunk(remote: &Remote, name: &str, bytes: &Bytes) -> Result<u64> {
    remote.make_way(bytes.len() as u64).await?;
    if sabotaged(Sabotage::ChunkNotPut) && name.ends_with("00000000") {
        return Ok(0);
    }
    let kept = remote.keep(FILES, name, bytes).await?;
    tracing::trace!(name, ?kept, again = kept == Kept::Old, "chunk");
    Ok(bytes.len() as u64)
}

fn other_bytes(source: &Source<'_>) -> BackupError {
    let what = "a state file reads differently than when a part of it was sent";
    let path = match source {
        Source::State(file) => file.path(),
        Source::Own(name, _) => name.as_ref(),
    };
    let remedy = "Check the disk and the memory of this machine; the next backup sends the file anew.";
    BackupError::Local(Box::new(Detail::new(what).at_path(path).remedy(remedy)))
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
