//! Making the state of a job of its backup, on a machine that has nothing; only with the feature `object-store`.
//!
//! | step | on disk | a crash after it |
//! |---|---|---|
//! | fetch | `DIR.fetched/`: a savepoint of each part | the next try keeps every chunk that is whole |
//! | make | `DIR.unfinished/`: a store of each part, what it is, the program's files | is made again, of what was fetched |
//! | publish | renamed to `DIR`, parent synced | it is there |

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use laminar_storage::backup::{
    BackupInfo, BackupOptions, BackupTarget, TransferProgress, WholeBackup, WholeId, list_whole_backups,
    restore,
};
use laminar_storage::error::Detail;
use laminar_storage::incremental::{IncrementalCheckpointError, can_be_own_file, read_manifest};
use laminar_storage::vfs::{
    FileKind, OsVfs, Vfs, absolute, create_dir_durably, parent_of, read_small_file, replace_file_durably,
};
use laminar_storage::{Epoch, Opened, Settings, Store};

use crate::backups::generation_of;
use crate::error::Error;
use crate::layout::{Layout, Part, Restored, Stage};

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

    /// Bytes of all parts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, info)| info.bytes).sum()
    }
}

/// What [`restore_job`] made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RestoredJob {
    /// The job's name.
    pub job: String,
    /// The backup.
    pub backup: JobBackup,
    /// How many processes the job had, and workers of each; another size is for [`crate::OtherSize::Rescale`].
    pub processes: u32,
    /// Workers of each process.
    pub workers: u32,
}

/// The backups of a job that are whole, oldest first, of all sizes that it had; none where no job was ever backed up. Nothing is
/// changed.
///
/// # Errors
/// `Backup`: as [`list_whole_backups`].
pub fn list_job_backups(place: &BackupTarget, options: &BackupOptions) -> Result<Vec<JobBackup>, Error> {
    let mut generations: Vec<_> = place
        .folders(options)?
        .into_iter()
        .filter_map(|folder| Some((generation_of(&folder)?, place.within(&folder))))
        .collect();
    generations.sort_by_key(|(generation, _)| *generation);
    let mut backups = Vec::new();
    for (generation, place) in generations {
        let whole = list_whole_backups(&place, options)?.into_iter();
        backups.extend(whole.map(|WholeBackup { id, parts, .. }| JobBackup {
            id,
            generation: generation.0,
            parts,
        }));
    }
    Ok(backups)
}

/// Makes a backup of a job its state in the new directory `dir`: all parts, and the program's files. `id`: which one; none for the
/// newest. The job goes on from there with the size it had, or another one with [`crate::OtherSize::Rescale`]. To run it on several
/// machines, restore it on each; each process takes its own part.
///
/// When it is interrupted or fails, what was fetched is in `DIR.fetched`, and the same call goes on from there.
///
/// # Errors
/// `Config` when there is something at `dir`, or no such backup; `Backup` as [`restore`]; `Store`, `Io`.
pub fn restore_job(
    place: &BackupTarget,
    id: Option<WholeId>,
    dir: impl AsRef<Path>,
    options: &BackupOptions,
    mut on_progress: impl FnMut(TransferProgress) + Send,
) -> Result<RestoredJob, Error> {
    let vfs: Arc<dyn Vfs> = Arc::new(OsVfs::new());
    let work = Work { vfs, dir: absolute(dir.as_ref()) };
    let [fetched, pending] = [work.beside(".fetched")?, work.beside(".unfinished")?];
    let backups = list_job_backups(place, options)?;
    let chosen = backups.into_iter().rev().find(|backup| id.is_none_or(|id| backup.id == id));
    let backup = chosen.ok_or_else(|| {
        let what = id.map_or("there is no backup of a job here".to_owned(), |id| {
            format!("there is no backup {id} of a job here that is whole")
        });
        Error::config(
            Detail::new(what).at_path(place.to_string()).remedy("Check the URL; choose one that is there."),
        )
    })?;
    work.create(&fetched)?;
    let mut told = TransferProgress::default();
    told.bytes_total = backup.bytes();
    let mut before = 0;
    for (number, (place, info)) in backup.parts.iter().enumerate() {
        let part = fetched.join(format!("part-{number:04}"));
        if !work.is_fetched(&part, info)? {
            restore(place, Some(info.id), &part, options, |progress| {
                told.bytes_done = before + progress.bytes_done;
                on_progress(told);
            })?;
        }
        before += info.bytes;
    }
    let part = work.make(&backup, &fetched, &pending)?;
    work.publish(&pending)?;
    work.remove(&fetched)?;
    Ok(RestoredJob { job: part.job, backup, processes: part.size.processes, workers: part.size.workers })
}

