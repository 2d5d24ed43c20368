//! Making a savepoint's directory of a backup, on an empty machine.
//!
//! | step | on disk | a crash after it |
//! |---|---|---|
//! | fetch | `DIR.unfinished`: files of full length, filled chunk by chunk | the next try keeps every chunk that is whole |
//! | complete | manifest and the program's files, everything synced | the same |
//! | check | everything is read, as of any savepoint | the same |
//! | publish | renamed to `DIR`, parent synced | it is there; `DIR.unfinished.lock` is empty and may be removed |

use std::ffi::OsString;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt, stream};
use xxhash_rust::xxh3::Xxh3;

use super::catalog::{Meter, TransferProgress, choose, read_chunk, unless_removed};
use super::error::{BackupError, Result};
use super::options::BackupOptions;
use super::record::{Contents, Object};
use super::remote::Remote;
use super::target::BackupTarget;
use super::upload::{HASHED_AT_A_TIME, hash_text};
use crate::error::Detail;
use crate::format::checksum::crc32c;
use crate::ids::{BackupId, CheckpointId, Epoch};
use crate::incremental::CheckpointReader;
use crate::incremental::layout::{MANIFEST_NAME, parse_state_file_name};
use crate::incremental::savepoint::resolved;
use crate::parallel::in_parallel;
use crate::vfs::{
    Access, FileKind, OsVfs, Vfs, VfsFile, dir_kind, parent_of, read_exact_at, read_up_to_at,
    replace_file_durably, write_all_at,
};

/// Added to the name of the directory until it is complete.
const UNFINISHED: &str = ".unfinished";

/// Added to that for the file that is locked while a restore works.
const LOCK: &str = ".lock";

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
    /// Bytes that were there already, from an earlier try.
    pub bytes_kept: u64,
    /// How long it took.
    pub time: Duration,
}

/// Makes a backup a savepoint in the new directory `dir`: complete, durable, checked to the last byte. `id`: which one;
/// none for the newest. A store begins with it by [`crate::StoreBuilder::from_savepoint`], with any number of cores.
///
/// When it is interrupted or fails, what was fetched is in `dir.unfinished`, and the same call goes on from there. Of two at a
/// time the second is refused.
///
/// The place may be in use. When the backup is removed meanwhile, because newer ones were made, and none was named, the newest
/// one then is restored, with what was fetched of it already; progress begins anew. When that happens
/// [`BackupOptions::attempts`] times, or one was named, it ends with `NotFound`.
///
/// # Errors
/// `NotFound` when there is no such backup, or none any more; `InvalidInput` when there is something at `dir`, or another
/// restore of it is running; `Corruption` naming the object that is missing or damaged; `Unreachable`, `Refused`; `Local`.
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
    let mut restoring = Restoring::begin(vfs, Remote::new(target, options)?, id, dir)?;
    let mut attempt = 1;
    loop {
        match fetch_all(vfs, std::slice::from_ref(&restoring), &mut on_progress) {
            // The newest is another one by now.
            Err(BackupError::NotFound(_)) if id.is_none() && attempt < options.attempts => attempt += 1,
            done => return done.and_then(|()| restoring.complete(vfs)),
        }
        restoring.begin_again(vfs)?;
    }
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
    place: Place,
    fetched: AtomicU64,
    kept: AtomicU64,
}

impl Restoring {
    /// Finds out what is to be fetched, and makes the directory for it.
    fn begin(vfs: &dyn Vfs, remote: Remote, id: Option<BackupId>, dir: &Path) -> Result<Self> {
        let started = Instant::now();
        let dir = resolved(dir);
        // Before anything is asked for, and again once nobody else can be at it.
        check_is_new(vfs, &dir)?;
        let (id, contents) = contents(&remote, id)?;
        let place = Place::take(vfs, dir)?;
        prepare(vfs, &place.pending, &contents, &[])?;
        let [fetched, kept] = [AtomicU64::new(0), AtomicU64::new(0)];
        Ok(Self { started, remote, id, contents, place, fetched, kept })
    }

    /// Goes on with the newest backup, where this one was removed.
    fn begin_again(&mut self, vfs: &dyn Vfs) -> Result<()> {
        let (id, contents) = contents(&self.remote, None)?;
        tracing::debug!(removed = %self.id, newest = %id, "a backup was removed while it was restored");
        prepare(vfs, &self.place.pending, &contents, &self.contents.objects)?;
        (self.id, self.contents, self.kept) = (id, contents, AtomicU64::new(0));
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.contents.objects.iter().map(|object| object.len).sum()
    }

    /// Makes what was fetched durable under its name, once all of it is read and found in order.
    fn complete(&self, vfs: &dyn Vfs) -> Result<RestoreReceipt> {
        let Place { dir, pending, .. } = &self.place;
        in_parallel(vfs, &self.contents.objects, |object| self.check_file(vfs, object))?;
        replace_file_durably(vfs, pending, MANIFEST_NAME, self.contents.manifest.as_bytes())
            .map_err(BackupError::local("could not write the manifest in", pending))?;
        let reader = CheckpointReader::open(vfs, pending).map_err(not_whole)?;
        reader.verify_in_parallel(vfs).map_err(not_whole)?;
        vfs.rename(pending, dir).map_err(BackupError::local("could not give its name to", dir))?;
        let parent = parent_of(dir);
        vfs.sync_dir(parent).map_err(BackupError::local("could not sync the directory", parent))?;
        self.place.give_back(vfs);
        let (metadata, bytes) = (reader.metadata(), self.bytes());
        Ok(RestoreReceipt {
            path: dir.clone(),
            id: self.id,
            checkpoint: CheckpointId(metadata.id),
            epoch: Epoch(metadata.epoch),
            keys: metadata.key_count,
            cores: metadata.core_count,
            bytes,
            bytes_fetched: self.fetched.load(Ordering::Relaxed),
            bytes_kept: self.kept.load(Ordering::Relaxed),
            time: self.started.elapsed(),
        })
    }

