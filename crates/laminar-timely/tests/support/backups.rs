//! Backups of jobs in a directory `place` beside their state.

use std::fs;
use std::path::Path;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_timely::{JobBackup, list_job_backups, restore_job};

pub fn place(dir: &Path) -> BackupTarget {
    BackupTarget::create(dir.join("place").to_str().unwrap()).unwrap()
}

/// All of them are kept, and a restored job goes on with them.
pub fn options() -> BackupOptions {
    BackupOptions::new().keep(1000).take_over(true)
}

pub fn backups(dir: &Path) -> Vec<JobBackup> {
    list_job_backups(&place(dir), &options()).unwrap().backups
}

pub fn newest(dir: &Path) -> JobBackup {
    backups(dir).pop().unwrap()
}

/// Restores a backup in place of the state that is there.
pub fn restore(dir: &Path, backup: &JobBackup) {
    let state = dir.join("state");
    fs::remove_dir_all(&state).unwrap();
    restore_job(&place(dir), Some(backup.id), None, &state, &options(), |_| {}).unwrap();
}

/// A copy of a directory with everything in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}
