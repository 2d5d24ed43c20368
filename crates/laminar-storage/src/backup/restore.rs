//! Making a savepoint's directory of a backup, on an empty machine.
//!
//! | step | on disk | a crash after it |
//! |---|---|---|
//! | fetch | `DIR.unfinished`: files of full length, filled chunk by chunk | the next try keeps every chunk that is whole |
//! | complete | manifest and the program's files, everything synced | the same |
//! | check | everything is read, as of any savepoint | the same |
//! | publish | renamed to `DIR`, parent synced | it is there |

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::catalog::{Meter, TransferProgress, choose, read_chunk};
use super::error::{BackupError, Result};
use super::options::BackupOptions;
use super::record::{Contents, Object};
use super::remote::Remote;
use super::target::BackupTarget;
use crate::format::checksum::crc32c;
use crate::ids::{BackupId, CheckpointId, Epoch};
use crate::incremental::CheckpointReader;
use crate::incremental::layout::{MANIFEST_NAME, parse_state_file_name};
use crate::incremental::savepoint::resolved;
use crate::vfs::{
    Access, FileKind, OsVfs, Vfs, VfsFile, dir_kind, parent_of, read_up_to_at, replace_file_durably,
    write_all_at,
};

/// Added to the name of the directory until it is complete.
const UNFINISHED: &str = ".unfinished";

/// What [`restore`] made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreReceipt {
    /// Where it is.
    pub path: PathBuf,
    /// The backup.
    pub id: BackupId,
    /// The checkpoint it holds.
    pub checkpoint: CheckpointId,
    /// The epoch whose end it holds.
    pub epoch: Epoch,
    /// Its keys.
    pub keys: u64,
    /// Cores that its files are laid out for; a store can be opened from it with any number.
    pub cores: u16,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes that were read from the object store.
    pub bytes_fetched: u64,
    /// Bytes that an earlier try had left.
    pub bytes_kept: u64,
    /// How long it took.
    pub time: Duration,
}

