//! Making the state of a job of its backup, on a machine that has nothing; only with the feature `object-store`.
//!
//! | step | on disk | a crash after it |
//! |---|---|---|
//! | fetch | `DIR.fetched/`: a savepoint of each part | the next try keeps every chunk that is whole |
//! | make | `DIR.unfinished/`: a store of each part, what it is, the program's files | is made again, of what was fetched |
//! | publish | renamed to `DIR`, parent synced | it is there; `DIR.fetched/` may be removed by hand |

use std::ffi::OsStr;
use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::backup::{
    BackupError, BackupInfo, BackupOptions, BackupTarget, TransferProgress, WholeId, list_whole_backups,
    restore_several,
};
use laminar_storage::error::Detail;
use laminar_storage::incremental::{IncrementalCheckpointError, can_be_own_file, read_manifest};
use laminar_storage::vfs::{
    FileKind, OsVfs, Vfs, absolute, create_dir_durably, parent_of, read_small_file, replace_file_durably,
};
use laminar_storage::{Epoch, Opened, Settings, Store};

use crate::backups::generation_of;
use crate::error::Error;
use crate::layout::{Layout, Life, Part, Restored, Size, Stage};

/// Bytes of a small file at most.
const MOST_BYTES: u64 = 64 << 20;

/// A backup of a job, which all of its parts have.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JobBackup {
    /// Which it is.
    pub id: WholeId,
    /// Which size of the job, counted from 1.
    pub generation: u32,
    /// The backup of each part, and where it is; one for each process that the job had.
    pub parts: Vec<(BackupTarget, BackupInfo)>,
}

impl JobBackup {
    /// Keys of all parts.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.parts.iter().map(|(_, info)| info.keys).sum()
    }

    /// When the first of its checkpoints was made, in milliseconds since the Unix epoch, by the clock of its machine.
    #[must_use]
    pub fn made_ms(&self) -> u64 {
        self.parts.iter().map(|(_, info)| info.made_ms).min().unwrap_or_default()
    }

    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, info)| info.bytes).sum()
    }
}

/// What [`list_job_backups`] finds.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct JobBackups {
    /// Those that are whole, oldest first, of all sizes that the job had.
    pub backups: Vec<JobBackup>,
    /// What is damaged or missing of others.
    pub damaged: Vec<BackupError>,
    /// Those that some parts have and others do not: older ones are being removed; a newer one is under way, or what a part had is lost.
    pub incomplete: Vec<WholeId>,
}

/// What [`restore_job`] made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RestoredJob {
    /// The job's name.
    pub job: String,
    /// The backup.
    pub backup: JobBackup,
    /// Which parts of it, in their order.
    pub parts: Vec<u32>,
    /// How many processes the job had, and workers of each; another size is for [`crate::OtherSize::Rescale`].
    pub processes: u32,
    /// Workers of each process.
    pub workers: u32,
}

impl RestoredJob {
    /// Keys of the parts that were restored.
    #[must_use]
    pub fn keys(&self) -> u64 {
        let parts = (0_u32..).zip(&self.backup.parts).filter(|(number, _)| self.parts.contains(number));
        parts.map(|(_, (_, info))| info.keys).sum()
    }
}

/// The backups of a job; none where no job was ever backed up. Sizes of the job come in the order in which their last backups were made,
/// by the clocks of their machines; within a size the logs of the backups say the order. Nothing is changed.
///
/// # Errors
/// `Backup`: as [`list_whole_backups`].
pub fn list_job_backups(place: &BackupTarget, options: &BackupOptions) -> Result<JobBackups, Error> {
    let mut all = JobBackups::default();
    let mut sizes = Vec::new();
    for folder in place.folders(options)? {
        let Some(generation) = generation_of(&folder) else { continue };
        let found = list_whole_backups(&place.within(&folder), options)?;
        all.damaged.extend(found.damaged);
        all.incomplete.extend(found.incomplete);
        // Several numbers of parts under one generation are several sizes.
        for backup in found.backups {
            let size = (generation, backup.parts.len());
            let backup = JobBackup { id: backup.id, generation: generation.0, parts: backup.parts };
            match sizes.iter_mut().find(|(known, _): &&mut (_, Vec<JobBackup>)| *known == size) {
                Some((_, backups)) => backups.push(backup),
                None => sizes.push((size, vec![backup])),
            }
        }
    }
    sizes.sort_by_key(|(_, backups)| backups.last().map(JobBackup::made_ms));
    all.backups = sizes.into_iter().flat_map(|(_, backups)| backups).collect();
    Ok(all)
}

