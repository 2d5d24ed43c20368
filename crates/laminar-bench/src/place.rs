//! Where a run keeps its files.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::Error;
use crate::interrupt::Removed;

/// A directory of a run's own, removed with it.
#[derive(Debug)]
pub struct Place {
    dir: TempDir,
    // Forgotten when the directory is gone, and not before.
    _on_signal: Removed,
    /// What figures of this place can say about durability.
    pub file_system: &'static str,
}

impl Place {
    /// Inside `parent`, which is made if need be.
    pub fn new(parent: &Path) -> Result<Self, Error> {
        let made = fs::create_dir_all(parent)
            .and_then(|()| tempfile::Builder::new().prefix("laminar-bench-").tempdir_in(parent));
        let dir = made.map_err(|e| format!("could not make a directory in {}: {e}", parent.display()))?;
        let on_signal = Removed::new(dir.path());
        let kind = rustix::fs::statfs(dir.path())?.f_type;
        let file_system = match kind {
            0x0102_1994 => "tmpfs (no device: figures of durability mean nothing)",
            0xEF53 => "ext4",
            0x5846_5342 => "xfs",
            0x9123_683E => "btrfs",
            0x794C_7630 => "overlay",
            _ => "other",
        };
        Ok(Self { dir, _on_signal: on_signal, file_system })
    }

    /// A new directory that does not exist yet.
    pub fn fresh(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.dir.path().join(name);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        Ok(path)
    }
}

/// Removes what a measurement left, and lets the device catch up, so that the next is not held up.
pub fn clear(dir: &Path) -> Result<(), Error> {
    fs::remove_dir_all(dir)?;
    rustix::fs::sync();
    Ok(())
}
