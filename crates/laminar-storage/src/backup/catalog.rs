//! Which backups there are, and whether they are whole.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};
use xxhash_rust::xxh3::Xxh3;

use super::error::{BackupError, Result};
use super::log::{read_head, read_record};
use super::names::{ChunkNumber, FILES, LOG, chunk_name, record_name};
use super::options::BackupOptions;
use super::record::{BackupOwner, Object, Record};
use super::remote::Remote;
use super::target::BackupTarget;
use super::upload::hash_text;
use super::whole::WholeId;
use crate::error::Detail;
use crate::format::checksum::crc32c;
use crate::ids::{BackupId, CheckpointId, Epoch};

/// A backup that counts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupInfo {
    /// Its number.
    pub id: BackupId,
    /// Whose backup it is.
    pub owner: BackupOwner,
    /// The checkpoint it holds.
    pub checkpoint: CheckpointId,
    /// The epoch whose end it holds.
    pub epoch: Epoch,
    /// When the checkpoint was made, in milliseconds since the Unix epoch.
    pub made_ms: u64,
    /// Live keys.
    pub keys: u64,
    /// Number of files, those of the program included.
    pub files: usize,
    /// Bytes of them.
    pub bytes: u64,
    /// Where it is a part's of a backup of a whole: of which. Alone it is not what anybody's state was.
    pub part_of: Option<WholeId>,
}

/// How far something has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TransferProgress {
    /// Bytes that are where they must be, those that were there before included.
    pub bytes_done: u64,
    /// Bytes of all of it.
    pub bytes_total: u64,
}

/// Who hears how far it has come.
pub(super) struct Meter<'a> {
    done: AtomicU64,
    total: u64,
    listener: Mutex<&'a mut (dyn FnMut(TransferProgress) + Send)>,
}

impl<'a> Meter<'a> {
    pub(super) fn new(total: u64, listener: &'a mut (dyn FnMut(TransferProgress) + Send)) -> Self {
        Self { done: AtomicU64::new(0), total, listener: Mutex::new(listener) }
    }

    pub(super) fn add(&self, bytes: u64) {
        let bytes_done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let told = TransferProgress { bytes_done, bytes_total: self.total };
        let mut listener = self.listener.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (*listener)(told);
    }
}

/// What [`read_catalog`] finds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct BackupCatalog {
    /// The backups that count and whose records can be read, oldest first.
    pub backups: Vec<BackupInfo>,
    /// Those whose records are damaged or missing, oldest first, and what is wrong with each.
    pub damaged: Vec<(BackupId, BackupError)>,
}

/// All backups that count at a place; none where there never was any. A damaged record of one keeps nobody from the others.
/// Nothing is changed. Files are not looked at, which [`verify_backup`] does.
///
/// # Errors
/// `Unreachable`, `Refused`; `Corruption` when the newest record is damaged, which says what counts.
pub fn read_catalog(target: &BackupTarget, options: &BackupOptions) -> Result<BackupCatalog> {
    let remote = Remote::new(target, options)?;
    let Records { whole, damaged } = remote.run(read_all(&remote))?;
    Ok(BackupCatalog { backups: whole.into_iter().map(|(info, _)| info).collect(), damaged })
}

/// As [`read_catalog`], only the backups whose records can be read; the log of the program (`tracing`) has the others.
///
/// # Errors
/// As [`read_catalog`].
pub fn list_backups(target: &BackupTarget, options: &BackupOptions) -> Result<Vec<BackupInfo>> {
    let BackupCatalog { backups, damaged } = read_catalog(target, options)?;
    for (backup, error) in damaged {
        tracing::warn!(%backup, %error, "the record of a backup is damaged; it is not listed");
    }
    Ok(backups)
}