/// Makes a backup of a job its state in the new directory `dir`: its parts, and the program's files. `id`: which one; none for the
/// newest. The job goes on from there with the size it had, or another one with [`crate::OtherSize::Rescale`], and with epochs above
/// those of all backups that are there, of any size, and of those that only some parts have. Where any is damaged the `id` must be
/// given: the newest may be that one.
///
/// `parts`: which ones, counted from 0; none for all. For a job that goes on on several machines: each restores its own, of the same
/// backup, and where there are fewer machines than parts some restore several. A part that is on two machines is a copy that goes
/// out of date on one.
///
/// When it is interrupted or fails, what was fetched is in `DIR.fetched`, and the same call goes on from there; without an id it
/// is refused when there is a newer backup meanwhile. If `dir` is there it is complete, and what is left beside it may be removed.
///
/// # Errors
/// `Config` when there is something at `dir`, or no such backup or part; `Backup` as [`restore_several`]; `Store`, `Io`.
pub fn restore_job(
    place: &BackupTarget,
    id: Option<WholeId>,
    parts: Option<&[u32]>,
    dir: impl AsRef<Path>,
    options: &BackupOptions,
    on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<RestoredJob, Error> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
    restore_job_with(&vfs, place, id, parts, dir.as_ref(), options, on_progress)
}

/// As [`restore_job`], onto another outside world than the operating system, a simulated disk for example.
///
/// # Errors
/// As [`restore_job`].
pub fn restore_job_with(
    vfs: &Arc<dyn Vfs>,
    place: &BackupTarget,
    id: Option<WholeId>,
    parts: Option<&[u32]>,
    dir: &Path,
    options: &BackupOptions,
    on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<RestoredJob, Error> {
    let work = Work { vfs: Arc::clone(vfs), dir: absolute(dir) };
    let [fetched, pending] = [work.beside(".fetched")?, work.beside(".unfinished")?];
    let (backup, used) = choose(place, id, options)?;
    let parts = select(&backup, parts, place, &fetched)?;
    work.create(&fetched)?;
    let lock = work.lock(&fetched)?;
    // Another restore may have come to its end meanwhile.
    work.new_name()?;
    work.fetch(&parts, options, on_progress)?;
    let made = work.make(&backup, used, &parts, &pending)?;
    work.publish(&pending)?;
    work.remove(&fetched)?;
    drop(lock);
    let parts = parts.iter().map(|part| part.number).collect();
    let (job, Size { processes, workers }) = (made.job, made.size);
    Ok(RestoredJob { job, backup, parts, processes, workers })
}

/// The backup that is asked for, and the newest epoch of all that are there.
fn choose(
    place: &BackupTarget,
    id: Option<WholeId>,
    options: &BackupOptions,
) -> Result<(JobBackup, Epoch), Error> {
    let JobBackups { backups, damaged, incomplete } = list_job_backups(place, options)?;
    let all = backups.iter().map(|backup| backup.id).chain(incomplete);
    let used = all.map(WholeId::epoch).max().unwrap_or_default();
    let damage = damaged.into_iter().next();
    let refused = |detail: Detail| Error::config(detail.at_path(place.to_string()));
    if let (None, Some(newest), Some(damage)) = (id, backups.last(), &damage) {
        // It may be of a newer one, or of the only one in a later size.
        let what = format!("the newest backup may be damaged, and an older one would be restored: {damage}");
        let remedy = format!(
            "The newest that is whole is {}: name it to restore that one. Nothing was changed.",
            newest.id
        );
        return Err(refused(Detail::new(what).remedy(remedy)));
    }
    if let Some(backup) = backups.into_iter().rev().find(|backup| id.is_none_or(|id| backup.id == id)) {
        return Ok((backup, used));
    }
    if let Some(damage) = damage {
        return Err(damage.into());
    }
    let what = id.map_or("there is no backup of a job here".to_owned(), |id| {
        format!("there is no backup {id} of a job here that is whole")
    });
    Err(refused(Detail::new(what).remedy("Check the URL; choose one that is there.")))
}

/// A part to be restored.
struct Wanted<'a> {
    number: u32,
    place: &'a BackupTarget,
    info: &'a BackupInfo,
    fetched: PathBuf,
}

