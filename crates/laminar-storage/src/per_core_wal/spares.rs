//! Segment files that are free to be used again.
//!
//! What a sync of a new file costs is mostly the file: the system finds blocks for it and writes its own journal. A
//! segment that a checkpoint has made superfluous has its blocks, so it is kept under another name and becomes a later
//! segment, as RocksDB (`recycle_log_file_num`) and PostgreSQL (`wal_recycle`) do with theirs.
//!
//! # Why nothing old comes back (invariant I19)
//! 1. Only files that this incarnation wrote are used again. What an earlier one left is removed by the next opening.
//! 2. A file is written to only when its old name is gone for good, so that no crash shows new bytes under it.
//! 3. It gets its new name when its new header is durable, so that no crash shows old bytes under that.
//! 4. Its new frames carry another salt than the old ones; and the number of another core, or larger sequences.
//! 5. The old bytes behind the last frame are cut off by zeros that are written with it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::segment::SegmentName;
use crate::vfs::{FileKind, Vfs};

/// First part of the name of a file that is free; the rest is as in the segment's own.
const PREFIX: &str = "spare-";
const SEGMENT_PREFIX: &str = "wal-";

/// The free files of one incarnation, shared by who takes them and who has some to give.
///
/// After a truncation it has no more than were taken since the one before, so that a log takes no more room than it did
/// until then.
#[derive(Debug)]
pub(crate) struct Spares {
    vfs: Arc<dyn Vfs>,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    free: Vec<PathBuf>,
    /// Segments begun since [`Spares::room`] was last asked.
    begun: usize,
}

impl Spares {
    pub(crate) fn new(vfs: &Arc<dyn Vfs>) -> Self {
        Self { vfs: Arc::clone(vfs), pool: Mutex::default() }
    }

    /// A file for the next segment, if there is one.
    pub(crate) fn take(&self) -> Option<PathBuf> {
        self.locked(|pool| {
            pool.begun += 1;
            pool.free.pop()
        })
    }

    /// How many more files may be kept. What is kept already beyond that is removed.
    pub(crate) fn room(&self) -> usize {
        let (surplus, room) = self.locked(|pool| {
            let wanted = std::mem::take(&mut pool.begun);
            let surplus = pool.free.split_off(wanted.min(pool.free.len()));
            (surplus, wanted - pool.free.len())
        });
        self.remove(&surplus);
        room
    }

    /// Takes files whose old names are gone for good.
    pub(crate) fn keep(&self, files: Vec<PathBuf>) {
        self.locked(|pool| pool.free.extend(files));
    }

    /// Gives all their room back.
    pub(crate) fn clear(&self) {
        let files = self.locked(|pool| std::mem::take(&mut pool.free));
        self.remove(&files);
    }

    fn locked<R>(&self, change: impl FnOnce(&mut Pool) -> R) -> R {
        change(&mut self.pool.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn remove(&self, files: &[PathBuf]) {
        files.iter().for_each(|path| remove_spare(self.vfs.as_ref(), path));
    }
}

impl Drop for Spares {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Files on their way to the pool. Those that do not get there are removed: nobody would know of them.
pub(super) struct Spared<'a> {
    vfs: &'a dyn Vfs,
    files: Vec<PathBuf>,
}

impl<'a> Spared<'a> {
    pub(super) fn new(vfs: &'a dyn Vfs) -> Self {
        Self { vfs, files: Vec::new() }
    }

    pub(super) fn push(&mut self, file: PathBuf) {
        self.files.push(file);
    }

    pub(super) fn into_files(mut self) -> Vec<PathBuf> {
        std::mem::take(&mut self.files)
    }
}

impl Drop for Spared<'_> {
    fn drop(&mut self) {
        self.files.iter().for_each(|path| remove_spare(self.vfs, path));
    }
}

/// Where the file of a segment goes when it is free.
pub(crate) fn spare_path(dir: &Path, name: SegmentName) -> PathBuf {
    let file_name = name.file_name();
    dir.join(format!("{PREFIX}{}", file_name.strip_prefix(SEGMENT_PREFIX).unwrap_or(&file_name)))
}

/// Removes what earlier incarnations left, as well as that goes, and not durably: nothing ever reads it.
pub(crate) fn remove_spares(vfs: &dyn Vfs, dir: &Path) {
    // A directory that cannot be listed is an error where it matters.
    for (name, kind) in vfs.read_dir(dir).unwrap_or_default() {
        if is_spare(&name) && matches!(kind, FileKind::File { .. }) {
            remove_spare(vfs, &dir.join(&name));
        }
    }
}

/// One that stays is removed by the next opening.
fn remove_spare(vfs: &dyn Vfs, path: &Path) {
    if let Err(error) = vfs.remove_file_lazily(path) {
        tracing::debug!(%error, path = %path.display(), "could not remove a spare segment");
    }
}

fn is_spare(name: &str) -> bool {
    let segment = name.strip_prefix(PREFIX).map(|rest| format!("{SEGMENT_PREFIX}{rest}"));
    segment.is_some_and(|segment| SegmentName::parse(&segment).is_some())
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests;
