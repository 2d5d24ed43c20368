//! Where the state of a job is, and whose it is.
//!
//! ```text
//! DIR/process-2.lock                     held by process 2 while it runs
//!     generation-00000001/part-0002/     what process 2 keeps, as long as the job has the size of this generation
//!         PART.json                      of which job, which size, and how far it got
//!         store/                         its store, one core for each worker
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use laminar_storage::Epoch;
use laminar_storage::error::Detail;
use laminar_storage::vfs::{FileKind, Vfs, create_dir_durably, read_small_file, replace_file_durably};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::sink::SinkPart;

const PART_FILE: &str = "PART.json";
const FORMAT: u32 = 1;

/// How many processes and workers keep a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Size {
    pub(crate) processes: u32,
    /// Of each process.
    pub(crate) workers: u32,
}

impl std::fmt::Display for Size {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} processes with {} workers each", self.processes, self.workers)
    }
}

/// Counts the sizes that a job has had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Generation(pub(crate) u32);

/// Tells one history of a job's state from others: drawn when a job begins or is restored, it stays through all sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Life(pub(crate) u64);

/// How far a part got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    /// The state of the generation before is being distributed.
    Filling,
    /// This part has all of it, durably.
    Ready,
    /// All parts have: the generation before is not needed any more.
    Current,
}

/// What a part says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    format: u32,
    pub(crate) job: String,
    pub(crate) generation: Generation,
    pub(crate) part: u32,
    pub(crate) size: Size,
    pub(crate) stage: Stage,
    /// Of which history it is; part 0 says it for all of them. None in one of an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) life: Option<Life>,
    /// Where the state came from, if from a backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restored: Option<Restored>,
    /// There was a backup of the job in this size.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) backed_up: bool,
}

/// A state that was restored from a backup: sinks may have more than it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Restored {
    /// The epoch of the backup.
    pub(crate) epoch: Epoch,
    /// Whose sinks may have more.
    pub(crate) generation: Generation,
    pub(crate) size: Size,
    /// Where the state of the backup is in the job's history: at `epoch`, or the one that the state was distributed anew with.
    pub(crate) at: Epoch,
    /// The newest epoch of any backup that was there. The job goes on above it: an epoch that a life of the job which was given up
    /// used as well would stand for two states, and a sink that is cut back to its number later would have the rows of the other.
    #[serde(default)]
    pub(crate) used: Epoch,
}

impl Restored {
    /// The first epoch that no life of the job used which there is a backup of.
    pub(crate) fn unused(self) -> Epoch {
        Epoch(self.used.0.saturating_add(1))
    }

    /// Whether the job's state is still that of the backup when this is its recovery point. The epochs from there up to those that
    /// are not used again are sealed, and nothing is in them.
    pub(crate) fn is_still(self, point: Epoch) -> bool {
        self.at <= point && point <= self.at.max(self.used)
    }

    /// The parts of a sink that the job had then.
    pub(crate) fn sinks(self) -> impl Iterator<Item = SinkPart> {
        let workers = self.size.processes.saturating_mul(self.size.workers);
        (0..workers).map(move |worker| SinkPart { generation: self.generation.0, worker })
    }
}

impl Part {
    pub(crate) fn new(job: &str, generation: Generation, part: u32, size: Size, stage: Stage) -> Self {
        Self {
            format: FORMAT,
            job: job.to_owned(),
            generation,
            part,
            size,
            stage,
            life: None,
            restored: None,
            backed_up: false,
        }
    }

    /// As it stands in its file.
    pub(crate) fn encode(&self) -> Vec<u8> {
        // Numbers and text: it cannot fail, and an empty file would be refused.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// What stands in such a file.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let part: Self = serde_json::from_slice(bytes)
            .map_err(|e| format!("what the part says about itself makes no sense: {e}"))?;
        if part.format != FORMAT {
            return Err("the part is of a later version".to_owned());
        }
        Ok(part)
    }
}

/// The directory of a job, as one process sees it.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
    vfs: Arc<dyn Vfs>,
}

/// Held while a process runs.
pub(crate) type ProcessLock = Box<dyn std::fmt::Debug + Send + Sync>;

impl Layout {
    pub(crate) fn new(dir: &Path, vfs: &Arc<dyn Vfs>) -> Self {
        Self { dir: dir.to_path_buf(), vfs: Arc::clone(vfs) }
    }