/// The parts of a backup that are asked for, in their order; each must be there, and be named once.
fn select<'a>(
    backup: &'a JobBackup,
    asked: Option<&[u32]>,
    place: &BackupTarget,
    fetched: &Path,
) -> Result<Vec<Wanted<'a>>, Error> {
    let refused = |what: String, remedy: &'static str| {
        Err(Error::config(Detail::new(what).at_path(place.to_string()).remedy(remedy)))
    };
    for (at, number) in asked.unwrap_or_default().iter().enumerate() {
        if *number as usize >= backup.parts.len() {
            let what = format!(
                "there is no part {number}: the job has {} parts, counted from 0",
                backup.parts.len()
            );
            return refused(what, "Name those that are there.");
        }
        if asked.is_some_and(|asked| asked[..at].contains(number)) {
            return refused(format!("part {number} is named twice"), "Name every part once.");
        }
    }
    if asked.is_some_and(<[u32]>::is_empty) {
        return refused("no part is named".to_owned(), "Name one at least, or ask for all of them.");
    }
    let all = (0_u32..).zip(&backup.parts);
    let chosen = all.filter(|(number, _)| asked.is_none_or(|asked| asked.contains(number)));
    let wanted = chosen.map(|(number, (place, info))| {
        let fetched = fetched.join(format!("part-{number:04}"));
        Wanted { number, place, info, fetched }
    });
    Ok(wanted.collect())
}

/// In every directory that a restore works in: what has it, with its own name in it, is not somebody else's.
const MARKER: &str = "laminar-restore";

/// Locked while a restore works.
const LOCK: &str = "LOCK";

/// What is in the marker of a directory.
fn marker(dir: &Path) -> String {
    let name = dir.file_name().unwrap_or_default().display();
    format!(
        "A restore works in {name}. In a directory of another name the state is complete, and this file means nothing.\n"
    )
}

fn in_the_way(dir: &Path) -> Error {
    let what = "this is in the way, and no earlier restore made it";
    let remedy = "Look what it is and remove it, or name another directory.";
    Error::config(Detail::new(what).at_path(dir).remedy(remedy))
}

/// A restore, and where.
struct Work {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
}

impl Work {
    /// The name of the directory to be made, which is not there yet.
    fn new_name(&self) -> Result<&OsStr, Error> {
        let kind = |path: &Path| self.vfs.kind(path).map_err(|e| Error::io("could not look at", path, e));
        let refused = |what: &'static str, path: &Path, remedy: &'static str| {
            Err(Error::config(Detail::new(what).at_path(path).remedy(remedy)))
        };
        let Some(name) = self.dir.file_name() else {
            return refused("this is no name for a new directory", &self.dir, "Name another one.");
        };
        if kind(&self.dir)?.is_some() {
            return refused("there is something of this name already", &self.dir, "Name a new directory.");
        }
        if kind(parent_of(&self.dir))? != Some(FileKind::Dir) {
            return refused("the parent directory does not exist", parent_of(&self.dir), "Create it first.");
        }
        Ok(name)
    }

    /// A directory of our own beside the one to be made.
    fn beside(&self, suffix: &str) -> Result<PathBuf, Error> {
        let mut beside = self.new_name()?.to_owned();
        beside.push(suffix);
        Ok(self.dir.with_file_name(beside))
    }

