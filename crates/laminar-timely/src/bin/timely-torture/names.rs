//! Names that are not durable. A directory keeps what was created, renamed or removed in it once it is synced; when the power is
//! cut before, each such change may be lost or not, whatever came first. Every change is noted before it is made, and what it takes
//! away gets a second name, so that it can be undone when the processes have ended: any of those that no sync came after.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use laminar_storage::vfs::{OsVfs, Vfs};
use serde::{Deserialize, Serialize};

use crate::model::mix;

const JOURNAL: &str = "journal";

/// A change of names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Change {
    Created(PathBuf),
    /// With what had the new name before.
    Renamed(PathBuf, PathBuf, Option<PathBuf>),
    /// With the name that it has now.
    Removed(PathBuf, PathBuf),
    RemovedDir(PathBuf),
}

impl Change {
    fn names(&self) -> [&Path; 2] {
        match self {
            Self::Created(path) | Self::Removed(path, _) | Self::RemovedDir(path) => [path, path],
            Self::Renamed(from, to, _) => [from, to],
        }
    }
}

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
enum Note {
    /// Is about to be made.
    Changes(u64, Change),
    /// Was not made.
    Failed(u64),
    /// A sync of this directory begins.
    Syncs(u64, PathBuf),
    Synced(u64),
}

/// Takes note of changes, of all processes that have the same directory for it.
#[derive(Debug)]
pub struct Names {
    dir: PathBuf,
    journal: File,
}

impl Names {
    pub fn new(dir: &Path) -> Result<Self, String> {
        let failed = |e: io::Error| format!("{}: {e}", dir.display());
        fs::create_dir_all(dir).map_err(failed)?;
        let dir = std::path::absolute(dir).map_err(failed)?;
        let journal = OpenOptions::new().append(true).create(true).open(dir.join(JOURNAL)).map_err(failed)?;
        Ok(Self { dir, journal })
    }

    /// One write at the end of the file: lines of several processes do not mix.
    fn note(&self, note: &Note) -> io::Result<()> {
        let line = serde_json::to_string(note).map_err(io::Error::other)? + "\n";
        (&self.journal).write_all(line.as_bytes())
    }

    fn make<T>(&self, change: Change, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let id = OsVfs::new().random_u64();
        self.note(&Note::Changes(id, change))?;
        make().inspect_err(|_| {
            // It cannot be told to anybody else.
            let _ = self.note(&Note::Failed(id));
        })
    }

    /// Gives what is there another name as well; none where nothing is, or a directory.
    fn keep(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        if !path.is_file() {
            return Ok(None);
        }
        let kept = self.dir.join(OsVfs::new().random_u64().to_string());
        fs::hard_link(path, &kept).map(|()| Some(kept))
    }

    pub fn create<T>(&self, path: &Path, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if path.exists() {
            return make();
        }
        self.make(Change::Created(path.to_path_buf()), make)
    }

    pub fn rename(&self, from: &Path, to: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let change = Change::Renamed(from.to_path_buf(), to.to_path_buf(), self.keep(to)?);
        self.make(change, make)
    }

    pub fn remove_file(&self, path: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match self.keep(path)? {
            Some(kept) => self.make(Change::Removed(path.to_path_buf(), kept), make),
            None => make(),
        }
    }

    pub fn remove_dir(&self, path: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.make(Change::RemovedDir(path.to_path_buf()), make)
    }

    pub fn sync(&self, dir: &Path, make: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let id = OsVfs::new().random_u64();
        self.note(&Note::Syncs(id, std::path::absolute(dir)?))?;
        make()?;
        self.note(&Note::Synced(id))
    }
}

/// A change that was made, and where its names are now.
struct Made {
    change: Change,
    at: [PathBuf; 2],
    durable: bool,
}