    /// Keeps every other process of this number out. One that is just ending is waited for.
    pub(crate) fn lock(&self, process: usize, patience: Duration) -> Result<ProcessLock, Error> {
        create_dir_durably(self.vfs.as_ref(), &self.dir)
            .map_err(|e| Error::io("could not create the job's directory", &self.dir, e))?;
        let path = self.dir.join(format!("process-{process}.lock"));
        let started = Instant::now();
        loop {
            match self.vfs.lock(&path) {
                Ok(lock) => return Ok(lock),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && started.elapsed() < patience => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    return Err(Error::config(
                        Detail::new(format!("process {process} of this job is running already"))
                            .at_path(path)
                            .remedy("End it first, or give this process its own number."),
                    ));
                }
                Err(e) => return Err(Error::io("could not lock the job's directory", &path, e)),
            }
        }
    }

    fn part_dir(&self, generation: Generation, part: u32) -> PathBuf {
        self.dir.join(format!("generation-{:08}", generation.0)).join(format!("part-{part:04}"))
    }

    /// Where the store of a part is.
    pub(crate) fn store_dir(&self, generation: Generation, part: u32) -> PathBuf {
        self.part_dir(generation, part).join("store")
    }

    /// A part that was filled has a store: without one it would be opened as if it had never kept anything.
    pub(crate) fn require_store(&self, generation: Generation, part: u32) -> Result<(), Error> {
        let store = self.store_dir(generation, part);
        let failed = |e| Error::io("could not look at the part's store", &store, e);
        match self.vfs.kind(&store).map_err(failed)? {
            Some(_) => Ok(()),
            None => Err(Error::disagreement(
                Detail::new("the part says that it is filled, and its store is gone")
                    .at_path(&store)
                    .remedy("Restore the store, or the job from a backup; nothing was changed."),
            )),
        }
    }

    /// Writes what a part says about itself, durably.
    pub(crate) fn write(&self, part: &Part) -> Result<(), Error> {
        let dir = self.part_dir(part.generation, part.part);
        let failed = |e| Error::io("could not write what the part is", &dir, e);
        create_dir_durably(self.vfs.as_ref(), &dir).map_err(failed)?;
        replace_file_durably(self.vfs.as_ref(), &dir, PART_FILE, &part.encode()).map_err(failed)
    }

    /// All parts that are in this directory.
    pub(crate) fn parts(&self) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        for (generation, dir) in self.numbered(&self.dir, "generation-")? {
            for (part, dir) in self.numbered(&dir, "part-")? {
                parts.extend(self.read(Generation(generation), part, &dir)?);
            }
        }
        Ok(parts)
    }

    /// One part; none where its creation was interrupted, before anything was in it.
    fn read(&self, generation: Generation, number: u32, dir: &Path) -> Result<Option<Part>, Error> {
        let path = dir.join(PART_FILE);
        let failed = |e| Error::io("could not read what the part is", &path, e);
        if self.vfs.kind(&path).map_err(failed)?.is_none() {
            let store = self.store_dir(generation, number);
            if self.vfs.kind(&store).map_err(failed)?.is_none() {
                return Ok(None);
            }
            let detail = Detail::new("the part has a store, and does not say whose it is").at_path(path);
            return Err(Error::disagreement(detail.remedy("Restore the file; nothing was changed.")));
        }
        let bytes = read_small_file(self.vfs.as_ref(), &path, 64 << 10).map_err(failed)?;
        let senseless = |what: String| {
            let remedy = "Restore the file, or use the version that wrote it; nothing was changed.";
            Error::disagreement(Detail::new(what).at_path(&path).remedy(remedy))
        };
        let part = Part::decode(&bytes).map_err(senseless)?;
        if part.generation != generation || part.part != number {
            return Err(senseless("the part is of another place".to_owned()));
        }
        Ok(Some(part))
    }

    /// Directories called `prefix` and a number, also those that a symbolic link leads to: somebody may have moved one to another disk.
    fn numbered(&self, dir: &Path, prefix: &str) -> Result<Vec<(u32, PathBuf)>, Error> {
        let entries =
            self.vfs.read_dir(dir).map_err(|e| Error::io("could not list the job's directory", dir, e))?;
        let mut numbered = Vec::new();
        for (name, kind) in entries {
            let Some(number) = name.strip_prefix(prefix).and_then(|number| number.parse().ok()) else {
                continue;
            };
            let path = dir.join(name);
            match kind {
                FileKind::Dir => {}
                FileKind::File { .. } => continue,
                // Where it leads nowhere, what it led to is away, and not nothing.
                FileKind::Other => {
                    let listed = self.vfs.read_dir(&path);
                    listed
                        .map_err(|e| Error::io("could not list where a symbolic link leads to", &path, e))?;
                }
            }
            numbered.push((number, path));
        }
        Ok(numbered)
    }

    /// Removes a part, what it says about itself last, also when the power is cut: without that nobody would know whose the store is.
    pub(crate) fn remove(&self, generation: Generation, part: u32) -> Result<(), Error> {
        let dir = self.part_dir(generation, part);
        let failed = |e| Error::io("could not remove a part that is not needed any more", &dir, e);
        self.remove_all(&self.store_dir(generation, part)).map_err(failed)?;
        if self.vfs.kind(&dir).map_err(failed)?.is_some() {
            self.vfs.sync_dir(&dir).map_err(failed)?;
        }
        self.remove_all(&dir).map_err(failed)?;
        if let Some(parent) = dir.parent() {
            // The last of a generation takes it along.
            let _ = self.vfs.remove_dir(parent);
        }
        Ok(())
    }

    /// Removes a directory and what is in it; it may be gone already. Where it is a symbolic link to one, that one is emptied.
    pub(crate) fn remove_all(&self, dir: &Path) -> io::Result<()> {
        let Some(kind) = self.vfs.kind(dir)? else { return Ok(()) };
        for (name, kind) in self.vfs.read_dir(dir)? {
            match kind {
                FileKind::Dir => self.remove_all(&dir.join(name))?,
                _ => self.vfs.remove_file(&dir.join(name))?,
            }
        }
        match kind {
            FileKind::Dir => self.vfs.remove_dir(dir),
            _ => self.vfs.remove_file(dir),
        }
    }
}
