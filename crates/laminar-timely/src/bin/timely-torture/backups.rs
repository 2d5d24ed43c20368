//! The backups of the job: where they are, which is the newest, and one machine's part of a restore, in a process of its own
//! that may be killed.

use std::sync::Arc;
use std::time::Duration;

use laminar_storage::backup::{BackupOptions, BackupTarget};
use laminar_storage::vfs::Vfs;
use laminar_timely::{Config, JobBackup, list_job_backups, restore_job_with};

use crate::Options;
use crate::cache::Cache;
use crate::failing::Trouble;
use crate::model::mix;
use crate::names::Names;
use crate::phases::COPIES;

fn place(options: &Options) -> Result<BackupTarget, String> {
    let dir = options.dir.join("backups");
    let text = dir.to_str().ok_or_else(|| format!("{} is not text", dir.display()))?;
    BackupTarget::create(text).map_err(|e| e.to_string())
}

fn backup_options() -> BackupOptions {
    // Few are kept, so that older ones are removed under kills too.
    BackupOptions::new().keep(3)
}

/// Has the job of this process backed up, where machines are lost.
pub fn backed_up(config: Config, options: &Options) -> Result<Config, String> {
    if options.lose == 0 {
        return Ok(config);
    }
    let every = Duration::from_millis(options.backup_ms);
    let config = config.backup_to(&place(options)?, &backup_options().take_over(options.takes_over), every);
    // Asked for when the checkpoint was made and is about to be copied.
    Ok(config.backup_files(|| {
        println!("{COPIES}");
        Ok(Vec::new())
    }))
}

/// All backups that are whole, oldest first.
pub fn whole_backups(options: &Options) -> Result<Vec<JobBackup>, String> {
    let found = list_job_backups(&place(options)?, &backup_options()).map_err(|e| e.to_string())?;
    // No kill damages one.
    match found.damaged.first() {
        Some(damage) => Err(format!("a backup is damaged: {damage}")),
        None => Ok(found.backups),
    }
}

/// Restores one machine's parts. What it has not synced is lost with it.
pub fn restore(options: &Options) -> Result<(), String> {
    let dir = options.own_dir();
    std::fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let id = options.backup.parse().map_err(|e| format!("--backup {}: {e}", options.backup))?;
    let seed = mix(options.seed ^ mix(options.process as u64));
    let [names, _] = options.names().map(|dir| Names::new(&dir));
    let trouble = Arc::new(Trouble::default());
    options.failing.into_iter().for_each(|failing| trouble.is_due(failing));
    let vfs: Arc<dyn Vfs> = Arc::new(Cache::new(names?, seed, 1000, Duration::ZERO).with(&trouble));
    let (place, state) = (place(options)?, dir.join("state"));
    let parts = Some(options.parts.as_slice());
    restore_job_with(&vfs, &place, Some(id), parts, &state, &backup_options(), |_| {})
        .map_err(|e| e.to_string())?;
    Ok(())
}