    /// Compares a file as a whole with what was backed up: its chunks were right one by one, when each was fetched.
    fn check_file(&self, vfs: &dyn Vfs, object: &Object) -> Result<()> {
        let path = self.place.pending.join(&object.name);
        let failed = |e| BackupError::local("could not read", &path)(e);
        let file = vfs.open(&path, Access::Read).map_err(failed)?;
        let (mut hasher, mut from) = (Xxh3::new(), 0);
        while from < object.len {
            let len = HASHED_AT_A_TIME.min(object.len - from);
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            read_exact_at(file.as_ref(), &mut bytes, from).map_err(failed)?;
            hasher.update(&bytes);
            from += len;
        }
        if file.size().map_err(failed)? == object.len && hash_text(hasher.digest128()) == object.hash {
            return Ok(());
        }
        let detail =
            Detail::new("this is not what was backed up, although every part was when it was fetched");
        let remedy = "Look whether something else writes there, then run it again: what was changed is fetched anew. If it says \
                      the same, restore another backup.";
        Err(BackupError::Local(Box::new(detail.at_path(path).remedy(remedy))))
    }
}

/// Which backup it is, and what is in it.
fn contents(remote: &Remote, id: Option<BackupId>) -> Result<(BackupId, Contents)> {
    let record = remote.run(choose(remote, id))?;
    let no_backup = || BackupError::corruption("a claim is named as a backup", remote.url());
    Ok((record.id, record.backup.ok_or_else(no_backup)?))
}

/// The directory to be made, for this restore alone.
struct Place {
    dir: PathBuf,
    /// Where it is until it is complete.
    pending: PathBuf,
    /// Beside it: a lock within would have to go before the rename, and whoever came then could take another one.
    lock: PathBuf,
    _held: Box<dyn Debug + Send + Sync>,
}

impl Place {
    /// Keeps other restores of the same directory away.
    fn take(vfs: &dyn Vfs, dir: PathBuf) -> Result<Self> {
        let beside = |suffix: &str| {
            let mut name = OsString::from(dir.file_name().unwrap_or_default());
            name.push(suffix);
            dir.with_file_name(name)
        };
        let [pending, lock] = [beside(UNFINISHED), beside(&format!("{UNFINISHED}{LOCK}"))];
        let held = vfs.lock(&lock).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => BackupError::invalid(
                "another restore of this directory is running",
                &dir,
                "Wait until it is done, or end it first; then what it fetched is used.",
            ),
            _ => BackupError::local("could not lock", &lock)(e),
        })?;
        // Another restore may have come to its end meanwhile.
        check_is_new(vfs, &dir)?;
        Ok(Self { dir, pending, lock, _held: held })
    }

    /// Removes the file that was locked, once the directory is there: nobody goes on who gets the lock after that. One that stays
    /// does no harm.
    fn give_back(&self, vfs: &dyn Vfs) {
        if let Err(error) = vfs.remove_file(&self.lock) {
            tracing::debug!(%error, lock = %self.lock.display(), "the lock of a restore stays");
        }
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

/// Refuses a directory that cannot be made.
fn check_is_new(vfs: &dyn Vfs, dir: &Path) -> Result<()> {
    let look = |path: &Path| dir_kind(vfs, path).map_err(BackupError::local("could not look at", path));
    if dir.file_name().is_none() {
        return Err(BackupError::invalid("this is no name for a new directory", dir, "Name another one."));
    }
    let parent = parent_of(dir);
    if look(parent)? != Some(FileKind::Dir) {
        return Err(BackupError::invalid("the parent directory does not exist", parent, "Create it first."));
    }
    if look(dir)?.is_some() {
        let what = "there is something of this name already";
        return Err(BackupError::invalid(what, dir, "Choose another name, or remove what is there."));
    }
    Ok(())
}

/// Makes the directory, or removes from it what an earlier try with another backup left: `earlier`, and what only we can have made.
fn prepare(vfs: &dyn Vfs, pending: &Path, contents: &Contents, earlier: &[Object]) -> Result<()> {
    let io = |action| BackupError::local(action, pending);
    if vfs.kind(pending).map_err(io("could not look at"))?.is_none() {
        return vfs.create_dir(pending).map_err(io("could not create"));
    }
    let wanted = |name: &str| contents.objects.iter().any(|object| object.name == name);
    for (name, kind) in vfs.read_dir(pending).map_err(io("could not list"))? {
        let path = pending.join(&name);
        let temporary = name.strip_suffix(".tmp").unwrap_or(&name) == MANIFEST_NAME;
        let fetched = earlier.iter().any(|object| object.name == name);
        let ours = temporary || fetched || wanted(&name) || parse_state_file_name(&name).is_some();
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
    let pending = &restoring.place.pending;
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
    let path = of.place.pending.join(&object.name);
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
        filling.of.kept.fetch_add(len, Ordering::Relaxed);
        meter.add(len);
        return Ok(());
    }
    drop(there);
    let of = filling.of;
    let bytes = match read_chunk(&of.remote, filling.object, chunk).await {
        Ok(bytes) => bytes,
        Err(error) => return Err(unless_removed(&of.remote, of.id, error).await),
    };
    write_all_at(filling.file.as_ref(), &bytes, from)
        .map_err(BackupError::local("could not write", &filling.path))?;
    of.fetched.fetch_add(len, Ordering::Relaxed);
    meter.add(len);
    Ok(())
}
