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
    mut on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<RestoreReceipt> {
    let started = Instant::now();
    let dir = resolved(dir);
    let pending = check_place(vfs, &dir)?;
    let remote = Remote::new(target, options)?;
    let record = remote.run(choose(&remote, id))?;
    let Some(contents) = &record.backup else {
        return Err(BackupError::corruption("a claim is named as a backup", remote.url()));
    };
    prepare(vfs, &pending, contents)?;
    let bytes = contents.objects.iter().map(|object| object.len).sum();
    let meter = Meter::new(bytes, &mut on_progress);
    let fetched = remote.run(fetch(vfs, &remote, &pending, contents, &meter))?;
    replace_file_durably(vfs, &pending, MANIFEST_NAME, contents.manifest.as_bytes())
        .map_err(BackupError::local("could not write the manifest in", &pending))?;
    let reader = CheckpointReader::open(vfs, &pending).map_err(not_whole)?;
    reader.verify_in_parallel(vfs).map_err(not_whole)?;
    vfs.rename(&pending, &dir).map_err(BackupError::local("could not give its name to", &dir))?;
    let parent = parent_of(&dir);
    vfs.sync_dir(parent).map_err(BackupError::local("could not sync the directory", parent))?;
    let metadata = reader.metadata();
    Ok(RestoreReceipt {
        path: dir,
        id: record.id,
        checkpoint: CheckpointId(metadata.id),
        epoch: Epoch(metadata.epoch),
        keys: metadata.key_count,
        cores: metadata.core_count,
        bytes,
        bytes_fetched: fetched,
        bytes_kept: bytes.saturating_sub(fetched),
        time: started.elapsed(),
    })
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
    object: &'a Object,
    file: Arc<dyn VfsFile>,
    path: PathBuf,
}

/// Fetches all chunks that are not there, and makes the files durable; returns how many bytes were fetched.
async fn fetch(
    vfs: &dyn Vfs,
    remote: &Remote,
    pending: &Path,
    contents: &Contents,
    meter: &Meter<'_>,
) -> Result<u64> {
    let mut fetched = 0;
    // File by file in turn, so that only so many are open as are worked on.
    let chunks = contents.objects.iter().map(|object| {
        let filling = open_file(vfs, pending, object).map(Arc::new);
        (0..object.chunks.len().max(1)).map(move |chunk| (filling.clone(), chunk))
    });
    let mut work = stream::iter(chunks.flatten())
        .map(|(filling, chunk)| async move {
            let filling = filling?;
            fill(remote, &filling, chunk, meter).await
        })
        .buffer_unordered(remote.options.concurrency);
    while let Some(bytes) = work.try_next().await? {
        fetched += bytes;
    }
    drop(work);
    for object in &contents.objects {
        let path = pending.join(&object.name);
        let synced = vfs.open(&path, Access::ReadWrite).and_then(|file| file.sync_data());
        synced.map_err(BackupError::local("could not sync", &path))?;
    }
    vfs.sync_dir(pending).map_err(BackupError::local("could not sync the directory", pending))?;
    let parent = parent_of(pending);
    vfs.sync_dir(parent).map_err(BackupError::local("could not sync the directory", parent))?;
    Ok(fetched)
}

fn open_file<'a>(vfs: &dyn Vfs, pending: &Path, object: &'a Object) -> Result<Filling<'a>> {
    let path = pending.join(&object.name);
    let io = |action| BackupError::local(action, &path);
    let there = vfs.kind(&path).map_err(io("could not look at"))?.is_some();
    let opened = if there { vfs.open(&path, Access::ReadWrite) } else { vfs.create_new(&path) };
    let file = opened.map_err(io("could not open"))?;
    if file.size().map_err(io("could not look at"))? != object.len {
        file.set_len(object.len).map_err(io("could not set the length of"))?;
    }
    Ok(Filling { object, file, path })
}

/// Fetches a chunk unless it is there; returns how many bytes were fetched.
async fn fill(remote: &Remote, filling: &Filling<'_>, chunk: usize, meter: &Meter<'_>) -> Result<u64> {
    let Some(crc) = filling.object.chunks.get(chunk) else { return Ok(0) };
    let (from, len) = filling.object.extent(chunk);
    let mut there = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    let read = read_up_to_at(filling.file.as_ref(), &mut there, from)
        .map_err(BackupError::local("could not read", &filling.path))?;
    if read as u64 == len && crc32c(&there) == *crc {
        // Written again: after a sync that failed the system may show what the disk does not have, and count it as clean (I11).
        write_all_at(filling.file.as_ref(), &there, from)
            .map_err(BackupError::local("could not write", &filling.path))?;
        meter.add(len);
        return Ok(0);
    }
    drop(there);
    let bytes = read_chunk(remote, filling.object, chunk).await?;
    write_all_at(filling.file.as_ref(), &bytes, from)
        .map_err(BackupError::local("could not write", &filling.path))?;
    meter.add(len);
    Ok(len)
}