/// The backups of a part that can be read, oldest first, and which backup of the whole each is of; what cannot be read goes to
/// `damaged`. One that is damaged keeps nobody from the others.
pub(super) fn list_part(
    target: &BackupTarget,
    options: &BackupOptions,
    damaged: &mut Vec<BackupError>,
) -> Result<Vec<(BackupInfo, WholeId)>> {
    let remote = Remote::new(target, options)?;
    match remote.run(read_all(&remote)) {
        Ok(found) => {
            damaged.extend(found.damaged.into_iter().map(|(_, error)| error));
            let whole = found.whole.into_iter();
            Ok(whole.filter_map(|(info, record)| Some((info, WholeId::of_record(&record)?))).collect())
        }
        Err(damage @ BackupError::Corruption(_)) => {
            damaged.push(damage);
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

fn missing(remote: &Remote, id: BackupId) -> BackupError {
    let what = "the record of a backup that counts is missing";
    BackupError::corruption(what, &remote.name_of(LOG, &record_name(id)))
}

/// What it means that something of a backup is missing or damaged, which was read while others may be made: when it does not
/// count any more it was removed, as it should be.
pub(super) async fn unless_removed(remote: &Remote, id: BackupId, error: BackupError) -> BackupError {
    if !matches!(error, BackupError::Corruption(_)) {
        return error;
    }
    match read_head(remote).await {
        Ok(Some(head)) if head.retained.contains(&id) => error,
        Ok(_) => {
            let detail =
                Detail::new(format!("backup {id} was removed while it was read")).at_path(remote.url());
            let remedy = "Take the newest one. If that is removed again before all of it is read, have more of them kept \
                          (`--keep`, `--backup-keep`, BackupOptions::keep): as many as are made in the time that it takes.";
            BackupError::NotFound(Box::new(detail.remedy(remedy)))
        }
        // Which ones count nobody can say.
        Err(BackupError::Corruption(_)) => error,
        Err(unknown) => unknown,
    }
}

/// Reads every byte of a backup and compares it with its checksums; none: of the newest one, and when that is removed
/// meanwhile, because newer ones were made, of the newest one then.
///
/// # Errors
/// `Corruption` naming the object that is missing or damaged; `NotFound` when there is no such backup, or none any more, as
/// newer ones took its place while it was read; `Unreachable`, `Refused`.
pub fn verify_backup(
    target: &BackupTarget,
    id: Option<BackupId>,
    options: &BackupOptions,
    mut on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<BackupInfo> {
    let remote = Remote::new(target, options)?;
    remote.run(async {
        let mut attempt = 1;
        loop {
            let record = choose(&remote, id).await?;
            match verify_objects(&remote, &record, &mut on_progress).await {
                // The newest is another one by now.
                Err(BackupError::NotFound(_)) if id.is_none() && attempt < remote.options.attempts => {
                    attempt += 1
                }
                done => return done.and_then(|()| describe(&record)),
            }
        }
    })
}

async fn verify_objects(
    remote: &Remote,
    record: &Record,
    on_progress: &mut (dyn FnMut(TransferProgress) + Send),
) -> Result<()> {
    let objects = record.backup.as_ref().map_or(&[][..], |contents| &contents.objects);
    let meter = Meter::new(objects.iter().map(|object| object.len).sum(), on_progress);
    for object in objects {
        if let Err(error) = verify_object(remote, object, &meter).await {
            return Err(unless_removed(remote, record.id, error).await);
        }
    }
    Ok(())
}

async fn verify_object(remote: &Remote, object: &Object, meter: &Meter<'_>) -> Result<()> {
    let mut hasher = Xxh3::new();
    let mut chunks = stream::iter(0..object.chunks.len())
        .map(|chunk| read_chunk(remote, object, chunk))
        .buffered(remote.options.concurrency);
    while let Some(bytes) = chunks.try_next().await? {
        hasher.update(&bytes);
        meter.add(bytes.len() as u64);
    }
    if hash_text(hasher.digest128()) == object.hash {
        return Ok(());
    }
    let name = remote.name_of(FILES, &chunk_name(object.id, ChunkNumber(0)));
    Err(BackupError::corruption(format!("{} as a whole is not what was written", object.name), &name))
}

/// A chunk, checked.
pub(super) async fn read_chunk(remote: &Remote, object: &Object, chunk: usize) -> Result<bytes::Bytes> {
    let name = chunk_name(object.id, ChunkNumber(u32::try_from(chunk).unwrap_or(u32::MAX)));
    let place = remote.name_of(FILES, &name);
    let (_, len) = object.extent(chunk);
    remote.make_way(len).await?;
    let damaged = |what: String| Err(BackupError::corruption(what, &place));
    match remote.get(FILES, &name, len).await? {
        None => damaged(format!("a part of {} is missing", object.name)),
        Some(bytes) if bytes.len() as u64 != len => {
            damaged(format!("a part of {} has {} bytes, {len} were written", object.name, bytes.len()))
        }
        Some(bytes) if object.chunks.get(chunk) != Some(&crc32c(&bytes)) => {
            damaged(format!("a part of {} has another checksum than what was written", object.name))
        }
        Some(bytes) => Ok(bytes),
    }
}

/// The records of the backups that count.
struct Records {
    whole: Vec<(BackupInfo, Record)>,
    damaged: Vec<(BackupId, BackupError)>,
}

/// The records of all backups that count.
async fn read_all(remote: &Remote) -> Result<Records> {
    let mut head = read_head(remote).await?;
    let mut attempt = 1;
    loop {
        let mut found = Records { whole: Vec::new(), damaged: Vec::new() };
        let mut gone = Vec::new();
        for id in head.iter().flat_map(|head| &head.retained) {
            let read = read_record(remote, *id).await;
            match read.and_then(|record| record.map(|record| Ok((describe(&record)?, record))).transpose()) {
                Ok(Some(record)) => found.whole.push(record),
                Ok(None) => gone.push(*id),
                Err(error @ BackupError::Corruption(_)) => found.damaged.push((*id, error)),
                Err(error) => return Err(error),
            }
        }
        if gone.is_empty() {
            return Ok(found);
        }
        // Damage, or removed while we read: the head says which count now.
        head = read_head(remote).await?;
        let counts = |id: &BackupId| head.as_ref().is_some_and(|head| head.retained.contains(id));
        if gone.iter().all(counts) || attempt >= remote.options.attempts {
            let missing = gone.into_iter().filter(counts).map(|id| (id, missing(remote, id)));
            found.damaged.extend(missing);
            found.damaged.sort_by_key(|(id, _)| *id);
            return Ok(found);
        }
        attempt += 1;
    }
}

/// One of the backups that count; none: the newest.
pub(super) async fn choose(remote: &Remote, id: Option<BackupId>) -> Result<Record> {
    let not_found = |what: String, remedy: String| {
        BackupError::NotFound(Box::new(Detail::new(what).at_path(remote.url()).remedy(remedy)))
    };
    let head = match (read_head(remote).await, id) {
        // What is newest is damaged; the one that is asked for may be whole.
        (Err(BackupError::Corruption(damage)), Some(id)) => {
            let found = read_record(remote, id).await?.filter(|record| record.backup.is_some());
            return found.ok_or(BackupError::Corruption(damage));
        }
        (head, _) => head?,
    };
    let Some(head) = head else {
        return Err(not_found("there are no backups here".into(), "Check the URL and its prefix.".into()));
    };
    let chosen = id.or_else(|| head.retained.last().copied());
    let Some(chosen) = chosen.filter(|id| head.retained.contains(id)) else {
        let there: Vec<_> = head.retained.iter().map(ToString::to_string).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        let what = id.map_or_else(
            || "there is no backup here yet".to_owned(),
            |id| format!("there is no backup {id}"),
        );
        return Err(not_found(what, format!("Choose one that is there: {there}.")));
    };
    match read_record(remote, chosen).await? {
        Some(record) => Ok(record),
        None => Err(unless_removed(remote, chosen, missing(remote, chosen)).await),
    }
}

fn describe(record: &Record) -> Result<BackupInfo> {
    let place = record_name(record.id);
    let no_backup = || BackupError::corruption("a claim is named as a backup", &place);
    let metadata = record.metadata().ok_or_else(no_backup)??;
    let objects = record.backup.as_ref().map_or(&[][..], |contents| &contents.objects);
    Ok(BackupInfo {
        id: record.id,
        owner: record.writer.owner,
        checkpoint: CheckpointId(metadata.id),
        epoch: Epoch(metadata.epoch),
        made_ms: metadata.timestamp,
        keys: metadata.key_count,
        files: objects.len(),
        bytes: objects.iter().map(|object| object.len).sum(),
        part_of: WholeId::of_record(record),
    })
}