/// Makes a backup a savepoint in the new directory `dir`: complete, durable, checked to the last byte. `id`: which one;
/// none for the newest. A store begins with it by [`crate::StoreBuilder::from_savepoint`], with any number of cores.
///
/// When it is interrupted or fails, what was fetched is in `dir.unfinished`, and the same call goes on from there.
///
/// # Errors
/// `NotFound` when there is no such backup; `InvalidInput` when there is something at `dir`; `Corruption` naming the object
/// that is missing or damaged; `Unreachable`, `Refused`; `Local`.
pub fn restore(
    target: &BackupTarget,
    id: Option<BackupId>,
    dir: impl AsRef<Path>,
    options: &BackupOptions,
    on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<RestoreReceipt> {
    restore_with(&OsVfs::new(), target, id, dir.as_ref(), options, on_progress)
}

/// As [`restore`], onto another outside world than the operating system, a simulated disk for example.
///
/// # Errors
/// As [`restore`].
pub fn restore_with(
    vfs: &dyn Vfs,
    target: &BackupTarget,
    id: Option<BackupId>,
    dir: &Path,
    options: &BackupOptions,
    on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<RestoreReceipt> {
    let restoring = Restoring::begin(vfs, Remote::new(target, options)?, id, dir)?;
    fetch_all(vfs, std::slice::from_ref(&restoring), on_progress)?;
    restoring.complete(vfs)
}

/// As [`restore_with`], several backups at a time, of places below one ([`BackupTarget::within`]): each becomes a savepoint in a
/// new directory of its own. All of them together keep to the options, and what is told of the progress is of all together.
///
/// # Errors
/// As [`restore`], and `InvalidInput` for a directory that is named twice. Some may be complete then; the others go on from what
/// was fetched.
pub fn restore_several(
    vfs: &dyn Vfs,
    backups: &[(BackupTarget, BackupId, PathBuf)],
    options: &BackupOptions,
    on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<Vec<RestoreReceipt>> {
    for (at, (target, _, dir)) in backups.iter().enumerate() {
        if backups.iter().take(at).any(|(_, _, other)| other == dir) {
            let what = format!("two backups are to be restored to {}", dir.display());
            let remedy = "Name a directory for each.";
            return Err(BackupError::invalid(what, target.to_string(), remedy));
        }
    }
    let mut remotes: Vec<Remote> = Vec::with_capacity(backups.len());
    for (target, ..) in backups {
        remotes.push(match remotes.first() {
            Some(first) => Remote::beside(first, target)?,
            None => Remote::new(target, options)?,
        });
    }
    let begun = remotes.into_iter().zip(backups);
    let begun = begun.map(|(remote, (_, id, dir))| Restoring::begin(vfs, remote, Some(*id), dir));
    let all = begun.collect::<Result<Vec<_>>>()?;
    fetch_all(vfs, &all, on_progress)?;
    all.iter().map(|restoring| restoring.complete(vfs)).collect()
}

/// A backup that is being made a savepoint.
struct Restoring {
    started: Instant,
    remote: Remote,
    id: BackupId,
    contents: Contents,
    dir: PathBuf,
    /// Where it is until it is complete.
    pending: PathBuf,
    fetched: AtomicU64,
}

impl Restoring {
    /// Finds out what is to be fetched, and makes the directory for it.
    fn begin(vfs: &dyn Vfs, remote: Remote, id: Option<BackupId>, dir: &Path) -> Result<Self> {
        let started = Instant::now();
        let dir = resolved(dir);
        let pending = check_place(vfs, &dir)?;
        let record = remote.run(choose(&remote, id))?;
        let Some(contents) = record.backup else {
            return Err(BackupError::corruption("a claim is named as a backup", remote.url()));
        };
        prepare(vfs, &pending, &contents)?;
        Ok(Self { started, remote, id: record.id, contents, dir, pending, fetched: AtomicU64::new(0) })
    }

    fn bytes(&self) -> u64 {
        self.contents.objects.iter().map(|object| object.len).sum()
    }

    /// Makes what was fetched durable under its name, once all of it is read and found in order.
    fn complete(&self, vfs: &dyn Vfs) -> Result<RestoreReceipt> {
        let Self { dir, pending, .. } = self;
        replace_file_durably(vfs, pending, MANIFEST_NAME, self.contents.manifest.as_bytes())
            .map_err(BackupError::local("could not write the manifest in", pending))?;
        let reader = CheckpointReader::open(vfs, pending).map_err(not_whole)?;
        reader.verify_in_parallel(vfs).map_err(not_whole)?;
        vfs.rename(pending, dir).map_err(BackupError::local("could not give its name to", dir))?;
        let parent = parent_of(dir);
        vfs.sync_dir(parent).map_err(BackupError::local("could not sync the directory", parent))?;
        let (metadata, bytes) = (reader.metadata(), self.bytes());
        let bytes_fetched = self.fetched.load(Ordering::Relaxed);
        Ok(RestoreReceipt {
            path: dir.clone(),
            id: self.id,
            checkpoint: CheckpointId(metadata.id),
            epoch: Epoch(metadata.epoch),
            keys: metadata.key_count,
            cores: metadata.core_count,
            bytes,
            bytes_fetched,
            bytes_kept: bytes.saturating_sub(bytes_fetched),
            time: self.started.elapsed(),
        })
    }
}

/// Every chunk was what was written, and still: what was backed up was damaged, or our own code is.
fn not_whole(error: crate::incremental::IncrementalCheckpointError) -> BackupError {
    if !error.is_corruption() {
        return error.into();
    }
    let remedy = "Restore an older backup, and keep this one: report this with a copy of it.";
    BackupError::Corruption(Box::new(error.detail().clone().remedy(remedy)))
}

/// The directory to work in, beside one that can be made.
fn check_place(vfs: &dyn Vfs, dir: &Path) -> Result<PathBuf> {
    let look = |path: &Path| dir_kind(vfs, path).map_err(BackupError::local("could not look at", path));
    let Some(name) = dir.file_name() else {
        return Err(BackupError::invalid("this is no name for a new directory", dir, "Name another one."));
    };
    let parent = parent_of(dir);
    if look(parent)? != Some(FileKind::Dir) {
        return Err(BackupError::invalid("the parent directory does not exist", parent, "Create it first."));
    }
    if look(dir)?.is_some() {
        let what = "there is something of this name already";
        return Err(BackupError::invalid(what, dir, "Choose another name, or remove what is there."));
    }
    let mut pending = OsString::from(name);
    pending.push(UNFINISHED);
    Ok(dir.with_file_name(pending))
}

/// Makes the directory, or removes from it what an earlier try with another backup left.
fn prepare(vfs: &dyn Vfs, pending: &Path, contents: &Contents) -> Result<()> {
    let io = |action| BackupError::local(action, pending);
    if vfs.kind(pending).map_err(io("could not look at"))?.is_none() {
        return vfs.create_dir(pending).map_err(io("could not create"));
    }
    let wanted = |name: &str| contents.objects.iter().any(|object| object.name == name);
    for (name, kind) in vfs.read_dir(pending).map_err(io("could not list"))? {
        let path = pending.join(&name);
        let temporary = name.strip_suffix(".tmp").unwrap_or(&name) == MANIFEST_NAME;
        let ours = temporary || wanted(&name) || parse_state_file_name(&name).is_some();
        if !ours || !matches!(kind, FileKind::File { .. }) {
            let what = "this is in the way, it was not fetched by an earlier restore of this backup";
            return Err(BackupError::invalid(
                what,
                path,
                "Look what it is and remove it, or choose another name.",
            ));
        }
        if temporary || !wanted(&name) {
            vfs.remove_file(&path).map_err(BackupError::local("could not remove", &path))?;
        }
    }
    Ok(())
}

/// A file that is being filled.
struct Filling<'a> {
    of: &'a Restoring,
    object: &'a Object,
    file: Arc<dyn VfsFile>,
    path: PathBuf,
}

/// Fetches what is not there of all of them, and makes it durable.
fn fetch_all(
    vfs: &dyn Vfs,
    all: &[Restoring],
    mut on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<()> {
    let Some(first) = all.first() else { return Ok(()) };
    let meter = Meter::new(all.iter().map(Restoring::bytes).sum(), &mut on_progress);
    first.remote.run(fetch(vfs, all, first.remote.options.concurrency, &meter))?;
    all.iter().try_for_each(|restoring| sync_files(vfs, restoring))
}

/// Fetches all chunks that are not there, so many at a time, whosesoever they are.
async fn fetch(vfs: &dyn Vfs, all: &[Restoring], concurrency: usize, meter: &Meter<'_>) -> Result<()> {
    // File by file in turn, so that only so many are open as are worked on.
    let objects = all.iter().flat_map(|of| of.contents.objects.iter().map(move |object| (of, object)));
    let chunks = objects.flat_map(|(of, object)| {
        let filling = open_file(vfs, of, object).map(Arc::new);
        (0..object.chunks.len().max(1)).map(move |chunk| (filling.clone(), chunk))
    });
    stream::iter(chunks)
        .map(|(filling, chunk)| async move { fill(&*filling?, chunk, meter).await })
        .buffer_unordered(concurrency)
        .try_collect::<()>()
        .await
}

/// Makes what was fetched durable.
fn sync_files(vfs: &dyn Vfs, restoring: &Restoring) -> Result<()> {
    let pending = &restoring.pending;
    for object in &restoring.contents.objects {
        let path = pending.join(&object.name);
        let synced = vfs.open(&path, Access::ReadWrite).and_then(|file| file.sync_data());
        synced.map_err(BackupError::local("could not sync", &path))?;
    }
    vfs.sync_dir(pending).map_err(BackupError::local("could not sync the directory", pending))?;
    let parent = parent_of(pending);
    vfs.sync_dir(parent).map_err(BackupError::local("could not sync the directory", parent))
}

fn open_file<'a>(vfs: &dyn Vfs, of: &'a Restoring, object: &'a Object) -> Result<Filling<'a>> {
    let path = of.pending.join(&object.name);
    let io = |action| BackupError::local(action, &path);
    let there = vfs.kind(&path).map_err(io("could not look at"))?.is_some();
    let opened = if there { vfs.open(&path, Access::ReadWrite) } else { vfs.create_new(&path) };
    let file = opened.map_err(io("could not open"))?;
    if file.size().map_err(io("could not look at"))? != object.len {
        file.set_len(object.len).map_err(io("could not set the length of"))?;
    }
    Ok(Filling { of, object, file, path })
}

/// Fetches a chunk unless it is there.
async fn fill(filling: &Filling<'_>, chunk: usize, meter: &Meter<'_>) -> Result<()> {
    let Some(crc) = filling.object.chunks.get(chunk) else { return Ok(()) };
    let (from, len) = filling.object.extent(chunk);
    let mut there = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    let read = read_up_to_at(filling.file.as_ref(), &mut there, from)
        .map_err(BackupError::local("could not read", &filling.path))?;
    if read as u64 == len && crc32c(&there) == *crc {
        // Written again: after a sync that failed the system may show what the disk does not have, and count it as clean (I11).
        write_all_at(filling.file.as_ref(), &there, from)
            .map_err(BackupError::local("could not write", &filling.path))?;
        meter.add(len);
        return Ok(());
    }
    drop(there);
    let bytes = read_chunk(&filling.of.remote, filling.object, chunk).await?;
    write_all_at(filling.file.as_ref(), &bytes, from)
        .map_err(BackupError::local("could not write", &filling.path))?;
    filling.of.fetched.fetch_add(len, Ordering::Relaxed);
    meter.add(len);
    Ok(())
}