/// Reads what was changed, in order.
fn read(dir: &Path, forgets_syncs: bool) -> Vec<Made> {
    let text = fs::read_to_string(dir.join(JOURNAL)).unwrap_or_default();
    // A line that is not whole is of a process that was killed before it did anything.
    let notes: Vec<Note> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let failed = |note: &Note| if let Note::Failed(id) = note { Some(*id) } else { None };
    let synced = |note: &Note| if let Note::Synced(id) = note { Some(*id) } else { None };
    let failed: HashSet<_> = notes.iter().filter_map(failed).collect();
    let synced: HashSet<_> = notes.iter().filter_map(synced).collect();
    let mut all: Vec<Made> = Vec::new();
    for note in notes {
        match note {
            Note::Changes(id, change) if !failed.contains(&id) => {
                if let Change::Renamed(from, to, _) = &change {
                    all.iter_mut().flat_map(|made| &mut made.at).for_each(|at| *at = moved(at, from, to));
                }
                let at = change.names().map(Path::to_path_buf);
                all.push(Made { change, at, durable: false });
            }
            Note::Syncs(id, dir) if synced.contains(&id) && !forgets_syncs => {
                let within = |made: &&mut Made| made.at.iter().all(|at| at.parent() == Some(&dir));
                all.iter_mut().filter(within).for_each(|made| made.durable = true);
            }
            _ => {}
        }
    }
    all
}

/// Where something is when the directory `from`, which it may be in, is called `to`.
fn moved(at: &Path, from: &Path, to: &Path) -> PathBuf {
    match at.strip_prefix(from) {
        Ok(rest) if !rest.as_os_str().is_empty() => to.join(rest),
        _ => at.to_path_buf(),
    }
}

/// The power is cut: of the changes that are not durable, some are lost, or with `all` each of them. All processes have ended.
/// Returns how many.
pub fn cut_the_power(dir: &Path, seed: u64, all: bool, forgets_syncs: bool) -> Result<u32, String> {
    let dir = std::path::absolute(dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let made = read(&dir, forgets_syncs);
    let (mut random, mut lost) = (seed, 0);
    let mut kept: Vec<&Change> = Vec::new();
    for made in made.iter().rev() {
        random = mix(random);
        if made.durable || (!all && random.is_multiple_of(2)) {
            kept.push(&made.change);
            continue;
        }
        lost += 1;
        undo(&made.change, &kept).map_err(|e| format!("{:?} could not be undone: {e}", made.change))?;
    }
    match fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(format!("{}: {e}", dir.display())),
        _ => Ok(lost),
    }
}

/// Where a name is after later changes that were not lost, latest first; none where one of these decides what has the name.
fn now(name: &Path, later: &[&Change]) -> Option<PathBuf> {
    let mut at = name.to_path_buf();
    for change in later.iter().rev() {
        if change.names().contains(&at.as_path()) {
            return None;
        }
        if let Change::Renamed(from, to, _) = change {
            at = moved(&at, from, to);
        }
    }
    Some(at)
}

/// Undoes a change, as far as later ones that were not lost leave anything of it.
fn undo(change: &Change, later: &[&Change]) -> io::Result<()> {
    let put = |kept: &Path, at: &Path| {
        let free = !at.exists() && at.parent().is_some_and(Path::is_dir);
        if free { fs::hard_link(kept, at) } else { Ok(()) }
    };
    match change {
        Change::Created(path) => now(path, later).map_or(Ok(()), |at| remove(&at)),
        Change::Removed(path, kept) => now(path, later).map_or(Ok(()), |at| put(kept, &at)),
        Change::RemovedDir(path) => {
            let at = now(path, later).filter(|at| !at.exists() && at.parent().is_some_and(Path::is_dir));
            at.map_or(Ok(()), fs::create_dir)
        }
        Change::Renamed(from, to, old) => {
            let (from, Some(to)) = (now(from, later), now(to, later)) else { return Ok(()) };
            match from.filter(|from| !from.exists() && from.parent().is_some_and(Path::is_dir)) {
                // One that was about to be made was not.
                Some(from) if to.exists() => fs::rename(&to, from)?,
                _ => remove(&to)?,
            }
            old.as_ref().map_or(Ok(()), |old| put(old, &to))
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.or_else(|e| if e.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(e) })
}
