//! What a place needs that is a directory of this machine: proof that what was put is on the disk.
//!
//! The store `object_store` makes of a directory writes a file, syncs it, links it to its name and syncs the folder. When that
//! last step fails, the name is there all the same: made again, the put finds an object, and that it can be read proves nothing,
//! as it is read from memory. Nor does another sync, since the system reports a failure once and takes the rest for written. So whatever finds a
//! name there that it may have made itself, without hearing that it was synced, fails ([`super::remote::Remote::put_new`]); after an attempt that failed,
//! its files are put under new names, and another record is put ([`super::log::Session::must_publish`]).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{BackupError, Result};
use super::names::{FILES, LOG};
use crate::error::Detail;
use crate::vfs::{FileKind, Vfs, dir_kind};

/// A directory that an object store keeps its objects in, and a place in it.
#[derive(Clone, Debug)]
pub(super) struct Directory {
    vfs: Arc<dyn Vfs>,
    root: PathBuf,
    place: PathBuf,
}

impl Directory {
    pub(super) fn new(vfs: Arc<dyn Vfs>, root: &Path) -> Self {
        Self { vfs, root: root.to_path_buf(), place: root.to_path_buf() }
    }

    /// The place `folder` below this one.
    pub(super) fn below(&self, folder: &str) -> Self {
        Self { place: self.place.join(folder), ..self.clone() }
    }

    /// Syncs the names in a folder of the place; without one, in the place.
    pub(super) fn sync(&self, folder: &str) -> Result<()> {
        self.sync_path(&self.folder(folder))
    }

    /// Syncs every name on the way from the root to the files and records. What is not there yet has none.
    pub(super) fn sync_all(&self) -> Result<()> {
        self.sync(FILES)?;
        self.sync(LOG)?;
        let mut upward = self.place.ancestors().take_while(|path| path.starts_with(&self.root));
        upward.try_for_each(|path| self.sync_path(path))
    }

    fn folder(&self, folder: &str) -> PathBuf {
        if folder.is_empty() { self.place.clone() } else { self.place.join(folder) }
    }

    fn sync_path(&self, path: &Path) -> Result<()> {
        match self.vfs.sync_dir(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(BackupError::local("could not sync the directory of the backups", path)(e))
            }
            _ => Ok(()),
        }
    }

    /// Names of all folders in the place; none where the place is not there. The object store would fail at any name beside them
    /// that it cannot represent.
    pub(super) fn folders(&self) -> Result<Vec<String>> {
        let read = match self.vfs.read_dir(&self.place) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            read => read,
        };
        let failed = |e| BackupError::local("could not list the directory of the backups", &self.place)(e);
        let mut folders = Vec::new();
        for (name, kind) in read.map_err(failed)? {
            // A symbolic link may lead to one.
            let is_folder = match kind {
                FileKind::Other => {
                    dir_kind(self.vfs.as_ref(), &self.place.join(&name)).map_err(failed)?
                        == Some(FileKind::Dir)
                }
                kind => kind == FileKind::Dir,
            };
            if is_folder {
                folders.push(name);
            }
        }
        Ok(folders)
    }

    /// What it means that a put failed and its object is there.
    pub(super) fn unproved(&self, folder: &str, name: &str) -> BackupError {
        let what = "the file is there after its put failed, and the disk may have only its name in memory";
        let remedy = "Look at the disk and its file system; the next backup puts it anew.";
        BackupError::Local(Box::new(Detail::new(what).at_path(self.folder(folder).join(name)).remedy(remedy)))
    }

    /// Removes files that are called as the store calls those it is still writing, `NAME#NUMBER`, where `is_ours` knows the
    /// name. A folder that is not there has none.
    pub(super) fn remove_unfinished(&self, folder: &str, is_ours: impl Fn(&str) -> bool) -> Result<()> {
        let folder = self.folder(folder);
        let entries = match self.vfs.read_dir(&folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => {
                read.map_err(BackupError::local("could not list the directory of the backups", &folder))?
            }
        };
        for (name, kind) in entries {
            if !matches!(kind, FileKind::File { .. }) || !unfinished(&name).is_some_and(&is_ours) {
                continue;
            }
            let path = folder.join(name);
            match self.vfs.remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                removed => removed
                    .map_err(BackupError::local("could not remove what a killed process left", &path))?,
            }
        }
        Ok(())
    }
}

/// The name that a file is to have once it is written.
fn unfinished(name: &str) -> Option<&str> {
    let (name, number) = name.rsplit_once('#')?;
    (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}