    /// Keeps other restores of the same directory away.
    fn lock(&self, fetched: &Path) -> Result<Box<dyn Debug + Send + Sync>, Error> {
        self.vfs.lock(&fetched.join(LOCK)).map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => Error::config(
                Detail::new("another restore of this directory is running")
                    .at_path(&self.dir)
                    .remedy("Wait until it is done, or end it first; then what it fetched is used."),
            ),
            _ => Error::io("could not lock", &fetched.join(LOCK), e),
        })
    }

    /// Makes a directory to work in, or takes the one of an earlier try. One with nothing in it counts as that: a crash leaves it so
    /// before it is said whose it is, and after what said so was removed.
    fn create(&self, dir: &Path) -> Result<(), Error> {
        let failed = |e| Error::io("could not create", dir, e);
        match self.vfs.kind(dir).map_err(failed)? {
            None => self.vfs.create_dir(dir).map_err(failed)?,
            Some(FileKind::Dir) => {
                let names = self.vfs.read_dir(dir).map_err(failed)?;
                if let Some((_, kind)) = names.iter().find(|(name, _)| name == MARKER) {
                    return self.take_again(dir, *kind);
                }
                if names.iter().any(|(name, _)| name.strip_suffix(".tmp") != Some(MARKER)) {
                    return Err(in_the_way(dir));
                }
            }
            Some(_) => return Err(in_the_way(dir)),
        }
        replace_file_durably(self.vfs.as_ref(), dir, MARKER, marker(dir).as_bytes()).map_err(failed)
    }

    /// Takes a directory with a marker. In one that got another name the marker says nothing: the state in it is complete.
    fn take_again(&self, dir: &Path, kind: FileKind) -> Result<(), Error> {
        let failed = |e| Error::io("could not look whose this is", dir, e);
        let is_file = matches!(kind, FileKind::File { .. });
        if !is_file
            || read_small_file(self.vfs.as_ref(), &dir.join(MARKER), MOST_BYTES).map_err(failed)?
                != marker(dir).as_bytes()
        {
            return Err(in_the_way(dir));
        }
        // Whoever put it there may have died before it was durable.
        self.vfs.sync_dir(dir).map_err(failed)
    }

    /// Removes a directory that [`Self::create`] made.
    fn remove(&self, dir: &Path) -> Result<(), Error> {
        let failed = |e| Error::io("could not remove", dir, e);
        let layout = Layout::new(dir, &self.vfs);
        // What says whose it is goes last, also after a power cut.
        for (name, kind) in self.vfs.read_dir(dir).map_err(failed)? {
            match kind {
                FileKind::Dir => layout.remove_all(&dir.join(name)).map_err(failed)?,
                _ if name == MARKER => {}
                _ => self.vfs.remove_file(&dir.join(name)).map_err(failed)?,
            }
        }
        self.vfs.sync_dir(dir).map_err(failed)?;
        layout.remove_all(dir).map_err(failed)
    }

    /// Fetches all parts together, but for those that an earlier try has fetched.
    fn fetch(
        &self,
        parts: &[Wanted<'_>],
        options: &BackupOptions,
        mut on_progress: impl FnMut(TransferProgress) + Send,
    ) -> Result<(), Error> {
        let (mut missing, mut there) = (Vec::new(), 0);
        for part in parts {
            if self.is_fetched(&part.fetched, part.info)? {
                there += part.info.bytes;
            } else {
                missing.push((part.place.clone(), part.info.id, part.fetched.clone()));
            }
        }
        restore_several(self.vfs.as_ref(), &missing, options, |mut progress| {
            progress.bytes_done += there;
            progress.bytes_total += there;
            on_progress(progress);
        })?;
        Ok(())
    }

    /// Whether an earlier try fetched this part; another backup's is in the way.
    fn is_fetched(&self, part: &Path, info: &BackupInfo) -> Result<bool, Error> {
        let there = match read_manifest(self.vfs.as_ref(), part) {
            Ok(there) => there,
            Err(IncrementalCheckpointError::NotFound(_)) => return Ok(false),
            Err(error) => return Err(laminar_storage::StoreError::from(error).into()),
        };
        let same = (there.id, there.epoch, there.timestamp, there.key_count)
            == (info.checkpoint.0, info.epoch.0, info.made_ms, info.keys);
        if same {
            return Ok(true);
        }
        let detail = Detail::new("what an earlier restore fetched is of another backup").at_path(part);
        Err(Error::config(detail.remedy("Remove it, then run the same again.")))
    }

    /// Makes the job's directory of what was fetched; what an earlier try made of it goes.
    fn make(
        &self,
        backup: &JobBackup,
        used: Epoch,
        parts: &[Wanted<'_>],
        pending: &Path,
    ) -> Result<Part, Error> {
        self.create(pending)?;
        self.remove(pending)?;
        self.create(pending)?;
        let layout = Layout::new(pending, &self.vfs);
        let mut first = None;
        for wanted in parts {
            let (savepoint, mark) = (&wanted.fetched, backup.id.file_name());
            let part = self.part(&savepoint.join(&mark), wanted.number, backup, used)?;
            let dir = layout.store_dir(part.generation, part.part);
            create_dir_durably(self.vfs.as_ref(), parent_of(&dir))
                .map_err(|e| Error::io("could not create", parent_of(&dir), e))?;
            // As large as it was: the settings of the job count when it is opened by it, and nothing is logged before.
            let settings = Settings { preallocate_bytes: 0, ..Settings::default() };
            let builder = Store::builder(&dir).vfs(Arc::clone(&self.vfs));
            let builder = builder.cores(part.size.workers as usize).settings(settings);
            let Opened { store, cores, .. } = builder.from_savepoint(savepoint).open_as_part(Ok)?;
            drop(cores);
            store.close()?;
            layout.write(&part)?;
            self.copy_own_files(savepoint, &mark, pending)?;
            first.get_or_insert(part);
        }
        first.ok_or_else(|| {
            Error::config(
                Detail::new("the backup has no part").remedy("Choose another backup, and report this."),
            )
        })
    }

    /// What a part says about itself, restored.
    fn part(&self, mark: &Path, number: u32, backup: &JobBackup, used: Epoch) -> Result<Part, Error> {
        let bytes = read_small_file(self.vfs.as_ref(), mark, MOST_BYTES)
            .map_err(|e| Error::io("could not read what the part is", mark, e))?;
        let senseless = |what: String| {
            Error::disagreement(
                Detail::new(what).at_path(mark).remedy("Use the version that made the backup."),
            )
        };
        let mut part = Part::decode(&bytes).map_err(senseless)?;
        let place = (part.generation.0, part.part, part.size.processes as usize);
        if place != (backup.generation, number, backup.parts.len()) {
            return Err(senseless("the part is of another place".to_owned()));
        }
        let epoch: Epoch = backup.id.epoch();
        let (generation, size) = (part.generation, part.size);
        // The backup of a restored job that had done nothing yet is of the state of the backup before, whatever epoch it has.
        let before = part.restored.filter(|restored| restored.is_still(epoch));
        let of = before.map_or(epoch, |restored| restored.epoch);
        part.restored = Some(Restored { epoch: of, generation, size, at: epoch, used });
        part.stage = Stage::Current;
        part.life = (number == 0).then(|| Life(self.vfs.random_u64()));
        Ok(part)
    }

    /// The program's files, which the library's own are not.
    fn copy_own_files(&self, savepoint: &Path, mark: &str, to: &Path) -> Result<(), Error> {
        let vfs = self.vfs.as_ref();
        let entries = vfs.read_dir(savepoint).map_err(|e| Error::io("could not list", savepoint, e))?;
        for (name, kind) in entries {
            let own = matches!(kind, FileKind::File { .. }) && name != mark && can_be_own_file(&name);
            let there = vfs.kind(&to.join(&name)).map_err(|e| Error::io("could not look at", to, e))?;
            if own && there.is_none() {
                let path = savepoint.join(&name);
                let bytes = read_small_file(vfs, &path, MOST_BYTES)
                    .map_err(|e| Error::io("could not read", &path, e))?;
                replace_file_durably(vfs, to, &name, &bytes)
                    .map_err(|e| Error::io("could not write", to, e))?;
            }
        }
        Ok(())
    }

    /// Gives a complete state its name, durably.
    fn publish(&self, pending: &Path) -> Result<(), Error> {
        let failed = |e| Error::io("could not give its name to the restored state", &self.dir, e);
        self.vfs.rename(pending, &self.dir).map_err(failed)?;
        self.vfs.sync_dir(parent_of(&self.dir)).map_err(failed)?;
        // Not before: without it the next try would take what a crash left for somebody else's.
        self.vfs.remove_file(&self.dir.join(MARKER)).map_err(failed)?;
        self.vfs.sync_dir(&self.dir).map_err(failed)
    }
}

#[cfg(test)]
mod tests;
