//! Making the names of a log's directory durable, by everybody who adds or removes some.
//!
//! Rolling writers and truncation work in the same directory at the same time. A sync of it that fails may drop
//! what *any* of them changed and call it clean; whoever syncs next then hears that all is well while the name
//! of his segment is gone. So there is one place for these syncs, it lets one through at a time, and after the
//! first failure none succeeds any more (invariant I11).

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::sabotage::{Sabotage, sabotaged};
use crate::vfs::Vfs;

/// What came of the syncs of one directory so far.
#[derive(Debug, Default)]
pub(crate) struct Names {
    failed: Mutex<bool>,
}

impl Names {
    /// Makes every name in `dir` durable, always the same directory.
    ///
    /// # Errors
    /// The failure of this sync, or that an earlier one failed.
    pub(crate) fn sync(&self, vfs: &dyn Vfs, dir: &Path) -> io::Result<()> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        Self::succeeded(*failed)?;
        let result = vfs.sync_dir(dir);
        *failed = result.is_err() && !sabotaged(Sabotage::LostNameForgotten);
        result
    }

    /// To be asked before a name is removed because others are gone for good: after a failed sync those may only
    /// look as if they were.
    ///
    /// # Errors
    /// When a sync failed.
    pub(crate) fn check(&self) -> io::Result<()> {
        let failed = *self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        Self::succeeded(failed && !sabotaged(Sabotage::LostNamesTrusted))
    }

    fn succeeded(failed: bool) -> io::Result<()> {
        if failed { Err(io::Error::other("an earlier sync of this directory failed")) } else { Ok(()) }
    }
}

/// Removes a file that could not be completed, or whose name could not be made durable, as well as that goes. The
/// system may go on to show a name that is not on the disk, and count it as clean: who opens the log next would build
/// on it, and lose it with the next power cut.
pub(crate) fn take_back(vfs: &dyn Vfs, path: &Path) {
    if let Err(error) = vfs.remove_file(path) {
        tracing::warn!(%error, path = %path.display(), "could not remove a file that is of no use");
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::vfs::sim::{Duration, Fault, Keep, SimDisk};

    #[test]
    fn after_a_failure_no_sync_of_the_directory_succeeds() {
        let disk = SimDisk::new(1);
        let (names, root) = (Names::default(), Path::new("/"));
        names.sync(&disk, root).unwrap();
        disk.create_new(Path::new("/segment")).unwrap();
        let fault = Fault::SyncDropsAndCleans { keep: Keep::Nothing, reads_old: false };
        disk.fail_op(disk.ops() + 1, fault, Duration::Once);
        names.check().unwrap();
        assert!(names.sync(&disk, root).is_err());
        disk.sync_dir(root).unwrap();
        assert!(names.check().is_err());
        assert!(names.sync(&disk, root).is_err());
    }

    /// Whoever opens the log next must not build upon a segment that a power cut may take away.
    #[test]
    fn a_file_that_is_taken_back_is_gone() {
        let disk = SimDisk::new(1);
        let path = Path::new("/segment");
        disk.create_new(path).unwrap();
        take_back(&disk, path);
        assert_eq!(disk.kind(path).unwrap(), None);
        // One that is not there, or cannot be removed, is nobody's failure.
        take_back(&disk, path);
    }
}