/// A restore, and where.
struct Work {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
}

impl Work {
    /// A directory of our own beside the one to be made.
    fn beside(&self, suffix: &str) -> Result<PathBuf, Error> {
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
        let mut beside = OsString::from(name);
        beside.push(suffix);
        Ok(self.dir.with_file_name(beside))
    }

    fn create(&self, dir: &Path) -> Result<(), Error> {
        create_dir_durably(self.vfs.as_ref(), dir).map_err(|e| Error::io("could not create", dir, e))
    }

    fn remove(&self, dir: &Path) -> Result<(), Error> {
        let layout = Layout::new(dir, &self.vfs);
        layout.remove_all(dir).map_err(|e| Error::io("could not remove", dir, e))
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
    fn make(&self, backup: &JobBackup, fetched: &Path, pending: &Path) -> Result<Part, Error> {
        self.remove(pending)?;
        let layout = Layout::new(pending, &self.vfs);
        let mut first = None;
        for number in 0..backup.parts.len() {
            let savepoint = fetched.join(format!("part-{number:04}"));
            let mark = backup.id.file_name();
            let part = self.part(&savepoint.join(&mark), number, backup)?;
            let dir = layout.store_dir(part.generation, part.part);
            self.create(parent_of(&dir))?;
            // As large as it was: the settings of the job count when it is opened by it.
            let builder =
                Store::builder(&dir).cores(part.size.workers as usize).settings(Settings::default());
            let Opened { store, cores, .. } = builder.from_savepoint(&savepoint).open_as_part(Ok)?;
            drop(cores);
            store.close()?;
            layout.write(&part)?;
            self.copy_own_files(&savepoint, &mark, pending)?;
            first.get_or_insert(part);
        }
        first.ok_or_else(|| {
            Error::config(
                Detail::new("the backup has no part").remedy("Choose another backup, and report this."),
            )
        })
    }

    /// What a part says about itself, restored.
    fn part(&self, mark: &Path, number: usize, backup: &JobBackup) -> Result<Part, Error> {
        let bytes = read_small_file(self.vfs.as_ref(), mark, MOST_BYTES)
            .map_err(|e| Error::io("could not read what the part is", mark, e))?;
        let senseless = |what: String| {
            Error::disagreement(
                Detail::new(what).at_path(mark).remedy("Use the version that made the backup."),
            )
        };
        let mut part = Part::decode(&bytes).map_err(senseless)?;
        let place = (part.generation.0, part.part as usize, part.size.processes as usize);
        if place != (backup.generation, number, backup.parts.len()) {
            return Err(senseless("the part is of another place".to_owned()));
        }
        let epoch: Epoch = backup.id.epoch();
        part.restored = Some(Restored { epoch, generation: part.generation, size: part.size, at: epoch });
        part.stage = Stage::Current;
        Ok(part)
    }

    /// The program's files, which the library's own are not.
    fn copy_own_files(&self, savepoint: &Path, mark: &str, to: &Path) -> Result<(), Error> {
        let vfs = self.vfs.as_ref();
        let entries = vfs.read_dir(savepoint).map_err(|e| Error::io("could not list", savepoint, e))?;
        for (name, kind) in entries {
            let own = matches!(kind, FileKind::File { .. }) && name != mark && can_be_own_file(&name);
            if own {
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
        self.vfs.sync_dir(parent_of(&self.dir)).map_err(failed)
    }
}
